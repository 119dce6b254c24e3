// SPDX-License-Identifier: GPL-2.0-or-later
//
// kvmictl where the hypervisor translates no addresses, or guest RAM is granted: it walks page tables itself, and looks
// in place.

#include <unistd.h>

#include <filesystem>

#include "tests/integration_ctl/ctl_scene.h"

namespace kvmid::test {
namespace {

constexpr const char* kSetpriv = "/usr/bin/setpriv";

/// Everybody may everything; nobody may have RAM, and what a walk in place needs besides, and read nothing by message.
constexpr const char* kInPlaceOnly = R"({"policy":[
  {"name":"in place","match":{"uid":[65534]},"role":"decider","deadline_ms":60000,
   "commands":["GET_VERSION","GET_GUEST_INFO","GET_REGISTERS","PAUSE_VCPU","GRANT_MEMORY","GET_MEMORY_MAP"]},
  {"name":"all","match":"*","commands":["*"],"events":["*"],"role":"decider","deadline_ms":60000}]})";

/// kvmi-emu's RAM is granted to no user who could open it, so not to root.
bool can_be_nobody() {
  if (::geteuid() == 0 && std::filesystem::exists(kSetpriv)) return true;
  WARN("skipped: only root, with setpriv(1), can run kvmictl as a user who is granted guest RAM");
  return false;
}

struct WalkScene : CtlScene {
  explicit WalkScene(std::string config) : CtlScene(std::move(config)) {
    std::filesystem::permissions(folder.path(), std::filesystem::perms{0755});
    std::filesystem::permissions(folder.file("agent.sock"), std::filesystem::perms{0666});
  }
  [[nodiscard]] std::vector<std::string> nobody_words(std::vector<std::string> words) const {
    words = with_sockets(std::move(words));
    words.insert(words.begin(), {"--reuid=65534", "--regid=65534", "--clear-groups", program_path("kvmictl").string()});
    return words;
  }
  [[nodiscard]] Finished nobody(std::vector<std::string> words) const { return run(kSetpriv, nobody_words(words)); }
};

void check_walks(const std::function<Finished(std::vector<std::string>)>& ctl, const CtlScene& scene) {
  const auto json = [&](std::vector<std::string> words) {
    words.emplace_back("--json");
    const Finished finished = ctl(words);
    INFO(errors_of(finished));
    REQUIRE(finished.exit == Exit{0, 0});
    return Json::parse(finished.text());
  };
  // As TRANSLATE_GVA says it (memory_test.cpp).
  const Json window = json({"mem", "translate", "web1", "0x1ff123", "--vcpu", "1"});
  CHECK(window.at("translated_by") == "page tables");
  CHECK(window.at("page_bytes") == 4096);
  CHECK((window.at("gpa") == "0x22123" || window.at("gpa") == "0x23123"));
  CHECK(window.at("rights") == "rwx");
  CHECK(window.at("user") == false);
  CHECK(json({"mem", "translate", "web1", "0x20000"}).at("rights") == "rw-");
  CHECK(json({"mem", "translate", "web1", "0x600008"}).at("page_bytes") == 2U << 20U);

  scene.guest.memory().write(Gpa{0x601ffc}, "across pages\0", 13);
  CHECK(ctl({"mem", "read", "web1", "0x601ffc", "--string", "--virtual"}).text() == "across pages\n");
  CHECK(ctl({"mem", "read", "web1", "0x601ffc", "4", "--int", "u32", "--virtual", "--vcpu", "1"}).text() ==
        "0x601ffc  0x6f726361  1869767521\n");
  const auto refused = [&](std::vector<std::string> words, const std::string& why) {
    const Finished finished = ctl(std::move(words));
    INFO(errors_of(finished));
    CHECK(finished.exit == Exit{1, 0});
    CHECK(finished.text().empty());
    CHECK(has(errors_of(finished), why));
  };
  refused({"mem", "translate", "web1", "0x7fff00000000"}, "GVA 0x7fff00000000 is not mapped");
  refused({"mem", "read", "web1", "0x7fff00000000", "8", "--virtual"}, "GVA 0x7fff00000000 is not mapped");
  refused({"mem", "read", "web1", "0x8000000000000000", "8", "--virtual"}, "not canonical");

  const Json code = json({"disas", "web1", "0x100000", "--count", "4"});
  CHECK(code.at("translated_by") == "page tables");
  CHECK(code.at("instructions").size() == 4);
  CHECK(code.at("instructions").at(0).at("address") == "0x100000");
  refused({"disas", "web1", "0x7fff00000000"}, "--physical takes the address as guest physical");
}

}  // namespace

TEST_CASE("without TRANSLATE_GVA page tables are walked by READ_PHYSICAL", "[integration]") {
  const CtlScene scene(R"({"policy":[{"name":"no translation","match":"*","role":"decider","deadline_ms":60000,
    "commands":["GET_VERSION","GET_GUEST_INFO","GET_REGISTERS","PAUSE_VCPU","READ_PHYSICAL","GET_MEMORY_MAP"]}]})");
  check_walks([&](std::vector<std::string> words) { return scene.ctl(std::move(words)); }, scene);
  const Finished beyond = scene.ctl({"mem", "read", "web1", "0x3ffff000", "4k", "--virtual"});  // mapped, and no memory
  CHECK(beyond.exit == Exit{1, 0});
  CHECK(has(errors_of(beyond), "READ_PHYSICAL failed"));
}

TEST_CASE("where the hypervisor tells no page size, it is found in the page tables", "[integration]") {
  CtlScene scene;
  Guest old(scene.folder, {.name = "old1", .uuid = uuid_of(7), .vcpus = 2, .arguments = {"--dialect", "v7"}});
  old.wait_online();
  const Json found = scene.ctl_json({"mem", "translate", "old1", "0x600008", "--vcpu", "1"});
  CHECK(found.at("translated_by") == "page tables");
  CHECK(found.at("gpa") == "0x600008");
  CHECK(found.at("page_bytes") == 2U << 20U);
  CHECK(found.at("rights") == "rwx");
}

TEST_CASE("where guest RAM is granted, page tables and bytes are read in place", "[integration]") {
  if (!can_be_nobody()) return;
  const WalkScene scene(kInPlaceOnly);
  check_walks([&](std::vector<std::string> words) { return scene.nobody(std::move(words)); }, scene);
  // A hole is no memory in place either: it would read as zeros.
  CHECK(scene.nobody({"mem", "read", "web1", "0x3ffff000", "4k", "--virtual"}).exit == Exit{5, 0});
  CHECK(scene.nobody({"mem", "read", "web1", "0x601ffc", "--string"}).text() == "across pages\n");
  // Root has the right to translate, and is granted no RAM.
  CHECK(scene.ctl_json({"mem", "translate", "web1", "0x20000"}).at("translated_by") == "TRANSLATE_GVA");
}

TEST_CASE("mem watch in place finds at once what is changed through kvmid", "[integration]") {
  if (!can_be_nobody()) return;
  const WalkScene scene(kInPlaceOnly);
  SECTION("whatever the interval") {
    Process watch(kSetpriv, scene.nobody_words({"mem", "watch", "web1", "0x600000", "16", "--interval", "3600",
                                                "--count", "2", "--json"}));
    watch.wait_errors("watching 0x600000 in place");
    REQUIRE(scene.ctl({"mem", "write", "web1", "0x600800", "ff", "--yes"}).exit == Exit{0, 0});  // beside it
    REQUIRE(scene.ctl({"mem", "write", "web1", "0x600008", "0203", "--yes"}).exit == Exit{0, 0});
    REQUIRE(wait_until([&] { return watch.output().size() == 1; }));
    REQUIRE(scene.ctl({"mem", "write", "web1", "0x600000", "07", "--yes"}).exit == Exit{0, 0});
    REQUIRE(watch.wait_exit() == Exit{0, 0});
    REQUIRE(watch.output().size() == 2);
    const Json first = Json::parse(watch.output()[0]), second = Json::parse(watch.output()[1]);
    CHECK(first.at("changes") == Json::array({{{"address", "0x600008"}, {"before", "0000"}, {"after", "0203"}}}));
    CHECK(first.at("by") == "kvmid");
    CHECK(first.at("cookie") > first.at("cookie_before"));
    CHECK(second.at("changes") == Json::array({{{"address", "0x600000"}, {"before", "00"}, {"after", "07"}}}));
  }
  SECTION("and the guest's own stores by their bytes, whatever kvmid changes elsewhere") {
    Process watch(kSetpriv, scene.nobody_words({"mem", "watch", "web1", "0x600000", "16", "--interval", "0.01",
                                                "--count", "1", "--json"}));
    watch.wait_errors("in place");
    REQUIRE(scene.ctl({"mem", "write", "web1", "0x700000", "ff", "--yes"}).exit == Exit{0, 0});
    scene.guest.memory().write(Gpa{0x600004}, "\x01", 1);
    REQUIRE(watch.wait_exit() == Exit{0, 0});
    const Json own = Json::parse(watch.output().at(0));
    CHECK(own.at("changes") == Json::array({{{"address", "0x600004"}, {"before", "00"}, {"after", "01"}}}));
    CHECK(own.at("by") == "guest");
  }
}

}  // namespace kvmid::test
