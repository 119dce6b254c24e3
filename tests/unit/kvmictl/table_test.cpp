// SPDX-License-Identifier: GPL-2.0-or-later

#include "kvmictl/table.h"

#include <catch2/catch.hpp>
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
