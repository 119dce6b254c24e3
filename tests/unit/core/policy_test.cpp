// SPDX-License-Identifier: GPL-2.0-or-later
#include "daemon/core/policy.h"

#include <catch2/catch.hpp>

namespace kvmid::core {

namespace {

Peer unix_peer(std::uint32_t uid, std::vector<std::uint32_t> gids) {
  Peer peer;
  peer.uid = uid;
  peer.gids = std::move(gids);
  return peer;
}
Rule rule(std::string name) {
  Rule r;
  r.grant.rule = std::move(name);
  return r;
}
const Uuid kGuest{{0x6a, 0x1f, 0x7e, 0x36, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}};

}  // namespace

TEST_CASE("the first rule that matches peer and guest decides", "[policy]") {
  Policy policy;
  policy.rules = {rule("one"), rule("two"), rule("three")};
  policy.rules[0].uids = {1000};
  policy.rules[0].guests = {"web*"};
  policy.rules[1].uids = {1000};
  policy.rules[2].any_peer = true;
  const Peer peer = unix_peer(1000, {1000});
  REQUIRE(find_grant(policy, peer, "web1", kGuest)->rule == "one");
  REQUIRE(find_grant(policy, peer, "db1", kGuest)->rule == "two");
  REQUIRE(find_grant(policy, unix_peer(5, {}), "web1", kGuest)->rule == "three");
}

TEST_CASE("no rule, no access", "[policy]") {
  const Peer peer = unix_peer(0, {0});
  REQUIRE(find_grant(Policy{}, peer, "web1", kGuest) == nullptr);
  REQUIRE_FALSE(may_connect(Policy{}, peer));
  Policy policy;
  policy.rules = {rule("without criteria")};
  REQUIRE(find_grant(policy, peer, "web1", kGuest) == nullptr);
  REQUIRE_FALSE(may_connect(policy, peer));
}

TEST_CASE("a rule's groups match any group of the peer, and all criteria must hold", "[policy]") {
  Rule r = rule("r");
  r.gids = {50, 60};
  REQUIRE(matches(r, unix_peer(1, {10, 60})));
  REQUIRE_FALSE(matches(r, unix_peer(1, {10, 61})));
  REQUIRE_FALSE(matches(r, unix_peer(1, {})));
  r.uids = {2};
  REQUIRE_FALSE(matches(r, unix_peer(1, {60})));
  REQUIRE(matches(r, unix_peer(2, {60})));
}

TEST_CASE("a vsock peer matches by its CID only", "[policy]") {
  Rule r = rule("r");
  r.cids = {3};
  Peer peer;
  REQUIRE_FALSE(matches(r, peer));
  peer.cid = 3;
  REQUIRE(matches(r, peer));
  peer.cid = 4;
  REQUIRE_FALSE(matches(r, peer));
  Rule by_uid = rule("u");
  by_uid.uids = {3};
  REQUIRE_FALSE(matches(by_uid, peer));
}

TEST_CASE("guests are named by patterns of their names or UUIDs", "[policy]") {
  Policy policy;
  policy.rules = {rule("r")};
  policy.rules[0].any_peer = true;
  policy.rules[0].guests = {"6a1f7e36-*"};
  REQUIRE(find_grant(policy, {}, "web1", kGuest) != nullptr);
  REQUIRE(find_grant(policy, {}, "web1", Uuid{}) == nullptr);
}

TEST_CASE("patterns match as a whole", "[policy]") {
  REQUIRE(matches_pattern("", ""));
  REQUIRE_FALSE(matches_pattern("", "a"));
  REQUIRE(matches_pattern("*", ""));
  REQUIRE(matches_pattern("**", "abc"));
  REQUIRE(matches_pattern("a*c", "abbbc"));
  REQUIRE(matches_pattern("a*b*c", "aXbYbZc"));
  REQUIRE_FALSE(matches_pattern("a*c", "abcd"));
  REQUIRE(matches_pattern("?b?", "abc"));
  REQUIRE_FALSE(matches_pattern("?", ""));
  REQUIRE_FALSE(matches_pattern("ab?", "ab"));
  REQUIRE_FALSE(matches_pattern("web", "web1"));
  REQUIRE(matches_pattern("*1", "web11"));
  REQUIRE(matches_pattern("*?", "x"));
}

TEST_CASE("a pattern made to be slow is not", "[policy][hostile]") {
  std::string pattern;
  for (int i = 0; i < 200; ++i) pattern += "*a";
  pattern += "*b";
  const std::string text(5000, 'a');  // exponential for a matcher that goes back to every star
  REQUIRE_FALSE(matches_pattern(pattern, text));
  REQUIRE(matches_pattern(pattern, text + "b"));
}

}  // namespace kvmid::core
