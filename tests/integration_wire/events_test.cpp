// SPDX-License-Identifier: GPL-2.0-or-later
// Event replies that are wrong, late, or not owed: the agent is told, its default counts, and the guest goes on.
#include <catch2/catch.hpp>

#include "tests/integration_wire/bystander.h"
#include "tests/integration_wire/wire_daemon.h"

using namespace kvmid;
using namespace kvmid::test;

namespace {

EventSet set_of(EventKind kind) {
  EventSet set;
  set.add(kind);
  return set;
}

struct Scene {
  explicit Scene(const std::string& config = wire_config()) : daemon(config) {
    REQUIRE(agent.subscribe(set_of(EventKind::Hypercall), Role::Decider));
  }
  /// A hypercall of that vCPU, and what the agent was told of it.
  std::pair<Seq, client::ReceivedEvent> raise(VcpuId vcpu = VcpuId{0}) {
    const Seq seq = hypervisor.raise(make_event(EventKind::Hypercall, vcpu));
    const auto seen = agent.wait_event(kBound);
    REQUIRE(seen);
    REQUIRE(*seen);
    return {seq, **seen};
  }
  Action outcome(Seq seq) {
    const auto reply = hypervisor.wait_reply(seq);
    REQUIRE(reply);
    return reply->action;
  }

  WireDaemon daemon;
  Bystander bystander{daemon.hypervisors(), daemon.agents()};
  ScriptedHypervisor hypervisor{daemon.hypervisors(), {.uuid = uuid_of(1), .name = "web1"}};
  client::AgentClient agent = attach_agent(daemon.agents(), uuid_of(1), "decider");
};

client::ReceivedNotice next_notice(client::AgentClient& agent) {
  for (;;) {
    const auto message = agent.next_message(kBound);
    REQUIRE(message);
    REQUIRE(*message);
    if (const auto* notice = std::get_if<client::ReceivedNotice>(&**message)) return *notice;
  }
}

client::ReceivedNotice refusal(client::AgentClient& agent, ErrorCode error) {
  const auto notice = next_notice(agent);
  CHECK(notice.kind == NoticeKind::ReplyRefused);
  CHECK(notice.error == error);
  CHECK_FALSE(notice.text.empty());
  return notice;
}

/// The rule of wire_config(), with a default that no right answer of these tests has.
const std::string kDefaultSkips = wire_config(R"({"policy": [{"match": "*", "commands": ["*"], "events": ["*"],
    "role": "decider", "default": "skip", "deadline_ms": 60000}]})");

}  // namespace

TEST_CASE("a reply to an event that is not owed is refused", "[wire][events]") {
  Scene scene;
  auto observer = attach_agent(scene.daemon.agents(), uuid_of(1), "observer");
  REQUIRE(observer.subscribe(set_of(EventKind::Hypercall), Role::Observer));
  const auto bad = scene.daemon.counter("bad_replies");
  const auto [seq, event] = scene.raise();
  const auto observed = observer.wait_event(kBound);
  REQUIRE(observed);
  REQUIRE(*observed);

  // It only watches this event.
  REQUIRE(observer.reply((*observed)->seq, client::make_reply((*observed)->event, Action::Crash)));
  CHECK(refusal(observer, ErrorCode::NoEntry).event_seq == (*observed)->seq);
  scene.daemon.wait_log({"reply refused", "guest=web1", "event=hypercall", "error=ENOENT"});
  CHECK(scene.daemon.wait_counter("bad_replies", bad + 1) == bad + 1);
  CHECK(scene.hypervisor.replies() == 0);

  // A number that was never given to an event.
  REQUIRE(observer.reply(Seq{0xf0000000}, client::make_reply(event.event, Action::Crash)));
  refusal(observer, ErrorCode::NoEntry);
  CHECK(scene.daemon.wait_counter("bad_replies", bad + 2) == bad + 2);

  REQUIRE(scene.agent.reply(event, Action::Allow));
  CHECK(scene.outcome(seq) == Action::Allow);
  scene.bystander.check();
}

TEST_CASE("a second reply to the same event is refused and changes nothing", "[wire][events]") {
  Scene scene;
  auto other = attach_agent(scene.daemon.agents(), uuid_of(1), "other");
  REQUIRE(other.subscribe(set_of(EventKind::Hypercall), Role::Decider));
  const auto [seq, event] = scene.raise();
  const auto same = other.wait_event(kBound);
  REQUIRE(same);
  REQUIRE(*same);

  REQUIRE(scene.agent.reply(event, Action::Allow));
  REQUIRE(scene.agent.reply(event, Action::Crash));
  refusal(scene.agent, ErrorCode::Stale);
  REQUIRE(other.reply(**same, Action::Allow));

  CHECK(scene.outcome(seq) == Action::Allow);
  CHECK(scene.daemon.wait_counter("late_replies", 1) == 1);
  scene.daemon.wait_log({"reply refused", "guest=web1", "error=ESTALE"});
  scene.bystander.check();
}

TEST_CASE("a late reply is stale", "[wire][events]") {
  Scene scene(wire_config(R"({"policy": [{"name": "hasty", "match": "*", "guests": ["web1"], "commands": ["*"],
      "events": ["*"], "role": "decider", "default": "skip", "deadline_ms": 20, "strikes": 3},
      {"match": "*", "commands": ["*"], "events": ["*"], "role": "decider", "deadline_ms": 60000}]})"));
  const auto [seq, event] = scene.raise();
  const auto expired = next_notice(scene.agent);
  CHECK(expired.kind == NoticeKind::Expired);
  CHECK(expired.event_seq == event.seq);
  CHECK(expired.action == Action::Skip);
  CHECK(expired.count == 1);
  CHECK(scene.outcome(seq) == Action::Skip);

  REQUIRE(scene.agent.reply(event, Action::Allow));
  refusal(scene.agent, ErrorCode::Stale);
  CHECK(scene.daemon.wait_counter("late_replies", 1) == 1);
  scene.daemon.wait_log({"deadline missed", "guest=web1", "event=hypercall", "action=skip"});
  scene.daemon.wait_log({"reply refused", "guest=web1", "error=ESTALE"});

  // Two more, and it is an observer of hypercalls.
  for (int i = 0; i < 2; ++i) {
    scene.raise();
    CHECK(next_notice(scene.agent).kind == NoticeKind::Expired);
  }
  const auto demoted = next_notice(scene.agent);
  CHECK(demoted.kind == NoticeKind::Demoted);
  CHECK(demoted.count == 3);
  CHECK(demoted.event == EventKind::Hypercall);
  scene.daemon.wait_log({"agent demoted", "guest=web1"});
  CHECK(scene.daemon.wait_counter("demoted", 1) == 1);
  const auto [free_seq, seen] = scene.raise();
  CHECK_FALSE(seen.event.decide);
  CHECK(scene.outcome(free_seq) == Action::Allow);
  const auto again = scene.agent.subscribe(set_of(EventKind::Hypercall), Role::Decider);
  REQUIRE_FALSE(again);
  CHECK(again.error().code == ErrorCode::NotPermitted);
  scene.bystander.check();
}

TEST_CASE("a reply that cannot be is refused and the agent's default counts", "[wire][events]") {
  struct Wrong {
    std::string name;
    std::function<EventReply(EventReply)> make;
  };
  // Each is refused; where it can be told which event it is for, the default is the vote at once.
  const std::vector<Wrong> wrongs{
      {"another event",
       [](EventReply reply) {
         reply.event = EventKind::Cr;
         reply.value = {};
         return reply;
       }},
      {"STEP_OVER where there is no patch",
       [](EventReply reply) {
         reply.step_over = true;
         return reply;
       }},
      {"TRAP_ACCESS of something that is no page fault",
       [](EventReply reply) {
         reply.trap_access = true;
         return reply;
       }},
  };
  for (const auto& wrong : wrongs) {
    INFO(wrong.name);
    Scene scene(kDefaultSkips);
    const auto [seq, event] = scene.raise();
    REQUIRE(scene.agent.reply(event.seq, wrong.make(client::make_reply(event.event, Action::Allow))));
    refusal(scene.agent, ErrorCode::Invalid);
    CHECK(scene.outcome(seq) == Action::Skip);
    CHECK(scene.daemon.wait_counter("bad_replies", 1) == 1);
    scene.daemon.wait_log({"reply refused", "guest=web1", "error=EINVAL"});
    scene.bystander.check();
  }
}

TEST_CASE("an action that the event does not take is refused and the default counts", "[wire][events]") {
  Scene scene(kDefaultSkips);
  Event trap = make_event(EventKind::Hypercall);
  trap.actions.bits = KVMI_ACTION_BIT(KVMI_ACTION_ALLOW) | KVMI_ACTION_BIT(KVMI_ACTION_SKIP);
  for (const Action action : {Action::Retry, Action::Crash}) {
    INFO(name_of(action));
    const Seq seq = scene.hypervisor.raise(trap);
    const auto seen = scene.agent.wait_event(kBound);
    REQUIRE(seen);
    REQUIRE(*seen);
    REQUIRE(scene.agent.reply((*seen)->seq, client::make_reply((*seen)->event, action)));
    refusal(scene.agent, ErrorCode::Invalid);
    CHECK(scene.outcome(seq) == Action::Skip);
  }
  scene.bystander.check();
}

TEST_CASE("a reply for a vCPU that does not exist is refused and the default counts", "[wire][events]") {
  Scene scene(kDefaultSkips);
  for (const std::uint16_t vcpu : {std::uint16_t{2}, std::uint16_t{0xffff}}) {
    const auto [seq, event] = scene.raise();
    EventReply reply = client::make_reply(event.event, Action::Crash);
    reply.vcpu = VcpuId{vcpu};
    REQUIRE(scene.agent.reply(event.seq, reply));
    refusal(scene.agent, ErrorCode::Invalid);
    CHECK(scene.outcome(seq) == Action::Skip);
  }
  scene.bystander.check();
}

TEST_CASE("a reply cut at any byte is refused and the default counts", "[wire][events]") {
  Scene scene(kDefaultSkips);
  WireSocket raw = raw_agent(scene.daemon.agents(), uuid_of(1), "careless");
  REQUIRE(scene.agent.control_events(kAllVcpus, Operation::Set, Role::Decider, EventSet{}));
  raw.send(encoded(Command{ControlEvents{kAllVcpus, Operation::Enable, Role::Decider, set_of(EventKind::Hypercall)}},
                   Seq{1}));
  REQUIRE(raw.next_frame());
  DialectKvmi2 dialect;
  for (std::size_t cut = 0; cut < sizeof(kvmi_event_reply); ++cut) {
    INFO("cut to " << cut << " bytes");
    const Seq seq = scene.hypervisor.raise(make_event(EventKind::Hypercall));
    const auto event_frame = raw.next_frame();
    REQUIRE(event_frame);
    const auto event = dialect.decode_upward(event_frame->view());
    REQUIRE(event);
    REQUIRE(std::holds_alternative<Event>(*event));
    const ByteBuffer whole = encoded(client::make_reply(std::get<Event>(*event), Action::Allow), event_frame->seq);
    raw.send(frame_of(KVMI_MSG_EVENT_REPLY, event_frame->seq.value, Bytes(whole).subspan(sizeof(kvmi_msg_hdr), cut)));
    const auto notice_frame = raw.next_frame();
    REQUIRE(notice_frame);
    CHECK(notice_frame->id == KVMI_MSG_NOTICE);
    const auto notice = dialect.decode_upward(notice_frame->view());
    REQUIRE(notice);
    REQUIRE(std::holds_alternative<Notice>(*notice));
    CHECK(std::get<Notice>(*notice).kind == NoticeKind::ReplyRefused);
    CHECK(scene.outcome(seq) == Action::Skip);
    // Something right in between: malformed messages are counted in a row.
    raw.send(encoded(Command{GetVersion{}}, Seq{1}));
    REQUIRE(raw.next_frame());
  }
  scene.bystander.check();
}

TEST_CASE("replies to several vCPUs may come in any order", "[wire][events]") {
  Scene scene;
  const auto [first_seq, first] = scene.raise(VcpuId{0});
  const auto [second_seq, second] = scene.raise(VcpuId{1});
  REQUIRE(scene.agent.reply(second, Action::Skip));
  CHECK(scene.outcome(second_seq) == Action::Skip);
  REQUIRE(scene.agent.reply(first, Action::Retry));
  CHECK(scene.outcome(first_seq) == Action::Retry);
  scene.bystander.check();
}

TEST_CASE("an agent that goes while it owes a reply gives its default", "[wire][events]") {
  Scene scene(kDefaultSkips);
  const auto [seq, event] = scene.raise();
  scene.agent.close();
  CHECK(scene.outcome(seq) == Action::Skip);
  CHECK(scene.daemon.wait_counter("agents_lost_owing", 1) == 1);
  scene.daemon.wait_log({"agent gone", "name=decider", "guest=web1"});
  scene.bystander.check();
}
