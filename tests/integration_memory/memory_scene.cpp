// SPDX-License-Identifier: GPL-2.0-or-later
#include "tests/integration_memory/memory_scene.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <filesystem>

namespace kvmid::test {

AsUser::AsUser(uid_t uid) {
  if (::syscall(SYS_setresuid, -1, uid, -1) != 0) throw TestError("cannot become another user");
}
AsUser::~AsUser() { (void)::syscall(SYS_setresuid, -1, 0, -1); }

bool can_grant() {
  if (::geteuid() == 0) return true;
  WARN("skipped: only root can start agents of another user, and kvmi-emu's own user is not granted its RAM");
  return false;
}

void open_to_all(const RuntimeFolder& folder) {
  std::filesystem::permissions(folder.path(), std::filesystem::perms{0755});
  std::filesystem::permissions(folder.file("agent.sock"), std::filesystem::perms{0666});
}

AgentClient attach_as_nobody(const std::string& agent_socket, const Uuid& guest, const std::string& name) {
  const AsUser nobody(kNobody);
  return attach(agent_socket, guest, name);
}

MappedMemory map_granted(AgentClient& agent) {
  const auto granted = check(agent.grant_memory());
  return check(MappedMemory::map(granted, {}));
}

Stable read_stable(const MappedMemory& memory, Gpa gpa, std::size_t size) {
  Stable read{std::vector<std::byte>(size), 0};
  const auto cookie = memory.read_stable(gpa, read.bytes);
  if (!cookie) throw TestError("read_stable: " + std::string(client::text_of(cookie.error())));
  read.cookie = *cookie;
  return read;
}

std::optional<MappedErrc> why_not(const MappedMemory& memory, Gpa gpa) {
  std::byte byte{};
  const auto read = memory.read_stable(gpa, std::span(&byte, 1));
  if (read) return std::nullopt;
  return read.error();
}

std::vector<std::byte> filled(std::size_t size, unsigned value) {
  return std::vector<std::byte>(size, static_cast<std::byte>(value));
}

}  // namespace kvmid::test
