/* SPDX-License-Identifier: GPL-2.0-or-later */

/* Compiled as C: kvmid.h is a C header, and an agent written in C needs no more than this. */

#include "client/kvmid.h"

int pin_cr4_once(kvmid_agent* agent, uint64_t bit, int timeout_ms);

int pin_cr4_once(kvmid_agent* agent, uint64_t bit, int timeout_ms) {
  struct kvmid_event event;
  const int got = kvmid_wait_event(agent, &event, timeout_ms);
  if (got <= 0) return got;
  if (event.common.event == KVMI_EVENT_CR && event.data.cr.cr == 4 && (event.data.cr.new_value & bit) == 0) {
    return kvmid_reply_value(agent, &event, KVMI_ACTION_ALLOW, event.data.cr.new_value | bit);
  }
  return kvmid_reply(agent, &event, KVMI_ACTION_ALLOW);
}

int add_to_word(kvmid_agent* agent, uint64_t gpa, uint32_t amount, int* tries);

/* Reads, decides, writes; whoever was faster is not written over. */
int add_to_word(kvmid_agent* agent, uint64_t gpa, uint32_t amount, int* tries) {
  uint64_t cookie = 0;
  int result;
  *tries = 0;
  do {
    uint32_t word = 0;
    result = kvmid_read_physical(agent, gpa, &word, sizeof word, &cookie);
    if (result < 0) return result;
    word += amount;
    result = kvmid_write_if_unchanged(agent, gpa, &word, sizeof word, &cookie);
    ++*tries;
  } while (result == -KVMI_ESTALE);
  return result;
}
