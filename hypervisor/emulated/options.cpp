// SPDX-License-Identifier: GPL-2.0-or-later
#include "hypervisor/emulated/options.h"

#include <sys/random.h>

#include <CLI/CLI.hpp>
#include <fstream>
#include <iostream>
#include <iterator>
#include <limits>
#include <map>

#include <openssl/evp.h>

#include "protocol/handshake.h"

namespace kvmid::emulated {

namespace {

constexpr const char* kFooter = R"(
The guest runs with or without kvmid: it is dialled again (after 100 ms, growing to 2 s) until it answers, and when it
goes away every hook is dropped and the guest runs on. Without --socket and --vsock nobody watches the guest.

What the guest does is chosen by a word in its RAM and what it saw can be read there: the mailbox, at guest physical
address 0x10000 + 0x1000 * vCPU (hypervisor/emulated/GUEST.md, mailbox.h).

Signals:    SIGUSR1 prints the state as one line of JSON on standard error; SIGTERM and SIGINT end the program.
            SIGUSR2 lets the guest go for a while: kvmid is told (UNHOOK, with --leave-reason) and takes its hooks back,
            the connection is closed, the guest is held for --leave-ms, and then kvmid is dialled again.
Exit codes: 0 ended by a signal, --exit-after-ms, or SHUTDOWN_GUEST    1 could not start    2 wrong options
            3 an agent answered CRASH                  4 the guest died (triple fault, no RAM there)
            5 the emulator could not go on

Examples:
  kvmi-emu --socket /run/kvmid/hypervisor.sock --name web1
  kvmi-emu --vsock 2:1234 --vcpus 4 --memory 64 --period-us 100000
  kvmi-emu --socket /run/kvmid/hypervisor.sock --dialect v7 --cookie-file key)";

Uuid random_uuid() {
  Uuid uuid;
  if (::getrandom(uuid.bytes.data(), uuid.bytes.size(), 0) != static_cast<ssize_t>(uuid.bytes.size())) std::abort();
  uuid.bytes[6] = static_cast<std::uint8_t>((uuid.bytes[6] & 0x0f) | 0x40);
  uuid.bytes[8] = static_cast<std::uint8_t>((uuid.bytes[8] & 0x3f) | 0x80);
  return uuid;
}

/// The SHA-1 of what the file holds, as QEMU and kvmid take it: one trailing newline is not part of the secret. This is a
/// program for tests and development: it does not look at whose file it is.
Result<std::array<std::uint8_t, 20>, std::string> hash_of_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::string secret{std::istreambuf_iterator<char>(in), {}};
  if (!in.is_open() || in.bad()) return "cannot read \"" + path + "\"";
  if (secret.ends_with('\n')) secret.pop_back();
  if (secret.empty()) return "\"" + path + "\" is empty: there is no secret in it";
  std::array<std::uint8_t, 20> hash{};
  unsigned written = 0;
  if (EVP_Digest(secret.data(), secret.size(), hash.data(), &written, EVP_sha1(), nullptr) != 1 ||
      written != hash.size()) {
    return std::string("the system's OpenSSL does not offer SHA-1");
  }
  return hash;
}

}  // namespace

std::variant<Options, int> parse_options(int argc, char** argv) {
  CLI::App app{"kvmi-emu: a small emulated guest with KVM introspection, for tests, demonstrations and development.\n"
               "It needs no privilege and no device.",
               "kvmi-emu"};
  app.footer(kFooter);
  app.set_version_flag("--version", std::string("kvmi-emu, KVMI ") + std::to_string(KVMI_VERSION));

  std::string socket, vsock, uuid, image;
  Options options;
  std::uint64_t memory_mib = 16;
  std::uint64_t period_us = 1000;
  std::uint64_t exit_after_ms = 0;
  auto* socket_option = app.add_option("--socket", socket, "kvmid's hypervisor socket (unix)")->type_name("PATH");
  app.add_option("--vsock", vsock, "kvmid's hypervisor socket (vsock); RAM is not shared then")
      ->type_name("CID:PORT")
      ->excludes(socket_option);
  std::string dialect = "kvmi2", cookie_file;
  app.add_option("--dialect", dialect,
                 "kvmi2; or what patched KVM hosts speak: v7, v12, v6, rfc2017 (the draft). Those share no RAM, have no\n"
                 "patches, and tell nobody of changes of the memory map")
      ->check([](const std::string& word) {
        return word == "kvmi2" || kvmi1::dialect_named(word)
                   ? std::string()
                   : "\"" + word + "\" is not kvmi2, v7, v12, v6 or rfc2017";
      })
      ->type_name("DIALECT")
      ->capture_default_str();
  app.add_option("--cookie-file", cookie_file,
                 "a file with the secret that kvmid has to know, as QEMU's key; kvmid sends its SHA-1. Not with kvmi2")
      ->type_name("FILE");
  app.add_option("--name", options.machine.name, "the guest's name, at most 63 characters")->capture_default_str();
  app.add_option("--uuid", uuid, "the guest's UUID; a random one if not given")->type_name("UUID");
  app.add_option("--start-time", options.machine.start_time,
                 "when the guest was started, in seconds since 1970; now if not given. The same UUID with another start\n"
                 "is another guest: kvmid lets the agents of the one before go")
      ->check(CLI::Range(std::int64_t{1}, std::numeric_limits<std::int64_t>::max()))
      ->type_name("SECONDS");
  app.add_option("--vcpus", options.machine.vcpu_count, "virtual processors, in turn on one thread")
      ->check(CLI::Range(1, static_cast<int>(kVcpusMax)))
      ->capture_default_str();
  app.add_option("--memory", memory_mib, "guest RAM in MiB")
      ->check(CLI::Range(std::uint64_t{4}, std::uint64_t{65536}))
      ->capture_default_str();
  bool keep_ram = false;
  app.add_flag("--no-share-ram", keep_ram, "kvmid gets no descriptor of guest RAM: reads go through messages");
  app.add_option("--image", image, "a flat binary to run in place of the built-in test guest")->type_name("FILE");
  app.add_option("--slice", options.machine.slice, "instructions a vCPU executes before the next one's turn")
      ->check(CLI::Range(std::uint64_t{1}, std::uint64_t{1000000000}))
      ->capture_default_str();
  app.add_option("--period-us", period_us,
                 "how long the guest's HLT rests; the test guest halts after each round. 0: not at all, "
                 "a core is used up")
      ->check(CLI::Range(std::uint64_t{0}, std::uint64_t{3600000000}))
      ->capture_default_str();
  auto* exit_option = app.add_option("--exit-after-ms", exit_after_ms, "end after this time")
      ->check(CLI::Range(std::uint64_t{1}, std::uint64_t{86400000}));
  const std::map<std::string, OffReason> reasons = {{"suspend", OffReason::Suspend},
                                                    {"migration", OffReason::Migration},
                                                    {"snapshot", OffReason::Snapshot}};
  std::string leave_reason = "suspend";
  app.add_option("--leave-reason", leave_reason, "what kvmid is told at SIGUSR2: suspend, migration or snapshot")
      ->check([&](const std::string& word) {
        return reasons.count(word) != 0 ? std::string() : "\"" + word + "\" is not suspend, migration or snapshot";
      })
      ->type_name("REASON")
      ->capture_default_str();
  std::uint64_t leave_ms = 1000;
  app.add_option("--leave-ms", leave_ms, "how long the guest is held after SIGUSR2")
      ->check(CLI::Range(std::uint64_t{0}, std::uint64_t{86400000}))
      ->capture_default_str();
  app.add_flag("--stay", options.stay, "do not exit when the guest stops for good: wait for a signal, unconnected");
  app.add_flag("--quiet", options.quiet, "no lines about connections");

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? static_cast<int>(kExitOk) : static_cast<int>(kExitUsage);
  }
  const auto refuse = [](const std::string& text) {
    std::cerr << "kvmi-emu: " << text << "\nRun with --help for more information.\n";
    return static_cast<int>(kExitUsage);
  };
  if (!socket.empty()) {
    auto address = hypervisor::unix_address(socket);
    if (!address) return refuse("--socket: " + address.error().text);
    options.address = *address;
  } else if (!vsock.empty()) {
    auto address = hypervisor::vsock_address(vsock);
    if (!address) return refuse("--vsock: " + address.error().text);
    options.address = *address;
  }
  options.link.older = kvmi1::dialect_named(dialect);
  if (!cookie_file.empty()) {
    if (!options.link.older) return refuse("--cookie-file: KVMI 2 has no secret; it is for --dialect v7, v12, v6, rfc2017");
    const auto hash = hash_of_file(cookie_file);
    if (!hash) return refuse("--cookie-file: " + hash.error());
    options.link.cookie = *hash;
  }
  if (uuid.empty()) {
    options.machine.uuid = random_uuid();
  } else if (const auto parsed = parse_uuid(uuid); parsed && !parsed->is_zero()) {
    options.machine.uuid = *parsed;
  } else {
    return refuse("--uuid: \"" + uuid + "\" is no UUID such as 6a1f7e36-0000-4000-8000-000000000001");
  }
  for (const char c : options.machine.name) {
    if (c < ' ' || c > '~') return refuse("--name: only printable ASCII");
  }
  if (options.machine.name.empty() || options.machine.name.size() >= KVMI_NAME_MAX) {
    return refuse("--name: 1 to 63 characters");
  }
  options.machine.share_ram = !keep_ram;
  options.machine.memory_bytes = memory_mib << 20;
  options.machine.period = std::chrono::microseconds(period_us);
  options.leave_reason = reasons.at(leave_reason);
  options.leave_time = std::chrono::milliseconds(leave_ms);
  if (exit_option->count() > 0) options.exit_after = std::chrono::milliseconds(exit_after_ms);
  if (!image.empty()) options.image_path = image;
  return options;
}

}  // namespace kvmid::emulated
