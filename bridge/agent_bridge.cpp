// SPDX-License-Identifier: GPL-2.0-or-later
// Frames of a tool, in order: served at once, or kept until there is room; and the replies, in the same order.
#include "bridge/agent_bridge.h"

#include <utility>

#include "bridge/agent_impl.h"
#include "bridge/errors.h"

namespace kvmid::bridge {

namespace {

/// The event reply behind such a command waits until the command is answered.
bool changes_something(const Command& command) {
  switch (id_of(command)) {
    case CommandId::PauseVcpu:
    case CommandId::SetRegisters:
    case CommandId::SetPageAccess:
    case CommandId::InjectException:
    case CommandId::WritePhysical:
    case CommandId::ControlEvents:
    case CommandId::ControlCr:
    case CommandId::ControlMsr:
    case CommandId::ControlSinglestep:
    case CommandId::SetXsave:
      return true;
    default:
      return false;
  }
}

/// With replies off the published kernel closes when these fail, too, not only when they succeed.
bool closes_when_refused(kvmi1::CommandKind kind) {
  return kind == kvmi1::kind_of<kvmi1::GetCpuid> || kind == kvmi1::kind_of<kvmi1::GetMapToken>;
}

}  // namespace

AgentBridge::Impl::Impl(Options options, const ToolRights& tool_rights)
    : rights(tool_rights), codec(kvmi1::codec(options.dialect)), options_(options) {
  // How many vCPUs there are: what names others is refused, and only this end can do it. So nothing is served before.
  ask(GetGuestInfo{}, [held = std::make_shared<Step>(*this)](const CommandReply&) {});
}

void AgentBridge::Impl::stop(std::string why) {
  if (!broken) broken = std::move(why);
}

// ---- frames ----

bool AgentBridge::Impl::may_serve(std::uint16_t id) const {
  if (steps_ != 0 || slots_.size() >= kSlotsMax || held_bytes_ >= kHeldBytesMax) return false;
  const bool room = chores_.empty() && asks_.size() < rights.requests_max;
  if (id != codec.event_reply_id()) return room;
  // rfc2017: a reply can set registers, which is a command.
  return changes_open_ == 0 && (room || !is(kvmi1::DialectId::Rfc2017));
}

Result<void, std::string> AgentBridge::Impl::received(const Frame& frame, ByteBuffer& wire) {
  wire_ = &wire;
  if (!broken && backlog_.empty() && may_serve(frame.id)) {
    serve(frame);
    pump();
  } else if (!broken) {
    backlog_bytes_ += frame.payload.size() + kFrameOverhead;
    if (backlog_bytes_ > kBacklogMax) {
      stop("more than " + std::to_string(kBacklogMax) + " bytes of commands wait to be served");
    } else {
      backlog_.push_back({frame.id, frame.seq, {frame.payload.begin(), frame.payload.end()}});
    }
  }
  if (broken) return *broken;
  return {};
}

/// What waited and may go now.
void AgentBridge::Impl::pump() {
  while (!broken && !chores_.empty() && asks_.size() < rights.requests_max) {
    Command chore = std::move(chores_.front());
    chores_.pop_front();
    ask(std::move(chore), [](const CommandReply&) {});
  }
  while (!broken && !backlog_.empty() && may_serve(backlog_.front().id)) {
    Kept kept = std::move(backlog_.front());
    backlog_.pop_front();
    backlog_bytes_ -= kept.payload.size() + kFrameOverhead;
    source_ = &kept.payload;
    serve(Frame{kept.id, kept.seq, kept.payload});
    source_ = nullptr;
  }
}

/// The bytes of the frame under way, where the bridge keeps them: a message whose views point into them takes them
/// along.
std::vector<std::byte> AgentBridge::Impl::keep() {
  if (source_ == nullptr) return {};
  return std::exchange(*source_, {});
}

void AgentBridge::Impl::serve(const Frame& frame) {
  if (frame.id == codec.event_reply_id()) return serve_event_reply(frame);
  serve_command(frame);
}

/// In the order of the kernel: known, allowed, well made, of a vCPU that exists; then the command itself.
void AgentBridge::Impl::serve_command(const Frame& frame) {
  const auto kind = codec.command_of(frame.id);
  if (!kind) {
    const bool always = is(kvmi1::DialectId::V6);
    if (!replies_on_ && !always) {
      return stop("command " + std::to_string(frame.id) + " is unknown, and replies are off");
    }
    Slot& slot = open_slot(frame, kind);
    slot.answers = true;
    return finish(slot, ErrorCode::NotServed);
  }
  const Served allowed = served(*kind);
  if (allowed == Served::NotPermitted && !replies_on_) {
    return stop(std::string(kvmi1::name_of(*kind)) + " is not allowed, and replies are off");
  }
  Slot& slot = open_slot(frame, kind);
  if (allowed == Served::NotPermitted || needs_event_first(*kind)) return finish(slot, ErrorCode::NotPermitted);
  if (allowed == Served::Never || gone_for(*kind)) return finish(slot, ErrorCode::NotSupported);

  const auto message = codec.decode_downward(frame);
  if (!message) {
    const kvmi1::Refused& refused = message.error();
    if (refused.answer == 0) return stop(kvmi1::describe(codec, refused.error));
    return finish(slot, refused.answer);
  }
  const auto* command = std::get_if<kvmi1::Command>(&*message);
  if (command == nullptr) return finish(slot, ErrorCode::NotServed);
  std::visit(
      [&](const auto& c) {
        if constexpr (requires { c.vcpu; }) {
          if (no_such_vcpu(c.vcpu)) return finish(slot, ErrorCode::Invalid);
        }
        run(slot, c);
      },
      *command);
}

// ---- replies ----

AgentBridge::Impl::Slot& AgentBridge::Impl::open_slot(const Frame& frame, std::optional<kvmi1::CommandKind> kind) {
  Slot slot;
  slot.id = frame.id;
  slot.seq = frame.seq;
  slot.kind = kind;
  slot.answers = replies_on_;
  slot.tells_errors = !replies_on_ && error_events_;
  slots_.push_back(std::move(slot));
  return slots_.back();
}

/// The command is done. Its slot may be gone afterwards.
void AgentBridge::Impl::finish(Slot& slot, std::int32_t error, const kvmi1::ReplyBody& body) {
  slot.done = true;
  const bool first = &slot == &slots_.front();
  ByteBuffer& out = first ? *wire_ : slot.bytes;
  const auto name = [&] { return std::string(slot.kind ? kvmi1::name_of(*slot.kind) : "a command"); };
  if (slot.answers) {
    if (error == 0) {
      codec.encode(kvmi1::Reply{slot.id, 0, body}, slot.seq, out);
    } else {
      codec.encode(kvmi1::Reply{slot.id, error, {}}, slot.seq, out);
    }
  } else if (error == 0) {
    if (!std::holds_alternative<std::monostate>(body)) stop(name() + " answers with data, and replies are off");
  } else if (slot.kind && closes_when_refused(*slot.kind)) {
    stop(name() + " failed, and replies are off");
  } else if (slot.tells_errors) {
    codec.encode(kvmi1::CommandError{error, slot.seq, slot.id}, next_event_seq(), out);
  }
  held_bytes_ += slot.bytes.size();
  leave_in_order();
}

void AgentBridge::Impl::finish(Slot& slot, ErrorCode error) { finish(slot, error_of(error)); }

void AgentBridge::Impl::leave_in_order() {
  while (!slots_.empty() && slots_.front().done) {
    const ByteBuffer& bytes = slots_.front().bytes;
    wire_->insert(wire_->end(), bytes.begin(), bytes.end());
    held_bytes_ -= bytes.size();
    slots_.pop_front();
  }
}

std::int32_t AgentBridge::Impl::error_of(ErrorCode error) const { return error_for(error, codec.dialect()); }

// ---- the core ----

void AgentBridge::Impl::ask(Command command, Then then, std::vector<std::byte> bytes) {
  if (++last_ask_ == 0) ++last_ask_;
  const bool changes = changes_something(command);
  if (changes) ++changes_open_;
  asks_.emplace(last_ask_, Ask{std::move(then), changes});
  down.push(Seq{last_ask_}, Downward{std::move(command)}, std::move(bytes));
}

void AgentBridge::Impl::ask_and_finish(Slot& slot, Command command, std::vector<std::byte> bytes) {
  ask(
      std::move(command), [this, &slot](const CommandReply& reply) { finish(slot, reply.error); }, std::move(bytes));
}

void AgentBridge::Impl::deliver(const CommandReply& reply, Seq seq, ByteBuffer& wire) {
  wire_ = &wire;
  const auto found = asks_.find(seq.value);
  if (found == asks_.end()) return;
  {
    const Ask ask = std::move(found->second);
    asks_.erase(found);
    if (ask.changes) --changes_open_;
    note_facts(reply);
    if (!broken) ask.then(reply);
  }  // a Step that the continuation held has ended
  pump();
}

void AgentBridge::Impl::note_facts(const CommandReply& reply) {
  if (const auto* facts = std::get_if<GetGuestInfoReply>(&reply.body); facts != nullptr && facts->vcpu_count != 0) {
    vcpu_count_ = facts->vcpu_count;
  }
}

bool AgentBridge::Impl::guest_off(OffReason reason, ByteBuffer& wire) {
  wire_ = &wire;
  if (unhook_wanted_ && !unhook_told_) {
    unhook_told_ = true;
    kvmi1::EventMessage message;
    message.event.vcpu = kAllVcpus;
    message.event.data = UnhookData{reason};
    codec.encode(message, next_event_seq(), wire);
  }
  if (unhook_wanted_ && options_.serves_until_closed) return true;
  off_ = true;
  // Nothing will be heard of these any more.
  for (Vcpu& vcpu : vcpus_) {
    if (vcpu.open) vcpu.open->awaited = false;
    vcpu.pauses_awaited = 0;
    vcpu.guest_pauses = 0;
  }
  end_waits(ErrorCode::NotSupported);
  pump();
  return unhook_wanted_;
}

// ---- the class that others see ----

AgentBridge::AgentBridge(Options options, const ToolRights& rights) : impl_(std::make_unique<Impl>(options, rights)) {}
AgentBridge::~AgentBridge() = default;

void AgentBridge::set_rights(const ToolRights& rights) { impl_->rights = rights; }

Result<void, std::string> AgentBridge::received(const Frame& frame, ByteBuffer& wire) {
  return impl_->received(frame, wire);
}

void AgentBridge::deliver(const Event& event, Seq seq, ByteBuffer& wire) { impl_->deliver(event, seq, wire); }
void AgentBridge::deliver(const CommandReply& reply, Seq seq, ByteBuffer& wire) { impl_->deliver(reply, seq, wire); }
void AgentBridge::deliver(const Notice& notice, ByteBuffer& wire) { impl_->deliver(notice, wire); }
bool AgentBridge::guest_off(OffReason reason, ByteBuffer& wire) { return impl_->guest_off(reason, wire); }
PassedQueue<Downward>& AgentBridge::down() { return impl_->down; }
const std::optional<std::string>& AgentBridge::broken() const { return impl_->broken; }
kvmi1::DialectId AgentBridge::dialect() const { return impl_->codec.dialect(); }
std::size_t AgentBridge::payload_max() const { return impl_->codec.payload_max(); }

}  // namespace kvmid::bridge
