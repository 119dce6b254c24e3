// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// Stands between a hypervisor and kvmid and asks the hypervisor a question of its own now and then.
///
/// Purpose:  what the hypervisor was told, by its own account; kvmid answers agents out of its tables.
/// Shapes:   every byte and descriptor goes through as it is. An answer to an own question is kept back.
/// Errors:   TestError.
/// Threads:  one of its own; the public functions are for one other thread.
/// Lifetime: the destructor closes both sides.

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "client/socket.h"
#include "protocol/message.h"

namespace kvmid::test {

class HypervisorTap {
 public:
  /// Listens at `from` for a hypervisor, one at a time, and takes it to the kvmid at `to`.
  HypervisorTap(const std::string& from, std::string to);
  ~HypervisorTap();
  HypervisorTap(const HypervisorTap&) = delete;
  HypervisorTap& operator=(const HypervisorTap&) = delete;

  /// Rights of these pages, one for each, as the hypervisor says. REQUIRES: kvmid is asking it nothing now.
  [[nodiscard]] std::vector<std::uint8_t> page_rights(Gpa gpa, std::uint32_t pages);

 private:
  void run();
  bool accept_one();
  bool relay();
  bool pass_down();
  bool pass_up();
  bool take_frames();
  const std::string to_;
  client::UniqueFd listener_;
  client::UniqueFd wake_;  ///< an eventfd: the end
  client::UniqueFd up_;    ///< kvmid
  client::UniqueFd down_;  ///< the hypervisor
  std::vector<std::byte> in_;
  bool shook_hands_ = false;
  std::mutex mutex_;  ///< of what follows, and of writing down
  std::condition_variable answered_;
  std::optional<std::vector<std::byte>> answer_;
  std::thread thread_;
};

}  // namespace kvmid::test
