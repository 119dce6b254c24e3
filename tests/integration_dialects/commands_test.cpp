// SPDX-License-Identifier: GPL-2.0-or-later
//
// Every command of tools that speak v7 and v12, on hypervisors of each kind: what it answers is what the guest itself
// says.
#include <algorithm>
#include <cstring>

#include "tests/integration_dialects/tool_scene.h"

namespace kvmid::test {
namespace {

constexpr VcpuId kVcpu0{0};
constexpr std::uint32_t kLstar = 0xc0000082;
constexpr std::uint64_t kNoMemory = std::uint64_t{1} << 40U;
constexpr std::size_t kXmm5 = 160 + 16 * 5;  // in the legacy part of an XSAVE area
constexpr std::size_t kStateBits = 512;      // XSTATE_BV
constexpr std::uint64_t kFreePages = 0x200000;

/// A tool on a hypervisor; the six pairs.
struct Pair : ToolScene {
  explicit Pair(SpokenBy hypervisor_speaks, DialectId tool_speaks, unsigned vcpus = 2)
      : ToolScene({.hypervisor = hypervisor_speaks, .tools = {tool_speaks}, .vcpus = vcpus}) {
    tool().accept();
  }
  Pair()
      : Pair(GENERATE(SpokenBy{}, SpokenBy{DialectId::V7}, SpokenBy{DialectId::V12}),
             GENERATE(DialectId::V7, DialectId::V12)) {}
  [[nodiscard]] bool v12() { return tool().codec().dialect() == DialectId::V12; }
  /// The guest does it, then nothing: its mailbox does not change any more.
  Mailbox after(GuestMode mode, std::uint64_t times = 2) {
    guest.do_times(mode, times);
    guest.set_mode(GuestMode::Idle);
    guest.wait_rounds(2);
    return guest.mailbox();
  }
  [[nodiscard]] std::string text() {
    return "hypervisor " + spoken_name(options.hypervisor) + ", tool " +
           std::string(kvmi1::name_of(tool().codec().dialect()));
  }
};

template <class Body>
Body got(Kvmi1Tool& tool, const kvmi1::Command& command) {
  return tool.call(command).as<Body>();
}

std::int32_t set_pages(Kvmi1Tool& tool, const std::vector<kvmi1::PageAccessEntry>& entries, std::uint16_t view = 0) {
  return error_of(tool, kvmi1::SetPageAccess{view, std::span<const kvmi1::PageAccessEntry>(entries)});
}

kvmi1::PageAccessEntry page(std::uint64_t gpa, std::uint8_t access) {
  kvmi1::PageAccessEntry entry;
  entry.gpa = gpa;
  entry.access = access;
  return entry;
}

/// One of each that its dialect has; none of them leaves the guest other than it was for long.
std::vector<kvmi1::Command> one_of_each(const kvmi1::Codec& codec) {
  static const std::array<std::byte, 1> byte{};
  static const std::array<std::byte, kvmi1::kXsaveSize> area{};
  static const kvmi1::PageAccessEntry entry = page(kFreePages, 7);
  const std::span<const kvmi1::PageAccessEntry> entries(&entry, 1);
  static const kvmi1::WriteBitmapEntry bitmap{kFreePages, 0xffffffffU, 0};
  const std::vector<kvmi1::Command> all{
      kvmi1::GetVersion{},
      kvmi1::GetGuestInfo{},
      kvmi1::GetVcpuInfo{kVcpu0},
      kvmi1::GetRegisters{kVcpu0, {}},
      kvmi1::SetRegisters{kVcpu0, {}},
      kvmi1::GetCpuid{kVcpu0, 0, 0},
      kvmi1::GetXsave{kVcpu0},
      kvmi1::SetXsave{kVcpu0, area},
      kvmi1::GetXcr{kVcpu0, 0},
      kvmi1::GetMtrrType{kVcpu0, Gpa{0x1000}},
      kvmi1::ReadPhysical{Gpa{kFreePages}, 8},
      kvmi1::WritePhysical{Gpa{kFreePages}, byte},
      kvmi1::GetMaxGfn{},
      kvmi1::GetMapToken{},
      kvmi1::QueryPhysical{Gfn{1}},
      kvmi1::GetNextAvailableGfn{},
      kvmi1::SetPageAccess{0, entries},
      kvmi1::ControlSpp{true},
      kvmi1::SetPageWriteBitmap{0, std::span<const kvmi1::WriteBitmapEntry>(&bitmap, 1)},
      kvmi1::SetVeInfoPage{kVcpu0, Gpa{0x1000}, false},
      kvmi1::DisableVe{kVcpu0},
      kvmi1::SetPageSve{0, false, Gpa{0x1000}},
      kvmi1::GetEptView{kVcpu0},
      kvmi1::SwitchEptView{kVcpu0, 0},
      kvmi1::ControlEptView{kVcpu0, 0, true},
      kvmi1::CreateEptView{},
      kvmi1::DestroyEptView{1},
      kvmi1::AllocGfn{kVcpu0, Gfn{1}},
      kvmi1::FreeGfn{kVcpu0, Gfn{1}},
      kvmi1::ChangeGfn{kVcpu0, std::nullopt, Gfn{1}, Gfn{2}},
      kvmi1::TranslateGva{kVcpu0, Gva{kImage}},
      kvmi1::ControlCleanup{true},
      kvmi1::ControlCr{kVcpu0, false, 4},
      kvmi1::ControlMsr{kVcpu0, false, kLstar},
      kvmi1::ControlEvents{kVcpu0, codec.number_of(EventKind::Cr).value(), false},
      kvmi1::ControlVmEvents{codec.number_of(EventKind::Unhook).value(), false},
      kvmi1::ControlSinglestep{kVcpu0, false},
      kvmi1::CheckCommand{2},
      kvmi1::CheckEvent{codec.number_of(EventKind::Cr).value()}};
  std::vector<kvmi1::Command> has;
  std::copy_if(all.begin(), all.end(), std::back_inserter(has), [&](const kvmi1::Command& command) {
    return codec.number_of(kvmi1::kind_of_command(command)).has_value();
  });
  return has;
}

}  // namespace

TEST_CASE("commands: facts of the guest", "[integration][dialects]") {
  Pair pair;
  INFO(pair.text());
  Kvmi1Tool& tool = pair.tool();
  const auto reply = tool.call(kvmi1::GetVersion{});
  const auto version = reply.as<kvmi1::GetVersionReply>();
  CHECK(version.version == 1);
  CHECK(version.max_message == (pair.v12() ? 8184U : 0U));
  CHECK(version.singlestep);
  CHECK_FALSE((version.spp || version.vmfunc || version.eptp || version.ve));
  CHECK(reply.bytes->size() == 8 + 24);
  AgentClient agent = attach(pair.daemon.agent_socket(), pair.guest.uuid());
  const auto facts = check(agent.guest_info());
  CHECK(got<kvmi1::GetGuestInfoReply>(tool, kvmi1::GetGuestInfo{}).vcpu_count == 2);
  CHECK(got<kvmi1::GetVcpuInfoReply>(tool, kvmi1::GetVcpuInfo{VcpuId{1}}).tsc_hz == facts.tsc_hz);
  CHECK(error_of(tool, kvmi1::GetVcpuInfo{VcpuId{2}}) == -kvmi1::kEinval);
  if (!pair.v12()) CHECK(got<kvmi1::GfnReply>(tool, kvmi1::GetMaxGfn{}).gfn.value == kRamBytes / kvmi1::kPageSize);
}

TEST_CASE("commands: registers and MSRs", "[integration][dialects]") {
  Pair pair;
  INFO(pair.text());
  Kvmi1Tool& tool = pair.tool();
  for (const GuestMode mode : {GuestMode::Cr3, GuestMode::Cr4, GuestMode::Cr0}) pair.after(mode);
  const Mailbox box = pair.after(GuestMode::Lstar);
  const std::array<std::uint32_t, 3> indices{kLstar, 0xc0000080, 0x176};
  const auto reply = tool.call(kvmi1::GetRegisters{kVcpu0, std::span<const std::uint32_t>(indices)});
  const auto& state = reply.as<kvmi1::GetRegistersReply>();
  CHECK(reply.bytes->size() == 8 + 8 + 472 + 16 * indices.size());
  CHECK(state.mode == 8);
  CHECK(state.sregs.cr3 == box.cr3);
  CHECK(state.sregs.cr4 == box.cr4);
  CHECK(state.sregs.cr0 == box.cr0);
  REQUIRE(state.msrs.size() == indices.size());
  CHECK(state.msrs[0].index == kLstar);
  CHECK(state.msrs[0].value == box.lstar);
  CHECK((state.msrs[1].value & 0x500) == 0x500);  // EFER: long mode, on and active
  CHECK(state.regs.rip >= kImage);
  CHECK(state.regs.rip < kRamBytes);

  // Outside of an event they cannot be set; during one they are those that the vCPU goes on with.
  CHECK(error_of(tool, kvmi1::SetRegisters{kVcpu0, state.regs}) == -kvmi1::kEopnotsupp);
  const std::uint64_t place = emulated::kProtectedPage.value;
  need(tool, events_command(tool, EventKind::PageFault));
  set_page(tool, place, 5);
  const auto stores = pair.guest.done(GuestMode::Store);
  pair.guest.set_mode(GuestMode::Store);
  const auto event = expect(tool, EventKind::PageFault);
  pair.guest.set_mode(GuestMode::Idle);
  set_page(tool, place, 7);
  auto regs = event.event.regs;
  regs.rax = 0x1122334455667788;
  need(tool, kvmi1::SetRegisters{kVcpu0, regs});
  tool.reply(event, kvmi1::kRetry);
  REQUIRE(wait_until([&] { return pair.guest.done(GuestMode::Store) > stores; }));
  CHECK(pair.guest.memory().read_u64(Gpa{place}) == regs.rax);
}

TEST_CASE("commands: CPUID, XCR, XSAVE and memory types", "[integration][dialects]") {
  Pair pair;
  INFO(pair.text());
  Kvmi1Tool& tool = pair.tool();
  pair.guest.set_field(offsetof(Mailbox, arg_cpuid_function), 1);
  const auto cpuid = pair.after(GuestMode::Cpuid).cpuid;
  const auto leaf = got<kvmi1::GetCpuidReply>(tool, kvmi1::GetCpuid{kVcpu0, 1, 0});
  // Which vCPU and what is enabled is in some of its bits; the others are the processor's.
  CHECK(leaf.eax == cpuid[0]);
  CHECK(leaf.edx == cpuid[3]);
  CHECK(error_of(tool, kvmi1::GetCpuid{kVcpu0, 0x12345678, 0}) == -kvmi1::kEnoent);

  const auto xcr0 = pair.after(GuestMode::Xsetbv, 1).xcr0;
  CHECK(got<kvmi1::GetXcrReply>(tool, kvmi1::GetXcr{kVcpu0, 0}).value == xcr0);
  CHECK(error_of(tool, kvmi1::GetXcr{kVcpu0, 1}) == -kvmi1::kEinval);

  const auto sse = pair.after(GuestMode::Sse, 3).sse;
  {
    const auto reply = tool.call(kvmi1::GetXsave{kVcpu0});
    const auto area = reply.as<kvmi1::GetXsaveReply>().area;
    REQUIRE(area.size() == 4096);
    CHECK(std::memcmp(area.data() + kXmm5, sse.data(), sizeof sse) == 0);
  }
  CHECK(got<kvmi1::GetMtrrTypeReply>(tool, kvmi1::GetMtrrType{kVcpu0, Gpa{0x1000}}).type == 6);  // no MTRRs: write-back

  // The guest adds one to each half of what it finds.
  need(tool, kvmi1::PauseVcpu{kVcpu0, true});
  const auto pause = expect(tool, EventKind::Pause);
  const auto reply = tool.call(kvmi1::GetXsave{kVcpu0});
  const auto held = reply.as<kvmi1::GetXsaveReply>().area;
  std::vector<std::byte> area(held.begin(), held.end());
  const std::array<std::uint64_t, 2> wanted{0x1000, 0x2000};
  std::memcpy(area.data() + kXmm5, wanted.data(), sizeof wanted);
  area.at(kStateBits) |= std::byte{3};
  need(tool, kvmi1::SetXsave{kVcpu0, area});
  const auto rounds = pair.guest.done(GuestMode::Sse);
  pair.guest.set_mode(GuestMode::Sse);
  tool.go_on(pause);
  REQUIRE(wait_until([&] { return pair.guest.done(GuestMode::Sse) > rounds; }));
  pair.guest.set_mode(GuestMode::Idle);
  pair.guest.wait_rounds(2);
  const auto seen = pair.guest.mailbox().sse;
  CHECK(seen[0] == wanted[0] + pair.guest.done(GuestMode::Sse) - rounds);
  CHECK(seen[1] == wanted[1] + pair.guest.done(GuestMode::Sse) - rounds);
}

TEST_CASE("commands: addresses", "[integration][dialects]") {
  Pair pair;
  INFO(pair.text());
  Kvmi1Tool& tool = pair.tool();
  const auto translated = [&](std::uint64_t gva) {
    return got<kvmi1::TranslateGvaReply>(tool, kvmi1::TranslateGva{kVcpu0, Gva{gva}}).gpa;
  };
  CHECK(translated(kImage + 0x123) == kImage + 0x123);
  CHECK(translated(pair.guest.mailbox().hammer_gva) == pair.guest.mailbox().hammer_gpa);
  const bool first_root =
      got<kvmi1::GetRegistersReply>(tool, kvmi1::GetRegisters{kVcpu0, {}}).sregs.cr3 == emulated::kRootA;
  CHECK(translated(KVMID_GUEST_WINDOW_GVA) == (first_root ? KVMID_GUEST_WINDOW_A_GPA : KVMID_GUEST_WINDOW_B_GPA));
  CHECK(translated(0x7fff12345678) == kvmi1::kNoAddress);  // mapped by nobody: success
}

TEST_CASE("commands: memory", "[integration][dialects]") {
  Pair pair;
  INFO(pair.text());
  Kvmi1Tool& tool = pair.tool();
  for (const auto& [gpa, size] :
       {std::pair{kImage, 4096U}, {kImage + 1, 4095U}, {kImage + 4095, 1U}, {kRamBytes - 8, 8U}}) {
    INFO(gpa << " " << size);
    CHECK(read_bytes(tool, Gpa{gpa}, size) == raw_memory(pair.guest, Gpa{gpa}, size));
  }
  const auto read_error = [&](std::uint64_t gpa, std::uint64_t size) {
    return error_of(tool, kvmi1::ReadPhysical{Gpa{gpa}, size});
  };
  CHECK(read_error(kImage, 0) == -kvmi1::kEinval);
  CHECK(read_error(kImage, 4097) == -kvmi1::kEinval);
  CHECK(read_error(kImage + 1, 4096) == -kvmi1::kEinval);
  if (!pair.v12()) CHECK(read_error(kImage, ~std::uint64_t{0}) == -kvmi1::kEinval);  // v12 has 16 bits
  CHECK(read_error(kNoMemory, 8) == -kvmi1::kEnoent);
  CHECK(read_error(~std::uint64_t{0}, 1) == -kvmi1::kEnoent);

  std::vector<std::byte> data(kvmi1::kPageSize);
  for (std::size_t i = 0; i < data.size(); ++i) data[i] = static_cast<std::byte>(i * 7);
  need(tool, kvmi1::WritePhysical{Gpa{kFreePages}, data});
  CHECK(raw_memory(pair.guest, Gpa{kFreePages}, data.size()) == data);
  const auto write_error = [&](std::uint64_t gpa, std::size_t size) {
    return error_of(tool, kvmi1::WritePhysical{Gpa{gpa}, Bytes(data).first(size)});
  };
  CHECK(write_error(kFreePages + 1, 4096) == -kvmi1::kEinval);
  CHECK(write_error(kFreePages, 0) == -kvmi1::kEinval);
  CHECK(write_error(kNoMemory, 8) == -kvmi1::kEnoent);
  CHECK(raw_memory(pair.guest, Gpa{kFreePages}, data.size()) == data);
  CHECK(error_of(tool, kvmi1::GetRegisters{VcpuId{2}, {}}) == -kvmi1::kEinval);
}

TEST_CASE("commands: page access", "[integration][dialects]") {
  Pair pair;
  INFO(pair.text());
  Kvmi1Tool& tool = pair.tool();
  std::vector<kvmi1::PageAccessEntry> entries;
  for (std::uint64_t i = 0; i < 510; ++i) entries.push_back(page(kFreePages + i * 2 * kvmi1::kPageSize, 5));
  entries.push_back(page(emulated::kProtectedPage.value, 5));
  REQUIRE(set_pages(tool, entries) == 0);  // 511: as many as a message holds
  CHECK(pair.agent_json("tool0").at("pages") == 511);
  need(tool, events_command(tool, EventKind::PageFault));
  pair.guest.do_times(GuestMode::Load, 1);
  const auto stores = pair.guest.done(GuestMode::Store);
  pair.guest.set_mode(GuestMode::Store);
  const auto event = expect(tool, EventKind::PageFault);
  pair.guest.set_mode(GuestMode::Idle);
  const auto& fault = std::get<PageFaultData>(event.event.data);
  CHECK(fault.access == KVMI_PAGE_ACCESS_W);
  CHECK((fault.gpa.value & ~std::uint64_t{0xfff}) == emulated::kProtectedPage.value);
  for (auto& entry : entries) entry.access = 7;
  REQUIRE(set_pages(tool, entries) == 0);
  tool.reply(event, kvmi1::kRetry);
  REQUIRE(wait_until([&] { return pair.guest.done(GuestMode::Store) > stores; }));
  CHECK(silent(tool));
  CHECK(pair.agent_json("tool0").at("pages") == 0);

  CHECK(set_pages(tool, {}) == 0);
  CHECK(set_pages(tool, {page(kFreePages, KVMI_PAGE_ACCESS_W)}) == -kvmi1::kEinval);
  CHECK(set_pages(tool, {page(kFreePages, 16)}) == -kvmi1::kEinval);
  CHECK(set_pages(tool, {page(kNoMemory, 5)}) == (pair.v12() ? -kvmi1::kEinval : 0));
  if (!pair.v12()) {
    CHECK(set_pages(tool, {page(kFreePages, 5)}, 1) == -kvmi1::kEopnotsupp);
    CHECK(set_pages(tool, {page(kFreePages, 5)}, 3) == -kvmi1::kEinval);
  }
  // A bad entry is told, the good ones are set.
  CHECK(set_pages(tool, {page(kFreePages, 5), page(kFreePages + 0x1000, 16), page(kFreePages + 0x2000, 5)}) ==
        -kvmi1::kEinval);
  CHECK(pair.agent_json("tool0").at("pages") == 2);
}

TEST_CASE("commands: what cannot be had is unsupported, and CHECK_COMMAND says so first", "[integration][dialects]") {
  Pair pair;
  INFO(pair.text());
  Kvmi1Tool& tool = pair.tool();
  std::size_t unsupported = 0;
  for (const auto& command : one_of_each(tool.codec())) {
    const auto kind = kvmi1::kind_of_command(command);
    INFO(kvmi1::name_of(kind));
    const std::int32_t checked = error_of(tool, kvmi1::CheckCommand{*tool.codec().number_of(kind)});
    const std::int32_t error = error_of(tool, command);
    CHECK(error != -kvmi1::kEperm);  // policy allows everything
    if (kind == kvmi1::kind_of<kvmi1::SetRegisters> || kind == kvmi1::kind_of<kvmi1::SetXsave>) {
      CHECK(checked == 0);  // it depends on the moment
      continue;
    }
    CHECK(checked == (error == -kvmi1::kEopnotsupp ? -kvmi1::kEperm : 0));
    CHECK((error == 0 || error == -kvmi1::kEopnotsupp));
    if (error != 0) ++unsupported;
  }
  // SPP, its bitmaps, #VE, views, gfns that change, tokens: in v7 all of them, and the memory map where it has none.
  CHECK(unsupported == (pair.v12() ? 0U : pair.options.hypervisor ? 14U : 12U));
  if (pair.v12())
    CHECK(error_of(tool, kvmi1::ControlCleanup{false}) == -kvmi1::kEopnotsupp);
  else
    CHECK(error_of(tool, kvmi1::SwitchEptView{kVcpu0, 1}) == -kvmi1::kEopnotsupp);
}

TEST_CASE("commands: CHECK_COMMAND and CHECK_EVENT tell the truth about a policy", "[integration][dialects]") {
  const SpokenBy hypervisor = GENERATE(SpokenBy{}, SpokenBy{DialectId::V7}, SpokenBy{DialectId::V12});
  const DialectId dialect = GENERATE(DialectId::V7, DialectId::V12);
  INFO("hypervisor " << spoken_name(hypervisor) << ", tool " << kvmi1::name_of(dialect));
  Json rights = Json::object();
  rights["commands"] = Json::array({"GET_VERSION", "GET_GUEST_INFO", "READ_PHYSICAL", "CONTROL_EVENTS", "GET_CPUID"});
  rights["events"] = Json::array({"cr", "page_fault"});
  ToolScene scene({.hypervisor = hypervisor, .tools = {dialect}, .rule_overrides = rights});
  Kvmi1Tool& tool = scene.tool();
  tool.accept();
  std::size_t allowed = 0, forbidden = 0;
  for (const auto& command : one_of_each(tool.codec())) {
    const auto kind = kvmi1::kind_of_command(command);
    INFO(kvmi1::name_of(kind));
    const std::int32_t checked = error_of(tool, kvmi1::CheckCommand{*tool.codec().number_of(kind)});
    const std::int32_t error = error_of(tool, command);
    const bool refused = error == -kvmi1::kEperm || error == -kvmi1::kEopnotsupp;
    CHECK(checked == (refused ? -kvmi1::kEperm : 0));
    ++(refused ? forbidden : allowed);
  }
  CHECK(allowed >= 8);
  CHECK(forbidden >= 8);
  for (const EventKind kind : {EventKind::Cr, EventKind::PageFault, EventKind::Msr, EventKind::Breakpoint,
                               EventKind::Hypercall, EventKind::Xsetbv, EventKind::Descriptor}) {
    INFO(name_of(kind));
    const bool may = kind == EventKind::Cr || kind == EventKind::PageFault;
    const auto command = events_command(tool, kind);
    CHECK(error_of(tool, kvmi1::CheckEvent{command.event}) == (may ? 0 : -kvmi1::kEperm));
    CHECK(error_of(tool, command) == (may ? 0 : -kvmi1::kEperm));
  }
}

TEST_CASE("commands: an unknown one is answered, and the connection stays", "[integration][dialects]") {
  Pair pair;
  INFO(pair.text());
  Kvmi1Tool& tool = pair.tool();
  const kvmi_msg_hdr header{.id = 999, .size = 0, .seq = tool.next_seq().value};
  tool.send_bytes(std::as_bytes(std::span(&header, 1)));
  const auto message = tool.next();
  CHECK(message.frame.id == 999);
  CHECK(message.frame.seq.value == header.seq);
  CHECK(message.bytes->size() == 16);
  CHECK(std::get<kvmi1::Reply>(message.message).error == -kvmi1::kEnosys);
  CHECK(tool.call(kvmi1::GetVersion{}).ok());
}

TEST_CASE("commands: extreme values are answered, and cost the guest nothing", "[integration][dialects]") {
  Pair pair;
  INFO(pair.text());
  Kvmi1Tool& tool = pair.tool();
  const bool counted = GENERATE(true, false);
  if (counted) need(tool, kvmi1::GetGuestInfo{});
  AgentClient agent = attach(pair.daemon.agent_socket(), pair.guest.wait_online().uuid());
  constexpr std::uint64_t kAll = ~std::uint64_t{0};
  constexpr std::uint64_t kLastPage = kAll - 0xfff;
  static const std::array<std::byte, 2> two{};
  const auto codec_has = [&](const kvmi1::Command& command) {
    return tool.codec().number_of(kvmi1::kind_of_command(command)).has_value();
  };
  std::vector<kvmi1::Command> commands{kvmi1::ReadPhysical{Gpa{kAll}, 1},
                                       kvmi1::ReadPhysical{Gpa{kLastPage}, 4096},
                                       kvmi1::ReadPhysical{Gpa{std::uint64_t{1} << 63U}, 1},
                                       kvmi1::WritePhysical{Gpa{kAll}, Bytes(two).first(1)},
                                       kvmi1::WritePhysical{Gpa{kAll - 1}, two},
                                       kvmi1::QueryPhysical{Gfn{kAll}},
                                       kvmi1::GetMtrrType{kVcpu0, Gpa{kAll}},
                                       kvmi1::TranslateGva{kVcpu0, Gva{kAll}},
                                       kvmi1::TranslateGva{kVcpu0, Gva{std::uint64_t{1} << 63U}},
                                       kvmi1::GetCpuid{kVcpu0, ~0U, ~0U}};
  for (const std::uint32_t cr : {1U, 2U, 5U, 8U, 255U}) commands.push_back(kvmi1::ControlCr{kVcpu0, true, cr});
  for (const std::uint32_t msr : {0x2000U, 0x80000000U, 0xbfffffffU, 0xc0002000U, ~0U})
    commands.push_back(kvmi1::ControlMsr{kVcpu0, true, msr});
  for (const unsigned vector : {2U, 32U, 128U, 255U})
    commands.push_back(kvmi1::InjectException{.vcpu = VcpuId{7}, .vector = static_cast<std::uint8_t>(vector)});
  for (const unsigned vector : {32U, 128U, 255U})
    commands.push_back(kvmi1::InjectException{.vcpu = kVcpu0, .vector = static_cast<std::uint8_t>(vector)});
  for (const unsigned xcr : {1U, 255U}) commands.push_back(kvmi1::GetXcr{kVcpu0, static_cast<std::uint8_t>(xcr)});
  for (const unsigned number : {2U, 255U, 0x7fffU, 0xffffU}) {
    const VcpuId none{static_cast<std::uint16_t>(number)};
    for (const kvmi1::Command& command : std::initializer_list<kvmi1::Command>{
             kvmi1::GetVcpuInfo{none}, kvmi1::PauseVcpu{none, true}, kvmi1::GetRegisters{none, {}},
             kvmi1::SetRegisters{none, {}}, kvmi1::GetCpuid{none, 0, 0}, kvmi1::GetXsave{none}, kvmi1::GetXcr{none, 0},
             kvmi1::GetMtrrType{none, Gpa{0}}, kvmi1::TranslateGva{none, Gva{kImage}}, kvmi1::ControlCr{none, true, 4},
             kvmi1::ControlMsr{none, true, kLstar}, kvmi1::ControlSinglestep{none, true},
             kvmi1::InjectException{.vcpu = none, .vector = 3}, events_command(tool, EventKind::Cr, true, none)})
      commands.push_back(command);
  }
  for (const auto& command : commands) {
    if (!codec_has(command)) continue;
    INFO(kvmi1::name_of(kvmi1::kind_of_command(command)) << " " << (&command - commands.data()));
    const auto reply = tool.call(command);
    const bool succeeds = std::holds_alternative<kvmi1::GetMtrrTypeReply>(reply.reply.body) ||
                          std::holds_alternative<kvmi1::TranslateGvaReply>(reply.reply.body);
    CHECK((reply.reply.error != 0 || succeeds));
    const bool is_query = std::holds_alternative<kvmi1::QueryPhysical>(command);
    CHECK((reply.reply.error != -kvmi1::kEopnotsupp || is_query));
  }
  for (const std::uint64_t gpa : {kAll, kLastPage, std::uint64_t{1} << 63U})
    CHECK(set_pages(tool, {page(gpa, 5)}) == (pair.v12() ? -kvmi1::kEinval : 0));
  CHECK(set_pages(tool, {page(kLastPage, 5), page(0, 5)}) == (pair.v12() ? -kvmi1::kEinval : 0));
  // Nobody else noticed anything.
  CHECK(read_mailbox(agent, 0, offsetof(Mailbox, magic)) == emulated::kMailboxMagic);
  CHECK(log_of(pair.daemon.process()).find("hypervisor gone") == std::string::npos);
  for (const GuestMode mode : {GuestMode::Cr4, GuestMode::Lstar}) pair.guest.do_times(mode, 1);
  CHECK(silent(tool));
}

}  // namespace kvmid::test
