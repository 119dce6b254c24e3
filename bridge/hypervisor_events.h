// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <array>

#include "arch/x86/instruction.h"
#include "bridge/hypervisor_link.h"
#include "bridge/hypervisor_memory.h"

namespace kvmid::bridge {

/// Events on their way up, and the core's replies on their way down.
///
/// Purpose:  an event says what can be answered here, and each of these answers is carried out, also where the dialect
///           has no number for it: SKIP moves the instruction pointer.
/// Shapes:   arrived() puts an event into the link's up; send() answers it, at once or when the length of the
///           instruction that is skipped is known. Where it cannot be known, the event comes again (RETRY).
/// States:   of a vCPU: Running --event--> Waiting --reply--> Running, or --SKIP--> Measuring --> Running.
/// Errors:   an event of a vCPU that waits, or that does not exist.
/// Source:   docs/decisions/0008-older-dialects.md, "Towards a hypervisor".
class HypervisorEvents {
 public:
  HypervisorEvents(HypervisorLink& link, const HypervisorMemory& memory) : link_(link), memory_(memory) {}

  /// The facts are known.
  void begin();
  /// `event` is completed and handed on.
  Kept arrived(Event& event, Seq seq);
  /// CREATE_VCPU of one that the core does not know: it goes on.
  Kept let_new_vcpu_go(VcpuId vcpu, Seq seq, ByteBuffer& wire);
  void send(const EventReply& reply, Seq seq, ByteBuffer& wire);
  /// Registers that the core sets while the vCPU waits. True: they go with the reply, and need no command.
  bool stage(VcpuId vcpu, const kvmi_x86_regs& regs);
  /// The hypervisor has taken an injection.
  void injected(VcpuId vcpu, std::uint8_t vector);
  Kept replied(const Asked& asked, const kvmi1::Reply& reply, ByteBuffer& wire);
  [[nodiscard]] bool let_go() const { return let_go_; }

 private:
  enum class State : std::uint8_t { Running, Waiting, Measuring };
  struct Vcpu {
    State state = State::Running;
    Seq seq;
    EventKind kind{};
    x86::Mode mode{};
    std::uint64_t old_value = 0;  ///< of a CR or MSR
    std::uint64_t new_value = 0;
    std::uint8_t insn_length = 0;  ///< 0: not known
    std::uint64_t code_base = 0;   ///< CS, added to RIP outside 64-bit mode
    kvmi_x86_regs regs{};          ///< what the vCPU goes on with
    bool staged = false;           ///< the core set them
    std::optional<std::uint8_t> injected;
    // Measuring
    unsigned open = 0;
    std::array<std::byte, x86::kInstructionBytesMax> code{};
    std::size_t first_size = 0;     ///< bytes of it in the first page
    std::array<Gpa, 2> code_gpa{};  ///< of the part in the first page, in the second
    std::array<bool, 2> there{};    ///< likewise: it was read
  };

  [[nodiscard]] ActionSet actions_of(EventKind kind) const;
  void mark_injection(Vcpu& vcpu, TrapData& trap) const;
  void answer(VcpuId id, Vcpu& vcpu, Action action, std::uint64_t value, ByteBuffer& wire);
  void answer_2017(VcpuId id, Vcpu& vcpu, Action action, Bytes data, ByteBuffer& wire);
  void measure(VcpuId id, Vcpu& vcpu, ByteBuffer& wire);
  void measured(VcpuId id, Vcpu& vcpu, ByteBuffer& wire);
  void go_behind(VcpuId id, Vcpu& vcpu, std::size_t length, ByteBuffer& wire);

  HypervisorLink& link_;
  const HypervisorMemory& memory_;
  std::array<ActionSet, kEventCount> actions_{};
  std::vector<Vcpu> vcpus_;
  std::optional<Seq> unhook_;
  bool let_go_ = false;
};

}  // namespace kvmid::bridge
