// SPDX-License-Identifier: GPL-2.0-or-later
#include "tests/unit/bridge/pair/tool_world.h"

#include <algorithm>
#include <cstring>

#include "tests/unit/bridge/pair/older_link.h"

namespace kvmid::bridge::test {

ToolWorld::ToolWorld(kvmi1::DialectId dialect, std::uint64_t seed, bool polite)
    : dialect_(dialect), codec_(kvmi1::codec(dialect)), polite_(polite), rng_(seed) {
  begin();
}

void ToolWorld::begin() {
  rights_ = ToolRights{};
  rights_.commands.bits = ~std::uint64_t{0};
  rights_.events = kEveryEvent;
  if (!polite_ && rng_.one_in(3)) rights_.commands.bits = rng_.next() | rng_.next();
  if (!polite_ && rng_.one_in(3)) rights_.events.bits = (rng_.next() | rng_.next()) & kEveryEvent.bits;
  rights_.requests_max = static_cast<std::uint32_t>(rng_.one_in(2) ? rng_.between(1, 4) : rng_.between(1, 64));
  AgentBridge::Options options;
  options.dialect = dialect_;
  bridge_ = std::make_unique<AgentBridge>(options, rights_);
  wire_.clear();
  sent_.clear();
  told_.clear();
  open_.clear();
  stops_.clear();
  pauses_.clear();
  injections_.clear();
  replies_on_ = true;
  error_events_ = wants_unhook_ = off_ = false;
  guest_pauses_ = 0;
  last_event_ = 0;
  take_down();
}

void ToolWorld::step() {
  if (wire_.capacity() > 1U << 20U) ByteBuffer{}.swap(wire_);
  switch (rng_.below(10)) {
    case 0:
    case 1:
    case 2:
      if (sent_.size() < 150) command();
      break;
    case 3:
    case 4:
    case 5:
      answer_one();
      break;
    case 6:
      rng_.one_in(2) ? event_somewhere() : pause_somewhere();
      break;
    case 7:
      reply_somewhere();
      break;
    case 8:
      if (rng_.one_in(6)) notice();
      if (!polite_ && rng_.one_in(4)) noise();
      if (rng_.one_in(800)) guest_goes();
      break;
    default:
      reply_somewhere();
      break;
  }
  if (bridge_->broken()) close();
}

void ToolWorld::finish() {
  finishing_ = true;
  for (int quiet = 0, rounds = 0; quiet < 4; ++rounds) {
    if (rounds == 2000) {
      if (!polite_) return;  // it may have left vCPUs waiting
      check(false, "the end never comes: " + std::to_string(stops_.size()) + " stops, " +
                       std::to_string(pauses_.size()) + " pauses, " + std::to_string(guest_pauses_) +
                       " pauses of the guest, " + std::to_string(open_.size()) + " open");
    }
    const std::size_t before = sent_.size() + open_.size() + stops_.size();
    while (!open_.empty() && !bridge_->broken()) answer_one();
    for (std::uint16_t i = 0; i < kVcpus && !bridge_->broken(); ++i) {
      while (!told_[i].empty() && !bridge_->broken()) {
        const Told told = told_[i].front();
        told_[i].pop_front();
        event_reply(VcpuId{i}, told);
      }
      pause_somewhere();
    }
    if (is(kvmi1::DialectId::Rfc2017) && guest_pauses_ != 0 && polite_) {
      --guest_pauses_;
      send(kvmi1::UnpauseGuest{});
    }
    if (bridge_->broken()) return close();
    const bool rest = pauses_.empty() && open_.empty() && guest_pauses_ == 0;
    quiet = rest && before == sent_.size() + open_.size() + stops_.size() ? quiet + 1 : 0;
  }
  if (!polite_) return;
  const auto due = std::find_if(sent_.begin(), sent_.end(), [](const Sent& s) { return s.reply == Sent::Reply::Due; });
  if (due != sent_.end()) {
    const auto kind = codec_.command_of(due->id);
    check(false, "command " + std::string(kind ? kvmi1::name_of(*kind) : "?") + " with seq " +
                     std::to_string(due->seq) + " is never answered");
  }
  check(stops_.empty() || off_, "an event is never answered");
  check(bridge_->down().empty(), "a message is left over");
}

void ToolWorld::close() {
  check(!polite_, "a tool that keeps to its dialect is closed: " + bridge_->broken().value_or(""));
  ++counts_.closed;
  begin();
}

// ---- to the bridge ----

void ToolWorld::frame_of(const ByteBuffer& bytes, Sent::Reply due) {
  kvmi_msg_hdr header;
  std::memcpy(&header, bytes.data(), sizeof header);
  check(bytes.size() == sizeof header + header.size, "the test's own frame is not whole");
  received(header.id, header.seq, {bytes.begin() + sizeof header, bytes.end()}, due);
}

void ToolWorld::received(std::uint16_t id, std::uint32_t seq, std::vector<std::byte> payload, Sent::Reply due) {
  // Also of an event reply, which is answered where it is refused.
  if (due != Sent::Reply::None || codec_.command_of(id)) sent_.push_back({id, seq, due});
  const auto taken = bridge_->received(Frame{id, Seq{seq}, payload}, wire_);
  check(taken.has_value() == !bridge_->broken(), "received() and broken() disagree");
  if (!taken) return close();
  take_down();
  std::fill(payload.begin(), payload.end(), std::byte{0xa5});
  look_at_wire();
}

// ---- from the bridge ----

void ToolWorld::take_down() {
  while (!bridge_->down().empty()) {
    const auto passed = bridge_->down().take();
    if (const auto* reply = std::get_if<EventReply>(&passed.message)) {
      ++counts_.event_replies;
      const auto stop = stops_.find(reply->vcpu.value);
      check(stop != stops_.end() && stop->second.seq == passed.seq,
            "a reply to an event that the core does not wait for");
      check(stop->second.event.kind() == reply->event, "a reply to another kind of event");
      check(stop->second.event.actions.has(reply->action), "a reply with an action that the event does not take");
      if (--stop->second.replies == 0) stops_.erase(stop);
      continue;
    }
    const auto* command = std::get_if<Command>(&passed.message);
    check(command != nullptr, "something goes down that is neither a command nor a reply");
    Open open{passed.seq, id_of(*command), {}, 0};
    std::visit(Overloaded{
                   [&](const GetRegisters& c) {
                     open.vcpu = c.vcpu;
                     open.size = c.msrs.size();
                   },
                   [&](const ReadPhysical& c) {
                     for (std::size_t i = 0; i < c.ranges.size(); ++i) open.size += c.ranges[i].size;
                   },
                   [&](const PauseVcpu& c) { open.vcpu = c.vcpu; },
                   [&](const InjectException& c) { open.vcpu = c.vcpu; },
                   [&](const GetPageAccess& c) { open.size = c.pages; },
                   [](const auto&) {},
               },
               *command);
    // Everything that goes down is a message of KVMI 2, views and all.
    ByteBuffer bytes;
    kvmi2_.encode(*command, passed.seq, bytes);
    open_.push_back(open);
    check(open_.size() <= std::max<std::size_t>(rights_.requests_max, 1),
          "more commands are open than the core allows");
  }
}

void ToolWorld::look_at_wire() {
  ByteBuffer bytes;
  bytes.swap(wire_);
  Bytes rest(bytes);
  while (!rest.empty()) {
    kvmi_msg_hdr header;
    check(rest.size() >= sizeof header, "a part of a header");
    std::memcpy(&header, rest.data(), sizeof header);
    check(header.size <= codec_.payload_max() && rest.size() >= sizeof header + header.size, "a part of a frame");
    look_at(Frame{header.id, Seq{header.seq}, rest.subspan(sizeof header, header.size)});
    rest = rest.subspan(sizeof header + header.size);
  }
}

void ToolWorld::look_at(const Frame& frame) {
  const auto is_error_reply = [&] { return frame.payload.size() == 8 && frame.payload[3] == std::byte{0xff}; };
  const bool known = codec_.command_of(frame.id).has_value();
  if (!known && is_error_reply()) return look_at_reply(kvmi1::Reply{frame.id, -1, {}}, frame);
  const auto message = codec_.decode_upward(frame);
  check(message.has_value(), "the tool is told what its dialect has not: " +
                                 (message ? std::string() : kvmi1::describe(codec_, message.error())));
  std::visit(Overloaded{
                 [&](const kvmi1::Reply& reply) { look_at_reply(reply, frame); },
                 [&](const kvmi1::EventMessage& event) { look_at_event(event, frame.seq); },
                 [&](const kvmi1::CommandError& error) {
                   const auto sent = std::find_if(sent_.begin(), sent_.end(), [&](const Sent& s) {
                     return s.id == error.id && s.seq == error.seq.value;
                   });
                   // One that sends anything may have sent the same twice.
                   check(sent != sent_.end() && sent->reply != Sent::Reply::Due && error.error < 0 &&
                             (!polite_ || !sent->told_error),
                         "an error of a command that has none");
                   sent->told_error = true;
                 },
                 [](const kvmi1::UnknownMessage&) { check(false, "the tool is told nothing that it knows"); },
             },
             *message);
}

/// Replies come in the order of the commands: what is passed over has none.
void ToolWorld::look_at_reply(const kvmi1::Reply& reply, const Frame& frame) {
  ++counts_.replies;
  if (reply.error != 0) {
    ++counts_.errors;
    check(frame.payload.size() == 8, "the reply of an error has " + std::to_string(frame.payload.size()) + " bytes");
  }
  while (!sent_.empty() && (sent_.front().id != frame.id || sent_.front().seq != frame.seq.value)) {
    check(sent_.front().reply != Sent::Reply::Due, "the reply with seq " + std::to_string(frame.seq.value) +
                                                       " comes before the one with " +
                                                       std::to_string(sent_.front().seq) + ", or answers nothing");
    ++counts_.unanswered;
    sent_.pop_front();
  }
  check(!sent_.empty() && sent_.front().reply != Sent::Reply::None, "a reply that nobody waits for");
  sent_.pop_front();
}

void ToolWorld::look_at_event(const kvmi1::EventMessage& message, Seq seq) {
  ++counts_.events;
  check(seq.value > last_event_, "numbers of events go back");
  last_event_ = seq.value;
  if (message.event.kind() == EventKind::Unhook) {
    check(wants_unhook_, "UNHOOK for a tool that did not ask for it");
    return;
  }
  check(message.event.vcpu.value < kVcpus, "an event of a vCPU that there is not");
  told_[message.event.vcpu.value].push_back({seq.value, message.event.kind()});
}

}  // namespace kvmid::bridge::test
