// SPDX-License-Identifier: GPL-2.0-or-later
#include <array>
#include <catch2/catch.hpp>

#include "tests/unit/core/core_harness.h"

namespace kvmid::core::testing {

TEST_CASE("a forwarded command comes back to who asked, under the seq that it chose", "[forward]") {
  Guest guest;
  const AgentId a = guest.attach();
  const AgentId b = guest.attach();
  guest.answering = false;
  const Seq of_a = guest.command(a, GetCpuid{VcpuId{0}, 1, 0});
  const Seq of_b = guest.command(b, GetCpuid{VcpuId{1}, 2, 0});
  REQUIRE(guest.unanswered[0].seq != guest.unanswered[1].seq);
  const Seq second = guest.unanswered[1].seq;
  guest.reply(second, CommandReply{KVMI_MSG_GET_CPUID, {}, {}, GetCpuidReply{5, 6, 7, 8}});
  REQUIRE(std::get<GetCpuidReply>(guest.answer_to(b, of_b)->reply.body).eax == 5);
  REQUIRE(guest.answer_to(a, of_a) == nullptr);
  REQUIRE(guest.requests_open(b) == 0);
  REQUIRE(guest.requests_open(a) == 1);
}

TEST_CASE("GET_REGISTERS with MSRs is answered with as many", "[forward]") {
  // Any MSR asked for was taken for a breach of the protocol once: the link was closed.
  Guest guest;
  const AgentId agent = guest.attach();
  const std::vector<std::uint32_t> msrs{0xc0000082, 0xc0000100, 0x10};
  const Seq seq = guest.command(agent, GetRegisters{VcpuId{0}, std::span<const std::uint32_t>(msrs)});
  REQUIRE_FALSE(guest.closed);
  REQUIRE(guest.error_of(agent, seq) == ErrorCode::None);
  REQUIRE(guest.error_of(agent, guest.command(agent, GetRegisters{VcpuId{0}, {}})) == ErrorCode::None);
}

TEST_CASE("answers that could not fit into a message are refused before they are asked for", "[forward][hostile]") {
  Guest guest;
  const AgentId agent = guest.attach();
  const std::vector<std::uint32_t> msrs(16000);
  REQUIRE(guest.error_of(agent, guest.command(agent, GetRegisters{VcpuId{0}, std::span<const std::uint32_t>(msrs)})) ==
          ErrorCode::TooBig);
  std::vector<kvmi_read_range> ranges(2, {0, 0xffffffff, 0});
  const auto read = [&] {
    return guest.error_of(
        agent, guest.command(agent, ReadPhysical{AddressSpace::Normal, std::span<const kvmi_read_range>(ranges)}));
  };
  REQUIRE(read() == ErrorCode::TooBig);
  ranges = {{0, KVMI_MAX_PAYLOAD - 16, 0}};
  REQUIRE(read() == ErrorCode::None);
  ranges.push_back({0, 1, 0});
  REQUIRE(read() == ErrorCode::TooBig);
}

TEST_CASE("commands over the quota are answered EBUSY, and the account returns to zero", "[forward][quota]") {
  Guest guest;
  Grant grant = full_grant();
  grant.quota.requests_max = 3;
  const AgentId agent = guest.attach(grant);
  guest.answering = false;
  for (int i = 0; i < 2; ++i) guest.command(agent, GetCpuid{});
  guest.subscribe(agent, only(EventKind::Cr));
  REQUIRE(guest.error_of(agent, guest.command(agent, GetCpuid{})) == ErrorCode::Busy);
  REQUIRE(guest.error_of(agent, guest.subscribe(agent, only(EventKind::Msr))) == ErrorCode::Busy);
  REQUIRE(guest.requests_open(agent) == 3);
  guest.answer_all();
  REQUIRE(guest.requests_open(agent) == 0);
  guest.answering = true;
  REQUIRE(guest.error_of(agent, guest.command(agent, GetCpuid{})) == ErrorCode::None);
}

TEST_CASE("a hypervisor's error goes through with its words", "[forward]") {
  Guest guest;
  const AgentId agent = guest.attach();
  guest.refuse = [](const auto&) { return ErrorCode::Fault; };
  const Seq seq = guest.command(agent, TranslateGva{VcpuId{0}, Gva{1}});
  REQUIRE(guest.error_of(agent, seq) == ErrorCode::Fault);
  REQUIRE(guest.answer_to(agent, seq)->text == "the model refuses");
}

TEST_CASE("what policy or hypervisor do not have is refused and not in the mask", "[forward]") {
  Guest guest;
  Grant grant = full_grant();
  grant.commands.bits = KVMI_COMMAND_BIT(KVMI_MSG_GET_CPUID) | KVMI_COMMAND_BIT(KVMI_MSG_GET_XCR);
  grant.events = events({EventKind::Cr, EventKind::Trap});
  guest.lose_hypervisor();
  guest.version.commands.bits = KVMI_COMMAND_BIT(KVMI_MSG_GET_CPUID);
  guest.version.events.bits = KVMI_EVENT_BIT(KVMI_EVENT_CR) | (std::uint64_t{1} << 50);
  guest.connect();
  const AgentId agent = guest.attach(grant);
  REQUIRE(guest.error_of(agent, guest.command(agent, ShutdownGuest{})) == ErrorCode::NotPermitted);
  REQUIRE(guest.error_of(agent, guest.command(agent, GetXcr{})) == ErrorCode::NotSupported);
  REQUIRE(guest.error_of(agent, guest.command(agent, GetCpuid{VcpuId{2}, 0, 0})) == ErrorCode::Invalid);
  const Seq seq = guest.command(agent, GetVersion{});
  const auto& version = std::get<GetVersionReply>(guest.answer_to(agent, seq)->reply.body);
  REQUIRE(version.commands.bits == (KVMI_COMMAND_BIT(KVMI_MSG_GET_CPUID) | KVMI_COMMAND_BIT(KVMI_MSG_GET_VERSION) |
                                    KVMI_COMMAND_BIT(KVMI_MSG_GET_GUEST_INFO)));
  REQUIRE(version.events == only(EventKind::Cr));
  const Seq info = guest.command(agent, GetGuestInfo{});
  REQUIRE(std::get<GetGuestInfoReply>(guest.answer_to(agent, info)->reply.body).vcpu_count == 2);
}

TEST_CASE("an unknown message is answered ENOSYS, a malformed command EINVAL with the decoder's words",
          "[forward][hostile]") {
  Guest guest;
  const AgentId agent = guest.attach();
  guest.step([&](Effects& out) {
    guest.machine.on_agent_message(agent, Seq{7}, Downward{UnknownMessage{500}}, guest.now, out);
  });
  REQUIRE(guest.error_of(agent, Seq{7}) == ErrorCode::NotServed);
  REQUIRE(guest.answer_to(agent, Seq{7})->reply.id == 500);
  guest.step([&](Effects& out) {
    guest.machine.on_agent_malformed(agent, Seq{8}, DecodeError{DecodeErrc::Truncated, KVMI_MSG_GET_CPUID, 0}, "cut",
                                     guest.now, out);
  });
  REQUIRE(guest.error_of(agent, Seq{8}) == ErrorCode::Invalid);
  REQUIRE(guest.answer_to(agent, Seq{8})->text == "cut");
}

TEST_CASE("a write with expected bytes is the hypervisor's to compare", "[forward]") {
  Guest guest;
  const AgentId agent = guest.attach();
  const std::vector<std::byte> data(4);
  const auto write = [&] {
    return guest.command(agent, WritePhysical{Gpa{0}, AddressSpace::Normal, KVMI_WRITE_EXPECT, 0, data, data});
  };
  REQUIRE(guest.error_of(agent, write()) == ErrorCode::None);
  const auto* sent = std::get_if<WritePhysical>(&guest.to_hypervisor.back().command);
  REQUIRE(sent != nullptr);
  REQUIRE(sent->flags == KVMI_WRITE_EXPECT);
  REQUIRE(sent->expected.size() == data.size());
  guest.refuse = [](const ToHypervisor&) { return ErrorCode::Stale; };
  REQUIRE(guest.error_of(agent, write()) == ErrorCode::Stale);
}

TEST_CASE("the memory map is the hypervisor's word", "[forward]") {
  Guest guest;
  const AgentId agent = guest.attach();
  const AddressSpace space = GENERATE(AddressSpace::Normal, AddressSpace::Smm);
  const Seq seq = guest.command(agent, GetMemoryMap{space});
  REQUIRE(guest.error_of(agent, seq) == ErrorCode::None);
  const auto& slots = guest.answer_to(agent, seq)->slots;
  REQUIRE(slots.size() == 1);
  REQUIRE(slots[0].bytes == kGuestRam);
  REQUIRE(slots[0].address_space == static_cast<std::uint16_t>(space));
  REQUIRE(guest.sent<GetMemoryMap>() == 1);
  REQUIRE(guest.requests_open(agent) == 0);
}

TEST_CASE("the memory map is offered where the hypervisor serves it and policy allows it", "[forward]") {
  Guest guest;
  const auto offered = [&](AgentId agent) {
    const Seq seq = guest.command(agent, GetVersion{});
    return std::get<GetVersionReply>(guest.answer_to(agent, seq)->reply.body).commands.has(CommandId::GetMemoryMap);
  };
  const AgentId agent = guest.attach();
  REQUIRE(offered(agent));

  Grant grant = full_grant();
  grant.commands.bits &= ~KVMI_COMMAND_BIT(KVMI_MSG_GET_MEMORY_MAP);
  const AgentId restricted = guest.attach(grant);
  REQUIRE_FALSE(offered(restricted));
  REQUIRE(guest.error_of(restricted, guest.command(restricted, GetMemoryMap{})) == ErrorCode::NotPermitted);

  guest.lose_hypervisor();
  guest.version.commands.bits &= ~KVMI_COMMAND_BIT(KVMI_MSG_GET_MEMORY_MAP);
  guest.connect();
  REQUIRE_FALSE(offered(agent));
  REQUIRE(guest.error_of(agent, guest.command(agent, GetMemoryMap{})) == ErrorCode::NotSupported);
  REQUIRE(guest.sent<GetMemoryMap>() == 0);
}

TEST_CASE("a slot of another address space than asked costs the hypervisor its link", "[forward][hostile]") {
  Guest guest;
  const AgentId agent = guest.attach();
  guest.answering = false;
  const Seq asked = guest.command(agent, GetMemoryMap{AddressSpace::Smm});
  const std::array<kvmi_memory_slot, 2> slots{{{0, kPageSize, 1, 0, 0}, {kPageSize, kPageSize, 0, 0, 0}}};
  guest.reply(guest.unanswered.front().seq,
              CommandReply{KVMI_MSG_GET_MEMORY_MAP, {}, {}, GetMemoryMapReply{std::span<const kvmi_memory_slot>(slots)}});
  REQUIRE(guest.closed);
  REQUIRE(guest.error_of(agent, asked) == ErrorCode::NoDevice);
}

TEST_CASE("an exception that cannot be delivered is refused before the hypervisor sees it", "[forward]") {
  Guest guest;
  const AgentId agent = guest.attach();
  REQUIRE(guest.error_of(agent, guest.command(agent, InjectException{VcpuId{0}, 32, false, 0, 0})) ==
          ErrorCode::Invalid);
  REQUIRE(guest.error_of(agent, guest.command(agent, InjectException{VcpuId{0}, 14, false, 0, 0})) ==
          ErrorCode::Invalid);
  REQUIRE(guest.sent<InjectException>() == 0);
  REQUIRE(guest.error_of(agent, guest.command(agent, InjectException{VcpuId{0}, 3, false, 0, 0})) == ErrorCode::None);
}

TEST_CASE("staged registers that no place is left for are reported, and the event is answered", "[forward][hostile]") {
  Guest guest;
  const AgentId agent = guest.attach();
  guest.subscribe(agent, only(EventKind::Hypercall));
  guest.answering = false;
  for (unsigned i = 0; i < kOpenForRegistersMax + 5; ++i) {
    const Seq seq = guest.event(0);
    guest.command(agent, SetRegisters{VcpuId{0}, {}});
    guest.vote(agent, Action::Allow);
    REQUIRE(guest.verdict(seq) != nullptr);
    guest.to_agents.clear();
  }
  REQUIRE(guest.sent<SetRegisters>() == kOpenForRegistersMax);
  REQUIRE(guest.reports.back().fact == Fact::Decided);
}

}  // namespace kvmid::core::testing
