// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <cstddef>
#include <string_view>

namespace kvmid {

/// How many bytes at the start of `text` are well-formed UTF-8 (no overlong forms, surrogates or cut characters).
///
/// Purpose:  texts of peers go into logs and JSON, which take no other bytes.
/// Threads:  a pure function.
[[nodiscard]] std::size_t valid_utf8_prefix(std::string_view text);

/// Well-formed UTF-8 without control characters: what a name may be.
[[nodiscard]] bool is_printable_name(std::string_view text);

}  // namespace kvmid
