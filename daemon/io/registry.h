// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "daemon/core/guest_machine.h"
#include "daemon/io/ticket.h"
#include "protocol/result.h"

namespace kvmid::io {

class GuestSession;

/// What its hypervisor says of a guest once it is online.
struct GuestFacts {
  std::uint32_t vcpu_count = 0;
  std::int64_t start_time = 0;  ///< seconds since 1970; 0: not known
  std::uint64_t max_gpa = 0;    ///< end of its highest RAM
};

/// A guest that came or went, for control connections and for tools that are connected to.
struct GuestChange {
  bool on = false;
  Uuid uuid;
  std::string name;
  GuestFacts facts{};
  OffReason reason{};
  std::string text;
};

/// What everybody may know of a guest.
struct GuestSummary {
  Uuid uuid;
  std::string name;
  GuestFacts facts{};
  bool online = false;
};

/// Why a guest could not be claimed or a place not be given.
struct RegistryError {
  ErrorCode error{};
  std::string text;
};

/// Which guests there are, on which shard each lives, and how many attachments each peer holds.
///
/// Purpose:  the one place that threads share; for hellos, the admin side and control connections only, never for events.
/// States:   Connecting --set_ready--> Online --set_away--> Away --claim--> Connecting; Away --erase_if_away--> gone.
/// Errors:   RegistryError, with a text for the peer.
/// Threads:  any; a mutex inside. The listener is called without it, on the thread that made the change.
/// Lifetime: holds a share of every session until it is erased.
class Registry {
 public:
  using Listener = std::function<void(const GuestChange&)>;
  /// Makes the session of a new guest on that shard.
  using Factory = std::function<std::shared_ptr<GuestSession>(unsigned shard)>;

  Registry(unsigned shards, std::size_t guests_max);
  ~Registry();

  /// Before any other thread runs.
  void set_listener(Listener listener) { listener_ = std::move(listener); }

  /// A hypervisor came: the session that gets its link. EBUSY where the guest has a hypervisor, or there are too many.
  Result<std::shared_ptr<GuestSession>, RegistryError> claim(const Uuid& uuid, std::string_view name,
                                                             const Factory& make);
  /// From the next claim on.
  void set_guests_max(std::size_t guests_max);
  void set_ready(const Uuid& uuid, const GuestFacts& facts);
  void set_away(const Uuid& uuid, OffReason reason, std::string_view text);
  /// True: the guest is gone, and what it counted is kept. False: a hypervisor has just claimed it.
  bool erase_if_away(const Uuid& uuid, const core::GuestCounters& counters);

  struct Found {
    std::shared_ptr<GuestSession> session;
    std::string name;
    bool ready = false;  ///< online, or away after it was online
  };
  [[nodiscard]] Found find(const Uuid& uuid) const;
  /// Guests that are online or away, in the order of their UUIDs.
  [[nodiscard]] std::vector<GuestSummary> list() const;
  [[nodiscard]] core::GuestCounters gone_counters() const;

  AgentId next_agent_id() { return AgentId{next_agent_.fetch_add(1, std::memory_order_relaxed)}; }
  /// A place among the attachments of this peer; EBUSY when it has as many as its quota allows.
  /// REQUIRES: the registry outlives the ticket.
  Result<Ticket, RegistryError> attachment(const core::Peer& peer, std::uint32_t attachments_max);

  /// Lets go of every session. REQUIRES: no shard runs.
  void clear();

 private:
  enum class State : std::uint8_t { Connecting, Online, Away };
  struct Entry {
    std::shared_ptr<GuestSession> session;
    unsigned shard = 0;
    std::string name;
    State state = State::Connecting;
    bool was_online = false;
    GuestFacts facts{};
  };

  mutable std::mutex mutex_;
  std::map<Uuid, Entry> guests_;
  std::vector<std::size_t> guests_per_shard_;
  std::size_t guests_max_;
  std::unordered_map<std::uint64_t, std::uint32_t> attachments_;  ///< by uid, or by CID
  core::GuestCounters gone_;
  std::atomic<std::uint32_t> next_agent_{1};
  Listener listener_;
};

}  // namespace kvmid::io
