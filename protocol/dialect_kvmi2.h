// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include "protocol/dialect.h"

namespace kvmid {

/// KVMI version 2, the dialect of kvmi.h. Stateless.
class DialectKvmi2 final : public Dialect {
 public:
  [[nodiscard]] std::string_view name() const override { return "kvmi2"; }
  [[nodiscard]] std::size_t payload_max() const override { return KVMI_MAX_PAYLOAD; }

  void encode(const Command& command, Seq seq, ByteBuffer& out) override;
  void encode(const EventReply& reply, Seq seq, ByteBuffer& out) override;
  [[nodiscard]] Result<Downward, DecodeError> decode_downward(const Frame& frame) override;

  void encode(const Event& event, Seq seq, ByteBuffer& out) override;
  void encode(const CommandReply& reply, Seq seq, ByteBuffer& out) override;
  void encode(const Notice& notice, ByteBuffer& out) override;
  void encode(const GuestOn& message, ByteBuffer& out) override;
  void encode(const GuestOff& message, ByteBuffer& out) override;
  void encode(const MemoryMapChanged& message, ByteBuffer& out) override;
  [[nodiscard]] Result<Upward, DecodeError> decode_upward(const Frame& frame) override;
};

}  // namespace kvmid
