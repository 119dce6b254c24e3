// SPDX-License-Identifier: GPL-2.0-or-later
// What a GuestSession does with the effects of its machine: messages into outboxes, reports into the log.
#include <spdlog/logger.h>

#include <algorithm>
#include <chrono>

#include "daemon/io/guest_links.h"
#include "daemon/io/registry.h"

namespace kvmid::io {

void GuestSession::perform() {
  perform_effects();
  // Bridges have messages for the machine: each is an input of its own, with effects that may make further ones.
  while (feed_from_bridges()) {
  }
}

void GuestSession::perform_effects() {
  for (const core::Effect& effect : effects_) {
    std::visit(Overloaded{
                   [&](const core::SendCommand& e) { send_to_hypervisor(e.command, e.seq); },
                   [&](const core::SendEventReply& e) {
                     send_to_hypervisor(e.reply, e.seq);
                     if (services_.witnesses.tapped()) tap_outcome(e);
                   },
                   [&](const core::SendEvent& e) { send_event(e); },
                   [&](const core::SendReply& e) {
                     if (auto* agent = writable(e.agent)) deliver(*agent, e.reply, e.seq);
                   },
                   [&](const core::SendNotice& e) {
                     if (auto* agent = writable(e.agent)) {
                       if (e.notice.kind == NoticeKind::Revoked)
                         audit_agent(AuditKind::AgentRevoked, *agent, e.notice.text);
                       deliver(*agent, e.notice);
                     }
                   },
                   [&](const core::SendGuestOn& e) { send_guest_on(e.agent); },
                   [&](const core::SendGuestOff& e) { send_guest_off(e); },
                   [&](const core::CloseAgent& e) {
                     if (auto* agent = find(e.agent)) lose(*agent, e.reason, true);
                   },
                   [&](const core::CloseHypervisor& e) { lose_hypervisor(e.reason, e.text, true); },
                   [&](const core::GuestReady&) {
                     if (hypervisor_) hypervisor_->served = true;
                     services_.registry.set_ready(
                         uuid(), {machine_.facts().vcpu_count, start_time_, machine_.facts().max_gpa});
                     tap_guest(true, {});
                   },
                   [&](const core::Report& e) { report(e); },
                   [&](const core::ReadRam& e) { answer_read(e); },
                   [&](const core::GrantRam& e) { answer_grant(e); },
                   [&](const core::RevokeRam& e) { revoke_ram(e.agent); },
                   [&](const auto& e) {
                     if (ram_) ram_->apply(e);  // changes of RAM
                   },
               },
               effect);
  }
  effects_.clear();
}

GuestSession::AgentLink* GuestSession::find(AgentId id) {
  for (const auto& agent : agents_) {
    if (agent->id == id) return agent.get();
  }
  return nullptr;
}

GuestSession::AgentLink* GuestSession::writable(AgentId id) {
  AgentLink* agent = find(id);
  return agent != nullptr && !agent->lost ? agent : nullptr;
}

/// A message was composed for the agent: it is charged to it, or the agent is lost for not reading what it asked for.
void GuestSession::queued(AgentLink& agent) {
  if (!agent.connection->outbox().commit()) {
    if (!agent.lost) add_one(services_.counters.slow_readers);
    return lose(agent, "slow reader: more than quota.queue_bytes is waiting for it", false);
  }
  if (agent.dirty) return;
  agent.dirty = true;
  dirty_.push_back(agent.connection.get());
}

void GuestSession::hypervisor_queued() {
  if (!hypervisor_->connection->outbox().commit()) {
    add_one(services_.counters.slow_readers);
    return lose_hypervisor(OffReason::LinkLost, "slow reader: it does not take what is sent to it", false);
  }
  if (hypervisor_->dirty) return;
  hypervisor_->dirty = true;
  dirty_.push_back(hypervisor_->connection.get());
}

/// A Command or an EventReply.
template <class Message>
void GuestSession::send_to_hypervisor(const Message& message, Seq seq) {
  if (!hypervisor_ || hypervisor_->lost) return;
  ByteBuffer& out = hypervisor_->connection->outbox().compose();
  if (!hypervisor_->bridge) {
    hypervisor_->dialect.encode(message, seq, out);
    return hypervisor_queued();
  }
  const std::size_t before = out.size();
  hypervisor_->bridge->send(message, seq, out);
  if (out.size() != before) hypervisor_queued();  // a bridge may answer by itself
}

/// An Event or a CommandReply. REQUIRES: the agent is not lost.
template <class Message>
void GuestSession::deliver(AgentLink& agent, const Message& message, Seq seq) {
  ByteBuffer& out = agent.connection->outbox().compose();
  if (!agent.bridge) {
    agent.dialect.encode(message, seq, out);
    return queued(agent);
  }
  const std::size_t before = out.size();
  agent.bridge->deliver(message, seq, out);
  bridge_wrote(agent, before);
}

template void GuestSession::deliver(AgentLink& agent, const CommandReply& message, Seq seq);

void GuestSession::deliver(AgentLink& agent, const Notice& notice) {
  ByteBuffer& out = agent.connection->outbox().compose();
  if (!agent.bridge) {
    agent.dialect.encode(notice, out);
    return queued(agent);
  }
  const std::size_t before = out.size();
  agent.bridge->deliver(notice, out);
  bridge_wrote(agent, before);
}

void GuestSession::send_event(const core::SendEvent& effect) {
  AgentLink* agent = writable(effect.agent);
  if (agent == nullptr) return;
  const Event* event = effect.event;
  if (event->decide != effect.decide || event->deadline_us != effect.deadline_us) {
    event_scratch_ = *event;
    event_scratch_.decide = effect.decide;
    event_scratch_.deadline_us = effect.deadline_us;
    event = &event_scratch_;
  }
  deliver(*agent, *event, effect.seq);
}

void GuestSession::send_guest_on(AgentId id) {
  AgentLink* agent = writable(id);
  if (agent == nullptr) return;
  // These dialects know a guest's return as a new connection only.
  if (agent->bridge) return lose(*agent, "the guest is back: it is connected to anew", true);
  GuestOn message;
  std::copy(uuid().bytes.begin(), uuid().bytes.end(), message.guest.uuid);
  copy_text(machine_.name(), message.guest.name, sizeof message.guest.name);
  message.guest.vcpu_count = machine_.facts().vcpu_count;
  message.guest.state = KVMI_GUEST_ONLINE;
  agent->dialect.encode(message, agent->connection->outbox().compose());
  queued(*agent);
}

void GuestSession::send_guest_off(const core::SendGuestOff& effect) {
  AgentLink* agent = writable(effect.agent);
  if (agent == nullptr) return;
  if (agent->bridge) return tool_guest_off(*agent, effect.reason);
  agent->dialect.encode(GuestOff{uuid(), effect.reason, effect.text}, agent->connection->outbox().compose());
  queued(*agent);
}

void GuestSession::refuse_for_backlog(AgentLink& agent, Seq seq, const Command& command) {
  const CommandReply reply{.id = static_cast<std::uint16_t>(id_of(command)),
                           .error = ErrorCode::Busy,
                           .text = "the hypervisor does not keep up with the commands of its agents",
                           .body = {}};
  deliver(agent, reply, seq);
}

namespace {

using core::Fact;

/// Fields behind the words of a log line.
struct Line {
  std::string text;
  void add(std::string_view key, std::string_view value) {
    text += ' ';
    text += key;
    text += '=';
    text += value;
  }
  void add(std::string_view key, std::uint64_t value) { add(key, std::to_string(value)); }
};

bool tells_of_event(Fact fact) {
  return fact == Fact::ReplyRefused || fact == Fact::Expired || fact == Fact::Decided;
}
bool tells_of_command(Fact fact) {
  return fact == Fact::CommandRefused || fact == Fact::CommandTimedOut || fact == Fact::UnionRefused ||
         fact == Fact::CommandGranted || fact == Fact::CommandFailed;
}

/// Just the fields that this fact has: a number that means nothing would be taken for one that does.
std::string fields_of(const core::Report& e, std::string_view guest) {
  Line line;
  if (e.agent != AgentId{}) line.add("agent", e.agent.value);
  line.add("guest", field(guest));
  const bool of_vcpu = e.fact == Fact::CommandTimedOut || e.fact == Fact::UnionRefused;
  if (tells_of_event(e.fact) || of_vcpu) line.add("vcpu", e.vcpu == kAllVcpus ? "all" : std::to_string(e.vcpu.value));
  if (e.seq != Seq{}) line.add("seq", e.seq.value);
  if (tells_of_event(e.fact) || e.fact == Fact::Demoted) line.add("event", name_of(e.event));
  if (e.fact == Fact::Expired || e.fact == Fact::Decided) line.add("action", name_of(e.action));
  if (tells_of_command(e.fact) && e.command != CommandId{}) line.add("command", name_of(e.command));
  if (e.fact == Fact::CommandGranted && e.amount != 0) {
    line.add("gpa", e.gpa.value);
    line.add(e.command == CommandId::SetPageAccess ? "pages" : "bytes", e.amount);
  }
  if (e.error != ErrorCode::None) line.add("error", name_of(e.error));
  if (!e.text.empty()) line.add("reason", field(e.text));
  return line.text;
}

}  // namespace

void GuestSession::report(const core::Report& e) {
  if (services_.witnesses.audited()) audit_fact(e);
  log_fact(e);
}

void GuestSession::log_fact(const core::Report& e) {
  auto& log = services_.log;
  const auto agent_line = [&](spdlog::level::level_enum level, std::string_view what) {
    if (!log.should_log(level)) return;
    std::uint64_t suppressed = 0;
    if (auto* link = find(e.agent)) {
      if (!link->log_budget.allow(std::chrono::steady_clock::now())) return;
      suppressed = link->log_budget.suppressed();
    }
    if (suppressed != 0) log.warn("log lines left out agent={} lines={}", e.agent.value, suppressed);
    log.log(level, "{}{}", what, fields_of(e, machine_.name()));
  };
  switch (e.fact) {
    case Fact::ProtocolError:
      log.warn("hypervisor broke the protocol guest={} vcpu={} seq={} reason={}", field(machine_.name()), e.vcpu.value,
               e.seq.value, field(e.text));
      return;
    case Fact::Linked:
      log.info("guest online guest={} uuid={} vcpus={}", field(machine_.name()), to_string(uuid()),
               machine_.facts().vcpu_count);
      return;
    case Fact::LinkLost:
      log.debug("guest away guest={} uuid={}", field(machine_.name()), to_string(uuid()));
      return;
    case Fact::CommandRefused: return agent_line(spdlog::level::debug, "command refused");
    case Fact::CommandTimedOut: return agent_line(spdlog::level::warn, "command timed out");
    case Fact::CommandGranted: return agent_line(spdlog::level::debug, "command granted");
    case Fact::CommandFailed: return agent_line(spdlog::level::debug, "command failed");
    case Fact::ReplyRefused: return agent_line(spdlog::level::info, "reply refused");
    case Fact::Expired: return agent_line(spdlog::level::info, "deadline missed");
    case Fact::Demoted: return agent_line(spdlog::level::warn, "agent demoted to observer");
    case Fact::Decided: return agent_line(spdlog::level::debug, "event decided");
    case Fact::UnionRefused: return agent_line(spdlog::level::warn, "wish not taken back by the hypervisor");
  }
}

}  // namespace kvmid::io
