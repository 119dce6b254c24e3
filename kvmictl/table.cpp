// SPDX-License-Identifier: GPL-2.0-or-later
#include "kvmictl/table.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <system_error>

#include "protocol/text.h"

namespace kvmid::ctl {
namespace {

constexpr std::size_t kGap = 2;

bool starts_character(char c) { return (static_cast<unsigned char>(c) & 0xc0U) != 0x80U; }

}  // namespace

std::size_t characters(std::string_view text) {
  return static_cast<std::size_t>(std::count_if(text.begin(), text.end(), starts_character));
}

std::string printable(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    const std::size_t good = valid_utf8_prefix(text);
    for (std::size_t i = 0; i < good; ++i) {
      const auto byte = static_cast<unsigned char>(text[i]);
      // U+0080 to U+009F, in UTF-8 c2 80 to c2 9f, steer terminals too.
      const bool c1 = byte == 0xc2 && static_cast<unsigned char>(text[i + 1]) < 0xa0;
      if (c1) ++i;
      out += byte < 0x20 || byte == 0x7f || c1 ? '?' : text[i];
    }
    if (good == text.size()) break;
    out += '?';
    text.remove_prefix(good + 1);
  }
  return out;
}

std::string cut(const std::string& text, std::size_t width) {
  if (characters(text) <= width) return text;
  const std::size_t keep = width > 2 ? width - 2 : 0;
  std::size_t at = 0;
  for (std::size_t seen = 0; at < text.size(); ++at) {
    if (starts_character(text[at]) && seen++ == keep) break;
  }
  return text.substr(0, at) + std::string(std::min<std::size_t>(width, 2), '.');
}

std::string wrapped(const std::string& first, const std::string& text, std::size_t width, std::size_t indent) {
  std::string out, line = first;
  bool empty = true;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = std::min(text.find(' ', at), text.size());
    const std::string word = text.substr(at, end - at);
    if (width != 0 && !empty && characters(line) + 1 + characters(word) > width) {
      out += line + "\n";
      line = std::string(indent, ' ');
      empty = true;
    }
    line += (empty ? "" : " ") + word;
    empty = false;
    at = end + 1;
  }
  return out + line + "\n";
}

TerminalSize terminal_size() {
  TerminalSize size;
  winsize window{};
  if (::isatty(STDOUT_FILENO) != 0) {
    size = {80, 24};
    if (::ioctl(STDOUT_FILENO, TIOCGWINSZ, &window) == 0 && window.ws_col > 0 && window.ws_row > 0) {
      size = {window.ws_col, window.ws_row};
    }
  }
  const auto from_environment = [](const char* name, std::size_t& out) {
    const char* text = std::getenv(name);
    if (text == nullptr) return;
    const std::string_view digits(text);
    std::size_t value = 0;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    if (error == std::errc{} && end == digits.data() + digits.size() && value > 0 && value <= 10'000) out = value;
  };
  from_environment("COLUMNS", size.columns);
  from_environment("LINES", size.rows);
  return size;
}

void Table::add(std::vector<std::string> cells) {
  for (auto& cell : cells) cell = printable(cell);
  cells.resize(columns_.size());
  rows_.push_back(std::move(cells));
}

std::string Table::text(std::size_t width) const {
  std::vector<std::size_t> widths;
  for (std::size_t c = 0; c < columns_.size(); ++c) {
    std::size_t widest = characters(columns_[c].heading);
    for (const auto& row : rows_) widest = std::max(widest, characters(row[c]));
    widths.push_back(widest);
  }
  std::vector<bool> shown(columns_.size(), true);
  const auto total = [&] {
    std::size_t sum = 0;
    for (std::size_t c = 0; c < columns_.size(); ++c) {
      if (shown[c]) sum += widths[c] + (sum > 0 ? kGap : 0);
    }
    return sum;
  };
  while (width != 0 && total() > width) {
    std::size_t widest = columns_.size();
    std::size_t least = columns_.size();
    for (std::size_t c = 0; c < columns_.size(); ++c) {
      if (!shown[c]) continue;
      const bool shrinks = columns_[c].width_min != 0 && widths[c] > columns_[c].width_min;
      if (shrinks && (widest == columns_.size() || widths[c] > widths[widest])) widest = c;
      const bool goes = columns_[c].leave_out != 0;
      if (goes && (least == columns_.size() || columns_[c].leave_out > columns_[least].leave_out)) least = c;
    }
    if (widest != columns_.size()) {
      --widths[widest];
    } else if (least != columns_.size()) {
      shown[least] = false;
    } else {
      break;  // nothing gives way: the line is long rather than meaningless
    }
  }

  std::string out;
  const auto line = [&](auto cell_of) {
    std::string text;
    for (std::size_t c = 0; c < columns_.size(); ++c) {
      if (!shown[c]) continue;
      const std::string cell = cut(cell_of(c), widths[c]);
      const std::string blanks(widths[c] - characters(cell), ' ');
      if (!text.empty()) text.append(kGap, ' ');
      text += columns_[c].align == Align::Right ? blanks + cell : cell + blanks;
    }
    text.erase(text.find_last_not_of(' ') + 1);
    out += text + "\n";
  };
  line([&](std::size_t c) { return columns_[c].heading; });
  for (const auto& row : rows_) line([&](std::size_t c) { return row[c]; });
  return out;
}

}  // namespace kvmid::ctl
