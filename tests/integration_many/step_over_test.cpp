// SPDX-License-Identifier: GPL-2.0-or-later
//
// Two vCPUs in one patched function as fast as they can. The guest counts its calls in a register and, by the very
// instruction under the patch, in memory; the agents count their hits. All three are the same, whoever answers how.

#include <catch2/catch.hpp>
#include <map>

#include "tests/integration_many/many_scene.h"

namespace kvmid::test {
namespace {

constexpr std::uint64_t kCalls = 500;  // of each vCPU
constexpr unsigned kVcpus = 2;

EventSet breakpoints() { return events_of({EventKind::Breakpoint}); }

/// What a hit must say.
void check_hit(const client::ReceivedEvent& event, Gpa place) {
  REQUIRE(event.event.kind() == EventKind::Breakpoint);
  REQUIRE(std::get<BreakpointData>(event.event.data).gpa == place);
  REQUIRE(event.event.regs.rip == place.value);
}

/// Each vCPU's function was entered and executed just as often as it was called.
void check_guest(const Guest& guest, std::uint64_t calls) {
  for (unsigned vcpu = 0; vcpu < guest.options().vcpus; ++vcpu) {
    const Mailbox box = guest.mailbox(vcpu);
    CHECK(box.hammer_calls == calls);
    CHECK(box.hammer_hits == calls);
    // No INT3 but its own was given to the guest.
    CHECK(box.exceptions[3] == box.done[static_cast<std::size_t>(GuestMode::Int3)]);
    CHECK(box.panic == 0);
  }
}

/// One agent answers each hit by `answer`; the others too.
void hammer_under(ManyScene& scene, const std::vector<AgentClient*>& agents,
                  const std::function<void(AgentClient&, const client::ReceivedEvent&)>& answer) {
  const Gpa place = scene.hammer_gpa();
  std::map<const AgentClient*, std::uint64_t> hits;
  const std::vector<std::byte> own = raw_memory(scene.guest, place, emulated::kHammerInsnBytes);
  for (AgentClient* agent : agents) {
    check(agent->subscribe(breakpoints(), Role::Decider));
    check(patch(*agent, place, bytes_of_values({0xcc})));
  }
  CHECK(raw_memory(scene.guest, place, 1).front() == kInt3);
  CHECK(seen_memory(*agents.front(), place, own.size()) == own);

  scene.guest.hammer(kCalls);
  serve(
      agents,
      [&](AgentClient& agent, const client::ReceivedEvent& event) {
        check_hit(event, place);
        ++hits[&agent];
        answer(agent, event);
      },
      [&] { return scene.guest.hammered(); });

  for (AgentClient* agent : agents) {
    CHECK(hits[agent] == kCalls * kVcpus);
    CHECK_FALSE(check(agent->wait_event(Millis{0})));
  }
  check_guest(scene.guest, kCalls);
  CHECK(scene.counter("stepped_over") == kCalls * kVcpus);
  CHECK(scene.counter("expired") == 0);
  CHECK(scene.counter("bad_replies") == 0);

  // It works until it is given back, and then costs nothing.
  CHECK(raw_memory(scene.guest, place, 1).front() == kInt3);
  for (AgentClient* agent : agents) check(unpatch(*agent, place, 1));
  CHECK(raw_memory(scene.guest, place, own.size()) == own);
  const std::uint64_t events = scene.counter("events");
  scene.guest.hammer(kCalls);
  scene.guest.wait_hammered();
  check_guest(scene.guest, 2 * kCalls);
  CHECK(scene.counter("events") == events);
}

}  // namespace

TEST_CASE("no hit of a patch is lost and none is counted twice, whatever its owner answers", "[integration][many]") {
  ManyScene scene({.vcpus = kVcpus});
  AgentClient owner = scene.attach("owner");
  SECTION("RETRY with STEP_OVER") { hammer_under(scene, {&owner}, step_over); }
  SECTION("ALLOW") {
    hammer_under(scene, {&owner},
                 [](AgentClient& agent, const auto& event) { check(agent.reply(event, Action::Allow)); });
  }
  SECTION("now this, now that") {
    unsigned turn = 0;
    hammer_under(scene, {&owner}, [&](AgentClient& agent, const auto& event) {
      if (++turn % 2 == 0) return step_over(agent, event);
      check(agent.reply(event, Action::Allow));
    });
  }
}

TEST_CASE("two owners of one patch are both told of each hit, and the vCPU steps over it once", "[integration][many]") {
  ManyScene scene({.vcpus = kVcpus});
  AgentClient first = scene.attach("first");
  AgentClient second = scene.attach("second");
  SECTION("both step over") { hammer_under(scene, {&first, &second}, step_over); }
  SECTION("one allows, the other steps over") {
    hammer_under(scene, {&first, &second}, [&](AgentClient& agent, const auto& event) {
      if (&agent == &first) return check(agent.reply(event, Action::Allow));
      step_over(agent, event);
    });
  }
}

TEST_CASE("patches on two instructions in a row, of two agents, under four vCPUs", "[integration][many]") {
  constexpr unsigned kMany = 4;
  ManyScene scene({.vcpus = kMany});
  AgentClient first = scene.attach("first");
  AgentClient second = scene.attach("second");
  const Gpa place = scene.hammer_gpa();
  const Gpa behind{place.value + emulated::kHammerInsnBytes};
  for (AgentClient* agent : {&first, &second}) check(agent->subscribe(breakpoints(), Role::Decider));
  check(patch(first, place, bytes_of_values({0xcc})));
  check(patch(second, behind, bytes_of_values({0xcc})));
  std::map<const AgentClient*, std::uint64_t> hits;
  scene.guest.hammer(kCalls);
  serve({&first, &second},
        [&](AgentClient& agent, const client::ReceivedEvent& event) {
          check_hit(event, &agent == &first ? place : behind);
          if (++hits[&agent] % 3 == 0) return check(agent.reply(event, Action::Allow));
          step_over(agent, event);
        },
        [&] { return scene.guest.hammered(); });
  CHECK(hits[&first] == kCalls * kMany);
  CHECK(hits[&second] == kCalls * kMany);
  check_guest(scene.guest, kCalls);
  CHECK(scene.counter("stepped_over") == 2 * kCalls * kMany);
}

TEST_CASE("RETRY without STEP_OVER executes the patch again", "[integration][many]") {
  ManyScene scene;
  AgentClient owner = scene.attach("owner");
  const Gpa place = scene.hammer_gpa();
  check(owner.subscribe(breakpoints(), Role::Decider));
  check(patch(owner, place, bytes_of_values({0xcc})));
  constexpr std::uint64_t kRetries = 5;
  std::uint64_t hits = 0;
  scene.guest.hammer(3);
  serve({&owner},
        [&](AgentClient& agent, const client::ReceivedEvent& event) {
          check_hit(event, place);
          CHECK(scene.guest.mailbox().hammer_hits == hits / (kRetries + 1));
          if (++hits % (kRetries + 1) != 0) return check(agent.reply(event, Action::Retry));
          step_over(agent, event);
        },
        [&] { return scene.guest.hammered(); });
  CHECK(hits == 3 * (kRetries + 1));
  CHECK(scene.counter("stepped_over") == 3);
  check_guest(scene.guest, 3);
}

TEST_CASE("SKIP goes on behind the instruction of the patch", "[integration][many]") {
  ManyScene scene;
  AgentClient owner = scene.attach("owner");
  const Gpa place = scene.hammer_gpa();
  check(owner.subscribe(breakpoints(), Role::Decider));
  // INT3 and a NOP of eight bytes: as long as what is under it.
  check(patch(owner, place, bytes_of_values({0xcc, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0})));
  scene.guest.hammer(7);
  unsigned hits = 0;
  serve({&owner},
        [&](AgentClient& agent, const client::ReceivedEvent& event) {
          check_hit(event, place);
          ++hits;
          check(agent.reply(event, Action::Skip));
        },
        [&] { return scene.guest.hammered(); });
  CHECK(hits == 7);
  CHECK(scene.guest.mailbox().hammer_calls == 7);
  CHECK(scene.guest.mailbox().hammer_hits == 0);
  CHECK(scene.guest.mailbox().panic == 0);
  CHECK(scene.counter("stepped_over") == 0);
}

TEST_CASE("hits of a patch whose owner does not want to hear of them are stepped over", "[integration][many]") {
  ManyScene scene({.vcpus = kVcpus});
  AgentClient owner = scene.attach("owner");
  const Gpa place = scene.hammer_gpa();
  const bool observes = GENERATE(false, true);
  if (observes) check(owner.subscribe(breakpoints(), Role::Observer));
  check(patch(owner, place, bytes_of_values({0xcc})));
  std::uint64_t hits = 0;
  scene.guest.hammer(kCalls);
  serve({&owner},
        [&](AgentClient&, const client::ReceivedEvent& event) {
          check_hit(event, place);
          CHECK_FALSE(event.event.decide);
          ++hits;
        },
        [&] { return scene.guest.hammered() && hits >= (observes ? kCalls * kVcpus : 0); });
  CHECK(hits == (observes ? kCalls * kVcpus : 0));
  check_guest(scene.guest, kCalls);
  CHECK(scene.counter("stepped_over") == kCalls * kVcpus);
}

TEST_CASE("the default of an owner that is stopped stands, and no hit is lost", "[integration][many]") {
  constexpr std::uint64_t kSlowCalls = 10;  // each waits for a deadline
  constexpr std::uint64_t kHits = kSlowCalls * kVcpus;
  const unsigned strikes = GENERATE(2U, 1000000U);  // becomes an observer, stays a decider
  ManyScene scene({.vcpus = kVcpus, .rule_overrides = {{"deadline_ms", 10}, {"strikes", strikes}}});
  char place[32];
  std::snprintf(place, sizeof place, "0x%llx", static_cast<unsigned long long>(scene.hammer_gpa().value));
  Process owner = scene.start_agent("owner", {"--patch", std::string(place) + ":cc", "--events", "breakpoint"});
  owner.stop();

  scene.guest.hammer(kSlowCalls);
  scene.guest.wait_hammered();
  check_guest(scene.guest, kSlowCalls);
  CHECK(scene.counter("stepped_over") == kHits);
  if (strikes > kHits) {
    CHECK(scene.counter("expired") == kHits);
  } else {
    CHECK(scene.counter("demoted") == 1);
  }

  // Each hit was told to it, once.
  owner.cont();
  CHECK(wait_until([&] { return lines_with(owner, R"("type":"event")") >= kHits; }));
  CHECK(lines_with(owner, R"("type":"event")") == kHits);
}

}  // namespace kvmid::test
