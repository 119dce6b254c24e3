// SPDX-License-Identifier: GPL-2.0-or-later
//
// What of `kvmictl mem` needs no guest: its command line, ranges, searches, changes, and the file of a dump.

#include <elf.h>
#include <sys/stat.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "kvmictl/arguments.h"
#include "kvmictl/dump_file.h"
#include "kvmictl/guest_memory.h"
#include "kvmictl/mem_search.h"
#include "kvmictl/mem_watch.h"

using namespace kvmid;
using namespace kvmid::ctl;

namespace {

using Words = std::vector<std::string>;

Arguments good(const Words& words) {
  auto parsed = parse(words);
  if (const auto* answer = std::get_if<Answer>(&parsed)) FAIL(answer->error);
  return std::get<Arguments>(parsed);
}
std::string refused(const Words& words) {
  auto parsed = parse(words);
  REQUIRE(std::holds_alternative<Answer>(parsed));
  CHECK(std::get<Answer>(parsed).exit_code == kUsage);
  return std::get<Answer>(parsed).error;
}
bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

kvmi_memory_slot slot(std::uint64_t gpa, std::uint64_t bytes, bool read_only = false) {
  kvmi_memory_slot out{};
  out.gpa = gpa;
  out.bytes = bytes;
  out.flags = read_only ? KVMI_SLOT_READ_ONLY : 0;
  return out;
}
std::vector<std::byte> bytes_of(const std::string& text) {
  const auto bytes = std::as_bytes(std::span(text));
  return {bytes.begin(), bytes.end()};
}

/// A folder that goes with the test.
struct Folder {
  std::string path;
  Folder() {
    std::string name = (std::filesystem::temp_directory_path() / "kvmictl-XXXXXX").string();
    REQUIRE(::mkdtemp(name.data()) != nullptr);
    path = name;
  }
  ~Folder() { std::filesystem::remove_all(path); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  std::string operator/(const char* name) const { return path + "/" + name; }
};

std::string content(const std::string& file) {
  std::ifstream in(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

const std::vector<kvmi_memory_slot> kSlots{slot(0x1000, 0x2000), slot(0x3000, 0x1000, true), slot(0x8000, 0x3000)};

Checkpoint checkpoint(DumpFormat format) { return {"6a1f7e36-0000-4000-8000-000000000001", format, kSlots, 0, 7}; }

/// Byte of memory: page 0x9000 is zeros, another is not.
std::byte memory_at(std::uint64_t gpa) {
  return gpa / kPageSize == 9 ? std::byte{0} : static_cast<std::byte>(gpa / kPageSize * 16 + gpa % 13 + 1);
}
/// Appends up to `end` bytes of memory, `step` at a time at most.
void append(DumpFile& file, std::uint64_t end, std::size_t step = 0x1000) {
  while (file.done() < end) {
    std::uint64_t before = 0;
    for (const auto& part : file.layout().parts) {
      if (file.done() < before + part.bytes) {
        std::vector<std::byte> piece(
            std::min<std::uint64_t>({step, before + part.bytes - file.done(), end - file.done()}));
        for (std::size_t i = 0; i < piece.size(); ++i) piece[i] = memory_at(part.gpa + (file.done() - before) + i);
        REQUIRE(file.append(piece));
        break;
      }
      before += part.bytes;
    }
  }
}

}  // namespace

TEST_CASE("what each subcommand of mem takes", "[kvmictl][mem]") {
  CHECK(good({"mem", "dump", "web1", "f"}).subcommand == Subcommand::MemDump);
  CHECK(good({"mem", "dump", "web1", "f"}).memory.format == DumpFormat::Raw);
  const auto dump = good({"mem", "dump", "web1", "f", "--format", "elf", "--resume", "--rate", "8M"});
  CHECK(dump.file == "f");
  CHECK(dump.memory.format == DumpFormat::Elf);
  CHECK(dump.memory.resume);
  CHECK(dump.memory.rate == 8U << 20U);
  const auto search = good({"mem", "search", "web1", "90 cc", "--count", "3"});
  CHECK(search.subcommand == Subcommand::MemSearch);
  CHECK(search.data == std::vector{std::byte{0x90}, std::byte{0xcc}});
  CHECK(search.count == 3);
  CHECK(good({"mem", "search", "web1", "--string", "KVMI"}).data == bytes_of("KVMI"));
  const auto watch = good({"mem", "watch", "web1", "0x1000", "8", "--interval", "0.5", "--count", "2"});
  CHECK(watch.subcommand == Subcommand::MemWatch);
  CHECK(watch.length == 8);
  CHECK(watch.interval_seconds == 0.5);
  const auto translate = good({"mem", "translate", "web1", "0xffffffff81000000", "--vcpu", "1"});
  CHECK(translate.subcommand == Subcommand::MemTranslate);
  CHECK(translate.address == 0xffffffff81000000);
  CHECK(translate.vcpu == 1);
}

TEST_CASE("what mem read prints, and how much", "[kvmictl][mem]") {
  CHECK(good({"mem", "read", "web1", "0", "--int", "u32"}).length == 4);
  CHECK(good({"mem", "read", "web1", "0", "16", "--int", "u64"}).memory.integer_bytes == 8);
  CHECK(good({"mem", "read", "web1", "0", "--string"}).length == 4096);
  CHECK(good({"mem", "read", "web1", "0xfffffffffffffff0", "--string"}).length == 16);
  CHECK(good({"mem", "read", "web1", "0", "10", "--string"}).length == 10);
  const auto a = good({"mem", "read", "web1", "0x1000", "8", "--virtual", "--vcpu", "1"});
  CHECK(a.memory.is_virtual);
  CHECK(a.vcpu == 1);
  CHECK_FALSE(good({"mem", "read", "web1", "0x1000", "8"}).memory.is_virtual);

  CHECK(has(refused({"mem", "read", "web1", "0"}), "LEN"));
  CHECK(has(refused({"mem", "read", "web1", "0", "6", "--int", "u32"}), "not a multiple of u32"));
  CHECK(has(refused({"mem", "read", "web1", "0xfffffffffffffffe", "--int", "u32"}), "past the end"));
  CHECK(has(refused({"mem", "read", "web1", "0", "8", "--int", "u128"}), "u128"));
  CHECK(has(refused({"mem", "read", "web1", "0", "8", "--vcpu", "0"}), "--virtual"));
  CHECK(has(refused({"mem", "read", "web1", "0", "65M", "--json"}), "64M"));
  CHECK(has(refused({"mem", "read", "web1", "0", "65M", "--virtual"}), "64M"));
  CHECK(good({"mem", "read", "web1", "0", "65M"}).length == 65U << 20U);
  for (const char* other : {"--int=u8", "--string"}) refused({"mem", "read", "web1", "0", "8", "--raw", other});
  refused({"mem", "read", "web1", "0", "8", "--int", "u8", "--string"});
}

TEST_CASE("wrong words for mem search, watch, dump and translate are usage errors", "[kvmictl][mem]") {
  refused({"mem", "search", "web1"});
  refused({"mem", "search", "web1", "9"});
  refused({"mem", "search", "web1", "90", "--string", "x"});
  CHECK(has(refused({"mem", "search", "web1", "--string", std::string(4097, 'x')}), "4096"));
  CHECK(good({"mem", "search", "web1", "--string", std::string(4096, 'x')}).data.size() == 4096);
  CHECK(has(refused({"mem", "watch", "web1", "0", "2M"}), "1M"));
  refused({"mem", "watch", "web1", "0"});
  refused({"mem", "watch", "web1", "0", "0"});
  refused({"mem", "watch", "web1", "0", "8", "--interval", "0"});
  refused({"mem", "watch", "web1", "0", "8", "--vcpu", "1"});
  refused({"mem", "dump", "web1"});
  refused({"mem", "dump", "web1", "f", "--format", "lime"});
  refused({"mem", "dump", "web1", "f", "--rate", "0"});
  refused({"mem", "translate", "web1"});
  refused({"mem", "translate", "web1", "main"});
}

TEST_CASE("the completion knows mem's subcommands and their options", "[kvmictl][mem]") {
  auto parsed = parse({"completion", "bash"});
  const std::string script = std::get<Answer>(parsed).out;
  for (const char* word : {"'mem dump')", "'mem search')", "'mem watch')", "'mem translate')", "--resume", "--virtual",
                           "|mem dump|", "u8 u16 u32 u64"}) {
    CAPTURE(word);
    CHECK(has(script, word));
  }
}

TEST_CASE("slots that lie end to end are one run", "[kvmictl][mem]") {
  CHECK(runs_of(kSlots) == std::vector<MemoryRun>{{0x1000, 0x3000}, {0x8000, 0x3000}});
  CHECK(runs_of({}).empty());
}

TEST_CASE("a range that is not all memory is told where memory is", "[kvmictl][mem]") {
  CHECK(range_fault(kSlots, 0x1000, 0x3000).empty());
  CHECK(range_fault(kSlots, 0xafff, 1).empty());
  CHECK(range_fault(kSlots, 0x2fff, 2).empty());  // from one slot into the next
  CHECK(range_fault(kSlots, 0, 1) == "there is no guest memory at GPA 0x0; the next begins at 0x1000");
  CHECK(range_fault(kSlots, 0x3fff, 2) == "guest memory ends at GPA 0x4000, within the range 0x3fff to 0x4000");
  CHECK(range_fault(kSlots, 0x3000, 0x6000) == "guest memory ends at GPA 0x4000, within the range 0x3000 to 0x8fff");
  CHECK(range_fault(kSlots, 0x5000, 1) == "there is no guest memory at GPA 0x5000; the next begins at 0x8000");
  CHECK(range_fault(kSlots, 0xb000, 1) == "there is no guest memory at GPA 0xb000; the last ends at 0xb000");
  CHECK(range_fault(kSlots, ~std::uint64_t{0}, 1) ==
        "there is no guest memory at GPA 0xffffffffffffffff; the last ends at 0xb000");
  CHECK(range_fault({}, 0, 1) == "this guest has no memory");
}

TEST_CASE("a search finds the same places however memory is cut", "[kvmictl][mem]") {
  const std::string memory = "abcabcaab" + std::string(20, 'a') + "abc";
  const auto places = [&](const std::string& pattern, std::size_t piece, std::size_t most = 1000) {
    std::vector<std::uint64_t> out;
    PieceSearch search(bytes_of(pattern));
    search.begin(0x1000);
    const auto all = bytes_of(memory);
    for (std::size_t at = 0; at < all.size(); at += piece) {
      const bool on = search.feed(std::span(all).subspan(at, std::min(piece, all.size() - at)), [&](std::uint64_t gpa) {
        out.push_back(gpa);
        return out.size() < most;
      });
      if (!on) break;
    }
    return out;
  };
  for (const std::string pattern : {"a", "abc", "aa", "aab", "bca", "zz", "aaaaaaaaaaaaaaaaaaaaabc"}) {
    std::vector<std::uint64_t> expected;
    for (auto at = memory.find(pattern); at != std::string::npos; at = memory.find(pattern, at + 1))
      expected.push_back(0x1000 + at);
    for (std::size_t piece = 1; piece <= memory.size(); ++piece) {
      CAPTURE(pattern, piece);
      CHECK(places(pattern, piece) == expected);
    }
  }
  CHECK(places("a", 5, 2) == std::vector<std::uint64_t>{0x1000, 0x1003});

  PieceSearch search(bytes_of("abcd"));
  search.begin(0);
  CHECK(search.feed(bytes_of("ab"), [](std::uint64_t) { return false; }));
  search.begin(0x5000);  // another run: what came before does not count
  CHECK(search.feed(bytes_of("cd"), [](std::uint64_t) { return false; }));
  std::uint64_t found = 0;
  CHECK(search.feed(bytes_of("abcd"), [&](std::uint64_t gpa) { return (found = gpa) != 0; }));
  CHECK(found == 0x5002);
}

TEST_CASE("changes that are near each other are one", "[kvmictl][mem]") {
  const auto before = bytes_of("aaaaaaaaaaaaaaaaaaaaaaaa");
  auto after = before;
  CHECK(changed_bytes(before, after).empty());
  after[2] = std::byte{'x'};
  after[9] = std::byte{'y'};   // 6 bytes between them
  after[18] = std::byte{'z'};  // 8
  const auto changes = changed_bytes(before, after);
  REQUIRE(changes.size() == 2);
  CHECK(changes[0].at == 2);
  CHECK(changes[0].before == bytes_of("aaaaaaaa"));
  CHECK(changes[0].after == bytes_of("xaaaaaay"));
  CHECK(changes[1].at == 18);
  CHECK(changes[1].after == bytes_of("z"));
  CHECK(has(cookie_words({5, {}}, {5, {}}), "the guest's own store"));
  CHECK(has(cookie_words({5, {}}, {6, {}}), "5 -> 6: kvmid saw changes of guest memory, here or elsewhere"));
  // In place it is known where.
  CHECK(changed_by({5, 8}, {5, 8}) == ChangedBy::Guest);
  CHECK(has(cookie_words({5, 8}, {6, 8}), "5 -> 6: the guest's own store"));
  CHECK(has(cookie_words({5, 8}, {6, 12}), "5 -> 6: changed through kvmid"));
  CHECK(changed_by({5, 8}, {6, {}}) == ChangedBy::Unknown);  // the grant has ended
  CHECK(changed_by({5, {}}, {6, 8}) == ChangedBy::Unknown);
}

TEST_CASE("a raw dump has offset = GPA, and holes where nothing is", "[kvmictl][mem]") {
  const Folder folder;
  const std::string path = folder / "dump";
  auto file = DumpFile::create(path, checkpoint(DumpFormat::Raw), "");
  REQUIRE(file);
  append(*file, 0x6000, GENERATE(0x1000u, 0x3000u));
  CHECK(file->zero_bytes() == 0x1000);
  CHECK(std::filesystem::exists(path + ".resume"));
  REQUIRE(file->finish());
  CHECK_FALSE(std::filesystem::exists(path + ".resume"));

  const std::string all = content(path);
  REQUIRE(all.size() == 0xb000);
  for (std::size_t at = 0; at < all.size(); ++at) {
    const bool memory = (at >= 0x1000 && at < 0x4000) || at >= 0x8000;
    if (static_cast<std::byte>(all[at]) != (memory ? memory_at(at) : std::byte{0})) FAIL("at " << at);
  }
  struct stat info {};
  REQUIRE(::stat(path.c_str(), &info) == 0);
  CHECK((info.st_mode & 0777) == 0600);
}

TEST_CASE("an ELF dump has a segment for each slot", "[kvmictl][mem]") {
  const Folder folder;
  const std::string path = folder / "dump";
  auto file = DumpFile::create(path, checkpoint(DumpFormat::Elf), "guest web1");
  REQUIRE(file);
  append(*file, 0x6000);
  REQUIRE(file->finish());
  const std::string all = content(path);
  Elf64_Ehdr head{};
  REQUIRE(all.size() > sizeof head);
  std::memcpy(&head, all.data(), sizeof head);
  CHECK(std::memcmp(head.e_ident, ELFMAG, SELFMAG) == 0);
  CHECK(head.e_type == ET_CORE);
  CHECK(head.e_machine == EM_X86_64);
  REQUIRE(head.e_phnum == 4);
  std::uint64_t end = 0;
  for (std::size_t i = 0; i < 4; ++i) {
    Elf64_Phdr segment{};
    std::memcpy(&segment, all.data() + head.e_phoff + i * sizeof segment, sizeof segment);
    if (i == 0) {
      CHECK(segment.p_type == PT_NOTE);
      CHECK(has(all.substr(segment.p_offset, segment.p_filesz), "guest web1"));
      continue;
    }
    const auto& expected = kSlots[i - 1];
    CHECK(segment.p_type == PT_LOAD);
    CHECK(segment.p_paddr == expected.gpa);
    CHECK(segment.p_vaddr == expected.gpa);
    CHECK(segment.p_memsz == expected.bytes);
    CHECK(segment.p_filesz == expected.bytes);
    CHECK(segment.p_offset % kPageSize == 0);
    CHECK(((segment.p_flags & PF_W) != 0) == (expected.flags == 0));
    for (std::size_t at = 0; at < expected.bytes; ++at) {
      if (static_cast<std::byte>(all[segment.p_offset + at]) != memory_at(expected.gpa + at)) FAIL("at " << at);
    }
    end = segment.p_offset + segment.p_filesz;
  }
  CHECK(end == all.size());
}

TEST_CASE("a dump that was interrupted goes on, and what was written behind is forgotten", "[kvmictl][mem]") {
  const auto format = GENERATE(DumpFormat::Raw, DumpFormat::Elf);
  const Folder folder;
  const std::string path = folder / "dump";
  {
    auto file = DumpFile::create(path, checkpoint(format), "n");
    REQUIRE(file);
    append(*file, 0x2800);
    REQUIRE(file->save());
    append(*file, 0x3000);
    // Behind what was saved, where memory is zeros later on.
    const std::vector<std::byte> stale(0x3000, std::byte{0xee});
    REQUIRE(file->append(std::span(stale).first(0x1000)));
    REQUIRE(file->append(std::span(stale).first(0x1000)));
  }  // killed here
  auto file = DumpFile::resume(path, checkpoint(format), "n");
  REQUIRE(file);
  CHECK(file->done() == 0x2800);
  CHECK(file->checkpoint().cookie == 7);
  append(*file, 0x6000);
  REQUIRE(file->finish());

  auto whole = DumpFile::create(folder / "whole", checkpoint(format), "n");
  REQUIRE(whole);
  append(*whole, 0x6000);
  REQUIRE(whole->finish());
  CHECK((content(path) == content(folder / "whole")));  // not printed
}

TEST_CASE("a dump does not go on where it does not belong", "[kvmictl][mem]") {
  const Folder folder;
  const std::string path = folder / "dump";
  const auto why = [&](Checkpoint now) {
    const auto file = DumpFile::resume(path, std::move(now), "n");
    return file ? "it goes on" : file.error().text;
  };
  CHECK(has(why(checkpoint(DumpFormat::Raw)), "there is no " + path + ".resume"));
  {
    auto file = DumpFile::create(path, checkpoint(DumpFormat::Raw), "n");
    REQUIRE(file);
    append(*file, 0x1000);
    REQUIRE(file->save());
  }
  CHECK(has(DumpFile::create(path, checkpoint(DumpFormat::Raw), "n").error().text, "--resume"));
  CHECK(has(why(checkpoint(DumpFormat::Elf)), "has the format raw"));
  auto other = checkpoint(DumpFormat::Raw);
  other.guest = "x";
  CHECK(has(why(other), "of another guest"));
  auto moved = checkpoint(DumpFormat::Raw);
  moved.slots[1].flags = 0;
  CHECK(has(why(moved), "memory map"));
  CHECK(why(checkpoint(DumpFormat::Raw)) == "it goes on");
  REQUIRE(::truncate(path.c_str(), 0x100) == 0);
  CHECK(has(why(checkpoint(DumpFormat::Raw)), "is not the file"));
  for (const char* text :
       {"", "{}", "nonsense", "[1]", R"({"schema":2,"guest":"x","format":"raw","slots":[],"done":0,"cookie":1})",
        R"({"schema":1,"guest":"x","format":"raw","slots":[[1,2]],"done":0,"cookie":1})",
        R"({"schema":1,"guest":"x","format":"raw","slots":[[1,2,-3]],"done":0,"cookie":1})",
        R"({"schema":1,"guest":"x","format":"raw","slots":{},"done":-1,"cookie":1})"}) {
    std::ofstream(path + ".resume", std::ios::trunc) << text;
    CAPTURE(text);
    CHECK(has(why(checkpoint(DumpFormat::Raw)), "is no record of a dump"));
  }
  std::filesystem::remove(path + ".resume");
  CHECK(has(DumpFile::create(path, checkpoint(DumpFormat::Raw), "n").error().text, "is there already"));
  CHECK(has(DumpFile::create(folder / "no/such", checkpoint(DumpFormat::Raw), "n").error().text, "cannot create"));
}

TEST_CASE("progress in a line", "[kvmictl][mem]") {
  CHECK(progress_line(0, 16U << 20U, 0, 0) == "[>                             ]   0%  0.0 of 16.0 MiB, 0 MiB/s");
  CHECK(progress_line(8U << 20U, 16U << 20U, 120.4, 0) ==
        "[===============>              ]  50%  8.0 of 16.0 MiB, 120 MiB/s");
  CHECK(progress_line(1, 1, 1, 0).find("[==============================] 100%") == 0);
  CHECK(progress_line(8U << 20U, 16U << 20U, 120, 40) == " 50%  8.0 of 16.0 MiB, 120 MiB/s");
  CHECK(progress_line(8U << 20U, 16U << 20U, 120, 10).size() == 10);
}
