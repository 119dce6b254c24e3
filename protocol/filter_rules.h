// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

/// Which events a filter can be set for, and what it can look at in each.
///
/// Purpose:  one table for those who check filters (kvmid) and those who write them (libkvmid).
/// Shapes:   fields are the numbers KVMI_FILTER_*, as in a kvmi_filter_term.
/// Threads:  constant.
/// Source:   protocol/PROTOCOL.md, "29 SET_FILTER".

#include <cstdint>

#include "protocol/message.h"

namespace kvmid {

inline constexpr std::uint8_t kFilterFieldCount = KVMI_FILTER_VCPU + 1;
inline constexpr std::uint8_t kFilterCompareCount = KVMI_COMPARE_MASK_NE + 1;
inline constexpr std::uint8_t kFilterRegisterCount = 18;  ///< rax to rflags, in the order of kvmi_x86_regs
static_assert(sizeof(kvmi_x86_regs) == kFilterRegisterCount * sizeof(std::uint64_t));

/// The fields of that event: bit n is field n. Empty: the event cannot be filtered.
constexpr std::uint16_t filter_fields_of(EventKind kind) {
  const auto bit = [](unsigned field) { return 1U << field; };
  const unsigned any = bit(KVMI_FILTER_REGISTER) | bit(KVMI_FILTER_VCPU);
  const unsigned number = any | bit(KVMI_FILTER_NUMBER);
  const unsigned change =
      number | bit(KVMI_FILTER_OLD_VALUE) | bit(KVMI_FILTER_NEW_VALUE) | bit(KVMI_FILTER_CHANGED);
  const unsigned access = any | bit(KVMI_FILTER_GPA) | bit(KVMI_FILTER_GVA) | bit(KVMI_FILTER_ACCESS);
  unsigned fields = 0;
  switch (kind) {
    case EventKind::Unhook:      // owed to everybody who holds something of the guest
    case EventKind::CreateVcpu:  // comes before any filter of that vCPU
    case EventKind::Pause:       // was asked for
      break;
    case EventKind::Cr:
    case EventKind::Msr:
    case EventKind::Xsetbv: fields = change; break;
    case EventKind::Hypercall:
    case EventKind::Trap:
    case EventKind::Descriptor:
    case EventKind::Cpuid: fields = number; break;
    case EventKind::Breakpoint: fields = any | bit(KVMI_FILTER_GPA); break;
    case EventKind::PageFault:
    case EventKind::Access: fields = access; break;
    case EventKind::Singlestep: fields = any; break;
  }
  return static_cast<std::uint16_t>(fields);
}

constexpr bool can_filter(EventKind kind) { return filter_fields_of(kind) != 0; }

constexpr bool has_filter_field(EventKind kind, std::uint8_t field) {
  return field < kFilterFieldCount && ((filter_fields_of(kind) >> field) & 1U) != 0;
}

}  // namespace kvmid
