// SPDX-License-Identifier: GPL-2.0-or-later
//
// What failed connections mean: /v1/failures, step by step.

#include <time.h>

#include <algorithm>
#include <array>

#include "kvmictl/doctor.h"

namespace kvmid::ctl {
namespace {

using std::chrono::seconds;

/// kvmid connects to a tool again after 30 seconds at most, and waits 10 for its answer: older than this it gave up,
/// for the guest is gone or the tool is not in the configuration any more.
constexpr seconds kDialsAgain{120};
/// A hypervisor that failed so long ago does not try any more.
constexpr seconds kTriesAgain{3600};

/// Of a step and a side; an empty one is any.
struct Meaning {
  std::string_view side, step;
  std::string_view what;
  std::string_view next;  ///< GUEST and PEER in it stand for what they are
};
constexpr std::array kMeanings{
    Meaning{"hypervisor", "handshake", "what it sent is no handshake of a hypervisor, or it sent none in time.",
            "Is that QEMU's introspection socket, of a version that speaks rfc2017, v6, v7, v12 or KVMI 2, with a uuid "
            "that is not zero? Agents and tools belong to the agent socket and to `dial`."},
    Meaning{"hypervisor", "peer not allowed",
            "this peer may not bring it: `hypervisors` of the configuration does not name the peer, or bound_to of the "
            "guest's rule in hypervisors.guests names others.",
            "Add its uid, gid or cid (PEER) to `hypervisors`, and to bound_to where a rule matches GUEST, then "
            "`kvmictl reload`. If you do not know this peer, it is not the hypervisor that you expect."},
    Meaning{
        "hypervisor", "guest", "a guest with this uuid is connected already.",
        "`kvmictl guests` lists the one that has it, and `kvmictl guest UUID` shows its hypervisor's pid. Each guest "
        "needs a uuid of its own (a clone keeps the old one); if that hypervisor hangs, end it."},
    Meaning{"hypervisor", "limits", "there are as many guests or connections as limits allow.",
            "Raise limits.guests_max or limits.connections_max, then `kvmictl reload`."},
    Meaning{
        "hypervisor", "dialect", "its dialect was not found out, or it said what its dialect does not have.",
        "v6, v7 and v12 are found out, rfc2017 is not: it needs a rule of hypervisors.guests with \"dialect\": "
        "\"rfc2017\". A rule that names a dialect for GUEST must name the one that it speaks. Then `kvmictl reload`. "
        "If the dialect is right, the hypervisor is broken, and kvmid's log says where."},
    Meaning{
        "hypervisor", "start", "it closed the connection before its guest was known.",
        "If it was given a key (QEMU's `key=`), kvmid must know it: set cookie_file of the guest's rule in "
        "hypervisors.guests to a file with the same secret, without a newline at its end, then `kvmictl reload`. Else "
        "its own log says why."},
    Meaning{"hypervisor", "cookie", "it and kvmid do not know the same secret.",
            "Set cookie_file of the guest's rule in hypervisors.guests to a file with the secret that QEMU's key has, "
            "without a newline at its end, then `kvmictl reload`."},
    Meaning{
        "dial", "connect", "nobody listens at its address, or kvmid may not connect there.",
        "Start the tool and let it listen there; kvmid connects again by itself, after 30 seconds at most, and at once "
        "after `kvmictl reload`. kvmid's user needs write access to the socket and search access to its directories "
        "(`namei -l PATH`), and under systemd it must see them: with PrivateTmp= not /tmp."},
    Meaning{
        "dial", "handshake sent", "it closed the connection before it had kvmid's handshake.",
        "Is it the tool that listens there (`ss -lxp`), and does its log say why? If it serves one guest at a time, "
        "`guests` in its `dial` entry must match that one alone."},
    Meaning{
        "dial", "answer", "its answer to the handshake is missing, late or no answer of a tool.",
        "Is it the tool that listens there (`ss -lxp`), and does its log say why? If it serves one guest at a time, "
        "`guests` in its `dial` entry must match that one alone."},
    Meaning{"dial", "cookie", "the tool does not know the secret.",
            "Give the tool the secret that is in cookie_file of its `dial` entry, without a newline at its end, or "
            "leave cookie_file out for a tool that has none; then `kvmictl reload`."},
    Meaning{"dial", "policy", "no policy rule lets it use the guest, or it has used up its connections.",
            "`kvmictl policy check --guest GUEST --uid UID` explains the rules, by the user who runs the tool; add "
            "that user to one, then `kvmictl reload`."},
    Meaning{"dial", "dialect", "it said what its dialect does not have, and was disconnected.",
            "`dialect` in its `dial` entry must be the one that it speaks; else the tool is broken, and kvmid's log "
            "says where."},
    Meaning{"agent", "handshake", "what it sent is no hello of an agent, or it sent none in time.",
            "Tools of older dialects do not connect to kvmid: they listen, and need an entry in `dial`. Hypervisors "
            "belong to the hypervisor socket."},
    Meaning{"agent", "policy", "no policy rule lets it in, or it has used up its connections.",
            "`kvmictl policy check --guest GUEST` explains the rules, with --uid, --gid or --cid as in PEER; add it to "
            "one, then `kvmictl reload`."},
    Meaning{"agent", "guest", "there is no such guest.", "`kvmictl guests` lists those that are connected."},
    Meaning{"", "peer not allowed", "the kernel does not say who the peer is, or it is not allowed.",
            "kvmid's log says more: `journalctl -u kvmid | grep refused`."},
    Meaning{"", "guest", "its guest is gone.", "`kvmictl guests` lists those that are connected."},
    Meaning{"", "limits", "there are as many connections as limits.connections_max allows.",
            "Raise limits.connections_max, then `kvmictl reload`."},
    Meaning{"", "", "the connection failed.", "kvmid's log says more: `journalctl -u kvmid -n 50`."}};

const Meaning& meaning_of(std::string_view side, std::string_view step) {
  return *std::find_if(kMeanings.begin(), kMeanings.end(), [&](const Meaning& meaning) {
    return (meaning.side.empty() || meaning.side == side) && (meaning.step.empty() || meaning.step == step);
  });
}

void replace(std::string& text, std::string_view word, const std::string& by) {
  for (std::size_t at = 0; (at = text.find(word, at)) != std::string::npos; at += by.size())
    text.replace(at, word.size(), by);
}

/// None where it is no time.
std::optional<std::chrono::system_clock::time_point> time_of(const std::string& text) {
  tm parts{};
  const char* rest = ::strptime(text.c_str(), "%Y-%m-%dT%H:%M:%S", &parts);
  if (rest == nullptr) return std::nullopt;
  return std::chrono::system_clock::from_time_t(::timegm(&parts));
}

bool names(const Json& guest, const std::string& name) {
  return field(guest, "name") == name || field(guest, "uuid") == name;
}

class Failures {
 public:
  explicit Failures(const DoctorFacts& facts) : facts_(facts) {}

  std::vector<Finding> explain() {
    const Json& list = child(facts_.failures, "failures");
    if (!list.is_array()) return {};
    for (const auto& failure : list) {
      if (failure.is_object()) look_at(failure);
    }
    return std::move(out_);
  }

 private:
  void look_at(const Json& failure) {
    const std::string side = field(failure, "side");
    if (side == "dial" && is_attached(failure)) return;
    const std::string origin = origin_of(failure, side);
    if (std::find(seen_.begin(), seen_.end(), origin) != seen_.end()) return;
    seen_.push_back(origin);
    out_.push_back(finding_of(failure, side));
  }

  /// Failures of one origin are one finding; the newest comes first in the list, and says how it is now.
  static std::string origin_of(const Json& failure, const std::string& side) {
    const std::string guest = field(failure, "guest");
    if (side == "dial") return side + "/" + field(failure, "peer") + "/" + guest;
    // Who tries again and again may be another process each time, and how its connection ends is a matter of chance.
    const std::string at = side + "/" + guest + "/" + field(failure, "step");
    return child(failure, "guest").is_null() ? at + "/" + field(failure, "reason") : at;
  }

  Finding finding_of(const Json& failure, const std::string& side) const {
    const Meaning& meaning = meaning_of(side, field(failure, "step"));
    const std::string peer = field(failure, "peer");
    const std::string guest = field(failure, "guest");
    const bool named = guest != "-";

    std::string text, about = guest;
    if (side == "dial") {
      text = "The connection to tool " + peer;
      about = peer.substr(0, peer.find(' '));
    } else {
      text = std::string("The connection of ") + (side == "hypervisor" ? "a hypervisor (" : "an agent (") + peer + ")";
      if (!named) about = peer;
    }
    text += (named ? " for guest " + guest : "") + " failed: " + std::string(meaning.what) +
            " kvmid says: " + field(failure, "reason") + " (" + field(failure, "step") + ", " + field(failure, "time");
    const std::uint64_t times = number(failure, "times");
    text += times > 1 ? ", the last of " + std::to_string(times) + " times)." : ").";

    std::string next(meaning.next);
    replace(next, "PEER", peer);
    replace(next, "GUEST", named ? guest : "NAME");
    const bool problem = is_problem(failure, side);
    if (side == "dial" && !problem)
      next =
          "kvmid does not try any more: the guest is gone, or the entry of `dial` is. If one of them should be there, "
          "see "
          "`kvmictl guests` and the configuration.";
    return {problem, side + "-failed", about, text, next};
  }

  /// It is still so, and somebody waits for it.
  bool is_problem(const Json& failure, const std::string& side) const {
    const auto time = time_of(field(failure, "time"));
    const auto age = time ? facts_.now - *time : std::chrono::system_clock::duration{};
    if (side == "dial") return age <= kDialsAgain;
    if (side != "hypervisor" || age > kTriesAgain || child(failure, "guest").is_null()) return false;
    // That it came in the end is what counts, unless two of them want to be the same guest.
    return field(failure, "step") == "guest" || !is_online(field(failure, "guest"));
  }

  bool is_online(const std::string& guest) const {
    return std::any_of(facts_.guests.begin(), facts_.guests.end(),
                       [&](const Json& known) { return names(known, guest) && field(known, "state") == "online"; });
  }

  /// The tool is connected by now, for that guest.
  bool is_attached(const Json& failure) const {
    const Json& agents = child(facts_.agents, "agents");
    if (!agents.is_array()) return false;
    const std::string guest = field(failure, "guest");
    return std::any_of(agents.begin(), agents.end(), [&](const Json& agent) {
      return field(agent, "name") + " " + field(agent, "address") == field(failure, "peer") &&
             (field(agent, "guest_name") == guest || field(agent, "guest") == guest || guest == "-");
    });
  }

  const DoctorFacts& facts_;
  std::vector<std::string> seen_;
  std::vector<Finding> out_;
};

}  // namespace

std::vector<Finding> explain_failures(const DoctorFacts& facts) { return Failures(facts).explain(); }

}  // namespace kvmid::ctl
