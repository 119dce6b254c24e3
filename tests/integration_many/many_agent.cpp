// SPDX-License-Identifier: GPL-2.0-or-later
//
// many-agent: an agent in a process of its own that sets up everything an agent can hold in a guest, and then waits to
// be stopped or killed. What it gets it prints as one JSON object a line. SIGINT: it closes its connection and stays.

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <csignal>
#include <cstdio>
#include <map>
#include <string>
#include <variant>
#include <vector>

#include "client/agent_client.h"
#include "client/event_text.h"
#include "client/filter.h"

using namespace kvmid;
using namespace kvmid::client;

namespace {

enum class Answer { Allow, StepOver, None };

struct Options {
  ConnectOptions connect;
  std::string guest;
  std::vector<std::string> patches;
  std::vector<std::string> pages;
  std::string events;
  std::vector<unsigned> crs;
  std::vector<std::uint32_t> msrs;
  std::vector<std::string> filters;
  std::vector<unsigned> pauses;
  bool stage = false;
  Answer answer = Answer::Allow;
};

volatile std::sig_atomic_t g_close = 0;

void on_interrupt(int) { g_close = 1; }

void print(const std::string& fields) {
  std::printf("{%s}\n", fields.c_str());
  std::fflush(stdout);
}

struct Failed {
  std::string what;
};

template <class R>
void must(const char* what, const R& result) {
  if (!result) throw Failed{std::string(what) + ": " + result.error().text};
}

std::vector<std::string> split(const std::string& text, char at) {
  std::vector<std::string> parts{""};
  for (const char c : text) {
    if (c == at && parts.size() < 3) {
      parts.emplace_back();
    } else {
      parts.back() += c;
    }
  }
  return parts;
}

/// "0x100123:cc90"
void lay_patch(AgentClient& client, const std::string& text) {
  const auto parts = split(text, ':');
  std::vector<std::byte> bytes;
  for (std::size_t i = 0; i + 1 < parts.at(1).size(); i += 2)
    bytes.push_back(static_cast<std::byte>(std::stoul(parts[1].substr(i, 2), nullptr, 16)));
  WriteOptions write;
  write.flags = KVMI_WRITE_PATCH;
  must("patch", client.write_physical(Gpa{std::stoull(parts[0], nullptr, 0)}, bytes, write));
}

/// "0x20000:2:r-x": GPA, pages, rights
void restrict_pages(AgentClient& client, const std::string& text) {
  const auto parts = split(text, ':');
  std::uint8_t rights = 0;
  for (const char c : parts.at(2)) {
    if (c == 'r') rights |= KVMI_PAGE_ACCESS_R;
    if (c == 'w') rights |= KVMI_PAGE_ACCESS_W;
    if (c == 'x') rights |= KVMI_PAGE_ACCESS_X;
  }
  const auto pages = static_cast<std::uint32_t>(std::stoul(parts[1], nullptr, 0));
  must("page rights", client.set_page_access(Gpa{std::stoull(parts[0], nullptr, 0)}, pages, rights));
}

/// "msr:allow:number == 0x176"
void set_filter(AgentClient& client, const std::string& text) {
  const auto parts = split(text, ':');
  const auto event = event_kind_by_name(parts.at(0));
  if (!event) throw Failed{"no event " + parts[0]};
  const std::map<std::string, Action> actions{
      {"allow", Action::Allow}, {"retry", Action::Retry}, {"skip", Action::Skip}, {"crash", Action::Crash}};
  const auto terms = parse_filter(parts.at(2), *event);
  if (!terms) throw Failed{"not a filter: " + parts[2]};
  must("filter", client.set_filter(kAllVcpus, *event, actions.at(parts.at(1)), *terms));
}

void set_up(AgentClient& client, const Options& options) {
  for (const auto& text : options.filters) set_filter(client, text);
  for (const unsigned cr : options.crs) must("cr", client.control_cr(kAllVcpus, cr, true));
  for (const std::uint32_t msr : options.msrs) must("msr", client.control_msr(kAllVcpus, msr, true));
  if (!options.events.empty()) {
    const auto events = event_set_by_names(options.events);
    if (!events) throw Failed{events.error().text};
    must("events", client.subscribe(*events, Role::Decider));
  }
  for (const auto& text : options.pages) restrict_pages(client, text);
  for (const auto& text : options.patches) lay_patch(client, text);
  for (const unsigned vcpu : options.pauses)
    must("pause", client.pause_vcpu(VcpuId{static_cast<std::uint16_t>(vcpu)}));
}

/// Registers with which the guest could not live, were they ever loaded.
void stage(AgentClient& client, const Event& event) {
  kvmi_x86_regs regs = event.regs;
  regs.rip = 0xdead000;
  regs.rsp = 0;
  regs.rax = 0x57a6ed;
  must("registers", client.set_registers(event.vcpu, regs));
  print("\"type\":\"staged\"");
}

void answer(AgentClient& client, const Options& options, const ReceivedEvent& event) {
  if (options.stage) stage(client, event.event);
  if (options.answer == Answer::None || event.event.kind() == EventKind::Pause) return;
  EventReply reply = make_reply(event.event, Action::Allow);
  if (options.answer == Answer::StepOver && event.event.kind() == EventKind::Breakpoint) {
    reply.action = Action::Retry;
    reply.step_over = true;
  }
  must("reply", client.reply(event.seq, reply));
}

int run(const Options& options, AgentClient client) {
  set_up(client, options);
  print("\"type\":\"ready\",\"agent\":" + std::to_string(client.welcome().agent.value));
  for (;;) {
    if (g_close != 0) {
      client.close();
      print("\"type\":\"left\"");
      for (;;) ::pause();
    }
    const auto message = client.next_message(Millis{20});
    if (!message) {
      print("\"type\":\"closed\",\"text\":" + json_string(message.error().text));
      return 0;
    }
    if (!*message) continue;
    if (const auto* event = std::get_if<ReceivedEvent>(&**message)) {
      print(json_fields(*event));
      if (event->event.decide) answer(client, options, *event);
    } else if (const auto* notice = std::get_if<ReceivedNotice>(&**message)) {
      print(json_fields(*notice));
    } else if (const auto* guest = std::get_if<GuestEntry>(&**message)) {
      print(json_fields(*guest));
    } else {
      print(json_fields(std::get<GuestGone>(**message)));
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  options.connect.timeout = Millis{30000};
  CLI::App app{"many-agent: holds what an agent can hold in a guest, and waits to be stopped or killed"};
  const std::map<std::string, Answer> answers{
      {"allow", Answer::Allow}, {"step-over", Answer::StepOver}, {"none", Answer::None}};
  app.add_option("--socket", options.connect.socket, "kvmid's agent socket")->required();
  app.add_option("--guest", options.guest, "uuid, name, or a beginning of the uuid")->required();
  app.add_option("--name", options.connect.name, "name of this agent");
  app.add_option("--patch", options.patches, "GPA:bytes in hex, such as 0x100123:cc");
  app.add_option("--protect", options.pages, "GPA:pages:rights, such as 0x20000:2:r-x");
  app.add_option("--events", options.events, "kinds of events, with commas");
  app.add_option("--cr", options.crs, "control registers")->delimiter(',');
  app.add_option("--msr", options.msrs, "MSRs")->delimiter(',');
  app.add_option("--filter", options.filters, "EVENT:ACTION:TERMS, such as \"msr:allow:number == 0x176\"");
  app.add_option("--pause", options.pauses, "vCPUs to pause; a pause is not let go")->delimiter(',');
  app.add_flag("--stage", options.stage, "stage registers during each event it decides");
  app.add_option("--answer", options.answer)->transform(CLI::CheckedTransformer(answers));
  try {
    app.parse(argc, argv);
    std::signal(SIGINT, on_interrupt);
    auto client = AgentClient::attach(options.connect, options.guest);
    if (!client) throw Failed{"attach: " + client.error().text};
    return run(options, std::move(*client));
  } catch (const Failed& failed) {
    print("\"type\":\"failed\",\"text\":" + json_string(failed.what));
    return 1;
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
}
