// SPDX-License-Identifier: GPL-2.0-or-later
#include "protocol/frame_parser.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <cstring>
#include <random>

using namespace kvmid;

namespace {

std::vector<std::byte> frame_bytes(std::uint16_t id, std::uint32_t seq, std::size_t payload_size) {
  const kvmi_msg_hdr header{.id = id, .size = static_cast<std::uint16_t>(payload_size), .seq = seq};
  std::vector<std::byte> bytes(sizeof header + payload_size);
  std::memcpy(bytes.data(), &header, sizeof header);
  for (std::size_t i = 0; i < payload_size; ++i) bytes[sizeof header + i] = static_cast<std::byte>(i * 7 + seq);
  return bytes;
}

void append(std::vector<std::byte>& to, const std::vector<std::byte>& bytes) {
  to.insert(to.end(), bytes.begin(), bytes.end());
}

/// Takes every whole frame out and appends its bytes to `seen`, rebuilt from what the parser says.
void drain(FrameParser& parser, std::vector<std::byte>& seen) {
  for (;;) {
    const auto frame = parser.next();
    REQUIRE(frame);
    if (*frame == nullptr) return;
    const kvmi_msg_hdr header{.id = (*frame)->id,
                              .size = static_cast<std::uint16_t>((*frame)->payload.size()),
                              .seq = (*frame)->seq.value};
    const auto bytes = std::as_bytes(std::span(&header, 1));
    seen.insert(seen.end(), bytes.begin(), bytes.end());
    seen.insert(seen.end(), (*frame)->payload.begin(), (*frame)->payload.end());
  }
}

void feed(FrameParser& parser, Bytes bytes, std::vector<std::byte>& seen) {
  while (!bytes.empty()) {
    const auto space = parser.writable();
    REQUIRE(!space.empty());
    const auto n = std::min(space.size(), bytes.size());
    std::copy_n(bytes.begin(), n, space.begin());
    parser.commit(n);
    bytes = bytes.subspan(n);
    drain(parser, seen);
  }
}

}  // namespace

TEST_CASE("two frames cut at every byte come out whole", "[frame_parser]") {
  auto stream = frame_bytes(6, 1, 13);
  append(stream, frame_bytes(25, 2, 40));
  for (std::size_t cut = 0; cut <= stream.size(); ++cut) {
    FrameParser parser;
    std::vector<std::byte> seen;
    feed(parser, Bytes(stream).first(cut), seen);
    feed(parser, Bytes(stream).subspan(cut), seen);
    REQUIRE(seen == stream);
    REQUIRE(parser.pending() == 0);
  }
}

TEST_CASE("frames that arrive byte by byte come out whole", "[frame_parser]") {
  std::vector<std::byte> stream;
  for (const std::size_t size : {0, 1, 7, 600, 5000, 65528}) {
    append(stream, frame_bytes(1, static_cast<std::uint32_t>(size), size));
  }
  FrameParser parser;
  std::vector<std::byte> seen;
  for (const auto& byte : stream) feed(parser, Bytes(&byte, 1), seen);
  REQUIRE(seen == stream);
}

TEST_CASE("a frame is not given before its last byte", "[frame_parser]") {
  const auto bytes = frame_bytes(3, 9, 20);
  FrameParser parser;
  auto space = parser.writable();
  std::copy_n(bytes.begin(), bytes.size() - 1, space.begin());
  parser.commit(bytes.size() - 1);
  auto frame = parser.next();
  REQUIRE(frame);
  REQUIRE(*frame == nullptr);
  REQUIRE(parser.pending() == bytes.size() - 1);

  space = parser.writable();
  space[0] = bytes.back();
  parser.commit(1);
  frame = parser.next();
  REQUIRE(frame);
  REQUIRE(*frame != nullptr);
  REQUIRE((*frame)->id == 3);
  REQUIRE((*frame)->seq == Seq{9});
  REQUIRE((*frame)->payload.size() == 20);
}

TEST_CASE("a header whose size is over the limit ends the stream for good", "[frame_parser]") {
  FrameParser parser(100);
  auto bytes = frame_bytes(3, 9, 101);
  bytes.resize(sizeof(kvmi_msg_hdr));  // the header alone is enough
  std::copy(bytes.begin(), bytes.end(), parser.writable().begin());
  parser.commit(bytes.size());
  for (int i = 0; i < 3; ++i) {
    const auto frame = parser.next();
    REQUIRE(!frame);
    REQUIRE(frame.error().code == FrameErrc::PayloadTooLarge);
    REQUIRE(frame.error().id == 3);
    REQUIRE(frame.error().size == 101);
    const auto space = parser.writable();
    REQUIRE(!space.empty());
    std::fill(space.begin(), space.end(), std::byte{0});
    parser.commit(space.size());
  }
}

TEST_CASE("frames before an oversized header are still given", "[frame_parser]") {
  FrameParser parser(100);
  auto stream = frame_bytes(1, 1, 100);
  append(stream, frame_bytes(2, 2, 65535));
  std::copy_n(stream.begin(), 116, parser.writable().begin());
  parser.commit(116);
  const auto first = parser.next();
  REQUIRE(first);
  REQUIRE((*first)->id == 1);
  REQUIRE(!parser.next());
}

TEST_CASE("the largest payload of KVMI 2 passes, one byte more does not", "[frame_parser]") {
  FrameParser parser;
  std::vector<std::byte> seen;
  const auto largest = frame_bytes(16, 4, KVMI_MAX_PAYLOAD);
  feed(parser, largest, seen);
  REQUIRE(seen == largest);

  const auto over = frame_bytes(16, 4, KVMI_MAX_PAYLOAD + 1);
  std::copy_n(over.begin(), 8, parser.writable().begin());
  parser.commit(8);
  REQUIRE(!parser.next());
}

TEST_CASE("the buffer stays small for small messages and bounded for large ones", "[frame_parser]") {
  FrameParser parser;
  std::vector<std::byte> seen;
  const auto small = frame_bytes(1, 1, 600);
  for (int i = 0; i < 1000; ++i) {
    seen.clear();
    feed(parser, small, seen);
    REQUIRE(seen == small);
  }
  REQUIRE(parser.capacity() == 4096);

  std::vector<std::byte> stream;
  for (std::uint32_t i = 0; i < 40; ++i) append(stream, frame_bytes(1, i, i % 2 == 0 ? 65528 : 0));
  seen.clear();
  feed(parser, stream, seen);
  REQUIRE(seen == stream);
  REQUIRE(parser.capacity() <= parser.capacity_max());
  REQUIRE(parser.capacity_max() < 3 * 65536);
}

TEST_CASE("a payload stays where it is until more is read", "[frame_parser]") {
  FrameParser parser;
  auto stream = frame_bytes(1, 1, 50);
  append(stream, frame_bytes(1, 2, 50));
  std::copy(stream.begin(), stream.end(), parser.writable().begin());
  parser.commit(stream.size());
  const auto first = parser.next();
  REQUIRE(first);
  const Bytes payload = (*first)->payload;
  REQUIRE(parser.next());
  REQUIRE(parser.next());
  REQUIRE(std::equal(payload.begin(), payload.end(), stream.begin() + sizeof(kvmi_msg_hdr)));
}

TEST_CASE("random frames in random pieces come out whole", "[frame_parser]") {
  const auto seed = std::random_device{}();
  CAPTURE(seed);
  std::mt19937 random(seed);
  std::vector<std::byte> stream;
  for (std::uint32_t i = 0; i < 300; ++i) {
    const std::size_t size = random() % 4 == 0 ? random() % (KVMI_MAX_PAYLOAD + 1) : random() % 700;
    append(stream, frame_bytes(static_cast<std::uint16_t>(random()), i, size));
  }
  FrameParser parser;
  std::vector<std::byte> seen;
  Bytes left(stream);
  while (!left.empty()) {
    const auto n = std::min<std::size_t>(left.size(), 1 + random() % (random() % 3 == 0 ? 200000 : 900));
    feed(parser, left.first(n), seen);
    left = left.subspan(n);
  }
  REQUIRE(seen == stream);
}
