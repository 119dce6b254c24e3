// SPDX-License-Identifier: GPL-2.0-or-later
#include "bench/processes.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <stdexcept>
#include <vector>

namespace kvmid::bench {

Child::Child(const std::function<void()>& body) : pid_(::fork()) {
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

Child::~Child() {
  if (pid_ <= 0) return;
  ::kill(pid_, SIGTERM);
  ::waitpid(pid_, nullptr, 0);
}

std::pair<Fd, Fd> socket_pair() {
  int fds[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0) throw std::runtime_error("socketpair failed");
  return {Fd(fds[0]), Fd(fds[1])};
}

std::pair<Fd, Fd> make_pipe() {
  int fds[2];
  if (::pipe2(fds, O_CLOEXEC) != 0) throw std::runtime_error("pipe failed");
  return {Fd(fds[0]), Fd(fds[1])};
}

namespace {

void watch(int epoll, int fd, std::uint32_t tag) {
  epoll_event interest{};
  interest.events = EPOLLIN;
  interest.data.u32 = tag;
  if (::epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &interest) != 0) throw std::runtime_error("epoll_ctl failed");
  ::fcntl(fd, F_SETFL, O_NONBLOCK);
}

}  // namespace

void relay(int a, int b) {
  const Fd epoll(::epoll_create1(EPOLL_CLOEXEC));
  watch(epoll.get(), a, 0);
  watch(epoll.get(), b, 1);
  std::vector<std::byte> buffer(65536);
  for (;;) {
    epoll_event ready[2];
    const int n = ::epoll_wait(epoll.get(), ready, 2, -1);
    for (int i = 0; i < n; ++i) {
      const bool from_a = ready[i].data.u32 == 0;
      const ssize_t got = ::recv(from_a ? a : b, buffer.data(), buffer.size(), 0);
      if (got < 0 && errno == EAGAIN) continue;
      if (got <= 0) return;
      send_all(from_a ? b : a, Bytes(buffer.data(), static_cast<std::size_t>(got)));
    }
  }
}

void relay_to_many(int hypervisor, std::span<const Fd> agents, std::size_t deciders) {
  const Fd epoll(::epoll_create1(EPOLL_CLOEXEC));
  const auto hypervisor_tag = static_cast<std::uint32_t>(agents.size());
  for (std::uint32_t i = 0; i < agents.size(); ++i) watch(epoll.get(), agents[i].get(), i);
  watch(epoll.get(), hypervisor, hypervisor_tag);
  std::vector<std::byte> buffer(65536);
  std::vector<epoll_event> ready(agents.size() + 1);
  std::size_t replies = 0;
  for (;;) {
    const int n = ::epoll_wait(epoll.get(), ready.data(), static_cast<int>(ready.size()), -1);
    for (int i = 0; i < n; ++i) {
      const std::uint32_t tag = ready[static_cast<std::size_t>(i)].data.u32;
      const int from = tag == hypervisor_tag ? hypervisor : agents[tag].get();
      const ssize_t got = ::recv(from, buffer.data(), buffer.size(), 0);
      if (got < 0 && errno == EAGAIN) continue;
      if (got <= 0) return;
      const Bytes bytes(buffer.data(), static_cast<std::size_t>(got));
      if (tag == hypervisor_tag) {
        for (const Fd& agent : agents) send_all(agent.get(), bytes);
      } else if (++replies == deciders) {
        replies = 0;
        send_all(hypervisor, bytes);
      }
    }
  }
}

void pin_to_one_cpu() {
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

}  // namespace kvmid::bench
