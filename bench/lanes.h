// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// Lanes: ways from a hypervisor to its agents and back.
///
/// Purpose:  every lane has the same two ends; what is in the middle differs.
/// Lifetime: a lane's processes end with it.

#include <optional>
#include <string>
#include <vector>

#include "bench/peers.h"
#include "bench/processes.h"

namespace kvmid::bench {

/// Who is at the agents' end.
struct Audience {
  int deciders = 1;
  int observers = 0;
  [[nodiscard]] int agents() const { return deciders + observers; }
};

struct Lane {
  HypervisorPeer hypervisor;
  std::vector<Child> children;
};

/// Nothing in the middle.
Lane direct_lane();
/// One decider behind a bare epoll relay.
Lane relay_lane();
/// The audience behind a bare relay that sends to all and waits for the deciders.
Lane fan_out_lane(Audience audience);

/// A kvmid of our own, with a folder of its own below /tmp.
class Daemon {
 public:
  explicit Daemon(const std::string& program);
  /// With a configuration; "$DIR" in it becomes directory().
  Daemon(const std::string& program, std::string config);
  Daemon(const Daemon&) = delete;
  Daemon& operator=(const Daemon&) = delete;
  ~Daemon();

  struct Agents {
    Audience audience;
    bool silent = false;                      ///< deciders never answer
    std::vector<kvmi_filter_term> filter{};   ///< of each decider, on events of CRs; empty: none
  };
  /// A new guest with its agents attached; nullopt: kvmid does not serve SET_FILTER (KVMI_ENOSYS).
  std::optional<Lane> lane(const Agents& agents);
  /// A new guest of that dialect (null: KVMI 2) with one decider of that dialect. A tool of an older dialect is dialled by
  /// kvmid at directory()/NAME.sock, so the configuration must say so for guest NAME.
  Lane lane_of(const std::string& name, const kvmi1::Codec* hypervisor, const kvmi1::Codec* tool);
  /// Where its sockets are.
  [[nodiscard]] const std::string& directory() const { return directory_; }

 private:
  void start(const std::string& program, const std::string& config);
  Lane new_guest(const std::string& name, Uuid& uuid, const kvmi1::Codec* dialect);
  std::string directory_;
  std::optional<Child> process_;
  std::uint8_t guests_ = 0;
};

}  // namespace kvmid::bench
