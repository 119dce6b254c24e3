// SPDX-License-Identifier: GPL-2.0-or-later
// What the configuration says for older dialects: rules for guests, tools to connect to, and files of secrets.
#include <sys/stat.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "daemon/app/admin_policy.h"
#include "daemon/app/config.h"
#include "daemon/app/cookie_file.h"
#include "tests/support/process.h"

using namespace kvmid;
using namespace kvmid::app;
using kvmi1::DialectId;

namespace {

const Config kDefaults = default_config(1000, 8);

std::string mistake(std::string_view text, CookieFiles cookies = CookieFiles::Read) {
  const auto config = parse_config(text, kDefaults, cookies);
  return config ? "no mistake" : describe(config.error());
}
std::string rule_mistake(const std::string& rule) { return mistake(R"({"hypervisors":{"guests":[)" + rule + "]}}"); }
std::string dial_mistake(const std::string& keys) { return mistake(R"({"dial":[{)" + keys + "}]}"); }
io::Settings settings_of(std::string_view text) {
  const auto config = parse_config(text, kDefaults);
  INFO((config ? "" : describe(config.error())));
  REQUIRE(config);
  return config->settings;
}

constexpr const char* kTool = R"("name":"hvmi","unix":"/run/hvmi.sock","dialect":"v7")";

/// A file of a secret, for its owner alone unless the test says otherwise.
struct SecretFile {
  test::RuntimeFolder folder;
  std::string path;
  explicit SecretFile(std::string_view bytes, mode_t mode = 0600) : path(folder.write("cookie", bytes)) {
    REQUIRE(::chmod(path.c_str(), mode) == 0);
  }
  [[nodiscard]] std::string error(std::uint32_t own_uid = ::geteuid(), CookieFiles how = CookieFiles::Read) const {
    const auto hash = read_cookie_file(path, how, own_uid);
    return hash ? "" : hash.error();
  }
};

std::string hex(const io::CookieHash& hash) {
  static constexpr std::string_view kDigits = "0123456789abcdef";
  std::string out;
  for (const unsigned byte : hash) out += {kDigits[byte >> 4U], kDigits[byte & 15U]};
  return out;
}

}  // namespace

TEST_CASE("rules for guests: dialect, peers and nothing said", "[config]") {
  const auto settings = settings_of(R"({"hypervisors":{"uid":[0],"guests":[
      {"guests":["web-*","6a1f7e36-0000-4000-8000-000000000001"],"dialect":"v7",
       "bound_to":{"uid":["root",5],"cid":[3]}},
      {"guests":["db1"],"dialect":"auto"},
      {"dialect":"rfc2017"}]}})");
  REQUIRE(settings.guest_rules.size() == 3);
  const auto& first = settings.guest_rules[0];
  REQUIRE(first.guests == std::vector<std::string>{"web-*", "6a1f7e36-0000-4000-8000-000000000001"});
  REQUIRE(first.dialect == DialectId::V7);
  REQUIRE(first.bound_to);
  REQUIRE(first.bound_to->uids == std::vector<std::uint32_t>{0, 5});
  REQUIRE(first.bound_to->gids.empty());
  REQUIRE(first.bound_to->cids == std::vector<std::uint32_t>{3});
  REQUIRE_FALSE(first.cookie);
  REQUIRE_FALSE(settings.guest_rules[1].dialect);
  REQUIRE_FALSE(settings.guest_rules[1].bound_to);
  REQUIRE(settings.guest_rules[2].guests == std::vector<std::string>{"*"});
  REQUIRE(settings.guest_rules[2].dialect == DialectId::Rfc2017);
}

TEST_CASE("rules for some guests alone do not lock out those who may bring any", "[config]") {
  const auto& usual = kDefaults.settings.hypervisor_peers.uids;
  REQUIRE(settings_of(R"({"hypervisors":{"guests":[{"guests":["a"]}]}})").hypervisor_peers.uids == usual);
  REQUIRE(settings_of(R"({"hypervisors":{"gid":[7],"guests":[]}})").hypervisor_peers.uids.empty());
  REQUIRE(settings_of(R"({"hypervisors":{}})").hypervisor_peers.uids.empty());
}

TEST_CASE("tools to connect to, over unix and vsock sockets", "[config]") {
  const auto settings = settings_of(R"({"dial":[
      {"name":"hvmi","unix":"/run/hvmi.sock","dialect":"v7","guests":["web-*"],"role":"observer","priority":0,
       "redial_ms":50},
      {"name":"far","vsock":{"cid":3,"port":1234},"dialect":"v12"}]})");
  REQUIRE(settings.dialed_agents.size() == 2);
  const auto& hvmi = settings.dialed_agents[0];
  REQUIRE(hvmi.name == "hvmi");
  REQUIRE(hvmi.unix_path == "/run/hvmi.sock");
  REQUIRE(hvmi.dialect == DialectId::V7);
  REQUIRE(hvmi.guests == std::vector<std::string>{"web-*"});
  REQUIRE(hvmi.role == Role::Observer);
  REQUIRE(hvmi.priority == 0U);
  REQUIRE(hvmi.redial == std::chrono::milliseconds(50));
  const auto& far = settings.dialed_agents[1];
  REQUIRE(far.unix_path.empty());
  REQUIRE(far.vsock_cid == 3);
  REQUIRE(far.vsock_port == 1234);
  REQUIRE(far.dialect == DialectId::V12);
  REQUIRE(far.guests == std::vector<std::string>{"*"});
  REQUIRE_FALSE(far.role);
  REQUIRE_FALSE(far.priority);
  REQUIRE_FALSE(far.cookie);
  REQUIRE(far.redial == std::chrono::milliseconds(1000));
}

TEST_CASE("each mistake in a rule for guests is named with its path", "[config]") {
  struct Case {
    const char* rule;
    const char* wanted;
  };
  const auto [rule, wanted] = GENERATE(values<Case>({
      {"7", "/hypervisors/guests/0: must be an object, is 7"},
      {R"({"guest":["a"]})",
       "/hypervisors/guests/0/guest: unknown key; there are: guests, dialect, bound_to, cookie_file"},
      {R"({"guests":"a"})", "/hypervisors/guests/0/guests: must be a list of texts, is \"a\""},
      {R"({"guests":[]})", "/hypervisors/guests/0/guests: names no guest; give names, UUIDs or \"*\""},
      {R"({"guests":["a",""]})", "/hypervisors/guests/0/guests/1: must not be empty"},
      {R"({"guests":["a"]},{"guests":["a",5]})", "/hypervisors/guests/1/guests/1: must be a text, is 5"},
      {R"({"dialect":"v8"})",
       "/hypervisors/guests/0/dialect: must be one of auto, rfc2017, v6, v7, v12, is \"v8\""},
      {R"({"dialect":7})", "/hypervisors/guests/0/dialect: must be one of auto, rfc2017, v6, v7, v12, is 7"},
      {R"({"dialect":""})", "/hypervisors/guests/0/dialect: must be one of auto, rfc2017, v6, v7, v12, is \"\""},
      {R"({"bound_to":"*"})", "/hypervisors/guests/0/bound_to: must be an object, is \"*\""},
      {R"({"bound_to":{}})", "/hypervisors/guests/0/bound_to: names nobody; give uid, gid or cid"},
      {R"({"bound_to":{"uid":[],"cid":[]}})", "/hypervisors/guests/0/bound_to: names nobody; give uid, gid or cid"},
      {R"({"bound_to":{"user":[0]}})", "/hypervisors/guests/0/bound_to/user: unknown key; there are: uid, gid, cid"},
      {R"({"bound_to":{"gid":["no such group"]}})",
       "/hypervisors/guests/0/bound_to/gid/0: there is no group \"no such group\""},
      {R"({"cookie_file":7})", "/hypervisors/guests/0/cookie_file: must be a text, is 7"},
      {R"({"cookie_file":"secret"})",
       "/hypervisors/guests/0/cookie_file: must be an absolute path, is \"secret\""},
      {R"({"cookie_file":"/nonexistent/x"})",
       "/hypervisors/guests/0/cookie_file: there is no file \"/nonexistent/x\""},
  }));
  REQUIRE(rule_mistake(rule) == wanted);
}

TEST_CASE("each mistake in a tool to connect to is named with its path", "[config]") {
  struct Case {
    const char* keys;
    const char* wanted;
  };
  const auto [keys, wanted] = GENERATE(values<Case>({
      {R"("unix":"/a","dialect":"v7")",
       "/dial/0: the key \"name\" is missing: what shall logs and lists call it?"},
      {R"("name":"","unix":"/a","dialect":"v7")",
       "/dial/0/name: must have 1 to 63 printable ASCII characters, is \"\""},
      {R"("name":"a\tb","unix":"/a","dialect":"v7")",
       R"(/dial/0/name: must have 1 to 63 printable ASCII characters, is "a\tb")"},
      {R"("name":"ü","unix":"/a","dialect":"v7")",
       "/dial/0/name: must have 1 to 63 printable ASCII characters, is \"ü\""},
      {R"("name":"a","dialect":"v7")", "/dial/0: give \"unix\" or \"vsock\": where does it listen?"},
      {R"("name":"a","unix":"/a","vsock":{"cid":3,"port":1},"dialect":"v7")",
       "/dial/0: give \"unix\" or \"vsock\", not both"},
      {R"("name":"a","unix":"a.sock","dialect":"v7")", "/dial/0/unix: must be an absolute path, is \"a.sock\""},
      {R"("name":"a","unix":null,"dialect":"v7")", "/dial/0/unix: must be a text, is null"},
      {R"("name":"a","vsock":{"cid":3},"dialect":"v7")", "/dial/0/vsock: the key \"port\" is missing"},
      {R"("name":"a","vsock":{"port":3},"dialect":"v7")", "/dial/0/vsock: the key \"cid\" is missing"},
      {R"("name":"a","vsock":{"cid":0,"port":1},"dialect":"v7")",
       "/dial/0/vsock/cid: must be between 1 and 4294967294, is 0"},
      {R"("name":"a","vsock":{"cid":4294967295,"port":1},"dialect":"v7")",
       "/dial/0/vsock/cid: must be between 1 and 4294967294, is 4294967295"},
      {R"("name":"a","vsock":{"cid":3,"port":4294967295},"dialect":"v7")",
       "/dial/0/vsock/port: must be between 1 and 4294967294, is 4294967295"},
      {R"("name":"a","vsock":{"cid":3,"port":0},"dialect":"v7")",
       "/dial/0/vsock/port: must be between 1 and 4294967294, is 0"},
      {R"("name":"a","vsock":{"cid":3,"port":1,"host":1},"dialect":"v7")",
       "/dial/0/vsock/host: unknown key; there are: cid, port"},
      {R"("name":"a","unix":"/a")",
       "/dial/0: the key \"dialect\" is missing: a tool does not say which one it speaks"},
      {R"("name":"a","unix":"/a","dialect":"auto")",
       "/dial/0/dialect: must be one of rfc2017, v6, v7, v12, is \"auto\""},
      {R"("name":"a","unix":"/a","dialect":"kvmi2")",
       "/dial/0/dialect: must be one of rfc2017, v6, v7, v12, is \"kvmi2\""},
      {R"("name":"a","unix":"/a","dialect":"v7","guests":[])",
       "/dial/0/guests: names no guest; give names, UUIDs or \"*\""},
      {R"("name":"a","unix":"/a","dialect":"v7","role":"boss")",
       "/dial/0/role: must be one of decider, observer, is \"boss\""},
      {R"("name":"a","unix":"/a","dialect":"v7","priority":-1)",
       "/dial/0/priority: must be between 0 and 4294967295, is -1"},
      {R"("name":"a","unix":"/a","dialect":"v7","redial_ms":9)",
       "/dial/0/redial_ms: must be between 10 and 30000, is 9"},
      {R"("name":"a","unix":"/a","dialect":"v7","cookie_file":"/nonexistent/x")",
       "/dial/0/cookie_file: there is no file \"/nonexistent/x\""},
      {R"("name":"a","unix":"/a","dialect":"v7","role":"decider","priority":1,"port":1)",
       "/dial/0/port: unknown key; there are: name, unix, vsock, dialect, guests, role, priority, cookie_file, "
       "redial_ms"},
  }));
  REQUIRE(dial_mistake(keys) == wanted);
}

TEST_CASE("the list of tools is a list, and each has a name of its own", "[config]") {
  REQUIRE(mistake(R"({"dial":{}})") == "/dial: must be a list of tools, is {}");
  REQUIRE(mistake(R"({"dial":[7]})") == "/dial/0: must be an object, is 7");
  REQUIRE(mistake(R"({"hypervisors":{"guests":{}}})") == "/hypervisors/guests: must be a list of rules, is {}");
  REQUIRE(mistake(R"({"dial":[{)" + std::string(kTool) + "},{" + kTool + "}]}") ==
          "/dial/1/name: another one has this name: \"hvmi\"");
  const auto with_name = [](std::size_t bytes) {
    return dial_mistake(R"("unix":"/a","dialect":"v7","name":")" + std::string(bytes, 'n') + "\"");
  };
  REQUIRE(with_name(63) == "no mistake");
  REQUIRE(with_name(64).find("/dial/0/name: must have 1 to 63") == 0);
  const auto with_path = [](std::size_t bytes) {
    return dial_mistake(R"("name":"a","dialect":"v7","unix":"/)" + std::string(bytes - 1, 'x') + "\"");
  };
  REQUIRE(with_path(107) == "no mistake");
  REQUIRE(with_path(108) == "/dial/0/unix: the path has 108 bytes, the system's limit is 107 bytes");
}

TEST_CASE("a secret is known by its SHA-1, as recorded traffic has it", "[cookie]") {
  // The recorded hypervisor was given the secret `secret`; what its tool answered is size, then hash.
  std::ifstream in(KVMID_SOURCE_DIR "/tests/vectors/captures/v12-cookie.jsonl");
  std::string answer;
  for (std::string line; std::getline(in, line) && answer.empty();) {
    const auto record = nlohmann::json::parse(line);
    if (record.value("what", "") == "HANDSHAKE agent") answer = record.at("hex");
  }
  REQUIRE(answer.size() == 48);
  const std::string recorded = answer.substr(8);

  for (const char* bytes : {"secret", "secret\n"}) {
    const SecretFile file(bytes);
    const auto hash = read_cookie_file(file.path, CookieFiles::Read, ::geteuid());
    REQUIRE(hash);
    REQUIRE(hex(*hash) == recorded);
    const auto settings = settings_of(R"({"hypervisors":{"guests":[{"cookie_file":")" + file.path + R"("}]},
        "dial":[{)" + kTool + R"(,"cookie_file":")" + file.path + "\"}]}");
    REQUIRE(hex(settings.guest_rules.at(0).cookie.value()) == recorded);
    REQUIRE(hex(settings.dialed_agents.at(0).cookie.value()) == recorded);
  }
  // One newline alone is left out.
  const SecretFile two("secret\n\n");
  REQUIRE(hex(*read_cookie_file(two.path, CookieFiles::Read, ::geteuid())) != recorded);
}

TEST_CASE("a secret has 1 to 4096 bytes", "[cookie]") {
  REQUIRE(SecretFile("x").error().empty());
  REQUIRE(SecretFile(std::string(4096, 'x')).error().empty());
  REQUIRE(SecretFile(std::string(4096, 'x') + "\n").error().empty());
  for (const std::size_t bytes : {4097U, 4098U, 100000U}) {
    const SecretFile file(std::string(bytes, 'x'));
    REQUIRE(file.error() == "\"" + file.path + "\" holds more than 4096 bytes");
  }
  for (const char* bytes : {"", "\n"}) {
    const SecretFile file(bytes);
    REQUIRE(file.error() == "\"" + file.path + "\" is empty: there is no secret in it");
  }
}

TEST_CASE("a file that others may read or write is no secret", "[cookie]") {
  for (const auto& [mode, text] : {std::pair{0644, "0644"}, {0640, "0640"}, {0620, "0620"}, {0604, "0604"},
                                   {0602, "0602"}, {0610, "0610"}, {0677, "0677"}}) {
    const SecretFile file("secret", static_cast<mode_t>(mode));
    REQUIRE(file.error() == "the mode of \"" + file.path + "\" is " + text +
                                " and must be 0600: a secret is for its owner alone");
    REQUIRE(rule_mistake(R"({"cookie_file":")" + file.path + "\"}") ==
            "/hypervisors/guests/0/cookie_file: " + file.error());
  }
  for (const mode_t mode : {0400U, 0600U, 0700U}) REQUIRE(SecretFile("secret", mode).error().empty());
}

TEST_CASE("a secret belongs to root or to the user kvmid runs as", "[cookie]") {
  const SecretFile file("secret");
  const bool root = ::geteuid() == 0;
  const std::uint32_t owner = root ? 12345 : ::geteuid();
  if (root) REQUIRE(::chown(file.path.c_str(), owner, static_cast<gid_t>(-1)) == 0);
  REQUIRE(file.error(owner).empty());
  REQUIRE(file.error(owner + 1) == "\"" + file.path + "\" belongs to uid " + std::to_string(owner) +
                                       " and must belong to root or to the user kvmid runs as (uid " +
                                       std::to_string(owner + 1) + ")");
  REQUIRE(file.error(0) ==
          "\"" + file.path + "\" belongs to uid " + std::to_string(owner) + " and must belong to root");
  // Root may check a configuration for another user, who will own its secrets.
  REQUIRE(file.error(0, CookieFiles::Check).empty());
  REQUIRE_FALSE(file.error(owner + 1, CookieFiles::Check).empty());
}

TEST_CASE("what is no file is none, and nothing waits for it", "[cookie]") {
  const test::RuntimeFolder folder;
  const auto error = [](const std::string& path) {
    const auto hash = read_cookie_file(path, CookieFiles::Read, ::geteuid());
    return hash ? std::string() : hash.error();
  };
  REQUIRE(error(folder.path()) == "\"" + folder.path().string() + "\" is not a regular file");
  const std::string pipe = folder.file("pipe");
  REQUIRE(::mkfifo(pipe.c_str(), 0600) == 0);
  REQUIRE(error(pipe) == "\"" + pipe + "\" is not a regular file");
  const std::string file = folder.write("file", "");
  REQUIRE(error(file + "/below") == "cannot open \"" + file + "/below\": Not a directory");
}

TEST_CASE("no message holds a byte of the secret", "[cookie]") {
  for (const mode_t mode : {0600U, 0644U}) {
    const SecretFile file("topsecret" + std::string(5000, 'x'), mode);
    REQUIRE(file.error().find("topsecret") == std::string::npos);
    REQUIRE(file.error().find("xx") == std::string::npos);
  }
}

TEST_CASE("a configuration that is sent to be explained opens no file", "[cookie]") {
  const std::string text = R"({"policy":[{"match":"*"}],"hypervisors":{"guests":[{"cookie_file":"/nonexistent/x"}]}})";
  REQUIRE(mistake(text) == "/hypervisors/guests/0/cookie_file: there is no file \"/nonexistent/x\"");
  REQUIRE(mistake(text, CookieFiles::Leave) == "no mistake");
  const PolicySources sources{[] { return std::make_shared<const core::Policy>(); },
                              [] { return std::vector<io::GuestSnapshot>(); }};
  REQUIRE(policy_answer("POST", "/v1/policy", text, sources).status == 200);
}

TEST_CASE("rules, tools and secrets change while kvmid runs", "[reload]") {
  const SecretFile file("one");
  const std::string text = R"({"hypervisors":{"guests":[{"guests":["a"],"dialect":"v6","cookie_file":")" + file.path +
                           R"("}]},"dial":[{)" + kTool + "}]}";
  const auto before = parse_config("{}", kDefaults);
  const auto after = parse_config(text, kDefaults);
  REQUIRE(after);
  REQUIRE_FALSE(needs_restart(*before, *after));
  const auto first = after->settings.guest_rules.at(0).cookie;
  std::ofstream(file.path) << "two";
  REQUIRE(parse_config(text, kDefaults)->settings.guest_rules.at(0).cookie != first);
  // Without the keys all of it is gone.
  REQUIRE_FALSE(needs_restart(*after, *before));
  REQUIRE(before->settings.guest_rules.empty());
  REQUIRE(before->settings.dialed_agents.empty());
}

TEST_CASE("the schema names the keys of rules and tools that the reader takes", "[config]") {
  std::ifstream in(KVMID_SOURCE_DIR "/config/kvmid.schema.json");
  const auto schema = nlohmann::json::parse(in);
  const auto listed = [](const std::string& text) {
    std::set<std::string> out;
    std::istringstream words(text.substr(text.find("there are: ") + 11));
    for (std::string word; words >> word;) out.insert(word.back() == ',' ? word.substr(0, word.size() - 1) : word);
    return out;
  };
  const auto keys = [](const nlohmann::json& object) {
    std::set<std::string> out;
    for (const auto& [key, value] : object.at("properties").items()) out.insert(key);
    return out;
  };
  const auto& defs = schema.at("$defs");
  REQUIRE(keys(defs.at("guest_rule")) == listed(rule_mistake(R"({"?":0})")));
  REQUIRE(keys(defs.at("dialed_agent")) == listed(dial_mistake(std::string(kTool) + R"(,"?":0)")));
  REQUIRE(keys(schema.at("properties").at("hypervisors")) == listed(mistake(R"({"hypervisors":{"?":0}})")));
  for (const auto& name : defs.at("guest_rule").at("properties").at("dialect").at("enum"))
    REQUIRE(rule_mistake(R"({"dialect":)" + name.dump() + "}") == "no mistake");
  for (const auto& name : defs.at("dialed_agent").at("properties").at("dialect").at("enum"))
    REQUIRE(dial_mistake(R"("name":"a","unix":"/a","dialect":)" + name.dump()) == "no mistake");
}
