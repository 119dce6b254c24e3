// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// `top`: what guests and agents do, as differences between two looks at the admin side.
///
/// Purpose:  the picture is a pure function of two samples and a size, so that it can be tested.
/// Units:    rates are per second of the time between the samples.
/// Bounds:   guests that are not shown are not asked for their counters.

#include <chrono>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "kvmictl/arguments.h"
#include "kvmictl/json_text.h"
#include "kvmictl/table.h"

namespace kvmid::ctl {

/// What the admin side said at one moment.
struct TopSample {
  std::chrono::steady_clock::time_point at;
  Json status;
  Json guests;                           ///< GET /v1/guests
  Json agents;                           ///< GET /v1/agents
  std::map<std::string, Json> counters;  ///< by uuid, of guests that were asked for
};

struct TopGuest {
  std::string uuid, name, state;
  std::uint64_t agents = 0;
  double events = 0, decided = 0, filtered = 0;  ///< a second
  std::uint64_t expired = 0;       ///< deadlines missed since the sample before
  std::uint64_t expired_ever = 0;
};
struct TopAgent {
  std::uint64_t id = 0;
  std::string name, guest, role;
  std::uint64_t queued_bytes = 0, requests = 0, strikes = 0, patches = 0;
  std::uint64_t expired = 0;  ///< since the sample before
  double filtered = 0;        ///< a second
  Json demoted = nullptr;     ///< kinds of events that it only observes for it: a list, or nothing
};
struct TopPicture {
  double seconds = 0;            ///< between the samples
  std::vector<TopGuest> guests;  ///< the busiest first
  std::vector<TopAgent> agents;  ///< most queued first, then most strikes
  double events = 0, decided = 0;
  std::uint64_t expired = 0;
};

/// Counters that went down (kvmid or a guest is a new one) count from 0.
TopPicture compare(const TopSample& before, const TopSample& now);
/// At most size.rows lines of at most size.columns characters; 0: no limit.
std::string render_top(const TopPicture& picture, const TopSample& now, TerminalSize size);
Json top_json(const TopPicture& picture);
/// uuids of the guests whose counters are worth asking for: the busiest ones, at most `max`.
std::vector<std::string> busiest(const TopSample& before, const Json& guests, std::size_t max);

int top(const Arguments& arguments);  // top_loop.cpp

}  // namespace kvmid::ctl
