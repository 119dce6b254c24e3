// SPDX-License-Identifier: GPL-2.0-or-later
#include "bench/measure.h"

#include <unistd.h>

#include <cstdio>

#include "bench/series.h"

namespace kvmid::bench {

namespace {

/// What observers have not read yet when a batch ends is not another lane's burden.
constexpr useconds_t kDrainUs = 2000;

struct Measured {
  HypervisorPeer& hypervisor;
  Series series;
};

/// In turn, batch by batch, after a batch each that does not count.
void run_in_turn(std::vector<Measured>& lanes, int rounds) {
  const Event event = HypervisorPeer::cr4_event();
  for (Measured& lane : lanes) Series().run(lane.hypervisor, event, kBatch);
  for (int done = 0; done < rounds; done += kBatch)
    for (Measured& lane : lanes) {
      ::usleep(kDrainUs);
      lane.series.run(lane.hypervisor, event, kBatch);
    }
}

/// CR4 is 0xa0 in every event of ours; this filter wants another value.
std::vector<kvmi_filter_term> never_matching() {
  kvmi_filter_term term{};
  term.field = KVMI_FILTER_NEW_VALUE;
  term.compare = KVMI_COMPARE_EQ;
  term.value = 0xdead;
  return {term};
}

}  // namespace

std::vector<Row> every_row() {
  std::vector<Row> rows;
  for (const int observers : {0, 8})
    for (const int deciders : {1, 2, 4, 8}) rows.push_back({{deciders, observers}});
  rows.push_back({{1, 0}, true});
  return rows;
}

nlohmann::json measure_row(Daemon& kvmid, Lane& direct, Lane& relayed, const Row& row, int rounds) {
  nlohmann::json result = {
      {"deciders", row.audience.deciders}, {"observers", row.audience.observers}, {"filter_answered", row.filtered}};
  std::optional<Lane> through_kvmid =
      kvmid.lane({row.audience, false, row.filtered ? never_matching() : std::vector<kvmi_filter_term>{}});
  if (!through_kvmid) {
    result["not_served"] = true;
    return result;
  }
  // For one decider alone the bare relay is the fan-out.
  std::optional<Lane> fan_out;
  if (row.audience.agents() > 1) fan_out = fan_out_lane(row.audience);

  std::vector<Measured> lanes;
  lanes.push_back({direct.hypervisor, {}});
  lanes.push_back({relayed.hypervisor, {}});
  lanes.push_back({through_kvmid->hypervisor, {}});
  if (fan_out) lanes.push_back({fan_out->hypervisor, {}});
  run_in_turn(lanes, rounds);

  const Series& ours = lanes[2].series;
  result["direct"] = lanes[0].series.json();
  result["relay"] = lanes[1].series.json();
  result["kvmid"] = ours.json();
  result["kvmid_to_direct"] = paired_ratio(ours, lanes[0].series);
  result["kvmid_to_relay"] = paired_ratio(ours, lanes[1].series);
  result["relay_to_direct"] = paired_ratio(lanes[1].series, lanes[0].series);
  if (fan_out) {
    result["fan_out"] = lanes[3].series.json();
    result["kvmid_to_fan_out"] = paired_ratio(ours, lanes[3].series);
  }
  return result;
}

nlohmann::json measure_deadline(Daemon& kvmid, int events) {
  // The default deadline, of which each vCPU is released event by event. After three misses in a row an agent only
  // observes, so each guest is good for three measurements.
  constexpr double kDeadlineMs = 100;
  constexpr int kMissesMax = 3;
  Series stalled;
  while (static_cast<int>(stalled.us().size()) < events) {
    std::optional<Lane> lane = kvmid.lane({.audience = {}, .silent = true});
    stalled.run(lane->hypervisor, HypervisorPeer::cr4_event(), kMissesMax);
  }
  const double median = stalled.quantile(0.5) / 1000;
  const double slowest = stalled.quantile(1) / 1000;
  return {{"deadline_ms", kDeadlineMs},
          {"count", stalled.us().size()},
          {"released_after_ms", {{"p50", median}, {"max", slowest}}},
          {"over_deadline_ms", {{"p50", median - kDeadlineMs}, {"max", slowest - kDeadlineMs}}}};
}

void print_table(const nlohmann::json& result) {
  std::printf("event round trip, us        direct            relay          fan-out            kvmid   kvmid to\n");
  std::printf("deciders observers      p50    p99       p50    p99       p50    p99       p50    p99   direct  relay  "
              "fan-out\n");
  for (const auto& row : result["rows"]) {
    std::printf("%8d %9d", row["deciders"].get<int>(), row["observers"].get<int>());
    if (row.contains("not_served")) {
      std::printf("   filter: this kvmid does not serve SET_FILTER (ENOSYS)\n");
      continue;
    }
    for (const char* lane : {"direct", "relay", "fan_out", "kvmid"}) {
      if (row.contains(lane))
        std::printf(" %9.1f %6.1f", row[lane]["p50_us"].get<double>(), row[lane]["p99_us"].get<double>());
      else
        std::printf(" %9s %6s", "-", "-");
    }
    std::printf("   %6.2f %6.2f", row["kvmid_to_direct"].get<double>(), row["kvmid_to_relay"].get<double>());
    if (row.contains("kvmid_to_fan_out"))
      std::printf("  %7.2f", row["kvmid_to_fan_out"].get<double>());
    else
      std::printf("  %7s", "-");
    std::printf("%s\n", row["filter_answered"].get<bool>() ? "  filter-answered: kvmid replies by itself" : "");
  }
  if (!result.contains("deadline")) return;
  const auto& deadline = result["deadline"];
  std::printf("silent decider, deadline %.0f ms: vCPU released after %.2f ms (median), %.2f ms (slowest of %zu)\n",
              deadline["deadline_ms"].get<double>(), deadline["released_after_ms"]["p50"].get<double>(),
              deadline["released_after_ms"]["max"].get<double>(), deadline["count"].get<std::size_t>());
}

}  // namespace kvmid::bench
