// SPDX-License-Identifier: GPL-2.0-or-later
// Commands that the core may send, good ones mostly.
#include "tests/unit/bridge/pair/pair_world.h"

#include <algorithm>
#include <cstring>

#include "arch/x86/exceptions.h"

namespace kvmid::bridge::test {

namespace {

constexpr std::uint64_t kScratchAt = SmallGuest::kScratch * kPageSize;
constexpr std::uint64_t kScratchBytes = SmallGuest::kScratchFrames * kPageSize;
constexpr std::uint64_t kHoleAt = SmallGuest::kHole * kPageSize;

template <class T>
std::vector<std::byte> bytes_of(const std::vector<T>& items) {
  const auto bytes = std::as_bytes(std::span(items));
  return {bytes.begin(), bytes.end()};
}

}  // namespace

std::optional<PairWorld::Made> PairWorld::make() {
  switch (rng_.below(10)) {
    case 0:
    case 1:
      return make_read();
    case 2:
    case 3:
    case 4:
      return make_write();
    case 5:
    case 6:
      return make_wish();
    case 7:
      return make_pages();
    case 8:
      return make_state();
    default:
      return rng_.one_in(3) ? make_inject() : make_state();
  }
}

Gpa PairWorld::somewhere() {
  // Most of it close together, so that things overlap, and often at the end of a page.
  const std::uint64_t near_end = (1 + rng_.below(3)) * kPageSize - 12 + rng_.below(24);
  return Gpa{kScratchAt + (rng_.percent(70) ? near_end : rng_.below(kScratchBytes - 0x200))};
}

VcpuId PairWorld::any_vcpu(bool all) {
  if (all && rng_.percent(30)) return kAllVcpus;
  if (rng_.one_in(30)) return VcpuId{static_cast<std::uint16_t>(rng_.one_in(2) ? SmallGuest::kVcpus : 0xffff)};
  return VcpuId{static_cast<std::uint16_t>(rng_.below(SmallGuest::kVcpus))};
}

std::vector<std::byte> PairWorld::random_bytes(std::size_t size) {
  std::vector<std::byte> bytes(size);
  const bool few = rng_.one_in(3);  // bytes that a patch may have, too
  for (std::byte& byte : bytes) byte = few ? std::byte{0xcc} : static_cast<std::byte>(rng_.below(256));
  return bytes;
}

std::optional<PairWorld::Made> PairWorld::make_read() {
  std::vector<kvmi_read_range> ranges;
  const std::uint64_t count = rng_.one_in(25) ? 0 : rng_.between(1, 4);
  for (std::uint64_t i = 0; i < count; ++i) {
    const std::uint64_t most = rng_.one_in(8) ? 5 * kPageSize : 64;
    ranges.push_back({somewhere().value, static_cast<std::uint32_t>(rng_.between(1, most)), 0});
  }
  AddressSpace space{};
  switch (count == 0 ? 99 : rng_.below(60)) {
    case 0:
      ranges.back().size = 0;
      break;
    case 1:
      ranges.back().gpa = kHoleAt - 3;
      break;
    case 2:
      ranges.back() = {SmallGuest::kFrames * kPageSize - 4, 8, 0};
      break;
    case 3:
      ranges.back() = {~std::uint64_t{0} - 3, 8, 0};
      break;
    case 4:
      space = AddressSpace::Smm;
      break;
    case 5:
      ranges.assign(3, {0x1000000, 25000, 0});
      break;
    case 6:
      ranges.assign(1, {0x1000800, 65000, 0});
      break;
    default:
      break;
  }
  Made made{{}, bytes_of(ranges)};
  made.command = ReadPhysical{space, WireArray<kvmi_read_range>(Bytes(made.bytes))};
  return made;
}

std::optional<PairWorld::Made> PairWorld::make_write() {
  if (measuring_) return std::nullopt;
  WritePhysical write;
  std::size_t size = rng_.between(1, 24);
  write.gpa = somewhere();
  const std::uint64_t what = rng_.below(10);
  if (what < 3 || is_2017()) {
    if (rng_.one_in(6)) size = rng_.between(1, 3 * kPageSize);
  } else if (what < 6) {
    write.flags = KVMI_WRITE_PATCH;
    size = rng_.between(1, rng_.one_in(20) ? KVMI_PATCH_BYTES_MAX + 1 : 4);
    if (rng_.one_in(3) && !placed_.empty()) {
      const auto& [gpa, had] = placed_[rng_.below(placed_.size())];
      write.gpa.value = gpa;
      if (rng_.percent(80)) size = had;
    }
    placed_.emplace_back(write.gpa.value, size);
    if (placed_.size() > 40) placed_.erase(placed_.begin() + static_cast<std::ptrdiff_t>(rng_.below(40)));
    ++counts_.patches;
  } else if (what < 9 && !placed_.empty()) {
    const std::size_t which = rng_.below(placed_.size());
    write.flags = KVMI_WRITE_UNPATCH;
    write.gpa.value = placed_[which].first;
    size = placed_[which].second + (rng_.one_in(15) ? 1 : 0);
  }
  Made made{{}, random_bytes(size)};
  switch (rng_.below(60)) {
    case 0:
      write.flags |= KVMI_WRITE_PATCH | KVMI_WRITE_UNPATCH;
      break;
    case 1:
      write.flags |= KVMI_WRITE_COOKIE;
      break;
    case 2:
      write.space = AddressSpace::Smm;
      break;
    case 3:
      write.flags &= KVMI_WRITE_EXPECT;
      write.gpa.value = kHoleAt - (rng_.one_in(2) ? 3 : kPageSize + 3);
      break;
    case 4:
      write.flags = 0;
      write.gpa.value = SmallGuest::kFrames * kPageSize - 2;
      break;
    default:
      break;
  }
  write.data = made.bytes;
  const bool there = plain_.is_memory(AddressSpace::Normal, gfn_of(write.gpa), 1 + size / kPageSize + 1);
  if (there && rng_.one_in(4) && write.space == AddressSpace::Normal) {
    write.flags |= KVMI_WRITE_EXPECT;
    made.more.resize(made.bytes.size());
    check(patches_.read(AddressSpace::Normal, write.gpa, made.more).has_value(), "memory cannot be read");
    if (rng_.one_in(3)) made.more[rng_.below(made.more.size())] ^= std::byte{1};
    write.expected = made.more;
  }
  made.command = write;
  return made;
}

/// One after another: the core tells the next wish when the last one is answered.
std::optional<PairWorld::Made> PairWorld::make_wish() {
  if (wish_ != 0) return std::nullopt;
  switch (rng_.below(6)) {
    case 0: {
      ControlCr cr{any_vcpu(true), rng_.percent(60), 0};
      cr.cr = static_cast<std::uint32_t>(rng_.below(6));
      return Made{cr};
    }
    case 1:
      return Made{ControlMsr{any_vcpu(true), rng_.percent(60), rng_.of(SmallGuest::kMsrs)}};
    case 2: {
      const ControlSinglestep step{any_vcpu(false), rng_.percent(40)};
      if (offered_.has(CommandId::ControlSinglestep) && step.vcpu.value < SmallGuest::kVcpus) {
        // Whether an injection is refused depends on it.
        if (!quiet()) return std::nullopt;
        steps_[step.vcpu.value] = step.enable;
      }
      return Made{step};
    }
    default:
      break;
  }
  ControlEvents events;
  events.vcpu = any_vcpu(true);
  events.operation = static_cast<Operation>(rng_.below(3));
  if (events.operation == Operation::Disable && rng_.percent(50)) events.operation = Operation::Enable;
  events.events.bits = rng_.next() & (rng_.one_in(40) ? kEveryEvent.bits : plain_.facts().events.bits);
  if (rng_.one_in(40)) events.role = Role::Observer;
  return Made{events};
}

std::optional<PairWorld::Made> PairWorld::make_pages() {
  if (page_wish_ != 0) return std::nullopt;
  std::vector<kvmi_page_access_entry> entries;
  constexpr std::array<std::uint8_t, 4> kRights = {0, KVMI_PAGE_ACCESS_R, KVMI_PAGE_ACCESS_R | KVMI_PAGE_ACCESS_X, 7};
  const std::uint64_t count = rng_.one_in(30) ? 0 : rng_.between(1, 5);
  for (std::uint64_t i = 0; i < count; ++i) {
    std::uint64_t gfn = rng_.below(500), pages = rng_.between(1, 20);
    if (rng_.one_in(6)) gfn = 1000 + rng_.below(100), pages = rng_.between(500, 1100);
    if (!is_2017() && rng_.one_in(40)) gfn = 1000 + rng_.below(2000), pages = rng_.between(8170, 9500);
    entries.push_back({gfn * kPageSize, static_cast<std::uint32_t>(pages), rng_.of(kRights), {}});
  }
  switch (count == 0 ? 99 : rng_.below(30)) {
    case 0:
      entries.back().pages = 0;
      break;
    case 1:
      entries.back().gpa += 8;
      break;
    case 2:
      entries.back().access = 8;
      break;
    case 3:
    case 4:
      entries.back().gpa = kHoleAt - 4 * kPageSize;
      entries.back().pages = 8;
      break;
    case 5:
      entries.back().gpa = (SmallGuest::kFrames - 2) * kPageSize, entries.back().pages = 4;
      break;
    default:
      break;
  }
  Made made{{}, bytes_of(entries)};
  made.command = SetPageAccess{rng_.one_in(60) ? AddressSpace::Smm : AddressSpace::Normal,
                               WireArray<kvmi_page_access_entry>(Bytes(made.bytes))};
  return made;
}

std::optional<PairWorld::Made> PairWorld::make_state() {
  const VcpuId vcpu = any_vcpu(false);
  // Its registers are on their way.
  const bool known =
      vcpu.value >= SmallGuest::kVcpus || (wanted_[vcpu.value].empty() && !(is_2017() && open_.contains(vcpu.value)));
  switch (rng_.below(12)) {
    case 0:
    case 1:
    case 2: {
      if (!known) return std::nullopt;
      std::vector<std::uint32_t> msrs(rng_.one_in(12) ? rng_.below(1500) : rng_.below(5));
      if (rng_.one_in(200)) msrs.resize(4200);
      for (auto& msr : msrs) {
        msr = static_cast<std::uint32_t>(rng_.below(0x2000));
        if ((msr & 0xffU) == SmallGuest::kNoMsr && !rng_.one_in(100)) ++msr;
      }
      if (!msrs.empty() && rng_.one_in(4)) msrs[rng_.below(msrs.size())] = SmallGuest::kNoMsr;
      Made made{{}, bytes_of(msrs)};
      made.command = GetRegisters{vcpu, WireArray<std::uint32_t>(Bytes(made.bytes))};
      const auto is_none = [](std::uint32_t msr) { return (msr & 0xffU) == SmallGuest::kNoMsr; };
      if (!is_v6_or_v7() || std::none_of(msrs.begin(), msrs.end(), is_none)) return made;
      // It is asked again, one MSR after another: registers that are set behind it would be seen.
      send(std::move(made));
      link_.settle();
      return std::nullopt;
    }
    case 3:
    case 4: {
      SetRegisters set{vcpu, {}};
      if (vcpu.value >= SmallGuest::kVcpus) return Made{set};
      set.regs = plain_.registers(vcpu)->regs;
      set.regs.rbx = rng_.next();
      set.regs.rip = SmallGuest::kCode * kPageSize + rng_.below(2 * kPageSize - 64);
      if (vcpu.value == 1) set.regs.rip -= 0x3000;
      if (open_.contains(vcpu.value)) return Made{set};
      if (!known || raised_.contains(vcpu.value) || !offered_.has(CommandId::SetRegisters)) return std::nullopt;
      send(Made{set});
      link_.settle();  // while the vCPU runs
      return std::nullopt;
    }
    case 5:
      return Made{
          GetCpuid{vcpu, static_cast<std::uint32_t>(rng_.below(0x28)), static_cast<std::uint32_t>(rng_.below(4))}};
    case 6: {
      if (!known) return std::nullopt;
      const std::array<std::uint64_t, 5> gvas = {rng_.below(0x500000), 40 * kPageSize + 5, 0x200123, rng_.next(),
                                                 0xffff800000000000ULL};
      return Made{TranslateGva{vcpu, Gva{rng_.of(gvas)}}};
    }
    case 7:
      return Made{GetXsave{vcpu}};
    case 8: {
      constexpr std::array<std::size_t, 6> kSizes = {4096, 4096, 4096, 4095, 4097, 100};
      std::size_t size = rng_.of(kSizes);
      Made made{{}, random_bytes(size)};
      if (rng_.one_in(6)) made.bytes[0] = std::byte{0xee};
      made.command = SetXsave{vcpu, made.bytes};
      return made;
    }
    case 9:
      return Made{GetXcr{vcpu, rng_.one_in(4) ? std::uint32_t{0x100} : 0U}};
    case 10: {
      const std::array<Command, 4> others = {Command{GetVersion{}}, Command{GetGuestInfo{}}, Command{GetMemoryMap{}},
                                             Command{ShutdownGuest{}}};
      Command other = rng_.of(others);
      if (offered_.has(id_of(other)) || rng_.percent(50)) return Made{other};
      return std::nullopt;
    }
    default:
      return Made{PauseVcpu{any_vcpu(true)}};
  }
}

std::optional<PairWorld::Made> PairWorld::make_inject() {
  const VcpuId vcpu = any_vcpu(false);
  if (vcpu.value < SmallGuest::kVcpus) {
    // v6 and v7 refuse it while the last one's TRAP is open.
    if (raised_.contains(vcpu.value) || open_.contains(vcpu.value) || !wanted_[vcpu.value].empty()) return std::nullopt;
    if (!quiet()) return std::nullopt;
  }
  InjectException inject;
  inject.vcpu = vcpu;
  constexpr std::array<std::uint8_t, 8> kVectors = {3, 14, 13, 6, 17, 1, 2, 40};
  inject.vector = rng_.of(kVectors);
  inject.has_error_code = rng_.one_in(10) || (inject.vector < 32 && x86::exception_info(inject.vector).has_error_code);
  inject.error_code = inject.has_error_code ? static_cast<std::uint32_t>(rng_.below(0x10)) : 0;
  inject.address = inject.vector == 14 ? rng_.next() : 0;
  return Made{inject};
}

}  // namespace kvmid::bridge::test
