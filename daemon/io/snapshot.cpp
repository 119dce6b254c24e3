// SPDX-License-Identifier: GPL-2.0-or-later
#include "daemon/io/snapshot.h"

#include <array>

namespace kvmid::io {
namespace {

using core::GuestCounters;
struct Member {
  const char* name;
  std::uint64_t GuestCounters::*value;
};
constexpr std::array kMembers{
    Member{"events", &GuestCounters::events},
    Member{"decided", &GuestCounters::decided},
    Member{"merged", &GuestCounters::merged},
    Member{"unattended", &GuestCounters::unattended},
    Member{"expired", &GuestCounters::expired},
    Member{"demoted", &GuestCounters::demoted},
    Member{"late_replies", &GuestCounters::late_replies},
    Member{"bad_replies", &GuestCounters::bad_replies},
    Member{"agents_lost_owing", &GuestCounters::agents_lost_owing},
    Member{"skipped", &GuestCounters::skipped},
    Member{"retried", &GuestCounters::retried},
    Member{"crashed", &GuestCounters::crashed},
    Member{"filtered", &GuestCounters::filtered},
    Member{"stepped_over", &GuestCounters::stepped_over},
    Member{"map_changes", &GuestCounters::map_changes},
    Member{"commands", &GuestCounters::commands},
    Member{"commands_refused", &GuestCounters::commands_refused},
    Member{"commands_forwarded", &GuestCounters::commands_forwarded},
    Member{"protocol_errors", &GuestCounters::protocol_errors},
};
// A counter that is added to the core must be named here, or it would be lost.
static_assert(sizeof(GuestCounters) == kMembers.size() * sizeof(std::uint64_t));

}  // namespace

std::vector<NamedCount> named(const GuestCounters& counters) {
  std::vector<NamedCount> out;
  for (const auto& member : kMembers) out.push_back({member.name, counters.*member.value});
  return out;
}

void add(GuestCounters& sum, const GuestCounters& other) {
  for (const auto& member : kMembers) sum.*member.value += other.*member.value;
}

}  // namespace kvmid::io
