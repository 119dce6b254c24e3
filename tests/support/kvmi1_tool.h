// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// An introspection tool of an older dialect, as a test plays it: it listens, and somebody brings a guest.
///
/// Purpose:  tests and benchmarks say what the tool sends and expect; framing, sequence numbers and waiting are here.
/// Shapes:   blocking, each wait with a bound. call() keeps the events that come before its reply; next_event() gives
///           them first, oldest first.
/// Errors:   TestError, with the name of what was waited for.
/// Threads:  an object is used by one thread.
/// Lifetime: what a message views lives as long as a copy of the message does. The destructor closes both sockets and
///           removes the path.

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <variant>

#include "client/socket.h"
#include "protocol/dialect.h"
#include "protocol/frame_parser.h"
#include "protocol/handshake.h"
#include "protocol/kvmi1_codec.h"
#include "tests/support/process.h"

namespace kvmid::test {

/// A message from the hypervisor's side.
struct Kvmi1Message {
  std::shared_ptr<const ByteBuffer> bytes;  ///< the whole frame
  Frame frame;
  kvmi1::Upward message;
};
struct Kvmi1Event {
  std::shared_ptr<const ByteBuffer> bytes;
  Seq seq;
  std::uint16_t view = 0;  ///< v7
  Event event;
};
struct Kvmi1Reply {
  std::shared_ptr<const ByteBuffer> bytes;
  kvmi1::Reply reply;

  [[nodiscard]] bool ok() const { return reply.error == 0; }
  /// TestError: it did not succeed.
  void must_succeed() const {
    if (!ok()) throw TestError("reply to command " + std::to_string(reply.id) + ": error " + std::to_string(reply.error));
  }
  /// The data of a reply that succeeded with it; views in it live as long as the reply. TestError: it did not, or the
  /// data are of another kind.
  template <class Body>
  [[nodiscard]] const Body& as() const& {
    must_succeed();
    const auto* body = std::get_if<Body>(&reply.body);
    if (body == nullptr) throw TestError("reply to command " + std::to_string(reply.id) + ": other data than expected");
    return *body;
  }
  template <class Body>
  [[nodiscard]] Body as() && {
    return static_cast<const Kvmi1Reply&>(*this).as<Body>();
  }
};

class Kvmi1Tool {
 public:
  using CookieHash = std::array<std::uint8_t, 20>;

  /// Listens on the unix path, or on "vsock:PORT", at once; what is at the path is removed.
  Kvmi1Tool(std::string path, kvmi1::DialectId dialect);
  ~Kvmi1Tool();
  Kvmi1Tool(const Kvmi1Tool&) = delete;
  Kvmi1Tool& operator=(const Kvmi1Tool&) = delete;

  /// Waits for the next connection, reads its handshake and answers with the hash. A connection from before is closed.
  const HypervisorHello& accept(Millis bound = kBound);
  /// What the next accept() proves to know; zeros if not said.
  void set_cookie(const CookieHash& hash) { cookie_ = hash; }
  [[nodiscard]] const HypervisorHello& hello() const { return hello_; }
  /// The handshake as it came.
  [[nodiscard]] const ByteBuffer& hello_bytes() const { return hello_bytes_; }

  Seq send(const kvmi1::Command& command);
  /// Bytes as they are, whole frames or not.
  void send_bytes(Bytes bytes);
  /// A number for a frame of one's own.
  Seq next_seq() { return Seq{seq_++}; }

  /// The next message, events included; those that call() kept first.
  Kvmi1Message next(Millis bound = kBound);
  /// As next(), without an error when none comes in time. TestError when the connection is closed.
  std::optional<Kvmi1Message> try_next(Millis bound);
  /// Sends and waits for the reply; events that come meanwhile are kept.
  Kvmi1Reply call(const kvmi1::Command& command, Millis bound = kBound);
  /// Waits for the reply to what send() sent; events that come meanwhile are kept.
  Kvmi1Reply reply_to(Seq seq, Millis bound = kBound);
  /// The next event. TestError when a reply comes first.
  Kvmi1Event next_event(Millis bound = kBound);
  /// Waits until the other side has closed; messages before that are dropped.
  [[nodiscard]] bool wait_closed(Millis bound = kBound);

  /// Answers an event. `action` as the dialect numbers them; rfc2017's reply has the event's registers.
  void reply(const Kvmi1Event& event, std::uint32_t action, Bytes data = {});
  /// With the value that a CR or MSR gets.
  void reply_value(const Kvmi1Event& event, std::uint32_t action, std::uint64_t value);
  /// The guest goes on as it wanted to: CONTINUE (rfc2017: ALLOW), with the new value of a CR or MSR.
  void go_on(const Kvmi1Event& event);

  /// Closes the connection; the path goes on listening.
  void hang_up();
  [[nodiscard]] bool connected() const { return static_cast<bool>(connection_); }
  [[nodiscard]] const kvmi1::Codec& codec() const { return codec_; }
  [[nodiscard]] int fd() const { return connection_.get(); }

 private:
  std::optional<Kvmi1Message> receive(client::SteadyClock::time_point until);
  std::optional<Kvmi1Message> parsed();
  void read_exactly(ByteBuffer& out, std::size_t size, client::SteadyClock::time_point until);

  std::string path_;
  const kvmi1::Codec& codec_;
  client::UniqueFd listener_;
  client::UniqueFd connection_;
  CookieHash cookie_{};
  HypervisorHello hello_;
  ByteBuffer hello_bytes_;
  std::unique_ptr<FrameParser> parser_;
  std::deque<Kvmi1Message> kept_;
  std::uint32_t seq_ = 1;
  ByteBuffer out_;
};

}  // namespace kvmid::test
