// SPDX-License-Identifier: GPL-2.0-or-later
//
// test-agent: an agent in a process of its own that behaves well or badly, as its options say. What it gets it prints
// as one JSON object a line, flushed line by line, for tests to read.

#include <poll.h>
#include <sys/socket.h>

#include <CLI/CLI.hpp>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <map>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <variant>
#include <vector>

#include "client/agent_client.h"
#include "client/event_text.h"
#include "protocol/handshake.h"

using namespace kvmid;
using namespace kvmid::client;

namespace {

struct Protected {
  Gpa gpa;
  std::uint8_t rights = 0;
};

struct Options {
  ConnectOptions connect;
  std::string guest;
  std::string events;
  std::vector<unsigned> crs;
  std::vector<std::uint32_t> msrs;
  std::vector<std::string> pages;
  Role role = Role::Decider;
  Action action = Action::Allow;
  std::optional<std::uint64_t> value;
  std::uint64_t delay_ms = 0;
  std::optional<std::uint64_t> silent_after;
  bool flood = false;
  bool garbage = false;
};

void print(const std::string& fields) {
  std::printf("{%s}\n", fields.c_str());
  std::fflush(stdout);
}

int failed(const char* what, const ClientError& error) {
  print("\"type\":\"failed\",\"what\":" + json_string(what) + ",\"error\":" + json_string(name_of(error.code)) +
        ",\"text\":" + json_string(error.text));
  return 1;
}

/// "0x20000:r-x"
Protected parse_protected(const std::string& text) {
  const auto colon = text.find(':');
  if (colon == std::string::npos) throw CLI::ValidationError("--protect", "\"" + text + "\" is not GPA:rights");
  Protected page{Gpa{std::stoull(text.substr(0, colon), nullptr, 0)}};
  for (const char c : text.substr(colon + 1)) {
    if (c == 'r') page.rights |= KVMI_PAGE_ACCESS_R;
    if (c == 'w') page.rights |= KVMI_PAGE_ACCESS_W;
    if (c == 'x') page.rights |= KVMI_PAGE_ACCESS_X;
  }
  return page;
}

/// Writes all of it past the client library, waiting where the socket is full. False: kvmid closed the connection.
bool write_all(int fd, const void* data, std::size_t size) {
  const auto* at = static_cast<const char*>(data);
  while (size != 0) {
    const ssize_t done = ::send(fd, at, size, MSG_NOSIGNAL);
    if (done > 0) {
      at += done;
      size -= static_cast<std::size_t>(done);
    } else if (done < 0 && errno == EAGAIN) {
      pollfd polled{fd, POLLOUT, 0};
      ::poll(&polled, 1, -1);
      if ((polled.revents & (POLLERR | POLLHUP)) != 0) return false;
    } else if (done < 0 && errno != EINTR) {
      return false;
    }
  }
  return true;
}

/// Commands without end whose replies nobody reads. Returns when kvmid has closed the connection.
void flood(int fd) {
  struct Message {
    kvmi_msg_hdr header{KVMI_MSG_READ_PHYSICAL, sizeof(kvmi_read_physical) + sizeof(kvmi_read_range), 0};
    kvmi_read_physical read{1, KVMI_ADDRESS_SPACE_NORMAL, 0};
    kvmi_read_range range{0x10000, 32768, 0};
  };
  std::array<Message, 64> messages{};
  std::uint32_t seq = 1U << 30U;
  for (;;) {
    for (auto& message : messages) message.header.seq = seq++;
    if (!write_all(fd, messages.data(), sizeof messages)) return;
  }
}

/// Bytes that are no messages: a size that no message has, then noise. Returns when kvmid has closed the connection.
void garbage(int fd) {
  std::mt19937 random(4711);  // NOLINT(cert-msc51-cpp): the same bytes in every run
  std::array<std::uint32_t, 1024> noise{};
  for (;;) {
    for (auto& word : noise) word = static_cast<std::uint32_t>(random());
    noise.front() = 0xffffffff;
    if (!write_all(fd, noise.data(), sizeof noise)) return;
  }
}

Result<void, ClientError> set_up(AgentClient& client, const Options& options) {
  for (const unsigned cr : options.crs) {
    if (auto done = client.control_cr(kAllVcpus, cr, true); !done) return done;
  }
  for (const std::uint32_t msr : options.msrs) {
    if (auto done = client.control_msr(kAllVcpus, msr, true); !done) return done;
  }
  if (!options.events.empty()) {
    const auto events = event_set_by_names(options.events);
    if (!events) return events.error();
    if (auto done = client.subscribe(*events, options.role); !done) return done.error();
  }
  for (const auto& text : options.pages) {
    const Protected page = parse_protected(text);
    if (auto done = client.set_page_access(page.gpa, 1, page.rights); !done) return done;
  }
  return {};
}

class Agent {
 public:
  Agent(const Options& options, AgentClient client) : options_(options), client_(std::move(client)) {}

  int run() {
    if (auto done = set_up(client_, options_); !done) return failed("setting up", done.error());
    print("\"type\":\"ready\",\"agent\":" + std::to_string(client_.welcome().agent.value) +
          ",\"guest\":" + json_string(to_string(client_.welcome().guest)));
    for (;;) {
      const auto message = client_.next_message(kNoLimit);
      if (!message) return closed(message.error());
      if (!*message) continue;
      if (const auto* event = std::get_if<ReceivedEvent>(&**message)) {
        print(json_fields(*event) + ",\"guest\":" + json_string(to_string(client_.welcome().guest)));
        if (event->event.decide) {
          if (auto done = answer(*event); !done) return closed(done.error());
        }
      } else if (const auto* notice = std::get_if<ReceivedNotice>(&**message)) {
        print(json_fields(*notice));
      } else if (const auto* guest = std::get_if<GuestEntry>(&**message)) {
        print(json_fields(*guest));
      } else {
        print(json_fields(std::get<GuestGone>(**message)));
      }
    }
  }

 private:
  static int closed(const ClientError& error) {
    print("\"type\":\"closed\",\"text\":" + json_string(error.text));
    return 0;
  }

  Result<void, ClientError> answer(const ReceivedEvent& event) {
    if (options_.flood) {
      flood(client_.fd());
      return ClientError{ClientErrc::Closed, ErrorCode::None, "kvmid closed the connection during the flood"};
    }
    if (options_.garbage) {
      garbage(client_.fd());
      return ClientError{ClientErrc::Closed, ErrorCode::None, "kvmid closed the connection during the garbage"};
    }
    if (options_.silent_after && answered_ >= *options_.silent_after) return {};
    if (options_.delay_ms != 0) std::this_thread::sleep_for(Millis{options_.delay_ms});
    ReplacedValue value;
    const EventKind kind = event.event.kind();
    if (options_.value && (kind == EventKind::Cr || kind == EventKind::Msr)) value = NewValue{*options_.value};
    ++answered_;
    return client_.reply(event, options_.action, value);
  }

  const Options& options_;
  AgentClient client_;
  std::uint64_t answered_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
  Options options;
  options.connect.name = "test-agent";
  options.connect.timeout = Millis{30000};
  CLI::App app{"test-agent: an agent for integration tests; well-behaved, or not, as its options say"};
  const std::map<std::string, Role> roles{{"decider", Role::Decider}, {"observer", Role::Observer}};
  const std::map<std::string, Action> actions{
      {"allow", Action::Allow}, {"retry", Action::Retry}, {"skip", Action::Skip}, {"crash", Action::Crash}};
  app.add_option("--socket", options.connect.socket, "kvmid's agent socket")->required();
  app.add_option("--guest", options.guest, "uuid, name, or a beginning of the uuid")->required();
  app.add_option("--name", options.connect.name, "name of this agent");
  app.add_option("--events", options.events, "kinds of events, with commas");
  app.add_option("--cr", options.crs, "control registers")->delimiter(',');
  app.add_option("--msr", options.msrs, "MSRs")->delimiter(',');
  app.add_option("--protect", options.pages, "GPA:rights, such as 0x20000:r-x");
  app.add_option("--role", options.role)->transform(CLI::CheckedTransformer(roles));
  app.add_option("--action", options.action)->transform(CLI::CheckedTransformer(actions));
  app.add_option("--value", options.value, "new value in replies to cr and msr events");
  app.add_option("--delay-ms", options.delay_ms, "time before each reply");
  app.add_option("--silent-after", options.silent_after, "reply to so many events, and to no other");
  app.add_flag("--flood", options.flood, "at the first event owed: commands without end, no reply is read");
  app.add_flag("--garbage", options.garbage, "at the first event owed: bytes that are no messages");
  app.add_flag("--outcomes", options.connect.outcomes, "ask for OUTCOME notices");
  try {
    app.parse(argc, argv);
    auto client = AgentClient::attach(options.connect, options.guest);
    if (!client) return failed("attaching", client.error());
    return Agent(options, std::move(*client)).run();
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
}
