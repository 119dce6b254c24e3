// SPDX-License-Identifier: GPL-2.0-or-later
#include "daemon/app/config.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <set>
#include <sstream>

#include "daemon/app/config_dialects.h"
#include "daemon/app/config_reader.h"
#include "protocol/message.h"

namespace kvmid::app {
namespace {

constexpr std::size_t kFileMax = 8U << 20U;
constexpr std::array<std::string_view, 7> kLogLevels{"trace", "debug", "info", "warn", "error", "critical", "off"};

constexpr std::array kCommands{
    CommandId::GetVersion,      CommandId::GetGuests,     CommandId::GetGuestInfo,    CommandId::PauseVcpu,
    CommandId::GetRegisters,    CommandId::SetRegisters,  CommandId::ShutdownGuest,   CommandId::GetCpuid,
    CommandId::GetPageAccess,   CommandId::SetPageAccess, CommandId::InjectException, CommandId::ReadPhysical,
    CommandId::WritePhysical,   CommandId::GrantMemory,   CommandId::ControlEvents,   CommandId::ControlCr,
    CommandId::ControlMsr,      CommandId::TranslateGva,  CommandId::ControlSinglestep, CommandId::SetFilter,
    CommandId::GetXsave,        CommandId::SetXsave,      CommandId::GetXcr,          CommandId::GetMemoryMap};
static_assert(kCommands.size() == std::variant_size_v<Command>);

void read_listen(const Json& node, const std::string& path, bool with_vsock, io::ListenAt& out) {
  ObjectReader reader(node, path);
  if (const Json* value = reader.find("unix")) {
    const std::string at = reader.path_of("unix");
    out.unix_path.clear();
    if (!value->is_null()) out.unix_path = socket_path_of(*value, at, "an absolute path or null");
  }
  if (const Json* value = reader.find("mode")) {
    const std::string at = reader.path_of("mode");
    const std::string mode = text_of(*value, at);
    if (mode.size() < 3 || mode.size() > 4 || mode.find_first_not_of("01234567") != std::string::npos ||
        (mode.size() == 4 && mode.front() != '0'))
      fail(at, "must be an octal mode such as \"0660\", is " + shown(*value));
    out.mode = static_cast<std::uint32_t>(std::stoul(mode, nullptr, 8));
  }
  reader.text("group", out.group);
  if (with_vsock) {
    if (const Json* value = reader.find("vsock_port")) {
      out.vsock_port.reset();
      if (!value->is_null())
        out.vsock_port = static_cast<std::uint32_t>(number_of(*value, reader.path_of("vsock_port"), 0, 0xfffffffeU));
    }
  }
  reader.finish();
}

void read_listens(const Json& node, const std::string& path, Config& config) {
  ObjectReader reader(node, path);
  if (const Json* v = reader.find("hypervisors")) read_listen(*v, path + "/hypervisors", true, config.settings.hypervisors);
  if (const Json* v = reader.find("agents")) read_listen(*v, path + "/agents", true, config.settings.agents);
  if (const Json* v = reader.find("admin")) read_listen(*v, path + "/admin", false, config.admin);
  reader.finish();
  std::set<std::string> seen;
  for (const auto* at : {&config.settings.hypervisors, &config.settings.agents, &config.admin}) {
    if (!at->unix_path.empty() && !seen.insert(at->unix_path).second)
      fail(path, "two listeners have the same path \"" + at->unix_path + "\"");
  }
  const auto& hypervisors = config.settings.hypervisors.vsock_port;
  if (hypervisors && hypervisors == config.settings.agents.vsock_port)
    fail(path, "two listeners have the same vsock port " + std::to_string(*hypervisors));
}

void read_limits(const Json& node, const std::string& path, io::Limits& out) {
  ObjectReader reader(node, path);
  std::uint64_t hello_ms = static_cast<std::uint64_t>(out.hello_timeout.count());
  std::uint64_t command_ms = static_cast<std::uint64_t>(out.command_timeout.count());
  reader.number("guests_max", out.guests_max, 1, 65536);
  reader.number("connections_max", out.connections_max, 1, 1000000);
  reader.number("hello_timeout_ms", hello_ms, 10, 600000);
  reader.number("command_timeout_ms", command_ms, 100, 3600000);
  reader.finish();
  out.hello_timeout = std::chrono::milliseconds(hello_ms);
  out.command_timeout = std::chrono::milliseconds(command_ms);
}

void read_ids(ObjectReader& reader, const char* key, IdNames names, std::vector<std::uint32_t>& out) {
  if (const Json* value = reader.find(key)) out = ids_of(*value, reader.path_of(key), names);
}

void read_match(const Json& node, const std::string& path, core::Rule& rule) {
  if (node == "*") {
    rule.any_peer = true;
    return;
  }
  if (!node.is_object()) fail(path, "must be \"*\" or an object with uid, gid or cid, is " + shown(node));
  ObjectReader reader(node, path);
  read_ids(reader, "uid", IdNames::Users, rule.uids);
  read_ids(reader, "gid", IdNames::Groups, rule.gids);
  read_ids(reader, "cid", IdNames::None, rule.cids);
  reader.finish();
  if (rule.uids.empty() && rule.gids.empty() && rule.cids.empty())
    fail(path, "names nobody; give uid, gid or cid, or \"*\" for everybody");
}

template <class Id, class List>
void read_names(ObjectReader& reader, const char* key, const List& all, const char* what, std::uint64_t& bits) {
  const Json* value = reader.find(key);
  if (value == nullptr) return;
  bits = 0;
  const auto names = texts_of(*value, reader.path_of(key));
  for (std::size_t i = 0; i < names.size(); ++i) {
    bool found = false;
    for (const Id id : all) {
      if (names[i] != "*" && names[i] != name_of(id)) continue;
      bits |= std::uint64_t{1} << static_cast<unsigned>(id);
      found = true;
    }
    if (found) continue;
    std::string list;
    for (const Id id : all) list += ", " + std::string(name_of(id));
    fail(reader.path_of(key) + "/" + std::to_string(i),
         std::string("is no ") + what + ": " + shown(names[i]) + "; there are: *" + list);
  }
}

std::vector<EventKind> all_events() {
  std::vector<EventKind> out;
  for (unsigned i = 0; i < kEventCount; ++i) out.push_back(static_cast<EventKind>(i));
  return out;
}

void read_quota(const Json& node, const std::string& path, core::Quota& out) {
  ObjectReader reader(node, path);
  reader.number("requests", out.requests_max, 1, 1024);
  reader.number("queue_bytes", out.queue_bytes_max, 65536, 1U << 30U);  // no less than one message of the largest size
  reader.number("pages", out.pages_max, 0, 0xffffffffU);
  reader.number("msrs", out.msrs_max, 0, 0xffffffffU);
  reader.number("patches", out.patches_max, 0, 0xffffffffU);
  reader.number("filters", out.filters_max, 0, 0xffffffffU);
  reader.number("attachments", out.attachments_max, 1, 65536);
  reader.finish();
}

core::Rule read_rule(const Json& node, const std::string& path, std::size_t number) {
  core::Rule rule;
  core::Grant& grant = rule.grant;
  ObjectReader reader(node, path);
  grant.rule = "rule " + std::to_string(number);
  reader.text("name", grant.rule);
  const Json* match = reader.find("match");
  if (match == nullptr) fail(path, "the key \"match\" is missing: who is the rule for?");
  read_match(*match, path + "/match", rule);
  if (const Json* guests = reader.find("guests")) rule.guests = texts_of(*guests, path + "/guests");
  if (rule.guests.empty()) rule.guests = {"*"};
  grant.commands.bits = KVMI_COMMAND_BIT(KVMI_MSG_GET_VERSION) | KVMI_COMMAND_BIT(KVMI_MSG_GET_GUEST_INFO);
  read_names<CommandId>(reader, "commands", kCommands, "command", grant.commands.bits);
  read_names<EventKind>(reader, "events", all_events(), "event", grant.events.bits);
  read_choice(reader, "role", {Role::Decider, Role::Observer}, grant.role);
  read_choice(reader, "default", {Action::Allow, Action::Retry, Action::Skip, Action::Crash}, grant.default_action);
  reader.number("priority", grant.priority, 0, 0xffffffffU);
  std::uint64_t deadline_ms = static_cast<std::uint64_t>(grant.deadline.count());
  std::uint64_t pause_ms = static_cast<std::uint64_t>(grant.pause_max.count());
  reader.number("deadline_ms", deadline_ms, 1, 60000);
  reader.number("pause_max_ms", pause_ms, 1, 3600000);
  grant.deadline = std::chrono::milliseconds(deadline_ms);
  grant.pause_max = std::chrono::milliseconds(pause_ms);
  reader.number("strikes", grant.strikes_max, 1, 1000000);
  reader.flag("unconditional_writes", grant.unconditional_writes);
  if (const Json* quota = reader.find("quota")) read_quota(*quota, path + "/quota", grant.quota);
  reader.finish();
  return rule;
}

void read_policy(const Json& node, const std::string& path, core::Policy& out) {
  if (!node.is_array()) fail(path, "must be a list of rules, is " + shown(node));
  out.rules.clear();
  for (std::size_t i = 0; i < node.size(); ++i) out.rules.push_back(read_rule(node[i], path + "/" + std::to_string(i), i));
}

void read_log(const Json& node, const std::string& path, LogConfig& out) {
  ObjectReader reader(node, path);
  if (const Json* level = reader.find("level")) {
    out.level = text_of(*level, reader.path_of("level"));
    if (!is_log_level(out.level))
      fail(reader.path_of("level"), "must be one of " + log_level_names() + ", is " + shown(*level));
  }
  if (const Json* file = reader.find("file")) {
    out.file.reset();
    if (!file->is_null()) out.file = text_of(*file, reader.path_of("file"));
  }
  reader.finish();
}

void read_audit(const Json& node, const std::string& path, AuditConfig& out) {
  ObjectReader reader(node, path);
  if (const Json* file = reader.find("file")) {
    out.file.reset();
    if (!file->is_null()) {
      out.file = text_of(*file, reader.path_of("file"));
      if (out.file->empty()) fail(reader.path_of("file"), "must be a path or null, is \"\"");
    }
  }
  reader.number("queue_max", out.queue_max, 16, 1000000);
  reader.finish();
}

Config read_root(const Json& root, const Config& defaults, CookieFiles cookies) {
  Config config = defaults;
  ObjectReader reader(root, "");
  reader.find("$schema");
  if (const Json* v = reader.find("listen")) read_listens(*v, "/listen", config);
  reader.number("shards", config.settings.shards, 0, 64);
  if (config.settings.shards == 0) config.settings.shards = defaults.settings.shards;
  if (const Json* v = reader.find("log")) read_log(*v, "/log", config.log);
  if (const Json* v = reader.find("audit")) read_audit(*v, "/audit", config.audit);
  if (const Json* v = reader.find("limits")) read_limits(*v, "/limits", config.settings.limits);
  io::Settings& settings = config.settings;
  if (const Json* v = reader.find("hypervisors"))
    read_hypervisors(*v, "/hypervisors", cookies, settings.hypervisor_peers, settings.guest_rules);
  if (const Json* v = reader.find("dial")) read_dialed_agents(*v, "/dial", cookies, settings.dialed_agents);
  if (const Json* v = reader.find("policy")) read_policy(*v, "/policy", config.settings.policy);
  reader.finish();
  return config;
}

}  // namespace

std::string describe(const ConfigError& error) {
  return error.path.empty() ? error.text : error.path + ": " + error.text;
}

bool is_log_level(std::string_view name) {
  return std::find(kLogLevels.begin(), kLogLevels.end(), name) != kLogLevels.end();
}

std::string log_level_names() {
  std::string list;
  for (const auto name : kLogLevels) list += (list.empty() ? "" : ", ") + std::string(name);
  return list;
}

Config default_config(std::uint32_t own_uid, unsigned cores) {
  Config config;
  use_runtime_dir(config, "/run/kvmid");
  config.settings.shards = std::clamp(cores, 1U, 4U);
  config.settings.hypervisor_peers.uids = {0};
  if (own_uid != 0) config.settings.hypervisor_peers.uids.push_back(own_uid);
  core::Rule rule;
  rule.uids = config.settings.hypervisor_peers.uids;
  rule.guests = {"*"};
  rule.grant.rule = "default";
  for (const CommandId id : kCommands) rule.grant.commands.add(id);
  rule.grant.events = kEveryEvent;
  rule.grant.role = Role::Decider;
  rule.grant.priority = 100;
  config.settings.policy.rules.push_back(std::move(rule));
  return config;
}

void use_runtime_dir(Config& config, const std::string& dir) {
  config.settings.hypervisors.unix_path = dir + "/hypervisor.sock";
  config.settings.agents.unix_path = dir + "/agent.sock";
  config.admin.unix_path = dir + "/admin.sock";
}

Result<Config, ConfigError> parse_config(std::string_view text, const Config& defaults, CookieFiles cookies) {
  try {
    return read_root(parse_strict(text), defaults, cookies);
  } catch (const ConfigFailure& failure) {
    return failure.error;
  }
}

Result<Config, ConfigError> load_config(const std::string& file, const Config& defaults, CookieFiles cookies) {
  std::ifstream in(file, std::ios::binary);
  if (!in) return ConfigError{"", "cannot open it: " + std::string(std::strerror(errno))};
  std::string text(kFileMax + 1, '\0');
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (in.bad()) return ConfigError{"", "cannot read it: " + std::string(std::strerror(errno))};
  text.resize(static_cast<std::size_t>(in.gcount()));
  if (text.size() > kFileMax) return ConfigError{"", "larger than 8 MiB"};
  return parse_config(text, defaults, cookies);
}

Result<Config, ConfigError> ConfigSource::load() const {
  Config config = defaults;
  if (!file.empty()) {
    auto loaded = load_config(file, defaults, cookies);
    if (!loaded) return loaded.error();
    config = std::move(*loaded);
  }
  if (!runtime_dir.empty()) use_runtime_dir(config, runtime_dir);
  if (!log_level.empty()) config.log.level = log_level;
  return config;
}

std::optional<ConfigError> needs_restart(const Config& running, const Config& next) {
  const char* path = nullptr;
  if (running.settings.hypervisors != next.settings.hypervisors) path = "/listen/hypervisors";
  else if (running.settings.agents != next.settings.agents) path = "/listen/agents";
  else if (running.admin != next.admin) path = "/listen/admin";
  else if (running.settings.shards != next.settings.shards) path = "/shards";
  else if (running.log.file != next.log.file) path = "/log/file";
  if (path == nullptr) return std::nullopt;
  return ConfigError{path, "cannot change while kvmid runs: needs a restart"};
}

}  // namespace kvmid::app
