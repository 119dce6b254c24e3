// SPDX-License-Identifier: GPL-2.0-or-later
//
// The memory map of an emulated guest while it changes, and the memfd that shows it.

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "hypervisor/server/session.h"
#include "tests/unit/hypervisor/scripted_guest.h"

namespace kvmid::emulated {

namespace {

constexpr std::uint64_t kBehind = 16ull << 20;

/// A guest that keeps what is said of its map, and what the map was at that moment.
class MappedGuest : public ScriptedGuest {
 public:
  using ScriptedGuest::ScriptedGuest;
  void map_changing(const MemoryMapChanged& change) override {
    changes.push_back(change);
    slots_before = machine().memory_map(AddressSpace::Normal)->size();
  }
  /// Has the guest ask for it; RAX.
  std::uint64_t ask(std::uint64_t change, VcpuId vcpu = VcpuId{0}) {
    write_field(offsetof(Mailbox, arg_map_change), change, vcpu);
    REQUIRE(run_action(GuestMode::Map, 1, vcpu));
    const auto done = mailbox(vcpu).done[KVMID_MODE_MAP];
    set_mode(GuestMode::Idle, vcpu);
    for (int i = 0; i < 3; ++i) round();
    REQUIRE(mailbox(vcpu).done[KVMID_MODE_MAP] == done);
    return mailbox(vcpu).map_result;
  }
  std::uint64_t ask(MapChange change) { return ask(static_cast<std::uint64_t>(change)); }
  std::vector<kvmi_memory_slot> slots() { return *machine().memory_map(AddressSpace::Normal); }
  std::string text(Gpa gpa) {
    std::string out(8, ' ');
    const auto done = machine().read_physical(AddressSpace::Normal, gpa, std::as_writable_bytes(std::span(out)));
    return done ? out : "hole";
  }
  std::string in_memfd(Gpa gpa) {
    std::string out(8, ' ');
    REQUIRE(::pread(machine().facts().ram_fd, out.data(), out.size(), static_cast<off_t>(gpa.value)) == 8);
    return out;
  }

  std::vector<MemoryMapChanged> changes;
  std::size_t slots_before = 0;
};

constexpr std::uint64_t kRefused = static_cast<std::uint64_t>(std::int64_t{-22});
const std::string kZeros(8, '\0');

}  // namespace

TEST_CASE("the memfd shows what READ_PHYSICAL shows, in every slot", "[emulated][map]") {
  MappedGuest guest;
  const auto& facts = guest.machine().facts();
  CHECK(facts.max_gpa == kBehind);
  CHECK(facts.ram_bytes == kBehind + kPageSize);
  struct stat info {};
  REQUIRE(::fstat(facts.ram_fd, &info) == 0);
  CHECK((info.st_mode & 0777) == 0600);
  CHECK(static_cast<std::uint64_t>(info.st_size) == facts.ram_bytes);
  const int seals = ::fcntl(facts.ram_fd, F_GET_SEALS);
  CHECK((seals & (F_SEAL_SHRINK | F_SEAL_GROW)) == (F_SEAL_SHRINK | F_SEAL_GROW));
  CHECK(::ftruncate(facts.ram_fd, 4096) != 0);

  for (const auto& slot : guest.slots()) {
    std::vector<std::byte> read(slot.bytes), mapped(slot.bytes);
    REQUIRE(guest.machine().read_physical(AddressSpace::Normal, Gpa{slot.gpa}, read));
    REQUIRE(::pread(facts.ram_fd, mapped.data(), mapped.size(), static_cast<off_t>(slot.gpa)) ==
            static_cast<ssize_t>(mapped.size()));
    CHECK(read == mapped);
  }
  CHECK(guest.in_memfd(kRomPage) == "KVMIROM1");
}

TEST_CASE("a guest whose RAM is not shared gives no descriptor", "[emulated][map]") {
  MachineConfig config;
  config.image = embedded_image();
  config.share_ram = false;
  const auto machine = Machine::create(config);
  REQUIRE(machine);
  CHECK((*machine)->facts().ram_fd == -1);
  CHECK((*machine)->facts().ram_bytes == 0);
}

TEST_CASE("the ROM becomes writable for the guest, and read-only again", "[emulated][map]") {
  MappedGuest guest;
  REQUIRE(guest.run_action(GuestMode::Rom));
  const std::uint64_t original = guest.mailbox().rom;

  CHECK(guest.ask(MapChange::Flags) == 0);

  REQUIRE(guest.changes.size() == 1);
  CHECK(guest.changes[0].change == MapChange::Flags);
  CHECK(guest.changes[0].old_gpa == Gpa{});
  CHECK(guest.changes[0].max_gpa == kBehind);
  CHECK(guest.changes[0].slot.gpa == kRomPage.value);
  CHECK(guest.changes[0].slot.bytes == kPageSize);
  CHECK(guest.changes[0].slot.flags == 0);
  CHECK(guest.slots()[1].flags == 0);
  CHECK(guest.machine().page_access(gfn_of(kRomPage)) == x86::kRightsAll);
  REQUIRE(guest.run_action(GuestMode::Rom));
  const std::uint64_t stored = guest.mailbox().rom;
  CHECK(stored != original);
  CHECK(guest.read<std::uint64_t>(Gpa{kRomPage.value + 8}) == stored);

  guest.set_mode(GuestMode::Idle);
  CHECK(guest.ask(MapChange::Flags) == 0);
  CHECK(guest.changes.back().slot.flags == KVMI_SLOT_READ_ONLY);
  REQUIRE(guest.run_action(GuestMode::Rom, 2));
  CHECK(guest.mailbox().rom == guest.read<std::uint64_t>(Gpa{kRomPage.value + 8}));
  CHECK(guest.mailbox().rounds > guest.mailbox().rom);  // the later stores went nowhere
}

TEST_CASE("the ROM is removed and comes again as it was at the start", "[emulated][map]") {
  MappedGuest guest;
  REQUIRE(guest.machine().write_physical(AddressSpace::Normal, kRomPage, std::as_bytes(std::span("changed!", 8))));

  CHECK(guest.ask(MapChange::Removed) == 0);

  REQUIRE(guest.changes.size() == 1);
  CHECK(guest.changes[0].change == MapChange::Removed);
  CHECK(guest.slots_before == 3);  // said before it was so
  CHECK(guest.slots().size() == 2);
  CHECK(guest.text(kRomPage) == "hole");
  CHECK(guest.in_memfd(kRomPage) == kZeros);
  CHECK_FALSE(guest.machine().is_memory(AddressSpace::Normal, gfn_of(kRomPage), 1));
  CHECK_FALSE(guest.machine().is_memory(AddressSpace::Normal, Gfn{0}, kBehind / kPageSize));
  for (const auto change : {MapChange::Removed, MapChange::Moved, MapChange::Flags})
    CHECK(guest.ask(change) == kRefused);
  CHECK(guest.changes.size() == 1);

  CHECK(guest.ask(MapChange::Added) == 0);
  CHECK(guest.changes.back().change == MapChange::Added);
  CHECK(guest.slots_before == 2);
  CHECK(guest.slots().size() == 3);
  CHECK(guest.text(kRomPage) == "KVMIROM1");
  CHECK(guest.machine().is_memory(AddressSpace::Normal, Gfn{0}, kBehind / kPageSize));
  CHECK(guest.ask(MapChange::Added) == kRefused);
  REQUIRE(guest.run_action(GuestMode::Rom));
}

TEST_CASE("the ROM moves behind RAM with its bytes, and back", "[emulated][map]") {
  MappedGuest guest;
  REQUIRE(guest.machine().write_physical(AddressSpace::Normal, kRomPage, std::as_bytes(std::span("changed!", 8))));

  CHECK(guest.ask(MapChange::Moved) == 0);

  REQUIRE(guest.changes.size() == 1);
  CHECK(guest.changes[0].change == MapChange::Moved);
  CHECK(guest.changes[0].old_gpa == kRomPage);
  CHECK(guest.changes[0].slot.gpa == kBehind);
  CHECK(guest.changes[0].slot.flags == KVMI_SLOT_READ_ONLY);
  CHECK(guest.changes[0].max_gpa == kBehind + kPageSize);
  CHECK(guest.machine().facts().max_gpa == kBehind + kPageSize);
  CHECK(guest.text(kRomPage) == "hole");
  CHECK(guest.in_memfd(kRomPage) == kZeros);
  CHECK(guest.text(Gpa{kBehind}) == "changed!");
  CHECK(guest.in_memfd(Gpa{kBehind}) == "changed!");

  CHECK(guest.ask(MapChange::Moved) == 0);
  CHECK(guest.changes.back().old_gpa == Gpa{kBehind});
  CHECK(guest.changes.back().max_gpa == kBehind);
  CHECK(guest.text(kRomPage) == "changed!");
  CHECK(guest.text(Gpa{kBehind}) == "hole");
  CHECK(guest.in_memfd(Gpa{kBehind}) == kZeros);
}

TEST_CASE("no vCPU keeps a mapping of a slot that went", "[emulated][map]") {
  MappedGuest guest(2);
  REQUIRE(guest.run_action(GuestMode::Rom, 2, VcpuId{1}));  // it has the page in its engine
  guest.set_mode(GuestMode::Idle, VcpuId{1});
  for (int i = 0; i < 3; ++i) guest.round();
  CHECK(guest.ask(MapChange::Removed) == 0);

  guest.set_mode(GuestMode::Rom, VcpuId{1});

  REQUIRE(guest.run_until([&] { return guest.machine().stopped(); }));
  CHECK(guest.machine().stop_cause() == StopCause::GuestFault);
  CHECK(guest.machine().stop_reason().find("0xf0008") != std::string::npos);
}

TEST_CASE("who watches hypercalls can keep a guest from changing its map", "[emulated][map]") {
  MappedGuest guest;
  guest.watch(EventKind::Hypercall);
  guest.write_field(offsetof(Mailbox, arg_map_change), KVMI_MAP_REMOVED);
  guest.set_mode(GuestMode::Map);

  const Event event = guest.next_event();
  CHECK(event.regs.rax == kMapHypercallNumber);
  CHECK(event.regs.rdi == KVMI_MAP_REMOVED);
  CHECK(guest.changes.empty());
  guest.answer(Action::Skip);
  CHECK(guest.changes.empty());
  (void)guest.next_event();
  guest.answer(Action::Allow);
  CHECK(guest.changes.size() == 1);
  (void)guest.next_event();
  guest.answer(Action::Allow);  // there is none any more
  CHECK(guest.changes.size() == 1);
  REQUIRE(guest.run_until([&] { return guest.mailbox().map_result == kRefused; }));
}

TEST_CASE("a change that there is not is refused", "[emulated][map]") {
  MappedGuest guest;
  CHECK(guest.ask(4) == kRefused);
  CHECK(guest.ask(~std::uint64_t{0}) == kRefused);
  CHECK(guest.changes.empty());
}

TEST_CASE("rights that were taken away stay with the number of the page", "[emulated][map]") {
  MappedGuest guest;
  guest.restrict_page(kRomPage, KVMI_PAGE_ACCESS_R);
  CHECK(guest.ask(MapChange::Removed) == 0);
  CHECK(guest.ask(MapChange::Added) == 0);
  CHECK(guest.machine().page_access(gfn_of(kRomPage)) == KVMI_PAGE_ACCESS_R);
}

namespace {

/// What a session with a machine has to send, as messages.
std::vector<Upward> taken(hypervisor::Session& session, std::vector<ByteBuffer>& storage) {
  std::vector<Upward> all;
  DialectKvmi2 dialect;
  const ByteBuffer bytes(session.outbox().begin(), session.outbox().end());
  session.sent(bytes.size());
  for (std::size_t at = 0; at < bytes.size();) {
    kvmi_msg_hdr header{};
    std::memcpy(&header, bytes.data() + at, sizeof header);
    at += sizeof header;
    storage.emplace_back(bytes.begin() + static_cast<std::ptrdiff_t>(at),
                         bytes.begin() + static_cast<std::ptrdiff_t>(at + header.size));
    at += header.size;
    const auto decoded = dialect.decode_upward(Frame{header.id, Seq{header.seq}, storage.back()});
    REQUIRE(decoded);
    all.push_back(*decoded);
  }
  return all;
}

void command(hypervisor::Session& session, const Command& command) {
  DialectKvmi2 dialect;
  ByteBuffer bytes;
  dialect.encode(command, Seq{1}, bytes);
  std::copy(bytes.begin(), bytes.end(), session.writable().begin());
  REQUIRE_FALSE(session.received(bytes.size()));
}

}  // namespace

TEST_CASE("a session says that the map changes, before anything that happens behind it", "[emulated][map]") {
  ScriptedGuest guest;
  hypervisor::Session session(guest.machine());
  guest.machine().set_sink(&session);
  guest.watch(EventKind::Breakpoint);

  REQUIRE(guest.machine().change_rom(MapChange::Moved));
  guest.set_mode(GuestMode::Int3);
  for (int i = 0; i < 5; ++i) guest.round();

  std::vector<ByteBuffer> storage;
  const auto sent = taken(session, storage);
  REQUIRE(sent.size() == 2);
  const auto* change = std::get_if<MemoryMapChanged>(&sent[0]);
  REQUIRE(change != nullptr);
  CHECK(change->change == MapChange::Moved);
  CHECK(change->slot.gpa == kBehind);
  CHECK(change->max_gpa == kBehind + kPageSize);
  CHECK(std::holds_alternative<Event>(sent[1]));
  guest.machine().set_sink(nullptr);
}

TEST_CASE("patches on a page that moves or goes are off before", "[emulated][map]") {
  ScriptedGuest guest;
  const auto byte_at = [&](Gpa gpa) { return guest.read<std::uint8_t>(gpa); };
  const Gpa patched{kRomPage.value + 0x20};
  const std::uint8_t int3 = 0xcc;
  const auto write = [&](std::uint16_t flags) {
    WritePhysical request;
    request.gpa = patched;
    request.flags = flags;
    request.data = std::as_bytes(std::span(&int3, 1));
    return request;
  };
  {
    hypervisor::Session session(guest.machine());
    guest.machine().set_sink(&session);
    command(session, write(KVMI_WRITE_PATCH));
    CHECK(byte_at(patched) == 0xcc);
    SECTION("flags leave them") {
      REQUIRE(guest.machine().change_rom(MapChange::Flags));
      CHECK(byte_at(patched) == 0xcc);
    }
    SECTION("what moves is the guest's own") {
      REQUIRE(guest.machine().change_rom(MapChange::Moved));
      CHECK(byte_at(Gpa{kBehind + 0x20}) == 0x20);
      CHECK(byte_at(patched) == 0);
    }
    SECTION("a page that comes again has none") {
      REQUIRE(guest.machine().change_rom(MapChange::Removed));
      REQUIRE(guest.machine().change_rom(MapChange::Added));
      CHECK(byte_at(patched) == 0x20);
      std::vector<ByteBuffer> storage;
      (void)taken(session, storage);
      command(session, write(KVMI_WRITE_UNPATCH));
      const auto sent = taken(session, storage);
      REQUIRE(sent.size() == 1);
      CHECK(std::get<CommandReply>(sent[0]).error == ErrorCode::NoEntry);
    }
    guest.machine().set_sink(nullptr);
  }
  CHECK(byte_at(patched) != 0xcc);
}

}  // namespace kvmid::emulated
