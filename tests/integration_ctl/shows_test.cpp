// SPDX-License-Identifier: GPL-2.0-or-later
//
// What only looks: guest, agent, top, disas, completion.

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>

#include "tests/integration_ctl/ctl_scene.h"

namespace kvmid::test {

TEST_CASE("kvmictl shows an agent, and the events that wait for it", "[integration]") {
  CtlScene scene;
  TestAgent silent(scene.daemon, scene.guest, {"--name", "mute", "--events", "cr", "--cr", "4", "--silent-after", "0"});
  scene.guest.set_mode(GuestMode::Cr4, 1);
  const Json owed = silent.wait_owed();

  const Json json = scene.ctl_json({"agent", std::to_string(silent.id())});
  const Finished agent = scene.ctl({"agent", std::to_string(silent.id())});
  const Finished guest = scene.ctl({"guest", "web1"});

  CHECK(json.at("name") == "mute");
  CHECK(json.at("pid") == silent.process().pid());
  REQUIRE(agent.exit == Exit{0, 0});
  CHECK(has(agent.text(), "owes a reply to"));
  CHECK(has(agent.text(), "   1  cr"));
  CHECK(has(agent.text(), " " + std::to_string(owed.at("seq").get<unsigned>()) + " "));
  REQUIRE(guest.exit == Exit{0, 0});
  CHECK(has(guest.text(), "   1  waiting  cr"));
  CHECK(has(guest.text(), "   0  running  -"));
}

TEST_CASE("kvmictl says which agent it did not find", "[integration]") {
  CtlScene scene;
  const Finished finished = scene.ctl({"agent", "4000000"});
  CHECK(finished.exit == Exit{1, 0});
  CHECK(has(errors_of(finished), "4000000"));
  CHECK(scene.ctl({"agent", "x"}).exit == Exit{2, 0});
}

TEST_CASE("top shows the rates of the guests that do something", "[integration]") {
  CtlScene scene;
  TestAgent agent(scene.daemon, scene.guest, {"--name", "sentinel", "--events", "cr", "--cr", "4"});
  scene.guest.do_times(GuestMode::Cr4, 5);

  // A machine under load may let nothing happen for a moment: a later picture shows it.
  Process top("kvmictl", scene.with_sockets({"top", "--interval", "0.1", "--json"}));
  const auto busy = [&] {
    for (const auto& line : top.output()) {
      const Json guests = Json::parse(line).at("guests");
      if (guests.size() == 1 && guests.at(0).at("name") == "web1" && guests.at(0).at("events_per_s") > 0 &&
          guests.at(0).at("decided_per_s") > 0) {
        return true;
      }
    }
    return false;
  };
  REQUIRE(wait_until(busy));
  const Json json = scene.ctl_json({"top", "--once", "--interval", "0.1"});
  const Finished text = scene.ctl({"top", "--once", "--interval", "0.1"});

  CHECK(json.at("seconds") > 0.0);
  REQUIRE(text.exit == Exit{0, 0});
  CHECK(has(text.text(), "EVENTS/S"));
  CHECK(has(text.text(), "sentinel"));
  CHECK_FALSE(has(text.text(), "\x1b"));  // a pipe gets no control sequences
}

TEST_CASE("top goes on until it is told to end", "[integration]") {
  CtlScene scene;
  Process top("kvmictl", scene.with_sockets({"top", "--interval", "0.05", "--json"}));
  REQUIRE(wait_until([&] { return top.output().size() >= 3; }));
  top.signal(SIGINT);
  REQUIRE(top.wait_exit() == Exit{0, 0});
  for (const auto& line : top.output()) CHECK(Json::parse(line).at("schema") == 1);
}

TEST_CASE("on a terminal top takes the other screen, ends with q, and gives the screen back", "[integration]") {
  if (!std::filesystem::exists("/usr/bin/script")) {
    WARN("script(1) is not there: the picture on a terminal is not tested");
    return;
  }
  CtlScene scene;
  const std::string fifo = scene.folder.file("keys");
  REQUIRE(::mkfifo(fifo.c_str(), 0600) == 0);
  const std::string command =
      program_path("kvmictl").string() + " --admin-socket " + scene.folder.file("admin.sock") + " top --interval 0.05";
  // The shell's own end of the fifo stays open, so that script(1) sees no end of input before the key.
  Process top("/bin/sh", {"-c", "exec script -qec '" + command + "' /dev/null <> " + fifo});
  top.wait_output("EVENTS/S");
  client::UniqueFd keys(::open(fifo.c_str(), O_WRONLY | O_CLOEXEC));
  REQUIRE(::write(keys.get(), "q", 1) == 1);

  REQUIRE(top.wait_exit() == Exit{0, 0});
  std::string text;
  for (const auto& line : top.output()) text += line + "\n";
  CHECK(has(text, "\x1b[?1049h"));
  CHECK(has(text.substr(text.rfind("\x1b[?1049")), "\x1b[?1049l"));
}

TEST_CASE("top ends with kvmid, and says so", "[integration]") {
  CtlScene scene;
  Process top("kvmictl", scene.with_sockets({"top", "--interval", "0.05"}));
  REQUIRE(wait_until([&] { return !top.output().empty(); }));
  scene.daemon.kill();
  CHECK(top.wait_exit() == Exit{3, 0});
  CHECK_FALSE(top.errors().empty());
}

TEST_CASE("disas shows the guest's own code and lets the guest go on", "[integration]") {
  CtlScene scene;
  const auto exec_page = std::to_string(KVMID_GUEST_EXEC_GPA);

  const Json json = scene.ctl_json({"disas", "web1", exec_page, "--count", "3"});
  const Json physical = scene.ctl_json({"disas", "web1", exec_page, "--count", "3", "--physical"});
  const Json at_rip = scene.ctl_json({"disas", "web1", "--vcpu", "1", "--count", "1"});
  const Finished text = scene.ctl({"disas", "web1"});

  // The exec page ends with a return of 0x5eed.
  const Json& list = json.at("instructions");
  REQUIRE(list.size() == 3);
  CHECK(list.at(0).at("address") == "0x21000");
  CHECK(list.at(1).at("text") == "mov eax, 0x5eed");
  CHECK(list.at(2).at("text") == "ret");
  CHECK(json.at("translated_by") != "none");
  CHECK(physical.at("translated_by") == "none");
  CHECK(physical.at("instructions") == list);  // the test guest maps addresses to themselves
  CHECK(at_rip.at("vcpu") == 1);
  CHECK(at_rip.at("instructions").at(0).at("address") == at_rip.at("rip"));
  REQUIRE(text.exit == Exit{0, 0});
  CHECK(has(text.output.at(0), "> "));
  CHECK(text.output.size() == 16);
  scene.guest.wait_rounds(5, 0);
  scene.guest.wait_rounds(5, 1);
}

TEST_CASE("disas says that nothing is mapped, and which vCPU there is not", "[integration]") {
  CtlScene scene;
  const Finished finished = scene.ctl({"disas", "web1", "0x7fff0000dead"});
  CHECK(finished.exit == Exit{1, 0});
  CHECK(has(errors_of(finished), "0x7fff0000dead"));
  CHECK(scene.ctl({"disas", "nobody"}).exit == Exit{4, 0});
  CHECK(scene.ctl({"disas", "web1", "--vcpu", "9"}).exit == Exit{1, 0});
  CHECK(scene.ctl({"disas", "web1", "start"}).exit == Exit{2, 0});
  scene.guest.wait_rounds(5, 0);  // what failed held nobody
}

TEST_CASE("bash completes subcommands, options, guests and values", "[integration]") {
  CtlScene scene;
  const Finished script = run("kvmictl", {"completion", "bash"});
  REQUIRE(script.exit == Exit{0, 0});
  const std::string file = scene.folder.write("completion", script.text() + "\n");
  const auto complete = [&](const std::vector<std::string>& words) {
    std::string line = "source '" + file + "'; COMP_WORDS=('" + program_path("kvmictl").string() + "'";
    for (const auto& word : words) line += " '" + word + "'";
    line += "); COMP_CWORD=" + std::to_string(words.size()) + "; _kvmictl; printf '%s\\n' \"${COMPREPLY[@]}\"";
    const Finished finished = run("/bin/bash", {"--norc", "-c", line});
    INFO(errors_of(finished));
    REQUIRE(finished.exit == Exit{0, 0});
    REQUIRE(finished.errors.empty());
    return finished.output;
  };
  const auto contains = [](const std::vector<std::string>& list, const std::string& word) {
    return std::find(list.begin(), list.end(), word) != list.end();
  };

  CHECK(complete({"gue"}) == std::vector<std::string>{"guests", "guest"});
  CHECK(complete({"mem", ""}).size() >= 2);
  CHECK(contains(complete({"mem", "w"}), "write"));
  CHECK(contains(complete({"pause", "--"}), "--for"));
  CHECK(contains(complete({"pause", "--"}), "--json"));
  CHECK(contains(complete({"log-level", "d"}), "debug"));
  CHECK(contains(complete({"policy", "check", "--command", "READ"}), "READ_PHYSICAL"));
  CHECK(contains(complete({"events", "web1", "--kinds", "page"}), "page_fault"));
  const auto socket = scene.folder.file("admin.sock");
  CHECK(complete({"--admin-socket", socket, "regs", "w"}) == std::vector<std::string>{"web1"});
  CHECK(complete({"--admin-socket", socket, "policy", "check", "--guest", "w"}) == std::vector<std::string>{"web1"});
  CHECK_FALSE(contains(complete({"--admin-socket", socket, "agents", ""}), "web1"));  // wants no guest
}

TEST_CASE("tables fit the width that the environment names", "[integration]") {
  CtlScene scene;
  TestAgent agent(scene.daemon, scene.guest, {"--name", "an-agent-with-a-name-of-some-length", "--events", "cr,msr"});
  ::setenv("COLUMNS", "60", 1);
  const Finished agents = scene.ctl({"agents"});
  const Finished guest = scene.ctl({"guest", "web1"});
  ::unsetenv("COLUMNS");
  for (const auto* finished : {&agents, &guest}) {
    REQUIRE(finished->exit == Exit{0, 0});
    for (const auto& line : finished->output) {
      INFO(line);
      CHECK(line.size() <= 60);
    }
  }
}

}  // namespace kvmid::test
