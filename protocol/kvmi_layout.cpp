// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The layout of kvmi.h, held fast: a change of a size or an offset breaks the ABI and must not compile.
// A wire struct has no hidden padding, so that copying it never sends bytes that nobody set.

#include <cstddef>
#include <type_traits>

#include "protocol/kvmi.h"

namespace {

template <class T, std::size_t size>
constexpr bool kIsWireStruct = sizeof(T) == size && std::is_trivially_copyable_v<T> && std::is_standard_layout_v<T> &&
                               std::has_unique_object_representations_v<T>;

static_assert(kIsWireStruct<kvmi_msg_hdr, 8>);
static_assert(kIsWireStruct<kvmi_x86_regs, 144>);
static_assert(kIsWireStruct<kvmi_x86_segment, 24>);
static_assert(kIsWireStruct<kvmi_x86_dtable, 16>);
static_assert(kIsWireStruct<kvmi_x86_sregs, 312>);
static_assert(kIsWireStruct<kvmi_x86_event_msrs, 72>);
static_assert(kIsWireStruct<kvmi_x86_msr, 16>);
static_assert(kIsWireStruct<kvmi_error, 8>);
static_assert(kIsWireStruct<kvmi_get_version_reply, 24>);
static_assert(kIsWireStruct<kvmi_get_guests, 8>);
static_assert(kIsWireStruct<kvmi_guest_entry, 88>);
static_assert(kIsWireStruct<kvmi_get_guests_reply, 8>);
static_assert(kIsWireStruct<kvmi_get_guest_info_reply, 32>);
static_assert(kIsWireStruct<kvmi_pause_vcpu, 8>);
static_assert(kIsWireStruct<kvmi_get_registers, 8>);
static_assert(kIsWireStruct<kvmi_get_registers_reply, 464>);
static_assert(kIsWireStruct<kvmi_set_registers, 152>);
static_assert(kIsWireStruct<kvmi_get_cpuid, 16>);
static_assert(kIsWireStruct<kvmi_get_cpuid_reply, 16>);
static_assert(kIsWireStruct<kvmi_get_page_access, 16>);
static_assert(kIsWireStruct<kvmi_page_access_entry, 16>);
static_assert(kIsWireStruct<kvmi_get_page_access_reply, 8>);
static_assert(kIsWireStruct<kvmi_set_page_access, 8>);
static_assert(kIsWireStruct<kvmi_inject_exception, 16>);
static_assert(kIsWireStruct<kvmi_read_physical, 8>);
static_assert(kIsWireStruct<kvmi_read_range, 16>);
static_assert(kIsWireStruct<kvmi_read_physical_reply, 8>);
static_assert(kIsWireStruct<kvmi_write_physical, 24>);
static_assert(kIsWireStruct<kvmi_write_physical_reply, 8>);
static_assert(kIsWireStruct<kvmi_grant_memory, 8>);
static_assert(kIsWireStruct<kvmi_grant_memory_reply, 24>);
static_assert(kIsWireStruct<kvmi_control_events, 16>);
static_assert(kIsWireStruct<kvmi_control_events_reply, 8>);
static_assert(kIsWireStruct<kvmi_control_cr, 8>);
static_assert(kIsWireStruct<kvmi_control_msr, 8>);
static_assert(kIsWireStruct<kvmi_translate_gva, 16>);
static_assert(kIsWireStruct<kvmi_translate_gva_reply, 24>);
static_assert(kIsWireStruct<kvmi_control_singlestep, 8>);
static_assert(kIsWireStruct<kvmi_set_filter, 8>);
static_assert(kIsWireStruct<kvmi_filter_term, 24>);
static_assert(kIsWireStruct<kvmi_get_xsave, 8>);
static_assert(kIsWireStruct<kvmi_set_xsave, 8>);
static_assert(kIsWireStruct<kvmi_get_xcr, 8>);
static_assert(kIsWireStruct<kvmi_get_xcr_reply, 8>);
static_assert(kIsWireStruct<kvmi_get_memory_map, 8>);
static_assert(kIsWireStruct<kvmi_memory_slot, 24>);
static_assert(kIsWireStruct<kvmi_get_memory_map_reply, 8>);
static_assert(kIsWireStruct<kvmi_memory_map_changed, 48>);
static_assert(kIsWireStruct<kvmi_event, 568>);
static_assert(kIsWireStruct<kvmi_event_reply, 16>);
static_assert(kIsWireStruct<kvmi_event_unhook, 8>);
static_assert(kIsWireStruct<kvmi_event_cr, 24>);
static_assert(kIsWireStruct<kvmi_event_msr, 24>);
static_assert(kIsWireStruct<kvmi_event_value_reply, 8>);
static_assert(kIsWireStruct<kvmi_event_xsetbv, 24>);
static_assert(kIsWireStruct<kvmi_event_breakpoint, 16>);
static_assert(kIsWireStruct<kvmi_event_page_fault, 24>);
static_assert(kIsWireStruct<kvmi_event_trap, 16>);
static_assert(kIsWireStruct<kvmi_event_descriptor, 8>);
static_assert(kIsWireStruct<kvmi_event_singlestep, 8>);
static_assert(kIsWireStruct<kvmi_event_cpuid, 8>);
static_assert(kIsWireStruct<kvmi_event_access, 88>);
static_assert(kIsWireStruct<kvmi_event_access_reply, 64>);
static_assert(kIsWireStruct<kvmi_notice, 24>);
static_assert(kIsWireStruct<kvmi_guest_on, 88>);
static_assert(kIsWireStruct<kvmi_guest_off, 24>);
static_assert(kIsWireStruct<kvmi_hello, 96>);
static_assert(kIsWireStruct<kvmi_welcome, 272>);
static_assert(kIsWireStruct<kvmi_handshake, 104>);
static_assert(kIsWireStruct<kvmi_handshake_kvmi2, 24>);
static_assert(kIsWireStruct<kvmi_handshake_answer, 24>);
static_assert(kIsWireStruct<kvmi_handshake_answer_kvmi2, 136>);

static_assert(offsetof(kvmi_msg_hdr, id) == 0);
static_assert(offsetof(kvmi_msg_hdr, size) == 2);
static_assert(offsetof(kvmi_msg_hdr, seq) == 4);
static_assert(offsetof(kvmi_x86_regs, rsp) == 48);
static_assert(offsetof(kvmi_x86_regs, r8) == 64);
static_assert(offsetof(kvmi_x86_regs, rip) == 128);
static_assert(offsetof(kvmi_x86_regs, rflags) == 136);
static_assert(offsetof(kvmi_x86_segment, selector) == 12);
static_assert(offsetof(kvmi_x86_segment, unusable) == 22);
static_assert(offsetof(kvmi_x86_sregs, tr) == 144);
static_assert(offsetof(kvmi_x86_sregs, gdt) == 192);
static_assert(offsetof(kvmi_x86_sregs, cr0) == 224);
static_assert(offsetof(kvmi_x86_sregs, efer) == 264);
static_assert(offsetof(kvmi_x86_sregs, interrupt_bitmap) == 280);
static_assert(offsetof(kvmi_x86_event_msrs, cstar) == 48);
static_assert(offsetof(kvmi_x86_event_msrs, kernel_gs_base) == 64);
static_assert(offsetof(kvmi_x86_msr, value) == 8);
static_assert(offsetof(kvmi_error, text_size) == 4);
static_assert(offsetof(kvmi_get_version_reply, commands) == 8);
static_assert(offsetof(kvmi_get_version_reply, events) == 16);
static_assert(offsetof(kvmi_guest_entry, name) == 16);
static_assert(offsetof(kvmi_guest_entry, state) == 84);
static_assert(offsetof(kvmi_get_guest_info_reply, tsc_hz) == 8);
static_assert(offsetof(kvmi_get_guest_info_reply, max_gpa) == 24);
static_assert(offsetof(kvmi_get_registers_reply, msr_count) == 4);
static_assert(offsetof(kvmi_get_registers_reply, regs) == 8);
static_assert(offsetof(kvmi_get_registers_reply, sregs) == 152);
static_assert(offsetof(kvmi_set_registers, regs) == 8);
static_assert(offsetof(kvmi_get_page_access, address_space) == 12);
static_assert(offsetof(kvmi_page_access_entry, access) == 12);
static_assert(offsetof(kvmi_inject_exception, address) == 8);
static_assert(offsetof(kvmi_write_physical, size) == 8);
static_assert(offsetof(kvmi_write_physical, flags) == 14);
static_assert(offsetof(kvmi_write_physical, cookie) == 16);
static_assert(offsetof(kvmi_control_events, events) == 8);
static_assert(offsetof(kvmi_control_cr, cr) == 4);
static_assert(offsetof(kvmi_control_msr, msr) == 4);
static_assert(offsetof(kvmi_translate_gva_reply, access) == 16);
static_assert(offsetof(kvmi_set_filter, count) == 4);
static_assert(offsetof(kvmi_filter_term, value) == 8);
static_assert(offsetof(kvmi_filter_term, operand) == 16);
static_assert(offsetof(kvmi_memory_slot, bytes) == 8);
static_assert(offsetof(kvmi_memory_slot, address_space) == 16);
static_assert(offsetof(kvmi_memory_slot, flags) == 18);
static_assert(offsetof(kvmi_event, event) == 2);
static_assert(offsetof(kvmi_event, actions) == 4);
static_assert(offsetof(kvmi_event, deadline_us) == 8);
static_assert(offsetof(kvmi_event, cookie) == 16);
static_assert(offsetof(kvmi_event, regs) == 24);
static_assert(offsetof(kvmi_event, sregs) == 168);
static_assert(offsetof(kvmi_event, msrs) == 480);
static_assert(offsetof(kvmi_event, dr6) == 552);
static_assert(offsetof(kvmi_event, dr7) == 560);
static_assert(offsetof(kvmi_event_reply, action) == 3);
static_assert(offsetof(kvmi_event_reply, cookie) == 8);
static_assert(offsetof(kvmi_event_cr, new_value) == 16);
static_assert(offsetof(kvmi_event_page_fault, access) == 16);
static_assert(offsetof(kvmi_event_trap, error_code) == 4);
static_assert(offsetof(kvmi_event_access, access) == 16);
static_assert(offsetof(kvmi_event_access, data) == 24);
static_assert(offsetof(kvmi_notice, error_code) == 8);
static_assert(offsetof(kvmi_notice, seq) == 16);
static_assert(offsetof(kvmi_guest_off, reason) == 16);
static_assert(offsetof(kvmi_hello, uuid) == 16);
static_assert(offsetof(kvmi_hello, name) == 32);
static_assert(offsetof(kvmi_welcome, commands) == 40);
static_assert(offsetof(kvmi_welcome, vcpu_count) == 56);
static_assert(offsetof(kvmi_welcome, uuid) == 64);
static_assert(offsetof(kvmi_welcome, text) == 144);
static_assert(offsetof(kvmi_handshake, uuid) == 4);
static_assert(offsetof(kvmi_handshake, start_time) == 24);
static_assert(offsetof(kvmi_handshake, name) == 32);
static_assert(offsetof(kvmi_handshake, max_gpa) == 96);
static_assert(offsetof(kvmi_handshake_kvmi2, ram_bytes) == 16);
static_assert(offsetof(kvmi_handshake_answer, cookie_hash) == 4);
static_assert(offsetof(kvmi_handshake_answer_kvmi2, text) == 8);

// Header and the largest payload are 64 KiB.
static_assert(sizeof(kvmi_msg_hdr) + KVMI_MAX_PAYLOAD == 65536);

}  // namespace
