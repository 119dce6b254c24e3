// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// A guest machine between a hypervisor and agents that exist only as records.
///
/// Purpose:  tests say what happens and read what each peer got, as a hypervisor and agents at the ends of sockets
/// would. Shapes:   Guest holds the machine, a clock that tests move, what was sent to whom, and a hypervisor that
/// keeps the
///           state it was told. With `answering` it answers commands at once, else answer_all() or answer_one() does.
/// Lifetime: records are copies; nothing in them views into the machine.

#include <chrono>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "daemon/core/guest_machine.h"

namespace kvmid::core::testing {

using namespace std::chrono_literals;

inline constexpr ActionSet kEveryAction{0xf};
inline constexpr std::uint64_t kGuestRam = std::uint64_t{1} << 32;

constexpr EventSet events(std::initializer_list<EventKind> kinds) {
  EventSet set;
  for (const auto kind : kinds) set.add(kind);
  return set;
}

/// What the hypervisor was told, vCPU by vCPU, and the guest's pages.
struct HypervisorState {
  struct Vcpu {
    std::uint64_t events = 0;
    std::set<std::uint32_t> crs;
    std::set<std::uint32_t> msrs;
    bool singlestep = false;
    friend bool operator==(const Vcpu&, const Vcpu&) = default;
  };
  std::vector<Vcpu> vcpus;
  std::map<std::uint64_t, std::uint8_t> pages;  ///< only those with less than every right
  std::map<std::uint64_t, std::vector<std::byte>> patches;
  friend bool operator==(const HypervisorState&, const HypervisorState&) = default;
};

struct ToHypervisor {
  bool is_event_reply = false;
  Seq seq;
  Command command{};
  std::vector<kvmi_page_access_entry> entries;
  EventReply reply{};
};

struct ToAgent {
  enum class Kind { Event, Reply, Notice, GuestOn, GuestOff, Close };
  Kind kind{};
  AgentId agent;
  Seq seq;
  Event event{};
  bool decide = false;
  std::uint32_t deadline_us = 0;
  CommandReply reply{};  ///< text and views are in the fields below
  Notice notice{};
  OffReason reason{};
  std::string text;
  std::vector<kvmi_page_access_entry> entries;
  std::vector<kvmi_memory_slot> slots;
};

inline Grant full_grant() {
  Grant grant;
  grant.rule = "test";
  grant.commands.bits = ~std::uint64_t{0};
  grant.events = kEveryEvent;
  grant.role = Role::Decider;
  return grant;
}

class Guest {
 public:
  explicit Guest(std::uint16_t vcpu_count = 2, std::uint64_t cookie_seed = 1)
      : machine(hello(), GuestLimits{}, cookie_seed) {
    facts.vcpu_count = vcpu_count;
    facts.max_gpa = kGuestRam;
    facts.physical_address_bits = 36;
    version.commands.bits = ~std::uint64_t{0};
    version.events = kEveryEvent;
    connect();
  }

  static HypervisorHello hello(std::int64_t start_time = 1) {
    HypervisorHello hello;
    hello.uuid.bytes[0] = 1;
    hello.start_time = start_time;
    hello.name = "guest";
    return hello;
  }

  // ---- inputs ----
  template <class F>
  void step(F&& input) {
    effects.clear();
    input(effects);
    record();
    while (answering && !unanswered.empty()) answer_one();
  }
  void connect(std::int64_t start_time = 1) {
    state = {};
    state.vcpus.resize(facts.vcpu_count);
    unanswered.clear();
    step([&](Effects& out) { machine.on_hypervisor_connected(hello(start_time), now, out); });
  }
  void lose_hypervisor() {
    unanswered.clear();
    step([&](Effects& out) { machine.on_hypervisor_lost(OffReason::LinkLost, now, out); });
  }
  AgentId attach(const Grant& grant = full_grant(), std::uint32_t flags = 0) {
    const AgentId id{++agents_made};
    if (!machine.attach(id, "agent", grant, flags)) std::abort();
    return id;
  }
  void lose(AgentId agent) {
    step([&](Effects& out) { machine.on_agent_lost(agent, now, out); });
  }
  Seq command(AgentId agent, const Command& command) {
    const Seq seq{++seqs_made};
    step([&](Effects& out) { machine.on_agent_message(agent, seq, Downward{command}, now, out); });
    return seq;
  }
  Seq subscribe(AgentId agent, EventSet set, Role role = Role::Decider, VcpuId vcpu = kAllVcpus,
                Operation operation = Operation::Enable) {
    return command(agent, ControlEvents{vcpu, operation, role, set});
  }
  Seq set_pages(AgentId agent, const std::vector<kvmi_page_access_entry>& entries) {
    return command(agent, SetPageAccess{AddressSpace::Normal, std::span<const kvmi_page_access_entry>(entries)});
  }
  /// The seq that the hypervisor chose.
  Seq event(std::uint16_t vcpu, const EventData& data = HypercallData{}, ActionSet actions = kEveryAction,
            std::uint64_t cookie = 0) {
    const Seq seq{++events_made};
    Event e;
    e.vcpu = VcpuId{vcpu};
    e.actions = actions;
    e.cookie = cookie;
    e.data = data;
    step([&](Effects& out) { machine.on_hypervisor_message(seq, Upward{e}, now, out); });
    return seq;
  }
  Seq patch(AgentId agent, std::uint64_t gpa, const std::vector<std::byte>& bytes = {std::byte{0xcc}},
            unsigned flags = KVMI_WRITE_PATCH) {
    return command(agent, WritePhysical{Gpa{gpa}, AddressSpace::Normal, static_cast<std::uint16_t>(flags), 0, bytes, {}});
  }
  Seq unpatch(AgentId agent, std::uint64_t gpa, std::size_t size = 1) {
    return patch(agent, gpa, std::vector<std::byte>(size), KVMI_WRITE_UNPATCH);
  }
  void vote(AgentId agent, const EventReply& reply) {
    const ToAgent* told = last_event(agent);
    vote_as(agent, told != nullptr ? told->seq : Seq{0xdead}, reply);
  }
  void vote_as(AgentId agent, Seq seq, const EventReply& reply) {
    step([&](Effects& out) { machine.on_agent_message(agent, seq, Downward{reply}, now, out); });
  }
  /// Answers the event that the agent was told of last.
  void vote(AgentId agent, Action action) { vote(agent, reply_to(agent, action)); }
  EventReply reply_to(AgentId agent, Action action) const {
    EventReply reply;
    if (const ToAgent* told = last_event(agent)) {
      reply.vcpu = told->event.vcpu;
      reply.event = told->event.kind();
    }
    reply.action = action;
    return reply;
  }
  void pass(Duration time) {
    now += time;
    step([&](Effects& out) { machine.on_time(now, out); });
  }

  // ---- the hypervisor ----
  void answer_one() { answer(0); }
  void answer(std::size_t index) {
    const ToHypervisor sent = unanswered.at(index);
    unanswered.erase(unanswered.begin() + static_cast<std::ptrdiff_t>(index));
    const CommandReply reply = execute(sent);
    effects.clear();
    machine.on_hypervisor_message(sent.seq, Upward{reply}, now, effects);
    record();
  }
  void answer_all() {
    while (!unanswered.empty()) answer_one();
  }
  void reply(Seq seq, const CommandReply& reply) {
    step([&](Effects& out) { machine.on_hypervisor_message(seq, Upward{reply}, now, out); });
  }

  // ---- what was sent ----
  [[nodiscard]] const EventReply* verdict(Seq hypervisor_seq) const {
    for (const auto& sent : to_hypervisor)
      if (sent.is_event_reply && sent.seq == hypervisor_seq) return &sent.reply;
    return nullptr;
  }
  template <class C>
  [[nodiscard]] std::size_t sent() const {
    std::size_t count = 0;
    for (const auto& s : to_hypervisor) count += !s.is_event_reply && std::holds_alternative<C>(s.command) ? 1U : 0U;
    return count;
  }
  [[nodiscard]] std::vector<const ToAgent*> got(AgentId agent, ToAgent::Kind kind) const {
    std::vector<const ToAgent*> found;
    for (const auto& sent : to_agents)
      if (sent.agent == agent && sent.kind == kind) found.push_back(&sent);
    return found;
  }
  [[nodiscard]] const ToAgent* last_event(AgentId agent) const {
    const auto all = got(agent, ToAgent::Kind::Event);
    return all.empty() ? nullptr : all.back();
  }
  [[nodiscard]] std::size_t events_told(AgentId agent) const { return got(agent, ToAgent::Kind::Event).size(); }
  [[nodiscard]] const ToAgent* answer_to(AgentId agent, Seq seq) const {
    for (const auto* sent : got(agent, ToAgent::Kind::Reply))
      if (sent->seq == seq) return sent;
    return nullptr;
  }
  /// The error that a command was answered with; nullopt: not answered.
  [[nodiscard]] std::optional<ErrorCode> error_of(AgentId agent, Seq seq) const {
    const auto* answered = answer_to(agent, seq);
    return answered == nullptr ? std::nullopt : std::optional(answered->reply.error);
  }
  [[nodiscard]] const ToAgent* last_notice(AgentId agent, NoticeKind kind) const {
    const ToAgent* found = nullptr;
    for (const auto* sent : got(agent, ToAgent::Kind::Notice))
      if (sent->notice.kind == kind) found = sent;
    return found;
  }
  void forget() {
    to_agents.clear();
    to_hypervisor.clear();
    reports.clear();
  }
  [[nodiscard]] std::uint64_t requests_open(AgentId agent) const {
    for (const auto& info : machine.info().agents)
      if (info.id == agent) return info.requests_open;
    return 0;
  }

  GuestMachine machine;
  TimePoint now{1h};
  Effects effects;
  bool answering = true;
  bool closed = false;  ///< the machine asked to close the hypervisor
  unsigned ready = 0;
  HypervisorState state;
  GetGuestInfoReply facts;
  GetVersionReply version;
  std::deque<ToHypervisor> unanswered;
  std::function<ErrorCode(const ToHypervisor&)> refuse = [](const auto&) { return ErrorCode::None; };
  std::vector<ToHypervisor> to_hypervisor;
  std::vector<ToAgent> to_agents;
  std::vector<Report> reports;
  std::vector<ReadRam> ram_reads;  ///< ranges are gone
  std::vector<std::variant<GrantRam, RevokeRam, RamChanging, RamChanged, RamPatched, RamMapChanged>> ram;

 private:
  template <class F>
  void each(VcpuId vcpu, F&& f) {
    for (std::size_t i = 0; i < state.vcpus.size(); ++i)
      if (vcpu == kAllVcpus || vcpu.value == i) f(state.vcpus[i]);
  }

  CommandReply execute(const ToHypervisor& sent) {
    CommandReply reply;
    reply.id = static_cast<std::uint16_t>(id_of(sent.command));
    reply.error = refuse(sent);
    if (reply.error != ErrorCode::None) {
      reply.text = "the model refuses";
      return reply;
    }
    std::visit(Overloaded{
                   [&](const GetVersion&) { reply.body = version; },
                   [&](const GetGuestInfo&) { reply.body = facts; },
                   [&](const GetRegisters& c) {
                     msrs_.assign(c.msrs.size(), kvmi_x86_msr{});
                     GetRegistersReply body;
                     body.msrs = std::span<const kvmi_x86_msr>(msrs_);
                     reply.body = body;
                   },
                   [&](const ReadPhysical& c) {
                     std::size_t total = 0;
                     for (std::size_t i = 0; i < c.ranges.size(); ++i) total += c.ranges[i].size;
                     data_.assign(total, std::byte{7});
                     reply.body = ReadPhysicalReply{0, data_};
                   },
                   [&](const GetCpuid&) { reply.body = GetCpuidReply{}; },
                   [&](const GetMemoryMap& c) {
                     slots_ = {{0, kGuestRam, static_cast<std::uint16_t>(c.space), 0, 0}};
                     reply.body = GetMemoryMapReply{std::span<const kvmi_memory_slot>(slots_)};
                   },
                   [&](const ControlEvents& c) {
                     each(c.vcpu, [&](auto& vcpu) {
                       if (c.operation == Operation::Set) vcpu.events = c.events.bits;
                       if (c.operation == Operation::Enable) vcpu.events |= c.events.bits;
                       if (c.operation == Operation::Disable) vcpu.events &= ~c.events.bits;
                     });
                     reply.body = ControlEventsReply{};
                   },
                   [&](const ControlCr& c) {
                     each(c.vcpu,
                          [&](auto& vcpu) { c.enable ? (void)vcpu.crs.insert(c.cr) : (void)vcpu.crs.erase(c.cr); });
                   },
                   [&](const ControlMsr& c) {
                     each(c.vcpu,
                          [&](auto& vcpu) { c.enable ? (void)vcpu.msrs.insert(c.msr) : (void)vcpu.msrs.erase(c.msr); });
                   },
                   [&](const ControlSinglestep& c) { each(c.vcpu, [&](auto& vcpu) { vcpu.singlestep = c.enable; }); },
                   [&](const SetPageAccess&) {
                     for (const auto& entry : sent.entries)
                       for (std::uint64_t i = 0; i < entry.pages; ++i) {
                         const std::uint64_t gfn = (entry.gpa >> kPageShift) + i;
                         if (entry.access == kRwx)
                           state.pages.erase(gfn);
                         else
                           state.pages[gfn] = entry.access;
                       }
                   },
                   [&](const WritePhysical& c) {
                     if ((c.flags & KVMI_WRITE_PATCH) != 0) state.patches[c.gpa.value] = {c.data.begin(), c.data.end()};
                     if ((c.flags & KVMI_WRITE_UNPATCH) != 0) state.patches.erase(c.gpa.value);
                     reply.body = WritePhysicalReply{};
                   },
                   [&](const auto&) {},
               },
               sent.command);
    return reply;
  }

  void record() {
    using Kind = ToAgent::Kind;
    for (const Effect& effect : effects)
      std::visit(Overloaded{
                     [&](const SendCommand& e) {
                       ToHypervisor sent{false, e.seq, e.command, {}, {}};
                       if (const auto* pages = std::get_if<SetPageAccess>(&e.command)) {
                         for (std::size_t i = 0; i < pages->entries.size(); ++i)
                           sent.entries.push_back(pages->entries[i]);
                         sent.command = SetPageAccess{pages->space, {}};
                       }
                       if (const auto* read = std::get_if<ReadPhysical>(&e.command)) {
                         auto copy = std::make_shared<std::vector<std::byte>>(read->ranges.bytes().begin(),
                                                                              read->ranges.bytes().end());
                         kept_.push_back(copy);
                         sent.command = ReadPhysical{read->space, WireArray<kvmi_read_range>(Bytes(*copy))};
                       }
                       if (const auto* xsave = std::get_if<SetXsave>(&e.command)) {
                         auto copy = std::make_shared<std::vector<std::byte>>(xsave->area.begin(), xsave->area.end());
                         kept_.push_back(copy);
                         sent.command = SetXsave{xsave->vcpu, *copy};
                       }
                       if (auto* write = std::get_if<WritePhysical>(&sent.command)) {
                         for (Bytes* bytes : {&write->data, &write->expected}) {
                           auto copy = std::make_shared<std::vector<std::byte>>(bytes->begin(), bytes->end());
                           kept_.push_back(copy);
                           *bytes = *copy;
                         }
                       }
                       to_hypervisor.push_back(sent);
                       unanswered.push_back(sent);
                     },
                     [&](const SendEventReply& e) {
                       to_hypervisor.push_back({true, e.seq, {}, {}, e.reply});
                     },
                     [&](const SendEvent& e) {
                       ToAgent& sent = to_agents.emplace_back();
                       sent.kind = Kind::Event;
                       sent.agent = e.agent;
                       sent.seq = e.seq;
                       sent.event = *e.event;
                       sent.decide = e.decide;
                       sent.deadline_us = e.deadline_us;
                     },
                     [&](const SendReply& e) {
                       ToAgent& sent = to_agents.emplace_back();
                       sent.kind = Kind::Reply;
                       sent.agent = e.agent;
                       sent.seq = e.seq;
                       sent.reply = e.reply;
                       sent.text = e.reply.text;
                       sent.reply.text = {};
                       if (const auto* pages = std::get_if<GetPageAccessReply>(&e.reply.body))
                         for (std::size_t i = 0; i < pages->entries.size(); ++i)
                           sent.entries.push_back(pages->entries[i]);
                       if (const auto* map = std::get_if<GetMemoryMapReply>(&e.reply.body))
                         for (std::size_t i = 0; i < map->slots.size(); ++i) sent.slots.push_back(map->slots[i]);
                     },
                     [&](const SendNotice& e) {
                       ToAgent& sent = to_agents.emplace_back();
                       sent.kind = Kind::Notice;
                       sent.agent = e.agent;
                       sent.seq = e.notice.event_seq;
                       sent.notice = e.notice;
                       sent.text = e.notice.text;
                       sent.notice.text = {};
                     },
                     [&](const SendGuestOn& e) {
                       ToAgent& sent = to_agents.emplace_back();
                       sent.kind = Kind::GuestOn;
                       sent.agent = e.agent;
                     },
                     [&](const SendGuestOff& e) {
                       ToAgent& sent = to_agents.emplace_back();
                       sent.kind = Kind::GuestOff;
                       sent.agent = e.agent;
                       sent.reason = e.reason;
                       sent.text = e.text;
                     },
                     [&](const CloseAgent& e) {
                       ToAgent& sent = to_agents.emplace_back();
                       sent.kind = Kind::Close;
                       sent.agent = e.agent;
                       sent.text = e.reason;
                     },
                     [&](const CloseHypervisor&) {
                       closed = true;
                       unanswered.clear();
                     },
                     [&](const GuestReady&) { ++ready; },
                     [&](const Report& e) { reports.push_back(e); },
                     [&](const ReadRam& e) { ram_reads.push_back(e); },
                     [&](const auto& e) { ram.push_back(e); },
                 },
                 effect);
  }

  std::uint32_t agents_made = 0;
  std::uint32_t seqs_made = 0;
  std::uint32_t events_made = 1000;
  std::vector<kvmi_x86_msr> msrs_;
  std::vector<std::byte> data_;
  std::vector<kvmi_memory_slot> slots_;
  std::vector<std::shared_ptr<std::vector<std::byte>>> kept_;
};

inline EventSet only(EventKind kind) { return events({kind}); }
inline kvmi_page_access_entry pages(std::uint64_t gfn, std::uint32_t count, unsigned access) {
  return {gfn << kPageShift, count, static_cast<std::uint8_t>(access), {}};
}
inline constexpr unsigned kR = KVMI_PAGE_ACCESS_R, kW = KVMI_PAGE_ACCESS_W, kX = KVMI_PAGE_ACCESS_X;

}  // namespace kvmid::core::testing
