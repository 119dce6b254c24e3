// SPDX-License-Identifier: GPL-2.0-or-later
#include "daemon/core/generations.h"

#include "daemon/core/planted.h"

namespace kvmid::core {

bool Generations::is_unchanged(Gpa gpa, std::uint64_t size, std::uint64_t cookie) const {
  if (cookie == 0 || cookie > current_ || floor_ > cookie) return false;
  if (places_.empty()) return true;
  if (planted(Planted::CookieOffByOne)) ++cookie;
  bool unchanged = true;
  each_place(gpa, size, [&](std::size_t place) { unchanged = unchanged && places_[place] <= cookie; });
  return unchanged;
}

void Generations::change(Gpa gpa, std::uint64_t size) {
  ++current_;
  places_.resize(kPlaces);
  each_place(gpa, size, [&](std::size_t place) { places_[place] = current_; });
}

void Generations::change_map() { floor_ = ++current_; }

}  // namespace kvmid::core
