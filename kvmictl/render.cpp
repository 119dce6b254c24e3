// SPDX-License-Identifier: GPL-2.0-or-later
#include "kvmictl/render.h"

#include <algorithm>
#include <array>
#include <cstdio>

#include "client/event_text.h"
#include "kvmictl/json_text.h"
#include "kvmictl/table.h"
#include "protocol/handshake.h"
#include "protocol/message.h"

namespace kvmid::ctl {
namespace {

using RegisterField = std::pair<const char*, std::uint64_t kvmi_x86_regs::*>;
constexpr std::array<RegisterField, 18> kRegisters{{
    {"rax", &kvmi_x86_regs::rax},
    {"rbx", &kvmi_x86_regs::rbx},
    {"rcx", &kvmi_x86_regs::rcx},
    {"rdx", &kvmi_x86_regs::rdx},
    {"rsi", &kvmi_x86_regs::rsi},
    {"rdi", &kvmi_x86_regs::rdi},
    {"rsp", &kvmi_x86_regs::rsp},
    {"rbp", &kvmi_x86_regs::rbp},
    {"r8", &kvmi_x86_regs::r8},
    {"r9", &kvmi_x86_regs::r9},
    {"r10", &kvmi_x86_regs::r10},
    {"r11", &kvmi_x86_regs::r11},
    {"r12", &kvmi_x86_regs::r12},
    {"r13", &kvmi_x86_regs::r13},
    {"r14", &kvmi_x86_regs::r14},
    {"r15", &kvmi_x86_regs::r15},
    {"rip", &kvmi_x86_regs::rip},
    {"rflags", &kvmi_x86_regs::rflags},
}};
using ControlField = std::pair<const char*, std::uint64_t kvmi_x86_sregs::*>;
constexpr std::array<ControlField, 7> kControls{{
    {"cr0", &kvmi_x86_sregs::cr0},
    {"cr2", &kvmi_x86_sregs::cr2},
    {"cr3", &kvmi_x86_sregs::cr3},
    {"cr4", &kvmi_x86_sregs::cr4},
    {"cr8", &kvmi_x86_sregs::cr8},
    {"efer", &kvmi_x86_sregs::efer},
    {"apic_base", &kvmi_x86_sregs::apic_base},
}};
using SegmentField = std::pair<const char*, kvmi_x86_segment kvmi_x86_sregs::*>;
constexpr std::array<SegmentField, 8> kSegments{{
    {"cs", &kvmi_x86_sregs::cs},
    {"ds", &kvmi_x86_sregs::ds},
    {"es", &kvmi_x86_sregs::es},
    {"fs", &kvmi_x86_sregs::fs},
    {"gs", &kvmi_x86_sregs::gs},
    {"ss", &kvmi_x86_sregs::ss},
    {"tr", &kvmi_x86_sregs::tr},
    {"ldt", &kvmi_x86_sregs::ldt},
}};

std::string hex16(std::uint64_t value) {
  std::array<char, 20> text{};
  std::snprintf(text.data(), text.size(), "%016llx", static_cast<unsigned long long>(value));
  return text.data();
}

/// What a guest is served with, and beside it what there is and it lacks: hypervisors and dialects differ in that.
std::string abilities_text(const Json& guest, std::size_t width) {
  const auto lines = [&](const char* has, const char* lacks, const Json& list, const std::vector<std::string>& known) {
    std::string lacking;
    for (const auto& name : known) {
      // Nothing at all is of a guest that was never online.
      if (list.is_array() && !list.empty() && std::find(list.begin(), list.end(), Json(name)) == list.end())
        lacking += (lacking.empty() ? "" : " ") + name;
    }
    return labelled(has, joined(list, " "), width) + (lacking.empty() ? "" : labelled(lacks, lacking, width));
  };
  std::vector<std::string> commands, events;
  for (unsigned i = 0; i < 64; ++i) {
    const auto id = static_cast<CommandId>(i);
    // The list of guests is asked for without a guest.
    if (name_of(id) != name_of(CommandId{}) && id != CommandId::GetGuests) commands.emplace_back(name_of(id));
  }
  for (unsigned i = 0; i < kEventCount; ++i) events.emplace_back(name_of(static_cast<EventKind>(i)));
  return lines("commands", "  lacks", child(guest, "commands"), commands) +
         lines("events", "  lacks", child(guest, "events_supported"), events);
}

}  // namespace

std::string duration_text(std::uint64_t seconds) {
  const std::uint64_t minutes = seconds / 60, hours = minutes / 60, days = hours / 24;
  const auto two = [](std::uint64_t a, const char* au, std::uint64_t b, const char* bu) {
    return std::to_string(a) + au + " " + std::to_string(b) + bu;
  };
  if (days > 0) return two(days, "d", hours % 24, "h");
  if (hours > 0) return two(hours, "h", minutes % 60, "m");
  if (minutes > 0) return two(minutes, "m", seconds % 60, "s");
  return std::to_string(seconds) + "s";
}

std::string render_guests(const Json& answer, std::size_t width) {
  const Json& guests = child(answer, "guests");
  if (!guests.is_array() || guests.empty()) return "No guests are connected.\n";
  Table table({{"NAME", Table::Align::Left, 8},
               {"UUID", Table::Align::Left, 8},
               {"STATE"},
               {"DIALECT", Table::Align::Left, 4, 3},
               {"VCPUS", Table::Align::Right, 0, 2},
               {"AGENTS", Table::Align::Right, 0, 1},
               {"EVENTS", Table::Align::Right, 0, 4}});
  for (const auto& guest : guests) {
    table.add({field(guest, "name"), field(guest, "uuid"), field(guest, "state"), field(guest, "dialect"),
               field(guest, "vcpus"), field(guest, "agents"), field(guest, "events")});
  }
  return table.text(width);
}

std::string render_agents(const Json& answer, std::size_t width) {
  const Json& agents = child(answer, "agents");
  if (!agents.is_array() || agents.empty()) return "No agents are connected.\n";
  Table table({{"ID", Table::Align::Right},
               {"NAME", Table::Align::Left, 8},
               {"GUEST", Table::Align::Left, 8},
               {"DIALECT", Table::Align::Left, 0, 8},
               {"ROLE"},
               {"PRIO", Table::Align::Right, 0, 4},
               {"DEADLINE", Table::Align::Right, 0, 3},
               {"PID", Table::Align::Right, 0, 2},
               {"UID", Table::Align::Right, 0, 5},
               {"EXPIRED", Table::Align::Right, 0, 1},
               {"PATCHES", Table::Align::Right, 0, 9},
               {"FILTERS", Table::Align::Right, 0, 10},
               {"FILTERED", Table::Align::Right, 0, 11},
               {"EVENTS", Table::Align::Left, 6, 7},
               {"POLICY", Table::Align::Left, 6, 6}});
  for (const auto& agent : agents) {
    const bool control = child(agent, "guest").is_null();
    const std::string deadline = field(agent, "deadline_ms");
    table.add({field(agent, "id"), field(agent, "name"), control ? "(control)" : field(agent, "guest_name"),
               field(agent, "dialect"),
               field(agent, "role") + (child(agent, "demoted").empty() ? "" : " (demoted)"), field(agent, "priority"),
               deadline == "-" ? deadline : deadline + " ms", field(agent, "pid"), field(agent, "uid"),
               field(agent, "expired"), field(agent, "patches"), field(agent, "filters"), field(agent, "filtered"),
               joined(child(agent, "events")), field(agent, "policy")});
  }
  return table.text(width);
}

std::string render_guest(const Json& guest, std::size_t width) {
  const Json& hypervisor = child(guest, "hypervisor");
  std::string out = labelled("name", field(guest, "name")) + labelled("uuid", field(guest, "uuid")) +
                    labelled("state", field(guest, "state")) + labelled("dialect", field(guest, "dialect")) +
                    labelled("arch", field(guest, "arch"));
  const Json& max_gpa = child(guest, "max_gpa");
  out += labelled("memory ends", max_gpa.is_number_unsigned() ? client::hex(max_gpa.get<std::uint64_t>()) : "-");
  out += labelled("hypervisor", "pid " + field(hypervisor, "pid") + ", uid " + field(hypervisor, "uid"));
  out += abilities_text(guest, width);
  out += labelled("agents", joined(child(guest, "agent_list")));
  const Json& vcpus = child(guest, "vcpu");
  if (vcpus.is_array() && !vcpus.empty()) {
    Table table({{"VCPU", Table::Align::Right},
                 {"STATE"},
                 {"EVENT"},
                 {"SEQ", Table::Align::Right},
                 {"AGE", Table::Align::Right},
                 {"WAITS FOR AGENTS", Table::Align::Left, 6}});
    for (const auto& vcpu : vcpus) {
      const std::string age = field(vcpu, "age_ms");
      table.add({field(vcpu, "id"), field(vcpu, "state"), field(vcpu, "event"), field(vcpu, "event_seq"),
                 age == "-" ? age : age + " ms", joined(child(vcpu, "waits_for"))});
    }
    out += "\n" + table.text(width);
  }
  const std::string counters = counters_text(child(guest, "counters"), "  ");
  if (!counters.empty()) out += "\ncounters\n" + counters;
  return out;
}

std::string render_agent(const Json& agent, const Json& guest, std::size_t width) {
  const bool control = child(agent, "guest").is_null();
  std::string out = labelled("id", field(agent, "id")) + labelled("name", field(agent, "name"));
  out += labelled("guest", control ? "none: a control connection"
                                   : field(agent, "guest_name") + " (" + field(agent, "guest") + ")");
  out +=
      labelled("peer", "pid " + field(agent, "pid") + ", uid " + field(agent, "uid") + ", gid " + field(agent, "gid") +
                           (child(agent, "cid").is_null() ? "" : ", vsock cid " + field(agent, "cid")));
  out += labelled("dialect", field(agent, "dialect"));
  if (!child(agent, "address").is_null()) out += labelled("listens at", field(agent, "address"));
  out += labelled("policy", field(agent, "policy"));
  const Json& demoted = child(agent, "demoted");
  out += labelled("role", field(agent, "role") + (demoted.empty() ? "" : ", demoted to observer of " + joined(demoted)));
  out += labelled("priority", field(agent, "priority"));
  const std::string deadline = field(agent, "deadline_ms");
  out += labelled("deadline", deadline == "-" ? deadline : deadline + " ms");
  out += labelled("missed", field(agent, "expired") + " deadlines, " + field(agent, "strikes") + " in a row");
  out += labelled("queue", field(agent, "queued_bytes") + " bytes");
  out += labelled("requests", field(agent, "requests_open") + " open");
  out += labelled("pages", field(agent, "pages") + " restricted");
  out += labelled("patches", field(agent, "patches"));
  out += labelled("filters", field(agent, "filters") + ", which kept " + field(agent, "filtered") + " events from it");
  out += labelled("events", joined(child(agent, "events"), " "), width);
  Table table({{"VCPU", Table::Align::Right},
               {"EVENT"},
               {"SEQ", Table::Align::Right},
               {"AGE", Table::Align::Right},
               {"WAITS FOR AGENTS", Table::Align::Left, 6}});
  bool owes = false;
  for (const auto& vcpu : child(guest, "vcpu").is_array() ? child(guest, "vcpu") : Json::array()) {
    const Json& waits_for = child(vcpu, "waits_for");
    if (!waits_for.is_array() || std::find(waits_for.begin(), waits_for.end(), child(agent, "id")) == waits_for.end()) {
      continue;
    }
    owes = true;
    table.add({field(vcpu, "id"), field(vcpu, "event"), field(vcpu, "event_seq"), field(vcpu, "age_ms") + " ms",
               joined(waits_for)});
  }
  return out + (owes ? "\nowes a reply to\n" + table.text(width) : labelled("owes", "nothing"));
}

std::string render_status(const Json& status) {
  const Json& uptime = child(status, "uptime_s");
  std::string out = labelled("version", field(status, "version")) + labelled("pid", field(status, "pid"));
  out += labelled("uptime", uptime.is_number() ? duration_text(uptime.get<std::uint64_t>()) : "-");
  out += labelled("config", field(status, "config")) + labelled("shards", field(status, "shards"));
  out += labelled("guests", field(status, "guests")) + labelled("agents", field(status, "agents"));
  const std::string counters = counters_text(child(status, "counters"), "  ");
  if (!counters.empty()) out += "counters\n" + counters;
  return out;
}

std::vector<client::GuestName> guest_names(const Json& answer) {
  std::vector<client::GuestName> names;
  const Json& guests = child(answer, "guests");
  if (!guests.is_array()) return names;
  for (const auto& guest : guests) {
    if (const auto uuid = parse_uuid(field(guest, "uuid"))) names.push_back({*uuid, field(guest, "name")});
  }
  return names;
}

std::string hex_dump(std::uint64_t address, std::span<const std::byte> bytes) {
  static constexpr std::string_view kDigits = "0123456789abcdef";
  constexpr std::size_t kLine = 16;
  std::string out;
  out.reserve(bytes.size() * 5);
  for (std::size_t at = 0; at < bytes.size(); at += kLine) {
    const auto row = bytes.subspan(at, std::min(kLine, bytes.size() - at));
    std::string hex_part, text;
    for (std::size_t i = 0; i < kLine; ++i) {
      if (i == kLine / 2) hex_part += ' ';
      if (i < row.size()) {
        const auto byte = std::to_integer<unsigned>(row[i]);
        hex_part += {' ', kDigits[byte >> 4U], kDigits[byte & 15U]};
        text += byte >= 0x20 && byte < 0x7f ? static_cast<char>(byte) : '.';
      } else {
        hex_part += "   ";
      }
    }
    out += hex16(address + at) + " " + hex_part + "  |" + text + "|\n";
  }
  return out;
}

std::string hex_digits(std::span<const std::byte> bytes) {
  static constexpr std::string_view kDigits = "0123456789abcdef";
  std::string out;
  for (const std::byte byte : bytes) {
    out += {kDigits[std::to_integer<unsigned>(byte) >> 4U], kDigits[std::to_integer<unsigned>(byte) & 15U]};
  }
  return out;
}

std::string render_registers(const client::Registers& registers) {
  std::string out;
  std::size_t column = 0;
  const auto cell = [&](std::string_view name, const std::string& value) {
    std::string label(name);
    label.resize(std::max<std::size_t>(7, label.size() + 1), ' ');
    out += label + value;
    out += ++column % 3 == 0 ? "\n" : "   ";
  };
  for (const auto& [name, member] : kRegisters) cell(name, hex16(registers.regs.*member));
  for (const auto& [name, member] : kControls) {
    if (std::string_view(name) != "apic_base") cell(name, hex16(registers.sregs.*member));
  }
  Table table({{"SEGMENT"},
               {"SELECTOR", Table::Align::Right},
               {"BASE"},
               {"LIMIT", Table::Align::Right},
               {"DPL", Table::Align::Right},
               {"USABLE"}});
  for (const auto& [name, member] : kSegments) {
    const kvmi_x86_segment& segment = registers.sregs.*member;
    table.add({name, client::hex(segment.selector), hex16(segment.base), client::hex(segment.limit),
               std::to_string(segment.dpl), segment.unusable != 0 ? "no" : "yes"});
  }
  table.add({"gdt", "-", hex16(registers.sregs.gdt.base), client::hex(registers.sregs.gdt.limit), "-", "yes"});
  table.add({"idt", "-", hex16(registers.sregs.idt.base), client::hex(registers.sregs.idt.limit), "-", "yes"});
  return out + "\n" + table.text(0);
}

Json registers_json(std::uint16_t vcpu, const client::Registers& registers) {
  Json out{{"schema", 1}, {"vcpu", vcpu}, {"mode", registers.mode}};
  for (const auto& [name, member] : kRegisters) out["regs"][name] = client::hex(registers.regs.*member);
  for (const auto& [name, member] : kControls) out["sregs"][name] = client::hex(registers.sregs.*member);
  for (const auto& [name, member] : kSegments) {
    const kvmi_x86_segment& s = registers.sregs.*member;
    out["sregs"][name] = {
        {"selector", s.selector}, {"base", client::hex(s.base)}, {"limit", s.limit},           {"type", s.type},
        {"dpl", s.dpl},           {"present", s.present != 0},   {"unusable", s.unusable != 0}};
  }
  for (const auto& [name, table] : {std::pair{"gdt", registers.sregs.gdt}, std::pair{"idt", registers.sregs.idt}}) {
    out["sregs"][name] = {{"base", client::hex(table.base)}, {"limit", table.limit}};
  }
  return out;
}

}  // namespace kvmid::ctl
