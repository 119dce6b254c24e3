// SPDX-License-Identifier: GPL-2.0-or-later
//
// Memory whose holes nobody tells: what is read is all memory, what is not is holes, and no page is asked for too
// often.

#include "kvmictl/piece_reader.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <optional>
#include <vector>

#include "protocol/ids.h"

using namespace kvmid;
using namespace kvmid::ctl;
using client::ClientErrc;
using client::ClientError;
using Holes = PieceReader::Holes;

namespace {

struct Memory {
  std::vector<bool> pages;  ///< true: memory
  unsigned reads = 0;
  std::optional<unsigned> breaks_at;  ///< this read fails otherwise

  static std::byte at(std::uint64_t gpa) { return static_cast<std::byte>(gpa / kPageSize * 7 + gpa % 251 + 1); }

  Result<std::uint64_t, ClientError> read(std::uint64_t gpa, std::span<std::byte> out) {
    const unsigned number = reads++;
    if (number == breaks_at) return ClientError{ClientErrc::Closed, ErrorCode::None, "kvmid closed the connection", 0};
    REQUIRE(!out.empty());
    REQUIRE(gpa + out.size() <= pages.size() * kPageSize);
    // As it is on the wire: what is in front of the page that faults may be there, and counts for nothing.
    for (std::size_t i = 0; i < out.size(); ++i) {
      if (!pages[(gpa + i) / kPageSize])
        return ClientError{ClientErrc::Failed, ErrorCode::Fault, "READ_PHYSICAL failed: EFAULT", 0};
      out[i] = at(gpa + i);
    }
    return 100 + number;
  }
  PieceReader reader(Holes holes) {
    return {[this](std::uint64_t gpa, std::span<std::byte> out) { return read(gpa, out); }, holes};
  }
};

/// Reads on from `gpa` to the end, and checks each byte against what memory is.
void check_all(Memory& memory, std::uint64_t gpa = 0) {
  auto reader = memory.reader(Holes::AreFound);
  const std::uint64_t end = memory.pages.size() * kPageSize;
  std::vector<std::byte> buffer(PieceReader::kPieceMax);
  while (gpa < end) {
    const auto out = std::span(buffer).first(std::min<std::uint64_t>(buffer.size(), end - gpa));
    const auto piece = reader.next(gpa, out);
    REQUIRE(piece);
    REQUIRE(piece->bytes > 0);
    REQUIRE(piece->bytes <= out.size());
    bool right = true;
    for (std::size_t i = 0; i < piece->bytes; ++i) {
      right = right && memory.pages[(gpa + i) / kPageSize] == piece->is_memory;
      right = right && (!piece->is_memory || out[i] == Memory::at(gpa + i));
    }
    if (!right) FAIL("piece of " << piece->bytes << " at " << gpa);
    if (piece->is_memory) CHECK(piece->cookie == 100 + memory.reads - 1);
    gpa += piece->bytes;
  }
  CHECK(gpa == end);
}

Memory memory_of(std::size_t pages) { return {std::vector<bool>(pages, true), 0, {}}; }

}  // namespace

TEST_CASE("memory without holes is read in large pieces", "[kvmictl][mem]") {
  auto memory = memory_of(3 * 256 + 5);
  check_all(memory);
  CHECK(memory.reads == 4);
}

TEST_CASE("a hole of one page is found wherever it is, by few reads", "[kvmictl][mem]") {
  for (std::size_t hole = 0; hole < 600; ++hole) {
    CAPTURE(hole);
    auto memory = memory_of(600);
    memory.pages[hole] = false;
    check_all(memory);
    CHECK(memory.reads <= 3 + 4 * 8);  // halved and doubled, 8 times each, and what lies between
  }
}

TEST_CASE("a large hole costs one read for each of its pages", "[kvmictl][mem]") {
  auto memory = memory_of(4096);
  std::fill(memory.pages.begin() + 300, memory.pages.begin() + 3800, false);
  memory.pages[2000] = true;  // nor is a page within it overlooked
  check_all(memory);
  CHECK(memory.reads < 3500 + 64);
}

TEST_CASE("whatever the holes, no more than two reads for a page", "[kvmictl][mem]") {
  std::uint32_t random = 1;
  for (unsigned round = 0; round < 200; ++round) {
    CAPTURE(round);
    auto memory = memory_of(1 + round * 3);
    for (std::size_t i = 0; i < memory.pages.size(); ++i) {
      random = random * 1664525 + 1013904223;
      memory.pages[i] = (random >> 24U) >= round;  // fewer and fewer
    }
    if (round % 5 == 0)
      for (std::size_t i = 0; i < memory.pages.size(); ++i) memory.pages[i] = i % 2 == 0;
    check_all(memory, round % 2 == 0 ? 0 : 1234);
    CHECK(memory.reads <= 2 * memory.pages.size() + 8);
  }
}

TEST_CASE("a hole from within a page ends where the page does", "[kvmictl][mem]") {
  auto memory = memory_of(4);
  memory.pages[1] = false;
  auto reader = memory.reader(Holes::AreFound);
  std::vector<std::byte> buffer(2 * kPageSize);
  const auto hole = reader.next(kPageSize + 100, buffer);
  REQUIRE(hole);
  CHECK_FALSE(hole->is_memory);
  CHECK(hole->bytes == kPageSize - 100);
}

TEST_CASE("a fault is an error where the map says that there is memory, and other errors always", "[kvmictl][mem]") {
  auto memory = memory_of(8);
  memory.pages[5] = false;
  std::vector<std::byte> buffer(8 * kPageSize);
  const auto told = memory.reader(Holes::AreErrors).next(0, buffer);
  REQUIRE_FALSE(told);
  CHECK(told.error().code == ErrorCode::Fault);
  CHECK(memory.reads == 1);

  memory.breaks_at = 2;  // the second half of halving
  auto reader = memory.reader(Holes::AreFound);
  const auto broken = reader.next(0, buffer);
  REQUIRE_FALSE(broken);
  CHECK(broken.error().kind == ClientErrc::Closed);
  CHECK(memory.reads == 3);
}
