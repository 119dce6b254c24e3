// SPDX-License-Identifier: GPL-2.0-or-later
//
// A hostile tool of an older dialect at kvmid's end: its bytes are frames (a byte for what comes next, then the frame),
// and between them the core answers, and stops vCPUs. Nothing that the tool sends may bring more commands to the core
// than it allows, or anything but whole frames to the wire.

#include <cstdlib>
#include <cstring>
#include <deque>

#include "bridge/agent_bridge.h"
#include "protocol/dialect_kvmi2.h"
#include "tests/fuzz/byte_source.h"

using namespace kvmid;

namespace {

struct Open {
  Seq seq;
  CommandId id{};
};

class Core {
 public:
  Core(kvmi1::DialectId dialect, std::uint32_t requests_max) : requests_max_(requests_max) {
    bridge::AgentBridge::Options options;
    options.dialect = dialect;
    bridge::ToolRights rights;
    rights.commands.bits = ~std::uint64_t{0};
    rights.events = kEveryEvent;
    rights.requests_max = requests_max;
    bridge_.emplace(options, rights);
    take();
  }
  [[nodiscard]] bool closed() const { return bridge_->broken().has_value(); }

  void frame(std::uint16_t id, Seq seq, Bytes payload) {
    if (payload.size() > bridge_->payload_max()) return;
    const std::vector<std::byte> exact(payload.begin(), payload.end());
    static_cast<void>(bridge_->received(Frame{id, seq, exact}, wire_));
    take();
  }
  void answer(fuzz::ByteSource& source) {
    if (open_.empty()) return;
    const std::size_t which = source.pick(static_cast<std::uint32_t>(open_.size()));
    const Open open = open_[which];
    open_.erase(open_.begin() + static_cast<std::ptrdiff_t>(which));
    CommandReply reply;
    reply.id = static_cast<std::uint16_t>(open.id);
    const std::vector<std::byte> data(source.pick(64));
    const std::vector<kvmi_x86_msr> msrs(source.pick(4));
    if (source.one_in(4)) {
      static constexpr ErrorCode kErrors[] = {ErrorCode::Invalid, ErrorCode::Fault, ErrorCode::Busy,
                                              ErrorCode::NotSupported};
      reply.error = source.pick(kErrors);
    } else if (open.id == CommandId::GetGuestInfo) {
      GetGuestInfoReply info;
      info.vcpu_count = 2;
      reply.body = info;
    } else if (open.id == CommandId::ReadPhysical) {
      reply.body = ReadPhysicalReply{0, data};
    } else if (open.id == CommandId::GetXsave) {
      reply.body = GetXsaveReply{data};
    } else if (open.id == CommandId::GetRegisters) {
      GetRegistersReply registers;
      registers.msrs = std::span<const kvmi_x86_msr>(msrs);
      reply.body = registers;
    } else if (open.id == CommandId::GetCpuid) {
      reply.body = GetCpuidReply{};
    }
    bridge_->deliver(reply, open.seq, wire_);
    take();
  }
  void stop(fuzz::ByteSource& source) {
    const VcpuId vcpu{static_cast<std::uint16_t>(source.pick(2))};
    if (stopped_[vcpu.value]) {
      Notice notice;
      notice.kind = NoticeKind::Expired;
      notice.vcpu = vcpu;
      notice.event_seq = *stopped_[vcpu.value];
      stopped_[vcpu.value].reset();
      bridge_->deliver(notice, wire_);
      return take();
    }
    Event event;
    event.vcpu = vcpu;
    event.actions = ActionSet{static_cast<std::uint8_t>(1U | source.pick(16))};
    switch (source.pick(6)) {
      case 0:
        event.data = CrData{3, 1, 2};
        break;
      case 1:
        event.data = PageFaultData{Gva{1}, Gpa{2}, 7, true};
        break;
      case 2:
        event.data = TrapData{.vector = 14, .flags = KVMI_TRAP_F_INJECTED};
        break;
      case 3:
        event.data = BreakpointData{Gpa{1}, 1};
        break;
      case 4:
        event.data = CreateVcpuData{};
        break;
      default:
        event.data = PauseData{};
        break;
    }
    stopped_[vcpu.value] = Seq{++last_stop_};
    bridge_->deliver(event, Seq{last_stop_}, wire_);
    take();
  }
  void leave() {
    static_cast<void>(bridge_->guest_off(OffReason::Shutdown, wire_));
    for (auto& stopped : stopped_) stopped.reset();
    take();
  }

 private:
  void take() {
    while (!bridge_->down().empty()) {
      const auto passed = bridge_->down().take();
      if (const auto* reply = std::get_if<EventReply>(&passed.message)) {
        auto& stopped = stopped_[reply->vcpu.value % 2];
        if (!stopped || *stopped != passed.seq) std::abort();  // nobody waits for it
        stopped.reset();
      } else if (const auto* command = std::get_if<Command>(&passed.message)) {
        ByteBuffer bytes;
        DialectKvmi2{}.encode(*command, passed.seq, bytes);
        open_.push_back({passed.seq, id_of(*command)});
        if (open_.size() > requests_max_) std::abort();
      }
    }
    Bytes rest(wire_);
    while (!rest.empty()) {
      kvmi_msg_hdr header;
      if (rest.size() < sizeof header) std::abort();
      std::memcpy(&header, rest.data(), sizeof header);
      if (rest.size() - sizeof header < header.size) std::abort();
      rest = rest.subspan(sizeof header + header.size);
    }
    wire_.clear();
  }

  std::optional<bridge::AgentBridge> bridge_;
  ByteBuffer wire_;
  std::deque<Open> open_;
  std::optional<Seq> stopped_[2];
  std::uint32_t last_stop_ = 0;
  std::uint32_t requests_max_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fuzz::ByteSource source{std::span(data, size)};
  const auto dialect = static_cast<kvmi1::DialectId>(source.pick(kvmi1::kDialectCount));
  Core core(dialect, 1 + source.pick(4));
  while (!source.empty() && !core.closed()) {
    switch (source.pick(8)) {
      case 0:
      case 1:
      case 2: {
        const auto id = static_cast<std::uint16_t>(source.pick(70));
        const Seq seq{source.pick(16)};
        core.frame(id, seq, std::as_bytes(source.some(96)));
        break;
      }
      case 3: {
        // A message of zeros of some size, which most commands are happy with.
        const std::vector<std::byte> zeros(source.pick(64));
        core.frame(static_cast<std::uint16_t>(source.pick(70)), Seq{source.pick(16)}, zeros);
        break;
      }
      case 4:
      case 5:
        core.answer(source);
        break;
      case 6:
        core.stop(source);
        break;
      default:
        if (source.one_in(32)) core.leave();
        break;
    }
  }
  return 0;
}
