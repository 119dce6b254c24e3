// SPDX-License-Identifier: GPL-2.0-or-later
// Counts the heap that page rights take: bytes that malloc gives, its own chunk headers included.
#include <malloc.h>

#include <catch2/catch.hpp>
#include <cstdlib>
#include <new>

#include "tests/unit/core/core_harness.h"

namespace {
constexpr std::size_t kChunkHeader = sizeof(std::size_t);
std::size_t live = 0;  // bytes

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

namespace kvmid::core::testing {

namespace {

constexpr std::uint64_t kUniformBytesMax = 1000;
constexpr std::uint64_t kScatteredBytesMax = 10'000'000;
constexpr std::uint32_t kUniform = 1'000'000;
constexpr std::uint32_t kScattered = 100'000;

/// Bytes that live longer than the call. Not through a REQUIRE: that allocates too.
template <class F>
std::size_t bytes_kept_by(F&& f) {
  const std::size_t before = live;
  f();
  return live - before;
}

void ignore(PageRange, std::uint8_t) {}

}  // namespace

TEST_CASE("one agent's view of a million uniform pages takes less than 1 kB", "[pages][memory]") {
  PageAccess access;
  const std::size_t bytes = bytes_kept_by([&] { access.set(0, Gfn{0}, Gfn{kUniform}, kR, ignore); });
  REQUIRE(access.pages_of(0) == kUniform);
  REQUIRE(bytes > 0);
  REQUIRE(bytes < kUniformBytesMax);
}

TEST_CASE("a million uniform pages that were set page by page take as little", "[pages][memory]") {
  PageAccess access;
  const std::size_t bytes = bytes_kept_by([&] {
    for (std::uint64_t i = 0; i < kUniform; i += 2) access.set(0, Gfn{i}, Gfn{i + 1}, kR, ignore);
    for (std::uint64_t i = 1; i < kUniform; i += 2) access.set(0, Gfn{i}, Gfn{i + 1}, kR, ignore);
  });
  REQUIRE(access.pages_of(0) == kUniform);
  REQUIRE(bytes < kUniformBytesMax);
}

TEST_CASE("one agent's view of 100,000 scattered pages takes less than 10 MB, and gives it back", "[pages][memory]") {
  PageAccess access;
  access.set(0, Gfn{0}, Gfn{1}, kR, ignore);
  const std::size_t bytes = bytes_kept_by([&] {
    for (std::uint64_t i = 1; i < kScattered; ++i) access.set(0, Gfn{i * 7}, Gfn{i * 7 + 1}, kR, ignore);
  });
  REQUIRE(access.pages_of(0) == kScattered);
  REQUIRE(bytes > kScattered);
  REQUIRE(bytes < kScatteredBytesMax);
  const std::size_t full = live;
  access.set(0, Gfn{1}, Gfn{kScattered * 7}, kRwx, ignore);
  REQUIRE(full - live > bytes / 2);
  REQUIRE(access.pages_of(0) == 1);
}

TEST_CASE("a guest whose agents restrict a million pages each keeps less than 1 kB for each of them",
          "[pages][memory]") {
  // All of it: the views, what the hypervisor has confirmed, what it took to undo and to tell.
  Guest guest;
  Grant grant = full_grant();
  grant.quota.pages_max = kUniform;
  AgentId agents[8];
  for (AgentId& agent : agents) agent = guest.attach(grant);
  guest.refuse = [](const auto&) { return ErrorCode::None; };
  guest.answering = false;
  std::size_t per_agent = 0;
  for (const AgentId agent : agents) {
    const std::vector<kvmi_page_access_entry> entries{pages(3, kUniform, kR)};
    // The hypervisor of the harness keeps pages one by one and the harness records messages: only the machine is asked.
    Effects out;
    out.reserve(64);
    const SetPageAccess command{AddressSpace::Normal, std::span<const kvmi_page_access_entry>(entries)};
    const std::size_t before = live;
    guest.machine.on_agent_message(agent, Seq{1}, Downward{command}, guest.now, out);
    for (std::size_t i = 0; i < out.size(); ++i)
      if (const auto* sent = std::get_if<SendCommand>(&out[i])) {
        const Seq seq = sent->seq;
        out.clear();
        guest.machine.on_hypervisor_message(seq, Upward{CommandReply{KVMI_MSG_SET_PAGE_ACCESS, {}, {}, {}}}, guest.now,
                                            out);
        break;
      }
    per_agent = std::max(per_agent, live - before);
  }
  const GuestInfo info = guest.machine.info();
  for (const AgentInfo& agent : info.agents) REQUIRE(agent.pages == kUniform);
  REQUIRE(guest.machine.settled());
  REQUIRE(per_agent < kUniformBytesMax);
}

}  // namespace kvmid::core::testing
