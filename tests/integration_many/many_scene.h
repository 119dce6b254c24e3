// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// One kvmid, one guest, and as many agents as a test wants: in the test itself, or processes that can be stopped and
/// killed.
///
/// Errors:   TestError.
/// Threads:  one.

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "client/filter.h"
#include "tests/integration_admin/admin_client.h"
#include "tests/integration_many/hypervisor_tap.h"

namespace kvmid::test {

struct ManyOptions {
  unsigned vcpus = 1;
  Json rule_overrides = Json::object();  ///< of the one rule: everything, with deadlines that nobody misses
  std::vector<std::string> arguments{};  ///< of kvmi-emu
  bool tapped = false;                   ///< with ManyScene::tap
};

struct ManyScene {
  explicit ManyScene(ManyOptions options = {});

  [[nodiscard]] std::string admin() const { return folder.file("admin.sock"); }
  [[nodiscard]] AgentClient attach(const std::string& name, bool outcomes = false) const;
  /// A many-agent process of that name; `arguments` come behind --socket, --guest and --name. It says "ready" when all
  /// that it wishes is confirmed.
  [[nodiscard]] Process start_agent(const std::string& name, std::vector<std::string> arguments) const;
  /// The configuration with these keys of the rule replaced, taken by SIGHUP.
  void reload_rule(const Json& overrides);
  /// GET /v1/guests/{uuid}.
  [[nodiscard]] Json guest_json() const;
  /// One of its counters.
  [[nodiscard]] std::uint64_t counter(const std::string& name) const;
  void wait_counter(const std::string& name, std::uint64_t value) const;
  /// GET /v1/agents: those of the guest.
  [[nodiscard]] Json agents_json() const;
  /// Waits until so many agents are attached to the guest, and whatever the others held is withdrawn from it.
  void wait_agents(std::size_t count) const;
  /// Address of the function that Guest::hammer() has called.
  [[nodiscard]] Gpa hammer_gpa() const { return Gpa{guest.mailbox().hammer_gpa}; }

  RuntimeFolder folder;
  ManyOptions options;
  Daemon daemon;
  RuntimeFolder tap_folder;  ///< where the guest dials when it is tapped
  std::unique_ptr<HypervisorTap> tap;
  Guest guest;
};

/// Takes what comes to these agents, in turn, until the condition holds. TestError when it does not within the bound.
using OnEvent = std::function<void(AgentClient& agent, const client::ReceivedEvent& event)>;
void serve(const std::vector<AgentClient*>& agents, const OnEvent& on_event, const std::function<bool()>& until);

inline constexpr std::byte kInt3{0xcc};
/// The guest's memory as it is in RAM, patches included.
[[nodiscard]] std::vector<std::byte> raw_memory(const Guest& guest, Gpa gpa, std::size_t size);
/// As an agent reads it.
[[nodiscard]] std::vector<std::byte> seen_memory(AgentClient& agent, Gpa gpa, std::size_t size);
/// Bytes of these values.
[[nodiscard]] std::vector<std::byte> bytes_of_values(std::initializer_list<unsigned> values);

/// Lays a patch, takes it back.
[[nodiscard]] Result<std::uint64_t, client::ClientError> patch(AgentClient& agent, Gpa gpa, Bytes bytes);
[[nodiscard]] Result<std::uint64_t, client::ClientError> unpatch(AgentClient& agent, Gpa gpa, std::size_t size);
/// RETRY with STEP_OVER.
void step_over(AgentClient& agent, const client::ReceivedEvent& event);
[[nodiscard]] EventSet events_of(std::initializer_list<EventKind> kinds);
/// How many lines have this text.
[[nodiscard]] std::size_t lines_with(const Process& process, std::string_view text);
/// Terms of "number == 0x176 and ..."; TestError where the text is wrong.
[[nodiscard]] std::vector<kvmi_filter_term> filter_terms(std::string_view text, EventKind event);

}  // namespace kvmid::test
