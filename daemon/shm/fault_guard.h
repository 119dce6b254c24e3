// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <cstddef>
#include <span>

#include "daemon/shm/error.h"
#include "protocol/result.h"

namespace kvmid::shm {

/// Copies out of a mapping whose file another process can cut short.
///
/// Purpose:  reading past the new end raises SIGBUS, which ends a process; here it ends one copy.
/// Shapes:   one handler for the process, installed by install_fault_guard() once. Each thread tells it, in a
///           thread-local, which mapping it is copying from at this moment; a fault inside that mapping jumps back into
///           guarded_copy(). Any other SIGBUS goes to the handler that was there before, or ends the process as ever.
/// Errors:   install: the errno text of sigaction(). guarded_copy() answers false when it met a fault.
/// Threads:  any number. The handler takes no lock, allocates nothing, and looks at nothing but the thread's own record.
/// Lifetime: the handler stays. A program that installs another SIGBUS handler later must chain to this one.
Result<void, Error> install_fault_guard();

/// False: a fault; what is in `to` is unknown. REQUIRES: install_fault_guard() has succeeded; `from` lies in `mapping`,
/// with to.size() bytes.
[[nodiscard]] bool guarded_copy(std::span<std::byte> to, const std::byte* from, std::span<const std::byte> mapping);

}  // namespace kvmid::shm
