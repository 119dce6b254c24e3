// SPDX-License-Identifier: GPL-2.0-or-later
//
// The commands about further state, over a backend that does them or does not, and UNHOOK of a session.

#include <catch2/catch.hpp>

#include <cstring>
#include <string>
#include <vector>

#include "arch/x86/registers.h"
#include "hypervisor/server/commands.h"
#include "hypervisor/server/session.h"
#include "tests/unit/hypervisor/recording_backend.h"

namespace kvmid::hypervisor {

namespace {

class StatefulBackend final : public RecordingBackend {
 public:
  StatefulBackend() {
    for (const auto id : {CommandId::ShutdownGuest, CommandId::GetCpuid, CommandId::GetXsave, CommandId::SetXsave,
                          CommandId::GetXcr, CommandId::GetMemoryMap}) {
      change_facts().commands.add(id);
    }
  }
  Answer<RegisterState> registers(VcpuId) override {
    RegisterState state;
    state.sregs = sregs;
    return state;
  }
  Done shutdown() override {
    ++shutdowns;
    return {};
  }
  Answer<GetCpuidReply> cpuid(VcpuId vcpu, std::uint32_t function, std::uint32_t index) override {
    if (function == 9) return Refusal{ErrorCode::NoEntry, "no leaf 9"};
    return GetCpuidReply{function, index, vcpu.value, 4};
  }
  Answer<std::vector<std::byte>> xsave(VcpuId) override { return area; }
  Done set_xsave(VcpuId, Bytes bytes) override {
    if (bytes.size() != area.size()) return Refusal{ErrorCode::Invalid, "another size"};
    area.assign(bytes.begin(), bytes.end());
    return {};
  }
  Answer<std::uint64_t> xcr(VcpuId, std::uint32_t xcr) override {
    if (xcr != 0) return Refusal{ErrorCode::Invalid, "only XCR0"};
    return std::uint64_t{3};
  }
  Answer<std::vector<kvmi_memory_slot>> memory_map(AddressSpace space) override {
    if (space == AddressSpace::Smm) return std::vector<kvmi_memory_slot>{};
    return slots;
  }

  kvmi_x86_sregs sregs{};
  std::vector<std::byte> area = std::vector<std::byte>(576);
  std::vector<kvmi_memory_slot> slots = {{0, kPages * kPageSize, 0, 0, 0}};
  unsigned shutdowns = 0;
};

ErrorCode refused(GuestBackend& backend, const Command& command, const std::string& word) {
  Patches patches(backend);
  CommandServer server(backend, patches);
  const CommandReply reply = server.serve(command);
  CAPTURE(std::string(reply.text), word);
  CHECK(reply.text.find(word) != std::string_view::npos);
  CHECK(std::holds_alternative<std::monostate>(reply.body));
  return reply.error;
}

template <class T>
T done(GuestBackend& backend, const Command& command) {
  Patches patches(backend);
  CommandServer server(backend, patches);
  const CommandReply reply = server.serve(command);
  CAPTURE(std::string(reply.text));
  REQUIRE(reply.error == ErrorCode::None);
  return std::get<T>(reply.body);
}

/// A session and kvmid's end of it.
struct Peer {
  RecordingBackend backend;
  Session session{backend};
  DialectKvmi2 dialect;

  std::optional<std::string> send(const EventReply& reply, std::uint32_t seq) {
    ByteBuffer bytes;
    dialect.encode(reply, Seq{seq}, bytes);
    const auto space = session.writable();
    std::memcpy(space.data(), bytes.data(), bytes.size());
    return session.received(bytes.size());
  }
  static EventReply unhook_reply() {
    EventReply reply;
    reply.vcpu = kAllVcpus;
    reply.event = EventKind::Unhook;
    return reply;
  }
};

}  // namespace

TEST_CASE("what a backend does not do is not in the mask and answered so", "[server][state]") {
  RecordingBackend backend;
  const auto version = done<GetVersionReply>(backend, GetVersion{});
  CHECK(version.commands.has(CommandId::TranslateGva));
  const std::vector<std::byte> area(8);
  for (const Command& command : std::vector<Command>{ShutdownGuest{}, GetCpuid{}, GetXsave{}, SetXsave{VcpuId{0}, area},
                                                     GetXcr{}, GetMemoryMap{}}) {
    CHECK_FALSE(version.commands.has(id_of(command)));
    CHECK(refused(backend, command, "GET_VERSION lists") == ErrorCode::NotServed);
  }
  StatefulBackend stateful;
  CHECK(done<GetVersionReply>(stateful, GetVersion{}).commands.bits ==
        (kServedCommands | stateful.facts().commands.bits));
}

TEST_CASE("state commands reach the backend with what they name", "[server][state]") {
  StatefulBackend backend;
  CHECK(done<GetCpuidReply>(backend, GetCpuid{VcpuId{1}, 7, 3}).ecx == 1);
  CHECK(done<GetCpuidReply>(backend, GetCpuid{VcpuId{1}, 7, 3}).ebx == 3);
  CHECK(refused(backend, GetCpuid{VcpuId{0}, 9, 0}, "no leaf 9") == ErrorCode::NoEntry);
  CHECK(done<GetXcrReply>(backend, GetXcr{VcpuId{0}, 0}).value == 3);
  CHECK(refused(backend, GetXcr{VcpuId{0}, 1}, "only XCR0") == ErrorCode::Invalid);
  std::vector<std::byte> area(576, std::byte{5});
  (void)done<std::monostate>(backend, SetXsave{VcpuId{0}, area});
  CHECK(backend.area == area);
  area.resize(1);
  CHECK(refused(backend, SetXsave{VcpuId{0}, area}, "another size") == ErrorCode::Invalid);
  backend.area.resize(70000);
  CHECK(refused(backend, GetXsave{VcpuId{0}}, "70000") == ErrorCode::TooBig);
  (void)done<std::monostate>(backend, ShutdownGuest{});
  CHECK(backend.shutdowns == 1);

  for (const Command& command : std::vector<Command>{GetCpuid{VcpuId{2}, 0, 0}, GetXsave{VcpuId{2}},
                                                     SetXsave{VcpuId{2}, area}, GetXcr{VcpuId{2}, 0},
                                                     TranslateGva{VcpuId{2}, Gva{0}}}) {
    CHECK(refused(backend, command, "no vCPU 2") == ErrorCode::Invalid);
  }
  CHECK(refused(backend, GetXsave{kAllVcpus}, "no vCPU 65535") == ErrorCode::Invalid);
}

TEST_CASE("GET_MEMORY_MAP fits a message or is refused", "[server][state]") {
  StatefulBackend backend;
  CHECK(done<GetMemoryMapReply>(backend, GetMemoryMap{AddressSpace::Smm}).slots.empty());
  backend.slots.resize(2729, backend.slots[0]);
  CHECK(done<GetMemoryMapReply>(backend, GetMemoryMap{}).slots.size() == 2729);
  backend.slots.resize(2730, backend.slots[0]);
  CHECK(refused(backend, GetMemoryMap{}, "2730 slots") == ErrorCode::TooBig);
}

TEST_CASE("reads and writes name their address space", "[server][state]") {
  RecordingBackend backend;
  const std::byte byte{0x77};
  WritePhysical write;
  write.space = AddressSpace::Smm;
  write.gpa = Gpa{RecordingBackend::kSmmFrame * kPageSize + 5};
  write.data = Bytes(&byte, 1);
  (void)done<WritePhysicalReply>(backend, write);
  CHECK(backend.smm[5] == byte);
  CHECK(backend.memory[RecordingBackend::kSmmFrame * kPageSize + 5] == std::byte{0});
  write.gpa = Gpa{0};
  CHECK(refused(backend, write, "address space 1 (SMM)") == ErrorCode::Fault);

  kvmi_read_range range{};
  range.gpa = RecordingBackend::kSmmFrame * kPageSize + 4095;
  range.size = 2;
  ReadPhysical read;
  read.space = AddressSpace::Smm;
  read.ranges = std::span<const kvmi_read_range>(&range, 1);
  CHECK(refused(backend, read, "range 0: 0x2 bytes at GPA 0x2fff") == ErrorCode::Fault);
}

TEST_CASE("TRANSLATE_GVA over any backend", "[server][state]") {
  StatefulBackend backend;
  CHECK(done<TranslateGvaReply>(backend, TranslateGva{VcpuId{0}, Gva{0x1234}}).gpa == Gpa{0x1234});  // no paging
  backend.sregs.cr0 = x86::cr0::kPe | x86::cr0::kPg;
  backend.sregs.cr4 = x86::cr4::kPae;
  backend.sregs.efer = x86::efer::kLme | x86::efer::kLma;
  backend.sregs.cs.l = 1;
  const auto entry = [&](std::size_t at, std::uint64_t value) {
    std::memcpy(backend.memory.data() + at, &value, sizeof value);
  };
  entry(0x0, 0x1007);                       // PML4[0]
  entry(0x1000, 0x2007);                    // PDPT[0]
  entry(0x2000, 0xe7);                      // PD[0]: 2 MiB at 0
  entry(0x2008, std::uint64_t{0x9000} | 7);  // PD[1]: a table outside RAM
  const auto found = done<TranslateGvaReply>(backend, TranslateGva{VcpuId{0}, Gva{0x1fffff}});
  CHECK(found.gpa == Gpa{0x1fffff});
  CHECK(found.page_bytes == 0x200000);
  CHECK(found.user);
  CHECK(found.access == 7);
  CHECK(refused(backend, TranslateGva{VcpuId{0}, Gva{0x200000}}, "GVA 0x200000 is not mapped") == ErrorCode::Fault);
  CHECK(refused(backend, TranslateGva{VcpuId{0}, Gva{0x400000}}, "not mapped") == ErrorCode::Fault);
  CHECK(refused(backend, TranslateGva{VcpuId{0}, Gva{0x900000000000}}, "canonical") == ErrorCode::Fault);
}

TEST_CASE("UNHOOK is an event of no vCPU, answered once", "[server][unhook]") {
  Peer peer;
  const bool while_a_vcpu_waits = GENERATE(false, true);
  std::uint32_t seq = 1;
  if (while_a_vcpu_waits) {
    Event event;
    event.actions = ActionSet{1};
    event.data = HypercallData{};
    peer.session.raise(event);
    peer.session.sent(peer.session.outbox().size());
    seq = 2;
  }
  peer.session.unhook(OffReason::Migration);
  REQUIRE_FALSE(peer.session.unhooked());
  FrameParser parser;
  const auto bytes = peer.session.outbox();
  std::memcpy(parser.writable().data(), bytes.data(), bytes.size());
  parser.commit(bytes.size());
  const auto frame = parser.next();
  REQUIRE((frame && *frame != nullptr));
  const auto message = peer.dialect.decode_upward(**frame);
  REQUIRE(message);
  const auto& event = std::get<Event>(*message);
  CHECK(event.vcpu == kAllVcpus);
  CHECK(std::get<UnhookData>(event.data).reason == OffReason::Migration);
  CHECK(event.actions == ActionSet{KVMI_ACTION_BIT(KVMI_ACTION_ALLOW)});
  CHECK((*frame)->seq == Seq{seq});

  SECTION("the reply lets the guest go; a second one is a broken peer") {
    CHECK_FALSE(peer.send(Peer::unhook_reply(), seq));
    CHECK(peer.session.unhooked());
    CHECK(peer.backend.answers.empty());
    CHECK(peer.send(Peer::unhook_reply(), seq)->find("no UNHOOK event is open") != std::string::npos);
  }
  SECTION("another sequence number") {
    CHECK(peer.send(Peer::unhook_reply(), seq + 9)->find("has seq=" + std::to_string(seq)) != std::string::npos);
    CHECK_FALSE(peer.session.unhooked());
  }
  SECTION("another action") {
    auto reply = Peer::unhook_reply();
    reply.action = Action::Crash;
    CHECK(peer.send(reply, seq)->find("ALLOW") != std::string::npos);
    CHECK_FALSE(peer.session.unhooked());
  }
}

TEST_CASE("a reply to an UNHOOK that was not sent ends the session", "[server][unhook]") {
  Peer peer;
  CHECK(peer.send(Peer::unhook_reply(), 1)->find("no UNHOOK event is open") != std::string::npos);
}

}  // namespace kvmid::hypervisor
