// SPDX-License-Identifier: GPL-2.0-or-later

#include "kvmictl/arguments.h"

#include <catch2/catch.hpp>
#include <cstdlib>

using namespace kvmid::ctl;

namespace {

Arguments good(const std::vector<std::string>& words) {
  auto parsed = parse(words);
  if (const auto* answer = std::get_if<Answer>(&parsed)) FAIL(answer->error);
  return std::get<Arguments>(parsed);
}

Answer answered(const std::vector<std::string>& words) {
  auto parsed = parse(words);
  REQUIRE(std::holds_alternative<Answer>(parsed));
  return std::get<Answer>(parsed);
}

}  // namespace

TEST_CASE("each subcommand is told apart", "[kvmictl]") {
  CHECK(good({"guests"}).subcommand == Subcommand::Guests);
  CHECK(good({"guest", "web1"}).subcommand == Subcommand::Guest);
  CHECK(good({"agents"}).subcommand == Subcommand::Agents);
  CHECK(good({"status"}).subcommand == Subcommand::Status);
  CHECK(good({"events", "web1"}).subcommand == Subcommand::Events);
  CHECK(good({"regs", "web1"}).subcommand == Subcommand::Regs);
  CHECK(good({"mem", "read", "web1", "0", "16"}).subcommand == Subcommand::MemRead);
  CHECK(good({"pause", "web1"}).subcommand == Subcommand::Pause);
  CHECK(good({"resume", "web1"}).subcommand == Subcommand::Resume);
  CHECK(good({"agent", "3"}).subcommand == Subcommand::Agent);
  CHECK(good({"top"}).subcommand == Subcommand::Top);
  CHECK(good({"mem", "write", "web1", "0", "90"}).subcommand == Subcommand::MemWrite);
  CHECK(good({"disas", "web1"}).subcommand == Subcommand::Disas);
  CHECK(good({"crash", "web1"}).subcommand == Subcommand::Crash);
  CHECK(good({"policy", "check", "--guest", "web1"}).subcommand == Subcommand::PolicyCheck);
  CHECK(good({"reload"}).subcommand == Subcommand::Reload);
  CHECK(good({"log-level", "debug"}).subcommand == Subcommand::LogLevel);
  CHECK(good({"doctor"}).subcommand == Subcommand::Doctor);
  CHECK(good({"filter", "check", "cr: cr == 3"}).subcommand == Subcommand::FilterCheck);
  CHECK(good({"filter", "check", "cr: cr == 3"}).filter == "cr: cr == 3");
}

TEST_CASE("options of all subcommands may stand before or behind", "[kvmictl]") {
  CHECK(good({"--json", "guests"}).json);
  CHECK(good({"guests", "--json"}).json);
  CHECK(good({"guests", "--admin-socket", "/tmp/a"}).admin_socket == "/tmp/a");
  CHECK(good({"--agent-socket", "2:5000", "regs", "web1"}).agent_socket == "2:5000");
}

TEST_CASE("the environment names the sockets, an option goes before it", "[kvmictl]") {
  ::setenv("KVMID_ADMIN_SOCKET", "/env/admin", 1);
  ::setenv("KVMID_AGENT_SOCKET", "/env/agent", 1);
  const auto from_environment = good({"guests"});
  const auto from_option = good({"guests", "--admin-socket", "/tmp/a"});
  ::unsetenv("KVMID_ADMIN_SOCKET");
  ::unsetenv("KVMID_AGENT_SOCKET");
  CHECK(from_environment.admin_socket == "/env/admin");
  CHECK(from_environment.agent_socket == "/env/agent");
  CHECK(from_option.admin_socket == "/tmp/a");
  CHECK(good({"guests"}).admin_socket == "/run/kvmid/admin.sock");
}

TEST_CASE("addresses and lengths of mem read", "[kvmictl]") {
  const auto a = good({"mem", "read", "web1", "0x100000", "4k", "--raw"});
  CHECK(a.address == 0x100000);
  CHECK(a.length == 4096);
  CHECK(a.raw);
  CHECK(good({"mem", "read", "web1", "4096", "0x10"}).length == 16);
  CHECK(good({"mem", "read", "web1", "0", "2M"}).length == 2U << 20U);
  using Words = std::vector<std::string>;
  for (const auto& [address, length] : std::vector<std::pair<std::string, std::string>>{{"1k", "1"},
                                                                                        {"zz", "1"},
                                                                                        {"", "1"},
                                                                                        {"0x", "1"},
                                                                                        {"0", "0"},
                                                                                        {"0", "-1"},
                                                                                        {"0", "4q"},
                                                                                        {"0", "99999999999999999999"},
                                                                                        {"0", "0xffffffffffffffffk"},
                                                                                        {"0xffffffffffffffff", "2"}}) {
    INFO(address << " " << length);
    CHECK(answered(Words{"mem", "read", "web1", address, length}).exit_code == kUsage);
  }
  CHECK(good({"mem", "read", "web1", "0xffffffffffffffff", "1"}).length == 1);
}

TEST_CASE("mem write takes bytes or a file, not both and not neither", "[kvmictl]") {
  CHECK(good({"mem", "write", "web1", "0x10", "90 cc"}).data.size() == 2);
  CHECK(good({"mem", "write", "web1", "0x10", "--file", "/tmp/x"}).file == "/tmp/x");
  CHECK(good({"mem", "write", "web1", "0x10", "90", "--yes", "--force"}).yes);
  CHECK(answered({"mem", "write", "web1", "0x10"}).exit_code == kUsage);
  CHECK(answered({"mem", "write", "web1", "0x10", "9"}).exit_code == kUsage);
  CHECK(answered({"mem", "write", "web1", "0x10", "0x90"}).exit_code == kUsage);
  CHECK(answered({"mem", "write", "web1", "here", "90"}).exit_code == kUsage);
  CHECK(answered({"mem", "write", "web1", "0x10", "90", "--file", "/tmp/x"}).exit_code == kUsage);
}

TEST_CASE("what a mem write is based on", "[kvmictl]") {
  const auto a = good({"mem", "write", "web1", "0x10", "90cc", "--expect", "00 ff", "--cookie", "18446744073709551615"});
  CHECK(a.expected == std::vector{std::byte{0}, std::byte{0xff}});
  CHECK(a.cookie == ~std::uint64_t{0});
  CHECK_FALSE(good({"mem", "write", "web1", "0x10", "90"}).cookie);
  CHECK(good({"mem", "write", "web1", "0x10", "90"}).expected.empty());
  CHECK(good({"mem", "write", "web1", "0x10", "--file", "/tmp/x", "--expect", "00"}).expected.size() == 1);
  CHECK(good({"mem", "write", "web1", "0x10", "90", "--cookie", "0", "--force"}).cookie == 0U);
  for (const char* expected : {"0", "0x00", "zz", "0000"}) {
    INFO(expected);
    CHECK(answered({"mem", "write", "web1", "0x10", "90", "--expect", expected}).exit_code == kUsage);
  }
  CHECK(answered({"mem", "write", "web1", "0x10", "90", "--expect", "00", "--force"}).exit_code == kUsage);
  for (const char* cookie : {"x", "-1", "1k", "18446744073709551616"}) {
    INFO(cookie);
    CHECK(answered({"mem", "write", "web1", "0x10", "90", "--cookie", cookie}).exit_code == kUsage);
  }
}

TEST_CASE("disas begins at RIP unless told, and counts instructions", "[kvmictl]") {
  CHECK_FALSE(good({"disas", "web1"}).address);
  CHECK(good({"disas", "web1"}).count == 16);
  CHECK(good({"disas", "web1", "0x1000", "--count", "3"}).count == 3);
  CHECK(*good({"disas", "web1", "0x1000"}).address == 0x1000);
  CHECK(good({"disas", "web1", "0x1000", "--physical"}).physical);
  CHECK(answered({"disas", "web1", "--physical"}).exit_code == kUsage);
  CHECK(answered({"disas", "web1", "--count", "0"}).exit_code == kUsage);
  CHECK(answered({"disas", "web1", "main"}).exit_code == kUsage);
}

TEST_CASE("what policy check, log-level, doctor and top are told", "[kvmictl]") {
  const auto check =
      good({"policy", "check", "--uid", "5", "--gid", "6", "--gid", "7", "--guest", "w", "--event", "cr"});
  CHECK(*check.policy.uid == 5);
  CHECK(check.policy.gids == std::vector<std::uint32_t>{6, 7});
  CHECK_FALSE(check.policy.cid);
  CHECK(check.policy.event == "cr");
  CHECK(answered({"policy", "check"}).exit_code == kUsage);
  CHECK(answered({"policy"}).exit_code == kUsage);
  CHECK(answered({"policy", "check", "--guest", "w", "--uid", "-1"}).exit_code == kUsage);
  CHECK(answered({"policy", "check", "--guest", "w", "--command", "NOPE"}).exit_code == kUsage);
  CHECK(answered({"policy", "check", "--guest", "w", "--command", "GET_VERSION", "--event", "cr"}).exit_code == kUsage);
  CHECK(answered({"log-level"}).exit_code == kUsage);
  CHECK(answered({"log-level", "loud"}).exit_code == kUsage);
  CHECK(good({"doctor", "--needs", "cr,READ_PHYSICAL"}).needs == std::vector<std::string>{"cr", "READ_PHYSICAL"});
  CHECK(good({"doctor", "web1"}).guest == "web1");
  CHECK(answered({"doctor", "--needs", "telepathy"}).exit_code == kUsage);
  CHECK(good({"top", "--once", "--interval", "0.5"}).interval_seconds == 0.5);
  CHECK(answered({"top", "--interval", "0"}).exit_code == kUsage);
  CHECK(answered({"agent", "three"}).exit_code == kUsage);
  CHECK(answered({"reload", "now"}).exit_code == kUsage);
}

TEST_CASE("completion prints a script and does nothing else", "[kvmictl]") {
  const auto answer = answered({"completion", "bash"});
  CHECK(answer.exit_code == kOk);
  for (const char* word : {"'mem write'", "'policy check'", "log-level", "--needs", "complete -F _kvmictl kvmictl"}) {
    INFO(word);
    CHECK(answer.out.find(word) != std::string::npos);
  }
  CHECK(answered({"completion", "tcsh"}).exit_code == kUsage);
  CHECK(answered({"completion"}).exit_code == kUsage);
}

TEST_CASE("a vCPU is optional and bounded", "[kvmictl]") {
  CHECK_FALSE(good({"pause", "web1"}).vcpu);
  CHECK(good({"pause", "web1", "--vcpu", "3"}).vcpu == 3);
  CHECK(good({"regs", "web1", "--vcpu", "0"}).vcpu == 0);
  CHECK(answered({"regs", "web1", "--vcpu", "70000"}).exit_code == kUsage);
  CHECK(answered({"regs", "web1", "--vcpu", "-1"}).exit_code == kUsage);
}

TEST_CASE("pause --for takes fractions of a second, and no nonsense", "[kvmictl]") {
  CHECK(*good({"pause", "web1", "--for", "0.5"}).hold_seconds == 0.5);
  CHECK_FALSE(good({"pause", "web1"}).hold_seconds);
  CHECK(answered({"pause", "web1", "--for", "-1"}).exit_code == kUsage);
  CHECK(answered({"pause", "web1", "--for", "1e9"}).exit_code == kUsage);
}

TEST_CASE("usage errors are exit code 2 and say what is missing", "[kvmictl]") {
  CHECK(answered({}).exit_code == kUsage);
  CHECK(answered({"frobnicate"}).exit_code == kUsage);
  const auto answer = answered({"guest"});
  CHECK(answer.exit_code == kUsage);
  CHECK(answer.error.find("GUEST") != std::string::npos);
  CHECK(answered({"mem"}).exit_code == kUsage);
  CHECK(answered({"mem", "read", "w", "0", "1", "--raw", "--json"}).exit_code == kUsage);
}

TEST_CASE("every help teaches by an example and lists the exit codes", "[kvmictl]") {
  for (const auto& words : std::vector<std::vector<std::string>>{{"--help"},
                                                                 {"guests", "--help"},
                                                                 {"guest", "--help"},
                                                                 {"agents", "--help"},
                                                                 {"status", "--help"},
                                                                 {"events", "--help"},
                                                                 {"regs", "--help"},
                                                                 {"mem", "--help"},
                                                                 {"mem", "read", "--help"},
                                                                 {"mem", "dump", "--help"},
                                                                 {"mem", "search", "--help"},
                                                                 {"mem", "watch", "--help"},
                                                                 {"mem", "translate", "--help"},
                                                                 {"pause", "--help"},
                                                                 {"resume", "--help"},
                                                                 {"agent", "--help"},
                                                                 {"top", "--help"},
                                                                 {"mem", "write", "--help"},
                                                                 {"disas", "--help"},
                                                                 {"crash", "--help"},
                                                                 {"policy", "--help"},
                                                                 {"policy", "check", "--help"},
                                                                 {"reload", "--help"},
                                                                 {"log-level", "--help"},
                                                                 {"doctor", "--help"},
                                                                 {"completion", "--help"}}) {
    const auto answer = answered(words);
    INFO(words.front());
    CHECK(answer.exit_code == kOk);
    CHECK(answer.out.find("Example: kvmictl") != std::string::npos);
    CHECK(answer.out.find("7 timeout") != std::string::npos);
  }
}
