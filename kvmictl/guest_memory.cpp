// SPDX-License-Identifier: GPL-2.0-or-later
#include "kvmictl/guest_memory.h"

#include <cstdio>

#include "client/event_text.h"
#include "kvmictl/guest_commands.h"

namespace kvmid::ctl {

using namespace kvmid::client;  // NOLINT(google-build-using-namespace): this file is an agent

namespace {

bool is_missing(const ClientError& error) {
  return error.kind == ClientErrc::Failed &&
         (error.code == ErrorCode::NotServed || error.code == ErrorCode::NotSupported);
}

}  // namespace

std::vector<MemoryRun> runs_of(std::span<const kvmi_memory_slot> slots) {
  std::vector<MemoryRun> runs;
  for (const auto& slot : slots) {
    if (!runs.empty() && runs.back().gpa + runs.back().bytes == slot.gpa) {
      runs.back().bytes += slot.bytes;
    } else {
      runs.push_back({slot.gpa, slot.bytes});
    }
  }
  return runs;
}

std::string range_fault(std::span<const kvmi_memory_slot> slots, std::uint64_t gpa, std::uint64_t bytes) {
  const std::uint64_t last = gpa + (bytes - 1);
  const auto runs = runs_of(slots);
  for (const auto& run : runs) {
    const std::uint64_t run_last = run.gpa + (run.bytes - 1);
    if (gpa > run_last) continue;
    if (gpa < run.gpa) return "there is no guest memory at GPA " + hex(gpa) + "; the next begins at " + hex(run.gpa);
    if (last <= run_last) return {};
    return "guest memory ends at GPA " + hex(run_last + 1) + ", within the range " + hex(gpa) + " to " + hex(last);
  }
  if (runs.empty()) return "this guest has no memory";
  return "there is no guest memory at GPA " + hex(gpa) + "; the last ends at " +
         hex(runs.back().gpa + runs.back().bytes);
}

void warn_of_holes(const MemoryPlaces& places) {
  if (places.told) return;
  std::fprintf(
      stderr,
      "kvmictl: the hypervisor does not tell the memory map of this guest: GPA 0 to %s are read, and pages that "
      "cannot be read are taken for holes\n",
      hex(places.slots.front().bytes).c_str());
}

Result<GuestMemory, ClientError> GuestMemory::open(const Arguments& arguments) {
  auto attached = AgentClient::attach(connect_options(arguments), arguments.guest);
  if (!attached) return attached.error();
  GuestMemory memory(std::move(*attached), arguments);
  (void)memory.parts_->memory.use_granted();  // without it everything is done by message
  return memory;
}

Result<MemoryPlaces, ClientError> GuestMemory::places() {
  auto slots = client().get_memory_map();
  if (slots) return MemoryPlaces{std::move(*slots), true};
  if (!is_missing(slots.error())) return slots.error();
  const auto info = client().guest_info();
  if (!info) return info.error();
  // All that the processor can address, where kvmid was not told the end of memory either: years of reading.
  const bool endless = info->physical_address_bits >= 64 || info->max_gpa >> info->physical_address_bits != 0;
  if (info->max_gpa == 0 || endless) {
    ClientError error = slots.error();
    error.text = "the hypervisor tells neither the memory map of this guest nor where its memory ends";
    return error;
  }
  kvmi_memory_slot all{};
  all.bytes = info->max_gpa;
  return MemoryPlaces{{all}, false};
}

Result<void, ClientError> GuestMemory::check(std::uint64_t address, std::uint64_t bytes) {
  if (virtual_ || !client().welcome().commands.has(CommandId::GetMemoryMap)) return {};
  const auto slots = client().get_memory_map();
  if (!slots) return slots.error();
  auto fault = range_fault(*slots, address, bytes);
  if (fault.empty()) return {};
  return ClientError{ClientErrc::Failed, ErrorCode::Fault, std::move(fault), 0};
}

Result<std::uint64_t, ClientError> GuestMemory::read(std::uint64_t address, std::span<std::byte> out) {
  if (!virtual_) {
    const PhysicalRange range{Gpa{address}, out};
    return parts_->memory.read(std::span(&range, 1));
  }
  if (asks_hypervisor()) {
    auto got = client().read_virtual(vcpu_, Gva{address}, out);
    if (got || !is_missing(got.error())) return got;
  }
  const auto state = paging();
  if (!state) return state.error();
  return parts_->walker.read(*state, Gva{address}, out);
}

Result<TranslateGvaReply, ClientError> GuestMemory::translate(std::uint64_t gva) {
  if (asks_hypervisor()) {
    auto reply = client().translate_gva(vcpu_, Gva{gva});
    // A hypervisor of an older dialect tells no page size and no rights: the page tables do.
    const bool short_answer = reply && reply->page_bytes == 0;
    if (short_answer && !client().welcome().commands.has(CommandId::GetRegisters)) return reply;
    if (!short_answer && (reply || !is_missing(reply.error()))) return reply;
  }
  const auto state = paging();
  if (!state) return state.error();
  const auto found = parts_->walker.translate(*state, Gva{gva});
  if (!found) return found.error();
  const x86::Translation& page = found->translation;
  return TranslateGvaReply{page.gpa, page.page_bytes, page.rights(), page.user};
}

/// The hypervisor needs no registers, which may stop a vCPU for a moment: too much to ask for at each look of a watch.
/// A walk in place is whole while tables change.
bool GuestMemory::asks_hypervisor() {
  const CommandSet& commands = client().welcome().commands;
  const bool can_walk = commands.has(CommandId::GetRegisters);
  return !walks_ && commands.has(CommandId::TranslateGva) && !(walks_in_place_ && can_walk && mapped() != nullptr);
}

Result<x86::PagingState, ClientError> GuestMemory::paging() {
  walks_ = true;
  const auto registers = stopped_registers(client(), vcpu_);
  if (!registers) return registers.error();
  return x86::paging_state(registers->regs, registers->sregs);
}

}  // namespace kvmid::ctl
