// SPDX-License-Identifier: GPL-2.0-or-later
#include <catch2/catch.hpp>

#include <string>
#include <vector>

#include "hypervisor/server/address.h"
#include "hypervisor/server/backoff.h"

namespace kvmid::hypervisor {

TEST_CASE("the wait before dialling again grows from 100 ms to 2 s", "[server]") {
  Backoff backoff;
  std::vector<long> waits;
  for (int i = 0; i < 7; ++i) waits.push_back(backoff.next().count());
  CHECK(waits == std::vector<long>{100, 200, 400, 800, 1600, 2000, 2000});
  backoff.reset();
  CHECK(backoff.next().count() == 100);
}

TEST_CASE("addresses are checked before they are dialled", "[server]") {
  CHECK(to_string(unix_address("/run/x.sock").value()) == "unix:/run/x.sock");
  CHECK(unix_address("").error().text == "the socket path is empty");
  CHECK(unix_address(std::string(108, 'a')).error().text.find("108 bytes") != std::string::npos);
  CHECK(unix_address(std::string("a\0b", 3)).error().text.find("zero byte") != std::string::npos);

  CHECK(to_string(vsock_address("2:1234").value()) == "vsock:2:1234");
  CHECK(vsock_address("21234").error().text.find("colon") != std::string::npos);
  CHECK(vsock_address("x:1").error().text.find("CID") != std::string::npos);
  CHECK(vsock_address("2:").error().text.find("port") != std::string::npos);
  CHECK(vsock_address("2:1x").error().text.find("port") != std::string::npos);
  CHECK(vsock_address("4294967296:1").error().text.find("CID") != std::string::npos);
}

TEST_CASE("dialling nobody is an error with its reason", "[server]") {
  const auto fd = dial(unix_address("/nonexistent/kvmid.sock").value());
  REQUIRE_FALSE(fd);
  CHECK(fd.error().text == "connect: No such file or directory");
}

}  // namespace kvmid::hypervisor
