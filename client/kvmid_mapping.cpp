// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The C interface: guest RAM in place. Each function calls MappedMemory.

#include <utility>
#include <vector>

#include "client/c_support.h"
#include "client/mapped_memory.h"

using namespace kvmid;          // NOLINT(google-build-using-namespace): this file is the other side of one interface
using namespace kvmid::client;  // NOLINT(google-build-using-namespace)

struct kvmid_mapping {
  MappedMemory memory;
};

namespace {

int fail(MappedErrc error) {
  last_error = text_of(error);
  switch (error) {
    case MappedErrc::Revoked: return -KVMID_EREVOKED;
    case MappedErrc::AskKvmid: return -KVMID_EPATCHED;
    case MappedErrc::Fault: return -KVMI_EFAULT;
    case MappedErrc::Unstable: return -KVMID_EUNSTABLE;
  }
  return -KVMID_ESYSTEM;
}

template <class F>
int reading(const kvmid_mapping* mapping, const void* buffer, std::size_t size, F body) noexcept {
  return guarded([&] {
    if (mapping == nullptr) return bad("the mapping is NULL");
    if (buffer == nullptr && size != 0) return bad("the buffer is NULL");
    return body(mapping->memory);
  });
}

std::span<std::byte> room(void* buffer, std::size_t size) {
  return buffer == nullptr ? std::span<std::byte>() : std::span(static_cast<std::byte*>(buffer), size);
}

int cookie_of(const Result<std::uint64_t, MappedErrc>& read, std::uint64_t* cookie) {
  if (!read) return fail(read.error());
  store(cookie, *read);
  return 0;
}

}  // namespace

extern "C" {

int kvmid_map_memory(kvmid_agent* agent, std::uint32_t flags, kvmid_mapping** mapping) {
  return with(agent, [&](AgentClient& client) {
    if (mapping == nullptr) return bad("the out parameter is NULL");
    *mapping = nullptr;
    if ((flags & ~KVMID_MAP_UNSEALED) != 0) return bad("unknown flags");
    const auto granted = client.grant_memory();
    if (!granted) return client::fail(granted.error());
    MappedMemory::Options options;
    options.allow_unsealed_ram = (flags & KVMID_MAP_UNSEALED) != 0;
    auto memory = MappedMemory::map(*granted, options);
    if (!memory) return client::fail(memory.error());
    *mapping = new kvmid_mapping{std::move(*memory)};
    return 0;
  });
}

void kvmid_unmap(kvmid_mapping* mapping) { delete mapping; }

std::uint64_t kvmid_mapped_bytes(const kvmid_mapping* mapping) {
  return mapping == nullptr ? 0 : mapping->memory.ram_bytes();
}

int kvmid_mapped_revoked(const kvmid_mapping* mapping) {
  return mapping == nullptr || mapping->memory.revoked() ? 1 : 0;
}

int kvmid_mapped_read(const kvmid_mapping* mapping, std::uint64_t gpa, void* buffer, std::size_t size) {
  return reading(mapping, buffer, size, [&](const MappedMemory& memory) {
    const auto read = memory.read(Gpa{gpa}, room(buffer, size));
    return read ? 0 : fail(read.error());
  });
}

int kvmid_mapped_read_stable(const kvmid_mapping* mapping, std::uint64_t gpa, void* buffer, std::size_t size,
                             std::uint64_t* cookie) {
  return reading(mapping, buffer, size, [&](const MappedMemory& memory) {
    return cookie_of(memory.read_stable(Gpa{gpa}, room(buffer, size)), cookie);
  });
}

int kvmid_mapped_read_scatter(const kvmid_mapping* mapping, const kvmi_read_range* ranges, std::size_t n, void* buffer,
                              std::size_t size, std::uint64_t* cookie) {
  return reading(mapping, buffer, size, [&](const MappedMemory& memory) {
    if (ranges == nullptr && n != 0) return bad("the ranges are NULL");
    std::vector<MappedRange> parts;
    parts.reserve(n);
    auto left = room(buffer, size);
    for (const auto& range : items(ranges, n)) {
      if (range.size == 0) return bad("a range has 0 bytes");
      if (range.size > left.size()) return bad("the ranges are more than the buffer takes");
      parts.push_back({Gpa{range.gpa}, left.first(range.size)});
      left = left.subspan(range.size);
    }
    if (!left.empty()) return bad("the buffer is larger than the ranges");
    return cookie_of(memory.read_scatter(parts), cookie);
  });
}

int kvmid_mapped_changes(const kvmid_mapping* mapping, std::uint64_t gpa, std::size_t size, std::uint64_t* changes) {
  return reading(mapping, changes, 1, [&](const MappedMemory& memory) {
    return cookie_of(memory.changes_of(Gpa{gpa}, size), changes);
  });
}

}  // extern "C"
