// SPDX-License-Identifier: GPL-2.0-or-later
#include "daemon/io/log.h"

#include <algorithm>

namespace kvmid::io {

std::string field(std::string_view value) {
  const auto plain = [](char c) { return c > ' ' && c != '"' && c != '=' && c != '\\' && c != 0x7f; };
  // Bytes of UTF-8 beyond ASCII are negative where char is signed; they are printable text here.
  const auto harmless = [&](char c) { return plain(c) || static_cast<unsigned char>(c) >= 0x80; };
  if (!value.empty() && std::all_of(value.begin(), value.end(), harmless)) return std::string(value);
  std::string out = "\"";
  for (const char c : value) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (byte < 0x20 || byte == 0x7f) {
      static constexpr char kHex[] = "0123456789abcdef";
      out += "\\x";
      out += kHex[byte >> 4U];
      out += kHex[byte & 15U];
    } else {
      out += c;
    }
  }
  return out + '"';
}

}  // namespace kvmid::io
