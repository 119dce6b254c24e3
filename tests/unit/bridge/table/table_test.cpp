// SPDX-License-Identifier: GPL-2.0-or-later
// Every command of every dialect is put to a bridge whose tool may do everything, and every hypervisor is asked what of
// KVMI 2 it can do. KVMID_COMMAND_TABLE names a file for the answers (docs/dialects.md).
#include <array>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <map>

#include "bridge/agent_bridge.h"
#include "tests/unit/bridge/hypervisor/scripted_hypervisor.h"

using namespace kvmid;
using kvmi1::DialectId;

namespace {

constexpr std::array kDialects{DialectId::V6, DialectId::V7, DialectId::V12, DialectId::Rfc2017};

/// One of each, with nothing in it.
template <std::size_t... I>
std::vector<kvmi1::Command> every_command(std::index_sequence<I...>) {
  return {kvmi1::Command(std::variant_alternative_t<I, kvmi1::Command>{})...};
}
std::vector<kvmi1::Command> every_command() { return every_command(std::make_index_sequence<kvmi1::kCommandCount>{}); }

/// An empty list would say nothing.
kvmi1::Command filled(kvmi1::Command command) {
  static const std::array<std::byte, kvmi1::kXsaveSize> kBytes{};
  if (auto* write = std::get_if<kvmi1::WritePhysical>(&command)) write->data = Bytes(kBytes).first(1);
  if (auto* read = std::get_if<kvmi1::ReadPhysical>(&command)) read->size = 1;
  if (auto* xsave = std::get_if<kvmi1::SetXsave>(&command)) xsave->area = kBytes;
  if (auto* change = std::get_if<kvmi1::ChangeGfn>(&command)) change->view = 0;
  if (auto* cleanup = std::get_if<kvmi1::ControlCleanup>(&command)) cleanup->enable = true;
  if (auto* view = std::get_if<kvmi1::ControlEptView>(&command)) view->view = 1;
  return command;
}

/// "yes": it is passed on, or done; "no": the dialect has it, and it is refused as unsupported; "": it does not have it.
std::string served(DialectId dialect, const kvmi1::Command& command) {
  const kvmi1::Codec& codec = kvmi1::codec(dialect);
  const auto number = codec.number_of(kvmi1::kind_of_command(command));
  if (!number) return "";
  bridge::ToolRights rights;
  rights.commands = CommandSet{~std::uint64_t{0}};
  rights.events = kEveryEvent;
  bridge::AgentBridge tool({.dialect = dialect}, rights);
  ByteBuffer frame, wire;
  while (!tool.down().empty()) {  // what it asks by itself
    const auto asked = tool.down().take();
    GetGuestInfoReply facts;
    facts.vcpu_count = 1;
    facts.max_gpa = 0x1000000;
    tool.deliver(CommandReply{.id = KVMI_MSG_GET_GUEST_INFO, .body = facts}, asked.seq, wire);
  }
  codec.encode(filled(command), Seq{7}, frame);
  kvmi_msg_hdr header;
  std::memcpy(&header, frame.data(), sizeof header);
  const auto kept = tool.received(Frame{header.id, Seq{7}, Bytes(frame).subspan(sizeof header)}, wire);
  INFO(kvmi1::name_of(dialect) << " " << kvmi1::name_of(kvmi1::kind_of_command(command)));
  REQUIRE(kept);
  REQUIRE((!wire.empty() || !tool.down().empty()));  // it was looked at
  std::int32_t error = 0;
  if (wire.size() >= sizeof header + sizeof error) std::memcpy(&error, wire.data() + sizeof header, sizeof error);
  const bool refused = wire.size() >= sizeof header + sizeof error && error == -kvmi1::kEopnotsupp;
  const bool outside_an_event = std::holds_alternative<kvmi1::SetRegisters>(command);
  return std::to_string(*number) + (refused && !outside_an_event ? " no" : "");
}

std::string tools_table() {
  std::map<std::string, std::array<std::string, kDialects.size()>> rows;
  std::vector<std::string> order;
  for (const auto& command : every_command()) {
    const std::string name(kvmi1::name_of(kvmi1::kind_of_command(command)));
    if (!rows.contains(name)) order.push_back(name);
    for (std::size_t i = 0; i < kDialects.size(); ++i) {
      const std::string cell = served(kDialects[i], command);
      if (!cell.empty()) rows[name][i] = cell;
    }
  }
  std::string out = "What a tool can ask: the number of the command in its dialect, and *no* where kvmid answers that it is not supported.\n\n"
                    "| command | v6 | v7 | v12 | rfc2017 |\n|---|---|---|---|---|\n";
  for (const auto& name : order) {
    out += "| " + name + " |";
    for (const auto& cell : rows[name]) {
      const auto space = cell.find(' ');
      out += " " + (cell.empty() ? "-" : space == std::string::npos ? cell : cell.substr(0, space) + ", *no*") + " |";
    }
    out += "\n";
  }
  return out;
}

std::string hypervisors_table() {
  std::array<GetVersionReply, kDialects.size()> can;
  for (std::size_t i = 0; i < kDialects.size(); ++i) {
    bridge::test::Hypervisor host(kDialects[i]);
    const auto answer = host.ask(GetVersion{});
    REQUIRE(answer.error() == ErrorCode::None);
    can[i] = answer.body<GetVersionReply>();
  }
  std::string out = "What of KVMI 2 can be done on a hypervisor that allows everything. GET_GUESTS, GRANT_MEMORY and SET_FILTER are kvmid's own.\n\n"
                    "| command or event | v6 | v7 | v12 | rfc2017 |\n|---|---|---|---|---|\n";
  const auto add_row = [&](std::string_view name, const std::function<bool(const GetVersionReply&)>& has) {
    out += "| " + std::string(name) + " |";
    for (const auto& version : can) out += has(version) ? " yes |" : " - |";
    out += "\n";
  };
  const std::string_view kNoCommand = name_of(CommandId{63});
  for (unsigned bit = 1; bit < 64; ++bit) {
    const auto id = static_cast<CommandId>(bit);
    if (name_of(id) == kNoCommand || id == CommandId::GetGuests || id == CommandId::GrantMemory || id == CommandId::SetFilter)
      continue;
    add_row(name_of(id), [&](const GetVersionReply& version) { return version.commands.has(id); });
  }
  for (unsigned bit = 0; bit < kEventCount; ++bit) {
    const auto kind = static_cast<EventKind>(bit);
    add_row("event " + std::string(name_of(kind)), [&](const GetVersionReply& version) { return version.events.has(kind); });
  }
  return out;
}

}  // namespace

TEST_CASE("what works in each dialect", "[table]") {
  const std::string text = tools_table() + "\n" + hypervisors_table();
  CHECK(text.find("| READ_PHYSICAL | 17 | 17 | 12 | 15 |") != std::string::npos);
  CHECK(text.find("| SWITCH_EPT_VIEW | - | 32") != std::string::npos);
  if (const char* file = std::getenv("KVMID_COMMAND_TABLE")) std::ofstream(file) << text;
}
