// SPDX-License-Identifier: GPL-2.0-or-later
//
// READ_PHYSICAL and WRITE_PHYSICAL: pieces within a page, comparisons, patches, and the order of it all.

#include <algorithm>
#include <random>

#include "tests/unit/bridge/hypervisor/scripted_hypervisor.h"

namespace kvmid::bridge::test {

using kvmi1::DialectId;

namespace {

constexpr DialectId kAll[] = {DialectId::V6, DialectId::V7, DialectId::V12, DialectId::Rfc2017};

kvmi_read_range range(std::uint64_t gpa, std::uint32_t size) { return {gpa, size, 0}; }

ReadPhysical read_of(const std::vector<kvmi_read_range>& ranges) {
  return ReadPhysical{AddressSpace::Normal, std::span<const kvmi_read_range>(ranges)};
}

WritePhysical write_of(std::uint64_t gpa, const ByteVector& data, unsigned flags = 0, const ByteVector& expected = {}) {
  WritePhysical command;
  command.gpa = Gpa{gpa};
  command.flags = static_cast<std::uint16_t>(flags);
  command.data = data;
  command.expected = expected;
  return command;
}

ByteVector read(Hypervisor& host, std::uint64_t gpa, std::uint32_t size) {
  const std::vector<kvmi_read_range> ranges{range(gpa, size)};
  const Answer answer = host.ask(read_of(ranges));
  REQUIRE(answer.error() == ErrorCode::None);
  const Bytes data = answer.body<ReadPhysicalReply>().data;
  return {data.begin(), data.end()};
}

ErrorCode write(Hypervisor& host, std::uint64_t gpa, const ByteVector& data, unsigned flags = 0,
                const ByteVector& expected = {}) {
  const Answer answer = host.ask(write_of(gpa, data, flags, expected));
  if (answer.error() == ErrorCode::None || answer.error() == ErrorCode::Stale)
    CHECK(std::holds_alternative<WritePhysicalReply>(answer.reply().body));
  return answer.error();
}

ByteVector held(const Hypervisor& host, std::size_t gpa, std::size_t size) {
  const auto begin = host.memory.begin() + static_cast<std::ptrdiff_t>(gpa);
  return {begin, begin + static_cast<std::ptrdiff_t>(size)};
}

}  // namespace

TEST_CASE("bridge: a read of many pages is one command for each", "[hypervisor]") {
  for (const DialectId dialect : kAll) {
    CAPTURE(kvmi1::name_of(dialect));
    Hypervisor host(dialect);
    host.come_up();
    const std::vector<kvmi_read_range> ranges{range(0xff0, 0x2020), range(0x5001, 3), range(0x6000, 4096)};
    host.send(read_of(ranges));
    CHECK(host.open.size() == 6);  // all at once: 0x10, 0x1000, 0x1000, 0x10, 3, 0x1000 bytes
    REQUIRE(host.serve_all());
    const Answer answer = host.take_answer();
    REQUIRE(answer.error() == ErrorCode::None);
    const auto& body = answer.body<ReadPhysicalReply>();
    CHECK(body.cookie == 0);
    ByteVector wanted;
    for (const kvmi_read_range& r : ranges) {
      const ByteVector part = held(host, r.gpa, r.size);
      wanted.insert(wanted.end(), part.begin(), part.end());
    }
    CHECK(ByteVector(body.data.begin(), body.data.end()) == wanted);
    const auto reads = host.all<kvmi1::ReadPhysical>();
    REQUIRE(reads.size() == 6);
    CHECK((reads[0]->gpa.value == 0xff0 && reads[0]->size == 0x10));
    CHECK((reads[3]->gpa.value == 0x3000 && reads[3]->size == 0x10));
  }
}

TEST_CASE("bridge: answers of a read may come in any order", "[hypervisor]") {
  Hypervisor host(DialectId::V7);
  host.come_up();
  const std::vector<kvmi_read_range> ranges{range(0xff0, 0x20)};
  host.send(read_of(ranges));
  const Sent first = host.take();
  REQUIRE(host.serve(host.take()));
  CHECK_FALSE(host.has_answer());
  REQUIRE(host.serve(first));
  const Answer answer = host.take_answer();
  const auto& data = answer.body<ReadPhysicalReply>().data;
  CHECK(ByteVector(data.begin(), data.end()) == held(host, 0xff0, 0x20));
}

TEST_CASE("bridge: a write of many pages is one command for each", "[hypervisor]") {
  for (const DialectId dialect : kAll) {
    CAPTURE(kvmi1::name_of(dialect));
    Hypervisor host(dialect);
    host.come_up();
    const ByteVector data = bytes(0x1100, 0xab);
    CHECK(write(host, 0x1f80, data) == ErrorCode::None);
    CHECK(host.all<kvmi1::WritePhysical>().size() == 3);
    CHECK(held(host, 0x1f80, data.size()) == data);
    CHECK(held(host, 0x3080, 1) == bytes({(0x3080 ^ 0x30) & 0x7f}));
  }
}

TEST_CASE("bridge: what is no memory is KVMI_EFAULT", "[hypervisor]") {
  Hypervisor host(DialectId::V12);
  host.come_up();
  const std::vector<kvmi_read_range> ranges{range(Hypervisor::kMemoryBytes - 8, 16)};
  const Answer answer = host.ask(read_of(ranges));
  CHECK(answer.error() == ErrorCode::Fault);
  CHECK(answer.text().find("READ_PHYSICAL (12) of v12") != std::string::npos);
  CHECK(answer.text().find("-2 (ENOENT) at GPA 0x10000") != std::string::npos);
  CHECK(write(host, Hypervisor::kMemoryBytes, bytes({1})) == ErrorCode::Fault);
  CHECK(write(host, Hypervisor::kMemoryBytes, bytes({1}), KVMI_WRITE_PATCH) == ErrorCode::Fault);
  // It was no patch: there is none to take off.
  CHECK(write(host, Hypervisor::kMemoryBytes, bytes({1}), KVMI_WRITE_UNPATCH) == ErrorCode::NoEntry);
  const std::vector<kvmi_read_range> wrapping{range(~std::uint64_t{0} - 3, 8)};
  CHECK(host.ask(read_of(wrapping)).error() == ErrorCode::Fault);
  // The link goes on.
  CHECK(read(host, 0x1000, 4) == held(host, 0x1000, 4));
}

TEST_CASE("bridge: memory commands that are refused without asking", "[hypervisor]") {
  Hypervisor host(DialectId::V7);
  host.come_up();
  const auto refused = [&](const Command& command) { return host.ask(command).error(); };
  const std::vector<kvmi_read_range> one{range(0, 4)}, nothing{range(0, 0)}, large(17, range(0, 4096));
  CHECK(refused(ReadPhysical{AddressSpace::Smm, std::span<const kvmi_read_range>(one)}) == ErrorCode::NotSupported);
  CHECK(refused(read_of({})) == ErrorCode::Invalid);
  CHECK(refused(read_of(nothing)) == ErrorCode::Invalid);
  CHECK(refused(read_of(large)) == ErrorCode::TooBig);
  WritePhysical smm = write_of(0, bytes({1}));
  smm.space = AddressSpace::Smm;
  CHECK(refused(smm) == ErrorCode::NotSupported);
  CHECK(refused(write_of(0, {})) == ErrorCode::Invalid);
  CHECK(refused(write_of(0, bytes({1}), 16)) == ErrorCode::Invalid);
  CHECK(refused(write_of(0, bytes({1}), KVMI_WRITE_COOKIE)) == ErrorCode::NotSupported);
  CHECK(refused(write_of(0, bytes({1}), KVMI_WRITE_PATCH | KVMI_WRITE_UNPATCH)) == ErrorCode::Invalid);
  CHECK(refused(write_of(0, bytes({1, 2}), KVMI_WRITE_EXPECT, bytes({1}))) == ErrorCode::Invalid);
  CHECK(refused(write_of(0, bytes(257, 0xcc), KVMI_WRITE_PATCH)) == ErrorCode::Invalid);
  CHECK(refused(write_of(0xfff, bytes({1, 2}), KVMI_WRITE_PATCH)) == ErrorCode::Invalid);
  CHECK(refused(write_of(0, bytes({1}), KVMI_WRITE_UNPATCH)) == ErrorCode::NoEntry);
  CHECK(host.log.empty());
}

TEST_CASE("bridge: KVMI_WRITE_EXPECT compares first", "[hypervisor]") {
  for (const DialectId dialect : kAll) {
    CAPTURE(kvmi1::name_of(dialect));
    Hypervisor host(dialect);
    host.come_up();
    const ByteVector before = held(host, 0x1ffe, 4);
    const ByteVector data = bytes({1, 2, 3, 4});
    ByteVector wrong = before;
    wrong[3] ^= std::byte{0x80};
    const Answer stale = host.ask(write_of(0x1ffe, data, KVMI_WRITE_EXPECT, wrong));
    CHECK(stale.error() == ErrorCode::Stale);
    CHECK(stale.text().find("the byte at GPA 0x2001 is ") == 0);
    CHECK(std::holds_alternative<WritePhysicalReply>(stale.reply().body));
    CHECK(host.all<kvmi1::WritePhysical>().empty());
    CHECK(write(host, 0x1ffe, data, KVMI_WRITE_EXPECT, before) == ErrorCode::None);
    CHECK(held(host, 0x1ffe, 4) == data);
  }
}

TEST_CASE("bridge: a patch hides, and comes off", "[hypervisor]") {
  for (const DialectId dialect : kFindable) {
    CAPTURE(kvmi1::name_of(dialect));
    Hypervisor host(dialect);
    host.come_up();
    const ByteVector own = held(host, 0x1000, 8);
    REQUIRE(write(host, 0x1002, bytes({0xcc}), KVMI_WRITE_PATCH) == ErrorCode::None);
    CHECK(host.memory[0x1002] == std::byte{0xcc});
    CHECK(read(host, 0x1000, 8) == own);
    CHECK(read(host, 0x1002, 1) == ByteVector{own[2]});
    // expected bytes are the guest's own
    CHECK(write(host, 0x1002, bytes({0xcc}), KVMI_WRITE_PATCH | KVMI_WRITE_EXPECT, bytes({0xcc})) == ErrorCode::Stale);
    CHECK(write(host, 0x1002, bytes({0xf1}), KVMI_WRITE_PATCH | KVMI_WRITE_EXPECT, {own[2]}) == ErrorCode::None);
    CHECK(host.memory[0x1002] == std::byte{0xf1});
    // another size or place overlaps
    CHECK(write(host, 0x1001, bytes({1, 2}), KVMI_WRITE_PATCH) == ErrorCode::Busy);
    CHECK(write(host, 0x1002, bytes({1, 2}), KVMI_WRITE_UNPATCH) == ErrorCode::NoEntry);
    CHECK(write(host, 0x1002, bytes({0}), KVMI_WRITE_UNPATCH) == ErrorCode::None);
    CHECK(held(host, 0x1000, 8) == own);
    CHECK(write(host, 0x1002, bytes({0}), KVMI_WRITE_UNPATCH) == ErrorCode::NoEntry);
  }
}

TEST_CASE("bridge: a write over a patch changes what is under it", "[hypervisor]") {
  Hypervisor host(DialectId::V7);
  host.come_up();
  REQUIRE(write(host, 0x1002, bytes({0xcc, 0xcc}), KVMI_WRITE_PATCH) == ErrorCode::None);
  host.log.clear();
  REQUIRE(write(host, 0x1000, bytes({10, 11, 12, 13, 14, 15})) == ErrorCode::None);
  // Bytes under the patch are not sent: nothing of it can be undone by that.
  const auto writes = host.all<kvmi1::WritePhysical>();
  REQUIRE(writes.size() == 2);
  CHECK((writes[0]->gpa.value == 0x1000 && writes[0]->data.size() == 2));
  CHECK((writes[1]->gpa.value == 0x1004 && writes[1]->data.size() == 2));
  CHECK(held(host, 0x1000, 6) == bytes({10, 11, 0xcc, 0xcc, 14, 15}));
  CHECK(read(host, 0x1000, 6) == bytes({10, 11, 12, 13, 14, 15}));
  // All of it under the patch: nothing is written at all.
  host.log.clear();
  REQUIRE(write(host, 0x1002, bytes({20, 21})) == ErrorCode::None);
  CHECK(host.all<kvmi1::WritePhysical>().empty());
  CHECK(read(host, 0x1001, 4) == bytes({11, 20, 21, 14}));
  CHECK(write(host, 0x1002, bytes({22, 23}), KVMI_WRITE_EXPECT, bytes({20, 21})) == ErrorCode::None);
  REQUIRE(write(host, 0x1002, bytes({0, 0}), KVMI_WRITE_UNPATCH) == ErrorCode::None);
  CHECK(held(host, 0x1000, 6) == bytes({10, 11, 22, 23, 14, 15}));
}

TEST_CASE("bridge: what the guest stored over a patch is the guest's", "[hypervisor]") {
  Hypervisor host(DialectId::V12);
  host.come_up();
  const ByteVector own = held(host, 0x1000, 3);
  REQUIRE(write(host, 0x1000, bytes({0xcc, 0xcc, 0xcc}), KVMI_WRITE_PATCH) == ErrorCode::None);
  host.memory[0x1001] = std::byte{0x77};
  CHECK(read(host, 0x1000, 3) == ByteVector{own[0], std::byte{0x77}, own[2]});
  CHECK(read(host, 0x1001, 1) == bytes({0x77}));
  REQUIRE(write(host, 0x1000, bytes({1, 2, 3})) == ErrorCode::None);
  CHECK(held(host, 0x1000, 3) == bytes({0xcc, 2, 0xcc}));
  host.log.clear();
  REQUIRE(write(host, 0x1000, bytes({0, 0, 0}), KVMI_WRITE_UNPATCH) == ErrorCode::None);
  CHECK(held(host, 0x1000, 3) == bytes({1, 2, 3}));
  CHECK(host.all<kvmi1::WritePhysical>().size() == 2);  // the byte in the middle is left alone
}

TEST_CASE("bridge: memory commands keep their order", "[hypervisor]") {
  Hypervisor host(DialectId::V7);
  host.come_up();
  const std::vector<kvmi_read_range> ranges{range(0x1000, 2)};
  const ByteVector own = held(host, 0x1000, 2), data = bytes({5, 6}), more = bytes({7, 8});
  const Seq first = host.send(write_of(0x1000, data, KVMI_WRITE_EXPECT, own));
  const Seq second = host.send(read_of(ranges));
  const Seq third = host.send(write_of(0x1000, more, KVMI_WRITE_EXPECT, data));
  const Seq fourth = host.send(read_of(ranges));
  CHECK(host.open.size() == 1);  // the others wait for the first
  REQUIRE(host.serve_all());
  Answer answer = host.take_answer();
  CHECK(answer.passed.seq == first);
  CHECK(answer.error() == ErrorCode::None);
  answer = host.take_answer();
  CHECK(answer.passed.seq == second);
  CHECK(answer.error() == ErrorCode::None);
  answer = host.take_answer();
  CHECK(answer.passed.seq == third);
  CHECK(answer.error() == ErrorCode::None);
  answer = host.take_answer();
  CHECK(answer.passed.seq == fourth);
  CHECK(held(host, 0x1000, 2) == more);
  CHECK_FALSE(host.has_answer());
  // Commands of vCPUs do not wait for memory.
  host.send(write_of(0x1000, data, KVMI_WRITE_EXPECT, more));
  host.send(GetXcr{VcpuId{0}, 0});
  CHECK(host.open.size() == 2);
}

TEST_CASE("bridge: commands of thousands of pieces are not all sent at once", "[hypervisor]") {
  Hypervisor host(DialectId::V12);
  host.come_up();
  constexpr std::size_t kRanges = 4000;
  constexpr unsigned kCommands = 12;
  std::vector<kvmi_read_range> ranges;
  for (std::size_t i = 0; i < kRanges; ++i) ranges.push_back(range(i, 1));
  std::vector<Seq> asked;
  // What needs a look first waits too, and so does what is behind it.
  const ByteVector own = held(host, 0x1000, 1), data = bytes({0x55});
  for (unsigned i = 0; i < kCommands; ++i) {
    asked.push_back(host.send(read_of(ranges)));
    if (i == 8) asked.push_back(host.send(write_of(0x1000, data, KVMI_WRITE_EXPECT, own)));
  }
  std::size_t most = host.open.size();
  CHECK(most == 5 * kRanges);
  std::size_t at = 0;
  while (host.is_asked()) {
    const Sent sent = host.take();
    REQUIRE(host.serve(sent));
    most = std::max(most, host.open.size());
    if (!host.has_answer()) continue;
    const Answer answer = host.take_answer();
    REQUIRE(at < asked.size());
    CHECK(answer.passed.seq == asked[at++]);
    CHECK(answer.error() == ErrorCode::None);
  }
  CHECK(at == asked.size());
  CHECK(most < 16384 + kRanges);
  CHECK(held(host, 0x1000, 1) == data);
}

TEST_CASE("bridge: what waited goes on after a failure", "[hypervisor]") {
  Hypervisor host(DialectId::V7);
  host.come_up();
  REQUIRE(write(host, 0x1000, bytes({0xcc}), KVMI_WRITE_PATCH) == ErrorCode::None);
  const std::vector<kvmi_read_range> ranges{range(0x1000, 1)};
  const ByteVector byte = bytes({1});
  // Each of these is alone, and fails in its first or second step.
  for (const bool at_write : {false, true}) {
    for (const unsigned flags : {0U, unsigned{KVMI_WRITE_UNPATCH}, unsigned{KVMI_WRITE_PATCH}}) {
      CAPTURE(at_write, flags);
      host.refuse = [&](const kvmi1::Command& command) -> std::int32_t {
        const bool writes = std::holds_alternative<kvmi1::WritePhysical>(command);
        return writes == at_write ? -kvmi1::kEnoent : 0;
      };
      host.send(write_of(0x1000, byte, flags));
      host.send(write_of(0x2000, byte));
      REQUIRE(host.serve(host.take()));
      if (at_write && host.is_asked() && flags != 0) REQUIRE(host.serve(host.take()));
      const Answer failed = host.take_answer();
      const bool all_covered = at_write && flags == 0;  // there was nothing to write
      CHECK(failed.error() == (all_covered ? ErrorCode::None : ErrorCode::Fault));
      host.refuse = nullptr;
      REQUIRE(host.serve_all());
      CHECK(host.take_answer().error() == ErrorCode::None);
    }
  }
  // The patch is still known, and comes off.
  CHECK(host.memory[0x1000] == std::byte{0xcc});
  CHECK(write(host, 0x1000, byte, KVMI_WRITE_UNPATCH) == ErrorCode::None);
  CHECK(host.memory[0x1000] == std::byte{1});
}

TEST_CASE("bridge: rfc2017 has no way past a patch, so it takes none", "[hypervisor]") {
  Hypervisor host(DialectId::Rfc2017);
  host.come_up();
  const ByteVector patch = bytes({0xcc});
  const Answer answer = host.ask(write_of(0x1000, patch, KVMI_WRITE_PATCH));
  CHECK(answer.error() == ErrorCode::NotSupported);
  CHECK(answer.text().find("rfc2017") != std::string::npos);
}

TEST_CASE("bridge: without reading there are no patches", "[hypervisor]") {
  Hypervisor host(DialectId::V12);
  host.denied_commands = {host.number(kvmi1::kind_of<kvmi1::ReadPhysical>)};
  host.come_up();
  CHECK(write(host, 0x1000, bytes({0xcc}), KVMI_WRITE_PATCH) == ErrorCode::NotSupported);
  CHECK(write(host, 0x1000, bytes({0xcc}), KVMI_WRITE_EXPECT, bytes({0})) == ErrorCode::NotSupported);
  CHECK(write(host, 0x1000, bytes({0x12})) == ErrorCode::None);
  CHECK(host.memory[0x1000] == std::byte{0x12});
}

TEST_CASE("bridge: reads of another size close the link", "[hypervisor]") {
  for (const std::size_t size : {std::size_t{0}, std::size_t{15}, std::size_t{17}}) {
    CAPTURE(size);
    Hypervisor host(DialectId::V7);
    host.come_up();
    const std::vector<kvmi_read_range> ranges{range(0x1000, 16)};
    host.send(read_of(ranges));
    const ByteVector data = bytes(size, 1);
    CHECK_FALSE(host.answer(host.take(), kvmi1::ReadPhysicalReply{data}));
    CHECK(host.broken.find(std::to_string(size) + " bytes where 16 were asked for") != std::string::npos);
    CHECK_FALSE(host.has_answer());
  }
}

/// Many patches and writes, against a guest whose own bytes are kept beside.
TEST_CASE("bridge: the guest's own bytes, whatever is laid over them", "[hypervisor]") {
  Hypervisor host(DialectId::V7);
  host.come_up();
  std::mt19937 random(20171);  // NOLINT: the same run each time
  const auto below = [&](std::size_t n) { return static_cast<std::size_t>(random() % n); };
  ByteVector own = host.memory;
  std::map<std::uint64_t, ByteVector> patches;
  constexpr std::size_t kBegin = 0xfe0, kSize = 64;
  for (unsigned round = 0; round < 2000; ++round) {
    const std::uint64_t gpa = kBegin + below(kSize);
    const std::size_t size = 1 + below(12);
    ByteVector data(size);
    // 0x80 and above is never the guest's: a store of just the patch's byte cannot be told from the patch.
    for (auto& byte : data) byte = static_cast<std::byte>(below(0x80));
    switch (below(5)) {
      case 0: {
        for (auto& byte : data) byte |= std::byte{0x80};
        const ErrorCode error = write(host, gpa, data, KVMI_WRITE_PATCH);
        const bool in_page = gpa % 4096 + size <= 4096;
        bool overlaps = false;
        for (const auto& [at, bytes_of] : patches)
          overlaps =
              overlaps || (at < gpa + size && gpa < at + bytes_of.size() && (at != gpa || bytes_of.size() != size));
        const ErrorCode wanted = !in_page ? ErrorCode::Invalid : overlaps ? ErrorCode::Busy : ErrorCode::None;
        REQUIRE(error == wanted);
        if (wanted == ErrorCode::None) patches[gpa] = data;
        break;
      }
      case 1: {
        if (patches.empty()) break;
        auto it = patches.begin();
        std::advance(it, static_cast<std::ptrdiff_t>(below(patches.size())));
        REQUIRE(write(host, it->first, it->second, KVMI_WRITE_UNPATCH) == ErrorCode::None);
        patches.erase(it);
        break;
      }
      case 2:
        REQUIRE(write(host, gpa, data) == ErrorCode::None);
        std::copy(data.begin(), data.end(), own.begin() + static_cast<std::ptrdiff_t>(gpa));
        break;
      case 3: {
        const auto begin = own.begin() + static_cast<std::ptrdiff_t>(gpa);
        ByteVector expected(begin, begin + static_cast<std::ptrdiff_t>(size));
        const bool right = below(2) == 0;
        if (!right) expected[below(size)] ^= std::byte{1};
        REQUIRE(write(host, gpa, data, KVMI_WRITE_EXPECT, expected) == (right ? ErrorCode::None : ErrorCode::Stale));
        if (right) std::copy(data.begin(), data.end(), begin);
        break;
      }
      default:
        // The guest itself stores, over a patch or beside it.
        host.memory[gpa] = own[gpa] = data[0];
        break;
    }
    const ByteVector seen = read(host, kBegin - 8, kSize + 24);
    const auto begin = own.begin() + static_cast<std::ptrdiff_t>(kBegin - 8);
    REQUIRE(std::equal(seen.begin(), seen.end(), begin));
    host.log.clear();
  }
  while (!patches.empty()) {
    REQUIRE(write(host, patches.begin()->first, patches.begin()->second, KVMI_WRITE_UNPATCH) == ErrorCode::None);
    patches.erase(patches.begin());
  }
  CHECK(host.memory == own);
}

}  // namespace kvmid::bridge::test
