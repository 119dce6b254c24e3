// SPDX-License-Identifier: GPL-2.0-or-later
//
// Patches in code that vCPUs execute, and the step over one, as kvmid makes it: command by command through a session.

#include <array>
#include <deque>
#include <map>
#include <optional>
#include <vector>

#include "hypervisor/server/session.h"
#include "protocol/frame_parser.h"
#include "tests/unit/hypervisor/scripted_guest.h"

namespace kvmid::emulated {

namespace {

constexpr std::byte kInt3{0xcc};
constexpr VcpuId kFirst{0}, kSecond{1};

/// A guest of two vCPUs with a session, and kvmid's end of it. Breakpoints and single steps are watched.
class Scene {
 public:
  struct Stopped {
    Seq seq;
    Event event;
  };

  Scene() {
    guest.machine().set_sink(&*session);
    REQUIRE(control(EventSet{KVMI_EVENT_BIT(KVMI_EVENT_BREAKPOINT) | KVMI_EVENT_BIT(KVMI_EVENT_SINGLESTEP)}) ==
            ErrorCode::None);
    target = Gpa{guest.mailbox().hammer_gpa};
    own.resize(kHammerInsnBytes);
    REQUIRE(guest.machine().read_physical(AddressSpace::Normal, target, own));
  }
  ~Scene() { guest.machine().set_sink(nullptr); }

  ErrorCode command(const Command& command) {
    const std::uint32_t seq = next_seq_++;
    ByteBuffer bytes;
    dialect_.encode(command, Seq{seq}, bytes);
    send(bytes);
    const auto found = replies_.find(seq);
    REQUIRE(found != replies_.end());
    return found->second;
  }
  ErrorCode control(EventSet events) {
    return command(Command{ControlEvents{kAllVcpus, Operation::Set, Role::Decider, events}});
  }
  ErrorCode write(Bytes data, unsigned flags) {
    WritePhysical write;
    write.gpa = target;
    write.flags = static_cast<std::uint16_t>(flags);
    write.data = data;
    return command(Command{write});
  }
  void patch() { REQUIRE(write(Bytes(&kInt3, 1), KVMI_WRITE_PATCH) == ErrorCode::None); }
  void unpatch() { REQUIRE(write(Bytes(&kInt3, 1), KVMI_WRITE_UNPATCH) == ErrorCode::None); }
  void singlestep(VcpuId vcpu, bool enable) {
    REQUIRE(command(Command{ControlSinglestep{vcpu, enable}}) == ErrorCode::None);
  }
  /// Answers the open event of a vCPU.
  void answer(VcpuId vcpu, Action action) {
    auto& open = stopped.at(vcpu.value);
    REQUIRE(open);
    EventReply reply;
    reply.vcpu = vcpu;
    reply.event = open->event.kind();
    reply.action = action;
    ByteBuffer bytes;
    dialect_.encode(reply, open->seq, bytes);
    open.reset();
    send(bytes);
  }
  void round() {
    guest.round();
    take();
  }
  /// Runs until the vCPU has an event open.
  const Event& next_event(VcpuId vcpu) {
    take();
    REQUIRE(guest.run_until([&] {
      take();
      return stopped.at(vcpu.value).has_value();
    }));
    return stopped.at(vcpu.value)->event;
  }
  /// Has both vCPUs call hammer_target so many times more.
  void hammer(std::uint64_t calls) {
    for (const VcpuId vcpu : {kFirst, kSecond}) {
      guest.write_field(offsetof(Mailbox, arg_hammer_calls), guest.mailbox(vcpu).hammer_calls + calls, vcpu);
      guest.set_mode(GuestMode::Hammer, vcpu);
    }
  }
  [[nodiscard]] bool hammered() {
    for (const VcpuId vcpu : {kFirst, kSecond}) {
      const Mailbox box = guest.mailbox(vcpu);
      if (box.hammer_calls < box.arg_hammer_calls) return false;
    }
    return true;
  }
  /// What kvmid's decision 6 calls stepping over: nobody else moves while the patch is off.
  void step_over(VcpuId vcpu) {
    const VcpuId other = vcpu == kFirst ? kSecond : kFirst;
    const bool waits = stopped.at(other.value).has_value();
    if (!waits) {
      REQUIRE(command(Command{PauseVcpu{other}}) == ErrorCode::None);
      round();  // at once, whatever it was doing
      REQUIRE(stopped.at(other.value));
      REQUIRE(stopped.at(other.value)->event.kind() == EventKind::Pause);
    }
    const Mailbox held = guest.mailbox(other);
    unpatch();
    singlestep(vcpu, true);
    answer(vcpu, Action::Retry);
    const Event& step = next_event(vcpu);
    REQUIRE(step.kind() == EventKind::Singlestep);
    CHECK_FALSE(std::get<SinglestepData>(step.data).failed);
    CHECK(step.regs.rip == target.value + kHammerInsnBytes);
    ++steps.at(vcpu.value);
    singlestep(vcpu, false);
    patch();
    CHECK(guest.mailbox(other).hammer_hits == held.hammer_hits);
    answer(vcpu, Action::Allow);
    if (!waits) answer(other, Action::Allow);
  }
  void end_session() {
    session.reset();
    guest.machine().set_sink(nullptr);
    guest.machine().unhook();
  }

  ScriptedGuest guest{2};
  std::optional<hypervisor::Session> session{std::in_place, guest.machine()};
  Gpa target;
  std::vector<std::byte> own;  ///< the first instruction of hammer_target
  std::array<std::optional<Stopped>, 2> stopped;
  std::array<unsigned, 2> steps{};

 private:
  void send(Bytes bytes) {
    const auto space = session->writable();
    REQUIRE(space.size() >= bytes.size());
    std::memcpy(space.data(), bytes.data(), bytes.size());
    REQUIRE_FALSE(session->received(bytes.size()).has_value());
    take();
  }
  void take() {
    while (!session->outbox().empty()) {
      const auto space = parser_.writable();
      const std::size_t size = std::min(space.size(), session->outbox().size());
      std::memcpy(space.data(), session->outbox().data(), size);
      session->sent(size);
      parser_.commit(size);
      for (;;) {
        const auto frame = parser_.next();
        REQUIRE(frame);
        if (*frame == nullptr) break;
        const auto message = dialect_.decode_upward(**frame);
        REQUIRE(message);
        if (const auto* reply = std::get_if<CommandReply>(&*message)) replies_[(*frame)->seq.value] = reply->error;
        const auto* event = std::get_if<Event>(&*message);
        if (event == nullptr) continue;
        REQUIRE_FALSE(stopped.at(event->vcpu.value));
        stopped.at(event->vcpu.value) = Stopped{(*frame)->seq, *event};
      }
    }
  }

  DialectKvmi2 dialect_;
  FrameParser parser_;
  std::map<std::uint32_t, ErrorCode> replies_;
  std::uint32_t next_seq_ = 1;
};

}  // namespace

TEST_CASE("hammer_target counts what its callers count", "[emulated][patches]") {
  ScriptedGuest guest(2);
  for (const std::uint64_t total : {7u, 20u}) {
    for (const VcpuId vcpu : {kFirst, kSecond}) {
      guest.write_field(offsetof(Mailbox, arg_hammer_calls), total + vcpu.value, vcpu);
      REQUIRE(guest.run_action(GuestMode::Hammer, 2, vcpu));
      const Mailbox box = guest.mailbox(vcpu);
      CHECK(box.hammer_calls == total + vcpu.value);
      CHECK(box.hammer_hits == total + vcpu.value);
      CHECK(box.hammer_gpa == box.hammer_gva);
    }
  }
}

TEST_CASE("a patched INT3 hits on every vCPU, and no hit is lost or counted twice", "[emulated][patches]") {
  Scene scene;
  scene.hammer(5);  // the code has been executed before it is patched
  REQUIRE(scene.guest.run_until([&] { return scene.hammered(); }));
  constexpr std::uint64_t kCalls = 40;
  scene.patch();
  scene.hammer(kCalls);

  std::array<std::uint64_t, 2> hits{};
  for (unsigned turn = 0; !scene.hammered(); ++turn) {
    REQUIRE(turn < 20000);
    bool any = false;
    for (const VcpuId vcpu : {kFirst, kSecond}) {
      const auto& open = scene.stopped.at(vcpu.value);
      if (!open || open->event.kind() != EventKind::Breakpoint) continue;
      any = true;
      ++hits.at(vcpu.value);
      CHECK(open->event.regs.rip == scene.target.value);
      CHECK(std::get<BreakpointData>(open->event.data).gpa == scene.target);
      scene.step_over(vcpu);
    }
    if (!any) scene.round();
  }

  for (const VcpuId vcpu : {kFirst, kSecond}) {
    const Mailbox box = scene.guest.mailbox(vcpu);
    CAPTURE(vcpu.value);
    CHECK(hits.at(vcpu.value) == kCalls);
    CHECK(scene.steps.at(vcpu.value) == kCalls);
    CHECK(box.hammer_calls == 5 + kCalls);
    CHECK(box.hammer_hits == 5 + kCalls);
    CHECK(box.exceptions[3] == 0);
    CHECK(box.exceptions[1] == 0);
    CHECK(box.panic == 0);
  }
  CHECK(scene.guest.read<std::uint8_t>(scene.target) == 0xcc);
  scene.unpatch();
  CHECK(scene.guest.read<std::byte>(scene.target) == scene.own[0]);
  scene.hammer(5);
  REQUIRE(scene.guest.run_until([&] { return scene.hammered(); }));
  CHECK(scene.guest.mailbox(kSecond).hammer_hits == 10 + kCalls);
  CHECK((!scene.stopped[0] && !scene.stopped[1]));
}

TEST_CASE("RETRY after UNPATCH executes the guest's own instruction, on each vCPU that waited", "[emulated][patches]") {
  Scene scene;
  scene.patch();
  scene.hammer(1);
  for (const VcpuId vcpu : {kFirst, kSecond}) CHECK(scene.next_event(vcpu).kind() == EventKind::Breakpoint);

  SECTION("RETRY before that meets the patch again") {
    scene.answer(kFirst, Action::Retry);
    CHECK(scene.next_event(kFirst).kind() == EventKind::Breakpoint);
    CHECK(scene.guest.mailbox(kFirst).hammer_hits == 0);
  }
  scene.unpatch();
  for (const VcpuId vcpu : {kFirst, kSecond}) scene.answer(vcpu, Action::Retry);
  REQUIRE(scene.guest.run_until([&] { return scene.hammered(); }));
  for (const VcpuId vcpu : {kFirst, kSecond}) {
    CHECK(scene.guest.mailbox(vcpu).hammer_hits == 1);
    CHECK(scene.guest.mailbox(vcpu).exceptions[3] == 0);
  }
}

TEST_CASE("a step that is asked for in a BREAKPOINT event is one step", "[emulated][patches]") {
  Scene scene;
  scene.guest.set_mode(GuestMode::Idle, kSecond);
  scene.guest.write_field(offsetof(Mailbox, arg_hammer_calls), 3);
  scene.patch();
  scene.guest.set_mode(GuestMode::Hammer);
  REQUIRE(scene.next_event(kFirst).kind() == EventKind::Breakpoint);
  scene.unpatch();
  scene.singlestep(kFirst, true);
  scene.answer(kFirst, Action::Retry);
  REQUIRE(scene.next_event(kFirst).kind() == EventKind::Singlestep);
  CHECK(scene.guest.mailbox().hammer_hits == 1);
  CHECK(scene.guest.mailbox().hammer_calls == 0);
  scene.singlestep(kFirst, false);
  scene.answer(kFirst, Action::Allow);

  REQUIRE(scene.guest.run_until([&] { return scene.hammered(); }));
  scene.round();
  CHECK_FALSE(scene.stopped[0]);
  CHECK(scene.guest.mailbox().hammer_hits == 3);
}

TEST_CASE("a vCPU is paused at once while another waits", "[emulated][patches]") {
  Scene scene;
  scene.guest.set_mode(GENERATE(GuestMode::Idle, GuestMode::Spin), kSecond);
  for (int i = 0; i < 3; ++i) scene.round();
  scene.guest.write_field(offsetof(Mailbox, arg_hammer_calls), 1);
  scene.patch();
  scene.guest.set_mode(GuestMode::Hammer);
  REQUIRE(scene.next_event(kFirst).kind() == EventKind::Breakpoint);

  REQUIRE(scene.command(Command{PauseVcpu{kSecond}}) == ErrorCode::None);
  // No time passes: a halt that rests yet is no reason to wait.
  const Clock::time_point epoch{};
  CHECK(scene.guest.machine().runnable(epoch));
  scene.guest.machine().run_round(epoch);
  CHECK(scene.guest.machine().vcpu(kSecond).activity == Activity::Waiting);
  CHECK(scene.next_event(kSecond).kind() == EventKind::Pause);
  CHECK(scene.stopped[0]->event.kind() == EventKind::Breakpoint);
  const Mailbox held = scene.guest.mailbox(kSecond);
  for (int i = 0; i < 5; ++i) scene.round();
  CHECK(scene.guest.mailbox(kSecond).rounds == held.rounds);
  CHECK(scene.guest.mailbox(kSecond).done == held.done);
}

TEST_CASE("the end of a session costs the guest nothing, also in the middle of a BREAKPOINT event",
          "[emulated][patches]") {
  Scene scene;
  SECTION("at a patch") {
    scene.patch();
    scene.hammer(4);
    for (const VcpuId vcpu : {kFirst, kSecond}) REQUIRE(scene.next_event(vcpu).kind() == EventKind::Breakpoint);
    scene.end_session();
    CHECK(scene.guest.read<std::byte>(scene.target) == scene.own[0]);
    REQUIRE(scene.guest.run_until([&] { return scene.hammered(); }));
    for (const VcpuId vcpu : {kFirst, kSecond}) {
      CHECK(scene.guest.mailbox(vcpu).hammer_hits == 4);
      CHECK(scene.guest.mailbox(vcpu).exceptions[3] == 0);
    }
  }
  SECTION("in the middle of a step") {
    scene.patch();
    scene.hammer(4);
    REQUIRE(scene.next_event(kFirst).kind() == EventKind::Breakpoint);
    scene.unpatch();
    scene.singlestep(kFirst, true);
    scene.answer(kFirst, Action::Retry);
    REQUIRE(scene.next_event(kFirst).kind() == EventKind::Singlestep);
    scene.patch();
    scene.end_session();
    REQUIRE(scene.guest.run_until([&] { return scene.hammered(); }));
    for (const VcpuId vcpu : {kFirst, kSecond}) {
      CHECK(scene.guest.mailbox(vcpu).hammer_hits == 4);
      CHECK(scene.guest.mailbox(vcpu).exceptions[3] == 0);
    }
  }
  SECTION("at an INT3 of the guest's own, which it gets once") {
    scene.guest.set_mode(GuestMode::Int3);
    REQUIRE(scene.next_event(kFirst).kind() == EventKind::Breakpoint);
    scene.guest.set_mode(GuestMode::Idle);
    const Mailbox before = scene.guest.mailbox();
    scene.end_session();
    REQUIRE(scene.guest.run_until([&] { return scene.guest.mailbox().rounds > before.rounds + 2; }));
    CHECK(scene.guest.mailbox().exceptions[3] == before.exceptions[3] + 1);
  }
}

}  // namespace kvmid::emulated
