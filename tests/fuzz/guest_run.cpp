// SPDX-License-Identifier: GPL-2.0-or-later
#include "tests/fuzz/guest_run.h"

#include <algorithm>

namespace kvmid::fuzz {

using namespace std::chrono_literals;

namespace {

HypervisorHello hello_of(std::int64_t start_time) {
  HypervisorHello hello;
  hello.uuid.bytes[0] = 1;
  hello.start_time = start_time;
  hello.name = "guest";
  return hello;
}

}  // namespace

GuestRun::GuestRun(ByteSource& source) : source_(source), machine_(hello_of(1), core::GuestLimits{}) {
  connect();
  if (!source_.one_in(16))
    while (!open_.empty()) answer(0, ErrorCode::None, false);
}

void GuestRun::step() {
  switch (source_.pick(32)) {
    case 0:
    case 1: attach(); break;
    case 2:
    case 3:
    case 4:
    case 5:
    case 6:
    case 7: agent_command(); break;
    case 8:
    case 9:
    case 10:
    case 11: agent_reply(); break;
    case 12: agent_noise(); break;
    case 13:
    case 14:
    case 15:
    case 16:
    case 17: hypervisor_answers(); break;
    case 18:
    case 19:
    case 20:
    case 21:
    case 22: hypervisor_event(); break;
    case 23: hypervisor_noise(); break;
    case 24:
    case 25: pass(std::chrono::milliseconds(source_.any<std::uint8_t>())); break;
    case 26:
      if (source_.one_in(4)) pass(std::chrono::seconds(source_.pick(40)));
      break;
    case 27:
      if (const auto id = some_agent(); id && source_.one_in(4)) lose_agent(*id);
      break;
    case 28: change_grant(); break;
    case 29:
      if (source_.one_in(8)) lose_hypervisor(static_cast<OffReason>(source_.pick(8)));
      break;
    case 30:
      if (!linked_) connect();
      break;
    default:
      if (source_.one_in(16)) stop();
      else while (!open_.empty()) answer(0, ErrorCode::None, false);
      break;
  }
  if (++steps_ % 8 == 0) check();
}

void GuestRun::finish() {
  // First with agents: whatever they asked is answered when the hypervisor answers and time passes.
  const auto everybody_answers = [&] {
    for (int round = 0; round < 400; ++round) {
      while (!open_.empty()) answer(0, ErrorCode::None, false);
      for (std::uint16_t i = 0; i < kVcpus; ++i) {
        if (!linked_ || !vcpus_[i].pause_due || vcpus_[i].stopped) continue;
        Event pause;
        pause.vcpu = VcpuId{i};
        pause.actions = ActionSet{15};
        pause.data = PauseData{};
        send_event(pause, false);
      }
      if (!open_.empty()) continue;
      const auto next = machine_.next_deadline();
      if (!next) return;
      pass(std::max(*next - now_, core::Duration{1ms}));
    }
    fail("deadlines without end");
  };
  check();
  everybody_answers();
  for (const auto& [id, agent] : agents_)
    if (!agent.asked.empty()) fail("a command was never answered");
  for (const auto& agent : machine_.info().agents)
    if (agent.requests_open != 0) fail("everything was answered and a request is still charged");
  while (!agents_.empty()) lose_agent(agents_.begin()->first);
  everybody_answers();
  if (machine_.has_agents()) fail("an agent stayed");
  if (!machine_.settled()) fail("not settled after everything was answered and everybody is gone");
  if (!linked_) return;
  if (unhook_) fail("UNHOOK was never answered");
  for (const auto& [number, vcpu] : vcpus_) {
    if (vcpu.stopped) fail("an event was never answered");
    if (!lied_ && !vcpu.untouched()) fail("a vCPU keeps what nobody wishes any more");
  }
  if (!lied_ && !pages_.empty()) fail("pages keep restrictions of nobody");
  if (!lied_ && !patches_.empty()) fail("a patch of nobody stays in the guest");
}

// ---- agents ----

core::Grant GuestRun::some_grant() {
  core::Grant grant;
  grant.rule = "fuzz";
  grant.commands.bits = source_.one_in(4) ? source_.any<std::uint32_t>() : ~std::uint64_t{0};
  grant.events.bits = source_.one_in(4) ? source_.any<std::uint16_t>() & kEveryEvent.bits : kEveryEvent.bits;
  grant.role = source_.one_in(6) ? Role::Observer : Role::Decider;
  grant.priority = source_.pick(3);
  grant.default_action = static_cast<Action>(source_.one_in(2) ? 0 : source_.pick(kActionCount));
  grant.deadline = std::chrono::milliseconds(1 + source_.pick(200));
  grant.pause_max = std::chrono::milliseconds(1 + source_.pick(200));
  grant.strikes_max = 1 + source_.pick(4);
  grant.quota.requests_max = source_.one_in(3) ? source_.pick(4) : 64;
  grant.quota.pages_max = source_.one_in(3) ? source_.pick(4) : 64;
  grant.quota.msrs_max = source_.one_in(3) ? source_.pick(4) : 64;
  grant.quota.patches_max = source_.one_in(3) ? source_.pick(4) : 64;
  grant.quota.filters_max = source_.one_in(3) ? source_.pick(4) : 64;
  return grant;
}

std::optional<AgentId> GuestRun::some_agent() {
  if (agents_.empty()) return std::nullopt;
  auto it = agents_.begin();
  std::advance(it, static_cast<std::ptrdiff_t>(source_.pick(static_cast<std::uint32_t>(agents_.size()))));
  return it->first;
}

void GuestRun::attach() {
  const AgentId id{++agents_made_};
  const core::Grant grant = source_.coin() ? some_grant() : [&] {
    core::Grant full;
    full.rule = "full";
    full.commands.bits = ~std::uint64_t{0};
    full.events = kEveryEvent;
    full.role = Role::Decider;
    return full;
  }();
  const std::uint32_t flags = source_.coin() ? KVMI_HELLO_OUTCOMES : 0;
  if (!machine_.attach(id, "agent", grant, flags)) return;
  if (stopped_) fail("an agent may attach after stop()");
  Agent& agent = agents_[id];
  agent.requests_max = grant.quota.requests_max;
  agent.pages_max = grant.quota.pages_max;
}

void GuestRun::agent_command() {
  const auto id = some_agent();
  if (!id) return attach();
  Tails tails;
  const Command command = some_command(source_, tails);
  // A seq may be used again while it is open: that is the agent's own confusion.
  const Seq seq{source_.one_in(16) ? seqs_made_ : ++seqs_made_};
  WireFrame frame = encoded([&](ByteBuffer& out) { dialect_.encode(command, seq, out); });
  damage(frame, source_);
  agent_says(*id, std::move(frame));
}

void GuestRun::agent_reply() {
  const auto id = some_agent();
  if (!id) return;
  const auto& told = agents_.at(*id).told;
  Told about{Seq{source_.any<std::uint8_t>()}, VcpuId{static_cast<std::uint16_t>(source_.pick(4))},
             static_cast<EventKind>(source_.pick(kEventCount))};
  if (!told.empty() && !source_.one_in(8))
    about = told[told.size() - 1 - source_.pick(static_cast<std::uint32_t>(told.size()))];
  const EventReply reply = some_reply(source_, about.vcpu, about.kind);
  WireFrame frame = encoded([&](ByteBuffer& out) { dialect_.encode(reply, about.seq, out); });
  damage(frame, source_);
  agent_says(*id, std::move(frame));
}

void GuestRun::agent_noise() {
  const auto id = some_agent();
  if (!id) return;
  const auto payload = std::as_bytes(source_.some(200));
  WireFrame frame{static_cast<std::uint16_t>(source_.pick(48)), Seq{++seqs_made_}, {payload.begin(), payload.end()}};
  // The daemon refuses these itself: an answer to them could not be told from the message.
  for (const std::uint16_t goes_up_only :
       {KVMI_MSG_EVENT, KVMI_MSG_NOTICE, KVMI_MSG_GUEST_ON, KVMI_MSG_GUEST_OFF, KVMI_MSG_MEMORY_MAP_CHANGED})
    if (frame.id == goes_up_only) return;
  agent_says(*id, std::move(frame));
}

void GuestRun::agent_says(AgentId id, WireFrame frame) {
  {
    // Decoded where the connection would have it; gone when the effects are performed.
    const Frame view{frame.id, frame.seq, frame.payload};
    const auto message = dialect_.decode_downward(view);
    const bool is_reply = frame.id == KVMI_MSG_EVENT_REPLY;
    if (!is_reply) ++agents_.at(id).asked[frame.seq.value];
    if (message) {
      machine_.on_agent_message(id, frame.seq, *message, now_, effects_);
      perform();
    } else {
      const std::string text = describe(message.error());
      machine_.on_agent_malformed(id, frame.seq, message.error(), text, now_, effects_);
      perform();
    }
  }
  frame = {};
}

void GuestRun::lose_agent(AgentId id) {
  agents_.erase(id);
  machine_.on_agent_lost(id, now_, effects_);
  perform();
}

void GuestRun::change_grant() {
  const auto id = some_agent();
  if (!id || !source_.one_in(3)) return;
  if (source_.one_in(8)) {
    machine_.on_grant_lost(*id, now_, effects_);
  } else {
    const core::Grant grant = some_grant();
    Agent& agent = agents_.at(*id);
    agent.requests_max = std::max(agent.requests_max, grant.quota.requests_max);
    agent.pages_max = std::max(agent.pages_max, grant.quota.pages_max);
    machine_.on_grant_changed(*id, grant, now_, effects_);
  }
  perform();
}

// ---- the hypervisor ----

template <class F>
void GuestRun::each_vcpu(VcpuId vcpu, F&& f) {
  for (auto& [number, state] : vcpus_)
    if (vcpu == kAllVcpus || vcpu.value == number) f(state);
}

void GuestRun::forget_hypervisor() {
  linked_ = false;
  closing_ = false;
  open_.clear();
  vcpus_.clear();
  for (std::uint16_t i = 0; i < kVcpus; ++i) vcpus_[i];
  unhook_.reset();
  pages_.clear();
  patches_.clear();
  lied_ = false;
}

void GuestRun::connect() {
  if (stopped_) return;  // the daemon takes no hypervisor any more
  forget_hypervisor();
  linked_ = true;
  if (source_.one_in(16)) ++start_time_;
  machine_.on_hypervisor_connected(hello_of(start_time_), now_, effects_);
  perform();
}

void GuestRun::lose_hypervisor(OffReason reason) {
  if (!linked_) return;
  forget_hypervisor();
  machine_.on_hypervisor_lost(reason, now_, effects_);
  perform();
}

void GuestRun::hypervisor_answers() {
  if (open_.empty()) return;
  static constexpr ErrorCode kErrors[] = {ErrorCode::Invalid, ErrorCode::NotSupported, ErrorCode::NoMemory,
                                          ErrorCode::Stale};
  const bool refuses = source_.one_in(10);
  const ErrorCode error = refuses ? source_.pick(kErrors) : ErrorCode::None;
  answer(source_.pick(static_cast<std::uint32_t>(open_.size())), error, source_.one_in(12));
}

void GuestRun::answer(std::size_t index, ErrorCode error, bool damaged) {
  const WireFrame command_frame = std::move(open_.at(index));
  open_.erase(open_.begin() + static_cast<std::ptrdiff_t>(index));
  const auto message = dialect_.decode_downward(Frame{command_frame.id, command_frame.seq, command_frame.payload});
  Tails tails;
  const Command& command = std::get<Command>(*message);
  CommandReply reply = truthful_reply(command, tails);
  if (error != ErrorCode::None) {
    lied_ = true;
    reply.error = error;
    reply.text = "the hypervisor refuses";
    reply.body = {};
  } else {
    execute(command);
  }
  WireFrame frame = encoded([&](ByteBuffer& out) { dialect_.encode(reply, command_frame.seq, out); });
  if (damaged) {
    lied_ = true;
    if (source_.one_in(4)) frame.id = static_cast<std::uint16_t>(source_.pick(40));
    if (source_.one_in(4)) frame.seq.value += 1 + source_.pick(4);
    damage(frame, source_);
  }
  hypervisor_says(std::move(frame));
}

/// The command is done: this is what the guest's hypervisor has from now on.
void GuestRun::execute(const Command& command) {
  std::visit(
      Overloaded{
          [&](const ControlEvents& c) {
            each_vcpu(c.vcpu, [&](Vcpu& vcpu) {
              if (c.operation == Operation::Set) vcpu.events = c.events.bits;
              if (c.operation == Operation::Enable) vcpu.events |= c.events.bits;
              if (c.operation == Operation::Disable) vcpu.events &= ~c.events.bits;
            });
          },
          [&](const ControlCr& c) {
            each_vcpu(c.vcpu, [&](Vcpu& v) { c.enable ? (void)v.crs.insert(c.cr) : (void)v.crs.erase(c.cr); });
          },
          [&](const ControlMsr& c) {
            each_vcpu(c.vcpu, [&](Vcpu& v) { c.enable ? (void)v.msrs.insert(c.msr) : (void)v.msrs.erase(c.msr); });
          },
          [&](const ControlSinglestep& c) { each_vcpu(c.vcpu, [&](Vcpu& v) { v.singlestep = c.enable; }); },
          [&](const PauseVcpu& c) { each_vcpu(c.vcpu, [](Vcpu& v) { v.pause_due = true; }); },
          [&](const SetPageAccess& c) {
            for (std::size_t i = 0; i < c.entries.size(); ++i)
              for (std::uint64_t page = 0; page < c.entries[i].pages; ++page) {
                const std::uint64_t gfn = (c.entries[i].gpa >> kPageShift) + page;
                if (c.entries[i].access == 7)
                  pages_.erase(gfn);
                else
                  pages_[gfn] = c.entries[i].access;
              }
          },
          [&](const WritePhysical& c) {
            if ((c.flags & KVMI_WRITE_PATCH) != 0) patches_[c.gpa.value] = c.data.size();
            if ((c.flags & KVMI_WRITE_UNPATCH) != 0 && patches_.erase(c.gpa.value) == 0)
              fail("UNPATCH where there is no patch");
          },
          [](const auto&) {},
      },
      command);
}

void GuestRun::hypervisor_event() {
  if (!linked_) return;
  const VcpuId vcpu{static_cast<std::uint16_t>(source_.pick(kVcpus))};
  Event event = some_event(source_, vcpu);
  if (event.vcpu == vcpu && vcpus_[vcpu.value].pause_due && source_.coin()) event.data = PauseData{};
  // What a hypervisor must not do is done seldom: it ends the link.
  const bool legal = event.vcpu == vcpu ? !vcpus_[vcpu.value].stopped : !unhook_;
  if (!legal && !source_.one_in(32)) return;
  send_event(event, source_.one_in(32));
}

void GuestRun::send_event(const Event& event, bool damaged) {
  const Seq seq{++events_made_};
  WireFrame frame = encoded([&](ByteBuffer& out) { dialect_.encode(event, seq, out); });
  if (damaged) damage(frame, source_);
  hypervisor_says(std::move(frame));
}

void GuestRun::hypervisor_noise() {
  if (linked_ && source_.coin()) {
    MemoryMapChanged change;
    change.change = static_cast<MapChange>(source_.pick(3));
    change.max_gpa = source_.pick(2 * static_cast<std::uint32_t>(kGuestRam / kPageSize)) * kPageSize;
    change.slot.gpa = source_.pick(kPages) * kPageSize;
    change.slot.bytes = kPageSize;
    change.slot.address_space = source_.one_in(4) ? 1 : 0;
    WireFrame frame = encoded([&](ByteBuffer& out) { dialect_.encode(change, out); });
    damage(frame, source_);
    return hypervisor_says(std::move(frame));
  }
  if (!linked_ || !source_.one_in(8)) return;
  lied_ = true;
  const auto payload = std::as_bytes(source_.some(200));
  hypervisor_says({static_cast<std::uint16_t>(source_.pick(48)), Seq{source_.any<std::uint8_t>()},
                   {payload.begin(), payload.end()}});
}

void GuestRun::hypervisor_says(WireFrame frame) {
  if (!linked_) return;
  {
    const auto message = dialect_.decode_upward(Frame{frame.id, frame.seq, frame.payload});
    if (message) {
      if (const auto* event = std::get_if<Event>(&*message)) {
        if (event->kind() == EventKind::Unhook) {
          if (!unhook_) unhook_ = frame.seq;
        } else if (!vcpus_[event->vcpu.value].stopped) {
          Vcpu& vcpu = vcpus_[event->vcpu.value];
          vcpu.stopped = frame.seq;
          vcpu.actions = event->actions;
          if (event->kind() == EventKind::Pause) vcpu.pause_due = false;
          if (event->kind() == EventKind::CreateVcpu) {
            vcpu.events = 0;
            vcpu.crs.clear();
            vcpu.msrs.clear();
            vcpu.singlestep = false;
          }
        }
      }
      machine_.on_hypervisor_message(frame.seq, *message, now_, effects_);
    } else {
      machine_.on_hypervisor_malformed(message.error(), now_, effects_);
    }
    perform();
  }
  frame = {};
}

// ---- the daemon ----

void GuestRun::pass(core::Duration time) {
  now_ += time;
  machine_.on_time(now_, effects_);
  perform();
  const auto next = machine_.next_deadline();
  if (next && *next <= now_) fail("a deadline stays in the past after on_time()");
}

void GuestRun::stop() {
  if (stopped_) return;
  stopped_ = true;
  machine_.stop(now_, effects_);
  perform();
}

}  // namespace kvmid::fuzz
