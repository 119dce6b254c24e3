// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// One message of every kind that v7 and v6 have, no field of which is zero where the dialect carries it.

#include <cstdint>
#include <vector>

#include "protocol/kvmi1_dialects.h"

namespace kvmid::kvmi1::test {

inline constexpr Seq kSeq{0x11223344};

std::vector<Command> sample_commands(DialectId dialect);
/// A reply with success for each of sample_commands(), in the same order. Then errors.
std::vector<Reply> sample_replies(DialectId dialect);
std::vector<EventMessage> sample_events(DialectId dialect);
std::vector<EventReplyMessage> sample_event_replies();

/// A frame whose payload ends where its memory does: a sanitizer sees what reads past it.
class Exact {
 public:
  Exact(std::uint16_t id, Bytes payload) : payload_(payload.begin(), payload.end()), frame_{id, kSeq, {}} {
    payload_.shrink_to_fit();
    frame_.payload = payload_;
  }
  Exact(const Exact&) = delete;
  Exact& operator=(const Exact&) = delete;
  [[nodiscard]] const Frame& frame() const { return frame_; }

 private:
  std::vector<std::byte> payload_;
  Frame frame_;
};

/// What a codec wrote: one frame, taken apart. The header is checked.
struct Written {
  std::uint16_t id = 0;
  Seq seq;
  std::vector<std::byte> payload;

  void set(std::size_t at, unsigned value) { payload.at(at) = static_cast<std::byte>(value); }
  [[nodiscard]] Exact exact() const { return {id, payload}; }
  [[nodiscard]] Exact cut(std::size_t n) const { return {id, Bytes(payload).first(n)}; }
};
Written taken_apart(Bytes message);
template <class Message>
Written written(const Codec& codec, const Message& message) {
  ByteBuffer out;
  codec.encode(message, kSeq, out);
  return taken_apart(out);
}
Written written(const Codec& codec, const Downward& message);
Written written(const Codec& codec, const Upward& message);

}  // namespace kvmid::kvmi1::test
