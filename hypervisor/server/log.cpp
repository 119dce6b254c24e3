// SPDX-License-Identifier: GPL-2.0-or-later
#include "hypervisor/server/log.h"

#include <unistd.h>

#include <array>
#include <cstdio>

namespace kvmid::hypervisor {

namespace {

bool quiet_lines = false;

std::string quoted(const std::string& value) {
  bool plain = !value.empty();
  for (const char c : value) {
    if (c <= ' ' || c == '"' || c == '\\' || c == '=' || c == 0x7f) plain = false;
  }
  if (plain) return value;
  std::string out = "\"";
  for (const char c : value) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (byte < ' ' || byte == 0x7f) {  // no peer's text may forge a line or drive a terminal
      std::array<char, 8> hex{};
      std::snprintf(hex.data(), hex.size(), "\\x%02x", byte);
      out += hex.data();
    } else {
      out += c;
    }
  }
  return out + '"';
}

}  // namespace

void set_quiet(bool quiet) { quiet_lines = quiet; }

void log(std::string_view what, std::initializer_list<Field> fields) {
  if (quiet_lines) return;
  std::string line = "hypervisor: ";
  line += what;
  for (const auto& field : fields) {
    line += ' ';
    line += field.key;
    line += '=';
    line += quoted(field.value);
  }
  line += '\n';
  [[maybe_unused]] const auto written = ::write(STDERR_FILENO, line.data(), line.size());
}

}  // namespace kvmid::hypervisor
