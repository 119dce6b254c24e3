// SPDX-License-Identifier: GPL-2.0-or-later
//
// The state of an emulated guest beyond its registers: by commands, and as the guest itself sees it.

#include <array>
#include <cstring>
#include <vector>

#include "hypervisor/emulated/xsave.h"
#include "hypervisor/server/commands.h"
#include "hypervisor/server/session.h"
#include "tests/unit/hypervisor/scripted_guest.h"

namespace kvmid::emulated {

namespace {

constexpr std::size_t kStAt = 32, kXmm5At = 160 + 5 * 16, kMxcsrAt = 24, kXstateBvAt = 512;

template <class Body>
Body served(ScriptedGuest& guest, const Command& command) {
  hypervisor::Patches patches(guest.machine());
  hypervisor::CommandServer server(guest.machine(), patches);
  const CommandReply reply = server.serve(command);
  CAPTURE(std::string(reply.text));
  REQUIRE(reply.error == ErrorCode::None);
  return std::get<Body>(reply.body);
}

ErrorCode refused(ScriptedGuest& guest, const Command& command, const std::string& word) {
  hypervisor::Patches patches(guest.machine());
  hypervisor::CommandServer server(guest.machine(), patches);
  const CommandReply reply = server.serve(command);
  CAPTURE(std::string(reply.text), word);
  CHECK(reply.text.find(word) != std::string_view::npos);
  return reply.error;
}

std::vector<std::byte> get_xsave(ScriptedGuest& guest) { return guest.machine().xsave(VcpuId{0}).value(); }

template <class T>
T at(const std::vector<std::byte>& area, std::size_t offset) {
  T value{};
  REQUIRE(offset + sizeof value <= area.size());
  std::memcpy(&value, area.data() + offset, sizeof value);
  return value;
}
template <class T>
void put(std::vector<std::byte>& area, std::size_t offset, const T& value) {
  std::memcpy(area.data() + offset, &value, sizeof value);
}

WritePhysical write_command(Gpa gpa, AddressSpace space, Bytes data) {
  WritePhysical command;
  command.gpa = gpa;
  command.space = space;
  command.data = data;
  return command;
}

/// The bytes of one range; an error is the test's.
std::vector<std::byte> read_range(ScriptedGuest& guest, AddressSpace space, Gpa gpa, std::uint32_t size) {
  kvmi_read_range range{};
  range.gpa = gpa.value;
  range.size = size;
  ReadPhysical command;
  command.space = space;
  command.ranges = std::span<const kvmi_read_range>(&range, 1);
  hypervisor::Patches patches(guest.machine());
  hypervisor::CommandServer server(guest.machine(), patches);
  const CommandReply reply = server.serve(command);
  REQUIRE(reply.error == ErrorCode::None);
  const Bytes data = std::get<ReadPhysicalReply>(reply.body).data;
  return {data.begin(), data.end()};
}
ErrorCode read_refused(ScriptedGuest& guest, AddressSpace space, Gpa gpa, std::uint32_t size, const std::string& word) {
  kvmi_read_range range{};
  range.gpa = gpa.value;
  range.size = size;
  ReadPhysical command;
  command.space = space;
  command.ranges = std::span<const kvmi_read_range>(&range, 1);
  return refused(guest, command, word);
}

std::string text(const std::vector<std::byte>& bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

}  // namespace

TEST_CASE("GET_VERSION of the emulated guest names its further commands and events", "[emulated][state]") {
  ScriptedGuest guest;
  const auto version = served<GetVersionReply>(guest, GetVersion{});
  for (const auto id : {CommandId::ShutdownGuest, CommandId::GetCpuid, CommandId::TranslateGva, CommandId::GetXsave,
                        CommandId::SetXsave, CommandId::GetXcr, CommandId::GetMemoryMap, CommandId::ReadPhysical}) {
    CHECK(version.commands.has(id));
  }
  for (const auto kind : {EventKind::Unhook, EventKind::Xsetbv, EventKind::Descriptor, EventKind::Cpuid}) {
    CHECK(version.events.has(kind));
  }
}

TEST_CASE("GET_XSAVE holds what the guest's SSE and x87 code computed", "[emulated][xsave]") {
  ScriptedGuest guest;
  REQUIRE(guest.run_action(GuestMode::Sse, 3));
  guest.set_mode(GuestMode::Idle);
  for (int i = 0; i < 3; ++i) guest.round();
  const Mailbox box = guest.mailbox();

  const auto area = get_xsave(guest);

  REQUIRE(area.size() == kXsaveBytes);
  CHECK(area.size() == guest.machine().cpuid(VcpuId{0}, 0xd, 0)->ebx);
  CHECK(at<std::uint64_t>(area, kXstateBvAt) == 3);
  CHECK(at<std::uint32_t>(area, kMxcsrAt) == 0x1f80);
  CHECK(at<std::array<std::uint64_t, 2>>(area, kXmm5At) == box.sse);
  CHECK(box.sse[0] >= 3);
  // ST(0) as a number: box.x87 is a small whole one, so the extended format is exact.
  const auto mantissa = at<std::uint64_t>(area, kStAt);
  const auto exponent = at<std::uint16_t>(area, kStAt + 8);
  REQUIRE(exponent >= 16383);
  CHECK(static_cast<double>(mantissa >> (63 - (exponent - 16383))) == box.x87);
}

TEST_CASE("what SET_XSAVE puts into the registers is what the guest goes on with", "[emulated][xsave]") {
  ScriptedGuest guest;
  REQUIRE(guest.run_action(GuestMode::Sse));
  guest.set_mode(GuestMode::Idle);
  for (int i = 0; i < 3; ++i) guest.round();
  auto area = get_xsave(guest);
  put(area, kXmm5At, std::array<std::uint64_t, 2>{1000, 0xffffffffffffffff});
  put(area, kStAt, std::uint64_t{0xc800000000000000});  // 100.0
  put(area, kStAt + 8, std::uint16_t{16383 + 6});

  REQUIRE(guest.machine().set_xsave(VcpuId{0}, area));

  CHECK(get_xsave(guest) == area);
  const std::uint64_t before = guest.mailbox().done[KVMID_MODE_SSE];
  REQUIRE(guest.run_action(GuestMode::Sse));
  guest.set_mode(GuestMode::Idle);
  for (int i = 0; i < 3; ++i) guest.round();
  const std::uint64_t times = guest.mailbox().done[KVMID_MODE_SSE] - before;
  CHECK(guest.mailbox().sse[0] == 1000 + times);
  CHECK(guest.mailbox().sse[1] == times - 1);
  CHECK(guest.mailbox().x87 == 100.0 + static_cast<double>(times));
}

TEST_CASE("a component that XSTATE_BV lacks becomes initial", "[emulated][xsave]") {
  ScriptedGuest guest;
  REQUIRE(guest.run_action(GuestMode::Sse));
  guest.set_mode(GuestMode::Idle);
  for (int i = 0; i < 3; ++i) guest.round();
  auto area = get_xsave(guest);
  REQUIRE(at<std::uint64_t>(area, kXmm5At) != 0);
  put(area, kXstateBvAt, std::uint64_t{1});
  REQUIRE(guest.machine().set_xsave(VcpuId{0}, area));
  const auto after = get_xsave(guest);
  CHECK(at<std::uint64_t>(after, kXmm5At) == 0);
  CHECK(at<std::uint64_t>(after, kStAt) == at<std::uint64_t>(area, kStAt));
}

TEST_CASE("SET_XSAVE refuses what no processor loads, and changes nothing", "[emulated][xsave]") {
  ScriptedGuest guest;
  const auto good = get_xsave(guest);
  const auto set = [&](const std::vector<std::byte>& area, const char* word) {
    return refused(guest, SetXsave{VcpuId{0}, area}, word);
  };
  auto area = good;
  area.pop_back();
  CHECK(set(area, "575") == ErrorCode::Invalid);
  area.resize(kXsaveBytes + 256);
  CHECK(set(area, "has 576 bytes") == ErrorCode::Invalid);
  CHECK(set({}, "not 0") == ErrorCode::Invalid);
  area = good;
  put(area, kXstateBvAt, std::uint64_t{7});
  CHECK(set(area, "XSTATE_BV") == ErrorCode::Invalid);
  area = good;
  put(area, kXstateBvAt + 8, std::uint64_t{1} << 63);
  CHECK(set(area, "XCOMP_BV") == ErrorCode::Invalid);
  area = good;
  area.back() = std::byte{1};
  CHECK(set(area, "header") == ErrorCode::Invalid);
  area = good;
  put(area, kMxcsrAt, 0x10000u);
  CHECK(set(area, "MXCSR") == ErrorCode::Invalid);
  CHECK(get_xsave(guest) == good);
  CHECK(refused(guest, SetXsave{VcpuId{1}, good}, "no vCPU 1") == ErrorCode::Invalid);
  CHECK(refused(guest, GetXsave{VcpuId{1}}, "no vCPU 1") == ErrorCode::Invalid);
}

TEST_CASE("x87 registers are numbered from the top of the stack in an area", "[emulated][xsave]") {
  FpuState state;
  state.status = 6 << 11;      // TOP = 6: ST(0) is R6, ST(1) is R7
  state.tags = 0x0fff;         // R6 and R7 are valid
  state.physical[6][0] = 66;
  state.physical[6][9] = 0x3f;
  state.physical[6][8] = 0xff;
  state.physical[6][7] = 0x80;
  state.physical[7] = state.physical[6];
  state.physical[7][0] = 77;
  const XsaveArea area = make_xsave_area(state, kXcr0Supported);
  CHECK(area[4] == std::byte{0xc0});
  CHECK(area[kStAt] == std::byte{66});
  CHECK(area[kStAt + 16] == std::byte{77});
  FpuState loaded;
  load_xsave_area(area, kXcr0Supported, loaded);
  CHECK(loaded.physical == state.physical);
  CHECK(loaded.tags == state.tags);
  CHECK(loaded.status == state.status);
}

TEST_CASE("XSAVE and XRSTOR of the guest", "[emulated][xsave]") {
  ScriptedGuest guest;
  guest.write_field(offsetof(Mailbox, arg_xcr0), 3);
  REQUIRE(guest.run_action(GuestMode::Xsetbv));
  // On the exec page: mov $-1,%eax; mov $-1,%edx; xsave 0x30000; pxor %xmm5,%xmm5; xrstor 0x30000; ret
  const std::vector<std::uint8_t> code = {0xb8, 0xff, 0xff, 0xff, 0xff, 0xba, 0xff, 0xff, 0xff, 0xff, 0x0f, 0xae,
                                          0x24, 0x25, 0x00, 0x00, 0x03, 0x00, 0x66, 0x0f, 0xef, 0xed, 0x0f, 0xae,
                                          0x2c, 0x25, 0x00, 0x00, 0x03, 0x00, 0xc3};
  guest.write(kExecPage, std::as_bytes(std::span(code)));
  REQUIRE(guest.run_action(GuestMode::Sse));
  guest.set_mode(GuestMode::Idle);
  for (int i = 0; i < 3; ++i) guest.round();
  const auto sse = guest.mailbox().sse;

  REQUIRE(guest.run_action(GuestMode::Exec));

  CHECK(guest.read<std::array<std::uint64_t, 2>>(Gpa{0x30000 + kXmm5At}) == sse);
  CHECK(guest.read<std::uint64_t>(Gpa{0x30000 + kXstateBvAt}) == 3);
  CHECK(at<std::array<std::uint64_t, 2>>(get_xsave(guest), kXmm5At) == sse);
  CHECK(guest.mailbox().exceptions[6] == 0);
  CHECK(guest.mailbox().exceptions[13] == 0);
}

TEST_CASE("GET_XCR", "[emulated][state]") {
  ScriptedGuest guest;
  CHECK(served<GetXcrReply>(guest, GetXcr{VcpuId{0}, 0}).value == 1);
  guest.write_field(offsetof(Mailbox, arg_xcr0), 3);
  REQUIRE(guest.run_action(GuestMode::Xsetbv));
  CHECK(served<GetXcrReply>(guest, GetXcr{VcpuId{0}, 0}).value == 3);
  CHECK(refused(guest, GetXcr{VcpuId{0}, 1}, "no XCR1") == ErrorCode::Invalid);
  CHECK(refused(guest, GetXcr{VcpuId{4}, 0}, "no vCPU 4") == ErrorCode::Invalid);
}

TEST_CASE("GET_CPUID", "[emulated][cpuid]") {
  ScriptedGuest guest(2);
  const auto leaf = [&](std::uint32_t function, std::uint32_t index = 0, std::uint16_t vcpu = 0) {
    return served<GetCpuidReply>(guest, GetCpuid{VcpuId{vcpu}, function, index});
  };
  CHECK(leaf(0).eax == 0xd);
  CHECK((leaf(1).ecx & (1u << 27)) != 0);  // the guest has set CR4.OSXSAVE
  CHECK(leaf(1, 0, 0).ebx >> 24 == 0);
  CHECK(leaf(1, 0, 1).ebx >> 24 == 1);
  CHECK(leaf(0xd).eax == 3);
  CHECK(leaf(0xd).ecx == 576);
  CHECK((leaf(7).ecx & 4u) != 0);  // UMIP
  CHECK(leaf(0x80000000).eax == 0x80000008);
  CHECK(leaf(0x80000008).eax == (40u | (48u << 8)));
  for (const std::uint32_t unknown : {2u, 0xeu, 0x40000001u, 0x80000009u, 0xffffffffu}) {
    CHECK(refused(guest, GetCpuid{VcpuId{0}, unknown, 0}, "no CPUID leaf") == ErrorCode::NoEntry);
  }
  CHECK(refused(guest, GetCpuid{VcpuId{0}, 0xd, 2}, "index 2") == ErrorCode::NoEntry);
  CHECK(refused(guest, GetCpuid{VcpuId{2}, 0, 0}, "no vCPU 2") == ErrorCode::Invalid);
}

TEST_CASE("TRANSLATE_GVA walks the tables of the vCPU as they are", "[emulated][translate]") {
  ScriptedGuest guest;
  const auto translate = [&](std::uint64_t gva) {
    return served<TranslateGvaReply>(guest, TranslateGva{VcpuId{0}, Gva{gva}});
  };
  const std::uint64_t cr3 = guest.machine().registers(VcpuId{0})->sregs.cr3;
  const auto window = translate(KVMID_GUEST_WINDOW_GVA + 0x123);
  CHECK(window.gpa.value == (cr3 == kRootA ? KVMID_GUEST_WINDOW_A_GPA : KVMID_GUEST_WINDOW_B_GPA) + 0x123u);
  CHECK(window.page_bytes == 4096);
  CHECK(window.access == 7);
  CHECK_FALSE(window.user);
  CHECK(translate(KVMID_GUEST_PROTECTED_GPA).access == 3);  // not executable in the guest's tables
  CHECK(translate(0x12345678).page_bytes == 2u << 20);
  CHECK(translate(0x12345678).gpa.value == 0x12345678);

  CHECK(refused(guest, TranslateGva{VcpuId{0}, Gva{0x7fff0000dead}}, "0x7fff0000dead") == ErrorCode::Fault);
  CHECK(refused(guest, TranslateGva{VcpuId{0}, Gva{0x8000000000000000}}, "canonical") == ErrorCode::Fault);
  CHECK(refused(guest, TranslateGva{VcpuId{1}, Gva{0}}, "no vCPU 1") == ErrorCode::Invalid);
}

TEST_CASE("GET_MEMORY_MAP tells RAM, ROM and SMRAM", "[emulated][memory_map]") {
  ScriptedGuest guest;
  hypervisor::Patches patches(guest.machine());
  hypervisor::CommandServer server(guest.machine(), patches);
  const CommandReply reply = server.serve(GetMemoryMap{AddressSpace::Normal});
  const auto& slots = std::get<GetMemoryMapReply>(reply.body).slots;
  REQUIRE(slots.size() == 3);
  std::uint64_t end = 0;
  for (std::size_t i = 0; i < slots.size(); ++i) {
    CHECK(slots[i].gpa == end);
    CHECK(slots[i].address_space == 0);
    CHECK(slots[i].flags == (i == 1 ? KVMI_SLOT_READ_ONLY : 0));
    end = slots[i].gpa + slots[i].bytes;
  }
  CHECK(slots[1].gpa == kRomPage.value);
  CHECK(slots[1].bytes == 4096);
  CHECK(end == guest.machine().facts().max_gpa);

  hypervisor::CommandServer other(guest.machine(), patches);
  const CommandReply smm_reply = other.serve(GetMemoryMap{AddressSpace::Smm});
  const auto& smm = std::get<GetMemoryMapReply>(smm_reply.body).slots;
  REQUIRE(smm.size() == 1);
  CHECK(smm[0].gpa == kSmram.value);
  CHECK(smm[0].bytes == KVMID_GUEST_SMRAM_BYTES);
  CHECK(smm[0].address_space == 1);
}

TEST_CASE("SMRAM is in address space 1 only", "[emulated][memory_map]") {
  ScriptedGuest guest;
  CHECK(text(read_range(guest, AddressSpace::Smm, kSmram, 8)) == "KVMISMRM");
  CHECK(text(read_range(guest, AddressSpace::Normal, kSmram, 8)) == std::string(8, '\0'));

  const std::array<std::byte, 2> data = {std::byte{0x12}, std::byte{0x34}};
  const Gpa last{kSmram.value + KVMID_GUEST_SMRAM_BYTES - 2};
  (void)served<WritePhysicalReply>(guest, write_command(last, AddressSpace::Smm, data));
  CHECK(read_range(guest, AddressSpace::Smm, last, 2) == std::vector<std::byte>(data.begin(), data.end()));
  CHECK(guest.read<std::uint16_t>(last) == 0);

  CHECK(read_refused(guest, AddressSpace::Smm, Gpa{last.value + 1}, 2, "(SMM)") == ErrorCode::Fault);
  CHECK(read_refused(guest, AddressSpace::Smm, Gpa{kSmram.value - 1}, 2, "(SMM)") == ErrorCode::Fault);
  CHECK(read_refused(guest, AddressSpace::Smm, mailbox_gpa(VcpuId{0}), 8, "(SMM)") == ErrorCode::Fault);
  CHECK(refused(guest, write_command(Gpa{last.value + 1}, AddressSpace::Smm, data), "(SMM)") == ErrorCode::Fault);
  CHECK(read_range(guest, AddressSpace::Smm, last, 2) == std::vector<std::byte>(data.begin(), data.end()));
}

TEST_CASE("ranges cross slots, and no hole", "[emulated][memory_map]") {
  ScriptedGuest guest;
  const auto around = read_range(guest, AddressSpace::Normal, Gpa{kRomPage.value - 2}, 4096 + 4);
  CHECK(text({around.begin() + 2, around.begin() + 10}) == "KVMIROM1");
  CHECK(around[2 + 4095] == std::byte{0xff});
  const std::uint64_t end = guest.machine().facts().max_gpa;
  CHECK(read_refused(guest, AddressSpace::Normal, Gpa{end - 4}, 8, "which ends at 0x1000000") == ErrorCode::Fault);
  const std::array<std::byte, 8> data = {std::byte{1}};
  CHECK(refused(guest, write_command(Gpa{end - 4}, AddressSpace::Normal, data), "ends at") == ErrorCode::Fault);
  CHECK(guest.read<std::uint32_t>(Gpa{end - 4}) == 0);
}

TEST_CASE("a guest's store to ROM goes nowhere, and is no event", "[emulated][memory_map]") {
  ScriptedGuest guest;
  guest.watch(EventKind::PageFault);
  const std::uint64_t before = guest.read<std::uint64_t>(Gpa{kRomPage.value + 8});
  REQUIRE(before == 0x0f0e0d0c0b0a0908);
  REQUIRE(guest.run_action(GuestMode::Rom, 3));
  CHECK(guest.raised == 0);
  CHECK(guest.mailbox().rom == before);
  CHECK(guest.read<std::uint64_t>(Gpa{kRomPage.value + 8}) == before);
  CHECK(guest.mailbox().exceptions[14] == 0);

  SECTION("its right to write does not exist, whatever is asked for") {
    CHECK(guest.machine().page_access(gfn_of(kRomPage)) == (KVMI_PAGE_ACCESS_R | KVMI_PAGE_ACCESS_X));
    guest.restrict_page(kRomPage, KVMI_PAGE_ACCESS_R | KVMI_PAGE_ACCESS_W);
    CHECK(guest.machine().page_access(gfn_of(kRomPage)) == KVMI_PAGE_ACCESS_R);
    REQUIRE(guest.run_action(GuestMode::Rom, 2));
    CHECK(guest.raised == 0);
  }
  SECTION("a right that an agent took away is an event; ALLOW still writes nothing") {
    guest.restrict_page(kRomPage, KVMI_PAGE_ACCESS_R);
    guest.set_mode(GuestMode::Rom);
    const auto data = std::get<PageFaultData>(guest.next_event().data);
    CHECK(data.gpa == Gpa{kRomPage.value + 8});
    CHECK(data.access == KVMI_PAGE_ACCESS_W);
    guest.answer(Action::Allow);
    CHECK(std::get<PageFaultData>(guest.next_event().data).access == KVMI_PAGE_ACCESS_W);  // lock inc
    guest.set_mode(GuestMode::Idle);
    guest.answer(Action::Allow);
    for (int i = 0; i < 5; ++i) guest.round();
    CHECK_FALSE(guest.open);
    CHECK(guest.mailbox().rom == before);
    CHECK(guest.read<std::uint64_t>(Gpa{kRomPage.value + 8}) == before);
  }
  SECTION("WRITE_PHYSICAL changes it for the guest too") {
    const std::uint64_t value = 42;
    (void)served<WritePhysicalReply>(
        guest, write_command(Gpa{kRomPage.value + 8}, AddressSpace::Normal, std::as_bytes(std::span(&value, 1))));
    REQUIRE(guest.run_action(GuestMode::Rom, 2));
    CHECK(guest.mailbox().rom == 42);
  }
}

TEST_CASE("a memory map with holes", "[emulated][memory_map]") {
  std::array<std::byte, 4 * kPageSize> host{};
  MemoryMap map;
  map.add({AddressSpace::Normal, Gpa{0x5000}, kPageSize, true, host.data() + 3 * kPageSize});
  map.add({AddressSpace::Smm, Gpa{0x3000}, kPageSize, false, host.data() + 2 * kPageSize});
  map.add({AddressSpace::Normal, Gpa{0x1000}, 2 * kPageSize, false, host.data()});

  CHECK(map.covers(AddressSpace::Normal, Gfn{1}, 2));
  CHECK_FALSE(map.covers(AddressSpace::Normal, Gfn{1}, 3));
  CHECK_FALSE(map.covers(AddressSpace::Normal, Gfn{0}, 2));
  CHECK_FALSE(map.covers(AddressSpace::Normal, Gfn{3}, 1));
  CHECK(map.covers(AddressSpace::Smm, Gfn{3}, 1));
  CHECK_FALSE(map.covers(AddressSpace::Normal, Gfn{~std::uint64_t{0}}, 1));
  CHECK_FALSE(map.covers(AddressSpace::Normal, Gfn{1}, ~std::uint64_t{0}));
  CHECK(map.is_read_only(Gfn{5}));
  CHECK_FALSE(map.is_read_only(Gfn{2}));
  CHECK_FALSE(map.is_read_only(Gfn{3}));

  std::array<std::byte, 2> two = {std::byte{7}, std::byte{7}};
  CHECK_FALSE(map.write(AddressSpace::Normal, Gpa{0x2fff}, two));
  CHECK(host[2 * kPageSize - 1] == std::byte{0});  // nothing of it is done
  CHECK(map.write(AddressSpace::Normal, Gpa{0x1fff}, two));
  CHECK(host[kPageSize] == std::byte{7});
  CHECK_FALSE(map.read(AddressSpace::Normal, Gpa{~std::uint64_t{0}}, two));
  const auto slots = map.slots(AddressSpace::Normal);
  REQUIRE(slots.size() == 2);
  CHECK(slots[0].gpa == 0x1000);
  CHECK(slots[1].flags == KVMI_SLOT_READ_ONLY);
}

TEST_CASE("SHUTDOWN_GUEST is answered first and done later", "[emulated][state]") {
  ScriptedGuest guest;
  CHECK_FALSE(guest.machine().shutdown_wanted());
  (void)served<std::monostate>(guest, ShutdownGuest{});
  CHECK(guest.machine().shutdown_wanted());
  CHECK_FALSE(guest.machine().stopped());
  REQUIRE(guest.run_action(GuestMode::Lstar));  // it runs until its owner has let it go

  guest.machine().finish_shutdown();

  CHECK(guest.machine().stop_cause() == StopCause::Shutdown);
  CHECK_FALSE(guest.machine().shutdown_wanted());
  const std::uint64_t rounds = guest.mailbox().rounds;
  for (int i = 0; i < 5; ++i) guest.round();
  CHECK(guest.mailbox().rounds == rounds);
}

}  // namespace kvmid::emulated
