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
///           does not fit ends with "..". When no column can shrink further, those that may be left out are, the one
///           with the largest number first.
/// Units:    characters (code points), not bytes.
class Table {
 public:
  enum class Align { Left, Right };
  struct Column {
    std::string heading;
    Align align = Align::Left;
    std::size_t width_min = 0;  ///< 0: never cut
    unsigned leave_out = 0;     ///< 0: never left out
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
/// At most so many characters; what is cut ends with "..".
std::string cut(const std::string& text, std::size_t width);

/// `first`, then the words of `text`, in lines of at most `width` characters (0: one line), all but the first behind
/// `indent` blanks. A word that is longer has a line of its own.
std::string wrapped(const std::string& first, const std::string& text, std::size_t width, std::size_t indent);

struct TerminalSize {
  std::size_t columns = 0;  ///< 0: no limit
  std::size_t rows = 0;     ///< 0: no limit
};
/// COLUMNS and LINES where the environment has them, else the terminal on stdout; nothing where that is none.
TerminalSize terminal_size();
inline std::size_t terminal_width() { return terminal_size().columns; }

}  // namespace kvmid::ctl
