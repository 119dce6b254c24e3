// SPDX-License-Identifier: GPL-2.0-or-later
//
// Merging: whatever is said, in whatever order, the verdict is what the rules say of the whole list of votes.

#include <algorithm>
#include <cstdlib>
#include <optional>
#include <vector>

#include "daemon/core/vcpu_machine.h"
#include "tests/fuzz/byte_source.h"

using namespace kvmid;
using namespace kvmid::core;

namespace {

constexpr AgentSlot kAgents = 6;

void require(bool holds) {
  if (!holds) std::abort();
}

/// One vote that counted, as the rules see it.
struct Said {
  Voter voter;
  Action action{};
  bool has_cookie = false;
  std::uint64_t cookie = 0;
  std::optional<std::uint64_t> value{};
};

/// The higher priority wins; of equals who attached first.
bool outranks(const Voter& a, const Voter& b) {
  return a.priority != b.priority ? a.priority > b.priority : a.id < b.id;
}

void check(const Verdict& verdict, const std::vector<Said>& said) {
  if (said.empty()) {
    require(verdict.votes == 0 && verdict.defaults == 0 && verdict.decided_by == AgentId{});
    return;
  }
  Action strictest = Action::Allow;
  for (const Said& s : said) strictest = std::max(strictest, s.action);
  require(verdict.reply.action == strictest);
  const Voter* decider = nullptr;
  const Said* valued = nullptr;
  bool all_have_cookie = true;
  std::optional<std::uint64_t> oldest;
  std::optional<std::uint64_t> newest;
  for (const Said& s : said) {
    if (s.value && (valued == nullptr || outranks(s.voter, valued->voter))) valued = &s;
    if (s.action != strictest) continue;
    if (decider == nullptr || outranks(s.voter, *decider)) decider = &s.voter;
    all_have_cookie = all_have_cookie && s.has_cookie;
    if (!s.has_cookie) continue;
    oldest = std::min(oldest.value_or(s.cookie), s.cookie);
    newest = std::max(newest.value_or(s.cookie), s.cookie);
  }
  require(verdict.decided_by == decider->id);
  if (strictest == Action::Allow) {
    require(verdict.reply.has_cookie == oldest.has_value());
    if (oldest) require(verdict.reply.cookie == *oldest);
  } else {
    require(verdict.reply.has_cookie == all_have_cookie);
    if (all_have_cookie) require(verdict.reply.cookie == *newest);
  }
  const auto* value = std::get_if<NewValue>(&verdict.reply.value);
  require((value != nullptr) == (valued != nullptr && strictest == Action::Allow));
  if (value != nullptr) require(value->value == *valued->value && verdict.value_by == valued->voter.id);
}

void run_event(fuzz::ByteSource& source, VcpuMachine& machine, TimePoint& now) {
  std::vector<Voter> voters;
  for (AgentSlot slot = 0; slot < kAgents; ++slot)
    voters.push_back({slot, AgentId{1U + source.pick(200) * kAgents + slot}, source.pick(3),
                      static_cast<Action>(source.pick(kActionCount))});
  Event event;
  event.actions = ActionSet{static_cast<std::uint8_t>(1 + source.pick(15))};
  event.data = CrData{4, 0, 1};
  machine.begin(event, Seq{7}, Seq{8}, event.cookie, now);
  for (const Voter& voter : voters)
    for (std::uint32_t owed = source.pick(3); owed != 0; --owed) {
      machine.tell(voter.slot);
      machine.owe(voter.slot, now + std::chrono::milliseconds(1 + source.pick(50)));
    }

  std::vector<Said> said;
  const auto say_default = [&](const Voter& voter) {
    if (!machine.owes(voter.slot)) return;
    const Action action = machine.default_vote(voter);
    require(event.actions.has(action) && !machine.owes(voter.slot));
    said.push_back({voter, action});
  };
  while (machine.pending().any()) {
    const Voter& voter = voters[source.pick(kAgents)];
    const unsigned owed = machine.owed(voter.slot);
    switch (source.pick(8)) {
      case 0: say_default(voter); break;
      case 1:
        if (owed == 1) say_default(voter);
        else machine.release_one(voter);
        break;
      case 2: {
        const std::byte area[24]{};
        machine.stage_xsave(voter.slot, Bytes(area).first(source.pick(25)));
        break;
      }
      case 3: machine.stage_registers(voter.slot, kvmi_x86_regs{}); break;
      case 4:
        now += std::chrono::milliseconds(source.pick(60));
        machine.expired(now).for_each([&](AgentSlot slot) { say_default(voters[slot]); });
        require(!machine.next_deadline() || *machine.next_deadline() > now);
        break;
      default: {
        EventReply reply;
        reply.action = static_cast<Action>(source.pick(kActionCount));
        if (!event.actions.has(reply.action)) reply.action = mildest(event.actions);
        reply.has_cookie = source.coin();
        if (reply.has_cookie) reply.cookie = source.any<std::uint8_t>();
        std::optional<std::uint64_t> value;
        if (source.one_in(3)) value = source.any<std::uint8_t>();
        if (value) reply.value = NewValue{*value};
        machine.vote(voter, reply);
        if (owed != 0) said.push_back({voter, reply.action, reply.has_cookie, reply.cookie, value});
        require(machine.owed(voter.slot) == (owed == 0 ? 0 : owed - 1));
        break;
      }
    }
    if (source.empty())
      for (const Voter& left : voters) say_default(left);
  }
  require(machine.waiting() && !machine.next_deadline());
  const Verdict verdict = machine.finish();
  require(!machine.waiting() && verdict.hypervisor_seq == Seq{7} && verdict.event_seq == Seq{8});
  check(verdict, said);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fuzz::ByteSource source(std::span(data, size));
  VcpuMachine machine;
  TimePoint now{std::chrono::hours(1)};
  while (!source.empty()) run_event(source, machine, now);
  return 0;
}
