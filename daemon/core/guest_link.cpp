// SPDX-License-Identifier: GPL-2.0-or-later
// The link to a guest's hypervisor: it comes, says what it is, answers, breaks the protocol, goes.
#include <algorithm>

#include "daemon/core/guest_machine.h"

namespace kvmid::core {

namespace {
constexpr std::string_view kGone = "the hypervisor is gone";
}

// Down --connected--> AskingVersion
void GuestMachine::on_hypervisor_connected(const HypervisorHello& hello, TimePoint now, Effects& out) {
  if (link_ != Link::Down) return;  // the shell refuses a second hypervisor before it comes here
  if (known_ && hello.start_time != hello_.start_time) {
    // The guest was started anew: pages and MSRs that agents named belong to the one that is gone.
    drop_agents("the guest was started anew", out);
    known_ = false;
  }
  hello_ = hello;
  link_ = Link::AskingVersion;
  send_command(GetVersion{}, OpenCommand{.id = CommandId::GetVersion, .purpose = Purpose::LinkUp}, now, out);
}

void GuestMachine::drop_agents(std::string_view text, Effects& out) {
  present_.for_each([&](AgentSlot slot) {
    const AgentId id = agents_[slot].id;
    out.emplace_back(SendGuestOff{id, OffReason::Reset, text});
    out.emplace_back(CloseAgent{id, text});
    subscriptions_.remove(slot);
    pages_.remove(slot, [](PageRange) {});
    forget_patches(slot);
    filters_.remove(slot);
  });
  present_ = {};
}

/// Each going is told once, whatever follows it.
void GuestMachine::send_off(AgentSlot slot, OffReason reason, std::string_view text, Effects& out) {
  if (agents_[slot].told_off) return;
  agents_[slot].told_off = true;
  out.emplace_back(SendGuestOff{agents_[slot].id, reason, text});
}

void GuestMachine::link_reply(const CommandReply& reply, const OpenCommand& open, TimePoint now, Effects& out) {
  if (reply.error != ErrorCode::None) return break_link("refused to say its version or facts", Seq{}, VcpuId{}, out);
  // AskingVersion --version--> AskingInfo
  if (open.id == CommandId::GetVersion) {
    const auto* version = std::get_if<GetVersionReply>(&reply.body);
    if (version == nullptr) return break_link("answered GET_VERSION without its version", Seq{}, VcpuId{}, out);
    version_ = *version;
    version_.events.bits &= kEveryEvent.bits;
    if (version_.version != KVMI_VERSION) return break_link("speaks another version", Seq{}, VcpuId{}, out);
    link_ = Link::AskingInfo;
    send_command(GetGuestInfo{}, OpenCommand{.id = CommandId::GetGuestInfo, .purpose = Purpose::LinkUp}, now, out);
    return;
  }
  // AskingInfo --info--> Up: what agents still wish is told again.
  const auto* info = std::get_if<GetGuestInfoReply>(&reply.body);
  if (info == nullptr) return break_link("answered GET_GUEST_INFO without its facts", Seq{}, VcpuId{}, out);
  const GetGuestInfoReply facts = *info;
  if (facts.vcpu_count == 0 || facts.vcpu_count > kVcpusMax)
    return break_link("has no vCPU, or more than can be served", Seq{}, VcpuId{}, out);
  if (facts.arch != KVMI_ARCH_X86) return break_link("has an architecture that is not known", Seq{}, VcpuId{}, out);
  if (known_ && facts.vcpu_count != facts_.vcpu_count)
    drop_agents("the guest came back with another number of vCPUs", out);
  if (!known_ || facts.vcpu_count != facts_.vcpu_count) {
    subscriptions_ = Subscriptions(facts.vcpu_count);
    filters_ = FilterTable(facts.vcpu_count);
    vcpus_.assign(facts.vcpu_count, VcpuMachine{});
    waiting_.assign((facts.vcpu_count + 63U) / 64U, 0);
  }
  facts_ = facts;
  known_ = true;
  told_.assign(facts.vcpu_count, {});
  anew_.assign(facts.vcpu_count, false);
  told_pages_.clear();
  touched_pages_.clear();
  pauses_.assign(facts.vcpu_count, PauseState{false, false, std::vector<std::uint16_t>(kAgentsPerGuestMax, 0)});
  forget_steps();
  steps_refused_ = false;
  unhook_.reset();
  link_ = Link::Up;
  if (ram_bytes_ != 0) ask_for_map(now, out);
  out.emplace_back(GuestReady{});
  out.emplace_back(Report{.fact = Fact::Linked, .text = "hypervisor is connected"});
  present_.for_each([&](AgentSlot slot) {
    // It may have come back with less than it had.
    if (enforce_grant(slot))
      send_revoked(slot, ErrorCode::NotSupported, "the hypervisor came back without some of the events or commands",
                   out);
  });
  if (!present_.any()) return;
  touch_all_pages();
  guest_on_ = tell_soon(now, out);
}

/// Agents whose guest was away learn that it is back when it has all that they wish of it.
void GuestMachine::tell_guest_on(Effects& out) {
  if (guest_on_ == 0 || told_done_ < guest_on_ || link_ != Link::Up) return;
  guest_on_ = 0;
  present_.for_each([&](AgentSlot slot) {
    if (agents_[slot].told_off) out.emplace_back(SendGuestOn{agents_[slot].id});
    agents_[slot].told_off = false;
  });
}

void GuestMachine::on_hypervisor_message(Seq seq, const Upward& message, TimePoint now, Effects& out) {
  hypervisor_message(seq, message, now, out);
  proceed(now, out);
}

void GuestMachine::hypervisor_message(Seq seq, const Upward& message, TimePoint now, Effects& out) {
  if (link_ == Link::Down) return;
  if (const auto* event = std::get_if<Event>(&message)) return event_arrived(seq, *event, now, out);
  if (const auto* change = std::get_if<MemoryMapChanged>(&message)) return map_changed(*change, now, out);
  const auto* reply = std::get_if<CommandReply>(&message);
  if (reply == nullptr) return break_link("sent a message that hypervisors do not send", seq, VcpuId{}, out);

  const auto open = ledger_.close(seq);
  if (!open) return break_link("answered a command that is not open", seq, VcpuId{}, out);
  const auto broken = [&](std::string_view text) {
    // Out of the ledger already, so it is not among those that the loss of the link answers.
    if (open->purpose == Purpose::Agent && is_present(open->slot, open->agent)) {
      agents_[open->slot].requests.release(1);
      refuse(open->slot, open->agent_seq, static_cast<std::uint16_t>(open->id), ErrorCode::NoDevice, kGone, out);
    }
    break_link(text, seq, VcpuId{}, out);
  };
  if (reply->id != static_cast<std::uint16_t>(open->id)) return broken("answered with the id of another command");

  switch (open->purpose) {
    case Purpose::LinkUp:
      return link_reply(*reply, *open, now, out);
    case Purpose::Wish:
      return wish_confirmed(*open, *reply, now, out);
    case Purpose::Registers:
      if (reply->error != ErrorCode::None) staged_refused(*open, reply->error, "what was staged was not loaded", out);
      return;
    case Purpose::Map:
      if (seq == map_asked_) map_known(*reply);
      return;
    case Purpose::Hold:
      if (reply->error != ErrorCode::None) hold_refused(open->vcpu, reply->error, out);
      return;
    case Purpose::Agent:
      break;
  }
  if (open->bytes != 0) write_answered(*open, out);
  // The size of an answer is the hypervisor's word; the agent must get what it asked for.
  if (const auto* read = std::get_if<ReadPhysicalReply>(&reply->body); read && read->data.size() != open->tag)
    return broken("answered READ_PHYSICAL with another size than asked");
  if (const auto* regs = std::get_if<GetRegistersReply>(&reply->body); regs && regs->msrs.size() != open->tag)
    return broken("answered GET_REGISTERS with other MSRs than asked");
  if (const auto* map = std::get_if<GetMemoryMapReply>(&reply->body))
    for (std::size_t i = 0; i < map->slots.size(); ++i)
      if (map->slots[i].address_space != open->tag)
        return broken("answered GET_MEMORY_MAP with a slot of another address space than asked");
  if (!is_present(open->slot, open->agent)) return;  // asked by an agent that is gone
  agents_[open->slot].requests.release(1);
  if (reply->error != ErrorCode::None && kGuestChanging.has(open->id))
    out.emplace_back(Report{.fact = Fact::CommandFailed,
                            .agent = open->agent,
                            .vcpu = open->vcpu,
                            .seq = open->agent_seq,
                            .command = open->id,
                            .error = reply->error,
                            .text = "the hypervisor refused it"});
  CommandReply passed_on = *reply;
  // Generations are kvmid's own.
  if (auto* read = std::get_if<ReadPhysicalReply>(&passed_on.body)) read->cookie = open->cookie;
  if (open->id == CommandId::WritePhysical && reply->error == ErrorCode::None)
    passed_on.body = WritePhysicalReply{open->cookie};
  if (open->id == CommandId::WritePhysical && reply->error == ErrorCode::Stale)
    passed_on.body = WritePhysicalReply{generations(static_cast<AddressSpace>(open->tag)).current()};
  answer(open->slot, open->agent_seq, passed_on, out);
}

/// Whatever was read before may be somewhere else now, or gone.
void GuestMachine::map_changed(const MemoryMapChanged& change, TimePoint now, Effects& out) {
  if (link_ != Link::Up) return break_link("told of a change of its memory map before its facts", Seq{}, VcpuId{}, out);
  const auto space = static_cast<AddressSpace>(change.slot.address_space);
  generations(space).change_map();
  facts_.max_gpa = change.max_gpa;
  ++counters_.map_changes;
  if (ram_bytes_ == 0 || space != AddressSpace::Normal) return;
  out.emplace_back(RamMapChanged{generations(space).current()});
  ask_for_map(now, out);
}

void GuestMachine::on_hypervisor_malformed(const DecodeError&, TimePoint, Effects& out) {
  if (link_ == Link::Down) return;
  break_link("sent a message that cannot be decoded", Seq{}, VcpuId{}, out);
}

void GuestMachine::break_link(std::string_view text, Seq seq, VcpuId vcpu, Effects& out) {
  ++counters_.protocol_errors;
  out.emplace_back(Report{.fact = Fact::ProtocolError, .vcpu = vcpu, .seq = seq, .text = text});
  out.emplace_back(CloseHypervisor{OffReason::ProtocolError, text});
  on_hypervisor_lost(OffReason::ProtocolError, TimePoint{}, out);
}

// Any --lost--> Down: nothing that the hypervisor was told holds any more, and nobody waits for it.
void GuestMachine::on_hypervisor_lost(OffReason reason, TimePoint, Effects& out) {
  if (link_ == Link::Down) return;
  link_ = Link::Down;
  guest_on_ = 0;
  unhook_.reset();
  for (VcpuMachine& vcpu : vcpus_) vcpu.abandon();
  std::fill(waiting_.begin(), waiting_.end(), 0);
  for (PauseState& pause : pauses_) {
    pause.asked = pause.hold_asked = false;
    std::fill(pause.counts.begin(), pause.counts.end(), std::uint16_t{0});
  }
  // A wish that was under way was not confirmed: its agent is told so, and it does not hold.
  if (busy_ && !undoing_) undo_wish(TimePoint{}, out);
  fail_open_commands(ErrorCode::NoDevice, kGone, out);
  told_.assign(vcpus_.size(), {});
  told_pages_.clear();
  forget_steps();
  forget_ram();
  for (Generations& generations : generations_) generations.change_map();  // what happens meanwhile is not seen
  touched_pages_.clear();  // all are told anew when the link is up
  out.emplace_back(Report{.fact = Fact::LinkLost, .text = "hypervisor is gone"});
  present_.for_each(
      [&](AgentSlot slot) { send_off(slot, reason, "the hypervisor is gone; wishes are kept until it is back", out); });
}

void GuestMachine::fail_open_commands(ErrorCode error, std::string_view text, Effects& out) {
  ledger_.drain([&](const OpenCommand& open) {
    if (open.purpose != Purpose::Agent || !is_present(open.slot, open.agent)) return;
    agents_[open.slot].requests.release(1);
    refuse(open.slot, open.agent_seq, static_cast<std::uint16_t>(open.id), error, text, out);
  });
  for (const WishChange& change : wishes_) {
    if (!is_present(change.slot, change.agent)) continue;
    agents_[change.slot].requests.release(1);
    refuse(change.slot, change.seq, static_cast<std::uint16_t>(id_of(change.command)), error, text, out);
  }
  wishes_.clear();
  busy_ = undoing_ = false;
  wish_parts_open_ = 0;
  wish_parts_.clear();
  wish_parts_sent_ = 0;
}

std::optional<Seq> GuestMachine::send_command(const Command& command, const OpenCommand& open, TimePoint now,
                                              Effects& out) {
  OpenCommand entry = open;
  entry.deadline = now + limits_.command_timeout;
  const auto seq = ledger_.open(entry);
  if (seq) out.emplace_back(SendCommand{*seq, command});
  return seq;
}

}  // namespace kvmid::core
