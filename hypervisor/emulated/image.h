// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "protocol/result.h"

namespace kvmid::emulated {

struct ImageError {
  std::string text;
};

/// The test guest that is part of this program (guest/kernel.S).
std::span<const std::byte> embedded_image();

/// A flat binary from a file, at most `bytes_max` bytes, not empty. The error names the file and what is wrong with it.
Result<std::vector<std::byte>, ImageError> load_image(const std::string& path, std::uint64_t bytes_max);

}  // namespace kvmid::emulated
