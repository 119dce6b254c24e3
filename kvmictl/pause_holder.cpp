// SPDX-License-Identifier: GPL-2.0-or-later
#include "kvmictl/pause_holder.h"

#include <poll.h>

#include <algorithm>
#include <array>

#include "client/event_text.h"
#include "kvmictl/guest_commands.h"
#include "protocol/handshake.h"

namespace kvmid::ctl {

using namespace kvmid::client;  // NOLINT(google-build-using-namespace): this file is an agent

namespace {
constexpr Millis kStopTimeout{5000};
}

std::string holder_address(unsigned uid, const Uuid& guest) {
  return "@kvmictl-pause-" + std::to_string(uid) + "-" + to_string(guest);
}

Result<PauseHolder, ClientError> PauseHolder::stop(const Arguments& arguments) {
  auto attached = AgentClient::attach(connect_options(arguments), arguments.guest);
  if (!attached) return attached.error();
  PauseHolder holder(std::move(*attached));
  const std::size_t wanted = arguments.vcpu ? 1 : holder.guest().vcpu_count;
  const VcpuId vcpu = arguments.vcpu ? VcpuId{*arguments.vcpu} : kAllVcpus;
  if (auto asked = holder.client_.pause_vcpu(vcpu); !asked) return asked.error();
  const auto until = deadline_after(kStopTimeout);
  while (holder.held() < wanted) {
    const auto event = holder.client_.wait_event(Millis{poll_timeout(until)});
    if (!event) return event.error();
    if (!*event) {
      return ClientError{ClientErrc::TimedOut, ErrorCode::None,
                         std::to_string(holder.held()) + " of " + std::to_string(wanted) + " vCPUs stopped in time; " +
                             "they were let go again. `kvmictl guest` shows what the others wait for.",
                         0};
    }
    if ((*event)->event.kind() == EventKind::Pause && (*event)->event.decide) holder.events_.push_back(**event);
  }
  return holder;
}

std::chrono::milliseconds PauseHolder::limit() const {
  std::uint32_t shortest = 0;
  for (const auto& event : events_) {
    const std::uint32_t limit = event.event.deadline_us;
    if (limit != 0 && (shortest == 0 || limit < shortest)) shortest = limit;
  }
  return std::chrono::milliseconds{shortest / 1000};
}

/// Everything that has arrived. `ended` when nothing is held any more.
PauseHolder::End PauseHolder::take_all(const std::function<void(const std::string&)>& say, bool& ended) {
  for (;;) {
    const auto message = client_.next_message(Millis{0});
    if (!message) {
      ended = true;
      say(message.error().text);
      return End::Lost;
    }
    if (!*message) return End::Time;
    if (const auto* notice = std::get_if<ReceivedNotice>(&**message)) {
      if (notice->kind == NoticeKind::Expired) {
        std::erase_if(events_, [&](const auto& event) { return event.seq == notice->event_seq; });
        say("kvmid's limit for pauses (policy pause_max_ms) passed: vCPU " + std::to_string(notice->vcpu.value) +
            " of " + guest().guest_name + " runs again");
      } else {
        say(words(*notice));
      }
    } else if (const auto* gone = std::get_if<GuestGone>(&**message)) {
      say(words(*gone));
      events_.clear();
    }
    if (events_.empty()) {
      ended = true;
      return End::Expired;
    }
  }
}

PauseHolder::End PauseHolder::hold(SteadyClock::time_point until, StopSignal& signal, int listener,
                                   const std::function<void(const std::string&)>& say) {
  for (;;) {
    bool ended = false;
    if (const End end = take_all(say, ended); ended) return end;
    std::array<pollfd, 3> wait{{{client_.fd(), POLLIN, 0}, {signal.fd(), POLLIN, 0}, {listener, POLLIN, 0}}};
    const int left = poll_timeout(until);
    ::poll(wait.data(), wait.size(), left);
    if (wait[1].revents != 0) return End::Signal;
    if (wait[2].revents != 0) return End::Asked;
    if (wait[0].revents == 0 && poll_timeout(until) == 0) return End::Time;
  }
}

Result<std::size_t, ClientError> PauseHolder::release(Action action) {
  auto batch = client_.batch();
  for (const auto& event : events_) batch.reply(event, action);
  if (auto sent = batch.send(); !sent) return sent.error();
  const std::size_t count = events_.size();
  events_.clear();
  if (action == Action::Crash) return count;  // GUEST_OFF tells that it was read
  // Replies have no answer; a command behind them has, so when it comes they were read and not lost with the close.
  if (auto read = client_.get_version(); !read) return read.error();
  return count;
}

}  // namespace kvmid::ctl
