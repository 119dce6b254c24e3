// SPDX-License-Identifier: GPL-2.0-or-later
//
// kvmictl, kvmi-guard and kvmi-trace against a live kvmid.

#include <algorithm>
#include <array>
#include <catch2/catch.hpp>
#include <csignal>
#include <cstring>

#include "client/event_text.h"
#include "tests/integration/scenario.h"

namespace kvmid::test {
namespace {

/// kvmid with two guests.
struct Scene {
  RuntimeFolder folder;
  Daemon daemon{folder, {.config = config_text({}), .arguments = {}}};
  Guest guest{folder, {.vcpus = 2, .arguments = {}}};
  Guest other{folder, {.name = "db1", .uuid = uuid_of(2), .arguments = {}}};

  Scene() {
    guest.wait_online();
    other.wait_online();
  }

  [[nodiscard]] std::vector<std::string> with_sockets(std::vector<std::string> words) const {
    words.insert(words.begin(),
                 {"--admin-socket", folder.file("admin.sock"), "--agent-socket", folder.file("agent.sock")});
    return words;
  }
  [[nodiscard]] Finished ctl(std::vector<std::string> words) const {
    return run("kvmictl", with_sockets(std::move(words)));
  }
  [[nodiscard]] Json ctl_json(std::vector<std::string> words) const {
    words.emplace_back("--json");
    const Finished finished = ctl(std::move(words));
    INFO(finished.text());
    for (const auto& line : finished.errors) UNSCOPED_INFO(line);
    REQUIRE(finished.exit == Exit{0, 0});
    return Json::parse(finished.text());
  }
};

std::vector<std::string> agent_options(const Scene& scene, std::vector<std::string> words) {
  words.insert(words.begin(), {"--socket", scene.daemon.agent_socket(), "--guest", "web1", "--json"});
  return words;
}

/// A kvmi-trace that has set up all that it was asked for.
Process start_trace(const Scene& scene, std::vector<std::string> words) {
  Process trace("kvmi-trace", agent_options(scene, std::move(words)));
  trace.wait_errors("watching");
  return trace;
}

}  // namespace

TEST_CASE("kvmictl lists guests, agents and the daemon as they are", "[integration]") {
  Scene scene;
  TestAgent agent(scene.daemon, scene.guest, {"--name", "sentinel", "--events", "cr,msr", "--cr", "4"});

  const Json guests = scene.ctl_json({"guests"});
  REQUIRE(guests.at("guests").size() == 2);
  for (const auto* guest : {&scene.guest, &scene.other}) {
    const auto& list = guests.at("guests");
    const auto found = std::find_if(list.begin(), list.end(),
                                    [&](const Json& entry) { return entry.at("uuid") == guest->uuid_text(); });
    REQUIRE(found != list.end());
    CHECK(found->at("name") == guest->options().name);
    CHECK(found->at("vcpus") == guest->options().vcpus);
    CHECK(found->at("state") == "online");
    CHECK(found->at("agents") == (guest == &scene.guest ? 1 : 0));
  }

  const Json one = scene.ctl_json({"guest", "web1"});
  CHECK(one.at("uuid") == scene.guest.uuid_text());
  CHECK(one.at("vcpu").size() == 2);
  CHECK(one.at("agent_list") == Json::array({agent.id()}));

  const Json agents = scene.ctl_json({"agents"});
  const auto& list = agents.at("agents");
  const auto found =
      std::find_if(list.begin(), list.end(), [&](const Json& entry) { return entry.at("id") == agent.id(); });
  REQUIRE(found != list.end());
  CHECK(found->at("name") == "sentinel");
  CHECK(found->at("guest") == scene.guest.uuid_text());
  CHECK(found->at("role") == "decider");
  CHECK(found->at("events") == Json::array({"cr", "msr"}));
  CHECK(found->at("policy") == "tests");
  CHECK(found->at("pid") == agent.process().pid());

  const Json status = scene.ctl_json({"status"});
  CHECK(status.at("pid") == scene.daemon.process().pid());
  CHECK(status.at("guests") == 2);

  // For people: a table with a line for each guest.
  const Finished table = scene.ctl({"guests"});
  REQUIRE(table.exit == Exit{0, 0});
  CHECK(table.output.size() >= 3);
  CHECK(table.text().find("web1") != std::string::npos);
  CHECK(table.text().find("db1") != std::string::npos);
}

TEST_CASE("kvmictl shows a vCPU that waits, and for whom", "[integration]") {
  Scene scene;
  TestAgent silent(scene.daemon, scene.guest, {"--events", "cr", "--cr", "4", "--silent-after", "0"});
  scene.guest.set_mode(GuestMode::Cr4, 1);
  const Json owed = silent.wait_owed();

  const Json vcpus = scene.ctl_json({"guest", "web1"}).at("vcpu");

  CHECK(vcpus.at(0).at("state") == "running");
  CHECK(vcpus.at(1).at("state") == "waiting");
  CHECK(vcpus.at(1).at("event") == "cr");
  CHECK(vcpus.at(1).at("event_seq") == owed.at("seq"));
  CHECK(vcpus.at(1).at("waits_for") == Json::array({silent.id()}));
}

TEST_CASE("kvmictl reads the registers and the memory that an agent reads", "[integration]") {
  Scene scene;
  AgentClient agent = attach(scene.daemon.agent_socket(), scene.guest.uuid());

  const Json regs = scene.ctl_json({"regs", "web1", "--vcpu", "1"});
  const Json memory = scene.ctl_json({"mem", "read", "web1", "0x21000", "64"});
  const Finished dump = scene.ctl({"mem", "read", "web1", "0x10000", "16"});

  CHECK(regs.at("vcpu") == 1);
  CHECK(regs.at("mode") == 8);
  // The vCPU is in its HLT loop: these do not move.
  check(agent.pause_vcpu(VcpuId{1}));
  const auto paused = check(agent.wait_event(kBound));
  REQUIRE(paused.has_value());
  const auto expected = check(agent.get_registers(VcpuId{1}));
  check(agent.reply(*paused, Action::Allow));
  const auto hex = [](const Json& value) { return std::stoull(value.get<std::string>(), nullptr, 0); };
  CHECK(hex(regs.at("sregs").at("cr3")) == expected.sregs.cr3);
  CHECK(hex(regs.at("sregs").at("cr0")) == expected.sregs.cr0);
  CHECK(hex(regs.at("sregs").at("efer")) == expected.sregs.efer);
  CHECK(hex(regs.at("sregs").at("idt").at("base")) == KVMID_GUEST_IDT_GPA);
  CHECK(hex(regs.at("regs").at("r12")) == 1);  // the test guest keeps its vCPU's number there

  const auto read = check(agent.read_physical(emulated::kExecPage, 64));
  std::array<std::uint8_t, 64> direct{};
  scene.guest.memory().read(emulated::kExecPage, direct.data(), direct.size());
  std::string digits;
  for (const std::uint8_t byte : direct) {
    constexpr std::string_view kDigits = "0123456789abcdef";
    digits += {kDigits[byte >> 4U], kDigits[byte & 15U]};
  }
  CHECK(std::memcmp(read.data.data(), direct.data(), direct.size()) == 0);
  CHECK(memory.at("data") == digits);
  CHECK(memory.at("bytes") == 64);
  REQUIRE(dump.exit == Exit{0, 0});
  CHECK(dump.text().find("KVMIGEST") != std::string::npos);  // the mailbox's magic
}

TEST_CASE("kvmictl prints as many events as it is asked for, and the guest does not wait for it", "[integration]") {
  Scene scene;
  scene.guest.set_mode(GuestMode::Cr4);

  const Finished finished = scene.ctl({"events", "web1", "--kinds", "cr", "--count", "5", "--json"});

  REQUIRE(finished.exit == Exit{0, 0});
  REQUIRE(finished.output.size() == 5);
  std::uint64_t last = 0;
  for (const auto& line : finished.output) {
    const Json event = Json::parse(line);
    CHECK(event.at("type") == "event");
    CHECK(event.at("kind") == "cr");
    CHECK(event.at("vcpu") == 0);
    CHECK(event.at("decide") == false);
    CHECK(event.at("cr") == 4);
    if (last != 0) CHECK(event.at("seq") == last + 1);
    last = event.at("seq").get<std::uint64_t>();
  }
}

TEST_CASE("kvmictl pauses a guest, which stands still until it is resumed", "[integration]") {
  Scene scene;
  scene.guest.wait_rounds(5, 0);
  scene.guest.wait_rounds(5, 1);

  REQUIRE(scene.ctl({"pause", "web1"}).exit == Exit{0, 0});

  const std::array rounds{scene.guest.rounds(0), scene.guest.rounds(1)};
  scene.other.wait_rounds(200);  // time passes, as the other guest tells
  CHECK(scene.guest.rounds(0) == rounds[0]);
  CHECK(scene.guest.rounds(1) == rounds[1]);
  const Json vcpus = scene.ctl_json({"guest", "web1"}).at("vcpu");
  for (const auto& vcpu : vcpus) CHECK(vcpu.at("state") == "waiting");
  CHECK(scene.ctl({"pause", "web1"}).exit.code == 1);  // it is paused already

  REQUIRE(scene.ctl({"resume", "web1"}).exit == Exit{0, 0});

  scene.guest.wait_rounds(5, 0);
  scene.guest.wait_rounds(5, 1);
  CHECK(scene.ctl({"resume", "web1"}).exit.code == 1);
}

TEST_CASE("kvmictl says by its exit code what was missing", "[integration]") {
  Scene scene;

  CHECK(scene.ctl({"guest", "nobody"}).exit == Exit{4, 0});
  CHECK(scene.ctl({"regs", "nobody"}).exit == Exit{4, 0});
  CHECK(scene.ctl({"events", "nobody"}).exit == Exit{4, 0});
  CHECK(scene.ctl({"frobnicate"}).exit == Exit{2, 0});
  CHECK(scene.ctl({"mem", "read", "web1", "nowhere", "4"}).exit == Exit{2, 0});
  CHECK(scene.ctl({"mem", "read", "web1", "0x7fffffff0000", "4"}).exit == Exit{1, 0});
  scene.daemon.kill();
  for (const auto& words :
       std::vector<std::vector<std::string>>{{"guests"}, {"status"}, {"regs", "web1"}, {"pause", "web1"}}) {
    const Finished finished = scene.ctl(words);
    CHECK(finished.exit == Exit{3, 0});
    CHECK(finished.output.empty());
    CHECK_FALSE(finished.errors.empty());
  }
}

TEST_CASE("kvmi-guard keeps a protected page as it is", "[integration]") {
  Scene scene;
  const Guest& guest = scene.guest;
  guest.do_times(GuestMode::Store, 1);
  to_idle(guest);
  Process guard("kvmi-guard", agent_options(scene, {"--protect", "0x20000"}));
  guard.wait_errors("guarding");
  const std::uint64_t before = guest.memory().read_u64(emulated::kProtectedPage);

  guest.do_times(GuestMode::Store, 10);

  REQUIRE(guest.mailbox().stored > before);  // it tried
  REQUIRE(guest.memory().read_u64(emulated::kProtectedPage) == before);
  guest.do_times(GuestMode::Load, 2);  // and may still read
  REQUIRE(guest.mailbox().loaded == before);
  const Json event = Json::parse(guard.wait_output("\"decision\":\"skip\""));
  CHECK(event.at("kind") == "page_fault");
  CHECK(event.at("gpa") == "0x20000");

  guard.signal(SIGTERM);
  REQUIRE(guard.wait_exit() == Exit{0, 0});
  guest.do_times(GuestMode::Store, 2);
  REQUIRE(wait_until([&] { return guest.memory().read_u64(emulated::kProtectedPage) > before; }));
}

TEST_CASE("kvmi-guard pins LSTAR to the value that it found", "[integration]") {
  Scene scene;
  const Guest& guest = scene.guest;
  guest.do_times(GuestMode::Lstar, 1);
  to_idle(guest);
  const std::uint64_t before = guest.mailbox().lstar;
  REQUIRE(before != 0);
  Process guard("kvmi-guard", agent_options(scene, {"--pin-lstar"}));
  guard.wait_errors("guarding");

  guest.do_times(GuestMode::Lstar, 10);

  REQUIRE(guest.mailbox().lstar == before);  // as RDMSR tells the guest after each write
  const Json event = Json::parse(guard.wait_output("\"decision\":\"skip\""));
  CHECK(event.at("kind") == "msr");
}

TEST_CASE("kvmi-guard keeps a bit of CR4 set and lets other changes through", "[integration]") {
  constexpr std::uint64_t kPge = 0x80;
  Scene scene;
  const Guest& guest = scene.guest;
  Process guard("kvmi-guard", agent_options(scene, {"--pin-cr4", "pge"}));
  guard.wait_errors("guarding");
  guest.do_times(GuestMode::Cr4, 2);  // one of the two sets it, whatever it was

  for (int round = 0; round < 10; ++round) {
    guest.do_times(GuestMode::Cr4, 1);
    REQUIRE((guest.mailbox().cr4 & kPge) != 0);
  }

  guard.wait_output("keeps pinned bits 0x80");
  const std::uint64_t cr0 = guest.mailbox().cr0;
  guest.do_times(GuestMode::Cr0, 1);
  REQUIRE(wait_until([&] { return guest.mailbox().cr0 != cr0; }));
}

TEST_CASE("kvmi-trace prints what the guest does and stops after the count it was given", "[integration]") {
  Scene scene;
  scene.guest.set_mode(GuestMode::Vmcall);

  const Finished finished = run("kvmi-trace", {"--socket", scene.daemon.agent_socket(), "--guest", "web1", "--kinds",
                                               "hypercall", "--count", "7", "--json"});

  REQUIRE(finished.exit == Exit{0, 0});
  std::size_t events = 0;
  for (const auto& line : finished.output) {
    const Json json = Json::parse(line);
    if (json.at("type") != "event") continue;
    ++events;
    CHECK(json.at("kind") == "hypercall");
    CHECK(json.at("decide") == false);
  }
  CHECK(events == 7);
}

TEST_CASE("kvmi-trace prints only what its filter lets through", "[integration]") {
  Scene scene;
  // CR4 changes back and forth: without the filter half of the events would have the bit cleared.
  scene.guest.set_mode(GuestMode::Cr4);

  const Finished finished =
      run("kvmi-trace", {"--socket", scene.daemon.agent_socket(), "--guest", "web1", "--kinds", "cr", "--filter",
                         "cr: cr == 4 and changed & 0x80 == 0x80 and new & 0x80 != 0", "--count", "7", "--json"});

  for (const auto& line : finished.errors) UNSCOPED_INFO(line);
  REQUIRE(finished.exit == Exit{0, 0});
  std::size_t events = 0;
  for (const auto& line : finished.output) {
    const Json json = Json::parse(line);
    if (json.at("type") != "event") continue;
    ++events;
    const auto value = [&](const char* name) { return std::stoull(json.at(name).get<std::string>(), nullptr, 16); };
    CHECK((value("old_value") & 0x80U) == 0);
    CHECK((value("new_value") & 0x80U) != 0);
  }
  CHECK(events == 7);
}

TEST_CASE("kvmi-trace shows where a filter's text is wrong", "[integration]") {
  const Finished finished = run("kvmi-trace", {"--guest", "web1", "--filter", "cr: cr = 4"});

  REQUIRE(finished.exit == Exit{2, 0});
  REQUIRE(finished.errors.size() == 3);
  CHECK(finished.errors[0].starts_with("kvmi-trace: --filter: column 8: "));
  CHECK(finished.errors[1] == "  cr: cr = 4");
  CHECK(finished.errors[2] == "         ^");
}

TEST_CASE("kvmi-trace counts each hit of its breakpoint, which nobody else sees and kill -9 takes away",
          "[integration]") {
  constexpr std::uint64_t kCalls = 200;
  Scene scene;
  const Guest& guest = scene.guest;
  for (unsigned vcpu = 0; vcpu < 2; ++vcpu) to_idle(guest, vcpu);
  const std::uint64_t place = guest.mailbox().hammer_gpa;
  const auto ram = [&] {
    std::array<std::uint8_t, emulated::kHammerInsnBytes> bytes{};
    guest.memory().read(Gpa{place}, bytes.data(), bytes.size());
    return bytes;
  };
  const auto executed = [&] { return guest.mailbox(0).hammer_hits + guest.mailbox(1).hammer_hits; };
  const auto own = ram();
  const std::uint64_t int3s = guest.done(GuestMode::Int3);
  AgentClient other = attach(scene.daemon.agent_socket(), guest.uuid());
  EventSet listened;
  listened.add(EventKind::Breakpoint);
  listened.add(EventKind::PageFault);
  check(other.subscribe(listened, Role::Observer));
  Process trace =
      start_trace(scene, {"--kinds", "breakpoint,page_fault", "--break", client::hex(place), "--pages", "0x21000"});

  REQUIRE(ram()[0] == 0xcc);
  const auto read = check(other.read_physical(Gpa{place}, own.size()));
  CHECK(std::memcmp(read.data.data(), own.data(), own.size()) == 0);
  guest.hammer(kCalls);
  guest.wait_hammered();
  const Json last = Json::parse(trace.wait_output("\"hit\":" + std::to_string(2 * kCalls)));
  CHECK(last.at("gpa") == client::hex(place));
  CHECK(last.at("decide") == true);
  CHECK(trace.output().size() == 2 * kCalls);
  CHECK(executed() == 2 * kCalls);
  guest.do_times(GuestMode::Exec, 1);
  CHECK(Json::parse(trace.wait_output("page_fault")).at("gpa") == "0x21000");
  // The guest's own INT3 is none of its hits, and gets to the guest.
  guest.do_times(GuestMode::Int3, 1);
  to_idle(guest);
  CHECK_FALSE(Json::parse(trace.wait_output("breakpoint", 2 * kCalls)).contains("hit"));
  CHECK(guest.mailbox().exceptions[3] == guest.done(GuestMode::Int3));

  guest.hammer(100 * kCalls);
  trace.wait_output("\"hit\":" + std::to_string(3 * kCalls));
  trace.kill();
  guest.wait_hammered();

  CHECK(ram() == own);
  CHECK(executed() == 2 * 101 * kCalls);
  // Of all of it the other agent has seen the INT3s that were the guest's own.
  guest.do_times(GuestMode::Exec, 5);
  for (unsigned vcpu = 0; vcpu < 2; ++vcpu) to_idle(guest, vcpu);
  check(other.pause_vcpu(VcpuId{0}));  // comes behind all of them
  std::size_t breakpoints = 0;
  for (;;) {
    const auto event = check(other.wait_event(kBound));
    REQUIRE(event.has_value());
    if (event->event.kind() == EventKind::Pause) {
      check(other.reply(*event, Action::Allow));
      break;
    }
    REQUIRE(event->event.kind() == EventKind::Breakpoint);
    REQUIRE(std::get<BreakpointData>(event->event.data).gpa != Gpa{place});
    ++breakpoints;
  }
  CHECK(breakpoints == guest.done(GuestMode::Int3) - int3s);
}

TEST_CASE("kvmi-trace takes its breakpoint back when it has seen enough", "[integration]") {
  Scene scene;
  const Guest& guest = scene.guest;
  for (unsigned vcpu = 0; vcpu < 2; ++vcpu) to_idle(guest, vcpu);
  const std::uint64_t place = guest.mailbox().hammer_gpa;
  const std::uint64_t before = guest.memory().read_u64(Gpa{place});
  Process trace = start_trace(scene, {"--kinds", "breakpoint", "--break", client::hex(place), "--count", "5"});

  guest.hammer(100);
  guest.wait_hammered();

  REQUIRE(trace.wait_exit() == Exit{0, 0});
  REQUIRE(trace.output().size() == 5);
  CHECK(Json::parse(trace.output().back()).at("hit") == 5);
  CHECK(guest.memory().read_u64(Gpa{place}) == before);
  CHECK(guest.mailbox(0).hammer_hits + guest.mailbox(1).hammer_hits == 200);
}

TEST_CASE("kvmi-trace says why it cannot lay a breakpoint, and ends", "[integration]") {
  Scene scene;
  const auto trace = [&](std::vector<std::string> words) {
    Finished finished = run("kvmi-trace", agent_options(scene, std::move(words)));
    for (const auto& line : finished.errors) UNSCOPED_INFO(line);
    CHECK(finished.output.empty());
    REQUIRE_FALSE(finished.errors.empty());
    return finished;
  };

  SECTION("another agent has patched there") {
    AgentClient other = attach(scene.daemon.agent_socket(), scene.guest.uuid());
    const std::uint64_t place = scene.guest.mailbox().hammer_gpa;
    constexpr std::array kBytes{std::byte{0xcc}, std::byte{0x90}};
    client::WriteOptions patch;
    patch.flags = KVMI_WRITE_PATCH;
    check(other.write_physical(Gpa{place}, kBytes, patch));
    const Finished finished = trace({"--break", client::hex(place)});
    CHECK(finished.exit == Exit{1, 0});
    CHECK(finished.errors.back().starts_with("kvmi-trace: no breakpoint at " + client::hex(place) + ": "));
    CHECK(finished.errors.back().find("EBUSY") != std::string::npos);
    CHECK((scene.guest.memory().read_u64(Gpa{place}) & 0xffffU) == 0x90cc);  // it is as it was
  }
  SECTION("there is no memory") {
    const Finished finished = trace({"--break", "0x7fffffff0000"});
    CHECK(finished.exit == Exit{1, 0});
    CHECK(finished.errors.back().find("no breakpoint at 0x7fffffff0000: ") != std::string::npos);
    CHECK(finished.errors.back().find("EFAULT") != std::string::npos);
  }
  SECTION("it would not hear of the hits") {
    const Finished finished = trace({"--kinds", "cr", "--break", "0x1000"});
    CHECK(finished.exit == Exit{2, 0});
    CHECK(finished.errors.back() == "kvmi-trace: --break: --kinds leaves breakpoint out");
  }
  SECTION("that is no address") { CHECK(trace({"--break", "nowhere"}).exit == Exit{2, 0}); }
}

}  // namespace kvmid::test
