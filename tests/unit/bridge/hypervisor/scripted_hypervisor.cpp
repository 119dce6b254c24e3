// SPDX-License-Identifier: GPL-2.0-or-later
#include "tests/unit/bridge/hypervisor/scripted_hypervisor.h"

#include <algorithm>
#include <cstring>

namespace kvmid::bridge::test {

ByteVector bytes(std::initializer_list<unsigned> values) {
  ByteVector out;
  for (const unsigned value : values) out.push_back(static_cast<std::byte>(value));
  return out;
}

ByteVector bytes(std::size_t count, unsigned value) { return ByteVector(count, static_cast<std::byte>(value)); }

Hypervisor::Hypervisor(kvmi1::DialectId dialect, bool is_configured, std::uint16_t vcpu_count)
    : codec(kvmi1::codec(dialect)), vcpus(vcpu_count), memory(kMemoryBytes) {
  HypervisorHello hello;
  if (dialect == kvmi1::DialectId::V12 || dialect == kvmi1::DialectId::Rfc2017) hello.max_gpa = kMemoryBytes;
  HypervisorBridge::Options options;
  if (is_configured) options.dialect = dialect;
  bridge = std::make_unique<HypervisorBridge>(hello, options);
  for (std::size_t i = 0; i < memory.size(); ++i) memory[i] = static_cast<std::byte>((i ^ (i >> 8U)) & 0x7fU);
}

Hypervisor& Hypervisor::come_up() {
  const Answer version = ask(GetVersion{});
  INFO(broken);
  REQUIRE(version.error() == ErrorCode::None);
  REQUIRE(ask(GetGuestInfo{}).error() == ErrorCode::None);
  log.clear();
  return *this;
}

// ---- the core ----

Seq Hypervisor::send(const Command& command) {
  const Seq seq{++core_seq_};
  bridge->send(command, seq, wire_);
  collect();
  return seq;
}

Answer Hypervisor::ask(const Command& command) {
  const Seq seq = send(command);
  INFO(broken);
  const bool kept = serve_all();
  REQUIRE(kept);
  Answer answer = take_answer();
  REQUIRE(answer.passed.seq == seq);
  REQUIRE(answer.reply().id == static_cast<std::uint16_t>(id_of(command)));
  REQUIRE_FALSE(has_answer());
  return answer;
}

void Hypervisor::reply(const Event& event, Seq seq, Action action, ReplacedValue value) {
  bridge->send(EventReply{.vcpu = event.vcpu, .event = event.kind(), .action = action, .value = value}, seq, wire_);
  collect();
}

Answer Hypervisor::take_answer() {
  INFO(broken);
  REQUIRE(has_answer());
  // Views of the frame stay valid: the buffer is handed over with them, and moving does not move its bytes.
  Answer answer{bridge->up().take(), std::move(frame_)};
  REQUIRE(std::holds_alternative<CommandReply>(answer.passed.message));
  return answer;
}

// ---- the hypervisor ----

/// Cuts what the bridge has sent, and decodes it as the receiving side of the dialect does.
void Hypervisor::collect() {
  std::size_t at = 0;
  while (at < wire_.size()) {
    kvmi_msg_hdr header{};
    REQUIRE(wire_.size() - at >= sizeof header);
    std::memcpy(&header, wire_.data() + at, sizeof header);
    const std::size_t size = sizeof header + header.size;
    REQUIRE(header.size <= codec.payload_max());
    REQUIRE(wire_.size() - at >= size);
    const auto begin = wire_.begin() + static_cast<std::ptrdiff_t>(at);
    Sent sent{ByteVector(begin, begin + static_cast<std::ptrdiff_t>(size)), Seq{header.seq}, {}, ++sent_};
    const Frame frame{header.id, sent.seq, Bytes(sent.frame).subspan(sizeof header)};
    auto decoded = codec.decode_downward(frame);
    INFO("id " << header.id << " size " << header.size);
    REQUIRE(decoded.has_value());
    sent.message = *decoded;
    REQUIRE_FALSE(std::holds_alternative<kvmi1::UnknownMessage>(sent.message));
    at += size;
    if (sent.reply() != nullptr) {
      log.push_back(std::move(sent));
    } else {
      open.push_back(std::move(sent));
    }
  }
  wire_.clear();
}

Sent Hypervisor::take() {
  REQUIRE(is_asked());
  Sent sent = std::move(open.front());
  open.pop_front();
  return sent;
}

bool Hypervisor::serve_all() {
  while (is_asked()) {
    log.push_back(take());
    if (!serve(log.back())) return false;
  }
  return true;
}

bool Hypervisor::serve(const Sent& sent) {
  const auto& command = std::get<kvmi1::Command>(sent.message);
  std::int32_t error = refuse ? refuse(command) : 0;
  kvmi1::ReplyBody body;
  if (error == 0) body = body_for(command, error);
  return answer(sent, error == 0 ? body : kvmi1::ReplyBody{}, error);
}

bool Hypervisor::answer(const Sent& sent, kvmi1::ReplyBody body, std::int32_t error) {
  const auto kind = kvmi1::kind_of_command(std::get<kvmi1::Command>(sent.message));
  return answer(number(kind), sent.seq, std::move(body), error);
}

bool Hypervisor::answer(std::uint16_t id, Seq seq, kvmi1::ReplyBody body, std::int32_t error) {
  ByteBuffer out;
  codec.encode(kvmi1::Reply{id, error, std::move(body)}, seq, out);
  return receive(std::move(out));
}

Seq Hypervisor::event(const Event& event) {
  const Seq seq{++event_seq_};
  ByteBuffer out;
  codec.encode(kvmi1::EventMessage{event}, seq, out);
  receive(std::move(out));
  return seq;
}

Event Hypervisor::take_event() {
  INFO(broken);
  REQUIRE(broken.empty());
  REQUIRE_FALSE(bridge->up().empty());
  const auto passed = bridge->up().take();
  REQUIRE(passed.seq == Seq{event_seq_});
  REQUIRE(std::holds_alternative<Event>(passed.message));
  return std::get<Event>(passed.message);
}

bool Hypervisor::receive(ByteVector frame) {
  frame_ = std::move(frame);
  kvmi_msg_hdr header{};
  std::memcpy(&header, frame_.data(), sizeof header);
  const auto kept = bridge->received(Frame{header.id, Seq{header.seq}, Bytes(frame_).subspan(sizeof header)}, wire_);
  if (!kept) {
    broken = kept.error();
    return false;
  }
  collect();
  return true;
}

Event Hypervisor::make_event(EventData data, std::uint16_t vcpu) const {
  Event event;
  event.vcpu = VcpuId{vcpu};
  event.mode = 8;
  event.regs.rip = 0x401000;
  event.regs.rax = 7;
  event.sregs.cr3 = 0x1000;
  event.data = std::move(data);
  return event;
}

std::vector<const kvmi1::EventReplyMessage*> Hypervisor::replies() const {
  std::vector<const kvmi1::EventReplyMessage*> found;
  for (const Sent& sent : log)
    if (const auto* reply = sent.reply()) found.push_back(reply);
  return found;
}

const Sent& Hypervisor::last_reply() const {
  const Sent* found = nullptr;
  for (const Sent& sent : log)
    if (sent.reply() != nullptr) found = &sent;
  REQUIRE(found != nullptr);
  return *found;
}

kvmi1::ReplyBody Hypervisor::body_for(const kvmi1::Command& command, std::int32_t& error) {
  const auto in_page = [&](Gpa gpa, std::uint64_t size) {
    if (size == 0 || gpa.value % 4096 + size > 4096) {
      error = -kvmi1::kEinval;
    } else if (gpa.value + size > memory.size()) {
      error = -kvmi1::kEnoent;
    }
    return error == 0;
  };
  return std::visit(
      Overloaded{
          [&](const kvmi1::GetVersion&) -> kvmi1::ReplyBody {
            kvmi1::GetVersionReply version;
            version.max_message = codec.dialect() == kvmi1::DialectId::V12 ? 8184 : 0;
            const bool tells = codec.dialect() == kvmi1::DialectId::V7 || codec.dialect() == kvmi1::DialectId::V12;
            version.singlestep = singlestep && tells;
            return version;
          },
          [&](const kvmi1::CheckCommand& c) -> kvmi1::ReplyBody {
            if (denied_commands.contains(c.id)) error = -kvmi1::kEperm;
            return {};
          },
          [&](const kvmi1::CheckEvent& c) -> kvmi1::ReplyBody {
            if (denied_events.contains(c.id)) error = -kvmi1::kEperm;
            return {};
          },
          [&](const kvmi1::GetGuestInfo&) -> kvmi1::ReplyBody {
            const bool tells = codec.dialect() == kvmi1::DialectId::Rfc2017;
            return kvmi1::GetGuestInfoReply{vcpus, tells ? std::uint64_t{2'000'000'000} : 0};
          },
          [&](const kvmi1::GetVcpuInfo&) -> kvmi1::ReplyBody { return kvmi1::GetVcpuInfoReply{2'000'000'000}; },
          [&](const kvmi1::GetMaxGfn&) -> kvmi1::ReplyBody { return kvmi1::GfnReply{Gfn{memory.size() / 4096}}; },
          [&](const kvmi1::GetCpuid& c) -> kvmi1::ReplyBody {
            if (c.function == 0x80000008) return kvmi1::GetCpuidReply{0x3027, 0, 0, 0};
            return kvmi1::GetCpuidReply{c.function, c.index, 3, 4};
          },
          [&](const kvmi1::ReadPhysical& c) -> kvmi1::ReplyBody {
            if (!in_page(c.gpa, c.size)) return {};
            const auto begin = memory.begin() + static_cast<std::ptrdiff_t>(c.gpa.value);
            reply_bytes_.assign(begin, begin + static_cast<std::ptrdiff_t>(c.size));
            return kvmi1::ReadPhysicalReply{reply_bytes_};
          },
          [&](const kvmi1::WritePhysical& c) -> kvmi1::ReplyBody {
            if (!in_page(c.gpa, c.data.size())) return {};
            std::copy(c.data.begin(), c.data.end(), memory.begin() + static_cast<std::ptrdiff_t>(c.gpa.value));
            return {};
          },
          [&](const kvmi1::GetRegisters& c) -> kvmi1::ReplyBody {
            kvmi1::GetRegistersReply registers;
            registers.regs.rip = 0x401000;
            registers.sregs.cr3 = 0x1000;
            reply_msrs_.clear();
            for (std::size_t i = 0; i < c.msrs.size(); ++i)
              reply_msrs_.push_back({c.msrs[i], 0, std::uint64_t{c.msrs[i]} * 3});
            registers.msrs = std::span<const kvmi_x86_msr>(reply_msrs_);
            return registers;
          },
          [&](const kvmi1::GetXsave&) -> kvmi1::ReplyBody {
            reply_bytes_ = bytes(4096, 0x5a);
            return kvmi1::GetXsaveReply{reply_bytes_};
          },
          [&](const kvmi1::GetXcr&) -> kvmi1::ReplyBody { return kvmi1::GetXcrReply{7}; },
          [&](const kvmi1::TranslateGva& c) -> kvmi1::ReplyBody {
            const auto page = pages.find(c.gva.value >> 12U);
            if (page == pages.end()) return kvmi1::TranslateGvaReply{};
            return kvmi1::TranslateGvaReply{page->second + c.gva.value % 4096};
          },
          [&](const auto&) -> kvmi1::ReplyBody { return {}; },
      },
      command);
}

}  // namespace kvmid::bridge::test
