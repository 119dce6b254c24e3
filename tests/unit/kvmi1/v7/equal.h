// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// Whether two messages of kvmi1.h say the same: field by field, views by what they show.

#include <algorithm>
#include <cstring>
#include <optional>
#include <tuple>
#include <variant>

#include "protocol/kvmi1.h"

namespace kvmid::kvmi1::test {

inline auto fields(const std::monostate&) { return std::tuple<>(); }

inline auto fields(const GetVersion&) { return std::tuple<>(); }
inline auto fields(const CheckCommand& m) { return std::tie(m.id); }
inline auto fields(const CheckEvent& m) { return std::tie(m.id); }
inline auto fields(const GetGuestInfo&) { return std::tuple<>(); }
inline auto fields(const GetVcpuInfo& m) { return std::tie(m.vcpu); }
inline auto fields(const PauseVcpu& m) { return std::tie(m.vcpu, m.wait); }
inline auto fields(const ControlVmEvents& m) { return std::tie(m.event, m.enable); }
inline auto fields(const ControlEvents& m) { return std::tie(m.vcpu, m.event, m.enable); }
inline auto fields(const ControlCr& m) { return std::tie(m.vcpu, m.enable, m.cr); }
inline auto fields(const ControlMsr& m) { return std::tie(m.vcpu, m.enable, m.msr); }
inline auto fields(const GetRegisters& m) { return std::tie(m.vcpu, m.msrs); }
inline auto fields(const SetRegisters& m) { return std::tie(m.vcpu, m.regs); }
inline auto fields(const GetCpuid& m) { return std::tie(m.vcpu, m.function, m.index); }
inline auto fields(const GetXsave& m) { return std::tie(m.vcpu); }
inline auto fields(const SetXsave& m) { return std::tie(m.vcpu, m.area); }
inline auto fields(const GetXcr& m) { return std::tie(m.vcpu, m.xcr); }
inline auto fields(const GetMtrrType& m) { return std::tie(m.vcpu, m.gpa); }
inline auto fields(const ReadPhysical& m) { return std::tie(m.gpa, m.size); }
inline auto fields(const WritePhysical& m) { return std::tie(m.gpa, m.data); }
inline auto fields(const GetMaxGfn&) { return std::tuple<>(); }
inline auto fields(const GetMapToken&) { return std::tuple<>(); }
inline auto fields(const QueryPhysical& m) { return std::tie(m.gfn); }
inline auto fields(const GetNextAvailableGfn&) { return std::tuple<>(); }
inline auto fields(const InjectException& m) {
  return std::tie(m.vcpu, m.vector, m.has_error_code, m.error_code, m.address);
}
inline auto fields(const GetPageAccess& m) { return std::tie(m.view, m.gpas); }
inline auto fields(const SetPageAccess& m) { return std::tie(m.view, m.entries); }
inline auto fields(const ControlSpp& m) { return std::tie(m.enable); }
inline auto fields(const GetPageWriteBitmap& m) { return std::tie(m.view, m.gpas); }
inline auto fields(const SetPageWriteBitmap& m) { return std::tie(m.view, m.entries); }
inline auto fields(const ControlCmdResponse& m) { return std::tie(m.enable, m.now, m.error_events); }
inline auto fields(const SetVeInfoPage& m) { return std::tie(m.vcpu, m.gpa, m.trigger_vmexit); }
inline auto fields(const DisableVe& m) { return std::tie(m.vcpu); }
inline auto fields(const SetPageSve& m) { return std::tie(m.view, m.suppress, m.gpa); }
inline auto fields(const GetEptView& m) { return std::tie(m.vcpu); }
inline auto fields(const SwitchEptView& m) { return std::tie(m.vcpu, m.view); }
inline auto fields(const ControlEptView& m) { return std::tie(m.vcpu, m.view, m.visible); }
inline auto fields(const CreateEptView&) { return std::tuple<>(); }
inline auto fields(const DestroyEptView& m) { return std::tie(m.view); }
inline auto fields(const AllocGfn& m) { return std::tie(m.vcpu, m.gfn); }
inline auto fields(const FreeGfn& m) { return std::tie(m.vcpu, m.gfn); }
inline auto fields(const ChangeGfn& m) { return std::tie(m.vcpu, m.view, m.old_gfn, m.new_gfn); }
inline auto fields(const TranslateGva& m) { return std::tie(m.vcpu, m.gva); }
inline auto fields(const ControlSinglestep& m) { return std::tie(m.vcpu, m.enable); }

inline auto fields(const GetVersionReply& m) {
  return std::tie(m.version, m.max_message, m.spp, m.vmfunc, m.eptp, m.ve, m.singlestep);
}
inline auto fields(const GetGuestInfoReply& m) { return std::tie(m.vcpu_count, m.tsc_hz); }
inline auto fields(const GetVcpuInfoReply& m) { return std::tie(m.tsc_hz); }
inline auto fields(const GetRegistersReply& m) { return std::tie(m.mode, m.regs, m.sregs, m.msrs); }
inline auto fields(const GetCpuidReply& m) { return std::tie(m.eax, m.ebx, m.ecx, m.edx); }
inline auto fields(const GetXsaveReply& m) { return std::tie(m.area); }
inline auto fields(const GetXcrReply& m) { return std::tie(m.value); }
inline auto fields(const GetMtrrTypeReply& m) { return std::tie(m.type); }
inline auto fields(const ReadPhysicalReply& m) { return std::tie(m.data); }
inline auto fields(const GfnReply& m) { return std::tie(m.gfn); }
inline auto fields(const GetMapTokenReply& m) { return std::tie(m.token); }
inline auto fields(const QueryPhysicalReply& m) { return std::tie(m.gfn, m.pages); }
inline auto fields(const GetPageAccessReply& m) { return std::tie(m.access); }
inline auto fields(const GetPageWriteBitmapReply& m) { return std::tie(m.bitmaps); }
inline auto fields(const EptViewReply& m) { return std::tie(m.view); }
inline auto fields(const TranslateGvaReply& m) { return std::tie(m.gpa); }

inline auto fields(const UnhookData& m) { return std::tie(m.reason); }
inline auto fields(const CrData& m) { return std::tie(m.cr, m.old_value, m.new_value); }
inline auto fields(const MsrData& m) { return std::tie(m.msr, m.old_value, m.new_value); }
inline auto fields(const XsetbvData& m) { return std::tie(m.xcr, m.old_value, m.new_value); }
inline auto fields(const BreakpointData& m) { return std::tie(m.gpa, m.insn_length); }
inline auto fields(const HypercallData&) { return std::tuple<>(); }
inline auto fields(const PageFaultData& m) { return std::tie(m.gva, m.gpa, m.access, m.gva_valid); }
inline auto fields(const TrapData& m) {
  return std::tie(m.vector, m.kind, m.flags, m.displaced_vector, m.error_code, m.address);
}
inline auto fields(const DescriptorData& m) { return std::tie(m.descriptor, m.write); }
inline auto fields(const CreateVcpuData&) { return std::tuple<>(); }
inline auto fields(const PauseData&) { return std::tuple<>(); }
inline auto fields(const SinglestepData& m) { return std::tie(m.failed); }
inline auto fields(const CpuidData& m) { return std::tie(m.function, m.index); }
inline auto fields(const Event& m) {
  return std::tie(m.vcpu, m.mode, m.actions, m.decide, m.space, m.deadline_us, m.cookie, m.regs, m.sregs, m.msrs,
                  m.dr6, m.dr7, m.data);
}

inline auto fields(const Reply& m) { return std::tie(m.id, m.error, m.body); }
inline auto fields(const EventMessage& m) { return std::tie(m.event, m.view); }
inline auto fields(const CommandError& m) { return std::tie(m.error, m.seq, m.id); }
inline auto fields(const EventReplyMessage& m) { return std::tie(m.vcpu, m.action, m.event, m.regs, m.data); }
inline auto fields(const UnknownMessage& m) { return std::tie(m.id); }

inline bool equal(Bytes a, Bytes b) { return std::ranges::equal(a, b); }
template <class T>
bool equal(const WireArray<T>& a, const WireArray<T>& b) {
  return equal(a.bytes(), b.bytes());
}
template <class... T>
bool equal(const std::variant<T...>& a, const std::variant<T...>& b);

template <class T>
bool equal(const T& a, const T& b) {
  if constexpr (requires { a == b; }) {
    return a == b;
  } else if constexpr (requires { fields(a); }) {
    return std::apply(
        [&](const auto&... of_a) {
          return std::apply([&](const auto&... of_b) { return (equal(of_a, of_b) && ...); }, fields(b));
        },
        fields(a));
  } else {
    static_assert(std::has_unique_object_representations_v<T>);  // the C structs
    return std::memcmp(&a, &b, sizeof a) == 0;
  }
}

template <class... T>
bool equal(const std::variant<T...>& a, const std::variant<T...>& b) {
  if (a.index() != b.index()) return false;
  return std::visit(
      [&](const auto& of_a) {
        using Alternative = std::decay_t<decltype(of_a)>;
        // The messages of rfc2017 and the events of KVMI 2 alone are not compared here.
        if constexpr (requires { fields(of_a); } || requires { of_a.index(); }) {
          return equal(of_a, std::get<Alternative>(b));
        } else {
          return false;
        }
      },
      a);
}

}  // namespace kvmid::kvmi1::test
