// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// Both ends of an event round trip, as thin as they can be: a hypervisor that sends events, agents that answer or
/// watch.
///
/// Purpose:  the same peers talk directly, through a bare relay and through kvmid, so that only the middle differs.
/// Threads:  an object belongs to one thread or process.
/// Errors:   std::runtime_error with what failed; a benchmark has nothing better to do than to stop.

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "protocol/dialect_kvmi2.h"
#include "protocol/handshake.h"
#include "protocol/kvmi1_codec.h"

namespace kvmid::bench {

/// A descriptor that is closed with its owner.
class Fd {
 public:
  explicit Fd(int fd = -1) : fd_(fd) {}
  Fd(Fd&& other) noexcept : fd_(other.release()) {}
  Fd& operator=(Fd&& other) noexcept;
  Fd(const Fd&) = delete;
  Fd& operator=(const Fd&) = delete;
  ~Fd();
  [[nodiscard]] int get() const { return fd_; }
  int release() {
    const int fd = fd_;
    fd_ = -1;
    return fd;
  }

 private:
  int fd_;
};

/// Connects to a unix socket, trying for `patience` until somebody listens there.
Fd connect_unix(const std::string& path, std::chrono::milliseconds patience);
Fd listen_unix(const std::string& path);
Fd accept_one(int listener);
void send_all(int fd, Bytes bytes);
/// Exactly n bytes.
ByteBuffer receive(int fd, std::size_t n);

/// Frames over a blocking socket.
class Stream {
 public:
  explicit Stream(Fd fd) : fd_(std::move(fd)) {}
  [[nodiscard]] int fd() const { return fd_.get(); }
  void flush();
  ByteBuffer& out() { return out_; }
  /// The next frame; valid until the next call. Throws when the peer is gone.
  const Frame& next();
  /// The same, or null when the peer closed.
  const Frame* next_or_end();
  /// The next frame of what was read already, or null.
  const Frame* at_hand();
  /// Reads what is there, waiting for the first byte; false: the peer closed.
  bool fill();

 private:
  Fd fd_;
  FrameParser parser_;
  ByteBuffer out_;
};

/// A hypervisor with one vCPU: says its hello, answers what kvmid asks, then sends events one by one.
class HypervisorPeer {
 public:
  /// With a codec it speaks that older dialect, else KVMI 2.
  explicit HypervisorPeer(Fd fd, const kvmi1::Codec* older = nullptr) : stream_(std::move(fd)), older_(older) {}
  /// The handshake with kvmid. Not used where there is no kvmid between the peers.
  void hello(const Uuid& uuid, const std::string& name);
  /// Answers commands until there is something to read, or an end of file, at `fd`.
  void serve_until_readable(int fd);
  /// Sends one event and waits for its reply.
  void round_trip(const Event& event);
  /// An event of a write to CR4, as a guest in 64-bit mode would cause it.
  static Event cr4_event();

 private:
  void serve(const Command& command, Seq seq);
  void serve(const kvmi1::Command& command, Seq seq);
  /// True: it was the reply to an event.
  bool take(const Frame& frame);
  Stream stream_;
  const kvmi1::Codec* older_;
  DialectKvmi2 dialect_;
  std::uint32_t seq_ = 0;
  EventSet enabled_;
};

/// What an agent asks for: writes to CR4, in this role.
struct Wishes {
  Role role = Role::Decider;
  std::vector<kvmi_filter_term> filter{};  ///< of the CR event, not matching: ALLOW; empty: no filter
};
/// Attaches to the guest at kvmid's agent socket; nullopt: kvmid does not let it, for the reason in `why`.
std::optional<Stream> attach(const std::string& agent_socket, const Uuid& guest, std::string& why);
/// False: kvmid does not serve SET_FILTER. Throws on any other refusal.
bool wish(Stream& stream, const Wishes& wishes);
/// Answers events with ALLOW until the peer closes. `answers`: after so many it reads on and says nothing.
void decide(Stream& stream, std::uint64_t answers);

/// A tool of an older dialect: waits at `listener` for kvmid, and greets.
Stream greet(int listener);
/// Asks for writes to CR4 on vCPU 0.
void wish(Stream& stream, const kvmi1::Codec& codec);
/// Answers events with CONTINUE (rfc2017: ALLOW) and the new value, until the peer closes.
void decide(Stream& stream, const kvmi1::Codec& codec);

}  // namespace kvmid::bench
