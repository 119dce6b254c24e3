// SPDX-License-Identifier: GPL-2.0-or-later
//
// What real tools said, as it was recorded, said again to the bridge. Behind it stands a core that does what it is
// asked, or refuses it as the recorded hypervisor did. Every command must get the reply that was recorded: its id, its
// number, its error; and where the hypervisor closed, the bridge must say so. What KVMI 2 does otherwise is named
// below.

#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <string>

#include "rig.h"

using namespace kvmid;
using namespace kvmid::bridge::test;
using kvmid::bridge::AgentBridge;
using kvmid::bridge::ToolRights;
using nlohmann::json;

namespace {

struct Exception {
  std::string capture;
  std::string what;                      ///< "" matches every command
  std::optional<std::int32_t> recorded;  ///< the error that was recorded; none: any
  std::int32_t here = 0;                 ///< the one that this bridge gives
  std::string why;
};

const std::vector<Exception> kExceptions = {
    {"", "CMD VM_CONTROL_CLEANUP", 0, kEopnotsupp, "what a tool leaves is always taken back: `disable` is refused"},
    {"", "CMD VCPU_SET_XSAVE", 0, kEopnotsupp, "XSAVE areas are set during an event only"},
    {"v12-denied", "CMD VM_CHECK_EVENT", -1, 0, "UNHOOK and PAUSE are told without a right of their own"},
    {"v12-denied", "CMD VM_CONTROL_EVENTS", -1, 0, "UNHOOK is told without a right of its own"},
    {"v12-denied", "CMD VM_PAUSE_VCPU", -1, 0, "the PAUSE event follows its command"},
    {"v7-libkvmi-errors", "CMD CHECK_COMMAND", -1, 0, "answered from rights"},
    {"v7-libkvmi-errors", "CMD CHECK_EVENT", -1, 0, "answered from rights"},
    {"v7-libkvmi-errors", "CMD CONTROL_EVENTS", -1, 0, "PAUSE and TRAP need no subscription"},
    {"v7-libkvmi-errors", "CMD SET_PAGE_ACCESS", -1, kEopnotsupp, "views but 0"},
    {"v7-libkvmi-errors", "CMD GET_EPT_VIEW", -1000, 0, "there is one view, and its number is 0"},
    {"v12-selftest-a", "CMD VCPU_CONTROL_EVENTS", -1, 0, "the self-test takes rights away before, from outside"},
    {"v7-libkvmi", "CMD SET_PAGE_ACCESS", 0, kEopnotsupp, "views but 0"},
    {"v7-libkvmi", "CMD SWITCH_EPT_VIEW", 0, kEopnotsupp, "views but 0"},
    {"v7-libkvmi", "CMD SET_REGISTERS", 0, kEopnotsupp, "registers are set during an event only, as the kernel has it"},
};

/// Commands of v7 that KVMI 2 has nothing for: always unsupported.
const std::set<std::string> kNothingDoes = {"CMD GET_MAP_TOKEN",    "CMD CONTROL_SPP",      "CMD SET_PAGE_WRITE_BITMAP",
                                            "CMD SET_VE_INFO_PAGE", "CMD DISABLE_VE",       "CMD CONTROL_EPT_VIEW",
                                            "CMD CREATE_EPT_VIEW",  "CMD DESTROY_EPT_VIEW", "CMD VCPU_CHANGE_GFN",
                                            "CMD VCPU_ALLOC_GFN",   "CMD VCPU_FREE_GFN",    "CMD SET_PAGE_SVE"};

bool excused(const std::string& capture, const std::string& what, std::int32_t recorded, std::int32_t here) {
  if (kNothingDoes.contains(what)) return here == kEopnotsupp;
  for (const Exception& e : kExceptions) {
    if (capture.starts_with(e.capture) && e.what == what && (!e.recorded || *e.recorded == recorded) &&
        e.here == here) {
      return true;
    }
  }
  return false;
}

struct Line {
  std::string what;
  bool from_tool = false;
  std::vector<std::byte> payload;
  std::uint16_t id = 0;
  std::uint32_t seq = 0;
  std::size_t n = 0;
};

std::vector<std::byte> bytes_of_hex(const std::string& hex) {
  std::vector<std::byte> bytes;
  for (std::size_t i = 0; i + 1 < hex.size(); i += 2) {
    bytes.push_back(static_cast<std::byte>(std::stoul(hex.substr(i, 2), nullptr, 16)));
  }
  return bytes;
}

struct Connection {
  std::vector<Line> lines;
};
struct Capture {
  std::string name;
  DialectId dialect{};
  std::uint16_t vcpus = 1;
  std::vector<Connection> connections;
};

Capture load(const std::string& name) {
  std::ifstream file(std::string(KVMID_VECTORS_DIR) + "/captures/" + name + ".jsonl");
  REQUIRE(file.good());
  Capture capture;
  capture.name = name;
  for (std::string text; std::getline(file, text);) {
    const json entry = json::parse(text);
    if (entry.contains("capture")) {
      capture.dialect = *kvmi1::dialect_named(entry.at("dialect").get<std::string>());
      capture.vcpus = entry.at("vcpus").get<std::uint16_t>();
      continue;
    }
    const auto what = entry.at("what").get<std::string>();
    if (what == "CONNECT" || capture.connections.empty()) capture.connections.emplace_back();
    if (what == "CONNECT" || what.starts_with("HANDSHAKE")) continue;
    Line line;
    line.what = what;
    line.from_tool = entry.at("dir") == "A>H";
    line.n = entry.at("n").get<std::size_t>();
    if (entry.contains("id")) {
      line.id = entry.at("id").get<std::uint16_t>();
      line.seq = entry.at("seq").get<std::uint32_t>();
      const auto bytes = bytes_of_hex(entry.at("hex").get<std::string>());
      line.payload.assign(bytes.begin() + sizeof(kvmi_msg_hdr), bytes.end());
    }
    capture.connections.back().lines.push_back(std::move(line));
  }
  return capture;
}

std::int32_t error_at(const Line& reply) {
  std::int32_t error = 0;
  REQUIRE(reply.payload.size() >= sizeof error);
  std::memcpy(&error, reply.payload.data(), sizeof error);
  return error;
}

/// Does what it is asked, or refuses with `error`.
class StandIn {
 public:
  StandIn(AgentBridge& bridge, std::uint16_t vcpus) : bridge_(bridge), vcpus_(vcpus) {}

  void serve(ErrorCode error, ByteBuffer& wire) {
    while (!bridge_.down().empty()) {
      const auto passed = bridge_.down().take();
      const auto* command = std::get_if<Command>(&passed.message);
      if (command == nullptr) continue;
      ErrorCode refused = error;
      const bool memory =
          std::holds_alternative<ReadPhysical>(*command) || std::holds_alternative<WritePhysical>(*command);
      if (memory && refused == ErrorCode::NoEntry) refused = ErrorCode::Fault;
      if (std::holds_alternative<SetXsave>(*command) && !in_event && refused == ErrorCode::None) {
        refused = ErrorCode::TryAgain;
      }
      const auto* get = std::get_if<GetRegisters>(command);
      if (get != nullptr && get->vcpu == unstarted) refused = ErrorCode::TryAgain;
      CommandReply reply;
      reply.id = static_cast<std::uint16_t>(id_of(*command));
      reply.error = refused;
      if (refused == ErrorCode::None) reply.body = std::visit([&](const auto& c) { return body(c); }, *command);
      bridge_.deliver(reply, passed.seq, wire);
    }
  }

  bool in_event = false;
  std::optional<VcpuId> unstarted;

 private:
  ReplyBody body(const GetGuestInfo&) {
    GetGuestInfoReply facts;
    facts.vcpu_count = vcpus_;
    facts.max_gpa = 0x10000000;
    return facts;
  }
  ReplyBody body(const GetRegisters& command) {
    msrs_.clear();
    for (std::size_t i = 0; i < command.msrs.size(); ++i) msrs_.push_back({command.msrs[i], 0, 0});
    GetRegistersReply reply;
    reply.msrs = std::span<const kvmi_x86_msr>(msrs_);
    return reply;
  }
  ReplyBody body(const GetCpuid&) { return GetCpuidReply{}; }
  ReplyBody body(const GetXsave&) {
    bytes_.assign(832, std::byte{0});
    return GetXsaveReply{bytes_};
  }
  ReplyBody body(const GetXcr&) { return GetXcrReply{7}; }
  ReplyBody body(const ReadPhysical& command) {
    bytes_.assign(command.ranges[0].size, std::byte{0});
    return ReadPhysicalReply{1, bytes_};
  }
  ReplyBody body(const WritePhysical&) { return WritePhysicalReply{1}; }
  ReplyBody body(const ControlEvents&) { return ControlEventsReply{}; }
  ReplyBody body(const TranslateGva&) { return TranslateGvaReply{}; }
  ReplyBody body(const GetMemoryMap&) {
    slots_ = {{0, 0x10000000, 0, 0, 0}};
    return GetMemoryMapReply{std::span<const kvmi_memory_slot>(slots_)};
  }
  ReplyBody body(const auto&) { return {}; }

  AgentBridge& bridge_;
  std::uint16_t vcpus_;
  std::vector<kvmi_x86_msr> msrs_;
  std::vector<kvmi_memory_slot> slots_;
  std::vector<std::byte> bytes_;
};

struct Tally {
  unsigned commands = 0, same = 0, excused = 0, closes = 0;
};

/// Rights as the recorded hypervisor gave them: what its checks refused.
ToolRights rights_of(const Capture& capture, const Connection& connection) {
  const auto& codec = kvmi1::codec(capture.dialect);
  ToolRights rights = every_right();
  if (capture.name != "v12-denied") return rights;
  std::map<std::uint32_t, const Line*> replies;
  for (const Line& line : connection.lines) {
    if (!line.from_tool && line.what.starts_with("REPLY")) replies[line.seq] = &line;
  }
  for (const Line& line : connection.lines) {
    if (!line.what.starts_with("CMD VM_CHECK") || error_at(*replies.at(line.seq)) != kEperm) continue;
    std::uint16_t number = 0;
    std::memcpy(&number, line.payload.data(), sizeof number);
    if (line.what == "CMD VM_CHECK_EVENT") {
      rights.events.bits &= ~(std::uint64_t{1} << static_cast<unsigned>(*codec.event_of(number)));
    } else if (codec.command_of(number) == kvmi1::kind_of<kvmi1::ReadPhysical>) {
      rights.commands.bits &= ~(std::uint64_t{1} << KVMI_MSG_READ_PHYSICAL);
    } else if (codec.command_of(number) == kvmi1::kind_of<kvmi1::GetRegisters>) {
      rights.commands.bits &= ~(std::uint64_t{1} << KVMI_MSG_GET_REGISTERS);
    } else {
      FAIL("the capture denies a command that this test does not know: " << number);
    }
  }
  return rights;
}

void play(const Capture& capture, const Connection& connection, Tally& tally) {
  const auto& codec = kvmi1::codec(capture.dialect);
  AgentBridge bridge({capture.dialect, true}, rights_of(capture, connection));
  StandIn core(bridge, capture.vcpus);
  if (capture.name == "v12-uninit") core.unstarted = VcpuId{1};
  ByteBuffer wire;
  core.serve(ErrorCode::None, wire);

  std::map<std::pair<std::uint16_t, std::uint32_t>, std::int32_t> recorded;
  for (const Line& line : connection.lines) {
    if (!line.from_tool && line.what.starts_with("REPLY")) recorded[{line.id, line.seq}] = error_at(line);
  }
  const auto is_command = [&](std::uint16_t id) { return id != codec.event_reply_id() || id > 1; };
  std::map<std::pair<std::uint16_t, std::uint32_t>, std::int32_t> got;
  std::map<std::uint32_t, std::uint32_t> event_seqs;  // recorded -> the bridge's
  std::uint32_t last_event = 0;
  const auto collect = [&] {
    Bytes rest(wire);
    while (!rest.empty()) {
      kvmi_msg_hdr header;
      std::memcpy(&header, rest.data(), sizeof header);
      const Bytes payload = rest.subspan(sizeof header, header.size);
      std::int32_t error = 0;
      if (payload.size() >= sizeof error) std::memcpy(&error, payload.data(), sizeof error);
      if (header.id == 1 && payload.size() > 8) {
        last_event = header.seq;
      } else if (is_command(header.id) || payload.size() == 8) {
        got[{header.id, header.seq}] = error;
      }
      rest = rest.subspan(sizeof header + header.size);
    }
    wire.clear();
  };

  bool closed = false;
  std::map<std::pair<std::uint16_t, std::uint32_t>, std::string> sent;
  for (const Line& line : connection.lines) {
    INFO(capture.name << " n=" << line.n << " " << line.what << " seq=" << line.seq);
    if (!line.from_tool) {
      if (line.what == "CLOSE" && capture.dialect == DialectId::V12) {  // v7: the script was at its end
        CHECK(closed);
        ++tally.closes;
      }
      if (!line.what.starts_with("EVENT")) continue;
      const auto message = codec.decode_upward(Frame{line.id, Seq{line.seq}, line.payload});
      REQUIRE(message.has_value());
      const auto* event = std::get_if<kvmi1::EventMessage>(&*message);
      if (event == nullptr) continue;                          // CMD_ERROR
      if (event->event.kind() == EventKind::Unhook) continue;  // when it comes here commands are not served any more
      Event raised = event->event;
      raised.actions.bits = 0xf;
      if (auto* trap = std::get_if<TrapData>(&raised.data)) trap->flags |= KVMI_TRAP_F_INJECTED;
      bridge.deliver(raised, Seq{1000 + line.seq}, wire);
      core.in_event = true;
      core.serve(ErrorCode::None, wire);
      collect();
      event_seqs[line.seq] = last_event;
      continue;
    }
    if (line.what == "CLOSE") continue;
    if (line.payload.size() > bridge.payload_max()) {  // the parser of frames refuses this one
      closed = true;
      continue;
    }
    Frame frame{line.id, Seq{line.seq}, line.payload};
    const bool reply = line.what.starts_with("EVENT_REPLY");
    if (reply && event_seqs.contains(line.seq)) frame.seq = Seq{event_seqs.at(line.seq)};
    const auto key = std::pair{line.id, line.seq};
    if (!reply) sent[key] = line.what;
    const auto error = recorded.contains(key) ? recorded.at(key) : 0;
    const auto result = bridge.received(frame, wire);
    core.serve(bridge::error_from(error, capture.dialect), wire);
    if (!result || bridge.broken()) closed = true;
    collect();
    if (closed) CHECK(connection.lines.back().what == "CLOSE");
    if (result.has_value() == bridge.broken().has_value()) FAIL("what received() says is not what broken() says");
  }
  for (const auto& [key, what] : sent) {
    ++tally.commands;
    INFO(capture.name << " " << what << " id=" << key.first << " seq=" << key.second);
    if (!recorded.contains(key)) {
      CHECK(!got.contains(key));  // replies were off, or the hypervisor closed
      ++tally.same;
      continue;
    }
    REQUIRE(got.contains(key));
    if (got.at(key) == recorded.at(key)) {
      ++tally.same;
    } else {
      INFO("recorded " << recorded.at(key) << ", here " << got.at(key));
      CHECK(excused(capture.name, what, recorded.at(key), got.at(key)));
      ++tally.excused;
    }
  }
}

Tally play(const std::string& name) {
  const Capture capture = load(name);
  Tally tally;
  for (const Connection& connection : capture.connections) play(capture, connection, tally);
  return tally;
}

}  // namespace

TEST_CASE("libkvmi as it was recorded is served: every call, every batch, every event", "[agent][replay]") {
  const Tally tally = play("v7-libkvmi-api");
  CHECK(tally.commands > 60);
  CHECK(tally.excused < 30);
  CHECK(play("v7-libkvmi-hookguest").excused == 0);
  CHECK(play("v7-libkvmi-errors").commands > 50);
}

TEST_CASE("the kernel's answers to a tool of v12 are given again", "[agent][replay]") {
  unsigned commands = 0, excused = 0;
  for (const char* name : {"v12-2vcpus", "v12-commands", "v12-cookie", "v12-denied", "v12-event-padding", "v12-events",
                           "v12-id0", "v12-pause-ebusy", "v12-reconnect", "v12-selftest-a", "v12-singlestep",
                           "v12-uninit", "v12-unhook", "v12-vsock"}) {
    const Tally tally = play(name);
    commands += tally.commands;
    excused += tally.excused;
  }
  CHECK(commands > 400);
  CHECK(excused < 15);
}

TEST_CASE("what made the kernel close makes the bridge close", "[agent][replay]") {
  CHECK(play("v12-closes").closes > 8);
}
