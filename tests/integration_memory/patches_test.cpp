// SPDX-License-Identifier: GPL-2.0-or-later
// Patches are in shared RAM, and no agent reads them.
#include <catch2/catch.hpp>
#include <thread>

#include "tests/integration_memory/memory_scene.h"

namespace kvmid::test {

TEST_CASE("where a patch lies reads go to kvmid, which gives the guest's own bytes", "[integration][memory]") {
  if (!can_grant()) return;
  MemoryScene scene;
  AgentClient owner = scene.attach("owner");
  AgentClient agent = scene.reader();
  const MappedMemory memory = map_granted(agent);
  const auto own = filled(32, 7);
  check(owner.write_physical(kPlace, own));
  const Stable before = read_stable(memory, kPlace, 32);

  check(patch(owner, Gpa{kPlace.value + 8}, filled(4, 0xcc)));
  CHECK(why_not(memory, kPlace) == MappedErrc::AskKvmid);
  CHECK_FALSE(why_not(memory, Gpa{kPlace.value + 4096}));
  auto patched = own;
  std::fill(patched.begin() + 8, patched.begin() + 12, std::byte{0xcc});
  CHECK(raw_memory(scene.guest, kPlace, 32) == patched);
  std::vector<std::byte> torn(32);
  REQUIRE(memory.read(kPlace, torn));  // no promise: it shows what is there
  CHECK(torn == patched);
  CHECK(seen_memory(agent, kPlace, 32) == own);
  CHECK(seen_memory(owner, kPlace, 32) == own);
  CHECK(seen_memory(agent, Gpa{kPlace.value + 11}, 1) == filled(1, 7));
  CHECK(seen_memory(agent, Gpa{kPlace.value + 12}, 4) == filled(4, 7));  // beside it: from the mapping again

  // A write under the patch leaves it, and is read.
  check(agent.write_physical(Gpa{kPlace.value + 10}, filled(1, 9)));
  CHECK(why_not(memory, kPlace) == MappedErrc::AskKvmid);
  CHECK(seen_memory(agent, Gpa{kPlace.value + 8}, 4) == bytes_of_values({7, 7, 9, 7}));
  CHECK(raw_memory(scene.guest, Gpa{kPlace.value + 8}, 4) == filled(4, 0xcc));

  check(unpatch(owner, Gpa{kPlace.value + 8}, 4));
  const Stable after = read_stable(memory, kPlace, 32);
  auto now = own;
  now[10] = std::byte{9};
  CHECK(after.bytes == now);
  CHECK(after.cookie > before.cookie);
}

TEST_CASE("when the owner of a patch is killed reads in place work again", "[integration][memory]") {
  if (!can_grant()) return;
  MemoryScene scene;
  AgentClient agent = scene.reader();
  const MappedMemory memory = map_granted(agent);
  const Gpa place = scene.hammer_gpa();
  const auto own = read_stable(memory, place, 16).bytes;
  AgentClient second = scene.reader("second");
  {
    AgentClient owner = scene.attach("owner");
    check(patch(owner, place, filled(1, 0xcc)));
    check(patch(second, place, filled(1, 0xcc)));  // the same: shared
    CHECK(why_not(memory, place) == MappedErrc::AskKvmid);
    owner.close();
  }
  scene.wait_agents(2);
  CHECK(why_not(memory, place) == MappedErrc::AskKvmid);  // one of two is left
  second.close();
  REQUIRE(wait_until([&] { return !why_not(memory, place); }));
  CHECK(read_stable(memory, place, 16).bytes == own);
  CHECK(raw_memory(scene.guest, place, 16) == own);
  CHECK(seen_memory(agent, place, 16) == own);
}

TEST_CASE("readers never see a patch that comes and goes", "[integration][memory]") {
  if (!can_grant()) return;
  MemoryScene scene;
  AgentClient agent = scene.reader();
  const MappedMemory memory = map_granted(agent);
  std::atomic<bool> stop{false};
  std::string failure;
  AgentClient owner = scene.attach("owner");
  std::thread patching([&] {
    try {
      for (int i = 0; i < 300; ++i) {
        check(patch(owner, kPlace, filled(8, 0xcc)));
        check(unpatch(owner, kPlace, 8));
      }
    } catch (const std::exception& error) {
      failure = error.what();
    }
    stop = true;
  });
  std::uint64_t reads = 0, asked = 0, seen = 0;
  std::array<std::byte, 8> bytes{};
  while (!stop) {
    const auto read = memory.read_stable(kPlace, bytes);
    if (read) ++reads;
    else if (read.error() == MappedErrc::AskKvmid) ++asked;
    if (read && bytes != std::array<std::byte, 8>{}) ++seen;
    if (asked % 64 == 1 && seen_memory(agent, kPlace, 8) != filled(8, 0)) ++seen;
  }
  patching.join();
  CHECK(failure.empty());
  CHECK(seen == 0);
  CHECK(reads > 0);
  CHECK(asked > 0);
}

}  // namespace kvmid::test
