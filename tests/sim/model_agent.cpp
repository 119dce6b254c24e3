// SPDX-License-Identifier: GPL-2.0-or-later
#include "tests/sim/model_agent.h"

#include <cstring>

namespace kvmid::sim {

namespace {

constexpr std::array<std::uint8_t, 6> kRights{
    0,          KVMI_PAGE_ACCESS_R, KVMI_PAGE_ACCESS_R | KVMI_PAGE_ACCESS_W, KVMI_PAGE_ACCESS_R | KVMI_PAGE_ACCESS_X,
    kAllRights, kAllRights};
constexpr std::array<std::uint32_t, 3> kCrs{0, 3, 4};

}  // namespace

VcpuId ModelAgent::some_vcpu(bool or_all) {
  if (or_all && rng_.percent(40)) return kAllVcpus;
  return VcpuId{static_cast<std::uint16_t>(rng_.permille(4) ? vcpu_count_ : rng_.below(vcpu_count_))};
}

void ModelAgent::send(const Command& command, Sends& out) {
  dialect_.encode(command, Seq{++last_seq_}, out.emplace_back().frame);
}

void ModelAgent::act(Sends& out) {
  if (rng_.percent(nature_.garbage_percent)) return garbage(out);
  if (rng_.percent(nature_.greedy_percent)) {
    for (auto n = rng_.between(4, 30); n != 0; --n) ask(out);
    return;
  }
  ask(out);
}

void ModelAgent::ask(Sends& out) {
  const auto choice = rng_.below(100);
  if (choice < 48) return wish(out);
  if (choice < 70) return patch(out);
  if (choice < 78) return set_filter(out);
  read_something(out);
}

void ModelAgent::wish(Sends& out) {
  switch (rng_.below(12)) {
    case 0:
    case 1:
    case 2:
    case 3: {
      // A few at a time: an agent that hears everything all the time does nothing but vote.
      const std::uint64_t all = (std::uint64_t{1} << kEventCount) - 1;
      std::uint64_t events = rng_.next() & rng_.next() & all;
      if (rng_.percent(20)) events = bit(EventKind::Breakpoint) | bit(EventKind::PageFault) | bit(EventKind::Cr);
      const auto operation = static_cast<Operation>(rng_.percent(25)   ? KVMI_OP_SET
                                                    : rng_.percent(60) ? KVMI_OP_ENABLE
                                                                       : KVMI_OP_DISABLE);
      return send(ControlEvents{some_vcpu(true), operation, rng_.percent(70) ? Role::Decider : Role::Observer,
                                EventSet{events}},
                  out);
    }
    case 4:
    case 5:
      return send(ControlCr{some_vcpu(true), rng_.percent(60), rng_.of(kCrs)}, out);
    case 6:
    case 7:
      return send(ControlMsr{some_vcpu(true), rng_.percent(60), rng_.of(kMsrs)}, out);
    case 8:
      return send(ControlSinglestep{some_vcpu(false), rng_.percent(35)}, out);
    case 9:
      return send(PauseVcpu{some_vcpu(true)}, out);
    default:
      return set_pages(out);
  }
}

void ModelAgent::set_pages(Sends& out) {
  std::vector<kvmi_page_access_entry> entries;
  for (auto n = rng_.between(1, 3); n != 0; --n) {
    const auto first = rng_.below(kPages);
    const auto pages = static_cast<std::uint32_t>(rng_.permille(10) ? 100 : rng_.between(1, kPages - first));
    entries.push_back({first << kPageShift, pages, rng_.of(kRights), {}});
  }
  send(SetPageAccess{AddressSpace::Normal, std::span<const kvmi_page_access_entry>(entries)}, out);
}

AddressSpace ModelAgent::some_space() { return rng_.percent(10) ? AddressSpace::Smm : AddressSpace::Normal; }

void ModelAgent::remember(std::uint64_t cookie) { cookies_[cookie_at_++ % cookies_.size()] = cookie; }

/// One that it was given, most often; or one of another address space, an old one, or one that nobody was given.
void ModelAgent::add_cookie(WritePhysical& write) {
  write.flags = static_cast<std::uint16_t>(write.flags | KVMI_WRITE_COOKIE);
  write.cookie = rng_.of(cookies_);
  if (rng_.percent(10)) write.cookie += rng_.below(3) - 1;
  if (rng_.percent(2)) write.cookie = rng_.next();
}

/// Few places and few contents: they are shared, and they collide.
void ModelAgent::patch(Sends& out) {
  std::array<std::byte, 4> data{};
  std::array<std::byte, 4> expected{};
  const std::uint64_t gpa = rng_.of(kCode) + (rng_.percent(5) ? 1 : 0);
  std::size_t size = rng_.percent(70) ? 1 : 2;
  if (rng_.permille(10)) size = 0x1000 - (gpa & 0xfff) + 1 <= data.size() ? 0x1000 - (gpa & 0xfff) + 1 : 3;
  data.fill(std::byte{static_cast<std::uint8_t>(0xe0 + rng_.below(2))});
  if (rng_.percent(97)) data[0] = std::byte{kInt3};
  expected[0] = std::byte{static_cast<std::uint8_t>(gpa == kOwnInt3 ? kInt3 : 0x50)};
  expected[1] = expected[2] = expected[3] = std::byte{0x40};
  WritePhysical write;
  write.gpa = Gpa{gpa};
  write.data = Bytes(data).first(size);
  write.flags = rng_.percent(60) ? KVMI_WRITE_PATCH : KVMI_WRITE_UNPATCH;
  if (write.flags == KVMI_WRITE_PATCH && rng_.percent(15)) {
    write.flags |= KVMI_WRITE_EXPECT;
    write.expected = Bytes(expected).first(size);
  }
  if (rng_.percent(10)) add_cookie(write);
  send(write, out);
}

void ModelAgent::set_filter(Sends& out) {
  static constexpr std::array<EventKind, 8> kKinds{EventKind::Cr,         EventKind::Msr,       EventKind::Breakpoint,
                                                   EventKind::PageFault,  EventKind::Hypercall, EventKind::Cpuid,
                                                   EventKind::Singlestep, EventKind::CreateVcpu};
  const EventKind kind = rng_.of(kKinds);
  std::vector<kvmi_filter_term> terms;
  for (auto n = rng_.below(4); n != 0; --n) {
    kvmi_filter_term term{};
    term.new_group = !terms.empty() && rng_.percent(40) ? 1 : 0;
    term.field = KVMI_FILTER_VCPU;
    term.value = rng_.below(vcpu_count_);
    term.compare = rng_.percent(50) ? KVMI_COMPARE_EQ : KVMI_COMPARE_NE;
    if (rng_.percent(40)) {
      term.field = KVMI_FILTER_REGISTER;  // rax
      term.compare = KVMI_COMPARE_MASK_EQ;
      term.operand = 1 + rng_.below(7);
      term.value = rng_.below(8) & term.operand;
    } else if (kind == EventKind::Msr) {
      term.field = KVMI_FILTER_NUMBER;
      term.value = rng_.of(kMsrs);
    } else if (kind == EventKind::Cr) {
      term.field = KVMI_FILTER_NUMBER;
      term.value = rng_.of(kCrs);
      term.compare = rng_.percent(50) ? KVMI_COMPARE_LT : KVMI_COMPARE_GT;
    } else if (kind == EventKind::PageFault || kind == EventKind::Breakpoint) {
      term.field = KVMI_FILTER_GPA;
      term.compare = KVMI_COMPARE_RANGE;
      term.value = rng_.below(kMemoryBytes);
      term.operand = kMemoryBytes;
    }
    terms.push_back(term);
  }
  // CRASH would end the run of the guest.
  const auto action = static_cast<Action>(rng_.below(3));
  send(SetFilter{some_vcpu(true), kind, action, std::span<const kvmi_filter_term>(terms)}, out);
}

void ModelAgent::read_something(Sends& out) {
  std::array<std::uint32_t, 2> msrs{kMsrs[0], kMsrs[1]};
  std::array<std::byte, 4> data;
  std::array<std::byte, 4> expected;
  data.fill(std::byte{static_cast<std::uint8_t>(0x40 + rng_.below(3))});
  expected.fill(std::byte{static_cast<std::uint8_t>(0x40 + rng_.below(3))});
  switch (rng_.below(14)) {
    case 0:
      return send(GetCpuid{some_vcpu(false), 1, 0}, out);
    case 1:
      return send(GetRegisters{some_vcpu(false), std::span<const std::uint32_t>(msrs)}, out);
    case 2:
      return send(GetPageAccess{Gpa{rng_.below(kPages) << kPageShift}, 2, AddressSpace::Normal}, out);
    case 3:
      return send(SetRegisters{some_vcpu(false), {}}, out);  // of a vCPU that seldom waits for it
    case 4:
      return send(GetMemoryMap{rng_.percent(80) ? AddressSpace::Normal : AddressSpace::Smm}, out);
    case 5:
      return send(GetVersion{}, out);
    case 6:
    case 12:
    case 13: {
      WritePhysical write;
      write.gpa = Gpa{rng_.of(kCode) + 4};  // beside the code: what is executed stays what it is
      write.data = Bytes(data).first(1 + rng_.below(4));
      write.space = some_space();
      if (rng_.percent(60)) add_cookie(write);
      if (rng_.percent(20)) {
        write.flags = static_cast<std::uint16_t>(write.flags | KVMI_WRITE_EXPECT);
        write.expected = Bytes(expected).first(write.data.size());
      }
      return send(write, out);
    }
    case 7:
      return send(GetXsave{some_vcpu(false)}, out);
    case 8:
      return rng_.percent(50) ? send(GetGuestInfo{}, out) : send(GetGuests{}, out);
    default: {
      std::vector<kvmi_read_range> ranges;
      for (auto n = rng_.between(1, 3); n != 0; --n) ranges.push_back({rng_.of(kCode) - 8, 16, 0});
      if (rng_.permille(10)) ranges.back().gpa = kMemoryBytes;
      return send(ReadPhysical{some_space(), std::span<const kvmi_read_range>(ranges)}, out);
    }
  }
}

/// Well framed, or the stream would be lost: that is the shell's business.
void ModelAgent::garbage(Sends& out) {
  const auto patch_header = [](ByteBuffer& frame, auto change) {
    kvmi_msg_hdr header;
    std::memcpy(&header, frame.data(), sizeof header);
    change(header);
    std::memcpy(frame.data(), &header, sizeof header);
  };
  switch (rng_.below(5)) {
    case 0: {
      send(GetVersion{}, out);
      return patch_header(out.back().frame, [&](kvmi_msg_hdr& header) {
        header.id = static_cast<std::uint16_t>(rng_.percent(50) ? 900 + rng_.below(50) : 5);
      });
    }
    case 1: {  // cut short
      ask(out);
      ByteBuffer& frame = out.back().frame;
      if (frame.size() <= sizeof(kvmi_msg_hdr)) return;
      frame.resize(frame.size() - 1);
      return patch_header(frame, [&](kvmi_msg_hdr& header) { --header.size; });
    }
    case 2: {  // one byte changed; the command may make sense by accident
      out.reserve(out.size() + 1);
      wish(out);
      ByteBuffer& frame = out.back().frame;
      kvmi_msg_hdr header;
      std::memcpy(&header, frame.data(), sizeof header);
      if (header.id == KVMI_MSG_CONTROL_MSR || frame.size() <= sizeof header) return;
      frame[rng_.between(sizeof header, frame.size() - 1)] = std::byte{static_cast<std::uint8_t>(rng_.next())};
      return;
    }
    default: {  // replies to events that never were, or were long ago
      EventReply reply;
      reply.vcpu = some_vcpu(false);
      reply.event = static_cast<EventKind>(rng_.between(1, kEventCount - 1));
      const std::uint32_t seq = static_cast<std::uint32_t>(rng_.percent(50) ? rng_.below(2000) : rng_.next());
      dialect_.encode(reply, Seq{seq}, out.emplace_back().frame);
    }
  }
}

void ModelAgent::deliver(const Frame& frame, Sends& out) {
  const auto message = dialect_.decode_upward(frame);
  if (!message) throw Violation("I7 commands are answered once", "an agent got a message that cannot be decoded");
  if (const auto* reply = std::get_if<CommandReply>(&*message)) {
    if (const auto* read = std::get_if<ReadPhysicalReply>(&reply->body)) remember(read->cookie);
    if (const auto* write = std::get_if<WritePhysicalReply>(&reply->body)) remember(write->cookie);
  }
  const auto* event = std::get_if<Event>(&*message);
  if (event == nullptr) return;
  if (event->decide) return vote(*event, frame.seq, out);
  if (rng_.percent(2)) {  // an observer that thinks it decides
    EventReply reply;
    reply.vcpu = event->vcpu;
    reply.event = event->kind();
    dialect_.encode(reply, frame.seq, out.emplace_back().frame);
  }
}

void ModelAgent::vote(const Event& event, Seq seq, Sends& out) {
  if (rng_.percent(nature_.silent_percent)) return;
  EventReply reply;
  reply.vcpu = event.vcpu;
  reply.event = event.kind();
  const auto choice = rng_.below(1000);
  reply.action = choice < 650   ? Action::Allow
                 : choice < 820 ? Action::Skip
                 : choice < 998 ? Action::Retry
                                : Action::Crash;
  const bool wrong = rng_.percent(nature_.wrong_percent);
  if (!event.actions.has(reply.action) && !wrong) reply.action = Action::Allow;
  const EventKind kind = event.kind();
  const bool has_value = kind == EventKind::Cr || kind == EventKind::Msr || kind == EventKind::Xsetbv;
  if (has_value && rng_.percent(20)) reply.value = NewValue{rng_.next()};
  if (rng_.percent(6)) {
    reply.has_cookie = true;
    reply.cookie = rng_.percent(70) ? event.cookie : rng_.of(cookies_);
  }
  if (kind == EventKind::PageFault && reply.action == Action::Allow) reply.trap_access = rng_.percent(15);
  if (kind == EventKind::Breakpoint && reply.action == Action::Retry) reply.step_over = rng_.percent(60);
  if (wrong && rng_.percent(40)) reply.vcpu = some_vcpu(false);
  if (wrong && rng_.percent(40)) reply.event = EventKind::Trap;
  if (wrong && rng_.percent(20)) seq.value += static_cast<std::uint32_t>(rng_.below(3));
  if (reply.event != kind) reply.value = std::monostate{}, reply.trap_access = reply.step_over = false;

  Duration thinks = microseconds(rng_.below(3000));
  if (rng_.percent(nature_.late_percent)) thinks = microseconds(event.deadline_us + rng_.below(30'000));
  if (kind == EventKind::Pause) thinks = microseconds(rng_.below(20'000));
  if (rng_.percent(10)) {
    kvmi_x86_regs regs = event.regs;
    regs.rax = rng_.below(16);
    send(SetRegisters{event.vcpu, regs}, out);
    out.back().delay = thinks;
    if (rng_.percent(30)) {
      const std::array<std::byte, 24> area{};
      send(SetXsave{event.vcpu, area}, out);
      out.back().delay = thinks;
    }
  }
  Sent& sent = out.emplace_back();
  sent.delay = thinks;
  dialect_.encode(reply, seq, sent.frame);
  if (rng_.percent(nature_.wrong_percent)) {  // says it twice
    Sent twice = sent;
    out.push_back(std::move(twice));
  }
}

}  // namespace kvmid::sim
