// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace kvmid::ctl {

/// Rows of text in columns, as wide as needed and no wider than the terminal.
///
/// Shapes:   a heading, then rows of the same length. The widest column that may shrink gives way first; a cell that
///           does not fit ends with "..".
/// Units:    characters (code points), not bytes.
class Table {
 public:
  enum class Align { Left, Right };
  struct Column {
    std::string heading;
    Align align = Align::Left;
    std::size_t width_min = 0;  ///< 0: never cut
  };
  explicit Table(std::vector<Column> columns) : columns_(std::move(columns)) {}
  /// REQUIRES: as many cells as columns.
  void add(std::vector<std::string> cells);
  /// `width`: of the terminal; 0: no limit. Every line ends with a newline and has no blanks before it.
  [[nodiscard]] std::string text(std::size_t width) const;

 private:
  std::vector<Column> columns_;
  std::vector<std::vector<std::string>> rows_;
};

/// Characters of UTF-8 text.
std::size_t characters(std::string_view text);
/// Control characters, which could steer the terminal, and bytes that are no UTF-8 become '?'.
std::string printable(std::string_view text);
/// Columns of the terminal on stdout; 0 when it is none.
std::size_t terminal_width();

}  // namespace kvmid::ctl
