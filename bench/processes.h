// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// The processes of a measurement, and what they put in kvmid's place to compare with.
///
/// Purpose:  every peer is a process of its own, as in real life, and ends with the program that started it.
/// Threads:  an object belongs to one process.
/// Errors:   std::runtime_error with what failed; a child prints its own and exits with 1.

#include <sys/types.h>

#include <functional>
#include <span>
#include <utility>

#include "bench/peers.h"

namespace kvmid::bench {

/// A child that ends with its owner.
class Child {
 public:
  explicit Child(const std::function<void()>& body);
  Child(Child&& other) noexcept : pid_(std::exchange(other.pid_, -1)) {}
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;
  Child& operator=(Child&&) = delete;
  ~Child();

 private:
  pid_t pid_;
};

std::pair<Fd, Fd> socket_pair();
/// Read end, write end.
std::pair<Fd, Fd> make_pipe();

/// Moves bytes both ways and knows nothing of them: what any process in the middle costs at least. Returns when a peer
/// closes.
void relay(int a, int b);
/// The same for several agents: what the hypervisor sends goes to all of them; when each of the first `deciders` has
/// said something, the last of it goes back. Replies are not looked at. REQUIRES: one event is under way at a time.
void relay_to_many(int hypervisor, std::span<const Fd> agents, std::size_t deciders);

/// This process and all that it starts from now on share one CPU.
void pin_to_one_cpu();

}  // namespace kvmid::bench
