// SPDX-License-Identifier: GPL-2.0-or-later
#include "hypervisor/emulated/machine.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>
#include <utility>

#include "hypervisor/emulated/boot.h"

namespace kvmid::emulated {

namespace {

using hypervisor::Answer;
using hypervisor::Done;
using hypervisor::Refusal;

constexpr std::uint8_t kAll4 = KVMI_ACTION_BIT(KVMI_ACTION_ALLOW) | KVMI_ACTION_BIT(KVMI_ACTION_RETRY) |
                               KVMI_ACTION_BIT(KVMI_ACTION_SKIP) | KVMI_ACTION_BIT(KVMI_ACTION_CRASH);
constexpr ActionSet kEveryAction{kAll4};
constexpr ActionSet kWithoutSkip{kAll4 & ~KVMI_ACTION_BIT(KVMI_ACTION_SKIP)};
constexpr ActionSet kPauseActions{KVMI_ACTION_BIT(KVMI_ACTION_ALLOW) | KVMI_ACTION_BIT(KVMI_ACTION_CRASH)};

x86::CpuFeatures cpu_features() {
  x86::CpuFeatures cpu;
  cpu.physical_address_bits = 40;
  cpu.execute_only = false;
  // What the emulator does: no PCID, no SMEP or SMAP (there is no user mode), no XSAVE.
  cpu.cr4_allowed = x86::cr4::kTsd | x86::cr4::kDe | x86::cr4::kPse | x86::cr4::kPae | x86::cr4::kMce | x86::cr4::kPge |
                    x86::cr4::kPce | x86::cr4::kOsfxsr | x86::cr4::kOsxmmexcpt | x86::cr4::kUmip | x86::cr4::kOsxsave;
  return cpu;
}

}  // namespace

std::string Machine::hex(std::uint64_t value) {
  std::array<char, 20> text{};
  std::snprintf(text.data(), text.size(), "0x%llx", static_cast<unsigned long long>(value));
  return text.data();
}

Result<std::unique_ptr<Machine>, MachineError> Machine::create(const MachineConfig& config) {
  if (config.vcpu_count < 1 || config.vcpu_count > kVcpusMax) {
    return MachineError{"a guest has 1 to " + std::to_string(kVcpusMax) + " vCPUs, not " +
                        std::to_string(config.vcpu_count)};
  }
  if (config.memory_bytes % kPageSize != 0 || config.memory_bytes < kMemoryMinBytes ||
      config.memory_bytes > kMemoryMaxBytes) {
    return MachineError{"guest memory is 4 MiB to 64 GiB in whole pages, not " + std::to_string(config.memory_bytes) +
                        " bytes"};
  }
  if (config.name.empty() || config.name.size() >= KVMI_NAME_MAX) {
    return MachineError{"a guest's name has 1 to " + std::to_string(KVMI_NAME_MAX - 1) + " characters"};
  }
  if (config.slice == 0) return MachineError{"a slice has at least 1 instruction"};
  if (config.image.empty()) return MachineError{"the image is empty"};
  if (config.image.size() > config.memory_bytes - boot::kImage.value) {
    return MachineError{"the image has " + std::to_string(config.image.size()) + " bytes; there is room for " +
                        std::to_string(config.memory_bytes - boot::kImage.value)};
  }
  auto ram = GuestRam::create(config.memory_bytes + KVMID_GUEST_ROM_BYTES);  // the ROM can move behind RAM
  if (!ram) return MachineError{"guest RAM: " + ram.error().text};
  return std::unique_ptr<Machine>(new Machine(config, std::move(*ram)));
}

Machine::Machine(const MachineConfig& config, GuestRam ram)
    : ram_(std::move(ram)),
      cpu_(cpu_features()),
      mmu_(ram_, map_, cpu_),
      hooks_(config.vcpu_count),
      slice_(config.slice),
      period_(config.period) {
  facts_.uuid = config.uuid;
  facts_.start_time = config.start_time;
  facts_.name = config.name;
  facts_.vcpu_count = config.vcpu_count;
  facts_.physical_address_bits = cpu_.physical_address_bits;
  facts_.linear_address_bits = cpu_.linear_address_bits;
  facts_.execute_only = cpu_.execute_only;
  facts_.max_gpa = config.memory_bytes;
  if (config.share_ram) {
    facts_.ram_fd = ram_.fd();
    facts_.ram_bytes = ram_.bytes();
  }
  for (const auto kind : {EventKind::Cr, EventKind::Msr, EventKind::Breakpoint, EventKind::Hypercall,
                          EventKind::PageFault, EventKind::Pause, EventKind::Unhook, EventKind::Xsetbv,
                          EventKind::Descriptor, EventKind::Cpuid, EventKind::Trap, EventKind::Singlestep,
                          EventKind::Access}) {
    facts_.events.add(kind);
  }
  for (std::uint16_t i = 0; i < config.vcpu_count; ++i) {
    vcpus_.push_back(std::make_unique<Vcpu>(VcpuId{i}, config.vcpu_count));
  }
  for (const auto id : {CommandId::ShutdownGuest, CommandId::GetCpuid, CommandId::GetXsave, CommandId::SetXsave,
                        CommandId::ControlSinglestep,
                        CommandId::GetXcr, CommandId::GetMemoryMap}) {
    facts_.commands.add(id);
  }
  load(config.image);
  build_map();
}

/// What GUEST.md promises: an identity map of the first GiB, a GDT, and the image.
void Machine::load(std::span<const std::byte> image) {
  constexpr std::uint64_t kPresentWritable = 3, kLarge = 0x83;
  std::array<std::uint64_t, 512> directory{};
  for (std::uint64_t i = 0; i < directory.size(); ++i) directory[i] = (i << 21) | kLarge;
  const std::uint64_t pdpt = boot::kPml4.value + kPageSize, pd = pdpt + kPageSize;
  const std::uint64_t to_pdpt = pdpt | kPresentWritable, to_pd = pd | kPresentWritable;
  const std::array<std::uint64_t, 3> gdt = {0, 0x00af9b000000ffff, 0x00cf93000000ffff};
  static_assert(sizeof gdt == boot::kGdtBytes);
  // All of this fits: create() checked the size of RAM and image.
  (void)ram_.write(boot::kPml4, &to_pdpt, sizeof to_pdpt);
  (void)ram_.write(Gpa{pdpt}, &to_pd, sizeof to_pd);
  (void)ram_.write(Gpa{pd}, directory.data(), sizeof directory);
  (void)ram_.write(boot::kGdt, gdt.data(), sizeof gdt);
  (void)ram_.write(boot::kImage, image.data(), image.size());
}

void Machine::run_round(Clock::time_point now) {
  for (auto& vcpu : vcpus_) {
    if (stopped()) return;
    run_vcpu(*vcpu, now);
  }
}

bool Machine::runnable(Clock::time_point now) const {
  if (stopped()) return false;
  return std::any_of(vcpus_.begin(), vcpus_.end(), [&](const auto& vcpu) {
    if (vcpu->activity == Activity::Waiting) return false;
    return vcpu->activity == Activity::Running || vcpu->pauses > 0 || vcpu->injection || vcpu->step ||
           vcpu->debug_causes != 0 || now >= vcpu->wake;
  });
}

std::optional<Clock::time_point> Machine::next_wake() const {
  std::optional<Clock::time_point> first;
  for (const auto& vcpu : vcpus_) {
    if (vcpu->activity == Activity::Halted && (!first || vcpu->wake < *first)) first = vcpu->wake;
  }
  return first;
}

void Machine::run_vcpu(Vcpu& vcpu, Clock::time_point now) {
  if (vcpu.activity == Activity::Waiting) return;
  if (vcpu.step && raise_step(vcpu)) return;
  if (vcpu.pauses > 0) {
    --vcpu.pauses;
    raise(vcpu, PauseData{}, 0, kPauseActions);
    return;
  }
  if (vcpu.activity == Activity::Halted) {
    if (now < vcpu.wake && !vcpu.injection && vcpu.debug_causes == 0) return;
    vcpu.activity = Activity::Running;
  }
  run_slice(vcpu, now);
}

void Machine::run_slice(Vcpu& vcpu, Clock::time_point now) {
  // A page that is mapped and faults again and again would be our own mistake; it must not hang the process.
  constexpr unsigned kFaultsInARowMax = 64;
  unsigned faults = 0;
  for (std::uint64_t left = slice_; left > 0 && vcpu.activity == Activity::Running && !stopped();) {
    if (vcpu.step && raise_step(vcpu)) continue;
    if (vcpu.debug_causes != 0) {
      debug_trap(vcpu);
      --left;
      continue;
    }
    if (vcpu.injection && !finishes_instruction(vcpu)) {
      inject_now(vcpu);
      --left;
      continue;
    }
    const std::uint64_t rip = vcpu.regs.rip;
    if (vcpu.access && vcpu.access->rip != rip) drop_access(vcpu);
    if (!vcpu.overrides.empty() && vcpu.overrides_rip != rip) end_overrides(vcpu);
    vcpu.trap_flag = (vcpu.regs.rflags & x86::rflags::kTf) != 0;
    if (vcpu.access) {
      run_access(vcpu);
      --left;
      continue;
    }
    const bool one_step = !vcpu.overrides.empty() || vcpu.trap_flag || hooks_.singlesteps(vcpu.id);
    prepare_engine(vcpu);
    const Stop stop = vcpu.engine.run(vcpu.regs, one_step ? 1 : left);
    left -= std::min(left, std::max<std::uint64_t>(stop.executed, 1));
    const bool done_nothing = stop.kind == StopKind::MemoryFault;
    const bool counts = stop.completed == stop.executed || done_nothing;
    vcpu.instructions += counts ? stop.completed : stop.executed;
    if (stop.completed > 0) vcpu.regs.rflags &= ~x86::rflags::kRf;
    // What the machine executes itself may need them yet.
    if (one_step && !done_nothing && stop.kind != StopKind::Sensitive) end_overrides(vcpu);
    if (one_step && stop.completed > 0 && stop.kind != StopKind::Failed) {
      // Whatever came behind it comes again.
      end_overrides(vcpu);
      if (vcpu.regs.rip == rip) settle_repeat(vcpu, vcpu.regs);
      complete(vcpu);
      continue;
    }
    faults = done_nothing && stop.completed == 0 ? faults + 1 : 0;
    if (faults > kFaultsInARowMax) {
      return stop_guest(StopCause::Engine, "no progress at RIP " + hex(vcpu.regs.rip) + ", GVA " + hex(stop.gva.value));
    }
    switch (stop.kind) {
      case StopKind::Budget: break;
      case StopKind::Sensitive: on_sensitive(vcpu, now); break;
      case StopKind::MemoryFault: on_memory_fault(vcpu, stop); break;
      case StopKind::CodeBreakpoint: code_breakpoint(vcpu, stop.breakpoints); break;
      case StopKind::Invalid: deliver_to(vcpu, {x86::vector::kUd, false, 0, 0}); break;
      case StopKind::Exception:
        deliver_to(vcpu, {stop.vector, x86::exception_info(stop.vector).has_error_code, 0, 0});
        break;
      case StopKind::Failed: return stop_guest(StopCause::Engine, stop.text + " at RIP " + hex(vcpu.regs.rip));
    }
  }
}

/// Page rights hold for the operands of what the machine executes itself, too. False: a page fault event comes first.
bool Machine::admit_operands(Vcpu& vcpu) {
  if (!hooks_.watches(vcpu.id, EventKind::PageFault)) return true;
  std::array<std::byte, x86::kInstructionBytesMax> code{};
  const std::size_t have = mmu_.read_code(vcpu, code.data(), code.size());
  const auto insn = x86::decode(std::span(code).first(have), x86::Mode::Bits64);
  if (!insn) return true;
  using x86::InsnKind;
  // A DESCRIPTOR event comes before the operand is looked at.
  const bool describes = insn->kind >= InsnKind::Sgdt && insn->kind <= InsnKind::Ltr;
  const bool described = vcpu.pass && vcpu.pass->lets(EventKind::Descriptor, vcpu);
  if (describes && !described && hooks_.watches(vcpu.id, EventKind::Descriptor)) return true;
  const bool stack = insn->kind == InsnKind::Pushf || insn->kind == InsnKind::Popf || insn->kind == InsnKind::Iret;
  for (std::size_t i = 0; i < insn->memory_count; ++i) {
    const auto& operand = insn->memory[i];
    if (operand.address_only || operand.bytes == 0 || (operand.implicit && !stack)) continue;
    const Gva first = x86::effective_address(*insn, operand, vcpu.regs, vcpu.sregs);
    for (const Gva gva : {first, Gva{first.value + operand.bytes - 1}}) {
      for (const auto kind : {x86::AccessKind::Read, x86::AccessKind::Write}) {
        if (!(kind == x86::AccessKind::Read ? operand.read : operand.write)) continue;
        Gpa gpa;
        const auto seen = mmu_.probe(vcpu, gva, kind, gpa);
        if (!std::holds_alternative<Restricted>(seen)) continue;  // its own faults come when it is executed
        settle(vcpu, gva, seen);
        return false;
      }
    }
  }
  return true;
}

void Machine::on_sensitive(Vcpu& vcpu, Clock::time_point now) {
  if (!admit_operands(vcpu)) {
    --vcpu.instructions;  // it comes again
    return;
  }
  const auto effect = execute_sensitive(mmu_, vcpu, hooks_);
  vcpu.pass.reset();
  std::visit(Overloaded{
                 [&](const Executed& executed) {
                   if (!executed.resume_flag) vcpu.regs.rflags &= ~x86::rflags::kRf;
                   end_overrides(vcpu);
                   complete(vcpu);
                 },
                 [&](const Raised& raised) { deliver_to(vcpu, raised.exception); },
                 [&](const Interrupted& interrupted) {
                   interrupt(vcpu, interrupted.vector, interrupted.insn_length, interrupted.software);
                 },
                 [&](const HaltExecuted&) {
                   end_overrides(vcpu);
                   complete(vcpu);
                   if (period_.count() == 0) return;
                   vcpu.activity = Activity::Halted;
                   vcpu.wake = now + period_;
                 },
                 [&](const HypercallMade&) {
                   serve_hypercall(vcpu);
                   vcpu.regs.rflags &= ~x86::rflags::kRf;
                   end_overrides(vcpu);
                   complete(vcpu);
                 },
                 [&](const Watched& watched) { raise(vcpu, watched.data, watched.insn_length, kEveryAction); },
             },
             effect);
}

void Machine::on_memory_fault(Vcpu& vcpu, const Stop& stop) {
  settle(vcpu, stop.gva, mmu_.resolve(vcpu, stop.gva, stop.access));
}

void Machine::settle(Vcpu& vcpu, Gva gva, const Resolution& resolution) {
  std::visit(Overloaded{
                 [](const Mapped&) {},
                 [&](const x86::Exception& exception) { deliver_to(vcpu, exception); },
                 [&](const NoRam& missing) {
                   stop_guest(StopCause::GuestFault, "vCPU " + std::to_string(vcpu.id.value) +
                                                         " uses physical address " + hex(missing.gpa.value) +
                                                         ", where there is no RAM, at RIP " + hex(vcpu.regs.rip));
                 },
                 [&](const Restricted& restricted) {
                   if (!hooks_.watches(vcpu.id, EventKind::PageFault)) {  // nobody is to be told: let this access be
                     vcpu.overrides.push_back({gfn_of(restricted.gpa), restricted.access});
                     vcpu.overrides_rip = vcpu.regs.rip;
                     return;
                   }
                   const std::uint8_t length = length_at_rip(vcpu);
                   PageFaultData data;
                   data.gva = gva;
                   data.gva_valid = true;
                   data.gpa = restricted.gpa;
                   data.access = restricted.access;
                   raise(vcpu, data, length, length != 0 ? kEveryAction : kWithoutSkip);
                 },
             },
             resolution);
}

void Machine::end_overrides(Vcpu& vcpu) {
  for (const auto& item : vcpu.overrides) vcpu.engine.unmap_frames(item.gfn, 1);
  vcpu.overrides.clear();
}

void Machine::stop_guest(StopCause cause, std::string reason) {
  if (stopped()) return;
  cause_ = cause;
  reason_ = std::move(reason);
}

// ---- GuestBackend: state and memory ----

Done Machine::pause(VcpuId id) {
  Vcpu& vcpu = *vcpus_[id.value];
  if (vcpu.pauses >= kPausesMax) {
    return Refusal{ErrorCode::Busy, "vCPU " + std::to_string(id.value) + " owes " + std::to_string(vcpu.pauses) +
                                        " PAUSE events already"};
  }
  ++vcpu.pauses;
  return {};
}

Answer<hypervisor::RegisterState> Machine::registers(VcpuId id) {
  const Vcpu& vcpu = *vcpus_[id.value];
  return hypervisor::RegisterState{static_cast<std::uint8_t>(x86::operating_mode(vcpu.sregs)), vcpu.regs, vcpu.sregs};
}

Answer<std::uint64_t> Machine::msr(VcpuId id, std::uint32_t index) {
  const auto value = read_msr(*vcpus_[id.value], index);
  if (!value) return Refusal{ErrorCode::Invalid, "this vCPU has no MSR " + hex(index)};
  return *value;
}

Done Machine::set_registers(VcpuId id, const kvmi_x86_regs& regs) {
  Vcpu& vcpu = *vcpus_[id.value];
  if (!x86::is_canonical(regs.rip, cpu_.linear_address_bits)) {
    return Refusal{ErrorCode::Invalid, "RIP " + hex(regs.rip) + " is not canonical"};
  }
  if ((regs.rflags & ~x86::rflags::kDefined) != 0 || (regs.rflags & x86::rflags::kVm) != 0) {
    return Refusal{ErrorCode::Invalid, "RFLAGS " + hex(regs.rflags) + " has bits that 64-bit mode does not take"};
  }
  // A vCPU that was halted has left its HLT if it is sent elsewhere.
  if (regs.rip != vcpu.regs.rip) {
    if (vcpu.activity == Activity::Halted) vcpu.activity = Activity::Running;
    if (vcpu.before_wait == Activity::Halted) vcpu.before_wait = Activity::Running;
  }
  vcpu.regs = regs;
  vcpu.regs.rflags |= x86::rflags::kFixed;
  return {};
}

Done Machine::inject(VcpuId id, const x86::Exception& exception) {
  Vcpu& vcpu = *vcpus_[id.value];
  if (vcpu.injection) {
    return Refusal{ErrorCode::Busy, "an exception (vector " + std::to_string(vcpu.injection->vector) +
                                        ") waits for delivery on this vCPU already"};
  }
  vcpu.injection = exception;
  return {};
}

void Machine::set_page_access(Gfn first, std::uint64_t pages, x86::PageRights rights) {
  mmu_.set_rights(first, pages, rights);
  for (auto& vcpu : vcpus_) vcpu->engine.unmap_frames(first, pages);
}

Done Machine::read_physical(AddressSpace space, Gpa gpa, std::span<std::byte> out) {
  if (!map_.read(space, gpa, out)) return Refusal{ErrorCode::Fault, "not guest memory"};
  return {};
}

Done Machine::write_physical(AddressSpace space, Gpa gpa, Bytes data) {
  if (!map_.write(space, gpa, data)) return Refusal{ErrorCode::Fault, "not guest memory"};
  if (space != AddressSpace::Normal) return {};  // no vCPU executes there
  // What was translated from these bytes must not run again.
  const Gfn first = gfn_of(gpa), last = gfn_of(Gpa{gpa.value + data.size() - 1});
  for (auto& vcpu : vcpus_) vcpu->engine.unmap_frames(first, last.value - first.value + 1);
  return {};
}

}  // namespace kvmid::emulated
