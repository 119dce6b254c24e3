// SPDX-License-Identifier: GPL-2.0-or-later
//
// What doctor makes of connections that failed.

#include <algorithm>
#include <catch2/catch.hpp>

#include "daemon/app/admin_json.h"
#include "kvmictl/doctor.h"

using namespace kvmid;
using namespace kvmid::ctl;

namespace {

const auto kNow = std::chrono::system_clock::from_time_t(1'700'000'000);

/// Facts with one failure that was just now, through the same JSON as kvmid's.
DoctorFacts with(io::FailureSide side, std::string_view step, std::chrono::seconds ago = std::chrono::seconds(1),
                 const std::string& guest = "web1", std::uint64_t times = 1) {
  io::ConnectionFailure failure;
  failure.time = kNow - ago;
  failure.side = side;
  failure.peer = side == io::FailureSide::Dial ? "hvmi unix:/run/hvmi.sock" : "pid=10 uid=107 gid=36";
  failure.guest = guest;
  failure.step = step;
  failure.text = "the reason that kvmid has";
  failure.times = times;
  DoctorFacts facts;
  facts.now = kNow;
  facts.failures = Json::parse(app::failures_json(std::span(&failure, 1)).dump());
  return facts;
}

Finding only(const DoctorFacts& facts) {
  const auto findings = explain_failures(facts);
  REQUIRE(findings.size() == 1);
  return findings.front();
}

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

using Side = io::FailureSide;

}  // namespace

TEST_CASE("each step of each side is explained, with what kvmid said and what to do", "[kvmictl]") {
  struct Case {
    Side side;
    std::string_view step;
    const char* means;
    const char* next;
  };
  const auto [side, step, means, next] = GENERATE(values<Case>({
      {Side::Hypervisor, io::step::kPeer, "may not bring it", "bound_to where a rule matches web1"},
      {Side::Hypervisor, io::step::kHandshake, "no handshake of a hypervisor", "`dial`"},
      {Side::Hypervisor, io::step::kGuest, "uuid is connected already", "`kvmictl guest UUID`"},
      {Side::Hypervisor, io::step::kLimits, "as many guests or connections", "limits.guests_max"},
      {Side::Hypervisor, io::step::kDialect, "its dialect was not found out", "names a dialect for web1"},
      {Side::Hypervisor, io::step::kStart, "before its guest was known", "cookie_file"},
      {Side::Hypervisor, io::step::kCookie, "do not know the same secret", "cookie_file"},
      {Side::Dial, io::step::kConnect, "nobody listens at its address", "Start the tool"},
      {Side::Dial, io::step::kSent, "before it had kvmid's handshake", "`guests`"},
      {Side::Dial, io::step::kAnswer, "answer to the handshake", "`guests`"},
      {Side::Dial, io::step::kCookie, "does not know the secret", "cookie_file"},
      {Side::Dial, io::step::kPolicy, "no policy rule", "`kvmictl policy check --guest web1"},
      {Side::Dial, io::step::kDialect, "what its dialect does not have", "`dialect`"},
      {Side::Dial, io::step::kLimits, "limits.connections_max", "limits.connections_max"},
      {Side::Dial, io::step::kGuest, "its guest is gone", "`kvmictl guests`"},
      {Side::Agent, io::step::kHandshake, "no hello of an agent", "`dial`"},
      {Side::Agent, io::step::kPolicy, "no policy rule", "pid=10 uid=107 gid=36"},
      {Side::Agent, io::step::kGuest, "no such guest", "`kvmictl guests`"},
      {Side::Agent, io::step::kLimits, "limits.connections_max", "limits.connections_max"},
      {Side::Agent, "a step of a newer kvmid", "the connection failed", "journalctl"},
  }));
  INFO(step);
  const auto finding = only(with(side, step));
  CHECK(has(finding.text, means));
  CHECK(has(finding.text, "kvmid says: the reason that kvmid has"));
  CHECK(has(finding.text, "2023-11-14T22:13:19"));
  CHECK(has(finding.next, next));
  CHECK_FALSE(has(finding.next, "GUEST"));
  CHECK_FALSE(has(finding.next, "PEER"));
}

TEST_CASE("a failure is named by its side, and is about a tool or a guest", "[kvmictl]") {
  CHECK(only(with(Side::Dial, io::step::kConnect)).id == "dial-failed");
  CHECK(only(with(Side::Dial, io::step::kConnect)).subject == "hvmi");
  CHECK(has(only(with(Side::Dial, io::step::kConnect)).text,
            "to tool hvmi unix:/run/hvmi.sock for guest web1 failed: nobody"));
  CHECK(only(with(Side::Hypervisor, io::step::kPeer)).id == "hypervisor-failed");
  CHECK(only(with(Side::Hypervisor, io::step::kPeer)).subject == "web1");
  CHECK(has(only(with(Side::Hypervisor, io::step::kPeer)).text,
            "of a hypervisor (pid=10 uid=107 gid=36) for guest web1 failed"));
  const auto unknown = only(with(Side::Agent, io::step::kHandshake, std::chrono::seconds(1), ""));
  CHECK(unknown.id == "agent-failed");
  CHECK(unknown.subject == "pid=10 uid=107 gid=36");
  CHECK(has(only(with(Side::Dial, io::step::kConnect, std::chrono::seconds(1), "web1", 7)).text, "last of 7 times"));
}

TEST_CASE("a tool that kvmid tries to reach is a problem until it is there", "[kvmictl]") {
  auto facts = with(Side::Dial, io::step::kConnect);
  CHECK(only(facts).problem);
  const auto given_up = only(with(Side::Dial, io::step::kConnect, std::chrono::seconds(600)));
  CHECK_FALSE(given_up.problem);
  CHECK(has(given_up.next, "does not try any more"));
  const auto agent = [](const char* name, const char* address, const char* guest) {
    return Json{{"agents", {{{"name", name}, {"address", address}, {"guest", "u1"}, {"guest_name", guest}}}}};
  };
  facts.agents = agent("hvmi", "unix:/run/hvmi.sock", "web1");
  CHECK(explain_failures(facts).empty());
  // For another guest, at another address, or under another name it is another connection.
  for (const auto& other : {agent("hvmi", "unix:/run/hvmi.sock", "db1"), agent("hvmi", "unix:/run/old.sock", "web1"),
                            agent("libvmi", "unix:/run/hvmi.sock", "web1")}) {
    facts.agents = other;
    CHECK(only(facts).problem);
  }
}

TEST_CASE("a hypervisor that was refused is a problem until its guest is there", "[kvmictl]") {
  auto facts = with(Side::Hypervisor, io::step::kPeer);
  CHECK(only(facts).problem);
  CHECK_FALSE(only(with(Side::Hypervisor, io::step::kPeer, std::chrono::hours(2))).problem);
  CHECK_FALSE(only(with(Side::Hypervisor, io::step::kHandshake, std::chrono::seconds(1), "")).problem);
  facts.guests = {Json{{"name", "web1"}, {"uuid", "u1"}, {"state", "away"}}};
  CHECK(only(facts).problem);
  facts.guests[0]["state"] = "online";
  CHECK_FALSE(only(facts).problem);
  // But two that want to be the same guest are, just because it is online.
  auto twice = with(Side::Hypervisor, io::step::kGuest);
  twice.guests = facts.guests;
  CHECK(only(twice).problem);
}

TEST_CASE("agents that were refused are notes", "[kvmictl]") {
  CHECK_FALSE(only(with(Side::Agent, io::step::kPolicy)).problem);
}

TEST_CASE("what fails again and again from new processes is said once, as it was last", "[kvmictl]") {
  std::vector<io::ConnectionFailure> failures(3);
  for (std::size_t i = 0; i < failures.size(); ++i) {
    failures[i].time = kNow - std::chrono::seconds(10 - i);
    failures[i].side = Side::Hypervisor;
    failures[i].peer = "pid=" + std::to_string(10 + i);
    failures[i].guest = "web1";
    failures[i].step = io::step::kPeer;
    failures[i].text = "not allowed";
  }
  DoctorFacts facts;
  facts.now = kNow;
  facts.failures = Json::parse(app::failures_json(failures).dump());
  CHECK(has(only(facts).text, "pid=12"));
  failures[0].text = "for another reason";
  facts.failures = Json::parse(app::failures_json(failures).dump());
  CHECK(has(only(facts).text, "pid=12"));
  failures[0].step = io::step::kGuest;
  facts.failures = Json::parse(app::failures_json(failures).dump());
  CHECK(explain_failures(facts).size() == 2);
  // Where no guest is known, only the reason tells them apart.
  failures[0].step = io::step::kPeer;
  for (auto& failure : failures) failure.guest.clear();
  facts.failures = Json::parse(app::failures_json(failures).dump());
  CHECK(explain_failures(facts).size() == 2);
  // Tools stay apart.
  for (auto& failure : failures) failure.side = Side::Dial;
  facts.failures = Json::parse(app::failures_json(failures).dump());
  CHECK(explain_failures(facts).size() == 3);
}

TEST_CASE("of a tool that fails in one way after another only the last one is said", "[kvmictl]") {
  std::vector<io::ConnectionFailure> failures(2);
  for (auto& failure : failures) {
    failure.time = kNow - std::chrono::seconds(1);
    failure.side = Side::Dial;
    failure.peer = "hvmi unix:/run/hvmi.sock";
    failure.guest = "web1";
  }
  failures[0].step = io::step::kConnect;
  failures[1].step = io::step::kCookie;
  DoctorFacts facts;
  facts.now = kNow;
  facts.failures = Json::parse(app::failures_json(failures).dump());
  CHECK(has(only(facts).text, "does not know the secret"));
  failures[0].guest = "web2";
  facts.failures = Json::parse(app::failures_json(failures).dump());
  CHECK(explain_failures(facts).size() == 2);
}

TEST_CASE("an older kvmid knows no failures, and an odd answer is none", "[kvmictl]") {
  for (const char* odd : {"null", "{}", "[1]", R"({"failures":7})", R"({"failures":[1,null,"x"]})"}) {
    DoctorFacts facts;
    facts.failures = Json::parse(odd);
    CHECK(explain_failures(facts).empty());
  }
  DoctorFacts facts;
  facts.failures = Json::parse(R"({"failures":[{}]})");
  CHECK(explain_failures(facts).size() == 1);
}

TEST_CASE("failures are part of a diagnosis", "[kvmictl]") {
  auto facts = with(Side::Dial, io::step::kConnect);
  facts.admin.state = facts.agent.state = SocketFact::State::Good;
  const auto diagnosis = diagnose(facts, {});
  CHECK(std::count_if(diagnosis.findings.begin(), diagnosis.findings.end(),
                      [](const Finding& finding) { return finding.id == "dial-failed"; }) == 1);
  CHECK_FALSE(diagnosis.well());
}
