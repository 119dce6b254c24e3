// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// What the model of a guest is made of, in forms that are cheap to compare: wishes as masks, patches as bytes.

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "daemon/core/effects.h"
#include "daemon/core/policy.h"
#include "daemon/core/types.h"
#include "protocol/dialect.h"

namespace kvmid::sim {

using core::Duration;
using core::TimePoint;
using std::chrono::microseconds;

inline constexpr unsigned kVcpus = 4;  ///< the most a guest has
inline constexpr unsigned kPages = 8;
inline constexpr std::uint64_t kMemoryBytes = kPages * kPageSize;
inline constexpr std::uint8_t kAllRights = KVMI_PAGE_ACCESS_R | KVMI_PAGE_ACCESS_W | KVMI_PAGE_ACCESS_X;
inline constexpr std::array<std::uint32_t, 6> kMsrs{0x10, 0x174, 0x277, 0x40000000, 0xc0000080, 0x4b564d00};
inline constexpr std::uint8_t kInt3 = 0xcc;
/// Where guests execute, and agents patch: two on one page, one with an INT3 of the guest's own.
inline constexpr std::array<std::uint64_t, 6> kCode{0x0010, 0x0100, 0x1ffb, 0x2000, 0x3080, 0x5fff};
inline constexpr std::uint64_t kOwnInt3 = 0x3080;

/// A rule of the house is broken: which, and how.
struct Violation : std::runtime_error {
  Violation(std::string invariant, const std::string& text) : std::runtime_error(text), name(std::move(invariant)) {}
  std::string name;
};

/// Texts of known violations that a run goes on past (`--past`), to see what lies behind them.
inline std::vector<std::string> past_texts;
/// Throws, unless the text is one of those. For places from which a run can go on.
inline void violate_or_go_on(const std::string& invariant, const std::string& text) {
  for (const std::string& past : past_texts)
    if (text.find(past) != std::string::npos) return;
  throw Violation(invariant, text);
}

struct Patch {
  std::uint64_t gpa = 0;
  std::vector<std::byte> bytes;
  [[nodiscard]] bool covers(std::uint64_t address) const { return address - gpa < bytes.size(); }
  [[nodiscard]] bool overlaps(const Patch& other) const {
    return gpa < other.gpa + other.bytes.size() && other.gpa < gpa + bytes.size();
  }
  friend bool operator==(const Patch&, const Patch&) = default;
  friend auto operator<=>(const Patch& a, const Patch& b) {
    if (a.gpa != b.gpa) return a.gpa <=> b.gpa;
    return a.bytes <=> b.bytes;
  }
};

struct VcpuWish {
  std::uint64_t events = 0;
  std::uint64_t deciding = 0;  ///< of these; of no meaning in a union
  std::uint8_t crs = 0;        ///< bit n: CR n
  std::uint8_t msrs = 0;       ///< bit n: kMsrs[n]
  bool step = false;
  [[nodiscard]] bool same_union(const VcpuWish& other) const {
    return events == other.events && crs == other.crs && msrs == other.msrs && step == other.step;
  }
};

/// What an agent has, or what a hypervisor was told.
struct Wishes {
  std::array<VcpuWish, kVcpus> vcpus{};
  std::array<std::uint8_t, kPages> pages{};  ///< rights
  std::vector<Patch> patches;                ///< sorted
  Wishes() { pages.fill(kAllRights); }

  [[nodiscard]] const Patch* patch_at(std::uint64_t gpa) const {
    for (const Patch& patch : patches)
      if (patch.gpa == gpa) return &patch;
    return nullptr;
  }
  void put(const Patch& patch) {
    take(patch.gpa);
    patches.insert(std::lower_bound(patches.begin(), patches.end(), patch), patch);
  }
  bool take(std::uint64_t gpa) {
    return std::erase_if(patches, [&](const Patch& patch) { return patch.gpa == gpa; }) != 0;
  }
  [[nodiscard]] bool none() const;
};

/// A filter as its agent set it.
struct FilterCopy {
  std::uint32_t number = 0;  ///< unique; 0: none
  EventKind kind{};
  Action action{};
  std::vector<kvmi_filter_term> terms;
};
/// Whether the filter lets the event through; nullopt: it looks at what the model does not know.
std::optional<bool> matches(const FilterCopy& filter, const Event& event);

/// A command that changes wishes, with what it points to.
struct Wish {
  CommandId id{};
  VcpuId vcpu{};
  bool enable = false;
  Operation operation{};
  Role role{};
  std::uint64_t events = 0;
  std::uint32_t number = 0;  ///< of the CR or MSR
  std::uint16_t flags = 0;   ///< of a patch
  Patch patch;
  std::vector<kvmi_page_access_entry> entries;
  FilterCopy filter;

  /// True: the command is one of these (WRITE_PHYSICAL only with PATCH or UNPATCH).
  static bool read(const Command& command, Wish& out);
  [[nodiscard]] bool names(unsigned index) const { return vcpu == kAllVcpus || vcpu.value == index; }
};
/// What is had after the wish was granted. Pauses and filters are not kept in Wishes.
void apply(const Wish& wish, unsigned vcpu_count, Wishes& wishes);
/// Place of an MSR in kMsrs; kMsrs.size(): it has none.
std::size_t msr_index(std::uint32_t msr);

/// "0x1ffb".
std::string hex(std::uint64_t value);

constexpr std::uint64_t bit(EventKind kind) { return std::uint64_t{1} << static_cast<unsigned>(kind); }

}  // namespace kvmid::sim
