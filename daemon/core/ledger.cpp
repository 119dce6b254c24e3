// SPDX-License-Identifier: GPL-2.0-or-later
#include "daemon/core/ledger.h"

namespace kvmid::core {

// A seq is counter * kOpenCommandsMax + index: the reply leads straight to its slot, and a stale one is seen.
static_assert((kOpenCommandsMax & (kOpenCommandsMax - 1)) == 0);

Ledger::Ledger() : slots_(std::make_unique<std::array<Slot, kOpenCommandsMax>>()) {
  for (std::uint32_t i = 0; i < kOpenCommandsMax; ++i) (*slots_)[i].next = i + 1 < kOpenCommandsMax ? i + 1 : kNone;
}

std::optional<Seq> Ledger::open(const OpenCommand& command) {
  if (free_ == kNone) return std::nullopt;
  const std::uint32_t index = free_;
  Slot& slot = (*slots_)[index];
  free_ = slot.next;
  counter_ = counter_ + 1 == (1U << 22U) ? 1 : counter_ + 1;
  slot.command = command;
  slot.seq = Seq{counter_ * kOpenCommandsMax + index};
  slot.used = true;
  slot.prev = tail_;
  slot.next = kNone;
  if (tail_ != kNone) (*slots_)[tail_].next = index;
  tail_ = index;
  if (head_ == kNone) head_ = index;
  ++size_;
  return slot.seq;
}

OpenCommand Ledger::take(std::uint32_t index) {
  Slot& slot = (*slots_)[index];
  if (slot.prev != kNone) (*slots_)[slot.prev].next = slot.next;
  if (slot.next != kNone) (*slots_)[slot.next].prev = slot.prev;
  if (head_ == index) head_ = slot.next;
  if (tail_ == index) tail_ = slot.prev;
  slot.used = false;
  slot.prev = kNone;
  slot.next = free_;
  free_ = index;
  --size_;
  return slot.command;
}

std::optional<OpenCommand> Ledger::close(Seq seq) {
  const std::uint32_t index = seq.value & (kOpenCommandsMax - 1);
  const Slot& slot = (*slots_)[index];
  if (!slot.used || slot.seq != seq) return std::nullopt;
  return take(index);
}

const OpenCommand* Ledger::oldest() const { return head_ == kNone ? nullptr : &(*slots_)[head_].command; }

}  // namespace kvmid::core
