// SPDX-License-Identifier: GPL-2.0-or-later
//
// One broken rule at a time: a valid message from the vectors, one field changed, and the error that must come of it.

#include <catch2/catch.hpp>
#include <cstring>

#include "protocol/dialect_kvmi2.h"
#include "vector_values.h"

using namespace kvmid;
using namespace kvmid::test;

namespace {

using Errc = DecodeErrc;

std::vector<std::byte> vector_bytes(const std::string& what) {
  for (const auto& entry : all_vectors()) {
    if (entry.at("what") == what) return bytes_of_hex(entry.at("hex").get<std::string>());
  }
  FAIL("no vector: " << what);
  return {};
}

struct Rule {
  const char* vector;
  std::size_t offset;  ///< of the field in the payload
  unsigned size;       ///< of the field
  std::uint64_t value;
  Errc code;
  std::size_t seen_at;
};

std::optional<DecodeError> error_of(const std::vector<std::byte>& bytes, bool down) {
  kvmi_msg_hdr header;
  std::memcpy(&header, bytes.data(), sizeof header);
  const Frame frame{header.id, Seq{header.seq}, Bytes(bytes).subspan(sizeof header)};
  DialectKvmi2 dialect;
  if (down) {
    const auto message = dialect.decode_downward(frame);
    return message ? std::nullopt : std::optional(message.error());
  }
  const auto message = dialect.decode_upward(frame);
  return message ? std::nullopt : std::optional(message.error());
}

void require_rules(const std::vector<Rule>& rules, bool down) {
  for (const auto& rule : rules) {
    CAPTURE(rule.vector, rule.offset, rule.value);
    auto bytes = vector_bytes(rule.vector);
    REQUIRE_FALSE(error_of(bytes, down));
    std::memcpy(bytes.data() + sizeof(kvmi_msg_hdr) + rule.offset, &rule.value, rule.size);
    const auto error = error_of(bytes, down);
    REQUIRE(error);
    INFO(describe(*error));
    REQUIRE(error->code == rule.code);
    REQUIRE(error->offset == rule.seen_at);
  }
}

constexpr std::size_t kEventTail = sizeof(kvmi_event);

}  // namespace

TEST_CASE("commands with a value that is not allowed are refused where it stands", "[rules]") {
  require_rules(
      {
          {"GET_REGISTERS request, two MSRs", 0, 2, 0xffff, Errc::BadValue, 0},
          {"GET_REGISTERS request, two MSRs", 2, 2, 0xffff, Errc::BadValue, 2},
          {"GET_REGISTERS request, two MSRs", 2, 2, 4067, Errc::BadValue, 2},
          {"GET_REGISTERS request, two MSRs", 2, 2, 4066, Errc::Truncated, 16},
          {"SET_REGISTERS request", 0, 2, 0xffff, Errc::BadValue, 0},
          {"GET_CPUID request", 0, 2, 0xffff, Errc::BadValue, 0},
          {"GET_PAGE_ACCESS request", 0, 8, 0x7001, Errc::BadValue, 0},
          {"GET_PAGE_ACCESS request", 0, 8, 0xffffffffffff0000, Errc::BadValue, 8},
          {"GET_PAGE_ACCESS request", 8, 4, 0, Errc::BadValue, 8},
          {"GET_PAGE_ACCESS request", 12, 2, 2, Errc::BadValue, 12},
          {"SET_PAGE_ACCESS request", 0, 2, 0, Errc::BadValue, 0},
          {"SET_PAGE_ACCESS request", 0, 2, 0xffff, Errc::Truncated, 40},
          {"SET_PAGE_ACCESS request", 2, 2, 2, Errc::BadValue, 2},
          {"SET_PAGE_ACCESS request", 24, 8, 0x200004, Errc::BadValue, 24},
          {"SET_PAGE_ACCESS request", 32, 4, 0, Errc::BadValue, 32},
          {"SET_PAGE_ACCESS request", 24, 8, 0xfffffffffffff000, Errc::BadValue, 32},
          {"SET_PAGE_ACCESS request", 36, 1, 8, Errc::BadFlag, 36},
          {"INJECT_EXCEPTION request, page fault", 2, 1, 32, Errc::BadValue, 2},
          {"INJECT_EXCEPTION request, page fault", 3, 1, 2, Errc::BadFlag, 3},
          {"INJECT_EXCEPTION request, page fault", 3, 1, 0, Errc::BadValue, 4},
          {"INJECT_EXCEPTION request, page fault", 2, 1, 13, Errc::BadValue, 8},
          {"READ_PHYSICAL request", 0, 2, 0, Errc::BadValue, 0},
          {"READ_PHYSICAL request", 2, 2, 2, Errc::BadValue, 2},
          {"READ_PHYSICAL request", 16, 4, 0, Errc::BadValue, 16},
          {"READ_PHYSICAL request", 24, 8, 0xfffffffffffff000, Errc::BadValue, 32},
          {"WRITE_PHYSICAL request, with a cookie", 8, 4, 0, Errc::BadValue, 8},
          {"WRITE_PHYSICAL request, with a cookie", 8, 4, 0xffffffff, Errc::Truncated, 28},
          {"WRITE_PHYSICAL request, with a cookie", 0, 8, 0xfffffffffffffffc, Errc::BadValue, 8},
          {"WRITE_PHYSICAL request, with a cookie", 12, 2, 2, Errc::BadValue, 12},
          {"WRITE_PHYSICAL request, with a cookie", 14, 2, 0x11, Errc::BadFlag, 14},
          {"WRITE_PHYSICAL request, with a cookie", 14, 2, 0xd, Errc::BadFlag, 14},
          {"WRITE_PHYSICAL request, with a cookie", 14, 2, 0, Errc::BadValue, 16},
          {"WRITE_PHYSICAL request, with a cookie", 14, 2, 3, Errc::Truncated, 28},
          {"GRANT_MEMORY request", 0, 4, 1, Errc::BadFlag, 0},
          {"CONTROL_EVENTS request", 2, 1, 3, Errc::BadValue, 2},
          {"CONTROL_EVENTS request", 3, 1, 2, Errc::BadValue, 3},
          {"CONTROL_EVENTS request", 8, 8, 0x4000, Errc::UnknownEvent, 8},
          {"CONTROL_CR request", 2, 1, 2, Errc::BadFlag, 2},
          {"CONTROL_CR request", 4, 4, 8, Errc::BadValue, 4},
          {"CONTROL_MSR request 0x1fff", 4, 4, 0x2000, Errc::BadValue, 4},
          {"CONTROL_MSR request 0x1fff", 4, 4, 0x40002000, Errc::BadValue, 4},
          {"CONTROL_MSR request 0x1fff", 4, 4, 0xc0002000, Errc::BadValue, 4},
          {"CONTROL_MSR request 0x1fff", 4, 4, 0x4b564e00, Errc::BadValue, 4},
          {"CONTROL_MSR request 0x1fff", 4, 4, 0x4b564cff, Errc::BadValue, 4},
          {"TRANSLATE_GVA request", 0, 2, 0xffff, Errc::BadValue, 0},
          {"CONTROL_SINGLESTEP request", 0, 2, 0xffff, Errc::BadValue, 0},
          {"CONTROL_SINGLESTEP request", 2, 1, 2, Errc::BadFlag, 2},
          {"SET_FILTER request", 2, 1, 14, Errc::UnknownEvent, 2},
          {"SET_FILTER request", 3, 1, 4, Errc::UnknownAction, 3},
          {"SET_FILTER request", 4, 4, 0xffffffff, Errc::Truncated, 80},
          {"SET_FILTER request", 4, 4, 4, Errc::Truncated, 80},
          {"SET_FILTER request", 4, 4, 2, Errc::TooLong, 56},
          {"SET_FILTER request", 8, 1, 9, Errc::BadValue, 8},
          {"SET_FILTER request", 9, 1, 7, Errc::BadValue, 9},
          {"SET_FILTER request", 10, 1, 1, Errc::BadFlag, 10},
          {"SET_FILTER request", 58, 1, 2, Errc::BadFlag, 58},
          {"SET_FILTER request", 11, 1, 1, Errc::BadValue, 11},
          {"SET_FILTER request", 59, 1, 18, Errc::BadValue, 59},
          {"SET_FILTER request", 24, 8, 1, Errc::BadValue, 24},
          {"SET_FILTER request", 72, 8, 0xfff, Errc::BadValue, 72},
          {"GET_XSAVE request", 0, 2, 0xffff, Errc::BadValue, 0},
          {"SET_XSAVE request", 4, 4, 0xfffffff8, Errc::Truncated, 72},
          {"GET_XCR request", 4, 4, 1, Errc::BadValue, 4},
          {"GET_MEMORY_MAP request", 0, 2, 2, Errc::BadValue, 0},
      },
      true);
}

TEST_CASE("event replies with a value that is not allowed are refused where it stands", "[rules]") {
  require_rules(
      {
          {"reply to cr: allow", 2, 1, 14, Errc::UnknownEvent, 2},
          {"reply to cr: allow", 3, 1, 4, Errc::UnknownAction, 3},
          {"reply to cr: allow", 4, 1, 16, Errc::BadFlag, 4},
          {"reply to cr: allow", 4, 1, 2, Errc::BadFlag, 4},   // TRAP_ACCESS is for page faults
          {"reply to cr: allow", 4, 1, 4, Errc::BadFlag, 4},   // STEP_OVER is for breakpoints
          {"reply to pause: allow", 4, 1, 1, Errc::BadFlag, 4},  // nothing to replace
          {"reply to page_fault: allow with TRAP_ACCESS", 3, 1, 2, Errc::BadFlag, 4},  // only with ALLOW
          {"reply to breakpoint: retry with STEP_OVER", 3, 1, 0, Errc::BadFlag, 4},    // only with RETRY
          {"reply to cr: allow", 8, 8, 1, Errc::BadValue, 8},    // a cookie without its flag
          {"reply to cr: allow", 16, 8, 1, Errc::BadValue, 16},  // a value without its flag
          {"reply to access: allow", 79, 1, 1, Errc::PaddingNotZero, 79},
          {"reply to pause: allow", 2, 1, KVMI_EVENT_CR, Errc::Truncated, 16},
          {"reply to cr: allow", 2, 1, KVMI_EVENT_PAUSE, Errc::TooLong, 16},
      },
      true);
}

TEST_CASE("events with a value that is not allowed are refused where it stands", "[rules]") {
  require_rules(
      {
          {"event pause", 0, 2, 0xffff, Errc::BadValue, 0},
          {"event unhook, shutdown", 0, 2, 0, Errc::BadValue, 0},
          {"event pause", 2, 1, 14, Errc::UnknownEvent, 2},
          {"event pause", 3, 1, 3, Errc::BadValue, 3},
          {"event pause", 4, 1, 0, Errc::BadValue, 4},
          {"event pause", 4, 1, 0x1f, Errc::UnknownAction, 4},
          {"event pause", 5, 1, 3, Errc::BadFlag, 5},
          {"event pause", 5, 1, 0, Errc::BadValue, 8},  // a deadline that nobody has
          {"event pause", 6, 1, 2, Errc::BadValue, 6},
          {"event unhook, shutdown", kEventTail, 1, 8, Errc::BadValue, kEventTail},
          {"event cr4", kEventTail, 2, 2, Errc::BadValue, kEventTail},
          {"event breakpoint", kEventTail + 8, 1, 0, Errc::BadValue, kEventTail + 8},
          {"event breakpoint", kEventTail + 8, 1, 16, Errc::BadValue, kEventTail + 8},
          {"event page_fault", kEventTail + 16, 1, 0, Errc::BadValue, kEventTail + 16},
          {"event page_fault", kEventTail + 16, 1, 8, Errc::BadFlag, kEventTail + 16},
          {"event page_fault", kEventTail + 17, 1, 2, Errc::BadFlag, kEventTail + 17},
          {"event page_fault", kEventTail + 17, 1, 0, Errc::BadValue, kEventTail},
          {"event trap", kEventTail, 1, 32, Errc::BadValue, kEventTail},
          {"event trap", kEventTail, 1, 13, Errc::BadValue, kEventTail + 8},
          {"event trap", kEventTail + 1, 1, 4, Errc::BadValue, kEventTail + 1},
          {"event trap", kEventTail + 2, 1, 8, Errc::BadFlag, kEventTail + 2},
          {"event trap", kEventTail + 2, 1, 2, Errc::BadValue, kEventTail + 4},
          {"event trap", kEventTail + 3, 1, 1, Errc::BadValue, kEventTail + 3},
          {"event descriptor", kEventTail, 1, 0, Errc::BadValue, kEventTail},
          {"event descriptor", kEventTail, 1, 5, Errc::BadValue, kEventTail},
          {"event descriptor", kEventTail + 1, 1, 2, Errc::BadFlag, kEventTail + 1},
          {"event singlestep", kEventTail, 1, 2, Errc::BadFlag, kEventTail},
          {"event access", kEventTail + 16, 1, 3, Errc::BadValue, kEventTail + 16},
          {"event access", kEventTail + 17, 1, 0, Errc::BadValue, kEventTail + 17},
          {"event access", kEventTail + 17, 1, 65, Errc::BadValue, kEventTail + 17},
          {"event access", kEventTail + 17, 1, 4, Errc::PaddingNotZero, kEventTail + 28},
      },
      false);
}

TEST_CASE("replies and notices with a value that is not allowed are refused where it stands", "[rules]") {
  const std::uint64_t int_min = 0x80000000;
  require_rules(
      {
          {"GET_CPUID reply", 0, 4, 22, Errc::BadValue, 0},         // errors are negative
          {"GET_CPUID reply", 0, 4, int_min, Errc::BadValue, 0},    // and known
          {"GET_CPUID reply", 0, 4, 0xfffffffb, Errc::BadValue, 0}, // -5
          {"GET_CPUID reply", 4, 4, 1, Errc::BadValue, 4},          // success has no text
          {"error reply without text", 4, 4, 0xffffffff, Errc::Truncated, 8},
          {"GET_CPUID error reply ENODEV", 8, 1, 0xff, Errc::BadValue, 8},  // not UTF-8
          {"GET_GUESTS reply", 8, 4, 1, Errc::BadValue, 12},        // fewer in all than here
          {"GET_GUESTS reply", 16 + 16 + 63, 1, 'x', Errc::PaddingNotZero, 16 + 16 + 63},
          {"GET_GUESTS reply", 16 + 16, 1, '\n', Errc::BadValue, 16 + 16},
          {"GET_GUESTS reply", 16 + 84, 4, 2, Errc::BadValue, 16 + 84},
          {"GET_GUEST_INFO reply", 8, 2, 0, Errc::BadValue, 8},
          {"GET_GUEST_INFO reply", 10, 2, 1, Errc::BadValue, 10},
          {"GET_GUEST_INFO reply", 26, 1, 2, Errc::BadFlag, 26},
          {"GET_REGISTERS reply, 2 MSRs", 8, 1, 16, Errc::BadValue, 8},
          {"GET_REGISTERS reply, 2 MSRs", 12, 4, 0xffffffff, Errc::Truncated, 504},
          {"GET_REGISTERS reply, 2 MSRs", 12, 4, 1, Errc::TooLong, 488},
          {"GET_PAGE_ACCESS reply", 8, 4, 3, Errc::Truncated, 48},
          {"GET_PAGE_ACCESS reply", 28, 1, 8, Errc::BadFlag, 28},
          {"CONTROL_EVENTS reply", 8, 8, 0x8000, Errc::UnknownEvent, 8},
          {"TRANSLATE_GVA reply", 24, 1, 8, Errc::BadFlag, 24},
          {"TRANSLATE_GVA reply", 25, 1, 2, Errc::BadFlag, 25},
          {"GET_MEMORY_MAP reply", 8, 4, 5, Errc::Truncated, 112},
          {"GET_MEMORY_MAP reply", 8, 4, 0xffffffff, Errc::Truncated, 112},
          {"GET_MEMORY_MAP reply", 8, 4, 3, Errc::TooLong, 88},
          {"GET_MEMORY_MAP reply", 16, 8, 0x800, Errc::BadValue, 16},          // not the start of a page
          {"GET_MEMORY_MAP reply", 16, 8, 0x21000, Errc::BadValue, 40},        // the next one begins before its end
          {"GET_MEMORY_MAP reply", 40, 8, 0x9f000, Errc::BadValue, 40},        // it begins before the end of the last
          {"GET_MEMORY_MAP reply", 64, 8, 0x1000, Errc::BadValue, 64},         // not ascending
          {"GET_MEMORY_MAP reply", 24, 8, 0, Errc::BadValue, 24},
          {"GET_MEMORY_MAP reply", 24, 8, 0x1800, Errc::BadValue, 24},
          {"GET_MEMORY_MAP reply", 96, 8, 0xfffffffffff00000, Errc::BadValue, 96},  // wraps
          {"GET_MEMORY_MAP reply", 32, 2, 2, Errc::BadValue, 32},
          {"GET_MEMORY_MAP reply", 34, 2, 2, Errc::BadFlag, 34},
          {"MEMORY_MAP_CHANGED added", 0, 1, 4, Errc::BadValue, 0},
          {"MEMORY_MAP_CHANGED added", 16, 8, 0x1000, Errc::BadValue, 16},  // nothing moved
          {"MEMORY_MAP_CHANGED moved", 16, 8, 0x800, Errc::BadValue, 16},
          {"MEMORY_MAP_CHANGED added", 24, 8, 0x800, Errc::BadValue, 24},
          {"MEMORY_MAP_CHANGED added", 32, 8, 0, Errc::BadValue, 32},
          {"MEMORY_MAP_CHANGED added", 40, 2, 2, Errc::BadValue, 40},
          {"MEMORY_MAP_CHANGED added", 42, 2, 2, Errc::BadFlag, 42},
          {"notice expired", 0, 1, 0, Errc::BadValue, 0},
          {"notice expired", 0, 1, 7, Errc::BadValue, 0},
          {"notice expired", 1, 1, 14, Errc::UnknownEvent, 1},
          {"notice expired", 2, 1, 4, Errc::UnknownAction, 2},
          {"notice expired", 8, 4, 1, Errc::BadValue, 8},
          {"GUEST_ON", 16, 1, 0x07, Errc::BadValue, 16},
          {"GUEST_ON", 84, 4, 2, Errc::BadValue, 84},
          {"GUEST_OFF suspend", 16, 1, 8, Errc::BadValue, 16},
      },
      false);
}

TEST_CASE("a name that fills its field without a zero is refused", "[rules]") {
  auto bytes = vector_bytes("GUEST_ON");
  std::memset(bytes.data() + sizeof(kvmi_msg_hdr) + 16, 'n', 64);
  const auto error = error_of(bytes, false);
  REQUIRE(error);
  REQUIRE(*error == DecodeError{Errc::BadValue, KVMI_MSG_GUEST_ON, 16});
}

TEST_CASE("ids that mean nothing in a direction are unknown messages, whatever they carry", "[rules]") {
  DialectKvmi2 dialect;
  const std::vector<std::byte> payload(5);
  for (const std::uint16_t id : std::initializer_list<std::uint16_t>{0, 5, 9, 10, 18, 22, 23, 24, 25, 33, 35, 65535}) {
    CAPTURE(id);
    const auto down = dialect.decode_downward(Frame{id, Seq{1}, payload});
    REQUIRE(down);
    REQUIRE(std::get<UnknownMessage>(*down).id == id);
  }
  for (const std::uint16_t id : std::initializer_list<std::uint16_t>{0, 5, 9, 10, 18, 22, 26, 36, 1000, 65535}) {
    CAPTURE(id);
    const auto up = dialect.decode_upward(Frame{id, Seq{1}, payload});
    REQUIRE(up);
    REQUIRE(std::get<UnknownMessage>(*up).id == id);
  }
}

TEST_CASE("an answer to an unknown id can be written", "[rules]") {
  DialectKvmi2 dialect;
  ByteBuffer out;
  dialect.encode(CommandReply{.id = 999, .error = ErrorCode::NotServed, .text = "no", .body = {}}, Seq{5}, out);
  REQUIRE(hex_of(out) == "e7030a000500000018fcffff020000006e6f");
}

TEST_CASE("interrupts may have vectors over 31", "[rules]") {
  auto bytes = vector_bytes("event trap");
  auto* tail = bytes.data() + sizeof(kvmi_msg_hdr) + kEventTail;
  const kvmi_event_trap interrupt{.vector = 0x80,
                                  .kind = KVMI_EXCEPTION_INTERRUPT,
                                  .flags = 0,
                                  .displaced_vector = 0,
                                  .error_code = 0,
                                  .address = 0};
  std::memcpy(tail, &interrupt, sizeof interrupt);
  REQUIRE_FALSE(error_of(bytes, false));
}

TEST_CASE("an error says what was wrong, and where", "[rules]") {
  REQUIRE(describe(DecodeError{Errc::Truncated, KVMI_MSG_WRITE_PHYSICAL, 16}) ==
          "WRITE_PHYSICAL: payload too short at byte 16");
  REQUIRE(describe(DecodeError{Errc::UnknownAction, KVMI_MSG_EVENT_REPLY, 3}) ==
          "EVENT_REPLY: unknown action at byte 3");
  REQUIRE(describe(DecodeError{Errc::TooLong, 999, 0}) == "message 999: payload too long at byte 0");
}
