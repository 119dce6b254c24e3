// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Reads of guest memory that take more than one message: scattered ranges, and guest virtual addresses. Requests leave
// together and their replies are taken in order, as many at a time as kvmid lets one agent have open, and as it keeps
// unread bytes for one.

#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>
#include <deque>
#include <utility>

#include "client/agent_client.h"

namespace kvmid::client {
namespace {

/// Room for what stands before the bytes in a reply.
constexpr std::size_t kReplyOverhead = sizeof(kvmi_error) + sizeof(kvmi_read_physical_reply);

ClientError bad_argument(std::string text) {
  return ClientError{ClientErrc::BadArgument, ErrorCode::Invalid, std::move(text)};
}

ClientError failed(const OwnedReply& reply, CommandId id) {
  std::string text = std::string(name_of(id)) + " failed: " + std::string(name_of(reply.error()));
  if (!reply.text().empty()) text += " (" + std::string(reply.text()) + ")";
  return ClientError{ClientErrc::Failed, reply.error(), std::move(text)};
}

ClientError odd_reply(CommandId id, std::string_view what) {
  return ClientError{ClientErrc::Protocol, ErrorCode::None,
                     "kvmid's reply to " + std::string(name_of(id)) + " " + std::string(what)};
}

std::string hex(std::uint64_t value) {
  std::array<char, 16> digits{};
  const auto end = std::to_chars(digits.data(), digits.data() + digits.size(), value, 16).ptr;
  return "0x" + std::string(digits.data(), end);
}

std::size_t payload_max(const Welcome& welcome) {
  return welcome.max_payload == 0 ? KVMI_MAX_PAYLOAD : std::min<std::size_t>(welcome.max_payload, KVMI_MAX_PAYLOAD);
}

/// How many commands may be open at once, of which each reply has at most `reply_bytes`.
std::size_t window(const AgentClient& client, std::size_t reply_bytes) {
  const Welcome& welcome = client.welcome();
  const std::size_t open = client.open_requests();
  std::size_t most = AgentClient::kRequestsMax - std::min(open, AgentClient::kRequestsMax);
  if (welcome.requests_max != 0) {
    most = std::min<std::size_t>(most, welcome.requests_max - std::min<std::size_t>(open, welcome.requests_max));
  }
  // Half of what kvmid keeps: events come meanwhile.
  if (welcome.queue_bytes_max != 0) most = std::min<std::size_t>(most, welcome.queue_bytes_max / 2 / reply_bytes);
  return std::max<std::size_t>(most, 1);
}

/// Sends the commands 0 to `count` - 1, which `add(batch, n)` makes, and has `take(reply, n)` look at their replies in
/// order. After the first error no more is sent and what is open is forgotten: nothing stays behind.
template <class Add, class Take>
Result<void, ClientError> pipelined(AgentClient& client, std::size_t count, std::size_t most_open, Add add, Take take) {
  std::deque<Ticket> open;
  const auto give_up = [&](const ClientError& error) {
    for (const Ticket ticket : open) client.forget(ticket);
    return error;
  };
  std::size_t sent = 0;
  for (std::size_t taken = 0; taken < count; ++taken) {
    if (sent < count && open.size() <= most_open / 2) {
      auto batch = client.batch();
      const std::size_t before = open.size();
      std::optional<ClientError> error;
      for (; sent < count && open.size() < most_open; ++sent) {
        const Result<Ticket, ClientError> ticket = add(batch, sent);
        if (!ticket) {
          error = ticket.error();
          break;
        }
        open.push_back(*ticket);
      }
      if (error) {
        open.resize(before);  // the batch never left
        return give_up(*error);
      }
      if (auto left = batch.send(); !left) return give_up(left.error());
    }
    const auto reply = client.collect(open.front());
    if (!reply) return give_up(reply.error());
    open.pop_front();
    if (const std::optional<ClientError> error = take(*reply, taken)) return give_up(*error);
  }
  return {};
}

/// Some ranges, or parts of them, that fit into one READ_PHYSICAL and its reply.
struct Piece {
  std::vector<kvmi_read_range> ranges;
  std::vector<std::byte*> to;  ///< [range]
  std::size_t bytes = 0;
};

std::vector<Piece> pieces_of(std::span<const PhysicalRange> ranges, std::size_t payload) {
  const std::size_t bytes_max = payload > kReplyOverhead ? payload - kReplyOverhead : 1;
  const std::size_t ranges_max =
      std::max<std::size_t>(1, (payload - std::min(payload, sizeof(kvmi_read_physical))) / sizeof(kvmi_read_range));
  std::vector<Piece> pieces;
  for (const auto& range : ranges) {
    for (std::size_t done = 0; done < range.out.size();) {
      if (pieces.empty() || pieces.back().bytes == bytes_max || pieces.back().ranges.size() == ranges_max) {
        pieces.emplace_back();
      }
      Piece& piece = pieces.back();
      const std::size_t part = std::min(range.out.size() - done, bytes_max - piece.bytes);
      const std::uint64_t gpa = range.gpa.value + done;
      // What lies end to end is asked for as one.
      kvmi_read_range* last = piece.ranges.empty() ? nullptr : &piece.ranges.back();
      if (last != nullptr && last->gpa + last->size == gpa && piece.to.back() + last->size == range.out.data() + done) {
        last->size += static_cast<std::uint32_t>(part);
      } else {
        piece.ranges.push_back({gpa, static_cast<std::uint32_t>(part), 0});
        piece.to.push_back(range.out.data() + done);
      }
      piece.bytes += part;
      done += part;
    }
  }
  return pieces;
}

}  // namespace

Result<std::uint64_t, ClientError> AgentClient::read_scatter(std::span<const PhysicalRange> ranges,
                                                             AddressSpace space) {
  for (const auto& range : ranges) {
    if (!range.out.empty() && range.gpa.value + (range.out.size() - 1) < range.gpa.value) {
      return bad_argument(std::to_string(range.out.size()) + " bytes at GPA " + hex(range.gpa.value) +
                          " go past the end of the address space");
    }
  }
  const std::size_t payload = payload_max(welcome_);
  const auto pieces = pieces_of(ranges, payload);
  std::vector<ReadInto> into;
  into.reserve(pieces.size());
  for (const Piece& piece : pieces) into.push_back({piece.ranges, piece.to, piece.bytes});
  std::uint64_t cookie = 0;
  auto done = pipelined(
      *this, pieces.size(), window(*this, payload + sizeof(kvmi_msg_hdr)),
      [&](Batch& batch, std::size_t n) { return batch.add_read(space, into[n]); },
      [&](const OwnedReply& reply, std::size_t n) -> std::optional<ClientError> {
        if (!reply.ok()) return failed(reply, CommandId::ReadPhysical);
        const auto* body = reply.body<ReadPhysicalReply>();
        // The bytes of one that is as it should be have gone where they belong.
        if (body == nullptr || !reply.payload().empty()) {
          return odd_reply(CommandId::ReadPhysical, "has another size than was asked for");
        }
        if (n == 0) cookie = body->cookie;
        return std::nullopt;
      });
  if (!done) return done.error();
  return cookie;
}

Result<std::uint64_t, ClientError> AgentClient::read_virtual(VcpuId vcpu, std::span<const VirtualRange> ranges) {
  struct Part {
    Gva gva;
    std::span<std::byte> out;
  };
  std::vector<Part> parts;  // each within a page
  std::uint64_t total = 0;
  for (const auto& range : ranges) {
    const std::uint64_t bytes = range.out.size();
    if (bytes == 0) continue;
    if (range.gva.value + (bytes - 1) < range.gva.value) {
      return bad_argument(std::to_string(bytes) + " bytes at GVA " + hex(range.gva.value) +
                          " go past the end of the address space");
    }
    total += bytes;
    if (bytes > kVirtualBytesMax || total > kVirtualBytesMax) {
      return bad_argument("more than " + std::to_string(kVirtualBytesMax) + " bytes of virtual memory in one read");
    }
    for (std::uint64_t done = 0; done < bytes;) {
      const std::uint64_t at = range.gva.value + done;
      const std::uint64_t part = std::min(bytes - done, kPageSize - at % kPageSize);
      parts.push_back({Gva{at}, range.out.subspan(done, part)});
      done += part;
    }
  }
  std::vector<PhysicalRange> physical;
  physical.reserve(parts.size());
  constexpr std::size_t kReplyBytes = sizeof(kvmi_msg_hdr) + sizeof(kvmi_error) + sizeof(kvmi_translate_gva_reply);
  auto translated = pipelined(
      *this, parts.size(), window(*this, kReplyBytes),
      [&](Batch& batch, std::size_t n) {
        return batch.add(TranslateGva{vcpu, parts[n].gva});
      },
      [&](const OwnedReply& reply, std::size_t n) -> std::optional<ClientError> {
        if (!reply.ok()) {
          auto error = failed(reply, CommandId::TranslateGva);
          error.text = "GVA " + hex(parts[n].gva.value) + " of vCPU " + std::to_string(vcpu.value) +
                       " cannot be read: " + error.text;
          return error;
        }
        const auto* body = reply.body<TranslateGvaReply>();
        if (body == nullptr) return odd_reply(CommandId::TranslateGva, "has no data");
        physical.push_back({body->gpa, parts[n].out});
        return std::nullopt;
      });
  if (!translated) return translated.error();
  return read_scatter(physical);
}

Result<std::uint64_t, ClientError> AgentClient::read_virtual(VcpuId vcpu, Gva gva, std::span<std::byte> out) {
  const VirtualRange range{gva, out};
  return read_virtual(vcpu, std::span(&range, 1));
}

Result<void, ClientError> AgentClient::write_if_unchanged(Gpa gpa, Bytes data, std::uint64_t& cookie,
                                                          AddressSpace space) {
  if (cookie == 0) return bad_argument("0 is no cookie: read what the write is based on first");
  const auto written = write_physical(gpa, data, {.space = space, .cookie = cookie, .expected = {}}, &cookie);
  if (!written) return written.error();
  cookie = *written;
  return {};
}

}  // namespace kvmid::client
