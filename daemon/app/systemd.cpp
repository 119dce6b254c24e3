// SPDX-License-Identifier: GPL-2.0-or-later
#include "daemon/app/systemd.h"

#include <fcntl.h>
#include <spdlog/logger.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <systemd/sd-daemon.h>
// <sys/socket.h> comes first: the next one needs sa_family_t.
#include <linux/vm_sockets.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <string_view>
#include <utility>

namespace kvmid::app {
namespace {

constexpr std::string_view kHypervisor = "hypervisor";
constexpr std::string_view kAgent = "agent";
constexpr std::string_view kAdmin = "admin";

int socket_option(int fd, int option) {
  int value = -1;
  socklen_t size = sizeof value;
  return ::getsockopt(fd, SOL_SOCKET, option, &value, &size) == 0 ? value : -1;
}

/// What is wrong with it, or nothing.
std::string fault_of(int fd, bool vsock_too) {
  struct stat info{};
  if (::fstat(fd, &info) != 0) return "it is not open: " + std::string(std::strerror(errno));
  if (!S_ISSOCK(info.st_mode)) return "it is not a socket";
  const int domain = socket_option(fd, SO_DOMAIN);
  if (domain != AF_UNIX && !(vsock_too && domain == AF_VSOCK))
    return vsock_too ? "it is neither a unix nor a vsock socket" : "it is not a unix socket";
  if (socket_option(fd, SO_TYPE) != SOCK_STREAM) return "it is not a stream socket (ListenStream=)";
  if (socket_option(fd, SO_ACCEPTCONN) != 1) return "it does not listen (Accept=no)";
  return {};
}

/// Where it listens, for people.
std::string address_of(int fd) {
  sockaddr_storage address{};
  socklen_t size = sizeof address;
  if (::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) != 0) return "?";
  if (address.ss_family == AF_VSOCK) {
    sockaddr_vm vsock{};
    std::memcpy(&vsock, &address, sizeof vsock);
    return "vsock:" + std::to_string(vsock.svm_port);
  }
  sockaddr_un local{};
  std::memcpy(&local, &address, sizeof local);
  constexpr std::size_t kPathAt = offsetof(sockaddr_un, sun_path);
  if (size <= kPathAt) return "?";
  std::string path(local.sun_path, size - kPathAt);
  if (path.front() == '\0') {
    path.front() = '@';
  } else {
    path.resize(std::strlen(path.c_str()));
  }
  return path;
}

/// What sd_listen_fds_with_names() allocated, and its end.
struct Names {
  char** list = nullptr;
  Names() = default;
  Names(const Names&) = delete;
  Names& operator=(const Names&) = delete;
  ~Names() {
    for (char** name = list; name != nullptr && *name != nullptr; ++name) std::free(*name);
    std::free(static_cast<void*>(list));
  }
};

}  // namespace

Result<PassedSockets, std::string> take_passed_sockets() {
  Names names;
  // The environment stays: other threads read it, and kvmid starts no programs that could inherit it.
  const int count = ::sd_listen_fds_with_names(0, &names.list);
  if (count < 0)
    return "cannot take the sockets of the service manager (LISTEN_FDS, LISTEN_FDNAMES): " +
           std::string(std::strerror(-count));
  PassedSockets sockets;
  for (int i = 0; i < count; ++i) {
    const int fd = SD_LISTEN_FDS_START + i;
    const std::string name = names.list[i];
    const auto refuse = [&](const std::string& why) {
      return "the service manager passed descriptor " + std::to_string(fd) + " as \"" + name + "\": " + why;
    };
    if (name != kHypervisor && name != kAgent && name != kAdmin)
      return refuse("FileDescriptorName= must be hypervisor, agent or admin");
    if (const std::string fault = fault_of(fd, name != kAdmin); !fault.empty()) return refuse(fault);
    const int flags = ::fcntl(fd, F_GETFL);
    if (flags < 0 || ::fcntl(fd, F_SETFL, flags | O_NONBLOCK) != 0)
      return refuse("cannot make it non-blocking: " + std::string(std::strerror(errno)));

    io::PassedSocket passed{{}, address_of(fd), socket_option(fd, SO_DOMAIN) == AF_VSOCK};
    passed.socket.fd.reset(fd);  // no path: the file is the service manager's
    auto& list = name == kHypervisor ? sockets.broker.hypervisors
                 : name == kAgent    ? sockets.broker.agents
                                     : sockets.admin;
    list.push_back(std::move(passed));
    if (sockets.admin.size() > 1) return refuse("there is one already, and only one is served");
  }
  return sockets;
}

ServiceManager::ServiceManager(boost::asio::io_context& front, io::Broker& broker, io::Log& log)
    : broker_(broker), log_(log), timer_(front) {
  std::uint64_t limit_us = 0;
  const int watched = ::sd_watchdog_enabled(0, &limit_us);
  if (watched < 0) log_.warn("watchdog not served reason={}", io::field(std::strerror(-watched)));
  // Twice as often as must be, as sd_watchdog_enabled(3) recommends.
  if (watched > 0) interval_ = std::chrono::microseconds(std::max<std::uint64_t>(limit_us / 2, 1000));
}

void ServiceManager::tell(const std::string& state) {
  const int told = ::sd_notify(0, state.c_str());
  if (told < 0 && !std::exchange(warned_, true))
    log_.warn("cannot tell the service manager reason={}", io::field(std::strerror(-told)));
}

void ServiceManager::ready(const std::string& status) {
  std::string line = status;
  for (char& c : line) {
    if (c == '\n') c = ' ';  // a line is a field
  }
  tell("READY=1\nSTATUS=" + line);
  // The first time only: a reload does not start a second round of signs of life.
  if (interval_.count() != 0 && !std::exchange(watched_, true)) watch();
}

void ServiceManager::reloading() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  const auto usec = static_cast<std::uint64_t>(now.tv_sec * 1'000'000 + now.tv_nsec / 1000);
  tell("RELOADING=1\nMONOTONIC_USEC=" + std::to_string(usec) + "\nSTATUS=Reading the configuration");
}

void ServiceManager::stopping() {
  stopping_ = true;
  timer_.cancel();
  tell("STOPPING=1\nSTATUS=Taking everything back from the guests");
}

void ServiceManager::watch() {
  if (!asked_) {
    asked_ = true;
    broker_.ask_shards([this] {
      asked_ = false;
      if (!stopping_) tell("WATCHDOG=1");
    });
  }
  timer_.expires_after(interval_);
  timer_.async_wait([this](const boost::system::error_code& error) {
    if (!error && !stopping_) watch();
  });
}

}  // namespace kvmid::app
