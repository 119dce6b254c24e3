// SPDX-License-Identifier: GPL-2.0-or-later
// A mapping cannot be taken away; the belief in it can: whoever's fault it is that it is not kept true any more.
#include <catch2/catch.hpp>
#include <csignal>

#include "tests/integration_memory/memory_scene.h"

namespace kvmid::test {
namespace {

void wait_revoked(const MappedMemory& memory) {
  REQUIRE(wait_until([&] { return memory.revoked(); }));
  CHECK(why_not(memory, kPlace) == MappedErrc::Revoked);
  std::byte byte{};
  const auto read = memory.read(kPlace, std::span(&byte, 1));
  REQUIRE_FALSE(read);
  CHECK(read.error() == MappedErrc::Revoked);
}

}  // namespace

TEST_CASE("the grant ends when its agent detaches", "[integration][memory]") {
  if (!can_grant()) return;
  MemoryScene scene;
  AgentClient agent = scene.reader("agent");
  AgentClient other = scene.reader("other");
  const MappedMemory memory = map_granted(agent);
  const MappedMemory others = map_granted(other);
  REQUIRE_FALSE(why_not(memory, kPlace));
  agent.close();
  wait_revoked(memory);
  CHECK_FALSE(why_not(others, kPlace));
}

TEST_CASE("a kvmid that was killed is not believed for long", "[integration][memory]") {
  if (!can_grant()) return;
  MemoryScene scene;
  AgentClient agent = scene.reader();
  const MappedMemory memory = map_granted(agent);
  REQUIRE_FALSE(why_not(memory, kPlace));
  scene.daemon.kill();  // nothing is set in the page, but the kernel takes kvmid's lock of it off
  wait_revoked(memory);
  const auto answer = agent.read_physical(kPlace, 8);
  REQUIRE_FALSE(answer);
  CHECK(answer.error().kind == client::ClientErrc::Closed);

  scene.daemon.restart();
  open_to_all(scene.folder);
  scene.guest.wait_online();
  AgentClient again = scene.reader();
  const MappedMemory fresh = map_granted(again);
  check(again.write_physical(kPlace, filled(8, 1)));
  CHECK(read_stable(fresh, kPlace, 8).bytes == filled(8, 1));
  CHECK(memory.revoked());
}

TEST_CASE("the grant ends when kvmid stops in order", "[integration][memory]") {
  if (!can_grant()) return;
  MemoryScene scene;
  AgentClient agent = scene.reader();
  const MappedMemory memory = map_granted(agent);
  scene.daemon.process().signal(SIGTERM);
  wait_revoked(memory);
  CHECK(scene.daemon.process().wait_exit() == Exit{0, 0});
}

TEST_CASE("a reload that takes GRANT_MEMORY away ends the grant and says so", "[integration][memory]") {
  if (!can_grant()) return;
  MemoryScene scene;
  AgentClient agent = scene.reader();
  const MappedMemory memory = map_granted(agent);
  scene.reload_rule({{"commands", {"READ_PHYSICAL", "GRANT_MEMORY"}}});
  CHECK_FALSE(why_not(memory, kPlace));
  scene.reload_rule({{"commands", {"READ_PHYSICAL"}}});
  wait_revoked(memory);
  const auto message = check(agent.next_message(kBound));
  REQUIRE(message);
  const auto* notice = std::get_if<client::ReceivedNotice>(&*message);
  REQUIRE(notice != nullptr);
  CHECK(notice->kind == NoticeKind::Revoked);
  CHECK(notice->error == ErrorCode::NotPermitted);
  CHECK_FALSE(notice->text.empty());
  CHECK(seen_memory(agent, kPlace, 8) == filled(8, 0));  // it is attached, and may still ask
  scene.reload_rule(Json::object());
  const MappedMemory again = map_granted(agent);
  CHECK_FALSE(why_not(again, kPlace));
  CHECK(memory.revoked());
}

TEST_CASE("the grant ends with its hypervisor, and is given again when that is back", "[integration][memory]") {
  if (!can_grant()) return;
  MemoryScene scene;
  AgentClient agent = scene.reader();
  const MappedMemory memory = map_granted(agent);
  const auto granted_again = [&] {
    REQUIRE(wait_until([&] {
      const auto guest = check(agent.wait_guest(kBound));
      return guest && std::holds_alternative<client::GuestEntry>(*guest);
    }));
    const MappedMemory fresh = map_granted(agent);
    check(agent.write_physical(kPlace, filled(8, 3)));
    CHECK(read_stable(fresh, kPlace, 8).bytes == filled(8, 3));
    CHECK(memory.revoked());
  };
  SECTION("it leaves and comes back") {
    scene.guest.process().signal(SIGUSR2);
    const auto gone = check(agent.wait_guest(kBound));
    REQUIRE(gone);
    CHECK(std::holds_alternative<client::GuestGone>(*gone));
    wait_revoked(memory);
    granted_again();
  }
  SECTION("it is killed") {
    scene.guest.process().kill();
    wait_revoked(memory);
    const auto refused = agent.grant_memory();
    REQUIRE_FALSE(refused);
    CHECK(refused.error().code == ErrorCode::NoDevice);
  }
}

}  // namespace kvmid::test
