// SPDX-License-Identifier: LGPL-2.1-or-later
#include "protocol/message.h"


#include "protocol/result.h"

namespace kvmid {

CommandId id_of(const Command& command) {
  return std::visit(
      Overloaded{
          [](const GetVersion&) { return CommandId::GetVersion; },
          [](const GetGuests&) { return CommandId::GetGuests; },
          [](const GetGuestInfo&) { return CommandId::GetGuestInfo; },
          [](const PauseVcpu&) { return CommandId::PauseVcpu; },
          [](const GetRegisters&) { return CommandId::GetRegisters; },
          [](const SetRegisters&) { return CommandId::SetRegisters; },
          [](const ShutdownGuest&) { return CommandId::ShutdownGuest; },
          [](const GetCpuid&) { return CommandId::GetCpuid; },
          [](const GetPageAccess&) { return CommandId::GetPageAccess; },
          [](const SetPageAccess&) { return CommandId::SetPageAccess; },
          [](const InjectException&) { return CommandId::InjectException; },
          [](const ReadPhysical&) { return CommandId::ReadPhysical; },
          [](const WritePhysical&) { return CommandId::WritePhysical; },
          [](const GrantMemory&) { return CommandId::GrantMemory; },
          [](const ControlEvents&) { return CommandId::ControlEvents; },
          [](const ControlCr&) { return CommandId::ControlCr; },
          [](const ControlMsr&) { return CommandId::ControlMsr; },
          [](const TranslateGva&) { return CommandId::TranslateGva; },
          [](const ControlSinglestep&) { return CommandId::ControlSinglestep; },
          [](const SetFilter&) { return CommandId::SetFilter; },
          [](const GetXsave&) { return CommandId::GetXsave; },
          [](const SetXsave&) { return CommandId::SetXsave; },
          [](const GetXcr&) { return CommandId::GetXcr; },
          [](const GetMemoryMap&) { return CommandId::GetMemoryMap; },
      },
      command);
}

std::string_view name_of(CommandId id) {
  switch (id) {
    case CommandId::GetVersion: return "GET_VERSION";
    case CommandId::GetGuests: return "GET_GUESTS";
    case CommandId::GetGuestInfo: return "GET_GUEST_INFO";
    case CommandId::PauseVcpu: return "PAUSE_VCPU";
    case CommandId::GetRegisters: return "GET_REGISTERS";
    case CommandId::SetRegisters: return "SET_REGISTERS";
    case CommandId::ShutdownGuest: return "SHUTDOWN_GUEST";
    case CommandId::GetCpuid: return "GET_CPUID";
    case CommandId::GetPageAccess: return "GET_PAGE_ACCESS";
    case CommandId::SetPageAccess: return "SET_PAGE_ACCESS";
    case CommandId::InjectException: return "INJECT_EXCEPTION";
    case CommandId::ReadPhysical: return "READ_PHYSICAL";
    case CommandId::WritePhysical: return "WRITE_PHYSICAL";
    case CommandId::GrantMemory: return "GRANT_MEMORY";
    case CommandId::ControlEvents: return "CONTROL_EVENTS";
    case CommandId::ControlCr: return "CONTROL_CR";
    case CommandId::ControlMsr: return "CONTROL_MSR";
    case CommandId::TranslateGva: return "TRANSLATE_GVA";
    case CommandId::ControlSinglestep: return "CONTROL_SINGLESTEP";
    case CommandId::SetFilter: return "SET_FILTER";
    case CommandId::GetXsave: return "GET_XSAVE";
    case CommandId::SetXsave: return "SET_XSAVE";
    case CommandId::GetXcr: return "GET_XCR";
    case CommandId::GetMemoryMap: return "GET_MEMORY_MAP";
  }
  return "unknown";
}

std::string_view name_of(EventKind kind) {
  switch (kind) {
    case EventKind::Unhook: return "unhook";
    case EventKind::Cr: return "cr";
    case EventKind::Msr: return "msr";
    case EventKind::Xsetbv: return "xsetbv";
    case EventKind::Breakpoint: return "breakpoint";
    case EventKind::Hypercall: return "hypercall";
    case EventKind::PageFault: return "page_fault";
    case EventKind::Trap: return "trap";
    case EventKind::Descriptor: return "descriptor";
    case EventKind::CreateVcpu: return "create_vcpu";
    case EventKind::Pause: return "pause";
    case EventKind::Singlestep: return "singlestep";
    case EventKind::Cpuid: return "cpuid";
    case EventKind::Access: return "access";
  }
  return "unknown";
}

std::string_view name_of(Action action) {
  switch (action) {
    case Action::Allow: return "allow";
    case Action::Retry: return "retry";
    case Action::Skip: return "skip";
    case Action::Crash: return "crash";
  }
  return "unknown";
}

std::string_view name_of(ErrorCode error) {
  switch (error) {
    case ErrorCode::None: return "OK";
    case ErrorCode::NotPermitted: return "EPERM";
    case ErrorCode::NoEntry: return "ENOENT";
    case ErrorCode::TooBig: return "E2BIG";
    case ErrorCode::TryAgain: return "EAGAIN";
    case ErrorCode::NoMemory: return "ENOMEM";
    case ErrorCode::Fault: return "EFAULT";
    case ErrorCode::Busy: return "EBUSY";
    case ErrorCode::NoDevice: return "ENODEV";
    case ErrorCode::Invalid: return "EINVAL";
    case ErrorCode::NotSupported: return "EOPNOTSUPP";
    case ErrorCode::TimedOut: return "ETIMEDOUT";
    case ErrorCode::Stale: return "ESTALE";
    case ErrorCode::NotServed: return "ENOSYS";
  }
  return "unknown";
}

std::string_view name_of(OffReason reason) {
  switch (reason) {
    case OffReason::Shutdown: return "shutdown";
    case OffReason::Suspend: return "suspend";
    case OffReason::Migration: return "migration";
    case OffReason::Snapshot: return "snapshot";
    case OffReason::LinkLost: return "link_lost";
    case OffReason::ProtocolError: return "protocol_error";
    case OffReason::DaemonStopping: return "daemon_stopping";
    case OffReason::Reset: return "reset";
  }
  return "unknown";
}

std::string_view name_of(Role role) {
  switch (role) {
    case Role::Decider: return "decider";
    case Role::Observer: return "observer";
  }
  return "unknown";
}

std::string_view name_of(NoticeKind kind) {
  switch (kind) {
    case NoticeKind::Expired: return "expired";
    case NoticeKind::ReplyRefused: return "reply_refused";
    case NoticeKind::Demoted: return "demoted";
    case NoticeKind::Outcome: return "outcome";
    case NoticeKind::Revoked: return "revoked";
    case NoticeKind::FrameRefused: return "frame_refused";
  }
  return "unknown";
}

}  // namespace kvmid
