// SPDX-License-Identifier: GPL-2.0-or-later
// Commands of a tool about the state of a vCPU: registers, MSRs, CPUID, XSAVE, memory types.
#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <utility>

#include "arch/x86/msrs.h"
#include "arch/x86/mtrr.h"
#include "bridge/agent_impl.h"

namespace kvmid::bridge {

namespace {

constexpr std::uint32_t kXsaveLeaf = 0xd;

template <class T>
std::vector<std::byte> bytes_of(const std::vector<T>& items) {
  std::vector<std::byte> bytes(items.size() * sizeof(T));
  if (!bytes.empty()) std::memcpy(bytes.data(), items.data(), bytes.size());
  return bytes;
}

}  // namespace

// ---- registers ----

/// v6 and v7 answer with what there is: from the first MSR that the vCPU does not have all are 0.
struct AgentBridge::Impl::MsrByMsr {
  std::unique_ptr<Step> step;
  VcpuId vcpu;
  std::vector<kvmi_x86_msr> msrs;
  std::size_t next = 0;  ///< the registers come before MSR 0
  bool has_registers = false;
  kvmi1::GetRegistersReply reply;
};

void AgentBridge::Impl::run(Slot& slot, const kvmi1::GetRegisters& command) {
  std::shared_ptr<MsrByMsr> fallback;
  if (is_v6_or_v7() && !command.msrs.empty()) {
    fallback = std::make_shared<MsrByMsr>();
    fallback->vcpu = command.vcpu;
    for (std::size_t i = 0; i < command.msrs.size(); ++i) fallback->msrs.push_back({command.msrs[i], 0, 0});
  }
  ask(
      GetRegisters{command.vcpu, command.msrs},
      [this, &slot, fallback](const CommandReply& reply) {
        const auto* state = std::get_if<GetRegistersReply>(&reply.body);
        if (state != nullptr) {
          return finish(slot, 0, kvmi1::GetRegistersReply{state->mode, state->regs, state->sregs, state->msrs});
        }
        if (reply.error == ErrorCode::Invalid && fallback != nullptr) return next_msr(slot, fallback);
        finish(slot, reply.error);
      },
      keep());
}

void AgentBridge::Impl::next_msr(Slot& slot, std::shared_ptr<MsrByMsr> task) {
  if (!task->step) task->step = std::make_unique<Step>(*this);
  std::vector<std::byte> index;
  WireArray<std::uint32_t> indices;
  if (task->has_registers) {
    index.resize(sizeof(std::uint32_t));
    std::memcpy(index.data(), &task->msrs[task->next].index, index.size());
    indices = WireArray<std::uint32_t>(Bytes(index));
  }
  const VcpuId vcpu = task->vcpu;
  ask(
      GetRegisters{vcpu, indices},
      [this, &slot, task](const CommandReply& reply) {
        const auto* state = std::get_if<GetRegistersReply>(&reply.body);
        if (!task->has_registers) {
          if (state == nullptr) return finish(slot, reply.error);
          task->reply = {state->mode, state->regs, state->sregs, {}};
          task->has_registers = true;
          return next_msr(slot, task);
        }
        const bool read = state != nullptr && state->msrs.size() == 1;
        if (read) task->msrs[task->next++].value = state->msrs[0].value;
        if (read && task->next < task->msrs.size()) return next_msr(slot, task);
        task->reply.msrs = std::span<const kvmi_x86_msr>(task->msrs);
        finish(slot, 0, task->reply);
      },
      std::move(index));
}

/// A vCPU that waits for this tool takes them, and has them when the event is answered.
void AgentBridge::Impl::run(Slot& slot, const kvmi1::SetRegisters& command) {
  const bool paused = command.vcpu.value < vcpus_.size() && vcpus_[command.vcpu.value].guest_pauses != 0;
  if (open_at(command.vcpu) == nullptr && !paused) return finish(slot, ErrorCode::NotSupported);
  ask(SetRegisters{command.vcpu, command.regs}, [this, &slot](const CommandReply& reply) {
    finish(slot, reply.error == ErrorCode::TryAgain ? ErrorCode::NotSupported : reply.error);
  });
}

void AgentBridge::Impl::run(Slot& slot, const kvmi1::GetCpuid& command) {
  ask(GetCpuid{command.vcpu, command.function, command.index}, [this, &slot](const CommandReply& reply) {
    const auto* leaf = std::get_if<GetCpuidReply>(&reply.body);
    if (leaf == nullptr) return finish(slot, reply.error);
    finish(slot, 0, kvmi1::GetCpuidReply{leaf->eax, leaf->ebx, leaf->ecx, leaf->edx});
  });
}

void AgentBridge::Impl::run(Slot& slot, const kvmi1::GetXcr& command) {
  if (command.xcr != 0) return finish(slot, ErrorCode::Invalid);
  ask(GetXcr{command.vcpu, 0}, [this, &slot](const CommandReply& reply) {
    const auto* xcr = std::get_if<GetXcrReply>(&reply.body);
    if (xcr == nullptr) return finish(slot, reply.error);
    finish(slot, 0, kvmi1::GetXcrReply{xcr->value});
  });
}

// ---- XSAVE ----

void AgentBridge::Impl::run(Slot& slot, const kvmi1::GetXsave& command) {
  ask(GetXsave{command.vcpu}, [this, &slot](const CommandReply& reply) {
    const auto* state = std::get_if<GetXsaveReply>(&reply.body);
    if (state == nullptr) return finish(slot, reply.error);
    if (state->area.size() >= kvmi1::kXsaveSize) {
      return finish(slot, 0, kvmi1::GetXsaveReply{state->area.first(kvmi1::kXsaveSize)});
    }
    std::array<std::byte, kvmi1::kXsaveSize> area{};
    std::copy(state->area.begin(), state->area.end(), area.begin());
    finish(slot, 0, kvmi1::GetXsaveReply{area});
  });
}

/// These dialects have areas of 4096 bytes, a vCPU has one of its own size: what is beyond either stays as it is.
void AgentBridge::Impl::run(Slot& slot, const kvmi1::SetXsave& command) {
  if (!rights.commands.has(CommandId::GetXsave)) return finish(slot, ErrorCode::NotPermitted);
  auto held = std::make_shared<Step>(*this);
  std::vector<std::byte> area(kvmi1::kXsaveSize);
  std::copy_n(command.area.begin(), std::min(area.size(), command.area.size()), area.begin());
  const VcpuId vcpu = command.vcpu;
  ask(GetXsave{vcpu}, [this, &slot, vcpu, held, area = std::move(area)](const CommandReply& reply) {
    const auto* state = std::get_if<GetXsaveReply>(&reply.body);
    if (state == nullptr) return finish(slot, reply.error);
    std::vector<std::byte> whole(state->area.begin(), state->area.end());
    std::copy_n(area.begin(), std::min(area.size(), whole.size()), whole.begin());
    const Bytes view(whole);
    ask(
        SetXsave{vcpu, view},
        [this, &slot](const CommandReply& last) {
          finish(slot, last.error == ErrorCode::TryAgain ? ErrorCode::NotSupported : last.error);
        },
        std::move(whole));
  });
}

// ---- memory types ----

void AgentBridge::Impl::read_msrs(VcpuId vcpu, const std::vector<std::uint32_t>& indices,
                                  std::function<void(const CommandReply&, const WireArray<kvmi_x86_msr>&)> then) {
  std::vector<std::byte> bytes = bytes_of(indices);
  const WireArray<std::uint32_t> view{Bytes(bytes)};
  ask(
      GetRegisters{vcpu, view},
      [then = std::move(then), count = indices.size()](const CommandReply& reply) {
        const auto* state = std::get_if<GetRegistersReply>(&reply.body);
        const bool all = state != nullptr && state->msrs.size() == count;
        then(reply, all ? state->msrs : WireArray<kvmi_x86_msr>{});
      },
      std::move(bytes));
}

/// Without MTRRs all memory is write-back, as KVM has it; with MTRRs that are off all is uncacheable. A capability of 0 is
/// that of a vCPU without: hypervisors of v6 and v7 answer so for MSRs that are not there.
void AgentBridge::Impl::run(Slot& slot, const kvmi1::GetMtrrType& command) {
  const auto answer = [this, &slot](x86::MemoryType type) {
    finish(slot, 0, kvmi1::GetMtrrTypeReply{static_cast<std::uint64_t>(type)});
  };
  const auto refused = [this, &slot, answer](ErrorCode error) {
    if (error == ErrorCode::Invalid || error == ErrorCode::None) return answer(x86::MemoryType::WriteBack);
    finish(slot, error);
  };
  auto held = std::make_shared<Step>(*this);
  const auto with_ranges = [answer, refused](Gpa gpa, x86::Mtrrs mtrrs, const CommandReply& reply,
                                             const WireArray<kvmi_x86_msr>& msrs) {
    if (msrs.empty()) return refused(reply.error);
    std::size_t i = 0;
    if (x86::has_fixed_mtrrs(mtrrs.cap)) {
      for (std::uint64_t& fixed : mtrrs.fixed) fixed = msrs[i++].value;
    }
    for (; i + 1 < msrs.size(); i += 2) mtrrs.variable.push_back({msrs[i].value, msrs[i + 1].value});
    answer(x86::memory_type(mtrrs, gpa));
  };
  read_msrs(command.vcpu, {x86::msr::kMtrrCap, x86::msr::kMtrrDefType},
            [this, held, answer, refused, with_ranges, vcpu = command.vcpu, gpa = command.gpa](
                const CommandReply& reply, const WireArray<kvmi_x86_msr>& msrs) {
              if (msrs.empty()) return refused(reply.error);
              x86::Mtrrs mtrrs;
              mtrrs.cap = msrs[0].value;
              if (mtrrs.cap == 0) return answer(x86::MemoryType::WriteBack);
              mtrrs.def_type = msrs[1].value;
              std::vector<std::uint32_t> ranges;
              if (x86::has_fixed_mtrrs(mtrrs.cap)) {
                ranges.assign(x86::kFixedMtrrMsrs.begin(), x86::kFixedMtrrMsrs.end());
              }
              for (std::uint32_t i = 0; i < x86::variable_mtrrs(mtrrs.cap); ++i) {
                ranges.push_back(x86::msr::kMtrrPhysBase0 + 2 * i);
                ranges.push_back(x86::msr::kMtrrPhysMask0 + 2 * i);
              }
              if (ranges.empty() || !x86::mtrrs_enabled(mtrrs.def_type)) return answer(x86::memory_type(mtrrs, gpa));
              read_msrs(vcpu, ranges,
                        [with_ranges, gpa, mtrrs](const CommandReply& last, const WireArray<kvmi_x86_msr>& values) {
                          with_ranges(gpa, mtrrs, last, values);
                        });
            });
}

// ---- rfc2017 ----

void AgentBridge::Impl::run(Slot& slot, const kvmi1::GetMtrrs& command) {
  read_msrs(command.vcpu, {x86::msr::kPat, x86::msr::kMtrrCap, x86::msr::kMtrrDefType},
            [this, &slot](const CommandReply& reply, const WireArray<kvmi_x86_msr>& msrs) {
              if (msrs.empty()) return finish(slot, reply.error == ErrorCode::None ? ErrorCode::Invalid : reply.error);
              finish(slot, 0, kvmi1::GetMtrrsReply{msrs[0].value, msrs[1].value, msrs[2].value});
            });
}

void AgentBridge::Impl::run(Slot& slot, const kvmi1::GetXsaveInfo& command) {
  ask(GetCpuid{command.vcpu, kXsaveLeaf, 0}, [this, &slot](const CommandReply& reply) {
    const auto* leaf = std::get_if<GetCpuidReply>(&reply.body);
    if (leaf == nullptr) return finish(slot, reply.error);
    finish(slot, 0, kvmi1::GetXsaveInfoReply{leaf->ebx});
  });
}

}  // namespace kvmid::bridge
