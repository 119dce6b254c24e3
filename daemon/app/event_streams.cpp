// SPDX-License-Identifier: GPL-2.0-or-later
#include "daemon/app/event_streams.h"

#include <algorithm>
#include <utility>

namespace kvmid::app {

bool EventFilter::passes(const io::TapRecord& record) const {
  using Type = io::TapRecord::Type;
  if (guest && (!record.guest || record.guest->uuid != *guest)) return false;
  if (!guest_name.empty() && (!record.guest || record.guest->name != guest_name)) return false;
  return record.type == Type::GuestOn || record.type == Type::GuestOff || kinds.has(record.kind);
}

void EventStream::push(const io::TapRecord& record) {
  if (!filter_.passes(record)) return;
  if (count_ == kQueueMax) {
    ++dropped_;
    return;
  }
  const std::size_t place = (first_ + count_) % kQueueMax;
  if (place == ring_.size()) {
    ring_.push_back(record);
  } else {
    ring_[place] = record;
  }
  ++count_;
  if (std::exchange(waiting_, false)) wake_();
}

std::uint64_t EventStream::take(std::vector<io::TapRecord>& out, std::size_t most) {
  const std::lock_guard lock(mutex_);
  const std::size_t n = std::min(most, count_);
  for (std::size_t i = 0; i < n; ++i) out.push_back(std::move(ring_[(first_ + i) % kQueueMax]));
  first_ = (first_ + n) % kQueueMax;
  count_ -= n;
  if (count_ == 0 && first_ >= ring_.size()) first_ = 0;
  waiting_ = n == 0;
  // What was dropped came after all that waited then, so it is told when the last of that is out.
  return count_ == 0 ? std::exchange(dropped_, 0) : 0;
}

std::shared_ptr<EventStream> EventStreams::subscribe(EventFilter filter, std::function<void()> wake) {
  const std::lock_guard lock(mutex_);
  if (streams_.size() >= kStreamsMax) return nullptr;
  streams_.push_back(std::shared_ptr<EventStream>(new EventStream(mutex_, std::move(filter), std::move(wake))));
  open_.store(true, std::memory_order_relaxed);
  return streams_.back();
}

void EventStreams::unsubscribe(const std::shared_ptr<EventStream>& stream) {
  const std::lock_guard lock(mutex_);
  if (std::erase(streams_, stream) == 0) return;
  if (streams_.empty()) open_.store(false, std::memory_order_relaxed);
}

void EventStreams::push(const io::TapRecord& record) {
  const std::lock_guard lock(mutex_);
  for (const auto& stream : streams_) {
    const std::uint64_t before = stream->dropped_;
    stream->push(record);
    dropped_ += stream->dropped_ - before;
  }
}

std::size_t EventStreams::count() const {
  const std::lock_guard lock(mutex_);
  return streams_.size();
}

std::uint64_t EventStreams::dropped() const {
  const std::lock_guard lock(mutex_);
  return dropped_;
}

}  // namespace kvmid::app
