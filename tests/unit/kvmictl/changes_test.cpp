// SPDX-License-Identifier: GPL-2.0-or-later
//
// Small parts that stand between a person and a guest: numbers, bytes, yes, machine code, completion.

#include <catch2/catch.hpp>

#include "kvmictl/completion.h"
#include "kvmictl/confirm.h"
#include "kvmictl/disassembly.h"
#include "kvmictl/numbers.h"

using namespace kvmid::ctl;

namespace {

std::vector<std::byte> bytes(const char* text) { return *parse_bytes(text); }

}  // namespace

TEST_CASE("bytes are typed in the order of memory, and nothing else is bytes", "[kvmictl]") {
  CHECK(bytes("9090CC") == std::vector{std::byte{0x90}, std::byte{0x90}, std::byte{0xcc}});
  CHECK(bytes(" 00 ff ") == std::vector{std::byte{0}, std::byte{0xff}});
  for (const char* bad : {"", " ", "9", "909", "0x90", "zz", "9 0", "-1", "90,90", "+1"}) {
    INFO(bad);
    CHECK_FALSE(parse_bytes(bad));
  }
}

TEST_CASE("numbers with and without suffixes", "[kvmictl]") {
  CHECK(parse_number("0x10", false) == 16U);
  CHECK(parse_number("4k", true) == 4096U);
  CHECK_FALSE(parse_number("4k", false));
  CHECK_FALSE(parse_number("0x", false));
  CHECK_FALSE(parse_number("18446744073709551616", false));
  CHECK_FALSE(parse_number("0xffffffffffffffffk", true));
}

TEST_CASE("only a clear yes is a yes", "[kvmictl]") {
  for (const char* yes : {"y", "Y", "yes", "YES", " y \r"}) CHECK(means_yes(yes));
  for (const char* no : {"", "n", "no", "yess", "ye", "ja", "1"}) CHECK_FALSE(means_yes(no));
}

TEST_CASE("machine code in every width", "[kvmictl]") {
  const auto code = bytes("48 89 e5 eb fe");
  const auto lines = disassemble(0x1000, code, 8, 10);
  REQUIRE(lines.size() == 2);
  CHECK(lines[0].text == "mov rbp, rsp");
  CHECK(lines[1].address == 0x1003);
  CHECK(lines[1].text == "jmp 0x1003");
  CHECK(disassemble(0, bytes("89 e5"), 4, 1).at(0).text == "mov ebp, esp");
  CHECK(disassemble(0, bytes("89 e5"), 2, 1).at(0).text == "mov bp, sp");
  CHECK(disassemble(0x1000, code, 8, 1).size() == 1);  // as many as asked for
}

TEST_CASE("bytes that are no instruction, and code that ends inside one", "[kvmictl]") {
  const auto lines = disassemble(0, bytes("06 90"), 8, 10);  // PUSH ES does not exist in 64-bit mode
  REQUIRE(lines.size() == 2);
  CHECK(lines[0].text == "(bad)");
  CHECK(lines[1].text == "nop");
  CHECK(disassemble(0, bytes("90 48"), 8, 10).size() == 1);
  CHECK(disassemble(0, {}, 8, 10).empty());
}

TEST_CASE("a listing marks the instruction pointer", "[kvmictl]") {
  const auto lines = disassemble(0x1000, bytes("90 c3"), 8, 10);
  CHECK(disassembly_text(lines, 0x1001) ==
        "  0000000000001000  90                       nop\n"
        "> 0000000000001001  c3                       ret\n");
}

TEST_CASE("the completion script has every word, and guests where a guest is wanted", "[kvmictl]") {
  const auto script =
      bash_completion({{"", {"--json", "guests", "mem"}, false}, {"guests", {}, false}, {"mem read", {"--raw"}, true}});
  CHECK(script.find("'') printf '%s\\n' --json guests mem ;;") != std::string::npos);
  CHECK(script.find("'mem read') printf '%s\\n' --raw --json ;;") != std::string::npos);
  CHECK(script.find("_kvmictl_takes_guest='|mem read|'") != std::string::npos);
  CHECK(script.find("page_fault") != std::string::npos);
  CHECK(script.find("READ_PHYSICAL") != std::string::npos);
}
