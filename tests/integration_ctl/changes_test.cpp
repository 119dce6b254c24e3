// SPDX-License-Identifier: GPL-2.0-or-later
//
// What changes a guest: mem write and crash.

#include <array>
#include <cstring>

#include "tests/integration_ctl/ctl_scene.h"

namespace kvmid::test {
namespace {

/// Memory that the test guest never touches.
constexpr std::uint64_t kSpare = 0x21800;

std::array<std::uint8_t, 4> bytes_at(const Guest& guest, std::uint64_t gpa) {
  std::array<std::uint8_t, 4> out{};
  guest.memory().read(Gpa{gpa}, out.data(), out.size());
  return out;
}

}  // namespace

TEST_CASE("mem write shows what was there, and writes", "[integration]") {
  CtlScene scene;
  scene.guest.memory().write(Gpa{kSpare}, "abcd", 4);

  const Finished text = scene.ctl({"mem", "write", "web1", "0x21800", "9090cc", "--yes"});

  INFO(errors_of(text));
  REQUIRE(text.exit == Exit{0, 0});
  CHECK(has(text.text(), "before\n0000000000021800  61 62 63 "));
  CHECK(has(text.text(), "after\n0000000000021800  90 90 cc "));
  CHECK(bytes_at(scene.guest, kSpare) == std::array<std::uint8_t, 4>{0x90, 0x90, 0xcc, 'd'});
  const Json json = scene.ctl_json({"mem", "write", "web1", "0x21800", "01 02", "--yes"});
  CHECK(json.at("before") == "9090");
  CHECK(json.at("bytes") == 2);
  CHECK(bytes_at(scene.guest, kSpare) == std::array<std::uint8_t, 4>{1, 2, 0xcc, 'd'});
  REQUIRE(scene.ctl({"mem", "write", "web1", "0x21800", "ff", "--yes", "--force"}).exit == Exit{0, 0});
  CHECK(bytes_at(scene.guest, kSpare)[0] == 0xff);
}

TEST_CASE("mem write is based on what a script knows: bytes, or a cookie", "[integration]") {
  CtlScene scene;
  scene.guest.memory().write(Gpa{kSpare}, "abcd", 4);
  const auto write = [&](std::vector<std::string> options) {
    std::vector<std::string> words{"mem", "write", "web1", "0x21800", "0102", "--yes"};
    words.insert(words.end(), options.begin(), options.end());
    return scene.ctl(words);
  };
  const auto cookie_of = [](const Json& json) { return std::to_string(json.at("cookie").get<std::uint64_t>()); };

  const Finished other = write({"--expect", "6163"});
  CHECK(other.exit == Exit{1, 0});
  CHECK(has(errors_of(other), "the current cookie is "));
  CHECK(bytes_at(scene.guest, kSpare)[0] == 'a');
  const Finished done = write({"--expect", "61 62"});
  INFO(errors_of(done));
  CHECK(done.exit == Exit{0, 0});
  CHECK(has(done.text(), "wrote 2 bytes, cookie "));
  CHECK(bytes_at(scene.guest, kSpare)[0] == 1);

  const std::string read = cookie_of(scene.ctl_json({"mem", "read", "web1", "0x21800", "4"}));
  const std::string wrote =
      cookie_of(scene.ctl_json({"mem", "write", "web1", "0x21800", "0304", "--yes", "--cookie", read}));
  CHECK(wrote != read);
  const Finished stale = write({"--cookie", read});
  CHECK(stale.exit == Exit{1, 0});
  CHECK(has(errors_of(stale), "the current cookie is " + wrote + "\n"));
  CHECK(bytes_at(scene.guest, kSpare)[0] == 3);
  CHECK(write({"--cookie", wrote, "--force"}).exit == Exit{0, 0});
  CHECK(bytes_at(scene.guest, kSpare)[0] == 1);
  const std::string large = scene.folder.write("large", std::string(20'000, 'x'));
  CHECK(scene.ctl({"mem", "write", "web1", "0x600000", "--file", large, "--cookie", wrote, "--yes"}).exit == Exit{2, 0});
  CHECK(scene.ctl({"mem", "write", "web1", "0x600000", "--file", large, "--expect", "00", "--yes"}).exit == Exit{2, 0});
}

TEST_CASE("mem write takes a file that is larger than one message", "[integration]") {
  CtlScene scene;
  std::string content(40'000, '\0');
  for (std::size_t i = 0; i < content.size(); ++i) content[i] = static_cast<char>(i * 7 + i / 256);
  const std::string file = scene.folder.write("image", content);

  REQUIRE(scene.ctl({"mem", "write", "web1", "0x600000", "--file", file, "--yes"}).exit == Exit{0, 0});

  std::string there(content.size(), '\0');
  scene.guest.memory().read(Gpa{0x600000}, there.data(), there.size());
  CHECK(there == content);
}

TEST_CASE("without a terminal and without --yes nothing is written and nobody crashes", "[integration]") {
  CtlScene scene;
  const auto before = bytes_at(scene.guest, kSpare);
  const Finished write = scene.ctl({"mem", "write", "web1", "0x21800", "9090cc"});
  CHECK(write.exit == Exit{2, 0});
  CHECK(has(errors_of(write), "--yes"));
  CHECK(bytes_at(scene.guest, kSpare) == before);
  const Finished crash = scene.ctl({"crash", "web1"});
  CHECK(crash.exit == Exit{2, 0});
  CHECK(has(errors_of(crash), "--yes"));
  scene.guest.wait_rounds(5);
}

TEST_CASE("a terminal is asked, and only yes is a yes", "[integration]") {
  if (!std::filesystem::exists("/usr/bin/script")) {
    WARN("script(1) is not there: the question on a terminal is not tested");
    return;
  }
  CtlScene scene;
  const auto answer = [&](const std::string& said) {
    // script(1) gives kvmictl a terminal and passes its exit code on.
    const std::string command = program_path("kvmictl").string() + " --agent-socket " +
                                scene.folder.file("agent.sock") + " mem write web1 0x21800 77";
    return run("/bin/sh", {"-c", "echo " + said + " | script -qec '" + command + "' /dev/null"});
  };
  scene.guest.memory().write(Gpa{kSpare}, "abcd", 4);

  const Finished no = answer("n");
  CHECK(no.exit == Exit{1, 0});
  CHECK(has(no.text(), "Write 1 bytes at 0x21800 of web1?"));
  CHECK(bytes_at(scene.guest, kSpare)[0] == 'a');

  CHECK(answer("yes").exit == Exit{0, 0});
  CHECK(bytes_at(scene.guest, kSpare)[0] == 0x77);
}

TEST_CASE("mem write says what was wrong with what it was given", "[integration]") {
  CtlScene scene;
  CHECK(scene.ctl({"mem", "write", "nobody", "0x21800", "90", "--yes"}).exit == Exit{4, 0});
  CHECK(scene.ctl({"mem", "write", "web1", "0x21800", "9", "--yes"}).exit == Exit{2, 0});
  CHECK(scene.ctl({"mem", "write", "web1", "0x21800", "--yes"}).exit == Exit{2, 0});
  CHECK(scene.ctl({"mem", "write", "web1", "0xffffffffffffffff", "9090", "--yes"}).exit == Exit{2, 0});
  CHECK(scene.ctl({"mem", "write", "web1", "0x7fffffff0000", "90", "--yes"}).exit == Exit{1, 0});
  const Finished missing = scene.ctl({"mem", "write", "web1", "0", "--file", scene.folder.file("none"), "--yes"});
  CHECK(missing.exit == Exit{1, 0});
  CHECK(has(errors_of(missing), scene.folder.file("none")));
  const std::string empty = scene.folder.write("empty", "");
  CHECK(has(errors_of(scene.ctl({"mem", "write", "web1", "0", "--file", empty, "--yes"})), "is empty"));
}

TEST_CASE("mem write is refused by a policy that does not give it", "[integration]") {
  CtlScene scene(R"({"policy":[{"name":"readers","match":"*","commands":["GET_VERSION","READ_PHYSICAL"]}]})");
  const auto before = bytes_at(scene.guest, kSpare);
  CHECK(scene.ctl({"mem", "write", "web1", "0x21800", "77", "--yes"}).exit == Exit{5, 0});
  CHECK(bytes_at(scene.guest, kSpare) == before);
  CHECK(scene.ctl({"crash", "web1", "--yes"}).exit == Exit{5, 0});
  CHECK(scene.ctl({"disas", "web1"}).exit == Exit{5, 0});
}

TEST_CASE("crash ends the guest as its hypervisor ends one that crashed", "[integration]") {
  CtlScene scene;
  const Json json = scene.ctl_json({"crash", "web1", "--vcpu", "1", "--yes"});
  CHECK(json.at("state") == "crashed");
  CHECK(scene.guest.process().wait_exit() == Exit{3, 0});  // kvmi-emu: an agent answered CRASH
  CHECK(scene.ctl({"crash", "web1", "--yes"}).exit == Exit{4, 0});
}

}  // namespace kvmid::test
