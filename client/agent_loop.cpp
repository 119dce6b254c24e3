// SPDX-License-Identifier: LGPL-2.1-or-later
#include "client/agent_loop.h"

#include <poll.h>
#include <sys/signalfd.h>

#include <array>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <ctime>

namespace kvmid::client {

namespace {

int milliseconds_of(const timespec& now) { return static_cast<int>(now.tv_nsec / 1'000'000); }

std::string formatted(const char* format, const std::tm& parts, int milliseconds, const char* end) {
  std::array<char, 64> text{};
  std::strftime(text.data(), text.size(), format, &parts);
  std::array<char, 16> fraction{};
  std::snprintf(fraction.data(), fraction.size(), ".%03d%s", milliseconds, end);
  return std::string(text.data()) + fraction.data();
}

}  // namespace

StopSignal::StopSignal() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGINT);
  sigaddset(&set, SIGTERM);
  // Blocked, the signals wait in the descriptor; nothing is ever interrupted between two messages.
  sigprocmask(SIG_BLOCK, &set, nullptr);
  fd_.reset(::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
}

bool StopSignal::wait(Millis timeout) {
  pollfd wait{fd_.get(), POLLIN, 0};
  if (!stopped_ && ::poll(&wait, 1, static_cast<int>(timeout.count())) == 1) stopped_ = true;
  return stopped_;
}

Turn next_turn(AgentClient& client, StopSignal& stop) {
  for (;;) {
    if (stop.wait(Millis{0})) return Stopped{};
    auto message = client.next_message(Millis{0});
    if (!message) return message.error();
    if (*message) return std::move(**message);
    std::array<pollfd, 2> wait{{{client.fd(), POLLIN, 0}, {stop.fd(), POLLIN, 0}}};
    ::poll(wait.data(), wait.size(), -1);
  }
}

bool may_pass(const ClientError& error) {
  switch (error.kind) {
    case ClientErrc::Unreachable:
    case ClientErrc::NoGuest:
    case ClientErrc::Closed:
    case ClientErrc::TimedOut:
      return true;
    case ClientErrc::Refused:
      return error.code == ErrorCode::NoEntry || error.code == ErrorCode::NoDevice;
    case ClientErrc::Failed:
      return error.code == ErrorCode::NoDevice || error.code == ErrorCode::TimedOut;
    default:
      return false;
  }
}

std::optional<Result<AgentClient, ClientError>> attach_when_there(const ConnectOptions& options, std::string_view guest,
                                                                  bool wait, StopSignal& stop) {
  for (bool told = false;; told = true) {
    auto attached = AgentClient::attach(options, guest);
    if (attached || !wait || !may_pass(attached.error())) return attached;
    if (!told) std::fprintf(stderr, "waiting: %s\n", attached.error().text.c_str());
    if (stop.wait(Millis{1000})) return std::nullopt;
  }
}

std::string time_of_day() {
  timespec now{};
  clock_gettime(CLOCK_REALTIME, &now);
  std::tm parts{};
  localtime_r(&now.tv_sec, &parts);
  return formatted("%H:%M:%S", parts, milliseconds_of(now), "");
}

std::string timestamp() {
  timespec now{};
  clock_gettime(CLOCK_REALTIME, &now);
  std::tm parts{};
  gmtime_r(&now.tv_sec, &parts);
  return formatted("%Y-%m-%dT%H:%M:%S", parts, milliseconds_of(now), "Z");
}

std::string default_socket() {
  const char* named = std::getenv("KVMID_AGENT_SOCKET");
  return named != nullptr && *named != '\0' ? named : std::string(kDefaultAgentSocket);
}

int exit_code(const ClientError& error) {
  switch (error.kind) {
    case ClientErrc::BadArgument:
      return 2;
    case ClientErrc::Unreachable:
    case ClientErrc::Denied:
    case ClientErrc::Closed:
      return 3;
    case ClientErrc::NoGuest:
      return 4;
    case ClientErrc::TimedOut:
      return 7;
    case ClientErrc::Refused:
    case ClientErrc::Failed:
      break;
    case ClientErrc::Protocol:
    case ClientErrc::Overflow:
    case ClientErrc::System:
      return 1;
  }
  switch (error.code) {
    case ErrorCode::NotPermitted:
      return 5;
    case ErrorCode::NoEntry:
      return error.kind == ClientErrc::Refused ? 4 : 1;
    case ErrorCode::NotSupported:
    case ErrorCode::NotServed:
      return 6;
    case ErrorCode::TimedOut:
      return 7;
    default:
      return 1;
  }
}

}  // namespace kvmid::client
