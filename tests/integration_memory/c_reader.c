/* SPDX-License-Identifier: GPL-2.0-or-later */

/* Compiled as C: a reader of guest RAM in place needs no more than kvmid.h. */

#include "client/kvmid.h"

int sum_in_place(const char* socket, const char* guest, uint64_t gpa, size_t size, uint64_t* sum, uint64_t* cookie);

/* Attaches, maps, adds up the bytes of a range that is whole. Nothing stays behind. */
int sum_in_place(const char* socket, const char* guest, uint64_t gpa, size_t size, uint64_t* sum, uint64_t* cookie) {
  struct kvmid_options options = {0};
  kvmid_agent* agent = NULL;
  kvmid_mapping* mapping = NULL;
  unsigned char bytes[4096];
  int result;

  options.struct_size = sizeof options;
  options.socket = socket;
  options.name = "c-reader";
  result = kvmid_attach(&options, guest, &agent);
  if (result == 0) result = kvmid_map_memory(agent, 0, &mapping);
  *sum = 0;
  *cookie = 0;
  while (result == 0 && size != 0) {
    const size_t part = size < sizeof bytes ? size : sizeof bytes;
    uint64_t now = 0;
    size_t i;
    result = kvmid_mapped_read_stable(mapping, gpa, bytes, part, &now);
    if (*cookie == 0) *cookie = now; /* the oldest */
    for (i = 0; result == 0 && i < part; ++i) *sum += bytes[i];
    gpa += part;
    size -= part;
  }
  kvmid_unmap(mapping);
  kvmid_close(agent);
  return result;
}
