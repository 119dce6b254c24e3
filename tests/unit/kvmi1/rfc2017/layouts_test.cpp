// SPDX-License-Identifier: GPL-2.0-or-later
//
// The structs and constants of rfc2017 against the published headers, as the C compiler lays them out.

#include <catch2/catch.hpp>
#include <cstddef>
#include <set>

#include "protocol/kvmi1_codec.h"
#include "protocol/wire_rfc2017.h"
#include "tests/unit/kvmi1/shared/round_trip.h"

namespace kvmid::kvmi1::test {
namespace {

const nlohmann::json& dialect() { return layouts().at("dialects").at("rfc2017"); }

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

TEST_CASE("every struct of rfc2017 has the layout of the posted header", "[kvmi1][rfc2017][layouts]") {
  Structs structs;
  structs.check("kvmi_guest", sizeof(rfc2017::Guest),
                {KVMID_LAYOUT(rfc2017::Guest, uuid)});
  structs.check("kvmi_read_physical", sizeof(rfc2017::ReadPhysical),
                {KVMID_LAYOUT(rfc2017::ReadPhysical, gpa), KVMID_LAYOUT(rfc2017::ReadPhysical, size)});
  structs.check("kvmi_read_physical_reply", sizeof(rfc2017::ReadPhysicalReply),
                {KVMID_LAYOUT(rfc2017::ReadPhysicalReply, err)});
  structs.check("kvmi_write_physical", sizeof(rfc2017::WritePhysical),
                {KVMID_LAYOUT(rfc2017::WritePhysical, gpa), KVMID_LAYOUT(rfc2017::WritePhysical, size)});
  structs.check("kvmi_error_code", sizeof(rfc2017::ErrorCode),
                {KVMID_LAYOUT(rfc2017::ErrorCode, err), KVMID_LAYOUT(rfc2017::ErrorCode, padding)});
  structs.check("kvmi_get_version_reply", sizeof(rfc2017::GetVersionReply),
                {KVMID_LAYOUT(rfc2017::GetVersionReply, err), KVMID_LAYOUT(rfc2017::GetVersionReply, version)});
  structs.check("kvmi_get_guest_info_reply", sizeof(rfc2017::GetGuestInfoReply),
                {KVMID_LAYOUT(rfc2017::GetGuestInfoReply, err), KVMID_LAYOUT(rfc2017::GetGuestInfoReply, vcpu_count),
                 KVMID_LAYOUT(rfc2017::GetGuestInfoReply, padding),
                 KVMID_LAYOUT(rfc2017::GetGuestInfoReply, tsc_speed)});
  structs.check("kvmi_get_registers_x86", sizeof(rfc2017::GetRegistersX86),
                {KVMID_LAYOUT(rfc2017::GetRegistersX86, vcpu), KVMID_LAYOUT(rfc2017::GetRegistersX86, nmsrs)});
  structs.check("kvmi_get_registers_x86_reply", sizeof(rfc2017::GetRegistersX86Reply),
                {KVMID_LAYOUT(rfc2017::GetRegistersX86Reply, err), KVMID_LAYOUT(rfc2017::GetRegistersX86Reply, mode),
                 KVMID_LAYOUT(rfc2017::GetRegistersX86Reply, regs), KVMID_LAYOUT(rfc2017::GetRegistersX86Reply, sregs),
                 KVMID_LAYOUT(rfc2017::GetRegistersX86Reply, msrs)});
  structs.check("kvmi_set_registers_x86", sizeof(rfc2017::SetRegistersX86),
                {KVMID_LAYOUT(rfc2017::SetRegistersX86, vcpu), KVMID_LAYOUT(rfc2017::SetRegistersX86, padding),
                 KVMID_LAYOUT(rfc2017::SetRegistersX86, regs)});
  structs.check("kvmi_mtrr_type", sizeof(rfc2017::MtrrType),
                {KVMID_LAYOUT(rfc2017::MtrrType, gpa)});
  structs.check("kvmi_mtrr_type_reply", sizeof(rfc2017::MtrrTypeReply),
                {KVMID_LAYOUT(rfc2017::MtrrTypeReply, err), KVMID_LAYOUT(rfc2017::MtrrTypeReply, padding),
                 KVMID_LAYOUT(rfc2017::MtrrTypeReply, type)});
  structs.check("kvmi_mtrrs", sizeof(rfc2017::Mtrrs),
                {KVMID_LAYOUT(rfc2017::Mtrrs, vcpu), KVMID_LAYOUT(rfc2017::Mtrrs, padding)});
  structs.check("kvmi_mtrrs_reply", sizeof(rfc2017::MtrrsReply),
                {KVMID_LAYOUT(rfc2017::MtrrsReply, err), KVMID_LAYOUT(rfc2017::MtrrsReply, padding),
                 KVMID_LAYOUT(rfc2017::MtrrsReply, pat), KVMID_LAYOUT(rfc2017::MtrrsReply, cap),
                 KVMID_LAYOUT(rfc2017::MtrrsReply, type)});
  structs.check("kvmi_xsave_info", sizeof(rfc2017::XsaveInfo),
                {KVMID_LAYOUT(rfc2017::XsaveInfo, vcpu), KVMID_LAYOUT(rfc2017::XsaveInfo, padding)});
  structs.check("kvmi_xsave_info_reply", sizeof(rfc2017::XsaveInfoReply),
                {KVMID_LAYOUT(rfc2017::XsaveInfoReply, err), KVMID_LAYOUT(rfc2017::XsaveInfoReply, size)});
  structs.check("kvmi_get_page_access", sizeof(rfc2017::GetPageAccess),
                {KVMID_LAYOUT(rfc2017::GetPageAccess, vcpu), KVMID_LAYOUT(rfc2017::GetPageAccess, padding),
                 KVMID_LAYOUT(rfc2017::GetPageAccess, gpa)});
  structs.check("kvmi_get_page_access_reply", sizeof(rfc2017::GetPageAccessReply),
                {KVMID_LAYOUT(rfc2017::GetPageAccessReply, err), KVMID_LAYOUT(rfc2017::GetPageAccessReply, access)});
  structs.check("kvmi_set_page_access", sizeof(rfc2017::SetPageAccess),
                {KVMID_LAYOUT(rfc2017::SetPageAccess, vcpu), KVMID_LAYOUT(rfc2017::SetPageAccess, padding),
                 KVMID_LAYOUT(rfc2017::SetPageAccess, access), KVMID_LAYOUT(rfc2017::SetPageAccess, gpa)});
  structs.check("kvmi_page_fault", sizeof(rfc2017::PageFault),
                {KVMID_LAYOUT(rfc2017::PageFault, vcpu), KVMID_LAYOUT(rfc2017::PageFault, padding),
                 KVMID_LAYOUT(rfc2017::PageFault, error), KVMID_LAYOUT(rfc2017::PageFault, gva)});
  structs.check("kvmi_inject_breakpoint", sizeof(rfc2017::InjectBreakpoint),
                {KVMID_LAYOUT(rfc2017::InjectBreakpoint, vcpu), KVMID_LAYOUT(rfc2017::InjectBreakpoint, padding)});
  structs.check("kvmi_map_physical_page_to_guest", sizeof(rfc2017::MapPhysicalPageToGuest),
                {KVMID_LAYOUT(rfc2017::MapPhysicalPageToGuest, gpa_src),
                 KVMID_LAYOUT(rfc2017::MapPhysicalPageToGuest, gfn_dest)});
  structs.check("kvmi_unmap_physical_page_from_guest", sizeof(rfc2017::UnmapPhysicalPageFromGuest),
                {KVMID_LAYOUT(rfc2017::UnmapPhysicalPageFromGuest, gfn_dest)});
  structs.check("kvmi_control_events", sizeof(rfc2017::ControlEvents),
                {KVMID_LAYOUT(rfc2017::ControlEvents, vcpu), KVMID_LAYOUT(rfc2017::ControlEvents, padding),
                 KVMID_LAYOUT(rfc2017::ControlEvents, events)});
  structs.check("kvmi_cr_control", sizeof(rfc2017::CrControl),
                {KVMID_LAYOUT(rfc2017::CrControl, enable), KVMID_LAYOUT(rfc2017::CrControl, padding),
                 KVMID_LAYOUT(rfc2017::CrControl, cr)});
  structs.check("kvmi_msr_control", sizeof(rfc2017::MsrControl),
                {KVMID_LAYOUT(rfc2017::MsrControl, enable), KVMID_LAYOUT(rfc2017::MsrControl, padding),
                 KVMID_LAYOUT(rfc2017::MsrControl, msr)});
  structs.check("kvmi_event_x86", sizeof(rfc2017::EventX86),
                {KVMID_LAYOUT(rfc2017::EventX86, vcpu), KVMID_LAYOUT(rfc2017::EventX86, mode),
                 KVMID_LAYOUT(rfc2017::EventX86, padding1), KVMID_LAYOUT(rfc2017::EventX86, event),
                 KVMID_LAYOUT(rfc2017::EventX86, regs), KVMID_LAYOUT(rfc2017::EventX86, sregs),
                 KVMID_LAYOUT(rfc2017::EventX86, msrs)});
  structs.check("kvmi_event_x86_reply", sizeof(rfc2017::EventX86Reply),
                {KVMID_LAYOUT(rfc2017::EventX86Reply, regs), KVMID_LAYOUT(rfc2017::EventX86Reply, actions),
                 KVMID_LAYOUT(rfc2017::EventX86Reply, padding)});
  structs.check("kvmi_event_cr", sizeof(rfc2017::EventCr),
                {KVMID_LAYOUT(rfc2017::EventCr, cr), KVMID_LAYOUT(rfc2017::EventCr, padding),
                 KVMID_LAYOUT(rfc2017::EventCr, old_value), KVMID_LAYOUT(rfc2017::EventCr, new_value)});
  structs.check("kvmi_event_cr_reply", sizeof(rfc2017::EventCrReply),
                {KVMID_LAYOUT(rfc2017::EventCrReply, new_val)});
  structs.check("kvmi_event_msr", sizeof(rfc2017::EventMsr),
                {KVMID_LAYOUT(rfc2017::EventMsr, msr), KVMID_LAYOUT(rfc2017::EventMsr, padding),
                 KVMID_LAYOUT(rfc2017::EventMsr, old_value), KVMID_LAYOUT(rfc2017::EventMsr, new_value)});
  structs.check("kvmi_event_msr_reply", sizeof(rfc2017::EventMsrReply),
                {KVMID_LAYOUT(rfc2017::EventMsrReply, new_val)});
  structs.check("kvmi_event_xsetbv", sizeof(rfc2017::EventXsetbv),
                {KVMID_LAYOUT(rfc2017::EventXsetbv, xcr0)});
  structs.check("kvmi_event_breakpoint", sizeof(rfc2017::EventBreakpoint),
                {KVMID_LAYOUT(rfc2017::EventBreakpoint, gpa)});
  structs.check("kvmi_event_page_fault", sizeof(rfc2017::EventPageFault),
                {KVMID_LAYOUT(rfc2017::EventPageFault, gva), KVMID_LAYOUT(rfc2017::EventPageFault, gpa),
                 KVMID_LAYOUT(rfc2017::EventPageFault, mode), KVMID_LAYOUT(rfc2017::EventPageFault, padding)});
  structs.check("kvmi_event_page_fault_reply", sizeof(rfc2017::EventPageFaultReply),
                {KVMID_LAYOUT(rfc2017::EventPageFaultReply, ctx_size),
                 KVMID_LAYOUT(rfc2017::EventPageFaultReply, ctx_data)});
  structs.check("kvmi_event_trap", sizeof(rfc2017::EventTrap),
                {KVMID_LAYOUT(rfc2017::EventTrap, vector), KVMID_LAYOUT(rfc2017::EventTrap, type),
                 KVMID_LAYOUT(rfc2017::EventTrap, err), KVMID_LAYOUT(rfc2017::EventTrap, padding),
                 KVMID_LAYOUT(rfc2017::EventTrap, cr2)});
  // The same as in later dialects, but for one name; the header counts one guest in.
  structs.check_size("kvmi_socket_hdr", sizeof(kvmi_msg_hdr));
  structs.check_size("kvmi_guests", sizeof(rfc2017::Guests) + sizeof(rfc2017::Guest));
  structs.require_all();
}

TEST_CASE("every constant of rfc2017 is the posted one", "[kvmi1][rfc2017][layouts]") {
  const auto& constants = dialect().at("constants");
  require_numbers(codec(DialectId::Rfc2017), dialect());
  REQUIRE(constants.at("messages").at("KVMI_EVENT_VCPU") == rfc2017::kEventId);
  REQUIRE(constants.at("messages").at("KVMI_EVENT_VCPU_REPLY") == rfc2017::kEventReplyId);
  REQUIRE(constants.at("messages").at("KVMI_EVENT_GUEST_ON") == rfc2017::kGuestOnId);
  REQUIRE(constants.at("messages").at("KVMI_EVENT_GUEST_OFF") == rfc2017::kGuestOffId);
  REQUIRE(constants.at("version").at("KVMI_VERSION") == GetVersionReply{}.version);
  REQUIRE(constants.at("event_limits").at("KVMI_KNOWN_EVENTS") == rfc2017::kKnownEvents);
  const auto& actions = constants.at("event_actions");
  REQUIRE(actions.at("KVMI_EVENT_ACTION_ALLOW") == kAllow2017);
  REQUIRE(actions.at("KVMI_EVENT_ACTION_SET_REGS") == kSetRegs2017);
  REQUIRE(actions.at("KVMI_EVENT_ACTION_SET_CTX") == kSetContext2017);
  REQUIRE(actions.at("KVMI_EVENT_ACTION_NOEMU") == kNoEmulation2017);
}

}  // namespace kvmid::kvmi1::test
