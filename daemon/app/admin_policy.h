// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "daemon/app/admin_resources.h"
#include "daemon/core/policy.h"
#include "protocol/result.h"

namespace kvmid::app {

/// What GET and POST /v1/policy ask: a peer that may not exist, and what it would do.
struct PolicyQuestion {
  core::Peer peer;
  std::string guest;  ///< a name or a UUID; the guest need not be connected
  std::optional<CommandId> command;
  std::optional<EventKind> event;
};

/// "uid=1000&gid=27&gid=1000&guest=web1&command=READ_PHYSICAL" -> the question; the error says which part is wrong.
Result<PolicyQuestion, std::string> parse_policy_question(std::string_view query);

/// Which rule decides and why the ones before it do not, as docs/admin-http.md shows it. `uuid` and `name` are the
/// guest's where it is known, else what was asked.
nlohmann::ordered_json explain_policy(const core::Policy& policy, const PolicyQuestion& question, const Uuid& uuid,
                                      const std::string& name);
/// Every rule with what it gives.
nlohmann::ordered_json policy_json(const core::Policy& policy);

/// The path is /v1/policy.
[[nodiscard]] bool is_policy_target(std::string_view target);

/// What a policy is explained with.
struct PolicySources {
  std::function<std::shared_ptr<const core::Policy>()> running;  ///< null: kvmid is too busy to say
  std::function<std::vector<io::GuestSnapshot>()> guests;        ///< to know a guest's UUID by its name
};

/// The answer to a request for /v1/policy, explained by the running policy (GET) or by the configuration in the body
/// (POST), which is only read and checked.
Answer policy_answer(std::string_view method, std::string_view target, std::string_view body,
                     const PolicySources& sources);
/// The same, asking the broker, which is waited for a bounded time.
Answer policy_answer(std::string_view method, std::string_view target, std::string_view body, io::Broker& broker);

}  // namespace kvmid::app
