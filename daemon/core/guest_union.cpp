// SPDX-License-Identifier: GPL-2.0-or-later
// Telling the hypervisor: the difference between the union of wishes and what it has confirmed, as parts of a change.
#include <algorithm>

#include "daemon/core/guest_machine.h"
#include "daemon/core/planted.h"

namespace kvmid::core {

void GuestMachine::add_part(const Command& command, VcpuId vcpu, bool takes_away) {
  wish_parts_.push_back(WishPart{.command = command, .vcpu = vcpu, .takes_away = takes_away});
}

/// As many as may be unanswered at once: a change can have thousands of parts. The ledger always has room for these.
void GuestMachine::send_parts(TimePoint now, Effects& out) {
  while (wish_parts_sent_ < wish_parts_.size() && wish_parts_open_ < kWishPartsOpenMax) {
    const WishPart& part = wish_parts_[wish_parts_sent_];
    if (part.alone && wish_parts_open_ != 0) return;
    const auto* patch = std::get_if<WritePhysical>(&part.command);
    const bool places = patch != nullptr && (patch->flags & KVMI_WRITE_PATCH) != 0;
    if (places && !is_wanted(*patch)) {  // its agent has gone meanwhile, or the guest is about to
      const auto* asked = std::get_if<WritePhysical>(&wishes_.front().command);
      if (asked != nullptr && asked->gpa == patch->gpa && wish_error_ == ErrorCode::None) {
        wish_error_ = ErrorCode::NoDevice;
        wish_error_text_ = "the hypervisor lets the guest go";
      }
      if (++wish_parts_sent_ < wish_parts_.size()) wish_parts_[wish_parts_sent_].alone = true;
      continue;
    }
    const OpenCommand open{.id = id_of(part.command),
                           .purpose = Purpose::Wish,
                           .slot = 0,
                           .agent = wishes_.front().agent,
                           .agent_seq = wishes_.front().seq,
                           .vcpu = part.vcpu,
                           .tag = static_cast<std::uint32_t>(wish_parts_sent_)};
    if (!send_command(part.command, open, now, out)) return;
    if (places) patch_sent(*patch);
    ++wish_parts_sent_;
    ++wish_parts_open_;
  }
}

/// The change has failed: what was not told of it yet need not be.
void GuestMachine::drop_unsent_parts() {
  for (std::size_t i = wish_parts_sent_; i < wish_parts_.size(); ++i) {
    const WishPart& part = wish_parts_[i];
    if (std::holds_alternative<PauseVcpu>(part.command)) pauses_[part.vcpu.value].asked = false;
    if (const auto* pages = std::get_if<SetPageAccess>(&part.command)) touch_pages(*pages);
  }
  wish_parts_.resize(wish_parts_sent_);
}

/// A part for every difference between the union and what the hypervisor has confirmed. What is taken back goes first:
/// patches, page rights, events; what is new goes the other way round, so that nothing happens that nobody is told of.
void GuestMachine::tell_differences() {
  tell_patches_removed();
  std::vector<kvmi_page_access_entry> taken = tell_pages_given_back();
  std::vector<Subscriptions::VcpuUnion> wanted(vcpus_.size());
  if (!withdrawing()) {
    for (std::uint16_t i = 0; i < vcpus_.size(); ++i) wanted[i] = subscriptions_.union_of(VcpuId{i});
    add_own_wishes(wanted);
  }
  if (wanted != told_ || std::find(anew_.begin(), anew_.end(), true) != anew_.end()) {
    tell_event_differences(wanted);
    tell_register_differences(wanted);
    std::fill(anew_.begin(), anew_.end(), false);
  }
  tell_pages(std::move(taken), false);
  tell_patches_placed(wishes_.front());
}

void GuestMachine::tell_event_differences(const std::vector<Subscriptions::VcpuUnion>& wanted) {
  const auto added = [&](std::size_t i) { return wanted[i].events.bits & ~(anew_[i] ? 0 : told_[i].events.bits); };
  const auto removed = [&](std::size_t i) { return told_[i].events.bits & ~wanted[i].events.bits; };
  const auto send = [&](VcpuId vcpu, Operation operation, std::uint64_t events) {
    if (events == 0) return;
    add_part(ControlEvents{vcpu, operation, Role::Decider, EventSet{events}}, vcpu, operation == Operation::Disable);
  };
  bool alike = true;  // on every vCPU: one message does for all
  for (std::size_t i = 1; i < wanted.size(); ++i) alike = alike && added(i) == added(0) && removed(i) == removed(0);
  for (std::size_t i = 0; i < (alike ? 1 : wanted.size()); ++i) {
    const VcpuId vcpu = alike ? kAllVcpus : VcpuId{static_cast<std::uint16_t>(i)};
    send(vcpu, Operation::Disable, removed(i));
    send(vcpu, Operation::Enable, added(i));
  }
}

void GuestMachine::tell_register_differences(const std::vector<Subscriptions::VcpuUnion>& wanted) {
  const auto same = [&](auto member) {
    for (std::size_t i = 1; i < wanted.size(); ++i)
      if (wanted[i].*member != wanted[0].*member || told_[i].*member != told_[0].*member || anew_[i] != anew_[0])
        return false;
    return true;
  };
  using Union = Subscriptions::VcpuUnion;
  const bool crs_alike = same(&Union::crs);
  for (std::size_t i = 0; i < (crs_alike ? 1 : wanted.size()); ++i) {
    const VcpuId vcpu = crs_alike ? kAllVcpus : VcpuId{static_cast<std::uint16_t>(i)};
    for (const std::uint32_t cr : {0U, 3U, 4U}) {
      const bool want = ((wanted[i].crs >> cr) & 1U) != 0;
      const bool told = ((told_[i].crs >> cr) & 1U) != 0;
      if (want != told || (want && anew_[i])) add_part(ControlCr{vcpu, want, cr}, vcpu, !want);
    }
  }
  const bool msrs_alike = same(&Union::msrs);
  for (std::size_t i = 0; i < (msrs_alike ? 1 : wanted.size()); ++i) {
    const VcpuId vcpu = msrs_alike ? kAllVcpus : VcpuId{static_cast<std::uint16_t>(i)};
    const auto& want = wanted[i].msrs;
    const auto& told = told_[i].msrs;
    for (const std::uint32_t msr : told)
      if (!std::binary_search(want.begin(), want.end(), msr) && !planted(Planted::MsrNotTakenBack))
        add_part(ControlMsr{vcpu, false, msr}, vcpu, true);
    for (const std::uint32_t msr : want)
      if (anew_[i] || !std::binary_search(told.begin(), told.end(), msr))
        add_part(ControlMsr{vcpu, true, msr}, vcpu, false);
  }
  for (std::uint16_t i = 0; i < wanted.size(); ++i) {
    const bool want = wanted[i].singlestep;
    if (want != told_[i].singlestep || (want && anew_[i]))
      add_part(ControlSinglestep{VcpuId{i}, want}, VcpuId{i}, !want);
  }
}

}  // namespace kvmid::core
