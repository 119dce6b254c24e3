// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// A machine room of guests, hypervisors and agents round the pure core, in which time is a number and chance a seed.
///
/// Purpose:  takes the place of sockets, clock and peers. Every message travels as the bytes of KVMI 2, in order within
///           its connection, and with delays of its own between connections.
/// Shapes:   happenings in the order of their time; a step is one input of the core.
/// Errors:   Violation out of run().

#include <array>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <queue>
#include <string>
#include <vector>

#include "daemon/core/guest_machine.h"
#include "tests/sim/counts.h"
#include "tests/sim/invariants.h"
#include "tests/sim/model_agent.h"
#include "tests/sim/model_hypervisor.h"
#include "tests/sim/rng.h"

namespace kvmid::sim {

/// Called with one line for each input and effect.
using TraceLine = std::function<void(const std::string&)>;

class World {
 public:
  explicit World(std::uint64_t seed);

  /// So many steps; then every agent goes, and what it leaves is looked at.
  void run(std::uint64_t steps, const std::function<bool()>& enough);
  void trace_to(TraceLine line) { trace_ = std::move(line); }
  [[nodiscard]] const Counts& counts() const { return counts_; }
  [[nodiscard]] std::uint64_t steps() const { return steps_; }
  /// The guest of the last thing that happened.
  [[nodiscard]] unsigned guest() const { return guest_; }

 private:
  static constexpr unsigned kPlaces = 6;  ///< agents of one guest
  enum class What : std::uint8_t {
    ToHypervisor,
    FromHypervisor,
    ToAgent,
    FromAgent,
    HypervisorSays,  ///< what was thought about is sent
    AgentSays,
    AgentActs,
    AgentGone,  ///< its connection ends
    VcpuRuns,
    Timer,
    Life,  ///< what happens to a guest from outside
    Connect,
  };
  struct Item {
    TimePoint at;
    std::uint64_t order = 0;
    What what{};
    unsigned guest = 0;
    unsigned who = 0;  ///< place or vCPU
    std::uint32_t generation = 0;
    std::size_t stash = 0;
    /// For a heap whose top is the earliest.
    friend bool operator<(const Item& a, const Item& b) { return a.at != b.at ? a.at > b.at : a.order > b.order; }
  };
  struct Pipe {
    std::deque<ByteBuffer> frames;
    TimePoint last{};
  };
  struct Place {
    bool used = false;
    std::uint32_t generation = 0;
    AgentId id;
    std::optional<ModelAgent> agent;
    Pipe down, up;
  };
  struct Guest {
    Guest(Rng& rng, Counts& counts) : hypervisor(rng, counts) {}
    std::unique_ptr<core::GuestMachine> machine;
    ModelHypervisor hypervisor;
    std::unique_ptr<Watch> watch;
    std::array<Place, kPlaces> places;
    Pipe to_hypervisor, from_hypervisor;
    std::uint32_t link = 0;  ///< generation
    bool connected = false;
    bool connecting = false;
    bool ready = false;  ///< was once: agents may attach
    bool stopping = false;
    bool garbage_coming = false;
    std::optional<TimePoint> unhook_asked;
    OffReason unhook_reason{};
    TimePoint stop_asked{};
    std::int64_t start_time = 1;
    std::int64_t told_start_time = 0;
    unsigned told_vcpus = 0;
    TimePoint armed = TimePoint::max();
    std::uint32_t timer = 0;  ///< generation
  };

  // world.cpp: time, messages, the core
  void happen(const Item& item);
  void schedule(What what, Duration after, unsigned guest, unsigned who, std::uint32_t generation,
                std::size_t stash = 0);
  void put(Pipe& pipe, ByteBuffer frame, What what, unsigned guest, unsigned who, std::uint32_t generation);
  void post(Sends& sends, What what, unsigned guest, unsigned who, std::uint32_t generation);
  ByteBuffer take(Pipe& pipe);
  template <class F>
  void step(unsigned guest, F&& input);
  void perform(unsigned index);
  void from_hypervisor(unsigned guest);
  void from_agent(unsigned guest, unsigned place);
  void close_link(Guest& guest);
  void arm(unsigned guest);

  // world_life.cpp: what happens to guests and agents
  void new_machine(Guest& guest);
  void connect(unsigned index);
  void lose_link(unsigned index, OffReason reason);
  void live(unsigned index);
  void attach(unsigned index);
  void lose(unsigned index, unsigned place);
  void change_grant(unsigned index);
  void settle_unhook(unsigned index);
  void settle_stop(unsigned index);
  void leave();
  [[nodiscard]] core::Grant some_grant();
  [[nodiscard]] HypervisorHello hello_of(unsigned index) const;
  [[nodiscard]] GetVersionReply some_version();
  std::optional<unsigned> some_place(Guest& guest);

  // trace.cpp
  void say(unsigned guest, const std::string& text) const;
  void say_effects(unsigned guest) const;

  Rng rng_;
  Counts counts_;
  DialectKvmi2 dialect_;
  std::vector<std::unique_ptr<Guest>> guests_;
  std::priority_queue<Item> items_;
  std::vector<ByteBuffer> stash_;
  std::vector<std::size_t> stash_free_;
  std::vector<ByteBuffer> spare_;
  core::Effects effects_;
  Sends sends_;
  TimePoint now_{std::chrono::hours(1)};
  std::uint64_t order_ = 0;
  std::uint64_t steps_ = 0;
  unsigned guest_ = 0;
  std::uint32_t agents_made_ = 0;
  std::uint64_t cookie_seed_ = 0;
  unsigned chaos_ = 1;  ///< how often Life strikes
  unsigned agents_wanted_ = 3;
  Duration command_timeout_{};
  bool leaving_ = false;
  TraceLine trace_;
};

/// One input of the core, what it makes of it, and what must hold then.
template <class F>
void World::step(unsigned index, F&& input) {
  Guest& guest = *guests_[index];
  ++steps_;
  effects_.clear();
  input();
  if (trace_) say_effects(index);
  guest.watch->effects(effects_, *guest.machine, now_);
  perform(index);
  guest.watch->check(*guest.machine, now_);
  arm(index);
}

/// "GET_CPUID vcpu 1": for people.
std::string text_of(const Command& command);
std::string text_of(const Event& event);
std::string text_of(const EventReply& reply);

}  // namespace kvmid::sim
