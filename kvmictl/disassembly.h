// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// Machine code as text: the part of `disas` that needs no guest.
///
/// Errors:   bytes that begin no instruction become one "(bad)" line each; a cut instruction ends the list.
/// Threads:  pure functions.
/// Source:   Zydis decodes and writes (Intel syntax).

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace kvmid::ctl {

struct DisassembledLine {
  std::uint64_t address = 0;
  std::vector<std::byte> bytes;
  std::string text;
};

/// At most `count` instructions. `mode`: bytes of an address, 2, 4 or 8.
std::vector<DisassembledLine> disassemble(std::uint64_t address, std::span<const std::byte> code, unsigned mode,
                                          std::size_t count);
/// "ffffffff81000000  48 89 e5              mov rbp, rsp", a mark where `rip` is.
std::string disassembly_text(std::span<const DisassembledLine> lines, std::uint64_t rip);

}  // namespace kvmid::ctl
