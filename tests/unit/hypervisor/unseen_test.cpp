// SPDX-License-Identifier: GPL-2.0-or-later
//
// A guest that is watched in every way, and allowed everything, does and sees what it does unwatched.

#include "tests/unit/hypervisor/scripted_guest.h"

namespace kvmid::emulated {

namespace {

/// Answers every event with ALLOW at once; page faults with TRAP_ACCESS.
class Allowing final : public hypervisor::EventSink {
 public:
  explicit Allowing(Machine& machine) : machine_(machine) {}
  void raise(const Event& event) override {
    ++raised[static_cast<std::size_t>(event.kind())];
    EventReply reply;
    reply.vcpu = event.vcpu;
    reply.event = event.kind();
    reply.trap_access = event.kind() == EventKind::PageFault;
    machine_.answer(reply);
  }
  std::array<std::uint64_t, kEventCount> raised{};

 private:
  Machine& machine_;
};

}  // namespace

TEST_CASE("watched in every way and allowed everything, the guest sees nothing of it", "[emulated][unseen]") {
  ScriptedGuest guest;
  Machine& machine = guest.machine();
  Allowing sink(machine);
  machine.set_sink(&sink);
  EventSet events = machine.facts().events;
  guest.hooks().set_events(VcpuId{0}, events);
  for (const unsigned cr : {0u, 3u, 4u}) guest.hooks().set_cr(VcpuId{0}, cr, true);
  guest.hooks().set_msr(VcpuId{0}, x86::msr::kLstar, true);
  const bool steps = GENERATE(false, true);
  guest.hooks().set_singlestep(VcpuId{0}, steps);
  for (const Gpa page : {kProtectedPage, mailbox_gpa(VcpuId{0}), Gpa{KVMID_GUEST_STACKS_GPA},
                         Gpa{KVMID_GUEST_USER_STACKS_GPA}, kExecPage}) {
    guest.restrict_page(page, x86::kRightsNone);
  }

  guest.set_mode(GuestMode::All);
  REQUIRE(guest.run_until([&] { return guest.mailbox().done[KVMID_MODE_ALL_END - 1] >= 2 || machine.stopped(); }));

  CHECK(machine.stop_reason().empty());
  const Mailbox box = guest.mailbox();
  for (std::size_t mode = KVMID_MODE_CR3; mode < KVMID_MODE_ALL_END; ++mode) {
    if (mode == KVMID_MODE_TRIPLE) continue;
    CAPTURE(mode);
    CHECK(box.done[mode] >= 2);
  }
  CHECK(box.panic == 0);
  CHECK(box.exceptions[1] == 5 * box.done[KVMID_MODE_STEP] + box.done[KVMID_MODE_DEBUG]);
  CHECK(box.exceptions[3] == box.done[KVMID_MODE_INT3]);
  CHECK(box.exceptions[6] == box.done[KVMID_MODE_UD]);
  CHECK(box.exceptions[13] == box.done[KVMID_MODE_GP]);
  CHECK(box.exceptions[14] == box.done[KVMID_MODE_PF]);
  CHECK(box.exec_calls == box.done[KVMID_MODE_EXEC]);
  CHECK(box.loaded == box.stored);
  CHECK(box.copied == guest.read<std::uint64_t>(kProtectedPage));
  CHECK(box.user_syscalls == 2 * box.done[KVMID_MODE_USER]);
  CHECK(box.user_pf == box.done[KVMID_MODE_USER]);
  CHECK(box.user_pf_error == 5);
  CHECK(box.user_gp == box.done[KVMID_MODE_USER]);
  for (const auto kind : {EventKind::Cr, EventKind::Msr, EventKind::PageFault, EventKind::Access, EventKind::Trap,
                          EventKind::Breakpoint, EventKind::Hypercall, EventKind::Descriptor, EventKind::Cpuid}) {
    CAPTURE(name_of(kind));
    CHECK(sink.raised[static_cast<std::size_t>(kind)] > 0);
  }
  CHECK((sink.raised[static_cast<std::size_t>(EventKind::Singlestep)] > 0) == steps);
  machine.set_sink(nullptr);
}

}  // namespace kvmid::emulated
