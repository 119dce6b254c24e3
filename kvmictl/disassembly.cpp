// SPDX-License-Identifier: GPL-2.0-or-later
//
// The only file of kvmictl that sees Zydis.

#include "kvmictl/disassembly.h"

#include <Zydis/Zydis.h>

#include <algorithm>
#include <array>
#include <cstdio>

namespace kvmid::ctl {
namespace {

ZydisDecoder decoder_of(unsigned mode) {
  ZydisDecoder decoder{};
  if (mode == 8) {
    ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
  } else if (mode == 4) {
    ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LEGACY_32, ZYDIS_STACK_WIDTH_32);
  } else {
    ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LEGACY_16, ZYDIS_STACK_WIDTH_16);
  }
  return decoder;
}

/// Bytes that one line has room for; longer instructions push their text to the right.
constexpr std::size_t kBytesShown = 8;

}  // namespace

std::vector<DisassembledLine> disassemble(std::uint64_t address, std::span<const std::byte> code, unsigned mode,
                                          std::size_t count) {
  const ZydisDecoder decoder = decoder_of(mode);
  ZydisFormatter formatter{};
  ZydisFormatterInit(&formatter, ZYDIS_FORMATTER_STYLE_INTEL);
  ZydisFormatterSetProperty(&formatter, ZYDIS_FORMATTER_PROP_HEX_UPPERCASE, ZYAN_FALSE);
  ZydisFormatterSetProperty(&formatter, ZYDIS_FORMATTER_PROP_ADDR_PADDING_ABSOLUTE, ZYDIS_PADDING_DISABLED);
  ZydisFormatterSetProperty(&formatter, ZYDIS_FORMATTER_PROP_IMM_PADDING, ZYDIS_PADDING_DISABLED);
  ZydisFormatterSetProperty(&formatter, ZYDIS_FORMATTER_PROP_DISP_PADDING, ZYDIS_PADDING_DISABLED);
  std::vector<DisassembledLine> lines;
  for (std::size_t at = 0; at < code.size() && lines.size() < count;) {
    const auto rest = code.subspan(at);
    ZydisDecodedInstruction instruction{};
    std::array<ZydisDecodedOperand, ZYDIS_MAX_OPERAND_COUNT> operands{};
    const ZyanStatus status = ZydisDecoderDecodeFull(&decoder, rest.data(), rest.size(), &instruction, operands.data());
    if (status == ZYDIS_STATUS_NO_MORE_DATA) break;
    std::size_t length = 1;
    std::string text = "(bad)";
    if (ZYAN_SUCCESS(status)) {
      std::array<char, 256> buffer{};
      length = instruction.length;
      if (ZYAN_SUCCESS(ZydisFormatterFormatInstruction(&formatter, &instruction, operands.data(),
                                                       instruction.operand_count_visible, buffer.data(), buffer.size(),
                                                       address + at, ZYAN_NULL))) {
        text = buffer.data();
      }
    }
    const auto bytes = rest.first(length);
    lines.push_back({address + at, {bytes.begin(), bytes.end()}, std::move(text)});
    at += length;
  }
  return lines;
}

std::string disassembly_text(std::span<const DisassembledLine> lines, std::uint64_t rip) {
  std::string out;
  for (const auto& line : lines) {
    std::array<char, 24> address{};
    std::snprintf(address.data(), address.size(), "%016llx", static_cast<unsigned long long>(line.address));
    std::string bytes;
    for (const std::byte byte : line.bytes) {
      static constexpr std::string_view kDigits = "0123456789abcdef";
      if (!bytes.empty()) bytes += ' ';
      bytes += {kDigits[std::to_integer<unsigned>(byte) >> 4U], kDigits[std::to_integer<unsigned>(byte) & 15U]};
    }
    bytes.resize(std::max(bytes.size(), kBytesShown * 3 - 1), ' ');
    out += (line.address == rip ? "> " : "  ") + std::string(address.data()) + "  " + bytes + "  " + line.text + "\n";
  }
  return out;
}

}  // namespace kvmid::ctl
