// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// The connection of a hypervisor process to kvmid: dialled, greeted, served, and dialled again when it is lost.
///
/// Purpose:  a guest never depends on kvmid: without a connection it runs on unhooked, and kvmid finds it again.
/// Shapes:   a state machine round one descriptor. The owner's loop polls what wait() names and calls handle(); raise()
///           sends at once what the socket takes.
/// States:   Idle -> Connecting -> Greeting -> Serving, and from each back to Idle with a wait of 100 ms to 2 s.
/// Errors:   every loss is one log line with its reason. kvmid's refusal is logged with kvmid's own text. A connection
///           on which kvmid leaves more than kOutboxMax bytes unread is closed.
/// Threads:  none of its own.
/// Lifetime: `backend` outlives the link. Its sink is the link.

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "hypervisor/server/address.h"
#include "hypervisor/server/backoff.h"
#include "hypervisor/server/guest_backend.h"
#include "hypervisor/server/session.h"
#include "protocol/dialect.h"
#include "protocol/handshake.h"
#include "protocol/kvmi1.h"

namespace kvmid::hypervisor {

/// What a link speaks.
struct LinkOptions {
  /// In place of KVMI 2: QEMU's handshake as that dialect has it (rfc2017, which defines none: as v7), and no shared RAM.
  std::optional<kvmi1::DialectId> older{};
  /// Older dialects: the SHA-1 of the secret that kvmid has to know; without one any answer is good.
  std::optional<std::array<std::uint8_t, 20>> cookie{};
};

class Link final : public EventSink {
 public:
  using Clock = std::chrono::steady_clock;
  static constexpr std::size_t kOutboxMax = 4 * 1024 * 1024;
  static constexpr std::chrono::seconds kGreetingTime{5};
  static constexpr std::chrono::seconds kUnhookTime{10};

  enum class State : std::uint8_t { Idle, Connecting, Greeting, Serving };

  /// Dials `address` at the first handle(). Without an address it serves what adopt() gives and never dials.
  Link(GuestBackend& backend, std::optional<Address> address, LinkOptions options = {});
  ~Link() override;
  Link(const Link&) = delete;
  Link& operator=(const Link&) = delete;

  /// Takes over a connected stream socket (set to non-blocking) and greets on it. REQUIRES: state() is Idle.
  void adopt(int fd, Clock::time_point now);

  struct Wait {
    int fd = -1;  ///< -1: nothing to poll
    short events = 0;
    std::optional<Clock::time_point> until;  ///< call handle() at this time at the latest
  };
  [[nodiscard]] Wait wait() const;
  /// `revents` as poll gave them, 0 when only time passed.
  void handle(short revents, Clock::time_point now);

  void raise(const Event& event) override;
  void map_changing(const MemoryMapChanged& change) override;
  /// Tells kvmid that the guest is about to be let go, and closes the connection when kvmid has taken everything back,
  /// after kUnhookTime at the latest. state() is Idle then, and nothing is dialled until resume(). The guest may run
  /// meanwhile. Without an accepted connection it is so at once. Calls during an unhooking do nothing.
  void unhook(OffReason reason, Clock::time_point now);
  /// Dials again after unhook().
  void resume(Clock::time_point now);
  /// Closes the connection for good, with its hooks; what the log says. Nothing is dialled any more.
  void stop(const std::string& reason);

  [[nodiscard]] State state() const { return state_; }
  [[nodiscard]] std::uint64_t connections() const { return connections_; }  ///< that were accepted by kvmid
  [[nodiscard]] const std::string& last_error() const { return last_error_; }

 private:
  void dial_now(Clock::time_point now);
  void begin_greeting(Clock::time_point now);
  [[nodiscard]] HypervisorHello older_hello() const;
  [[nodiscard]] bool send_hello();
  /// Why the answer in greeting_in_ is not good enough.
  [[nodiscard]] std::optional<std::string> refusal() const;
  void read_answer(Clock::time_point now);
  void read_frames(Clock::time_point now);
  void flush(Clock::time_point now);
  void lose(const std::string& reason, Clock::time_point now);
  void let_go_if_unhooked(Clock::time_point now);

  GuestBackend& backend_;
  std::optional<Address> address_;
  LinkOptions options_;
  State state_ = State::Idle;
  int fd_ = -1;
  Backoff backoff_;
  std::optional<Clock::time_point> next_dial_;
  Clock::time_point greeting_ends_{};
  ByteBuffer greeting_in_;
  std::unique_ptr<Session> session_;
  bool in_session_ = false;  ///< session_ is serving what was received
  std::uint64_t connections_ = 0;
  std::string last_error_;
  bool held_ = false;  ///< between unhook() and resume()
  OffReason unhook_reason_{};
  Clock::time_point unhook_ends_{};
  std::string logged_error_;  ///< a failure to dial is logged once, not at every attempt
};

}  // namespace kvmid::hypervisor
