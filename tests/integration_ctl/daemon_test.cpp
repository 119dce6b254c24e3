// SPDX-License-Identifier: GPL-2.0-or-later
//
// What steers the daemon, and what it would allow: reload, log-level, policy check.

#include <unistd.h>

#include "tests/integration_ctl/ctl_scene.h"

namespace kvmid::test {
namespace {

/// A daemon on a file that the test rewrites.
struct Configured {
  RuntimeFolder folder;
  std::string file;
  Daemon daemon;

  explicit Configured(const std::string& config)
      : file(folder.write("mine.json", config)), daemon(folder, {.config = {}, .arguments = {"--config", file}}) {}
  void rewrite(const std::string& config) const { (void)folder.write("mine.json", config); }
  [[nodiscard]] Finished ctl(std::vector<std::string> words) const {
    words.insert(words.begin(), {"--admin-socket", folder.file("admin.sock")});
    return run("kvmictl", std::move(words));
  }
};

/// Before `rules` one that lets the test itself in, for it asks whether kvmid is ready, and gives it no guest.
std::string rules_and_us(const std::string& rules) {
  return R"({"policy":[{"name":"us","match":{"uid":[)" + std::to_string(::geteuid()) + R"(]},"guests":["none"]})" +
         rules + "]}";
}
const std::string kNobody = rules_and_us("");
const std::string kRules = rules_and_us(R"(,
  {"name":"readers","match":{"gid":[4711]},"guests":["web*"],"commands":["READ_PHYSICAL"],"events":["cr"]},
  {"name":"root","match":{"uid":[4712]},"commands":["*"],"events":["*"]})");

}  // namespace

TEST_CASE("reload takes what is in the file now", "[integration]") {
  const Configured configured(kNobody);
  const std::vector<std::string> ask{"policy", "check", "--uid", "4712", "--guest", "web1"};
  CHECK(configured.ctl(ask).exit == Exit{5, 0});

  configured.rewrite(kRules);
  const Finished reloaded = configured.ctl({"reload"});

  INFO(errors_of(reloaded));
  REQUIRE(reloaded.exit == Exit{0, 0});
  CHECK(configured.ctl(ask).exit == Exit{0, 0});
  const Finished json = configured.ctl({"reload", "--json"});
  REQUIRE(json.exit == Exit{0, 0});
  CHECK(Json::parse(json.text()).at("schema") == 1);
}

TEST_CASE("reload names the place of a mistake, and the old configuration stays", "[integration]") {
  const Configured configured(kRules);
  configured.rewrite(R"({"policy":[{"match":"*","deadline_ms":"fast"}]})");

  const Finished reloaded = configured.ctl({"reload"});

  CHECK(reloaded.exit == Exit{1, 0});
  CHECK(reloaded.output.empty());
  CHECK(has(errors_of(reloaded), "/policy/0/deadline_ms"));
  CHECK(configured.ctl({"policy", "check", "--uid", "4712", "--guest", "web1"}).exit == Exit{0, 0});
}

TEST_CASE("log-level changes what kvmid logs", "[integration]") {
  const Configured configured(kRules);
  const Finished text = configured.ctl({"log-level", "trace"});
  REQUIRE(text.exit == Exit{0, 0});
  CHECK(text.output == std::vector<std::string>{"logging at trace"});
  const Finished json = configured.ctl({"log-level", "warn", "--json"});
  REQUIRE(json.exit == Exit{0, 0});
  CHECK(Json::parse(json.text()).at("level") == "warn");
  CHECK(configured.ctl({"log-level", "loud"}).exit == Exit{2, 0});
  CHECK(configured.ctl({"log-level"}).exit == Exit{2, 0});
}

TEST_CASE("policy check explains the rule that decides", "[integration]") {
  const Configured configured(kRules);
  const auto check = [&](std::vector<std::string> words) {
    words.insert(words.begin(), {"policy", "check"});
    return configured.ctl(std::move(words));
  };

  const Finished allowed = check({"--uid", "1", "--gid", "4711", "--guest", "web1", "--command", "READ_PHYSICAL"});
  CHECK(allowed.exit == Exit{0, 0});
  CHECK(has(allowed.text(), "command READ_PHYSICAL on guest web1: allowed"));
  CHECK(has(allowed.text(), "Rule \"readers\" decides."));
  const Finished refused = check({"--gid", "4711", "--guest", "web1", "--event", "msr"});
  CHECK(refused.exit == Exit{5, 0});
  CHECK(has(refused.text(), "Its events lack msr."));
  const Finished nobody = check({"--gid", "4711", "--guest", "db1", "--json"});
  CHECK(nobody.exit == Exit{5, 0});
  const Json json = Json::parse(nobody.text());
  CHECK(json.at("allowed") == false);
  CHECK(json.at("rules").size() == 3);
  CHECK(check({"--cid", "3", "--guest", "web1"}).exit == Exit{5, 0});
  // Without anybody named it is this user, whom no rule lets near that guest.
  CHECK(check({"--guest", "web1"}).exit == Exit{5, 0});

  CHECK(check({}).exit == Exit{2, 0});
  CHECK(check({"--guest", "web1", "--command", "NOPE"}).exit == Exit{2, 0});
  CHECK(check({"--guest", "web1", "--command", "GET_VERSION", "--event", "cr"}).exit == Exit{2, 0});
}

TEST_CASE("policy check asks a file that is not in force, and finds its mistakes", "[integration]") {
  const Configured configured(kNobody);
  const std::string good = configured.folder.write("next.json", kRules);
  const std::string bad = configured.folder.write("bad.json", R"({"policy":[{"name":"x"}]})");
  const auto check = [&](const std::string& file) {
    return configured.ctl({"policy", "check", "--config", file, "--uid", "4712", "--guest", "web1"});
  };

  CHECK(check(good).exit == Exit{0, 0});
  CHECK(configured.ctl({"policy", "check", "--uid", "4712", "--guest", "web1"}).exit == Exit{5, 0});  // not in force
  const Finished mistake = check(bad);
  CHECK(mistake.exit == Exit{1, 0});
  CHECK(has(errors_of(mistake), "/policy/0"));
  const Finished missing = check(configured.folder.file("none.json"));
  CHECK(missing.exit == Exit{1, 0});
  CHECK(has(errors_of(missing), "none.json"));
}

TEST_CASE("without kvmid each says that it is not reachable", "[integration]") {
  const RuntimeFolder folder;
  for (const auto& words : std::vector<std::vector<std::string>>{{"reload"},
                                                                 {"log-level", "info"},
                                                                 {"policy", "check", "--guest", "web1"},
                                                                 {"top", "--once"},
                                                                 {"agent", "1"}}) {
    std::vector<std::string> all{"--admin-socket", folder.file("admin.sock")};
    all.insert(all.end(), words.begin(), words.end());
    const Finished finished = run("kvmictl", all);
    INFO(words.front());
    CHECK(finished.exit == Exit{3, 0});
    CHECK(has(errors_of(finished), folder.file("admin.sock")));
  }
}

}  // namespace kvmid::test
