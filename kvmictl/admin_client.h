// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// Requests on kvmid's admin socket.
///
/// Shapes:   HTTP/1.1 over a unix socket; the body is JSON.
/// Errors:   ClientError, so that exit codes are the same as for agents' connections; what kvmid answers with another
///           status than 200 is Failed (404: NoGuest, 403: Refused) with kvmid's own message, and the place in the
///           configuration before it where kvmid names one. A resource that this kvmid does not have is NotServed.
/// Threads:  none left behind.

#include <nlohmann/json.hpp>

#include <string>

#include "client/client_error.h"
#include "client/socket.h"
#include "protocol/result.h"

namespace kvmid::ctl {

struct AdminRequest {
  std::string method = "GET";
  std::string target;
  std::string body{};  ///< sent as JSON where it is not empty
};
Result<nlohmann::json, client::ClientError> admin_call(const std::string& socket, const AdminRequest& request,
                                                       client::Millis timeout);
inline Result<nlohmann::json, client::ClientError> admin_get(const std::string& socket, const std::string& target,
                                                             client::Millis timeout) {
  return admin_call(socket, {.target = target}, timeout);
}

/// Text as part of a query ("a b" -> "a%20b").
std::string query_escaped(const std::string& text);

/// What an HTTP answer means, apart from how it came.
Result<nlohmann::json, client::ClientError> admin_answer(unsigned status, const std::string& body);

}  // namespace kvmid::ctl
