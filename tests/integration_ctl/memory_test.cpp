// SPDX-License-Identifier: GPL-2.0-or-later
//
// kvmictl mem against a live guest: what is printed and written is what the guest has.

#include <sys/stat.h>

#include <algorithm>
#include <csignal>
#include <cstddef>
#include <filesystem>
#include <fstream>

#include "tests/integration_ctl/ctl_scene.h"

namespace kvmid::test {
namespace {

constexpr std::uint64_t kMemory = 16U << 20U;

std::string content(const std::string& file) {
  std::ifstream in(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}
std::string memory_of(const Guest& guest, std::uint64_t gpa, std::size_t bytes) {
  std::string out(bytes, '\0');
  guest.memory().read(Gpa{gpa}, out.data(), out.size());
  return out;
}
/// Where two images differ first; nothing where they do not. Never compared by CHECK itself: it would print them.
std::string difference(const std::string& a, const std::string& b) {
  if (a == b) return {};
  if (a.size() != b.size()) return std::to_string(a.size()) + " bytes, not " + std::to_string(b.size());
  const auto at = static_cast<std::size_t>(std::mismatch(a.begin(), a.end(), b.begin()).first - a.begin());
  return "at " + std::to_string(at) + ": " + std::to_string(a[at] & 0xff) + ", not " + std::to_string(b[at] & 0xff);
}
std::uint64_t number_of(const std::string& text) { return std::stoull(text, nullptr, 0); }

}  // namespace

TEST_CASE("mem read prints bytes, numbers and text, physical and virtual", "[integration]") {
  CtlScene scene;
  const std::uint64_t value = 0x1122334455667788;
  scene.guest.memory().write(Gpa{0x600000}, &value, sizeof value);
  scene.guest.memory().write(Gpa{0x600008}, "hello\0", 6);

  CHECK(scene.ctl({"mem", "read", "web1", "0x600000", "--int", "u64"}).text() ==
        "0x600000  0x1122334455667788  1234605616436508552\n");
  CHECK(scene.ctl({"mem", "read", "web1", "0x600000", "4", "--int", "u16"}).text() ==
        "0x600000  0x7788  30600\n0x600002  0x5566  21862\n");
  CHECK(scene.ctl({"mem", "read", "web1", "0x600008", "--string"}).text() == "hello\n");
  CHECK(scene.ctl({"mem", "read", "web1", "0xf0000", "8", "--string"}).text() == "KVMIROM1\n");
  CHECK(has(errors_of(scene.ctl({"mem", "read", "web1", "0xf0000", "8", "--string"})), "no zero byte within 8 bytes"));
  // The guest maps the first GiB to itself, and its window elsewhere.
  CHECK(scene.ctl({"mem", "read", "web1", "0x600008", "--string", "--virtual"}).text() == "hello\n");
  const Json window = scene.ctl_json({"mem", "translate", "web1", "0x1ff123", "--vcpu", "1"});
  CHECK(window.at("page_bytes") == 4096);
  const std::uint64_t gpa = number_of(window.at("gpa"));
  CHECK((gpa == 0x22123 || gpa == 0x23123));
  CHECK(window.at("rights") == "rwx");
  CHECK(window.at("user") == false);
  CHECK(window.at("translated_by") == "TRANSLATE_GVA");
  CHECK(scene.ctl_json({"mem", "translate", "web1", "0x20000"}).at("rights") == "rw-");
  CHECK(scene.ctl_json({"mem", "translate", "web1", "0x600008"}).at("page_bytes") == 2U << 20U);
  CHECK(has(scene.ctl({"mem", "translate", "web1", "0x600008"}).text(), "2 MiB"));
  const Json json =
      scene.ctl_json({"mem", "read", "web1", "0x1ff000", "8", "--int", "u64", "--virtual", "--vcpu", "1"});
  std::uint64_t expected = 0;
  scene.guest.memory().read(Gpa{gpa - 0x123}, &expected, sizeof expected);
  CHECK(json.at("values").at(0) == expected);
  CHECK(json.at("gva") == "0x1ff000");
  CHECK(json.at("vcpu") == 1);
  CHECK(json.at("cookie") > 0);
  const Json text = scene.ctl_json({"mem", "read", "web1", "0x600008", "--string"});
  CHECK(text.at("text") == "hello");
  CHECK(text.at("terminated") == true);
}

TEST_CASE("mem read of what is not all memory prints nothing and says where memory is", "[integration]") {
  CtlScene scene;
  const auto refused = [&](std::vector<std::string> words, const std::string& why) {
    words.insert(words.begin(), {"mem", "read", "web1"});
    const Finished finished = scene.ctl(std::move(words));
    INFO(errors_of(finished));
    CHECK(finished.exit == Exit{1, 0});
    CHECK(finished.text().empty());
    CHECK(has(errors_of(finished), why));
  };
  refused({"0x1000000", "1"}, "there is no guest memory at GPA 0x1000000; the last ends at 0x1000000");
  refused({"0xffffff", "2", "--raw"}, "guest memory ends at GPA 0x1000000, within the range 0xffffff to 0x1000000");
  refused({"0x7fffffff0000", "8", "--int", "u64"}, "there is no guest memory at GPA 0x7fffffff0000");
  refused({"0x7fff00000000", "8", "--virtual"}, "GVA 0x7fff00000000 of vCPU 0 cannot be read");
  refused({"0x3ffff000", "4k", "--virtual"}, "READ_PHYSICAL failed");  // mapped, and no memory
  refused({"0x8000000000000000", "8", "--virtual"}, "not canonical");
  refused({"0x1000", "8", "--virtual", "--vcpu", "7"}, "vCPU 7");
  // From RAM through ROM into RAM: no hole.
  CHECK(scene.ctl({"mem", "read", "web1", "0xef000", "12k", "--raw"}).exit == Exit{0, 0});
  CHECK(scene.ctl({"mem", "read", "web1", "0xffffffffffffffff", "2"}).exit == Exit{2, 0});
  CHECK(scene.ctl({"mem", "read", "web1", "0", "0"}).exit == Exit{2, 0});
  CHECK(scene.ctl({"mem", "read", "nobody", "0", "1"}).exit == Exit{4, 0});
}

TEST_CASE("a hole in the memory map is one for kvmictl", "[integration]") {
  CtlScene scene;
  scene.guest.set_field(offsetof(Mailbox, arg_map_change), KVMI_MAP_REMOVED);
  scene.guest.do_times(GuestMode::Map, 1);
  to_idle(scene.guest);
  REQUIRE(wait_until([&] { return scene.ctl({"mem", "read", "web1", "0xf0000", "1"}).exit == Exit{1, 0}; }));
  const Finished read = scene.ctl({"mem", "read", "web1", "0xef000", "12k", "--raw"});
  CHECK(read.exit == Exit{1, 0});
  CHECK(read.text().empty());
  CHECK(has(errors_of(read), "guest memory ends at GPA 0xf0000"));
  CHECK(scene.ctl({"mem", "search", "web1", "--string", "KVMIROM1"}).exit == Exit{1, 0});
  const Json dump = scene.ctl_json({"mem", "dump", "web1", scene.folder.file("holed")});
  CHECK(dump.at("slots") == 2);
  CHECK(dump.at("bytes") == kMemory - 4096);
}

TEST_CASE("where the hypervisor tells no memory map, holes are found by reading", "[integration]") {
  CtlScene scene;
  Guest old(scene.folder, {.name = "old1", .uuid = uuid_of(7), .vcpus = 2, .arguments = {"--dialect", "v7"}});
  old.wait_online();
  const std::string untold = "does not tell the memory map of this guest: GPA 0 to 0x1000000 are read";
  const Finished rom = scene.ctl({"mem", "search", "old1", "--string", "KVMIROM1"});
  CHECK(rom.text() == "0xf0000\n");
  CHECK(has(errors_of(rom), untold));
  CHECK(rom.errors.size() == 1);

  old.set_field(offsetof(Mailbox, arg_map_change), KVMI_MAP_REMOVED);
  old.do_times(GuestMode::Map, 1);
  for (unsigned vcpu = 0; vcpu < 2; ++vcpu) to_idle(old, vcpu);
  REQUIRE(scene.ctl({"mem", "read", "old1", "0xf0000", "1"}).exit == Exit{1, 0});
  REQUIRE(scene.ctl({"mem", "read", "old1", "0xef000", "4k"}).exit == Exit{0, 0});
  REQUIRE(scene.ctl({"mem", "read", "old1", "0xf1000", "4k"}).exit == Exit{0, 0});

  const Finished gone = scene.ctl({"mem", "search", "old1", "--string", "KVMIROM1"});
  CHECK(gone.exit == Exit{1, 0});
  CHECK(has(errors_of(gone), "nowhere"));
  old.memory().write(Gpa{0xefffc}, "edgeX", 4);
  old.memory().write(Gpa{0xf1000}, "edge", 4);
  CHECK(scene.ctl({"mem", "search", "old1", "--string", "edge"}).text() == "0xefffc\n0xf1000\n");
  CHECK(scene.ctl({"mem", "search", "old1", "--string", "edgeedge"}).exit == Exit{1, 0});  // not across the hole
  old.memory().write(Gpa{0x6ffffc}, "\xde\xad\xbe\xef\xca\xfe\xba\xbe", 8);
  CHECK(scene.ctl({"mem", "search", "old1", "deadbeefcafebabe"}).text() == "0x6ffffc\n");

  const std::string raw = scene.folder.file("raw"), elf = scene.folder.file("elf");
  const Finished dump = scene.ctl({"mem", "dump", "old1", raw});
  INFO(errors_of(dump));
  REQUIRE(dump.exit == Exit{0, 0});
  CHECK(has(dump.text(), "4096 bytes of them are holes"));
  CHECK(has(errors_of(dump), untold));
  CHECK(dump.errors.size() == 1);
  const Json json = scene.ctl_json({"mem", "dump", "old1", elf, "--format", "elf"});
  CHECK(json.at("map_told") == false);
  CHECK(json.at("map_changed") == false);
  CHECK(json.at("bytes") == kMemory);
  CHECK(json.at("hole_bytes") == 4096);

  std::string memory = memory_of(old, 0, kMemory);
  memory.replace(0xf0000, 4096, 4096, '\0');
  std::string dumped = content(raw), core = content(elf);
  REQUIRE(dumped.size() == kMemory);
  REQUIRE(core.size() == kMemory + 4096);
  core.erase(0, 4096);
  for (const std::uint64_t page : {0x10000, 0x11000}) {  // idle vCPUs count their rounds
    for (std::string* image : {&memory, &dumped, &core}) image->replace(page, 4096, 4096, 'r');
  }
  CHECK(difference(dumped, memory) == "");
  CHECK(difference(core, memory) == "");

  // Interrupted in front of the hole, and taken up again.
  const std::string slow = scene.folder.file("slow");
  Process begun("kvmictl", scene.with_sockets({"mem", "dump", "old1", slow, "--rate", "64k"}));
  REQUIRE(wait_until([&] { return std::filesystem::exists(slow + ".resume"); }));
  begun.signal(SIGTERM);
  CHECK(begun.wait_exit() == Exit{1, 0});
  begun.wait_errors("--resume goes on");
  const Json resumed = scene.ctl_json({"mem", "dump", "old1", slow, "--resume"});
  CHECK(resumed.at("resumed_at") < 0xf0000);
  CHECK(resumed.at("hole_bytes") == 4096);
  dumped = content(slow);
  for (const std::uint64_t page : {0x10000, 0x11000}) dumped.replace(page, 4096, 4096, 'r');
  CHECK(difference(dumped, memory) == "");
}

TEST_CASE("where nobody says where memory ends, nothing is searched or dumped", "[integration]") {
  CtlScene scene(R"({"hypervisors":{"guests":[{"guests":["old1"],"dialect":"rfc2017"}]},
    "policy":[{"name":"all","match":"*","commands":["*"],"role":"decider"}]})");
  Guest old(scene.folder, {.name = "old1", .uuid = uuid_of(7), .vcpus = 1, .arguments = {"--dialect", "rfc2017"}});
  old.wait_online();
  const std::string file = scene.folder.file("dump");
  for (const auto& words : {std::vector<std::string>{"mem", "search", "old1", "90"}, {"mem", "dump", "old1", file}}) {
    const Finished refused = scene.ctl(words);
    CHECK(refused.exit == Exit{6, 0});
    CHECK(has(errors_of(refused), "nor where its memory ends"));
  }
  CHECK_FALSE(std::filesystem::exists(file));
}

TEST_CASE("mem search finds what the guest has, across slots", "[integration]") {
  const bool shared = GENERATE(true, false);
  RuntimeFolder folder;
  Daemon daemon(folder, {.config = config_text({}), .arguments = {}});
  Guest guest(folder, {.vcpus = 2,
                       .arguments = shared ? std::vector<std::string>{} : std::vector<std::string>{"--no-share-ram"}});
  guest.wait_online();
  const auto search = [&](std::vector<std::string> words) {
    words.insert(words.begin(), {"--agent-socket", folder.file("agent.sock"), "mem", "search", "web1"});
    return run("kvmictl", words);
  };
  CHECK(search({"--string", "KVMIROM1"}).text() == "0xf0000\n");
  // The first bytes of both mailboxes.
  CHECK(search({"--string", "KVMIGEST"}).text().find("0x10000\n0x11000\n") == 0);
  CHECK(search({"--string", "KVMIGEST", "--count", "1"}).text() == "0x10000\n");
  guest.memory().write(Gpa{0xeffff}, "Z", 1);  // in front of the ROM's "KVMIROM1"
  CHECK(search({"--string", "ZKVMIROM1"}).text() == "0xeffff\n");
  // Across two pieces of a MiB.
  guest.memory().write(Gpa{0x6ffffc}, "\xde\xad\xbe\xef\xca\xfe\xba\xbe", 8);
  CHECK(search({"deadbeefcafebabe"}).text() == "0x6ffffc\n");
  CHECK(Json::parse(search({"deadbeefcafebabe", "--json"}).text()) == Json{{"schema", 1}, {"gpa", "0x6ffffc"}});
  const Finished nowhere = search({"--string", "there is no such text in this guest"});
  CHECK(nowhere.exit == Exit{1, 0});
  CHECK(has(errors_of(nowhere), "nowhere"));
}

TEST_CASE("mem watch prints what changes, and who did it as far as cookies tell", "[integration]") {
  CtlScene scene;
  Process watch("kvmictl", scene.with_sockets({"mem", "watch", "web1", "0x600000", "16", "--interval", "0.01",
                                               "--count", "2", "--json"}));
  watch.wait_errors("not the guest's own stores");
  scene.guest.memory().write(Gpa{0x600004}, "\x01", 1);  // as a store of the guest: past kvmid
  REQUIRE(wait_until([&] { return watch.output().size() == 1; }));
  REQUIRE(scene.ctl({"mem", "write", "web1", "0x600008", "0203", "--yes"}).exit == Exit{0, 0});
  REQUIRE(watch.wait_exit() == Exit{0, 0});
  REQUIRE(watch.output().size() == 2);
  const Json own = Json::parse(watch.output()[0]), through = Json::parse(watch.output()[1]);
  CHECK(own.at("changes") == Json::array({{{"address", "0x600004"}, {"before", "00"}, {"after", "01"}}}));
  CHECK(own.at("cookie") == own.at("cookie_before"));
  CHECK(own.at("by") == "guest");
  CHECK(through.at("changes") == Json::array({{{"address", "0x600008"}, {"before", "0000"}, {"after", "0203"}}}));
  CHECK(through.at("cookie") > through.at("cookie_before"));
  CHECK(through.at("by") == "unknown");  // root is not granted RAM

  Process rounds("kvmictl", scene.with_sockets({"mem", "watch", "web1", "0x10018", "8", "--interval", "0.01"}));
  scene.guest.set_mode(GuestMode::Vmcall);
  REQUIRE(wait_until([&] { return rounds.output().size() >= 3; }));
  rounds.signal(SIGINT);
  CHECK(rounds.wait_exit() == Exit{0, 0});
  CHECK(has(rounds.output()[0], "0x10018  "));
  CHECK(scene.ctl({"mem", "watch", "web1", "0x1000000", "8"}).exit == Exit{1, 0});
}

TEST_CASE("a dump of a guest is its memory", "[integration]") {
  CtlScene scene;
  for (unsigned vcpu = 0; vcpu < 2; ++vcpu) to_idle(scene.guest, vcpu);
  const std::string raw = scene.folder.file("raw"), elf = scene.folder.file("elf");
  const Json json = scene.ctl_json({"mem", "dump", "web1", raw});
  CHECK(json.at("bytes") == kMemory);
  CHECK(json.at("map_changed") == false);
  CHECK(json.at("zero_bytes") > kMemory / 2);
  REQUIRE(scene.ctl({"mem", "dump", "web1", elf, "--format", "elf"}).exit == Exit{0, 0});

  std::string memory = memory_of(scene.guest, 0, kMemory);
  std::string dumped = content(raw);
  const std::string core = content(elf);
  REQUIRE(dumped.size() == memory.size());
  REQUIRE(core.size() == kMemory + 4096);
  // Idle vCPUs count their rounds.
  for (const std::uint64_t page : {0x10000, 0x11000}) {
    memory.replace(page, 4096, 4096, 'r');
    dumped.replace(page, 4096, 4096, 'r');
  }
  CHECK(difference(dumped, memory) == "");
  CHECK(core.compare(4096, 0x10000, memory, 0, 0x10000) == 0);
  CHECK(core.compare(4096 + 0x12000, std::string::npos, memory, 0x12000) == 0);
  CHECK_FALSE(std::filesystem::exists(raw + ".resume"));
  struct stat info {};
  REQUIRE(::stat(raw.c_str(), &info) == 0);
  CHECK(static_cast<std::uint64_t>(info.st_blocks) * 512 < kMemory / 2);

  const Finished again = scene.ctl({"mem", "dump", "web1", raw});
  CHECK(again.exit == Exit{1, 0});
  CHECK(has(errors_of(again), "is there already"));
  CHECK(content(raw).size() == kMemory);
}

TEST_CASE("readelf knows the segments of a dump", "[integration]") {
  if (!std::filesystem::exists("/usr/bin/readelf")) {
    WARN("readelf is not there: the headers of an ELF dump are not read by it");
    return;
  }
  CtlScene scene;
  const std::string elf = scene.folder.file("elf");
  REQUIRE(scene.ctl({"mem", "dump", "web1", elf, "--format", "elf"}).exit == Exit{0, 0});
  const Finished read = run("/usr/bin/readelf", {"-hlnW", elf});
  INFO(read.text() << errors_of(read));
  REQUIRE(read.exit == Exit{0, 0});
  CHECK(errors_of(read).empty());  // no warnings
  CHECK(has(read.text(), "CORE (Core file)"));
  CHECK(has(read.text(), "LOAD           0x001000 0x0000000000000000 0x0000000000000000 0x0f0000 0x0f0000 RWE 0x1000"));
  CHECK(has(read.text(), "0x00000000000f0000 0x00000000000f0000 0x001000 0x001000 R E 0x1000"));
  CHECK(has(read.text(), "0x00000000000f1000 0x00000000000f1000 0xf0f000 0xf0f000 RWE 0x1000"));
  CHECK(has(read.text(), "KVMID"));
}

TEST_CASE("gdb opens a dump as a core and reads memory in it", "[integration]") {
  if (!std::filesystem::exists("/usr/bin/gdb")) {
    WARN("gdb is not there: an ELF dump is not opened by it");
    return;
  }
  CtlScene scene;
  const std::uint64_t values[] = {0x1122334455667788, 0x99aabbccddeeff00};
  scene.guest.memory().write(Gpa{0x600ff8}, values, sizeof values);  // across pages
  const std::string elf = scene.folder.file("elf");
  REQUIRE(scene.ctl({"mem", "dump", "web1", elf, "--format", "elf"}).exit == Exit{0, 0});
  const Finished gdb = run("/usr/bin/gdb", {"-nx", "-batch", "-ex", "set debuginfod enabled off", "-ex", "info files",
                                            "-ex", "x/2xg 0x600ff8", "-ex", "x/s 0xf0000", "-ex", "x/1xb 0x1000000",
                                            "-c", elf});
  INFO(gdb.text() << errors_of(gdb));
  CHECK(has(gdb.text(), "file type elf64-x86-64"));
  CHECK(has(gdb.text(), "0x0000000000000000 - 0x00000000000f0000 is load1"));
  CHECK(has(gdb.text(), "0x00000000000f0000 - 0x00000000000f1000 is load2"));
  CHECK(has(gdb.text(), "0x00000000000f1000 - 0x0000000001000000 is load3"));
  CHECK(has(gdb.text(), "0x600ff8:\t0x1122334455667788\t0x99aabbccddeeff00"));
  CHECK(has(gdb.text(), "0xf0000:\t\"KVMIROM1"));
  CHECK(has(gdb.text() + errors_of(gdb), "Cannot access memory at address 0x1000000"));  // where memory ends
}

TEST_CASE("a dump that was killed goes on with --resume", "[integration]") {
  RuntimeFolder folder;
  Daemon daemon(folder, {.config = config_text({}), .arguments = {}});
  Guest guest(folder, {.vcpus = 1, .arguments = {"--memory", "64"}});
  guest.wait_online();
  const std::string pattern = [] {
    std::string out(1U << 20U, '\0');
    for (std::size_t i = 0; i < out.size(); ++i) out[i] = static_cast<char>(i * 31 + i / 4096);
    return out;
  }();
  for (std::uint64_t gpa = 2U << 20U; gpa < 64U << 20U; gpa += 3U << 20U)
    guest.memory().write(Gpa{gpa}, pattern.data(), pattern.size());
  const std::string file = folder.file("dump");
  const std::vector<std::string> base{"--agent-socket", folder.file("agent.sock"), "mem", "dump", "web1", file};
  const auto with = [&](std::vector<std::string> more) {
    more.insert(more.begin(), base.begin(), base.end());
    return more;
  };
  const auto saved = [&] {
    const Json json = Json::parse(content(file + ".resume"), nullptr, false);
    return json.is_object() ? json.at("done").get<std::uint64_t>() : 0;
  };
  Process slow("kvmictl", with({"--rate", "24M"}));
  REQUIRE(wait_until([&] { return saved() > 0; }));
  slow.kill();
  const std::uint64_t kept = saved();
  REQUIRE(kept < 64U << 20U);
  // What the guest clears meanwhile is not there any more.
  guest.memory().write(Gpa{kept + 4096}, std::string(4096, '\0').data(), 4096);
  const Finished fresh = run("kvmictl", base);
  CHECK(fresh.exit == Exit{1, 0});
  CHECK(has(errors_of(fresh), "--resume"));
  CHECK(run("kvmictl", with({"--resume", "--format", "elf"})).exit == Exit{1, 0});

  SECTION("to the end") {
    const Finished resumed = run("kvmictl", with({"--resume", "--json"}));
    INFO(errors_of(resumed));
    REQUIRE(resumed.exit == Exit{0, 0});
    CHECK(Json::parse(resumed.text()).at("resumed_at") == kept);
  }
  SECTION("after it was told to end, too") {
    const auto before = std::filesystem::last_write_time(file + ".resume");
    Process other("kvmictl", with({"--resume", "--rate", "1M"}));
    REQUIRE(wait_until([&] {  // it takes the signal by now
      std::error_code none;
      return std::filesystem::last_write_time(file + ".resume", none) != before && !none;
    }));
    other.signal(SIGTERM);
    CHECK(other.wait_exit() == Exit{1, 0});
    other.wait_errors("--resume goes on");
    REQUIRE(run("kvmictl", with({"--resume"})).exit == Exit{0, 0});
  }
  std::string memory = memory_of(guest, 0, 64U << 20U);
  std::string dumped = content(file);
  REQUIRE(dumped.size() == memory.size());
  memory.replace(0x10000, 4096, 4096, 'r');
  dumped.replace(0x10000, 4096, 4096, 'r');
  CHECK(difference(dumped, memory) == "");
  const Finished done = run("kvmictl", with({"--resume"}));
  CHECK(done.exit == Exit{1, 0});
  CHECK(has(errors_of(done), "the dump is done"));
}

TEST_CASE("a terminal sees how far a dump is", "[integration]") {
  if (!std::filesystem::exists("/usr/bin/script")) {
    WARN("script(1) is not there: the bar on a terminal is not tested");
    return;
  }
  CtlScene scene;
  const std::string command = program_path("kvmictl").string() + " --agent-socket " + scene.folder.file("agent.sock") +
                              " mem dump web1 " + scene.folder.file("dump");
  const Finished finished = run("/bin/sh", {"-c", "script -qec '" + command + "' /dev/null < /dev/null"});
  CHECK(finished.exit == Exit{0, 0});
  CHECK(has(finished.text(), "100%  16.0 of 16.0 MiB"));
  CHECK_FALSE(has(errors_of(scene.ctl({"mem", "dump", "web1", scene.folder.file("other")})), "100%"));
}

TEST_CASE("mem is refused by a policy that does not give it", "[integration]") {
  CtlScene scene(R"({"policy":[{"name":"few","match":"*","commands":["GET_VERSION","GET_MEMORY_MAP"]}]})");
  CHECK(scene.ctl({"mem", "read", "web1", "0", "8"}).exit == Exit{5, 0});
  CHECK(scene.ctl({"mem", "search", "web1", "90"}).exit == Exit{5, 0});
  CHECK(scene.ctl({"mem", "watch", "web1", "0", "8"}).exit == Exit{5, 0});
  CHECK(scene.ctl({"mem", "dump", "web1", scene.folder.file("dump")}).exit == Exit{5, 0});
  CHECK_FALSE(std::filesystem::exists(scene.folder.file("dump")));
  CHECK_FALSE(std::filesystem::exists(scene.folder.file("dump.resume")));
}

}  // namespace kvmid::test
