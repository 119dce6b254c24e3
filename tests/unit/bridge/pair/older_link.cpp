// SPDX-License-Identifier: GPL-2.0-or-later
#include "tests/unit/bridge/pair/older_link.h"

#include <algorithm>
#include <cstring>

#include "hypervisor/server/session.h"

namespace kvmid::bridge::test {

Frame Kept2::frame() const {
  kvmi_msg_hdr header;
  std::memcpy(&header, bytes.data(), sizeof header);
  return Frame{header.id, Seq{header.seq}, Bytes(bytes).subspan(sizeof header)};
}

OlderLink::OlderLink(kvmi1::DialectId dialect, SmallGuest& guest, sim::Rng& rng)
    : rng_(rng), guest_(guest), patches_(guest) {
  HypervisorHello hello;
  hello.max_gpa = guest.facts().max_gpa;
  HypervisorBridge::Options there;
  if (dialect == kvmi1::DialectId::Rfc2017 || rng.percent(50)) there.dialect = dialect;
  hypervisor_ = std::make_unique<HypervisorBridge>(hello, there);

  AgentBridge::Options here;
  here.dialect = dialect;
  here.breakpoints_are_patches = false;
  here.serves_until_closed = true;
  ToolRights rights;
  rights.commands = CommandSet{hypervisor::kServedCommands | guest.facts().commands.bits};
  rights.events = guest.facts().events;
  rights.unserved_commands = CommandSet{~rights.commands.bits};
  rights.unserved_events = EventSet{~rights.events.bits};
  rights.requests_max = static_cast<std::uint32_t>(rng.between(1, 64));
  agent_ = std::make_unique<AgentBridge>(here, rights);

  down_.parser = std::make_unique<FrameParser>(agent_->payload_max());
  up_.parser = std::make_unique<FrameParser>(agent_->payload_max());
  take_down();
}

void OlderLink::send(const Command& command, Seq seq) {
  hypervisor_->send(command, seq, down_.bytes);
  take_up();
}

void OlderLink::send(const EventReply& reply, Seq seq) {
  hypervisor_->send(reply, seq, down_.bytes);
  take_up();
}

void OlderLink::stop(const Event& event) {
  auto& open = open_.at(event.vcpu.value);
  check(!open, "the test stops a vCPU twice");
  open = OpenEvent{Seq{++last_event_}, event.kind()};
  agent_->deliver(event, open->seq, up_.bytes);
  take_down();
}

void OlderLink::leave(OffReason reason) {
  check(agent_->guest_off(reason, up_.bytes), "UNHOOK was not enabled");
  take_down();
}

bool OlderLink::step() {
  std::array<int, 4> moves{};
  std::size_t count = 0;
  if (!down_.bytes.empty()) moves.at(count++) = 0;
  if (!to_serve_.empty()) moves.at(count++) = 1;
  if (!to_tell_.empty()) moves.at(count++) = 2;
  if (!up_.bytes.empty()) moves.at(count++) = 3;
  if (count == 0) return false;
  switch (moves.at(rng_.below(count))) {
    case 0:
      move_bytes(down_, [&](const Frame& frame) {
        const auto taken = agent_->received(frame, up_.bytes);
        check(taken.has_value(), "the hypervisor's end closes: " + (taken ? std::string() : taken.error()));
        take_down();
      });
      break;
    case 1:
      serve_one();
      break;
    case 2:
      tell_one();
      break;
    default:
      move_bytes(up_, [&](const Frame& frame) {
        const auto taken = hypervisor_->received(frame, down_.bytes);
        check(taken.has_value(), "kvmid's end closes: the hypervisor " + (taken ? std::string() : taken.error()));
        take_up();
      });
      break;
  }
  return true;
}

void OlderLink::settle() {
  while (step()) {
  }
  check(down_.parser->pending() == 0 && up_.parser->pending() == 0, "a part of a frame is left over");
  check(agent_->down().empty() && hypervisor_->up().empty(), "a message is left over");
}

/// A piece of what is on its way, of any size.
template <class Take>
void OlderLink::move_bytes(Pipe& pipe, Take take) {
  const std::size_t most = std::min<std::size_t>(pipe.bytes.size(), rng_.one_in(3) ? 7 : 9000);
  std::size_t left = rng_.between(1, most);
  ByteBuffer piece(pipe.bytes.begin(), pipe.bytes.begin() + static_cast<std::ptrdiff_t>(left));
  pipe.bytes.erase(pipe.bytes.begin(), pipe.bytes.begin() + static_cast<std::ptrdiff_t>(left));
  std::size_t at = 0;
  while (left != 0) {
    const auto space = pipe.parser->writable();
    const std::size_t count = std::min(left, space.size());
    std::memcpy(space.data(), piece.data() + at, count);
    pipe.parser->commit(count);
    at += count;
    left -= count;
    for (;;) {
      const auto next = pipe.parser->next();
      check(next.has_value(), "a frame is too large");
      if (*next == nullptr) break;
      const Frame& frame = **next;
      // In bytes of its own, which are worth nothing afterwards.
      scratch_.assign(frame.payload.begin(), frame.payload.end());
      take(Frame{frame.id, frame.seq, scratch_});
      std::fill(scratch_.begin(), scratch_.end(), std::byte{0xa5});
    }
  }
}

void OlderLink::take_down() {
  check(!agent_->broken(), "the hypervisor's end closes: " + agent_->broken().value_or(""));
  while (!agent_->down().empty()) {
    const auto passed = agent_->down().take();
    Kept2 kept{passed.seq, {}};
    std::visit(Overloaded{
                   [](const UnknownMessage&) { check(false, "an unknown message comes down"); },
                   [&](const auto& message) { kvmi2_.encode(message, passed.seq, kept.bytes); },
               },
               passed.message);
    to_serve_.push_back(std::move(kept));
  }
}

void OlderLink::take_up() {
  while (!hypervisor_->up().empty()) told(hypervisor_->up().take());
}

void OlderLink::serve_one() {
  const Kept2 kept = std::move(to_serve_.front());
  to_serve_.pop_front();
  const auto message = kvmi2_.decode_downward(kept.frame());
  if (!message) {
    // Vectors are looked at by who does it: a decoder of KVMI 2 is one.
    check(message.error().id == KVMI_MSG_INJECT_EXCEPTION, "no KVMI 2 comes down: " + describe(message.error()));
    Kept2 answer{kept.seq, {}};
    kvmi2_.encode(CommandReply{KVMI_MSG_INJECT_EXCEPTION, ErrorCode::Invalid, "no such exception", {}}, kept.seq,
                  answer.bytes);
    return to_tell_.push_back(std::move(answer));
  }
  if (const auto* reply = std::get_if<EventReply>(&*message)) {
    auto& open = open_.at(reply->vcpu.value);
    check(open && open->seq == kept.seq && open->kind == reply->event, "a reply to no event");
    check(!reply->step_over && !reply->trap_access, "a reply with flags");
    open.reset();
    return guest_.answer(*reply);
  }
  hypervisor::CommandServer server(guest_, patches_);
  const CommandReply reply = server.serve(std::get<Command>(*message));
  Kept2 answer{kept.seq, {}};
  kvmi2_.encode(reply, kept.seq, answer.bytes);
  to_tell_.push_back(std::move(answer));
}

void OlderLink::tell_one() {
  const std::size_t which = rng_.below(to_tell_.size());
  const Kept2 kept = std::move(to_tell_[which]);
  to_tell_.erase(to_tell_.begin() + static_cast<std::ptrdiff_t>(which));
  const auto message = kvmi2_.decode_upward(kept.frame());
  check(message.has_value(), "what the server answers is no KVMI 2");
  agent_->deliver(std::get<CommandReply>(*message), kept.seq, up_.bytes);
  take_down();
}

}  // namespace kvmid::bridge::test
