// SPDX-License-Identifier: GPL-2.0-or-later
#include "daemon/app/daemon.h"

#include <spdlog/logger.h>
#include <sys/resource.h>
#include <unistd.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/signal_set.hpp>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <memory>

#include "daemon/app/admin_http.h"
#include "daemon/app/audit_log.h"
#include "daemon/app/event_streams.h"
#include "daemon/app/options.h"
#include "daemon/app/reloader.h"
#include "daemon/app/systemd.h"
#include "daemon/io/broker.h"

namespace kvmid::app {
namespace {

int cannot_start(io::Log& log, const std::string& text) {
  log.critical("cannot start reason={}", io::field(text));
  std::fprintf(stderr, "kvmid: %s\n", text.c_str());
  return kExitFailure;
}

}  // namespace

namespace {

sigset_t handled_signals() {
  sigset_t set;
  ::sigemptyset(&set);
  for (const int number : {SIGTERM, SIGINT, SIGHUP}) ::sigaddset(&set, number);
  return set;
}

}  // namespace

void hold_signals() {
  const sigset_t set = handled_signals();
  ::pthread_sigmask(SIG_BLOCK, &set, nullptr);
}

void prepare_process(io::Log& log) {
  std::signal(SIGPIPE, SIG_IGN);
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == limit.rlim_max) return;
  limit.rlim_cur = limit.rlim_max;
  if (::setrlimit(RLIMIT_NOFILE, &limit) != 0) log.warn("cannot raise the limit of open files");
}

int run_daemon(const Config& config, const ConfigSource& source, const char* version, io::Log& log) {
  AuditLog audit(log);
  if (auto opened = audit.open(config.audit); !opened) return cannot_start(log, "audit log: " + opened.error());
  EventStreams streams;
  boost::asio::io_context front{1};
  // Before there is anything to clean up: a signal that comes during the start waits until it is looked for.
  boost::asio::signal_set signals(front, SIGTERM, SIGINT, SIGHUP);
  io::Broker broker(front, config.settings, log, io::Witnesses{&audit, &streams});
  auto passed = take_passed_sockets();
  if (!passed) return cannot_start(log, passed.error());
  if (auto opened = broker.open(std::move(passed->broker)); !opened) return cannot_start(log, opened.error().text);

  Reloader reloader(source, config, broker, audit, log);
  std::unique_ptr<AdminServer> admin;
  std::string admin_at = config.admin.unix_path;
  io::ListeningSocket admin_socket;
  if (!passed->admin.empty()) {
    admin_at = passed->admin.front().address;
    admin_socket = std::move(passed->admin.front().socket);
  } else if (!admin_at.empty()) {
    auto socket = io::listen_unix(admin_at, static_cast<mode_t>(config.admin.mode), config.admin.group);
    if (!socket) return cannot_start(log, socket.error().text);
    admin_socket = std::move(*socket);
  }
  if (admin_socket.fd.valid()) {
    admin = std::make_unique<AdminServer>(std::move(admin_socket), AdminFacts{version, source.file},
                                          AdminParts{broker, reloader, audit, streams, log});
    log.info("listening for=admin at={}", io::field(admin_at));
  }

  ServiceManager manager(front, broker, log);
  bool stopping = false;
  std::function<void()> wait = [&] {
    signals.async_wait([&](const boost::system::error_code& error, int number) {
      if (error) return;
      if (number == SIGHUP) {
        if (!stopping) {
          manager.reloading();
          reloader.reload("SIGHUP", [&](const ReloadResult& result) {
            boost::asio::post(front, [&, result] {
              if (!stopping) manager.ready(result.summary());
            });
          });
        }
        return wait();
      }
      if (stopping) std::_Exit(128 + number);
      stopping = true;
      log.info("signal number={}", number);
      manager.stopping();
      if (admin) admin->set_stopping();  // it answers until the guests are let go
      broker.stop([&] { signals.cancel(); });
      wait();
    });
  };
  wait();
  log.info("ready version={} pid={} shards={} config={}", version, ::getpid(), config.settings.shards,
           io::field(source.file.empty() ? "defaults" : source.file));
  manager.ready("Serving hypervisors and agents on " + std::to_string(config.settings.shards) + " shards");
  const sigset_t set = handled_signals();
  ::pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
  front.run();
  admin.reset();  // before what it asks
  log.info("stopped");
  return kExitOk;
}

}  // namespace kvmid::app
