// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

/// What is said before the first message: QEMU's handshake with our trailing part, the agent's hello, the welcome.
///
/// Purpose:  pure parsing and building of these structs; sockets belong to the callers.
/// Shapes:   feed all bytes received so far; the parsers say how many they need, then give the value.
/// Errors:   HandshakeError names what is wrong; the connection is to be closed.
/// Threads:  none.
/// Source:   protocol/PROTOCOL.md, "Connecting"; QEMU's struct: the KVM-VMI branches v6
///           (96 bytes) to v12 (104).

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "protocol/dialect.h"
#include "protocol/ids.h"
#include "protocol/kvmi.h"
#include "protocol/result.h"

namespace kvmid {

enum class HandshakeErrc : std::uint8_t {
  BadStructSize,  ///< smaller than the smallest known form, or over KVMI_HELLO_SIZE_MAX
  BadMagic,       ///< the hello (or the KVMI 2 part) does not begin as it must
  BadVersion,     ///< a version this build does not speak
  BadName,        ///< not zero-terminated, empty, or with control characters
  BadFlags,       ///< unknown flag bits, or padding that is not zero
  BadValue,       ///< another field, or a text, with a value that is not allowed
};
struct HandshakeError {
  HandshakeErrc code{};
  std::uint64_t value = 0;  ///< what was found, where it is a number
};
std::string describe(const HandshakeError& error);

/// How many bytes the first struct of a peer has, once its first 4 bytes are there; nullopt: more bytes are needed.
/// Works for hello, welcome, handshake and answer: each begins with struct_size, which includes itself.
Result<std::optional<std::uint32_t>, HandshakeError> first_struct_size(Bytes received);

/// What a hypervisor says of its guest.
struct HypervisorHello {
  Uuid uuid;
  std::int64_t start_time = 0;
  std::string name;  ///< printable; empty where the dialect has none
  std::uint64_t max_gpa = 0;
  bool kvmi2 = false;       ///< the trailing part is there
  std::uint32_t flags = 0;  ///< KVMI_HANDSHAKE_*
  std::uint64_t ram_bytes = 0;
};
/// REQUIRES: whole.size() equals the struct_size at its start (see first_struct_size). 96 bytes or more are QEMU's; the
/// memory map that QEMU 2.11.93 sends behind the name gives max_gpa. A KVMI 2 hypervisor is held to zeros in padding.
Result<HypervisorHello, HandshakeError> parse_hypervisor_hello(Bytes whole);
void encode(const HypervisorHello& hello, ByteBuffer& out);

/// kvmid's answer to a hypervisor. The KVMI 2 part is there only towards a hypervisor that sent its own.
struct HypervisorAnswer {
  bool kvmi2 = false;
  ErrorCode status = ErrorCode::None;
  std::string text;
  std::array<std::uint8_t, 20> cookie_hash{};  ///< SHA-1 of a secret that both know; zeros: none
};
Result<HypervisorAnswer, HandshakeError> parse_hypervisor_answer(Bytes whole);
void encode(const HypervisorAnswer& answer, ByteBuffer& out);

struct AgentHello {
  Uuid uuid;  ///< zero: a control connection
  std::string name;
  std::uint32_t flags = 0;  ///< KVMI_HELLO_*
};
Result<AgentHello, HandshakeError> parse_agent_hello(Bytes whole);
void encode(const AgentHello& hello, ByteBuffer& out);

/// The welcome is used as it is: it has no tail.
/// A refusal (status not 0) is read whatever its version: its text may be about just that.
Result<kvmi_welcome, HandshakeError> parse_welcome(Bytes whole);
/// Sets struct_size, magic and version.
void encode(const kvmi_welcome& welcome, ByteBuffer& out);
/// Copies text into a zero-terminated array, cut to fit at a UTF-8 boundary; the rest of the array becomes zero.
void copy_text(std::string_view text, char* out, std::size_t out_size);
/// The text of a zero-terminated array that a peer sent; stops at the array's end.
std::string_view text_of(const char* in, std::size_t in_size);

/// "6a1f7e36-…" and back; the form users write. Accepts upper and lower case.
std::string to_string(const Uuid& uuid);
std::optional<Uuid> parse_uuid(std::string_view text);

}  // namespace kvmid
