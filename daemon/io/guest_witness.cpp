// SPDX-License-Identifier: GPL-2.0-or-later
// What a GuestSession tells the audit log and those who watch. Neither can delay it.
#include <chrono>

#include "daemon/io/guest_links.h"

namespace kvmid::io {

using core::Fact;

AuditRecord GuestSession::audit_record(AuditKind kind) const {
  AuditRecord record;
  record.kind = kind;
  record.guest = uuid();
  record.guest_name = machine_.name();
  return record;
}

void GuestSession::audit_agent(AuditKind kind, const AgentLink& agent, std::string_view reason) {
  if (!services_.witnesses.audited()) return;
  AuditRecord record = audit_record(kind);
  record.agent = agent.id;
  record.agent_name = agent.name;
  record.peer = agent.peer;
  record.rule = agent.rule;
  record.role = name_of(agent.role);
  record.reason = reason;
  services_.witnesses.audit->record(std::move(record));
}

void GuestSession::audit_refusal(const AgentArrival& arrival, const core::Refusal& refusal) {
  if (!services_.witnesses.audited()) return;
  AuditRecord record = audit_record(AuditKind::AgentRefused);
  record.agent_name = arrival.hello.name;
  record.peer = arrival.peer;
  record.rule = arrival.grant.rule;
  record.error = refusal.error;
  record.reason = refusal.text;
  services_.witnesses.audit->record(std::move(record));
}

void GuestSession::audit_hypervisor(AuditKind kind, std::string_view reason) {
  if (!services_.witnesses.audited()) return;
  AuditRecord record = audit_record(kind);
  record.peer = last_hypervisor_;
  record.reason = reason;
  services_.witnesses.audit->record(std::move(record));
}

namespace {

std::optional<AuditKind> kind_of(const core::Report& e) {
  switch (e.fact) {
    case Fact::CommandGranted: return AuditKind::CommandGranted;
    case Fact::CommandFailed: return AuditKind::CommandFailed;
    case Fact::Expired: return AuditKind::AgentExpired;
    case Fact::Demoted: return AuditKind::AgentDemoted;
    case Fact::Decided: return e.action == Action::Crash ? AuditKind::Crash : AuditKind::Verdict;
    // Whoever asks for what policy forbids is worth a line; other mistakes only where the guest was to be changed.
    case Fact::CommandRefused:
      if (e.error == ErrorCode::NotPermitted || core::kGuestChanging.has(e.command)) return AuditKind::CommandRefused;
      return std::nullopt;
    // Registers that were granted, and then not loaded.
    case Fact::UnionRefused:
      if (e.agent != AgentId{} && core::kGuestChanging.has(e.command)) return AuditKind::CommandFailed;
      return std::nullopt;
    default: return std::nullopt;
  }
}

}  // namespace

void GuestSession::audit_fact(const core::Report& e) {
  const auto kind = kind_of(e);
  if (!kind) return;
  AuditRecord record = audit_record(*kind);
  record.agent = e.agent;
  if (AgentLink* agent = find(e.agent)) {
    if (*kind == AuditKind::CommandRefused) {
      if (!agent->audit_budget.allow(std::chrono::steady_clock::now())) return;
      record.left_out = agent->audit_budget.suppressed();
    }
    record.agent_name = agent->name;
  }
  record.seq = e.seq;
  record.error = e.error;
  record.reason = e.text;
  if (e.command != CommandId{}) record.command = e.command;
  switch (e.fact) {
    case Fact::CommandGranted:
      if (e.command != CommandId::WritePhysical && e.command != CommandId::SetPageAccess &&
          e.command != CommandId::ShutdownGuest)
        record.vcpu = e.vcpu;
      record.gpa = e.gpa.value;
      record.amount = e.amount;
      record.detail = e.detail;
      break;
    case Fact::Expired:
      record.vcpu = e.vcpu;
      record.event_kind = e.event;
      record.action = e.action;
      break;
    case Fact::Demoted:
      record.event_kind = e.event;
      break;
    case Fact::Decided:
      record.vcpu = e.vcpu;
      record.event_kind = e.event;
      if (e.about != nullptr) {
        record.event = e.about->data;
        record.rip = e.about->regs.rip;
      }
      record.action = e.action;
      record.agent = {};  // said as decided_by
      record.agent_name.clear();
      record.decided_by = e.agent;
      record.votes.assign(e.votes.begin(), e.votes.end());
      record.value_by = e.value_by;
      record.registers_by = e.registers_by;
      record.xsave_by = e.xsave_by;
      record.new_value = e.new_value;
      record.reason.clear();
      break;
    default: break;
  }
  services_.witnesses.audit->record(std::move(record));
}

// ---- for those who watch ----

void GuestSession::tap_event(const Event& event) {
  if (!label_ || label_->name != machine_.name())
    label_ = std::make_shared<const GuestLabel>(GuestLabel{uuid(), machine_.name()});
  TapRecord record;
  record.type = TapRecord::Type::Event;
  record.guest = label_;
  record.time = std::chrono::system_clock::now();
  record.kind = event.kind();
  record.vcpu = event.vcpu;
  record.seq = event.kind() == EventKind::Unhook ? Seq{} : machine_.event_seq_of(event.vcpu);
  record.rip = event.regs.rip;
  record.cr3 = event.sregs.cr3;
  record.data = event.data;
  services_.witnesses.tap->push(record);
}

void GuestSession::tap_outcome(const core::SendEventReply& effect) {
  if (!label_) label_ = std::make_shared<const GuestLabel>(GuestLabel{uuid(), machine_.name()});
  TapRecord record;
  record.type = TapRecord::Type::Outcome;
  record.guest = label_;
  record.time = std::chrono::system_clock::now();
  record.kind = effect.reply.event;
  record.vcpu = effect.reply.vcpu;
  record.seq = effect.event_seq;
  record.action = effect.reply.action;
  record.decided_by = effect.decided_by;
  if (effect.since != core::TimePoint{})
    record.held =
        std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now() - effect.since);
  services_.witnesses.tap->push(record);
}

void GuestSession::tap_guest(bool on, OffReason reason) {
  if (!services_.witnesses.tapped()) return;
  if (!label_) label_ = std::make_shared<const GuestLabel>(GuestLabel{uuid(), machine_.name()});
  TapRecord record;
  record.type = on ? TapRecord::Type::GuestOn : TapRecord::Type::GuestOff;
  record.guest = label_;
  record.time = std::chrono::system_clock::now();
  record.reason = reason;
  services_.witnesses.tap->push(record);
}

}  // namespace kvmid::io
