// SPDX-License-Identifier: GPL-2.0-or-later
#include "daemon/app/metrics.h"

#include <algorithm>
#include <map>

#include "protocol/handshake.h"

namespace kvmid::app {
namespace {

/// A label's value; guests' names come from peers.
std::string label(std::string_view value) {
  std::string out = "\"";
  for (const char c : value) {
    if (c == '\n') {
      out += "\\n";
      continue;
    }
    if (c == '"' || c == '\\') out += '\\';
    out += c;
  }
  return out + '"';
}

class Text {
 public:
  void family(const std::string& name, std::string_view type) {
    out_ += "# TYPE kvmid_" + name + " " + std::string(type) + "\n";
  }
  void value(const std::string& name, const std::string& labels, std::uint64_t value) {
    out_ += "kvmid_" + name + (labels.empty() ? "" : "{" + labels + "}") + " " + std::to_string(value) + "\n";
  }
  void gauge(const std::string& name, std::uint64_t now) {
    family(name, "gauge");
    value(name, "", now);
  }
  [[nodiscard]] std::string take() { return std::move(out_); }

 private:
  std::string out_;
};

/// When it last happened, for each kind of failure: a count cannot be had from a list that forgets.
void add_failures(Text& text, std::span<const io::ConnectionFailure> failures) {
  std::map<std::string, std::uint64_t> last;
  for (const auto& failure : failures) {
    const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(failure.time.time_since_epoch()).count();
    auto& at = last["side=" + label(name_of(failure.side)) + ",step=" + label(failure.step)];
    at = std::max(at, static_cast<std::uint64_t>(std::max<std::int64_t>(seconds, 0)));
  }
  if (!last.empty()) text.family("last_failure_timestamp_seconds", "gauge");
  for (const auto& [labels, seconds] : last) text.value("last_failure_timestamp_seconds", labels, seconds);
}

}  // namespace

std::string metrics_text(const StatusFacts& facts, const io::StatusSnapshot& status,
                         std::span<const io::GuestSnapshot> guests,
                         std::span<const io::ConnectionFailure> failures) {
  Text text;
  text.family("info", "gauge");
  text.value("info", "version=" + label(facts.version), 1);
  text.gauge("uptime_seconds", static_cast<std::uint64_t>(facts.uptime.count()));
  text.gauge("guests", status.guests);
  text.gauge("agents", status.agents);
  for (const auto& counter : status.counters) {
    text.family(counter.name + "_total", "counter");
    text.value(counter.name + "_total", "", counter.value);
  }
  add_failures(text, failures);
  if (guests.empty()) return text.take();

  std::vector<std::string> labels;
  std::vector<std::vector<io::NamedCount>> counts;
  for (const auto& guest : guests) {
    labels.push_back("guest=" + label(to_string(guest.uuid)) + ",name=" + label(guest.name));
    counts.push_back(io::named(guest.info.counters));
  }
  const auto each = [&](const std::string& name, std::string_view type, auto&& value_of) {
    text.family(name, type);
    for (std::size_t i = 0; i < guests.size(); ++i) text.value(name, labels[i], value_of(i));
  };
  each("guest_online", "gauge", [&](std::size_t i) { return guests[i].info.online ? 1U : 0U; });
  text.family("guest_dialect", "gauge");
  for (std::size_t i = 0; i < guests.size(); ++i)
    text.value("guest_dialect", labels[i] + ",dialect=" + label(guests[i].dialect), 1);
  each("guest_agents", "gauge", [&](std::size_t i) { return guests[i].info.agents.size(); });
  each("guest_vcpus", "gauge", [&](std::size_t i) { return guests[i].info.vcpus.size(); });
  each("guest_vcpus_waiting", "gauge", [&](std::size_t i) {
    return static_cast<std::uint64_t>(
        std::ranges::count_if(guests[i].info.vcpus, [](const core::VcpuInfo& vcpu) { return vcpu.waiting; }));
  });
  each("guest_vcpus_held", "gauge", [&](std::size_t i) {
    return static_cast<std::uint64_t>(
        std::ranges::count_if(guests[i].info.vcpus, [](const core::VcpuInfo& vcpu) { return vcpu.held; }));
  });
  const auto sum_of_agents = [&](std::size_t i, std::size_t core::AgentInfo::*member) {
    std::uint64_t sum = 0;
    for (const auto& agent : guests[i].info.agents) sum += agent.*member;
    return sum;
  };
  each("guest_agent_patches", "gauge", [&](std::size_t i) { return sum_of_agents(i, &core::AgentInfo::patches); });
  each("guest_agent_filters", "gauge", [&](std::size_t i) { return sum_of_agents(i, &core::AgentInfo::filters); });
  for (std::size_t c = 0; c < counts.front().size(); ++c)
    each("guest_" + counts.front()[c].name + "_total", "counter", [&](std::size_t i) { return counts[i][c].value; });
  return text.take();
}

}  // namespace kvmid::app
