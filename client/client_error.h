// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <cstdint>
#include <string>

#include "protocol/message.h"

namespace kvmid::client {

/// What kind of thing went wrong, as far as it changes what a caller does next.
enum class ClientErrc : std::uint8_t {
  BadArgument,  ///< the call was wrong; nothing was sent
  Unreachable,  ///< no kvmid behind the socket: it is missing, or nobody listens
  Denied,       ///< the operating system forbids this user the socket
  Refused,      ///< kvmid answered the hello with a status other than 0 (in `code`)
  NoGuest,      ///< no guest has that name or uuid prefix, or more than one
  Failed,       ///< a command was answered with an error (in `code`)
  TimedOut,     ///< this library stopped waiting; the connection is still good and the answer may still come
  Closed,       ///< kvmid closed the connection, or it was closed here
  Protocol,     ///< kvmid sent what is no message of this protocol; the connection was closed
  Overflow,     ///< more messages arrived than were taken, and none could be dropped; the connection was closed
  System,       ///< a system call failed for another reason (in `os_error`)
};

/// Why a call of the client library failed.
struct ClientError {
  ClientErrc kind{};
  ErrorCode code = ErrorCode::None;  ///< Refused and Failed: the number that kvmid gave
  std::string text;                  ///< a sentence for people, never empty
  int os_error = 0;                  ///< errno where a system call failed
};

}  // namespace kvmid::client
