// SPDX-License-Identifier: GPL-2.0-or-later
//
// What tools send in one write (libkvmi's batches), pauses that are waited for, injections and single steps: as v7 and
// v12 tools, on hypervisors of each kind.
#include "tests/integration_dialects/tool_scene.h"

namespace kvmid::test {
namespace {

constexpr VcpuId kVcpu0{0};
constexpr std::array<std::uint16_t, 2> kBoth{0, 1};
constexpr std::uint64_t kProtected = emulated::kProtectedPage.value;
/// flows of libkvmi: no replies from here; replies again, this one's included; replies again, but not to this one.
constexpr kvmi1::ControlCmdResponse kSilent{false, true, false}, kAloud{true, true, false},
    kAloudAfter{true, false, false};

SpokenBy any_hypervisor() { return GENERATE(SpokenBy{}, SpokenBy{DialectId::V7}, SpokenBy{DialectId::V12}); }

/// A v7 tool on a guest of two vCPUs.
struct Scene7 : ToolScene {
  Scene7() : ToolScene({.hypervisor = any_hypervisor(), .vcpus = 2}) { tool().accept(); }
  [[nodiscard]] std::string text() const { return "hypervisor " + spoken_name(options.hypervisor); }
  /// The vCPU stops in a CR4 write.
  Kvmi1Event stop(std::uint16_t vcpu) {
    watch_cr(tool(), 4, VcpuId{vcpu});
    guest.set_mode(GuestMode::Cr4, vcpu);
    auto event = expect(tool(), EventKind::Cr);
    guest.set_mode(GuestMode::Idle, vcpu);
    return event;
  }
  /// vCPU 0 stops in a store; stored() waits for what it then stores.
  Kvmi1Event stop_in_store() {
    need(tool(), events_command(tool(), EventKind::PageFault));
    set_page(tool(), kProtected, 5);
    stores_ = guest.done(GuestMode::Store);
    guest.set_mode(GuestMode::Store);
    auto event = expect(tool(), EventKind::PageFault);
    guest.set_mode(GuestMode::Idle);
    set_page(tool(), kProtected, 7);
    return event;
  }
  std::uint64_t stored() {
    REQUIRE(wait_until([&] { return guest.done(GuestMode::Store) > stores_; }));
    CHECK(silent(tool()));
    CHECK(guest.mailbox().panic == 0);
    return guest.memory().read_u64(emulated::kProtectedPage);
  }
  /// No reply but this one's comes, and then nothing.
  void only_reply(Seq seq) {
    const auto message = tool().next();
    CHECK(message.frame.seq == seq);
    CHECK(message.bytes->size() == 16);
    const auto* reply = std::get_if<kvmi1::Reply>(&message.message);
    REQUIRE(reply != nullptr);
    CHECK(reply->error == 0);
    CHECK(silent(tool()));
  }

 private:
  std::uint64_t stores_ = 0;
};

/// What the guest stores is in RAX.
kvmi_x86_regs with_value(const Kvmi1Event& event, std::uint64_t value) {
  auto regs = event.event.regs;
  regs.rax = value;
  return regs;
}

std::vector<std::byte> new_value(const Kvmi1Event& event) {
  const auto value = std::get<CrData>(event.event.data).new_value;
  const auto bytes = std::as_bytes(std::span(&value, 1));
  return {bytes.begin(), bytes.end()};
}

std::uint64_t rounds_of_both(const Guest& guest) { return guest.rounds(0) + guest.rounds(1); }

}  // namespace

TEST_CASE("batch: one event reply alone has no frame around it", "[integration][dialects]") {
  Scene7 scene;
  INFO(scene.text());
  const auto event = scene.stop(0);
  Batch batch(scene.tool());
  batch.reply(event, kvmi1::kContinue, new_value(event));
  batch.send();
  scene.guest.wait_rounds(2);
  CHECK(silent(scene.tool()));
}

TEST_CASE("batch: two event replies let two vCPUs go, and nothing is answered", "[integration][dialects]") {
  Scene7 scene;
  INFO(scene.text());
  const auto first = scene.stop(0);
  const auto second = scene.stop(1);
  Batch batch(scene.tool());
  batch.add(kSilent);
  batch.reply(first, kvmi1::kContinue, new_value(first));
  batch.reply(second, kvmi1::kContinue, new_value(second));
  batch.add(kAloudAfter);
  batch.send();
  for (const unsigned vcpu : {0U, 1U}) scene.guest.wait_rounds(2, vcpu);
  CHECK(silent(scene.tool()));
}

TEST_CASE("batch: registers are answered by the end of the batch alone", "[integration][dialects]") {
  Scene7 scene;
  INFO(scene.text());
  const auto event = scene.stop_in_store();
  Batch batch(scene.tool());
  batch.add(kSilent);
  batch.add(kvmi1::SetRegisters{kVcpu0, with_value(event, 0x4711)});
  const Seq end = batch.add(kAloud);
  batch.send();
  scene.only_reply(end);
  scene.tool().reply(event, kvmi1::kRetry);
  CHECK(scene.stored() == 0x4711);
}

TEST_CASE("batch: registers and the event reply are in effect together", "[integration][dialects]") {
  Scene7 scene;
  INFO(scene.text());
  const auto event = scene.stop_in_store();
  Batch batch(scene.tool());
  batch.add(kSilent);
  batch.add(kvmi1::SetRegisters{kVcpu0, with_value(event, 0x4712)});
  batch.reply(event, kvmi1::kRetry);
  batch.add(kAloudAfter);
  batch.send();
  CHECK(scene.stored() == 0x4712);
}

TEST_CASE("batch: page access is in effect before the event reply behind it", "[integration][dialects]") {
  Scene7 scene;
  INFO(scene.text());
  Kvmi1Tool& tool = scene.tool();
  need(tool, events_command(tool, EventKind::PageFault));
  set_page(tool, kProtected, 5);
  const auto stores = scene.guest.done(GuestMode::Store);
  scene.guest.set_mode(GuestMode::Store);
  const auto event = expect(tool, EventKind::PageFault);
  scene.guest.set_mode(GuestMode::Idle);
  std::array<kvmi1::PageAccessEntry, 2> pages;
  pages[0].gpa = kProtected;
  pages[1].gpa = emulated::kExecPage.value;
  for (auto& page : pages) page.access = 7;
  Batch batch(tool);
  batch.add(kSilent);
  batch.add(kvmi1::SetPageAccess{0, std::span<const kvmi1::PageAccessEntry>(pages)});
  batch.reply(event, kvmi1::kRetry);
  batch.add(kAloudAfter);
  batch.send();
  // Were the order another, the same fault would come again.
  REQUIRE(wait_until([&] { return scene.guest.done(GuestMode::Store) > stores; }));
  CHECK(silent(tool));
}

TEST_CASE("batch: page access alone is answered by the end of the batch", "[integration][dialects]") {
  Scene7 scene;
  INFO(scene.text());
  kvmi1::PageAccessEntry page;
  page.gpa = kProtected;
  page.access = 5;
  Batch batch(scene.tool());
  batch.add(kSilent);
  batch.add(kvmi1::SetPageAccess{0, std::span<const kvmi1::PageAccessEntry>(&page, 1)});
  const Seq end = batch.add(kAloud);
  batch.send();
  scene.only_reply(end);
  CHECK(scene.agent_json("tool0").at("pages") == 1);
}

TEST_CASE("batch: many commands in one write, as many as libkvmi puts there", "[integration][dialects]") {
  Scene7 scene;
  INFO(scene.text());
  const auto event = scene.stop_in_store();
  auto regs = with_value(event, 1000);
  Batch batch(scene.tool());
  Seq end{};
  for (const unsigned count : {149U, 91U}) {
    batch.add(kSilent);
    for (unsigned i = 0; i < count; ++i) {
      ++regs.rax;
      batch.add(kvmi1::SetRegisters{kVcpu0, regs});
    }
    end = batch.add(count == 149 ? kAloudAfter : kAloud);
  }
  batch.send();
  scene.only_reply(end);
  scene.tool().reply(event, kvmi1::kRetry);
  CHECK(scene.stored() == 1240);
}

TEST_CASE("batch: what has to be answered with data closes the connection, and leaves nothing",
          "[integration][dialects]") {
  Scene7 scene;
  INFO(scene.text());
  watch_cr(scene.tool(), 4);
  Batch batch(scene.tool());
  batch.add(kSilent);
  batch.add(kvmi1::ReadPhysical{Gpa{kImage}, 8});
  batch.send();
  CHECK(scene.tool().wait_closed());
  const Json failure = scene.wait_failure("dialect");
  CHECK(failure.at("side") == "dial");
  CHECK(scene.doctor().find("said what its dialect does not have") != std::string::npos);
  scene.tool().accept();
  scene.guest.do_times(GuestMode::Cr4, 2);
  CHECK(silent(scene.tool()));
}

TEST_CASE("pause all: the end of the batch is answered when every vCPU has stopped", "[integration][dialects]") {
  Scene7 scene;
  INFO(scene.text());
  Kvmi1Tool& tool = scene.tool();
  for (unsigned i = 0; i < 5; ++i) {
    for (const unsigned vcpu : {0U, 1U}) scene.guest.set_mode(GuestMode::Spin, vcpu);
    Batch batch(tool);
    batch.add(kSilent);
    for (const std::uint16_t vcpu : kBoth) batch.add(kvmi1::PauseVcpu{VcpuId{vcpu}, true});
    const Seq end = batch.add(kAloud);
    batch.send();
    CHECK(tool.reply_to(end).ok());
    const auto rounds = rounds_of_both(scene.guest);
    std::vector<Kvmi1Event> pauses;
    for (unsigned vcpu = 0; vcpu < 2; ++vcpu) pauses.push_back(expect(tool, EventKind::Pause));
    CHECK(pauses[0].event.vcpu.value + pauses[1].event.vcpu.value == 1);
    // Their states can be asked for meanwhile.
    for (const std::uint16_t vcpu : kBoth) CHECK(tool.call(kvmi1::GetRegisters{VcpuId{vcpu}, {}}).ok());
    const Json shown = scene.get("/v1/guests/" + scene.guest.uuid_text());
    for (const auto& vcpu : shown.at("vcpu")) CHECK(vcpu.at("state") == "waiting");
    CHECK(rounds_of_both(scene.guest) == rounds);
    for (const auto& pause : pauses) tool.go_on(pause);
    for (const unsigned vcpu : {0U, 1U}) scene.guest.set_mode(GuestMode::Idle, vcpu);
    for (const unsigned vcpu : {0U, 1U}) scene.guest.wait_rounds(1, vcpu);
    CHECK(silent(tool));
  }
}

TEST_CASE("pause: each is answered when its vCPU has stopped", "[integration][dialects]") {
  const DialectId dialect = GENERATE(DialectId::V7, DialectId::V12);
  ToolScene scene({.hypervisor = any_hypervisor(), .tools = {dialect}, .vcpus = 2});
  INFO("hypervisor " << spoken_name(scene.options.hypervisor) << ", tool " << kvmi1::name_of(dialect));
  Kvmi1Tool& tool = scene.tool();
  tool.accept();
  for (const std::uint16_t vcpu : kBoth) need(tool, kvmi1::PauseVcpu{VcpuId{vcpu}, true});
  const auto rounds = rounds_of_both(scene.guest);
  const auto first = expect(tool, EventKind::Pause);
  const auto second = expect(tool, EventKind::Pause);
  // As many events as pauses were asked for, one after another.
  need(tool, kvmi1::PauseVcpu{kVcpu0, true});
  CHECK(rounds_of_both(scene.guest) == rounds);
  tool.go_on(second);
  tool.go_on(first);
  tool.go_on(expect(tool, EventKind::Pause));
  for (const unsigned vcpu : {0U, 1U}) scene.guest.wait_rounds(2, vcpu);
  CHECK(silent(tool));
}

TEST_CASE("an injection is told by a TRAP event, the guest's own exceptions are not", "[integration][dialects]") {
  const DialectId dialect = GENERATE(DialectId::V7, DialectId::V12);
  ToolScene scene({.hypervisor = any_hypervisor(), .tools = {dialect}});
  INFO("hypervisor " << spoken_name(scene.options.hypervisor) << ", tool " << kvmi1::name_of(dialect));
  Kvmi1Tool& tool = scene.tool();
  tool.accept();
  for (unsigned i = 0; i < 3; ++i) {
    const auto before = scene.guest.mailbox().exceptions[3];
    need(tool, kvmi1::InjectException{.vcpu = kVcpu0, .vector = 3});
    const auto trap = expect(tool, EventKind::Trap);
    CHECK(std::get<TrapData>(trap.event.data).vector == 3);
    CHECK(scene.guest.mailbox().exceptions[3] == before);
    tool.go_on(trap);
    CHECK(wait_until([&] { return scene.guest.mailbox().exceptions[3] == before + 1; }));
  }
  scene.guest.do_times(GuestMode::Int3, 2);
  to_idle(scene.guest);
  CHECK(silent(tool));
}

TEST_CASE("single steps: one event for each instruction, until it is switched off", "[integration][dialects]") {
  const DialectId dialect = GENERATE(DialectId::V7, DialectId::V12);
  ToolScene scene({.hypervisor = any_hypervisor(), .tools = {dialect}});
  INFO("hypervisor " << spoken_name(scene.options.hypervisor) << ", tool " << kvmi1::name_of(dialect));
  Kvmi1Tool& tool = scene.tool();
  tool.accept();
  if (dialect == DialectId::V7) need(tool, events_command(tool, EventKind::Singlestep));
  need(tool, kvmi1::PauseVcpu{kVcpu0, true});
  const auto pause = expect(tool, EventKind::Pause);
  need(tool, kvmi1::ControlSinglestep{kVcpu0, true});
  tool.go_on(pause);
  std::uint64_t rip = 0;
  for (unsigned i = 0; i < 10; ++i) {
    const auto step = expect(tool, EventKind::Singlestep);
    CHECK(step.event.regs.rip != rip);
    rip = step.event.regs.rip;
    tool.go_on(step);
  }
  const auto last = expect(tool, EventKind::Singlestep);
  need(tool, kvmi1::ControlSinglestep{kVcpu0, false});
  tool.go_on(last);
  scene.guest.wait_rounds(2);
  CHECK(silent(tool));
}

TEST_CASE("an event's round trip with commands in the middle", "[integration][dialects]") {
  const DialectId dialect = GENERATE(DialectId::V7, DialectId::V12);
  ToolScene scene({.hypervisor = any_hypervisor(), .tools = {dialect}, .vcpus = 2});
  INFO("hypervisor " << spoken_name(scene.options.hypervisor) << ", tool " << kvmi1::name_of(dialect));
  Kvmi1Tool& tool = scene.tool();
  tool.accept();
  for (const std::uint16_t vcpu : kBoth) watch_cr(tool, 4, VcpuId{vcpu});
  scene.guest.set_mode(GuestMode::Cr4, 0);
  const auto first = expect(tool, EventKind::Cr);
  CHECK(tool.call(kvmi1::GetRegisters{kVcpu0, {}}).as<kvmi1::GetRegistersReply>().regs.rip == first.event.regs.rip);
  scene.guest.set_mode(GuestMode::Cr4, 1);
  const auto second = expect(tool, EventKind::Cr);
  CHECK(second.event.vcpu == VcpuId{1});
  for (unsigned vcpu = 0; vcpu < 2; ++vcpu) scene.guest.set_mode(GuestMode::Idle, vcpu);
  // Events of the other vCPU may come before the reply; replies are matched by their numbers.
  CHECK(tool.call(kvmi1::ReadPhysical{Gpa{kImage}, 4096}).ok());
  tool.go_on(second);
  tool.go_on(first);
  for (const unsigned vcpu : {0U, 1U}) scene.guest.wait_rounds(2, vcpu);
}

}  // namespace kvmid::test
