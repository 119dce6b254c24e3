// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <cstdint>

namespace kvmid::shm::testing {

/// What is broken on purpose, to see that this run would find it.
enum class TornPlant : std::uint8_t {
  None,
  NoRecheck,  ///< the reader does not look at the words again after its copy
  LateMark,   ///< the writer marks a change after it was made
  EarlyEnd,   ///< changes under way are marked, but not counted: the first that ends takes the mark away
};

struct TornOptions {
  std::uint64_t reads = 0;  ///< accepted ones
  unsigned readers = 4;
  unsigned writers = 2;
  std::uint64_t seed = 1;
  TornPlant plant = TornPlant::None;  ///< with one, the run ends when it is found
};

struct TornResult {
  std::uint64_t accepted = 0;  ///< reads, of one range or several
  std::uint64_t ranges = 0;    ///< that were in them, each of one moment
  std::uint64_t refused = 0;   ///< attempts that met a change
  std::uint64_t asked = 0;     ///< met a patch
  std::uint64_t torn = 0;      ///< accepted, and the bytes are of two moments, or of a patch
  std::uint64_t stale = 0;     ///< accepted, and the bytes lack a change that their cookie says they have
  std::uint64_t split = 0;     ///< accepted, and two ranges are of different moments
  std::uint64_t fresh = 0;     ///< reads that saw another value than the same reader's last one of that place
  std::uint64_t changes = 0;
  std::uint64_t overlaps = 0;  ///< changes that began while another was under way
  std::uint64_t patches = 0;
  std::uint64_t map_changes = 0;
  double seconds = 0;
};

/// Writers change ranges of 8 to 16384 bytes, each time to copies of the generation of that change, as kvmid and its
/// hypervisor do it: mark, write, end. Readers copy them all the while, and look at each copy that was accepted.
///
/// Threads: its own, and all have ended when it returns.
TornResult run_torn_reads(const TornOptions& options);

}  // namespace kvmid::shm::testing
