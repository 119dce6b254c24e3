// SPDX-License-Identifier: LGPL-2.1-or-later
//
// v7 and v6: replies. Events are in kvmi1_v7_events.cpp.

#include <algorithm>

#include "protocol/kvmi1_event_values.h"
#include "protocol/kvmi1_v7.h"

namespace kvmid::kvmi1::v7 {
namespace {

GetVersionReply read_version(PayloadReader& r, bool v6) {
  if (v6) return {.version = r.take<VersionReplyV6>().version};
  const auto wire = r.take<VersionReply>();
  const Features& f = wire.features;
  return {.version = wire.version,
          .spp = f.spp != 0,
          .vmfunc = f.vmfunc != 0,
          .eptp = f.eptp != 0,
          .ve = f.ve != 0,
          .singlestep = f.singlestep != 0};
}

GetRegistersReply read_registers(PayloadReader& r) {
  auto wire = r.take<RegistersReply>();
  r.check(is_mode(wire.mode), DecodeErrc::BadValue, KVMID_FIELD(RegistersReply, mode));
  clear_padding(wire.sregs);
  return {wire.mode, wire.regs, wire.sregs, r.take_array<kvmi_x86_msr>(wire.nmsrs)};
}

GetCpuidReply read_cpuid(PayloadReader& r) {
  const auto wire = r.take<CpuidReply>();
  return {wire.eax, wire.ebx, wire.ecx, wire.edx};
}

GetMapTokenReply read_map_token(PayloadReader& r) {
  const auto wire = r.take<MapTokenReply>();
  GetMapTokenReply reply;
  std::copy(std::begin(wire.token), std::end(wire.token), reply.token.begin());
  return reply;
}

kvmi1::QueryPhysicalReply read_query_physical(PayloadReader& r) {
  const auto wire = r.take<QueryPhysicalReply>();
  return {Gfn{wire.gfn}, wire.size};
}

GetPageWriteBitmapReply read_bitmaps(PayloadReader& r) {
  const std::size_t start = r.position();
  const Bytes bytes = r.take_rest();
  const std::size_t whole = bytes.size() - bytes.size() % sizeof(std::uint32_t);
  r.set_base(start);
  r.check(whole == bytes.size(), DecodeErrc::Truncated, FieldAt{bytes.size(), 0});
  return {WireArray<std::uint32_t>(bytes.first(whole))};
}

}  // namespace

/// After an ErrorCode of 0. Nothing: the command has no reply data.
ReplyBody CodecV7::read_reply_body(PayloadReader& r, CommandKind kind) const {
  switch (kind) {
    case kind_of<GetVersion>: return read_version(r, v6_);
    case kind_of<GetGuestInfo>: return GetGuestInfoReply{r.take<GuestInfoReply>().vcpu_count, 0};
    case kind_of<GetVcpuInfo>: return GetVcpuInfoReply{r.take<VcpuInfoReply>().tsc_speed};
    case kind_of<GetRegisters>: return read_registers(r);
    case kind_of<GetCpuid>: return read_cpuid(r);
    case kind_of<GetXsave>: return GetXsaveReply{r.take_bytes(kXsaveSize)};
    case kind_of<GetXcr>: return GetXcrReply{r.take<XcrReply>().value};
    case kind_of<GetMtrrType>: return GetMtrrTypeReply{r.take<MtrrTypeReply>().type};
    case kind_of<ReadPhysical>: return ReadPhysicalReply{r.take_rest()};
    case kind_of<GetMaxGfn>:
    case kind_of<GetNextAvailableGfn>: return kvmi1::GfnReply{Gfn{r.take<GfnReply>().gfn}};
    case kind_of<GetMapToken>: return read_map_token(r);
    case kind_of<QueryPhysical>: return read_query_physical(r);
    case kind_of<GetPageAccess>: return GetPageAccessReply{r.take_rest()};
    case kind_of<GetPageWriteBitmap>: return read_bitmaps(r);
    case kind_of<GetEptView>:
    case kind_of<CreateEptView>: return EptViewReply{r.take<ViewReply>().view};
    case kind_of<TranslateGva>: return TranslateGvaReply{r.take<GpaReply>().gpa};
    default: return std::monostate{};
  }
}

Result<Upward, DecodeError> CodecV7::decode_upward(const Frame& frame) const {
  if (frame.id == kEventId) return decode_event(frame);
  const auto kind = command_of(frame.id);
  // The answer to an unknown command, or to an unacceptable event reply, is an error code alone.
  if (!kind && frame.id != kEventReplyId && frame.payload.size() != sizeof(ErrorCode)) {
    return Upward{UnknownMessage{frame.id}};
  }

  PayloadReader r(frame.payload, frame.id);
  Reply reply{.id = frame.id, .error = r.take<ErrorCode>().err};
  r.check(reply.error <= 0, DecodeErrc::BadValue, KVMID_FIELD(ErrorCode, err));
  if (reply.error == 0 && kind) reply.body = read_reply_body(r, *kind);
  if (const auto error = r.finish()) return *error;
  return Upward{std::move(reply)};
}

namespace {

std::uint8_t byte(bool value) { return value ? 1 : 0; }

struct ReplyPutter {
  Writer& w;
  bool v6;

  void operator()(const std::monostate&) const {}
  void operator()(const GetVersionReply& r) const {
    if (v6) return w.put(VersionReplyV6{r.version, 0});
    w.put(VersionReply{
        r.version, 0, Features{byte(r.spp), byte(r.vmfunc), byte(r.eptp), byte(r.ve), byte(r.singlestep), {}}});
  }
  void operator()(const GetGuestInfoReply& r) const { w.put(GuestInfoReply{r.vcpu_count, {}}); }
  void operator()(const GetVcpuInfoReply& r) const { w.put(VcpuInfoReply{r.tsc_hz}); }
  void operator()(const GetRegistersReply& r) const {
    w.put(RegistersReply{r.mode, 0, r.regs, r.sregs, wire_count<std::uint32_t>(r.msrs.size()), 0});
    w.put(r.msrs.bytes());
  }
  void operator()(const GetCpuidReply& r) const { w.put(CpuidReply{r.eax, r.ebx, r.ecx, r.edx}); }
  /// The area has one size: what a larger one has more is left out, as the kernel does; a smaller one ends with zeros.
  void operator()(const GetXsaveReply& r) const {
    static constexpr std::array<std::byte, kXsaveSize> kZeros{};
    const Bytes area = r.area.first(std::min(r.area.size(), kXsaveSize));
    w.put(area);
    w.put(Bytes(kZeros).subspan(area.size()));
  }
  void operator()(const GetXcrReply& r) const { w.put(XcrReply{r.value}); }
  void operator()(const GetMtrrTypeReply& r) const {
    w.put(MtrrTypeReply{wire_count<std::uint8_t>(static_cast<std::size_t>(r.type)), {}});
  }
  void operator()(const ReadPhysicalReply& r) const { w.put(r.data); }
  void operator()(const kvmi1::GfnReply& r) const { w.put(GfnReply{r.gfn.value}); }
  void operator()(const GetMapTokenReply& r) const {
    w.put(MapTokenReply{{r.token[0], r.token[1], r.token[2], r.token[3]}});
  }
  void operator()(const kvmi1::QueryPhysicalReply& r) const { w.put(QueryPhysicalReply{r.gfn.value, r.pages}); }
  void operator()(const GetPageAccessReply& r) const { w.put(r.access); }
  void operator()(const GetPageWriteBitmapReply& r) const { w.put(r.bitmaps.bytes()); }
  void operator()(const EptViewReply& r) const { w.put(ViewReply{r.view, {}}); }
  void operator()(const TranslateGvaReply& r) const { w.put(GpaReply{r.gpa}); }
  template <class OfAnotherDialect>
  void operator()(const OfAnotherDialect&) const {
    std::abort();
  }
};

}  // namespace

void CodecV7::encode(const Reply& reply, Seq seq, ByteBuffer& out) const {
  Writer w(out, reply.id, seq);
  w.put(ErrorCode{reply.error, 0});
  if (reply.error == 0) std::visit(ReplyPutter{w, v6_}, reply.body);
}

}  // namespace kvmid::kvmi1::v7
