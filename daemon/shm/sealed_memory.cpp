// SPDX-License-Identifier: GPL-2.0-or-later
#include "daemon/shm/sealed_memory.h"

#include <fcntl.h>
#include <sys/mman.h>

#include <cerrno>
#include <utility>

namespace kvmid::shm {

Result<SealedMemory, Error> SealedMemory::create(const char* name, std::size_t bytes) {
  UniqueFd fd(::memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd.valid()) return system_error("memfd_create", errno);
  if (::ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0) return system_error("ftruncate of a memfd", errno);
  if (::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0)
    return system_error("sealing the size of a memfd", errno);
  void* const data = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  if (data == MAP_FAILED) return system_error("mmap of a memfd", errno);
  SealedMemory memory(std::move(fd), static_cast<std::byte*>(data), bytes);
  // The mapping above stays writable; every later one, and write() and hole punching, are refused from here on.
  if (::fcntl(memory.fd(), F_ADD_SEALS, F_SEAL_FUTURE_WRITE) != 0)
    return system_error("sealing a memfd against writes", errno);
  if (::fcntl(memory.fd(), F_ADD_SEALS, F_SEAL_SEAL) != 0) return system_error("sealing the seals of a memfd", errno);
  return Result<SealedMemory, Error>(std::move(memory));
}

SealedMemory::SealedMemory(SealedMemory&& other) noexcept
    : fd_(std::move(other.fd_)),
      data_(std::exchange(other.data_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)) {}

SealedMemory& SealedMemory::operator=(SealedMemory&& other) noexcept {
  if (this != &other) {
    unmap();
    fd_ = std::move(other.fd_);
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
