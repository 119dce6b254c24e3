// SPDX-License-Identifier: GPL-2.0-or-later
#include "daemon/app/admin_json.h"

#include <catch2/catch.hpp>

using namespace kvmid;
using namespace kvmid::app;
using Json = nlohmann::ordered_json;

namespace {

io::GuestSnapshot web1() {
  io::GuestSnapshot guest;
  guest.uuid.bytes[15] = 1;
  guest.name = "web1";
  guest.dialect = "kvmi2";
  guest.shard = 1;
  guest.hypervisor.pid = 10;
  guest.hypervisor.uid = 0;
  guest.hypervisor.gids = {5, 6};
  guest.taken_at = core::TimePoint{} + std::chrono::milliseconds(1003);
  guest.info.online = true;
  guest.info.facts.vcpu_count = 2;
  guest.info.facts.max_gpa = 4096;
  guest.info.facts.tsc_hz = 1000;
  guest.commands.add(CommandId::GetVersion);
  guest.events.add(EventKind::Cr);
  guest.info.counters.events = 10;
  guest.info.vcpus.resize(2);
  guest.info.vcpus[1].waiting = true;
  guest.info.vcpus[1].event = EventKind::Cr;
  guest.info.vcpus[1].event_seq = Seq{7};
  guest.info.vcpus[1].since = core::TimePoint{} + std::chrono::milliseconds(1000);
  guest.info.vcpus[1].waits_for = {AgentId{2}};
  core::AgentInfo agent;
  agent.id = AgentId{2};
  agent.name = "guard";
  agent.rule = "root";
  agent.role = Role::Decider;
  agent.priority = 100;
  agent.deadline = std::chrono::milliseconds(100);
  agent.events.add(EventKind::Cr);
  agent.strikes = 1;
  agent.demoted.add(EventKind::Cr);
  agent.requests_open = 3;
  agent.expired = 4;
  agent.patches = 5;
  agent.filters = 2;
  agent.filtered = 600;
  guest.info.agents = {agent};
  io::AgentSnapshot connection;
  connection.info = agent;
  connection.peer.pid = 11;
  connection.peer.uid = 12;
  connection.peer.gids = {13};
  connection.queued_bytes = 14;
  guest.agents = {connection};
  return guest;
}

}  // namespace

TEST_CASE("the status is said in one object", "[admin]") {
  io::StatusSnapshot status;
  status.shards = 2;
  status.guests = 1;
  status.agents = 3;
  status.counters = {{"events", 5}, {"slow_readers", 1}};
  const auto json = status_json({"0.1.0", "/etc/kvmid.json", 42, std::chrono::seconds(9)}, status);
  REQUIRE(json == Json::parse(R"({"schema":1,"version":"0.1.0","pid":42,"uptime_s":9,"config":"/etc/kvmid.json",
      "shards":2,"guests":1,"agents":3,"counters":{"events":5,"slow_readers":1}})"));
  REQUIRE(status_json({"0.1.0", "", 42, {}}, status)["config"].is_null());
}

TEST_CASE("the list of guests has one entry each", "[admin]") {
  const std::vector guests{web1()};
  REQUIRE(guests_json(guests) == Json::parse(R"({"schema":1,"guests":[
      {"uuid":"00000000-0000-0000-0000-000000000001","name":"web1","state":"online","dialect":"kvmi2","vcpus":2,
       "agents":1,"events":10,"shard":1,"hypervisor":{"pid":10,"uid":0,"gid":5},"commands":["GET_VERSION"],
       "events_supported":["cr"]}]})"));
  REQUIRE(guests_json({}) == Json::parse(R"({"schema":1,"guests":[]})"));
}

TEST_CASE("a guest whose hypervisor is gone is away, and a vsock peer is known by its CID", "[admin]") {
  auto guest = web1();
  guest.info.online = false;
  guest.hypervisor = {};
  guest.hypervisor.cid = 3;
  const auto json = guests_json(std::span(&guest, 1))["guests"][0];
  REQUIRE(json["state"] == "away");
  REQUIRE(json["hypervisor"] == Json::parse(R"({"pid":null,"uid":null,"gid":null,"cid":3})"));
  // Before its hypervisor has answered it is not away.
  guest.info.agents.clear();
  REQUIRE(guests_json(std::span(&guest, 1))["guests"][0]["state"] == "starting");
}

TEST_CASE("one guest is said in full", "[admin]") {
  auto json = guest_json(web1());
  REQUIRE(json["counters"]["events"] == 10);
  REQUIRE(json["counters"].size() == io::named(core::GuestCounters{}).size());
  json.erase("counters");
  REQUIRE(json == Json::parse(R"({"schema":1,"uuid":"00000000-0000-0000-0000-000000000001","name":"web1",
      "state":"online","dialect":"kvmi2","vcpus":2,"agents":1,"events":10,"shard":1,
      "hypervisor":{"pid":10,"uid":0,"gid":5},"commands":["GET_VERSION"],"events_supported":["cr"],
      "arch":"x86","max_gpa":4096,"tsc_hz":1000,
      "vcpu":[{"id":0,"state":"running"},
              {"id":1,"state":"waiting","event":"cr","event_seq":7,"age_ms":3,"waits_for":[2]}],
      "agent_list":[2]})"));
}

TEST_CASE("a vCPU whose event is decided and whose answer is kept back is held", "[admin]") {
  auto guest = web1();
  guest.info.vcpus[0].held = true;
  guest.info.counters.filtered = 8;
  guest.info.counters.stepped_over = 9;
  const auto json = guest_json(guest);
  REQUIRE(json["vcpu"][0] == Json::parse(R"({"id":0,"state":"held"})"));
  REQUIRE(json["vcpu"][1]["state"] == "waiting");
  REQUIRE(json["counters"]["filtered"] == 8);
  REQUIRE(json["counters"]["stepped_over"] == 9);
}

TEST_CASE("bits of a hypervisor that name no command are not shown as commands", "[admin]") {
  auto guest = web1();
  guest.commands.bits = ~std::uint64_t{0};
  const auto json = guest_json(guest);
  REQUIRE_FALSE(json["commands"].empty());
  for (const auto& name : json["commands"]) REQUIRE(name != "unknown");
}

TEST_CASE("the list of agents has those of guests and control connections", "[admin]") {
  const std::vector guests{web1()};
  io::AgentSnapshot control;
  control.info.id = AgentId{1};
  control.info.name = "kvmictl";
  control.info.rule = "root";
  control.peer.uid = 0;
  control.control = true;
  const auto json = agents_json(guests, std::span(&control, 1));
  REQUIRE(json["schema"] == 1);
  REQUIRE(json["agents"].size() == 2);
  REQUIRE(json["agents"][0] == Json::parse(R"({"id":2,"name":"guard","guest":"00000000-0000-0000-0000-000000000001",
      "guest_name":"web1","dialect":"kvmi2","address":null,"pid":11,"uid":12,"gid":13,"role":"decider","priority":100,
      "deadline_ms":100,"events":["cr"],
      "strikes":1,"demoted":["cr"],"queued_bytes":14,"requests_open":3,"expired":4,"policy":"root","pages":0,
      "patches":5,"filters":2,"filtered":600,"pending":[{"vcpu":1,"event":"cr","event_seq":7,"age_ms":3}]})"));
  REQUIRE(json["agents"][1]["guest"].is_null());
  REQUIRE(json["agents"][1]["role"] == "control");
}

TEST_CASE("a guest and its agents each speak their own dialect, and a tool that kvmid connected to has an address",
          "[admin]") {
  auto guest = web1();
  guest.dialect = "v7";
  guest.agents[0].dialect = "v12";
  guest.agents[0].dialed = "unix:/run/hvmi.sock";
  REQUIRE(guest_json(guest)["dialect"] == "v7");
  const auto agent = agents_json(std::span(&guest, 1), {})["agents"][0];
  REQUIRE(agent["dialect"] == "v12");
  REQUIRE(agent["address"] == "unix:/run/hvmi.sock");
}

TEST_CASE("connections that failed are told, the newest first", "[admin]") {
  io::ConnectionFailure first;
  first.time = std::chrono::system_clock::time_point{} + std::chrono::seconds(1);
  first.side = io::FailureSide::Hypervisor;
  first.peer = "pid=10 uid=107 gid=107";
  first.guest = "web1";
  first.step = io::step::kPeer;
  first.text = "not allowed";
  io::ConnectionFailure second;
  second.time = std::chrono::system_clock::time_point{} + std::chrono::seconds(2);
  second.side = io::FailureSide::Dial;
  second.peer = "hvmi unix:/run/hvmi.sock";
  second.step = io::step::kConnect;
  second.text = "No such file or directory";
  second.times = 7;
  const std::vector failures{first, second};
  REQUIRE(failures_json(failures) == Json::parse(R"({"schema":1,"failures":[
      {"time":"1970-01-01T00:00:02.000000Z","side":"dial","peer":"hvmi unix:/run/hvmi.sock","guest":null,"step":"connect",
       "reason":"No such file or directory","times":7},
      {"time":"1970-01-01T00:00:01.000000Z","side":"hypervisor","peer":"pid=10 uid=107 gid=107","guest":"web1",
       "step":"peer not allowed","reason":"not allowed","times":1}]})"));
  REQUIRE(failures_json({}) == Json::parse(R"({"schema":1,"failures":[]})"));
}

TEST_CASE("an error has its code and a message", "[admin]") {
  REQUIRE(error_json(404, "no such guest") == Json::parse(R"({"error":{"code":404,"message":"no such guest"}})"));
}
