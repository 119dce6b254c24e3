// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// A guest that is nothing but RAM, as bare as one can be: its hypervisor copies and does nothing else.
///
/// Purpose:  what is measured is the way through kvmid, and what the way costs without shared RAM.
/// Shapes:   a process of its own. Its RAM is sealed against writes by others, so that any user may be granted it.
/// Errors:   std::runtime_error.

#include "bench/processes.h"

namespace kvmid::bench {

struct MemoryGuest {
  Uuid uuid;
  std::uint64_t ram_bytes = 0;
  bool shared = true;
};

/// Serves that guest at kvmid's hypervisor socket, each byte of RAM the low byte of its page's number, until it ends.
Child serve_memory_guest(const std::string& hypervisor_socket, const MemoryGuest& guest);

}  // namespace kvmid::bench
