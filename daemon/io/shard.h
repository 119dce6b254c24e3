// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <functional>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "daemon/core/types.h"
#include "daemon/io/services.h"
#include "daemon/io/snapshot.h"

namespace kvmid::io {

class GuestSession;

/// One io thread and the guests that live on it. An event never leaves it.
///
/// Purpose:  the event loop, and one timer for the deadlines of all its guests.
/// Cost:     the timer is set again only when an earlier deadline appears, and looks at every guest when it fires; with
///           no deadline it is not set: an idle daemon wakes for nothing.
/// Threads:  start(), post(), stop(), force_stop(), join() from outside; all else on the shard's thread.
/// Lifetime: outlives its sessions' connections; `services` outlives it.
class Shard {
 public:
  Shard(unsigned number, const Services& services);
  ~Shard();

  void start();
  template <class F>
  void post(F&& f) {
    boost::asio::post(context_, std::forward<F>(f));
  }
  /// Every guest is let go, then the thread ends.
  void stop();
  /// The thread ends now; connections are closed by the destructor.
  void force_stop() { context_.stop(); }
  void join();

  [[nodiscard]] boost::asio::io_context& context() { return context_; }
  /// The session lives here now. Once per session; more often is harmless.
  void adopt(const std::shared_ptr<GuestSession>& session);
  void arm(std::optional<core::TimePoint> deadline);
  /// Asks to drop the session once the current step is over, unless a hypervisor claims it meanwhile.
  void drop_later(GuestSession& session);
  [[nodiscard]] std::vector<GuestSnapshot> snapshots() const;
  /// A new policy, for every agent of every guest here.
  PolicyEffect apply(const core::Policy& policy, const core::GuestLimits& limits);

 private:
  void on_timer();
  void drop(const std::shared_ptr<GuestSession>& session);

  const unsigned number_;
  const Services& services_;
  boost::asio::io_context context_{1};
  std::optional<boost::asio::executor_work_guard<boost::asio::io_context::executor_type>> work_;
  boost::asio::steady_timer timer_{context_};
  core::TimePoint armed_ = core::TimePoint::max();  ///< when the timer fires
  std::vector<std::shared_ptr<GuestSession>> sessions_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace kvmid::io
