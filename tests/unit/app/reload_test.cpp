// SPDX-License-Identifier: GPL-2.0-or-later
// What a reload decides: which changes take effect, and which need a restart.
#include <catch2/catch.hpp>

#include "daemon/app/config.h"
#include "daemon/app/metrics.h"
#include "tests/support/process.h"

using namespace kvmid;
using namespace kvmid::app;

namespace {

const Config kDefaults = default_config(1000, 2);

Config config_of(std::string_view text) {
  auto config = parse_config(text, kDefaults);
  INFO((config ? "" : describe(config.error())));
  REQUIRE(config);
  return *config;
}
std::string restart_path(std::string_view before, std::string_view after) {
  const auto error = needs_restart(config_of(before), config_of(after));
  if (!error) return "";
  REQUIRE(error->text.find("needs a restart") != std::string::npos);
  return error->path;
}

}  // namespace

TEST_CASE("sockets, shards and the log's file need a restart, each with its path", "[reload]") {
  REQUIRE(restart_path("{}", R"({"listen":{"hypervisors":{"unix":"/x"}}})") == "/listen/hypervisors");
  REQUIRE(restart_path("{}", R"({"listen":{"agents":{"vsock_port":7}}})") == "/listen/agents");
  REQUIRE(restart_path("{}", R"({"listen":{"admin":{"mode":"0600"}}})") == "/listen/admin");
  REQUIRE(restart_path("{}", R"({"shards":7})") == "/shards");
  REQUIRE(restart_path(R"({"log":{"file":"/x"}})", "{}") == "/log/file");
}

TEST_CASE("everything else can change while kvmid runs", "[reload]") {
  REQUIRE(restart_path("{}", R"({"policy":[],"limits":{"guests_max":1,"command_timeout_ms":100},
      "hypervisors":{"uid":[5]},"log":{"level":"debug"},"audit":{"file":"/x","queue_max":16}})")
              .empty());
  // As many shards as before, said in another way.
  REQUIRE(restart_path("{}", R"({"shards":2})").empty());
}

TEST_CASE("a configuration is what its file says, and the command line on top of it", "[reload]") {
  const test::RuntimeFolder folder;
  ConfigSource source;
  source.defaults = kDefaults;
  source.file = folder.write("kvmid.json", R"({"log":{"level":"error"},"listen":{"agents":{"unix":"/y"}}})");
  auto config = source.load();
  REQUIRE(config);
  REQUIRE(config->log.level == "error");
  REQUIRE(config->settings.agents.unix_path == "/y");
  source.runtime_dir = "/z";
  source.log_level = "debug";
  config = source.load();
  REQUIRE(config->log.level == "debug");
  REQUIRE(config->settings.agents.unix_path == "/z/agent.sock");
  // So a reload with the same command line does not find another socket than the one that is open.
  REQUIRE_FALSE(needs_restart(*config, *source.load()));
  (void)folder.write("kvmid.json", "{");
  REQUIRE_FALSE(source.load());
  source.file = folder.file("none");
  REQUIRE(source.load().error().text.find("cannot open it") == 0);
}

TEST_CASE("mistakes in the audit section are named", "[config]") {
  const auto mistake = [](std::string_view text) { return describe(parse_config(text, kDefaults).error()); };
  REQUIRE(mistake(R"({"audit":{"file":7}})") == "/audit/file: must be a text, is 7");
  REQUIRE(mistake(R"({"audit":{"file":""}})") == "/audit/file: must be a path or null, is \"\"");
  REQUIRE(mistake(R"({"audit":{"queue_max":15}})") == "/audit/queue_max: must be between 16 and 1000000, is 15");
  REQUIRE(mistake(R"({"audit":{"path":"/x"}})") == "/audit/path: unknown key; there are: file, queue_max");
  REQUIRE_FALSE(config_of(R"({"audit":{"file":null}})").audit.file);
}

TEST_CASE("metrics have a type for each family, and names of guests cannot break them", "[metrics]") {
  io::GuestSnapshot guest;
  guest.name = "a\"b\\c\nd";
  guest.dialect = "v7";
  guest.info.online = true;
  guest.info.counters.events = 5;
  guest.info.counters.filtered = 6;
  guest.info.counters.stepped_over = 7;
  guest.info.vcpus.resize(2);
  guest.info.vcpus[0].held = true;
  guest.info.vcpus[1].waiting = true;
  guest.info.agents.resize(2);
  guest.info.agents[0].patches = 3;
  guest.info.agents[1].patches = 1;
  guest.info.agents[1].filters = 2;
  io::StatusSnapshot status;
  status.guests = 1;
  status.counters = {{"events", 9}};
  const std::string text = metrics_text({"0.1.0", "", 1, std::chrono::seconds(3)}, status, std::span(&guest, 1));
  const std::string labels = R"({guest="00000000-0000-0000-0000-000000000000",name="a\"b\\c\nd"})";
  for (const std::string& line :
       {std::string("# TYPE kvmid_events_total counter\nkvmid_events_total 9\n"), std::string("kvmid_uptime_seconds 3\n"),
        "kvmid_guest_events_total" + labels + " 5\n", "kvmid_guest_vcpus_waiting" + labels + " 1\n",
        "kvmid_guest_vcpus_held" + labels + " 1\n", "kvmid_guest_agent_patches" + labels + " 4\n",
        "kvmid_guest_agent_filters" + labels + " 2\n", "kvmid_guest_filtered_total" + labels + " 6\n",
        "kvmid_guest_stepped_over_total" + labels + " 7\n", "kvmid_guest_online" + labels + " 1\n",
        "kvmid_guest_dialect" + labels.substr(0, labels.size() - 1) + ",dialect=\"v7\"} 1\n"}) {
    INFO(line);
    REQUIRE(text.find(line) != std::string::npos);
  }
  REQUIRE(metrics_text({}, {}, {}).find("guest_online") == std::string::npos);
}

TEST_CASE("metrics tell when a connection last failed, by side and step", "[metrics]") {
  std::vector<io::ConnectionFailure> failures(3);
  for (std::size_t i = 0; i < failures.size(); ++i) {
    failures[i].time = std::chrono::system_clock::time_point{} + std::chrono::seconds(100 + i);
    failures[i].side = io::FailureSide::Dial;
    failures[i].step = io::step::kConnect;
  }
  failures[2].side = io::FailureSide::Hypervisor;
  failures[2].step = io::step::kPeer;
  const std::string text = metrics_text({}, {}, {}, failures);
  REQUIRE(text.find("# TYPE kvmid_last_failure_timestamp_seconds gauge\n"
                    "kvmid_last_failure_timestamp_seconds{side=\"dial\",step=\"connect\"} 101\n"
                    "kvmid_last_failure_timestamp_seconds{side=\"hypervisor\",step=\"peer not allowed\"} 102\n") !=
          std::string::npos);
  REQUIRE(metrics_text({}, {}, {}).find("failure") == std::string::npos);
}
