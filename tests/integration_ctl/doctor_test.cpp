// SPDX-License-Identifier: GPL-2.0-or-later
//
// doctor against machines that are well, and that are not.

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstring>

#include "tests/integration_ctl/ctl_scene.h"

namespace kvmid::test {
namespace {

Finished doctor(const RuntimeFolder& folder, std::vector<std::string> words = {}) {
  words.insert(words.begin(),
               {"--admin-socket", folder.file("admin.sock"), "--agent-socket", folder.file("agent.sock"), "doctor"});
  return run("kvmictl", std::move(words));
}

/// ids of the problems (or notes) that doctor finds.
std::vector<std::string> ids(const RuntimeFolder& folder, const std::string& severity,
                             std::vector<std::string> words = {}) {
  words.emplace_back("--json");
  const Finished finished = doctor(folder, std::move(words));
  INFO(finished.text() << errors_of(finished));
  const Json json = Json::parse(finished.text());
  REQUIRE(json.at("schema") == 1);
  std::vector<std::string> out;
  bool problems = false;
  for (const auto& finding : json.at("findings")) {
    problems = problems || finding.at("severity") == "problem";
    if (finding.at("severity") == severity) out.push_back(finding.at("id"));
    CHECK_FALSE(finding.at("next").get<std::string>().empty());
  }
  CHECK(json.at("ok") == !problems);
  CHECK(finished.exit == Exit{problems ? 1 : 0, 0});
  return out;
}

using Ids = std::vector<std::string>;

}  // namespace

TEST_CASE("doctor finds a machine well where all is well", "[integration]") {
  CtlScene scene;
  CHECK(ids(scene.folder, "problem") == Ids{});
  const Finished text = doctor(scene.folder);
  CHECK(text.exit == Exit{0, 0});
  CHECK(text.output.back() == "All is well.");
  CHECK(doctor(scene.folder, {"web1", "--needs", "cr,READ_PHYSICAL"}).exit == Exit{0, 0});
  CHECK(doctor(scene.folder, {"nobody"}).exit == Exit{4, 0});
  CHECK(doctor(scene.folder, {"--needs", "telepathy"}).exit == Exit{2, 0});
}

TEST_CASE("doctor finds that kvmid is not there, or ended", "[integration]") {
  const RuntimeFolder folder;
  CHECK(ids(folder, "problem") == Ids{"socket-missing", "socket-missing"});
  {
    Daemon daemon(folder);
    daemon.kill();
  }
  CHECK(ids(folder, "problem") == Ids{"socket-dead", "socket-dead"});
}

TEST_CASE("doctor finds that kvmid does not answer", "[integration]") {
  CtlScene scene;
  scene.daemon.process().stop();
  const auto found = ids(scene.folder, "problem");
  scene.daemon.process().cont();
  CHECK(std::count(found.begin(), found.end(), "daemon-silent") == 1);
}

TEST_CASE("doctor finds that no guest is connected, and one that is away", "[integration]") {
  const RuntimeFolder folder;
  Daemon daemon(folder, {.config = config_text({}), .arguments = {}});
  CHECK(ids(folder, "problem") == Ids{"no-guest"});
  Guest guest(folder);
  guest.wait_online();
  TestAgent agent(daemon, guest, {"--events", "cr", "--cr", "4"});
  CHECK(ids(folder, "problem") == Ids{});
  guest.process().kill();
  REQUIRE(wait_until([&] { return !is_online(folder.file("agent.sock"), guest.uuid()); }));
  CHECK(ids(folder, "problem") == Ids{"guest-away"});
}

TEST_CASE("doctor finds a mistake in the configuration that kvmid runs with", "[integration]") {
  const RuntimeFolder folder;
  const std::string file = folder.write("mine.json", config_text({}));
  Daemon daemon(folder, {.config = {}, .arguments = {"--config", file}});
  Guest guest(folder);
  guest.wait_online();
  CHECK(ids(folder, "problem") == Ids{});
  (void)folder.write("mine.json", R"({"policy":[{"match":"*","deadline_ms":0}]})");
  CHECK(ids(folder, "problem") == Ids{"config-error"});
  CHECK(has(doctor(folder).text(), "/policy/0/deadline_ms"));
  // Any other file too.
  const std::string good = folder.write("other.json", "{}");
  CHECK(ids(folder, "problem", {"--config", good}) == Ids{});
  CHECK(ids(folder, "problem", {"--config", folder.file("none.json")}) == Ids{"config-error"});
}

TEST_CASE("doctor finds an agent that was demoted", "[integration]") {
  CtlScene scene(config_text({.deadline_ms = 20, .strikes = 1}));
  TestAgent silent(scene.daemon, scene.guest, {"--events", "cr", "--cr", "4", "--silent-after", "0"});
  scene.guest.set_mode(GuestMode::Cr4);
  silent.wait_notices("demoted", 1);
  CHECK(ids(scene.folder, "problem") == Ids{"agent-demoted"});
}

TEST_CASE("doctor finds connections that are used up", "[integration]") {
  CtlScene scene(R"({"policy":[{"match":"*","commands":["*"],"events":["*"],"quota":{"attachments":2}}]})");
  AgentClient first = attach(scene.daemon.agent_socket(), scene.guest.uuid(), "one");
  CHECK(ids(scene.folder, "problem") == Ids{});
  AgentClient second = attach(scene.daemon.agent_socket(), scene.guest.uuid(), "two");
  const auto found = ids(scene.folder, "problem");
  CHECK(std::count(found.begin(), found.end(), "quota-used-up") == 1);
}

TEST_CASE("doctor finds a tool that does not listen, and says which", "[integration]") {
  const RuntimeFolder folder;
  const std::string tool = folder.file("tool.sock");
  Daemon daemon(folder, {.config = R"({"dial":[{"name":"hvmi","unix":")" + tool + R"(","dialect":"v7"}]})",
                         .arguments = {}});
  CHECK(ids(folder, "problem") == Ids{"no-guest"});  // without a guest kvmid connects to nobody
  Guest guest(folder);
  guest.wait_online();
  REQUIRE(wait_until([&] { return has(doctor(folder).text(), "nobody listens"); }));
  CHECK(ids(folder, "problem") == Ids{"dial-failed"});
  CHECK(has(doctor(folder).text(), "hvmi"));
  const Finished failures = run("/usr/bin/curl", {"-s", "--unix-socket", folder.file("admin.sock"),
                                                  "http://kvmid/v1/failures"});
  const Json first = Json::parse(failures.text()).at("failures").at(0);
  CHECK(first.at("side") == "dial");
  CHECK(first.at("step") == "connect");
  CHECK(first.at("peer") == "hvmi unix:" + tool);
  CHECK(first.at("guest") == "web1");
}

TEST_CASE("doctor finds a hypervisor that may not bring its guest", "[integration]") {
  const RuntimeFolder folder;
  Daemon daemon(folder, {.config = R"({"hypervisors":{"guests":[{"guests":["web1"],"bound_to":{"cid":[9]}}]}})",
                         .arguments = {}});
  Guest guest(folder);
  REQUIRE(wait_until([&] { return has(doctor(folder).text(), "may not bring it"); }));
  CHECK(ids(folder, "problem") == Ids{"no-guest", "hypervisor-failed"});
  CHECK(has(doctor(folder).text(), "bound_to"));
}

TEST_CASE("doctor finds two hypervisors that want to be the same guest", "[integration]") {
  CtlScene scene;
  Guest other(scene.folder, {.name = "web2", .arguments = {}});
  REQUIRE(wait_until([&] { return has(doctor(scene.folder).text(), "uuid is connected already"); }));
  CHECK(ids(scene.folder, "problem") == Ids{"hypervisor-failed"});
}

TEST_CASE("doctor finds a mistake with a secret where kvmid finds it", "[integration]") {
  CtlScene scene;
  const std::string secret = scene.folder.write("secret", "topsecret");
  REQUIRE(::chmod(secret.c_str(), 0644) == 0);
  const std::string file =
      scene.folder.write("mine.json", R"({"hypervisors":{"guests":[{"cookie_file":")" + secret + R"("}]}})");
  CHECK(ids(scene.folder, "problem", {"--config", file}) == Ids{"config-error"});
  const std::string text = doctor(scene.folder, {"--config", file}).text();
  CHECK(has(text, "/hypervisors/guests/0/cookie_file"));
  CHECK_FALSE(has(text, "topsecret"));
  REQUIRE(::chmod(secret.c_str(), 0600) == 0);
  CHECK(ids(scene.folder, "problem", {"--config", file}) == Ids{});
}

TEST_CASE("doctor finds that this user is not let in any more", "[integration]") {
  const RuntimeFolder folder;
  const std::string file = folder.write("mine.json", config_text({}));
  Daemon daemon(folder, {.config = {}, .arguments = {"--config", file}});
  (void)folder.write("mine.json", R"({"policy":[{"match":{"cid":[77]}}]})");
  REQUIRE(run("kvmictl", {"--admin-socket", folder.file("admin.sock"), "reload"}).exit == Exit{0, 0});
  const auto found = ids(folder, "problem");
  CHECK(std::count(found.begin(), found.end(), "agent-refused") == 1);
}

TEST_CASE("doctor finds that a guest lacks what is needed", "[integration]") {
  CtlScene scene;
  const Json guest = scene.ctl_json({"guest", "web1"});
  std::string lacking;
  for (unsigned i = 0; i < kEventCount; ++i) {
    const std::string name(name_of(static_cast<EventKind>(i)));
    const auto& list = guest.at("events_supported");
    if (std::find(list.begin(), list.end(), Json(name)) == list.end()) lacking = name;
  }
  if (lacking.empty()) return;  // the emulated guest has them all: the unit test covers it
  CHECK(ids(scene.folder, "problem", {"--needs", lacking}) == Ids{"unsupported"});
}

TEST_CASE("doctor finds a hypervisor socket that only its owner may use", "[integration]") {
  CtlScene scene;
  REQUIRE(::chmod(scene.daemon.hypervisor_socket().c_str(), 0600) == 0);
  CHECK(ids(scene.folder, "problem") == Ids{"hypervisor-socket-closed"});
  CHECK(ids(scene.folder, "problem", {"--hypervisor-socket", scene.folder.file("elsewhere.sock")}) ==
        Ids{"hypervisor-socket-missing"});
}

TEST_CASE("doctor finds a file where the socket should be", "[integration]") {
  const RuntimeFolder folder;
  (void)folder.write("admin.sock", "");
  (void)folder.write("agent.sock", "");
  CHECK(ids(folder, "problem") == Ids{"socket-not-socket", "socket-not-socket"});
}

}  // namespace kvmid::test
