// SPDX-License-Identifier: GPL-2.0-or-later
// The link as a whole: its start, and which part a message belongs to. The parts are in the files hypervisor_*.
#include "bridge/hypervisor_bridge.h"

#include "bridge/hypervisor_events.h"
#include "bridge/hypervisor_link.h"
#include "bridge/hypervisor_memory.h"
#include "bridge/hypervisor_pages.h"
#include "bridge/hypervisor_start.h"
#include "bridge/hypervisor_wishes.h"

namespace kvmid::bridge {

namespace {
constexpr std::size_t kPayloadMaxOfV6 = 8184;  // and of v7 and v12, which it may turn out to be
}

class HypervisorBridge::Impl {
 public:
  Impl(const HypervisorHello& hello, Options options) : start_(link_, hello.max_gpa) {
    if (options.dialect) link_.speak(*options.dialect);
  }

  void send(const Command& command, Seq seq, ByteBuffer& wire) {
    std::visit(Overloaded{
                   [&](const GetVersion&) { version_asked(seq, wire); },
                   [&](const GetGuestInfo&) { info_asked(seq, wire); },
                   [&](const auto& other) {
                     if (!up_) return link_.refuse(seq, id_of(command), ErrorCode::NoDevice, kNotUp);
                     if (!serve(other, seq, wire)) wishes_.send(command, seq, wire);
                   },
               },
               command);
  }
  void send(const EventReply& reply, Seq seq, ByteBuffer& wire) {
    if (up_) events_.send(reply, seq, wire);
  }
  Kept received(const Frame& frame, ByteBuffer& wire);

  HypervisorLink link_;
  HypervisorStart start_;
  HypervisorMemory memory_{link_};
  HypervisorPages pages_{link_};
  HypervisorEvents events_{link_, memory_};
  HypervisorWishes wishes_{link_, events_};

 private:
  static constexpr std::string_view kNotUp = "the hypervisor has not said what it is";

  // True: the part that it belongs to has it.
  template <class Other>
  bool serve(const Other&, Seq, ByteBuffer&) {
    return false;
  }
  bool serve(const ReadPhysical& command, Seq seq, ByteBuffer& wire);
  bool serve(const WritePhysical& command, Seq seq, ByteBuffer& wire);
  bool serve(const SetPageAccess& command, Seq seq, ByteBuffer& wire);
  bool serve(const SetRegisters& command, Seq seq, ByteBuffer& wire);

  void version_asked(Seq seq, ByteBuffer& wire);
  void info_asked(Seq seq, ByteBuffer& wire);
  void tell_version();
  [[nodiscard]] bool is_offered(CommandId id, Seq seq);
  Kept replied(const kvmi1::Reply& reply, Seq seq, ByteBuffer& wire);
  Kept event_came(Event& event, Seq seq, ByteBuffer& wire);

  Seq version_seq_;  ///< the core's GET_VERSION
  bool up_ = false;  ///< the core knows the facts
};

// ---- the start ----

void HypervisorBridge::Impl::version_asked(Seq seq, ByteBuffer& wire) {
  if (!start_.is_idle() && !start_.is_done())
    return link_.refuse(seq, CommandId::GetVersion, ErrorCode::Busy, "the hypervisor is being asked already");
  version_seq_ = seq;
  if (start_.is_done()) return tell_version();
  start_.begin(wire);
}

void HypervisorBridge::Impl::tell_version() {
  GetVersionReply version;
  version.commands = link_.facts.offered_commands;
  version.events = link_.facts.offered_events;
  link_.answer(version_seq_, CommandId::GetVersion, version);
}

void HypervisorBridge::Impl::info_asked(Seq seq, ByteBuffer& wire) {
  if (!start_.is_done()) return link_.refuse(seq, CommandId::GetGuestInfo, ErrorCode::NoDevice, kNotUp);
  const HypervisorFacts& facts = link_.facts;
  GetGuestInfoReply info;
  info.vcpu_count = facts.vcpus;
  info.tsc_hz = facts.tsc_hz;
  info.physical_address_bits = facts.physical_address_bits;
  info.linear_address_bits = facts.linear_address_bits;
  info.max_gpa = facts.max_gpa;
  link_.answer(seq, CommandId::GetGuestInfo, info);
  if (up_) return;
  up_ = true;
  // A guest that is let go without this event is cut off at once, patches and all: no agent has to ask for it.
  if (facts.offered_events.has(EventKind::Unhook)) {
    const kvmi1::ControlVmEvents unhook{*link_.codec().number_of(EventKind::Unhook), true};
    link_.ask(unhook, AskedBy::Nobody, 0, 0, wire);
  }
}

// ---- down ----

bool HypervisorBridge::Impl::is_offered(CommandId id, Seq seq) {
  if (link_.facts.offered_commands.has(id)) return true;
  link_.refuse(seq, id, ErrorCode::NotSupported, "not supported by this hypervisor");
  return false;
}

bool HypervisorBridge::Impl::serve(const ReadPhysical& command, Seq seq, ByteBuffer& wire) {
  if (is_offered(CommandId::ReadPhysical, seq)) memory_.send(command, seq, wire);
  return true;
}

bool HypervisorBridge::Impl::serve(const WritePhysical& command, Seq seq, ByteBuffer& wire) {
  if (is_offered(CommandId::WritePhysical, seq)) memory_.send(command, seq, wire);
  return true;
}

bool HypervisorBridge::Impl::serve(const SetPageAccess& command, Seq seq, ByteBuffer& wire) {
  if (is_offered(CommandId::SetPageAccess, seq)) pages_.send(command, seq, wire);
  return true;
}

bool HypervisorBridge::Impl::serve(const SetRegisters& command, Seq seq, ByteBuffer&) {
  if (!events_.stage(command.vcpu, command.regs)) return false;
  link_.answer(seq, CommandId::SetRegisters);  // they go with the event's reply
  return true;
}

// ---- up ----

Kept HypervisorBridge::Impl::received(const Frame& frame, ByteBuffer& wire) {
  if (!link_.speaks())
    if (auto kept = start_.find_dialect(frame); !kept) return kept;
  auto message = link_.codec().decode_upward(frame);
  if (!message) return "sent a message that cannot be decoded: " + kvmi1::describe(link_.codec(), message.error());
  if (auto* event = std::get_if<kvmi1::EventMessage>(&*message)) return event_came(event->event, frame.seq, wire);
  if (const auto* reply = std::get_if<kvmi1::Reply>(&*message)) return replied(*reply, frame.seq, wire);
  if (std::holds_alternative<kvmi1::CommandError>(*message))
    return std::string("sent an event about a command without reply, and there is none");
  return "sent a message of an id that its dialect does not have, " + std::to_string(frame.id);
}

Kept HypervisorBridge::Impl::event_came(Event& event, Seq seq, ByteBuffer& wire) {
  if (!up_) return "sent an event (" + std::string(name_of(event.kind())) + ") before any was asked for";
  if (link_.leaves_too_much_open()) return std::string("sends events, and leaves too many commands unanswered");
  if (event.kind() == EventKind::CreateVcpu) {
    // The guest's number of vCPUs is asked once: one that is added later runs, and nobody watches it.
    if (event.vcpu.value >= link_.facts.vcpus) return events_.let_new_vcpu_go(event.vcpu, seq, wire);
    wishes_.forget(event.vcpu);
  }
  return events_.arrived(event, seq);
}

Kept HypervisorBridge::Impl::replied(const kvmi1::Reply& reply, Seq seq, ByteBuffer& wire) {
  if (reply.id == link_.codec().event_reply_id()) {
    return "refused the reply to its event with seq " + std::to_string(seq.value) + ": " + std::to_string(reply.error);
  }
  const auto asked = link_.answered(reply, seq);
  if (!asked) return asked.error();
  switch (asked->by) {
    case AskedBy::Start: {
      auto kept = start_.replied(*asked, reply, wire);
      if (!kept || !start_.is_done()) return kept;
      events_.begin();
      wishes_.begin();
      tell_version();
      return {};
    }
    case AskedBy::Memory:
      return memory_.replied(*asked, reply, wire);
    case AskedBy::Pages:
      return pages_.replied(*asked, reply, wire);
    case AskedBy::Wishes:
      return wishes_.replied(*asked, reply, wire);
    case AskedBy::Events:
      return events_.replied(*asked, reply, wire);
    case AskedBy::Nobody:
      break;
  }
  return {};
}

// ---- the bridge ----

HypervisorBridge::HypervisorBridge(const HypervisorHello& hello, Options options)
    : impl_(std::make_unique<Impl>(hello, options)) {}
HypervisorBridge::~HypervisorBridge() = default;

void HypervisorBridge::send(const Command& command, Seq seq, ByteBuffer& wire) { impl_->send(command, seq, wire); }
void HypervisorBridge::send(const EventReply& reply, Seq seq, ByteBuffer& wire) { impl_->send(reply, seq, wire); }
Result<void, std::string> HypervisorBridge::received(const Frame& frame, ByteBuffer& wire) {
  return impl_->received(frame, wire);
}

PassedQueue<Upward>& HypervisorBridge::up() { return impl_->link_.up; }
bool HypervisorBridge::let_go() const { return impl_->events_.let_go(); }

std::optional<kvmi1::DialectId> HypervisorBridge::dialect() const {
  if (!impl_->link_.speaks()) return std::nullopt;
  return impl_->link_.dialect();
}
std::size_t HypervisorBridge::payload_max() const {
  return impl_->link_.speaks() ? impl_->link_.codec().payload_max() : kPayloadMaxOfV6;
}

}  // namespace kvmid::bridge
