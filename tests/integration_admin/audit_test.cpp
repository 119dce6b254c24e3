// SPDX-License-Identifier: GPL-2.0-or-later
//
// The audit log: who did what to which guest, and what a file that cannot be written costs.

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <catch2/catch.hpp>
#include <csignal>
#include <filesystem>

#include "tests/integration_admin/admin_client.h"
#include "tests/integration_wire/scripted_hypervisor.h"

namespace kvmid::test {
namespace {

std::function<bool(const Json&)> command(std::string name) {
  return [name = std::move(name)](const Json& line) { return line.at("command") == name; };
}

/// Events that a verdict changes, one after the other: each is a line.
void make_lines(const AdminScene& scene, std::uint64_t times) { scene.guest.do_times(GuestMode::Cr4, times); }

Json config_with(const Json& audit) { return Json{{"audit", audit}}; }

}  // namespace

TEST_CASE("each command that changes the guest is a line with what it touches", "[integration][audit]") {
  AdminScene scene;
  AgentClient agent = attach(scene.daemon.agent_socket(), scene.guest.uuid(), "writer");
  const auto by_agent = [&](const Json& line) {
    CHECK(line.at("agent") == agent.welcome().agent.value);
    CHECK(line.at("name") == "writer");
    CHECK(line.at("guest") == scene.guest.uuid_text());
    CHECK(line.at("guest_name") == "web1");
    return line;
  };
  const std::array<std::byte, 8> data{};
  check(agent.write_physical(Gpa{0x30000}, data));
  const Json write = by_agent(scene.wait_audit("command_granted", command("WRITE_PHYSICAL")));
  CHECK(write.at("gpa") == "0x30000");
  CHECK(write.at("size") == 8);
  CHECK_FALSE(write.contains("operation"));

  for (const auto& [flags, operation] : {std::pair{KVMI_WRITE_PATCH, "patch"}, {KVMI_WRITE_UNPATCH, "unpatch"}}) {
    client::WriteOptions options;
    options.flags = static_cast<std::uint16_t>(flags);
    check(agent.write_physical(Gpa{0x31000}, data, options));
    const Json line = by_agent(scene.wait_audit("command_granted", [operation = operation](const Json& found) {
      return found.value("operation", "") == operation;
    }));
    CHECK(line.at("command") == "WRITE_PHYSICAL");
    CHECK(line.at("gpa") == "0x31000");
  }

  check(agent.set_page_access(Gpa{0x20000}, 1, KVMI_PAGE_ACCESS_R | KVMI_PAGE_ACCESS_X));
  const Json pages = by_agent(scene.wait_audit("command_granted", command("SET_PAGE_ACCESS")));
  CHECK(pages.at("gpa") == "0x20000");
  CHECK(pages.at("pages") == 1);
  CHECK(pages.at("access") == "r-x");
  check(agent.set_page_access(Gpa{0x20000}, 1, KVMI_PAGE_ACCESS_R | KVMI_PAGE_ACCESS_W | KVMI_PAGE_ACCESS_X));

  check(agent.pause_vcpu(VcpuId{0}));
  CHECK(by_agent(scene.wait_audit("command_granted", command("PAUSE_VCPU"))).at("vcpu") == 0);
  const auto paused = check(agent.wait_event(kBound));
  REQUIRE(paused);
  kvmi_x86_regs regs = paused->event.regs;
  check(agent.set_registers(VcpuId{0}, regs));
  by_agent(scene.wait_audit("command_granted", command("SET_REGISTERS")));
  check(agent.reply(*paused, Action::Allow, {}));
  const Json verdict = scene.wait_audit("verdict", [](const Json& line) { return line.at("event") == "pause"; });
  CHECK(verdict.at("registers_by") == agent.welcome().agent.value);

  // A read is nobody's business.
  (void)check(agent.read_physical(Gpa{0x30000}, 8));
  check(agent.shutdown_guest());
  by_agent(scene.wait_audit("command_granted", command("SHUTDOWN_GUEST")));
  for (const auto& line : scene.audit()) CHECK(line.value("command", "") != "READ_PHYSICAL");
}

TEST_CASE("an injected exception, granted and refused, is a line", "[integration][audit]") {
  AdminScene scene;
  AgentClient agent = attach(scene.daemon.agent_socket(), scene.guest.uuid());
  const auto done = agent.inject_exception({.vcpu = VcpuId{0}, .vector = 6});
  const Json line = scene.wait_audit(done ? "command_granted" : "command_refused", command("INJECT_EXCEPTION"));
  CHECK(line.at("command_seq").is_number());
  REQUIRE_FALSE(agent.inject_exception({.vcpu = VcpuId{0}, .vector = 200}).has_value());
  const Json refused = scene.wait_audit("command_refused", command("INJECT_EXCEPTION"));
  CHECK(refused.at("error") == "EINVAL");
  CHECK_FALSE(refused.at("reason").get<std::string>().empty());
}

TEST_CASE("who attaches, who may not, and who goes is a line", "[integration][audit]") {
  AdminScene scene;
  const Json hypervisor = scene.wait_audit("hypervisor_attached");
  CHECK(hypervisor.at("guest") == scene.guest.uuid_text());
  CHECK(hypervisor.at("pid") == scene.guest.process().pid());
  CHECK(hypervisor.at("uid") == ::getuid());
  {
    TestAgent agent(scene.daemon, scene.guest, {"--name", "sentinel"});
    const Json attached = scene.wait_audit("agent_attached", [&](const Json& line) {
      return line.at("agent") == agent.id();
    });
    CHECK(attached.at("name") == "sentinel");
    CHECK(attached.at("pid") == agent.process().pid());
    CHECK(attached.at("uid") == ::getuid());
    CHECK(attached.at("policy") == "tests");
    CHECK(attached.at("role") == "decider");
    agent.process().kill();
    const Json gone = scene.wait_audit("agent_detached", [&](const Json& line) { return line.at("agent") == agent.id(); });
    CHECK(gone.at("reason") == "closed by the peer");
  }
  client::ConnectOptions options;
  options.socket = scene.daemon.agent_socket();
  options.name = "lost";
  options.guest = uuid_of(77);
  REQUIRE_FALSE(AgentClient::connect(options).has_value());
  const Json refused = scene.wait_audit("agent_refused");
  CHECK(refused.at("name") == "lost");
  CHECK(refused.at("error") == "ENOENT");
  CHECK(refused.at("uid") == ::getuid());

  const ScriptedHypervisor second(scene.daemon.hypervisor_socket(), {.uuid = scene.guest.uuid(), .name = "web1"});
  REQUIRE_FALSE(second.accepted());
  CHECK(scene.wait_audit("hypervisor_refused").at("error") == "EBUSY");
  scene.guest.process().kill();
  CHECK_FALSE(scene.wait_audit("hypervisor_lost").at("reason").get<std::string>().empty());
}

TEST_CASE("a verdict that changes the guest is a line with who decided and every vote", "[integration][audit]") {
  AdminScene scene;
  TestAgent allowing(scene.daemon, scene.guest, {"--events", "cr", "--cr", "4"});
  TestAgent skipping(scene.daemon, scene.guest, {"--events", "cr", "--cr", "4", "--action", "skip"});
  make_lines(scene, 1);
  const Json line = scene.wait_audit("verdict");
  CHECK(line.at("event") == "cr");
  CHECK(line.at("data").at("cr") == 4);
  CHECK(line.at("action") == "skip");
  CHECK(line.at("decided_by") == skipping.id());
  CHECK(line.at("vcpu") == 0);
  REQUIRE(line.at("votes").size() == 2);
  for (const auto& vote : line.at("votes"))
    CHECK(vote.at("action") == (vote.at("agent") == skipping.id() ? "skip" : "allow"));
}

TEST_CASE("missed deadlines and a demotion are lines, and the log says only what it knows", "[integration][audit]") {
  AdminScene scene(Json{{"policy", {rule({{"deadline_ms", 5}, {"strikes", 2}})}}});
  TestAgent silent(scene.daemon, scene.guest, {"--events", "cr", "--cr", "4", "--silent-after", "0"});
  make_lines(scene, 3);
  const auto by_agent = [&](const Json& line) { return line.at("agent") == silent.id(); };
  const Json expired = scene.wait_audit("agent_expired", by_agent);
  CHECK(expired.at("event") == "cr");
  CHECK(expired.at("action") == "allow");
  CHECK(expired.at("event_seq").is_number());
  CHECK(scene.wait_audit("agent_demoted", by_agent).at("event") == "cr");
  scene.wait_log({"deadline missed", "event=cr", "action=allow"});
  scene.wait_log({"agent demoted to observer", "event=cr", "agent=" + std::to_string(silent.id())});
  for (const auto& line : scene.daemon.process().errors()) {
    if (line.find("deadline missed") == std::string::npos && line.find("demoted") == std::string::npos) continue;
    for (const char* meaningless : {"command=", "error=", "event=unhook"}) {
      INFO(line);
      CHECK(line.find(meaningless) == std::string::npos);
    }
  }
}

TEST_CASE("a crash is a line of its own kind", "[integration][audit]") {
  AdminScene scene;
  TestAgent crashing(scene.daemon, scene.guest, {"--events", "cr", "--cr", "4", "--action", "crash"});
  scene.guest.set_mode(GuestMode::Cr4);
  const Json crash = scene.wait_audit("crash");
  CHECK(crash.at("decided_by") == crashing.id());
  CHECK(crash.at("action") == "crash");
}

TEST_CASE("a command that policy forbids is a line, whatever it is", "[integration][audit]") {
  AdminScene scene(Json{{"policy", {rule({{"commands", {"GET_VERSION"}}})}}});
  AgentClient agent = attach(scene.daemon.agent_socket(), scene.guest.uuid());
  REQUIRE_FALSE(agent.read_physical(Gpa{0}, 8).has_value());
  const Json line = scene.wait_audit("command_refused", command("READ_PHYSICAL"));
  CHECK(line.at("error") == "EPERM");
}

TEST_CASE("an agent that asks for what it may not have without end does not fill the audit log", "[integration][audit]") {
  AdminScene scene(Json{{"policy", {rule({{"commands", {"GET_VERSION"}}})}}});
  AgentClient agent = attach(scene.daemon.agent_socket(), scene.guest.uuid());
  const auto refused_lines = [&] {
    std::size_t lines = 0;
    for (const auto& line : scene.audit()) lines += line.at("kind") == "command_refused" ? 1U : 0U;
    return lines;
  };
  const auto some = [&] {
    for (int i = 0; i < 100; ++i) REQUIRE_FALSE(agent.read_physical(Gpa{0}, 8).has_value());
  };
  std::size_t asked = 0;
  REQUIRE(wait_until([&] {
    some();
    asked += 100;
    const auto lines = scene.audit();
    return std::ranges::any_of(lines, [](const Json& line) { return line.value("left_out", 0) > 0; });
  }));
  CHECK(refused_lines() < asked / 2);
}

TEST_CASE("a full disk costs audit lines, and nobody waits for it", "[integration][audit]") {
  AdminScene scene(config_with({{"file", "/dev/full"}, {"queue_max", 16}}));
  TestAgent agent(scene.daemon, scene.guest, {"--events", "cr", "--cr", "4", "--action", "skip"});
  make_lines(scene, 30);
  scene.wait_counter("audit_dropped", 5);
  scene.wait_log({"audit log cannot be written", "file=/dev/full", "No space left"});
  CHECK(scene.counter("audit_written") == 0);
  make_lines(scene, 10);
  CHECK(agent.notices("expired").empty());
  // Room again: what waited is written, and how much is missing.
  scene.rewrite(config_with({{"file", scene.audit_file}, {"queue_max", 1000}}));
  REQUIRE(scene.reload().status == 200);
  CHECK(scene.wait_audit("lines_dropped").at("count") >= 5);
  scene.wait_log({"audit log is written again"});
  scene.wait_audit("config_reloaded");
  REQUIRE(scene.daemon.process().running());
}

TEST_CASE("a pipe that nobody reads costs audit lines, and the daemon stops in time", "[integration][audit]") {
  const RuntimeFolder pipes;
  const std::string pipe = pipes.file("pipe");
  REQUIRE(::mkfifo(pipe.c_str(), 0600) == 0);
  AdminScene scene(config_with({{"file", pipe}, {"queue_max", 16}}));
  // A pipe of one page is full soon. Holding it open keeps the size.
  const client::UniqueFd holder(::open(pipe.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC));
  REQUIRE(::fcntl(holder.get(), F_SETPIPE_SZ, 4096) > 0);
  TestAgent agent(scene.daemon, scene.guest, {"--events", "cr", "--cr", "4", "--action", "skip"});
  scene.guest.set_mode(GuestMode::Cr4);
  scene.wait_counter("audit_dropped", 10);
  scene.guest.wait_rounds(20);
  CHECK(agent.notices("expired").empty());
  scene.daemon.process().signal(SIGTERM);
  REQUIRE(scene.daemon.process().wait_exit() == Exit{0, 0});
}

TEST_CASE("SIGHUP opens the audit log anew after it was moved away, also with a mistake in the configuration",
          "[integration][audit]") {
  AdminScene scene;
  scene.wait_audit("hypervisor_attached");
  const bool mistake = GENERATE(false, true);
  std::filesystem::rename(scene.audit_file, scene.audit_file + ".1");
  if (mistake) scene.rewrite_text("{");
  scene.daemon.process().signal(SIGHUP);
  scene.wait_audit(mistake ? "config_refused" : "config_reloaded");
  TestAgent agent(scene.daemon, scene.guest, {});
  scene.wait_audit("agent_attached", [&](const Json& line) { return line.at("agent") == agent.id(); });
}

TEST_CASE("an audit log that cannot be opened keeps kvmid from starting", "[integration][audit]") {
  const RuntimeFolder folder;
  const std::string config = folder.write("c.json", R"({"audit":{"file":"/no/such/folder/audit.log"}})");
  const Finished finished = run("kvmid", {"--runtime-dir", folder.path().string(), "--config", config});
  REQUIRE(finished.exit == Exit{1, 0});
  REQUIRE_FALSE(finished.errors.empty());
  const bool named = std::ranges::any_of(finished.errors, [](const std::string& line) {
    return line.find("audit log: cannot open /no/such/folder/audit.log") != std::string::npos;
  });
  REQUIRE(named);
}

}  // namespace kvmid::test
