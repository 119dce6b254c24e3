// SPDX-License-Identifier: GPL-2.0-or-later
// Guest memory: reads, writes and their cookies, and what readers of shared guest RAM are told.
#include <algorithm>

#include "daemon/core/guest_machine.h"

namespace kvmid::core {

namespace {

bool overlap(std::uint64_t a, std::uint64_t a_bytes, std::uint64_t b, std::uint64_t b_bytes) {
  return a < b + b_bytes && b < a + a_bytes;
}

}  // namespace

// ---- reads ----

void GuestMachine::read_physical(AgentSlot slot, Seq seq, const ReadPhysical& command, TimePoint now, Effects& out) {
  std::uint64_t total = 0;
  for (std::size_t i = 0; i < command.ranges.size(); ++i) total += command.ranges[i].size;
  if (total > KVMI_MAX_PAYLOAD - sizeof(kvmi_error) - sizeof(kvmi_read_physical_reply))
    return refuse(slot, seq, KVMI_MSG_READ_PHYSICAL, ErrorCode::TooBig, "the ranges are larger than one message", out);
  const std::uint64_t cookie = generations(command.space).current();
  if (is_ram(command)) {
    out.emplace_back(ReadRam{agents_[slot].id, seq, command.ranges, total, cookie});
    return;
  }
  // Whatever is sent behind it changes more than it has seen; the hypervisor serves commands in their order.
  forward({.slot = slot, .agent_seq = seq, .tag = static_cast<std::uint32_t>(total), .cookie = cookie}, command, now, out);
}

/// The mapping holds just what the hypervisor would answer: slots, no write on its way there, no patch.
bool GuestMachine::is_ram(const ReadPhysical& command) const {
  if (ram_bytes_ == 0 || command.space != AddressSpace::Normal || slots_.empty()) return false;
  for (std::size_t i = 0; i < command.ranges.size(); ++i) {
    const kvmi_read_range range = command.ranges[i];
    if (range.gpa > ram_bytes_ || range.size > ram_bytes_ - range.gpa) return false;
    for (std::uint64_t at = range.gpa; at < range.gpa + range.size;) {
      // They are ascending: only the last that begins not behind it can hold it.
      const auto behind = std::upper_bound(slots_.begin(), slots_.end(), at,
                                           [](std::uint64_t a, const kvmi_memory_slot& s) { return a < s.gpa; });
      if (behind == slots_.begin()) return false;
      const kvmi_memory_slot& slot = *std::prev(behind);
      if (at - slot.gpa >= slot.bytes) return false;
      at = slot.gpa + slot.bytes;
    }
    if (std::any_of(changing_.begin(), changing_.end(), [&](const RamRange& changing) {
          return overlap(range.gpa, range.size, changing.gpa.value, changing.bytes);
        }))
      return false;
    auto patch = ram_patches_.lower_bound(range.gpa - std::min<std::uint64_t>(range.gpa, KVMI_PATCH_BYTES_MAX));
    for (; patch != ram_patches_.end() && patch->first < range.gpa + range.size; ++patch)
      if (overlap(range.gpa, range.size, patch->first, patch->second)) return false;
  }
  return true;
}

// ---- writes ----

/// Check and write are one step: what is sent now is done before anything that is sent later.
void GuestMachine::write_physical(AgentSlot slot, Seq seq, const WritePhysical& command, TimePoint now, Effects& out) {
  if ((command.flags & (KVMI_WRITE_PATCH | KVMI_WRITE_UNPATCH)) != 0) return queue_wish(slot, seq, command, now, out);
  Generations& memory = generations(command.space);
  if (const auto refusal = refusal_of_cookie(command))
    return refuse(slot, seq, KVMI_MSG_WRITE_PHYSICAL, refusal->error, refusal->text, out,
                  WritePhysicalReply{memory.current()});
  WritePhysical down = command;
  down.flags = static_cast<std::uint16_t>(down.flags & ~unsigned{KVMI_WRITE_COOKIE});
  down.cookie = 0;
  const bool shared = ram_bytes_ != 0 && command.space == AddressSpace::Normal;
  const std::size_t place = out.size();
  // The generation that this write makes. A write that the hypervisor refuses has made one too: that is a false
  // conflict for others, never a missed one.
  const std::uint64_t generation = memory.current() + 1;
  if (shared) out.emplace_back(RamChanging{command.gpa, command.data.size(), generation});
  OpenCommand open{.slot = slot, .agent_seq = seq, .tag = static_cast<std::uint32_t>(command.space), .cookie = generation};
  if (shared) {
    open.gpa = command.gpa;
    open.bytes = static_cast<std::uint32_t>(command.data.size());
  }
  if (!forward(open, down, now, out)) {
    if (shared) out.erase(out.begin() + static_cast<std::ptrdiff_t>(place));  // nothing changes
    return;
  }
  memory.change(command.gpa, command.data.size());
  if (shared) changing_.push_back({command.gpa, command.data.size()});
}

/// Something of the range has changed since the cookie was given.
std::optional<Refusal> GuestMachine::refusal_of_cookie(const WritePhysical& command) const {
  if ((command.flags & KVMI_WRITE_COOKIE) == 0) return std::nullopt;
  if (generations(command.space).is_unchanged(command.gpa, command.data.size(), command.cookie)) return std::nullopt;
  return Refusal{ErrorCode::Stale, "memory of that range has changed since the cookie was given"};
}

/// The hypervisor has done the write, or refused it: RAM is still again.
void GuestMachine::write_answered(const OpenCommand& open, Effects& out) {
  const auto found = std::find_if(changing_.begin(), changing_.end(), [&](const RamRange& changing) {
    return changing.gpa == open.gpa && changing.bytes == open.bytes;
  });
  if (found == changing_.end()) return;
  changing_.erase(found);
  out.emplace_back(RamChanged{open.gpa, open.bytes});
}

// ---- guest RAM that is shared ----

/// Which addresses are memory: until it is known, reads go to the hypervisor.
void GuestMachine::ask_for_map(TimePoint now, Effects& out) {
  slots_.clear();
  if (!version_.commands.has(CommandId::GetMemoryMap)) return;
  const OpenCommand open{.id = CommandId::GetMemoryMap, .purpose = Purpose::Map};
  map_asked_ = send_command(GetMemoryMap{AddressSpace::Normal}, open, now, out).value_or(Seq{});
}

void GuestMachine::map_known(const CommandReply& reply) {
  const auto* map = std::get_if<GetMemoryMapReply>(&reply.body);
  if (reply.error != ErrorCode::None || map == nullptr) return;
  for (std::size_t i = 0; i < map->slots.size(); ++i) slots_.push_back(map->slots[i]);
}

void GuestMachine::grant_ram(AgentSlot slot, Seq seq, Effects& out) {
  ram_granted_.add(slot);
  out.emplace_back(GrantRam{agents_[slot].id, seq});
}

/// Readers ask kvmid where a patch is wanted or still there: in RAM are not the guest's own bytes.
void GuestMachine::publish_patches(Effects& out) {
  const std::uint64_t changes = patches_.changes() + told_patches_changes_;
  if (changes == published_changes_) return;
  published_changes_ = changes;
  const std::uint64_t generation = generations(AddressSpace::Normal).current();
  std::map<std::uint64_t, std::uint64_t> now = sent_patches_;
  for (const auto& [gpa, bytes] : told_patches_) now[gpa] = std::max<std::uint64_t>(now[gpa], bytes.size());
  patches_.for_each([&](Gpa gpa, const Patches::Patch& patch) {
    auto& bytes = now[gpa.value];
    bytes = std::max<std::uint64_t>(bytes, patch.bytes.size());
  });
  for (const auto& [gpa, bytes] : ram_patches_) {
    const auto there = now.find(gpa);
    if (there == now.end() || there->second != bytes) out.emplace_back(RamPatched{Gpa{gpa}, bytes, false, generation});
  }
  for (const auto& [gpa, bytes] : now) {
    const auto there = ram_patches_.find(gpa);
    if (there == ram_patches_.end() || there->second != bytes)
      out.emplace_back(RamPatched{Gpa{gpa}, bytes, true, generation});
  }
  ram_patches_ = std::move(now);
}

/// The mapping goes with the hypervisor.
void GuestMachine::forget_ram() {
  ram_bytes_ = 0;
  slots_.clear();
  map_asked_ = {};
  changing_.clear();
  ram_patches_.clear();
  published_changes_ = kNeverPublished;
  ram_granted_ = {};
}

}  // namespace kvmid::core
