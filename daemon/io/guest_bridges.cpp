// SPDX-License-Identifier: GPL-2.0-or-later
// What a GuestSession does for peers of older dialects: bytes into their bridges, messages out of them.
#include <spdlog/logger.h>

#include <algorithm>
#include <chrono>

#include "daemon/io/guest_links.h"
#include "daemon/io/peer.h"

namespace kvmid::io {

using Clock = std::chrono::steady_clock;

namespace {
/// How long a tool that was told UNHOOK may clean up before it closes its connection, as QEMU waits.
constexpr std::chrono::seconds kUnhookTimeout{60};
/// And while kvmid stops: less than Broker::kStopTimeout.
constexpr std::chrono::seconds kUnhookTimeoutStopping{1};
}  // namespace

/// One message of one bridge goes into the machine. False: there is none. REQUIRES: the effects before are performed.
bool GuestSession::feed_from_bridges() {
  if (hypervisor_ && hypervisor_->bridge && !hypervisor_->lost) {
    auto& up = hypervisor_->bridge->up();
    if (!up.empty()) {
      const auto passed = up.take();
      serve_upward(passed.seq, passed.message);
      perform_effects();  // they may view what `passed` holds
      return true;
    }
    if (hypervisor_->bridge->let_go())
      lose_hypervisor(hypervisor_->unhooked_for, "it lets the guest go, and is confirmed so", true);
  }
  if (tools_ == 0) return false;
  for (const auto& agent : agents_) {
    if (!agent->bridge || agent->lost || agent->bridge->down().empty()) continue;
    const auto passed = agent->bridge->down().take();
    serve_downward(*agent, passed.seq, passed.message);
    perform_effects();
    return true;
  }
  return false;
}

void GuestSession::serve_upward(Seq seq, const Upward& message) {
  const auto* event = std::get_if<Event>(&message);
  if (event != nullptr && hypervisor_ && hypervisor_->bridge)
    if (const auto* unhook = std::get_if<UnhookData>(&event->data)) hypervisor_->unhooked_for = unhook->reason;
  machine_.on_hypervisor_message(seq, message, Clock::now(), effects_);
  if (event != nullptr && services_.witnesses.tapped()) tap_event(*event);
}

// ---- hypervisors ----

void GuestSession::older_hypervisor_sent(const Frame& frame) {
  HypervisorLink& link = *hypervisor_;
  if (link.lost) return;
  ByteBuffer& out = link.connection->outbox().compose();
  const std::size_t before = out.size();
  const auto understood = link.bridge->received(frame, out);
  if (out.size() != before) hypervisor_queued();
  tell_dialect();
  perform();
  if (understood || !hypervisor_ || hypervisor_->lost) return;

  services_.log.warn("hypervisor sent a malformed message guest={} dialect={} reason={}", field(machine_.name()),
                     link.dialect_name(), field(understood.error()));
  if (link.served)  // else it is told as a start that failed
    services_.failures.add({.time = {},
                            .side = FailureSide::Hypervisor,
                            .peer = to_string(link.peer),
                            .guest = machine_.name(),
                            .step = step::kDialect,
                            .text = understood.error()});
  lose_hypervisor(OffReason::ProtocolError, understood.error(), true);
  machine_.on_hypervisor_malformed({}, Clock::now(), effects_);
  perform();
}

void GuestSession::tell_dialect() {
  if (hypervisor_->dialect_told || !hypervisor_->bridge->dialect()) return;
  hypervisor_->dialect_told = true;
  last_dialect_ = hypervisor_->dialect_name();
  services_.log.info("hypervisor speaks guest={} uuid={} dialect={}", field(machine_.name()), to_string(uuid()),
                     last_dialect_);
}

// ---- tools ----

bridge::ToolRights GuestSession::rights_of(const core::Grant& grant) const {
  bridge::ToolRights rights;
  rights.commands = machine_.commands_for(grant);
  rights.events = machine_.events_for(grant);
  rights.unserved_commands = CommandSet{grant.commands.bits & ~rights.commands.bits};
  rights.unserved_events = EventSet{grant.events.bits & ~rights.events.bits};
  rights.role = grant.role;
  rights.requests_max = std::max<std::uint32_t>(grant.quota.requests_max, 1);
  return rights;
}

void GuestSession::tool_sent(AgentLink& agent, const Frame& frame) {
  const std::size_t before = agent.connection->outbox().compose().size();
  const auto understood = agent.bridge->received(frame, agent.connection->outbox().compose());
  bridge_wrote(agent, before);
  perform();
  if (!understood) tool_broke(agent, understood.error());
}

/// Its bridge had its turn: what it wrote is queued, and what it says is obeyed.
void GuestSession::bridge_wrote(AgentLink& agent, std::size_t size_before) {
  if (agent.connection->outbox().compose().size() != size_before) queued(agent);
  if (const auto& broken = agent.bridge->broken()) tool_broke(agent, *broken);
}

void GuestSession::tool_broke(AgentLink& agent, const std::string& text) {
  if (agent.lost) return;
  services_.failures.add({.time = {},
                          .side = FailureSide::Dial,
                          .peer = agent.name + " " + agent.dialed->address,
                          .guest = machine_.name(),
                          .step = step::kDialect,
                          .text = text});
  lose(agent, "it broke dialect " + std::string(name_of(agent.bridge->dialect())) + ": " + text, true);
}

/// UNHOOK, where the tool wants to hear of it; it answers by closing. Else it is closed, as QEMU does.
void GuestSession::tool_guest_off(AgentLink& agent, OffReason reason) {
  const auto until = Clock::now() + (stopping_ ? kUnhookTimeoutStopping : kUnhookTimeout);
  if (agent.close_by) {
    agent.close_by = std::min(*agent.close_by, until);
    return;
  }
  const std::size_t before = agent.connection->outbox().compose().size();
  const bool told = agent.bridge->guest_off(reason, agent.connection->outbox().compose());
  bridge_wrote(agent, before);
  if (!told) return lose(agent, "the guest goes: " + std::string(name_of(reason)), true);
  agent.close_by = until;
}

void GuestSession::close_late_tools(core::TimePoint now) {
  if (tools_ == 0) return;
  for (const auto& agent : agents_)
    if (agent->close_by && *agent->close_by <= now)
      lose(*agent, "it was told that the guest goes, and did not close its connection in time", true);
}

bool GuestSession::tools_leaving() const {
  return tools_ != 0 &&
         std::any_of(agents_.begin(), agents_.end(), [](const auto& agent) { return agent->close_by.has_value(); });
}

/// Its socket closes with `arrival`, and the dialler tries again.
void GuestSession::refuse_dialed(const AgentArrival& arrival, std::string_view step, std::string_view text) {
  services_.failures.add({.time = {},
                          .side = FailureSide::Dial,
                          .peer = arrival.hello.name + " " + arrival.dialed->address,
                          .guest = machine_.name(),
                          .step = step,
                          .text = std::string(text)});
}

}  // namespace kvmid::io
