// SPDX-License-Identifier: GPL-2.0-or-later
//
// Order, batches with replies off, pauses that are waited for, and tools that mean harm.

#include <random>

#include "rig.h"

using namespace kvmid;
using namespace kvmid::bridge::test;
using kvmid::bridge::AgentBridge;
using kvmid::bridge::ToolRights;

namespace {

Event cr_event(VcpuId vcpu = kVcpu0) { return event_with(CrData{4, 0x10, 0x30}, vcpu, {Action::Skip, Action::Retry}); }

constexpr kvmi1::ControlCmdResponse kP{false, true, false}, kS1{true, true, false}, kS0{true, false, false};

ToolRights with_window(std::uint32_t requests_max) {
  ToolRights rights = every_right();
  rights.requests_max = requests_max;
  return rights;
}

std::vector<std::uint32_t> seqs_of(const std::vector<Told>& told) {
  std::vector<std::uint32_t> seqs;
  for (const Told& one : told) seqs.push_back(one.seq.value);
  return seqs;
}

}  // namespace

TEST_CASE("replies leave in the order of the commands, however the core answers", "[agent]") {
  Rig rig(DialectId::V7);
  const auto first = rig.send(kvmi1::GetCpuid{kVcpu0, 0, 0});
  const auto second = rig.send(kvmi1::GetXcr{kVcpu0, 0});
  const auto third = rig.send(kvmi1::GetVersion{});
  const auto cpuid = rig.bridge.down().take();
  const auto xcr = rig.bridge.down().take();
  rig.bridge.deliver(CommandReply{KVMI_MSG_GET_XCR, {}, {}, GetXcrReply{7}}, xcr.seq, rig.wire);
  CHECK(rig.told().empty());
  rig.bridge.deliver(CommandReply{KVMI_MSG_GET_CPUID, {}, {}, GetCpuidReply{1, 2, 3, 4}}, cpuid.seq, rig.wire);
  CHECK(seqs_of(rig.told()) == std::vector<std::uint32_t>{first, second, third});
  // An answer to nothing, or a second one, is no concern of the tool.
  rig.bridge.deliver(CommandReply{KVMI_MSG_GET_CPUID, {}, {}, GetCpuidReply{}}, cpuid.seq, rig.wire);
  CHECK(rig.told().empty());
}

TEST_CASE("header and payload leave in one piece, and events do not wait for replies", "[agent]") {
  Rig rig(DialectId::V7);
  const auto seq = rig.send(kvmi1::GetCpuid{kVcpu0, 0, 0});
  REQUIRE(rig.next<GetCpuid>() != nullptr);
  rig.raise(cr_event(kVcpu1), 5);
  CHECK(rig.wire.size() == sizeof(kvmi_msg_hdr) + 568);  // whole, and alone
  rig.told();
  rig.answer(GetCpuidReply{});
  CHECK(rig.told_one().seq == Seq{seq});
}

// ---- the rows of the batches that libkvmi sends ----

TEST_CASE("batch: two event replies", "[agent]") {
  Rig rig(DialectId::V7);
  rig.raise(cr_event(kVcpu0), 1);
  rig.raise(cr_event(kVcpu1), 2);
  rig.told();
  rig.send(kP);
  CHECK(rig.reply(1, kVcpu0, kvmi1::kContinue, wire_bytes(std::uint64_t{0x30})) == "");
  CHECK(rig.reply(2, kVcpu1, kvmi1::kContinue, wire_bytes(std::uint64_t{0x30})) == "");
  rig.send(kS0);
  CHECK(rig.next_reply()->first == Seq{1});
  CHECK(rig.next_reply()->first == Seq{2});
  CHECK(rig.told().empty());
  CHECK(rig.error_of(rig.send(kvmi1::CheckEvent{1})) == 0);  // replies are on again
}

TEST_CASE("batch: registers, and registers with an event reply", "[agent]") {
  Rig rig(DialectId::V7);
  rig.raise(cr_event(), 1);
  rig.told();
  rig.send(kP);
  rig.send(kvmi1::SetRegisters{kVcpu0, {}});
  const auto last = rig.send(kS1);
  CHECK(rig.told().empty());  // the answer to S1 says that all before it are done
  rig.serve<SetRegisters>();
  CHECK(rig.error_of(last) == 0);

  rig.send(kP);
  rig.send(kvmi1::SetRegisters{kVcpu0, {}});
  CHECK(rig.reply(1, kVcpu0, kvmi1::kContinue, wire_bytes(std::uint64_t{0x30})) == "");
  rig.send(kS0);
  REQUIRE(rig.next<SetRegisters>() != nullptr);
  CHECK(rig.idle());  // the event is answered when the registers are staged
  rig.answer();
  CHECK(rig.next_reply()->second.action == Action::Allow);
  CHECK(rig.told().empty());
  CHECK(rig.error_of(rig.send(kvmi1::CheckEvent{1})) == 0);
}

TEST_CASE("batch: page access before the event reply, in that order", "[agent]") {
  Rig rig(DialectId::V7);
  PageFaultData fault;
  fault.access = KVMI_PAGE_ACCESS_W;
  rig.raise(event_with(fault, kVcpu0, {Action::Retry}), 1);
  rig.told();
  std::vector<kvmi1::PageAccessEntry> entries(2);
  entries[0].access = entries[1].access = 7;
  rig.send(kP);
  rig.send(kvmi1::SetPageAccess{0, std::span<const kvmi1::PageAccessEntry>(entries)});
  CHECK(rig.reply(1, kVcpu0, kvmi1::kRetry) == "");
  rig.send(kS0);
  REQUIRE(rig.next<SetPageAccess>() != nullptr);
  CHECK(rig.idle());
  rig.answer();
  CHECK(rig.next_reply()->second.action == Action::Retry);
  CHECK(rig.told().empty());
}

TEST_CASE("batch: page access alone is answered by its end, and its error is dropped", "[agent]") {
  Rig rig(DialectId::V7);
  std::vector<kvmi1::PageAccessEntry> entries(1);
  entries[0].access = 7;
  rig.send(kP);
  rig.send(kvmi1::SetPageAccess{0, std::span<const kvmi1::PageAccessEntry>(entries)});
  const auto last = rig.send(kS1);
  rig.serve_refused<SetPageAccess>(ErrorCode::NoDevice);
  CHECK(rig.error_of(last) == 0);
}

TEST_CASE("CONTROL_CMD_RESPONSE: which of the four is answered", "[agent]") {
  const auto answered = [](bool before, bool enable, bool now) {
    Rig rig(DialectId::V7);
    if (!before) rig.send(kP);
    rig.told();
    rig.send(kvmi1::ControlCmdResponse{enable, now, false});
    return rig.told().size() == 1;
  };
  CHECK_FALSE(answered(true, false, true));
  CHECK(answered(true, false, false));
  CHECK_FALSE(answered(false, false, false));
  CHECK(answered(true, true, true));
  CHECK(answered(false, true, true));
  CHECK(answered(true, true, false));
  CHECK_FALSE(answered(false, true, false));
}

TEST_CASE("a command is as silent as when it came", "[agent]") {
  Rig rig(DialectId::V7);
  rig.send(kP);
  rig.send(kvmi1::ControlCr{kVcpu0, true, 3});
  rig.send(kS0);
  REQUIRE(rig.next<ControlCr>() != nullptr);
  rig.answer();
  CHECK(rig.told().empty());
}

TEST_CASE("with replies off: what closes the connection", "[agent]") {
  const auto closes = [](const kvmi1::Command& command, std::optional<ErrorCode> error, const ReplyBody& body = {}) {
    Rig rig(DialectId::V7);
    rig.send(kP);
    rig.send(command);
    if (!rig.idle()) {
      const auto asked = rig.bridge.down().take();
      rig.bridge.deliver(CommandReply{0, error.value_or(ErrorCode::None), {}, body}, asked.seq, rig.wire);
    }
    CHECK(rig.told().empty());
    return rig.bridge.broken().has_value();
  };
  CHECK(closes(kvmi1::GetXcr{kVcpu0, 0}, std::nullopt, GetXcrReply{1}));
  CHECK_FALSE(closes(kvmi1::GetXcr{kVcpu0, 0}, ErrorCode::NoDevice));
  CHECK(closes(kvmi1::GetCpuid{kVcpu0, 0, 0}, ErrorCode::NoEntry));
  CHECK_FALSE(closes(kvmi1::ControlCr{kVcpu0, true, 3}, ErrorCode::Invalid));
  CHECK_FALSE(closes(kvmi1::PauseVcpu{VcpuId{9}, true}, std::nullopt));

  Rig data(DialectId::V7);
  data.send(kP);
  CHECK(data.send_any(kvmi1::Command{kvmi1::GetVersion{}}, 9) != "");
  Rig token(DialectId::V7);
  token.send(kP);
  CHECK(token.send_any(kvmi1::Command{kvmi1::GetMapToken{}}, 9) != "");
  Rig unknown(DialectId::V7);
  unknown.send(kP);
  CHECK(unknown.send_raw(61, 9, {}) != "");
  CHECK(unknown.send_any(kvmi1::Command{kvmi1::CheckEvent{1}}, 10) != "");  // and stays so
  ToolRights none = every_right();
  none.commands.bits = 0;
  Rig denied(DialectId::V7, none);
  denied.send(kP);
  CHECK(denied.send_any(kvmi1::Command{kvmi1::ControlCr{kVcpu0, true, 3}}, 9) != "");
  Rig v6(DialectId::V6);  // there unknown ids are always answered
  v6.send(kP);
  CHECK(v6.send_raw(61, 9, {}) == "");
  CHECK(v6.error_of(9) == kEopnotsupp);
}

TEST_CASE("with replies off and error events on, errors are told by CMD_ERROR", "[agent]") {
  Rig rig(DialectId::V7);
  rig.send(kvmi1::ControlCmdResponse{false, true, true});
  const auto seq = rig.send(kvmi1::ControlCr{kVcpu0, true, 3});
  rig.serve_refused<ControlCr>(ErrorCode::Invalid);
  const Told told = rig.told_one();
  const auto message = rig.codec.decode_upward(told.frame());
  REQUIRE(message.has_value());
  const auto* error = std::get_if<kvmi1::CommandError>(&*message);
  REQUIRE(error != nullptr);
  CHECK(error->error == kEinval);
  CHECK(error->seq == Seq{seq});
  CHECK(error->id == 10);
}

// ---- pauses ----

TEST_CASE("pause all vCPUs in a batch: its end is answered when every vCPU has stopped", "[agent]") {
  Rig rig(DialectId::V7);
  rig.send(kP);
  rig.send(kvmi1::PauseVcpu{kVcpu0, true});
  rig.send(kvmi1::PauseVcpu{kVcpu1, true});
  const auto last = rig.send(kS1);
  CHECK(rig.serve<PauseVcpu>().vcpu == kVcpu0);
  CHECK(rig.serve<PauseVcpu>().vcpu == kVcpu1);
  CHECK(rig.told().empty());
  rig.raise(event_with(PauseData{}, kVcpu1), 5);
  CHECK(rig.told_one().id == 1);
  rig.raise(event_with(PauseData{}, kVcpu0), 6);
  const auto told = rig.told();
  REQUIRE(told.size() == 2);
  CHECK(told[0].payload.size() == 544);
  CHECK(told[1].seq == Seq{last});
}

TEST_CASE("a pause that is waited for: the event may come before the core's answer", "[agent]") {
  Rig rig(DialectId::V12);
  const auto seq = rig.send(kvmi1::PauseVcpu{kVcpu0, true});
  REQUIRE(rig.next<PauseVcpu>() != nullptr);
  rig.raise(event_with(PauseData{}), 5);
  CHECK(rig.told_one().payload.size() == 552);
  CHECK(rig.reply(1, kVcpu0, kvmi1::kContinue) == "");  // even answered before
  rig.answer();
  CHECK(rig.error_of(seq) == 0);
}

TEST_CASE("a pause of a vCPU that waits for this tool already is answered at once", "[agent]") {
  Rig rig(DialectId::V12);
  rig.raise(cr_event(), 5);
  rig.told();
  const auto seq = rig.send(kvmi1::PauseVcpu{kVcpu0, true});
  rig.serve<PauseVcpu>();
  CHECK(rig.error_of(seq) == 0);
  // And one that stops for another reason before it pauses: there it stands.
  const auto other = rig.send(kvmi1::PauseVcpu{kVcpu1, true});
  rig.serve<PauseVcpu>();
  CHECK(rig.told().empty());
  rig.raise(cr_event(kVcpu1), 6);
  const auto told = rig.told();
  REQUIRE(told.size() == 2);
  CHECK(told[1].seq == Seq{other});
}

TEST_CASE("replies wait behind a pause, commands and event replies do not", "[agent]") {
  Rig rig(DialectId::V12);
  rig.raise(cr_event(kVcpu1), 4);
  rig.told();
  const auto pause = rig.send(kvmi1::PauseVcpu{kVcpu0, true});
  const auto get = rig.send(kvmi1::GetXcr{kVcpu1, 0});
  rig.serve<PauseVcpu>();
  rig.serve<GetXcr>(GetXcrReply{7});
  rig.serve<GetRegisters>(GetRegistersReply{});
  CHECK(rig.told().empty());
  CHECK(rig.reply(1, kVcpu1, kvmi1::kContinue, wire_bytes(std::uint64_t{0x30})) == "");
  CHECK(rig.next_reply().has_value());
  rig.raise(event_with(PauseData{}), 5);
  const auto told = rig.told();
  REQUIRE(told.size() == 3);
  CHECK(seqs_of(told) == std::vector<std::uint32_t>{2, pause, get});
}

TEST_CASE("a pause without waiting, and one that fails", "[agent]") {
  Rig rig(DialectId::V12);
  auto seq = rig.send(kvmi1::PauseVcpu{kVcpu0, false});
  rig.serve<PauseVcpu>();
  CHECK(rig.error_of(seq) == 0);
  seq = rig.send(kvmi1::PauseVcpu{kVcpu0, true});
  rig.serve_refused<PauseVcpu>(ErrorCode::Busy);
  CHECK(rig.error_of(seq) == kEbusy);
}

TEST_CASE("a pause of a vCPU that has not been started is not waited for", "[agent]") {
  Rig rig(DialectId::V7);
  auto seq = rig.send(kvmi1::PauseVcpu{kVcpu1, true});
  rig.serve<PauseVcpu>();
  CHECK(rig.told().empty());
  rig.serve_refused<GetRegisters>(ErrorCode::TryAgain);
  CHECK(rig.error_of(seq) == 0);
  // One that stops before it is asked: the answer to a question that nobody has any more.
  seq = rig.send(kvmi1::PauseVcpu{kVcpu0, true});
  rig.serve<PauseVcpu>();
  rig.raise(event_with(PauseData{}), 5);
  CHECK(rig.told().size() == 2);
  rig.serve_refused<GetRegisters>(ErrorCode::NoDevice);
  CHECK(rig.told().empty());
}

TEST_CASE("a pause that is waited for when the guest goes", "[agent]") {
  Rig rig(DialectId::V12);
  CHECK(rig.error_of(rig.send(kvmi1::ControlVmEvents{0, true})) == 0);
  const auto seq = rig.send(kvmi1::PauseVcpu{kVcpu0, true});
  rig.serve<PauseVcpu>();
  CHECK(rig.bridge.guest_off(OffReason::Suspend, rig.wire));
  const auto told = rig.told();
  REQUIRE(told.size() == 2);
  CHECK(told[1].seq == Seq{seq});
  CHECK(told[1].error() == kEopnotsupp);
}

// ---- the window, and what waits behind it ----

TEST_CASE("no more commands are open at the core than allowed, and none is lost", "[agent]") {
  for (const std::uint32_t window : {1U, 2U, 5U}) {
    Rig rig(DialectId::V7, with_window(window));
    std::vector<std::uint32_t> sent;
    for (std::uint32_t i = 0; i < 20; ++i) sent.push_back(rig.send(kvmi1::GetCpuid{kVcpu0, i, 0}));
    std::vector<std::uint32_t> answered;
    for (std::uint32_t i = 0; i < 20; ++i) {
      const auto* asked = rig.next<GetCpuid>();
      REQUIRE(asked != nullptr);
      CHECK(asked->function == i);
      rig.answer(GetCpuidReply{i, 0, 0, 0});
      const Told told = rig.told_one();
      CHECK(told.at<std::uint32_t>(8) == i);
      answered.push_back(told.seq.value);
    }
    CHECK(answered == sent);
    CHECK(rig.idle());
  }
  Rig rig(DialectId::V7, with_window(3));
  for (std::uint32_t i = 0; i < 10; ++i) rig.send(kvmi1::GetCpuid{kVcpu0, i, 0});
  unsigned open = 0;
  for (; rig.next<GetCpuid>() != nullptr; ++open) continue;
  CHECK(open == 3);
}

TEST_CASE("what waited keeps its bytes: writes, registers and pages from the backlog", "[agent]") {
  Rig rig(DialectId::V7, with_window(1));
  rig.send(kvmi1::GetCpuid{kVcpu0, 0, 0});
  const auto data = bytes_of({1, 2, 3, 4});
  rig.send(kvmi1::WritePhysical{Gpa{0x1000}, data});
  const std::vector<std::uint32_t> msrs = {0x174, 0x175};
  rig.send(kvmi1::GetRegisters{kVcpu0, std::span<const std::uint32_t>(msrs)});
  rig.serve<GetCpuid>(GetCpuidReply{});
  const auto* write = rig.next<WritePhysical>();
  REQUIRE(write != nullptr);
  CHECK(std::vector<std::byte>(write->data.begin(), write->data.end()) == data);
  rig.answer(WritePhysicalReply{1});
  const auto* get = rig.next<GetRegisters>();
  REQUIRE(get != nullptr);
  REQUIRE(get->msrs.size() == 2);
  CHECK(get->msrs[1] == 0x175);
}

TEST_CASE("a flood of commands is kept up to the limit, then the connection ends", "[agent]") {
  Rig rig(DialectId::V7, with_window(1));
  rig.send(kvmi1::GetCpuid{kVcpu0, 0, 0});
  const std::vector<std::byte> data(4096, std::byte{1});
  ByteBuffer frame;
  rig.codec.encode(kvmi1::Command{kvmi1::WritePhysical{Gpa{0x1000}, data}}, Seq{1}, frame);
  const Bytes payload = Bytes(frame).subspan(sizeof(kvmi_msg_hdr));
  std::size_t taken = 0;
  std::string why;
  while (why.empty() && taken < 10000) {
    const auto result = rig.bridge.received(Frame{18, Seq{2}, payload}, rig.wire);
    if (!result) why = result.error();
    ++taken;
  }
  CHECK(why.find("wait to be served") != std::string::npos);
  CHECK(taken > AgentBridge::kBacklogMax / 5000);
  CHECK(taken < AgentBridge::kBacklogMax / 4096 + 2);
  CHECK(rig.told().empty());
}

TEST_CASE("a flood of commands that are answered here, behind a pause, is bounded too", "[agent]") {
  Rig rig(DialectId::V12);
  rig.send(kvmi1::PauseVcpu{kVcpu0, true});
  rig.serve<PauseVcpu>();
  std::string why;
  std::size_t taken = 0;
  while (why.empty() && taken < 200000) {
    why = rig.send_raw(2, 5, {});
    ++taken;
  }
  CHECK(why.find("wait to be served") != std::string::npos);
}

TEST_CASE("frames cut at every byte: answered or closed, and never read outside", "[agent]") {
  for (const auto dialect : {DialectId::V6, DialectId::V7, DialectId::V12, DialectId::Rfc2017}) {
    for (std::uint16_t id = 0; id < 66; ++id) {
      for (std::size_t size = 0; size <= 40; ++size) {
        Rig rig(dialect);
        std::vector<std::byte> payload(size, std::byte{0});
        if (size > 8) payload[8] = std::byte{1};
        (void)rig.send_raw(id, 3, payload);
        for (const Told& told : rig.told()) CHECK(told.seq == Seq{3});
      }
    }
  }
}

TEST_CASE("random frames and random answers: replies in order, and no more than were asked for", "[agent]") {
  for (const auto dialect : {DialectId::V6, DialectId::V7, DialectId::V12, DialectId::Rfc2017}) {
    for (std::uint32_t seed = 1; seed <= 60; ++seed) {
      std::mt19937 random(seed);
      Rig rig(dialect, with_window(1 + seed % 4));
      std::uint32_t sent = 0, answered = 0, events = 0;
      std::deque<bridge::Passed<Downward>> open;
      for (int step = 0; step < 400; ++step) {
        const auto what = random() % 6;
        if (what < 3) {
          std::vector<std::byte> payload(random() % 40);
          for (std::byte& byte : payload)
            byte = random() % 3 == 0 ? static_cast<std::byte>(random() % 9) : std::byte{0};
          auto id = static_cast<std::uint16_t>(random() % 66);
          if (id == rig.codec.event_reply_id()) id = 2;
          if (!rig.send_raw(id, ++sent, payload).empty()) break;
        } else if (what == 3 && !rig.idle()) {
          open.push_back(rig.bridge.down().take());
        } else if (what == 4 && !open.empty()) {
          const auto at = random() % open.size();
          const auto error = random() % 2 == 0 ? ErrorCode::None : ErrorCode::Invalid;
          rig.bridge.deliver(CommandReply{0, error, {}, {}}, open[at].seq, rig.wire);
          open.erase(open.begin() + static_cast<std::ptrdiff_t>(at));
          if (rig.bridge.broken()) break;
        } else {
          rig.raise(event_with(HypercallData{}, VcpuId{static_cast<std::uint16_t>(random() % 2)}), ++events);
        }
        for (const Told& told : rig.told()) {
          if (rig.codec.command_of(told.id) == std::nullopt && told.payload.size() > 8) continue;  // an event
          REQUIRE(told.seq.value > answered);
          answered = told.seq.value;
          REQUIRE(answered <= sent);
        }
      }
    }
  }
}
