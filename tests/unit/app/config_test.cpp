// SPDX-License-Identifier: GPL-2.0-or-later
#include "daemon/app/config.h"

#include <grp.h>
#include <pwd.h>

#include <catch2/catch.hpp>
#include <fstream>
#include <nlohmann/json.hpp>

using namespace kvmid;
using namespace kvmid::app;

namespace {

const Config kDefaults = default_config(1000, 8);

std::string mistake(std::string_view text) {
  const auto config = parse_config(text, kDefaults);
  return config ? "no mistake" : describe(config.error());
}

}  // namespace

TEST_CASE("each mistake in a configuration is named with its JSON path", "[config]") {
  struct Case {
    const char* text;
    const char* wanted;
  };
  const auto [text, wanted] = GENERATE(values<Case>({
      {R"({"policy":[{"match":"*","deadline_ms":"fast"}]})",
       "/policy/0/deadline_ms: must be between 1 and 60000, is \"fast\""},
      {R"({"policy":[{"match":"*"},{"match":"*","deadline_ms":0}]})",
       "/policy/1/deadline_ms: must be between 1 and 60000, is 0"},
      {R"({"limits":{"guests_max":-1}})", "/limits/guests_max: must be between 1 and 65536, is -1"},
      {R"({"limits":{"guests_max":1.5}})", "/limits/guests_max: must be between 1 and 65536, is 1.5"},
      {R"({"limits":{"guests_max":99999999999999999999}})",
       "/limits/guests_max: must be between 1 and 65536, is 1e+20"},
      {R"({"limits":{"hello_timeout_ms":9}})", "/limits/hello_timeout_ms: must be between 10 and 600000, is 9"},
      {R"({"limits":[]})", "/limits: must be an object, is []"},
      {R"({"limit":{}})",
       "/limit: unknown key; there are: $schema, listen, shards, log, audit, limits, hypervisors, dial, policy"},
      {R"({"limits":{"guest_max":1}})",
       "/limits/guest_max: unknown key; there are: guests_max, connections_max, hello_timeout_ms, command_timeout_ms"},
      {R"({"shards":1,"shards":2})", "/shards: the key is there twice"},
      {R"({"policy":[{"match":"*"},{"match":{"uid":[0],"uid":[1]}}]})", "/policy/1/match/uid: the key is there twice"},
      {R"({"policy":{}})", "/policy: must be a list of rules, is {}"},
      {R"({"policy":[7]})", "/policy/0: must be an object, is 7"},
      {R"({"policy":[{}]})", "/policy/0: the key \"match\" is missing: who is the rule for?"},
      {R"({"policy":[{"match":"all"}]})",
       "/policy/0/match: must be \"*\" or an object with uid, gid or cid, is \"all\""},
      {R"({"policy":[{"match":{}}]})", "/policy/0/match: names nobody; give uid, gid or cid, or \"*\" for everybody"},
      {R"({"policy":[{"match":{"uid":[0,"no such user"]}}]})", "/policy/0/match/uid/1: there is no user \"no such user\""},
      {R"({"policy":[{"match":{"gid":["no such group"]}}]})",
       "/policy/0/match/gid/0: there is no group \"no such group\""},
      {R"({"policy":[{"match":{"gid":[""]}}]})", "/policy/0/match/gid/0: there is no group \"\""},
      {R"({"hypervisors":{"gid":["no such group"]}})", "/hypervisors/gid/0: there is no group \"no such group\""},
      {R"({"policy":[{"match":{"gid":["a\u0000b"]}}]})", "/policy/0/match/gid/0: must not hold a zero byte"},
      {R"({"policy":[{"match":{"uid":[-1]}}]})", "/policy/0/match/uid/0: must be between 0 and 4294967294, is -1"},
      {R"({"policy":[{"match":{"cid":["root"]}}]})",
       "/policy/0/match/cid/0: must be between 0 and 4294967294, is \"root\""},
      {R"({"policy":[{"match":{"uid":0}}]})", "/policy/0/match/uid: must be a list of numbers or names, is 0"},
      {R"({"policy":[{"match":{"cid":0}}]})", "/policy/0/match/cid: must be a list of numbers, is 0"},
      {R"({"policy":[{"match":"*","unconditional_writes":0}]})",
       "/policy/0/unconditional_writes: must be true or false, is 0"},
      {R"({"policy":[{"match":"*","quota":{"patches":-1}}]})",
       "/policy/0/quota/patches: must be between 0 and 4294967295, is -1"},
      {R"({"policy":[{"match":"*","quota":{"filter":1}}]})",
       "/policy/0/quota/filter: unknown key; there are: requests, queue_bytes, pages, msrs, patches, filters, "
       "attachments"},
      {R"({"policy":[{"match":"*","role":"boss"}]})", "/policy/0/role: must be one of decider, observer, is \"boss\""},
      {R"({"policy":[{"match":"*","default":1}]})",
       "/policy/0/default: must be one of allow, retry, skip, crash, is 1"},
      {R"({"policy":[{"match":"*","guests":["a",5]}]})", "/policy/0/guests/1: must be a text, is 5"},
      {R"({"policy":[{"match":"*","quota":{"queue_bytes":10}}]})",
       "/policy/0/quota/queue_bytes: must be between 65536 and 1073741824, is 10"},
      {R"({"listen":{"agents":{"unix":"agent.sock"}}})",
       "/listen/agents/unix: must be an absolute path or null, is \"agent.sock\""},
      {R"({"listen":{"agents":{"mode":"660x"}}})",
       "/listen/agents/mode: must be an octal mode such as \"0660\", is \"660x\""},
      {R"({"listen":{"agents":{"mode":660}}})", "/listen/agents/mode: must be a text, is 660"},
      {R"({"listen":{"admin":{"vsock_port":1}}})",
       "/listen/admin/vsock_port: unknown key; there are: unix, mode, group"},
      {R"({"listen":{"agents":{"unix":"/a"},"admin":{"unix":"/a"}}})", "/listen: two listeners have the same path \"/a\""},
      {R"({"listen":{"agents":{"vsock_port":5},"hypervisors":{"vsock_port":5}}})",
       "/listen: two listeners have the same vsock port 5"},
      {R"({"log":{"level":"loud"}})",
       "/log/level: must be one of trace, debug, info, warn, error, critical, off, is \"loud\""},
      {R"({"hypervisors":{"user":[0]}})", "/hypervisors/user: unknown key; there are: uid, gid, cid, guests"},
      {R"([])", "must be an object, is []"},
  }));
  REQUIRE(mistake(text) == wanted);
}

TEST_CASE("a name that does not exist is answered with those that do", "[config]") {
  const auto command = mistake(R"({"policy":[{"match":"*","commands":["READ_PHYSICAL","READ"]}]})");
  REQUIRE(command.find("/policy/0/commands/1: is no command: \"READ\"; there are: *, GET_VERSION") == 0);
  const auto event = mistake(R"({"policy":[{"match":"*","events":["CR"]}]})");
  REQUIRE(event.find("/policy/0/events/0: is no event: \"CR\"; there are: *, unhook, cr, msr") == 0);
}

TEST_CASE("a syntax error is named with line and column", "[config]") {
  REQUIRE(mistake("{\n  \"shards\": 1,\n}").find("line 3, column 1: ") == 0);
  REQUIRE(mistake("").find("line 1, column 1: ") == 0);
  REQUIRE(mistake("{} {}").find("line 1, column 4: ") == 0);
  REQUIRE(mistake(std::string(100, '[')).find("nested too deeply") != std::string::npos);
}

TEST_CASE("a socket path is refused only beyond the system's limit", "[config]") {
  const auto with = [](std::size_t bytes) {
    return mistake(R"({"listen":{"agents":{"unix":"/)" + std::string(bytes - 1, 'x') + R"("}}})");
  };
  REQUIRE(with(107) == "no mistake");
  REQUIRE(with(108) == "/listen/agents/unix: the path has 108 bytes, the system's limit is 107 bytes");
}

TEST_CASE("an empty configuration lets in root and the daemon's own user, and nobody else", "[config]") {
  const auto config = parse_config("{}", kDefaults);
  REQUIRE(config);
  core::Peer peer;
  for (const std::uint32_t uid : {0U, 1000U}) {
    peer.uid = uid;
    const auto* grant = core::find_grant(config->settings.policy, peer, "web1", Uuid{});
    REQUIRE(grant != nullptr);
    REQUIRE(grant->role == Role::Decider);
    REQUIRE(grant->events == kEveryEvent);
    REQUIRE(grant->commands.has(CommandId::WritePhysical));
    REQUIRE(io::allows(config->settings.hypervisor_peers, peer));
  }
  peer.uid = 1001;
  REQUIRE(core::find_grant(config->settings.policy, peer, "web1", Uuid{}) == nullptr);
  REQUIRE_FALSE(io::allows(config->settings.hypervisor_peers, peer));
  REQUIRE(config->settings.shards == 4);  // of 8 cores
  REQUIRE(config->settings.agents.unix_path == "/run/kvmid/agent.sock");
}

TEST_CASE("what a rule says is what it grants, and what it leaves out is the least", "[config]") {
  const auto config = parse_config(R"({"policy":[
      {"name":"guard","match":{"gid":[36]},"guests":["web*"],"commands":["READ_PHYSICAL"],"events":["cr","msr"],
       "role":"decider","priority":7,"deadline_ms":20,"pause_max_ms":500,"default":"crash","strikes":2,
       "unconditional_writes":false,
       "quota":{"requests":5,"queue_bytes":70000,"pages":9,"msrs":8,"patches":6,"filters":0,"attachments":3}},
      {"match":"*"}]})", kDefaults);
  REQUIRE(config);
  const auto& rules = config->settings.policy.rules;
  REQUIRE(rules.size() == 2);
  const core::Grant& guard = rules[0].grant;
  REQUIRE(rules[0].gids == std::vector<std::uint32_t>{36});
  REQUIRE(rules[0].guests == std::vector<std::string>{"web*"});
  REQUIRE(guard.rule == "guard");
  REQUIRE(guard.commands.bits == KVMI_COMMAND_BIT(KVMI_MSG_READ_PHYSICAL));
  REQUIRE(guard.events.bits == (KVMI_EVENT_BIT(KVMI_EVENT_CR) | KVMI_EVENT_BIT(KVMI_EVENT_MSR)));
  REQUIRE(guard.role == Role::Decider);
  REQUIRE(guard.priority == 7);
  REQUIRE(guard.deadline == std::chrono::milliseconds(20));
  REQUIRE(guard.pause_max == std::chrono::milliseconds(500));
  REQUIRE(guard.default_action == Action::Crash);
  REQUIRE(guard.strikes_max == 2);
  REQUIRE(guard.quota.requests_max == 5);
  REQUIRE(guard.quota.queue_bytes_max == 70000);
  REQUIRE(guard.quota.pages_max == 9);
  REQUIRE(guard.quota.msrs_max == 8);
  REQUIRE(guard.quota.patches_max == 6);
  REQUIRE(guard.quota.filters_max == 0);
  REQUIRE(guard.quota.attachments_max == 3);
  REQUIRE_FALSE(guard.unconditional_writes);

  const core::Grant& rest = rules[1].grant;
  REQUIRE(rules[1].any_peer);
  REQUIRE(rest.rule == "rule 1");
  REQUIRE(rest.role == Role::Observer);
  REQUIRE(rest.events.bits == 0);
  REQUIRE_FALSE(rest.commands.has(CommandId::ReadPhysical));
  REQUIRE(rest.unconditional_writes);
  REQUIRE(rest.quota.patches_max == 1024);
  REQUIRE(rest.quota.filters_max == 64);
}

TEST_CASE("users and groups are known by name as well as by number", "[config]") {
  // root is the user and group 0 of every system; the others come from this one's database.
  const passwd* user = ::getpwnam("nobody");
  REQUIRE(user != nullptr);
  const std::uint32_t nobody = user->pw_uid;
  const group* group = ::getgrnam("daemon");
  REQUIRE(group != nullptr);
  const std::uint32_t daemon = group->gr_gid;
  const auto config = parse_config(R"({"hypervisors":{"uid":["root"],"gid":["daemon",7]},
      "policy":[{"match":{"uid":[5,"nobody","root"],"gid":["root","daemon"],"cid":[3]}}]})", kDefaults);
  INFO((config ? "" : describe(config.error())));
  REQUIRE(config);
  const core::Rule& rule = config->settings.policy.rules.at(0);
  REQUIRE(rule.uids == std::vector<std::uint32_t>{5, nobody, 0});
  REQUIRE(rule.gids == std::vector<std::uint32_t>{0, daemon});
  REQUIRE(rule.cids == std::vector<std::uint32_t>{3});
  REQUIRE(config->settings.hypervisor_peers.uids == std::vector<std::uint32_t>{0});
  REQUIRE(config->settings.hypervisor_peers.gids == std::vector<std::uint32_t>{daemon, 7});
}

TEST_CASE("an empty policy lets nobody in", "[config]") {
  const auto config = parse_config(R"({"policy":[]})", kDefaults);
  REQUIRE(config);
  core::Peer root;
  root.uid = 0;
  REQUIRE_FALSE(core::may_connect(config->settings.policy, root));
}

TEST_CASE("the example that ships is in order", "[config]") {
  const auto config = load_config(KVMID_SOURCE_DIR "/config/kvmid.json", kDefaults);
  INFO((config ? "" : describe(config.error())));
  REQUIRE(config);
  REQUIRE(config->settings.policy.rules.size() >= 2);
}

TEST_CASE("the schema names the same keys as the reader", "[config]") {
  std::ifstream in(KVMID_SOURCE_DIR "/config/kvmid.schema.json");
  const auto schema = nlohmann::json::parse(in);
  // Every key that the schema knows is taken by the reader: a wrong value is another error than an unknown key.
  for (const auto& [key, value] : schema.at("properties").items())
    REQUIRE(mistake("{\"" + key + "\":false}").find("unknown key") == std::string::npos);
  for (const auto& [key, value] : schema.at("$defs").at("rule").at("properties").items())
    REQUIRE(mistake(R"({"policy":[{"match":"*",)" "\"" + key + "\":false}]}").find("unknown key") == std::string::npos);
  // And the reader's lists, as its errors tell them, are in the schema.
  const auto listed = [](const std::string& text) {
    std::vector<std::string> out;
    std::istringstream words(text.substr(text.find("there are: ") + 11));
    for (std::string word; words >> word;) out.push_back(word.back() == ',' ? word.substr(0, word.size() - 1) : word);
    return out;
  };
  const auto& rule_keys = schema.at("$defs").at("rule").at("properties");
  const auto& quota_keys = rule_keys.at("quota").at("properties");
  for (const auto& [key, value] : quota_keys.items())
    REQUIRE(mistake(R"({"policy":[{"match":"*","quota":{)" "\"" + key + "\":false}}]}").find("unknown key") ==
            std::string::npos);
  for (const auto& key : listed(mistake(R"({"policy":[{"match":"*","quota":{"?":0}}]})")))
    REQUIRE(quota_keys.contains(key));
  for (const auto& key : listed(mistake(R"({"?":0})"))) REQUIRE(schema.at("properties").contains(key));
  for (const auto& key : listed(mistake(R"({"policy":[{"match":"*","?":0}]})")))
    REQUIRE(rule_keys.contains(key));
}

TEST_CASE("a file that is not there is an error with its reason", "[config]") {
  REQUIRE(load_config("/nonexistent/kvmid.json", kDefaults).error().text == "cannot open it: No such file or directory");
}

TEST_CASE("a runtime directory holds the three sockets", "[config]") {
  Config config = kDefaults;
  use_runtime_dir(config, "/tmp/k");
  REQUIRE(config.settings.hypervisors.unix_path == "/tmp/k/hypervisor.sock");
  REQUIRE(config.settings.agents.unix_path == "/tmp/k/agent.sock");
  REQUIRE(config.admin.unix_path == "/tmp/k/admin.sock");
}
