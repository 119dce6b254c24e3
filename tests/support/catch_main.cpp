// SPDX-License-Identifier: GPL-2.0-or-later
//
// The main() of every Catch2 test program, compiled once and linked into all of them (see kvmid_test).

#define CATCH_CONFIG_MAIN
#include <catch2/catch.hpp>
