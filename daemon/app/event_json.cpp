// SPDX-License-Identifier: GPL-2.0-or-later
#include "daemon/app/event_json.h"

#include <array>
#include <charconv>
#include <cstdio>
#include <ctime>

#include "protocol/handshake.h"
#include "protocol/message.h"

namespace kvmid::app {
namespace {

using Json = nlohmann::ordered_json;
using io::AuditKind;
using io::AuditRecord;
using io::TapRecord;

/// Names come from peers: what is no UTF-8 is replaced, and a newline cannot break a line in two.
std::string line_of(const Json& object) { return object.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n"; }

std::string rights_text(std::uint8_t access) {
  std::string text = "---";
  if ((access & KVMI_PAGE_ACCESS_R) != 0) text[0] = 'r';
  if ((access & KVMI_PAGE_ACCESS_W) != 0) text[1] = 'w';
  if ((access & KVMI_PAGE_ACCESS_X) != 0) text[2] = 'x';
  return text;
}

std::string_view descriptor_name(std::uint8_t descriptor) {
  constexpr std::array<std::string_view, 5> kNames{"?", "idtr", "gdtr", "ldtr", "tr"};
  return descriptor < kNames.size() ? kNames[descriptor] : kNames[0];
}

Json vcpu_json(VcpuId vcpu) { return vcpu == kAllVcpus ? Json("all") : Json(vcpu.value); }

void add_change(Json& out, std::uint64_t from, std::uint64_t to) {
  out["old_value"] = hex_text(from);
  out["new_value"] = hex_text(to);
}

/// The same names as those of kvmi-trace.
void add_event_data(Json& out, const EventData& data) {
  std::visit(Overloaded{
                 [&](const UnhookData& d) { out["reason"] = name_of(d.reason); },
                 [&](const CrData& d) {
                   out["cr"] = d.cr;
                   add_change(out, d.old_value, d.new_value);
                 },
                 [&](const MsrData& d) {
                   out["msr"] = hex_text(d.msr);
                   add_change(out, d.old_value, d.new_value);
                 },
                 [&](const XsetbvData& d) {
                   out["xcr"] = d.xcr;
                   add_change(out, d.old_value, d.new_value);
                 },
                 [&](const BreakpointData& d) {
                   out["gpa"] = hex_text(d.gpa.value);
                   out["insn_length"] = d.insn_length;
                 },
                 [](const HypercallData&) {},
                 [&](const PageFaultData& d) {
                   out["gpa"] = hex_text(d.gpa.value);
                   out["access"] = rights_text(d.access);
                   if (d.gva_valid) out["gva"] = hex_text(d.gva.value);
                 },
                 [&](const TrapData& d) {
                   out["vector"] = d.vector;
                   out["error_code"] = d.error_code;
                   out["address"] = hex_text(d.address);
                 },
                 [&](const DescriptorData& d) {
                   out["descriptor"] = descriptor_name(d.descriptor);
                   out["write"] = d.write;
                 },
                 [](const CreateVcpuData&) {},
                 [](const PauseData&) {},
                 [&](const SinglestepData& d) { out["failed"] = d.failed; },
                 [&](const CpuidData& d) {
                   out["function"] = hex_text(d.function);
                   out["index"] = hex_text(d.index);
                 },
                 [&](const AccessData& d) {
                   out["gpa"] = hex_text(d.gpa.value);
                   out["gva"] = hex_text(d.gva.value);
                   out["access"] = rights_text(d.access);
                   out["size"] = d.size;
                   out["index"] = d.index;
                 },
             },
             data);
}

void add_peer(Json& out, const core::Peer& peer) {
  if (peer.pid) out["pid"] = *peer.pid;
  if (peer.uid) out["uid"] = *peer.uid;
  if (!peer.gids.empty()) out["gid"] = peer.gids.front();
  if (peer.cid) out["cid"] = *peer.cid;
}

void add_command(Json& out, const AuditRecord& r) {
  out["command"] = name_of(*r.command);
  if (r.seq != Seq{}) out["command_seq"] = r.seq.value;
  if (r.vcpu) out["vcpu"] = vcpu_json(*r.vcpu);
  if (r.kind != AuditKind::CommandGranted) return;
  if (r.command == CommandId::WritePhysical) {
    out["gpa"] = hex_text(r.gpa);
    out["size"] = r.amount;
    if ((r.detail & KVMI_WRITE_PATCH) != 0) out["operation"] = "patch";
    if ((r.detail & KVMI_WRITE_UNPATCH) != 0) out["operation"] = "unpatch";
  } else if (r.command == CommandId::SetPageAccess) {
    out["gpa"] = hex_text(r.gpa);
    out["pages"] = r.amount;
    out["access"] = rights_text(r.detail);
  } else if (r.command == CommandId::InjectException) {
    out["vector"] = r.detail;
  }
}

void add_event(Json& out, const AuditRecord& r) {
  if (r.vcpu) out["vcpu"] = vcpu_json(*r.vcpu);
  out["event"] = name_of(*r.event_kind);
  if (r.seq != Seq{}) out["event_seq"] = r.seq.value;
  if (r.event) {
    out["rip"] = hex_text(r.rip);
    Json data = Json::object();
    add_event_data(data, *r.event);
    if (!data.empty()) out["data"] = std::move(data);
  }
  if (r.action) out["action"] = name_of(*r.action);
  if (!r.decided_by) return;
  out["decided_by"] = r.decided_by->value;
  if (r.value_by != AgentId{}) out["value_by"] = r.value_by.value;
  if (r.new_value) out["value"] = hex_text(*r.new_value);
  if (r.registers_by != AgentId{}) out["registers_by"] = r.registers_by.value;
  if (r.xsave_by != AgentId{}) out["xsave_by"] = r.xsave_by.value;
  Json votes = Json::array();
  for (const auto& vote : r.votes)
    votes.push_back(Json{{"agent", vote.agent.value}, {"action", name_of(vote.action)}, {"default", vote.by_default}});
  out["votes"] = std::move(votes);
}

Json head(std::string_view kind, std::chrono::system_clock::time_point time) {
  return Json{{"v", kAuditVersion}, {"time", utc_text(time)}, {"kind", kind}};
}

}  // namespace

std::string utc_text(std::chrono::system_clock::time_point time) {
  const auto us = std::chrono::duration_cast<std::chrono::microseconds>(time.time_since_epoch()).count();
  const std::time_t seconds = static_cast<std::time_t>(us / 1000000);
  std::tm parts{};
  ::gmtime_r(&seconds, &parts);
  std::array<char, 32> day{};
  std::strftime(day.data(), day.size(), "%Y-%m-%dT%H:%M:%S", &parts);
  std::array<char, 48> text{};
  std::snprintf(text.data(), text.size(), "%s.%06ldZ", day.data(), static_cast<long>(us % 1000000));
  return text.data();
}

std::string hex_text(std::uint64_t value) {
  std::array<char, 16> digits{};
  const auto end = std::to_chars(digits.data(), digits.data() + digits.size(), value, 16).ptr;
  return "0x" + std::string(digits.data(), end);
}

std::string_view name_of(AuditKind kind) {
  switch (kind) {
    case AuditKind::AgentAttached: return "agent_attached";
    case AuditKind::AgentRefused: return "agent_refused";
    case AuditKind::AgentDetached: return "agent_detached";
    case AuditKind::AgentRevoked: return "agent_revoked";
    case AuditKind::AgentExpired: return "agent_expired";
    case AuditKind::AgentDemoted: return "agent_demoted";
    case AuditKind::CommandGranted: return "command_granted";
    case AuditKind::CommandRefused: return "command_refused";
    case AuditKind::CommandFailed: return "command_failed";
    case AuditKind::Verdict: return "verdict";
    case AuditKind::Crash: return "crash";
    case AuditKind::HypervisorAttached: return "hypervisor_attached";
    case AuditKind::HypervisorRefused: return "hypervisor_refused";
    case AuditKind::HypervisorLost: return "hypervisor_lost";
    case AuditKind::ConfigReloaded: return "config_reloaded";
    case AuditKind::ConfigRefused: return "config_refused";
  }
  return "unknown";
}

std::string audit_line(const AuditRecord& r) {
  Json out = head(name_of(r.kind), r.time);
  if (r.agent != AgentId{}) out["agent"] = r.agent.value;
  if (!r.agent_name.empty()) out["name"] = r.agent_name;
  if (r.guest) out["guest"] = to_string(*r.guest);
  if (!r.guest_name.empty()) out["guest_name"] = r.guest_name;
  if (r.peer) add_peer(out, *r.peer);
  if (!r.rule.empty()) out["policy"] = r.rule;
  if (!r.role.empty()) out["role"] = r.role;
  if (r.command) add_command(out, r);
  if (r.event_kind) add_event(out, r);
  if (r.kind == AuditKind::ConfigReloaded) {
    out["agents"] = r.agents;
    out["agents_closed"] = r.agents_closed;
  }
  if (r.error != ErrorCode::None) out["error"] = name_of(r.error);
  if (!r.path.empty()) out["path"] = r.path;
  if (!r.reason.empty()) out["reason"] = r.reason;
  if (r.left_out != 0) out["left_out"] = r.left_out;
  return line_of(out);
}

std::string audit_dropped_line(std::uint64_t count, std::chrono::system_clock::time_point time) {
  Json out = head("lines_dropped", time);
  out["count"] = count;
  return line_of(out);
}

std::string stream_line(const TapRecord& r) {
  constexpr std::array<std::string_view, 4> kTypes{"event", "outcome", "guest_on", "guest_off"};
  Json out{{"type", kTypes.at(static_cast<std::size_t>(r.type))}, {"time", utc_text(r.time)}};
  if (r.guest) {
    out["guest"] = to_string(r.guest->uuid);
    out["guest_name"] = r.guest->name;
  }
  if (r.type == TapRecord::Type::GuestOff) out["reason"] = name_of(r.reason);
  if (r.type == TapRecord::Type::Event || r.type == TapRecord::Type::Outcome) {
    out["kind"] = name_of(r.kind);
    out["vcpu"] = vcpu_json(r.vcpu);
    out["seq"] = r.seq.value;
  }
  if (r.type == TapRecord::Type::Event) {
    out["rip"] = hex_text(r.rip);
    out["cr3"] = hex_text(r.cr3);
    add_event_data(out, r.data);
  }
  if (r.type == TapRecord::Type::Outcome) {
    out["action"] = name_of(r.action);
    out["decided_by"] = r.decided_by.value;
    out["held_us"] = r.held.count();
  }
  return line_of(out);
}

std::string stream_dropped_line(std::uint64_t count) { return line_of(Json{{"type", "dropped"}, {"count", count}}); }

}  // namespace kvmid::app
