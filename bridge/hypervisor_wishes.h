// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <map>

#include "bridge/hypervisor_events.h"
#include "bridge/hypervisor_link.h"

namespace kvmid::bridge {

/// Commands of KVMI 2 about vCPUs: their state, and which of their events are wanted.
///
/// Purpose:  one command, for one vCPU or all, becomes one for each vCPU and event that changes.
/// Shapes:   all parts are sent at once; the core is answered when all are. What is told of events, CRs and MSRs is
///           done as a whole or not at all: after a refusal the parts that were taken are taken back.
/// Errors:   the hypervisor's first.
/// Bounds:   a command has at most as many parts as there are vCPUs times events.
class HypervisorWishes {
 public:
  HypervisorWishes(HypervisorLink& link, HypervisorEvents& events) : link_(link), events_(events) {}

  /// The facts are known.
  void begin() { told_.assign(link_.facts.vcpus, {}); }
  /// REQUIRES: a command that neither memory nor pages serve.
  void send(const Command& command, Seq seq, ByteBuffer& wire);
  Kept replied(const Asked& asked, const kvmi1::Reply& reply, ByteBuffer& wire);
  /// A vCPU that begins anew may have forgotten what it was told.
  void forget(VcpuId vcpu);

 private:
  using TrackedRegister = std::pair<bool, std::uint32_t>;  ///< an MSR? and its number

  struct Job {
    Seq seq;
    CommandId id{};
    VcpuId vcpu{};
    std::uint32_t parts = 0;
    unsigned open = 0;
    bool undoing = false;
    Failure failure{};
    ReplyBody body{};
    // GET_REGISTERS
    std::vector<kvmi_x86_msr> msrs{};
    // What is taken back if a part is refused.
    std::vector<kvmi1::Command> opposites{};            ///< [part]
    std::vector<bool> taken{};                          ///< [part]
    std::vector<std::pair<VcpuId, EventSet>> events{};  ///< what they were told before
    std::vector<VcpuId> tracked{};                      ///< rfc2017: vCPUs that changed their mind of
    std::pair<TrackedRegister, bool> tracks{};          ///< this, to this
    std::uint8_t vector = 0;
  };
  void run(const PauseVcpu& command, Job job, ByteBuffer& wire);
  void run(const GetRegisters& command, Job job, ByteBuffer& wire);
  void run(const SetXsave& command, Job job, ByteBuffer& wire);
  void run(const GetXcr& command, Job job, ByteBuffer& wire);
  void run(const InjectException& command, Job job, ByteBuffer& wire);
  void run(const ControlEvents& command, Job job, ByteBuffer& wire);
  void run(const ControlCr& command, Job job, ByteBuffer& wire);
  void run(const ControlMsr& command, Job job, ByteBuffer& wire);
  void run(const ControlSinglestep& command, Job job, ByteBuffer& wire);

  void send_one(Job job, const kvmi1::Command& command, ByteBuffer& wire);
  void part(std::uint32_t id, Job& job, const kvmi1::Command& command, ByteBuffer& wire);
  void part(std::uint32_t id, Job& job, const kvmi1::Command& command, const kvmi1::Command& opposite,
            ByteBuffer& wire);
  void tell_events(std::uint32_t id, Job& job, VcpuId vcpu, EventSet before, EventSet after, ByteBuffer& wire);
  /// Of rfc2017, where what is tracked is the guest's. Tracked if any vCPU wants it; true: that has changed.
  bool track(Job& job, const TrackedRegister& which, VcpuId vcpu, bool enable);
  [[nodiscard]] EventSet told_to_all(VcpuId named) const;
  [[nodiscard]] bool is_vcpu(VcpuId vcpu) const { return vcpu.value < link_.facts.vcpus; }
  template <class F>
  void each_vcpu(VcpuId named, F f) const;
  Kept take(const Asked& asked, const kvmi1::Reply& reply, Job& job);
  Kept take_registers(const Asked& asked, const kvmi1::Reply& reply, Job& job);
  void settle(std::uint32_t id, Job& job, ByteBuffer& wire);
  void finish(std::uint32_t id, Job& job);
  [[nodiscard]] std::size_t msrs_max() const;

  HypervisorLink& link_;
  HypervisorEvents& events_;
  Jobs<Job> jobs_;
  std::vector<EventSet> told_;                            ///< [vCPU], as if every part were taken
  std::map<TrackedRegister, std::vector<bool>> tracked_;  ///< rfc2017: which vCPUs want it
};

}  // namespace kvmid::bridge
