// SPDX-License-Identifier: GPL-2.0-or-later
// One seed, one run: agents come, wish, vote, stay silent and die; the hypervisor answers when it likes, refuses, goes
// and comes back. After each step nothing may be owed for longer than its deadline, and whenever nothing is under way
// the hypervisor must know just the union of what agents were told they have.
#include <array>
#include <catch2/catch.hpp>
#include <cstdlib>
#include <random>

#include "tests/unit/core/core_harness.h"

namespace kvmid::core::testing {

namespace {

constexpr std::uint16_t kVcpus = 3;
constexpr std::uint64_t kPages = 24;
constexpr std::array<std::byte, 24> kArea{};

/// What an agent was told that it has.
struct Belief {
  HypervisorState has;
  Grant grant;
  std::map<std::uint32_t, std::pair<Command, std::vector<kvmi_page_access_entry>>> asked;  // by seq
};

class Run {
 public:
  explicit Run(std::uint64_t seed) : random_(seed), guest_(kVcpus) { guest_.answering = false; }

  void go(unsigned steps) {
    guest_.answer_all();
    for (unsigned i = 0; i < steps; ++i) {
      act();
      learn();
      check();
      if (i % 50 == 49) settle();
    }
    settle();
    while (!agents_.empty()) lose(agents_.begin()->first);
    settle();
    HypervisorState nothing;
    nothing.vcpus.resize(kVcpus);
    REQUIRE(guest_.state == nothing);
    REQUIRE_FALSE(guest_.machine.has_agents());
    REQUIRE(open_.empty());
    REQUIRE(answered_ > steps / 20);
  }

 private:
  std::uint64_t pick(std::uint64_t below) {
    return std::uniform_int_distribution<std::uint64_t>(0, below - 1)(random_);
  }
  bool chance(unsigned percent) { return pick(100) < percent; }
  VcpuId some_vcpu(bool or_all) {
    return or_all && chance(40) ? kAllVcpus : VcpuId{static_cast<std::uint16_t>(pick(kVcpus))};
  }
  AgentId some_agent() {
    auto it = agents_.begin();
    std::advance(it, static_cast<std::ptrdiff_t>(pick(agents_.size())));
    return it->first;
  }

  void act() {
    if (agents_.empty() || (agents_.size() < 6 && chance(4))) return attach();
    switch (pick(16)) {
      case 0:
      case 1:
      case 2:
      case 3:
        return wish(some_agent());
      case 4:
      case 5:
      case 6:
        return event();
      case 7:
      case 8:
      case 9:
        return vote(some_agent());
      case 10:
      case 11:
      case 12:
        if (!guest_.unanswered.empty()) answer();
        return;
      case 13:
        return pass(std::chrono::milliseconds(pick(60)));
      case 14:
        if (chance(15)) lose(some_agent());
        return;
      default:
        if (chance(3)) return reconnect();
        ask(some_agent(), GetCpuid{});
    }
  }

  void attach() {
    Grant grant = full_grant();
    grant.priority = static_cast<std::uint32_t>(pick(3));
    grant.deadline = std::chrono::milliseconds(20 + pick(80));
    grant.pause_max = 300ms;
    grant.default_action = static_cast<Action>(pick(kActionCount));
    grant.quota.pages_max = 16;
    grant.quota.requests_max = 8;
    const AgentId id = guest_.attach(grant, chance(50) ? KVMI_HELLO_OUTCOMES : 0);
    agents_[id].grant = grant;
    agents_[id].has.vcpus.resize(kVcpus);
  }
  void lose(AgentId id) {
    agents_.erase(id);
    guest_.lose(id);
    for (const auto& vcpu : guest_.machine.info().vcpus)
      for (const AgentId owing : vcpu.waits_for) REQUIRE(owing != id);
  }
  void ask(AgentId id, const Command& command, const std::vector<kvmi_page_access_entry>& entries = {}) {
    const Seq seq = guest_.command(id, command);
    if (agents_.count(id) != 0) agents_[id].asked[seq.value] = {command, entries};
    ++asked_;
  }
  void wish(AgentId id) {
    static constexpr std::uint32_t kCrs[] = {0, 3, 4};
    switch (pick(7)) {
      case 0:
      case 1:
        return ask(id, ControlEvents{some_vcpu(true), static_cast<Operation>(pick(3)),
                                     chance(70) ? Role::Decider : Role::Observer,
                                     EventSet{(pick(1U << kEventCount) & ~KVMI_EVENT_BIT(KVMI_EVENT_PAUSE))}});
      case 2:
        return ask(id, ControlCr{some_vcpu(true), chance(60), kCrs[pick(3)]});
      case 3:
        return ask(id, ControlMsr{some_vcpu(true), chance(60), static_cast<std::uint32_t>(pick(4))});
      case 4:
        return ask(id, ControlSinglestep{some_vcpu(false), chance(60)});
      case 5:
        return ask(id, PauseVcpu{some_vcpu(true)});
      default: {
        static constexpr unsigned kRights[] = {0, kR, kR | kW, kR | kX, kRwx, kRwx};
        std::vector<kvmi_page_access_entry> entries;
        for (std::uint64_t i = 0, n = 1 + pick(3); i < n; ++i)
          entries.push_back(pages(pick(kPages), static_cast<std::uint32_t>(1 + pick(5)), kRights[pick(6)]));
        return ask(id, SetPageAccess{AddressSpace::Normal, std::span<const kvmi_page_access_entry>(entries)}, entries);
      }
    }
  }
  bool is_stopped(std::uint16_t vcpu) const {
    const auto info = guest_.machine.info().vcpus[vcpu];
    return info.waiting || info.held;
  }
  void event() {
    const auto vcpu = static_cast<std::uint16_t>(pick(kVcpus));
    if (!guest_.machine.online() || is_stopped(vcpu)) return;
    const EventData kinds[] = {
        HypercallData{},
        CrData{static_cast<std::uint16_t>(pick(6)), 0, 1},
        MsrData{static_cast<std::uint32_t>(pick(5)), 0, 1},
        PauseData{},
        CreateVcpuData{},
        SinglestepData{},
        PageFaultData{Gva{}, Gpa{pick(kPages) * kPageSize}, static_cast<std::uint8_t>(1U << pick(3)), false}};
    const ActionSet actions{static_cast<std::uint8_t>(1 + pick(15))};
    const Seq seq = guest_.event(vcpu, kinds[pick(std::size(kinds))], actions);
    open_[seq.value] = actions;
  }
  void vote(AgentId id) {
    const ToAgent* told = guest_.last_event(id);
    if (told == nullptr) return;
    EventReply reply = guest_.reply_to(id, static_cast<Action>(pick(kActionCount)));
    if (chance(10)) reply.event = EventKind::Trap;
    if (chance(10)) reply.vcpu = some_vcpu(false);
    const Seq seq = told->seq;
    const VcpuId vcpu = told->event.vcpu;  // copies: the record grows
    if (chance(30)) ask(id, SetRegisters{vcpu, {}});
    if (chance(15)) ask(id, SetXsave{vcpu, kArea});
    guest_.vote_as(id, seq, reply);
  }
  void answer() {
    const bool refuse = chance(8) && guest_.machine.online();
    guest_.refuse = [&](const ToHypervisor& sent) {
      // Taking back is not refused here: then the hypervisor would rightly know more than the union.
      const bool grows = std::visit(
          Overloaded{[](const ControlEvents& c) { return c.operation == Operation::Enable; },
                     [](const ControlCr& c) { return c.enable; }, [](const ControlMsr& c) { return c.enable; },
                     [](const ControlSinglestep& c) { return c.enable; }, [](const PauseVcpu&) { return true; },
                     [](const auto&) { return false; }},
          sent.command);
      const bool taken =
          std::any_of(sent.entries.begin(), sent.entries.end(), [&](const auto& e) { return e.access == 0; });
      return refuse && (grows || taken) ? ErrorCode::NoMemory : ErrorCode::None;
    };
    guest_.answer(pick(guest_.unanswered.size()));
    guest_.refuse = [](const auto&) { return ErrorCode::None; };
  }
  void reconnect() {
    guest_.lose_hypervisor();
    open_.clear();
    learn();
    if (chance(30)) wish(agents_.begin()->first);
    guest_.connect();
    guest_.answer_one();
    guest_.answer_one();
    settle();
  }
  void pass(Duration time) { guest_.pass(time); }

  /// Answers of this step become beliefs; verdicts close their events.
  void learn() {
    for (const ToAgent& sent : guest_.to_agents) {
      const auto agent = agents_.find(sent.agent);
      if (agent == agents_.end()) continue;
      Belief& belief = agent->second;
      if (sent.kind == ToAgent::Kind::Notice && sent.notice.kind == NoticeKind::Revoked) revoked_ = true;
      if (sent.kind != ToAgent::Kind::Reply) continue;
      const auto asked = belief.asked.find(sent.seq.value);
      REQUIRE(asked != belief.asked.end());  // each command is answered once
      if (sent.reply.error == ErrorCode::None) believe(belief, asked->second.first, asked->second.second);
      belief.asked.erase(asked);
    }
    for (const ToHypervisor& sent : guest_.to_hypervisor) {
      if (!sent.is_event_reply) continue;
      const auto event = open_.find(sent.seq.value);
      REQUIRE(event != open_.end());  // each event is answered once
      REQUIRE(event->second.has(sent.reply.action));
      open_.erase(event);
      ++answered_;
    }
    // What agents may answer next time is kept; the rest was seen.
    std::vector<ToAgent> events;
    for (const auto& [id, belief] : agents_)
      if (const ToAgent* told = guest_.last_event(id)) events.push_back(*told);
    guest_.forget();
    guest_.to_agents = std::move(events);
  }
  static void believe(Belief& belief, const Command& command, const std::vector<kvmi_page_access_entry>& entries) {
    const auto each = [&](VcpuId vcpu, auto&& f) {
      for (std::size_t i = 0; i < kVcpus; ++i)
        if (vcpu == kAllVcpus || vcpu.value == i) f(belief.has.vcpus[i]);
    };
    if (const auto* c = std::get_if<ControlEvents>(&command))
      each(c->vcpu, [&](auto& v) {
        if (c->operation == Operation::Set) v.events = c->events.bits;
        if (c->operation == Operation::Enable) v.events |= c->events.bits;
        if (c->operation == Operation::Disable) v.events &= ~c->events.bits;
      });
    if (const auto* c = std::get_if<ControlCr>(&command))
      each(c->vcpu, [&](auto& v) { c->enable ? (void)v.crs.insert(c->cr) : (void)v.crs.erase(c->cr); });
    if (const auto* c = std::get_if<ControlMsr>(&command))
      each(c->vcpu, [&](auto& v) { c->enable ? (void)v.msrs.insert(c->msr) : (void)v.msrs.erase(c->msr); });
    if (const auto* c = std::get_if<ControlSinglestep>(&command))
      each(c->vcpu, [&](auto& v) { v.singlestep = c->enable; });
    for (const auto& entry : entries)
      for (std::uint64_t i = 0; i < entry.pages; ++i) {
        const std::uint64_t gfn = (entry.gpa >> kPageShift) + i;
        if (entry.access == kRwx)
          belief.has.pages.erase(gfn);
        else
          belief.has.pages[gfn] = entry.access;
      }
  }

  void check() {
    REQUIRE_FALSE(guest_.closed);
    const auto info = guest_.machine.info();
    for (const auto& vcpu : info.vcpus) {
      if (!vcpu.waiting) continue;
      REQUIRE_FALSE(vcpu.waits_for.empty());
      // Of a pause each agent may have its own pause_max, one after another; that each deadline is kept is seen below.
      if (vcpu.event != EventKind::Pause) REQUIRE(guest_.now - vcpu.since < 100ms);
    }
    const auto next = guest_.machine.next_deadline();
    if (next) REQUIRE(*next > guest_.now);
    REQUIRE(info.agents.size() == agents_.size());
    for (const auto& agent : info.agents) {
      REQUIRE(agent.requests_open <= 8);
      REQUIRE(agent.pages <= 16);
    }
  }

  /// Everything is answered: the hypervisor's state is the union.
  void settle() {
    guest_.answer_all();
    learn();
    for (const auto& agent : guest_.machine.info().agents) REQUIRE(agent.requests_open == 0);
    HypervisorState expected;
    expected.vcpus.resize(kVcpus);
    for (const auto& [id, belief] : agents_) {
      REQUIRE(belief.asked.empty());
      for (std::size_t i = 0; i < kVcpus; ++i) {
        expected.vcpus[i].events |= belief.has.vcpus[i].events;
        expected.vcpus[i].crs.insert(belief.has.vcpus[i].crs.begin(), belief.has.vcpus[i].crs.end());
        expected.vcpus[i].msrs.insert(belief.has.vcpus[i].msrs.begin(), belief.has.vcpus[i].msrs.end());
        expected.vcpus[i].singlestep = expected.vcpus[i].singlestep || belief.has.vcpus[i].singlestep;
      }
      for (const auto& [gfn, access] : belief.has.pages) {
        const auto found = expected.pages.try_emplace(gfn, kRwx).first;
        found->second = static_cast<std::uint8_t>(found->second & access);
      }
    }
    if (!revoked_) {
      REQUIRE(guest_.state == expected);
      return;
    }
    // Somebody lost something by a refusal: who lost what is not in the notice, so all begin anew.
    revoked_ = false;
    while (!agents_.empty()) lose(agents_.begin()->first);
    guest_.answer_all();
    learn();
  }

  std::mt19937_64 random_;
  Guest guest_;
  std::map<AgentId, Belief> agents_;
  std::map<std::uint32_t, ActionSet> open_;
  bool revoked_ = false;
  std::uint64_t asked_ = 0;
  std::uint64_t answered_ = 0;
};

}  // namespace

TEST_CASE("whatever happens, each event is answered once and in time, and the hypervisor knows the union", "[random]") {
  std::uint64_t base = 1;
  if (const char* given = std::getenv("KVMID_SEED")) base = std::strtoull(given, nullptr, 0);
  for (std::uint64_t seed = base; seed < base + 8; ++seed) {
    INFO("KVMID_SEED=" << seed);
    Run(seed).go(4000);
  }
}

}  // namespace kvmid::core::testing
