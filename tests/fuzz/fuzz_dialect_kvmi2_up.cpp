// SPDX-License-Identifier: GPL-2.0-or-later
//
// What a hypervisor may send: one frame, header first. Whatever decodes must encode to the same payload.

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
  const auto message = dialect.decode_upward(Frame{header.id, Seq{header.seq}, payload});
  if (!message) {
    if (message.error().offset > payload.size() || describe(message.error()).empty()) std::abort();
    return 0;
  }
  ByteBuffer out;
  std::visit(Overloaded{
                 [](const UnknownMessage&) {},
                 [&](const Event& m) { dialect.encode(m, Seq{header.seq}, out); },
                 [&](const CommandReply& m) { dialect.encode(m, Seq{header.seq}, out); },
                 [&](const auto& m) { dialect.encode(m, out); },
             },
             *message);
  if (out.empty()) return 0;
  if (out.size() != size || std::memcmp(out.data() + sizeof header, payload.data(), payload.size()) != 0) std::abort();
  return 0;
}
