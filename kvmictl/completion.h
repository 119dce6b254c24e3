// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// The completion script for bash, made from the grammar itself, so that it cannot lag behind it.

#include <string>
#include <vector>

namespace kvmid::ctl {

/// What can stand behind one (sub)command.
struct CommandWords {
  std::string path;                ///< "mem read"; empty: kvmictl itself
  std::vector<std::string> words;  ///< subcommands and options
  bool guest = false;              ///< a guest's name too
};

std::string bash_completion(const std::vector<CommandWords>& commands);

}  // namespace kvmid::ctl
