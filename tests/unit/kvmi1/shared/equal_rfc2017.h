// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// equal() for the messages of rfc2017, too. Their fields are declared first: equal() sees only what comes before it.

#include <tuple>

#include "protocol/kvmi1.h"

namespace kvmid::kvmi1::test {

inline auto fields(const GetGuests&) { return std::tuple<>(); }
inline auto fields(const PauseGuest&) { return std::tuple<>(); }
inline auto fields(const UnpauseGuest&) { return std::tuple<>(); }
inline auto fields(const ShutdownGuest&) { return std::tuple<>(); }
inline auto fields(const ControlCleanup& m) { return std::tie(m.enable); }
inline auto fields(const GetMtrrs& m) { return std::tie(m.vcpu); }
inline auto fields(const GetXsaveInfo& m) { return std::tie(m.vcpu); }
inline auto fields(const GetVcpuPageAccess& m) { return std::tie(m.vcpu, m.gpa); }
inline auto fields(const SetVcpuPageAccess& m) { return std::tie(m.vcpu, m.gpa, m.access); }
inline auto fields(const InjectPageFault& m) { return std::tie(m.vcpu, m.error_code, m.gva); }
inline auto fields(const InjectBreakpoint& m) { return std::tie(m.vcpu); }
inline auto fields(const MapPage& m) { return std::tie(m.source, m.destination); }
inline auto fields(const UnmapPage& m) { return std::tie(m.destination); }
inline auto fields(const SetEvents& m) { return std::tie(m.vcpu, m.mask); }
inline auto fields(const ControlGuestCr& m) { return std::tie(m.enable, m.cr); }
inline auto fields(const ControlGuestMsr& m) { return std::tie(m.enable, m.msr); }

inline auto fields(const GetGuestsReply& m) { return std::tie(m.uuids); }
inline auto fields(const GetMtrrsReply& m) { return std::tie(m.pat, m.cap, m.type); }
inline auto fields(const GetXsaveInfoReply& m) { return std::tie(m.size); }
inline auto fields(const GetVcpuPageAccessReply& m) { return std::tie(m.access); }

}  // namespace kvmid::kvmi1::test

#include "tests/unit/kvmi1/v7/equal.h"
