// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The C interface: each function calls AgentClient, turns its values into the structs of kvmi.h and its errors into
// numbers. Nothing is decided here.

#include "client/kvmid.h"

#include <algorithm>
#include <climits>
#include <cstring>
#include <optional>
#include <string>
#include <utility>

#include "client/c_support.h"
#include "client/wire_copy.h"
#include "protocol/handshake.h"

using namespace kvmid;          // NOLINT(google-build-using-namespace): this file is the other side of one interface
using namespace kvmid::client;  // NOLINT(google-build-using-namespace)

thread_local std::string kvmid::client::last_error;

namespace {

Result<ConnectOptions, ClientError> options_of(const kvmid_options* in) {
  ConnectOptions out;
  if (in == nullptr) return out;
  const auto wrong = [](const char* text) { return ClientError{ClientErrc::BadArgument, ErrorCode::Invalid, text}; };
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
  const auto wrong = [](const char* text) { return ClientError{ClientErrc::BadArgument, ErrorCode::Invalid, text}; };
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
    case KVMID_ECLOSED:
      return "ECLOSED";
    case KVMID_EUNREACHABLE:
      return "EUNREACHABLE";
    case KVMID_EDENIED:
      return "EDENIED";
    case KVMID_EPROTOCOL:
      return "EPROTOCOL";
    case KVMID_ETIMEOUT:
      return "ETIMEOUT";
    case KVMID_EOVERFLOW:
      return "EOVERFLOW";
    case KVMID_ESYSTEM:
      return "ESYSTEM";
    case KVMID_EREVOKED:
      return "EREVOKED";
    case KVMID_EPATCHED:
      return "EPATCHED";
    case KVMID_EUNSTABLE:
      return "EUNSTABLE";
    default:
      return name_of(static_cast<ErrorCode>(number)).data();  // a literal, and so zero-terminated
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
std::size_t kvmid_pending(const kvmid_agent* agent) { return agent == nullptr ? 0 : agent->client.pending_messages(); }
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
