// SPDX-License-Identifier: GPL-2.0-or-later
//
// What a hypervisor of an older dialect may send: a byte that picks the dialect, then one frame, header first. Whatever
// decodes must encode, and decode again to what encodes to the same bytes. An event must also be one that KVMI 2 can
// tell: kvmid passes it on.

#include <cstdlib>
#include <cstring>

#include "protocol/dialect_kvmi2.h"
#include "protocol/kvmi1_codec.h"

using namespace kvmid;

namespace {

ByteBuffer encoded(const kvmi1::Codec& codec, const kvmi1::Upward& message, Seq seq) {
  ByteBuffer out;
  std::visit(Overloaded{
                 [](const kvmi1::UnknownMessage&) {},
                 [&](const auto& m) { codec.encode(m, seq, out); },
             },
             message);
  return out;
}

void tell_in_kvmi2(Event event, Seq seq) {
  event.actions = ActionSet{1};  // not on the wire: whoever passes it on fills it in
  DialectKvmi2 dialect;
  ByteBuffer out;
  dialect.encode(event, seq, out);
  kvmi_msg_hdr header;
  std::memcpy(&header, out.data(), sizeof header);
  if (!dialect.decode_upward(Frame{header.id, seq, Bytes(out).subspan(sizeof header)})) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  kvmi_msg_hdr header;
  if (size < 1 + sizeof header) return 0;
  const auto& codec = kvmi1::codec(static_cast<kvmi1::DialectId>(data[0] % kvmi1::kDialectCount));
  std::memcpy(&header, data + 1, sizeof header);
  const Bytes payload = std::as_bytes(std::span(data, size)).subspan(1 + sizeof header);
  if (payload.size() > codec.payload_max()) return 0;

  (void)kvmi1::dialect_of_version_reply(payload);
  const Seq seq{header.seq};
  const auto message = codec.decode_upward(Frame{header.id, seq, payload});
  if (!message) {
    if (message.error().offset > payload.size() || kvmi1::describe(codec, message.error()).empty()) std::abort();
    return 0;
  }
  if (const auto* event = std::get_if<kvmi1::EventMessage>(&*message)) tell_in_kvmi2(event->event, seq);

  const ByteBuffer once = encoded(codec, *message, seq);
  if (once.empty()) return 0;
  std::memcpy(&header, once.data(), sizeof header);
  if (header.size != once.size() - sizeof header) std::abort();
  const auto again = codec.decode_upward(Frame{header.id, seq, Bytes(once).subspan(sizeof header)});
  if (!again || again->index() != message->index() || encoded(codec, *again, seq) != once) std::abort();
  return 0;
}
