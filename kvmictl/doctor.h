// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// `doctor`: what is wrong, and what to do next.
///
/// Purpose:  facts are gathered in doctor_facts.cpp; what they mean is decided here, without looking at anything, so
///           that every finding can be tested.
/// Shapes:   a problem makes the exit code 1; a note does not.
/// Threads:  pure functions but for gather() and doctor().

#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "client/client_error.h"
#include "kvmictl/arguments.h"
#include "kvmictl/json_text.h"

namespace kvmid::ctl {

/// A socket's file, as the file system and connect() tell.
struct SocketFact {
  enum class State { Good, Missing, NotSocket, Denied, NobodyListens, NotLooked };
  std::string path;
  State state = State::NotLooked;
  std::string owner, group;  ///< names, or numbers where they have none
  std::uint32_t mode = 0;    ///< permission bits
};

/// What `kvmid --check-config` said.
struct ConfigFact {
  std::string file;
  bool checked = false;  ///< kvmid could be started for it
  bool good = false;
  std::string text;  ///< what is wrong, with its place; or why it was not checked
};

struct DoctorFacts {
  std::string user;  ///< who runs this
  SocketFact admin, agent, hypervisor;
  std::optional<client::ClientError> admin_error;  ///< the admin side did not answer properly
  std::optional<client::ClientError> agent_error;  ///< a control connection was not let in
  std::optional<ConfigFact> config;
  Json status, agents;
  std::vector<Json> guests;  ///< GET /v1/guests/{uuid} of each
  Json policy;               ///< GET /v1/policy; null: this kvmid does not serve it
  Json failures;             ///< GET /v1/failures; likewise
  std::chrono::system_clock::time_point now{};
};

struct Finding {
  bool problem = true;
  std::string id;       ///< for programs; README.md lists them
  std::string subject;  ///< what it is about: a path, a guest, an agent
  std::string text;
  std::string next;  ///< what to do
};

struct Diagnosis {
  std::vector<Finding> findings;
  std::vector<std::string> good;  ///< what was looked at and is well
  [[nodiscard]] bool well() const;
};

/// `needs`: commands and events that every guest shall have.
Diagnosis diagnose(const DoctorFacts& facts, const std::vector<std::string>& needs);
/// What connections failed, why, and what to do; doctor_failures.cpp. What is over and done with is left out, what is
/// old or has happened to agents is a note.
std::vector<Finding> explain_failures(const DoctorFacts& facts);
std::string render_diagnosis(const Diagnosis& diagnosis, std::size_t width);
Json diagnosis_json(const Diagnosis& diagnosis);

/// What `kvmid --check-config` said is only that this user may not read a secret; doctor_facts.cpp.
bool is_secret_denied(const std::string& text);
DoctorFacts gather(const Arguments& arguments);  // doctor_facts.cpp
int doctor(const Arguments& arguments);          // doctor_facts.cpp

}  // namespace kvmid::ctl
