// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

/// The memory that kvmid shares with agents that read guest RAM in place: what has changed, and is changing, since when.
///
/// Purpose:  a reader copies bytes from its mapping of guest RAM and learns, without a message, whether they are whole and
///           which cookie they have. One writer: the guest's shard in kvmid. Any number of readers, with read-only mappings.
/// Shapes:   GenerationHeader, then `place_count` words. Page gfn belongs to the word gfn % place_count: pages share words, so
///           a reader may be told of a change that was not its own, never miss one that was.
/// Units:    generations are cookies of the normal address space (kvmi.h, kvmi_read_physical_reply).
/// A word:   bit 0: a change of one of its pages is under way. Bit 1: patches are laid over one of its pages, so RAM does not
///           hold the guest's own bytes: ask kvmid (READ_PHYSICAL). The rest counts changes. A word only ever grows, so
///           equal sums of words mean equal words.
/// Reading:  1. map_sequence (acquire): odd: a map change is under way, try again. 2. generation (acquire): the cookie.
///           3. each word of the range (acquire): bit 1: ask kvmid; bit 0: try again. 4. copy. 5. fence (acquire), then the
///           words and map_sequence again: any that differs: try again. 6. the grant's `revoked`.
/// Owner:    the first byte of the file has a lock (fcntl, OFD, for writing) while kvmid keeps the page true. A kvmid that was
///           killed revokes nothing, but the kernel takes its lock off: F_OFD_GETLK says F_UNLCK then.
/// Threads:  every field behind `ram_bytes` is an atomic; docs/decisions/0007-sequence-lock.md argues the orders.
/// Source:   docs/architecture.md, "Memory".

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace kvmid {

inline constexpr std::uint64_t kGenerationMagic = 0x31'4e45'4749'4d56'4bULL;  // "KVMIGEN1" on a little-endian host
inline constexpr std::uint32_t kGenerationVersion = 1;
inline constexpr std::uint32_t kGenerationPlaces = 4096;
inline constexpr std::uint32_t kGenerationPlacesMax = 1U << 20U;  ///< what a reader believes

struct GenerationHeader {
  std::uint64_t magic;
  std::uint32_t version;
  std::uint32_t header_bytes;  ///< where the words begin
  std::uint64_t bytes;         ///< of header and words
  std::uint32_t place_count;   ///< a power of two
  std::uint32_t padding;
  std::uint64_t ram_bytes;     ///< size of the RAM descriptor that comes with it; offset = GPA
  std::atomic<std::uint64_t> generation;
  std::atomic<std::uint64_t> map_sequence;  ///< odd while slots change
};
static_assert(std::atomic<std::uint64_t>::is_always_lock_free);
static_assert(sizeof(GenerationHeader) == 56 && alignof(GenerationHeader) == 8);
inline constexpr std::uint32_t kGenerationHeaderBytes = 64;

using GenerationWord = std::atomic<std::uint64_t>;
inline constexpr std::uint64_t kWordChanging = 1;
inline constexpr std::uint64_t kWordPatched = 2;
inline constexpr std::uint64_t kWordStep = 4;

/// The third descriptor of GRANT_MEMORY: one agent's own page.
struct GrantPage {
  std::uint64_t magic;  ///< kGenerationMagic
  std::uint32_t version;
  std::uint32_t padding;
  std::atomic<std::uint64_t> revoked;  ///< not 0: the agent is detached, its mappings are not kept true any more
};

}  // namespace kvmid
