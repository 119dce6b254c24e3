// SPDX-License-Identifier: GPL-2.0-or-later
#include "daemon/io/welcome.h"

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <limits>

namespace kvmid::io {
namespace {

kvmi_welcome empty_welcome() {
  kvmi_welcome welcome{};
  welcome.struct_size = sizeof welcome;
  welcome.magic = KVMI_HELLO_MAGIC;
  welcome.version = KVMI_VERSION;
  welcome.max_payload = KVMI_MAX_PAYLOAD;
  return welcome;
}

}  // namespace

kvmi_welcome welcome_from(AgentId id, const core::Grant& grant) {
  kvmi_welcome welcome = empty_welcome();
  welcome.agent = id.value;
  welcome.requests_max = grant.quota.requests_max;
  welcome.queue_bytes_max = grant.quota.queue_bytes_max;
  const auto deadline = std::chrono::duration_cast<std::chrono::microseconds>(grant.deadline).count();
  welcome.deadline_us = static_cast<std::uint32_t>(
      std::clamp<std::int64_t>(deadline, 0, std::numeric_limits<std::uint32_t>::max()));
  welcome.priority = grant.priority;
  welcome.role = static_cast<std::uint8_t>(grant.role);
  welcome.default_action = static_cast<std::uint8_t>(grant.default_action);
  return welcome;
}

kvmi_welcome refusal(ErrorCode error, std::string_view text) {
  kvmi_welcome welcome = empty_welcome();
  welcome.status = -static_cast<std::int32_t>(error);
  copy_text(text, welcome.text, sizeof welcome.text);
  return welcome;
}

bool send_first(int fd, Bytes bytes) {
  for (;;) {
    const auto n = ::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n >= 0) return static_cast<std::size_t>(n) == bytes.size();
    if (errno != EINTR) return false;
  }
}

void refuse_agent(int fd, ErrorCode error, std::string_view text) {
  ByteBuffer bytes;
  encode(refusal(error, text), bytes);
  send_first(fd, bytes);  // a peer that is gone needs no refusal
}

bool answer_hypervisor(int fd, const HypervisorAnswer& answer) {
  ByteBuffer bytes;
  encode(answer, bytes);
  return send_first(fd, bytes);
}

}  // namespace kvmid::io
