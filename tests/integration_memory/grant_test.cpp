// SPDX-License-Identifier: GPL-2.0-or-later
// What is granted to whom, and that it is for reading only.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <cstdio>
#include <cstring>

#include "tests/integration_memory/memory_scene.h"

namespace kvmid::test {
namespace {

// What a process could do with a descriptor.
enum Could : int { Map = 1, Write = 2, Truncate = 4, Seal = 8, Reopen = 16, Chmod = 32, Punch = 64, Failed = 128 };

/// Tried by a process of kNobody that has the descriptor and nothing else. It is a child of a process with threads, so
/// it allocates nothing.
int what_nobody_could(int fd) {
  const pid_t child = ::fork();
  if (child == 0) {
    if (::setresuid(kNobody, kNobody, kNobody) != 0 || ::prctl(PR_SET_DUMPABLE, 1) != 0) ::_exit(Failed);
    int could = 0;
    void* const writable = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (writable != MAP_FAILED) could |= Map;
    void* const readable = ::mmap(nullptr, 4096, PROT_READ, MAP_SHARED, fd, 0);
    if (readable == MAP_FAILED) ::_exit(Failed);
    if (::mprotect(readable, 4096, PROT_READ | PROT_WRITE) == 0) could |= Map;
    if (::pwrite(fd, "x", 1, 0) == 1) could |= Write;
    if (::ftruncate(fd, 0) == 0) could |= Truncate;
    if (::fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE) == 0) could |= Seal;
    if (::fchmod(fd, 0777) == 0) could |= Chmod;
    if (::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096) == 0) could |= Punch;
    char path[64];
    (void)std::snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    if (::open(path, O_RDWR) >= 0) could |= Reopen;
    ::_exit(could);
  }
  int status = 0;
  REQUIRE(child > 0);
  REQUIRE(::waitpid(child, &status, 0) == child);
  REQUIRE(WIFEXITED(status));
  return WEXITSTATUS(status);
}

ErrorCode grant_error(AgentClient& agent) {
  const auto granted = agent.grant_memory();
  REQUIRE_FALSE(granted);
  CHECK_FALSE(granted.error().text.empty());
  return granted.error().code;
}

}  // namespace

TEST_CASE("what is read in place is what READ_PHYSICAL gives", "[integration][memory]") {
  if (!can_grant()) return;
  MemoryScene scene;
  AgentClient agent = scene.reader();
  CHECK(agent.welcome().commands.has(CommandId::GrantMemory));
  const auto granted = check(agent.grant_memory());
  REQUIRE(granted.fds.size() == 3);
  const MappedMemory memory = check(MappedMemory::map(granted, {}));
  CHECK(memory.ram_bytes() >= 16U << 20U);

  std::vector<std::byte> pattern(3 * 4096 + 5);
  for (std::size_t i = 0; i < pattern.size(); ++i) pattern[i] = static_cast<std::byte>(i * 7 + i / 256);
  check(agent.write_physical(kPlace, pattern));
  const Stable mapped = read_stable(memory, kPlace, pattern.size());
  CHECK(mapped.bytes == pattern);
  const auto asked = check(agent.read_physical(kPlace, pattern.size()));
  CHECK(asked.data == mapped.bytes);
  CHECK(asked.cookie == mapped.cookie);
  CHECK(raw_memory(scene.guest, kPlace, pattern.size()) == pattern);

  // All of what does not move: page tables, descriptors, code; and what lies across pages, up to the last byte.
  for (const auto& [gpa, size] : {std::pair<std::uint64_t, std::size_t>{0x1000, 0x3000}, {0x100000, 4096},
                                  {0x600ffe, 4}, {(16U << 20U) - 1, 1}}) {
    INFO(gpa);
    CHECK(read_stable(memory, Gpa{gpa}, size).bytes == seen_memory(agent, Gpa{gpa}, size));
  }
  CHECK(why_not(memory, Gpa{memory.ram_bytes()}) == MappedErrc::Fault);
  // The guest goes on, and its own stores are seen at once, with no change of the cookie.
  const auto cookie = read_stable(memory, emulated::mailbox_gpa(VcpuId{0}), 8).cookie;
  const std::uint64_t before = scene.guest.rounds();
  scene.guest.wait_rounds(3);
  std::uint64_t rounds = 0;
  CHECK(memory.read_stable(emulated::mailbox_field(VcpuId{0}, offsetof(Mailbox, rounds)),
                           std::as_writable_bytes(std::span(&rounds, 1)))
            .value() == cookie);
  CHECK(rounds > before);
}

TEST_CASE("the descriptors of a grant are for reading only", "[integration][memory]") {
  if (!can_grant()) return;
  MemoryScene scene;
  AgentClient agent = scene.reader();
  const auto granted = check(agent.grant_memory());
  REQUIRE(granted.fds.size() == 3);
  for (const auto& fd : granted.fds) {
    INFO("descriptor " << &fd - granted.fds.data());
    CHECK((::fcntl(fd.get(), F_GETFL) & O_ACCMODE) == O_RDONLY);
    CHECK(what_nobody_could(fd.get()) == 0);
  }
  // The same child with a descriptor that nobody protected: it can all but change the mode, which takes the owner.
  const client::UniqueFd loose(::memfd_create("loose", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  REQUIRE(::ftruncate(loose.get(), 8192) == 0);
  CHECK(what_nobody_could(loose.get()) == (Map | Write | Truncate | Reopen | Punch));
}

TEST_CASE("whoever could open guest RAM again for writing is not granted it", "[integration][memory]") {
  const ManyScene scene;
  AgentClient agent = scene.attach("owner");  // the user who runs kvmi-emu; root, too
  CHECK(grant_error(agent) == ErrorCode::NotPermitted);
  CHECK(check(agent.read_physical(kPlace, 8)).data == filled(8, 0));  // that is another matter
}

TEST_CASE("policy that does not name GRANT_MEMORY refuses it", "[integration][memory]") {
  if (!can_grant()) return;
  MemoryScene scene({.rule_overrides = {{"commands", {"READ_PHYSICAL"}}}});
  AgentClient agent = scene.reader();
  CHECK_FALSE(agent.welcome().commands.has(CommandId::GrantMemory));
  CHECK(grant_error(agent) == ErrorCode::NotPermitted);
}

TEST_CASE("each agent has a grant of its own, and a new one ends its old one", "[integration][memory]") {
  if (!can_grant()) return;
  MemoryScene scene;
  AgentClient first = scene.reader("first");
  AgentClient second = scene.reader("second");
  const MappedMemory old = map_granted(first);
  const MappedMemory other = map_granted(second);
  const MappedMemory fresh = map_granted(first);
  CHECK(old.revoked());
  CHECK(why_not(old, kPlace) == MappedErrc::Revoked);
  CHECK_FALSE(other.revoked());
  CHECK(read_stable(fresh, kPlace, 8).bytes == read_stable(other, kPlace, 8).bytes);
}

TEST_CASE("a thousand grants leave no descriptors behind", "[integration][memory]") {
  if (!can_grant()) return;
  MemoryScene scene;
  AgentClient agent = scene.reader();
  const auto open = [&] {
    const std::filesystem::directory_iterator fds("/proc/" + std::to_string(scene.daemon.process().pid()) + "/fd");
    return std::distance(begin(fds), end(fds));
  };
  const auto before = open();
  for (int i = 0; i < 1000; ++i) (void)check(agent.grant_memory());
  CHECK(wait_until([&] { return open() == before + 1; }));  // the agent's page; kvmid closes copies when they have left
}

}  // namespace kvmid::test
