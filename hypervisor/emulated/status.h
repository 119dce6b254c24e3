// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <string>

#include "hypervisor/emulated/machine.h"
#include "hypervisor/server/link.h"

namespace kvmid::emulated {

/// The state of machine and link as one line of JSON, newline included.
std::string status_line(const Machine& machine, const hypervisor::Link& link);

}  // namespace kvmid::emulated
