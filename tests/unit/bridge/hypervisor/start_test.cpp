// SPDX-License-Identifier: GPL-2.0-or-later
//
// A link comes up: what is spoken, what is allowed, what the guest has.

#include "tests/unit/bridge/hypervisor/scripted_hypervisor.h"

namespace kvmid::bridge::test {

using kvmi1::DialectId;

TEST_CASE("bridge: the dialect of a hypervisor is found by its version", "[hypervisor]") {
  for (const DialectId dialect : kFindable) {
    CAPTURE(kvmi1::name_of(dialect));
    Hypervisor host(dialect, false);
    CHECK_FALSE(host.bridge->dialect());
    CHECK(host.bridge->payload_max() == 8184);
    const Answer answer = host.ask(GetVersion{});
    REQUIRE(answer.error() == ErrorCode::None);
    CHECK(host.bridge->dialect() == dialect);
    const auto& version = answer.body<GetVersionReply>();
    CHECK(version.version == KVMI_VERSION);
    CHECK(version.max_payload == KVMI_MAX_PAYLOAD);
    CHECK(version.commands.has(CommandId::ReadPhysical));
    CHECK(version.commands.has(CommandId::TranslateGva) == (dialect != DialectId::V6));
    CHECK(version.commands.has(CommandId::ControlSinglestep) == (dialect != DialectId::V6));
    CHECK(version.events.has(EventKind::Singlestep) == (dialect != DialectId::V6));
    CHECK(version.events.has(EventKind::Cpuid) == (dialect == DialectId::V7));
    CHECK(version.events.has(EventKind::CreateVcpu) == (dialect != DialectId::V12));
    CHECK(version.events.has(EventKind::Unhook));
    CHECK_FALSE(version.events.has(EventKind::Access));
    CHECK_FALSE(version.commands.has(CommandId::ShutdownGuest));
    CHECK_FALSE(version.commands.has(CommandId::GetMemoryMap));
    // Every question is asked before the first is answered: the slowest hypervisor costs two round trips.
    CHECK(host.all<kvmi1::CheckCommand>().size() > 20);
    CHECK(host.all<kvmi1::CheckEvent>().size() > 10);
  }
}

TEST_CASE("bridge: the facts of a guest", "[hypervisor]") {
  for (const DialectId dialect : {DialectId::V6, DialectId::V7, DialectId::V12, DialectId::Rfc2017}) {
    CAPTURE(kvmi1::name_of(dialect));
    Hypervisor host(dialect);
    CHECK(host.bridge->dialect() == dialect);
    REQUIRE(host.ask(GetVersion{}).error() == ErrorCode::None);
    host.log.clear();
    const Answer answer = host.ask(GetGuestInfo{});
    const auto& info = answer.body<GetGuestInfoReply>();
    CHECK(info.vcpu_count == 2);
    CHECK(info.arch == KVMI_ARCH_X86);
    CHECK(info.tsc_hz == 2'000'000'000);
    CHECK(info.max_gpa == Hypervisor::kMemoryBytes);
    CHECK(info.physical_address_bits == (dialect == DialectId::Rfc2017 ? 46 : 39));
    CHECK(info.linear_address_bits == 48);
    CHECK_FALSE(info.execute_only);
    // UNHOOK is asked for with the first that the core can hear of it, by nobody else.
    const auto vm_events = host.all<kvmi1::ControlVmEvents>();
    REQUIRE(vm_events.size() == (dialect == DialectId::Rfc2017 ? 0 : 1));
    if (!vm_events.empty()) CHECK((vm_events[0]->event == host.number(EventKind::Unhook) && vm_events[0]->enable));
    host.log.clear();
    CHECK(host.ask(GetGuestInfo{}).error() == ErrorCode::None);
    CHECK(host.log.empty());
    CHECK(host.ask(GetVersion{}).error() == ErrorCode::None);
  }
}

TEST_CASE("bridge: what rfc2017 is enough for", "[hypervisor]") {
  Hypervisor host(DialectId::Rfc2017);
  const Answer answer = host.ask(GetVersion{});
  const auto& version = answer.body<GetVersionReply>();
  for (const CommandId has :
       {CommandId::GetRegisters, CommandId::SetRegisters, CommandId::ReadPhysical, CommandId::WritePhysical,
        CommandId::ControlEvents, CommandId::ControlCr, CommandId::ControlMsr, CommandId::SetPageAccess,
        CommandId::GetPageAccess, CommandId::InjectException, CommandId::ShutdownGuest}) {
    CAPTURE(name_of(has));
    CHECK(version.commands.has(has));
  }
  for (const CommandId lacks : {CommandId::PauseVcpu, CommandId::GetCpuid, CommandId::TranslateGva, CommandId::GetXsave,
                                CommandId::ControlSinglestep, CommandId::GetXcr}) {
    CAPTURE(name_of(lacks));
    CHECK_FALSE(version.commands.has(lacks));
  }
  CHECK(version.events.bits ==
        (KVMI_EVENT_BIT(KVMI_EVENT_CR) | KVMI_EVENT_BIT(KVMI_EVENT_MSR) | KVMI_EVENT_BIT(KVMI_EVENT_XSETBV) |
         KVMI_EVENT_BIT(KVMI_EVENT_BREAKPOINT) | KVMI_EVENT_BIT(KVMI_EVENT_HYPERCALL) |
         KVMI_EVENT_BIT(KVMI_EVENT_PAGE_FAULT) | KVMI_EVENT_BIT(KVMI_EVENT_TRAP)));
  CHECK(host.bridge->payload_max() > 8184);
}

TEST_CASE("bridge: what the hypervisor forbids is not offered", "[hypervisor]") {
  Hypervisor host(DialectId::V12);
  SECTION("a command") {
    host.denied_commands = {host.number(kvmi1::kind_of<kvmi1::TranslateGva>)};
    const Answer answer = host.ask(GetVersion{});
    const auto& version = answer.body<GetVersionReply>();
    CHECK_FALSE(version.commands.has(CommandId::TranslateGva));
    CHECK(version.commands.has(CommandId::ReadPhysical));
    REQUIRE(host.ask(GetGuestInfo{}).error() == ErrorCode::None);
    host.log.clear();
    CHECK(host.ask(TranslateGva{VcpuId{0}, Gva{0x1000}}).error() == ErrorCode::NotSupported);
    CHECK(host.log.empty());
  }
  SECTION("an event, and the command that is nothing without it") {
    host.denied_events = {host.number(EventKind::Pause), host.number(EventKind::Trap), host.number(EventKind::Msr)};
    const Answer answer = host.ask(GetVersion{});
    const auto& version = answer.body<GetVersionReply>();
    CHECK_FALSE(version.events.has(EventKind::Pause));
    CHECK_FALSE(version.events.has(EventKind::Msr));
    CHECK_FALSE(version.commands.has(CommandId::PauseVcpu));
    CHECK_FALSE(version.commands.has(CommandId::InjectException));
  }
  SECTION("the command that tells of an event") {
    host.denied_commands = {host.number(kvmi1::kind_of<kvmi1::ControlCr>),
                            host.number(kvmi1::kind_of<kvmi1::ControlVmEvents>)};
    const Answer answer = host.ask(GetVersion{});
    const auto& version = answer.body<GetVersionReply>();
    CHECK_FALSE(version.events.has(EventKind::Cr));
    CHECK_FALSE(version.events.has(EventKind::Unhook));
    REQUIRE(host.ask(GetGuestInfo{}).error() == ErrorCode::None);
    CHECK(host.all<kvmi1::ControlVmEvents>().empty());
  }
  SECTION("single step, where the processor does not have it") {
    host.singlestep = false;
    const Answer answer = host.ask(GetVersion{});
    const auto& version = answer.body<GetVersionReply>();
    CHECK_FALSE(version.commands.has(CommandId::ControlSinglestep));
    CHECK_FALSE(version.events.has(EventKind::Singlestep));
  }
}

TEST_CASE("bridge: facts that a vCPU which has not started cannot tell", "[hypervisor]") {
  Hypervisor host(DialectId::V7);
  host.refuse = [](const kvmi1::Command& command) -> std::int32_t {
    const bool asks_vcpu =
        std::holds_alternative<kvmi1::GetVcpuInfo>(command) || std::holds_alternative<kvmi1::GetCpuid>(command);
    if (asks_vcpu) return -kvmi1::kEagain;
    return std::holds_alternative<kvmi1::GetMaxGfn>(command) ? -kvmi1::kEperm : 0;
  };
  REQUIRE(host.ask(GetVersion{}).error() == ErrorCode::None);
  const Answer answer = host.ask(GetGuestInfo{});
  const auto& info = answer.body<GetGuestInfoReply>();
  CHECK(info.tsc_hz == 0);
  CHECK(info.physical_address_bits == 46);
  CHECK(info.linear_address_bits == 48);
  CHECK(info.max_gpa == std::uint64_t{1} << 46U);  // not known: what can be addressed
}

TEST_CASE("bridge: links that do not come up", "[hypervisor]") {
  SECTION("no dialect answers so") {
    Hypervisor host(DialectId::V7, false);
    host.send(GetVersion{});
    ByteVector frame(8 + 12);
    frame[0] = std::byte{2};
    frame[2] = std::byte{12};
    std::memcpy(frame.data() + 4, &host.open.front().seq.value, 4);
    CHECK_FALSE(host.receive(frame));
    CHECK(host.broken.find("12 bytes") != std::string::npos);
  }
  SECTION("something else than the answer") {
    Hypervisor host(DialectId::V7, false);
    host.send(GetVersion{});
    CHECK_FALSE(
        host.answer(host.number(kvmi1::kind_of<kvmi1::GetGuestInfo>), host.take().seq, kvmi1::GetGuestInfoReply{1, 0}));
    CHECK(host.broken.find("does not answer GET_VERSION") != std::string::npos);
  }
  SECTION("before it was asked") {
    Hypervisor host(DialectId::V7, false);
    CHECK_FALSE(host.answer(2, Seq{1}, kvmi1::GetVersionReply{}));
  }
  SECTION("it does not say how many vCPUs there are") {
    Hypervisor host(DialectId::V12);
    host.refuse = [](const kvmi1::Command& command) -> std::int32_t {
      return std::holds_alternative<kvmi1::GetGuestInfo>(command) ? -kvmi1::kEperm : 0;
    };
    host.send(GetVersion{});
    CHECK_FALSE(host.serve_all());
    CHECK(host.broken.find("of v12") != std::string::npos);
    CHECK(host.broken.find("EPERM") != std::string::npos);
  }
  SECTION("it has none") {
    Hypervisor host(DialectId::V12, true, 0);
    host.send(GetVersion{});
    CHECK_FALSE(host.serve_all());
    CHECK(host.broken.find("0 vCPUs") != std::string::npos);
  }
  SECTION("it refuses GET_VERSION") {
    Hypervisor host(DialectId::V7);
    host.refuse = [](const kvmi1::Command&) { return -kvmi1::kEnosys; };
    host.send(GetVersion{});
    CHECK_FALSE(host.serve_all());
    CHECK(host.broken.find("GET_VERSION") != std::string::npos);
  }
  SECTION("it sends events before the core can know of them") {
    Hypervisor host(DialectId::V7);
    REQUIRE(host.ask(GetVersion{}).error() == ErrorCode::None);
    host.event(host.make_event(PauseData{}));
    CHECK(host.broken.find("before any was asked for") != std::string::npos);
  }
}

TEST_CASE("bridge: commands that come too early, or twice", "[hypervisor]") {
  Hypervisor host(DialectId::V7);
  CHECK(host.ask(GetRegisters{VcpuId{0}, {}}).error() == ErrorCode::NoDevice);
  CHECK(host.ask(GetGuestInfo{}).error() == ErrorCode::NoDevice);
  host.send(GetVersion{});
  const Seq second = host.send(GetVersion{});
  const Answer refused = host.take_answer();
  CHECK(refused.passed.seq == second);
  CHECK(refused.error() == ErrorCode::Busy);
  REQUIRE(host.serve_all());
  CHECK(host.take_answer().error() == ErrorCode::None);
}

TEST_CASE("bridge: what no hypervisor of these dialects has", "[hypervisor]") {
  Hypervisor host(DialectId::V7);
  host.come_up();
  CHECK(host.ask(ShutdownGuest{}).error() == ErrorCode::NotSupported);
  CHECK(host.ask(GetMemoryMap{}).error() == ErrorCode::NotSupported);
  CHECK(host.log.empty());
}

}  // namespace kvmid::bridge::test
