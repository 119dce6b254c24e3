// SPDX-License-Identifier: GPL-2.0-or-later
// Commands of a tool about guest memory. One 0xCC byte that a tool writes is its breakpoint: a patch, which goes when
// the tool does and which only its own reads show.
#include <cstring>
#include <memory>
#include <utility>

#include "bridge/agent_impl.h"
#include "protocol/kvmi.h"

namespace kvmid::bridge {

namespace {

constexpr std::byte kBreakpoint{0xcc};
constexpr std::uint8_t kAccessBits = KVMI_PAGE_ACCESS_R | KVMI_PAGE_ACCESS_W | KVMI_PAGE_ACCESS_X;

/// These dialects read and write within one page.
bool within_page(Gpa gpa, std::uint64_t size) {
  return size != 0 && size <= kPageSize && gpa.value % kPageSize + size <= kPageSize;
}

/// The last bytes of the address space are no memory, and KVMI 2 has no message for them.
bool wraps(std::uint64_t gpa, std::uint64_t size) { return gpa + size < size; }

ErrorCode of_memory(ErrorCode error) { return error == ErrorCode::Fault ? ErrorCode::NoEntry : error; }

Command pages_command(const std::vector<kvmi_page_access_entry>& entries, std::vector<std::byte>& bytes) {
  bytes.resize(entries.size() * sizeof(kvmi_page_access_entry));
  std::memcpy(bytes.data(), entries.data(), bytes.size());
  return SetPageAccess{AddressSpace::Normal, WireArray<kvmi_page_access_entry>(Bytes(bytes))};
}

}  // namespace

// ---- reads ----

void AgentBridge::Impl::ask_read(Gpa gpa, std::uint32_t size, Then then) {
  const kvmi_read_range range{gpa.value, size, 0};
  std::vector<std::byte> bytes(sizeof range);
  std::memcpy(bytes.data(), &range, sizeof range);
  const WireArray<kvmi_read_range> ranges{Bytes(bytes)};
  ask(ReadPhysical{AddressSpace::Normal, ranges}, std::move(then), std::move(bytes));
}

void AgentBridge::Impl::run(Slot& slot, const kvmi1::ReadPhysical& command) {
  if (!within_page(command.gpa, command.size)) return finish(slot, ErrorCode::Invalid);
  if (wraps(command.gpa.value, command.size)) return finish(slot, ErrorCode::NoEntry);
  std::vector<std::uint16_t> own;
  for (auto it = patches_.lower_bound(command.gpa.value);
       it != patches_.end() && *it - command.gpa.value < command.size; ++it) {
    own.push_back(static_cast<std::uint16_t>(*it - command.gpa.value));
  }
  ask_read(command.gpa, static_cast<std::uint32_t>(command.size),
           [this, &slot, own = std::move(own)](const CommandReply& reply) {
             const auto* read = std::get_if<ReadPhysicalReply>(&reply.body);
             if (read == nullptr) return finish(slot, of_memory(reply.error));
             if (own.empty()) return finish(slot, 0, kvmi1::ReadPhysicalReply{read->data});
             std::vector<std::byte> data(read->data.begin(), read->data.end());
             for (const std::uint16_t offset : own) {
               if (offset < data.size()) data[offset] = kBreakpoint;
             }
             finish(slot, 0, kvmi1::ReadPhysicalReply{data});
           });
}

// ---- writes ----

void AgentBridge::Impl::ask_write(Gpa gpa, Bytes data, std::uint16_t flags, std::vector<std::byte> bytes, Then then) {
  WritePhysical write;
  write.gpa = gpa;
  write.flags = flags;
  write.data = data;
  ask(write, std::move(then), std::move(bytes));
}

/// The tool's breakpoints under a write are given back one after another, then the write is made.
struct AgentBridge::Impl::Unpatching {
  explicit Unpatching(Impl& impl) : step(impl) {}
  Step step;
  Gpa gpa;
  std::vector<std::byte> data;
  std::vector<std::uint64_t> covered;
  ErrorCode first_error = ErrorCode::None;
};

void AgentBridge::Impl::run(Slot& slot, const kvmi1::WritePhysical& command) {
  const std::uint64_t gpa = command.gpa.value;
  const std::uint64_t size = command.data.size();
  if (!within_page(command.gpa, size)) return finish(slot, ErrorCode::Invalid);
  if (wraps(gpa, size)) return finish(slot, ErrorCode::NoEntry);
  const bool breakpoint = options_.breakpoints_are_patches && size == 1 && command.data[0] == kBreakpoint;
  if (breakpoint) {
    if (patches_.contains(gpa) && !doubted_.contains(gpa)) return finish(slot, 0);
    auto held = std::make_shared<Step>(*this);
    return ask_write(command.gpa, command.data, KVMI_WRITE_PATCH, keep(),
                     [this, &slot, gpa, held](const CommandReply& reply) {
                       if (reply.error == ErrorCode::None) {
                         patches_.insert(gpa);
                         doubted_.erase(gpa);
                       }
                       finish(slot, of_memory(reply.error));
                     });
  }
  const auto first = patches_.lower_bound(gpa);
  if (first == patches_.end() || *first - gpa >= size) {
    return ask_write(command.gpa, command.data, 0, keep(),
                     [this, &slot](const CommandReply& reply) { finish(slot, of_memory(reply.error)); });
  }
  auto task = std::make_shared<Unpatching>(*this);
  task->gpa = command.gpa;
  task->data.assign(command.data.begin(), command.data.end());
  for (auto it = first; it != patches_.end() && *it - gpa < size; ++it) task->covered.push_back(*it);
  next_unpatch(slot, std::move(task));
}

void AgentBridge::Impl::next_unpatch(Slot& slot, std::shared_ptr<Unpatching> task) {
  if (!task->covered.empty()) {
    const std::uint64_t place = task->covered.back();
    task->covered.pop_back();
    std::vector<std::byte> byte{kBreakpoint};
    const Bytes view(byte);
    return ask_write(Gpa{place}, view, KVMI_WRITE_UNPATCH, std::move(byte),
                     [this, &slot, task, place](const CommandReply& reply) {
                       const bool gone = reply.error == ErrorCode::None || reply.error == ErrorCode::NoEntry;
                       if (gone) {
                         patches_.erase(place);
                         doubted_.erase(place);
                       } else if (task->first_error == ErrorCode::None) {
                         task->first_error = reply.error;
                       }
                       next_unpatch(slot, task);
                     });
  }
  const Bytes view(task->data);
  ask_write(task->gpa, view, 0, std::move(task->data),
            [this, &slot, error = task->first_error](const CommandReply& reply) {
              finish(slot, of_memory(error != ErrorCode::None ? error : reply.error));
            });
}

// ---- the memory map ----

void AgentBridge::Impl::run(Slot& slot, const kvmi1::QueryPhysical& command) {
  ask(GetMemoryMap{}, [this, &slot, gfn = command.gfn.value](const CommandReply& reply) {
    const auto* map = std::get_if<GetMemoryMapReply>(&reply.body);
    if (map == nullptr) return finish(slot, reply.error);
    for (std::size_t i = 0; i < map->slots.size(); ++i) {
      const kvmi_memory_slot memory = map->slots[i];
      const std::uint64_t first = memory.gpa / kPageSize, pages = memory.bytes / kPageSize;
      if (gfn >= first && gfn - first < pages) return finish(slot, 0, kvmi1::QueryPhysicalReply{Gfn{first}, pages});
    }
    finish(slot, ErrorCode::NoEntry);
  });
}

void AgentBridge::Impl::run(Slot& slot, const kvmi1::GetNextAvailableGfn&) {
  ask(GetMemoryMap{}, [this, &slot](const CommandReply& reply) {
    const auto* map = std::get_if<GetMemoryMapReply>(&reply.body);
    if (map == nullptr) return finish(slot, reply.error);
    Gfn free;
    if (!map->slots.empty()) {
      const kvmi_memory_slot last = map->slots[map->slots.size() - 1];
      free = gfn_of(Gpa{last.gpa + last.bytes});
    }
    finish(slot, 0, kvmi1::GfnReply{free});
  });
}

// ---- page rights ----

/// These dialects try every page of a list and tell the first error; KVMI 2 takes all or none. So a list that was
/// refused is tried again page by page. Until it is known that it need not be, the frames behind it wait: rights that they
/// give to the same pages must stand at the end.
struct AgentBridge::Impl::PageByPage {
  explicit PageByPage(Impl& impl) : step(impl) {}
  Step step;
  std::vector<kvmi_page_access_entry> runs;
  std::size_t run = 0;
  std::uint32_t page = 0;  ///< of that run
  ErrorCode first_error = ErrorCode::None;
};

void AgentBridge::Impl::run(Slot& slot, const kvmi1::SetPageAccess& command) {
  if (const std::int32_t refusal = refusal_of_view(command.view); refusal != 0) return finish(slot, refusal);
  auto task = std::make_shared<PageByPage>(*this);
  for (std::size_t i = 0; i < command.entries.size(); ++i) {
    const kvmi1::PageAccessEntry entry = command.entries[i];
    const bool padded = std::memcmp(entry.padding, kvmi1::PageAccessEntry{}.padding, sizeof entry.padding) != 0;
    if (padded || (entry.access & ~kAccessBits) != 0) {
      task->first_error = ErrorCode::Invalid;
      continue;
    }
    const std::uint64_t gpa = entry.gpa & ~(kPageSize - 1);
    if (wraps(gpa, kPageSize)) {
      if (!is_v6_or_v7()) task->first_error = ErrorCode::Invalid;  // see next_page()
      continue;
    }
    if (!task->runs.empty()) {
      kvmi_page_access_entry& last = task->runs.back();
      if (last.access == entry.access && last.gpa + std::uint64_t{last.pages} * kPageSize == gpa) {
        ++last.pages;
        continue;
      }
    }
    task->runs.push_back({gpa, 1, entry.access, {}});
  }
  if (task->runs.empty()) return finish(slot, task->first_error);

  std::vector<std::byte> bytes;
  Command pages = pages_command(task->runs, bytes);
  ask(
      std::move(pages),
      [this, &slot, task](const CommandReply& reply) {
        const bool refused_a_page = reply.error == ErrorCode::Fault || reply.error == ErrorCode::Invalid ||
                                    reply.error == ErrorCode::NotSupported || reply.error == ErrorCode::Busy;
        if (refused_a_page) return next_page(slot, task);
        finish(slot, reply.error != ErrorCode::None ? reply.error : task->first_error);
      },
      std::move(bytes));
}

void AgentBridge::Impl::next_page(Slot& slot, std::shared_ptr<PageByPage> task) {
  if (task->run == task->runs.size() || off_) return finish(slot, task->first_error);
  kvmi_page_access_entry entry = task->runs[task->run];
  entry.gpa += std::uint64_t{task->page} * kPageSize;
  entry.pages = 1;
  if (++task->page == task->runs[task->run].pages) {
    ++task->run;
    task->page = 0;
  }
  std::vector<std::byte> bytes;
  Command page = pages_command({entry}, bytes);
  ask(
      std::move(page),
      [this, &slot, task](const CommandReply& reply) {
        ErrorCode error = reply.error;
        // v6 and v7 ignore pages that are no memory; to v12 they are invalid.
        if (error == ErrorCode::Fault) error = is_v6_or_v7() ? ErrorCode::None : ErrorCode::Invalid;
        if (task->first_error == ErrorCode::None) task->first_error = error;
        next_page(slot, task);
      },
      std::move(bytes));
}

/// v6: one page after another.
struct AgentBridge::Impl::AccessQuery {
  explicit AccessQuery(Impl& impl) : step(impl) {}
  Step step;
  std::vector<std::uint64_t> gpas;
  std::vector<std::byte> access;
};

void AgentBridge::Impl::run(Slot& slot, const kvmi1::GetPageAccess& command) {
  if (const std::int32_t refusal = refusal_of_view(command.view); refusal != 0) return finish(slot, refusal);
  auto task = std::make_shared<AccessQuery>(*this);
  for (std::size_t i = 0; i < command.gpas.size(); ++i) task->gpas.push_back(command.gpas[i]);
  next_access(slot, std::move(task));
}

void AgentBridge::Impl::next_access(Slot& slot, std::shared_ptr<AccessQuery> task) {
  if (task->access.size() == task->gpas.size()) {
    return finish(slot, 0, kvmi1::GetPageAccessReply{task->access});
  }
  const Gpa page{task->gpas[task->access.size()] & ~(kPageSize - 1)};
  if (wraps(page.value, kPageSize)) return finish(slot, ErrorCode::NoEntry);
  ask(GetPageAccess{page, 1, AddressSpace::Normal}, [this, &slot, task](const CommandReply& reply) {
    const auto* found = std::get_if<GetPageAccessReply>(&reply.body);
    if (found == nullptr || found->entries.empty()) return finish(slot, of_memory(reply.error));
    task->access.push_back(std::byte{found->entries[0].access});
    next_access(slot, task);
  });
}

// ---- rfc2017: rights that it gives to a vCPU are the guest's here ----

void AgentBridge::Impl::run(Slot& slot, const kvmi1::GetVcpuPageAccess& command) {
  const Gpa page{command.gpa.value & ~(kPageSize - 1)};
  if (wraps(page.value, kPageSize)) return finish(slot, ErrorCode::NoEntry);
  ask(GetPageAccess{page, 1, AddressSpace::Normal}, [this, &slot](const CommandReply& reply) {
    const auto* found = std::get_if<GetPageAccessReply>(&reply.body);
    if (found == nullptr || found->entries.empty()) return finish(slot, of_memory(reply.error));
    finish(slot, 0, kvmi1::GetVcpuPageAccessReply{found->entries[0].access});
  });
}

void AgentBridge::Impl::run(Slot& slot, const kvmi1::SetVcpuPageAccess& command) {
  if ((command.access & ~std::uint32_t{kAccessBits}) != 0) return finish(slot, ErrorCode::Invalid);
  if (wraps(command.gpa.value & ~(kPageSize - 1), kPageSize)) return finish(slot, ErrorCode::Fault);
  const auto access = static_cast<std::uint8_t>(command.access);
  std::vector<std::byte> bytes;
  Command page = pages_command({{command.gpa.value & ~(kPageSize - 1), 1, access, {}}}, bytes);
  ask_and_finish(slot, std::move(page), std::move(bytes));
}

}  // namespace kvmid::bridge
