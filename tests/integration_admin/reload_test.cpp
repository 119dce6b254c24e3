// SPDX-License-Identifier: GPL-2.0-or-later
//
// A new configuration for a kvmid that works: all of it or nothing, at once, and no guest notices.

#include <catch2/catch.hpp>
#include <csignal>
#include <filesystem>

#include "tests/integration_admin/admin_client.h"

namespace kvmid::test {
namespace {

constexpr const char* kProtected = "0x20000:r-x";

/// The guest's stores reach the protected page.
bool stores_arrive(const Guest& guest) {
  guest.do_times(GuestMode::Store, 2);
  to_idle(guest);
  return guest.memory().read_u64(emulated::kProtectedPage) == guest.mailbox().stored;
}

/// An agent that has page rights, and refuses what they forbid.
std::vector<std::string> guarding() {
  return {"--events", "page_fault,cr", "--cr", "4", "--protect", kProtected, "--action", "skip"};
}

Json agent_entry(const AdminScene& scene, std::uint32_t id) {
  const Json agents = http(scene.admin(), "GET", "/v1/agents").json();
  for (const auto& agent : agents.at("agents"))
    if (agent.at("id") == id) return agent;
  return {};
}

}  // namespace

TEST_CASE("rights that a reload takes away are withdrawn from the guest, and the agent is told and stays",
          "[integration][reload]") {
  AdminScene scene;
  TestAgent agent(scene.daemon, scene.guest, guarding());
  REQUIRE_FALSE(stores_arrive(scene.guest));

  scene.rewrite({{"policy", {rule({{"events", {"cr"}}, {"commands", {"CONTROL_EVENTS", "CONTROL_CR"}}})}}});
  scene.daemon.process().signal(SIGHUP);

  const auto told = agent.wait_notices("revoked", 1);
  REQUIRE(told.front().at("text").get<std::string>().find("policy changed") != std::string::npos);
  REQUIRE(wait_until([&] { return stores_arrive(scene.guest); }));
  scene.wait_log({"configuration reloaded", "by=SIGHUP", "closed=0"});
  scene.wait_audit("agent_revoked", [&](const Json& line) { return line.at("agent") == agent.id(); });
  scene.wait_audit("config_reloaded");
  // What it kept still works.
  const std::size_t before = agent.lines("event").size();
  scene.guest.set_mode(GuestMode::Cr4);
  REQUIRE(agent.wait_lines("event", before + 1).back().at("kind") == "cr");
  REQUIRE(agent.lines("closed").empty());
}

TEST_CASE("an agent that no rule lets use its guest any more is told why and closed; others stay",
          "[integration][reload]") {
  AdminScene scene;
  Guest other(scene.folder, {.name = "db1", .uuid = uuid_of(2), .arguments = {}});
  other.wait_online();
  TestAgent losing(scene.daemon, other, {"--events", "cr", "--cr", "4", "--silent-after", "0"});
  TestAgent staying(scene.daemon, scene.guest, guarding());
  other.set_mode(GuestMode::Cr4);
  losing.wait_owed();  // it holds a vCPU, and would for a minute

  scene.rewrite({{"policy", {rule({{"guests", {"web*"}}})}}});
  const HttpAnswer answer = scene.reload();

  REQUIRE(answer.status == 200);
  REQUIRE(answer.json() == Json::parse(R"({"schema":1,"agents":2,"closed":1})"));
  const auto told = losing.wait_notices("revoked", 1);
  REQUIRE(told.front().at("text").get<std::string>().find("no rule lets this agent use this guest") !=
          std::string::npos);
  losing.wait_lines("closed", 1);
  other.wait_rounds(20);
  scene.wait_audit("agent_detached", [&](const Json& line) {
    return line.at("agent") == losing.id() && line.at("reason").get<std::string>().find("policy") != std::string::npos;
  });
  REQUIRE(scene.counter("agents_revoked") == 1);
  REQUIRE_FALSE(stores_arrive(scene.guest));
  REQUIRE(staying.lines("closed").empty());
  REQUIRE(staying.notices("revoked").empty());
}

TEST_CASE("a control connection sees just the guests of the new policy, and closes where no rule knows it",
          "[integration][reload]") {
  AdminScene scene;
  client::ConnectOptions options;
  options.socket = scene.daemon.agent_socket();
  options.name = "lister";
  auto control = check(AgentClient::connect(options));
  REQUIRE(check(control.list_guests()).size() == 1);

  scene.rewrite({{"policy", {rule({{"guests", {"db*"}}})}}});
  REQUIRE(scene.reload().status == 200);
  const auto hidden = check(control.next_message(kBound));
  REQUIRE(hidden);
  REQUIRE(std::get<client::GuestGone>(*hidden).uuid == scene.guest.uuid());
  REQUIRE(check(control.list_guests()).empty());

  scene.rewrite(Json::object());
  REQUIRE(scene.reload().status == 200);
  const auto shown = check(control.next_message(kBound));
  REQUIRE(shown);
  REQUIRE(std::get<client::GuestEntry>(*shown).uuid == scene.guest.uuid());

  scene.rewrite({{"policy", {rule({{"match", {{"uid", {4000000}}}}})}}});
  REQUIRE(scene.reload().json().at("closed") == 1);
  const auto revoked = check(control.next_message(kBound));
  REQUIRE(revoked);
  REQUIRE(std::get<client::ReceivedNotice>(*revoked).kind == NoticeKind::Revoked);
  REQUIRE_FALSE(control.next_message(kBound).has_value());
}

TEST_CASE("deadlines and quotas of attached agents change in place", "[integration][reload]") {
  AdminScene scene;
  TestAgent silent(scene.daemon, scene.guest, {"--events", "cr", "--cr", "4", "--silent-after", "0"});

  scene.rewrite({{"policy",
                  {rule({{"name", "stricter"},
                         {"deadline_ms", 20},
                         {"priority", 9},
                         {"quota", {{"pages", 1}, {"queue_bytes", 70000}}}})}}});
  REQUIRE(scene.reload().status == 200);

  const Json entry = agent_entry(scene, silent.id());
  REQUIRE(entry.at("policy") == "stricter");
  REQUIRE(entry.at("deadline_ms") == 20);
  REQUIRE(entry.at("priority") == 9);
  scene.guest.do_times(GuestMode::Cr4, 3);  // it would hold each for a minute
  silent.wait_notices("expired", 3);
  AgentClient agent = attach(scene.daemon.agent_socket(), scene.guest.uuid());
  const auto refused = agent.set_page_access(Gpa{0x20000}, 2, KVMI_PAGE_ACCESS_R);
  REQUIRE_FALSE(refused.has_value());
  REQUIRE(refused.error().code == ErrorCode::Busy);
}

TEST_CASE("a mistake in the new configuration is named with its path, and the old one stays",
          "[integration][reload]") {
  AdminScene scene;
  TestAgent agent(scene.daemon, scene.guest, guarding());
  struct Mistake {
    std::string text;
    std::string path;
    std::string message;
  };
  const std::vector<Mistake> mistakes{
      {R"({"policy":[{"match":"*","deadline_ms":"fast"}]})", "/policy/0/deadline_ms", "must be between 1 and 60000"},
      {R"({"policy":[{"match":"*","deadline_ms":0.1}]})", "/policy/0/deadline_ms", "must be between 1 and 60000"},
      {R"({"policy":[{"match":"*","deadline_s":1}]})", "/policy/0/deadline_s", "unknown key"},
      {R"({"policy":[],"policy":[]})", "/policy", "the key is there twice"},
      {R"({"polices":[]})", "/polices", "unknown key"},
      {R"({"audit":{"file":"/no/such/folder/audit.log"},"log":{"level":"debug"}})", "/audit/file", "cannot open"},
      {"{", "", "line 1, column 2"},
      {"", "", "line 1, column 1"},
  };
  for (const auto& mistake : mistakes) {
    INFO(mistake.text);
    scene.rewrite_text(mistake.text);
    const HttpAnswer answer = scene.reload();
    CHECK(answer.status == 422);
    CHECK(answer.message().find(mistake.message) == 0);
    CHECK(answer.json()["error"]["path"] == mistake.path);
  }
  std::filesystem::remove(scene.folder.file("kvmid.json"));
  CHECK(scene.reload().message().find("cannot open it") == 0);
  CHECK(scene.counter("reloads_refused") == mistakes.size() + 1);
  CHECK(scene.counter("reloads") == 0);
  scene.wait_log({"configuration not reloaded, the old one stays", "by=admin", "path=/policy/0/deadline_ms"});
  scene.wait_audit("config_refused", [](const Json& line) { return line.value("path", "") == "/policy/0/deadline_s"; });

  scene.rewrite_text(mistakes.front().text);
  scene.daemon.process().signal(SIGHUP);
  scene.wait_log({"configuration not reloaded", "by=SIGHUP", "path=/policy/0/deadline_ms"});

  REQUIRE_FALSE(stores_arrive(scene.guest));
  REQUIRE(agent.notices("revoked").empty());
  REQUIRE(agent.lines("closed").empty());
}

TEST_CASE("what needs a restart is said to, and nothing beside it is taken", "[integration][reload]") {
  AdminScene scene;
  TestAgent agent(scene.daemon, scene.guest, guarding());
  const std::vector<std::pair<Json, std::string>> changes{
      {{{"shards", 7}}, "/shards"},
      {{{"listen", {{"admin", {{"mode", "0600"}}}}}}, "/listen/admin"},
      {{{"listen", {{"agents", {{"vsock_port", 5}}}}}}, "/listen/agents"},
      {{{"log", {{"file", scene.folder.file("log")}}}}, "/log/file"},
  };
  for (auto [change, path] : changes) {
    change["policy"] = Json::array();
    scene.rewrite(change);
    const HttpAnswer answer = scene.reload();
    CHECK(answer.status == 422);
    CHECK(answer.json()["error"]["path"] == path);
    CHECK(answer.message().find("needs a restart") != std::string::npos);
  }
  REQUIRE(agent.lines("closed").empty());
  REQUIRE_FALSE(stores_arrive(scene.guest));
  scene.rewrite(Json::object());
  REQUIRE(scene.reload().status == 200);
}

TEST_CASE("a reload sets the log's level, and newcomers meet the new policy", "[integration][reload]") {
  AdminScene scene;
  scene.rewrite({{"log", {{"level", "warn"}}}, {"policy", Json::array()}});
  REQUIRE(scene.reload().status == 200);
  REQUIRE(http(scene.admin(), "GET", "/v1/log-level").json().at("level") == "warn");
  client::ConnectOptions options;
  options.socket = scene.daemon.agent_socket();
  options.name = "late";
  options.guest = scene.guest.uuid();
  const auto refused = AgentClient::connect(options);
  REQUIRE_FALSE(refused.has_value());
  REQUIRE(refused.error().code == ErrorCode::NotPermitted);
  scene.wait_audit("agent_refused", [](const Json& line) { return line.at("name") == "late" && line.at("error") == "EPERM"; });
}

TEST_CASE("reloads under a storm of signals and requests all come to an end, and no guest notices",
          "[integration][reload]") {
  AdminScene scene;
  TestAgent agent(scene.daemon, scene.guest, {"--events", "cr", "--cr", "4"});
  scene.guest.set_mode(GuestMode::Cr4);
  const std::uint64_t before = scene.guest.rounds();
  for (int i = 0; i < 30; ++i) {
    i % 3 == 0 ? scene.rewrite_text("{") : scene.rewrite(Json::object());
    scene.daemon.process().signal(SIGHUP);
    REQUIRE(scene.reload().status == (i % 3 == 0 ? 422 : 200));
  }
  REQUIRE(scene.guest.rounds() > before);
  scene.guest.wait_rounds(20);
  REQUIRE(agent.lines("closed").empty());
  REQUIRE(agent.notices("expired").empty());
}

TEST_CASE("a kvmid on its defaults has nothing to reload, and says so", "[integration][reload]") {
  const RuntimeFolder folder;
  Daemon daemon(folder);
  const HttpAnswer answer = http(folder.file("admin.sock"), "POST", "/v1/reload");
  REQUIRE(answer.status == 422);
  REQUIRE(answer.message().find("runs on its defaults") != std::string::npos);
}

}  // namespace kvmid::test
