// SPDX-License-Identifier: GPL-2.0-or-later
#include "daemon/io/shard.h"

#include <pthread.h>

#include <algorithm>
#include <string>

#include "daemon/io/guest_session.h"
#include "daemon/io/registry.h"

namespace kvmid::io {

using Clock = std::chrono::steady_clock;

Shard::Shard(unsigned number, const Services& services)
    : number_(number), services_(services), work_(boost::asio::make_work_guard(context_)) {}

Shard::~Shard() {
  force_stop();
  join();
}

void Shard::start() {
  thread_ = std::thread([this] {
    ::pthread_setname_np(::pthread_self(), ("shard-" + std::to_string(number_)).c_str());
    context_.run();
  });
}

void Shard::join() {
  if (thread_.joinable()) thread_.join();
}

void Shard::stop() {
  post([this] {
    stopping_ = true;
    for (const auto& session : std::vector(sessions_)) session->stop();
    if (!sessions_.empty()) return;
    timer_.cancel();  // set for a guest that has gone since
    work_.reset();
  });
}

void Shard::adopt(const std::shared_ptr<GuestSession>& session) {
  if (std::find(sessions_.begin(), sessions_.end(), session) != sessions_.end()) return;
  sessions_.push_back(session);
  if (stopping_) session->stop();
}

void Shard::arm(std::optional<core::TimePoint> deadline) {
  if (!deadline || *deadline >= armed_) return;
  armed_ = *deadline;
  timer_.expires_at(*deadline);
  timer_.async_wait([this](const boost::system::error_code& error) {
    if (!error) on_timer();
  });
}

void Shard::on_timer() {
  armed_ = core::TimePoint::max();
  const auto now = Clock::now();
  // Sessions are dropped by posted work, so the list does not change under this loop.
  for (const auto& session : sessions_) {
    const auto deadline = session->next_deadline();
    if (!deadline) continue;
    if (*deadline <= now) {
      session->on_time(now);  // arms what comes next
    } else {
      arm(deadline);
    }
  }
}

void Shard::drop_later(GuestSession& session) {
  post([this, shared = session.shared_from_this()] { drop(shared); });
}

void Shard::drop(const std::shared_ptr<GuestSession>& session) {
  const auto it = std::find(sessions_.begin(), sessions_.end(), session);
  if (it == sessions_.end() || !session->idle()) return;
  if (!services_.registry.erase_if_away(session->uuid(), session->counters())) return;
  session->mark_dropped();
  sessions_.erase(it);
  if (stopping_ && sessions_.empty()) {
    timer_.cancel();
    work_.reset();
  }
}

PolicyEffect Shard::apply(const core::Policy& policy, const core::GuestLimits& limits) {
  PolicyEffect effect;
  for (const auto& session : sessions_) {  // sessions are dropped by posted work
    const PolicyEffect one = session->apply(policy, limits);
    effect.agents += one.agents;
    effect.closed += one.closed;
  }
  return effect;
}

std::vector<GuestSnapshot> Shard::snapshots() const {
  std::vector<GuestSnapshot> out;
  for (const auto& session : sessions_) out.push_back(session->snapshot());
  return out;
}

}  // namespace kvmid::io
