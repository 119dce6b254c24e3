// SPDX-License-Identifier: GPL-2.0-or-later
//
// What an agent based its write or its answer on has changed since: it is refused, and nothing has happened.

#include <catch2/catch.hpp>

#include "tests/integration_many/many_scene.h"

namespace kvmid::test {
namespace {

constexpr Gpa kPlace{0x600000};  // RAM that the guest never touches
constexpr Gpa kOther{0x700000};

struct Writers {
  Writers() : first(scene.attach("first")), second(scene.attach("second")) {}

  [[nodiscard]] std::vector<std::byte> raw(std::size_t size = 4) const { return raw_memory(scene.guest, kPlace, size); }

  ManyScene scene;
  AgentClient first;
  AgentClient second;
};

Result<std::uint64_t, client::ClientError> write(AgentClient& agent, Gpa gpa, Bytes bytes,
                                                 std::optional<std::uint64_t> cookie, Bytes expected = {},
                                                 std::uint64_t* current = nullptr, std::uint16_t flags = 0) {
  client::WriteOptions options;
  options.flags = flags;
  options.cookie = cookie;
  options.expected = expected;
  return agent.write_physical(gpa, bytes, options, current);
}

void check_stale(const Result<std::uint64_t, client::ClientError>& result) {
  REQUIRE_FALSE(result);
  CHECK(result.error().code == ErrorCode::Stale);
  CHECK_FALSE(result.error().text.empty());
}

}  // namespace

TEST_CASE("of two agents that read, the second to write is refused and told the current cookie",
          "[integration][many]") {
  Writers w;
  const auto seen_first = check(w.first.read_physical(kPlace, 4));
  const auto seen_second = check(w.second.read_physical(kPlace, 4));
  CHECK(seen_first.cookie != 0);
  const std::uint64_t after = check(write(w.first, kPlace, bytes_of_values({1, 1, 1, 1}), seen_first.cookie));
  CHECK(after > seen_first.cookie);

  std::uint64_t current = 0;
  check_stale(write(w.second, kPlace, bytes_of_values({2, 2, 2, 2}), seen_second.cookie, {}, &current));
  CHECK(current == after);
  CHECK(w.raw() == bytes_of_values({1, 1, 1, 1}));
  // Any byte of the page counts, and one of two pages is enough.
  check_stale(write(w.second, Gpa{kPlace.value + 100}, bytes_of_values({2}), seen_second.cookie));
  check_stale(write(w.second, Gpa{kPlace.value - 2}, bytes_of_values({2, 2, 2, 2}), seen_second.cookie));
  CHECK(w.raw() == bytes_of_values({1, 1, 1, 1}));
  CHECK(raw_memory(w.scene.guest, Gpa{kPlace.value - 2}, 2) == bytes_of_values({0, 0}));

  // Another page has not changed, and with what it was told it goes through.
  check(write(w.second, kOther, bytes_of_values({3}), seen_second.cookie));
  check(write(w.second, kPlace, bytes_of_values({2, 2, 2, 2}), current));
  CHECK(w.raw() == bytes_of_values({2, 2, 2, 2}));
  // Its own write made its cookie old, too; the answer of the write had the next one.
  check_stale(write(w.second, kPlace, bytes_of_values({4}), current));
}

TEST_CASE("a cookie that was never given is stale", "[integration][many]") {
  Writers w;
  const std::uint64_t cookie = check(w.first.read_physical(kPlace, 4)).cookie;
  for (const std::uint64_t made_up : {std::uint64_t{0}, cookie + 1, ~std::uint64_t{0}})
    check_stale(write(w.first, kPlace, bytes_of_values({1}), made_up));
  CHECK(w.raw(1) == bytes_of_values({0}));
}

TEST_CASE("a patch of another agent makes cookies of its page old, and reads the same", "[integration][many]") {
  Writers w;
  const auto seen = check(w.first.read_physical(kPlace, 4));
  check(patch(w.second, Gpa{kPlace.value + 1}, bytes_of_values({0xcc})));
  check_stale(write(w.first, kPlace, bytes_of_values({1, 2, 3, 4}), seen.cookie));
  CHECK(w.raw() == bytes_of_values({0, 0xcc, 0, 0}));
  const auto again = check(w.first.read_physical(kPlace, 4));
  CHECK(again.data == seen.data);
  check(unpatch(w.second, Gpa{kPlace.value + 1}, 1));
  check_stale(write(w.first, kPlace, bytes_of_values({1, 2, 3, 4}), again.cookie));
  CHECK(w.raw() == bytes_of_values({0, 0, 0, 0}));
}

TEST_CASE("a write that expects other bytes than there are is refused, and changes nothing", "[integration][many]") {
  Writers w;
  check(w.first.write_physical(kPlace, bytes_of_values({1, 2, 3, 4})));
  std::uint64_t current = 0;
  check_stale(write(w.second, kPlace, bytes_of_values({9, 9, 9, 9}), std::nullopt, bytes_of_values({1, 2, 3, 5}),
                    &current));
  CHECK(current != 0);
  CHECK(w.raw() == bytes_of_values({1, 2, 3, 4}));
  check(write(w.second, kPlace, bytes_of_values({9, 9, 9, 9}), std::nullopt, bytes_of_values({1, 2, 3, 4})));
  CHECK(w.raw() == bytes_of_values({9, 9, 9, 9}));

  // It sees what a cookie does not: the guest's own stores.
  const Gpa rounds = emulated::mailbox_field(VcpuId{0}, offsetof(Mailbox, rounds));
  const auto seen = check(w.first.read_physical(rounds, 8));
  w.scene.guest.wait_rounds(2);
  check_stale(write(w.first, rounds, std::vector<std::byte>(8), seen.cookie, seen.data));
  CHECK(w.scene.guest.rounds() > 2);

  // The bytes under a patch are what is compared.
  check(patch(w.first, kPlace, bytes_of_values({0xcc})));
  check_stale(write(w.second, kPlace, bytes_of_values({7}), std::nullopt, bytes_of_values({0xcc})));
  check(write(w.second, kPlace, bytes_of_values({7}), std::nullopt, bytes_of_values({9})));
  CHECK(w.raw() == bytes_of_values({0xcc, 9, 9, 9}));
  CHECK(seen_memory(w.first, kPlace, 4) == bytes_of_values({7, 9, 9, 9}));
}

TEST_CASE("a patch is refused like any write when it is based on something old", "[integration][many]") {
  Writers w;
  const std::uint64_t cookie = check(w.first.read_physical(kPlace, 4)).cookie;
  check(w.second.write_physical(kPlace, bytes_of_values({1, 2, 3, 4})));
  check_stale(write(w.first, kPlace, bytes_of_values({0xcc}), cookie, {}, nullptr, KVMI_WRITE_PATCH));
  check_stale(write(w.first, kPlace, bytes_of_values({0xcc}), std::nullopt, bytes_of_values({0}), nullptr,
                    KVMI_WRITE_PATCH));
  CHECK(w.raw() == bytes_of_values({1, 2, 3, 4}));
  CHECK(w.scene.agents_json().at(0).at("patches") == 0);
  const std::uint64_t now = check(w.first.read_physical(kPlace, 4)).cookie;
  check(write(w.first, kPlace, bytes_of_values({0xcc}), now, bytes_of_values({1}), nullptr, KVMI_WRITE_PATCH));
  CHECK(w.raw() == bytes_of_values({0xcc, 2, 3, 4}));
  // Shared with expected bytes: they are compared with the guest's own.
  check_stale(write(w.second, kPlace, bytes_of_values({0xcc}), std::nullopt, bytes_of_values({0xcc}), nullptr,
                    KVMI_WRITE_PATCH));
  check(write(w.second, kPlace, bytes_of_values({0xcc}), std::nullopt, bytes_of_values({1}), nullptr,
              KVMI_WRITE_PATCH));
  check(unpatch(w.first, kPlace, 1));
  CHECK(w.raw() == bytes_of_values({0xcc, 2, 3, 4}));
  check(unpatch(w.second, kPlace, 1));
  CHECK(w.raw() == bytes_of_values({1, 2, 3, 4}));
}

TEST_CASE("an answer based on memory that has changed since becomes RETRY, and its agent is told",
          "[integration][many]") {
  Writers w;
  std::vector<client::ReceivedNotice> notices;
  w.first.on_notice([&](const client::ReceivedNotice& notice) { notices.push_back(notice); });
  check(w.first.control_cr(kAllVcpus, 4, true));
  check(w.first.subscribe(events_of({EventKind::Cr}), Role::Decider));
  const std::uint64_t before = w.scene.guest.done(GuestMode::Cr4);
  w.scene.guest.set_mode(GuestMode::Cr4);
  const auto event = check(w.first.wait_event(kBound));
  REQUIRE(event);
  w.scene.guest.set_mode(GuestMode::Idle);
  REQUIRE(event->event.cookie != 0);

  EventReply reply = client::make_reply(event->event, Action::Skip);
  reply.has_cookie = true;
  reply.cookie = event->event.cookie;
  check(w.second.write_physical(kOther, bytes_of_values({1})));  // anything: who knows what the answer is based on
  check(w.first.reply(event->seq, reply));

  const auto again = check(w.first.wait_event(kBound));
  REQUIRE(again);
  CHECK(again->seq != event->seq);
  CHECK(again->event.regs.rip == event->event.regs.rip);
  CHECK(again->event.cookie > event->event.cookie);
  CHECK(w.scene.guest.done(GuestMode::Cr4) == before);
  REQUIRE(notices.size() == 1);
  CHECK(notices[0].kind == NoticeKind::ReplyRefused);
  CHECK(notices[0].error == ErrorCode::Stale);
  CHECK(notices[0].event_seq == event->seq);

  reply.cookie = again->event.cookie;
  check(w.first.reply(again->seq, reply));
  CHECK(wait_until([&] { return w.scene.guest.done(GuestMode::Cr4) == before + 1; }));
  // Skipped: read back as it was.
  CHECK(w.scene.guest.mailbox().cr4 == std::get<CrData>(again->event.data).old_value);
  CHECK(notices.size() == 1);
  CHECK(w.scene.counter("retried") == 1);
  CHECK(w.scene.counter("skipped") == 1);
}

}  // namespace kvmid::test
