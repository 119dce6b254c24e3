// SPDX-License-Identifier: GPL-2.0-or-later
#include "hypervisor/server/session.h"

#include <cstdlib>
#include <utility>

#include "hypervisor/server/commands.h"

namespace kvmid::hypervisor {

namespace {

std::unique_ptr<bridge::AgentBridge> bridge_to(const GuestBackend& backend, std::optional<kvmi1::DialectId> older) {
  if (!older) return nullptr;
  bridge::AgentBridge::Options options;
  options.dialect = *older;
  options.breakpoints_are_patches = false;
  options.serves_until_closed = true;
  bridge::ToolRights rights;
  rights.commands = CommandSet{kServedCommands | backend.facts().commands.bits};
  rights.events = backend.facts().events;
  rights.unserved_commands = CommandSet{~rights.commands.bits};
  rights.unserved_events = EventSet{kEveryEvent.bits & ~rights.events.bits};
  return std::make_unique<bridge::AgentBridge>(options, rights);
}

}  // namespace

Session::Session(GuestBackend& backend, std::optional<kvmi1::DialectId> older)
    : backend_(backend),
      patches_(backend),
      bridge_(bridge_to(backend, older)),
      parser_(bridge_ ? bridge_->payload_max() : KVMI_MAX_PAYLOAD),
      open_events_(backend.facts().vcpu_count) {
  if (bridge_) serve_bridge();
}

std::optional<std::string> Session::received(std::size_t n) {
  parser_.commit(n);
  return resume();
}

std::optional<std::string> Session::resume() {
  if (broken_) return broken_;
  while (wants_input()) {
    const auto frame = parser_.next();
    if (!frame) {
      return "a header announces " + std::to_string(frame.error().size) + " bytes, more than a message may have (id " +
             std::to_string(frame.error().id) + ")";
    }
    if (*frame == nullptr) return std::nullopt;
    if (auto error = serve(**frame)) return error;
  }
  return std::nullopt;
}

void Session::sent(std::size_t n) {
  sent_ += n;
  if (sent_ == outbox_.size()) {
    outbox_.clear();
    sent_ = 0;
  } else if (sent_ > kOutboxHigh) {
    outbox_.erase(outbox_.begin(), outbox_.begin() + static_cast<std::ptrdiff_t>(sent_));
    sent_ = 0;
  }
}

std::optional<std::string> Session::serve(const Frame& frame) {
  if (bridge_) return serve_older(frame);
  const auto message = dialect_.decode_downward(frame);
  if (!message) return describe(message.error());
  return std::visit(Overloaded{
                        [&](const Command& command) -> std::optional<std::string> {
                          serve_command(command, frame.seq);
                          return std::nullopt;
                        },
                        [&](const EventReply& reply) { return serve_reply(reply, frame.seq); },
                        [&](const UnknownMessage& unknown) -> std::optional<std::string> {
                          CommandReply reply;
                          reply.id = unknown.id;
                          reply.error = ErrorCode::NotServed;
                          reply.text = "no such message";
                          dialect_.encode(reply, frame.seq, outbox_);
                          return std::nullopt;
                        },
                    },
                    *message);
}

std::optional<std::string> Session::serve_older(const Frame& frame) {
  const auto taken = bridge_->received(frame, outbox_);
  if (!taken) return taken.error();
  serve_bridge();
  return broken_;
}

/// What the bridge makes of the peer's messages. An answer can raise the next event, which only adds to it.
void Session::serve_bridge() {
  if (in_bridge_) return;
  in_bridge_ = true;
  while (!broken_ && !bridge_->down().empty()) {
    const auto passed = bridge_->down().take();
    std::visit(Overloaded{
                   [&](const Command& command) { serve_command(command, passed.seq); },
                   [&](const EventReply& reply) { broken_ = serve_reply(reply, passed.seq); },
                   [&](const UnknownMessage&) {},  // answered by the bridge
               },
               passed.message);
    if (!broken_) broken_ = bridge_->broken();
  }
  in_bridge_ = false;
}

void Session::serve_command(const Command& command, Seq seq) {
  CommandServer server(backend_, patches_);
  const CommandReply reply = server.serve(command);
  if (bridge_) bridge_->deliver(reply, seq, outbox_);
  else dialect_.encode(reply, seq, outbox_);
}

std::optional<std::string> Session::serve_reply(const EventReply& reply, Seq seq) {
  const auto bad = [&](const std::string& why) {
    return "event reply seq=" + std::to_string(seq.value) + " vcpu=" + std::to_string(reply.vcpu.value) + ": " + why;
  };
  if (reply.vcpu == kAllVcpus) {
    if (!unhook_) return bad("no UNHOOK event is open");
    if (*unhook_ != seq) return bad("the open UNHOOK event has seq=" + std::to_string(unhook_->value));
    if (reply.event != EventKind::Unhook || reply.action != Action::Allow) {
      return bad("UNHOOK of all vCPUs is answered with ALLOW");
    }
    unhook_.reset();
    unhooked_ = true;
    return std::nullopt;
  }
  if (reply.vcpu.value >= open_events_.size()) return bad("no such vCPU");
  auto& open = open_events_[reply.vcpu.value];
  if (!open) return bad("this vCPU waits for no reply");
  if (open->seq != seq) return bad("the open event has seq=" + std::to_string(open->seq.value));
  if (open->kind != reply.event) return bad("the open event is " + std::string(name_of(open->kind)));
  if (!open->actions.has(reply.action)) {
    return bad("action " + std::string(name_of(reply.action)) + " is not offered by this event");
  }
  if (reply.step_over) return bad("STEP_OVER is not offered by this hypervisor");
  if (reply.trap_access && !backend_.facts().events.has(EventKind::Access)) {
    return bad("TRAP_ACCESS is not offered by this hypervisor: it has no ACCESS events");
  }
  open.reset();
  backend_.answer(reply);
  return std::nullopt;
}

void Session::raise(const Event& event) {
  auto& open = open_events_[event.vcpu.value];
  if (open) std::abort();  // a stopped vCPU cannot stop again
  const Seq seq{next_seq_++};
  open = OpenEvent{seq, event.kind(), event.actions};
  if (!bridge_) return dialect_.encode(event, seq, outbox_);
  bridge_->deliver(event, seq, outbox_);
  if (!broken_) broken_ = bridge_->broken();
  serve_bridge();
}

void Session::map_changing(const MemoryMapChanged& change) {
  const bool moves = change.change == MapChange::Moved, goes = change.change == MapChange::Removed;
  if ((moves || goes) && change.slot.address_space == KVMI_ADDRESS_SPACE_NORMAL) {
    patches_.take_off_within(moves ? change.old_gpa : Gpa{change.slot.gpa}, change.slot.bytes);
  }
  if (!bridge_) dialect_.encode(change, outbox_);
}

void Session::unhook(OffReason reason) {
  if (unhook_ || unhooked_) std::abort();
  if (bridge_) {
    unhooked_ = !bridge_->guest_off(reason, outbox_);
    return serve_bridge();
  }
  Event event;
  event.vcpu = kAllVcpus;
  event.actions = ActionSet{KVMI_ACTION_BIT(KVMI_ACTION_ALLOW)};
  event.data = UnhookData{reason};
  unhook_ = Seq{next_seq_++};
  dialect_.encode(event, *unhook_, outbox_);
}

}  // namespace kvmid::hypervisor
