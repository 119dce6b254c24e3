// SPDX-License-Identifier: GPL-2.0-or-later
//
// The part of `top` that looks, waits and draws. On a terminal it takes the other screen, so that what was there comes
// back; elsewhere each picture is plain text, or with --json one object a line.

#include <poll.h>
#include <termios.h>
#include <unistd.h>

#include <array>
#include <cstdio>

#include "client/agent_loop.h"
#include "kvmictl/admin_client.h"
#include "kvmictl/guest_commands.h"
#include "kvmictl/top.h"

namespace kvmid::ctl {

using client::ClientError;
using client::Millis;
using client::SteadyClock;

namespace {

constexpr Millis kAdminTimeout{5000};
/// Guests whose counters are asked for where nothing says how many are shown.
constexpr std::size_t kGuestsMax = 64;

/// Keys one by one and the other screen, until destroyed. Without a terminal it does nothing.
class Screen {
 public:
  explicit Screen(bool wanted) {
    if (!wanted || ::isatty(STDOUT_FILENO) == 0) return;
    drawn_ = true;
    std::fputs("\x1b[?1049h\x1b[?25l", stdout);
    if (::isatty(STDIN_FILENO) == 0 || ::tcgetattr(STDIN_FILENO, &before_) != 0) return;
    termios raw = before_;
    raw.c_lflag &= ~static_cast<tcflag_t>(ICANON | ECHO);
    keys_ = ::tcsetattr(STDIN_FILENO, TCSANOW, &raw) == 0;
  }
  ~Screen() {
    if (keys_) ::tcsetattr(STDIN_FILENO, TCSANOW, &before_);
    if (drawn_) {
      std::fputs("\x1b[?25h\x1b[?1049l", stdout);
      std::fflush(stdout);
    }
  }
  Screen(const Screen&) = delete;
  Screen& operator=(const Screen&) = delete;

  [[nodiscard]] bool drawn() const { return drawn_; }
  [[nodiscard]] bool keys() const { return keys_; }

  void draw(const std::string& text) const {
    if (drawn_) std::fputs("\x1b[H", stdout);
    for (const char c : text) {
      if (c == '\n' && drawn_) std::fputs("\x1b[K\r", stdout);  // what the picture before had there
      std::fputc(c, stdout);
    }
    std::fputs(drawn_ ? "\x1b[J" : "", stdout);
    std::fflush(stdout);
  }

 private:
  termios before_{};
  bool drawn_ = false;
  bool keys_ = false;
};

Result<TopSample, ClientError> look(const Arguments& arguments, const TopSample& before, std::size_t guests_max) {
  TopSample out;
  out.at = SteadyClock::now();
  const auto get = [&](const std::string& target) { return admin_get(arguments.admin_socket, target, kAdminTimeout); };
  for (const auto& [target, into] :
       {std::pair{"/v1/status", &out.status}, {"/v1/guests", &out.guests}, {"/v1/agents", &out.agents}}) {
    auto answer = get(target);
    if (!answer) return answer.error();
    *into = std::move(*answer);
  }
  const Json& list = child(out.guests, "guests");
  if (list.is_array() && !list.empty() && child(list.front(), "counters").is_object()) return out;
  for (const auto& uuid : busiest(before, out.guests, guests_max)) {
    if (auto guest = get("/v1/guests/" + uuid)) out.counters[uuid] = child(*guest, "counters");
  }
  return out;
}

/// Waits; true when it is time to end.
bool wait_or_end(SteadyClock::time_point until, client::StopSignal& stop, const Screen& screen) {
  for (;;) {
    std::array<pollfd, 2> wait{{{stop.fd(), POLLIN, 0}, {screen.keys() ? STDIN_FILENO : -1, POLLIN, 0}}};
    const int left = client::poll_timeout(until);
    ::poll(wait.data(), wait.size(), left);
    if (wait[0].revents != 0) return true;
    if (wait[1].revents != 0) {
      char key = 0;
      if (::read(STDIN_FILENO, &key, 1) <= 0 || key == 'q' || key == 'Q') return true;
    }
    if (client::poll_timeout(until) == 0) return false;
  }
}

/// Draws until it is time to end. The error is for the caller: on the other screen nobody would read it.
Result<void, ClientError> draw_all(const Arguments& arguments, TopSample before) {
  client::StopSignal stop;
  const Millis interval{static_cast<std::int64_t>(arguments.interval_seconds * 1000)};
  const Screen screen(!arguments.once && !arguments.json);
  for (bool again = false;; again = true) {
    if (wait_or_end(before.at + interval, stop, screen)) return {};
    TerminalSize size = terminal_size();
    size.rows = screen.drawn() && size.rows > 0 ? size.rows - 1 : 0;  // the last line stays free: it would scroll
    const auto now = look(arguments, before, size.rows != 0 ? size.rows : kGuestsMax);
    if (!now) return now.error();
    const TopPicture picture = compare(before, *now);
    if (arguments.json) {
      screen.draw(top_json(picture).dump(-1, ' ', false, Json::error_handler_t::replace) + "\n");
    } else {
      screen.draw((again && !screen.drawn() ? "\n" : "") + render_top(picture, *now, size));
    }
    if (arguments.once) return {};
    before = *now;
  }
}

}  // namespace

int top(const Arguments& arguments) {
  const auto first = look(arguments, {}, kGuestsMax);
  if (!first) return explain(first.error());
  const auto done = draw_all(arguments, *first);
  return done ? kOk : explain(done.error());
}

}  // namespace kvmid::ctl
