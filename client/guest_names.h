// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

/// What people call a guest -> its uuid.

#include <span>
#include <string>
#include <string_view>

#include "client/client_error.h"
#include "protocol/ids.h"
#include "protocol/result.h"

namespace kvmid::client {

/// One guest of a list, as far as naming it matters.
struct GuestName {
  Uuid uuid;
  std::string name;
};

/// Finds the guest that `text` means: its whole uuid, else its exact name, else a uuid prefix that only one guest has
/// (4 characters or more, dashes as in the written form). A name goes before a prefix, so that a guest called "beef"
/// can be reached by its name.
/// Errors: NoGuest, with the candidates in the text where there are several.
Result<Uuid, ClientError> find_guest(std::span<const GuestName> guests, std::string_view text);

}  // namespace kvmid::client
