// SPDX-License-Identifier: GPL-2.0-or-later
// Events of both guests, and replies to them.
#include "tests/unit/bridge/pair/pair_world.h"

#include <algorithm>
#include <cstring>

namespace kvmid::bridge::test {

using kvmi1::DialectId;

namespace {

constexpr unsigned bit(Action action) { return 1U << static_cast<unsigned>(action); }

ByteBuffer bytes_of(const Event& event) {
  ByteBuffer bytes;
  DialectKvmi2{}.encode(event, Seq{1}, bytes);
  return bytes;
}

/// The event as the dialect can tell it.
Event through(const kvmi1::Codec& codec, Event event) {
  if (auto* fault = std::get_if<PageFaultData>(&event.data)) {
    // One kind of access at a time.
    for (const int one : {KVMI_PAGE_ACCESS_W, KVMI_PAGE_ACCESS_X, KVMI_PAGE_ACCESS_R}) {
      if ((fault->access & one) == 0) continue;
      fault->access = static_cast<std::uint8_t>(one);
      break;
    }
  }
  ByteBuffer bytes;
  codec.encode(kvmi1::EventMessage{event, 0}, Seq{1}, bytes);
  const auto message = codec.decode_upward(Kept2{Seq{1}, bytes}.frame());
  check(message.has_value(), "an event does not survive its own codec");
  return std::get<kvmi1::EventMessage>(*message).event;
}

}  // namespace

/// docs/dialects.md, "Events and actions".
ActionSet PairWorld::actions_of(EventKind kind) const {
  unsigned bits = bit(Action::Allow);
  if (kind == EventKind::Unhook) return ActionSet{static_cast<std::uint8_t>(bits)};
  bits |= bit(Action::Crash);  // rfc2017: by its command
  if (kind == EventKind::Cr || kind == EventKind::Msr) bits |= bit(Action::Skip);
  if (kind == EventKind::Breakpoint && !is_2017()) bits |= bit(Action::Retry) | bit(Action::Skip);
  if (kind == EventKind::PageFault || kind == EventKind::Descriptor) {
    bits |= bit(Action::Retry);
    if (dialect_ == DialectId::V7 || dialect_ == DialectId::V12) bits |= bit(Action::Skip);
  }
  return ActionSet{static_cast<std::uint8_t>(bits)};
}

// ---- up ----

bool PairWorld::may_stop(EventKind kind, VcpuId vcpu) {
  if (!kvmi1::codec(dialect_).number_of(kind) || !plain_.facts().events.has(kind)) return false;
  switch (kind) {
    case EventKind::Pause:
      return plain_.pauses(vcpu) != 0 && older_.pauses(vcpu) != 0;
    case EventKind::Trap:
      if (is_2017() && !older_.hooks().watches(vcpu, kind)) return false;  // it follows no injection there
      return quiet() && plain_.injected(vcpu) && older_.injected(vcpu);
    case EventKind::CreateVcpu:
      return quiet() && plain_.hooks().watches(vcpu, kind);
    case EventKind::Singlestep:
      return plain_.hooks().singlesteps(vcpu) && older_.hooks().singlesteps(vcpu);
    default:
      return plain_.hooks().watches(vcpu, kind) && older_.hooks().watches(vcpu, kind);
  }
}

std::optional<EventData> PairWorld::something_in(VcpuId vcpu) {
  // v6, v7 and v12 do not tell of writes that change nothing.
  const std::uint64_t value = rng_.next(), other = is_2017() && rng_.one_in(4) ? value : rng_.next();
  constexpr std::array<std::uint16_t, 3> kCrs = {0, 3, 4};
  const auto kind = static_cast<EventKind>(rng_.below(kEventCount));
  if (!may_stop(kind, vcpu)) return std::nullopt;
  switch (kind) {
    case EventKind::Cr:
      return CrData{rng_.of(kCrs), value, other};
    case EventKind::Msr:
      return MsrData{0xc0000082, value, other};
    case EventKind::Xsetbv:
      return XsetbvData{0, value, other};
    case EventKind::Breakpoint:
      return BreakpointData{Gpa{SmallGuest::kCode * kPageSize}, static_cast<std::uint8_t>(rng_.between(1, 2))};
    case EventKind::Hypercall:
      return HypercallData{};
    case EventKind::PageFault:
      return PageFaultData{Gva{value & 0xffffffffffffULL}, Gpa{0x20000 + value % 4096},
                           static_cast<std::uint8_t>(rng_.between(1, 7)), true};
    case EventKind::Trap: {
      // Another exception can be in front of the one that was injected.
      const x86::Exception& injected = *plain_.injected(vcpu);
      TrapData trap;
      trap.vector = rng_.one_in(5) ? std::uint8_t{13} : injected.vector;
      trap.error_code = injected.error_code;
      const bool displaced = trap.vector != injected.vector;
      trap.flags = displaced ? KVMI_TRAP_F_DISPLACED : KVMI_TRAP_F_INJECTED;
      if (displaced) trap.displaced_vector = injected.vector;
      return trap;
    }
    case EventKind::Descriptor:
      return DescriptorData{static_cast<std::uint8_t>(rng_.between(KVMI_DESC_IDTR, KVMI_DESC_TR)), rng_.percent(50)};
    case EventKind::CreateVcpu:
      return CreateVcpuData{};
    case EventKind::Pause:
      return PauseData{};
    case EventKind::Singlestep:
      return SinglestepData{rng_.percent(20)};
    case EventKind::Cpuid:
      return CpuidData{static_cast<std::uint32_t>(value), static_cast<std::uint32_t>(other)};
    default:
      return std::nullopt;
  }
}

void PairWorld::stop_somewhere() {
  const VcpuId vcpu{static_cast<std::uint16_t>(rng_.below(SmallGuest::kVcpus))};
  if (plain_.waits(vcpu) || older_.waits(vcpu) || raised_.contains(vcpu.value)) return;
  // What both know of the registers must be the same: what sets them is answered.
  if (!wanted_[vcpu.value].empty()) return;
  for (int tries = 0; tries < 6; ++tries) {
    if (const auto data = something_in(vcpu)) return stop(vcpu, *data);
  }
}

void PairWorld::stop(VcpuId vcpu, const EventData& data) {
  ++counts_.events;
  Event event = plain_.stop(vcpu, data);
  if (event.kind() == EventKind::CreateVcpu) {
    plain_.begin_anew(vcpu);
    older_.begin_anew(vcpu);
  }
  Event expected = through(kvmi1::codec(dialect_), event);
  expected.actions = actions_of(event.kind());
  if (auto* trap = std::get_if<TrapData>(&expected.data)) {
    const auto& raised = std::get<TrapData>(event.data);
    trap->flags = static_cast<std::uint8_t>(trap->flags | raised.flags);
    trap->displaced_vector = raised.displaced_vector;
  }
  raised_.emplace(vcpu.value, expected);
  link_.stop(older_.stop(vcpu, data));
  // What is enabled before the core knows of it is lost on the way; it is told anew by the core.
  if (event.kind() == EventKind::CreateVcpu) link_.settle();
}

void PairWorld::told(const Event& event, Seq seq) {
  if (event.kind() == EventKind::Unhook) {
    check(unhook_.has_value(), "an UNHOOK that nobody sent");
    unhook_ = seq;
    return;
  }
  const auto found = raised_.find(event.vcpu.value);
  const std::string name(name_of(event.kind()));
  check(found != raised_.end(), "an event (" + name + ") that did not happen");
  check(event.actions == found->second.actions, "an event (" + name + ") with the actions " +
                                                    std::to_string(event.actions.bits) + " and not " +
                                                    std::to_string(found->second.actions.bits));
  const ByteBuffer got = bytes_of(event), wanted = bytes_of(found->second);
  const auto differs = std::mismatch(got.begin(), got.end(), wanted.begin(), wanted.end()).first - got.begin();
  check(got == wanted, "an event (" + name + ") changes on its way, at byte " + std::to_string(differs) + " of " +
                           std::to_string(wanted.size()));
  raised_.erase(found);
  open_.emplace(event.vcpu.value, Told{event, seq});
}

// ---- down ----

void PairWorld::answer_somewhere() {
  if (open_.empty()) return;
  auto it = open_.begin();
  std::advance(it, static_cast<std::ptrdiff_t>(rng_.below(open_.size())));
  const Told told = it->second;
  const EventKind kind = told.event.kind();
  EventReply reply;
  reply.vcpu = told.event.vcpu;
  reply.event = kind;
  do {
    reply.action = static_cast<Action>(rng_.below(kActionCount));
  } while (!told.event.actions.has(reply.action) || (reply.action == Action::Crash && is_2017()));
  const bool has_value = kind == EventKind::Cr || kind == EventKind::Msr;
  if (reply.action == Action::Skip && !has_value) {
    // The instruction is read behind commands that may change it, and before others.
    if (measuring_) return;
    link_.settle();
    measuring_ = reply.vcpu;
    ++counts_.skips;
  }
  if (has_value && reply.action == Action::Allow && rng_.percent(60)) {
    const auto* cr = std::get_if<CrData>(&told.event.data);
    const auto* msr = std::get_if<MsrData>(&told.event.data);
    const std::array<std::uint64_t, 4> values = {cr != nullptr ? cr->old_value : msr->old_value,
                                                 cr != nullptr ? cr->new_value : msr->new_value, 0, rng_.next()};
    reply.value = NewValue{rng_.of(values)};
  }
  open_.erase(it);
  plain_.answered = [this](const Outcome& outcome) { wanted_[outcome.vcpu.value].push_back(outcome); };
  plain_.answer(reply);
  link_.send(reply, told.seq);
}

/// The reply has come to the guest behind the bridges.
void PairWorld::outcome(const Outcome& outcome) {
  auto& wanted = wanted_[outcome.vcpu.value];
  const std::string name(name_of(outcome.event));
  check(!wanted.empty(), "a reply (" + name + ") that nobody gave");
  Outcome want = wanted.front();
  wanted.clear();
  Outcome got = outcome;
  if (got.action == Action::Skip) got.action = Action::Allow;
  if (got.action == Action::Crash) want.value = got.value = 0;
  const auto text = [](const Outcome& o) {
    return std::string(name_of(o.action)) + ", value " + std::to_string(o.value) + ", rip " + std::to_string(o.rip);
  };
  check(got == want, "the reply to " + name + " comes to: " + text(got) + "; and not: " + text(want));
  if (measuring_ == outcome.vcpu) measuring_.reset();
}

}  // namespace kvmid::bridge::test
