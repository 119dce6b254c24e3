// SPDX-License-Identifier: GPL-2.0-or-later
#include "protocol/handshake.h"

#include <catch2/catch.hpp>
#include <cstring>

#include "vector_values.h"

using namespace kvmid;
using namespace kvmid::test;

namespace {

template <class T>
std::vector<std::byte> bytes_of(const T& value, std::size_t size = sizeof(T)) {
  std::vector<std::byte> bytes(std::max(size, sizeof(T)));
  std::memcpy(bytes.data(), &value, sizeof value);
  bytes.resize(size);
  return bytes;
}

template <class T>
void append(std::vector<std::byte>& to, const T& value) {
  const auto bytes = bytes_of(value);
  to.insert(to.end(), bytes.begin(), bytes.end());
}

kvmi_hello good_hello() {
  kvmi_hello hello{};
  hello.struct_size = sizeof hello;
  hello.magic = KVMI_HELLO_MAGIC;
  hello.version = KVMI_VERSION;
  std::strcpy(hello.name, "guard");
  return hello;
}

kvmi_handshake good_handshake(std::uint32_t size) {
  kvmi_handshake handshake{};
  handshake.struct_size = size;
  handshake.start_time = 5;
  std::strcpy(handshake.name, "web1");
  return handshake;
}

std::vector<std::byte> kvmi2_handshake(const kvmi_handshake_kvmi2& part) {
  auto bytes = bytes_of(good_handshake(128));
  append(bytes, part);
  return bytes;
}

constexpr kvmi_handshake_kvmi2 kPart{
    .magic = KVMI_HELLO_MAGIC, .version = KVMI_VERSION, .flags = 0, .padding = 0, .ram_bytes = 0};

}  // namespace

TEST_CASE("the first size is known from four bytes on", "[handshake]") {
  const auto bytes = bytes_of(good_hello());
  for (std::size_t n = 0; n < 4; ++n) {
    const auto size = first_struct_size(Bytes(bytes).first(n));
    REQUIRE(size);
    REQUIRE_FALSE(size->has_value());
  }
  const auto size = first_struct_size(Bytes(bytes).first(4));
  REQUIRE(size);
  REQUIRE(**size == 96);
}

TEST_CASE("a first size that no form has is refused", "[handshake]") {
  for (const std::uint32_t bad : {0U, 23U, KVMI_HELLO_SIZE_MAX + 1, 0xffffffffU}) {
    const auto size = first_struct_size(bytes_of(bad));
    REQUIRE_FALSE(size);
    REQUIRE(size.error().code == HandshakeErrc::BadStructSize);
    REQUIRE(size.error().value == bad);
  }
  REQUIRE(first_struct_size(bytes_of(std::uint32_t{24})));
  REQUIRE(first_struct_size(bytes_of(std::uint32_t{KVMI_HELLO_SIZE_MAX})));
}

TEST_CASE("structs shorter than their smallest form are refused at every length", "[handshake]") {
  const auto shorter = [](std::size_t whole, auto parse) {
    const std::vector<std::byte> bytes(whole);
    for (std::size_t n = 0; n < whole; ++n) {
      const std::vector<std::byte> exact(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(n));
      const auto result = parse(Bytes(exact));
      REQUIRE_FALSE(result);
      REQUIRE(result.error().code == HandshakeErrc::BadStructSize);
    }
  };
  shorter(sizeof(kvmi_hello), [](Bytes b) { return parse_agent_hello(b); });
  shorter(sizeof(kvmi_welcome), [](Bytes b) { return parse_welcome(b); });
  shorter(96, [](Bytes b) { return parse_hypervisor_hello(b); });
  shorter(24, [](Bytes b) { return parse_hypervisor_answer(b); });
}

TEST_CASE("what follows a hello that is larger than ours is ignored", "[handshake]") {
  auto hello = good_hello();
  hello.struct_size = 200;
  const auto parsed = parse_agent_hello(bytes_of(hello, 200));
  REQUIRE(parsed);
  REQUIRE(parsed->name == "guard");
}

TEST_CASE("a hello that is not ours is refused with the reason", "[handshake]") {
  const auto refused = [](auto change) {
    auto hello = good_hello();
    change(hello);
    const auto parsed = parse_agent_hello(bytes_of(hello));
    REQUIRE_FALSE(parsed);
    return parsed.error();
  };
  REQUIRE(refused([](kvmi_hello& h) { h.magic = 1; }).code == HandshakeErrc::BadMagic);
  const auto version = refused([](kvmi_hello& h) { h.version = 3; });
  REQUIRE(version.code == HandshakeErrc::BadVersion);
  REQUIRE(describe(version) == "handshake: version 3 is not spoken here, only 2");
  REQUIRE(refused([](kvmi_hello& h) { h.flags = 2; }).code == HandshakeErrc::BadFlags);
  REQUIRE(refused([](kvmi_hello& h) { h.name[0] = 0; }).code == HandshakeErrc::BadName);
  REQUIRE(refused([](kvmi_hello& h) { std::memset(h.name, 'a', sizeof h.name); }).code == HandshakeErrc::BadName);
  REQUIRE(refused([](kvmi_hello& h) { h.name[2] = '\n'; }).code == HandshakeErrc::BadName);
  REQUIRE(refused([](kvmi_hello& h) { std::strcpy(h.name, "\xc3\xa4"); }).code == HandshakeErrc::BadName);
  REQUIRE(refused([](kvmi_hello& h) { h.name[10] = 'x'; }).code == HandshakeErrc::BadName);
}

TEST_CASE("QEMU 2.11.93 gives the end of RAM as a memory map", "[handshake]") {
  auto handshake = good_handshake(104 + 3 * 24);
  handshake.padding = 1;  // there it is the kind of processor
  handshake.max_gpa = 3;  // there it is the number of entries
  auto bytes = bytes_of(handshake);
  struct Entry {
    std::uint64_t address, length;
    std::uint32_t type, padding;
  };
  append(bytes, Entry{0, 0xa0000, 1, 0});
  append(bytes, Entry{0x100000, 0x3ff00000, 1, 0});
  append(bytes, Entry{0xfeffc000, 0x4000, 2, 0});  // reserved
  const auto parsed = parse_hypervisor_hello(bytes);
  REQUIRE(parsed);
  REQUIRE(parsed->max_gpa == 0x40000000);
  REQUIRE_FALSE(parsed->kvmi2);
}

TEST_CASE("a memory map that wraps round is not believed", "[handshake]") {
  auto handshake = good_handshake(128);
  handshake.max_gpa = 1;
  auto bytes = bytes_of(handshake);
  append(bytes, std::uint64_t{0xfffffffffffff000});
  append(bytes, std::uint64_t{0x2000});
  append(bytes, std::uint64_t{1});
  const auto parsed = parse_hypervisor_hello(bytes);
  REQUIRE(parsed);
  REQUIRE(parsed->max_gpa == 0);
}

TEST_CASE("QEMU's name need not be cleared behind its zero, a KVMI 2 hypervisor's must", "[handshake]") {
  auto handshake = good_handshake(104);
  handshake.name[20] = 'x';
  const auto qemu = parse_hypervisor_hello(bytes_of(handshake));
  REQUIRE(qemu);
  REQUIRE(qemu->name == "web1");

  auto bytes = kvmi2_handshake(kPart);
  bytes[32 + 20] = std::byte{'x'};
  const auto ours = parse_hypervisor_hello(bytes);
  REQUIRE_FALSE(ours);
  REQUIRE(ours.error().code == HandshakeErrc::BadName);
}

TEST_CASE("a KVMI 2 part that is not whole or not right is refused", "[handshake]") {
  const auto refused = [](auto change) {
    auto part = kPart;
    change(part);
    const auto parsed = parse_hypervisor_hello(kvmi2_handshake(part));
    REQUIRE_FALSE(parsed);
    return parsed.error().code;
  };
  REQUIRE(refused([](auto& p) { p.version = 1; }) == HandshakeErrc::BadVersion);
  REQUIRE(refused([](auto& p) { p.flags = 4; }) == HandshakeErrc::BadFlags);
  REQUIRE(refused([](auto& p) { p.padding = 1; }) == HandshakeErrc::BadFlags);
  REQUIRE(refused([](auto& p) { p.ram_bytes = 4096; }) == HandshakeErrc::BadValue);
  REQUIRE(refused([](auto& p) { p.flags = KVMI_HANDSHAKE_RAM_SHARED; }) == HandshakeErrc::BadValue);

  const auto whole = kvmi2_handshake(kPart);
  for (std::size_t n = 108; n < 128; ++n) {
    const auto parsed = parse_hypervisor_hello(Bytes(whole).first(n));
    REQUIRE_FALSE(parsed);
    REQUIRE(parsed.error().code == HandshakeErrc::BadStructSize);
  }
}

TEST_CASE("an answer with an unknown status or a broken text is refused", "[handshake]") {
  ByteBuffer good;
  encode(HypervisorAnswer{.kvmi2 = true, .status = ErrorCode::Busy, .text = "here already"}, good);
  REQUIRE(parse_hypervisor_answer(good));
  auto bytes = good;
  bytes[28] = std::byte{5};
  REQUIRE_FALSE(parse_hypervisor_answer(bytes));
  bytes = good;
  bytes[32] = std::byte{0xff};
  REQUIRE_FALSE(parse_hypervisor_answer(bytes));
  bytes = good;
  std::fill(bytes.begin() + 32, bytes.end(), std::byte{'x'});
  REQUIRE_FALSE(parse_hypervisor_answer(bytes));
}

TEST_CASE("a welcome that refuses is read whatever its version", "[handshake]") {
  kvmi_welcome welcome{};
  welcome.status = -KVMI_EINVAL;
  copy_text("only version 3", welcome.text, sizeof welcome.text);
  ByteBuffer bytes;
  encode(welcome, bytes);
  bytes[8] = std::byte{3};
  const auto refused = parse_welcome(bytes);
  REQUIRE(refused);
  REQUIRE(text_of(refused->text, sizeof refused->text) == "only version 3");
  bytes[12] = bytes[13] = bytes[14] = bytes[15] = std::byte{0};
  const auto welcomed = parse_welcome(bytes);
  REQUIRE_FALSE(welcomed);
  REQUIRE(welcomed.error().code == HandshakeErrc::BadVersion);
}

TEST_CASE("text is cut where a character ends, and the rest is zero", "[handshake]") {
  char out[6];
  copy_text("abcdefgh", out, sizeof out);
  REQUIRE(std::string(out) == "abcde");
  copy_text("abcd\xc3\xa4", out, sizeof out);  // the character would need the place of the zero
  REQUIRE(std::string(out) == "abcd");
  copy_text("ab\xf0\x9f\x98\x80", out, sizeof out);
  REQUIRE(std::string(out) == "ab");
  copy_text("x", out, sizeof out);
  REQUIRE(std::string_view(out, 6) == std::string_view("x\0\0\0\0\0", 6));
  REQUIRE(text_of(out, sizeof out) == "x");
  std::memset(out, 'y', sizeof out);
  REQUIRE(text_of(out, sizeof out) == "yyyyyy");
}

TEST_CASE("a UUID is written and read in the form people know", "[handshake]") {
  const std::string text = "6a1f7e36-c0de-4b1d-8a55-001122334455";
  const auto uuid = parse_uuid(text);
  REQUIRE(uuid);
  REQUIRE(to_string(*uuid) == text);
  REQUIRE(uuid->bytes[0] == 0x6a);
  REQUIRE(parse_uuid("6A1F7E36-C0DE-4B1D-8A55-001122334455") == uuid);
  for (const char* bad : {"", "6a1f7e36", "6a1f7e36c0de4b1d8a55001122334455", "6a1f7e36-c0de-4b1d-8a55-00112233445",
                          "6a1f7e36-c0de-4b1d-8a55-0011223344556", "6a1f7e36-c0de-4b1d-8a55-00112233445g",
                          "6a1f7e36-c0de-4b1d-8a550-01122334455"}) {
    CAPTURE(bad);
    REQUIRE_FALSE(parse_uuid(bad));
  }
}
