// SPDX-License-Identifier: LGPL-2.1-or-later
#include "protocol/handshake.h"

#include <algorithm>
#include <cstring>

#include "protocol/payload_io.h"

namespace kvmid {
namespace {

constexpr std::size_t kQemuSmallest = offsetof(kvmi_handshake, max_gpa);  // v6 and v7
constexpr std::size_t kQemuWhole = sizeof(kvmi_handshake);
constexpr std::uint32_t kHandshakeFlags = KVMI_HANDSHAKE_WRITE_IN_MAPPING | KVMI_HANDSHAKE_RAM_SHARED;
constexpr std::uint32_t kE820TypeRam = 1;

/// One entry of what QEMU of branch kvmi-v7-2.11.93 sends behind the name.
struct QemuE820Entry {
  std::uint64_t address;
  std::uint64_t length;
  std::uint32_t type;
  std::uint32_t padding;
};
static_assert(sizeof(QemuE820Entry) == 24 && std::has_unique_object_representations_v<QemuE820Entry>);

template <class T>
T load(Bytes from, std::size_t offset) {
  T value;
  std::memcpy(&value, from.data() + offset, sizeof value);
  return value;
}

/// The magic of a KVMI 2 part is there: then the part must be whole.
bool has_magic(Bytes whole, std::size_t offset) {
  return whole.size() >= offset + sizeof(std::uint32_t) && load<std::uint32_t>(whole, offset) == KVMI_HELLO_MAGIC;
}

HandshakeError bad(HandshakeErrc code, std::uint64_t value = 0) { return {code, value}; }

/// Characters of a zero-terminated field; nullopt where the zero is missing, or (strict) the rest is not zero.
std::optional<std::string_view> terminated(const char* field, std::size_t size, bool strict) {
  const std::string_view whole(field, size);
  const auto end = whole.find('\0');
  if (end == std::string_view::npos) return std::nullopt;
  if (strict && whole.find_first_not_of('\0', end) != std::string_view::npos) return std::nullopt;
  return whole.substr(0, end);
}

bool is_printable_ascii(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return c >= 0x20 && c <= 0x7e; });
}

/// QEMU of branch kvmi-v7-2.11.93 has, where others have max_gpa, an entry count in the first byte and as many entries
/// behind. Nothing else says so; the sizes must agree.
std::optional<std::uint64_t> ram_end_of_e820(Bytes whole) {
  const auto count = load<std::uint64_t>(whole, kQemuWhole - sizeof(std::uint64_t));
  if (count == 0 || count > 255 || whole.size() != kQemuWhole + count * sizeof(QemuE820Entry)) return std::nullopt;
  std::uint64_t end = 0;
  for (std::size_t at = kQemuWhole; at < whole.size(); at += sizeof(QemuE820Entry)) {
    const auto entry = load<QemuE820Entry>(whole, at);
    if (entry.type == kE820TypeRam && !wraps(entry.address, entry.length)) {
      end = std::max(end, entry.address + entry.length);
    }
  }
  return end;
}

std::optional<HandshakeError> read_kvmi2_part(Bytes whole, const kvmi_handshake& qemu, HypervisorHello& hello) {
  if (whole.size() < kQemuWhole + sizeof(kvmi_handshake_kvmi2)) return bad(HandshakeErrc::BadStructSize, whole.size());
  const auto part = load<kvmi_handshake_kvmi2>(whole, kQemuWhole);
  if (part.version != KVMI_VERSION) return bad(HandshakeErrc::BadVersion, part.version);
  if ((part.flags & ~kHandshakeFlags) != 0) return bad(HandshakeErrc::BadFlags, part.flags);
  if (qemu.padding != 0) return bad(HandshakeErrc::BadFlags, qemu.padding);
  if (part.padding != 0) return bad(HandshakeErrc::BadFlags, part.padding);
  const bool shares_ram = (part.flags & KVMI_HANDSHAKE_RAM_SHARED) != 0;
  if (shares_ram != (part.ram_bytes != 0)) return bad(HandshakeErrc::BadValue, part.ram_bytes);
  hello.kvmi2 = true;
  hello.flags = part.flags;
  hello.ram_bytes = part.ram_bytes;
  return std::nullopt;
}

std::optional<ErrorCode> status_of(std::int32_t wire) {
  const std::int64_t number = -std::int64_t{wire};
  if (!is_error_number(number)) return std::nullopt;
  return static_cast<ErrorCode>(number);
}

template <class T>
void append(const T& value, ByteBuffer& out) {
  static_assert(std::has_unique_object_representations_v<T>);
  const auto bytes = std::as_bytes(std::span(&value, 1));
  out.insert(out.end(), bytes.begin(), bytes.end());
}

}  // namespace

std::string describe(const HandshakeError& error) {
  const std::string value = std::to_string(error.value);
  switch (error.code) {
    case HandshakeErrc::BadStructSize: return "handshake: struct_size " + value + " is not one of a known form";
    case HandshakeErrc::BadMagic: return "handshake: magic " + value + " is not the one of KVMI 2";
    case HandshakeErrc::BadVersion:
      return "handshake: version " + value + " is not spoken here, only " + std::to_string(KVMI_VERSION);
    case HandshakeErrc::BadName: return "handshake: name is empty, not zero-terminated, or not printable";
    case HandshakeErrc::BadFlags: return "handshake: unknown flags, or padding that is not zero: " + value;
    case HandshakeErrc::BadValue: return "handshake: a field has a value that is not allowed: " + value;
  }
  return "handshake: not understood";
}

Result<std::optional<std::uint32_t>, HandshakeError> first_struct_size(Bytes received) {
  if (received.size() < sizeof(std::uint32_t)) return std::optional<std::uint32_t>{};
  const auto size = load<std::uint32_t>(received, 0);
  if (size < sizeof(kvmi_handshake_answer) || size > KVMI_HELLO_SIZE_MAX) {
    return bad(HandshakeErrc::BadStructSize, size);
  }
  return std::optional<std::uint32_t>{size};
}

Result<HypervisorHello, HandshakeError> parse_hypervisor_hello(Bytes whole) {
  if (whole.size() < kQemuSmallest) return bad(HandshakeErrc::BadStructSize, whole.size());
  kvmi_handshake qemu{};
  std::memcpy(&qemu, whole.data(), std::min(whole.size(), sizeof qemu));
  HypervisorHello hello;
  std::copy(std::begin(qemu.uuid), std::end(qemu.uuid), hello.uuid.bytes.begin());
  hello.start_time = qemu.start_time;

  const bool kvmi2 = has_magic(whole, kQemuWhole);
  // Only our own kind is held to zeros in what is not used: QEMU's branches put other things there.
  const auto name = terminated(qemu.name, sizeof qemu.name, kvmi2);
  if (!name || !is_printable_name(*name)) return bad(HandshakeErrc::BadName);
  hello.name = *name;

  if (kvmi2) {
    hello.max_gpa = qemu.max_gpa;
    if (const auto error = read_kvmi2_part(whole, qemu, hello)) return *error;
  } else if (whole.size() >= kQemuWhole) {
    hello.max_gpa = ram_end_of_e820(whole).value_or(qemu.max_gpa);
  }
  return hello;
}

void encode(const HypervisorHello& hello, ByteBuffer& out) {
  kvmi_handshake qemu{};
  const std::size_t size = hello.kvmi2 ? kQemuWhole + sizeof(kvmi_handshake_kvmi2)
                           : hello.max_gpa != 0 ? kQemuWhole
                                                : kQemuSmallest;
  qemu.struct_size = static_cast<std::uint32_t>(size);
  std::copy(hello.uuid.bytes.begin(), hello.uuid.bytes.end(), qemu.uuid);
  qemu.start_time = hello.start_time;
  copy_text(hello.name, qemu.name, sizeof qemu.name);
  qemu.max_gpa = hello.max_gpa;
  const auto bytes = std::as_bytes(std::span(&qemu, 1)).first(std::min(size, kQemuWhole));
  out.insert(out.end(), bytes.begin(), bytes.end());
  if (hello.kvmi2) {
    append(kvmi_handshake_kvmi2{.magic = KVMI_HELLO_MAGIC,
                                .version = KVMI_VERSION,
                                .flags = hello.flags,
                                .padding = 0,
                                .ram_bytes = hello.ram_bytes},
           out);
  }
}

Result<HypervisorAnswer, HandshakeError> parse_hypervisor_answer(Bytes whole) {
  constexpr std::size_t kPartAt = sizeof(kvmi_handshake_answer);
  if (whole.size() < kPartAt) return bad(HandshakeErrc::BadStructSize, whole.size());
  HypervisorAnswer answer;
  const auto head = load<kvmi_handshake_answer>(whole, 0);
  std::copy(std::begin(head.cookie_hash), std::end(head.cookie_hash), answer.cookie_hash.begin());
  if (!has_magic(whole, kPartAt)) return answer;
  if (whole.size() < kPartAt + sizeof(kvmi_handshake_answer_kvmi2)) {
    return bad(HandshakeErrc::BadStructSize, whole.size());
  }
  const auto part = load<kvmi_handshake_answer_kvmi2>(whole, kPartAt);
  const auto status = status_of(part.status);
  if (!status) return bad(HandshakeErrc::BadValue, static_cast<std::uint32_t>(part.status));
  const auto text = terminated(part.text, sizeof part.text, true);
  if (!text || valid_utf8_prefix(*text) != text->size()) return bad(HandshakeErrc::BadValue);
  answer.kvmi2 = true;
  answer.status = *status;
  answer.text = *text;
  return answer;
}

void encode(const HypervisorAnswer& answer, ByteBuffer& out) {
  kvmi_handshake_answer head{};
  const std::size_t size = sizeof head + (answer.kvmi2 ? sizeof(kvmi_handshake_answer_kvmi2) : 0);
  head.struct_size = static_cast<std::uint32_t>(size);
  std::copy(answer.cookie_hash.begin(), answer.cookie_hash.end(), head.cookie_hash);
  append(head, out);
  if (!answer.kvmi2) return;
  kvmi_handshake_answer_kvmi2 part{};
  part.magic = KVMI_HELLO_MAGIC;
  part.status = -static_cast<std::int32_t>(answer.status);
  copy_text(answer.text, part.text, sizeof part.text);
  append(part, out);
}

Result<AgentHello, HandshakeError> parse_agent_hello(Bytes whole) {
  if (whole.size() < sizeof(kvmi_hello)) return bad(HandshakeErrc::BadStructSize, whole.size());
  const auto wire = load<kvmi_hello>(whole, 0);
  if (wire.magic != KVMI_HELLO_MAGIC) return bad(HandshakeErrc::BadMagic, wire.magic);
  if (wire.version != KVMI_VERSION) return bad(HandshakeErrc::BadVersion, wire.version);
  if ((wire.flags & ~std::uint32_t{KVMI_HELLO_OUTCOMES}) != 0) return bad(HandshakeErrc::BadFlags, wire.flags);
  const auto name = terminated(wire.name, sizeof wire.name, true);
  if (!name || name->empty() || !is_printable_ascii(*name)) return bad(HandshakeErrc::BadName);
  AgentHello hello;
  std::copy(std::begin(wire.uuid), std::end(wire.uuid), hello.uuid.bytes.begin());
  hello.name = *name;
  hello.flags = wire.flags;
  return hello;
}

void encode(const AgentHello& hello, ByteBuffer& out) {
  kvmi_hello wire{};
  wire.struct_size = sizeof wire;
  wire.magic = KVMI_HELLO_MAGIC;
  wire.version = KVMI_VERSION;
  wire.flags = hello.flags;
  std::copy(hello.uuid.bytes.begin(), hello.uuid.bytes.end(), wire.uuid);
  copy_text(hello.name, wire.name, sizeof wire.name);
  append(wire, out);
}

Result<kvmi_welcome, HandshakeError> parse_welcome(Bytes whole) {
  if (whole.size() < sizeof(kvmi_welcome)) return bad(HandshakeErrc::BadStructSize, whole.size());
  const auto wire = load<kvmi_welcome>(whole, 0);
  if (wire.magic != KVMI_HELLO_MAGIC) return bad(HandshakeErrc::BadMagic, wire.magic);
  if (!status_of(wire.status)) return bad(HandshakeErrc::BadValue, static_cast<std::uint32_t>(wire.status));
  // A refusal is read whatever its version: its text may be about just that.
  if (wire.status == 0 && wire.version != KVMI_VERSION) return bad(HandshakeErrc::BadVersion, wire.version);
  if (wire.role > KVMI_ROLE_OBSERVER) return bad(HandshakeErrc::BadValue, wire.role);
  if (wire.default_action >= kActionCount) return bad(HandshakeErrc::BadValue, wire.default_action);
  if (wire.padding != 0) return bad(HandshakeErrc::BadFlags, wire.padding);
  const auto name = terminated(wire.guest_name, sizeof wire.guest_name, true);
  if (!name || !is_printable_name(*name)) return bad(HandshakeErrc::BadName);
  const auto text = terminated(wire.text, sizeof wire.text, true);
  if (!text || valid_utf8_prefix(*text) != text->size()) return bad(HandshakeErrc::BadValue);
  return wire;
}

void encode(const kvmi_welcome& welcome, ByteBuffer& out) {
  kvmi_welcome wire = welcome;
  wire.struct_size = sizeof wire;
  wire.magic = KVMI_HELLO_MAGIC;
  wire.version = KVMI_VERSION;
  append(wire, out);
}

void copy_text(std::string_view text, char* out, std::size_t out_size) {
  if (out_size == 0) return;
  text = text.substr(0, std::min(text.find('\0'), text.size()));
  if (text.size() >= out_size) {
    std::size_t n = out_size - 1;
    // Back to the first byte of the character that is cut: bytes within one begin with the bits 10.
    while (n > 0 && (static_cast<unsigned char>(text[n]) & 0xc0) == 0x80) --n;
    text = text.substr(0, n);
  }
  std::memset(out, 0, out_size);
  std::memcpy(out, text.data(), text.size());
}

std::string_view text_of(const char* in, std::size_t in_size) {
  const std::string_view whole(in, in_size);
  return whole.substr(0, std::min(whole.find('\0'), whole.size()));
}

std::string to_string(const Uuid& uuid) {
  constexpr std::string_view kDigits = "0123456789abcdef";
  std::string text;
  text.reserve(36);
  for (std::size_t i = 0; i < uuid.bytes.size(); ++i) {
    if (i == 4 || i == 6 || i == 8 || i == 10) text += '-';
    text += kDigits[uuid.bytes[i] >> 4];
    text += kDigits[uuid.bytes[i] & 0xf];
  }
  return text;
}

std::optional<Uuid> parse_uuid(std::string_view text) {
  const auto digit = [](char c) -> int {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
  };
  if (text.size() != 36) return std::nullopt;
  Uuid uuid;
  std::size_t nibble = 0;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (i == 8 || i == 13 || i == 18 || i == 23) {
      if (text[i] != '-') return std::nullopt;
      continue;
    }
    const int value = digit(text[i]);
    if (value < 0) return std::nullopt;
    auto& byte = uuid.bytes[nibble / 2];
    byte = static_cast<std::uint8_t>(byte * 16 + value);
    ++nibble;
  }
  return uuid;
}

}  // namespace kvmid
