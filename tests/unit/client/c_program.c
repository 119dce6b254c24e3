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
