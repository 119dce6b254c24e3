// SPDX-License-Identifier: GPL-2.0-or-later

#include "kvmictl/admin_client.h"

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <cstring>
#include <thread>

using namespace kvmid;
using namespace kvmid::ctl;
using client::ClientErrc;

namespace {

/// Accepts one connection on an abstract socket, reads the request's head, writes `answer`, closes.
class OneAnswer {
 public:
  explicit OneAnswer(std::string answer) : listener_(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    // An empty name makes the kernel choose one.
    sockaddr_un name{};
    name.sun_family = AF_UNIX;
    REQUIRE(::bind(listener_.get(), reinterpret_cast<sockaddr*>(&name), sizeof(sa_family_t)) == 0);
    socklen_t size = sizeof name;
    REQUIRE(::getsockname(listener_.get(), reinterpret_cast<sockaddr*>(&name), &size) == 0);
    address = "@" + std::string(name.sun_path + 1, size - offsetof(sockaddr_un, sun_path) - 1);
    REQUIRE(::listen(listener_.get(), 1) == 0);
    thread_ = std::thread([this, answer = std::move(answer)] {
      const client::UniqueFd peer(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
      char buffer[256];
      while (request.find("\r\n\r\n") == std::string::npos) {
        const ssize_t n = ::read(peer.get(), buffer, sizeof buffer);
        if (n <= 0) return;
        request.append(buffer, static_cast<std::size_t>(n));
      }
      (void)!::write(peer.get(), answer.data(), answer.size());
    });
  }
  ~OneAnswer() { join(); }
  void join() {
    ::shutdown(listener_.get(), SHUT_RDWR);
    if (thread_.joinable()) thread_.join();
  }

  std::string address;
  std::string request;

 private:
  client::UniqueFd listener_;
  std::thread thread_;
};

std::string http(const std::string& status, const std::string& body) {
  return "HTTP/1.1 " + status + "\r\nContent-Type: application/json\r\nContent-Length: " + std::to_string(body.size()) +
         "\r\n\r\n" + body;
}

constexpr client::Millis kSoon{5000};

}  // namespace

TEST_CASE("an answer over the socket is parsed", "[kvmictl]") {
  OneAnswer kvmid(http("200 OK", R"({"schema":1,"guests":[]})"));
  const auto answer = admin_get(kvmid.address, "/v1/guests", kSoon);
  kvmid.join();
  REQUIRE(answer);
  CHECK((*answer)["schema"] == 1);
  CHECK(kvmid.request.starts_with("GET /v1/guests HTTP/1.1\r\n"));
}

TEST_CASE("kvmid's own message is the error", "[kvmictl]") {
  OneAnswer kvmid(http("404 Not Found", R"({"error":{"code":404,"message":"no such guest"}})"));
  const auto answer = admin_get(kvmid.address, "/v1/guests/x", kSoon);
  REQUIRE_FALSE(answer);
  CHECK(answer.error().kind == ClientErrc::NoGuest);
  CHECK(answer.error().text == "no such guest");
}

TEST_CASE("what is no HTTP, and a connection closed at once, are errors", "[kvmictl]") {
  OneAnswer garbage("SSH-2.0-OpenSSH_9.2\r\n\r\n");
  CHECK(admin_get(garbage.address, "/v1/status", kSoon).error().kind == ClientErrc::Protocol);
  OneAnswer silent("");
  CHECK(admin_get(silent.address, "/v1/status", kSoon).error().kind == ClientErrc::Closed);
}

TEST_CASE("a missing socket says which, and asks whether kvmid runs", "[kvmictl]") {
  const auto answer = admin_get("/nonexistent/admin.sock", "/v1/status", kSoon);
  REQUIRE_FALSE(answer);
  CHECK(answer.error().kind == ClientErrc::Unreachable);
  CHECK(answer.error().text.find("/nonexistent/admin.sock") != std::string::npos);
  CHECK(answer.error().text.find("Is kvmid running?") != std::string::npos);
}

TEST_CASE("statuses and bodies that are odd", "[kvmictl]") {
  CHECK(admin_answer(200, "[]").error().kind == ClientErrc::Protocol);
  CHECK(admin_answer(200, "{").error().kind == ClientErrc::Protocol);
  CHECK(admin_answer(500, "oops").error().text == "kvmid answered HTTP 500");
  CHECK(admin_answer(403, R"({"error":{"message":"not you"}})").error().code == ErrorCode::NotPermitted);
  CHECK(admin_answer(400, R"({"error":7})").error().kind == ClientErrc::Failed);
}

TEST_CASE("a mistake in a configuration comes with its place", "[kvmictl]") {
  const auto answer =
      admin_answer(422, R"({"error":{"code":422,"message":"is no number","path":"/policy/0/priority"}})");
  CHECK(answer.error().kind == ClientErrc::Failed);
  CHECK(answer.error().text == "/policy/0/priority: is no number");
  CHECK(admin_answer(422, R"({"error":{"message":"cannot open it","path":""}})").error().text == "cannot open it");
}

TEST_CASE("a resource that this kvmid does not have is told from a guest that it does not have", "[kvmictl]") {
  CHECK(admin_answer(404, R"({"error":{"message":"no such resource: \"/v1/x\""}})").error().code ==
        ErrorCode::NotServed);
  CHECK(admin_answer(405, "{}").error().code == ErrorCode::NotServed);
  CHECK(admin_answer(404, R"({"error":{"message":"no such guest"}})").error().kind == ClientErrc::NoGuest);
}

TEST_CASE("method, body and length of a request go out as given", "[kvmictl]") {
  OneAnswer kvmid(http("200 OK", R"({"schema":1})"));
  const AdminRequest request{.method = "PUT", .target = "/v1/log-level", .body = R"({"level":"debug"})"};
  REQUIRE(admin_call(kvmid.address, request, kSoon));
  kvmid.join();
  CHECK(kvmid.request.starts_with("PUT /v1/log-level HTTP/1.1\r\n"));
  CHECK(kvmid.request.find("Content-Length: 17\r\n") != std::string::npos);
}

TEST_CASE("text in a query is escaped", "[kvmictl]") {
  CHECK(query_escaped("web-1_a.b~c") == "web-1_a.b~c");
  CHECK(query_escaped("a b&c=\xc3\xa9") == "a%20b%26c%3D%C3%A9");
}
