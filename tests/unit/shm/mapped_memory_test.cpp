// SPDX-License-Identifier: GPL-2.0-or-later
// The reader: what it maps and refuses, and what it answers in each state of the page.
#include "client/mapped_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <catch2/catch.hpp>
#include <functional>

#include "client/agent_client.h"
#include "tests/unit/shm/shared_guest.h"

namespace kvmid::shm::testing {

using client::MappedErrc;
using client::MappedMemory;
using client::MappedRange;

namespace {

constexpr std::uint64_t kRam = 64 * kPageSize;
using Cell = std::array<std::byte, 8>;

/// A page made by somebody who is not kvmid.
UniqueFd forged(std::uint64_t bytes, const std::function<void(GenerationHeader&)>& spoil, bool sealed = true) {
  UniqueFd fd(::memfd_create("forged", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  REQUIRE(::ftruncate(fd.get(), static_cast<off_t>(bytes)) == 0);
  void* const data = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  REQUIRE(data != MAP_FAILED);
  auto* const header = new (data) GenerationHeader{};
  header->magic = kGenerationMagic;
  header->version = kGenerationVersion;
  header->header_bytes = kGenerationHeaderBytes;
  header->bytes = bytes;
  header->place_count = 16;
  header->ram_bytes = kRam;
  header->generation.store(1);
  spoil(*header);
  ::munmap(data, bytes);
  if (sealed) REQUIRE(::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK) == 0);
  return fd;
}

std::string refusal(const MappedMemory::Descriptors& descriptors, const MappedMemory::Options& options = {}) {
  const auto memory = MappedMemory::map(descriptors, options);
  return memory ? "" : memory.error().text;
}

MappedErrc error_of(const Result<std::uint64_t, MappedErrc>& result) {
  REQUIRE_FALSE(result);
  return result.error();
}

}  // namespace

TEST_CASE("bytes come with the cookie of the moment", "[shm]") {
  SharedGuest guest(kRam, 16, 5);
  const MappedMemory memory = guest.reader();
  std::vector<std::byte> got(3 * kPageSize);
  guest.ram.fill(Gpa{0x1000}, got.size(), 0x1111);
  REQUIRE(memory.read_stable(Gpa{0x1000}, got).value() == 5);
  REQUIRE(std::memcmp(got.data(), guest.ram.data() + 0x1000, got.size()) == 0);
  guest.page.begin_change(Gpa{0x2000}, 8, 6);
  REQUIRE(error_of(memory.read_stable(Gpa{0x1000}, got)) == MappedErrc::Unstable);
  REQUIRE(memory.read_stable(Gpa{0x1000}, std::span(got).first(kPageSize)).value() == 6);  // another page
  REQUIRE(memory.read(Gpa{0x1000}, got));                                                   // no promise
  guest.ram.fill(Gpa{0x2000}, 8, 0x2222);
  guest.page.end_change(Gpa{0x2000}, 8);
  REQUIRE(memory.read_stable(Gpa{0x1000}, got).value() == 6);
  REQUIRE(std::memcmp(got.data(), guest.ram.data() + 0x1000, got.size()) == 0);
}

TEST_CASE("where a patch is, kvmid must be asked", "[shm]") {
  SharedGuest guest(kRam, 16);
  const MappedMemory memory = guest.reader();
  Cell got{};
  guest.page.set_patched(Gpa{0x3010}, 1, true, 2);
  REQUIRE(error_of(memory.read_stable(Gpa{0x3800}, got)) == MappedErrc::AskKvmid);
  REQUIRE(error_of(memory.read_stable(Gpa{0x13000}, got)) == MappedErrc::AskKvmid);  // it shares the place
  REQUIRE(memory.read_stable(Gpa{0x4000}, got).value() == 2);
  REQUIRE(error_of(memory.read_stable(Gpa{0x2ffc}, got)) == MappedErrc::AskKvmid);
  guest.page.set_patched(Gpa{0x3010}, 1, false, 3);
  REQUIRE(memory.read_stable(Gpa{0x3800}, got).value() == 3);
}

TEST_CASE("a range larger than the table sees a change of any page", "[shm]") {
  SharedGuest guest(kRam, 16);
  const MappedMemory memory = guest.reader();
  std::vector<std::byte> all(kRam);
  REQUIRE(memory.read_stable(Gpa{0}, all));
  const Gpa gpa{GENERATE(0U, 15U, 16U, 63U) * kPageSize};
  guest.page.begin_change(gpa, 1, 2);
  REQUIRE(error_of(memory.read_stable(Gpa{0}, all)) == MappedErrc::Unstable);
  guest.page.end_change(gpa, 1);
  REQUIRE(memory.read_stable(Gpa{0}, all));
}

TEST_CASE("several ranges are one read: a change in any refuses all", "[shm]") {
  SharedGuest guest(kRam, 16);
  const MappedMemory memory = guest.reader();
  Cell first{};
  Cell second{};
  const std::array<MappedRange, 3> ranges{MappedRange{Gpa{0x1000}, first}, MappedRange{Gpa{0x5008}, second},
                                          MappedRange{Gpa{kRam}, {}}};
  guest.ram.fill(Gpa{0x1000}, 8, 1);
  guest.ram.fill(Gpa{0x5008}, 8, 2);
  REQUIRE(memory.read_scatter(ranges).value() == 1);
  REQUIRE((first[0] == std::byte{1} && second[0] == std::byte{2}));
  guest.page.begin_change(Gpa{0x5000}, 1, 2);
  REQUIRE(error_of(memory.read_scatter(ranges)) == MappedErrc::Unstable);
  guest.page.end_change(Gpa{0x5000}, 1);
  guest.page.set_patched(Gpa{0x1fff}, 1, true, 3);
  REQUIRE(error_of(memory.read_scatter(ranges)) == MappedErrc::AskKvmid);
  REQUIRE(memory.read_scatter({}).value() == 3);
}

TEST_CASE("changes of a range are counted, without a look at its bytes", "[shm]") {
  SharedGuest guest(kRam, 16);
  MappedMemory memory = guest.reader();
  const auto count = [&](std::uint64_t gpa, std::uint64_t bytes) { return memory.changes_of(Gpa{gpa}, bytes).value(); };
  const std::uint64_t page = count(0x1000, 8), pages = count(0x1000, 2 * kPageSize), all = count(0, kRam);
  const std::uint64_t nothing = count(kRam, 0), map = memory.map_changes();
  guest.ram.fill(Gpa{0x1000}, 8, 1);  // the guest's own store
  REQUIRE(count(0x1000, 8) == page);

  guest.page.begin_change(Gpa{0x2000}, 8, 2);
  REQUIRE(count(0x1000, 8) == page);
  const std::uint64_t begun = count(0x1000, 2 * kPageSize);
  REQUIRE(begun > pages);
  guest.page.end_change(Gpa{0x2000}, 8);
  REQUIRE(count(0x1000, 2 * kPageSize) > begun);
  REQUIRE(count(0, kRam) > all);
  guest.page.set_patched(Gpa{0x11000}, 1, true, 3);  // shares the place
  REQUIRE(count(0x1000, 8) > page);
  REQUIRE(count(kRam, 0) == nothing);
  REQUIRE(memory.map_changes() == map);

  guest.page.change_map(4);
  REQUIRE(memory.map_changes() > map);
  REQUIRE(memory.map_changes() % 2 == 0);
  REQUIRE(count(kRam, 0) > nothing);

  REQUIRE(memory.changes_of(Gpa{kRam - 7}, 8).error() == MappedErrc::Fault);
  REQUIRE(memory.changes_of(Gpa{8}, ~std::uint64_t{0}).error() == MappedErrc::Fault);
  const MappedMemory taken = std::move(memory);
  REQUIRE(memory.changes_of(Gpa{0}, 8).error() == MappedErrc::Revoked);  // NOLINT(bugprone-use-after-move)
  REQUIRE(memory.map_changes() % 2 == 1);
  guest.page.retire();
  REQUIRE(taken.map_changes() % 2 == 1);
  guest.grant.revoke();
  REQUIRE(taken.changes_of(Gpa{0}, 8).error() == MappedErrc::Revoked);
}

TEST_CASE("outside of RAM is a fault", "[shm]") {
  const SharedGuest guest(kRam, 16);
  const MappedMemory memory = guest.reader();
  Cell got{};
  REQUIRE(memory.read_stable(Gpa{kRam - 8}, got));
  for (const std::uint64_t gpa : {kRam - 7, kRam, ~std::uint64_t{0}, ~std::uint64_t{0} - 7}) {
    REQUIRE(error_of(memory.read_stable(Gpa{gpa}, got)) == MappedErrc::Fault);
    REQUIRE(memory.read(Gpa{gpa}, got).error() == MappedErrc::Fault);
  }
  REQUIRE(memory.read_stable(Gpa{kRam}, {}));
}

TEST_CASE("after its end a grant gives nothing", "[shm]") {
  SharedGuest guest(kRam, 16);
  const MappedMemory memory = guest.reader(10'000);
  Cell got{};
  guest.page.begin_change(Gpa{0}, 1, 2);  // and it stays under way
  guest.page.set_patched(Gpa{0x1000}, 1, true, 3);
  guest.grant.revoke();
  for (const std::uint64_t gpa : {0x0U, 0x1000U, 0x2000U})
    REQUIRE(error_of(memory.read_stable(Gpa{gpa}, got)) == MappedErrc::Revoked);
  REQUIRE(memory.read(Gpa{0}, got).error() == MappedErrc::Revoked);
}

TEST_CASE("a page that kvmid has given up is not believed", "[shm]") {
  SharedGuest guest(kRam, 16);
  const MappedMemory memory = guest.reader(100);
  Cell got{};
  guest.page.retire();
  REQUIRE(error_of(memory.read_stable(Gpa{0}, got)) == MappedErrc::Unstable);
}

TEST_CASE("a reader moves, and one that was moved from reads nothing", "[shm]") {
  const SharedGuest guest(kRam, 16);
  MappedMemory memory = guest.reader();
  MappedMemory taken = std::move(memory);
  Cell got{};
  REQUIRE(taken.read_stable(Gpa{0}, got));
  REQUIRE(memory.read_stable(Gpa{0}, got).error() == MappedErrc::Revoked);  // NOLINT(bugprone-use-after-move)
  taken = guest.reader();
  REQUIRE(taken.read_stable(Gpa{0}, got));
}

TEST_CASE("descriptors can be closed after they are mapped", "[shm]") {
  std::optional<MappedMemory> memory;
  {
    const SharedGuest guest(kRam, 16);
    guest.ram.fill(Gpa{0}, 8, 0x0909);
    memory.emplace(guest.reader());
  }
  Cell got{};
  REQUIRE(memory->read(Gpa{0}, got).error() == MappedErrc::Revoked);  // the page's end has said so
}

TEST_CASE("RAM that its hypervisor can cut short is mapped only where the agent allows it", "[shm][hostile]") {
  const SharedGuest guest(kRam, 16);
  const HypervisorRam unsealed(kRam, false);
  auto where = guest.descriptors();
  where.ram = unsealed.fd();
  REQUIRE(refusal(where).find("F_SEAL_SHRINK") != std::string::npos);
  REQUIRE(refusal(where, {.allow_unsealed_ram = true, .attempts = 1}).empty());
}

TEST_CASE("nothing that the descriptors say of themselves is believed", "[shm][hostile]") {
  const SharedGuest guest(kRam, 16);
  const auto good = guest.descriptors();
  REQUIRE(refusal(good).empty());
  const std::uint64_t bytes = kGenerationHeaderBytes + 16 * 8;
  const auto with_page = [&](const std::function<void(GenerationHeader&)>& spoil, bool sealed = true) {
    const UniqueFd fd = forged(bytes, spoil, sealed);
    auto where = good;
    where.generations = fd.get();
    return refusal(where);
  };
  REQUIRE(with_page([](auto&) {}).empty());
  REQUIRE(with_page([](auto&) {}, false).find("F_SEAL_SHRINK") != std::string::npos);
  REQUIRE(with_page([](auto& h) { h.magic ^= 1; }).find("magic") != std::string::npos);
  REQUIRE(with_page([](auto& h) { h.version = 2; }).find("version 2") != std::string::npos);
  for (const std::uint32_t places : {0U, 12U, 17U, kGenerationPlacesMax * 2, ~0U, 1U << 31U})
    REQUIRE(with_page([&](auto& h) { h.place_count = places; }).find("power of two") != std::string::npos);
  for (const std::uint32_t places : {32U, kGenerationPlacesMax})
    REQUIRE(with_page([&](auto& h) { h.place_count = places; }).find("not within") != std::string::npos);
  for (const std::uint32_t header : {0U, 48U, 60U, 65U, 72U, 4096U, ~0U, ~7U})
    REQUIRE(with_page([&](auto& h) { h.header_bytes = header; }).find("not within") != std::string::npos);
  REQUIRE(with_page([](auto& h) { h.bytes += 8; }).find("another size") != std::string::npos);
  REQUIRE(with_page([](auto& h) { h.ram_bytes += 4096; }).find("another guest") != std::string::npos);

  const auto with = [&](const std::function<void(MappedMemory::Descriptors&)>& spoil) {
    auto where = good;
    spoil(where);
    return refusal(where);
  };
  REQUIRE(with([](auto& d) { d.generation_bytes += 8; }).find("announced") != std::string::npos);
  REQUIRE(with([](auto& d) { d.generation_bytes -= 8; }).find("announced") != std::string::npos);
  REQUIRE_FALSE(with([](auto& d) { d.generation_bytes = 0; }).empty());
  REQUIRE_FALSE(with([](auto& d) { d.generation_bytes = ~std::uint64_t{0}; }).empty());
  REQUIRE(with([](auto& d) { d.ram_bytes -= kPageSize; }).find("sizes differ") != std::string::npos);
  for (const std::uint64_t ram : {std::uint64_t{0}, kRam + 1, std::uint64_t{1} << 46U, ~std::uint64_t{0}})
    REQUIRE(with([&](auto& d) { d.ram_bytes = ram; }).find("whole pages") != std::string::npos);
  REQUIRE(with([](auto& d) { d.ram = -1; }).find("fstat") != std::string::npos);
  REQUIRE(with([](auto& d) { d.grant = d.ram; }).find("grant page") != std::string::npos);
  REQUIRE(with([](auto& d) { std::swap(d.ram, d.generations); }).find("announced") != std::string::npos);
  const UniqueFd empty(::memfd_create("empty", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  REQUIRE(with([&](auto& d) { d.grant = empty.get(); }).find("announced") != std::string::npos);
}

TEST_CASE("a grant is three descriptors", "[shm]") {
  const SharedGuest guest(kRam, 16);
  client::GrantedMemory granted;
  granted.ram_bytes = kRam;
  granted.generation_bytes = guest.page.bytes();
  for (const int fd : {guest.ram.fd(), guest.page.fd()}) granted.fds.emplace_back(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
  REQUIRE(MappedMemory::map(granted, {}).error().text.find("2 descriptors") != std::string::npos);
  granted.fds.emplace_back(::fcntl(guest.grant.fd(), F_DUPFD_CLOEXEC, 0));
  REQUIRE(MappedMemory::map(granted, {}));
}

}  // namespace kvmid::shm::testing
