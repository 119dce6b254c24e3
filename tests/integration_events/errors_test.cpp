// SPDX-License-Identifier: GPL-2.0-or-later
// Every error that PROTOCOL.md documents (tests/vectors/documented_errors.json), provoked through the real kvmid on the
// emulated guest; and every command and event that policy refuses.
#include <catch2/catch.hpp>
#include <csignal>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "tests/integration_events/state_commands.h"

using namespace kvmid;
using namespace kvmid::test;

namespace {

constexpr std::uint64_t kRamBytes = 16U << 20U;  // kvmi-emu's default
constexpr VcpuId kVcpu{0}, kNoVcpu{7};
constexpr std::uint32_t kLstar = 0xc0000082;
constexpr std::uint8_t kRx = KVMI_PAGE_ACCESS_R | KVMI_PAGE_ACCESS_X;

ErrorCode told(Stage& stage, const Command& command) {
  const auto reply = check(stage.agent.call(command));
  if (!reply.ok()) CHECK_FALSE(reply.text().empty());
  return reply.error();
}

client::ReceivedEvent pause(Stage& stage, unsigned vcpu = 0) {
  check(stage.agent.pause_vcpu(VcpuId{static_cast<std::uint16_t>(vcpu)}));
  return stage.next_event();
}

ErrorCode noticed(Stage& stage) {
  const auto notice = stage.next_notice();
  CHECK(notice.kind == NoticeKind::ReplyRefused);
  CHECK_FALSE(notice.text.empty());
  return notice.error;
}

kvmi_page_access_entry pages(std::uint64_t gpa, std::uint32_t count, std::uint8_t access) {
  return {gpa, count, access, {}};
}

ErrorCode set_access(Stage& stage, const kvmi_page_access_entry& entry, AddressSpace space = AddressSpace::Normal) {
  return told(stage, SetPageAccess{space, std::span<const kvmi_page_access_entry>(&entry, 1)});
}

/// So many times "vcpu == 0".
ErrorCode filter(Stage& stage, EventKind event, std::size_t terms) {
  kvmi_filter_term term{};
  term.field = KVMI_FILTER_VCPU;
  const std::vector<kvmi_filter_term> all(terms, term);
  return told(stage, SetFilter{kAllVcpus, event, Action::Allow, std::span<const kvmi_filter_term>(all)});
}

ErrorCode read(Stage& stage, std::vector<kvmi_read_range> ranges) {
  return told(stage, ReadPhysical{AddressSpace::Normal, std::span<const kvmi_read_range>(ranges)});
}

struct WriteAs {
  unsigned flags = 0;
  std::uint64_t cookie = 0;
  AddressSpace space{};
  std::byte value{};
};
/// 8 bytes of that value; with KVMI_WRITE_EXPECT the guest is expected to have 8 bytes of 0x77 there.
ErrorCode write(Stage& stage, std::uint64_t gpa, const WriteAs& as = {}, AgentClient* who = nullptr) {
  std::array<std::byte, 8> data{}, expected{};
  data.fill(as.value);
  expected.fill(std::byte{0x77});
  WritePhysical command;
  command.gpa = Gpa{gpa};
  command.space = as.space;
  command.flags = static_cast<std::uint16_t>(as.flags);
  command.cookie = as.cookie;
  command.data = data;
  if ((as.flags & KVMI_WRITE_EXPECT) != 0) command.expected = expected;
  if (who == nullptr) return told(stage, command);
  return check(who->call(command)).error();
}

// ---- one way to each error ----

struct ErrorRow {
  std::string message;  ///< "*": any command
  ErrorCode error{};
  bool by_notice = false;
  std::function<ErrorCode(Stage&)> provoke;
  std::string guest = "web1";
  std::vector<std::string> arguments{};  ///< of kvmi-emu
};

/// The hypervisor does not answer for a while, so commands stay open.
ErrorCode too_many_open(Stage& stage) {
  stage.guest.process().stop();
  const std::uint32_t limit = stage.agent.welcome().requests_max;
  std::vector<client::Ticket> tickets;
  for (std::uint32_t i = 0; i <= limit; ++i) tickets.push_back(check(stage.agent.submit(GetRegisters{})));
  const ErrorCode last = check(stage.agent.collect(tickets.back())).error();
  stage.guest.process().cont();
  tickets.pop_back();
  for (const auto ticket : tickets) CHECK(check(stage.agent.collect(ticket)).ok());
  return last;
}

ErrorCode while_away(Stage& stage) {
  stage.guest.process().signal(SIGUSR2);
  const auto gone = check(stage.agent.wait_guest(kBound));
  REQUIRE(gone);
  return told(stage, GetRegisters{});
}

ErrorCode on_control_connection(Stage& stage) {
  client::ConnectOptions options;
  options.socket = stage.agent_socket();
  auto control = check(AgentClient::connect(options));
  return check(control.call(GetRegisters{})).error();
}

ErrorCode too_many_pauses(Stage& stage) {
  for (int i = 0; i < 64; ++i) check(stage.agent.pause_vcpu(VcpuId{0}));
  return told(stage, PauseVcpu{VcpuId{0}});
}

ErrorCode unknown_msr(Stage& stage) {
  const std::array<std::uint32_t, 1> msrs{0x12345};
  return told(stage, GetRegisters{VcpuId{0}, std::span<const std::uint32_t>(msrs)});
}

ErrorCode staged_registers(Stage& stage) {
  const auto event = pause(stage);
  kvmi_x86_regs regs = event.event.regs;
  regs.rip = std::uint64_t{1} << 63U;
  check(stage.agent.set_registers(VcpuId{0}, regs));
  check(stage.agent.reply(event, Action::Allow));
  return noticed(stage);
}

ErrorCode staged_xsave(Stage& stage) {
  const auto event = pause(stage);
  const std::array<std::byte, 64> area{};
  check(stage.agent.set_xsave(VcpuId{0}, area));
  check(stage.agent.reply(event, Action::Allow));
  return noticed(stage);
}

ErrorCode xsave_of_running(Stage& stage) {
  const std::array<std::byte, 64> area{};
  return told(stage, SetXsave{VcpuId{0}, area});
}

/// Every other page has a right less.
ErrorCode too_many_runs(Stage& stage) {
  std::vector<kvmi_page_access_entry> entries;
  for (std::uint64_t page = 1; page < kRamBytes / kPageSize; page += 2) {
    entries.push_back(pages(page * kPageSize, 1, kRx));
  }
  check(stage.agent.set_page_access(entries));
  return told(stage, GetPageAccess{.gpa = {}, .pages = kRamBytes / kPageSize});
}

ErrorCode second_injection(Stage& stage) {
  pause(stage);
  check(stage.agent.inject_exception({VcpuId{0}, 6, false, 0, 0}));
  return told(stage, InjectException{.vcpu = {}, .vector = 6});
}

ErrorCode reply_with(Stage& stage, EventReply reply, std::uint32_t seq) {
  check(stage.agent.reply(Seq{seq}, reply));
  return noticed(stage);
}

ErrorCode bad_reply(Stage& stage) {
  const auto event = pause(stage);
  return reply_with(stage, client::make_reply(event.event, Action::Skip), event.seq.value);
}

ErrorCode reply_to_nothing(Stage& stage) {
  const auto event = pause(stage);
  return reply_with(stage, client::make_reply(event.event, Action::Allow), event.seq.value + 1000);
}

ErrorCode second_reply(Stage& stage) {
  const auto event = pause(stage);
  check(stage.agent.reply(event, Action::Allow));
  return reply_with(stage, client::make_reply(event.event, Action::Allow), event.seq.value);
}

// ---- memory that the guest does not use ----

constexpr std::uint64_t kSpare = 0x600000;

ErrorCode stale_write(Stage& stage) {
  const auto read = check(stage.agent.read_physical(Gpa{kSpare}, 8));
  CHECK(write(stage, kSpare) == ErrorCode::None);
  return write(stage, kSpare, {.flags = KVMI_WRITE_COOKIE, .cookie = read.cookie});
}

/// A patch of somebody else with other bytes is there.
ErrorCode patch_of_another(Stage& stage) {
  auto other = attach(stage.agent_socket(), stage.guest.uuid(), "other");
  CHECK(write(stage, kSpare, {.flags = KVMI_WRITE_PATCH, .value = std::byte{1}}, &other) == ErrorCode::None);
  CHECK(write(stage, kSpare, {.flags = KVMI_WRITE_PATCH, .value = std::byte{1}}) == ErrorCode::None);  // shared
  CHECK(write(stage, kSpare, {.flags = KVMI_WRITE_UNPATCH}) == ErrorCode::None);
  CHECK(write(stage, kSpare, {.flags = KVMI_WRITE_UNPATCH}) == ErrorCode::NoEntry);  // the other's is no business of ours
  return write(stage, kSpare, {.flags = KVMI_WRITE_PATCH, .value = std::byte{2}});
}

ErrorCode patch_over_own(Stage& stage) {
  CHECK(write(stage, kSpare, {.flags = KVMI_WRITE_PATCH, .value = std::byte{1}}) == ErrorCode::None);
  CHECK(write(stage, kSpare, {.flags = KVMI_WRITE_PATCH, .value = std::byte{2}}) == ErrorCode::None);  // its own place
  return write(stage, kSpare + 4, {.flags = KVMI_WRITE_PATCH, .value = std::byte{1}});
}

ErrorCode too_many_patches(Stage& stage) {
  CHECK(write(stage, kSpare, {.flags = KVMI_WRITE_PATCH}) == ErrorCode::None);
  return write(stage, kSpare + 8, {.flags = KVMI_WRITE_PATCH});
}

ErrorCode too_many_filters(Stage& stage) {
  CHECK(filter(stage, EventKind::Cr, 1) == ErrorCode::None);
  CHECK(filter(stage, EventKind::Cr, 2) == ErrorCode::None);  // takes its place
  return filter(stage, EventKind::Msr, 1);
}

ErrorCode condition_wanted(Stage& stage) {
  const auto read = check(stage.agent.read_physical(Gpa{kSpare}, 8));
  CHECK(write(stage, kSpare, {.flags = KVMI_WRITE_COOKIE, .cookie = read.cookie}) == ErrorCode::None);
  CHECK(write(stage, kSpare, {.flags = KVMI_WRITE_PATCH}) == ErrorCode::NotPermitted);
  return write(stage, kSpare);
}

/// The guest's own INT3: there is nothing to step over.
ErrorCode step_over_nothing(Stage& stage) {
  stage.subscribe(EventKind::Breakpoint);
  const auto event = stage.provoke(GuestMode::Int3);
  EventReply reply = client::make_reply(event.event, Action::Retry);
  reply.step_over = true;
  return reply_with(stage, reply, event.seq.value);
}

ErrorCode stale_reply(Stage& stage) {
  const auto event = pause(stage);
  CHECK(write(stage, kSpare) == ErrorCode::None);
  EventReply reply = client::make_reply(event.event, Action::Allow);
  reply.has_cookie = true;
  reply.cookie = event.event.cookie;
  return reply_with(stage, reply, event.seq.value);
}

std::vector<ErrorRow> error_rows() {
  using E = ErrorCode;
  const EventSet unhookable = only(EventKind::CreateVcpu);
  const auto sends = [](auto command) { return [command](Stage& stage) { return told(stage, command); }; };
  return {
      {"*", E::NotPermitted, false, sends(GetRegisters{}), "forbidden"},
      {"*", E::Busy, false, too_many_open},
      {"*", E::Invalid, false, sends(GetRegisters{kNoVcpu, {}})},
      {"*", E::NoDevice, false, while_away, "web1", {"--leave-ms", "60000"}},
      {"*", E::NotServed, false, on_control_connection},
      {"GET_GUESTS", E::NotServed, false, sends(GetGuests{})},
      {"PAUSE_VCPU", E::Busy, false, too_many_pauses},
      {"GET_REGISTERS", E::Invalid, false, unknown_msr},
      {"SET_REGISTERS", E::TryAgain, false, sends(SetRegisters{})},
      {"SET_REGISTERS", E::Invalid, true, staged_registers},
      {"GET_CPUID", E::NoEntry, false, sends(GetCpuid{kVcpu, 0x4fff'ffff, 0})},
      {"GET_PAGE_ACCESS", E::Invalid, false, sends(GetPageAccess{.gpa = Gpa{1}, .pages = 1})},
      {"GET_PAGE_ACCESS", E::NotSupported, false, sends(GetPageAccess{{}, 1, AddressSpace::Smm})},
      {"GET_PAGE_ACCESS", E::Fault, false, sends(GetPageAccess{.gpa = Gpa{kRamBytes}, .pages = 1})},
      {"GET_PAGE_ACCESS", E::TooBig, false, too_many_runs},
      {"SET_PAGE_ACCESS", E::Invalid, false, [](Stage& s) { return set_access(s, pages(0, 1, KVMI_PAGE_ACCESS_W)); }},
      {"SET_PAGE_ACCESS", E::NotSupported, false,
       [](Stage& s) { return set_access(s, pages(0, 1, KVMI_PAGE_ACCESS_X)); }},
      {"SET_PAGE_ACCESS", E::Fault, false, [](Stage& s) { return set_access(s, pages(kRamBytes, 1, kRx)); }},
      {"SET_PAGE_ACCESS", E::Busy, false, [](Stage& s) { return set_access(s, pages(0, 2, kRx)); }, "limited"},
      {"INJECT_EXCEPTION", E::Invalid, false, sends(InjectException{.vcpu = {}, .vector = 2})},
      {"INJECT_EXCEPTION", E::Busy, false, second_injection},
      {"READ_PHYSICAL", E::Invalid, false, [](Stage& s) { return read(s, {{~std::uint64_t{0} - 3, 8, 0}}); }},
      {"READ_PHYSICAL", E::TooBig, false, [](Stage& s) { return read(s, {{0x1000, 65513, 0}}); }},
      {"READ_PHYSICAL", E::Fault, false, [](Stage& s) { return read(s, {{kRamBytes - 4, 8, 0}}); }},
      {"WRITE_PHYSICAL", E::Invalid, false, [](Stage& s) { return write(s, ~std::uint64_t{0} - 3); }},
      {"WRITE_PHYSICAL", E::Invalid, false, [](Stage& s) { return write(s, 0x1ffc, {.flags = KVMI_WRITE_PATCH}); }},
      {"WRITE_PHYSICAL", E::NotSupported, false,
       [](Stage& s) { return write(s, kSpare, {.flags = KVMI_WRITE_PATCH, .space = AddressSpace::Smm}); }},
      {"WRITE_PHYSICAL", E::Fault, false, [](Stage& s) { return write(s, kRamBytes - 4); }},
      {"WRITE_PHYSICAL", E::Fault, false, [](Stage& s) { return write(s, kRamBytes, {.flags = KVMI_WRITE_PATCH}); }},
      {"WRITE_PHYSICAL", E::NoEntry, false, [](Stage& s) { return write(s, kSpare, {.flags = KVMI_WRITE_UNPATCH}); }},
      {"WRITE_PHYSICAL", E::Busy, false, patch_of_another},
      {"WRITE_PHYSICAL", E::Busy, false, patch_over_own},
      {"WRITE_PHYSICAL", E::Busy, false, too_many_patches, "limited"},
      {"WRITE_PHYSICAL", E::Stale, false, stale_write},
      {"WRITE_PHYSICAL", E::Stale, false,
       [](Stage& s) { return write(s, kSpare, {.flags = KVMI_WRITE_COOKIE, .cookie = ~std::uint64_t{0}}); }},
      {"WRITE_PHYSICAL", E::Stale, false, [](Stage& s) { return write(s, kSpare, {.flags = KVMI_WRITE_EXPECT}); }},
      {"WRITE_PHYSICAL", E::Stale, false,
       [](Stage& s) { return write(s, kSpare, {.flags = KVMI_WRITE_EXPECT | KVMI_WRITE_PATCH}); }},
      {"WRITE_PHYSICAL", E::NotPermitted, false, condition_wanted, "careful"},
      {"GRANT_MEMORY", E::Invalid, false, sends(GrantMemory{1})},
      {"GRANT_MEMORY", E::NotPermitted, false, sends(GrantMemory{})},  // this user runs kvmi-emu, too
      {"GRANT_MEMORY", E::NotSupported, false, sends(GrantMemory{}), "web1", {"--no-share-ram"}},
      {"CONTROL_EVENTS", E::Invalid, false, sends(ControlEvents{kVcpu, {}, {}, EventSet{std::uint64_t{1} << 63U}})},
      {"CONTROL_EVENTS", E::NotSupported, false, sends(ControlEvents{kVcpu, {}, {}, unhookable})},
      {"CONTROL_EVENTS", E::NotPermitted, false, sends(ControlEvents{kVcpu, {}, {}, only(EventKind::Msr)}), "limited"},
      {"CONTROL_CR", E::Invalid, false, sends(ControlCr{kVcpu, true, 2})},
      {"CONTROL_MSR", E::Invalid, false, sends(ControlMsr{kVcpu, true, 0x2000})},
      {"CONTROL_MSR", E::Busy, false,
       [](Stage& s) {
         check(s.agent.control_msr(kVcpu, kLstar, true));
         return told(s, ControlMsr{kVcpu, true, 0x174});
       },
       "limited"},
      {"TRANSLATE_GVA", E::Fault, false, sends(TranslateGva{kVcpu, Gva{std::uint64_t{1} << 63U}})},
      {"GET_MEMORY_MAP", E::Invalid, false, sends(GetMemoryMap{static_cast<AddressSpace>(2)})},
      {"SET_FILTER", E::Invalid, false, sends(SetFilter{kAllVcpus, static_cast<EventKind>(0x3f), {}, {}})},
      {"SET_FILTER", E::Busy, false, [](Stage& s) { return filter(s, EventKind::Cr, KVMI_FILTER_TERMS_MAX + 1); }},
      {"SET_FILTER", E::NotPermitted, false, [](Stage& s) { return filter(s, EventKind::Msr, 1); }, "limited"},
      {"SET_FILTER", E::Busy, false, too_many_filters, "careful"},
      {"SET_XSAVE", E::TryAgain, false, xsave_of_running},
      {"SET_XSAVE", E::Invalid, true, staged_xsave},
      {"GET_XCR", E::Invalid, false, sends(GetXcr{kVcpu, 1})},
      {"EVENT_REPLY", E::Invalid, true, bad_reply},
      {"EVENT_REPLY", E::Invalid, true, step_over_nothing},
      {"EVENT_REPLY", E::NoEntry, true, reply_to_nothing},
      {"EVENT_REPLY", E::Stale, true, second_reply},
      {"EVENT_REPLY", E::Stale, true, stale_reply},
  };
}

using Pair = std::tuple<std::string, std::int32_t, bool>;  // message, number, by notice

/// What kvmi-emu cannot be brought to, and why.
const std::map<Pair, std::string> kNotHere{
    {{"*", KVMI_EOPNOTSUPP, false}, "kvmi-emu serves every command that kvmid passes on"},
    {{"*", KVMI_ENOMEM, false}, "kvmi-emu ends when it is out of memory"},
    {{"GRANT_MEMORY", KVMI_ENOMEM, false}, "kvmid's limit of descriptors is far away"},
    {{"SET_REGISTERS", KVMI_EBUSY, true}, "the agents' own limits of open commands come first"},
    {{"SET_XSAVE", KVMI_EBUSY, true}, "the agents' own limits of open commands come first"},
    {{"SET_XSAVE", KVMI_EBUSY, false}, "8 vCPUs with less than 64 KiB each do not make 1 MiB"},
    {{"GET_XSAVE", KVMI_E2BIG, false}, "the area of kvmi-emu has less than a page"},
    {{"GET_MEMORY_MAP", KVMI_E2BIG, false}, "kvmi-emu has a handful of slots"},
};

std::string rule(const std::string& guests, const std::string& commands, const std::string& events) {
  return R"({"match": "*", "guests": [")" + guests + R"("], "commands": )" + commands + R"(, "events": )" + events +
         R"(, "role": "decider", "deadline_ms": 60000, "pause_max_ms": 60000,
            "quota": {"pages": 1, "msrs": 1, "patches": 1}},)";
}

/// As EventDaemon; "forbidden": no command, no event. "limited": small quotas, and no MSR event. "careful": no write
/// without a condition, and one filter.
std::string limits() {
  return R"({"match": "*", "guests": ["careful"], "commands": ["*"], "events": ["*"], "unconditional_writes": false,
            "quota": {"filters": 1}},)" +
         rule("forbidden", R"(["GET_VERSION", "GET_GUEST_INFO"])", "[]") +
         rule("limited", R"(["*"])", R"(["cr"])");
}

}  // namespace

TEST_CASE("each documented error is provoked, or it is said why not", "[events][errors]") {
  std::ifstream in(KVMID_DOCUMENTED_ERRORS);
  REQUIRE(in);
  std::set<Pair> documented, rows;
  for (const auto& entry : nlohmann::json::parse(in)) {
    if (!entry.at("served").get<bool>()) continue;  // the page says that this kvmid does not give it
    documented.insert({entry.at("message").get<std::string>(), entry.at("number").get<std::int32_t>(),
                       entry.at("told_by").get<std::string>() == "notice"});
  }
  for (const auto& row : error_rows()) rows.insert({row.message, static_cast<std::int32_t>(row.error), row.by_notice});
  for (const auto& pair : documented) {
    INFO(std::get<0>(pair) << " " << std::get<1>(pair) << (std::get<2>(pair) ? " by notice" : ""));
    CHECK(rows.count(pair) + kNotHere.count(pair) == 1);
  }
  for (const auto& pair : rows) {
    INFO(std::get<0>(pair) << " " << std::get<1>(pair) << " is not documented");
    CHECK(documented.count(pair) == 1);
  }
  for (const auto& [pair, reason] : kNotHere) {
    INFO(std::get<0>(pair) << " " << std::get<1>(pair) << ": " << reason);
    CHECK(documented.count(pair) == 1);
  }
}

TEST_CASE("each error comes as documented, and the guest goes on", "[events][errors]") {
  EventDaemon daemon(limits());
  for (const auto& row : error_rows()) {
    INFO(row.message << " " << name_of(row.error));
    try {
      Stage stage(daemon, StageOptions{.guest = row.guest, .arguments = row.arguments});
      CHECK(row.provoke(stage) == row.error);
      CHECK(stage.guest.process().running());
    } catch (const TestError& error) {
      FAIL_CHECK(error.what());
    }
  }
}

TEST_CASE("a command that policy does not name is refused, whatever it asks", "[events][errors]") {
  EventDaemon daemon(limits());
  Stage stage(daemon, StageOptions{.guest = "forbidden"});
  Stage all(daemon, StageOptions{.guest = "other", .number = 2});
  for (const auto& command : one_of_each()) {
    const CommandId id = id_of(command);
    INFO(name_of(id));
    const ErrorCode error = told(stage, command);
    const bool always = id == CommandId::GetVersion || id == CommandId::GetGuestInfo;
    if (always) CHECK(error == ErrorCode::None);
    else if (id == CommandId::GetGuests) CHECK(error == ErrorCode::NotServed);  // of any attached agent
    else if (all.agent.welcome().commands.has(id)) CHECK(error == ErrorCode::NotPermitted);
    else CHECK((error == ErrorCode::NotPermitted || error == ErrorCode::NotServed));
    CHECK(stage.agent.welcome().commands.has(id) == always);
  }
  stage.guest.wait_rounds(2);
}

TEST_CASE("an event that policy does not name is refused", "[events][errors]") {
  EventDaemon daemon(limits());
  Stage stage(daemon, StageOptions{.guest = "limited"});
  Stage all(daemon, StageOptions{.guest = "other", .number = 2});
  for (unsigned i = 0; i < kEventCount; ++i) {
    const auto kind = static_cast<EventKind>(i);
    if (!all.agent.welcome().events.has(kind)) continue;
    INFO(name_of(kind));
    CHECK(code_of(stage.agent.subscribe(only(kind), Role::Decider)) ==
          (kind == EventKind::Cr ? ErrorCode::None : ErrorCode::NotPermitted));
  }
}
