// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// What the virtual processor says of itself: the table behind the CPUID instruction and GET_CPUID.
///
/// Purpose:  the same answer to a guest and to an agent, and one that fits what the machine does.
/// Shapes:   leaf (EAX) and index (ECX) in, four registers out. Only leaf 13 has several indices.
/// Errors:   a leaf that is not there is no value; the instruction gives zeros then.
/// Threads:  pure functions.
/// Source:   Intel SDM volume 2 (CPUID); AMD APM volume 3, appendix E (leaves from 0x80000000).

#include <cstdint>
#include <optional>

#include "arch/x86/registers.h"
#include "protocol/ids.h"
#include "protocol/message.h"

namespace kvmid::emulated {

/// What some leaves depend on.
struct CpuidState {
  const x86::CpuFeatures& cpu;
  VcpuId vcpu;
  std::uint16_t vcpu_count = 1;
  std::uint64_t cr4 = 0;
};

std::optional<GetCpuidReply> cpuid_leaf(const CpuidState& state, std::uint32_t function, std::uint32_t index);

}  // namespace kvmid::emulated
