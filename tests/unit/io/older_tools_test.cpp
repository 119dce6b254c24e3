// SPDX-License-Identifier: GPL-2.0-or-later
// Tools of older dialects that the broker connects to: handshake, service, secrets, policy, and the ways they end.
#include <unistd.h>

#include <cstring>

#include "tests/support/kvmi1_tool.h"
#include "tests/unit/io/broker_scene.h"
#include "tests/unit/io/older_hypervisor.h"

using namespace kvmid;
using namespace kvmid::test;
using kvmi1::DialectId;

namespace {

constexpr io::CookieHash kSecret{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20};
constexpr std::chrono::milliseconds kSoon{10};
constexpr std::chrono::milliseconds kNever{3600000};  ///< of redialling: what happens sooner has another cause

/// A tool, a broker that is told of it, and a hypervisor that brings the guest.
struct Play {
  RuntimeFolder folder;
  DialectId dialect;
  Kvmi1Tool tool;
  Scene scene;
  std::optional<OlderHypervisor> hypervisor;

  explicit Play(DialectId spoken, std::chrono::milliseconds redial = kSoon, const Scene::Change& change = {})
      : dialect(spoken),
        tool(folder.file("tool"), spoken),
        scene([&](io::Settings& settings) {
          io::DialedAgent& agent = settings.dialed_agents.emplace_back();
          agent.name = "watcher";
          agent.unix_path = folder.file("tool");
          agent.dialect = spoken;
          agent.guests = {"older"};
          agent.redial = redial;
          if (change) change(settings);
        }) {}
  void bring_guest() {
    hypervisor.emplace(scene.hypervisors(), OlderHypervisor::Options{.dialect = DialectId::V12, .uuid = uuid_of(1)});
  }
  [[nodiscard]] bool wait_agents(std::size_t count) {
    return scene.wait_guest(uuid_of(1), [&](const io::GuestSnapshot& one) { return one.agents.size() == count; });
  }
  [[nodiscard]] std::uint16_t event_number(EventKind kind) const {
    return kvmi1::codec(dialect).number_of(kind).value_or(0);
  }
};

}  // namespace

TEST_CASE("a tool is greeted as QEMU of its dialect does, and served", "[broker][older][dial]") {
  const auto dialect = GENERATE(DialectId::V6, DialectId::V7, DialectId::V12);
  INFO(kvmi1::name_of(dialect));
  Play play(dialect);
  play.bring_guest();
  const auto& hello = play.tool.accept();
  CHECK(play.tool.hello_bytes().size() == (dialect == DialectId::V12 ? 104U : 96U));
  CHECK(hello.uuid == uuid_of(1));
  CHECK(hello.name == (dialect == DialectId::V6 ? "" : "older"));
  CHECK(hello.start_time == (dialect == DialectId::V6 ? 0 : 1000));
  CHECK(hello.max_gpa == (dialect == DialectId::V12 ? 0x1000000U : 0U));

  CHECK(play.tool.call(kvmi1::GetVersion{}).as<kvmi1::GetVersionReply>().version == 1);
  CHECK(play.tool.call(kvmi1::GetGuestInfo{}).as<kvmi1::GetGuestInfoReply>().vcpu_count == 1);
  const auto read = play.tool.call(kvmi1::ReadPhysical{Gpa{0x10}, 16});
  CHECK(read.as<kvmi1::ReadPhysicalReply>().data[1] == std::byte{0x11});
  REQUIRE(play.tool.call(kvmi1::ControlEvents{VcpuId{0}, play.event_number(EventKind::Cr), true}).ok());
  REQUIRE(play.tool.call(kvmi1::ControlCr{VcpuId{0}, true, 3}).ok());
  const Seq seq = play.hypervisor->send_event(CrData{3, 0x1000, 0x2000});
  const auto event = play.tool.next_event();
  CHECK(std::get<CrData>(event.event.data).new_value == 0x2000);
  play.tool.reply_value(event, kvmi1::kContinue, 0x5000);
  CHECK(play.hypervisor->wait_reply(seq).new_value == 0x5000);

  REQUIRE(play.wait_agents(1));
  const auto agent = play.scene.guest(uuid_of(1))->agents.front();
  CHECK(agent.info.name == "watcher");
  CHECK(agent.dialect == kvmi1::name_of(dialect));
  CHECK(agent.dialed == "unix:" + play.folder.file("tool"));
  CHECK(agent.peer.pid == static_cast<std::uint32_t>(::getpid()));
  CHECK(agent.info.priority == 7);
}

TEST_CASE("a tool that must know the secret is let in only with it", "[broker][older][dial]") {
  Play play(DialectId::V7, kSoon, [](io::Settings& settings) { settings.dialed_agents[0].cookie = kSecret; });
  play.bring_guest();
  play.tool.accept();  // says none
  REQUIRE(play.tool.wait_closed());
  const auto missing = play.scene.wait_failure(io::step::kCookie);
  CHECK(missing.side == io::FailureSide::Dial);
  CHECK(missing.guest == "older");
  CHECK(missing.peer.find("watcher") != std::string::npos);
  CHECK(missing.text.find("did not say") != std::string::npos);

  auto wrong = kSecret;
  wrong[19] = 0;
  play.tool.set_cookie(wrong);
  play.tool.accept();
  REQUIRE(play.tool.wait_closed());
  CHECK(wait_until([&] {
    return play.scene.wait_failure(io::step::kCookie).text.find("is not the one") != std::string::npos;
  }));

  play.tool.set_cookie(kSecret);
  play.tool.accept();
  CHECK(play.tool.call(kvmi1::GetVersion{}).ok());
}

TEST_CASE("a tool that was killed is connected to again", "[broker][older][dial]") {
  Play play(DialectId::V12);
  play.bring_guest();
  play.tool.accept();
  REQUIRE(play.tool.call(kvmi1::GetVersion{}).ok());
  play.tool.hang_up();
  play.tool.accept();
  CHECK(play.tool.call(kvmi1::GetVersion{}).ok());
  CHECK(play.wait_agents(1));
}

TEST_CASE("a tool that is started later is found", "[broker][older][dial]") {
  RuntimeFolder folder;
  Scene scene([&](io::Settings& settings) {
    io::DialedAgent& agent = settings.dialed_agents.emplace_back();
    agent.name = "late";
    agent.unix_path = folder.file("tool");
    agent.guests = {"*"};
    agent.redial = kSoon;
  });
  const OlderHypervisor hypervisor(scene.hypervisors(), {.uuid = uuid_of(1)});
  CHECK_FALSE(scene.wait_failure(io::step::kConnect).text.empty());
  Kvmi1Tool tool(folder.file("tool"), DialectId::V7);
  tool.accept();
  CHECK(tool.call(kvmi1::GetVersion{}).ok());
}

TEST_CASE("policy decides about tools, too, and a new one is tried at once", "[broker][older][dial]") {
  Play play(DialectId::V7, kNever, [](io::Settings& settings) { settings.policy.rules.clear(); });
  play.bring_guest();
  CHECK_THROWS_WITH(play.tool.accept(), Catch::Contains("closed"));  // it does not even hear of the guest
  CHECK(play.scene.wait_failure(io::step::kPolicy).text.find("no policy rule") != std::string::npos);

  play.scene.reload([](io::Settings& settings) { settings.policy = open_policy(); });
  play.tool.accept();
  CHECK(play.tool.call(kvmi1::GetVersion{}).ok());

  play.scene.reload([](io::Settings& settings) { settings.policy.rules.clear(); });
  CHECK(play.tool.wait_closed());
}

TEST_CASE("a tool's entry can lower its role and set its priority", "[broker][older][dial]") {
  Play play(DialectId::V7, kSoon, [](io::Settings& settings) {
    settings.dialed_agents[0].role = Role::Observer;
    settings.dialed_agents[0].priority = 3;
  });
  play.bring_guest();
  play.tool.accept();
  REQUIRE(play.wait_agents(1));
  const auto agent = play.scene.guest(uuid_of(1))->agents.front();
  CHECK(agent.info.role == Role::Observer);
  CHECK(agent.info.priority == 3);
  play.scene.reload([](io::Settings& settings) { settings.policy.rules[0].grant.priority = 9; });
  CHECK(play.scene.guest(uuid_of(1))->agents.front().info.priority == 3);
  CHECK(play.scene.guest(uuid_of(1))->agents.front().info.role == Role::Observer);
}

TEST_CASE("an entry that is gone ends its connection, a changed one begins anew", "[broker][older][dial]") {
  Play play(DialectId::V7, kNever);
  play.bring_guest();
  play.tool.accept();
  REQUIRE(play.tool.call(kvmi1::GetVersion{}).ok());
  play.scene.reload([](io::Settings& settings) { settings.dialed_agents[0].priority = 12; });
  CHECK(play.tool.wait_closed());
  play.tool.accept();
  REQUIRE(play.tool.call(kvmi1::GetVersion{}).ok());
  CHECK(play.wait_agents(1));
  CHECK(play.scene.guest(uuid_of(1))->agents.front().info.priority == 12);
  play.scene.reload([](io::Settings& settings) { settings.dialed_agents.clear(); });
  CHECK(play.tool.wait_closed());
  CHECK(play.wait_agents(0));
}

TEST_CASE("a tool that breaks its dialect is closed, and people are told why", "[broker][older][dial]") {
  Play play(DialectId::V7);
  play.bring_guest();
  play.tool.accept();
  REQUIRE(play.tool.call(kvmi1::GetVersion{}).ok());
  kvmi_msg_hdr header{};
  header.id = 2;
  header.size = 9000;
  play.tool.send_bytes(std::as_bytes(std::span(&header, 1)));
  CHECK(play.tool.wait_closed());
  CHECK(play.scene.wait_failure(io::step::kDialect).side == io::FailureSide::Dial);
}

TEST_CASE("a guest that goes takes its tool along, and is back with a new connection at once",
          "[broker][older][dial]") {
  Play play(DialectId::V7, kNever);
  play.bring_guest();
  play.tool.accept();
  REQUIRE(play.tool.call(kvmi1::GetVersion{}).ok());
  play.hypervisor->hang_up();
  CHECK(play.tool.wait_closed());
  play.bring_guest();
  play.tool.accept();
  CHECK(play.tool.call(kvmi1::GetVersion{}).ok());
}

TEST_CASE("a tool that wants UNHOOK gets it, and has time until its guest is back", "[broker][older][dial]") {
  const auto dialect = GENERATE(DialectId::V7, DialectId::V12);
  Play play(dialect, kNever);
  play.bring_guest();
  play.tool.accept();
  REQUIRE(play.tool.call(kvmi1::ControlVmEvents{play.event_number(EventKind::Unhook), true}).ok());
  const bool unhooks = GENERATE(false, true);
  if (unhooks) {
    play.hypervisor->send_event(UnhookData{});
    REQUIRE(play.hypervisor->wait_closed());
  } else {
    play.hypervisor->hang_up();
  }
  CHECK(play.tool.next_event().event.kind() == EventKind::Unhook);
  CHECK_FALSE(play.tool.call(kvmi1::ReadPhysical{Gpa{0}, 8}).ok());  // still answered, if only with an error
  SECTION("it closes, as it should") {
    play.tool.hang_up();
    play.bring_guest();
  }
  SECTION("it does not") {
    play.bring_guest();
    CHECK(play.tool.wait_closed());
  }
  play.tool.accept();
  CHECK(play.tool.call(kvmi1::GetVersion{}).ok());
}

TEST_CASE("two tools of different dialects share a guest with an agent of KVMI 2", "[broker][older][dial]") {
  RuntimeFolder folder;
  Kvmi1Tool seven(folder.file("seven"), DialectId::V7);
  Kvmi1Tool twelve(folder.file("twelve"), DialectId::V12);
  Scene scene([&](io::Settings& settings) {
    for (const auto& [name, dialect] : {std::pair{"seven", DialectId::V7}, std::pair{"twelve", DialectId::V12}}) {
      io::DialedAgent& agent = settings.dialed_agents.emplace_back();
      agent.name = name;
      agent.unix_path = folder.file(name);
      agent.dialect = dialect;
      agent.guests = {to_string(uuid_of(1))};
    }
  });
  OlderHypervisor hypervisor(scene.hypervisors(), {.dialect = DialectId::V7, .uuid = uuid_of(1)});
  seven.accept();
  twelve.accept();
  auto agent = scene.attach(uuid_of(1));
  EventSet hypercall;
  hypercall.add(EventKind::Hypercall);
  REQUIRE(agent.control_events(VcpuId{0}, Operation::Enable, Role::Decider, hypercall));
  for (Kvmi1Tool* tool : {&seven, &twelve}) {
    const auto number = tool->codec().number_of(EventKind::Hypercall).value_or(0);
    REQUIRE(tool->call(kvmi1::ControlEvents{VcpuId{0}, number, true}).ok());
  }
  const Seq seq = hypervisor.send_event(HypercallData{});
  seven.go_on(seven.next_event());
  twelve.go_on(twelve.next_event());
  const auto event = agent.wait_event(kBound);
  REQUIRE(event);
  REQUIRE(*event);
  REQUIRE(agent.reply(**event, Action::Allow));
  CHECK(hypervisor.wait_reply(seq).action == kvmi1::kContinue);
}

TEST_CASE("tools hear UNHOOK before kvmid stops", "[broker][older][dial]") {
  RuntimeFolder folder;
  Kvmi1Tool tool(folder.file("tool"), DialectId::V12);
  std::optional<Scene> scene;
  scene.emplace([&](io::Settings& settings) {
    io::DialedAgent& agent = settings.dialed_agents.emplace_back();
    agent.name = "tool";
    agent.unix_path = folder.file("tool");
    agent.dialect = DialectId::V12;
    agent.guests = {"*"};
  });
  const OlderHypervisor hypervisor(scene->hypervisors(), {.uuid = uuid_of(1)});
  tool.accept();
  REQUIRE(tool.call(kvmi1::ControlVmEvents{tool.codec().number_of(EventKind::Unhook).value_or(0), true}).ok());
  std::thread stopping([&] { scene.reset(); });
  CHECK(tool.next_event().event.kind() == EventKind::Unhook);
  tool.hang_up();
  stopping.join();
}
