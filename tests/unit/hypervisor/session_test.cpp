// SPDX-License-Identifier: GPL-2.0-or-later
#include <catch2/catch.hpp>

#include <cstring>
#include <vector>

#include "hypervisor/server/session.h"
#include "tests/unit/hypervisor/recording_backend.h"

namespace kvmid::hypervisor {

namespace {

struct Peer {
  RecordingBackend backend;
  Session session{backend};
  DialectKvmi2 dialect;

  std::optional<std::string> send(Bytes bytes) {
    while (!bytes.empty()) {
      const auto space = session.writable();
      const std::size_t n = std::min(space.size(), bytes.size());
      std::memcpy(space.data(), bytes.data(), n);
      if (auto error = session.received(n)) return error;
      bytes = bytes.subspan(n);
    }
    return std::nullopt;
  }
  template <class Message>
  std::optional<std::string> send(const Message& message, std::uint32_t seq) {
    ByteBuffer bytes;
    dialect.encode(message, Seq{seq}, bytes);
    return send(bytes);
  }
  struct Header {
    std::uint16_t id;
    std::uint32_t seq;
    std::int32_t error;
  };
  /// The headers of what waits in the outbox, which is emptied.
  std::vector<Header> take() {
    std::vector<Header> all;
    const ByteBuffer bytes(session.outbox().begin(), session.outbox().end());
    session.sent(bytes.size());
    for (std::size_t at = 0; at < bytes.size();) {
      kvmi_msg_hdr hdr;
      REQUIRE(bytes.size() - at >= sizeof hdr);
      std::memcpy(&hdr, bytes.data() + at, sizeof hdr);
      REQUIRE(bytes.size() - at >= sizeof hdr + hdr.size);
      std::int32_t error = 0;
      std::memcpy(&error, bytes.data() + at + sizeof hdr, sizeof error);
      all.push_back({hdr.id, hdr.seq, error});
      at += sizeof hdr + hdr.size;
    }
    return all;
  }
  void raise(std::uint16_t vcpu) {
    Event event;
    event.vcpu = VcpuId{vcpu};
    event.actions = ActionSet{KVMI_ACTION_BIT(KVMI_ACTION_ALLOW) | KVMI_ACTION_BIT(KVMI_ACTION_CRASH)};
    event.data = HypercallData{};
    session.raise(event);
  }
  static EventReply reply(std::uint16_t vcpu, Action action = Action::Allow) {
    EventReply r;
    r.vcpu = VcpuId{vcpu};
    r.event = EventKind::Hypercall;
    r.action = action;
    return r;
  }
};

}  // namespace

TEST_CASE("commands are answered in order with their sequence numbers, however they are cut", "[server][session]") {
  Peer peer;
  ByteBuffer bytes;
  peer.dialect.encode(Command{GetVersion{}}, Seq{10}, bytes);
  peer.dialect.encode(Command{GetGuestInfo{}}, Seq{11}, bytes);
  peer.dialect.encode(Command{GetCpuid{}}, Seq{12}, bytes);

  for (const std::byte b : bytes) REQUIRE_FALSE(peer.send(Bytes(&b, 1)));

  const auto replies = peer.take();
  REQUIRE(replies.size() == 3);
  CHECK((replies[0].id == KVMI_MSG_GET_VERSION && replies[0].seq == 10 && replies[0].error == 0));
  CHECK((replies[1].id == KVMI_MSG_GET_GUEST_INFO && replies[1].seq == 11 && replies[1].error == 0));
  CHECK((replies[2].seq == 12 && replies[2].error == -KVMI_ENOSYS));
}

TEST_CASE("an unknown message id is answered, not fatal", "[server][session]") {
  Peer peer;
  const kvmi_msg_hdr hdr{77, 0, 5};
  REQUIRE_FALSE(peer.send(std::as_bytes(std::span(&hdr, 1))));
  const auto replies = peer.take();
  REQUIRE(replies.size() == 1);
  CHECK((replies[0].id == 77 && replies[0].seq == 5 && replies[0].error == -KVMI_ENOSYS));
}

TEST_CASE("a malformed message ends the session with a reason", "[server][session]") {
  Peer peer;
  SECTION("a payload that is too short") {
    const kvmi_msg_hdr hdr{KVMI_MSG_PAUSE_VCPU, 0, 1};
    CHECK(peer.send(std::as_bytes(std::span(&hdr, 1))).value().find("PAUSE_VCPU") != std::string::npos);
  }
  SECTION("a size that no message has") {
    const kvmi_msg_hdr hdr{KVMI_MSG_PAUSE_VCPU, 0xffff, 1};
    CHECK(peer.send(std::as_bytes(std::span(&hdr, 1))).value().find("65535 bytes") != std::string::npos);
  }
  SECTION("padding that is not zero") {
    struct {
      kvmi_msg_hdr hdr{KVMI_MSG_PAUSE_VCPU, sizeof(kvmi_pause_vcpu), 1};
      kvmi_pause_vcpu body{0, {1, 0, 0}};
    } message;
    CHECK(peer.send(std::as_bytes(std::span(&message, 1))).has_value());
  }
  CHECK(peer.backend.paused.empty());
}

TEST_CASE("an event is answered by the reply with its sequence number", "[server][session]") {
  Peer peer;
  peer.raise(0);
  peer.raise(1);
  const auto events = peer.take();
  REQUIRE(events.size() == 2);
  CHECK(events[0].id == KVMI_MSG_EVENT);
  CHECK(events[0].seq != events[1].seq);

  REQUIRE_FALSE(peer.send(Peer::reply(1), events[1].seq));

  REQUIRE(peer.backend.answers.size() == 1);
  CHECK(peer.backend.answers[0].vcpu == VcpuId{1});
  // Commands are served while the other vCPU waits.
  REQUIRE_FALSE(peer.send(Command{GetRegisters{VcpuId{0}, {}}}, 9));
  CHECK(peer.take().at(0).error == 0);
}

TEST_CASE("a reply to nothing ends the session", "[server][session]") {
  Peer peer;
  const auto why = [&](const EventReply& reply, std::uint32_t seq) {
    return peer.send(reply, seq).value_or("accepted");
  };

  SECTION("no event is open") { CHECK(why(Peer::reply(0), 1).find("waits for no reply") != std::string::npos); }
  SECTION("no such vCPU") { CHECK(why(Peer::reply(7), 1).find("no such vCPU") != std::string::npos); }
  SECTION("another sequence number") {
    peer.raise(0);
    CHECK(why(Peer::reply(0), peer.take()[0].seq + 1).find("the open event has seq") != std::string::npos);
  }
  SECTION("another event") {
    peer.raise(0);
    auto reply = Peer::reply(0);
    reply.event = EventKind::Pause;
    CHECK(why(reply, peer.take()[0].seq).find("hypercall") != std::string::npos);
  }
  SECTION("an action that was not offered") {
    peer.raise(0);
    CHECK(why(Peer::reply(0, Action::Retry), peer.take()[0].seq).find("retry") != std::string::npos);
  }
  SECTION("the same reply twice") {
    peer.raise(0);
    const auto seq = peer.take()[0].seq;
    REQUIRE_FALSE(peer.send(Peer::reply(0), seq));
    CHECK(why(Peer::reply(0), seq).find("waits for no reply") != std::string::npos);
    CHECK(peer.backend.answers.size() == 1);
    return;
  }
  CHECK(peer.backend.answers.empty());
}

TEST_CASE("commands are not taken faster than their replies are read", "[server][session]") {
  Peer peer;
  const std::vector<kvmi_read_range> ranges(3, kvmi_read_range{0, 0x4000, 0});
  ReadPhysical read;
  read.ranges = std::span<const kvmi_read_range>(ranges);
  ByteBuffer bytes;
  constexpr unsigned kCommands = 50;
  for (unsigned i = 0; i < kCommands; ++i) peer.dialect.encode(Command{read}, Seq{i}, bytes);
  REQUIRE_FALSE(peer.send(bytes));

  std::size_t replies = 0;
  for (unsigned i = 0; i < kCommands && replies < kCommands; ++i) {
    CHECK(peer.session.outbox().size() < Session::kOutboxHigh + 64 * 1024);
    replies += peer.take().size();
    REQUIRE_FALSE(peer.session.resume());
  }
  CHECK(replies == kCommands);
}

TEST_CASE("TRAP_ACCESS is taken from kvmid where the backend has ACCESS events", "[server]") {
  Peer peer;
  const bool has_access = GENERATE(true, false);
  if (has_access) peer.backend.change_facts().events.add(EventKind::Access);
  Event event;
  event.vcpu = VcpuId{0};
  event.actions = ActionSet{KVMI_ACTION_BIT(KVMI_ACTION_ALLOW) | KVMI_ACTION_BIT(KVMI_ACTION_CRASH)};
  event.data = PageFaultData{Gva{0x1000}, Gpa{0x1000}, KVMI_PAGE_ACCESS_W, true};
  peer.session.raise(event);
  const auto sent = peer.take();
  EventReply reply;
  reply.vcpu = VcpuId{0};
  reply.event = EventKind::PageFault;
  reply.trap_access = true;

  const auto error = peer.send(reply, sent.at(0).seq);

  CHECK(error.has_value() == !has_access);
  REQUIRE(peer.backend.answers.size() == (has_access ? 1u : 0u));
  if (has_access) CHECK(peer.backend.answers[0].trap_access);
  else CHECK(error->find("TRAP_ACCESS") != std::string::npos);
}

}  // namespace kvmid::hypervisor
