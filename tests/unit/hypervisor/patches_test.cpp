// SPDX-License-Identifier: GPL-2.0-or-later
//
// Patches, and writes that expect something: the class, and the rules of WRITE_PHYSICAL on top of it.

#include <catch2/catch.hpp>

#include <algorithm>
#include <map>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "hypervisor/server/commands.h"
#include "hypervisor/server/session.h"
#include "tests/unit/hypervisor/recording_backend.h"

namespace kvmid::hypervisor {

namespace {

using ByteVector = std::vector<std::byte>;

ByteVector bytes(std::initializer_list<unsigned> values) {
  ByteVector out;
  for (const unsigned value : values) out.push_back(static_cast<std::byte>(value));
  return out;
}

/// Counts what is asked of memory, and can refuse to write.
class CountingBackend : public RecordingBackend {
 public:
  Done read_physical(AddressSpace space, Gpa gpa, std::span<std::byte> out) override {
    ++reads;
    return RecordingBackend::read_physical(space, gpa, out);
  }
  Done write_physical(AddressSpace space, Gpa gpa, Bytes data) override {
    ++writes;
    if (broken) return Refusal{ErrorCode::Fault, "broken memory"};
    return RecordingBackend::write_physical(space, gpa, data);
  }
  unsigned reads = 0, writes = 0;
  bool broken = false;
};

/// A guest, its patches, and commands to them.
struct Scene {
  CountingBackend backend;
  std::optional<Patches> patches{std::in_place, backend};
  std::string text;  ///< of the last refusal
  bool brought_cookie = false;

  Scene() {
    for (std::size_t i = 0; i < backend.memory.size(); ++i) backend.memory[i] = static_cast<std::byte>(i & 0x7f);
  }
  ErrorCode write(std::uint64_t gpa, const ByteVector& data, unsigned flags = 0, const ByteVector& expected = {}) {
    WritePhysical command;
    command.gpa = Gpa{gpa};
    command.flags = static_cast<std::uint16_t>(flags);
    command.data = data;
    command.expected = expected;
    return run(command);
  }
  ErrorCode run(const WritePhysical& command) {
    CommandServer server(backend, *patches);
    const CommandReply reply = server.serve(command);
    text = reply.text;
    const auto* body = std::get_if<WritePhysicalReply>(&reply.body);
    brought_cookie = body != nullptr && body->cookie == 0;
    CHECK(text.empty() == (reply.error == ErrorCode::None));
    return reply.error;
  }
  ErrorCode patch(std::uint64_t gpa, const ByteVector& data) { return write(gpa, data, KVMI_WRITE_PATCH); }
  ErrorCode unpatch(std::uint64_t gpa, std::size_t size) {
    return write(gpa, ByteVector(size, std::byte{0xee}), KVMI_WRITE_UNPATCH);
  }
  ByteVector read(std::uint64_t gpa, std::uint32_t size) {
    CommandServer server(backend, *patches);
    const std::vector<kvmi_read_range> ranges = {{gpa, size, 0}};
    ReadPhysical command;
    command.ranges = std::span<const kvmi_read_range>(ranges);
    const CommandReply reply = server.serve(command);
    REQUIRE(reply.error == ErrorCode::None);
    const Bytes data = std::get<ReadPhysicalReply>(reply.body).data;
    return {data.begin(), data.end()};
  }
  /// What the processor finds.
  ByteVector memory(std::uint64_t gpa, std::size_t size) {
    const auto begin = backend.memory.begin() + static_cast<std::ptrdiff_t>(gpa);
    return {begin, begin + static_cast<std::ptrdiff_t>(size)};
  }
  void guest_stores(std::uint64_t gpa, unsigned value) { backend.memory[gpa] = static_cast<std::byte>(value); }
};

}  // namespace

TEST_CASE("a write that expects something is made only if it is there", "[server][patches]") {
  Scene scene;
  CHECK(scene.write(0x10, bytes({1, 2, 3}), KVMI_WRITE_EXPECT, bytes({0x10, 0x11, 0x13})) == ErrorCode::Stale);
  CHECK(scene.brought_cookie);
  CHECK(scene.text.find("GPA 0x12 is 0x12, not 0x13") != std::string::npos);
  CHECK(scene.memory(0x10, 3) == bytes({0x10, 0x11, 0x12}));
  CHECK(scene.backend.writes == 0);

  CHECK(scene.write(0x10, bytes({1, 2, 3}), KVMI_WRITE_EXPECT, bytes({0x10, 0x11, 0x12})) == ErrorCode::None);
  CHECK(scene.brought_cookie);
  CHECK(scene.memory(0x10, 3) == bytes({1, 2, 3}));
}

TEST_CASE("only ESTALE has a cookie beside the error", "[server][patches]") {
  Scene scene;
  CHECK(scene.unpatch(0x10, 1) == ErrorCode::NoEntry);
  CHECK_FALSE(scene.brought_cookie);
}

TEST_CASE("a patch lies over the guest's bytes, and comes off again", "[server][patches]") {
  Scene scene;
  REQUIRE(scene.patch(0x20, bytes({0xcc, 0xcd})) == ErrorCode::None);
  CHECK(scene.memory(0x1f, 4) == bytes({0x1f, 0xcc, 0xcd, 0x22}));
  CHECK(scene.read(0x1f, 4) == bytes({0x1f, 0x20, 0x21, 0x22}));
  CHECK(scene.read(0x21, 1) == bytes({0x21}));

  REQUIRE(scene.unpatch(0x20, 2) == ErrorCode::None);
  CHECK(scene.memory(0x1f, 4) == bytes({0x1f, 0x20, 0x21, 0x22}));
  CHECK(scene.patches->size() == 0);
  CHECK(scene.unpatch(0x20, 2) == ErrorCode::NoEntry);
}

TEST_CASE("a write under a patch changes what is under it", "[server][patches]") {
  Scene scene;
  REQUIRE(scene.patch(0x20, bytes({0xcc, 0xcd})) == ErrorCode::None);
  REQUIRE(scene.write(0x1f, bytes({0xa0, 0xa1, 0xcd, 0xa3})) == ErrorCode::None);
  CHECK(scene.memory(0x1f, 4) == bytes({0xa0, 0xcc, 0xcd, 0xa3}));
  CHECK(scene.read(0x1f, 4) == bytes({0xa0, 0xa1, 0xcd, 0xa3}));
  REQUIRE(scene.write(0x21, bytes({0x77})) == ErrorCode::None);
  CHECK(scene.memory(0x20, 2) == bytes({0xcc, 0xcd}));
  REQUIRE(scene.unpatch(0x20, 2) == ErrorCode::None);
  CHECK(scene.memory(0x1f, 4) == bytes({0xa0, 0xa1, 0x77, 0xa3}));
}

TEST_CASE("what the guest stores over a patch is the guest's own", "[server][patches]") {
  Scene scene;
  REQUIRE(scene.patch(0x20, bytes({0xcc, 0xcd, 0xce})) == ErrorCode::None);
  scene.guest_stores(0x21, 0x99);
  CHECK(scene.read(0x20, 3) == bytes({0x20, 0x99, 0x22}));

  SECTION("it stays when the patch goes") {
    REQUIRE(scene.unpatch(0x20, 3) == ErrorCode::None);
    CHECK(scene.memory(0x20, 3) == bytes({0x20, 0x99, 0x22}));
  }
  SECTION("it stays when all patches go") {
    scene.patches.reset();
    CHECK(scene.memory(0x20, 3) == bytes({0x20, 0x99, 0x22}));
  }
  SECTION("it is what a write finds there, also one of the patch's own byte") {
    REQUIRE(scene.write(0x20, bytes({1, 0xcd, 3})) == ErrorCode::None);
    CHECK(scene.read(0x20, 3) == bytes({1, 0xcd, 3}));
    CHECK(scene.memory(0x20, 3) == bytes({0xcc, 0xcd, 0xce}));
    REQUIRE(scene.unpatch(0x20, 3) == ErrorCode::None);
    CHECK(scene.memory(0x20, 3) == bytes({1, 0xcd, 3}));
  }
  SECTION("a write there does not bring the patch back") {
    REQUIRE(scene.write(0x20, bytes({1, 2, 3})) == ErrorCode::None);
    CHECK(scene.read(0x20, 3) == bytes({1, 2, 3}));
    CHECK(scene.memory(0x20, 3) == bytes({0xcc, 2, 0xce}));
  }
  SECTION("it is under a patch that replaces this one") {
    REQUIRE(scene.patch(0x20, bytes({0xf1, 0xf2, 0xf3})) == ErrorCode::None);
    CHECK(scene.memory(0x20, 3) == bytes({0xf1, 0xf2, 0xf3}));
    CHECK(scene.read(0x20, 3) == bytes({0x20, 0x99, 0x22}));
  }
}

TEST_CASE("patches do not overlap, and the same range is patched again", "[server][patches]") {
  Scene scene;
  REQUIRE(scene.patch(0x20, bytes({0xcc, 0xcd})) == ErrorCode::None);
  const auto before = scene.memory(0, 0x40);
  CHECK(scene.patch(0x20, bytes({1})) == ErrorCode::Busy);
  CHECK(scene.text.find("GPA 0x20 of 2 bytes") != std::string::npos);
  CHECK(scene.patch(0x21, bytes({1})) == ErrorCode::Busy);
  CHECK(scene.patch(0x1f, bytes({1, 2})) == ErrorCode::Busy);
  CHECK(scene.patch(0x1f, bytes({1, 2, 3, 4})) == ErrorCode::Busy);
  CHECK(scene.patch(0x20, bytes({1, 2, 3})) == ErrorCode::Busy);
  CHECK(scene.memory(0, 0x40) == before);
  CHECK(scene.unpatch(0x20, 1) == ErrorCode::NoEntry);
  CHECK(scene.unpatch(0x21, 1) == ErrorCode::NoEntry);
  CHECK(scene.text.find("no patch of 1 bytes at GPA 0x21") != std::string::npos);

  REQUIRE(scene.patch(0x1f, bytes({0xf0})) == ErrorCode::None);
  REQUIRE(scene.patch(0x22, bytes({0xf2})) == ErrorCode::None);
  REQUIRE(scene.patch(0x20, bytes({0xd1, 0xd2})) == ErrorCode::None);
  CHECK(scene.patches->size() == 3);
  CHECK(scene.memory(0x1e, 6) == bytes({0x1e, 0xf0, 0xd1, 0xd2, 0xf2, 0x23}));
  CHECK(scene.read(0x1e, 6) == bytes({0x1e, 0x1f, 0x20, 0x21, 0x22, 0x23}));
}

TEST_CASE("expected bytes are about what is under patches", "[server][patches]") {
  Scene scene;
  const unsigned patch = KVMI_WRITE_PATCH | KVMI_WRITE_EXPECT, unpatch = KVMI_WRITE_UNPATCH | KVMI_WRITE_EXPECT;
  CHECK(scene.write(0x20, bytes({0xcc}), patch, bytes({0x21})) == ErrorCode::Stale);
  CHECK(scene.patches->size() == 0);
  REQUIRE(scene.write(0x20, bytes({0xcc}), patch, bytes({0x20})) == ErrorCode::None);
  CHECK(scene.memory(0x20, 1) == bytes({0xcc}));
  CHECK(scene.write(0x20, bytes({0xcd}), patch, bytes({0xcc})) == ErrorCode::Stale);
  CHECK(scene.write(0x20, bytes({0x55}), KVMI_WRITE_EXPECT, bytes({0xcc})) == ErrorCode::Stale);
  CHECK(scene.memory(0x20, 1) == bytes({0xcc}));
  REQUIRE(scene.write(0x20, bytes({0x55}), KVMI_WRITE_EXPECT, bytes({0x20})) == ErrorCode::None);
  CHECK(scene.memory(0x20, 1) == bytes({0xcc}));
  CHECK(scene.write(0x20, bytes({0}), unpatch, bytes({0x20})) == ErrorCode::Stale);
  CHECK(scene.patches->size() == 1);
  REQUIRE(scene.write(0x20, bytes({0}), unpatch, bytes({0x55})) == ErrorCode::None);
  CHECK(scene.memory(0x20, 1) == bytes({0x55}));

  // Where there is no patch to take off, or no room for one, nothing is compared.
  CHECK(scene.write(0x20, bytes({0}), unpatch, bytes({0})) == ErrorCode::NoEntry);
  REQUIRE(scene.patch(0x20, bytes({1, 2})) == ErrorCode::None);
  CHECK(scene.write(0x21, bytes({0}), patch, bytes({0})) == ErrorCode::Busy);
}

TEST_CASE("what a patch may be", "[server][patches]") {
  Scene scene;
  CHECK(scene.patch(0x1000 - KVMI_PATCH_BYTES_MAX, ByteVector(KVMI_PATCH_BYTES_MAX, std::byte{0xcc})) ==
        ErrorCode::None);
  CHECK(scene.patch(0x1000, ByteVector(KVMI_PATCH_BYTES_MAX + 1, std::byte{0xcc})) == ErrorCode::Invalid);
  CHECK(scene.text.find("at most 256 bytes, not 257") != std::string::npos);
  CHECK(scene.patch(0x1fff, bytes({1, 2})) == ErrorCode::Invalid);
  CHECK(scene.text.find("within a page") != std::string::npos);
  CHECK(scene.unpatch(0x1fff, 2) == ErrorCode::Invalid);
  CHECK(scene.patch(0x2000, {}) == ErrorCode::Invalid);
  CHECK(scene.write(0x2000, bytes({1}), KVMI_WRITE_PATCH | KVMI_WRITE_UNPATCH) == ErrorCode::Invalid);
  CHECK(scene.write(0x2000, bytes({1}), 0x10) == ErrorCode::Invalid);
  CHECK(scene.text.find("0x10") != std::string::npos);
  CHECK(scene.write(0x2000, bytes({1}), KVMI_WRITE_EXPECT, bytes({1, 2})) == ErrorCode::Invalid);
  CHECK(scene.patch(0x4000, bytes({1})) == ErrorCode::Fault);
  CHECK(scene.unpatch(0x4000, 1) == ErrorCode::Fault);
  CHECK(scene.write(0x3fff, bytes({1, 2}), KVMI_WRITE_EXPECT, bytes({1, 2})) == ErrorCode::Fault);
  // Values before memory.
  CHECK(scene.patch(0x4fff, bytes({1, 2})) == ErrorCode::Invalid);
  CHECK(scene.patches->size() == 1);

  const ByteVector one = bytes({1});
  WritePhysical command;
  command.gpa = Gpa{0x2000};
  command.data = one;
  command.space = AddressSpace::Smm;
  command.flags = static_cast<std::uint16_t>(GENERATE(+KVMI_WRITE_PATCH, +KVMI_WRITE_UNPATCH));
  CHECK(scene.run(command) == ErrorCode::NotSupported);
  CHECK(scene.text.find("SMM") != std::string::npos);
  command.space = AddressSpace::Normal;
  command.flags = static_cast<std::uint16_t>(command.flags | KVMI_WRITE_COOKIE);
  command.cookie = 5;
  CHECK(scene.run(command) == ErrorCode::NotSupported);
  CHECK(scene.text == "cookies are kept by kvmid");
  command.flags = 0;
  CHECK(scene.run(command) == ErrorCode::Invalid);
}

TEST_CASE("address space 1 has no patches in it", "[server][patches]") {
  Scene scene;
  REQUIRE(scene.patch(0x2000, bytes({0xcc})) == ErrorCode::None);
  scene.backend.smm[0] = std::byte{0xcc};
  const ByteVector data = bytes({0x31}), expected = bytes({0xcc});
  WritePhysical command;
  command.gpa = Gpa{0x2000};
  command.space = AddressSpace::Smm;
  command.flags = KVMI_WRITE_EXPECT;
  command.data = data;
  command.expected = expected;
  CHECK(scene.run(command) == ErrorCode::None);
  CHECK(scene.backend.smm[0] == std::byte{0x31});
  CHECK(scene.read(0x2000, 1) == bytes({0}));
}

TEST_CASE("memory without a patch on it costs nothing more", "[server][patches]") {
  Scene scene;
  const bool elsewhere = GENERATE(false, true);
  if (elsewhere) {
    REQUIRE(scene.patch(0x20, bytes({0xcc})) == ErrorCode::None);
    REQUIRE(scene.patch(0x40, bytes({0xcc})) == ErrorCode::None);
  }
  scene.backend.reads = scene.backend.writes = 0;
  REQUIRE(scene.write(0x21, ByteVector(0x1f)) == ErrorCode::None);
  CHECK((scene.backend.reads == 0 && scene.backend.writes == 1));
  scene.read(0x21, 0x1f);
  CHECK((scene.backend.reads == 1 && scene.backend.writes == 1));
}

TEST_CASE("memory that does not take a write leaves the books as they were", "[server][patches]") {
  Scene scene;
  REQUIRE(scene.patch(0x20, bytes({0xcc})) == ErrorCode::None);
  scene.backend.broken = true;
  CHECK(scene.patch(0x30, bytes({0xcc})) == ErrorCode::Fault);
  CHECK(scene.patch(0x20, bytes({0xcd})) == ErrorCode::Fault);
  CHECK(scene.write(0x20, bytes({0x55})) == ErrorCode::Fault);
  CHECK(scene.unpatch(0x20, 1) == ErrorCode::Fault);
  CHECK(scene.patches->take_off_all() == 1);
  CHECK(scene.read(0x20, 1) == bytes({0x20}));
  scene.backend.broken = false;
  CHECK(scene.patches->size() == 1);
  REQUIRE(scene.unpatch(0x20, 1) == ErrorCode::None);
  CHECK(scene.memory(0x20, 1) == bytes({0x20}));
}

TEST_CASE("there are only so many patches", "[server][patches]") {
  /// Every page of a large guest is the same one.
  class LargeBackend : public RecordingBackend {
   public:
    bool is_memory(AddressSpace, Gfn, std::uint64_t) const override { return true; }
    Done read_physical(AddressSpace, Gpa gpa, std::span<std::byte> out) override {
      return RecordingBackend::read_physical(AddressSpace::Normal, Gpa{gpa.value % kPageSize}, out);
    }
    Done write_physical(AddressSpace, Gpa gpa, Bytes data) override {
      return RecordingBackend::write_physical(AddressSpace::Normal, Gpa{gpa.value % kPageSize}, data);
    }
  } backend;
  Patches patches(backend);
  const auto one = bytes({1});
  for (std::uint64_t i = 0; i < Patches::kMax; ++i) {
    if (!patches.place(Gpa{i * kPageSize}, one)) FAIL("patch " << i);
  }
  const Done more = patches.place(Gpa{Patches::kMax * kPageSize}, one);
  REQUIRE_FALSE(more);
  CHECK(more.error().code == ErrorCode::Busy);
  CHECK(more.error().text.find("65536 patches") != std::string::npos);
  CHECK(patches.place(Gpa{0}, bytes({2})));
  REQUIRE(patches.take_off(Gpa{0}, 1));
  CHECK(patches.place(Gpa{Patches::kMax * kPageSize}, one));
}

TEST_CASE("whatever is done, the guest's own memory is what it would be without patches", "[server][patches]") {
  Scene scene;
  std::mt19937 random(GENERATE(1u, 2u, 3u, 4u));
  const auto below = [&](std::size_t bound) { return static_cast<std::size_t>(random()) % bound; };
  constexpr std::size_t kBytes = 64;
  ByteVector own = scene.memory(0, kBytes);
  std::map<std::size_t, ByteVector> placed;
  for (int i = 0; i < 4000; ++i) {
    const std::size_t at = below(kBytes - 8), size = 1 + below(8);
    ByteVector data(size);
    for (auto& byte : data) byte = static_cast<std::byte>(below(4));
    const auto overlaps = [&](const auto& item) {
      return item.first < at + size && at < item.first + item.second.size();
    };
    const auto same = placed.find(at);
    const bool is_placed = same != placed.end() && same->second.size() == size;
    switch (below(4)) {
      case 0: {
        const bool may = is_placed || std::none_of(placed.begin(), placed.end(), overlaps);
        CHECK(scene.patch(at, data) == (may ? ErrorCode::None : ErrorCode::Busy));
        if (may) placed[at] = data;
        break;
      }
      case 1:
        CHECK(scene.unpatch(at, size) == (is_placed ? ErrorCode::None : ErrorCode::NoEntry));
        if (is_placed) placed.erase(same);
        break;
      case 2:
        CHECK(scene.write(at, data) == ErrorCode::None);
        std::copy(data.begin(), data.end(), own.begin() + static_cast<std::ptrdiff_t>(at));
        break;
      case 3:  // a byte that no patch has
        scene.guest_stores(at, 0x80u + static_cast<unsigned>(below(8)));
        own[at] = scene.backend.memory[at];
        break;
    }
    if (scene.read(0, kBytes) != own) FAIL("step " << i);
  }
  CHECK(scene.patches->size() == placed.size());
  scene.patches.reset();
  CHECK(scene.memory(0, kBytes) == own);
}

}  // namespace kvmid::hypervisor
