// SPDX-License-Identifier: GPL-2.0-or-later
#include "daemon/shm/sealed_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <cerrno>
#include <string>
#include <utility>

namespace kvmid::shm {

Result<SealedMemory, Error> SealedMemory::create(const char* name, std::size_t bytes, Owner owner) {
  UniqueFd fd(::memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd.valid()) return system_error("memfd_create", errno);
  if (::fchmod(fd.get(), S_IRUSR | S_IWUSR) != 0) return system_error("fchmod of a memfd", errno);
  if (::ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0) return system_error("ftruncate of a memfd", errno);
  if (::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0)
    return system_error("sealing the size of a memfd", errno);
  void* const data = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  if (data == MAP_FAILED) return system_error("mmap of a memfd", errno);
  const std::string path = "/proc/self/fd/" + std::to_string(fd.get());
  SealedMemory memory(UniqueFd(::open(path.c_str(), O_RDONLY | O_CLOEXEC)), static_cast<std::byte*>(data), bytes);
  if (!memory.fd_.valid()) return system_error("opening a memfd read-only by " + path, errno);
  // The mapping above stays writable; every later one, and write() and hole punching, are refused from here on.
  if (::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_FUTURE_WRITE) != 0)
    return system_error("sealing a memfd against writes", errno);
  if (::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SEAL) != 0) return system_error("sealing the seals of a memfd", errno);
  if (owner == Owner::Told) {
    struct flock first_byte = {};
    first_byte.l_type = F_WRLCK;
    first_byte.l_whence = SEEK_SET;
    first_byte.l_len = 1;
    if (::fcntl(fd.get(), F_OFD_SETLK, &first_byte) != 0) return system_error("locking a memfd", errno);
    memory.lock_ = std::move(fd);
  }
  return Result<SealedMemory, Error>(std::move(memory));
}

SealedMemory::SealedMemory(SealedMemory&& other) noexcept
    : fd_(std::move(other.fd_)),
      lock_(std::move(other.lock_)),
      data_(std::exchange(other.data_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)) {}

SealedMemory& SealedMemory::operator=(SealedMemory&& other) noexcept {
  if (this != &other) {
    unmap();
    fd_ = std::move(other.fd_);
    lock_ = std::move(other.lock_);
    data_ = std::exchange(other.data_, nullptr);
    bytes_ = std::exchange(other.bytes_, 0);
  }
  return *this;
}

SealedMemory::~SealedMemory() { unmap(); }

void SealedMemory::unmap() {
  if (data_ != nullptr) ::munmap(data_, bytes_);
  data_ = nullptr;
}

}  // namespace kvmid::shm
