// SPDX-License-Identifier: GPL-2.0-or-later
// What an agent can send that is wrong: it is told what, and only when the stream itself is lost is it disconnected.
#include <catch2/catch.hpp>
#include <random>

#include "tests/integration_wire/bystander.h"
#include "tests/integration_wire/wire_daemon.h"

using namespace kvmid;
using namespace kvmid::test;

namespace {

struct Scene {
  WireDaemon daemon;
  Bystander bystander{daemon.hypervisors(), daemon.agents()};
  ScriptedHypervisor hypervisor{daemon.hypervisors(), {.uuid = uuid_of(1), .name = "web1"}};
  WireSocket agent = [this] {
    attach_agent(daemon.agents(), uuid_of(1), "first");  // the guest is known from here on
    return raw_agent(daemon.agents(), uuid_of(1), "careless");
  }();
};

struct ErrorReply {
  std::uint16_t id = 0;
  Seq seq;
  std::int32_t error = 0;
  std::string text;
};

/// The next frame, which must be a command's reply. Read by hand: its id may be one that no decoder knows.
ErrorReply error_reply(WireSocket& socket) {
  const auto frame = socket.next_frame();
  REQUIRE(frame);
  REQUIRE(frame->id != KVMI_MSG_NOTICE);
  REQUIRE(frame->payload.size() >= sizeof(kvmi_error));
  kvmi_error error{};
  std::memcpy(&error, frame->payload.data(), sizeof error);
  REQUIRE(error.text_size <= frame->payload.size() - sizeof error);
  std::string text(error.text_size, '\0');
  std::memcpy(text.data(), frame->payload.data() + frame->payload.size() - text.size(), text.size());
  return {frame->id, frame->seq, error.error_code, std::move(text)};
}

/// The next frame, which must be a notice that says what was refused.
std::string frame_refused(WireSocket& socket, ErrorCode error) {
  const auto frame = socket.next_frame();
  REQUIRE(frame);
  DialectKvmi2 dialect;
  const auto message = dialect.decode_upward(frame->view());
  REQUIRE(message);
  const auto* notice = std::get_if<Notice>(&*message);
  REQUIRE(notice != nullptr);
  CHECK(notice->kind == NoticeKind::FrameRefused);
  CHECK(notice->error == error);
  CHECK_FALSE(notice->text.empty());
  return std::string(notice->text);
}

struct WrongCommand {
  std::string name;
  std::uint16_t id;
  ByteBuffer payload;
  std::int32_t error;
  std::string text;
};

ByteBuffer payload_of(const Command& command) {
  const ByteBuffer whole = encoded(command, Seq{1});
  return ByteBuffer(whole.begin() + sizeof(kvmi_msg_hdr), whole.end());
}

template <class T, class Change>
ByteBuffer changed(Change change) {
  T value{};
  change(value);
  return bytes_of(value);
}

std::vector<WrongCommand> wrong_commands() {
  std::vector<WrongCommand> wrong{
      {"an id that does not exist", 999, {}, -KVMI_ENOSYS, "id"},
      {"id 0", 0, {}, -KVMI_ENOSYS, "id"},
      {"id 65535", 65535, {}, -KVMI_ENOSYS, "id"},
      {"an id of the RFC that is not used again", 5, {}, -KVMI_ENOSYS, "id"},
      {"the list of guests on a guest's connection", KVMI_MSG_GET_GUESTS, payload_of(GetGuests{}), -KVMI_ENOSYS,
       "control"},
      {"GET_VERSION with a payload", KVMI_MSG_GET_VERSION, ByteBuffer(1), -KVMI_EINVAL, "GET_VERSION"},
      {"a vCPU that does not exist", KVMI_MSG_GET_REGISTERS, changed<kvmi_get_registers>([](auto& c) { c.vcpu = 2; }),
       -KVMI_EINVAL, "vCPU"},
      {"every vCPU where one is meant", KVMI_MSG_GET_REGISTERS,
       changed<kvmi_get_registers>([](auto& c) { c.vcpu = KVMI_ALL_VCPUS; }), -KVMI_EINVAL, "GET_REGISTERS"},
      {"more MSRs than there are bytes", KVMI_MSG_GET_REGISTERS,
       changed<kvmi_get_registers>([](auto& c) { c.msr_count = 100; }), -KVMI_EINVAL, "GET_REGISTERS"},
      {"padding that is not zero", KVMI_MSG_PAUSE_VCPU, changed<kvmi_pause_vcpu>([](auto& c) { c.padding[2] = 1; }),
       -KVMI_EINVAL, "PAUSE_VCPU"},
      {"a read without ranges", KVMI_MSG_READ_PHYSICAL, changed<kvmi_read_physical>([](auto&) {}), -KVMI_EINVAL,
       "READ_PHYSICAL"},
      {"a write longer than its bytes", KVMI_MSG_WRITE_PHYSICAL,
       changed<kvmi_write_physical>([](auto& c) { c.size = 4096; }), -KVMI_EINVAL, "WRITE_PHYSICAL"},
      {"an event that does not exist", KVMI_MSG_CONTROL_EVENTS,
       changed<kvmi_control_events>([](auto& c) { c.events = std::uint64_t{1} << 40U; }), -KVMI_EINVAL, ""},
      {"an operation that does not exist", KVMI_MSG_CONTROL_EVENTS,
       changed<kvmi_control_events>([](auto& c) { c.operation = 9; }), -KVMI_EINVAL, "CONTROL_EVENTS"},
      {"a role that does not exist", KVMI_MSG_CONTROL_EVENTS, changed<kvmi_control_events>([](auto& c) { c.role = 2; }),
       -KVMI_EINVAL, "CONTROL_EVENTS"},
      {"a CR that cannot be watched", KVMI_MSG_CONTROL_CR, changed<kvmi_control_cr>([](auto& c) {
         c.enable = 1;
         c.cr = 2;
       }),
       -KVMI_EINVAL, "CR"},
      {"an MSR outside the ranges", KVMI_MSG_CONTROL_MSR, changed<kvmi_control_msr>([](auto& c) {
         c.enable = 1;
         c.msr = 0x2000;
       }),
       -KVMI_EINVAL, "MSR"},
      {"a boolean of 2", KVMI_MSG_CONTROL_MSR, changed<kvmi_control_msr>([](auto& c) { c.enable = 2; }), -KVMI_EINVAL,
       "CONTROL_MSR"},
      {"an exception above 31", KVMI_MSG_INJECT_EXCEPTION,
       changed<kvmi_inject_exception>([](auto& c) { c.vector = 32; }), -KVMI_EINVAL, ""},
      {"a page fault without its error code", KVMI_MSG_INJECT_EXCEPTION,
       changed<kvmi_inject_exception>([](auto& c) { c.vector = 14; }), -KVMI_EINVAL, ""},
  };
  ByteBuffer write_only = bytes_of(kvmi_set_page_access{1, 0, 0});
  const ByteBuffer entry = bytes_of(kvmi_page_access_entry{0x1000, 1, KVMI_PAGE_ACCESS_W, {}});
  write_only.insert(write_only.end(), entry.begin(), entry.end());
  wrong.push_back({"a page that can only be written", KVMI_MSG_SET_PAGE_ACCESS, write_only, -KVMI_EINVAL, ""});
  ByteBuffer outside = bytes_of(kvmi_set_page_access{1, 0, 0});
  const ByteBuffer far_entry = bytes_of(kvmi_page_access_entry{std::uint64_t{1} << 40U, 1, KVMI_PAGE_ACCESS_R, {}});
  outside.insert(outside.end(), far_entry.begin(), far_entry.end());
  wrong.push_back({"a page that is no guest memory", KVMI_MSG_SET_PAGE_ACCESS, outside, -KVMI_EFAULT, "memory"});
  return wrong;
}

}  // namespace

TEST_CASE("a command that is wrong is answered with its error, and the connection goes on", "[wire][agent]") {
  Scene scene;
  std::uint32_t seq = 100;
  std::uint64_t refused = scene.daemon.counter("commands_refused");
  for (const auto& wrong : wrong_commands()) {
    INFO(wrong.name);
    // An agent of its own for each: log lines have a budget for each agent.
    scene.agent = raw_agent(scene.daemon.agents(), uuid_of(1), "careless");
    scene.agent.send(frame_of(wrong.id, ++seq, wrong.payload));
    const auto reply = error_reply(scene.agent);
    CHECK(reply.id == wrong.id);
    CHECK(reply.seq == Seq{seq});
    CHECK(reply.error == wrong.error);
    CHECK_FALSE(reply.text.empty());
    CHECK_THAT(reply.text, Catch::Contains(wrong.text));
    scene.daemon.wait_log({"command refused", "guest=web1", "seq=" + std::to_string(seq)});
    ++refused;
    CHECK(scene.daemon.wait_counter("commands_refused", refused) == refused);
    // Something right in between: mistakes are counted in a row.
    scene.agent.send(encoded(Command{GetVersion{}}, Seq{1}));
    CHECK(error_reply(scene.agent).error == 0);
  }
  scene.bystander.check();
}

TEST_CASE("every command cut at every byte is answered with an error", "[wire][agent]") {
  Scene scene;
  const kvmi_read_range range{0x1000, 8, 0};
  const kvmi_page_access_entry entry{0x1000, 1, KVMI_PAGE_ACCESS_R, {}};
  const std::array<std::byte, 4> data{};
  const std::vector<Command> commands{PauseVcpu{},
                                      GetRegisters{},
                                      SetRegisters{},
                                      GetCpuid{},
                                      GetPageAccess{.gpa = {}, .pages = 1},
                                      SetPageAccess{AddressSpace::Normal, std::span(&entry, 1)},
                                      InjectException{.vcpu = {}, .vector = 3},
                                      ReadPhysical{AddressSpace::Normal, std::span(&range, 1)},
                                      WritePhysical{.gpa = Gpa{0x1000}, .data = data, .expected = {}},
                                      ControlEvents{},
                                      ControlCr{},
                                      ControlMsr{},
                                      TranslateGva{},
                                      ControlSinglestep{},
                                      GetXcr{}};
  for (const auto& command : commands) {
    const ByteBuffer payload = payload_of(command);
    const auto id = static_cast<std::uint16_t>(id_of(command));
    for (std::size_t cut = 0; cut < payload.size(); ++cut) {
      INFO(name_of(id_of(command)) << " cut to " << cut << " of " << payload.size() << " bytes");
      scene.agent.send(frame_of(id, 7, Bytes(payload).first(cut)));
      const auto reply = error_reply(scene.agent);
      CHECK(reply.id == id);
      CHECK(reply.error == -KVMI_EINVAL);
      scene.agent.send(encoded(Command{GetVersion{}}, Seq{1}));
      CHECK(error_reply(scene.agent).error == 0);
    }
  }
  scene.bystander.check();
}

TEST_CASE("a message that only goes up is refused with a notice, for a reply would look like it", "[wire][agent]") {
  Scene scene;
  for (const std::uint16_t id : {KVMI_MSG_GUEST_ON, KVMI_MSG_GUEST_OFF, KVMI_MSG_EVENT, KVMI_MSG_NOTICE}) {
    INFO("id " << id);
    scene.agent.send(frame_of(id, 7, ByteBuffer(16)));
    frame_refused(scene.agent, ErrorCode::NotServed);
    scene.agent.send(encoded(Command{GetVersion{}}, Seq{1}));
    CHECK(error_reply(scene.agent).error == 0);
  }
  scene.bystander.check();
}

TEST_CASE("too many malformed messages in a row end the connection", "[wire][agent]") {
  Scene scene;
  for (std::uint32_t i = 0; i < 16; ++i) {
    scene.agent.send(frame_of(KVMI_MSG_GET_VERSION, i, ByteBuffer(3)));
    CHECK(error_reply(scene.agent).error == -KVMI_EINVAL);
  }
  CHECK_THAT(frame_refused(scene.agent, ErrorCode::Invalid), Catch::Contains("16"));
  CHECK(scene.agent.wait_closed());
  scene.daemon.wait_log({"agent gone", "name=careless", "guest=web1", "malformed"});
  CHECK(scene.daemon.wait_counter("malformed_closed", 1) == 1);
  scene.bystander.check();
}

TEST_CASE("a frame over the size limit is answered with a notice and ends the connection", "[wire][agent]") {
  for (const std::uint16_t size : {std::uint16_t{65529}, std::uint16_t{65535}}) {
    Scene scene;
    INFO("size " << size);
    scene.agent.send(frame_of(KVMI_MSG_GET_VERSION, 1, {}, size));
    CHECK_THAT(frame_refused(scene.agent, ErrorCode::Invalid), Catch::Contains(std::to_string(size)));
    CHECK(scene.agent.wait_closed());
    scene.daemon.wait_log({"agent gone", "name=careless", "guest=web1", "too large"});
    CHECK(scene.daemon.wait_counter("frames_refused", 1) == 1);
    scene.bystander.check();
  }
}

TEST_CASE("the same on a control connection", "[wire][agent]") {
  WireDaemon daemon;
  WireSocket control = raw_agent(daemon.agents(), Uuid{}, "controller");
  control.send(frame_of(KVMI_MSG_GET_REGISTERS, 1, bytes_of(kvmi_get_registers{})));
  CHECK(error_reply(control).error == -KVMI_ENOSYS);
  control.send(frame_of(999, 2, {}));
  CHECK(error_reply(control).error == -KVMI_ENOSYS);
  control.send(frame_of(KVMI_MSG_GET_GUESTS, 3, ByteBuffer(3)));
  CHECK(error_reply(control).error == -KVMI_EINVAL);
  control.send(frame_of(KVMI_MSG_GET_GUESTS, 4, {}, std::uint16_t{65535}));
  CHECK(control.wait_closed());
  daemon.wait_log({"control connection gone", "name=controller", "too large"});
  CHECK(daemon.wait_counter("frames_refused", 1) == 1);

  WireSocket second = raw_agent(daemon.agents(), Uuid{}, "mumbler");
  for (std::uint32_t i = 0; i < 16; ++i) second.send(frame_of(KVMI_MSG_GET_GUESTS, i, ByteBuffer(3)));
  CHECK(second.wait_closed());
  CHECK(daemon.wait_counter("malformed_closed", 1) == 1);
}

TEST_CASE("an agent that leaves within a frame is gone, and its descriptors with it", "[wire][agent]") {
  Scene scene;
  const ByteBuffer whole = encoded(Command{ControlEvents{}}, Seq{1});
  const auto before = scene.daemon.open_descriptors();
  for (std::size_t cut = 0; cut < whole.size(); ++cut) {
    WireSocket agent = raw_agent(scene.daemon.agents(), uuid_of(1), "torn");
    agent.send(Bytes(whole).first(cut));
    agent.close();
  }
  CHECK(wait_until([&] { return scene.daemon.open_descriptors() <= before; }));
  scene.daemon.wait_log({"agent gone", "name=torn", "closed by the peer"});
  scene.bystander.check();
}

TEST_CASE("a command that comes twice is answered twice", "[wire][agent]") {
  Scene scene;
  const ByteBuffer once = encoded(Command{GetRegisters{}}, Seq{42});
  ByteBuffer twice = once;
  twice.insert(twice.end(), once.begin(), once.end());
  scene.agent.send(twice);
  for (int i = 0; i < 2; ++i) {
    const auto reply = error_reply(scene.agent);
    CHECK(reply.seq == Seq{42});
    CHECK(reply.error == 0);
  }
  scene.bystander.check();
}

TEST_CASE("a second hello where a frame is expected is a message that makes no sense, and no more", "[wire][agent]") {
  Scene scene;
  scene.agent.send(bytes_of(good_hello(uuid_of(1), "again")));
  scene.agent.end_of_stream();
  CHECK(scene.agent.wait_closed());
  scene.bystander.check();
}

TEST_CASE("random bytes from many agents do no harm to others", "[wire][agent]") {
  Scene scene;
  const auto before = scene.daemon.open_descriptors();
  for (std::uint32_t seed = 1; seed <= 24; ++seed) {
    INFO("seed " << seed);
    std::mt19937 random(seed);
    ByteBuffer noise(32768);
    for (auto& byte : noise) byte = static_cast<std::byte>(random());
    WireSocket agent = raw_agent(scene.daemon.agents(), uuid_of(1), "noise");
    // Half of them look more like frames: ids and sizes that exist, and noise for the rest.
    if (seed % 2 == 0) {
      std::size_t at = 0;
      while (at + sizeof(kvmi_msg_hdr) < noise.size()) {
        const kvmi_msg_hdr hdr{static_cast<std::uint16_t>(random() % 40), static_cast<std::uint16_t>(random() % 80),
                               static_cast<std::uint32_t>(random())};
        std::memcpy(noise.data() + at, &hdr, sizeof hdr);
        at += sizeof hdr + hdr.size;
      }
    }
    agent.send(noise);  // it may be disconnected before all of it is out
    agent.end_of_stream();
    CHECK(agent.wait_closed());
  }
  CHECK(wait_until([&] { return scene.daemon.open_descriptors() <= before; }));
  CHECK(scene.daemon.process().running());
  CHECK(scene.hypervisor.is_open());
  scene.bystander.check();
}
