// SPDX-License-Identifier: GPL-2.0-or-later
#include "daemon/io/failures.h"

#include <catch2/catch.hpp>

using namespace kvmid::io;

namespace {
ConnectionFailure failure(const std::string& peer, const std::string& text) {
  return {.time = {}, .side = FailureSide::Hypervisor, .peer = peer, .guest = {}, .step = step::kPeer, .text = text};
}
}  // namespace

TEST_CASE("the last failures are kept, oldest first", "[failures]") {
  FailureRing ring;
  for (std::size_t i = 0; i < FailureRing::kMax + 3; ++i) ring.add(failure("uid=" + std::to_string(i), "no"));
  const auto list = ring.list();
  REQUIRE(list.size() == FailureRing::kMax);
  CHECK(list.front().peer == "uid=3");
  CHECK(list.back().peer == "uid=66");
}

TEST_CASE("one that happens again and again takes one place", "[failures]") {
  FailureRing ring;
  ring.add(failure("uid=1", "no"));
  ring.add(failure("uid=2", "no"));
  ring.add(failure("uid=1", "no"));
  auto list = ring.list();
  REQUIRE(list.size() == 2);
  CHECK(list.back().peer == "uid=1");
  CHECK(list.back().times == 2);
  ring.add(failure("uid=1", "something else"));
  list = ring.list();
  REQUIRE(list.size() == 3);
  CHECK(list.back().times == 1);
}

TEST_CASE("one that fails differently each time leaves the failures of others", "[failures]") {
  FailureRing ring;
  ring.add(failure("uid=1", "the one to find"));
  for (std::size_t i = 0; i < 10 * FailureRing::kMax; ++i) {
    ConnectionFailure one = failure("uid=2", "seq " + std::to_string(i));
    one.guest = "guest" + std::to_string(i);
    ring.add(one);
  }
  const auto list = ring.list();
  REQUIRE(list.size() == 1 + FailureRing::kMaxOfPeer);
  CHECK(list.front().text == "the one to find");
  CHECK(list.back().text == "seq 639");
}
