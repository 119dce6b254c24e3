// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The connection: hello, framing, open requests, the queue of messages. Everything that waits goes through wait_for,
// which turns the crank (poll, write, read) until what it waits for is there; so replies, events and notices may arrive
// in any order and a peer that does not read cannot deadlock us while it writes.

#include "client/agent_client.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <system_error>
#include <utility>

#include "client/message_size.h"
#include "protocol/handshake.h"

namespace kvmid::client {
namespace {

ClientError bad_argument(std::string text) {
  return ClientError{ClientErrc::BadArgument, ErrorCode::Invalid, std::move(text)};
}

ClientError timed_out(std::string text) { return ClientError{ClientErrc::TimedOut, ErrorCode::None, std::move(text)}; }

GuestEntry guest_entry(const kvmi_guest_entry& entry) {
  GuestEntry out;
  std::memcpy(out.uuid.bytes.data(), entry.uuid, sizeof entry.uuid);
  out.name = text_of(entry.name, sizeof entry.name);
  out.vcpu_count = entry.vcpu_count;
  out.away = entry.state != KVMI_GUEST_ONLINE;
  return out;
}

/// May go when the queue is full: nobody waits for an answer to it, and nothing else depends on it.
bool droppable(const AgentMessage& message) {
  if (const auto* event = std::get_if<ReceivedEvent>(&message)) return !event->event.decide;
  if (const auto* notice = std::get_if<ReceivedNotice>(&message)) return notice->kind == NoticeKind::Outcome;
  return false;
}

}  // namespace

EventReply make_reply(const Event& event, Action action, ReplacedValue value) {
  EventReply reply;
  reply.vcpu = event.vcpu;
  reply.event = event.kind();
  reply.action = action;
  reply.value = value;
  return reply;
}

void AgentClient::close() {
  if (lost_) return;
  fail(ClientErrc::Closed, "the connection was closed here");
}

void AgentClient::fail(ClientErrc kind, std::string text, int os_error) {
  if (lost_) return;
  lost_ = ClientError{kind, ErrorCode::None, std::move(text), os_error};
  fd_.reset();
  fds_.clear();
  out_.clear();
  out_begin_ = 0;
}

ClientError AgentClient::lost() const {
  return lost_.value_or(ClientError{ClientErrc::Closed, ErrorCode::None, "there is no connection"});
}

// ---- sending ----

Result<void, ClientError> AgentClient::check(const Command& command) const {
  const std::size_t limit =
      welcome_.max_payload == 0 ? KVMI_MAX_PAYLOAD : std::min<std::size_t>(welcome_.max_payload, KVMI_MAX_PAYLOAD);
  const std::size_t size = payload_size(command);
  if (size > limit) {
    return ClientError{ClientErrc::BadArgument, ErrorCode::TooBig,
                       std::string(name_of(id_of(command))) + " would have " + std::to_string(size) +
                           " bytes; the limit is " + std::to_string(limit)};
  }
  if (const auto* write = std::get_if<WritePhysical>(&command)) {
    const bool expects = (write->flags & KVMI_WRITE_EXPECT) != 0;
    if (write->expected.size() != (expects ? write->data.size() : 0)) {
      return bad_argument("WRITE_PHYSICAL: the expected bytes must be as many as the data");
    }
  }
  if (const auto* pages = std::get_if<SetPageAccess>(&command); pages != nullptr && pages->entries.empty()) {
    return bad_argument("SET_PAGE_ACCESS: no pages are named");
  }
  if (const auto* read = std::get_if<ReadPhysical>(&command); read != nullptr && read->ranges.empty()) {
    return bad_argument("READ_PHYSICAL: no range is named");
  }
  return {};
}

Seq AgentClient::next_seq() {
  do {
    ++last_seq_;
  } while (last_seq_ == 0 || requests_.contains(last_seq_));
  return Seq{last_seq_};
}

/// `accepted` says whether the bytes were taken over; if so they leave now or with a later call.
Result<void, ClientError> AgentClient::send(const ByteBuffer& bytes, bool& accepted) {
  accepted = false;
  const auto until = deadline_after(timeout_);
  const auto flushed = [this](SteadyClock::time_point end) -> Result<void, ClientError> {
    while (out_begin_ < out_.size()) {
      const auto turned = turn(end);
      if (!turned) return turned.error();
      if (!*turned) return timed_out("kvmid does not read: a message could not be written in time");
    }
    return {};
  };
  if (lost_ || !fd_) return lost();
  // What an earlier call could not write goes first, else a peer that never reads would make this buffer grow.
  if (auto done = flushed(until); !done) return done;
  if (lost_) return lost();
  if (write_broken_) {
    while (!lost_) {  // read on: what kvmid said last is why it closed
      const auto turned = turn(until);
      if (!turned) return turned.error();
      if (!*turned) break;
    }
    return lost();
  }
  out_.assign(bytes.begin(), bytes.end());
  out_begin_ = 0;
  accepted = true;
  write_some();
  return flushed(until);
}

void AgentClient::write_some() {
  while (fd_ && out_begin_ < out_.size()) {
    const ssize_t n =
        ::send(fd_.get(), out_.data() + out_begin_, out_.size() - out_begin_, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n >= 0) {
      out_begin_ += static_cast<std::size_t>(n);
      continue;
    }
    if (errno == EINTR) continue;
    if (errno == EAGAIN || errno == EWOULDBLOCK) return;
    // The peer is gone for writing, but may have left a last message (a notice that says why): reading finds the end.
    write_broken_ = true;
    out_begin_ = out_.size();
  }
  if (out_begin_ == out_.size()) {
    out_.clear();
    out_begin_ = 0;
  }
}

// ---- receiving ----

/// Waits until something can be done or the time is over (false), and does it.
Result<bool, ClientError> AgentClient::turn(SteadyClock::time_point until) {
  if (lost_ || !fd_) return lost();
  for (;;) {
    pollfd wait{fd_.get(), static_cast<short>(POLLIN | (out_begin_ < out_.size() ? POLLOUT : 0)), 0};
    const int ready = ::poll(&wait, 1, poll_timeout(until));
    if (ready < 0) {
      if (errno == EINTR) continue;
      fail(ClientErrc::System, "poll failed: " + std::generic_category().message(errno), errno);
      return lost();
    }
    if (ready == 0) {
      if (poll_timeout(until) != 0) continue;  // poll takes at most some days at a time
      return false;
    }
    if ((wait.revents & POLLOUT) != 0) write_some();
    if ((wait.revents & (POLLIN | POLLHUP | POLLERR)) != 0) read_some();
    return true;
  }
}

void AgentClient::read_some() {
  const auto space = parser_.writable();
  iovec vector{space.data(), space.size()};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int) * kFdsMax)> control{};
  msghdr message{};
  message.msg_iov = &vector;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  const ssize_t n = ::recvmsg(fd_.get(), &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  if (n < 0) {
    if (errno == EINTR || errno == EAGAIN || errno == EWOULDBLOCK) return;
    const bool gone = errno == ECONNRESET || errno == EPIPE;
    fail(
        gone ? ClientErrc::Closed : ClientErrc::System,
        gone ? std::string("kvmid closed the connection") : "reading failed: " + std::generic_category().message(errno),
        errno);
    return;
  }
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr; header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    const std::size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < count; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(header) + i * sizeof(int), sizeof fd);
      UniqueFd owned(fd);  // closed at once where nobody asked for descriptors
      if (grants_open_ > 0 && fds_.size() < kFdsMax) fds_.push_back(std::move(owned));
    }
  }
  if (n == 0) {
    fail(ClientErrc::Closed, parser_.pending() == 0 ? "kvmid closed the connection"
                                                    : "kvmid closed the connection in the middle of a message");
    return;
  }
  parser_.commit(static_cast<std::size_t>(n));
  take_frames();
}

void AgentClient::take_frames() {
  while (!lost_) {
    const auto frame = parser_.next();
    if (!frame) {
      fail(ClientErrc::Protocol,
           "kvmid sent a message of " + std::to_string(frame.error().size) + " bytes, which is over the limit");
      return;
    }
    if (*frame == nullptr) return;
    take(**frame);
  }
}

void AgentClient::take(const Frame& frame) {
  // Replies are decoded from a copy of their own, which then stays with them.
  if (const auto request = requests_.find(frame.seq.value);
      request != requests_.end() && static_cast<std::uint16_t>(request->second.id) == frame.id) {
    take_reply(frame);
    return;
  }
  const auto decoded = dialect_.decode_upward(frame);
  if (!decoded) {
    fail(ClientErrc::Protocol, "kvmid sent a bad message: " + describe(decoded.error()));
    return;
  }
  std::visit(Overloaded{
                 [&](const Event& event) {
                   enqueue(ReceivedEvent{frame.seq, event});
                 },
                 [&](const CommandReply& reply) {
                   fail(ClientErrc::Protocol, "kvmid sent a reply (message " + std::to_string(reply.id) + ", seq " +
                                                  std::to_string(frame.seq.value) + ") to a command that is not open");
                 },
                 [&](const Notice& n) {
                   ReceivedNotice notice{n.kind,      n.event, n.action,           n.vcpu, n.error, n.agent,
                                         n.event_seq, n.count, std::string(n.text)};
                   if (notice_handler_) {
                     notice_handler_(notice);
                   } else {
                     enqueue(std::move(notice));
                   }
                 },
                 [&](const GuestOn& on) { enqueue(guest_entry(on.guest)); },
                 [&](const GuestOff& off) {
                   enqueue(GuestGone{off.uuid, off.reason, std::string(off.text)});
                 },
                 [&](const MemoryMapChanged&) { ++unknown_; },  // is between hypervisors and kvmid
                 [&](const UnknownMessage&) { ++unknown_; },
             },
             *decoded);
}

void AgentClient::take_reply(const Frame& frame) {
  const auto found = requests_.find(frame.seq.value);
  Request& request = found->second;
  if (request.reply) {
    fail(ClientErrc::Protocol, "kvmid answered command " + std::to_string(frame.seq.value) + " twice");
    return;
  }
  if (request.into != nullptr && !request.forgotten && take_bytes(request, frame)) return;
  ByteBuffer storage(frame.payload.begin(), frame.payload.end());
  const auto decoded = dialect_.decode_upward(Frame{frame.id, frame.seq, storage});
  if (!decoded) {
    fail(ClientErrc::Protocol, "kvmid sent a bad reply: " + describe(decoded.error()));
    return;
  }
  const auto* reply = std::get_if<CommandReply>(&*decoded);
  if (reply == nullptr) {
    fail(ClientErrc::Protocol, "kvmid sent something else in place of a reply");
    return;
  }
  std::vector<UniqueFd> fds;
  if (request.id == CommandId::GrantMemory) {
    --grants_open_;
    const auto* grant = std::get_if<GrantMemoryReply>(&reply->body);
    const std::size_t wanted = grant == nullptr ? 0 : grant->fd_count;
    if (wanted > fds_.size()) {
      fail(ClientErrc::Protocol,
           "kvmid announced " + std::to_string(wanted) + " descriptors and sent " + std::to_string(fds_.size()));
      return;
    }
    const auto end = fds_.begin() + static_cast<std::ptrdiff_t>(wanted);
    fds.assign(std::make_move_iterator(fds_.begin()), std::make_move_iterator(end));
    fds_.erase(fds_.begin(), end);
    if (grants_open_ == 0) fds_.clear();
  }
  if (request.forgotten) {
    requests_.erase(found);
    return;
  }
  request.reply.emplace(std::move(storage), *reply, std::move(fds));
}

/// A read that went well: its bytes go where they are wanted, and its reply has the cookie alone. False: look at it as at
/// any reply.
bool AgentClient::take_bytes(Request& request, const Frame& frame) {
  const auto decoded = dialect_.decode_upward(frame);
  if (!decoded) return false;
  const auto* reply = std::get_if<CommandReply>(&*decoded);
  const auto* body = reply == nullptr ? nullptr : std::get_if<ReadPhysicalReply>(&reply->body);
  if (body == nullptr || body->data.size() != request.into->bytes) return false;
  const std::byte* from = body->data.data();
  for (std::size_t i = 0; i < request.into->ranges.size(); ++i) {
    std::memcpy(request.into->to[i], from, request.into->ranges[i].size);
    from += request.into->ranges[i].size;
  }
  CommandReply cookie{.id = reply->id, .text = {}, .body = ReadPhysicalReply{body->cookie, {}}};
  request.reply.emplace(ByteBuffer{}, std::move(cookie), std::vector<UniqueFd>{});
  return true;
}

void AgentClient::enqueue(AgentMessage message) {
  if (messages_.size() >= messages_max_) {
    const auto victim = std::find_if(messages_.begin(), messages_.end(), droppable);
    if (victim != messages_.end()) {
      messages_.erase(victim);
      ++dropped_;
    } else if (droppable(message)) {
      ++dropped_;
      return;
    } else {
      fail(ClientErrc::Overflow,
           std::to_string(messages_.size()) + " messages wait to be taken and none may be dropped");
      return;
    }
  }
  messages_.push_back(std::move(message));
}

// ---- waiting ----

/// Turns until take() gives a value or the time is over. What has arrived is looked at before the end of the
/// connection.
template <class Take>
auto AgentClient::wait_for(Millis timeout, Take take) -> Result<decltype(take()), ClientError> {
  const auto until = deadline_after(timeout);
  for (;;) {
    if (auto value = take()) return value;
    const auto turned = turn(until);
    if (!turned) {
      if (auto value = take()) return value;
      return turned.error();
    }
    if (!*turned) return decltype(take()){};
  }
}

Result<std::optional<AgentMessage>, ClientError> AgentClient::next_message(Millis timeout) {
  return wait_for(timeout, [this]() -> std::optional<AgentMessage> {
    if (messages_.empty()) return std::nullopt;
    std::optional<AgentMessage> message(std::move(messages_.front()));
    messages_.pop_front();
    return message;
  });
}

Result<std::optional<ReceivedEvent>, ClientError> AgentClient::wait_event(Millis timeout) {
  return wait_for(timeout, [this]() -> std::optional<ReceivedEvent> {
    const auto found = std::find_if(messages_.begin(), messages_.end(),
                                    [](const auto& m) { return std::holds_alternative<ReceivedEvent>(m); });
    if (found == messages_.end()) return std::nullopt;
    std::optional<ReceivedEvent> event(std::get<ReceivedEvent>(*found));
    messages_.erase(found);
    return event;
  });
}

Result<std::optional<std::variant<GuestEntry, GuestGone>>, ClientError> AgentClient::wait_guest(Millis timeout) {
  using Guest = std::variant<GuestEntry, GuestGone>;
  return wait_for(timeout, [this]() -> std::optional<Guest> {
    for (auto at = messages_.begin(); at != messages_.end(); ++at) {
      std::optional<Guest> guest;
      if (auto* on = std::get_if<GuestEntry>(&*at)) guest = std::move(*on);
      if (auto* off = std::get_if<GuestGone>(&*at)) guest = std::move(*off);
      if (!guest) continue;
      messages_.erase(at);
      return guest;
    }
    return std::nullopt;
  });
}

// ---- commands ----

Result<Ticket, ClientError> AgentClient::submit(const Command& command) {
  Batch one(*this);
  const auto ticket = one.add(command);
  if (!ticket) return ticket.error();
  if (auto sent = one.send(); !sent) {
    forget(*ticket);  // the caller gets no ticket to collect it with
    return sent.error();
  }
  return *ticket;
}

Result<OwnedReply, ClientError> AgentClient::collect(Ticket ticket, Millis timeout) {
  const auto open = requests_.find(ticket.seq.value);
  if (open == requests_.end() || open->second.forgotten) {
    return bad_argument("command " + std::to_string(ticket.seq.value) + " is not open, or was collected before");
  }
  const CommandId id = open->second.id;
  auto reply = wait_for(timeout, [this, ticket]() -> std::optional<OwnedReply> {
    const auto found = requests_.find(ticket.seq.value);
    if (found == requests_.end() || !found->second.reply) return std::nullopt;
    std::optional<OwnedReply> taken(std::move(found->second.reply));
    requests_.erase(found);
    return taken;
  });
  if (!reply) return reply.error();
  if (!*reply) return timed_out(std::string(name_of(id)) + " was not answered in time");
  return std::move(**reply);
}

void AgentClient::forget(Ticket ticket) {
  const auto found = requests_.find(ticket.seq.value);
  if (found == requests_.end()) return;
  if (found->second.reply) {
    requests_.erase(found);
  } else {
    found->second.forgotten = true;
  }
}

Result<OwnedReply, ClientError> AgentClient::call(const Command& command, Millis timeout) {
  const auto ticket = submit(command);
  if (!ticket) return ticket.error();
  auto reply = collect(*ticket, timeout);
  if (!reply) forget(*ticket);
  return reply;
}

Result<void, ClientError> AgentClient::reply(const ReceivedEvent& event, Action action, ReplacedValue value) {
  if (!event.event.decide) return bad_argument("this event is only observed: no reply is waited for");
  return reply(event.seq, make_reply(event.event, action, value));
}

Result<void, ClientError> AgentClient::reply(Seq seq, const EventReply& reply) {
  Batch one(*this);
  one.reply(seq, reply);
  return one.send();
}

Result<Ticket, ClientError> AgentClient::Batch::add(const Command& command) {
  if (auto fits = client_.check(command); !fits) return fits.error();
  if (client_.requests_.size() + commands_.size() >= kRequestsMax) {
    return ClientError{ClientErrc::BadArgument, ErrorCode::Busy,
                       std::to_string(kRequestsMax) + " commands are open: collect some replies first"};
  }
  const Seq seq = client_.next_seq();
  client_.dialect_.encode(command, seq, bytes_);
  commands_.push_back({seq, id_of(command)});
  return Ticket{seq};
}

Result<Ticket, ClientError> AgentClient::Batch::add_read(AddressSpace space, const ReadInto& into) {
  const auto ticket = add(ReadPhysical{space, into.ranges});
  if (ticket) commands_.back().into = &into;
  return ticket;
}

void AgentClient::Batch::reply(const ReceivedEvent& event, Action action, ReplacedValue value) {
  reply(event.seq, make_reply(event.event, action, value));
}

void AgentClient::Batch::reply(Seq seq, const EventReply& reply) { client_.dialect_.encode(reply, seq, bytes_); }

Result<void, ClientError> AgentClient::Batch::send() {
  if (bytes_.empty()) return {};
  // Open before the first byte leaves: the reply may be read while the rest is still being written.
  for (const auto& [seq, id, into] : commands_) {
    client_.requests_.emplace(seq.value, Request{.id = id, .into = into});
    if (id == CommandId::GrantMemory) ++client_.grants_open_;
  }
  const auto commands = std::exchange(commands_, {});
  const ByteBuffer bytes = std::exchange(bytes_, {});
  bool accepted = false;
  auto sent = client_.send(bytes, accepted);
  if (!accepted) {
    for (const auto& [seq, id, into] : commands) {
      client_.requests_.erase(seq.value);
      if (id == CommandId::GrantMemory) --client_.grants_open_;
    }
  }
  return sent;
}

}  // namespace kvmid::client
