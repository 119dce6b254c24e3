// SPDX-License-Identifier: GPL-2.0-or-later
#include "kvmictl/guest_memory.h"

#include <algorithm>
#include <cstring>

#include "arch/x86/page_walk.h"
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

Result<GuestMemory, ClientError> GuestMemory::open(const Arguments& arguments) {
  auto attached = AgentClient::attach(connect_options(arguments), arguments.guest);
  if (!attached) return attached.error();
  return GuestMemory(std::move(*attached), arguments);
}

Result<void, ClientError> GuestMemory::check(std::uint64_t address, std::uint64_t bytes) {
  if (virtual_ || !client_.welcome().commands.has(CommandId::GetMemoryMap)) return {};
  const auto slots = client_.get_memory_map();
  if (!slots) return slots.error();
  auto fault = range_fault(*slots, address, bytes);
  if (fault.empty()) return {};
  return ClientError{ClientErrc::Failed, ErrorCode::Fault, std::move(fault), 0};
}

Result<std::uint64_t, ClientError> GuestMemory::read(std::uint64_t address, std::span<std::byte> out) {
  if (!virtual_) {
    const PhysicalRange range{Gpa{address}, out};
    return client_.read_scatter(std::span(&range, 1));
  }
  if (!walks_ && client_.welcome().commands.has(CommandId::TranslateGva)) {
    auto got = client_.read_virtual(vcpu_, Gva{address}, out);
    if (got || !is_missing(got.error())) return got;
  }
  std::vector<PhysicalRange> parts;
  for (std::uint64_t done = 0; done < out.size();) {
    const std::uint64_t part = std::min(out.size() - done, kPageSize - (address + done) % kPageSize);
    const auto found = walk(address + done);
    if (!found) return found.error();
    parts.push_back({found->gpa, out.subspan(done, part)});
    done += part;
  }
  return client_.read_scatter(parts);
}

Result<TranslateGvaReply, ClientError> GuestMemory::translate(std::uint64_t gva) {
  if (!walks_ && client_.welcome().commands.has(CommandId::TranslateGva)) {
    auto reply = client_.translate_gva(vcpu_, Gva{gva});
    if (reply || !is_missing(reply.error())) return reply;
  }
  return walk(gva);
}

Result<TranslateGvaReply, ClientError> GuestMemory::walk(std::uint64_t gva) {
  walks_ = true;
  const auto registers = stopped_registers(client_, vcpu_);
  if (!registers) return registers.error();
  const auto read_table = [this](Gpa gpa, void* out, std::size_t size) {
    const auto part = client_.read_physical(gpa, size);
    if (!part || part->data.size() != size) return false;
    std::memcpy(out, part->data.data(), size);
    return true;
  };
  const auto found = x86::translate(x86::paging_state(registers->regs, registers->sregs), Gva{gva}, read_table);
  if (!found) {
    return ClientError{ClientErrc::Failed, ErrorCode::Fault,
                       "GVA " + hex(gva) + " is not mapped: " + std::string(x86::text_of(found.error().cause)), 0};
  }
  return TranslateGvaReply{found->gpa, found->page_bytes, found->rights(), found->user};
}

}  // namespace kvmid::ctl
