// SPDX-License-Identifier: GPL-2.0-or-later
#include <catch2/catch.hpp>

#include "tests/unit/core/core_harness.h"

namespace kvmid::core::testing {

namespace {

PageFaultData fault(std::uint64_t gfn, unsigned access) {
  return PageFaultData{Gva{}, Gpa{gfn * kPageSize + 8}, static_cast<std::uint8_t>(access), false};
}

struct TwoWatchers {
  TwoWatchers() : a(guest.attach()), b(guest.attach()) {
    for (const AgentId agent : {a, b}) guest.subscribe(agent, only(EventKind::PageFault));
    guest.forget();
  }
  Guest guest;
  AgentId a;
  AgentId b;
};

}  // namespace

TEST_CASE("the effective rights of a page are the AND of every agent's view", "[pages]") {
  TwoWatchers t;
  t.guest.set_pages(t.a, {pages(1, 2, kR | kW)});
  t.guest.set_pages(t.b, {pages(2, 2, kR | kX)});
  REQUIRE(t.guest.state.pages == std::map<std::uint64_t, std::uint8_t>{{1, kR | kW}, {2, kR}, {3, kR | kX}});
  t.guest.set_pages(t.a, {pages(2, 1, kRwx)});
  REQUIRE(t.guest.state.pages == std::map<std::uint64_t, std::uint8_t>{{1, kR | kW}, {2, kR | kX}, {3, kR | kX}});
  t.guest.forget();
  t.guest.set_pages(t.a, {pages(3, 1, kR | kX)});
  REQUIRE(t.guest.to_hypervisor.empty());
}

TEST_CASE("a fault goes only to agents whose view forbids that access", "[pages]") {
  TwoWatchers t;
  t.guest.set_pages(t.a, {pages(1, 1, kR | kX)});
  t.guest.set_pages(t.b, {pages(1, 1, kR | kW)});
  const Seq seq = t.guest.event(0, fault(1, kW));
  REQUIRE(t.guest.events_told(t.a) == 1);
  REQUIRE(t.guest.events_told(t.b) == 0);
  t.guest.vote(t.a, Action::Allow);
  REQUIRE(t.guest.verdict(seq)->action == Action::Allow);
  t.guest.event(0, fault(1, kX));
  REQUIRE(t.guest.events_told(t.a) == 1);
  REQUIRE(t.guest.events_told(t.b) == 1);
}

TEST_CASE("a fault that no view explains any more is tried again", "[pages]") {
  TwoWatchers t;
  t.guest.set_pages(t.a, {pages(1, 1, kR)});
  t.guest.answering = false;
  t.guest.set_pages(t.a, {pages(1, 1, kRwx)});
  SECTION("while the hypervisor is being told") {
    REQUIRE(t.guest.verdict(t.guest.event(0, fault(1, kW)))->action == Action::Retry);
  }
  SECTION("after it was told") {
    t.guest.answer_all();
    REQUIRE(t.guest.verdict(t.guest.event(0, fault(1, kW)))->action == Action::Retry);
  }
  SECTION("but not where the hypervisor refused to give the right back: that would never end") {
    t.guest.refuse = [](const auto&) { return ErrorCode::NoMemory; };
    t.guest.answer_all();
    REQUIRE(t.guest.verdict(t.guest.event(0, fault(1, kW)))->action == Action::Allow);
  }
  SECTION("nor where the event does not take RETRY") {
    REQUIRE(t.guest.verdict(t.guest.event(0, fault(1, kW), ActionSet{0b1001}))->action == Action::Allow);
  }
  REQUIRE(t.guest.events_told(t.a) == 0);
}

TEST_CASE("a fault of an agent that only restricts and does not decide is let through", "[pages]") {
  Guest guest;
  const AgentId agent = guest.attach();
  guest.subscribe(agent, only(EventKind::PageFault), Role::Observer);
  guest.set_pages(agent, {pages(1, 1, kR)});
  REQUIRE(guest.verdict(guest.event(0, fault(1, kW)))->action == Action::Allow);
  REQUIRE(guest.events_told(agent) == 1);
}

TEST_CASE("pages are told in runs of equal rights", "[pages]") {
  TwoWatchers t;
  t.guest.set_pages(t.a, {pages(10, 100, kR), pages(110, 50, kR), pages(200, 5, kR), pages(205, 5, kR | kX)});
  REQUIRE(t.guest.to_hypervisor.size() == 1);
  const auto& told = t.guest.to_hypervisor[0].entries;
  REQUIRE(told.size() == 3);
  REQUIRE(told[0].gpa == 10 * kPageSize);
  REQUIRE(told[0].pages == 150);
  REQUIRE(told[1].pages == 5);
  REQUIRE(told[2].access == (kR | kX));
}

TEST_CASE("more runs than a message takes go out in batches, and rights given back in messages of their own",
          "[pages]") {
  Guest guest;
  const AgentId agent = guest.attach();
  for (std::uint32_t base = 0; base < 6000; base += 2000) {
    std::vector<kvmi_page_access_entry> entries;
    for (std::uint32_t i = 0; i < 2000; ++i) entries.push_back(pages((base + i) * 2, 1, kR));
    REQUIRE(guest.error_of(agent, guest.set_pages(agent, entries)) == ErrorCode::None);
  }
  REQUIRE(guest.state.pages.size() == 6000);
  guest.forget();
  guest.lose(agent);
  REQUIRE(guest.sent<SetPageAccess>() == 3);
  for (const auto& sent : guest.to_hypervisor) REQUIRE(sent.entries.size() <= 2048);
  REQUIRE(guest.state.pages.empty());
}

TEST_CASE("an agent restricts no more pages than its quota", "[pages][hostile]") {
  Guest guest;
  Grant grant = full_grant();
  grant.quota.pages_max = 100;
  const AgentId agent = guest.attach(grant);
  const auto error = [&](const std::vector<kvmi_page_access_entry>& entries) {
    return *guest.error_of(agent, guest.set_pages(agent, entries));
  };
  REQUIRE(error({pages(0, 60, kR), pages(1000, 40, kR)}) == ErrorCode::None);
  REQUIRE(error({pages(500, 1, kR)}) == ErrorCode::Busy);
  // Those it has already can be changed: no page more is restricted by that.
  REQUIRE(error({pages(0, 60, kR | kX)}) == ErrorCode::None);
  REQUIRE(error({pages(0, 10, kRwx)}) == ErrorCode::None);
  REQUIRE(error({pages(500, 10, kR)}) == ErrorCode::None);
  REQUIRE(error({pages(600, 1, kR)}) == ErrorCode::Busy);
  REQUIRE(guest.machine.info().agents[0].pages == 100);
}

TEST_CASE("giving every right back on a huge range costs only what was restricted", "[pages][hostile]") {
  // The whole address space page by page, thousands of times in a command, was minutes of work once.
  Guest guest;
  guest.lose_hypervisor();
  guest.facts.max_gpa = std::uint64_t{1} << 52;
  guest.connect();
  const AgentId agent = guest.attach();
  guest.set_pages(agent, {pages(5, 3, kR), pages(0x12345678, 1, kR)});
  const std::vector<kvmi_page_access_entry> entries(2700, pages(0, 0xffffffff, kRwx));
  REQUIRE(guest.error_of(agent, guest.set_pages(agent, entries)) == ErrorCode::None);
  REQUIRE(guest.state.pages.empty());
  REQUIRE(guest.machine.info().agents[0].pages == 0);
  REQUIRE(guest.error_of(agent, guest.set_pages(agent, {pages(0, 0xffffffff, kR)})) == ErrorCode::Busy);
  const Seq get = guest.command(agent, GetPageAccess{Gpa{0}, 0xffffffff, AddressSpace::Normal});
  REQUIRE(guest.answer_to(agent, get)->entries.size() == 1);
  REQUIRE(guest.answer_to(agent, get)->entries[0].pages == 0xffffffff);
}

TEST_CASE("page ranges and rights that make no sense are refused", "[pages][hostile]") {
  Guest guest;
  const AgentId agent = guest.attach();
  const auto error = [&](const kvmi_page_access_entry& entry) {
    return *guest.error_of(agent, guest.set_pages(agent, {entry}));
  };
  constexpr std::uint64_t kEnd = kGuestRam >> kPageShift;
  REQUIRE(error({1, 1, kR, {}}) == ErrorCode::Fault);
  REQUIRE(error(pages(0, 0, kR)) == ErrorCode::Fault);
  REQUIRE(error(pages(kEnd, 1, kR)) == ErrorCode::Fault);
  REQUIRE(error(pages(kEnd - 1, 2, kR)) == ErrorCode::Fault);
  REQUIRE(error({0xfffffffffffff000, 0xffffffff, kR, {}}) == ErrorCode::Fault);
  REQUIRE(error(pages(1, 1, kW)) == ErrorCode::Invalid);
  REQUIRE(error(pages(1, 1, kW | kX)) == ErrorCode::Invalid);
  REQUIRE(error(pages(1, 1, kX)) == ErrorCode::NotSupported);
  REQUIRE(error(pages(1, 1, 8)) == ErrorCode::Invalid);
  REQUIRE(error(pages(kEnd - 1, 1, kR)) == ErrorCode::None);
  const std::vector<kvmi_page_access_entry> one{pages(1, 1, kR)};
  const Seq smm = guest.command(agent, SetPageAccess{AddressSpace::Smm, std::span<const kvmi_page_access_entry>(one)});
  REQUIRE(guest.error_of(agent, smm) == ErrorCode::NotSupported);
}

TEST_CASE("GET_PAGE_ACCESS answers the agent's own view, in runs that cover what was asked", "[pages]") {
  TwoWatchers t;
  t.guest.set_pages(t.a, {pages(10, 5, kR), pages(15, 1, kR | kX)});
  t.guest.set_pages(t.b, {pages(0, 100, 0)});
  const Seq get = t.guest.command(t.a, GetPageAccess{Gpa{8 * kPageSize}, 20, AddressSpace::Normal});
  const auto& runs = t.guest.answer_to(t.a, get)->entries;
  REQUIRE(runs.size() == 4);
  std::uint64_t next = 8;
  for (const auto& run : runs) {
    REQUIRE(run.gpa == next * kPageSize);
    next += run.pages;
  }
  REQUIRE(next == 28);
  REQUIRE(runs[0].access == kRwx);
  REQUIRE(runs[1].access == kR);
  REQUIRE(runs[2].access == (kR | kX));
  REQUIRE(runs[3].access == kRwx);
}

TEST_CASE("an answer of GET_PAGE_ACCESS that is larger than a message is refused", "[pages][hostile]") {
  Guest guest;
  const AgentId agent = guest.attach();
  std::vector<kvmi_page_access_entry> entries;
  for (std::uint32_t i = 0; i < 2000; ++i) entries.push_back(pages(i * 2, 1, kR));
  guest.set_pages(agent, entries);
  const auto error = [&](std::uint32_t count) {
    return guest.error_of(agent, guest.command(agent, GetPageAccess{Gpa{0}, count, AddressSpace::Normal}));
  };
  constexpr std::uint32_t kRunsMax = (KVMI_MAX_PAYLOAD - 16) / sizeof(kvmi_page_access_entry);
  REQUIRE(error(kRunsMax) == ErrorCode::None);
  for (kvmi_page_access_entry& entry : entries) entry.gpa += 4000 * kPageSize;
  guest.set_pages(agent, entries);
  REQUIRE(error(kRunsMax) == ErrorCode::None);
  REQUIRE(error(kRunsMax + 1) == ErrorCode::TooBig);
}

TEST_CASE("execute-only pages exist only where the processor has them, pages without reading that are written never",
          "[pages]") {
  Guest guest;
  guest.lose_hypervisor();
  guest.facts.execute_only = GENERATE(false, true);
  guest.connect();
  const AgentId agent = guest.attach();
  const auto error = [&](unsigned access) { return guest.error_of(agent, guest.set_pages(agent, {pages(1, 1, access)})); };
  REQUIRE(error(kX) == (guest.facts.execute_only ? ErrorCode::None : ErrorCode::NotSupported));
  REQUIRE(guest.state.pages.contains(1) == guest.facts.execute_only);
  REQUIRE(error(kW) == ErrorCode::Invalid);
  REQUIRE(error(kW | kX) == ErrorCode::Invalid);
  REQUIRE(error(0) == ErrorCode::None);
  REQUIRE(guest.state.pages.at(1) == 0);
}

TEST_CASE("a fault at the edges of a range goes to who restricted the range", "[pages]") {
  TwoWatchers t;
  t.guest.set_pages(t.a, {pages(100, 50, kR)});
  t.guest.set_pages(t.b, {pages(149, 2, kR)});
  for (const std::uint64_t gfn : {99U, 100U, 149U, 150U, 151U}) {
    CAPTURE(gfn);
    t.guest.forget();
    const Seq seq = t.guest.event(0, fault(gfn, kW));
    REQUIRE(t.guest.events_told(t.a) == (gfn >= 100 && gfn < 150 ? 1 : 0));
    REQUIRE(t.guest.events_told(t.b) == (gfn >= 149 && gfn < 151 ? 1 : 0));
    for (const AgentId agent : {t.a, t.b})
      if (t.guest.events_told(agent) != 0) t.guest.vote(agent, Action::Allow);
    const bool nobody = gfn < 100 || gfn >= 151;
    REQUIRE(t.guest.verdict(seq)->action == (nobody ? Action::Retry : Action::Allow));
  }
}

TEST_CASE("a million pages are one entry, whatever of them is changed, refused, taken back or told again", "[pages]") {
  Guest guest;
  guest.lose_hypervisor();
  guest.facts.max_gpa = std::uint64_t{1} << 40;
  guest.connect();
  Grant grant = full_grant();
  grant.quota.pages_max = 4'000'000;
  const AgentId agent = guest.attach(grant);
  const auto runs = [&](std::uint64_t gfn, std::uint32_t count) {
    const Seq get = guest.command(agent, GetPageAccess{Gpa{gfn * kPageSize}, count, AddressSpace::Normal});
    return guest.answer_to(agent, get)->entries.size();
  };
  guest.set_pages(agent, {pages(1000, 1'000'000, kR)});
  REQUIRE(guest.to_hypervisor.back().entries.size() == 1);
  REQUIRE(guest.to_hypervisor.back().entries[0].pages == 1'000'000);
  REQUIRE(runs(0, 2'000'000) == 3);
  REQUIRE(guest.machine.info().agents[0].pages == 1'000'000);

  SECTION("refused: all is as it was, in as few runs") {
    guest.refuse = [](const ToHypervisor& sent) {
      return sent.entries[0].access == kR ? ErrorCode::NoMemory : ErrorCode::None;
    };
    const auto before = guest.state;
    const Seq seq = guest.set_pages(agent, {pages(2000, 5, kRwx), pages(0, 2'000'000, kR)});
    REQUIRE(guest.error_of(agent, seq) == ErrorCode::NoMemory);
    REQUIRE(runs(0, 2'000'000) == 3);
    REQUIRE(guest.machine.info().agents[0].pages == 1'000'000);
    guest.refuse = [](const auto&) { return ErrorCode::None; };
    guest.lose_hypervisor();
    guest.connect();
    REQUIRE(guest.state.pages == before.pages);
  }
  SECTION("told again to a hypervisor that comes back") {
    guest.lose_hypervisor();
    guest.forget();
    guest.connect();
    REQUIRE(guest.sent<SetPageAccess>() == 1);
    REQUIRE(guest.to_hypervisor.back().entries.size() == 1);
    REQUIRE(guest.state.pages.size() == 1'000'000);
  }
  SECTION("taken back when the agent goes") {
    guest.forget();
    guest.lose(agent);
    REQUIRE(guest.sent<SetPageAccess>() == 1);
    REQUIRE(guest.to_hypervisor.back().entries.size() == 1);
    REQUIRE(guest.state.pages.empty());
  }
  SECTION("of two agents, only where the union changes is anything told") {
    const AgentId other = guest.attach(grant);
    guest.forget();
    guest.set_pages(other, {pages(500, 1000, kR | kX)});
    const auto& entries = guest.to_hypervisor.back().entries;
    REQUIRE(entries.size() == 1);
    REQUIRE(entries[0].gpa == 500 * kPageSize);
    REQUIRE(entries[0].pages == 500);
    guest.forget();
    guest.lose(agent);
    REQUIRE(guest.state.pages.size() == 1000);
    REQUIRE(guest.machine.info().agents[0].pages == 1000);
  }
}

TEST_CASE("a run of more pages than an entry can count is told in several", "[pages][hostile]") {
  // The hypervisor of the harness keeps pages one by one: too many for it here, so it is only said to have done it.
  constexpr std::uint64_t kMost = 0xffffffff;
  Guest guest;
  guest.lose_hypervisor();
  guest.facts.max_gpa = std::uint64_t{1} << 52;
  guest.connect();
  guest.answering = false;
  Grant grant = full_grant();
  grant.quota.pages_max = kMost;
  const auto confirm = [&] {
    while (!guest.unanswered.empty()) {
      const Seq seq = guest.unanswered.front().seq;
      guest.unanswered.pop_front();
      guest.reply(seq, CommandReply{KVMI_MSG_SET_PAGE_ACCESS, {}, {}, {}});
    }
  };
  for (const std::uint64_t first : {std::uint64_t{7}, 7 + kMost}) {
    guest.set_pages(guest.attach(grant), {pages(first, kMost, kR)});
    confirm();
  }
  guest.forget();
  guest.step([&](Effects& out) { guest.machine.stop(guest.now, out); });
  REQUIRE(guest.to_hypervisor.size() == 1);
  std::uint64_t next = 7;
  for (const auto& entry : guest.to_hypervisor[0].entries) {
    REQUIRE(entry.access == kRwx);
    REQUIRE(entry.gpa == next * kPageSize);
    next += entry.pages;
  }
  REQUIRE(next == 7 + 2 * kMost);
  confirm();
  REQUIRE(guest.machine.settled());
}

}  // namespace kvmid::core::testing
