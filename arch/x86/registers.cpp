// SPDX-License-Identifier: GPL-2.0-or-later
#include "arch/x86/registers.h"

namespace kvmid::x86 {

namespace {
constexpr std::array<std::string_view, kRegisterCount> kNames = {"rax", "rbx", "rcx", "rdx", "rsi", "rdi",
                                                                 "rsp", "rbp", "r8",  "r9",  "r10", "r11",
                                                                 "r12", "r13", "r14", "r15", "rip", "rflags"};
}  // namespace

std::string_view register_name(unsigned number) { return number < kNames.size() ? kNames[number] : std::string_view{}; }

std::optional<unsigned> register_by_name(std::string_view name) {
  for (unsigned i = 0; i < kNames.size(); ++i) {
    if (kNames[i] == name) return i;
  }
  return std::nullopt;
}

}  // namespace kvmid::x86
