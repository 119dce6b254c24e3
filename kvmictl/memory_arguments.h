// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// The grammar of `kvmictl mem`, but for mem write: read, dump, search, watch, translate.
///
/// Errors:   take() throws CLI11's errors, which the grammar of the whole line reports.
/// Lifetime: `out` outlives it; it stays where it is while the line is parsed.

#include <CLI/CLI.hpp>

#include <functional>
#include <string>

#include "kvmictl/arguments.h"

namespace kvmid::ctl {

class MemoryGrammar {
 public:
  explicit MemoryGrammar(Arguments& out) : out_(out) {}
  /// Adds a subcommand of mem that has GUEST already.
  using AddCommand = std::function<CLI::App*(const char* name, Subcommand id, const std::string& what)>;
  void add(const AddCommand& add_command);
  /// Checks what was typed, and puts it in its place. Does nothing for other subcommands.
  void take();

 private:
  void add_virtual(CLI::App* sub);
  void take_range();
  void take_read();
  void take_pattern();
  [[nodiscard]] bool has(CLI::Option* option) const { return option != nullptr && option->count() > 0; }

  Arguments& out_;
  std::string address_, length_, pattern_, text_, int_, rate_;
  std::string format_ = "raw";
  std::uint16_t vcpu_ = 0;
  std::vector<CLI::Option*> vcpus_;
};

}  // namespace kvmid::ctl
