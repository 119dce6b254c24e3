// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// Programs that a test starts: a private folder for their sockets, their output line by line, and a certain end.
///
/// Purpose:  integration tests run real processes and leave none behind, whatever fails on the way.
/// Units:    bounds are generous and never the measure of anything; a passing test does not wait for them.
/// Errors:   TestError, with what the program had printed; a test framework reports it as a failure.
/// Threads:  an object is used by one thread; a thread of its own reads each program's output. A child dies with the
///           thread that started it (PR_SET_PDEATHSIG), so start programs on the test's main thread.
/// Lifetime: the destructors kill, collect and remove.

#include <sys/types.h>

#include <chrono>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace kvmid::test {

using Millis = std::chrono::milliseconds;

/// How long a condition may take that is certain to come: machines under load are slow.
inline constexpr Millis kBound{30000};

struct TestError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Looks until the condition holds or the bound is over; says whether it held.
[[nodiscard]] bool wait_until(const std::function<bool()>& condition, Millis bound = kBound);

/// A folder of its own below the system's temporary folder, removed at the end. Its path is short: sockets go there.
class RuntimeFolder {
 public:
  RuntimeFolder();
  ~RuntimeFolder();
  RuntimeFolder(const RuntimeFolder&) = delete;
  RuntimeFolder& operator=(const RuntimeFolder&) = delete;

  [[nodiscard]] const std::filesystem::path& path() const { return path_; }
  [[nodiscard]] std::string file(std::string_view name) const { return path_ / name; }
  /// Writes a file into it and returns its path.
  [[nodiscard]] std::string write(std::string_view name, std::string_view text) const;

 private:
  std::filesystem::path path_;
};

/// The program of that name beside the running test: <build>/bin/NAME.
[[nodiscard]] std::filesystem::path program_path(std::string_view name);

/// How a process ended.
struct Exit {
  int code = 0;
  int signal = 0;  ///< 0: it ended by itself
  friend bool operator==(const Exit&, const Exit&) = default;
};

class Process {
 public:
  /// Starts `program` (a name as for program_path(), or a path with a slash).
  Process(std::string_view program, std::vector<std::string> arguments);
  Process(Process&&) noexcept;
  Process& operator=(Process&&) noexcept;
  /// Kills it if it still runs, and collects it. While an exception is on its way what it printed last goes to stderr.
  ~Process();

  [[nodiscard]] pid_t pid() const;
  [[nodiscard]] bool running();
  void signal(int number);
  /// SIGSTOP, and returns once the kernel says that it is stopped.
  void stop();
  void cont();
  /// SIGKILL, and collected when this returns.
  void kill();
  /// Waits for its end. TestError when it does not come within the bound.
  Exit wait_exit(Millis bound = kBound);

  /// Every line printed so far, without its end.
  [[nodiscard]] std::vector<std::string> output() const;
  [[nodiscard]] std::vector<std::string> errors() const;
  /// Waits for a line on stdout (or stderr) in which `text` occurs, from line `first` on. TestError when none comes.
  std::string wait_output(std::string_view text, std::size_t first = 0, Millis bound = kBound);
  std::string wait_errors(std::string_view text, std::size_t first = 0, Millis bound = kBound);
  /// What it printed last, for people.
  [[nodiscard]] std::string tail() const;

 private:
  struct Child;
  std::string wait_line(bool errors, std::string_view text, std::size_t first, Millis bound);
  void end() noexcept;
  std::unique_ptr<Child> child_;
};

/// A program that ran to its end.
struct Finished {
  Exit exit;
  std::vector<std::string> output;
  std::vector<std::string> errors;
  /// All of stdout as one text.
  [[nodiscard]] std::string text() const;
};
[[nodiscard]] Finished run(std::string_view program, std::vector<std::string> arguments, Millis bound = kBound);

}  // namespace kvmid::test
