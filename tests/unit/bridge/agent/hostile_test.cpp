// SPDX-License-Identifier: GPL-2.0-or-later
//
// Rights and patches that are taken away while something waits for them, and tools that do not wait for anything.

#include "rig.h"

using namespace kvmid;
using namespace kvmid::bridge::test;
using kvmid::bridge::ToolRights;

namespace {

void revoke(Rig& rig) { rig.bridge.deliver(Notice{.kind = NoticeKind::Revoked}, rig.wire); }

ToolRights without_pauses() {
  auto rights = every_right();
  rights.commands.bits &= ~KVMI_COMMAND_BIT(KVMI_MSG_PAUSE_VCPU);
  return rights;
}

}  // namespace

TEST_CASE("a pause that is waited for when policy takes pauses away", "[agent]") {
  Rig rig(DialectId::V7);
  const auto seq = rig.send(kvmi1::PauseVcpu{kVcpu0, true});
  SECTION("after the core said yes") {
    rig.serve<PauseVcpu>();
    rig.serve<GetRegisters>(GetRegistersReply{});
    revoke(rig);  // of something else
    CHECK(rig.told().empty());
    rig.bridge.set_rights(without_pauses());
    revoke(rig);
  }
  SECTION("before it") {
    rig.bridge.set_rights(without_pauses());
    revoke(rig);
    CHECK(rig.told().empty());
    rig.serve<PauseVcpu>();
  }
  CHECK(rig.error_of(seq) == kEperm);
  // And what is behind it is answered.
  const auto get = rig.send(kvmi1::GetXcr{kVcpu1, 0});
  rig.serve<GetXcr>(GetXcrReply{7});
  CHECK(rig.error_of(get) == 0);
}

TEST_CASE("a breakpoint that may have been withdrawn is asked for again", "[agent]") {
  Rig rig(DialectId::V7);
  const auto cc = bytes_of({0xcc});
  const auto write = [&] { return rig.send(kvmi1::WritePhysical{Gpa{0x3010}, cc}); };
  auto seq = write();
  rig.serve<WritePhysical>(WritePhysicalReply{1});
  CHECK(rig.error_of(seq) == 0);
  CHECK(rig.error_of(write()) == 0);  // it is there
  CHECK(rig.idle());

  revoke(rig);  // the hypervisor cannot step over it, say: this tool's breakpoint is none any more
  seq = write();
  CHECK(rig.serve_refused<WritePhysical>(ErrorCode::NotSupported).flags == KVMI_WRITE_PATCH);
  CHECK(rig.error_of(seq) == kEopnotsupp);
  seq = write();
  CHECK(rig.serve<WritePhysical>(WritePhysicalReply{2}).flags == KVMI_WRITE_PATCH);
  CHECK(rig.error_of(seq) == 0);
  CHECK(rig.error_of(write()) == 0);
  CHECK(rig.idle());
}

TEST_CASE("nothing is served before it is known how many vCPUs there are", "[agent]") {
  for (const auto dialect : {DialectId::Rfc2017, DialectId::V6, DialectId::V7, DialectId::V12}) {
    CAPTURE(kvmi1::name_of(dialect));
    bridge::AgentBridge bridge({dialect}, every_right());
    const auto& codec = kvmi1::codec(dialect);
    const kvmi1::Command to_all = dialect == DialectId::Rfc2017 ? kvmi1::Command{kvmi1::InjectBreakpoint{kAllVcpus}}
                                                                : kvmi1::Command{kvmi1::GetXsave{kAllVcpus}};
    ByteBuffer sent;
    codec.encode(to_all, Seq{9}, sent);
    kvmi_msg_hdr header;
    std::memcpy(&header, sent.data(), sizeof header);
    ByteBuffer wire;
    REQUIRE(bridge.received(Frame{header.id, Seq{9}, Bytes(sent).subspan(sizeof header)}, wire));
    const auto first = bridge.down().take();
    REQUIRE(std::holds_alternative<GetGuestInfo>(std::get<Command>(first.message)));
    CHECK(bridge.down().empty());
    CHECK(wire.empty());
    GetGuestInfoReply facts;
    facts.vcpu_count = 2;
    bridge.deliver(CommandReply{KVMI_MSG_GET_GUEST_INFO, {}, {}, facts}, first.seq, wire);
    CHECK(bridge.down().empty());
    REQUIRE(wire.size() == sizeof header + 8);
    std::int32_t error = 0;
    std::memcpy(&error, wire.data() + sizeof header, sizeof error);
    CHECK(error == kEinval);
  }
}

TEST_CASE("a tool whose single-stepping was taken away may inject again", "[agent]") {
  Rig rig(DialectId::V12);
  const kvmi1::InjectException injection{kVcpu0, 3, false, 0, 0};
  rig.send(kvmi1::ControlSinglestep{kVcpu0, true});
  rig.serve<ControlEvents>(ControlEventsReply{});
  rig.serve<ControlSinglestep>();
  rig.told();
  CHECK(rig.error_of(rig.send(injection)) == kEbusy);
  auto rights = every_right();
  rights.commands.bits &= ~KVMI_COMMAND_BIT(KVMI_MSG_CONTROL_SINGLESTEP);
  rig.bridge.set_rights(rights);
  revoke(rig);
  const auto seq = rig.send(injection);
  rig.serve<ControlEvents>(ControlEventsReply{});
  rig.serve<InjectException>();
  CHECK(rig.error_of(seq) == 0);
}
