// SPDX-License-Identifier: GPL-2.0-or-later
// The first bytes of a connection: everything that is no hello is refused with a reason, logged and counted.
#include <catch2/catch.hpp>
#include <cstring>
#include <limits>
#include <optional>

#include "tests/integration_wire/bystander.h"
#include "tests/integration_wire/wire_daemon.h"

using namespace kvmid;
using namespace kvmid::test;

namespace {

constexpr std::uint32_t kSizeMost = std::numeric_limits<std::uint32_t>::max();

std::string text_in(const kvmi_welcome& welcome) { return std::string(text_of(welcome.text, sizeof welcome.text)); }

struct WrongHello {
  std::string name;
  ByteBuffer bytes;
  std::string reason;  ///< in the text to the agent and in the log
};

template <class Change>
ByteBuffer changed(Change change) {
  kvmi_hello hello = good_hello(uuid_of(0xbb), "careless");
  change(hello);
  return bytes_of(hello);
}

std::vector<WrongHello> wrong_hellos() {
  std::vector<WrongHello> wrong;
  for (const std::uint32_t size : {0U, 3U, 23U, 5000U, KVMI_HELLO_SIZE_MAX + 1, kSizeMost}) {
    wrong.push_back({"struct_size " + std::to_string(size), changed([&](auto& h) { h.struct_size = size; }),
                     "struct_size " + std::to_string(size)});
  }
  // A size that could be right, but is not a hello's.
  ByteBuffer small = changed([](auto& h) { h.struct_size = 95; });
  small.resize(95);
  wrong.push_back({"struct_size 95", small, "struct_size 95"});
  wrong.push_back({"magic 0", changed([](auto& h) { h.magic = 0; }), "magic 0"});
  wrong.push_back({"magic byte-swapped", changed([](auto& h) { h.magic = __builtin_bswap32(h.magic); }), "magic"});
  wrong.push_back({"version 1", changed([](auto& h) { h.version = 1; }), "version 1"});
  wrong.push_back({"version 3", changed([](auto& h) { h.version = 3; }), "version 3"});
  wrong.push_back({"an unknown flag", changed([](auto& h) { h.flags = 0x80; }), "flags"});
  wrong.push_back(
      {"a name without its zero", changed([](auto& h) { std::memset(h.name, 'x', sizeof h.name); }), "name"});
  wrong.push_back({"no name", changed([](auto& h) { std::memset(h.name, 0, sizeof h.name); }), "name"});
  wrong.push_back({"a name with a line end", changed([](auto& h) { h.name[3] = '\n'; }), "name"});
  wrong.push_back({"a name with an escape sequence", changed([](auto& h) { h.name[0] = '\x1b'; }), "name"});
  wrong.push_back({"a name that is not ASCII", changed([](auto& h) { h.name[0] = '\xff'; }), "name"});
  wrong.push_back({"all ones", ByteBuffer(104, std::byte{0xff}), "struct_size 4294967295"});
  wrong.push_back({"an HTTP request",
                   [] {
                     const std::string text = "GET / HTTP/1.1\r\nHost: kvmid\r\n\r\n";
                     const auto bytes = std::as_bytes(std::span(text));
                     return ByteBuffer(bytes.begin(), bytes.end());
                   }(),
                   "struct_size"});
  return wrong;
}

kvmi_handshake good_handshake(std::uint8_t number, std::string_view name) {
  kvmi_handshake handshake{};
  handshake.struct_size = sizeof(kvmi_handshake) + sizeof(kvmi_handshake_kvmi2);
  const Uuid uuid = uuid_of(number);
  std::copy(uuid.bytes.begin(), uuid.bytes.end(), handshake.uuid);
  copy_text(name, handshake.name, sizeof handshake.name);
  handshake.max_gpa = 1U << 24U;
  return handshake;
}

ByteBuffer whole(const kvmi_handshake& handshake, const kvmi_handshake_kvmi2& part) {
  ByteBuffer out = bytes_of(handshake);
  const ByteBuffer tail = bytes_of(part);
  out.insert(out.end(), tail.begin(), tail.end());
  return out;
}

constexpr kvmi_handshake_kvmi2 kGoodPart{KVMI_HELLO_MAGIC, KVMI_VERSION, 0, 0, 0};

struct WrongHandshake {
  std::string name;
  ByteBuffer bytes;
  std::string reason;
  bool answered = true;  ///< a size that cannot be is not read on, so nothing says that an answer is understood
};

std::vector<WrongHandshake> wrong_handshakes() {
  std::vector<WrongHandshake> wrong;
  const auto with = [](auto change) {
    kvmi_handshake handshake = good_handshake(9, "careless");
    kvmi_handshake_kvmi2 part = kGoodPart;
    change(handshake, part);
    return whole(handshake, part);
  };
  for (const std::uint32_t size : {0U, 3U, 5000U, kSizeMost}) {
    wrong.push_back({"struct_size " + std::to_string(size), with([&](auto& h, auto&) { h.struct_size = size; }),
                     "struct_size " + std::to_string(size), false});
  }
  ByteBuffer small = with([](auto& h, auto&) { h.struct_size = 95; });
  small.resize(95);
  wrong.push_back({"struct_size 95", small, "struct_size 95", false});
  ByteBuffer half = with([](auto& h, auto&) { h.struct_size = 112; });
  half.resize(112);
  wrong.push_back({"half of the KVMI 2 part", half, "struct_size 112"});
  wrong.push_back({"version 3", with([](auto&, auto& p) { p.version = 3; }), "version 3"});
  wrong.push_back({"unknown flags", with([](auto&, auto& p) { p.flags = 0x100; }), "flags"});
  wrong.push_back({"padding", with([](auto&, auto& p) { p.padding = 1; }), "padding"});
  wrong.push_back({"RAM size without RAM", with([](auto&, auto& p) { p.ram_bytes = 4096; }), "field"});
  wrong.push_back({"RAM without a size", with([](auto&, auto& p) { p.flags = KVMI_HANDSHAKE_RAM_SHARED; }), "field"});
  wrong.push_back(
      {"a name without its zero", with([](auto& h, auto&) { std::memset(h.name, 'x', sizeof h.name); }), "name"});
  wrong.push_back({"a name with a line end", with([](auto& h, auto&) { h.name[2] = '\n'; }), "name"});
  return wrong;
}

}  // namespace

namespace {

/// A daemon of its own for a few mistakes at a time: the lines that newcomers can cause have a budget.
class Scenes {
 public:
  void next() {
    if (used_++ % 8 != 0) return;
    if (bystander_) bystander_->check();
    bystander_.reset();
    daemon_.emplace();
    bystander_.emplace(daemon_->hypervisors(), daemon_->agents());
    bystander_->check();
    refused_ = daemon_->counter("hello_refused");
  }
  WireDaemon& daemon() { return *daemon_; }
  /// One more was refused, and no more than one.
  void check_refused() {
    ++refused_;
    CHECK(daemon_->wait_counter("hello_refused", refused_) == refused_);
  }
  void check() { bystander_->check(); }

 private:
  std::optional<WireDaemon> daemon_;
  std::optional<Bystander> bystander_;
  std::uint64_t refused_ = 0;
  unsigned used_ = 0;
};

}  // namespace

TEST_CASE("a hello that is wrong is answered with the reason, logged and counted", "[wire][hello]") {
  Scenes scenes;
  for (const auto& wrong : wrong_hellos()) {
    INFO(wrong.name);
    scenes.next();
    WireSocket socket(scenes.daemon().agents());
    const auto welcome = say_hello(socket, wrong.bytes);
    REQUIRE(welcome);
    CHECK(welcome->status == -KVMI_EINVAL);
    CHECK_THAT(text_in(*welcome), Catch::Contains(wrong.reason));
    CHECK(socket.wait_closed());
    scenes.daemon().wait_log({"no hello from=agent", "uid=", wrong.reason});
    scenes.check_refused();
  }
  scenes.check();
}

TEST_CASE("a handshake that is wrong is answered where it can be, closed, logged and counted", "[wire][hello]") {
  Scenes scenes;
  for (const auto& wrong : wrong_handshakes()) {
    INFO(wrong.name);
    scenes.next();
    WireSocket socket(scenes.daemon().hypervisors());
    socket.send(wrong.bytes);
    if (wrong.answered) {
      const auto bytes = socket.read_exact(sizeof(kvmi_handshake_answer) + sizeof(kvmi_handshake_answer_kvmi2));
      REQUIRE(bytes);
      const auto answer = parse_hypervisor_answer(*bytes);
      REQUIRE(answer);
      CHECK(answer->status == ErrorCode::Invalid);
      CHECK_THAT(answer->text, Catch::Contains(wrong.reason));
    }
    CHECK(socket.wait_closed());
    scenes.daemon().wait_log({"no hello from=hypervisor", "uid=", wrong.reason});
    scenes.check_refused();
  }
  scenes.check();
}

TEST_CASE("a hypervisor of another dialect is answered as QEMU wants it, and asked what it speaks", "[wire][hello]") {
  WireDaemon daemon;
  kvmi_handshake handshake = good_handshake(9, "elder");
  handshake.struct_size = sizeof handshake;
  WireSocket socket(daemon.hypervisors());
  socket.send(bytes_of(handshake));
  const auto answer = socket.read_exact(sizeof(kvmi_handshake_answer));
  REQUIRE(answer);
  CHECK(first_struct_size(*answer).value() == sizeof(kvmi_handshake_answer));
  const auto question = socket.read_exact(sizeof(kvmi_msg_hdr));
  REQUIRE(question);
  kvmi_msg_hdr header{};
  std::memcpy(&header, question->data(), sizeof header);
  CHECK(header.id == 2);
  CHECK(header.size == 0);
  daemon.wait_log({"hypervisor connected", "guest=elder", "dialect=older"});
}

TEST_CASE("a guest without a uuid is refused with the reason", "[wire][hello]") {
  WireDaemon daemon;
  ScriptedHypervisor hypervisor(daemon.hypervisors(), {.uuid = Uuid{}, .name = "nobody"});
  REQUIRE(hypervisor.answer());
  CHECK(hypervisor.answer()->status == ErrorCode::Invalid);
  CHECK_THAT(hypervisor.answer()->text, Catch::Contains("uuid"));
  CHECK(hypervisor.wait_closed());
}

TEST_CASE("a hello that never comes is not waited for", "[wire][hello]") {
  WireDaemon daemon(wire_config(R"({"limits": {"hello_timeout_ms": 100}})"));
  WireSocket silent(daemon.agents());
  WireSocket torn(daemon.agents());
  torn.send(Bytes(bytes_of(good_hello(uuid_of(1), "torn"))).first(50));
  WireSocket silent_hypervisor(daemon.hypervisors());
  WireSocket torn_hypervisor(daemon.hypervisors());
  torn_hypervisor.send(Bytes(whole(good_handshake(9, "torn"), kGoodPart)).first(103));

  for (WireSocket* socket : {&silent, &torn}) {
    const auto bytes = socket->read_exact(sizeof(kvmi_welcome));
    REQUIRE(bytes);
    const auto welcome = parse_welcome(*bytes);
    REQUIRE(welcome);
    CHECK(welcome->status == -KVMI_ETIMEDOUT);
    CHECK_THAT(text_in(*welcome), Catch::Contains("100 ms"));
    CHECK(socket->wait_closed());
  }
  CHECK(silent_hypervisor.wait_closed());
  CHECK(torn_hypervisor.wait_closed());
  CHECK(daemon.wait_counter("hello_timeouts", 4) == 4);
  daemon.wait_log({"no hello from=agent", "no hello within 100 ms"});
  daemon.wait_log({"no hello from=hypervisor", "no hello within 100 ms"});
}

TEST_CASE("a peer that leaves within its hello leaves nothing behind", "[wire][hello]") {
  WireDaemon daemon;
  Bystander bystander(daemon.hypervisors(), daemon.agents());
  const auto before = daemon.open_descriptors();
  const ByteBuffer hello = bytes_of(good_hello(uuid_of(0xbb), "leaver"));
  for (const std::size_t cut : {std::size_t{0}, std::size_t{1}, std::size_t{4}, std::size_t{50}, hello.size() - 1}) {
    WireSocket socket(daemon.agents());
    socket.send(Bytes(hello).first(cut));
    socket.close();
  }
  CHECK(daemon.wait_counter("hello_refused", 5) == 5);
  CHECK(wait_until([&] { return daemon.open_descriptors() <= before; }));
  bystander.check();
}

TEST_CASE("a larger hello, one that comes byte by byte, and one with a frame behind it are all welcome",
          "[wire][hello]") {
  WireDaemon daemon;
  Bystander bystander(daemon.hypervisors(), daemon.agents());
  const Uuid guest = uuid_of(0xbb);

  kvmi_hello large = good_hello(guest, "large");
  large.struct_size = KVMI_HELLO_SIZE_MAX;
  ByteBuffer large_bytes = bytes_of(large);
  large_bytes.resize(KVMI_HELLO_SIZE_MAX, std::byte{0x77});
  WireSocket first(daemon.agents());
  auto welcome = say_hello(first, large_bytes);
  REQUIRE(welcome);
  CHECK(welcome->status == 0);

  WireSocket second(daemon.agents());
  const ByteBuffer hello = bytes_of(good_hello(guest, "slow"));
  for (std::size_t i = 0; i + 1 < hello.size(); ++i) second.send(std::span(&hello[i], 1));
  welcome = say_hello(second, std::span(&hello.back(), 1));
  REQUIRE(welcome);
  CHECK(welcome->status == 0);

  WireSocket third(daemon.agents());
  ByteBuffer with_frame = bytes_of(good_hello(guest, "eager"));
  const ByteBuffer command = encoded(Command{GetVersion{}}, Seq{9});
  with_frame.insert(with_frame.end(), command.begin(), command.end());
  welcome = say_hello(third, with_frame);
  REQUIRE(welcome);
  CHECK(welcome->status == 0);
  const auto reply = third.next_frame();
  REQUIRE(reply);
  CHECK(reply->id == KVMI_MSG_GET_VERSION);
  CHECK(reply->seq == Seq{9});
  bystander.check();
}

TEST_CASE("a guest that nobody brought is ENOENT", "[wire][hello]") {
  WireDaemon daemon;
  WireSocket socket(daemon.agents());
  const auto welcome = say_hello(socket, bytes_of(good_hello(uuid_of(77), "seeker")));
  REQUIRE(welcome);
  CHECK(welcome->status == -KVMI_ENOENT);
  CHECK_THAT(text_in(*welcome), Catch::Contains(to_string(uuid_of(77))));
  CHECK(socket.wait_closed());
  daemon.wait_log({"agent refused", "name=seeker", "error=ENOENT"});
  CHECK(daemon.wait_counter("connections_refused", 1) == 1);
}

TEST_CASE("a second hypervisor with a live uuid is refused and the first goes on", "[wire][hello]") {
  WireDaemon daemon;
  Bystander bystander(daemon.hypervisors(), daemon.agents());
  bystander.check();
  const auto refused = daemon.counter("connections_refused");

  ScriptedHypervisor second(daemon.hypervisors(), {.uuid = uuid_of(0xbb), .name = "impostor"});

  REQUIRE(second.answer());
  CHECK(second.answer()->status == ErrorCode::Busy);
  CHECK_THAT(second.answer()->text, Catch::Contains(to_string(uuid_of(0xbb))));
  CHECK(second.wait_closed());
  daemon.wait_log({"hypervisor refused", "guest=impostor", "error=EBUSY"});
  CHECK(daemon.wait_counter("connections_refused", refused + 1) == refused + 1);
  bystander.check();
}

TEST_CASE("descriptors that come with a hello are closed", "[wire][hello]") {
  WireDaemon daemon;
  Bystander bystander(daemon.hypervisors(), daemon.agents());
  const auto before = daemon.open_descriptors();
  std::vector<WireSocket> sockets;
  for (int i = 0; i < 4; ++i) {
    sockets.emplace_back(daemon.agents());
    sockets.back().send_with_descriptors(bytes_of(good_hello(uuid_of(0xbb), "giver")), 8);
    REQUIRE(sockets.back().read_exact(sizeof(kvmi_welcome)));
  }
  // Four connections, and nothing of the 32 descriptors that were pushed at it.
  CHECK(wait_until([&] { return daemon.open_descriptors() <= before + sockets.size(); }));
  // The same behind the hello, where frames are read.
  for (auto& socket : sockets) {
    socket.send_with_descriptors(encoded(Command{GetVersion{}}, Seq{1}), 8);
    REQUIRE(socket.next_frame());
  }
  CHECK(wait_until([&] { return daemon.open_descriptors() <= before + sockets.size(); }));
  bystander.check();
}
