// SPDX-License-Identifier: LGPL-2.1-or-later
//
// What the dialects of version 1 share: names, the choice of a codec, and the message that tells them apart.

#include "protocol/kvmi1.h"

#include <cstdlib>
#include <cstring>
#include <iterator>
#include <utility>

#include "protocol/kvmi1_codec.h"
#include "protocol/kvmi1_dialects.h"
#include "protocol/payload_io.h"

namespace kvmid::kvmi1 {
namespace {

constexpr std::string_view kDialectNames[] = {"rfc2017", "v6", "v7", "v12"};
static_assert(std::size(kDialectNames) == kDialectCount);

/// In the order of Command, which a test compares with the types.
constexpr std::string_view kCommandNames[] = {
    "GET_VERSION", "CHECK_COMMAND", "CHECK_EVENT", "GET_GUEST_INFO", "GET_VCPU_INFO", "PAUSE_VCPU",
    "CONTROL_VM_EVENTS", "CONTROL_EVENTS", "CONTROL_CR", "CONTROL_MSR", "CONTROL_CLEANUP", "GET_REGISTERS",
    "SET_REGISTERS", "GET_CPUID", "GET_XSAVE", "SET_XSAVE", "GET_XCR", "GET_MTRR_TYPE", "READ_PHYSICAL",
    "WRITE_PHYSICAL", "GET_MAX_GFN", "GET_MAP_TOKEN", "QUERY_PHYSICAL", "GET_NEXT_AVAILABLE_GFN", "INJECT_EXCEPTION",
    "GET_PAGE_ACCESS", "SET_PAGE_ACCESS", "CONTROL_SPP", "GET_PAGE_WRITE_BITMAP", "SET_PAGE_WRITE_BITMAP",
    "CONTROL_CMD_RESPONSE", "SET_VE_INFO_PAGE", "DISABLE_VE", "SET_PAGE_SVE", "GET_EPT_VIEW", "SWITCH_EPT_VIEW",
    "CONTROL_EPT_VIEW", "CREATE_EPT_VIEW", "DESTROY_EPT_VIEW", "ALLOC_GFN", "FREE_GFN", "CHANGE_GFN", "TRANSLATE_GVA",
    "CONTROL_SINGLESTEP",
    // rfc2017
    "GET_GUESTS", "PAUSE_GUEST", "UNPAUSE_GUEST", "SHUTDOWN_GUEST", "GET_MTRRS", "GET_XSAVE_INFO", "GET_PAGE_ACCESS",
    "SET_PAGE_ACCESS", "INJECT_PAGE_FAULT", "INJECT_BREAKPOINT", "MAP_PHYSICAL_PAGE_TO_GUEST",
    "UNMAP_PHYSICAL_PAGE_FROM_GUEST", "CONTROL_EVENTS", "CR_CONTROL", "MSR_CONTROL"};
static_assert(std::size(kCommandNames) == kCommandCount);

/// GET_VERSION's id where the dialect can be asked for.
constexpr std::uint16_t kGetVersionId = 2;
constexpr std::size_t kVersionReplyOfV6 = 16, kVersionReplyOfV7AndV12 = 24;
constexpr std::size_t kMaxMessageAt = 12;  // v12; padding, and 0, in v7
constexpr std::uint32_t kMaxMessageOfV12 = 8184;

template <class T>
T load(Bytes payload, std::size_t at) {
  T value{};
  std::memcpy(&value, payload.data() + at, sizeof value);
  return value;
}

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

/// Messages that are neither commands nor replies to them. v12 gives an event and its reply the same id.
std::string_view event_message_name(DialectId dialect, std::uint16_t id) {
  switch (dialect) {
    case DialectId::Rfc2017: return id == 25 ? "EVENT_VCPU" : id == 26 ? "EVENT_VCPU_REPLY" : "";
    case DialectId::V6:
    case DialectId::V7: return id == 0 ? "EVENT_REPLY" : id == 1 ? "EVENT" : "";
    case DialectId::V12: return id == 0 ? "VM_EVENT" : id == 1 ? "VCPU_EVENT" : "";
  }
  return "";
}

}  // namespace

std::string_view name_of(DialectId dialect) {
  const auto at = static_cast<std::size_t>(dialect);
  return at < kDialectCount ? kDialectNames[at] : "unknown";
}

std::optional<DialectId> dialect_named(std::string_view name) {
  for (std::size_t i = 0; i < kDialectCount; ++i) {
    if (kDialectNames[i] == name) return static_cast<DialectId>(i);
  }
  return std::nullopt;
}

std::string_view name_of(CommandKind kind) {
  const auto at = static_cast<std::size_t>(kind);
  return at < kCommandCount ? kCommandNames[at] : "unknown";
}

const Codec& codec(DialectId dialect) {
  switch (dialect) {
    case DialectId::Rfc2017: return codec_rfc2017();
    case DialectId::V6: return codec_v6();
    case DialectId::V7: return codec_v7();
    case DialectId::V12: return codec_v12();
  }
  std::abort();  // no such dialect
}

std::optional<DialectId> dialect_of_version_reply(Bytes payload) {
  if (payload.size() != kVersionReplyOfV6 && payload.size() != kVersionReplyOfV7AndV12) return std::nullopt;
  if (load<std::int32_t>(payload, 0) != 0) return std::nullopt;
  if (payload.size() == kVersionReplyOfV6) return DialectId::V6;
  switch (load<std::uint32_t>(payload, kMaxMessageAt)) {
    case 0: return DialectId::V7;
    case kMaxMessageOfV12: return DialectId::V12;
    default: return std::nullopt;
  }
}

void encode_get_version(Seq seq, ByteBuffer& out) { FrameWriter frame(out, kGetVersionId, seq); }

std::string describe(const Codec& codec, const DecodeError& error) {
  std::string text;
  if (const auto event = event_message_name(codec.dialect(), error.id); !event.empty()) {
    text = event;
  } else if (const auto command = codec.command_of(error.id)) {
    text = name_of(*command);
  } else {
    text = "message " + std::to_string(error.id);
  }
  text += " at byte " + std::to_string(error.offset) + ": ";
  text += text_of(error.code);
  return text;
}

}  // namespace kvmid::kvmi1
