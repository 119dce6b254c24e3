// SPDX-License-Identifier: GPL-2.0-or-later
#include "hypervisor/server/address.h"

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

#include <cerrno>
#include <charconv>
#include <cstring>

namespace kvmid::hypervisor {

Result<Address, AddressError> unix_address(std::string_view path) {
  if (path.empty()) return AddressError{"the socket path is empty"};
  if (path.find('\0') != std::string_view::npos) return AddressError{"the socket path holds a zero byte"};
  if (path.size() >= sizeof(sockaddr_un::sun_path)) {
    return AddressError{"the socket path has " + std::to_string(path.size()) + " bytes; a unix socket takes at most " +
                        std::to_string(sizeof(sockaddr_un::sun_path) - 1)};
  }
  return Address{UnixAddress{std::string(path)}};
}

Result<Address, AddressError> vsock_address(std::string_view text) {
  const auto bad = [&](const char* why) {
    return AddressError{"\"" + std::string(text) + "\" is no CID:PORT: " + why};
  };
  const auto colon = text.find(':');
  if (colon == std::string_view::npos) return bad("the colon is missing");
  VsockAddress address;
  const auto number = [](std::string_view digits, std::uint32_t& out) {
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), out);
    return error == std::errc{} && end == digits.data() + digits.size();
  };
  if (!number(text.substr(0, colon), address.cid)) return bad("the CID is no number");
  if (!number(text.substr(colon + 1), address.port)) return bad("the port is no number");
  return Address{address};
}

std::string to_string(const Address& address) {
  return std::visit(Overloaded{[](const UnixAddress& a) { return "unix:" + a.path; },
                               [](const VsockAddress& a) {
                                 return "vsock:" + std::to_string(a.cid) + ":" + std::to_string(a.port);
                               }},
                    address);
}

Result<int, DialError> dial(const Address& address) {
  sockaddr_storage storage{};
  socklen_t size = 0;
  if (const auto* path = std::get_if<UnixAddress>(&address)) {
    sockaddr_un un{};
    un.sun_family = AF_UNIX;
    std::memcpy(un.sun_path, path->path.c_str(), path->path.size() + 1);
    std::memcpy(&storage, &un, sizeof un);
    size = sizeof un;
  } else {
    const auto& vsock = std::get<VsockAddress>(address);
    sockaddr_vm vm{};
    vm.svm_family = AF_VSOCK;
    vm.svm_cid = vsock.cid;
    vm.svm_port = vsock.port;
    std::memcpy(&storage, &vm, sizeof vm);
    size = sizeof vm;
  }
  const int fd = ::socket(storage.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) return DialError{errno, std::string("socket: ") + std::strerror(errno)};
  if (::connect(fd, reinterpret_cast<const sockaddr*>(&storage), size) != 0 && errno != EINPROGRESS) {
    const int error = errno;
    ::close(fd);
    return DialError{error, std::string("connect: ") + std::strerror(error)};
  }
  return fd;
}

}  // namespace kvmid::hypervisor
