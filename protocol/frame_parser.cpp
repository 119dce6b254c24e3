// SPDX-License-Identifier: LGPL-2.1-or-later
#include "protocol/frame_parser.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace kvmid {
namespace {

constexpr std::size_t kHeaderBytes = sizeof(kvmi_msg_hdr);
constexpr std::size_t kFirstCapacity = 4096;
// Less room than this behind the received bytes makes reads too small to be worth a system call.
constexpr std::size_t kRoomWanted = 1024;

}  // namespace

FrameParser::FrameParser(std::size_t payload_max) : payload_max_(std::min<std::size_t>(payload_max, KVMI_MAX_PAYLOAD)) {
  buffer_.resize(std::min(kFirstCapacity, capacity_max()));
}

std::size_t FrameParser::capacity_max() const {
  // Twice the frame, so that what is moved when the end is reached is at most what was consumed before it.
  return 2 * (kHeaderBytes + payload_max_) + kRoomWanted;
}

void FrameParser::grow_to(std::size_t size) {
  // By doubling, so that growing is amortised too.
  buffer_.resize(std::min(std::max(size, 2 * buffer_.size()), capacity_max()));
}

std::span<std::byte> FrameParser::writable() {
  if (error_) begin_ = end_ = 0;
  if (begin_ == end_) {
    begin_ = end_ = 0;
    // A sender that fills what it is given has more: larger reads need fewer system calls.
    if (filled_) grow_to(0);
  }
  filled_ = false;

  const std::size_t room_wanted = std::min(kRoomWanted, capacity_max() - pending());
  if (buffer_.size() - end_ < room_wanted) {
    const bool cheap = begin_ >= pending();
    if (!cheap && buffer_.size() < capacity_max()) grow_to(end_ + room_wanted);
    if (buffer_.size() - end_ < room_wanted && begin_ != 0) {
      std::memmove(buffer_.data(), buffer_.data() + begin_, pending());
      end_ -= begin_;
      begin_ = 0;
    }
  }
  if (end_ == buffer_.size()) std::abort();  // the caller took no frames out of a full buffer
  return std::span(buffer_).subspan(end_);
}

void FrameParser::commit(std::size_t n) {
  if (n > buffer_.size() - end_) std::abort();
  if (error_) return;
  end_ += n;
  filled_ = n != 0 && end_ == buffer_.size();
}

Result<const Frame*, FrameError> FrameParser::next() {
  if (error_) return *error_;
  if (pending() < kHeaderBytes) return static_cast<const Frame*>(nullptr);
  kvmi_msg_hdr header;
  std::memcpy(&header, buffer_.data() + begin_, sizeof header);
  // Refused as soon as the header is there: nobody waits for, or keeps, a payload that will not be taken.
  if (header.size > payload_max_) {
    error_ = FrameError{FrameErrc::PayloadTooLarge, header.id, header.size};
    return *error_;
  }
  if (pending() - kHeaderBytes < header.size) return static_cast<const Frame*>(nullptr);
  frame_ = Frame{header.id, Seq{header.seq}, Bytes(buffer_).subspan(begin_ + kHeaderBytes, header.size)};
  begin_ += kHeaderBytes + header.size;
  return static_cast<const Frame*>(&frame_);
}

}  // namespace kvmid
