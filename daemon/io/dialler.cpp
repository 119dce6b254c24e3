// SPDX-License-Identifier: GPL-2.0-or-later
#include "daemon/io/dialler.h"

#include <algorithm>
#include <boost/asio/post.hpp>
#include <cstring>

#include "daemon/io/dial.h"
#include "daemon/io/guest_rules.h"

namespace kvmid::io {

std::string address_of(const DialedAgent& agent) {
  if (!agent.unix_path.empty()) return "unix:" + agent.unix_path;
  return "vsock:" + std::to_string(agent.vsock_cid) + ":" + std::to_string(agent.vsock_port);
}

ByteBuffer qemu_handshake(kvmi1::DialectId dialect, const Uuid& uuid, std::string_view name, const GuestFacts& facts) {
  const bool has_max_gpa = dialect == kvmi1::DialectId::V12;
  kvmi_handshake wire{};
  const std::size_t size = has_max_gpa ? sizeof wire : offsetof(kvmi_handshake, max_gpa);
  wire.struct_size = static_cast<std::uint32_t>(size);
  std::copy(uuid.bytes.begin(), uuid.bytes.end(), wire.uuid);
  if (dialect != kvmi1::DialectId::V6) {  // QEMU of v6 leaves the rest zero
    wire.start_time = facts.start_time;
    copy_text(name, wire.name, sizeof wire.name);
  }
  if (has_max_gpa) wire.max_gpa = facts.max_gpa;
  const auto* bytes = reinterpret_cast<const std::byte*>(&wire);
  return {bytes, bytes + size};
}

bool same_secret(const CookieHash& a, const CookieHash& b) {
  unsigned difference = 0;
  for (std::size_t i = 0; i < a.size(); ++i) difference |= static_cast<unsigned>(a[i] ^ b[i]);
  return difference == 0;
}

Dialler::Dialler(boost::asio::io_context& context, const Settings& settings, const Services& services, Host host,
                 std::chrono::milliseconds answer_timeout)
    : context_(context),
      settings_(settings),
      services_(services),
      host_(std::move(host)),
      answer_timeout_(answer_timeout) {}

Dialler::~Dialler() { stop(); }

void Dialler::stop() {
  stopped_ = true;
  for (const auto& [key, dial] : dials_) dial->end({});
  dials_.clear();
}

void Dialler::guest_changed(const GuestChange& change) {
  if (stopped_) return;
  if (change.on) {
    const Guest& guest = online_[change.uuid] = Guest{change.name, change.facts};
    return match(change.uuid, guest);
  }
  online_.erase(change.uuid);
  // One that is attached ends with its connection, which may take as long as the tool wants to clean up.
  std::erase_if(dials_, [&](const auto& item) {
    const auto& dial = item.second;
    if (dial->uuid() != change.uuid || dial->attached()) return false;
    dial->end({});
    return true;
  });
}

void Dialler::match(const Uuid& uuid, const Guest& guest) {
  for (const auto& agent : settings_.dialed_agents) {
    if (!names_guest(agent.guests, guest.name, uuid)) continue;
    auto& dial = dials_[Key{agent.name, uuid}];
    if (dial) {
      dial->renew(guest);
    } else {
      dial = std::make_shared<Dial>(*this, agent, uuid, guest);
      dial->begin();
    }
  }
}

const DialedAgent* Dialler::find(std::string_view name) const {
  const auto& all = settings_.dialed_agents;
  const auto it = std::find_if(all.begin(), all.end(), [&](const DialedAgent& agent) { return agent.name == name; });
  return it == all.end() ? nullptr : &*it;
}

void Dialler::reload() {
  if (stopped_) return;
  std::erase_if(dials_, [&](const auto& item) {
    const auto& dial = item.second;
    const DialedAgent* agent = find(item.first.first);
    if (agent != nullptr && *agent == dial->agent()) return false;
    dial->end(agent == nullptr ? "the configuration does not name this tool any more"
                               : "the configuration of this tool has changed");
    return true;
  });
  for (const auto& [key, dial] : dials_) dial->hurry();
  for (const auto& [uuid, guest] : online_)
    for (const auto& agent : settings_.dialed_agents) {
      if (!names_guest(agent.guests, guest.name, uuid)) continue;
      auto& dial = dials_[Key{agent.name, uuid}];
      if (dial) continue;
      dial = std::make_shared<Dial>(*this, agent, uuid, guest);
      dial->begin();
    }
}

bool Dialler::take_turn(const std::string& address, const std::shared_ptr<Dial>& dial) {
  const auto [it, free] = turns_.try_emplace(address);
  if (!free) it->second.push_back(dial);
  return free;
}

void Dialler::end_turn(const std::string& address) {
  const auto it = turns_.find(address);
  if (it == turns_.end()) return;
  while (!it->second.empty()) {
    const auto next = it->second.front().lock();
    it->second.pop_front();
    if (!next) continue;
    boost::asio::post(context_, [next, alive = std::weak_ptr<bool>(alive_)] {
      if (!alive.expired()) next->on_turn();
    });
    return;
  }
  turns_.erase(it);
}

/// Its connection has ended, and its guest is away.
void Dialler::ended(const Dial& dial) { dials_.erase(Key{dial.agent().name, dial.uuid()}); }

}  // namespace kvmid::io
