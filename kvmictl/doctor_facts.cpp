// SPDX-License-Identifier: GPL-2.0-or-later
//
// What `doctor` looks at: socket files, connections, the admin side, and the configuration by kvmid itself.

#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <pwd.h>
#include <spawn.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <filesystem>

#include "client/agent_client.h"
#include "client/guest_names.h"
#include "kvmictl/admin_client.h"
#include "kvmictl/doctor.h"
#include "kvmictl/guest_commands.h"
#include "kvmictl/render.h"
#include "kvmictl/table.h"
#include "protocol/handshake.h"

extern char** environ;

namespace kvmid::ctl {

using client::ClientErrc;
using client::ClientError;
using client::Millis;

namespace {

constexpr Millis kPatience{3000};
constexpr const char* kDefaultConfig = "/etc/kvmid/kvmid.json";
/// Guests that are asked for in full.
constexpr std::size_t kGuestsMax = 256;

std::string user_name(uid_t uid) {
  const passwd* found = ::getpwuid(uid);
  return found != nullptr ? found->pw_name : std::to_string(uid);
}
std::string group_name(gid_t gid) {
  const group* found = ::getgrgid(gid);
  return found != nullptr ? found->gr_name : std::to_string(gid);
}

/// The file. Whether somebody listens is for those who connect; the hypervisor socket is not dialled at all, for kvmid
/// would count it as a hypervisor that says nothing.
SocketFact look_at(const std::string& path) {
  SocketFact out;
  out.path = path;
  if (path.empty() || path.front() != '/') return out;
  struct stat file {};
  if (::stat(path.c_str(), &file) != 0) {
    out.state = errno == EACCES ? SocketFact::State::Denied : SocketFact::State::Missing;
    out.owner = out.group = "-";
    return out;
  }
  out.owner = user_name(file.st_uid);
  out.group = group_name(file.st_gid);
  out.mode = file.st_mode & 07777U;
  out.state = S_ISSOCK(file.st_mode) ? SocketFact::State::Good : SocketFact::State::NotSocket;
  return out;
}

bool worth_dialling(const SocketFact& socket) {
  return socket.state == SocketFact::State::Good || socket.state == SocketFact::State::NotLooked;
}

/// An error of connecting says something of the socket; any other stays.
void refine(SocketFact& socket, std::optional<ClientError>& error) {
  if (!error || socket.state != SocketFact::State::Good) return;
  if (error->kind == ClientErrc::Denied) {
    socket.state = SocketFact::State::Denied;
  } else if (error->kind == ClientErrc::Unreachable) {
    socket.state = SocketFact::State::NobodyListens;
  } else {
    return;
  }
  error.reset();
}

/// kvmid beside this program, else the one in PATH.
std::string kvmid_program() {
  std::error_code error;
  const auto self = std::filesystem::read_symlink("/proc/self/exe", error);
  const auto beside = self.parent_path() / "kvmid";
  return !error && ::access(beside.c_str(), X_OK) == 0 ? beside.string() : "kvmid";
}

ConfigFact check_config(const std::string& file) {
  ConfigFact out;
  out.file = file;
  std::array<int, 2> ends{};
  if (::access(file.c_str(), R_OK) != 0) {
    // A file that was named and is not there is a mistake; one that is not for this user's eyes is not.
    out.checked = errno != EACCES;
    out.text = "cannot open it: " + std::string(std::strerror(errno));
    return out;
  }
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) {
    out.text = std::strerror(errno);
    return out;
  }
  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
  ::posix_spawn_file_actions_adddup2(&actions, ends[1], STDERR_FILENO);
  std::string program = kvmid_program();
  std::string option = "--check-config", path = file;
  std::array<char*, 4> words{program.data(), option.data(), path.data(), nullptr};
  pid_t child = 0;
  const int failed = ::posix_spawnp(&child, program.c_str(), &actions, nullptr, words.data(), environ);
  ::posix_spawn_file_actions_destroy(&actions);
  const client::UniqueFd from(ends[0]);
  ::close(ends[1]);
  if (failed != 0) {
    out.text = "kvmid cannot be started for it: " + std::string(std::strerror(failed));
    return out;
  }
  const auto until = client::deadline_after(kPatience);
  bool ended = false;
  for (std::array<char, 512> buffer{}; out.text.size() < 8192;) {
    pollfd wait{from.get(), POLLIN, 0};
    if (::poll(&wait, 1, client::poll_timeout(until)) <= 0) break;
    const ssize_t n = ::read(from.get(), buffer.data(), buffer.size());
    ended = n <= 0;
    if (ended) break;
    out.text.append(buffer.data(), static_cast<std::size_t>(n));
  }
  if (!ended) ::kill(child, SIGKILL);
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  while (!out.text.empty() && out.text.back() == '\n') out.text.pop_back();
  if (out.text.starts_with(file + ": ")) out.text.erase(0, file.size() + 2);
  out.checked = ended && WIFEXITED(status) && (WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == 2);
  out.good = out.checked && WEXITSTATUS(status) == 0;
  // A secret is not for this user's eyes: that says nothing of the configuration.
  if (out.checked && !out.good && is_secret_denied(out.text)) out.checked = false;
  if (!out.checked && out.text.empty()) out.text = "kvmid --check-config did not come to an end";
  return out;
}

std::optional<ClientError> dial_as_agent(const Arguments& arguments) {
  auto options = connect_options(arguments);
  options.timeout = kPatience;
  auto control = client::AgentClient::connect(options);
  if (control) return {};
  return control.error();
}

/// The guests that are to be looked at, in full.
std::optional<ClientError> ask_for_guests(const Arguments& arguments, std::vector<Json>& out) {
  const auto list = admin_get(arguments.admin_socket, "/v1/guests", kPatience);
  if (!list) return list.error();
  std::vector<Uuid> wanted;
  if (arguments.guest.empty()) {
    for (const auto& guest : guest_names(*list)) wanted.push_back(guest.uuid);
  } else {
    const auto found = client::find_guest(guest_names(*list), arguments.guest);
    if (!found) return found.error();
    wanted.push_back(*found);
  }
  if (wanted.size() > kGuestsMax) wanted.resize(kGuestsMax);
  for (const auto& uuid : wanted) {
    auto guest = admin_get(arguments.admin_socket, "/v1/guests/" + to_string(uuid), kPatience);
    if (guest) {
      out.push_back(std::move(*guest));
    } else if (guest.error().kind != ClientErrc::NoGuest) {  // it may have gone meanwhile
      return guest.error();
    }
  }
  return {};
}

}  // namespace

bool is_secret_denied(const std::string& text) {
  return text.find("/cookie_file: cannot open ") != std::string::npos && text.ends_with(std::strerror(EACCES));
}

DoctorFacts gather(const Arguments& arguments) {
  DoctorFacts out;
  out.now = std::chrono::system_clock::now();
  out.user = user_name(::geteuid());
  out.admin = look_at(arguments.admin_socket);
  out.agent = look_at(arguments.agent_socket);
  const auto beside = std::filesystem::path(arguments.admin_socket).parent_path() / "hypervisor.sock";
  out.hypervisor = look_at(arguments.hypervisor_socket.empty() ? beside.string() : arguments.hypervisor_socket);

  const auto get = [&](const char* target, Json& into) {
    if (out.admin_error) return;
    auto answer = admin_get(arguments.admin_socket, target, kPatience);
    if (answer) {
      into = std::move(*answer);
    } else if (answer.error().code != ErrorCode::NotServed) {  // an older kvmid
      out.admin_error = answer.error();
    }
  };
  if (worth_dialling(out.admin)) {
    get("/v1/status", out.status);
    get("/v1/agents", out.agents);
    get("/v1/policy", out.policy);
    get("/v1/failures", out.failures);
    if (!out.admin_error) out.admin_error = ask_for_guests(arguments, out.guests);
    refine(out.admin, out.admin_error);
  }
  if (worth_dialling(out.agent)) {
    out.agent_error = dial_as_agent(arguments);
    refine(out.agent, out.agent_error);
  }
  std::string config = arguments.file;
  if (config.empty() && child(out.status, "config").is_string())
    config = child(out.status, "config").get<std::string>();
  if (config.empty() && out.status.is_null() && ::access(kDefaultConfig, F_OK) == 0) config = kDefaultConfig;
  if (!config.empty()) out.config = check_config(config);
  return out;
}

int doctor(const Arguments& arguments) {
  const DoctorFacts facts = gather(arguments);
  if (facts.admin_error && facts.admin_error->kind == ClientErrc::NoGuest) return explain(*facts.admin_error);
  const Diagnosis diagnosis = diagnose(facts, arguments.needs);
  const std::string text = arguments.json
                               ? diagnosis_json(diagnosis).dump(2, ' ', false, Json::error_handler_t::replace) + "\n"
                               : render_diagnosis(diagnosis, terminal_width());
  std::fwrite(text.data(), 1, text.size(), stdout);
  return diagnosis.well() ? kOk : kFailed;
}

}  // namespace kvmid::ctl
