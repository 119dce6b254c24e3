// SPDX-License-Identifier: LGPL-2.1-or-later
//
// AgentClient's way in: finding the guest, connecting, hello and welcome.

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <system_error>
#include <utility>

#include "client/agent_client.h"
#include "protocol/handshake.h"

namespace kvmid::client {
namespace {

ClientError bad_argument(std::string text) {
  return ClientError{ClientErrc::BadArgument, ErrorCode::Invalid, std::move(text)};
}

}  // namespace

AgentClient::AgentClient(UniqueFd fd, const ConnectOptions& options)
    : fd_(std::move(fd)), timeout_(options.timeout), messages_max_(std::max<std::size_t>(options.messages_max, 1)) {}

Result<AgentClient, ClientError> AgentClient::connect(const ConnectOptions& options) {
  auto fd = connect_stream(options.socket, deadline_after(options.timeout));
  if (!fd) return fd.error();
  return adopt(std::move(*fd), options);
}

Result<AgentClient, ClientError> AgentClient::attach(ConnectOptions options, std::string_view guest) {
  if (const auto uuid = parse_uuid(guest)) {
    options.guest = *uuid;
    return connect(options);
  }
  ConnectOptions control_options = options;
  control_options.guest = Uuid{};
  control_options.outcomes = false;
  auto control = connect(control_options);
  if (!control) return control.error();
  const auto guests = control->list_guests();
  if (!guests) return guests.error();
  std::vector<GuestName> names;
  names.reserve(guests->size());
  for (const auto& entry : *guests) names.push_back({entry.uuid, entry.name});
  const auto found = find_guest(names, guest);
  if (!found) return found.error();
  options.guest = *found;
  return connect(options);
}

Result<AgentClient, ClientError> AgentClient::adopt(UniqueFd fd, const ConnectOptions& options) {
  if (!fd) return bad_argument("the descriptor is not open");
  const int flags = ::fcntl(fd.get(), F_GETFL);
  if (flags < 0 || ::fcntl(fd.get(), F_SETFL, flags | O_NONBLOCK) < 0) {
    return ClientError{ClientErrc::System, ErrorCode::None,
                       "cannot make the descriptor non-blocking: " + std::generic_category().message(errno), errno};
  }
  AgentClient client(std::move(fd), options);
  if (auto done = client.handshake(options); !done) return done.error();
  return client;
}

Result<void, ClientError> AgentClient::handshake(const ConnectOptions& options) {
  const auto printable = [](char c) { return c >= 0x20 && c < 0x7f; };
  if (options.name.empty() || options.name.size() >= KVMI_NAME_MAX ||
      !std::all_of(options.name.begin(), options.name.end(), printable)) {
    return bad_argument("\"" + options.name + "\" is no name for an agent: 1 to 63 printable ASCII characters");
  }
  const auto until = deadline_after(timeout_);
  AgentHello hello;
  hello.uuid = options.guest;
  hello.name = options.name;
  hello.flags = options.outcomes ? std::uint32_t{KVMI_HELLO_OUTCOMES} : 0U;
  encode(hello, out_);

  ByteBuffer received;
  std::size_t needed = sizeof(std::uint32_t);  // never read past the welcome: what follows belongs to the parser
  for (;;) {
    write_some();
    while (received.size() < needed) {
      const std::size_t before = received.size();
      received.resize(needed);
      const ssize_t n = ::recv(fd_.get(), received.data() + before, needed - before, MSG_DONTWAIT);
      const int error = errno;
      received.resize(before + static_cast<std::size_t>(std::max<ssize_t>(n, 0)));
      if (n > 0) continue;
      if (n < 0 && error == EINTR) continue;
      if (n < 0 && (error == EAGAIN || error == EWOULDBLOCK)) break;
      fail(ClientErrc::Closed,
           n == 0 ? "kvmid closed the connection before it said welcome"
                  : "the connection broke before the welcome: " + std::generic_category().message(error));
      return lost();
    }
    if (received.size() == needed) {
      const auto size = first_struct_size(received);
      if (!size) {
        fail(ClientErrc::Protocol, "kvmid's welcome cannot be read: " + describe(size.error()));
        return lost();
      }
      if (size->has_value() && **size <= needed) break;
      needed = size->value_or(static_cast<std::uint32_t>(needed));
      continue;
    }
    pollfd wait{fd_.get(), static_cast<short>(POLLIN | (out_begin_ < out_.size() ? POLLOUT : 0)), 0};
    const int ready = ::poll(&wait, 1, poll_timeout(until));
    if (ready < 0 && errno != EINTR) {
      fail(ClientErrc::System, "poll failed: " + std::generic_category().message(errno), errno);
      return lost();
    }
    if (ready == 0 && poll_timeout(until) == 0) {
      return ClientError{ClientErrc::TimedOut, ErrorCode::None, "kvmid did not say welcome in time"};
    }
  }

  const auto welcome = parse_welcome(received);
  if (!welcome) {
    fail(ClientErrc::Protocol, "kvmid's welcome cannot be read: " + describe(welcome.error()));
    return lost();
  }
  if (welcome->status != 0) {
    const std::string_view text = text_of(welcome->text, sizeof welcome->text);
    close();
    // INT_MIN has no positive counterpart, and a positive status is no number of ours; both are still refusals.
    const int code = welcome->status == INT_MIN ? INT_MAX : std::abs(welcome->status);
    return ClientError{ClientErrc::Refused, static_cast<ErrorCode>(code),
                       text.empty() ? std::string("kvmid refused and gave no reason") : std::string(text)};
  }
  welcome_.agent = AgentId{welcome->agent};
  std::memcpy(welcome_.guest.bytes.data(), welcome->uuid, sizeof welcome->uuid);
  welcome_.guest_name = text_of(welcome->guest_name, sizeof welcome->guest_name);
  welcome_.vcpu_count = welcome->vcpu_count;
  welcome_.max_payload = welcome->max_payload;
  welcome_.requests_max = welcome->requests_max;
  welcome_.queue_bytes_max = welcome->queue_bytes_max;
  welcome_.deadline = std::chrono::microseconds{welcome->deadline_us};
  welcome_.priority = welcome->priority;
  welcome_.commands = CommandSet{welcome->commands};
  welcome_.events = EventSet{welcome->events};
  welcome_.role = welcome->role == KVMI_ROLE_OBSERVER ? Role::Observer : Role::Decider;
  welcome_.default_action =
      welcome->default_action < kActionCount ? static_cast<Action>(welcome->default_action) : Action::Allow;
  return {};
}

}  // namespace kvmid::client
