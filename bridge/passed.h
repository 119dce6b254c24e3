// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <cstddef>
#include <utility>
#include <vector>

#include "protocol/ids.h"

namespace kvmid::bridge {

/// A message that a bridge hands on, with the bytes that its views point into where those are not the frame's own.
///
/// Lifetime: the message is valid while the Passed lives and, unless `bytes` holds them, while the frame does that the
///           bridge was given last. Moving it keeps the views valid.
template <class Message>
struct Passed {
  // For emplace_back(): not every compiler that is used here makes aggregates in place.
  template <class M>
  Passed(Seq number, M&& passed, std::vector<std::byte> kept = {})
      : seq(number), message(std::forward<M>(passed)), bytes(std::move(kept)) {}

  Seq seq;
  Message message;
  std::vector<std::byte> bytes;
};

/// What waits to be taken, oldest first. Warm, it allocates nothing: places are used again once all are taken.
template <class Message>
class PassedQueue {
 public:
  template <class M>
  void push(Seq seq, M&& message, std::vector<std::byte> bytes = {}) {
    items_.emplace_back(seq, std::forward<M>(message), std::move(bytes));
  }
  [[nodiscard]] bool empty() const { return taken_ == items_.size(); }
  /// REQUIRES: !empty().
  Passed<Message> take() {
    Passed<Message> item = std::move(items_[taken_++]);
    if (empty()) clear();
    else if (taken_ == kCompactAt) compact();
    return item;
  }
  void clear() {
    items_.clear();
    taken_ = 0;
  }

 private:
  static constexpr std::size_t kCompactAt = 64;
  /// A queue that is never empty must not grow for ever.
  void compact() {
    items_.erase(items_.begin(), items_.begin() + static_cast<std::ptrdiff_t>(taken_));
    taken_ = 0;
  }
  std::vector<Passed<Message>> items_;
  std::size_t taken_ = 0;
};

}  // namespace kvmid::bridge
