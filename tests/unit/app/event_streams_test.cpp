// SPDX-License-Identifier: GPL-2.0-or-later
#include "daemon/app/event_streams.h"

#include <catch2/catch.hpp>

using namespace kvmid;
using namespace kvmid::app;

namespace {

io::TapRecord record_of(std::uint32_t seq, EventKind kind = EventKind::Cr, std::uint8_t guest = 1) {
  io::TapRecord record;
  record.seq = Seq{seq};
  record.kind = kind;
  io::GuestLabel label;
  label.uuid.bytes[15] = guest;
  label.name = "web" + std::to_string(guest);
  record.guest = std::make_shared<const io::GuestLabel>(label);
  return record;
}
std::vector<std::uint32_t> taken(EventStream& stream, std::size_t most = 100000) {
  std::vector<io::TapRecord> records;
  (void)stream.take(records, most);
  std::vector<std::uint32_t> seqs;
  for (const auto& record : records) seqs.push_back(record.seq.value);
  return seqs;
}

}  // namespace

TEST_CASE("the tap is open just while somebody watches", "[stream]") {
  EventStreams streams;
  REQUIRE_FALSE(streams.open());
  const auto a = streams.subscribe({}, [] {});
  const auto b = streams.subscribe({}, [] {});
  streams.unsubscribe(a);
  REQUIRE(streams.open());
  streams.unsubscribe(a);
  REQUIRE(streams.open());
  streams.unsubscribe(b);
  REQUIRE_FALSE(streams.open());
}

TEST_CASE("a stream has a maximum of watchers", "[stream]") {
  EventStreams streams;
  std::vector<std::shared_ptr<EventStream>> all;
  for (std::size_t i = 0; i < EventStreams::kStreamsMax; ++i) REQUIRE(all.emplace_back(streams.subscribe({}, [] {})));
  REQUIRE_FALSE(streams.subscribe({}, [] {}));
  streams.unsubscribe(all[3]);
  REQUIRE(streams.subscribe({}, [] {}));
}

TEST_CASE("each watcher gets what its filter passes, in order", "[stream]") {
  EventStreams streams;
  EventFilter only_msr;
  only_msr.kinds = {};
  only_msr.kinds.add(EventKind::Msr);
  EventFilter by_name;
  by_name.guest_name = "web2";
  EventFilter by_uuid;
  by_uuid.guest = record_of(0).guest->uuid;
  const auto all = streams.subscribe({}, [] {});
  const auto msr = streams.subscribe(only_msr, [] {});
  const auto web2 = streams.subscribe(by_name, [] {});
  const auto first = streams.subscribe(by_uuid, [] {});
  streams.push(record_of(1));
  streams.push(record_of(2, EventKind::Msr));
  streams.push(record_of(3, EventKind::Cr, 2));
  auto on = record_of(4, EventKind::Unhook, 2);
  on.type = io::TapRecord::Type::GuestOn;
  streams.push(on);
  REQUIRE(taken(*all) == std::vector<std::uint32_t>{1, 2, 3, 4});
  REQUIRE(taken(*msr) == std::vector<std::uint32_t>{2, 4});
  REQUIRE(taken(*web2) == std::vector<std::uint32_t>{3, 4});
  REQUIRE(taken(*first) == std::vector<std::uint32_t>{1, 2});
}

TEST_CASE("a watcher is woken once, and only after it found nothing", "[stream]") {
  EventStreams streams;
  int woken = 0;
  const auto stream = streams.subscribe({}, [&] { ++woken; });
  streams.push(record_of(1));
  REQUIRE(woken == 0);
  REQUIRE(taken(*stream).size() == 1);
  streams.push(record_of(2));
  REQUIRE(woken == 0);
  REQUIRE(taken(*stream).size() == 1);
  REQUIRE(taken(*stream).empty());
  streams.push(record_of(3));
  streams.push(record_of(4));
  REQUIRE(woken == 1);
}

TEST_CASE("a watcher that does not keep up loses records and is told how many, behind those that were kept", "[stream]") {
  EventStreams streams;
  const auto stream = streams.subscribe({}, [] {});
  const auto max = static_cast<std::uint32_t>(EventStream::kQueueMax);
  for (std::uint32_t i = 0; i < max + 5; ++i) streams.push(record_of(i));
  REQUIRE(streams.dropped() == 5);
  std::vector<io::TapRecord> records;
  REQUIRE(stream->take(records, max - 1) == 0);
  REQUIRE(stream->take(records, max) == 5);
  REQUIRE(records.size() == max);
  REQUIRE(records.back().seq == Seq{max - 1});
  records.clear();
  REQUIRE(stream->take(records, 1) == 0);
  // The ring is used again from any place on.
  for (std::uint32_t round = 0; round < 3; ++round) {
    for (std::uint32_t i = 0; i < max - 7; ++i) streams.push(record_of(i));
    const auto seqs = taken(*stream);
    REQUIRE(seqs.size() == max - 7);
    for (std::uint32_t i = 0; i < seqs.size(); ++i) REQUIRE(seqs[i] == i);
  }
}
