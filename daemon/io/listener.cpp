// SPDX-License-Identifier: GPL-2.0-or-later
#include "daemon/io/listener.h"

#include <fcntl.h>
#include <grp.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
// <sys/socket.h> comes first: the next one needs sa_family_t.
#include <linux/vm_sockets.h>
#include <spdlog/logger.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <vector>

namespace kvmid::io {
namespace {

constexpr int kBacklog = 128;
constexpr unsigned kAcceptsPerTurn = 16;
constexpr std::chrono::milliseconds kPause{100};
// sun_path has room for the path and its closing zero.
constexpr std::size_t kPathMax = sizeof(sockaddr_un{}.sun_path) - 1;
static_assert(kPathMax == 107);

std::string reason() { return std::strerror(errno); }
ListenError failed(const std::string& where, const std::string& why) { return {"cannot listen on " + where + ": " + why}; }

UniqueFd open_spare() { return UniqueFd{::open("/dev/null", O_RDONLY | O_CLOEXEC)}; }

/// Removes the file of a daemon that is gone; an error where something else is there.
Result<void, ListenError> clear_stale(const std::string& path, const sockaddr_un& address) {
  struct stat info{};
  if (::lstat(path.c_str(), &info) != 0) {
    if (errno == ENOENT) return {};
    return failed(path, reason());
  }
  if (!S_ISSOCK(info.st_mode)) return failed(path, "it exists and is not a socket");
  const UniqueFd probe{::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)};
  if (!probe.valid()) return failed(path, reason());
  if (::connect(probe.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0 || errno == EAGAIN)
    return failed(path, "another daemon listens there");
  if (errno != ECONNREFUSED) return failed(path, "a socket is there and cannot be probed: " + reason());
  if (::unlink(path.c_str()) != 0 && errno != ENOENT) return failed(path, "cannot remove the stale socket: " + reason());
  return {};
}

Result<gid_t, std::string> group_id(const std::string& name) {
  std::vector<char> buffer(16384);
  group entry{};
  group* found = nullptr;
  int error = 0;
  while ((error = ::getgrnam_r(name.c_str(), &entry, buffer.data(), buffer.size(), &found)) == ERANGE)
    buffer.resize(buffer.size() * 2);
  if (error != 0) return std::string(std::strerror(error));
  if (found == nullptr) return "there is no group \"" + name + "\"";
  return entry.gr_gid;
}

}  // namespace

Result<ListeningSocket, ListenError> listen_unix(const std::string& path, mode_t mode, const std::string& group) {
  if (path.size() > kPathMax)
    return failed(path, "the path has " + std::to_string(path.size()) + " bytes, the system's limit is " +
                            std::to_string(kPathMax) + " bytes");
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.data(), path.size());

  ListeningSocket socket;
  socket.path = path;
  socket.fd.reset(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket.fd.valid()) return failed(path, reason());
  if (auto cleared = clear_stale(path, address); !cleared) return cleared.error();

  // The file is born without rights for others (bind takes the socket's mode), and gets its own once its group is set.
  if (::fchmod(socket.fd.get(), S_IRUSR | S_IWUSR) != 0) return failed(path, reason());
  if (::bind(socket.fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0)
    return failed(path, reason());
  const auto refuse = [&](const std::string& why) {
    ::unlink(path.c_str());
    return failed(path, why);
  };
  if (!group.empty()) {
    const auto gid = group_id(group);
    if (!gid) return refuse(gid.error());
    if (::lchown(path.c_str(), static_cast<uid_t>(-1), *gid) != 0)
      return refuse("cannot give it to group \"" + group + "\": " + reason());
  }
  if (::chmod(path.c_str(), mode) != 0) return refuse(reason());
  struct stat info{};
  if (::lstat(path.c_str(), &info) != 0) return refuse(reason());
  socket.device = info.st_dev;
  socket.inode = info.st_ino;
  if (::listen(socket.fd.get(), kBacklog) != 0) return refuse(reason());
  return socket;
}

Result<ListeningSocket, ListenError> listen_vsock(std::uint32_t port) {
  const std::string where = "vsock port " + std::to_string(port);
  ListeningSocket socket;
  socket.fd.reset(::socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket.fd.valid()) {
    if (errno == EAFNOSUPPORT) return failed(where, "this kernel has no vsock (try: modprobe vhost_vsock)");
    return failed(where, reason());
  }
  sockaddr_vm address{};
  address.svm_family = AF_VSOCK;
  address.svm_cid = VMADDR_CID_ANY;
  address.svm_port = port;
  if (::bind(socket.fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    if (errno == EADDRINUSE) return failed(where, "another daemon listens there");
    return failed(where, reason());
  }
  if (::listen(socket.fd.get(), kBacklog) != 0) return failed(where, reason());
  return socket;
}

Listener::Listener(boost::asio::io_context& context, ListeningSocket socket, std::string_view what,
                   IoCounters& counters, Log& log, Accepted accepted)
    : descriptor_(context, socket.fd.release()),
      pause_(context),
      socket_(std::move(socket)),
      what_(what),
      counters_(counters),
      log_(log),
      accepted_(std::move(accepted)),
      spare_(open_spare()) {}

Listener::~Listener() { stop(); }

void Listener::stop() {
  if (!descriptor_.is_open()) return;
  *alive_ = false;
  pause_.cancel();
  boost::system::error_code ignored;
  descriptor_.close(ignored);
  struct stat info{};
  if (!socket_.path.empty() && ::lstat(socket_.path.c_str(), &info) == 0 && info.st_dev == socket_.device &&
      info.st_ino == socket_.inode)
    ::unlink(socket_.path.c_str());
}

void Listener::wait() {
  descriptor_.async_wait(boost::asio::posix::stream_descriptor::wait_read,
                         [this, alive = alive_](const boost::system::error_code& error) {
                           if (!error && *alive) accept_some();
                         });
}

void Listener::accept_some() {
  const auto alive = alive_;
  for (unsigned i = 0; i < kAcceptsPerTurn; ++i) {
    UniqueFd fd{::accept4(descriptor_.native_handle(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK)};
    if (fd.valid()) {
      paused_ = false;
      add_one(counters_.connections_accepted);
      accepted_(std::move(fd));
      if (!*alive) return;
      continue;
    }
    if (errno == EAGAIN) break;
    if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) return out_of_descriptors();
    // Else the newcomer failed by itself (ECONNABORTED and the like); the next one may be better.
  }
  wait();
}

void Listener::out_of_descriptors() {
  if (!paused_) {  // once per shortage
    log_.error("no descriptor left to accept with socket={} reason={}", what_, field(reason()));
    add_one(counters_.accept_paused);
  }
  paused_ = true;
  if (spare_.valid()) {
    spare_.reset();
    UniqueFd{::accept4(descriptor_.native_handle(), nullptr, nullptr, SOCK_CLOEXEC)}.reset();
    add_one(counters_.connections_refused);
  }
  spare_ = open_spare();
  pause_.expires_after(kPause);
  pause_.async_wait([this, alive = alive_](const boost::system::error_code& error) {
    if (!error && *alive) accept_some();
  });
}

}  // namespace kvmid::io
