// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// A machine with the test guest in it, a clock of its own, and a sink that keeps events for the test to answer.

#include <catch2/catch.hpp>

#include <chrono>
#include <cstddef>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "hypervisor/emulated/image.h"
#include "hypervisor/emulated/machine.h"
#include "hypervisor/emulated/mailbox.h"

namespace kvmid::emulated {

class ScriptedGuest : public hypervisor::EventSink {
 public:
  explicit ScriptedGuest(std::uint16_t vcpu_count = 1) {
    MachineConfig config;
    config.vcpu_count = vcpu_count;
    config.image = embedded_image();
    auto created = Machine::create(config);
    REQUIRE(created);
    machine_ = std::move(*created);
    machine_->set_sink(this);
    REQUIRE(run_until([&] {
      for (std::uint16_t i = 0; i < vcpu_count; ++i) {
        if (mailbox(VcpuId{i}).magic != kMailboxMagic) return false;
      }
      return true;
    }));
    for (std::uint16_t i = 0; i < vcpu_count; ++i) set_mode(GuestMode::Idle, VcpuId{i});
    for (int i = 0; i < 3; ++i) round();
  }

  Machine& machine() { return *machine_; }
  hypervisor::Hooks& hooks() { return machine_->hooks(); }

  void raise(const Event& event) override {
    ++raised;
    open = event;
  }

  /// One turn of every vCPU; every HLT before it is over.
  void round() {
    now_ += std::chrono::milliseconds(1);
    machine_->run_round(now_);
  }
  /// Takes turns until `done()`; false if that does not come.
  template <class Done>
  bool run_until(Done done) {
    for (int i = 0; i < 2000; ++i) {
      if (done()) return true;
      round();
    }
    return done();
  }
  /// Runs until an event is open.
  const Event& next_event() {
    REQUIRE(run_until([&] { return open.has_value(); }));
    return *open;
  }
  void answer(Action action, std::optional<std::uint64_t> value = std::nullopt) {
    REQUIRE(open);
    REQUIRE(open->actions.has(action));
    EventReply reply;
    reply.vcpu = open->vcpu;
    reply.event = open->kind();
    reply.action = action;
    if (value) reply.value = NewValue{*value};
    open.reset();
    machine_->answer(reply);
  }
  /// ALLOW of a page fault with TRAP_ACCESS.
  void allow_with_access_events() {
    REQUIRE(open);
    EventReply reply;
    reply.vcpu = open->vcpu;
    reply.event = EventKind::PageFault;
    reply.trap_access = true;
    open.reset();
    machine_->answer(reply);
  }
  /// ALLOW of an ACCESS event with other bytes.
  template <class T>
  void answer_data(const T& value) {
    static_assert(sizeof value <= KVMI_ACCESS_DATA_MAX);
    REQUIRE(open);
    NewData data;
    std::memcpy(data.data.data(), &value, sizeof value);
    EventReply reply;
    reply.vcpu = open->vcpu;
    reply.event = EventKind::Access;
    reply.value = data;
    open.reset();
    machine_->answer(reply);
  }
  /// Puts machine code on the exec page and has it called, again and again (GuestMode::Exec).
  void run_code(std::initializer_list<std::uint8_t> code) {
    const std::vector<std::uint8_t> bytes(code);
    write(kExecPage, std::as_bytes(std::span(bytes)));
    set_mode(GuestMode::Exec);
  }
  /// Lets an action that is under way come to its end; false if an event opens before.
  bool finish_action(GuestMode mode) {
    const auto index = static_cast<std::size_t>(mode);
    const std::uint64_t done = mailbox().done[index];
    set_mode(GuestMode::Idle);
    return run_until([&] { return mailbox().done[index] > done || open; }) && !open;
  }
  /// Runs until the action has been done `times` more often.
  bool run_action(GuestMode mode, std::uint64_t times = 1, VcpuId vcpu = VcpuId{0}) {
    const auto index = static_cast<std::size_t>(mode);
    const std::uint64_t before = mailbox(vcpu).done[index];
    set_mode(mode, vcpu);
    return run_until([&] { return mailbox(vcpu).done[index] >= before + times; });
  }

  [[nodiscard]] Mailbox mailbox(VcpuId vcpu = VcpuId{0}) {
    Mailbox box{};
    REQUIRE(machine_->ram().read(mailbox_gpa(vcpu), &box, sizeof box));
    return box;
  }
  void write_field(std::size_t offset, std::uint64_t value, VcpuId vcpu = VcpuId{0}) {
    write(mailbox_field(vcpu, offset), std::as_bytes(std::span(&value, 1)));
  }
  void set_mode(GuestMode mode, VcpuId vcpu = VcpuId{0}) {
    write_field(offsetof(Mailbox, mode), static_cast<std::uint64_t>(mode), vcpu);
  }
  void write(Gpa gpa, Bytes bytes) { REQUIRE(machine_->write_physical(AddressSpace::Normal, gpa, bytes)); }
  template <class T>
  T read(Gpa gpa) {
    T value{};
    REQUIRE(machine_->ram().read(gpa, &value, sizeof value));
    return value;
  }
  void watch(EventKind kind, VcpuId vcpu = VcpuId{0}) {
    EventSet events = hooks().events(vcpu);
    events.add(kind);
    hooks().set_events(vcpu, events);
  }
  void restrict_page(Gpa gpa, x86::PageRights rights) { machine_->set_page_access(gfn_of(gpa), 1, rights); }

  std::optional<Event> open;  ///< the last event that was not answered
  unsigned raised = 0;

 private:
  std::unique_ptr<Machine> machine_;
  Clock::time_point now_{};
};

}  // namespace kvmid::emulated
