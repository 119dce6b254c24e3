// SPDX-License-Identifier: GPL-2.0-or-later
// What happens to guests and agents from outside: they come, go, are unhooked, restarted, given less.
#include <algorithm>

#include "tests/sim/world.h"

namespace kvmid::sim {

namespace {
using std::chrono::milliseconds;
}

HypervisorHello World::hello_of(unsigned index) const {
  HypervisorHello hello;
  hello.uuid.bytes[0] = static_cast<std::uint8_t>(index + 1);
  hello.start_time = guests_[index]->start_time;
  hello.name = "guest" + std::to_string(index);
  hello.max_gpa = kMemoryBytes;
  hello.kvmi2 = true;
  return hello;
}

void World::new_machine(Guest& guest) {
  HypervisorHello hello;
  hello.uuid.bytes[0] = 1;
  hello.start_time = guest.start_time;
  hello.kvmi2 = true;
  cookie_seed_ = cookie_seed_ % (1U << 30U) + 100'000;  // as from a clock; below what is a cookie that was never given
  guest.machine =
      std::make_unique<core::GuestMachine>(hello, core::GuestLimits{.command_timeout = command_timeout_}, cookie_seed_);
  guest.watch = std::make_unique<Watch>(guest.hypervisor, counts_, command_timeout_);
  guest.ready = guest.stopping = false;
  guest.told_vcpus = 0;
  guest.armed = TimePoint::max();
  ++guest.timer;
}

GetVersionReply World::some_version() {
  GetVersionReply version;
  version.commands.bits = ~std::uint64_t{0};
  version.events = kEveryEvent;
  if (rng_.percent(85)) return version;
  // One that has less: what patches need among the rest.
  static constexpr std::array<unsigned, 6> kCommands{KVMI_MSG_CONTROL_SINGLESTEP, KVMI_MSG_PAUSE_VCPU,
                                                     KVMI_MSG_SET_PAGE_ACCESS,    KVMI_MSG_CONTROL_MSR,
                                                     KVMI_MSG_WRITE_PHYSICAL,     KVMI_MSG_CONTROL_SINGLESTEP};
  version.commands.bits &= ~KVMI_COMMAND_BIT(rng_.of(kCommands));
  version.events.bits &= ~(std::uint64_t{1} << rng_.between(1, kEventCount - 1));
  return version;
}

core::Grant World::some_grant() {
  core::Grant grant;
  grant.rule = "sim";
  grant.commands.bits = ~std::uint64_t{0};
  grant.events = kEveryEvent;
  if (rng_.percent(25)) grant.commands.bits &= ~(std::uint64_t{1} << rng_.between(4, 34));
  if (rng_.percent(25)) grant.events.bits &= rng_.next() | rng_.next();
  grant.role = rng_.percent(85) ? Role::Decider : Role::Observer;
  grant.priority = static_cast<std::uint32_t>(rng_.below(3));
  const auto choice = rng_.below(1000);
  grant.default_action = choice < 750   ? Action::Allow
                         : choice < 850 ? Action::Retry
                         : choice < 998 ? Action::Skip
                                        : Action::Crash;
  grant.deadline = milliseconds(rng_.between(5, 60));
  grant.pause_max = milliseconds(rng_.between(30, 300));
  grant.strikes_max = static_cast<std::uint32_t>(rng_.between(2, 5));
  grant.quota.requests_max = static_cast<std::uint32_t>(rng_.between(4, 40));
  grant.quota.pages_max = static_cast<std::uint32_t>(rng_.between(2, kPages));
  grant.quota.msrs_max = static_cast<std::uint32_t>(rng_.between(2, 20));
  grant.quota.patches_max = static_cast<std::uint32_t>(rng_.between(1, 5));
  grant.quota.filters_max = static_cast<std::uint32_t>(rng_.between(1, 6));
  return grant;
}

// ---- links ----

void World::connect(unsigned index) {
  Guest& guest = *guests_[index];
  HypervisorNature nature;
  if (rng_.percent(60)) nature.refuses_permille = static_cast<unsigned>(rng_.below(25));
  if (rng_.percent(25)) nature.refuses_to_take_permille = static_cast<unsigned>(rng_.below(20));
  if (rng_.percent(60)) nature.slow_permille = static_cast<unsigned>(rng_.below(60));
  nature.deaf_once = rng_.percent(6);
  close_link(guest);
  guest.hypervisor.connect(some_version(), nature);
  guest.connected = true;
  const bool another = guest.told_vcpus != 0 &&
                       (guest.start_time != guest.told_start_time || guest.hypervisor.vcpu_count() != guest.told_vcpus);
  guest.told_start_time = guest.start_time;
  guest.told_vcpus = guest.hypervisor.vcpu_count();
  if (trace_)
    say(index, "hypervisor connects, start time " + std::to_string(guest.start_time) + ", vCPUs " +
                   std::to_string(guest.told_vcpus));
  guest.watch->connect_in(another);
  const HypervisorHello hello = hello_of(index);
  step(index, [&] { guest.machine->on_hypervisor_connected(hello, now_, effects_); });
}

void World::lose_link(unsigned index, OffReason reason) {
  Guest& guest = *guests_[index];
  if (!guest.connected) return;
  if (trace_) say(index, "hypervisor is lost: " + std::string(name_of(reason)));
  counts_.add(Seen::LinksLost);
  close_link(guest);
  guest.watch->link_lost_in();
  step(index, [&] { guest.machine->on_hypervisor_lost(reason, now_, effects_); });
  schedule(What::Connect, microseconds(rng_.below(20'000)), index, 0, 0);
}

void World::settle_unhook(unsigned index) {
  Guest& guest = *guests_[index];
  if (!guest.hypervisor.unhook_answered()) {
    // Every command is answered within command_timeout_, and the withdrawal is a few rounds of them.
    if (now_ - *guest.unhook_asked > 4 * command_timeout_ + 8 * core::kStepOverMax)
      throw Violation("I1 events are answered once", "an UNHOOK is not answered");
    return;
  }
  if (rng_.percent(30)) {
    ++guest.start_time;
    counts_.add(Seen::GuestsRestarted);
    guest.hypervisor.start_guest(static_cast<unsigned>(rng_.between(1, kVcpus)));
  }
  lose_link(index, guest.unhook_reason);
}

/// kvmid ends: when it says that all is withdrawn, nothing may be left; then another begins.
void World::settle_stop(unsigned index) {
  Guest& guest = *guests_[index];
  if (!guest.machine->settled()) {
    if (now_ - guest.stop_asked > 4 * command_timeout_ + 8 * core::kStepOverMax)
      throw Violation("I4 nothing of the gone remains", "a stop does not come to its end");
    return;
  }
  if (!guest.hypervisor.told().none() && !guest.hypervisor.refused_to_take() && guest.connected &&
      guest.watch->link_up())
    throw Violation("I4 nothing of the gone remains",
                    "the core says that it has settled, and the hypervisor has wishes");
  for (Place& place : guest.places) {
    if (!place.used) continue;
    place.used = false;
    ++place.generation;
  }
  close_link(guest);
  guest.hypervisor.start_guest(guest.hypervisor.vcpu_count());
  new_machine(guest);
  schedule(What::Connect, microseconds(rng_.below(2000)), index, 0, 0);
}

// ---- agents ----

std::optional<unsigned> World::some_place(Guest& guest) {
  const auto first = static_cast<unsigned>(rng_.below(kPlaces));
  for (unsigned i = 0; i < kPlaces; ++i)
    if (guest.places[(first + i) % kPlaces].used) return (first + i) % kPlaces;
  return std::nullopt;
}

void World::attach(unsigned index) {
  Guest& guest = *guests_[index];
  const auto used = std::count_if(guest.places.begin(), guest.places.end(), [](const Place& p) { return p.used; });
  if (!guest.ready || used >= agents_wanted_) return;
  const auto free = std::find_if(guest.places.begin(), guest.places.end(), [](const Place& p) { return !p.used; });
  AgentNature nature;
  if (rng_.percent(40)) nature.silent_percent = static_cast<unsigned>(rng_.below(40));
  if (rng_.percent(10)) nature.silent_percent = 100;
  if (rng_.percent(30)) nature.late_percent = static_cast<unsigned>(rng_.below(30));
  if (rng_.percent(30)) nature.wrong_percent = static_cast<unsigned>(rng_.below(20));
  if (rng_.percent(30)) nature.garbage_percent = static_cast<unsigned>(rng_.below(20));
  if (rng_.percent(20)) nature.greedy_percent = static_cast<unsigned>(rng_.below(10));
  nature.pace = microseconds(rng_.between(400, 8000));
  const core::Grant grant = some_grant();
  const std::uint32_t flags = rng_.percent(50) ? KVMI_HELLO_OUTCOMES : 0;
  const AgentId id{++agents_made_};
  if (trace_) say(index, "agent " + std::to_string(id.value) + " attaches");
  if (!guest.machine->attach(id, "agent", grant, flags)) return;
  counts_.add(Seen::AgentsAttached);
  const auto place = static_cast<unsigned>(free - guest.places.begin());
  free->used = true;
  ++free->generation;
  free->id = id;
  free->agent.emplace(rng_, nature, guest.told_vcpus);
  free->down = Pipe{};
  free->up = Pipe{};
  guest.watch->attached(id, grant, flags);
  schedule(What::AgentActs, microseconds(rng_.below(1000)), index, place, free->generation);
}

void World::lose(unsigned index, unsigned which) {
  Guest& guest = *guests_[index];
  Place& place = guest.places[which];
  if (trace_) say(index, "agent " + std::to_string(place.id.value) + " is gone");
  place.used = false;
  ++place.generation;
  guest.watch->lost_in(place.id);
  step(index, [&] { guest.machine->on_agent_lost(place.id, now_, effects_); });
}

void World::change_grant(unsigned index) {
  Guest& guest = *guests_[index];
  const auto which = some_place(guest);
  if (!which) return;
  const AgentId id = guest.places[*which].id;
  if (rng_.percent(10)) {
    if (trace_) say(index, "policy: no rule for agent " + std::to_string(id.value));
    guest.watch->grant_lost_in(id);
    return step(index, [&] { guest.machine->on_grant_lost(id, now_, effects_); });
  }
  if (trace_) say(index, "policy: another grant for agent " + std::to_string(id.value));
  const core::Grant grant = some_grant();
  guest.watch->grant_in(id, grant, *guest.machine);
  step(index, [&] { guest.machine->on_grant_changed(id, grant, now_, effects_); });
}

// ---- a guest's fate ----

void World::live(unsigned index) {
  Guest& guest = *guests_[index];
  if (guest.stopping) return settle_stop(index);
  for (unsigned i = 0; i < kPlaces; ++i)
    if (guest.places[i].used && guest.watch->is_uncertain(guest.places[i].id)) return lose(index, i);
  if (guest.unhook_asked) settle_unhook(index);
  if (rng_.percent(12)) attach(index);
  const unsigned chance = chaos_;
  if (rng_.permille(12 * chance))
    if (const auto which = some_place(guest)) lose(index, *which);
  if (rng_.permille(15 * chance)) change_grant(index);
  if (rng_.permille(chance)) {
    if (trace_) say(index, "kvmid stops");
    counts_.add(Seen::Stops);
    guest.stopping = true;
    guest.stop_asked = now_;
    guest.watch->stop_in();
    return step(index, [&] { guest.machine->stop(now_, effects_); });
  }
  if (!guest.connected || !guest.watch->link_up()) return;
  if (guest.hypervisor.crashed() && rng_.percent(20)) {
    ++guest.start_time;
    counts_.add(Seen::GuestsRestarted);
    guest.hypervisor.start_guest(static_cast<unsigned>(rng_.between(1, kVcpus)));
    return lose_link(index, OffReason::Shutdown);
  }
  if (rng_.permille(chance)) return lose_link(index, OffReason::LinkLost);
  if (rng_.permille(2 * chance) && !guest.unhook_asked) {
    static constexpr std::array<OffReason, 3> kReasons{OffReason::Suspend, OffReason::Migration, OffReason::Snapshot};
    guest.unhook_reason = rng_.of(kReasons);
    guest.unhook_asked = now_;
    guest.hypervisor.unhook(guest.unhook_reason, sends_);
    return post(sends_, What::HypervisorSays, index, 0, guest.link);
  }
  if (rng_.permille(4 * chance) && guest.hypervisor.change_map(sends_))
    return post(sends_, What::HypervisorSays, index, 0, guest.link);
  if (rng_.permille(chance) && !guest.garbage_coming) {
    guest.garbage_coming = true;
    const std::string_view what = guest.hypervisor.garbage(sends_);
    if (trace_) say(index, "hypervisor is about to break the protocol: " + std::string(what));
    post(sends_, What::HypervisorSays, index, 0, guest.link);
  }
}

/// Every agent goes; what is left of them at the hypervisors is looked at when all is quiet.
void World::leave() {
  leaving_ = true;
  for (unsigned i = 0; i < guests_.size(); ++i)
    for (unsigned place = 0; place < kPlaces; ++place)
      if (guests_[i]->places[place].used) lose(i, place);
  const TimePoint end = now_ + 4 * command_timeout_ + 8 * core::kStepOverMax;
  const auto quiet = [&] {
    return std::all_of(guests_.begin(), guests_.end(), [](const auto& guest) {
      return guest->machine->settled() &&
             (!guest->connected || guest->hypervisor.told().none() || guest->hypervisor.refused_to_take());
    });
  };
  while (!quiet()) {
    if (now_ > end)
      throw Violation("I4 nothing of the gone remains", "the last agent is gone, and it does not get quiet");
    const Item item = items_.top();
    items_.pop();
    now_ = item.at;
    happen(item);
  }
}

}  // namespace kvmid::sim
