/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A tool on the real libkvmi, for libkvmi_test.py: asks what tools ask, then takes part in the guest's life and says on
 * standard output what it saw. It knows kvmi-emu's test guest (mailbox_layout.h).
 *
 * usage: libkvmi-tool PATH [v6]
 * v6: the guest's hypervisor speaks that: no translation, no XCR0, no single step.
 * Exit codes: 0 everything that it was to see came, 1 something failed or did not come.
 */
#include <errno.h>
#include <libkvmi.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "hypervisor/emulated/mailbox_layout.h"

static void *volatile guest;
static unsigned char original;
static unsigned faults, breakpoints, pauses, steps;
static int is_v6;

static void say(const char *format, ...) {
  va_list list;
  va_start(list, format);
  printf("tool: ");
  vprintf(format, list);
  printf("\n");
  va_end(list);
  fflush(stdout);
}

static void need(int result, const char *what) {
  if (result == 0) return;
  say("%s failed: %s", what, strerror(errno));
  exit(1);
}

static int on_guest(void *dom, unsigned char (*uuid)[16], void *context) {
  (void)context;
  char name[64];
  kvmi_domain_name(dom, name, sizeof name);
  say("guest %s uuid %02x%02x", name, (*uuid)[0], (*uuid)[1]);
  guest = dom;
  return 0;
}

static int on_handshake(const struct kvmi_qemu2introspector *from, struct kvmi_introspector2qemu *to, void *context) {
  (void)from;
  (void)to;
  (void)context;
  return 0;
}

struct answer {
  struct kvmi_vcpu_hdr vcpu;
  struct kvmi_event_reply common;
  union {
    struct kvmi_event_cr_reply cr;
    struct kvmi_event_pf_reply pf;
  } part;
};

static size_t answer_to(const struct kvmi_dom_event *event, struct answer *answer, unsigned char action) {
  memset(answer, 0, sizeof *answer);
  answer->vcpu.vcpu = event->event.common.vcpu;
  answer->common.action = action;
  answer->common.event = event->event.common.event;
  const size_t head = sizeof answer->vcpu + sizeof answer->common;
  switch (event->event.common.event) {
    case KVMI_EVENT_CR:
      answer->part.cr.new_val = event->event.cr.new_value;
      return head + sizeof answer->part.cr;
    case KVMI_EVENT_PF:
      return head + sizeof answer->part.pf;
    default:
      return head;
  }
}

static void on_fault(struct kvmi_dom_event *event) {
  unsigned long long gpa = event->event.page_fault.gpa & ~0xfffULL;
  unsigned char access = KVMI_PAGE_ACCESS_R | KVMI_PAGE_ACCESS_W | KVMI_PAGE_ACCESS_X;
  struct answer answer;
  void *batch = kvmi_batch_alloc(guest);
  ++faults;
  say("fault gpa %#llx access %u", (unsigned long long)event->event.page_fault.gpa, event->event.page_fault.access);
  need(batch == NULL, "kvmi_batch_alloc");
  need(kvmi_queue_page_access(batch, &gpa, &access, 1, 0), "kvmi_queue_page_access");
  need(kvmi_queue_reply_event(batch, event->seq, &answer, answer_to(event, &answer, KVMI_EVENT_ACTION_RETRY)),
       "kvmi_queue_reply_event");
  need(kvmi_batch_commit(batch), "kvmi_batch_commit");
  kvmi_batch_free(batch);
}

static void on_breakpoint(struct kvmi_dom_event *event) {
  struct answer answer;
  if (event->event.breakpoint.gpa != KVMID_GUEST_EXEC_GPA) { /* the guest's own: it shall have it */
    need(kvmi_reply_event(guest, event->seq, &answer, answer_to(event, &answer, KVMI_EVENT_ACTION_CONTINUE)), "reply");
    return;
  }
  ++breakpoints;
  say("breakpoint gpa %#llx length %u", (unsigned long long)event->event.breakpoint.gpa,
      event->event.breakpoint.insn_len);
  need(kvmi_write_physical(guest, KVMID_GUEST_EXEC_GPA, &original, 1), "restoring the byte");
  if (!is_v6) need(kvmi_control_singlestep(guest, event->event.common.vcpu, true), "kvmi_control_singlestep");
  need(kvmi_reply_event(guest, event->seq, &answer, answer_to(event, &answer, KVMI_EVENT_ACTION_RETRY)), "reply");
}

static void on_step(struct kvmi_dom_event *event) {
  static const unsigned char int3 = 0xcc;
  struct answer answer;
  ++steps;
  say("step rip %#llx", (unsigned long long)event->event.common.arch.regs.rip);
  need(kvmi_control_singlestep(guest, event->event.common.vcpu, false), "kvmi_control_singlestep off");
  if (breakpoints < 3) need(kvmi_write_physical(guest, KVMID_GUEST_EXEC_GPA, &int3, 1), "the breakpoint again");
  need(kvmi_reply_event(guest, event->seq, &answer, answer_to(event, &answer, KVMI_EVENT_ACTION_CONTINUE)), "reply");
}

static void take_part(void) {
  struct kvmi_dom_event *event = NULL;
  struct answer answer;
  if (kvmi_wait_event(guest, 30000)) {
    say("no event: %s", strerror(errno));
    exit(1);
  }
  need(kvmi_pop_event(guest, &event), "kvmi_pop_event");
  switch (event->event.common.event) {
    case KVMI_EVENT_PF: on_fault(event); break;
    case KVMI_EVENT_BREAKPOINT: on_breakpoint(event); break;
    case KVMI_EVENT_SINGLESTEP: on_step(event); break;
    case KVMI_EVENT_PAUSE_VCPU:
      ++pauses;
      say("pause vcpu %u", event->event.common.vcpu);
      /* fallthrough */
    default:
      need(kvmi_reply_event(guest, event->seq, &answer, answer_to(event, &answer, KVMI_EVENT_ACTION_CONTINUE)),
           "reply");
  }
  free(event);
}

static void ask(unsigned *vcpus) {
  static const unsigned numbers[] = {0x174, 0x175, 0x176, 0xc0000080, 0xc0000081, 0xc0000082, 0xc0000083};
  enum { kMsrs = sizeof numbers / sizeof numbers[0] };
  unsigned version = 0, eax = 0, ebx = 0, ecx = 0, edx = 0, mode = 0;
  unsigned long long gfn = 0, tsc = 0;
  __u64 gpa = 0, xcr0 = 0;
  unsigned short view = 9;
  unsigned char type = 0, page[4096];
  struct kvm_regs regs;
  struct kvm_sregs sregs;
  struct {
    struct kvm_msrs head;
    struct kvm_msr_entry entries[kMsrs];
  } msrs;
  memset(&msrs, 0, sizeof msrs);
  msrs.head.nmsrs = kMsrs;
  for (unsigned i = 0; i < kMsrs; ++i) msrs.entries[i].index = numbers[i];

  need(kvmi_get_version(guest, &version), "kvmi_get_version");
  need(kvmi_get_vcpu_count(guest, vcpus), "kvmi_get_vcpu_count");
  need(kvmi_get_maximum_gfn(guest, &gfn), "kvmi_get_maximum_gfn");
  need(kvmi_get_tsc_speed(guest, &tsc), "kvmi_get_tsc_speed");
  need(kvmi_get_cpuid(guest, 0, 0, 0, &eax, &ebx, &ecx, &edx), "kvmi_get_cpuid");
  need(kvmi_get_registers(guest, 0, &regs, &sregs, &msrs.head, &mode), "kvmi_get_registers");
  need(kvmi_read_physical(guest, KVMID_GUEST_MAILBOX_GPA, page, sizeof page), "kvmi_read_physical");
  need(memcmp(page, "KVMIGEST", 8) != 0, "the mailbox's first bytes");
  need(kvmi_check_command(guest, KVMI_READ_PHYSICAL), "kvmi_check_command");
  say("version %u vcpus %u gfn %#llx cpuid %u mode %u lstar %#llx", version, *vcpus, gfn, eax, mode,
      (unsigned long long)msrs.entries[5].data);
  if (!is_v6) {
    need(kvmi_translate_gva(guest, 0, regs.rip, &gpa), "kvmi_translate_gva");
    need(kvmi_get_xcr(guest, 0, 0, &xcr0), "kvmi_get_xcr");
  } else if (kvmi_translate_gva(guest, 0, regs.rip, &gpa) == 0) {
    say("v6 has no translation, and did it");
    exit(1);
  } else {
    say("translation: %s", strerror(errno));
  }
  need(kvmi_get_mtrr_type(guest, 0, &type), "kvmi_get_mtrr_type");
  need(kvmi_get_ept_view(guest, 0, &view), "kvmi_get_ept_view");
  say("rip %#llx gpa %#llx xcr0 %#llx memory type %u view %u", (unsigned long long)regs.rip, (unsigned long long)gpa,
      (unsigned long long)xcr0, type, view);
  if (kvmi_switch_ept_view(guest, 0, 1) == 0) {
    say("a view that is not there was switched to");
    exit(1);
  }
  say("switch to view 1: %s", strerror(errno));
}

int main(int argc, char **argv) {
  static const unsigned char int3 = 0xcc;
  unsigned vcpus = 0;
  unsigned long long page = KVMID_GUEST_PROTECTED_GPA;
  unsigned char access = KVMI_PAGE_ACCESS_R | KVMI_PAGE_ACCESS_X, seen = 0;
  if (argc != 2 && argc != 3) return 2;
  is_v6 = argc == 3;
  void *context = kvmi_init_unix_socket(argv[1], on_guest, on_handshake, NULL);
  if (context == NULL) {
    say("kvmi_init_unix_socket: %s", strerror(errno));
    return 1;
  }
  while (guest == NULL) usleep(10000);
  ask(&vcpus);

  need(kvmi_pause_all_vcpus(guest, vcpus), "kvmi_pause_all_vcpus");
  while (pauses < vcpus) take_part();

  need(kvmi_read_physical(guest, KVMID_GUEST_EXEC_GPA, &original, 1), "reading the function");
  for (unsigned short vcpu = 0; vcpu < vcpus; ++vcpu) {
    need(kvmi_control_events(guest, vcpu, KVMI_EVENT_PF, true), "PF events");
    need(kvmi_control_events(guest, vcpu, KVMI_EVENT_BREAKPOINT, true), "BREAKPOINT events");
    if (!is_v6) need(kvmi_control_events(guest, vcpu, KVMI_EVENT_SINGLESTEP, true), "SINGLESTEP events");
  }
  need(kvmi_set_page_access(guest, &page, &access, 1, 0), "kvmi_set_page_access");
  need(kvmi_write_physical(guest, KVMID_GUEST_EXEC_GPA, &int3, 1), "the breakpoint");
  need(kvmi_read_physical(guest, KVMID_GUEST_EXEC_GPA, &seen, 1), "reading the breakpoint");
  say("its own byte %#x, the guest's %#x", seen, original);
  say("ready");
  while (faults < 1 || breakpoints < (is_v6 ? 1U : 3U) || steps < (is_v6 ? 0U : 3U)) take_part();
  say("done faults %u breakpoints %u steps %u", faults, breakpoints, steps);
  kvmi_domain_close(guest, true);
  return 0;
}
