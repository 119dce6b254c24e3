// SPDX-License-Identifier: GPL-2.0-or-later
//
// A guest is let go for a while (suspend, migration): kvmid takes everything out of it at once, whatever its tools do,
// tells those that want to know, and everybody finds the guest again.
#include <csignal>
#include <cstring>

#include "tests/integration_dialects/tool_scene.h"

namespace kvmid::test {
namespace {

constexpr Gpa kFarPatch{0x800ffc};

kvmi1::ControlVmEvents wants_unhook(const Kvmi1Tool& tool) {
  return {tool.codec().number_of(EventKind::Unhook).value(), true};
}

void leave(ToolScene& scene) {
  scene.guest.process().signal(SIGUSR2);
  // kvmid has answered, in the dialect's way: KVMI 2 has a reply, the others close.
  scene.guest.process().wait_errors("guest is held");
  CHECK(log_of(scene.guest.process()).find("did not let the guest go") == std::string::npos);
}

SpokenBy any_hypervisor() { return GENERATE(SpokenBy{}, SpokenBy{DialectId::V7}, SpokenBy{DialectId::V12}); }

}  // namespace

TEST_CASE("a guest that leaves is clean before any tool has closed, and is found again", "[integration][dialects]") {
  const SpokenBy hypervisor = any_hypervisor();
  INFO("hypervisor " << spoken_name(hypervisor));
  ToolScene scene({.hypervisor = hypervisor,
                   .tools = {DialectId::V7, DialectId::V12, DialectId::V7},
                   .arguments = {"--leave-ms", "1000"}});
  scene.accept_all();
  Kvmi1Tool& owing = scene.tool(0);
  Kvmi1Tool& newer = scene.tool(1);
  Kvmi1Tool& unaware = scene.tool(2);
  const auto before = code_of(scene.guest);
  const Gpa place{scene.guest.mailbox().hammer_gpa};
  const std::byte own = before.at(place.value - kImage);

  AgentClient agent = attach(scene.daemon.agent_socket(), scene.guest.wait_online().uuid());
  const auto far = bytes_of_values({0xde, 0xad, 0xbe, 0xef});
  REQUIRE(patch(agent, kFarPatch, far));
  check(agent.subscribe(events_of({EventKind::Cr}), Role::Decider));
  check(agent.control_cr(VcpuId{0}, 4, true));
  for (Kvmi1Tool* tool : {&owing, &newer}) need(*tool, wants_unhook(*tool));
  REQUIRE(write_bytes(owing, place, {0xcc}) == 0);
  need(owing, events_command(owing, EventKind::Breakpoint));
  need(newer, events_command(newer, EventKind::PageFault));
  set_page(newer, emulated::kProtectedPage.value, 0);
  watch_cr(unaware, 3);
  scene.guest.hammer(1);
  const auto owed = expect(owing, EventKind::Breakpoint);

  leave(scene);
  CHECK(code_of(scene.guest) == before);  // no tool has closed yet
  CHECK(unaware.wait_closed());
  for (Kvmi1Tool* tool : {&owing, &newer}) {
    INFO("tool " << kvmi1::name_of(tool->codec().dialect()));
    CHECK(expect(*tool, EventKind::Unhook).event.vcpu == kAllVcpus);
    // Its clean-up: answered, and there is nothing left to do.
    CHECK(tool->call(kvmi1::GetVersion{}).ok());
    const std::vector<std::byte> byte{own};
    CHECK(error_of(*tool, kvmi1::WritePhysical{place, byte}) == -kvmi1::kEopnotsupp);
    CHECK(error_of(*tool, kvmi1::ReadPhysical{place, 1}) == -kvmi1::kEopnotsupp);
    CHECK(error_of(*tool, events_command(*tool, EventKind::Breakpoint, false)) == -kvmi1::kEopnotsupp);
  }
  owing.go_on(owed);
  CHECK(owing.call(kvmi1::GetVersion{}).ok());
  CHECK(raw_memory(scene.guest, place, 1).front() == own);
  owing.hang_up();
  newer.hang_up();

  // The guest is back: so are its tools, with nothing of before, and the agent's hooks.
  scene.accept_all();
  for (const auto& tool : scene.tools) CHECK(tool->call(kvmi1::GetVersion{}).ok());
  CHECK(wait_until([&] { return raw_memory(scene.guest, kFarPatch, far.size()) == far; }));
  CHECK(raw_memory(scene.guest, place, 1).front() == own);
  scene.guest.wait_hammered();
  for (const GuestMode mode : {GuestMode::Store, GuestMode::Load, GuestMode::Cr3}) scene.guest.do_times(mode, 2);
  to_idle(scene.guest);
  for (const auto& tool : scene.tools) CHECK(silent(*tool));
  const auto done = scene.guest.done(GuestMode::Cr4);
  scene.guest.set_mode(GuestMode::Cr4);
  serve(
      {&agent},
      [](AgentClient& who, const client::ReceivedEvent& event) {
        CHECK(event.event.kind() == EventKind::Cr);
        check(who.reply(event, Action::Allow));
      },
      [&] { return scene.guest.done(GuestMode::Cr4) > done; });
  scene.guest.set_mode(GuestMode::Idle);
}

TEST_CASE("a tool that never closes after UNHOOK holds neither the guest nor the others", "[integration][dialects]") {
  const SpokenBy hypervisor = any_hypervisor();
  INFO("hypervisor " << spoken_name(hypervisor));
  ToolScene scene(
      {.hypervisor = hypervisor, .tools = {DialectId::V7, DialectId::V12}, .arguments = {"--leave-ms", "200"}});
  scene.accept_all();
  Kvmi1Tool& stubborn = scene.tool(0);
  Kvmi1Tool& plain = scene.tool(1);
  need(stubborn, wants_unhook(stubborn));
  watch_cr(stubborn, 4);
  leave(scene);
  CHECK(expect(stubborn, EventKind::Unhook).event.vcpu == kAllVcpus);
  CHECK(plain.wait_closed());

  plain.accept();  // the guest is back
  watch_cr(plain, 4);
  const auto done = scene.guest.done(GuestMode::Cr4);
  scene.guest.set_mode(GuestMode::Cr4);
  plain.go_on(expect(plain, EventKind::Cr));
  scene.guest.set_mode(GuestMode::Idle);
  go_on_until({&plain}, [&] { return scene.guest.done(GuestMode::Cr4) > done; });
  // It has had its time, and begins anew.
  CHECK(stubborn.wait_closed());
  stubborn.accept();
  CHECK(stubborn.call(kvmi1::GetVersion{}).ok());
}

TEST_CASE("a tool that does not want UNHOOK any more is closed at once", "[integration][dialects]") {
  const DialectId dialect = GENERATE(DialectId::V6, DialectId::V7, DialectId::V12);
  INFO("tool " << kvmi1::name_of(dialect));
  ToolScene scene({.hypervisor = DialectId::V12, .tools = {dialect}, .arguments = {"--leave-ms", "200"}});
  scene.accept_all();
  auto command = wants_unhook(scene.tool());
  need(scene.tool(), command);
  command.enable = false;
  need(scene.tool(), command);
  leave(scene);
  CHECK_THROWS_WITH(scene.tool().next(), Catch::Contains("closed"));  // no event before that
  scene.accept_all();
  CHECK(scene.tool().call(kvmi1::GetVersion{}).ok());
}

TEST_CASE("a guest that leaves again and again loses nothing and keeps nothing", "[integration][dialects]") {
  const SpokenBy hypervisor = any_hypervisor();
  INFO("hypervisor " << spoken_name(hypervisor));
  ToolScene scene({.hypervisor = hypervisor, .arguments = {"--leave-ms", "20"}});
  Kvmi1Tool& tool = scene.tool();
  const auto before = code_of(scene.guest);
  const Gpa place{scene.guest.mailbox().hammer_gpa};
  for (unsigned round = 0; round < 5; ++round) {
    tool.accept();
    if (round % 2 == 0) need(tool, wants_unhook(tool));
    CHECK(read_bytes(tool, place, 1).front() == before.at(place.value - kImage));
    REQUIRE(write_bytes(tool, place, {0xcc}) == 0);
    REQUIRE(raw_memory(scene.guest, place, 1).front() == kInt3);
    scene.guest.process().signal(SIGUSR2);
    if (round % 2 == 0)
      static_cast<void>(expect(tool, EventKind::Unhook));
    else
      CHECK(tool.wait_closed());
    CHECK(wait_until([&] { return code_of(scene.guest) == before; }));
  }
  tool.accept();
  CHECK(tool.call(kvmi1::GetVersion{}).ok());
}

}  // namespace kvmid::test
