// SPDX-License-Identifier: GPL-2.0-or-later
// What page rights cost: heap bytes of an agent's view, and time of the look-ups that every page fault makes.
//
// Purpose:  figures for views of a million uniform and of 100,000 scattered pages.
// Units:    bytes are what malloc gives, its own header of each chunk included; times are for one look-up.
// Source:   daemon/core/page_access.h
#include <benchmark/benchmark.h>
#include <malloc.h>

#include <algorithm>
#include <cstdlib>
#include <new>
#include <random>
#include <vector>

#include "daemon/core/page_access.h"

namespace {
constexpr std::size_t kChunkHeader = sizeof(std::size_t);
std::size_t live = 0;

void* counted(std::size_t size) {
  void* p = std::malloc(size == 0 ? 1 : size);
  if (p == nullptr) throw std::bad_alloc();
  live += malloc_usable_size(p) + kChunkHeader;
  return p;
}
void uncounted(void* p) {
  if (p == nullptr) return;
  live -= malloc_usable_size(p) + kChunkHeader;
  std::free(p);
}
}  // namespace

void* operator new(std::size_t size) { return counted(size); }
void* operator new[](std::size_t size) { return counted(size); }
void operator delete(void* p) noexcept { uncounted(p); }
void operator delete[](void* p) noexcept { uncounted(p); }
void operator delete(void* p, std::size_t) noexcept { uncounted(p); }
void operator delete[](void* p, std::size_t) noexcept { uncounted(p); }

namespace {

using kvmid::Gfn;
using kvmid::core::AgentSlot;
using kvmid::core::PageAccess;
using kvmid::core::PageRange;

constexpr std::uint8_t kRx = KVMI_PAGE_ACCESS_R | KVMI_PAGE_ACCESS_X;
constexpr std::uint64_t kUniform = 1'000'000;
constexpr std::uint64_t kScattered = 100'000;
constexpr std::uint64_t kApart = 11;  // pages between scattered ones
constexpr std::size_t kAddresses = std::size_t{1} << 16U;

void ignore(PageRange, std::uint8_t) {}

void restrict_uniform(PageAccess& pages, AgentSlot slot) { pages.set(slot, Gfn{slot}, Gfn{slot + kUniform}, kRx, ignore); }

void restrict_scattered(PageAccess& pages, AgentSlot slot) {
  std::vector<std::uint64_t> order(kScattered);
  for (std::uint64_t i = 0; i < kScattered; ++i) order[i] = i * kApart + slot % kApart;
  std::shuffle(order.begin(), order.end(), std::mt19937_64(slot));  // as addresses come, not ascending
  for (const std::uint64_t gfn : order) pages.set(slot, Gfn{gfn}, Gfn{gfn + 1}, kRx, ignore);
}

using Restrict = void (*)(PageAccess&, AgentSlot);

/// Pages that are looked up: anywhere in what is restricted, so that caches help as little as they do a guest.
std::vector<Gfn> addresses() {
  std::mt19937_64 random(1);
  std::uniform_int_distribution<std::uint64_t> anywhere(0, kScattered * kApart - 1);
  std::vector<Gfn> all(kAddresses);
  for (Gfn& gfn : all) gfn = Gfn{anywhere(random)};
  return all;
}

void report_bytes(benchmark::State& state, std::size_t bytes, const PageAccess& pages) {
  state.counters["heap_bytes"] = static_cast<double>(bytes);
  state.counters["pages"] = static_cast<double>(pages.pages_of(0));
}

/// One agent's view: what it keeps, and the time to set all of it and to give it back.
void view(benchmark::State& state, Restrict restrict_pages) {
  std::size_t bytes = 0;
  for (auto _ : state) {
    const std::size_t before = live;
    PageAccess pages;
    restrict_pages(pages, 0);
    bytes = live - before;
    if (pages.pages_of(0) != (restrict_pages == restrict_uniform ? kUniform : kScattered))
      state.SkipWithError("the view does not have the pages that were set");
    report_bytes(state, bytes, pages);
  }
}

void forbidding(benchmark::State& state, Restrict restrict_pages) {
  PageAccess pages;
  for (AgentSlot slot = 0; slot < state.range(0); ++slot) restrict_pages(pages, slot);
  const std::vector<Gfn> gfns = addresses();
  std::size_t i = 0;
  for (auto _ : state) benchmark::DoNotOptimize(pages.forbidding(gfns[i++ % kAddresses], KVMI_PAGE_ACCESS_W));
}

void effective(benchmark::State& state, Restrict restrict_pages) {
  PageAccess pages;
  for (AgentSlot slot = 0; slot < state.range(0); ++slot) restrict_pages(pages, slot);
  const std::vector<Gfn> gfns = addresses();
  std::size_t i = 0;
  for (auto _ : state) benchmark::DoNotOptimize(pages.effective(gfns[i++ % kAddresses]));
}

/// All effective runs of all memory, as they are told to a hypervisor that comes back.
void walk(benchmark::State& state, Restrict restrict_pages) {
  PageAccess pages;
  for (AgentSlot slot = 0; slot < state.range(0); ++slot) restrict_pages(pages, slot);
  constexpr Gfn kEnd{std::uint64_t{1} << 52U};
  std::size_t runs = 0;
  for (auto _ : state) {
    runs = 0;
    PageAccess::Walk steps(pages);
    for (Gfn at{0}; at < kEnd; ++runs) at = steps.run(at, kEnd).second;
  }
  state.counters["steps"] = static_cast<double>(runs);
}

BENCHMARK_CAPTURE(view, uniform_1000000, restrict_uniform);
BENCHMARK_CAPTURE(view, scattered_100000, restrict_scattered)->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(forbidding, uniform_1000000, restrict_uniform)->ArgName("agents")->Arg(1)->Arg(8);
BENCHMARK_CAPTURE(forbidding, scattered_100000, restrict_scattered)->ArgName("agents")->Arg(1)->Arg(8);
BENCHMARK_CAPTURE(effective, uniform_1000000, restrict_uniform)->ArgName("agents")->Arg(8);
BENCHMARK_CAPTURE(effective, scattered_100000, restrict_scattered)->ArgName("agents")->Arg(8);
BENCHMARK_CAPTURE(walk, uniform_1000000, restrict_uniform)->ArgName("agents")->Arg(8);
BENCHMARK_CAPTURE(walk, scattered_100000, restrict_scattered)
    ->ArgName("agents")
    ->Arg(8)
    ->Unit(benchmark::kMillisecond);

}  // namespace

BENCHMARK_MAIN();
