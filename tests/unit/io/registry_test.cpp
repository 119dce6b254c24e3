// SPDX-License-Identifier: GPL-2.0-or-later
#include "daemon/io/registry.h"

#include <spdlog/logger.h>

#include <catch2/catch.hpp>

#include "daemon/io/guest_session.h"
#include "daemon/io/shard.h"

using namespace kvmid;
using namespace kvmid::io;

namespace {

/// A registry with shards that do not run.
struct World {
  spdlog::logger log{"test"};
  IoCounters counters;
  Registry registry{2, 3};
  FailureRing failures;
  Services services{registry, counters, log, {}, failures};
  Shard first{0, services};
  Shard second{1, services};
  std::vector<unsigned> placed;
  std::vector<GuestChange> changes;

  World() {
    registry.set_listener([this](const GuestChange& change) { changes.push_back(change); });
  }
  ~World() { registry.clear(); }

  Result<std::shared_ptr<GuestSession>, RegistryError> claim(std::uint8_t number) {
    HypervisorHello hello;
    hello.uuid = uuid(number);
    hello.name = "guest" + std::to_string(number);
    return registry.claim(hello.uuid, hello.name, [&](unsigned shard) {
      placed.push_back(shard);
      return std::make_shared<GuestSession>(shard == 0 ? first : second, shard, hello, services);
    });
  }
  static Uuid uuid(std::uint8_t number) {
    Uuid out;
    out.bytes[0] = number;
    return out;
  }
};

}  // namespace

TEST_CASE("guests are given to the shard that has fewest", "[registry]") {
  World world;
  REQUIRE(world.claim(1));
  REQUIRE(world.claim(2));
  world.registry.set_away(World::uuid(1), OffReason::LinkLost, "");
  REQUIRE(world.registry.erase_if_away(World::uuid(1), {}));
  REQUIRE(world.claim(3));
  REQUIRE(world.placed == std::vector<unsigned>{0, 1, 0});
}

TEST_CASE("a guest has one hypervisor; one that comes back gets the same session", "[registry]") {
  World world;
  const auto session = world.claim(1);
  REQUIRE(session);
  REQUIRE(world.claim(1).error().error == ErrorCode::Busy);
  world.registry.set_ready(World::uuid(1), {.vcpu_count = 2});
  REQUIRE(world.claim(1).error().error == ErrorCode::Busy);

  world.registry.set_away(World::uuid(1), OffReason::LinkLost, "gone");
  const auto again = world.claim(1);

  REQUIRE(again);
  REQUIRE(*again == *session);
  // A guest that was just claimed is not dropped by a shard that thought it idle.
  REQUIRE_FALSE(world.registry.erase_if_away(World::uuid(1), {}));
}

TEST_CASE("more guests than the limit are refused, and one that goes makes room", "[registry]") {
  World world;
  for (std::uint8_t i = 1; i <= 3; ++i) REQUIRE(world.claim(i));
  REQUIRE(world.claim(4).error().text.find("guests_max") != std::string::npos);
  world.registry.set_away(World::uuid(2), OffReason::Shutdown, "");
  core::GuestCounters counters;
  counters.events = 7;
  REQUIRE(world.registry.erase_if_away(World::uuid(2), counters));
  REQUIRE(world.registry.gone_counters().events == 7);
  REQUIRE(world.claim(4));
}

TEST_CASE("only guests that were online are listed, and changes are told once", "[registry]") {
  World world;
  REQUIRE(world.claim(1));
  REQUIRE(world.registry.list().empty());
  REQUIRE_FALSE(world.registry.find(World::uuid(1)).ready);
  world.registry.set_ready(World::uuid(1), {.vcpu_count = 4});
  world.registry.set_away(World::uuid(1), OffReason::Suspend, "bye");
  world.registry.set_away(World::uuid(1), OffReason::LinkLost, "again");

  REQUIRE(world.changes.size() == 2);
  REQUIRE(world.changes[0].on);
  REQUIRE(world.changes[0].name == "guest1");
  REQUIRE(world.changes[0].facts.vcpu_count == 4);
  REQUIRE_FALSE(world.changes[1].on);
  REQUIRE(world.changes[1].reason == OffReason::Suspend);
  const auto list = world.registry.list();
  REQUIRE(list.size() == 1);
  REQUIRE_FALSE(list[0].online);
}

TEST_CASE("attachments are counted per peer and given back", "[registry]") {
  World world;
  core::Peer root;
  root.uid = 0;
  core::Peer vm;
  vm.cid = 0;  // not the same as uid 0
  auto one = world.registry.attachment(root, 2);
  auto two = world.registry.attachment(root, 2);
  REQUIRE(one);
  REQUIRE(two);
  REQUIRE(world.registry.attachment(root, 2).error().error == ErrorCode::Busy);
  REQUIRE(world.registry.attachment(vm, 1));

  one->reset();

  REQUIRE(world.registry.attachment(root, 2));
  REQUIRE(world.registry.attachment(vm, 0).error().error == ErrorCode::Busy);
}
