// SPDX-License-Identifier: GPL-2.0-or-later
#include "daemon/shm/guest_ram.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <cerrno>
#include <string>

#include "daemon/shm/fault_guard.h"

namespace kvmid::shm {

Result<std::unique_ptr<GuestRam>, Error> GuestRam::map(UniqueFd fd, std::uint64_t ram_bytes) {
  if (ram_bytes == 0 || ram_bytes % kPageSize != 0 || ram_bytes >= kRamBytesMax)
    return Error{"guest RAM of " + std::to_string(ram_bytes) + " bytes: not whole pages below 2^46 bytes"};
  struct stat status = {};
  if (::fstat(fd.get(), &status) != 0) return system_error("fstat of guest RAM", errno);
  if (!S_ISREG(status.st_mode)) return Error{"guest RAM is not a regular file"};
  const int seals = ::fcntl(fd.get(), F_GET_SEALS);
  if (seals < 0) return system_error("guest RAM is a file that knows no seals", errno);
  if (static_cast<std::uint64_t>(status.st_size) != ram_bytes)
    return Error{"guest RAM was announced with " + std::to_string(ram_bytes) + " bytes and its file has " +
                 std::to_string(status.st_size)};
  if (auto installed = install_fault_guard(); !installed) return installed.error();
  void* const data = ::mmap(nullptr, ram_bytes, PROT_READ, MAP_SHARED, fd.get(), 0);
  if (data == MAP_FAILED) return system_error("mmap of guest RAM", errno);
  return std::unique_ptr<GuestRam>(
      new GuestRam(std::move(fd), static_cast<const std::byte*>(data), ram_bytes, (seals & F_SEAL_SHRINK) != 0));
}

GuestRam::~GuestRam() { ::munmap(const_cast<std::byte*>(data_), bytes_); }

Result<void, Error> GuestRam::read(Gpa gpa, std::span<std::byte> to) {
  if (gpa.value > bytes_ || to.size() > bytes_ - gpa.value)
    return Error{std::to_string(to.size()) + " bytes at " + std::to_string(gpa.value) + " are not within guest RAM"};
  // Relaxed: the flag orders nothing; who misses it meets the fault himself.
  if (failed_.load(std::memory_order_relaxed)) return Error{"the mapping of guest RAM has failed"};
  if (to.empty()) return {};
  if (!guarded_copy(to, data_ + gpa.value, {data_, bytes_})) {
    failed_.store(true, std::memory_order_relaxed);
    return Error{"guest RAM is gone: its file was cut short, or the machine has lost the page"};
  }
  return {};
}

Result<UniqueFd, Error> GuestRam::read_only_fd() const {
  const int flags = ::fcntl(fd_.get(), F_GETFL);
  if (flags >= 0 && (flags & O_ACCMODE) == O_RDONLY) {
    UniqueFd copy(::fcntl(fd_.get(), F_DUPFD_CLOEXEC, 0));
    if (!copy.valid()) return system_error("a descriptor cannot be copied", errno);
    return Result<UniqueFd, Error>(std::move(copy));
  }
  // A duplicate would share the open file, and its right to write. This is a new one: where the file belongs to another
  // user, who lets nobody else open it, there is none to be had.
  const std::string path = "/proc/self/fd/" + std::to_string(fd_.get());
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return system_error("opening guest RAM read-only by " + path, errno);
  return Result<UniqueFd, Error>(std::move(fd));
}

bool GuestRam::writable_by(uid_t uid) const {
  // Asked each time: who owns the file can change its mode, and add seals.
  const int seals = ::fcntl(fd_.get(), F_GET_SEALS);
  if (seals >= 0 && (seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE)) != 0) return false;  // not even root
  struct stat status = {};
  if (::fstat(fd_.get(), &status) != 0) return true;
  // memfd_create() makes files of mode 0777: a hypervisor that wants its guest's RAM granted narrows it by fchmod().
  return uid == 0 || uid == status.st_uid || (status.st_mode & (S_IWGRP | S_IWOTH)) != 0;
}

}  // namespace kvmid::shm
