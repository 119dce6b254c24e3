// SPDX-License-Identifier: GPL-2.0-or-later
// Hypervisors that share what is no guest RAM, or take it back; and descriptors that nobody asked for.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <cstring>

#include "client/mapped_memory.h"
#include "tests/integration_wire/bystander.h"
#include "tests/integration_wire/wire_daemon.h"

using namespace kvmid;
using namespace kvmid::test;

namespace {

using client::MappedMemory;
using client::UniqueFd;

constexpr std::uint64_t kRam = 1U << 20U;
constexpr CommandSet kAll{(std::uint64_t{1} << 35U) - 1};
constexpr std::byte kInRam{0x11}, kByMessage{0x5a};  // which way a read went; the latter is ScriptedHypervisor's

/// Full of kInRam.
UniqueFd make_ram(std::uint64_t bytes = kRam, int seals = F_SEAL_SHRINK | F_SEAL_GROW) {
  UniqueFd fd(::memfd_create("scripted RAM", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  REQUIRE(fd);
  REQUIRE(::ftruncate(fd.get(), static_cast<off_t>(bytes)) == 0);
  REQUIRE(::fchmod(fd.get(), 0600) == 0);
  const std::vector<std::byte> data(bytes, kInRam);
  REQUIRE(::pwrite(fd.get(), data.data(), data.size(), 0) == static_cast<ssize_t>(data.size()));
  if (seals != 0) REQUIRE(::fcntl(fd.get(), F_ADD_SEALS, seals) == 0);
  return fd;
}

UniqueFd opened_again(const UniqueFd& fd, int flags) {
  return UniqueFd(::open(("/proc/self/fd/" + std::to_string(fd.get())).c_str(), flags | O_CLOEXEC));
}

ScriptedGuest guest_with(std::uint64_t ram_bytes, std::vector<int> descriptors, std::uint8_t number = 1) {
  ScriptedGuest guest{.uuid = uuid_of(number), .name = "hostile"};
  guest.commands = kAll;
  guest.ram_bytes = ram_bytes;
  guest.descriptors = std::move(descriptors);
  return guest;
}

/// How a read of 4 bytes is answered.
std::byte read_byte(client::AgentClient& agent, std::uint64_t gpa = 0x1000) {
  const auto memory = check(agent.read_physical(Gpa{gpa}, 4));
  for (const std::byte byte : memory.data) CHECK(byte == memory.data[0]);
  return memory.data[0];
}

void wait_mapped(client::AgentClient& agent) {
  // Until kvmid knows the memory map, reads go to the hypervisor.
  REQUIRE(wait_until([&] { return read_byte(agent) == kInRam; }));
}

/// Something to send that is no RAM of kRam bytes.
struct Odd {
  std::string what;
  std::string reason;  ///< in the log
  std::function<std::vector<UniqueFd>()> make;
  std::uint64_t announced = kRam;
};

template <class... Fds>
std::vector<UniqueFd> list(Fds... fds) {
  std::vector<UniqueFd> all;
  (all.push_back(std::move(fds)), ...);
  return all;
}

const std::vector<Odd> kOdd{
    {"no descriptor", "no descriptor came", [] { return list(); }},
    {"a smaller file", "its file has", [] { return list(make_ram(kRam / 2)); }},
    {"a larger file", "its file has", [] { return list(make_ram(kRam * 2)); }},
    {"an empty file", "its file has",
     [] { return list(UniqueFd(::memfd_create("empty", MFD_CLOEXEC | MFD_ALLOW_SEALING))); }},
    {"not whole pages", "not whole pages", [] { return list(make_ram(kRam - 1)); }, kRam - 1},
    {"more than there can be", "not whole pages", [] { return list(make_ram()); }, std::uint64_t{1} << 46U},
    {"as much as a number can say", "not whole pages", [] { return list(make_ram()); }, ~std::uint64_t{0} - 4095},
    {"a pipe", "not a regular file",
     [] {
       int ends[2];
       REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
       return list(UniqueFd(ends[0]), UniqueFd(ends[1]));
     }},
    {"a directory", "not a regular file",
     [] { return list(UniqueFd(::open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC))); }},
    {"a device", "not a regular file", [] { return list(UniqueFd(::open("/dev/zero", O_RDWR | O_CLOEXEC))); }},
    {"a socket", "not a regular file", [] { return list(UniqueFd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0))); }},
    {"a file that knows no seals", "seals",
     [] { return list(UniqueFd(::open("/proc/self/exe", O_RDONLY | O_CLOEXEC))); }},
    {"a descriptor that only names a file", "guest RAM is", [] { return list(opened_again(make_ram(), O_PATH)); }},
    {"a descriptor for writing only", "mmap", [] { return list(opened_again(make_ram(), O_WRONLY)); }},
    {"the right one behind a wrong one", "not a regular file",
     [] { return list(UniqueFd(::open("/dev/null", O_RDONLY | O_CLOEXEC)), make_ram()); }},
};

}  // namespace

TEST_CASE("a guest whose hypervisor shares no usable RAM is served by messages", "[memory][hostile]") {
  WireDaemon daemon;
  Bystander bystander(daemon.hypervisors(), daemon.agents());
  const auto before = daemon.open_descriptors();
  for (const Odd& odd : kOdd) {
    INFO(odd.what);
    const std::vector<UniqueFd> owned = odd.make();
    std::vector<int> fds;
    for (const auto& fd : owned) fds.push_back(fd.get());
    const std::size_t lines = daemon.process().errors().size();
    {
      ScriptedHypervisor hypervisor(daemon.hypervisors(), guest_with(odd.announced, fds));
      REQUIRE(hypervisor.accepted());
      const auto line = daemon.process().wait_errors("guest RAM is not mapped", lines);
      CHECK(line.find(odd.reason) != std::string::npos);
      INFO(line);
      auto agent = attach_agent(daemon.agents(), uuid_of(1), "reader");
      CHECK_FALSE(agent.welcome().commands.has(CommandId::GrantMemory));
      CHECK(read_byte(agent) == kByMessage);
      const auto grant = agent.grant_memory();
      REQUIRE_FALSE(grant);
      CHECK(grant.error().code == ErrorCode::NotSupported);
    }
    bystander.check(2);
  }
  CHECK(wait_until([&] { return daemon.open_descriptors() == before; }));
  bystander.check();
}

TEST_CASE("descriptors that nobody asked for are closed", "[memory][hostile]") {
  WireDaemon daemon;
  Bystander bystander(daemon.hypervisors(), daemon.agents());
  const UniqueFd ram = make_ram();
  ScriptedHypervisor hypervisor(daemon.hypervisors(), guest_with(kRam, {ram.get()}));
  REQUIRE(hypervisor.accepted());
  auto agent = attach_agent(daemon.agents(), uuid_of(1), "reader");
  wait_mapped(agent);
  const auto before = daemon.open_descriptors();
  const std::vector<int> many(200, ram.get());
  SECTION("of a hypervisor that shares no RAM") {
    ScriptedHypervisor other(daemon.hypervisors(), guest_with(0, many, 2));
    REQUIRE(other.accepted());
    auto peer = attach_agent(daemon.agents(), uuid_of(2), "peer");
    CHECK(daemon.open_descriptors() == before + 2);  // the two connections
  }
  SECTION("behind the one that is RAM") {
    ScriptedHypervisor other(daemon.hypervisors(), guest_with(kRam, many, 2));
    REQUIRE(other.accepted());
    auto peer = attach_agent(daemon.agents(), uuid_of(2), "peer");
    wait_mapped(peer);
    CHECK(daemon.open_descriptors() == before + 5);  // two connections, RAM, the generation page and its lock
  }
  SECTION("of an agent, with its hello and later") {
    WireSocket socket(daemon.agents());
    socket.send_with_descriptors(bytes_of(good_hello(uuid_of(1), "giver")), std::span(many));
    REQUIRE(socket.read_exact(sizeof(kvmi_welcome)));
    CHECK(daemon.open_descriptors() == before + 1);
    for (std::uint32_t i = 1; i <= 5; ++i) {
      socket.send_with_descriptors(encoded(GetVersion{}, Seq{i}), std::span(many));
      REQUIRE(socket.next_frame());
    }
    CHECK(daemon.open_descriptors() == before + 1);
  }
  SECTION("of peers that never say hello") {
    std::vector<WireSocket> silent;
    for (const auto& path : {daemon.agents(), daemon.hypervisors()}) {
      silent.emplace_back(path);
      for (int i = 0; i < 3; ++i) silent.back().send_with_descriptors(ByteBuffer(1, std::byte{0x78}), std::span(many));
    }
    silent.clear();
  }
  CHECK(wait_until([&] { return daemon.open_descriptors() <= before; }));
  bystander.check();
  CHECK(read_byte(agent) == kInRam);
}

TEST_CASE("RAM that is cut short costs its guest the link, and nobody else anything", "[memory][hostile]") {
  WireDaemon daemon;
  Bystander bystander(daemon.hypervisors(), daemon.agents());
  const auto before = daemon.open_descriptors();
  for (const bool sooner : {false, true}) {
    INFO("cut while reads are under way: " << sooner);
    const UniqueFd ram = make_ram(kRam, 0);
    {
      ScriptedHypervisor hypervisor(daemon.hypervisors(), guest_with(kRam, {ram.get()}));
      REQUIRE(hypervisor.accepted());
      auto agent = attach_agent(daemon.agents(), uuid_of(1), "reader");
      wait_mapped(agent);
      REQUIRE(::ftruncate(ram.get(), 4096) == 0);
      if (sooner) {  // many are answered in one turn: the first finds it out
        std::vector<client::Ticket> tickets;
        auto batch = agent.batch();
        const kvmi_read_range range{0x2000, 4096, 0};
        for (int i = 0; i < 50; ++i)
          tickets.push_back(check(batch.add(ReadPhysical{AddressSpace::Normal, std::span(&range, 1)})));
        check(batch.send());
        for (const auto ticket : tickets) CHECK(check(agent.collect(ticket)).error() == ErrorCode::NoDevice);
      } else {
        CHECK(read_byte(agent, 0) == kInRam);  // what is left of it
        const auto read = agent.read_physical(Gpa{0x1ffe}, 4);
        REQUIRE_FALSE(read);
        CHECK(read.error().code == ErrorCode::NoDevice);
      }
      const auto gone = check(agent.wait_guest(kBound));
      REQUIRE(gone);
      REQUIRE(std::holds_alternative<client::GuestGone>(*gone));
      CHECK(std::get<client::GuestGone>(*gone).reason == OffReason::ProtocolError);
      CHECK(hypervisor.wait_closed());
      const auto after = agent.read_physical(Gpa{0}, 4);
      REQUIRE_FALSE(after);
      CHECK(after.error().code == ErrorCode::NoDevice);
      // Its hypervisor comes back with RAM that is as it should be, to the same agent.
      const UniqueFd better = make_ram();
      ScriptedHypervisor again(daemon.hypervisors(), guest_with(kRam, {better.get()}));
      REQUIRE(again.accepted());
      REQUIRE(wait_until([&] {
        const auto read = agent.read_physical(Gpa{0x1000}, 1);
        return read && read->data[0] == kInRam;
      }));
    }
    daemon.wait_log({"hypervisor gone", "the guest RAM that it shared is gone"});
    bystander.check();
  }
  CHECK(wait_until([&] { return daemon.open_descriptors() == before; }));
}

TEST_CASE("RAM that can be cut short is not mapped by an agent that does not say it may", "[memory][hostile]") {
  WireDaemon daemon;
  // Sealed against writes, so that any user may be granted it, but not against being cut short.
  const UniqueFd ram = make_ram(kRam, F_SEAL_FUTURE_WRITE);
  ScriptedHypervisor hypervisor(daemon.hypervisors(), guest_with(kRam, {ram.get()}));
  auto agent = attach_agent(daemon.agents(), uuid_of(1), "reader");
  wait_mapped(agent);
  const auto granted = check(agent.grant_memory());
  const auto refused = MappedMemory::map(granted, {});
  REQUIRE_FALSE(refused);
  CHECK(refused.error().text.find("F_SEAL_SHRINK") != std::string::npos);
  CHECK(MappedMemory::map(granted, {.allow_unsealed_ram = true}));
}

TEST_CASE("a descriptor that can only read is handed on, whoever owns the file", "[memory]") {
  WireDaemon daemon;
  const UniqueFd ram = make_ram(kRam, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE);
  const UniqueFd read_only = opened_again(ram, O_RDONLY);
  REQUIRE(::fchmod(ram.get(), 0) == 0);
  ScriptedHypervisor hypervisor(daemon.hypervisors(), guest_with(kRam, {read_only.get()}));
  auto agent = attach_agent(daemon.agents(), uuid_of(1), "reader");
  wait_mapped(agent);
  const auto granted = check(agent.grant_memory());
  const auto memory = check(MappedMemory::map(granted, {}));
  std::array<std::byte, 4> bytes{};
  CHECK(memory.read_stable(Gpa{0x1000}, bytes));
  CHECK(bytes[0] == kInRam);
  CHECK((::fcntl(granted.fds[0].get(), F_GETFL) & O_ACCMODE) == O_RDONLY);
  hypervisor.send(ByteBuffer(64, std::byte{0xff}));  // it breaks the protocol
  CHECK(wait_until([&] { return memory.revoked(); }));
}
