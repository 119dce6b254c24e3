// SPDX-License-Identifier: GPL-2.0-or-later
#include "client/filter.h"

#include <catch2/catch.hpp>
#include <cstring>
#include <random>

#include "client/kvmid.h"
#include "protocol/filter_rules.h"

namespace kvmid::client {

namespace {

using Terms = std::vector<kvmi_filter_term>;

bool same(const Terms& a, const Terms& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(a[0])) == 0);
}
Terms parsed(std::string_view text, std::optional<EventKind> event = std::nullopt) {
  const auto terms = parse_filter(text, event);
  INFO(text << "\n" << (terms ? std::string() : describe(terms.error(), text)));
  REQUIRE(terms);
  return *terms;
}
/// "column: text" of the error.
std::string fault(std::string_view text, std::optional<EventKind> event = std::nullopt) {
  const auto terms = parse_filter(text, event);
  return terms ? "none" : std::to_string(terms.error().column) + ": " + terms.error().text;
}
std::string event_fault(std::string_view text) {
  const auto filter = parse_event_filter(text);
  return filter ? "none" : std::to_string(filter.error().column) + ": " + filter.error().text;
}

constexpr std::string_view kCrFields = "rax to r15, rip, rflags, vcpu, cr, old, new, changed";
constexpr std::string_view kAllFields =
    "rax to r15, rip, rflags, vcpu, number (or cr, msr, xcr, vector, function, hypercall, descriptor), old, new, "
    "changed, gpa, gva, access";

}  // namespace

TEST_CASE("text becomes terms", "[filter]") {
  const auto terms = parsed("cr == 3 and new & 0xff == 0x1 or rip in 0x1000..0x1fff");
  REQUIRE(same(terms, FilterTerms()
                          .equal(kFilterNumber, 3)
                          .masked(kFilterNewValue, 0xff, 1)
                          .either()
                          .in_range(kFilterRip, 0x1000, 0x1fff)
                          .terms()));
  REQUIRE(terms[0].new_group == 0);
  REQUIRE(terms[1].new_group == 0);
  REQUIRE(terms[2].new_group == 1);
  REQUIRE(terms[2].reg == 16);
}

TEST_CASE("each comparison has its text", "[filter]") {
  const FilterField rax{KVMI_FILTER_REGISTER, 0};
  REQUIRE(same(parsed("rax == 10"), FilterTerms().equal(rax, 10).terms()));
  REQUIRE(same(parsed("rax != 0xA"), FilterTerms().not_equal(rax, 10).terms()));
  REQUIRE(same(parsed("rax < 10"), FilterTerms().below(rax, 10).terms()));
  REQUIRE(same(parsed("rax > 10"), FilterTerms().above(rax, 10).terms()));
  REQUIRE(same(parsed("rax <= 10"), FilterTerms().in_range(rax, 0, 10).terms()));
  REQUIRE(same(parsed("rax >= 10"), FilterTerms().in_range(rax, 10, ~std::uint64_t{0}).terms()));
  REQUIRE(same(parsed("rax in 5 .. 10"), FilterTerms().in_range(rax, 5, 10).terms()));
  REQUIRE(same(parsed("rax & 0xf == 10"), FilterTerms().masked(rax, 15, 10).terms()));
  REQUIRE(same(parsed("rax & 0xf != 10"), FilterTerms().masked_not(rax, 15, 10).terms()));
  REQUIRE(same(parsed(" \trax==18446744073709551615 "), FilterTerms().equal(rax, ~std::uint64_t{0}).terms()));
  REQUIRE(same(parsed("rax in 5..5"), FilterTerms().in_range(rax, 5, 5).terms()));
}

TEST_CASE("each field has its name", "[filter]") {
  const std::string_view registers[] = {"rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", "r8",
                                        "r9",  "r10", "r11", "r12", "r13", "r14", "r15", "rip", "rflags"};
  for (std::uint8_t reg = 0; reg < 18; ++reg)
    REQUIRE(same(parsed(std::string(registers[reg]) + " == 1"),
                 FilterTerms().equal({KVMI_FILTER_REGISTER, reg}, 1).terms()));
  const std::pair<std::string_view, FilterField> fields[] = {
      {"number", kFilterNumber},   {"old", kFilterOldValue}, {"new", kFilterNewValue}, {"changed", kFilterChanged},
      {"gpa", kFilterGpa},         {"gva", kFilterGva},      {"access", kFilterAccess}, {"vcpu", kFilterVcpu},
      {"cr", kFilterNumber},       {"msr", kFilterNumber},   {"xcr", kFilterNumber},    {"vector", kFilterNumber},
      {"function", kFilterNumber}, {"hypercall", kFilterNumber}, {"descriptor", kFilterNumber}};
  for (const auto& [name, field] : fields)
    REQUIRE(same(parsed(std::string(name) + " == 1"), FilterTerms().equal(field, 1).terms()));
}

TEST_CASE("accesses can be letters", "[filter]") {
  REQUIRE(same(parsed("access == rw"), FilterTerms().equal(kFilterAccess, 3).terms()));
  REQUIRE(same(parsed("access == xwr"), FilterTerms().equal(kFilterAccess, 7).terms()));
  REQUIRE(same(parsed("access == 2"), FilterTerms().equal(kFilterAccess, 2).terms()));
  REQUIRE(same(parsed("access & w == w"), FilterTerms().masked(kFilterAccess, 2, 2).terms()));
  REQUIRE(fault("access == rr") == "11: expected a number, or letters of r, w and x, not \"rr\"");
  REQUIRE(fault("access == none") == "11: expected a number, or letters of r, w and x, not \"none\"");
  REQUIRE(fault("gpa == rw") == "8: expected a number such as 10 or 0xa, not \"rw\"");
}

TEST_CASE("an error names its column and what was expected", "[filter]") {
  const std::string field = "expected a field (" + std::string(kAllFields) + "), ";
  const std::string sign = "expected a comparison (==, !=, <, >, <=, >=, & or \"in\"), ";
  REQUIRE(fault("") == "1: " + field + "but the text ends");
  REQUIRE(fault("   ") == "4: " + field + "but the text ends");
  REQUIRE(fault("nmber == 3") == "1: " + field + "not \"nmber\"");
  REQUIRE(fault("Rax == 3") == "1: " + field + "not \"Rax\"");
  REQUIRE(fault("== 3") == "1: " + field + "not \"==\"");
  REQUIRE(fault("rax == 3 and") == "13: " + field + "but the text ends");
  REQUIRE(fault("rax == 3 or or rbx == 1") == "13: " + field + "not \"or\"");
  REQUIRE(fault("(rax == 3)") == "1: there are no parentheses: \"and\" binds tighter than \"or\"");
  REQUIRE(fault("rax") == "4: " + sign + "but the text ends");
  REQUIRE(fault("rax = 3") == "5: " + sign + "not \"=\"");
  REQUIRE(fault("rax is 3") == "5: " + sign + "not \"is\"");
  REQUIRE(fault("rax == ") == "8: expected a number such as 10 or 0xa, but the text ends");
  REQUIRE(fault("rax == -1") == "8: expected a number such as 10 or 0xa, not \"-\"");
  REQUIRE(fault("rax == 12ab") == "8: expected a number such as 10 or 0xa, not \"12ab\"");
  REQUIRE(fault("rax == 0x") == "8: expected a number such as 10 or 0xa, not \"0x\"");
  REQUIRE(fault("rax == 0x10000000000000000") == "8: the number is larger than 64 bits");
  REQUIRE(fault("rax == 18446744073709551616") == "8: the number is larger than 64 bits");
  REQUIRE(fault("rax & 0xff") == "11: expected == or != behind the mask, but the text ends");
  REQUIRE(fault("rax & 0xff < 3") == "12: expected == or != behind the mask, not \"<\"");
  REQUIRE(fault("rax in 5") == "9: expected \"..\" and the last value of the range, but the text ends");
  REQUIRE(fault("rax in 5-9") == "9: expected \"..\" and the last value of the range, not \"-\"");
  REQUIRE(fault("rax in 5..") == "11: expected a number such as 10 or 0xa, but the text ends");
  REQUIRE(fault("rax in 9..5") == "11: the last value of the range is below its first");
  REQUIRE(fault("rax == 3 rbx == 4") == "10: expected \"and\", \"or\" or the end, not \"rbx\"");
  REQUIRE(fault("rax == 3 && rbx == 4") == "10: expected \"and\", \"or\" or the end, not \"&&\"");
  REQUIRE(fault("rax == 3 andrbx == 4") == "10: expected \"and\", \"or\" or the end, not \"andrbx\"");
}

TEST_CASE("what the terminal must not see is not repeated", "[filter][hostile]") {
  REQUIRE(fault("rax == \x1b[31m") == "8: expected a number such as 10 or 0xa, not \"?[\"");
  REQUIRE(fault("rax == \xc3\xa4") == "8: expected a number such as 10 or 0xa, not \"??\"");
  REQUIRE(fault("rax == " + std::string(5000, 'z')) ==
          "8: expected a number such as 10 or 0xa, not \"" + std::string(24, 'z') + "..\"");
  REQUIRE(fault(std::string_view("rax\0== 3", 8)) ==
          "4: expected a comparison (==, !=, <, >, <=, >=, & or \"in\"), not \"?==\"");
}

TEST_CASE("a filter has at most 32 comparisons", "[filter]") {
  std::string text = "rax == 0";
  for (unsigned i = 1; i < KVMI_FILTER_TERMS_MAX; ++i) text += " or rax == 0";
  REQUIRE(parsed(text).size() == KVMI_FILTER_TERMS_MAX);
  REQUIRE(fault(text + " or rbx == 1") ==
          std::to_string(text.size() + 5) + ": a filter has at most 32 comparisons");
}

TEST_CASE("an event has only some fields", "[filter]") {
  REQUIRE(fault("new == 1 and gva == 3", EventKind::Cr) ==
          "14: a cr event has no \"gva\"; it has " + std::string(kCrFields));
  REQUIRE(fault("msr == 3", EventKind::Cr) == "1: a cr event has no \"msr\"; it has " + std::string(kCrFields));
  REQUIRE(fault("foo == 3", EventKind::Cr) == "1: expected a field (" + std::string(kCrFields) + "), not \"foo\"");
  REQUIRE(fault("number == 3", EventKind::Breakpoint) ==
          "1: a breakpoint event has no \"number\"; it has rax to r15, rip, rflags, vcpu, gpa");
  REQUIRE(fault("rax == 3", EventKind::Pause) == "1: a pause event cannot be filtered");
  // Each field exists just where the table has it.
  for (unsigned i = 0; i < kEventCount; ++i) {
    const auto kind = static_cast<EventKind>(i);
    for (const std::string_view name : {"number", "old", "new", "changed", "gpa", "gva", "access", "vcpu"}) {
      const std::string text = std::string(name) + " == 1";
      const auto field = parsed(text).front().field;
      INFO(name_of(kind) << " " << name);
      REQUIRE((fault(text, kind) == "none") == has_filter_field(kind, field));
    }
  }
}

TEST_CASE("a filter with its event", "[filter]") {
  const auto filter = parse_event_filter(" page_fault : access & w == w and gpa < 0x100000");
  REQUIRE(filter);
  REQUIRE(filter->event == EventKind::PageFault);
  REQUIRE(same(filter->terms,
               FilterTerms().masked(kFilterAccess, 2, 2).below(kFilterGpa, 0x100000).terms()));
  const std::string events =
      "cr, msr, xsetbv, breakpoint, hypercall, page_fault, trap, descriptor, singlestep, cpuid, access";
  REQUIRE(event_fault("") == "1: expected an event (" + events + ") and a colon, but the text ends");
  REQUIRE(event_fault("crr: cr == 3") == "1: expected an event (" + events + ") and a colon, not \"crr\"");
  REQUIRE(event_fault("cr == 3") == "4: expected a colon behind the event, not \"==\"");
  REQUIRE(event_fault("unhook: rax == 1") == "1: an unhook event cannot be filtered; these can: " + events);
  REQUIRE(event_fault("cr: gpa == 1") == "5: a cr event has no \"gpa\"; it has " + std::string(kCrFields));
  REQUIRE(event_fault("trap: vector == x") == "17: expected a number such as 10 or 0xa, not \"x\"");
}

TEST_CASE("the caret stands under the column", "[filter]") {
  const std::string_view text = "trap:\tvector == x";
  const auto filter = parse_event_filter(text);
  REQUIRE_FALSE(filter);
  REQUIRE(describe(filter.error(), text) ==
          "column 17: expected a number such as 10 or 0xa, not \"x\"\n"
          "  trap: vector == x\n"
          "                  ^");
  // A long text is cut round the column, and a control character does not move the caret.
  const std::string longer = std::string(100, ' ') + "rax == \x1b" + std::string(200, 'y');
  const auto cut = parse_filter(longer);
  REQUIRE_FALSE(cut);
  REQUIRE(cut.error().column == 108);
  const std::string shown = describe(cut.error(), longer);
  const auto lines = shown.substr(shown.find('\n') + 1);
  REQUIRE(lines.substr(0, lines.find('\n')) == "  " + std::string(53, ' ') + "rax == ?" + std::string(39, 'y'));
  REQUIRE(lines.substr(lines.find('\n') + 1) == std::string(62, ' ') + "^");
}

TEST_CASE("terms become text that gives them again", "[filter]") {
  REQUIRE(format_filter(parsed("cr==3 and new&255==1 or rip in 4096..8191"), EventKind::Cr) ==
          "cr == 3 and new & 0xff == 0x1 or rip in 0x1000..0x1fff");
  REQUIRE(format_filter(parsed("number == 14 or vcpu != 2")) == "number == 14 or vcpu != 2");
  REQUIRE(format_filter(parsed("msr == 16"), EventKind::Msr) == "msr == 0x10");
  REQUIRE(format_filter(parsed("access & 6 != 0")) == "access & wx != 0x0");
  REQUIRE(format_filter({}).empty());

  std::mt19937_64 random(0x66696c);
  const auto below = [&](std::uint64_t n) { return random() % n; };
  for (int round = 0; round < 5000; ++round) {
    const auto kind = static_cast<EventKind>(below(kEventCount));
    if (!can_filter(kind)) continue;
    Terms terms;
    for (std::uint64_t count = 1 + below(KVMI_FILTER_TERMS_MAX); count != 0; --count) {
      kvmi_filter_term t{};
      do {
        t.field = static_cast<std::uint8_t>(below(kFilterFieldCount));
      } while (!has_filter_field(kind, t.field));
      t.compare = static_cast<std::uint8_t>(below(kFilterCompareCount));
      t.new_group = static_cast<std::uint8_t>(terms.empty() ? 0 : below(2));
      t.reg = static_cast<std::uint8_t>(t.field == KVMI_FILTER_REGISTER ? below(kFilterRegisterCount) : 0);
      t.value = random() >> below(64);
      if (t.compare >= KVMI_COMPARE_RANGE) t.operand = random() >> below(64);
      if (t.compare == KVMI_COMPARE_RANGE && t.operand < t.value) std::swap(t.operand, t.value);
      terms.push_back(t);
    }
    const std::string text = format_filter(terms, kind);
    INFO(text);
    REQUIRE(same(parsed(text, kind), terms));
    REQUIRE(same(parsed(format_filter(terms)), terms));
  }
}

TEST_CASE("any text gives terms or an error within it", "[filter][hostile]") {
  const std::string_view words[] = {"rax", "cr", "new", "access", "rwx", "==", "!=", "<",  ">=", "&", "in", "..",
                                    "and", "or", "0x10", "7",     "(",   ":",  "\t", "\xff", "", "-", "=",  "0x"};
  std::mt19937_64 random(0x746578);
  unsigned good = 0;
  for (int round = 0; round < 20000; ++round) {
    std::string text;
    for (std::uint64_t count = random() % 9; count != 0; --count) {
      text += words[random() % std::size(words)];
      if (random() % 4 != 0) text += ' ';
    }
    const auto terms = parse_filter(text);
    if (terms) {
      ++good;
      REQUIRE(same(parsed(format_filter(*terms)), *terms));
    } else {
      INFO(text);
      REQUIRE(terms.error().column >= 1);
      REQUIRE(terms.error().column <= text.size() + 1);
      REQUIRE_FALSE(terms.error().text.empty());
    }
  }
  REQUIRE(good > 0);
}

TEST_CASE("filters from C", "[filter]") {
  kvmi_filter_term terms[4];
  std::size_t column = 99;
  SECTION("terms") {
    REQUIRE(kvmid_parse_filter("cr == 3 or vcpu == 1", KVMI_EVENT_CR, terms, 4, &column) == 2);
    REQUIRE(column == 0);
    REQUIRE(terms[0].field == KVMI_FILTER_NUMBER);
    REQUIRE(terms[1].new_group == 1);
    REQUIRE(kvmid_parse_filter("cr == 3 or vcpu == 1", KVMID_ANY_EVENT, nullptr, 0, nullptr) == 2);
  }
  SECTION("fewer are stored where there is less room") {
    terms[1].field = 77;
    REQUIRE(kvmid_parse_filter("cr == 3 or vcpu == 1", KVMI_EVENT_CR, terms, 1, nullptr) == 2);
    REQUIRE(terms[0].field == KVMI_FILTER_NUMBER);
    REQUIRE(terms[1].field == 77);
  }
  SECTION("errors") {
    REQUIRE(kvmid_parse_filter("cr == 3 or gpa == 1", KVMI_EVENT_CR, terms, 4, &column) == -KVMI_EINVAL);
    REQUIRE(column == 12);
    REQUIRE(std::string(kvmid_last_error()) ==
            "column 12: a cr event has no \"gpa\"; it has " + std::string(kCrFields));
    REQUIRE(kvmid_parse_filter(nullptr, KVMI_EVENT_CR, terms, 4, &column) == -KVMI_EINVAL);
    REQUIRE(kvmid_parse_filter("rax == 1", KVMI_EVENT_COUNT, terms, 4, &column) == -KVMI_EINVAL);
    REQUIRE(kvmid_parse_filter("rax == 1", KVMI_EVENT_UNHOOK, terms, 4, &column) == -KVMI_EINVAL);
  }
  SECTION("text") {
    REQUIRE(kvmid_parse_filter("cr == 3 or vcpu == 1", KVMI_EVENT_CR, terms, 4, nullptr) == 2);
    char text[64];
    REQUIRE(kvmid_format_filter(terms, 2, KVMI_EVENT_CR, text, sizeof text) == 20);
    REQUIRE(std::string(text) == "cr == 3 or vcpu == 1");
    REQUIRE(kvmid_format_filter(terms, 2, KVMID_ANY_EVENT, text, 7) == 24);
    REQUIRE(std::string(text) == "number");
    REQUIRE(kvmid_format_filter(terms, 2, KVMI_EVENT_CR, nullptr, 0) == 20);
    REQUIRE(kvmid_format_filter(nullptr, 2, KVMI_EVENT_CR, text, sizeof text) == -KVMI_EINVAL);
  }
}

}  // namespace kvmid::client
