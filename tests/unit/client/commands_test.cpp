// SPDX-License-Identifier: GPL-2.0-or-later

#include <array>
#include <map>

#include "scripted_peer.h"

using namespace kvmid;
using namespace kvmid::client;
using namespace kvmid::client::test;

TEST_CASE("a list of guests longer than a message is read page by page", "[client]") {
  ScriptedPeer peer;
  auto client = peer.client();
  std::vector<kvmi_guest_entry> all(5);
  for (std::size_t i = 0; i < all.size(); ++i) {
    copy_text("guest" + std::to_string(i), all[i].name, sizeof all[i].name);
    all[i].state = i == 4 ? KVMI_GUEST_AWAY : KVMI_GUEST_ONLINE;
  }
  peer.serve([&](const Command& command) {
    const auto first = std::get<GetGuests>(command).first;
    const auto page =
        std::span<const kvmi_guest_entry>(all).subspan(first, std::min<std::size_t>(2, all.size() - first));
    return ok(KVMI_MSG_GET_GUESTS, GetGuestsReply{5, page});
  });
  const auto guests = client.list_guests();
  REQUIRE(guests);
  REQUIRE(guests->size() == 5);
  CHECK((*guests)[3].name == "guest3");
  CHECK((*guests)[4].away);
}

TEST_CASE("a list that shrinks while it is read ends", "[client]") {
  ScriptedPeer peer;
  auto client = peer.client();
  const kvmi_guest_entry entry{};
  peer.serve([&](const Command& command) {
    if (std::get<GetGuests>(command).first > 0) return ok(KVMI_MSG_GET_GUESTS, GetGuestsReply{5, {}});
    return ok(KVMI_MSG_GET_GUESTS, GetGuestsReply{5, std::span(&entry, 1)});
  });
  const auto guests = client.list_guests();
  REQUIRE(guests);
  CHECK(guests->size() == 1);
}

TEST_CASE("a large read is cut into messages and put together", "[client]") {
  ScriptedPeer peer;
  auto client = peer.client();
  std::vector<std::byte> memory(300'001);
  for (std::size_t i = 0; i < memory.size(); ++i) memory[i] = static_cast<std::byte>(i * 7 / 3);
  std::atomic<int> messages = 0;
  peer.serve([&](const Command& command) {
    const auto range = std::get<ReadPhysical>(command).ranges[0];
    ++messages;
    return ok(KVMI_MSG_READ_PHYSICAL,
              ReadPhysicalReply{static_cast<std::uint64_t>(messages.load()) + 40,
                                Bytes(memory).subspan(static_cast<std::size_t>(range.gpa - 0x1000), range.size)});
  });
  const auto read = client.read_physical(Gpa{0x1000}, memory.size());
  REQUIRE(read);
  CHECK(read->data == memory);
  CHECK(read->cookie == 41);
  CHECK(messages == 5);
  CHECK(client.open_requests() == 0);
}

TEST_CASE("a read that fails half way is that failure, and nothing stays open", "[client]") {
  ScriptedPeer peer;
  auto client = peer.client();
  const std::vector<std::byte> zeros(60U * 1024U);
  peer.serve([&](const Command& command) -> CommandReply {
    if (std::holds_alternative<GetVersion>(command)) return ok(KVMI_MSG_GET_VERSION, GetVersionReply{});
    const auto range = std::get<ReadPhysical>(command).ranges[0];
    if (range.gpa >= 100'000) return {KVMI_MSG_READ_PHYSICAL, ErrorCode::Fault, "past the end of RAM", {}};
    return ok(KVMI_MSG_READ_PHYSICAL, ReadPhysicalReply{1, Bytes(zeros).first(range.size)});
  });
  const auto read = client.read_physical(Gpa{0}, 1'000'000);
  REQUIRE_FALSE(read);
  CHECK(read.error().kind == ClientErrc::Failed);
  CHECK(read.error().code == ErrorCode::Fault);
  CHECK(read.error().text == "READ_PHYSICAL failed: EFAULT (past the end of RAM)");
  REQUIRE(client.get_version());  // the forgotten replies came before this one
  CHECK(client.open_requests() == 0);
}

TEST_CASE("a read past the end of the address space is refused here", "[client]") {
  ScriptedPeer peer;
  auto client = peer.client();
  CHECK(client.read_physical(Gpa{~std::uint64_t{0}}, 2).error().kind == ClientErrc::BadArgument);
}

TEST_CASE("a reply with other bytes than were asked for is a protocol error", "[client]") {
  ScriptedPeer peer;
  auto client = peer.client();
  const std::vector<std::byte> three(3);
  peer.serve([&](const Command&) { return ok(KVMI_MSG_READ_PHYSICAL, ReadPhysicalReply{1, three}); });
  CHECK(client.read_physical(Gpa{0}, 4).error().kind == ClientErrc::Protocol);
}

TEST_CASE("a stale write tells the current cookie", "[client]") {
  ScriptedPeer peer;
  auto client = peer.client();
  peer.serve([&](const Command& command) -> CommandReply {
    const auto& write = std::get<WritePhysical>(command);
    if ((write.flags & KVMI_WRITE_COOKIE) != 0 && write.cookie < 9) {
      return {KVMI_MSG_WRITE_PHYSICAL, ErrorCode::Stale, "the page changed", WritePhysicalReply{9}};
    }
    return ok(KVMI_MSG_WRITE_PHYSICAL, WritePhysicalReply{10});
  });
  const std::vector<std::byte> data(4);
  WriteOptions options;
  options.cookie = 5;
  options.expected = data;
  std::uint64_t current = 0;
  const auto stale = client.write_physical(Gpa{0x1000}, data, options, &current);
  REQUIRE_FALSE(stale);
  CHECK(stale.error().code == ErrorCode::Stale);
  CHECK(current == 9);
  options.cookie = current;
  const auto written = client.write_physical(Gpa{0x1000}, data, options);
  REQUIRE(written);
  CHECK(*written == 10);
}

TEST_CASE("what changed since the cookie is not written over, and the current cookie is told", "[client]") {
  ScriptedPeer peer;
  auto client = peer.client();
  std::atomic<int> conditional = 0;
  peer.serve([&](const Command& command) -> CommandReply {
    const auto& write = std::get<WritePhysical>(command);
    if (write.flags == KVMI_WRITE_COOKIE) ++conditional;
    if (write.gpa.value == 0x2000) return {KVMI_MSG_WRITE_PHYSICAL, ErrorCode::NotPermitted, "policy", {}};
    if (write.cookie < 9) return {KVMI_MSG_WRITE_PHYSICAL, ErrorCode::Stale, "the page changed", WritePhysicalReply{9}};
    return ok(KVMI_MSG_WRITE_PHYSICAL, WritePhysicalReply{10});
  });
  const std::vector<std::byte> data(4);
  std::uint64_t cookie = 5;
  CHECK(client.write_if_unchanged(Gpa{0x1000}, data, cookie).error().code == ErrorCode::Stale);
  CHECK(cookie == 9);
  CHECK(client.write_if_unchanged(Gpa{0x1000}, data, cookie));
  CHECK(cookie == 10);
  CHECK(client.write_if_unchanged(Gpa{0x2000}, data, cookie).error().code == ErrorCode::NotPermitted);
  CHECK(cookie == 10);
  CHECK(conditional == 3);
  cookie = 0;
  CHECK(client.write_if_unchanged(Gpa{0x1000}, data, cookie).error().kind == ClientErrc::BadArgument);
  CHECK(conditional == 3);  // nothing was sent
}

TEST_CASE("every command reaches the peer as what it is", "[client]") {
  ScriptedPeer peer;
  auto client = peer.client();
  std::map<std::uint16_t, int> seen;
  kvmi_x86_msr msr{0xc0000082, 0, 0x1234};
  const kvmi_page_access_entry page{0x1000, 1, KVMI_PAGE_ACCESS_R, {}};
  const std::vector<std::byte> area(576, std::byte{1});
  const std::array<kvmi_memory_slot, 2> slots{
      {{0, 0xa0000, KVMI_ADDRESS_SPACE_SMM, 0, 0},
       {0xc0000, 0x40000, KVMI_ADDRESS_SPACE_SMM, KVMI_SLOT_READ_ONLY, 0}}};
  AddressSpace asked_space{};
  peer.serve([&](const Command& command) {
    const auto id = static_cast<std::uint16_t>(id_of(command));
    ++seen[id];
    const auto body = std::visit(
        Overloaded{
            [](const GetVersion&) -> ReplyBody { return GetVersionReply{}; },
            [](const GetGuestInfo&) -> ReplyBody { return GetGuestInfoReply{2, 0, 0, 48, 48, false, 1U << 20U}; },
            [&](const GetRegisters&) -> ReplyBody {
              return GetRegistersReply{8, {}, {}, std::span<const kvmi_x86_msr>(&msr, 1)};
            },
            [](const GetCpuid&) -> ReplyBody {
              return GetCpuidReply{1, 2, 3, 4};
            },
            [&](const GetPageAccess&) -> ReplyBody { return GetPageAccessReply{std::span(&page, 1)}; },
            [](const ControlEvents& c) -> ReplyBody { return ControlEventsReply{c.events}; },
            [](const TranslateGva&) -> ReplyBody {
              return TranslateGvaReply{Gpa{0x5000}, 4096, 3, true};
            },
            [&](const GetXsave&) -> ReplyBody { return GetXsaveReply{area}; },
            [](const GetXcr&) -> ReplyBody { return GetXcrReply{7}; },
            [&](const GetMemoryMap& c) -> ReplyBody {
              asked_space = c.space;
              return GetMemoryMapReply{std::span<const kvmi_memory_slot>(slots)};
            },
            [](const auto&) -> ReplyBody { return std::monostate{}; },
        },
        command);
    return ok(id, body);
  });
  const std::uint32_t lstar = 0xc0000082;
  CHECK(client.get_version());
  CHECK(client.guest_info()->max_gpa == 1U << 20U);
  CHECK(client.pause_vcpu(kAllVcpus));
  CHECK(client.get_registers(VcpuId{0}, std::span(&lstar, 1))->msrs.at(0).value == 0x1234);
  CHECK(client.set_registers(VcpuId{0}, {}));
  CHECK(client.shutdown_guest());
  CHECK(client.get_cpuid(VcpuId{0}, 1)->ecx == 3);
  CHECK(client.get_page_access(Gpa{0x1000}, 1)->at(0).access == KVMI_PAGE_ACCESS_R);
  CHECK(client.set_page_access(Gpa{0x1000}, 1, KVMI_PAGE_ACCESS_R));
  CHECK(client.inject_exception({VcpuId{0}, 3, false, 0, 0}));
  CHECK(client.subscribe(EventSet{KVMI_EVENT_BIT(KVMI_EVENT_CR)}, Role::Decider)->has(EventKind::Cr));
  CHECK(client.control_cr(kAllVcpus, 4, true));
  CHECK(client.control_msr(kAllVcpus, lstar, true));
  CHECK(client.translate_gva(VcpuId{0}, Gva{0xffff800000000000})->gpa.value == 0x5000);
  CHECK(client.control_singlestep(VcpuId{0}, true));
  CHECK(client.set_filter(kAllVcpus, EventKind::Cr, Action::Allow, {}));
  CHECK(client.get_xsave(VcpuId{0})->size() == 576);
  CHECK(client.set_xsave(VcpuId{0}, area));
  CHECK(*client.get_xcr(VcpuId{0}) == 7);
  const auto map = client.get_memory_map(AddressSpace::Smm);
  REQUIRE(map);
  CHECK(asked_space == AddressSpace::Smm);
  REQUIRE(map->size() == 2);
  CHECK(map->at(0).bytes == 0xa0000);
  CHECK(map->at(1).gpa == 0xc0000);
  CHECK(map->at(1).flags == KVMI_SLOT_READ_ONLY);
  CHECK(client.open_requests() == 0);
  client.close();
  CHECK(seen.size() == 20);
}
