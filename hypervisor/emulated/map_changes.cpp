// SPDX-License-Identifier: GPL-2.0-or-later
//
// A machine's memory map, and how it changes while the guest runs. Only the ROM page does: it has two places, its own
// and the page behind RAM, and host memory of its own at each, so that the shared memfd always has offset = GPA.

#include <cstring>
#include <utility>

#include "hypervisor/emulated/machine.h"
#include "hypervisor/emulated/mailbox_layout.h"

namespace kvmid::emulated {

namespace {

constexpr std::uint64_t kMapRefused = static_cast<std::uint64_t>(std::int64_t{-22});  // -EINVAL, as of KVM's hypercalls

}  // namespace

/// What GUEST.md promises: RAM with one page of ROM in it, and SMRAM in the address space of its own.
void Machine::build_map() {
  constexpr std::uint64_t kRom = KVMID_GUEST_ROM_GPA, kBehindRom = kRom + KVMID_GUEST_ROM_BYTES;
  static_assert(kBehindRom <= kMemoryMinBytes && kBehindRom <= KVMID_GUEST_IMAGE_GPA);
  static_assert(KVMID_GUEST_ROM_BYTES == kPageSize);
  std::byte* const ram = ram_.at(Gpa{0}, ram_.bytes());
  map_.add({AddressSpace::Normal, Gpa{0}, kRom, false, ram});
  map_.add({AddressSpace::Normal, Gpa{kRom}, KVMID_GUEST_ROM_BYTES, true, ram + kRom});
  map_.add({AddressSpace::Normal, Gpa{kBehindRom}, facts_.max_gpa - kBehindRom, false, ram + kBehindRom});
  rom_ = Gpa{kRom};
  fill_rom(ram + kRom);

  smram_.resize(KVMID_GUEST_SMRAM_BYTES);
  std::memcpy(smram_.data(), "KVMISMRM", 8);
  map_.add({AddressSpace::Smm, Gpa{KVMID_GUEST_SMRAM_GPA}, smram_.size(), false, smram_.data()});
}

void Machine::fill_rom(std::byte* host) {
  for (std::size_t i = 0; i < KVMID_GUEST_ROM_BYTES; ++i) host[i] = static_cast<std::byte>(i & 0xff);
  std::memcpy(host, "KVMIROM1", 8);
}

void Machine::serve_hypercall(Vcpu& vcpu) {
  if (vcpu.regs.rax != KVMID_GUEST_MAP_HYPERCALL) {
    vcpu.regs.rax = kHypercallUnknown;
    return;
  }
  const bool known = vcpu.regs.rdi <= KVMI_MAP_FLAGS;
  vcpu.regs.rax = known && change_rom(static_cast<MapChange>(vcpu.regs.rdi)) ? 0 : kMapRefused;
}

bool Machine::change_rom(MapChange change) {
  if ((change == MapChange::Added) == rom_.has_value()) return false;
  constexpr Gpa kHome{KVMID_GUEST_ROM_GPA};
  const Gpa behind{ram_.bytes() - KVMID_GUEST_ROM_BYTES};
  const Gpa from = rom_.value_or(kHome);
  const Gpa to = change != MapChange::Moved ? from : from == kHome ? behind : kHome;
  const bool stays = change == MapChange::Flags;
  const bool was_read_only = rom_ ? map_.is_read_only(gfn_of(from)) : true;
  MemorySlot slot{AddressSpace::Normal, to, KVMID_GUEST_ROM_BYTES, stays ? !was_read_only : was_read_only,
                  ram_.at(to, KVMID_GUEST_ROM_BYTES)};

  MemoryMapChanged message;
  message.change = change;
  message.max_gpa = change != MapChange::Removed && to == behind ? ram_.bytes() : behind.value;
  message.old_gpa = change == MapChange::Moved ? from : Gpa{};
  message.slot.gpa = to.value;
  message.slot.bytes = slot.bytes;
  message.slot.flags = slot.read_only ? KVMI_SLOT_READ_ONLY : 0;
  if (sink_ != nullptr) sink_->map_changing(message);

  facts_.max_gpa = message.max_gpa;
  if (stays) {
    map_.set_read_only(to, slot.read_only);
  } else {
    if (change == MapChange::Added) fill_rom(slot.host);
    if (change == MapChange::Moved) std::memcpy(slot.host, ram_.at(from, slot.bytes), slot.bytes);
    if (change != MapChange::Added) {
      std::memset(map_.remove(from).host, 0, KVMID_GUEST_ROM_BYTES);
      rom_.reset();
    }
    if (change != MapChange::Removed) {
      map_.add(slot);
      rom_ = to;
    }
  }
  for (auto& vcpu : vcpus_) {
    vcpu->engine.unmap_frames(gfn_of(from), 1);
    vcpu->engine.unmap_frames(gfn_of(to), 1);
  }
  return true;
}

}  // namespace kvmid::emulated
