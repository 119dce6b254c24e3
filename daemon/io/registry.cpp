// SPDX-License-Identifier: GPL-2.0-or-later
#include "daemon/io/registry.h"

#include <algorithm>

#include "daemon/io/guest_session.h"
#include "daemon/io/snapshot.h"

namespace kvmid::io {

Registry::Registry(unsigned shards, std::size_t guests_max) : guests_per_shard_(shards), guests_max_(guests_max) {}
Registry::~Registry() = default;

Result<std::shared_ptr<GuestSession>, RegistryError> Registry::claim(const Uuid& uuid, std::string_view name,
                                                                     const Factory& make) {
  const std::lock_guard lock(mutex_);
  const auto known = guests_.find(uuid);
  if (known != guests_.end()) {
    Entry& entry = known->second;
    if (entry.state != State::Away)
      return RegistryError{ErrorCode::Busy, "another hypervisor is connected for guest " + to_string(uuid)};
    entry.state = State::Connecting;
    entry.name = name;
    return entry.session;
  }
  if (guests_.size() >= guests_max_)
    return RegistryError{ErrorCode::Busy, "there are as many guests as limits.guests_max allows (" +
                                              std::to_string(guests_max_) + ")"};
  const auto least = std::min_element(guests_per_shard_.begin(), guests_per_shard_.end());
  const auto shard = static_cast<unsigned>(least - guests_per_shard_.begin());
  ++*least;
  Entry entry;
  entry.session = make(shard);
  entry.shard = shard;
  entry.name = name;
  return guests_.emplace(uuid, std::move(entry)).first->second.session;
}

void Registry::set_guests_max(std::size_t guests_max) {
  const std::lock_guard lock(mutex_);
  guests_max_ = guests_max;
}

void Registry::set_ready(const Uuid& uuid, const GuestFacts& facts) {
  GuestChange change{.on = true, .uuid = uuid, .name = {}, .facts = facts, .reason = {}, .text = {}};
  {
    const std::lock_guard lock(mutex_);
    const auto it = guests_.find(uuid);
    if (it == guests_.end()) return;
    it->second.state = State::Online;
    it->second.was_online = true;
    it->second.facts = facts;
    change.name = it->second.name;
  }
  if (listener_) listener_(change);
}

void Registry::set_away(const Uuid& uuid, OffReason reason, std::string_view text) {
  GuestChange change{.on = false, .uuid = uuid, .name = {}, .facts = {}, .reason = reason, .text = std::string(text)};
  bool was_online = false;
  {
    const std::lock_guard lock(mutex_);
    const auto it = guests_.find(uuid);
    if (it == guests_.end()) return;
    was_online = it->second.state == State::Online;
    it->second.state = State::Away;
    change.name = it->second.name;
    change.facts = it->second.facts;
  }
  if (was_online && listener_) listener_(change);
}

bool Registry::erase_if_away(const Uuid& uuid, const core::GuestCounters& counters) {
  std::shared_ptr<GuestSession> last;  // destroyed outside of the lock
  const std::lock_guard lock(mutex_);
  const auto it = guests_.find(uuid);
  if (it == guests_.end() || it->second.state != State::Away) return false;
  add(gone_, counters);
  --guests_per_shard_[it->second.shard];
  last = std::move(it->second.session);
  guests_.erase(it);
  return true;
}

Registry::Found Registry::find(const Uuid& uuid) const {
  const std::lock_guard lock(mutex_);
  const auto it = guests_.find(uuid);
  if (it == guests_.end()) return {};
  return Found{it->second.session, it->second.name, it->second.was_online};
}

std::vector<GuestSummary> Registry::list() const {
  const std::lock_guard lock(mutex_);
  std::vector<GuestSummary> out;
  for (const auto& [uuid, entry] : guests_) {
    if (entry.was_online) out.push_back({uuid, entry.name, entry.facts, entry.state == State::Online});
  }
  return out;
}

core::GuestCounters Registry::gone_counters() const {
  const std::lock_guard lock(mutex_);
  return gone_;
}

Result<Ticket, RegistryError> Registry::attachment(const core::Peer& peer, std::uint32_t attachments_max) {
  const std::uint64_t key = peer.uid ? std::uint64_t{*peer.uid} : (std::uint64_t{1} << 32U) | peer.cid.value_or(0);
  const std::lock_guard lock(mutex_);
  const auto held = attachments_.find(key);
  if ((held == attachments_.end() ? 0 : held->second) >= attachments_max)
    return RegistryError{ErrorCode::Busy,
                         "as many attachments as quota.attachments allows (" + std::to_string(attachments_max) + ")"};
  ++attachments_[key];
  return Ticket([this, key] {
    const std::lock_guard inner(mutex_);
    const auto it = attachments_.find(key);
    if (it != attachments_.end() && --it->second == 0) attachments_.erase(it);
  });
}

void Registry::clear() {
  std::map<Uuid, Entry> gone;
  const std::lock_guard lock(mutex_);
  gone.swap(guests_);
}

}  // namespace kvmid::io
