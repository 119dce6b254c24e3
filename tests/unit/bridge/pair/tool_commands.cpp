// SPDX-License-Identifier: GPL-2.0-or-later
// The tool: any command of its dialect, replies early, late and to nothing, and noise.
#include <cstring>

#include "tests/unit/bridge/pair/older_link.h"
#include "tests/unit/bridge/pair/tool_world.h"

namespace kvmid::bridge::test {

using kvmi1::DialectId;

namespace {

template <class T>
WireArray<T> array_in(std::vector<std::byte>& bytes, const std::vector<T>& items) {
  bytes.resize(items.size() * sizeof(T));
  if (!items.empty()) std::memcpy(bytes.data(), items.data(), bytes.size());
  return WireArray<T>(Bytes(bytes));
}

/// Those that answer with nothing but success or an error.
bool answers_without_data(const kvmi1::Command& command) {
  return std::visit(
      [](const auto& c) {
        using T = std::decay_t<decltype(c)>;
        constexpr std::array kinds = {kvmi1::kind_of<kvmi1::PauseVcpu>,       kvmi1::kind_of<kvmi1::ControlVmEvents>,
                                      kvmi1::kind_of<kvmi1::ControlEvents>,   kvmi1::kind_of<kvmi1::ControlCr>,
                                      kvmi1::kind_of<kvmi1::ControlMsr>,      kvmi1::kind_of<kvmi1::SetRegisters>,
                                      kvmi1::kind_of<kvmi1::SetXsave>,        kvmi1::kind_of<kvmi1::WritePhysical>,
                                      kvmi1::kind_of<kvmi1::InjectException>, kvmi1::kind_of<kvmi1::SetPageAccess>,
                                      kvmi1::kind_of<kvmi1::ControlSpp>,      kvmi1::kind_of<kvmi1::ControlCmdResponse>,
                                      kvmi1::kind_of<kvmi1::SwitchEptView>,   kvmi1::kind_of<kvmi1::ControlSinglestep>,
                                      kvmi1::kind_of<kvmi1::CheckCommand>,    kvmi1::kind_of<kvmi1::CheckEvent>};
        for (const auto kind : kinds) {
          if (kind == kvmi1::kind_of<T>) return true;
        }
        return false;
      },
      command);
}

template <std::size_t... I>
kvmi1::Command command_at(std::size_t at, std::index_sequence<I...>) {
  kvmi1::Command command;
  static_cast<void>(((I == at ? (command.emplace<I>(), true) : false) || ...));
  return command;
}

}  // namespace

template <class T>
void ToolWorld::fill(T& c) {
  const std::array<std::uint64_t, 4> gpas = {0x2000, 0x2ffc, 0x3000, rng_.below(0x10000)};
  if constexpr (requires { c.vcpu; }) c.vcpu = rng_.one_in(40) ? VcpuId{kVcpus} : any_vcpu();
  if constexpr (requires { c.gpa; }) c.gpa = Gpa{rng_.of(gpas)};
  if constexpr (requires { c.enable; }) c.enable = rng_.percent(60);
  if constexpr (requires { c.wait; }) c.wait = rng_.percent(60);
  if constexpr (requires { c.now; }) c.now = rng_.percent(50);
  if constexpr (requires { c.error_events; }) c.error_events = is(DialectId::V7) && rng_.percent(50);
  if constexpr (requires { c.event; }) c.event = static_cast<std::uint16_t>(rng_.below(22));
  if constexpr (requires { c.id; }) c.id = static_cast<std::uint16_t>(rng_.below(70));
  if constexpr (requires { c.cr; }) c.cr = static_cast<std::uint32_t>(rng_.below(5));
  if constexpr (requires { c.msr; }) c.msr = 0xc0000082;
  if constexpr (requires { c.size; }) c.size = rng_.between(1, 32);
  if constexpr (requires { c.function; }) c.function = static_cast<std::uint32_t>(rng_.below(0x20));
  if constexpr (requires { c.vector; }) c.vector = rng_.one_in(2) ? std::uint8_t{14} : std::uint8_t{3};
  if constexpr (requires { c.mask; }) c.mask = static_cast<std::uint32_t>(rng_.below(0x100)) & 0xfeU;
  if constexpr (requires { c.access; }) c.access = static_cast<std::uint32_t>(rng_.below(9));
  if constexpr (std::is_same_v<T, kvmi1::GetRegisters>) {
    std::vector<std::uint32_t> msrs(rng_.below(4));
    for (auto& msr : msrs) msr = static_cast<std::uint32_t>(rng_.below(0x200));
    c.msrs = array_in(one_, msrs);
  }
  if constexpr (std::is_same_v<T, kvmi1::SetXsave>) {
    one_.assign(is(DialectId::V12) ? 4096 : rng_.below(4097), std::byte{3});
    c.area = one_;
  }
  if constexpr (std::is_same_v<T, kvmi1::WritePhysical>) {
    one_.assign(rng_.percent(60) ? 1 : rng_.between(1, 16), rng_.percent(60) ? std::byte{0xcc} : std::byte{0x90});
    c.data = one_;
  }
  if constexpr (std::is_same_v<T, kvmi1::SetPageAccess>) {
    std::vector<kvmi1::PageAccessEntry> entries(rng_.below(8));
    for (auto& entry : entries) {
      entry.gpa = rng_.below(16) * kPageSize;
      entry.access = static_cast<std::uint8_t>(rng_.below(9));
    }
    c.entries = array_in(one_, entries);
  }
  if constexpr (requires { c.gpas; }) {
    std::vector<std::uint64_t> pages(rng_.below(5));
    for (auto& page : pages) page = rng_.below(16) * kPageSize;
    c.gpas = array_in(one_, pages);
  }
}

std::optional<kvmi1::Command> ToolWorld::any_command() {
  for (int tries = 0; tries < 20; ++tries) {
    kvmi1::Command command =
        command_at(rng_.below(kvmi1::kCommandCount), std::make_index_sequence<kvmi1::kCommandCount>{});
    if (!codec_.number_of(kvmi1::kind_of_command(command))) continue;
    // With replies off, commands that answer with data close the connection, and so do those that are unknown.
    if (polite_ && !replies_on_ && !answers_without_data(command)) continue;
    if (std::holds_alternative<kvmi1::ControlCmdResponse>(command) && replies_on_ && !rng_.one_in(4)) continue;
    std::visit([this](auto& c) { fill(c); }, command);
    if (std::holds_alternative<kvmi1::UnpauseGuest>(command)) {
      if (guest_pauses_ == 0) continue;
      --guest_pauses_;
    }
    if (std::holds_alternative<kvmi1::PauseGuest>(command)) ++guest_pauses_;
    return command;
  }
  return std::nullopt;
}

void ToolWorld::command() {
  if (const auto command = any_command()) send(*command);
}

void ToolWorld::send(const kvmi1::Command& command) {
  ++counts_.commands;
  ByteBuffer bytes;
  codec_.encode(command, Seq{++last_seq_}, bytes);
  bool on = replies_on_;
  if (const auto* control = std::get_if<kvmi1::ControlCmdResponse>(&command)) {
    if (control->now) on = control->enable;
    replies_on_ = control->enable;
    error_events_ = control->error_events;
  }
  if (const auto* events = std::get_if<kvmi1::ControlVmEvents>(&command)) {
    if (codec_.event_of(events->event) == EventKind::Unhook && !off_) wants_unhook_ = events->enable;
  }
  auto due = on ? Sent::Reply::Due : Sent::Reply::None;
  if (!polite_) due = Sent::Reply::Perhaps;
  frame_of(bytes, due);
}

// ---- replies to events ----

void ToolWorld::event_reply(VcpuId vcpu, const Told& told) {
  kvmi1::EventReplyMessage message;
  message.vcpu = vcpu;
  message.event = static_cast<std::uint8_t>(codec_.number_of(told.kind).value_or(0));
  const bool retries =
      told.kind == EventKind::Breakpoint || told.kind == EventKind::PageFault || told.kind == EventKind::Descriptor;
  message.action = static_cast<std::uint32_t>(rng_.below(3));
  if (!retries && message.action == kvmi1::kRetry) message.action = kvmi1::kContinue;
  if (is(DialectId::Rfc2017)) message.action = static_cast<std::uint32_t>(rng_.below(16)) & ~kvmi1::kSetContext2017;
  if (!polite_ && rng_.one_in(10)) message.action = static_cast<std::uint32_t>(rng_.below(6));
  const std::uint64_t value = rng_.next();
  static constexpr std::array<std::byte, 260> kNoContext{};
  if (told.kind == EventKind::Cr || told.kind == EventKind::Msr) message.data = std::as_bytes(std::span(&value, 1));
  if (told.kind == EventKind::PageFault && is(DialectId::Rfc2017)) message.data = kNoContext;
  ByteBuffer bytes;
  codec_.encode(message, Seq{told.seq}, bytes);
  frame_of(bytes, polite_ ? Sent::Reply::None : Sent::Reply::Perhaps);
}

void ToolWorld::reply_somewhere() {
  const VcpuId vcpu = any_vcpu();
  auto& told = told_[vcpu.value];
  if (told.empty()) return;
  // Early, or late: events whose time has run out are answered too, once, in any order.
  const std::size_t which = rng_.one_in(3) ? told.size() - 1 : 0;
  const Told one = told[which];
  if (polite_ || rng_.one_in(20) == 0) told.erase(told.begin() + static_cast<std::ptrdiff_t>(which));
  event_reply(vcpu, one);
}

void ToolWorld::noise() {
  const std::uint64_t what = rng_.below(5);
  if (what == 0) {
    std::vector<std::byte> payload(rng_.below(64));
    for (auto& byte : payload) byte = static_cast<std::byte>(rng_.below(256));
    return received(static_cast<std::uint16_t>(rng_.below(70)), ++last_seq_, std::move(payload), Sent::Reply::Perhaps);
  }
  if (what == 1)
    return event_reply(VcpuId{static_cast<std::uint16_t>(rng_.below(kVcpus + 2))},
                       Told{static_cast<std::uint32_t>(rng_.below(last_event_ + 2U)), EventKind::Hypercall});
  const auto command = any_command();
  if (!command) return;
  ByteBuffer bytes;
  codec_.encode(*command, Seq{++last_seq_}, bytes);
  kvmi_msg_hdr header;
  std::memcpy(&header, bytes.data(), sizeof header);
  std::vector<std::byte> payload(bytes.begin() + sizeof header, bytes.end());
  if (what == 2)
    payload.resize(rng_.below(payload.size() + 1));
  else if (!payload.empty())
    payload[rng_.below(payload.size())] = static_cast<std::byte>(rng_.below(256));
  received(header.id, header.seq, std::move(payload), Sent::Reply::Perhaps);
}

}  // namespace kvmid::bridge::test
