// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <cstdint>

namespace kvmid::core {

/// Mistakes that can be put into the core on purpose, to show that the simulator finds them: one for each of its
/// invariants. Only a build for tests (KVMID_PLANTED_BUGS) has them; elsewhere planted() is false when compiled.
enum class Planted : std::uint8_t {
  None,
  DeadlineIgnored,    ///< a silent agent holds its vCPU
  MsrNotTakenBack,    ///< the hypervisor goes on tracking what nobody wishes
  RightsNotTold,      ///< rights that an agent takes away are not told
  PatchesLeft,        ///< of an agent that is gone
  HitsToEverybody,    ///< a patch is met: all subscribers hear of it
  RequestNotReleased, ///< a change stays charged to its agent
  OutcomeWrong,       ///< the notice says another action than the hypervisor was told
  OthersNotHeld,      ///< while a vCPU steps over a patch
  CookieOffByOne,     ///< a change at the cookie's own generation is missed
};

#ifdef KVMID_PLANTED_BUGS
inline Planted planted_bug = Planted::None;
[[nodiscard]] inline bool planted(Planted bug) { return planted_bug == bug; }
#else
[[nodiscard]] constexpr bool planted(Planted) { return false; }
#endif

}  // namespace kvmid::core
