// SPDX-License-Identifier: LGPL-2.1-or-later
//
// AgentClient's commands, one function each, on top of call().

#include <algorithm>
#include <cstring>
#include <utility>

#include "client/agent_client.h"
#include "protocol/handshake.h"

namespace kvmid::client {
namespace {

/// Guests that a list is read of; more is a peer that does not stop.
constexpr std::size_t kGuestsMax = 1U << 20U;
/// Bytes asked for in one READ_PHYSICAL: the reply must fit into a message.
constexpr std::uint64_t kReadBytesMax = 60U * 1024U;
/// Room for what stands before the bytes in a reply.
constexpr std::uint64_t kReplyOverhead = sizeof(kvmi_error) + sizeof(kvmi_read_physical_reply);
/// READ_PHYSICAL commands of one read that are open at a time.
constexpr std::size_t kReadsOpenMax = 4;

ClientError failed(const OwnedReply& reply, CommandId id) {
  std::string text = std::string(name_of(id)) + " failed: " + std::string(name_of(reply.error()));
  if (!reply.text().empty()) text += " (" + std::string(reply.text()) + ")";
  return ClientError{ClientErrc::Failed, reply.error(), std::move(text)};
}

ClientError odd_reply(CommandId id, std::string_view what) {
  return ClientError{ClientErrc::Protocol, ErrorCode::None,
                     "kvmid's reply to " + std::string(name_of(id)) + " " + std::string(what)};
}

std::vector<std::byte> copy(Bytes bytes) { return {bytes.begin(), bytes.end()}; }

template <class T>
std::vector<T> copy(const WireArray<T>& array) {
  std::vector<T> out;
  out.reserve(array.size());
  for (std::size_t i = 0; i < array.size(); ++i) out.push_back(array[i]);
  return out;
}

Result<void, ClientError> nothing(const Result<OwnedReply, ClientError>& reply) {
  if (!reply) return reply.error();
  return {};
}

/// The data of a reply that was already found to be no error.
template <class Body>
Result<Body, ClientError> body_of(const Result<OwnedReply, ClientError>& reply, CommandId id) {
  if (!reply) return reply.error();
  const auto* body = reply->template body<Body>();
  if (body == nullptr) return odd_reply(id, "has no data");
  return *body;
}

}  // namespace

Result<OwnedReply, ClientError> AgentClient::checked(const Command& command) {
  auto reply = call(command);
  if (reply && !reply->ok()) return failed(*reply, id_of(command));
  return reply;
}

Result<GetVersionReply, ClientError> AgentClient::get_version() {
  return body_of<GetVersionReply>(checked(GetVersion{}), CommandId::GetVersion);
}

Result<std::vector<GuestEntry>, ClientError> AgentClient::list_guests() {
  std::vector<GuestEntry> guests;
  for (;;) {
    const auto reply = checked(GetGuests{static_cast<std::uint32_t>(guests.size())});
    if (!reply) return reply.error();
    const auto* body = reply->body<GetGuestsReply>();
    if (body == nullptr) return odd_reply(CommandId::GetGuests, "has no data");
    for (std::size_t i = 0; i < body->entries.size(); ++i) {
      const kvmi_guest_entry entry = body->entries[i];
      GuestEntry guest;
      std::memcpy(guest.uuid.bytes.data(), entry.uuid, sizeof entry.uuid);
      guest.name = text_of(entry.name, sizeof entry.name);
      guest.vcpu_count = entry.vcpu_count;
      guest.away = entry.state != KVMI_GUEST_ONLINE;
      guests.push_back(std::move(guest));
    }
    // Guests come and go between two messages, so an empty page ends the list as well as the total does.
    if (body->entries.empty() || guests.size() >= body->total) return guests;
    if (guests.size() > kGuestsMax) return odd_reply(CommandId::GetGuests, "does not end");
  }
}

Result<GetGuestInfoReply, ClientError> AgentClient::guest_info() {
  return body_of<GetGuestInfoReply>(checked(GetGuestInfo{}), CommandId::GetGuestInfo);
}

Result<void, ClientError> AgentClient::pause_vcpu(VcpuId vcpu) { return nothing(checked(PauseVcpu{vcpu})); }

Result<Registers, ClientError> AgentClient::get_registers(VcpuId vcpu, std::span<const std::uint32_t> msrs) {
  const auto reply = checked(GetRegisters{vcpu, msrs});
  if (!reply) return reply.error();
  const auto* body = reply->body<GetRegistersReply>();
  if (body == nullptr) return odd_reply(CommandId::GetRegisters, "has no data");
  return Registers{body->mode, body->regs, body->sregs, copy(body->msrs)};
}

Result<void, ClientError> AgentClient::set_registers(VcpuId vcpu, const kvmi_x86_regs& regs) {
  return nothing(checked(SetRegisters{vcpu, regs}));
}

Result<void, ClientError> AgentClient::shutdown_guest() { return nothing(checked(ShutdownGuest{})); }

Result<GetCpuidReply, ClientError> AgentClient::get_cpuid(VcpuId vcpu, std::uint32_t function, std::uint32_t index) {
  return body_of<GetCpuidReply>(checked(GetCpuid{vcpu, function, index}), CommandId::GetCpuid);
}

Result<std::vector<kvmi_page_access_entry>, ClientError> AgentClient::get_page_access(Gpa gpa, std::uint32_t pages,
                                                                                      AddressSpace space) {
  const auto reply = checked(GetPageAccess{gpa, pages, space});
  if (!reply) return reply.error();
  const auto* body = reply->body<GetPageAccessReply>();
  if (body == nullptr) return odd_reply(CommandId::GetPageAccess, "has no data");
  return copy(body->entries);
}

Result<void, ClientError> AgentClient::set_page_access(std::span<const kvmi_page_access_entry> entries,
                                                       AddressSpace space) {
  return nothing(checked(SetPageAccess{space, entries}));
}

Result<void, ClientError> AgentClient::set_page_access(Gpa gpa, std::uint32_t pages, std::uint8_t access) {
  const kvmi_page_access_entry entry{gpa.value, pages, access, {}};
  return set_page_access(std::span(&entry, 1));
}

Result<void, ClientError> AgentClient::inject_exception(const InjectException& exception) {
  return nothing(checked(exception));
}

Result<Memory, ClientError> AgentClient::read_physical(Gpa gpa, std::uint64_t bytes, AddressSpace space) {
  Memory memory;
  if (bytes == 0) return memory;
  if (gpa.value + (bytes - 1) < gpa.value) {
    return ClientError{ClientErrc::BadArgument, ErrorCode::Invalid, "the range goes past the end of the address space"};
  }
  const std::uint64_t limit = welcome_.max_payload == 0 ? KVMI_MAX_PAYLOAD : welcome_.max_payload;
  const std::uint64_t step = limit > 2 * kReplyOverhead ? std::min(limit - kReplyOverhead, kReadBytesMax) : 1;
  std::deque<std::pair<Ticket, std::uint32_t>> open;
  std::uint64_t asked = 0;
  std::optional<ClientError> error;
  bool first = true;
  // After an error no more is asked for, and what is open is still collected: nothing stays behind in the connection.
  while (!open.empty() || (asked < bytes && !error)) {
    while (!error && asked < bytes && open.size() < kReadsOpenMax) {
      const kvmi_read_range range{gpa.value + asked, static_cast<std::uint32_t>(std::min(step, bytes - asked)), 0};
      const auto ticket = submit(ReadPhysical{space, std::span(&range, 1)});
      if (!ticket) {
        error = ticket.error();
        break;
      }
      open.emplace_back(*ticket, range.size);
      asked += range.size;
    }
    if (open.empty()) break;
    const auto [ticket, size] = open.front();
    open.pop_front();
    if (error) {
      forget(ticket);
      continue;
    }
    const auto reply = collect(ticket);
    if (!reply) {
      error = reply.error();
      forget(ticket);
    } else if (!reply->ok()) {
      error = failed(*reply, CommandId::ReadPhysical);
    } else {
      const auto* body = reply->body<ReadPhysicalReply>();
      if (body == nullptr || body->data.size() != size) {
        error = odd_reply(CommandId::ReadPhysical, "has another size than was asked for");
        continue;
      }
      if (first) memory.cookie = body->cookie;
      first = false;
      memory.data.insert(memory.data.end(), body->data.begin(), body->data.end());
    }
  }
  if (error) return *error;
  return memory;
}

Result<Memory, ClientError> AgentClient::read_ranges(std::span<const kvmi_read_range> ranges, AddressSpace space) {
  const auto reply = checked(ReadPhysical{space, ranges});
  if (!reply) return reply.error();
  std::uint64_t bytes = 0;
  for (const auto& range : ranges) bytes += range.size;
  const auto* body = reply->body<ReadPhysicalReply>();
  if (body == nullptr || body->data.size() != bytes) {
    return odd_reply(CommandId::ReadPhysical, "has another size than was asked for");
  }
  return Memory{body->cookie, copy(body->data)};
}

Result<std::uint64_t, ClientError> AgentClient::write_physical(Gpa gpa, Bytes data, const WriteOptions& options,
                                                               std::uint64_t* stale_cookie) {
  WritePhysical command{gpa, options.space, options.flags, options.cookie.value_or(0), data, options.expected};
  if (options.cookie) command.flags = static_cast<std::uint16_t>(command.flags | KVMI_WRITE_COOKIE);
  if (!options.expected.empty()) command.flags = static_cast<std::uint16_t>(command.flags | KVMI_WRITE_EXPECT);
  const auto reply = call(command);
  if (!reply) return reply.error();
  const auto* body = reply->body<WritePhysicalReply>();
  if (!reply->ok()) {
    if (body != nullptr && stale_cookie != nullptr) *stale_cookie = body->cookie;
    return failed(*reply, CommandId::WritePhysical);
  }
  if (body == nullptr) return odd_reply(CommandId::WritePhysical, "has no data");
  return body->cookie;
}

Result<GrantedMemory, ClientError> AgentClient::grant_memory() {
  auto reply = checked(GrantMemory{});
  if (!reply) return reply.error();
  const auto* body = reply->body<GrantMemoryReply>();
  if (body == nullptr) return odd_reply(CommandId::GrantMemory, "has no data");
  return GrantedMemory{body->ram_bytes, body->generation_bytes, std::move(reply->fds())};
}

Result<EventSet, ClientError> AgentClient::control_events(VcpuId vcpu, Operation operation, Role role,
                                                          EventSet events) {
  const auto body =
      body_of<ControlEventsReply>(checked(ControlEvents{vcpu, operation, role, events}), CommandId::ControlEvents);
  if (!body) return body.error();
  return body->events;
}

Result<void, ClientError> AgentClient::control_cr(VcpuId vcpu, std::uint32_t cr, bool enable) {
  return nothing(checked(ControlCr{vcpu, enable, cr}));
}

Result<void, ClientError> AgentClient::control_msr(VcpuId vcpu, std::uint32_t msr, bool enable) {
  return nothing(checked(ControlMsr{vcpu, enable, msr}));
}

Result<TranslateGvaReply, ClientError> AgentClient::translate_gva(VcpuId vcpu, Gva gva) {
  return body_of<TranslateGvaReply>(checked(TranslateGva{vcpu, gva}), CommandId::TranslateGva);
}

Result<void, ClientError> AgentClient::control_singlestep(VcpuId vcpu, bool enable) {
  return nothing(checked(ControlSinglestep{vcpu, enable}));
}

Result<void, ClientError> AgentClient::set_filter(VcpuId vcpu, EventKind event, Action action,
                                                  std::span<const kvmi_filter_term> terms) {
  return nothing(checked(SetFilter{vcpu, event, action, terms}));
}

Result<std::vector<std::byte>, ClientError> AgentClient::get_xsave(VcpuId vcpu) {
  const auto reply = checked(GetXsave{vcpu});
  if (!reply) return reply.error();
  const auto* body = reply->body<GetXsaveReply>();
  if (body == nullptr) return odd_reply(CommandId::GetXsave, "has no data");
  return copy(body->area);
}

Result<void, ClientError> AgentClient::set_xsave(VcpuId vcpu, Bytes area) {
  return nothing(checked(SetXsave{vcpu, area}));
}

Result<std::uint64_t, ClientError> AgentClient::get_xcr(VcpuId vcpu, std::uint32_t xcr) {
  const auto body = body_of<GetXcrReply>(checked(GetXcr{vcpu, xcr}), CommandId::GetXcr);
  if (!body) return body.error();
  return body->value;
}

Result<std::vector<kvmi_memory_slot>, ClientError> AgentClient::get_memory_map(AddressSpace space) {
  const auto reply = checked(GetMemoryMap{space});
  if (!reply) return reply.error();
  const auto* body = reply->body<GetMemoryMapReply>();
  if (body == nullptr) return odd_reply(CommandId::GetMemoryMap, "has no data");
  return copy(body->slots);
}

}  // namespace kvmid::client
