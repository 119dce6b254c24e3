// SPDX-License-Identifier: GPL-2.0-or-later
// Two guests, one that shares its RAM and one that does not: what is read, written and refused is the same.
#include <catch2/catch.hpp>

#include "tests/integration_memory/memory_scene.h"
#include "tests/integration_wire/wire_socket.h"

namespace kvmid::test {
namespace {

constexpr std::uint64_t kRam = 16U << 20U;  // kvmi-emu's default

/// Agents that send what no library would.
struct BothWays {
  BothWays() : relayed(scene.folder, {.name = "relayed", .uuid = uuid_of(2), .arguments = {"--no-share-ram"}}) {
    relayed.wait_online();
    for (const Guest* guest : {&std::as_const(scene.guest), &std::as_const(relayed)})
      agents.push_back(raw_agent(scene.daemon.agent_socket(), guest->uuid(), "raw"));
    AgentClient known = scene.attach("known");
    (void)seen_memory(known, kPlace, 1);  // the map was asked for before, and is answered by now
  }

  struct Answer {
    ErrorCode error{};
    std::vector<std::byte> bytes;  ///< of a read
    friend bool operator==(const Answer&, const Answer&) = default;
  };
  Answer ask(WireSocket& agent, const Command& command) {
    REQUIRE(agent.send(encoded(command, Seq{++seq})));
    const auto frame = agent.next_frame();
    REQUIRE(frame);
    const auto message = DialectKvmi2{}.decode_upward(frame->view());
    REQUIRE(message);
    const auto* reply = std::get_if<CommandReply>(&*message);
    REQUIRE(reply != nullptr);
    CHECK(frame->seq == Seq{seq});
    CHECK(reply->text.empty() == (reply->error == ErrorCode::None));
    Answer answer{reply->error, {}};
    if (const auto* read = std::get_if<ReadPhysicalReply>(&reply->body))
      answer.bytes.assign(read->data.begin(), read->data.end());
    return answer;
  }
  /// Asked of both; they must agree.
  Answer ask(const Command& command) {
    const Answer shared = ask(agents[0], command);
    const Answer by_message = ask(agents[1], command);
    CHECK(name_of(shared.error) == name_of(by_message.error));
    CHECK(shared.bytes == by_message.bytes);
    return shared;
  }
  ErrorCode read(const std::vector<kvmi_read_range>& ranges, AddressSpace space = AddressSpace::Normal) {
    std::size_t total = 0;
    for (const auto& range : ranges) total += range.size;
    const Answer answer = ask(ReadPhysical{space, std::span<const kvmi_read_range>(ranges)});
    CHECK(answer.bytes.size() == (answer.error == ErrorCode::None ? total : 0));
    return answer.error;
  }
  ErrorCode write(std::uint64_t gpa, std::size_t size, AddressSpace space = AddressSpace::Normal) {
    const auto data = filled(size, 0xee);
    return ask(WritePhysical{Gpa{gpa}, space, 0, 0, data, {}}).error;
  }

  MemoryScene scene;
  Guest relayed;
  std::vector<WireSocket> agents;
  std::uint32_t seq = 0;
};

using E = ErrorCode;

}  // namespace

TEST_CASE("without shared RAM nothing is granted, and reads go by messages", "[integration][memory]") {
  if (!can_grant()) return;
  MemoryScene scene({.arguments = {"--no-share-ram"}});
  AgentClient agent = scene.reader();
  CHECK_FALSE(agent.welcome().commands.has(CommandId::GrantMemory));
  CHECK_FALSE(check(agent.get_version()).commands.has(CommandId::GrantMemory));
  const auto granted = agent.grant_memory();
  REQUIRE_FALSE(granted);
  CHECK(granted.error().code == ErrorCode::NotSupported);
  check(agent.write_physical(kPlace, filled(100, 3)));
  CHECK(seen_memory(agent, kPlace, 100) == filled(100, 3));
  CHECK(raw_memory(scene.guest, kPlace, 100) == filled(100, 3));
}

TEST_CASE("bad reads are refused alike, whether RAM is mapped or not", "[integration][memory]") {
  BothWays both;
  const auto end = ~std::uint64_t{0};
  CHECK(both.read({}) == E::Invalid);
  CHECK(both.read({{kPlace.value, 0, 0}}) == E::Invalid);
  CHECK(both.read({{kPlace.value, 8, 0}, {kPlace.value, 0, 0}}) == E::Invalid);
  CHECK(both.read({{kPlace.value, 8, 1}}) == E::Invalid);
  CHECK(both.read({{end - 3, 8, 0}}) == E::Invalid);
  CHECK(both.read({{end, 1, 0}}) == E::Invalid);  // its end is no address any more
  CHECK(both.read({{8, 0xffffffff, 0}}) == E::TooBig);
  CHECK(both.read({{kRam - 8, 65513, 0}}) == E::TooBig);
  CHECK(both.read({{kPlace.value, 65512, 0}, {kPlace.value, 1, 0}}) == E::TooBig);
  CHECK(both.read({{kPlace.value, 8, 0}}, static_cast<AddressSpace>(2)) == E::Invalid);
  CHECK(both.read({{kRam, 1, 0}}) == E::Fault);  // the memfd has a page more than the guest
  CHECK(both.read({{kRam - 4, 8, 0}}) == E::Fault);
  CHECK(both.read({{kPlace.value, 8, 0}, {kRam, 8, 0}}) == E::Fault);
  CHECK(both.read({{kRam + 4096, 8, 0}}) == E::Fault);
  CHECK(both.read({{std::uint64_t{1} << 52U, 8, 0}}) == E::Fault);
  CHECK(both.read({{0x600000, 8, 0}}, AddressSpace::Smm) == E::Fault);
  both.scene.guest.wait_rounds(1);
  both.relayed.wait_rounds(1);
}

TEST_CASE("reads give the same, whether RAM is mapped or not", "[integration][memory]") {
  BothWays both;
  for (const Guest* guest : {&both.scene.guest, &both.relayed}) {
    std::vector<std::byte> pattern(0x20000);
    for (std::size_t i = 0; i < pattern.size(); ++i) pattern[i] = static_cast<std::byte>(i * 13 + i / 4096);
    guest->memory().write(kPlace, pattern.data(), pattern.size());
  }
  CHECK(both.read({{kPlace.value, 65512, 0}}) == E::None);
  CHECK(both.read({{kRam - 8, 8, 0}}) == E::None);
  CHECK(both.read({{0xefffc, 8, 0}}) == E::None);   // into the slot of the ROM
  CHECK(both.read({{0xefff0, 0x1020, 0}}) == E::None);  // all of it, and out of it again
  CHECK(both.read({{0xa0000, 16, 0}}, AddressSpace::Smm) == E::None);
  CHECK(both.read({{0xa0000, 16, 0}}) == E::None);
  std::vector<kvmi_read_range> many;
  for (std::uint64_t i = 0; i < 4000; ++i) many.push_back({kPlace.value + (i * 7919) % 0x1f000, 16, 0});
  CHECK(both.read(many) == E::None);
  many.push_back({kRam, 1, 0});
  CHECK(both.read(many) == E::Fault);
}

TEST_CASE("bad writes are refused alike, and write nothing", "[integration][memory]") {
  BothWays both;
  const auto all = [&] {
    std::vector<std::vector<std::byte>> parts;
    for (const Guest* guest : {&both.scene.guest, &both.relayed})
      for (const std::uint64_t gpa : {std::uint64_t{0}, kPlace.value, kRam - 4096})
        parts.push_back(raw_memory(*guest, Gpa{gpa}, 4096));
    return parts;
  };
  const auto before = all();
  CHECK(both.write(kPlace.value, 0) == E::Invalid);
  CHECK(both.write(~std::uint64_t{0} - 3, 8) == E::Invalid);
  CHECK(both.write(kPlace.value, 8, static_cast<AddressSpace>(2)) == E::Invalid);
  CHECK(both.write(kRam, 8) == E::Fault);
  CHECK(both.write(kRam - 4, 8) == E::Fault);
  CHECK(both.write(std::uint64_t{1} << 52U, 8) == E::Fault);
  CHECK(both.write(0x600000, 8, AddressSpace::Smm) == E::Fault);
  CHECK(all() == before);
  CHECK(both.read({{kRam - 4, 4, 0}}) == E::None);  // and no write is taken to be under way
  CHECK(both.write(kPlace.value, 65504) == E::None);
  CHECK(both.read({{kPlace.value, 65504, 0}}) == E::None);
}

}  // namespace kvmid::test
