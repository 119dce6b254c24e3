// SPDX-License-Identifier: GPL-2.0-or-later
#include "tests/unit/shm/torn_reads.h"

#include <array>
#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <span>
#include <thread>
#include <utility>
#include <vector>

#include "tests/unit/shm/shared_guest.h"

namespace kvmid::shm::testing {

namespace {

using client::MappedErrc;
using client::MappedMemory;
using client::MappedRange;

constexpr std::uint32_t kPlaces = 16;
constexpr std::uint64_t kPages = 128;  // so that each place has eight of them
constexpr std::uint64_t kRingSize = 1U << 20U;
constexpr std::uint64_t kPatch = ~std::uint64_t{0};
constexpr std::array<std::uint64_t, 16> kSizes{8, 8, 8, 16, 16, 24, 40, 64, 64, 128, 256, 512, 1024, 4096, 8192, 16384};
constexpr std::uint64_t kSizeMax = 16384;

void spin(unsigned rounds) {
  for (unsigned i = 0; i < rounds; ++i) std::atomic_signal_fence(std::memory_order_seq_cst);  // not optimized away
}

/// A range that one writer at a time changes.
struct Region {
  Gpa gpa;
  std::uint64_t bytes = 0;
  std::uint64_t value = 0;  // the generation of the last change; under `busy`
  std::mutex busy;          // the hypervisor does changes of a range one after another
};

class Run {
 public:
  explicit Run(const TornOptions& options)
      : options_(options),
        guest_(kPages * kPageSize, kPlaces, kSizes.size()),
        view_(guest_.page),
        successors_(kRingSize) {
    for (std::size_t i = 0; i < regions_.size(); ++i) {
      Region& region = regions_[i];
      region.bytes = kSizes[i];
      region.value = i + 1;  // each its own: generations are unique
      // Each lies across the end of a page, also the ones of 8 bytes, and reaches into places of its neighbours. Four
      // bytes off: the processor may cut the cells too.
      region.gpa = Gpa{(i * 8 + 2) * kPageSize - 4};
      guest_.ram.fill(region.gpa, region.bytes, region.value);
    }
  }

  TornResult play() {
    const auto begin = std::chrono::steady_clock::now();
    std::vector<std::thread> writers;
    std::vector<std::thread> readers;
    for (unsigned i = 0; i < options_.writers; ++i) writers.emplace_back([this, i] { write_all(i); });
    for (unsigned i = 0; i < options_.readers; ++i) readers.emplace_back([this, i] { read_all(i); });
    for (std::thread& reader : readers) reader.join();
    stop_ = true;
    for (std::thread& writer : writers) writer.join();
    total_.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    return total_;
  }

 private:
  // ---- the shard: one thread at a time is kvmid ----

  std::uint64_t begin_change(Region& region) {
    const std::lock_guard lock(shard_);
    const std::uint64_t generation = ++generation_;
    // Both are there before the generation is published: a reader with this cookie finds what it needs.
    successors_[generation % kRingSize].store(0, std::memory_order_relaxed);
    successors_[region.value % kRingSize].store(generation, std::memory_order_relaxed);
    region.value = generation;
    if (options_.plant != TornPlant::LateMark) mark(region, generation);
    return generation;
  }
  void mark(const Region& region, std::uint64_t generation) {
    if (under_way_++ != 0) {
      ++total_.overlaps;
      if (options_.plant == TornPlant::EarlyEnd) return guest_.page.begin_change(Gpa{0}, 0, generation);
    }
    if (options_.plant != TornPlant::EarlyEnd) return guest_.page.begin_change(region.gpa, region.bytes, generation);
    guest_.page.begin_change(Gpa{0}, guest_.ram.bytes(), generation);
    marked_ = true;
  }
  void end_change(const Region& region) {
    const std::lock_guard lock(shard_);
    if (options_.plant == TornPlant::LateMark) mark(region, region.value);
    --under_way_;
    ++total_.changes;
    if (options_.plant != TornPlant::EarlyEnd) return guest_.page.end_change(region.gpa, region.bytes);
    if (std::exchange(marked_, false)) guest_.page.end_change(Gpa{0}, guest_.ram.bytes());
  }

  // ---- writers: the hypervisor ----

  void write_all(unsigned number) {
    std::mt19937_64 random(options_.seed * 1000 + number);
    for (std::uint64_t round = 0; !stop_; ++round) {
      Region& region = regions_[random() % regions_.size()];
      const std::unique_lock busy(region.busy, std::try_to_lock);
      if (!busy.owns_lock()) continue;
      if (random() % 128 == 0) lay_patch(region);
      const std::uint64_t generation = begin_change(region);
      store(region, generation, random);
      end_change(region);
      if (random() % 256 == 0) {
        const std::lock_guard lock(shard_);
        guest_.page.change_map(++generation_);
        ++total_.map_changes;
      }
      // Readers get their turns, of different lengths.
      spin(static_cast<unsigned>(random() % 2000));
      if (random() % 256 == 0) std::this_thread::yield();
    }
  }

  void store(const Region& region, std::uint64_t cell, std::mt19937_64& random) {
    const std::uint64_t half = region.bytes / 2 / sizeof cell * sizeof cell;
    guest_.ram.fill(region.gpa, half, cell);
    // Now and then a reader on the same processor gets to see it half done, and others for long.
    if (random() % 512 == 0) std::this_thread::yield();
    if (random() % 8 == 0) spin(500);
    guest_.ram.fill(Gpa{region.gpa.value + half}, region.bytes - half, cell);
  }

  /// A patch of some bytes: nobody may take them for the guest's own.
  void lay_patch(const Region& region) {
    const Gpa gpa{region.gpa.value + region.bytes / 2 / 8 * 8};
    set_patched(gpa, true);
    std::uint64_t own = 0;
    std::memcpy(&own, guest_.ram.data() + gpa.value, sizeof own);
    guest_.ram.fill(gpa, sizeof own, kPatch);
    spin(200);
    guest_.ram.fill(gpa, sizeof own, own);
    set_patched(gpa, false);
  }
  void set_patched(Gpa gpa, bool on) {
    const std::lock_guard lock(shard_);
    guest_.page.set_patched(gpa, sizeof(std::uint64_t), on, ++generation_);
    total_.patches += on ? 1 : 0;
  }

  // ---- readers ----

  void read_all(unsigned number) {
    std::mt19937_64 random(options_.seed * 1000 + 500 + number);
    const MappedMemory memory = guest_.reader(number % 2 == 0 ? 1 : 100);
    std::vector<std::byte> first(kSizeMax);
    std::vector<std::byte> second(kSizeMax);
    std::array<std::uint64_t, kSizes.size()> last{};
    TornResult mine;
    const std::uint64_t quota =
        options_.reads / options_.readers + (number < options_.reads % options_.readers ? 1 : 0);
    while (mine.accepted < quota && !found_) {
      std::uint64_t dice = random();
      const auto pick = [&dice](std::uint64_t below) {
        const std::uint64_t picked = dice % below;
        dice /= below;
        return picked;
      };
      const std::size_t a = pick(kSizes.size());
      const std::size_t b = pick(kSizes.size());
      const std::array<MappedRange, 2> ranges{MappedRange{regions_[a].gpa, std::span(first).first(regions_[a].bytes)},
                                              MappedRange{regions_[b].gpa, std::span(second).first(regions_[b].bytes)}};
      const std::span<const MappedRange> wanted(ranges.data(), pick(16) == 0 ? 2 : 1);
      const auto cookie =
          options_.plant == TornPlant::NoRecheck ? read_without_recheck(wanted) : memory.read_scatter(wanted);
      if (!cookie) {
        ++(cookie.error() == MappedErrc::AskKvmid ? mine.asked : mine.refused);
        continue;
      }
      ++mine.accepted;
      judge(wanted, *cookie, mine);
      std::uint64_t value = 0;
      std::memcpy(&value, first.data(), sizeof value);
      mine.fresh += value != last[a] ? 1 : 0;
      last[a] = value;
      if (options_.plant != TornPlant::None && mine.torn + mine.stale + mine.split != 0) found_ = true;
    }
    const std::lock_guard lock(shard_);
    total_.accepted += mine.accepted;
    total_.ranges += mine.ranges;
    total_.refused += mine.refused;
    total_.asked += mine.asked;
    total_.torn += mine.torn;
    total_.stale += mine.stale;
    total_.split += mine.split;
    total_.fresh += mine.fresh;
  }

  /// Each range holds one value, which is the generation that wrote it, and no later one that the cookie covers exists.
  void judge(std::span<const MappedRange> ranges, std::uint64_t cookie, TornResult& mine) const {
    std::array<std::uint64_t, 2> values{};
    std::array<std::uint64_t, 2> nexts{};
    for (std::size_t i = 0; i < ranges.size(); ++i) {
      const std::span<const std::byte> got = ranges[i].to;
      std::uint64_t& value = values[i];
      std::memcpy(&value, got.data(), sizeof value);
      ++mine.ranges;
      // All cells are equal if each equals the one before it.
      const bool whole = std::memcmp(got.data(), got.data() + sizeof value, got.size() - sizeof value) == 0;
      if (!whole || value == kPatch) {
        ++mine.torn;
        return;
      }
      // A value so old that its place in the ring has another one by now has a later successor there: no false alarm.
      nexts[i] = successors_[value % kRingSize].load(std::memory_order_relaxed);
      if (nexts[i] > value && nexts[i] <= cookie) ++mine.stale;
    }
    // Of one moment: the change of the one range had begun then, the next change of the other had not, and generations
    // are in the order in which changes begin.
    if (ranges.size() == 2)
      for (std::size_t i = 0; i < 2; ++i) mine.split += nexts[i] > values[i] && nexts[i] < values[1 - i] ? 1 : 0;
  }

  /// Steps 1 to 4 of protocol/generation_page.h, without 5.
  Result<std::uint64_t, MappedErrc> read_without_recheck(std::span<const MappedRange> ranges) const {
    if ((view_.header().map_sequence.load(std::memory_order_acquire) & 1) != 0) return MappedErrc::Unstable;
    const std::uint64_t cookie = view_.header().generation.load(std::memory_order_acquire);
    for (const MappedRange& range : ranges) {
      const std::uint64_t end = range.gpa.value + range.to.size() - 1;
      for (std::uint64_t gfn = gfn_of(range.gpa).value; gfn <= end / kPageSize; ++gfn) {
        const std::uint64_t word = view_.atomic_word(gfn % kPlaces).load(std::memory_order_acquire);
        if ((word & kWordPatched) != 0) return MappedErrc::AskKvmid;
        if ((word & kWordChanging) != 0) return MappedErrc::Unstable;
      }
    }
    for (const MappedRange& range : ranges)
      copy_racing(range.to.data(), guest_.ram.data() + range.gpa.value, range.to.size());
    return cookie;
  }

  /// This reader is wrong on purpose, and its torn reads are counted: ThreadSanitizer need not tell of them.
  [[gnu::no_sanitize("thread")]] static void copy_racing(std::byte* to, const std::byte* from, std::size_t bytes) {
#if defined(__SANITIZE_THREAD__)
    for (const volatile std::byte* at = from; bytes != 0; --bytes) *to++ = *at++;
#else
    std::memcpy(to, from, bytes);
#endif
  }

  TornOptions options_;
  SharedGuest guest_;
  PageView view_;
  std::array<Region, kSizes.size()> regions_;
  std::vector<std::atomic<std::uint64_t>> successors_;  // by generation % size: the next one of the same range, or 0
  std::mutex shard_;
  std::uint64_t generation_ = kSizes.size();
  unsigned under_way_ = 0;
  bool marked_ = false;  // TornPlant::EarlyEnd
  TornResult total_;
  std::atomic<bool> stop_{false};
  std::atomic<bool> found_{false};
};

}  // namespace

TornResult run_torn_reads(const TornOptions& options) { return std::make_unique<Run>(options)->play(); }

}  // namespace kvmid::shm::testing
