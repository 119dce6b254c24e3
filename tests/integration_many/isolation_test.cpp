// SPDX-License-Identifier: GPL-2.0-or-later
//
// What agents see of each other's patches and page rights: nothing, but that a place is taken.

#include <catch2/catch.hpp>
#include <map>

#include "tests/integration_many/many_scene.h"

namespace kvmid::test {
namespace {

constexpr Gpa kUnused{0x600000};  // RAM that the guest never touches
constexpr std::uint8_t kRo = KVMI_PAGE_ACCESS_R;
constexpr std::uint8_t kRx = KVMI_PAGE_ACCESS_R | KVMI_PAGE_ACCESS_X;
constexpr std::uint8_t kAll = KVMI_PAGE_ACCESS_R | KVMI_PAGE_ACCESS_W | KVMI_PAGE_ACCESS_X;

template <class T>
void check_refused(const Result<T, client::ClientError>& result, ErrorCode code) {
  REQUIRE_FALSE(result);
  CHECK(result.error().code == code);
  CHECK_FALSE(result.error().text.empty());
}

struct TwoAgents {
  TwoAgents() : first(scene.attach("first")), second(scene.attach("second")) {
    check(first.subscribe(events_of({EventKind::Breakpoint, EventKind::PageFault}), Role::Decider));
    check(second.subscribe(events_of({EventKind::Breakpoint, EventKind::PageFault}), Role::Decider));
  }
  /// Serves both until the condition holds, allowing everything; who got how many of which kind.
  void serve_until(const std::function<bool()>& until) {
    serve({&first, &second},
          [&](AgentClient& agent, const client::ReceivedEvent& event) {
            ++got[{&agent == &first ? 1 : 2, event.event.kind()}];
            check(agent.reply(event, Action::Allow));
          },
          until);
  }
  void hammer(std::uint64_t calls) {
    scene.guest.hammer(calls);
    serve_until([&] { return scene.guest.hammered(); });
  }
  void do_times(GuestMode mode, std::uint64_t times) {
    const std::uint64_t target = scene.guest.done(mode) + times;
    scene.guest.set_mode(mode);
    serve_until([&] { return scene.guest.done(mode) >= target; });
    scene.guest.set_mode(GuestMode::Idle);
    const std::uint64_t rounds = scene.guest.rounds() + 2;
    serve_until([&] { return scene.guest.rounds() >= rounds; });
  }
  [[nodiscard]] unsigned count(int agent, EventKind kind) { return got[{agent, kind}]; }

  ManyScene scene;
  AgentClient first;
  AgentClient second;
  std::map<std::pair<int, EventKind>, unsigned> got;
};

}  // namespace

TEST_CASE("reads show the guest's own bytes under a patch, to everybody", "[integration][many]") {
  TwoAgents agents;
  const auto own = raw_memory(agents.scene.guest, kUnused, 16);
  check(patch(agents.first, Gpa{kUnused.value + 4}, bytes_of_values({1, 2, 3, 4})));
  CHECK(raw_memory(agents.scene.guest, Gpa{kUnused.value + 4}, 4) == bytes_of_values({1, 2, 3, 4}));
  CHECK(seen_memory(agents.first, kUnused, 16) == own);
  CHECK(seen_memory(agents.second, kUnused, 16) == own);
  // Also where a read begins or ends within it, or has several ranges.
  CHECK(seen_memory(agents.second, Gpa{kUnused.value + 6}, 1) == bytes_of_values({0}));
  const std::vector<kvmi_read_range> ranges{{kUnused.value + 7, 2, 0}, {kUnused.value, 5, 0}};
  CHECK(check(agents.second.read_ranges(ranges)).data == std::vector<std::byte>(7));
}

TEST_CASE("a write under another agent's patch changes the guest's own bytes and leaves the patch",
          "[integration][many]") {
  TwoAgents agents;
  const Gpa place{kUnused.value + 4};
  check(patch(agents.first, place, bytes_of_values({0xcc, 0xcd})));
  check(agents.second.write_physical(kUnused, bytes_of_values({1, 2, 3, 4, 5, 6, 7, 8})));
  CHECK(raw_memory(agents.scene.guest, kUnused, 8) == bytes_of_values({1, 2, 3, 4, 0xcc, 0xcd, 7, 8}));
  CHECK(seen_memory(agents.first, kUnused, 8) == bytes_of_values({1, 2, 3, 4, 5, 6, 7, 8}));
  CHECK(seen_memory(agents.second, kUnused, 8) == bytes_of_values({1, 2, 3, 4, 5, 6, 7, 8}));
  SECTION("given back") { check(unpatch(agents.first, place, 2)); }
  SECTION("its agent gone") {
    agents.first.close();
    agents.scene.wait_agents(1);
  }
  CHECK(raw_memory(agents.scene.guest, kUnused, 8) == bytes_of_values({1, 2, 3, 4, 5, 6, 7, 8}));
}

TEST_CASE("a place that is taken is EBUSY for other bytes, another size and whatever overlaps", "[integration][many]") {
  TwoAgents agents;
  check(patch(agents.first, Gpa{kUnused.value + 4}, bytes_of_values({0xcc, 0x90})));
  const auto at = [](unsigned offset) { return Gpa{kUnused.value + offset}; };
  check_refused(patch(agents.second, at(4), bytes_of_values({0xcc, 0x91})), ErrorCode::Busy);
  check_refused(patch(agents.second, at(4), bytes_of_values({0xcc})), ErrorCode::Busy);
  check_refused(patch(agents.second, at(4), bytes_of_values({0xcc, 0x90, 0x90})), ErrorCode::Busy);
  check_refused(patch(agents.second, at(5), bytes_of_values({0x90})), ErrorCode::Busy);
  check_refused(patch(agents.second, at(3), bytes_of_values({0xcc, 0xcc})), ErrorCode::Busy);
  check_refused(patch(agents.second, at(0), std::vector<std::byte>(8)), ErrorCode::Busy);
  check_refused(unpatch(agents.second, at(4), 2), ErrorCode::NoEntry);
  CHECK(raw_memory(agents.scene.guest, kUnused, 8) == bytes_of_values({0, 0, 0, 0, 0xcc, 0x90, 0, 0}));
  // Beside it there is room, and it is free when its owner has given it back.
  check(patch(agents.second, at(3), bytes_of_values({0xcc})));
  check(patch(agents.second, at(6), bytes_of_values({0xcc})));
  check(unpatch(agents.first, at(4), 2));
  check(patch(agents.second, at(4), bytes_of_values({0xaa})));
  CHECK(raw_memory(agents.scene.guest, kUnused, 8) == bytes_of_values({0, 0, 0, 0xcc, 0xaa, 0, 0xcc, 0}));
  // Its only owner may change it.
  check(patch(agents.second, at(4), bytes_of_values({0xab})));
  CHECK(raw_memory(agents.scene.guest, at(4), 1) == bytes_of_values({0xab}));
  check(patch(agents.first, at(4), bytes_of_values({0xab})));
  check_refused(patch(agents.second, at(4), bytes_of_values({0xac})), ErrorCode::Busy);
}

TEST_CASE("the same bytes are shared, and outlive their first owner", "[integration][many]") {
  TwoAgents agents;
  const Gpa place = agents.scene.hammer_gpa();
  const auto own = raw_memory(agents.scene.guest, place, 1);
  char text[40];
  std::snprintf(text, sizeof text, "0x%llx:cc", static_cast<unsigned long long>(place.value));
  Process owner = agents.scene.start_agent("owner", {"--patch", text, "--events", "breakpoint"});
  check(patch(agents.second, place, bytes_of_values({0xcc})));
  agents.hammer(5);
  CHECK(wait_until([&] { return lines_with(owner, R"("type":"event")") == 5; }));

  owner.kill();
  agents.scene.wait_agents(2);
  CHECK(raw_memory(agents.scene.guest, place, 1).front() == kInt3);
  agents.hammer(5);
  CHECK(agents.count(1, EventKind::Breakpoint) == 0);
  CHECK(agents.count(2, EventKind::Breakpoint) == 10);
  CHECK(agents.scene.guest.mailbox().hammer_hits == 10);

  check(unpatch(agents.second, place, 1));
  CHECK(raw_memory(agents.scene.guest, place, 1) == own);
  agents.hammer(5);
  CHECK(agents.count(2, EventKind::Breakpoint) == 10);
  CHECK(agents.scene.guest.mailbox().hammer_hits == 15);
}

TEST_CASE("hits of a patch are its owner's alone; the guest's own INT3 is everybody's, and then the guest's",
          "[integration][many]") {
  TwoAgents agents;
  const Gpa place = agents.scene.hammer_gpa();
  check(patch(agents.first, place, bytes_of_values({0xcc})));
  const auto exceptions = agents.scene.guest.mailbox().exceptions[3];
  agents.hammer(10);
  CHECK(agents.count(1, EventKind::Breakpoint) == 10);
  CHECK(agents.count(2, EventKind::Breakpoint) == 0);
  CHECK(agents.scene.guest.mailbox().exceptions[3] == exceptions);

  const auto own = agents.scene.guest.done(GuestMode::Int3);
  agents.do_times(GuestMode::Int3, 3);
  const auto done = agents.scene.guest.done(GuestMode::Int3) - own;
  CHECK(agents.count(1, EventKind::Breakpoint) == 10 + done);
  CHECK(agents.count(2, EventKind::Breakpoint) == done);
  CHECK(agents.scene.guest.mailbox().exceptions[3] == exceptions + done);
}

TEST_CASE("the guest's own INT3 is given back to it where only patches have breakpoints watched",
          "[integration][many]") {
  ManyScene scene;
  AgentClient owner = scene.attach("owner");
  check(patch(owner, scene.hammer_gpa(), bytes_of_values({0xcc})));
  const Mailbox before = scene.guest.mailbox();
  const std::uint64_t events = scene.counter("events");
  scene.guest.do_times(GuestMode::Int3, 5);
  to_idle(scene.guest);
  const Mailbox after = scene.guest.mailbox();
  const auto done = scene.guest.done(GuestMode::Int3) - before.done.at(static_cast<std::size_t>(GuestMode::Int3));
  CHECK(after.exceptions[3] - before.exceptions[3] == done);
  CHECK(scene.counter("events") >= events + done);  // they did come to kvmid
  CHECK(scene.counter("stepped_over") == 0);
}

TEST_CASE("page rights are each agent's own view, and their faults come to who forbids", "[integration][many]") {
  TwoAgents agents;
  check(agents.first.set_page_access(Gpa{0x20000}, 1, kRx));
  check(agents.first.set_page_access(Gpa{0x22000}, 3, kRo));
  check(agents.second.set_page_access(Gpa{0x23000}, 4, kRx));
  const auto rights = [](AgentClient& agent) {
    std::vector<unsigned> all;
    for (const auto& entry : check(agent.get_page_access(Gpa{0x20000}, 8)))
      for (std::uint32_t i = 0; i < entry.pages; ++i) all.push_back(entry.access);
    return all;
  };
  CHECK(rights(agents.first) == std::vector<unsigned>{kRx, kAll, kRo, kRo, kRo, kAll, kAll, kAll});
  CHECK(rights(agents.second) == std::vector<unsigned>{kAll, kAll, kAll, kRx, kRx, kRx, kRx, kAll});

  agents.do_times(GuestMode::Store, 3);
  CHECK(agents.count(1, EventKind::PageFault) >= 3);
  CHECK(agents.count(2, EventKind::PageFault) == 0);

  // Both forbid it: both are told.
  agents.got.clear();
  check(agents.second.set_page_access(Gpa{0x20000}, 1, kRo));
  agents.do_times(GuestMode::Store, 3);
  CHECK(agents.count(1, EventKind::PageFault) >= 3);
  CHECK(agents.count(2, EventKind::PageFault) == agents.count(1, EventKind::PageFault));

  // One gives it back: the other's right still holds.
  agents.got.clear();
  check(agents.first.set_page_access(Gpa{0x20000}, 1, kAll));
  agents.do_times(GuestMode::Store, 3);
  CHECK(agents.count(1, EventKind::PageFault) == 0);
  CHECK(agents.count(2, EventKind::PageFault) >= 3);
  agents.second.close();
  agents.scene.wait_agents(1);
  const std::uint64_t events = agents.scene.counter("events");
  agents.scene.guest.do_times(GuestMode::Store, 3);
  CHECK(agents.scene.counter("events") == events);
}

}  // namespace kvmid::test
