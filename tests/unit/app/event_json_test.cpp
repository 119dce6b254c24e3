// SPDX-License-Identifier: GPL-2.0-or-later
#include "daemon/app/event_json.h"

#include <catch2/catch.hpp>

using namespace kvmid;
using namespace kvmid::app;
using Json = nlohmann::json;

namespace {

constexpr auto kTime = std::chrono::system_clock::time_point{std::chrono::microseconds{1714564800000123}};

io::AuditRecord record_of(io::AuditKind kind) {
  io::AuditRecord record;
  record.kind = kind;
  record.time = kTime;
  return record;
}
/// The line as JSON, after its shape was looked at.
Json parsed(const std::string& line) {
  REQUIRE(line.find('\n') == line.size() - 1);
  return Json::parse(line);
}
Json wanted(const char* kind, const char* rest) {
  Json json{{"v", 1}, {"time", "2024-05-01T12:00:00.000123Z"}, {"kind", kind}};
  json.update(Json::parse(rest));
  return json;
}

}  // namespace

TEST_CASE("an audit line has a version, a time and a kind, in front", "[audit]") {
  const std::string line = audit_line(record_of(io::AuditKind::ConfigReloaded));
  REQUIRE(line == R"({"v":1,"time":"2024-05-01T12:00:00.000123Z","kind":"config_reloaded","agents":0,"agents_closed":0})"
                  "\n");
}

TEST_CASE("the line of an agent that attached says who it is and what let it in", "[audit]") {
  auto record = record_of(io::AuditKind::AgentAttached);
  record.agent = AgentId{7};
  record.agent_name = "guard";
  record.guest = Uuid{};
  record.guest->bytes[15] = 1;
  record.guest_name = "web1";
  record.peer = core::Peer{.pid = 10, .uid = 11, .gids = {12, 13}, .cid = {}};
  record.rule = "root";
  record.role = "decider";
  REQUIRE(parsed(audit_line(record)) ==
          wanted("agent_attached", R"({"agent":7,"name":"guard","guest":"00000000-0000-0000-0000-000000000001",
              "guest_name":"web1","pid":10,"uid":11,"gid":12,"policy":"root","role":"decider"})"));
}

TEST_CASE("the line of a command has what that command touches", "[audit]") {
  auto record = record_of(io::AuditKind::CommandGranted);
  record.agent = AgentId{2};
  record.seq = Seq{9};
  record.gpa = 0x1000;
  record.amount = 16;
  SECTION("WRITE_PHYSICAL") {
    record.command = CommandId::WritePhysical;
    REQUIRE(parsed(audit_line(record)) == wanted("command_granted",
        R"({"agent":2,"command":"WRITE_PHYSICAL","command_seq":9,"gpa":"0x1000","size":16})"));
  }
  SECTION("WRITE_PHYSICAL of a patch") {
    record.command = CommandId::WritePhysical;
    record.detail = KVMI_WRITE_PATCH | KVMI_WRITE_EXPECT;
    REQUIRE(parsed(audit_line(record)) == wanted("command_granted",
        R"({"agent":2,"command":"WRITE_PHYSICAL","command_seq":9,"gpa":"0x1000","size":16,"operation":"patch"})"));
    record.detail = KVMI_WRITE_UNPATCH;
    REQUIRE(parsed(audit_line(record)) == wanted("command_granted",
        R"({"agent":2,"command":"WRITE_PHYSICAL","command_seq":9,"gpa":"0x1000","size":16,"operation":"unpatch"})"));
    record.detail = KVMI_WRITE_COOKIE | KVMI_WRITE_EXPECT;  // a write like any other
    REQUIRE_FALSE(parsed(audit_line(record)).contains("operation"));
  }
  SECTION("SET_PAGE_ACCESS") {
    record.command = CommandId::SetPageAccess;
    record.detail = KVMI_PAGE_ACCESS_R | KVMI_PAGE_ACCESS_X;
    REQUIRE(parsed(audit_line(record)) == wanted("command_granted",
        R"({"agent":2,"command":"SET_PAGE_ACCESS","command_seq":9,"gpa":"0x1000","pages":16,"access":"r-x"})"));
  }
  SECTION("INJECT_EXCEPTION") {
    record.command = CommandId::InjectException;
    record.vcpu = VcpuId{1};
    record.detail = 3;
    REQUIRE(parsed(audit_line(record)) == wanted("command_granted",
        R"({"agent":2,"command":"INJECT_EXCEPTION","command_seq":9,"vcpu":1,"vector":3})"));
  }
  SECTION("PAUSE_VCPU of all") {
    record.command = CommandId::PauseVcpu;
    record.vcpu = kAllVcpus;
    REQUIRE(parsed(audit_line(record)) ==
            wanted("command_granted", R"({"agent":2,"command":"PAUSE_VCPU","command_seq":9,"vcpu":"all"})"));
  }
  SECTION("refused") {
    record.kind = io::AuditKind::CommandRefused;
    record.command = CommandId::WritePhysical;
    record.error = ErrorCode::NotPermitted;
    record.reason = "policy";
    REQUIRE(parsed(audit_line(record)) == wanted("command_refused",
        R"({"agent":2,"command":"WRITE_PHYSICAL","command_seq":9,"error":"EPERM","reason":"policy"})"));
  }
}

TEST_CASE("the line of a verdict has the event, who decided, and every vote", "[audit]") {
  auto record = record_of(io::AuditKind::Verdict);
  record.vcpu = VcpuId{0};
  record.seq = Seq{5};
  record.event_kind = EventKind::Cr;
  record.event = CrData{3, 0x1000, 0xffffffffffffffff};
  record.rip = 0x10;
  record.action = Action::Allow;
  record.decided_by = AgentId{2};
  record.votes = {{AgentId{2}, Action::Allow, false}, {AgentId{3}, Action::Allow, true}};
  record.value_by = AgentId{2};
  record.new_value = 0x2000;
  REQUIRE(parsed(audit_line(record)) == wanted("verdict", R"({"vcpu":0,"event":"cr","event_seq":5,"rip":"0x10",
      "data":{"cr":3,"old_value":"0x1000","new_value":"0xffffffffffffffff"},"action":"allow","decided_by":2,"value_by":2,
      "value":"0x2000","votes":[{"agent":2,"action":"allow","default":false},
                                {"agent":3,"action":"allow","default":true}]})"));
}

TEST_CASE("a mistake in the configuration has its path", "[audit]") {
  auto record = record_of(io::AuditKind::ConfigRefused);
  record.path = "/policy/0/deadline_ms";
  record.reason = "must be a number";
  REQUIRE(parsed(audit_line(record)) ==
          wanted("config_refused", R"({"path":"/policy/0/deadline_ms","reason":"must be a number"})"));
}

TEST_CASE("no name can break a line in two or make it no JSON", "[audit]") {
  auto record = record_of(io::AuditKind::AgentRefused);
  record.agent_name = "a\nb\"}{\xff\x01";
  REQUIRE(parsed(audit_line(record))["name"].get<std::string>().find("a\nb\"}{") == 0);
}

TEST_CASE("every kind of record and of event has a name", "[audit]") {
  for (int i = 0; i <= static_cast<int>(io::AuditKind::ConfigRefused); ++i)
    REQUIRE(name_of(static_cast<io::AuditKind>(i)) != "unknown");
}

TEST_CASE("lines that were dropped are told with their number", "[audit]") {
  REQUIRE(parsed(audit_dropped_line(12, kTime)) == wanted("lines_dropped", R"({"count":12})"));
  REQUIRE(parsed(stream_dropped_line(3)) == Json::parse(R"({"type":"dropped","count":3})"));
}

TEST_CASE("an event and its outcome in the stream have the same seq", "[stream]") {
  io::TapRecord record;
  record.time = kTime;
  record.guest = std::make_shared<io::GuestLabel>(io::GuestLabel{Uuid{}, "web1"});
  record.kind = EventKind::Msr;
  record.data = MsrData{0xc0000080, 1, 2};
  record.seq = Seq{4};
  record.rip = 0xff;
  record.cr3 = 0x1000;
  REQUIRE(parsed(stream_line(record)) == Json::parse(R"({"type":"event","time":"2024-05-01T12:00:00.000123Z",
      "guest":"00000000-0000-0000-0000-000000000000","guest_name":"web1","kind":"msr","vcpu":0,"seq":4,"rip":"0xff",
      "cr3":"0x1000","msr":"0xc0000080","old_value":"0x1","new_value":"0x2"})"));
  record.type = io::TapRecord::Type::Outcome;
  record.action = Action::Skip;
  record.decided_by = AgentId{8};
  record.held = std::chrono::microseconds(77);
  REQUIRE(parsed(stream_line(record)) == Json::parse(R"({"type":"outcome","time":"2024-05-01T12:00:00.000123Z",
      "guest":"00000000-0000-0000-0000-000000000000","guest_name":"web1","kind":"msr","vcpu":0,"seq":4,"action":"skip",
      "decided_by":8,"held_us":77})"));
  record.type = io::TapRecord::Type::GuestOff;
  record.reason = OffReason::LinkLost;
  REQUIRE(parsed(stream_line(record))["reason"] == "link_lost");
}
