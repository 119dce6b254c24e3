// SPDX-License-Identifier: GPL-2.0-or-later
// Event round trip: hypervisor -> middle -> decider and back, where the middle is nothing, a bare epoll relay, or kvmid.
//
// The three are measured in turn, batch by batch, in one run, so that a machine whose speed drifts drifts for all of them;
// ratios are what to read. Every peer is a process of its own. Then a decider falls silent, and the time until kvmid
// answers in its place is measured.
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <vector>

#include "bench/peers.h"

namespace {

using namespace kvmid;
using namespace kvmid::bench;
using Clock = std::chrono::steady_clock;

constexpr int kBatch = 500;
constexpr const char* kHelp = R"(bench-roundtrip: event round trip through kvmid, a bare epoll relay, and nothing.

  bench-roundtrip [--json] [--rounds N] [--stalls N] [--kvmid PATH] [--unpinned]

  --rounds N   round trips of each kind (default 20000)
  --stalls N   events whose decider stays silent, to measure the release at the deadline (default 20)
  --kvmid PATH the daemon to measure (default: beside this program)
  --unpinned   let the scheduler place the processes; without it all of them share one CPU, for otherwise it is mostly
               its placement that is measured
  --json       one JSON object; without it a table
)";

struct Options {
  bool json = false;
  bool pinned = true;
  int rounds = 20000;
  int stalls = 20;
  std::string kvmid;
};

/// A child that ends with its owner.
class Child {
 public:
  explicit Child(const std::function<void()>& body) : pid_(::fork()) {
    if (pid_ < 0) throw std::runtime_error("fork failed");
    if (pid_ != 0) return;
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    int status = 0;
    try {
      body();
    } catch (const std::exception& error) {
      std::fprintf(stderr, "bench-roundtrip: %s\n", error.what());
      status = 1;
    }
    ::_exit(status);
  }
  Child(Child&& other) noexcept : pid_(std::exchange(other.pid_, -1)) {}
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;
  Child& operator=(Child&&) = delete;
  ~Child() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGTERM);
    ::waitpid(pid_, nullptr, 0);
  }

 private:
  pid_t pid_;
};

/// Moves bytes both ways and knows nothing of them: what any process in the middle costs at least.
void relay(int a, int b) {
  const Fd epoll(::epoll_create1(EPOLL_CLOEXEC));
  for (const int fd : {a, b}) {
    epoll_event interest{};
    interest.events = EPOLLIN;
    interest.data.fd = fd;
    ::epoll_ctl(epoll.get(), EPOLL_CTL_ADD, fd, &interest);
    ::fcntl(fd, F_SETFL, O_NONBLOCK);
  }
  std::vector<std::byte> buffer(65536);
  for (;;) {
    epoll_event ready[2];
    const int n = ::epoll_wait(epoll.get(), ready, 2, -1);
    for (int i = 0; i < n; ++i) {
      const int from = ready[i].data.fd;
      const ssize_t got = ::recv(from, buffer.data(), buffer.size(), 0);
      if (got < 0 && errno == EAGAIN) continue;
      if (got <= 0) return;
      send_all(from == a ? b : a, Bytes(buffer.data(), static_cast<std::size_t>(got)));
    }
  }
}

struct Series {
  std::vector<double> us;
  void run(HypervisorPeer& hypervisor, const Event& event, int count) {
    for (int i = 0; i < count; ++i) {
      const auto start = Clock::now();
      (void)hypervisor.round_trip(event);
      us.push_back(std::chrono::duration<double, std::micro>(Clock::now() - start).count());
    }
  }
  [[nodiscard]] double quantile(double q) const {
    std::vector<double> sorted = us;
    std::sort(sorted.begin(), sorted.end());
    return sorted.empty() ? 0 : sorted[static_cast<std::size_t>(q * static_cast<double>(sorted.size() - 1))];
  }
  [[nodiscard]] nlohmann::json json() const { return {{"p50_us", quantile(0.5)}, {"p99_us", quantile(0.99)}, {"count", us.size()}}; }
};

/// A median of the ratios of batches that ran one after the other.
double paired_ratio(const Series& a, const Series& b) {
  std::vector<double> ratios;
  for (std::size_t at = 0; at + kBatch <= std::min(a.us.size(), b.us.size()); at += kBatch) {
    const auto median = [at](const Series& s) {
      std::vector<double> part(s.us.begin() + static_cast<std::ptrdiff_t>(at), s.us.begin() + static_cast<std::ptrdiff_t>(at + kBatch));
      std::nth_element(part.begin(), part.begin() + kBatch / 2, part.end());
      return part[kBatch / 2];
    };
    ratios.push_back(median(a) / median(b));
  }
  if (ratios.empty()) return 0;
  std::sort(ratios.begin(), ratios.end());
  return ratios[ratios.size() / 2];
}

std::pair<Fd, Fd> socket_pair() {
  int fds[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0) throw std::runtime_error("socketpair failed");
  return {Fd(fds[0]), Fd(fds[1])};
}

/// This process and all that it starts from now on share one CPU.
void pin() {
  cpu_set_t allowed;
  if (::sched_getaffinity(0, sizeof allowed, &allowed) != 0) throw std::runtime_error("cannot read the CPU affinity");
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &allowed)) continue;
    CPU_ZERO(&allowed);
    CPU_SET(cpu, &allowed);
    break;
  }
  if (::sched_setaffinity(0, sizeof allowed, &allowed) != 0) throw std::runtime_error("cannot set the CPU affinity");
}

nlohmann::json measure(const Options& options, const std::string& directory) {
  constexpr std::uint64_t kAlways = ~std::uint64_t{0};
  const Uuid guest{{0x62, 0x65, 0x6e, 0x63, 0x68, 1}};
  const Uuid silent_guest{{0x62, 0x65, 0x6e, 0x63, 0x68, 2}};
  const Event event = HypervisorPeer::cr4_event();
  std::vector<Child> children;

  // Nothing in the middle
  auto [direct_near, direct_far] = socket_pair();
  children.emplace_back([&] {
    direct_near = Fd();
    Stream stream(std::move(direct_far));
    decide(stream, kAlways);
  });
  direct_far = Fd();
  HypervisorPeer direct(std::move(direct_near));

  // A bare relay in the middle
  auto [relay_near, relay_a] = socket_pair();
  auto [relay_b, relay_far] = socket_pair();
  children.emplace_back([&] {
    relay_near = Fd();
    relay_far = Fd();
    relay(relay_a.get(), relay_b.get());
  });
  children.emplace_back([&] {
    relay_near = Fd();
    Stream stream(std::move(relay_far));
    decide(stream, kAlways);
  });
  relay_a = Fd();
  relay_b = Fd();
  relay_far = Fd();
  HypervisorPeer relayed(std::move(relay_near));

  // kvmid in the middle
  children.emplace_back([&] {
    ::execl(options.kvmid.c_str(), "kvmid", "--runtime-dir", directory.c_str(), "--log-level", "off", nullptr);
    throw std::runtime_error("cannot start " + options.kvmid + ": " + std::strerror(errno));
  });
  const auto patience = std::chrono::seconds(5);
  const auto connect_guest = [&](const Uuid& uuid, const std::string& name, std::uint64_t answers) {
    HypervisorPeer peer(connect_unix(directory + "/hypervisor.sock", patience));
    peer.hello(uuid, name);
    children.emplace_back([&, uuid, answers] {
      // The guest becomes known a moment after its hello; its hypervisor answers kvmid's questions meanwhile.
      for (int attempt = 0;; ++attempt) {
        try {
          Stream stream = attach_decider(directory + "/agent.sock", uuid);
          return decide(stream, answers);
        } catch (const std::runtime_error&) {
          if (attempt == 200) throw;
          ::usleep(10000);
        }
      }
    });
    peer.serve_until_subscribed(EventKind::Cr);
    return peer;
  };
  HypervisorPeer through_kvmid = connect_guest(guest, "bench", kAlways);

  Series direct_series;
  Series relay_series;
  Series kvmid_series;
  for (Series* series : {&direct_series, &relay_series, &kvmid_series}) series->us.reserve(static_cast<std::size_t>(options.rounds) + kBatch);
  {
    Series warm_up;
    warm_up.run(direct, event, kBatch);
    warm_up.run(relayed, event, kBatch);
    warm_up.run(through_kvmid, event, kBatch);
  }
  for (int done = 0; done < options.rounds; done += kBatch) {
    direct_series.run(direct, event, kBatch);
    relay_series.run(relayed, event, kBatch);
    kvmid_series.run(through_kvmid, event, kBatch);
  }

  nlohmann::json result = {{"schema", 1},
                           {"pinned", options.pinned},
                           {"direct", direct_series.json()},
                           {"relay", relay_series.json()},
                           {"kvmid", kvmid_series.json()},
                           {"kvmid_to_relay", paired_ratio(kvmid_series, relay_series)},
                           {"kvmid_to_direct", paired_ratio(kvmid_series, direct_series)},
                           {"relay_to_direct", paired_ratio(relay_series, direct_series)}};

  // Deciders that never answer: the default deadline of 100 ms, each released event by event. After three misses in a
  // row an agent only observes, so each of them is good for three measurements.
  constexpr double kDeadlineUs = 100'000;
  Series stalled;
  for (int guests = 0; static_cast<int>(stalled.us.size()) < options.stalls; ++guests) {
    Uuid uuid = silent_guest;
    uuid.bytes[6] = static_cast<std::uint8_t>(guests + 1);
    HypervisorPeer peer = connect_guest(uuid, "silent" + std::to_string(guests), 0);
    stalled.run(peer, event, 3);
  }
  if (!stalled.us.empty()) {
    result["deadline"] = {{"deadline_ms", kDeadlineUs / 1000},
                          {"count", stalled.us.size()},
                          {"released_after_ms", {{"p50", stalled.quantile(0.5) / 1000}, {"max", stalled.quantile(1) / 1000}}},
                          {"over_deadline_ms", {{"p50", (stalled.quantile(0.5) - kDeadlineUs) / 1000},
                                                {"max", (stalled.quantile(1) - kDeadlineUs) / 1000}}}};
  }
  return result;
}

void print_table(const nlohmann::json& result) {
  std::printf("event round trip      p50 us    p99 us\n");
  for (const char* kind : {"direct", "relay", "kvmid"})
    std::printf("  %-16s %9.1f %9.1f\n", kind, result[kind]["p50_us"].get<double>(), result[kind]["p99_us"].get<double>());
  std::printf("ratio of medians, batch by batch: kvmid to relay %.2f, kvmid to direct %.2f, relay to direct %.2f\n",
              result["kvmid_to_relay"].get<double>(), result["kvmid_to_direct"].get<double>(),
              result["relay_to_direct"].get<double>());
  if (result.contains("deadline")) {
    const auto& deadline = result["deadline"];
    std::printf("silent decider, deadline %.0f ms: vCPU released after %.2f ms (median), %.2f ms (slowest of %zu)\n",
                deadline["deadline_ms"].get<double>(), deadline["released_after_ms"]["p50"].get<double>(),
                deadline["released_after_ms"]["max"].get<double>(), deadline["count"].get<std::size_t>());
  }
}

int number(const char* text, const char* option) {
  char* end = nullptr;
  const long value = std::strtol(text, &end, 10);
  if (*text == '\0' || *end != '\0' || value < 0 || value > 10'000'000)
    throw std::runtime_error(std::string(option) + " takes a number from 0 to 10000000, is \"" + text + "\"");
  return static_cast<int>(value);
}

Options parse(int argc, char** argv) {
  Options options;
  options.kvmid = std::filesystem::read_symlink("/proc/self/exe").parent_path() / "kvmid";
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const bool has_value = i + 1 < argc;
    if (argument == "--json") options.json = true;
    else if (argument == "--unpinned") options.pinned = false;
    else if (argument == "--rounds" && has_value) options.rounds = number(argv[++i], "--rounds");
    else if (argument == "--stalls" && has_value) options.stalls = number(argv[++i], "--stalls");
    else if (argument == "--kvmid" && has_value) options.kvmid = argv[++i];
    else if (argument == "--help") {
      std::fputs(kHelp, stdout);
      std::exit(0);
    } else {
      throw std::runtime_error("do not understand \"" + argument + "\"; see --help");
    }
  }
  return options;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const Options options = parse(argc, argv);
    if (options.pinned) pin();
    char directory[] = "/tmp/kvmid-bench-XXXXXX";
    if (::mkdtemp(directory) == nullptr) throw std::runtime_error("cannot make a folder below /tmp");
    nlohmann::json result;
    try {
      result = measure(options, directory);
    } catch (...) {
      std::filesystem::remove_all(directory);
      throw;
    }
    std::filesystem::remove_all(directory);
    if (options.json) std::printf("%s\n", result.dump().c_str());
    else print_table(result);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "bench-roundtrip: %s\n", error.what());
    return 1;
  }
}
