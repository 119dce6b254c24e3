// SPDX-License-Identifier: GPL-2.0-or-later
//
// An agent goes wrong while a vCPU waits for its reply. Whatever it does, the guest goes on, and the other agent gets
// every event and every outcome, once.

#include <catch2/catch.hpp>
#include <csignal>

#include "tests/integration/scenario.h"

namespace kvmid::test {
namespace {

/// Longer than a wait of these tests may take: a guest that goes on did not wait for it.
constexpr unsigned kNever = 60000;

/// A guest that changes CR4 all the time, a good decider, and a bad one that owes a reply.
struct Scene {
  RuntimeFolder folder;
  Daemon daemon;
  Guest guest;
  TestAgent good;
  TestAgent bad;
  std::uint64_t before = 0;  ///< writes to CR4 that nobody watched

  Scene(unsigned deadline_ms, std::vector<std::string> bad_options)
      : daemon(folder, {.config = config_text({.deadline_ms = deadline_ms}), .arguments = {}}),
        guest(folder),
        good((guest.wait_online(), daemon), guest, {"--name", "good", "--events", "cr", "--cr", "4", "--outcomes"}),
        bad(daemon, guest, with_events(std::move(bad_options))) {
    to_idle(guest);
    before = guest.done(GuestMode::Cr4);
    guest.set_mode(GuestMode::Cr4);
    bad.wait_owed();
  }

  static std::vector<std::string> with_events(std::vector<std::string> options) {
    options.insert(options.end(), {"--name", "bad", "--events", "cr", "--cr", "4"});
    return options;
  }

  /// The guest goes on, and the good agent misses nothing.
  void require_undisturbed() {
    guest.do_times(GuestMode::Cr4, 20);
    to_idle(guest);
    const Account account = account_of(good);
    INFO(account.text);
    REQUIRE(account.events >= 20);
    REQUIRE(account.contiguous);
    REQUIRE(account.outcomes_match);
    for (const char* kind : {"expired", "reply_refused", "demoted", "revoked", "frame_refused"}) {
      REQUIRE(good.notices(kind).empty());
    }
    // Every write of the guest was an event, and had its effect: the bad one's default is to allow.
    REQUIRE(account.events == guest.done(GuestMode::Cr4) - before);
    REQUIRE(daemon.process().running());
  }
};

}  // namespace

TEST_CASE("a decider that is killed while it owes a reply holds the guest no longer", "[integration]") {
  Scene scene(kNever, {"--silent-after", "0"});
  scene.bad.process().kill();
  scene.require_undisturbed();
}

TEST_CASE("a decider that is stopped while it owes a reply holds the guest until its deadline", "[integration]") {
  Scene scene(500, {"--delay-ms", "50"});
  scene.bad.process().stop();

  scene.require_undisturbed();

  scene.bad.process().cont();
  const auto expired = scene.bad.wait_notices("expired", 3);
  REQUIRE(expired.size() == 3);
  REQUIRE(scene.bad.wait_notices("demoted", 1).size() == 1);
  REQUIRE(scene.bad.wait_lines("event", 20).back().at("decide") == false);
}

TEST_CASE("a decider slower than its deadline is told that its replies are too late", "[integration]") {
  Scene scene(250, {"--delay-ms", "1000"});

  scene.require_undisturbed();

  REQUIRE(scene.bad.wait_notices("expired", 3).size() == 3);
  const auto refused = scene.bad.wait_notices("reply_refused", 3);
  REQUIRE(refused.size() == 3);
  for (const auto& notice : refused) REQUIRE(notice.at("error") == "ESTALE");
  REQUIRE(scene.bad.wait_notices("demoted", 1).size() == 1);
}

TEST_CASE("a decider that floods instead of replying loses its connection, and nobody else notices", "[integration]") {
  Scene scene(500, {"--flood"});

  scene.require_undisturbed();

  REQUIRE(scene.bad.wait_lines("closed", 1).size() == 1);
  REQUIRE(scene.bad.process().wait_exit() == Exit{0, 0});
}

TEST_CASE("a decider that sends garbage instead of a reply loses its connection at once", "[integration]") {
  Scene scene(kNever, {"--garbage"});

  scene.require_undisturbed();

  REQUIRE(scene.bad.wait_lines("closed", 1).size() == 1);
  REQUIRE(scene.bad.process().wait_exit() == Exit{0, 0});
}

}  // namespace kvmid::test
