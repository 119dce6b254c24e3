// SPDX-License-Identifier: GPL-2.0-or-later
//
// Walks over page tables that change meanwhile: what is told was true at one moment.

#include "kvmictl/page_walker.h"

#include <catch2/catch.hpp>
#include <cstring>
#include <functional>
#include <map>

#include "tests/unit/client/scripted_peer.h"

using namespace kvmid;
using namespace kvmid::ctl;
using client::ClientErrc;
using client::ClientError;
using client::PhysicalRange;

namespace {

constexpr std::uint64_t kPresent = 1, kWritable = 2, kUser = 4, kLarge = 0x80;
constexpr std::uint64_t kRam = 1U << 20U;

/// A guest's memory, and what happens to it in front of the nth read. The connection is there and says nothing.
class Memory final : public PhysicalMemory {
 public:
  Memory() : Memory(std::make_unique<Connection>()) {}

  Result<std::uint64_t, ClientError> read(std::span<const PhysicalRange> ranges) override {
    const unsigned number = reads++;
    if (before) before(number);
    if (fails && fails(number)) return ClientError{ClientErrc::Closed, ErrorCode::None, "kvmid closed the connection"};
    for (const auto& range : ranges) {
      if (range.gpa.value > kRam || range.out.size() > kRam - range.gpa.value)
        return ClientError{ClientErrc::Failed, ErrorCode::Fault, "READ_PHYSICAL failed: EFAULT"};
      std::memcpy(range.out.data(), ram.data() + range.gpa.value, range.out.size());
    }
    return 100 + number;
  }
  template <class T>
  void put(std::uint64_t gpa, T value) {
    std::memcpy(ram.data() + gpa, &value, sizeof value);
  }
  void fill(std::uint64_t gpa, unsigned value) { std::memset(ram.data() + gpa, static_cast<int>(value), kPageSize); }

  std::vector<std::byte> ram = std::vector<std::byte>(kRam);
  std::function<void(unsigned)> before;
  std::function<bool(unsigned)> fails;
  unsigned reads = 0;

 private:
  struct Connection {
    client::test::ScriptedPeer peer;
    client::AgentClient agent = peer.client();
  };
  explicit Memory(std::unique_ptr<Connection> connection)
      : PhysicalMemory(connection->agent), connection_(std::move(connection)) {}
  std::unique_ptr<Connection> connection_;
};

x86::PagingState state_of(x86::PagingMode mode, std::uint64_t cr3) {
  x86::PagingState state;
  state.cr0 = x86::cr0::kPe | x86::cr0::kPg;
  state.cr3 = cr3;
  if (mode == x86::PagingMode::Bits32) state.cr4 = x86::cr4::kPse;
  if (mode == x86::PagingMode::Pae) state.cr4 = x86::cr4::kPae;
  if (mode == x86::PagingMode::Level4 || mode == x86::PagingMode::Level5) {
    state.cr4 = x86::cr4::kPae | (mode == x86::PagingMode::Level5 ? x86::cr4::kLa57 : 0);
    state.efer = x86::efer::kLme | x86::efer::kLma;
  }
  REQUIRE(x86::paging_mode(state) == mode);
  return state;
}

/// Four levels at 0x1000 to 0x4000. The second page table at 0x5000.
constexpr std::uint64_t kTop = 0x1000, kPd = 0x3000, kPt = 0x4000, kOtherPt = 0x5000;
constexpr std::uint64_t kPageA = 0x10000, kPageB = 0x11000, kJunk = 0x12000;
constexpr Gva kAddress{0x2000};

void lay_four_levels(Memory& memory) {
  memory.put(kTop, std::uint64_t{0x2000} | kPresent | kWritable | kUser);
  memory.put(0x2000, std::uint64_t{kPd} | kPresent | kWritable | kUser);
  memory.put(kPd, kPt | kPresent | kWritable | kUser);
  memory.put(kPt + 2 * 8, kPageA | kPresent | kWritable);
  memory.put(kOtherPt + 2 * 8, kPageB | kPresent);
  memory.fill(kPageA, 0xaa);
  memory.fill(kPageB, 0xbb);
  memory.fill(kJunk, 0xee);
}
const x86::PagingState& four_levels() {
  static const x86::PagingState state = state_of(x86::PagingMode::Level4, kTop);
  return state;
}
/// What is at kAddress; one byte for the page, since each has its own.
unsigned byte_at(PageWalker& walker) {
  std::byte byte{};
  const auto read = walker.read(four_levels(), kAddress, std::span(&byte, 1));
  REQUIRE(read);
  return std::to_integer<unsigned>(byte);
}

}  // namespace

TEST_CASE("each paging mode is walked, and a range goes on in the next page", "[kvmictl][walk]") {
  using Mode = x86::PagingMode;
  Memory memory;
  x86::PagingState state;
  Gva gva{};
  std::uint64_t entries = 0;
  const std::uint64_t table = kPresent | kWritable | kUser;
  SECTION("32-bit") {
    state = state_of(Mode::Bits32, 0x1000);
    gva = Gva{0x00802ffe};
    memory.put(0x1000 + 2 * 4, static_cast<std::uint32_t>(0x2000 | table));
    memory.put(0x2000 + 2 * 4, static_cast<std::uint32_t>(kPageA | table));
    memory.put(0x2000 + 3 * 4, static_cast<std::uint32_t>(kPageB | table));
    entries = 3;
  }
  SECTION("PAE") {
    state = state_of(Mode::Pae, 0x1020);
    gva = Gva{0x40202ffe};
    memory.put(0x1020 + 1 * 8, 0x2000 | kPresent);
    memory.put(0x2000 + 1 * 8, 0x3000 | table);
    memory.put(0x3000 + 2 * 8, kPageA | table);
    memory.put(0x3000 + 3 * 8, kPageB | table);
    entries = 4;
  }
  SECTION("4-level") {
    state = four_levels();
    lay_four_levels(memory);
    gva = Gva{0x2ffe};
    memory.put(kPt + 3 * 8, kPageB | table);
    entries = 5;
  }
  SECTION("5-level") {
    state = state_of(Mode::Level5, 0x6000);
    lay_four_levels(memory);
    gva = Gva{(std::uint64_t{3} << 48U) + 0x2ffe};
    memory.put(0x6000 + 3 * 8, kTop | table);
    memory.put(kPt + 3 * 8, kPageB | table);
    entries = 6;
  }
  memory.put(kPageA + 0xffe, std::uint16_t{0x1122});
  memory.put(kPageB, std::uint16_t{0x3344});
  PageWalker walker(memory);
  const auto walked = walker.translate(state, gva);
  REQUIRE(walked);
  CHECK(walked->translation.gpa == Gpa{kPageA + 0xffe});
  CHECK(walked->translation.page_bytes == kPageSize);

  memory.reads = 0;
  std::uint32_t value = 0;
  const auto cookie = walker.read(state, gva, std::as_writable_bytes(std::span(&value, 1)));
  REQUIRE(cookie);
  CHECK(value == 0x33441122);
  CHECK(memory.reads == entries + 1);  // what both pages share once, and all of it once more
  CHECK(*cookie == 100 + entries);     // that of the last read
  CHECK(walker.restarts() == 0);
}

TEST_CASE("large pages are one piece, and without paging there is no walk", "[kvmictl][walk]") {
  Memory memory;
  lay_four_levels(memory);
  memory.put(kPd + 8, std::uint64_t{0} | kPresent | kWritable | kLarge);
  PageWalker walker(memory);
  std::vector<std::byte> bytes(3 * kPageSize);
  memory.reads = 0;
  REQUIRE(walker.read(four_levels(), Gva{(2U << 20U) + kPageA}, bytes));
  CHECK(memory.reads == 4);
  CHECK(bytes.front() == std::byte{0xaa});
  CHECK(bytes[kPageSize] == std::byte{0xbb});
  CHECK(bytes.back() == std::byte{0xee});

  const auto flat = walker.translate(x86::PagingState{}, Gva{0x1234});
  REQUIRE(flat);
  CHECK(flat->translation.gpa == Gpa{0x1234});
}

TEST_CASE("a table that changes under the walk restarts it", "[kvmictl][walk]") {
  Memory memory;
  lay_four_levels(memory);
  PageWalker walker(memory);
  const unsigned at = GENERATE(1U, 2U, 3U, 4U);  // behind the first entry ... in front of the last look
  // The directory moves to the other table, and the old one is given to something else. At no moment is it junk.
  memory.before = [&](unsigned number) {
    if (number != at) return;
    memory.put(kPd, kOtherPt | kPresent | kWritable | kUser);
    memory.put(kPt + 2 * 8, kJunk | kPresent);
  };
  CHECK(byte_at(walker) == 0xbb);
  CHECK(walker.restarts() == (at >= 3 ? 1 : 0));  // in front of the directory nothing of it had been seen
}

TEST_CASE("that nothing maps an address is told only if it was so", "[kvmictl][walk]") {
  Memory memory;
  lay_four_levels(memory);
  PageWalker walker(memory);
  SECTION("the table is emptied behind the back of the walk, which was mapped before and after") {
    memory.before = [&](unsigned number) {
      if (number != 3) return;
      memory.put(kPd, kOtherPt | kPresent | kWritable | kUser);
      memory.put(kPt + 2 * 8, std::uint64_t{0});
    };
    CHECK(byte_at(walker) == 0xbb);
    CHECK(walker.restarts() == 1);
  }
  SECTION("a table that is nowhere, likewise") {
    memory.put(kPd, (kRam + 0x4000) | kPresent | kWritable | kUser);
    memory.before = [&](unsigned number) {
      if (number == 3) memory.put(kPd, kPt | kPresent | kWritable | kUser);
    };
    CHECK(byte_at(walker) == 0xaa);
    CHECK(walker.restarts() == 1);
  }
  SECTION("a page that is nowhere, likewise") {
    memory.put(kPt + 2 * 8, kRam | kPresent);
    memory.before = [&](unsigned number) {
      if (number == 5) memory.put(kPt + 2 * 8, kPageA | kPresent);  // the read of its bytes has failed
    };
    CHECK(byte_at(walker) == 0xaa);
    CHECK(walker.restarts() == 1);
  }
  SECTION("really") {
    memory.put(kPt + 2 * 8, std::uint64_t{0});
    const auto missing = walker.translate(four_levels(), Gva{kAddress.value + 5});
    REQUIRE_FALSE(missing);
    CHECK(missing.error().kind == ClientErrc::Failed);
    CHECK(missing.error().code == ErrorCode::Fault);
    CHECK(missing.error().text.find("GVA 0x2005 is not mapped") == 0);
    memory.put(kPt + 2 * 8, kRam | kPresent);
    std::byte byte{};
    CHECK(walker.translate(four_levels(), kAddress));
    CHECK(walker.read(four_levels(), kAddress, std::span(&byte, 1)).error().text == "READ_PHYSICAL failed: EFAULT");
    CHECK(walker.restarts() == 0);
  }
}

TEST_CASE("tables that never stand still end in an error, not in a walk without end", "[kvmictl][walk]") {
  Memory memory;
  lay_four_levels(memory);
  memory.before = [&](unsigned number) {
    memory.put(kPt + 2 * 8, (number % 2 == 0 ? kPageA : kPageB) | kPresent | number % 3 * kWritable);
  };
  // Each walk has five reads, so each look at the end finds another value than the one before it.
  PageWalker walker(memory);
  const auto walked = walker.translate(four_levels(), kAddress);
  REQUIRE_FALSE(walked);
  CHECK(walked.error().code == ErrorCode::TryAgain);
  CHECK(walked.error().text.find("0x2000") != std::string::npos);
  CHECK(walker.restarts() == PageWalker::kAttemptsMax - 1);
  CHECK(memory.reads == 5 * PageWalker::kAttemptsMax);
}

TEST_CASE("a lost connection is no page that is missing", "[kvmictl][walk]") {
  Memory memory;
  lay_four_levels(memory);
  PageWalker walker(memory);
  const unsigned at = GENERATE(0U, 2U, 4U);
  memory.fails = [&](unsigned number) { return number == at; };
  const auto walked = walker.translate(four_levels(), kAddress);
  REQUIRE_FALSE(walked);
  CHECK(walked.error().kind == ClientErrc::Closed);
  CHECK(memory.reads == at + 1);
}

TEST_CASE("a range past the end of the address space is refused", "[kvmictl][walk]") {
  Memory memory;
  PageWalker walker(memory);
  std::vector<std::byte> bytes(2);
  CHECK(walker.read(four_levels(), Gva{~std::uint64_t{0}}, bytes).error().kind == ClientErrc::BadArgument);
  CHECK(memory.reads == 0);
}
