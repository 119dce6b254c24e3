// SPDX-License-Identifier: GPL-2.0-or-later
#include "kvmictl/arguments.h"

#include <CLI/CLI.hpp>

#include <sstream>
#include <string_view>

#include "client/filter.h"
#include "kvmictl/completion.h"
#include "kvmictl/memory_arguments.h"
#include "kvmictl/numbers.h"
#include "protocol/message.h"

namespace kvmid::ctl {
namespace {

constexpr double kHoldSecondsMax = 86'400;
constexpr std::uint64_t kInstructionsMax = 100'000;

constexpr const char* kFooter =
    "GUEST is a name, a uuid, or a beginning of a uuid that only one guest has.\n"
    "Exit codes: 0 ok, 1 failed, 2 usage, 3 kvmid not reachable, 4 no such guest, 5 refused by policy,\n"
    "6 not supported by this hypervisor, 7 timeout\n";

/// Numbers and bytes as typed, until the whole line is known to be well-formed.
struct Typed {
  std::string address, bytes, expected, cookie, shell;
  std::uint16_t vcpu = 0;
  double hold_seconds = 0;
  std::uint64_t instructions = 16;
};

bool is_command(const std::string& name) {
  for (unsigned i = 0; i < 64; ++i) {
    const auto known = name_of(static_cast<CommandId>(i));
    if (known == name && known != name_of(CommandId{})) return true;
  }
  return false;
}
bool is_event(const std::string& name) {
  for (unsigned i = 0; i < kEventCount; ++i) {
    if (name_of(static_cast<EventKind>(i)) == name) return true;
  }
  return false;
}
std::string check_command(const std::string& name) {
  return is_command(name) ? std::string() : "there is no command \"" + name + "\"";
}
std::string check_event(const std::string& name) {
  return is_event(name) ? std::string() : "there is no event \"" + name + "\"";
}
std::string check_either(const std::string& name) {
  return is_command(name) || is_event(name) ? std::string() : "there is no command or event \"" + name + "\"";
}

class Grammar {
 public:
  explicit Grammar(Arguments& out) : out_(out) {
    app_.footer(kFooter);
    app_.require_subcommand(1);
    app_.fallthrough();  // --json may stand before or behind the subcommand
    app_.add_option("--admin-socket", out_.admin_socket, "kvmid's admin socket")
        ->envname("KVMID_ADMIN_SOCKET")
        ->capture_default_str();
    app_.add_option("--agent-socket", out_.agent_socket, "kvmid's agent socket: path or vsock cid:port")
        ->envname("KVMID_AGENT_SOCKET")
        ->capture_default_str();
    app_.add_flag("--json", out_.json, "JSON for programs; every object has \"schema\": 1");
    add_shown();
    add_watched();
    add_memory();
    add_pauses();
    add_daemon();
    add_filters();
    completion_ = app_.add_subcommand("completion",
                                      "Print a completion script for a shell\n\n"
                                      "Example: kvmictl completion bash > /etc/bash_completion.d/kvmictl");
    completion_->footer(kFooter);
    completion_->add_option("SHELL", typed_.shell, "bash")->required()->check(CLI::IsMember({"bash"}));
  }

  std::variant<Arguments, Answer> parse(const std::vector<std::string>& words) {
    try {
      std::vector<std::string> reversed(words.rbegin(), words.rend());  // CLI11 takes them from the back
      app_.parse(reversed);
      if (completion_->parsed()) return Answer{kOk, bash_completion(words_of(app_, "")), {}};
      take_typed();
    } catch (const CLI::ParseError& error) {
      std::ostringstream text, problem;
      const int code = app_.exit(error, text, problem);
      return Answer{code == 0 ? kOk : kUsage, text.str(), problem.str()};
    }
    return out_;
  }

 private:
  CLI::App* add(const char* name, Subcommand id, const std::string& what, CLI::App* parent = nullptr) {
    CLI::App* sub = (parent != nullptr ? parent : &app_)->add_subcommand(name, what);
    sub->footer(kFooter);
    sub->callback([this, id] { out_.subcommand = id; });
    return sub;
  }
  CLI::App* group(const char* name, const std::string& what) {
    CLI::App* sub = app_.add_subcommand(name, what);
    sub->footer(kFooter);
    sub->require_subcommand(1);
    return sub;
  }
  CLI::App* guest_of(CLI::App* sub) {
    sub->add_option("GUEST", out_.guest, "Guest")->required();
    return sub;
  }
  void vcpu_of(CLI::App* sub, const char* what) { vcpus_.push_back(sub->add_option("--vcpu", typed_.vcpu, what)); }

  void add_shown() {
    add("guests", Subcommand::Guests, "List guests\n\nExample: kvmictl guests --json | jq '.guests[].name'");
    guest_of(add("guest", Subcommand::Guest,
                 "Show one guest: its dialect, what it serves and lacks, vCPUs, events under way and whom they wait "
                 "for, counters\n\n"
                 "Example: kvmictl guest web1"));
    add("agents", Subcommand::Agents, "List agents\n\nExample: kvmictl agents");
    add("agent", Subcommand::Agent, "Show one agent: rights, limits, queue, what it owes\n\nExample: kvmictl agent 3")
        ->add_option("ID", out_.agent, "Its number, as `kvmictl agents` lists it")
        ->required();
    add("status", Subcommand::Status, "Show the daemon: version, uptime, counters\n\nExample: kvmictl status");
    CLI::App* top = add("top", Subcommand::Top,
                        "Show what guests and agents do, again and again; q or Ctrl-C ends it\n\n"
                        "Example: kvmictl top --interval 2");
    top->add_flag("--once", out_.once, "One picture, then end");
    top->add_option("--interval", out_.interval_seconds, "Seconds between two pictures")
        ->check(CLI::Range(0.05, 3600.0))
        ->capture_default_str();
  }

  void add_watched() {
    CLI::App* events = guest_of(add("events", Subcommand::Events,
                                    "Print a guest's events as they happen; the guest does not wait for it\n\n"
                                    "Example: kvmictl events web1 --kinds cr,msr --count 10"));
    events->add_option("--kinds", out_.kinds, "all, or some of cr,msr,page_fault,...")->capture_default_str();
    events->add_option("--count", out_.count, "Stop after N events");

    CLI::App* regs =
        guest_of(add("regs", Subcommand::Regs, "Print a vCPU's registers\n\nExample: kvmictl regs web1 --vcpu 1"));
    vcpu_of(regs, "vCPU (0)");
  }

  void add_memory() {
    CLI::App* mem = group("mem",
                          "Guest memory: read, write, dump, search, watch, translate\n\n"
                          "Addresses are guest physical unless --virtual is given.\n\n"
                          "Example: kvmictl mem read web1 0x1000 256");
    memory_.add(
        [&](const char* name, Subcommand id, const std::string& what) { return guest_of(add(name, id, what, mem)); });

    CLI::App* write =
        guest_of(add("write", Subcommand::MemWrite,
                     "Write guest physical memory; shows what is there and asks before\n\n"
                     "The write is refused if the guest changed those bytes since they were shown.\n"
                     "A cookie is what `mem read --json` and `mem write` tell: the write is refused if\n"
                     "anybody wrote there through kvmid since. It does not see the guest's own stores.\n\n"
                     "Example: kvmictl mem write web1 0x21000 9090c3",
                     mem));
    write->add_option("ADDR", typed_.address, "Guest physical address, 0x1000 or 4096")->required();
    auto* bytes = write->add_option("HEX", typed_.bytes, "Bytes in the order of memory: 9090cc or \"90 90 cc\"");
    file_ = write->add_option("--file", out_.file, "The bytes of this file")->excludes(bytes);
    write->add_flag("--yes", out_.yes, "Do not ask");
    auto* force = write->add_flag("--force", out_.force, "Also where the bytes changed since they were shown");
    write->add_option("--expect", typed_.expected, "Only if these bytes are there, as many as are written")
        ->excludes(force);
    write->add_option("--cookie", typed_.cookie, "Only if nothing was written there since this cookie was told");

    CLI::App* disas = guest_of(add("disas", Subcommand::Disas,
                                   "Disassemble guest memory with the vCPU stopped for the moment\n\n"
                                   "Example: kvmictl disas web1 0xffffffff81000000 --count 32"));
    disas->add_option("ADDR", typed_.address, "Guest virtual address; RIP if not given");
    vcpu_of(disas, "vCPU whose registers and page tables count (0)");
    disas->add_option("--count", typed_.instructions, "Instructions")
        ->check(CLI::Range(std::uint64_t{1}, kInstructionsMax))
        ->capture_default_str();
    disas->add_flag("--physical", out_.physical, "ADDR is guest physical: do not translate it");
  }

  void add_pauses() {
    CLI::App* pause = guest_of(add("pause", Subcommand::Pause,
                                   "Stop a guest's vCPUs until `kvmictl resume`, or until kvmid's limit (policy "
                                   "pause_max_ms)\n\nExample: kvmictl pause web1 --for 2"));
    vcpu_of(pause, "Only this vCPU");
    hold_ = pause
                ->add_option("--for", typed_.hold_seconds,
                             "Hold so many seconds in the foreground, then let go; Ctrl-C lets go at once")
                ->check(CLI::Range(0.0, kHoldSecondsMax));
    guest_of(add("resume", Subcommand::Resume, "Let go what `kvmictl pause` stopped\n\nExample: kvmictl resume web1"));
    CLI::App* crash = guest_of(add("crash", Subcommand::Crash,
                                   "End a guest as if it had crashed: stops a vCPU and answers CRASH; asks before\n\n"
                                   "Example: kvmictl crash web1"));
    vcpu_of(crash, "The vCPU to stop (0)");
    crash->add_flag("--yes", out_.yes, "Do not ask");
  }

  void add_daemon() {
    CLI::App* policy = group("policy", "What policy gives to whom\n\nExample: kvmictl policy check --guest web1");
    CLI::App* check =
        add("check", Subcommand::PolicyCheck,
            "Explain which rule decides for a peer and a guest, and what it gives\n\n"
            "Without --uid, --gid and --cid it asks for the user who runs it. Exit code 5: not allowed.\n\n"
            "Example: kvmictl policy check --uid 1000 --guest web1 --command READ_PHYSICAL",
            policy);
    check->add_option("--uid", out_.policy.uid, "User id of the agent");
    check->add_option("--gid", out_.policy.gids, "Group id; may stand more than once")->take_all();
    check->add_option("--cid", out_.policy.cid, "vsock context id");
    check->add_option("--guest", out_.guest, "Name or uuid; the guest need not be there")->required();
    auto* command =
        check->add_option("--command", out_.policy.command, "May it send this command?")->check(check_command);
    check->add_option("--event", out_.policy.event, "May it watch this event?")->check(check_event)->excludes(command);
    check->add_option("--config", out_.file, "Ask this file, not the configuration in force");

    add("reload", Subcommand::Reload, "Have kvmid read its configuration again\n\nExample: kvmictl reload");
    add("log-level", Subcommand::LogLevel,
        "Change what kvmid logs, until it ends or reloads\n\n"
        "Example: kvmictl log-level debug")
        ->add_option("LEVEL", out_.level, "trace, debug, info, warn, error, critical or off")
        ->required()
        ->check(CLI::IsMember({"trace", "debug", "info", "warn", "error", "critical", "off"}));

    CLI::App* doctor = add("doctor", Subcommand::Doctor,
                           "Look for what is wrong, and say what to do next; exit code 1 when something is\n\n"
                           "Example: kvmictl doctor web1 --needs page_fault,WRITE_PHYSICAL");
    doctor->add_option("GUEST", out_.guest, "Look at this guest only");
    doctor->add_option("--needs", out_.needs, "Commands and events that each guest must have")
        ->delimiter(',')
        ->check(check_either);
    doctor->add_option("--config", out_.file, "Check this file; without it the one that kvmid runs with");
    doctor->add_option("--hypervisor-socket", out_.hypervisor_socket, "kvmid's hypervisor socket")
        ->envname("KVMID_HYPERVISOR_SOCKET");
  }

  void add_filters() {
    CLI::App* filter = group("filter",
                             "Filters, which keep events that an agent does not care for from it\n\n"
                             "Example: kvmictl filter check \"cr: new & 1 == 0\"");
    add("check", Subcommand::FilterCheck,
        "Show a filter as kvmid would understand it, or where its text is wrong; asks no daemon\n\n" +
            std::string(client::kFilterHelp) +
            "\n\nExample: kvmictl filter check \"page_fault: access & w == w and gpa in 0x1000..0x4fff\"",
        filter)
        ->add_option("FILTER", out_.filter, "EVENT: COMPARISONS, in quotes")
        ->required();
  }

  void take_typed() {
    for (const auto* option : vcpus_) {
      if (option->count() > 0) out_.vcpu = typed_.vcpu;
    }
    memory_.take();
    if (hold_->count() > 0) out_.hold_seconds = typed_.hold_seconds;
    const bool write = out_.subcommand == Subcommand::MemWrite;
    if (!typed_.address.empty() || write) {
      out_.address = parse_number(typed_.address, false);
      if (!out_.address) throw CLI::ValidationError("ADDR", "\"" + typed_.address + "\" is no address");
    }
    if (write) {
      if (typed_.bytes.empty() && file_->count() == 0) throw CLI::RequiredError("HEX or --file");
      if (!typed_.bytes.empty()) {
        auto bytes = parse_bytes(typed_.bytes);
        if (!bytes) {
          throw CLI::ValidationError("HEX", "\"" + typed_.bytes + "\" is no bytes: two hex digits each, without 0x");
        }
        out_.data = std::move(*bytes);
      }
      take_conditions();
    }
    if (out_.subcommand == Subcommand::Disas) {
      out_.count = typed_.instructions;
      if (out_.physical && !out_.address) throw CLI::RequiredError("--physical needs ADDR");
    }
  }

  /// Of mem write.
  void take_conditions() {
    if (!typed_.expected.empty()) {
      auto bytes = parse_bytes(typed_.expected);
      if (!bytes) {
        throw CLI::ValidationError("--expect",
                                   "\"" + typed_.expected + "\" is no bytes: two hex digits each, without 0x");
      }
      if (file_->count() == 0 && bytes->size() != out_.data.size()) {
        throw CLI::ValidationError("--expect", "has " + std::to_string(bytes->size()) + " bytes, and " +
                                                   std::to_string(out_.data.size()) + " are to be written");
      }
      out_.expected = std::move(*bytes);
    }
    if (!typed_.cookie.empty()) {
      out_.cookie = parse_number(typed_.cookie, false);
      if (!out_.cookie) throw CLI::ValidationError("--cookie", "\"" + typed_.cookie + "\" is no cookie");
    }
  }

  /// What can stand behind each subcommand, for the completion script.
  static std::vector<CommandWords> words_of(const CLI::App& app, const std::string& path) {
    CommandWords own{path, {}, false};
    for (const CLI::Option* option : app.get_options()) {
      for (const auto& name : option->get_lnames()) own.words.push_back("--" + name);
      if (option->get_name() == "GUEST" || (path == "policy check" && option->check_lname("guest"))) own.guest = true;
    }
    std::vector<CommandWords> out;
    for (const CLI::App* sub : app.get_subcommands({})) {
      own.words.push_back(sub->get_name());
      auto below = words_of(*sub, path.empty() ? sub->get_name() : path + " " + sub->get_name());
      out.insert(out.end(), below.begin(), below.end());
    }
    out.insert(out.begin(), std::move(own));
    return out;
  }

  Arguments& out_;
  MemoryGrammar memory_{out_};
  Typed typed_;
  CLI::App app_{"Shows and steers what kvmid, the broker for KVM introspection, does.\n\nExample: kvmictl guests",
                "kvmictl"};
  std::vector<CLI::Option*> vcpus_;
  CLI::Option* hold_ = nullptr;
  CLI::Option* file_ = nullptr;
  CLI::App* completion_ = nullptr;
};

}  // namespace

std::variant<Arguments, Answer> parse(const std::vector<std::string>& words) {
  Arguments out;
  out.admin_socket = "/run/kvmid/admin.sock";
  out.agent_socket = "/run/kvmid/agent.sock";
  return Grammar(out).parse(words);
}

}  // namespace kvmid::ctl
