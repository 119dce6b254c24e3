// SPDX-License-Identifier: GPL-2.0-or-later
#include "tests/unit/bridge/pair/pair_world.h"

#include <cstring>

namespace kvmid::bridge::test {

namespace {

void offer_more(SmallGuest& guest) {
  CommandSet more;
  more.add(CommandId::GetCpuid);
  more.add(CommandId::GetXsave);
  more.add(CommandId::SetXsave);
  more.add(CommandId::GetXcr);
  more.add(CommandId::ControlSinglestep);
  guest.change_facts().commands = more;
}

bool is_pages(const Command& command) { return std::holds_alternative<SetPageAccess>(command); }
bool is_wish(const Command& command) {
  return std::holds_alternative<ControlEvents>(command) || std::holds_alternative<ControlCr>(command) ||
         std::holds_alternative<ControlMsr>(command) || std::holds_alternative<ControlSinglestep>(command);
}

}  // namespace

PairWorld::PairWorld(kvmi1::DialectId dialect, std::uint64_t seed)
    : dialect_(dialect),
      rng_(seed),
      patches_(plain_),
      link_((offer_more(plain_), offer_more(older_), dialect), older_, rng_) {
  plain_.own_bytes = [this](Gpa gpa, std::span<std::byte> out) {
    check(patches_.read(AddressSpace::Normal, gpa, out).has_value(), "code cannot be read");
  };
  older_.answered = [this](const Outcome& outcome) { this->outcome(outcome); };
  link_.told = [this](const Passed<Upward>& passed) {
    if (const auto* reply = std::get_if<CommandReply>(&passed.message)) return answered(*reply, passed.seq);
    const auto* event = std::get_if<Event>(&passed.message);
    check(event != nullptr, "something comes up that is neither an event nor an answer");
    told(*event, passed.seq);
  };
  begin();
}

/// What the core asks first. From then on the guest of KVMI 2 offers what the other does.
void PairWorld::begin() {
  const auto any = [this](const Command& command) {
    pending_.emplace(++last_seq_, Kept2{});
    link_.send(command, Seq{last_seq_});
    link_.settle();
    check(pending_.empty(), "the first questions are not answered");
  };
  any(GetVersion{});
  check(offered_.bits != 0, "nothing is offered");
  any(GetGuestInfo{});
}

// ---- commands ----

void PairWorld::send(Made made) {
  const Seq seq{++last_seq_};
  if (is_wish(made.command)) wish_ = seq.value;
  if (is_pages(made.command)) page_wish_ = seq.value;
  ++counts_.commands;
  pending_.emplace(seq.value, expected_of(made.command, seq));
  link_.send(made.command, seq);
}

ByteBuffer PairWorld::as_bytes(CommandReply reply) {
  reply.text = {};  // each says it in its own words
  ByteBuffer bytes;
  kvmi2_.encode(reply, Seq{}, bytes);
  return bytes;
}

Kept2 PairWorld::expected_of(const Command& command, Seq seq) {
  hypervisor::CommandServer server(plain_, patches_);
  auto reply = documented(command);
  if (!reply) reply = serve(command, server);
  return Kept2{seq, as_bytes(*reply)};
}

void PairWorld::answered(const CommandReply& reply, Seq seq) {
  const auto found = pending_.find(seq.value);
  const std::string name(name_of(static_cast<CommandId>(reply.id)));
  check(found != pending_.end(), name + " is answered, and nobody asked, or twice");
  const Kept2 expected = std::move(found->second);
  pending_.erase(found);
  if (wish_ == seq.value) wish_ = 0;
  if (page_wish_ == seq.value) page_wish_ = 0;
  if (expected.bytes.empty()) {  // of begin()
    check(reply.error == ErrorCode::None, name + " is refused at the start");
    if (const auto* version = std::get_if<GetVersionReply>(&reply.body)) {
      offered_ = version->commands;
      plain_.change_facts().events = version->events;
    }
    if (const auto* info = std::get_if<GetGuestInfoReply>(&reply.body)) {
      info_ = *info;
      check(info->vcpu_count == SmallGuest::kVcpus, "the number of vCPUs is lost");
      check(info->max_gpa == plain_.facts().max_gpa, "the size of memory is lost");
      if (dialect_ == kvmi1::DialectId::V12 || is_v6_or_v7()) {
        check(info->physical_address_bits == 40 && info->tsc_hz == plain_.facts().tsc_hz, "a fact is lost");
      }
    }
    return;
  }
  const ByteBuffer got = as_bytes(reply);
  if (reply.error != ErrorCode::None) {
    ++counts_.refusals;
    check(!reply.text.empty(), name + " is refused without a sentence");
  }
  if (reply.error == ErrorCode::Stale) ++counts_.stale;
  if (got == expected.bytes) return;
  const auto wanted = kvmi2_.decode_upward(expected.frame());
  const auto& want = std::get<CommandReply>(*wanted);
  check(false, name + " with seq " + std::to_string(seq.value) + " is answered " + std::string(name_of(reply.error)) +
                   " (" + std::string(reply.text) + "), " + std::to_string(got.size()) + " bytes, and not " +
                   std::string(name_of(want.error)) + ", " + std::to_string(expected.bytes.size()) + " bytes");
}

// ---- the run ----

void PairWorld::step() {
  const std::uint64_t what = rng_.below(100);
  if (what < 60) {
    for (std::uint64_t i = rng_.between(1, 4); i != 0; --i) link_.step();
  } else if (what < 85) {
    if (pending_.size() > 40) return;
    if (auto made = make()) send(std::move(*made));
  } else if (what < 91) {
    stop_somewhere();
  } else if (what < 97) {
    answer_somewhere();
  } else if (rng_.one_in(4)) {
    compare();
  } else if (quiet() && !measuring_) {
    // The guest stores something, also over a patch.
    const Gpa gpa = somewhere();
    const auto bytes = random_bytes(rng_.between(1, 20));
    for (SmallGuest* guest : {&plain_, &older_}) {
      check(guest->write_physical(AddressSpace::Normal, gpa, bytes).has_value(), "the guest cannot store");
    }
  }
}

/// At rest both guests are alike.
void PairWorld::compare() {
  while (is_2017() && !open_.empty()) {
    answer_somewhere();  // registers that were set go with the reply
    link_.settle();
  }
  link_.settle();
  check(pending_.empty(), std::to_string(pending_.size()) + " commands are never answered, the first with seq " +
                              (pending_.empty() ? "" : std::to_string(pending_.begin()->first)));
  check(raised_.empty(), "an event never arrives");
  for (const auto& [vcpu, outcomes] : wanted_) check(outcomes.empty(), "a reply never arrives");
  // These follow a command, so nobody needs to enable them; CREATE_VCPU is the guest's, and so is told of all vCPUs.
  EventSet compared = plain_.facts().events;
  compared.bits &= ~(KVMI_EVENT_BIT(KVMI_EVENT_PAUSE) | KVMI_EVENT_BIT(KVMI_EVENT_TRAP) |
                     KVMI_EVENT_BIT(KVMI_EVENT_UNHOOK) | KVMI_EVENT_BIT(KVMI_EVENT_CREATE_VCPU));
  if (dialect_ == kvmi1::DialectId::V12) compared.bits &= ~KVMI_EVENT_BIT(KVMI_EVENT_SINGLESTEP);
  const std::string difference = plain_.difference(older_, compared, !is_2017());
  check(difference.empty(), "the guests are not alike: " + difference);
  ++counts_.comparisons;
}

void PairWorld::finish() {
  compare();
  while (!open_.empty()) {
    answer_somewhere();
    link_.settle();
  }
  compare();
  if (is_2017()) return;  // it has no UNHOOK
  unhook_ = Seq{};
  link_.leave(OffReason::Suspend);
  link_.settle();
  check(unhook_->value != 0, "UNHOOK never arrives");
  EventReply reply;
  reply.vcpu = kAllVcpus;
  reply.event = EventKind::Unhook;
  check(!link_.let_go(), "the guest is let go before UNHOOK is answered");
  link_.send(reply, *unhook_);
  check(link_.let_go(), "the guest is not let go");
}

}  // namespace kvmid::bridge::test
