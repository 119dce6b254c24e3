// SPDX-License-Identifier: GPL-2.0-or-later
//
// Tools that share a guest, that hang, that policy holds short, and that come and go with the configuration.
#include "tests/integration_dialects/tool_scene.h"

namespace kvmid::test {
namespace {

constexpr std::uint64_t kProtected = emulated::kProtectedPage.value;

/// The guest is told to do it once more, and gets through without any tool's answer.
void gets_through(const ToolScene& scene, GuestMode mode) {
  const auto done = scene.guest.done(mode);
  scene.guest.set_mode(mode);
  REQUIRE(wait_until([&] { return scene.guest.done(mode) > done; }));
  to_idle(scene.guest);
}

std::uint64_t expired_of(const ToolScene& scene, const std::string& tool) {
  return scene.agent_json(tool).at("expired").get<std::uint64_t>();
}

bool is_in(const Json& list, const std::string& word) {
  return std::find(list.begin(), list.end(), Json(word)) != list.end();
}

}  // namespace

TEST_CASE("two tools at the same byte: each sees its own, and each gives back its own", "[integration][dialects]") {
  const SpokenBy hypervisor = GENERATE(SpokenBy{}, SpokenBy{DialectId::V7}, SpokenBy{DialectId::V12});
  INFO("hypervisor " << spoken_name(hypervisor));
  ToolScene scene({.hypervisor = hypervisor, .tools = {DialectId::V7, DialectId::V12}});
  scene.accept_all();
  Kvmi1Tool& first = scene.tool(0);
  Kvmi1Tool& second = scene.tool(1);
  const auto before = code_of(scene.guest);
  const Gpa place{scene.guest.mailbox().hammer_gpa};
  const std::byte own = before.at(place.value - kImage);

  REQUIRE(write_bytes(first, place, {0xcc}) == 0);
  CHECK(read_bytes(first, place, 1).front() == kInt3);
  CHECK(read_bytes(second, place, 1).front() == own);
  REQUIRE(write_bytes(second, place, {0xcc}) == 0);
  CHECK(read_bytes(second, place, 1).front() == kInt3);
  for (Kvmi1Tool* tool : {&first, &second}) need(*tool, events_command(*tool, EventKind::Breakpoint));
  scene.guest.hammer(1);
  const auto at_first = expect(first, EventKind::Breakpoint);
  const auto at_second = expect(second, EventKind::Breakpoint);
  CHECK(at_first.event.regs.rip == place.value);
  CHECK(at_second.event.regs.rip == place.value);
  first.go_on(at_first);
  second.go_on(at_second);
  scene.guest.wait_hammered();

  const std::uint8_t mine = std::to_integer<std::uint8_t>(own);
  REQUIRE(write_bytes(first, place, {mine}) == 0);
  CHECK(read_bytes(first, place, 1).front() == own);
  CHECK(read_bytes(second, place, 1).front() == kInt3);
  scene.guest.hammer(1);
  second.go_on(expect(second, EventKind::Breakpoint));
  scene.guest.wait_hammered();
  CHECK(silent(first));
  REQUIRE(write_bytes(second, place, {mine}) == 0);
  CHECK(code_of(scene.guest) == before);
  const Mailbox box = scene.guest.mailbox();
  CHECK(box.hammer_hits == box.hammer_calls);
}

TEST_CASE("two tools: page rights, registers and events of one are not the other's", "[integration][dialects]") {
  const SpokenBy hypervisor = GENERATE(SpokenBy{}, SpokenBy{DialectId::V7}, SpokenBy{DialectId::V12});
  INFO("hypervisor " << spoken_name(hypervisor));
  ToolScene scene({.hypervisor = hypervisor, .tools = {DialectId::V7, DialectId::V12}});
  scene.accept_all();
  Kvmi1Tool& first = scene.tool(0);
  Kvmi1Tool& second = scene.tool(1);
  for (Kvmi1Tool* tool : {&first, &second}) need(*tool, events_command(*tool, EventKind::PageFault));
  watch_cr(first, 4);
  watch_cr(second, 0);
  set_page(first, kProtected, KVMI_PAGE_ACCESS_R | KVMI_PAGE_ACCESS_X);
  set_page(second, emulated::kExecPage.value, KVMI_PAGE_ACCESS_R | KVMI_PAGE_ACCESS_W);

  const auto only_for = [&](Kvmi1Tool& who, Kvmi1Tool& other, GuestMode mode, EventKind kind) {
    INFO(name_of(kind));
    const auto done = scene.guest.done(mode);
    scene.guest.set_mode(mode);
    who.go_on(expect(who, kind));
    scene.guest.set_mode(GuestMode::Idle);
    go_on_until({&who}, [&] { return scene.guest.done(mode) > done; });
    CHECK(silent(other));
  };
  only_for(first, second, GuestMode::Store, EventKind::PageFault);
  only_for(second, first, GuestMode::Exec, EventKind::PageFault);
  only_for(first, second, GuestMode::Cr4, EventKind::Cr);
  only_for(second, first, GuestMode::Cr0, EventKind::Cr);

  // The same page with other rights: each is told of what it forbids, and giving back one leaves the other.
  set_page(second, kProtected, 0);
  only_for(second, first, GuestMode::Load, EventKind::PageFault);
  set_page(first, kProtected, 7);
  only_for(second, first, GuestMode::Store, EventKind::PageFault);
  set_page(second, kProtected, 7);
  need(first, kvmi1::ControlCr{VcpuId{0}, false, 4});
  need(second, events_command(second, EventKind::Cr, false));
  for (const GuestMode mode : {GuestMode::Store, GuestMode::Load, GuestMode::Cr4, GuestMode::Cr0})
    scene.guest.do_times(mode, 2);
  for (Kvmi1Tool* tool : {&first, &second}) CHECK(silent(*tool));
}

TEST_CASE("a tool that does not answer some events costs their deadline, and then observes those kinds only",
          "[integration][dialects]") {
  const SpokenBy hypervisor = GENERATE(SpokenBy{}, SpokenBy{DialectId::V7}, SpokenBy{DialectId::V12});
  INFO("hypervisor " << spoken_name(hypervisor));
  ToolScene scene({.hypervisor = hypervisor, .rule_overrides = {{"deadline_ms", 300}, {"strikes", 2}}});
  Kvmi1Tool& tool = scene.tool();
  tool.accept();
  need(tool, events_command(tool, EventKind::Xsetbv));
  need(tool, events_command(tool, EventKind::Hypercall));
  watch_cr(tool, 4);
  const auto decide = [&] {
    const auto done = scene.guest.done(GuestMode::Cr4);
    scene.guest.set_mode(GuestMode::Cr4);
    const auto event = expect(tool, EventKind::Cr);
    scene.guest.set_mode(GuestMode::Idle);
    const auto old_value = std::get<CrData>(event.event.data).old_value;
    tool.reply_value(event, kvmi1::kContinue, old_value);
    REQUIRE(wait_until([&] { return scene.guest.done(GuestMode::Cr4) > done; }));
    // In time on any machine but a frozen one: then nothing can be said about who decided.
    if (expired_of(scene, "tool0") != 0 && scene.guest.mailbox().cr4 != old_value)
      WARN("this machine was too slow");
    else
      CHECK(scene.guest.mailbox().cr4 == old_value);
  };
  const auto drain = [&] {
    std::size_t events = 0;
    need(tool, kvmi1::GetVersion{});
    while (tool.try_next(Millis{0})) ++events;
    return events;
  };
  decide();
  std::uint64_t expired = expired_of(scene, "tool0");
  for (const auto& [mode, kind] :
       {std::pair{GuestMode::Vmcall, EventKind::Hypercall}, {GuestMode::Xsetbv, EventKind::Xsetbv}}) {
    INFO(name_of(kind));
    const std::string name(name_of(kind));
    while (!is_in(scene.agent_json("tool0").at("demoted"), name)) gets_through(scene, mode);
    CHECK(expired_of(scene, "tool0") == expired + 2);
    expired += 2;
    CHECK(drain() >= 2);
    // It is still told, and nobody waits for it.
    gets_through(scene, mode);
    CHECK(drain() >= 1);
    CHECK(expired_of(scene, "tool0") == expired);
    CHECK_FALSE(is_in(scene.agent_json("tool0").at("demoted"), "cr"));
    decide();
  }
  // Injections of its own make TRAP events, which such tools do not answer either.
  for (unsigned i = 0; i < 2; ++i) {
    scene.guest.wait_rounds(1);
    const auto exceptions = scene.guest.mailbox().exceptions[3];
    need(tool, kvmi1::InjectException{.vcpu = VcpuId{0}, .vector = 3});
    static_cast<void>(expect(tool, EventKind::Trap));
    REQUIRE(wait_until([&] { return scene.guest.mailbox().exceptions[3] == exceptions + 1; }));
  }
  CHECK(wait_until([&] { return is_in(scene.agent_json("tool0").at("demoted"), "trap"); }));
  decide();
  CHECK(scene.agent_json("tool0").at("role") == "decider");
}

TEST_CASE("reload adds tools, changes them, and takes them away", "[integration][dialects]") {
  ToolScene scene({.tools = {DialectId::V7}});
  Kvmi1Tool& stays = scene.tool();
  stays.accept();
  watch_cr(stays, 4);
  Kvmi1Tool added(scene.folder.file("added"), DialectId::V12);
  scene.config["dial"].push_back(
      {{"name", "added"}, {"unix", scene.folder.file("added")}, {"dialect", "v12"}, {"redial_ms", 50}});
  scene.reload();
  added.accept();
  CHECK(added.hello_bytes().size() == 104);
  scene.wait_agents(2);
  watch_cr(added, 4);

  // A changed entry is a new one, and only that one.
  scene.config["dial"][1]["priority"] = 77;
  scene.reload();
  CHECK(added.wait_closed());
  added.accept();
  REQUIRE(added.call(kvmi1::GetVersion{}).ok());
  CHECK(wait_until(
      [&] { return scene.agent_json("added").is_object() && scene.agent_json("added").at("priority") == 77; }));
  CHECK(stays.call(kvmi1::GetVersion{}).ok());

  // For another guest: it goes, as one that is not in the list.
  scene.config["dial"][1]["guests"] = {"db*"};
  scene.reload();
  CHECK(added.wait_closed());
  scene.wait_agents(1);
  scene.config["dial"].erase(0);
  scene.reload();
  CHECK(stays.wait_closed());
  scene.wait_agents(0);
  scene.guest.do_times(GuestMode::Cr4, 2);
}

TEST_CASE("a tool that policy does not let in hears nothing, and is let in after a reload", "[integration][dialects]") {
  ToolScene scene({.rule_overrides = {{"guests", {"db*"}}}});
  Kvmi1Tool& tool = scene.tool();
  CHECK_THROWS_WITH(tool.accept(), Catch::Contains("closed"));  // not even of the guest
  const Json failure = scene.wait_failure("policy");
  CHECK(failure.at("side") == "dial");
  CHECK(failure.at("peer").get<std::string>().find("tool0") == 0);
  CHECK(failure.at("guest") == "web1");
  CHECK(scene.doctor().find("no policy rule lets it use the guest") != std::string::npos);
  CHECK(scene.agent_json("tool0").is_null());

  scene.config["policy"][0]["guests"] = {"web*"};
  scene.reload();
  // Those that were refused meanwhile are still in the queue.
  CHECK(wait_until([&] {
    try {
      tool.accept();
      return tool.call(kvmi1::GetVersion{}).ok();
    } catch (const TestError&) {
      return false;
    }
  }));
  scene.wait_agents(1);
}

TEST_CASE("a tool that is an observer by its entry is told, and its answers count for nothing",
          "[integration][dialects]") {
  ToolScene scene({.tools = {DialectId::V7, DialectId::V12}, .dial_overrides = {{"role", "observer"}}});
  scene.accept_all();
  for (const auto& tool : scene.tools) {
    watch_cr(*tool, 4);
    CHECK(scene.agent_json("tool0").at("role") == "observer");
  }
  const auto done = scene.guest.done(GuestMode::Cr4);
  scene.guest.set_mode(GuestMode::Cr4);
  REQUIRE(wait_until([&] { return scene.guest.done(GuestMode::Cr4) > done; }));  // nobody answers
  to_idle(scene.guest);
  for (const auto& tool : scene.tools) {
    const auto event = expect(*tool, EventKind::Cr);
    tool->reply(event, kvmi1::kCrash);
    CHECK(tool->call(kvmi1::GetVersion{}).ok());
  }
  scene.guest.do_times(GuestMode::Lstar, 1);
}

}  // namespace kvmid::test
