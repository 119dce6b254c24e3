// SPDX-License-Identifier: GPL-2.0-or-later
// The writer of the generation page: what words say when, and that nobody else can write it.
#include "daemon/shm/generation_page.h"

#include <unistd.h>

#include <catch2/catch.hpp>
#include <random>
#include <set>

#include "tests/unit/shm/shared_guest.h"

namespace kvmid::shm::testing {

namespace {

constexpr std::uint64_t kRam = std::uint64_t{1} << 20U;

GenerationPage make(std::uint32_t places = 16) {
  return must(GenerationPage::create({.ram_bytes = kRam, .generation = 5, .place_count = places}));
}
bool changing(std::uint64_t word) { return (word & kWordChanging) != 0; }
bool patched(std::uint64_t word) { return (word & kWordPatched) != 0; }

}  // namespace

TEST_CASE("a fresh page says what it is, and that nothing is under way", "[shm]") {
  const GenerationPage page = make();
  const PageView view(page);
  REQUIRE(view.header().magic == kGenerationMagic);
  REQUIRE(std::memcmp(&view.header().magic, "KVMIGEN1", 8) == 0);
  REQUIRE(view.header().version == kGenerationVersion);
  REQUIRE(view.header().header_bytes == kGenerationHeaderBytes);
  REQUIRE(view.header().place_count == 16);
  REQUIRE(view.header().ram_bytes == kRam);
  REQUIRE(view.header().bytes == kGenerationHeaderBytes + 16 * sizeof(GenerationWord));
  REQUIRE(view.header().bytes == page.bytes());
  REQUIRE(view.generation() == 5);
  REQUIRE(view.map_sequence() == 0);
  for (std::uint64_t place = 0; place < 16; ++place) REQUIRE(view.word(place) == 0);
  struct stat status = {};
  REQUIRE(::fstat(page.fd(), &status) == 0);
  REQUIRE(static_cast<std::uint64_t>(status.st_size) == page.bytes());
}

TEST_CASE("the number of places is a power of two, and bounded", "[shm]") {
  for (const std::uint32_t places : {0U, 3U, 4095U, kGenerationPlacesMax * 2, ~0U})
    REQUIRE_FALSE(GenerationPage::create({.ram_bytes = kRam, .generation = 1, .place_count = places}));
  REQUIRE(GenerationPage::create({.ram_bytes = kRam, .generation = 1, .place_count = kGenerationPlacesMax}));
  REQUIRE(GenerationPage::create({.ram_bytes = kRam, .generation = 1, .place_count = 1}));
}

TEST_CASE("a word is odd from the first change of its pages to the last", "[shm]") {
  GenerationPage page = make();
  const PageView view(page);
  page.begin_change(Gpa{0x1ffc}, 8, 6);  // pages 1 and 2
  REQUIRE(view.generation() == 6);
  REQUIRE(changing(view.word(1)));
  REQUIRE(changing(view.word(2)));
  REQUIRE(view.word(0) == 0);
  REQUIRE(view.word(3) == 0);
  page.begin_change(Gpa{0x12000}, 1, 7);  // page 18: the place of page 2
  REQUIRE(view.generation() == 7);
  page.end_change(Gpa{0x1ffc}, 8);
  REQUIRE_FALSE(changing(view.word(1)));
  REQUIRE(changing(view.word(2)));
  page.end_change(Gpa{0x12000}, 1);
  REQUIRE_FALSE(changing(view.word(2)));
  REQUIRE(view.word(1) == kWordStep);
  REQUIRE(view.word(2) > kWordChanging);
}

TEST_CASE("bit 1 is there as long as any patch is", "[shm]") {
  GenerationPage page = make();
  const PageView view(page);
  page.set_patched(Gpa{0x3010}, 4, true, 6);
  page.set_patched(Gpa{0x13020}, 1, true, 7);  // another page, the same place
  REQUIRE(patched(view.word(3)));
  page.begin_change(Gpa{0x3000}, 8, 8);
  REQUIRE((patched(view.word(3)) && changing(view.word(3))));
  page.set_patched(Gpa{0x3010}, 4, false, 9);
  REQUIRE(patched(view.word(3)));
  page.end_change(Gpa{0x3000}, 8);
  REQUIRE((patched(view.word(3)) && !changing(view.word(3))));
  page.set_patched(Gpa{0x13020}, 1, false, 10);
  REQUIRE_FALSE(patched(view.word(3)));
  REQUIRE(view.generation() == 10);
}

TEST_CASE("a range larger than the table takes each place once", "[shm]") {
  GenerationPage page = make();
  const PageView view(page);
  const std::uint64_t bytes = GENERATE(15U, 16U, 17U, 40U) * kPageSize;
  page.begin_change(Gpa{0x5000}, bytes, 6);
  unsigned odd = 0;
  for (std::uint64_t place = 0; place < 16; ++place) odd += changing(view.word(place)) ? 1 : 0;
  REQUIRE(odd == std::min<std::uint64_t>(bytes / kPageSize, 16));
  page.end_change(Gpa{0x5000}, bytes);
  for (std::uint64_t place = 0; place < 16; ++place)
    REQUIRE(view.word(place) == (place == 4 && odd == 15 ? 0 : kWordStep));
}

TEST_CASE("the last byte of the address space has a place too", "[shm]") {
  GenerationPage page = make();
  const PageView view(page);
  page.begin_change(Gpa{~std::uint64_t{0}}, 1, 6);
  REQUIRE(changing(view.word(15)));
  page.end_change(Gpa{~std::uint64_t{0}}, 1);
  page.begin_change(Gpa{0x1000}, 0, 7);  // nothing changes, and the cookie is out
  for (std::uint64_t place = 0; place < 16; ++place) REQUIRE_FALSE(changing(view.word(place)));
  REQUIRE(view.generation() == 7);
}

TEST_CASE("generations never go back", "[shm]") {
  GenerationPage page = make();
  const PageView view(page);
  page.begin_change(Gpa{0}, 1, 9);
  page.begin_change(Gpa{0}, 1, 8);
  REQUIRE(view.generation() == 9);
  page.change_map(7);
  REQUIRE(view.generation() == 9);
}

TEST_CASE("a change of the map moves its sequence by two; a retired page is odd for good", "[shm]") {
  GenerationPage page = make();
  const PageView view(page);
  page.change_map(6);
  REQUIRE(view.map_sequence() == 2);
  REQUIRE(view.generation() == 6);
  SECTION("by call") { page.retire(); }
  SECTION("by its end") { const GenerationPage gone = std::move(page); }
  REQUIRE(view.map_sequence() == 3);
}

TEST_CASE("nothing moves a retired page", "[shm]") {
  GenerationPage page = make();
  const PageView view(page);
  page.retire();
  page.retire();
  page.change_map(6);
  REQUIRE(view.map_sequence() == 1);
}

TEST_CASE("random changes and patches: words only grow, and their bits are what is under way", "[shm]") {
  std::mt19937_64 random(GENERATE(1U, 2U, 3U));
  struct Range {
    Gpa gpa;
    std::uint64_t bytes;
  };
  GenerationPage page = make();
  const PageView view(page);
  std::vector<Range> changes;
  std::vector<Range> patches;
  std::vector<std::uint64_t> last(16);
  std::uint64_t generation = 5;
  const auto pick = [&](std::uint64_t below) { return random() % below; };
  const auto has = [](const std::vector<Range>& ranges, std::uint64_t place) {
    for (const Range& range : ranges)
      for (std::uint64_t gfn = gfn_of(range.gpa).value; gfn <= (range.gpa.value + range.bytes - 1) / kPageSize; ++gfn)
        if (gfn % 16 == place) return true;
    return false;
  };
  unsigned both = 0;
  for (unsigned step = 0; step < 20'000; ++step) {
    const Range range{Gpa{pick(64 * kPageSize)}, 1 + pick(pick(20) == 0 ? 30 * kPageSize : 2 * kPageSize)};
    const bool patch = pick(2) == 0;
    auto& list = patch ? patches : changes;
    if (list.size() < 4 && pick(2) == 0) {
      if (patch) page.set_patched(range.gpa, range.bytes, true, ++generation);
      else page.begin_change(range.gpa, range.bytes, ++generation);
      list.push_back(range);
    } else if (!list.empty()) {
      const auto which = list.begin() + static_cast<std::ptrdiff_t>(pick(list.size()));
      if (patch) page.set_patched(which->gpa, which->bytes, false, ++generation);
      else page.end_change(which->gpa, which->bytes);
      list.erase(which);
    }
    for (std::uint64_t place = 0; place < 16; ++place) {
      const std::uint64_t word = view.word(place);
      if (word < last[place]) FAIL("word of place " << place << " went back at step " << step);
      if (changing(word) != has(changes, place) || patched(word) != has(patches, place))
        FAIL("place " << place << " has the word " << word << " at step " << step);
      both += changing(word) && patched(word) ? 1 : 0;
      last[place] = word;
    }
  }
  REQUIRE(both > 1000);
  REQUIRE(view.generation() == generation);
}

TEST_CASE("who has the descriptor of a page can read it and nothing else", "[shm][hostile]") {
  GenerationPage generations = make(1024);
  const GrantFile grant = must(GrantFile::create());
  const int given = GENERATE(0, 1) == 0 ? generations.fd() : grant.fd();
  // Who runs as the same user can open it again, and meets the seals.
  const std::string path = "/proc/self/fd/" + std::to_string(given);
  const UniqueFd opened(::open(path.c_str(), O_RDWR | O_CLOEXEC));
  REQUIRE(opened.valid());
  const bool again = GENERATE(false, true);
  const int fd = again ? opened.get() : given;
  // A descriptor for reading alone is refused by other words.
  const auto refused = [&](long result) {
    return result < 0 && (errno == EPERM || errno == EACCES || (!again && (errno == EBADF || errno == EINVAL)));
  };
  const auto unmapped = [](const void* data) { return data == MAP_FAILED && (errno == EPERM || errno == EACCES); };

  SECTION("mapped writable") {
    REQUIRE(unmapped(::mmap(nullptr, kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)));
    REQUIRE(unmapped(::mmap(nullptr, kPageSize, PROT_WRITE, MAP_SHARED, fd, 0)));
  }
  SECTION("made writable later") {
    void* const data = ::mmap(nullptr, kPageSize, PROT_READ, MAP_SHARED, fd, 0);
    REQUIRE(data != MAP_FAILED);
    REQUIRE(refused(::mprotect(data, kPageSize, PROT_READ | PROT_WRITE)));
    REQUIRE(::madvise(data, kPageSize, MADV_REMOVE) != 0);  // frees pages of the file
    ::munmap(data, kPageSize);
  }
  SECTION("written") {
    REQUIRE(refused(::pwrite(fd, "x", 1, 0)));
    REQUIRE(refused(::write(fd, "x", 1)));
  }
  SECTION("truncated, grown, punched") {
    REQUIRE(refused(::ftruncate(fd, 0)));
    REQUIRE(refused(::ftruncate(fd, 1 << 20)));
    REQUIRE(refused(::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, kPageSize)));
    const UniqueFd truncated(::open(path.c_str(), O_RDWR | O_TRUNC | O_CLOEXEC));
    REQUIRE_FALSE(truncated.valid());
  }
  SECTION("sealed") {
    for (const int seal : {F_SEAL_WRITE, F_SEAL_SEAL, F_SEAL_SHRINK}) REQUIRE(refused(::fcntl(fd, F_ADD_SEALS, seal)));
  }
  // Its writer still can.
  const PageView view(generations);
  generations.begin_change(Gpa{0}, 1, 100);
  REQUIRE(view.generation() == 100);
}

TEST_CASE("a revoked grant says so, also when it was dropped", "[shm]") {
  const SharedGuest guest(kRam);
  auto grant = std::make_unique<GrantFile>(must(GrantFile::create()));
  auto where = guest.descriptors();
  where.grant = grant->fd();
  const auto reader = must(client::MappedMemory::map(where, {}));
  REQUIRE_FALSE(reader.revoked());
  SECTION("by call") { grant->revoke(); }
  SECTION("by its end") { grant.reset(); }
  REQUIRE(reader.revoked());
}

}  // namespace kvmid::shm::testing
