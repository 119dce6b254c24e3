/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef KVMID_H
#define KVMID_H

/*
 * libkvmid: the C interface for agents. C++ programs may rather use client/agent_client.h, which this is made of.
 *
 * Shapes:   structs of the protocol are those of kvmi.h; connections and batches are opaque.
 * Errors:   functions return 0 (or a count) on success and a negative number on failure: -KVMI_E* as kvmid answered
 *           it, or -KVMID_E* for what happened on this side. kvmid_last_error() then has a sentence for people.
 * Units:    timeouts are milliseconds. 0 does not wait; negative waits as long as the connection lives. Functions that
 *           take none use kvmid_options.timeout_ms.
 * Threads:  none inside; one connection is used by one thread at a time, several connections by several threads.
 * Lifetime: out parameters are copies and belong to the caller. No exception leaves the library.
 */

#include <stddef.h>
#include <stdint.h>

#include "protocol/kvmi.h"

#ifdef __cplusplus
extern "C" {
#endif

#pragma GCC visibility push(default) /* the rest of the shared object stays hidden */

/* Besides KVMI_E*: what this library itself found. */
enum {
  KVMID_ECLOSED = 2001,      /* kvmid closed the connection, or kvmid_close was called */
  KVMID_EUNREACHABLE = 2002, /* there is no socket, or nobody listens: kvmid is not running */
  KVMID_EDENIED = 2003,      /* the operating system forbids this user the socket */
  KVMID_EPROTOCOL = 2004,    /* kvmid sent what is no message; the connection was closed */
  KVMID_ETIMEOUT = 2005,     /* this library stopped waiting; the answer may still come */
  KVMID_EOVERFLOW = 2006,    /* more messages came than were taken; the connection was closed */
  KVMID_ESYSTEM = 2007,      /* a system call failed for another reason */
  KVMID_EREVOKED = 2008,     /* mapped memory: the grant has ended, or kvmid is gone; unmap it */
  KVMID_EPATCHED = 2009,     /* mapped memory: patches are laid there, so ask kvmid: kvmid_read_physical */
  KVMID_EUNSTABLE = 2010,    /* mapped memory: it kept changing; kvmid_read_physical waits for its turn */
};

/* What went wrong last on this thread; "" when nothing did. Valid until the thread's next call of this library. */
const char* kvmid_last_error(void);
/* "EPERM", "ECLOSED"...: a short name of -KVMI_E* or -KVMID_E*, whatever the sign. */
const char* kvmid_error_name(int error);

/* ---- connecting ---- */

typedef struct kvmid_agent kvmid_agent;

struct kvmid_options {
  size_t struct_size;    /* sizeof(struct kvmid_options) */
  const char* socket;    /* path, "@name" (abstract) or "cid:port" (vsock); NULL: /run/kvmid/agent.sock */
  const char* name;      /* of the agent, 1 to 63 printable ASCII characters; NULL: "agent" */
  uint32_t flags;        /* KVMI_HELLO_* */
  int32_t timeout_ms;    /* 0: 5000 */
  uint32_t messages_max; /* messages kept until they are taken; 0: 4096 */
  uint32_t padding;
};
/* `options` may be NULL everywhere: the defaults. */

/* A control connection: lists guests, tells which come and go. */
int kvmid_connect(const struct kvmid_options* options, kvmid_agent** agent);
/* Attached to one guest: its uuid, its name, or a unique beginning of its uuid. */
int kvmid_attach(const struct kvmid_options* options, const char* guest, kvmid_agent** agent);
/* Says hello on a connected stream socket. uuid NULL: a control connection. The descriptor belongs to the library from
 * here on, also on failure. */
int kvmid_adopt(const struct kvmid_options* options, int fd, const uint8_t* uuid, kvmid_agent** agent);
/* Closes and frees; kvmid withdraws what the agent had set up. NULL is allowed. */
void kvmid_close(kvmid_agent* agent);

/* For a poll loop of one's own; -1 when the connection is lost. Take pending messages before sleeping. */
int kvmid_fd(const kvmid_agent* agent);
size_t kvmid_pending(const kvmid_agent* agent);
uint64_t kvmid_dropped(const kvmid_agent* agent);
/* What kvmid said when it let the agent in. */
int kvmid_get_welcome(const kvmid_agent* agent, struct kvmi_welcome* welcome);

/* uuid <-> the 36 characters that people write. */
int kvmid_parse_uuid(const char* text, uint8_t uuid[16]);
void kvmid_format_uuid(const uint8_t uuid[16], char text[37]);

/* ---- what comes without having been asked for ---- */

struct kvmid_event {
  uint32_t seq; /* the reply carries it */
  uint32_t padding;
  struct kvmi_event common; /* common.event says which of the following is set */
  union {
    struct kvmi_event_unhook unhook;
    struct kvmi_event_cr cr;
    struct kvmi_event_msr msr;
    struct kvmi_event_xsetbv xsetbv;
    struct kvmi_event_breakpoint breakpoint;
    struct kvmi_event_page_fault page_fault;
    struct kvmi_event_trap trap;
    struct kvmi_event_descriptor descriptor;
    struct kvmi_event_singlestep singlestep;
    struct kvmi_event_cpuid cpuid;
    struct kvmi_event_access access;
  } data;
};

#define KVMID_TEXT_MAX 256u

struct kvmid_message {
  uint32_t kind; /* KVMI_MSG_EVENT, KVMI_MSG_NOTICE, KVMI_MSG_GUEST_ON or KVMI_MSG_GUEST_OFF */
  uint32_t padding;
  union {
    struct kvmid_event event;
    struct kvmi_notice notice;
    struct kvmi_guest_on guest_on;
    struct kvmi_guest_off guest_off;
  } data;
  char text[KVMID_TEXT_MAX]; /* of a notice or GUEST_OFF, zero-terminated, cut to fit */
};

/* 1: a message; 0: none came in time. */
int kvmid_next_message(kvmid_agent* agent, struct kvmid_message* message, int timeout_ms);
/* 1: an event; 0: none came in time. Other messages stay for kvmid_next_message. */
int kvmid_wait_event(kvmid_agent* agent, struct kvmid_event* event, int timeout_ms);

/* Answers an event that is decided here (KVMI_EVENT_F_DECIDE). */
int kvmid_reply(kvmid_agent* agent, const struct kvmid_event* event, uint8_t action);
/* CR, MSR, XSETBV: allows with another value than the guest's. */
int kvmid_reply_value(kvmid_agent* agent, const struct kvmid_event* event, uint8_t action, uint64_t value);
/* `reply` as it is, then the specific part of the event's reply (`size` bytes, may be 0). */
int kvmid_reply_raw(kvmid_agent* agent, uint32_t seq, const struct kvmi_event_reply* reply, const void* specific,
                    size_t size);

/* ---- commands; PROTOCOL.md has an entry for each ---- */

int kvmid_get_version(kvmid_agent* agent, struct kvmi_get_version_reply* reply);
/* Fills at most `max` entries and returns how many guests there are. Control connections only. */
int kvmid_list_guests(kvmid_agent* agent, struct kvmi_guest_entry* entries, size_t max);
int kvmid_get_guest_info(kvmid_agent* agent, struct kvmi_get_guest_info_reply* reply);
int kvmid_pause_vcpu(kvmid_agent* agent, uint16_t vcpu);
/* regs, sregs and mode may be NULL. */
int kvmid_get_registers(kvmid_agent* agent, uint16_t vcpu, struct kvmi_x86_regs* regs, struct kvmi_x86_sregs* sregs,
                        uint8_t* mode);
int kvmid_get_msr(kvmid_agent* agent, uint16_t vcpu, uint32_t msr, uint64_t* value);
int kvmid_set_registers(kvmid_agent* agent, uint16_t vcpu, const struct kvmi_x86_regs* regs);
int kvmid_shutdown_guest(kvmid_agent* agent);
int kvmid_get_cpuid(kvmid_agent* agent, uint16_t vcpu, uint32_t function, uint32_t index,
                    struct kvmi_get_cpuid_reply* reply);
/* Fills at most `max` entries and returns how many there are. */
int kvmid_get_page_access(kvmid_agent* agent, uint64_t gpa, uint32_t pages, struct kvmi_page_access_entry* entries,
                          size_t max);
int kvmid_set_page_access(kvmid_agent* agent, const struct kvmi_page_access_entry* entries, size_t count);
int kvmid_inject_exception(kvmid_agent* agent, const struct kvmi_inject_exception* exception);
/* Any size; `cookie` may be NULL. */
int kvmid_read_physical(kvmid_agent* agent, uint64_t gpa, void* buffer, size_t size, uint64_t* cookie);
/* `count` ranges of any size, their bytes one after another; `size` is the sum. In as many messages as it takes; the
 * cookie is the oldest. After an error the buffer's content is unspecified. */
int kvmid_read_scatter(kvmid_agent* agent, uint16_t address_space, const struct kvmi_read_range* ranges, size_t count,
                       void* buffer, size_t size, uint64_t* cookie);
/* Guest virtual memory as that vCPU sees it: TRANSLATE_GVA for each page, then READ_PHYSICAL. -KVMI_EFAULT where an
 * address is not mapped or not canonical; kvmid_last_error() names it. At most 1 GiB. */
int kvmid_read_virtual(kvmid_agent* agent, uint16_t vcpu, uint64_t gva, void* buffer, size_t size, uint64_t* cookie);
struct kvmid_gva_range {
  uint64_t gva;
  uint64_t size;
};
int kvmid_read_virtual_ranges(kvmid_agent* agent, uint16_t vcpu, const struct kvmid_gva_range* ranges, size_t count,
                              void* buffer, size_t size, uint64_t* cookie);
/* flags: KVMI_WRITE_*. cookie: in with KVMI_WRITE_COOKIE; out the current one on success and on -KVMI_ESTALE; may be
 * NULL without the flag. expected: `size` bytes with KVMI_WRITE_EXPECT, else NULL. */
int kvmid_write_physical(kvmid_agent* agent, uint64_t gpa, const void* data, size_t size, uint16_t flags,
                         uint64_t* cookie, const void* expected);
/* Writes only if nothing of the range was changed through kvmid since `*cookie`, which came with a read, an event or a
 * write; 0 is none. `*cookie` becomes that of this write; with -KVMI_ESTALE the current one: read again, decide again.
 * Does not see the guest's own stores; KVMI_WRITE_EXPECT does. */
int kvmid_write_if_unchanged(kvmid_agent* agent, uint64_t gpa, const void* data, size_t size, uint64_t* cookie);
/* Returns how many descriptors were stored in `fds` (guest RAM, the generation page, the agent's grant page: 3); they
 * belong to the caller. More than `max` are closed. */
int kvmid_grant_memory(kvmid_agent* agent, int* fds, size_t max, struct kvmi_grant_memory_reply* reply);
/* enabled (may be NULL): the events now enabled. */
int kvmid_control_events(kvmid_agent* agent, uint16_t vcpu, uint8_t operation, uint8_t role, uint64_t events,
                         uint64_t* enabled);
int kvmid_control_cr(kvmid_agent* agent, uint16_t vcpu, uint32_t cr, int enable);
int kvmid_control_msr(kvmid_agent* agent, uint16_t vcpu, uint32_t msr, int enable);
int kvmid_translate_gva(kvmid_agent* agent, uint16_t vcpu, uint64_t gva, struct kvmi_translate_gva_reply* reply);
int kvmid_control_singlestep(kvmid_agent* agent, uint16_t vcpu, int enable);
/* Events of that kind that no group of the terms matches are answered by kvmid, with `action`. No terms: the filter is
 * taken away. */
int kvmid_set_filter(kvmid_agent* agent, uint16_t vcpu, uint8_t event, uint8_t action,
                     const struct kvmi_filter_term* terms, size_t count);
/* Fills at most `max` bytes and returns how large the area is. */
int kvmid_get_xsave(kvmid_agent* agent, uint16_t vcpu, void* area, size_t max);
int kvmid_set_xsave(kvmid_agent* agent, uint16_t vcpu, const void* area, size_t size);
int kvmid_get_xcr(kvmid_agent* agent, uint16_t vcpu, uint32_t xcr, uint64_t* value);
/* Fills at most `max` slots and returns how many there are. */
int kvmid_get_memory_map(kvmid_agent* agent, uint16_t address_space, struct kvmi_memory_slot* slots, size_t max);

/* ---- guest RAM in place: reads at memory speed, without a message; client/mapped_memory.h says how ---- */

/* Guest RAM as GRANT_MEMORY gives it, mapped read-only; offset = GPA, holes of the memory map read as zeros. Reads may
 * be made by any number of threads at once. After an error what a buffer holds is unspecified. Cookies are those of
 * kvmid_read_physical. The grant ends with the connection: reads say -KVMID_EREVOKED then. */
typedef struct kvmid_mapping kvmid_mapping;

/* RAM that its hypervisor can cut short is mapped too. A read behind its new end is a SIGBUS. */
#define KVMID_MAP_UNSEALED 1u

/* GRANT_MEMORY, mapped. flags: KVMID_MAP_*. A new grant of the same connection ends its old one. */
int kvmid_map_memory(kvmid_agent* agent, uint32_t flags, kvmid_mapping** mapping);
/* NULL is allowed. Before or after kvmid_close. */
void kvmid_unmap(kvmid_mapping* mapping);
uint64_t kvmid_mapped_bytes(const kvmid_mapping* mapping);
/* 1: it is not kept true any more; 0: it is. */
int kvmid_mapped_revoked(const kvmid_mapping* mapping);
/* A copy, and no promise: it may be half of a change, and hold patches. */
int kvmid_mapped_read(const kvmid_mapping* mapping, uint64_t gpa, void* buffer, size_t size);
/* Bytes that no change through kvmid was half way through; `cookie` may be NULL. */
int kvmid_mapped_read_stable(const kvmid_mapping* mapping, uint64_t gpa, void* buffer, size_t size, uint64_t* cookie);
/* `count` ranges, all of one moment, their bytes one after another; `size` is the sum. */
int kvmid_mapped_read_scatter(const kvmid_mapping* mapping, const struct kvmi_read_range* ranges, size_t count,
                              void* buffer, size_t size, uint64_t* cookie);
/* A number that grows with each change through kvmid of the pages of that range, and perhaps of others. As long as it
 * is the same, a read would find the same bytes, but for the guest's own stores. */
int kvmid_mapped_changes(const kvmid_mapping* mapping, uint64_t gpa, size_t size, uint64_t* changes);

/* ---- filters as text: "cr == 3 and new & 0xff == 0x1 or rip in 0x1000..0x1fff"; client/filter.h has all of it ---- */

#define KVMID_ANY_EVENT 0xffu

/* Fills at most `max` terms and returns how many there are (KVMI_FILTER_TERMS_MAX at most). `event`: KVMI_EVENT_*, whose
 * fields alone are taken, or KVMID_ANY_EVENT. `column` (may be NULL): where the text is wrong, from 1; 0: nowhere. */
int kvmid_parse_filter(const char* text, uint8_t event, struct kvmi_filter_term* terms, size_t max, size_t* column);
/* Writes at most `max` bytes of the text, the closing zero included, and returns how long all of it is without it. */
int kvmid_format_filter(const struct kvmi_filter_term* terms, size_t count, uint8_t event, char* text, size_t max);

/* ---- pipelined ---- */

/* Sends command `id` (KVMI_MSG_*) with its payload as laid out in kvmi.h, does not wait. `ticket` collects it. */
int kvmid_submit(kvmid_agent* agent, uint16_t id, const void* payload, size_t size, uint32_t* ticket);
/* Waits for that reply and copies at most `max` bytes of its data (what follows kvmi_error). Returns how many there
 * are, or the command's error. After -KVMID_ETIMEOUT the ticket is still open. */
int kvmid_collect(kvmid_agent* agent, uint32_t ticket, void* data, size_t max, int timeout_ms);
/* That reply is not wanted any more. */
void kvmid_forget(kvmid_agent* agent, uint32_t ticket);

/* Several messages in one write: a SET_REGISTERS and the event reply behind it, say. */
typedef struct kvmid_batch kvmid_batch;
int kvmid_batch_new(kvmid_agent* agent, kvmid_batch** batch);
int kvmid_batch_command(kvmid_batch* batch, uint16_t id, const void* payload, size_t size, uint32_t* ticket);
int kvmid_batch_reply(kvmid_batch* batch, const struct kvmid_event* event, uint8_t action);
int kvmid_batch_reply_raw(kvmid_batch* batch, uint32_t seq, const struct kvmi_event_reply* reply, const void* specific,
                          size_t size);
/* Sends all and leaves the batch empty. */
int kvmid_batch_send(kvmid_batch* batch);
/* Before the connection is closed; what was not sent is dropped. NULL is allowed. */
void kvmid_batch_free(kvmid_batch* batch);

#pragma GCC visibility pop

#ifdef __cplusplus
}
#endif

#endif
