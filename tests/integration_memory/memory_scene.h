// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// A guest whose RAM is shared, and agents that may be granted it.
///
/// Purpose:  kvmi-emu's RAM is of mode 0600, so whoever runs kvmi-emu could open it again for writing, and is refused.
///           Agents of these tests therefore connect as another user. That takes root; without it they skip:
///           can_grant().
/// Errors:   TestError.
/// Threads:  one.

#include <sys/types.h>

#include <optional>
#include <vector>

#include "client/mapped_memory.h"
#include "tests/integration_many/many_scene.h"

namespace kvmid::test {

using client::MappedErrc;
using client::MappedMemory;

inline constexpr Gpa kPlace{0x600000};  ///< RAM that the guest never touches
inline constexpr uid_t kNobody = 65534;

/// False, and says so, where the test is not run by root.
[[nodiscard]] bool can_grant();

/// This thread is somebody else, for as long as it lives: the kernel notes who connects.
class AsUser {
 public:
  explicit AsUser(uid_t uid);
  AsUser(const AsUser&) = delete;
  AsUser& operator=(const AsUser&) = delete;
  ~AsUser();
};

/// Lets kNobody connect to the agents' socket in that folder.
void open_to_all(const RuntimeFolder& folder);

/// Attached, as kvmid sees it, by kNobody.
[[nodiscard]] AgentClient attach_as_nobody(const std::string& agent_socket, const Uuid& guest, const std::string& name);

/// GRANT_MEMORY, mapped.
[[nodiscard]] MappedMemory map_granted(AgentClient& agent);

struct MemoryScene : ManyScene {
  explicit MemoryScene(ManyOptions wanted = {}) : ManyScene(std::move(wanted)) { open_to_all(folder); }
  [[nodiscard]] AgentClient reader(const std::string& name = "reader") const {
    return attach_as_nobody(daemon.agent_socket(), guest.uuid(), name);
  }
};

/// Of read_stable(), which is to succeed.
struct Stable {
  std::vector<std::byte> bytes;
  std::uint64_t cookie = 0;
};
[[nodiscard]] Stable read_stable(const MappedMemory& memory, Gpa gpa, std::size_t size);
/// Why read_stable() of one byte fails; nothing where it does not.
[[nodiscard]] std::optional<MappedErrc> why_not(const MappedMemory& memory, Gpa gpa);

[[nodiscard]] std::vector<std::byte> filled(std::size_t size, unsigned value);

}  // namespace kvmid::test
