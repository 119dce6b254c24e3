// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <cstddef>
#include <deque>
#include <span>
#include <vector>

#include "daemon/core/account.h"
#include "daemon/io/unique_fd.h"
#include "protocol/dialect.h"

namespace kvmid::io {

/// Messages queued for one peer and not yet taken by its socket.
///
/// Purpose:  a slow peer spends its own quota, never the guest's time or another peer's memory.
/// Shapes:   append one message to compose(), then commit(); pending() is what to write, consume(n) what was written.
/// Units:    bytes as sent, headers included. The buffer can exceed the quota by the message being composed, no more.
/// Errors:   commit() refuses what is over the quota and takes the message out again; nothing else changes.
/// Threads:  none of its own; used on the connection's thread.
/// Lifetime: `account` outlives the Outbox; the destructor gives every charge back.
class Outbox {
 public:
  explicit Outbox(core::Account& account) : account_(account) {}
  ~Outbox();
  Outbox(const Outbox&) = delete;
  Outbox& operator=(const Outbox&) = delete;

  /// Where the next message is encoded. Only append.
  [[nodiscard]] ByteBuffer& compose() { return buffer_; }
  [[nodiscard]] bool commit();
  /// Descriptors that go with the first byte of the message that is committed next.
  void attach(std::vector<UniqueFd> descriptors);

  /// What to write in one call: it ends before a message that has descriptors, unless it begins with it.
  [[nodiscard]] Bytes pending() const;
  /// Those that go with the first byte of pending().
  [[nodiscard]] std::span<const UniqueFd> descriptors() const;
  [[nodiscard]] bool empty() const { return head_ == buffer_.size(); }
  /// REQUIRES: n <= pending().size().
  void consume(std::size_t n);

 private:
  core::Account& account_;
  ByteBuffer buffer_;
  std::size_t head_ = 0;       ///< bytes already written
  std::size_t committed_ = 0;  ///< end of the last whole message
  struct Attachment {
    std::size_t at = 0;  ///< in buffer_
    std::vector<UniqueFd> descriptors;
  };
  std::deque<Attachment> attachments_;  ///< in the order of the messages
};

}  // namespace kvmid::io
