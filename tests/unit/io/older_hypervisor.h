// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// A hypervisor of an older dialect, as a test plays it: QEMU's handshake, then a kernel that says yes to everything.
///
/// Purpose:  what kvmid does towards such a hypervisor, without one.
/// Shapes:   the constructor connects and reads the answer; a thread of its own answers commands (one vCPU, memory that
///           holds the low byte of its address). The test sends events and waits for what becomes of them.
/// Errors:   test::TestError, with the name of what was waited for.
/// Lifetime: the destructor closes the connection.

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "daemon/io/registry.h"
#include "daemon/io/unique_fd.h"
#include "protocol/kvmi1_codec.h"
#include "tests/support/process.h"

namespace kvmid::test {

class OlderHypervisor {
 public:
  struct Options {
    kvmi1::DialectId dialect = kvmi1::DialectId::V12;
    Uuid uuid;
    std::string name = "older";
    io::GuestFacts facts{.vcpu_count = 1, .start_time = 1000, .max_gpa = 0x1000000};
    ByteBuffer handshake{};  ///< empty: what QEMU of that dialect sends
  };

  OlderHypervisor(const std::string& path, const Options& options);
  ~OlderHypervisor();
  OlderHypervisor(const OlderHypervisor&) = delete;
  OlderHypervisor& operator=(const OlderHypervisor&) = delete;

  /// What kvmid answered to the handshake; empty: it closed the connection.
  [[nodiscard]] const ByteBuffer& answer() const { return answer_; }
  /// Its events are numbered from 1.
  Seq send_event(const EventData& data);
  void send_bytes(Bytes bytes);
  struct Replied {
    std::uint32_t action = 0;
    std::uint64_t new_value = 0;
  };
  /// The reply to that event; TestError: none came.
  Replied wait_reply(Seq seq);
  /// kvmid has sent a command of that kind.
  [[nodiscard]] bool wait_command(kvmi1::CommandKind kind);
  [[nodiscard]] bool wait_closed();
  void hang_up();

 private:
  void run();
  void served(const Frame& frame);
  [[nodiscard]] kvmi1::ReplyBody body_for(const kvmi1::Command& command, ByteBuffer& bytes) const;
  [[nodiscard]] bool wait(const std::function<bool()>& condition);

  const kvmi1::Codec& codec_;
  io::UniqueFd socket_;
  ByteBuffer answer_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::uint32_t, EventKind> sent_;  ///< events, by their seq
  std::map<std::uint32_t, Replied> replies_;
  std::vector<kvmi1::CommandKind> commands_;
  bool closed_ = false;
  std::uint32_t seq_ = 0;
  std::thread thread_;
};

}  // namespace kvmid::test
