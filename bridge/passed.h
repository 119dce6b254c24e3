// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <cstddef>
#include <deque>
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
  Seq seq;
  Message message;
  std::vector<std::byte> bytes{};
};

/// What waits to be taken, oldest first.
template <class Message>
class PassedQueue {
 public:
  void push(Seq seq, Message message, std::vector<std::byte> bytes = {}) {
    items_.push_back(Passed<Message>{seq, std::move(message), std::move(bytes)});
  }
  [[nodiscard]] bool empty() const { return items_.empty(); }
  /// REQUIRES: !empty().
  Passed<Message> take() {
    Passed<Message> item = std::move(items_.front());
    items_.pop_front();
    return item;
  }
  void clear() { items_.clear(); }

 private:
  std::deque<Passed<Message>> items_;
};

}  // namespace kvmid::bridge
