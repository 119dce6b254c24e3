// SPDX-License-Identifier: GPL-2.0-or-later
//
// ACCESS events. See access.h for the phases.

#include "hypervisor/emulated/access.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "arch/x86/instruction.h"
#include "hypervisor/emulated/machine.h"

namespace kvmid::emulated {

namespace {

constexpr std::uint64_t kPageMask = ~(kPageSize - 1);
constexpr ActionSet kEveryAction{0xf};
constexpr ActionSet kWithoutSkip{0xf & ~KVMI_ACTION_BIT(KVMI_ACTION_SKIP)};

Gva page_of(Gva gva) { return Gva{gva.value & kPageMask}; }
std::size_t offset_of(Gva gva) { return gva.value & ~kPageMask; }

/// The pieces of an access: within a page each, and no larger than an event can tell.
void append_pieces(std::vector<MemoryAccess>& list, Gva gva, std::uint64_t bytes) {
  while (bytes > 0 && list.size() < AccessRun::kAccessesMax) {
    MemoryAccess access;
    access.gva = gva;
    const std::uint64_t in_page = kPageSize - offset_of(gva);
    access.size = static_cast<std::uint8_t>(std::min({bytes, in_page, std::uint64_t{KVMI_ACCESS_DATA_MAX}}));
    gva.value += access.size;
    bytes -= access.size;
    list.push_back(access);
  }
}

/// How far from its operand BT, BTS, BTR or BTC with a bit number in a register reaches: any bit of memory is within
/// their range.
std::int64_t bit_string_offset(std::span<const std::byte> code, const x86::Instruction& insn,
                               const kvmi_x86_regs& regs) {
  std::uint8_t rex = 0;
  std::size_t at = 0;
  for (; at + 2 < code.size() && code[at] != std::byte{0x0f}; ++at) {
    const auto b = std::to_integer<std::uint8_t>(code[at]);
    rex = (b & 0xf0) == 0x40 ? b : std::uint8_t{0};
  }
  if (at + 2 >= code.size()) return 0;
  const auto opcode = std::to_integer<unsigned>(code[at + 1]), modrm = std::to_integer<unsigned>(code[at + 2]);
  if (opcode != 0xa3 && opcode != 0xab && opcode != 0xb3 && opcode != 0xbb) return 0;
  const auto number = static_cast<x86::Gpr>(((modrm >> 3) & 7u) | ((rex & 4u) << 1));
  auto bit = static_cast<std::int64_t>(x86::gpr_at(regs, number));
  if (insn.operand_bytes == 4) bit = static_cast<std::int32_t>(bit);
  if (insn.operand_bytes == 2) bit = static_cast<std::int16_t>(bit);
  const std::int64_t bits = 8 * insn.operand_bytes;
  const std::int64_t element = bit >= 0 ? bit / bits : -((-bit + bits - 1) / bits);
  return element * insn.operand_bytes;
}

void patch(AccessRun& run, const MemoryAccess& access) {
  auto* copy = run.copy_of(access.gva);
  std::memcpy(copy->before->bytes.data() + offset_of(access.gva), access.data.data(), access.size);
  std::memcpy(copy->work->bytes.data() + offset_of(access.gva), access.data.data(), access.size);
}

/// What the instruction wrote: where it was expected to, and then wherever else a copy has changed.
void collect_writes(AccessRun& run) {
  const std::size_t expected = run.writes.size();
  for (auto& write : run.writes) {
    std::memcpy(write.data.data(), run.copy_of(write.gva)->work->bytes.data() + offset_of(write.gva), write.size);
  }
  for (const auto& copy : run.copies) {
    std::array<bool, kPageSize> known{};
    for (std::size_t i = 0; i < expected; ++i) {
      if (page_of(run.writes[i].gva) != copy.gva) continue;
      std::fill_n(known.begin() + static_cast<std::ptrdiff_t>(offset_of(run.writes[i].gva)), run.writes[i].size, true);
    }
    const auto changed = [&](std::size_t i) { return !known[i] && copy.before->bytes[i] != copy.work->bytes[i]; };
    for (std::size_t i = 0; i < kPageSize; ++i) {
      if (!changed(i)) continue;
      MemoryAccess write;
      write.gva = Gva{copy.gva.value + i};
      write.gpa = Gpa{gpa_of(copy.gfn).value + i};
      while (i < kPageSize && write.size < KVMI_ACCESS_DATA_MAX && changed(i)) {
        write.data[write.size++] = std::to_integer<std::uint8_t>(copy.work->bytes[i++]);
      }
      --i;
      run.writes.push_back(write);
    }
  }
}

}  // namespace

std::uint64_t repeat_count(const x86::Instruction& insn, const kvmi_x86_regs& regs) {
  return insn.address_bytes == 4 ? regs.rcx & 0xffffffff : regs.rcx;
}

AccessRun::Copy* AccessRun::copy_of(Gva gva) {
  for (auto& copy : copies) {
    if (copy.gva == page_of(gva)) return &copy;
  }
  return nullptr;
}

void Machine::drop_access(Vcpu& vcpu) {
  // The engine has executed the instruction by then; the guest has not.
  if (vcpu.access && vcpu.access->phase == AccessRun::Phase::Write) vcpu.engine.roll_back();
  vcpu.access.reset();
}

void Machine::run_access(Vcpu& vcpu) {
  switch (vcpu.access->phase) {
    case AccessRun::Phase::Plan: return plan_access(vcpu);
    case AccessRun::Phase::Read: return read_access(vcpu);
    case AccessRun::Phase::Write: return write_access(vcpu);
  }
}

/// Checks one access and takes a copy of its page. False: something else happens first.
bool Machine::admit_access(Vcpu& vcpu, MemoryAccess& access, x86::AccessKind kind) {
  const auto seen = mmu_.probe(vcpu, access.gva, kind, access.gpa);
  if (!std::holds_alternative<Mapped>(seen)) {
    settle(vcpu, access.gva, seen);
    return false;
  }
  AccessRun& run = *vcpu.access;
  if (run.copy_of(access.gva) != nullptr) return true;
  AccessRun::Copy copy;
  copy.gva = page_of(access.gva);
  copy.gfn = gfn_of(access.gpa);
  copy.before = std::make_unique<PageBytes>();
  (void)ram_.read(gpa_of(copy.gfn), copy.before->bytes.data(), kPageSize);  // probe() says that it is RAM
  copy.work = std::make_unique<PageBytes>(*copy.before);
  run.copies.push_back(std::move(copy));
  return true;
}

void Machine::plan_access(Vcpu& vcpu) {
  AccessRun& run = *vcpu.access;
  std::array<std::byte, x86::kInstructionBytesMax> code{};
  const std::size_t have = mmu_.read_code(vcpu, code.data(), code.size());
  const auto insn = x86::decode(std::span(code).first(have), x86::Mode::Bits64);
  const bool user = x86::privilege_level(vcpu.regs, vcpu.sregs) != 0;
  if (!insn || Engine::is_sensitive(std::span(code).first(have), user)) return drop_access(vcpu);

  run.reads.clear();
  run.writes.clear();
  run.copies.clear();
  run.next = 0;
  run.repeated = insn->repeated;
  run.length = insn->length;
  for (std::size_t i = 0; i < insn->memory_count && !(run.repeated && repeat_count(*insn, vcpu.regs) == 0); ++i) {
    const auto& operand = insn->memory[i];
    if (operand.address_only || operand.vector_index) continue;
    Gva gva = x86::effective_address(*insn, operand, vcpu.regs, vcpu.sregs);
    gva.value += static_cast<std::uint64_t>(bit_string_offset(std::span(code).first(insn->length), *insn, vcpu.regs));
    if (operand.read) append_pieces(run.reads, gva, operand.bytes);
    if (operand.write) append_pieces(run.writes, gva, operand.bytes);
  }
  // The guest's own faults, and rights that were not given for this instruction, come before the first event.
  for (auto& access : run.reads) {
    if (!admit_access(vcpu, access, x86::AccessKind::Read)) return;
  }
  for (auto& access : run.writes) {
    if (!admit_access(vcpu, access, x86::AccessKind::Write)) return;
  }
  run.phase = AccessRun::Phase::Read;
}

void Machine::raise_access(Vcpu& vcpu, const MemoryAccess& access, std::uint8_t right) {
  AccessRun& run = *vcpu.access;
  AccessData data;
  data.gva = access.gva;
  data.gpa = access.gpa;
  data.access = right;
  data.size = access.size;
  data.index = run.index;
  data.data = access.data;
  if (run.index < 0xffff) ++run.index;
  raise(vcpu, data, run.length, run.length != 0 ? kEveryAction : kWithoutSkip);
}

void Machine::read_access(Vcpu& vcpu) {
  AccessRun& run = *vcpu.access;
  if (run.next == run.reads.size()) return execute_access(vcpu);
  auto& access = run.reads[run.next];
  access.data = {};
  (void)ram_.read(access.gpa, access.data.data(), access.size);
  if (hooks_.watches(vcpu.id, EventKind::Access)) return raise_access(vcpu, access, KVMI_PAGE_ACCESS_R);
  patch(run, access);
  ++run.next;
}

void Machine::execute_access(Vcpu& vcpu) {
  AccessRun& run = *vcpu.access;
  Engine& engine = vcpu.engine;
  engine.make_room(run.copies.size() + 2);  // and the code
  const Gva first_code = page_of(Gva{run.rip}), last_code = page_of(Gva{run.rip + run.length - 1});
  for (auto& copy : run.copies) {
    const bool code = copy.gva == first_code || copy.gva == last_code;
    engine.map(copy.gva, copy.work->bytes.data(), copy.gfn,
               static_cast<x86::PageRights>(KVMI_PAGE_ACCESS_R | KVMI_PAGE_ACCESS_W | (code ? KVMI_PAGE_ACCESS_X : 0)));
  }
  prepare_engine(vcpu);
  engine.set_breakpoints({}, 0);  // they were asked before the instruction was begun
  engine.save();
  run.regs_before = vcpu.regs;
  run.after = vcpu.regs;
  const Stop stop = engine.run(run.after, 1);
  for (const auto& copy : run.copies) engine.unmap(copy.gva);

  if (stop.kind == StopKind::Failed) return stop_guest(StopCause::Engine, stop.text + " at RIP " + hex(run.rip));
  if (stop.completed > 0) {
    ++vcpu.instructions;
    run.after.rflags &= ~x86::rflags::kRf;
    if (run.after.rip == run.rip) settle_repeat(vcpu, run.after);
    collect_writes(run);
    run.next = 0;
    run.phase = AccessRun::Phase::Write;
    return;
  }
  engine.roll_back();
  for (auto& copy : run.copies) *copy.work = *copy.before;
  switch (stop.kind) {
    case StopKind::Exception:
      return deliver_to(vcpu, {stop.vector, x86::exception_info(stop.vector).has_error_code, 0, 0});
    case StopKind::Invalid: return deliver_to(vcpu, {x86::vector::kUd, false, 0, 0});
    case StopKind::MemoryFault: break;
    default: return drop_access(vcpu);
  }
  if (stop.access == x86::AccessKind::Execute) return settle(vcpu, stop.gva, mmu_.resolve(vcpu, stop.gva, stop.access));
  // A place that its operands did not tell of.
  auto& list = stop.access == x86::AccessKind::Read ? run.reads : run.writes;
  if (run.copy_of(stop.gva) != nullptr || list.size() >= AccessRun::kAccessesMax) return drop_access(vcpu);
  const std::uint64_t in_page = kPageSize - offset_of(stop.gva);
  MemoryAccess access;
  access.gva = stop.gva;
  access.size = static_cast<std::uint8_t>(std::min({std::uint64_t{stop.bytes}, in_page, std::uint64_t{8}}));
  if (admit_access(vcpu, access, stop.access)) list.push_back(access);
}

void Machine::write_access(Vcpu& vcpu) {
  AccessRun& run = *vcpu.access;
  if (run.next < run.writes.size()) {
    if (hooks_.watches(vcpu.id, EventKind::Access)) {
      return raise_access(vcpu, run.writes[run.next], KVMI_PAGE_ACCESS_W);
    }
    ++run.next;
    return;
  }
  // The last answer is there: now it happens.
  for (const auto& write : run.writes) {
    if (mmu_.is_read_only(gfn_of(write.gpa))) continue;  // a store to ROM goes nowhere
    (void)map_.write(AddressSpace::Normal, write.gpa, std::as_bytes(std::span(write.data)).first(write.size));
    for (auto& other : vcpus_) other->engine.unmap_frames(gfn_of(write.gpa), 1);
  }
  // An agent that set registers meanwhile has the last word about them.
  if (std::memcmp(&vcpu.regs, &run.regs_before, sizeof vcpu.regs) == 0) vcpu.regs = run.after;
  else vcpu.regs.rip = run.after.rip;
  if (run.repeated && vcpu.regs.rip == run.rip) {
    run.phase = AccessRun::Phase::Plan;
  } else {
    vcpu.access.reset();
    end_overrides(vcpu);
  }
  complete(vcpu);
}

void Machine::finish_access(Vcpu& vcpu, const EventReply& reply) {
  if (!vcpu.access || reply.action != Action::Allow || vcpu.regs.rip != vcpu.event.regs.rip) {
    drop_access(vcpu);
    end_overrides(vcpu);
    if (reply.action == Action::Skip) move_on(vcpu);
    return;
  }
  AccessRun& run = *vcpu.access;
  auto& access = run.phase == AccessRun::Phase::Read ? run.reads[run.next] : run.writes[run.next];
  if (const auto* replaced = std::get_if<NewData>(&reply.value)) {
    std::copy_n(replaced->data.begin(), access.size, access.data.begin());
  }
  if (run.phase == AccessRun::Phase::Read) patch(run, access);
  ++run.next;
}

}  // namespace kvmid::emulated
