// SPDX-License-Identifier: GPL-2.0-or-later
#include "daemon/app/audit_log.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <spdlog/logger.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <mutex>
#include <optional>

#include "daemon/app/event_json.h"
#include "daemon/io/unique_fd.h"

namespace kvmid::app {
namespace {

constexpr std::size_t kBatch = 256;  // records in one write
constexpr int kRetryMs = 1000;

/// Appends; a pipe without a reader is opened for both, so that its buffer can fill and a reader can come later.
Result<io::UniqueFd, std::string> open_file(const std::string& file) {
  constexpr int kFlags = O_APPEND | O_CREAT | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
  io::UniqueFd fd(::open(file.c_str(), O_WRONLY | kFlags, 0640));
  if (!fd.valid() && errno == ENXIO) fd.reset(::open(file.c_str(), O_RDWR | kFlags, 0640));
  if (!fd.valid()) return "cannot open " + file + ": " + std::strerror(errno);
  return fd;
}

bool same_file(int a, int b) {
  struct stat first {};
  struct stat second {};
  return ::fstat(a, &first) == 0 && ::fstat(b, &second) == 0 && first.st_dev == second.st_dev &&
         first.st_ino == second.st_ino;
}

/// A record, or how many were dropped here.
struct Entry {
  std::optional<io::AuditRecord> record;
  std::uint64_t dropped = 0;
};

}  // namespace

struct AuditLog::Shared {
  explicit Shared(io::Log& to) : log(&to), wake(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}

  std::mutex mutex;
  std::condition_variable changed;
  std::deque<Entry> queue;
  std::size_t queue_max = 0;
  std::size_t in_flight = 0;           ///< records that the thread took and has not written
  std::uint64_t dropped_here = 0;      ///< since the last line that told of it
  std::optional<io::UniqueFd> next;    ///< to be used from now on; invalid: none
  bool stopping = false;
  bool ended = false;
  io::Log* log;  ///< null once the owner is gone
  std::string file;

  std::atomic<bool> wanted{false};
  std::atomic<std::uint64_t> written{0};
  std::atomic<std::uint64_t> dropped{0};
  io::UniqueFd wake;  ///< readable: `next` or `stopping` changed, look again

  // ---- the thread's own ----
  io::UniqueFd fd;
  std::string buffer;          ///< whole lines
  std::size_t done = 0;        ///< bytes of it that are written
  std::size_t taken = 0;       ///< records in it
  bool failing = false;

  void run();
  bool take_batch();
  bool write_some();
  void use_next();
  void pause(bool until_writable);
  void say_failing(const char* reason);
  void drop_rest();
  template <class F>
  void say(F&& line) {
    const std::lock_guard lock(mutex);
    if (log != nullptr) line(*log, file);
  }
};

/// Waits for something to do. False: nothing is left and nothing will come.
bool AuditLog::Shared::take_batch() {
  std::unique_lock lock(mutex);
  in_flight = 0;
  changed.wait(lock, [&] { return stopping || next || !queue.empty() || dropped_here != 0; });
  if (next) {
    lock.unlock();
    use_next();
    lock.lock();
  }
  if (queue.empty() && dropped_here == 0) return !stopping;
  buffer.clear();
  done = 0;
  std::deque<Entry> batch;
  while (!queue.empty() && batch.size() < kBatch) {
    batch.push_back(std::move(queue.front()));
    queue.pop_front();
  }
  if (queue.empty() && dropped_here != 0) batch.push_back({{}, std::exchange(dropped_here, 0)});
  in_flight = batch.size();
  lock.unlock();
  for (const auto& entry : batch)
    buffer += entry.record ? audit_line(*entry.record)
                           : audit_dropped_line(entry.dropped, std::chrono::system_clock::now());
  taken = batch.size();
  return true;
}

void AuditLog::Shared::use_next() {
  io::UniqueFd fresh;
  {
    const std::lock_guard lock(mutex);
    if (!next) return;
    fresh = std::move(*next);
    next.reset();
  }
  if (!fresh.valid() && done < buffer.size()) {  // switched off: the old file gets what waits, if it takes it
    fd.reset();
    return;
  }
  if (done != 0 && done < buffer.size()) {
    // A line that was begun in the old file is written again as a whole; in the same file its beginning is ended first.
    const bool same = fd.valid() && same_file(fd.get(), fresh.get());
    const auto line = buffer.rfind('\n', done - 1);
    const bool torn = buffer[done - 1] != '\n';
    buffer.erase(0, line == std::string::npos ? 0 : line + 1);
    if (same && torn) buffer.insert(0, "\n");
    done = 0;
  }
  fd = std::move(fresh);
}

void AuditLog::Shared::pause(bool until_writable) {
  pollfd polled[2] = {{wake.get(), POLLIN, 0}, {fd.get(), POLLOUT, 0}};
  (void)::poll(polled, until_writable ? 2 : 1, kRetryMs);
  std::uint64_t count = 0;
  (void)!::read(wake.get(), &count, sizeof count);
}

void AuditLog::Shared::say_failing(const char* reason) {
  if (std::exchange(failing, true)) return;
  say([&](io::Log& to, const std::string& at) {
    to.error("audit log cannot be written file={} reason={}", io::field(at), io::field(reason));
  });
}

/// False: it cannot be written now; pause() was called.
bool AuditLog::Shared::write_some() {
  if (!fd.valid()) {  // switched off while lines waited: they have nowhere to go
    dropped.fetch_add(taken, std::memory_order_relaxed);
    buffer.clear();
    done = 0;
    return true;
  }
  const ssize_t n = ::write(fd.get(), buffer.data() + done, buffer.size() - done);
  if (n > 0) {
    done += static_cast<std::size_t>(n);
    return true;
  }
  if (n < 0 && errno == EINTR) return true;
  const bool full_pipe = n < 0 && errno == EAGAIN;
  say_failing(full_pipe ? "its reader does not keep up" : n < 0 ? std::strerror(errno) : "nothing was written");
  pause(full_pipe);
  return false;
}

void AuditLog::Shared::run() {
  ::pthread_setname_np(::pthread_self(), "audit");
  bool gave_up = false;
  while (!gave_up && take_batch()) {
    while (done < buffer.size()) {
      if (write_some()) continue;
      use_next();
      const std::lock_guard lock(mutex);
      if (stopping) {
        gave_up = true;
        break;
      }
    }
    if (gave_up) break;
    if (!buffer.empty()) written.fetch_add(taken, std::memory_order_relaxed);
    buffer.clear();
    if (!failing) continue;
    failing = false;
    say([&](io::Log& to, const std::string& at) { to.info("audit log is written again file={}", io::field(at)); });
  }
  drop_rest();
}

void AuditLog::Shared::drop_rest() {
  const std::lock_guard lock(mutex);
  const std::size_t lost = queue.size() + (done < buffer.size() ? taken : 0);
  dropped.fetch_add(lost, std::memory_order_relaxed);
  queue.clear();
  if (lost != 0 && log != nullptr) log->warn("audit lines lost at the end lines={}", lost);
  ended = true;
  changed.notify_all();
}

AuditLog::AuditLog(io::Log& log) : shared_(std::make_shared<Shared>(log)) {}

AuditLog::~AuditLog() {
  shared_->wanted = false;
  if (!thread_.joinable()) return;
  std::unique_lock lock(shared_->mutex);
  shared_->stopping = true;
  const std::uint64_t one = 1;
  (void)!::write(shared_->wake.get(), &one, sizeof one);
  shared_->changed.notify_all();
  const bool ended = shared_->changed.wait_for(lock, kStopTimeout, [&] { return shared_->ended; });
  if (!ended) {
    if (shared_->log != nullptr) shared_->log->warn("the audit log hangs in its file; stopping without it");
    shared_->log = nullptr;
  }
  lock.unlock();
  ended ? thread_.join() : thread_.detach();
}

Result<void, std::string> AuditLog::open(const AuditConfig& config) {
  io::UniqueFd fd;
  if (config.file) {
    auto opened = open_file(*config.file);
    if (!opened) return opened.error();
    fd = std::move(*opened);
  }
  {
    const std::lock_guard lock(shared_->mutex);
    shared_->file = config.file.value_or("");
    shared_->queue_max = config.queue_max;
    shared_->wanted.store(fd.valid(), std::memory_order_relaxed);
    if (!fd.valid() && !thread_.joinable()) return {};
    shared_->next = std::move(fd);
    const std::uint64_t one = 1;
    (void)!::write(shared_->wake.get(), &one, sizeof one);
    shared_->changed.notify_all();
  }
  if (!thread_.joinable()) thread_ = std::thread([shared = shared_] { shared->run(); });
  return {};
}

bool AuditLog::wanted() const { return shared_->wanted.load(std::memory_order_relaxed); }

void AuditLog::record(io::AuditRecord record) {
  const std::lock_guard lock(shared_->mutex);
  if (shared_->queue.size() + shared_->in_flight >= shared_->queue_max) {
    ++shared_->dropped_here;
    shared_->dropped.fetch_add(1, std::memory_order_relaxed);
    return;
  }
  if (shared_->dropped_here != 0) shared_->queue.push_back({{}, std::exchange(shared_->dropped_here, 0)});
  shared_->queue.push_back({std::move(record), 0});
  shared_->changed.notify_all();
}

std::uint64_t AuditLog::written() const { return shared_->written.load(std::memory_order_relaxed); }
std::uint64_t AuditLog::dropped() const { return shared_->dropped.load(std::memory_order_relaxed); }

}  // namespace kvmid::app
