// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// A unix socket that says exactly the bytes a test wants said, right or wrong.
///
/// Purpose:  peers that no library would be: torn frames, wrong sizes, silence.
/// Errors:   std::runtime_error where a test cannot go on: no connection, or kPatience is over.
/// Threads:  none of its own; one thread at a time, but for send(), which another may call.

#include <chrono>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "client/socket.h"
#include "protocol/dialect_kvmi2.h"
#include "protocol/handshake.h"

namespace kvmid::test {

/// How long anything may take before a test gives up. Only a broken daemon needs it.
inline constexpr std::chrono::seconds kPatience{30};

/// A frame that owns its payload.
struct OwnedFrame {
  std::uint16_t id = 0;
  Seq seq;
  ByteBuffer payload;
  [[nodiscard]] Frame view() const { return {id, seq, payload}; }
};

class WireSocket {
 public:
  explicit WireSocket(const std::string& path);

  /// All of it. False: the peer is gone.
  bool send(Bytes bytes);
  /// All of it, with `count` descriptors of /dev/null beside the first byte.
  void send_with_descriptors(Bytes bytes, std::size_t count);
  /// The same with these.
  void send_with_descriptors(Bytes bytes, std::span<const int> descriptors);
  /// No further byte will come from this side; the other direction stays.
  void end_of_stream();
  /// Exactly `n` bytes, or nothing where the peer closed first.
  std::optional<ByteBuffer> read_exact(std::size_t n);
  /// The next frame, or nothing where the peer closed.
  std::optional<OwnedFrame> next_frame();
  /// Reads and drops until the peer closes. False: it did not within kPatience.
  bool wait_closed();
  /// Bytes of the peer that wait to be read, as the kernel counts them.
  [[nodiscard]] std::size_t readable_bytes() const;
  [[nodiscard]] int fd() const { return fd_.get(); }
  void close() { fd_.reset(); }

 private:
  client::UniqueFd fd_;
};

/// The bytes of a struct.
template <class T>
ByteBuffer bytes_of(const T& value) {
  ByteBuffer out(sizeof value);
  std::memcpy(out.data(), &value, sizeof value);
  return out;
}
/// A frame with whatever in it; `size` defaults to what `payload` has.
ByteBuffer frame_of(std::uint16_t id, std::uint32_t seq, Bytes payload, std::optional<std::uint16_t> size = {});

/// A hello that is right in everything.
kvmi_hello good_hello(const Uuid& guest, std::string_view name);
/// Sends `hello` and reads the welcome. Nothing: the peer closed without one.
std::optional<kvmi_welcome> say_hello(WireSocket& socket, Bytes hello);
/// Connected and let in: the raw agent of this guest. Throws where it was not.
WireSocket raw_agent(const std::string& socket_path, const Uuid& guest, std::string_view name);

/// A frame of the agent's or hypervisor's side, as bytes.
ByteBuffer encoded(const Command& command, Seq seq);
ByteBuffer encoded(const EventReply& reply, Seq seq);
ByteBuffer encoded(const Event& event, Seq seq);
ByteBuffer encoded(const CommandReply& reply, Seq seq);

}  // namespace kvmid::test
