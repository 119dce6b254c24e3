// SPDX-License-Identifier: GPL-2.0-or-later
//
// The server side in the older dialects: the test is the tool.

#include <catch2/catch.hpp>

#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "hypervisor/server/session.h"
#include "protocol/kvmi1_codec.h"
#include "tests/unit/hypervisor/recording_backend.h"

namespace kvmid::hypervisor {

namespace {

using kvmi1::DialectId;

constexpr std::array kDialects{DialectId::Rfc2017, DialectId::V6, DialectId::V7, DialectId::V12};

/// What the session sent, with the frame that it was in.
struct Sent {
  std::shared_ptr<ByteBuffer> bytes;
  Frame frame;
  kvmi1::Upward message;

  [[nodiscard]] const kvmi1::Reply* reply() const { return std::get_if<kvmi1::Reply>(&message); }
  [[nodiscard]] const kvmi1::EventMessage* event() const { return std::get_if<kvmi1::EventMessage>(&message); }
};

struct Tool {
  explicit Tool(DialectId dialect) : codec(kvmi1::codec(dialect)), session(backend, dialect) {}

  RecordingBackend backend;
  const kvmi1::Codec& codec;
  Session session;

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
  std::optional<std::string> send(const kvmi1::Command& command, std::uint32_t seq) {
    ByteBuffer bytes;
    codec.encode(command, Seq{seq}, bytes);
    return send(bytes);
  }
  std::optional<std::string> answer(const Sent& event, std::uint32_t action, std::optional<std::uint64_t> value = {}) {
    const Event& what = event.event()->event;
    kvmi1::EventReplyMessage message;
    if (codec.dialect() != DialectId::Rfc2017) {
      message.vcpu = what.vcpu;
      message.event = static_cast<std::uint8_t>(codec.number_of(what.kind()).value());
    }
    message.action = action;
    if (value) message.data = std::as_bytes(std::span(&*value, 1));
    ByteBuffer bytes;
    codec.encode(message, event.frame.seq, bytes);
    return send(bytes);
  }
  std::vector<Sent> take() {
    std::vector<Sent> all;
    FrameParser parser(codec.payload_max());
    Bytes left = session.outbox();
    while (!left.empty()) {
      const auto space = parser.writable();
      const std::size_t n = std::min(space.size(), left.size());
      std::memcpy(space.data(), left.data(), n);
      parser.commit(n);
      left = left.subspan(n);
      for (;;) {
        const auto frame = parser.next();
        REQUIRE(frame);
        if (*frame == nullptr) break;
        const Bytes payload = (*frame)->payload;
        Sent sent{std::make_shared<ByteBuffer>(payload.begin(), payload.end()), **frame, {}};
        sent.frame.payload = *sent.bytes;
        const auto message = codec.decode_upward(sent.frame);
        REQUIRE(message);
        sent.message = *message;
        all.push_back(std::move(sent));
      }
    }
    REQUIRE(parser.pending() == 0);
    session.sent(session.outbox().size());
    return all;
  }
  /// The one message that waits.
  Sent only() {
    auto all = take();
    REQUIRE(all.size() == 1);
    return all.front();
  }
  std::int32_t error_of(const kvmi1::Command& command, std::uint32_t seq = 99) {
    REQUIRE_FALSE(send(command, seq));
    const Sent sent = only();
    REQUIRE(sent.reply() != nullptr);
    REQUIRE(sent.frame.seq == Seq{seq});
    return sent.reply()->error;
  }
  void watch_cr() {
    if (codec.dialect() == DialectId::Rfc2017) {
      REQUIRE(error_of(kvmi1::SetEvents{VcpuId{0}, codec.number_of(EventKind::Cr).value()}) == 0);
      REQUIRE(error_of(kvmi1::ControlGuestCr{true, 4}) == 0);
    } else {
      REQUIRE(error_of(kvmi1::ControlEvents{VcpuId{0}, codec.number_of(EventKind::Cr).value(), true}) == 0);
      REQUIRE(error_of(kvmi1::ControlCr{VcpuId{0}, true, 4}) == 0);
    }
    REQUIRE(backend.hooks().watches_cr(VcpuId{0}, 4));
  }
  static Event cr4_write(std::uint16_t vcpu = 0) {
    Event event;
    event.vcpu = VcpuId{vcpu};
    event.actions = ActionSet{KVMI_ACTION_BIT(KVMI_ACTION_ALLOW) | KVMI_ACTION_BIT(KVMI_ACTION_SKIP) |
                              KVMI_ACTION_BIT(KVMI_ACTION_CRASH)};
    event.data = CrData{4, 0x20, 0xa0};
    return event;
  }
  static Event pause_of(std::uint16_t vcpu) {
    Event event;
    event.vcpu = VcpuId{vcpu};
    event.actions = ActionSet{KVMI_ACTION_BIT(KVMI_ACTION_ALLOW)};
    event.data = PauseData{};
    return event;
  }
};

}  // namespace

TEST_CASE("each older dialect has its own answer to GET_VERSION", "[server][older]") {
  const std::array sizes{std::pair{DialectId::Rfc2017, 8U}, std::pair{DialectId::V6, 16U}, std::pair{DialectId::V7, 24U},
                         std::pair{DialectId::V12, 24U}};
  for (const auto& [dialect, size] : sizes) {
    INFO(kvmi1::name_of(dialect));
    Tool tool(dialect);
    REQUIRE(tool.session.outbox().empty());

    ByteBuffer request;
    tool.codec.encode(kvmi1::Command{kvmi1::GetVersion{}}, Seq{7}, request);
    for (const std::byte b : request) REQUIRE_FALSE(tool.send(Bytes(&b, 1)));

    const Sent sent = tool.only();
    REQUIRE(sent.frame.seq == Seq{7});
    REQUIRE(sent.frame.payload.size() == size);
    const auto& version = std::get<kvmi1::GetVersionReply>(sent.reply()->body);
    CHECK(version.version == 1);
    CHECK(version.max_message == (dialect == DialectId::V12 ? 8184 : 0));
    const auto found = kvmi1::dialect_of_version_reply(sent.frame.payload);
    if (dialect != DialectId::Rfc2017) CHECK(found == dialect);
  }
}

TEST_CASE("an event of an older dialect goes to the tool and its answer to the guest", "[server][older]") {
  for (const DialectId dialect : kDialects) {
    INFO(kvmi1::name_of(dialect));
    const bool is_2017 = dialect == DialectId::Rfc2017;
    const std::uint32_t go_on = is_2017 ? kvmi1::kAllow2017 : kvmi1::kContinue;
    Tool tool(dialect);
    tool.watch_cr();
    const auto next = [&] {
      tool.session.raise(Tool::cr4_write());
      const Sent sent = tool.only();
      REQUIRE(sent.event() != nullptr);
      const auto& cr = std::get<CrData>(sent.event()->event.data);
      REQUIRE((cr.cr == 4 && cr.old_value == 0x20 && cr.new_value == 0xa0));
      return sent;
    };

    REQUIRE_FALSE(tool.answer(next(), go_on, 0xa0));
    REQUIRE_FALSE(tool.answer(next(), go_on, 0x60));
    REQUIRE_FALSE(tool.answer(next(), go_on, 0x20));

    REQUIRE(tool.backend.answers.size() == 3);
    for (const EventReply& reply : tool.backend.answers) REQUIRE(reply.event == EventKind::Cr);
    CHECK(tool.backend.answers[0].action == Action::Allow);
    CHECK(std::holds_alternative<std::monostate>(tool.backend.answers[0].value));
    CHECK(tool.backend.answers[1].action == Action::Allow);
    CHECK(std::get<NewValue>(tool.backend.answers[1].value).value == 0x60);
    CHECK(tool.backend.answers[2].action == Action::Skip);  // the old value: the register stays
    CHECK(tool.session.outbox().empty());
  }
}

TEST_CASE("CRASH and a value that was left out mean what they do to the published kernels", "[server][older]") {
  for (const DialectId dialect : {DialectId::V6, DialectId::V7, DialectId::V12}) {
    INFO(kvmi1::name_of(dialect));
    Tool tool(dialect);
    tool.watch_cr();
    tool.session.raise(Tool::cr4_write());
    REQUIRE_FALSE(tool.answer(tool.only(), kvmi1::kContinue));
    tool.session.raise(Tool::cr4_write());
    REQUIRE_FALSE(tool.answer(tool.only(), kvmi1::kCrash));
    REQUIRE(tool.backend.answers.size() == 2);
    CHECK(std::get<NewValue>(tool.backend.answers[0].value).value == 0);
    CHECK(tool.backend.answers[1].action == Action::Crash);
  }
}

TEST_CASE("an answer that makes the guest raise its next event is followed by that event", "[server][older]") {
  struct Eager final : RecordingBackend {
    EventSink* sink = nullptr;
    void answer(const EventReply& reply) override {
      RecordingBackend::answer(reply);
      if (answers.size() < 3) sink->raise(Tool::cr4_write(1));
    }
  };
  Eager backend;
  Session session(backend, DialectId::V12);
  backend.sink = &session;
  session.raise(Tool::cr4_write(1));
  for (std::uint32_t seq = 1; seq <= 3; ++seq) {
    session.sent(session.outbox().size());
    kvmi1::EventReplyMessage message;
    message.vcpu = VcpuId{1};
    ByteBuffer bytes;
    kvmi1::codec(DialectId::V12).encode(message, Seq{seq}, bytes);
    std::memcpy(session.writable().data(), bytes.data(), bytes.size());
    REQUIRE_FALSE(session.received(bytes.size()));
    CHECK(session.outbox().empty() == (seq == 3));
  }
  CHECK(backend.answers.size() == 3);
}

TEST_CASE("a PAUSE that waits is answered when the vCPU has stopped", "[server][older]") {
  Tool tool(DialectId::V7);
  REQUIRE_FALSE(tool.send(kvmi1::PauseVcpu{VcpuId{1}, true}, 5));
  REQUIRE(tool.backend.paused == std::vector<std::uint16_t>{1});
  REQUIRE(tool.session.outbox().empty());

  tool.session.raise(Tool::pause_of(1));

  const auto sent = tool.take();
  REQUIRE(sent.size() == 2);
  const bool event_first = sent[0].event() != nullptr;
  CHECK(sent[event_first ? 1 : 0].frame.seq == Seq{5});
  CHECK(sent[event_first ? 1 : 0].reply()->error == 0);
  CHECK(sent[event_first ? 0 : 1].event()->event.kind() == EventKind::Pause);
}

TEST_CASE("the guest of an older dialect has what the backend serves, and says so", "[server][older]") {
  Tool tool(DialectId::V7);
  CHECK(tool.error_of(kvmi1::CheckEvent{tool.codec.number_of(EventKind::Cr).value()}) == 0);
  CHECK(tool.error_of(kvmi1::CheckEvent{tool.codec.number_of(EventKind::Msr).value()}) == -kvmi1::kEperm);
  CHECK(tool.error_of(kvmi1::CheckCommand{tool.codec.number_of(kvmi1::kind_of<kvmi1::GetRegisters>).value()}) == 0);
  CHECK(tool.error_of(kvmi1::CheckCommand{tool.codec.number_of(kvmi1::kind_of<kvmi1::GetXsave>).value()}) ==
        -kvmi1::kEperm);
  tool.backend.change_facts().commands.add(CommandId::GetCpuid);  // not looked at again during a session
  CHECK(tool.error_of(kvmi1::GetCpuid{VcpuId{0}, 1, 0}) == -kvmi1::kEopnotsupp);
  CHECK(tool.error_of(kvmi1::GetVcpuInfo{VcpuId{2}}) == -kvmi1::kEinval);

  REQUIRE_FALSE(tool.send(kvmi1::GetMaxGfn{}, 3));
  CHECK(std::get<kvmi1::GfnReply>(tool.only().reply()->body).gfn == Gfn{RecordingBackend::kPages});
}

TEST_CASE("in an older dialect a breakpoint is a byte like any other", "[server][older]") {
  for (const DialectId dialect : kDialects) {
    INFO(kvmi1::name_of(dialect));
    RecordingBackend backend;
    {
      Session session(backend, dialect);
      const std::byte int3{0xcc};
      ByteBuffer bytes;
      kvmi1::codec(dialect).encode(kvmi1::WritePhysical{Gpa{0x1234}, Bytes(&int3, 1)}, Seq{1}, bytes);
      std::memcpy(session.writable().data(), bytes.data(), bytes.size());
      REQUIRE_FALSE(session.received(bytes.size()));
      REQUIRE(backend.memory[0x1234] == int3);
    }
    CHECK(backend.memory[0x1234] == std::byte{0xcc});  // nobody takes it back with the connection
  }
}

TEST_CASE("a tool without UNHOOK is let go at once and hears nothing", "[server][older]") {
  for (const DialectId dialect : kDialects) {
    INFO(kvmi1::name_of(dialect));
    Tool tool(dialect);
    tool.session.unhook(OffReason::Suspend);
    CHECK(tool.session.unhooked());
    CHECK(tool.session.outbox().empty());
  }
}

TEST_CASE("a tool that enabled UNHOOK is told, and served until it closes", "[server][older]") {
  for (const DialectId dialect : {DialectId::V6, DialectId::V7, DialectId::V12}) {
    INFO(kvmi1::name_of(dialect));
    Tool tool(dialect);
    tool.watch_cr();
    REQUIRE(tool.error_of(kvmi1::ControlVmEvents{tool.codec.number_of(EventKind::Unhook).value(), true}) == 0);
    tool.session.raise(Tool::cr4_write());
    const Sent waiting = tool.only();

    tool.session.unhook(OffReason::Migration);

    const Sent unhook = tool.only();
    REQUIRE(unhook.event() != nullptr);
    CHECK(unhook.event()->event.kind() == EventKind::Unhook);
    CHECK(unhook.frame.payload.size() == (dialect == DialectId::V12 ? 8 : 544));
    CHECK_FALSE(tool.session.unhooked());  // its closing says so
    // The guest runs on meanwhile: what waits is answered, hooks and breakpoints are taken back.
    REQUIRE_FALSE(tool.answer(waiting, kvmi1::kContinue, 0xa0));
    REQUIRE(tool.backend.answers.size() == 1);
    const std::byte nop{0x90};
    CHECK(tool.error_of(kvmi1::WritePhysical{Gpa{0x1000}, Bytes(&nop, 1)}) == 0);
    CHECK(tool.backend.memory[0x1000] == nop);
    CHECK(tool.error_of(kvmi1::ControlCr{VcpuId{0}, false, 4}) == 0);
    CHECK_FALSE(tool.backend.hooks().watches_cr(VcpuId{0}, 4));
  }
}

TEST_CASE("a tool that breaks its dialect is told apart from one that errs", "[server][older]") {
  SECTION("a reply to nothing: v12 closes, v7 does not care") {
    for (const DialectId dialect : {DialectId::V7, DialectId::V12}) {
      Tool tool(dialect);
      kvmi1::EventReplyMessage message;
      ByteBuffer bytes;
      tool.codec.encode(message, Seq{1}, bytes);
      CHECK(tool.send(bytes).has_value() == (dialect == DialectId::V12));
    }
  }
  SECTION("an unknown command is answered") {
    const kvmi_msg_hdr hdr{61, 0, 5};
    Tool tool(DialectId::V7);
    REQUIRE_FALSE(tool.send(std::as_bytes(std::span(&hdr, 1))));
    CHECK(tool.only().reply()->error == -kvmi1::kEnosys);
  }
  SECTION("a payload that no message has") {
    const kvmi_msg_hdr hdr{2, 8185, 5};
    Tool tool(DialectId::V12);
    CHECK(tool.send(std::as_bytes(std::span(&hdr, 1))).value().find("8185 bytes") != std::string::npos);
  }
}

TEST_CASE("older dialects do not hear of changes of the memory map", "[server][older]") {
  Tool tool(DialectId::V7);
  MemoryMapChanged change;
  change.change = MapChange::Removed;
  change.slot.gpa = 0x1000;
  change.slot.bytes = 0x1000;
  tool.session.map_changing(change);
  CHECK(tool.session.outbox().empty());
}

}  // namespace kvmid::hypervisor
