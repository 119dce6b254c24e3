// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "client/client_error.h"
#include "protocol/generation_page.h"
#include "protocol/ids.h"
#include "protocol/result.h"

namespace kvmid::client {

struct GrantedMemory;

/// Why a read of mapped memory gave nothing.
enum class MappedErrc : std::uint8_t {
  Revoked,   ///< the grant has ended, or kvmid is gone: this mapping is not kept true any more; drop it
  AskKvmid,  ///< patches are laid there, so RAM does not hold the guest's own bytes: AgentClient::read_physical()
  Fault,     ///< not within guest RAM
  Unstable,  ///< it kept changing; AgentClient::read_physical() waits for its turn
};
[[nodiscard]] std::string_view text_of(MappedErrc error);

/// Where bytes come from and where they go.
struct MappedRange {
  Gpa gpa;
  std::span<std::byte> to;
};

/// Guest RAM read in place: at memory speed, without a message, and still with a cookie.
///
/// Purpose:  what GRANT_MEMORY gives, mapped. read_stable() answers bytes that no change was half way through, and the
///           cookie for a write that is based on them.
/// Shapes:   offset in RAM = GPA of the normal address space. Holes of the memory map read as zeros: GET_MEMORY_MAP.
/// Bounds:   nothing of what the descriptors hold is believed: sizes are compared with fstat(), the number of places is
///           bounded, everything is mapped read-only, and the fields that say how long things are, are read once.
///           read_stable() gives up after Options::attempts copies.
/// Errors:   map(): ClientError. Reads: MappedErrc; what the buffers hold then is unspecified. Reads never allocate.
/// Threads:  reads from any number at once.
/// Lifetime: the descriptors can be closed after map(). A kvmid that was killed revokes nothing: reads ask the kernel
///           every kLookEvery whether it is still there, and say Revoked from then on. Until then they go on; whoever
///           needs to know at once looks at the connection.
/// Source:   protocol/generation_page.h, docs/decisions/0007-sequence-lock.md. Not seen by any cookie: the guest's own
///           stores. A read of bytes that the guest writes meanwhile can be torn.
class MappedMemory {
 public:
  static constexpr std::chrono::milliseconds kLookEvery{10};

  struct Options {
    /// RAM that its hypervisor can cut short is refused, because reading behind its new end ends a process (SIGBUS).
    /// Set it where the hypervisor is trusted, or the process handles SIGBUS.
    bool allow_unsealed_ram = false;
    unsigned attempts = 2000;  ///< the later ones give the processor away in between: about a millisecond in all
  };
  struct Descriptors {
    int ram = -1;
    int generations = -1;
    int grant = -1;
    std::uint64_t ram_bytes = 0;         ///< as in the reply to GRANT_MEMORY
    std::uint64_t generation_bytes = 0;  ///< likewise
  };

  static Result<MappedMemory, ClientError> map(const Descriptors& descriptors, const Options& options);
  static Result<MappedMemory, ClientError> map(const GrantedMemory& granted, const Options& options);
  MappedMemory(MappedMemory&& other) noexcept;
  MappedMemory& operator=(MappedMemory&& other) noexcept;
  ~MappedMemory() { unmap(); }

  /// A copy, and no promise: it may be torn, and hold patches.
  Result<void, MappedErrc> read(Gpa gpa, std::span<std::byte> to) const;
  /// The cookie of bytes that are whole: they hold every change up to it. Nothing is read of an empty range.
  Result<std::uint64_t, MappedErrc> read_stable(Gpa gpa, std::span<std::byte> to) const;
  /// The same for several ranges: all of one moment, with one cookie.
  Result<std::uint64_t, MappedErrc> read_scatter(std::span<const MappedRange> ranges) const;

  /// A number that grows with each change through kvmid of the range's pages (or of others that share their places), and
  /// of the memory map: equal numbers, and nothing of the range was changed in between. A load for each page, no bytes.
  Result<std::uint64_t, MappedErrc> changes_of(Gpa gpa, std::uint64_t bytes) const;
  /// Grows with each change of the memory map. Odd: one is under way.
  [[nodiscard]] std::uint64_t map_changes() const;

  [[nodiscard]] std::uint64_t ram_bytes() const { return ram_bytes_; }
  [[nodiscard]] bool revoked() const;

 private:
  struct Words {
    std::uint64_t sum = 0;
    std::uint64_t any = 0;
  };

  MappedMemory() = default;
  [[nodiscard]] bool is_ram(Gpa gpa, std::uint64_t bytes) const {
    return gpa.value <= ram_bytes_ && bytes <= ram_bytes_ - gpa.value;
  }
  Words words_of(std::span<const MappedRange> ranges, std::memory_order order) const;
  void add_words(Gpa gpa, std::uint64_t bytes, std::memory_order order, Words& words) const;
  [[nodiscard]] bool is_kept() const;
  void unmap();

  const std::byte* ram_ = nullptr;
  const std::byte* page_ = nullptr;
  const std::byte* grant_ = nullptr;
  const GenerationHeader* header_ = nullptr;
  const GenerationWord* words_ = nullptr;
  std::uint64_t ram_bytes_ = 0;
  std::uint64_t page_bytes_ = 0;
  std::uint64_t place_mask_ = 0;
  unsigned attempts_ = 0;
  int page_fd_ = -1;                              ///< to ask for its lock
  mutable std::atomic<std::int64_t> look_at_{0};  ///< ns of the coarse clock; the largest there is: kvmid is gone
};

}  // namespace kvmid::client
