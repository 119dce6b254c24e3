// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include "arch/x86/msrs.h"

namespace kvmid::emulated {

/// The MSRs a vCPU has, apart from EFER, FS and GS base and the APIC base, which live in its segment and control
/// registers.
///
/// Purpose:  an MSR that is not here does not exist: RDMSR and WRMSR give #GP.
/// Threads:  none of its own.
class MsrTable {
 public:
  [[nodiscard]] std::optional<std::uint64_t> get(std::uint32_t index) const;
  /// False if there is no such MSR.
  bool set(std::uint32_t index, std::uint64_t value);

 private:
  struct Entry {
    std::uint32_t index;
    std::uint64_t value;
  };
  std::array<Entry, 13> entries_ = {{
      {x86::msr::kTsc, 0},
      {x86::msr::kSysenterCs, 0},
      {x86::msr::kSysenterEsp, 0},
      {x86::msr::kSysenterEip, 0},
      {x86::msr::kMiscEnable, 1},
      {x86::msr::kPat, 0x0007040600070406},
      {x86::msr::kStar, 0},
      {x86::msr::kLstar, 0},
      {x86::msr::kCstar, 0},
      {x86::msr::kFmask, 0},
      {x86::msr::kKernelGsBase, 0},
      {x86::msr::kTscAux, 0},
      {0x4b564d00, 0},  // KVM's wall clock: an MSR of the fourth range that can be watched
  }};
};

}  // namespace kvmid::emulated
