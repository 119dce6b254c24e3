// SPDX-License-Identifier: GPL-2.0-or-later
//
// kvmi-guard: an agent that decides. It keeps pages from being written, the system call entry (LSTAR) from being moved
// and bits of CR4 from being cleared. Also the example of a decider: attach, say what is wished, answer each event.

#include <CLI/CLI.hpp>

#include <cstdio>
#include <string>
#include <vector>

#include "client/agent_loop.h"
#include "client/event_text.h"

using namespace kvmid;
using namespace kvmid::client;

namespace {

constexpr std::uint32_t kLstar = 0xc0000082;
const std::vector<std::pair<std::string, std::uint64_t>> kCr4Bits{
    {"tsd", 1U << 2U},   {"pge", 1U << 7U},   {"umip", 1U << 11U}, {"fsgsbase", 1U << 16U},
    {"smep", 1U << 20U}, {"smap", 1U << 21U}, {"pke", 1U << 22U},  {"cet", 1U << 23U},
};

struct Options {
  ConnectOptions connect;
  std::string guest;
  std::vector<std::string> pages, audited;
  std::string rights = "r-x", on_write = "skip", cr4_action = "keep";
  std::string lstar_value;
  bool pin_lstar = false, json = false, quiet = false, summary = false, wait = false;
  std::vector<std::string> cr4_names;
  std::uint64_t stall_after = 0;
};

/// "4" or "0x4"; throws what CLI11 shows as a usage error.
std::uint64_t number(const std::string& text, const char* what) {
  std::size_t end = 0;
  std::uint64_t value = 0;
  try {
    value = std::stoull(text, &end, 0);
  } catch (const std::exception&) {
    end = 0;
  }
  if (text.empty() || end != text.size() || text.front() == '-')
    throw CLI::ValidationError(what, "\"" + text + "\" is no number");
  return value;
}

std::uint64_t cr4_bits(const std::vector<std::string>& names) {
  std::uint64_t bits = 0;
  for (const auto& name : names) {
    const auto known = std::find_if(kCr4Bits.begin(), kCr4Bits.end(), [&](const auto& b) { return b.first == name; });
    bits |= known != kCr4Bits.end() ? known->second : number(name, "--pin-cr4");
  }
  return bits;
}

struct Decision {
  Action action = Action::Allow;
  ReplacedValue value;
  std::string why;  ///< empty: nothing was wrong
  bool trap_access = false;
};

struct Counts {
  std::uint64_t events = 0, allowed = 0, denied = 0, changed = 0, stalled = 0, observed = 0, expired = 0, refused = 0,
                demoted = 0, reconnects = 0;
};

class Guard {
 public:
  explicit Guard(Options options) : options_(std::move(options)), cr4_bits_(cr4_bits(options_.cr4_names)) {
    for (const auto& page : options_.pages) pages_.push_back(number(page, "--protect") & ~(kPageSize - 1));
    for (const auto& page : options_.audited) audited_.push_back(number(page, "--audit") & ~(kPageSize - 1));
    if (!options_.lstar_value.empty()) lstar_ = number(options_.lstar_value, "--pin-lstar");
    write_action_ = options_.on_write == "crash"   ? Action::Crash
                    : options_.on_write == "retry" ? Action::Retry
                                                   : Action::Skip;
  }

  int run() {
    StopSignal stop;
    for (bool first = true;; first = false) {
      auto attached = attach_when_there(options_.connect, options_.guest, options_.wait, stop);
      if (!attached) return 0;
      if (!*attached) return failed(attached->error());
      if (!first) ++counts_.reconnects;
      AgentClient client = std::move(**attached);
      const auto error = watch(client, stop);
      if (!error) return 0;  // leaving this scope detaches, and kvmid withdraws all that was wished
      if (!options_.wait || !may_pass(*error)) return failed(*error);
      std::fprintf(stderr, "%s; connecting again\n", error->text.c_str());
      if (stop.wait(Millis{1000})) return 0;
    }
  }

  void print_summary() const {
    if (!options_.summary) return;
    const auto& c = counts_;
    std::printf(
        "{\"schema\":1,\"type\":\"summary\",\"events\":%llu,\"allowed\":%llu,\"denied\":%llu,\"changed\":%llu,"
        "\"stalled\":%llu,\"observed\":%llu,\"expired\":%llu,\"refused\":%llu,\"demoted\":%llu,"
        "\"reconnects\":%llu}\n",
        big(c.events), big(c.allowed), big(c.denied), big(c.changed), big(c.stalled), big(c.observed), big(c.expired),
        big(c.refused), big(c.demoted), big(c.reconnects));
  }

 private:
  static unsigned long long big(std::uint64_t value) { return value; }

  int failed(const ClientError& error) const {
    std::fprintf(stderr, "kvmi-guard: %s\n", error.text.c_str());
    return exit_code(error);
  }

  /// Tells kvmid what is watched. Pages first: from the moment events are on, the first write can come.
  Result<void, ClientError> set_up(AgentClient& client) {
    EventSet wanted;
    if (!pages_.empty()) {
      const std::uint8_t rights =
          options_.rights == "r--" ? KVMI_PAGE_ACCESS_R : KVMI_PAGE_ACCESS_R | KVMI_PAGE_ACCESS_X;
      std::vector<kvmi_page_access_entry> entries;
      for (const auto page : pages_) entries.push_back({page, 1, rights, {}});
      wanted.add(EventKind::PageFault);
      if (auto done = client.set_page_access(entries); !done) return done;
    }
    for (const auto page : audited_) {
      wanted.add(EventKind::PageFault);
      wanted.add(EventKind::Access);
      if (auto done = client.set_page_access(Gpa{page}, 1, 0); !done) return done;
    }
    if (options_.pin_lstar) {
      wanted.add(EventKind::Msr);
      if (auto done = client.control_msr(kAllVcpus, kLstar, true); !done) return done;
    }
    if (cr4_bits_ != 0) {
      wanted.add(EventKind::Cr);
      if (auto done = client.control_cr(kAllVcpus, 4, true); !done) return done;
    }
    const auto enabled = client.subscribe(wanted, Role::Decider);
    if (!enabled) return enabled.error();
    std::fprintf(stderr, "guarding %s as agent %u\n", client.welcome().guest_name.c_str(),
                 client.welcome().agent.value);
    return {};
  }

  /// nullopt: asked to stop. Otherwise why the connection or the guest is no more.
  std::optional<ClientError> watch(AgentClient& client, StopSignal& stop) {
    if (auto done = set_up(client); !done) return done.error();
    for (;;) {
      auto turn = next_turn(client, stop);
      if (std::holds_alternative<Stopped>(turn)) return std::nullopt;
      if (auto* error = std::get_if<ClientError>(&turn)) return *error;
      auto& message = std::get<AgentMessage>(turn);
      if (const auto* event = std::get_if<ReceivedEvent>(&message)) {
        if (auto done = answer(client, *event); !done) return done.error();
      } else if (const auto* notice = std::get_if<ReceivedNotice>(&message)) {
        count(*notice);
        report(json_fields(*notice), words(*notice));
      } else if (const auto* gone = std::get_if<GuestGone>(&message)) {
        report(json_fields(*gone), words(*gone));
        if (!options_.wait) return ClientError{ClientErrc::Closed, ErrorCode::NoDevice, "the guest went away"};
        lstar_.reset();  // it may come back as another system
        if (!options_.lstar_value.empty()) lstar_ = number(options_.lstar_value, "--pin-lstar");
      } else if (const auto* back = std::get_if<GuestEntry>(&message)) {
        report(json_fields(*back), words(*back));
        if (auto done = set_up(client); !done) return done.error();  // harmless where kvmid had kept it
      }
    }
  }

  Result<void, ClientError> answer(AgentClient& client, const ReceivedEvent& received) {
    ++counts_.events;
    Decision decision = decide(received.event);
    if (!received.event.decide) {  // policy made this agent an observer, or kvmid demoted it
      ++counts_.observed;
      if (!decision.why.empty()) decision.why += " (only observed)";
    } else if (options_.stall_after != 0 && counts_.events > options_.stall_after) {
      ++counts_.stalled;
      decision.why = "stalled on purpose: no answer";
    } else {
      if (!received.event.actions.has(decision.action)) {
        decision.why += "; " + std::string(name_of(decision.action)) + " is not possible here";
        decision.action = received.event.actions.has(Action::Retry) ? Action::Retry : Action::Allow;
      }
      EventReply reply = client::make_reply(received.event, decision.action, decision.value);
      reply.trap_access = decision.trap_access;
      if (auto done = client.reply(received.seq, reply); !done) return done;
      const bool changed = !std::holds_alternative<std::monostate>(decision.value);
      ++(changed ? counts_.changed : decision.action == Action::Allow ? counts_.allowed : counts_.denied);
    }
    const std::string verdict =
        std::string(name_of(decision.action)) + (decision.why.empty() ? "" : ": " + decision.why);
    report(json_fields(received) + ",\"decision\":" + json_string(name_of(decision.action)) +
               ",\"why\":" + json_string(decision.why),
           "vcpu" + std::to_string(received.event.vcpu.value) + " " + words(received.event) + " -> " + verdict);
    return {};
  }

  Decision decide(const Event& event) {
    if (const auto* fault = std::get_if<PageFaultData>(&event.data)) {
      const std::uint64_t page = fault->gpa.value & ~(kPageSize - 1);
      const bool ours = std::find(pages_.begin(), pages_.end(), page) != pages_.end();
      if (ours && (fault->access & KVMI_PAGE_ACCESS_W) != 0) return {write_action_, {}, "the page is protected", false};
      if (ours && options_.rights == "r--") return {write_action_, {}, "the page may not be executed", false};
      // Let it happen, but one memory access at a time, each of them told.
      return {Action::Allow, {}, "", std::find(audited_.begin(), audited_.end(), page) != audited_.end()};
    } else if (const auto* msr = std::get_if<MsrData>(&event.data); msr != nullptr && msr->msr == kLstar) {
      // The value to keep is the one that was there; at the guest's start the first one that is written.
      if (!lstar_) lstar_ = msr->old_value != 0 ? msr->old_value : msr->new_value;
      if (msr->new_value != *lstar_) return {Action::Skip, {}, "LSTAR is pinned to " + hex(*lstar_), false};
    } else if (const auto* cr = std::get_if<CrData>(&event.data); cr != nullptr && cr->cr == 4) {
      const std::uint64_t cleared = cr->old_value & ~cr->new_value & cr4_bits_;
      if (cleared == 0) return {};
      if (options_.cr4_action == "skip") return {Action::Skip, {}, "clears pinned bits " + hex(cleared), false};
      return {Action::Allow, NewValue{cr->new_value | cleared}, "keeps pinned bits " + hex(cleared), false};
    }
    return {};
  }

  void count(const ReceivedNotice& notice) {
    if (notice.kind == NoticeKind::Expired) ++counts_.expired;
    if (notice.kind == NoticeKind::ReplyRefused) ++counts_.refused;
    if (notice.kind == NoticeKind::Demoted) ++counts_.demoted;
  }

  void report(const std::string& json, const std::string& line) const {
    if (options_.quiet) return;
    if (options_.json) {
      std::printf("{\"time\":\"%s\",%s}\n", timestamp().c_str(), json.c_str());
    } else {
      std::printf("%s %s\n", time_of_day().c_str(), line.c_str());
    }
  }

  Options options_;
  std::uint64_t cr4_bits_;
  std::vector<std::uint64_t> pages_, audited_;
  std::optional<std::uint64_t> lstar_;
  Action write_action_ = Action::Skip;
  Counts counts_;
};

}  // namespace

int main(int argc, char** argv) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);  // lines are whole also in a pipe
  Options options;
  options.connect.socket = default_socket();
  options.connect.name = "kvmi-guard";
  CLI::App app{
      "Denies writes to pages and changes of LSTAR and CR4 in a guest, through kvmid.\n\n"
      "Example: kvmi-guard --guest web1 --protect 0x1000,0x2000 --pin-lstar --pin-cr4 smep,smap\n\n"
      "Exit codes: 0 stopped, 1 failed, 2 usage, 3 kvmid not reachable, 4 no such guest, 5 refused by policy,\n"
      "6 not supported by this hypervisor, 7 timeout"};
  app.add_option("--socket", options.connect.socket, "kvmid's agent socket (KVMID_AGENT_SOCKET): path or cid:port")
      ->capture_default_str();
  app.add_option("--name", options.connect.name, "Name of this agent, for policy and logs")->capture_default_str();
  app.add_option("--guest", options.guest, "Guest: name, uuid, or a unique beginning of its uuid")->required();
  app.add_option("--protect", options.pages, "Guest physical addresses of pages that may not be written")
      ->delimiter(',');
  app.add_option("--audit", options.audited, "Pages that may be used, with each memory access told")->delimiter(',');
  app.add_option("--rights", options.rights, "Rights that protected pages keep")
      ->check(CLI::IsMember({"r-x", "r--"}))
      ->capture_default_str();
  app.add_option("--on-write", options.on_write, "Answer to a forbidden access")
      ->check(CLI::IsMember({"skip", "retry", "crash"}))
      ->capture_default_str();
  auto* lstar = app.add_option("--pin-lstar", options.lstar_value,
                               "Keep the system call entry: at VALUE, else at the first value seen")
                    ->expected(0, 1);
  app.add_option("--pin-cr4", options.cr4_names,
                 "CR4 bits that may not be cleared: tsd, pge, umip, fsgsbase, smep, smap, pke, cet, or hex")
      ->delimiter(',');
  app.add_option("--cr4-action", options.cr4_action, "keep: let the write happen with the bits set; skip: no write")
      ->check(CLI::IsMember({"keep", "skip"}))
      ->capture_default_str();
  app.add_option("--stall-after", options.stall_after,
                 "Stop answering after N events. It exists to show kvmid's deadlines; no guard wants it");
  app.add_flag("--wait", options.wait, "Wait for kvmid and the guest, and connect again when they go");
  app.add_flag("--json", options.json, "One JSON object a line");
  app.add_flag("--quiet", options.quiet, "Report nothing but errors");
  app.add_flag("--summary", options.summary, "One JSON object with counts at the end");
  try {
    app.parse(argc, argv);
    options.pin_lstar = lstar->count() > 0;
    if (options.pages.empty() && options.audited.empty() && !options.pin_lstar && options.cr4_names.empty()) {
      throw CLI::RequiredError("one of --protect, --audit, --pin-lstar and --pin-cr4");
    }
    Guard guard(options);
    const int code = guard.run();
    guard.print_summary();
    return code;
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
}
