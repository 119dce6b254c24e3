// SPDX-License-Identifier: GPL-2.0-or-later
//
// A hostile hypervisor of an older dialect: the core's commands are a fixed script, what it is answered comes from the
// input, as good answers with a byte changed or as noise. Whatever it says, each command of the core has one answer at
// most, and nothing is answered that was not asked.

#include <cstdlib>
#include <cstring>
#include <deque>
#include <set>

#include "bridge/hypervisor_bridge.h"
#include "protocol/dialect_kvmi2.h"
#include "tests/fuzz/byte_source.h"

using namespace kvmid;

namespace {

/// What the hypervisor has not answered.
struct Waiting {
  std::uint16_t id = 0;
  Seq seq;
  std::size_t read_bytes = 0;  ///< of READ_PHYSICAL
};

class Link {
 public:
  explicit Link(kvmi1::DialectId dialect) : codec_(kvmi1::codec(dialect)), bridge_(HypervisorHello{}, {dialect}) {
    send(GetVersion{});
  }

  void send(const Command& command) {
    asked_.insert(++last_seq_);
    bridge_.send(command, Seq{last_seq_}, wire_);
    take();
  }
  /// A command of the script.
  void ask(fuzz::ByteSource& source) {
    const VcpuId vcpu{source.one_in(4) ? kAllVcpus.value : static_cast<std::uint16_t>(source.pick(3))};
    const kvmi_read_range ranges[] = {{0x1ff0, 0x20, 0}, {0x5000, 8, 0}};
    const std::uint32_t msrs[] = {0x10, 0x174};
    const kvmi_page_access_entry pages[] = {{0x1000, 600, 5, {}}, {0x4000, 1, 1, {}}};
    const std::byte bytes[] = {std::byte{0xcc}, std::byte{0x90}};
    WritePhysical write;
    write.gpa = Gpa{0x1ff0 + source.pick(4)};
    write.data = Bytes(bytes).first(1 + source.pick(2));
    switch (source.pick(14)) {
      case 0:
        return send(GetGuestInfo{});
      case 1:
        return send(ReadPhysical{AddressSpace::Normal, std::span<const kvmi_read_range>(ranges)});
      case 2:
        write.flags = KVMI_WRITE_PATCH;
        return send(write);
      case 3:
        write.flags = KVMI_WRITE_UNPATCH;
        return send(write);
      case 4:
        write.flags = KVMI_WRITE_EXPECT;
        write.expected = write.data;
        return send(write);
      case 5:
        return send(write);
      case 6:
        return send(ControlEvents{vcpu, static_cast<Operation>(source.pick(3)), Role::Decider,
                                  EventSet{source.any<std::uint16_t>()}});
      case 7:
        return send(GetRegisters{vcpu, std::span<const std::uint32_t>(msrs)});
      case 8:
        return send(SetPageAccess{AddressSpace::Normal, std::span<const kvmi_page_access_entry>(pages)});
      case 9:
        return send(InjectException{vcpu, 14, true, 2, 0x1000});
      case 10:
        return send(PauseVcpu{vcpu});
      case 11:
        return send(ControlCr{vcpu, source.coin(), 3});
      case 12:
        return send(ControlMsr{vcpu, source.coin(), 0x174});
      default:
        return send(GetXsave{vcpu});
    }
  }
  /// Answers the oldest command that the hypervisor was sent; false: the link is closed.
  bool answer(fuzz::ByteSource& source) {
    if (waiting_.empty()) return true;
    const auto [id, seq, read_bytes] = waiting_.front();
    waiting_.pop_front();
    const auto kind = codec_.command_of(id);
    kvmi1::Reply reply{id, 0, {}};
    const std::vector<std::byte> data(source.one_in(16) ? source.pick(256) : read_bytes);
    const std::vector<kvmi_x86_msr> msrs(2);
    if (source.one_in(8)) reply.error = -static_cast<std::int32_t>(source.pick(120));
    if (reply.error == 0 && kind) {
      using namespace kvmi1;
      if (*kind == kind_of<kvmi1::GetVersion>) {
        kvmi1::GetVersionReply version;
        version.max_message = codec_.dialect() == DialectId::V12 ? 8184 : 0;
        version.singlestep = codec_.dialect() != DialectId::V6 && codec_.dialect() != DialectId::Rfc2017;
        reply.body = version;
      } else if (*kind == kind_of<kvmi1::GetGuestInfo>) {
        reply.body = kvmi1::GetGuestInfoReply{2, 0};
      } else if (*kind == kind_of<GetVcpuInfo>) {
        reply.body = GetVcpuInfoReply{1000};
      } else if (*kind == kind_of<GetMaxGfn>) {
        reply.body = GfnReply{Gfn{0x1000}};
      } else if (*kind == kind_of<kvmi1::GetCpuid>) {
        reply.body = kvmi1::GetCpuidReply{};
      } else if (*kind == kind_of<kvmi1::GetRegisters>) {
        kvmi1::GetRegistersReply registers;
        registers.msrs = std::span<const kvmi_x86_msr>(msrs);
        reply.body = registers;
      } else if (*kind == kind_of<kvmi1::ReadPhysical>) {
        reply.body = kvmi1::ReadPhysicalReply{data};
      } else if (*kind == kind_of<kvmi1::TranslateGva>) {
        reply.body = kvmi1::TranslateGvaReply{0x1000};
      }
    }
    ByteBuffer bytes;
    codec_.encode(reply, seq, bytes);
    return give(source, std::move(bytes));
  }
  bool event(fuzz::ByteSource& source) {
    Event event;
    event.vcpu = VcpuId{static_cast<std::uint16_t>(source.pick(3))};
    switch (source.pick(5)) {
      case 0:
        event.data = CrData{3, 1, 2};
        break;
      case 1:
        event.data = PageFaultData{Gva{1}, Gpa{2}, 1, true};
        break;
      case 2:
        event.data = BreakpointData{Gpa{1}, 1};
        break;
      case 3:
        event.data = TrapData{.vector = 14};
        break;
      default:
        event.data = HypercallData{};
        break;
    }
    ByteBuffer bytes;
    codec_.encode(kvmi1::EventMessage{event, 0}, Seq{1000 + source.pick(8)}, bytes);
    return give(source, std::move(bytes));
  }
  bool noise(fuzz::ByteSource& source) {
    ByteBuffer bytes(sizeof(kvmi_msg_hdr));
    const kvmi_msg_hdr header{static_cast<std::uint16_t>(source.pick(70)), 0, source.pick(64)};
    std::memcpy(bytes.data(), &header, sizeof header);
    const auto more = std::as_bytes(source.some(200));
    bytes.insert(bytes.end(), more.begin(), more.end());
    return give(source, std::move(bytes));
  }
  /// The core answers an event that it was told.
  void reply(fuzz::ByteSource& source) {
    if (events_.empty()) return;
    const auto [event, seq] = events_.front();
    events_.pop_front();
    EventReply reply;
    reply.vcpu = event.vcpu;
    reply.event = event.kind();
    const auto wanted = static_cast<Action>(source.pick(kActionCount));
    reply.action = event.actions.has(wanted) ? wanted : Action::Allow;
    bridge_.send(reply, seq, wire_);
    take();
  }

 private:
  bool give(fuzz::ByteSource& source, ByteBuffer bytes) {
    if (source.one_in(10))
      bytes[source.pick(static_cast<std::uint32_t>(bytes.size()))] =
          source.any<std::uint8_t>() == 0 ? std::byte{0xff} : std::byte{1};
    if (source.one_in(20)) bytes.resize(sizeof(kvmi_msg_hdr) + source.pick(static_cast<std::uint32_t>(bytes.size())));
    kvmi_msg_hdr header;
    std::memcpy(&header, bytes.data(), sizeof header);
    const std::vector<std::byte> payload(bytes.begin() + sizeof header, bytes.end());
    if (payload.size() > bridge_.payload_max()) return true;
    const bool kept = bridge_.received(Frame{header.id, Seq{header.seq}, payload}, wire_).has_value();
    take();
    return kept;
  }
  void take() {
    while (!bridge_.up().empty()) {
      auto passed = bridge_.up().take();
      ByteBuffer bytes;
      if (const auto* reply = std::get_if<CommandReply>(&passed.message)) {
        if (asked_.erase(passed.seq.value) != 1) std::abort();  // nobody asked, or twice
        DialectKvmi2{}.encode(*reply, passed.seq, bytes);
      } else if (const auto* event = std::get_if<Event>(&passed.message)) {
        DialectKvmi2{}.encode(*event, passed.seq, bytes);
        events_.emplace_back(*event, passed.seq);
      } else {
        std::abort();
      }
    }
    Bytes rest(wire_);
    while (!rest.empty()) {
      kvmi_msg_hdr header;
      if (rest.size() < sizeof header) std::abort();
      std::memcpy(&header, rest.data(), sizeof header);
      if (rest.size() - sizeof header < header.size) std::abort();
      const Frame frame{header.id, Seq{header.seq}, rest.subspan(sizeof header, header.size)};
      if (frame.id != codec_.event_reply_id()) {
        waiting_.push_back({frame.id, frame.seq, 0});
        const auto message = codec_.decode_downward(frame);
        if (!message) std::abort();  // what kvmid sends is good
        if (const auto* command = std::get_if<kvmi1::Command>(&*message))
          if (const auto* read = std::get_if<kvmi1::ReadPhysical>(command)) waiting_.back().read_bytes = read->size;
      }
      rest = rest.subspan(sizeof header + header.size);
    }
    wire_.clear();
  }

  const kvmi1::Codec& codec_;
  bridge::HypervisorBridge bridge_;
  ByteBuffer wire_;
  std::set<std::uint32_t> asked_;
  std::deque<Waiting> waiting_;
  std::deque<std::pair<Event, Seq>> events_;
  std::uint32_t last_seq_ = 0;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fuzz::ByteSource source{std::span(data, size)};
  Link link(static_cast<kvmi1::DialectId>(source.pick(kvmi1::kDialectCount)));
  bool kept = true;
  // The first questions are answered well, most times: what comes then is worth more.
  if (!source.one_in(8)) {
    fuzz::ByteSource good{std::span<const std::uint8_t>{}};
    for (int i = 0; i < 200 && kept; ++i) kept = link.answer(good);
    link.send(GetGuestInfo{});
  }
  while (kept && !source.empty()) {
    switch (source.pick(8)) {
      case 0:
      case 1:
      case 2:
        link.ask(source);
        break;
      case 3:
      case 4:
        kept = link.answer(source);
        break;
      case 5:
        kept = link.event(source);
        break;
      case 6:
        link.reply(source);
        break;
      default:
        kept = source.one_in(4) ? link.noise(source) : link.answer(source);
        break;
    }
  }
  return 0;
}
