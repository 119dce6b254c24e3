// SPDX-License-Identifier: GPL-2.0-or-later
#include "kvmictl/arguments.h"

#include <CLI/CLI.hpp>

#include <algorithm>
#include <array>
#include <charconv>
#include <limits>
#include <sstream>
#include <string_view>
#include <system_error>

namespace kvmid::ctl {
namespace {

constexpr double kHoldSecondsMax = 86'400;

constexpr const char* kFooter =
    "GUEST is a name, a uuid, or a beginning of a uuid that only one guest has.\n"
    "Exit codes: 0 ok, 1 failed, 2 usage, 3 kvmid not reachable, 4 no such guest, 5 refused by policy,\n"
    "6 not supported by this hypervisor, 7 timeout\n";

/// "4096", "0x1000", "4k", "2M".
bool parse_number(std::string_view text, bool suffixes, std::uint64_t& value) {
  unsigned shift = 0;
  if (suffixes && !text.empty()) {
    constexpr std::array<std::pair<char, unsigned>, 3> kSuffixes{{{'k', 10}, {'m', 20}, {'g', 30}}};
    for (const auto& [letter, bits] : kSuffixes) {
      if ((text.back() | 0x20) == letter) shift = bits;
    }
    if (shift != 0) text.remove_suffix(1);
  }
  int base = 10;
  if (text.starts_with("0x") || text.starts_with("0X")) {
    base = 16;
    text.remove_prefix(2);
  }
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  if (error != std::errc{} || end != text.data() + text.size()) return false;
  if (value > (std::numeric_limits<std::uint64_t>::max() >> shift)) return false;
  value <<= shift;
  return true;
}

}  // namespace

std::variant<Arguments, Answer> parse(const std::vector<std::string>& words) {
  Arguments out;
  out.admin_socket = "/run/kvmid/admin.sock";
  out.agent_socket = "/run/kvmid/agent.sock";
  std::string address, length;
  std::uint16_t vcpu = 0;
  double seconds = 0;

  CLI::App app{"Shows and steers what kvmid, the broker for KVM introspection, does.\n\nExample: kvmictl guests",
               "kvmictl"};
  app.footer(kFooter);
  app.require_subcommand(1);
  app.fallthrough();  // --json may stand before or behind the subcommand
  app.add_option("--admin-socket", out.admin_socket, "kvmid's admin socket")
      ->envname("KVMID_ADMIN_SOCKET")
      ->capture_default_str();
  app.add_option("--agent-socket", out.agent_socket, "kvmid's agent socket: path or vsock cid:port")
      ->envname("KVMID_AGENT_SOCKET")
      ->capture_default_str();
  app.add_flag("--json", out.json, "JSON for programs; every object has \"schema\": 1");

  const auto add = [&](const char* name, Subcommand id, const std::string& what, CLI::App& parent) {
    CLI::App* sub = parent.add_subcommand(name, what);
    sub->footer(kFooter);
    sub->callback([&out, id] { out.subcommand = id; });
    return sub;
  };
  const auto guest_of = [&](CLI::App* sub) { sub->add_option("GUEST", out.guest, "Guest")->required(); };

  add("guests", Subcommand::Guests, "List guests\n\nExample: kvmictl guests --json | jq '.guests[].name'", app);
  guest_of(
      add("guest", Subcommand::Guest, "Show one guest: vCPUs, agents, counters\n\nExample: kvmictl guest web1", app));
  add("agents", Subcommand::Agents, "List agents\n\nExample: kvmictl agents", app);
  add("status", Subcommand::Status, "Show the daemon: version, uptime, counters\n\nExample: kvmictl status", app);

  CLI::App* events = add("events", Subcommand::Events,
                         "Print a guest's events as they happen; the guest does not wait for it\n\n"
                         "Example: kvmictl events web1 --kinds cr,msr --count 10",
                         app);
  guest_of(events);
  events->add_option("--kinds", out.kinds, "all, or some of cr,msr,page_fault,...")->capture_default_str();
  events->add_option("--count", out.count, "Stop after N events");

  CLI::App* regs =
      add("regs", Subcommand::Regs, "Print a vCPU's registers\n\nExample: kvmictl regs web1 --vcpu 1", app);
  guest_of(regs);
  auto* regs_vcpu = regs->add_option("--vcpu", vcpu, "vCPU (0)");

  CLI::App* mem = app.add_subcommand("mem", "Read guest memory\n\nExample: kvmictl mem read web1 0x1000 256");
  mem->footer(kFooter);
  mem->require_subcommand(1);
  CLI::App* read = add("read", Subcommand::MemRead,
                       "Print guest physical memory as a hex dump\n\n"
                       "Example: kvmictl mem read web1 0x100000 4k --raw > page.bin",
                       *mem);
  guest_of(read);
  read->add_option("ADDR", address, "Guest physical address, 0x1000 or 4096")->required();
  read->add_option("LEN", length, "Bytes; 4k and 2M work too")->required();
  read->add_flag("--raw", out.raw, "The bytes as they are, not a dump");

  CLI::App* pause = add("pause", Subcommand::Pause,
                        "Stop a guest's vCPUs until `kvmictl resume`, or until kvmid's limit (policy pause_max_ms)\n\n"
                        "Example: kvmictl pause web1 --for 2",
                        app);
  guest_of(pause);
  auto* pause_vcpu = pause->add_option("--vcpu", vcpu, "Only this vCPU");
  auto* hold =
      pause->add_option("--for", seconds, "Hold so many seconds in the foreground, then let go; Ctrl-C lets go at once")
          ->check(CLI::Range(0.0, kHoldSecondsMax));
  guest_of(
      add("resume", Subcommand::Resume, "Let go what `kvmictl pause` stopped\n\nExample: kvmictl resume web1", app));

  try {
    std::vector<std::string> reversed(words.rbegin(), words.rend());  // CLI11 takes them from the back
    app.parse(reversed);
    if (regs_vcpu->count() + pause_vcpu->count() > 0) out.vcpu = vcpu;
    if (hold->count() > 0) out.hold_seconds = seconds;
    if (out.subcommand == Subcommand::MemRead) {
      if (!parse_number(address, false, out.address))
        throw CLI::ValidationError("ADDR", "\"" + address + "\" is no address");
      if (!parse_number(length, true, out.length) || out.length == 0) {
        throw CLI::ValidationError("LEN", "\"" + length + "\" is no length");
      }
      if (out.address + (out.length - 1) < out.address) {
        throw CLI::ValidationError("LEN", "the range goes past the end of the address space");
      }
      if (out.raw && out.json) throw CLI::ValidationError("--raw", "goes not together with --json");
    }
  } catch (const CLI::ParseError& error) {
    std::ostringstream text, problem;
    const int code = app.exit(error, text, problem);
    return Answer{code == 0 ? kOk : kUsage, text.str(), problem.str()};
  }
  return out;
}

}  // namespace kvmid::ctl
