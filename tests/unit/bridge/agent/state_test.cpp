// SPDX-License-Identifier: GPL-2.0-or-later
//
// Registers, MSRs one by one, XSAVE areas of two sizes, memory types.

#include "arch/x86/mtrr.h"
#include "rig.h"

using namespace kvmid;
using namespace kvmid::bridge::test;

namespace {

GetRegistersReply registers(const std::vector<kvmi_x86_msr>& msrs) {
  GetRegistersReply reply;
  reply.mode = 8;
  reply.regs.rip = 0x401000;
  reply.sregs.cr3 = 0x1000;
  reply.msrs = std::span<const kvmi_x86_msr>(msrs);
  return reply;
}

std::vector<std::uint32_t> asked_msrs(const GetRegisters& command) {
  std::vector<std::uint32_t> indices;
  for (std::size_t i = 0; i < command.msrs.size(); ++i) indices.push_back(command.msrs[i]);
  return indices;
}

}  // namespace

TEST_CASE("GET_REGISTERS with MSRs is one command", "[agent]") {
  for (const auto dialect : {DialectId::V6, DialectId::V7, DialectId::V12, DialectId::Rfc2017}) {
    Rig rig(dialect);
    const std::vector<std::uint32_t> indices = {0x174, 0xc0000080};
    rig.send(kvmi1::GetRegisters{kVcpu1, std::span<const std::uint32_t>(indices)});
    const auto* asked = rig.next<GetRegisters>();
    REQUIRE(asked != nullptr);
    CHECK(asked->vcpu == kVcpu1);
    CHECK(asked_msrs(*asked) == indices);
    const std::vector<kvmi_x86_msr> msrs = {{0x174, 0, 11}, {0xc0000080, 0, 0xd01}};
    rig.answer(registers(msrs));
    const auto reply = rig.body_of<kvmi1::GetRegistersReply>(rig.told_one());
    CHECK(reply.regs.rip == 0x401000);
    CHECK(reply.sregs.cr3 == 0x1000);
    REQUIRE(reply.msrs.size() == 2);
    CHECK(reply.msrs[1].index == 0xc0000080);
    CHECK(reply.msrs[1].value == 0xd01);
  }
}

TEST_CASE("an MSR that is not there: v12 refuses, v7 answers 0 from it on", "[agent]") {
  const std::vector<std::uint32_t> indices = {0x174, 0x9999, 0x175};
  Rig v12(DialectId::V12);
  const auto seq = v12.send(kvmi1::GetRegisters{kVcpu0, std::span<const std::uint32_t>(indices)});
  v12.serve_refused<GetRegisters>(ErrorCode::Invalid);
  CHECK(v12.error_of(seq) == kEinval);

  Rig v7(DialectId::V7);
  v7.send(kvmi1::GetRegisters{kVcpu0, std::span<const std::uint32_t>(indices)});
  v7.serve_refused<GetRegisters>(ErrorCode::Invalid);
  CHECK(asked_msrs(v7.serve<GetRegisters>(registers({}))).empty());
  const std::vector<kvmi_x86_msr> one = {{0x174, 0, 11}};
  CHECK(asked_msrs(v7.serve<GetRegisters>(registers(one))) == std::vector<std::uint32_t>{0x174});
  CHECK(asked_msrs(v7.serve_refused<GetRegisters>(ErrorCode::Invalid)) == std::vector<std::uint32_t>{0x9999});
  const auto reply = v7.body_of<kvmi1::GetRegistersReply>(v7.told_one());
  CHECK(reply.regs.rip == 0x401000);
  REQUIRE(reply.msrs.size() == 3);
  CHECK(reply.msrs[0].value == 11);
  CHECK(reply.msrs[1].value == 0);
  CHECK(reply.msrs[2].value == 0);
  CHECK(v7.idle());
}

TEST_CASE("XCR 0 only", "[agent]") {
  Rig rig(DialectId::V7);
  rig.send(kvmi1::GetXcr{kVcpu0, 0});
  CHECK(rig.serve<GetXcr>(GetXcrReply{7}).xcr == 0);
  CHECK(rig.body_of<kvmi1::GetXcrReply>(rig.told_one()).value == 7);
  CHECK(rig.error_of(rig.send(kvmi1::GetXcr{kVcpu0, 1})) == kEinval);
}

TEST_CASE("an XSAVE area has 4096 bytes here, whatever it has there", "[agent]") {
  for (const auto dialect : {DialectId::V7, DialectId::V12}) {
    for (const std::size_t size : {std::size_t{832}, std::size_t{4096}, std::size_t{11008}}) {
      Rig rig(dialect);
      const std::vector<std::byte> area(size, std::byte{0x77});
      rig.send(kvmi1::GetXsave{kVcpu0});
      rig.serve<GetXsave>(GetXsaveReply{area});
      const auto reply = rig.body_of<kvmi1::GetXsaveReply>(rig.told_one());
      REQUIRE(reply.area.size() == 4096);
      CHECK(reply.area[831] == std::byte{0x77});
      CHECK(reply.area[4095] == (size >= 4096 ? std::byte{0x77} : std::byte{0}));
    }
  }
}

TEST_CASE("SET_XSAVE sets an area of the vCPU's own size; what is beyond 4096 bytes stays", "[agent]") {
  for (const std::size_t size : {std::size_t{832}, std::size_t{11008}}) {
    Rig rig(DialectId::V12);
    const std::vector<std::byte> now(size, std::byte{0x77}), given(4096, std::byte{0x11});
    const auto seq = rig.send(kvmi1::SetXsave{kVcpu0, given});
    rig.serve<GetXsave>(GetXsaveReply{now});
    const auto* set = rig.next<SetXsave>();
    REQUIRE(set != nullptr);
    REQUIRE(set->area.size() == size);
    CHECK(set->area[0] == std::byte{0x11});
    CHECK(set->area[size - 1] == (size > 4096 ? std::byte{0x77} : std::byte{0x11}));
    rig.answer();
    CHECK(rig.error_of(seq) == 0);
  }
  Rig rig(DialectId::V7);
  const std::vector<std::byte> now(832, std::byte{0x77});
  const auto shorter = bytes_of({1, 2, 3, 4});
  const auto seq = rig.send(kvmi1::SetXsave{kVcpu0, shorter});
  rig.serve<GetXsave>(GetXsaveReply{now});
  const auto* set = rig.next<SetXsave>();
  REQUIRE(set != nullptr);
  CHECK(set->area[3] == std::byte{4});
  CHECK(set->area[4] == std::byte{0});  // as the kernel: what is missing is 0
  rig.refuse(ErrorCode::TryAgain);
  CHECK(rig.error_of(seq) == kEopnotsupp);
}

TEST_CASE("GET_MTRR_TYPE is computed from MSRs", "[agent]") {
  Rig rig(DialectId::V12);
  rig.send(kvmi1::GetMtrrType{kVcpu0, Gpa{0xa0000}});
  const std::vector<kvmi_x86_msr> first = {{x86::msr::kMtrrCap, 0, 0x102}, {x86::msr::kMtrrDefType, 0, 0xc06}};
  CHECK(asked_msrs(rig.serve<GetRegisters>(registers(first))) == std::vector<std::uint32_t>{0xfe, 0x2ff});
  const auto* ranges = rig.next<GetRegisters>();
  REQUIRE(ranges != nullptr);
  CHECK(ranges->msrs.size() == 11 + 4);
  std::vector<kvmi_x86_msr> second;
  for (std::size_t i = 0; i < ranges->msrs.size(); ++i) second.push_back({ranges->msrs[i], 0, 0});
  second[2].value = 0x0101010101010101;  // 0xa0000 to 0xbffff: write-combining
  rig.answer(registers(second));
  CHECK(rig.body_of<kvmi1::GetMtrrTypeReply>(rig.told_one()).type == 1);
}

TEST_CASE("GET_MTRR_TYPE: MTRRs that are off, that are not there, and that cannot be asked for", "[agent]") {
  Rig rig(DialectId::V7);
  rig.send(kvmi1::GetMtrrType{kVcpu0, Gpa{0x1000}});
  const std::vector<kvmi_x86_msr> off = {{x86::msr::kMtrrCap, 0, 0x508}, {x86::msr::kMtrrDefType, 0, 0}};
  rig.serve<GetRegisters>(registers(off));
  CHECK(rig.body_of<kvmi1::GetMtrrTypeReply>(rig.told_one()).type == 0);
  rig.send(kvmi1::GetMtrrType{kVcpu0, Gpa{0x1000}});
  rig.serve_refused<GetRegisters>(ErrorCode::Invalid);
  CHECK(rig.body_of<kvmi1::GetMtrrTypeReply>(rig.told_one()).type == 6);
  // v6 and v7 hypervisors answer 0 for MSRs that are not there.
  rig.send(kvmi1::GetMtrrType{kVcpu0, Gpa{0x1000}});
  const std::vector<kvmi_x86_msr> none = {{x86::msr::kMtrrCap, 0, 0}, {x86::msr::kMtrrDefType, 0, 0}};
  rig.serve<GetRegisters>(registers(none));
  CHECK(rig.body_of<kvmi1::GetMtrrTypeReply>(rig.told_one()).type == 6);
  const auto seq = rig.send(kvmi1::GetMtrrType{kVcpu0, Gpa{0x1000}});
  rig.serve_refused<GetRegisters>(ErrorCode::NoDevice);
  CHECK(rig.error_of(seq) == kEopnotsupp);
}
