// SPDX-License-Identifier: GPL-2.0-or-later
// Guest RAM that is shared: what is read from the mapping, and what its readers are told, in which order.
#include <catch2/catch.hpp>

#include "tests/unit/core/core_harness.h"

namespace kvmid::core::testing {

namespace {

constexpr std::uint64_t kRam = std::uint64_t{1} << 24;
const std::vector<std::byte> kData(16, std::byte{1});

struct Shared : Guest {
  Shared() {
    lose_hypervisor();
    machine.set_ram(kRam);
    connect();
    agent = attach();
    ram.clear();
  }
  Seq read(std::uint64_t gpa, std::uint32_t size, AddressSpace space = AddressSpace::Normal) {
    const std::vector<kvmi_read_range> ranges{{gpa, size, 0}};
    return command(agent, ReadPhysical{space, std::span<const kvmi_read_range>(ranges)});
  }
  /// The read was answered from the mapping.
  bool mapped(std::uint64_t gpa, std::uint32_t size, AddressSpace space = AddressSpace::Normal) {
    const auto before = ram_reads.size();
    const Seq seq = read(gpa, size, space);
    if (ram_reads.size() == before) return false;
    REQUIRE(ram_reads.back().seq == seq);
    REQUIRE(ram_reads.back().bytes == size);
    return true;
  }
  Seq write(std::uint64_t gpa) {
    return command(agent, WritePhysical{Gpa{gpa}, AddressSpace::Normal, 0, 0, kData, {}});
  }
  AgentId agent;
};

}  // namespace

TEST_CASE("reads of shared RAM do not go to the hypervisor", "[ram]") {
  Shared guest;
  REQUIRE(guest.mapped(0x1000, 4096));
  REQUIRE(guest.mapped(kRam - 1, 1));
  REQUIRE_FALSE(guest.mapped(kRam - 1, 2));  // beyond what is shared
  REQUIRE_FALSE(guest.mapped(0x1000, 16, AddressSpace::Smm));
  REQUIRE(guest.requests_open(guest.agent) == 0);
}

TEST_CASE("a write is told to readers before it is sent, and told as done when it is answered", "[ram]") {
  Shared guest;
  guest.answering = false;
  guest.effects.clear();
  const Seq seq = guest.write(0x2000);
  REQUIRE(guest.ram.size() == 1);
  const auto* changing = std::get_if<RamChanging>(&guest.ram[0]);
  REQUIRE(changing != nullptr);
  REQUIRE(changing->gpa == Gpa{0x2000});
  REQUIRE(changing->bytes == kData.size());
  // In the effects it stands before the command.
  REQUIRE(std::holds_alternative<RamChanging>(guest.effects[0]));
  REQUIRE(std::holds_alternative<SendCommand>(guest.effects[1]));
  REQUIRE_FALSE(guest.mapped(0x200f, 1));  // it goes behind the write
  REQUIRE(guest.mapped(0x2010, 1));
  guest.answer_all();
  REQUIRE(guest.error_of(guest.agent, seq) == ErrorCode::None);
  REQUIRE(std::holds_alternative<RamChanged>(guest.ram.back()));
  REQUIRE(guest.mapped(0x2000, 16));
  const auto* written = std::get_if<WritePhysicalReply>(&guest.answer_to(guest.agent, seq)->reply.body);
  REQUIRE(written->cookie == changing->generation);
}

TEST_CASE("a write that is refused, or whose agent has gone, is not under way for good", "[ram]") {
  Shared guest;
  guest.answering = false;
  guest.write(0x2000);
  SECTION("refused") { guest.refuse = [](const auto&) { return ErrorCode::Fault; }; }
  SECTION("gone") { guest.lose(guest.agent); }
  guest.answer_all();
  REQUIRE(std::holds_alternative<RamChanged>(guest.ram.back()));
}

TEST_CASE("a write that is not sent changes nothing", "[ram]") {
  Shared guest;
  Grant grant = full_grant();
  grant.quota.requests_max = 0;
  guest.agent = guest.attach(grant);
  REQUIRE(guest.error_of(guest.agent, guest.write(0x2000)) == ErrorCode::Busy);
  REQUIRE(guest.ram.empty());
}

TEST_CASE("where patches are, readers ask; the bytes round them are still mapped", "[ram][patch]") {
  Shared guest;
  guest.answering = false;
  guest.patch(guest.agent, 0x3010, std::vector<std::byte>(4));
  REQUIRE(std::get<RamPatched>(guest.ram.at(0)).on);  // before it is there
  guest.answer_all();
  REQUIRE_FALSE(guest.mapped(0x3000, 0x11));
  REQUIRE_FALSE(guest.mapped(0x3013, 1));
  REQUIRE(guest.mapped(0x3014, 1));
  REQUIRE(guest.mapped(0x3000, 0x10));
  guest.answer_all();
  guest.unpatch(guest.agent, 0x3010, 4);
  REQUIRE_FALSE(guest.mapped(0x3010, 1));  // it is not off yet
  guest.answer_all();
  REQUIRE_FALSE(std::get<RamPatched>(guest.ram.back()).on);
  REQUIRE(guest.mapped(0x3010, 1));
}

TEST_CASE("after a change of the map reads go to the hypervisor until the new one is known", "[ram]") {
  Shared guest;
  guest.answering = false;
  MemoryMapChanged change;
  change.max_gpa = kGuestRam;
  change.slot = {0x10000, 0x1000, 0, KVMI_SLOT_READ_ONLY, 0};
  guest.step([&](Effects& out) { guest.machine.on_hypervisor_message(Seq{0}, Upward{change}, guest.now, out); });
  REQUIRE(std::holds_alternative<RamMapChanged>(guest.ram.back()));
  REQUIRE_FALSE(guest.mapped(0x1000, 1));
  guest.answer_all();
  REQUIRE(guest.mapped(0x1000, 1));
}

TEST_CASE("GRANT_MEMORY is served where RAM is shared, to whom policy gives it, and taken back", "[ram]") {
  Shared guest;
  REQUIRE(guest.machine.commands_for(full_grant()).has(CommandId::GrantMemory));
  guest.command(guest.agent, GrantMemory{});
  REQUIRE(std::get<GrantRam>(guest.ram.at(0)).agent == guest.agent);
  Grant grant = full_grant();
  grant.commands.bits &= ~KVMI_COMMAND_BIT(KVMI_MSG_GRANT_MEMORY);
  guest.step([&](Effects& out) { guest.machine.on_grant_changed(guest.agent, grant, guest.now, out); });
  REQUIRE(std::get<RevokeRam>(guest.ram.back()).agent == guest.agent);
  REQUIRE(guest.last_notice(guest.agent, NoticeKind::Revoked) != nullptr);
  REQUIRE(guest.error_of(guest.agent, guest.command(guest.agent, GrantMemory{})) == ErrorCode::NotPermitted);
}

TEST_CASE("GRANT_MEMORY without shared RAM is refused by name", "[ram]") {
  Guest guest;
  const AgentId agent = guest.attach();
  REQUIRE(guest.error_of(agent, guest.command(agent, GrantMemory{})) == ErrorCode::NotSupported);
  REQUIRE_FALSE(guest.machine.commands_for(full_grant()).has(CommandId::GrantMemory));
}

}  // namespace kvmid::core::testing
