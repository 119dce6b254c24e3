// SPDX-License-Identifier: GPL-2.0-or-later
#include "bench/pairs.h"

#include <unistd.h>

#include <cstdio>
#include <vector>

#include "bench/lanes.h"
#include "bench/series.h"

namespace kvmid::bench {

namespace {

struct Speaks {
  std::string name;
  const kvmi1::Codec* codec;  ///< null: KVMI 2
};

std::vector<Speaks> every_dialect() {
  using kvmi1::DialectId;
  std::vector<Speaks> all{{"kvmi2", nullptr}};
  for (const DialectId id : {DialectId::Rfc2017, DialectId::V6, DialectId::V7, DialectId::V12})
    all.push_back({std::string(kvmi1::name_of(id)), &kvmi1::codec(id)});
  return all;
}

struct Pair {
  std::string name;
  Speaks hypervisor;
  Speaks agent;
};

std::vector<Pair> every_pair() {
  std::vector<Pair> pairs;
  for (const Speaks& hypervisor : every_dialect())
    for (const Speaks& agent : every_dialect()) pairs.push_back({hypervisor.name + "-" + agent.name, hypervisor, agent});
  return pairs;
}

/// Who speaks rfc2017 has to be told; every tool of an older dialect is dialled.
std::string config_of(const std::vector<Pair>& pairs) {
  nlohmann::json dial = nlohmann::json::array();
  for (const Pair& pair : pairs) {
    if (pair.agent.codec == nullptr) continue;
    dial.push_back({{"name", pair.name},
                    {"unix", "$DIR/" + pair.name + ".sock"},
                    {"dialect", pair.agent.name},
                    {"guests", {pair.name}}});
  }
  const nlohmann::json guests = {{{"guests", {"rfc2017-*"}}, {"dialect", "rfc2017"}}};
  return nlohmann::json{{"dial", dial}, {"hypervisors", {{"uid", {::getuid()}}, {"guests", guests}}}}.dump();
}

}  // namespace

nlohmann::json measure_pairs(const std::string& program, int rounds) {
  const std::vector<Pair> pairs = every_pair();
  Daemon kvmid(program, config_of(pairs));
  std::vector<Lane> lanes;
  for (const Pair& pair : pairs) lanes.push_back(kvmid.lane_of(pair.name, pair.hypervisor.codec, pair.agent.codec));

  const Event event = HypervisorPeer::cr4_event();
  std::vector<Series> series(pairs.size());
  for (Lane& lane : lanes) Series().run(lane.hypervisor, event, kBatch);
  for (int done = 0; done < rounds; done += kBatch)
    for (std::size_t i = 0; i < lanes.size(); ++i) series[i].run(lanes[i].hypervisor, event, kBatch);

  nlohmann::json result = nlohmann::json::array();
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    nlohmann::json row = series[i].json();
    row["hypervisor"] = pairs[i].hypervisor.name;
    row["agent"] = pairs[i].agent.name;
    row["to_kvmi2"] = paired_ratio(series[i], series[0]);
    result.push_back(std::move(row));
  }
  return result;
}

void print_pairs(const nlohmann::json& pairs) {
  std::printf("\nEvent round trip, one decider, by dialect of hypervisor and agent; ratio to kvmi2 on both sides\n");
  std::printf("%-10s %-10s %10s %10s %8s\n", "hypervisor", "agent", "p50 us", "p99 us", "ratio");
  for (const auto& row : pairs)
    std::printf("%-10s %-10s %10.1f %10.1f %8.2f\n", row["hypervisor"].get<std::string>().c_str(),
                row["agent"].get<std::string>().c_str(), row["p50_us"].get<double>(), row["p99_us"].get<double>(),
                row["to_kvmi2"].get<double>());
}

}  // namespace kvmid::bench
