// SPDX-License-Identifier: GPL-2.0-or-later
//
// Several agents on one guest: what they decide is merged, who only watches costs nothing, and everybody gets
// what is his.

#include <algorithm>
#include <catch2/catch.hpp>
#include <map>
#include <set>

#include "tests/integration/scenario.h"

namespace kvmid::test {
namespace {

constexpr std::uint32_t kLstar = 0xc0000082;
constexpr const char* kLstarText = "0xc0000082";

Guest online_guest(const RuntimeFolder& folder, GuestOptions options = {}) {
  Guest guest(folder, std::move(options));
  guest.wait_online();
  return guest;
}

}  // namespace

TEST_CASE("of two deciders that answer differently the stricter one is obeyed, and both are told", "[integration]") {
  const RuntimeFolder folder;
  Daemon daemon(folder, {.config = config_text({}), .arguments = {}});
  const Guest guest = online_guest(folder);
  guest.do_times(GuestMode::Cr4, 2);
  to_idle(guest);
  TestAgent mild(daemon, guest, {"--name", "mild", "--events", "cr", "--cr", "4", "--action", "allow", "--outcomes"});
  TestAgent strict(daemon, guest,
                   {"--name", "strict", "--events", "cr", "--cr", "4", "--action", "skip", "--outcomes"});
  const std::uint64_t cr4 = guest.mailbox().cr4;

  for (int round = 0; round < 5; ++round) {
    guest.do_times(GuestMode::Cr4, 1);
    REQUIRE(guest.mailbox().cr4 == cr4);  // as the guest reads it back: every write was skipped
  }
  to_idle(guest);

  const Account of_mild = account_of(mild);
  const Account of_strict = account_of(strict);
  INFO(of_mild.text << " / " << of_strict.text);
  CHECK(of_mild.events >= 5);
  CHECK((of_mild.contiguous && of_mild.outcomes_match));
  CHECK((of_strict.contiguous && of_strict.outcomes_match));
  CHECK(mild.event_seqs() == strict.event_seqs());
  for (auto* agent : {&mild, &strict}) {
    for (const auto& outcome : agent->notices("outcome")) {
      REQUIRE(outcome.at("action") == "skip");
      REQUIRE(outcome.at("agent") == strict.id());
    }
  }
  CHECK(guest.mailbox().cr4 == cr4);
  strict.process().kill();
  guest.do_times(GuestMode::Cr4, 1);  // with the mild one alone the writes happen again
  REQUIRE(wait_until([&] { return guest.mailbox().cr4 != cr4; }));
}

TEST_CASE("a value that one of two deciders gives is what the guest gets", "[integration]") {
  const RuntimeFolder folder;
  Daemon daemon(folder, {.config = config_text({}), .arguments = {}});
  const Guest guest = online_guest(folder);
  TestAgent plain(daemon, guest, {"--events", "msr", "--msr", kLstarText});
  TestAgent changing(daemon, guest, {"--events", "msr", "--msr", kLstarText, "--value", "0x123456"});

  guest.do_times(GuestMode::Lstar, 3);

  REQUIRE(guest.mailbox().lstar == 0x123456);
  REQUIRE(plain.wait_lines("event", 3).size() >= 3);
}

TEST_CASE("an observer that is stopped does not delay the guest and misses nothing", "[integration]") {
  const RuntimeFolder folder;
  Daemon daemon(folder, {.config = config_text({}), .arguments = {}});
  const Guest guest = online_guest(folder);
  TestAgent observer(daemon, guest, {"--events", "cr", "--cr", "4", "--role", "observer", "--outcomes"});
  TestAgent decider(daemon, guest, {"--events", "cr", "--cr", "4", "--outcomes"});
  observer.process().stop();

  // Were one of these events waited for, it would take a minute.
  guest.do_times(GuestMode::Cr4, 100);
  to_idle(guest);

  const Account of_decider = account_of(decider);
  REQUIRE(of_decider.events >= 100);
  observer.process().cont();
  observer.wait_lines("event", of_decider.events);
  const Account of_observer = account_of(observer);
  INFO(of_decider.text << " / " << of_observer.text);
  CHECK((of_decider.contiguous && of_decider.outcomes_match));
  CHECK((of_observer.contiguous && of_observer.outcomes_match));
  CHECK(observer.event_seqs() == decider.event_seqs());
  for (const auto& event : observer.lines("event")) REQUIRE(event.at("decide") == false);
}

TEST_CASE("an observer that stops reading is let go when its queue is full, and the guest goes on", "[integration]") {
  const RuntimeFolder folder;
  Daemon daemon(folder, {.config = config_text({.queue_bytes = 65536}), .arguments = {}});
  const Guest guest = online_guest(folder, {.arguments = {"--period-us", "0"}});
  TestAgent observer(daemon, guest, {"--events", "cr", "--cr", "4", "--role", "observer"});
  TestAgent decider(daemon, guest, {"--events", "cr", "--cr", "4", "--outcomes"});
  observer.process().stop();

  guest.do_times(GuestMode::Cr4, 3000);
  to_idle(guest);

  const Account of_decider = account_of(decider);
  INFO(of_decider.text);
  CHECK(of_decider.events >= 3000);
  CHECK((of_decider.contiguous && of_decider.outcomes_match));
  observer.process().cont();
  REQUIRE(observer.wait_lines("closed", 1).size() == 1);
  REQUIRE(observer.lines("event").size() < of_decider.events);
}

TEST_CASE("a decider that stays silent becomes an observer, and the guest waits no longer", "[integration]") {
  const RuntimeFolder folder;
  Daemon daemon(folder, {.config = config_text({.deadline_ms = 300, .strikes = 3}), .arguments = {}});
  const Guest guest = online_guest(folder);
  TestAgent silent(daemon, guest, {"--events", "cr", "--cr", "4", "--silent-after", "2"});
  guest.set_mode(GuestMode::Cr4);

  const auto demoted = silent.wait_notices("demoted", 1);
  guest.do_times(GuestMode::Cr4, 300);  // ninety seconds, if each were waited for
  to_idle(guest);

  REQUIRE(demoted.front().at("count") == 3);
  const auto expired = silent.notices("expired");
  REQUIRE(expired.size() == 3);
  for (std::size_t i = 0; i < expired.size(); ++i) {
    REQUIRE(expired[i].at("count") == i + 1);
    REQUIRE(expired[i].at("action") == "allow");
  }
  // Two that it answered, three that it did not, and from then on it is only told.
  const auto events = silent.wait_lines("event", 300);
  for (std::size_t i = 0; i < events.size(); ++i) REQUIRE(events[i].at("decide") == (i < 5));
  REQUIRE(silent.notices("demoted").size() == 1);
  REQUIRE(silent.notices("reply_refused").empty());
}

TEST_CASE("three guests and five agents: everybody gets the events of his own guests and no others", "[integration]") {
  const RuntimeFolder folder;
  Daemon daemon(folder, {.config = config_text({}), .arguments = {}});
  std::vector<Guest> guests;
  for (std::uint8_t number = 1; number <= 3; ++number) {
    guests.emplace_back(folder, GuestOptions{.name = "web" + std::to_string(number),
                                             .uuid = uuid_of(number),
                                             .vcpus = number == 2 ? 2U : 1U,
                                             .arguments = {}});
    // What a guest writes into LSTAR says which guest it is.
    for (unsigned vcpu = 0; vcpu < guests.back().options().vcpus; ++vcpu) {
      guests.back().set_field(offsetof(Mailbox, arg_msr_value), std::uint64_t{number} << 32U, vcpu);
    }
  }
  for (auto& guest : guests) guest.wait_online();

  // Two agents of one guest each, two that watch one guest each, and one that is attached to all three.
  struct Placed {
    std::uint8_t guest;
    TestAgent agent;
  };
  std::vector<Placed> agents;
  agents.push_back({1, TestAgent(daemon, guests[0], {"--events", "msr", "--msr", kLstarText, "--outcomes"})});
  agents.push_back({2, TestAgent(daemon, guests[1], {"--events", "msr", "--msr", kLstarText, "--outcomes"})});
  agents.push_back(
      {2, TestAgent(daemon, guests[1], {"--events", "msr", "--msr", kLstarText, "--role", "observer", "--outcomes"})});
  agents.push_back(
      {3, TestAgent(daemon, guests[2], {"--events", "msr", "--msr", kLstarText, "--role", "observer", "--outcomes"})});
  std::vector<AgentClient> everywhere;
  for (const auto& guest : guests) {
    everywhere.push_back(attach(daemon.agent_socket(), guest.uuid(), "everywhere"));
    check(everywhere.back().control_msr(kAllVcpus, kLstar, true));
    check(everywhere.back().subscribe(EventSet{KVMI_EVENT_BIT(KVMI_EVENT_MSR)}, Role::Observer));
  }

  constexpr std::uint64_t kTimes = 60;
  std::map<std::uint8_t, std::uint64_t> writes;  // by guest, counted by the guest
  for (std::size_t i = 0; i < guests.size(); ++i) {
    for (unsigned vcpu = 0; vcpu < guests[i].options().vcpus; ++vcpu) {
      writes[static_cast<std::uint8_t>(i + 1)] -= guests[i].done(GuestMode::Lstar, vcpu);
      guests[i].set_mode(GuestMode::Lstar, vcpu);
    }
  }
  for (const auto& guest : guests) {
    for (unsigned vcpu = 0; vcpu < guest.options().vcpus; ++vcpu) guest.do_times(GuestMode::Lstar, kTimes, vcpu);
  }
  for (std::size_t i = 0; i < guests.size(); ++i) {
    for (unsigned vcpu = 0; vcpu < guests[i].options().vcpus; ++vcpu) {
      to_idle(guests[i], vcpu);
      writes[static_cast<std::uint8_t>(i + 1)] += guests[i].done(GuestMode::Lstar, vcpu);
    }
  }

  for (auto& [number, agent] : agents) {
    const auto events = agent.wait_lines("event", writes[number]);
    REQUIRE(events.size() == writes[number]);  // none lost, none twice
    const Account account = account_of(agent);
    INFO(account.text);
    CHECK((account.contiguous && account.outcomes_match));
    for (const auto& event : events) {
      REQUIRE(event.at("guest") == guests[number - 1U].uuid_text());
      REQUIRE(std::stoull(event.at("new_value").get<std::string>(), nullptr, 0) >> 32U == number);
    }
  }
  for (std::size_t i = 0; i < everywhere.size(); ++i) {
    const auto number = static_cast<std::uint8_t>(i + 1);
    std::set<std::uint32_t> seqs;
    while (seqs.size() < writes[number]) {
      const auto event = check(everywhere[i].wait_event(kBound));
      REQUIRE(event.has_value());
      REQUIRE(std::get<MsrData>(event->event.data).new_value >> 32U == number);
      REQUIRE(seqs.insert(event->seq.value).second);
    }
    REQUIRE_FALSE(check(everywhere[i].wait_event(Millis{0})).has_value());
  }
}

}  // namespace kvmid::test
