// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <cstdint>
#include <vector>

#include "daemon/shm/error.h"
#include "daemon/shm/sealed_memory.h"
#include "protocol/generation_page.h"
#include "protocol/ids.h"
#include "protocol/result.h"

namespace kvmid::shm {

/// The one writer of a guest's generation page (protocol/generation_page.h).
///
/// Purpose:  agents that read guest RAM in place learn from it whether what they have copied is whole, and its cookie.
/// Shapes:   begin_change() before the command that changes RAM is sent, end_change() when it is answered, with the same
///           range; set_patched() on before a patch is sent, off after it is gone. Changes and patches that share a
///           place are counted: its word is odd from the first to the last, and has bit 1 while any patch is there.
/// Units:    generations are cookies of core::Generations, of the normal address space. One that is older than what is
///           published already is not published.
/// Bounds:   a range larger than the table costs one pass of it. Nothing allocates after create().
/// Errors:   create(): the system call and its errno text. end_change() without begin_change(), and patches taken off
///           more often than laid, are broken invariants: the process stops.
/// Threads:  one at a time (the guest's shard). Readers are other processes.
/// Lifetime: readers keep their mappings. retire() and the destructor leave a page that no reader believes.
/// Source:   docs/decisions/0007-sequence-lock.md argues the orders.
class GenerationPage {
 public:
  struct Config {
    std::uint64_t ram_bytes = 0;
    std::uint64_t generation = 1;                   ///< core::Generations::current()
    std::uint32_t place_count = kGenerationPlaces;  ///< a power of two, at most kGenerationPlacesMax
  };
  static Result<GenerationPage, Error> create(const Config& config);
  GenerationPage(GenerationPage&&) noexcept = default;
  GenerationPage& operator=(GenerationPage&&) = delete;
  ~GenerationPage() { retire(); }

  // REQUIRES of all ranges: they do not wrap.

  /// Something is about to change those bytes; `generation` is the one that it makes.
  void begin_change(Gpa gpa, std::uint64_t bytes, std::uint64_t generation);
  /// It has, or has failed to.
  void end_change(Gpa gpa, std::uint64_t bytes);
  /// RAM does not hold the guest's own bytes there any more, or does again.
  void set_patched(Gpa gpa, std::uint64_t bytes, bool on, std::uint64_t generation);
  /// Slots have come, gone or moved.
  void change_map(std::uint64_t generation);
  /// The page is not kept true from here on: no read succeeds any more.
  void retire();

  /// For the agents; stays owned here.
  [[nodiscard]] int fd() const { return memory_.fd(); }
  /// Of header and words: the size of the descriptor.
  [[nodiscard]] std::uint64_t bytes() const { return memory_.bytes(); }
  [[nodiscard]] std::uint64_t generation() const { return generation_; }

 private:
  GenerationPage(SealedMemory memory, const Config& config);
  GenerationHeader& header() { return *reinterpret_cast<GenerationHeader*>(memory_.data()); }
  GenerationWord& word(std::size_t place) {
    return reinterpret_cast<GenerationWord*>(memory_.data() + kGenerationHeaderBytes)[place];
  }
  template <class F>
  void each_place(Gpa gpa, std::uint64_t bytes, F&& f);
  void publish(std::uint64_t generation);

  SealedMemory memory_;
  std::uint64_t generation_;
  std::uint32_t place_count_;
  std::vector<std::uint32_t> changing_;  // by place: changes under way
  std::vector<std::uint32_t> patched_;   // by place: patches
};

/// The page of one agent that was granted guest RAM: tells it that the grant has ended.
///
/// Purpose:  a mapping cannot be taken away from a process that has it; this ends the belief in what is read through it.
/// Errors:   create(): the system call and its errno text.
/// Threads:  one at a time.
/// Lifetime: the destructor revokes.
class GrantFile {
 public:
  static Result<GrantFile, Error> create();
  GrantFile(GrantFile&&) noexcept = default;
  GrantFile& operator=(GrantFile&&) = delete;
  ~GrantFile() { revoke(); }

  void revoke();
  [[nodiscard]] int fd() const { return memory_.fd(); }

 private:
  explicit GrantFile(SealedMemory memory) : memory_(std::move(memory)) {}

  SealedMemory memory_;
};

}  // namespace kvmid::shm
