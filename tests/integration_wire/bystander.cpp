// SPDX-License-Identifier: GPL-2.0-or-later
#include "tests/integration_wire/bystander.h"

#include <stdexcept>
namespace kvmid::test {
namespace {
constexpr std::chrono::milliseconds kPause{1};
}  // namespace

client::AgentClient attach_agent(const std::string& socket_path, const Uuid& guest, const std::string& name) {
  std::optional<client::AgentClient> agent;
  std::string why;
  const bool attached = wait_until([&] {
    auto connected = client::AgentClient::connect({.socket = socket_path,
                                                   .name = name,
                                                   .guest = guest,
                                                   .timeout = std::chrono::duration_cast<Millis>(kPatience)});
    if (connected) {
      agent.emplace(std::move(*connected));
      return true;
    }
    why = connected.error().text;
    // The guest's first answers may still be on their way; everything else is final.
    return connected.error().code != ErrorCode::NoEntry;
  });
  if (!attached || !agent) throw std::runtime_error("agent " + name + " was not let in: " + why);
  return std::move(*agent);
}

Bystander::Bystander(const std::string& hypervisor_socket, const std::string& agent_socket)
    : hypervisor_(hypervisor_socket, ScriptedGuest{.uuid = uuid_of(0xbb), .name = "bystander"}),
      agent_(attach_agent(agent_socket, uuid_of(0xbb), "bystander-agent")) {
  EventSet events;
  events.add(EventKind::Hypercall);
  const auto subscribed = agent_.subscribe(events, Role::Decider);
  if (!subscribed) throw std::runtime_error("bystander: " + subscribed.error().text);
  thread_ = std::thread([this] { run(); });
}

Bystander::~Bystander() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  stop_wanted_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void Bystander::run() {
  try {
    // A few hundred rounds a second are enough to notice any disturbance and leave the cores to the test.
    std::unique_lock lock(mutex_);
    while (!stop_wanted_.wait_for(lock, kPause, [&] { return stop_; })) {
      lock.unlock();
      round();
      rounds_.fetch_add(1, std::memory_order_relaxed);
      lock.lock();
    }
  } catch (const std::exception& error) {
    const std::lock_guard failed(mutex_);
    failure_ = error.what();
  }
}

void Bystander::round() {
  Event event = make_event(EventKind::Hypercall);
  event.regs.rax = rounds();
  const Seq seq = hypervisor_.raise(event);
  const auto message = agent_.next_message(std::chrono::duration_cast<Millis>(kPatience));
  if (!message) throw std::runtime_error("the bystander's agent: " + message.error().text);
  if (!*message) throw std::runtime_error("the bystander's agent was told nothing");
  const auto* seen = std::get_if<client::ReceivedEvent>(&**message);
  if (seen == nullptr) throw std::runtime_error("the bystander's agent got something that is no event");
  if (seen->event.regs.rax != rounds()) throw std::runtime_error("the bystander's agent got another event");
  const Action action = rounds() % 2 == 0 ? Action::Allow : Action::Skip;
  if (const auto sent = agent_.reply(*seen, action); !sent) throw std::runtime_error("reply: " + sent.error().text);
  const auto reply = hypervisor_.wait_reply(seq);
  if (!reply) throw std::runtime_error("the bystander's hypervisor was disconnected");
  if (reply->action != action) throw std::runtime_error("the bystander's event ended with another action");
}

void Bystander::check(std::uint64_t rounds) {
  const std::uint64_t wanted = this->rounds() + rounds;
  const bool reached = wait_until([&] {
    const std::lock_guard lock(mutex_);
    return !failure_.empty() || this->rounds() >= wanted;
  });
  const std::lock_guard lock(mutex_);
  if (!failure_.empty()) throw std::runtime_error("the bystander was disturbed: " + failure_);
  if (!reached) throw std::runtime_error("the bystander stands still");
}

}  // namespace kvmid::test
