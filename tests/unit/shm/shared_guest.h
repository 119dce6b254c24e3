// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// What these tests share: a guest's RAM as its hypervisor has it, and readers of it.

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>

#include "client/mapped_memory.h"
#include "daemon/shm/generation_page.h"
#include "daemon/shm/guest_ram.h"

namespace kvmid::shm::testing {

template <class T, class E>
T must(Result<T, E> result) {
  if (!result) throw std::runtime_error(result.error().text);
  return std::move(result).value();
}

/// RAM of a guest in its hypervisor's hands: writable, and of mode 0600.
class HypervisorRam {
 public:
  explicit HypervisorRam(std::uint64_t bytes, bool sealed = true)
      : fd_(::memfd_create("test-ram", MFD_CLOEXEC | MFD_ALLOW_SEALING)), bytes_(bytes) {
    if (!fd_.valid() || ::ftruncate(fd_.get(), static_cast<off_t>(bytes)) != 0 || ::fchmod(fd_.get(), 0600) != 0 ||
        (sealed && ::fcntl(fd_.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0))
      throw std::runtime_error("no memfd");
    void* const data = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd_.get(), 0);
    if (data == MAP_FAILED) throw std::runtime_error("no mapping");
    data_ = static_cast<std::byte*>(data);
  }
  HypervisorRam(const HypervisorRam&) = delete;
  HypervisorRam& operator=(const HypervisorRam&) = delete;
  ~HypervisorRam() { ::munmap(data_, bytes_); }

  [[nodiscard]] int fd() const { return fd_.get(); }
  [[nodiscard]] UniqueFd passed() const { return UniqueFd(::fcntl(fd_.get(), F_DUPFD_CLOEXEC, 0)); }
  [[nodiscard]] std::byte* data() const { return data_; }
  [[nodiscard]] std::uint64_t bytes() const { return bytes_; }
  /// Fills a range, whose size is a multiple of 8, with copies of `cell`.
  void fill(Gpa gpa, std::uint64_t bytes, std::uint64_t cell) const {
    for (std::uint64_t at = 0; at < bytes; at += sizeof cell) std::memcpy(data_ + gpa.value + at, &cell, sizeof cell);
  }

 private:
  UniqueFd fd_;
  std::byte* data_ = nullptr;
  std::uint64_t bytes_;
};

/// RAM, its generation page, and one agent's grant.
struct SharedGuest {
  explicit SharedGuest(std::uint64_t bytes, std::uint32_t places = kGenerationPlaces, std::uint64_t generation = 1)
      : ram(bytes),
        page(must(GenerationPage::create({.ram_bytes = bytes, .generation = generation, .place_count = places}))),
        grant(must(GrantFile::create())) {}

  [[nodiscard]] client::MappedMemory::Descriptors descriptors() const {
    return {ram.fd(), page.fd(), grant.fd(), ram.bytes(), page.bytes()};
  }
  [[nodiscard]] client::MappedMemory reader(unsigned attempts = 1) const {
    return must(client::MappedMemory::map(descriptors(), {.allow_unsealed_ram = false, .attempts = attempts}));
  }

  HypervisorRam ram;
  GenerationPage page;
  GrantFile grant;
};

/// The page as any reader sees it.
class PageView {
 public:
  explicit PageView(const GenerationPage& page) : bytes_(page.bytes()) {
    data_ = ::mmap(nullptr, bytes_, PROT_READ, MAP_SHARED, page.fd(), 0);
    if (data_ == MAP_FAILED) throw std::runtime_error("no mapping of the generation page");
  }
  PageView(const PageView&) = delete;
  PageView& operator=(const PageView&) = delete;
  ~PageView() { ::munmap(data_, bytes_); }

  [[nodiscard]] const GenerationHeader& header() const { return *static_cast<const GenerationHeader*>(data_); }
  [[nodiscard]] const GenerationWord& atomic_word(std::uint64_t place) const {
    const auto* const words = static_cast<const std::byte*>(data_) + kGenerationHeaderBytes;
    return reinterpret_cast<const GenerationWord*>(words)[place];
  }
  [[nodiscard]] std::uint64_t word(std::uint64_t place) const { return atomic_word(place).load(); }
  [[nodiscard]] std::uint64_t generation() const { return header().generation.load(); }
  [[nodiscard]] std::uint64_t map_sequence() const { return header().map_sequence.load(); }

 private:
  void* data_;
  std::uint64_t bytes_;
};

}  // namespace kvmid::shm::testing
