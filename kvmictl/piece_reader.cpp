// SPDX-License-Identifier: GPL-2.0-or-later
#include "kvmictl/piece_reader.h"

#include <algorithm>

#include "protocol/ids.h"

namespace kvmid::ctl {

using client::ClientErrc;
using client::ClientError;

Result<PieceReader::Piece, ClientError> PieceReader::next(std::uint64_t gpa, std::span<std::byte> out) {
  const std::size_t in_page = kPageSize - gpa % kPageSize;
  for (;;) {
    // The smallest piece ends where its page does: what a fault says of one page it must not say of two.
    const std::size_t bytes = std::min(out.size(), size_ == kPageSize ? in_page : size_);
    const auto cookie = read_(gpa, out.first(bytes));
    if (cookie) {
      size_ = std::min(size_ * 2, kPieceMax);
      return Piece{bytes, true, *cookie};
    }
    const bool fault = cookie.error().kind == ClientErrc::Failed && cookie.error().code == ErrorCode::Fault;
    if (!fault || holes_ == Holes::AreErrors) return cookie.error();
    if (bytes <= in_page) {
      size_ = kPageSize;
      return Piece{bytes, false, 0};
    }
    size_ = std::max<std::size_t>(std::min(size_, bytes) / 2 / kPageSize * kPageSize, kPageSize);
  }
}

}  // namespace kvmid::ctl
