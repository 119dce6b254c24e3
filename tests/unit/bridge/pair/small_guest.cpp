// SPDX-License-Identifier: GPL-2.0-or-later
#include "tests/unit/bridge/pair/small_guest.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <string>

#include "arch/x86/instruction.h"

namespace kvmid::bridge::test {

using hypervisor::Answer;
using hypervisor::Done;
using hypervisor::Refusal;

namespace {

constexpr std::uint64_t kPresent = 7;  // and writable, and for user mode
constexpr std::uint64_t kLargePage = 1U << 7U;
constexpr std::uint64_t kUnmappedGfn = 40;
constexpr std::byte kBadXsave{0xee};

constexpr std::uint64_t mixed(std::uint64_t x) {
  x ^= x >> 31U;
  x *= 0x9e3779b97f4a7c15ULL;
  return x ^ (x >> 29U);
}

}  // namespace

SmallGuest::SmallGuest() : rights_(kFrames, x86::kRightsAll) {
  facts_.name = "small";
  facts_.vcpu_count = kVcpus;
  facts_.tsc_hz = 2'500'000'000;
  facts_.physical_address_bits = 40;
  facts_.linear_address_bits = 48;
  facts_.max_gpa = kFrames * kPageSize;
  facts_.events = kEveryEvent;
  // Frame 1 has the tables' root; the first 2 MiB are mapped to themselves in small pages, the next in a large one.
  set_word(1 * kPageSize, (2 * kPageSize) | kPresent);
  set_word(2 * kPageSize, (3 * kPageSize) | kPresent);
  set_word(3 * kPageSize, (4 * kPageSize) | kPresent);
  set_word(3 * kPageSize + 8, 0x200000 | kLargePage | kPresent);
  for (std::uint64_t i = 0; i < 512; ++i) {
    if (i != kUnmappedGfn) set_word(4 * kPageSize + 8 * i, (i * kPageSize) | kPresent);
  }
  for (std::uint64_t i = 0; i < kScratchFrames * kPageSize; i += 8) set_word(kScratch * kPageSize + i, mixed(i + 3));
  for (std::uint16_t i = 0; i < kVcpus; ++i) {
    Vcpu& vcpu = vcpus_[i];
    vcpu.regs.rax = 0x1000U + i;
    vcpu.regs.rip = kCode * kPageSize + 0x100U * i;
    vcpu.regs.rflags = 2;
    vcpu.sregs.cr0 = 1;
    vcpu.sregs.cs.present = 1;
    if (i == 1) {
      vcpu.sregs.cs.db = 1;
      vcpu.sregs.cs.base = 0x3000;
      vcpu.regs.rip -= vcpu.sregs.cs.base;
    } else {
      vcpu.sregs.cs.l = 1;
      vcpu.sregs.cr0 |= 0x80000000U;
      vcpu.sregs.cr3 = 1 * kPageSize;
      vcpu.sregs.cr4 = 0x20;
      vcpu.sregs.efer = 0x500;
    }
  }
}

void SmallGuest::set_word(std::uint64_t gpa, std::uint64_t value) {
  std::memcpy(pages_[gpa >> kPageShift].data() + gpa % kPageSize, &value, sizeof value);
}

// ---- processors ----

Done SmallGuest::pause(VcpuId vcpu) {
  ++vcpus_[vcpu.value].pauses;
  return {};
}

Answer<hypervisor::RegisterState> SmallGuest::registers(VcpuId vcpu) {
  const Vcpu& v = vcpus_[vcpu.value];
  return hypervisor::RegisterState{static_cast<std::uint8_t>(x86::operating_mode(v.sregs)), v.regs, v.sregs};
}

Answer<std::uint64_t> SmallGuest::msr(VcpuId vcpu, std::uint32_t index) {
  if ((index & 0xffU) == kNoMsr) return Refusal{ErrorCode::Invalid, "no such MSR"};
  return mixed(index) + vcpu.value;
}

Done SmallGuest::set_registers(VcpuId vcpu, const kvmi_x86_regs& regs) {
  vcpus_[vcpu.value].regs = regs;
  return {};
}

Done SmallGuest::inject(VcpuId vcpu, const x86::Exception& exception) {
  auto& injected = vcpus_[vcpu.value].injected;
  if (injected) return Refusal{ErrorCode::Busy, "one waits already"};
  injected = exception;
  return {};
}

Answer<GetCpuidReply> SmallGuest::cpuid(VcpuId vcpu, std::uint32_t function, std::uint32_t index) {
  if (function == 0x80000008) return GetCpuidReply{40U | (48U << 8U), 0, 0, 0};
  if (function > 0x20) return Refusal{ErrorCode::NoEntry, "no such leaf"};
  return GetCpuidReply{function, index, vcpu.value, function ^ index};
}

Answer<std::vector<std::byte>> SmallGuest::xsave(VcpuId vcpu) { return vcpus_[vcpu.value].xsave; }

Done SmallGuest::set_xsave(VcpuId vcpu, Bytes area) {
  auto& xsave = vcpus_[vcpu.value].xsave;
  if (area.size() != xsave.size() || area[0] == kBadXsave) return Refusal{ErrorCode::Invalid, "no area to load"};
  xsave.assign(area.begin(), area.end());
  return {};
}

Answer<std::uint64_t> SmallGuest::xcr(VcpuId vcpu, std::uint32_t xcr) {
  if (xcr != 0) return Refusal{ErrorCode::Invalid, "no such XCR"};
  return std::uint64_t{7} + vcpu.value;
}

// ---- memory ----

bool SmallGuest::is_memory(AddressSpace space, Gfn first, std::uint64_t pages) const {
  if (space != AddressSpace::Normal || pages > kFrames || first.value > kFrames - pages) return false;
  return first.value + pages <= kHole || first.value >= kHole + kHoleFrames;
}

void SmallGuest::set_page_access(Gfn first, std::uint64_t pages, x86::PageRights rights) {
  std::fill_n(rights_.begin() + static_cast<std::ptrdiff_t>(first.value), pages, rights);
}

Done SmallGuest::read_physical(AddressSpace, Gpa gpa, std::span<std::byte> out) {
  while (!out.empty()) {
    const std::size_t at = gpa.value % kPageSize, count = std::min<std::size_t>(out.size(), kPageSize - at);
    const auto page = pages_.find(gpa.value >> kPageShift);
    if (page == pages_.end())
      std::fill_n(out.begin(), count, std::byte{0});
    else
      std::memcpy(out.data(), page->second.data() + at, count);
    out = out.subspan(count);
    gpa.value += count;
  }
  return {};
}

Done SmallGuest::write_physical(AddressSpace, Gpa gpa, Bytes data) {
  while (!data.empty()) {
    const std::size_t at = gpa.value % kPageSize, count = std::min<std::size_t>(data.size(), kPageSize - at);
    std::memcpy(pages_[gpa.value >> kPageShift].data() + at, data.data(), count);
    data = data.subspan(count);
    gpa.value += count;
  }
  return {};
}

// ---- events ----

Event SmallGuest::stop(VcpuId vcpu, const EventData& data) {
  Vcpu& v = vcpus_[vcpu.value];
  Event event;
  event.vcpu = vcpu;
  event.mode = static_cast<std::uint8_t>(x86::operating_mode(v.sregs));
  event.actions = ActionSet{0xf};
  event.regs = v.regs;
  event.sregs = v.sregs;
  event.msrs.efer = v.sregs.efer;
  event.msrs.pat = 0x0007040600070406ULL;
  event.data = data;
  if (event.kind() == EventKind::Pause) --v.pauses;
  if (event.kind() == EventKind::Trap) v.injected.reset();
  v.stopped = event;
  return event;
}

void SmallGuest::begin_anew(VcpuId vcpu) {
  EventSet events = hooks_.events(vcpu);
  events.bits &= KVMI_EVENT_BIT(KVMI_EVENT_CREATE_VCPU) | KVMI_EVENT_BIT(KVMI_EVENT_UNHOOK);
  hooks_.set_events(vcpu, events);
  vcpus_[vcpu.value].injected.reset();
}

/// RIP behind the instruction, where one can be told.
void SmallGuest::go_behind(Vcpu& vcpu, const Event& event) {
  const auto mode = x86::operating_mode(vcpu.sregs);
  if (const auto* hit = std::get_if<BreakpointData>(&event.data)) {
    vcpu.regs.rip = x86::rip_after(vcpu.regs.rip, hit->insn_length, mode);
    return;
  }
  // Addresses map to themselves, or not at all: reads end there.
  std::uint64_t linear = vcpu.regs.rip;
  if (mode != x86::Mode::Bits64) linear = (linear + vcpu.sregs.cs.base) & 0xffffffffU;
  std::array<std::byte, x86::kInstructionBytesMax> code{};
  std::size_t size = code.size();
  if (mode == x86::Mode::Bits64 && (linear + size - 1) / kPageSize == kUnmappedGfn)
    size = kPageSize - linear % kPageSize;
  if (own_bytes)
    own_bytes(Gpa{linear}, std::span(code).first(size));
  else
    static_cast<void>(read_physical(AddressSpace::Normal, Gpa{linear}, std::span(code).first(size)));
  if (const auto length = x86::instruction_length(std::span<const std::byte>(code).first(size), mode)) {
    vcpu.regs.rip = x86::rip_after(vcpu.regs.rip, *length, mode);
  }
}

void SmallGuest::answer(const EventReply& reply) {
  Vcpu& vcpu = vcpus_[reply.vcpu.value];
  if (!vcpu.stopped || vcpu.stopped->kind() != reply.event) std::abort();  // checked by who serves
  const Event event = *vcpu.stopped;
  vcpu.stopped.reset();
  Outcome outcome{.vcpu = reply.vcpu, .event = reply.event, .action = reply.action};
  const auto decide = [&](std::uint64_t old_value, std::uint64_t new_value) {
    outcome.value = reply.action == Action::Skip ? old_value : new_value;
    if (const auto* value = std::get_if<NewValue>(&reply.value)) outcome.value = value->value;
    if (reply.action == Action::Skip) outcome.action = Action::Allow;
  };
  if (const auto* cr = std::get_if<CrData>(&event.data)) {
    decide(cr->old_value, cr->new_value);
  } else if (const auto* msr = std::get_if<MsrData>(&event.data)) {
    decide(msr->old_value, msr->new_value);
  } else if (reply.action == Action::Skip) {
    go_behind(vcpu, event);
    outcome.action = Action::Retry;
  }
  if (outcome.action == Action::Crash) outcome.value = 0;
  outcome.rip = vcpu.regs.rip;
  if (answered) answered(outcome);
}

// ---- two guests ----

std::string SmallGuest::difference(const SmallGuest& other, EventSet compared, bool by_vcpu) const {
  const auto in = [](std::uint16_t vcpu, const char* what) {
    return std::string(what) + " of vCPU " + std::to_string(vcpu);
  };
  hypervisor::Hooks mine = hooks_, theirs = other.hooks_;
  for (std::uint16_t i = 0; i < kVcpus; ++i) {
    const VcpuId vcpu{i};
    const Vcpu &a = vcpus_[i], &b = other.vcpus_[i];
    if (std::memcmp(&a.regs, &b.regs, sizeof a.regs) != 0) return in(i, "registers");
    if (a.xsave != b.xsave) return in(i, "XSAVE area");
    if (a.pauses != b.pauses) return in(i, "pauses");
    if (a.stopped.has_value() != b.stopped.has_value()) return in(i, "stop");
    if (a.injected.has_value() != b.injected.has_value()) return in(i, "injection");
    if (a.injected &&
        (a.injected->vector != b.injected->vector || a.injected->error_code != b.injected->error_code ||
         a.injected->has_error_code != b.injected->has_error_code || a.injected->address != b.injected->address)) {
      return in(i, "injected exception");
    }
    if (((mine.events(vcpu).bits ^ theirs.events(vcpu).bits) & compared.bits) != 0) return in(i, "events");
    mine.set_events(vcpu, kEveryEvent);
    theirs.set_events(vcpu, kEveryEvent);
    if (mine.singlesteps(vcpu) != theirs.singlesteps(vcpu)) return in(i, "single step");
    if (!by_vcpu) continue;
    for (unsigned cr = 0; cr < 8; ++cr) {
      if (mine.watches_cr(vcpu, cr) != theirs.watches_cr(vcpu, cr)) return in(i, "watched CRs");
    }
    for (const std::uint32_t msr : kMsrs) {
      if (mine.watches_msr(vcpu, msr) != theirs.watches_msr(vcpu, msr)) return in(i, "watched MSRs");
    }
  }
  for (std::uint64_t gfn = 0; gfn < kFrames; ++gfn) {
    if (rights_[gfn] != other.rights_[gfn]) return "rights of frame " + std::to_string(gfn);
  }
  static constexpr Page kZeros{};
  const auto page = [](const SmallGuest& guest, std::uint64_t gfn) -> const Page& {
    const auto found = guest.pages_.find(gfn);
    return found == guest.pages_.end() ? kZeros : found->second;
  };
  for (const SmallGuest* guest : {this, &other}) {
    for (const auto& [gfn, bytes] : guest->pages_) {
      if (page(*this, gfn) != page(other, gfn)) return "memory of frame " + std::to_string(gfn);
    }
  }
  return {};
}

}  // namespace kvmid::bridge::test
