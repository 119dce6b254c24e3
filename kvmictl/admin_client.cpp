// SPDX-License-Identifier: GPL-2.0-or-later
//
// The only file of kvmictl that sees Boost.

#include "kvmictl/admin_client.h"

#include <boost/asio/io_context.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>

namespace kvmid::ctl {

using client::ClientErrc;
using client::ClientError;

namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;

/// A guest list is some hundred bytes a guest; more than this is no list.
constexpr std::uint64_t kBodyMax = 64U << 20U;

ClientError error_of(const std::string& socket, const boost::system::error_code& code) {
  if (code == beast::error::timeout) {
    return {ClientErrc::TimedOut, ErrorCode::None, "kvmid did not answer in time on " + socket, 0};
  }
  if (code == http::error::end_of_stream || code == asio::error::eof || code == asio::error::connection_reset) {
    return {ClientErrc::Closed, ErrorCode::None, "kvmid closed the connection on " + socket, code.value()};
  }
  return {ClientErrc::Protocol, ErrorCode::None, "no proper HTTP answer on " + socket + ": " + code.message(), 0};
}

}  // namespace

Result<nlohmann::json, ClientError> admin_answer(unsigned status, const std::string& body) {
  auto json = nlohmann::json::parse(body, nullptr, false);
  if (status == 200) {
    if (json.is_object()) return json;
    return ClientError{ClientErrc::Protocol, ErrorCode::None, "kvmid's answer is no JSON object", 0};
  }
  std::string message = "kvmid answered HTTP " + std::to_string(status);
  if (json.is_object() && json["error"].is_object() && json["error"]["message"].is_string()) {
    message = json["error"]["message"].get<std::string>();
    const auto& path = json["error"]["path"];
    if (path.is_string() && !path.get<std::string>().empty()) message = path.get<std::string>() + ": " + message;
  }
  const bool lacking = status == 404 && message.starts_with("no such resource");
  if (lacking || status == 405) {
    return ClientError{ClientErrc::Failed, ErrorCode::NotServed, "this kvmid does not serve that: " + message, 0};
  }
  if (status == 404) return ClientError{ClientErrc::NoGuest, ErrorCode::NoEntry, message, 0};
  if (status == 403) return ClientError{ClientErrc::Refused, ErrorCode::NotPermitted, message, 0};
  return ClientError{ClientErrc::Failed, ErrorCode::None, message, 0};
}

std::string query_escaped(const std::string& text) {
  static constexpr std::string_view kDigits = "0123456789ABCDEF";
  std::string out;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    const bool plain = (byte >= '0' && byte <= '9') || (byte >= 'a' && byte <= 'z') || (byte >= 'A' && byte <= 'Z') ||
                       std::string_view("-_.~").find(c) != std::string_view::npos;
    if (plain) {
      out += c;
    } else {
      out += {'%', kDigits[byte >> 4U], kDigits[byte & 15U]};
    }
  }
  return out;
}

Result<nlohmann::json, ClientError> admin_call(const std::string& socket, const AdminRequest& request,
                                               client::Millis timeout) {
  // Connecting by our own function: it explains what is wrong with the socket.
  auto connected = client::connect_stream(socket, client::deadline_after(timeout));
  if (!connected) return connected.error();

  asio::io_context io;
  beast::basic_stream<asio::local::stream_protocol> stream(io);
  boost::system::error_code code;
  stream.socket().assign(asio::local::stream_protocol(), connected->get(), code);
  if (code) return error_of(socket, code);
  (void)connected->release();
  stream.expires_after(timeout);

  http::request<http::string_body> message(http::string_to_verb(request.method), request.target, 11);
  message.set(http::field::host, "kvmid");
  message.set(http::field::connection, "close");
  if (!request.body.empty()) message.set(http::field::content_type, "application/json");
  message.body() = request.body;
  message.prepare_payload();
  beast::flat_buffer buffer;
  http::response_parser<http::string_body> parser;
  parser.body_limit(kBodyMax);
  http::async_write(stream, message, [&](boost::system::error_code written, std::size_t) {
    code = written;
    if (code) return;
    http::async_read(stream, buffer, parser, [&](boost::system::error_code read, std::size_t) { code = read; });
  });
  io.run();
  if (code) return error_of(socket, code);
  return admin_answer(parser.get().result_int(), parser.get().body());
}

}  // namespace kvmid::ctl
