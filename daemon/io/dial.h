// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// One connection that a Dialler keeps. Included by its source files only.

#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "daemon/io/dialler.h"
#include "daemon/io/hello_reader.h"

namespace kvmid::io {

class Dialler::Dial : public std::enable_shared_from_this<Dial> {
 public:
  Dial(Dialler& owner, DialedAgent agent, const Uuid& uuid, Guest guest);

  [[nodiscard]] const DialedAgent& agent() const { return agent_; }
  [[nodiscard]] const Uuid& uuid() const { return uuid_; }
  [[nodiscard]] bool attached() const { return state_ == State::Attached; }

  /// Waiting --its turn comes--> Connecting
  void begin();
  void on_turn();
  /// The guest is back. What is attached is of before, and about to end: then it is tried again without a wait.
  void renew(const Guest& guest);
  /// What it waited for may be different now.
  void hurry();
  /// No call comes from it any more. An attached tool is let go with `reason`; an empty one leaves it to its guest.
  void end(std::string_view reason);

 private:
  enum class State : std::uint8_t { Waiting, Queued, Connecting, Answering, Attached };

  void connect();
  void wait_connected();
  void connected();
  void answered(Greeted greeted);
  void fail(std::string_view step, ErrorCode error, const std::string& text);
  void refuse_peer(const core::Peer& peer, std::string_view step, ErrorCode error, const std::string& text);
  void wait_to_redial();
  void lost();
  void release();
  [[nodiscard]] Ticket ticket();

  Dialler& owner_;
  const DialedAgent agent_;
  const std::string address_;
  const Uuid uuid_;
  Guest guest_;
  State state_ = State::Waiting;
  bool over_ = false;
  bool at_once_ = false;  ///< when the attached one has ended
  bool has_turn_ = false;
  unsigned attempt_ = 0;  ///< what was queued for an earlier one finds that it is over
  std::chrono::milliseconds wait_;  ///< after the next failure
  std::string last_failure_;        ///< step and text that the log has already
  boost::asio::steady_timer timer_;
  boost::asio::posix::stream_descriptor descriptor_;  ///< while it connects
  Ticket place_;
  std::shared_ptr<HelloReader> reader_;
  std::optional<AgentArrival> refused_;  ///< who it was, for the audit log
  std::weak_ptr<GuestSession> session_;
  AgentId id_;
  std::chrono::steady_clock::time_point attached_at_;
};

}  // namespace kvmid::io
