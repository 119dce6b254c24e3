// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

/// Filters: which events of a kind an agent wants to be asked about. kvmid answers the others itself.
///
/// Purpose:  makes the terms of SET_FILTER, in C++ or from text as people write it; and text from terms.
/// Shapes:   the text is comparisons joined by "and" and "or"; "and" binds tighter:
///             cr == 3 and new & 0xff == 0x1 or rip in 0x1000..0x1fff
///           FIELD == N   FIELD != N   FIELD < N   FIELD > N   FIELD <= N   FIELD >= N   (unsigned)
///           FIELD in FIRST..LAST   (both included)     FIELD & MASK == N     FIELD & MASK != N
///           Fields of every event: rax to r15, rip, rflags, vcpu. Of some: number (also called cr, msr, xcr, vector,
///           function, hypercall or descriptor, after the event), old, new, changed (old xor new), gpa, gva, access.
///           Numbers are 10 or 0xa; those beside `access` can be letters: r, w, x, rw...
/// Bounds:   at most KVMI_FILTER_TERMS_MAX terms.
/// Errors:   FilterTextError, with the column.
/// Threads:  values and pure functions.
/// Source:   protocol/PROTOCOL.md, "29 SET_FILTER".

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "protocol/message.h"
#include "protocol/result.h"

namespace kvmid::client {

/// What a term looks at.
struct FilterField {
  std::uint8_t field = KVMI_FILTER_REGISTER;
  std::uint8_t reg = 0;  ///< KVMI_FILTER_REGISTER: 0 rax to 15 r15, 16 rip, 17 rflags, in the order of kvmi_x86_regs
};
inline constexpr FilterField kFilterNumber{KVMI_FILTER_NUMBER};
inline constexpr FilterField kFilterOldValue{KVMI_FILTER_OLD_VALUE};
inline constexpr FilterField kFilterNewValue{KVMI_FILTER_NEW_VALUE};
inline constexpr FilterField kFilterChanged{KVMI_FILTER_CHANGED};
inline constexpr FilterField kFilterGpa{KVMI_FILTER_GPA};
inline constexpr FilterField kFilterGva{KVMI_FILTER_GVA};
inline constexpr FilterField kFilterAccess{KVMI_FILTER_ACCESS};
inline constexpr FilterField kFilterVcpu{KVMI_FILTER_VCPU};
inline constexpr FilterField kFilterRip{KVMI_FILTER_REGISTER, 16};
inline constexpr FilterField kFilterRflags{KVMI_FILTER_REGISTER, 17};

/// Makes terms. Each call adds one, joined to the one before by "and", or by "or" where either() stands between.
///   FilterTerms().equal(kFilterNumber, 3).masked(kFilterNewValue, 0xff, 1).either().below(kFilterRip, 0x1000).terms()
class FilterTerms {
 public:
  FilterTerms& equal(FilterField field, std::uint64_t value) { return add(field, KVMI_COMPARE_EQ, value); }
  FilterTerms& not_equal(FilterField field, std::uint64_t value) { return add(field, KVMI_COMPARE_NE, value); }
  FilterTerms& below(FilterField field, std::uint64_t value) { return add(field, KVMI_COMPARE_LT, value); }
  FilterTerms& above(FilterField field, std::uint64_t value) { return add(field, KVMI_COMPARE_GT, value); }
  /// Both included; kvmid refuses a last value below the first.
  FilterTerms& in_range(FilterField field, std::uint64_t first, std::uint64_t last) {
    return add(field, KVMI_COMPARE_RANGE, first, last);
  }
  FilterTerms& masked(FilterField field, std::uint64_t mask, std::uint64_t value) {
    return add(field, KVMI_COMPARE_MASK_EQ, value, mask);
  }
  FilterTerms& masked_not(FilterField field, std::uint64_t mask, std::uint64_t value) {
    return add(field, KVMI_COMPARE_MASK_NE, value, mask);
  }
  /// The next term begins a new group.
  FilterTerms& either() {
    either_ = !terms_.empty();
    return *this;
  }

  [[nodiscard]] const std::vector<kvmi_filter_term>& terms() const& { return terms_; }
  [[nodiscard]] std::vector<kvmi_filter_term>&& terms() && { return std::move(terms_); }

 private:
  FilterTerms& add(FilterField field, std::uint8_t compare, std::uint64_t value, std::uint64_t operand = 0) {
    terms_.push_back({field.field, compare, static_cast<std::uint8_t>(either_ ? 1 : 0), field.reg, 0, value, operand});
    either_ = false;
    return *this;
  }

  std::vector<kvmi_filter_term> terms_;
  bool either_ = false;
};

/// Where a filter's text is wrong, and what was expected there.
struct FilterTextError {
  std::size_t column = 1;  ///< counted from 1; one behind the text where something is missing at its end
  std::string text;        ///< `expected a number such as 10 or 0xa, not "and"`
};
/// For people: the error, the text, and a caret under the column; three lines without the last line's end.
std::string describe(const FilterTextError& error, std::string_view text);

/// Terms of the text. With `event`, a field that this event does not have is an error too.
Result<std::vector<kvmi_filter_term>, FilterTextError> parse_filter(std::string_view text,
                                                                    std::optional<EventKind> event = std::nullopt);

/// Text of the terms: parse_filter() of it gives them again. With `event` a number has the name it has there ("cr").
/// What no filter can have (an unknown field) is shown as "?".
std::string format_filter(std::span<const kvmi_filter_term> terms, std::optional<EventKind> event = std::nullopt);
/// One term: its field, "&" and mask where it has one, comparison, value.
std::string format_filter_term(const kvmi_filter_term& term, std::optional<EventKind> event = std::nullopt);
/// "rip", "new"; with `event` "cr" for the number.
std::string_view filter_field_name(const kvmi_filter_term& term, std::optional<EventKind> event = std::nullopt);

/// A filter and the event that it is for, as command lines take it: "cr: new & 1 == 0".
struct EventFilter {
  EventKind event{};
  std::vector<kvmi_filter_term> terms;
};
Result<EventFilter, FilterTextError> parse_event_filter(std::string_view text);

/// How such a filter is written, for the help of a command line.
inline constexpr std::string_view kFilterHelp =
    "\"EVENT: COMPARISONS\", where comparisons are joined by and, or (and binds tighter), for instance\n"
    "  \"cr: cr == 3 and new & 0xff == 0x1 or rip in 0x1000..0x1fff\"\n"
    "  \"msr: msr == 0xc0000082\"      \"page_fault: access & w == w and gpa < 0x100000\"\n"
    "Comparisons: FIELD == N, != N, < N, > N, <= N, >= N, FIELD in FIRST..LAST, FIELD & MASK == N, FIELD & MASK != N.\n"
    "Fields: rax to r15, rip, rflags, vcpu for every event; cr, msr, xcr, old, new, changed; gpa, gva, access;\n"
    "vector of trap, function of cpuid, hypercall (rax), descriptor (1 idtr, 2 gdtr, 3 ldtr, 4 tr).";

}  // namespace kvmid::client
