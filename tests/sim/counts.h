// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// What happened in a run, by kind: a run that never saw some kind of thing has tested nothing of it.

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace kvmid::sim {

enum class Seen : std::uint8_t {
  Steps,
  Events,
  EventsTold,
  Decided,
  Unattended,
  Merged,
  VerdictAllow,
  VerdictRetry,
  VerdictSkip,
  VerdictCrash,
  ValuesChanged,
  RegistersStaged,
  Outcomes,
  Expired,
  Demoted,
  RepliesRefused,
  Commands,
  CommandsGranted,
  CommandsRefused,
  OverQuota,
  Malformed,
  UnknownIds,
  Pauses,
  AgentsAttached,
  AgentsLost,
  AgentsLostOwing,
  AgentsReset,
  GrantsChanged,
  GrantsLost,
  Revoked,
  Unhooks,
  UnhooksConfirmed,
  LinksUp,
  LinksLost,
  GuestsRestarted,
  HypervisorRefusals,
  TakeBacksRefused,
  HypervisorGarbage,
  CommandTimeouts,
  Stops,
  PageFaults,
  VcpusCreated,
  Quiescent,
  QuiescentWithWishes,
  PatchesPlaced,
  PatchesShared,
  PatchConflicts,
  PatchHits,
  LateHits,
  OwnBreakpoints,
  StepsOver,
  RepliesHeld,
  FiltersSet,
  FiltersAnswered,
  MapChanges,
  CookiesGiven,
  CookiesTaken,
  CookiesRefused,
  VotesWithCookies,
  StaleVotes,
  Count,
};

inline constexpr std::array<std::string_view, static_cast<std::size_t>(Seen::Count)> kSeenNames{
    "steps",
    "events",
    "events told to agents",
    "verdicts of agents",
    "verdicts of kvmid alone",
    "verdicts of several agents",
    "verdict ALLOW",
    "verdict RETRY",
    "verdict SKIP",
    "verdict CRASH",
    "values changed",
    "registers staged and loaded",
    "OUTCOME notices",
    "EXPIRED notices",
    "DEMOTED notices",
    "replies of agents refused",
    "commands of agents",
    "commands granted",
    "commands refused",
    "commands over a quota",
    "malformed messages",
    "unknown ids",
    "pauses told",
    "agents attached",
    "agents lost",
    "agents lost while they owed",
    "agents let go by a reset",
    "grants changed",
    "grants lost",
    "REVOKED notices",
    "unhooks",
    "unhooks confirmed",
    "links up",
    "links lost",
    "guests started anew",
    "refusals of hypervisors",
    "take-backs refused by hypervisors",
    "garbage of hypervisors",
    "commands timed out",
    "stops",
    "page faults",
    "vCPUs created",
    "quiescent moments compared",
    "of these with wishes",
    "patches placed",
    "patches shared",
    "patch conflicts",
    "patch hits",
    "late patch hits",
    "breakpoints of the guest's own",
    "patches stepped over",
    "replies kept back for a step",
    "filters set",
    "events kept from an agent by its filter",
    "changes of memory maps",
    "cookies given",
    "writes with a cookie accepted",
    "writes with a cookie refused as stale",
    "votes with a cookie",
    "of these alone and stale",
};

class Counts {
 public:
  void add(Seen what, std::uint64_t n = 1) { counts_[static_cast<std::size_t>(what)] += n; }
  [[nodiscard]] std::uint64_t of(Seen what) const { return counts_[static_cast<std::size_t>(what)]; }
  void add(const Counts& other) {
    for (std::size_t i = 0; i < counts_.size(); ++i) counts_[i] += other.counts_[i];
  }

 private:
  std::array<std::uint64_t, static_cast<std::size_t>(Seen::Count)> counts_{};
};

}  // namespace kvmid::sim
