// SPDX-License-Identifier: GPL-2.0-or-later
// Page tables of a guest, walked in place and by message, at rest and while they change.
#include <atomic>
#include <catch2/catch.hpp>
#include <memory>
#include <thread>

#include "kvmictl/guest_commands.h"
#include "kvmictl/page_walker.h"
#include "tests/integration_memory/memory_scene.h"

namespace kvmid::test {
namespace {

using ctl::PageWalker;
using ctl::PhysicalMemory;

constexpr std::uint64_t kPresent = 1, kWritable = 2, kUser = 4, kLarge = 0x80;
constexpr std::uint64_t kTable = kPresent | kWritable | kUser;
// From kPlace on.
constexpr std::uint64_t kTop = kPlace.value, kPdpt = kTop + 0x1000, kPd = kTop + 0x2000, kPt = kTop + 0x3000,
                        kOtherPt = kTop + 0x4000, kPml5 = kTop + 0x5000, kPageA = kTop + 0x10000,
                        kPageB = kTop + 0x11000, kJunk = kTop + 0x12000;

/// An agent that walks: in place, which takes root, or by message.
struct Walking {
  MemoryScene scene;
  AgentClient agent;
  PhysicalMemory memory{agent};
  PageWalker walker{memory};

  explicit Walking(bool in_place) : agent(in_place ? scene.reader() : scene.attach("walker")) {
    const AsUserIf nobody(in_place);
    REQUIRE(memory.use_granted() == in_place);
    REQUIRE((memory.mapped() != nullptr) == in_place);
  }
  template <class T>
  void put(std::uint64_t gpa, T value) const {
    scene.guest.memory().write(Gpa{gpa}, &value, sizeof value);
  }

 private:
  struct AsUserIf {
    explicit AsUserIf(bool on) {
      if (on) user.emplace(kNobody);
    }
    std::optional<AsUser> user;
  };
};

x86::PagingState state_of(std::uint64_t cr3, std::uint64_t cr4, bool is_long) {
  x86::PagingState state;
  state.cr0 = x86::cr0::kPe | x86::cr0::kPg;
  state.cr3 = cr3;
  state.cr4 = cr4;
  state.efer = is_long ? x86::efer::kLme | x86::efer::kLma : 0;
  return state;
}

/// Whether both ways can be tried.
std::vector<bool> ways() {
  if (can_grant()) return {true, false};
  return {false};
}

}  // namespace

TEST_CASE("a walk finds what the hypervisor finds", "[integration][memory][walk]") {
  for (const bool in_place : ways()) {
    INFO((in_place ? "in place" : "by message"));
    Walking walking(in_place);
    const auto registers = check(ctl::stopped_registers(walking.agent, VcpuId{0}));
    const x86::PagingState paging = x86::paging_state(registers.regs, registers.sregs);
    REQUIRE(x86::paging_mode(paging) == x86::PagingMode::Level4);
    for (const std::uint64_t gva : {0x0UL, 0x1000UL, 0x20000UL, 0x100123UL, 0x1ff123UL, 0x200000UL, 0x600008UL,
                                    0xffffffUL, 0x1000000UL, 0x3fffffffUL}) {
      INFO(std::hex << gva);
      const auto walked = check(walking.walker.translate(paging, Gva{gva})).translation;
      const auto asked = check(walking.agent.translate_gva(VcpuId{0}, Gva{gva}));
      CHECK(walked.gpa == asked.gpa);
      CHECK(walked.page_bytes == asked.page_bytes);
      CHECK(walked.rights() == asked.access);
      CHECK(walked.user == asked.user);
    }
    for (const std::uint64_t gva : {0x40000000UL, 0x7fff00000000UL, 0x8000000000000000UL}) {
      const auto walked = walking.walker.translate(paging, Gva{gva});
      const auto asked = walking.agent.translate_gva(VcpuId{0}, Gva{gva});
      REQUIRE_FALSE(walked);
      REQUIRE_FALSE(asked);
      CHECK(walked.error().code == ErrorCode::Fault);
    }
    // Code of the guest, across pages; and bytes that are mapped, and no memory.
    std::vector<std::byte> code(2 * kPageSize + 3), same(code.size());
    const std::uint64_t cookie = check(walking.walker.read(paging, Gva{0x100ffe}, code));
    check(walking.agent.read_virtual(VcpuId{0}, Gva{0x100ffe}, same));
    CHECK((code == same));
    CHECK(cookie != 0);
    CHECK(walking.walker.read(paging, Gva{0xffffff}, std::span(code).first(2)).error().code == ErrorCode::Fault);
    CHECK(walking.walker.restarts() == 0);
  }
}

TEST_CASE("tables of the other paging modes are walked in a guest's memory", "[integration][memory][walk]") {
  for (const bool in_place : ways()) {
    INFO((in_place ? "in place" : "by message"));
    Walking walking(in_place);
    const auto gpa_of = [&](const x86::PagingState& paging, std::uint64_t gva) {
      return check(walking.walker.translate(paging, Gva{gva})).translation.gpa.value;
    };
    // 32-bit: a page and a page of 4 MiB.
    walking.put(kTop + 1 * 4, static_cast<std::uint32_t>(kPt | kTable));
    walking.put(kTop + 2 * 4, static_cast<std::uint32_t>(0x400000 | kTable | kLarge));
    walking.put(kPt + 5 * 4, static_cast<std::uint32_t>(kPageA | kTable));
    const x86::PagingState narrow = state_of(kTop, x86::cr4::kPse, false);
    REQUIRE(x86::paging_mode(narrow) == x86::PagingMode::Bits32);
    CHECK(gpa_of(narrow, 0x405678) == kPageA + 0x678);
    CHECK(gpa_of(narrow, 0xa12345) == 0x612345);
    CHECK(walking.walker.translate(narrow, Gva{0x406000}).error().code == ErrorCode::Fault);

    // PAE: the top table is where no page begins.
    walking.put(kTop + 0x20, kPd | kPresent);
    walking.put(kPd + 2 * 8, kPt | kTable);
    walking.put(kPd + 3 * 8, std::uint64_t{0x600000} | kTable | kLarge);
    walking.put(kPt + 7 * 8, kPageB | kTable);
    const x86::PagingState pae = state_of(kTop + 0x20, x86::cr4::kPae, false);
    REQUIRE(x86::paging_mode(pae) == x86::PagingMode::Pae);
    CHECK(gpa_of(pae, 0x407001) == kPageB + 1);
    CHECK(gpa_of(pae, 0x612345) == 0x612345);

    // 5-level, with the same tables below.
    walking.put(kPml5 + 9 * 8, kTop | kTable);
    walking.put(kTop + 1 * 8, kPdpt | kTable);
    walking.put(kPdpt + 0 * 8, kPd | kTable);
    const x86::PagingState wide = state_of(kPml5, x86::cr4::kPae | x86::cr4::kLa57, true);
    REQUIRE(x86::paging_mode(wide) == x86::PagingMode::Level5);
    constexpr std::uint64_t kWide = (std::uint64_t{9} << 48U) | (std::uint64_t{1} << 39U);
    CHECK(gpa_of(wide, kWide | 0x407001) == kPageB + 1);
    CHECK(gpa_of(wide, kWide | 0x612345) == 0x612345);
    CHECK(walking.walker.translate(wide, Gva{0x407001}).error().code == ErrorCode::Fault);
    CHECK(walking.walker.restarts() == 0);
  }
}

TEST_CASE("tables that the guest changes under the walk never lead where they never led",
          "[integration][memory][walk]") {
  for (const bool in_place : ways()) {
    INFO((in_place ? "in place" : "by message"));
    Walking walking(in_place);
    const auto fill = [&](std::uint64_t gpa, unsigned value) {
      const auto page = filled(kPageSize, value);
      walking.scene.guest.memory().write(Gpa{gpa}, page.data(), page.size());
    };
    fill(kPageA, 0xaa);
    fill(kPageB, 0xbb);
    fill(kJunk, 0xee);
    walking.put(kTop, kPdpt | kTable);
    walking.put(kPdpt, kPd | kTable);
    walking.put(kPt + 8, kPageA | kTable);
    walking.put(kPd, kPt | kTable);
    const x86::PagingState paging = state_of(kTop, x86::cr4::kPae, true);

    // As a guest's stores, past kvmid: at each moment the address is in page A or in page B.
    std::atomic<bool> end = false;
    std::thread writer([&] {
      for (unsigned round = 0; !end; ++round) {
        const bool odd = round % 2 != 0;
        const std::uint64_t next = odd ? kPt : kOtherPt, last = odd ? kOtherPt : kPt;
        walking.put(next + 8, (odd ? kPageA : kPageB) | kTable);
        walking.put(kPd, next | kTable);
        walking.put(last + 8, kJunk | kTable);
        if (round % 4 == 3) std::this_thread::sleep_for(std::chrono::microseconds(500));
      }
    });
    unsigned good = 0, gave_up = 0, torn = 0, others = 0;
    std::vector<std::byte> page(kPageSize);
    const bool done = wait_until([&] {
      for (unsigned i = 0; i < 100; ++i) {
        const auto read = walking.walker.read(paging, Gva{0x1000}, page);
        if (!read) {
          ++(read.error().code == ErrorCode::TryAgain ? gave_up : others);
          continue;
        }
        ++good;
        const std::byte value = page.front();
        const bool whole = std::all_of(page.begin(), page.end(), [&](std::byte b) { return b == value; });
        if (!whole || (value != std::byte{0xaa} && value != std::byte{0xbb})) ++torn;
      }
      return good >= 2000 && (in_place || walking.walker.restarts() > 0);
    });
    end = true;
    writer.join();
    INFO(good << " good, " << gave_up << " given up, " << walking.walker.restarts() << " restarts");
    CHECK(done);
    CHECK(torn == 0);
    CHECK(others == 0);
  }
}

TEST_CASE("a patch over a table, and a grant that ends, send the walk to kvmid", "[integration][memory][walk]") {
  if (!can_grant()) return;
  Walking walking(true);
  walking.put(kTop, kPdpt | kTable);
  walking.put(kPdpt, kPd | kTable);
  walking.put(kPd, kPt | kTable);
  walking.put(kPt + 8, kPageA | kTable);
  const x86::PagingState paging = state_of(kTop, x86::cr4::kPae, true);
  const auto found = [&] { return check(walking.walker.translate(paging, Gva{0x1000})).translation.gpa.value; };
  CHECK(found() == kPageA);

  // RAM holds what was patched over the entry; the guest's own bytes are what the processor of a guest would see read.
  AgentClient other = walking.scene.reader("other");
  check(patch(other, Gpa{kPt + 8}, bytes_of_values({0xcc})));
  CHECK(found() == kPageA);
  check(unpatch(other, Gpa{kPt + 8}, 1));

  const MappedMemory again = map_granted(walking.agent);  // ends the walker's
  CHECK(found() == kPageA);
  CHECK(walking.memory.mapped() == nullptr);
}

}  // namespace kvmid::test
