// SPDX-License-Identifier: GPL-2.0-or-later
#include "tests/unit/hypervisor/scripted_guest.h"

namespace kvmid::emulated {

TEST_CASE("exceptions reach the guest's handlers with exact facts", "[emulated][exceptions]") {
  ScriptedGuest guest;

  SECTION("#PF: error code and CR2") {
    REQUIRE(guest.run_action(GuestMode::Pf));
    CHECK(guest.mailbox().exceptions[14] == 1);
    CHECK(guest.mailbox().last_error == 0);  // read of a page that is not present, supervisor
    CHECK(guest.mailbox().last_cr2 == 0x7fff0000dead);
  }
  SECTION("#PF at an address that a test chose") {
    guest.write_field(offsetof(Mailbox, arg_pf_address), 0xffff800000001234);
    REQUIRE(guest.run_action(GuestMode::Pf));
    CHECK(guest.mailbox().last_cr2 == 0xffff800000001234);
  }
  SECTION("#GP: an address that is not canonical") {
    REQUIRE(guest.run_action(GuestMode::Gp));
    CHECK(guest.mailbox().exceptions[13] == 1);
    CHECK(guest.mailbox().last_error == 0);
  }
  SECTION("#UD") {
    REQUIRE(guest.run_action(GuestMode::Ud));
    CHECK(guest.mailbox().exceptions[6] == 1);
    CHECK(guest.read<std::uint16_t>(Gpa{guest.mailbox().last_rip}) == 0x0b0f);
  }
  SECTION("many in a row: Unicorn's own memory of exceptions makes no double fault") {
    REQUIRE(guest.run_action(GuestMode::Gp, 20));
    REQUIRE(guest.run_action(GuestMode::Ud, 20));
    REQUIRE(guest.run_action(GuestMode::Pf, 20));
    CHECK(guest.mailbox().exceptions[8] == 0);
    CHECK(guest.mailbox().exceptions[13] >= 20);
  }
}

TEST_CASE("an exception that the engine itself raises is delivered, again and again", "[emulated][exceptions]") {
  ScriptedGuest guest;
  // The exec page's function becomes: xor %ecx,%ecx; div %ecx; ret. #DE is a contributory exception.
  const std::array<std::uint8_t, 5> code = {0x31, 0xc9, 0xf7, 0xf1, 0xc3};
  guest.write(kExecPage, std::as_bytes(std::span(code)));
  guest.set_mode(GuestMode::Exec);

  REQUIRE(guest.run_until([&] { return guest.mailbox().exceptions[0] >= 5; }));

  CHECK(guest.mailbox().last_rip == kExecPage.value + 2);
  CHECK(guest.mailbox().exceptions[8] == 0);
  // The handler returns to the same instruction; an agent that moves RIP frees the guest.
  REQUIRE(guest.machine().pause(VcpuId{0}));
  Event event = guest.next_event();
  REQUIRE(event.kind() == EventKind::Pause);
  const std::uint8_t ret = 0xc3;
  guest.write(Gpa{kExecPage.value + 2}, std::as_bytes(std::span(&ret, 1)));
  guest.answer(Action::Allow);
  REQUIRE(guest.run_action(GuestMode::Exec, 2));
}

TEST_CASE("an MSR that does not exist is #GP, to be seen by the guest", "[emulated][exceptions]") {
  ScriptedGuest guest;
  guest.write_field(offsetof(Mailbox, arg_msr), 0xc0001234);
  guest.watch(EventKind::Msr);
  guest.hooks().set_msr(VcpuId{0}, 0xc0001234, true);

  REQUIRE(guest.run_action(GuestMode::Msr));

  CHECK(guest.mailbox().exceptions[13] == 1);
  CHECK(guest.mailbox().last_error == 0);
  CHECK(guest.raised == 0);  // what the processor refuses is no event
}

TEST_CASE("an injected exception is delivered when the vCPU goes on", "[emulated][exceptions]") {
  ScriptedGuest guest;
  REQUIRE(guest.machine().pause(VcpuId{0}));
  guest.next_event();

  SECTION("#PF with error code and CR2") {
    REQUIRE(guest.machine().inject(VcpuId{0}, {x86::vector::kPf, true, 6, 0x123456}));
    guest.round();
    CHECK(guest.mailbox().exceptions[14] == 0);
    guest.answer(Action::Allow);
    REQUIRE(guest.run_until([&] { return guest.mailbox().exceptions[14] == 1; }));
    CHECK(guest.mailbox().last_error == 6);
    CHECK(guest.mailbox().last_cr2 == 0x123456);
    CHECK(guest.run_action(GuestMode::Store, 2));  // the guest goes on
  }
  SECTION("a second one is refused") {
    REQUIRE(guest.machine().inject(VcpuId{0}, {x86::vector::kUd, false, 0, 0}));
    const auto refused = guest.machine().inject(VcpuId{0}, {x86::vector::kGp, true, 0, 0});
    REQUIRE_FALSE(refused);
    CHECK(refused.error().code == ErrorCode::Busy);
    CHECK(refused.error().text.find("vector 6") != std::string::npos);
  }
}

TEST_CASE("a fault on the way to a handler is a double fault, on a stack of its own", "[emulated][exceptions]") {
  ScriptedGuest guest;
  const std::uint8_t not_present = 0x0e;
  guest.write(Gpa{KVMID_GUEST_IDT_GPA + 13 * 16 + 5}, std::as_bytes(std::span(&not_present, 1)));

  guest.set_mode(GuestMode::Gp);

  REQUIRE(guest.run_until([&] { return guest.mailbox().panic == 1; }));
  CHECK(guest.mailbox().exceptions[8] == 1);
  CHECK(guest.mailbox().last_error == 0);
  const auto rsp = guest.machine().registers(VcpuId{0})->regs.rsp;
  CHECK((rsp > KVMID_GUEST_IST_STACKS_GPA && rsp < KVMID_GUEST_IST_STACKS_GPA + 0x1000));
}

TEST_CASE("a benign exception whose gate is missing becomes #NP", "[emulated][exceptions]") {
  ScriptedGuest guest;
  const std::uint8_t not_present = 0x0e;
  guest.write(Gpa{KVMID_GUEST_IDT_GPA + 6 * 16 + 5}, std::as_bytes(std::span(&not_present, 1)));

  REQUIRE(guest.run_action(GuestMode::Ud));

  CHECK(guest.mailbox().exceptions[11] == 1);
  CHECK(guest.mailbox().last_error == 6 * 8 + 3);  // IDT entry 6, external
}

TEST_CASE("a triple fault ends the guest, not the process", "[emulated][exceptions]") {
  ScriptedGuest guest;
  guest.set_mode(GuestMode::Triple);

  REQUIRE(guest.run_until([&] { return guest.machine().stopped(); }));

  CHECK(guest.machine().stop_cause() == StopCause::GuestFault);
  CHECK(guest.machine().stop_reason().find("triple fault on vCPU 0") == 0);
}

TEST_CASE("memory that is not there ends the guest", "[emulated][exceptions]") {
  ScriptedGuest guest;
  guest.write_field(offsetof(Mailbox, arg_pf_address), 0x30000000);  // mapped, and behind the end of 16 MiB
  guest.set_mode(GuestMode::Pf);

  REQUIRE(guest.run_until([&] { return guest.machine().stopped(); }));

  CHECK(guest.machine().stop_reason().find("0x30000000") != std::string::npos);
}

}  // namespace kvmid::emulated
