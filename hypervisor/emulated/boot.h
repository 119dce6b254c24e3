// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// The boot protocol's addresses. See GUEST.md.

#include <cstdint>

#include "hypervisor/emulated/mailbox_layout.h"
#include "protocol/ids.h"

namespace kvmid::emulated::boot {

inline constexpr Gpa kPml4{0x1000};  ///< and the next two pages: the loader's identity map of the first GiB
inline constexpr Gpa kGdt{0x4000};
inline constexpr std::uint16_t kCodeSelector = 0x08, kDataSelector = 0x10;
inline constexpr std::uint16_t kGdtBytes = 24;
inline constexpr Gpa kImage{KVMID_GUEST_IMAGE_GPA};

}  // namespace kvmid::emulated::boot
