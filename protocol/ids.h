// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

/// The identifiers of the field as types that cannot be mixed up.
///
/// Purpose:  a gfn can not be passed where a GPA is meant, nor an agent where a vCPU is.
/// Units:    addresses in bytes, Gfn in 4096-byte pages.
/// Threads:  plain values.

#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <functional>

namespace kvmid {

inline constexpr std::uint64_t kPageSize = 4096;
inline constexpr unsigned kPageShift = 12;

/// Guest physical address, in bytes.
struct Gpa {
  std::uint64_t value = 0;
  friend auto operator<=>(const Gpa&, const Gpa&) = default;
};

/// Guest virtual (linear) address, in bytes.
struct Gva {
  std::uint64_t value = 0;
  friend auto operator<=>(const Gva&, const Gva&) = default;
};

/// Guest frame number: Gpa >> 12.
struct Gfn {
  std::uint64_t value = 0;
  friend auto operator<=>(const Gfn&, const Gfn&) = default;
};

constexpr Gfn gfn_of(Gpa gpa) { return Gfn{gpa.value >> kPageShift}; }
constexpr Gpa gpa_of(Gfn gfn) { return Gpa{gfn.value << kPageShift}; }

/// One of a guest's processors, counted from 0.
struct VcpuId {
  std::uint16_t value = 0;
  friend auto operator<=>(const VcpuId&, const VcpuId&) = default;
};

/// In commands that take one: every vCPU of the guest. In events: no vCPU, the guest itself.
inline constexpr VcpuId kAllVcpus{0xffff};

/// An agent's connection, unique for the life of the daemon. 0 is nobody (or the daemon itself).
struct AgentId {
  std::uint32_t value = 0;
  friend auto operator<=>(const AgentId&, const AgentId&) = default;
};

/// A guest's UUID as it stands in the hypervisor's handshake (16 bytes, in written order).
struct Uuid {
  std::array<std::uint8_t, 16> bytes{};
  friend auto operator<=>(const Uuid&, const Uuid&) = default;
  [[nodiscard]] bool is_zero() const { return *this == Uuid{}; }
};

/// Sequence number of a message: a reply carries the one of what it answers.
struct Seq {
  std::uint32_t value = 0;
  friend auto operator<=>(const Seq&, const Seq&) = default;
};

}  // namespace kvmid

template <>
struct std::hash<kvmid::Uuid> {
  std::size_t operator()(const kvmid::Uuid& uuid) const noexcept {
    std::size_t h = 1469598103934665603ULL;  // FNV-1a
    for (const auto b : uuid.bytes) h = (h ^ b) * 1099511628211ULL;
    return h;
  }
};
