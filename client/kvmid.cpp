// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The C interface: each function calls AgentClient, turns its values into the structs of kvmi.h and its errors into
// numbers. Nothing is decided here.

#include "client/kvmid.h"

#include <algorithm>
#include <climits>
#include <cstring>
#include <new>
#include <optional>
#include <span>
#include <string>
#include <utility>

#include "client/agent_client.h"
#include "client/wire_copy.h"
#include "protocol/handshake.h"

using namespace kvmid;          // NOLINT(google-build-using-namespace): this file is the other side of one interface
using namespace kvmid::client;  // NOLINT(google-build-using-namespace)

struct kvmid_agent {
  AgentClient client;
};
struct kvmid_batch {
  AgentClient::Batch batch;
};

namespace {

thread_local std::string last_error;

int number_of(const ClientError& error) {
  switch (error.kind) {
    case ClientErrc::BadArgument: return error.code == ErrorCode::None ? -KVMI_EINVAL : -static_cast<int>(error.code);
    case ClientErrc::NoGuest: return -KVMI_ENOENT;
    case ClientErrc::Refused:
    case ClientErrc::Failed: {
      const int code = static_cast<int>(error.code);
      return code > 0 && code < KVMID_ECLOSED ? -code : -KVMID_EPROTOCOL;  // never mistaken for a success
    }
    case ClientErrc::Unreachable: return -KVMID_EUNREACHABLE;
    case ClientErrc::Denied: return -KVMID_EDENIED;
    case ClientErrc::TimedOut: return -KVMID_ETIMEOUT;
    case ClientErrc::Closed: return -KVMID_ECLOSED;
    case ClientErrc::Protocol: return -KVMID_EPROTOCOL;
    case ClientErrc::Overflow: return -KVMID_EOVERFLOW;
    case ClientErrc::System: return -KVMID_ESYSTEM;
  }
  return -KVMID_ESYSTEM;
}

int fail(const ClientError& error) {
  last_error = error.text;
  return number_of(error);
}

int bad(const char* text) {
  last_error = text;
  return -KVMI_EINVAL;
}

/// Runs `body`; what it throws (memory ran out) becomes a number.
template <class F>
int guarded(F body) noexcept {
  try {
    last_error.clear();
    return body();
  } catch (const std::bad_alloc&) {
    return -KVMI_ENOMEM;
  } catch (...) {
    return -KVMID_ESYSTEM;
  }
}

/// guarded, for functions that take a connection.
template <class F>
int with(kvmid_agent* agent, F body) noexcept {
  return guarded([&] { return agent == nullptr ? bad("the connection is NULL") : body(agent->client); });
}

template <class T>
int status(const Result<T, ClientError>& result) {
  return result ? 0 : fail(result.error());
}

int count(std::size_t n) { return static_cast<int>(std::min<std::size_t>(n, INT_MAX)); }

template <class T>
std::span<const T> items(const T* data, std::size_t n) {
  return data == nullptr ? std::span<const T>() : std::span<const T>(data, n);
}

Bytes bytes(const void* data, std::size_t size) { return items(static_cast<const std::byte*>(data), size); }

template <class T>
void store(T* out, const T& value) {
  if (out != nullptr) *out = value;
}

Result<ConnectOptions, ClientError> options_of(const kvmid_options* in) {
  ConnectOptions out;
  if (in == nullptr) return out;
  const auto wrong = [](const char* text) {
    return ClientError{ClientErrc::BadArgument, ErrorCode::Invalid, text};
  };
  if (in->struct_size != sizeof *in) return wrong("kvmid_options.struct_size is not that of this library");
  if (in->padding != 0) return wrong("kvmid_options.padding is not 0");
  if ((in->flags & ~std::uint32_t{KVMI_HELLO_OUTCOMES}) != 0) return wrong("kvmid_options.flags has an unknown flag");
  if (in->socket != nullptr) out.socket = in->socket;
  if (in->name != nullptr) out.name = in->name;
  out.outcomes = (in->flags & KVMI_HELLO_OUTCOMES) != 0;
  if (in->timeout_ms != 0) out.timeout = Millis{in->timeout_ms};
  if (in->messages_max != 0) out.messages_max = in->messages_max;
  return out;
}

int hand_out(Result<AgentClient, ClientError> client, kvmid_agent** out) {
  if (!client) return fail(client.error());
  *out = new kvmid_agent{std::move(*client)};
  return 0;
}

/// Decodes what a C program laid out; the same checks as kvmid's.
template <class Wanted>
Result<Wanted, ClientError> decode(std::uint16_t id, Bytes payload, ByteBuffer& storage) {
  if (payload.size() > KVMI_MAX_PAYLOAD) {
    return ClientError{ClientErrc::BadArgument, ErrorCode::TooBig, "the payload is larger than a message can be"};
  }
  storage.assign(payload.begin(), payload.end());
  const auto decoded = DialectKvmi2().decode_downward(Frame{id, Seq{1}, storage});
  if (!decoded) return ClientError{ClientErrc::BadArgument, ErrorCode::Invalid, describe(decoded.error())};
  const auto* wanted = std::get_if<Wanted>(&*decoded);
  if (wanted == nullptr) {
    return ClientError{ClientErrc::BadArgument, ErrorCode::NotServed,
                       "message " + std::to_string(id) + " is nothing that an agent sends this way"};
  }
  return *wanted;
}

Result<EventReply, ClientError> decode_reply(const kvmi_event_reply* reply, const void* specific, std::size_t size,
                                             ByteBuffer& storage) {
  ByteBuffer whole(sizeof *reply);
  std::memcpy(whole.data(), reply, sizeof *reply);
  const auto tail = bytes(specific, size);
  whole.insert(whole.end(), tail.begin(), tail.end());
  return decode<EventReply>(KVMI_MSG_EVENT_REPLY, whole, storage);
}

Result<EventReply, ClientError> simple_reply(const kvmid_event* event, std::uint8_t action,
                                             std::optional<std::uint64_t> value) {
  const auto wrong = [](const char* text) {
    return ClientError{ClientErrc::BadArgument, ErrorCode::Invalid, text};
  };
  if (event == nullptr) return wrong("the event is NULL");
  if (action >= kActionCount) return wrong("there is no such action");
  if (event->common.event >= kEventCount) return wrong("there is no such event");
  if ((event->common.flags & KVMI_EVENT_F_DECIDE) == 0) {
    return wrong("this event is only observed: no reply is waited for");
  }
  EventReply reply;
  reply.vcpu = VcpuId{event->common.vcpu};
  reply.event = static_cast<EventKind>(event->common.event);
  reply.action = static_cast<Action>(action);
  if (value) {
    if (reply.event != EventKind::Cr && reply.event != EventKind::Msr && reply.event != EventKind::Xsetbv) {
      return wrong("only CR, MSR and XSETBV events take another value");
    }
    reply.value = NewValue{*value};
  }
  return reply;
}

}  // namespace

extern "C" {

const char* kvmid_last_error(void) { return last_error.c_str(); }

const char* kvmid_error_name(int error) {
  const int number = error == INT_MIN ? 0 : (error < 0 ? -error : error);
  switch (number) {
    case KVMID_ECLOSED: return "ECLOSED";
    case KVMID_EUNREACHABLE: return "EUNREACHABLE";
    case KVMID_EDENIED: return "EDENIED";
    case KVMID_EPROTOCOL: return "EPROTOCOL";
    case KVMID_ETIMEOUT: return "ETIMEOUT";
    case KVMID_EOVERFLOW: return "EOVERFLOW";
    case KVMID_ESYSTEM: return "ESYSTEM";
    default: return name_of(static_cast<ErrorCode>(number)).data();  // a literal, and so zero-terminated
  }
}

int kvmid_connect(const kvmid_options* options, kvmid_agent** agent) {
  return guarded([&] {
    if (agent == nullptr) return bad("the out parameter is NULL");
    *agent = nullptr;
    const auto parsed = options_of(options);
    return parsed ? hand_out(AgentClient::connect(*parsed), agent) : fail(parsed.error());
  });
}

int kvmid_attach(const kvmid_options* options, const char* guest, kvmid_agent** agent) {
  return guarded([&] {
    if (agent == nullptr) return bad("the out parameter is NULL");
    *agent = nullptr;
    if (guest == nullptr) return bad("the guest is NULL");
    const auto parsed = options_of(options);
    return parsed ? hand_out(AgentClient::attach(*parsed, guest), agent) : fail(parsed.error());
  });
}

int kvmid_adopt(const kvmid_options* options, int fd, const std::uint8_t* uuid, kvmid_agent** agent) {
  return guarded([&] {
    UniqueFd owned(fd);
    if (agent == nullptr) return bad("the out parameter is NULL");
    *agent = nullptr;
    auto parsed = options_of(options);
    if (!parsed) return fail(parsed.error());
    if (uuid != nullptr) std::memcpy(parsed->guest.bytes.data(), uuid, KVMI_UUID_SIZE);
    return hand_out(AgentClient::adopt(std::move(owned), *parsed), agent);
  });
}

void kvmid_close(kvmid_agent* agent) { delete agent; }

int kvmid_fd(const kvmid_agent* agent) { return agent == nullptr ? -1 : agent->client.fd(); }
std::size_t kvmid_pending(const kvmid_agent* agent) {
  return agent == nullptr ? 0 : agent->client.pending_messages();
}
std::uint64_t kvmid_dropped(const kvmid_agent* agent) {
  return agent == nullptr ? 0 : agent->client.dropped_messages();
}

int kvmid_get_welcome(const kvmid_agent* agent, kvmi_welcome* welcome) {
  return guarded([&] {
    if (agent == nullptr || welcome == nullptr) return bad("an argument is NULL");
    *welcome = to_wire(agent->client.welcome());
    return 0;
  });
}

int kvmid_parse_uuid(const char* text, std::uint8_t uuid[16]) {
  return guarded([&] {
    if (text == nullptr || uuid == nullptr) return bad("an argument is NULL");
    const auto parsed = parse_uuid(text);
    if (!parsed) return bad("this is no uuid");
    std::memcpy(uuid, parsed->bytes.data(), KVMI_UUID_SIZE);
    return 0;
  });
}

void kvmid_format_uuid(const std::uint8_t uuid[16], char text[37]) {
  static constexpr char kDigits[] = "0123456789abcdef";
  char* out = text;
  for (std::size_t i = 0; i < KVMI_UUID_SIZE; ++i) {
    if (i == 4 || i == 6 || i == 8 || i == 10) *out++ = '-';
    *out++ = kDigits[uuid[i] >> 4U];
    *out++ = kDigits[uuid[i] & 15U];
  }
  *out = '\0';
}

int kvmid_next_message(kvmid_agent* agent, kvmid_message* message, int timeout_ms) {
  return with(agent, [&](AgentClient& client) {
    if (message == nullptr) return bad("the message is NULL");
    const auto next = client.next_message(Millis{timeout_ms});
    if (!next) return fail(next.error());
    if (!*next) return 0;
    *message = to_wire(**next);
    return 1;
  });
}

int kvmid_wait_event(kvmid_agent* agent, kvmid_event* event, int timeout_ms) {
  return with(agent, [&](AgentClient& client) {
    if (event == nullptr) return bad("the event is NULL");
    const auto next = client.wait_event(Millis{timeout_ms});
    if (!next) return fail(next.error());
    if (!*next) return 0;
    *event = to_wire(**next);
    return 1;
  });
}

int kvmid_reply(kvmid_agent* agent, const kvmid_event* event, std::uint8_t action) {
  return with(agent, [&](AgentClient& client) {
    const auto reply = simple_reply(event, action, std::nullopt);
    return reply ? status(client.reply(Seq{event->seq}, *reply)) : fail(reply.error());
  });
}

int kvmid_reply_value(kvmid_agent* agent, const kvmid_event* event, std::uint8_t action, std::uint64_t value) {
  return with(agent, [&](AgentClient& client) {
    const auto reply = simple_reply(event, action, value);
    return reply ? status(client.reply(Seq{event->seq}, *reply)) : fail(reply.error());
  });
}

int kvmid_reply_raw(kvmid_agent* agent, std::uint32_t seq, const kvmi_event_reply* reply, const void* specific,
                    std::size_t size) {
  return with(agent, [&](AgentClient& client) {
    if (reply == nullptr) return bad("the reply is NULL");
    ByteBuffer storage;
    const auto decoded = decode_reply(reply, specific, size, storage);
    return decoded ? status(client.reply(Seq{seq}, *decoded)) : fail(decoded.error());
  });
}

int kvmid_get_version(kvmid_agent* agent, kvmi_get_version_reply* reply) {
  return with(agent, [&](AgentClient& client) {
    const auto got = client.get_version();
    if (!got) return fail(got.error());
    store(reply, kvmi_get_version_reply{got->version, got->max_payload, got->commands.bits, got->events.bits});
    return 0;
  });
}

int kvmid_list_guests(kvmid_agent* agent, kvmi_guest_entry* entries, std::size_t max) {
  return with(agent, [&](AgentClient& client) {
    const auto guests = client.list_guests();
    if (!guests) return fail(guests.error());
    const std::size_t fit = entries == nullptr ? 0 : std::min(max, guests->size());
    for (std::size_t i = 0; i < fit; ++i) entries[i] = to_wire((*guests)[i]);
    return count(guests->size());
  });
}

int kvmid_get_guest_info(kvmid_agent* agent, kvmi_get_guest_info_reply* reply) {
  return with(agent, [&](AgentClient& client) {
    const auto got = client.guest_info();
    if (!got) return fail(got.error());
    kvmi_get_guest_info_reply out{};
    out.vcpu_count = got->vcpu_count;
    out.arch = got->arch;
    out.tsc_hz = got->tsc_hz;
    out.physical_address_bits = got->physical_address_bits;
    out.linear_address_bits = got->linear_address_bits;
    out.execute_only = got->execute_only ? 1 : 0;
    out.max_gpa = got->max_gpa;
    store(reply, out);
    return 0;
  });
}

int kvmid_pause_vcpu(kvmid_agent* agent, std::uint16_t vcpu) {
  return with(agent, [&](AgentClient& client) { return status(client.pause_vcpu(VcpuId{vcpu})); });
}

int kvmid_get_registers(kvmid_agent* agent, std::uint16_t vcpu, kvmi_x86_regs* regs, kvmi_x86_sregs* sregs,
                        std::uint8_t* mode) {
  return with(agent, [&](AgentClient& client) {
    const auto got = client.get_registers(VcpuId{vcpu});
    if (!got) return fail(got.error());
    store(regs, got->regs);
    store(sregs, got->sregs);
    store(mode, got->mode);
    return 0;
  });
}

int kvmid_get_msr(kvmid_agent* agent, std::uint16_t vcpu, std::uint32_t msr, std::uint64_t* value) {
  return with(agent, [&](AgentClient& client) {
    const auto got = client.get_registers(VcpuId{vcpu}, std::span(&msr, 1));
    if (!got) return fail(got.error());
    if (got->msrs.size() != 1 || got->msrs[0].index != msr) {
      return fail({ClientErrc::Protocol, ErrorCode::None, "kvmid's reply to GET_REGISTERS has another MSR", 0});
    }
    store(value, got->msrs[0].value);
    return 0;
  });
}

int kvmid_set_registers(kvmid_agent* agent, std::uint16_t vcpu, const kvmi_x86_regs* regs) {
  return with(agent, [&](AgentClient& client) {
    return regs == nullptr ? bad("the registers are NULL") : status(client.set_registers(VcpuId{vcpu}, *regs));
  });
}

int kvmid_shutdown_guest(kvmid_agent* agent) {
  return with(agent, [&](AgentClient& client) { return status(client.shutdown_guest()); });
}

int kvmid_get_cpuid(kvmid_agent* agent, std::uint16_t vcpu, std::uint32_t function, std::uint32_t index,
                    kvmi_get_cpuid_reply* reply) {
  return with(agent, [&](AgentClient& client) {
    const auto got = client.get_cpuid(VcpuId{vcpu}, function, index);
    if (!got) return fail(got.error());
    store(reply, kvmi_get_cpuid_reply{got->eax, got->ebx, got->ecx, got->edx});
    return 0;
  });
}

int kvmid_get_page_access(kvmid_agent* agent, std::uint64_t gpa, std::uint32_t pages, kvmi_page_access_entry* entries,
                          std::size_t max) {
  return with(agent, [&](AgentClient& client) {
    const auto got = client.get_page_access(Gpa{gpa}, pages);
    if (!got) return fail(got.error());
    if (entries != nullptr) std::copy_n(got->begin(), std::min(max, got->size()), entries);
    return count(got->size());
  });
}

int kvmid_set_page_access(kvmid_agent* agent, const kvmi_page_access_entry* entries, std::size_t n) {
  return with(agent, [&](AgentClient& client) { return status(client.set_page_access(items(entries, n))); });
}

int kvmid_inject_exception(kvmid_agent* agent, const kvmi_inject_exception* exception) {
  return with(agent, [&](AgentClient& client) {
    if (exception == nullptr) return bad("the exception is NULL");
    return status(client.inject_exception({VcpuId{exception->vcpu}, exception->vector, exception->has_error_code != 0,
                                           exception->error_code, exception->address}));
  });
}

int kvmid_read_physical(kvmid_agent* agent, std::uint64_t gpa, void* buffer, std::size_t size, std::uint64_t* cookie) {
  return with(agent, [&](AgentClient& client) {
    if (buffer == nullptr && size != 0) return bad("the buffer is NULL");
    const auto got = client.read_physical(Gpa{gpa}, size);
    if (!got) return fail(got.error());
    if (size != 0) std::memcpy(buffer, got->data.data(), size);
    store(cookie, got->cookie);
    return 0;
  });
}

int kvmid_write_physical(kvmid_agent* agent, std::uint64_t gpa, const void* data, std::size_t size,
                         std::uint16_t flags, std::uint64_t* cookie, const void* expected) {
  return with(agent, [&](AgentClient& client) {
    const bool has_cookie = (flags & KVMI_WRITE_COOKIE) != 0;
    const bool expects = (flags & KVMI_WRITE_EXPECT) != 0;
    if (data == nullptr) return bad("the data are NULL");
    if (has_cookie && cookie == nullptr) return bad("KVMI_WRITE_COOKIE is set and the cookie is NULL");
    if (expects != (expected != nullptr)) return bad("`expected` goes with KVMI_WRITE_EXPECT, and only with it");
    WriteOptions options;
    options.flags = flags;
    if (has_cookie) options.cookie = *cookie;
    if (expects) options.expected = bytes(expected, size);
    std::uint64_t stale = cookie == nullptr ? 0 : *cookie;
    const auto done = client.write_physical(Gpa{gpa}, bytes(data, size), options, &stale);
    store(cookie, done ? *done : stale);
    return status(done);
  });
}

int kvmid_grant_memory(kvmid_agent* agent, int* fds, std::size_t max, kvmi_grant_memory_reply* reply) {
  return with(agent, [&](AgentClient& client) {
    if (fds == nullptr) return bad("there is no room for descriptors");
    auto got = client.grant_memory();
    if (!got) return fail(got.error());
    const std::size_t fit = std::min(max, got->fds.size());
    store(reply, kvmi_grant_memory_reply{got->ram_bytes, got->generation_bytes,
                                         static_cast<std::uint32_t>(got->fds.size()), 0});
    for (std::size_t i = 0; i < fit; ++i) fds[i] = got->fds[i].release();
    return count(fit);
  });
}

int kvmid_control_events(kvmid_agent* agent, std::uint16_t vcpu, std::uint8_t operation, std::uint8_t role,
                         std::uint64_t events, std::uint64_t* enabled) {
  return with(agent, [&](AgentClient& client) {
    if (operation > KVMI_OP_DISABLE) return bad("there is no such operation");
    if (role > KVMI_ROLE_OBSERVER) return bad("there is no such role");
    const auto got = client.control_events(VcpuId{vcpu}, static_cast<Operation>(operation), static_cast<Role>(role),
                                           EventSet{events});
    if (!got) return fail(got.error());
    store(enabled, got->bits);
    return 0;
  });
}

int kvmid_control_cr(kvmid_agent* agent, std::uint16_t vcpu, std::uint32_t cr, int enable) {
  return with(agent, [&](AgentClient& client) { return status(client.control_cr(VcpuId{vcpu}, cr, enable != 0)); });
}

int kvmid_control_msr(kvmid_agent* agent, std::uint16_t vcpu, std::uint32_t msr, int enable) {
  return with(agent, [&](AgentClient& client) { return status(client.control_msr(VcpuId{vcpu}, msr, enable != 0)); });
}

int kvmid_translate_gva(kvmid_agent* agent, std::uint16_t vcpu, std::uint64_t gva, kvmi_translate_gva_reply* reply) {
  return with(agent, [&](AgentClient& client) {
    const auto got = client.translate_gva(VcpuId{vcpu}, Gva{gva});
    if (!got) return fail(got.error());
    kvmi_translate_gva_reply out{};
    out.gpa = got->gpa.value;
    out.page_bytes = got->page_bytes;
    out.access = got->access;
    out.user = got->user ? 1 : 0;
    store(reply, out);
    return 0;
  });
}

int kvmid_control_singlestep(kvmid_agent* agent, std::uint16_t vcpu, int enable) {
  return with(agent, [&](AgentClient& client) { return status(client.control_singlestep(VcpuId{vcpu}, enable != 0)); });
}

int kvmid_set_filter(kvmid_agent* agent, std::uint16_t vcpu, std::uint8_t event, std::uint8_t action,
                     const kvmi_filter_term* terms, std::size_t n) {
  return with(agent, [&](AgentClient& client) {
    if (event >= kEventCount) return bad("there is no such event");
    if (action >= kActionCount) return bad("there is no such action");
    return status(client.set_filter(VcpuId{vcpu}, static_cast<EventKind>(event), static_cast<Action>(action),
                                    items(terms, n)));
  });
}

int kvmid_get_xsave(kvmid_agent* agent, std::uint16_t vcpu, void* area, std::size_t max) {
  return with(agent, [&](AgentClient& client) {
    const auto got = client.get_xsave(VcpuId{vcpu});
    if (!got) return fail(got.error());
    if (area != nullptr) std::copy_n(got->begin(), std::min(max, got->size()), static_cast<std::byte*>(area));
    return count(got->size());
  });
}

int kvmid_set_xsave(kvmid_agent* agent, std::uint16_t vcpu, const void* area, std::size_t size) {
  return with(agent, [&](AgentClient& client) { return status(client.set_xsave(VcpuId{vcpu}, bytes(area, size))); });
}

int kvmid_get_xcr(kvmid_agent* agent, std::uint16_t vcpu, std::uint32_t xcr, std::uint64_t* value) {
  return with(agent, [&](AgentClient& client) {
    const auto got = client.get_xcr(VcpuId{vcpu}, xcr);
    if (!got) return fail(got.error());
    store(value, *got);
    return 0;
  });
}

int kvmid_submit(kvmid_agent* agent, std::uint16_t id, const void* payload, std::size_t size, std::uint32_t* ticket) {
  return with(agent, [&](AgentClient& client) {
    if (ticket == nullptr) return bad("the ticket is NULL");
    ByteBuffer storage;
    const auto command = decode<Command>(id, bytes(payload, size), storage);
    if (!command) return fail(command.error());
    const auto submitted = client.submit(*command);
    if (!submitted) return fail(submitted.error());
    *ticket = submitted->seq.value;
    return 0;
  });
}

int kvmid_collect(kvmid_agent* agent, std::uint32_t ticket, void* data, std::size_t max, int timeout_ms) {
  return with(agent, [&](AgentClient& client) {
    const auto reply = client.collect(Ticket{Seq{ticket}}, Millis{timeout_ms});
    if (!reply) return fail(reply.error());
    const Bytes tail = reply->payload().subspan(sizeof(kvmi_error));
    if (!reply->ok()) {
      // Behind the data of a failed command (a stale write's cookie) is the text, which goes to kvmid_last_error.
      const Bytes rest = tail.first(tail.size() - reply->text().size());
      if (data != nullptr) std::copy_n(rest.begin(), std::min(max, rest.size()), static_cast<std::byte*>(data));
      return fail({ClientErrc::Failed, reply->error(),
                   reply->text().empty() ? std::string(name_of(reply->error())) : std::string(reply->text()), 0});
    }
    if (data != nullptr) std::copy_n(tail.begin(), std::min(max, tail.size()), static_cast<std::byte*>(data));
    return count(tail.size());
  });
}

void kvmid_forget(kvmid_agent* agent, std::uint32_t ticket) {
  if (agent != nullptr) agent->client.forget(Ticket{Seq{ticket}});
}

int kvmid_batch_new(kvmid_agent* agent, kvmid_batch** batch) {
  return with(agent, [&](AgentClient& client) {
    if (batch == nullptr) return bad("the out parameter is NULL");
    *batch = new kvmid_batch{client.batch()};
    return 0;
  });
}

int kvmid_batch_command(kvmid_batch* batch, std::uint16_t id, const void* payload, std::size_t size,
                        std::uint32_t* ticket) {
  return guarded([&] {
    if (batch == nullptr || ticket == nullptr) return bad("an argument is NULL");
    ByteBuffer storage;
    const auto command = decode<Command>(id, bytes(payload, size), storage);
    if (!command) return fail(command.error());
    const auto added = batch->batch.add(*command);
    if (!added) return fail(added.error());
    *ticket = added->seq.value;
    return 0;
  });
}

int kvmid_batch_reply(kvmid_batch* batch, const kvmid_event* event, std::uint8_t action) {
  return guarded([&] {
    if (batch == nullptr) return bad("the batch is NULL");
    const auto reply = simple_reply(event, action, std::nullopt);
    if (!reply) return fail(reply.error());
    batch->batch.reply(Seq{event->seq}, *reply);
    return 0;
  });
}

int kvmid_batch_reply_raw(kvmid_batch* batch, std::uint32_t seq, const kvmi_event_reply* reply, const void* specific,
                          std::size_t size) {
  return guarded([&] {
    if (batch == nullptr || reply == nullptr) return bad("an argument is NULL");
    ByteBuffer storage;
    const auto decoded = decode_reply(reply, specific, size, storage);
    if (!decoded) return fail(decoded.error());
    batch->batch.reply(Seq{seq}, *decoded);
    return 0;
  });
}

int kvmid_batch_send(kvmid_batch* batch) {
  return guarded([&] { return batch == nullptr ? bad("the batch is NULL") : status(batch->batch.send()); });
}

void kvmid_batch_free(kvmid_batch* batch) { delete batch; }

}  // extern "C"
