// SPDX-License-Identifier: GPL-2.0-or-later
//
// Agents come, go, pause and step while others' patches are hit as fast as can be. Nobody's count is off by one.

#include <catch2/catch.hpp>
#include <cstdio>
#include <map>

#include "tests/integration_many/many_scene.h"

namespace kvmid::test {
namespace {

constexpr unsigned kVcpus = 4;

std::string patch_text(Gpa gpa) {
  char text[40];
  std::snprintf(text, sizeof text, "0x%llx:cc", static_cast<unsigned long long>(gpa.value));
  return text;
}

void check_guest(const Guest& guest) {
  for (unsigned vcpu = 0; vcpu < guest.options().vcpus; ++vcpu) {
    const Mailbox box = guest.mailbox(vcpu);
    CHECK(box.hammer_hits == box.hammer_calls);
    CHECK(box.exceptions[3] == box.done[static_cast<std::size_t>(GuestMode::Int3)]);
    CHECK(box.panic == 0);
  }
}

}  // namespace

TEST_CASE("agents that are killed at their patches take no hit from others", "[integration][many]") {
  ManyScene scene({.vcpus = kVcpus});
  const Gpa place = scene.hammer_gpa();
  const Gpa behind{place.value + emulated::kHammerInsnBytes};
  AgentClient steady = scene.attach("steady");
  check(steady.subscribe(events_of({EventKind::Breakpoint}), Role::Decider));
  check(patch(steady, behind, bytes_of_values({0xcc})));
  std::uint64_t hits = 0;
  const OnEvent answer = [&](AgentClient& agent, const client::ReceivedEvent& event) {
    CHECK(std::get<BreakpointData>(event.event.data).gpa == behind);
    ++hits % 2 == 0 ? step_over(agent, event) : check(agent.reply(event, Action::Allow));
  };
  constexpr std::uint64_t kCalls = 300;
  constexpr int kAgents = 8;
  for (int i = 0; i < kAgents; ++i) {
    const char* its_answer = i % 2 == 0 ? "allow" : "step-over";
    Process dying = scene.start_agent(
        "dying", {"--patch", patch_text(place), "--events", "breakpoint", "--answer", its_answer});
    scene.guest.hammer(kCalls);
    serve({&steady}, answer, [&] { return lines_with(dying, R"("type":"event")") > 20; });
    dying.kill();
    serve({&steady}, answer, [&] { return scene.guest.hammered(); });
  }
  CHECK(hits == kCalls * kVcpus * kAgents);
  check_guest(scene.guest);
}

TEST_CASE("pauses are counted while vCPUs are held for steps", "[integration][many]") {
  ManyScene scene({.vcpus = kVcpus});
  AgentClient owner = scene.attach("owner");
  AgentClient pauser = scene.attach("pauser");
  check(owner.subscribe(events_of({EventKind::Breakpoint}), Role::Decider));
  check(patch(owner, scene.hammer_gpa(), bytes_of_values({0xcc})));
  std::uint64_t hits = 0;
  std::map<unsigned, unsigned> asked;
  std::map<unsigned, unsigned> paused;
  std::map<unsigned, unsigned> open;
  constexpr std::uint64_t kCalls = 400;
  scene.guest.hammer(kCalls);
  serve({&owner, &pauser},
        [&](AgentClient& agent, const client::ReceivedEvent& event) {
          const unsigned vcpu = event.event.vcpu.value;
          if (&agent == &owner) {
            ++hits;
            if (hits % 5 == 0) {
              const unsigned other = (vcpu + hits) % kVcpus;
              check(pauser.pause_vcpu(VcpuId{static_cast<std::uint16_t>(other)}));
              ++asked[other];
            }
            return step_over(agent, event);
          }
          CHECK(event.event.kind() == EventKind::Pause);
          ++paused[vcpu];
          check(agent.reply(event, Action::Allow));
        },
        [&] { return scene.guest.hammered() && asked == paused; });
  CHECK(hits == kCalls * kVcpus);
  CHECK_FALSE(check(pauser.wait_event(Millis{0})));
  CHECK(scene.counter("expired") == 0);
  check_guest(scene.guest);
}

TEST_CASE("single steps that are switched on and off do not disturb steps over a patch", "[integration][many]") {
  ManyScene scene({.vcpus = 2});
  const Gpa place = scene.hammer_gpa();
  AgentClient owner = scene.attach("owner");
  AgentClient stepper = scene.attach("stepper");
  check(owner.subscribe(events_of({EventKind::Breakpoint}), Role::Decider));
  check(stepper.subscribe(events_of({EventKind::Singlestep}), Role::Decider));
  check(patch(owner, place, bytes_of_values({0xcc})));
  std::uint64_t hits = 0;
  std::uint64_t steps = 0;
  bool on = false;
  std::vector<client::Ticket> tickets;
  constexpr std::uint64_t kCalls = 200;
  scene.guest.hammer(kCalls);
  serve({&owner, &stepper},
        [&](AgentClient& agent, const client::ReceivedEvent& event) {
          if (&agent == &stepper) {
            ++steps;
            return check(agent.reply(event, Action::Allow));
          }
          if (++hits % 7 == 0) {
            on = !on;
            tickets.push_back(check(stepper.submit(ControlSinglestep{VcpuId{0}, on})));
          }
          step_over(agent, event);
        },
        [&] { return scene.guest.hammered(); });
  check(stepper.control_singlestep(VcpuId{0}, false));
  for (const auto ticket : tickets) CHECK(check(stepper.collect(ticket, kBound)).ok());
  CHECK(hits == 2 * kCalls);
  CHECK(steps > 0);
  check_guest(scene.guest);
}

TEST_CASE("page rights that change while vCPUs step over patches hold as they were last set", "[integration][many]") {
  ManyScene scene({.vcpus = 2});
  AgentClient owner = scene.attach("owner");
  AgentClient guard = scene.attach("guard");
  check(owner.subscribe(events_of({EventKind::Breakpoint}), Role::Decider));
  check(guard.subscribe(events_of({EventKind::PageFault}), Role::Decider));
  check(patch(owner, scene.hammer_gpa(), bytes_of_values({0xcc})));
  const Gpa page{scene.hammer_gpa().value & ~(kPageSize - 1)};  // of the function itself
  std::uint64_t hits = 0;
  std::uint64_t faults = 0;
  std::vector<client::Ticket> tickets;
  constexpr std::uint64_t kCalls = 100;
  scene.guest.hammer(kCalls);
  serve({&owner, &guard},
        [&](AgentClient& agent, const client::ReceivedEvent& event) {
          if (&agent == &guard) {
            ++faults;
            return check(agent.reply(event, Action::Allow));
          }
          if (++hits % 10 == 0) {
            const auto rights = static_cast<std::uint8_t>(hits % 20 == 0 ? 7 : KVMI_PAGE_ACCESS_R);
            const kvmi_page_access_entry entry{page.value, 1, rights, {}};
            SetPageAccess command;
            command.entries = WireArray<kvmi_page_access_entry>(std::span(&entry, 1));
            tickets.push_back(check(guard.submit(command)));
          }
          step_over(agent, event);
        },
        [&] { return scene.guest.hammered(); });
  for (const auto ticket : tickets) {
    std::optional<bool> ok;
    serve({&owner, &guard},
          [&](AgentClient& agent, const client::ReceivedEvent& event) { check(agent.reply(event, Action::Allow)); },
          [&] {
            auto reply = guard.collect(ticket, Millis{0});
            if (reply) ok = reply->ok();
            return ok.has_value();
          });
    CHECK(*ok);
  }
  CHECK(hits == 2 * kCalls);
  CHECK(faults > 0);
  check_guest(scene.guest);
}

}  // namespace kvmid::test
