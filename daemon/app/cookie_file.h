// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "daemon/app/config.h"
#include "daemon/io/settings.h"
#include "protocol/result.h"

namespace kvmid::app {

inline constexpr std::size_t kCookieMax = 4096;  ///< bytes of a secret

/// The hash of the secret in a file.
///
/// Purpose:  a hypervisor and its tool prove by it that they know the same secret; kvmid keeps the hash and nothing else.
/// Shapes:   one trailing newline is not part of the secret, which has 1 to kCookieMax bytes.
/// Errors:   a sentence: there is no such file, it is no regular file, its owner is neither root nor `own_uid`, somebody
///           else may read or write it (any bit of group or others), it is empty or too large. Never a byte of it.
///           CookieFiles::Check for uid 0 takes any owner.
/// Threads:  any; it may block for as long as the file system does.
/// Lifetime: the secret is wiped from memory before this returns.
Result<io::CookieHash, std::string> read_cookie_file(const std::string& file, CookieFiles how, std::uint32_t own_uid);

}  // namespace kvmid::app
