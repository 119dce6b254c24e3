/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * kvmi.h is C too. The build compiles this file as C11 with -Wpadded as an error, and a test calls it to see that C
 * and C++ agree on sizes.
 */
#include "protocol/kvmi.h"

#include <stddef.h>

size_t kvmi_c11_size_of_event(void);
size_t kvmi_c11_size_of_welcome(void);
size_t kvmi_c11_offset_of_dr7(void);
uint64_t kvmi_c11_bit_of_notice(void);

size_t kvmi_c11_size_of_event(void) { return sizeof(struct kvmi_event); }
size_t kvmi_c11_size_of_welcome(void) { return sizeof(struct kvmi_welcome); }
size_t kvmi_c11_offset_of_dr7(void) { return offsetof(struct kvmi_event, dr7); }
/* Over bit 31: the set is 64 bits wide in C as well. */
uint64_t kvmi_c11_bit_of_notice(void) { return KVMI_COMMAND_BIT(KVMI_MSG_NOTICE); }
