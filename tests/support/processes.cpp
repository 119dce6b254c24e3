// SPDX-License-Identifier: GPL-2.0-or-later
#include "tests/support/processes.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <span>
#include <utility>

#include "protocol/handshake.h"

namespace kvmid::test {
namespace {

bool is_socket(const std::string& path) {
  struct stat info {};
  return ::stat(path.c_str(), &info) == 0 && S_ISSOCK(info.st_mode);
}

Result<AgentClient, client::ClientError> connect_control(const std::string& agent_socket) {
  client::ConnectOptions options;
  options.socket = agent_socket;
  options.name = "test-probe";
  return AgentClient::connect(options);
}

/// Says hello on the agent socket: proof that somebody serves it, and not a file left behind.
bool serves_agents(const std::string& agent_socket) { return connect_control(agent_socket).has_value(); }

/// An own descriptor of the guest RAM that the process holds, or none. It is made first and gets its size a moment
/// later.
client::UniqueFd find_guest_ram(pid_t pid) {
  const std::filesystem::path folder = "/proc/" + std::to_string(pid) + "/fd";
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(folder, ignored)) {
    const auto target = std::filesystem::read_symlink(entry.path(), ignored).string();
    if (target.starts_with("/memfd:") && target.find("guest RAM") != std::string::npos) {
      client::UniqueFd fd(::open(entry.path().c_str(), O_RDWR | O_CLOEXEC));
      struct stat info {};
      if (fd && ::fstat(fd.get(), &info) == 0 && info.st_size > 0) return fd;
    }
  }
  return {};
}

/// It has ended, and is not collected yet.
bool is_zombie(pid_t pid) {
  std::ifstream in("/proc/" + std::to_string(pid) + "/stat");
  std::string text;
  std::getline(in, text);
  const auto end_of_name = text.rfind(')');
  return end_of_name == std::string::npos || text.compare(end_of_name, 3, ") Z") == 0;
}

std::vector<std::string> guest_arguments(const std::string& socket, const GuestOptions& options) {
  std::vector<std::string> arguments{"--socket", socket,
                                     "--name",   options.name,
                                     "--uuid",   to_string(options.uuid),
                                     "--vcpus",  std::to_string(options.vcpus)};
  arguments.insert(arguments.end(), options.arguments.begin(), options.arguments.end());
  return arguments;
}

}  // namespace

Uuid uuid_of(std::uint8_t number) {
  return Uuid{{0x6a, 0x1f, 0x7e, 0x36, 0x51, 0xc4, 0x4d, 0x0b, 0x9a, 0x2e, 0x3f, 0x00, 0x00, 0x00, 0x00, number}};
}

// ---- Daemon ----

Daemon::Daemon(const RuntimeFolder& folder, DaemonOptions options)
    : folder_(folder), options_(std::move(options)), process_(start()) {
  wait_ready();
}

Process Daemon::start() const {
  std::vector<std::string> arguments{"--runtime-dir", folder_.path().string()};
  if (!options_.config.empty()) {
    arguments.emplace_back("--config");
    arguments.push_back(folder_.write("kvmid.json", options_.config));
  }
  arguments.insert(arguments.end(), options_.arguments.begin(), options_.arguments.end());
  return Process("kvmid", std::move(arguments));
}

void Daemon::wait_ready() {
  const bool ready = wait_until([&] {
    if (!process_.running()) throw TestError("kvmid ended while it was started\n" + process_.tail());
    return is_socket(hypervisor_socket()) && serves_agents(agent_socket());
  });
  if (!ready) throw TestError("kvmid does not come up\n" + process_.tail());
}

void Daemon::restart() {
  process_ = start();
  wait_ready();
}

void Daemon::kill_and_restart() {
  kill();
  restart();
}

// ---- GuestMemory ----

GuestMemory::GuestMemory(pid_t pid) {
  const bool found = wait_until([&] {
    if (is_zombie(pid)) throw TestError("process " + std::to_string(pid) + " ended while it was started");
    fd_ = find_guest_ram(pid);
    return static_cast<bool>(fd_);
  });
  if (!found) throw TestError("process " + std::to_string(pid) + " has no guest RAM");
}

void GuestMemory::read(Gpa gpa, void* out, std::size_t size) const {
  if (::pread(fd_.get(), out, size, static_cast<off_t>(gpa.value)) != static_cast<ssize_t>(size)) {
    throw TestError("cannot read guest RAM at " + std::to_string(gpa.value));
  }
}

void GuestMemory::write(Gpa gpa, const void* data, std::size_t size) const {
  if (::pwrite(fd_.get(), data, size, static_cast<off_t>(gpa.value)) != static_cast<ssize_t>(size)) {
    throw TestError("cannot write guest RAM at " + std::to_string(gpa.value));
  }
}

std::uint64_t GuestMemory::read_u64(Gpa gpa) const {
  std::uint64_t value = 0;
  read(gpa, &value, sizeof value);
  return value;
}

// ---- Guest ----

Guest::Guest(const RuntimeFolder& folder, GuestOptions options)
    : socket_(folder.file("hypervisor.sock")),
      agent_socket_(folder.file("agent.sock")),
      options_(std::move(options)),
      process_("kvmi-emu", guest_arguments(socket_, options_)),
      memory_(process_.pid()) {
  for (unsigned vcpu = 0; vcpu < options_.vcpus; ++vcpu) {
    const bool booted = wait_until([&] {
      if (!process_.running()) throw TestError("kvmi-emu ended while it was started\n" + process_.tail());
      return mailbox(vcpu).magic == emulated::kMailboxMagic;
    });
    if (!booted) throw TestError("vCPU " + std::to_string(vcpu) + " does not come up\n" + process_.tail());
    do_times(options_.mode, 2, vcpu);  // until then it does a bit of everything
  }
}

std::string Guest::uuid_text() const { return to_string(options_.uuid); }

Guest& Guest::wait_online() {
  if (!wait_until([&] { return is_online(agent_socket_, options_.uuid); })) {
    throw TestError("kvmid does not list guest " + options_.name + " as online\n" + process_.tail());
  }
  return *this;
}

Mailbox Guest::mailbox(unsigned vcpu) const {
  Mailbox box;
  memory_.read(emulated::mailbox_gpa(VcpuId{static_cast<std::uint16_t>(vcpu)}), &box, sizeof box);
  return box;
}

std::uint64_t Guest::done(GuestMode mode, unsigned vcpu) const {
  return mailbox(vcpu).done.at(static_cast<std::size_t>(mode));
}

void Guest::set_mode(GuestMode mode, unsigned vcpu) const {
  set_field(offsetof(Mailbox, mode), static_cast<std::uint64_t>(mode), vcpu);
}

void Guest::set_field(std::size_t offset, std::uint64_t value, unsigned vcpu) const {
  memory_.write(emulated::mailbox_field(VcpuId{static_cast<std::uint16_t>(vcpu)}, offset), &value, sizeof value);
}

void Guest::wait_rounds(std::uint64_t more, unsigned vcpu, Millis bound) const {
  const std::uint64_t target = rounds(vcpu) + more;
  if (!wait_until([&] { return rounds(vcpu) >= target; }, bound)) {
    throw TestError("vCPU " + std::to_string(vcpu) + " of " + options_.name + " does not go on\n" + process_.tail());
  }
}

void Guest::do_times(GuestMode mode, std::uint64_t times, unsigned vcpu, Millis bound) const {
  set_mode(mode, vcpu);
  const std::uint64_t target = done(mode, vcpu) + times;
  if (!wait_until([&] { return done(mode, vcpu) >= target; }, bound)) {
    throw TestError("vCPU " + std::to_string(vcpu) + " of " + options_.name + " does not finish what it was told\n" +
                    process_.tail());
  }
}

void Guest::hammer(std::uint64_t calls) const {
  for (unsigned vcpu = 0; vcpu < options_.vcpus; ++vcpu) {
    set_field(offsetof(Mailbox, arg_hammer_calls), mailbox(vcpu).arg_hammer_calls + calls, vcpu);
    set_mode(GuestMode::Hammer, vcpu);
  }
}

bool Guest::hammered() const {
  for (unsigned vcpu = 0; vcpu < options_.vcpus; ++vcpu) {
    const Mailbox box = mailbox(vcpu);
    if (box.hammer_calls < box.arg_hammer_calls) return false;
  }
  return true;
}

void Guest::wait_hammered(Millis bound) const {
  if (!wait_until([&] { return hammered(); }, bound)) {
    throw TestError("the vCPUs of " + options_.name + " do not finish their calls\n" + process_.tail());
  }
}

bool is_online(const std::string& agent_socket, const Uuid& guest) {
  auto control = connect_control(agent_socket);
  if (!control) return false;
  const auto guests = control->list_guests();
  return guests && std::ranges::any_of(*guests, [&](const auto& entry) { return entry.uuid == guest && !entry.away; });
}

// ---- an agent in the test itself ----

AgentClient attach(const std::string& agent_socket, const Uuid& guest, std::string name, bool outcomes) {
  client::ConnectOptions options;
  options.socket = agent_socket;
  options.name = std::move(name);
  options.guest = guest;
  options.outcomes = outcomes;
  options.timeout = kBound;
  return check(AgentClient::connect(options));
}

std::uint64_t read_mailbox(AgentClient& agent, unsigned vcpu, std::size_t offset) {
  const auto memory = check(agent.read_physical(
      emulated::mailbox_field(VcpuId{static_cast<std::uint16_t>(vcpu)}, offset), sizeof(std::uint64_t)));
  std::uint64_t value = 0;
  std::memcpy(&value, memory.data.data(), sizeof value);
  return value;
}

void write_mailbox(AgentClient& agent, unsigned vcpu, std::size_t offset, std::uint64_t value) {
  check(agent.write_physical(emulated::mailbox_field(VcpuId{static_cast<std::uint16_t>(vcpu)}, offset),
                             std::as_bytes(std::span(&value, 1))));
}

}  // namespace kvmid::test
