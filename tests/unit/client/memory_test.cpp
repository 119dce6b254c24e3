// SPDX-License-Identifier: GPL-2.0-or-later
//
// Reads that take more than one message: scattered ranges and guest virtual addresses.

#include <array>
#include <memory>
#include <mutex>

#include "client/kvmid.h"
#include "tests/unit/client/scripted_peer.h"

namespace kvmid::client::test {
namespace {

std::byte byte_at(std::uint64_t gpa) { return static_cast<std::byte>(gpa * 7 + (gpa >> 12)); }

/// A guest whose byte at a GPA follows from the GPA, and whose page n of virtual memory is page 1000 - n.
class Guest {
 public:
  CommandReply operator()(const Command& command) {
    const std::lock_guard lock(mutex);
    if (std::holds_alternative<GetVersion>(command)) return ok(KVMI_MSG_GET_VERSION, GetVersionReply{});
    if (const auto* translate = std::get_if<TranslateGva>(&command)) {
      ++translations;
      CHECK(translate->vcpu == VcpuId{1});
      const std::uint64_t page = translate->gva.value / kPageSize;
      if (translate->gva.value >> 47 != 0 && translate->gva.value >> 47 != 0x1ffff)
        return {KVMI_MSG_TRANSLATE_GVA, ErrorCode::Fault, "the address is not canonical", {}};
      if (page >= 1000) return {KVMI_MSG_TRANSLATE_GVA, ErrorCode::Fault, "an entry on the way is not present", {}};
      return ok(
          KVMI_MSG_TRANSLATE_GVA,
          TranslateGvaReply{Gpa{(1000 - page) * kPageSize + translate->gva.value % kPageSize}, kPageSize, 7, true});
    }
    const auto& read = std::get<ReadPhysical>(command);
    messages.push_back(read.ranges.size());
    data.clear();
    for (std::size_t i = 0; i < read.ranges.size(); ++i) {
      const auto range = read.ranges[i];
      if (range.gpa >= end) return {KVMI_MSG_READ_PHYSICAL, ErrorCode::Fault, "past the end of RAM", {}};
      for (std::uint64_t at = range.gpa; at < range.gpa + range.size; ++at) data.push_back(byte_at(at));
    }
    CHECK(data.size() <= KVMI_MAX_PAYLOAD - 16);
    return ok(KVMI_MSG_READ_PHYSICAL, ReadPhysicalReply{40 + messages.size(), data});
  }

  std::mutex mutex;
  std::vector<std::size_t> messages;  ///< ranges of each READ_PHYSICAL
  std::size_t translations = 0;
  std::vector<std::byte> data;
  std::uint64_t end = ~std::uint64_t{0};
};

struct Served {
  Guest guest;
  ScriptedPeer peer;
  AgentClient client = peer.client();
  Served() {
    peer.serve([this](const Command& command) { return guest(command); });
  }
};

bool holds(std::span<const std::byte> bytes, std::uint64_t gpa) {
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    if (bytes[i] != byte_at(gpa + i)) return false;
  }
  return true;
}

}  // namespace

TEST_CASE("scattered ranges are one message where they fit, and their bytes find their places", "[client]") {
  Served served;
  std::array<std::byte, 3> first{};
  std::array<std::byte, 4096> second{};
  const std::array<PhysicalRange, 3> ranges{{{Gpa{0x1001}, first}, {Gpa{0x9000}, {}}, {Gpa{0x5000}, second}}};
  const auto cookie = served.client.read_scatter(ranges);
  REQUIRE(cookie);
  CHECK(*cookie == 41);
  CHECK(served.guest.messages == std::vector<std::size_t>{2});
  CHECK(holds(first, 0x1001));
  CHECK(holds(second, 0x5000));
}

TEST_CASE("ranges that are larger than messages are cut, and the oldest cookie counts", "[client]") {
  Served served;
  std::vector<std::byte> large(1'000'000), small(10);
  const std::array<PhysicalRange, 2> ranges{{{Gpa{0x123}, large}, {Gpa{0x7000'0000}, small}}};
  const auto cookie = served.client.read_scatter(ranges);
  REQUIRE(cookie);
  CHECK(*cookie == 41);
  CHECK(served.guest.messages.size() == (1'000'010 + 65511) / 65512);
  CHECK(served.guest.messages.back() == 2);
  CHECK(holds(large, 0x123));
  CHECK(holds(small, 0x7000'0000));
  CHECK(served.client.open_requests() == 0);
}

TEST_CASE("more ranges than a message has room for go in several", "[client]") {
  Served served;
  std::vector<std::byte> bytes(10'000);
  std::vector<PhysicalRange> ranges;
  for (std::size_t i = 0; i < bytes.size(); ++i) ranges.push_back({Gpa{i * 0x1000}, std::span(bytes).subspan(i, 1)});
  REQUIRE(served.client.read_scatter(ranges));
  CHECK(served.guest.messages.size() == 3);
  for (std::size_t i = 0; i < bytes.size(); ++i) REQUIRE(bytes[i] == byte_at(i * 0x1000));
}

TEST_CASE("nothing to read is no message", "[client]") {
  Served served;
  const auto cookie = served.client.read_scatter({});
  REQUIRE(cookie);
  CHECK(*cookie == 0);
  REQUIRE(served.client.read_virtual(VcpuId{1}, Gva{0x1000}, {}));
  CHECK(served.guest.messages.empty());
  CHECK(served.guest.translations == 0);
}

TEST_CASE("no more commands are open than kvmid lets one agent have", "[client]") {
  ScriptedPeer peer;
  auto client = peer.client();  // 16 commands
  std::vector<std::byte> bytes(40 * kPageSize);
  std::size_t most = 0;
  std::thread reader([&] {
    // Answers only when no further command is there to be read: what is open then is what the client dared.
    std::deque<Seq> open;
    std::size_t answered = 0;
    while (answered < 40) {
      const auto heard = peer.heard();
      open.push_back(heard.seq);
      most = std::max(most, open.size());
      if (open.size() < std::min<std::size_t>(16, 40 - answered) && !(answered >= 16)) continue;
      while (!open.empty()) {
        peer.say(ok(KVMI_MSG_TRANSLATE_GVA, TranslateGvaReply{Gpa{0x1000 * answered}, kPageSize, 7, true}),
                 open.front());
        open.pop_front();
        ++answered;
      }
    }
    for (std::size_t left = bytes.size(); left > 0;) {
      const auto heard = peer.heard();
      std::size_t size = 0;
      for (std::size_t i = 0; i < heard.as<ReadPhysical>().ranges.size(); ++i)
        size += heard.as<ReadPhysical>().ranges[i].size;
      const std::vector<std::byte> zeros(size);
      peer.say(ok(KVMI_MSG_READ_PHYSICAL, ReadPhysicalReply{1, zeros}), heard.seq);
      left -= size;
    }
  });
  const auto read = client.read_virtual(VcpuId{1}, Gva{0}, bytes);
  reader.join();
  REQUIRE(read);
  CHECK(most == 16);
}

TEST_CASE("virtual memory is translated page by page, and read by few messages", "[client]") {
  Served served;
  std::vector<std::byte> bytes(3 * kPageSize);
  const std::uint64_t gva = 0x10'0800;
  const auto cookie = served.client.read_virtual(VcpuId{1}, Gva{gva}, bytes);
  REQUIRE(cookie);
  CHECK(*cookie == 41);
  CHECK(served.guest.translations == 4);
  CHECK(served.guest.messages == std::vector<std::size_t>{4});
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    const std::uint64_t at = gva + i;
    REQUIRE(bytes[i] == byte_at((1000 - at / kPageSize) * kPageSize + at % kPageSize));
  }
}

TEST_CASE("several virtual ranges are one round", "[client]") {
  Served served;
  std::array<std::byte, 16> a{}, b{};
  const std::array<VirtualRange, 2> ranges{{{Gva{0x2ff8}, a}, {Gva{0x5000}, b}}};
  REQUIRE(served.client.read_virtual(VcpuId{1}, ranges));
  CHECK(served.guest.translations == 3);
  CHECK(served.guest.messages.size() == 1);
  CHECK(holds(std::span(a).first(8), 998 * kPageSize + 0xff8));
  CHECK(holds(std::span(a).last(8), 997 * kPageSize));
  CHECK(holds(b, 995 * kPageSize));
}

TEST_CASE("an address that is not mapped is named, and nothing stays open", "[client]") {
  Served served;
  std::vector<std::byte> bytes(100 * kPageSize);
  const auto read = served.client.read_virtual(VcpuId{1}, Gva{990 * kPageSize + 5}, bytes);
  REQUIRE_FALSE(read);
  CHECK(read.error().kind == ClientErrc::Failed);
  CHECK(read.error().code == ErrorCode::Fault);
  CHECK(read.error().text ==
        "GVA 0x3e8000 of vCPU 1 cannot be read: TRANSLATE_GVA failed: EFAULT (an entry on the way is "
        "not present)");
  CHECK(served.guest.messages.empty());
  REQUIRE(served.client.get_version());
  CHECK(served.client.open_requests() == 0);

  const auto odd = served.client.read_virtual(VcpuId{1}, Gva{0x8000'0000'0000}, std::span(bytes).first(1));
  REQUIRE_FALSE(odd);
  CHECK(odd.error().text.find("GVA 0x800000000000 ") == 0);
  CHECK(odd.error().text.find("not canonical") != std::string::npos);
}

TEST_CASE("what is mapped and no memory is the error of the read", "[client]") {
  Served served;
  served.guest.end = 900 * kPageSize;
  std::array<std::byte, 8> bytes{};
  const auto read = served.client.read_virtual(VcpuId{1}, Gva{0x1000}, bytes);
  REQUIRE_FALSE(read);
  CHECK(read.error().text == "READ_PHYSICAL failed: EFAULT (past the end of RAM)");
}

TEST_CASE("ranges past the end of the address space, or too large, are refused here", "[client]") {
  Served served;
  std::array<std::byte, 2> two{};
  CHECK(served.client.read_virtual(VcpuId{1}, Gva{~std::uint64_t{0}}, two).error().kind == ClientErrc::BadArgument);
  const PhysicalRange wraps{Gpa{~std::uint64_t{0}}, two};
  CHECK(served.client.read_scatter(std::span(&wraps, 1)).error().kind == ClientErrc::BadArgument);
  // Never touched: only its size is looked at.
  const std::span<std::byte> huge(two.data(), AgentClient::kVirtualBytesMax + 1);
  CHECK(served.client.read_virtual(VcpuId{1}, Gva{0}, huge).error().kind == ClientErrc::BadArgument);
  CHECK(served.guest.translations == 0);
}

TEST_CASE("a translation or a read of another shape is a protocol error", "[client]") {
  ScriptedPeer peer;
  auto client = peer.client();
  const std::vector<std::byte> three(3);
  peer.serve([&](const Command&) { return ok(KVMI_MSG_READ_PHYSICAL, ReadPhysicalReply{1, three}); });
  std::array<std::byte, 4> bytes{};
  const PhysicalRange range{Gpa{0}, bytes};
  CHECK(client.read_scatter(std::span(&range, 1)).error().kind == ClientErrc::Protocol);
}

TEST_CASE("C: scattered and virtual reads fill one buffer", "[client][c]") {
  Guest guest;
  ScriptedPeer peer;
  peer.say_bytes(ScriptedPeer::encoded(good_welcome()));
  kvmid_agent* raw = nullptr;
  REQUIRE(kvmid_adopt(nullptr, peer.take_client_end().release(), kGuest.bytes.data(), &raw) == 0);
  const std::unique_ptr<kvmid_agent, decltype(&kvmid_close)> agent(raw, kvmid_close);
  kvmi_hello hello{};
  peer.skip(&hello, sizeof hello);
  peer.serve([&](const Command& command) { return guest(command); });

  std::array<std::byte, 24> bytes{};
  std::uint64_t cookie = 0;
  const std::array<kvmi_read_range, 2> ranges{{{0x100, 8, 0}, {0x9000, 16, 0}}};
  REQUIRE(kvmid_read_scatter(agent.get(), 0, ranges.data(), 2, bytes.data(), bytes.size(), &cookie) == 0);
  CHECK(cookie == 41);
  CHECK(holds(std::span(bytes).first(8), 0x100));
  CHECK(holds(std::span(bytes).last(16), 0x9000));
  CHECK(kvmid_read_scatter(agent.get(), 0, ranges.data(), 2, bytes.data(), 23, nullptr) == -KVMI_EINVAL);
  CHECK(kvmid_read_scatter(agent.get(), 0, ranges.data(), 1, bytes.data(), 24, nullptr) == -KVMI_EINVAL);
  CHECK(kvmid_read_scatter(agent.get(), 0, nullptr, 1, bytes.data(), 24, nullptr) == -KVMI_EINVAL);

  REQUIRE(kvmid_read_virtual(agent.get(), 1, 0x2ffc, bytes.data(), 8, &cookie) == 0);
  CHECK(holds(std::span(bytes).first(4), 998 * kPageSize + 0xffc));
  CHECK(holds(std::span(bytes).subspan(4, 4), 997 * kPageSize));
  CHECK(kvmid_read_virtual(agent.get(), 1, 0x1000 * kPageSize, bytes.data(), 8, nullptr) == -KVMI_EFAULT);
  CHECK(std::string(kvmid_last_error()).find("GVA 0x1000000 ") == 0);
  const std::array<kvmid_gva_range, 2> gvas{{{0x1000, 8}, {0x2000, 16}}};
  REQUIRE(kvmid_read_virtual_ranges(agent.get(), 1, gvas.data(), 2, bytes.data(), 24, nullptr) == 0);
  CHECK(holds(std::span(bytes).first(8), 999 * kPageSize));
  CHECK(holds(std::span(bytes).last(16), 998 * kPageSize));
  CHECK(kvmid_read_virtual_ranges(agent.get(), 1, gvas.data(), 2, bytes.data(), 25, nullptr) == -KVMI_EINVAL);
}

}  // namespace kvmid::client::test
