// SPDX-License-Identifier: GPL-2.0-or-later
//
// An agent that holds everything an agent can hold in a guest goes, in every way there is. Then RAM is what it was,
// byte for byte, and nothing that the guest does is an event any more: as in a guest that never had the agent.

#include <catch2/catch.hpp>
#include <csignal>
#include <cstring>
#include <set>

#include "tests/integration_many/many_scene.h"

namespace kvmid::test {
namespace {

constexpr unsigned kVcpus = 2;
constexpr std::uint64_t kRamBytes = std::uint64_t{16} << 20U;  // kvmi-emu's default
constexpr std::uint64_t kImage = 0x100000;
constexpr std::uint64_t kRomPatch = 0xf0008;  // in read-only memory, where the guest loads from
constexpr std::uint64_t kRomValue = 0x0f0e0d0c0b0a0908;
constexpr std::uint64_t kExecFunction = 0x21000;
constexpr std::uint64_t kFarPatch = 0x800ffc;  // the last bytes of a page that nobody uses

std::string hex_of(std::uint64_t value) {
  char text[32];
  std::snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(value));
  return text;
}

/// Does, on each vCPU, what every kind of wish could make an event of. Each time the same.
void exercise(const Guest& guest) {
  for (unsigned vcpu = 0; vcpu < guest.options().vcpus; ++vcpu) {
    for (const GuestMode mode : {GuestMode::Store, GuestMode::Load, GuestMode::Exec, GuestMode::Copy, GuestMode::Cr3,
                                 GuestMode::Cr4, GuestMode::Cr0, GuestMode::Lstar, GuestMode::Msr, GuestMode::Int3,
                                 GuestMode::Vmcall, GuestMode::Rom, GuestMode::Cpuid, GuestMode::User})
      guest.do_times(mode, 2, vcpu);
  }
  guest.hammer(20);
  guest.wait_hammered();
  for (unsigned vcpu = 0; vcpu < guest.options().vcpus; ++vcpu) to_idle(guest, vcpu);
}

std::vector<std::byte> ram_of(const Guest& guest) { return raw_memory(guest, Gpa{0}, kRamBytes); }

/// Pages whose bytes are not the same.
std::set<std::uint64_t> changed_pages(const std::vector<std::byte>& before, const std::vector<std::byte>& after) {
  std::set<std::uint64_t> pages;
  for (std::size_t at = 0; at < before.size(); at += kPageSize)
    if (std::memcmp(before.data() + at, after.data() + at, kPageSize) != 0) pages.insert(at);
  return pages;
}

/// Pages that the guest itself changes in every exercise: mailboxes, what it stores and counts, its stacks, its tables.
/// Its code, its read-only memory and all that it does not use are none of them.
bool is_guests_own(std::uint64_t page) {
  return (page >= 0x1000 && page < 0x4000) || (page >= 0x10000 && page < 0x18000) || page == 0x20000 ||
         page == 0x21000 || (page >= 0x40000 && page < 0x60000) || page == emulated::kRomPage.value;
}

std::set<std::uint64_t> foreign_changes(const std::vector<std::byte>& before, const std::vector<std::byte>& after) {
  std::set<std::uint64_t> pages = changed_pages(before, after);
  std::erase_if(pages, is_guests_own);
  return pages;
}

/// A guest under everything that one agent can hold.
struct Held {
  explicit Held(std::vector<std::string> emu = {})
      : scene(options(std::move(emu))), before(prepared(scene.guest)), rights_before(rights()) {
    const Gpa hammer = scene.hammer_gpa();
    places = {hammer.value, hammer.value + emulated::kHammerInsnBytes, kExecFunction, kRomPatch, kFarPatch};
    agent.emplace(scene.start_agent(
        "holder", {"--patch",   hex_of(places[0]) + ":cc",       "--patch",   hex_of(places[1]) + ":cc",
                   "--patch",   hex_of(places[2]) + ":cc909090", "--patch",   hex_of(places[3]) + ":cccccc",
                   "--patch",   hex_of(places[4]) + ":deadbeef", "--protect", "0x20000:1:r-x",
                   "--protect", "0x22000:4:r--",                 "--protect", "0x30000:8:---",
                   "--protect", "0x200000:512:r-x",              "--events",  "cr,msr,breakpoint,page_fault,hypercall",
                   "--cr",      "0,3,4",                         "--msr",     "0x176,0xc0000082",
                   "--filter",  "msr:allow:new == 0x1",          "--answer",  "none",
                   "--pause",   "1",                             "--stage"}));
    agent->wait_output(R"("kind":"pause")");
    scene.guest.set_mode(GuestMode::Cr4, 0);
    agent->wait_output(R"("kind":"cr")");  // owed, and never replied to
    REQUIRE(wait_until([&] { return lines_with(*agent, R"("type":"staged")") == 2; }));
    scene.guest.set_mode(GuestMode::Idle, 0);
    // It is all there.
    for (const std::uint64_t place : places)
      REQUIRE(raw_memory(scene.guest, Gpa{place}, 1) != byte_before(place));
    const std::vector<std::uint8_t> restricted = rights();
    for (std::size_t i = 0; i < restricted.size(); ++i) {
      const bool named = i == 0x20 || (i >= 0x22 && i < 0x26) || (i >= 0x30 && i < 0x38) || (i >= 0x200 && i < 0x400);
      INFO("page " << i);
      REQUIRE((restricted[i] != rights_before[i]) == named);
    }
    const Json shown = scene.guest_json();
    for (const auto& vcpu : shown.at("vcpu")) REQUIRE(vcpu.at("state") == "waiting");
  }

  static ManyOptions options(std::vector<std::string> emu) {
    return {.vcpus = kVcpus, .rule_overrides = Json::object(), .arguments = std::move(emu), .tapped = true};
  }
  static std::vector<std::byte> prepared(const Guest& guest) {
    exercise(guest);
    return ram_of(guest);
  }
  [[nodiscard]] std::vector<std::byte> byte_before(std::uint64_t place) const {
    return {before.at(place)};
  }

  /// Of all pages, as the hypervisor says.
  [[nodiscard]] std::vector<std::uint8_t> rights() const {
    return scene.tap->page_rights(Gpa{0}, static_cast<std::uint32_t>(kRamBytes / kPageSize));
  }

  [[nodiscard]] bool rights_are_as_before() const { return rights() == rights_before; }

  /// No byte of a patch is in RAM, and no page is changed but those that the guest changes itself.
  void check_memory() const {
    const std::vector<std::byte> after = ram_of(scene.guest);
    for (const std::uint64_t place : places) CHECK(after.at(place) == byte_before(place).front());
    CHECK(foreign_changes(before, after).empty());
    CHECK(std::memcmp(after.data() + kImage, before.data() + kImage, kRamBytes - kImage) == 0);
  }

  /// Both vCPUs run, with their own registers, and none of what they do is an event.
  void check_quiet() const {
    const std::uint64_t events = scene.counter("events");
    exercise(scene.guest);
    CHECK(scene.counter("events") == events);
    CHECK(rights_are_as_before());
    check_health();
  }
  void check_health() const {
    for (unsigned vcpu = 0; vcpu < kVcpus; ++vcpu) {
      const Mailbox box = scene.guest.mailbox(vcpu);
      CHECK(box.panic == 0);
      CHECK(box.hammer_hits == box.hammer_calls);
      CHECK(box.exec_result == emulated::kExecValue);
      CHECK(box.rom == kRomValue);
      CHECK(box.exceptions[3] == box.done[static_cast<std::size_t>(GuestMode::Int3)]);
    }
  }

  ManyScene scene;
  std::vector<std::byte> before;
  std::vector<std::uint8_t> rights_before;
  std::vector<std::uint64_t> places;
  std::optional<Process> agent;
};

}  // namespace

TEST_CASE("a guest that never had an agent changes no page but its own", "[integration][many]") {
  ManyScene scene({.vcpus = kVcpus});
  const auto before = Held::prepared(scene.guest);
  const std::uint64_t events = scene.counter("events");
  exercise(scene.guest);
  CHECK(foreign_changes(before, ram_of(scene.guest)).empty());
  CHECK(scene.counter("events") == events);
}

TEST_CASE("nothing is left of an agent that is killed, or closes", "[integration][many]") {
  Held held;
  SECTION("killed with -9") { held.agent->kill(); }
  SECTION("closes its connection") {
    held.agent->signal(SIGINT);
    held.agent->wait_output(R"("type":"left")");
  }
  held.scene.wait_agents(0);
  held.check_memory();
  held.check_quiet();
  held.check_memory();
  CHECK(held.scene.counter("agents_lost_owing") == 1);

  // As in a guest that never had it: the same code, byte for byte.
  Guest never(held.scene.folder, {.name = "never", .uuid = uuid_of(9), .vcpus = kVcpus, .arguments = {}});
  const auto clean = Held::prepared(never);
  const auto after = ram_of(held.scene.guest);
  CHECK(std::memcmp(after.data() + kImage, clean.data() + kImage, kRamBytes - kImage) == 0);
  std::set<std::uint64_t> different = foreign_changes(clean, after);
  CHECK(different.empty());
}

TEST_CASE("killed while vCPUs hit its patches, it leaves none of them and no trace in what they count",
          "[integration][many]") {
  ManyScene scene({.vcpus = kVcpus});
  const auto before = Held::prepared(scene.guest);
  const Gpa place = scene.hammer_gpa();
  for (int round = 0; round < 5; ++round) {
    Process agent = scene.start_agent("hitter", {"--patch", hex_of(place.value) + ":cc", "--patch",
                                                 hex_of(place.value + emulated::kHammerInsnBytes) + ":cc", "--events",
                                                 "breakpoint", "--answer", "step-over"});
    scene.guest.hammer(20000);
    REQUIRE(wait_until([&] { return lines_with(agent, R"("kind":"breakpoint")") > 50; }));
    agent.kill();
    scene.guest.wait_hammered();
    scene.wait_agents(0);
    CHECK(foreign_changes(before, ram_of(scene.guest)).empty());
  }
  for (unsigned vcpu = 0; vcpu < kVcpus; ++vcpu) {
    const Mailbox box = scene.guest.mailbox(vcpu);
    CHECK(box.hammer_hits == box.hammer_calls);
    CHECK(box.exceptions[3] == box.done[static_cast<std::size_t>(GuestMode::Int3)]);
    CHECK(box.panic == 0);
  }
  for (unsigned vcpu = 0; vcpu < kVcpus; ++vcpu) to_idle(scene.guest, vcpu);
  const std::uint64_t events = scene.counter("events");
  exercise(scene.guest);
  CHECK(scene.counter("events") == events);
}

TEST_CASE("rights that a reload takes away take patches and page rights with them, and the agent is told",
          "[integration][many]") {
  Held held;
  held.scene.reload_rule({{"commands", {"CONTROL_EVENTS", "CONTROL_CR", "CONTROL_MSR", "SET_FILTER", "PAUSE_VCPU"}},
                          {"events", {"hypercall"}}});
  const auto told = held.agent->wait_output(R"("notice":"revoked")");
  CHECK(told.find("policy changed") != std::string::npos);
  CHECK(wait_until([&] { return foreign_changes(held.before, ram_of(held.scene.guest)).empty(); }));
  held.check_memory();
  CHECK(wait_until([&] { return held.rights_are_as_before(); }));
  CHECK(lines_with(*held.agent, R"("type":"closed")") == 0);
  // It stays; what it still may is untouched. Once it is gone nothing is left at all.
  CHECK(held.scene.guest_json().at("agents") == 1);
  held.agent->kill();
  held.scene.wait_agents(0);
  held.check_quiet();
  held.check_memory();
}

TEST_CASE("before a guest is let go everything is taken out of it, and put back when it returns",
          "[integration][many]") {
  Held held({"--leave-reason", "migration", "--leave-ms", "1500"});
  held.scene.guest.process().signal(SIGUSR2);
  held.agent->wait_output(R"("reason":"migration")");
  // While it is held no byte of a patch is in its memory.
  CHECK(wait_until([&] { return held.scene.guest_json().at("state") == "away"; }));
  held.check_memory();

  held.agent->wait_output(R"("type":"guest_on")");
  CHECK(wait_until([&] {
    return raw_memory(held.scene.guest, Gpa{kFarPatch}, 4) == bytes_of_values({0xde, 0xad, 0xbe, 0xef}) &&
           raw_memory(held.scene.guest, Gpa{held.places[0]}, 1).front() == kInt3;
  }));
  CHECK_FALSE(held.rights_are_as_before());
  held.agent->kill();
  held.scene.wait_agents(0);
  held.check_memory();
  held.check_quiet();
  held.check_memory();
}

TEST_CASE("when kvmid is killed with -9 the hypervisor takes everything off", "[integration][many]") {
  Held held;
  held.scene.daemon.kill();
  held.agent->wait_output(R"("type":"closed")");
  CHECK(wait_until([&] { return foreign_changes(held.before, ram_of(held.scene.guest)).empty(); }));
  held.check_memory();
  exercise(held.scene.guest);  // nobody is there to answer an event
  held.check_health();
  held.check_memory();

  // And the next kvmid finds a guest that nobody has touched.
  held.scene.daemon.restart();
  held.scene.guest.wait_online();
  held.check_quiet();
  held.check_memory();
}

TEST_CASE("cookies of a kvmid that was killed are stale for the next one", "[integration][many]") {
  constexpr Gpa kPlace{0x600000};
  ManyScene scene;
  std::uint64_t old = 0;
  {
    AgentClient agent = scene.attach("before");
    old = check(agent.read_physical(kPlace, 8)).cookie;
    scene.daemon.kill();
  }
  scene.daemon.restart();
  scene.guest.wait_online();
  AgentClient agent = scene.attach("after");
  // As many changes as it takes for cookies that begin at 1 to come by; none does.
  const std::uint64_t first = check(agent.read_physical(kPlace, 8)).cookie;
  CHECK(first > old);
  CHECK(first < std::uint64_t{1} << 53U);  // exact where JSON numbers are doubles
  for (unsigned value = 1; value < 20; ++value) {
    std::uint64_t cookie = old;
    const auto stale = agent.write_if_unchanged(kPlace, bytes_of_values({value}), cookie);
    REQUIRE_FALSE(stale);
    CHECK(stale.error().code == ErrorCode::Stale);
    check(agent.write_if_unchanged(kPlace, bytes_of_values({value}), cookie));
  }
}

}  // namespace kvmid::test
