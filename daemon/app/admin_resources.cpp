// SPDX-License-Identifier: GPL-2.0-or-later
#include "daemon/app/admin_resources.h"

#include <spdlog/logger.h>
#include <unistd.h>

#include "daemon/app/logging.h"
#include "daemon/app/metrics.h"
#include "protocol/handshake.h"

namespace kvmid::app {
namespace {

using Json = nlohmann::ordered_json;
constexpr std::chrono::milliseconds kShardTimeout{1000};

std::string text_of(const Json& body) { return body.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n"; }
Answer good(const Json& body) { return {200, text_of(body), "application/json", {}}; }

}  // namespace

Answer error_answer(unsigned status, const std::string& message) {
  return {status, text_of(error_json(status, message)), "application/json", {}};
}

Answer answer_of(const RouteError& error) {
  Answer answer = error_answer(error.status, error.message);
  answer.allow = error.allow;
  return answer;
}

Answer answer_of(const ReloadResult& result) {
  if (!result.error)
    return good(Json{{"schema", 1}, {"agents", result.effect.agents}, {"closed", result.effect.closed}});
  Json body = error_json(422, result.error->text);
  body["error"]["path"] = result.error->path;
  return {422, text_of(body), "application/json", {}};
}

StatusFacts AdminResources::facts() const {
  const auto now = std::chrono::steady_clock::now();
  return {facts_.version, facts_.config_file, static_cast<std::uint32_t>(::getpid()),
          std::chrono::duration_cast<std::chrono::seconds>(now - started_)};
}

io::StatusSnapshot AdminResources::status() const {
  io::StatusSnapshot status = parts_.broker.status(kShardTimeout);
  status.counters.push_back({"audit_written", parts_.audit.written()});
  status.counters.push_back({"audit_dropped", parts_.audit.dropped()});
  status.counters.push_back({"reloads", parts_.reloader.reloads()});
  status.counters.push_back({"reloads_refused", parts_.reloader.refused()});
  status.counters.push_back({"stream_dropped", parts_.streams.dropped()});
  return status;
}

Answer AdminResources::health() const {
  if (stopping_) return error_answer(503, "kvmid is stopping");
  return good(Json{{"schema", 1}, {"status", "ok"}, {"version", facts_.version}, {"uptime_s", facts().uptime.count()}});
}

Answer AdminResources::guest(const Uuid& uuid) {
  for (const auto& found : parts_.broker.guests(kShardTimeout))
    if (found.uuid == uuid) return good(guest_json(found));
  return error_answer(404, "no such guest: " + to_string(uuid));
}

Answer AdminResources::answer(const Route& route) {
  switch (route.resource) {
    case Resource::Status: return good(status_json(facts(), status()));
    case Resource::Health: return health();
    case Resource::Guests: return good(guests_json(parts_.broker.guests(kShardTimeout)));
    case Resource::Guest: return guest(route.guest);
    case Resource::Agents:
      return good(agents_json(parts_.broker.guests(kShardTimeout), parts_.broker.control_agents(kShardTimeout)));
    case Resource::Failures: return good(failures_json(parts_.broker.failures(kShardTimeout)));
    case Resource::Metrics:
      return {200,
              metrics_text(facts(), status(), parts_.broker.guests(kShardTimeout),
                           parts_.broker.failures(kShardTimeout)),
              "text/plain; version=0.0.4; charset=utf-8", {}};
    case Resource::SetLogLevel:
      set_level(parts_.log, route.level);
      parts_.log.info("log level set level={}", route.level);
      [[fallthrough]];
    case Resource::LogLevel: return good(Json{{"schema", 1}, {"level", level_of(parts_.log)}});
    case Resource::Events:
    case Resource::Reload: break;
  }
  return error_answer(404, "not answered at once");
}

}  // namespace kvmid::app
