# SPDX-License-Identifier: GPL-2.0-or-later
#
# Everything comes from Debian 12 packages; scripts/install-dependencies lists them. Targets to link:
#   Threads::Threads  Boost::headers  spdlog::spdlog  nlohmann_json::nlohmann_json  CLI11::CLI11
#   Zydis::Zydis  PkgConfig::unicorn  PkgConfig::libsystemd  Catch2::Catch2 (kvmid_test links it)
#   OpenSSL::Crypto (daemon/app and kvmi-emu only: the hash of a hypervisor's secret)
#   benchmark::benchmark (bench/ only)

set(THREADS_PREFER_PTHREAD_FLAG ON)
find_package(Threads REQUIRED)
find_package(Boost 1.81 REQUIRED)
find_package(spdlog REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(CLI11 REQUIRED)
find_package(Zydis REQUIRED)
find_package(OpenSSL 3.0 REQUIRED COMPONENTS Crypto)
find_package(PkgConfig REQUIRED)
pkg_check_modules(unicorn REQUIRED IMPORTED_TARGET unicorn)
pkg_check_modules(libsystemd REQUIRED IMPORTED_TARGET libsystemd)
find_package(Catch2 2.13 REQUIRED)
find_package(benchmark QUIET)
find_package(Python3 REQUIRED COMPONENTS Interpreter)
