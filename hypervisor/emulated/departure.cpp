// SPDX-License-Identifier: GPL-2.0-or-later
#include "hypervisor/emulated/departure.h"

#include <string>

#include "hypervisor/server/log.h"

namespace kvmid::emulated {

void Departure::leave(OffReason reason, Clock::time_point now) {
  reason_ = reason;
  state_ = State::Leaving;
  link_.unhook(reason, now);
}

void Departure::leave_for(OffReason reason, std::chrono::milliseconds time, Clock::time_point now) {
  if (state_ != State::Staying) return;
  hold_ = time;
  leave(reason, now);
}

void Departure::step(Clock::time_point now) {
  if (state_ == State::Staying && machine_.shutdown_wanted()) leave(OffReason::Shutdown, now);
  if (state_ == State::Leaving && link_.state() == hypervisor::Link::State::Idle) {
    if (reason_ == OffReason::Shutdown) {
      state_ = State::Gone;
      machine_.finish_shutdown();
      return;
    }
    state_ = State::Held;
    held_until_ = now + hold_;
    hypervisor::log("guest is held", {{"guest", machine_.facts().name},
                                      {"reason", std::string(name_of(reason_))},
                                      {"ms", std::to_string(hold_.count())}});
  }
  if (state_ == State::Held && now >= held_until_) {
    state_ = State::Staying;
    link_.resume(now);
    hypervisor::log("guest goes on", {{"guest", machine_.facts().name}});
  }
}

}  // namespace kvmid::emulated
