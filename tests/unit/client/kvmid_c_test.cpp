// SPDX-License-Identifier: GPL-2.0-or-later

#include "client/kvmid.h"

#include <array>
#include <climits>
#include <memory>
#include <string>

#include "scripted_peer.h"

extern "C" int pin_cr4_once(kvmid_agent* agent, std::uint64_t bit, int timeout_ms);
extern "C" int add_to_word(kvmid_agent* agent, std::uint64_t gpa, std::uint32_t amount, int* tries);

using namespace kvmid;
using namespace kvmid::client;
using namespace kvmid::client::test;

namespace {

constexpr int kSoonMs = 5000;

struct Close {
  void operator()(kvmid_agent* agent) const { kvmid_close(agent); }
};
using Agent = std::unique_ptr<kvmid_agent, Close>;

Agent adopt(ScriptedPeer& peer) {
  peer.say_bytes(ScriptedPeer::encoded(good_welcome()));
  kvmid_options options{};
  options.struct_size = sizeof options;
  options.name = "c-agent";
  kvmid_agent* agent = nullptr;
  REQUIRE(kvmid_adopt(&options, peer.take_client_end().release(), kGuest.bytes.data(), &agent) == 0);
  // The hello, so that heard() finds messages.
  char hello[sizeof(kvmi_hello)];
  peer.skip(hello, sizeof hello);
  return Agent(agent);
}

}  // namespace

TEST_CASE("a C agent replaces the value of a CR4 write", "[client][c]") {
  ScriptedPeer peer;
  const Agent agent = adopt(peer);
  peer.say(cr_event(), 8);
  REQUIRE(pin_cr4_once(agent.get(), 0x20, kSoonMs) == 0);
  const auto heard = peer.heard();
  CHECK(heard.seq.value == 8);
  CHECK(std::get<NewValue>(std::get<EventReply>(heard.message).value).value == 0x20);
  CHECK(pin_cr4_once(agent.get(), 0x20, 0) == 0);  // no event, no error
}

TEST_CASE("C: the welcome, and errors as numbers and words", "[client][c]") {
  ScriptedPeer peer;
  const Agent agent = adopt(peer);
  kvmi_welcome welcome{};
  REQUIRE(kvmid_get_welcome(agent.get(), &welcome) == 0);
  CHECK(std::string(welcome.guest_name) == "web1");
  CHECK(welcome.agent == 7);

  kvmid_event observed{};
  CHECK(kvmid_reply(agent.get(), &observed, KVMI_ACTION_ALLOW) == -KVMI_EINVAL);
  CHECK(std::string(kvmid_last_error()).find("only observed") != std::string::npos);
  CHECK(kvmid_pause_vcpu(nullptr, 0) == -KVMI_EINVAL);

  peer.close();
  kvmid_message message;
  CHECK(kvmid_next_message(agent.get(), &message, kSoonMs) == -KVMID_ECLOSED);
  CHECK(std::string(kvmid_last_error()) == "kvmid closed the connection");
  CHECK(kvmid_fd(agent.get()) == -1);
}

TEST_CASE("C: no daemon, a bad option struct, a refusal", "[client][c]") {
  kvmid_options options{};
  options.struct_size = sizeof options;
  options.socket = "/nonexistent/agent.sock";
  kvmid_agent* agent = nullptr;
  CHECK(kvmid_connect(&options, &agent) == -KVMID_EUNREACHABLE);
  CHECK(agent == nullptr);
  options.struct_size = 3;
  CHECK(kvmid_connect(&options, &agent) == -KVMI_EINVAL);

  for (const int status : {-KVMI_EPERM, -KVMID_ECLOSED, INT_MIN, 5}) {
    ScriptedPeer peer;
    auto welcome = good_welcome();
    welcome.status = status;
    peer.say_bytes(ScriptedPeer::encoded(welcome));
    const int result = kvmid_adopt(nullptr, peer.take_client_end().release(), nullptr, &agent);
    CHECK(result < 0);
    CHECK(agent == nullptr);
    if (status == -KVMI_EPERM) CHECK(result == -KVMI_EPERM);
  }
}

TEST_CASE("C: raw commands are checked, sent, and collected", "[client][c]") {
  ScriptedPeer peer;
  const Agent agent = adopt(peer);
  kvmi_get_xcr payload{};
  payload.vcpu = 1;
  std::uint32_t ticket = 0;
  CHECK(kvmid_submit(agent.get(), KVMI_MSG_GET_XCR, &payload, sizeof payload - 1, &ticket) == -KVMI_EINVAL);
  CHECK(kvmid_submit(agent.get(), KVMI_MSG_EVENT, &payload, sizeof payload, &ticket) < 0);
  REQUIRE(kvmid_submit(agent.get(), KVMI_MSG_GET_XCR, &payload, sizeof payload, &ticket) == 0);
  const auto heard = peer.heard();
  CHECK(heard.seq.value == ticket);
  kvmi_get_xcr_reply reply{};
  CHECK(kvmid_collect(agent.get(), ticket, &reply, sizeof reply, 0) == -KVMID_ETIMEOUT);
  peer.say(ok(KVMI_MSG_GET_XCR, GetXcrReply{0x7}), heard.seq);
  REQUIRE(kvmid_collect(agent.get(), ticket, &reply, sizeof reply, kSoonMs) == sizeof reply);
  CHECK(reply.value == 7);

  REQUIRE(kvmid_submit(agent.get(), KVMI_MSG_GET_XCR, &payload, sizeof payload, &ticket) == 0);
  peer.say(CommandReply{KVMI_MSG_GET_XCR, ErrorCode::NotSupported, "no XCR here", {}}, peer.heard().seq);
  CHECK(kvmid_collect(agent.get(), ticket, &reply, sizeof reply, kSoonMs) == -KVMI_EOPNOTSUPP);
  CHECK(std::string(kvmid_last_error()) == "no XCR here");
}

TEST_CASE("C: the memory map is filled as far as there is room, and counted as a whole", "[client][c]") {
  ScriptedPeer peer;
  const Agent agent = adopt(peer);
  const std::array<kvmi_memory_slot, 3> slots{
      {{0, 0xa0000, 0, 0, 0}, {0xc0000, 0x40000, 0, KVMI_SLOT_READ_ONLY, 0}, {0x100000, 0x1000, 0, 0, 0}}};
  peer.serve([&](const Command& command) {
    if (std::get<GetMemoryMap>(command).space == AddressSpace::Smm)
      return CommandReply{KVMI_MSG_GET_MEMORY_MAP, ErrorCode::NotSupported, "no SMM", {}};
    return ok(KVMI_MSG_GET_MEMORY_MAP, GetMemoryMapReply{std::span<const kvmi_memory_slot>(slots)});
  });
  std::array<kvmi_memory_slot, 4> got{};
  CHECK(kvmid_get_memory_map(agent.get(), KVMI_ADDRESS_SPACE_NORMAL, got.data(), 2) == 3);
  CHECK(got[1].flags == KVMI_SLOT_READ_ONLY);
  CHECK(got[2].bytes == 0);
  CHECK(kvmid_get_memory_map(agent.get(), KVMI_ADDRESS_SPACE_NORMAL, nullptr, 0) == 3);
  REQUIRE(kvmid_get_memory_map(agent.get(), KVMI_ADDRESS_SPACE_NORMAL, got.data(), got.size()) == 3);
  CHECK(got[2].gpa == 0x100000);
  CHECK(kvmid_get_memory_map(agent.get(), KVMI_ADDRESS_SPACE_SMM, got.data(), got.size()) == -KVMI_EOPNOTSUPP);
  CHECK(kvmid_get_memory_map(agent.get(), 2, got.data(), got.size()) == -KVMI_EINVAL);
}

TEST_CASE("C: a batch and messages of each kind", "[client][c]") {
  ScriptedPeer peer;
  const Agent agent = adopt(peer);
  peer.say(cr_event(), 8);
  peer.say(Notice{NoticeKind::Expired, EventKind::Cr, Action::Skip, VcpuId{1}, ErrorCode::Stale, AgentId{7}, Seq{8}, 1,
                  std::string(1000, 'x')});
  GuestOn on;
  copy_text("db1", on.guest.name, sizeof on.guest.name);
  peer.say(on);
  peer.say(GuestOff{kGuest, OffReason::Reset, "anew"});

  kvmid_message message;
  REQUIRE(kvmid_next_message(agent.get(), &message, kSoonMs) == 1);
  REQUIRE(message.kind == KVMI_MSG_EVENT);
  CHECK(message.data.event.data.cr.old_value == 0x20);
  CHECK((message.data.event.common.flags & KVMI_EVENT_F_DECIDE) != 0);

  kvmid_batch* batch = nullptr;
  REQUIRE(kvmid_batch_new(agent.get(), &batch) == 0);
  kvmi_set_registers registers{};
  registers.vcpu = 1;
  std::uint32_t ticket = 0;
  CHECK(kvmid_batch_command(batch, KVMI_MSG_SET_REGISTERS, &registers, sizeof registers, &ticket) == 0);
  CHECK(kvmid_batch_reply(batch, &message.data.event, KVMI_ACTION_SKIP) == 0);
  CHECK(kvmid_batch_send(batch) == 0);
  kvmid_batch_free(batch);
  CHECK(peer.heard().seq.value == ticket);
  CHECK(std::get<EventReply>(peer.heard().message).action == Action::Skip);

  REQUIRE(kvmid_next_message(agent.get(), &message, kSoonMs) == 1);
  REQUIRE(message.kind == KVMI_MSG_NOTICE);
  CHECK(message.data.notice.error_code == -KVMI_ESTALE);
  CHECK(std::string(message.text) == std::string(KVMID_TEXT_MAX - 1, 'x'));
  REQUIRE(kvmid_next_message(agent.get(), &message, kSoonMs) == 1);
  REQUIRE(message.kind == KVMI_MSG_GUEST_ON);
  CHECK(std::string(message.data.guest_on.guest.name) == "db1");
  REQUIRE(kvmid_next_message(agent.get(), &message, kSoonMs) == 1);
  REQUIRE(message.kind == KVMI_MSG_GUEST_OFF);
  CHECK(message.data.guest_off.reason == KVMI_OFF_RESET);
}

TEST_CASE("a C agent adds to a number that somebody else changes meanwhile", "[client][c]") {
  ScriptedPeer peer;
  const Agent agent = adopt(peer);
  std::uint32_t word = 40;
  std::uint64_t current = 7;
  int others = 2;
  peer.serve([&](const Command& command) -> CommandReply {
    if (std::holds_alternative<ReadPhysical>(command)) {
      const CommandReply reply =
          ok(KVMI_MSG_READ_PHYSICAL, ReadPhysicalReply{current, std::as_bytes(std::span(&word, 1))});
      if (others-- > 0) ++current;  // changed behind the read
      return reply;
    }
    const auto& write = std::get<WritePhysical>(command);
    if (write.cookie != current)
      return {KVMI_MSG_WRITE_PHYSICAL, ErrorCode::Stale, "changed", WritePhysicalReply{current}};
    std::memcpy(&word, write.data.data(), sizeof word);
    return ok(KVMI_MSG_WRITE_PHYSICAL, WritePhysicalReply{++current});
  });
  int tries = 0;
  REQUIRE(add_to_word(agent.get(), 0x1000, 2, &tries) == 0);
  CHECK(tries == 3);
  CHECK(word == 42);

  std::uint64_t cookie = 1;
  CHECK(kvmid_write_if_unchanged(agent.get(), 0x1000, &word, sizeof word, &cookie) == -KVMI_ESTALE);
  CHECK(cookie == current);
  cookie = 0;
  CHECK(kvmid_write_if_unchanged(agent.get(), 0x1000, &word, sizeof word, &cookie) == -KVMI_EINVAL);
  CHECK(kvmid_write_if_unchanged(agent.get(), 0x1000, &word, sizeof word, nullptr) == -KVMI_EINVAL);
  CHECK(kvmid_write_if_unchanged(agent.get(), 0x1000, nullptr, sizeof word, &cookie) == -KVMI_EINVAL);
}

TEST_CASE("C: no memory is mapped where none is granted", "[client][c]") {
  ScriptedPeer peer;
  const Agent agent = adopt(peer);
  peer.serve([&](const Command&) -> CommandReply {
    return {KVMI_MSG_GRANT_MEMORY, ErrorCode::NotPermitted, "its owner could write it", {}};
  });
  auto* mapping = reinterpret_cast<kvmid_mapping*>(&peer);
  CHECK(kvmid_map_memory(agent.get(), 0, &mapping) == -KVMI_EPERM);
  CHECK(mapping == nullptr);
  CHECK(std::string(kvmid_last_error()).find("its owner could write it") != std::string::npos);
  CHECK(kvmid_map_memory(agent.get(), 2, &mapping) == -KVMI_EINVAL);
  CHECK(kvmid_map_memory(agent.get(), 0, nullptr) == -KVMI_EINVAL);
  char byte = 0;
  CHECK(kvmid_mapped_read(nullptr, 0, &byte, 1) == -KVMI_EINVAL);
  CHECK(kvmid_mapped_bytes(nullptr) == 0);
  CHECK(kvmid_mapped_revoked(nullptr) == 1);
  kvmid_unmap(nullptr);
}

TEST_CASE("C: uuids and names of errors", "[client][c]") {
  std::uint8_t uuid[16];
  char text[37];
  REQUIRE(kvmid_parse_uuid("6a1f7e36-0000-4000-8000-000000000001", uuid) == 0);
  kvmid_format_uuid(uuid, text);
  CHECK(std::string(text) == "6a1f7e36-0000-4000-8000-000000000001");
  CHECK(kvmid_parse_uuid("6a1f", uuid) == -KVMI_EINVAL);
  CHECK(std::string(kvmid_error_name(-KVMI_EPERM)) == "EPERM");
  CHECK(std::string(kvmid_error_name(-KVMID_ECLOSED)) == "ECLOSED");
}
