// SPDX-License-Identifier: GPL-2.0-or-later
//
// What changes a guest: mem write and crash. Both show what they are about to do and ask, unless they are told not to.

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <optional>
#include <vector>

#include "client/event_text.h"
#include "kvmictl/confirm.h"
#include "kvmictl/guest_commands.h"
#include "kvmictl/pause_holder.h"
#include "kvmictl/render.h"
#include "kvmictl/table.h"

namespace kvmid::ctl {

using namespace kvmid::client;  // NOLINT(google-build-using-namespace): this file is an agent

namespace {

/// Written at a time: the bytes and those they replace travel in one message.
constexpr std::size_t kChunk = 16U << 10U;
constexpr std::size_t kWriteMax = 64U << 20U;
/// Of what a write replaces so much is shown.
constexpr std::size_t kShownMax = 256;
constexpr Millis kOffTimeout{5000};

void print(const std::string& text) { std::fwrite(text.data(), 1, text.size(), stdout); }
void warn(const std::string& text) { std::fprintf(stderr, "kvmictl: %s\n", printable(text).c_str()); }

/// The bytes to write, or nothing after having said why.
std::optional<std::vector<std::byte>> bytes_to_write(const Arguments& arguments) {
  if (arguments.file.empty()) return arguments.data;
  std::ifstream in(arguments.file, std::ios::binary);
  if (!in) {
    warn("cannot open " + arguments.file + ": " + std::strerror(errno));
    return {};
  }
  std::vector<char> text(kWriteMax + 1);
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (in.bad()) {
    warn("cannot read " + arguments.file);
    return {};
  }
  text.resize(static_cast<std::size_t>(in.gcount()));
  if (text.empty() || text.size() > kWriteMax) {
    warn(arguments.file + (text.empty() ? " is empty" : " is larger than 64 MiB"));
    return {};
  }
  const auto bytes = std::as_bytes(std::span(text));
  return std::vector<std::byte>(bytes.begin(), bytes.end());
}

std::string shown(std::uint64_t address, std::span<const std::byte> bytes) {
  std::string text = hex_dump(address, bytes.first(std::min(bytes.size(), kShownMax)));
  if (bytes.size() > kShownMax) text += "... " + std::to_string(bytes.size() - kShownMax) + " bytes more\n";
  return text;
}

/// Writes if the guest still has `expected` there (empty: whatever it has), and nothing was written there since `cookie`.
/// Where the hypervisor cannot compare and write in one step it is compared here just before: better than not at all, and
/// a store in between is lost.
Result<std::uint64_t, ClientError> write_over(AgentClient& client, Gpa gpa, Bytes data, Bytes expected,
                                              std::optional<std::uint64_t> cookie, std::uint64_t& current) {
  WriteOptions options;
  options.expected = expected;
  options.cookie = cookie;
  auto written = client.write_physical(gpa, data, options, &current);
  if (written || expected.empty() || written.error().kind != ClientErrc::Failed ||
      written.error().code != ErrorCode::NotSupported) {
    return written;
  }
  const auto now = client.read_physical(gpa, expected.size());
  if (!now) return now.error();
  if (!std::equal(now->data.begin(), now->data.end(), expected.begin(), expected.end())) {
    return ClientError{ClientErrc::Failed, ErrorCode::Stale, "the bytes are not those that were expected", 0};
  }
  options.expected = {};
  return client.write_physical(gpa, data, options, &current);
}

/// What a write that was based on something stale can be based on next.
void warn_of_stale(const Arguments& arguments, std::uint64_t current) {
  if (arguments.expected.empty() && !arguments.cookie)
    return warn("the guest changed those bytes since they were shown; look again, or --force");
  if (current != 0) warn("look again; the current cookie is " + std::to_string(current));
}

/// What is wrong with the conditions now that all the bytes are known; empty: nothing.
std::string conditions_fault(const Arguments& arguments, std::size_t size) {
  if (!arguments.expected.empty() && arguments.expected.size() != size)
    return "--expect has " + std::to_string(arguments.expected.size()) + " bytes, and " + std::to_string(size) +
           " are to be written";
  // More goes in several messages, and the first of them makes the cookie stale for the others.
  if (arguments.cookie && size > kChunk)
    return "with --cookie at most " + std::to_string(kChunk) + " bytes are written, not " + std::to_string(size);
  return {};
}

}  // namespace

int mem_write(const Arguments& arguments) {
  const auto data = bytes_to_write(arguments);
  if (!data) return kFailed;
  const std::uint64_t address = *arguments.address;
  if (address + (data->size() - 1) < address) {
    warn("the range goes past the end of the address space");
    return kUsage;
  }
  if (const auto fault = conditions_fault(arguments, data->size()); !fault.empty()) {
    warn(fault);
    return kUsage;
  }
  auto attached = AgentClient::attach(connect_options(arguments), arguments.guest);
  if (!attached) return explain(attached.error());
  const auto before = attached->read_physical(Gpa{address}, data->size());
  if (!before) return explain(before.error());
  if (!arguments.json) {
    print("before\n" + shown(address, before->data) + "after\n" + shown(address, *data));
  }
  if (!arguments.yes) {
    const int answer = confirm_or_say("Write " + std::to_string(data->size()) + " bytes at " + hex(address) + " of " +
                                      attached->welcome().guest_name + "?");
    if (answer != kOk) return answer;
  }
  const Bytes wanted = arguments.expected.empty() ? Bytes(before->data) : Bytes(arguments.expected);
  std::uint64_t cookie = 0;
  for (std::size_t done = 0; done < data->size();) {
    const auto chunk = Bytes(*data).subspan(done, std::min(kChunk, data->size() - done));
    const auto expected = arguments.force ? Bytes{} : wanted.subspan(done, chunk.size());
    std::uint64_t current = 0;
    const auto written = write_over(*attached, Gpa{address + done}, chunk, expected, arguments.cookie, current);
    if (!written) {
      if (written.error().code == ErrorCode::Stale) warn_of_stale(arguments, current);
      if (done != 0) warn(std::to_string(done) + " of " + std::to_string(data->size()) + " bytes were written before");
      return explain(written.error());
    }
    cookie = *written;
    done += chunk.size();
  }
  if (arguments.json) {
    print(Json{{"schema", 1},
               {"gpa", hex(address)},
               {"bytes", data->size()},
               {"before", hex_digits(before->data)},
               {"cookie", cookie}}
              .dump() +
          "\n");
  } else {
    print("wrote " + std::to_string(data->size()) + " bytes, cookie " + std::to_string(cookie) + "\n");
  }
  return kOk;
}

int crash(const Arguments& arguments) {
  if (!arguments.yes) {
    const int answer = confirm_or_say("End guest " + arguments.guest + " as if it had crashed?");
    if (answer != kOk) return answer;
  }
  Arguments one = arguments;
  one.vcpu = arguments.vcpu.value_or(0);
  auto holder = PauseHolder::stop(one);
  if (!holder) return explain(holder.error());
  const std::string name = holder->guest().guest_name;
  if (!holder->events().front().event.actions.has(Action::Crash)) {
    (void)holder->release();
    warn("the hypervisor of " + name + " does not take CRASH");
    return kNotSupported;
  }
  if (const auto answered = holder->release(Action::Crash); !answered) return explain(answered.error());
  // The guest's end is what was asked for; a reply alone has no answer.
  const auto gone = holder->client().wait_guest(kOffTimeout);
  if (!gone && gone.error().kind != ClientErrc::Closed) return explain(gone.error());
  const bool ended = !gone || (*gone && std::holds_alternative<GuestGone>(**gone));
  if (!ended) {
    warn("kvmid took CRASH as the answer, and " + name + " has not gone yet; `kvmictl guests` shows it");
    return kTimeout;
  }
  if (arguments.json) {
    print(Json{{"schema", 1}, {"guest", name}, {"state", "crashed"}}.dump() + "\n");
  } else {
    print("crashed " + printable(name) + "\n");
  }
  return kOk;
}

}  // namespace kvmid::ctl
