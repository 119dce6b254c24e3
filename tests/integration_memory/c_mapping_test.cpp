// SPDX-License-Identifier: GPL-2.0-or-later
// Guest RAM in place by the C interface.
#include <catch2/catch.hpp>
#include <memory>
#include <string>

#include "client/kvmid.h"
#include "protocol/handshake.h"
#include "tests/integration_memory/memory_scene.h"

extern "C" int sum_in_place(const char* socket, const char* guest, std::uint64_t gpa, std::size_t size,
                            std::uint64_t* sum, std::uint64_t* cookie);

namespace kvmid::test {
namespace {

struct CloseAgent {
  void operator()(kvmid_agent* agent) const { kvmid_close(agent); }
};
struct Unmap {
  void operator()(kvmid_mapping* mapping) const { kvmid_unmap(mapping); }
};

/// Connected and mapped as kNobody.
struct Reader {
  std::unique_ptr<kvmid_agent, CloseAgent> agent;
  std::unique_ptr<kvmid_mapping, Unmap> mapping;

  explicit Reader(const MemoryScene& scene) {
    const AsUser nobody(kNobody);
    kvmid_options options{};
    options.struct_size = sizeof options;
    const std::string socket = scene.daemon.agent_socket();
    options.socket = socket.c_str();
    options.name = "c-reader";
    kvmid_agent* attached = nullptr;
    REQUIRE(kvmid_attach(&options, to_string(scene.guest.uuid()).c_str(), &attached) == 0);
    agent.reset(attached);
    mapping.reset(map());
  }
  kvmid_mapping* map() const {
    kvmid_mapping* mapped = nullptr;
    INFO(kvmid_last_error());
    REQUIRE(kvmid_map_memory(agent.get(), 0, &mapped) == 0);
    return mapped;
  }
};

}  // namespace

TEST_CASE("a C program reads guest RAM in place", "[integration][memory][c]") {
  if (!can_grant()) return;
  const MemoryScene scene;
  AgentClient writer = scene.reader("writer");
  std::vector<std::byte> pattern(9000);
  std::uint64_t expected = 0;
  for (std::size_t i = 0; i < pattern.size(); ++i) {
    pattern[i] = static_cast<std::byte>(i * 3);
    expected += i * 3 % 256;
  }
  const std::uint64_t written = check(writer.write_physical(kPlace, pattern));
  std::uint64_t sum = 0, cookie = 0;
  {
    const AsUser nobody(kNobody);
    const std::string socket = scene.daemon.agent_socket(), guest = to_string(scene.guest.uuid());
    REQUIRE(sum_in_place(socket.c_str(), guest.c_str(), kPlace.value, pattern.size(), &sum, &cookie) == 0);
    CHECK(sum_in_place(socket.c_str(), guest.c_str(), std::uint64_t{1} << 40U, 2, &sum, &cookie) == -KVMI_EFAULT);
    REQUIRE(sum_in_place(socket.c_str(), guest.c_str(), kPlace.value, pattern.size(), &sum, &cookie) == 0);
  }
  CHECK(sum == expected);
  CHECK(cookie >= written);
  // The user who runs the hypervisor is not granted it.
  CHECK(sum_in_place(scene.daemon.agent_socket().c_str(), to_string(scene.guest.uuid()).c_str(), 0, 1, &sum, &cookie) ==
        -KVMI_EPERM);
}

TEST_CASE("C: what is read in place, written if unchanged, patched, revoked", "[integration][memory][c]") {
  if (!can_grant()) return;
  const MemoryScene scene;
  Reader reader(scene);
  const kvmid_mapping* mapping = reader.mapping.get();
  CHECK(kvmid_mapped_bytes(mapping) >= 16U << 20U);
  CHECK(kvmid_mapped_revoked(mapping) == 0);

  // A cookie of the mapping is as good as one of a read.
  std::uint32_t word = 0;
  std::uint64_t cookie = 0, changes = 0;
  REQUIRE(kvmid_mapped_read_stable(mapping, kPlace.value, &word, sizeof word, &cookie) == 0);
  REQUIRE(kvmid_mapped_changes(mapping, kPlace.value, sizeof word, &changes) == 0);
  const std::uint64_t old = cookie, before = changes;
  word = 0x11223344;
  REQUIRE(kvmid_write_if_unchanged(reader.agent.get(), kPlace.value, &word, sizeof word, &cookie) == 0);
  CHECK(cookie > old);
  std::uint64_t stale = old;
  CHECK(kvmid_write_if_unchanged(reader.agent.get(), kPlace.value, &word, sizeof word, &stale) == -KVMI_ESTALE);
  CHECK(stale == cookie);
  REQUIRE(kvmid_mapped_changes(mapping, kPlace.value, sizeof word, &changes) == 0);
  CHECK(changes > before);
  const std::uint64_t after = changes;
  REQUIRE(kvmid_mapped_changes(mapping, kPlace.value, sizeof word, &changes) == 0);
  CHECK(changes == after);

  std::uint32_t seen = 0;
  REQUIRE(kvmid_mapped_read(mapping, kPlace.value, &seen, sizeof seen) == 0);
  CHECK(seen == word);
  // Backwards, so that it is not one range.
  const kvmi_read_range ranges[] = {{kPlace.value + 2, 2, 0}, {kPlace.value, 2, 0}};
  std::uint16_t halves[2] = {};
  std::uint64_t scatter_cookie = 0;
  REQUIRE(kvmid_mapped_read_scatter(mapping, ranges, 2, halves, sizeof halves, &scatter_cookie) == 0);
  CHECK(halves[0] == 0x1122);
  CHECK(halves[1] == 0x3344);
  CHECK(scatter_cookie == cookie);
  CHECK(kvmid_mapped_read_scatter(mapping, ranges, 2, halves, 3, nullptr) == -KVMI_EINVAL);
  CHECK(kvmid_mapped_read_scatter(mapping, ranges, 1, halves, 4, nullptr) == -KVMI_EINVAL);
  CHECK(kvmid_mapped_read_scatter(mapping, nullptr, 0, nullptr, 0, nullptr) == 0);
  CHECK(kvmid_mapped_read(mapping, kvmid_mapped_bytes(mapping), &seen, 1) == -KVMI_EFAULT);
  CHECK(kvmid_mapped_changes(mapping, ~std::uint64_t{0}, 2, &changes) == -KVMI_EFAULT);

  const unsigned char breakpoint = 0xcc;
  REQUIRE(kvmid_write_physical(reader.agent.get(), kPlace.value, &breakpoint, 1, KVMI_WRITE_PATCH, nullptr, nullptr) ==
          0);
  CHECK(kvmid_mapped_read_stable(mapping, kPlace.value, &seen, sizeof seen, nullptr) == -KVMID_EPATCHED);
  CHECK(std::string(kvmid_error_name(-KVMID_EPATCHED)) == "EPATCHED");
  REQUIRE(kvmid_read_physical(reader.agent.get(), kPlace.value, &seen, sizeof seen, nullptr) == 0);

  // A second grant ends the first; closing ends them all.
  const std::unique_ptr<kvmid_mapping, Unmap> second(reader.map());
  CHECK(kvmid_mapped_revoked(mapping) == 1);
  CHECK(kvmid_mapped_read_stable(mapping, kPlace.value, &seen, 1, nullptr) == -KVMID_EREVOKED);
  CHECK(kvmid_mapped_read_stable(second.get(), kPlace.value + 4096, &seen, 1, nullptr) == 0);
  reader.agent.reset();
  REQUIRE(wait_until([&] { return kvmid_mapped_revoked(second.get()) == 1; }));
  CHECK(kvmid_mapped_read(second.get(), kPlace.value, &seen, 1) == -KVMID_EREVOKED);
}

}  // namespace kvmid::test
