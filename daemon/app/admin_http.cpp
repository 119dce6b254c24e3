// SPDX-License-Identifier: GPL-2.0-or-later
// The only source that includes Beast: it is slow to compile.
#include "daemon/app/admin_http.h"

#include <pthread.h>
#include <sys/socket.h>

#include <boost/asio/buffer.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/empty_body.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/string_body.hpp>
#include <boost/beast/http/write.hpp>
#include <optional>
#include <thread>
#include <unordered_map>

#include "daemon/app/admin_policy.h"
#include "daemon/app/event_json.h"

namespace kvmid::app {
namespace {

namespace http = boost::beast::http;
using boost::system::error_code;
using Context = boost::asio::io_context;
using Local = boost::asio::local::stream_protocol;
using Response = http::response<http::string_body>;

constexpr std::size_t kConnectionsMax = 64;
constexpr std::uint32_t kHeaderMax = 16U * 1024U;
constexpr std::uint64_t kBodyMax = 64U * 1024U;
constexpr std::chrono::seconds kRequestTimeout{10};
constexpr std::size_t kStreamBatch = 256;  // records in one chunk

Response response_of(const Answer& answer, unsigned version, bool keep_alive) {
  Response response{static_cast<http::status>(answer.status), version};
  response.set(http::field::content_type, answer.content_type);
  if (!answer.allow.empty()) response.set(http::field::allow, answer.allow);
  response.keep_alive(keep_alive);
  response.body() = answer.body;
  response.prepare_payload();
  return response;
}

/// One client: a request, its answer, the next; or a stream to the end.
class Session : public std::enable_shared_from_this<Session> {
 public:
  using Gone = std::function<void(Session*)>;
  Session(std::shared_ptr<Context> context, io::UniqueFd fd, AdminResources& resources, Gone gone)
      : context_(std::move(context)),
        socket_(*context_),
        timer_(*context_),
        resources_(resources),
        gone_(std::move(gone)) {
    error_code failed;
    socket_.assign(Local(), fd.get(), failed);
    if (!failed) (void)fd.release();
  }

  void read() {
    parser_.emplace();
    parser_->header_limit(kHeaderMax);
    parser_->body_limit(kBodyMax);
    timed_out_ = false;
    // A timeout ends the read, not the connection: the client is told.
    arm([](Session& self) {
      self.timed_out_ = true;
      error_code ignored;
      self.socket_.cancel(ignored);
    });
    http::async_read(socket_, buffer_, *parser_, [self = shared_from_this()](const error_code& error, std::size_t) {
      self->on_read(error);
    });
  }
  void close() {
    if (closed_) return;
    closed_ = true;
    if (stream_) {
      resources_.parts().streams.unsubscribe(stream_);
      // The proper end of a stream, for a client that reads; nobody waits for another.
      if (chunked_ && !writing_) (void)::send(socket_.native_handle(), "0\r\n\r\n", 5, MSG_NOSIGNAL | MSG_DONTWAIT);
    }
    stream_.reset();
    timer_.cancel();
    error_code ignored;
    socket_.close(ignored);
  }

 private:
  template <class F>
  void arm(F on_timeout) {
    timer_.expires_after(kRequestTimeout);
    timer_.async_wait([weak = weak_from_this(), on_timeout](const error_code& error) {
      const auto self = weak.lock();
      if (!error && self && !self->closed_) on_timeout(*self);
    });
  }
  void leave() {
    const auto keep = shared_from_this();
    close();
    gone_(this);
  }

  void on_read(const error_code& error) {
    timer_.cancel();
    if (closed_) return;
    if (!error) return handle();
    const bool began = parser_->got_some() || buffer_.size() != 0;
    if (timed_out_ && began) return refuse(408, "the request did not come to its end in time");
    if (error == http::error::body_limit || error == http::error::header_limit || error == http::error::buffer_overflow)
      return refuse(413, "the request is too large: a header may have 16 KiB, a body 64 KiB");
    if (!timed_out_ && error.category() == make_error_code(http::error::end_of_stream).category() &&
        error != http::error::end_of_stream && error != http::error::partial_message)
      return refuse(400, "not HTTP: " + error.message());
    leave();
  }

  void refuse(unsigned status, const std::string& message) { write(error_answer(status, message), 11, false); }

  void handle() {
    const auto& request = parser_->get();
    version_ = request.version();
    keep_alive_ = request.keep_alive();
    const auto method = request.method_string();
    const auto target = request.target();
    if (is_policy_target({target.data(), target.size()}))
      return write(policy_answer({method.data(), method.size()}, {target.data(), target.size()}, request.body(),
                                 resources_.parts().broker));
    const auto route =
        find_route({method.data(), method.size()}, {target.data(), target.size()}, request.body());
    if (!route) return write(answer_of(route.error()));
    const bool changes = route->resource == Resource::Reload || route->resource == Resource::SetLogLevel;
    if (resources_.stopping() && (changes || route->resource == Resource::Events))
      return write(error_answer(503, "kvmid is stopping"));
    if (route->resource == Resource::Reload) return reload();
    if (route->resource == Resource::Events) return begin_stream(route->filter);
    write(resources_.answer(*route));
  }

  void reload() {
    waiting_ = true;
    arm([](Session& self) { self.reloaded(error_answer(503, "the reload is not confirmed: a shard does not answer")); });
    resources_.parts().reloader.reload(
        "admin", [context = context_, weak = weak_from_this()](const ReloadResult& result) {
          boost::asio::post(*context, [weak, result] {
            if (const auto self = weak.lock()) self->reloaded(answer_of(result));
          });
        });
  }
  void reloaded(const Answer& answer) {
    if (closed_ || !std::exchange(waiting_, false)) return;
    write(answer);
  }

  void write(const Answer& answer) { write(answer, version_, keep_alive_); }
  void write(const Answer& answer, unsigned version, bool keep_alive) {
    response_.emplace(response_of(answer, version, keep_alive));
    arm([](Session& self) { self.leave(); });
    http::async_write(socket_, *response_, [self = shared_from_this()](const error_code& error, std::size_t) {
      if (self->closed_) return;
      if (error || self->response_->need_eof()) {
        self->leave();
      } else {
        self->read();
      }
    });
  }

  // ---- the live stream ----

  void begin_stream(const EventFilter& filter) {
    stream_ = resources_.parts().streams.subscribe(filter, [context = context_, weak = weak_from_this()] {
      boost::asio::post(*context, [weak] {
        if (const auto self = weak.lock()) self->pump();
      });
    });
    if (!stream_)
      return write(error_answer(503, "there are " + std::to_string(EventStreams::kStreamsMax) + " streams already"));
    chunked_ = version_ >= 11;
    stream_head_.emplace(http::status::ok, version_);
    stream_head_->set(http::field::content_type, "application/x-ndjson");
    stream_head_->set(http::field::cache_control, "no-store");
    stream_head_->keep_alive(false);
    if (chunked_) stream_head_->chunked(true);
    stream_serializer_.emplace(*stream_head_);
    writing_ = true;
    arm([](Session& self) { self.leave(); });
    http::async_write_header(socket_, *stream_serializer_,
                             [self = shared_from_this()](const error_code& error, std::size_t) { self->written(error); });
    watch_client();
  }

  /// What it still says means nothing; that it goes is what is waited for.
  void watch_client() {
    socket_.async_read_some(boost::asio::buffer(ignored_), [self = shared_from_this()](const error_code& error, std::size_t) {
      if (self->closed_) return;
      if (error) return self->leave();
      self->watch_client();
    });
  }

  void written(const error_code& error) {
    timer_.cancel();
    writing_ = false;
    if (closed_) return;
    if (error) return leave();
    pump();
  }

  void pump() {
    if (closed_ || writing_ || !stream_) return;
    records_.clear();
    const std::uint64_t dropped = stream_->take(records_, kStreamBatch);
    std::string lines;
    for (const auto& record : records_) lines += stream_line(record);
    records_.clear();
    if (dropped != 0) lines += stream_dropped_line(dropped);
    if (lines.empty()) return;  // woken when something comes
    if (chunked_) {
      out_ = hex_text(lines.size()).substr(2) + "\r\n" + lines + "\r\n";
    } else {
      out_ = std::move(lines);
    }
    writing_ = true;
    // A client that takes nothing for so long is too slow to watch.
    arm([](Session& self) { self.leave(); });
    boost::asio::async_write(socket_, boost::asio::buffer(out_),
                             [self = shared_from_this()](const error_code& error, std::size_t) { self->written(error); });
  }

  std::shared_ptr<Context> context_;
  Local::socket socket_;
  boost::asio::steady_timer timer_;
  boost::beast::flat_buffer buffer_{kHeaderMax + kBodyMax};
  std::optional<http::request_parser<http::string_body>> parser_;
  std::optional<Response> response_;
  AdminResources& resources_;
  Gone gone_;
  unsigned version_ = 11;
  bool keep_alive_ = false;
  bool timed_out_ = false;
  bool waiting_ = false;  ///< for a reload
  bool closed_ = false;

  std::shared_ptr<EventStream> stream_;
  std::optional<http::response<http::empty_body>> stream_head_;
  std::optional<http::response_serializer<http::empty_body>> stream_serializer_;
  std::vector<io::TapRecord> records_;
  std::string out_;
  std::array<char, 256> ignored_{};
  bool chunked_ = true;
  bool writing_ = false;
};

/// Said to a client that is one too many, as far as its socket takes it at once.
void turn_away(int fd) {
  const Answer answer = error_answer(503, "the admin side has " + std::to_string(kConnectionsMax) + " connections already");
  const std::string text = "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nConnection: close\r\n"
                           "Content-Length: " + std::to_string(answer.body.size()) + "\r\n\r\n" + answer.body;
  (void)::send(fd, text.data(), text.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
}

}  // namespace

class AdminServer::Impl {
 public:
  Impl(io::ListeningSocket socket, AdminFacts facts, const AdminParts& parts)
      : resources_(std::move(facts), parts),
        listener_(*context_, std::move(socket), "admin", counters_, parts.log,
                  [this](io::UniqueFd fd) { accepted(std::move(fd)); }) {
    listener_.start();
    thread_ = std::thread([this] {
      ::pthread_setname_np(::pthread_self(), "admin");
      context_->run();
    });
  }
  ~Impl() {
    stop();
    if (thread_.joinable()) thread_.join();
  }

  void stop() {
    boost::asio::post(*context_, [this] {
      listener_.stop();
      for (const auto& [key, session] : sessions_) session->close();
      sessions_.clear();
    });
  }
  void set_stopping() { resources_.set_stopping(); }

 private:
  void accepted(io::UniqueFd fd) {
    if (sessions_.size() >= kConnectionsMax) return turn_away(fd.get());  // the admin side is for few
    const auto session = std::make_shared<Session>(context_, std::move(fd), resources_,
                                                   [this](Session* gone) { sessions_.erase(gone); });
    sessions_.emplace(session.get(), session);
    session->read();
  }

  /// Also held by whoever will post an answer into it.
  std::shared_ptr<Context> context_ = std::make_shared<Context>(1);
  io::IoCounters counters_;
  AdminResources resources_;
  std::unordered_map<Session*, std::shared_ptr<Session>> sessions_;
  io::Listener listener_;
  std::thread thread_;
};

AdminServer::AdminServer(io::ListeningSocket socket, AdminFacts facts, const AdminParts& parts)
    : impl_(std::make_unique<Impl>(std::move(socket), std::move(facts), parts)) {}
AdminServer::~AdminServer() = default;
void AdminServer::set_stopping() { impl_->set_stopping(); }
void AdminServer::stop() { impl_->stop(); }

}  // namespace kvmid::app
