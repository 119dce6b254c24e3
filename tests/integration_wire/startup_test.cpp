// SPDX-License-Identifier: GPL-2.0-or-later
// Starting: a wrong configuration, a socket that cannot be, a daemon that is there already. The error names the place.
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
#include <catch2/catch.hpp>

#include <csignal>
#include <filesystem>

#include "tests/integration_wire/bystander.h"
#include "tests/integration_wire/wire_daemon.h"

using namespace kvmid;
using namespace kvmid::test;

namespace {

constexpr int kExitFailure = 1;   // kvmid --help: could not start
constexpr int kExitBadUsage = 2;  // a mistake in the configuration or on the command line

std::string everything(const Finished& finished) {
  std::string text = finished.text();
  for (const auto& line : finished.errors) text += line + "\n";
  return text;
}

struct WrongConfig {
  std::string text;
  std::string path;    ///< JSON pointer that the message must name
  std::string reason;  ///< and what it must say
};

const std::vector<WrongConfig> kWrongConfigs{
    {"", "", ""},
    {"{", "", "line 1"},
    {"[]", "", "object"},
    {R"({"shards": "many"})", "/shards", "many"},
    {R"({"shards": -1})", "/shards", "-1"},
    {R"({"shards": 1000})", "/shards", "1000"},
    {R"({"shrads": 1})", "/shrads", "shards"},
    {R"({"shards": 1, "shards": 2})", "/shards", "twice"},
    {R"({"log": {"level": "info", "level": "debug"}})", "/log/level", "twice"},
    {R"({"policy": [{"match": "*"}, {"match": "*", "role": "decider", "role": "observer"}]})", "/policy/1/role",
     "twice"},
    {R"({"log": {"level": "loud"}})", "/log/level", "loud"},
    {R"({"limits": {"hello_timeout_ms": 0}})", "/limits/hello_timeout_ms", "0"},
    {R"({"limits": {"guests_max": 1e99}})", "/limits/guests_max", ""},
    {R"({"listen": {"agents": {"unix": "relative.sock"}}})", "/listen/agents/unix", "absolute"},
    {R"({"listen": {"agents": {"mode": "0999"}}})", "/listen/agents/mode", "0999"},
    {R"({"listen": {"agents": {"unix": "/tmp/a"}, "admin": {"unix": "/tmp/a"}}})", "/listen", "/tmp/a"},
    {R"({"policy": {}})", "/policy", "list"},
    {R"({"policy": [{}]})", "/policy/0", "match"},
    {R"({"policy": [{"match": "everybody"}]})", "/policy/0/match", "everybody"},
    {R"({"policy": [{"match": {}}]})", "/policy/0/match", "nobody"},
    {R"({"policy": [{"match": {"uid": [0, "no-such-user"]}}]})", "/policy/0/match/uid/1", "no-such-user"},
    {R"({"policy": [{"match": {"uid": [4294967296]}}]})", "/policy/0/match/uid/0", "4294967296"},
    {R"({"policy": [{"match": "*", "commands": ["*"]}, {"match": "*", "commands": ["READ_PHYSICAL", "FLY"]}]})",
     "/policy/1/commands/1", "FLY"},
    {R"({"policy": [{"match": "*", "events": ["cr", "Cr"]}]})", "/policy/0/events/1", "Cr"},
    {R"({"policy": [{"match": "*", "role": "king"}]})", "/policy/0/role", "king"},
    {R"({"policy": [{"match": "*", "default": "explode"}]})", "/policy/0/default", "explode"},
    {R"({"policy": [{"match": "*", "deadline_ms": "fast"}]})", "/policy/0/deadline_ms", "fast"},
    {R"({"policy": [{"match": "*", "quota": {"requests": 0}}]})", "/policy/0/quota/requests", "0"},
    {R"({"policy": [{"match": "*", "quota": {"queue_bytes": 1}}]})", "/policy/0/quota/queue_bytes", "1"},
};

}  // namespace

TEST_CASE("a wrong configuration is refused with the JSON path of the mistake", "[wire][startup]") {
  const RuntimeFolder folder;
  for (const auto& wrong : kWrongConfigs) {
    INFO(wrong.text);
    const std::string file = folder.write("kvmid.json", wrong.text);
    const auto checked = run("kvmid", {"--check-config", file});
    CHECK(checked.exit == Exit{kExitBadUsage, 0});
    CHECK_THAT(everything(checked),
               Catch::Contains(file) && Catch::Contains(wrong.path) && Catch::Contains(wrong.reason));
    // Started for real it says the same, and leaves nothing behind.
    const auto started = run("kvmid", {"--runtime-dir", folder.file("run"), "--config", file});
    CHECK(started.exit == Exit{kExitBadUsage, 0});
    CHECK_THAT(everything(started),
               Catch::Contains(file) && Catch::Contains(wrong.path) && Catch::Contains(wrong.reason));
    CHECK_FALSE(std::filesystem::exists(folder.file("run/agent.sock")));
  }
}

TEST_CASE("--check-config says ok and does nothing else", "[wire][startup]") {
  const RuntimeFolder folder;
  const std::string file = folder.write("kvmid.json", wire_config());
  const auto checked = run("kvmid", {"--check-config", file});
  CHECK(checked.exit == Exit{0, 0});
  CHECK_THAT(checked.text(), Catch::Contains("ok"));
  CHECK(checked.errors.empty());
}

TEST_CASE("a configuration that cannot be read is an error with its name and the reason", "[wire][startup]") {
  const RuntimeFolder folder;
  const std::string missing = folder.file("missing.json");
  for (const auto& option : {"--config", "--check-config"}) {
    const auto finished = run("kvmid", {option, missing});
    CHECK(finished.exit == Exit{kExitBadUsage, 0});
    CHECK_THAT(everything(finished), Catch::Contains(missing) && Catch::Contains("No such file"));
    const auto folder_given = run("kvmid", {option, folder.path()});
    CHECK(folder_given.exit == Exit{kExitBadUsage, 0});
    CHECK_THAT(everything(folder_given), Catch::Contains(folder.path().string()));
  }
  if (::geteuid() != 0) {  // root reads everything
    const std::string secret = folder.write("secret.json", "{}");
    REQUIRE(::chmod(secret.c_str(), 0) == 0);
    const auto finished = run("kvmid", {"--check-config", secret});
    CHECK(finished.exit == Exit{kExitBadUsage, 0});
    CHECK_THAT(everything(finished), Catch::Contains("Permission denied"));
  }
}

TEST_CASE("a socket path that is too long is an error that says the limit", "[wire][startup]") {
  const RuntimeFolder folder;
  const std::string long_folder = folder.file(std::string(100, 'x'));
  const auto started = run("kvmid", {"--runtime-dir", long_folder});
  CHECK(started.exit == Exit{kExitFailure, 0});
  CHECK_THAT(everything(started), Catch::Contains(long_folder) && Catch::Contains("107"));

  const std::string file =
      folder.write("kvmid.json", R"({"listen": {"agents": {"unix": "/tmp/)" + std::string(120, 'x') + R"("}}})");
  const auto checked = run("kvmid", {"--check-config", file});
  CHECK(checked.exit == Exit{kExitBadUsage, 0});
  CHECK_THAT(everything(checked), Catch::Contains("/listen/agents/unix") && Catch::Contains("107"));
}

TEST_CASE("a wrong command line is an error", "[wire][startup]") {
  for (const auto& arguments : std::vector<std::vector<std::string>>{{"--no-such-option"},
                                                                     {"--log-level", "loud"},
                                                                     {"--config"},
                                                                     {"--config", "a", "--check-config", "b"},
                                                                     {"stray"}}) {
    const auto finished = run("kvmid", arguments);
    CHECK(finished.exit == Exit{kExitBadUsage, 0});
    CHECK_FALSE(finished.errors.empty());
  }
}

TEST_CASE("a socket file left behind by a daemon that died is replaced", "[wire][startup]") {
  const RuntimeFolder folder;
  for (const auto& name : {"agent.sock", "hypervisor.sock", "admin.sock"}) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    const std::string path = folder.file(name);
    std::memcpy(address.sun_path, path.data(), path.size());
    const client::UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    REQUIRE(::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
    REQUIRE(::listen(fd.get(), 1) == 0);
  }  // closed: the files stay, and nobody listens
  Daemon daemon(folder);
  CHECK(AgentClient::connect({.socket = daemon.agent_socket(), .name = "agent", .guest = {}}).has_value());
  CHECK_FALSE(http_get(daemon.admin_socket(), "/v1/status").empty());
}

TEST_CASE("a second daemon on the same sockets refuses to start and the first goes on", "[wire][startup]") {
  WireDaemon daemon;
  Bystander bystander(daemon.hypervisors(), daemon.agents());
  const auto second = run("kvmid", {"--runtime-dir", daemon.folder().path()});
  CHECK(second.exit == Exit{kExitFailure, 0});
  CHECK_THAT(everything(second), Catch::Contains("another daemon") && Catch::Contains(daemon.hypervisors()));
  CHECK(std::filesystem::is_socket(daemon.agents()));
  auto agent = attach_agent(daemon.agents(), uuid_of(0xbb), "after");
  CHECK(agent.get_registers(VcpuId{0}));
  bystander.check();
}

TEST_CASE("a file that is no socket is not removed", "[wire][startup]") {
  const RuntimeFolder folder;
  const std::string file = folder.write("agent.sock", "precious");
  const auto started = run("kvmid", {"--runtime-dir", folder.path()});
  CHECK(started.exit == Exit{kExitFailure, 0});
  CHECK_THAT(everything(started), Catch::Contains(file) && Catch::Contains("not a socket"));
  CHECK(std::filesystem::file_size(file) == 8);
  CHECK_FALSE(std::filesystem::exists(folder.file("hypervisor.sock")));  // what was opened before is given back
}

TEST_CASE("a daemon that is told to stop removes its sockets", "[wire][startup]") {
  WireDaemon daemon;
  daemon.process().signal(SIGTERM);
  CHECK(daemon.process().wait_exit() == Exit{0, 0});
  for (const auto& path : {daemon.agents(), daemon.hypervisors(), daemon.admin()})
    CHECK_FALSE(std::filesystem::exists(path));
}
