// SPDX-License-Identifier: GPL-2.0-or-later
#include "bench/peers.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <thread>

namespace kvmid::bench {

namespace {

[[noreturn]] void fail(const std::string& what) { throw std::runtime_error(what + ": " + std::strerror(errno)); }

sockaddr_un address_of(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) throw std::runtime_error("socket path is too long: " + path);
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  return address;
}

}  // namespace

Fd& Fd::operator=(Fd&& other) noexcept {
  if (this != &other) {
    if (fd_ >= 0) ::close(fd_);
    fd_ = other.release();
  }
  return *this;
}
Fd::~Fd() {
  if (fd_ >= 0) ::close(fd_);
}

Fd connect_unix(const std::string& path, std::chrono::milliseconds patience) {
  const auto until = std::chrono::steady_clock::now() + patience;
  const sockaddr_un address = address_of(path);
  for (;;) {
    Fd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (fd.get() < 0) fail("socket");
    if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0) return fd;
    if (std::chrono::steady_clock::now() >= until) fail("connect to " + path);
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
}

Fd listen_unix(const std::string& path) {
  Fd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const sockaddr_un address = address_of(path);
  if (fd.get() < 0 || ::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 ||
      ::listen(fd.get(), 4) != 0)
    fail("listen at " + path);
  return fd;
}

Fd accept_one(int listener) {
  Fd fd(::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC));
  if (fd.get() < 0) fail("accept");
  return fd;
}

void send_all(int fd, Bytes bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) fail("send");
    bytes = bytes.subspan(static_cast<std::size_t>(n));
  }
}

ByteBuffer receive(int fd, std::size_t n) {
  ByteBuffer bytes(n);
  for (std::size_t have = 0; have < n;) {
    const ssize_t got = ::recv(fd, bytes.data() + have, n - have, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) fail("receive");
    have += static_cast<std::size_t>(got);
  }
  return bytes;
}

void Stream::flush() {
  send_all(fd_.get(), out_);
  out_.clear();
}

const Frame* Stream::at_hand() {
  const auto frame = parser_.next();
  if (!frame) throw std::runtime_error("the peer sent a frame that is too large");
  return *frame;
}

const Frame* Stream::next_or_end() {
  for (;;) {
    if (const Frame* frame = at_hand()) return frame;
    if (!fill()) return nullptr;
  }
}

bool Stream::fill() {
  for (;;) {
    const auto space = parser_.writable();
    const ssize_t n = ::recv(fd_.get(), space.data(), space.size(), 0);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno != ECONNRESET) fail("receive");
    if (n > 0) parser_.commit(static_cast<std::size_t>(n));
    return n > 0;
  }
}

const Frame& Stream::next() {
  const Frame* frame = next_or_end();
  if (frame == nullptr) throw std::runtime_error("the peer closed the connection");
  return *frame;
}

// ---- the hypervisor ----

void HypervisorPeer::hello(const Uuid& uuid, const std::string& name) {
  HypervisorHello hello;
  hello.uuid = uuid;
  hello.name = name;
  hello.start_time = 1;
  hello.max_gpa = 16U << 20U;
  hello.kvmi2 = older_ == nullptr;
  ByteBuffer bytes;
  encode(hello, bytes);
  send_all(stream_.fd(), bytes);
  if (older_ != nullptr) {
    (void)receive(stream_.fd(), sizeof(kvmi_handshake_answer));
    return;
  }
  constexpr std::size_t kAnswerBytes = sizeof(kvmi_handshake_answer) + sizeof(kvmi_handshake_answer_kvmi2);
  const auto answer = parse_hypervisor_answer(receive(stream_.fd(), kAnswerBytes));
  if (!answer) throw std::runtime_error("handshake: " + describe(answer.error()));
  if (answer->status != ErrorCode::None) throw std::runtime_error("kvmid refused the guest: " + answer->text);
}

void HypervisorPeer::serve(const Command& command, Seq seq) {
  CommandReply reply{.id = static_cast<std::uint16_t>(id_of(command))};
  std::visit(Overloaded{
                 [&](const GetVersion&) {
                   CommandSet commands;
                   for (const CommandId id : {CommandId::GetVersion, CommandId::GetGuestInfo, CommandId::ControlEvents,
                                              CommandId::ControlCr})
                     commands.add(id);
                   EventSet events;
                   events.add(EventKind::Cr);
                   reply.body = GetVersionReply{KVMI_VERSION, KVMI_MAX_PAYLOAD, commands, events};
                 },
                 [&](const GetGuestInfo&) {
                   reply.body = GetGuestInfoReply{.vcpu_count = 1, .physical_address_bits = 40,
                                                  .linear_address_bits = 48, .max_gpa = 16U << 20U};
                 },
                 [&](const ControlEvents& c) {
                   if (c.operation == Operation::Disable) enabled_.bits &= ~c.events.bits;
                   else enabled_.bits |= c.events.bits;
                   reply.body = ControlEventsReply{enabled_};
                 },
                 [&](const ControlCr&) {},
                 [&](const auto&) { reply.error = ErrorCode::NotServed; },
             },
             command);
  dialect_.encode(reply, seq, stream_.out());
  stream_.flush();
}

void HypervisorPeer::serve(const kvmi1::Command& command, Seq seq) {
  using namespace kvmi1;
  Reply reply{.id = older_->number_of(kind_of_command(command)).value()};
  const bool v12 = older_->dialect() == DialectId::V12;
  std::visit(Overloaded{
                 [&](const kvmi1::GetVersion&) {
                   reply.body = kvmi1::GetVersionReply{.max_message = v12 ? 8184U : 0U};
                 },
                 [&](const kvmi1::GetGuestInfo&) { reply.body = kvmi1::GetGuestInfoReply{.vcpu_count = 1}; },
                 [&](const GetVcpuInfo&) { reply.body = GetVcpuInfoReply{}; },
                 [&](const GetMaxGfn&) { reply.body = GfnReply{Gfn{4096}}; },
                 [&](const kvmi1::GetCpuid&) { reply.error = -kEnoent; },
                 [](const auto&) {},  // allowed, or done
             },
             command);
  older_->encode(reply, seq, stream_.out());
  stream_.flush();
}

bool HypervisorPeer::take(const Frame& frame) {
  if (older_ != nullptr) {
    const auto message = older_->decode_downward(frame);
    if (!message) throw std::runtime_error(kvmi1::describe(*older_, message.error().error));
    if (std::holds_alternative<kvmi1::EventReplyMessage>(*message)) return true;
    if (const auto* command = std::get_if<kvmi1::Command>(&*message)) serve(*command, frame.seq);
    return false;
  }
  const auto message = dialect_.decode_downward(frame);
  if (!message) throw std::runtime_error(describe(message.error()));
  if (std::holds_alternative<EventReply>(*message)) return true;
  if (const auto* command = std::get_if<Command>(&*message)) serve(*command, frame.seq);
  return false;
}

void HypervisorPeer::serve_until_readable(int fd) {
  for (;;) {
    if (const Frame* frame = stream_.at_hand()) {
      take(*frame);
      continue;
    }
    pollfd both[] = {{fd, POLLIN, 0}, {stream_.fd(), POLLIN, 0}};
    if (::poll(both, 2, 10'000) == 0) throw std::runtime_error("nothing came for ten seconds");
    if (both[0].revents != 0) return;
    if (both[1].revents != 0 && !stream_.fill()) throw std::runtime_error("kvmid closed the hypervisor's connection");
  }
}

void HypervisorPeer::round_trip(const Event& event) {
  if (older_ != nullptr) older_->encode(kvmi1::EventMessage{event}, Seq{++seq_}, stream_.out());
  else dialect_.encode(event, Seq{++seq_}, stream_.out());
  stream_.flush();
  for (;;) {
    const Frame& frame = stream_.next();
    const Seq seq = frame.seq;
    if (!take(frame)) continue;
    if (seq.value != seq_) throw std::runtime_error("a reply carries another seq than the event");
    return;
  }
}

Event HypervisorPeer::cr4_event() {
  Event event;
  event.actions = ActionSet{KVMI_ACTION_BIT(KVMI_ACTION_ALLOW) | KVMI_ACTION_BIT(KVMI_ACTION_RETRY) |
                            KVMI_ACTION_BIT(KVMI_ACTION_SKIP) | KVMI_ACTION_BIT(KVMI_ACTION_CRASH)};
  event.data = CrData{.cr = 4, .old_value = 0x20, .new_value = 0xa0};
  return event;
}

// ---- the agent ----

std::optional<Stream> attach(const std::string& agent_socket, const Uuid& guest, std::string& why) {
  Fd fd = connect_unix(agent_socket, std::chrono::seconds(5));
  ByteBuffer bytes;
  encode(AgentHello{.uuid = guest, .name = "bench"}, bytes);
  send_all(fd.get(), bytes);
  const auto welcome = parse_welcome(receive(fd.get(), sizeof(kvmi_welcome)));
  if (!welcome) throw std::runtime_error("welcome: " + describe(welcome.error()));
  if (welcome->status != 0) {
    why = text_of(welcome->text, sizeof welcome->text);
    return std::nullopt;
  }
  return Stream(std::move(fd));
}

bool wish(Stream& stream, const Wishes& wishes) {
  DialectKvmi2 dialect;
  EventSet cr;
  cr.add(EventKind::Cr);
  std::vector<Command> commands{ControlEvents{kAllVcpus, Operation::Enable, wishes.role, cr},
                                ControlCr{kAllVcpus, true, 4}};
  if (!wishes.filter.empty())
    commands.emplace_back(SetFilter{kAllVcpus, EventKind::Cr, Action::Allow,
                                    std::span<const kvmi_filter_term>(wishes.filter)});
  for (std::uint32_t i = 0; i < commands.size(); ++i) dialect.encode(commands[i], Seq{i + 1}, stream.out());
  stream.flush();
  bool served = true;
  for (std::size_t i = 0; i < commands.size(); ++i) {
    const auto message = dialect.decode_upward(stream.next());
    if (!message) throw std::runtime_error(describe(message.error()));
    const auto* reply = std::get_if<CommandReply>(&*message);
    if (reply == nullptr) throw std::runtime_error("kvmid sent something else than its reply");
    if (reply->id == KVMI_MSG_SET_FILTER && reply->error == ErrorCode::NotServed) served = false;
    else if (reply->error != ErrorCode::None)
      throw std::runtime_error("kvmid refused " + std::string(name_of(static_cast<CommandId>(reply->id))) + ": " +
                               std::string(reply->text));
  }
  return served;
}

void decide(Stream& stream, std::uint64_t answers) {
  DialectKvmi2 dialect;
  while (const Frame* frame = stream.next_or_end()) {
    const auto message = dialect.decode_upward(*frame);
    if (!message) throw std::runtime_error(describe(message.error()));
    const auto* event = std::get_if<Event>(&*message);
    if (event == nullptr || answers == 0) continue;
    --answers;
    dialect.encode(EventReply{.vcpu = event->vcpu, .event = event->kind()}, frame->seq, stream.out());
    stream.flush();
  }
}

// ---- the tool of an older dialect ----

Stream greet(int listener) {
  Fd fd = accept_one(listener);
  ByteBuffer hello = receive(fd.get(), sizeof(std::uint32_t));
  const auto size = first_struct_size(hello);
  if (!size || !*size) throw std::runtime_error("kvmid's handshake has no size");
  (void)receive(fd.get(), **size - hello.size());
  ByteBuffer answer;
  encode(HypervisorAnswer{}, answer);
  send_all(fd.get(), answer);
  return Stream(std::move(fd));
}

void wish(Stream& stream, const kvmi1::Codec& codec) {
  using namespace kvmi1;
  std::vector<kvmi1::Command> commands;
  const std::uint16_t cr = codec.number_of(EventKind::Cr).value();
  if (codec.dialect() == DialectId::Rfc2017) {
    commands = {SetEvents{VcpuId{0}, cr}, ControlGuestCr{true, 4}};
  } else {
    commands = {kvmi1::ControlEvents{VcpuId{0}, cr, true}, kvmi1::ControlCr{VcpuId{0}, true, 4}};
  }
  for (std::uint32_t i = 0; i < commands.size(); ++i) codec.encode(commands[i], Seq{i + 1}, stream.out());
  stream.flush();
  for (std::size_t i = 0; i < commands.size(); ++i) {
    const auto message = codec.decode_upward(stream.next());
    if (!message) throw std::runtime_error(kvmi1::describe(codec, message.error()));
    const auto* reply = std::get_if<Reply>(&*message);
    if (reply == nullptr || reply->error != 0) throw std::runtime_error("kvmid refused what the tool asked for");
  }
}

void decide(Stream& stream, const kvmi1::Codec& codec) {
  using namespace kvmi1;
  const bool old = codec.dialect() == DialectId::Rfc2017;
  while (const Frame* frame = stream.next_or_end()) {
    const auto message = codec.decode_upward(*frame);
    if (!message) throw std::runtime_error(kvmi1::describe(codec, message.error()));
    const auto* event = std::get_if<EventMessage>(&*message);
    if (event == nullptr) continue;
    const std::uint64_t value = std::get<CrData>(event->event.data).new_value;
    EventReplyMessage reply;
    reply.vcpu = event->event.vcpu;
    reply.action = old ? kAllow2017 : kContinue;
    reply.event = static_cast<std::uint8_t>(codec.number_of(EventKind::Cr).value());
    reply.data = std::as_bytes(std::span(&value, 1));
    codec.encode(reply, frame->seq, stream.out());
    stream.flush();
  }
}

}  // namespace kvmid::bench
