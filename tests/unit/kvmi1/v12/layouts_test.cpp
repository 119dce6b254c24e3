// SPDX-License-Identifier: GPL-2.0-or-later
//
// The structs and constants of v12 against the published headers, as the C compiler lays them out.

#include <catch2/catch.hpp>
#include <cstddef>
#include <set>

#include "protocol/kvmi1_codec.h"
#include "protocol/wire_v12.h"
#include "tests/unit/kvmi1/shared/round_trip.h"

namespace kvmid::kvmi1::test {
namespace {

const nlohmann::json& dialect() { return layouts().at("dialects").at("v12"); }

class Structs {
 public:
  void check(const char* name, std::size_t size, const std::vector<FieldLayout>& fields) {
    CAPTURE(name);
    require_layout(dialect().at("structs").at(name), size, fields);
    names_.insert(name);
  }
  /// For one that has no struct here.
  void check_size(const char* name, std::size_t size) {
    CAPTURE(name);
    REQUIRE(dialect().at("structs").at(name).at("size") == size);
    names_.insert(name);
  }
  void require_all() const {
    for (const auto& [name, layout] : dialect().at("structs").items()) {
      CAPTURE(name);
      REQUIRE(names_.contains(name));
    }
  }

 private:
  std::set<std::string> names_;
};

}  // namespace

TEST_CASE("every struct of v12 has the layout of the published header", "[kvmi1][v12][layouts]") {
  Structs structs;
  structs.check("kvmi_msg_hdr", sizeof(kvmi_msg_hdr),
                {KVMID_LAYOUT(kvmi_msg_hdr, id), KVMID_LAYOUT(kvmi_msg_hdr, size), KVMID_LAYOUT(kvmi_msg_hdr, seq)});
  structs.check("kvmi_error_code", sizeof(v12::ErrorCode),
                {KVMID_LAYOUT(v12::ErrorCode, err), KVMID_LAYOUT(v12::ErrorCode, padding)});
  structs.check("kvmi_get_version_reply", sizeof(v12::GetVersionReply),
                {KVMID_LAYOUT(v12::GetVersionReply, version), KVMID_LAYOUT(v12::GetVersionReply, max_msg_size),
                 KVMID_LAYOUT(v12::GetVersionReply, features)});
  structs.check("kvmi_vm_check_command", sizeof(v12::Check),
                {KVMID_LAYOUT(v12::Check, id), KVMID_LAYOUT(v12::Check, padding1), KVMID_LAYOUT(v12::Check, padding2)});
  structs.check("kvmi_vm_check_event", sizeof(v12::Check),
                {KVMID_LAYOUT(v12::Check, id), KVMID_LAYOUT(v12::Check, padding1), KVMID_LAYOUT(v12::Check, padding2)});
  structs.check("kvmi_vm_get_info_reply", sizeof(v12::VmGetInfoReply),
                {KVMID_LAYOUT(v12::VmGetInfoReply, vcpu_count), KVMID_LAYOUT(v12::VmGetInfoReply, padding)});
  structs.check("kvmi_event_hdr", sizeof(v12::EventHdr),
                {KVMID_LAYOUT(v12::EventHdr, event), KVMID_LAYOUT(v12::EventHdr, padding)});
  structs.check("kvmi_vm_control_events", sizeof(v12::VmControlEvents),
                {KVMID_LAYOUT(v12::VmControlEvents, event_id), KVMID_LAYOUT(v12::VmControlEvents, enable),
                 KVMID_LAYOUT(v12::VmControlEvents, padding1), KVMID_LAYOUT(v12::VmControlEvents, padding2)});
  structs.check("kvmi_vm_read_physical", sizeof(v12::VmReadPhysical),
                {KVMID_LAYOUT(v12::VmReadPhysical, gpa), KVMID_LAYOUT(v12::VmReadPhysical, size),
                 KVMID_LAYOUT(v12::VmReadPhysical, padding1), KVMID_LAYOUT(v12::VmReadPhysical, padding2)});
  structs.check("kvmi_vm_write_physical", sizeof(v12::VmWritePhysical),
                {KVMID_LAYOUT(v12::VmWritePhysical, gpa), KVMID_LAYOUT(v12::VmWritePhysical, size),
                 KVMID_LAYOUT(v12::VmWritePhysical, padding1), KVMID_LAYOUT(v12::VmWritePhysical, padding2)});
  structs.check("kvmi_vcpu_hdr", sizeof(v12::VcpuHdr),
                {KVMID_LAYOUT(v12::VcpuHdr, vcpu), KVMID_LAYOUT(v12::VcpuHdr, padding1),
                 KVMID_LAYOUT(v12::VcpuHdr, padding2)});
  structs.check("kvmi_vm_pause_vcpu", sizeof(v12::VmPauseVcpu),
                {KVMID_LAYOUT(v12::VmPauseVcpu, vcpu), KVMID_LAYOUT(v12::VmPauseVcpu, wait),
                 KVMID_LAYOUT(v12::VmPauseVcpu, padding1), KVMID_LAYOUT(v12::VmPauseVcpu, padding2)});
  structs.check("kvmi_vcpu_event", sizeof(v12::VcpuEvent),
                {KVMID_LAYOUT(v12::VcpuEvent, size), KVMID_LAYOUT(v12::VcpuEvent, vcpu),
                 KVMID_LAYOUT(v12::VcpuEvent, padding), KVMID_LAYOUT(v12::VcpuEvent, arch)});
  structs.check("kvmi_vcpu_event_reply", sizeof(v12::VcpuEventReply),
                {KVMID_LAYOUT(v12::VcpuEventReply, action), KVMID_LAYOUT(v12::VcpuEventReply, event),
                 KVMID_LAYOUT(v12::VcpuEventReply, padding1), KVMID_LAYOUT(v12::VcpuEventReply, padding2)});
  structs.check("kvmi_vcpu_control_events", sizeof(v12::VcpuControlEvents),
                {KVMID_LAYOUT(v12::VcpuControlEvents, event_id), KVMID_LAYOUT(v12::VcpuControlEvents, enable),
                 KVMID_LAYOUT(v12::VcpuControlEvents, padding1), KVMID_LAYOUT(v12::VcpuControlEvents, padding2)});
  structs.check("kvmi_vcpu_event_breakpoint", sizeof(v12::VcpuEventBreakpoint),
                {KVMID_LAYOUT(v12::VcpuEventBreakpoint, gpa), KVMID_LAYOUT(v12::VcpuEventBreakpoint, insn_len),
                 KVMID_LAYOUT(v12::VcpuEventBreakpoint, padding)});
  structs.check("kvmi_vm_control_cleanup", sizeof(v12::VmControlCleanup),
                {KVMID_LAYOUT(v12::VmControlCleanup, enable), KVMID_LAYOUT(v12::VmControlCleanup, padding)});
  structs.check("kvmi_page_access_entry", sizeof(PageAccessEntry),
                {KVMID_LAYOUT(PageAccessEntry, gpa), KVMID_LAYOUT(PageAccessEntry, access),
                 KVMID_LAYOUT(PageAccessEntry, padding)});
  structs.check("kvmi_vm_set_page_access", sizeof(v12::VmSetPageAccess),
                {KVMID_LAYOUT(v12::VmSetPageAccess, count), KVMID_LAYOUT(v12::VmSetPageAccess, padding1),
                 KVMID_LAYOUT(v12::VmSetPageAccess, padding2)});
  structs.check("kvmi_vcpu_event_pf", sizeof(v12::VcpuEventPf),
                {KVMID_LAYOUT(v12::VcpuEventPf, gva), KVMID_LAYOUT(v12::VcpuEventPf, gpa),
                 KVMID_LAYOUT(v12::VcpuEventPf, access), KVMID_LAYOUT(v12::VcpuEventPf, padding1),
                 KVMID_LAYOUT(v12::VcpuEventPf, padding2), KVMID_LAYOUT(v12::VcpuEventPf, padding3)});
  structs.check("kvmi_vcpu_control_singlestep", sizeof(v12::VcpuControlSinglestep),
                {KVMID_LAYOUT(v12::VcpuControlSinglestep, enable), KVMID_LAYOUT(v12::VcpuControlSinglestep, padding)});
  structs.check("kvmi_vcpu_event_singlestep", sizeof(v12::VcpuEventSinglestep),
                {KVMID_LAYOUT(v12::VcpuEventSinglestep, failed), KVMID_LAYOUT(v12::VcpuEventSinglestep, padding)});
  structs.check("kvmi_vcpu_translate_gva", sizeof(v12::VcpuTranslateGva),
                {KVMID_LAYOUT(v12::VcpuTranslateGva, gva)});
  structs.check("kvmi_vcpu_translate_gva_reply", sizeof(v12::VcpuTranslateGvaReply),
                {KVMID_LAYOUT(v12::VcpuTranslateGvaReply, gpa)});
  structs.check("kvmi_vcpu_get_info_reply", sizeof(v12::VcpuGetInfoReply),
                {KVMID_LAYOUT(v12::VcpuGetInfoReply, tsc_speed)});
  structs.check("kvmi_vcpu_event_arch", sizeof(v12::VcpuEventArch),
                {KVMID_LAYOUT(v12::VcpuEventArch, mode), KVMID_LAYOUT(v12::VcpuEventArch, padding),
                 KVMID_LAYOUT(v12::VcpuEventArch, regs), KVMID_LAYOUT(v12::VcpuEventArch, sregs),
                 KVMID_LAYOUT(v12::VcpuEventArch, msrs)});
  structs.check("kvmi_vcpu_get_registers", sizeof(v12::VcpuGetRegisters),
                {KVMID_LAYOUT(v12::VcpuGetRegisters, nmsrs), KVMID_LAYOUT(v12::VcpuGetRegisters, padding1),
                 KVMID_LAYOUT(v12::VcpuGetRegisters, padding2)});
  structs.check("kvmi_vcpu_get_registers_reply", sizeof(v12::VcpuGetRegistersReply),
                {KVMID_LAYOUT(v12::VcpuGetRegistersReply, mode), KVMID_LAYOUT(v12::VcpuGetRegistersReply, padding),
                 KVMID_LAYOUT(v12::VcpuGetRegistersReply, regs), KVMID_LAYOUT(v12::VcpuGetRegistersReply, sregs),
                 KVMID_LAYOUT(v12::VcpuGetRegistersReply, msrs)});
  structs.check("kvmi_vcpu_get_cpuid", sizeof(v12::VcpuGetCpuid),
                {KVMID_LAYOUT(v12::VcpuGetCpuid, function), KVMID_LAYOUT(v12::VcpuGetCpuid, index)});
  structs.check("kvmi_vcpu_get_cpuid_reply", sizeof(v12::VcpuGetCpuidReply),
                {KVMID_LAYOUT(v12::VcpuGetCpuidReply, eax), KVMID_LAYOUT(v12::VcpuGetCpuidReply, ebx),
                 KVMID_LAYOUT(v12::VcpuGetCpuidReply, ecx), KVMID_LAYOUT(v12::VcpuGetCpuidReply, edx)});
  structs.check("kvmi_vcpu_control_cr", sizeof(v12::VcpuControlCr),
                {KVMID_LAYOUT(v12::VcpuControlCr, cr), KVMID_LAYOUT(v12::VcpuControlCr, enable),
                 KVMID_LAYOUT(v12::VcpuControlCr, padding1), KVMID_LAYOUT(v12::VcpuControlCr, padding2)});
  structs.check("kvmi_vcpu_event_cr", sizeof(v12::VcpuEventCr),
                {KVMID_LAYOUT(v12::VcpuEventCr, cr), KVMID_LAYOUT(v12::VcpuEventCr, padding),
                 KVMID_LAYOUT(v12::VcpuEventCr, old_value), KVMID_LAYOUT(v12::VcpuEventCr, new_value)});
  structs.check("kvmi_vcpu_event_cr_reply", sizeof(v12::VcpuEventCrReply),
                {KVMID_LAYOUT(v12::VcpuEventCrReply, new_val)});
  structs.check("kvmi_vcpu_event_trap", sizeof(v12::VcpuEventTrap),
                {KVMID_LAYOUT(v12::VcpuEventTrap, nr), KVMID_LAYOUT(v12::VcpuEventTrap, padding1),
                 KVMID_LAYOUT(v12::VcpuEventTrap, padding2), KVMID_LAYOUT(v12::VcpuEventTrap, error_code),
                 KVMID_LAYOUT(v12::VcpuEventTrap, address)});
  structs.check("kvmi_vcpu_inject_exception", sizeof(v12::VcpuInjectException),
                {KVMID_LAYOUT(v12::VcpuInjectException, nr), KVMID_LAYOUT(v12::VcpuInjectException, padding1),
                 KVMID_LAYOUT(v12::VcpuInjectException, padding2), KVMID_LAYOUT(v12::VcpuInjectException, error_code),
                 KVMID_LAYOUT(v12::VcpuInjectException, address)});
  structs.check("kvmi_vcpu_event_xsetbv", sizeof(v12::VcpuEventXsetbv),
                {KVMID_LAYOUT(v12::VcpuEventXsetbv, xcr), KVMID_LAYOUT(v12::VcpuEventXsetbv, padding),
                 KVMID_LAYOUT(v12::VcpuEventXsetbv, old_value), KVMID_LAYOUT(v12::VcpuEventXsetbv, new_value)});
  structs.check("kvmi_vcpu_get_xcr", sizeof(v12::VcpuGetXcr),
                {KVMID_LAYOUT(v12::VcpuGetXcr, xcr), KVMID_LAYOUT(v12::VcpuGetXcr, padding)});
  structs.check("kvmi_vcpu_get_xcr_reply", sizeof(v12::VcpuGetXcrReply),
                {KVMID_LAYOUT(v12::VcpuGetXcrReply, value)});
  structs.check("kvmi_vcpu_get_mtrr_type", sizeof(v12::VcpuGetMtrrType),
                {KVMID_LAYOUT(v12::VcpuGetMtrrType, gpa)});
  structs.check("kvmi_vcpu_get_mtrr_type_reply", sizeof(v12::VcpuGetMtrrTypeReply),
                {KVMID_LAYOUT(v12::VcpuGetMtrrTypeReply, type), KVMID_LAYOUT(v12::VcpuGetMtrrTypeReply, padding)});
  structs.check("kvmi_vcpu_event_descriptor", sizeof(v12::VcpuEventDescriptor),
                {KVMID_LAYOUT(v12::VcpuEventDescriptor, descriptor), KVMID_LAYOUT(v12::VcpuEventDescriptor, write),
                 KVMID_LAYOUT(v12::VcpuEventDescriptor, padding)});
  structs.check("kvmi_vcpu_control_msr", sizeof(v12::VcpuControlMsr),
                {KVMID_LAYOUT(v12::VcpuControlMsr, enable), KVMID_LAYOUT(v12::VcpuControlMsr, padding1),
                 KVMID_LAYOUT(v12::VcpuControlMsr, padding2), KVMID_LAYOUT(v12::VcpuControlMsr, msr)});
  structs.check("kvmi_vcpu_event_msr", sizeof(v12::VcpuEventMsr),
                {KVMID_LAYOUT(v12::VcpuEventMsr, msr), KVMID_LAYOUT(v12::VcpuEventMsr, padding),
                 KVMID_LAYOUT(v12::VcpuEventMsr, old_value), KVMID_LAYOUT(v12::VcpuEventMsr, new_value)});
  structs.check("kvmi_vcpu_event_msr_reply", sizeof(v12::VcpuEventMsrReply),
                {KVMID_LAYOUT(v12::VcpuEventMsrReply, new_val)});
  structs.check("kvmi_features", sizeof(v12::Features),
                {KVMID_LAYOUT(v12::Features, singlestep), KVMID_LAYOUT(v12::Features, padding)});
  structs.check_size("kvmi_vcpu_get_xsave_reply", kXsaveSize);
  structs.check_size("kvmi_vcpu_set_xsave", kXsaveSize);
  structs.require_all();
}

TEST_CASE("kvm_msrs is 8 bytes and kvm_xsave 4096", "[kvmi1][v12][layouts]") {
  // C++ compilers give the structs of the system's header 16 and 4100.
  const auto& kvm = layouts().at("kvm_uapi").at("structs");
  REQUIRE(kvm.at("kvm_msrs").at("size") == sizeof(v12::Msrs));
  REQUIRE(kvm.at("kvm_xsave").at("size") == kXsaveSize);
  REQUIRE(kvm.at("kvm_msr_entry").at("size") == sizeof(kvmi_x86_msr));
  REQUIRE(sizeof(v12::VcpuGetRegistersReply) == 472);
}

TEST_CASE("the MSRs of a v12 event are those of kvmi_x86_event_msrs", "[kvmi1][v12][layouts]") {
  const auto& arch = dialect().at("structs").at("kvmi_vcpu_event_arch");
  const std::pair<const char*, std::size_t> kOurs[] = {
      {"sysenter_cs", offsetof(kvmi_x86_event_msrs, sysenter_cs)},
      {"sysenter_esp", offsetof(kvmi_x86_event_msrs, sysenter_esp)},
      {"sysenter_eip", offsetof(kvmi_x86_event_msrs, sysenter_eip)},
      {"efer", offsetof(kvmi_x86_event_msrs, efer)},
      {"star", offsetof(kvmi_x86_event_msrs, star)},
      {"lstar", offsetof(kvmi_x86_event_msrs, lstar)},
      {"cstar", offsetof(kvmi_x86_event_msrs, cstar)},
      {"pat", offsetof(kvmi_x86_event_msrs, pat)},
      {"shadow_gs", offsetof(kvmi_x86_event_msrs, kernel_gs_base)},
  };
  std::size_t seen = 0;
  for (const auto& leaf : arch.at("leaves")) {
    const auto path = leaf.at("path").get<std::string>();
    for (const auto& [name, offset] : kOurs) {
      if (path != std::string("msrs.") + name) continue;
      CAPTURE(path);
      ++seen;
      REQUIRE(leaf.at("offset") == offsetof(v12::VcpuEventArch, msrs) + offset);
    }
  }
  REQUIRE(seen == std::size(kOurs));
}

TEST_CASE("every constant of v12 is the published one", "[kvmi1][v12][layouts]") {
  const auto& constants = dialect().at("constants");
  require_numbers(codec(DialectId::V12), dialect());
  REQUIRE(constants.at("messages").at("KVMI_VM_EVENT") == v12::kVmEventId);
  REQUIRE(constants.at("messages").at("KVMI_VCPU_EVENT") == v12::kVcpuEventId);
  REQUIRE(constants.at("version").at("KVMI_VERSION") == GetVersionReply{}.version);
  const auto& actions = constants.at("event_actions");
  REQUIRE(actions.at("KVMI_EVENT_ACTION_CONTINUE") == kContinue);
  REQUIRE(actions.at("KVMI_EVENT_ACTION_RETRY") == kRetry);
  REQUIRE(actions.at("KVMI_EVENT_ACTION_CRASH") == kCrash);
  // Passed on as they are.
  REQUIRE(constants.at("page_access").at("KVMI_PAGE_ACCESS_R") == KVMI_PAGE_ACCESS_R);
  REQUIRE(constants.at("page_access").at("KVMI_PAGE_ACCESS_W") == KVMI_PAGE_ACCESS_W);
  REQUIRE(constants.at("page_access").at("KVMI_PAGE_ACCESS_X") == KVMI_PAGE_ACCESS_X);
  REQUIRE(constants.at("descriptors").at("KVMI_DESC_IDTR") == static_cast<int>(KVMI_DESC_IDTR));
  REQUIRE(constants.at("descriptors").at("KVMI_DESC_GDTR") == static_cast<int>(KVMI_DESC_GDTR));
  REQUIRE(constants.at("descriptors").at("KVMI_DESC_LDTR") == static_cast<int>(KVMI_DESC_LDTR));
  REQUIRE(constants.at("descriptors").at("KVMI_DESC_TR") == static_cast<int>(KVMI_DESC_TR));
}

}  // namespace kvmid::kvmi1::test
