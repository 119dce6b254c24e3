// SPDX-License-Identifier: GPL-2.0-or-later
//
// What a tool of an older dialect may send: a byte that picks the dialect, then one frame, header first. Whatever
// decodes must encode, and decode again to what encodes to the same bytes.

#include <cstdlib>
#include <cstring>

#include "protocol/kvmi1_codec.h"

using namespace kvmid;

namespace {

ByteBuffer encoded(const kvmi1::Codec& codec, const kvmi1::Downward& message, Seq seq) {
  ByteBuffer out;
  std::visit(Overloaded{
                 [](const kvmi1::UnknownMessage&) {},
                 [&](const auto& m) { codec.encode(m, seq, out); },
             },
             message);
  return out;
}

void read_as_reply(const kvmi1::Codec& codec, const kvmi1::EventReplyMessage& reply) {
  for (unsigned i = 0; i < kEventCount; ++i) {
    const auto data = codec.read_reply(static_cast<EventKind>(i), reply);
    if (data && data->context.size() > kvmi1::kContextSize) std::abort();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  kvmi_msg_hdr header;
  if (size < 1 + sizeof header) return 0;
  const auto& codec = kvmi1::codec(static_cast<kvmi1::DialectId>(data[0] % kvmi1::kDialectCount));
  std::memcpy(&header, data + 1, sizeof header);
  const Bytes payload = std::as_bytes(std::span(data, size)).subspan(1 + sizeof header);
  if (payload.size() > codec.payload_max()) return 0;

  const Seq seq{header.seq};
  const auto message = codec.decode_downward(Frame{header.id, seq, payload});
  if (!message) {
    const auto& refused = message.error();
    // Behind the payload's end are the fields that were left out, which are read as zero.
    if (refused.error.offset > codec.payload_max() || refused.answer > 0) std::abort();
    if (kvmi1::describe(codec, refused.error).empty()) std::abort();
    return 0;
  }
  if (const auto* reply = std::get_if<kvmi1::EventReplyMessage>(&*message)) read_as_reply(codec, *reply);

  const ByteBuffer once = encoded(codec, *message, seq);
  if (once.empty()) return 0;
  // Surplus is gone, and what was missing is there: not the bytes that came, but bytes that mean the same.
  std::memcpy(&header, once.data(), sizeof header);
  if (header.size != once.size() - sizeof header) std::abort();
  const auto again = codec.decode_downward(Frame{header.id, seq, Bytes(once).subspan(sizeof header)});
  if (!again || again->index() != message->index() || encoded(codec, *again, seq) != once) std::abort();
  return 0;
}
