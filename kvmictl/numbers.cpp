// SPDX-License-Identifier: GPL-2.0-or-later
#include "kvmictl/numbers.h"

#include <array>
#include <charconv>
#include <limits>
#include <system_error>
#include <utility>

namespace kvmid::ctl {

std::optional<std::uint64_t> parse_number(std::string_view text, bool suffixes) {
  unsigned shift = 0;
  if (suffixes && !text.empty()) {
    constexpr std::array<std::pair<char, unsigned>, 3> kSuffixes{{{'k', 10}, {'m', 20}, {'g', 30}}};
    for (const auto& [letter, bits] : kSuffixes) {
      if ((text.back() | 0x20) == letter) shift = bits;
    }
    if (shift != 0) text.remove_suffix(1);
  }
  int base = 10;
  if (text.starts_with("0x") || text.starts_with("0X")) {
    base = 16;
    text.remove_prefix(2);
  }
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  if (error != std::errc{} || end != text.data() + text.size()) return {};
  if (value > (std::numeric_limits<std::uint64_t>::max() >> shift)) return {};
  return value << shift;
}

std::optional<std::vector<std::byte>> parse_bytes(std::string_view text) {
  std::vector<std::byte> out;
  while (!text.empty()) {
    if (text.front() == ' ') {
      text.remove_prefix(1);
      continue;
    }
    unsigned value = 0;
    if (text.size() < 2) return {};
    const auto [end, error] = std::from_chars(text.data(), text.data() + 2, value, 16);
    if (error != std::errc{} || end != text.data() + 2) return {};
    out.push_back(static_cast<std::byte>(value));
    text.remove_prefix(2);
  }
  if (out.empty()) return {};
  return out;
}

}  // namespace kvmid::ctl
