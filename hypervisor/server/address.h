// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>

#include "protocol/result.h"

namespace kvmid::hypervisor {

struct UnixAddress {
  std::string path;
};
struct VsockAddress {
  std::uint32_t cid = 0;
  std::uint32_t port = 0;
};
/// Where kvmid's hypervisor socket is.
using Address = std::variant<UnixAddress, VsockAddress>;

struct AddressError {
  std::string text;
};

/// A path that a sockaddr_un can hold.
Result<Address, AddressError> unix_address(std::string_view path);
/// "CID:PORT" in decimal.
Result<Address, AddressError> vsock_address(std::string_view text);
std::string to_string(const Address& address);

struct DialError {
  int error = 0;  ///< errno
  std::string text;
};
/// A socket on its way to `address`, non-blocking. A connection under way is no error: it is writable when it is made.
Result<int, DialError> dial(const Address& address);

}  // namespace kvmid::hypervisor
