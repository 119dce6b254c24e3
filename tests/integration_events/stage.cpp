// SPDX-License-Identifier: GPL-2.0-or-later
#include "tests/integration_events/stage.h"

#include <unistd.h>

namespace kvmid::test {
namespace {

constexpr Millis kLook{5};

std::string config() {
  return R"({"hypervisors": {"uid": [)" + std::to_string(::getuid()) + R"(]}, "log": {"level": "debug"},
    "policy": [{"match": "*", "commands": ["*"], "events": ["*"], "role": "decider", "default": "allow",
                "deadline_ms": 60000, "pause_max_ms": 60000}]})";
}

Guest start_guest(const RuntimeFolder& folder, unsigned vcpus) {
  GuestOptions options;
  options.vcpus = vcpus;
  return Guest(folder, std::move(options));
}

}  // namespace

EventDaemon::EventDaemon() { daemon_.emplace(folder_, DaemonOptions{.config = config(), .arguments = {}}); }

Stage::Stage(EventDaemon& daemon, unsigned vcpus)
    : guest(start_guest(daemon.folder(), vcpus)),
      agent(attach(daemon.daemon().agent_socket(), guest.wait_online().uuid(), "decider")),
      agent_socket_(daemon.daemon().agent_socket()) {
  before_ = guest.mailbox();
}

void Stage::subscribe(EventKind kind) { check(agent.subscribe(only(kind), Role::Decider)); }

client::ReceivedEvent Stage::provoke(GuestMode mode) {
  before_ = guest.mailbox();
  guest.set_mode(mode);
  auto event = next_event();
  guest.set_mode(GuestMode::Idle);
  return event;
}

client::ReceivedEvent Stage::next_event() {
  auto event = check(agent.wait_event(kBound));
  if (!event) throw TestError("no event came\n" + guest.process().tail());
  return *event;
}

client::ReceivedNotice Stage::next_notice() {
  for (;;) {
    const auto message = check(agent.next_message(kBound));
    if (!message) throw TestError("no notice came");
    if (const auto* notice = std::get_if<client::ReceivedNotice>(&*message)) return *notice;
  }
}

unsigned Stage::finish(GuestMode mode, std::uint64_t times) {
  unsigned events = 0;
  const std::uint64_t target = done_before(mode) + times;
  const bool finished = wait_until([&] {
    if (done(mode) >= target) return true;
    if (const auto event = check(agent.wait_event(kLook))) {
      check(agent.reply(*event, Action::Allow));
      ++events;
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
