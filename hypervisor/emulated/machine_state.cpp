// SPDX-License-Identifier: GPL-2.0-or-later
//
// The commands that look at a processor's further state.

#include <array>
#include <cstdio>

#include "hypervisor/emulated/machine.h"
#include "hypervisor/emulated/xsave.h"

namespace kvmid::emulated {

using hypervisor::Answer;
using hypervisor::Done;
using hypervisor::Refusal;

Done Machine::shutdown() {
  shutdown_wanted_ = true;
  return {};
}

void Machine::finish_shutdown() { stop_guest(StopCause::Shutdown, "shut down by SHUTDOWN_GUEST"); }

Answer<GetCpuidReply> Machine::cpuid(VcpuId id, std::uint32_t function, std::uint32_t index) {
  if (const auto leaf = cpuid_of(cpu_, *vcpus_[id.value], function, index)) return *leaf;
  std::array<char, 64> text{};
  std::snprintf(text.data(), text.size(), "this vCPU has no CPUID leaf 0x%x with index %u", function, index);
  return Refusal{ErrorCode::NoEntry, text.data()};
}

Answer<std::vector<std::byte>> Machine::xsave(VcpuId id) {
  const auto area = make_xsave_area(vcpus_[id.value]->engine.fpu(), kXcr0Supported);
  return std::vector<std::byte>(area.begin(), area.end());
}

Done Machine::set_xsave(VcpuId id, Bytes area) {
  if (auto why = check_xsave_area(area)) return Refusal{ErrorCode::Invalid, std::move(*why)};
  auto& engine = vcpus_[id.value]->engine;
  FpuState fpu = engine.fpu();
  load_xsave_area(area, kXcr0Supported, fpu);
  engine.set_fpu(fpu);
  return {};
}

Answer<std::uint64_t> Machine::xcr(VcpuId id, std::uint32_t xcr) {
  if (xcr != 0) return Refusal{ErrorCode::Invalid, "this vCPU has no XCR" + std::to_string(xcr) + ": only XCR0"};
  return vcpus_[id.value]->xcr0;
}

}  // namespace kvmid::emulated
