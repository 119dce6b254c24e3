// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <string>
#include <system_error>

namespace kvmid::shm {

/// Why memory could not be shared, mapped or read.
struct Error {
  std::string text;  ///< a sentence for people, never empty
  int os_error = 0;  ///< errno where a system call failed
};

/// `what` failed with `os_error`: the sentence names both.
[[nodiscard]] inline Error system_error(const std::string& what, int os_error) {
  return {what + ": " + std::generic_category().message(os_error), os_error};
}

}  // namespace kvmid::shm
