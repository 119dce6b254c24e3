// SPDX-License-Identifier: GPL-2.0-or-later
#include "daemon/core/filter.h"

#include <algorithm>
#include <optional>

#include "protocol/filter_rules.h"

namespace kvmid::core {

namespace {

constexpr std::uint64_t kAllBits = std::numeric_limits<std::uint64_t>::max();

// A register by its number in a term: kvmi_x86_regs is an array of 64-bit values in that order.
using Register = std::uint64_t kvmi_x86_regs::*;
constexpr std::array<Register, kFilterRegisterCount> kRegisters{
    &kvmi_x86_regs::rax, &kvmi_x86_regs::rbx, &kvmi_x86_regs::rcx, &kvmi_x86_regs::rdx, &kvmi_x86_regs::rsi,
    &kvmi_x86_regs::rdi, &kvmi_x86_regs::rsp, &kvmi_x86_regs::rbp, &kvmi_x86_regs::r8,  &kvmi_x86_regs::r9,
    &kvmi_x86_regs::r10, &kvmi_x86_regs::r11, &kvmi_x86_regs::r12, &kvmi_x86_regs::r13, &kvmi_x86_regs::r14,
    &kvmi_x86_regs::r15, &kvmi_x86_regs::rip, &kvmi_x86_regs::rflags};

constexpr std::string_view missing_field(std::uint8_t field) {
  switch (field) {
    case KVMI_FILTER_NUMBER: return "this event has no number";
    case KVMI_FILTER_OLD_VALUE: return "this event has no old value";
    case KVMI_FILTER_NEW_VALUE: return "this event has no new value";
    case KVMI_FILTER_CHANGED: return "this event has no old and new value";
    case KVMI_FILTER_GPA: return "this event has no GPA";
    case KVMI_FILTER_GVA: return "this event has no GVA";
    case KVMI_FILTER_ACCESS: return "this event has no page access";
    default: return "this event has no such field";
  }
}

/// What is wrong with the term, or nothing ("").
std::string_view fault_of(EventKind kind, const kvmi_filter_term& term, bool first) {
  if (term.field >= kFilterFieldCount) return "there is no such field";
  if (!has_filter_field(kind, term.field)) return missing_field(term.field);
  if (term.compare >= kFilterCompareCount) return "there is no such comparison";
  if (term.new_group > 1) return "new_group is neither 0 nor 1";
  if (first && term.new_group != 0) return "new_group is set in the first term";
  if (term.field == KVMI_FILTER_REGISTER) {
    if (term.reg >= kFilterRegisterCount) return "reg is above 17: there is no such register";
  } else if (term.reg != 0) {
    return "reg is set and the field is no register";
  }
  if (term.padding != 0) return "padding is not 0";
  switch (term.compare) {
    case KVMI_COMPARE_MASK_EQ:
    case KVMI_COMPARE_MASK_NE: break;
    case KVMI_COMPARE_RANGE:
      if (term.operand < term.value) return "the last value of the range is below its first";
      break;
    default:
      if (term.operand != 0) return "operand is set and the comparison takes none";
  }
  return {};
}

/// Old and new value of CR, MSR, XSETBV; the kind was checked when the filter was made.
struct Change {
  std::uint64_t number = 0;
  std::uint64_t old_value = 0;
  std::uint64_t new_value = 0;
};
std::optional<Change> change_of(const EventData& data) noexcept {
  if (const auto* cr = std::get_if<CrData>(&data)) return Change{cr->cr, cr->old_value, cr->new_value};
  if (const auto* msr = std::get_if<MsrData>(&data)) return Change{msr->msr, msr->old_value, msr->new_value};
  if (const auto* xcr = std::get_if<XsetbvData>(&data)) return Change{xcr->xcr, xcr->old_value, xcr->new_value};
  return std::nullopt;
}

std::optional<std::uint64_t> number_of(const Event& event) noexcept {
  if (const auto change = change_of(event.data)) return change->number;
  if (const auto* trap = std::get_if<TrapData>(&event.data)) return trap->vector;
  if (const auto* descriptor = std::get_if<DescriptorData>(&event.data)) return descriptor->descriptor;
  if (const auto* cpuid = std::get_if<CpuidData>(&event.data)) return cpuid->function;
  if (std::holds_alternative<HypercallData>(event.data)) return event.regs.rax;
  return std::nullopt;
}

/// What the event shows in that field, if it shows it.
std::optional<std::uint64_t> value_of(const Event& event, std::uint8_t field, std::uint8_t reg) noexcept {
  const auto* fault = std::get_if<PageFaultData>(&event.data);
  const auto* access = std::get_if<AccessData>(&event.data);
  switch (field) {
    case KVMI_FILTER_REGISTER: return event.regs.*kRegisters[reg];
    case KVMI_FILTER_VCPU: return event.vcpu.value;
    case KVMI_FILTER_NUMBER: return number_of(event);
    case KVMI_FILTER_OLD_VALUE:
      if (const auto change = change_of(event.data)) return change->old_value;
      break;
    case KVMI_FILTER_NEW_VALUE:
      if (const auto change = change_of(event.data)) return change->new_value;
      break;
    case KVMI_FILTER_CHANGED:
      if (const auto change = change_of(event.data)) return change->old_value ^ change->new_value;
      break;
    case KVMI_FILTER_GPA:
      if (fault != nullptr) return fault->gpa.value;
      if (access != nullptr) return access->gpa.value;
      if (const auto* breakpoint = std::get_if<BreakpointData>(&event.data)) return breakpoint->gpa.value;
      break;
    case KVMI_FILTER_GVA:
      if (fault != nullptr && fault->gva_valid) return fault->gva.value;
      if (access != nullptr) return access->gva.value;
      break;
    case KVMI_FILTER_ACCESS:
      if (fault != nullptr) return fault->access;
      if (access != nullptr) return access->access;
      break;
    default: break;
  }
  return std::nullopt;
}

}  // namespace

std::string describe(const FilterFault& fault) {
  if (fault.term == FilterFault::kWholeFilter) return std::string(fault.text);
  return "term " + std::to_string(fault.term + 1) + ": " + std::string(fault.text);
}

Result<Filter, FilterFault> Filter::make(EventKind kind, Action action, const WireArray<kvmi_filter_term>& terms) {
  static_assert(KVMI_FILTER_TERMS_MAX == 32, "the text below names it");
  if (static_cast<unsigned>(kind) >= kEventCount) return FilterFault{.text = "there is no such event"};
  if (!can_filter(kind)) return FilterFault{.text = "UNHOOK, CREATE_VCPU and PAUSE events cannot be filtered"};
  if (static_cast<unsigned>(action) >= kActionCount) return FilterFault{.text = "there is no such action"};
  if (terms.empty()) return FilterFault{.text = "a filter has at least one term"};
  if (terms.size() > KVMI_FILTER_TERMS_MAX)
    return FilterFault{.text = "a filter has at most 32 terms", .error = ErrorCode::Busy};
  Filter filter(kind, action);
  filter.terms_.reserve(terms.size());
  for (std::size_t i = 0; i < terms.size(); ++i) {
    const kvmi_filter_term term = terms[i];
    if (const auto text = fault_of(kind, term, i == 0); !text.empty()) return FilterFault{.term = i, .text = text};
    filter.terms_.push_back(to_term(term));
  }
  return filter;
}

Filter::Term Filter::to_term(const kvmi_filter_term& wire) {
  Term term{.field = wire.field, .reg = wire.reg, .new_group = wire.new_group != 0, .mask = kAllBits};
  const std::uint64_t value = wire.value;
  switch (wire.compare) {
    case KVMI_COMPARE_NE: term.negate = true; [[fallthrough]];
    case KVMI_COMPARE_EQ: term.low = value; break;
    case KVMI_COMPARE_LT:
      // Nothing is below 0: not within everything.
      term.negate = value == 0;
      term.span = value - 1;
      break;
    case KVMI_COMPARE_GT:
      // Not within 0 to the value.
      term.negate = true;
      term.span = value;
      break;
    case KVMI_COMPARE_RANGE:
      term.low = value;
      term.span = wire.operand - value;
      break;
    case KVMI_COMPARE_MASK_NE: term.negate = true; [[fallthrough]];
    case KVMI_COMPARE_MASK_EQ:
      term.mask = wire.operand;
      term.low = value;
      break;
    default: break;  // make() has refused it
  }
  return term;
}

bool Filter::holds(const Term& term, const Event& event) const noexcept {
  const auto value = value_of(event, term.field, term.reg);
  return value && (((*value & term.mask) - term.low <= term.span) != term.negate);
}

bool Filter::matches(const Event& event) const noexcept {
  if (event.kind() != kind_) return true;
  bool group = true;  // every term so far of the group holds
  for (const Term& term : terms_) {
    if (term.new_group) {
      if (group) return true;
      group = true;
    }
    group = group && holds(term, event);
  }
  return group;
}

FilterTable::FilterTable(std::uint16_t vcpu_count) : vcpus_(vcpu_count) {}

void FilterTable::set(VcpuId vcpu, AgentSlot slot, EventKind kind, const std::shared_ptr<const Filter>& filter) {
  if (vcpu != kAllVcpus) return set(vcpus_[vcpu.value], slot, kind, filter);
  for (Vcpu& each : vcpus_) set(each, slot, kind, filter);
}

void FilterTable::set(Vcpu& vcpu, AgentSlot slot, EventKind kind, const std::shared_ptr<const Filter>& filter) {
  const std::uint16_t key = key_of(kind, slot);
  const auto at = std::lower_bound(vcpu.entries.begin(), vcpu.entries.end(), key,
                                   [](const Entry& entry, std::uint16_t k) { return entry.key < k; });
  const bool found = at != vcpu.entries.end() && at->key == key;
  AgentSet& filtering = vcpu.filtering[static_cast<std::size_t>(kind)];
  if (filter == nullptr) {
    filtering.remove(slot);
    if (found) vcpu.entries.erase(at);
    return;
  }
  if (found) {
    at->filter = filter;
  } else {
    vcpu.entries.insert(at, Entry{key, filter});
  }
  filtering.add(slot);  // last: what threw above has changed nothing
}

void FilterTable::remove(AgentSlot slot) {
  for (Vcpu& vcpu : vcpus_) {
    for (AgentSet& set : vcpu.filtering) set.remove(slot);
    std::erase_if(vcpu.entries, [&](const Entry& entry) { return (entry.key & 0xffU) == slot; });
  }
}

template <class Counts>
std::size_t FilterTable::count_distinct(AgentSlot slot, Counts counts) const {
  std::vector<const Filter*> found;
  for (std::uint16_t i = 0; i < vcpu_count(); ++i)
    for (const Entry& entry : vcpus_[i].entries)
      if ((entry.key & 0xffU) == slot && counts(VcpuId{i}, entry)) found.push_back(entry.filter.get());
  std::sort(found.begin(), found.end());
  return static_cast<std::size_t>(std::unique(found.begin(), found.end()) - found.begin());
}

std::size_t FilterTable::filters_of(AgentSlot slot) const {
  return count_distinct(slot, [](VcpuId, const Entry&) { return true; });
}

std::size_t FilterTable::filters_kept(VcpuId vcpu, AgentSlot slot, EventKind kind) const {
  return count_distinct(slot, [&](VcpuId id, const Entry& entry) {
    return entry.key != key_of(kind, slot) || (vcpu != kAllVcpus && vcpu != id);
  });
}

const Filter* FilterTable::find(VcpuId vcpu, EventKind kind, AgentSlot slot) const {
  if (!filtering(vcpu, kind).has(slot)) return nullptr;
  const auto& entries = vcpus_[vcpu.value].entries;
  const std::uint16_t key = key_of(kind, slot);
  const auto at = std::lower_bound(entries.begin(), entries.end(), key,
                                   [](const Entry& entry, std::uint16_t k) { return entry.key < k; });
  return at != entries.end() && at->key == key ? at->filter.get() : nullptr;
}

}  // namespace kvmid::core
