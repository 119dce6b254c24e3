// SPDX-License-Identifier: GPL-2.0-or-later
// What a hypervisor can do wrong after it was let in: it loses its connection, its agents are told why, that is all.
#include <catch2/catch.hpp>
#include <functional>

#include "tests/integration_wire/bystander.h"
#include "tests/integration_wire/wire_daemon.h"

using namespace kvmid;
using namespace kvmid::test;

namespace {

struct Mistake {
  std::string name;
  std::string reason;  ///< in the log, after reason=
  std::function<void(ScriptedHypervisor&)> make;
  OffReason told = OffReason::ProtocolError;  ///< to its agents
};

ByteBuffer event_frame_cut_to(std::size_t payload) {
  const ByteBuffer whole = encoded(make_event(EventKind::Cr), Seq{5});
  return frame_of(KVMI_MSG_EVENT, 5, Bytes(whole).subspan(sizeof(kvmi_msg_hdr), payload));
}

/// A well-made CR event with one byte of its payload changed.
ByteBuffer event_with_byte(std::size_t offset, unsigned value) {
  ByteBuffer whole = encoded(make_event(EventKind::Cr), Seq{5});
  whole.at(sizeof(kvmi_msg_hdr) + offset) = static_cast<std::byte>(value);
  return whole;
}

/// Keeps an agent's READ_PHYSICAL open and gives the number it has at the hypervisor.
Seq open_read(ScriptedHypervisor& hypervisor, client::AgentClient& agent, std::size_t held_before = 0) {
  hypervisor.hold(CommandId::ReadPhysical);
  const kvmi_read_range range{0x1000, 8, 0};
  const auto ticket = agent.submit(ReadPhysical{AddressSpace::Normal, std::span(&range, 1)});
  REQUIRE(ticket);
  return hypervisor.wait_held(held_before + 1).back().seq;
}

const std::vector<Mistake> kMistakes{
    {"a header with a size over the limit", "cannot be decoded",
     [](auto& h) { h.send(frame_of(KVMI_MSG_EVENT, 1, {}, std::uint16_t{65529})); }},
    {"the largest size there is", "cannot be decoded",
     [](auto& h) { h.send(frame_of(KVMI_MSG_EVENT, 1, {}, std::uint16_t{65535})); }},
    {"only ones", "cannot be decoded", [](auto& h) { h.send(ByteBuffer(4096, std::byte{0xff})); }},
    {"only zeros", "do not send", [](auto& h) { h.send(ByteBuffer(8, std::byte{0})); }},
    {"a message id that does not exist", "do not send", [](auto& h) { h.send(frame_of(999, 1, {})); }},
    {"a notice, which only kvmid sends", "do not send",
     [](auto& h) {
       ByteBuffer out;
       DialectKvmi2{}.encode(Notice{.kind = NoticeKind::Expired, .text = "x"}, out);
       h.send(out);
     }},
    {"an event reply, which only agents send", "do not send",
     [](auto& h) {
       h.send(encoded(EventReply{.vcpu = VcpuId{0}, .event = EventKind::Hypercall, .value = {}}, Seq{1}));
     }},
    {"a command, which only agents send", "cannot be decoded",
     [](auto& h) { h.send(encoded(Command{GetVersion{}}, Seq{1})); }},
    {"an event without a payload", "cannot be decoded", [](auto& h) { h.send(event_frame_cut_to(0)); }},
    {"an event cut within its common part", "cannot be decoded", [](auto& h) { h.send(event_frame_cut_to(40)); }},
    {"an event cut by its last byte", "cannot be decoded",
     [](auto& h) { h.send(event_frame_cut_to(sizeof(kvmi_event) + sizeof(kvmi_event_cr) - 1)); }},
    {"an event with a byte too many", "cannot be decoded",
     [](auto& h) {
       const ByteBuffer whole = encoded(make_event(EventKind::Cr), Seq{5});
       ByteBuffer payload(whole.begin() + sizeof(kvmi_msg_hdr), whole.end());
       payload.push_back({});
       h.send(frame_of(KVMI_MSG_EVENT, 5, payload));
     }},
    {"an event that does not exist", "cannot be decoded",
     [](auto& h) { h.send(event_with_byte(offsetof(kvmi_event, event), 200)); }},
    {"an event with padding that is not zero", "cannot be decoded",
     [](auto& h) { h.send(event_with_byte(offsetof(kvmi_event, padding), 1)); }},
    {"an event of a vCPU that does not exist", "does not have",
     [](auto& h) { h.raise(make_event(EventKind::Hypercall, VcpuId{7})); }},
    {"a reply to a command that nobody sent", "not open",
     [](auto& h) {
       h.send(encoded(CommandReply{.id = KVMI_MSG_GET_REGISTERS, .error = ErrorCode::Invalid}, Seq{777777}));
     }},
    {"a second UNHOOK while the first is open", "UNHOOK twice",
     [](auto& h) {
       ByteBuffer both = encoded(make_event(EventKind::Unhook), Seq{5});
       // The first is answered once the agents' wishes are taken back; they are not confirmed before the second is
       // read.
       const ByteBuffer second = encoded(make_event(EventKind::Unhook), Seq{6});
       both.insert(both.end(), second.begin(), second.end());
       h.hold(CommandId::ControlEvents);
       h.send(both);
     },
     OffReason::Suspend},  // agents are told once that the guest is away, and that was by the first
};

client::GuestGone wait_gone(client::AgentClient& agent) {
  const auto change = agent.wait_guest(kBound);
  REQUIRE(change);
  REQUIRE(*change);
  const auto* gone = std::get_if<client::GuestGone>(&**change);
  REQUIRE(gone != nullptr);
  CHECK_FALSE(gone->text.empty());
  return *gone;
}

EventSet all_scripted() {
  EventSet events;
  for (const auto kind : {EventKind::Cr, EventKind::Hypercall, EventKind::PageFault}) events.add(kind);
  return events;
}

}  // namespace

TEST_CASE("a hypervisor that breaks the protocol loses its connection and nobody else anything", "[wire][hypervisor]") {
  WireDaemon daemon;
  Bystander bystander(daemon.hypervisors(), daemon.agents());
  std::uint64_t broken = daemon.counter("protocol_errors");
  std::uint8_t number = 1;
  for (const auto& mistake : kMistakes) {
    INFO(mistake.name);
    const ScriptedGuest guest{.uuid = uuid_of(++number), .name = "wrong" + std::to_string(number)};
    auto hypervisor = std::make_unique<ScriptedHypervisor>(daemon.hypervisors(), guest);
    REQUIRE(hypervisor->accepted());
    auto agent = attach_agent(daemon.agents(), guest.uuid, "watcher");
    REQUIRE(agent.subscribe(all_scripted(), Role::Decider));

    mistake.make(*hypervisor);

    CHECK(hypervisor->wait_closed());
    CHECK(wait_gone(agent).reason == mistake.told);
    daemon.wait_log({"warning hypervisor broke the protocol", "guest=" + guest.name, mistake.reason});
    daemon.wait_log({"hypervisor gone", "guest=" + guest.name});
    CHECK(daemon.wait_counter("protocol_errors", broken + 1) == broken + 1);
    ++broken;
    bystander.check();

    // The same guest may come back, and the agent that stayed gets its events as before.
    hypervisor = std::make_unique<ScriptedHypervisor>(daemon.hypervisors(), guest);
    REQUIRE(hypervisor->accepted());
    const auto back = agent.wait_guest(kBound);
    REQUIRE(back);
    REQUIRE(*back);
    CHECK(std::holds_alternative<client::GuestEntry>(**back));
  }
  CHECK(daemon.process().running());
}

TEST_CASE("an event of a vCPU that already waits ends the connection, and its agents are told", "[wire][hypervisor]") {
  WireDaemon daemon;
  Bystander bystander(daemon.hypervisors(), daemon.agents());
  ScriptedHypervisor hypervisor(daemon.hypervisors(), {.uuid = uuid_of(1), .name = "twice"});
  auto agent = attach_agent(daemon.agents(), uuid_of(1), "watcher");
  REQUIRE(agent.subscribe(all_scripted(), Role::Decider));
  hypervisor.raise(make_event(EventKind::Hypercall, VcpuId{1}));
  const auto first = agent.wait_event(kBound);
  REQUIRE(first);
  REQUIRE(*first);

  hypervisor.raise(make_event(EventKind::Cr, VcpuId{1}));

  CHECK(hypervisor.wait_closed());
  CHECK(wait_gone(agent).reason == OffReason::ProtocolError);
  daemon.wait_log({"hypervisor broke the protocol", "guest=twice", "vcpu=1", "already waits"});
  bystander.check();
}

TEST_CASE("an event before the version was said ends the connection", "[wire][hypervisor]") {
  WireDaemon daemon;
  Bystander bystander(daemon.hypervisors(), daemon.agents());
  ScriptedHypervisor hypervisor(daemon.hypervisors(), {.uuid = uuid_of(1), .name = "hasty"}, false);
  REQUIRE(hypervisor.accepted());

  hypervisor.raise(make_event(EventKind::Hypercall));

  CHECK(hypervisor.wait_closed());
  daemon.wait_log({"hypervisor broke the protocol", "guest=hasty", "before it said its version"});
  bystander.check();
}

TEST_CASE("a hypervisor that speaks another version in GET_VERSION is disconnected", "[wire][hypervisor]") {
  WireDaemon daemon;
  ScriptedHypervisor hypervisor(daemon.hypervisors(), {.uuid = uuid_of(1), .name = "future"}, false);
  REQUIRE(hypervisor.accepted());
  const GetVersionReply version{.version = 3, .commands = {}, .events = {}};
  hypervisor.answer_next(CommandReply{.id = KVMI_MSG_GET_VERSION, .text = {}, .body = version});

  CHECK(hypervisor.wait_closed());
  daemon.wait_log({"hypervisor broke the protocol", "guest=future", "another version"});
}

TEST_CASE("an answer that comes twice ends the connection, an answer out of order does not", "[wire][hypervisor]") {
  WireDaemon daemon;
  Bystander bystander(daemon.hypervisors(), daemon.agents());
  ScriptedHypervisor hypervisor(daemon.hypervisors(), {.uuid = uuid_of(1), .name = "stutter"});
  auto agent = attach_agent(daemon.agents(), uuid_of(1), "reader");
  hypervisor.hold(CommandId::ReadPhysical);
  const kvmi_read_range range{0x1000, 8, 0};
  const auto first = agent.submit(ReadPhysical{AddressSpace::Normal, std::span(&range, 1)});
  const auto second = agent.submit(ReadPhysical{AddressSpace::Normal, std::span(&range, 1)});
  REQUIRE(first);
  REQUIRE(second);
  const auto held = hypervisor.wait_held(2);
  const ByteBuffer ones(8, std::byte{1});
  const ByteBuffer twos(8, std::byte{2});
  const auto answer = [&](Seq seq, const ByteBuffer& data) {
    hypervisor.send(
        encoded(CommandReply{.id = KVMI_MSG_READ_PHYSICAL, .text = {}, .body = ReadPhysicalReply{0, data}}, seq));
  };

  answer(held[1].seq, twos);
  answer(held[0].seq, ones);

  // Each asker has its own answer, whatever the order on the wire.
  auto reply_one = agent.collect(*first, kBound);
  auto reply_two = agent.collect(*second, kBound);
  REQUIRE(reply_one);
  REQUIRE(reply_two);
  REQUIRE(reply_one->body<ReadPhysicalReply>() != nullptr);
  CHECK(reply_one->body<ReadPhysicalReply>()->data[0] == std::byte{1});
  REQUIRE(reply_two->body<ReadPhysicalReply>() != nullptr);
  CHECK(reply_two->body<ReadPhysicalReply>()->data[0] == std::byte{2});
  CHECK(hypervisor.is_open());

  answer(held[0].seq, ones);

  CHECK(hypervisor.wait_closed());
  daemon.wait_log({"hypervisor broke the protocol", "guest=stutter", "not open"});
  bystander.check();
}

TEST_CASE("an answer with another command's id, or of another size than asked, ends the connection",
          "[wire][hypervisor]") {
  WireDaemon daemon;
  Bystander bystander(daemon.hypervisors(), daemon.agents());
  std::uint8_t number = 1;
  const auto attempt = [&](const CommandReply& wrong, const std::string& reason) {
    INFO(reason);
    const ScriptedGuest guest{.uuid = uuid_of(++number), .name = "mixed" + std::to_string(number)};
    ScriptedHypervisor hypervisor(daemon.hypervisors(), guest);
    auto agent = attach_agent(daemon.agents(), guest.uuid, "reader");
    const Seq seq = open_read(hypervisor, agent);
    hypervisor.send(encoded(wrong, seq));
    CHECK(hypervisor.wait_closed());
    CHECK(wait_gone(agent).reason == OffReason::ProtocolError);
    daemon.wait_log({"hypervisor broke the protocol", "guest=" + guest.name, reason});
  };
  const ByteBuffer seven(7);
  attempt(CommandReply{.id = KVMI_MSG_WRITE_PHYSICAL, .text = {}, .body = WritePhysicalReply{}}, "another command");
  attempt(CommandReply{.id = KVMI_MSG_READ_PHYSICAL, .text = {}, .body = ReadPhysicalReply{0, seven}}, "another size");
  bystander.check();
}

TEST_CASE("every open command of an agent is answered when its hypervisor breaks the protocol", "[wire][hypervisor]") {
  WireDaemon daemon;
  ScriptedHypervisor hypervisor(daemon.hypervisors(), {.uuid = uuid_of(1), .name = "leaver"});
  auto agent = attach_agent(daemon.agents(), uuid_of(1), "reader");
  hypervisor.hold(CommandId::ReadPhysical);
  const kvmi_read_range range{0x1000, 8, 0};
  std::vector<client::Ticket> tickets;
  for (int i = 0; i < 10; ++i) {
    const auto ticket = agent.submit(ReadPhysical{AddressSpace::Normal, std::span(&range, 1)});
    REQUIRE(ticket);
    tickets.push_back(*ticket);
  }
  hypervisor.wait_held(tickets.size());

  hypervisor.send(frame_of(999, 1, {}));

  for (const auto ticket : tickets) {
    auto reply = agent.collect(ticket, kBound);
    REQUIRE(reply);
    CHECK(reply->error() == ErrorCode::NoDevice);
    CHECK_FALSE(reply->text().empty());
  }
}

TEST_CASE("a hypervisor that dies within a frame is a lost link, not a broken protocol", "[wire][hypervisor]") {
  WireDaemon daemon;
  Bystander bystander(daemon.hypervisors(), daemon.agents());
  const auto broken = daemon.counter("protocol_errors");
  auto hypervisor =
      std::make_unique<ScriptedHypervisor>(daemon.hypervisors(), ScriptedGuest{.uuid = uuid_of(1), .name = "torn"});
  auto agent = attach_agent(daemon.agents(), uuid_of(1), "watcher");
  const ByteBuffer event = encoded(make_event(EventKind::Cr), Seq{5});
  for (const std::size_t cut : {std::size_t{3}, sizeof(kvmi_msg_hdr), event.size() - 1}) {
    INFO("cut after " << cut << " bytes");
    hypervisor->send(Bytes(event).first(cut));
    hypervisor.reset();
    CHECK(wait_gone(agent).reason == OffReason::LinkLost);
    hypervisor =
        std::make_unique<ScriptedHypervisor>(daemon.hypervisors(), ScriptedGuest{.uuid = uuid_of(1), .name = "torn"});
    REQUIRE(hypervisor->accepted());
    const auto back = agent.wait_guest(kBound);
    REQUIRE(back);
    REQUIRE(*back);
  }
  CHECK(daemon.counter("protocol_errors") == broken);
  bystander.check();
}

TEST_CASE("a frame that arrives byte by byte is a frame", "[wire][hypervisor]") {
  WireDaemon daemon;
  ScriptedHypervisor hypervisor(daemon.hypervisors(), {.uuid = uuid_of(1), .name = "slow"});
  auto agent = attach_agent(daemon.agents(), uuid_of(1), "watcher");
  REQUIRE(agent.subscribe(all_scripted(), Role::Decider));
  const ByteBuffer event = encoded(make_event(EventKind::Hypercall), Seq{5});
  for (const std::byte byte : event) hypervisor.send(std::span(&byte, 1));
  const auto seen = agent.wait_event(kBound);
  REQUIRE(seen);
  REQUIRE(*seen);
  REQUIRE(agent.reply(**seen, Action::Skip));
  const auto reply = hypervisor.wait_reply(Seq{5});
  REQUIRE(reply);
  CHECK(reply->action == Action::Skip);
}

TEST_CASE("a hypervisor that does not answer a command in time is disconnected", "[wire][hypervisor]") {
  WireDaemon daemon(wire_config(R"({"limits": {"command_timeout_ms": 200}})"));
  ScriptedHypervisor hypervisor(daemon.hypervisors(), {.uuid = uuid_of(1), .name = "silent"});
  auto agent = attach_agent(daemon.agents(), uuid_of(1), "reader");
  open_read(hypervisor, agent);
  CHECK(hypervisor.wait_closed());
  CHECK(wait_gone(agent).reason == OffReason::ProtocolError);
  daemon.wait_log({"command timed out", "guest=silent", "command=READ_PHYSICAL"});
}
