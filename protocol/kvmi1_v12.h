// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

/// The codec of v12. Included by the .cpp files of this folder only; others call codec().
///
/// Purpose:  kvmi1.h <-> the last posted series: even ids are of the guest, odd ones of a vCPU.
/// Source:   docs/dialects.md; wire_v12.h.

#include "protocol/kvmi1_codec.h"

namespace kvmid::kvmi1 {

class CodecV12 final : public Codec {
 public:
  [[nodiscard]] DialectId dialect() const override { return DialectId::V12; }
  [[nodiscard]] std::size_t payload_max() const override;

  [[nodiscard]] std::optional<std::uint16_t> number_of(CommandKind kind) const override;
  [[nodiscard]] std::optional<CommandKind> command_of(std::uint16_t number) const override;
  [[nodiscard]] std::optional<std::uint16_t> number_of(EventKind kind) const override;
  [[nodiscard]] std::optional<EventKind> event_of(std::uint16_t number) const override;
  [[nodiscard]] std::uint16_t event_reply_id() const override;

  void encode(const Command& command, Seq seq, ByteBuffer& out) const override;
  void encode(const EventReplyMessage& reply, Seq seq, ByteBuffer& out) const override;
  [[nodiscard]] Result<Downward, Refused> decode_downward(const Frame& frame) const override;
  [[nodiscard]] Result<ReplyData, DecodeError> read_reply(EventKind event,
                                                          const EventReplyMessage& reply) const override;

  void encode(const EventMessage& event, Seq seq, ByteBuffer& out) const override;
  void encode(const CommandError& event, Seq seq, ByteBuffer& out) const override;
  void encode(const Reply& reply, Seq seq, ByteBuffer& out) const override;
  [[nodiscard]] Result<Upward, DecodeError> decode_upward(const Frame& frame) const override;
};

}  // namespace kvmid::kvmi1
