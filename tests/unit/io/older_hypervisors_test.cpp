// SPDX-License-Identifier: GPL-2.0-or-later
// Hypervisors of older dialects at the broker: their handshakes, what is refused, and a guest that is served.
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>

#include "protocol/handshake.h"
#include "tests/unit/io/broker_scene.h"
#include "tests/unit/io/older_hypervisor.h"

using namespace kvmid;
using namespace kvmid::test;
using kvmi1::DialectId;

namespace {

constexpr io::CookieHash kSecret{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20};

io::CookieHash hash_in(const ByteBuffer& answer) {
  io::CookieHash hash{};
  REQUIRE(answer.size() == sizeof(kvmi_handshake_answer));
  std::memcpy(hash.data(), answer.data() + 4, hash.size());
  return hash;
}

io::HypervisorPeers somebody_else() {
  io::HypervisorPeers peers;
  peers.uids = {::getuid() + 1};
  return peers;
}

io::GuestRule rule_for(const std::string& pattern) {
  io::GuestRule rule;
  rule.guests = {pattern};
  return rule;
}

}  // namespace

TEST_CASE("a guest of an older hypervisor is served: its memory is read, its events are decided", "[broker][older]") {
  const auto dialect = GENERATE(DialectId::V6, DialectId::V7, DialectId::V12);
  INFO(kvmi1::name_of(dialect));
  Scene scene;
  OlderHypervisor hypervisor(scene.hypervisors(), {.dialect = dialect, .uuid = uuid_of(1)});
  CHECK(hash_in(hypervisor.answer()) == io::CookieHash{});
  REQUIRE(scene.wait_online(uuid_of(1)));
  const auto guest = scene.guest(uuid_of(1));
  REQUIRE(guest);
  CHECK(guest->dialect == kvmi1::name_of(dialect));
  CHECK(guest->name == (dialect == DialectId::V6 ? to_string(uuid_of(1)) : "older"));
  CHECK(guest->commands.has(CommandId::ReadPhysical));
  CHECK_FALSE(guest->commands.has(CommandId::ShutdownGuest));
  CHECK(guest->events.has(EventKind::Cr));

  auto agent = scene.attach(uuid_of(1));
  const auto memory = agent.read_physical(Gpa{0xff0}, 32);
  REQUIRE(memory);
  CHECK(memory->data[0] == std::byte{0xf0});
  CHECK(memory->data[16] == std::byte{0x00});
  EventSet cr;
  cr.add(EventKind::Cr);
  REQUIRE(agent.control_events(VcpuId{0}, Operation::Enable, Role::Decider, cr));
  REQUIRE(agent.control_cr(VcpuId{0}, 3, true));
  const Seq seq = hypervisor.send_event(CrData{3, 0x1000, 0x2000});
  const auto event = agent.wait_event(kBound);
  REQUIRE(event);
  REQUIRE(*event);
  CHECK(std::get<CrData>((*event)->event.data).new_value == 0x2000);
  REQUIRE(agent.reply(**event, Action::Allow, NewValue{0x3000}));
  const auto replied = hypervisor.wait_reply(seq);
  CHECK(replied.action == kvmi1::kContinue);
  CHECK(replied.new_value == 0x3000);

  hypervisor.hang_up();
  CHECK(scene.wait_online(uuid_of(1), false));
}

TEST_CASE("a dialect that cannot be found out is configured", "[broker][older]") {
  Scene scene([](io::Settings& settings) {
    settings.guest_rules.push_back(rule_for("ancient"));
    settings.guest_rules.back().dialect = DialectId::Rfc2017;
  });
  OlderHypervisor hypervisor(scene.hypervisors(),
                             {.dialect = DialectId::Rfc2017, .uuid = uuid_of(2), .name = "ancient"});
  REQUIRE(scene.wait_online(uuid_of(2)));
  CHECK(scene.guest(uuid_of(2))->dialect == "rfc2017");
}

TEST_CASE("the answer proves the secret of that guest's rule, and no other's", "[broker][older]") {
  Scene scene([](io::Settings& settings) {
    settings.guest_rules.push_back(rule_for("vault-*"));
    settings.guest_rules.back().cookie = kSecret;
    settings.guest_rules.push_back(rule_for("*"));
  });
  OlderHypervisor vault(scene.hypervisors(), {.uuid = uuid_of(1), .name = "vault-1"});
  CHECK(hash_in(vault.answer()) == kSecret);
  OlderHypervisor other(scene.hypervisors(), {.uuid = uuid_of(2), .name = "shed"});
  CHECK(hash_in(other.answer()) == io::CookieHash{});
}

TEST_CASE("a second hypervisor for a guest that has one is closed, the first stays", "[broker][older]") {
  Scene scene;
  OlderHypervisor first(scene.hypervisors(), {.uuid = uuid_of(1)});
  REQUIRE(scene.wait_online(uuid_of(1)));
  const OlderHypervisor second(scene.hypervisors(), {.dialect = DialectId::V7, .uuid = uuid_of(1)});
  CHECK(second.answer().empty());
  const auto failure = scene.wait_failure(io::step::kGuest);
  CHECK(failure.side == io::FailureSide::Hypervisor);
  CHECK(failure.guest == "older");
  CHECK(failure.text.find("another hypervisor") != std::string::npos);
  CHECK(scene.guest(uuid_of(1))->info.online);
}

TEST_CASE("a guest that is bound to other peers is refused, in every dialect", "[broker][older]") {
  Scene scene([](io::Settings& settings) {
    settings.guest_rules.push_back(rule_for("vault"));
    settings.guest_rules.back().bound_to = somebody_else();
  });
  SECTION("an older one is closed") {
    const OlderHypervisor hypervisor(scene.hypervisors(), {.uuid = uuid_of(1), .name = "vault"});
    CHECK(hypervisor.answer().empty());
  }
  SECTION("one of KVMI 2 is told") {
    HypervisorHello hello;
    hello.uuid = uuid_of(1);
    hello.name = "vault";
    hello.kvmi2 = true;
    ByteBuffer bytes;
    encode(hello, bytes);
    const OlderHypervisor hypervisor(scene.hypervisors(), {.uuid = uuid_of(1), .handshake = bytes});
    CHECK_FALSE(hypervisor.answer().empty());
  }
  const auto failure = scene.wait_failure(io::step::kPeer);
  CHECK(failure.guest == "vault");
  CHECK(failure.text.find("bound to other peers") != std::string::npos);
  CHECK_FALSE(scene.guest(uuid_of(1)));
  const OlderHypervisor other(scene.hypervisors(), {.uuid = uuid_of(2), .name = "shed"});
  CHECK_FALSE(other.answer().empty());
}

TEST_CASE("handshakes of older dialects that are wrong are closed, with the step that failed", "[broker][older]") {
  Scene scene;
  SECTION("no uuid") {
    const OlderHypervisor hypervisor(scene.hypervisors(), {.uuid = Uuid{}});
    CHECK(hypervisor.answer().empty());
    CHECK(scene.wait_failure(io::step::kHandshake).text.find("uuid") != std::string::npos);
  }
  SECTION("a size that no QEMU sends") {
    ByteBuffer bytes = io::qemu_handshake(DialectId::V12, uuid_of(1), "odd", {});
    bytes.resize(112);
    bytes[0] = std::byte{112};
    const OlderHypervisor hypervisor(scene.hypervisors(), {.uuid = uuid_of(1), .handshake = bytes});
    CHECK(hypervisor.answer().empty());
    CHECK(scene.wait_failure(io::step::kHandshake).text.find("112") != std::string::npos);
  }
  SECTION("a memory map as 2.11.93 has it is none of them") {
    ByteBuffer bytes = io::qemu_handshake(DialectId::V12, uuid_of(1), "mapped", {});
    bytes.resize(104 + 24);
    bytes[0] = std::byte{104 + 24};
    bytes[96] = std::byte{1};  // one entry
    const OlderHypervisor hypervisor(scene.hypervisors(), {.uuid = uuid_of(1), .handshake = bytes});
    CHECK_FALSE(hypervisor.answer().empty());
  }
}

TEST_CASE("a hypervisor that breaks its dialect loses its guest, and people are told why", "[broker][older]") {
  Scene scene;
  OlderHypervisor hypervisor(scene.hypervisors(), {.uuid = uuid_of(1)});
  REQUIRE(scene.wait_online(uuid_of(1)));
  const auto agent = scene.attach(uuid_of(1));  // a guest without anybody is forgotten
  const kvmi_msg_hdr header{777, 0, 5};
  hypervisor.send_bytes(std::as_bytes(std::span(&header, 1)));
  CHECK(hypervisor.wait_closed());
  CHECK(scene.wait_online(uuid_of(1), false));
  CHECK(scene.wait_failure(io::step::kDialect).guest == "older");
  CHECK(scene.guest(uuid_of(1))->info.counters.protocol_errors == 1);
}

TEST_CASE("UNHOOK is confirmed by closing, and agents stay attached", "[broker][older]") {
  Scene scene;
  OlderHypervisor hypervisor(scene.hypervisors(), {.uuid = uuid_of(1)});
  REQUIRE(scene.wait_online(uuid_of(1)));
  auto agent = scene.attach(uuid_of(1));
  hypervisor.send_event(UnhookData{});
  CHECK(hypervisor.wait_closed());
  CHECK(scene.wait_online(uuid_of(1), false));
  const auto off = agent.wait_guest(kBound);
  REQUIRE(off);
  REQUIRE(*off);
  CHECK(std::holds_alternative<client::GuestGone>(**off));

  const OlderHypervisor again(scene.hypervisors(), {.uuid = uuid_of(1)});
  CHECK(scene.wait_online(uuid_of(1)));
  const auto on = agent.wait_guest(kBound);
  REQUIRE(on);
  REQUIRE(*on);
  CHECK(std::holds_alternative<client::GuestEntry>(**on));
}

TEST_CASE("a hypervisor that goes before it said what it can is a start that failed", "[broker][older]") {
  Scene scene;
  auto connected = client::connect_stream(scene.hypervisors(), client::deadline_after(kBound));
  REQUIRE(connected);
  const auto hello = io::qemu_handshake(DialectId::V7, uuid_of(1), "shy", {});
  REQUIRE(::send(connected->get(), hello.data(), hello.size(), 0) == static_cast<ssize_t>(hello.size()));
  SECTION("it closes") {
    connected->reset();
    const auto failure = scene.wait_failure(io::step::kStart);
    CHECK(failure.guest == "shy");
    CHECK(failure.text == "closed by the peer");
  }
  SECTION("it answers with something else") {
    const kvmi_msg_hdr header{99, 0, 1};
    REQUIRE(::send(connected->get(), &header, sizeof header, 0) == static_cast<ssize_t>(sizeof header));
    CHECK(scene.wait_failure(io::step::kDialect).guest == "shy");
    CHECK(scene.broker().failures(kBound).size() == 1);
  }
  CHECK(wait_until([&] { return !scene.guest(uuid_of(1)); }));
}
