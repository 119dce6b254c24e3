// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// An emulated guest: RAM, vCPUs that take turns on the caller's thread, and the hooks that kvmid sets on them.
///
/// Purpose:  a guest with every kind of event that needs no privilege and no device, for tests, demonstrations and
///           agents under development.
/// Shapes:   the owner's loop calls run_round() again and again; events go to the sink, answers come by answer().
/// Units:    slices in instructions; the guest's TSC counts instructions.
/// Errors:   create() says what is wrong with a configuration. A guest that cannot go on makes stopped() true.
/// Threads:  one. Another process may write in the shared RAM; translated code does not see that (see GUEST.md).
/// Lifetime: the sink outlives the machine, or is set to null.

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "hypervisor/emulated/memory_map.h"
#include "hypervisor/emulated/mmu.h"
#include "hypervisor/emulated/ram.h"
#include "hypervisor/emulated/sensitive.h"
#include "hypervisor/emulated/vcpu.h"
#include "hypervisor/server/guest_backend.h"
#include "hypervisor/server/hooks.h"

namespace kvmid::emulated {

inline constexpr std::uint16_t kVcpusMax = 8;
inline constexpr std::uint64_t kMemoryMinBytes = 4ull << 20;
inline constexpr std::uint64_t kMemoryMaxBytes = 64ull << 30;

struct MachineConfig {
  Uuid uuid;
  std::string name = "emulated";
  std::int64_t start_time = 0;
  std::uint16_t vcpu_count = 2;
  std::uint64_t memory_bytes = 16ull << 20;
  std::uint64_t slice = 20000;               ///< instructions a vCPU may execute before the next one's turn
  std::chrono::microseconds period{1000};    ///< how long HLT rests; 0: not at all
  bool share_ram = true;                     ///< hand the memfd to kvmid, where the socket can carry it
  std::span<const std::byte> image;          ///< only looked at by create()
};

struct MachineError {
  std::string text;
};

/// Why the guest does not run any more.
enum class StopCause : std::uint8_t {
  None,
  Shutdown,     ///< finish_shutdown()
  CrashAction,  ///< an event was answered with CRASH
  GuestFault,   ///< triple fault, or an access to physical memory that is not there
  Engine,       ///< the emulator could not go on
};

class Machine final : public hypervisor::GuestBackend {
 public:
  static constexpr unsigned kPausesMax = 64;  ///< PAUSE_VCPU commands that one vCPU may owe

  static Result<std::unique_ptr<Machine>, MachineError> create(const MachineConfig& config);

  /// Was the guest told to shut down (SHUTDOWN_GUEST), and runs on? The owner lets kvmid go first.
  [[nodiscard]] bool shutdown_wanted() const { return shutdown_wanted_ && !stopped(); }
  /// Stops the guest for good: what SHUTDOWN_GUEST asked for.
  void finish_shutdown();

  void set_sink(hypervisor::EventSink* sink) { sink_ = sink; }

  /// Gives every vCPU that can run one slice.
  void run_round(Clock::time_point now);
  /// Would run_round() do something at once?
  [[nodiscard]] bool runnable(Clock::time_point now) const;
  /// When the first halted vCPU goes on; nothing if none is halted.
  [[nodiscard]] std::optional<Clock::time_point> next_wake() const;

  [[nodiscard]] bool stopped() const { return cause_ != StopCause::None; }
  [[nodiscard]] StopCause stop_cause() const { return cause_; }
  [[nodiscard]] const std::string& stop_reason() const { return reason_; }

  /// The ROM page comes, goes, moves to the other of its two places, or becomes writable or read-only for the guest, as
  /// a guest asks for by a hypercall. kvmid is told first; no vCPU keeps a mapping of the page. False, and nothing is
  /// done, where it is there already, or is not. (map_changes.cpp)
  bool change_rom(MapChange change);

  [[nodiscard]] const Vcpu& vcpu(VcpuId id) const { return *vcpus_[id.value]; }
  [[nodiscard]] const GuestRam& ram() const { return ram_; }

  // GuestBackend
  [[nodiscard]] const hypervisor::GuestFacts& facts() const override { return facts_; }
  [[nodiscard]] hypervisor::Hooks& hooks() override { return hooks_; }
  hypervisor::Done pause(VcpuId vcpu) override;
  hypervisor::Answer<hypervisor::RegisterState> registers(VcpuId vcpu) override;
  hypervisor::Answer<std::uint64_t> msr(VcpuId vcpu, std::uint32_t index) override;
  hypervisor::Done set_registers(VcpuId vcpu, const kvmi_x86_regs& regs) override;
  hypervisor::Done inject(VcpuId vcpu, const x86::Exception& exception) override;
  [[nodiscard]] bool is_memory(AddressSpace space, Gfn first, std::uint64_t pages) const override {
    return map_.covers(space, first, pages);
  }
  [[nodiscard]] x86::PageRights page_access(Gfn gfn) const override { return mmu_.rights(gfn); }
  void set_page_access(Gfn first, std::uint64_t pages, x86::PageRights rights) override;
  hypervisor::Done read_physical(AddressSpace space, Gpa gpa, std::span<std::byte> out) override;
  hypervisor::Done write_physical(AddressSpace space, Gpa gpa, Bytes data) override;
  hypervisor::Done shutdown() override;
  hypervisor::Answer<GetCpuidReply> cpuid(VcpuId vcpu, std::uint32_t function, std::uint32_t index) override;
  hypervisor::Answer<std::vector<std::byte>> xsave(VcpuId vcpu) override;
  hypervisor::Done set_xsave(VcpuId vcpu, Bytes area) override;
  hypervisor::Answer<std::uint64_t> xcr(VcpuId vcpu, std::uint32_t xcr) override;
  hypervisor::Answer<std::vector<kvmi_memory_slot>> memory_map(AddressSpace space) override {
    return map_.slots(space);
  }
  void answer(const EventReply& reply) override;
  void unhook() override;

 private:
  Machine(const MachineConfig& config, GuestRam ram);
  void load(std::span<const std::byte> image);
  void build_map();  // map_changes.cpp
  void fill_rom(std::byte* host);
  void serve_hypercall(Vcpu& vcpu);

  // machine.cpp
  void run_vcpu(Vcpu& vcpu, Clock::time_point now);
  void run_slice(Vcpu& vcpu, Clock::time_point now);
  bool admit_operands(Vcpu& vcpu);
  void on_sensitive(Vcpu& vcpu, Clock::time_point now);
  void on_memory_fault(Vcpu& vcpu, const Stop& stop);
  void settle(Vcpu& vcpu, Gva gva, const Resolution& resolution);
  void end_overrides(Vcpu& vcpu);
  void stop_guest(StopCause cause, std::string reason);
  static std::string hex(std::uint64_t value);

  // traps.cpp
  void deliver_to(Vcpu& vcpu, const x86::Exception& exception);  ///< a fault of the instruction at RIP
  void interrupt(Vcpu& vcpu, std::uint8_t vector, std::uint8_t insn_length, bool software);
  void inject_now(Vcpu& vcpu);
  void debug_trap(Vcpu& vcpu);
  void code_breakpoint(Vcpu& vcpu, std::uint8_t breakpoints);
  void begin_exception(Vcpu& vcpu, PendingException pending);
  void finish_trap(Vcpu& vcpu, Action action);
  void end_exception(Vcpu& vcpu);
  /// Is the instruction at RIP under way, allowed by the answer to an event of it?
  [[nodiscard]] bool finishes_instruction(const Vcpu& vcpu) const;
  /// The instruction has been executed: RIP is where it goes on.
  void complete(Vcpu& vcpu);
  bool raise_step(Vcpu& vcpu);
  void settle_repeat(Vcpu& vcpu, kvmi_x86_regs& regs);
  void prepare_engine(Vcpu& vcpu);
  [[nodiscard]] std::uint8_t length_at_rip(Vcpu& vcpu);
  [[nodiscard]] static std::uint64_t visible_dr6(const Vcpu& vcpu);

  // access.cpp
  void run_access(Vcpu& vcpu);
  void plan_access(Vcpu& vcpu);
  void read_access(Vcpu& vcpu);
  void execute_access(Vcpu& vcpu);
  void write_access(Vcpu& vcpu);
  bool admit_access(Vcpu& vcpu, MemoryAccess& access, x86::AccessKind kind);
  void raise_access(Vcpu& vcpu, const MemoryAccess& access, std::uint8_t right);
  void finish_access(Vcpu& vcpu, const EventReply& reply);
  void drop_access(Vcpu& vcpu);

  // events.cpp
  void raise(Vcpu& vcpu, EventData data, std::uint8_t insn_length, ActionSet actions);
  void finish(Vcpu& vcpu, const EventReply& reply);
  void move_on(Vcpu& vcpu);
  void let_pass(Vcpu& vcpu);

  GuestRam ram_;
  std::vector<std::byte> smram_;
  MemoryMap map_;
  std::optional<Gpa> rom_;  ///< where the slot with the ROM is, if anywhere
  x86::CpuFeatures cpu_;
  Mmu mmu_;
  hypervisor::Hooks hooks_;
  hypervisor::GuestFacts facts_;
  std::uint64_t slice_;
  std::chrono::microseconds period_;
  std::vector<std::unique_ptr<Vcpu>> vcpus_;
  hypervisor::EventSink* sink_ = nullptr;
  StopCause cause_ = StopCause::None;
  std::string reason_;
  bool shutdown_wanted_ = false;
};

}  // namespace kvmid::emulated
