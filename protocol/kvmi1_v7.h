// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

/// The codec of v7 and of v6, which has fewer commands and a few other layouts. Included by kvmi1_v7*.cpp only.
///
/// Purpose:  one class for both: they share their numbers and most of their structs (wire_v7.h).
/// Errors:   as kvmi1_codec.h says. Replies have exactly the size that their command gives them. Padding of what a
///           hypervisor sends is not looked at.
/// Threads:  none; no state but which of the two it is.

#include "protocol/kvmi1_codec.h"
#include "protocol/payload_io.h"
#include "protocol/wire_v7.h"

namespace kvmid::kvmi1::v7 {

class CodecV7 final : public Codec {
 public:
  enum class Variant : std::uint8_t { V6, V7 };
  explicit CodecV7(Variant variant) : v6_(variant == Variant::V6) {}

  [[nodiscard]] DialectId dialect() const override { return v6_ ? DialectId::V6 : DialectId::V7; }
  [[nodiscard]] std::size_t payload_max() const override { return kPayloadMax; }
  [[nodiscard]] std::optional<std::uint16_t> number_of(CommandKind kind) const override;
  [[nodiscard]] std::optional<CommandKind> command_of(std::uint16_t number) const override;
  [[nodiscard]] std::optional<std::uint16_t> number_of(EventKind kind) const override;
  [[nodiscard]] std::optional<EventKind> event_of(std::uint16_t number) const override;
  [[nodiscard]] std::uint16_t event_reply_id() const override { return kEventReplyId; }

  void encode(const Command& command, Seq seq, ByteBuffer& out) const override;
  void encode(const EventReplyMessage& reply, Seq seq, ByteBuffer& out) const override;
  [[nodiscard]] Result<Downward, Refused> decode_downward(const Frame& frame) const override;
  [[nodiscard]] Result<ReplyData, DecodeError> read_reply(EventKind event,
                                                          const EventReplyMessage& reply) const override;

  void encode(const EventMessage& event, Seq seq, ByteBuffer& out) const override;
  void encode(const CommandError& event, Seq seq, ByteBuffer& out) const override;
  void encode(const Reply& reply, Seq seq, ByteBuffer& out) const override;
  [[nodiscard]] Result<Upward, DecodeError> decode_upward(const Frame& frame) const override;

 private:
  [[nodiscard]] Result<Upward, DecodeError> decode_event(const Frame& frame) const;
  [[nodiscard]] EventData read_event_data(PayloadReader& reader, EventKind kind, std::uint16_t& view) const;
  [[nodiscard]] ReplyBody read_reply_body(PayloadReader& reader, CommandKind kind) const;

  bool v6_;
};

/// A FrameWriter that stops the process where the payload is over this dialect's limit.
class Writer : public FrameWriter {
 public:
  Writer(ByteBuffer& out, std::uint16_t id, Seq seq) : FrameWriter(out, id, seq), bytes_(out), start_(out.size()) {}
  Writer(const Writer&) = delete;
  Writer& operator=(const Writer&) = delete;
  ~Writer() {
    if (bytes_.size() - start_ > kPayloadMax) std::abort();
  }

 private:
  const ByteBuffer& bytes_;
  std::size_t start_;
};

}  // namespace kvmid::kvmi1::v7
