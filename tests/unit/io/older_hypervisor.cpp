// SPDX-License-Identifier: GPL-2.0-or-later
#include "tests/unit/io/older_hypervisor.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>

#include "client/socket.h"
#include "daemon/io/dialler.h"
#include "protocol/frame_parser.h"

namespace kvmid::test {

OlderHypervisor::OlderHypervisor(const std::string& path, const Options& options)
    : codec_(kvmi1::codec(options.dialect)) {
  auto connected = client::connect_stream(path, client::deadline_after(kBound));
  if (!connected) throw TestError("hypervisor: cannot connect to " + path);
  socket_.reset(connected->release());
  send_bytes(options.handshake.empty()
                 ? io::qemu_handshake(options.dialect, options.uuid, options.name, options.facts)
                 : options.handshake);
  // kvmid's answer is 24 bytes, and nothing comes right behind it that must not be read here.
  answer_.resize(sizeof(kvmi_handshake_answer));
  std::size_t have = 0;
  while (have < answer_.size()) {
    pollfd item{socket_.get(), POLLIN, 0};
    if (::poll(&item, 1, static_cast<int>(kBound.count())) <= 0) throw TestError("hypervisor: no answer comes");
    const auto got = ::recv(socket_.get(), answer_.data() + have, answer_.size() - have, 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) continue;
    if (got <= 0) break;
    have += static_cast<std::size_t>(got);
  }
  answer_.resize(have);
  closed_ = have == 0;
  if (!closed_) thread_ = std::thread([this] { run(); });
}

OlderHypervisor::~OlderHypervisor() { hang_up(); }

void OlderHypervisor::hang_up() {
  ::shutdown(socket_.get(), SHUT_RDWR);
  if (thread_.joinable()) thread_.join();
  socket_.reset();
}

void OlderHypervisor::send_bytes(Bytes bytes) {
  while (!bytes.empty()) {
    const auto sent = ::send(socket_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent > 0) {
      bytes = bytes.subspan(static_cast<std::size_t>(sent));
    } else if (errno != EAGAIN && errno != EINTR) {
      return;  // kvmid has closed: who waits for something else is told then
    }
  }
}

Seq OlderHypervisor::send_event(const EventData& data) {
  kvmi1::EventMessage message;
  message.event.data = data;
  if (message.event.kind() == EventKind::Unhook) message.event.vcpu = kAllVcpus;
  ByteBuffer bytes;
  const std::lock_guard lock(mutex_);
  const Seq seq{++seq_};
  sent_[seq.value] = message.event.kind();
  codec_.encode(message, seq, bytes);
  send_bytes(bytes);
  return seq;
}

bool OlderHypervisor::wait(const std::function<bool()>& condition) {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, kBound, condition);
}

OlderHypervisor::Replied OlderHypervisor::wait_reply(Seq seq) {
  if (!wait([&] { return replies_.contains(seq.value); })) throw TestError("hypervisor: no reply to its event");
  const std::lock_guard lock(mutex_);
  return replies_[seq.value];
}

bool OlderHypervisor::wait_command(kvmi1::CommandKind kind) {
  return wait([&] { return std::find(commands_.begin(), commands_.end(), kind) != commands_.end(); });
}

bool OlderHypervisor::wait_closed() {
  return wait([&] { return closed_; });
}

void OlderHypervisor::run() {
  FrameParser parser(codec_.payload_max());
  bool open = true;
  while (open) {
    pollfd item{socket_.get(), POLLIN, 0};
    ::poll(&item, 1, -1);
    const auto space = parser.writable();
    const auto got = ::recv(socket_.get(), space.data(), space.size(), MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) continue;
    if (got <= 0) break;
    parser.commit(static_cast<std::size_t>(got));
    for (;;) {
      const auto frame = parser.next();
      open = frame.has_value();
      if (!open || *frame == nullptr) break;
      served(**frame);
    }
  }
  const std::lock_guard lock(mutex_);
  closed_ = true;
  changed_.notify_all();
}

void OlderHypervisor::served(const Frame& frame) {
  const auto message = codec_.decode_downward(frame);
  const std::lock_guard lock(mutex_);
  if (!message) return;
  if (const auto* reply = std::get_if<kvmi1::EventReplyMessage>(&*message)) {
    Replied replied{reply->action, 0};
    if (const auto data = codec_.read_reply(sent_[frame.seq.value], *reply)) replied.new_value = data->new_value;
    replies_[frame.seq.value] = replied;
  } else if (const auto* command = std::get_if<kvmi1::Command>(&*message)) {
    commands_.push_back(kvmi1::kind_of_command(*command));
    ByteBuffer held;
    ByteBuffer bytes;
    codec_.encode(kvmi1::Reply{frame.id, 0, body_for(*command, held)}, frame.seq, bytes);
    send_bytes(bytes);
  }
  changed_.notify_all();
}

kvmi1::ReplyBody OlderHypervisor::body_for(const kvmi1::Command& command, ByteBuffer& bytes) const {
  if (std::holds_alternative<kvmi1::GetVersion>(command)) {
    kvmi1::GetVersionReply version;
    version.singlestep = codec_.dialect() != kvmi1::DialectId::Rfc2017;
    if (codec_.dialect() == kvmi1::DialectId::V12)
      version.max_message = static_cast<std::uint32_t>(codec_.payload_max());
    return version;
  }
  if (std::holds_alternative<kvmi1::GetGuestInfo>(command)) return kvmi1::GetGuestInfoReply{1, 0};
  if (std::holds_alternative<kvmi1::GetVcpuInfo>(command)) return kvmi1::GetVcpuInfoReply{2000000000};
  if (std::holds_alternative<kvmi1::GetMaxGfn>(command)) return kvmi1::GfnReply{Gfn{0x1000}};
  if (std::holds_alternative<kvmi1::GetCpuid>(command)) return kvmi1::GetCpuidReply{0x3028, 0, 0, 0};
  if (const auto* read = std::get_if<kvmi1::ReadPhysical>(&command)) {
    bytes.resize(read->size);
    for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>((read->gpa.value + i) & 0xffU);
    return kvmi1::ReadPhysicalReply{bytes};
  }
  return std::monostate{};
}

}  // namespace kvmid::test
