// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "daemon/io/settings.h"
#include "protocol/ids.h"

namespace kvmid::io {

/// One of the patterns matches the guest's name, or its UUID as people write it.
[[nodiscard]] bool names_guest(const std::vector<std::string>& patterns, std::string_view name, const Uuid& uuid);
/// The first rule for that guest, or null.
[[nodiscard]] const GuestRule* rule_of(const std::vector<GuestRule>& rules, std::string_view name, const Uuid& uuid);

}  // namespace kvmid::io
