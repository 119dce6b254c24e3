// SPDX-License-Identifier: GPL-2.0-or-later
#include "kvmictl/doctor.h"

#include <algorithm>
#include <array>
#include <cstdio>

#include "kvmictl/table.h"
#include "protocol/message.h"

namespace kvmid::ctl {
namespace {

/// A vCPU that waits longer than any deadline may last is held by somebody on purpose, or by a mistake.
constexpr std::uint64_t kHeldLongMs = 60'000;

class Doctor {
 public:
  Doctor(const DoctorFacts& facts, const std::vector<std::string>& needs) : facts_(facts), needs_(needs) {}

  Diagnosis look() {
    look_at_config();
    const bool reached = look_at_socket("admin", facts_.admin) && look_at_answer();
    if (look_at_socket("agent", facts_.agent)) look_at_agents_door();
    look_at_hypervisor_socket();
    if (reached) {
      look_at_guests();
      look_at_agents();
      look_at_counters();
      for (auto& finding : explain_failures(facts_)) out_.findings.push_back(std::move(finding));
    }
    return std::move(out_);
  }

 private:
  void problem(const char* id, std::string subject, std::string text, std::string next) {
    out_.findings.push_back({true, id, std::move(subject), std::move(text), std::move(next)});
  }
  void note(const char* id, std::string subject, std::string text, std::string next) {
    out_.findings.push_back({false, id, std::move(subject), std::move(text), std::move(next)});
  }
  void good(std::string text) { out_.good.push_back(std::move(text)); }

  static std::string file_text(const SocketFact& socket) {
    std::array<char, 16> mode{};
    std::snprintf(mode.data(), mode.size(), "%04o", socket.mode & 07777U);
    return "owner " + socket.owner + ", group " + socket.group + ", mode " + mode.data();
  }

  void look_at_config() {
    if (!facts_.config) return;
    const ConfigFact& config = *facts_.config;
    if (!config.checked) {
      note("config-unchecked", config.file, "The configuration could not be checked: " + config.text + ".",
           "Run `kvmid --check-config " + config.file + "` as a user who may read it.");
    } else if (!config.good) {
      problem("config-error", config.file, "The configuration has a mistake: " + config.text,
              "Correct it, then `kvmid --check-config " + config.file +
                  "`, then `kvmictl reload` or `systemctl restart "
                  "kvmid`. Until then kvmid keeps what it runs with, and cannot be started again.");
    } else {
      good("configuration " + config.file);
    }
  }

  bool look_at_socket(const std::string& which, const SocketFact& socket) {
    const std::string option = "--" + which + "-socket";
    switch (socket.state) {
      case SocketFact::State::NotLooked:  // vsock and abstract addresses have no file
        return true;
      case SocketFact::State::Good:
        good(which + " socket " + socket.path + " (" + file_text(socket) + ")");
        return true;
      case SocketFact::State::Missing:
        problem("socket-missing", socket.path, "There is no " + which + " socket " + socket.path + ".",
                "Is kvmid running? `systemctl status kvmid`, `systemctl start kvmid`. If it listens elsewhere, give " +
                    option + ".");
        return false;
      case SocketFact::State::NotSocket:
        problem("socket-not-socket", socket.path, socket.path + " is no socket.",
                "Give the right path by " + option + ", or remove the file and restart kvmid.");
        return false;
      case SocketFact::State::Denied:
        problem("socket-denied", socket.path,
                "User " + facts_.user + " may not connect to " + socket.path + " (" + file_text(socket) + ").",
                (socket.mode & 0020U) != 0
                    ? "`usermod -aG " + socket.group + " " + facts_.user + "` and a new login let this user in."
                    : "The socket's group may not write: set listen." + which +
                          "s.mode (admin: listen.admin.mode) to "
                          "\"0660\" and its group, then restart kvmid; or use root.");
        return false;
      case SocketFact::State::NobodyListens:
        problem("socket-dead", socket.path,
                "The " + which + " socket " + socket.path + " is there, but nobody listens.",
                "kvmid ended without removing it. `systemctl start kvmid` replaces it; `journalctl -u kvmid -n 50` "
                "says why.");
        return false;
    }
    return false;
  }

  bool look_at_answer() {
    if (!facts_.admin_error) {
      good("kvmid " + field(facts_.status, "version") + " answers, pid " + field(facts_.status, "pid"));
      return true;
    }
    const auto& error = *facts_.admin_error;
    const bool silent = error.kind == client::ClientErrc::TimedOut || error.kind == client::ClientErrc::Closed;
    problem(silent ? "daemon-silent" : "daemon-odd", facts_.admin.path,
            (silent ? "kvmid does not answer: " : "kvmid does not answer as it should: ") + error.text,
            silent ? "It may be stopped (SIGSTOP) or hang. `journalctl -u kvmid -n 50`, then `systemctl restart "
                     "kvmid`; guests run on."
                   : "Is something else behind that socket, or another version of kvmid? `kvmid --version`.");
    return false;
  }

  void look_at_agents_door() {
    if (!facts_.agent_error) {
      good("agents are let in");
      return;
    }
    const auto& error = *facts_.agent_error;
    if (error.kind == client::ClientErrc::Refused) {
      problem("agent-refused", facts_.user, "kvmid does not let this user in as an agent: " + error.text,
              "`kvmictl policy check --guest NAME` explains the rules; add this user to one, then `kvmictl reload`.");
    } else {
      problem("agent-door", facts_.agent.path, "The agent socket does not answer as it should: " + error.text,
              "`journalctl -u kvmid -n 50` says more.");
    }
  }

  void look_at_hypervisor_socket() {
    const SocketFact& socket = facts_.hypervisor;
    if (socket.state == SocketFact::State::NotLooked) return;
    if (socket.state == SocketFact::State::Missing || socket.state == SocketFact::State::NotSocket) {
      // When nothing is there the admin socket's finding says it already.
      if (facts_.admin.state != SocketFact::State::Good) return;
      problem(
          "hypervisor-socket-missing", socket.path,
          "There is no hypervisor socket " + socket.path + ": no guest can come that way.",
          "If listen.hypervisors says another path, give it by --hypervisor-socket; else set it and restart kvmid.");
      return;
    }
    if ((socket.mode & 0022U) == 0 && socket.owner != "root") {
      problem("hypervisor-socket-closed", socket.path,
              "Only user " + socket.owner + " and root may connect to " + socket.path + " (" + file_text(socket) + ").",
              "If hypervisors run as somebody else, set listen.hypervisors.mode to \"0660\" and "
              "listen.hypervisors.group to "
              "their group, and restart kvmid.");
    } else if ((socket.mode & 0022U) == 0) {
      problem(
          "hypervisor-socket-closed", socket.path,
          "Only root may connect to " + socket.path + " (" + file_text(socket) + ").",
          "QEMU seldom runs as root: set listen.hypervisors.mode to \"0660\" and listen.hypervisors.group to its group "
          "(libvirt-qemu, kvm), and restart kvmid.");
    } else {
      good("hypervisor socket " + socket.path + " (" + file_text(socket) + ")");
    }
  }

  void look_at_guests() {
    if (facts_.guests.empty()) {
      const std::string group = facts_.hypervisor.group;
      problem("no-guest", "", "No guest is connected.",
              "Start a guest whose hypervisor is told kvmid's hypervisor socket" +
                  (facts_.hypervisor.path.empty() ? "" : " (" + facts_.hypervisor.path + ")") +
                  (group.empty() || group == "-" ? "" : "; its user must be in group " + group) +
                  ", and in `hypervisors` of the configuration. To try: kvmi-emu --socket PATH --name test.");
    }
    for (const auto& guest : facts_.guests) look_at_guest(guest);
  }

  void look_at_guest(const Json& guest) {
    const std::string name = field(guest, "name");
    if (field(guest, "state") == "away") {
      problem("guest-away", name,
              "Guest " + name + " is away: its hypervisor (pid " + field(child(guest, "hypervisor"), "pid") +
                  ") is not connected, and " +
                  (number(guest, "agents") == 1 ? "an agent waits for it."
                                                : field(guest, "agents") + " agents wait for it."),
              "If the guest shall run, start its hypervisor again; if it went for good, stop those agents (`kvmictl "
              "agents`).");
      return;
    }
    if (field(guest, "state") == "starting") {
      note("guest-starting", name,
           "The hypervisor of " + name + " (pid " + field(child(guest, "hypervisor"), "pid") +
               ") is connected and has not answered kvmid's first questions yet.",
           "Look again in a moment: one that does not answer is disconnected, and listed here as failed.");
      return;
    }
    std::size_t problems = 0;
    look_at_abilities(guest, name, problems);
    for (const auto& vcpu : child(guest, "vcpu").is_array() ? child(guest, "vcpu") : Json::array()) {
      if (number(vcpu, "age_ms") < kHeldLongMs) continue;
      note("vcpu-held", name,
           "vCPU " + field(vcpu, "id") + " of " + name + " has waited " + field(vcpu, "age_ms") + " ms for agents " +
               joined(child(vcpu, "waits_for")) + " (" + field(vcpu, "event") + ").",
           "`kvmictl agent ID` shows who they are; `kvmictl resume " + name + "` if it was paused by kvmictl.");
    }
    if (problems == 0) good("guest " + name + " is online, " + field(guest, "vcpus") + " vCPUs");
  }

  /// Commands that kvmid answers itself: that a hypervisor does not know them is no loss.
  static bool is_of_kvmid(CommandId id) {
    return id == CommandId::GetGuests || id == CommandId::GrantMemory || id == CommandId::SetFilter;
  }

  void look_at_abilities(const Json& guest, const std::string& name, std::size_t& problems) {
    const auto has = [](const Json& list, const std::string& what) {
      return list.is_array() && std::find(list.begin(), list.end(), Json(what)) != list.end();
    };
    std::string lacking;
    const auto look = [&](const Json& list, std::string_view what) {
      if (!has(list, std::string(what))) lacking += " " + std::string(what);
    };
    for (unsigned i = 0; i < 64; ++i) {
      const auto id = static_cast<CommandId>(i);
      if (name_of(id) != name_of(CommandId{}) && !is_of_kvmid(id)) look(child(guest, "commands"), name_of(id));
    }
    for (unsigned i = 0; i < kEventCount; ++i)
      look(child(guest, "events_supported"), name_of(static_cast<EventKind>(i)));
    for (const auto& need : needs_) {
      if (has(child(guest, "commands"), need) || has(child(guest, "events_supported"), need)) continue;
      ++problems;
      problem("unsupported", name,
              "Guest " + name + " (dialect " + field(guest, "dialect") + ") is not served with " + need + ".",
              "`kvmictl guest " + name +
                  "` lists what it serves. Use an agent that does without, or a hypervisor that serves it.");
    }
    if (!lacking.empty()) {
      note("not-served", name, "The hypervisor of " + name + " does not serve:" + lacking + ".",
           "Agents that ask for these get an error; `kvmictl doctor --needs NAME,...` makes a problem of those you "
           "need.");
    }
  }

  void look_at_agents() {
    const Json& list = child(facts_.agents, "agents");
    if (!list.is_array()) return;
    const std::size_t before = out_.findings.size();
    for (const auto& agent : list) {
      if (!child(agent, "guest").is_null()) look_at_agent(agent);
    }
    look_at_attachments(list);
    if (out_.findings.size() == before && !list.empty()) good("agents keep their deadlines and quotas");
  }

  const Json& quota_of(const Json& agent) const {
    static const Json kNothing;
    const Json& rules = child(facts_.policy, "rules");
    if (!rules.is_array()) return kNothing;
    for (const auto& rule : rules) {
      if (field(rule, "name") == field(agent, "policy")) return child(child(rule, "grant"), "quota");
    }
    return kNothing;
  }

  void look_at_agent(const Json& agent) {
    const std::string who =
        "agent " + field(agent, "id") + " (" + field(agent, "name") + " on " + field(agent, "guest_name") + ")";
    if (!child(agent, "demoted").empty()) {
      problem("agent-demoted", field(agent, "name"),
              who + " missed " + field(agent, "strikes") +
                  " deadlines in a row: it only observes " + joined(child(agent, "demoted")) +
                  " now, and does not decide.",
              "See why it is slow (pid " + field(agent, "pid") + "); raise deadline_ms or strikes in rule " +
                  field(agent, "policy") + " if it needs longer; it decides again once it reattaches, so restart it.");
    } else if (number(agent, "strikes") > 0) {
      note("agent-slow", field(agent, "name"), who + " missed " + field(agent, "strikes") + " deadlines in a row.",
           "Its deadline is " + field(agent, "deadline_ms") + " ms; see why it is slow (pid " + field(agent, "pid") +
               ").");
    }
    const Json& quota = quota_of(agent);
    const auto used = [&](const char* what, const char* have, const char* limit) {
      const std::uint64_t max = number(quota, limit);
      const std::uint64_t now = number(agent, have);
      if (max == 0 || now < max - max / 10) return;
      problem(
          "quota-used-up", field(agent, "name"),
          who + " has used up its quota of " + what + ": " + std::to_string(now) + " of " + std::to_string(max) + ".",
          "See why it does not keep up (pid " + field(agent, "pid") + "), or raise quota." + limit + " in rule " +
              field(agent, "policy") + " and `kvmictl reload`. Over it, kvmid answers EBUSY or disconnects it.");
    };
    used("queued bytes", "queued_bytes", "queue_bytes");
    used("open requests", "requests_open", "requests");
    used("restricted pages", "pages", "pages");
    used("patches", "patches", "patches");
    used("filters", "filters", "filters");
  }

  /// Connections count per user (or CID), so they are summed before they are compared.
  void look_at_attachments(const Json& list) {
    std::map<std::string, std::pair<std::uint64_t, const Json*>> of_peer;
    for (const auto& agent : list) {
      if (child(agent, "guest").is_null()) continue;
      const bool vsock = !child(agent, "cid").is_null();
      auto& entry = of_peer[vsock ? "CID " + field(agent, "cid") : "uid " + field(agent, "uid")];
      ++entry.first;
      entry.second = &agent;
    }
    for (const auto& [peer, entry] : of_peer) {
      const std::uint64_t max = number(quota_of(*entry.second), "attachments");
      if (max == 0 || entry.first < max) continue;
      problem("quota-used-up", peer,
              peer + " holds " + std::to_string(entry.first) + " of " + std::to_string(max) +
                  " connections that it may have at once.",
              "The next one is refused. Stop agents that are not needed (`kvmictl agents`), or raise quota.attachments "
              "in rule " +
                  field(*entry.second, "policy") + ".");
    }
  }

  void look_at_counters() {
    const Json& counters = child(facts_.status, "counters");
    const auto count = [&](const char* name, const std::string& text, const std::string& next) {
      if (const auto n = number(counters, name); n != 0) note("counted", name, std::to_string(n) + " " + text, next);
    };
    count("connections_refused", "connections were refused since kvmid started.",
          "kvmid's log names each: `journalctl -u kvmid | grep refused`.");
    count("protocol_errors", "times a hypervisor broke the protocol.",
          "kvmid's log says how; is the hypervisor up to date?");
    count("slow_readers", "peers were closed because they did not read.", "kvmid's log names them.");
    count("accept_paused", "times no descriptor was left for a newcomer.", "Raise LimitNOFILE of kvmid.service.");
    count("audit_dropped", "audit lines were lost.", "Is the disk of the audit log full or slow?");
    count("reloads_refused", "reloads were refused for a mistake in the configuration.",
          "`kvmictl reload` says where it is.");
  }

  const DoctorFacts& facts_;
  const std::vector<std::string>& needs_;
  Diagnosis out_;
};

}  // namespace

bool Diagnosis::well() const {
  return std::none_of(findings.begin(), findings.end(), [](const Finding& finding) { return finding.problem; });
}

Diagnosis diagnose(const DoctorFacts& facts, const std::vector<std::string>& needs) {
  return Doctor(facts, needs).look();
}

std::string render_diagnosis(const Diagnosis& diagnosis, std::size_t width) {
  std::string out;
  for (const bool problems : {true, false}) {
    for (const auto& finding : diagnosis.findings) {
      if (finding.problem != problems) continue;
      out += wrapped(problems ? "PROBLEM  " : "note     ", printable(finding.text), width, 9);
      out += wrapped("         ", "-> " + printable(finding.next), width, 12);
    }
  }
  for (const auto& text : diagnosis.good) out += wrapped("ok       ", printable(text), width, 9);
  std::size_t problems = 0;
  for (const auto& finding : diagnosis.findings) problems += finding.problem ? 1 : 0;
  out += problems == 0 ? "\nAll is well.\n"
                       : "\n" + std::to_string(problems) + (problems == 1 ? " problem.\n" : " problems.\n");
  return out;
}

Json diagnosis_json(const Diagnosis& diagnosis) {
  Json findings = Json::array();
  for (const auto& finding : diagnosis.findings) {
    findings.push_back({{"severity", finding.problem ? "problem" : "note"},
                        {"id", finding.id},
                        {"subject", finding.subject},
                        {"text", finding.text},
                        {"next", finding.next}});
  }
  return Json{{"schema", 1}, {"ok", diagnosis.well()}, {"findings", findings}, {"good", diagnosis.good}};
}

}  // namespace kvmid::ctl
