// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// The only source of chance of a run: one seed, one run, on every machine and with every library.

#include <array>
#include <cstddef>
#include <cstdint>

namespace kvmid::sim {

/// xoshiro256**, seeded by splitmix64. (The distributions of the library may differ from one build to the next.)
/// Source: Blackman and Vigna, https://prng.di.unimi.it/ (public domain).
class Rng {
 public:
  explicit Rng(std::uint64_t seed) {
    for (auto& word : state_) {
      seed += 0x9e3779b97f4a7c15ULL;
      std::uint64_t z = seed;
      z = (z ^ (z >> 30U)) * 0xbf58476d1ce4e5b9ULL;
      z = (z ^ (z >> 27U)) * 0x94d049bb133111ebULL;
      word = z ^ (z >> 31U);
    }
  }
  std::uint64_t next() {
    const std::uint64_t result = rotate(state_[1] * 5, 7) * 9;
    const std::uint64_t t = state_[1] << 17U;
    state_[2] ^= state_[0];
    state_[3] ^= state_[1];
    state_[1] ^= state_[2];
    state_[0] ^= state_[3];
    state_[2] ^= t;
    state_[3] = rotate(state_[3], 45);
    return result;
  }
  /// 0 to below - 1. The bias of the remainder does not matter here. REQUIRES: below is not 0.
  std::uint64_t below(std::uint64_t below) { return next() % below; }
  /// `from` to `to`, both included.
  std::uint64_t between(std::uint64_t from, std::uint64_t to) { return from + below(to - from + 1); }
  bool percent(unsigned chance) { return below(100) < chance; }
  bool permille(unsigned chance) { return below(1000) < chance; }
  bool one_in(std::uint64_t n) { return below(n) == 0; }
  template <class T, std::size_t N>
  const T& of(const std::array<T, N>& items) {
    return items[below(N)];
  }

 private:
  static std::uint64_t rotate(std::uint64_t x, unsigned by) { return (x << by) | (x >> (64U - by)); }
  std::array<std::uint64_t, 4> state_{};
};

}  // namespace kvmid::sim
