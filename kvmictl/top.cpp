// SPDX-License-Identifier: GPL-2.0-or-later
#include "kvmictl/top.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <tuple>

#include "kvmictl/render.h"

namespace kvmid::ctl {
namespace {

const Json& list_of(const Json& answer, std::string_view name) {
  static const Json kEmpty = Json::array();
  const Json& list = child(answer, name);
  return list.is_array() ? list : kEmpty;
}

std::uint64_t grown(std::uint64_t before, std::uint64_t now) { return now >= before ? now - before : now; }

/// Entries of a list by the text of one of their fields.
std::map<std::string, const Json*> by_field(const Json& list, std::string_view name) {
  std::map<std::string, const Json*> out;
  for (const auto& entry : list) out.emplace(field(entry, name), &entry);
  return out;
}

const Json& counters_of(const TopSample& sample, const Json& guest, const std::string& uuid) {
  const Json& own = child(guest, "counters");
  if (own.is_object()) return own;
  static const Json kNothing;
  const auto found = sample.counters.find(uuid);
  return found == sample.counters.end() ? kNothing : found->second;
}

/// "0", "3.2", "12345": what a narrow column can hold.
std::string rate_text(double rate) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), rate > 0 && rate < 99.5 ? "%.1f" : "%.0f", rate);
  return text.data();
}

std::string bytes_text(std::uint64_t bytes) {
  if (bytes < 10'000) return std::to_string(bytes);
  const std::uint64_t kib = bytes >> 10U;
  return kib < 10'000 ? std::to_string(kib) + "K" : std::to_string(kib >> 10U) + "M";
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = std::min(text.find('\n', at), text.size());
    lines.push_back(text.substr(at, end - at));
    at = end + 1;
  }
  return lines;
}

/// The heading and as many rows as there is room for; the last line says how many are not shown.
void add_table(std::vector<std::string>& out, const Table& table, std::size_t columns, std::size_t room) {
  auto lines = lines_of(table.text(columns));
  if (room != 0 && lines.size() > room) {
    const std::size_t hidden = lines.size() - (room - 1);
    lines.resize(room - 1);
    lines.push_back("... " + std::to_string(hidden) + " more");
  }
  out.insert(out.end(), lines.begin(), lines.end());
}

}  // namespace

std::vector<std::string> busiest(const TopSample& before, const Json& guests, std::size_t max) {
  const auto old = by_field(list_of(before.guests, "guests"), "uuid");
  std::vector<std::pair<std::uint64_t, std::string>> ranked;
  for (const auto& guest : list_of(guests, "guests")) {
    const std::string uuid = field(guest, "uuid");
    const auto found = old.find(uuid);
    const std::uint64_t events_before = found == old.end() ? 0 : number(*found->second, "events");
    ranked.emplace_back(grown(events_before, number(guest, "events")), uuid);
  }
  std::stable_sort(ranked.begin(), ranked.end(), [](const auto& a, const auto& b) { return a.first > b.first; });
  if (ranked.size() > max) ranked.resize(max);
  std::vector<std::string> out;
  for (auto& [events, uuid] : ranked) out.push_back(std::move(uuid));
  return out;
}

TopPicture compare(const TopSample& before, const TopSample& now) {
  TopPicture out;
  out.seconds = std::max(0.001, std::chrono::duration<double>(now.at - before.at).count());
  const auto rate = [&](std::uint64_t count) { return static_cast<double>(count) / out.seconds; };

  const auto guests_before = by_field(list_of(before.guests, "guests"), "uuid");
  for (const auto& guest : list_of(now.guests, "guests")) {
    const std::string uuid = field(guest, "uuid");
    const auto found = guests_before.find(uuid);
    static const Json kNothing;
    const Json& old = found == guests_before.end() ? kNothing : *found->second;
    const Json& counters = counters_of(now, guest, uuid);
    const Json& counters_before = counters_of(before, old, uuid);
    TopGuest row{uuid, field(guest, "name"), field(guest, "state"), number(guest, "agents")};
    row.events = rate(grown(number(old, "events"), number(guest, "events")));
    // Without an earlier look at them counters say nothing of this second.
    if (!counters_before.is_null()) {
      row.decided = rate(grown(number(counters_before, "decided"), number(counters, "decided")));
      row.filtered = rate(grown(number(counters_before, "filtered"), number(counters, "filtered")));
      row.expired = grown(number(counters_before, "expired"), number(counters, "expired"));
    }
    row.expired_ever = number(counters, "expired");
    out.guests.push_back(std::move(row));
  }
  std::stable_sort(out.guests.begin(), out.guests.end(),
                   [](const TopGuest& a, const TopGuest& b) { return a.events > b.events; });

  const auto agents_before = by_field(list_of(before.agents, "agents"), "id");
  for (const auto& agent : list_of(now.agents, "agents")) {
    const auto found = agents_before.find(field(agent, "id"));
    const bool control = child(agent, "guest").is_null();
    TopAgent row{number(agent, "id"), field(agent, "name"), control ? "(control)" : field(agent, "guest_name"),
                 field(agent, "role")};
    row.queued_bytes = number(agent, "queued_bytes");
    row.requests = number(agent, "requests_open");
    row.strikes = number(agent, "strikes");
    row.patches = number(agent, "patches");
    static const Json kNothing;
    const Json& old = found == agents_before.end() ? kNothing : *found->second;
    row.expired = grown(number(old, "expired"), number(agent, "expired"));
    row.filtered = rate(grown(number(old, "filtered"), number(agent, "filtered")));
    row.demoted = child(agent, "demoted");
    out.agents.push_back(std::move(row));
  }
  std::stable_sort(out.agents.begin(), out.agents.end(), [](const TopAgent& a, const TopAgent& b) {
    return std::tie(a.queued_bytes, a.strikes, a.expired) > std::tie(b.queued_bytes, b.strikes, b.expired);
  });

  const Json& totals = child(now.status, "counters");
  const Json& totals_before = child(before.status, "counters");
  out.events = rate(grown(number(totals_before, "events"), number(totals, "events")));
  out.decided = rate(grown(number(totals_before, "decided"), number(totals, "decided")));
  out.expired = grown(number(totals_before, "expired"), number(totals, "expired"));
  return out;
}

std::string render_top(const TopPicture& picture, const TopSample& now, TerminalSize size) {
  std::vector<std::string> out;
  out.push_back("kvmid " + field(now.status, "version") + "  up " + duration_text(number(now.status, "uptime_s")) +
                "  " + std::to_string(picture.guests.size()) + " guests  " + std::to_string(picture.agents.size()) +
                " agents");
  out.push_back("events " + rate_text(picture.events) + "/s  decided " + rate_text(picture.decided) + "/s  expired " +
                std::to_string(picture.expired));
  out.emplace_back();

  Table guests({{"GUEST", Table::Align::Left, 8},
                {"STATE", Table::Align::Left, 0, 3},
                {"AGENTS", Table::Align::Right, 0, 2},
                {"EVENTS/S", Table::Align::Right},
                {"DECIDED/S", Table::Align::Right},
                {"FILTERED/S", Table::Align::Right, 0, 4},
                {"EXPIRED", Table::Align::Right},
                {"EVER", Table::Align::Right, 0, 1}});
  for (const auto& guest : picture.guests) {
    guests.add({guest.name, guest.state, std::to_string(guest.agents), rate_text(guest.events),
                rate_text(guest.decided), rate_text(guest.filtered), std::to_string(guest.expired),
                std::to_string(guest.expired_ever)});
  }
  Table agents({{"ID", Table::Align::Right},
                {"AGENT", Table::Align::Left, 8},
                {"ON", Table::Align::Left, 6, 1},
                {"ROLE", Table::Align::Left, 0, 2},
                {"QUEUE", Table::Align::Right},
                {"REQUESTS", Table::Align::Right, 0, 3},
                {"PATCHES", Table::Align::Right, 0, 4},
                {"FILTERED/S", Table::Align::Right, 0, 5},
                {"STRIKES", Table::Align::Right},
                {"EXPIRED", Table::Align::Right}});
  for (const auto& agent : picture.agents) {
    agents.add({std::to_string(agent.id), agent.name, agent.guest,
                agent.role + (agent.demoted.empty() ? "" : " (demoted)"),
                bytes_text(agent.queued_bytes), std::to_string(agent.requests), std::to_string(agent.patches),
                rate_text(agent.filtered), std::to_string(agent.strikes), std::to_string(agent.expired)});
  }

  // Guests get what they need of the room, and never less than half of it while agents want the rest.
  std::size_t guest_room = 0, agent_room = 0;
  if (size.rows != 0) {
    const std::size_t room = std::max<std::size_t>(6, size.rows) - out.size() - 1;
    const std::size_t guests_want = picture.guests.size() + 1, agents_want = picture.agents.size() + 1;
    guest_room = std::min(guests_want, std::max(room / 2, room - std::min(room, agents_want)));
    agent_room = room - guest_room;
  }
  add_table(out, guests, size.columns, guest_room);
  if (size.rows == 0 || agent_room >= 2) {
    out.emplace_back();
    add_table(out, agents, size.columns, agent_room);
  }
  if (size.rows != 0 && out.size() > size.rows) out.resize(size.rows);
  std::string text;
  for (const auto& line : out) {
    text += size.columns == 0 ? printable(line) : cut(printable(line), size.columns);
    text += "\n";
  }
  return text;
}

Json top_json(const TopPicture& picture) {
  Json guests = Json::array(), agents = Json::array();
  for (const auto& guest : picture.guests) {
    guests.push_back({{"uuid", guest.uuid},
                      {"name", guest.name},
                      {"state", guest.state},
                      {"agents", guest.agents},
                      {"events_per_s", guest.events},
                      {"decided_per_s", guest.decided},
                      {"filtered_per_s", guest.filtered},
                      {"expired", guest.expired},
                      {"expired_ever", guest.expired_ever}});
  }
  for (const auto& agent : picture.agents) {
    agents.push_back({{"id", agent.id},
                      {"name", agent.name},
                      {"guest_name", agent.guest},
                      {"role", agent.role},
                      {"queued_bytes", agent.queued_bytes},
                      {"requests_open", agent.requests},
                      {"patches", agent.patches},
                      {"filtered_per_s", agent.filtered},
                      {"strikes", agent.strikes},
                      {"expired", agent.expired},
                      {"demoted", agent.demoted}});
  }
  return Json{{"schema", 1},
              {"seconds", picture.seconds},
              {"events_per_s", picture.events},
              {"decided_per_s", picture.decided},
              {"expired", picture.expired},
              {"guests", guests},
              {"agents", agents}};
}

}  // namespace kvmid::ctl
