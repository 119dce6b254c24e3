// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "protocol/dialect.h"
#include "protocol/frame_parser.h"
#include "protocol/kvmi1.h"
#include "protocol/result.h"

namespace kvmid::kvmi1 {

/// Why a message from a tool could not be decoded, and what the dialect does about it.
struct Refused {
  DecodeError error;
  std::int32_t answer = 0;  ///< the error of the reply that it gets (negative); 0: the connection is closed instead
};

/// One wire protocol of the field: numbers and layouts, both directions.
///
/// Purpose:  bytes <-> kvmi1.h. What messages mean, who may send them and in which order, is the bridges'.
/// Shapes:   encode appends one whole frame (header included). decode follows the receiving side of the dialect: a kernel
///           zero-fills short requests, ignores surplus bytes and refuses padding just where the published one does.
/// Errors:   decoders never read outside the payload and never trust a count. encode takes what the dialect can express,
///           checked before with number_of(): else it stops the process.
/// Threads:  none; an object has no state.
/// Lifetime: codec() gives objects that live as long as the program. Decoded values hold views of the frame.
/// Source:   docs/dialects.md; layouts and recorded messages in tests/vectors/.
class Codec {
 public:
  virtual ~Codec() = default;

  [[nodiscard]] virtual DialectId dialect() const = 0;
  /// The largest payload either side may send.
  [[nodiscard]] virtual std::size_t payload_max() const = 0;

  /// The number that the dialect has for a command or an event; none: it does not have it.
  [[nodiscard]] virtual std::optional<std::uint16_t> number_of(CommandKind kind) const = 0;
  [[nodiscard]] virtual std::optional<CommandKind> command_of(std::uint16_t number) const = 0;
  [[nodiscard]] virtual std::optional<std::uint16_t> number_of(EventKind kind) const = 0;
  [[nodiscard]] virtual std::optional<EventKind> event_of(std::uint16_t number) const = 0;
  /// The id of a message that is an event reply, and that an error reply to one carries.
  [[nodiscard]] virtual std::uint16_t event_reply_id() const = 0;

  // What a tool sends
  virtual void encode(const Command& command, Seq seq, ByteBuffer& out) const = 0;
  virtual void encode(const EventReplyMessage& reply, Seq seq, ByteBuffer& out) const = 0;
  [[nodiscard]] virtual Result<Downward, Refused> decode_downward(const Frame& frame) const = 0;
  /// The part of `reply` that depends on the event, for an event of that kind. An error closes the connection.
  [[nodiscard]] virtual Result<ReplyData, DecodeError> read_reply(EventKind event,
                                                                  const EventReplyMessage& reply) const = 0;

  // What a hypervisor sends
  virtual void encode(const EventMessage& event, Seq seq, ByteBuffer& out) const = 0;
  virtual void encode(const CommandError& event, Seq seq, ByteBuffer& out) const = 0;  ///< v7
  virtual void encode(const Reply& reply, Seq seq, ByteBuffer& out) const = 0;
  [[nodiscard]] virtual Result<Upward, DecodeError> decode_upward(const Frame& frame) const = 0;
};

const Codec& codec(DialectId dialect);

/// Which of v6, v7 and v12 answered GET_VERSION with this payload; none: no hypervisor of these does so.
std::optional<DialectId> dialect_of_version_reply(Bytes payload);
/// GET_VERSION as v6, v7 and v12 all read it.
void encode_get_version(Seq seq, ByteBuffer& out);
/// "GET_XCR at byte 9: …": a sentence for people, with the dialect's own names.
std::string describe(const Codec& codec, const DecodeError& error);

}  // namespace kvmid::kvmi1
