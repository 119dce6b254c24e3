// SPDX-License-Identifier: GPL-2.0-or-later
#include "daemon/core/filter.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <cstring>
#include <optional>
#include <random>

namespace kvmid::core {

namespace {

using Terms = std::vector<kvmi_filter_term>;

kvmi_filter_term term(unsigned field, unsigned compare, std::uint64_t value, std::uint64_t operand = 0,
                      unsigned reg = 0) {
  kvmi_filter_term t{};
  t.field = static_cast<std::uint8_t>(field);
  t.compare = static_cast<std::uint8_t>(compare);
  t.reg = static_cast<std::uint8_t>(reg);
  t.value = value;
  t.operand = operand;
  return t;
}
kvmi_filter_term operator|(kvmi_filter_term t, std::uint8_t new_group) {
  t.new_group = new_group;
  return t;
}

Result<Filter, FilterFault> make(EventKind kind, const Terms& terms, Action action = Action::Allow) {
  return Filter::make(kind, action, std::span<const kvmi_filter_term>(terms));
}
Filter filter(EventKind kind, const Terms& terms) {
  auto made = make(kind, terms);
  INFO((made ? std::string() : describe(made.error())));
  REQUIRE(made);
  return *made;
}
std::shared_ptr<const Filter> shared(EventKind kind) {
  return std::make_shared<const Filter>(filter(kind, {term(KVMI_FILTER_VCPU, KVMI_COMPARE_EQ, 0)}));
}
std::string fault(EventKind kind, const Terms& terms) {
  const auto made = make(kind, terms);
  return made ? "none" : describe(made.error());
}

template <class Data>
Event event(Data data) {
  Event e;
  e.vcpu = VcpuId{3};
  auto* regs = reinterpret_cast<unsigned char*>(&e.regs);
  for (std::uint64_t i = 0; i < 18; ++i) {
    const std::uint64_t value = 0x1000 + i;
    std::memcpy(regs + i * 8, &value, sizeof value);
  }
  e.data = data;
  return e;
}

/// The event shows just this value in that field: equal to it, and not to its neighbour.
bool shows(const Event& e, unsigned field, std::uint64_t value, unsigned reg = 0) {
  return filter(e.kind(), {term(field, KVMI_COMPARE_EQ, value, 0, reg)}).matches(e) &&
         !filter(e.kind(), {term(field, KVMI_COMPARE_EQ, value + 1, 0, reg)}).matches(e) &&
         !filter(e.kind(), {term(field, KVMI_COMPARE_NE, value, 0, reg)}).matches(e);
}

const std::vector<Event>& every_event() {
  static const std::vector<Event> events{
      event(UnhookData{}),
      event(CrData{3, 0xa0, 0xf5}),
      event(MsrData{0xc0000082, 0xa1, 0xf6}),
      event(XsetbvData{0, 0xa2, 0xf7}),
      event(BreakpointData{Gpa{0x4000}, 1}),
      event(HypercallData{}),
      event(PageFaultData{Gva{0x7000}, Gpa{0x5000}, KVMI_PAGE_ACCESS_W, true}),
      event(TrapData{.vector = 14}),
      event(DescriptorData{KVMI_DESC_LDTR, true}),
      event(CreateVcpuData{}),
      event(PauseData{}),
      event(SinglestepData{}),
      event(CpuidData{0x40000000, 1}),
      event(AccessData{.gva = Gva{0x8000}, .gpa = Gpa{0x6000}, .access = KVMI_PAGE_ACCESS_R, .size = 8, .data = {}}),
  };
  return events;
}

/// What an event shows, told again in the simplest words: the table of PROTOCOL.md.
std::optional<std::uint64_t> naive_value(const Event& e, unsigned field, unsigned reg) {
  const auto kind = e.kind();
  if (field == KVMI_FILTER_REGISTER) {
    std::uint64_t value = 0;
    std::memcpy(&value, reinterpret_cast<const unsigned char*>(&e.regs) + std::size_t{reg} * 8, sizeof value);
    return value;
  }
  if (field == KVMI_FILTER_VCPU) return e.vcpu.value;
  std::optional<std::uint64_t> number, old_value, new_value, gpa, gva, access;
  if (kind == EventKind::Cr) {
    const auto& d = std::get<CrData>(e.data);
    number = d.cr, old_value = d.old_value, new_value = d.new_value;
  } else if (kind == EventKind::Msr) {
    const auto& d = std::get<MsrData>(e.data);
    number = d.msr, old_value = d.old_value, new_value = d.new_value;
  } else if (kind == EventKind::Xsetbv) {
    const auto& d = std::get<XsetbvData>(e.data);
    number = d.xcr, old_value = d.old_value, new_value = d.new_value;
  } else if (kind == EventKind::Breakpoint) {
    gpa = std::get<BreakpointData>(e.data).gpa.value;
  } else if (kind == EventKind::Hypercall) {
    number = e.regs.rax;
  } else if (kind == EventKind::PageFault) {
    const auto& d = std::get<PageFaultData>(e.data);
    gpa = d.gpa.value, access = d.access;
    if (d.gva_valid) gva = d.gva.value;
  } else if (kind == EventKind::Trap) {
    number = std::get<TrapData>(e.data).vector;
  } else if (kind == EventKind::Descriptor) {
    number = std::get<DescriptorData>(e.data).descriptor;
  } else if (kind == EventKind::Cpuid) {
    number = std::get<CpuidData>(e.data).function;
  } else if (kind == EventKind::Access) {
    const auto& d = std::get<AccessData>(e.data);
    gpa = d.gpa.value, gva = d.gva.value, access = d.access;
  }
  switch (field) {
    case KVMI_FILTER_NUMBER: return number;
    case KVMI_FILTER_OLD_VALUE: return old_value;
    case KVMI_FILTER_NEW_VALUE: return new_value;
    case KVMI_FILTER_CHANGED:
      return old_value ? std::optional(*old_value ^ *new_value) : std::nullopt;
    case KVMI_FILTER_GPA: return gpa;
    case KVMI_FILTER_GVA: return gva;
    case KVMI_FILTER_ACCESS: return access;
    default: return std::nullopt;
  }
}

bool naive_holds(const Event& e, const kvmi_filter_term& t) {
  const auto shown = naive_value(e, t.field, t.reg);
  if (!shown) return false;
  const std::uint64_t x = *shown;
  switch (t.compare) {
    case KVMI_COMPARE_EQ: return x == t.value;
    case KVMI_COMPARE_NE: return x != t.value;
    case KVMI_COMPARE_LT: return x < t.value;
    case KVMI_COMPARE_GT: return x > t.value;
    case KVMI_COMPARE_RANGE: return x >= t.value && x <= t.operand;
    case KVMI_COMPARE_MASK_EQ: return (x & t.operand) == t.value;
    default: return (x & t.operand) != t.value;
  }
}

/// Any group of which every term holds.
bool naive_matches(const Event& e, const Terms& terms) {
  std::vector<bool> groups;
  for (const auto& t : terms) {
    if (groups.empty() || t.new_group != 0) groups.push_back(true);
    groups.back() = groups.back() && naive_holds(e, t);
  }
  return std::find(groups.begin(), groups.end(), true) != groups.end();
}

}  // namespace

TEST_CASE("a filter sees each field of each event", "[filter]") {
  const auto of = [](EventKind kind) -> const Event& { return every_event()[static_cast<std::size_t>(kind)]; };
  SECTION("registers and the vCPU are in all of them") {
    for (const Event& e : every_event()) {
      if (e.kind() == EventKind::Unhook || e.kind() == EventKind::CreateVcpu || e.kind() == EventKind::Pause) continue;
      INFO(name_of(e.kind()));
      REQUIRE(shows(e, KVMI_FILTER_VCPU, 3));
      for (unsigned reg = 0; reg < 18; ++reg) REQUIRE(shows(e, KVMI_FILTER_REGISTER, 0x1000 + reg, reg));
    }
    REQUIRE(of(EventKind::Cr).regs.rip == 0x1010);
    REQUIRE(of(EventKind::Cr).regs.rflags == 0x1011);
  }
  SECTION("numbers") {
    REQUIRE(shows(of(EventKind::Cr), KVMI_FILTER_NUMBER, 3));
    REQUIRE(shows(of(EventKind::Msr), KVMI_FILTER_NUMBER, 0xc0000082));
    REQUIRE(shows(of(EventKind::Xsetbv), KVMI_FILTER_NUMBER, 0));
    REQUIRE(shows(of(EventKind::Hypercall), KVMI_FILTER_NUMBER, 0x1000));
    REQUIRE(shows(of(EventKind::Trap), KVMI_FILTER_NUMBER, 14));
    REQUIRE(shows(of(EventKind::Descriptor), KVMI_FILTER_NUMBER, KVMI_DESC_LDTR));
    REQUIRE(shows(of(EventKind::Cpuid), KVMI_FILTER_NUMBER, 0x40000000));
  }
  SECTION("values") {
    const std::array kinds{EventKind::Cr, EventKind::Msr, EventKind::Xsetbv};
    for (std::uint64_t i = 0; i < kinds.size(); ++i) {
      INFO(name_of(kinds[i]));
      REQUIRE(shows(of(kinds[i]), KVMI_FILTER_OLD_VALUE, 0xa0 + i));
      REQUIRE(shows(of(kinds[i]), KVMI_FILTER_NEW_VALUE, 0xf5 + i));
      REQUIRE(shows(of(kinds[i]), KVMI_FILTER_CHANGED, (0xa0 + i) ^ (0xf5 + i)));
    }
  }
  SECTION("addresses and accesses") {
    REQUIRE(shows(of(EventKind::Breakpoint), KVMI_FILTER_GPA, 0x4000));
    REQUIRE(shows(of(EventKind::PageFault), KVMI_FILTER_GPA, 0x5000));
    REQUIRE(shows(of(EventKind::PageFault), KVMI_FILTER_GVA, 0x7000));
    REQUIRE(shows(of(EventKind::PageFault), KVMI_FILTER_ACCESS, KVMI_PAGE_ACCESS_W));
    REQUIRE(shows(of(EventKind::Access), KVMI_FILTER_GPA, 0x6000));
    REQUIRE(shows(of(EventKind::Access), KVMI_FILTER_GVA, 0x8000));
    REQUIRE(shows(of(EventKind::Access), KVMI_FILTER_ACCESS, KVMI_PAGE_ACCESS_R));
  }
}

TEST_CASE("each comparison at its edges", "[filter]") {
  const std::uint64_t all = ~std::uint64_t{0};
  const auto holds = [](std::uint64_t x, unsigned compare, std::uint64_t value, std::uint64_t operand = 0) {
    return filter(EventKind::Cr, {term(KVMI_FILTER_NEW_VALUE, compare, value, operand)})
        .matches(event(CrData{3, 0, x}));
  };
  REQUIRE(holds(5, KVMI_COMPARE_EQ, 5));
  REQUIRE_FALSE(holds(6, KVMI_COMPARE_EQ, 5));
  REQUIRE(holds(6, KVMI_COMPARE_NE, 5));
  REQUIRE_FALSE(holds(5, KVMI_COMPARE_NE, 5));
  REQUIRE(holds(4, KVMI_COMPARE_LT, 5));
  REQUIRE_FALSE(holds(5, KVMI_COMPARE_LT, 5));
  REQUIRE_FALSE(holds(0, KVMI_COMPARE_LT, 0));
  REQUIRE_FALSE(holds(all, KVMI_COMPARE_LT, 0));
  REQUIRE(holds(all - 1, KVMI_COMPARE_LT, all));
  REQUIRE(holds(6, KVMI_COMPARE_GT, 5));
  REQUIRE_FALSE(holds(5, KVMI_COMPARE_GT, 5));
  REQUIRE_FALSE(holds(all, KVMI_COMPARE_GT, all));
  REQUIRE(holds(all, KVMI_COMPARE_GT, all - 1));
  REQUIRE(holds(1, KVMI_COMPARE_GT, 0));
  REQUIRE(holds(0x8000000000000000, KVMI_COMPARE_GT, 1));  // unsigned
  REQUIRE(holds(5, KVMI_COMPARE_RANGE, 5, 7));
  REQUIRE(holds(7, KVMI_COMPARE_RANGE, 5, 7));
  REQUIRE_FALSE(holds(4, KVMI_COMPARE_RANGE, 5, 7));
  REQUIRE_FALSE(holds(8, KVMI_COMPARE_RANGE, 5, 7));
  REQUIRE(holds(5, KVMI_COMPARE_RANGE, 5, 5));
  REQUIRE(holds(all, KVMI_COMPARE_RANGE, 0, all));
  REQUIRE(holds(0xab01, KVMI_COMPARE_MASK_EQ, 0x01, 0xff));
  REQUIRE_FALSE(holds(0xab02, KVMI_COMPARE_MASK_EQ, 0x01, 0xff));
  REQUIRE(holds(0xab02, KVMI_COMPARE_MASK_NE, 0x01, 0xff));
  REQUIRE_FALSE(holds(0xab01, KVMI_COMPARE_MASK_NE, 0x01, 0xff));
  REQUIRE(holds(0x1234, KVMI_COMPARE_MASK_EQ, 0, 0));            // of no bit, nothing is left
  REQUIRE_FALSE(holds(0x101, KVMI_COMPARE_MASK_EQ, 0x101, 0xff));  // the value has a bit that the mask has not
}

TEST_CASE("and binds the terms of a group, or the groups", "[filter]") {
  const auto number = [](std::uint64_t n) { return term(KVMI_FILTER_NUMBER, KVMI_COMPARE_EQ, n); };
  const auto value = [](std::uint64_t v) { return term(KVMI_FILTER_NEW_VALUE, KVMI_COMPARE_EQ, v); };
  const Filter f = filter(EventKind::Cr, {number(3), value(1), number(4) | 1, value(2), value(7) | 1});
  REQUIRE(f.terms() == 5);
  REQUIRE(f.matches(event(CrData{3, 0, 1})));
  REQUIRE(f.matches(event(CrData{4, 0, 2})));
  REQUIRE(f.matches(event(CrData{0, 0, 7})));
  REQUIRE_FALSE(f.matches(event(CrData{3, 0, 2})));
  REQUIRE_FALSE(f.matches(event(CrData{4, 0, 1})));
  REQUIRE_FALSE(f.matches(event(CrData{0, 0, 1})));
}

TEST_CASE("a page fault without a GVA matches no comparison of it", "[filter]") {
  const Event e = event(PageFaultData{Gva{0}, Gpa{0x5000}, KVMI_PAGE_ACCESS_R, false});
  for (unsigned compare = 0; compare <= KVMI_COMPARE_MASK_NE; ++compare) {
    INFO(compare);
    REQUIRE_FALSE(filter(EventKind::PageFault, {term(KVMI_FILTER_GVA, compare, 0)}).matches(e));
  }
  REQUIRE(filter(EventKind::PageFault, {term(KVMI_FILTER_GVA, KVMI_COMPARE_EQ, 0),
                                        term(KVMI_FILTER_GPA, KVMI_COMPARE_EQ, 0x5000) | 1})
              .matches(e));
}

TEST_CASE("an event of another kind is not kept back", "[filter]") {
  const Filter f = filter(EventKind::Cr, {term(KVMI_FILTER_NUMBER, KVMI_COMPARE_EQ, 3)});
  REQUIRE_FALSE(f.matches(event(CrData{4, 0, 0})));
  REQUIRE(f.matches(event(MsrData{4, 0, 0})));
  REQUIRE(f.kind() == EventKind::Cr);
  REQUIRE(make(EventKind::Cr, {term(KVMI_FILTER_VCPU, KVMI_COMPARE_EQ, 0)}, Action::Crash)->action() == Action::Crash);
}

TEST_CASE("a fault names its term", "[filter][hostile]") {
  const auto ok = term(KVMI_FILTER_VCPU, KVMI_COMPARE_EQ, 0);
  const auto third = [&](const kvmi_filter_term& t, EventKind kind = EventKind::Cr) {
    return fault(kind, {ok, ok, t});
  };
  SECTION("fields that the event does not have") {
    REQUIRE(third(term(KVMI_FILTER_GVA, 0, 0)) == "term 3: this event has no GVA");
    REQUIRE(third(term(KVMI_FILTER_GPA, 0, 0)) == "term 3: this event has no GPA");
    REQUIRE(third(term(KVMI_FILTER_ACCESS, 0, 0)) == "term 3: this event has no page access");
    REQUIRE(third(term(KVMI_FILTER_GVA, 0, 0), EventKind::Breakpoint) == "term 3: this event has no GVA");
    REQUIRE(third(term(KVMI_FILTER_NUMBER, 0, 0), EventKind::PageFault) == "term 3: this event has no number");
    REQUIRE(third(term(KVMI_FILTER_OLD_VALUE, 0, 0), EventKind::Trap) == "term 3: this event has no old value");
    REQUIRE(third(term(KVMI_FILTER_NEW_VALUE, 0, 0), EventKind::Trap) == "term 3: this event has no new value");
    REQUIRE(third(term(KVMI_FILTER_CHANGED, 0, 0), EventKind::Cpuid) ==
            "term 3: this event has no old and new value");
    REQUIRE(third(term(KVMI_FILTER_GVA + 0U, 0, 0), EventKind::PageFault) == "none");
  }
  SECTION("values out of their range") {
    REQUIRE(third(term(KVMI_FILTER_VCPU + 1, 0, 0)) == "term 3: there is no such field");
    REQUIRE(third(term(255, 0, 0)) == "term 3: there is no such field");
    REQUIRE(third(term(0, KVMI_COMPARE_MASK_NE + 1, 0)) == "term 3: there is no such comparison");
    REQUIRE(third(ok | 2) == "term 3: new_group is neither 0 nor 1");
    REQUIRE(third(ok | 1) == "none");
    REQUIRE(fault(EventKind::Cr, {ok | 1}) == "term 1: new_group is set in the first term");
    REQUIRE(third(term(KVMI_FILTER_REGISTER, 0, 0, 0, 17)) == "none");
    REQUIRE(third(term(KVMI_FILTER_REGISTER, 0, 0, 0, 18)) == "term 3: reg is above 17: there is no such register");
    REQUIRE(third(term(KVMI_FILTER_VCPU, 0, 0, 0, 1)) == "term 3: reg is set and the field is no register");
    auto padded = ok;
    padded.padding = 1;
    REQUIRE(third(padded) == "term 3: padding is not 0");
    REQUIRE(third(term(KVMI_FILTER_VCPU, KVMI_COMPARE_RANGE, 5, 4)) ==
            "term 3: the last value of the range is below its first");
    for (const unsigned compare : {KVMI_COMPARE_EQ, KVMI_COMPARE_NE, KVMI_COMPARE_LT, KVMI_COMPARE_GT})
      REQUIRE(third(term(KVMI_FILTER_VCPU, compare, 5, 4)) ==
              "term 3: operand is set and the comparison takes none");
  }
  SECTION("the whole filter") {
    for (const EventKind kind : {EventKind::Unhook, EventKind::Pause, EventKind::CreateVcpu})
      REQUIRE(fault(kind, {ok}) == "UNHOOK, CREATE_VCPU and PAUSE events cannot be filtered");
    REQUIRE(fault(static_cast<EventKind>(kEventCount), {ok}) == "there is no such event");
    REQUIRE(fault(EventKind::Cr, {}) == "a filter has at least one term");
    REQUIRE(describe(make(EventKind::Cr, {ok}, static_cast<Action>(4)).error()) == "there is no such action");
    REQUIRE(fault(EventKind::Cr, Terms(KVMI_FILTER_TERMS_MAX, ok)) == "none");
    const auto many = make(EventKind::Cr, Terms(KVMI_FILTER_TERMS_MAX + 1, ok));
    REQUIRE_FALSE(many);
    REQUIRE(describe(many.error()) == "a filter has at most 32 terms");
    REQUIRE(many.error().error == ErrorCode::Busy);
    REQUIRE(make(EventKind::Cr, {ok | 1}).error().error == ErrorCode::Invalid);
    REQUIRE(make(EventKind::Cr, {ok, ok | 3}).error().term == 1);
  }
}

TEST_CASE("random filters say what a naive evaluator says", "[filter]") {
  std::mt19937_64 random(0x6b766d);
  const auto below = [&](std::uint64_t n) { return random() % n; };
  // Few different values, so that comparisons are near their edges.
  const auto value = [&]() -> std::uint64_t {
    switch (below(4)) {
      case 0: return below(4);
      case 1: return ~below(3);
      case 2: return 0x1000 + below(20);
      default: return std::uint64_t{1} << below(64);
    }
  };
  unsigned matched = 0, made = 0, refused = 0;
  for (int round = 0; round < 20000; ++round) {
    Event e = every_event()[below(kEventCount)];
    e.vcpu.value = static_cast<std::uint16_t>(below(4));
    e.regs.rax = value();
    e.regs.rip = value();
    e.regs.rflags = value();
    std::visit(Overloaded{[](auto&) {},
                          [&](CrData& d) { d = {static_cast<std::uint16_t>(below(5)), value(), value()}; },
                          [&](MsrData& d) { d = {static_cast<std::uint32_t>(value()), value(), value()}; },
                          [&](XsetbvData& d) { d = {0, value(), value()}; },
                          [&](BreakpointData& d) { d.gpa.value = value(); },
                          [&](PageFaultData& d) {
                            d = {Gva{value()}, Gpa{value()}, static_cast<std::uint8_t>(below(8)), below(2) != 0};
                          },
                          [&](TrapData& d) { d.vector = static_cast<std::uint8_t>(below(32)); },
                          [&](CpuidData& d) { d.function = static_cast<std::uint32_t>(value()); },
                          [&](AccessData& d) {
                            d.gva.value = value();
                            d.gpa.value = value();
                          }},
               e.data);
    Terms terms;
    for (std::uint64_t count = 1 + below(6); count != 0; --count) {
      const auto field = static_cast<unsigned>(below(KVMI_FILTER_VCPU + 1));
      auto t = term(field, static_cast<unsigned>(below(KVMI_COMPARE_MASK_NE + 1)), value());
      if (field == KVMI_FILTER_REGISTER) t.reg = static_cast<std::uint8_t>(below(2) != 0 ? 0 : 16 + below(2));
      if (t.compare == KVMI_COMPARE_RANGE) t.operand = std::max(t.value, value());
      if (t.compare > KVMI_COMPARE_RANGE) t.operand = value();
      if (!terms.empty()) t.new_group = static_cast<std::uint8_t>(below(2));
      // Most fields that the event does not have are left out, or hardly any filter would be made.
      if (!naive_value(e, field, t.reg) && below(8) != 0) continue;
      terms.push_back(t);
    }
    if (!terms.empty()) terms.front().new_group = 0;
    const auto f = make(e.kind(), terms);
    if (!f) {
      ++refused;
      continue;
    }
    ++made;
    INFO("round " << round << ", " << name_of(e.kind()) << ", " << terms.size() << " terms");
    const bool expected = naive_matches(e, terms);
    REQUIRE(f->matches(e) == expected);
    matched += expected ? 1 : 0;
  }
  REQUIRE(made > 5000);
  REQUIRE(matched > made / 10);
  REQUIRE(matched < made * 9 / 10);
  REQUIRE(refused > 1000);
}

TEST_CASE("the table finds each agent's filter", "[filter]") {
  FilterTable table(3);
  const auto cr = shared(EventKind::Cr);
  const auto msr = shared(EventKind::Msr);
  const auto other = shared(EventKind::Cr);
  REQUIRE_FALSE(table.filtering(VcpuId{0}, EventKind::Cr).any());
  REQUIRE(table.find(VcpuId{0}, EventKind::Cr, 0) == nullptr);

  table.set(kAllVcpus, 5, EventKind::Cr, cr);
  table.set(VcpuId{1}, 5, EventKind::Msr, msr);
  table.set(VcpuId{1}, 63, EventKind::Cr, other);
  for (std::uint16_t i = 0; i < 3; ++i) {
    INFO(i);
    REQUIRE(table.find(VcpuId{i}, EventKind::Cr, 5) == cr.get());
    REQUIRE(table.find(VcpuId{i}, EventKind::Msr, 5) == (i == 1 ? msr.get() : nullptr));
    REQUIRE(table.find(VcpuId{i}, EventKind::Cr, 63) == (i == 1 ? other.get() : nullptr));
    REQUIRE(table.filtering(VcpuId{i}, EventKind::Cr).count() == (i == 1 ? 2U : 1U));
    REQUIRE(table.filtering(VcpuId{i}, EventKind::Msr).count() == (i == 1 ? 1U : 0U));
  }
  SECTION("one filter for every vCPU counts once") {
    REQUIRE(table.filters_of(5) == 2);
    REQUIRE(table.filters_of(63) == 1);
    REQUIRE(table.filters_of(1) == 0);
  }
  SECTION("what stays when another is set") {
    REQUIRE(table.filters_kept(kAllVcpus, 5, EventKind::Cr) == 1);
    REQUIRE(table.filters_kept(VcpuId{2}, 5, EventKind::Cr) == 2);  // the others still have it
    REQUIRE(table.filters_kept(VcpuId{1}, 5, EventKind::Msr) == 1);
    REQUIRE(table.filters_kept(VcpuId{0}, 5, EventKind::Trap) == 2);
  }
  SECTION("another takes the place of the first") {
    table.set(VcpuId{2}, 5, EventKind::Cr, other);
    REQUIRE(table.find(VcpuId{2}, EventKind::Cr, 5) == other.get());
    REQUIRE(table.find(VcpuId{0}, EventKind::Cr, 5) == cr.get());
    REQUIRE(table.filters_of(5) == 3);
    table.set(kAllVcpus, 5, EventKind::Cr, other);
    REQUIRE(table.filters_of(5) == 2);
    REQUIRE(cr.use_count() == 1);  // nothing keeps it alive
  }
  SECTION("null takes away") {
    table.set(VcpuId{1}, 5, EventKind::Cr, nullptr);
    REQUIRE(table.find(VcpuId{1}, EventKind::Cr, 5) == nullptr);
    REQUIRE(table.find(VcpuId{1}, EventKind::Cr, 63) == other.get());
    REQUIRE(table.find(VcpuId{0}, EventKind::Cr, 5) == cr.get());
    table.set(kAllVcpus, 5, EventKind::Cr, nullptr);
    table.set(kAllVcpus, 5, EventKind::Cr, nullptr);  // again: nothing is there
    REQUIRE(table.filters_of(5) == 1);
    REQUIRE(cr.use_count() == 1);
  }
  SECTION("an agent that goes takes its own along") {
    table.remove(5);
    REQUIRE(table.filters_of(5) == 0);
    REQUIRE(table.filters_of(63) == 1);
    REQUIRE(table.filtering(VcpuId{1}, EventKind::Cr).bits() == std::uint64_t{1} << 63U);
    REQUIRE_FALSE(table.filtering(VcpuId{1}, EventKind::Msr).any());
    REQUIRE(msr.use_count() == 1);
  }
}

}  // namespace kvmid::core
