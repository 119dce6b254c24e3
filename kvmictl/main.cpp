// SPDX-License-Identifier: GPL-2.0-or-later
//
// kvmictl: parses, then either asks the admin socket or is an agent.

#include <cstdio>
#include <exception>
#include <string>
#include <vector>

#include "client/guest_names.h"
#include "kvmictl/admin_client.h"
#include "kvmictl/arguments.h"
#include "kvmictl/daemon_commands.h"
#include "kvmictl/doctor.h"
#include "kvmictl/filter_check.h"
#include "kvmictl/guest_commands.h"
#include "kvmictl/render.h"
#include "kvmictl/table.h"
#include "kvmictl/top.h"
#include "protocol/handshake.h"

namespace kvmid::ctl {
namespace {

constexpr client::Millis kAdminTimeout{5000};

using Answered = Result<Json, client::ClientError>;

/// One guest: the list tells which uuid is meant, then the guest itself is asked for.
Answered one_guest(const Arguments& arguments) {
  const auto list = admin_get(arguments.admin_socket, "/v1/guests", kAdminTimeout);
  if (!list) return list.error();
  const auto uuid = client::find_guest(guest_names(*list), arguments.guest);
  if (!uuid) return uuid.error();
  return admin_get(arguments.admin_socket, "/v1/guests/" + to_string(*uuid), kAdminTimeout);
}

/// One agent: its entry in the list, and the guest that it is attached to.
int show_agent(const Arguments& arguments, std::size_t width) {
  const auto list = admin_get(arguments.admin_socket, "/v1/agents", kAdminTimeout);
  if (!list) return explain(list.error());
  for (const auto& agent : child(*list, "agents").is_array() ? child(*list, "agents") : Json::array()) {
    if (number(agent, "id") != arguments.agent) continue;
    Json out{{"schema", 1}};
    out.update(agent);
    Json guest;
    if (child(agent, "guest").is_string()) {
      auto answer = admin_get(arguments.admin_socket, "/v1/guests/" + field(agent, "guest"), kAdminTimeout);
      if (answer) guest = std::move(*answer);  // without it the agent itself is still worth showing
    }
    const std::string text = arguments.json ? out.dump(2, ' ', false, Json::error_handler_t::replace) + "\n"
                                            : render_agent(agent, guest, width);
    std::fwrite(text.data(), 1, text.size(), stdout);
    return kOk;
  }
  std::fprintf(stderr, "kvmictl: there is no agent %u; `kvmictl agents` lists those that are connected\n",
               arguments.agent);
  return kFailed;
}

template <class Render>
int show(const Arguments& arguments, Answered answer, Render render) {
  if (!answer) return explain(answer.error());
  std::string text;
  if (arguments.json) {
    answer->emplace("schema", 1);  // an older kvmid may leave it out
    text = answer->dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
  } else {
    text = render(*answer);
  }
  std::fwrite(text.data(), 1, text.size(), stdout);
  return kOk;
}

int run(const Arguments& arguments) {
  const std::size_t width = terminal_width();
  const auto get = [&](const char* target) { return admin_get(arguments.admin_socket, target, kAdminTimeout); };
  switch (arguments.subcommand) {
    case Subcommand::Guests:
      return show(arguments, get("/v1/guests"), [&](const Json& json) { return render_guests(json, width); });
    case Subcommand::Guest:
      return show(arguments, one_guest(arguments), [&](const Json& json) { return render_guest(json, width); });
    case Subcommand::Agents:
      return show(arguments, get("/v1/agents"), [&](const Json& json) { return render_agents(json, width); });
    case Subcommand::Agent:
      return show_agent(arguments, width);
    case Subcommand::Top:
      return top(arguments);
    case Subcommand::Status:
      return show(arguments, get("/v1/status"), [&](const Json& json) { return render_status(json); });
    case Subcommand::Events:
      return events(arguments);
    case Subcommand::Regs:
      return regs(arguments);
    case Subcommand::MemRead:
      return mem_read(arguments);
    case Subcommand::MemDump:
      return mem_dump(arguments);
    case Subcommand::MemSearch:
      return mem_search(arguments);
    case Subcommand::MemWatch:
      return mem_watch(arguments);
    case Subcommand::MemTranslate:
      return mem_translate(arguments);
    case Subcommand::MemWrite:
      return mem_write(arguments);
    case Subcommand::Disas:
      return disas(arguments);
    case Subcommand::Crash:
      return crash(arguments);
    case Subcommand::PolicyCheck:
      return policy_check(arguments);
    case Subcommand::Reload:
      return reload(arguments);
    case Subcommand::LogLevel:
      return log_level(arguments);
    case Subcommand::FilterCheck:
      return filter_check(arguments);
    case Subcommand::Doctor:
      return doctor(arguments);
    case Subcommand::Pause:
      return pause(arguments);
    case Subcommand::Resume:
      return resume(arguments);
  }
  return kFailed;
}

}  // namespace
}  // namespace kvmid::ctl

int main(int argc, char** argv) {
  try {
    const auto parsed = kvmid::ctl::parse(std::vector<std::string>(argv + 1, argv + argc));
    if (const auto* answer = std::get_if<kvmid::ctl::Answer>(&parsed)) {
      std::fputs(answer->out.c_str(), stdout);
      std::fputs(answer->error.c_str(), stderr);
      return answer->exit_code;
    }
    return kvmid::ctl::run(std::get<kvmid::ctl::Arguments>(parsed));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "kvmictl: %s\n", error.what());
    return kvmid::ctl::kFailed;
  }
}
