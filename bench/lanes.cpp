// SPDX-License-Identifier: GPL-2.0-or-later
#include "bench/lanes.h"

#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
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

/// The guest becomes known a moment after its hello; its hypervisor answers kvmid's questions meanwhile.
Stream attach_when_known(const std::string& directory, const Uuid& uuid) {
  std::string why;
  for (int attempt = 0;; ++attempt) {
    if (std::optional<Stream> stream = attach(directory + "/agent.sock", uuid, why)) return std::move(*stream);
    if (attempt == 200) throw std::runtime_error("kvmid does not let the agent attach: " + why);
    ::usleep(10000);
  }
}

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

Daemon::Daemon(const std::string& program) : Daemon(program, {}) {}

Daemon::Daemon(const std::string& program, std::string config) {
  char directory[] = "/tmp/kvmid-bench-XXXXXX";
  if (::mkdtemp(directory) == nullptr) throw std::runtime_error("cannot make a folder below /tmp");
  directory_ = directory;
  for (std::size_t at = 0; (at = config.find("$DIR", at)) != std::string::npos;) config.replace(at, 4, directory_);
  start(program, config);
}

void Daemon::start(const std::string& program, const std::string& config) {
  const std::string file = directory_ + "/kvmid.json";
  std::ofstream(file) << (config.empty() ? "{}" : config);
  process_.emplace([&] {
    ::execl(program.c_str(), "kvmid", "--config", file.c_str(), "--runtime-dir", directory_.c_str(), "--log-level",
            "off", nullptr);
    throw std::runtime_error("cannot start " + program + ": " + std::strerror(errno));
  });
}

Daemon::~Daemon() {
  process_.reset();
  std::error_code ignored;
  std::filesystem::remove_all(directory_, ignored);
}

Lane Daemon::new_guest(const std::string& name, Uuid& uuid, const kvmi1::Codec* dialect) {
  uuid = Uuid{{0x62, 0x65, 0x6e, 0x63, 0x68}};
  uuid.bytes[5] = ++guests_;
  Lane lane{HypervisorPeer(connect_unix(directory_ + "/hypervisor.sock", std::chrono::seconds(5)), dialect), {}};
  lane.hypervisor.hello(uuid, name);
  return lane;
}

Lane Daemon::lane_of(const std::string& name, const kvmi1::Codec* hypervisor, const kvmi1::Codec* tool) {
  auto [read_end, write_end] = make_pipe();
  Uuid uuid;
  std::optional<Lane> lane;
  if (tool == nullptr) {
    lane = new_guest(name, uuid, hypervisor);
    lane->children.emplace_back([&] {
      Stream stream = attach_when_known(directory_, uuid);
      wish(stream, {});
      if (::write(write_end.get(), "", 1) != 1) throw std::runtime_error("the bench is gone");
      decide(stream, kAlways);
    });
  } else {
    // The tool listens before its guest comes: kvmid dials at once.
    Fd listener = listen_unix(directory_ + "/" + name + ".sock");
    Child child([&] {
      Stream stream = greet(listener.get());
      wish(stream, *tool);
      if (::write(write_end.get(), "", 1) != 1) throw std::runtime_error("the bench is gone");
      decide(stream, *tool);
    });
    lane = new_guest(name, uuid, hypervisor);
    lane->children.push_back(std::move(child));
  }
  write_end = Fd();
  lane->hypervisor.serve_until_readable(read_end.get());
  char ready = 0;
  if (::read(read_end.get(), &ready, 1) != 1) throw std::runtime_error("the agent of " + name + " is gone");
  return std::move(*lane);
}

std::optional<Lane> Daemon::lane(const Agents& agents) {
  Uuid uuid;
  Lane lane = new_guest("bench" + std::to_string(guests_ + 1), uuid, nullptr);
  for (int i = 0; i < agents.audience.agents(); ++i) {
    const bool decides = i < agents.audience.deciders;
    auto [read_end, write_end] = make_pipe();
    lane.children.emplace_back([&] {
      Wishes wishes{.role = decides ? Role::Decider : Role::Observer};
      if (decides) wishes.filter = agents.filter;
      Stream stream = attach_when_known(directory_, uuid);
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
