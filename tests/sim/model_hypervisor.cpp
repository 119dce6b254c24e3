// SPDX-License-Identifier: GPL-2.0-or-later
#include "tests/sim/model_hypervisor.h"

#include <cstring>

#include "protocol/result.h"

namespace kvmid::sim {

namespace {

constexpr ActionSet kEveryAction{0xf};
constexpr ActionSet kNoRetry{KVMI_ACTION_BIT(KVMI_ACTION_ALLOW) | KVMI_ACTION_BIT(KVMI_ACTION_SKIP) |
                             KVMI_ACTION_BIT(KVMI_ACTION_CRASH)};
/// So often a vCPU may meet one INT3 of the guest's own in a row and be told by kvmid to try again: patches come and
/// go.
constexpr unsigned kRetriedInVainMax = 40;
constexpr ActionSet kAllowOrCrash{KVMI_ACTION_BIT(KVMI_ACTION_ALLOW) | KVMI_ACTION_BIT(KVMI_ACTION_CRASH)};

/// The command asks for more than there was; false: it gives back, or neither.
bool asks_for_more(const Command& command) {
  return std::visit(
      Overloaded{[](const ControlEvents& c) { return c.operation == Operation::Enable; },
                 [](const ControlCr& c) { return c.enable; }, [](const ControlMsr& c) { return c.enable; },
                 [](const ControlSinglestep& c) { return c.enable; }, [](const PauseVcpu&) { return true; },
                 [](const SetPageAccess& c) {
                   for (std::size_t i = 0; i < c.entries.size(); ++i)
                     if (c.entries[i].access == 0) return true;
                   return false;
                 },
                 [](const WritePhysical& c) { return (c.flags & KVMI_WRITE_UNPATCH) == 0; },
                 [](const auto&) { return false; }},
      command);
}
bool gives_back(const Command& command) {
  return std::visit(
      Overloaded{[](const ControlEvents& c) { return c.operation == Operation::Disable; },
                 [](const ControlCr& c) { return !c.enable; }, [](const ControlMsr& c) { return !c.enable; },
                 [](const SetPageAccess& c) {
                   for (std::size_t i = 0; i < c.entries.size(); ++i)
                     if (c.entries[i].access != kAllRights) return false;
                   return true;
                 },
                 [](const auto&) { return false; }},
      command);
}

}  // namespace

// ---- the guest's life ----

void ModelHypervisor::start_guest(unsigned vcpu_count) {
  vcpus_.assign(vcpu_count, Vcpu{});
  crashed_ = false;
  told_ = Wishes{};
  std::fill(memory_.begin(), memory_.end(), std::uint8_t{0x40});
  for (const auto gpa : kCode) memory_[gpa] = 0x50;
  memory_[kOwnInt3] = kInt3;
}

void ModelHypervisor::connect(const GetVersionReply& version, const HypervisorNature& nature) {
  disconnect();
  version_ = version;
  nature_ = nature;
  linked_ = true;
}

// The hook is dropped: rights, patches, events are gone in one step, and every vCPU that waited goes on.
void ModelHypervisor::disconnect() {
  linked_ = heard_ = false;
  refused_to_take_ = unhook_answered_ = false;
  unhook_.reset();
  told_ = Wishes{};
  for (Vcpu& vcpu : vcpus_) vcpu = Vcpu{};
}

void ModelHypervisor::unhook(OffReason reason, Sends& out) {
  if (unhook_) return;
  Event event;
  event.vcpu = kAllVcpus;
  event.actions = ActionSet{KVMI_ACTION_BIT(KVMI_ACTION_ALLOW)};
  event.data = UnhookData{reason};
  unhook_ = Seq{++last_seq_};
  dialect_.encode(event, *unhook_, out.emplace_back().frame);
}

bool ModelHypervisor::change_map(Sends& out) {
  if (!linked_ || !heard_) return false;
  MemoryMapChanged change;
  change.change = rng_.percent(50) ? MapChange::Added : MapChange::Flags;
  change.max_gpa = kMemoryBytes;
  change.slot = {0, kMemoryBytes, static_cast<std::uint16_t>(rng_.percent(80) ? 0 : 1), 0, 0};
  dialect_.encode(change, out.emplace_back().frame);
  return true;
}

std::string_view ModelHypervisor::garbage(Sends& out) {
  ByteBuffer& frame = out.emplace_back().frame;
  Event event;
  event.actions = kEveryAction;
  event.data = HypercallData{};
  CommandReply reply;
  switch (rng_.below(6)) {
    case 0:
      reply.id = KVMI_MSG_GET_CPUID;
      reply.body = GetCpuidReply{};
      dialect_.encode(reply, Seq{static_cast<std::uint32_t>(rng_.next() | 0x80000000U)}, frame);
      return "answers a command that is not open";
    case 1:
      event.vcpu = VcpuId{static_cast<std::uint16_t>(vcpu_count() + rng_.below(3))};
      dialect_.encode(event, Seq{++last_seq_}, frame);
      return "event of a vCPU that it does not have";
    case 2:
      dialect_.encode(Notice{.kind = NoticeKind::Revoked, .text = {}}, frame);
      return "sends a notice";
    case 3:
      dialect_.encode(event, Seq{++last_seq_}, frame);
      frame[sizeof(kvmi_msg_hdr) + offsetof(kvmi_event, actions)] = std::byte{0x1f};
      return "event with an unknown action";
    case 4:
      dialect_.encode(Command{GetVersion{}}, Seq{++last_seq_}, frame);
      return "sends a command";
    default:
      dialect_.encode(event, Seq{++last_seq_}, frame);
      frame[sizeof(kvmi_msg_hdr) + offsetof(kvmi_event, mode)] = std::byte{3};
      return "event with an unknown mode";
  }
}

// ---- a vCPU runs ----

void ModelHypervisor::raise(unsigned index, const EventData& data, ActionSet actions, Sends& out, bool through_patch) {
  Vcpu& vcpu = vcpus_[index];
  Event event;
  event.vcpu = VcpuId{static_cast<std::uint16_t>(index)};
  event.actions = actions;
  event.regs.rax = vcpu.rax;
  event.regs.rip = vcpu.address;
  event.data = data;
  vcpu.waiting = true;
  vcpu.seq = Seq{++last_seq_};
  vcpu.kind = event.kind();
  vcpu.actions = actions;
  vcpu.through_patch = through_patch;
  Sent& sent = out.emplace_back();
  dialect_.encode(event, vcpu.seq, sent.frame);
  // The thread of a vCPU may take its time between what it met and what it says: commands overtake it.
  if (rng_.percent(8)) sent.delay = microseconds(rng_.below(4000));
}

const Patch* ModelHypervisor::covering(std::uint64_t address) const {
  for (const Patch& patch : told_.patches)
    if (patch.covers(address)) return &patch;
  return nullptr;
}

void ModelHypervisor::run(unsigned index, TimePoint now, Sends& out) {
  if (index >= vcpus_.size()) return;
  Vcpu& vcpu = vcpus_[index];
  vcpu.executed_bare.reset();
  if (!linked_ || crashed_) return;
  if (vcpu.waiting || (unhook_ && !told_.none() && rng_.percent(80))) return;
  if (vcpu.pauses != 0 && !rng_.percent(25)) {  // it takes a while until a vCPU that runs hears of it
    --vcpu.pauses;
    return raise(index, PauseData{}, kAllowOrCrash, out);
  }
  if (now < vcpu.halted_until) return;
  if (vcpu.step_due) {
    vcpu.step_due = false;
    if (told_.vcpus[index].step && enabled(index, EventKind::Singlestep))
      return raise(index, SinglestepData{false}, kAllowOrCrash, out);
  }
  if (vcpu.traps_access) {
    vcpu.traps_access = false;
    if (enabled(index, EventKind::Access)) {
      AccessData data;
      data.gpa = Gpa{vcpu.address};
      data.access = KVMI_PAGE_ACCESS_R;
      data.size = 8;
      return raise(index, data, kEveryAction, out);
    }
  }
  if (vcpu.doing == Doing::Execute) return execute(index, now, out);
  if (vcpu.doing == Doing::Access) return access_memory(index, out);
  vcpu.rax = rng_.below(16);
  if (rng_.permille(4)) {
    vcpu.halted_until = now + microseconds(rng_.below(1'500'000));
    return;
  }
  const auto choice = rng_.below(100);
  if (choice < 40) {
    vcpu.doing = Doing::Execute;
    vcpu.address = rng_.of(kCode);
    return execute(index, now, out);
  }
  if (choice < 60) {
    vcpu.doing = Doing::Access;
    vcpu.address = rng_.below(kPages) << kPageShift;
    vcpu.access = rng_.percent(50) ? KVMI_PAGE_ACCESS_R : KVMI_PAGE_ACCESS_W;
    return access_memory(index, out);
  }
  something_else(index, out);
}

void ModelHypervisor::retried_by_kvmid(unsigned index, TimePoint now, Duration longest) {
  Vcpu& vcpu = vcpus_[index];
  if (vcpu.retried_in_vain++ == 0) vcpu.retried_since = now;
  if (vcpu.retried_in_vain > kRetriedInVainMax && now - vcpu.retried_since > longest)
    violate_or_go_on("I8 no hit is lost", "vCPU " + std::to_string(index) + " met the guest's own INT3 at " +
                                              hex(vcpu.address) +
                                              " again and again, and the guest never gets its exception");
}

/// The instruction at `address`: rights first, then a breakpoint, then it is done.
void ModelHypervisor::execute(unsigned index, TimePoint now, Sends& out) {
  Vcpu& vcpu = vcpus_[index];
  const std::uint64_t at = vcpu.address;
  if ((told_.pages[at >> kPageShift] & KVMI_PAGE_ACCESS_X) == 0 && !vcpu.passes_once &&
      enabled(index, EventKind::PageFault)) {
    counts_.add(Seen::PageFaults);
    return raise(index, PageFaultData{Gva{}, Gpa{at}, KVMI_PAGE_ACCESS_X, false}, kEveryAction, out);
  }
  const Patch* patch = covering(at);
  const std::uint8_t visible =
      patch != nullptr ? std::to_integer<std::uint8_t>(patch->bytes[at - patch->gpa]) : memory_[at];
  if (patch != nullptr && vcpu.must_step && now - vcpu.must_step_since < core::kStepOverMax)
    violate_or_go_on("I8 no hit is lost", "vCPU " + std::to_string(index) + " was to step over the patch at " +
                                              hex(at) + " and met it again before it executed what is under it");
  if (visible == kInt3) {
    if (enabled(index, EventKind::Breakpoint)) {
      vcpu.passes_once = false;
      vcpu.must_step = false;  // an INT3 of the guest's own under a patch: it is executed by being met
      counts_.add(patch != nullptr ? Seen::PatchHits : Seen::OwnBreakpoints);
      return raise(index, BreakpointData{Gpa{at}, 1}, kEveryAction, out, patch != nullptr);
    }
    if (patch != nullptr)
      violate_or_go_on("I8 no hit is lost", "vCPU " + std::to_string(index) + " executed the INT3 of the patch at " +
                                                hex(at) + " while its BREAKPOINT events were off: the guest got it");
  }
  if (vcpu.must_step) counts_.add(Seen::StepsOver);
  if (patch == nullptr && !vcpu.must_step) vcpu.executed_bare = at;
  executed(index);
}

void ModelHypervisor::executed(unsigned index) {
  Vcpu& vcpu = vcpus_[index];
  vcpu.doing = Doing::Nothing;
  vcpu.passes_once = false;
  vcpu.must_step = false;
  vcpu.step_due = true;
}

void ModelHypervisor::access_memory(unsigned index, Sends& out) {
  Vcpu& vcpu = vcpus_[index];
  if ((vcpu.access & ~told_.pages[vcpu.address >> kPageShift]) != 0 && !vcpu.passes_once &&
      enabled(index, EventKind::PageFault)) {
    counts_.add(Seen::PageFaults);
    return raise(index, PageFaultData{Gva{0x1000}, Gpa{vcpu.address}, vcpu.access, true}, kEveryAction, out);
  }
  executed(index);
}

void ModelHypervisor::something_else(unsigned index, Sends& out) {
  static constexpr std::array<std::uint16_t, 3> kCrs{0, 3, 4};
  const VcpuWish& told = told_.vcpus[index];
  const auto kind = static_cast<EventKind>(rng_.between(1, kEventCount - 1));
  const bool surprise =
      heard_ && rng_.permille(4);  // legal: what was switched off a moment ago, or what nobody asked for
  if (!enabled(index, kind) && !surprise) return executed(index);
  switch (kind) {
    case EventKind::Cr: {
      const std::uint16_t cr = rng_.of(kCrs);
      if (((told.crs >> cr) & 1U) == 0 && !surprise) return executed(index);
      return raise(index, CrData{cr, 1, 2}, kEveryAction, out);
    }
    case EventKind::Msr: {
      const auto which = rng_.below(kMsrs.size());
      if (((told.msrs >> which) & 1U) == 0 && !surprise) return executed(index);
      return raise(index, MsrData{kMsrs[which], 1, 2}, kEveryAction, out);
    }
    case EventKind::Xsetbv:
      return raise(index, XsetbvData{0, 1, 3}, kEveryAction, out);
    case EventKind::Hypercall:
      return raise(index, HypercallData{}, rng_.percent(70) ? kEveryAction : kNoRetry, out);
    case EventKind::Trap:
      return raise(index, TrapData{.vector = 6}, rng_.percent(70) ? kEveryAction : kNoRetry, out);
    case EventKind::Descriptor:
      return raise(index, DescriptorData{KVMI_DESC_IDTR, true}, kEveryAction, out);
    case EventKind::Cpuid:
      return raise(index, CpuidData{1, 0}, kEveryAction, out);
    case EventKind::Pause:
      return raise(index, PauseData{}, kAllowOrCrash, out);
    case EventKind::Singlestep:
      if (!told.step && !surprise) return executed(index);
      return raise(index, SinglestepData{rng_.percent(20)}, kAllowOrCrash, out);
    case EventKind::CreateVcpu: {
      if (!rng_.percent(10)) return executed(index);
      const unsigned pauses = vcpus_[index].pauses;
      counts_.add(Seen::VcpusCreated);
      vcpus_[index] = Vcpu{};
      vcpus_[index].pauses = pauses;
      if (rng_.percent(60)) told_.vcpus[index] = VcpuWish{};  // it begins anew, and has forgotten what it was told
      return raise(index, CreateVcpuData{}, kAllowOrCrash, out);
    }
    default:
      return executed(index);
  }
}

// ---- what kvmid says ----

void ModelHypervisor::deliver(const Frame& frame, TimePoint now, Sends& out) {
  const auto message = dialect_.decode_downward(frame);
  if (!message) throw Violation("I1 events are answered once", "kvmid sent a message that cannot be decoded");
  std::visit(Overloaded{[&](const Command& c) { command(frame.seq, c, out); },
                        [&](const EventReply& r) { event_reply(frame.seq, r, now, out); },
                        [&](const UnknownMessage&) {
                          throw Violation("I1 events are answered once", "kvmid sent a message with an unknown id");
                        }},
             *message);
}

void ModelHypervisor::event_reply(Seq seq, const EventReply& reply, TimePoint now, Sends&) {
  if (reply.event == EventKind::Unhook) {
    unhook_answered_ = true;
    return;
  }
  Vcpu& vcpu = vcpus_.at(reply.vcpu.value);
  if (!vcpu.waiting || vcpu.seq != seq)
    throw Violation("I1 events are answered once", "vCPU " + std::to_string(reply.vcpu.value) +
                                                       " got a reply to event " + std::to_string(seq.value) +
                                                       ", in which it does not wait");
  vcpu.waiting = false;
  vcpu.must_step_since = now;  // an event within a step gives it more time
  if (vcpu.promised == seq && reply.action == Action::Retry) vcpu.must_step = true;
  vcpu.promised.reset();
  if (reply.action == Action::Crash) crashed_ = true;
  if (reply.action == Action::Skip) {
    vcpu.doing = Doing::Nothing;
    vcpu.must_step = vcpu.passes_once = false;
    vcpu.retried_in_vain = 0;
  }
  if (reply.action != Action::Allow) return;
  switch (vcpu.kind) {
    case EventKind::PageFault:
      vcpu.passes_once = true;
      vcpu.traps_access = reply.trap_access;
      break;
    case EventKind::Breakpoint:
      vcpu.doing = Doing::Nothing;
      vcpu.retried_in_vain = 0;
      break;  // the guest has its own exception
    case EventKind::Pause:
    case EventKind::Singlestep:
    case EventKind::Access:
      break;
    default:
      vcpu.step_due = true;
      break;
  }
}

Duration ModelHypervisor::reply_delay() {
  if (rng_.permille(nature_.slow_permille)) return microseconds(rng_.below(rng_.percent(10) ? 900'000 : 60'000));
  return microseconds(10 + rng_.below(400));
}

void ModelHypervisor::reply(Seq seq, const CommandReply& reply, Sends& out) {
  Sent& sent = out.emplace_back();
  sent.delay = reply_delay();
  dialect_.encode(reply, seq, sent.frame);
}

void ModelHypervisor::command(Seq seq, const Command& command, Sends& out) {
  CommandReply answer;
  answer.id = static_cast<std::uint16_t>(id_of(command));
  const bool at_start = std::holds_alternative<GetVersion>(command) || std::holds_alternative<GetGuestInfo>(command);
  heard_ = heard_ || !at_start;
  if (!at_start && nature_.deaf_once) {
    nature_.deaf_once = false;
    return;  // never answered, and not carried out
  }
  if (asks_for_more(command) && rng_.permille(nature_.refuses_permille)) {
    answer.error = ErrorCode::NoMemory;
    ++refusals_;
    counts_.add(Seen::HypervisorRefusals);
  } else if (gives_back(command) && rng_.permille(nature_.refuses_to_take_permille)) {
    answer.error = ErrorCode::NoMemory;
    ++refusals_;
    refused_to_take_ = true;
    counts_.add(Seen::TakeBacksRefused);
  } else {
    answer.error = carry_out(command, answer.body);
  }
  if (answer.error != ErrorCode::None) answer.text = "the hypervisor of the model refuses";
  reply(seq, answer, out);
}

}  // namespace kvmid::sim
