// SPDX-License-Identifier: GPL-2.0-or-later
#include "hypervisor/emulated/engine.h"

#include <unicorn/unicorn.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <unordered_map>
#include <utility>

#include "arch/x86/registers.h"

// Unicorn 2.0 and 2.1 have the same calls as far as they are used here; 1.x lacks uc_ctl_remove_cache().
static_assert(UC_API_MAJOR >= 2, "Unicorn 2.0 or newer is needed");

namespace kvmid::emulated {

namespace {

constexpr std::uint64_t kPageMask = ~(kPageSize - 1);
/// Where execution never gets: uc_emu_start() wants an end.
constexpr std::uint64_t kNoEnd = 0x8000'0000'0000'0000;

enum class ByteClass : std::uint8_t { Plain, Prefix, Escape, Sensitive };

constexpr std::array<ByteClass, 256> one_byte_classes() {
  std::array<ByteClass, 256> table{};
  for (const unsigned b : {0x26u, 0x2eu, 0x36u, 0x3eu, 0x64u, 0x65u, 0x66u, 0x67u, 0xf0u, 0xf2u, 0xf3u}) {
    table[b] = ByteClass::Prefix;
  }
  for (unsigned b = 0x40; b < 0x50; ++b) table[b] = ByteClass::Prefix;  // REX
  table[0x0f] = ByteClass::Escape;
  // mov from and to a segment register, pushf, popf, int3, int n, iret, int1, hlt
  for (const unsigned b : {0x8cu, 0x8eu, 0x9cu, 0x9du, 0xccu, 0xcdu, 0xcfu, 0xf1u, 0xf4u}) {
    table[b] = ByteClass::Sensitive;
  }
  return table;
}
constexpr auto kOneByte = one_byte_classes();

/// What depends on the privilege besides: Unicorn executes everything as the kernel.
constexpr std::array<ByteClass, 256> one_byte_user_classes() {
  auto table = one_byte_classes();
  // ins, outs, in, out, cli, sti
  for (const unsigned b : {0x6cu, 0x6du, 0x6eu, 0x6fu, 0xe4u, 0xe5u, 0xe6u, 0xe7u, 0xecu, 0xedu, 0xeeu, 0xefu, 0xfau,
                           0xfbu}) {
    table[b] = ByteClass::Sensitive;
  }
  return table;
}
constexpr auto kOneByteUser = one_byte_user_classes();

/// The second byte after 0x0f: system instructions.
constexpr std::array<bool, 256> two_byte_sensitive() {
  std::array<bool, 256> table{};
  // sldt/ltr..., sgdt/vmcall/xsetbv..., syscall, clts, sysret, invd, wbinvd, ud2, mov cr/dr, wrmsr, rdtsc, rdmsr,
  // rdpmc, sysenter, sysexit, cpuid
  for (const unsigned b : {0x00u, 0x01u, 0x05u, 0x06u, 0x07u, 0x08u, 0x09u, 0x0bu, 0x20u, 0x21u, 0x22u, 0x23u, 0x30u,
                           0x31u, 0x32u, 0x33u, 0x34u, 0x35u, 0xa2u}) {
    table[b] = true;
  }
  return table;
}
constexpr auto kTwoByte = two_byte_sensitive();

/// The ModRM byte behind 0x0f 0xae: xsave or xrstor of memory. Unicorn knows neither.
bool is_xsave(std::byte modrm) {
  const auto value = std::to_integer<unsigned>(modrm);
  const unsigned operation = (value >> 3) & 7;
  return (value >> 6) != 3 && (operation == 4 || operation == 5);
}

bool sensitive(const std::byte* code, std::size_t size, bool user) {
  const auto& one_byte = user ? kOneByteUser : kOneByte;
  for (std::size_t i = 0; i < size; ++i) {
    switch (one_byte[std::to_integer<std::size_t>(code[i])]) {
      case ByteClass::Plain: return false;
      case ByteClass::Sensitive: return true;
      case ByteClass::Escape:
        if (i + 1 >= size) return false;
        if (code[i + 1] == std::byte{0xae}) return i + 2 < size && is_xsave(code[i + 2]);
        return kTwoByte[std::to_integer<std::size_t>(code[i + 1])];
      case ByteClass::Prefix: break;
    }
  }
  return false;
}

constexpr std::array<int, x86::kRegisterCount> kRegisterIds = {
    UC_X86_REG_RAX, UC_X86_REG_RBX, UC_X86_REG_RCX, UC_X86_REG_RDX, UC_X86_REG_RSI, UC_X86_REG_RDI,
    UC_X86_REG_RSP, UC_X86_REG_RBP, UC_X86_REG_R8,  UC_X86_REG_R9,  UC_X86_REG_R10, UC_X86_REG_R11,
    UC_X86_REG_R12, UC_X86_REG_R13, UC_X86_REG_R14, UC_X86_REG_R15, UC_X86_REG_RIP, UC_X86_REG_RFLAGS,
};

/// FPU and SSE registers, which a restored context would lose.
constexpr std::array<int, 28> kVectorIds = {
    UC_X86_REG_XMM0,  UC_X86_REG_XMM1,  UC_X86_REG_XMM2,  UC_X86_REG_XMM3,  UC_X86_REG_XMM4,  UC_X86_REG_XMM5,
    UC_X86_REG_XMM6,  UC_X86_REG_XMM7,  UC_X86_REG_XMM8,  UC_X86_REG_XMM9,  UC_X86_REG_XMM10, UC_X86_REG_XMM11,
    UC_X86_REG_XMM12, UC_X86_REG_XMM13, UC_X86_REG_XMM14, UC_X86_REG_XMM15, UC_X86_REG_MXCSR, UC_X86_REG_FPSW,
    UC_X86_REG_FPCW,  UC_X86_REG_FPTAG, UC_X86_REG_FP0,   UC_X86_REG_FP1,   UC_X86_REG_FP2,   UC_X86_REG_FP3,
    UC_X86_REG_FP4,   UC_X86_REG_FP5,   UC_X86_REG_FP6,   UC_X86_REG_FP7,
};

std::uint32_t protection(x86::PageRights rights) {
  std::uint32_t prot = UC_PROT_READ;
  if ((rights & KVMI_PAGE_ACCESS_W) != 0) prot |= UC_PROT_WRITE;
  if ((rights & KVMI_PAGE_ACCESS_X) != 0) prot |= UC_PROT_EXEC;
  return prot;
}

}  // namespace

struct Engine::State {
  struct Mapping {
    std::byte* host = nullptr;
    Gfn gfn;
    x86::PageRights rights = 0;
  };

  uc_engine* uc = nullptr;
  uc_context* clean = nullptr;
  uc_context* saved = nullptr;  ///< save()
  std::unordered_map<std::uint64_t, Mapping> mappings;
  std::uint64_t code_page = 1;  ///< page of the last instruction; 1: none
  const std::byte* code_host = nullptr;
  std::uint64_t fs_base = 0, gs_base = 0;

  std::uint64_t budget = 0;
  std::uint64_t last_rip = 0;
  bool user = false;
  std::uint8_t breakpoints = 0;  ///< bit n: addresses[n] is armed
  std::array<std::uint64_t, 4> addresses{};
  bool resumes = false;  ///< RF: no breakpoint for the first instruction
  bool stopped = false;  ///< a hook set `stop`
  bool fetched = false;  ///< the fault is of an instruction that has not been begun
  Stop stop;

  void halt(StopKind kind) {
    if (stopped) return;
    stopped = true;
    stop.kind = kind;
    uc_emu_stop(uc);
  }

  void memory_fault(std::uint64_t address, x86::AccessKind access) {
    stop.gva = Gva{address};
    stop.access = access;
    halt(StopKind::MemoryFault);
  }

  /// May code on the page of `address` be executed? A page that was read before can be in Unicorn's own TLB as
  /// executable.
  const Mapping* executable(std::uint64_t address) {
    const auto found = mappings.find(address & kPageMask);
    if (found == mappings.end() || (found->second.rights & KVMI_PAGE_ACCESS_X) == 0) {
      memory_fault(address, x86::AccessKind::Execute);
      return nullptr;
    }
    return &found->second;
  }

  std::uint8_t hits(std::uint64_t address) {
    std::uint8_t bits = 0;
    for (unsigned n = 0; n < addresses.size(); ++n) {
      if (((breakpoints >> n) & 1u) != 0 && addresses[n] == address) bits |= static_cast<std::uint8_t>(1u << n);
    }
    stop.breakpoints = bits;
    return bits;
  }

  void before_instruction(std::uint64_t address, std::uint32_t size) {
    if (stopped) return;
    last_rip = address;
    if (budget == 0) return halt(StopKind::Budget);
    if (breakpoints != 0 && !std::exchange(resumes, false) && hits(address) != 0) return halt(StopKind::CodeBreakpoint);
    --budget;
    const std::uint64_t page = address & kPageMask;
    if (page != code_page) {
      const Mapping* mapping = executable(address);
      if (mapping == nullptr) return;
      code_page = page;
      code_host = mapping->host;
    }
    const std::size_t in_page = address & ~kPageMask;
    const std::size_t length = std::min<std::size_t>(size, 15);  // an unknown instruction has a nonsense size
    if (in_page + length <= kPageSize) {
      if (sensitive(code_host + in_page, length, user)) halt(StopKind::Sensitive);
      return;
    }
    std::array<std::byte, 15> code{};
    const std::size_t first = kPageSize - in_page;
    std::memcpy(code.data(), code_host + in_page, first);
    std::size_t have = first;
    if (size <= 15) {
      const Mapping* next = executable(page + kPageSize);
      if (next == nullptr) return;
      std::memcpy(code.data() + first, next->host, length - first);
      have = length;
    }
    if (sensitive(code.data(), have, user)) halt(StopKind::Sensitive);
  }

  bool on_memory(uc_mem_type type, std::uint64_t address, int size) {
    x86::AccessKind access = x86::AccessKind::Read;
    x86::PageRights wanted = KVMI_PAGE_ACCESS_R;
    if (type == UC_MEM_WRITE_UNMAPPED || type == UC_MEM_WRITE_PROT) {
      access = x86::AccessKind::Write;
      wanted = KVMI_PAGE_ACCESS_W;
    } else if (type == UC_MEM_FETCH_UNMAPPED || type == UC_MEM_FETCH_PROT) {
      access = x86::AccessKind::Execute;
      wanted = KVMI_PAGE_ACCESS_X;
    }
    // Of an access that crosses pages the start is told, whichever page it was.
    const auto found = mappings.find(address & kPageMask);
    const std::uint64_t last = address + static_cast<std::uint64_t>(std::max(size, 1)) - 1;
    const bool crosses = (last & kPageMask) != (address & kPageMask);
    if (crosses && found != mappings.end() && (found->second.rights & wanted) != 0) {
      address = last & kPageMask;
    }
    stop.bytes = static_cast<unsigned>(std::max(size, 1));
    fetched = access == x86::AccessKind::Execute;
    memory_fault(address, access);
    return false;
  }

  // ---- what Unicorn calls ----
  static void code_hook(uc_engine*, std::uint64_t address, std::uint32_t size, void* self) {
    static_cast<State*>(self)->before_instruction(address, size);
  }
  static bool memory_hook(uc_engine*, uc_mem_type type, std::uint64_t address, int size, std::int64_t, void* self) {
    return static_cast<State*>(self)->on_memory(type, address, size);
  }
  static void interrupt_hook(uc_engine*, std::uint32_t vector, void* self) {
    auto* state = static_cast<State*>(self);
    state->stop.vector = static_cast<std::uint8_t>(vector);
    state->halt(StopKind::Exception);
  }

  template <class Callback>
  void hook(int type, Callback callback) {
    uc_hook handle{};
    // Begin after end: everywhere. uc_hook_add() takes a callback of any type as a data pointer.
    check(uc_hook_add(uc, &handle, type, reinterpret_cast<void*>(callback), this, 1, 0), "uc_hook_add");
  }

  static void check(uc_err error, const char*) {
    if (error != UC_ERR_OK) std::abort();  // out of memory, or not the library this was built for
  }

  void write_registers(const kvmi_x86_regs& regs) {
    std::array<std::uint64_t, x86::kRegisterCount> values{};
    std::memcpy(values.data(), &regs, sizeof regs);
    // A trap flag would make Unicorn step by itself; RF means nothing to it.
    values[x86::kRegisterRflags] = (values[x86::kRegisterRflags] & ~(x86::rflags::kTf | x86::rflags::kRf)) | 2;
    std::array<void*, x86::kRegisterCount> pointers{};
    for (std::size_t i = 0; i < values.size(); ++i) pointers[i] = &values[i];
    uc_reg_write_batch(uc, const_cast<int*>(kRegisterIds.data()), pointers.data(), static_cast<int>(values.size()));
  }

  void read_registers(kvmi_x86_regs& regs) {
    std::array<std::uint64_t, x86::kRegisterCount> values{};
    std::array<void*, x86::kRegisterCount> pointers{};
    for (std::size_t i = 0; i < values.size(); ++i) pointers[i] = &values[i];
    uc_reg_read_batch(uc, const_cast<int*>(kRegisterIds.data()), pointers.data(), static_cast<int>(values.size()));
    const std::uint64_t kept = regs.rflags & (x86::rflags::kTf | x86::rflags::kRf);
    static_assert(sizeof regs == sizeof values);
    std::memcpy(&regs, values.data(), sizeof regs);
    regs.rflags |= kept;
  }

  /// Unicorn remembers the last contributory exception for ever and makes a double fault of the next one. Its context
  /// from before the first instruction does not; the registers that a context holds are carried over.
  void forget_exception() {
    struct alignas(16) Register {
      std::array<std::uint8_t, 64> bytes{};
    };
    std::array<Register, kVectorIds.size()> kept{};
    for (std::size_t i = 0; i < kVectorIds.size(); ++i) uc_reg_read(uc, kVectorIds[i], kept[i].bytes.data());
    check(uc_context_restore(uc, clean), "uc_context_restore");
    for (std::size_t i = 0; i < kVectorIds.size(); ++i) uc_reg_write(uc, kVectorIds[i], kept[i].bytes.data());
    write_bases();
  }

  void write_bases() {
    uc_reg_write(uc, UC_X86_REG_FS_BASE, &fs_base);
    uc_reg_write(uc, UC_X86_REG_GS_BASE, &gs_base);
  }

  void drop(std::uint64_t page) {
    // The translation goes first: it is found by the address while that is mapped.
    uc_ctl_remove_cache(uc, page, page + kPageSize);
    uc_mem_unmap(uc, page, kPageSize);
    if (page == code_page) code_page = 1;
  }
};

Engine::Engine() : state_(std::make_unique<State>()) {
  State& s = *state_;
  State::check(uc_open(UC_ARCH_X86, UC_MODE_64, &s.uc), "uc_open");
#if UC_API_MINOR >= 1
  // Its own MMU would cut addresses to 32 bits while paging is off there, as it is for our page walk.
  State::check(uc_ctl_tlb_mode(s.uc, UC_TLB_VIRTUAL), "uc_ctl_tlb_mode");
#endif
  s.hook(UC_HOOK_CODE, &State::code_hook);
  s.hook(UC_HOOK_MEM_UNMAPPED | UC_HOOK_MEM_PROT, &State::memory_hook);
  s.hook(UC_HOOK_INTR, &State::interrupt_hook);
  set_fpu(FpuState{});  // Unicorn begins with an MXCSR of 0
  State::check(uc_context_alloc(s.uc, &s.clean), "uc_context_alloc");
  State::check(uc_context_save(s.uc, s.clean), "uc_context_save");
  State::check(uc_context_alloc(s.uc, &s.saved), "uc_context_alloc");
}

Engine::~Engine() {
  uc_context_free(state_->clean);
  uc_context_free(state_->saved);
  uc_close(state_->uc);
}

Stop Engine::run(kvmi_x86_regs& regs, std::uint64_t budget) {
  State& s = *state_;
  s.budget = budget;
  s.stopped = false;
  s.fetched = false;
  s.resumes = (regs.rflags & x86::rflags::kRf) != 0;
  s.stop = Stop{};
  s.last_rip = regs.rip;
  s.write_registers(regs);
  const uc_err error = uc_emu_start(s.uc, regs.rip, kNoEnd, 0, 0);
  s.read_registers(regs);
  s.stop.executed = budget - s.budget;
  if (!s.stopped) {
    if (error == UC_ERR_INSN_INVALID || error == UC_ERR_EXCEPTION) {
      s.stop.kind = StopKind::Invalid;
      regs.rip = s.last_rip;
    } else {
      s.stop.kind = StopKind::Failed;
      s.stop.text = std::string("Unicorn: ") + uc_strerror(error);
    }
  } else if (s.stop.kind == StopKind::Exception) {
    regs.rip = s.last_rip;
    s.forget_exception();
  } else if (s.stop.kind == StopKind::MemoryFault && s.stop.access != x86::AccessKind::Execute) {
    regs.rip = s.last_rip;
  }
  const bool at_boundary = s.stop.kind == StopKind::Budget || s.stop.kind == StopKind::CodeBreakpoint || s.fetched;
  s.stop.completed = at_boundary || s.stop.executed == 0 ? s.stop.executed : s.stop.executed - 1;
  return std::move(s.stop);
}

void Engine::map(Gva gva, std::byte* host, Gfn gfn, x86::PageRights rights) {
  State& s = *state_;
  const std::uint64_t page = gva.value & kPageMask;
  unmap(gva);
  if (s.mappings.size() >= kMappingsMax) flush();
  State::check(uc_mem_map_ptr(s.uc, page, kPageSize, protection(rights), host), "uc_mem_map_ptr");
  s.mappings[page] = {host, gfn, rights};
}

void Engine::unmap(Gva gva) {
  State& s = *state_;
  const std::uint64_t page = gva.value & kPageMask;
  if (s.mappings.erase(page) != 0) s.drop(page);
}

void Engine::unmap_frames(Gfn first, std::uint64_t count) {
  retain([&](Gva, Gfn gfn, x86::PageRights) { return gfn.value < first.value || gfn.value - first.value >= count; });
}

void Engine::retain(const std::function<bool(Gva, Gfn, x86::PageRights)>& keep) {
  State& s = *state_;
  for (auto it = s.mappings.begin(); it != s.mappings.end();) {
    if (keep(Gva{it->first}, it->second.gfn, it->second.rights)) {
      ++it;
      continue;
    }
    s.drop(it->first);
    it = s.mappings.erase(it);
  }
}

void Engine::flush() {
  State& s = *state_;
  for (const auto& [page, mapping] : s.mappings) s.drop(page);
  s.mappings.clear();
}

x86::PageRights Engine::mapped_rights(Gva gva) const {
  const auto found = state_->mappings.find(gva.value & kPageMask);
  return found == state_->mappings.end() ? x86::kRightsNone : found->second.rights;
}

FpuState Engine::fpu() const {
  uc_engine* uc = state_->uc;
  FpuState fpu;
  uc_reg_read(uc, UC_X86_REG_FPCW, &fpu.control);
  uc_reg_read(uc, UC_X86_REG_FPSW, &fpu.status);
  uc_reg_read(uc, UC_X86_REG_FPTAG, &fpu.tags);
  uc_reg_read(uc, UC_X86_REG_MXCSR, &fpu.mxcsr);
  for (std::size_t i = 0; i < fpu.physical.size(); ++i) {
    std::array<std::uint8_t, 16> value{};
    uc_reg_read(uc, UC_X86_REG_FP0 + static_cast<int>(i), value.data());
    std::copy_n(value.begin(), fpu.physical[i].size(), fpu.physical[i].begin());
  }
  for (std::size_t i = 0; i < fpu.xmm.size(); ++i) uc_reg_read(uc, kVectorIds[i], fpu.xmm[i].data());
  return fpu;
}

void Engine::set_fpu(const FpuState& fpu) {
  uc_engine* uc = state_->uc;
  uc_reg_write(uc, UC_X86_REG_FPCW, &fpu.control);
  uc_reg_write(uc, UC_X86_REG_FPSW, &fpu.status);
  uc_reg_write(uc, UC_X86_REG_FPTAG, &fpu.tags);
  uc_reg_write(uc, UC_X86_REG_MXCSR, &fpu.mxcsr);
  for (std::size_t i = 0; i < fpu.physical.size(); ++i) {
    std::array<std::uint8_t, 16> value{};
    std::copy_n(fpu.physical[i].begin(), fpu.physical[i].size(), value.begin());
    uc_reg_write(uc, UC_X86_REG_FP0 + static_cast<int>(i), value.data());
  }
  for (std::size_t i = 0; i < fpu.xmm.size(); ++i) uc_reg_write(uc, kVectorIds[i], fpu.xmm[i].data());
}

void Engine::set_user_mode(bool user) { state_->user = user; }

void Engine::set_breakpoints(const std::array<std::uint64_t, 4>& addresses, std::uint8_t armed) {
  state_->addresses = addresses;
  state_->breakpoints = armed;
}

bool Engine::is_sensitive(std::span<const std::byte> code, bool user) {
  return sensitive(code.data(), code.size(), user);
}

void Engine::save() { State::check(uc_context_save(state_->uc, state_->saved), "uc_context_save"); }

void Engine::roll_back() {
  State::check(uc_context_restore(state_->uc, state_->saved), "uc_context_restore");
  state_->write_bases();
}

void Engine::make_room(std::size_t pages) {
  if (state_->mappings.size() + pages > kMappingsMax) flush();
}

void Engine::set_segment_bases(std::uint64_t fs, std::uint64_t gs) {
  state_->fs_base = fs;
  state_->gs_base = gs;
  state_->write_bases();
}

}  // namespace kvmid::emulated
