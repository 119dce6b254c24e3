// SPDX-License-Identifier: GPL-2.0-or-later
//
// Hypervisors that break their dialect, and what real ones have sent.

#include <cstring>
#include <fstream>
#include <random>

#include <nlohmann/json.hpp>

#include "tests/unit/bridge/hypervisor/scripted_hypervisor.h"

namespace kvmid::bridge::test {

using kvmi1::DialectId;

namespace {

ByteVector from_hex(const std::string& hex) {
  ByteVector out;
  for (std::size_t i = 0; i + 1 < hex.size(); i += 2)
    out.push_back(static_cast<std::byte>(std::stoi(hex.substr(i, 2), nullptr, 16)));
  return out;
}

kvmi_msg_hdr header_of(const ByteVector& frame) {
  kvmi_msg_hdr header{};
  std::memcpy(&header, frame.data(), sizeof header);
  return header;
}

/// Every event that the hypervisor of a capture has sent comes out of the bridge; each is answered. How many they were.
unsigned replay(const std::string& name) {
  CAPTURE(name);
  std::ifstream file(std::string(KVMID_VECTORS_DIR) + "/captures/" + name + ".jsonl");
  REQUIRE(file.good());
  std::string line;
  std::getline(file, line);
  const auto about = nlohmann::json::parse(line);
  Hypervisor host(kvmi1::dialect_named(about.at("dialect").get<std::string>()).value(), true,
                  about.at("vcpus").get<std::uint16_t>());
  host.come_up();
  unsigned events = 0;
  while (std::getline(file, line)) {
    const auto item = nlohmann::json::parse(line);
    const std::string what = item.at("what");
    if (item.at("dir") != "H>A" || what.rfind("EVENT ", 0) != 0) continue;
    CAPTURE(what, item.at("n").get<int>());
    const ByteVector frame = from_hex(item.at("hex"));
    const bool kept = host.receive(frame);
    INFO(host.broken);
    REQUIRE(kept);
    REQUIRE_FALSE(host.bridge->up().empty());
    const auto passed = host.bridge->up().take();
    CHECK(passed.seq.value == item.at("seq").get<std::uint32_t>());
    const auto& event = std::get<Event>(passed.message);
    CHECK(event.actions.has(Action::Allow));
    ++events;
    if (event.kind() == EventKind::Unhook) continue;
    CHECK(event.regs.rip != 0);
    for (const auto* segment : {&event.sregs.cs, &event.sregs.ss, &event.sregs.tr, &event.sregs.ldt})
      CHECK(segment->padding == 0);
    CHECK(event.sregs.gdt.padding[0] == 0);
    // The reply goes to this event, and the vCPU is free for the next one.
    host.log.clear();
    host.reply(event, passed.seq, Action::Allow);
    REQUIRE(host.replies().size() == 1);
    CHECK(host.last_reply().seq == passed.seq);
    CHECK(host.replies()[0]->vcpu == event.vcpu);
  }
  return events;
}

}  // namespace

TEST_CASE("bridge: events of a real hypervisor come out as events", "[hypervisor]") {
  CHECK(replay("v12-events") == 57);
  CHECK(replay("v12-2vcpus") == 35);
  CHECK(replay("v12-singlestep") > 0);
}

TEST_CASE("bridge: left-overs in the padding of events stay behind", "[hypervisor]") {
  CHECK(replay("v12-event-padding") > 0);
}

TEST_CASE("bridge: replies to nothing close the link", "[hypervisor]") {
  for (const DialectId dialect : {DialectId::V6, DialectId::V7, DialectId::V12, DialectId::Rfc2017}) {
    CAPTURE(kvmi1::name_of(dialect));
    Hypervisor host(dialect);
    host.come_up();
    const std::uint16_t registers = host.number(kvmi1::kind_of<kvmi1::GetRegisters>);
    SECTION(std::string(kvmi1::name_of(dialect)) + ": to nothing at all") {
      CHECK_FALSE(host.answer(registers, Seq{0x7777}, kvmi1::GetRegistersReply{}));
      CHECK(host.broken.find("is not open") != std::string::npos);
    }
    SECTION(std::string(kvmi1::name_of(dialect)) + ": twice") {
      host.send(GetRegisters{VcpuId{0}, {}});
      const Sent sent = host.take();
      CHECK(host.answer(sent, kvmi1::GetRegistersReply{}));
      CHECK_FALSE(host.answer(sent, kvmi1::GetRegistersReply{}));
    }
    SECTION(std::string(kvmi1::name_of(dialect)) + ": with another id") {
      host.send(GetRegisters{VcpuId{0}, {}});
      const Seq seq = host.take().seq;
      CHECK_FALSE(host.answer(host.number(kvmi1::kind_of<kvmi1::SetRegisters>), seq));
      CHECK(host.broken.find("with the id of another command") != std::string::npos);
      CHECK_FALSE(host.has_answer());
    }
  }
}

TEST_CASE("bridge: messages that are too short close the link", "[hypervisor]") {
  for (const DialectId dialect : {DialectId::V6, DialectId::V7, DialectId::V12, DialectId::Rfc2017}) {
    CAPTURE(kvmi1::name_of(dialect));
    for (std::uint16_t size = 0; size < 472; size = static_cast<std::uint16_t>(size + 59)) {
      Hypervisor host(dialect);
      host.come_up();
      host.send(GetRegisters{VcpuId{0}, {}});
      const Sent sent = host.take();
      const kvmi_msg_hdr header{host.number(kvmi1::kind_of<kvmi1::GetRegisters>), size, sent.seq.value};
      ByteVector frame(sizeof header + size);
      std::memcpy(frame.data(), &header, sizeof header);
      CHECK_FALSE(host.receive(frame));
      CHECK_FALSE(host.has_answer());
    }
  }
}

TEST_CASE("bridge: a refused event reply closes the link", "[hypervisor]") {
  for (const DialectId dialect : {DialectId::V7, DialectId::V12}) {
    CAPTURE(kvmi1::name_of(dialect));
    Hypervisor host(dialect);
    host.come_up();
    CHECK_FALSE(host.answer(host.codec.event_reply_id(), Seq{1}, {}, -kvmi1::kEinval));
    CHECK(host.broken.find("refused the reply to its event") != std::string::npos);
  }
}

TEST_CASE("bridge: messages of unknown ids close the link", "[hypervisor]") {
  Hypervisor host(DialectId::V12);
  host.come_up();
  ByteVector frame(8 + 8);
  frame[0] = std::byte{0xee};
  frame[2] = std::byte{8};
  CHECK_FALSE(host.receive(frame));
  CHECK_FALSE(host.broken.empty());
}

/// Whatever comes, it is answered with a reason or taken: nothing is read outside, and no command has two answers.
TEST_CASE("bridge: a hypervisor that talks nonsense", "[hypervisor]") {
  std::mt19937 random(2017);  // NOLINT: the same run each time
  for (unsigned run = 0; run < 600; ++run) {
    const auto dialect = static_cast<DialectId>(run % kvmi1::kDialectCount);
    Hypervisor host(dialect);
    host.come_up();
    std::set<std::uint32_t> open;
    const std::vector<kvmi_read_range> ranges{{0xff8, 16, 0}};
    const ByteVector data = bytes({1, 2}), expected = bytes({3, 4});
    open.insert(host.send(ReadPhysical{AddressSpace::Normal, std::span<const kvmi_read_range>(ranges)}).value);
    const WritePhysical write{.gpa = Gpa{0x1000}, .flags = KVMI_WRITE_EXPECT, .data = data, .expected = expected};
    open.insert(host.send(write).value);
    open.insert(host.send(GetRegisters{VcpuId{0}, {}}).value);
    open.insert(host.send(ControlEvents{kAllVcpus, Operation::Enable, Role::Decider, EventSet{0x16}}).value);
    for (unsigned step = 0; step < 40; ++step) {
      // Mostly an answer to something that is open, of a size that may be right.
      ByteVector frame(8 + random() % 600);
      for (auto& byte : frame) byte = static_cast<std::byte>(random() % 4 == 0 ? random() % 256 : 0);
      kvmi_msg_hdr header = header_of(frame);
      if (host.is_asked() && random() % 8 != 0) {
        const Sent sent = host.take();
        header = header_of(sent.frame);
        if (random() % 2 == 0) std::memset(frame.data() + 8, 0, std::min<std::size_t>(frame.size() - 8, 8));
      }
      header.size = static_cast<std::uint16_t>(frame.size() - 8);
      std::memcpy(frame.data(), &header, sizeof header);
      const bool kept = host.receive(frame);
      while (!host.bridge->up().empty()) {
        const auto passed = host.bridge->up().take();
        if (std::holds_alternative<CommandReply>(passed.message)) REQUIRE(open.erase(passed.seq.value) == 1);
      }
      if (!kept) {
        REQUIRE_FALSE(host.broken.empty());
        break;
      }
    }
  }
}

}  // namespace kvmid::bridge::test
