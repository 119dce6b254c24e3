// SPDX-License-Identifier: GPL-2.0-or-later
// What a tool may use of what its dialect has, and the commands that are about just that.
#include "bridge/agent_impl.h"

namespace kvmid::bridge {

namespace {

using kvmi1::kind_of;

constexpr std::uint16_t kCommandLimit7 = 64, kEventLimit7 = 14, kCommandError7 = 12;

/// What of KVMI 2 a command needs; none: nothing, or what every agent has.
struct Need {
  bool nothing_does = false;
  std::optional<CommandId> command{};
};

Need need_of(kvmi1::CommandKind kind) {
  switch (kind) {
    case kind_of<kvmi1::GetVersion>:
    case kind_of<kvmi1::CheckCommand>:
    case kind_of<kvmi1::CheckEvent>:
    case kind_of<kvmi1::GetGuestInfo>:
    case kind_of<kvmi1::GetVcpuInfo>:
    case kind_of<kvmi1::GetMaxGfn>:
    case kind_of<kvmi1::ControlVmEvents>:
    case kind_of<kvmi1::ControlCleanup>:
    case kind_of<kvmi1::ControlCmdResponse>:
    case kind_of<kvmi1::GetEptView>:
    case kind_of<kvmi1::SwitchEptView>:
      return {};
    case kind_of<kvmi1::PauseVcpu>:
    case kind_of<kvmi1::PauseGuest>:
    case kind_of<kvmi1::UnpauseGuest>:
      return {.command = CommandId::PauseVcpu};
    case kind_of<kvmi1::ControlEvents>:
    case kind_of<kvmi1::SetEvents>:
      return {.command = CommandId::ControlEvents};
    case kind_of<kvmi1::ControlCr>:
    case kind_of<kvmi1::ControlGuestCr>:
      return {.command = CommandId::ControlCr};
    case kind_of<kvmi1::ControlMsr>:
    case kind_of<kvmi1::ControlGuestMsr>:
      return {.command = CommandId::ControlMsr};
    case kind_of<kvmi1::GetRegisters>:
    case kind_of<kvmi1::GetMtrrType>:
    case kind_of<kvmi1::GetMtrrs>:
      return {.command = CommandId::GetRegisters};
    case kind_of<kvmi1::SetRegisters>:
      return {.command = CommandId::SetRegisters};
    case kind_of<kvmi1::GetCpuid>:
    case kind_of<kvmi1::GetXsaveInfo>:
      return {.command = CommandId::GetCpuid};
    case kind_of<kvmi1::GetXsave>:
      return {.command = CommandId::GetXsave};
    case kind_of<kvmi1::SetXsave>:
      return {.command = CommandId::SetXsave};
    case kind_of<kvmi1::GetXcr>:
      return {.command = CommandId::GetXcr};
    case kind_of<kvmi1::ReadPhysical>:
      return {.command = CommandId::ReadPhysical};
    case kind_of<kvmi1::WritePhysical>:
      return {.command = CommandId::WritePhysical};
    case kind_of<kvmi1::QueryPhysical>:
    case kind_of<kvmi1::GetNextAvailableGfn>:
      return {.command = CommandId::GetMemoryMap};
    case kind_of<kvmi1::InjectException>:
    case kind_of<kvmi1::InjectPageFault>:
    case kind_of<kvmi1::InjectBreakpoint>:
      return {.command = CommandId::InjectException};
    case kind_of<kvmi1::GetPageAccess>:
    case kind_of<kvmi1::GetVcpuPageAccess>:
      return {.command = CommandId::GetPageAccess};
    case kind_of<kvmi1::SetPageAccess>:
    case kind_of<kvmi1::SetVcpuPageAccess>:
      return {.command = CommandId::SetPageAccess};
    case kind_of<kvmi1::TranslateGva>:
      return {.command = CommandId::TranslateGva};
    case kind_of<kvmi1::ControlSinglestep>:
      return {.command = CommandId::ControlSinglestep};
    case kind_of<kvmi1::ShutdownGuest>:
      return {.command = CommandId::ShutdownGuest};
    default:
      return {.nothing_does = true};  // views, SPP, #VE, gfns that change, map tokens, mapped pages
  }
}

/// What a tool can still ask when the guest is gone.
bool works_without_guest(kvmi1::CommandKind kind) {
  return kind == kind_of<kvmi1::GetVersion> || kind == kind_of<kvmi1::CheckCommand> ||
         kind == kind_of<kvmi1::CheckEvent> || kind == kind_of<kvmi1::ControlCmdResponse>;
}

}  // namespace

AgentBridge::Impl::Served AgentBridge::Impl::served(kvmi1::CommandKind kind) const {
  const Need need = need_of(kind);
  if (need.nothing_does) return Served::Never;
  if (need.command && !rights.commands.has(*need.command)) {
    return rights.unserved_commands.has(*need.command) ? Served::Never : Served::NotPermitted;
  }
  return Served::Yes;
}

bool AgentBridge::Impl::gone_for(kvmi1::CommandKind kind) const { return off_ && !works_without_guest(kind); }

/// Pauses need no subscription, and UNHOOK is told by this end.
bool AgentBridge::Impl::may_see(EventKind kind) const {
  if (kind == EventKind::Unhook) return true;
  if (kind == EventKind::Pause) return rights.commands.has(CommandId::PauseVcpu);
  return rights.events.has(kind);
}

ErrorCode AgentBridge::Impl::cannot_see(EventKind kind) const {
  return rights.unserved_events.has(kind) ? ErrorCode::NotSupported : ErrorCode::NotPermitted;
}

/// Commands that are refused before their payload is looked at, because the event that follows is not allowed.
bool AgentBridge::Impl::needs_event_first(kvmi1::CommandKind kind) const {
  if (is(kvmi1::DialectId::Rfc2017)) return false;
  if (kind == kind_of<kvmi1::InjectException>) return !may_see(EventKind::Trap);
  return is(kvmi1::DialectId::V12) && kind == kind_of<kvmi1::ControlSinglestep> && !may_see(EventKind::Singlestep);
}

Role AgentBridge::Impl::role_for(EventKind kind) const { return observed_.has(kind) ? Role::Observer : rights.role; }

bool AgentBridge::Impl::can_singlestep() const {
  return rights.commands.has(CommandId::ControlSinglestep) && rights.events.has(EventKind::Singlestep);
}

void AgentBridge::Impl::run(Slot& slot, const kvmi1::GetVersion&) {
  kvmi1::GetVersionReply reply;
  reply.version = 1;
  reply.max_message = is(kvmi1::DialectId::V12) ? static_cast<std::uint32_t>(codec.payload_max()) : 0;
  reply.singlestep = can_singlestep();
  finish(slot, 0, reply);
}

void AgentBridge::Impl::run(Slot& slot, const kvmi1::CheckCommand& command) {
  const auto kind = codec.command_of(command.id);
  const bool is_reply = is_v6_or_v7() && command.id == codec.event_reply_id();
  if (is_reply) return finish(slot, 0);
  if (is_v6_or_v7() && command.id >= kCommandLimit7) return finish(slot, ErrorCode::Invalid);
  if (!kind) return finish(slot, is_v6_or_v7() ? ErrorCode::NotPermitted : ErrorCode::NoEntry);
  finish(slot, served(*kind) == Served::Yes ? ErrorCode::None : ErrorCode::NotPermitted);
}

void AgentBridge::Impl::run(Slot& slot, const kvmi1::CheckEvent& command) {
  const auto kind = codec.event_of(command.id);
  if (is_v6_or_v7() && command.id >= kEventLimit7) return finish(slot, ErrorCode::Invalid);
  if (is(kvmi1::DialectId::V7) && command.id == kCommandError7) return finish(slot, 0);
  if (!kind) return finish(slot, is_v6_or_v7() ? ErrorCode::Invalid : ErrorCode::NoEntry);
  finish(slot, may_see(*kind) ? ErrorCode::None : ErrorCode::NotPermitted);
}

/// With `now` this command's own reply follows the new state; else it follows the one before.
void AgentBridge::Impl::run(Slot& slot, const kvmi1::ControlCmdResponse& command) {
  replies_on_ = command.enable;
  error_events_ = !command.enable && command.error_events;
  if (command.now) slot.answers = command.enable;
  finish(slot, 0);
}

}  // namespace kvmid::bridge
