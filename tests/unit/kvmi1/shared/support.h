// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// What the tests of the older dialects' codecs share.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "protocol/kvmi1_codec.h"

namespace kvmid::kvmi1::test {

/// A frame whose payload ends where its memory does: a sanitizer sees what reads past it.
class ExactFrame {
 public:
  ExactFrame(std::uint16_t id, Seq seq, Bytes payload) : payload_(new std::byte[payload.size()]) {
    std::copy(payload.begin(), payload.end(), payload_.get());
    frame_ = Frame{id, seq, Bytes(payload_.get(), payload.size())};
  }
  [[nodiscard]] const Frame& frame() const { return frame_; }

 private:
  std::unique_ptr<std::byte[]> payload_;
  Frame frame_;
};

/// What a codec wrote: one whole frame.
struct Written {
  std::uint16_t id = 0;
  Seq seq;
  std::vector<std::byte> payload;

  [[nodiscard]] ExactFrame cut(std::size_t size) const { return {id, seq, Bytes(payload).first(size)}; }
  [[nodiscard]] ExactFrame whole() const { return cut(payload.size()); }
  /// `n` bytes of the payload, the lowest first.
  void set(std::size_t at, std::uint64_t value, std::size_t n = 1);
};
Written taken_apart(Bytes message);

inline constexpr Seq kSeq{0x11223344};
template <class Message>
Written written(const Codec& codec, const Message& message) {
  ByteBuffer out;
  codec.encode(message, kSeq, out);
  return taken_apart(out);
}
Written written(const Codec& codec, const Downward& message);
Written written(const Codec& codec, const Upward& message);

/// A message of tests/vectors/captures.
struct Recorded {
  std::string file;
  int n = 0;
  bool down = false;    ///< from a tool
  int connection = 0;   ///< counted in the file
  std::string what;
  std::string note;
  std::vector<std::byte> bytes;  ///< with the header

  [[nodiscard]] ExactFrame frame() const;
};
/// All messages with a message header of files whose names begin so, in order.
std::vector<Recorded> recorded(std::string_view prefix);

const nlohmann::json& layouts();

struct FieldLayout {
  const char* name;
  std::size_t offset;
  std::size_t size;
};
#define KVMID_LAYOUT(type, field) \
  ::kvmid::kvmi1::test::FieldLayout { #field, offsetof(type, field), sizeof(type::field) }
/// Every field that the layout has is ours, at the same place, and the other way round; tails are not compared.
void require_layout(const nlohmann::json& layout, std::size_t size, const std::vector<FieldLayout>& ours);

}  // namespace kvmid::kvmi1::test
