// SPDX-License-Identifier: GPL-2.0-or-later
// Where a hypervisor of an older dialect is not one of KVMI 2, each with its reason. What is not here is equal.
#include "tests/unit/bridge/pair/pair_world.h"

#include <cstring>

#include "arch/x86/exceptions.h"
#include "arch/x86/msrs.h"

namespace kvmid::bridge::test {

using kvmi1::DialectId;

namespace {

/// MSRs that can be watched: the dialects have fewer ranges, and v6 and v7 do not reach their ends.
bool tracks(DialectId dialect, std::uint32_t msr) {
  switch (dialect) {
    case DialectId::V6:
    case DialectId::V7:
      return msr < 0x1fff || (msr > 0xc0000000 && msr < 0xc0001fff);
    case DialectId::V12:
      return msr <= 0x1fff || (msr >= 0xc0000000 && msr <= 0xc0001fff);
    case DialectId::Rfc2017:
      break;
  }
  return msr <= 0x1fff || (msr >= 0xc0000000 && msr <= 0xc0001fff) || (msr >= 0x40000000 && msr <= 0x40001fff);
}

CommandReply refused(const Command& command, ErrorCode error) {
  return CommandReply{static_cast<std::uint16_t>(id_of(command)), error, {}, {}};
}

}  // namespace

std::optional<CommandReply> PairWorld::documented(const Command& command) {
  const auto none = [&](ErrorCode error) { return std::optional(refused(command, error)); };
  // The bridge says what is offered, and what is not.
  if (!offered_.has(id_of(command))) return none(ErrorCode::NotSupported);
  if (std::holds_alternative<GetVersion>(command)) {
    CommandReply reply = refused(command, ErrorCode::None);
    reply.body = GetVersionReply{KVMI_VERSION, KVMI_MAX_PAYLOAD, offered_, plain_.facts().events};
    return reply;
  }
  if (std::holds_alternative<GetGuestInfo>(command)) {
    CommandReply reply = refused(command, ErrorCode::None);
    reply.body = *info_;
    return reply;
  }
  // The server has it not, and rfc2017 has one number for that.
  if (std::holds_alternative<ShutdownGuest>(command)) return none(ErrorCode::NotSupported);
  // There is one address space.
  if (const auto* read = std::get_if<ReadPhysical>(&command); read != nullptr && read->space != AddressSpace::Normal)
    return none(ErrorCode::NotSupported);
  constexpr unsigned kPatches = KVMI_WRITE_PATCH | KVMI_WRITE_UNPATCH;
  if (const auto* write = std::get_if<WritePhysical>(&command);
      write != nullptr && write->space != AddressSpace::Normal && (write->flags & kPatches) == 0) {
    return none(ErrorCode::NotSupported);
  }
  if (const auto* msr = std::get_if<ControlMsr>(&command)) {
    const bool vcpu = msr->vcpu == kAllVcpus || msr->vcpu.value < SmallGuest::kVcpus;
    // In rfc2017 what is tracked is the guest's: what changes nothing there is not told.
    if (vcpu && is_2017() && !msr->enable && !tracks(dialect_, msr->msr)) return none(ErrorCode::None);
    if (vcpu && !tracks(dialect_, msr->msr)) return none(ErrorCode::Invalid);
  }
  // Registers of a vCPU that runs cannot be set.
  if (const auto* regs = std::get_if<SetRegisters>(&command);
      regs != nullptr && regs->vcpu.value < SmallGuest::kVcpus && !open_.contains(regs->vcpu.value)) {
    return none(ErrorCode::NotSupported);
  }
  if (const auto* inject = std::get_if<InjectException>(&command);
      inject != nullptr && inject->vcpu.value < SmallGuest::kVcpus) {
    if (is_2017() && inject->vector != x86::vector::kBp && inject->vector != x86::vector::kPf)
      return none(ErrorCode::NotSupported);
    // What is under way is seen before what is wrong.
    if (!is_2017() && plain_.injected(inject->vcpu)) return none(ErrorCode::Busy);
    // v12 does not inject into a vCPU that steps.
    if (dialect_ == DialectId::V12 && steps_[inject->vcpu.value]) return none(ErrorCode::Busy);
  }
  return std::nullopt;
}

/// What the command becomes on its way, done in KVMI 2.
CommandReply PairWorld::serve(const Command& command, hypervisor::CommandServer& server) {
  if (const auto* inject = std::get_if<InjectException>(&command)) {
    // Whether there is an error code is said by the vector, but in v6. An address is a page fault's.
    InjectException changed = *inject;
    if (dialect_ != DialectId::V6) changed.has_error_code = x86::exception_info(changed.vector).has_error_code;
    if (!changed.has_error_code) changed.error_code = 0;
    if (changed.vector != x86::vector::kPf) changed.address = 0;
    return server.serve(changed);
  }
  if (const auto* xsave = std::get_if<SetXsave>(&command);
      xsave != nullptr && dialect_ == DialectId::V7 && xsave->area.size() < kvmi1::kXsaveSize) {
    // What is missing is zeros.
    std::vector<std::byte> whole(xsave->area.begin(), xsave->area.end());
    whole.resize(kvmi1::kXsaveSize);
    return server.serve(SetXsave{xsave->vcpu, whole});
  }
  if (const auto* pages = std::get_if<SetPageAccess>(&command); pages != nullptr && is_v6_or_v7()) {
    // v6 and v7 ignore pages that are no memory.
    CommandReply reply = server.serve(command);
    if (reply.error != ErrorCode::Fault) return reply;
    for (std::size_t i = 0; i < pages->entries.size(); ++i) {
      const kvmi_page_access_entry entry = pages->entries[i];
      for (std::uint64_t page = 0; page < entry.pages; ++page) {
        const Gfn gfn{(entry.gpa >> kPageShift) + page};
        if (plain_.is_memory(AddressSpace::Normal, gfn, 1)) plain_.set_page_access(gfn, 1, entry.access);
      }
    }
    return refused(command, ErrorCode::None);
  }
  if (const auto* write = std::get_if<WritePhysical>(&command)) {
    CommandReply reply = server.serve(command);
    if (reply.error != ErrorCode::Fault || write->flags != 0) return reply;
    // A write of several pages that is refused at one of them has been done elsewhere. (The test keeps patches away.)
    std::uint64_t at = 0;
    while (at < write->data.size()) {
      const std::uint64_t gpa = write->gpa.value + at;
      const std::uint64_t count = std::min<std::uint64_t>(write->data.size() - at, kPageSize - gpa % kPageSize);
      if (plain_.is_memory(AddressSpace::Normal, gfn_of(Gpa{gpa}), 1))
        check(plain_.write_physical(AddressSpace::Normal, Gpa{gpa}, write->data.subspan(at, count)).has_value(),
              "write");
      at += count;
    }
    return reply;
  }
  CommandReply reply = server.serve(command);
  // The address only.
  if (auto* found = std::get_if<TranslateGvaReply>(&reply.body)) *found = TranslateGvaReply{.gpa = found->gpa};
  const auto* registers = std::get_if<GetRegisters>(&command);
  if (registers != nullptr && is_v6_or_v7() && reply.error == ErrorCode::Invalid &&
      registers->vcpu.value < SmallGuest::kVcpus) {
    // v6 and v7 answer: from the first MSR that does not exist, to the end of the message, all are 0.
    constexpr std::size_t kInMessage = 481;
    std::vector<kvmi_x86_msr> msrs(registers->msrs.size());
    bool gone = false;
    for (std::size_t i = 0; i < msrs.size(); ++i) {
      if (i % kInMessage == 0) gone = false;
      msrs[i].index = registers->msrs[i];
      const auto value = plain_.msr(registers->vcpu, msrs[i].index);
      gone = gone || !value;
      if (!gone) msrs[i].value = *value;
    }
    const auto state = plain_.registers(registers->vcpu);
    const ByteBuffer bytes = as_bytes([&] {
      CommandReply answer = refused(command, ErrorCode::None);
      answer.body = GetRegistersReply{state->mode, state->regs, state->sregs, std::span<const kvmi_x86_msr>(msrs)};
      return answer;
    }());
    kept_ = Kept2{Seq{}, bytes};
    return std::get<CommandReply>(*kvmi2_.decode_upward(kept_.frame()));
  }
  return reply;
}

}  // namespace kvmid::bridge::test
