// SPDX-License-Identifier: GPL-2.0-or-later
//
// Guest memory as a tool sees it: pages, breakpoints that are patches, rights.

#include "rig.h"

using namespace kvmid;
using namespace kvmid::bridge::test;
using kvmid::bridge::ToolRights;

namespace {

std::vector<std::byte> read_back(Rig& rig, const std::vector<std::byte>& guest, std::uint64_t gpa) {
  rig.send(kvmi1::ReadPhysical{Gpa{gpa}, guest.size()});
  const auto* asked = rig.next<ReadPhysical>();
  REQUIRE(asked != nullptr);
  REQUIRE(asked->ranges.size() == 1);
  CHECK(asked->ranges[0].gpa == gpa);
  CHECK(asked->ranges[0].size == guest.size());
  rig.answer(ReadPhysicalReply{77, guest});
  const auto reply = rig.body_of<kvmi1::ReadPhysicalReply>(rig.told_one());
  return {reply.data.begin(), reply.data.end()};
}

void lay(Rig& rig, std::uint64_t gpa) {
  const auto cc = bytes_of({0xcc});
  const auto seq = rig.send(kvmi1::WritePhysical{Gpa{gpa}, cc});
  const auto asked = rig.serve<WritePhysical>(WritePhysicalReply{1});
  CHECK(asked.flags == KVMI_WRITE_PATCH);
  CHECK(asked.gpa == Gpa{gpa});
  CHECK(rig.error_of(seq) == 0);
}

kvmi1::PageAccessEntry entry(std::uint64_t gpa, std::uint8_t access) {
  kvmi1::PageAccessEntry e;
  e.gpa = gpa;
  e.access = access;
  return e;
}

std::vector<kvmi_page_access_entry> runs_of(const SetPageAccess& command) {
  std::vector<kvmi_page_access_entry> runs;
  for (std::size_t i = 0; i < command.entries.size(); ++i) runs.push_back(command.entries[i]);
  return runs;
}

}  // namespace

TEST_CASE("reads are of 1 to 4096 bytes within a page", "[agent]") {
  for (const auto dialect : {DialectId::V7, DialectId::V12}) {
    Rig rig(dialect);
    const auto cut = [&](std::uint64_t gpa, std::uint64_t size) {
      return rig.error_of(rig.send(kvmi1::ReadPhysical{Gpa{gpa}, size}));
    };
    CHECK(cut(0x1000, 0) == kEinval);
    CHECK(cut(0x1000, 4097) == kEinval);
    CHECK(cut(0x1001, 4096) == kEinval);
    CHECK(cut(0x1fff, 2) == kEinval);
    CHECK(rig.idle());
    const auto page = std::vector<std::byte>(4096, std::byte{0x5a});
    CHECK(read_back(rig, page, 0x1000) == page);
    const auto seq = rig.send(kvmi1::ReadPhysical{Gpa{0x1fff}, 1});
    rig.serve_refused<ReadPhysical>(ErrorCode::Fault);
    CHECK(rig.error_of(seq) == kEnoent);
  }
  Rig v7(DialectId::V7);
  CHECK(v7.error_of(v7.send(kvmi1::ReadPhysical{Gpa{1}, ~std::uint64_t{0}})) == kEinval);
  CHECK(v7.error_of(v7.send(kvmi1::ReadPhysical{Gpa{~std::uint64_t{0}}, 2})) == kEinval);
}

TEST_CASE("writes go as they are, and their errors are the dialect's", "[agent]") {
  Rig rig(DialectId::V12);
  const auto data = bytes_of({1, 2, 3});
  auto seq = rig.send(kvmi1::WritePhysical{Gpa{0x2ffd}, data});
  const auto* asked = rig.next<WritePhysical>();
  REQUIRE(asked != nullptr);
  CHECK(asked->flags == 0);
  CHECK(std::vector<std::byte>(asked->data.begin(), asked->data.end()) == data);
  rig.refuse(ErrorCode::Fault);
  CHECK(rig.error_of(seq) == kEnoent);
  seq = rig.send(kvmi1::WritePhysical{Gpa{0x2ffe}, data});
  CHECK(rig.error_of(seq) == kEinval);
  CHECK(rig.idle());
}

TEST_CASE("one byte 0xCC is a patch; the tool's own reads show it", "[agent]") {
  Rig rig(DialectId::V7);
  lay(rig, 0x3010);
  lay(rig, 0x3fff);
  CHECK(read_back(rig, bytes_of({0x55, 0x48, 0x89}), 0x300f) == bytes_of({0x55, 0xcc, 0x89}));
  CHECK(read_back(rig, bytes_of({0x55, 0x48}), 0x3011) == bytes_of({0x55, 0x48}));
  CHECK(read_back(rig, bytes_of({0x90}), 0x3fff) == bytes_of({0xcc}));
  // Once more is no change.
  const auto cc = bytes_of({0xcc});
  CHECK(rig.error_of(rig.send(kvmi1::WritePhysical{Gpa{0x3010}, cc})) == 0);
  CHECK(rig.idle());
}

TEST_CASE("a write over a breakpoint gives it back first", "[agent]") {
  Rig rig(DialectId::V7);
  lay(rig, 0x3010);
  lay(rig, 0x3012);
  lay(rig, 0x3020);
  const auto data = bytes_of({1, 2, 3, 4});
  const auto seq = rig.send(kvmi1::WritePhysical{Gpa{0x3010}, data});
  auto unpatch = rig.serve<WritePhysical>(WritePhysicalReply{1});
  CHECK(unpatch.flags == KVMI_WRITE_UNPATCH);
  CHECK(unpatch.gpa == Gpa{0x3012});
  CHECK(unpatch.data.size() == 1);
  CHECK(rig.told().empty());
  unpatch = rig.serve_refused<WritePhysical>(ErrorCode::NoEntry);  // withdrawn already: as good as given back
  CHECK(unpatch.gpa == Gpa{0x3010});
  const auto* write = rig.next<WritePhysical>();
  REQUIRE(write != nullptr);
  CHECK(write->flags == 0);
  CHECK(std::vector<std::byte>(write->data.begin(), write->data.end()) == data);
  rig.answer(WritePhysicalReply{2});
  CHECK(rig.error_of(seq) == 0);
  CHECK(read_back(rig, data, 0x3010) == data);
  CHECK(read_back(rig, bytes_of({0x90}), 0x3020) == bytes_of({0xcc}));
}

TEST_CASE("giving back: the first error is the answer, and the write is made all the same", "[agent]") {
  Rig rig(DialectId::V7);
  lay(rig, 0x3010);
  const auto data = bytes_of({0x55});
  const auto seq = rig.send(kvmi1::WritePhysical{Gpa{0x3010}, data});
  rig.serve_refused<WritePhysical>(ErrorCode::Busy);
  rig.serve<WritePhysical>(WritePhysicalReply{2});
  CHECK(rig.error_of(seq) == kEbusy);
}

TEST_CASE("another agent's patch is in the way: that is the answer, and no breakpoint is remembered", "[agent]") {
  Rig rig(DialectId::V7);
  const auto cc = bytes_of({0xcc});
  const auto seq = rig.send(kvmi1::WritePhysical{Gpa{0x3010}, cc});
  rig.serve_refused<WritePhysical>(ErrorCode::Busy);
  CHECK(rig.error_of(seq) == kEbusy);
  CHECK(read_back(rig, bytes_of({0x90}), 0x3010) == bytes_of({0x90}));
}

TEST_CASE("what comes behind a breakpoint waits until it is there", "[agent]") {
  Rig rig(DialectId::V7);
  const auto cc = bytes_of({0xcc});
  rig.send(kvmi1::WritePhysical{Gpa{0x3010}, cc});
  REQUIRE(rig.next<WritePhysical>() != nullptr);
  const auto read = rig.send(kvmi1::ReadPhysical{Gpa{0x3010}, 1});
  CHECK(rig.idle());
  rig.answer(WritePhysicalReply{1});
  REQUIRE(rig.next<ReadPhysical>() != nullptr);
  const auto guest = bytes_of({0x90});
  rig.told();
  rig.answer(ReadPhysicalReply{1, guest});
  const Told told = rig.told_one();
  CHECK(told.seq == Seq{read});
  CHECK(told.at<std::uint8_t>(8) == 0xcc);
}

TEST_CASE("a hypervisor process takes 0xCC as a byte like any other", "[agent]") {
  Rig rig(DialectId::V7, every_right(), true);
  const auto cc = bytes_of({0xcc});
  rig.send(kvmi1::WritePhysical{Gpa{0x3010}, cc});
  CHECK(rig.serve<WritePhysical>(WritePhysicalReply{1}).flags == 0);
}

// ---- page rights ----

TEST_CASE("pages of equal rights in a row become one run", "[agent]") {
  Rig rig(DialectId::V7);
  const std::vector<kvmi1::PageAccessEntry> entries = {entry(0x1000, 5), entry(0x2abc, 5), entry(0x3000, 7),
                                                       entry(0x5000, 7)};
  const auto seq = rig.send(kvmi1::SetPageAccess{0, std::span<const kvmi1::PageAccessEntry>(entries)});
  const auto* asked = rig.next<SetPageAccess>();
  REQUIRE(asked != nullptr);
  const auto runs = runs_of(*asked);
  REQUIRE(runs.size() == 3);
  CHECK(runs[0].gpa == 0x1000);
  CHECK(runs[0].pages == 2);
  CHECK(runs[0].access == 5);
  CHECK(runs[2].gpa == 0x5000);
  rig.answer();
  CHECK(rig.error_of(seq) == 0);
}

TEST_CASE("no pages are no command; views but 0 are refused", "[agent]") {
  Rig rig(DialectId::V7);
  CHECK(rig.error_of(rig.send(kvmi1::SetPageAccess{0, {}})) == 0);
  CHECK(rig.error_of(rig.send(kvmi1::SetPageAccess{2, {}})) == kEopnotsupp);
  CHECK(rig.error_of(rig.send(kvmi1::SetPageAccess{3, {}})) == kEinval);
  CHECK(rig.idle());
}

TEST_CASE("the end of the address space is no memory, and the core is not asked", "[agent]") {
  const std::uint64_t all = ~std::uint64_t{0};
  for (const auto dialect : {DialectId::V7, DialectId::V12}) {
    Rig rig(dialect);
    const auto byte = bytes_of({0x55});
    const auto cc = bytes_of({0xcc});
    CHECK(rig.error_of(rig.send(kvmi1::ReadPhysical{Gpa{all}, 1})) == kEnoent);
    CHECK(rig.error_of(rig.send(kvmi1::ReadPhysical{Gpa{all - 0xfff}, 4096})) == kEnoent);
    CHECK(rig.error_of(rig.send(kvmi1::WritePhysical{Gpa{all}, byte})) == kEnoent);
    CHECK(rig.error_of(rig.send(kvmi1::WritePhysical{Gpa{all}, cc})) == kEnoent);
    CHECK(rig.idle());
    // Neither does its last page become one run with page 0.
    const std::vector<kvmi1::PageAccessEntry> entries = {entry(all, 5), entry(0, 5)};
    const auto seq = rig.send(kvmi1::SetPageAccess{0, std::span<const kvmi1::PageAccessEntry>(entries)});
    const auto* asked = rig.next<SetPageAccess>();
    REQUIRE(asked != nullptr);
    REQUIRE(asked->entries.size() == 1);
    CHECK(asked->entries[0].gpa == 0);
    CHECK(asked->entries[0].pages == 1);
    rig.answer();
    CHECK(rig.error_of(seq) == (dialect == DialectId::V7 ? 0 : kEinval));
  }
}

TEST_CASE("a list that is refused is tried page by page: v7 ignores what is no memory, v12 does not", "[agent]") {
  for (const auto dialect : {DialectId::V7, DialectId::V12}) {
    Rig rig(dialect);
    const std::vector<kvmi1::PageAccessEntry> entries = {entry(0x1000, 5), entry(0x2000, 5), entry(0x9000, 7)};
    const auto seq = rig.send(kvmi1::SetPageAccess{0, std::span<const kvmi1::PageAccessEntry>(entries)});
    rig.serve_refused<SetPageAccess>(ErrorCode::Fault);
    std::vector<std::uint64_t> tried;
    for (int i = 0; i < 3; ++i) {
      const auto* one = rig.next<SetPageAccess>();
      REQUIRE(one != nullptr);
      REQUIRE(one->entries.size() == 1);
      CHECK(one->entries[0].pages == 1);
      tried.push_back(one->entries[0].gpa);
      if (i == 1) {
        rig.refuse(ErrorCode::Fault);
      } else {
        rig.answer();
      }
    }
    CHECK(tried == std::vector<std::uint64_t>{0x1000, 0x2000, 0x9000});
    CHECK(rig.error_of(seq) == (dialect == DialectId::V7 ? 0 : kEinval));
  }
}

TEST_CASE("v12: one bad entry is told, the good ones are set", "[agent]") {
  Rig rig(DialectId::V12);
  const std::vector<kvmi1::PageAccessEntry> entries = {entry(0x1000, 8), entry(0x2000, 5)};
  const auto seq = rig.send(kvmi1::SetPageAccess{0, std::span<const kvmi1::PageAccessEntry>(entries)});
  const auto* asked = rig.next<SetPageAccess>();
  REQUIRE(asked != nullptr);
  REQUIRE(asked->entries.size() == 1);
  CHECK(asked->entries[0].gpa == 0x2000);
  rig.answer();
  CHECK(rig.error_of(seq) == kEinval);
}

TEST_CASE("v6 asks for rights of pages", "[agent]") {
  Rig rig(DialectId::V6);
  const std::vector<std::uint64_t> gpas = {0x1000, 0x7000};
  rig.send(kvmi1::GetPageAccess{0, std::span<const std::uint64_t>(gpas)});
  for (const std::uint8_t access : {std::uint8_t{5}, std::uint8_t{7}}) {
    const std::vector<kvmi_page_access_entry> found = {{0, 1, access, {}}};
    const auto* asked = rig.next<GetPageAccess>();
    REQUIRE(asked != nullptr);
    CHECK(asked->pages == 1);
    rig.answer(GetPageAccessReply{std::span<const kvmi_page_access_entry>(found)});
  }
  const auto reply = rig.body_of<kvmi1::GetPageAccessReply>(rig.told_one());
  CHECK(std::vector<std::byte>(reply.access.begin(), reply.access.end()) == bytes_of({5, 7}));
}

// ---- the map ----

TEST_CASE("the memory map answers QUERY_PHYSICAL and GET_NEXT_AVAILABLE_GFN", "[agent]") {
  const std::vector<kvmi_memory_slot> map = {{0, 0xa0000, 0, 0, 0}, {0x100000, 0x8000000, 0, 0, 0}};
  const GetMemoryMapReply reply{std::span<const kvmi_memory_slot>(map)};
  Rig rig(DialectId::V7);
  rig.send(kvmi1::QueryPhysical{Gfn{0x105}});
  rig.serve<GetMemoryMap>(reply);
  const auto found = rig.body_of<kvmi1::QueryPhysicalReply>(rig.told_one());
  CHECK(found.gfn == Gfn{0x100});
  CHECK(found.pages == 0x8000);
  const auto hole = rig.send(kvmi1::QueryPhysical{Gfn{0xa0}});
  rig.serve<GetMemoryMap>(reply);
  CHECK(rig.error_of(hole) == kEnoent);
  rig.send(kvmi1::GetNextAvailableGfn{});
  rig.serve<GetMemoryMap>(reply);
  CHECK(rig.body_of<kvmi1::GfnReply>(rig.told_one()).gfn == Gfn{0x8100});

  ToolRights rights = every_right();
  rights.commands.bits &= ~(std::uint64_t{1} << KVMI_MSG_GET_MEMORY_MAP);
  Rig forbidden(DialectId::V7, rights);
  CHECK(forbidden.error_of(forbidden.send(kvmi1::QueryPhysical{Gfn{1}})) == kEperm);
  rights.unserved_commands.add(CommandId::GetMemoryMap);
  Rig none(DialectId::V7, rights);
  CHECK(none.error_of(none.send(kvmi1::QueryPhysical{Gfn{1}})) == kEopnotsupp);
}
