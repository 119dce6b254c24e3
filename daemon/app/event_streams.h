// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "daemon/io/event_tap.h"

namespace kvmid::app {

/// What a watcher wants to see. Comings and goings of a guest are of no kind: they pass.
struct EventFilter {
  std::optional<Uuid> guest;
  std::string guest_name;  ///< empty: any
  EventSet kinds = kEveryEvent;
  [[nodiscard]] bool passes(const io::TapRecord& record) const;
};

/// What waits for one watcher.
///
/// Units:    at most kQueueMax records; what comes on top is dropped and counted.
/// Threads:  take() on the watcher's; the rest is EventStreams'.
class EventStream {
 public:
  static constexpr std::size_t kQueueMax = 4096;

  /// Moves at most `most` records to the end of `out`; returns how many were dropped before the first of them.
  /// With nothing there, the stream's wake function is called once when something comes.
  std::uint64_t take(std::vector<io::TapRecord>& out, std::size_t most);

 private:
  friend class EventStreams;
  EventStream(std::mutex& mutex, EventFilter filter, std::function<void()> wake)
      : mutex_(mutex), filter_(std::move(filter)), wake_(std::move(wake)) {}
  void push(const io::TapRecord& record);

  std::mutex& mutex_;
  const EventFilter filter_;
  const std::function<void()> wake_;
  std::vector<io::TapRecord> ring_;  ///< grows to kQueueMax, then is reused
  std::size_t first_ = 0;
  std::size_t count_ = 0;
  std::uint64_t dropped_ = 0;
  bool waiting_ = false;  ///< take() found nothing
};

/// The live streams of events, and the tap that feeds them.
///
/// Purpose:  people watch, and a guest does not notice: a push copies a small record under a lock that is held for
///           copies only, and where nobody watches nothing is pushed.
/// Threads:  any.
/// Lifetime: outlives its streams and the broker.
class EventStreams final : public io::EventTap {
 public:
  static constexpr std::size_t kStreamsMax = 8;

  /// `wake` is called on any thread, must not wait and not call back. Null: there are kStreamsMax already.
  std::shared_ptr<EventStream> subscribe(EventFilter filter, std::function<void()> wake);
  void unsubscribe(const std::shared_ptr<EventStream>& stream);
  void push(const io::TapRecord& record) override;
  [[nodiscard]] std::size_t count() const;
  /// Records that no watcher took in time, over all streams.
  [[nodiscard]] std::uint64_t dropped() const;

 private:
  mutable std::mutex mutex_;
  std::vector<std::shared_ptr<EventStream>> streams_;
  std::uint64_t dropped_ = 0;  ///< of streams that are gone
};

}  // namespace kvmid::app
