// SPDX-License-Identifier: GPL-2.0-or-later
// Counts allocations: a warm machine makes none for an event and none for a forwarded command.
#include <catch2/catch.hpp>
#include <cstdlib>
#include <new>

#include "daemon/core/guest_machine.h"

namespace {
std::size_t allocations = 0;
void* counted(std::size_t size) {
  ++allocations;
  if (void* p = std::malloc(size == 0 ? 1 : size)) return p;
  throw std::bad_alloc();
}
}  // namespace

void* operator new(std::size_t size) { return counted(size); }
void* operator new[](std::size_t size) { return counted(size); }
void operator delete(void* p) noexcept { std::free(p); }
void operator delete[](void* p) noexcept { std::free(p); }
void operator delete(void* p, std::size_t) noexcept { std::free(p); }
void operator delete[](void* p, std::size_t) noexcept { std::free(p); }

namespace kvmid::core {

namespace {

/// Answers whatever the machine sends to the hypervisor with success.
class Bare {
 public:
  Bare() : machine_(hello(), GuestLimits{}) {
    machine_.on_hypervisor_connected(hello(), now, out);
    answer_commands();
  }
  static HypervisorHello hello() {
    HypervisorHello hello;
    hello.name = "guest";
    return hello;
  }
  void answer_commands() {
    for (bool more = true; more;) {
      more = false;
      Effects sent;
      std::swap(sent, out);
      for (const Effect& effect : sent) {
        const auto* command = std::get_if<SendCommand>(&effect);
        if (command == nullptr) continue;
        more = true;
        CommandReply reply{static_cast<std::uint16_t>(id_of(command->command)), {}, {}, {}};
        if (reply.id == KVMI_MSG_GET_VERSION)
          reply.body = GetVersionReply{KVMI_VERSION, KVMI_MAX_PAYLOAD, {~0ULL}, kEveryEvent};
        if (reply.id == KVMI_MSG_GET_GUEST_INFO) reply.body = GetGuestInfoReply{.vcpu_count = 2, .max_gpa = 1U << 30U};
        machine_.on_hypervisor_message(command->seq, Upward{reply}, now, out);
      }
    }
  }
  void attach(std::uint32_t id, Role role) {
    Grant grant;
    grant.commands.bits = ~0ULL;
    grant.events = kEveryEvent;
    grant.role = Role::Decider;
    grant.strikes_max = 1000000;
    REQUIRE(machine_.attach(AgentId{id}, "agent", grant, KVMI_HELLO_OUTCOMES));
    for (const Command& wish : {Command{ControlEvents{kAllVcpus, Operation::Enable, role, kEveryEvent}},
                                Command{ControlCr{kAllVcpus, true, 3}}}) {
      machine_.on_agent_message(AgentId{id}, Seq{1}, Downward{wish}, now, out);
      answer_commands();
    }
  }
  /// An event, two votes with values and registers, the verdict.
  void event_round(const EventData& data) {
    now += std::chrono::milliseconds(1);
    Event event;
    event.actions.bits = 0xf;
    event.data = data;
    out.clear();
    machine_.on_hypervisor_message(Seq{++seq_}, Upward{event}, now, out);
    Seq told;
    for (const Effect& effect : out)
      if (const auto* sent = std::get_if<SendEvent>(&effect)) told = sent->seq;
    (void)machine_.next_deadline();
    for (const std::uint32_t agent : {1U, 2U}) {
      out.clear();
      machine_.on_agent_message(AgentId{agent}, Seq{5}, Downward{SetRegisters{}}, now, out);
      out.clear();
      machine_.on_agent_message(
          AgentId{agent}, told,
          Downward{EventReply{.vcpu = VcpuId{0}, .event = event.kind(), .action = Action::Skip, .value = {}}}, now,
          out);
    }
    for (const Effect& effect : out) {
      verdicts += std::holds_alternative<SendEventReply>(effect) ? 1U : 0U;
      if (const auto* sent = std::get_if<SendCommand>(&effect)) registers_ = sent->seq;
    }
    out.clear();
    machine_.on_hypervisor_message(registers_, Upward{CommandReply{KVMI_MSG_SET_REGISTERS, {}, {}, {}}}, now, out);
  }
  /// An event that both deciders miss.
  void silent_round() {
    Event event;
    event.actions.bits = 0xf;
    event.data = HypercallData{};
    out.clear();
    machine_.on_hypervisor_message(Seq{++seq_}, Upward{event}, now, out);
    now += std::chrono::milliseconds(100);
    out.clear();
    machine_.on_time(now, out);
    for (const Effect& effect : out) verdicts += std::holds_alternative<SendEventReply>(effect) ? 1U : 0U;
  }
  void command_round(const Command& command, const ReplyBody& body) {
    out.clear();
    machine_.on_agent_message(AgentId{3}, Seq{9}, Downward{command}, now, out);
    const Seq seq = std::get<SendCommand>(out.at(0)).seq;
    out.clear();
    machine_.on_hypervisor_message(seq, Upward{CommandReply{static_cast<std::uint16_t>(id_of(command)), {}, {}, body}},
                                   now, out);
    answers += std::holds_alternative<SendReply>(out.at(0)) ? 1U : 0U;
  }

  TimePoint now{std::chrono::hours(1)};
  Effects out;
  std::size_t verdicts = 0;
  std::size_t answers = 0;

 private:
  GuestMachine machine_;
  std::uint32_t seq_ = 0;
  Seq registers_;
};

}  // namespace

TEST_CASE("a warm machine allocates nothing for an event, two votes, an observer and the verdict", "[allocation]") {
  Bare guest;
  guest.attach(1, Role::Decider);
  guest.attach(2, Role::Decider);
  guest.attach(3, Role::Observer);
  const auto rounds = [&] {
    guest.event_round(HypercallData{});
    guest.event_round(CrData{3, 1, 2});
    guest.event_round(CpuidData{});
  };
  for (int i = 0; i < 10; ++i) rounds();

  const std::size_t before = allocations;
  for (int i = 0; i < 1000; ++i) rounds();
  const std::size_t after = allocations;

  REQUIRE(guest.verdicts == 3030);
  REQUIRE(after - before == 0);
}

TEST_CASE("a warm machine allocates nothing when deadlines pass", "[allocation]") {
  Bare guest;
  guest.attach(1, Role::Decider);
  guest.attach(2, Role::Decider);
  for (int i = 0; i < 10; ++i) guest.silent_round();
  guest.event_round(HypercallData{});
  const std::size_t before = allocations;
  for (int i = 0; i < 100; ++i) guest.silent_round();
  const std::size_t after = allocations;
  REQUIRE(guest.verdicts >= 110);
  REQUIRE(after - before == 0);
}

TEST_CASE("a warm machine allocates nothing to forward a command and its answer", "[allocation]") {
  Bare guest;
  guest.attach(3, Role::Observer);
  const std::array<kvmi_read_range, 1> ranges{{{0, 16, 0}}};
  const std::array<std::byte, 16> data{};
  const auto rounds = [&] {
    guest.command_round(GetCpuid{}, GetCpuidReply{});
    guest.command_round(ReadPhysical{AddressSpace::Normal, std::span<const kvmi_read_range>(ranges)},
                        ReadPhysicalReply{0, data});
  };
  for (int i = 0; i < 10; ++i) rounds();
  const std::size_t before = allocations;
  for (int i = 0; i < 1000; ++i) rounds();
  const std::size_t after = allocations;
  REQUIRE(guest.answers == 2020);
  REQUIRE(after - before == 0);
}

}  // namespace kvmid::core
