// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The C interface: one function for each command.

#include <algorithm>
#include <cstring>

#include "client/c_support.h"
#include "client/wire_copy.h"

using namespace kvmid;          // NOLINT(google-build-using-namespace): this file is the other side of one interface
using namespace kvmid::client;  // NOLINT(google-build-using-namespace)

extern "C" {

int kvmid_get_version(kvmid_agent* agent, kvmi_get_version_reply* reply) {
  return with(agent, [&](AgentClient& client) {
    const auto got = client.get_version();
    if (!got) return fail(got.error());
    store(reply, kvmi_get_version_reply{got->version, got->max_payload, got->commands.bits, got->events.bits});
    return 0;
  });
}

int kvmid_list_guests(kvmid_agent* agent, kvmi_guest_entry* entries, std::size_t max) {
  return with(agent, [&](AgentClient& client) {
    const auto guests = client.list_guests();
    if (!guests) return fail(guests.error());
    const std::size_t fit = entries == nullptr ? 0 : std::min(max, guests->size());
    for (std::size_t i = 0; i < fit; ++i) entries[i] = to_wire((*guests)[i]);
    return count(guests->size());
  });
}

int kvmid_get_guest_info(kvmid_agent* agent, kvmi_get_guest_info_reply* reply) {
  return with(agent, [&](AgentClient& client) {
    const auto got = client.guest_info();
    if (!got) return fail(got.error());
    kvmi_get_guest_info_reply out{};
    out.vcpu_count = got->vcpu_count;
    out.arch = got->arch;
    out.tsc_hz = got->tsc_hz;
    out.physical_address_bits = got->physical_address_bits;
    out.linear_address_bits = got->linear_address_bits;
    out.execute_only = got->execute_only ? 1 : 0;
    out.max_gpa = got->max_gpa;
    store(reply, out);
    return 0;
  });
}

int kvmid_pause_vcpu(kvmid_agent* agent, std::uint16_t vcpu) {
  return with(agent, [&](AgentClient& client) { return status(client.pause_vcpu(VcpuId{vcpu})); });
}

int kvmid_get_registers(kvmid_agent* agent, std::uint16_t vcpu, kvmi_x86_regs* regs, kvmi_x86_sregs* sregs,
                        std::uint8_t* mode) {
  return with(agent, [&](AgentClient& client) {
    const auto got = client.get_registers(VcpuId{vcpu});
    if (!got) return fail(got.error());
    store(regs, got->regs);
    store(sregs, got->sregs);
    store(mode, got->mode);
    return 0;
  });
}

int kvmid_get_msr(kvmid_agent* agent, std::uint16_t vcpu, std::uint32_t msr, std::uint64_t* value) {
  return with(agent, [&](AgentClient& client) {
    const auto got = client.get_registers(VcpuId{vcpu}, std::span(&msr, 1));
    if (!got) return fail(got.error());
    if (got->msrs.size() != 1 || got->msrs[0].index != msr) {
      return fail({ClientErrc::Protocol, ErrorCode::None, "kvmid's reply to GET_REGISTERS has another MSR", 0});
    }
    store(value, got->msrs[0].value);
    return 0;
  });
}

int kvmid_set_registers(kvmid_agent* agent, std::uint16_t vcpu, const kvmi_x86_regs* regs) {
  return with(agent, [&](AgentClient& client) {
    return regs == nullptr ? bad("the registers are NULL") : status(client.set_registers(VcpuId{vcpu}, *regs));
  });
}

int kvmid_shutdown_guest(kvmid_agent* agent) {
  return with(agent, [&](AgentClient& client) { return status(client.shutdown_guest()); });
}

int kvmid_get_cpuid(kvmid_agent* agent, std::uint16_t vcpu, std::uint32_t function, std::uint32_t index,
                    kvmi_get_cpuid_reply* reply) {
  return with(agent, [&](AgentClient& client) {
    const auto got = client.get_cpuid(VcpuId{vcpu}, function, index);
    if (!got) return fail(got.error());
    store(reply, kvmi_get_cpuid_reply{got->eax, got->ebx, got->ecx, got->edx});
    return 0;
  });
}

int kvmid_get_page_access(kvmid_agent* agent, std::uint64_t gpa, std::uint32_t pages, kvmi_page_access_entry* entries,
                          std::size_t max) {
  return with(agent, [&](AgentClient& client) {
    const auto got = client.get_page_access(Gpa{gpa}, pages);
    if (!got) return fail(got.error());
    if (entries != nullptr) std::copy_n(got->begin(), std::min(max, got->size()), entries);
    return count(got->size());
  });
}

int kvmid_set_page_access(kvmid_agent* agent, const kvmi_page_access_entry* entries, std::size_t n) {
  return with(agent, [&](AgentClient& client) { return status(client.set_page_access(items(entries, n))); });
}

int kvmid_inject_exception(kvmid_agent* agent, const kvmi_inject_exception* exception) {
  return with(agent, [&](AgentClient& client) {
    if (exception == nullptr) return bad("the exception is NULL");
    return status(client.inject_exception({VcpuId{exception->vcpu}, exception->vector, exception->has_error_code != 0,
                                           exception->error_code, exception->address}));
  });
}

int kvmid_read_physical(kvmid_agent* agent, std::uint64_t gpa, void* buffer, std::size_t size, std::uint64_t* cookie) {
  return with(agent, [&](AgentClient& client) {
    if (buffer == nullptr && size != 0) return bad("the buffer is NULL");
    const auto got = client.read_physical(Gpa{gpa}, size);
    if (!got) return fail(got.error());
    if (size != 0) std::memcpy(buffer, got->data.data(), size);
    store(cookie, got->cookie);
    return 0;
  });
}

int kvmid_read_scatter(kvmid_agent* agent, std::uint16_t address_space, const kvmi_read_range* ranges,
                       std::size_t count, void* buffer, std::size_t size, std::uint64_t* cookie) {
  return with(agent, [&](AgentClient& client) {
    if ((buffer == nullptr && size != 0) || (ranges == nullptr && count != 0)) return bad("a buffer is NULL");
    std::vector<PhysicalRange> parts;
    std::span<std::byte> left(static_cast<std::byte*>(buffer), size);
    for (const auto& range : items(ranges, count)) {
      if (range.size == 0) return bad("a range has 0 bytes");
      if (range.size > left.size()) return bad("the ranges are more than the buffer takes");
      parts.push_back({Gpa{range.gpa}, left.first(range.size)});
      left = left.subspan(range.size);
    }
    if (!left.empty()) return bad("the buffer is larger than the ranges");
    const auto got = client.read_scatter(parts, static_cast<AddressSpace>(address_space));
    if (!got) return fail(got.error());
    store(cookie, *got);
    return 0;
  });
}

int kvmid_read_virtual(kvmid_agent* agent, std::uint16_t vcpu, std::uint64_t gva, void* buffer, std::size_t size,
                       std::uint64_t* cookie) {
  const kvmid_gva_range range{gva, size};
  return kvmid_read_virtual_ranges(agent, vcpu, &range, size == 0 ? 0 : 1, buffer, size, cookie);
}

int kvmid_read_virtual_ranges(kvmid_agent* agent, std::uint16_t vcpu, const kvmid_gva_range* ranges, std::size_t count,
                              void* buffer, std::size_t size, std::uint64_t* cookie) {
  return with(agent, [&](AgentClient& client) {
    if ((buffer == nullptr && size != 0) || (ranges == nullptr && count != 0)) return bad("a buffer is NULL");
    std::vector<VirtualRange> parts;
    std::span<std::byte> left(static_cast<std::byte*>(buffer), size);
    for (const auto& range : items(ranges, count)) {
      if (range.size == 0) return bad("a range has 0 bytes");
      if (range.size > left.size()) return bad("the ranges are more than the buffer takes");
      parts.push_back({Gva{range.gva}, left.first(range.size)});
      left = left.subspan(range.size);
    }
    if (!left.empty()) return bad("the buffer is larger than the ranges");
    const auto got = client.read_virtual(VcpuId{vcpu}, parts);
    if (!got) return fail(got.error());
    store(cookie, *got);
    return 0;
  });
}

int kvmid_write_physical(kvmid_agent* agent, std::uint64_t gpa, const void* data, std::size_t size, std::uint16_t flags,
                         std::uint64_t* cookie, const void* expected) {
  return with(agent, [&](AgentClient& client) {
    const bool has_cookie = (flags & KVMI_WRITE_COOKIE) != 0;
    const bool expects = (flags & KVMI_WRITE_EXPECT) != 0;
    if (data == nullptr) return bad("the data are NULL");
    if (has_cookie && cookie == nullptr) return bad("KVMI_WRITE_COOKIE is set and the cookie is NULL");
    if (expects != (expected != nullptr)) return bad("`expected` goes with KVMI_WRITE_EXPECT, and only with it");
    WriteOptions options;
    options.flags = flags;
    if (has_cookie) options.cookie = *cookie;
    if (expects) options.expected = bytes(expected, size);
    std::uint64_t stale = cookie == nullptr ? 0 : *cookie;
    const auto done = client.write_physical(Gpa{gpa}, bytes(data, size), options, &stale);
    store(cookie, done ? *done : stale);
    return status(done);
  });
}

int kvmid_write_if_unchanged(kvmid_agent* agent, std::uint64_t gpa, const void* data, std::size_t size,
                             std::uint64_t* cookie) {
  return with(agent, [&](AgentClient& client) {
    if (data == nullptr) return bad("the data are NULL");
    if (cookie == nullptr) return bad("the cookie is NULL");
    return status(client.write_if_unchanged(Gpa{gpa}, bytes(data, size), *cookie));
  });
}

int kvmid_grant_memory(kvmid_agent* agent, int* fds, std::size_t max, kvmi_grant_memory_reply* reply) {
  return with(agent, [&](AgentClient& client) {
    if (fds == nullptr) return bad("there is no room for descriptors");
    auto got = client.grant_memory();
    if (!got) return fail(got.error());
    const std::size_t fit = std::min(max, got->fds.size());
    store(reply, kvmi_grant_memory_reply{got->ram_bytes, got->generation_bytes,
                                         static_cast<std::uint32_t>(got->fds.size()), 0});
    for (std::size_t i = 0; i < fit; ++i) fds[i] = got->fds[i].release();
    return count(fit);
  });
}

int kvmid_control_events(kvmid_agent* agent, std::uint16_t vcpu, std::uint8_t operation, std::uint8_t role,
                         std::uint64_t events, std::uint64_t* enabled) {
  return with(agent, [&](AgentClient& client) {
    if (operation > KVMI_OP_DISABLE) return bad("there is no such operation");
    if (role > KVMI_ROLE_OBSERVER) return bad("there is no such role");
    const auto got = client.control_events(VcpuId{vcpu}, static_cast<Operation>(operation), static_cast<Role>(role),
                                           EventSet{events});
    if (!got) return fail(got.error());
    store(enabled, got->bits);
    return 0;
  });
}

int kvmid_control_cr(kvmid_agent* agent, std::uint16_t vcpu, std::uint32_t cr, int enable) {
  return with(agent, [&](AgentClient& client) { return status(client.control_cr(VcpuId{vcpu}, cr, enable != 0)); });
}

int kvmid_control_msr(kvmid_agent* agent, std::uint16_t vcpu, std::uint32_t msr, int enable) {
  return with(agent, [&](AgentClient& client) { return status(client.control_msr(VcpuId{vcpu}, msr, enable != 0)); });
}

int kvmid_translate_gva(kvmid_agent* agent, std::uint16_t vcpu, std::uint64_t gva, kvmi_translate_gva_reply* reply) {
  return with(agent, [&](AgentClient& client) {
    const auto got = client.translate_gva(VcpuId{vcpu}, Gva{gva});
    if (!got) return fail(got.error());
    kvmi_translate_gva_reply out{};
    out.gpa = got->gpa.value;
    out.page_bytes = got->page_bytes;
    out.access = got->access;
    out.user = got->user ? 1 : 0;
    store(reply, out);
    return 0;
  });
}

int kvmid_control_singlestep(kvmid_agent* agent, std::uint16_t vcpu, int enable) {
  return with(agent, [&](AgentClient& client) { return status(client.control_singlestep(VcpuId{vcpu}, enable != 0)); });
}

int kvmid_set_filter(kvmid_agent* agent, std::uint16_t vcpu, std::uint8_t event, std::uint8_t action,
                     const kvmi_filter_term* terms, std::size_t n) {
  return with(agent, [&](AgentClient& client) {
    if (event >= kEventCount) return bad("there is no such event");
    if (action >= kActionCount) return bad("there is no such action");
    return status(
        client.set_filter(VcpuId{vcpu}, static_cast<EventKind>(event), static_cast<Action>(action), items(terms, n)));
  });
}

int kvmid_get_xsave(kvmid_agent* agent, std::uint16_t vcpu, void* area, std::size_t max) {
  return with(agent, [&](AgentClient& client) {
    const auto got = client.get_xsave(VcpuId{vcpu});
    if (!got) return fail(got.error());
    if (area != nullptr) std::copy_n(got->begin(), std::min(max, got->size()), static_cast<std::byte*>(area));
    return count(got->size());
  });
}

int kvmid_set_xsave(kvmid_agent* agent, std::uint16_t vcpu, const void* area, std::size_t size) {
  return with(agent, [&](AgentClient& client) { return status(client.set_xsave(VcpuId{vcpu}, bytes(area, size))); });
}

int kvmid_get_xcr(kvmid_agent* agent, std::uint16_t vcpu, std::uint32_t xcr, std::uint64_t* value) {
  return with(agent, [&](AgentClient& client) {
    const auto got = client.get_xcr(VcpuId{vcpu}, xcr);
    if (!got) return fail(got.error());
    store(value, *got);
    return 0;
  });
}

int kvmid_get_memory_map(kvmid_agent* agent, std::uint16_t address_space, kvmi_memory_slot* slots, std::size_t max) {
  return with(agent, [&](AgentClient& client) {
    if (address_space > KVMI_ADDRESS_SPACE_SMM) return bad("there is no such address space");
    const auto got = client.get_memory_map(static_cast<AddressSpace>(address_space));
    if (!got) return fail(got.error());
    if (slots != nullptr) std::copy_n(got->begin(), std::min(max, got->size()), slots);
    return count(got->size());
  });
}

}  // extern "C"
