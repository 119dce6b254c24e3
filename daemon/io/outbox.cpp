// SPDX-License-Identifier: GPL-2.0-or-later
#include "daemon/io/outbox.h"

namespace kvmid::io {
namespace {
// An idle connection keeps at most this much: what one burst needed is given back.
constexpr std::size_t kKeptCapacity = 64U * 1024U;
}  // namespace

Outbox::~Outbox() { account_.release(committed_ - head_); }

bool Outbox::commit() {
  if (!account_.charge(buffer_.size() - committed_)) {
    buffer_.resize(committed_);
    while (!attachments_.empty() && attachments_.back().at >= committed_) attachments_.pop_back();
    return false;
  }
  committed_ = buffer_.size();
  return true;
}

void Outbox::attach(std::vector<UniqueFd> descriptors) {
  attachments_.push_back({committed_, std::move(descriptors)});
}

Bytes Outbox::pending() const {
  const Bytes all = Bytes{buffer_}.subspan(head_);
  for (const Attachment& attachment : attachments_)
    if (attachment.at != head_) return all.first(attachment.at - head_);
  return all;
}

std::span<const UniqueFd> Outbox::descriptors() const {
  if (attachments_.empty() || attachments_.front().at != head_) return {};
  return attachments_.front().descriptors;
}

void Outbox::consume(std::size_t n) {
  if (n != 0 && !attachments_.empty() && attachments_.front().at == head_) attachments_.pop_front();
  account_.release(n);
  head_ += n;
  if (head_ == committed_) {
    buffer_.clear();
    if (buffer_.capacity() > kKeptCapacity) ByteBuffer{}.swap(buffer_);
    head_ = committed_ = 0;
  } else if (head_ > buffer_.size() / 2) {  // each byte is moved at most once per doubling: amortised O(1)
    buffer_.erase(buffer_.begin(), buffer_.begin() + static_cast<std::ptrdiff_t>(head_));
    committed_ -= head_;
    for (Attachment& attachment : attachments_) attachment.at -= head_;
    head_ = 0;
  }
}

}  // namespace kvmid::io
