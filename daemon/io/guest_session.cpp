// SPDX-License-Identifier: GPL-2.0-or-later
// The life of a guest on its shard: who comes, who goes, and the end of a step. Effects are in guest_effects.cpp.
#include "daemon/io/guest_session.h"

#include <spdlog/logger.h>

#include <algorithm>
#include <chrono>

#include "daemon/io/frame_refusal.h"
#include "daemon/io/guest_links.h"
#include "daemon/io/peer.h"
#include "daemon/io/registry.h"
#include "daemon/io/shard.h"
#include "daemon/io/welcome.h"

namespace kvmid::io {

using Clock = std::chrono::steady_clock;

namespace {
constexpr std::string_view kStopping = "kvmid is stopping";

/// What the configuration of a dialed tool says of it: a role is a limit, as policy is.
void limit(core::Grant& grant, const DialedArrival& dialed) {
  if (dialed.role == Role::Observer) grant.role = Role::Observer;
  if (dialed.priority) grant.priority = *dialed.priority;
}

/// Larger than any cookie of the guest's former lives, here or under another kvmid: nobody makes a change in each
/// microsecond. After a clock was set back it is less, but by far more than what those lives counted. Not nanoseconds:
/// cookies are told in JSON too, where many programs take numbers for doubles, which are exact up to 2^53.
std::uint64_t cookie_seed() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::microseconds>(now).count());
}
}

GuestSession::GuestSession(Shard& shard, unsigned shard_number, const HypervisorHello& hello, const Services& services)
    : shard_(shard),
      shard_number_(shard_number),
      services_(services),
      machine_(hello, services.limits, cookie_seed()) {}

GuestSession::~GuestSession() {
  if (hypervisor_) hypervisor_->connection->close();
  for (const auto& agent : agents_) agent->connection->close();
}

// ---- the hypervisor ----

void GuestSession::link(HypervisorArrival arrival) {
  shard_.adopt(shared_from_this());
  if (stopping_ || dropped_ || hypervisor_) return;  // stopping: the socket closes with `arrival`
  const HypervisorHello hello = std::move(arrival.hello);
  std::unique_ptr<bridge::HypervisorBridge> bridge;
  if (!hello.kvmi2)
    bridge = std::make_unique<bridge::HypervisorBridge>(hello, bridge::HypervisorBridge::Options{arrival.dialect});
  auto connection = std::make_shared<Connection>(shard_.context(), std::move(arrival.fd),
                                                 bridge ? bridge->payload_max() : KVMI_MAX_PAYLOAD,
                                                 kHypervisorQueueMax);
  hypervisor_ = std::make_unique<HypervisorLink>(*this, connection, arrival, std::move(bridge));
  last_hypervisor_ = hypervisor_->peer;
  start_time_ = hello.start_time;
  services_.log.info("hypervisor connected guest={} uuid={} dialect={} {} shard={}", field(hello.name),
                     to_string(hello.uuid), hypervisor_->dialect_name(), to_string(hypervisor_->peer), shard_number_);
  last_dialect_ = hypervisor_->dialect_name();
  hypervisor_->dialect_told = !hypervisor_->bridge || hypervisor_->bridge->dialect();
  audit_hypervisor(AuditKind::HypervisorAttached, {});
  connection->start(*hypervisor_);
  map_ram(hello, std::move(arrival.ram));
  machine_.on_hypervisor_connected(hello, Clock::now(), effects_);
  perform();
  finish_step();
}

void GuestSession::HypervisorLink::on_frame(const Frame& frame) {
  if (bridge) return session_.older_hypervisor_sent(frame);
  auto message = dialect.decode_upward(frame);
  if (message) {
    session_.serve_upward(frame.seq, *message);
  } else {
    session_.services_.log.warn("hypervisor sent a malformed message guest={} reason={}",
                                field(session_.machine_.name()), field(describe(message.error())));
    session_.machine_.on_hypervisor_malformed(message.error(), Clock::now(), session_.effects_);
  }
  session_.perform();
}

void GuestSession::HypervisorLink::on_frame_refused(const FrameError& error) {
  add_one(session_.services_.counters.frames_refused);
  const DecodeError as_message{DecodeErrc::TooLong, error.id, error.size};
  session_.machine_.on_hypervisor_malformed(as_message, Clock::now(), session_.effects_);
  session_.perform();
  session_.lose_hypervisor(OffReason::ProtocolError, "sent a frame that is too large", true);
}

void GuestSession::HypervisorLink::on_lost(std::string_view why) {
  session_.lose_hypervisor(OffReason::LinkLost, why, false);
  session_.finish_step();  // destroys *this
}

// ---- agents ----

kvmi_welcome GuestSession::welcome_for(const AgentArrival& arrival) const {
  kvmi_welcome welcome = welcome_from(arrival.id, arrival.grant);
  welcome.commands = machine_.commands_for(arrival.grant).bits;
  welcome.events = machine_.events_for(arrival.grant).bits;
  welcome.vcpu_count = machine_.facts().vcpu_count;
  std::copy(uuid().bytes.begin(), uuid().bytes.end(), welcome.uuid);
  copy_text(machine_.name(), welcome.guest_name, sizeof welcome.guest_name);
  return welcome;
}

void GuestSession::attach(AgentArrival arrival) {
  if (arrival.dialed) {
    if (dropped_ || !machine_.online()) return refuse_dialed(arrival, step::kGuest, "the guest is away");
    limit(arrival.grant, *arrival.dialed);
  }
  if (dropped_) return refuse_agent(arrival.fd.get(), ErrorCode::NoEntry, "the guest is gone");
  const auto attached = machine_.attach(arrival.id, arrival.hello.name, arrival.grant, arrival.hello.flags);
  if (!attached) {
    add_one(services_.counters.connections_refused);
    services_.log.info("agent refused agent={} name={} guest={} {} error={} reason={}", arrival.id.value,
                       field(arrival.hello.name), field(machine_.name()), to_string(arrival.peer),
                       name_of(attached.error().error), field(attached.error().text));
    audit_refusal(arrival, attached.error());
    if (arrival.dialed) return refuse_dialed(arrival, step::kLimits, attached.error().text);
    refuse_agent(arrival.fd.get(), attached.error().error, attached.error().text);
    return;
  }
  const kvmi_welcome welcome = welcome_for(arrival);
  std::unique_ptr<bridge::AgentBridge> bridge;
  if (arrival.dialed)
    bridge = std::make_unique<bridge::AgentBridge>(bridge::AgentBridge::Options{.dialect = arrival.dialed->dialect},
                                                   rights_of(arrival.grant));
  auto connection = std::make_shared<Connection>(shard_.context(), std::move(arrival.fd),
                                                 bridge ? bridge->payload_max() : KVMI_MAX_PAYLOAD,
                                                 arrival.grant.quota.queue_bytes_max);
  services_.log.info("agent attached agent={} name={} guest={} {} role={} policy={} dialect={}", arrival.id.value,
                     field(arrival.hello.name), field(machine_.name()), to_string(arrival.peer),
                     name_of(arrival.grant.role), field(arrival.grant.rule),
                     bridge ? name_of(bridge->dialect()) : "kvmi2");
  AgentLink& agent = *agents_.emplace_back(std::make_unique<AgentLink>(*this, connection, arrival, std::move(bridge)));
  audit_agent(AuditKind::AgentAttached, agent, {});
  if (agent.bridge) {
    ++tools_;
  } else {
    encode(welcome, connection->outbox().compose());
    queued(agent);
  }
  connection->start(agent);
  finish_step();
}

void GuestSession::AgentLink::on_frame(const Frame& frame) {
  if (lost) return;
  if (bridge) return session_.tool_sent(*this, frame);
  auto message = dialect.decode_downward(frame);
  if (!message) {
    const std::string text = describe(message.error());
    session_.machine_.on_agent_malformed(id, frame.seq, message.error(), text, Clock::now(), session_.effects_);
    session_.perform();
    if (++malformed_in_a_row < kMalformedMax) return;
    add_one(session_.services_.counters.malformed_closed);
    refuse_frame(ErrorCode::Invalid, kTooManyMalformed);
    return session_.lose(*this, "too many malformed messages in a row", true);
  }
  malformed_in_a_row = 0;
  if (goes_up_only(frame.id)) {
    add_one(session_.services_.counters.frames_refused);
    session_.report(core::Report{.fact = core::Fact::CommandRefused,
                                 .agent = id,
                                 .seq = frame.seq,
                                 .error = ErrorCode::NotServed,
                                 .text = kGoesUpOnly});
    return refuse_frame(ErrorCode::NotServed, kGoesUpOnly);
  }
  session_.serve_downward(*this, frame.seq, *message);
  session_.perform();
}

void GuestSession::serve_downward(AgentLink& agent, Seq seq, const Downward& message) {
  const auto* command = std::get_if<Command>(&message);
  if (command != nullptr && hypervisor_ && hypervisor_->connection->queued_bytes() > kHypervisorQueueBusy)
    return refuse_for_backlog(agent, seq, *command);
  machine_.on_agent_message(agent.id, seq, message, Clock::now(), effects_);
}

void GuestSession::AgentLink::on_frame_refused(const FrameError& error) {
  add_one(session_.services_.counters.frames_refused);
  if (bridge)
    return session_.tool_broke(*this, "a message of " + std::to_string(error.size) + " bytes is over its limit");
  refuse_frame(ErrorCode::Invalid, "a frame is larger than the limit: " + std::to_string(error.size) + " bytes");
  session_.lose(*this, "sent a frame that is too large", true);
}

void GuestSession::AgentLink::refuse_frame(ErrorCode error, std::string_view text) {
  dialect.encode(frame_refusal(error, text), connection->outbox().compose());
  session_.queued(*this);
}

void GuestSession::AgentLink::on_lost(std::string_view why) {
  session_.lose(*this, why, false);
  session_.finish_step();  // destroys *this
}

void GuestSession::dismiss(AgentId id, std::string_view reason) {
  AgentLink* agent = find(id);
  if (agent == nullptr) return;
  lose(*agent, reason, true);
  finish_step();
}

PolicyEffect GuestSession::apply(const core::Policy& policy, const core::GuestLimits& limits) {
  PolicyEffect effect;
  machine_.set_limits(limits);
  for (const auto& agent : agents_) {  // who is lost stays in the list until the end of the step
    if (agent->lost) continue;
    ++effect.agents;
    const auto now = Clock::now();
    if (const core::Grant* found = core::find_grant(policy, agent->peer, machine_.name(), uuid())) {
      core::Grant grant = *found;
      if (agent->dialed) limit(grant, *agent->dialed);
      agent->rule = grant.rule;
      agent->role = grant.role;
      agent->connection->set_queue_bytes_max(grant.quota.queue_bytes_max);
      if (agent->bridge) agent->bridge->set_rights(rights_of(grant));
      machine_.on_grant_changed(agent->id, grant, now, effects_);
    } else {
      ++effect.closed;
      add_one(services_.counters.agents_revoked);
      machine_.on_grant_lost(agent->id, now, effects_);
    }
    perform();
  }
  finish_step();
  return effect;
}

// ---- steps ----

std::optional<core::TimePoint> GuestSession::next_deadline() const {
  auto earliest = machine_.next_deadline();
  if (tools_ == 0) return earliest;
  for (const auto& agent : agents_)
    if (agent->close_by && (!earliest || *agent->close_by < *earliest)) earliest = agent->close_by;
  return earliest;
}

void GuestSession::on_time(core::TimePoint now) {
  close_late_tools(now);
  machine_.on_time(now, effects_);
  perform();
  finish_step();
}

void GuestSession::stop() {
  if (stopping_) return;
  stopping_ = true;
  machine_.stop(Clock::now(), effects_);
  perform();
  finish_step();
}

void GuestSession::finish_step() {
  flush_dirty();
  // Losing a peer makes effects for others, and writing those can lose another: until nothing is left.
  while (agents_lost_ || (hypervisor_ && hypervisor_->lost)) {
    if (agents_lost_) drop_lost_agents();
    if (hypervisor_ && hypervisor_->lost) drop_lost_hypervisor();
    flush_dirty();
  }
  if (stopping_ && machine_.settled() && !tools_leaving()) close_everything();
  if (idle()) return shard_.drop_later(*this);
  shard_.arm(next_deadline());
}

void GuestSession::flush_dirty() {
  for (auto* connection : dirty_) {
    if (connection->flush()) continue;
    if (hypervisor_ && hypervisor_->connection.get() == connection)
      lose_hypervisor(OffReason::LinkLost, "closed by the peer", false);
    for (const auto& agent : agents_) {
      if (agent->connection.get() == connection) lose(*agent, "closed by the peer", false);
    }
  }
  dirty_.clear();
  if (hypervisor_) hypervisor_->dirty = false;
  for (const auto& agent : agents_) agent->dirty = false;
}

void GuestSession::drop_lost_agents() {
  agents_lost_ = false;
  for (;;) {
    const auto it = std::find_if(agents_.begin(), agents_.end(), [](const auto& agent) { return agent->lost; });
    if (it == agents_.end()) return;
    const std::unique_ptr<AgentLink> gone = std::move(*it);
    agents_.erase(it);
    if (gone->bridge) --tools_;
    std::erase(dirty_, gone->connection.get());
    gone->flush_first ? gone->connection->finish() : gone->connection->close();
    machine_.on_agent_lost(gone->id, Clock::now(), effects_);
    perform();
  }
}

void GuestSession::drop_lost_hypervisor() {
  const std::unique_ptr<HypervisorLink> gone = std::move(hypervisor_);
  std::erase(dirty_, gone->connection.get());
  gone->flush_first ? gone->connection->finish() : gone->connection->close();
  machine_.on_hypervisor_lost(gone->reason, Clock::now(), effects_);
  perform();
  ram_.reset();
  for (const auto& agent : agents_) agent->ram_grant.reset();
  tap_guest(false, gone->reason);
  services_.registry.set_away(uuid(), gone->reason, gone->text);
}

void GuestSession::close_everything() {
  if (hypervisor_) {
    audit_hypervisor(AuditKind::HypervisorLost, kStopping);
    hypervisor_->connection->finish();
    hypervisor_.reset();
  }
  for (const auto& agent : agents_) {
    audit_agent(AuditKind::AgentDetached, *agent, kStopping);
    agent->connection->finish();
  }
  agents_.clear();
  tools_ = 0;
  tap_guest(false, OffReason::DaemonStopping);
  services_.registry.set_away(uuid(), OffReason::DaemonStopping, kStopping);
}

void GuestSession::lose(AgentLink& agent, std::string_view reason, bool flush_first) {
  if (agent.lost) return;
  agent.lost = agents_lost_ = true;
  agent.flush_first = flush_first;
  agent.connection->stop_reading();
  services_.log.info("agent gone agent={} name={} guest={} reason={}", agent.id.value, field(agent.name),
                     field(machine_.name()), field(reason));
  audit_agent(AuditKind::AgentDetached, agent, reason);
}

void GuestSession::lose_hypervisor(OffReason reason, std::string_view text, bool flush_first) {
  if (!hypervisor_ || hypervisor_->lost) return;
  hypervisor_->lost = true;
  hypervisor_->flush_first = flush_first;
  hypervisor_->reason = reason;
  hypervisor_->text = text;
  hypervisor_->connection->stop_reading();
  if (!hypervisor_->served)
    services_.failures.add({.time = {},
                            .side = FailureSide::Hypervisor,
                            .peer = to_string(hypervisor_->peer),
                            .guest = machine_.name(),
                            .step = reason == OffReason::ProtocolError ? step::kDialect : step::kStart,
                            .text = std::string(text)});
  services_.log.info("hypervisor gone guest={} uuid={} cause={} reason={}", field(machine_.name()), to_string(uuid()),
                     name_of(reason), field(text));
  audit_hypervisor(AuditKind::HypervisorLost, text);
}

// ---- for people ----

GuestSnapshot GuestSession::snapshot() const {
  GuestSnapshot snapshot;
  snapshot.uuid = uuid();
  snapshot.name = machine_.name();
  snapshot.dialect = last_dialect_;
  core::Grant everything;
  everything.commands.bits = ~std::uint64_t{0};
  everything.events = kEveryEvent;
  snapshot.commands = machine_.commands_for(everything);
  snapshot.events = machine_.events_for(everything);
  snapshot.shard = shard_number_;
  snapshot.hypervisor = last_hypervisor_;
  snapshot.taken_at = Clock::now();
  snapshot.info = machine_.info();
  for (const auto& info : snapshot.info.agents) {
    const auto it = std::find_if(agents_.begin(), agents_.end(), [&](const auto& a) { return a->id == info.id; });
    if (it == agents_.end()) continue;
    AgentSnapshot& agent = snapshot.agents.emplace_back();
    agent.info = info;
    agent.peer = (*it)->peer;
    agent.queued_bytes = (*it)->connection->queued_bytes();
    if (!(*it)->dialed) continue;
    agent.dialect = name_of((*it)->dialed->dialect);
    agent.dialed = (*it)->dialed->address;
  }
  return snapshot;
}

}  // namespace kvmid::io
