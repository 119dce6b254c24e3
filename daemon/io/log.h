// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <memory>
#include <string>
#include <string_view>

namespace spdlog {
class logger;
}

namespace kvmid::io {

/// The daemon's log: lines of `what happened key=value key="two words"`.
/// Threads:  any thread; a slow disk never blocks the caller (the logger drops its oldest lines instead).
using Log = spdlog::logger;

/// A value as it stands in a log line: quoted where it would not be one word, with no character that could break a line
/// in two or forge another field.
[[nodiscard]] std::string field(std::string_view value);

}  // namespace kvmid::io
