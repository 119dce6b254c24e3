// SPDX-License-Identifier: GPL-2.0-or-later
//
// Tools that kvmid dials: how they are greeted, found, lost and found again; and that nothing is left of one that goes.
#include <cstring>

#include "tests/integration_dialects/tool_scene.h"

namespace kvmid::test {
namespace {

constexpr std::uint8_t kNoAccess = 0;

/// Everything that a tool can leave: a breakpoint, a page without rights, a tracked register.
void take_hold(Kvmi1Tool& tool, Gpa place) {
  REQUIRE(write_bytes(tool, place, {0xcc}) == 0);
  set_page(tool, emulated::kProtectedPage.value, kNoAccess);
  need(tool, events_command(tool, EventKind::Breakpoint));
  need(tool, events_command(tool, EventKind::PageFault));
  watch_cr(tool, 4);
}

Gpa hammer_gpa(const Guest& guest) { return Gpa{guest.mailbox().hammer_gpa}; }

/// The guest does what the hold was about; how many events that made.
std::uint64_t events_of_exercise(const ToolScene& scene) {
  const std::uint64_t before = scene.counter("events");
  for (const GuestMode mode : {GuestMode::Store, GuestMode::Load, GuestMode::Int3, GuestMode::Lstar})
    scene.guest.do_times(mode, 3);
  scene.guest.hammer(10);
  scene.guest.wait_hammered();
  to_idle(scene.guest);
  const Mailbox box = scene.guest.mailbox();
  CHECK(box.hammer_hits == box.hammer_calls);
  CHECK(box.exceptions[3] == box.done[static_cast<std::size_t>(GuestMode::Int3)]);
  CHECK(box.panic == 0);
  return scene.counter("events") - before;
}

/// The survivor is told of CR4 writes, and its answer is what counts.
void still_decides_cr4(const ToolScene& scene, Kvmi1Tool& survivor) {
  const auto done = scene.guest.done(GuestMode::Cr4);
  scene.guest.set_mode(GuestMode::Cr4);
  const auto event = expect(survivor, EventKind::Cr);
  scene.guest.set_mode(GuestMode::Idle);
  const auto old_value = std::get<CrData>(event.event.data).old_value;
  survivor.reply_value(event, kvmi1::kContinue, old_value);
  go_on_until({&survivor}, [&] { return scene.guest.done(GuestMode::Cr4) > done; });
  CHECK(scene.guest.mailbox().cr4 == old_value);
}

}  // namespace

TEST_CASE("each dialect of a tool is greeted as its QEMU does", "[integration][dialects]") {
  const SpokenBy hypervisor = GENERATE(SpokenBy{}, SpokenBy{DialectId::V7}, SpokenBy{DialectId::V12});
  INFO("hypervisor " << spoken_name(hypervisor));
  ToolScene scene({.hypervisor = hypervisor,
                   .tools = {DialectId::V6, DialectId::V7, DialectId::V12},
                   .arguments = {"--start-time", "1500000000"}});
  scene.accept_all();
  for (const auto& tool : scene.tools) {
    const DialectId dialect = tool->codec().dialect();
    INFO("tool " << kvmi1::name_of(dialect));
    const ByteBuffer& bytes = tool->hello_bytes();
    REQUIRE(bytes.size() == (dialect == DialectId::V12 ? 104U : 96U));
    kvmi_handshake wire{};
    std::memcpy(&wire, bytes.data(), bytes.size());
    CHECK(wire.struct_size == bytes.size());
    CHECK(std::memcmp(wire.uuid, scene.guest.uuid().bytes.data(), sizeof wire.uuid) == 0);
    // QEMU of v6 leaves the rest zero.
    CHECK(wire.start_time == (dialect == DialectId::V6 ? 0 : 1500000000));
    CHECK(std::string(wire.name, ::strnlen(wire.name, sizeof wire.name)) == (dialect == DialectId::V6 ? "" : "web1"));
    if (dialect == DialectId::V12) CHECK(wire.max_gpa == kRamBytes);
    CHECK(tool->call(kvmi1::GetVersion{}).as<kvmi1::GetVersionReply>().version == 1);
  }
}

TEST_CASE("a tool that is killed while it owes a reply leaves nothing, and the other one keeps its events",
          "[integration][dialects]") {
  const SpokenBy hypervisor = GENERATE(SpokenBy{}, SpokenBy{DialectId::V7}, SpokenBy{DialectId::V12});
  const DialectId dialect = GENERATE(DialectId::V7, DialectId::V12);
  INFO("hypervisor " << spoken_name(hypervisor) << ", tool " << kvmi1::name_of(dialect));
  ToolScene scene({.hypervisor = hypervisor, .tools = {DialectId::V7}});
  Kvmi1Tool& survivor = scene.tool();
  survivor.accept();
  watch_cr(survivor, 4);
  const auto before = code_of(scene.guest);
  const Gpa place = hammer_gpa(scene.guest);

  const std::string path = scene.folder.file("doomed");
  char gpa[32];
  std::snprintf(gpa, sizeof gpa, "0x%llx", static_cast<unsigned long long>(place.value));
  Process doomed("dialect-tool",
                 {"--listen", path, "--dialect", std::string(kvmi1::name_of(dialect)), "--breakpoint", gpa});
  scene.config["dial"].push_back(
      {{"name", "doomed"}, {"unix", path}, {"dialect", std::string(kvmi1::name_of(dialect))}, {"redial_ms", 50}});
  scene.reload();
  doomed.wait_output("ready");
  REQUIRE(raw_memory(scene.guest, place, 1).front() == kInt3);
  REQUIRE(read_bytes(survivor, place, 1).front() == before.at(place.value - kImage));

  scene.guest.set_mode(GuestMode::Cr4);
  doomed.wait_output("event cr");
  survivor.go_on(expect(survivor, EventKind::Cr));
  scene.guest.set_mode(GuestMode::Idle);
  REQUIRE(scene.get("/v1/guests/" + scene.guest.uuid_text()).at("vcpu").at(0).at("state") == "waiting");
  doomed.kill();
  scene.guest.wait_rounds(2);  // without anybody's answer
  scene.wait_agents(1);
  CHECK(wait_until([&] { return code_of(scene.guest) == before; }));
  CHECK(events_of_exercise(scene) == 0);
  still_decides_cr4(scene, survivor);
  CHECK(code_of(scene.guest) == before);
}

TEST_CASE("a tool that closes its connection leaves nothing, is dialled again, and has nothing of before",
          "[integration][dialects]") {
  const SpokenBy hypervisor = GENERATE(SpokenBy{}, SpokenBy{DialectId::V7}, SpokenBy{DialectId::V12});
  const DialectId dialect = GENERATE(DialectId::V7, DialectId::V12);
  INFO("hypervisor " << spoken_name(hypervisor) << ", tool " << kvmi1::name_of(dialect));
  ToolScene scene({.hypervisor = hypervisor, .tools = {dialect}});
  Kvmi1Tool& tool = scene.tool();
  tool.accept();
  const auto before = code_of(scene.guest);
  const Gpa place = hammer_gpa(scene.guest);
  take_hold(tool, place);
  scene.guest.hammer(1);
  const auto owed = expect(tool, EventKind::Breakpoint);
  CHECK(owed.event.regs.rip == place.value);
  tool.hang_up();
  scene.guest.wait_hammered();
  to_idle(scene.guest);
  CHECK(wait_until([&] { return code_of(scene.guest) == before; }));

  tool.accept();
  scene.wait_agents(1);
  CHECK(read_bytes(tool, place, 1).front() == before.at(place.value - kImage));
  CHECK(events_of_exercise(scene) == 0);
  scene.guest.do_times(GuestMode::Cr4, 2);
  to_idle(scene.guest);
  CHECK(silent(tool));
  // What it had held it can have again.
  take_hold(tool, place);
  scene.guest.hammer(1);
  CHECK(expect(tool, EventKind::Breakpoint).event.regs.rip == place.value);
}

TEST_CASE("a tool that nobody has started is tried again until it listens", "[integration][dialects]") {
  ToolScene scene({.tools = {}});
  const std::string path = scene.folder.file("late");
  scene.config["dial"].push_back({{"name", "late"}, {"unix", path}, {"dialect", "v7"}, {"redial_ms", 10}});
  scene.reload();
  scene.guest.wait_online();
  REQUIRE(wait_until([&] { return scene.wait_failure("connect").at("times") >= 3; }));
  const Json failure = scene.wait_failure("connect");
  CHECK(failure.at("side") == "dial");
  CHECK(failure.at("peer") == "late unix:" + path);
  CHECK(failure.at("guest") == "web1");
  // It is one line of the log, however often it fails.
  const std::string log = log_of(scene.daemon.process());
  CHECK(log.find("step=connect") != std::string::npos);
  CHECK(log.find("step=connect") == log.rfind("step=connect"));

  Kvmi1Tool tool(path, DialectId::V7);
  tool.accept();
  CHECK(tool.call(kvmi1::GetVersion{}).ok());
  scene.wait_agents(1);
}

TEST_CASE("a guest that returns has its tools dialled again", "[integration][dialects]") {
  ToolScene scene({.hypervisor = DialectId::V7, .tools = {DialectId::V12}});
  scene.tool().accept();
  watch_cr(scene.tool(), 4);
  scene.guest.process().kill();
  CHECK(scene.tool().wait_closed());
  Guest again(scene.folder, {.name = "web1", .uuid = uuid_of(1), .arguments = {"--dialect", "v12"}});
  scene.tool().accept();
  CHECK(scene.tool().call(kvmi1::GetVersion{}).ok());
  again.do_times(GuestMode::Cr4, 2);
  CHECK(silent(scene.tool()));
}

TEST_CASE("when kvmid is killed with -9 its tools lose their connections, and the next kvmid dials them",
          "[integration][dialects]") {
  ToolScene scene({.tools = {DialectId::V7, DialectId::V12}});
  scene.accept_all();
  const auto before = code_of(scene.guest);
  REQUIRE(write_bytes(scene.tool(0), hammer_gpa(scene.guest), {0xcc}) == 0);
  scene.daemon.kill();
  for (const auto& tool : scene.tools) CHECK(tool->wait_closed());
  CHECK(wait_until([&] { return code_of(scene.guest) == before; }));
  scene.daemon.restart();
  scene.accept_all();
  for (const auto& tool : scene.tools) CHECK(tool->call(kvmi1::GetVersion{}).ok());
}

}  // namespace kvmid::test
