// SPDX-License-Identifier: GPL-2.0-or-later
//
// What tools of the field stumble over where a hypervisor's end is not exactly as they know it, and what their own
// habits do. Traps of layouts and numbers alone are unit tests of the codecs.
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <csignal>
#include <cstring>

#include "tests/integration_dialects/tool_scene.h"

namespace kvmid::test {
namespace {

constexpr VcpuId kVcpu0{0};

SpokenBy any_hypervisor() { return GENERATE(SpokenBy{}, SpokenBy{DialectId::V7}, SpokenBy{DialectId::V12}); }

/// What can be read at the moment when the first byte can, and the size that its header announces.
struct FirstLook {
  std::size_t there = 0;
  std::size_t frame = 0;
};
FirstLook first_look(const Kvmi1Tool& tool) {
  pollfd item{tool.fd(), POLLIN, 0};
  if (::poll(&item, 1, static_cast<int>(kBound.count())) != 1) throw TestError("nothing comes");
  int there = 0;
  if (::ioctl(tool.fd(), FIONREAD, &there) != 0) throw TestError("FIONREAD");
  kvmi_msg_hdr header{};
  if (::recv(tool.fd(), &header, sizeof header, MSG_PEEK) != sizeof header)
    return {static_cast<std::size_t>(there), ~0U};
  return {static_cast<std::size_t>(there), sizeof header + header.size};
}

/// A frame of one's own.
void send_raw(Kvmi1Tool& tool, std::uint16_t id, std::vector<std::byte> payload, Seq seq) {
  const kvmi_msg_hdr header{.id = id, .size = static_cast<std::uint16_t>(payload.size()), .seq = seq.value};
  ByteBuffer bytes(sizeof header);
  std::memcpy(bytes.data(), &header, sizeof header);
  bytes.insert(bytes.end(), payload.begin(), payload.end());
  tool.send_bytes(bytes);
}

}  // namespace

TEST_CASE("trap: a reply to a CR or MSR event without its value gives the register 0", "[integration][dialects]") {
  const DialectId dialect = GENERATE(DialectId::V7, DialectId::V12);
  ToolScene scene({.hypervisor = any_hypervisor(), .tools = {dialect}});
  INFO("hypervisor " << spoken_name(scene.options.hypervisor) << ", tool " << kvmi1::name_of(dialect));
  Kvmi1Tool& tool = scene.tool();
  tool.accept();
  need(tool, events_command(tool, EventKind::Msr));
  need(tool, kvmi1::ControlMsr{kVcpu0, true, 0xc0000082});
  const auto done = scene.guest.done(GuestMode::Lstar);
  scene.guest.set_mode(GuestMode::Lstar);
  const auto event = expect(tool, EventKind::Msr);
  scene.guest.set_mode(GuestMode::Idle);
  REQUIRE(std::get<MsrData>(event.event.data).new_value != 0);
  tool.reply(event, kvmi1::kContinue);
  REQUIRE(wait_until([&] { return scene.guest.done(GuestMode::Lstar) > done; }));
  CHECK(scene.guest.mailbox().lstar == 0);
}

TEST_CASE("trap: header and payload of each message come in one piece", "[integration][dialects]") {
  const DialectId dialect = GENERATE(DialectId::V7, DialectId::V12);
  ToolScene scene({.hypervisor = any_hypervisor(), .tools = {dialect}});
  INFO("hypervisor " << spoken_name(scene.options.hypervisor) << ", tool " << kvmi1::name_of(dialect));
  Kvmi1Tool& tool = scene.tool();
  tool.accept();
  const auto whole = [&] {
    const FirstLook look = first_look(tool);
    CHECK(look.there >= look.frame);
  };
  for (unsigned i = 0; i < 50; ++i) {
    const Seq seq = tool.send(kvmi1::ReadPhysical{Gpa{kImage}, 4096});
    whole();
    CHECK(tool.reply_to(seq).ok());
  }
  watch_cr(tool, 4);
  scene.guest.set_mode(GuestMode::Cr4);
  for (unsigned i = 0; i < 50; ++i) {
    whole();
    tool.go_on(expect(tool, EventKind::Cr));
  }
}

TEST_CASE("trap: replies come in the order of the commands, with their ids, and errors have 8 bytes",
          "[integration][dialects]") {
  const DialectId dialect = GENERATE(DialectId::V7, DialectId::V12);
  ToolScene scene({.hypervisor = any_hypervisor(), .tools = {dialect}});
  INFO("hypervisor " << spoken_name(scene.options.hypervisor) << ", tool " << kvmi1::name_of(dialect));
  Kvmi1Tool& tool = scene.tool();
  tool.accept();
  const std::vector<kvmi1::Command> commands{kvmi1::ReadPhysical{Gpa{kImage}, 4096},
                                             kvmi1::GetVersion{},
                                             kvmi1::GetRegisters{kVcpu0, {}},
                                             kvmi1::ReadPhysical{Gpa{kImage}, 0},
                                             kvmi1::CheckCommand{1},
                                             kvmi1::GetXsave{kVcpu0},
                                             kvmi1::GetMtrrType{kVcpu0, Gpa{0x1000}},
                                             kvmi1::SetRegisters{kVcpu0, {}},
                                             kvmi1::GetGuestInfo{},
                                             kvmi1::ReadPhysical{Gpa{std::uint64_t{1} << 40U}, 8},
                                             kvmi1::TranslateGva{kVcpu0, Gva{kImage}},
                                             kvmi1::GetCpuid{kVcpu0, 0x12345678, 0},
                                             events_command(tool, EventKind::Hypercall),
                                             kvmi1::GetXcr{kVcpu0, 9}};
  Batch batch(tool);
  std::vector<std::pair<std::uint16_t, Seq>> wanted;
  for (unsigned round = 0; round < 20; ++round)
    for (const auto& command : commands)
      wanted.emplace_back(*tool.codec().number_of(kvmi1::kind_of_command(command)), batch.add(command));
  batch.send();
  std::size_t errors = 0;
  for (const auto& [id, seq] : wanted) {
    const auto message = tool.next();
    REQUIRE(message.frame.seq == seq);
    REQUIRE(message.frame.id == id);
    if (std::get<kvmi1::Reply>(message.message).error == 0) continue;
    ++errors;
    CHECK(message.frame.payload.size() == 8);
  }
  CHECK(errors >= 5 * 20);
}

TEST_CASE("trap: kvmid does not close behind an UNHOOK event, the tool does", "[integration][dialects]") {
  const DialectId dialect = GENERATE(DialectId::V7, DialectId::V12);
  INFO("tool " << kvmi1::name_of(dialect));
  ToolScene scene({.hypervisor = any_hypervisor(), .tools = {dialect}, .arguments = {"--leave-ms", "60000"}});
  Kvmi1Tool& tool = scene.tool();
  tool.accept();
  need(tool, kvmi1::ControlVmEvents{tool.codec().number_of(EventKind::Unhook).value(), true});
  scene.guest.process().signal(SIGUSR2);
  scene.guest.process().wait_errors("guest is held");
  // The hypervisor's connection has ended by now. The tool has not even read yet.
  pollfd item{tool.fd(), POLLRDHUP, 0};
  CHECK(::poll(&item, 1, 0) == 0);
  CHECK(expect(tool, EventKind::Unhook).event.vcpu == kAllVcpus);
  CHECK(tool.call(kvmi1::GetVersion{}).ok());
  CHECK(::poll(&item, 1, 0) == 0);
}

TEST_CASE("trap: a kvmid that ends tells its tools, and does not wait for them for ever", "[integration][dialects]") {
  const bool closes = GENERATE(true, false);
  INFO((closes ? "closes" : "never closes"));
  ToolScene scene({.hypervisor = DialectId::V7});
  Kvmi1Tool& tool = scene.tool();
  tool.accept();
  const auto before = code_of(scene.guest);
  REQUIRE(write_bytes(tool, Gpa{scene.guest.mailbox().hammer_gpa}, {0xcc}) == 0);
  need(tool, kvmi1::ControlVmEvents{tool.codec().number_of(EventKind::Unhook).value(), true});
  scene.daemon.process().signal(SIGTERM);
  CHECK(expect(tool, EventKind::Unhook).event.vcpu == kAllVcpus);
  if (closes) tool.hang_up();
  CHECK(scene.daemon.process().wait_exit() == Exit{0, 0});
  CHECK(wait_until([&] { return code_of(scene.guest) == before; }));
}

TEST_CASE("trap: PAUSE and CONTROL_CMD_RESPONSE that fail close a v7 tool, a v12 tool is answered",
          "[integration][dialects]") {
  ToolScene scene({.tools = {DialectId::V7, DialectId::V12}});
  scene.accept_all();
  const auto number = [](const Kvmi1Tool& tool, kvmi1::CommandKind kind) {
    return tool.codec().number_of(kind).value();
  };
  Kvmi1Tool& newer = scene.tool(1);
  // A PAUSE of v12: vCPU, wait, padding.
  const Seq seq = newer.next_seq();
  send_raw(newer, number(newer, kvmi1::kind_of<kvmi1::PauseVcpu>), bytes_of_values({0, 0, 1, 0, 1, 0, 0, 0}), seq);
  CHECK(newer.reply_to(seq).reply.error == -kvmi1::kEinval);
  CHECK(newer.call(kvmi1::GetVersion{}).ok());

  Kvmi1Tool& older = scene.tool(0);
  // A PAUSE of v7 after the header of a vCPU: wait, padding.
  send_raw(older, number(older, kvmi1::kind_of<kvmi1::PauseVcpu>),
           bytes_of_values({0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0}), older.next_seq());
  CHECK(older.wait_closed());
  CHECK(scene.wait_failure("dialect").at("peer").get<std::string>().find("tool0") == 0);
  older.accept();
  send_raw(older, number(older, kvmi1::kind_of<kvmi1::ControlCmdResponse>), bytes_of_values({0, 1, 9, 9, 9, 9, 9, 9}),
           older.next_seq());
  CHECK(older.wait_closed());
  older.accept();
  CHECK(older.call(kvmi1::GetVersion{}).ok());
  CHECK(newer.call(kvmi1::GetVersion{}).ok());
}

TEST_CASE("trap: a tool never hears of events that its dialect does not have", "[integration][dialects]") {
  const DialectId dialect = GENERATE(DialectId::V6, DialectId::V12);
  INFO("tool " << kvmi1::name_of(dialect));
  ToolScene scene({.tools = {dialect}});
  Kvmi1Tool& tool = scene.tool();
  tool.accept();
  watch_cr(tool, 4);
  AgentClient agent = attach(scene.daemon.agent_socket(), scene.guest.uuid());
  check(agent.subscribe(events_of({EventKind::Cpuid}), Role::Decider));
  const auto done = scene.guest.done(GuestMode::Cpuid);
  scene.guest.set_mode(GuestMode::Cpuid);
  serve(
      {&agent}, [](AgentClient& who, const client::ReceivedEvent& event) { check(who.reply(event, Action::Allow)); },
      [&] { return scene.guest.done(GuestMode::Cpuid) > done + 2; });
  scene.guest.set_mode(GuestMode::Idle);
  // Their numbers are refused, whatever they mean elsewhere.
  for (const std::uint16_t event : {std::uint16_t{13}, std::uint16_t{14}, std::uint16_t{63}, std::uint16_t{0xffff}}) {
    if (tool.codec().event_of(event)) continue;
    CHECK(error_of(tool, kvmi1::ControlEvents{kVcpu0, event, true}) != 0);
  }
  CHECK(silent(tool));
}

TEST_CASE("trap: a tool that does not read holds up neither the guest nor the others", "[integration][dialects]") {
  Json quota = Json::object();
  quota["quota"] = {{"queue_bytes", 65536}};
  quota["role"] = "observer";
  ToolScene scene({.tools = {DialectId::V7, DialectId::V12}, .rule_overrides = quota});
  scene.accept_all();
  watch_cr(scene.tool(0), 4);
  watch_cr(scene.tool(1), 4);
  scene.guest.set_mode(GuestMode::Cr4);
  // Only the second one reads what it is told, until the first one has been given up.
  go_on_until({&scene.tool(1)}, [&] { return scene.agent_json("tool0").is_null(); });
  scene.guest.do_times(GuestMode::Cr4, 5);
  scene.guest.set_mode(GuestMode::Idle);
  CHECK(scene.tool(0).wait_closed());
  scene.tool(0).accept();
  CHECK(scene.tool(0).call(kvmi1::GetVersion{}).ok());
  CHECK(scene.tool(1).call(kvmi1::GetVersion{}).ok());
}

}  // namespace kvmid::test
