// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <variant>

#include "hypervisor/emulated/machine.h"
#include "hypervisor/server/address.h"
#include "hypervisor/server/link.h"

namespace kvmid::emulated {

/// How kvmi-emu ends. Documented in --help and GUEST.md.
enum ExitCode : int {
  kExitOk = 0,
  kExitCannotStart = 1,
  kExitUsage = 2,
  kExitCrashAction = 3,
  kExitGuestFault = 4,
  kExitEngine = 5,
};

struct Options {
  std::optional<hypervisor::Address> address;
  hypervisor::LinkOptions link;
  MachineConfig machine;
  std::optional<std::string> image_path;
  std::optional<std::chrono::milliseconds> exit_after;
  bool stay = false;
  OffReason leave_reason = OffReason::Suspend;         ///< what SIGUSR2 tells kvmid
  std::chrono::milliseconds leave_time{1000};          ///< how long the guest is held then
  bool quiet = false;
};

/// The options, or the code to exit with: --help was printed, or what was wrong.
std::variant<Options, int> parse_options(int argc, char** argv);

}  // namespace kvmid::emulated
