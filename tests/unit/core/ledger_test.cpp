// SPDX-License-Identifier: GPL-2.0-or-later
#include "daemon/core/ledger.h"

#include <catch2/catch.hpp>
#include <set>

#include "daemon/core/account.h"

namespace kvmid::core {

TEST_CASE("the ledger takes 1024 commands and refuses the next", "[ledger]") {
  Ledger ledger;
  std::set<std::uint32_t> seqs;
  for (unsigned i = 0; i < kOpenCommandsMax; ++i) seqs.insert(ledger.open({}).value().value);
  REQUIRE(seqs.size() == kOpenCommandsMax);
  REQUIRE_FALSE(ledger.open({}).has_value());
  REQUIRE(ledger.close(Seq{*seqs.begin()}).has_value());
  REQUIRE(ledger.open({}).has_value());
}

TEST_CASE("a seq closes once, and one that was never given not at all", "[ledger]") {
  Ledger ledger;
  const Seq seq = ledger.open({.agent = AgentId{5}}).value();
  REQUIRE_FALSE(ledger.close(Seq{seq.value + 1}).has_value());
  REQUIRE_FALSE(ledger.close(Seq{seq.value + kOpenCommandsMax}).has_value());
  REQUIRE_FALSE(ledger.close(Seq{0}).has_value());
  REQUIRE_FALSE(ledger.close(Seq{0xffffffff}).has_value());
  REQUIRE(ledger.close(seq)->agent == AgentId{5});
  REQUIRE_FALSE(ledger.close(seq).has_value());
}

TEST_CASE("the place of a closed command is used again under another seq", "[ledger]") {
  Ledger ledger;
  std::set<std::uint32_t> seen;
  for (int i = 0; i < 5000; ++i) {
    const Seq seq = ledger.open({}).value();
    REQUIRE(seen.insert(seq.value).second);
    REQUIRE(ledger.close(seq).has_value());
  }
}

TEST_CASE("the oldest command is the one that was opened first of those that are left", "[ledger]") {
  Ledger ledger;
  std::vector<Seq> seqs;
  for (std::uint32_t i = 0; i < 4; ++i) seqs.push_back(ledger.open({.tag = i}).value());
  REQUIRE(ledger.oldest()->tag == 0);
  (void)ledger.close(seqs[0]);
  (void)ledger.close(seqs[2]);
  REQUIRE(ledger.oldest()->tag == 1);
  std::vector<std::uint32_t> drained;
  ledger.drain([&](const OpenCommand& open) { drained.push_back(open.tag); });
  REQUIRE(drained == std::vector<std::uint32_t>{1, 3});
  REQUIRE(ledger.oldest() == nullptr);
  REQUIRE(ledger.size() == 0);
}

TEST_CASE("an account refuses what is over its limit and changes nothing", "[account]") {
  Account account{10};
  REQUIRE(account.charge(10));
  REQUIRE_FALSE(account.charge(1));
  REQUIRE(account.charge(0));
  account.release(4);
  REQUIRE(account.held() == 6);
  REQUIRE_FALSE(account.charge(~std::uint64_t{0}));
  account.set_limit(3);
  REQUIRE_FALSE(account.charge(1));
  account.release(100);
  REQUIRE(account.held() == 0);
  REQUIRE(account.charge(3));
}

}  // namespace kvmid::core
