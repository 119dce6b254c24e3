// SPDX-License-Identifier: LGPL-2.1-or-later
#include "protocol/dialect.h"

namespace kvmid {
namespace {

std::string_view text_of(DecodeErrc code) {
  switch (code) {
    case DecodeErrc::Truncated: return "payload too short";
    case DecodeErrc::TooLong: return "payload too long";
    case DecodeErrc::PaddingNotZero: return "padding is not zero";
    case DecodeErrc::BadFlag: return "flag not known or not allowed here";
    case DecodeErrc::BadValue: return "value not allowed";
    case DecodeErrc::UnknownEvent: return "unknown event";
    case DecodeErrc::UnknownAction: return "unknown action";
  }
  return "not understood";
}

std::string message_name(std::uint16_t id) {
  switch (id) {
    case KVMI_MSG_EVENT: return "EVENT";
    case KVMI_MSG_EVENT_REPLY: return "EVENT_REPLY";
    case KVMI_MSG_GUEST_ON: return "GUEST_ON";
    case KVMI_MSG_GUEST_OFF: return "GUEST_OFF";
    case KVMI_MSG_NOTICE: return "NOTICE";
    default: break;
  }
  const std::string_view command = name_of(static_cast<CommandId>(id));
  return command == "unknown" ? "message " + std::to_string(id) : std::string(command);
}

}  // namespace

std::string describe(const DecodeError& error) {
  std::string text = message_name(error.id);
  text += ": ";
  text += text_of(error.code);
  text += " at byte ";
  text += std::to_string(error.offset);
  return text;
}

}  // namespace kvmid
