// SPDX-License-Identifier: GPL-2.0-or-later
// Cookies of reads, events, writes and replies.
#include <catch2/catch.hpp>

#include "tests/unit/core/core_harness.h"

namespace kvmid::core::testing {

namespace {

const std::vector<std::byte> kData(4, std::byte{1});

std::uint64_t read(Guest& guest, AgentId agent, std::uint64_t gpa, AddressSpace space = AddressSpace::Normal) {
  const std::vector<kvmi_read_range> ranges{{gpa, 4, 0}};
  const Seq seq = guest.command(agent, ReadPhysical{space, std::span<const kvmi_read_range>(ranges)});
  return std::get<ReadPhysicalReply>(guest.answer_to(agent, seq)->reply.body).cookie;
}

struct Written {
  std::optional<ErrorCode> error;
  std::uint64_t cookie = 0;
};
Written write(Guest& guest, AgentId agent, std::uint64_t gpa, std::uint64_t cookie, unsigned flags = KVMI_WRITE_COOKIE,
              AddressSpace space = AddressSpace::Normal) {
  const Bytes expected = (flags & KVMI_WRITE_EXPECT) != 0 ? Bytes(kData) : Bytes{};
  const Seq seq =
      guest.command(agent, WritePhysical{Gpa{gpa}, space, static_cast<std::uint16_t>(flags), cookie, kData, expected});
  Written written{guest.error_of(agent, seq)};
  const auto* body = std::get_if<WritePhysicalReply>(&guest.answer_to(agent, seq)->reply.body);
  if (body != nullptr) written.cookie = body->cookie;
  return written;
}

}  // namespace

TEST_CASE("a write based on what was read is done; based on something older it is not", "[cookie]") {
  Guest guest;
  const AgentId one = guest.attach();
  const AgentId two = guest.attach();
  const std::uint64_t cookie = read(guest, one, 0x1000);
  REQUIRE(cookie != 0);
  const Written first = write(guest, one, 0x1000, cookie);
  REQUIRE(first.error == ErrorCode::None);
  REQUIRE(first.cookie > cookie);
  const auto* sent = std::get_if<WritePhysical>(&guest.to_hypervisor.back().command);
  REQUIRE(sent->flags == 0);  // the cookie is kvmid's own
  REQUIRE(sent->cookie == 0);

  const auto before = guest.sent<WritePhysical>();
  const Written stale = write(guest, two, 0x1002, cookie);
  REQUIRE(stale.error == ErrorCode::Stale);
  REQUIRE(stale.cookie == first.cookie);
  REQUIRE(guest.sent<WritePhysical>() == before);  // nothing is written

  REQUIRE(write(guest, two, 0x2000, cookie).error == ErrorCode::None);         // another page
  REQUIRE(write(guest, one, 0x1000, first.cookie).error == ErrorCode::None);   // on top of its own
  REQUIRE(write(guest, one, 0x1ffe, first.cookie).error == ErrorCode::Stale);  // crosses into the other page
}

TEST_CASE("a cookie of a former life of kvmid is stale", "[cookie]") {
  Guest former(2, 1'000'000);
  const AgentId before = former.attach();
  const std::uint64_t old = read(former, before, 0x1000);
  REQUIRE(old >= 1'000'000);

  Guest guest(2, 2'000'000);
  const AgentId agent = guest.attach();
  for (int i = 0; i < 3; ++i) {
    REQUIRE(write(guest, agent, 0x1000, old).error == ErrorCode::Stale);
    REQUIRE(write(guest, agent, 0x2000, read(guest, agent, 0x2000)).error == ErrorCode::None);
  }
  REQUIRE(write(guest, agent, 0x1000, read(guest, agent, 0x1000)).error == ErrorCode::None);
}

TEST_CASE("of two writes on their way the second is based on something stale", "[cookie]") {
  Guest guest;
  const AgentId one = guest.attach();
  const AgentId two = guest.attach();
  const std::uint64_t cookie = read(guest, one, 0x1000);
  guest.answering = false;
  guest.command(one, WritePhysical{Gpa{0x1000}, AddressSpace::Normal, KVMI_WRITE_COOKIE, cookie, kData, {}});
  const Seq second =
      guest.command(two, WritePhysical{Gpa{0x1000}, AddressSpace::Normal, KVMI_WRITE_COOKIE, cookie, kData, {}});
  REQUIRE(guest.error_of(two, second) == ErrorCode::Stale);
}

TEST_CASE("a read that was sent before a write has the older cookie, whenever it is answered", "[cookie]") {
  Guest guest;
  const AgentId agent = guest.attach();
  guest.answering = false;
  const std::vector<kvmi_read_range> ranges{{0x1000, 4, 0}};
  const Seq seq = guest.command(agent, ReadPhysical{{}, std::span<const kvmi_read_range>(ranges)});
  guest.command(agent, WritePhysical{Gpa{0x1000}, AddressSpace::Normal, 0, 0, kData, {}});
  guest.answer_all();
  guest.answering = true;
  const auto cookie = std::get<ReadPhysicalReply>(guest.answer_to(agent, seq)->reply.body).cookie;
  REQUIRE(write(guest, agent, 0x1000, cookie).error == ErrorCode::Stale);
}

TEST_CASE("address spaces have generations of their own", "[cookie]") {
  Guest guest;
  const AgentId agent = guest.attach();
  const std::uint64_t smm = read(guest, agent, 0x1000, AddressSpace::Smm);
  write(guest, agent, 0x1000, 0, 0);
  REQUIRE(write(guest, agent, 0x1000, smm, KVMI_WRITE_COOKIE, AddressSpace::Smm).error == ErrorCode::None);
}

TEST_CASE("expected bytes that are not there: the hypervisor's word, with the current cookie", "[cookie]") {
  Guest guest;
  const AgentId agent = guest.attach();
  guest.refuse = [](const ToHypervisor& sent) {
    return std::holds_alternative<WritePhysical>(sent.command) ? ErrorCode::Stale : ErrorCode::None;
  };
  const Written refused = write(guest, agent, 0x1000, 0, KVMI_WRITE_EXPECT);
  REQUIRE(refused.error == ErrorCode::Stale);
  guest.refuse = [](const auto&) { return ErrorCode::None; };
  REQUIRE(write(guest, agent, 0x1000, refused.cookie, KVMI_WRITE_COOKIE | KVMI_WRITE_EXPECT).error == ErrorCode::None);
}

TEST_CASE("a patch is a change, and may be based on a cookie", "[cookie][patch]") {
  Guest guest;
  const AgentId one = guest.attach();
  const AgentId two = guest.attach();
  const std::uint64_t cookie = read(guest, one, 0x1000);
  const Written patched = write(guest, one, 0x1000, cookie, KVMI_WRITE_COOKIE | KVMI_WRITE_PATCH);
  REQUIRE(patched.error == ErrorCode::None);
  REQUIRE(patched.cookie > cookie);
  REQUIRE(write(guest, two, 0x1100, cookie).error == ErrorCode::Stale);
  const Written stale = write(guest, two, 0x1200, cookie, KVMI_WRITE_COOKIE | KVMI_WRITE_PATCH);
  REQUIRE(stale.error == ErrorCode::Stale);
  REQUIRE(stale.cookie == patched.cookie);
  REQUIRE(guest.state.patches.size() == 1);
}

TEST_CASE("a patch that goes with its agent is a change too", "[cookie][patch]") {
  Guest guest;
  const AgentId one = guest.attach();
  const AgentId two = guest.attach();
  guest.patch(one, 0x1000);
  const std::uint64_t cookie = read(guest, two, 0x1000);
  guest.lose(one);
  REQUIRE(write(guest, two, 0x1000, cookie).error == ErrorCode::Stale);
}

TEST_CASE("policy may want every write to be based on something", "[cookie]") {
  Guest guest;
  Grant grant = full_grant();
  grant.unconditional_writes = false;
  const AgentId agent = guest.attach(grant);
  REQUIRE(write(guest, agent, 0x1000, 0, 0).error == ErrorCode::NotPermitted);
  REQUIRE(write(guest, agent, 0x1000, 0, KVMI_WRITE_PATCH).error == ErrorCode::NotPermitted);
  REQUIRE(write(guest, agent, 0x1000, 0, KVMI_WRITE_EXPECT).error == ErrorCode::None);
  REQUIRE(write(guest, agent, 0x1000, read(guest, agent, 0x1000)).error == ErrorCode::None);
}

TEST_CASE("a change of the memory map makes the cookies of that address space stale", "[cookie]") {
  Guest guest;
  const AgentId agent = guest.attach();
  const std::uint64_t normal = read(guest, agent, 0x1000);
  const std::uint64_t smm = read(guest, agent, 0x1000, AddressSpace::Smm);
  MemoryMapChanged change;
  change.max_gpa = 2 * kGuestRam;
  change.slot = {kGuestRam, kGuestRam, KVMI_ADDRESS_SPACE_NORMAL, 0, 0};
  guest.step([&](Effects& out) { guest.machine.on_hypervisor_message(Seq{0}, Upward{change}, guest.now, out); });
  REQUIRE_FALSE(guest.closed);
  REQUIRE(write(guest, agent, 0x1000, normal).error == ErrorCode::Stale);
  REQUIRE(write(guest, agent, 0x1000, smm, KVMI_WRITE_COOKIE, AddressSpace::Smm).error == ErrorCode::None);
  // What is memory now has rights.
  REQUIRE(guest.error_of(agent, guest.set_pages(agent, {pages(kGuestRam >> kPageShift, 1, kR)})) == ErrorCode::None);
  REQUIRE(guest.machine.counters().map_changes == 1);
}

TEST_CASE("while the hypervisor was away anything may have happened", "[cookie]") {
  Guest guest;
  const AgentId agent = guest.attach();
  const std::uint64_t cookie = read(guest, agent, 0x1000);
  guest.lose_hypervisor();
  guest.connect();
  REQUIRE(write(guest, agent, 0x1000, cookie).error == ErrorCode::Stale);
}

TEST_CASE("a reply based on memory that has changed is RETRY, nothing of it is done, and its agent is told",
          "[cookie]") {
  Guest guest;
  const AgentId one = guest.attach();
  const AgentId two = guest.attach();
  for (const AgentId agent : {one, two}) guest.subscribe(agent, only(EventKind::Hypercall));
  const Seq seq = guest.event(0, HypercallData{});
  const std::uint64_t cookie = guest.last_event(one)->event.cookie;
  REQUIRE(cookie != 0);
  guest.command(one, SetRegisters{VcpuId{0}, {}});
  EventReply reply = guest.reply_to(one, Action::Skip);
  reply.has_cookie = true;
  reply.cookie = cookie;
  const bool changes = GENERATE(true, false);
  guest.vote(one, reply);
  if (changes) write(guest, two, 0x1000, 0, 0);  // after the vote, and before the verdict
  guest.vote(two, Action::Allow);
  REQUIRE(guest.verdict(seq)->action == (changes ? Action::Retry : Action::Skip));
  REQUIRE_FALSE(guest.verdict(seq)->has_cookie);
  REQUIRE(guest.sent<SetRegisters>() == (changes ? 0 : 1));
  const auto* notice = guest.last_notice(one, NoticeKind::ReplyRefused);
  REQUIRE((notice != nullptr) == changes);
  if (changes) REQUIRE(notice->notice.error == ErrorCode::Stale);
  REQUIRE(guest.last_notice(two, NoticeKind::ReplyRefused) == nullptr);
}

TEST_CASE("of several cookies the one that makes the merged reply stale in time counts", "[cookie][merge]") {
  Guest guest;
  const AgentId one = guest.attach();
  const AgentId two = guest.attach();
  for (const AgentId agent : {one, two}) guest.subscribe(agent, only(EventKind::Hypercall));
  const std::uint64_t old = read(guest, one, 0x1000);
  write(guest, one, 0x1000, 0, 0);
  const Seq seq = guest.event(0, HypercallData{});
  const std::uint64_t fresh = guest.last_event(one)->event.cookie;
  const auto vote = [&](AgentId agent, Action action, std::uint64_t cookie) {
    EventReply reply = guest.reply_to(agent, action);
    reply.has_cookie = cookie != 0;
    reply.cookie = cookie;
    guest.vote(agent, reply);
  };
  Action expected{};
  SECTION("two that allow: one stale is enough") {
    vote(one, Action::Allow, fresh);
    vote(two, Action::Allow, old);
    expected = Action::Retry;
  }
  SECTION("two that skip: one fresh is enough") {
    vote(one, Action::Skip, fresh);
    vote(two, Action::Skip, old);
    expected = Action::Skip;
  }
  SECTION("a skip without one stands") {
    vote(one, Action::Skip, old);
    vote(two, Action::Skip, 0);
    expected = Action::Skip;
  }
  SECTION("that of a milder action does not count") {
    vote(one, Action::Allow, old);
    vote(two, Action::Crash, 0);
    expected = Action::Crash;
  }
  SECTION("one that was never given is stale") {
    vote(one, Action::Skip, fresh + 1);
    vote(two, Action::Allow, 0);
    expected = Action::Retry;
  }
  REQUIRE(guest.verdict(seq)->action == expected);
}

}  // namespace kvmid::core::testing
