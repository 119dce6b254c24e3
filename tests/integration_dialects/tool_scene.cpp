// SPDX-License-Identifier: GPL-2.0-or-later
#include "tests/integration_dialects/tool_scene.h"

#include <csignal>
#include <utility>

namespace kvmid::test {
namespace {

constexpr Millis kLook{2};

Json config_of(const ToolScene& scene) {
  Json dial = Json::array();
  for (std::size_t i = 0; i < scene.options.tools.size(); ++i) {
    Json entry{{"name", "tool" + std::to_string(i)},
               {"unix", scene.tool_path(i)},
               {"dialect", std::string(kvmi1::name_of(scene.options.tools[i]))},
               {"redial_ms", 50}};
    entry.update(scene.options.dial_overrides);
    dial.push_back(std::move(entry));
  }
  Json config{
      {"log", {{"level", "debug"}}}, {"policy", {rule(scene.options.rule_overrides)}}, {"dial", std::move(dial)}};
  config.update(scene.options.config_overrides);
  return config;
}

std::vector<std::unique_ptr<Kvmi1Tool>> tools_of(const ToolScene& scene) {
  std::vector<std::unique_ptr<Kvmi1Tool>> tools;
  for (std::size_t i = 0; i < scene.options.tools.size(); ++i)
    tools.push_back(std::make_unique<Kvmi1Tool>(scene.tool_path(i), scene.options.tools[i]));
  return tools;
}

GuestOptions guest_of(const ToolSceneOptions& options) {
  GuestOptions guest{.name = "web1", .uuid = uuid_of(1), .vcpus = options.vcpus, .arguments = options.arguments};
  if (options.hypervisor) guest.arguments.insert(guest.arguments.end(), {"--dialect", spoken_name(options.hypervisor)});
  return guest;
}

}  // namespace

std::string spoken_name(SpokenBy dialect) { return dialect ? std::string(kvmi1::name_of(*dialect)) : "kvmi2"; }

ToolScene::ToolScene(ToolSceneOptions wanted)
    : options(std::move(wanted)),
      tools(tools_of(*this)),
      config(config_of(*this)),
      daemon(folder, {.config = config.dump(2), .arguments = {}}),
      guest(folder, guest_of(options)) {}

void ToolScene::accept_all() {
  for (const auto& one : tools) one->accept();
}

Json ToolScene::agent_json(const std::string& name) const {
  const Json shown = get("/v1/agents");
  for (const auto& agent : shown.at("agents"))
    if (agent.at("name") == name) return agent;
  return nullptr;
}

Json ToolScene::wait_failure(const std::string& step, const std::string& text) const {
  Json found;
  const bool came = wait_until([&] {
    const Json shown = get("/v1/failures");
    for (const auto& failure : shown.at("failures")) {
      const bool is_it =
          failure.at("step") == step && failure.at("reason").get<std::string>().find(text) != std::string::npos;
      if (is_it) found = failure;
    }
    return !found.is_null();
  });
  if (!came) throw TestError("no failure of step " + step + " (" + text + "): " + get("/v1/failures").dump());
  return found;
}

std::uint64_t ToolScene::counter(const std::string& name) const {
  const Json shown = get("/v1/guests/" + guest.uuid_text());
  if (!shown.at("counters").contains(name)) throw TestError("there is no counter " + name + ": " + shown.dump());
  return shown["counters"][name].get<std::uint64_t>();
}

void ToolScene::wait_agents(std::size_t count) const {
  const auto target = "/v1/guests/" + guest.uuid_text();
  const bool right = wait_until([&] {
    const auto answer = http(admin(), "GET", target);
    return answer.status == 200 && answer.json().at("agents") == count;
  });
  if (!right)
    throw TestError("there are not " + std::to_string(count) + " agents: " + http(admin(), "GET", target).body);
}

std::string ToolScene::doctor() const {
  const Finished finished =
      run("kvmictl", {"--admin-socket", admin(), "--agent-socket", daemon.agent_socket(), "doctor"});
  return finished.text();
}

void ToolScene::reload() {
  const std::size_t before = daemon.process().errors().size();
  (void)folder.write("kvmid.json", config.dump(2));
  daemon.process().signal(SIGHUP);
  daemon.process().wait_errors("configuration reloaded", before);
}

std::string log_of(const Process& process) {
  std::string all;
  for (const auto& line : process.errors()) all += line + "\n";
  for (const auto& line : process.output()) all += line + "\n";
  return all;
}

void need(Kvmi1Tool& tool, const kvmi1::Command& command) {
  const auto reply = tool.call(command);
  if (!reply.ok())
    throw TestError(std::string(kvmi1::name_of(kvmi1::kind_of_command(command))) + ": error " +
                    std::to_string(reply.reply.error));
}

std::int32_t error_of(Kvmi1Tool& tool, const kvmi1::Command& command) { return tool.call(command).reply.error; }

kvmi1::ControlEvents events_command(const Kvmi1Tool& tool, EventKind kind, bool enable, VcpuId vcpu) {
  return {vcpu, tool.codec().number_of(kind).value(), enable};
}

void watch_cr(Kvmi1Tool& tool, std::uint32_t cr, VcpuId vcpu) {
  need(tool, events_command(tool, EventKind::Cr, true, vcpu));
  need(tool, kvmi1::ControlCr{vcpu, true, cr});
}

void set_page(Kvmi1Tool& tool, std::uint64_t gpa, std::uint8_t access) {
  kvmi1::PageAccessEntry entry;
  entry.gpa = gpa;
  entry.access = access;
  need(tool, kvmi1::SetPageAccess{0, std::span<const kvmi1::PageAccessEntry>(&entry, 1)});
}

std::int32_t write_bytes(Kvmi1Tool& tool, Gpa gpa, std::initializer_list<unsigned> values) {
  const auto bytes = bytes_of_values(values);
  return error_of(tool, kvmi1::WritePhysical{gpa, bytes});
}

std::vector<std::byte> read_bytes(Kvmi1Tool& tool, Gpa gpa, std::size_t size) {
  const auto reply = tool.call(kvmi1::ReadPhysical{gpa, size});
  const auto data = reply.as<kvmi1::ReadPhysicalReply>().data;
  return {data.begin(), data.end()};
}

Kvmi1Event expect(Kvmi1Tool& tool, EventKind kind) {
  auto event = tool.next_event();
  if (event.event.kind() != kind)
    throw TestError(std::string(name_of(event.event.kind())) + " came where " + std::string(name_of(kind)) +
                    " was waited for");
  return event;
}

bool silent(Kvmi1Tool& tool) {
  need(tool, kvmi1::GetVersion{});
  return !tool.try_next(Millis{0});
}

std::size_t go_on_until(const std::vector<Kvmi1Tool*>& tools, const std::function<bool()>& condition) {
  std::size_t events = 0;
  const bool held = wait_until([&] {
    for (Kvmi1Tool* tool : tools) {
      const auto message = tool->try_next(kLook);
      if (!message) continue;
      const auto* event = std::get_if<kvmi1::EventMessage>(&message->message);
      if (event == nullptr) throw TestError("a reply that nobody waited for");
      tool->go_on(Kvmi1Event{message->bytes, message->frame.seq, event->view, event->event});
      ++events;
    }
    return condition();
  });
  if (!held) throw TestError("what is waited for does not come");
  return events;
}

Seq Batch::add(const kvmi1::Command& command) {
  const Seq seq = tool_.next_seq();
  tool_.codec().encode(command, seq, bytes_);
  return seq;
}

void Batch::reply(const Kvmi1Event& event, std::uint32_t action, std::vector<std::byte> data) {
  kvmi1::EventReplyMessage message;
  message.vcpu = event.event.vcpu;
  message.action = action;
  message.event = static_cast<std::uint8_t>(tool_.codec().number_of(event.event.kind()).value_or(0));
  message.data = data;
  tool_.codec().encode(message, event.seq, bytes_);
}

void Batch::send() {
  tool_.send_bytes(bytes_);
  bytes_.clear();
}

std::vector<std::byte> code_of(const Guest& guest) { return raw_memory(guest, Gpa{kImage}, kRamBytes - kImage); }

}  // namespace kvmid::test
