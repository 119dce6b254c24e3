// SPDX-License-Identifier: GPL-2.0-or-later

#include "kvmictl/table.h"

#include <catch2/catch.hpp>
#include <cstdlib>
#include <sstream>

using namespace kvmid::ctl;

namespace {

Table two_rows() {
  Table table({{"NAME", Table::Align::Left, 4}, {"N", Table::Align::Right}});
  table.add({"a-rather-long-name", "1"});
  table.add({"b", "234"});
  return table;
}

}  // namespace

TEST_CASE("columns are as wide as needed where there is no limit", "[kvmictl]") {
  CHECK(two_rows().text(0) ==
        "NAME                  N\n"
        "a-rather-long-name    1\n"
        "b                   234\n");
}

TEST_CASE("a narrow terminal cuts the column that may shrink", "[kvmictl]") {
  CHECK(two_rows().text(13) ==
        "NAME        N\n"
        "a-rath..    1\n"
        "b         234\n");
}

TEST_CASE("no width makes a line longer than the terminal while columns can shrink", "[kvmictl]") {
  for (std::size_t width = 9; width < 40; ++width) {
    std::istringstream lines(two_rows().text(width));
    for (std::string line; std::getline(lines, line);) CHECK(line.size() <= width);
  }
  CHECK(two_rows().text(1).find("a-..") != std::string::npos);  // the least it shrinks to
}

TEST_CASE("where shrinking is not enough columns are left out, the least wanted first", "[kvmictl]") {
  Table table({{"ID"},
               {"NAME", Table::Align::Left, 4},
               {"SOME", Table::Align::Left, 0, 1},
               {"MORE", Table::Align::Left, 0, 2}});
  table.add({"1", "somebody", "s", "m"});
  CHECK(table.text(24) == "ID  NAME      SOME  MORE\n1   somebody  s     m\n");
  CHECK(table.text(20) == "ID  NAME  SOME  MORE\n1   so..  s     m\n");
  CHECK(table.text(19) == "ID  NAME  SOME\n1   so..  s\n");
  CHECK(table.text(13) == "ID  NAME\n1   so..\n");
}

TEST_CASE("the environment says how large a terminal is", "[kvmictl]") {
  ::setenv("COLUMNS", "72", 1);
  ::setenv("LINES", "10", 1);
  CHECK(terminal_size().columns == 72);
  CHECK(terminal_size().rows == 10);
  for (const char* odd : {"", "0", "-5", "wide", "80x", "99999999999999999999"}) {
    ::setenv("COLUMNS", odd, 1);
    CHECK(terminal_size().columns != 72);
    CHECK(terminal_size().columns <= 10'000);
  }
  ::unsetenv("COLUMNS");
  ::unsetenv("LINES");
}

TEST_CASE("words are put into lines, and a long word has its own", "[kvmictl]") {
  CHECK(wrapped("a ", "one two three", 9, 2) == "a one two\n  three\n");
  CHECK(wrapped("a ", "one two three", 0, 2) == "a one two three\n");
  CHECK(wrapped("", "unbreakable x", 4, 1) == "unbreakable\n x\n");
}

TEST_CASE("what could steer a terminal is printed as question marks", "[kvmictl]") {
  CHECK(printable("a\x1b[31mb\n") == "a?[31mb?");
  CHECK(printable("caf\xc3\xa9") == "caf\xc3\xa9");
  CHECK(printable("x\xff\xfey") == "x??y");
  CHECK(printable("c1 \xc2\x9b!") == "c1 ?!");
}

TEST_CASE("characters count, not bytes", "[kvmictl]") {
  CHECK(characters("caf\xc3\xa9") == 4);
  Table table({{"NAME"}, {"X"}});
  table.add({"caf\xc3\xa9", "1"});
  CHECK(table.text(0) == "NAME  X\ncaf\xc3\xa9  1\n");
}
