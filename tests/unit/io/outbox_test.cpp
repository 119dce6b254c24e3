// SPDX-License-Identifier: GPL-2.0-or-later
#include "daemon/io/outbox.h"

#include <catch2/catch.hpp>
#include <optional>

using kvmid::ByteBuffer;
using kvmid::core::Account;
using kvmid::io::Outbox;

namespace {

void append(Outbox& outbox, std::size_t bytes, unsigned char value = 0) {
  ByteBuffer& buffer = outbox.compose();
  buffer.insert(buffer.end(), bytes, std::byte{value});
}

}  // namespace

TEST_CASE("an outbox charges whole messages and gives back what was written", "[outbox]") {
  Account account(100);
  Outbox outbox(account);
  append(outbox, 60);
  REQUIRE(outbox.commit());
  REQUIRE(account.held() == 60);

  outbox.consume(25);

  REQUIRE(account.held() == 35);
  REQUIRE(outbox.pending().size() == 35);
  outbox.consume(35);
  REQUIRE(outbox.empty());
  REQUIRE(account.held() == 0);
}

TEST_CASE("a message over the quota is taken out again and what was queued stays whole", "[outbox]") {
  Account account(100);
  Outbox outbox(account);
  append(outbox, 60, 1);
  REQUIRE(outbox.commit());
  append(outbox, 41, 2);

  REQUIRE_FALSE(outbox.commit());

  REQUIRE(account.held() == 60);
  REQUIRE(outbox.pending().size() == 60);
  REQUIRE(outbox.pending().back() == std::byte{1});
  append(outbox, 40, 3);  // just fits
  REQUIRE(outbox.commit());
  REQUIRE(account.held() == 100);
}

TEST_CASE("bytes leave in the order they came, however they are cut", "[outbox]") {
  Account account(1 << 20);
  Outbox outbox(account);
  unsigned char next_in = 0;
  unsigned char next_out = 0;
  for (std::size_t round = 0; round < 500; ++round) {
    const std::size_t size = 1 + round * 7 % 97;
    for (std::size_t i = 0; i < size; ++i) outbox.compose().push_back(std::byte{next_in++});
    REQUIRE(outbox.commit());
    const std::size_t take = std::min(outbox.pending().size(), 1 + round * 13 % 89);
    for (std::size_t i = 0; i < take; ++i) {
      if (outbox.pending()[i] != std::byte{next_out++}) FAIL("round " << round << " byte " << i);
    }
    outbox.consume(take);
    REQUIRE(account.held() == outbox.pending().size());
  }
}

TEST_CASE("an outbox that goes gives its charges back", "[outbox]") {
  Account account(100);
  std::optional<Outbox> outbox(std::in_place, account);
  append(*outbox, 80);
  REQUIRE(outbox->commit());
  outbox->consume(10);
  append(*outbox, 5);  // composed, never committed: not charged

  outbox.reset();

  REQUIRE(account.held() == 0);
}

TEST_CASE("an empty outbox keeps no large buffer", "[outbox]") {
  Account account(8U << 20U);
  Outbox outbox(account);
  append(outbox, 4U << 20U);
  REQUIRE(outbox.commit());

  outbox.consume(4U << 20U);

  REQUIRE(outbox.compose().capacity() <= 64U * 1024U);
}

TEST_CASE("a smaller quota keeps what is queued and takes no more until there is room again", "[outbox]") {
  Account account(100);
  Outbox outbox(account);
  append(outbox, 80);
  REQUIRE(outbox.commit());

  account.set_limit(50);

  REQUIRE(outbox.pending().size() == 80);
  append(outbox, 1);
  REQUIRE_FALSE(outbox.commit());
  outbox.consume(40);
  append(outbox, 10);
  REQUIRE(outbox.commit());
  account.set_limit(200);
  append(outbox, 100);
  REQUIRE(outbox.commit());
}
