// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include "daemon/shm/unique_fd.h"

namespace kvmid::io {

using shm::UniqueFd;

}  // namespace kvmid::io
