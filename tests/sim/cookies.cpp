// SPDX-License-Identifier: GPL-2.0-or-later
#include "tests/sim/cookies.h"

#include <algorithm>
#include <limits>

namespace kvmid::sim {

namespace {

constexpr std::string_view kI9 = "I9 a cookie is of the latest state";
/// No run makes so many changes.
constexpr std::uint64_t kAbsurd = std::uint64_t{1} << 32U;

}  // namespace

void Cookies::changed(AddressSpace space, std::uint64_t gpa, std::size_t size, Order from, Order to) {
  Space& s = of(space);
  each_page(gpa, size, [&](std::uint64_t page) { s.changed[page] = std::max(s.changed[page], from); });
  if (from < s.any_from) return;
  s.any_from = from;
  s.any_to = to;
}

void Cookies::map_changed(AddressSpace space, Order at) {
  Space& s = of(space);
  s.map_changed = s.any_from = s.any_to = at;
}

void Cookies::given(AddressSpace space, std::uint64_t cookie, Order at, Moment moment) {
  const auto violated = [](const std::string& text) { violate_or_go_on(std::string(kI9), text); };
  if (cookie == 0) violated("a cookie is 0, which is none");
  Space& s = of(space);
  // Replies come late: this one has its place among what was given before and after its time.
  const auto after = moment == Moment::First ? s.given.lower_bound(at) : s.given.upper_bound(at);
  if (after != s.given.end() && after->second < cookie)
    violated("the cookie " + std::to_string(cookie) + " was given before " + std::to_string(after->second));
  if (after != s.given.begin()) {
    const auto before = std::prev(after);
    if (before->second > cookie)
      violated("the cookie " + std::to_string(cookie) + " was given after " + std::to_string(before->second));
    if (before->second == cookie && s.any_from > before->first && s.any_to <= at)
      violated("a change left the cookie at " + std::to_string(cookie));
  }
  s.given.emplace_hint(after, at, cookie);
  Order& first = s.first_given.try_emplace(cookie, at).first->second;
  first = std::min(first, at);
  if (s.given.size() > kKept) s.given.erase(s.given.begin());
  if (s.first_given.size() > kKept) s.first_given.erase(s.first_given.begin());
}

Order Cookies::time_of(const Space& space, std::uint64_t cookie) {
  if (cookie == 0 || cookie >= kAbsurd) return 0;
  // One that was guessed is of a time before the next one that was given.
  const auto next = space.first_given.lower_bound(cookie);
  return next != space.first_given.end() ? next->second : std::numeric_limits<Order>::max();
}

bool Cookies::is_stale(AddressSpace space, std::uint64_t gpa, std::size_t size, std::uint64_t cookie) const {
  const Space& s = of(space);
  const Order time = time_of(s, cookie);
  bool stale = time == 0 || s.map_changed > time;
  each_page(gpa, size, [&](std::uint64_t page) { stale = stale || s.changed[page] > time; });
  return stale;
}

bool Cookies::is_stale(AddressSpace space, std::uint64_t cookie) const {
  const Space& s = of(space);
  const Order time = time_of(s, cookie);
  return time == 0 || s.any_from > time;
}

}  // namespace kvmid::sim
