// SPDX-License-Identifier: GPL-2.0-or-later
// What the machine wants done is done, and judged.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <utility>

#include "tests/fuzz/guest_run.h"

namespace kvmid::fuzz {

namespace {

/// Reads every byte, so that AddressSanitizer sees one that is gone.
void touch(Bytes bytes) {
  unsigned sum = 0;
  for (const std::byte b : bytes) sum += static_cast<unsigned>(b);
  asm volatile("" : : "r"(sum));
}
void touch(std::string_view text) { touch(std::as_bytes(std::span(text))); }

}  // namespace

void GuestRun::fail(const char* what) {
  std::fprintf(stderr, "broken: %s\n", what);
  std::abort();
}

// ---- what comes out ----

GuestRun::Agent& GuestRun::present(AgentId id, const char* effect) {
  const auto found = agents_.find(id);
  if (found == agents_.end()) fail(effect);
  return found->second;
}

/// What an agent gets must be what it can read.
void GuestRun::sent_to_agent(WireFrame frame) {
  const auto message = dialect_.decode_upward(Frame{frame.id, frame.seq, frame.payload});
  if (!message) fail(("an agent got what cannot be decoded: " + describe(message.error())).c_str());
}

void GuestRun::sent_to_hypervisor(const core::SendEventReply& effect) {
  const WireFrame frame = encoded([&](ByteBuffer& out) { dialect_.encode(effect.reply, effect.seq, out); });
  if (!dialect_.decode_downward(Frame{frame.id, frame.seq, frame.payload}))
    fail("the hypervisor got a reply that cannot be decoded");
  if (unhook_ == effect.seq && effect.reply.event == EventKind::Unhook) {
    unhook_.reset();
    return;
  }
  Vcpu& vcpu = vcpus_[effect.reply.vcpu.value];
  if (vcpu.stopped != effect.seq) fail("a reply to an event that is not open");
  if (!vcpu.actions.has(effect.reply.action)) fail("a reply with an action that the event does not take");
  vcpu.stopped.reset();
}

void GuestRun::perform() {
  // Performing makes new inputs only after all of it, as in the daemon.
  const core::Effects effects = std::exchange(effects_, {});
  for (const core::Effect& effect : effects)
    std::visit(
        Overloaded{
            [&](const core::SendCommand& e) {
              if (!linked_ || closing_) fail("a command to a hypervisor that is gone");
              for (const WireFrame& open : open_)
                if (open.seq == e.seq) fail("two open commands have the same seq");
              WireFrame frame = encoded([&](ByteBuffer& out) { dialect_.encode(e.command, e.seq, out); });
              const auto again = dialect_.decode_downward(Frame{frame.id, frame.seq, frame.payload});
              if (!again || !std::holds_alternative<Command>(*again))
                fail("the hypervisor got a command that cannot be decoded");
              open_.push_back(std::move(frame));
            },
            [&](const core::SendEventReply& e) {
              if (!linked_ || closing_) fail("a reply to a hypervisor that is gone");
              sent_to_hypervisor(e);
            },
            [&](const core::SendEvent& e) {
              Agent& agent = present(e.agent, "an event for an agent that is not attached");
              Event copy = *e.event;
              copy.decide = e.decide;
              copy.deadline_us = e.deadline_us;
              sent_to_agent(encoded([&](ByteBuffer& out) { dialect_.encode(copy, e.seq, out); }));
              if (agent.told.size() == 4) agent.told.erase(agent.told.begin());
              agent.told.push_back({e.seq, copy.vcpu, copy.kind()});
            },
            [&](const core::SendReply& e) {
              Agent& agent = present(e.agent, "a reply for an agent that is not attached");
              sent_to_agent(encoded([&](ByteBuffer& out) { dialect_.encode(e.reply, e.seq, out); }));
              const auto asked = agent.asked.find(e.seq.value);
              if (asked == agent.asked.end()) fail("an agent got an answer to what it did not ask, or a second one");
              if (--asked->second == 0) agent.asked.erase(asked);
            },
            [&](const core::SendNotice& e) {
              present(e.agent, "a notice for an agent that is not attached");
              sent_to_agent(encoded([&](ByteBuffer& out) { dialect_.encode(e.notice, out); }));
            },
            [&](const core::SendGuestOn& e) { present(e.agent, "GUEST_ON for an agent that is not attached"); },
            [&](const core::SendGuestOff& e) {
              present(e.agent, "GUEST_OFF for an agent that is not attached");
              sent_to_agent(
                  encoded([&](ByteBuffer& out) { dialect_.encode(GuestOff{machine_.uuid(), e.reason, e.text}, out); }));
            },
            [&](const core::CloseAgent& e) {
              present(e.agent, "an agent is closed that is not attached").closed = true;
              touch(e.reason);
            },
            [&](const core::CloseHypervisor& e) {
              if (!linked_) fail("a hypervisor is closed that is gone");
              touch(e.text);
              closing_ = true;
            },
            [&](const core::Report& e) {
              touch(e.text);
              touch(std::as_bytes(e.votes));
              if (e.about != nullptr) touch(std::as_bytes(std::span(e.about, 1)));
            },
            [](const auto&) {},
        },
        effect);
  // Who was closed goes at the end of the step.
  if (closing_) lose_hypervisor(OffReason::ProtocolError);
  for (;;) {
    const auto closed = std::find_if(agents_.begin(), agents_.end(), [](const auto& a) { return a.second.closed; });
    if (closed == agents_.end()) return;
    lose_agent(closed->first);
  }
}

void GuestRun::check() {
  const core::GuestInfo info = machine_.info();
  if (info.agents.size() != agents_.size()) fail("the machine knows other agents than there are");
  for (const auto& agent : info.agents) {
    const Agent& known = agents_.at(agent.id);
    touch(agent.name);
    touch(agent.rule);
    if (agent.requests_open > known.requests_max) fail("an agent has more open requests than its quota");
    if (agent.pages > known.pages_max) fail("an agent has more restricted pages than its quota");
  }
  for (const auto& vcpu : info.vcpus)
    for (const AgentId owing : vcpu.waits_for)
      if (!agents_.contains(owing)) fail("a vCPU waits for an agent that is gone");
  const auto& c = info.counters;
  if (c.decided + c.unattended > c.events) fail("more events were answered than came");
}

}  // namespace kvmid::fuzz
