// SPDX-License-Identifier: GPL-2.0-or-later
#include "kvmictl/confirm.h"

#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cstdio>

#include "kvmictl/arguments.h"
#include "kvmictl/table.h"

namespace kvmid::ctl {

bool means_yes(std::string line) {
  std::erase_if(line, [](unsigned char c) { return std::isspace(c) != 0; });
  std::transform(line.begin(), line.end(), line.begin(), [](unsigned char c) { return std::tolower(c); });
  return line == "y" || line == "yes";
}

Confirmed confirm(const std::string& question) {
  if (::isatty(STDIN_FILENO) == 0) return Confirmed::NobodyToAsk;
  std::fflush(stdout);
  std::fprintf(stderr, "%s [y/N] ", printable(question).c_str());
  std::fflush(stderr);
  std::string line;
  for (int c = std::getchar(); c != EOF && c != '\n'; c = std::getchar()) line += static_cast<char>(c);
  return means_yes(line) ? Confirmed::Yes : Confirmed::No;
}

int confirm_or_say(const std::string& question) {
  switch (confirm(question)) {
    case Confirmed::Yes:
      return kOk;
    case Confirmed::No:
      std::fprintf(stderr, "kvmictl: nothing was done\n");
      return kFailed;
    case Confirmed::NobodyToAsk:
      std::fprintf(stderr, "kvmictl: nothing was done: there is no terminal to ask on; --yes says yes\n");
      return kUsage;
  }
  return kFailed;
}

}  // namespace kvmid::ctl
