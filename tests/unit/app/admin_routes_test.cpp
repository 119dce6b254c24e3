// SPDX-License-Identifier: GPL-2.0-or-later
#include "daemon/app/admin_routes.h"

#include <catch2/catch.hpp>

#include "protocol/handshake.h"

using namespace kvmid;
using namespace kvmid::app;

namespace {

constexpr const char* kUuid = "6a1f7e36-0000-4000-8000-000000000001";

Route good(std::string_view method, std::string_view target, std::string_view body = "") {
  const auto route = find_route(method, target, body);
  INFO(target << ": " << (route ? "" : route.error().message));
  REQUIRE(route);
  return *route;
}
RouteError bad(std::string_view method, std::string_view target, std::string_view body = "") {
  const auto route = find_route(method, target, body);
  REQUIRE_FALSE(route);
  return route.error();
}

}  // namespace

TEST_CASE("each resource is found by its method and path", "[routes]") {
  REQUIRE(good("GET", "/v1/status").resource == Resource::Status);
  REQUIRE(good("GET", "/v1/health").resource == Resource::Health);
  REQUIRE(good("GET", "/v1/guests").resource == Resource::Guests);
  REQUIRE(good("GET", "/v1/agents").resource == Resource::Agents);
  REQUIRE(good("GET", "/v1/failures").resource == Resource::Failures);
  REQUIRE(good("GET", "/metrics").resource == Resource::Metrics);
  REQUIRE(good("GET", "/v1/events").resource == Resource::Events);
  REQUIRE(good("GET", "/v1/log-level").resource == Resource::LogLevel);
  REQUIRE(good("POST", "/v1/reload").resource == Resource::Reload);
  const Route guest = good("GET", std::string("/v1/guests/") + kUuid);
  REQUIRE(guest.resource == Resource::Guest);
  REQUIRE(to_string(guest.guest) == kUuid);
  const Route level = good("PUT", "/v1/log-level", R"({"level":"debug"})");
  REQUIRE(level.resource == Resource::SetLogLevel);
  REQUIRE(level.level == "debug");
}

TEST_CASE("a path that is none is 404 whatever the method", "[routes]") {
  for (const char* target : {"/", "", "*", "/v1", "/v1/", "/v1/status/", "/V1/status", "/v1/guest", "/v1/statusx"})
    for (const char* method : {"GET", "POST", "BREW"}) REQUIRE(bad(method, target).status == 404);
}

TEST_CASE("another method is 405 and says which are served", "[routes]") {
  REQUIRE(bad("POST", "/v1/status").allow == "GET");
  REQUIRE(bad("HEAD", "/v1/status").status == 405);
  REQUIRE(bad("GET", "/v1/reload").allow == "POST");
  REQUIRE(bad("DELETE", "/v1/log-level").allow == "GET, PUT");
  REQUIRE(bad("get", "/v1/status").status == 405);
  REQUIRE(bad("DELETE", std::string("/v1/guests/") + kUuid).allow == "GET");
}

TEST_CASE("a guest is asked for by its UUID", "[routes]") {
  for (const char* name : {"web1", "", "6a1f7e36", "../status"}) {
    const auto error = bad("GET", std::string("/v1/guests/") + name);
    REQUIRE(error.status == 400);
    REQUIRE(error.message.find("not a UUID") == 0);
  }
}

TEST_CASE("a filter of events names guests and kinds, and a misspelt one is no filter", "[routes]") {
  const Route all = good("GET", "/v1/events");
  REQUIRE_FALSE(all.filter.guest);
  REQUIRE(all.filter.guest_name.empty());
  REQUIRE(all.filter.kinds == kEveryEvent);
  const Route some = good("GET", std::string("/v1/events?guest=") + kUuid + "&kinds=cr,page_fault");
  REQUIRE(to_string(*some.filter.guest) == kUuid);
  REQUIRE(some.filter.kinds.bits == (KVMI_EVENT_BIT(KVMI_EVENT_CR) | KVMI_EVENT_BIT(KVMI_EVENT_PAGE_FAULT)));
  REQUIRE(good("GET", "/v1/events?guest=web%201%2f").filter.guest_name == "web 1/");
  for (const char* query : {"kind=cr", "guest=", "kinds=", "kinds=CR", "kinds=cr,", "kinds=,cr", "guest=%4", "guest=%",
                            "guest=%zz", "=", "guest"}) {
    INFO(query);
    REQUIRE(bad("GET", std::string("/v1/events?") + query).status == 400);
  }
  REQUIRE(bad("GET", "/v1/events?kinds=CR").message.find("there is no event kind \"CR\"; there are: unhook, cr") == 0);
  REQUIRE(bad("GET", "/v1/status?verbose=1").status == 400);
}

TEST_CASE("each mistake in a body is named", "[routes]") {
  struct Case {
    const char* body;
    const char* wanted;
  };
  const auto [body, wanted] = GENERATE(values<Case>({
      {"", "the body is not JSON"},
      {"{", "the body is not JSON"},
      {"[]", "the body must be an object with the key \"level\""},
      {"{}", "the body must be an object with the key \"level\""},
      {R"({"level":1})", "the body must be an object with the key \"level\""},
      {R"({"level":"debug","for":"ever"})", "the body must be an object with the key \"level\""},
      {R"({"level":"loud"})", "there is no log level \"loud\"; there are: trace, debug"},
  }));
  const auto error = bad("PUT", "/v1/log-level", body);
  REQUIRE(error.status == 400);
  REQUIRE(error.message.find(wanted) == 0);
}

TEST_CASE("a body where none belongs is a mistake", "[routes]") {
  REQUIRE(bad("POST", "/v1/reload", "{}").status == 400);
  REQUIRE(bad("GET", "/v1/status", "x").status == 400);
}

TEST_CASE("what a message quotes is short and printable", "[routes]") {
  const auto error = bad("GET", "/\r\n\x01" + std::string(5000, 'x'));
  REQUIRE(error.message.size() < 200);
  for (const char c : error.message) REQUIRE(static_cast<unsigned char>(c) >= 0x20);
}
