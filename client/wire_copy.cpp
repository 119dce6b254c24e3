// SPDX-License-Identifier: LGPL-2.1-or-later
#include "client/wire_copy.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "protocol/handshake.h"

namespace kvmid::client {
namespace {

template <class Data>
void specific(const Data& data, kvmid_event& out) {
  const auto set = Overloaded{
      [&](const UnhookData& d) { out.data.unhook.reason = static_cast<std::uint8_t>(d.reason); },
      [&](const CrData& d) {
        out.data.cr = {d.cr, {}, d.old_value, d.new_value};
      },
      [&](const MsrData& d) {
        out.data.msr = {d.msr, 0, d.old_value, d.new_value};
      },
      [&](const XsetbvData& d) {
        out.data.xsetbv = {d.xcr, 0, d.old_value, d.new_value};
      },
      [&](const BreakpointData& d) {
        out.data.breakpoint = {d.gpa.value, d.insn_length, {}};
      },
      [&](const HypercallData&) {},
      [&](const PageFaultData& d) {
        out.data.page_fault = {d.gva.value, d.gpa.value, d.access, static_cast<std::uint8_t>(d.gva_valid ? 1 : 0), {}};
      },
      [&](const TrapData& d) {
        out.data.trap = {d.vector, d.kind, d.flags, d.displaced_vector, d.error_code, d.address};
      },
      [&](const DescriptorData& d) {
        out.data.descriptor = {d.descriptor, static_cast<std::uint8_t>(d.write ? 1 : 0), {}};
      },
      [&](const CreateVcpuData&) {},
      [&](const PauseData&) {},
      [&](const SinglestepData& d) { out.data.singlestep.failed = d.failed ? 1 : 0; },
      [&](const CpuidData& d) {
        out.data.cpuid = {d.function, d.index};
      },
      [&](const AccessData& d) {
        out.data.access = {d.gva.value, d.gpa.value, d.access, d.size, d.index, 0, {}};
        std::copy(d.data.begin(), d.data.end(), out.data.access.data);
      },
  };
  set(data);
}

}  // namespace

kvmi_welcome to_wire(const Welcome& welcome) {
  kvmi_welcome out{};
  out.struct_size = sizeof out;
  out.magic = KVMI_HELLO_MAGIC;
  out.version = KVMI_VERSION;
  out.agent = welcome.agent.value;
  out.max_payload = welcome.max_payload;
  out.requests_max = welcome.requests_max;
  out.queue_bytes_max = welcome.queue_bytes_max;
  out.deadline_us = static_cast<std::uint32_t>(welcome.deadline.count());
  out.priority = welcome.priority;
  out.commands = welcome.commands.bits;
  out.events = welcome.events.bits;
  out.vcpu_count = welcome.vcpu_count;
  out.role = static_cast<std::uint8_t>(welcome.role);
  out.default_action = static_cast<std::uint8_t>(welcome.default_action);
  std::memcpy(out.uuid, welcome.guest.bytes.data(), sizeof out.uuid);
  copy_text(welcome.guest_name, out.guest_name, sizeof out.guest_name);
  return out;
}

kvmi_guest_entry to_wire(const GuestEntry& guest) {
  kvmi_guest_entry out{};
  std::memcpy(out.uuid, guest.uuid.bytes.data(), sizeof out.uuid);
  copy_text(guest.name, out.name, sizeof out.name);
  out.vcpu_count = guest.vcpu_count;
  out.state = guest.away ? KVMI_GUEST_AWAY : KVMI_GUEST_ONLINE;
  return out;
}

kvmid_event to_wire(const ReceivedEvent& received) {
  const Event& event = received.event;
  kvmid_event out;
  std::memset(&out, 0, sizeof out);  // also the union's larger members
  out.seq = received.seq.value;
  out.common.vcpu = event.vcpu.value;
  out.common.event = static_cast<std::uint8_t>(event.kind());
  out.common.mode = event.mode;
  out.common.actions = event.actions.bits;
  out.common.flags = event.decide ? KVMI_EVENT_F_DECIDE : 0;
  out.common.address_space = static_cast<std::uint8_t>(event.space);
  out.common.deadline_us = event.deadline_us;
  out.common.cookie = event.cookie;
  out.common.regs = event.regs;
  out.common.sregs = event.sregs;
  out.common.msrs = event.msrs;
  out.common.dr6 = event.dr6;
  out.common.dr7 = event.dr7;
  std::visit([&](const auto& data) { specific(data, out); }, event.data);
  return out;
}

kvmid_message to_wire(const AgentMessage& message) {
  kvmid_message out;
  std::memset(&out, 0, sizeof out);
  std::visit(Overloaded{
                 [&](const ReceivedEvent& event) {
                   out.kind = KVMI_MSG_EVENT;
                   out.data.event = to_wire(event);
                 },
                 [&](const ReceivedNotice& notice) {
                   out.kind = KVMI_MSG_NOTICE;
                   kvmi_notice& to = out.data.notice;
                   to.kind = static_cast<std::uint8_t>(notice.kind);
                   to.event = static_cast<std::uint8_t>(notice.event);
                   to.action = static_cast<std::uint8_t>(notice.action);
                   to.vcpu = notice.vcpu.value;
                   to.error_code = -static_cast<std::int32_t>(notice.error);
                   to.agent = notice.agent.value;
                   to.seq = notice.event_seq.value;
                   to.count = notice.count;
                   copy_text(notice.text, out.text, sizeof out.text);
                   to.text_size = static_cast<std::uint16_t>(std::strlen(out.text));
                 },
                 [&](const GuestEntry& guest) {
                   out.kind = KVMI_MSG_GUEST_ON;
                   out.data.guest_on.guest = to_wire(guest);
                 },
                 [&](const GuestGone& gone) {
                   out.kind = KVMI_MSG_GUEST_OFF;
                   kvmi_guest_off& to = out.data.guest_off;
                   std::memcpy(to.uuid, gone.uuid.bytes.data(), sizeof to.uuid);
                   to.reason = static_cast<std::uint8_t>(gone.reason);
                   copy_text(gone.text, out.text, sizeof out.text);
                   to.text_size = static_cast<std::uint32_t>(std::strlen(out.text));
                 },
             },
             message);
  return out;
}

}  // namespace kvmid::client
