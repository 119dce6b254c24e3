// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <string>

namespace kvmid::ctl {

enum class Confirmed { Yes, No, NobodyToAsk };

/// Asks on the terminal: "question [y/N] ". Only "y" and "yes" are a yes.
/// Without a terminal on stdin there is nobody to ask; the question goes to stderr, so that stdout stays for results.
Confirmed confirm(const std::string& question);
/// Is this line of input a yes?
bool means_yes(std::string line);
/// confirm(), and says on stderr why nothing is done; kOk: go on, else the exit code.
int confirm_or_say(const std::string& question);

}  // namespace kvmid::ctl
