// SPDX-License-Identifier: GPL-2.0-or-later
#include "daemon/io/connection.h"

#include <sys/socket.h>

#include <array>
#include <catch2/catch.hpp>
#include <cstring>
#include <string>

using namespace kvmid;
using namespace kvmid::io;

namespace {

/// An owner that writes down what it is told.
struct Recorder final : Connection::Owner {
  std::vector<std::uint16_t> ids;
  unsigned turns = 0;
  unsigned refused = 0;
  std::string lost;
  std::function<void()> on_each = [] {};

  void on_frame(const Frame& frame) override {
    ids.push_back(frame.id);
    on_each();
  }
  void on_frame_refused(const FrameError&) override { ++refused; }
  void on_turn_end() override { ++turns; }
  void on_lost(std::string_view reason) override { lost = reason; }
};

struct Pair {
  boost::asio::io_context context;
  UniqueFd peer;
  std::shared_ptr<Connection> connection;

  explicit Pair(std::uint64_t queue_bytes_max = 1U << 20U, std::size_t payload_max = KVMI_MAX_PAYLOAD) {
    int fds[2];
    REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == 0);
    peer.reset(fds[0]);
    connection = std::make_shared<Connection>(context, UniqueFd{fds[1]}, payload_max, queue_bytes_max);
  }
  void put(std::uint16_t id, std::uint16_t size) const {
    std::vector<char> bytes(sizeof(kvmi_msg_hdr) + size);
    const kvmi_msg_hdr header{id, size, 0};
    std::memcpy(bytes.data(), &header, sizeof header);
    REQUIRE(::send(peer.get(), bytes.data(), bytes.size(), 0) == static_cast<ssize_t>(bytes.size()));
  }
  void queue(std::size_t bytes) const {
    auto& out = connection->outbox().compose();
    out.insert(out.end(), bytes, std::byte{7});
    REQUIRE(connection->outbox().commit());
  }
  [[nodiscard]] ssize_t drain() const {
    std::array<char, 65536> buffer{};
    ssize_t total = 0;
    for (;;) {
      const auto n = ::recv(peer.get(), buffer.data(), buffer.size(), MSG_DONTWAIT);
      if (n <= 0) return total;
      total += n;
    }
  }
};

}  // namespace

TEST_CASE("frames that arrive together are one turn", "[connection]") {
  Pair pair;
  Recorder owner;
  for (std::uint16_t i = 0; i < 10; ++i) pair.put(i, 4);
  pair.connection->start(owner);
  while (owner.ids.size() < 10) pair.context.run_one();
  REQUIRE(owner.turns == 1);
  pair.connection->close();
  pair.context.run();
}

TEST_CASE("a peer that sends much gets turns of a bounded size", "[connection]") {
  Pair pair;
  Recorder owner;
  constexpr unsigned kFrames = 3 * Connection::kFramesPerTurn;
  for (unsigned i = 0; i < kFrames; ++i) pair.put(1, 0);
  pair.connection->start(owner);
  std::size_t before = 0;
  while (owner.ids.size() < kFrames) {
    pair.context.run_one();
    REQUIRE(owner.ids.size() - before <= Connection::kFramesPerTurn);
    before = owner.ids.size();
  }
  pair.connection->close();
  pair.context.run();
}

TEST_CASE("an owner that closes in the middle of a turn hears nothing more", "[connection]") {
  Pair pair;
  Recorder owner;
  owner.on_each = [&] { pair.connection->close(); };
  for (unsigned i = 0; i < 5; ++i) pair.put(1, 0);
  pair.connection->start(owner);
  pair.context.run();
  REQUIRE(owner.ids.size() == 1);
  REQUIRE(owner.turns == 0);
  REQUIRE(owner.lost.empty());
}

TEST_CASE("after a frame that is too large nothing is read", "[connection]") {
  Pair pair(1U << 20U, 100);
  Recorder owner;
  pair.put(1, 100);
  pair.put(2, 101);
  pair.put(3, 0);
  pair.connection->start(owner);
  while (owner.refused == 0) pair.context.run_one();
  pair.context.poll();
  REQUIRE(owner.ids == std::vector<std::uint16_t>{1});
  REQUIRE(owner.refused == 1);
  pair.connection->close();
}

TEST_CASE("a peer that goes is lost once", "[connection]") {
  Pair pair;
  Recorder owner;
  pair.connection->start(owner);
  pair.peer.reset();
  pair.context.run();
  REQUIRE(owner.lost == "closed by the peer");
  pair.queue(10);
  REQUIRE_FALSE(pair.connection->flush());
}

TEST_CASE("what the socket does not take at once follows when the peer reads", "[connection]") {
  Pair pair(8U << 20U);
  Recorder owner;
  pair.connection->start(owner);
  constexpr std::size_t kBytes = 4U << 20U;  // more than a socket buffers
  pair.queue(kBytes);
  REQUIRE(pair.connection->flush());
  REQUIRE(pair.connection->queued_bytes() > 0);
  std::size_t got = 0;
  while (got < kBytes) {
    got += static_cast<std::size_t>(pair.drain());
    pair.context.poll();
  }
  REQUIRE(got == kBytes);
  REQUIRE(pair.connection->queued_bytes() == 0);
  pair.connection->close();
}

TEST_CASE("finish writes what is queued, then closes", "[connection]") {
  Pair pair(8U << 20U);
  Recorder owner;
  pair.connection->start(owner);
  constexpr std::size_t kBytes = 1U << 20U;
  pair.queue(kBytes);
  pair.connection->finish();
  std::size_t got = 0;
  while (got < kBytes) {
    got += static_cast<std::size_t>(pair.drain());
    pair.context.poll();
  }
  pair.context.run();  // ends: neither the linger timer nor a wait is left
  char byte = 0;
  REQUIRE(::recv(pair.peer.get(), &byte, 1, 0) == 0);
  REQUIRE(owner.lost.empty());
}
