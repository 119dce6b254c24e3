// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// One kvmid, one guest whose hypervisor speaks one dialect, and tools that speak others: they listen, kvmid dials
/// them.
///
/// Purpose:  tests say who speaks what and what is special about the configuration; the rest is here.
/// Shapes:   a scene has its tools listening before kvmid starts; accept() is the test's.
/// Errors:   TestError.
/// Threads:  one.

#include <catch2/catch.hpp>
#include <initializer_list>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tests/integration_many/many_scene.h"
#include "tests/support/kvmi1_tool.h"

namespace kvmid::test {

using kvmi1::DialectId;

/// None: KVMI 2.
using SpokenBy = std::optional<DialectId>;
[[nodiscard]] std::string spoken_name(SpokenBy dialect);

struct ToolSceneOptions {
  SpokenBy hypervisor{};
  std::vector<DialectId> tools{DialectId::V7};
  unsigned vcpus = 1;
  Json rule_overrides = Json::object();    ///< of the one rule: everything, with deadlines that nobody misses
  Json dial_overrides = Json::object();    ///< of each entry of `dial`
  Json config_overrides = Json::object();  ///< of the whole
  std::vector<std::string> arguments{};    ///< of kvmi-emu
};

class ToolScene {
 public:
  explicit ToolScene(ToolSceneOptions options = {});

  RuntimeFolder folder;
  ToolSceneOptions options;
  std::vector<std::unique_ptr<Kvmi1Tool>> tools;
  Json config;
  Daemon daemon;
  Guest guest;

  [[nodiscard]] Kvmi1Tool& tool(std::size_t i = 0) { return *tools.at(i); }
  [[nodiscard]] std::string tool_path(std::size_t i = 0) const { return folder.file("tool" + std::to_string(i)); }
  /// Every tool's next connection.
  void accept_all();
  [[nodiscard]] std::string admin() const { return folder.file("admin.sock"); }
  /// GET of that path.
  [[nodiscard]] Json get(const std::string& target) const { return http(admin(), "GET", target).json(); }
  /// The line of /v1/agents of that name; null where there is none.
  [[nodiscard]] Json agent_json(const std::string& name) const;
  /// The line of /v1/failures of that step, waited for, whose reason has `text`.
  [[nodiscard]] Json wait_failure(const std::string& step, const std::string& text = {}) const;
  /// One of the guest's counters.
  [[nodiscard]] std::uint64_t counter(const std::string& name) const;
  /// Waits until so many agents are attached to the guest.
  void wait_agents(std::size_t count) const;
  /// What kvmictl doctor prints.
  [[nodiscard]] std::string doctor() const;
  /// Takes `config` as it is now, by SIGHUP.
  void reload();
};

[[nodiscard]] std::string log_of(const Process& process);

// ---- a tool's messages, short ----

/// Must succeed.
void need(Kvmi1Tool& tool, const kvmi1::Command& command);
[[nodiscard]] std::int32_t error_of(Kvmi1Tool& tool, const kvmi1::Command& command);
[[nodiscard]] kvmi1::ControlEvents events_command(const Kvmi1Tool& tool, EventKind kind, bool enable = true,
                                                  VcpuId vcpu = VcpuId{0});
/// Events of a CR.
void watch_cr(Kvmi1Tool& tool, std::uint32_t cr, VcpuId vcpu = VcpuId{0});
void set_page(Kvmi1Tool& tool, std::uint64_t gpa, std::uint8_t access);
[[nodiscard]] std::int32_t write_bytes(Kvmi1Tool& tool, Gpa gpa, std::initializer_list<unsigned> values);
[[nodiscard]] std::vector<std::byte> read_bytes(Kvmi1Tool& tool, Gpa gpa, std::size_t size);
/// The next event, which must be of that kind.
[[nodiscard]] Kvmi1Event expect(Kvmi1Tool& tool, EventKind kind);
/// Nothing has come, and nothing comes before a command's reply: kvmid has nothing to say.
[[nodiscard]] bool silent(Kvmi1Tool& tool);
/// Lets everything go on until the condition holds; how many events there were. TestError where it never does.
std::size_t go_on_until(const std::vector<Kvmi1Tool*>& tools, const std::function<bool()>& condition);

/// Bytes for one write: several messages, as tools send them in a batch.
class Batch {
 public:
  explicit Batch(Kvmi1Tool& tool) : tool_(tool) {}
  Seq add(const kvmi1::Command& command);
  void reply(const Kvmi1Event& event, std::uint32_t action, std::vector<std::byte> data = {});
  void send();

 private:
  Kvmi1Tool& tool_;
  ByteBuffer bytes_;
};

// ---- guest memory that the test guest itself never changes ----

inline constexpr std::uint64_t kImage = 0x100000;
inline constexpr std::uint64_t kRamBytes = std::uint64_t{16} << 20U;  // kvmi-emu's default
[[nodiscard]] std::vector<std::byte> code_of(const Guest& guest);

}  // namespace kvmid::test
