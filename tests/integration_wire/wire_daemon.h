// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// A kvmid whose log and counters a test reads.
///
/// Purpose:  each mistake must leave a line of facts and a number; here they are asked for.
/// Threads:  one.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "tests/support/process.h"

namespace kvmid::test {

/// Configuration of these tests: everything allowed to this user, with deadlines that no slow machine misses, short
/// hello timeout, log level debug. `overrides` is JSON; its top-level keys replace those of the base.
std::string wire_config(std::string_view overrides = "{}");

class WireDaemon {
 public:
  /// `launcher`: a program and its arguments that start what follows them (prlimit and the like).
  explicit WireDaemon(const std::string& config = wire_config(), std::vector<std::string> launcher = {});

  [[nodiscard]] const RuntimeFolder& folder() const { return folder_; }
  [[nodiscard]] Process& process() { return process_; }
  [[nodiscard]] std::string agents() const { return folder_.file("agent.sock"); }
  [[nodiscard]] std::string hypervisors() const { return folder_.file("hypervisor.sock"); }
  [[nodiscard]] std::string admin() const { return folder_.file("admin.sock"); }

  /// Waits for a line of the log that has all of `parts`.
  void wait_log(const std::vector<std::string>& parts);
  /// A counter of GET /v1/status. TestError where there is no such counter.
  [[nodiscard]] std::uint64_t counter(const std::string& name) const;
  /// Waits until the counter is `value` or more, and says what it is.
  std::uint64_t wait_counter(const std::string& name, std::uint64_t value);
  /// Bytes of memory that the daemon has in RAM.
  [[nodiscard]] std::uint64_t resident_bytes() const;
  /// Descriptors that it has open.
  [[nodiscard]] std::size_t open_descriptors() const;

 private:
  RuntimeFolder folder_;
  Process process_;
};

/// Body of the answer to a GET over a unix socket. TestError unless the status is 200.
std::string http_get(const std::string& socket_path, const std::string& target);

}  // namespace kvmid::test
