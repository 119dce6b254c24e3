// SPDX-License-Identifier: GPL-2.0-or-later
#include "tests/integration_many/many_scene.h"

#include <poll.h>

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <utility>

namespace kvmid::test {
namespace {

std::string config_of(const Json& rule_overrides) {
  return Json{{"log", {{"level", "debug"}}}, {"policy", {rule(rule_overrides)}}}.dump(2);
}

std::unique_ptr<HypervisorTap> make_tap(const ManyOptions& options, const RuntimeFolder& folder, const Daemon& daemon) {
  if (!options.tapped) return nullptr;
  std::filesystem::create_symlink(daemon.agent_socket(), folder.file("agent.sock"));  // Guest looks for kvmid there
  return std::make_unique<HypervisorTap>(folder.file("hypervisor.sock"), daemon.hypervisor_socket());
}

}  // namespace

ManyScene::ManyScene(ManyOptions wanted)
    : options(std::move(wanted)),
      daemon(folder, {.config = config_of(options.rule_overrides), .arguments = {}}),
      tap(make_tap(options, tap_folder, daemon)),
      guest(tap ? tap_folder : folder, {.vcpus = options.vcpus, .arguments = options.arguments}) {
  guest.wait_online();
}

AgentClient ManyScene::attach(const std::string& name, bool outcomes) const {
  return test::attach(daemon.agent_socket(), guest.uuid(), name, outcomes);
}

Process ManyScene::start_agent(const std::string& name, std::vector<std::string> arguments) const {
  std::vector<std::string> all{"--socket", daemon.agent_socket(), "--guest", guest.uuid_text(), "--name", name};
  all.insert(all.end(), std::make_move_iterator(arguments.begin()), std::make_move_iterator(arguments.end()));
  Process process("many-agent", std::move(all));
  process.wait_output(R"("type":"ready")");
  return process;
}

void ManyScene::reload_rule(const Json& overrides) {
  Json changed = options.rule_overrides;
  changed.update(overrides);
  const std::size_t before = daemon.process().errors().size();
  (void)folder.write("kvmid.json", config_of(changed));
  daemon.process().signal(SIGHUP);
  daemon.process().wait_errors("configuration reloaded", before);
}

Json ManyScene::guest_json() const { return http(admin(), "GET", "/v1/guests/" + guest.uuid_text()).json(); }

std::uint64_t ManyScene::counter(const std::string& name) const {
  const Json shown = guest_json();
  if (!shown.at("counters").contains(name)) throw TestError("there is no counter " + name + ": " + shown.dump());
  return shown["counters"][name].get<std::uint64_t>();
}

void ManyScene::wait_counter(const std::string& name, std::uint64_t value) const {
  if (!wait_until([&] { return counter(name) >= value; }))
    throw TestError("counter " + name + " stays at " + std::to_string(counter(name)));
}

Json ManyScene::agents_json() const {
  const Json shown = http(admin(), "GET", "/v1/agents").json();
  Json found = Json::array();
  for (const auto& agent : shown.at("agents"))
    if (agent.at("guest") == guest.uuid_text()) found.push_back(agent);
  return found;
}

void ManyScene::wait_agents(std::size_t count) const {
  if (!wait_until([&] { return guest_json().at("agents") == count; }))
    throw TestError("there are not " + std::to_string(count) + " agents, but " + guest_json().dump());
  // Withdrawals come first in the queue of changes: what this agent wishes is confirmed behind them.
  AgentClient probe = attach("probe");
  check(probe.subscribe(events_of({EventKind::Hypercall}), Role::Observer));
}

void serve(const std::vector<AgentClient*>& agents, const OnEvent& on_event, const std::function<bool()>& until) {
  const auto give_up = std::chrono::steady_clock::now() + kBound;
  std::vector<pollfd> polled;
  for (AgentClient* agent : agents) polled.push_back({agent->fd(), POLLIN, 0});
  while (!until()) {
    if (std::chrono::steady_clock::now() > give_up) throw TestError("what is waited for does not come");
    bool idle = true;
    for (AgentClient* agent : agents) {
      while (const auto event = check(agent->wait_event(Millis{0}))) {
        on_event(*agent, *event);
        idle = false;
      }
    }
    if (idle) ::poll(polled.data(), polled.size(), 2);
  }
}

std::vector<std::byte> raw_memory(const Guest& guest, Gpa gpa, std::size_t size) {
  std::vector<std::byte> bytes(size);
  guest.memory().read(gpa, bytes.data(), size);
  return bytes;
}

std::vector<std::byte> seen_memory(AgentClient& agent, Gpa gpa, std::size_t size) {
  return check(agent.read_physical(gpa, size)).data;
}

std::vector<std::byte> bytes_of_values(std::initializer_list<unsigned> values) {
  std::vector<std::byte> bytes;
  for (const unsigned value : values) bytes.push_back(static_cast<std::byte>(value));
  return bytes;
}

Result<std::uint64_t, client::ClientError> patch(AgentClient& agent, Gpa gpa, Bytes bytes) {
  client::WriteOptions options;
  options.flags = KVMI_WRITE_PATCH;
  return agent.write_physical(gpa, bytes, options);
}

Result<std::uint64_t, client::ClientError> unpatch(AgentClient& agent, Gpa gpa, std::size_t size) {
  client::WriteOptions options;
  options.flags = KVMI_WRITE_UNPATCH;
  return agent.write_physical(gpa, std::vector<std::byte>(size), options);
}

void step_over(AgentClient& agent, const client::ReceivedEvent& event) {
  EventReply reply = client::make_reply(event.event, Action::Retry);
  reply.step_over = true;
  check(agent.reply(event.seq, reply));
}

EventSet events_of(std::initializer_list<EventKind> kinds) {
  EventSet set;
  for (const EventKind kind : kinds) set.add(kind);
  return set;
}

std::size_t lines_with(const Process& process, std::string_view text) {
  const auto lines = process.output();
  return static_cast<std::size_t>(
      std::ranges::count_if(lines, [&](const std::string& line) { return line.find(text) != std::string::npos; }));
}

std::vector<kvmi_filter_term> filter_terms(std::string_view text, EventKind event) {
  auto terms = client::parse_filter(text, event);
  if (!terms) throw TestError("not a filter: " + std::string(text));
  return std::move(*terms);
}

}  // namespace kvmid::test
