// SPDX-License-Identifier: GPL-2.0-or-later
#include "tests/support/process.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <condition_variable>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <fstream>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

namespace kvmid::test {
namespace {

/// Lines kept of one stream; what comes later is counted and not kept.
constexpr std::size_t kLinesMax = 500'000;
constexpr std::size_t kTailLines = 30;
constexpr Millis kLook{2};

struct Pipe {
  int read_end = -1;
  int write_end = -1;
};

Pipe make_pipe() {
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) throw std::system_error(errno, std::generic_category(), "pipe2");
  return {ends[0], ends[1]};
}

/// Bytes -> whole lines.
struct Lines {
  std::vector<std::string> whole;
  std::string part;
  std::size_t dropped = 0;

  void take(std::string_view bytes) {
    for (const char c : bytes) {
      if (c != '\n') {
        part.push_back(c);
      } else {
        flush();
      }
    }
  }
  void flush() {
    if (whole.size() < kLinesMax) {
      whole.push_back(std::move(part));
    } else {
      ++dropped;
    }
    part.clear();
  }
  void finish() {
    if (!part.empty()) flush();
  }
};

}  // namespace

bool wait_until(const std::function<bool()>& condition, Millis bound) {
  const auto until = std::chrono::steady_clock::now() + bound;
  while (!condition()) {
    if (std::chrono::steady_clock::now() >= until) return false;
    std::this_thread::sleep_for(kLook);
  }
  return true;
}

RuntimeFolder::RuntimeFolder() {
  std::string name = std::filesystem::temp_directory_path() / "kvmid-test-XXXXXX";
  if (::mkdtemp(name.data()) == nullptr) throw std::system_error(errno, std::generic_category(), "mkdtemp " + name);
  path_ = name;
}

RuntimeFolder::~RuntimeFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

std::string RuntimeFolder::write(std::string_view name, std::string_view text) const {
  std::string path = file(name);
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out << text;
  if (!out.flush()) throw TestError("cannot write " + path);
  return path;
}

std::filesystem::path program_path(std::string_view name) {
  return std::filesystem::read_symlink("/proc/self/exe").parent_path() / name;
}

struct Process::Child {
  std::string name;
  pid_t pid = -1;
  std::optional<Exit> exit;  ///< collected
  std::thread reader;
  mutable std::mutex mutex;
  std::condition_variable changed;
  std::array<Lines, 2> lines;  ///< stdout, stderr
  bool ended = false;          ///< both streams

  void read(std::array<int, 2> fds);
  bool collect(int flags);
};

void Process::Child::read(std::array<int, 2> fds) {
  std::array<char, 65536> buffer;
  while (fds[0] >= 0 || fds[1] >= 0) {
    std::array<pollfd, 2> polled{pollfd{fds[0], POLLIN, 0}, pollfd{fds[1], POLLIN, 0}};
    if (::poll(polled.data(), polled.size(), -1) < 0 && errno != EINTR) break;
    for (std::size_t i = 0; i < fds.size(); ++i) {
      if (polled[i].fd < 0 || polled[i].revents == 0) continue;
      const ssize_t got = ::read(fds[i], buffer.data(), buffer.size());
      if (got < 0 && errno == EINTR) continue;
      const std::lock_guard lock(mutex);
      if (got > 0) {
        lines[i].take({buffer.data(), static_cast<std::size_t>(got)});
      } else {
        lines[i].finish();
        ::close(std::exchange(fds[i], -1));
      }
      changed.notify_all();
    }
  }
  const std::lock_guard lock(mutex);
  ended = true;
  changed.notify_all();
}

/// Whether it has ended; with `flags` 0 waits until it has.
bool Process::Child::collect(int flags) {
  if (exit) return true;
  int status = 0;
  pid_t got = 0;
  do {
    got = ::waitpid(pid, &status, flags);
  } while (got < 0 && errno == EINTR);
  if (got != pid || (!WIFEXITED(status) && !WIFSIGNALED(status))) return false;
  exit = WIFEXITED(status) ? Exit{WEXITSTATUS(status), 0} : Exit{0, WTERMSIG(status)};
  return true;
}

Process::Process(std::string_view program, std::vector<std::string> arguments) : child_(std::make_unique<Child>()) {
  const std::string path =
      program.find('/') == std::string_view::npos ? program_path(program).string() : std::string(program);
  child_->name = program;
  // Everything that allocates comes before fork(): the child of a threaded process may only make system calls.
  arguments.insert(arguments.begin(), path);
  std::vector<char*> argv;
  for (auto& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  const Pipe out = make_pipe();
  const Pipe err = make_pipe();
  const Pipe failed = make_pipe();  // closed by a successful exec; carries errno of one that failed
  const pid_t parent = ::getpid();
  const pid_t pid = ::fork();
  if (pid < 0) throw std::system_error(errno, std::generic_category(), "fork");
  if (pid == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (::getppid() != parent) ::_exit(127);
    const int nothing = ::open("/dev/null", O_RDONLY);
    ::dup2(nothing, STDIN_FILENO);
    ::dup2(out.write_end, STDOUT_FILENO);
    ::dup2(err.write_end, STDERR_FILENO);
    ::execv(argv[0], argv.data());
    const int error = errno;
    [[maybe_unused]] const ssize_t written = ::write(failed.write_end, &error, sizeof error);
    ::_exit(127);
  }
  ::close(out.write_end);
  ::close(err.write_end);
  ::close(failed.write_end);
  child_->pid = pid;
  child_->reader = std::thread(&Child::read, child_.get(), std::array<int, 2>{out.read_end, err.read_end});
  int error = 0;
  const bool exec_failed = ::read(failed.read_end, &error, sizeof error) == sizeof error;
  ::close(failed.read_end);
  if (exec_failed) {
    end();
    throw TestError("cannot start " + path + ": " + std::strerror(error));
  }
}

Process::Process(Process&&) noexcept = default;

Process& Process::operator=(Process&& other) noexcept {
  if (this != &other) {
    end();
    child_ = std::move(other.child_);
  }
  return *this;
}

Process::~Process() {
  if (child_ && std::uncaught_exceptions() > 0) {
    try {
      std::fputs(tail().c_str(), stderr);
    } catch (...) {  // it is only a help for who reads the failure
    }
  }
  end();
}

void Process::end() noexcept {
  if (!child_) return;
  if (!child_->collect(WNOHANG)) {
    ::kill(child_->pid, SIGKILL);
    child_->collect(0);
  }
  if (child_->reader.joinable()) child_->reader.join();
}

pid_t Process::pid() const { return child_->pid; }

bool Process::running() { return !child_->collect(WNOHANG); }

void Process::signal(int number) {
  // Not after it was collected: its number may be another's by then.
  if (child_->collect(WNOHANG)) throw TestError("signal for a process that has ended\n" + tail());
  ::kill(child_->pid, number);
}

void Process::stop() {
  signal(SIGSTOP);
  const std::string stat = "/proc/" + std::to_string(pid()) + "/stat";
  const bool stopped = wait_until([&] {
    std::ifstream in(stat);
    std::string text;
    std::getline(in, text);
    const auto end_of_name = text.rfind(')');
    return end_of_name != std::string::npos && text.compare(end_of_name, 3, ") T") == 0;
  });
  if (!stopped) throw TestError(child_->name + " does not stop");
}

void Process::cont() { signal(SIGCONT); }

void Process::kill() {
  signal(SIGKILL);
  wait_exit();
}

Exit Process::wait_exit(Millis bound) {
  if (!wait_until([&] { return child_->collect(WNOHANG); }, bound)) {
    throw TestError(child_->name + " does not end\n" + tail());
  }
  if (child_->reader.joinable()) child_->reader.join();
  return *child_->exit;
}

std::vector<std::string> Process::output() const {
  const std::lock_guard lock(child_->mutex);
  return child_->lines[0].whole;
}

std::vector<std::string> Process::errors() const {
  const std::lock_guard lock(child_->mutex);
  return child_->lines[1].whole;
}

std::string Process::wait_output(std::string_view text, std::size_t first, Millis bound) {
  return wait_line(false, text, first, bound);
}

std::string Process::wait_errors(std::string_view text, std::size_t first, Millis bound) {
  return wait_line(true, text, first, bound);
}

std::string Process::wait_line(bool errors, std::string_view text, std::size_t first, Millis bound) {
  const auto until = std::chrono::steady_clock::now() + bound;
  std::unique_lock lock(child_->mutex);
  const auto& lines = child_->lines[errors ? 1 : 0].whole;
  for (std::size_t i = first;;) {
    for (; i < lines.size(); ++i) {
      if (lines[i].find(text) != std::string::npos) return lines[i];
    }
    if (child_->ended || child_->changed.wait_until(lock, until) == std::cv_status::timeout) break;
  }
  lock.unlock();
  throw TestError("no line of " + child_->name + " has '" + std::string(text) + "'\n" + tail());
}

std::string Process::tail() const {
  const std::lock_guard lock(child_->mutex);
  std::string text;
  for (std::size_t i = 0; i < child_->lines.size(); ++i) {
    const auto& lines = child_->lines[i].whole;
    const std::size_t first = lines.size() > kTailLines ? lines.size() - kTailLines : 0;
    text += "--- " + child_->name + " " + std::to_string(child_->pid) + (i == 0 ? " stdout, " : " stderr, ") +
            std::to_string(lines.size()) + " lines\n";
    for (std::size_t line = first; line < lines.size(); ++line) text += lines[line] + "\n";
  }
  return text;
}

std::string Finished::text() const {
  std::string text;
  for (const auto& line : output) text += line + "\n";
  return text;
}

Finished run(std::string_view program, std::vector<std::string> arguments, Millis bound) {
  Process process(program, std::move(arguments));
  const Exit exit = process.wait_exit(bound);
  return {exit, process.output(), process.errors()};
}

}  // namespace kvmid::test
