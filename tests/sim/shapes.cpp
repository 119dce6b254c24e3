// SPDX-License-Identifier: GPL-2.0-or-later
#include "tests/sim/shapes.h"

#include <cstring>
#include <optional>

#include "protocol/result.h"

namespace kvmid::sim {

std::string hex(std::uint64_t value) {
  static constexpr std::string_view kDigits = "0123456789abcdef";
  std::string text;
  do text.insert(text.begin(), kDigits[value & 15U]);
  while ((value >>= 4U) != 0);
  return "0x" + text;
}

bool Wishes::none() const {
  const auto empty = [](const VcpuWish& v) { return v.same_union(VcpuWish{}); };
  return std::all_of(vcpus.begin(), vcpus.end(), empty) && patches.empty() &&
         std::all_of(pages.begin(), pages.end(), [](std::uint8_t rights) { return rights == kAllRights; });
}

std::size_t msr_index(std::uint32_t msr) {
  return static_cast<std::size_t>(std::find(kMsrs.begin(), kMsrs.end(), msr) - kMsrs.begin());
}

bool Wish::read(const Command& command, Wish& out) {
  out = Wish{};
  out.id = id_of(command);
  return std::visit(Overloaded{
                        [&](const ControlEvents& c) {
                          out.vcpu = c.vcpu;
                          out.operation = c.operation;
                          out.role = c.role;
                          out.events = c.events.bits;
                          return true;
                        },
                        [&](const ControlCr& c) {
                          out.vcpu = c.vcpu;
                          out.enable = c.enable;
                          out.number = c.cr;
                          return true;
                        },
                        [&](const ControlMsr& c) {
                          out.vcpu = c.vcpu;
                          out.enable = c.enable;
                          out.number = c.msr;
                          return true;
                        },
                        [&](const ControlSinglestep& c) {
                          out.vcpu = c.vcpu;
                          out.enable = c.enable;
                          return true;
                        },
                        [&](const PauseVcpu& c) {
                          out.vcpu = c.vcpu;
                          return true;
                        },
                        [&](const SetPageAccess& c) {
                          for (std::size_t i = 0; i < c.entries.size(); ++i) out.entries.push_back(c.entries[i]);
                          return true;
                        },
                        [&](const WritePhysical& c) {
                          out.flags = c.flags;
                          out.patch = Patch{c.gpa.value, {c.data.begin(), c.data.end()}};
                          return (c.flags & (KVMI_WRITE_PATCH | KVMI_WRITE_UNPATCH)) != 0;
                        },
                        [&](const SetFilter& c) {
                          out.vcpu = c.vcpu;
                          out.filter = FilterCopy{0, c.event, c.action, {}};
                          for (std::size_t i = 0; i < c.terms.size(); ++i) out.filter.terms.push_back(c.terms[i]);
                          return true;
                        },
                        [&](const auto&) { return false; },
                    },
                    command);
}

void apply(const Wish& wish, unsigned vcpu_count, Wishes& wishes) {
  for (unsigned i = 0; i < vcpu_count; ++i) {
    if (!wish.names(i)) continue;
    VcpuWish& v = wishes.vcpus[i];
    switch (wish.id) {
      case CommandId::ControlEvents: {
        if (wish.operation == Operation::Disable) {
          v.events &= ~wish.events;
        } else if (wish.operation == Operation::Enable) {
          v.events |= wish.events;
        } else {
          v.events = wish.events;
        }
        const std::uint64_t decided = wish.role == Role::Decider ? wish.events & ~bit(EventKind::Pause) : 0;
        v.deciding = wish.operation == Operation::Disable ? v.deciding & v.events
                                                          : ((v.deciding & ~wish.events) | decided) & v.events;
        break;
      }
      case CommandId::ControlCr:
        v.crs = static_cast<std::uint8_t>(wish.enable ? v.crs | (1U << wish.number) : v.crs & ~(1U << wish.number));
        break;
      case CommandId::ControlMsr: {
        const auto mask = static_cast<std::uint8_t>(1U << msr_index(wish.number));
        v.msrs = static_cast<std::uint8_t>(wish.enable ? v.msrs | mask : v.msrs & ~mask);
        break;
      }
      case CommandId::ControlSinglestep:
        v.step = wish.enable;
        break;
      default:
        break;
    }
  }
  for (const auto& entry : wish.entries)
    for (std::uint64_t i = 0; i < entry.pages; ++i)
      if (const std::uint64_t gfn = (entry.gpa >> kPageShift) + i; gfn < kPages) wishes.pages[gfn] = entry.access;
  if ((wish.flags & KVMI_WRITE_PATCH) != 0) wishes.put(wish.patch);
  if ((wish.flags & KVMI_WRITE_UNPATCH) != 0) wishes.take(wish.patch.gpa);
}

// ---- filters: written anew from PROTOCOL.md, so that the core's own reading of it is compared with another ----

namespace {

std::optional<std::uint64_t> field_of(const kvmi_filter_term& term, const Event& event) {
  switch (term.field) {
    case KVMI_FILTER_REGISTER: {
      std::array<std::uint64_t, 18> regs;
      static_assert(sizeof regs == sizeof event.regs);
      std::memcpy(regs.data(), &event.regs, sizeof regs);
      if (term.reg >= regs.size()) return std::nullopt;
      return regs[term.reg];
    }
    case KVMI_FILTER_NUMBER:
      if (const auto* cr = std::get_if<CrData>(&event.data)) return cr->cr;
      if (const auto* msr = std::get_if<MsrData>(&event.data)) return msr->msr;
      return std::nullopt;
    case KVMI_FILTER_GPA:
      if (const auto* fault = std::get_if<PageFaultData>(&event.data)) return fault->gpa.value;
      if (const auto* hit = std::get_if<BreakpointData>(&event.data)) return hit->gpa.value;
      return std::nullopt;
    case KVMI_FILTER_VCPU:
      return event.vcpu.value;
    default:
      return std::nullopt;
  }
}

bool holds(const kvmi_filter_term& term, std::uint64_t value) {
  switch (term.compare) {
    case KVMI_COMPARE_EQ:
      return value == term.value;
    case KVMI_COMPARE_NE:
      return value != term.value;
    case KVMI_COMPARE_LT:
      return value < term.value;
    case KVMI_COMPARE_GT:
      return value > term.value;
    case KVMI_COMPARE_RANGE:
      return value >= term.value && value <= term.operand;
    case KVMI_COMPARE_MASK_EQ:
      return (value & term.operand) == term.value;
    default:
      return (value & term.operand) != term.value;
  }
}

}  // namespace

std::optional<bool> matches(const FilterCopy& filter, const Event& event) {
  bool any = false;
  bool all = true;
  for (std::size_t i = 0; i < filter.terms.size(); ++i) {
    const kvmi_filter_term& term = filter.terms[i];
    if (term.new_group != 0) {
      any = any || all;
      all = true;
    }
    const auto value = field_of(term, event);
    if (!value) return std::nullopt;
    all = all && holds(term, *value);
  }
  return any || all;
}

}  // namespace kvmid::sim
