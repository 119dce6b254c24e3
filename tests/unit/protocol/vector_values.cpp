// SPDX-License-Identifier: GPL-2.0-or-later
#include "vector_values.h"

#include <fstream>
#include <stdexcept>

namespace kvmid::test {
namespace {

using Json = nlohmann::json;

template <std::size_t n>
std::string hex_of_array(const std::uint8_t (&bytes)[n]) {
  return hex_of(std::as_bytes(std::span(bytes)));
}

Json regs_json(const kvmi_x86_regs& r) {
  return {r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rsp, r.rbp, r.r8,
          r.r9,  r.r10, r.r11, r.r12, r.r13, r.r14, r.r15, r.rip, r.rflags};
}

Json sregs_json(const kvmi_x86_sregs& s) {
  Json segments = Json::array();
  for (const auto* g : {&s.cs, &s.ds, &s.es, &s.fs, &s.gs, &s.ss, &s.tr, &s.ldt}) {
    segments.push_back({g->base, g->limit, g->selector, g->type, g->present, g->dpl, g->db, g->s, g->l, g->g, g->avl,
                        g->unusable});
  }
  return {{"segments", segments},
          {"tables", {{s.gdt.base, s.gdt.limit}, {s.idt.base, s.idt.limit}}},
          {"control",
           {s.cr0, s.cr2, s.cr3, s.cr4, s.cr8, s.efer, s.apic_base, s.interrupt_bitmap[0], s.interrupt_bitmap[1],
            s.interrupt_bitmap[2], s.interrupt_bitmap[3]}}};
}

Json entries_json(const WireArray<kvmi_page_access_entry>& entries) {
  Json list = Json::array();
  for (std::size_t i = 0; i < entries.size(); ++i) {
    const auto e = entries[i];
    list.push_back({e.gpa, e.pages, e.access});
  }
  return list;
}

Json guest_json(const kvmi_guest_entry& guest) {
  return {hex_of_array(guest.uuid), text_of(guest.name, sizeof guest.name), guest.vcpu_count, guest.state};
}

Json command_json(const Command& command) {
  const Json none = Json::object();
  return std::visit(
      Overloaded{
          [&](const GetVersion&) { return none; },
          [](const GetGuests& c) { return Json{{"first", c.first}}; },
          [&](const GetGuestInfo&) { return none; },
          [](const PauseVcpu& c) { return Json{{"vcpu", c.vcpu.value}}; },
          [](const GetRegisters& c) {
            Json msrs = Json::array();
            for (std::size_t i = 0; i < c.msrs.size(); ++i) msrs.push_back(c.msrs[i]);
            return Json{{"vcpu", c.vcpu.value}, {"msrs", msrs}};
          },
          [](const SetRegisters& c) { return Json{{"vcpu", c.vcpu.value}, {"regs", regs_json(c.regs)}}; },
          [&](const ShutdownGuest&) { return none; },
          [](const GetCpuid& c) {
            return Json{{"vcpu", c.vcpu.value}, {"function", c.function}, {"index", c.index}};
          },
          [](const GetPageAccess& c) {
            return Json{{"gpa", c.gpa.value}, {"pages", c.pages}, {"space", static_cast<int>(c.space)}};
          },
          [](const SetPageAccess& c) {
            return Json{{"space", static_cast<int>(c.space)}, {"entries", entries_json(c.entries)}};
          },
          [](const InjectException& c) {
            return Json{{"vcpu", c.vcpu.value},
                        {"vector", c.vector},
                        {"has_error_code", c.has_error_code},
                        {"error_code", c.error_code},
                        {"address", c.address}};
          },
          [](const ReadPhysical& c) {
            Json ranges = Json::array();
            for (std::size_t i = 0; i < c.ranges.size(); ++i) ranges.push_back({c.ranges[i].gpa, c.ranges[i].size});
            return Json{{"space", static_cast<int>(c.space)}, {"ranges", ranges}};
          },
          [](const WritePhysical& c) {
            return Json{{"gpa", c.gpa.value},    {"space", static_cast<int>(c.space)}, {"flags", c.flags},
                        {"cookie", c.cookie},    {"data", hex_of(c.data)},
                        {"expected", hex_of(c.expected)}};
          },
          [](const GrantMemory& c) { return Json{{"flags", c.flags}}; },
          [](const ControlEvents& c) {
            return Json{{"vcpu", c.vcpu.value},
                        {"operation", static_cast<int>(c.operation)},
                        {"role", static_cast<int>(c.role)},
                        {"events", c.events.bits}};
          },
          [](const ControlCr& c) { return Json{{"vcpu", c.vcpu.value}, {"enable", c.enable}, {"cr", c.cr}}; },
          [](const ControlMsr& c) { return Json{{"vcpu", c.vcpu.value}, {"enable", c.enable}, {"msr", c.msr}}; },
          [](const TranslateGva& c) { return Json{{"vcpu", c.vcpu.value}, {"gva", c.gva.value}}; },
          [](const ControlSinglestep& c) { return Json{{"vcpu", c.vcpu.value}, {"enable", c.enable}}; },
          [](const SetFilter& c) {
            Json terms = Json::array();
            for (std::size_t i = 0; i < c.terms.size(); ++i) {
              const auto t = c.terms[i];
              terms.push_back({t.field, t.compare, t.new_group, t.reg, t.value, t.operand});
            }
            return Json{
                {"vcpu", c.vcpu.value}, {"event", name_of(c.event)}, {"action", name_of(c.action)}, {"terms", terms}};
          },
          [](const GetXsave& c) { return Json{{"vcpu", c.vcpu.value}}; },
          [](const SetXsave& c) { return Json{{"vcpu", c.vcpu.value}, {"area", hex_of(c.area)}}; },
          [](const GetXcr& c) { return Json{{"vcpu", c.vcpu.value}, {"xcr", c.xcr}}; },
          [](const GetMemoryMap& c) { return Json{{"space", static_cast<unsigned>(c.space)}}; },
      },
      command);
}

Json event_reply_json(const EventReply& r) {
  const Json value = std::visit(Overloaded{
                                    [](std::monostate) { return Json(); },
                                    [](const NewValue& v) { return Json(v.value); },
                                    [](const NewData& d) { return Json(hex_of(std::as_bytes(std::span(d.data)))); },
                                },
                                r.value);
  return {{"vcpu", r.vcpu.value},
          {"event", name_of(r.event)},
          {"action", name_of(r.action)},
          {"trap_access", r.trap_access},
          {"step_over", r.step_over},
          {"has_cookie", r.has_cookie},
          {"cookie", r.cookie},
          {"value", value}};
}

Json body_json(const ReplyBody& body) {
  return std::visit(
      Overloaded{
          [](std::monostate) { return Json::object(); },
          [](const GetVersionReply& b) {
            return Json{{"version", b.version},
                        {"max_payload", b.max_payload},
                        {"commands", b.commands.bits},
                        {"events", b.events.bits}};
          },
          [](const GetGuestsReply& b) {
            Json entries = Json::array();
            for (std::size_t i = 0; i < b.entries.size(); ++i) entries.push_back(guest_json(b.entries[i]));
            return Json{{"total", b.total}, {"entries", entries}};
          },
          [](const GetGuestInfoReply& b) {
            return Json{{"vcpu_count", b.vcpu_count},
                        {"arch", b.arch},
                        {"tsc_hz", b.tsc_hz},
                        {"physical_address_bits", b.physical_address_bits},
                        {"linear_address_bits", b.linear_address_bits},
                        {"execute_only", b.execute_only},
                        {"max_gpa", b.max_gpa}};
          },
          [](const GetRegistersReply& b) {
            Json msrs = Json::array();
            for (std::size_t i = 0; i < b.msrs.size(); ++i) msrs.push_back({b.msrs[i].index, b.msrs[i].value});
            return Json{
                {"mode", b.mode}, {"regs", regs_json(b.regs)}, {"sregs", sregs_json(b.sregs)}, {"msrs", msrs}};
          },
          [](const GetCpuidReply& b) { return Json{{"regs", {b.eax, b.ebx, b.ecx, b.edx}}}; },
          [](const GetPageAccessReply& b) { return Json{{"entries", entries_json(b.entries)}}; },
          [](const ReadPhysicalReply& b) { return Json{{"cookie", b.cookie}, {"data", hex_of(b.data)}}; },
          [](const WritePhysicalReply& b) { return Json{{"cookie", b.cookie}}; },
          [](const GrantMemoryReply& b) {
            return Json{
                {"ram_bytes", b.ram_bytes}, {"generation_bytes", b.generation_bytes}, {"fd_count", b.fd_count}};
          },
          [](const ControlEventsReply& b) { return Json{{"events", b.events.bits}}; },
          [](const TranslateGvaReply& b) {
            return Json{{"gpa", b.gpa.value}, {"page_bytes", b.page_bytes}, {"access", b.access}, {"user", b.user}};
          },
          [](const GetXsaveReply& b) { return Json{{"area", hex_of(b.area)}}; },
          [](const GetXcrReply& b) { return Json{{"value", b.value}}; },
          [](const GetMemoryMapReply& b) {
            Json slots = Json::array();
            for (std::size_t i = 0; i < b.slots.size(); ++i) {
              const kvmi_memory_slot slot = b.slots[i];
              slots.push_back({{"gpa", slot.gpa}, {"bytes", slot.bytes}, {"space", slot.address_space},
                               {"flags", slot.flags}});
            }
            return Json{{"slots", slots}};
          },
      },
      body);
}

Json changed_json(std::uint32_t number, std::uint64_t old_value, std::uint64_t new_value) {
  return {{"number", number}, {"old", old_value}, {"new", new_value}};
}

Json event_data_json(const EventData& data) {
  return std::visit(
      Overloaded{
          [](const UnhookData& d) { return Json{{"reason", name_of(d.reason)}}; },
          [](const CrData& d) { return changed_json(d.cr, d.old_value, d.new_value); },
          [](const MsrData& d) { return changed_json(d.msr, d.old_value, d.new_value); },
          [](const XsetbvData& d) { return changed_json(d.xcr, d.old_value, d.new_value); },
          [](const BreakpointData& d) { return Json{{"gpa", d.gpa.value}, {"insn_length", d.insn_length}}; },
          [](const HypercallData&) { return Json::object(); },
          [](const PageFaultData& d) {
            return Json{
                {"gva", d.gva.value}, {"gpa", d.gpa.value}, {"access", d.access}, {"gva_valid", d.gva_valid}};
          },
          [](const TrapData& d) {
            return Json{{"vector", d.vector},
                        {"kind", d.kind},
                        {"flags", d.flags},
                        {"displaced_vector", d.displaced_vector},
                        {"error_code", d.error_code},
                        {"address", d.address}};
          },
          [](const DescriptorData& d) { return Json{{"descriptor", d.descriptor}, {"write", d.write}}; },
          [](const CreateVcpuData&) { return Json::object(); },
          [](const PauseData&) { return Json::object(); },
          [](const SinglestepData& d) { return Json{{"failed", d.failed}}; },
          [](const CpuidData& d) { return Json{{"function", d.function}, {"index", d.index}}; },
          [](const AccessData& d) {
            return Json{{"gva", d.gva.value}, {"gpa", d.gpa.value},
                        {"access", d.access}, {"size", d.size},
                        {"index", d.index},   {"data", hex_of(std::as_bytes(std::span(d.data)))}};
          },
      },
      data);
}

Json event_json(const Event& e) {
  const auto& m = e.msrs;
  return {{"vcpu", e.vcpu.value},
          {"event", name_of(e.kind())},
          {"mode", e.mode},
          {"actions", e.actions.bits},
          {"decide", e.decide},
          {"space", static_cast<int>(e.space)},
          {"deadline_us", e.deadline_us},
          {"cookie", e.cookie},
          {"regs", regs_json(e.regs)},
          {"sregs", sregs_json(e.sregs)},
          {"msrs", {m.sysenter_cs, m.sysenter_esp, m.sysenter_eip, m.efer, m.star, m.lstar, m.cstar, m.pat, m.kernel_gs_base}},
          {"dr", {e.dr6, e.dr7}},
          {"data", event_data_json(e.data)}};
}

}  // namespace

Json values_of(const Downward& message) {
  return std::visit(Overloaded{
                        [](const Command& c) { return command_json(c); },
                        [](const EventReply& r) { return event_reply_json(r); },
                        [](const UnknownMessage& m) { return Json{{"unknown", m.id}}; },
                    },
                    message);
}

Json values_of(const Upward& message) {
  return std::visit(Overloaded{
                        [](const Event& e) { return event_json(e); },
                        [](const CommandReply& r) {
                          Json values = body_json(r.body);
                          values["error"] = name_of(r.error);
                          values["text"] = r.text;
                          return values;
                        },
                        [](const Notice& n) {
                          return Json{{"kind", name_of(n.kind)},     {"event", name_of(n.event)},
                                      {"action", name_of(n.action)}, {"vcpu", n.vcpu.value},
                                      {"error", name_of(n.error)},   {"agent", n.agent.value},
                                      {"event_seq", n.event_seq.value}, {"count", n.count},
                                      {"text", n.text}};
                        },
                        [](const GuestOn& g) { return Json{{"guest", guest_json(g.guest)}}; },
                        [](const GuestOff& g) {
                          return Json{{"uuid", hex_of(std::as_bytes(std::span(g.uuid.bytes)))},
                                      {"reason", name_of(g.reason)},
                                      {"text", g.text}};
                        },
                        [](const MemoryMapChanged& m) {
                          return Json{{"change", static_cast<int>(m.change)},
                                      {"max_gpa", m.max_gpa},
                                      {"old_gpa", m.old_gpa.value},
                                      {"slot",
                                       {{"gpa", m.slot.gpa},
                                        {"bytes", m.slot.bytes},
                                        {"space", m.slot.address_space},
                                        {"flags", m.slot.flags}}}};
                        },
                        [](const UnknownMessage& m) { return Json{{"unknown", m.id}}; },
                    },
                    message);
}

Json values_of(const AgentHello& h) {
  return {{"uuid", hex_of(std::as_bytes(std::span(h.uuid.bytes)))}, {"name", h.name}, {"flags", h.flags}};
}

Json values_of(const kvmi_welcome& w) {
  return {{"status", name_of(static_cast<ErrorCode>(-w.status))},
          {"numbers", {w.agent, w.max_payload, w.requests_max, w.queue_bytes_max, w.deadline_us, w.priority}},
          {"commands", w.commands},
          {"events", w.events},
          {"vcpu_count", w.vcpu_count},
          {"role", w.role},
          {"default_action", w.default_action},
          {"uuid", hex_of_array(w.uuid)},
          {"guest_name", text_of(w.guest_name, sizeof w.guest_name)},
          {"text", text_of(w.text, sizeof w.text)}};
}

Json values_of(const HypervisorHello& h) {
  return {{"uuid", hex_of(std::as_bytes(std::span(h.uuid.bytes)))},
          {"start_time", h.start_time},
          {"name", h.name},
          {"max_gpa", h.max_gpa},
          {"kvmi2", h.kvmi2},
          {"flags", h.flags},
          {"ram_bytes", h.ram_bytes}};
}

Json values_of(const HypervisorAnswer& a) {
  return {{"kvmi2", a.kvmi2}, {"status", name_of(a.status)}, {"text", a.text}};
}

std::string hex_of(Bytes bytes) {
  std::string hex;
  for (const auto byte : bytes) {
    hex += "0123456789abcdef"[static_cast<unsigned>(byte) >> 4];
    hex += "0123456789abcdef"[static_cast<unsigned>(byte) & 0xf];
  }
  return hex;
}

std::vector<std::byte> bytes_of_hex(std::string_view hex) {
  if (hex.size() % 2 != 0) throw std::invalid_argument("odd number of hex digits");
  std::vector<std::byte> bytes;
  for (std::size_t i = 0; i < hex.size(); i += 2) {
    bytes.push_back(static_cast<std::byte>(std::stoi(std::string(hex.substr(i, 2)), nullptr, 16)));
  }
  return bytes;
}

const Json& all_vectors() {
  static const Json vectors = [] {
    std::ifstream file(KVMID_VECTORS_DIR "/kvmi2.json");
    if (!file) throw std::runtime_error("tests/vectors/kvmi2.json is missing");
    return Json::parse(file);
  }();
  return vectors;
}

}  // namespace kvmid::test
