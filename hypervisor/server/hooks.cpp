// SPDX-License-Identifier: GPL-2.0-or-later
#include "hypervisor/server/hooks.h"

namespace kvmid::hypervisor {

bool Hooks::watches_msr(VcpuId vcpu, std::uint32_t msr) const {
  if (!watches(vcpu, EventKind::Msr)) return false;
  const auto index = x86::msr_table_index(msr);
  return index && vcpus_[vcpu.value].msrs.test(*index);
}

void Hooks::set_cr(VcpuId vcpu, unsigned cr, bool enable) {
  const auto bit = static_cast<std::uint8_t>(1u << cr);
  auto& crs = vcpus_[vcpu.value].crs;
  crs = static_cast<std::uint8_t>(enable ? crs | bit : crs & ~bit);
}

void Hooks::set_msr(VcpuId vcpu, std::uint32_t msr, bool enable) {
  vcpus_[vcpu.value].msrs.set(x86::msr_table_index(msr).value(), enable);
}

void Hooks::clear() {
  for (auto& vcpu : vcpus_) vcpu = Vcpu{};
}

}  // namespace kvmid::hypervisor
