// SPDX-License-Identifier: GPL-2.0-or-later
#include "daemon/app/audit_log.h"

#include <fcntl.h>
#include <spdlog/logger.h>
#include <spdlog/sinks/ringbuffer_sink.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "daemon/io/unique_fd.h"
#include "tests/support/process.h"

using namespace kvmid;
using namespace kvmid::app;
using test::wait_until;
using Json = nlohmann::json;

namespace {

struct Fixture {
  test::RuntimeFolder folder;
  std::shared_ptr<spdlog::sinks::ringbuffer_sink_mt> sink = std::make_shared<spdlog::sinks::ringbuffer_sink_mt>(100);
  io::Log log{"test", sink};

  [[nodiscard]] bool logged(std::string_view text) const {
    for (const auto& line : sink->last_formatted())
      if (line.find(text) != std::string::npos) return true;
    return false;
  }
  [[nodiscard]] std::string file() const { return folder.file("audit.log"); }
};

io::AuditRecord record_of(std::uint32_t number) {
  io::AuditRecord record;
  record.kind = io::AuditKind::AgentAttached;
  record.agent = AgentId{number};
  return record;
}
/// Whole lines of a file, each of which must be JSON.
std::vector<Json> lines_of(const std::string& file) {
  std::ifstream in(file);
  std::vector<Json> out;
  for (std::string line; std::getline(in, line);) out.push_back(Json::parse(line));
  return out;
}

}  // namespace

TEST_CASE("records are appended as lines, in order", "[audit]") {
  Fixture t;
  {
    std::ofstream(t.file()) << "{\"before\":1}\n";
    AuditLog audit(t.log);
    REQUIRE_FALSE(audit.wanted());
    REQUIRE(audit.open({t.file(), 1000}));
    REQUIRE(audit.wanted());
    for (std::uint32_t i = 1; i <= 600; ++i) audit.record(record_of(i));
  }  // writes what waits
  const auto lines = lines_of(t.file());
  REQUIRE(lines.size() == 601);
  REQUIRE(lines[0].contains("before"));
  for (std::uint32_t i = 1; i <= 600; ++i) REQUIRE(lines[i]["agent"] == i);
}

TEST_CASE("a file that cannot be opened is an error that names it, and the one before stays", "[audit]") {
  Fixture t;
  AuditLog audit(t.log);
  REQUIRE(audit.open({t.file(), 100}));
  const auto failed = audit.open({t.folder.file("no/such/folder"), 100});
  REQUIRE_FALSE(failed);
  REQUIRE(failed.error().find("cannot open " + t.folder.file("no/such/folder") + ": No such file") == 0);
  REQUIRE_FALSE(audit.open({t.folder.path().string(), 100}));  // a folder
  audit.record(record_of(1));
  REQUIRE(wait_until([&] { return audit.written() == 1; }));
  REQUIRE(lines_of(t.file()).size() == 1);
}

TEST_CASE("a file that was moved away is left alone once the log was opened again", "[audit]") {
  Fixture t;
  AuditLog audit(t.log);
  REQUIRE(audit.open({t.file(), 100}));
  audit.record(record_of(1));
  REQUIRE(wait_until([&] { return audit.written() == 1; }));
  std::filesystem::rename(t.file(), t.file() + ".1");
  REQUIRE(audit.open({t.file(), 100}));
  audit.record(record_of(2));
  REQUIRE(wait_until([&] { return audit.written() == 2; }));
  REQUIRE(lines_of(t.file() + ".1").size() == 1);
  REQUIRE(lines_of(t.file()).at(0)["agent"] == 2);
}

TEST_CASE("a full disk costs lines and never the caller", "[audit]") {
  Fixture t;
  {
    AuditLog audit(t.log);
    REQUIRE(audit.open({"/dev/full", 16}));
    for (std::uint32_t i = 1; i <= 116; ++i) audit.record(record_of(i));
    REQUIRE(audit.dropped() == 100);
    REQUIRE(audit.written() == 0);
    REQUIRE(wait_until([&] {
      return t.logged("audit log cannot be written file=/dev/full reason=\"No space left on device\"");
    }));
    // With another file the lines that wait are written, and behind them how many are missing.
    REQUIRE(audit.open({t.file(), 16}));
    REQUIRE(wait_until([&] { return audit.written() >= 17; }));
    audit.record(record_of(1000));
  }
  // How many lines tell of the missing ones depends on when the writer looked; what they tell does not.
  std::vector<std::uint32_t> agents;
  unsigned missing = 0;
  for (const auto& line : lines_of(t.file())) {
    if (line["kind"] == "lines_dropped") {
      missing += line["count"].get<unsigned>();
    } else {
      agents.push_back(line["agent"].get<std::uint32_t>());
    }
  }
  REQUIRE(missing == 100);
  REQUIRE(agents.size() == 17);
  for (std::uint32_t i = 0; i < 16; ++i) REQUIRE(agents[i] == i + 1);
  REQUIRE(agents[16] == 1000);
  REQUIRE(t.logged("audit log is written again"));
}

TEST_CASE("a pipe that nobody reads fills, costs lines, and goes on when somebody does", "[audit]") {
  Fixture t;
  REQUIRE(::mkfifo(t.file().c_str(), 0600) == 0);
  std::string received;
  std::uint32_t sent = 0;
  {
    AuditLog audit(t.log);
    REQUIRE(audit.open({t.file(), 64}));
    REQUIRE(wait_until([&] {
      audit.record(record_of(++sent));
      return audit.dropped() >= 10;
    }));
    io::UniqueFd reader(::open(t.file().c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC));
    REQUIRE(reader.valid());
    REQUIRE(wait_until([&] {
      std::array<char, 65536> bytes{};
      const auto n = ::read(reader.get(), bytes.data(), bytes.size());
      if (n > 0) received.append(bytes.data(), static_cast<std::size_t>(n));
      return received.find("lines_dropped") != std::string::npos && received.back() == '\n';
    }));
    REQUIRE(audit.dropped() + audit.written() >= sent);
  }
  std::istringstream in(received);
  std::uint32_t last = 0;
  std::uint64_t counted = 0;
  for (std::string line; std::getline(in, line);) {
    const Json json = Json::parse(line);
    if (json["kind"] == "lines_dropped") {
      counted += json["count"].get<std::uint64_t>();
      continue;
    }
    REQUIRE(json["agent"].get<std::uint32_t>() == last + 1);
    last = json["agent"].get<std::uint32_t>();
  }
  REQUIRE(counted == sent - last);
}

TEST_CASE("an audit log that hangs does not hold up the end", "[audit]") {
  Fixture t;
  {
    AuditLog audit(t.log);
    REQUIRE(audit.open({"/dev/full", 16}));
    audit.record(record_of(1));
  }
  REQUIRE(t.logged("audit lines lost at the end lines=1"));
}

TEST_CASE("without a file nothing is kept", "[audit]") {
  Fixture t;
  AuditLog audit(t.log);
  REQUIRE(audit.open({std::nullopt, 16}));
  REQUIRE_FALSE(audit.wanted());
  REQUIRE(audit.open({t.file(), 16}));
  REQUIRE(audit.wanted());
  REQUIRE(audit.open({std::nullopt, 16}));
  REQUIRE_FALSE(audit.wanted());
}
