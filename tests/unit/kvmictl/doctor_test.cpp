// SPDX-License-Identifier: GPL-2.0-or-later

#include "kvmictl/doctor.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <sstream>

#include "kvmictl/table.h"

using namespace kvmid;
using namespace kvmid::ctl;
using client::ClientErrc;
using client::ClientError;
using State = SocketFact::State;

namespace {

SocketFact socket_at(const std::string& path, State state = State::Good) {
  return {path, state, "kvmid", "kvmi", 0660};
}

/// A machine where nothing is wrong and nothing is worth a note.
DoctorFacts healthy() {
  DoctorFacts facts;
  facts.user = "ada";
  facts.admin = socket_at("/run/kvmid/admin.sock");
  facts.agent = socket_at("/run/kvmid/agent.sock");
  facts.hypervisor = socket_at("/run/kvmid/hypervisor.sock");
  facts.config = ConfigFact{"/etc/kvmid/kvmid.json", true, true, "ok"};
  facts.status = Json::parse(R"({"schema":1,"version":"0.1.0","pid":7,"counters":{"events":10}})");
  facts.agents = Json::parse(R"({"schema":1,"agents":[
    {"id":2,"name":"guard","guest":"6a1f7e36-0000-4000-8000-000000000001","guest_name":"web1","pid":10,"uid":0,
     "role":"decider","deadline_ms":100,"strikes":0,"demoted":[],"queued_bytes":0,"requests_open":0,"policy":"r"},
    {"id":3,"name":"kvmictl","guest":null,"role":"control","uid":0,"policy":"r"}]})");
  facts.policy = Json::parse(R"({"schema":1,"rules":[{"name":"r","grant":{"quota":
    {"requests":64,"queue_bytes":4194304,"pages":100,"patches":50,"filters":8,"attachments":4}}}]})");
  Json guest = Json::parse(R"({"schema":1,"name":"web1","uuid":"6a1f7e36-0000-4000-8000-000000000001",
    "state":"online","dialect":"kvmi2","vcpus":2,"agents":1,"vcpu":[{"id":0,"state":"running"}]})");
  guest["commands"] = Json::array();
  guest["events_supported"] = Json::array();
  for (unsigned i = 0; i < 64; ++i) guest["commands"].push_back(name_of(static_cast<CommandId>(i)));
  for (unsigned i = 0; i < kEventCount; ++i) guest["events_supported"].push_back(name_of(static_cast<EventKind>(i)));
  facts.guests.push_back(std::move(guest));
  return facts;
}

/// The one finding with that id. Whatever it is about, it says what to do next.
Finding only(const Diagnosis& diagnosis, const std::string& id) {
  const auto is_it = [&](const Finding& finding) { return finding.id == id; };
  for (const auto& finding : diagnosis.findings) UNSCOPED_INFO(finding.id << ": " << finding.text);
  REQUIRE(std::count_if(diagnosis.findings.begin(), diagnosis.findings.end(), is_it) == 1);
  const auto found = *std::find_if(diagnosis.findings.begin(), diagnosis.findings.end(), is_it);
  CHECK_FALSE(found.text.empty());
  CHECK_FALSE(found.next.empty());
  return found;
}

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

Finding problem(const DoctorFacts& facts, const std::string& id, const std::vector<std::string>& needs = {}) {
  const auto diagnosis = diagnose(facts, needs);
  const auto found = only(diagnosis, id);
  CHECK(found.problem);
  CHECK_FALSE(diagnosis.well());
  return found;
}

Finding note(const DoctorFacts& facts, const std::string& id) {
  const auto diagnosis = diagnose(facts, {});
  const auto found = only(diagnosis, id);
  CHECK_FALSE(found.problem);
  CHECK(diagnosis.well());
  return found;
}

}  // namespace

TEST_CASE("where nothing is wrong nothing is found", "[kvmictl]") {
  const auto diagnosis = diagnose(healthy(), {"cr", "READ_PHYSICAL"});
  for (const auto& finding : diagnosis.findings) UNSCOPED_INFO(finding.id << ": " << finding.text);
  CHECK(diagnosis.findings.empty());
  CHECK(diagnosis.well());
  CHECK(render_diagnosis(diagnosis, 0).ends_with("\nAll is well.\n"));
  CHECK(diagnosis_json(diagnosis)["ok"] == true);
  CHECK(diagnosis_json(diagnosis)["schema"] == 1);
}

TEST_CASE("a socket that is missing, dead, or no socket", "[kvmictl]") {
  auto facts = healthy();
  facts.admin.state = State::Missing;
  CHECK(has(problem(facts, "socket-missing").next, "systemctl start kvmid"));
  facts.admin.state = State::NobodyListens;
  CHECK(has(problem(facts, "socket-dead").text, "/run/kvmid/admin.sock"));
  facts.admin.state = State::NotSocket;
  CHECK(problem(facts, "socket-not-socket").subject == "/run/kvmid/admin.sock");
  facts = healthy();
  facts.agent.state = State::Missing;
  CHECK(problem(facts, "socket-missing").subject == "/run/kvmid/agent.sock");
}

TEST_CASE("a user outside the group is told the group, and the mode where that would not help", "[kvmictl]") {
  auto facts = healthy();
  facts.admin.state = State::Denied;
  CHECK(has(problem(facts, "socket-denied").next, "usermod -aG kvmi ada"));
  facts.admin.mode = 0600;
  const auto found = problem(facts, "socket-denied");
  CHECK(has(found.next, "listen.admin"));
  CHECK_FALSE(has(found.next, "usermod"));
}

TEST_CASE("a daemon that is silent, or is something else", "[kvmictl]") {
  auto facts = healthy();
  facts.guests.clear();
  facts.admin_error = ClientError{ClientErrc::TimedOut, ErrorCode::None, "no answer in time", 0};
  CHECK(has(problem(facts, "daemon-silent").next, "systemctl restart kvmid"));
  // What could not be asked is no finding of its own.
  CHECK(diagnose(facts, {}).findings.size() == 1);
  facts.admin_error = ClientError{ClientErrc::Protocol, ErrorCode::None, "no proper HTTP answer", 0};
  problem(facts, "daemon-odd");
}

TEST_CASE("agents that are not let in at all", "[kvmictl]") {
  auto facts = healthy();
  facts.agent_error = ClientError{ClientErrc::Refused, ErrorCode::NotPermitted, "no policy rule knows uid 1000", 0};
  CHECK(has(problem(facts, "agent-refused").next, "policy check"));
  facts.agent_error = ClientError{ClientErrc::Protocol, ErrorCode::None, "odd", 0};
  problem(facts, "agent-door");
}

TEST_CASE("a mistake in the configuration is shown with its place", "[kvmictl]") {
  auto facts = healthy();
  facts.config = ConfigFact{"/etc/kvmid/kvmid.json", true, false, "/policy/0/deadline_ms: must be between 1 and 60000"};
  CHECK(has(problem(facts, "config-error").text, "/policy/0/deadline_ms"));
  facts.config = ConfigFact{"/etc/kvmid/kvmid.json", false, false, "permission denied"};
  note(facts, "config-unchecked");
}

TEST_CASE("a secret that this user may not read is no mistake in the configuration", "[kvmictl]") {
  CHECK(is_secret_denied("/dial/0/cookie_file: cannot open \"/etc/kvmid/x\": Permission denied"));
  CHECK_FALSE(is_secret_denied("/dial/0/cookie_file: there is no file \"/etc/kvmid/x\""));
  CHECK_FALSE(is_secret_denied("cannot open it: Permission denied"));
}

TEST_CASE("a hypervisor socket that hypervisors cannot use", "[kvmictl]") {
  auto facts = healthy();
  facts.hypervisor.state = State::Missing;
  problem(facts, "hypervisor-socket-missing");
  facts = healthy();
  facts.hypervisor.mode = 0600;
  CHECK(has(problem(facts, "hypervisor-socket-closed").next, "listen.hypervisors.mode"));
  facts.hypervisor.owner = "root";
  CHECK(has(problem(facts, "hypervisor-socket-closed").text, "Only root"));
  // When kvmid is not there at all, that is said once.
  facts.admin.state = facts.agent.state = facts.hypervisor.state = State::Missing;
  CHECK(diagnose(facts, {}).findings.size() == 2);
}

TEST_CASE("no guest, and a guest that is away", "[kvmictl]") {
  auto facts = healthy();
  facts.guests[0]["state"] = "away";
  CHECK(problem(facts, "guest-away").subject == "web1");
  facts.guests[0]["state"] = "starting";
  CHECK(note(facts, "guest-starting").subject == "web1");
  facts.guests.clear();
  CHECK(has(problem(facts, "no-guest").next, "group kvmi"));
}

TEST_CASE("what a hypervisor does not serve is a note, and a problem where it is needed", "[kvmictl]") {
  auto facts = healthy();
  facts.guests[0]["events_supported"] = Json::array({"cr"});
  CHECK(has(note(facts, "not-served").text, "page_fault"));
  CHECK(has(problem(facts, "unsupported", {"page_fault"}).text, "page_fault"));
  CHECK(diagnose(facts, {"cr"}).well());
  facts.guests[0]["commands"] = Json::array();
  CHECK(has(problem(facts, "unsupported", {"WRITE_PHYSICAL"}).text, "WRITE_PHYSICAL"));
}

TEST_CASE("agents that were demoted, or are about to be", "[kvmictl]") {
  auto facts = healthy();
  facts.agents["agents"][0]["strikes"] = 2;
  CHECK(has(note(facts, "agent-slow").text, "agent 2 (guard on web1)"));
  facts.agents["agents"][0]["demoted"] = {"cr", "msr"};
  CHECK(has(problem(facts, "agent-demoted").next, "pid 10"));
  CHECK(has(problem(facts, "agent-demoted").text, "only observes cr,msr"));
}

TEST_CASE("quotas that are used up, each by its own limit", "[kvmictl]") {
  for (const auto& [key, used, free] : std::vector<std::tuple<const char*, int, int>>{
           {"queued_bytes", 4194304, 1000},
           {"requests_open", 64, 32},
           {"pages", 100, 50},
           {"patches", 45, 44},
           {"filters", 8, 7}}) {
    INFO(key);
    auto facts = healthy();
    facts.agents["agents"][0][key] = used;
    CHECK(has(problem(facts, "quota-used-up").text, std::to_string(used)));
    facts.agents["agents"][0][key] = free;
    CHECK(diagnose(facts, {}).findings.empty());
  }
  auto facts = healthy();
  facts.agents["agents"][0]["queued_bytes"] = 4194304;
  facts.policy = Json();  // an older kvmid: limits are not known
  CHECK(diagnose(facts, {}).findings.empty());
}

TEST_CASE("connections of one user count together", "[kvmictl]") {
  auto facts = healthy();
  for (int i = 0; i < 3; ++i) facts.agents["agents"].push_back(facts.agents["agents"][0]);
  CHECK(has(problem(facts, "quota-used-up").text, "4 of 4"));
  facts.agents["agents"][0]["uid"] = 1000;
  CHECK(diagnose(facts, {}).findings.empty());
}

TEST_CASE("a vCPU that is held for long, and counters that tell of trouble, are notes", "[kvmictl]") {
  auto facts = healthy();
  facts.guests[0]["vcpu"][0] =
      Json::parse(R"({"id":0,"state":"waiting","event":"pause","event_seq":7,"age_ms":90000,"waits_for":[2]})");
  CHECK(has(note(facts, "vcpu-held").text, "agents 2"));
  facts = healthy();
  facts.status["counters"]["protocol_errors"] = 3;
  CHECK(has(note(facts, "counted").text, "3 times"));
}

TEST_CASE("answers that lack everything diagnose nothing and break nothing", "[kvmictl]") {
  auto facts = healthy();
  for (const char* odd : {"null", "{}", "[1]", R"({"agents":5,"guests":[7],"rules":"x","counters":[]})"}) {
    facts.status = facts.agents = facts.policy = Json::parse(odd);
    facts.guests = {Json::parse(odd)};
    CHECK_FALSE(render_diagnosis(diagnose(facts, {"cr"}), 80).empty());
  }
}

TEST_CASE("a diagnosis fits the terminal, problems first", "[kvmictl]") {
  auto facts = healthy();
  facts.status["counters"]["protocol_errors"] = 3;
  facts.guests[0]["state"] = "away";
  const auto text = render_diagnosis(diagnose(facts, {}), 60);
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) CHECK(characters(line) <= 60);
  CHECK(text.starts_with("PROBLEM  Guest web1 is away"));
  CHECK(text.find("PROBLEM") < text.find("note "));
  CHECK(text.ends_with("\n1 problem.\n"));
  facts.guests[0]["name"] = "\x1b[2Jevil";
  CHECK_FALSE(has(render_diagnosis(diagnose(facts, {}), 60), "\x1b"));
}
