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
/// In place kvmid's own changes are looked for so often: a few loads.
constexpr Millis kPollEvery{10};
/// Of a change so many bytes are shown.
constexpr std::size_t kShownMax = 32;

std::string shown(std::span<const std::byte> bytes) {
  return hex_digits(bytes.first(std::min(bytes.size(), kShownMax))) + (bytes.size() > kShownMax ? ".." : "");
}

void print_changes(const Arguments& arguments, const std::vector<ChangedBytes>& changes, const ChangeMarks& before,
                   const ChangeMarks& after) {
  if (arguments.json) {
    Json list = Json::array();
    for (const auto& change : changes) {
      list.push_back({{"address", hex(*arguments.address + change.at)},
                      {"before", hex_digits(change.before)},
                      {"after", hex_digits(change.after)}});
    }
    const Json json{{"schema", 1},
                    {"time", timestamp()},
                    {"cookie_before", before.cookie},
                    {"cookie", after.cookie},
                    {"by", name_of(changed_by(before, after))},
                    {"changes", list}};
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

const char* name_of(ChangedBy by) {
  switch (by) {
    case ChangedBy::Guest: return "guest";
    case ChangedBy::Kvmid: return "kvmid";
    case ChangedBy::Unknown: return "unknown";
  }
  return "";
}

ChangedBy changed_by(const ChangeMarks& before, const ChangeMarks& after) {
  if (before.cookie == after.cookie) return ChangedBy::Guest;
  if (!before.in_place || !after.in_place) return ChangedBy::Unknown;
  return *before.in_place == *after.in_place ? ChangedBy::Guest : ChangedBy::Kvmid;
}

std::string cookie_words(const ChangeMarks& before, const ChangeMarks& after) {
  std::string text = "cookie " + std::to_string(before.cookie);
  if (before.cookie != after.cookie) text += " -> " + std::to_string(after.cookie);
  switch (changed_by(before, after)) {
    case ChangedBy::Guest: return text + ": the guest's own store, which no cookie sees";
    case ChangedBy::Kvmid: return text + ": changed through kvmid";
    case ChangedBy::Unknown: return text + ": kvmid saw changes of guest memory, here or elsewhere";
  }
  return text;
}

namespace {

/// The range, looked at again and again.
class Watched {
 public:
  Watched(const Arguments& arguments, GuestMemory& memory) : arguments_(arguments), memory_(memory) {}

  Result<ChangeMarks, ClientError> look(std::span<std::byte> out) {
    ChangeMarks marks;
    marks.in_place = changes();  // in front of the bytes: a change while they are read is one more look, not one missed
    const auto cookie = memory_.read(*arguments_.address, out);
    if (!cookie) return cookie.error();
    marks.cookie = *cookie;
    return marks;
  }
  /// How kvmid's own changes of the range are counted, if that is at hand.
  [[nodiscard]] std::optional<std::uint64_t> changes() {
    // What a virtual address means may change without a change of its bytes.
    const MappedMemory* mapped = arguments_.memory.is_virtual ? nullptr : memory_.mapped();
    if (mapped == nullptr) return {};
    const auto count = mapped->changes_of(Gpa{*arguments_.address}, arguments_.length);
    if (!count) return {};
    return *count;
  }
  /// Waits for the time of the next look, or, in place, for kvmid to change something of the range. True: it is time to
  /// end.
  bool wait(SteadyClock::time_point next, const ChangeMarks& last, StopSignal& stop) {
    for (;;) {
      const int left = poll_timeout(next);
      if (left == 0) return stop.wait(Millis{0});
      const auto pause = last.in_place ? std::min(Millis{left}, kPollEvery) : Millis{left};
      if (stop.wait(pause)) return true;
      if (last.in_place && changes() != last.in_place) return false;
    }
  }

 private:
  const Arguments& arguments_;
  GuestMemory& memory_;
};

}  // namespace

int mem_watch(const Arguments& arguments) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);  // lines are whole also in a pipe
  StopSignal stop;
  auto memory = GuestMemory::open(arguments);
  if (!memory) return explain(memory.error());
  if (auto fine = memory->check(*arguments.address, arguments.length); !fine) return explain(fine.error());
  Watched watched(arguments, *memory);
  std::vector<std::byte> before(arguments.length), after(arguments.length);
  const auto first = watched.look(before);
  if (!first) return explain(first.error());
  ChangeMarks last = *first;
  std::fprintf(
      stderr,
      "kvmictl: watching %s%s, cookie %llu. A cookie sees writes and patches through kvmid and changes of the memory "
      "map,\nnot the guest's own stores, so the bytes are compared; what changes and changes back between two "
      "looks is not seen.\n",
      hex(*arguments.address).c_str(), last.in_place ? " in place" : "", static_cast<unsigned long long>(last.cookie));
  const auto interval =
      std::chrono::duration_cast<SteadyClock::duration>(std::chrono::duration<double>(arguments.interval_seconds));
  auto next = SteadyClock::now();
  for (std::uint64_t changes = 0;;) {
    // From look to look, without drift; a look that took too long is followed by the next one in an interval. One that
    // kvmid's change called for is an extra one.
    const auto now = SteadyClock::now();
    if (now >= next) next = std::max(next + interval, now);
    if (watched.wait(next, last, stop)) return kOk;
    const auto seen = watched.look(after);
    if (!seen) return explain(seen.error());
    const auto differences = changed_bytes(before, after);
    if (!differences.empty()) {
      print_changes(arguments, differences, last, *seen);
      if (std::ferror(stdout) != 0) return kFailed;
      if (++changes == arguments.count) return kOk;
    }
    before.swap(after);
    last = *seen;
  }
}

}  // namespace kvmid::ctl
