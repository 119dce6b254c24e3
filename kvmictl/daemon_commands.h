// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// The subcommands that steer the daemon or ask what it would allow. Each returns an exit code and has printed what
/// there was to say.

#include "kvmictl/arguments.h"
#include "kvmictl/json_text.h"

namespace kvmid::ctl {

int policy_check(const Arguments& arguments);
int reload(const Arguments& arguments);
int log_level(const Arguments& arguments);

/// The question as the path and query of GET /v1/policy. Without uid, gid and cid: this process.
std::string policy_target(const Arguments& arguments);
/// What /v1/policy answered, rule by rule.
std::string render_policy(const Json& answer, std::size_t width);

}  // namespace kvmid::ctl
