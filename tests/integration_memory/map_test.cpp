// SPDX-License-Identifier: GPL-2.0-or-later
// The memory map changes while agents read in place.
#include <algorithm>
#include <catch2/catch.hpp>
#include <thread>

#include "tests/integration_memory/memory_scene.h"

namespace kvmid::test {
namespace {

enum Change : std::uint64_t { Added = 0, Removed = 1, Moved = 2, Flags = 3 };  // GUEST.md

/// Has the guest change the slot of its ROM, and waits until kvmid knows.
void change_map(const ManyScene& scene, Change change) {
  const std::uint64_t known = scene.counter("map_changes");
  scene.guest.set_field(offsetof(Mailbox, arg_map_change), change);
  scene.guest.do_times(GuestMode::Map, 1);
  scene.guest.set_mode(GuestMode::Idle);
  scene.wait_counter("map_changes", known + 1);
}

ErrorCode error_of_read(AgentClient& agent, Gpa gpa, std::uint64_t size) {
  const auto read = agent.read_physical(gpa, size);
  return read ? ErrorCode::None : read.error().code;
}

}  // namespace

TEST_CASE("a change of the map makes cookies of reads in place stale", "[integration][memory]") {
  if (!can_grant()) return;
  MemoryScene scene;
  AgentClient agent = scene.reader();
  const MappedMemory memory = map_granted(agent);
  const Stable before = read_stable(memory, kPlace, 8);
  const Gpa rom = emulated::kRomPage;
  const auto bytes = read_stable(memory, rom, 64).bytes;
  CHECK(bytes == seen_memory(agent, rom, 64));
  CHECK(bytes[0] == std::byte{'K'});

  change_map(scene, Removed);
  const Stable after = read_stable(memory, kPlace, 8);
  CHECK(after.cookie > before.cookie);
  client::WriteOptions options;
  options.cookie = before.cookie;
  const auto stale = agent.write_physical(kPlace, filled(8, 1), options);
  REQUIRE_FALSE(stale);
  CHECK(stale.error().code == ErrorCode::Stale);
  options.cookie = after.cookie;
  check(agent.write_physical(kPlace, filled(8, 1), options));
  // A hole reads as zeros in place, and is no memory for kvmid, which asks for the map anew.
  CHECK(read_stable(memory, rom, 64).bytes == filled(64, 0));
  CHECK(error_of_read(agent, rom, 8) == ErrorCode::Fault);
  CHECK(error_of_read(agent, Gpa{rom.value - 8}, 16) == ErrorCode::Fault);
  CHECK(error_of_read(agent, Gpa{rom.value - 8}, 8) == ErrorCode::None);

  change_map(scene, Added);
  CHECK(read_stable(memory, rom, 64).bytes == bytes);
  CHECK(seen_memory(agent, rom, 64) == bytes);
  // Behind RAM: the memfd has that page too. The guest may have moved it back in its next round already.
  const Gpa moved{16U << 20U};
  const auto is_moved = [&] {
    const auto slots = check(agent.get_memory_map());
    return std::ranges::any_of(slots, [&](const kvmi_memory_slot& slot) { return slot.gpa == moved.value; });
  };
  for (int i = 0; i < 1000 && !is_moved(); ++i) change_map(scene, Moved);
  REQUIRE(is_moved());
  CHECK(seen_memory(agent, moved, 64) == bytes);
  CHECK(read_stable(memory, moved, 64).bytes == bytes);
  CHECK(read_stable(memory, rom, 64).bytes == filled(64, 0));
  CHECK(error_of_read(agent, rom, 8) == ErrorCode::Fault);
  check(agent.write_physical(moved, filled(8, 3)));
  CHECK(read_stable(memory, moved, 8).bytes == filled(8, 3));
}

TEST_CASE("a reader's belief in what it read across a change is as old as its cookie", "[integration][memory]") {
  if (!can_grant()) return;
  MemoryScene scene;
  AgentClient agent = scene.reader();
  const MappedMemory memory = map_granted(agent);
  std::atomic<bool> stop{false};
  std::string failure;
  std::thread changing([&] {
    try {
      for (int i = 0; i < 20; ++i) change_map(scene, i % 2 == 0 ? Removed : Added);
    } catch (const std::exception& error) {
      failure = error.what();
    }
    stop = true;
  });
  std::uint64_t reads = 0, cookies = 0, backwards = 0, last = 0;
  std::array<std::byte, 8> bytes{};
  while (!stop) {
    const auto read = memory.read_stable(kPlace, bytes);
    if (!read) continue;
    ++reads;
    if (*read < last) ++backwards;
    if (*read != last) ++cookies;
    last = *read;
  }
  changing.join();
  CHECK(failure.empty());
  CHECK(backwards == 0);
  CHECK(reads > 1000);
  CHECK(cookies > 10);
}

}  // namespace kvmid::test
