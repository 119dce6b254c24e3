// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// Lines on standard error in the form "hypervisor: what key=value key=value".
///
/// Purpose:  small processes that speak for themselves without a logging library.
/// Threads:  one line is one write(2).

#include <initializer_list>
#include <string>
#include <string_view>

namespace kvmid::hypervisor {

struct Field {
  std::string_view key;
  std::string value;  ///< quoted where it has blanks, quotes, or what is not printable
};

/// Silences log(); errors that end the process are printed by other means.
void set_quiet(bool quiet);
void log(std::string_view what, std::initializer_list<Field> fields = {});

}  // namespace kvmid::hypervisor
