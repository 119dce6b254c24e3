// SPDX-License-Identifier: GPL-2.0-or-later
// Time and messages: what the shell and the kernel do for a real kvmid.
#include "tests/sim/world.h"

#include <cstring>

#include "protocol/result.h"

namespace kvmid::sim {

namespace {

Frame frame_of(const ByteBuffer& bytes) {
  kvmi_msg_hdr header;
  std::memcpy(&header, bytes.data(), sizeof header);
  return Frame{header.id, Seq{header.seq}, Bytes(bytes).subspan(sizeof header)};
}

}  // namespace

World::World(std::uint64_t seed) : rng_(seed) {
  chaos_ = static_cast<unsigned>(rng_.between(1, 4));
  agents_wanted_ = static_cast<unsigned>(rng_.between(1, kPlaces));
  command_timeout_ = std::chrono::milliseconds(rng_.percent(50) ? 250 : 2000);
  const auto count = static_cast<unsigned>(rng_.between(1, 4));
  for (unsigned i = 0; i < count; ++i) {
    guests_.push_back(std::make_unique<Guest>(rng_, counts_));
    guests_[i]->hypervisor.start_guest(static_cast<unsigned>(rng_.between(1, kVcpus)));
    new_machine(*guests_[i]);
    for (unsigned v = 0; v < kVcpus; ++v) schedule(What::VcpuRuns, microseconds(rng_.below(1000)), i, v, 0);
    schedule(What::Life, microseconds(rng_.below(1000)), i, 0, 0);
    connect(i);
  }
}

void World::run(std::uint64_t steps, const std::function<bool()>& enough) {
  while (steps_ < steps && !(steps_ % 1024 == 0 && enough())) {
    const Item item = items_.top();
    items_.pop();
    now_ = item.at;
    happen(item);
  }
  leave();
  for (const auto& guest : guests_) {
    counts_.add(Seen::FiltersAnswered, guest->machine->counters().filtered);
  }
  counts_.add(Seen::Steps, steps_);
}

// ---- messages ----

void World::schedule(What what, Duration after, unsigned guest, unsigned who, std::uint32_t generation,
                     std::size_t stash) {
  items_.push(Item{now_ + after, ++order_, what, guest, who, generation, stash});
}

/// Into a connection: in order within it, whatever the delay.
void World::put(Pipe& pipe, ByteBuffer frame, What what, unsigned guest, unsigned who, std::uint32_t generation) {
  TimePoint at = now_ + microseconds(5 + rng_.below(rng_.percent(3) ? 5000 : 120));
  if (at < pipe.last) at = pipe.last;
  pipe.last = at;
  pipe.frames.push_back(std::move(frame));
  schedule(what, at - now_, guest, who, generation);
}

/// What a peer says after it has thought.
void World::post(Sends& sends, What what, unsigned guest, unsigned who, std::uint32_t generation) {
  for (Sent& sent : sends) {
    if (stash_free_.empty()) {
      stash_free_.push_back(stash_.size());
      stash_.emplace_back();
    }
    const std::size_t at = stash_free_.back();
    stash_free_.pop_back();
    stash_[at] = std::move(sent.frame);
    schedule(what, sent.delay, guest, who, generation, at);
  }
  sends.clear();
}

ByteBuffer World::take(Pipe& pipe) {
  ByteBuffer frame = std::move(pipe.frames.front());
  pipe.frames.pop_front();
  return frame;
}

void World::happen(const Item& item) {
  guest_ = item.guest;
  Guest& guest = *guests_[item.guest];
  Place& place = guest.places[item.who < kPlaces ? item.who : 0];
  const bool link_holds = guest.connected && item.generation == guest.link;
  const bool place_holds = place.used && item.generation == place.generation;
  switch (item.what) {
    case What::ToHypervisor:
      if (!link_holds) return;
      guest.hypervisor.deliver(frame_of(take(guest.to_hypervisor)), now_, sends_);
      post(sends_, What::HypervisorSays, item.guest, 0, guest.link);
      return;
    case What::FromHypervisor:
      if (link_holds) from_hypervisor(item.guest);
      return;
    case What::ToAgent:
      if (!place_holds) return;
      place.agent->deliver(frame_of(take(place.down)), sends_);
      return post(sends_, What::AgentSays, item.guest, item.who, place.generation);
    case What::FromAgent:
      if (place_holds) from_agent(item.guest, item.who);
      return;
    case What::HypervisorSays:
    case What::AgentSays: {
      ByteBuffer frame = std::move(stash_[item.stash]);
      stash_free_.push_back(item.stash);
      if (item.what == What::HypervisorSays && link_holds)
        put(guest.from_hypervisor, std::move(frame), What::FromHypervisor, item.guest, 0, guest.link);
      if (item.what == What::AgentSays && place_holds)
        put(place.up, std::move(frame), What::FromAgent, item.guest, item.who, place.generation);
      return;
    }
    case What::AgentActs:
      if (!place_holds || leaving_) return;
      place.agent->act(sends_);
      post(sends_, What::AgentSays, item.guest, item.who, place.generation);
      return schedule(What::AgentActs,
                      microseconds(rng_.below(2 * static_cast<std::uint64_t>(place.agent->nature().pace.count()))),
                      item.guest, item.who, place.generation);
    case What::AgentGone:
      if (place_holds) lose(item.guest, item.who);
      return;
    case What::VcpuRuns:
      schedule(What::VcpuRuns, microseconds(50 + rng_.below(1500)), item.guest, item.who, 0);
      guest.hypervisor.run(item.who, now_, sends_);
      guest.watch->vcpu_ran(item.who);
      return post(sends_, What::HypervisorSays, item.guest, 0, guest.link);
    case What::Timer:
      if (item.generation != guest.timer) return;
      guest.armed = TimePoint::max();
      if (const auto next = guest.machine->next_deadline(); !next || *next > now_) return arm(item.guest);
      if (trace_) say(item.guest, "time");
      return step(item.guest, [&] { guest.machine->on_time(now_, effects_); });
    case What::Life:
      if (leaving_) return;
      schedule(What::Life, microseconds(500 + rng_.below(4000)), item.guest, 0, 0);
      return live(item.guest);
    case What::Connect:
      if (!guest.connected && !guest.stopping) connect(item.guest);
      return;
  }
}

// ---- the core ----

void World::arm(unsigned index) {
  Guest& guest = *guests_[index];
  const auto next = guest.machine->next_deadline();
  if (!next || *next >= guest.armed) return;
  guest.armed = *next;
  const Duration late = microseconds(rng_.below(200));
  const Duration wait = *next > now_ ? *next - now_ : Duration{};
  schedule(What::Timer, wait + late, index, 0, ++guest.timer);
}

/// What the shell does with effects: bytes into connections.
void World::perform(unsigned index) {
  Guest& guest = *guests_[index];
  const auto to_agent = [&](AgentId id, auto&& encode) {
    for (unsigned i = 0; i < kPlaces; ++i) {
      Place& place = guest.places[i];
      if (!place.used || place.id != id) continue;
      ByteBuffer frame;
      encode(frame);
      put(place.down, std::move(frame), What::ToAgent, index, i, place.generation);
    }
  };
  const auto to_hypervisor = [&](const auto& message, Seq seq) {
    ByteBuffer frame;
    dialect_.encode(message, seq, frame);
    put(guest.to_hypervisor, std::move(frame), What::ToHypervisor, index, 0, guest.link);
  };
  for (const core::Effect& effect : effects_)
    std::visit(
        Overloaded{
            [&](const core::SendCommand& e) { to_hypervisor(e.command, e.seq); },
            [&](const core::SendEventReply& e) { to_hypervisor(e.reply, e.seq); },
            [&](const core::SendEvent& e) {
              Event event = *e.event;
              event.decide = e.decide;
              event.deadline_us = e.deadline_us;
              to_agent(e.agent, [&](ByteBuffer& frame) { dialect_.encode(event, e.seq, frame); });
            },
            [&](const core::SendReply& e) {
              to_agent(e.agent, [&](ByteBuffer& frame) { dialect_.encode(e.reply, e.seq, frame); });
            },
            [&](const core::SendNotice& e) {
              to_agent(e.agent, [&](ByteBuffer& frame) { dialect_.encode(e.notice, frame); });
            },
            [&](const core::SendGuestOn& e) {
              to_agent(e.agent, [&](ByteBuffer& frame) { dialect_.encode(GuestOn{}, frame); });
            },
            [&](const core::SendGuestOff& e) {
              to_agent(e.agent, [&](ByteBuffer& frame) { dialect_.encode(GuestOff{Uuid{}, e.reason, e.text}, frame); });
            },
            [&](const core::CloseAgent& e) {
              for (unsigned i = 0; i < kPlaces; ++i)
                if (guest.places[i].used && guest.places[i].id == e.agent)
                  schedule(What::AgentGone, microseconds(rng_.below(800)), index, i, guest.places[i].generation);
            },
            [&](const core::CloseHypervisor&) {
              close_link(guest);
              schedule(What::Connect, microseconds(rng_.below(5000)), index, 0, 0);
            },
            [&](const core::GuestReady&) { guest.ready = true; },
            [](const auto&) {},  // reports, and shared RAM: these hypervisors share none
        },
        effect);
}

void World::close_link(Guest& guest) {
  ++guest.link;
  guest.connected = false;
  guest.garbage_coming = false;
  guest.unhook_asked.reset();
  guest.to_hypervisor = Pipe{};
  guest.from_hypervisor = Pipe{};
  guest.hypervisor.disconnect();
}

void World::from_hypervisor(unsigned index) {
  Guest& guest = *guests_[index];
  const ByteBuffer bytes = take(guest.from_hypervisor);
  const Frame frame = frame_of(bytes);
  const auto message = dialect_.decode_upward(frame);
  if (!message) {
    counts_.add(Seen::HypervisorGarbage);
    if (trace_) say(index, "hypervisor: malformed " + describe(message.error()));
    guest.watch->garbage_in();
    return step(index, [&] { guest.machine->on_hypervisor_malformed(message.error(), now_, effects_); });
  }
  const auto* event = std::get_if<Event>(&*message);
  const auto* reply = std::get_if<CommandReply>(&*message);
  const auto* map = std::get_if<MemoryMapChanged>(&*message);
  const unsigned vcpus = guest.hypervisor.vcpu_count();
  const bool garbage = (event == nullptr && reply == nullptr && map == nullptr) ||
                       (event != nullptr && event->vcpu != kAllVcpus && event->vcpu.value >= vcpus) ||
                       (reply != nullptr && (frame.seq.value & 0x80000000U) != 0);
  if (garbage) {
    counts_.add(Seen::HypervisorGarbage);
    guest.watch->garbage_in();
  }
  if (event != nullptr) {
    if (trace_) say(index, "hypervisor: event " + std::to_string(frame.seq.value) + " " + text_of(*event));
    guest.watch->event_in(frame.seq, *event, now_);
  } else if (reply != nullptr) {
    if (trace_)
      say(index, "hypervisor: reply " + std::to_string(frame.seq.value) + " " +
                     std::string(name_of(static_cast<CommandId>(reply->id))) + " " +
                     std::string(name_of(reply->error)));
    guest.watch->reply_in(frame.seq, *reply);
  } else if (map != nullptr) {
    if (trace_) say(index, "hypervisor: its memory map is another one");
    guest.watch->map_in(static_cast<AddressSpace>(map->slot.address_space));
  } else if (trace_) {
    say(index, "hypervisor: a message that hypervisors do not send");
  }
  step(index, [&] { guest.machine->on_hypervisor_message(frame.seq, *message, now_, effects_); });
}

void World::from_agent(unsigned index, unsigned which) {
  Guest& guest = *guests_[index];
  Place& place = guest.places[which];
  const ByteBuffer bytes = take(place.up);
  const Frame frame = frame_of(bytes);
  const auto message = dialect_.decode_downward(frame);
  const std::string who = trace_ ? "agent " + std::to_string(place.id.value) + ": " : std::string();
  const std::string seq = trace_ ? std::to_string(frame.seq.value) + " " : std::string();
  if (!message) {
    const std::string text = describe(message.error());
    if (trace_) say(index, who + "malformed " + seq + text);
    guest.watch->malformed_in(place.id, frame.seq, message.error().id);
    return step(index,
                [&] { guest.machine->on_agent_malformed(place.id, frame.seq, message.error(), text, now_, effects_); });
  }
  if (trace_)
    std::visit(Overloaded{[&](const Command& c) { say(index, who + "command " + seq + text_of(c)); },
                          [&](const EventReply& r) { say(index, who + "reply to event " + seq + text_of(r)); },
                          [&](const UnknownMessage& u) { say(index, who + "unknown id " + std::to_string(u.id)); }},
               *message);
  guest.watch->message_in(place.id, frame.seq, *message);
  step(index, [&] { guest.machine->on_agent_message(place.id, frame.seq, *message, now_, effects_); });
}

}  // namespace kvmid::sim
