// SPDX-License-Identifier: GPL-2.0-or-later
//
// What the kernels of v7 and v6 do with requests that are not as they should be.

#include <catch2/catch.hpp>
#include <set>

#include "tests/unit/kvmi1/v7/equal.h"
#include "tests/unit/kvmi1/v7/samples.h"

namespace kvmid::kvmi1::test {
namespace {

constexpr std::int32_t kClose = 0;

const Codec& both(DialectId dialect) { return dialect == DialectId::V6 ? codec_v6() : codec_v7(); }

/// The request of the first sample of that kind.
template <class Kind>
Written request(const Codec& codec) {
  for (const Command& command : sample_commands(codec.dialect())) {
    if (std::holds_alternative<Kind>(command)) return written(codec, command);
  }
  throw std::logic_error("no sample");
}

void check_refused(const Codec& codec, const Written& wire, DecodeErrc code, std::size_t offset, std::int32_t answer) {
  CAPTURE(wire.id, offset);
  const Exact exact = wire.exact();
  const auto down = codec.decode_downward(exact.frame());
  REQUIRE(!down);
  CHECK(down.error().error == DecodeError{code, wire.id, static_cast<std::uint32_t>(offset)});
  CHECK(down.error().answer == answer);
}

template <class Kind>
Kind accepted(const Codec& codec, const Written& wire) {
  CAPTURE(wire.id);
  const Exact exact = wire.exact();
  const auto down = codec.decode_downward(exact.frame());
  REQUIRE(down);
  REQUIRE(std::holds_alternative<Command>(*down));
  REQUIRE(std::holds_alternative<Kind>(std::get<Command>(*down)));
  return std::get<Kind>(std::get<Command>(*down));  // views in it have died: only for its numbers
}

/// Each byte of [first, end) set alone is refused, at that byte.
template <class Kind>
void check_padding(const Codec& codec, std::size_t first, std::size_t end, std::int32_t answer) {
  for (std::size_t at = first; at < end; ++at) {
    Written wire = request<Kind>(codec);
    wire.set(at, 0x80);
    check_refused(codec, wire, DecodeErrc::PaddingNotZero, at, answer);
  }
}

const std::vector<CommandKind> kVmCommands{
    kind_of<GetVersion>,         kind_of<CheckCommand>,       kind_of<CheckEvent>,
    kind_of<GetGuestInfo>,       kind_of<ControlVmEvents>,    kind_of<ReadPhysical>,
    kind_of<WritePhysical>,      kind_of<SetPageAccess>,      kind_of<GetMapToken>,
    kind_of<ControlSpp>,         kind_of<SetPageWriteBitmap>, kind_of<ControlCmdResponse>,
    kind_of<GetMaxGfn>,          kind_of<GetPageAccess>,      kind_of<GetPageWriteBitmap>,
    kind_of<SetPageSve>,         kind_of<QueryPhysical>,      kind_of<GetNextAvailableGfn>,
    kind_of<CreateEptView>,      kind_of<DestroyEptView>,
};

}  // namespace

TEST_CASE("non-zero padding in the vCPU header closes, for every vCPU command but PAUSE", "[kvmi1][v7][close]") {
  const auto dialect = GENERATE(DialectId::V6, DialectId::V7);
  const Codec& codec = both(dialect);
  std::size_t vcpu_commands = 0;
  for (const Command& command : sample_commands(dialect)) {
    const CommandKind kind = kind_of_command(command);
    if (std::ranges::count(kVmCommands, kind) != 0 || kind == kind_of<PauseVcpu>) continue;
    ++vcpu_commands;
    for (std::size_t at = 2; at < 8; ++at) {
      Written wire = written(codec, command);
      wire.set(at, 1);
      check_refused(codec, wire, DecodeErrc::PaddingNotZero, at, kClose);
    }
  }
  CHECK(vcpu_commands == (dialect == DialectId::V6 ? 10 : 23));
}

TEST_CASE("PAUSE: its own padding closes in v7 and is answered in v6", "[kvmi1][v7][close]") {
  check_padding<PauseVcpu>(codec_v7(), 9, 16, kClose);
  check_padding<PauseVcpu>(codec_v6(), 9, 16, -kEinval);
}

TEST_CASE("PAUSE: padding of the vCPU header is answered, and seen last", "[kvmi1][v7]") {
  check_padding<PauseVcpu>(codec_v7(), 2, 8, -kEinval);
  check_padding<PauseVcpu>(codec_v6(), 2, 8, -kEinval);
  Written wire = request<PauseVcpu>(codec_v7());
  wire.set(3, 1);
  wire.set(12, 1);
  check_refused(codec_v7(), wire, DecodeErrc::PaddingNotZero, 12, kClose);
}

TEST_CASE("PAUSE waits only where `wait` is 1", "[kvmi1][v7]") {
  Written wire = request<PauseVcpu>(codec_v7());
  CHECK(accepted<PauseVcpu>(codec_v7(), wire).wait);
  wire.set(8, 2);
  CHECK(!accepted<PauseVcpu>(codec_v7(), wire).wait);
}

TEST_CASE("CONTROL_CMD_RESPONSE: non-zero padding closes", "[kvmi1][v7][close]") {
  check_padding<ControlCmdResponse>(codec_v7(), 3, 8, kClose);
  check_padding<ControlCmdResponse>(codec_v6(), 2, 8, kClose);
}

TEST_CASE("CONTROL_CMD_RESPONSE: `now` is 1 or later, any `enable` but 0 enables, flags are a v7 matter",
          "[kvmi1][v7]") {
  const auto decoded = [](unsigned enable, unsigned now, unsigned flags) {
    Written wire = request<ControlCmdResponse>(codec_v7());
    wire.set(0, enable);
    wire.set(1, now);
    wire.set(2, flags);
    return accepted<ControlCmdResponse>(codec_v7(), wire);
  };
  CHECK(equal(decoded(0, 1, 0), ControlCmdResponse{false, true, false}));
  CHECK(equal(decoded(0x40, 2, 1), ControlCmdResponse{true, false, true}));
  CHECK(equal(decoded(1, 0xff, 2), ControlCmdResponse{true, false, false}));
}

TEST_CASE("WRITE_PHYSICAL shorter than its size says closes", "[kvmi1][v7][close]") {
  const Codec& codec = both(GENERATE(DialectId::V6, DialectId::V7));
  Written wire = request<WritePhysical>(codec);
  const std::size_t whole = wire.payload.size();
  wire.set(8, 22);  // one byte more than there is
  check_refused(codec, wire, DecodeErrc::Truncated, whole, kClose);
  for (std::size_t at = 8; at < 16; ++at) wire.set(at, 0xff);
  check_refused(codec, wire, DecodeErrc::Truncated, whole, kClose);
  for (std::size_t at = 9; at < 16; ++at) wire.set(at, 0);
  wire.set(8, 0xf0);
  check_refused(codec, wire, DecodeErrc::Truncated, whole, kClose);

  wire.payload.resize(15);  // not even the size is there
  for (std::size_t at = 8; at < 15; ++at) wire.set(at, 0);
  check_refused(codec, wire, DecodeErrc::Truncated, 15, kClose);
}

TEST_CASE("WRITE_PHYSICAL of nothing, and of more than a page, is left to who answers it", "[kvmi1][v7]") {
  const Codec& codec = codec_v7();
  const std::vector<std::byte> much(8168, std::byte{7});
  const Exact exact = written(codec, Command{WritePhysical{Gpa{0x1000}, much}}).exact();
  const auto down = codec.decode_downward(exact.frame());
  REQUIRE(down);
  CHECK(std::get<WritePhysical>(std::get<Command>(*down)).data.size() == much.size());
  const Written nothing = written(codec, Command{WritePhysical{Gpa{0x1000}, {}}});
  CHECK(accepted<WritePhysical>(codec, nothing).data.empty());
}

TEST_CASE("non-zero padding of requests is answered with EINVAL", "[kvmi1][v7]") {
  const auto dialect = GENERATE(DialectId::V6, DialectId::V7);
  const Codec& codec = both(dialect);
  check_padding<CheckCommand>(codec, 2, 8, -kEinval);
  check_padding<CheckEvent>(codec, 2, 8, -kEinval);
  check_padding<ControlVmEvents>(codec, 3, 8, -kEinval);
  check_padding<ControlEvents>(codec, 11, 16, -kEinval);
  check_padding<ControlCr>(codec, 9, 12, -kEinval);
  check_padding<ControlMsr>(codec, 9, 12, -kEinval);
  check_padding<GetRegisters>(codec, 10, 16, -kEinval);
  check_padding<ControlSpp>(codec, 1, 8, -kEinval);
  check_padding<SetPageAccess>(codec, 4, 8, -kEinval);
  check_padding<SetPageWriteBitmap>(codec, 4, 8, -kEinval);
  if (dialect == DialectId::V6) {
    check_padding<GetPageAccess>(codec, 4, 8, -kEinval);
    check_padding<GetPageWriteBitmap>(codec, 4, 8, -kEinval);
    return;
  }
  check_padding<SetVeInfoPage>(codec, 17, 24, -kEinval);
  check_padding<SetPageSve>(codec, 3, 8, -kEinval);
  check_padding<SwitchEptView>(codec, 10, 16, -kEinval);
  check_padding<ControlEptView>(codec, 11, 16, -kEinval);
  check_padding<DestroyEptView>(codec, 2, 8, -kEinval);
  check_padding<ChangeGfn>(codec, 10, 16, -kEinval);
  check_padding<ControlSinglestep>(codec, 9, 16, -kEinval);
}

TEST_CASE("SET_PAGE_ACCESS: an entry with padding set is handed on, and those behind it", "[kvmi1][v7]") {
  const Codec& codec = both(GENERATE(DialectId::V6, DialectId::V7));
  for (std::size_t at = 17; at < 24; ++at) {
    Written wire = request<SetPageAccess>(codec);
    wire.set(at, 0x80);
    const Exact exact = wire.exact();
    const auto down = codec.decode_downward(exact.frame());
    REQUIRE(down);
    const auto& entries = std::get<SetPageAccess>(std::get<Command>(*down)).entries;
    REQUIRE(entries.size() == 2);
    CHECK(entries[0].padding[at - 17] == 0x80);
    CHECK(entries[1].gpa == 0x123456789000);
  }
}

TEST_CASE("SET_PAGE_ACCESS shorter than its count says is answered with EINVAL, also without entries",
          "[kvmi1][v7]") {
  const Codec& codec = both(GENERATE(DialectId::V6, DialectId::V7));
  Written wire = request<SetPageAccess>(codec);
  wire.set(2, 3);
  check_refused(codec, wire, DecodeErrc::Truncated, 40, -kEinval);
  wire.set(2, 0xff);
  wire.set(3, 0xff);
  check_refused(codec, wire, DecodeErrc::Truncated, 40, -kEinval);
  wire.set(2, 0);
  wire.set(3, 0);
  CHECK(accepted<SetPageAccess>(codec, wire).entries.empty());
  wire.payload.resize(7);
  check_refused(codec, wire, DecodeErrc::Truncated, 7, -kEinval);
  wire.payload.clear();
  check_refused(codec, wire, DecodeErrc::Truncated, 0, -kEinval);
}

TEST_CASE("SET_PAGE_WRITE_BITMAP: v7 kernels have padding where the view is; entries are not looked at",
          "[kvmi1][v7]") {
  check_padding<SetPageWriteBitmap>(codec_v7(), 0, 2, -kEinval);
  Written wire = request<SetPageWriteBitmap>(codec_v6());
  wire.set(0, 2);
  CHECK(accepted<SetPageWriteBitmap>(codec_v6(), wire).view == 2);
  wire.set(8 + 12, 1);
  CHECK(accepted<SetPageWriteBitmap>(codec_v6(), wire).entries.size() == 2);
  wire.set(2, 3);
  check_refused(codec_v6(), wire, DecodeErrc::Truncated, 40, -kEinval);
}

TEST_CASE("GET_REGISTERS with more MSRs than it names is answered with EINVAL", "[kvmi1][v7]") {
  const Codec& codec = both(GENERATE(DialectId::V6, DialectId::V7));
  Written wire = request<GetRegisters>(codec);
  for (const unsigned low : {4U, 0xffU}) {
    wire.set(8, low);
    check_refused(codec, wire, DecodeErrc::Truncated, 28, -kEinval);
  }
  wire.set(9, 0xff);
  check_refused(codec, wire, DecodeErrc::Truncated, 28, -kEinval);
  wire.set(8, 2);
  wire.set(9, 0);
  CHECK(accepted<GetRegisters>(codec, wire).msrs.size() == 2);
}

TEST_CASE("GET_REGISTERS of more MSRs than a reply has room for is answered with ENOMEM", "[kvmi1][v7]") {
  const Codec& codec = both(GENERATE(DialectId::V6, DialectId::V7));
  const std::vector<std::uint32_t> indices(2042, 0x174);
  const auto asking = [&](std::size_t n) {
    return written(codec, Command{GetRegisters{VcpuId{0}, std::span<const std::uint32_t>(indices).first(n)}});
  };
  CHECK(accepted<GetRegisters>(codec, asking(481)).msrs.size() == 481);
  check_refused(codec, asking(482), DecodeErrc::BadValue, 8, -kEnomem);
  check_refused(codec, asking(2042), DecodeErrc::BadValue, 8, -kEnomem);

  const std::vector<kvmi_x86_msr> values(481);
  const Reply most{13, 0, GetRegistersReply{8, {}, {}, std::span<const kvmi_x86_msr>(values)}};
  CHECK(written(codec, most).payload.size() <= codec.payload_max());
}

TEST_CASE("SET_XSAVE takes 0 to 4096 bytes of any number, more or no header is answered with EINVAL", "[kvmi1][v7]") {
  const Codec& codec = codec_v7();
  Written wire = request<SetXsave>(codec);
  for (const std::size_t size : {std::size_t{0}, std::size_t{1}, std::size_t{839}, std::size_t{4096}}) {
    wire.payload.resize(8 + size);
    CHECK(accepted<SetXsave>(codec, wire).area.size() == size);
  }
  wire.payload.resize(8 + 4097);
  check_refused(codec, wire, DecodeErrc::TooLong, 8 + 4096, -kEinval);
  wire.payload.resize(7);
  check_refused(codec, wire, DecodeErrc::Truncated, 7, -kEinval);
  wire.set(3, 1);
  check_refused(codec, wire, DecodeErrc::PaddingNotZero, 3, kClose);
}

TEST_CASE("INJECT_EXCEPTION: byte 9 is padding in v7 and a flag in v6", "[kvmi1][v7]") {
  check_padding<InjectException>(codec_v7(), 9, 12, -kEinval);
  check_padding<InjectException>(codec_v6(), 10, 12, -kEinval);
  Written wire = request<InjectException>(codec_v6());
  CHECK(wire.payload.at(9) == std::byte{1});
  CHECK(accepted<InjectException>(codec_v6(), wire).has_error_code);
  wire.set(9, 0);
  CHECK(!accepted<InjectException>(codec_v6(), wire).has_error_code);
  CHECK(!accepted<InjectException>(codec_v7(), request<InjectException>(codec_v7())).has_error_code);
}

TEST_CASE("GET_XCR: padding is not looked at", "[kvmi1][v7]") {
  Written wire = request<GetXcr>(codec_v7());
  for (std::size_t at = 9; at < 16; ++at) wire.set(at, 0xff);
  CHECK(accepted<GetXcr>(codec_v7(), wire).xcr == 3);
}

TEST_CASE("SET_PAGE_SVE: `suppress` over 1 is answered with EINVAL", "[kvmi1][v7]") {
  Written wire = request<SetPageSve>(codec_v7());
  wire.set(2, 2);
  check_refused(codec_v7(), wire, DecodeErrc::BadFlag, 2, -kEinval);
}

TEST_CASE("CHANGE_GFN: 32 bytes are the newer form, with a view; fewer the older", "[kvmi1][v7]") {
  const Codec& codec = codec_v7();
  Written wire = request<ChangeGfn>(codec);
  REQUIRE(wire.payload.size() == 32);
  CHECK(accepted<ChangeGfn>(codec, wire).view == 0x0102);

  const Written older = written(codec, Command{ChangeGfn{VcpuId{1}, std::nullopt, Gfn{0x1234}, Gfn{0x5678}}});
  REQUIRE(older.payload.size() == 24);
  for (std::size_t surplus = 0; surplus < 8; ++surplus) {
    Written longer = older;
    longer.payload.resize(24 + surplus, std::byte{0xee});
    CHECK(equal(accepted<ChangeGfn>(codec, longer), ChangeGfn{VcpuId{1}, std::nullopt, Gfn{0x1234}, Gfn{0x5678}}));
  }
}

TEST_CASE("id 31 of 16 bytes is what it was before 2023, and unknown", "[kvmi1][v7]") {
  const Codec& codec = codec_v7();
  for (const std::size_t size : {0U, 8U, 15U, 17U}) {
    const std::vector<std::byte> payload(size);
    accepted<GetNextAvailableGfn>(codec, {31, kSeq, payload});
  }
  const std::vector<std::byte> old(16);
  const Exact exact(31, old);
  const auto down = codec.decode_downward(exact.frame());
  REQUIRE(down);
  CHECK(equal(*down, Downward{UnknownMessage{31}}));
}

TEST_CASE("unknown ids are told apart from broken messages, whatever they carry", "[kvmi1][v7]") {
  const auto dialect = GENERATE(DialectId::V6, DialectId::V7);
  const Codec& codec = both(dialect);
  std::vector<std::uint16_t> ids{1, 12, 40, 45, 59, 61, 62, 64, 0xffff};
  const std::vector<std::uint16_t> absent = dialect == DialectId::V6
                                                ? std::vector<std::uint16_t>{28, 30, 31, 32, 38, 39, 41, 44, 60, 63}
                                                : std::vector<std::uint16_t>{20, 25};
  ids.insert(ids.end(), absent.begin(), absent.end());
  for (const std::uint16_t id : ids) {
    for (const std::size_t size : {0U, 8U, 24U}) {
      CAPTURE(id, size);
      const std::vector<std::byte> payload(size, std::byte{0xff});
      const Exact exact(id, payload);
      const auto down = codec.decode_downward(exact.frame());
      REQUIRE(down);
      CHECK(equal(*down, Downward{UnknownMessage{id}}));
    }
  }
}

TEST_CASE("bytes after a request are not looked at", "[kvmi1][v7]") {
  const auto dialect = GENERATE(DialectId::V6, DialectId::V7);
  const Codec& codec = both(dialect);
  for (const Command& command : sample_commands(dialect)) {
    if (std::holds_alternative<SetXsave>(command)) continue;  // has as many as there are
    const auto* change = std::get_if<ChangeGfn>(&command);
    const std::size_t surplus = change != nullptr && !change->view ? 7 : 21;
    Written wire = written(codec, command);
    wire.payload.resize(wire.payload.size() + surplus, std::byte{0xee});
    CAPTURE(wire.id);
    const Exact exact = wire.exact();
    const auto down = codec.decode_downward(exact.frame());
    REQUIRE(down);
    CHECK(equal(*down, Downward{command}));
  }
}

TEST_CASE("flags other than 0 and 1 count as set", "[kvmi1][v7]") {
  const Codec& codec = both(GENERATE(DialectId::V6, DialectId::V7));
  Written events = request<ControlEvents>(codec);
  events.set(10, 0x80);
  CHECK(accepted<ControlEvents>(codec, events).enable);
  Written vm_events = request<ControlVmEvents>(codec);
  vm_events.set(2, 0x80);
  CHECK(accepted<ControlVmEvents>(codec, vm_events).enable);
  Written cr = request<ControlCr>(codec);
  cr.set(8, 0x80);
  CHECK(accepted<ControlCr>(codec, cr).enable);
}

}  // namespace kvmid::kvmi1::test
