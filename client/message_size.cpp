// SPDX-License-Identifier: LGPL-2.1-or-later
#include "client/message_size.h"

#include "protocol/result.h"

namespace kvmid::client {

std::size_t payload_size(const Command& command) {
  return std::visit(
      Overloaded{
          [](const GetVersion&) -> std::size_t { return 0; },
          [](const GetGuestInfo&) -> std::size_t { return 0; },
          [](const ShutdownGuest&) -> std::size_t { return 0; },
          [](const GetGuests&) { return sizeof(kvmi_get_guests); },
          [](const PauseVcpu&) { return sizeof(kvmi_pause_vcpu); },
          [](const GetRegisters& c) { return sizeof(kvmi_get_registers) + c.msrs.bytes().size(); },
          [](const SetRegisters&) { return sizeof(kvmi_set_registers); },
          [](const GetCpuid&) { return sizeof(kvmi_get_cpuid); },
          [](const GetPageAccess&) { return sizeof(kvmi_get_page_access); },
          [](const SetPageAccess& c) { return sizeof(kvmi_set_page_access) + c.entries.bytes().size(); },
          [](const InjectException&) { return sizeof(kvmi_inject_exception); },
          [](const ReadPhysical& c) { return sizeof(kvmi_read_physical) + c.ranges.bytes().size(); },
          [](const WritePhysical& c) { return sizeof(kvmi_write_physical) + c.data.size() + c.expected.size(); },
          [](const GrantMemory&) { return sizeof(kvmi_grant_memory); },
          [](const ControlEvents&) { return sizeof(kvmi_control_events); },
          [](const ControlCr&) { return sizeof(kvmi_control_cr); },
          [](const ControlMsr&) { return sizeof(kvmi_control_msr); },
          [](const TranslateGva&) { return sizeof(kvmi_translate_gva); },
          [](const ControlSinglestep&) { return sizeof(kvmi_control_singlestep); },
          [](const SetFilter& c) { return sizeof(kvmi_set_filter) + c.terms.bytes().size(); },
          [](const GetXsave&) { return sizeof(kvmi_get_xsave); },
          [](const SetXsave& c) { return sizeof(kvmi_set_xsave) + c.area.size(); },
          [](const GetXcr&) { return sizeof(kvmi_get_xcr); },
          [](const GetMemoryMap&) { return sizeof(kvmi_get_memory_map); },
      },
      command);
}

}  // namespace kvmid::client
