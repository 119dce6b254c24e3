// SPDX-License-Identifier: GPL-2.0-or-later
#include "kvmictl/mem_watch.h"

#include <algorithm>
#include <chrono>
#include <cstdio>

#include "client/agent_loop.h"
#include "client/event_text.h"
#include "kvmictl/guest_commands.h"
#include "kvmictl/guest_memory.h"
#include "kvmictl/render.h"

namespace kvmid::ctl {

using namespace kvmid::client;  // NOLINT(google-build-using-namespace): this file is an agent

namespace {

constexpr std::size_t kGapMax = 7;
/// Of a change so many bytes are shown.
constexpr std::size_t kShownMax = 32;

std::string shown(std::span<const std::byte> bytes) {
  return hex_digits(bytes.first(std::min(bytes.size(), kShownMax))) + (bytes.size() > kShownMax ? ".." : "");
}

void print_changes(const Arguments& arguments, const std::vector<ChangedBytes>& changes, std::uint64_t before,
                   std::uint64_t after) {
  if (arguments.json) {
    Json list = Json::array();
    for (const auto& change : changes) {
      list.push_back({{"address", hex(*arguments.address + change.at)},
                      {"before", hex_digits(change.before)},
                      {"after", hex_digits(change.after)}});
    }
    const Json json{
        {"schema", 1}, {"time", timestamp()}, {"cookie_before", before}, {"cookie", after}, {"changes", list}};
    std::fprintf(stdout, "%s\n", json.dump().c_str());
    return;
  }
  const std::string why = cookie_words(before, after);
  for (const auto& change : changes) {
    std::fprintf(stdout, "%s %s  %s -> %s  %s\n", time_of_day().c_str(), hex(*arguments.address + change.at).c_str(),
                 shown(change.before).c_str(), shown(change.after).c_str(), why.c_str());
  }
}

}  // namespace

std::vector<ChangedBytes> changed_bytes(std::span<const std::byte> before, std::span<const std::byte> after) {
  std::vector<ChangedBytes> changes;
  for (std::size_t i = 0; i < before.size(); ++i) {
    if (before[i] == after[i]) continue;
    const bool near = !changes.empty() && i - (changes.back().at + changes.back().before.size()) <= kGapMax;
    if (!near) changes.push_back({i, {}, {}});
    ChangedBytes& last = changes.back();
    for (std::size_t j = last.at + last.before.size(); j <= i; ++j) {
      last.before.push_back(before[j]);
      last.after.push_back(after[j]);
    }
  }
  return changes;
}

std::string cookie_words(std::uint64_t before, std::uint64_t after) {
  if (before == after) return "cookie " + std::to_string(after) + ": the guest's own store, which no cookie sees";
  return "cookie " + std::to_string(before) + " -> " + std::to_string(after) +
         ": kvmid saw changes of guest memory, here or elsewhere";
}

int mem_watch(const Arguments& arguments) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);  // lines are whole also in a pipe
  StopSignal stop;
  auto memory = GuestMemory::open(arguments);
  if (!memory) return explain(memory.error());
  if (auto fine = memory->check(*arguments.address, arguments.length); !fine) return explain(fine.error());
  std::vector<std::byte> before(arguments.length), after(arguments.length);
  auto cookie = memory->read(*arguments.address, before);
  if (!cookie) return explain(cookie.error());
  std::fprintf(
      stderr,
      "kvmictl: watching %s, cookie %llu. A cookie sees writes and patches through kvmid and changes of the memory "
      "map,\nnot the guest's own stores, so the bytes are compared; what changes and changes back between two "
      "looks is not seen.\n",
      hex(*arguments.address).c_str(), static_cast<unsigned long long>(*cookie));
  const auto interval =
      std::chrono::duration_cast<SteadyClock::duration>(std::chrono::duration<double>(arguments.interval_seconds));
  auto next = SteadyClock::now();
  for (std::uint64_t changes = 0;;) {
    // From look to look, without drift; a look that took too long is followed by the next one in an interval.
    next = std::max(next + interval, SteadyClock::now());
    for (int left = poll_timeout(next); left != 0; left = poll_timeout(next)) {
      if (stop.wait(Millis{left})) return kOk;
    }
    if (stop.wait(Millis{0})) return kOk;
    const auto seen = memory->read(*arguments.address, after);
    if (!seen) return explain(seen.error());
    const auto differences = changed_bytes(before, after);
    if (!differences.empty()) {
      print_changes(arguments, differences, *cookie, *seen);
      if (std::ferror(stdout) != 0) return kFailed;
      if (++changes == arguments.count) return kOk;
    }
    before.swap(after);
    cookie = *seen;
  }
}

}  // namespace kvmid::ctl
