// SPDX-License-Identifier: GPL-2.0-or-later
//
// pause and resume. `pause` leaves a holder in the background: a child process that keeps the agent connection with its
// PAUSE events unanswered and listens on an abstract socket; `resume` connects there. The child does the pausing
// itself and tells the parent how it went through a pipe, so that nothing is handed over half way.

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "client/event_text.h"
#include "kvmictl/guest_commands.h"
#include "kvmictl/pause_holder.h"
#include "kvmictl/table.h"
#include "protocol/handshake.h"

namespace kvmid::ctl {

using namespace kvmid::client;  // NOLINT(google-build-using-namespace): this file is an agent

namespace {

constexpr Millis kResumeTimeout{5000};

void warn(const std::string& text) { std::fprintf(stderr, "kvmictl: %s\n", printable(text).c_str()); }

Result<Uuid, ClientError> uuid_of(const Arguments& arguments) {
  if (const auto uuid = parse_uuid(arguments.guest)) return *uuid;
  auto control = AgentClient::connect(connect_options(arguments));
  if (!control) return control.error();
  const auto guests = control->list_guests();
  if (!guests) return guests.error();
  std::vector<GuestName> names;
  for (const auto& guest : *guests) names.push_back({guest.uuid, guest.name});
  return find_guest(names, arguments.guest);
}

std::string paused_text(const PauseHolder& holder) {
  std::string text = "paused " + holder.guest().guest_name + ": " + std::to_string(holder.held()) + " vCPUs";
  if (holder.limit().count() != 0) {
    text += "; kvmid ends it after " + std::to_string(holder.limit().count()) + " ms at the latest";
  }
  return text;
}

void print_paused(const Arguments& arguments, const std::string& state, const std::string& text) {
  if (arguments.json) {
    std::printf("{\"schema\":1,\"state\":%s,\"text\":%s}\n", json_string(state).c_str(), json_string(text).c_str());
  } else {
    std::printf("%s\n", printable(text).c_str());
  }
  std::fflush(stdout);
}

/// Binds the holder's address. Abstract: it goes with the process, whatever ends it.
UniqueFd listen_at(const std::string& address) {
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un name{};
  name.sun_family = AF_UNIX;
  std::memcpy(name.sun_path, address.data(), address.size());
  name.sun_path[0] = '\0';
  const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + address.size());
  if (!fd || ::bind(fd.get(), reinterpret_cast<const sockaddr*>(&name), size) != 0 || ::listen(fd.get(), 4) != 0) {
    return {};
  }
  return fd;
}

/// Anybody may use an abstract name: only this user and root are believed.
bool is_us(int fd) {
  ucred peer{};
  socklen_t size = sizeof peer;
  return ::getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 && (peer.uid == ::getuid() || peer.uid == 0);
}

void send_text(int fd, const std::string& text) {
  std::size_t at = 0;
  while (at < text.size()) {
    const ssize_t n = ::write(fd, text.data() + at, text.size() - at);
    if (n <= 0 && errno != EINTR) return;
    if (n > 0) at += static_cast<std::size_t>(n);
  }
}

/// What the other end writes until it closes; empty when it says nothing in time.
std::string read_all(int fd, SteadyClock::time_point until) {
  std::string text;
  for (;;) {
    pollfd wait{fd, POLLIN, 0};
    if (::poll(&wait, 1, poll_timeout(until)) <= 0) return text;
    std::array<char, 512> buffer{};
    const ssize_t n = ::read(fd, buffer.data(), buffer.size());
    if (n <= 0 || text.size() > 8192) return text;
    text.append(buffer.data(), static_cast<std::size_t>(n));
  }
}

/// The child. Reports "0 text" or "code text" to `report`, then holds.
[[noreturn]] void background(const Arguments& arguments, UniqueFd report) {
  StopSignal signal;
  const auto fail = [&](const ClientError& error) {
    send_text(report.get(), std::to_string(explain(error)));
    std::_Exit(1);
  };
  const auto uuid = uuid_of(arguments);
  if (!uuid) fail(uuid.error());
  const UniqueFd listener = listen_at(holder_address(::getuid(), *uuid));
  if (!listener) {
    warn("this guest is already paused by kvmictl; `kvmictl resume` lets it go");
    send_text(report.get(), std::to_string(kFailed));
    std::_Exit(1);
  }
  auto holder = PauseHolder::stop(arguments);
  if (!holder) fail(holder.error());

  send_text(report.get(), "0 " + paused_text(*holder));
  report.reset();
  // A pipe that waits for the end of kvmictl's output must not wait for this process; a terminal shows the limit.
  UniqueFd nowhere(::open("/dev/null", O_RDWR | O_CLOEXEC));
  ::setsid();
  for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (fd != STDERR_FILENO || ::isatty(fd) == 0) ::dup2(nowhere.get(), fd);
  }
  for (;;) {
    const auto end = holder->hold(SteadyClock::time_point::max(), signal, listener.get(), warn);
    if (end != PauseHolder::End::Asked) {
      (void)holder->release();
      std::_Exit(0);
    }
    UniqueFd asker(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (!asker || !is_us(asker.get())) continue;
    const auto released = holder->release();
    send_text(asker.get(), released
                               ? "0 resumed " + holder->guest().guest_name + ": " + std::to_string(*released) + " vCPUs"
                               : "1 " + released.error().text);
    std::_Exit(0);
  }
}

int in_background(const Arguments& arguments) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) {
    warn(std::string("no pipe: ") + std::strerror(errno));
    return kFailed;
  }
  UniqueFd from(ends[0]);
  UniqueFd to(ends[1]);
  std::fflush(nullptr);
  const pid_t child = ::fork();
  if (child < 0) {
    warn(std::string("no process: ") + std::strerror(errno));
    return kFailed;
  }
  if (child == 0) {
    from.reset();
    background(arguments, std::move(to));
  }
  to.reset();
  const std::string report = read_all(from.get(), SteadyClock::time_point::max());
  if (report.starts_with("0 ")) {
    print_paused(arguments, "paused", report.substr(2));
    return kOk;
  }
  return report.empty() ? kFailed : std::atoi(report.c_str());
}

}  // namespace

int pause(const Arguments& arguments) {
  if (!arguments.hold_seconds) return in_background(arguments);
  StopSignal signal;
  auto holder = PauseHolder::stop(arguments);
  if (!holder) return explain(holder.error());
  print_paused(arguments, "paused", paused_text(*holder));
  const auto until = deadline_after(Millis{static_cast<std::int64_t>(*arguments.hold_seconds * 1000)});
  const auto end = holder->hold(until, signal, -1, warn);
  if (end == PauseHolder::End::Lost) return kUnreachable;
  if (end == PauseHolder::End::Expired) {
    print_paused(arguments, "running", holder->guest().guest_name + " was let go before the time was over");
    return kTimeout;
  }
  const auto released = holder->release();
  if (!released) return explain(released.error());
  print_paused(arguments, "running",
               "resumed " + holder->guest().guest_name + ": " + std::to_string(*released) + " vCPUs");
  return kOk;
}

int resume(const Arguments& arguments) {
  const auto uuid = uuid_of(arguments);
  if (!uuid) return explain(uuid.error());
  const auto until = deadline_after(kResumeTimeout);
  const auto holder = connect_stream(holder_address(::getuid(), *uuid), until);
  if (!holder || !is_us(holder->get())) {
    warn("nothing of this guest is paused by `kvmictl pause` of this user. kvmid ends pauses at its limit by itself.");
    return kFailed;
  }
  const std::string answer = read_all(holder->get(), until);
  if (!answer.starts_with("0 ")) {
    warn(answer.size() > 2 ? answer.substr(2) : std::string("the process that holds the pause did not answer"));
    return answer.empty() ? kTimeout : kFailed;
  }
  print_paused(arguments, "running", answer.substr(2));
  return kOk;
}

}  // namespace kvmid::ctl
