// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// Guest memory read end to end, piece by piece, also where nobody tells which of it is memory.
///
/// Purpose:  hypervisors of older dialects tell no memory map. A read of theirs fails as a whole where one of its pages
///           is no memory, so holes are found by reading.
/// Shapes:   a piece that faults is halved, down to a page; a page that faults is a hole. Behind a page that was read
///           the next piece is twice as large again, and behind a hole it is one page.
/// Errors:   those of the reads, but faults of pages.
/// Bounds:   at most two reads for each page, and log2 of the pages of a piece more; one for each page of a large hole.
/// Threads:  none.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>

#include "client/agent_client.h"
#include "protocol/result.h"

namespace kvmid::ctl {

class PieceReader {
 public:
  static constexpr std::size_t kPieceMax = 1U << 20U;

  /// Fills all of the span with memory that begins at this GPA, and tells the cookie.
  using Read = std::function<Result<std::uint64_t, client::ClientError>(std::uint64_t, std::span<std::byte>)>;
  enum class Holes : std::uint8_t {
    AreErrors,  ///< the map says that all of it is memory
    AreFound,
  };
  struct Piece {
    std::size_t bytes = 0;  ///< from the beginning of the span; not 0
    bool is_memory = false;
    std::uint64_t cookie = 0;  ///< of memory
  };

  PieceReader(Read read, Holes holes) : read_(std::move(read)), holes_(holes) {}

  /// What is at `gpa`: memory, now at the front of `out`, or a hole. REQUIRES: `out` is not empty.
  Result<Piece, client::ClientError> next(std::uint64_t gpa, std::span<std::byte> out);

 private:
  Read read_;
  Holes holes_;
  std::size_t size_ = kPieceMax;  ///< of the next read, at most
};

}  // namespace kvmid::ctl
