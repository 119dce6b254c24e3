// SPDX-License-Identifier: GPL-2.0-or-later
// Guest RAM that the hypervisor of a GuestSession shares: mapping it, reading it for agents, giving it to agents.
#include <spdlog/logger.h>

#include <cerrno>
#include <cstring>

#include "daemon/io/guest_links.h"

namespace kvmid::io {

namespace {

/// Room for `more` bytes at the end of the message that begins at `begin`, the last one.
void grow_message(ByteBuffer& out, std::size_t begin, std::size_t more) {
  kvmi_msg_hdr header;
  std::memcpy(&header, out.data() + begin, sizeof header);
  header.size = static_cast<std::uint16_t>(header.size + more);  // core has seen that it is not over the limit
  std::memcpy(out.data() + begin, &header, sizeof header);
  out.resize(out.size() + more);
}

}  // namespace

/// A guest whose RAM cannot be mapped is served all the same, by messages.
void GuestSession::map_ram(const HypervisorHello& hello, UniqueFd fd) {
  ram_.reset();
  machine_.set_ram(0);
  if ((hello.flags & KVMI_HANDSHAKE_RAM_SHARED) == 0) return;
  if (!fd.valid()) {
    services_.log.warn("guest RAM is not mapped guest={} reason={}", field(hello.name),
                       field("no descriptor came with the handshake"));
    return;
  }
  auto mapped = SharedRam::map(std::move(fd), hello.ram_bytes, machine_.generation());
  if (!mapped) {
    services_.log.warn("guest RAM is not mapped guest={} reason={}", field(hello.name), field(mapped.error().text));
    return;
  }
  ram_ = std::move(*mapped);
  machine_.set_ram(ram_->bytes());
  services_.log.info("guest RAM is mapped guest={} bytes={}", field(hello.name), ram_->bytes());
}

/// Into the outbox at once: what is read is as large as all else of it together, and copying it twice would be seen.
void GuestSession::answer_read(const core::ReadRam& effect) {
  AgentLink* agent = writable(effect.agent);
  if (agent == nullptr) return;
  CommandReply reply{.id = KVMI_MSG_READ_PHYSICAL, .error = ErrorCode::None, .text = {}, .body = {}};
  if (agent->bridge) return answer_tool_read(*agent, effect, reply);
  ByteBuffer& out = agent->connection->outbox().compose();
  const std::size_t begin = out.size();
  reply.body = ReadPhysicalReply{effect.cookie, {}};
  agent->dialect.encode(reply, effect.seq, out);
  const std::size_t data = out.size();
  grow_message(out, begin, effect.bytes);
  const auto read = ram_ ? ram_->read(effect.ranges, std::span(out).subspan(data))
                         : Result<void, shm::Error>(shm::Error{"the hypervisor is gone", 0});
  if (!read) {
    out.resize(begin);
    reply.error = ErrorCode::NoDevice;
    reply.text = "guest RAM cannot be read any more";
    reply.body = {};
    agent->dialect.encode(reply, effect.seq, out);
  }
  queued(*agent);
  if (!read)
    lose_hypervisor(OffReason::ProtocolError, "the guest RAM that it shared is gone: " + read.error().text, true);
}

/// Its frames are made by its bridge, from bytes that are somewhere else.
void GuestSession::answer_tool_read(AgentLink& agent, const core::ReadRam& effect, CommandReply& reply) {
  std::vector<std::byte> data(effect.bytes);
  const auto read = ram_ ? ram_->read(effect.ranges, data)
                         : Result<void, shm::Error>(shm::Error{"the hypervisor is gone", 0});
  if (read) {
    reply.body = ReadPhysicalReply{effect.cookie, data};
  } else {
    reply.error = ErrorCode::NoDevice;
    reply.text = "guest RAM cannot be read any more";
  }
  deliver(agent, reply, effect.seq);
  if (!read)
    lose_hypervisor(OffReason::ProtocolError, "the guest RAM that it shared is gone: " + read.error().text, true);
}

void GuestSession::answer_grant(const core::GrantRam& effect) {
  AgentLink* agent = writable(effect.agent);
  if (agent == nullptr) return;
  CommandReply reply{.id = KVMI_MSG_GRANT_MEMORY, .error = ErrorCode::None, .text = {}, .body = {}};
  std::string text;
  const auto refuse = [&](ErrorCode error, std::string_view why) {
    reply.error = error;
    text = why;
    reply.text = text;
  };
  const std::string_view refusal = ram_ ? ram_->refusal_for(agent->peer) : "the hypervisor is gone";
  if (!refusal.empty()) {
    refuse(!ram_ ? ErrorCode::NoDevice : agent->peer.uid ? ErrorCode::NotPermitted : ErrorCode::NotSupported, refusal);
  } else {
    auto grant = shm::GrantFile::create();
    auto descriptors = grant ? ram_->descriptors(*grant)
                             : Result<std::vector<UniqueFd>, shm::Error>(grant.error());
    if (descriptors) {
      reply.body = GrantMemoryReply{ram_->bytes(), ram_->generation_bytes(),
                                    static_cast<std::uint32_t>(descriptors->size())};
      agent->connection->outbox().attach(std::move(*descriptors));
      agent->ram_grant.emplace(std::move(*grant));  // an older one ends
    } else {
      const int why = descriptors.error().os_error;
      const bool closed_to_us = why == EACCES || why == EPERM;  // it gave one for writing, of a file not ours
      refuse(closed_to_us ? ErrorCode::NotSupported : ErrorCode::NoMemory, descriptors.error().text);
    }
  }
  agent->dialect.encode(reply, effect.seq, agent->connection->outbox().compose());
  queued(*agent);
}

void GuestSession::revoke_ram(AgentId id) {
  if (AgentLink* agent = find(id)) agent->ram_grant.reset();
}

}  // namespace kvmid::io
