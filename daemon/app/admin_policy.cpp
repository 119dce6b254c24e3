// SPDX-License-Identifier: GPL-2.0-or-later
#include "daemon/app/admin_policy.h"

#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <thread>

#include "daemon/app/config.h"
#include "protocol/handshake.h"

namespace kvmid::app {
namespace {

using Json = nlohmann::ordered_json;

/// Nothing where a % is not followed by two hexadecimal digits.
std::optional<std::string> percent_decoded(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    if (text.front() != '%') {
      out += text.front() == '+' ? ' ' : text.front();
      text.remove_prefix(1);
      continue;
    }
    unsigned value = 0;
    const char* begin = text.data() + 1;
    if (text.size() < 3 || std::from_chars(begin, begin + 2, value, 16).ptr != begin + 2) return {};
    out += static_cast<char>(value);
    text.remove_prefix(3);
  }
  return out;
}

std::string quoted(const std::string& text) {
  constexpr std::size_t kMax = 100;
  return "\"" + text.substr(0, kMax) + (text.size() > kMax ? "...\"" : "\"");
}

std::optional<std::uint32_t> number_of(const std::string& text) {
  std::uint32_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size()) return {};
  return value;
}

std::optional<CommandId> command_named(const std::string& name) {
  for (unsigned i = 0; i < 64; ++i) {
    const auto id = static_cast<CommandId>(i);
    if (name_of(id) != name_of(CommandId{}) && name_of(id) == name) return id;
  }
  return {};
}

std::optional<EventKind> event_named(const std::string& name) {
  for (unsigned i = 0; i < kEventCount; ++i)
    if (name_of(static_cast<EventKind>(i)) == name) return static_cast<EventKind>(i);
  return {};
}

Json names(CommandSet commands) {
  Json out = Json::array();
  for (unsigned i = 0; i < 64; ++i) {
    const auto id = static_cast<CommandId>(i);
    if (commands.has(id) && name_of(id) != name_of(CommandId{})) out.push_back(name_of(id));
  }
  return out;
}

Json names(EventSet events) {
  Json out = Json::array();
  for (unsigned i = 0; i < kEventCount; ++i)
    if (events.has(static_cast<EventKind>(i))) out.push_back(name_of(static_cast<EventKind>(i)));
  return out;
}

Json grant_json(const core::Grant& grant) {
  return Json{{"role", name_of(grant.role)},
              {"commands", names(grant.commands)},
              {"events", names(grant.events)},
              {"priority", grant.priority},
              {"deadline_ms", grant.deadline.count()},
              {"default", name_of(grant.default_action)},
              {"strikes", grant.strikes_max},
              {"pause_max_ms", grant.pause_max.count()},
              {"unconditional_writes", grant.unconditional_writes},
              {"quota",
               {{"requests", grant.quota.requests_max},
                {"queue_bytes", grant.quota.queue_bytes_max},
                {"pages", grant.quota.pages_max},
                {"msrs", grant.quota.msrs_max},
                {"patches", grant.quota.patches_max},
                {"filters", grant.quota.filters_max},
                {"attachments", grant.quota.attachments_max}}}};
}

std::string list_text(const std::vector<std::uint32_t>& values) {
  std::string out;
  for (const auto value : values) out += (out.empty() ? "" : ", ") + std::to_string(value);
  return out.empty() ? "none" : out;
}

bool holds(const std::vector<std::uint32_t>& wanted, const std::vector<std::uint32_t>& values) {
  return std::ranges::any_of(values, [&](auto value) { return std::ranges::find(wanted, value) != wanted.end(); });
}

std::vector<std::uint32_t> list_of(const std::optional<std::uint32_t>& value) {
  return value ? std::vector<std::uint32_t>{*value} : std::vector<std::uint32_t>{};
}

/// The criteria of a rule that the peer does not meet, in words; empty: all are met. Agrees with core::matches().
std::string peer_misses(const core::Rule& rule, const core::Peer& peer) {
  if (rule.any_peer) return {};
  if (rule.uids.empty() && rule.gids.empty() && rule.cids.empty()) return "the rule names nobody";
  std::string out;
  const auto look = [&](const char* what, const auto& wanted, const std::vector<std::uint32_t>& values) {
    if (wanted.empty() || holds(wanted, values)) return;
    out +=
        (out.empty() ? "" : "; ") + std::string(what) + " " + list_text(values) + " is not among " + list_text(wanted);
  };
  look("uid", rule.uids, list_of(peer.uid));
  look("gid", rule.gids, peer.gids);
  look("cid", rule.cids, list_of(peer.cid));
  return out;
}

bool guest_listed(const core::Rule& rule, const std::string& name, const Uuid& uuid) {
  return rule.guests.empty() || std::ranges::any_of(rule.guests, [&](const std::string& pattern) {
           return core::matches_pattern(pattern, name) || core::matches_pattern(pattern, to_string(uuid));
         });
}

std::string patterns_text(const std::vector<std::string>& patterns) {
  std::string out;
  for (const auto& pattern : patterns) out += (out.empty() ? "" : ", ") + pattern;
  return out;
}

Answer answered(const Json& body) {
  return {200, body.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n", "application/json", {}};
}

}  // namespace

Result<PolicyQuestion, std::string> parse_policy_question(std::string_view query) {
  PolicyQuestion out;
  while (!query.empty()) {
    const std::size_t end = std::min(query.find('&'), query.size());
    const std::string_view pair = query.substr(0, end);
    query.remove_prefix(std::min(end + 1, query.size()));
    const std::size_t equals = std::min(pair.find('='), pair.size());
    const std::string key(pair.substr(0, equals));
    const auto value = percent_decoded(pair.substr(std::min(equals + 1, pair.size())));
    if (!value) return std::string("% in a query is followed by two hexadecimal digits");
    if (key == "uid" || key == "gid" || key == "cid") {
      const auto number = number_of(*value);
      if (!number) return key + "= needs a number, not " + quoted(*value);
      if (key == "uid") out.peer.uid = number;
      if (key == "gid") out.peer.gids.push_back(*number);
      if (key == "cid") out.peer.cid = number;
    } else if (key == "guest") {
      out.guest = *value;
    } else if (key == "command") {
      out.command = command_named(*value);
      if (!out.command) return "there is no command " + quoted(*value);
    } else if (key == "event") {
      out.event = event_named(*value);
      if (!out.event) return "there is no event " + quoted(*value);
    } else {
      return "there is no parameter " + quoted(key) + " here; there are: uid, gid, cid, guest, command, event";
    }
  }
  if (out.guest.empty()) return std::string("guest= needs a name or a UUID");
  return out;
}

Json policy_json(const core::Policy& policy) {
  Json rules = Json::array();
  for (const auto& rule : policy.rules) {
    Json match = "*";
    if (!rule.any_peer) match = Json{{"uid", rule.uids}, {"gid", rule.gids}, {"cid", rule.cids}};
    rules.push_back(
        {{"name", rule.grant.rule}, {"match", match}, {"guests", rule.guests}, {"grant", grant_json(rule.grant)}});
  }
  return Json{{"schema", 1}, {"rules", std::move(rules)}};
}

Json explain_policy(const core::Policy& policy, const PolicyQuestion& question, const Uuid& uuid,
                    const std::string& name) {
  const core::Grant* grant = nullptr;
  Json rules = Json::array();
  for (const auto& rule : policy.rules) {
    std::string why = peer_misses(rule, question.peer);
    if (why.empty() && !guest_listed(rule, name, uuid))
      why = "guest " + quoted(name) + " is not among " + patterns_text(rule.guests);
    const bool matches = why.empty();
    if (grant != nullptr) {
      why = matches ? "matches too, but an earlier rule decides" : "an earlier rule decides";
    } else if (matches) {
      why = "the first rule that matches peer and guest";
    }
    rules.push_back({{"name", rule.grant.rule}, {"decides", matches && grant == nullptr}, {"why", why}});
    if (matches && grant == nullptr) grant = &rule.grant;
  }

  bool allowed = grant != nullptr;
  std::string text = "No rule matches: no access. ";
  text += core::may_connect(policy, question.peer)
              ? "A control connection is open to this peer, and does not show the guest."
              : "Not even a control connection is open to this peer.";
  Json asked = Json::object();
  if (question.command) asked["command"] = name_of(*question.command);
  if (question.event) asked["event"] = name_of(*question.event);
  if (grant != nullptr) {
    text = "Rule " + quoted(grant->rule) + " decides.";
    if (question.command) {
      allowed = grant->commands.has(*question.command);
      text +=
          " Its commands " + std::string(allowed ? "have " : "lack ") + std::string(name_of(*question.command)) + ".";
    }
    if (question.event) {
      allowed = grant->events.has(*question.event);
      text += " Its events " + std::string(allowed ? "have " : "lack ") + std::string(name_of(*question.event)) +
              (allowed ? ", as " + std::string(name_of(grant->role)) + "." : ".");
    }
  }
  Json peer{{"uid", nullptr}, {"gid", question.peer.gids}, {"cid", nullptr}};
  if (question.peer.uid) peer["uid"] = *question.peer.uid;
  if (question.peer.cid) peer["cid"] = *question.peer.cid;
  Json out{{"schema", 1},  {"allowed", allowed}, {"text", text},    {"guest", question.guest},
           {"peer", peer}, {"asked", asked},     {"rule", nullptr}, {"grant", nullptr}};
  if (grant != nullptr) {
    out["rule"] = grant->rule;
    out["grant"] = grant_json(*grant);
  }
  out["rules"] = std::move(rules);
  return out;
}

bool is_policy_target(std::string_view target) { return target.substr(0, target.find('?')) == "/v1/policy"; }

Answer policy_answer(std::string_view method, std::string_view target, std::string_view body, io::Broker& broker) {
  constexpr std::chrono::milliseconds kTimeout{1000};
  return policy_answer(method, target, body,
                       PolicySources{[&] { return broker.policy(kTimeout); }, [&] { return broker.guests(kTimeout); }});
}

Answer policy_answer(std::string_view method, std::string_view target, std::string_view body,
                     const PolicySources& sources) {
  if (method != "GET" && method != "POST") {
    Answer answer = error_answer(405, "this method is not served here, but GET, POST");
    answer.allow = "GET, POST";
    return answer;
  }
  if (method == "GET" && !body.empty()) return error_answer(400, "this request takes no body");
  const std::size_t mark = std::min(target.find('?'), target.size());
  const std::string_view query = target.substr(std::min(mark + 1, target.size()));

  std::shared_ptr<const core::Policy> policy;
  if (method == "POST") {
    auto config = parse_config(body, default_config(::geteuid(), std::thread::hardware_concurrency()),
                               CookieFiles::Leave);
    if (!config) {
      Json refused = error_json(422, config.error().text);
      refused["error"]["path"] = config.error().path;
      Answer answer = answered(refused);
      answer.status = 422;
      return answer;
    }
    policy = std::make_shared<const core::Policy>(std::move(config->settings.policy));
  } else {
    policy = sources.running();
    if (!policy) return error_answer(503, "kvmid does not answer in time");
  }
  if (query.empty()) return answered(policy_json(*policy));

  const auto question = parse_policy_question(query);
  if (!question) return error_answer(400, question.error());
  Uuid uuid = parse_uuid(question->guest).value_or(Uuid{});
  std::string name = question->guest;
  for (const auto& guest : sources.guests()) {
    if (guest.uuid != uuid && guest.name != question->guest) continue;
    uuid = guest.uuid;
    name = guest.name;
    break;
  }
  return answered(explain_policy(*policy, *question, uuid, name));
}

}  // namespace kvmid::app
