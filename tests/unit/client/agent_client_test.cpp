// SPDX-License-Identifier: GPL-2.0-or-later

#include "client/agent_client.h"

#include <fcntl.h>
#include <poll.h>

#include "scripted_peer.h"

using namespace kvmid;
using namespace kvmid::client;
using namespace kvmid::client::test;

namespace {

constexpr Millis kSoon{5000};  // long enough for a busy machine; a passing test never waits for it
constexpr Millis kNow{0};

}  // namespace

TEST_CASE("the hello names the agent and the guest, the welcome's facts are kept", "[client]") {
  ScriptedPeer peer;
  auto options = ScriptedPeer::attached();
  options.outcomes = true;
  const auto client = peer.client(options);
  CHECK(peer.hello().name == "tester");
  CHECK(peer.hello().uuid == kGuest);
  CHECK(peer.hello().flags == KVMI_HELLO_OUTCOMES);
  CHECK(client.welcome().agent.value == 7);
  CHECK(client.welcome().guest_name == "web1");
  CHECK(client.welcome().vcpu_count == 2);
  CHECK(client.welcome().deadline == std::chrono::milliseconds(100));
}

TEST_CASE("a refusal gives kvmid's number and words", "[client]") {
  ScriptedPeer peer;
  auto welcome = good_welcome();
  welcome.status = -KVMI_EPERM;
  copy_text("policy: uid 1000 may not see this guest", welcome.text, sizeof welcome.text);
  peer.say_bytes(ScriptedPeer::encoded(welcome));
  const auto client = AgentClient::adopt(peer.take_client_end(), ScriptedPeer::attached());
  REQUIRE_FALSE(client);
  CHECK(client.error().kind == ClientErrc::Refused);
  CHECK(client.error().code == ErrorCode::NotPermitted);
  CHECK(client.error().text == "policy: uid 1000 may not see this guest");
}

TEST_CASE("what follows the welcome in the same bytes is not lost", "[client]") {
  ScriptedPeer peer;
  auto bytes = ScriptedPeer::encoded(good_welcome());
  DialectKvmi2().encode(cr_event(), Seq{9}, bytes);
  peer.say_bytes(bytes);
  auto client = AgentClient::adopt(peer.take_client_end(), ScriptedPeer::attached());
  REQUIRE(client);
  const auto event = client->wait_event(kSoon);
  REQUIRE(event);
  REQUIRE(event->has_value());
  CHECK((*event)->seq.value == 9);
}

TEST_CASE("a welcome cut at any byte is an error that says so", "[client]") {
  const auto whole = ScriptedPeer::encoded(good_welcome());
  for (std::size_t cut = 0; cut < whole.size(); ++cut) {
    ScriptedPeer peer;
    peer.say_bytes(Bytes(whole).first(cut));
    auto fd = peer.take_client_end();
    peer.close();
    const auto client = AgentClient::adopt(std::move(fd), ScriptedPeer::attached());
    REQUIRE_FALSE(client);
    REQUIRE(client.error().kind == ClientErrc::Closed);
  }
}

TEST_CASE("a peer that speaks something else is a protocol error", "[client]") {
  ScriptedPeer peer;
  const std::string http = "HTTP/1.1 400 Bad Request\r\n\r\n";
  peer.say_bytes(std::as_bytes(std::span(http)));
  const auto client = AgentClient::adopt(peer.take_client_end(), ScriptedPeer::attached());
  REQUIRE_FALSE(client);
  CHECK(client.error().kind == ClientErrc::Protocol);
}

TEST_CASE("a kvmid that says nothing is a timeout", "[client]") {
  ScriptedPeer peer;
  auto options = ScriptedPeer::attached();
  options.timeout = Millis{1};
  const auto client = AgentClient::adopt(peer.take_client_end(), options);
  REQUIRE_FALSE(client);
  CHECK(client.error().kind == ClientErrc::TimedOut);
}

TEST_CASE("a bad agent name is refused before anything is sent", "[client]") {
  for (const std::string& name : {std::string(), std::string(64, 'a'), std::string("a\nb")}) {
    ScriptedPeer peer;
    auto options = ScriptedPeer::attached();
    options.name = name;
    const auto client = AgentClient::adopt(peer.take_client_end(), options);
    REQUIRE_FALSE(client);
    CHECK(client.error().kind == ClientErrc::BadArgument);
  }
}

TEST_CASE("a missing socket is unreachable and its path is in the text", "[client]") {
  ConnectOptions options;
  options.socket = "/nonexistent/kvmid/agent.sock";
  const auto client = AgentClient::connect(options);
  REQUIRE_FALSE(client);
  CHECK(client.error().kind == ClientErrc::Unreachable);
  CHECK(client.error().text.find(options.socket) != std::string::npos);
}

TEST_CASE("an address too long for a socket is the caller's mistake", "[client]") {
  ConnectOptions options;
  options.socket = std::string(200, 'x');
  const auto client = AgentClient::connect(options);
  REQUIRE_FALSE(client);
  CHECK(client.error().kind == ClientErrc::BadArgument);
}

TEST_CASE("replies are collected in any order", "[client]") {
  ScriptedPeer peer;
  auto client = peer.client();
  const auto first = client.submit(GetXcr{VcpuId{0}, 0});
  const auto second = client.submit(GetXcr{VcpuId{1}, 0});
  REQUIRE((first && second));
  const auto a = peer.heard();
  const auto b = peer.heard();
  CHECK(a.as<GetXcr>().vcpu.value == 0);
  CHECK(b.as<GetXcr>().vcpu.value == 1);
  peer.say(ok(KVMI_MSG_GET_XCR, GetXcrReply{22}), b.seq);
  peer.say(ok(KVMI_MSG_GET_XCR, GetXcrReply{11}), a.seq);
  const auto reply_a = client.collect(*first, kSoon);
  const auto reply_b = client.collect(*second, kSoon);
  REQUIRE((reply_a && reply_b));
  CHECK(reply_a->body<GetXcrReply>()->value == 11);
  CHECK(reply_b->body<GetXcrReply>()->value == 22);
  CHECK(client.open_requests() == 0);
  CHECK(client.collect(*first, kNow).error().kind == ClientErrc::BadArgument);
}

TEST_CASE("events that arrive while a reply is waited for are kept in order", "[client]") {
  ScriptedPeer peer;
  auto client = peer.client();
  const auto ticket = client.submit(GetVersion{});
  REQUIRE(ticket);
  const auto request = peer.heard();
  peer.say(cr_event(), 100);
  peer.say(cr_event(), 101);
  peer.say(ok(KVMI_MSG_GET_VERSION, GetVersionReply{}), request.seq);
  REQUIRE(client.collect(*ticket, kSoon));
  CHECK(client.pending_messages() == 2);
  const auto event = client.wait_event(kNow);
  REQUIRE((event && *event));
  CHECK((*event)->seq.value == 100);
  CHECK((*event)->event.kind() == EventKind::Cr);
  CHECK(std::get<CrData>((*event)->event.data).old_value == 0x20);
}

TEST_CASE("an error reply keeps its number and text", "[client]") {
  ScriptedPeer peer;
  auto client = peer.client();
  const auto ticket = client.submit(PauseVcpu{VcpuId{9}});
  REQUIRE(ticket);
  peer.say(CommandReply{KVMI_MSG_PAUSE_VCPU, ErrorCode::Invalid, "there is no vCPU 9", {}}, peer.heard().seq);
  const auto reply = client.collect(*ticket, kSoon);
  REQUIRE(reply);
  CHECK_FALSE(reply->ok());
  CHECK(reply->error() == ErrorCode::Invalid);
  CHECK(reply->text() == "there is no vCPU 9");
}

TEST_CASE("a reply that does not come is a timeout, and may be collected later", "[client]") {
  ScriptedPeer peer;
  auto client = peer.client();
  const auto ticket = client.submit(GetVersion{});
  REQUIRE(ticket);
  const auto late = client.collect(*ticket, kNow);
  REQUIRE_FALSE(late);
  CHECK(late.error().kind == ClientErrc::TimedOut);
  peer.say(ok(KVMI_MSG_GET_VERSION, GetVersionReply{}), peer.heard().seq);
  CHECK(client.collect(*ticket, kSoon));
}

TEST_CASE("a forgotten reply is swallowed when it comes", "[client]") {
  ScriptedPeer peer;
  auto client = peer.client();
  const auto timed = client.call(GetVersion{}, kNow);
  REQUIRE_FALSE(timed);
  CHECK(client.open_requests() == 1);
  peer.say(ok(KVMI_MSG_GET_VERSION, GetVersionReply{}), peer.heard().seq);
  peer.say(cr_event(), 5);
  const auto event = client.wait_event(kSoon);
  REQUIRE((event && *event));
  CHECK(client.open_requests() == 0);
}

TEST_CASE("a reply to a command that nobody sent ends the connection", "[client]") {
  ScriptedPeer peer;
  auto client = peer.client();
  peer.say(ok(KVMI_MSG_GET_VERSION, GetVersionReply{}), Seq{77});
  const auto next = client.next_message(kSoon);
  REQUIRE_FALSE(next);
  CHECK(next.error().kind == ClientErrc::Protocol);
  CHECK_FALSE(client.is_open());
  CHECK(client.fd() == -1);
}

TEST_CASE("a reply to another command than was sent ends the connection", "[client]") {
  ScriptedPeer peer;
  auto client = peer.client();
  const auto ticket = client.submit(GetVersion{});
  REQUIRE(ticket);
  peer.say(ok(KVMI_MSG_GET_XCR, GetXcrReply{1}), peer.heard().seq);
  CHECK(client.collect(*ticket, kSoon).error().kind == ClientErrc::Protocol);
}

TEST_CASE("a command answered twice ends the connection", "[client]") {
  ScriptedPeer peer;
  auto client = peer.client();
  const auto ticket = client.submit(GetVersion{});
  REQUIRE(ticket);
  const auto seq = peer.heard().seq;
  peer.say(ok(KVMI_MSG_GET_VERSION, GetVersionReply{}), seq);
  peer.say(ok(KVMI_MSG_GET_VERSION, GetVersionReply{}), seq);
  peer.say(cr_event(), 1);
  // The first answer is good and is not lost with the connection.
  CHECK(client.wait_event(kSoon).error().kind == ClientErrc::Protocol);
  CHECK(client.collect(*ticket, kNow));
}

TEST_CASE("an event payload cut at any byte is refused and never read past", "[client]") {
  ByteBuffer whole;
  DialectKvmi2().encode(cr_event(), Seq{3}, whole);
  for (std::size_t size = 0; size < whole.size() - sizeof(kvmi_msg_hdr); size += 7) {
    ScriptedPeer peer;
    auto client = peer.client();
    kvmi_msg_hdr header{KVMI_MSG_EVENT, static_cast<std::uint16_t>(size), 3};
    ByteBuffer cut(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(sizeof header + size));
    std::memcpy(cut.data(), &header, sizeof header);
    peer.say_bytes(cut);
    const auto next = client.next_message(kSoon);
    REQUIRE_FALSE(next);
    REQUIRE(next.error().kind == ClientErrc::Protocol);
  }
}

TEST_CASE("bytes that arrive one at a time make the same event", "[client]") {
  ScriptedPeer peer;
  auto client = peer.client();
  ByteBuffer whole;
  DialectKvmi2().encode(cr_event(), Seq{3}, whole);
  for (std::size_t i = 0; i < whole.size(); ++i) {
    const auto before = client.next_message(kNow);
    REQUIRE(before);
    REQUIRE_FALSE(before->has_value());
    peer.say_bytes(Bytes(whole).subspan(i, 1));
  }
  const auto event = client.wait_event(kSoon);
  REQUIRE((event && *event));
  CHECK((*event)->event.regs.rip == 0xffffffff81000000);
}

TEST_CASE("what was said before the end is still heard, then the end is an error", "[client]") {
  ScriptedPeer peer;
  auto client = peer.client();
  peer.say(GuestOff{kGuest, OffReason::DaemonStopping, "kvmid stops"});
  peer.close();
  const auto last = client.next_message(kSoon);
  REQUIRE((last && *last));
  CHECK(std::get<GuestGone>(**last).reason == OffReason::DaemonStopping);
  CHECK(std::get<GuestGone>(**last).text == "kvmid stops");
  CHECK(client.next_message(kSoon).error().kind == ClientErrc::Closed);
  CHECK(client.submit(GetVersion{}).error().kind == ClientErrc::Closed);
}

TEST_CASE("a command to a peer that closed after a notice finds the notice and the end", "[client]") {
  ScriptedPeer peer;
  auto client = peer.client();
  peer.say(Notice{NoticeKind::FrameRefused, {}, {}, {}, ErrorCode::Invalid, {}, {}, 0, "what was that"});
  peer.close();
  CHECK(client.call(GetVersion{}, kSoon).error().kind == ClientErrc::Closed);
  const auto notice = client.next_message(kNow);
  REQUIRE((notice && *notice));
  CHECK(std::get<ReceivedNotice>(**notice).text == "what was that");
}

TEST_CASE("a message cut off by the end says that", "[client]") {
  ScriptedPeer peer;
  auto client = peer.client();
  const kvmi_msg_hdr header{KVMI_MSG_EVENT, 100, 1};
  peer.say_bytes(std::as_bytes(std::span(&header, 1)));
  peer.close();
  const auto next = client.next_message(kSoon);
  REQUIRE_FALSE(next);
  CHECK(next.error().text.find("middle of a message") != std::string::npos);
}

TEST_CASE("a full queue drops what is only observed, and counts it", "[client]") {
  ScriptedPeer peer;
  auto options = ScriptedPeer::attached();
  options.messages_max = 3;
  auto client = peer.client(options);
  const auto ticket = client.submit(GetVersion{});
  REQUIRE(ticket);
  const auto seq = peer.heard().seq;
  peer.say(cr_event(true), 1);
  for (std::uint32_t i = 2; i <= 6; ++i) peer.say(cr_event(false), i);
  peer.say(ok(KVMI_MSG_GET_VERSION, GetVersionReply{}), seq);
  REQUIRE(client.collect(*ticket, kSoon));
  CHECK(client.dropped_messages() == 3);
  std::vector<std::uint32_t> kept;
  while (client.pending_messages() > 0) kept.push_back((*client.wait_event(kNow))->seq.value);
  CHECK(kept == std::vector<std::uint32_t>{1, 5, 6});
}

TEST_CASE("a queue full of events to decide ends the connection", "[client]") {
  ScriptedPeer peer;
  auto options = ScriptedPeer::attached();
  options.messages_max = 2;
  auto client = peer.client(options);
  const auto ticket = client.submit(GetVersion{});
  REQUIRE(ticket);
  (void)peer.heard();
  for (std::uint32_t i = 1; i <= 3; ++i) peer.say(cr_event(true), i);
  CHECK(client.collect(*ticket, kSoon).error().kind == ClientErrc::Overflow);
  CHECK(client.pending_messages() == 2);
}

TEST_CASE("a reply to an event names its vCPU, kind and seq", "[client]") {
  ScriptedPeer peer;
  auto client = peer.client();
  peer.say(cr_event(), 41);
  const auto event = client.wait_event(kSoon);
  REQUIRE((event && *event));
  REQUIRE(client.reply(**event, Action::Allow, NewValue{0x20}));
  const auto heard = peer.heard();
  CHECK(heard.seq.value == 41);
  const auto& reply = std::get<EventReply>(heard.message);
  CHECK(reply.vcpu.value == 1);
  CHECK(reply.event == EventKind::Cr);
  CHECK(reply.action == Action::Allow);
  CHECK(std::get<NewValue>(reply.value).value == 0x20);
}

TEST_CASE("an observed event cannot be answered", "[client]") {
  ScriptedPeer peer;
  auto client = peer.client();
  peer.say(cr_event(false), 41);
  const auto event = client.wait_event(kSoon);
  REQUIRE((event && *event));
  CHECK(client.reply(**event, Action::Allow).error().kind == ClientErrc::BadArgument);
}

TEST_CASE("a batch leaves in one write, commands before the reply they belong to", "[client]") {
  ScriptedPeer peer;
  auto client = peer.client();
  peer.say(cr_event(), 41);
  const auto event = client.wait_event(kSoon);
  REQUIRE((event && *event));
  auto batch = client.batch();
  kvmi_x86_regs regs = (*event)->event.regs;
  regs.rax = 1;
  const auto ticket = batch.add(SetRegisters{VcpuId{1}, regs});
  REQUIRE(ticket);
  batch.reply(**event, Action::Skip);
  CHECK(client.collect(*ticket, kNow).error().kind == ClientErrc::BadArgument);  // nothing was sent yet
  REQUIRE(batch.send());
  const auto command = peer.heard();
  CHECK(command.as<SetRegisters>().regs.rax == 1);
  CHECK(std::get<EventReply>(peer.heard().message).action == Action::Skip);
  peer.say(ok(KVMI_MSG_SET_REGISTERS), command.seq);
  CHECK(client.collect(*ticket, kSoon));
}

TEST_CASE("notices go to the handler where there is one, else into the queue", "[client]") {
  ScriptedPeer peer;
  auto client = peer.client();
  const Notice expired{NoticeKind::Expired, EventKind::Cr, Action::Allow, VcpuId{1},
                       ErrorCode::None,     AgentId{7},    Seq{41},       2,
                       "too late"};
  peer.say(expired);
  const auto queued = client.next_message(kSoon);
  REQUIRE((queued && *queued));
  CHECK(std::get<ReceivedNotice>(**queued).event_seq.value == 41);
  CHECK(std::get<ReceivedNotice>(**queued).count == 2);

  std::vector<ReceivedNotice> handled;
  client.on_notice([&](const ReceivedNotice& n) { handled.push_back(n); });
  peer.say(expired);
  peer.say(cr_event(), 42);
  REQUIRE(client.wait_event(kSoon));
  REQUIRE(handled.size() == 1);
  CHECK(handled[0].text == "too late");
}

TEST_CASE("waiting for an event leaves notices and guests in the queue", "[client]") {
  ScriptedPeer peer;
  auto client = peer.client();
  GuestOn on;
  copy_text("db1", on.guest.name, sizeof on.guest.name);
  on.guest.vcpu_count = 4;
  peer.say(on);
  peer.say(cr_event(), 1);
  REQUIRE(client.wait_event(kSoon));
  const auto guest = client.wait_guest(kNow);
  REQUIRE((guest && *guest));
  CHECK(std::get<GuestEntry>(**guest).name == "db1");
  CHECK(std::get<GuestEntry>(**guest).vcpu_count == 4);
}

TEST_CASE("unknown messages are counted and skipped", "[client]") {
  ScriptedPeer peer;
  auto client = peer.client();
  const kvmi_msg_hdr unknown{0x7777, 0, 0};
  peer.say_bytes(std::as_bytes(std::span(&unknown, 1)));
  peer.say(cr_event(), 1);
  const auto event = client.wait_event(kSoon);
  REQUIRE((event && *event));
  CHECK(client.unknown_messages() == 1);
}

TEST_CASE("the descriptor becomes readable with a message", "[client]") {
  ScriptedPeer peer;
  auto client = peer.client();
  pollfd wait{client.fd(), POLLIN, 0};
  CHECK(::poll(&wait, 1, 0) == 0);
  peer.say(cr_event(), 1);
  CHECK(::poll(&wait, 1, 5000) == 1);
  const auto message = client.next_message(kNow);
  REQUIRE(message);
  CHECK(message->has_value());
}

TEST_CASE("a command over the message limit is refused before it is sent", "[client]") {
  ScriptedPeer peer;
  auto client = peer.client();
  const std::vector<std::byte> data(KVMI_MAX_PAYLOAD);
  const auto ticket = client.submit(WritePhysical{Gpa{0}, {}, 0, 0, data, {}});
  REQUIRE_FALSE(ticket);
  CHECK(ticket.error().kind == ClientErrc::BadArgument);
  CHECK(ticket.error().code == ErrorCode::TooBig);
  CHECK(client.is_open());
}

TEST_CASE("a peer that does not read is a timeout and the buffer does not grow", "[client]") {
  ScriptedPeer peer;
  auto options = ScriptedPeer::attached();
  options.timeout = Millis{1};
  auto client = peer.client(options);
  const std::vector<std::byte> data(60'000);
  std::size_t sent = 0;
  std::optional<ClientError> error;
  while (!error && sent < 10'000) {
    const auto ticket = client.submit(WritePhysical{Gpa{0}, {}, 0, 0, data, {}});
    if (ticket) {
      ++sent;
    } else {
      error = ticket.error();
    }
  }
  REQUIRE(error);
  CHECK(error->kind == ClientErrc::TimedOut);
  const std::size_t open = client.open_requests();
  for (int i = 0; i < 10; ++i) CHECK_FALSE(client.submit(WritePhysical{Gpa{0}, {}, 0, 0, data, {}}));
  CHECK(client.open_requests() == open);
}

TEST_CASE("descriptors come with the grant they were sent with", "[client]") {
  ScriptedPeer peer;
  auto client = peer.client();
  const auto ticket = client.submit(GrantMemory{});
  REQUIRE(ticket);
  const auto seq = peer.heard().seq;
  UniqueFd null_device(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  REQUIRE(null_device);
  const int fds[] = {null_device.get(), null_device.get()};
  peer.say(cr_event(), 1);
  peer.say_with_fds(ok(KVMI_MSG_GRANT_MEMORY, GrantMemoryReply{4096, 8192, 2}), seq, fds);
  auto reply = client.collect(*ticket, kSoon);
  REQUIRE(reply);
  REQUIRE(reply->fds().size() == 2);
  CHECK((::fcntl(reply->fds()[0].get(), F_GETFD) & FD_CLOEXEC) != 0);
}

TEST_CASE("announced descriptors that did not come end the connection", "[client]") {
  ScriptedPeer peer;
  auto client = peer.client();
  const auto ticket = client.submit(GrantMemory{});
  REQUIRE(ticket);
  peer.say(ok(KVMI_MSG_GRANT_MEMORY, GrantMemoryReply{4096, 8192, 2}), peer.heard().seq);
  CHECK(client.collect(*ticket, kSoon).error().kind == ClientErrc::Protocol);
}

TEST_CASE("closing is final and says so", "[client]") {
  ScriptedPeer peer;
  auto client = peer.client();
  client.close();
  CHECK_FALSE(client.is_open());
  CHECK(client.submit(GetVersion{}).error().kind == ClientErrc::Closed);
  CHECK(client.next_message(kNow).error().text == "the connection was closed here");
}
