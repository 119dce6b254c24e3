// SPDX-License-Identifier: GPL-2.0-or-later
//
// kvmi-trace: an agent that only watches. It never delays the guest, but at the breakpoints that it was asked to lay.
// Also the example of an observer, and of a patch.

#include <CLI/CLI.hpp>

#include <algorithm>
#include <cstdio>
#include <map>
#include <string>

#include "client/agent_loop.h"
#include "client/event_text.h"
#include "client/filter.h"

using namespace kvmid;
using namespace kvmid::client;

namespace {

constexpr std::byte kInt3{0xcc};

struct Options {
  ConnectOptions connect;
  std::string guest, kinds = "all";
  std::vector<std::uint32_t> msrs{0xc0000082};
  std::vector<unsigned> crs{0, 3, 4};
  std::vector<std::uint64_t> pages, breaks;
  std::vector<std::uint16_t> stepped;
  std::vector<EventFilter> filters;  ///< at most one of each kind
  std::uint64_t count = 0;
  bool json = false, wait = false;
};

class Trace {
 public:
  Trace(Options options, EventSet kinds) : options_(std::move(options)), kinds_(kinds) {}

  int run() {
    StopSignal stop;
    for (;;) {
      auto attached = attach_when_there(options_.connect, options_.guest, options_.wait, stop);
      if (!attached) return 0;
      if (!*attached) return failed(attached->error());
      AgentClient client = std::move(**attached);
      const auto error = watch(client, stop);
      if (!error) return 0;
      if (!options_.wait || !may_pass(*error)) return failed(*error);
      std::fprintf(stderr, "%s; connecting again\n", error->text.c_str());
      if (stop.wait(Millis{1000})) return 0;
    }
  }

 private:
  static int failed(const ClientError& error) {
    std::fprintf(stderr, "kvmi-trace: %s\n", error.text.c_str());
    return exit_code(error);
  }

  Result<void, ClientError> set_up(AgentClient& client) {
    // Only what this guest's hypervisor has and policy allows; asking for more would be refused as a whole.
    EventSet wanted{kinds_.bits & client.welcome().events.bits};
    if (options_.kinds != "all" && wanted.bits != kinds_.bits) {
      std::fprintf(stderr, "not all of these kinds can be watched here\n");
    }
    if (wanted.has(EventKind::Cr)) {
      for (const unsigned cr : options_.crs) {
        if (auto done = client.control_cr(kAllVcpus, cr, true); !done) return done;
      }
    }
    if (wanted.has(EventKind::Msr)) {
      for (const auto msr : options_.msrs) {
        if (auto done = client.control_msr(kAllVcpus, msr, true); !done) return done;
      }
    }
    // A right that is gone from this agent's own view is what makes it see the accesses; nobody decides them for it.
    for (const auto page : options_.pages) {
      if (auto done = client.set_page_access(Gpa{page & ~(kPageSize - 1)}, 1, 0); !done) return done;
    }
    for (const auto vcpu : options_.stepped) {
      if (auto done = client.control_singlestep(VcpuId{vcpu}, true); !done) return done;
    }
    // Before the events, so that none comes that the filter would have kept away.
    for (const auto& filter : options_.filters) {
      if (auto done = client.set_filter(kAllVcpus, filter.event, Action::Allow, filter.terms); !done) return done;
    }
    EventSet decided;
    if (!options_.breaks.empty()) decided.add(EventKind::Breakpoint);
    const EventSet observed{wanted.bits & ~decided.bits};
    if (observed != EventSet{} || decided == EventSet{}) {
      if (const auto enabled = client.subscribe(observed, Role::Observer); !enabled) return enabled.error();
    }
    if (auto done = lay_breakpoints(client, decided); !done) return done;
    std::fprintf(stderr, "watching %s as agent %u\n", client.welcome().guest_name.c_str(),
                 client.welcome().agent.value);
    return {};
  }

  /// As a decider: the guest waits for each answer, so that no hit is dropped however many there are. Events first: a
  /// hit that nobody listens for is stepped over and not told.
  Result<void, ClientError> lay_breakpoints(AgentClient& client, EventSet decided) const {
    if (options_.breaks.empty()) return {};
    if (const auto enabled = client.subscribe(decided, Role::Decider); !enabled) return enabled.error();
    WriteOptions patch;
    patch.flags = KVMI_WRITE_PATCH;
    for (const auto place : options_.breaks) {
      if (const auto laid = client.write_physical(Gpa{place}, Bytes(&kInt3, 1), patch); !laid) {
        ClientError error = laid.error();
        error.text = "no breakpoint at " + hex(place) + ": " + error.text;
        return error;
      }
    }
    return {};
  }

  /// ALLOW lets the guest do what it was about to do: at a breakpoint of ours kvmid steps it over the patch, and an
  /// INT3 of its own gets to it.
  static Result<void, ClientError> answer(AgentClient& client, const ReceivedEvent& received) {
    if (!received.event.decide) return {};
    return client.reply(received, Action::Allow);
  }

  /// Which hit of a breakpoint of ours this is; 0: none.
  std::uint64_t count_hit(const Event& event) {
    const auto* data = std::get_if<BreakpointData>(&event.data);
    if (data == nullptr || std::ranges::find(options_.breaks, data->gpa.value) == options_.breaks.end()) return 0;
    return ++hits_[data->gpa.value];
  }

  std::optional<ClientError> watch(AgentClient& client, StopSignal& stop) {
    if (auto done = set_up(client); !done) return done.error();
    for (;;) {
      auto turn = next_turn(client, stop);
      if (std::holds_alternative<Stopped>(turn)) return std::nullopt;
      if (auto* error = std::get_if<ClientError>(&turn)) return *error;
      auto& message = std::get<AgentMessage>(turn);
      if (const auto* event = std::get_if<ReceivedEvent>(&message)) {
        // First, so that the guest does not wait for a pager.
        if (auto done = answer(client, *event); !done) return done.error();
      }
      std::visit([this](const auto& m) { print(m); }, message);
      if (std::holds_alternative<ReceivedEvent>(message) && ++seen_ == options_.count) {
        if (!options_.connect.outcomes) return std::nullopt;
        last_ = std::get<ReceivedEvent>(message).seq;  // its outcome is still to come
      }
      if (const auto* notice = std::get_if<ReceivedNotice>(&message); notice != nullptr && last_) {
        if (notice->kind == NoticeKind::Outcome && notice->event_seq == *last_) return std::nullopt;
      }
      if (std::holds_alternative<GuestGone>(message) && !options_.wait) {
        return ClientError{ClientErrc::Closed, ErrorCode::NoDevice, "the guest went away"};
      }
      if (std::holds_alternative<GuestEntry>(message)) {
        if (auto done = set_up(client); !done) return done.error();
      }
    }
  }

  void print(const ReceivedEvent& received) {
    if (options_.count != 0 && seen_ >= options_.count) return;
    const Event& event = received.event;
    char head[96];
    std::snprintf(head, sizeof head, "#%-6u vcpu%-2u %-11s ", received.seq.value, event.vcpu.value,
                  std::string(name_of(event.kind())).c_str());
    std::string json = json_fields(received);
    std::string text = head + words(event) + "  rip " + hex(event.regs.rip);
    if (const std::uint64_t hit = count_hit(event); hit != 0) {
      json += ",\"hit\":" + std::to_string(hit);
      text += "  hit " + std::to_string(hit);
    }
    line(json, text);
  }
  void print(const ReceivedNotice& notice) const { line(json_fields(notice), "        " + words(notice)); }
  void print(const GuestEntry& guest) const { line(json_fields(guest), words(guest)); }
  void print(const GuestGone& gone) const { line(json_fields(gone), words(gone)); }

  void line(const std::string& json, const std::string& text) const {
    if (options_.json) {
      std::printf("{\"time\":\"%s\",%s}\n", timestamp().c_str(), json.c_str());
    } else {
      std::printf("%s %s\n", time_of_day().c_str(), text.c_str());
    }
  }

  Options options_;
  EventSet kinds_;
  std::uint64_t seen_ = 0;
  std::optional<Seq> last_;
  std::map<std::uint64_t, std::uint64_t> hits_;  // of each breakpoint of ours
};

Result<std::vector<EventFilter>, ClientError> read_filters(const std::vector<std::string>& texts, EventSet kinds) {
  const auto bad = [](std::string text) { return ClientError{ClientErrc::BadArgument, {}, std::move(text)}; };
  std::vector<EventFilter> out;
  EventSet filtered;
  for (const auto& text : texts) {
    auto filter = parse_event_filter(text);
    if (!filter) return bad(describe(filter.error(), text));
    const std::string event(name_of(filter->event));
    if (!kinds.has(filter->event)) return bad("--kinds leaves " + event + " out");
    if (filtered.has(filter->event)) return bad("there are two filters for " + event + "; join them with or");
    filtered.add(filter->event);
    out.push_back(std::move(*filter));
  }
  return out;
}

}  // namespace

int main(int argc, char** argv) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);  // lines are whole also in a pipe
  Options options;
  options.connect.socket = default_socket();
  options.connect.name = "kvmi-trace";
  CLI::App app{
      "Prints the events of a guest, through kvmid. It observes: the guest never waits for it, but at a --break.\n\n"
      "Example: kvmi-trace --guest web1 --kinds cr,msr --outcomes --count 20\n"
      "         kvmi-trace --guest web1 --kinds cr --filter \"cr: cr == 4 and changed & 0x100000 != 0\"\n"
      "         kvmi-trace --guest web1 --kinds breakpoint --break 0x1a2b3c\n\n"
      "Exit codes: 0 stopped, 1 failed, 2 usage, 3 kvmid not reachable, 4 no such guest, 5 refused by policy,\n"
      "6 not supported by this hypervisor, 7 timeout"};
  app.add_option("--socket", options.connect.socket, "kvmid's agent socket (KVMID_AGENT_SOCKET): path or cid:port")
      ->capture_default_str();
  app.add_option("--name", options.connect.name, "Name of this agent, for policy and logs")->capture_default_str();
  app.add_option("--guest", options.guest, "Guest: name, uuid, or a unique beginning of its uuid")->required();
  app.add_option("--kinds", options.kinds, "Kinds of events: all, or some of cr,msr,page_fault,... ")
      ->capture_default_str();
  app.add_option("--crs", options.crs, "Control registers to watch")->delimiter(',')->capture_default_str();
  app.add_option("--msrs", options.msrs, "MSR numbers to watch (LSTAR)")->delimiter(',');
  app.add_option("--pages", options.pages, "Pages whose accesses are watched, by guest physical address")
      ->delimiter(',');
  app.add_option("--break", options.breaks,
                 "Lay a breakpoint (INT3) at these guest physical addresses, each the first byte of an\n"
                 "instruction, and count its hits. The guest waits while a hit is told, then executes what is\n"
                 "under the breakpoint; other agents see neither. It is gone when kvmi-trace ends, however\n"
                 "that happens")
      ->delimiter(',');
  app.add_option("--step", options.stepped, "vCPUs whose every instruction is told (kind singlestep)")->delimiter(',');
  std::vector<std::string> filters;
  app.add_option("--filter", filters,
                 "Of the events of one kind only those that match; kvmid allows the others without telling. May stand\n"
                 "once for each kind: " +
                     std::string(kFilterHelp) + "\n`kvmictl filter check` shows how one is understood")
      ->take_all();
  app.add_option("--count", options.count, "Stop after N events");
  app.add_flag("--outcomes", options.connect.outcomes, "Also print how each event was decided, and by whom");
  app.add_flag("--wait", options.wait, "Wait for kvmid and the guest, and connect again when they go");
  app.add_flag("--json", options.json, "One JSON object a line");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  const auto kinds = event_set_by_names(options.kinds);
  if (!kinds) {
    std::fprintf(stderr, "kvmi-trace: %s\n", kinds.error().text.c_str());
    return 2;
  }
  auto read = read_filters(filters, *kinds);
  if (!read) {
    std::fprintf(stderr, "kvmi-trace: --filter: %s\n", read.error().text.c_str());
    return 2;
  }
  options.filters = std::move(*read);
  if (!options.breaks.empty() && !kinds->has(EventKind::Breakpoint)) {
    std::fprintf(stderr, "kvmi-trace: --break: --kinds leaves breakpoint out\n");
    return 2;
  }
  return Trace(options, *kinds).run();
}
