// SPDX-License-Identifier: GPL-2.0-or-later
#include "tests/unit/shm/cookie_run.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <deque>
#include <random>
#include <span>
#include <vector>

#include "daemon/core/generations.h"
#include "tests/unit/shm/shared_guest.h"

namespace kvmid::shm::testing {

namespace {

using Cell = std::uint64_t;  // the generation of the change that wrote it: no two changes write the same

constexpr std::uint64_t kPages = 40;
constexpr std::uint32_t kPlaces = 16;  // of the shared page: others share a place than in core::Generations
constexpr std::uint64_t kCells = kPages * kPageSize / sizeof(Cell);
constexpr std::size_t kAgents = 6;
constexpr std::size_t kQueueMax = 12;

struct Range {
  std::uint64_t first = 0;  // cells
  std::uint64_t count = 0;
  [[nodiscard]] Gpa gpa() const { return Gpa{first * sizeof(Cell)}; }
  [[nodiscard]] std::uint64_t bytes() const { return count * sizeof(Cell); }
};

/// What an agent knows.
struct Snapshot {
  Range range;
  std::uint64_t cookie = 0;
  std::vector<Cell> cells;
  bool mapped = false;
  bool known = false;  // its reply has come
};

/// A command on its way to the hypervisor.
struct Command {
  Range range;
  std::uint64_t generation = 0;  // 0: a read
  std::uint64_t cookie = 0;      // of a read: when it was sent on
  std::size_t agent = 0;
  bool half_done = false;
};

class Run {
 public:
  explicit Run(const CookieOptions& options)
      : options_(options),
        random_(options.seed),
        guest_(kPages * kPageSize, kPlaces, memory_.current()),
        reader_(guest_.reader(1)),
        latest_(kCells) {}

  CookieResult play() {
    while (result_.writes < options_.writes) step();
    return result_;
  }

 private:
  std::uint64_t pick(std::uint64_t below) { return random_() % below; }

  Range some_range() {
    Range range{pick(kCells), 1 + pick(pick(8) == 0 ? 1200 : 12)};
    if (pick(3) == 0) range.first = (1 + pick(kPages - 1)) * (kPageSize / sizeof(Cell)) - 1 - pick(3);  // across pages
    range.count = std::min(range.count, kCells - range.first);
    return range;
  }

  void step() {
    Snapshot& agent = agents_[pick(kAgents)];
    const std::uint64_t dice = pick(2000);
    if (dice == 0) return change_map();
    if (dice < 300) return read_mapping(agent);
    if (dice < 500) return read_through_kvmid(static_cast<std::size_t>(&agent - agents_.data()));
    if (dice < 550) return write_blindly();
    if (dice < 1000) return write_with_cookie(agent);
    serve();
  }

  // ---- agents ----

  void read_mapping(Snapshot& agent) {
    const Range range = some_range();
    agent.cells.resize(range.count);
    const auto cookie = reader_.read_stable(range.gpa(), std::as_writable_bytes(std::span(agent.cells)));
    agent.known = cookie.has_value();
    if (!cookie) {
      ++result_.unstable;
      return;
    }
    agent.range = range;
    agent.cookie = *cookie;
    agent.mapped = true;
    // Nothing of it is under way, so RAM is what it will be when all is done.
    result_.wrong += std::equal(agent.cells.begin(), agent.cells.end(), at(range)) ? 0 : 1;
  }

  void read_through_kvmid(std::size_t agent) {
    if (queue_.size() >= kQueueMax) return;
    agents_[agent].known = false;
    queue_.push_back({.range = some_range(), .cookie = memory_.current(), .agent = agent});
  }

  void write_with_cookie(const Snapshot& agent) {
    if (!agent.known || queue_.size() >= kQueueMax) return;
    Range range{agent.range.first + pick(agent.range.count), 0};
    range.count = 1 + pick(agent.range.first + agent.range.count - range.first);
    ++result_.writes;
    const auto base = agent.cells.begin() + static_cast<std::ptrdiff_t>(range.first - agent.range.first);
    const bool is_latest = std::equal(at(range), at(range) + static_cast<std::ptrdiff_t>(range.count), base);
    if (!is_accepted(range, agent.cookie)) {
      ++result_.refused;
      result_.cautious += is_latest ? 1 : 0;
      return;
    }
    ++result_.accepted;
    ++(agent.mapped ? result_.mapped : result_.relayed);
    if (!is_latest) ++result_.undetected;
    send_write(range);
  }

  void write_blindly() {
    if (queue_.size() >= kQueueMax) return;
    ++result_.blind;
    send_write(some_range());
  }

  // ---- kvmid ----

  bool is_accepted(const Range& range, std::uint64_t cookie) const {
    if (options_.plant == CookiePlant::OneLater) cookie = std::min(cookie + 1, memory_.current());
    const std::uint64_t left_out = options_.plant == CookiePlant::OneShorter ? sizeof(Cell) : 0;
    return memory_.is_unchanged(range.gpa(), range.bytes() - left_out, cookie);
  }

  /// As GuestMachine::write_physical() and its shell do it.
  void send_write(const Range& range) {
    const std::uint64_t generation = memory_.current() + 1;
    guest_.page.begin_change(range.gpa(), range.bytes(), generation);
    memory_.change(range.gpa(), range.bytes());
    std::fill_n(at(range), range.count, generation);
    queue_.push_back({.range = range, .generation = generation});
  }

  /// Part of the memory is another one at once. What is still on its way is done to the new one.
  void change_map() {
    ++result_.map_changes;
    memory_.change_map();
    const Range range = some_range();
    fill(range, memory_.current());
    std::fill_n(at(range), range.count, memory_.current());
    for (const Command& command : queue_)
      if (command.generation != 0) std::fill_n(at(command.range), command.range.count, command.generation);
    guest_.page.change_map(memory_.current());
  }

  // ---- the hypervisor: in order, and a write in two halves ----

  void serve() {
    if (queue_.empty()) return;
    Command& command = queue_.front();
    if (command.generation == 0) {
      Snapshot& agent = agents_[command.agent];
      agent.range = command.range;
      agent.cookie = command.cookie;
      agent.mapped = false;
      agent.known = true;
      agent.cells.resize(command.range.count);
      std::memcpy(agent.cells.data(), guest_.ram.data() + command.range.gpa().value, command.range.bytes());
    } else if (!command.half_done) {
      fill({command.range.first, command.range.count / 2}, command.generation);
      command.half_done = true;
      return;
    } else {
      fill(command.range, command.generation);  // all of it: the map may have changed in between
      guest_.page.end_change(command.range.gpa(), command.range.bytes());
    }
    queue_.pop_front();
  }

  void fill(const Range& range, Cell cell) const { guest_.ram.fill(range.gpa(), range.bytes(), cell); }
  std::vector<Cell>::iterator at(const Range& range) {
    return latest_.begin() + static_cast<std::ptrdiff_t>(range.first);
  }

  CookieOptions options_;
  std::mt19937_64 random_;
  core::Generations memory_;
  SharedGuest guest_;
  client::MappedMemory reader_;
  std::vector<Cell> latest_;  // what memory will hold when everything that was accepted is done
  std::array<Snapshot, kAgents> agents_;
  std::deque<Command> queue_;
  CookieResult result_;
};

}  // namespace

CookieResult run_cookies(const CookieOptions& options) { return Run(options).play(); }

}  // namespace kvmid::shm::testing
