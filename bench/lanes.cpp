// SPDX-License-Identifier: GPL-2.0-or-later
#include "bench/lanes.h"

#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <stdexcept>

namespace kvmid::bench {

namespace {

constexpr std::uint64_t kAlways = ~std::uint64_t{0};

/// Puts an agent at its end of a socket pair.
Child agent_at(Fd& end, bool decides) {
  return Child([&] {
    Stream stream(std::move(end));
    decide(stream, decides ? kAlways : 0);
  });
}

/// How attaching went, from the agent's process to ours.
enum class Attached : std::uint8_t { Yes, FilterNotServed };

}  // namespace

Lane direct_lane() {
  auto [near, far] = socket_pair();
  Lane lane{HypervisorPeer(std::move(near)), {}};
  lane.children.push_back(agent_at(far, true));
  return lane;
}

Lane relay_lane() {
  auto [near, a] = socket_pair();
  auto [b, far] = socket_pair();
  Lane lane{HypervisorPeer(std::move(near)), {}};
  lane.children.emplace_back([&] {
    far = Fd();
    relay(a.get(), b.get());
  });
  lane.children.push_back(agent_at(far, true));
  return lane;
}

Lane fan_out_lane(Audience audience) {
  auto [near, middle] = socket_pair();
  Lane lane{HypervisorPeer(std::move(near)), {}};
  std::vector<Fd> relay_ends;
  for (int i = 0; i < audience.agents(); ++i) {
    auto [relay_end, agent_end] = socket_pair();
    lane.children.push_back(agent_at(agent_end, i < audience.deciders));
    relay_ends.push_back(std::move(relay_end));
  }
  lane.children.emplace_back(
      [&] { relay_to_many(middle.get(), relay_ends, static_cast<std::size_t>(audience.deciders)); });
  return lane;
}

Daemon::Daemon(const std::string& program) {
  char directory[] = "/tmp/kvmid-bench-XXXXXX";
  if (::mkdtemp(directory) == nullptr) throw std::runtime_error("cannot make a folder below /tmp");
  directory_ = directory;
  process_.emplace([&] {
    ::execl(program.c_str(), "kvmid", "--runtime-dir", directory_.c_str(), "--log-level", "off", nullptr);
    throw std::runtime_error("cannot start " + program + ": " + std::strerror(errno));
  });
}

Daemon::~Daemon() {
  process_.reset();
  std::error_code ignored;
  std::filesystem::remove_all(directory_, ignored);
}

std::optional<Lane> Daemon::lane(const Agents& agents) {
  Uuid uuid{{0x62, 0x65, 0x6e, 0x63, 0x68}};
  uuid.bytes[5] = ++guests_;
  Lane lane{HypervisorPeer(connect_unix(directory_ + "/hypervisor.sock", std::chrono::seconds(5))), {}};
  lane.hypervisor.hello(uuid, "bench" + std::to_string(guests_));
  for (int i = 0; i < agents.audience.agents(); ++i) {
    const bool decides = i < agents.audience.deciders;
    auto [read_end, write_end] = make_pipe();
    lane.children.emplace_back([&] {
      Wishes wishes{.role = decides ? Role::Decider : Role::Observer};
      if (decides) wishes.filter = agents.filter;
      const auto attach_when_known = [&] {
        // The guest becomes known a moment after its hello; its hypervisor answers kvmid's questions meanwhile.
        std::string why;
        for (int attempt = 0;; ++attempt) {
          if (std::optional<Stream> stream = attach(directory_ + "/agent.sock", uuid, why)) return std::move(*stream);
          if (attempt == 200) throw std::runtime_error("kvmid does not let the agent attach: " + why);
          ::usleep(10000);
        }
      };
      Stream stream = attach_when_known();
      const auto how = wish(stream, wishes) ? Attached::Yes : Attached::FilterNotServed;
      if (::write(write_end.get(), &how, sizeof how) != sizeof how) throw std::runtime_error("the bench is gone");
      decide(stream, decides && !agents.silent ? kAlways : 0);
    });
    write_end = Fd();
    lane.hypervisor.serve_until_readable(read_end.get());
    Attached how{};
    if (::read(read_end.get(), &how, sizeof how) != sizeof how) throw std::runtime_error("an agent could not attach");
    if (how == Attached::FilterNotServed) return std::nullopt;
  }
  return lane;
}

}  // namespace kvmid::bench
