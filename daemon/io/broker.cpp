// SPDX-License-Identifier: GPL-2.0-or-later
#include "daemon/io/broker.h"

#include <spdlog/logger.h>

#include <boost/asio/post.hpp>
#include <cstring>
#include <future>

#include "daemon/io/guest_rules.h"
#include "daemon/io/guest_session.h"
#include "daemon/io/peer.h"
#include "daemon/io/welcome.h"
#include "protocol/handshake.h"

namespace kvmid::io {

namespace {

/// A handshake that is wrong may still say that its sender understands a refusal.
bool names_kvmi2(Bytes handshake) {
  std::uint32_t magic = 0;
  if (handshake.size() < sizeof(kvmi_handshake) + sizeof magic) return false;
  std::memcpy(&magic, handshake.data() + sizeof(kvmi_handshake), sizeof magic);
  return magic == KVMI_HELLO_MAGIC;
}

FailureSide side_of(bool hypervisor) { return hypervisor ? FailureSide::Hypervisor : FailureSide::Agent; }

/// What QEMU's branches send: v6 and v7, v12, and 2.11.93 with its memory map.
bool is_of_qemu(std::size_t size) {
  constexpr std::size_t kMapEntry = 24;
  return size == offsetof(kvmi_handshake, max_gpa) ||
         (size >= sizeof(kvmi_handshake) && (size - sizeof(kvmi_handshake)) % kMapEntry == 0);
}

}  // namespace

Broker::Broker(boost::asio::io_context& front, Settings settings, Log& log, Witnesses witnesses)
    : front_(front),
      settings_(std::move(settings)),
      policy_(std::make_shared<const core::Policy>(settings_.policy)),
      log_(log),
      registry_(settings_.shards, settings_.limits.guests_max),
      services_{registry_, counters_, log_, core::GuestLimits{.command_timeout = settings_.limits.command_timeout},
                failures_, witnesses},
      dialler_(front, settings_, services_,
               {.place = [this](Ticket& place) { return take_place(place); },
                .attach =
                    [](std::shared_ptr<GuestSession> session, AgentArrival arrival) {
                      Shard& shard = session->shard();
                      shard.post([target = std::move(session), moved = std::move(arrival)]() mutable {
                        target->attach(std::move(moved));
                      });
                    },
                .refused = [this](const AgentArrival& arrival, std::string_view step, ErrorCode error,
                                  const std::string& text) { dial_refused(arrival, step, error, text); }}),
      stop_timer_(front) {
  for (unsigned i = 0; i < settings_.shards; ++i) shards_.push_back(std::make_unique<Shard>(i, services_));
  registry_.set_listener([this](const GuestChange& change) {
    boost::asio::post(front_, [this, change] {
      for (const auto& [key, control] : controls_) control->tell(change);
      dialler_.guest_changed(change);
    });
  });
}

Broker::~Broker() {
  listeners_.clear();
  dialler_.stop();
  for (const auto& reader : readers_) reader->cancel();
  readers_.clear();
  controls_.clear();
  for (const auto& shard : shards_) shard->force_stop();
  for (const auto& shard : shards_) shard->join();
  if (stop_thread_.joinable()) stop_thread_.join();
  registry_.clear();  // sessions hold connections, which need their shard's io_context
}

Result<void, ListenError> Broker::open(PassedSockets passed) {
  if (auto opened = open_side(settings_.hypervisors, std::move(passed.hypervisors), Side::Hypervisor); !opened)
    return opened.error();
  if (auto opened = open_side(settings_.agents, std::move(passed.agents), Side::Agent); !opened) return opened.error();
  for (const auto& shard : shards_) shard->start();
  for (const auto& listener : listeners_) listener->start();
  return {};
}

Result<void, ListenError> Broker::open_side(const ListenAt& at, std::vector<PassedSocket> passed, Side side) {
  const auto add = [&](ListeningSocket socket, const std::string& what) {
    log_.info("listening for={} at={}", side == Side::Hypervisor ? "hypervisors" : "agents", field(what));
    listeners_.push_back(std::make_unique<Listener>(front_, std::move(socket), what, counters_, log_,
                                                    [this, side](UniqueFd fd) { accepted(std::move(fd), side); }));
  };
  bool unix_passed = false;
  bool vsock_passed = false;
  for (auto& given : passed) {
    (given.vsock ? vsock_passed : unix_passed) = true;
    add(std::move(given.socket), given.address);
  }
  if (!at.unix_path.empty() && !unix_passed) {
    auto socket = listen_unix(at.unix_path, static_cast<mode_t>(at.mode), at.group);
    if (!socket) return socket.error();
    add(std::move(*socket), at.unix_path);
  }
  if (at.vsock_port && !vsock_passed) {
    auto socket = listen_vsock(*at.vsock_port);
    if (!socket) return socket.error();
    add(std::move(*socket), "vsock:" + std::to_string(*at.vsock_port));
  }
  return {};
}

// ---- newcomers ----

bool Broker::take_place(Ticket& place) {
  if (connections_->load(std::memory_order_relaxed) >= settings_.limits.connections_max) return false;
  connections_->fetch_add(1, std::memory_order_relaxed);
  place = Ticket([count = connections_] { count->fetch_sub(1, std::memory_order_relaxed); });
  return true;
}

void Broker::accepted(UniqueFd fd, Side side) {
  Greeted fresh;
  if (!take_place(fresh.connection)) {
    add_one(counters_.connections_refused);
    log_.debug("connection refused reason=\"over limits.connections_max\"");
    failures_.add({.time = {},
                   .side = side_of(side == Side::Hypervisor),
                   .peer = {},
                   .guest = {},
                   .step = step::kLimits,
                   .text = "over limits.connections_max"});
    return;
  }
  auto peer = peer_of(fd.get());
  if (!peer) {
    add_one(counters_.connections_refused);
    log_.warn("connection refused reason={}", field(peer.error()));
    return;
  }
  fresh.fd = std::move(fd);
  fresh.peer = std::move(*peer);

  const auto reader = std::make_shared<HelloReader>(front_, std::move(fresh), settings_.limits.hello_timeout);
  readers_.insert(reader);
  reader->start(
      [this, side](HelloReader& self, Greeted greeted) {
        const auto keep = self.shared_from_this();
        readers_.erase(keep);
        side == Side::Hypervisor ? hypervisor_greeted(std::move(greeted)) : agent_greeted(std::move(greeted));
      },
      [this, side](HelloReader& self, Greeted greeted, HelloFailure failure, const std::string& text) {
        const auto keep = self.shared_from_this();
        readers_.erase(keep);
        hello_failed(side, std::move(greeted), failure, text);
      });
}

bool Broker::may_log_refusal() {
  if (!refusals_.allow(std::chrono::steady_clock::now())) return false;
  if (refusals_.suppressed() != 0) log_.warn("log lines left out about=newcomers lines={}", refusals_.suppressed());
  return true;
}

void Broker::hello_failed(Side side, Greeted greeted, HelloFailure failure, const std::string& text) {
  add_one(failure == HelloFailure::TimedOut ? counters_.hello_timeouts : counters_.hello_refused);
  if (may_log_refusal())
    log_.info("no hello from={} {} reason={}", side == Side::Hypervisor ? "hypervisor" : "agent",
              to_string(greeted.peer), field(text));
  failures_.add({.time = {},
                 .side = side_of(side == Side::Hypervisor),
                 .peer = to_string(greeted.peer),
                 .guest = {},
                 .step = step::kHandshake,
                 .text = text});
  if (side == Side::Agent && failure != HelloFailure::Closed)
    refuse_agent(greeted.fd.get(), failure == HelloFailure::TimedOut ? ErrorCode::TimedOut : ErrorCode::Invalid, text);
  if (side == Side::Hypervisor && failure == HelloFailure::Malformed && names_kvmi2(greeted.hello))
    answer_hypervisor(greeted.fd.get(), {.kvmi2 = true, .status = ErrorCode::Invalid, .text = text});
}

/// The older dialects have no words for a refusal: there it is closed.
void Broker::refuse(Greeted& greeted, const HypervisorHello& hello, std::string_view step, ErrorCode error,
                    const std::string& text) {
  add_one(counters_.connections_refused);
  const std::string guest = hello.name.empty() ? to_string(hello.uuid) : hello.name;
  if (may_log_refusal())
    log_.warn("hypervisor refused {} guest={} step={} error={} reason={}", to_string(greeted.peer), field(guest),
              field(step), name_of(error), field(text));
  failures_.add({.time = {},
                 .side = FailureSide::Hypervisor,
                 .peer = to_string(greeted.peer),
                 .guest = guest,
                 .step = step,
                 .text = text});
  AuditRecord record;
  record.kind = AuditKind::HypervisorRefused;
  record.peer = greeted.peer;
  record.guest_name = guest;
  audit_refusal(std::move(record), error, hello.kvmi2 ? text : std::string(step) + ": " + text);
  if (hello.kvmi2) answer_hypervisor(greeted.fd.get(), {.kvmi2 = true, .status = error, .text = text});
}

void Broker::hypervisor_greeted(Greeted greeted) {
  auto hello = parse_hypervisor_hello(greeted.hello);
  if (hello && !hello->kvmi2 && !is_of_qemu(greeted.hello.size()))
    hello = HandshakeError{HandshakeErrc::BadStructSize, greeted.hello.size()};
  if (!hello)
    return hello_failed(Side::Hypervisor, std::move(greeted), HelloFailure::Malformed, describe(hello.error()));
  if (!allows(settings_.hypervisor_peers, greeted.peer))
    return refuse(greeted, *hello, step::kPeer, ErrorCode::NotPermitted,
                  "hypervisors of " + to_string(greeted.peer) + " are not allowed by the configuration");
  if (hello->uuid.is_zero())
    return refuse(greeted, *hello, step::kHandshake, ErrorCode::Invalid, "the guest's uuid is all zero");
  if (hello->name.empty() && !hello->kvmi2) hello->name = to_string(hello->uuid);  // v6 says none
  const GuestRule* rule = rule_of(settings_.guest_rules, hello->name, hello->uuid);
  if (rule != nullptr && rule->bound_to && !allows(*rule->bound_to, greeted.peer))
    return refuse(greeted, *hello, step::kPeer, ErrorCode::NotPermitted,
                  "the guest is bound to other peers than " + to_string(greeted.peer));

  auto session = registry_.claim(hello->uuid, hello->name, [&](unsigned shard) {
    return std::make_shared<GuestSession>(*shards_[shard], shard, *hello, services_);
  });
  if (!session) return refuse(greeted, *hello, step::kGuest, session.error().error, session.error().text);
  HypervisorAnswer answer;
  answer.kvmi2 = hello->kvmi2;
  if (rule != nullptr && rule->cookie) answer.cookie_hash = *rule->cookie;
  // A peer that is gone already is found out by its first read.
  (void)answer_hypervisor(greeted.fd.get(), answer);
  HypervisorArrival arrival{std::move(greeted.fd), std::move(*hello), std::move(greeted.peer),
                            std::move(greeted.connection), std::move(greeted.descriptor)};
  if (rule != nullptr) arrival.dialect = rule->dialect;
  Shard& shard = (*session)->shard();
  shard.post([target = *session, moved = std::move(arrival)]() mutable { target->link(std::move(moved)); });
}

void Broker::refuse(AgentArrival& arrival, std::string_view step, ErrorCode error, const std::string& text) {
  add_one(counters_.connections_refused);
  if (may_log_refusal())
    log_.warn("agent refused name={} {} error={} reason={}", field(arrival.hello.name), to_string(arrival.peer),
              name_of(error), field(text));
  const bool of_guest = !arrival.hello.uuid.is_zero();
  failures_.add({.time = {},
                 .side = FailureSide::Agent,
                 .peer = to_string(arrival.peer),
                 .guest = of_guest ? to_string(arrival.hello.uuid) : std::string{},
                 .step = step,
                 .text = text});
  AuditRecord record;
  record.kind = AuditKind::AgentRefused;
  record.agent_name = arrival.hello.name;
  record.peer = arrival.peer;
  if (of_guest) {
    record.guest = arrival.hello.uuid;
    record.guest_name = registry_.find(arrival.hello.uuid).name;
  }
  audit_refusal(std::move(record), error, text);
  refuse_agent(arrival.fd.get(), error, text);
}

/// The dialler has logged it.
void Broker::dial_refused(const AgentArrival& arrival, std::string_view step, ErrorCode error,
                          const std::string& text) {
  AuditRecord record;
  record.kind = AuditKind::AgentRefused;
  record.agent_name = arrival.hello.name;
  record.peer = arrival.peer;
  record.guest = arrival.hello.uuid;
  record.guest_name = registry_.find(arrival.hello.uuid).name;
  audit_refusal(std::move(record), error, std::string(step) + ": " + text);
}

/// Newcomers that nobody knows must not push the lines of others out of the queue.
void Broker::audit_refusal(AuditRecord record, ErrorCode error, const std::string& text) {
  if (!services_.witnesses.audited() || !audited_refusals_.allow(std::chrono::steady_clock::now())) return;
  record.error = error;
  record.reason = text;
  record.left_out = audited_refusals_.suppressed();
  services_.witnesses.audit->record(std::move(record));
}

void Broker::agent_greeted(Greeted greeted) {
  auto hello = parse_agent_hello(greeted.hello);
  if (!hello) return hello_failed(Side::Agent, std::move(greeted), HelloFailure::Malformed, describe(hello.error()));
  AgentArrival arrival;
  arrival.fd = std::move(greeted.fd);
  arrival.hello = std::move(*hello);
  arrival.peer = std::move(greeted.peer);
  arrival.connection = std::move(greeted.connection);
  arrival.hello.uuid.is_zero() ? open_control(std::move(arrival)) : attach(std::move(arrival));
}

void Broker::attach(AgentArrival arrival) {
  const Uuid uuid = arrival.hello.uuid;
  // Who is known to no rule learns nothing, not even which guests there are.
  const auto who = arrival.peer.uid ? "uid " + std::to_string(*arrival.peer.uid)
                                    : "cid " + std::to_string(arrival.peer.cid.value_or(0));
  if (!core::may_connect(settings_.policy, arrival.peer))
    return refuse(arrival, step::kPolicy, ErrorCode::NotPermitted,
                  "no policy rule lets " + who + " use guest " + to_string(uuid));
  const auto found = registry_.find(uuid);
  if (!found.session || !found.ready)
    return refuse(arrival, step::kGuest, ErrorCode::NoEntry, "there is no guest " + to_string(uuid));
  const core::Grant* grant = core::find_grant(settings_.policy, arrival.peer, found.name, uuid);
  if (grant == nullptr)
    return refuse(arrival, step::kPolicy, ErrorCode::NotPermitted,
                  "no policy rule lets " + who + " use guest " + found.name);
  auto place = registry_.attachment(arrival.peer, grant->quota.attachments_max);
  if (!place) return refuse(arrival, step::kPolicy, place.error().error, place.error().text);
  arrival.attachment = std::move(*place);
  arrival.grant = *grant;
  arrival.id = registry_.next_agent_id();
  Shard& shard = found.session->shard();
  shard.post([target = found.session, moved = std::move(arrival)]() mutable { target->attach(std::move(moved)); });
}

void Broker::open_control(AgentArrival arrival) {
  const core::Rule* rule = core::find_rule(settings_.policy, arrival.peer);
  if (rule == nullptr)
    return refuse(arrival, step::kPolicy, ErrorCode::NotPermitted, "no policy rule knows " + to_string(arrival.peer));
  auto place = registry_.attachment(arrival.peer, rule->grant.quota.attachments_max);
  if (!place) return refuse(arrival, step::kPolicy, place.error().error, place.error().text);
  arrival.attachment = std::move(*place);
  arrival.grant = rule->grant;
  arrival.id = registry_.next_agent_id();
  auto session = std::make_unique<ControlSession>(
      front_, std::move(arrival), policy_, services_, [this](ControlSession& gone) {
        boost::asio::post(front_, [this, key = &gone] { control_count_ -= controls_.erase(key); });
      });
  ControlSession* key = session.get();
  controls_.emplace(key, std::move(session));
  ++control_count_;
  key->start();
}

// ---- a new configuration ----

void Broker::reload(Settings settings, std::function<void(PolicyEffect)> done) {
  // Newcomers that were let in by the old policy were handed to their shards before this, so the shards see them.
  boost::asio::post(front_, [this, next = std::move(settings), then = std::move(done)]() mutable {
    apply(std::move(next), std::move(then));
  });
}

void Broker::apply(Settings settings, std::function<void(PolicyEffect)> done) {
  settings_.limits = settings.limits;
  settings_.hypervisor_peers = std::move(settings.hypervisor_peers);
  settings_.guest_rules = std::move(settings.guest_rules);
  settings_.dialed_agents = std::move(settings.dialed_agents);
  settings_.policy = std::move(settings.policy);
  policy_ = std::make_shared<const core::Policy>(settings_.policy);
  services_.limits = core::GuestLimits{.command_timeout = settings_.limits.command_timeout};
  registry_.set_guests_max(settings_.limits.guests_max);
  dialler_.reload();

  struct Sum {
    std::atomic<std::size_t> left;
    std::atomic<std::uint32_t> agents{0};
    std::atomic<std::uint32_t> closed{0};
  };
  const auto sum = std::make_shared<Sum>();
  sum->left = shards_.size();
  for (const auto& [key, control] : controls_) {  // those that are closed leave the list by posted work
    sum->agents.fetch_add(1, std::memory_order_relaxed);
    if (control->apply(policy_)) continue;
    sum->closed.fetch_add(1, std::memory_order_relaxed);
    add_one(counters_.agents_revoked);
  }
  for (const auto& shard : shards_) {
    shard->post([this, shard = shard.get(), sum, policy = policy_, limits = services_.limits, done] {
      const PolicyEffect effect = shard->apply(*policy, limits);
      sum->agents.fetch_add(effect.agents, std::memory_order_relaxed);
      sum->closed.fetch_add(effect.closed, std::memory_order_relaxed);
      if (sum->left.fetch_sub(1, std::memory_order_acq_rel) != 1) return;  // the last one sees what the others added
      boost::asio::post(front_, [sum, done] { done({sum->agents, sum->closed}); });
    });
  }
}

// ---- the end ----

void Broker::stop(std::function<void()> done) {
  if (stopping_) return;
  stopping_ = true;
  stop_done_ = std::move(done);
  log_.info("stopping guests={}", registry_.list().size());
  listeners_.clear();
  dialler_.stop();
  for (const auto& reader : readers_) reader->cancel();
  readers_.clear();
  for (const auto& shard : shards_) shard->stop();
  stop_timer_.expires_after(kStopTimeout);
  stop_timer_.async_wait([this](const boost::system::error_code& error) {
    if (error) return;
    log_.warn("guests did not confirm in time; stopping without them");
    for (const auto& shard : shards_) shard->force_stop();
  });
  // Joining blocks, and the front still has control connections to serve and the timer to keep.
  stop_thread_ = std::thread([this] {
    for (const auto& shard : shards_) shard->join();
    boost::asio::post(front_, [this] { shards_ended(); });
  });
}

void Broker::shards_ended() {
  stop_timer_.cancel();
  // Posted GUEST_OFFs were queued before this, so they have been told.
  controls_.clear();
  control_count_ = 0;
  if (const auto done = std::move(stop_done_)) done();
}

// ---- for people ----

void Broker::ask_shards(std::function<void()> answered) {
  const auto left = std::make_shared<std::atomic<std::size_t>>(shards_.size());
  for (const auto& shard : shards_) {
    shard->post([this, left, answered] {
      // The last one to answer; what the others did before need not be seen here.
      if (left->fetch_sub(1, std::memory_order_relaxed) == 1) boost::asio::post(front_, answered);
    });
  }
}

StatusSnapshot Broker::status(std::chrono::milliseconds timeout) {
  StatusSnapshot status;
  status.shards = static_cast<unsigned>(shards_.size());
  status.agents = control_count_;
  core::GuestCounters sum = registry_.gone_counters();
  for (const auto& guest : guests(timeout)) {
    ++status.guests;
    status.agents += guest.agents.size();
    add(sum, guest.info.counters);
  }
  status.counters = named(sum);
  const auto count = [&](const char* name, const IoCounters::Count& value) {
    status.counters.push_back({name, value.load(std::memory_order_relaxed)});
  };
  count("connections_accepted", counters_.connections_accepted);
  count("connections_refused", counters_.connections_refused);
  count("hello_timeouts", counters_.hello_timeouts);
  count("hello_refused", counters_.hello_refused);
  count("frames_refused", counters_.frames_refused);
  count("slow_readers", counters_.slow_readers);
  count("malformed_closed", counters_.malformed_closed);
  count("accept_paused", counters_.accept_paused);
  count("agents_revoked", counters_.agents_revoked);
  return status;
}

std::vector<GuestSnapshot> Broker::guests(std::chrono::milliseconds timeout) {
  std::vector<std::future<std::vector<GuestSnapshot>>> answers;
  for (const auto& shard : shards_) {
    auto promise = std::make_shared<std::promise<std::vector<GuestSnapshot>>>();
    answers.push_back(promise->get_future());
    shard->post([promise, from = shard.get()] { promise->set_value(from->snapshots()); });
  }
  std::vector<GuestSnapshot> out;
  const auto until = std::chrono::steady_clock::now() + timeout;
  for (auto& answer : answers) {
    if (answer.wait_until(until) != std::future_status::ready) continue;
    for (auto& guest : answer.get()) out.push_back(std::move(guest));
  }
  return out;
}

std::shared_ptr<const core::Policy> Broker::policy(std::chrono::milliseconds timeout) {
  auto promise = std::make_shared<std::promise<std::shared_ptr<const core::Policy>>>();
  auto answer = promise->get_future();
  boost::asio::post(front_, [this, promise] { promise->set_value(policy_); });
  if (answer.wait_for(timeout) != std::future_status::ready) return {};
  return answer.get();
}

std::vector<ConnectionFailure> Broker::failures(std::chrono::milliseconds) const { return failures_.list(); }

std::vector<AgentSnapshot> Broker::control_agents(std::chrono::milliseconds timeout) {
  auto promise = std::make_shared<std::promise<std::vector<AgentSnapshot>>>();
  auto answer = promise->get_future();
  boost::asio::post(front_, [this, promise] {
    std::vector<AgentSnapshot> out;
    for (const auto& [key, control] : controls_) out.push_back(control->snapshot());
    promise->set_value(std::move(out));
  });
  if (answer.wait_for(timeout) != std::future_status::ready) return {};
  return answer.get();
}

}  // namespace kvmid::io
