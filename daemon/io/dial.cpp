// SPDX-License-Identifier: GPL-2.0-or-later
#include "daemon/io/dial.h"

#include <spdlog/logger.h>
#include <sys/socket.h>
#include <sys/un.h>
// <sys/socket.h> comes first: the next one needs sa_family_t.
#include <linux/vm_sockets.h>

#include <algorithm>
#include <boost/asio/post.hpp>
#include <cerrno>
#include <cstring>

#include "daemon/io/guest_session.h"
#include "daemon/io/peer.h"
#include "daemon/io/shard.h"
#include "daemon/io/welcome.h"

namespace kvmid::io {

using boost::system::error_code;

namespace {

/// A connection under way or made; errno where there is none.
struct Started {
  UniqueFd fd;
  bool under_way = false;
  std::string error;
};

Started start_connecting(const DialedAgent& agent) {
  const bool local = !agent.unix_path.empty();
  sockaddr_un local_address{};
  sockaddr_vm vsock_address{};
  if (local) {
    if (agent.unix_path.size() >= sizeof local_address.sun_path) return {{}, false, "the path is too long"};
    local_address.sun_family = AF_UNIX;
    std::memcpy(local_address.sun_path, agent.unix_path.data(), agent.unix_path.size());
  } else {
    vsock_address.svm_family = AF_VSOCK;
    vsock_address.svm_cid = agent.vsock_cid;
    vsock_address.svm_port = agent.vsock_port;
  }
  Started started;
  started.fd.reset(::socket(local ? AF_UNIX : AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!started.fd.valid()) {
    started.error = !local && errno == EAFNOSUPPORT ? "this kernel has no vsock (try: modprobe vhost_vsock)"
                                                    : std::strerror(errno);
    return started;
  }
  const auto* address = local ? reinterpret_cast<const sockaddr*>(&local_address)
                              : reinterpret_cast<const sockaddr*>(&vsock_address);
  const socklen_t size = local ? sizeof local_address : sizeof vsock_address;
  if (::connect(started.fd.get(), address, size) == 0) return started;
  if (errno == EINPROGRESS) {
    started.under_way = true;
  } else {
    started.error = errno == EAGAIN ? "its queue of connections is full" : std::strerror(errno);
  }
  return started;
}

std::string no_rule(const core::Peer& peer, const std::string& guest) {
  return "no policy rule lets " + to_string(peer) + " use guest " + guest;
}

std::string text_of(HelloFailure failure, const std::string& text, std::chrono::milliseconds timeout) {
  switch (failure) {
    case HelloFailure::TimedOut: return "no answer within " + std::to_string(timeout.count()) + " ms";
    case HelloFailure::Closed: return "it closed the connection instead of answering";
    case HelloFailure::Malformed: return text;
  }
  return text;
}

}  // namespace

Dialler::Dial::Dial(Dialler& owner, DialedAgent agent, const Uuid& uuid, Guest guest)
    : owner_(owner),
      agent_(std::move(agent)),
      address_(address_of(agent_)),
      uuid_(uuid),
      guest_(std::move(guest)),
      wait_(agent_.redial),
      timer_(owner.context_),
      descriptor_(owner.context_) {}

void Dialler::Dial::begin() {
  if (over_) return;
  state_ = State::Queued;
  if (owner_.take_turn(address_, shared_from_this())) on_turn();
}

void Dialler::Dial::on_turn() {
  has_turn_ = true;
  if (over_ || state_ != State::Queued) return release();
  connect();
}

void Dialler::Dial::renew(const Guest& guest) {
  guest_ = guest;
  wait_ = agent_.redial;
  if (state_ == State::Attached) {
    at_once_ = true;
  } else {
    hurry();
  }
}

void Dialler::Dial::hurry() {
  if (state_ != State::Waiting || over_) return;
  timer_.cancel();
  wait_ = agent_.redial;
  last_failure_.clear();  // whoever changed something wants to read what came of it
  begin();
}

void Dialler::Dial::end(std::string_view reason) {
  if (over_) return;
  over_ = true;
  timer_.cancel();
  error_code ignored;
  descriptor_.close(ignored);
  if (reader_) reader_->cancel();
  reader_.reset();
  place_.reset();
  release();
  const auto session = session_.lock();
  if (state_ != State::Attached || reason.empty() || !session) return;
  session->shard().post([session, id = id_, text = std::string(reason)] { session->dismiss(id, text); });
}

void Dialler::Dial::connect() {
  state_ = State::Connecting;
  ++attempt_;
  if (!owner_.host_.place(place_)) return fail(step::kLimits, ErrorCode::Busy, "over limits.connections_max");
  Started started = start_connecting(agent_);
  if (!started.error.empty()) return fail(step::kConnect, ErrorCode::NoDevice, started.error);
  descriptor_.assign(started.fd.release());
  if (!started.under_way) return connected();
  wait_connected();
}

void Dialler::Dial::wait_connected() {
  const auto still = [self = shared_from_this(), attempt = attempt_](const error_code& error) {
    return !error && !self->over_ && self->state_ == State::Connecting && self->attempt_ == attempt;
  };
  timer_.expires_after(owner_.settings_.limits.hello_timeout);
  timer_.async_wait([self = shared_from_this(), still](const error_code& error) {
    if (still(error)) self->fail(step::kConnect, ErrorCode::TimedOut, "no connection in time");
  });
  descriptor_.async_wait(boost::asio::posix::stream_descriptor::wait_write,
                         [self = shared_from_this(), still](const error_code& error) {
                           if (!still(error)) return;
                           int failed = 0;
                           socklen_t size = sizeof failed;
                           ::getsockopt(self->descriptor_.native_handle(), SOL_SOCKET, SO_ERROR, &failed, &size);
                           if (failed != 0)
                             return self->fail(step::kConnect, ErrorCode::NoDevice, std::strerror(failed));
                           self->timer_.cancel();
                           self->connected();
                         });
}

void Dialler::Dial::connected() {
  Greeted fresh;
  fresh.fd.reset(descriptor_.release());
  fresh.connection = std::move(place_);
  auto peer = peer_of(fresh.fd.get());
  if (!peer) return fail(step::kPeer, ErrorCode::NotPermitted, peer.error());
  fresh.peer = std::move(*peer);
  // Whoever sits there without a right to the guest learns nothing, not even that there is one.
  if (core::find_grant(owner_.settings_.policy, fresh.peer, guest_.name, uuid_) == nullptr)
    return refuse_peer(fresh.peer, step::kPolicy, ErrorCode::NotPermitted, no_rule(fresh.peer, guest_.name));
  const ByteBuffer bytes = qemu_handshake(agent_.dialect, uuid_, guest_.name, guest_.facts);
  if (!send_first(fresh.fd.get(), bytes))
    return fail(step::kSent, ErrorCode::NoDevice, "it closed the connection before the handshake was sent");
  state_ = State::Answering;
  reader_ = std::make_shared<HelloReader>(owner_.context_, std::move(fresh), owner_.answer_timeout_);
  reader_->start(
      [self = shared_from_this()](HelloReader&, Greeted greeted) {
        if (!self->over_) self->answered(std::move(greeted));
      },
      [self = shared_from_this()](HelloReader&, Greeted, HelloFailure failure, const std::string& text) {
        if (self->over_) return;
        self->fail(step::kAnswer, failure == HelloFailure::TimedOut ? ErrorCode::TimedOut : ErrorCode::Invalid,
                   text_of(failure, text, self->owner_.answer_timeout_));
      });
}

/// For the audit log, too.
void Dialler::Dial::refuse_peer(const core::Peer& peer, std::string_view at, ErrorCode error, const std::string& text) {
  refused_.emplace();
  refused_->hello.uuid = uuid_;
  refused_->hello.name = agent_.name;
  refused_->peer = peer;
  fail(at, error, text);
}

void Dialler::Dial::answered(Greeted greeted) {
  const auto refuse = [&](std::string_view at, ErrorCode error, const std::string& text) {
    refuse_peer(greeted.peer, at, error, text);
  };
  if (agent_.cookie) {
    CookieHash said;
    std::memcpy(said.data(), greeted.hello.data() + offsetof(kvmi_handshake_answer, cookie_hash), said.size());
    if (same_secret(said, CookieHash{}))
      return refuse(step::kCookie, ErrorCode::NotPermitted, "the tool did not say the cookie that is configured");
    if (!same_secret(said, *agent_.cookie))
      return refuse(step::kCookie, ErrorCode::NotPermitted, "the tool's cookie is not the one that is configured");
  }
  const auto found = owner_.services_.registry.find(uuid_);
  if (!found.session || !found.ready) return fail(step::kGuest, ErrorCode::NoEntry, "the guest is gone");
  const core::Grant* grant = core::find_grant(owner_.settings_.policy, greeted.peer, found.name, uuid_);
  if (grant == nullptr)  // not any more
    return refuse(step::kPolicy, ErrorCode::NotPermitted, no_rule(greeted.peer, found.name));
  auto attachment = owner_.services_.registry.attachment(greeted.peer, grant->quota.attachments_max);
  if (!attachment) return refuse(step::kPolicy, attachment.error().error, attachment.error().text);

  AgentArrival arrival;
  arrival.hello.uuid = uuid_;
  arrival.hello.name = agent_.name;
  arrival.peer = std::move(greeted.peer);
  arrival.fd = std::move(greeted.fd);
  arrival.connection = std::move(greeted.connection);
  arrival.attachment = std::move(*attachment);
  arrival.grant = *grant;
  arrival.id = id_ = owner_.services_.registry.next_agent_id();
  arrival.dialed.emplace(DialedArrival{agent_.dialect, address_, agent_.role, agent_.priority, ticket()});
  session_ = found.session;
  state_ = State::Attached;
  attached_at_ = std::chrono::steady_clock::now();
  last_failure_.clear();
  reader_.reset();
  release();
  owner_.host_.attach(found.session, std::move(arrival));
}

void Dialler::Dial::fail(std::string_view at, ErrorCode error, const std::string& text) {
  error_code ignored;
  descriptor_.close(ignored);
  timer_.cancel();
  reader_.reset();
  place_.reset();
  const auto& services = owner_.services_;
  if (std::string what = std::string(at) + ": " + text; what != last_failure_) {
    services.log.warn("tool not connected name={} address={} guest={} step={} error={} reason={}", field(agent_.name),
                      field(address_), field(guest_.name), field(at), name_of(error), field(text));
    if (refused_) owner_.host_.refused(*refused_, at, error, text);
    last_failure_ = std::move(what);
  }
  refused_.reset();
  services.failures.add({.time = {},
                         .side = FailureSide::Dial,
                         .peer = agent_.name + " " + address_,
                         .guest = guest_.name.empty() ? to_string(uuid_) : guest_.name,
                         .step = at,
                         .text = text});
  release();
  wait_to_redial();
}

void Dialler::Dial::wait_to_redial() {
  state_ = State::Waiting;
  timer_.expires_after(std::max(wait_, std::chrono::milliseconds{1}));
  timer_.async_wait([self = shared_from_this()](const error_code& error) {
    if (!error && !self->over_ && self->state_ == State::Waiting) self->begin();
  });
  wait_ = std::max(agent_.redial, std::min<std::chrono::milliseconds>(wait_ * 2, kWaitMax));
}

void Dialler::Dial::lost() {
  if (over_ || state_ != State::Attached) return;
  if (std::chrono::steady_clock::now() - attached_at_ > wait_) wait_ = agent_.redial;
  session_.reset();
  state_ = State::Waiting;
  if (at_once_) {
    at_once_ = false;
    return begin();
  }
  if (owner_.online_.contains(uuid_)) return wait_to_redial();
  owner_.ended(*this);
}

void Dialler::Dial::release() {
  if (!has_turn_) return;
  has_turn_ = false;
  owner_.end_turn(address_);
}

/// Destroyed on the guest's shard when the tool is gone, which is then told here.
Ticket Dialler::Dial::ticket() {
  return Ticket([&context = owner_.context_, weak = weak_from_this()] {
    boost::asio::post(context, [weak] {
      if (const auto self = weak.lock()) self->lost();
    });
  });
}

}  // namespace kvmid::io
