// SPDX-License-Identifier: GPL-2.0-or-later
// Guest RAM that the hypervisor of a GuestSession shares: mapping it, reading it for agents, giving it to agents.
#include <spdlog/logger.h>

#include "daemon/io/guest_links.h"

namespace kvmid::io {

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

void GuestSession::answer_read(const core::ReadRam& effect) {
  AgentLink* agent = writable(effect.agent);
  if (agent == nullptr) return;
  CommandReply reply{.id = KVMI_MSG_READ_PHYSICAL, .error = ErrorCode::None, .text = {}, .body = {}};
  ram_scratch_.resize(effect.bytes);
  const auto read = ram_ ? ram_->read(effect.ranges, ram_scratch_)
                         : Result<void, shm::Error>(shm::Error{"the hypervisor is gone", 0});
  if (read) {
    reply.body = ReadPhysicalReply{effect.cookie, ram_scratch_};
  } else {
    reply.error = ErrorCode::NoDevice;
    reply.text = "guest RAM cannot be read any more";
  }
  agent->dialect.encode(reply, effect.seq, agent->connection->outbox().compose());
  queued(*agent);
  if (!read) lose_hypervisor(OffReason::ProtocolError, "the guest RAM that it shared is gone: " + read.error().text, true);
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
      refuse(ErrorCode::NoMemory, descriptors.error().text);
    }
  }
  agent->dialect.encode(reply, effect.seq, agent->connection->outbox().compose());
  queued(*agent);
}

void GuestSession::revoke_ram(AgentId id) {
  if (AgentLink* agent = find(id)) agent->ram_grant.reset();
}

}  // namespace kvmid::io
