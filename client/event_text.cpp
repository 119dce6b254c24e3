// SPDX-License-Identifier: LGPL-2.1-or-later
#include "client/event_text.h"

#include <array>
#include <charconv>
#include <utility>

#include "protocol/handshake.h"
#include "protocol/text.h"

namespace kvmid::client {
namespace {

constexpr std::array<std::pair<std::uint32_t, std::string_view>, 14> kMsrNames{{
    {0x10, "TSC"},
    {0x1b, "APIC_BASE"},
    {0x174, "SYSENTER_CS"},
    {0x175, "SYSENTER_ESP"},
    {0x176, "SYSENTER_EIP"},
    {0x277, "PAT"},
    {0xc0000080, "EFER"},
    {0xc0000081, "STAR"},
    {0xc0000082, "LSTAR"},
    {0xc0000083, "CSTAR"},
    {0xc0000084, "FMASK"},
    {0xc0000100, "FS_BASE"},
    {0xc0000101, "GS_BASE"},
    {0xc0000102, "KERNEL_GS_BASE"},
}};

constexpr std::array<std::string_view, 5> kDescriptorNames{"?", "idtr", "gdtr", "ldtr", "tr"};

std::string_view descriptor_name(std::uint8_t descriptor) {
  return descriptor < kDescriptorNames.size() ? kDescriptorNames[descriptor] : kDescriptorNames[0];
}

std::string change(std::uint64_t from, std::uint64_t to) { return " " + hex(from) + " -> " + hex(to); }

std::string access_verb(std::uint8_t access) {
  std::string verb;
  const auto add = [&](std::uint8_t bit, std::string_view word) {
    if ((access & bit) != 0) verb += (verb.empty() ? "" : "+") + std::string(word);
  };
  add(KVMI_PAGE_ACCESS_R, "read");
  add(KVMI_PAGE_ACCESS_W, "write");
  add(KVMI_PAGE_ACCESS_X, "execute");
  return verb.empty() ? "no access" : verb;
}

/// Collects `"name":value` pairs.
class Fields {
 public:
  Fields& text(std::string_view name, std::string_view value) { return raw(name, json_string(value)); }
  Fields& number(std::string_view name, std::uint64_t value) { return raw(name, std::to_string(value)); }
  Fields& address(std::string_view name, std::uint64_t value) { return raw(name, "\"" + hex(value) + "\""); }
  Fields& flag(std::string_view name, bool value) { return raw(name, value ? "true" : "false"); }
  [[nodiscard]] std::string take() { return std::move(out_); }

 private:
  Fields& raw(std::string_view name, const std::string& value) {
    if (!out_.empty()) out_ += ',';
    out_ += '"';
    out_ += name;
    out_ += "\":";
    out_ += value;
    return *this;
  }
  std::string out_;
};

void change_fields(Fields& fields, std::uint64_t from, std::uint64_t to) {
  fields.address("old_value", from).address("new_value", to);
}

void data_fields(const EventData& event_data, Fields& fields) {
  std::visit(
      Overloaded{
          [&](const UnhookData& d) { fields.text("reason", name_of(d.reason)); },
          [&](const CrData& d) { change_fields(fields.number("cr", d.cr), d.old_value, d.new_value); },
          [&](const MsrData& d) {
            change_fields(fields.address("msr", d.msr).text("msr_name", msr_text(d.msr)), d.old_value, d.new_value);
          },
          [&](const XsetbvData& d) { change_fields(fields.number("xcr", d.xcr), d.old_value, d.new_value); },
          [&](const BreakpointData& d) { fields.address("gpa", d.gpa.value).number("insn_length", d.insn_length); },
          [](const HypercallData&) {},
          [&](const PageFaultData& d) {
            fields.address("gpa", d.gpa.value).text("access", rights_text(d.access));
            if (d.gva_valid) fields.address("gva", d.gva.value);
          },
          [&](const TrapData& d) {
            fields.number("vector", d.vector).number("error_code", d.error_code).address("address", d.address);
          },
          [&](const DescriptorData& d) {
            fields.text("descriptor", descriptor_name(d.descriptor)).flag("write", d.write);
          },
          [](const CreateVcpuData&) {},
          [](const PauseData&) {},
          [&](const SinglestepData& d) { fields.flag("failed", d.failed); },
          [&](const CpuidData& d) { fields.address("function", d.function).address("index", d.index); },
          [&](const AccessData& d) {
            fields.address("gpa", d.gpa.value).address("gva", d.gva.value).text("access", rights_text(d.access));
            fields.number("size", d.size).number("index", d.index);
          },
      },
      event_data);
}

}  // namespace

std::string hex(std::uint64_t value) {
  std::array<char, 16> digits{};
  const auto end = std::to_chars(digits.data(), digits.data() + digits.size(), value, 16).ptr;
  return "0x" + std::string(digits.data(), end);
}

std::string rights_text(std::uint8_t access) {
  std::string text = "---";
  if ((access & KVMI_PAGE_ACCESS_R) != 0) text[0] = 'r';
  if ((access & KVMI_PAGE_ACCESS_W) != 0) text[1] = 'w';
  if ((access & KVMI_PAGE_ACCESS_X) != 0) text[2] = 'x';
  return text;
}

std::string msr_text(std::uint32_t msr) {
  for (const auto& [number, name] : kMsrNames) {
    if (number == msr) return std::string(name);
  }
  return hex(msr);
}

std::string json_string(std::string_view text) {
  std::string out = "\"";
  while (!text.empty()) {
    const std::size_t good = valid_utf8_prefix(text);
    for (const char c : text.substr(0, good)) {
      switch (c) {
        case '"':
          out += "\\\"";
          break;
        case '\\':
          out += "\\\\";
          break;
        case '\n':
          out += "\\n";
          break;
        case '\t':
          out += "\\t";
          break;
        default:
          if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
            static constexpr std::string_view kDigits = "0123456789abcdef";
            const auto byte = static_cast<unsigned char>(c);
            out += "\\u00";
            out += kDigits[byte >> 4U];
            out += kDigits[byte & 15U];
          } else {
            out += c;
          }
      }
    }
    if (good == text.size()) break;
    out += '?';
    text.remove_prefix(good + 1);
  }
  return out + "\"";
}

std::optional<EventKind> event_kind_by_name(std::string_view name) {
  for (unsigned i = 0; i < kEventCount; ++i) {
    if (name == name_of(static_cast<EventKind>(i))) return static_cast<EventKind>(i);
  }
  return std::nullopt;
}

Result<EventSet, ClientError> event_set_by_names(std::string_view names) {
  if (names == "all") return kEveryEvent;
  EventSet set;
  for (;;) {
    const std::size_t comma = names.find(',');
    const auto name = names.substr(0, comma);
    const auto kind = event_kind_by_name(name);
    if (!kind) {
      std::string text = "\"" + std::string(name) + "\" is no event kind; there are: all";
      for (unsigned i = 0; i < kEventCount; ++i) text += ", " + std::string(name_of(static_cast<EventKind>(i)));
      return ClientError{ClientErrc::BadArgument, ErrorCode::Invalid, std::move(text)};
    }
    set.add(*kind);
    if (comma == std::string_view::npos) return set;
    names.remove_prefix(comma + 1);
  }
}

std::string words(const Event& event) {
  return std::visit(
      Overloaded{
          [](const UnhookData& d) { return "guest is about to be let go: " + std::string(name_of(d.reason)); },
          [](const CrData& d) { return "mov cr" + std::to_string(d.cr) + change(d.old_value, d.new_value); },
          [](const MsrData& d) { return "wrmsr " + msr_text(d.msr) + change(d.old_value, d.new_value); },
          [](const XsetbvData& d) { return "xsetbv xcr" + std::to_string(d.xcr) + change(d.old_value, d.new_value); },
          [](const BreakpointData& d) { return "breakpoint at gpa " + hex(d.gpa.value); },
          [&](const HypercallData&) { return "hypercall, rax " + hex(event.regs.rax); },
          [](const PageFaultData& d) {
            return access_verb(d.access) + " of gpa " + hex(d.gpa.value) +
                   (d.gva_valid ? " (gva " + hex(d.gva.value) + ")" : std::string());
          },
          [](const TrapData& d) {
            std::string text = "exception " + std::to_string(d.vector);
            if ((d.flags & KVMI_TRAP_F_ERROR_CODE) != 0) text += ", error code " + hex(d.error_code);
            if (d.address != 0) text += ", address " + hex(d.address);
            if ((d.flags & KVMI_TRAP_F_INJECTED) != 0) text += ", injected by an agent";
            if ((d.flags & KVMI_TRAP_F_DISPLACED) != 0) {
              text += ", in place of injected exception " + std::to_string(d.displaced_vector);
            }
            return text;
          },
          [](const DescriptorData& d) {
            return std::string(d.write ? "load of " : "store of ") + std::string(descriptor_name(d.descriptor));
          },
          [](const CreateVcpuData&) { return std::string("a vCPU was created"); },
          [](const PauseData&) { return std::string("paused"); },
          [](const SinglestepData& d) { return std::string(d.failed ? "the step could not be made" : "one step"); },
          [](const CpuidData& d) { return "cpuid function " + hex(d.function) + " index " + hex(d.index); },
          [](const AccessData& d) {
            return access_verb(d.access) + " " + std::to_string(d.size) + " bytes at gpa " + hex(d.gpa.value) +
                   ", access " + std::to_string(d.index) + " of the instruction";
          },
      },
      event.data);
}

std::string words(const ReceivedNotice& notice) {
  const std::string event = "event " + std::to_string(notice.event_seq.value);
  std::string text;
  switch (notice.kind) {
    case NoticeKind::Expired:
      text = event + " expired: no reply in time, the vote was " + std::string(name_of(notice.action)) + " (" +
             std::to_string(notice.count) + " in a row)";
      break;
    case NoticeKind::ReplyRefused:
      text = "the reply to " + event + " was refused: " + std::string(name_of(notice.error));
      break;
    case NoticeKind::Demoted:
      text = "demoted to observer of " + std::string(name_of(notice.event)) + " events after " +
             std::to_string(notice.count) + " missed deadlines";
      break;
    case NoticeKind::Outcome:
      text = event + " decided: " + std::string(name_of(notice.action)) + " by " +
             (notice.agent.value == 0 ? std::string("kvmid") : "agent " + std::to_string(notice.agent.value));
      break;
    case NoticeKind::Revoked:
      text = "withdrawn";
      break;
    case NoticeKind::FrameRefused:
      text = "kvmid did not understand a message";
      break;
  }
  if (!notice.text.empty()) text += ": " + notice.text;
  return text;
}

std::string words(const GuestEntry& guest) {
  return "guest " + guest.name + " (" + to_string(guest.uuid) + ") is " + (guest.away ? "away" : "online");
}

std::string words(const GuestGone& gone) {
  return "guest " + to_string(gone.uuid) + " went: " + std::string(name_of(gone.reason)) +
         (gone.text.empty() ? std::string() : ": " + gone.text);
}

std::string json_fields(const ReceivedEvent& received) {
  const Event& event = received.event;
  Fields fields;
  fields.number("schema", kJsonSchema).text("type", "event").text("kind", name_of(event.kind()));
  fields.number("seq", received.seq.value).number("vcpu", event.vcpu.value).flag("decide", event.decide);
  fields.address("rip", event.regs.rip).address("cr3", event.sregs.cr3);
  data_fields(event.data, fields);
  return fields.take();
}

std::string json_fields(const ReceivedNotice& notice) {
  Fields fields;
  fields.number("schema", kJsonSchema).text("type", "notice").text("notice", name_of(notice.kind));
  fields.number("event_seq", notice.event_seq.value).text("kind", name_of(notice.event));
  fields.number("vcpu", notice.vcpu.value).text("action", name_of(notice.action)).number("agent", notice.agent.value);
  fields.text("error", notice.error == ErrorCode::None ? std::string_view() : name_of(notice.error));
  fields.number("count", notice.count).text("text", notice.text);
  return fields.take();
}

std::string json_fields(const GuestEntry& guest) {
  Fields fields;
  fields.number("schema", kJsonSchema).text("type", "guest_on").text("uuid", to_string(guest.uuid));
  fields.text("name", guest.name).number("vcpus", guest.vcpu_count);
  return fields.take();
}

std::string json_fields(const GuestGone& gone) {
  Fields fields;
  fields.number("schema", kJsonSchema).text("type", "guest_off").text("uuid", to_string(gone.uuid));
  fields.text("reason", name_of(gone.reason)).text("text", gone.text);
  return fields.take();
}

}  // namespace kvmid::client
