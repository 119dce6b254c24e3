// SPDX-License-Identifier: GPL-2.0-or-later
//
// The decisions about one guest, driven by everybody at once: agents that ask, vote, lie and die, a hypervisor that
// answers, refuses, lies and goes, policy that changes, time that passes. What must hold is in guest_run.

#include "tests/fuzz/guest_run.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  kvmid::fuzz::ByteSource source(std::span(data, size));
  kvmid::fuzz::GuestRun run(source);
  while (!source.empty()) run.step();
  run.finish();
  return 0;
}
