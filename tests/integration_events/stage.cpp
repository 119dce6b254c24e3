// SPDX-License-Identifier: GPL-2.0-or-later
#include "tests/integration_events/stage.h"

#include <unistd.h>

namespace kvmid::test {
namespace {

constexpr Millis kLook{5};

/// Long enough for an answer that is on its way, short enough to be waited for a hundred times.
constexpr unsigned kShortDeadlineMs = 150;

std::string rule(const std::string& guests, Action default_action, unsigned deadline_ms) {
  const std::string deadline = std::to_string(deadline_ms);
  return R"({"match": "*", "guests": [")" + guests + R"("], "commands": ["*"], "events": ["*"], "role": "decider",
    "default": ")" + std::string(name_of(default_action)) + R"(", "strikes": 1000000,
    "deadline_ms": )" + deadline + R"(, "pause_max_ms": )" + deadline + "}";
}

std::string config(std::string rules, const std::string& member, const std::string& hypervisors) {
  for (const Action action : {Action::Allow, Action::Retry, Action::Skip, Action::Crash})
    rules += rule(silent_guest(action), action, kShortDeadlineMs) + ",\n";
  rules += rule("*", Action::Allow, 60000);
  return R"({"hypervisors": {"uid": [)" + std::to_string(::getuid()) + "]" +
         (hypervisors.empty() ? "" : ", " + hypervisors) + R"(}, "log": {"level": "debug"},
    )" + (member.empty() ? "" : member + ",") + R"("policy": [)" + rules + "]}";
}

Guest start_guest(const RuntimeFolder& folder, const StageOptions& options) {
  return Guest(folder, GuestOptions{.name = options.guest,
                                    .uuid = uuid_of(options.number),
                                    .vcpus = options.vcpus,
                                    .arguments = options.arguments});
}

}  // namespace

std::string silent_guest(Action default_action) { return "silent-" + std::string(name_of(default_action)); }

EventDaemon::EventDaemon(const std::string& rules, const std::string& member, const std::string& hypervisors) {
  daemon_.emplace(folder_, DaemonOptions{.config = config(rules, member, hypervisors), .arguments = {}});
}

Stage::Stage(EventDaemon& daemon, const StageOptions& options)
    : guest(start_guest(daemon.folder(), options)),
      agent(attach(daemon.daemon().agent_socket(), guest.wait_online().uuid(), "decider", options.outcomes)),
      agent_socket_(daemon.daemon().agent_socket()) {
  if (options.two_agents) second = attach(agent_socket_, guest.uuid(), "second decider", options.outcomes);
  before_ = guest.mailbox();
}

std::vector<AgentClient*> Stage::agents() {
  std::vector<AgentClient*> all{&agent};
  if (second) all.push_back(&*second);
  return all;
}

void Stage::subscribe(AgentClient& who, EventKind kind) { check(who.subscribe(only(kind), Role::Decider)); }

client::ReceivedEvent Stage::provoke(GuestMode mode) {
  before_ = guest.mailbox();
  guest.set_mode(mode);
  auto event = next_event();
  guest.set_mode(GuestMode::Idle);
  return event;
}

client::ReceivedEvent Stage::next_event(AgentClient& who) {
  if (&who == &agent && !kept_.empty()) {
    const auto event = kept_.front();
    kept_.pop_front();
    return event;
  }
  auto event = check(who.wait_event(kBound));
  if (!event) throw TestError("no event came");
  return *event;
}

client::ReceivedNotice Stage::next_notice() {
  for (;;) {
    const auto message = check(agent.next_message(kBound));
    if (!message) throw TestError("no notice came");
    if (const auto* notice = std::get_if<client::ReceivedNotice>(&*message)) return *notice;
    if (const auto* event = std::get_if<client::ReceivedEvent>(&*message)) kept_.push_back(*event);
  }
}

unsigned Stage::finish(GuestMode mode, std::uint64_t times) {
  unsigned events = 0;
  const std::uint64_t target = done_before(mode) + times;
  const bool finished = wait_until([&] {
    if (done(mode) >= target) return true;
    for (; !kept_.empty(); kept_.pop_front(), ++events) check(agent.reply(kept_.front(), Action::Allow));
    for (AgentClient* who : agents()) {
      const auto event = check(who->wait_event(kLook));
      if (!event) continue;
      check(who->reply(*event, Action::Allow));
      if (who == &agent) ++events;
    }
    return done(mode) >= target;
  });
  if (!finished) throw TestError("the guest does not get through\n" + guest.process().tail());
  return events;
}

EventSet only(EventKind kind) {
  EventSet set;
  set.add(kind);
  return set;
}

}  // namespace kvmid::test
