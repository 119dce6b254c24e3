// SPDX-License-Identifier: GPL-2.0-or-later
// What is held: wishes and their union, page rights, patches, accounts, and that nothing stays behind.
#include <algorithm>

#include "protocol/result.h"
#include "tests/sim/invariants.h"

namespace kvmid::sim {

namespace {

constexpr std::string_view kI2 = "I2 the hypervisor has the union";
constexpr std::string_view kI4 = "I4 nothing of the gone remains";
constexpr std::string_view kI6 = "I6 accounts say what is held";

[[noreturn]] void violated(std::string_view invariant, const std::string& text) {
  throw Violation(std::string(invariant), text);
}
std::string text_of(const VcpuWish& v) {
  return "events " + hex(v.events) + " CRs " + hex(v.crs) + " MSRs " + hex(v.msrs) + " step " + (v.step ? "on" : "off");
}

}  // namespace

bool Watch::anybody_patches(std::uint64_t gpa) const {
  return std::any_of(agents_.begin(), agents_.end(), [&](const Agent& agent) {
    return wishes(
        agent, [&](const Wishes& has) { return has.patch_at(gpa) != nullptr; },
        [&](const Wish& wish) { return wish.flags != 0 && wish.patch.gpa == gpa; });
  });
}

/// When all who had the patch that was hit are gone, what lies there next is another one, and a hit of its own.
bool Watch::one_still_owns(const std::vector<AgentId>& owners, std::uint64_t gpa) const {
  return std::any_of(agents_.begin(), agents_.end(), [&](const Agent& agent) {
    return !agent.uncertain && agent.has.patch_at(gpa) != nullptr &&
           std::find(owners.begin(), owners.end(), agent.id) != owners.end();
  });
}

/// The agent was told yes.
void Watch::granted(Agent& agent, const Pending& pending, const CommandReply& reply) {
  const Wish& wish = pending.wish;
  if (wish.id == CommandId::SetFilter) {
    counts_.add(Seen::FiltersSet);
    const std::uint32_t number = wish.filter.terms.empty() ? 0 : wish.filter.number;
    for (unsigned i = 0; i < hypervisor_.vcpu_count(); ++i)
      if (wish.names(i)) agent.filters[i][static_cast<std::size_t>(wish.filter.kind)] = number;
    for (unsigned i = 0; i < kVcpus; ++i)
      if (wish.names(i) && open_[i]) open_[i]->uncertain = true;
    if (number != 0) agent.filter_copies.push_back(wish.filter);
    std::erase_if(agent.filter_copies, [&](const FilterCopy& copy) {
      for (const auto& vcpu : agent.filters)
        if (std::find(vcpu.begin(), vcpu.end(), copy.number) != vcpu.end()) return false;
      return true;
    });
    return;
  }
  if ((wish.flags & KVMI_WRITE_UNPATCH) != 0)  // what it may place there later is another patch
    for (unsigned i = 0; i < kVcpus; ++i) {
      std::erase(step_owners_[i], agent.id);
      if (open_[i]) std::erase(open_[i]->owners, agent.id);
    }
  if ((wish.flags & KVMI_WRITE_PATCH) != 0) {
    counts_.add(Seen::PatchesPlaced);
    i2_granted_patch_is_placed(agent, wish);
    for (const Agent& other : agents_) {
      if (other.id == agent.id || other.uncertain) continue;
      for (const Patch& patch : other.has.patches) {
        if (patch == wish.patch) counts_.add(Seen::PatchesShared);
        if (patch != wish.patch && patch.overlaps(wish.patch))
          violated(kI2, "a patch was granted over another agent's at " + hex(patch.gpa));
      }
    }
  }
  const bool was_deciding_allowed = agent.grant.role == Role::Decider;
  apply(wish, hypervisor_.vcpu_count(), agent.has);
  // Policy may have changed while the change was under way; what it takes is taken at once.
  if (!was_deciding_allowed)
    for (VcpuWish& vcpu : agent.has.vcpus) vcpu.deciding = 0;
  if (const auto* events = std::get_if<ControlEventsReply>(&reply.body); events != nullptr && !agent.uncertain) {
    std::uint64_t expected = ~std::uint64_t{0};
    for (unsigned i = 0; i < hypervisor_.vcpu_count(); ++i)
      if (wish.names(i)) expected &= agent.has.vcpus[i].events;
    if (events->events.bits != expected)
      violated(kI2, "CONTROL_EVENTS says " + hex(events->events.bits) + ", the agent has " + hex(expected));
  }
}

/// Yes is said when it is confirmed. Only a patch that others have too may be lifted just now, for a step.
void Watch::i2_granted_patch_is_placed(const Agent& agent, const Wish& wish) const {
  const Patch* there = hypervisor_.told().patch_at(wish.patch.gpa);
  if (there != nullptr && *there == wish.patch) return;
  const bool shared = std::any_of(agents_.begin(), agents_.end(), [&](const Agent& other) {
    const Patch* patch = other.has.patch_at(wish.patch.gpa);
    return other.id != agent.id && patch != nullptr && *patch == wish.patch;
  });
  const Patch* before = agent.has.patch_at(wish.patch.gpa);
  const bool had_it = before != nullptr && *before == wish.patch;
  if ((!shared && !had_it) || (wish.flags & KVMI_WRITE_EXPECT) != 0)
    violate_or_go_on(std::string(kI2),
                     "a patch at " + hex(wish.patch.gpa) + " was granted that the hypervisor does not have");
}

Wishes Watch::union_of_agents() const {
  Wishes all;
  for (const Agent& agent : agents_) {
    for (unsigned i = 0; i < kVcpus; ++i) {
      VcpuWish& to = all.vcpus[i];
      const VcpuWish& from = agent.has.vcpus[i];
      to.events |= from.events & ~bit(EventKind::Pause);  // has no switch: it comes from PAUSE_VCPU alone
      to.crs = static_cast<std::uint8_t>(to.crs | from.crs);
      to.msrs = static_cast<std::uint8_t>(to.msrs | from.msrs);
      to.step = to.step || from.step;
    }
    for (unsigned i = 0; i < kPages; ++i) all.pages[i] = static_cast<std::uint8_t>(all.pages[i] & agent.has.pages[i]);
    for (const Patch& patch : agent.has.patches)
      if (all.patch_at(patch.gpa) == nullptr) all.put(patch);
  }
  return all;
}

/// Patches may be lifted, and replies kept back, on account of some vCPU.
bool Watch::in_window(TimePoint now) {
  bool any = false;
  for (unsigned i = 0; i < kVcpus; ++i) {
    Window& window = windows_[i];
    const Duration longest = core::kStepOverMax + microseconds(2000);
    if (window.closing && commands_.empty()) window = Window{};
    if (window.replied && !open_[i] && now - window.since > longest) window.closing = true;
    // A BREAKPOINT of the guest's own that waits becomes a hit when somebody patches that place meanwhile.
    if (open_[i] && !window.open)
      if (const auto* hit = std::get_if<BreakpointData>(&open_[i]->event.data);
          hit != nullptr && (anybody_patches(hit->gpa.value) || !commands_.empty()))
        window = Window{true, false, false, now};
    any = any || window.open;
  }
  if (any)
    for (auto& open : open_)
      if (open) open->seen_in_window = true;
  return any;
}

// ---- after every step ----

void Watch::check(const core::GuestMachine& machine, TimePoint now) {
  const bool stepping = in_window(now);
  i1_nobody_waits_too_long(now);
  const core::GuestInfo info = machine.info();
  for (const auto& vcpu : info.vcpus)
    if (vcpu.held) counts_.add(Seen::RepliesHeld);
  i4_the_gone_are_not_waited_for(info);
  i6_accounts(info);
  told_back_refused_ = hypervisor_.refused_to_take();

  telling_ = !commands_.empty();
  if (commands_.empty()) departing_.clear();
  for (unsigned i = 0; i < hypervisor_.vcpu_count(); ++i) {
    const auto at = hypervisor_.must_step_at(i);
    if (at && !one_still_owns(step_owners_[i], *at)) hypervisor_.forgive_step(i);
  }
  bool quiescent = commands_.empty() && !stepping;
  for (unsigned i = 0; i < hypervisor_.vcpu_count(); ++i)  // it has begun anew, and that is not known here yet
    quiescent = quiescent && (open_[i] || !hypervisor_.begins_anew(i));
  if (!quiescent) return;
  i7_all_are_answered();
  if (!link_up_) return;
  counts_.add(Seen::Quiescent);
  if (stopping_ || unhook_) return i4_nothing_remains("when everything is withdrawn");
  i4_no_patch_of_the_gone_remains();
  told_all_ = true;
  for (const Agent& agent : agents_)
    if (agent.uncertain) return;
  const Wishes expected = union_of_agents();
  if (!expected.none()) counts_.add(Seen::QuiescentWithWishes);
  i2_union_is_told(expected);
  i3_rights_are_the_and(expected);
}

void Watch::i2_union_is_told(const Wishes& expected) const {
  const Wishes& told = hypervisor_.told();
  const std::uint64_t served = hypervisor_.version().events.bits;
  const bool patched = !expected.patches.empty();
  for (unsigned i = 0; i < hypervisor_.vcpu_count(); ++i) {
    VcpuWish want = expected.vcpus[i];
    VcpuWish has = told.vcpus[i];
    // Of its own kvmid wishes BREAKPOINT while there is a patch, and SINGLESTEP where the hypervisor gives it.
    if (patched) {
      want.events |= bit(EventKind::Breakpoint) & served;
      want.events |= has.events & bit(EventKind::Singlestep);
    }
    if (want.same_union(has)) continue;
    const bool only_more = (want.events & ~has.events) == 0 && (want.crs & ~has.crs) == 0 &&
                           (want.msrs & ~has.msrs) == 0 && (!want.step || has.step);
    if (only_more && told_back_refused_) continue;  // it did not take something back; that is nobody's error
    violated(kI2, "vCPU " + std::to_string(i) + " was told " + text_of(has) + ", the union is " + text_of(want));
  }
  if (told.patches == expected.patches) return;
  std::string text = "patches of the hypervisor:";
  for (const Patch& patch : told.patches) text += " " + hex(patch.gpa) + "+" + std::to_string(patch.bytes.size());
  text += "; of the agents:";
  for (const Patch& patch : expected.patches) text += " " + hex(patch.gpa) + "+" + std::to_string(patch.bytes.size());
  violated(kI2, text);
}

void Watch::i3_rights_are_the_and(const Wishes& expected) const {
  const Wishes& told = hypervisor_.told();
  for (unsigned i = 0; i < kPages; ++i) {
    if (told.pages[i] == expected.pages[i]) continue;
    if (told_back_refused_ && (told.pages[i] & expected.pages[i]) == told.pages[i]) continue;
    violated("I3 page rights are the AND", "page " + std::to_string(i) + " has rights " + hex(told.pages[i]) +
                                               ", the views leave " + hex(expected.pages[i]));
  }
}

void Watch::i2_somebody_wishes(const Command& command) const {
  Wish told;
  if (!Wish::read(command, told)) return;
  const auto nobody = [&](const std::string& what) {
    violated(kI2, "the hypervisor is told " + what + ", which no agent wishes");
  };
  // Of a change under way whose agent has gone the rest may still be told: it is taken back right after.
  const auto anybody = [&](auto&& has, auto&& asks) {
    const auto wishing = [&](const Agent& agent) { return wishes(agent, has, asks); };
    return std::any_of(agents_.begin(), agents_.end(), wishing) ||
           std::any_of(departing_.begin(), departing_.end(), wishing);
  };
  const bool stepping = std::any_of(windows_.begin(), windows_.end(), [](const Window& window) { return window.open; });
  const bool patches =
      anybody([](const Wishes& has) { return !has.patches.empty(); }, [](const Wish& wish) { return wish.flags != 0; });
  for (unsigned i = 0; i < hypervisor_.vcpu_count(); ++i) {
    if (!told.names(i)) continue;
    switch (told.id) {
      case CommandId::ControlEvents:
        if (told.operation == Operation::Disable) break;
        for (std::uint64_t rest = told.events; rest != 0; rest &= rest - 1) {
          const std::uint64_t one = rest & (~rest + 1);
          if (patches && (one & (bit(EventKind::Breakpoint) | bit(EventKind::Singlestep))) != 0) continue;
          if (!anybody([&](const Wishes& has) { return (has.vcpus[i].events & one) != 0; },
                       [&](const Wish& wish) {
                         return wish.id == CommandId::ControlEvents && wish.names(i) && (wish.events & one) != 0;
                       }))
            nobody("events " + hex(one) + " of vCPU " + std::to_string(i));
        }
        break;
      case CommandId::ControlCr:
        if (told.enable &&
            !anybody([&](const Wishes& has) { return ((has.vcpus[i].crs >> told.number) & 1U) != 0; },
                     [&](const Wish& wish) { return wish.id == CommandId::ControlCr && wish.number == told.number; }))
          nobody("CR " + std::to_string(told.number));
        break;
      case CommandId::ControlMsr: {
        const auto at = msr_index(told.number);
        if (told.enable &&
            !anybody([&](const Wishes& has) { return ((has.vcpus[i].msrs >> at) & 1U) != 0; },
                     [&](const Wish& wish) { return wish.id == CommandId::ControlMsr && wish.number == told.number; }))
          nobody("MSR " + hex(told.number));
        break;
      }
      case CommandId::ControlSinglestep:
        if (told.enable && !stepping &&
            !anybody([&](const Wishes& has) { return has.vcpus[i].step; },
                     [&](const Wish& wish) { return wish.id == CommandId::ControlSinglestep && wish.names(i); }))
          nobody("single step of vCPU " + std::to_string(i));
        break;
      case CommandId::PauseVcpu:
        if (!stepping && !anybody([](const Wishes&) { return false; },
                                  [&](const Wish& wish) { return wish.id == CommandId::PauseVcpu && wish.names(i); }))
          nobody("a pause of vCPU " + std::to_string(i));
        break;
      default:
        break;
    }
  }
  for (const auto& entry : told.entries)
    for (std::uint64_t gfn = entry.gpa >> kPageShift, n = 0; n < entry.pages && gfn < kPages; ++n, ++gfn)
      if (entry.access != kAllRights && !anybody([&](const Wishes& has) { return has.pages[gfn] != kAllRights; },
                                                 [](const Wish& wish) { return wish.id == CommandId::SetPageAccess; }))
        nobody("less rights to page " + std::to_string(gfn));
  if ((told.flags & KVMI_WRITE_PATCH) != 0 &&
      !anybody(
          [&](const Wishes& has) {
            const Patch* patch = has.patch_at(told.patch.gpa);
            return patch != nullptr && *patch == told.patch;
          },
          [&](const Wish& wish) { return wish.flags != 0 && wish.patch == told.patch; }))
    nobody("a patch at " + hex(told.patch.gpa));
}

void Watch::i4_the_gone_are_not_waited_for(const core::GuestInfo& info) {
  for (const auto& vcpu : info.vcpus)
    for (const AgentId id : vcpu.waits_for)
      if (find(id) == nullptr) violated(kI4, "a vCPU waits for agent " + std::to_string(id.value) + ", which is gone");
  if (info.agents.size() != agents_.size()) violated(kI4, "the guest knows another number of agents than there are");
}

void Watch::i4_nothing_remains(std::string_view when) const {
  if (hypervisor_.told().none() || hypervisor_.refused_to_take()) return;
  const Wishes& told = hypervisor_.told();
  std::string text = "the hypervisor still has something " + std::string(when) + ":";
  for (unsigned i = 0; i < hypervisor_.vcpu_count(); ++i)
    if (!told.vcpus[i].same_union(VcpuWish{})) text += " vCPU " + std::to_string(i) + " " + text_of(told.vcpus[i]);
  text += " patches " + std::to_string(told.patches.size());
  violated(kI4, text);
}

void Watch::i5_read_is_what_was_read(const Pending& pending, const CommandReply& reply) const {
  const auto* read = std::get_if<ReadPhysicalReply>(&reply.body);
  const bool same = read != nullptr && has_read_data_ && read->data.size() == pending.read_bytes &&
                    std::equal(read->data.begin(), read->data.end(), read_data_.begin(), read_data_.end());
  if (!same) violated("I5 an agent sees only what is its own", "READ_PHYSICAL gives other bytes than the guest's own");
}

/// The place was patched by an agent that is gone, and all is quiet.
void Watch::i4_no_patch_of_the_gone_remains() {
  for (const std::uint64_t gpa : gone_patches_)
    if (hypervisor_.told().patch_at(gpa) != nullptr && !anybody_patches(gpa))
      violated(kI4, "the patch at " + hex(gpa) + " is still there, and its agent is gone");
  gone_patches_.clear();
}

void Watch::i6_accounts(const core::GuestInfo& info) {
  for (const core::AgentInfo& entry : info.agents) {
    const Agent& agent = must_find(entry.id, "an account");
    const auto differs = [&](std::string_view what, std::uint64_t said, std::uint64_t held) {
      if (said != held)
        violated(kI6, "agent " + std::to_string(entry.id.value) + " is said to hold " + std::to_string(said) + " " +
                          std::string(what) + ", and holds " + std::to_string(held));
    };
    differs("open commands", entry.requests_open, agent.pending.size());
    if (entry.requests_open > agent.grant.quota.requests_max && input_ != Input::GrantChanged && !agent.uncertain)
      violated(kI6, "an agent has more open commands than its quota");
    if (agent.uncertain) continue;
    bool changing = false;  // what is under way is in the tables before it is in the answer
    for (const Pending& pending : agent.pending) changing = changing || pending.is_wish;
    if (changing) continue;
    std::uint64_t pages = 0;
    for (const std::uint8_t rights : agent.has.pages) pages += rights != kAllRights ? 1 : 0;
    std::uint64_t events = 0;
    for (const VcpuWish& vcpu : agent.has.vcpus) events |= vcpu.events;
    std::vector<std::uint32_t> filters;
    for (const auto& vcpu : agent.filters)
      for (const std::uint32_t number : vcpu)
        if (number != 0 && std::find(filters.begin(), filters.end(), number) == filters.end())
          filters.push_back(number);
    differs("restricted pages", entry.pages, pages);
    differs("events (as a mask)", entry.events.bits, events);
    differs("patches", entry.patches, agent.has.patches.size());
    differs("filters", entry.filters, filters.size());
  }
}

void Watch::i7_all_are_answered() const {
  for (const Agent& agent : agents_)
    if (!agent.pending.empty())
      violated("I7 commands are answered once",
               "agent " + std::to_string(agent.id.value) + " has " + std::to_string(agent.pending.size()) +
                   " commands without an answer, the first with id " + std::to_string(agent.pending.front().id) +
                   ", and nothing is under way");
}

}  // namespace kvmid::sim
