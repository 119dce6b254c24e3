// SPDX-License-Identifier: GPL-2.0-or-later
// Reads in place are whole, and their cookies are what writes can be based on.
#include <catch2/catch.hpp>
#include <thread>

#include "tests/integration_memory/memory_scene.h"

namespace kvmid::test {
namespace {

Result<std::uint64_t, client::ClientError> write_if(AgentClient& agent, Gpa gpa, Bytes bytes, std::uint64_t cookie) {
  client::WriteOptions options;
  options.cookie = cookie;
  return agent.write_physical(gpa, bytes, options);
}

}  // namespace

TEST_CASE("a write is accepted with the cookie of a read in place, unless something came between",
          "[integration][memory]") {
  if (!can_grant()) return;
  MemoryScene scene;
  AgentClient agent = scene.reader("agent");
  AgentClient other = scene.reader("other");
  const MappedMemory memory = map_granted(agent);

  const Stable seen = read_stable(memory, kPlace, 16);
  const std::uint64_t after = check(write_if(agent, kPlace, filled(16, 1), seen.cookie));
  CHECK(after > seen.cookie);
  const Stable mine = read_stable(memory, kPlace, 16);
  CHECK(mine.bytes == filled(16, 1));
  CHECK(mine.cookie >= after);

  check(other.write_physical(kPlace, filled(16, 2)));
  const auto refused = write_if(agent, kPlace, filled(16, 3), mine.cookie);
  REQUIRE_FALSE(refused);
  CHECK(refused.error().code == ErrorCode::Stale);
  const Stable theirs = read_stable(memory, kPlace, 16);
  CHECK(theirs.bytes == filled(16, 2));
  check(other.write_physical(Gpa{kPlace.value + 0x10000}, filled(16, 9)));  // another page
  check(write_if(agent, kPlace, filled(16, 4), theirs.cookie));
  CHECK(raw_memory(scene.guest, kPlace, 16) == filled(16, 4));
}

TEST_CASE("a read in place is never half of a write", "[integration][memory]") {
  if (!can_grant()) return;
  constexpr std::size_t kBytes = 2 * 4096 + 64;  // over three pages
  constexpr Gpa kTorn{0x600fe0};
  constexpr std::uint64_t kReads = 100'000;
  MemoryScene scene;
  AgentClient agent = scene.reader("agent");
  AgentClient writer = scene.reader("writer");
  const MappedMemory memory = map_granted(agent);
  check(writer.write_physical(kTorn, filled(kBytes, 0)));

  std::atomic<bool> stop{false};
  std::atomic<std::uint64_t> writes{0};
  std::string failure;
  std::thread writing([&] {
    std::vector<std::byte> bytes(kBytes);
    for (unsigned value = 1; !stop.load(std::memory_order_relaxed); ++value) {
      std::fill(bytes.begin(), bytes.end(), static_cast<std::byte>(value));
      if (const auto done = writer.write_physical(kTorn, bytes); !done) {
        failure = done.error().text;
        return;
      }
      writes.fetch_add(1, std::memory_order_relaxed);
    }
  });
  std::vector<std::byte> bytes(kBytes);
  std::uint64_t reads = 0, torn = 0, unstable = 0, changes = 0, backwards = 0, raw_torn = 0;
  std::uint64_t cookie = 0;
  std::byte last{};
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(8);
  while (reads < kReads && std::chrono::steady_clock::now() < until) {
    const auto read = memory.read_stable(kTorn, bytes);
    if (!read) {
      if (read.error() != MappedErrc::Unstable) break;
      ++unstable;
      continue;
    }
    ++reads;
    if (std::memcmp(bytes.data(), bytes.data() + 1, kBytes - 1) != 0) ++torn;
    if (*read < cookie) ++backwards;
    // A later write may be in it whole, and the cookie be too old by one: that costs a refused write.
    if (bytes[0] != last) ++changes;
    cookie = *read;
    last = bytes[0];
    (void)memory.read(kTorn, bytes);  // the same without a promise
    if (std::memcmp(bytes.data(), bytes.data() + 1, kBytes - 1) != 0) ++raw_torn;
  }
  stop = true;
  writing.join();
  CHECK(failure.empty());
  WARN(reads << " whole reads, " << writes << " writes, " << changes << " contents seen, " << unstable
             << " given up, " << raw_torn << " torn without the check");
  CHECK(reads >= kReads / 10);
  CHECK(changes > 10);
  CHECK(torn == 0);
  CHECK(backwards == 0);
}

TEST_CASE("a hypervisor that does not come to a write leaves readers to ask kvmid", "[integration][memory]") {
  if (!can_grant()) return;
  MemoryScene scene;
  AgentClient agent = scene.reader("agent");
  AgentClient writer = scene.reader("writer");
  const MappedMemory memory = map_granted(agent);
  (void)seen_memory(agent, kPlace, 1);
  scene.guest.process().stop();
  WritePhysical command;
  command.gpa = kPlace;
  const auto data = filled(8, 5);
  command.data = data;
  const auto ticket = check(writer.submit(command));
  REQUIRE(wait_until([&] { return why_not(memory, kPlace) == MappedErrc::Unstable; }));
  CHECK_FALSE(why_not(memory, Gpa{kPlace.value + 4096}));
  // kvmid answers what is not being written, and sends the other read behind the write.
  CHECK(seen_memory(agent, Gpa{kPlace.value + 4096}, 1) == filled(1, 0));
  const kvmi_read_range range{kPlace.value, 8, 0};
  const auto read = check(agent.submit(ReadPhysical{AddressSpace::Normal, std::span(&range, 1)}));
  CHECK_FALSE(agent.collect(read, Millis{50}));
  scene.guest.process().cont();
  CHECK(check(writer.collect(ticket)).ok());
  const auto answer = check(agent.collect(read));
  const auto* body = answer.body<ReadPhysicalReply>();
  REQUIRE(body != nullptr);
  CHECK(std::vector<std::byte>(body->data.begin(), body->data.end()) == data);
  CHECK(read_stable(memory, kPlace, 8).bytes == data);
}

}  // namespace kvmid::test
