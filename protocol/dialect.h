// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "protocol/frame_parser.h"
#include "protocol/message.h"
#include "protocol/result.h"

namespace kvmid {

/// Why the payload of a well-framed message could not be decoded. Each is the peer's fault.
enum class DecodeErrc : std::uint8_t {
  Truncated,        ///< fewer bytes than the fixed part, or than its counts say
  TooLong,          ///< more bytes than the message has
  PaddingNotZero,   ///< a reserved field is set
  BadFlag,          ///< a boolean that is not 0 or 1, or an unknown flag bit
  BadValue,         ///< a value outside what the field allows
  UnknownEvent,     ///< an event number that does not exist
  UnknownAction,    ///< an action number that does not exist
};
struct DecodeError {
  DecodeErrc code{};
  std::uint16_t id = 0;      ///< of the message
  std::uint32_t offset = 0;  ///< byte of the payload where it was seen
  friend bool operator==(const DecodeError&, const DecodeError&) = default;
};
/// A sentence for people: "WRITE_PHYSICAL: payload too short at byte 16".
std::string describe(const DecodeError& error);

using ByteBuffer = std::vector<std::byte>;

/// One wire protocol: the only place where bytes become messages and messages bytes.
///
/// Purpose:  the seam behind which KVMI 2 and the older dialects look alike. Both ends use the same object's functions:
///           a hypervisor decodes what an agent encodes.
/// Shapes:   encode appends whole frames (header included) to `out`; nothing is allocated where `out` has room.
/// Errors:   a decoder never reads outside the payload and never trusts a count; encoders take what the program made,
///           so a message over the size limit is a broken invariant there (callers check first).
/// Threads:  an object belongs to one connection; no shared state.
/// Lifetime: decoded values hold views of the frame.
/// Source:   protocol/PROTOCOL.md
class Dialect {
 public:
  virtual ~Dialect() = default;

  [[nodiscard]] virtual std::string_view name() const = 0;
  /// The largest payload either end may send.
  [[nodiscard]] virtual std::size_t payload_max() const = 0;

  // Towards the hypervisor
  virtual void encode(const Command& command, Seq seq, ByteBuffer& out) = 0;
  virtual void encode(const EventReply& reply, Seq seq, ByteBuffer& out) = 0;
  [[nodiscard]] virtual Result<Downward, DecodeError> decode_downward(const Frame& frame) = 0;

  // Towards the agent
  virtual void encode(const Event& event, Seq seq, ByteBuffer& out) = 0;
  virtual void encode(const CommandReply& reply, Seq seq, ByteBuffer& out) = 0;
  virtual void encode(const Notice& notice, ByteBuffer& out) = 0;
  virtual void encode(const GuestOn& message, ByteBuffer& out) = 0;
  virtual void encode(const GuestOff& message, ByteBuffer& out) = 0;
  virtual void encode(const MemoryMapChanged& message, ByteBuffer& out) = 0;
  [[nodiscard]] virtual Result<Upward, DecodeError> decode_upward(const Frame& frame) = 0;
};

}  // namespace kvmid
