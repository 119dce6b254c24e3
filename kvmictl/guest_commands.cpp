// SPDX-License-Identifier: GPL-2.0-or-later
#include "kvmictl/guest_commands.h"

#include <array>
#include <cstdio>

#include "client/agent_loop.h"
#include "client/event_text.h"
#include "kvmictl/render.h"
#include "kvmictl/table.h"

namespace kvmid::ctl {

using namespace kvmid::client;  // NOLINT(google-build-using-namespace): this file is an agent

namespace {

/// How long a running vCPU may take to stop.
constexpr Millis kStopTimeout{5000};
constexpr std::array<std::uint32_t, 6> kMsrs{0xc0000080, 0xc0000081, 0xc0000082, 0xc0000083, 0xc0000100, 0xc0000102};

void print(const std::string& text) { std::fwrite(text.data(), 1, text.size(), stdout); }

Result<void, ClientError> watch(AgentClient& client, const Arguments& arguments, EventSet kinds) {
  EventSet wanted = kinds;
  if (arguments.kinds == "all") wanted.bits &= client.welcome().events.bits;
  if (wanted.has(EventKind::Cr)) {
    for (const std::uint32_t cr : {0U, 3U, 4U}) {
      if (auto done = client.control_cr(kAllVcpus, cr, true); !done) return done;
    }
  }
  if (wanted.has(EventKind::Msr)) {
    for (const auto msr : kMsrs) {
      if (auto done = client.control_msr(kAllVcpus, msr, true); !done) return done;
    }
  }
  const auto enabled = client.subscribe(wanted, Role::Observer);
  if (!enabled) return enabled.error();
  return {};
}

}  // namespace

Result<Registers, ClientError> stopped_registers(AgentClient& client, VcpuId vcpu) {
  auto got = client.get_registers(vcpu);
  if (got || got.error().kind != ClientErrc::Failed || got.error().code != ErrorCode::TryAgain) return got;
  if (auto asked = client.pause_vcpu(vcpu); !asked) return asked.error();
  for (;;) {
    const auto event = client.wait_event(kStopTimeout);
    if (!event) return event.error();
    if (!*event) return ClientError{ClientErrc::TimedOut, ErrorCode::None, "the vCPU did not stop in time", 0};
    if ((*event)->event.kind() != EventKind::Pause || !(*event)->event.decide) continue;
    got = client.get_registers(vcpu);
    const auto answered = client.reply(**event, Action::Allow);
    if (got && !answered) return answered.error();
    return got;
  }
}

int explain(const ClientError& error) {
  std::fprintf(stderr, "kvmictl: %s\n", printable(error.text).c_str());
  const char* hint = nullptr;
  switch (error.kind) {
    case ClientErrc::Unreachable:
      hint = "Start it (systemctl start kvmid), or name its sockets: --admin-socket, --agent-socket.";
      break;
    case ClientErrc::Denied:
      hint = "`ls -l` shows the socket's group; `usermod -aG GROUP USER` and a new login let you in.";
      break;
    case ClientErrc::NoGuest:
      hint = "`kvmictl guests` lists what is connected.";
      break;
    case ClientErrc::Refused:
    case ClientErrc::Failed:
      if (error.code == ErrorCode::NotPermitted) {
        hint = "kvmid's policy decides that, by user and agent name (kvmictl); `kvmictl agents` names the rule.";
      }
      if (error.code == ErrorCode::NoDevice) hint = "The guest is away; `kvmictl guests` shows when it is back.";
      break;
    default:
      break;
  }
  if (hint != nullptr) std::fprintf(stderr, "%s\n", hint);
  return exit_code(error);
}

ConnectOptions connect_options(const Arguments& arguments) {
  ConnectOptions options;
  options.socket = arguments.agent_socket;
  options.name = "kvmictl";
  return options;
}

int events(const Arguments& arguments) {
  const auto kinds = event_set_by_names(arguments.kinds);
  if (!kinds) {
    std::fprintf(stderr, "kvmictl: %s\n", kinds.error().text.c_str());
    return kUsage;
  }
  std::setvbuf(stdout, nullptr, _IOLBF, 0);  // lines are whole also in a pipe
  StopSignal stop;
  auto attached = AgentClient::attach(connect_options(arguments), arguments.guest);
  if (!attached) return explain(attached.error());
  if (auto done = watch(*attached, arguments, *kinds); !done) return explain(done.error());
  std::uint64_t seen = 0;
  for (;;) {
    auto turn = next_turn(*attached, stop);
    if (std::holds_alternative<Stopped>(turn)) return kOk;
    if (auto* error = std::get_if<ClientError>(&turn)) return explain(*error);
    const auto& message = std::get<AgentMessage>(turn);
    const auto* event = std::get_if<ReceivedEvent>(&message);
    if (arguments.json) {
      const std::string fields = std::visit([](const auto& m) { return json_fields(m); }, message);
      print("{\"time\":\"" + timestamp() + "\"," + fields + "}\n");
    } else if (event != nullptr) {
      print(time_of_day() + " vcpu" + std::to_string(event->event.vcpu.value) + " " +
            std::string(name_of(event->event.kind())) + ": " + words(event->event) + ", rip " +
            hex(event->event.regs.rip) + "\n");
    } else {
      const std::string text = std::visit(
          Overloaded{[](const ReceivedEvent&) { return std::string(); }, [](const auto& m) { return words(m); }},
          message);
      print(time_of_day() + " " + printable(text) + "\n");
    }
    if (event != nullptr && ++seen == arguments.count) return kOk;
    if (const auto* back = std::get_if<GuestEntry>(&message); back != nullptr && !back->away) {
      if (auto done = watch(*attached, arguments, *kinds); !done) return explain(done.error());
    }
  }
}

int regs(const Arguments& arguments) {
  auto attached = AgentClient::attach(connect_options(arguments), arguments.guest);
  if (!attached) return explain(attached.error());
  const VcpuId vcpu{arguments.vcpu.value_or(0)};
  const auto got = stopped_registers(*attached, vcpu);
  if (!got) return explain(got.error());
  print(arguments.json ? registers_json(vcpu.value, *got).dump() + "\n" : render_registers(*got));
  return kOk;
}

}  // namespace kvmid::ctl
