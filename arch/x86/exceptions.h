// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// The exceptions of x86: their names, kinds and error codes, how two of them meet, and which may be injected.
///
/// Purpose:  INJECT_EXCEPTION, TRAP events and RETRY ask the same table.
/// Errors:   InjectError, one sentence each.
/// Threads:  pure functions.
/// Source:   Intel SDM volume 3, sections 6.3 to 6.15 (table 6-5: double faults), 17.2 and 17.3 (debug exceptions).

#include <cstdint>
#include <optional>
#include <string_view>

#include "arch/x86/registers.h"
#include "protocol/kvmi.h"

namespace kvmid::x86 {

namespace vector {
inline constexpr std::uint8_t kDe = 0, kDb = 1, kNmi = 2, kBp = 3, kOf = 4, kBr = 5, kUd = 6, kNm = 7, kDf = 8,
                              kTs = 10, kNp = 11, kSs = 12, kGp = 13, kPf = 14, kMf = 16, kAc = 17, kMc = 18, kXm = 19,
                              kVe = 20, kCp = 21, kHv = 28, kVc = 29, kSx = 30;
}  // namespace vector

/// Bits of a page fault's error code.
namespace pf {
inline constexpr std::uint32_t kPresent = 1u << 0, kWrite = 1u << 1, kUser = 1u << 2, kReserved = 1u << 3,
                               kFetch = 1u << 4, kProtectionKey = 1u << 5, kShadowStack = 1u << 6, kSgx = 1u << 15;
}  // namespace pf

/// The number is the one of the wire (KVMI_EXCEPTION_*).
enum class ExceptionKind : std::uint8_t {
  Fault = KVMI_EXCEPTION_FAULT,          ///< RIP is at the instruction: it can be tried again
  Trap = KVMI_EXCEPTION_TRAP,            ///< RIP is behind the instruction
  Abort = KVMI_EXCEPTION_ABORT,          ///< RIP cannot be relied on
  Interrupt = KVMI_EXCEPTION_INTERRUPT,  ///< not caused by an instruction (NMI, vectors from 32 on)
};
enum class ExceptionClass : std::uint8_t { Benign, Contributory, PageFault, DoubleFault };

struct ExceptionInfo {
  std::string_view name;  ///< "#PF"; "reserved" where the number has no exception; "interrupt" from 32 on
  ExceptionKind kind;     ///< #DB: Fault; see exception_kind() for a particular one
  ExceptionClass klass;
  bool has_error_code;
};
/// Of any vector, 0 to 255.
[[nodiscard]] const ExceptionInfo& exception_info(std::uint8_t vector);

/// Kind of a particular exception. #DB is a fault if only instruction breakpoints or a guarded debug register caused
/// it, which DR6 and DR7 tell, else a trap.
[[nodiscard]] ExceptionKind exception_kind(std::uint8_t vector, std::uint64_t dr6, std::uint64_t dr7);

/// Can RETRY be answered: would the instruction that caused it execute again?
[[nodiscard]] inline bool retry_allowed(std::uint8_t vector, std::uint64_t dr6, std::uint64_t dr7) {
  return exception_kind(vector, dr6, dr7) == ExceptionKind::Fault;
}

/// An exception on its way to the guest.
struct Exception {
  std::uint8_t vector = 0;
  bool has_error_code = false;
  std::uint32_t error_code = 0;
  std::uint64_t address = 0;  ///< CR2-to-be of a page fault, else 0
  friend bool operator==(const Exception&, const Exception&) = default;
};

/// What becomes of an exception `second` that happens while `first` is being delivered.
enum class Meeting : std::uint8_t {
  Serial,       ///< the second is delivered; the first is raised again by its instruction, or is lost
  DoubleFault,  ///< #DF with error code 0 takes the place of both
  TripleFault,  ///< the processor shuts down
};
[[nodiscard]] Meeting meeting_of(std::uint8_t first, std::uint8_t second);

/// Why an exception cannot be injected.
enum class InjectError : std::uint8_t {
  VectorTooLarge,       ///< above 31: an interrupt, not an exception
  Nmi,                  ///< vector 2 is an interrupt
  FlagNotBoolean,       ///< has_error_code is neither 0 nor 1
  ErrorCodeMissing,     ///< the vector pushes an error code and none is given
  ErrorCodeUnexpected,  ///< the vector pushes no error code and one is given
  ErrorCodeTooLarge,    ///< more than 16 bits: no processor pushes such a one
  AddressUnexpected,    ///< an address with another vector than #PF
};
/// A sentence for people.
[[nodiscard]] std::string_view text_of(InjectError error);

/// Nothing where the exception of an INJECT_EXCEPTION can be delivered, else the reason.
[[nodiscard]] std::optional<InjectError> refuse_injection(const kvmi_inject_exception& request);

}  // namespace kvmid::x86
