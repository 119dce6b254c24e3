// SPDX-License-Identifier: GPL-2.0-or-later
#include "tests/integration_systemd/manager.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <sstream>

namespace kvmid::test {
namespace {

sockaddr_un address_of(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) throw TestError("too long for a socket: " + path);
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

[[noreturn]] void failed(const std::string& what) { throw TestError(what + ": " + std::strerror(errno)); }

/// Lets the next program that is started inherit descriptors; all others are closed when a program starts.
class Inheriting {
 public:
  explicit Inheriting(const std::vector<Passed>& fds) : fds_(fds) { set(0); }
  ~Inheriting() { set(FD_CLOEXEC); }
  Inheriting(const Inheriting&) = delete;
  Inheriting& operator=(const Inheriting&) = delete;

 private:
  void set(int flags) const {
    for (const auto& passed : fds_) ::fcntl(passed.fd, F_SETFD, flags);
  }
  const std::vector<Passed>& fds_;
};

}  // namespace

UniqueFd bound_socket(const std::string& path, int type, bool listening) {
  UniqueFd fd(::socket(AF_UNIX, type | SOCK_CLOEXEC, 0));
  if (!fd) failed("socket");
  const sockaddr_un address = address_of(path);
  if (::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) failed("bind " + path);
  if (::chmod(path.c_str(), 0660) != 0) failed("chmod " + path);
  if (listening && ::listen(fd.get(), 128) != 0) failed("listen " + path);
  return fd;
}

UniqueFd connected_socket(const std::string& path) {
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd) failed("socket");
  const sockaddr_un address = address_of(path);
  if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) failed("connect " + path);
  return fd;
}

std::optional<std::string> Notification::value(const std::string& name) const {
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with(name + "=")) return line.substr(name.size() + 1);
  }
  return std::nullopt;
}

bool Notification::says(const std::string& line) const {
  std::istringstream lines(text);
  for (std::string each; std::getline(lines, each);) {
    if (each == line) return true;
  }
  return false;
}

Manager::Manager(const RuntimeFolder& folder)
    : folder_(folder),
      hypervisor_(bound_socket(folder.file("hypervisor.sock"), SOCK_STREAM, true)),
      agent_(bound_socket(folder.file("agent.sock"), SOCK_STREAM, true)),
      admin_(bound_socket(folder.file("admin.sock"), SOCK_STREAM, true)),
      notify_(bound_socket(folder.file("notify"), SOCK_DGRAM, false)) {}

std::vector<Passed> Manager::sockets() const {
  return {{hypervisor_.get(), "hypervisor"}, {agent_.get(), "agent"}, {admin_.get(), "admin"}};
}

Process& Manager::start(const Start& how) {
  const std::vector<Passed> fds = how.fds ? *how.fds : sockets();
  std::string numbers;
  std::string names;
  for (const auto& passed : fds) {
    numbers += (numbers.empty() ? "" : ",") + std::to_string(passed.fd);
    names += (names.empty() ? "" : ":") + passed.name;
  }
  std::vector<std::string> arguments{numbers.empty() ? "-" : numbers, how.names.empty() ? names : how.names, how.pid,
                                     "NOTIFY_SOCKET=" + folder_.file("notify")};
  if (arguments[1].empty()) arguments[1] = "-";
  arguments.insert(arguments.end(), how.environment.begin(), how.environment.end());
  arguments.insert(arguments.end(), {"--", program_path("kvmid").string(), "--config",
                                     folder_.write("kvmid.json", how.config)});
  arguments.insert(arguments.end(), how.arguments.begin(), how.arguments.end());
  const Inheriting inheriting(fds);
  process_.emplace("test-activate", std::move(arguments));
  return *process_;
}

Process& Manager::start_ready(const Start& how) {
  const std::size_t before = said().size();
  start(how);
  wait_said("READY=1", before);
  return *process_;
}

const std::vector<Notification>& Manager::said() {
  std::array<char, 4096> buffer;
  for (;;) {
    const ssize_t got = ::recv(notify_.get(), buffer.data(), buffer.size(), MSG_DONTWAIT);
    if (got < 0) break;
    said_.push_back({std::string(buffer.data(), static_cast<std::size_t>(got))});
  }
  return said_;
}

std::size_t Manager::count(const std::string& line) {
  const auto& all = said();
  return static_cast<std::size_t>(std::count_if(all.begin(), all.end(), [&](const auto& n) { return n.says(line); }));
}

std::size_t Manager::wait_said(const std::string& line, std::size_t first) {
  std::size_t at = first;
  const bool found = wait_until([&] {
    const bool running = process_->running();
    for (const auto& all = said(); at < all.size(); ++at) {
      if (all[at].says(line)) return true;
    }
    if (!running) throw TestError("kvmid ended and did not say " + line + "\n" + process_->tail());
    return false;
  });
  if (!found) throw TestError("kvmid does not say " + line + "\n" + process_->tail());
  return at;
}

std::size_t guests_at(const std::string& agent_socket) {
  client::ConnectOptions options;
  options.socket = agent_socket;
  options.timeout = kBound;
  return check(check(AgentClient::connect(options)).list_guests()).size();
}

std::string admin_get(const std::string& admin_socket, const std::string& target) {
  const UniqueFd fd = connected_socket(admin_socket);
  const std::string request = "GET " + target + " HTTP/1.1\r\nHost: kvmid\r\nConnection: close\r\n\r\n";
  if (::send(fd.get(), request.data(), request.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(request.size()))
    failed("send");
  std::string answer;
  std::array<char, 4096> buffer;
  for (ssize_t got = 0; (got = ::recv(fd.get(), buffer.data(), buffer.size(), 0)) > 0;)
    answer.append(buffer.data(), static_cast<std::size_t>(got));
  const auto body = answer.find("\r\n\r\n");
  if (!answer.starts_with("HTTP/1.1 200") || body == std::string::npos)
    throw TestError("GET " + target + " was answered: " + answer);
  return answer.substr(body + 4);
}

std::string open_config(unsigned shards) {
  return R"({"shards": )" + std::to_string(shards) + R"(, "hypervisors": {"uid": [)" + std::to_string(::getuid()) +
         R"(]}, "policy": [{"name": "tests", "match": "*", "commands": ["*"], "events": ["*"], "role": "decider",
           "deadline_ms": 60000}]})";
}

}  // namespace kvmid::test
