// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// The notice to an agent whose frame is answered by no reply.
///
/// Purpose:  the same words on a guest's connection and on a control connection.
/// Source:   protocol/PROTOCOL.md, "What a broken message costs".

#include <cstdint>
#include <string_view>

#include "protocol/message.h"

namespace kvmid::io {

inline constexpr std::string_view kGoesUpOnly = "this message goes towards agents only";
inline constexpr std::string_view kTooManyMalformed = "16 malformed messages in a row: the connection is closed";

/// A reply with one of these ids would look like the message itself.
[[nodiscard]] constexpr bool goes_up_only(std::uint16_t id) {
  return id == KVMI_MSG_GUEST_ON || id == KVMI_MSG_GUEST_OFF || id == KVMI_MSG_EVENT || id == KVMI_MSG_NOTICE ||
         id == KVMI_MSG_MEMORY_MAP_CHANGED;
}

[[nodiscard]] inline Notice frame_refusal(ErrorCode error, std::string_view text) {
  return Notice{.kind = NoticeKind::FrameRefused, .error = error, .text = text};
}

}  // namespace kvmid::io
