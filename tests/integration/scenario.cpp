// SPDX-License-Identifier: GPL-2.0-or-later
#include "tests/integration/scenario.h"

#include <utility>

namespace kvmid::test {
namespace {

std::vector<std::string> agent_arguments(const Daemon& daemon, const Guest& guest, std::vector<std::string> options) {
  std::vector<std::string> arguments{"--socket", daemon.agent_socket(), "--guest", guest.uuid_text()};
  arguments.insert(arguments.end(), std::make_move_iterator(options.begin()), std::make_move_iterator(options.end()));
  return arguments;
}

}  // namespace

std::string config_text(const PolicyOptions& policy) {
  const Json rule{{"name", "tests"},           {"match", "*"},
                  {"commands", {"*"}},         {"events", {"*"}},
                  {"role", "decider"},         {"deadline_ms", policy.deadline_ms},
                  {"strikes", policy.strikes}, {"quota", {{"queue_bytes", policy.queue_bytes}}}};
  return Json{{"policy", {rule}}}.dump(2);
}

TestAgent::TestAgent(const Daemon& daemon, const Guest& guest, std::vector<std::string> options)
    : process_("test-agent", agent_arguments(daemon, guest, std::move(options))) {
  // An event can come between two confirmations, and so before the line that says ready.
  wait_until_or_end([&] { return !lines("ready").empty(); });
  if (lines("ready").empty()) throw TestError("test-agent does not become ready\n" + process_.tail());
  const Json first = lines("ready").front();
  id_ = first.at("agent").get<std::uint32_t>();
}

void TestAgent::wait_until_or_end(const std::function<bool()>& condition) {
  const bool held = wait_until([&] { return condition() || !process_.running(); });
  if (!held || process_.running()) return;
  process_.wait_exit();  // and with it what it printed last
  static_cast<void>(condition());
}

void TestAgent::parse() {
  const auto output = process_.output();
  for (std::size_t i = parsed_.size(); i < output.size(); ++i) parsed_.push_back(Json::parse(output[i]));
}

std::vector<Json> TestAgent::lines(const std::string& type) {
  parse();
  std::vector<Json> found;
  for (const auto& line : parsed_) {
    if (line.at("type") == type) found.push_back(line);
  }
  return found;
}

std::vector<Json> TestAgent::notices(const std::string& kind) {
  std::vector<Json> found;
  for (auto& line : lines("notice")) {
    if (line.at("notice") == kind) found.push_back(std::move(line));
  }
  return found;
}

std::vector<std::uint32_t> TestAgent::event_seqs() {
  std::vector<std::uint32_t> seqs;
  for (const auto& line : lines("event")) seqs.push_back(line.at("seq").get<std::uint32_t>());
  return seqs;
}

std::vector<Json> TestAgent::wait_lines(const std::string& type, std::size_t count) {
  std::vector<Json> found;
  wait_until_or_end([&] { return (found = lines(type)).size() >= count; });
  if (found.size() < count) {
    throw TestError("test-agent prints too few lines of type " + type + "\n" + process_.tail());
  }
  return found;
}

std::vector<Json> TestAgent::wait_notices(const std::string& kind, std::size_t count) {
  std::vector<Json> found;
  wait_until_or_end([&] { return (found = notices(kind)).size() >= count; });
  if (found.size() < count) {
    throw TestError("test-agent gets too few notices " + kind + "\n" + process_.tail());
  }
  return found;
}

Json TestAgent::wait_owed() {
  Json owed;
  wait_until_or_end([&] {
    for (const auto& line : lines("event")) {
      if (line.at("decide") == true) owed = line;
    }
    return !owed.is_null();
  });
  if (owed.is_null()) throw TestError("test-agent gets no event to decide\n" + process_.tail());
  return owed;
}

Account account_of(TestAgent& agent) {
  Account account;
  if (!wait_until([&] { return agent.notices("outcome").size() >= agent.lines("event").size(); })) {
    account.outcomes_match = false;
    account.text = "an event has no outcome";
  }
  const auto seqs = agent.event_seqs();
  const auto outcomes = agent.notices("outcome");
  account.events = seqs.size();
  for (std::size_t i = 1; i < seqs.size(); ++i) {
    if (seqs[i] == seqs[i - 1] + 1) continue;
    account.contiguous = false;
    account.text = "event " + std::to_string(seqs[i]) + " follows " + std::to_string(seqs[i - 1]);
  }
  if (outcomes.size() != seqs.size()) {
    account.outcomes_match = false;
    account.text = std::to_string(seqs.size()) + " events, " + std::to_string(outcomes.size()) + " outcomes";
    return account;
  }
  for (std::size_t i = 0; i < seqs.size(); ++i) {
    if (outcomes[i].at("event_seq") == seqs[i]) continue;
    account.outcomes_match = false;
    account.text = "outcome " + outcomes[i].dump() + " stands where that of " + std::to_string(seqs[i]) + " should";
  }
  return account;
}

void to_idle(const Guest& guest, unsigned vcpu) { guest.do_times(GuestMode::Idle, 2, vcpu); }

}  // namespace kvmid::test
