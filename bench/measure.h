// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// What is measured, row by row.
///
/// Purpose:  each row has kvmid with its agents, and what it is compared with, measured in turn, batch by batch: a
///           machine whose speed drifts drifts for all of them. Ratios are what to read.
/// Errors:   std::runtime_error.

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "bench/lanes.h"

namespace kvmid::bench {

struct Row {
  Audience audience;
  bool filtered = false;  ///< the decider has a filter that never matches: kvmid answers by itself
};
/// 1, 2, 4 and 8 deciders, each without and with 8 observers, and the filtered one.
std::vector<Row> every_row();

/// One row as JSON: who is there, each lane's times, and the ratios; {"not_served": true} and who is there where kvmid
/// does not serve SET_FILTER.
nlohmann::json measure_row(Daemon& kvmid, Lane& direct, Lane& relayed, const Row& row, int rounds);

/// Deciders that never answer: how long after the event its vCPU goes on.
nlohmann::json measure_deadline(Daemon& kvmid, int events);

/// All of it for people.
void print_table(const nlohmann::json& result);

}  // namespace kvmid::bench
