// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "protocol/ids.h"
#include "protocol/kvmi.h"
#include "protocol/result.h"
#include "protocol/wire_array.h"

namespace kvmid {

/// One message as it stands in a stream.
struct Frame {
  std::uint16_t id = 0;
  Seq seq;
  Bytes payload;
};

/// Why a stream cannot be cut into frames any more.
enum class FrameErrc : std::uint8_t {
  PayloadTooLarge,  ///< the header's size is over the limit of this connection
};
struct FrameError {
  FrameErrc code{};
  std::uint16_t id = 0;    ///< of the offending header
  std::uint32_t size = 0;  ///< its size field
};

/// Cuts a byte stream into frames, however the bytes arrive.
///
/// Purpose:  feed it what a socket gave, take whole frames out.
/// Shapes:   writable() -> read into it -> commit(n) -> next() until it has no more.
/// Units:    bytes. The buffer starts small and grows to at most capacity_max(): one frame of the largest size and a
///           little more. An idle connection that only ever saw small messages costs a few KiB.
/// Cost:     amortised O(1) per byte for a caller that takes every frame before it reads again: bytes are moved only
///           when the room behind them is used up, and never more of them than were consumed since the last move.
/// Errors:   PayloadTooLarge: the stream is lost; every later next() says the same.
/// Threads:  none of its own.
/// Lifetime: a Frame's payload is valid until the next call of writable().
class FrameParser {
 public:
  /// `payload_max`: the largest size field that is accepted.
  explicit FrameParser(std::size_t payload_max = KVMI_MAX_PAYLOAD);

  /// Space for received bytes, never empty. May move what is left of the buffer to its front: frames die.
  /// REQUIRES: pending() < capacity_max(); it is, once next() has said that more bytes are needed. After an error the
  /// space is there too, and what is put into it is dropped.
  [[nodiscard]] std::span<std::byte> writable();
  /// `n` bytes of writable() were filled. REQUIRES: n <= size of the last writable().
  void commit(std::size_t n);
  /// The next whole frame; a null pointer when more bytes are needed.
  [[nodiscard]] Result<const Frame*, FrameError> next();

  /// Bytes received that belong to no whole frame yet.
  [[nodiscard]] std::size_t pending() const { return end_ - begin_; }
  /// Bytes of the buffer now, and the most it can have.
  [[nodiscard]] std::size_t capacity() const { return buffer_.size(); }
  [[nodiscard]] std::size_t capacity_max() const;

 private:
  void grow_to(std::size_t size);

  std::vector<std::byte> buffer_;
  std::size_t begin_ = 0;
  std::size_t end_ = 0;
  std::size_t payload_max_;
  bool filled_ = false;  ///< the last commit used all the space there was
  Frame frame_;
  std::optional<FrameError> error_;
};

}  // namespace kvmid
