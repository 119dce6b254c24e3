// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <boost/asio/io_context.hpp>
#include <chrono>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "daemon/io/failures.h"
#include "daemon/io/registry.h"
#include "daemon/io/services.h"
#include "daemon/io/settings.h"

namespace kvmid::io {

/// Connects to tools that wait for QEMU, and greets them as QEMU does.
///
/// Purpose:  one connection for each configured tool and each online guest that it is meant for, as long as both are
///           there. A tool that took the handshake goes to its guest's shard as an agent like any other.
/// States:   of each: Waiting (for its turn or its time) -> Connecting -> Answering -> Attached; any failure leads back
///           to Waiting, with a wait that doubles up to kWaitMax. A guest that comes and a new configuration end the wait.
/// Errors:   each failure names its step in the log (once, until it is another one) and in Services::failures.
/// Bounds:   a tool takes one handshake at a time, so there is one at a time for an address; the rest wait their turn.
/// Threads:  the io_context's only thread, but what the Ticket of an arrival does.
/// Lifetime: `settings`, `services` and `context` outlive it; settings are read at each step, so they may change.
class Dialler {
 public:
  static constexpr std::chrono::seconds kAnswerTimeout{10};  ///< QEMU's
  static constexpr std::chrono::seconds kWaitMax{30};

  /// What it needs of its owner.
  struct Host {
    /// A place among all connections. False: there is none left.
    std::function<bool(Ticket&)> place;
    /// The tool is let in: to its guest's shard with it.
    std::function<void(std::shared_ptr<GuestSession>, AgentArrival)> attach;
    /// A tool was not let in: for the audit log.
    std::function<void(const AgentArrival&, std::string_view step, ErrorCode, const std::string& text)> refused;
  };

  Dialler(boost::asio::io_context& context, const Settings& settings, const Services& services, Host host,
          std::chrono::milliseconds answer_timeout = kAnswerTimeout);
  ~Dialler();
  Dialler(const Dialler&) = delete;
  Dialler& operator=(const Dialler&) = delete;

  void guest_changed(const GuestChange& change);
  /// settings.dialed_agents changed, or the policy did. Connections to tools that are gone or changed end; those that
  /// wait are tried at once.
  void reload();
  /// No connection is made any more; those that are attached are left to their guests.
  void stop();

 private:
  class Dial;
  struct Guest {
    std::string name;
    GuestFacts facts;
  };
  using Key = std::pair<std::string, Uuid>;  ///< name of the tool, guest

  void match(const Uuid& uuid, const Guest& guest);
  [[nodiscard]] bool take_turn(const std::string& address, const std::shared_ptr<Dial>& dial);
  void end_turn(const std::string& address);
  void ended(const Dial& dial);
  [[nodiscard]] const DialedAgent* find(std::string_view name) const;

  boost::asio::io_context& context_;
  const Settings& settings_;
  const Services& services_;
  Host host_;
  std::chrono::milliseconds answer_timeout_;
  std::map<Uuid, Guest> online_;
  std::map<Key, std::shared_ptr<Dial>> dials_;
  /// Who waits for an address, while a handshake is under way there.
  std::map<std::string, std::deque<std::weak_ptr<Dial>>> turns_;
  /// A turn that was queued before the end finds here that the dialler is gone.
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
  bool stopped_ = false;
};

/// "unix:/run/tool.sock" or "vsock:2:5000".
[[nodiscard]] std::string address_of(const DialedAgent& agent);
/// What QEMU of that dialect's branch says first.
[[nodiscard]] ByteBuffer qemu_handshake(kvmi1::DialectId dialect, const Uuid& uuid, std::string_view name,
                                        const GuestFacts& facts);
/// Takes as long whatever the difference.
[[nodiscard]] bool same_secret(const CookieHash& a, const CookieHash& b);

}  // namespace kvmid::io
