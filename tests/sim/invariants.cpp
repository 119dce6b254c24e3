// SPDX-License-Identifier: GPL-2.0-or-later
// What goes in and comes out: events and their answers, commands and their replies, notices.
#include "tests/sim/invariants.h"

#include <algorithm>

#include "protocol/result.h"

namespace kvmid::sim {

namespace {

constexpr std::string_view kI1 = "I1 events are answered once";
constexpr std::string_view kI4 = "I4 nothing of the gone remains";
constexpr std::string_view kI5 = "I5 an agent sees only what is its own";
constexpr std::string_view kI7 = "I7 commands are answered once";

[[noreturn]] void violated(std::string_view invariant, const std::string& text) {
  throw Violation(std::string(invariant), text);
}
std::string agent_text(AgentId id) { return "agent " + std::to_string(id.value); }

Action allowed(Action wanted, ActionSet actions) { return actions.has(wanted) ? wanted : core::mildest(actions); }

}  // namespace

// ---- inputs ----

Watch::Agent* Watch::find(AgentId id) {
  for (Agent& agent : agents_)
    if (agent.id == id) return &agent;
  return nullptr;
}
Watch::Agent& Watch::must_find(AgentId id, std::string_view what) {
  if (Agent* agent = find(id)) return *agent;
  violated(kI4, std::string(what) + " for " + agent_text(id) + ", which is not there (any more)");
}
bool Watch::is_uncertain(AgentId id) const {
  for (const Agent& agent : agents_)
    if (agent.id == id) return agent.uncertain;
  return false;
}

void Watch::connect_in(bool another_guest) {
  input_ = Input::Hypervisor;
  another_guest_ = another_guest;
  asking_ = true;
  link_closed_ = false;
}
void Watch::link_lost_in() {
  input_ = Input::Hypervisor;
  on_link_closed();
}
void Watch::on_link_closed() {
  link_up_ = asking_ = told_all_ = false;
  gone_patches_.clear();
  for (const AddressSpace space : {AddressSpace::Normal, AddressSpace::Smm}) cookies_.map_changed(space, order_);
  commands_.clear();
  unhook_.reset();
  for (unsigned i = 0; i < kVcpus; ++i) {
    open_[i].reset();
    ended_[i].reset();
    windows_[i] = Window{};
  }
  for (Agent& agent : agents_) agent.pauses_asked = agent.pauses_told = {};
}

void Watch::stop_in() {
  stopping_ = true;
  give_up_votes();
}

/// Everything is about to be withdrawn: what was said so far counts, the rest becomes defaults.
void Watch::give_up_votes() {
  for (auto& open : open_) {
    if (!open) continue;
    open->seen_in_window = true;
    for (Decider& decider : open->deciders) decider.defaulted = decider.defaulted || decider.voted < decider.owed;
  }
}

void Watch::event_in(Seq seq, const Event& event, TimePoint now) {
  input_ = Input::Hypervisor;
  if (garbage_ || !link_up_) return;
  counts_.add(Seen::Events);
  if (event.kind() == EventKind::Unhook) {
    unhook_ = seq;
    counts_.add(Seen::Unhooks);
    return give_up_votes();
  }
  const unsigned index = event.vcpu.value;
  if (index >= kVcpus || open_[index]) violated("model", "a vCPU of the model sent an event while it waits");
  OpenEvent& open = open_[index].emplace();
  open.seq = seq;
  open.event = event;
  open.came = order_;
  open.arrived = open.limit = now;
  open.through_patch = hypervisor_.hit_patch(event.vcpu, seq);
  const auto kind = static_cast<std::size_t>(event.kind());
  for (const Agent& agent : agents_) open.uncertain = open.uncertain || agent.filters[index][kind] != 0;
  if (!commands_.empty()) busy_since_ = now;
  Window& window = windows_[index];
  const bool ends_step = event.kind() == EventKind::Singlestep || event.kind() == EventKind::Breakpoint ||
                         event.kind() == EventKind::CreateVcpu;
  if (window.replied && ends_step) {
    window.closing = true;
    open.seen_in_window = true;
  }
  if (const auto* hit = std::get_if<BreakpointData>(&event.data)) {
    const bool patched = anybody_patches(hit->gpa.value) || hypervisor_.told().patch_at(hit->gpa.value) != nullptr;
    open.maybe_at_patch = patched || !commands_.empty();
    if (open.through_patch || open.maybe_at_patch) window = Window{true, false, false, now};
    for (const Agent& agent : agents_)
      if (agent.has.patch_at(hit->gpa.value) != nullptr) open.owners.push_back(agent.id);
    if (open.through_patch && !patched) counts_.add(Seen::LateHits);
  }
}

void Watch::reply_in(Seq seq, const CommandReply& reply) {
  input_ = Input::Hypervisor;
  input_error_ = reply.error != ErrorCode::None;
  std::erase_if(commands_, [&](const OpenCommand& open) { return open.seq == seq; });
  if (const auto* read = std::get_if<ReadPhysicalReply>(&reply.body)) {
    read_data_.assign(read->data.begin(), read->data.end());
    has_read_data_ = true;
  }
}

void Watch::attached(AgentId id, const core::Grant& grant, std::uint32_t flags) {
  Agent& agent = agents_.emplace_back();
  agent.id = id;
  agent.grant = grant;
  agent.flags = flags;
}

void Watch::lost_in(AgentId id) {
  bool owed = false;
  for (auto& open : open_) {
    if (!open) continue;
    for (Decider& decider : open->deciders) {
      if (decider.id != id) continue;
      owed = owed || decider.voted < decider.owed;
      if (decider.voted < decider.owed) decider.defaulted = true;
    }
  }
  counts_.add(Seen::AgentsLost);
  if (owed) counts_.add(Seen::AgentsLostOwing);
  for (const Agent& agent : agents_) {
    if (agent.id != id) continue;
    if (!commands_.empty()) departing_.push_back(agent);
    for (const Patch& patch : agent.has.patches) gone_patches_.push_back(patch.gpa);
  }
  std::erase_if(agents_, [&](const Agent& agent) { return agent.id == id; });
}

void Watch::map_in(AddressSpace space) {
  input_ = Input::Hypervisor;
  if (!link_up_) return;
  counts_.add(Seen::MapChanges);
  cookies_.map_changed(space, order_);
}

void Watch::message_in(AgentId id, Seq seq, const Downward& message) {
  input_ = Input::Agent;
  input_agent_ = id;
  input_seq_ = seq;
  Agent* agent = find(id);
  if (agent == nullptr) return;
  if (const auto* reply = std::get_if<EventReply>(&message)) {
    if (reply->vcpu.value >= kVcpus) return;
    auto& open = open_[reply->vcpu.value];
    if (!open || open->agents_seq != seq) return;
    for (Decider& decider : open->deciders) {
      if (decider.id != id || decider.voted >= decider.owed || decider.defaulted) continue;
      decider.tentative = true;
      decider.action_before = decider.action;
      decider.action = std::max(decider.action, reply->action);
      decider.step_over = decider.step_over || reply->step_over;
      decider.with_cookie = decider.with_cookie || reply->has_cookie;
      if (reply->has_cookie) {
        counts_.add(Seen::VotesWithCookies);
        decider.cookie_stale = cookies_.is_stale(open->event.space, reply->cookie);
      }
      ++decider.voted;
    }
    return;
  }
  counts_.add(Seen::Commands);
  Pending pending;
  pending.seq = seq;
  pending.asked = order_;
  if (const auto* unknown = std::get_if<UnknownMessage>(&message)) {
    pending.id = unknown->id;
    counts_.add(Seen::UnknownIds);
  } else {
    const Command& command = std::get<Command>(message);
    pending.id = static_cast<std::uint16_t>(id_of(command));
    pending.is_wish = Wish::read(command, pending.wish);
    if (pending.wish.id == CommandId::SetFilter) pending.wish.filter.number = ++filter_numbers_;
    if (const auto* read = std::get_if<ReadPhysical>(&command)) {
      for (std::size_t i = 0; i < read->ranges.size(); ++i) pending.read_bytes += read->ranges[i].size;
      pending.space = read->space;
    }
    if (const auto* write = std::get_if<WritePhysical>(&command)) {
      pending.space = write->space;
      pending.gpa = write->gpa.value;
      pending.bytes = write->data.size();
      pending.has_cookie = (write->flags & KVMI_WRITE_COOKIE) != 0;
      pending.is_stale = pending.has_cookie && pending.bytes != 0 &&
                         cookies_.is_stale(write->space, pending.gpa, pending.bytes, write->cookie);
    }
    if (pending.wish.id == CommandId::PauseVcpu)
      for (unsigned i = 0; i < kVcpus; ++i)
        if (pending.wish.names(i)) ++agent->pauses_asked[i];
  }
  agent->pending.push_back(std::move(pending));
}

void Watch::malformed_in(AgentId id, Seq seq, std::uint16_t command) {
  input_ = Input::Agent;
  input_agent_ = id;
  input_seq_ = seq;
  counts_.add(Seen::Malformed);
  Agent* agent = find(id);
  if (agent == nullptr) return;
  if (command != KVMI_MSG_EVENT_REPLY) {
    Pending& pending = agent->pending.emplace_back();
    pending.seq = seq;
    pending.id = command;
    return;
  }
  for (auto& open : open_)
    if (open && open->agents_seq == seq)
      for (Decider& decider : open->deciders)
        if (decider.id == id) decider.defaulted = true;
}

void Watch::grant_in(AgentId id, const core::Grant& grant, const core::GuestMachine& machine) {
  input_ = Input::GrantChanged;
  input_agent_ = id;
  counts_.add(Seen::GrantsChanged);
  Agent* agent = find(id);
  if (agent == nullptr) return;
  if (!commands_.empty()) departing_.push_back(*agent);
  agent->grant = grant;
  // Of a change that is under way nobody outside can say whether policy came before or after it.
  for (const Pending& pending : agent->pending) agent->uncertain = agent->uncertain || pending.is_wish;
  for (auto& open : open_)
    if (open)
      for (const Decider& decider : open->deciders)
        if (decider.id == id) open->uncertain = true;
  enforce(*agent, machine);
}

void Watch::grant_lost_in(AgentId id) {
  input_ = Input::GrantLost;
  input_agent_ = id;
  counts_.add(Seen::GrantsLost);
}

/// What policy and hypervisor do not give (any more) is taken.
void Watch::enforce(Agent& agent, const core::GuestMachine& machine) {
  const CommandSet commands = machine.commands_for(agent.grant);
  const std::uint64_t events =
      commands.has(CommandId::ControlEvents) ? machine.events_for(agent.grant).bits : std::uint64_t{0};
  for (VcpuWish& vcpu : agent.has.vcpus) {
    vcpu.events &= events;
    vcpu.deciding &= agent.grant.role == Role::Observer ? 0 : vcpu.events;
    if (!commands.has(CommandId::ControlCr)) vcpu.crs = 0;
    if (!commands.has(CommandId::ControlMsr)) vcpu.msrs = 0;
    if (!commands.has(CommandId::ControlSinglestep)) vcpu.step = false;
  }
  if (!commands.has(CommandId::SetPageAccess)) agent.has.pages.fill(kAllRights);
  if (!commands.has(CommandId::WritePhysical) || !machine.info().version.events.has(EventKind::Breakpoint))
    agent.has.patches.clear();
  if (!commands.has(CommandId::SetFilter)) agent.filters = {};
}

// ---- effects ----

void Watch::effects(const core::Effects& effects, const core::GuestMachine& machine, TimePoint now) {
  for (const core::Effect& effect : effects)
    std::visit(Overloaded{
                   [&](const core::SendCommand& e) { on_command(e, now); },
                   [&](const core::SendEventReply& e) { on_event_reply(e, now); },
                   [&](const core::SendEvent& e) { on_event(e, now); }, [&](const core::SendReply& e) { on_reply(e); },
                   [&](const core::SendNotice& e) { on_notice(e); },
                   [&](const core::SendGuestOn& e) { must_find(e.agent, "GUEST_ON"); },
                   [&](const core::SendGuestOff& e) { must_find(e.agent, "GUEST_OFF"); },
                   [&](const core::CloseAgent& e) { on_close_agent(e); },
                   [&](const core::CloseHypervisor& e) {
                     const bool timed_out = !commands_.empty() && now - commands_.front().since >= command_timeout_;
                     if (!garbage_ && !timed_out)
                       violated(kI1, "the link of an honest hypervisor was closed: " + std::string(e.text));
                     if (!garbage_) counts_.add(Seen::CommandTimeouts);
                     garbage_ = false;
                     link_closed_ = true;
                     on_link_closed();
                   },
                   [&](const core::GuestReady&) {
                     counts_.add(Seen::LinksUp);
                     link_up_ = true;
                     told_back_refused_ = false;
                     for (Agent& agent : agents_) enforce(agent, machine);
                   },
                   [&](const core::Report& e) {
                     if (e.fact == core::Fact::Decided && e.new_value) counts_.add(Seen::ValuesChanged);
                   },
                   [](const auto&) {},  // shared RAM: these hypervisors share none
               },
               effect);
  if (link_up_) asking_ = false;
  if (garbage_) violated(kI1, "garbage of a hypervisor did not cost it its link");
  for (auto& open : open_)
    if (open)
      for (Decider& decider : open->deciders) decider.tentative = false;
  input_ = Input::Other;
  input_agent_ = {};
  input_error_ = has_read_data_ = false;
  ++order_;
}

void Watch::on_command(const core::SendCommand& e, TimePoint now) {
  if (!link_up_ && !asking_) violated("I2 the hypervisor has the union", "a command was sent while there is no link");
  commands_.push_back({e.seq, now});
  if (link_up_) i2_somebody_wishes(e.command);
  const auto* write = std::get_if<WritePhysical>(&e.command);
  if (write == nullptr || (write->flags & (KVMI_WRITE_PATCH | KVMI_WRITE_UNPATCH)) != 0) return;
  const Agent* agent = find(input_agent_);
  if (agent == nullptr || agent->pending.empty() || agent->pending.back().seq != input_seq_)
    violated("I9 a cookie is of the latest state", "a write is sent that nobody just asked for");
  i9_cookie_is_new(agent->pending.back());
  cookies_.changed(write->space, write->gpa.value, write->data.size(), order_, order_);
}

void Watch::on_event(const core::SendEvent& e, TimePoint now) {
  Agent& agent = must_find(e.agent, "an event");
  const unsigned index = e.event->vcpu.value;
  if (index >= kVcpus || !open_[index] || !link_up_) violated(kI5, "an agent is told of an event that does not wait");
  OpenEvent& open = *open_[index];
  if (open.agents_seq != Seq{} && open.agents_seq != e.seq) violated(kI5, "one event was told under two seqs");
  if (e.seq == Seq{}) violated(kI5, "an event was told with seq 0");
  open.agents_seq = e.seq;
  i5_may_see(agent, open, e.decide);
  if (open.told.empty()) cookies_.given(e.event->space, e.event->cookie, open.came, Cookies::Moment::First);
  counts_.add(Seen::EventsTold);
  const bool pause = open.event.kind() == EventKind::Pause;
  const bool told = std::find(open.told.begin(), open.told.end(), e.agent) != open.told.end();
  if (told && !pause) violated(kI5, agent_text(e.agent) + " was told twice of one event");
  open.told.push_back(e.agent);
  if (!e.decide) return;
  open.limit = std::max(open.limit, now + microseconds(e.deadline_us));
  if (pause) {
    ++agent.pauses_told[index];
    counts_.add(Seen::Pauses);
  }
  for (Decider& decider : open.deciders)
    if (decider.id == e.agent) {
      ++decider.owed;
      return;
    }
  Decider& decider = open.deciders.emplace_back();
  decider.id = e.agent;
  decider.owed = 1;
  decider.default_action = allowed(agent.grant.default_action, open.event.actions);
}

void Watch::on_event_reply(const core::SendEventReply& e, TimePoint now) {
  if (e.reply.event == EventKind::Unhook) {
    if (unhook_ != e.seq) violated(kI1, "an UNHOOK was answered that does not wait");
    i4_nothing_remains("when UNHOOK is let through");
    counts_.add(Seen::UnhooksConfirmed);
    return;
  }
  const unsigned index = e.reply.vcpu.value;
  OpenEvent* open = index < kVcpus && open_[index] ? &*open_[index] : nullptr;
  i1_answer_is_due(open, e, now);
  if (open->agents_seq != Seq{} && open->agents_seq != e.event_seq)
    violated(kI1, "the answer says another seq than the agents were told");
  open->agents_seq = e.event_seq;
  i1_answer_is_the_verdict(*open, e.reply.action);
  i8_hit_is_not_given_to_the_guest(*open, e.reply.action);
  i9_vote_is_of_the_latest_state(*open, e.reply.action);

  static constexpr std::array<Seen, 4> kVerdicts{Seen::VerdictAllow, Seen::VerdictRetry, Seen::VerdictSkip,
                                                 Seen::VerdictCrash};
  counts_.add(kVerdicts[static_cast<std::size_t>(e.reply.action)]);
  counts_.add(open->deciders.empty() ? Seen::Unattended : Seen::Decided);
  if (open->deciders.size() > 1) counts_.add(Seen::Merged);

  bool step_over = false;
  const auto verdict = verdict_of(*open, step_over);
  const bool own_int3 = open->event.kind() == EventKind::Breakpoint && !open->through_patch;
  const bool by_kvmid = verdict == Action::Allow || (!open->uncertain && open->deciders.empty());
  if (own_int3 && by_kvmid && e.reply.action == Action::Retry)
    hypervisor_.retried_by_kvmid(index, now, 2 * command_timeout_);
  Window& window = windows_[index];
  if (window.open) {
    window.replied = true;
    window.since = now;
    const bool steps = (!verdict && !open->uncertain && open->deciders.empty()) || verdict == Action::Allow ||
                       (verdict == Action::Retry && step_over);
    if (open->through_patch && steps) {
      hypervisor_.promise_step(index, open->seq);
      step_owners_[index] = open->owners;
    }
    const bool certainly_not = verdict && !steps;
    if (open->event.kind() == EventKind::Breakpoint && certainly_not) window = Window{};
  }
  ended_[index] = std::move(open_[index]);
  open_[index].reset();
}

void Watch::on_reply(const core::SendReply& e) {
  Agent& agent = must_find(e.agent, "a reply");
  const auto found = std::find_if(agent.pending.begin(), agent.pending.end(),
                                  [&](const Pending& pending) { return pending.seq == e.seq; });
  if (found == agent.pending.end())
    violated(kI7, agent_text(e.agent) + " got a reply to seq " + std::to_string(e.seq.value) + ", which is not open");
  if (found->id != e.reply.id) violated(kI7, agent_text(e.agent) + " got a reply with the id of another command");
  const Pending pending = std::move(*found);
  agent.pending.erase(found);
  i9_note_reply(pending, e.reply);
  if (e.reply.error != ErrorCode::None) {
    counts_.add(Seen::CommandsRefused);
    if (e.reply.error == ErrorCode::Busy) {
      const bool patch = pending.wish.id == CommandId::WritePhysical;
      counts_.add(patch ? Seen::PatchConflicts : Seen::OverQuota);
    }
    if (e.reply.text.empty()) violated(kI7, "an error without a sentence");
    return;
  }
  counts_.add(Seen::CommandsGranted);
  if (pending.id == KVMI_MSG_READ_PHYSICAL) i5_read_is_what_was_read(pending, e.reply);
  if (pending.is_wish) granted(agent, pending, e.reply);
}

}  // namespace kvmid::sim
