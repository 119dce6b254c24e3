// SPDX-License-Identifier: GPL-2.0-or-later
// One line for each input and effect.
#include <cstdio>

#include "protocol/result.h"
#include "tests/sim/world.h"

namespace kvmid::sim {

namespace {

std::string vcpu_text(VcpuId vcpu) { return vcpu == kAllVcpus ? " all" : " vcpu " + std::to_string(vcpu.value); }

}  // namespace

std::string text_of(const Command& command) {
  std::string text(name_of(id_of(command)));
  std::visit(Overloaded{
                 [&](const ControlEvents& c) {
                   static constexpr std::array<std::string_view, 3> kOperations{" set ", " enable ", " disable "};
                   text += vcpu_text(c.vcpu);
                   text += kOperations[static_cast<std::size_t>(c.operation)];
                   text += hex(c.events.bits) + (c.role == Role::Decider ? " decider" : " observer");
                 },
                 [&](const ControlCr& c) {
                   text += vcpu_text(c.vcpu) + (c.enable ? " on" : " off") + " CR" + std::to_string(c.cr);
                 },
                 [&](const ControlMsr& c) { text += vcpu_text(c.vcpu) + (c.enable ? " on " : " off ") + hex(c.msr); },
                 [&](const ControlSinglestep& c) { text += vcpu_text(c.vcpu) + (c.enable ? " on" : " off"); },
                 [&](const SetPageAccess& c) {
                   for (std::size_t i = 0; i < c.entries.size(); ++i)
                     text += " page " + std::to_string(c.entries[i].gpa >> kPageShift) + "+" +
                             std::to_string(c.entries[i].pages) + "=" + std::to_string(c.entries[i].access);
                 },
                 [&](const WritePhysical& c) {
                   text += " " + hex(c.gpa.value) + "+" + std::to_string(c.data.size());
                   if ((c.flags & KVMI_WRITE_PATCH) != 0) text += " PATCH";
                   if ((c.flags & KVMI_WRITE_UNPATCH) != 0) text += " UNPATCH";
                   if ((c.flags & KVMI_WRITE_EXPECT) != 0) text += " EXPECT";
                   if ((c.flags & KVMI_WRITE_COOKIE) != 0) text += " COOKIE " + std::to_string(c.cookie);
                   if (c.space != AddressSpace::Normal) text += " SMM";
                 },
                 [&](const SetFilter& c) {
                   text += vcpu_text(c.vcpu) + " " + std::string(name_of(c.event)) + " else " +
                           std::string(name_of(c.action)) + " terms " + std::to_string(c.terms.size());
                 },
                 [&](const auto& c) {
                   if constexpr (requires { c.vcpu; }) text += vcpu_text(c.vcpu);
                 },
             },
             command);
  return text;
}

std::string text_of(const Event& event) {
  std::string text = std::string(name_of(event.kind())) + vcpu_text(event.vcpu) + " actions " + hex(event.actions.bits);
  if (const auto* hit = std::get_if<BreakpointData>(&event.data)) text += " at " + hex(hit->gpa.value);
  if (const auto* fault = std::get_if<PageFaultData>(&event.data))
    text += " at " + hex(fault->gpa.value) + " access " + std::to_string(fault->access);
  if (const auto* cr = std::get_if<CrData>(&event.data)) text += " CR" + std::to_string(cr->cr);
  if (const auto* msr = std::get_if<MsrData>(&event.data)) text += " MSR " + hex(msr->msr);
  return text;
}

std::string text_of(const EventReply& reply) {
  std::string text =
      std::string(name_of(reply.event)) + vcpu_text(reply.vcpu) + " " + std::string(name_of(reply.action));
  if (reply.step_over) text += " STEP_OVER";
  if (reply.trap_access) text += " TRAP_ACCESS";
  if (!std::holds_alternative<std::monostate>(reply.value)) text += " VALUE";
  return text;
}

void World::say(unsigned guest, const std::string& text) const {
  char head[64];
  const double ms = std::chrono::duration<double, std::milli>(now_ - TimePoint{std::chrono::hours(1)}).count();
  std::snprintf(head, sizeof head, "%8llu %11.3f ms guest %u  ", static_cast<unsigned long long>(steps_ + 1), ms,
                guest);
  trace_(head + text);
}

void World::say_effects(unsigned guest) const {
  const auto agent = [](AgentId id) { return "agent " + std::to_string(id.value); };
  for (const core::Effect& effect : effects_) {
    std::string text = "    -> ";
    std::visit(Overloaded{
                   [&](const core::SendCommand& e) {
                     text += "hypervisor: command " + std::to_string(e.seq.value) + " " + text_of(e.command);
                   },
                   [&](const core::SendEventReply& e) {
                     text += "hypervisor: reply to event " + std::to_string(e.seq.value) + " " + text_of(e.reply);
                   },
                   [&](const core::SendEvent& e) {
                     text += agent(e.agent) + ": event " + std::to_string(e.seq.value) + " " + text_of(*e.event) +
                             (e.decide ? " decide in " + std::to_string(e.deadline_us) + " us" : " observe");
                   },
                   [&](const core::SendReply& e) {
                     text += agent(e.agent) + ": reply " + std::to_string(e.seq.value) + " " +
                             std::string(name_of(static_cast<CommandId>(e.reply.id))) + " " +
                             std::string(name_of(e.reply.error)) + " " + std::string(e.reply.text);
                   },
                   [&](const core::SendNotice& e) {
                     text += agent(e.agent) + ": notice " + std::string(name_of(e.notice.kind)) + " event " +
                             std::to_string(e.notice.event_seq.value) + " " + std::string(name_of(e.notice.action)) +
                             " " + std::string(name_of(e.notice.error)) + " " + std::string(e.notice.text);
                   },
                   [&](const core::SendGuestOn& e) { text += agent(e.agent) + ": GUEST_ON"; },
                   [&](const core::SendGuestOff& e) {
                     text +=
                         agent(e.agent) + ": GUEST_OFF " + std::string(name_of(e.reason)) + " " + std::string(e.text);
                   },
                   [&](const core::CloseAgent& e) { text += "close " + agent(e.agent) + ": " + std::string(e.reason); },
                   [&](const core::CloseHypervisor& e) { text += "close the hypervisor: " + std::string(e.text); },
                   [&](const core::GuestReady&) { text += "the guest is ready"; },
                   [&](const core::Report& e) { text += "report " + std::string(e.text); },
                   [&](const auto&) {},  // guest RAM: it is not shared here
               },
               effect);
    say(guest, text);
  }
}

}  // namespace kvmid::sim
