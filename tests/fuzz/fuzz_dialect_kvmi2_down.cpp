// SPDX-License-Identifier: GPL-2.0-or-later
//
// What an agent may send: one frame, header first. Whatever decodes must encode to the same bytes.

#include <cstdlib>
#include <cstring>

#include "protocol/dialect_kvmi2.h"

using namespace kvmid;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  kvmi_msg_hdr header;
  if (size < sizeof header || size - sizeof header > KVMI_MAX_PAYLOAD) return 0;
  std::memcpy(&header, data, sizeof header);
  const Bytes payload = std::as_bytes(std::span(data, size)).subspan(sizeof header);
  DialectKvmi2 dialect;
  const auto message = dialect.decode_downward(Frame{header.id, Seq{header.seq}, payload});
  if (!message) {
    if (message.error().offset > payload.size() || describe(message.error()).empty()) std::abort();
    return 0;
  }
  ByteBuffer out;
  std::visit(Overloaded{
                 [](const UnknownMessage&) {},
                 [&](const auto& m) { dialect.encode(m, Seq{header.seq}, out); },
             },
             *message);
  if (out.empty()) return 0;
  kvmi_msg_hdr expected = header;
  expected.size = static_cast<std::uint16_t>(payload.size());
  if (out.size() != size || std::memcmp(out.data(), &expected, sizeof expected) != 0 ||
      std::memcmp(out.data() + sizeof header, payload.data(), payload.size()) != 0) {
    std::abort();
  }
  return 0;
}
