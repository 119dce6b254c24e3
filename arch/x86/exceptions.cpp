// SPDX-License-Identifier: GPL-2.0-or-later
#include "arch/x86/exceptions.h"

#include <array>

namespace kvmid::x86 {

namespace {

using Kind = ExceptionKind;
using Class = ExceptionClass;

constexpr std::array<ExceptionInfo, 32> kExceptions = {{
    {"#DE", Kind::Fault, Class::Contributory, false},
    {"#DB", Kind::Fault, Class::Benign, false},
    {"NMI", Kind::Interrupt, Class::Benign, false},
    {"#BP", Kind::Trap, Class::Benign, false},
    {"#OF", Kind::Trap, Class::Benign, false},
    {"#BR", Kind::Fault, Class::Benign, false},
    {"#UD", Kind::Fault, Class::Benign, false},
    {"#NM", Kind::Fault, Class::Benign, false},
    {"#DF", Kind::Abort, Class::DoubleFault, true},
    {"reserved", Kind::Fault, Class::Benign, false},  // 9: coprocessor segment overrun of the 80387
    {"#TS", Kind::Fault, Class::Contributory, true},
    {"#NP", Kind::Fault, Class::Contributory, true},
    {"#SS", Kind::Fault, Class::Contributory, true},
    {"#GP", Kind::Fault, Class::Contributory, true},
    {"#PF", Kind::Fault, Class::PageFault, true},
    {"reserved", Kind::Fault, Class::Benign, false},
    {"#MF", Kind::Fault, Class::Benign, false},
    {"#AC", Kind::Fault, Class::Benign, true},
    {"#MC", Kind::Abort, Class::Benign, false},
    {"#XM", Kind::Fault, Class::Benign, false},
    {"#VE", Kind::Fault, Class::PageFault, false},
    {"#CP", Kind::Fault, Class::Contributory, true},
    {"reserved", Kind::Fault, Class::Benign, false},
    {"reserved", Kind::Fault, Class::Benign, false},
    {"reserved", Kind::Fault, Class::Benign, false},
    {"reserved", Kind::Fault, Class::Benign, false},
    {"reserved", Kind::Fault, Class::Benign, false},
    {"reserved", Kind::Fault, Class::Benign, false},
    {"#HV", Kind::Fault, Class::Benign, false},
    {"#VC", Kind::Fault, Class::Benign, true},
    {"#SX", Kind::Fault, Class::Benign, true},
    {"reserved", Kind::Fault, Class::Benign, false},
}};
constexpr ExceptionInfo kInterrupt = {"interrupt", Kind::Interrupt, Class::Benign, false};

bool is_instruction_breakpoint(unsigned n, std::uint64_t dr7) {
  const bool enabled = ((dr7 >> (2 * n)) & 3) != 0;
  return enabled && ((dr7 >> (16 + 4 * n)) & 3) == 0;
}

}  // namespace

const ExceptionInfo& exception_info(std::uint8_t vector) {
  return vector < kExceptions.size() ? kExceptions[vector] : kInterrupt;
}

ExceptionKind exception_kind(std::uint8_t vector, std::uint64_t dr6, std::uint64_t dr7) {
  if (vector != vector::kDb) return exception_info(vector).kind;
  // One cause that is a trap makes the whole a trap: what it reports has been done already.
  if ((dr6 & (dr6::kBs | dr6::kBt)) != 0) return Kind::Trap;
  bool fault = (dr6 & dr6::kBd) != 0;
  for (unsigned n = 0; n < 4; ++n) {
    if (((dr6 >> n) & 1) == 0) continue;
    if (is_instruction_breakpoint(n, dr7)) {
      fault = true;
    } else if (((dr7 >> (2 * n)) & 3) != 0) {
      return Kind::Trap;  // a data or I/O breakpoint; one that is not enabled may be in DR6 without having caused it
    }
  }
  return fault ? Kind::Fault : Kind::Trap;  // no cause at all: INT1
}

Meeting meeting_of(std::uint8_t first, std::uint8_t second) {
  const Class a = exception_info(first).klass;
  const Class b = exception_info(second).klass;
  const bool second_counts = b == Class::Contributory || b == Class::PageFault;
  switch (a) {
    case Class::DoubleFault:
      return second_counts ? Meeting::TripleFault : Meeting::Serial;
    case Class::PageFault:
      return second_counts ? Meeting::DoubleFault : Meeting::Serial;
    case Class::Contributory:
      return b == Class::Contributory ? Meeting::DoubleFault : Meeting::Serial;
    case Class::Benign:
      return Meeting::Serial;
  }
  return Meeting::Serial;
}

std::string_view text_of(InjectError error) {
  switch (error) {
    case InjectError::VectorTooLarge:
      return "the vector is above 31: that is no exception";
    case InjectError::Nmi:
      return "vector 2 is the NMI, which is no exception";
    case InjectError::FlagNotBoolean:
      return "has_error_code is neither 0 nor 1";
    case InjectError::ErrorCodeMissing:
      return "this vector pushes an error code and none is given";
    case InjectError::ErrorCodeUnexpected:
      return "this vector pushes no error code and one is given";
    case InjectError::ErrorCodeTooLarge:
      return "the error code has more than 16 bits";
    case InjectError::AddressUnexpected:
      return "an address belongs to a page fault only";
  }
  return "unknown error";
}

std::optional<InjectError> refuse_injection(const kvmi_inject_exception& request) {
  if (request.vector > 31) return InjectError::VectorTooLarge;
  if (request.vector == vector::kNmi) return InjectError::Nmi;
  if (request.has_error_code > 1) return InjectError::FlagNotBoolean;
  const bool wanted = exception_info(request.vector).has_error_code;
  if (wanted && request.has_error_code == 0) return InjectError::ErrorCodeMissing;
  if (!wanted && (request.has_error_code != 0 || request.error_code != 0)) return InjectError::ErrorCodeUnexpected;
  // #VC alone carries a wide code: the exit reason of the encrypted guest.
  if (request.vector != vector::kVc && (request.error_code >> 16) != 0) return InjectError::ErrorCodeTooLarge;
  if (request.vector != vector::kPf && request.address != 0) return InjectError::AddressUnexpected;
  return std::nullopt;
}

}  // namespace kvmid::x86
