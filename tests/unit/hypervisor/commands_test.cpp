// SPDX-License-Identifier: GPL-2.0-or-later
#include <catch2/catch.hpp>

#include <string>

#include "hypervisor/server/commands.h"
#include "hypervisor/server/session.h"
#include "tests/unit/hypervisor/recording_backend.h"

namespace kvmid::hypervisor {

namespace {

/// The error of a command, with its text checked for a word.
ErrorCode refused(RecordingBackend& backend, const Command& command, const std::string& word) {
  Patches patches(backend);
  CommandServer server(backend, patches);
  const CommandReply reply = server.serve(command);
  CAPTURE(std::string(reply.text), word);
  CHECK(reply.text.find(word) != std::string_view::npos);
  CHECK(std::holds_alternative<std::monostate>(reply.body));
  return reply.error;
}

template <class T>
T done(RecordingBackend& backend, const Command& command) {
  Patches patches(backend);
  CommandServer server(backend, patches);
  const CommandReply reply = server.serve(command);
  CAPTURE(std::string(reply.text));
  REQUIRE(reply.error == ErrorCode::None);
  return std::get<T>(reply.body);
}

void done(RecordingBackend& backend, const Command& command) { done<std::monostate>(backend, command); }

kvmi_page_access_entry page(std::uint64_t gpa, std::uint32_t pages, std::uint8_t access) {
  kvmi_page_access_entry entry{};
  entry.gpa = gpa;
  entry.pages = pages;
  entry.access = access;
  return entry;
}

Command set_access(const std::vector<kvmi_page_access_entry>& entries) {
  SetPageAccess command;
  command.entries = std::span<const kvmi_page_access_entry>(entries);
  return command;
}

}  // namespace

TEST_CASE("GET_VERSION names what is served and no more", "[server]") {
  RecordingBackend backend;
  const auto version = done<GetVersionReply>(backend, GetVersion{});

  CHECK(version.version == 2);
  CHECK(version.commands.bits == kServedCommands);
  CHECK(version.events == backend.facts().events);
  // Whatever is not in the mask is refused, whatever is in it is not unknown.
  const std::vector<Command> all = {
      GetVersion{},      GetGuests{},    GetGuestInfo{},  PauseVcpu{},     GetRegisters{}, SetRegisters{},
      ShutdownGuest{},   GetCpuid{},     GetPageAccess{}, SetPageAccess{}, InjectException{},
      ReadPhysical{},    WritePhysical{}, GrantMemory{},  ControlEvents{}, ControlCr{},    ControlMsr{},
      TranslateGva{},    ControlSinglestep{}, SetFilter{}, GetXsave{},     SetXsave{},     GetXcr{}};
  for (const auto& command : all) {
    CAPTURE(std::string(name_of(id_of(command))));
    const bool served = ((version.commands.bits >> static_cast<unsigned>(id_of(command))) & 1) != 0;
    Patches patches(backend);
    CommandServer server(backend, patches);
    CHECK((server.serve(command).error != ErrorCode::NotServed) == served);
  }
}

TEST_CASE("commands for vCPUs that are not there", "[server]") {
  RecordingBackend backend;
  CHECK(refused(backend, PauseVcpu{VcpuId{2}}, "the guest has 2") == ErrorCode::Invalid);
  CHECK(refused(backend, GetRegisters{kAllVcpus, {}}, "no vCPU 65535") == ErrorCode::Invalid);
  CHECK(refused(backend, SetRegisters{VcpuId{9}, {}}, "no vCPU 9") == ErrorCode::Invalid);
  CHECK(refused(backend, InjectException{VcpuId{2}, 3}, "no vCPU 2") == ErrorCode::Invalid);
  CHECK(refused(backend, ControlCr{VcpuId{2}, true, 3}, "no vCPU 2") == ErrorCode::Invalid);
}

TEST_CASE("PAUSE_VCPU goes to one vCPU or to all", "[server]") {
  RecordingBackend backend;
  done(backend, PauseVcpu{VcpuId{1}});
  done(backend, PauseVcpu{kAllVcpus});
  CHECK(backend.paused == std::vector<std::uint16_t>{1, 0, 1});
}

TEST_CASE("GET_REGISTERS with a list of MSRs", "[server]") {
  RecordingBackend backend;
  const std::vector<std::uint32_t> msrs = {0x10, 0xc0000082};
  Patches patches(backend);
  CommandServer server(backend, patches);
  GetRegisters command;
  command.vcpu = VcpuId{1};
  command.msrs = std::span<const std::uint32_t>(msrs);
  const CommandReply reply = server.serve(command);
  const auto& body = std::get<GetRegistersReply>(reply.body);
  CHECK(body.regs.rip == 0x1001);
  REQUIRE(body.msrs.size() == 2);
  CHECK(body.msrs[1].index == 0xc0000082);
  CHECK(body.msrs[1].value == 0x180000104);

  const std::vector<std::uint32_t> unknown = {0xdead};
  command.msrs = std::span<const std::uint32_t>(unknown);
  CHECK(refused(backend, command, "no such MSR") == ErrorCode::Invalid);
}

TEST_CASE("page rights are set as a whole or not at all", "[server]") {
  RecordingBackend backend;
  const std::vector<kvmi_page_access_entry> bad_second = {page(0x0, 1, KVMI_PAGE_ACCESS_R), page(0x3000, 2, 0)};
  CHECK(refused(backend, set_access(bad_second), "entry 1:") == ErrorCode::Fault);
  CHECK(backend.page_access(Gfn{0}) == x86::kRightsAll);

  CHECK(refused(backend, set_access({}), "no entries") == ErrorCode::Invalid);
  CHECK(refused(backend, set_access({page(0x10, 1, 1)}), "not the start of a page") == ErrorCode::Invalid);
  CHECK(refused(backend, set_access({page(0, 0, 1)}), "0 pages") == ErrorCode::Invalid);
  CHECK(refused(backend, set_access({page(0, 1, KVMI_PAGE_ACCESS_W)}), "entry 0") == ErrorCode::Invalid);
  CHECK(refused(backend, set_access({page(0, 1, KVMI_PAGE_ACCESS_X)}), "entry 0") == ErrorCode::Invalid);
  CHECK(refused(backend, set_access({page(0, 1, 8)}), "entry 0") == ErrorCode::Invalid);
  CHECK(refused(backend, set_access({page(~0xfffull, 0xffffffff, 1)}), "entry 0") == ErrorCode::Fault);
  SetPageAccess smm;
  smm.space = AddressSpace::Smm;
  CHECK(refused(backend, smm, "SMM") == ErrorCode::NotSupported);

  const std::vector<kvmi_page_access_entry> good = {page(0x1000, 2, KVMI_PAGE_ACCESS_R), page(0x3000, 1, 0)};
  done(backend, set_access(good));
  Patches patches(backend);
  CommandServer server(backend, patches);
  const CommandReply reply = server.serve(GetPageAccess{Gpa{0}, 4, AddressSpace::Normal});
  const auto& entries = std::get<GetPageAccessReply>(reply.body).entries;
  REQUIRE(entries.size() == 3);
  CHECK((entries[0].pages == 1 && entries[0].access == x86::kRightsAll));
  CHECK((entries[1].gpa == 0x1000 && entries[1].pages == 2 && entries[1].access == KVMI_PAGE_ACCESS_R));
  CHECK((entries[2].gpa == 0x3000 && entries[2].access == 0));
  CHECK(refused(backend, GetPageAccess{Gpa{0}, 5, AddressSpace::Normal}, "guest RAM") == ErrorCode::Fault);
  CHECK(refused(backend, GetPageAccess{Gpa{0}, 0, AddressSpace::Normal}, "0 pages") == ErrorCode::Invalid);
}

TEST_CASE("memory is read in ranges and written", "[server]") {
  RecordingBackend backend;
  const std::array<std::byte, 2> data = {std::byte{1}, std::byte{2}};
  WritePhysical write;
  write.gpa = Gpa{0xfff};
  write.data = data;
  done<WritePhysicalReply>(backend, write);

  const std::vector<kvmi_read_range> ranges = {{0x1000, 1, 0}, {0xffe, 2, 0}};
  ReadPhysical read;
  read.ranges = std::span<const kvmi_read_range>(ranges);
  Patches patches(backend);
  CommandServer server(backend, patches);
  const CommandReply reply = server.serve(read);
  const auto& body = std::get<ReadPhysicalReply>(reply.body);
  REQUIRE(body.data.size() == 3);
  CHECK(body.data[0] == std::byte{2});
  CHECK(body.data[2] == std::byte{1});

  const auto one = [&](std::uint64_t gpa, std::uint32_t size, const std::string& word) {
    const std::vector<kvmi_read_range> range = {{gpa, size, 0}};
    ReadPhysical command;
    command.ranges = std::span<const kvmi_read_range>(range);
    return refused(backend, command, word);
  };
  CHECK(one(0x3fff, 2, "range 0") == ErrorCode::Fault);
  CHECK(one(~0ull, 2, "range 0") == ErrorCode::Fault);
  CHECK(one(0, 0, "0 bytes") == ErrorCode::Invalid);
  CHECK(refused(backend, ReadPhysical{}, "no ranges") == ErrorCode::Invalid);
  write.flags = KVMI_WRITE_COOKIE;
  CHECK(refused(backend, write, "cookies are kept by kvmid") == ErrorCode::NotSupported);
  write.flags = 0;
  write.gpa = Gpa{0x3fff};
  CHECK(refused(backend, write, "0x4000") == ErrorCode::Fault);
}

TEST_CASE("a reply that would be larger than a message is refused", "[server]") {
  RecordingBackend backend;
  const std::vector<kvmi_read_range> ranges(5, kvmi_read_range{0, 0x4000, 0});
  ReadPhysical read;
  read.ranges = std::span<const kvmi_read_range>(ranges);
  CHECK(refused(backend, read, "do not fit") == ErrorCode::TooBig);
  const std::vector<std::uint32_t> msrs(5000, 0x10);
  GetRegisters registers;
  registers.msrs = std::span<const std::uint32_t>(msrs);
  CHECK(refused(backend, registers, "5000 MSRs") == ErrorCode::TooBig);
}

TEST_CASE("CONTROL_EVENTS sets, adds, takes away and tells the outcome", "[server]") {
  RecordingBackend backend;
  const auto control = [&](VcpuId vcpu, Operation operation, std::uint64_t bits) {
    return done<ControlEventsReply>(backend, ControlEvents{vcpu, operation, Role::Decider, EventSet{bits}}).events.bits;
  };
  constexpr std::uint64_t kCr = KVMI_EVENT_BIT(KVMI_EVENT_CR), kCall = KVMI_EVENT_BIT(KVMI_EVENT_HYPERCALL);

  CHECK(control(VcpuId{0}, Operation::Set, kCr) == kCr);
  CHECK(control(VcpuId{0}, Operation::Enable, kCall) == (kCr | kCall));
  CHECK(control(kAllVcpus, Operation::Enable, kCall) == kCall);  // CR is on for one of them only
  CHECK(control(VcpuId{0}, Operation::Disable, kCall) == kCr);
  CHECK(backend.hooks().watches(VcpuId{1}, EventKind::Hypercall));
  CHECK_FALSE(backend.hooks().watches(VcpuId{0}, EventKind::Hypercall));
  CHECK(backend.hook_changes == 4);

  CHECK(refused(backend, ControlEvents{VcpuId{0}, Operation::Enable, Role::Decider, EventSet{1u << KVMI_EVENT_MSR}},
                "msr") == ErrorCode::NotSupported);
  CHECK(refused(backend, ControlEvents{VcpuId{0}, Operation::Enable, Role::Observer, EventSet{kCr}}, "observers") ==
        ErrorCode::NotSupported);
}

TEST_CASE("CRs and MSRs are watched on top of their event", "[server]") {
  RecordingBackend backend;
  done(backend, ControlCr{kAllVcpus, true, 3});
  CHECK_FALSE(backend.hooks().watches_cr(VcpuId{0}, 3));
  const EventSet cr_events{1u << KVMI_EVENT_CR};
  done<ControlEventsReply>(backend, ControlEvents{VcpuId{0}, Operation::Set, Role::Decider, cr_events});
  CHECK(backend.hooks().watches_cr(VcpuId{0}, 3));
  CHECK_FALSE(backend.hooks().watches_cr(VcpuId{0}, 4));
  CHECK_FALSE(backend.hooks().watches_cr(VcpuId{1}, 3));
  done(backend, ControlCr{kAllVcpus, false, 3});
  CHECK_FALSE(backend.hooks().watches_cr(VcpuId{0}, 3));

  CHECK(refused(backend, ControlCr{VcpuId{0}, true, 2}, "CR2") == ErrorCode::Invalid);
  CHECK(refused(backend, ControlMsr{VcpuId{0}, true, 0x2000}, "0x2000") == ErrorCode::Invalid);
  done(backend, ControlMsr{VcpuId{0}, true, 0x4b564dff});
}

TEST_CASE("CONTROL_SINGLESTEP is for one vCPU, on top of its event, where the backend steps", "[server]") {
  RecordingBackend backend;
  CHECK(refused(backend, ControlSinglestep{VcpuId{0}, true}, "does not serve") == ErrorCode::NotServed);
  backend.change_facts().commands.add(CommandId::ControlSinglestep);
  CHECK(refused(backend, ControlSinglestep{VcpuId{2}, true}, "no vCPU 2") == ErrorCode::Invalid);

  done(backend, ControlSinglestep{VcpuId{1}, true});
  CHECK_FALSE(backend.hooks().singlesteps(VcpuId{1}));
  EventSet events;
  events.add(EventKind::Singlestep);
  backend.hooks().set_events(VcpuId{1}, events);
  CHECK(backend.hooks().singlesteps(VcpuId{1}));
  CHECK_FALSE(backend.hooks().singlesteps(VcpuId{0}));
  done(backend, ControlSinglestep{VcpuId{1}, false});
  CHECK_FALSE(backend.hooks().singlesteps(VcpuId{1}));
}

TEST_CASE("an exception that cannot be injected is refused by rule", "[server]") {
  RecordingBackend backend;
  InjectException command;
  command.vector = 14;
  CHECK(refused(backend, command, "vector 14") == ErrorCode::Invalid);  // its error code is missing
  command.vector = 32;
  CHECK(refused(backend, command, "vector 32") == ErrorCode::Invalid);
  command.vector = 3;
  done(backend, command);
  CHECK(backend.injected->vector == 3);
  CHECK(refused(backend, command, "waits already") == ErrorCode::Busy);
}

}  // namespace kvmid::hypervisor
