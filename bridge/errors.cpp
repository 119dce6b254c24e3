// SPDX-License-Identifier: GPL-2.0-or-later
#include "bridge/errors.h"

namespace kvmid::bridge {

ErrorCode error_from(std::int32_t wire, kvmi1::DialectId dialect) {
  using namespace kvmi1;
  if (wire == 0) return ErrorCode::None;
  if (dialect == DialectId::Rfc2017 && wire == -kEnosysOf2017) return ErrorCode::NotServed;
  switch (-static_cast<std::int64_t>(wire)) {
    case kEperm: return ErrorCode::NotPermitted;
    case kEnoent: return ErrorCode::NoEntry;
    case kE2big: return ErrorCode::TooBig;
    case kEagain: return ErrorCode::TryAgain;
    case kEnomem: return ErrorCode::NoMemory;
    case kEfault: return ErrorCode::Fault;
    case kEbusy: return ErrorCode::Busy;
    case kEopnotsupp: return ErrorCode::NotSupported;
    case kEnosys: return ErrorCode::NotServed;
    default: return ErrorCode::Invalid;
  }
}

std::int32_t error_for(ErrorCode error, kvmi1::DialectId dialect) {
  using namespace kvmi1;
  switch (error) {
    case ErrorCode::None: return 0;
    case ErrorCode::NotPermitted: return -kEperm;
    case ErrorCode::NoEntry: return -kEnoent;
    case ErrorCode::TooBig: return -kE2big;
    case ErrorCode::TryAgain: return -kEagain;
    case ErrorCode::NoMemory: return -kEnomem;
    case ErrorCode::Fault: return -kEfault;
    case ErrorCode::Busy: return -kEbusy;
    case ErrorCode::Invalid: return -kEinval;
    case ErrorCode::NoDevice:
    case ErrorCode::TimedOut:
    case ErrorCode::Stale:
    case ErrorCode::NotSupported: return -kEopnotsupp;
    case ErrorCode::NotServed:
      // v6 has no number of its own for a command that is not there.
      if (dialect == DialectId::Rfc2017) return -kEnosysOf2017;
      return dialect == DialectId::V6 ? -kEopnotsupp : -kEnosys;
  }
  return -kEinval;
}

}  // namespace kvmid::bridge
