// SPDX-License-Identifier: GPL-2.0-or-later
//
// Commands about vCPUs: one becomes one for each vCPU and event, or none; all are taken or none is.

#include <algorithm>
#include <numeric>

#include "tests/unit/bridge/hypervisor/scripted_hypervisor.h"

namespace kvmid::bridge::test {

using kvmi1::DialectId;

namespace {

EventSet set_of(std::initializer_list<EventKind> kinds) {
  EventSet set;
  for (const EventKind kind : kinds) set.add(kind);
  return set;
}

ControlEvents control(std::uint16_t vcpu, Operation operation, std::initializer_list<EventKind> kinds) {
  return {VcpuId{vcpu}, operation, Role::Decider, set_of(kinds)};
}

std::uint64_t enabled(const Answer& answer) {
  REQUIRE(answer.error() == ErrorCode::None);
  return answer.body<ControlEventsReply>().events.bits;
}

constexpr std::uint16_t kAll = kAllVcpus.value;

}  // namespace

TEST_CASE("bridge: a guest can be shut down where the dialect has it", "[hypervisor]") {
  Hypervisor host(DialectId::Rfc2017);
  host.come_up();
  CHECK(host.ask(ShutdownGuest{}).error() == ErrorCode::None);
  CHECK(host.all<kvmi1::ShutdownGuest>().size() == 1);
  Hypervisor other(DialectId::V12);
  other.come_up();
  CHECK(other.ask(ShutdownGuest{}).error() == ErrorCode::NotSupported);
}

TEST_CASE("bridge: a set of events is one command for each that changes", "[hypervisor]") {
  for (const DialectId dialect : kFindable) {
    CAPTURE(kvmi1::name_of(dialect));
    Hypervisor host(dialect);
    host.come_up();
    CHECK(enabled(host.ask(control(0, Operation::Enable, {EventKind::Cr, EventKind::Hypercall}))) ==
          set_of({EventKind::Cr, EventKind::Hypercall}).bits);
    auto told = host.all<kvmi1::ControlEvents>();
    REQUIRE(told.size() == 2);
    CHECK((told[0]->event == host.number(EventKind::Cr) && told[0]->enable && told[0]->vcpu == VcpuId{0}));
    CHECK((told[1]->event == host.number(EventKind::Hypercall) && told[1]->enable));
    host.log.clear();
    // What is told already is not told again.
    CHECK(enabled(host.ask(control(kAll, Operation::Enable, {EventKind::Cr}))) == set_of({EventKind::Cr}).bits);
    told = host.all<kvmi1::ControlEvents>();
    REQUIRE(told.size() == 1);
    CHECK((told[0]->event == host.number(EventKind::Cr) && told[0]->vcpu == VcpuId{1}));
    host.log.clear();
    // A set: one goes, one comes, one stays.
    CHECK(enabled(host.ask(control(0, Operation::Set, {EventKind::Cr, EventKind::Msr}))) ==
          set_of({EventKind::Cr, EventKind::Msr}).bits);
    told = host.all<kvmi1::ControlEvents>();
    REQUIRE(told.size() == 2);
    CHECK((told[0]->event == host.number(EventKind::Msr) && told[0]->enable));
    CHECK((told[1]->event == host.number(EventKind::Hypercall) && !told[1]->enable));
    host.log.clear();
    CHECK(enabled(host.ask(control(kAll, Operation::Disable, {EventKind::Cr, EventKind::Msr}))) == 0);
    CHECK(host.all<kvmi1::ControlEvents>().size() == 3);
    host.log.clear();
    CHECK(enabled(host.ask(control(kAll, Operation::Disable, {EventKind::Cr}))) == 0);
    CHECK(host.log.empty());
  }
}

TEST_CASE("bridge: events that need no telling", "[hypervisor]") {
  Hypervisor host(DialectId::V12);
  host.come_up();
  const auto quiet = {EventKind::Pause, EventKind::Trap, EventKind::Singlestep, EventKind::Unhook};
  CHECK(enabled(host.ask(control(kAll, Operation::Enable, quiet))) == set_of(quiet).bits);
  CHECK(host.log.empty());
  Hypervisor v7(DialectId::V7);
  v7.come_up();
  CHECK(enabled(v7.ask(control(0, Operation::Enable, quiet))) == set_of(quiet).bits);
  const auto told = v7.all<kvmi1::ControlEvents>();
  REQUIRE(told.size() == 1);
  CHECK(told[0]->event == v7.number(EventKind::Singlestep));
}

TEST_CASE("bridge: a new vCPU is an event of the guest", "[hypervisor]") {
  Hypervisor host(DialectId::V7);
  host.come_up();
  const auto vm = [&] { return host.all<kvmi1::ControlVmEvents>(); };
  host.ask(control(0, Operation::Enable, {EventKind::CreateVcpu}));
  REQUIRE(vm().size() == 1);
  CHECK((vm()[0]->event == host.number(EventKind::CreateVcpu) && vm()[0]->enable));
  host.ask(control(1, Operation::Enable, {EventKind::CreateVcpu}));
  CHECK(vm().size() == 1);
  host.ask(control(0, Operation::Disable, {EventKind::CreateVcpu}));
  CHECK(vm().size() == 1);
  host.ask(control(1, Operation::Disable, {EventKind::CreateVcpu}));
  REQUIRE(vm().size() == 2);
  CHECK_FALSE(vm()[1]->enable);
  // A vCPU that begins anew is told everything once more.
  host.ask(control(kAll, Operation::Enable, {EventKind::CreateVcpu, EventKind::Cr}));
  host.log.clear();
  const Seq seq = host.event(host.make_event(CreateVcpuData{}, 1));
  const Event event = host.take_event();
  host.ask(control(1, Operation::Enable, {EventKind::CreateVcpu, EventKind::Cr}));
  CHECK(vm().empty());
  const auto told = host.all<kvmi1::ControlEvents>();
  REQUIRE(told.size() == 1);
  CHECK(told[0]->vcpu == VcpuId{1});
  host.reply(event, seq, Action::Allow);
  CHECK(host.replies().size() == 1);
}

TEST_CASE("bridge: events that are refused before they are told", "[hypervisor]") {
  Hypervisor host(DialectId::V12);
  host.come_up();
  const Answer cpuid = host.ask(control(0, Operation::Enable, {EventKind::Cpuid, EventKind::Cr}));
  CHECK(cpuid.error() == ErrorCode::NotSupported);
  CHECK(cpuid.text().find("cpuid") != std::string::npos);
  CHECK(enabled(host.ask(control(0, Operation::Disable, {EventKind::Cpuid}))) == 0);
  ControlEvents observer = control(0, Operation::Enable, {EventKind::Cr});
  observer.role = Role::Observer;
  CHECK(host.ask(observer).error() == ErrorCode::NotSupported);
  CHECK(host.ask(control(2, Operation::Enable, {EventKind::Cr})).error() == ErrorCode::Invalid);
  CHECK(host.ask(ControlCr{VcpuId{0}, true, 8}).error() == ErrorCode::Invalid);
  CHECK(host.ask(ControlCr{VcpuId{0}, true, 0x100}).error() == ErrorCode::Invalid);
  CHECK(host.ask(GetXcr{VcpuId{0}, 1}).error() == ErrorCode::Invalid);
  CHECK(host.ask(GetXcr{kAllVcpus, 0}).error() == ErrorCode::Invalid);
  CHECK(host.log.empty());
}

TEST_CASE("bridge: a refused part takes the others back", "[hypervisor]") {
  Hypervisor host(DialectId::V12);
  host.come_up();
  const std::uint16_t breakpoint = host.number(EventKind::Breakpoint);
  host.refuse = [&](const kvmi1::Command& command) -> std::int32_t {
    const auto* events = std::get_if<kvmi1::ControlEvents>(&command);
    return events != nullptr && events->enable && events->event == breakpoint && events->vcpu == VcpuId{1}
               ? -kvmi1::kEbusy
               : 0;
  };
  const Answer refused = host.ask(control(kAll, Operation::Enable, {EventKind::Cr, EventKind::Breakpoint}));
  CHECK(refused.error() == ErrorCode::Busy);
  CHECK(refused.text() == "CONTROL_EVENTS (5) of v12 was refused with -16 (EBUSY)");
  auto told = host.all<kvmi1::ControlEvents>();
  REQUIRE(told.size() == 7);  // two on each of two vCPUs; then the three that were taken, off
  CHECK(std::count_if(told.begin(), told.end(), [](const auto* c) { return !c->enable; }) == 3);
  // None of it counts as told.
  host.refuse = nullptr;
  host.log.clear();
  CHECK(enabled(host.ask(control(kAll, Operation::Enable, {EventKind::Cr}))) == set_of({EventKind::Cr}).bits);
  CHECK(host.all<kvmi1::ControlEvents>().size() == 2);

  host.log.clear();
  host.refuse = [&](const kvmi1::Command& command) -> std::int32_t {
    const auto* msr = std::get_if<kvmi1::ControlMsr>(&command);
    return msr != nullptr && msr->enable && msr->vcpu == VcpuId{0} ? -kvmi1::kEperm : 0;
  };
  CHECK(host.ask(ControlMsr{kAllVcpus, true, 0x10}).error() == ErrorCode::NotPermitted);
  const auto msrs = host.all<kvmi1::ControlMsr>();
  REQUIRE(msrs.size() == 3);
  CHECK((msrs[2]->vcpu == VcpuId{1} && !msrs[2]->enable));
}

TEST_CASE("bridge: v7 has changed the event that it refuses", "[hypervisor]") {
  Hypervisor host(DialectId::V7);
  host.come_up();
  host.refuse = [](const kvmi1::Command& command) -> std::int32_t {
    const auto* events = std::get_if<kvmi1::ControlEvents>(&command);
    return events != nullptr && events->enable ? -kvmi1::kEopnotsupp : 0;
  };
  CHECK(host.ask(control(0, Operation::Enable, {EventKind::Descriptor})).error() == ErrorCode::NotSupported);
  const auto told = host.all<kvmi1::ControlEvents>();
  REQUIRE(told.size() == 2);
  CHECK_FALSE(told[1]->enable);
}

TEST_CASE("bridge: every vCPU is a command for each", "[hypervisor]") {
  for (const DialectId dialect : kFindable) {
    CAPTURE(kvmi1::name_of(dialect));
    Hypervisor host(dialect, true, 3);
    host.come_up();
    CHECK(host.ask(ControlCr{kAllVcpus, true, 3}).error() == ErrorCode::None);
    REQUIRE(host.all<kvmi1::ControlCr>().size() == 3);
    CHECK(host.all<kvmi1::ControlCr>()[2]->cr == 3);
    CHECK(host.ask(PauseVcpu{kAllVcpus}).error() == ErrorCode::None);
    REQUIRE(host.all<kvmi1::PauseVcpu>().size() == 3);
    CHECK_FALSE(host.all<kvmi1::PauseVcpu>()[0]->wait);
    CHECK(host.ask(ControlMsr{VcpuId{1}, true, 0xc0000080}).error() == ErrorCode::None);
    CHECK(host.all<kvmi1::ControlMsr>().size() == 1);
  }
}

TEST_CASE("bridge: values of a vCPU", "[hypervisor]") {
  for (const DialectId dialect : {DialectId::V7, DialectId::V12}) {
    CAPTURE(kvmi1::name_of(dialect));
    Hypervisor host(dialect);
    host.come_up();
    host.pages[0x7f000] = 0x3000;
    const Answer cpuid = host.ask(GetCpuid{VcpuId{1}, 7, 2});
    CHECK((cpuid.body<GetCpuidReply>().eax == 7 && cpuid.body<GetCpuidReply>().ebx == 2));
    const Answer xcr = host.ask(GetXcr{VcpuId{0}, 0});
    CHECK(xcr.body<GetXcrReply>().value == 7);
    const Answer xsave = host.ask(GetXsave{VcpuId{0}});
    const Bytes area = xsave.body<GetXsaveReply>().area;
    CHECK(ByteVector(area.begin(), area.end()) == bytes(4096, 0x5a));
    CHECK(host.ask(SetXsave{VcpuId{0}, area}).error() == ErrorCode::None);
    CHECK(host.ask(SetXsave{VcpuId{0}, Bytes(bytes(5000, 0))}).error() == ErrorCode::Invalid);
    const Answer translated = host.ask(TranslateGva{VcpuId{0}, Gva{0x7f000123}});
    CHECK(translated.body<TranslateGvaReply>().gpa == Gpa{0x3123});
    CHECK(translated.body<TranslateGvaReply>().page_bytes == 0);
    CHECK(translated.body<TranslateGvaReply>().access == 0);
    CHECK(host.ask(TranslateGva{VcpuId{0}, Gva{0x1234}}).error() == ErrorCode::Fault);
    CHECK(host.ask(ControlSinglestep{VcpuId{1}, true}).error() == ErrorCode::None);
    REQUIRE(host.all<kvmi1::ControlSinglestep>().size() == 1);
    CHECK(host.all<kvmi1::ControlSinglestep>()[0]->enable);
    host.refuse = [](const kvmi1::Command&) { return -kvmi1::kEnoent; };
    CHECK(host.ask(GetCpuid{VcpuId{1}, 7, 2}).error() == ErrorCode::NoEntry);
    host.refuse = [](const kvmi1::Command&) { return -kvmi1::kEagain; };
    const Answer again = host.ask(GetXcr{VcpuId{0}, 0});
    CHECK(again.error() == ErrorCode::TryAgain);
    CHECK(again.text().find("GET_XCR") == 0);
    host.refuse = [](const kvmi1::Command&) { return -kvmi1::kEopnotsupp; };
    CHECK(host.ask(SetRegisters{VcpuId{0}, {}}).error() == ErrorCode::NotSupported);
  }
}

TEST_CASE("bridge: more MSRs than a message has room for", "[hypervisor]") {
  for (const std::size_t count : {std::size_t{0}, std::size_t{481}, std::size_t{482}, std::size_t{1500}}) {
    CAPTURE(count);
    Hypervisor host(DialectId::V12);
    host.come_up();
    std::vector<std::uint32_t> indices(count);
    std::iota(indices.begin(), indices.end(), 0x10U);
    const Answer answer = host.ask(GetRegisters{VcpuId{1}, std::span<const std::uint32_t>(indices)});
    REQUIRE(answer.error() == ErrorCode::None);
    CHECK(host.all<kvmi1::GetRegisters>().size() == std::max<std::size_t>(1, (count + 480) / 481));
    const auto& body = answer.body<GetRegistersReply>();
    CHECK(body.mode == 8);
    CHECK(body.regs.rip == 0x401000);
    CHECK(body.sregs.cr3 == 0x1000);
    REQUIRE(body.msrs.size() == count);
    for (std::size_t i = 0; i < count; ++i) {
      const kvmi_x86_msr msr = body.msrs[i];
      REQUIRE((msr.index == indices[i] && msr.value == std::uint64_t{indices[i]} * 3 && msr.padding == 0));
    }
  }
  Hypervisor host(DialectId::V12);
  host.come_up();
  const std::vector<std::uint32_t> many(5000);
  CHECK(host.ask(GetRegisters{VcpuId{0}, std::span<const std::uint32_t>(many)}).error() == ErrorCode::TooBig);
}

TEST_CASE("bridge: other MSRs than asked for close the link", "[hypervisor]") {
  Hypervisor host(DialectId::V7);
  host.come_up();
  const std::vector<std::uint32_t> indices{0x10, 0x11};
  host.send(GetRegisters{VcpuId{0}, std::span<const std::uint32_t>(indices)});
  const std::vector<kvmi_x86_msr> one{{0x10, 0, 1}};
  kvmi1::GetRegistersReply reply;
  reply.msrs = std::span<const kvmi_x86_msr>(one);
  CHECK_FALSE(host.answer(host.take(), reply));
  CHECK(host.broken.find("1 MSRs where 2 were asked for") != std::string::npos);
}

TEST_CASE("bridge: events of rfc2017 are a mask", "[hypervisor]") {
  Hypervisor host(DialectId::Rfc2017);
  host.come_up();
  CHECK(enabled(host.ask(control(kAll, Operation::Enable, {EventKind::Cr, EventKind::PageFault}))) == 0x42);
  auto told = host.all<kvmi1::SetEvents>();
  REQUIRE(told.size() == 2);
  CHECK((told[0]->vcpu == VcpuId{0} && told[0]->mask == 0x42));
  CHECK((told[1]->vcpu == VcpuId{1} && told[1]->mask == 0x42));
  host.ask(control(1, Operation::Disable, {EventKind::Cr}));
  told = host.all<kvmi1::SetEvents>();
  REQUIRE(told.size() == 3);
  CHECK((told[2]->vcpu == VcpuId{1} && told[2]->mask == 0x40));
  host.refuse = [](const kvmi1::Command& command) -> std::int32_t {
    const auto* events = std::get_if<kvmi1::SetEvents>(&command);
    return events != nullptr && events->vcpu == VcpuId{1} && (events->mask & 0x80U) != 0 ? -kvmi1::kEinval : 0;
  };
  host.log.clear();
  CHECK(host.ask(control(kAll, Operation::Enable, {EventKind::Trap})).error() == ErrorCode::Invalid);
  told = host.all<kvmi1::SetEvents>();
  REQUIRE(told.size() == 3);
  CHECK((told[2]->vcpu == VcpuId{0} && told[2]->mask == 0x42));
}

TEST_CASE("bridge: rfc2017 tracks registers of the whole guest", "[hypervisor]") {
  Hypervisor host(DialectId::Rfc2017);
  host.come_up();
  const auto crs = [&] { return host.all<kvmi1::ControlGuestCr>(); };
  host.ask(ControlCr{kAllVcpus, true, 3});
  REQUIRE(crs().size() == 1);
  CHECK((crs()[0]->enable && crs()[0]->cr == 3));
  host.ask(ControlCr{VcpuId{0}, false, 3});
  CHECK(crs().size() == 1);
  host.ask(ControlCr{VcpuId{0}, false, 3});
  CHECK(crs().size() == 1);
  host.ask(ControlCr{VcpuId{1}, false, 3});
  REQUIRE(crs().size() == 2);
  CHECK_FALSE(crs()[1]->enable);
  const auto msrs = [&] { return host.all<kvmi1::ControlGuestMsr>(); };
  host.refuse = [](const kvmi1::Command&) { return -kvmi1::kEinval; };
  CHECK(host.ask(ControlMsr{VcpuId{1}, true, 0x174}).error() == ErrorCode::Invalid);
  host.refuse = nullptr;
  // It was not taken, so the next is the first again.
  CHECK(host.ask(ControlMsr{VcpuId{0}, true, 0x174}).error() == ErrorCode::None);
  CHECK(msrs().size() == 2);
}

TEST_CASE("bridge: exceptions that rfc2017 can inject", "[hypervisor]") {
  Hypervisor host(DialectId::Rfc2017);
  host.come_up();
  CHECK(host.ask(InjectException{VcpuId{1}, 3, false, 0, 0}).error() == ErrorCode::None);
  REQUIRE(host.all<kvmi1::InjectBreakpoint>().size() == 1);
  CHECK(host.ask(InjectException{VcpuId{1}, 14, true, 2, 0x5000}).error() == ErrorCode::None);
  const auto faults = host.all<kvmi1::InjectPageFault>();
  REQUIRE(faults.size() == 1);
  CHECK((faults[0]->vcpu == VcpuId{1} && faults[0]->error_code == 2 && faults[0]->gva == Gva{0x5000}));
  CHECK(host.ask(InjectException{VcpuId{1}, 6, false, 0, 0}).error() == ErrorCode::NotSupported);
}

}  // namespace kvmid::bridge::test
