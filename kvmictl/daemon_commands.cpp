// SPDX-License-Identifier: GPL-2.0-or-later
#include "kvmictl/daemon_commands.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>

#include "kvmictl/admin_client.h"
#include "kvmictl/guest_commands.h"
#include "kvmictl/table.h"

namespace kvmid::ctl {

using client::ClientErrc;
using client::ClientError;

namespace {

constexpr client::Millis kAdminTimeout{5000};
constexpr std::size_t kConfigMax = 8U << 20U;

void print(const std::string& text) { std::fwrite(text.data(), 1, text.size(), stdout); }

int print_json(Json answer) {
  answer.emplace("schema", 1);
  print(answer.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
  return kOk;
}

Result<std::string, ClientError> read_config(const std::string& file) {
  std::ifstream in(file, std::ios::binary);
  std::string text(kConfigMax + 1, '\0');
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (!in.is_open() || in.bad()) {
    return ClientError{ClientErrc::System, ErrorCode::None, "cannot read " + file + ": " + std::strerror(errno), errno};
  }
  text.resize(static_cast<std::size_t>(in.gcount()));
  if (text.empty() || text.size() > kConfigMax) {
    return ClientError{ClientErrc::System, ErrorCode::None,
                       file + (text.empty() ? " is empty" : " is larger than 8 MiB"), 0};
  }
  return text;
}

std::string limits_text(const Json& grant) {
  const Json& quota = child(grant, "quota");
  return labelled("  priority", field(grant, "priority")) +
         labelled("  deadline", field(grant, "deadline_ms") + " ms") +
         labelled("  default", field(grant, "default") + ", observer after " + field(grant, "strikes") + " misses") +
         labelled("  pause", field(grant, "pause_max_ms") + " ms at most") +
         labelled("  writes", child(grant, "unconditional_writes") == Json(false)
                                  ? "with a cookie or the expected bytes only"
                                  : "with or without a condition") +
         labelled("  quota", field(quota, "requests") + " requests, " + field(quota, "queue_bytes") +
                                 " queued bytes, " + field(quota, "pages") + " pages, " + field(quota, "msrs") +
                                 " MSRs, " + field(quota, "patches") + " patches, " + field(quota, "filters") +
                                 " filters, " + field(quota, "attachments") + " attachments");
}

}  // namespace

std::string policy_target(const Arguments& arguments) {
  PolicyQuestion ask = arguments.policy;
  if (!ask.uid && ask.gids.empty() && !ask.cid) {
    ask.uid = ::geteuid();
    std::vector<gid_t> groups(static_cast<std::size_t>(std::max(0, ::getgroups(0, nullptr))));
    const int count = ::getgroups(static_cast<int>(groups.size()), groups.data());
    ask.gids.push_back(::getegid());
    for (int i = 0; i < count; ++i) ask.gids.push_back(groups[static_cast<std::size_t>(i)]);
  }
  std::string out = "/v1/policy?guest=" + query_escaped(arguments.guest);
  if (ask.uid) out += "&uid=" + std::to_string(*ask.uid);
  for (const auto gid : ask.gids) out += "&gid=" + std::to_string(gid);
  if (ask.cid) out += "&cid=" + std::to_string(*ask.cid);
  if (!ask.command.empty()) out += "&command=" + query_escaped(ask.command);
  if (!ask.event.empty()) out += "&event=" + query_escaped(ask.event);
  return out;
}

std::string render_policy(const Json& answer, std::size_t width) {
  std::string out;
  const Json& asked = child(answer, "asked");
  const std::string what = child(asked, "command").is_string() ? "command " + field(asked, "command")
                           : child(asked, "event").is_string() ? "event " + field(asked, "event")
                                                               : "attaching";
  out += printable(what + " on guest " + field(answer, "guest") + ": " +
                   (is_true(answer, "allowed") ? "allowed" : "not allowed")) +
         "\n" + printable(field(answer, "text")) + "\n";
  const Json& rules = child(answer, "rules");
  if (rules.is_array() && !rules.empty()) {
    Table table({{"RULE", Table::Align::Left, 8}, {"DECIDES"}, {"WHY", Table::Align::Left, 12}});
    for (const auto& rule : rules) table.add({field(rule, "name"), field(rule, "decides"), field(rule, "why")});
    out += "\n" + table.text(width);
  }
  const Json& grant = child(answer, "grant");
  if (grant.is_object()) {
    out += "\nrule " + printable(field(answer, "rule")) + " gives\n" + labelled("  role", field(grant, "role")) +
           labelled("  commands", joined(child(grant, "commands"), " "), width) +
           labelled("  events", joined(child(grant, "events"), " "), width) + limits_text(grant);
  }
  return out;
}

int policy_check(const Arguments& arguments) {
  AdminRequest request{.target = policy_target(arguments)};
  if (!arguments.file.empty()) {
    auto text = read_config(arguments.file);
    if (!text) return explain(text.error());
    request.method = "POST";
    request.body = std::move(*text);
  }
  const auto answer = admin_call(arguments.admin_socket, request, kAdminTimeout);
  if (!answer) return explain(answer.error());
  if (arguments.json) {
    print_json(*answer);
  } else {
    print(render_policy(*answer, terminal_width()));
  }
  return is_true(*answer, "allowed") ? kOk : kRefused;
}

int reload(const Arguments& arguments) {
  const auto answer = admin_call(arguments.admin_socket, {.method = "POST", .target = "/v1/reload"}, kAdminTimeout);
  if (!answer) return explain(answer.error());
  if (arguments.json) return print_json(*answer);
  print("reloaded\n");
  return kOk;
}

int log_level(const Arguments& arguments) {
  const auto answer = admin_call(
      arguments.admin_socket,
      {.method = "PUT", .target = "/v1/log-level", .body = Json{{"level", arguments.level}}.dump()}, kAdminTimeout);
  if (!answer) return explain(answer.error());
  if (arguments.json) return print_json(*answer);
  print("logging at " + arguments.level + "\n");
  return kOk;
}

}  // namespace kvmid::ctl
