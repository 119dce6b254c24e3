// SPDX-License-Identifier: GPL-2.0-or-later
#include "hypervisor/emulated/status.h"

#include <nlohmann/json.hpp>

#include "hypervisor/emulated/mailbox.h"
#include "protocol/handshake.h"

namespace kvmid::emulated {

namespace {

const char* name_of(Activity activity) {
  switch (activity) {
    case Activity::Running: return "running";
    case Activity::Halted: return "halted";
    case Activity::Waiting: return "waiting";
  }
  return "";
}

}  // namespace

std::string status_line(const Machine& machine, const hypervisor::Link& link) {
  nlohmann::ordered_json json;
  const auto& facts = machine.facts();
  json["name"] = facts.name;
  json["uuid"] = to_string(facts.uuid);
  json["connected"] = link.state() == hypervisor::Link::State::Serving;
  json["connections"] = link.connections();
  json["last_error"] = link.last_error();
  json["stopped"] = machine.stopped();
  json["stop_reason"] = machine.stop_reason();
  json["vcpus"] = nlohmann::ordered_json::array();
  for (std::uint16_t i = 0; i < facts.vcpu_count; ++i) {
    const auto& vcpu = machine.vcpu(VcpuId{i});
    nlohmann::ordered_json entry;
    entry["vcpu"] = i;
    entry["activity"] = name_of(vcpu.activity);
    entry["rip"] = vcpu.regs.rip;
    entry["cr3"] = vcpu.sregs.cr3;
    entry["instructions"] = vcpu.instructions;
    entry["events"] = vcpu.events;
    Mailbox mailbox{};
    if (machine.ram().read(mailbox_gpa(VcpuId{i}), &mailbox, sizeof mailbox) && mailbox.magic == kMailboxMagic) {
      entry["rounds"] = mailbox.rounds;
      entry["mode"] = mailbox.mode;
    }
    json["vcpus"].push_back(std::move(entry));
  }
  return json.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace) + "\n";
}

}  // namespace kvmid::emulated
