// SPDX-License-Identifier: GPL-2.0-or-later

#include "kvmictl/render.h"

#include <catch2/catch.hpp>
#include <sstream>

#include "protocol/handshake.h"

using namespace kvmid;
using namespace kvmid::ctl;

namespace {

const Json kGuests = Json::parse(R"({"schema":1,"guests":[
  {"uuid":"6a1f7e36-0000-4000-8000-000000000001","name":"web1","state":"online","dialect":"kvmi2","vcpus":2,"agents":1,
   "events":10,"shard":0,"hypervisor":{"pid":1,"uid":0,"gid":0}},
  {"uuid":"beef0000-0000-4000-8000-000000000002","name":"db1","state":"away","dialect":"kvmi2","vcpus":4,"agents":0,
   "events":0,"shard":1,"hypervisor":{"pid":2,"uid":0,"gid":0}}]})");

}  // namespace

TEST_CASE("guests as a table", "[kvmictl]") {
  CHECK(render_guests(kGuests, 0) ==
        "NAME  UUID                                  STATE   DIALECT  VCPUS  AGENTS  EVENTS\n"
        "web1  6a1f7e36-0000-4000-8000-000000000001  online  kvmi2        2       1      10\n"
        "db1   beef0000-0000-4000-8000-000000000002  away    kvmi2        4       0       0\n");
  CHECK(render_guests(Json::parse(R"({"schema":1,"guests":[]})"), 80) == "No guests are connected.\n");
}

TEST_CASE("guests are named from the same answer", "[kvmictl]") {
  const auto names = guest_names(kGuests);
  REQUIRE(names.size() == 2);
  CHECK(*client::find_guest(names, "db1") == *parse_uuid("beef0000-0000-4000-8000-000000000002"));
  CHECK(*client::find_guest(names, "6a1f") == names[0].uuid);
  CHECK(client::find_guest(names, "nobody").error().kind == client::ClientErrc::NoGuest);
}

TEST_CASE("agents as a table: control connections, demotion, missing facts", "[kvmictl]") {
  const auto text = render_agents(Json::parse(R"({"schema":1,"agents":[
    {"id":1,"name":"guard","guest":"6a1f7e36-0000-4000-8000-000000000001","guest_name":"web1","dialect":"v7",
     "pid":10,"uid":0,"gid":0,
     "role":"decider","priority":100,"deadline_ms":100,"events":["cr","msr"],"strikes":0,"demoted":["cr"],
     "queued_bytes":0,"requests_open":0,"expired":3,"policy":"guards","patches":5,"filters":2,"filtered":600},
    {"id":2,"name":"kvmictl","guest":null,"pid":11,"uid":1000}]})"),
                                  0);
  CHECK(text ==
        "ID  NAME     GUEST      DIALECT  ROLE               PRIO  DEADLINE  PID   UID  EXPIRED  PATCHES  FILTERS  "
        "FILTERED  EVENTS  POLICY\n"
        " 1  guard    web1       v7       decider (demoted)   100    100 ms   10     0        3        5        2  "
        "     600  cr,msr  guards\n"
        " 2  kvmictl  (control)  -        -                     -         -   11  1000        -        -        -  "
        "       -  -       -\n");
}

TEST_CASE("one guest with its vCPUs and counters", "[kvmictl]") {
  Json guest = kGuests["guests"][0];
  guest.update(Json::parse(R"({"arch":"x86","max_gpa":1048576,"commands":["GET_VERSION"],"events_supported":["cr"],
    "vcpu":[{"id":0,"state":"waiting","event":"cr","event_seq":7,"age_ms":3,"waits_for":[2,5]},{"id":1,"state":"running"},
      {"id":2,"state":"held"}],
    "counters":{"events":10},"agent_list":[2,5]})"));
  const auto text = render_guest(guest, 0);
  CHECK(text.find("name          web1\n") == 0);
  CHECK(text.find("memory ends   0x100000\n") != std::string::npos);
  CHECK(text.find("agents        2,5\n") != std::string::npos);
  CHECK(text.find("   0  waiting  cr       7  3 ms  2,5\n") != std::string::npos);
  CHECK(text.find("   1  running  -        -     -  -\n") != std::string::npos);
  CHECK(text.find("   2  held     -        -     -  -\n") != std::string::npos);
  CHECK(text.find("counters\n  events 10\n") != std::string::npos);
}

TEST_CASE("a guest's commands and events, and what there is beside them", "[kvmictl]") {
  Json guest = kGuests["guests"][0];
  guest["dialect"] = "v7";
  guest["commands"] = Json::array();
  for (unsigned i = 0; i < 64; ++i) {
    const std::string name(name_of(static_cast<CommandId>(i)));
    if (name != name_of(CommandId{}) && name != "GET_GUESTS" && name != "SHUTDOWN_GUEST" && name != "GET_MEMORY_MAP")
      guest["commands"].push_back(name);
  }
  guest["events_supported"] = {"cr", "msr"};
  const auto text = render_guest(guest, 0);
  CHECK(text.find("dialect       v7\n") != std::string::npos);
  CHECK(text.find("commands      GET_VERSION ") != std::string::npos);
  CHECK(text.find("\n  lacks       SHUTDOWN_GUEST GET_MEMORY_MAP\n") != std::string::npos);
  CHECK(text.find("\nevents        cr msr\n  lacks       unhook ") != std::string::npos);
  // One that has everything lacks nothing, and an older kvmid that does not say so neither.
  for (unsigned i = 0; i < kEventCount; ++i)
    guest["events_supported"].push_back(name_of(static_cast<EventKind>(i)));
  guest.erase("commands");
  CHECK(render_guest(guest, 0).find("lacks") == std::string::npos);
}

TEST_CASE("one agent, what it may, and what it owes", "[kvmictl]") {
  const auto agent = Json::parse(R"({"id":2,"name":"guard","guest":"6a1f7e36-0000-4000-8000-000000000001",
    "guest_name":"web1","pid":10,"uid":0,"gid":0,"role":"decider","priority":7,"deadline_ms":100,"events":["cr","msr"],
    "strikes":1,"demoted":["cr"],"queued_bytes":512,"requests_open":3,"expired":4,"policy":"guards","patches":5,
    "filters":2,"filtered":600})");
  Json guest = Json::parse(R"({"vcpu":[{"id":0,"state":"running"},
    {"id":1,"state":"waiting","event":"cr","event_seq":7,"age_ms":3,"waits_for":[2,5]},
    {"id":2,"state":"waiting","event":"msr","event_seq":8,"age_ms":3,"waits_for":[5]}]})");
  auto tool = agent;
  tool["dialect"] = "v7";
  tool["address"] = "unix:/run/hvmi.sock";
  CHECK(render_agent(tool, guest, 0).find("dialect       v7\nlisten") != std::string::npos);
  CHECK(render_agent(tool, guest, 0).find("listens at    unix:/run/hvmi.sock\n") != std::string::npos);
  const auto text = render_agent(agent, guest, 0);
  CHECK(text.find("listens at") == std::string::npos);
  CHECK(text.find("guest         web1 (6a1f7e36-0000-4000-8000-000000000001)\n") != std::string::npos);
  CHECK(text.find("role          decider, demoted to observer of cr\n") != std::string::npos);
  CHECK(text.find("missed        4 deadlines, 1 in a row\n") != std::string::npos);
  CHECK(text.find("patches       5\n") != std::string::npos);
  CHECK(text.find("filters       2, which kept 600 events from it\n") != std::string::npos);
  CHECK(text.find("owes a reply to\nVCPU  EVENT  SEQ   AGE  WAITS FOR AGENTS\n   1  cr       7  3 ms  2,5\n") !=
        std::string::npos);
  CHECK(text.find("msr      8") == std::string::npos);  // somebody else's
  CHECK(render_agent(agent, Json(), 0).find("owes          nothing\n") != std::string::npos);
  CHECK(render_agent(Json::object(), Json::parse("[7]"), 80).find("control connection") != std::string::npos);
}

TEST_CASE("tables and lists fit a terminal of 80 columns", "[kvmictl]") {
  Json guest = kGuests["guests"][0];
  guest["commands"] = Json::array();
  for (int i = 0; i < 40; ++i) guest["commands"].push_back("A_COMMAND_" + std::to_string(i));
  const auto fits = [](const std::string& text) {
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) {
      INFO(line);
      CHECK(line.size() <= 80);
    }
  };
  fits(render_guest(guest, 80));
  fits(render_guests(kGuests, 80));
  fits(render_agents(Json::parse(R"({"agents":[{"id":1234,"name":"a-name-that-is-rather-long-for-an-agent",
    "guest":"6a1f7e36-0000-4000-8000-000000000001","guest_name":"another-name-that-is-long","pid":4194304,
    "uid":4294967294,"role":"decider","demoted":["cr"],"priority":4294967295,"deadline_ms":60000,"expired":123456789,
    "events":["cr","msr","page_fault","breakpoint"],"policy":"the-name-of-a-rule"}]})"),
                     80));
}

TEST_CASE("status, and an answer that lacks everything", "[kvmictl]") {
  const auto text =
      render_status(Json::parse(R"({"schema":1,"version":"0.1.0","pid":7,"uptime_s":3725,"config":"/etc/x",
    "shards":2,"guests":1,"agents":2,"counters":{"expired":4}})"));
  CHECK(text.find("version       0.1.0\n") == 0);
  CHECK(text.find("uptime        1h 2m\n") != std::string::npos);
  CHECK(text.find("  expired 4\n") != std::string::npos);
  for (const char* odd : {"{}", R"({"guests":5,"agents":"x","vcpu":[1,null],"counters":[1],"hypervisor":3})"}) {
    const auto json = Json::parse(odd);
    CHECK_FALSE(render_status(json).empty());
    CHECK_FALSE(render_guest(json, 80).empty());
    CHECK_FALSE(render_guests(json, 80).empty());
    CHECK_FALSE(render_agents(json, 80).empty());
    CHECK_FALSE(render_agent(json, json, 80).empty());
  }
}

TEST_CASE("names in answers cannot steer the terminal", "[kvmictl]") {
  Json answer = kGuests;
  answer["guests"][0]["name"] = "\x1b[2Jevil";
  CHECK(render_guests(answer, 0).find('\x1b') == std::string::npos);
}

TEST_CASE("a hex dump shows whole and partial lines", "[kvmictl]") {
  std::vector<std::byte> bytes;
  for (unsigned i = 0; i < 18; ++i) bytes.push_back(static_cast<std::byte>(0x3f + i));
  CHECK(hex_digits(bytes).starts_with("3f4041"));
  CHECK(hex_dump(0x1000, bytes) ==
        "0000000000001000  3f 40 41 42 43 44 45 46  47 48 49 4a 4b 4c 4d 4e  |?@ABCDEFGHIJKLMN|\n"
        "0000000000001010  4f 50                                             |OP|\n");
  CHECK(hex_dump(0, {}).empty());
}

TEST_CASE("registers for people and for programs", "[kvmictl]") {
  client::Registers registers;
  registers.regs.rip = 0xffffffff81000000;
  registers.sregs.cr3 = 0x5000;
  registers.sregs.cs.selector = 0x10;
  const auto text = render_registers(registers);
  CHECK(text.find("rip    ffffffff81000000") != std::string::npos);
  CHECK(text.find("cr3    0000000000005000") != std::string::npos);
  const auto json = registers_json(1, registers);
  CHECK(json["schema"] == 1);
  CHECK(json["vcpu"] == 1);
  CHECK(json["regs"]["rip"] == "0xffffffff81000000");
  CHECK(json["sregs"]["cs"]["selector"] == 0x10);
}

TEST_CASE("durations", "[kvmictl]") {
  CHECK(duration_text(59) == "59s");
  CHECK(duration_text(60) == "1m 0s");
  CHECK(duration_text(3600) == "1h 0m");
  CHECK(duration_text(90'061) == "1d 1h");
}
