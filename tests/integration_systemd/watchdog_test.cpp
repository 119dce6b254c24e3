// SPDX-License-Identifier: GPL-2.0-or-later
//
// Signs of life for WatchdogSec=: while every shard answers, and only then.

#include <sys/ptrace.h>
#include <sys/wait.h>

#include <catch2/catch.hpp>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <set>

#include "tests/integration_systemd/manager.h"

namespace kvmid::test {
namespace {

constexpr const char* kWatchdog = "WATCHDOG_USEC=20000";  // a sign of life every 10 ms

/// Thread ids of the process with that name.
pid_t thread_named(pid_t pid, const std::string& name) {
  for (const auto& entry : std::filesystem::directory_iterator("/proc/" + std::to_string(pid) + "/task")) {
    std::ifstream in(entry.path() / "comm");
    std::string comm;
    if (std::getline(in, comm) && comm == name) return std::stoi(entry.path().filename());
  }
  throw TestError("kvmid has no thread " + name);
}

/// One thread of a process stands still, all others go on, as if it hung.
class HungThread {
 public:
  explicit HungThread(pid_t tid) : tid_(tid) {
    if (::ptrace(PTRACE_SEIZE, tid_, nullptr, nullptr) != 0)
      throw TestError(std::string("ptrace: ") + std::strerror(errno));
    int status = 0;
    if (::ptrace(PTRACE_INTERRUPT, tid_, nullptr, nullptr) != 0 || ::waitpid(tid_, &status, __WALL) != tid_ ||
        !WIFSTOPPED(status))
      throw TestError("the thread does not stop");
  }
  ~HungThread() { go_on(); }
  HungThread(const HungThread&) = delete;
  HungThread& operator=(const HungThread&) = delete;
  void go_on() {
    if (tid_ != 0) ::ptrace(PTRACE_DETACH, tid_, nullptr, nullptr);
    tid_ = 0;
  }

 private:
  pid_t tid_;
};

}  // namespace

TEST_CASE("without WatchdogSec= there are no signs of life and nothing wakes kvmid", "[integration][systemd]") {
  const RuntimeFolder folder;
  Manager manager(folder);
  manager.start_ready({.config = open_config()});
  REQUIRE(guests_at(manager.agents()) == 0);
  REQUIRE(manager.count("WATCHDOG=1") == 0);
}

TEST_CASE("signs of life come while every shard answers, and stop while one hangs", "[integration][systemd]") {
  const RuntimeFolder folder;
  Manager manager(folder);
  manager.start_ready({.config = open_config(3), .environment = {kWatchdog}});
  REQUIRE(wait_until([&] { return manager.count("WATCHDOG=1") >= 5; }));

  HungThread hung(thread_named(manager.process().pid(), "shard-1"));
  // The one that this shard had answered already may still come; the front goes on, or nothing would be proved.
  const std::size_t before = manager.count("WATCHDOG=1");
  for (int i = 0; i < 50; ++i) {
    REQUIRE(guests_at(manager.agents()) == 0);
    const auto turn = std::chrono::steady_clock::now() + Millis{5};
    REQUIRE(wait_until([&] { return std::chrono::steady_clock::now() >= turn; }));
  }
  REQUIRE(manager.count("WATCHDOG=1") <= before + 1);

  hung.go_on();
  const std::size_t after = manager.count("WATCHDOG=1");
  REQUIRE(wait_until([&] { return manager.count("WATCHDOG=1") >= after + 5; }));
}

TEST_CASE("a watchdog that is meant for another process is not served", "[integration][systemd]") {
  const RuntimeFolder folder;
  Manager manager(folder);
  manager.start_ready({.config = open_config(), .environment = {kWatchdog, "WATCHDOG_PID=1"}});
  for (int i = 0; i < 20; ++i) {
    REQUIRE(guests_at(manager.agents()) == 0);
  }
  REQUIRE(manager.count("WATCHDOG=1") == 0);
}

TEST_CASE("kvmid stops cleanly while it gives signs of life", "[integration][systemd]") {
  const RuntimeFolder folder;
  Manager manager(folder);
  manager.start_ready({.config = open_config(), .environment = {kWatchdog}});
  REQUIRE(wait_until([&] { return manager.count("WATCHDOG=1") >= 2; }));

  manager.process().signal(SIGTERM);

  REQUIRE(manager.process().wait_exit() == Exit{0, 0});
  REQUIRE(manager.said().back().says("STOPPING=1"));
}

}  // namespace kvmid::test
