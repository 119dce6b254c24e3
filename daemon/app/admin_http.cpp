// SPDX-License-Identifier: GPL-2.0-or-later
// The only source that includes Beast: it is slow to compile.
#include "daemon/app/admin_http.h"

#include <pthread.h>
#include <spdlog/logger.h>
#include <unistd.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/post.hpp>
#include <boost/beast/core/basic_stream.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/string_body.hpp>
#include <boost/beast/http/write.hpp>
#include <optional>
#include <thread>
#include <unordered_map>

#include "daemon/app/admin_json.h"
#include "protocol/handshake.h"

namespace kvmid::app {
namespace {

namespace http = boost::beast::http;
using boost::system::error_code;
using Local = boost::asio::local::stream_protocol;
using Request = http::request<http::string_body>;
using Response = http::response<http::string_body>;

constexpr std::size_t kConnectionsMax = 64;
constexpr std::uint32_t kHeaderMax = 16U * 1024U;
constexpr std::uint64_t kBodyMax = 64U * 1024U;
constexpr std::chrono::seconds kRequestTimeout{10};
constexpr std::chrono::milliseconds kShardTimeout{1000};

/// What is answered, as a function of the request's method and path.
class Resources {
 public:
  Resources(AdminFacts facts, io::Broker& broker)
      : facts_(std::move(facts)), broker_(broker), started_(std::chrono::steady_clock::now()) {}

  Response answer(const Request& request) {
    const std::string_view target(request.target().data(), request.target().size());
    const std::string_view path = target.substr(0, target.find('?'));
    nlohmann::ordered_json body;
    const unsigned status = route(request.method(), path, body);
    Response response{static_cast<http::status>(status), request.version()};
    response.set(http::field::content_type, "application/json");
    if (status == 405) response.set(http::field::allow, "GET");
    response.keep_alive(request.keep_alive());
    response.body() = body.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
    response.prepare_payload();
    return response;
  }

 private:
  static unsigned error(unsigned code, const std::string& message, nlohmann::ordered_json& body) {
    body = error_json(code, message);
    return code;
  }

  unsigned route(http::verb method, std::string_view path, nlohmann::ordered_json& body) {
    constexpr std::string_view kGuest = "/v1/guests/";
    const bool known = path == "/v1/status" || path == "/v1/guests" || path == "/v1/agents" || path.starts_with(kGuest);
    if (!known) return error(404, "no such resource: " + std::string(path), body);
    if (method != http::verb::get) return error(405, "only GET is served here", body);
    if (path == "/v1/status") {
      body = status();
    } else if (path == "/v1/guests") {
      body = guests_json(broker_.guests(kShardTimeout));
    } else if (path == "/v1/agents") {
      body = agents_json(broker_.guests(kShardTimeout), broker_.control_agents(kShardTimeout));
    } else {
      return guest(path.substr(kGuest.size()), body);
    }
    return 200;
  }

  nlohmann::ordered_json status() {
    const auto now = std::chrono::steady_clock::now();
    const StatusFacts facts{facts_.version, facts_.config_file, static_cast<std::uint32_t>(::getpid()),
                            std::chrono::duration_cast<std::chrono::seconds>(now - started_)};
    return status_json(facts, broker_.status(kShardTimeout));
  }

  unsigned guest(std::string_view name, nlohmann::ordered_json& body) {
    const auto uuid = parse_uuid(name);
    if (!uuid) return error(400, "not a UUID: " + std::string(name), body);
    for (const auto& found : broker_.guests(kShardTimeout)) {
      if (found.uuid != *uuid) continue;
      body = guest_json(found);
      return 200;
    }
    return error(404, "no such guest: " + to_string(*uuid), body);
  }

  AdminFacts facts_;
  io::Broker& broker_;
  std::chrono::steady_clock::time_point started_;
};

/// One client: a request, its answer, the next.
class Session : public std::enable_shared_from_this<Session> {
 public:
  using Gone = std::function<void(Session*)>;
  Session(boost::asio::io_context& context, io::UniqueFd fd, Resources& resources, Gone gone)
      : stream_(context), resources_(resources), gone_(std::move(gone)) {
    error_code failed;
    stream_.socket().assign(Local(), fd.get(), failed);
    if (!failed) (void)fd.release();
  }

  void read() {
    parser_.emplace();
    parser_->header_limit(kHeaderMax);
    parser_->body_limit(kBodyMax);
    stream_.expires_after(kRequestTimeout);
    http::async_read(stream_, buffer_, *parser_, [self = shared_from_this()](const error_code& error, std::size_t) {
      self->on_read(error);
    });
  }
  void close() {
    error_code ignored;
    stream_.socket().close(ignored);
  }

 private:
  void on_read(const error_code& error) {
    if (error) {
      refuse(error);
      return;
    }
    write(resources_.answer(parser_->get()));
  }

  void refuse(const error_code& error) {
    if (error == http::error::body_limit || error == http::error::header_limit || error == http::error::buffer_overflow)
      return write(refusal(http::status::payload_too_large, "the request is too large"));
    if (error.category() == make_error_code(http::error::end_of_stream).category() &&
        error != http::error::end_of_stream && error != http::error::partial_message)
      return write(refusal(http::status::bad_request, "not HTTP: " + error.message()));
    gone_(this);
  }

  static Response refusal(http::status status, const std::string& message) {
    Response response{status, 11};
    response.set(http::field::content_type, "application/json");
    response.keep_alive(false);
    response.body() = error_json(static_cast<unsigned>(status), message).dump() + "\n";
    response.prepare_payload();
    return response;
  }

  void write(Response response) {
    response_.emplace(std::move(response));
    stream_.expires_after(kRequestTimeout);
    http::async_write(stream_, *response_, [self = shared_from_this()](const error_code& error, std::size_t) {
      if (error || self->response_->need_eof()) {
        self->gone_(self.get());
      } else {
        self->read();
      }
    });
  }

  boost::beast::basic_stream<Local> stream_;
  boost::beast::flat_buffer buffer_{kHeaderMax + kBodyMax};
  std::optional<http::request_parser<http::string_body>> parser_;
  std::optional<Response> response_;
  Resources& resources_;
  Gone gone_;
};

}  // namespace

class AdminServer::Impl {
 public:
  Impl(io::ListeningSocket socket, AdminFacts facts, io::Broker& broker, io::Log& log)
      : resources_(std::move(facts), broker),
        listener_(context_, std::move(socket), "admin", counters_, log,
                  [this](io::UniqueFd fd) { accepted(std::move(fd)); }) {
    listener_.start();
    thread_ = std::thread([this] {
      ::pthread_setname_np(::pthread_self(), "admin");
      context_.run();
    });
  }
  ~Impl() {
    stop();
    if (thread_.joinable()) thread_.join();
  }

  void stop() {
    boost::asio::post(context_, [this] {
      listener_.stop();
      for (const auto& [key, session] : sessions_) session->close();
      sessions_.clear();
    });
  }

 private:
  void accepted(io::UniqueFd fd) {
    if (sessions_.size() >= kConnectionsMax) return;  // closed: the admin side is for few
    const auto session = std::make_shared<Session>(context_, std::move(fd), resources_,
                                                   [this](Session* gone) { sessions_.erase(gone); });
    sessions_.emplace(session.get(), session);
    session->read();
  }

  boost::asio::io_context context_{1};
  io::IoCounters counters_;
  Resources resources_;
  std::unordered_map<Session*, std::shared_ptr<Session>> sessions_;
  io::Listener listener_;
  std::thread thread_;
};

AdminServer::AdminServer(io::ListeningSocket socket, AdminFacts facts, io::Broker& broker, io::Log& log)
    : impl_(std::make_unique<Impl>(std::move(socket), std::move(facts), broker, log)) {}
AdminServer::~AdminServer() = default;
void AdminServer::stop() { impl_->stop(); }

}  // namespace kvmid::app
