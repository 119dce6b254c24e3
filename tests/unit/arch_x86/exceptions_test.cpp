// SPDX-License-Identifier: GPL-2.0-or-later
#include "arch/x86/exceptions.h"

#include <catch2/catch.hpp>

#include <optional>
#include <set>

using namespace kvmid::x86;

namespace {

constexpr std::uint8_t kVectors = 32;

kvmi_inject_exception valid_request(std::uint8_t number) {
  kvmi_inject_exception request{};
  request.vector = number;
  request.has_error_code = exception_info(number).has_error_code ? 1 : 0;
  return request;
}

}  // namespace

TEST_CASE("exactly the vectors of the manual push an error code", "[exceptions]") {
  const std::set<int> with = {8, 10, 11, 12, 13, 14, 17, 21, 29, 30};
  for (int v = 0; v < 256; ++v) {
    INFO("vector " << v);
    CHECK(exception_info(static_cast<std::uint8_t>(v)).has_error_code == (with.count(v) == 1));
  }
}

TEST_CASE("names stand at their vectors", "[exceptions]") {
  CHECK(exception_info(vector::kDe).name == "#DE");
  CHECK(exception_info(vector::kBp).name == "#BP");
  CHECK(exception_info(vector::kUd).name == "#UD");
  CHECK(exception_info(vector::kDf).name == "#DF");
  CHECK(exception_info(vector::kTs).name == "#TS");
  CHECK(exception_info(vector::kGp).name == "#GP");
  CHECK(exception_info(vector::kPf).name == "#PF");
  CHECK(exception_info(15).name == "reserved");
  CHECK(exception_info(vector::kMf).name == "#MF");
  CHECK(exception_info(vector::kXm).name == "#XM");
  CHECK(exception_info(vector::kCp).name == "#CP");
  CHECK(exception_info(vector::kHv).name == "#HV");
  CHECK(exception_info(vector::kVc).name == "#VC");
  CHECK(exception_info(vector::kSx).name == "#SX");
  CHECK(exception_info(32).name == "interrupt");
  CHECK(exception_info(255).kind == ExceptionKind::Interrupt);
}

TEST_CASE("a fault can be retried; a trap, an abort and an interrupt cannot", "[exceptions]") {
  for (int v = 0; v < 256; ++v) {
    if (v == vector::kDb) continue;
    const bool not_fault = v == 2 || v == 3 || v == 4 || v == 8 || v == 18 || v >= 32;
    INFO("vector " << v);
    CHECK(retry_allowed(static_cast<std::uint8_t>(v), 0, 0) == !not_fault);
  }
}

TEST_CASE("a debug exception is a fault only for instruction breakpoints and guarded registers", "[exceptions]") {
  const auto kind = [](std::uint64_t dr6, std::uint64_t dr7) { return exception_kind(vector::kDb, dr6, dr7); };
  for (unsigned n = 0; n < 4; ++n) {
    const std::uint64_t hit = std::uint64_t{1} << n;
    const std::uint64_t local = std::uint64_t{1} << (2 * n);
    const std::uint64_t global = std::uint64_t{2} << (2 * n);
    const unsigned type_shift = 16 + 4 * n;
    CHECK(kind(hit, local) == ExceptionKind::Fault);
    CHECK(kind(hit, global) == ExceptionKind::Fault);
    for (std::uint64_t type = 1; type < 4; ++type) {
      CHECK(kind(hit, local | (type << type_shift)) == ExceptionKind::Trap);
    }
    CHECK(kind(hit, 0) == ExceptionKind::Trap);  // in DR6 and not enabled: it is not the cause
    CHECK(kind(hit | dr6::kBs, local) == ExceptionKind::Trap);
  }
  CHECK(kind(dr6::kBs, 0) == ExceptionKind::Trap);
  CHECK(kind(dr6::kBt, 0) == ExceptionKind::Trap);
  CHECK(kind(dr6::kBd, 0) == ExceptionKind::Fault);
  CHECK(kind(0, 0) == ExceptionKind::Trap);
  // an instruction breakpoint together with a data breakpoint
  CHECK(kind(dr6::kB0 | dr6::kB1, 0x5 | (std::uint64_t{1} << 20)) == ExceptionKind::Trap);
}

TEST_CASE("two exceptions meet as the table of the manual says", "[exceptions]") {
  const std::set<int> contributory = {0, 10, 11, 12, 13, 21};
  const std::set<int> page_faults = {14, 20};
  for (int first = 0; first < kVectors; ++first) {
    for (int second = 0; second < kVectors; ++second) {
      const bool second_contributory = contributory.count(second) == 1;
      const bool second_page_fault = page_faults.count(second) == 1;
      Meeting expected = Meeting::Serial;
      if (contributory.count(first) == 1 && second_contributory) expected = Meeting::DoubleFault;
      if (page_faults.count(first) == 1 && (second_contributory || second_page_fault)) expected = Meeting::DoubleFault;
      if (first == 8 && (second_contributory || second_page_fault)) expected = Meeting::TripleFault;
      INFO(first << " then " << second);
      CHECK(meeting_of(static_cast<std::uint8_t>(first), static_cast<std::uint8_t>(second)) == expected);
    }
  }
  CHECK(meeting_of(vector::kGp, vector::kPf) == Meeting::Serial);
  CHECK(meeting_of(vector::kPf, vector::kGp) == Meeting::DoubleFault);
  CHECK(meeting_of(200, vector::kGp) == Meeting::Serial);
}

TEST_CASE("every exception but the NMI can be injected as the processor would raise it", "[exceptions]") {
  for (std::uint8_t v = 0; v < kVectors; ++v) {
    INFO("vector " << int{v});
    const auto refused = refuse_injection(valid_request(v));
    if (v == vector::kNmi) {
      CHECK(refused == InjectError::Nmi);
    } else {
      CHECK_FALSE(refused.has_value());
    }
  }
}

TEST_CASE("a vector from 32 on is not an exception", "[exceptions]") {
  for (int v = 32; v < 256; ++v) {
    CHECK(refuse_injection(valid_request(static_cast<std::uint8_t>(v))) == InjectError::VectorTooLarge);
  }
}

TEST_CASE("the error code must be there exactly where the vector pushes one", "[exceptions]") {
  for (std::uint8_t v = 0; v < kVectors; ++v) {
    if (v == vector::kNmi) continue;
    auto request = valid_request(v);
    request.has_error_code ^= 1;
    const bool wanted = exception_info(v).has_error_code;
    CHECK(refuse_injection(request) == (wanted ? InjectError::ErrorCodeMissing : InjectError::ErrorCodeUnexpected));
    request.has_error_code = 2;
    CHECK(refuse_injection(request) == InjectError::FlagNotBoolean);
  }
  auto breakpoint = valid_request(vector::kBp);
  breakpoint.error_code = 1;
  CHECK(refuse_injection(breakpoint) == InjectError::ErrorCodeUnexpected);
}

TEST_CASE("an error code has 16 bits, but that of #VC", "[exceptions]") {
  auto request = valid_request(vector::kGp);
  request.error_code = 0xffff;
  CHECK_FALSE(refuse_injection(request).has_value());
  request.error_code = 0x10000;
  CHECK(refuse_injection(request) == InjectError::ErrorCodeTooLarge);
  auto vc = valid_request(vector::kVc);
  vc.error_code = 0x80000001;
  CHECK_FALSE(refuse_injection(vc).has_value());
}

TEST_CASE("an address goes with a page fault only", "[exceptions]") {
  auto request = valid_request(vector::kPf);
  request.address = 0xdead000;
  CHECK_FALSE(refuse_injection(request).has_value());
  request = valid_request(vector::kGp);
  request.address = 1;
  CHECK(refuse_injection(request) == InjectError::AddressUnexpected);
}

TEST_CASE("every reason to refuse an injection has a sentence", "[exceptions]") {
  for (int i = 0; i <= static_cast<int>(InjectError::AddressUnexpected); ++i) {
    CHECK(text_of(static_cast<InjectError>(i)) != "unknown error");
  }
}

TEST_CASE("the kinds have the numbers of the wire", "[exceptions]") {
  CHECK(static_cast<int>(ExceptionKind::Fault) == KVMI_EXCEPTION_FAULT);
  CHECK(static_cast<int>(ExceptionKind::Trap) == KVMI_EXCEPTION_TRAP);
  CHECK(static_cast<int>(ExceptionKind::Abort) == KVMI_EXCEPTION_ABORT);
  CHECK(static_cast<int>(ExceptionKind::Interrupt) == KVMI_EXCEPTION_INTERRUPT);
}
