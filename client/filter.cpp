// SPDX-License-Identifier: LGPL-2.1-or-later
#include "client/filter.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <limits>

#include "protocol/filter_rules.h"

namespace kvmid::client {
namespace {

constexpr std::uint64_t kMaxValue = std::numeric_limits<std::uint64_t>::max();
constexpr std::uint8_t kAllRights = KVMI_PAGE_ACCESS_R | KVMI_PAGE_ACCESS_W | KVMI_PAGE_ACCESS_X;
/// Characters of the user's text that an error repeats; the caret shows the rest.
constexpr std::size_t kQuotedMax = 24;

constexpr std::array<std::string_view, kFilterRegisterCount> kRegisterNames{
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", "r8",  "r9",
    "r10", "r11", "r12", "r13", "r14", "r15", "rip", "rflags"};
constexpr std::array<std::string_view, kFilterFieldCount> kFieldNames{"register", "number", "old",    "new", "changed",
                                                                      "gpa",      "gva",    "access", "vcpu"};

/// What the number of an event is called; "" where it has none.
constexpr std::string_view number_name(EventKind kind) {
  switch (kind) {
    case EventKind::Cr: return "cr";
    case EventKind::Msr: return "msr";
    case EventKind::Xsetbv: return "xcr";
    case EventKind::Trap: return "vector";
    case EventKind::Cpuid: return "function";
    case EventKind::Hypercall: return "hypercall";
    case EventKind::Descriptor: return "descriptor";
    default: return {};
  }
}

/// "an msr event", "a cr event".
std::string a_event(EventKind kind) {
  const std::string name(name_of(kind));
  return (std::string_view("aeiumx").find(name[0]) != std::string_view::npos ? "an " : "a ") + name + " event";
}

/// The fields that can be written, for errors.
std::string field_list(std::optional<EventKind> event) {
  std::string out = "rax to r15, rip, rflags, vcpu";
  for (std::uint8_t field = KVMI_FILTER_NUMBER; field < KVMI_FILTER_VCPU; ++field) {
    if (event && !has_filter_field(*event, field)) continue;
    const bool number = field == KVMI_FILTER_NUMBER;
    out += ", " + std::string(number && event ? number_name(*event) : kFieldNames[field]);
    if (number && !event) out += " (or cr, msr, xcr, vector, function, hypercall, descriptor)";
  }
  return out;
}

std::optional<FilterField> field_by_name(std::string_view name, std::optional<EventKind> event) {
  for (std::uint8_t reg = 0; reg < kFilterRegisterCount; ++reg)
    if (kRegisterNames[reg] == name) return FilterField{KVMI_FILTER_REGISTER, reg};
  for (std::uint8_t field = KVMI_FILTER_NUMBER; field < kFilterFieldCount; ++field)
    if (kFieldNames[field] == name) return FilterField{field};
  for (unsigned i = 0; i < kEventCount && !name.empty(); ++i) {
    const auto kind = static_cast<EventKind>(i);
    if (number_name(kind) == name && (!event || *event == kind)) return kFilterNumber;
  }
  return std::nullopt;
}

constexpr bool is_blank(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }
constexpr bool is_word(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
}

/// Reads from left to right; the first thing that is wrong stays, and all that comes after it gives nothing.
class Reader {
 public:
  Reader(std::string_view text, std::size_t at) : text_(text), at_(at) { skip_blanks(); }

  [[nodiscard]] std::size_t at() const { return at_; }
  [[nodiscard]] bool at_end() const { return at_ == text_.size(); }
  [[nodiscard]] const std::optional<FilterTextError>& error() const { return error_; }

  /// The letters and digits that come next; may be none.
  [[nodiscard]] std::string_view word() const {
    std::size_t end = at_;
    while (end < text_.size() && is_word(text_[end])) ++end;
    return text_.substr(at_, end - at_);
  }
  bool take_word(std::string_view expected) {
    if (error_ || word() != expected) return false;
    advance(expected.size());
    return true;
  }
  bool take_sign(std::string_view sign) {
    if (error_ || !text_.substr(at_).starts_with(sign)) return false;
    advance(sign.size());
    return true;
  }
  void advance(std::size_t bytes) {
    at_ += bytes;
    skip_blanks();
  }

  void fail_at(std::size_t at, std::string text) {
    if (!error_) error_ = FilterTextError{at + 1, std::move(text)};
  }
  /// "expected ..., not ..."
  void expected(const std::string& what) { fail_at(at_, "expected " + what + ", " + found()); }

  std::uint64_t number(FilterField field) {
    const std::string_view digits = word();
    if (error_) return 0;
    if (field.field == KVMI_FILTER_ACCESS) {
      if (const auto rights = rights_of(digits)) {
        advance(digits.size());
        return *rights;
      }
    }
    const bool hex = digits.starts_with("0x") || digits.starts_with("0X");
    const std::string_view rest = digits.substr(hex ? 2 : 0);
    std::uint64_t value = 0;
    const auto [end, code] = std::from_chars(rest.data(), rest.data() + rest.size(), value, hex ? 16 : 10);
    if (code == std::errc::result_out_of_range) {
      fail_at(at_, "the number is larger than 64 bits");
    } else if (code != std::errc() || end != rest.data() + rest.size()) {
      const bool rights = field.field == KVMI_FILTER_ACCESS;
      expected(rights ? "a number, or letters of r, w and x" : "a number such as 10 or 0xa");
    } else {
      advance(digits.size());
    }
    return value;
  }

 private:
  void skip_blanks() {
    while (at_ < text_.size() && is_blank(text_[at_])) ++at_;
  }
  /// What stands here, for an error.
  [[nodiscard]] std::string found() const {
    if (at_end()) return "but the text ends";
    std::string_view here = word();
    if (here.empty()) {
      std::size_t end = at_;
      while (end < text_.size() && !is_word(text_[end]) && !is_blank(text_[end])) ++end;
      here = text_.substr(at_, end - at_);
    }
    std::string out = "not \"";
    for (const char c : here.substr(0, kQuotedMax)) out += c >= ' ' && c <= '~' ? c : '?';
    return out + (here.size() > kQuotedMax ? "..\"" : "\"");
  }
  static std::optional<std::uint8_t> rights_of(std::string_view letters) {
    std::uint8_t rights = 0;
    for (const char c : letters) {
      const std::size_t bit = std::string_view("rwx").find(c);
      if (bit == std::string_view::npos || ((rights >> bit) & 1U) != 0) return std::nullopt;
      rights = static_cast<std::uint8_t>(rights | (1U << bit));
    }
    return letters.empty() ? std::nullopt : std::optional(rights);
  }

  std::string_view text_;
  std::size_t at_;
  std::optional<FilterTextError> error_;
};

FilterField read_field(Reader& in, std::optional<EventKind> event) {
  const std::string_view name = in.word();
  const std::size_t at = in.at();
  const auto field = field_by_name(name, event);
  if (field && (!event || has_filter_field(*event, field->field))) {
    in.advance(name.size());
    return *field;
  }
  if (field || (event && field_by_name(name, std::nullopt))) {
    in.fail_at(at, a_event(*event) + " has no \"" + std::string(name) + "\"; it has " + field_list(event));
  } else if (in.take_sign("(")) {
    in.fail_at(at, "there are no parentheses: \"and\" binds tighter than \"or\"");
  } else {
    in.expected("a field (" + field_list(event) + ")");
  }
  return {};
}

void read_masked(Reader& in, FilterField field, FilterTerms& out) {
  const std::uint64_t mask = in.number(field);
  if (in.take_sign("==")) {
    out.masked(field, mask, in.number(field));
  } else if (in.take_sign("!=")) {
    out.masked_not(field, mask, in.number(field));
  } else {
    in.expected("== or != behind the mask");
  }
}

void read_range(Reader& in, FilterField field, FilterTerms& out) {
  const std::uint64_t first = in.number(field);
  if (!in.take_sign("..")) in.expected("\"..\" and the last value of the range");
  const std::size_t at = in.at();
  const std::uint64_t last = in.number(field);
  if (last < first) in.fail_at(at, "the last value of the range is below its first");
  out.in_range(field, first, last);
}

void read_comparison(Reader& in, std::optional<EventKind> event, FilterTerms& out) {
  const FilterField field = read_field(in, event);
  if (in.error()) return;
  // Longer signs first: "<=" begins with "<".
  if (in.take_sign("==")) {
    out.equal(field, in.number(field));
  } else if (in.take_sign("!=")) {
    out.not_equal(field, in.number(field));
  } else if (in.take_sign("<=")) {
    out.in_range(field, 0, in.number(field));
  } else if (in.take_sign(">=")) {
    out.in_range(field, in.number(field), kMaxValue);
  } else if (in.take_sign("<")) {
    out.below(field, in.number(field));
  } else if (in.take_sign(">")) {
    out.above(field, in.number(field));
  } else if (in.take_sign("&")) {
    read_masked(in, field, out);
  } else if (in.take_word("in")) {
    read_range(in, field, out);
  } else {
    in.expected("a comparison (==, !=, <, >, <=, >=, & or \"in\")");
  }
}

Result<std::vector<kvmi_filter_term>, FilterTextError> read_filter(Reader& in, std::optional<EventKind> event) {
  FilterTerms out;
  for (;;) {
    if (out.terms().size() == KVMI_FILTER_TERMS_MAX)
      in.fail_at(in.at(), "a filter has at most " + std::to_string(KVMI_FILTER_TERMS_MAX) + " comparisons");
    if (!in.error()) read_comparison(in, event, out);
    if (in.error()) return *in.error();
    if (in.at_end()) return std::move(out).terms();
    if (in.take_word("or")) {
      out.either();
    } else if (!in.take_word("and")) {
      in.expected("\"and\", \"or\" or the end");
    }
  }
}

std::string number_text(std::uint64_t value, bool decimal) {
  std::array<char, 20> digits{};
  const auto end = std::to_chars(digits.data(), digits.data() + digits.size(), value, decimal ? 10 : 16).ptr;
  return (decimal ? "" : "0x") + std::string(digits.data(), end);
}

std::string value_text(std::uint8_t field, std::uint64_t value, std::optional<EventKind> event) {
  if (field == KVMI_FILTER_ACCESS && value != 0 && value <= kAllRights) {
    std::string letters;
    for (unsigned bit = 0; bit < 3; ++bit)
      if (((value >> bit) & 1U) != 0) letters += "rwx"[bit];
    return letters;
  }
  // What is counted is small: CR 3, vector 14, vCPU 0. The rest is hexadecimal whatever its size.
  const bool counted = field == KVMI_FILTER_NUMBER && event != EventKind::Msr && event != EventKind::Cpuid;
  return number_text(value, (counted || field == KVMI_FILTER_VCPU) && value < 256);
}

}  // namespace

std::string describe(const FilterTextError& error, std::string_view text) {
  constexpr std::size_t kLineMax = 100;
  constexpr std::size_t kBefore = 60;
  const std::size_t column = std::clamp<std::size_t>(error.column, 1, text.size() + 1) - 1;
  const std::size_t begin = column > kBefore ? column - kBefore : 0;
  std::string line;
  for (const char c : text.substr(begin, kLineMax)) line += c >= ' ' && c <= '~' ? c : is_blank(c) ? ' ' : '?';
  return "column " + std::to_string(column + 1) + ": " + error.text + "\n  " + line + "\n  " +
         std::string(column - begin, ' ') + "^";
}

Result<std::vector<kvmi_filter_term>, FilterTextError> parse_filter(std::string_view text,
                                                                    std::optional<EventKind> event) {
  Reader in(text, 0);
  if (event && !can_filter(*event)) in.fail_at(in.at(), a_event(*event) + " cannot be filtered");
  return read_filter(in, event);
}

Result<EventFilter, FilterTextError> parse_event_filter(std::string_view text) {
  Reader in(text, 0);
  const std::size_t at = in.at();
  const std::string_view name = in.word();
  std::string names;
  std::optional<EventKind> event;
  for (unsigned i = 0; i < kEventCount; ++i) {
    const auto kind = static_cast<EventKind>(i);
    if (name_of(kind) == name) event = kind;
    if (can_filter(kind)) names += (names.empty() ? "" : ", ") + std::string(name_of(kind));
  }
  if (!event) {
    in.expected("an event (" + names + ") and a colon");
  } else {
    if (!can_filter(*event)) in.fail_at(at, a_event(*event) + " cannot be filtered; these can: " + names);
    in.advance(name.size());
    if (!in.take_sign(":")) in.expected("a colon behind the event");
  }
  auto terms = read_filter(in, event);
  if (!terms) return terms.error();
  return EventFilter{*event, std::move(terms).value()};
}

std::string_view filter_field_name(const kvmi_filter_term& term, std::optional<EventKind> event) {
  if (term.field == KVMI_FILTER_REGISTER) return term.reg < kRegisterNames.size() ? kRegisterNames[term.reg] : "?";
  if (term.field == KVMI_FILTER_NUMBER && event && !number_name(*event).empty()) return number_name(*event);
  return term.field < kFieldNames.size() ? kFieldNames[term.field] : "?";
}

std::string format_filter_term(const kvmi_filter_term& term, std::optional<EventKind> event) {
  const auto text = [&](std::uint64_t value) { return value_text(term.field, value, event); };
  const auto field = std::string(filter_field_name(term, event));
  switch (term.compare) {
    case KVMI_COMPARE_EQ: return field + " == " + text(term.value);
    case KVMI_COMPARE_NE: return field + " != " + text(term.value);
    case KVMI_COMPARE_LT: return field + " < " + text(term.value);
    case KVMI_COMPARE_GT: return field + " > " + text(term.value);
    case KVMI_COMPARE_RANGE: return field + " in " + text(term.value) + ".." + text(term.operand);
    case KVMI_COMPARE_MASK_EQ: return field + " & " + text(term.operand) + " == " + text(term.value);
    case KVMI_COMPARE_MASK_NE: return field + " & " + text(term.operand) + " != " + text(term.value);
    default: return field + " ? " + text(term.value);
  }
}

std::string format_filter(std::span<const kvmi_filter_term> terms, std::optional<EventKind> event) {
  std::string out;
  for (std::size_t i = 0; i < terms.size(); ++i) {
    if (i != 0) out += terms[i].new_group != 0 ? " or " : " and ";
    out += format_filter_term(terms[i], event);
  }
  return out;
}

}  // namespace kvmid::client
