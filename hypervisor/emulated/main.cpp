// SPDX-License-Identifier: GPL-2.0-or-later
//
// kvmi-emu: builds the machine and the link, and takes turns between them on one thread.

#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <ctime>
#include <iostream>
#include <vector>

#include "hypervisor/emulated/boot.h"
#include "hypervisor/emulated/departure.h"
#include "hypervisor/emulated/image.h"
#include "hypervisor/emulated/machine.h"
#include "hypervisor/emulated/options.h"
#include "hypervisor/emulated/status.h"
#include "hypervisor/server/link.h"
#include "hypervisor/server/log.h"

namespace {

using namespace kvmid;
using namespace kvmid::emulated;

volatile sig_atomic_t end_wanted = 0;
volatile sig_atomic_t status_wanted = 0;
volatile sig_atomic_t leave_wanted = 0;

void on_signal(int number) {
  if (number == SIGUSR1) status_wanted = 1;
  else if (number == SIGUSR2) leave_wanted = 1;
  else end_wanted = 1;
}

/// Handles the signals only while ppoll waits: none is lost between the look at the flags and the wait.
sigset_t set_up_signals() {
  struct sigaction action {};
  action.sa_handler = on_signal;
  sigset_t blocked, before;
  sigemptyset(&blocked);
  for (const int number : {SIGTERM, SIGINT, SIGUSR1, SIGUSR2}) {
    sigaction(number, &action, nullptr);
    sigaddset(&blocked, number);
  }
  signal(SIGPIPE, SIG_IGN);
  sigprocmask(SIG_BLOCK, &blocked, &before);
  return before;
}

int exit_code(StopCause cause) {
  switch (cause) {
    case StopCause::None:
    case StopCause::Shutdown: return kExitOk;
    case StopCause::CrashAction: return kExitCrashAction;
    case StopCause::GuestFault: return kExitGuestFault;
    case StopCause::Engine: return kExitEngine;
  }
  return kExitOk;
}

/// Would a step of the departure do something now?
bool departure_is_due(const Machine& machine, const hypervisor::Link& link, const Departure& departure) {
  if (departure.state() == Departure::State::Staying) return machine.shutdown_wanted();
  return departure.state() == Departure::State::Leaving && link.state() == hypervisor::Link::State::Idle;
}

int run(Machine& machine, hypervisor::Link& link, const Options& options, const sigset_t& waiting_signals) {
  const auto end = options.exit_after ? std::optional(Clock::now() + *options.exit_after) : std::nullopt;
  bool announced = false;
  Departure departure(machine, link);
  while (end_wanted == 0) {
    auto now = Clock::now();
    if (end && now >= *end) break;
    if (status_wanted != 0) {
      status_wanted = 0;
      const std::string line = status_line(machine, link);
      [[maybe_unused]] const auto written = ::write(STDERR_FILENO, line.data(), line.size());
    }
    if (leave_wanted != 0) {
      leave_wanted = 0;
      departure.leave_for(options.leave_reason, options.leave_time, now);
    }
    departure.step(now);
    if (machine.stopped() && !announced) {
      announced = true;
      const bool shut_down = machine.stop_cause() == StopCause::Shutdown;
      hypervisor::log(shut_down ? "guest shut down" : "guest stopped",
                      {{"guest", machine.facts().name}, {"reason", machine.stop_reason()}});
      link.stop("the guest stopped: " + machine.stop_reason());
      if (!options.stay) break;
    }
    if (departure.guest_runs()) machine.run_round(now);

    const auto wait = link.wait();
    std::optional<Clock::time_point> until = wait.until;
    const bool runs = departure.guest_runs() && !machine.stopped();
    for (const auto& other : {runs ? machine.next_wake() : std::nullopt, departure.until(), end}) {
      if (other && (!until || *other < *until)) until = other;
    }
    now = Clock::now();
    timespec timeout{};
    const bool at_once = (runs && (machine.runnable(now) || departure_is_due(machine, link, departure))) ||
                         (machine.stopped() && !announced);
    if (!at_once && until && *until > now) {
      const auto left = std::chrono::duration_cast<std::chrono::nanoseconds>(*until - now).count();
      timeout.tv_sec = left / 1000000000;
      timeout.tv_nsec = left % 1000000000;
    }
    pollfd item{wait.fd, wait.events, 0};
    const int ready = ppoll(&item, wait.fd >= 0 ? 1 : 0, at_once || until ? &timeout : nullptr, &waiting_signals);
    link.handle(ready > 0 ? item.revents : short{0}, Clock::now());
  }
  return exit_code(machine.stop_cause());
}

}  // namespace

int main(int argc, char** argv) {
  auto parsed = parse_options(argc, argv);
  if (const int* code = std::get_if<int>(&parsed)) return *code;
  auto& options = std::get<Options>(parsed);
  hypervisor::set_quiet(options.quiet);

  std::vector<std::byte> image;
  options.machine.image = embedded_image();
  if (options.image_path) {
    auto loaded = load_image(*options.image_path, options.machine.memory_bytes - boot::kImage.value);
    if (!loaded) {
      std::cerr << "kvmi-emu: " << loaded.error().text << '\n';
      return kExitCannotStart;
    }
    image = std::move(*loaded);
    options.machine.image = image;
  }
  if (options.machine.start_time == 0) options.machine.start_time = std::time(nullptr);
  auto machine = Machine::create(options.machine);
  if (!machine) {
    std::cerr << "kvmi-emu: " << machine.error().text << '\n';
    return kExitCannotStart;
  }
  const sigset_t waiting_signals = set_up_signals();
  hypervisor::Link link(**machine, options.address, options.link);
  (*machine)->set_sink(&link);
  const int code = run(**machine, link, options, waiting_signals);
  link.stop("kvmi-emu ends");
  return code;
}
