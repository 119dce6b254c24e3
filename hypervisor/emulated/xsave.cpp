// SPDX-License-Identifier: GPL-2.0-or-later
#include "hypervisor/emulated/xsave.h"

#include <algorithm>
#include <cstring>

namespace kvmid::emulated {

namespace {

// Offsets in the area.
constexpr std::size_t kFcw = 0, kFsw = 2, kFtw = 4, kMxcsr = 24, kMxcsrMaskField = 28, kSt = 32, kXmm = 160;
constexpr std::size_t kXstateBv = kXsaveLegacyBytes, kXcompBv = kXstateBv + 8, kReserved = kXcompBv + 8;

template <class T>
void put(XsaveArea& area, std::size_t offset, const T& value) {
  std::memcpy(area.data() + offset, &value, sizeof value);
}
template <class T>
T get(Bytes area, std::size_t offset) {
  T value{};
  std::memcpy(&value, area.data() + offset, sizeof value);
  return value;
}

unsigned top_of(std::uint16_t status) { return (status >> 11) & 7u; }

/// Two bits for the tag of a register that is not empty: 0 valid, 1 zero, 2 special.
unsigned tag_of(const std::array<std::uint8_t, 10>& value) {
  std::uint64_t mantissa = 0;
  std::memcpy(&mantissa, value.data(), 8);
  const unsigned exponent = (value[8] | (unsigned{value[9]} << 8)) & 0x7fffu;
  if (exponent == 0 && mantissa == 0) return 1;
  const bool integer_bit = (mantissa >> 63) != 0;
  return exponent == 0 || exponent == 0x7fff || !integer_bit ? 2 : 0;
}

}  // namespace

XsaveArea make_xsave_area(const FpuState& state, std::uint64_t features) {
  XsaveArea area{};
  if ((features & kXfeatureX87) != 0) {
    put(area, kFcw, state.control);
    put(area, kFsw, state.status);
    std::uint8_t not_empty = 0;
    for (unsigned i = 0; i < 8; ++i) {
      if (((state.tags >> (2 * i)) & 3u) != 3) not_empty = static_cast<std::uint8_t>(not_empty | (1u << i));
    }
    put(area, kFtw, not_empty);
    for (unsigned i = 0; i < 8; ++i) put(area, kSt + i * 16, state.physical[(top_of(state.status) + i) & 7]);
  }
  if ((features & kXfeatureSse) != 0) {
    put(area, kMxcsr, state.mxcsr);
    put(area, kMxcsrMaskField, kMxcsrMask);
    for (std::size_t i = 0; i < state.xmm.size(); ++i) put(area, kXmm + i * 16, state.xmm[i]);
  }
  put(area, kXstateBv, features);
  return area;
}

std::optional<std::string> check_xsave_area(Bytes area) {
  if (area.size() != kXsaveBytes) {
    return "this vCPU's XSAVE area has " + std::to_string(kXsaveBytes) + " bytes, not " + std::to_string(area.size());
  }
  if ((get<std::uint64_t>(area, kXstateBv) & ~kXcr0Supported) != 0) {
    return std::string("XSTATE_BV names a component that this vCPU does not have: only x87 (1) and SSE (2)");
  }
  if (get<std::uint64_t>(area, kXcompBv) != 0) {
    return std::string("XCOMP_BV is not 0: the compacted format is not known here");
  }
  const auto reserved = area.subspan(kReserved, kXsaveBytes - kReserved);
  if (std::any_of(reserved.begin(), reserved.end(), [](std::byte b) { return b != std::byte{0}; })) {
    return std::string("the rest of the XSAVE header is not 0");
  }
  if ((get<std::uint32_t>(area, kMxcsr) & ~kMxcsrMask) != 0) {
    return std::string("MXCSR has bits that do not exist");
  }
  return std::nullopt;
}

void load_xsave_area(Bytes area, std::uint64_t features, FpuState& state) {
  const auto present = get<std::uint64_t>(area, kXstateBv);
  const FpuState initial;
  if ((features & kXfeatureX87) != 0) {
    state.control = initial.control;
    state.status = initial.status;
    state.tags = initial.tags;
    state.physical = initial.physical;
    if ((present & kXfeatureX87) != 0) {
      state.control = get<std::uint16_t>(area, kFcw);
      state.status = get<std::uint16_t>(area, kFsw);
      for (unsigned i = 0; i < 8; ++i) {
        state.physical[(top_of(state.status) + i) & 7] = get<std::array<std::uint8_t, 10>>(area, kSt + i * 16);
      }
      const auto not_empty = get<std::uint8_t>(area, kFtw);
      unsigned tags = 0;
      for (unsigned i = 0; i < 8; ++i) {
        tags |= (((not_empty >> i) & 1u) != 0 ? tag_of(state.physical[i]) : 3u) << (2 * i);
      }
      state.tags = static_cast<std::uint16_t>(tags);
    }
  }
  if ((features & kXfeatureSse) != 0) {
    // MXCSR is loaded with SSE even where XSTATE_BV lacks it; only the XMM registers become initial then.
    state.mxcsr = get<std::uint32_t>(area, kMxcsr);
    state.xmm = initial.xmm;
    if ((present & kXfeatureSse) != 0) {
      for (std::size_t i = 0; i < state.xmm.size(); ++i) {
        state.xmm[i] = get<std::array<std::uint8_t, 16>>(area, kXmm + i * 16);
      }
    }
  }
}

}  // namespace kvmid::emulated
