// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

/// How the receiving side of v6, v7 and v12 reads a tool's message. Used by the .cpp files of this folder only.
///
/// Purpose:  the kernel copies a payload into a buffer of zeros: what is missing at the end reads as zero, what is
///           left over is not looked at. Replies and events are read with payload_io.h's PayloadReader instead.
/// Errors:   the first rule broken is kept, and with it how it is answered: an error number, or 0 (the kernel closes).
/// Threads:  none.
/// Lifetime: views that a reader gives live as long as the payload.

#include <algorithm>
#include <cstring>
#include <optional>
#include <type_traits>

#include "protocol/kvmi1_codec.h"
#include "protocol/payload_io.h"

namespace kvmid::kvmi1 {

inline constexpr std::int32_t kAnswerEinval = -kEinval;
inline constexpr std::int32_t kAnswerClose = 0;

class LenientReader {
 public:
  LenientReader(Bytes payload, std::uint16_t id) : payload_(payload), id_(id) {}

  /// The next sizeof(T) bytes, zero where the payload has ended. Its place becomes what field offsets are relative to.
  template <class T>
  T take() {
    static_assert(std::has_unique_object_representations_v<T>);
    T value{};
    base_ = at_;
    const Bytes there = rest().first(std::min(sizeof value, rest().size()));
    if (!there.empty()) std::memcpy(&value, there.data(), there.size());
    at_ += sizeof value;
    return value;
  }

  /// What is left after the structs taken; empty where they reached past the end.
  [[nodiscard]] Bytes rest() const { return payload_.subspan(std::min(at_, payload_.size())); }

  /// Exactly `n` bytes after the structs taken, or a refusal (Truncated) and nothing. The structs must be whole, too.
  Bytes take_bytes(std::uint64_t n, std::int32_t answer) {
    if (refused_ || at_ > payload_.size() || n > rest().size()) {
      refuse(DecodeErrc::Truncated, payload_.size(), answer);
      return {};
    }
    const Bytes bytes = rest().first(static_cast<std::size_t>(n));
    at_ += bytes.size();
    return bytes;
  }
  /// `count` items. A count from the wire has 16 bits: the product cannot wrap.
  template <class T>
  WireArray<T> take_array(std::uint16_t count, std::int32_t answer) {
    return WireArray<T>(take_bytes(std::uint64_t{count} * sizeof(T), answer));
  }

  void refuse(DecodeErrc code, std::size_t offset, std::int32_t answer) {
    if (!refused_) refused_ = Refused{DecodeError{code, id_, static_cast<std::uint32_t>(offset)}, answer};
  }
  /// `field` is of the struct taken last.
  void check(bool ok, DecodeErrc code, FieldAt field, std::int32_t answer) {
    if (!ok) refuse(code, base_ + field.offset, answer);
  }
  /// Refuses at the first byte of `field` that is there and not zero.
  void check_zero(FieldAt field, std::int32_t answer) {
    const std::size_t start = base_ + field.offset;
    const std::size_t end = std::min(start + field.size, payload_.size());
    for (std::size_t i = start; i < end; ++i) {
      if (payload_[i] != std::byte{0}) return refuse(DecodeErrc::PaddingNotZero, i, answer);
    }
  }
  /// To check fields of an item of a tail: `start` is its place in the payload.
  void set_base(std::size_t start) { base_ = start; }
  [[nodiscard]] std::size_t position() const { return at_; }

  [[nodiscard]] const std::optional<Refused>& refused() const { return refused_; }

 private:
  Bytes payload_;
  std::uint16_t id_;
  std::size_t at_ = 0;
  std::size_t base_ = 0;
  std::optional<Refused> refused_;
};

}  // namespace kvmid::kvmi1
