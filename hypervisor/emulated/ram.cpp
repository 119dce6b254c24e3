// SPDX-License-Identifier: GPL-2.0-or-later
#include "hypervisor/emulated/ram.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

namespace kvmid::emulated {

Result<GuestRam, GuestRam::Error> GuestRam::create(std::uint64_t bytes) {
  const auto failed = [](const char* call) { return Error{std::string(call) + ": " + std::strerror(errno)}; };
  const int fd = ::memfd_create("kvmi-emu guest RAM", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0) return failed("memfd_create");
  if (::ftruncate(fd, static_cast<off_t>(bytes)) != 0) {
    auto error = failed("ftruncate");
    ::close(fd);
    return error;
  }
  // A descriptor that was made for reading cannot be opened again for writing by other users, through /proc.
  if (::fchmod(fd, S_IRUSR | S_IWUSR) != 0) {
    auto error = failed("fchmod");
    ::close(fd);
    return error;
  }
  // Who maps it may rely on its size: no SIGBUS by a later truncation.
  if (::fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
    auto error = failed("F_ADD_SEALS");
    ::close(fd);
    return error;
  }
  void* base = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (base == MAP_FAILED) {
    auto error = failed("mmap");
    ::close(fd);
    return error;
  }
  return GuestRam(fd, static_cast<std::byte*>(base), bytes);
}

GuestRam::GuestRam(GuestRam&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)), base_(std::exchange(other.base_, nullptr)), bytes_(other.bytes_) {}

GuestRam::~GuestRam() {
  if (base_ != nullptr) ::munmap(base_, bytes_);
  if (fd_ >= 0) ::close(fd_);
}

bool GuestRam::read(Gpa gpa, void* out, std::size_t size) const {
  const std::byte* from = at(gpa, size);
  if (from == nullptr) return false;
  std::memcpy(out, from, size);
  return true;
}

bool GuestRam::write(Gpa gpa, const void* data, std::size_t size) {
  std::byte* to = at(gpa, size);
  if (to == nullptr) return false;
  std::memcpy(to, data, size);
  return true;
}

}  // namespace kvmid::emulated
