// SPDX-License-Identifier: GPL-2.0-or-later
#include "hypervisor/server/commands.h"

#include <span>

#include "arch/x86/control_registers.h"
#include "hypervisor/server/hex.h"
#include "hypervisor/server/session.h"

namespace kvmid::hypervisor {

namespace {

Done check_rights_space(AddressSpace space) {
  if (space == AddressSpace::Normal) return {};
  return Refusal{ErrorCode::NotSupported, "page rights exist in address space 0 only, not in 1 (SMM)"};
}

/// Everything about a write that can be said without a look at the guest.
Done check_write(const WritePhysical& command) {
  constexpr unsigned kFlags = KVMI_WRITE_COOKIE | KVMI_WRITE_EXPECT | KVMI_WRITE_PATCH | KVMI_WRITE_UNPATCH;
  constexpr unsigned kPatchFlags = KVMI_WRITE_PATCH | KVMI_WRITE_UNPATCH;
  const std::size_t size = command.data.size();
  const auto invalid = [](std::string text) { return Refusal{ErrorCode::Invalid, std::move(text)}; };
  if ((command.flags & ~kFlags) != 0) return invalid("unknown flags " + hex(command.flags & ~kFlags));
  if ((command.flags & kPatchFlags) == kPatchFlags) return invalid("PATCH and UNPATCH at once");
  if ((command.flags & KVMI_WRITE_COOKIE) == 0 && command.cookie != 0) return invalid("a cookie without its flag");
  if (size == 0) return invalid("a range of 0 bytes");
  if ((command.flags & KVMI_WRITE_EXPECT) != 0 && command.expected.size() != size) {
    return invalid(std::to_string(command.expected.size()) + " bytes are expected in a range of " +
                   std::to_string(size));
  }
  const bool patch = (command.flags & kPatchFlags) != 0;
  if (patch && size > KVMI_PATCH_BYTES_MAX) {
    return invalid("a patch has at most " + std::to_string(KVMI_PATCH_BYTES_MAX) + " bytes, not " +
                   std::to_string(size));
  }
  if (patch && command.gpa.value % kPageSize + size > kPageSize) {
    return invalid("a patch lies within a page, not at GPA " + hex(command.gpa.value) + " with " +
                   std::to_string(size) + " bytes");
  }
  if ((command.flags & KVMI_WRITE_COOKIE) != 0) return Refusal{ErrorCode::NotSupported, "cookies are kept by kvmid"};
  if (patch && command.space != AddressSpace::Normal) {
    return Refusal{ErrorCode::NotSupported, "patches exist in address space 0 only, not in 1 (SMM)"};
  }
  return {};
}

std::string event_names(std::uint64_t bits) {
  std::string names;
  for (unsigned i = 0; i < kEventCount; ++i) {
    if (((bits >> i) & 1u) == 0) continue;
    if (!names.empty()) names += ", ";
    names += name_of(static_cast<EventKind>(i));
  }
  const std::uint64_t unknown = bits & ~kEveryEvent.bits;
  if (unknown != 0) names += (names.empty() ? "" : ", ") + ("unknown bits " + hex(unknown));
  return names;
}

}  // namespace

CommandReply CommandServer::serve(const Command& command) {
  CommandReply reply;
  reply.id = static_cast<std::uint16_t>(id_of(command));
  auto outcome = std::visit([this](const auto& c) { return run(c); }, command);
  if (outcome) {
    reply.body = std::move(*outcome);
    return reply;
  }
  reply.error = outcome.error().code;
  text_ = outcome.error().text;
  reply.text = text_;
  if (reply.error == ErrorCode::Stale && std::holds_alternative<WritePhysical>(command)) {
    reply.body = WritePhysicalReply{};
  }
  return reply;
}

Refusal CommandServer::no_such_vcpu(VcpuId vcpu) const {
  return {ErrorCode::Invalid, "no vCPU " + std::to_string(vcpu.value) + ": the guest has " +
                                  std::to_string(backend_.facts().vcpu_count)};
}

CommandServer::VcpuRange CommandServer::vcpus(VcpuId vcpu) const {
  if (vcpu == kAllVcpus) return {0, backend_.facts().vcpu_count};
  if (!is_vcpu(vcpu)) return {0, 0};
  return {vcpu.value, static_cast<std::uint16_t>(vcpu.value + 1)};
}

Done CommandServer::check_memory(AddressSpace space, Gpa gpa, std::uint64_t bytes) const {
  const auto outside = [&] {
    const std::string where = space == AddressSpace::Normal
                                  ? "guest RAM, which ends at " + hex(backend_.facts().max_gpa)
                                  : "memory of address space 1 (SMM)";
    return Refusal{ErrorCode::Fault, hex(bytes) + " bytes at GPA " + hex(gpa.value) + " are not all " + where};
  };
  if (bytes == 0) return Refusal{ErrorCode::Invalid, "a range of 0 bytes"};
  const std::uint64_t last = gpa.value + (bytes - 1);
  if (last < gpa.value) return outside();
  const std::uint64_t pages = (last >> kPageShift) - (gpa.value >> kPageShift) + 1;
  if (!backend_.is_memory(space, gfn_of(gpa), pages)) return outside();
  return {};
}

CommandServer::Outcome CommandServer::run(const GetVersion&) {
  GetVersionReply reply;
  reply.version = KVMI_VERSION;
  reply.max_payload = KVMI_MAX_PAYLOAD;
  reply.commands = CommandSet{kServedCommands | backend_.facts().commands.bits};
  reply.events = backend_.facts().events;
  return ReplyBody{reply};
}

CommandServer::Outcome CommandServer::run(const GetGuestInfo&) {
  const auto& facts = backend_.facts();
  GetGuestInfoReply reply;
  reply.vcpu_count = facts.vcpu_count;
  reply.arch = KVMI_ARCH_X86;
  reply.tsc_hz = facts.tsc_hz;
  reply.physical_address_bits = facts.physical_address_bits;
  reply.linear_address_bits = facts.linear_address_bits;
  reply.execute_only = facts.execute_only;
  reply.max_gpa = facts.max_gpa;
  return ReplyBody{reply};
}

CommandServer::Outcome CommandServer::run(const PauseVcpu& command) {
  const auto range = vcpus(command.vcpu);
  if (range.begin == range.end) return no_such_vcpu(command.vcpu);
  for (std::uint16_t i = range.begin; i < range.end; ++i) {
    if (const auto done = backend_.pause(VcpuId{i}); !done) return done.error();
  }
  return ReplyBody{};
}

CommandServer::Outcome CommandServer::run(const GetRegisters& command) {
  if (!is_vcpu(command.vcpu)) return no_such_vcpu(command.vcpu);
  const std::size_t size =
      sizeof(kvmi_error) + sizeof(kvmi_get_registers_reply) + command.msrs.size() * sizeof(kvmi_x86_msr);
  if (size > KVMI_MAX_PAYLOAD) {
    return Refusal{ErrorCode::TooBig, std::to_string(command.msrs.size()) + " MSRs do not fit into a message"};
  }
  const auto state = backend_.registers(command.vcpu);
  if (!state) return state.error();
  for (std::size_t i = 0; i < command.msrs.size(); ++i) {
    const auto value = backend_.msr(command.vcpu, command.msrs[i]);
    if (!value) return value.error();
    msrs_.push_back({command.msrs[i], 0, *value});
  }
  GetRegistersReply reply;
  reply.mode = state->mode;
  reply.regs = state->regs;
  reply.sregs = state->sregs;
  reply.msrs = std::span<const kvmi_x86_msr>(msrs_);
  return ReplyBody{reply};
}

CommandServer::Outcome CommandServer::run(const SetRegisters& command) {
  if (!is_vcpu(command.vcpu)) return no_such_vcpu(command.vcpu);
  if (const auto done = backend_.set_registers(command.vcpu, command.regs); !done) return done.error();
  return ReplyBody{};
}

CommandServer::Outcome CommandServer::run(const GetPageAccess& command) {
  if (const auto ok = check_rights_space(command.space); !ok) return ok.error();
  if (command.pages == 0) return Refusal{ErrorCode::Invalid, "0 pages are asked for"};
  if (command.gpa.value % kPageSize != 0) {
    return Refusal{ErrorCode::Invalid, "GPA " + hex(command.gpa.value) + " is not the start of a page"};
  }
  if (const auto ok = check_memory(command.space, command.gpa, std::uint64_t{command.pages} * kPageSize); !ok) {
    return ok.error();
  }
  const Gfn first = gfn_of(command.gpa);
  constexpr std::size_t kEntriesMax =
      (KVMI_MAX_PAYLOAD - sizeof(kvmi_error) - sizeof(kvmi_get_page_access_reply)) / sizeof(kvmi_page_access_entry);
  for (std::uint32_t i = 0; i < command.pages; ++i) {
    const auto rights = backend_.page_access(Gfn{first.value + i});
    if (!entries_.empty() && entries_.back().access == rights) {
      ++entries_.back().pages;
      continue;
    }
    if (entries_.size() == kEntriesMax) {
      return Refusal{ErrorCode::TooBig, "more than " + std::to_string(kEntriesMax) +
                                            " ranges of different rights do not fit into a message: ask for less"};
    }
    kvmi_page_access_entry entry{};
    entry.gpa = command.gpa.value + std::uint64_t{i} * kPageSize;
    entry.pages = 1;
    entry.access = rights;
    entries_.push_back(entry);
  }
  GetPageAccessReply reply;
  reply.entries = std::span<const kvmi_page_access_entry>(entries_);
  return ReplyBody{reply};
}

CommandServer::Outcome CommandServer::run(const SetPageAccess& command) {
  if (const auto ok = check_rights_space(command.space); !ok) return ok.error();
  if (command.entries.empty()) return Refusal{ErrorCode::Invalid, "no entries"};
  // All are looked at before the first is done: the command takes effect as a whole or not at all.
  for (std::size_t i = 0; i < command.entries.size(); ++i) {
    const auto entry = command.entries[i];
    const auto refuse = [&](ErrorCode code, std::string_view why) {
      return Refusal{code, "entry " + std::to_string(i) + ": " + std::string(why)};
    };
    if (entry.pages == 0) return refuse(ErrorCode::Invalid, "0 pages");
    if (entry.gpa % kPageSize != 0) {
      return refuse(ErrorCode::Invalid, "GPA " + hex(entry.gpa) + " is not the start of a page");
    }
    if (const auto error = x86::refuse_page_rights(entry.access, backend_.facts().execute_only)) {
      return refuse(ErrorCode::Invalid, x86::text_of(*error));
    }
    if (const auto ok = check_memory(command.space, Gpa{entry.gpa}, std::uint64_t{entry.pages} * kPageSize); !ok) {
      return refuse(ok.error().code, ok.error().text);
    }
  }
  for (std::size_t i = 0; i < command.entries.size(); ++i) {
    const auto entry = command.entries[i];
    backend_.set_page_access(gfn_of(Gpa{entry.gpa}), entry.pages, entry.access);
  }
  return ReplyBody{};
}

CommandServer::Outcome CommandServer::run(const InjectException& command) {
  if (!is_vcpu(command.vcpu)) return no_such_vcpu(command.vcpu);
  kvmi_inject_exception request{};
  request.vcpu = command.vcpu.value;
  request.vector = command.vector;
  request.has_error_code = command.has_error_code ? 1 : 0;
  request.error_code = command.error_code;
  request.address = command.address;
  if (const auto error = x86::refuse_injection(request)) {
    return Refusal{ErrorCode::Invalid, "vector " + std::to_string(command.vector) + ": " +
                                           std::string(x86::text_of(*error))};
  }
  const x86::Exception exception{command.vector, command.has_error_code, command.error_code, command.address};
  if (const auto done = backend_.inject(command.vcpu, exception); !done) return done.error();
  return ReplyBody{};
}

CommandServer::Outcome CommandServer::run(const ReadPhysical& command) {
  if (command.ranges.empty()) return Refusal{ErrorCode::Invalid, "no ranges"};
  std::uint64_t total = sizeof(kvmi_error) + sizeof(kvmi_read_physical_reply);
  for (std::size_t i = 0; i < command.ranges.size(); ++i) {
    const auto range = command.ranges[i];
    if (const auto ok = check_memory(command.space, Gpa{range.gpa}, range.size); !ok) {
      return Refusal{ok.error().code, "range " + std::to_string(i) + ": " + ok.error().text};
    }
    total += range.size;
    if (total > KVMI_MAX_PAYLOAD) {
      return Refusal{ErrorCode::TooBig, "the ranges together do not fit into a message of " +
                                            std::to_string(KVMI_MAX_PAYLOAD) + " bytes"};
    }
  }
  for (std::size_t i = 0; i < command.ranges.size(); ++i) {
    const auto range = command.ranges[i];
    const std::size_t at = data_.size();
    data_.resize(at + range.size);
    if (const auto done = patches_.read(command.space, Gpa{range.gpa}, std::span(data_).subspan(at)); !done) {
      return done.error();
    }
  }
  ReadPhysicalReply reply;
  reply.data = data_;
  return ReplyBody{reply};
}

CommandServer::Outcome CommandServer::run(const WritePhysical& command) {
  const bool expects = (command.flags & KVMI_WRITE_EXPECT) != 0;
  const bool patches = (command.flags & KVMI_WRITE_PATCH) != 0, unpatches = (command.flags & KVMI_WRITE_UNPATCH) != 0;
  const std::size_t size = command.data.size();
  if (const auto ok = check_write(command); !ok) return ok.error();
  if (const auto ok = check_memory(command.space, command.gpa, size); !ok) return ok.error();
  if (patches) {
    if (const auto ok = patches_.may_place(command.gpa, size); !ok) return ok.error();
  }
  if (unpatches) {
    if (const auto ok = patches_.is_placed(command.gpa, size); !ok) return ok.error();
  }
  if (expects) {
    if (const auto ok = patches_.expect(command.space, command.gpa, command.expected); !ok) return ok.error();
  }
  const auto done = patches     ? patches_.place(command.gpa, command.data)
                    : unpatches ? patches_.take_off(command.gpa, size)
                                : patches_.write(command.space, command.gpa, command.data);
  if (!done) return done.error();
  return ReplyBody{WritePhysicalReply{}};
}

CommandServer::Outcome CommandServer::run(const ControlEvents& command) {
  const auto range = vcpus(command.vcpu);
  if (range.begin == range.end) return no_such_vcpu(command.vcpu);
  if (command.role != Role::Decider) {
    return Refusal{ErrorCode::NotSupported, "a hypervisor waits for every reply; observers are kvmid's business"};
  }
  const EventSet offered = backend_.facts().events;
  if (const std::uint64_t missing = command.events.bits & ~offered.bits;
      missing != 0 && command.operation != Operation::Disable) {
    return Refusal{ErrorCode::NotSupported, "not offered by this hypervisor: " + event_names(missing)};
  }
  auto& hooks = backend_.hooks();
  std::uint64_t enabled = offered.bits;
  for (std::uint16_t i = range.begin; i < range.end; ++i) {
    std::uint64_t bits = hooks.events(VcpuId{i}).bits;
    switch (command.operation) {
      case Operation::Set: bits = command.events.bits; break;
      case Operation::Enable: bits |= command.events.bits; break;
      case Operation::Disable: bits &= ~command.events.bits; break;
    }
    hooks.set_events(VcpuId{i}, EventSet{bits});
    enabled &= bits;
  }
  backend_.hooks_changed();
  return ReplyBody{ControlEventsReply{EventSet{enabled}}};
}

CommandServer::Outcome CommandServer::run(const ControlCr& command) {
  const auto range = vcpus(command.vcpu);
  if (range.begin == range.end) return no_such_vcpu(command.vcpu);
  if (!x86::is_trackable_cr(command.cr)) {
    return Refusal{ErrorCode::Invalid, "CR" + std::to_string(command.cr) + " cannot be watched: only CR0, CR3 and CR4"};
  }
  for (std::uint16_t i = range.begin; i < range.end; ++i) {
    backend_.hooks().set_cr(VcpuId{i}, command.cr, command.enable);
  }
  backend_.hooks_changed();
  return ReplyBody{};
}

CommandServer::Outcome CommandServer::run(const ControlMsr& command) {
  const auto range = vcpus(command.vcpu);
  if (range.begin == range.end) return no_such_vcpu(command.vcpu);
  if (!x86::is_trackable_msr(command.msr)) {
    return Refusal{ErrorCode::Invalid, "MSR " + hex(command.msr) + " cannot be watched: it is outside the four ranges"};
  }
  for (std::uint16_t i = range.begin; i < range.end; ++i) {
    backend_.hooks().set_msr(VcpuId{i}, command.msr, command.enable);
  }
  backend_.hooks_changed();
  return ReplyBody{};
}

CommandServer::Outcome CommandServer::run(const ControlSinglestep& command) {
  if (!serves(CommandId::ControlSinglestep)) return not_served();
  if (!is_vcpu(command.vcpu)) return no_such_vcpu(command.vcpu);
  backend_.hooks().set_singlestep(command.vcpu, command.enable);
  backend_.hooks_changed();
  return ReplyBody{};
}

}  // namespace kvmid::hypervisor
