// SPDX-License-Identifier: GPL-2.0-or-later
#include "daemon/io/control_session.h"

#include <spdlog/logger.h>

#include <algorithm>

#include "daemon/io/frame_refusal.h"
#include "daemon/io/peer.h"
#include "daemon/io/welcome.h"

namespace kvmid::io {
namespace {

constexpr unsigned kMalformedMax = 16;
constexpr std::size_t kEntriesMax =
    (KVMI_MAX_PAYLOAD - sizeof(kvmi_error) - sizeof(kvmi_get_guests_reply)) / sizeof(kvmi_guest_entry);

CommandSet served() {
  CommandSet set;
  set.add(CommandId::GetVersion);
  set.add(CommandId::GetGuests);
  return set;
}

kvmi_guest_entry entry_of(const Uuid& uuid, std::string_view name, std::uint32_t vcpu_count, bool online) {
  kvmi_guest_entry entry{};
  std::copy(uuid.bytes.begin(), uuid.bytes.end(), entry.uuid);
  copy_text(name, entry.name, sizeof entry.name);
  entry.vcpu_count = vcpu_count;
  entry.state = online ? KVMI_GUEST_ONLINE : KVMI_GUEST_AWAY;
  return entry;
}

}  // namespace

ControlSession::ControlSession(boost::asio::io_context& context, AgentArrival arrival,
                               std::shared_ptr<const core::Policy> policy, const Services& services, Gone gone)
    : policy_(std::move(policy)),
      services_(services),
      arrival_(std::move(arrival)),
      gone_(std::move(gone)),
      connection_(std::make_shared<Connection>(context, std::move(arrival_.fd), KVMI_MAX_PAYLOAD,
                                               arrival_.grant.quota.queue_bytes_max)) {}

ControlSession::~ControlSession() { flush_first_ ? connection_->finish() : connection_->close(); }

void ControlSession::start() {
  kvmi_welcome welcome = welcome_from(arrival_.id, arrival_.grant);
  welcome.commands = served().bits;
  encode(welcome, connection_->outbox().compose());
  queued();
  connection_->start(*this);
  services_.log.info("control connection agent={} name={} {}", arrival_.id.value, field(arrival_.hello.name),
                     to_string(arrival_.peer));
  audit(AuditKind::AgentAttached, {});
  on_turn_end();
}

bool ControlSession::apply(std::shared_ptr<const core::Policy> policy) {
  if (lost_) return true;
  const core::Rule* rule = core::find_rule(*policy, arrival_.peer);
  if (rule == nullptr) {
    constexpr std::string_view kText = "policy changed: no rule knows this agent any more";
    dialect_.encode(Notice{.kind = NoticeKind::Revoked, .error = ErrorCode::NotPermitted, .text = kText},
                    connection_->outbox().compose());
    queued();
    lose(kText, true);
    on_turn_end();
    return false;
  }
  const std::shared_ptr<const core::Policy> before = std::exchange(policy_, std::move(policy));
  arrival_.grant = rule->grant;
  connection_->set_queue_bytes_max(rule->grant.quota.queue_bytes_max);
  for (const auto& guest : services_.registry.list()) {
    if (lost_) break;
    const bool saw = core::find_grant(*before, arrival_.peer, guest.name, guest.uuid) != nullptr;
    const bool sees = visible(guest.uuid, guest.name);
    if (saw == sees || !guest.online) continue;
    auto& out = connection_->outbox().compose();
    if (sees) {
      dialect_.encode(GuestOn{entry_of(guest.uuid, guest.name, guest.facts.vcpu_count, true)}, out);
    } else {
      dialect_.encode(GuestOff{guest.uuid, OffReason::LinkLost, "policy changed: this guest is not shown any more"}, out);
    }
    queued();
  }
  on_turn_end();
  return true;
}

void ControlSession::audit(AuditKind kind, std::string_view reason) {
  if (!services_.witnesses.audited()) return;
  AuditRecord record;
  record.kind = kind;
  record.agent = arrival_.id;
  record.agent_name = arrival_.hello.name;
  record.peer = arrival_.peer;
  record.rule = arrival_.grant.rule;
  record.role = "control";
  record.reason = reason;
  services_.witnesses.audit->record(std::move(record));
}

bool ControlSession::visible(const Uuid& uuid, std::string_view name) const {
  return core::find_grant(*policy_, arrival_.peer, name, uuid) != nullptr;
}

void ControlSession::tell(const GuestChange& change) {
  if (lost_ || !visible(change.uuid, change.name)) return;
  auto& out = connection_->outbox().compose();
  if (change.on) {
    dialect_.encode(GuestOn{entry_of(change.uuid, change.name, change.facts.vcpu_count, true)}, out);
  } else {
    dialect_.encode(GuestOff{change.uuid, change.reason, change.text}, out);
  }
  queued();
  on_turn_end();
}

void ControlSession::on_frame(const Frame& frame) {
  if (lost_) return;
  auto message = dialect_.decode_downward(frame);
  if (!message) {
    const std::string text = describe(message.error());
    reply(frame.seq, {.id = frame.id, .error = ErrorCode::Invalid, .text = text, .body = {}});
    if (++malformed_in_a_row_ < kMalformedMax) return;
    add_one(services_.counters.malformed_closed);
    refuse_frame(ErrorCode::Invalid, kTooManyMalformed);
    return lose("too many malformed messages in a row", true);
  }
  malformed_in_a_row_ = 0;
  std::visit(Overloaded{
                 [&](const Command& command) { serve(frame.seq, command); },
                 [&](const EventReply& r) {
                   dialect_.encode(Notice{.kind = NoticeKind::ReplyRefused,
                                          .event = r.event,
                                          .action = r.action,
                                          .vcpu = r.vcpu,
                                          .error = ErrorCode::NoEntry,
                                          .event_seq = frame.seq,
                                          .text = "a control connection has no events"},
                                   connection_->outbox().compose());
                   queued();
                 },
                 [&](const UnknownMessage& unknown) {
                   if (goes_up_only(unknown.id)) {
                     add_one(services_.counters.frames_refused);
                     return refuse_frame(ErrorCode::NotServed, kGoesUpOnly);
                   }
                   reply(frame.seq, {.id = unknown.id,
                                     .error = ErrorCode::NotServed,
                                     .text = "no command has this id",
                                     .body = {}});
                 },
             },
             *message);
}

void ControlSession::serve(Seq seq, const Command& command) {
  if (std::holds_alternative<GetVersion>(command))
    return reply(seq, {.id = KVMI_MSG_GET_VERSION, .text = {}, .body = GetVersionReply{.commands = served(), .events = {}}});
  if (const auto* guests = std::get_if<GetGuests>(&command)) return serve_guests(seq, *guests);
  reply(seq, {.id = static_cast<std::uint16_t>(id_of(command)),
              .error = ErrorCode::NotServed,
              .text = "a control connection serves GET_VERSION and GET_GUESTS; attach to a guest for the rest",
              .body = {}});
}

void ControlSession::serve_guests(Seq seq, const GetGuests& command) {
  entries_.clear();
  std::uint32_t total = 0;
  for (const auto& guest : services_.registry.list()) {
    if (!visible(guest.uuid, guest.name)) continue;
    if (total++ < command.first || entries_.size() == kEntriesMax) continue;
    entries_.push_back(entry_of(guest.uuid, guest.name, guest.facts.vcpu_count, guest.online));
  }
  const GetGuestsReply body{.total = total, .entries = std::span<const kvmi_guest_entry>(entries_)};
  reply(seq, {.id = KVMI_MSG_GET_GUESTS, .text = {}, .body = body});
}

void ControlSession::reply(Seq seq, const CommandReply& reply) {
  dialect_.encode(reply, seq, connection_->outbox().compose());
  queued();
}

void ControlSession::queued() {
  if (connection_->outbox().commit()) return;
  add_one(services_.counters.slow_readers);
  lose("slow reader: more than quota.queue_bytes is waiting for it", false);
}

void ControlSession::on_frame_refused(const FrameError& error) {
  add_one(services_.counters.frames_refused);
  refuse_frame(ErrorCode::Invalid, "a frame is larger than the limit: " + std::to_string(error.size) + " bytes");
  lose("sent a frame that is too large", true);
}

void ControlSession::refuse_frame(ErrorCode error, std::string_view text) {
  dialect_.encode(frame_refusal(error, text), connection_->outbox().compose());
  queued();
}

void ControlSession::on_turn_end() {
  if (!lost_ && !connection_->flush()) lose("closed by the peer", false);
  if (!lost_) return;
  const auto gone = gone_;
  gone(*this);  // may destroy *this
}

void ControlSession::on_lost(std::string_view reason) {
  lose(reason, false);
  on_turn_end();
}

void ControlSession::lose(std::string_view reason, bool flush_first) {
  if (lost_) return;
  lost_ = true;
  flush_first_ = flush_first;
  connection_->stop_reading();
  services_.log.info("control connection gone agent={} name={} reason={}", arrival_.id.value,
                     field(arrival_.hello.name), field(reason));
  audit(AuditKind::AgentDetached, reason);
}

AgentSnapshot ControlSession::snapshot() const {
  AgentSnapshot snapshot;
  snapshot.info.id = arrival_.id;
  snapshot.info.name = arrival_.hello.name;
  snapshot.info.rule = arrival_.grant.rule;
  snapshot.peer = arrival_.peer;
  snapshot.queued_bytes = connection_->queued_bytes();
  snapshot.control = true;
  return snapshot;
}

}  // namespace kvmid::io
