// SPDX-License-Identifier: GPL-2.0-or-later
//
// A stream in pieces: the frames must be those of the stream read at once, however it was cut. The pieces' sizes come
// from the bytes themselves.

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "protocol/frame_parser.h"

using namespace kvmid;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  constexpr std::size_t kPayloadMax = 2000;
  const Bytes stream = std::as_bytes(std::span(data, size));
  FrameParser parser(kPayloadMax);
  std::size_t given = 0;  // bytes of the stream that came out as frames
  std::size_t fed = 0;
  while (fed < size) {
    const auto space = parser.writable();
    if (space.empty() || parser.capacity() > parser.capacity_max()) std::abort();
    const std::size_t piece = std::min({space.size(), size - fed, std::size_t{1} + data[fed] * std::size_t{5}});
    std::copy_n(stream.begin() + static_cast<std::ptrdiff_t>(fed), piece, space.begin());
    parser.commit(piece);
    fed += piece;
    for (;;) {
      const auto frame = parser.next();
      kvmi_msg_hdr header;
      if (!frame) {
        // Only a header that was seen whole, and says too much, ends a stream.
        if (fed - given < sizeof header) std::abort();
        std::memcpy(&header, data + given, sizeof header);
        if (header.size <= kPayloadMax || header.size != frame.error().size) std::abort();
        return 0;
      }
      if (*frame == nullptr) break;
      std::memcpy(&header, data + given, sizeof header);
      const Frame& f = **frame;
      if (f.id != header.id || f.seq.value != header.seq || f.payload.size() != header.size) std::abort();
      const auto* payload = data + given + sizeof header;
      if (header.size != 0 && std::memcmp(f.payload.data(), payload, header.size) != 0) std::abort();
      given += sizeof header + header.size;
    }
    if (parser.pending() != fed - given) std::abort();
  }
  return 0;
}
