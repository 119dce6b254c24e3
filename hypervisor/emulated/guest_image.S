/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The test guest's flat binary, built from guest/kernel.S, inside the program. */
    .section .rodata
    .balign 16
    .globl kvmid_guest_image
    .globl kvmid_guest_image_end
kvmid_guest_image:
    .incbin KVMID_GUEST_BINARY
kvmid_guest_image_end:
    .section .note.GNU-stack, "", @progbits
