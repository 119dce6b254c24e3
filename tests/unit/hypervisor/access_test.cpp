// SPDX-License-Identifier: GPL-2.0-or-later
//
// ACCESS events: what the guest sees, and what it leaves in memory, when an agent answers for single accesses.

#include "tests/unit/hypervisor/scripted_guest.h"

namespace kvmid::emulated {

namespace {

constexpr Gpa kOther{KVMID_GUEST_USER_STACKS_GPA};  ///< a page that nobody restricts

template <class T>
void put(ScriptedGuest& guest, Gpa gpa, const T& value) {
  guest.write(gpa, std::as_bytes(std::span(&value, 1)));
}

/// A guest in which the protected page has no right, and its next action is done under ACCESS events.
struct AccessGuest : ScriptedGuest {
  explicit AccessGuest(x86::PageRights rights = x86::kRightsNone) {
    watch(EventKind::PageFault);
    watch(EventKind::Access);
    restrict_page(kProtectedPage, rights);
  }
  void begin(GuestMode mode) {
    set_mode(mode);
    begin();
  }
  void begin() {
    REQUIRE(next_event().kind() == EventKind::PageFault);
    allow_with_access_events();
  }
  /// The instruction reads and writes, and the page has neither right.
  void begin_both() {
    begin();
    REQUIRE(next_event().kind() == EventKind::PageFault);
    CHECK(std::get<PageFaultData>(open->data).access == KVMI_PAGE_ACCESS_W);
    answer(Action::Allow);
  }
  AccessData access(std::uint8_t kind, std::uint64_t gva, std::uint8_t size, std::uint16_t index) {
    REQUIRE(next_event().kind() == EventKind::Access);
    const auto data = std::get<AccessData>(open->data);
    CHECK(data.access == kind);
    CHECK(data.gva == Gva{gva});
    CHECK(data.gpa == Gpa{gva});  // all of it is identity-mapped
    CHECK(data.size == size);
    CHECK(data.index == index);
    CHECK(open->actions == ActionSet{0xf});
    return data;
  }
  template <class T>
  static T value(const AccessData& data) {
    T result{};
    std::memcpy(&result, data.data.data(), sizeof result);
    return result;
  }
};

constexpr std::uint8_t R = KVMI_PAGE_ACCESS_R, W = KVMI_PAGE_ACCESS_W;
constexpr std::uint64_t kPage = KVMID_GUEST_PROTECTED_GPA;

}  // namespace

TEST_CASE("a load sees what the agent says", "[emulated][access]") {
  AccessGuest guest;
  put(guest, kProtectedPage, std::uint64_t{0x5ec2e7});
  guest.begin(GuestMode::Load);
  const auto data = guest.access(R, kPage, 8, 0);
  CHECK(AccessGuest::value<std::uint64_t>(data) == 0x5ec2e7);
  const Event event = *guest.open;

  SECTION("other data: the guest sees them, memory stays") {
    guest.answer_data(std::uint64_t{0xfeed});
    REQUIRE(guest.finish_action(GuestMode::Load));
    CHECK(guest.mailbox().loaded == 0xfeed);
    CHECK(guest.read<std::uint64_t>(kProtectedPage) == 0x5ec2e7);
  }
  SECTION("ALLOW: its own") {
    guest.answer(Action::Allow);
    REQUIRE(guest.finish_action(GuestMode::Load));
    CHECK(guest.mailbox().loaded == 0x5ec2e7);
  }
  SECTION("SKIP: the register keeps what it had") {
    guest.answer(Action::Skip);
    REQUIRE(guest.finish_action(GuestMode::Load));
    CHECK(guest.mailbox().loaded == 0);
  }
  SECTION("RETRY begins again, with the page fault") {
    guest.answer(Action::Retry);
    REQUIRE(guest.next_event().kind() == EventKind::PageFault);
    CHECK(guest.open->regs.rip == event.regs.rip);
  }
  SECTION("CRASH") {
    guest.answer(Action::Crash);
    CHECK(guest.machine().stop_cause() == StopCause::CrashAction);
  }
  SECTION("an agent that moves RIP ends it") {
    auto regs = event.regs;
    regs.rip += 8;  // behind the load
    regs.rax = 77;
    REQUIRE(guest.machine().set_registers(VcpuId{0}, regs));
    guest.answer_data(std::uint64_t{0xfeed});
    REQUIRE(guest.finish_action(GuestMode::Load));
    CHECK(guest.mailbox().loaded == 77);
  }
}

TEST_CASE("a store leaves what the agent says", "[emulated][access]") {
  AccessGuest guest(KVMI_PAGE_ACCESS_R);
  put(guest, kProtectedPage, std::uint64_t{1});
  guest.begin(GuestMode::Store);
  const auto data = guest.access(W, kPage, 8, 0);
  CHECK(AccessGuest::value<std::uint64_t>(data) == guest.mailbox().stored);
  CHECK(guest.read<std::uint64_t>(kProtectedPage) == 1);

  SECTION("other data") {
    guest.answer_data(std::uint64_t{0xbeef});
    REQUIRE(guest.finish_action(GuestMode::Store));
    CHECK(guest.read<std::uint64_t>(kProtectedPage) == 0xbeef);
  }
  SECTION("ALLOW") {
    guest.answer(Action::Allow);
    REQUIRE(guest.finish_action(GuestMode::Store));
    CHECK(guest.read<std::uint64_t>(kProtectedPage) == guest.mailbox().stored);
  }
  SECTION("SKIP") {
    guest.answer(Action::Skip);
    REQUIRE(guest.finish_action(GuestMode::Store));
    CHECK(guest.read<std::uint64_t>(kProtectedPage) == 1);
  }
  SECTION("RETRY") {
    guest.answer(Action::Retry);
    REQUIRE(guest.next_event().kind() == EventKind::PageFault);
    CHECK(guest.read<std::uint64_t>(kProtectedPage) == 1);
  }
  SECTION("CRASH") {
    guest.answer(Action::Crash);
    CHECK(guest.machine().stop_cause() == StopCause::CrashAction);
    CHECK(guest.read<std::uint64_t>(kProtectedPage) == 1);
  }
}

TEST_CASE("plain ALLOW makes no ACCESS event, nor does TRAP_ACCESS where nobody listens", "[emulated][access]") {
  AccessGuest guest;
  guest.set_mode(GuestMode::Load);
  REQUIRE(guest.next_event().kind() == EventKind::PageFault);
  SECTION("ALLOW") { guest.answer(Action::Allow); }
  SECTION("TRAP_ACCESS") {
    EventSet events;
    events.add(EventKind::PageFault);
    guest.hooks().set_events(VcpuId{0}, events);
    guest.allow_with_access_events();
  }
  guest.restrict_page(kProtectedPage, x86::kRightsAll);
  REQUIRE(guest.finish_action(GuestMode::Load));
}

TEST_CASE("REP MOVSB asks for each element's read and write, in order", "[emulated][access]") {
  AccessGuest guest;
  put(guest, kProtectedPage, std::uint64_t{0x0807060504030201});
  guest.begin(GuestMode::Copy);
  const std::uint64_t to = mailbox_gpa(VcpuId{0}).value + offsetof(Mailbox, copied);

  SECTION("data replaced") {
    for (std::uint8_t i = 0; i < 8; ++i) {
      const auto read = guest.access(R, kPage + i, 1, static_cast<std::uint16_t>(2 * i));
      CHECK(read.data[0] == i + 1);
      guest.answer_data(static_cast<std::uint8_t>(0xa0 + i));
      const auto write = guest.access(W, to + i, 1, static_cast<std::uint16_t>(2 * i + 1));
      CHECK(write.data[0] == 0xa0 + i);
      CHECK(guest.open->regs.rcx == 8u - i);
      if (i == 7) guest.answer_data(std::uint8_t{0xff});
      else guest.answer(Action::Allow);
    }
    REQUIRE(guest.finish_action(GuestMode::Copy));
    CHECK(guest.mailbox().copied == 0xffa6a5a4a3a2a1a0);
    CHECK(guest.read<std::uint64_t>(kProtectedPage) == 0x0807060504030201);
  }
  SECTION("SKIP leaves the rest undone") {
    guest.access(R, kPage, 1, 0);
    guest.answer(Action::Allow);
    guest.access(W, to, 1, 1);
    guest.answer(Action::Allow);
    guest.access(R, kPage + 1, 1, 2);
    guest.answer(Action::Skip);
    REQUIRE(guest.finish_action(GuestMode::Copy));
    CHECK(guest.mailbox().copied == 1);
  }
  SECTION("RETRY goes on with this element") {
    guest.access(R, kPage, 1, 0);
    guest.answer(Action::Allow);
    guest.access(W, to, 1, 1);
    guest.answer(Action::Allow);
    guest.access(R, kPage + 1, 1, 2);
    guest.answer(Action::Retry);
    REQUIRE(guest.next_event().kind() == EventKind::PageFault);
    CHECK(guest.open->regs.rcx == 7);
    guest.restrict_page(kProtectedPage, x86::kRightsAll);
    guest.answer(Action::Retry);
    REQUIRE(guest.finish_action(GuestMode::Copy));
    CHECK(guest.mailbox().copied == 0x0807060504030201);
  }
}

TEST_CASE("accesses of one instruction, in order", "[emulated][access]") {
  AccessGuest guest;
  put(guest, kProtectedPage, std::uint64_t{100});
  // Each piece of code begins with mov $0x20000, %eax
  SECTION("add: read, then write") {
    guest.run_code({0xb8, 0, 0, 2, 0, 0xba, 5, 0, 0, 0, 0x48, 0x01, 0x10, 0xc3});  // mov $5,%edx; add %rdx,(%rax)
    guest.begin_both();
    CHECK(AccessGuest::value<std::uint64_t>(guest.access(R, kPage, 8, 0)) == 100);
    guest.answer_data(std::uint64_t{200});
    CHECK(AccessGuest::value<std::uint64_t>(guest.access(W, kPage, 8, 1)) == 205);
    guest.answer(Action::Allow);
    REQUIRE(guest.finish_action(GuestMode::Exec));
    CHECK(guest.read<std::uint64_t>(kProtectedPage) == 205);
  }
  SECTION("xchg") {
    guest.run_code({0xb8, 0, 0, 2, 0, 0xba, 5, 0, 0, 0, 0x48, 0x87, 0x10, 0x48, 0x89, 0xd0, 0xc3});
    guest.begin_both();
    guest.access(R, kPage, 8, 0);
    guest.answer_data(std::uint64_t{7});
    CHECK(AccessGuest::value<std::uint64_t>(guest.access(W, kPage, 8, 1)) == 5);
    guest.answer(Action::Allow);
    REQUIRE(guest.finish_action(GuestMode::Exec));
    CHECK(guest.read<std::uint64_t>(kProtectedPage) == 5);
    CHECK(guest.mailbox().exec_result == 7);
  }
  SECTION("lock cmpxchg that succeeds only because of the agent") {
    // mov $0x20000,%ebx; mov $1,%eax; mov $9,%ecx; lock cmpxchg %rcx,(%rbx); ret
    guest.run_code({0xbb, 0, 0, 2, 0, 0xb8, 1, 0, 0, 0, 0xb9, 9, 0, 0, 0, 0xf0, 0x48, 0x0f, 0xb1, 0x0b, 0xc3});
    guest.begin_both();
    guest.access(R, kPage, 8, 0);
    guest.answer_data(std::uint64_t{1});
    CHECK(AccessGuest::value<std::uint64_t>(guest.access(W, kPage, 8, 1)) == 9);
    guest.answer(Action::Allow);
    REQUIRE(guest.finish_action(GuestMode::Exec));
    CHECK(guest.read<std::uint64_t>(kProtectedPage) == 9);
    CHECK(guest.mailbox().exec_result == 1);
  }
  SECTION("push of memory: the stack is an access, too") {
    guest.run_code({0xb8, 0, 0, 2, 0, 0xff, 0x30, 0x58, 0xc3});  // push (%rax); pop %rax; ret
    guest.begin();
    guest.access(R, kPage, 8, 0);
    guest.answer_data(std::uint64_t{0x77});
    const std::uint64_t stack = guest.machine().vcpu(VcpuId{0}).regs.rsp - 8;
    CHECK(AccessGuest::value<std::uint64_t>(guest.access(W, stack, 8, 1)) == 0x77);
    guest.answer_data(std::uint64_t{0x88});
    REQUIRE(guest.finish_action(GuestMode::Exec));
    CHECK(guest.mailbox().exec_result == 0x88);
  }
  SECTION("movzx and movsx of one byte") {
    guest.run_code({0xb8, 0, 0, 2, 0, 0x48, 0x0f, 0xbe, 0x00, 0xc3});  // movsbq (%rax), %rax
    guest.begin();
    guest.access(R, kPage, 1, 0);
    guest.answer_data(std::uint8_t{0x80});
    REQUIRE(guest.finish_action(GuestMode::Exec));
    CHECK(guest.mailbox().exec_result == 0xffffffffffffff80);
  }
  SECTION("SSE: 16 bytes at once") {
    // movdqu (%rax), %xmm0; movdqu %xmm0, 0x30000; ret
    guest.run_code({0xb8, 0, 0, 2, 0, 0xf3, 0x0f, 0x6f, 0x00, 0xf3, 0x0f, 0x7f, 0x04, 0x25, 0, 0, 3, 0, 0xc3});
    guest.begin();
    guest.access(R, kPage, 16, 0);
    const std::array<std::uint64_t, 2> seen = {0x1111222233334444, 0x5555666677778888};
    guest.answer_data(seen);
    REQUIRE(guest.finish_action(GuestMode::Exec));
    CHECK(guest.read<std::array<std::uint64_t, 2>>(kOther) == seen);
  }
  SECTION("SSE store") {
    // pxor %xmm0,%xmm0; movdqu %xmm0,(%rax); ret
    guest.run_code({0xb8, 0, 0, 2, 0, 0x66, 0x0f, 0xef, 0xc0, 0xf3, 0x0f, 0x7f, 0x00, 0xc3});
    guest.begin();
    guest.access(W, kPage, 16, 0);
    const std::array<std::uint64_t, 2> stored = {1, 2};
    guest.answer_data(stored);
    REQUIRE(guest.finish_action(GuestMode::Exec));
    CHECK(guest.read<std::array<std::uint64_t, 2>>(kProtectedPage) == stored);
  }
  SECTION("bts with a bit number in a register reaches far") {
    // mov $0x20000,%eax; mov $0x143,%ecx; bts %rcx,(%rax); ret
    guest.run_code({0xb8, 0, 0, 2, 0, 0xb9, 0x43, 0x01, 0, 0, 0x48, 0x0f, 0xab, 0x08, 0xc3});
    guest.begin_both();
    guest.access(R, kPage + 40, 8, 0);
    guest.answer_data(std::uint64_t{0});
    CHECK(AccessGuest::value<std::uint64_t>(guest.access(W, kPage + 40, 8, 1)) == 8);
    guest.answer(Action::Allow);
    REQUIRE(guest.finish_action(GuestMode::Exec));
    CHECK(guest.read<std::uint64_t>(Gpa{kPage + 40}) == 8);
  }
}

TEST_CASE("an access over the end of a page is two", "[emulated][access]") {
  AccessGuest guest;
  // mov $0x20ffc, %eax; mov (%rax), %rax; ret. What lies behind is the exec page itself.
  guest.run_code({0xb8, 0xfc, 0x0f, 2, 0, 0x48, 0x8b, 0x00, 0xc3});
  guest.begin();
  guest.access(R, kPage + 0xffc, 4, 0);
  guest.answer_data(std::uint32_t{0x11111111});
  const auto second = guest.access(R, kPage + 0x1000, 4, 1);
  CHECK(AccessGuest::value<std::uint32_t>(second) == 0x020ffcb8);
  guest.answer_data(std::uint32_t{0x22222222});
  REQUIRE(guest.finish_action(GuestMode::Exec));
  CHECK(guest.mailbox().exec_result == 0x2222222211111111);
}

TEST_CASE("rights to another page still make a page fault, before the first access", "[emulated][access]") {
  AccessGuest guest;
  guest.restrict_page(kOther, KVMI_PAGE_ACCESS_R);
  put(guest, kProtectedPage, std::uint8_t{0x42});
  // mov $0x20000,%esi; mov $0x30000,%edi; movsb; ret
  guest.run_code({0xbe, 0, 0, 2, 0, 0xbf, 0, 0, 3, 0, 0xa4, 0xc3});
  guest.begin();
  REQUIRE(guest.next_event().kind() == EventKind::PageFault);
  CHECK(std::get<PageFaultData>(guest.open->data).gpa == kOther);

  SECTION("ALLOW") {
    guest.answer(Action::Allow);
    guest.access(R, kPage, 1, 0);
    guest.answer(Action::Allow);
    guest.access(W, kOther.value, 1, 1);
    guest.answer(Action::Allow);
    REQUIRE(guest.finish_action(GuestMode::Exec));
    CHECK(guest.read<std::uint8_t>(kOther) == 0x42);
  }
  SECTION("SKIP") {
    guest.answer(Action::Skip);
    REQUIRE(guest.finish_action(GuestMode::Exec));
    CHECK(guest.read<std::uint8_t>(kOther) == 0);
  }
}

TEST_CASE("the guest's own fault ends it, with nothing done", "[emulated][access]") {
  AccessGuest guest;
  guest.watch(EventKind::Trap);
  SECTION("a page that is not there, before the first event") {
    // mov $0x20000,%esi; movabs $0x700000000000,%rdi; movsb; ret
    guest.run_code({0xbe, 0, 0, 2, 0, 0x48, 0xbf, 0, 0, 0, 0, 0, 0x70, 0, 0, 0xa4, 0xc3});
    guest.begin();
    REQUIRE(guest.next_event().kind() == EventKind::Trap);
    const auto trap = std::get<TrapData>(guest.open->data);
    CHECK(trap.vector == 14);
    CHECK(trap.error_code == 2);
    CHECK(trap.address == 0x700000000000);
  }
  SECTION("a division by what the agent gave") {
    put(guest, kProtectedPage, std::uint32_t{5});
    // mov $0x20000,%ebx; mov $20,%eax; cltd; divl (%rbx); ret
    guest.run_code({0xbb, 0, 0, 2, 0, 0xb8, 20, 0, 0, 0, 0x99, 0xf7, 0x33, 0xc3});
    guest.begin();
    guest.access(R, kPage, 4, 0);
    guest.answer_data(std::uint32_t{0});
    REQUIRE(guest.next_event().kind() == EventKind::Trap);
    CHECK(std::get<TrapData>(guest.open->data).vector == 0);
    CHECK(guest.open->regs.rax == 20);
    CHECK(guest.open->regs.rip == kExecPage.value + 11);
  }
}

TEST_CASE("x87 and SSE are as they were when a store is not done", "[emulated][access]") {
  AccessGuest guest(KVMI_PAGE_ACCESS_R);
  put(guest, kProtectedPage, std::uint64_t{0});
  // fld1; fstpl 0x20000; ret: a retried store must not pop twice
  guest.run_code({0xd9, 0xe8, 0xdd, 0x1c, 0x25, 0, 0, 2, 0, 0xc3});
  guest.begin();
  const auto data = guest.access(W, kPage, 8, 0);
  CHECK(AccessGuest::value<double>(data) == 1.0);
  guest.answer(Action::Retry);
  guest.begin();
  CHECK(AccessGuest::value<double>(guest.access(W, kPage, 8, 0)) == 1.0);
  guest.answer(Action::Allow);
  REQUIRE(guest.finish_action(GuestMode::Exec));
  CHECK(guest.read<double>(kProtectedPage) == 1.0);
}

TEST_CASE("an injection waits for the end of the instruction that makes ACCESS events", "[emulated][access][inject]") {
  AccessGuest guest;
  guest.watch(EventKind::Trap);
  put(guest, kProtectedPage, std::uint64_t{3});
  guest.begin(GuestMode::Load);
  guest.access(R, kPage, 8, 0);
  const auto rip = guest.open->regs.rip;
  REQUIRE(guest.machine().inject(VcpuId{0}, {x86::vector::kUd, false, 0, 0}));
  guest.answer(Action::Allow);
  REQUIRE(guest.next_event().kind() == EventKind::Trap);
  CHECK(std::get<TrapData>(guest.open->data).flags == KVMI_TRAP_F_INJECTED);
  CHECK(guest.open->regs.rip == rip + 8);
  CHECK(guest.open->regs.rax == 3);
}

TEST_CASE("single steps and ACCESS events together", "[emulated][access][singlestep]") {
  AccessGuest guest;
  guest.watch(EventKind::Singlestep);
  guest.begin(GuestMode::Load);
  guest.hooks().set_singlestep(VcpuId{0}, true);
  guest.access(R, kPage, 8, 0);
  const auto rip = guest.open->regs.rip;
  guest.answer_data(std::uint64_t{4});
  const Event event = guest.next_event();
  REQUIRE(event.kind() == EventKind::Singlestep);
  CHECK(event.regs.rip == rip + 8);
  CHECK(event.regs.rax == 4);
}

TEST_CASE("unhooked while ACCESS waits, the instruction ends as the guest's own", "[emulated][access]") {
  AccessGuest guest;
  put(guest, kProtectedPage, std::uint64_t{0x0807060504030201});
  guest.begin(GuestMode::Copy);
  guest.access(R, kPage, 1, 0);
  guest.machine().unhook();
  guest.open.reset();
  REQUIRE(guest.finish_action(GuestMode::Copy));
  CHECK(guest.mailbox().copied == 0x0807060504030201);
}

}  // namespace kvmid::emulated
