// SPDX-License-Identifier: GPL-2.0-or-later
//
// /v1/policy as kvmid answers it, and as kvmictl asks for it and shows it.

#include <catch2/catch.hpp>

#include "daemon/app/admin_policy.h"
#include "daemon/app/config.h"
#include "kvmictl/daemon_commands.h"
#include "protocol/handshake.h"

using namespace kvmid;
using app::explain_policy;
using app::parse_policy_question;
using app::policy_answer;
using app::PolicySources;
using ctl::Json;

namespace {

const std::string kConfig = R"({"policy":[
  {"name":"admins","match":{"uid":[0]},"commands":["*"],"events":["*"],"role":"decider"},
  {"name":"watchers","match":{"gid":[27,28]},"guests":["web-*"],"commands":["READ_PHYSICAL"],"events":["cr"]},
  {"name":"vsock","match":{"cid":[3]},"guests":["6a1f7e36-*"]},
  {"name":"late","match":"*","guests":["open"]}]})";

core::Policy policy() {
  auto config = app::parse_config(kConfig, app::default_config(0, 1));
  REQUIRE(config);
  return config->settings.policy;
}

PolicySources sources() {
  return {[] { return std::make_shared<const core::Policy>(policy()); },
          [] { return std::vector<io::GuestSnapshot>(); }};
}

Json ask(const std::string& query) {
  const auto answer = policy_answer("GET", "/v1/policy?" + query, "", sources());
  INFO(answer.body);
  REQUIRE(answer.status == 200);
  return Json::parse(answer.body);
}

unsigned status_of(const std::string& method, const std::string& target, const std::string& body = "") {
  return policy_answer(method, target, body, sources()).status;
}

}  // namespace

TEST_CASE("the first rule that matches peer and guest decides, and every rule says why", "[kvmictl]") {
  const Json answer = ask("uid=1000&gid=1000&gid=27&guest=web-1&command=READ_PHYSICAL");
  CHECK(answer["allowed"] == true);
  CHECK(answer["rule"] == "watchers");
  CHECK(answer["rules"][0]["why"] == "uid 1000 is not among 0");
  CHECK(answer["rules"][1]["decides"] == true);
  CHECK(answer["rules"][2]["decides"] == false);
  CHECK(answer["grant"]["commands"] == Json::array({"READ_PHYSICAL"}));
  CHECK(answer["grant"]["quota"]["requests"] == 64);
}

TEST_CASE("a rule that decides can still refuse a command or an event", "[kvmictl]") {
  CHECK(ask("gid=28&guest=web-1&command=WRITE_PHYSICAL")["allowed"] == false);
  CHECK(ask("gid=28&guest=web-1&event=cr")["allowed"] == true);
  CHECK(ask("gid=28&guest=web-1&event=msr")["allowed"] == false);
  CHECK(ask("uid=0&guest=anything&event=msr")["allowed"] == true);
}

TEST_CASE("where no rule matches the text says what is left", "[kvmictl]") {
  const Json other = ask("gid=27&guest=db1");
  CHECK(other["allowed"] == false);
  CHECK(other["rule"].is_null());
  CHECK(other["rules"][1]["why"] == "guest \"db1\" is not among web-*");
  CHECK(other["text"].get<std::string>().find("control connection") != std::string::npos);
  CHECK(ask("cid=3&guest=6a1f7e36-0000-4000-8000-000000000001")["rule"] == "vsock");
  CHECK(ask("cid=4&guest=6a1f7e36-0000-4000-8000-000000000001")["allowed"] == false);
}

TEST_CASE("the explanation agrees with the decision, peer by peer and guest by guest", "[kvmictl]") {
  const auto rules = policy();
  for (const std::uint32_t uid : {0U, 5U}) {
    for (const std::uint32_t gid : {27U, 99U}) {
      for (const std::uint32_t cid : {3U, 4U}) {
        for (const char* guest : {"web-1", "db1", "open"}) {
          for (const char* uuid : {"6a1f7e36-0000-4000-8000-000000000001", "beef0000-0000-4000-8000-000000000001"}) {
            app::PolicyQuestion question;
            question.peer.uid = uid;
            question.peer.gids = {gid};
            question.peer.cid = cid;
            question.guest = guest;
            const auto* grant = core::find_grant(rules, question.peer, guest, *parse_uuid(uuid));
            const Json answer = Json::parse(explain_policy(rules, question, *parse_uuid(uuid), guest).dump());
            INFO(uid << " " << gid << " " << cid << " " << guest << " " << uuid);
            CHECK(answer["allowed"] == (grant != nullptr));
            CHECK(answer["rule"] == (grant != nullptr ? Json(grant->rule) : Json()));
          }
        }
      }
    }
  }
}

TEST_CASE("a guest that is connected is known by its name and its uuid", "[kvmictl]") {
  auto with_guest = sources();
  with_guest.guests = [] {
    io::GuestSnapshot guest;
    guest.name = "db1";
    guest.uuid = *parse_uuid("6a1f7e36-0000-4000-8000-000000000001");
    return std::vector{guest};
  };
  const auto answer = policy_answer("GET", "/v1/policy?cid=3&guest=db1", "", with_guest);
  CHECK(Json::parse(answer.body)["rule"] == "vsock");
}

TEST_CASE("a question with a mistake is told which part it is", "[kvmictl]") {
  for (const auto& [query, part] : std::vector<std::pair<std::string, std::string>>{{"uid=x&guest=a", "uid="},
                                                                                    {"uid=-1&guest=a", "uid="},
                                                                                    {"uid=4294967296&guest=a", "uid="},
                                                                                    {"uid=1", "guest="},
                                                                                    {"guest=a&command=NOPE", "NOPE"},
                                                                                    {"guest=a&event=nope", "nope"},
                                                                                    {"guest=a&colour=red", "colour"},
                                                                                    {"guest=%zz", "%"},
                                                                                    {"guest=%4", "%"}}) {
    INFO(query);
    const auto question = parse_policy_question(query);
    REQUIRE_FALSE(question);
    CHECK(question.error().find(part) != std::string::npos);
    CHECK(status_of("GET", "/v1/policy?" + query) == 400);
  }
  CHECK(parse_policy_question("guest=a%20b")->guest == "a b");
  CHECK(status_of("DELETE", "/v1/policy") == 405);
  CHECK(status_of("GET", "/v1/policy", "{}") == 400);
  CHECK(app::is_policy_target("/v1/policy"));
  CHECK(app::is_policy_target("/v1/policy?guest=a"));
  CHECK_FALSE(app::is_policy_target("/v1/policy2"));
}

TEST_CASE("without a question every rule is listed", "[kvmictl]") {
  const auto answer = policy_answer("GET", "/v1/policy", "", sources());
  const Json json = Json::parse(answer.body);
  REQUIRE(json["rules"].size() == 4);
  CHECK(json["rules"][3]["match"] == "*");
  CHECK(json["rules"][1]["grant"]["quota"]["attachments"] == 64);
  CHECK(json["rules"][1]["grant"]["quota"]["patches"] == 1024);
  CHECK(json["rules"][1]["grant"]["quota"]["filters"] == 64);
  CHECK(json["rules"][1]["grant"]["unconditional_writes"] == true);
  PolicySources busy = sources();
  busy.running = [] { return nullptr; };
  CHECK(policy_answer("GET", "/v1/policy", "", busy).status == 503);
}

TEST_CASE("a configuration that is not in force is asked by POST, its mistakes have a path", "[kvmictl]") {
  const auto good = policy_answer("POST", "/v1/policy?uid=9&guest=x",
                                  R"({"policy":[{"name":"new","match":{"uid":[9]}}]})", sources());
  CHECK(Json::parse(good.body)["rule"] == "new");
  const auto careful = policy_answer(
      "POST", "/v1/policy?uid=9&guest=x",
      R"({"policy":[{"match":{"uid":[9]},"unconditional_writes":false,"quota":{"patches":3,"filters":2}}]})", sources());
  const Json grant = Json::parse(careful.body)["grant"];
  CHECK(grant["unconditional_writes"] == false);
  CHECK(grant["quota"]["patches"] == 3);
  CHECK(grant["quota"]["filters"] == 2);
  CHECK(ctl::render_policy(Json::parse(careful.body), 0).find("with a cookie or the expected bytes only\n") !=
        std::string::npos);
  const auto bad = policy_answer("POST", "/v1/policy?uid=9&guest=x", R"({"policy":7})", sources());
  CHECK(bad.status == 422);
  CHECK(Json::parse(bad.body)["error"]["path"] == "/policy");
}

TEST_CASE("kvmictl asks for whom it was told, else for whoever runs it", "[kvmictl]") {
  ctl::Arguments arguments;
  arguments.guest = "web 1&x";
  arguments.policy.uid = 5;
  arguments.policy.gids = {7, 8};
  arguments.policy.command = "READ_PHYSICAL";
  CHECK(ctl::policy_target(arguments) == "/v1/policy?guest=web%201%26x&uid=5&gid=7&gid=8&command=READ_PHYSICAL");
  arguments.policy = {};
  const auto own = ctl::policy_target(arguments);
  CHECK(own.find("&uid=") != std::string::npos);
  CHECK(own.find("&gid=") != std::string::npos);
  arguments.policy.cid = 3;
  CHECK(ctl::policy_target(arguments) == "/v1/policy?guest=web%201%26x&cid=3");
}

TEST_CASE("an explanation for people", "[kvmictl]") {
  const auto text = ctl::render_policy(ask("gid=28&guest=web-1&command=WRITE_PHYSICAL"), 0);
  CHECK(text.starts_with("command WRITE_PHYSICAL on guest web-1: not allowed\nRule \"watchers\" decides."));
  CHECK(text.find("watchers  yes      the first rule that matches peer and guest\n") != std::string::npos);
  CHECK(text.find("  commands    READ_PHYSICAL\n") != std::string::npos);
  CHECK(text.find("  writes      with or without a condition\n") != std::string::npos);
  CHECK(text.find(" 512 MSRs, 1024 patches, 64 filters, 64 attachments\n") != std::string::npos);
  CHECK_FALSE(ctl::render_policy(Json::object(), 80).empty());
}
