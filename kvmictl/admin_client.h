// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// GET on kvmid's admin socket.
///
/// Shapes:   HTTP/1.1 over a unix socket; the body is JSON.
/// Errors:   ClientError, so that exit codes are the same as for agents' connections; what kvmid answers with another
///           status than 200 is Failed (404: NoGuest, 403: Refused) with kvmid's own message.
/// Threads:  none left behind.

#include <nlohmann/json.hpp>

#include <string>

#include "client/client_error.h"
#include "client/socket.h"
#include "protocol/result.h"

namespace kvmid::ctl {

Result<nlohmann::json, client::ClientError> admin_get(const std::string& socket, const std::string& target,
                                                      client::Millis timeout);

/// What an HTTP answer means, apart from how it came.
Result<nlohmann::json, client::ClientError> admin_answer(unsigned status, const std::string& body);

}  // namespace kvmid::ctl
