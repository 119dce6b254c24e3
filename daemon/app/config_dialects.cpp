// SPDX-License-Identifier: GPL-2.0-or-later
#include "daemon/app/config_dialects.h"

#include <unistd.h>

#include <algorithm>
#include <set>

#include "daemon/app/cookie_file.h"
#include "protocol/kvmi.h"

namespace kvmid::app {
namespace {

constexpr std::uint64_t kAnyVsock = 0xffffffffU;  // VMADDR_CID_ANY and VMADDR_PORT_ANY

io::HypervisorPeers read_peers(ObjectReader& reader) {
  io::HypervisorPeers out;
  if (const Json* value = reader.find("uid")) out.uids = ids_of(*value, reader.path_of("uid"), IdNames::Users);
  if (const Json* value = reader.find("gid")) out.gids = ids_of(*value, reader.path_of("gid"), IdNames::Groups);
  if (const Json* value = reader.find("cid")) out.cids = ids_of(*value, reader.path_of("cid"), IdNames::None);
  return out;
}

io::HypervisorPeers read_bound_to(const Json& node, const std::string& path) {
  ObjectReader reader(node, path);
  auto out = read_peers(reader);
  reader.finish();
  if (out.uids.empty() && out.gids.empty() && out.cids.empty()) fail(path, "names nobody; give uid, gid or cid");
  return out;
}

std::vector<std::string> read_patterns(ObjectReader& reader) {
  const Json* value = reader.find("guests");
  if (value == nullptr) return {"*"};
  const std::string path = reader.path_of("guests");
  auto out = texts_of(*value, path);
  if (out.empty()) fail(path, "names no guest; give names, UUIDs or \"*\"");
  for (std::size_t i = 0; i < out.size(); ++i)
    if (out[i].empty()) fail(path + "/" + std::to_string(i), "must not be empty");
  return out;
}

/// `first` is a word that stands for no dialect; empty: there is none.
std::optional<kvmi1::DialectId> dialect_of(const Json& value, const std::string& path, const std::string& first) {
  if (value.is_string()) {
    const auto text = value.get<std::string>();
    if (!first.empty() && text == first) return std::nullopt;
    if (const auto dialect = kvmi1::dialect_named(text)) return dialect;
  }
  std::string list = first;
  for (unsigned i = 0; i < kvmi1::kDialectCount; ++i)
    list += (list.empty() ? "" : ", ") + std::string(name_of(static_cast<kvmi1::DialectId>(i)));
  fail(path, "must be one of " + list + ", is " + shown(value));
}

std::optional<io::CookieHash> read_cookie(ObjectReader& reader, CookieFiles cookies) {
  const Json* value = reader.find("cookie_file");
  if (value == nullptr) return std::nullopt;
  const std::string path = reader.path_of("cookie_file");
  const std::string file = text_of(*value, path);
  if (file.empty() || file.front() != '/') fail(path, "must be an absolute path, is " + shown(*value));
  if (cookies == CookieFiles::Leave) return std::nullopt;
  const auto hash = read_cookie_file(file, cookies, ::geteuid());
  if (!hash) fail(path, hash.error());
  return *hash;
}

io::GuestRule read_guest_rule(const Json& node, const std::string& path, CookieFiles cookies) {
  io::GuestRule rule;
  ObjectReader reader(node, path);
  rule.guests = read_patterns(reader);
  if (const Json* value = reader.find("dialect")) rule.dialect = dialect_of(*value, reader.path_of("dialect"), "auto");
  if (const Json* value = reader.find("bound_to")) rule.bound_to = read_bound_to(*value, reader.path_of("bound_to"));
  rule.cookie = read_cookie(reader, cookies);
  reader.finish();
  return rule;
}

std::string dialed_name_of(const Json& value, const std::string& path) {
  auto name = text_of(value, path);
  const bool printable = std::ranges::all_of(name, [](char c) { return c >= 0x20 && c <= 0x7e; });
  if (name.empty() || name.size() >= KVMI_NAME_MAX || !printable)
    fail(path,
         "must have 1 to " + std::to_string(KVMI_NAME_MAX - 1) + " printable ASCII characters, is " + shown(value));
  return name;
}

void read_vsock(const Json& node, const std::string& path, io::DialedAgent& out) {
  ObjectReader reader(node, path);
  for (const auto& [key, into] : {std::pair{"cid", &out.vsock_cid}, std::pair{"port", &out.vsock_port}}) {
    const Json* value = reader.find(key);
    if (value == nullptr) fail(path, std::string("the key \"") + key + "\" is missing");
    // CID 0 is the hypervisor itself, where no tool listens; port 0 is a value that was left out rather than a tool's.
    *into = static_cast<std::uint32_t>(number_of(*value, reader.path_of(key), 1, kAnyVsock - 1));
  }
  reader.finish();
}

io::DialedAgent read_dialed_agent(const Json& node, const std::string& path, CookieFiles cookies) {
  io::DialedAgent out;
  ObjectReader reader(node, path);
  const Json* name = reader.find("name");
  if (name == nullptr) fail(path, "the key \"name\" is missing: what shall logs and lists call it?");
  out.name = dialed_name_of(*name, reader.path_of("name"));

  const Json* unix_path = reader.find("unix");
  const Json* vsock = reader.find("vsock");
  if (unix_path == nullptr && vsock == nullptr) fail(path, "give \"unix\" or \"vsock\": where does it listen?");
  if (unix_path != nullptr && vsock != nullptr) fail(path, "give \"unix\" or \"vsock\", not both");
  if (unix_path != nullptr) out.unix_path = socket_path_of(*unix_path, reader.path_of("unix"), "an absolute path");
  if (vsock != nullptr) read_vsock(*vsock, reader.path_of("vsock"), out);

  const Json* dialect = reader.find("dialect");
  if (dialect == nullptr) fail(path, "the key \"dialect\" is missing: a tool does not say which one it speaks");
  out.dialect = *dialect_of(*dialect, reader.path_of("dialect"), "");
  out.guests = read_patterns(reader);
  if (reader.find("role") != nullptr) read_choice(reader, "role", {Role::Decider, Role::Observer}, out.role.emplace());
  if (reader.find("priority") != nullptr) reader.number("priority", out.priority.emplace(), 0, 0xffffffffU);
  out.cookie = read_cookie(reader, cookies);
  std::uint64_t redial_ms = static_cast<std::uint64_t>(out.redial.count());
  reader.number("redial_ms", redial_ms, 10, 30000);
  out.redial = std::chrono::milliseconds(redial_ms);
  reader.finish();
  return out;
}

}  // namespace

void read_hypervisors(const Json& node, const std::string& path, CookieFiles cookies, io::HypervisorPeers& peers,
                      std::vector<io::GuestRule>& rules) {
  ObjectReader reader(node, path);
  auto named = read_peers(reader);
  const Json* list = reader.find("guests");
  rules.clear();
  if (list != nullptr) {
    const std::string at = reader.path_of("guests");
    if (!list->is_array()) fail(at, "must be a list of rules, is " + shown(*list));
    for (std::size_t i = 0; i < list->size(); ++i)
      rules.push_back(read_guest_rule((*list)[i], at + "/" + std::to_string(i), cookies));
  }
  reader.finish();
  // Rules for some guests alone must not lock out those who may bring any.
  const bool says_who = node.contains("uid") || node.contains("gid") || node.contains("cid");
  if (says_who || list == nullptr) peers = std::move(named);
}

void read_dialed_agents(const Json& node, const std::string& path, CookieFiles cookies,
                        std::vector<io::DialedAgent>& out) {
  if (!node.is_array()) fail(path, "must be a list of tools, is " + shown(node));
  out.clear();
  std::set<std::string> names;
  for (std::size_t i = 0; i < node.size(); ++i) {
    const std::string at = path + "/" + std::to_string(i);
    out.push_back(read_dialed_agent(node[i], at, cookies));
    if (!names.insert(out.back().name).second)
      fail(at + "/name", "another one has this name: \"" + out.back().name + "\"");
  }
}

}  // namespace kvmid::app
