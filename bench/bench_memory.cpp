// SPDX-License-Identifier: GPL-2.0-or-later
// Guest memory read in place, over the socket and by relayed messages, and writes with and without a cookie.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "bench/lanes.h"
#include "bench/memory_guest.h"
#include "client/agent_client.h"
#include "client/mapped_memory.h"

namespace {

using namespace kvmid;
using namespace kvmid::bench;
using client::MappedMemory;

constexpr const char* kHelp = R"(bench-memory: guest memory read in place, over the socket, and relayed.

  bench-memory [--json] [--batches N] [--kvmid PATH] [--unpinned]

  --batches N  batches of each lane in each row (default 40)
  --kvmid PATH the daemon to measure (default: beside this program)
  --unpinned   let the scheduler place the processes; without it all of them share one CPU
  --json       one JSON object; without it a table

The lanes of a row are measured in turn, a batch at a time, so that a machine whose speed drifts drifts for all of
them. Ratios are the medians of the ratios of batches that followed each other, and what to read.
  memcpy     of the same guest pages, from a mapping of them
  mapped     MappedMemory::read_stable(): the same, and whole, and with a cookie
  scatter    AgentClient::read_scatter(): READ_PHYSICAL, answered by kvmid from shared RAM
  page       one READ_PHYSICAL of one page at a time, answered by kvmid
  relayed    the same of a guest whose hypervisor shares no RAM
  write      WRITE_PHYSICAL of 8 bytes; the same with a cookie
The guest is RAM and nothing else: its hypervisor only copies.
)";

struct Options {
  bool json = false;
  bool pinned = true;
  int batches = 40;
  std::string kvmid;
};

Options parse(int argc, char** argv) {
  Options options;
  options.kvmid = std::filesystem::read_symlink("/proc/self/exe").parent_path() / "kvmid";
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const bool has_value = i + 1 < argc;
    if (argument == "--json") options.json = true;
    else if (argument == "--unpinned") options.pinned = false;
    else if (argument == "--kvmid" && has_value) options.kvmid = argv[++i];
    else if (argument == "--batches" && has_value) {
      options.batches = std::atoi(argv[++i]);
      if (options.batches < 1 || options.batches > 10000)
        throw std::runtime_error("--batches takes a number from 1 to 10000");
    } else if (argument == "--help") {
      std::fputs(kHelp, stdout);
      std::exit(0);
    } else {
      throw std::runtime_error("do not understand \"" + argument + "\"; see --help");
    }
  }
  return options;
}

constexpr std::uint64_t kRam = 64U << 20U;
constexpr std::size_t kBatchBytes = 16U << 20U;
constexpr int kPagesPerBatch = 500;

template <class T, class E>
T must(Result<T, E> result, const char* what) {
  if (!result) throw std::runtime_error(std::string(what) + " failed");
  return std::move(result).value();
}
template <class T>
T must(Result<T, client::ClientError> result, const char* what) {
  if (!result) throw std::runtime_error(std::string(what) + ": " + result.error().text);
  return std::move(result).value();
}

struct Lane {
  std::string name;
  std::function<void()> batch;
  std::vector<double> seconds{};
};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values.empty() ? 0 : values[values.size() / 2];
}

/// In turn, after a batch each that does not count.
void measure(std::vector<Lane>& lanes, int batches) {
  using Clock = std::chrono::steady_clock;
  for (Lane& lane : lanes) lane.batch();
  for (int i = 0; i < batches; ++i)
    for (Lane& lane : lanes) {
      const auto start = Clock::now();
      lane.batch();
      lane.seconds.push_back(std::chrono::duration<double>(Clock::now() - start).count());
    }
}

/// How often b's time is a's.
double ratio(const Lane& a, const Lane& b) {
  std::vector<double> ratios;
  for (std::size_t i = 0; i < std::min(a.seconds.size(), b.seconds.size()); ++i)
    ratios.push_back(a.seconds[i] / b.seconds[i]);
  return median(ratios);
}

double gb_per_s(const Lane& lane, std::size_t bytes) { return static_cast<double>(bytes) / median(lane.seconds) / 1e9; }
/// Of the fastest batch: what is left of it when others do not use the machine.
double best_gb_per_s(const Lane& lane, std::size_t bytes) {
  return static_cast<double>(bytes) / *std::min_element(lane.seconds.begin(), lane.seconds.end()) / 1e9;
}
double us_each(const Lane& lane, int count) { return median(lane.seconds) * 1e6 / count; }

AgentClient attach(const std::string& directory, const Uuid& guest) {
  client::ConnectOptions options;
  options.socket = directory + "/agent.sock";
  options.name = "bench";
  options.guest = guest;
  for (int attempt = 0;; ++attempt) {  // a guest becomes known a moment after its hello
    auto agent = AgentClient::connect(options);
    if (agent) return std::move(agent).value();
    if (attempt == 500) throw std::runtime_error(agent.error().text);
    ::usleep(10000);
  }
}

/// A plain mapping of the pages that the agent was granted, to compare with.
class PlainMapping {
 public:
  PlainMapping(int fd, std::uint64_t bytes) : bytes_(bytes) {
    data_ = ::mmap(nullptr, bytes, PROT_READ, MAP_SHARED, fd, 0);
    if (data_ == MAP_FAILED) throw std::runtime_error("cannot map guest RAM");
  }
  PlainMapping(const PlainMapping&) = delete;
  PlainMapping& operator=(const PlainMapping&) = delete;
  ~PlainMapping() { ::munmap(data_, bytes_); }
  [[nodiscard]] const std::byte* data() const { return static_cast<const std::byte*>(data_); }

 private:
  void* data_ = nullptr;
  std::uint64_t bytes_;
};

struct Subjects {
  AgentClient& shared;
  AgentClient& relayed;
  const MappedMemory& memory;
  const PlainMapping& plain;
  int batches;
};

nlohmann::json mapped_row(const Subjects& s, std::size_t block) {
  std::vector<std::byte> to(block);
  std::uint64_t at_plain = 0, at_mapped = 0;  // both walk through all of RAM
  const auto walk = [block](std::uint64_t& at) {
    at = (at + block) % kRam;
    return at;
  };
  std::vector<Lane> lanes{{"memcpy",
                           [&] {
                             for (std::size_t done = 0; done < kBatchBytes; done += block) {
                               std::memcpy(to.data(), s.plain.data() + walk(at_plain), block);
                               asm volatile("" : : "r"(to.data()) : "memory");
                             }
                           }},
                          {"mapped", [&] {
                             for (std::size_t done = 0; done < kBatchBytes; done += block)
                               (void)must(s.memory.read_stable(Gpa{walk(at_mapped)}, to), "read_stable");
                           }}};
  measure(lanes, s.batches);
  return {{"block_bytes", block},
          {"memcpy_gb_per_s", gb_per_s(lanes[0], kBatchBytes)},
          {"mapped_gb_per_s", gb_per_s(lanes[1], kBatchBytes)},
          {"mapped_speed_to_memcpy", ratio(lanes[0], lanes[1])}};
}

/// `piece` bytes from anywhere, until a batch is full; the same pieces in each batch.
nlohmann::json scatter_row(const Subjects& s, std::size_t piece) {
  std::vector<std::byte> to(kBatchBytes);
  std::vector<client::PhysicalRange> ranges;
  std::mt19937_64 random(1);
  std::uniform_int_distribution<std::uint64_t> page(0, kRam / piece - 1);
  for (std::size_t at = 0; at < kBatchBytes; at += piece)
    ranges.push_back({Gpa{page(random) * piece}, std::span(to).subspan(at, piece)});
  std::vector<Lane> lanes{{"memcpy",
                           [&] {
                             for (const auto& range : ranges)
                               std::memcpy(range.out.data(), s.plain.data() + range.gpa.value, range.out.size());
                             asm volatile("" : : "r"(to.data()) : "memory");
                           }},
                          {"scatter", [&] { (void)must(s.shared.read_scatter(ranges), "read_scatter"); }}};
  measure(lanes, s.batches);
  for (const auto& range : ranges)
    if (range.out[0] != static_cast<std::byte>((range.gpa.value / kPageSize) & 0xff))
      throw std::runtime_error("read_scatter gave other bytes than the guest has");
  return {{"piece_bytes", piece},
          {"scatter_gb_per_s", gb_per_s(lanes[1], kBatchBytes)},
          {"scatter_best_gb_per_s", best_gb_per_s(lanes[1], kBatchBytes)},
          {"memcpy_gb_per_s", gb_per_s(lanes[0], kBatchBytes)},
          {"memcpy_speed_to_scatter", ratio(lanes[1], lanes[0])}};
}

Gpa page_gpa(int number) { return Gpa{static_cast<std::uint64_t>(number) * kPageSize}; }

nlohmann::json page_row(const Subjects& s) {
  const auto pages_of = [](AgentClient& agent) {
    return [&agent] {
      for (int i = 0; i < kPagesPerBatch; ++i)
        (void)must(agent.read_physical(page_gpa(i), kPageSize), "READ_PHYSICAL");
    };
  };
  std::vector<std::byte> to(kPageSize);
  std::vector<Lane> lanes{{"page", pages_of(s.shared)},
                          {"relayed", pages_of(s.relayed)},
                          {"mapped", [&] {
                             for (int i = 0; i < kPagesPerBatch; ++i)
                               (void)must(s.memory.read_stable(page_gpa(i), to), "read_stable");
                           }}};
  measure(lanes, s.batches);
  return {{"page_us", us_each(lanes[0], kPagesPerBatch)},
          {"relayed_us", us_each(lanes[1], kPagesPerBatch)},
          {"mapped_us", us_each(lanes[2], kPagesPerBatch)},
          {"relayed_to_page", ratio(lanes[1], lanes[0])},
          {"page_to_mapped", ratio(lanes[0], lanes[2])}};
}

nlohmann::json write_row(const Subjects& s) {
  constexpr Gpa kPlace{0x100000};
  const std::vector<std::byte> data(8);
  std::vector<Lane> lanes{{"write",
                           [&] {
                             for (int i = 0; i < kPagesPerBatch; ++i)
                               (void)must(s.shared.write_physical(kPlace, data), "WRITE_PHYSICAL");
                           }},
                          {"cookie", [&] {
                             std::uint64_t cookie = must(s.shared.write_physical(kPlace, data), "WRITE_PHYSICAL");
                             for (int i = 1; i < kPagesPerBatch; ++i) {
                               client::WriteOptions with;
                               with.cookie = cookie;
                               cookie = must(s.shared.write_physical(kPlace, data, with), "a write with a cookie");
                             }
                           }}};
  measure(lanes, s.batches);
  return {{"write_us", us_each(lanes[0], kPagesPerBatch)},
          {"cookie_us", us_each(lanes[1], kPagesPerBatch)},
          {"cookie_to_write", ratio(lanes[1], lanes[0])}};
}

nlohmann::json measure_all(const Options& options) {
  Daemon kvmid(options.kvmid);
  const MemoryGuest with{.uuid = Uuid{{'b', 'm', 1}}, .ram_bytes = kRam, .shared = true};
  const MemoryGuest without{.uuid = Uuid{{'b', 'm', 2}}, .ram_bytes = kRam, .shared = false};
  const std::string hypervisors = kvmid.directory() + "/hypervisor.sock";
  const Child first = serve_memory_guest(hypervisors, with);
  const Child second = serve_memory_guest(hypervisors, without);
  AgentClient shared = attach(kvmid.directory(), with.uuid);
  AgentClient relayed = attach(kvmid.directory(), without.uuid);
  const auto granted = must(shared.grant_memory(), "GRANT_MEMORY");
  const MappedMemory memory = must(MappedMemory::map(granted, {}), "mapping");
  const PlainMapping plain(granted.fds[0].get(), kRam);
  const Subjects subjects{shared, relayed, memory, plain, options.batches};

  nlohmann::json result = {{"schema", 1}, {"pinned", options.pinned}, {"batches", options.batches}};
  for (const std::size_t block : {std::size_t{4096}, std::size_t{64} << 10U, std::size_t{1} << 20U})
    result["mapped"].push_back(mapped_row(subjects, block));
  for (const std::size_t piece : {std::size_t{4096}, std::size_t{64} << 10U, std::size_t{1} << 20U})
    result["scatter"].push_back(scatter_row(subjects, piece));
  result["page"] = page_row(subjects);
  result["write"] = write_row(subjects);
  return result;
}

void print_table(const nlohmann::json& r) {
  std::printf("in place, blocks of      memcpy GB/s   mapped GB/s   mapped is memcpy's speed times\n");
  for (const auto& row : r["mapped"])
    std::printf("%16.0f KiB  %12.2f  %12.2f   %.3f\n", row["block_bytes"].get<double>() / 1024,
                row["memcpy_gb_per_s"].get<double>(), row["mapped_gb_per_s"].get<double>(),
                row["mapped_speed_to_memcpy"].get<double>());
  std::printf("over the socket, pieces  memcpy GB/s  scatter GB/s   (best)  memcpy is faster by\n");
  for (const auto& row : r["scatter"])
    std::printf("%16.0f KiB  %12.2f  %12.2f  %7.2f  %.2f\n", row["piece_bytes"].get<double>() / 1024,
                row["memcpy_gb_per_s"].get<double>(), row["scatter_gb_per_s"].get<double>(),
                row["scatter_best_gb_per_s"].get<double>(),
                row["memcpy_speed_to_scatter"].get<double>());
  const auto& page = r["page"];
  std::printf("one page: in place %.2f us, over the socket %.2f us, relayed %.2f us (relayed/socket %.2f)\n",
              page["mapped_us"].get<double>(), page["page_us"].get<double>(), page["relayed_us"].get<double>(),
              page["relayed_to_page"].get<double>());
  const auto& write = r["write"];
  std::printf("write of 8 bytes: plain %.2f us, with a cookie %.2f us (%.3f)\n", write["write_us"].get<double>(),
              write["cookie_us"].get<double>(), write["cookie_to_write"].get<double>());
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const Options options = parse(argc, argv);
    if (options.pinned) pin_to_one_cpu();
    const nlohmann::json result = measure_all(options);
    if (options.json) std::printf("%s\n", result.dump().c_str());
    else print_table(result);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "bench-memory: %s\n", error.what());
    return 1;
  }
}
