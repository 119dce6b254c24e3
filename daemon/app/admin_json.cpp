// SPDX-License-Identifier: GPL-2.0-or-later
#include "daemon/app/admin_json.h"

#include <algorithm>

#include "daemon/app/event_json.h"
#include "protocol/handshake.h"
#include "protocol/message.h"

namespace kvmid::app {
namespace {

using Json = nlohmann::ordered_json;
constexpr int kSchema = 1;

template <class T>
Json or_null(const std::optional<T>& value) {
  return value ? Json(*value) : Json(nullptr);
}

void add_peer(Json& out, const core::Peer& peer) {
  out["pid"] = or_null(peer.pid);
  out["uid"] = or_null(peer.uid);
  out["gid"] = peer.gids.empty() ? Json(nullptr) : Json(peer.gids.front());
  if (peer.cid) out["cid"] = *peer.cid;
}

Json event_names(EventSet events) {
  Json out = Json::array();
  for (unsigned i = 0; i < kEventCount; ++i) {
    const auto kind = static_cast<EventKind>(i);
    if (events.has(kind)) out.push_back(name_of(kind));
  }
  return out;
}

Json command_names(CommandSet commands) {
  Json out = Json::array();
  for (unsigned i = 0; i < 64; ++i) {
    const auto id = static_cast<CommandId>(i);
    // A hypervisor may claim bits that are no command.
    if (commands.has(id) && name_of(id) != name_of(CommandId{})) out.push_back(name_of(id));
  }
  return out;
}

Json counts(const std::vector<io::NamedCount>& counters) {
  Json out = Json::object();
  for (const auto& counter : counters) out[counter.name] = counter.value;
  return out;
}

/// Only a guest that was online has agents, and without any it is forgotten when its hypervisor goes.
std::string_view state_of(const io::GuestSnapshot& guest) {
  if (guest.info.online) return "online";
  return guest.info.agents.empty() ? "starting" : "away";
}

Json guest_fields(const io::GuestSnapshot& guest) {
  Json out;
  out["uuid"] = to_string(guest.uuid);
  out["name"] = guest.name;
  out["state"] = state_of(guest);
  out["dialect"] = guest.dialect;
  out["vcpus"] = guest.info.facts.vcpu_count;
  out["agents"] = guest.info.agents.size();
  out["events"] = guest.info.counters.events;
  out["shard"] = guest.shard;
  Json hypervisor = Json::object();
  add_peer(hypervisor, guest.hypervisor);
  out["hypervisor"] = std::move(hypervisor);
  out["commands"] = command_names(guest.commands);
  out["events_supported"] = event_names(guest.events);
  return out;
}

std::int64_t age_ms(const io::GuestSnapshot& guest, const core::VcpuInfo& vcpu) {
  return std::chrono::duration_cast<std::chrono::milliseconds>(guest.taken_at - vcpu.since).count();
}

std::string_view state_of(const core::VcpuInfo& vcpu) {
  if (vcpu.waiting) return "waiting";
  return vcpu.held ? "held" : "running";
}

/// The events that wait for this agent's reply.
Json pending_of(const io::AgentSnapshot& agent, const io::GuestSnapshot* guest) {
  Json out = Json::array();
  if (guest == nullptr) return out;
  for (std::size_t i = 0; i < guest->info.vcpus.size(); ++i) {
    const core::VcpuInfo& vcpu = guest->info.vcpus[i];
    if (!vcpu.waiting || std::ranges::find(vcpu.waits_for, agent.info.id) == vcpu.waits_for.end()) continue;
    out.push_back(Json{{"vcpu", i},
                       {"event", name_of(vcpu.event)},
                       {"event_seq", vcpu.event_seq.value},
                       {"age_ms", age_ms(*guest, vcpu)}});
  }
  return out;
}

Json agent_fields(const io::AgentSnapshot& agent, const io::GuestSnapshot* guest) {
  Json out;
  out["id"] = agent.info.id.value;
  out["name"] = agent.info.name;
  out["guest"] = guest != nullptr ? Json(to_string(guest->uuid)) : Json(nullptr);
  out["guest_name"] = guest != nullptr ? Json(guest->name) : Json(nullptr);
  out["dialect"] = agent.dialect;
  out["address"] = agent.dialed.empty() ? Json(nullptr) : Json(agent.dialed);
  add_peer(out, agent.peer);
  out["role"] = agent.control ? "control" : name_of(agent.info.role);
  out["priority"] = agent.info.priority;
  out["deadline_ms"] = agent.info.deadline.count();
  out["events"] = event_names(agent.info.events);
  out["strikes"] = agent.info.strikes;
  out["demoted"] = event_names(agent.info.demoted);
  out["queued_bytes"] = agent.queued_bytes;
  out["requests_open"] = agent.info.requests_open;
  out["expired"] = agent.info.expired;
  out["policy"] = agent.info.rule;
  out["pages"] = agent.info.pages;
  out["patches"] = agent.info.patches;
  out["filters"] = agent.info.filters;
  out["filtered"] = agent.info.filtered;
  out["pending"] = pending_of(agent, guest);
  return out;
}

}  // namespace

Json status_json(const StatusFacts& facts, const io::StatusSnapshot& status) {
  Json out;
  out["schema"] = kSchema;
  out["version"] = facts.version;
  out["pid"] = facts.pid;
  out["uptime_s"] = facts.uptime.count();
  out["config"] = facts.config_file.empty() ? Json(nullptr) : Json(facts.config_file);
  out["shards"] = status.shards;
  out["guests"] = status.guests;
  out["agents"] = status.agents;
  out["counters"] = counts(status.counters);
  return out;
}

Json guests_json(std::span<const io::GuestSnapshot> guests) {
  Json list = Json::array();
  for (const auto& guest : guests) list.push_back(guest_fields(guest));
  return Json{{"schema", kSchema}, {"guests", std::move(list)}};
}

Json guest_json(const io::GuestSnapshot& guest) {
  Json out{{"schema", kSchema}};
  out.update(guest_fields(guest));
  out["arch"] = "x86";
  out["max_gpa"] = guest.info.facts.max_gpa;
  out["tsc_hz"] = guest.info.facts.tsc_hz;
  Json vcpus = Json::array();
  for (std::size_t i = 0; i < guest.info.vcpus.size(); ++i) {
    const core::VcpuInfo& vcpu = guest.info.vcpus[i];
    Json entry{{"id", i}, {"state", state_of(vcpu)}};
    if (vcpu.waiting) {
      entry["event"] = name_of(vcpu.event);
      entry["event_seq"] = vcpu.event_seq.value;
      entry["age_ms"] = age_ms(guest, vcpu);
      Json waits_for = Json::array();
      for (const AgentId agent : vcpu.waits_for) waits_for.push_back(agent.value);
      entry["waits_for"] = std::move(waits_for);
    }
    vcpus.push_back(std::move(entry));
  }
  out["vcpu"] = std::move(vcpus);
  out["counters"] = counts(io::named(guest.info.counters));
  Json agents = Json::array();
  for (const auto& agent : guest.info.agents) agents.push_back(agent.id.value);
  out["agent_list"] = std::move(agents);
  return out;
}

Json agents_json(std::span<const io::GuestSnapshot> guests, std::span<const io::AgentSnapshot> controls) {
  Json list = Json::array();
  for (const auto& guest : guests) {
    for (const auto& agent : guest.agents) list.push_back(agent_fields(agent, &guest));
  }
  for (const auto& agent : controls) list.push_back(agent_fields(agent, nullptr));
  return Json{{"schema", kSchema}, {"agents", std::move(list)}};
}

Json failures_json(std::span<const io::ConnectionFailure> oldest_first) {
  Json list = Json::array();
  for (std::size_t i = oldest_first.size(); i-- > 0;) {
    const io::ConnectionFailure& failure = oldest_first[i];
    Json entry;
    entry["time"] = utc_text(failure.time);
    entry["side"] = name_of(failure.side);
    entry["peer"] = failure.peer;
    entry["guest"] = failure.guest.empty() ? Json(nullptr) : Json(failure.guest);
    entry["step"] = failure.step;
    entry["reason"] = failure.text;
    entry["times"] = failure.times;
    list.push_back(std::move(entry));
  }
  return Json{{"schema", kSchema}, {"failures", std::move(list)}};
}

Json error_json(unsigned code, const std::string& message) {
  return Json{{"error", {{"code", code}, {"message", message}}}};
}

}  // namespace kvmid::app
