// SPDX-License-Identifier: GPL-2.0-or-later
// Guest RAM in kvmid: what is mapped, what is handed on, and a hypervisor that takes it away.
#include "daemon/shm/guest_ram.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <catch2/catch.hpp>
#include <thread>

#include "tests/unit/shm/shared_guest.h"

namespace kvmid::shm::testing {

namespace {

constexpr std::uint64_t kRam = 16 * kPageSize;
using Bytes16 = std::array<std::byte, 16>;

std::string refusal(UniqueFd fd, std::uint64_t bytes) {
  const auto ram = GuestRam::map(std::move(fd), bytes);
  return ram ? "" : ram.error().text;
}

/// How a child process ends that runs f.
template <class F>
int status_of_child(F&& f) {
  const pid_t child = ::fork();
  if (child == 0) {
    f();
    ::_exit(0);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  return status;
}

/// The default handling of a signal, in a child of a test runner that has its own.
void plain_sigbus() { ::signal(SIGBUS, SIG_DFL); }

}  // namespace

TEST_CASE("guest RAM is read as it is now, and within its bounds", "[shm]") {
  const HypervisorRam file(kRam);
  const auto ram = must(GuestRam::map(file.passed(), kRam));
  REQUIRE(ram->bytes() == kRam);
  REQUIRE(ram->sealed());
  Bytes16 got{};
  file.data()[kRam - 1] = std::byte{0x5a};
  REQUIRE(ram->read(Gpa{kRam - 16}, got));
  REQUIRE(got[15] == std::byte{0x5a});
  REQUIRE(ram->read(Gpa{kRam}, {}));
  REQUIRE_FALSE(ram->read(Gpa{kRam - 15}, got));
  REQUIRE_FALSE(ram->read(Gpa{kRam}, got));
  REQUIRE_FALSE(ram->read(Gpa{~std::uint64_t{0}}, got));
  REQUIRE_FALSE(ram->read(Gpa{~std::uint64_t{0} - 7}, got));
  REQUIRE_FALSE(ram->failed());
}

TEST_CASE("what is not guest RAM is refused, and the reason is told", "[shm][hostile]") {
  const HypervisorRam file(kRam);
  REQUIRE(refusal(file.passed(), kRam + kPageSize).find("69632") != std::string::npos);
  REQUIRE(refusal(file.passed(), kRam - kPageSize).find("announced") != std::string::npos);
  REQUIRE(refusal(file.passed(), 0).find("whole pages") != std::string::npos);
  REQUIRE(refusal(file.passed(), kRam + 1).find("whole pages") != std::string::npos);
  REQUIRE(refusal(file.passed(), GuestRam::kRamBytesMax).find("2^46") != std::string::npos);
  REQUIRE(refusal(UniqueFd(), kRam).find("fstat") != std::string::npos);
  std::array<int, 2> ends{};
  REQUIRE(::pipe2(ends.data(), O_CLOEXEC) == 0);
  const UniqueFd writing(ends[1]);
  REQUIRE(refusal(UniqueFd(ends[0]), kRam).find("regular") != std::string::npos);
  REQUIRE(refusal(UniqueFd(::open("/proc/self/maps", O_RDONLY | O_CLOEXEC)), kRam).find("seals") != std::string::npos);
}

TEST_CASE("an unsealed file is mapped, and noted", "[shm]") {
  const HypervisorRam file(kRam, false);
  REQUIRE_FALSE(must(GuestRam::map(file.passed(), kRam))->sealed());
}

TEST_CASE("a hypervisor that cuts its RAM short loses its own mapping, and kvmid goes on", "[shm][hostile]") {
  const HypervisorRam file(kRam, false);
  const HypervisorRam other(kRam, false);
  other.data()[3] = std::byte{7};
  const auto ram = must(GuestRam::map(file.passed(), kRam));
  const auto others = must(GuestRam::map(other.passed(), kRam));
  Bytes16 got{};
  REQUIRE(ram->read(Gpa{8 * kPageSize}, got));
  REQUIRE(::ftruncate(file.fd(), 4 * kPageSize) == 0);
  REQUIRE(ram->read(Gpa{0}, got));  // that page is still there
  std::vector<std::byte> all(kRam);
  SECTION("behind the new end") { REQUIRE_FALSE(ram->read(Gpa{8 * kPageSize}, got)); }
  SECTION("across it") { REQUIRE_FALSE(ram->read(Gpa{4 * kPageSize - 8}, got)); }
  SECTION("all") { REQUIRE_FALSE(ram->read(Gpa{0}, all)); }
  REQUIRE(ram->failed());
  REQUIRE_FALSE(ram->read(Gpa{0}, got));  // dead for good
  REQUIRE(others->read(Gpa{0}, got));
  REQUIRE(got[3] == std::byte{7});
  REQUIRE_FALSE(others->failed());
  // The handler is still there, and SIGBUS not blocked: the next one is met as well.
  REQUIRE(::ftruncate(other.fd(), 0) == 0);
  REQUIRE_FALSE(others->read(Gpa{0}, got));
  sigset_t blocked;
  REQUIRE(::pthread_sigmask(SIG_BLOCK, nullptr, &blocked) == 0);
  REQUIRE(::sigismember(&blocked, SIGBUS) == 0);
}

TEST_CASE("faults of several threads at once meet their own reads", "[shm][hostile]") {
  constexpr unsigned kThreads = 8;
  std::atomic<unsigned> met{0};
  std::atomic<unsigned> good{0};
  const HypervisorRam whole(kRam);
  const auto healthy = must(GuestRam::map(whole.passed(), kRam));
  std::vector<std::thread> threads;
  for (unsigned i = 0; i < kThreads; ++i)
    threads.emplace_back([&] {
      for (unsigned round = 0; round < 50; ++round) {
        Bytes16 got{};
        const HypervisorRam file(kRam, false);
        auto ram = GuestRam::map(file.passed(), kRam);
        if (!ram || ::ftruncate(file.fd(), 0) != 0) return;
        if (!(*ram)->read(Gpa{kPageSize}, got) && (*ram)->failed()) met.fetch_add(1);
        if (healthy->read(Gpa{0}, got)) good.fetch_add(1);
      }
    });
  for (std::thread& thread : threads) thread.join();
  REQUIRE(met == kThreads * 50);
  REQUIRE(good == kThreads * 50);
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // sanitizers end a process in their own ways
TEST_CASE("a SIGBUS that is not ours ends the process, as ever", "[shm]") {
  const HypervisorRam file(kRam, false);
  const HypervisorRam stray(kRam, false);
  SECTION("another mapping's") {
    const int status = status_of_child([&] {
      plain_sigbus();
      const auto ram = must(GuestRam::map(file.passed(), kRam));
      if (::ftruncate(stray.fd(), 0) != 0) ::_exit(3);
      *const_cast<volatile std::byte*>(stray.data()) = std::byte{1};
    });
    REQUIRE(WIFSIGNALED(status));
    REQUIRE(WTERMSIG(status) == SIGBUS);
  }
  SECTION("sent by a process") {
    const int status = status_of_child([&] {
      plain_sigbus();
      const auto ram = must(GuestRam::map(file.passed(), kRam));
      ::raise(SIGBUS);
    });
    REQUIRE(WIFSIGNALED(status));
    REQUIRE(WTERMSIG(status) == SIGBUS);
  }
}
#endif

TEST_CASE("what an agent gets cannot be written, mapped writable, cut short or sealed", "[shm][hostile]") {
  const HypervisorRam file(kRam, false);
  const auto ram = must(GuestRam::map(file.passed(), kRam));
  const UniqueFd given = must(ram->read_only_fd());
  REQUIRE((::fcntl(given.get(), F_GETFL) & O_ACCMODE) == O_RDONLY);
  REQUIRE((::fcntl(given.get(), F_GETFD) & FD_CLOEXEC) != 0);
  REQUIRE(::mmap(nullptr, kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED, given.get(), 0) == MAP_FAILED);
  REQUIRE(errno == EACCES);
  void* const data = ::mmap(nullptr, kPageSize, PROT_READ, MAP_SHARED, given.get(), 0);
  REQUIRE(data != MAP_FAILED);
  REQUIRE(::mprotect(data, kPageSize, PROT_READ | PROT_WRITE) != 0);
  REQUIRE(errno == EACCES);
  ::munmap(data, kPageSize);
  REQUIRE(::pwrite(given.get(), "x", 1, 0) < 0);
  REQUIRE(::ftruncate(given.get(), 0) != 0);
  REQUIRE(::fallocate(given.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, kPageSize) != 0);
  REQUIRE(::fcntl(given.get(), F_ADD_SEALS, F_SEAL_WRITE) != 0);
  REQUIRE(errno == EPERM);
}

TEST_CASE("who could open RAM for writing by /proc is told by its owner, mode and seals", "[shm][hostile]") {
  const HypervisorRam file(kRam);
  const auto ram = must(GuestRam::map(file.passed(), kRam));
  const uid_t stranger = ::geteuid() + 4711;
  REQUIRE(ram->writable_by(::geteuid()));
  REQUIRE(ram->writable_by(0));
  REQUIRE_FALSE(ram->writable_by(stranger));
  for (const mode_t mode : {0777U, 0606U, 0660U, 0620U, 0602U}) {
    REQUIRE(::fchmod(file.fd(), mode) == 0);
    REQUIRE(ram->writable_by(stranger));
  }
  REQUIRE(::fchmod(file.fd(), 0444) == 0);
  REQUIRE_FALSE(ram->writable_by(stranger));
  REQUIRE(::fcntl(file.fd(), F_ADD_SEALS, F_SEAL_FUTURE_WRITE) == 0);  // its own mapping is made
  REQUIRE_FALSE(ram->writable_by(::geteuid()));
  REQUIRE_FALSE(ram->writable_by(0));
}

}  // namespace kvmid::shm::testing
