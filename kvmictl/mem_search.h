// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// Some bytes looked for in memory that comes piece by piece.
///
/// Purpose:  `mem search` needs no more memory than a piece, however large a guest is.
/// Shapes:   feed() takes the pieces of one run of memory, end to end; begin() starts the next run.
/// Bounds:   keeps pattern.size() - 1 bytes between two pieces.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

namespace kvmid::ctl {

class PieceSearch {
 public:
  /// REQUIRES: not empty.
  explicit PieceSearch(std::vector<std::byte> pattern) : pattern_(std::move(pattern)) {}
  /// The next piece is at this address, and no place reaches into it from before.
  void begin(std::uint64_t gpa) {
    next_ = gpa;
    window_.clear();
  }
  /// Calls `found` with the address of each place that ends in this piece, ascending, places that overlap too; ends
  /// when it returns false, and returns false then.
  bool feed(std::span<const std::byte> piece, const std::function<bool(std::uint64_t)>& found);

 private:
  std::vector<std::byte> pattern_;
  std::vector<std::byte> window_;  ///< the end of what came before, then the piece
  std::uint64_t next_ = 0;         ///< address behind the window
};

}  // namespace kvmid::ctl
