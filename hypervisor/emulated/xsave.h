// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// x87 and SSE state of a vCPU as an XSAVE area, and the rules of XCR0.
///
/// Purpose:  GET_XSAVE, SET_XSAVE, and the guest's own XSAVE, XRSTOR and XSETBV share these rules.
/// Shapes:   the standard format: the 512 bytes of FXSAVE (64-bit form), a header of 64, and nothing behind it.
/// Units:    bytes.
/// Errors:   check_xsave_area() says what no processor would load.
/// Threads:  none of its own.
/// Leaves out: the addresses of the last x87 instruction and its operand, and its opcode (0 in an area that is made,
///           not looked at in one that is taken).
/// Source:   Intel SDM volume 1, 10.5.1 (FXSAVE area), 13.4 (XSAVE area), 13.6 (XRSTOR); volume 2 (XSETBV).

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "protocol/wire_array.h"

namespace kvmid::emulated {

inline constexpr std::uint64_t kXfeatureX87 = 1, kXfeatureSse = 2;
inline constexpr std::uint64_t kXcr0Supported = kXfeatureX87 | kXfeatureSse;
inline constexpr std::uint32_t kXsaveLegacyBytes = 512, kXsaveHeaderBytes = 64;
inline constexpr std::uint32_t kXsaveBytes = kXsaveLegacyBytes + kXsaveHeaderBytes;
inline constexpr std::uint32_t kMxcsrMask = 0xffff;  ///< bits of MXCSR that exist

/// What the engine keeps of x87 and SSE. The defaults are the initial state (FNINIT, MXCSR 0x1f80).
struct FpuState {
  std::uint16_t control = 0x37f;
  std::uint16_t status = 0;    ///< with TOP
  std::uint16_t tags = 0xffff;  ///< two bits for each physical register; 3: empty
  std::uint32_t mxcsr = 0x1f80;
  std::array<std::array<std::uint8_t, 10>, 8> physical{};  ///< R0 to R7: ST(i) is R((TOP + i) mod 8)
  std::array<std::array<std::uint8_t, 16>, 16> xmm{};
};

using XsaveArea = std::array<std::byte, kXsaveBytes>;

/// An area with the components in `features`; the others are 0, and so are their bits in XSTATE_BV.
XsaveArea make_xsave_area(const FpuState& state, std::uint64_t features);

/// Nothing where an area can be loaded, else a sentence.
std::optional<std::string> check_xsave_area(Bytes area);

/// Loads the components in `features`: from the area, or initial where XSTATE_BV lacks them.
/// REQUIRES: check_xsave_area(area) finds nothing wrong.
void load_xsave_area(Bytes area, std::uint64_t features, FpuState& state);

/// Does the processor take this value of XCR0?
[[nodiscard]] constexpr bool is_valid_xcr0(std::uint64_t value) {
  return (value & kXfeatureX87) != 0 && (value & ~kXcr0Supported) == 0;
}

}  // namespace kvmid::emulated
