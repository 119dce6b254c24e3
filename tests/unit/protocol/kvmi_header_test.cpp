// SPDX-License-Identifier: GPL-2.0-or-later
#include <catch2/catch.hpp>
#include <cstddef>

#include "protocol/kvmi.h"

extern "C" {
std::size_t kvmi_c11_size_of_event(void);
std::size_t kvmi_c11_size_of_welcome(void);
std::size_t kvmi_c11_offset_of_dr7(void);
std::uint64_t kvmi_c11_bit_of_notice(void);
}

TEST_CASE("C and C++ see the same kvmi.h", "[kvmi]") {
  REQUIRE(kvmi_c11_size_of_event() == sizeof(kvmi_event));
  REQUIRE(kvmi_c11_size_of_welcome() == sizeof(kvmi_welcome));
  REQUIRE(kvmi_c11_offset_of_dr7() == offsetof(kvmi_event, dr7));
  REQUIRE(kvmi_c11_bit_of_notice() == std::uint64_t{1} << 33);
}
