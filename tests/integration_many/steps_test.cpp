// SPDX-License-Identifier: GPL-2.0-or-later
//
// The instruction under a patch may do anything: fault, be an event of its own, halt. It is
// done once, as if there were no patch.

#include <catch2/catch.hpp>
#include <csignal>
#include <map>

#include "tests/integration_many/many_scene.h"

namespace kvmid::test {
namespace {

/// Where the guest does what makes this event.
Gpa place_of(ManyScene& scene, GuestMode mode, EventKind kind) {
  AgentClient finder = scene.attach("finder");
  for (const std::uint32_t cr : {0U, 3U, 4U}) check(finder.control_cr(kAllVcpus, cr, true));
  for (const std::uint32_t msr : {0x176U, 0xc0000082U}) check(finder.control_msr(kAllVcpus, msr, true));
  check(finder.subscribe(events_of({kind}), Role::Decider));
  if (kind == EventKind::PageFault) check(finder.set_page_access(emulated::kProtectedPage, 1, KVMI_PAGE_ACCESS_R));
  scene.guest.set_mode(mode);
  const auto event = check(finder.wait_event(kBound));
  if (!event) throw TestError("the guest does not do it");
  scene.guest.set_mode(GuestMode::Idle);
  check(finder.reply(*event, Action::Allow));
  finder.close();
  scene.wait_agents(0);
  scene.guest.wait_rounds(2);
  return Gpa{event->event.regs.rip};
}

/// The guest does it so often under a patch whose owner answers each hit; how many hits there were.
std::uint64_t hits_of(ManyScene& scene, AgentClient& owner, GuestMode mode, std::uint64_t times,
                      const OnEvent& on_other = {}) {
  std::uint64_t hits = 0;
  const OnEvent on_event = [&](AgentClient& agent, const client::ReceivedEvent& event) {
    if (event.event.kind() != EventKind::Breakpoint) return on_other(agent, event);
    ++hits;
    hits % 2 == 0 ? step_over(agent, event) : check(agent.reply(event, Action::Allow));
  };
  const std::uint64_t target = scene.guest.done(mode) + times;
  scene.guest.set_mode(mode);
  serve({&owner}, on_event, [&] { return scene.guest.done(mode) >= target; });
  scene.guest.set_mode(GuestMode::Idle);
  const std::uint64_t rounds = scene.guest.rounds() + 2;
  serve({&owner}, on_event, [&] { return scene.guest.rounds() >= rounds; });
  return hits;
}

std::size_t index_of(GuestMode mode) { return static_cast<std::size_t>(mode); }

}  // namespace

TEST_CASE("what the instruction under a patch does is done once for each hit", "[integration][many]") {
  struct Row {
    GuestMode mode;
    EventKind kind;
  };
  const Row row = GENERATE(Row{GuestMode::Cr4, EventKind::Cr}, Row{GuestMode::Msr, EventKind::Msr},
                           Row{GuestMode::Vmcall, EventKind::Hypercall}, Row{GuestMode::Cpuid, EventKind::Cpuid},
                           Row{GuestMode::Xsetbv, EventKind::Xsetbv}, Row{GuestMode::Gdt, EventKind::Descriptor});
  INFO(name_of(row.kind));
  ManyScene scene({.vcpus = 2});
  const Gpa place = place_of(scene, row.mode, row.kind);
  AgentClient owner = scene.attach("owner");
  check(owner.subscribe(events_of({EventKind::Breakpoint}), Role::Decider));
  check(patch(owner, place, bytes_of_values({0xcc})));
  SECTION("nobody watches it") {}
  SECTION("it is an event of its own") {
    for (const std::uint32_t cr : {0U, 3U, 4U}) check(owner.control_cr(kAllVcpus, cr, true));
    check(owner.control_msr(kAllVcpus, 0x176, true));
    check(owner.subscribe(events_of({row.kind}), Role::Decider));
  }
  std::uint64_t others = 0;
  const std::uint64_t before = scene.guest.done(row.mode);
  const auto hits = hits_of(scene, owner, row.mode, 6, [&](AgentClient& agent, const client::ReceivedEvent& event) {
    CHECK(event.event.kind() == row.kind);
    if (event.event.regs.rip == place.value) ++others;
    check(agent.reply(event, Action::Allow));
  });
  CHECK(hits == scene.guest.done(row.mode) - before);
  CHECK((others == 0 || others == hits));
  CHECK(scene.counter("stepped_over") == hits);
  CHECK(scene.guest.mailbox().panic == 0);
}

TEST_CASE("a page fault of the instruction under a patch is an event, and then the instruction is done",
          "[integration][many]") {
  ManyScene scene({.vcpus = 2});
  const Gpa place = place_of(scene, GuestMode::Store, EventKind::PageFault);
  AgentClient owner = scene.attach("owner");
  check(owner.subscribe(events_of({EventKind::Breakpoint, EventKind::PageFault}), Role::Decider));
  check(patch(owner, place, bytes_of_values({0xcc})));
  check(owner.set_page_access(emulated::kProtectedPage, 1, KVMI_PAGE_ACCESS_R));
  std::uint64_t faults = 0;
  const std::uint64_t before = scene.guest.done(GuestMode::Store);
  const auto hits = hits_of(scene, owner, GuestMode::Store, 6, [&](AgentClient& agent, const auto& event) {
    REQUIRE(event.event.kind() == EventKind::PageFault);
    CHECK(event.event.regs.rip == place.value);
    ++faults;
    check(agent.reply(event, Action::Allow));
  });
  CHECK(hits == scene.guest.done(GuestMode::Store) - before);
  CHECK(faults == hits);
  CHECK(scene.guest.memory().read_u64(emulated::kProtectedPage) == scene.guest.mailbox().stored);
}

TEST_CASE("an INT3 of the guest under a patch is given to the guest", "[integration][many]") {
  ManyScene scene;
  const Gpa place = place_of(scene, GuestMode::Int3, EventKind::Breakpoint);
  AgentClient owner = scene.attach("owner");
  check(owner.subscribe(events_of({EventKind::Breakpoint}), Role::Decider));
  check(patch(owner, place, bytes_of_values({0xcc})));
  const Mailbox before = scene.guest.mailbox();
  std::uint64_t hits = 0;
  const auto done_now = [&] { return scene.guest.done(GuestMode::Int3) - before.done.at(index_of(GuestMode::Int3)); };
  scene.guest.set_mode(GuestMode::Int3);
  serve({&owner},
        [&](AgentClient& agent, const client::ReceivedEvent& event) {
          ++hits;
          if (done_now() >= 2) scene.guest.set_mode(GuestMode::Idle);
          check(agent.reply(event, Action::Allow));
        },
        [&] { return done_now() >= 3; });
  const Mailbox after = scene.guest.mailbox();
  CHECK(hits >= done_now());
  CHECK(after.exceptions[3] - before.exceptions[3] == done_now());
  CHECK(scene.counter("stepped_over") == done_now());
}

TEST_CASE("a hit that waits while its patch is taken off is not given to the guest", "[integration][many]") {
  const bool expires = GENERATE(false, true);
  ManyScene scene({.rule_overrides = {{"deadline_ms", expires ? 50 : 60000}}});
  AgentClient owner = scene.attach("owner");
  check(owner.subscribe(events_of({EventKind::Breakpoint}), Role::Decider));
  check(patch(owner, scene.hammer_gpa(), bytes_of_values({0xcc})));
  scene.guest.hammer(1);
  const auto event = check(owner.wait_event(kBound));
  REQUIRE(event);
  const auto before = scene.guest.mailbox().exceptions[3];
  if (expires) {
    check(unpatch(owner, scene.hammer_gpa(), 1));
  } else {
    SECTION("given back, then ALLOW") {
      check(unpatch(owner, scene.hammer_gpa(), 1));
      check(owner.reply(*event, Action::Allow));
    }
    SECTION("given back, and STEP_OVER as for every hit") {
      check(unpatch(owner, scene.hammer_gpa(), 1));
      step_over(owner, *event);
    }
    SECTION("taken away by a reload, then ALLOW") {
      scene.reload_rule({{"commands", {"CONTROL_EVENTS", "READ_PHYSICAL"}}});
      REQUIRE(wait_until([&] { return raw_memory(scene.guest, scene.hammer_gpa(), 1).front() != kInt3; }));
      check(owner.reply(*event, Action::Allow));
    }
  }
  scene.guest.wait_hammered();
  CHECK(scene.guest.mailbox().hammer_hits == 1);
  CHECK(scene.guest.mailbox().exceptions[3] == before);
}

TEST_CASE("single steps of one agent and steps over a patch of another do not mix", "[integration][many]") {
  ManyScene scene({.vcpus = 2});
  constexpr std::uint64_t kCalls = 20;
  AgentClient owner = scene.attach("owner");
  AgentClient stepper = scene.attach("stepper");
  AgentClient listener = scene.attach("listener");
  check(owner.subscribe(events_of({EventKind::Breakpoint}), Role::Decider));
  check(stepper.subscribe(events_of({EventKind::Singlestep}), Role::Decider));
  check(listener.subscribe(events_of({EventKind::Singlestep}), Role::Observer));
  const Gpa place = scene.hammer_gpa();
  check(patch(owner, place, bytes_of_values({0xcc})));
  check(stepper.control_singlestep(VcpuId{0}, true));
  std::map<const AgentClient*, std::uint64_t> got;
  std::uint64_t behind = 0;
  scene.guest.hammer(kCalls);
  serve({&owner, &stepper, &listener},
        [&](AgentClient& agent, const client::ReceivedEvent& event) {
          ++got[&agent];
          if (&agent == &owner) return step_over(agent, event);
          REQUIRE(&agent == &stepper);  // kvmid's own steps are nobody's business
          CHECK(event.event.vcpu == VcpuId{0});
          if (event.event.regs.rip == place.value + emulated::kHammerInsnBytes) ++behind;
          check(agent.reply(event, Action::Allow));
        },
        [&] { return scene.guest.hammered(); });
  CHECK(got[&owner] == 2 * kCalls);
  CHECK(behind == kCalls);
  CHECK(got[&listener] == 0);
  stepper.close();
  for (unsigned vcpu = 0; vcpu < 2; ++vcpu) CHECK(scene.guest.mailbox(vcpu).hammer_hits == kCalls);
}

TEST_CASE("a vCPU that waits in a hit executes the guest's own instruction when whoever it waits for goes",
          "[integration][many]") {
  ManyScene scene({.vcpus = 2, .arguments = {"--leave-ms", "100"}});
  char place[32];
  std::snprintf(place, sizeof place, "0x%llx", static_cast<unsigned long long>(scene.hammer_gpa().value));
  Process owner = scene.start_agent(
      "owner", {"--patch", std::string(place) + ":cc", "--events", "breakpoint", "--answer", "none"});
  const auto exceptions = [&] { return scene.guest.mailbox(0).exceptions[3] + scene.guest.mailbox(1).exceptions[3]; };
  const std::uint64_t before = exceptions();
  scene.guest.hammer(30);
  REQUIRE(wait_until([&] { return lines_with(owner, R"("type":"event")") == 2; }));  // both wait
  SECTION("it is killed") { owner.kill(); }
  SECTION("it closes") { owner.signal(SIGINT); }
  SECTION("the guest is let go") {
    scene.guest.process().signal(SIGUSR2);
    owner.wait_output(R"("type":"guest_on")");
    owner.kill();
  }
  SECTION("kvmid is killed with -9") { scene.daemon.kill(); }
  SECTION("kvmid stops") {
    scene.daemon.process().signal(SIGTERM);
    CHECK(scene.daemon.process().wait_exit() == Exit{});
  }
  scene.guest.wait_hammered();
  for (unsigned vcpu = 0; vcpu < 2; ++vcpu) CHECK(scene.guest.mailbox(vcpu).hammer_hits == 30);
  CHECK(exceptions() == before);
}

TEST_CASE("patches that come and go under vCPUs that run cost the guest nothing", "[integration][many]") {
  ManyScene scene({.vcpus = 4});
  AgentClient first = scene.attach("first");
  AgentClient second = scene.attach("second");
  const Gpa place = scene.hammer_gpa();
  const EventSet breakpoints = events_of({EventKind::Breakpoint});
  for (AgentClient* agent : {&first, &second}) check(agent->subscribe(breakpoints, Role::Decider));
  std::map<const AgentClient*, std::uint64_t> hits;
  bool there = true;
  const OnEvent answer = [&](AgentClient& agent, const client::ReceivedEvent& event) {
    CHECK(std::get<BreakpointData>(event.event.data).gpa == place);
    ++hits[&agent];
    check(agent.reply(event, there ? Action::Allow : Action::Retry));
  };
  for (int i = 0; i < 40; ++i) {
    scene.guest.hammer(3000);
    there = true;
    AgentClient& agent = i % 3 == 0 ? first : second;
    check(patch(agent, place, bytes_of_values({0xcc})));
    if (i % 4 == 0) check(patch(&agent == &first ? second : first, place, bytes_of_values({0xcc})));
    const std::uint64_t wanted = hits[&agent] + 3;
    serve({&first, &second}, answer, [&] { return hits[&agent] >= wanted || scene.guest.hammered(); });
    there = false;
    check(unpatch(agent, place, 1));
    if (i % 4 == 0) check(unpatch(&agent == &first ? second : first, place, 1));
    serve({&first, &second}, answer, [&] { return scene.guest.hammered(); });
  }
  for (unsigned vcpu = 0; vcpu < 4; ++vcpu) {
    const Mailbox box = scene.guest.mailbox(vcpu);
    CHECK(box.hammer_hits == box.hammer_calls);
    CHECK(box.exceptions[3] == box.done[static_cast<std::size_t>(GuestMode::Int3)]);
  }
  CHECK(hits[&first] > 0);
  CHECK(hits[&second] > 0);
}

TEST_CASE("a vCPU that an agent has paused does not keep others from stepping over a patch", "[integration][many]") {
  ManyScene scene({.vcpus = 2});
  AgentClient owner = scene.attach("owner");
  AgentClient pauser = scene.attach("pauser");
  check(owner.subscribe(events_of({EventKind::Breakpoint}), Role::Decider));
  check(patch(owner, scene.hammer_gpa(), bytes_of_values({0xcc})));
  check(pauser.pause_vcpu(VcpuId{1}));
  const auto paused = check(pauser.wait_event(kBound));
  REQUIRE(paused);
  std::uint64_t hits = 0;
  const OnEvent answer = [&](AgentClient& agent, const client::ReceivedEvent& event) {
    ++hits;
    step_over(agent, event);
  };
  scene.guest.hammer(50);
  const auto calls = [&](unsigned vcpu) { return scene.guest.mailbox(vcpu).hammer_calls; };
  serve({&owner}, answer, [&] { return calls(0) == 50; });
  CHECK(hits == 50);
  CHECK(calls(1) == 0);
  check(pauser.reply(*paused, Action::Allow));
  serve({&owner}, answer, [&] { return scene.guest.hammered(); });
  CHECK(hits == 100);
  CHECK_FALSE(check(pauser.wait_event(Millis{0})));
}

TEST_CASE("a patch on HLT is stepped over, and the others run", "[integration][many]") {
  ManyScene scene({.vcpus = 2});
  // The guest's loop halts in each round: its HLT (0xf4) is where a halted vCPU stands, or just before it.
  AgentClient owner = scene.attach("owner");
  std::optional<Gpa> place;
  REQUIRE(wait_until([&] {
    const std::uint64_t rip = check(owner.get_registers(VcpuId{0})).regs.rip;
    for (const std::uint64_t at : {rip, rip - 1})
      if (raw_memory(scene.guest, Gpa{at}, 1) == bytes_of_values({0xf4})) place = Gpa{at};
    return place.has_value();
  }));
  check(owner.subscribe(events_of({EventKind::Breakpoint}), Role::Decider));
  check(patch(owner, *place, bytes_of_values({0xcc})));
  std::uint64_t hits = 0;
  const std::uint64_t rounds = scene.guest.rounds(0) + scene.guest.rounds(1);
  serve({&owner},
        [&](AgentClient& agent, const client::ReceivedEvent& event) {
          ++hits;
          check(agent.reply(event, Action::Allow));
        },
        [&] { return scene.guest.rounds(0) + scene.guest.rounds(1) >= rounds + 20; });
  CHECK(hits >= 16);
  check(unpatch(owner, *place, 1));
}

}  // namespace kvmid::test
