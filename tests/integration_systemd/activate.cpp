// SPDX-License-Identifier: GPL-2.0-or-later
//
// test-activate: starts a program as systemd does, with descriptors from 3 on and what the environment says of them.
//
//   test-activate FDS NAMES PID [NAME=VALUE...] -- PROGRAM [ARGUMENT...]
//
// FDS: numbers with commas, or "-" for none; NAMES: LISTEN_FDNAMES, "-" leaves it out; PID: "self", or what LISTEN_PID
// shall be. It becomes the program, so the process id stays: LISTEN_PID must be that of the program itself.

#include <fcntl.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sstream>
#include <string>
#include <vector>

namespace {

constexpr int kFirst = 3;
constexpr int kAbove = 100;  // where descriptors wait that are on the way to their numbers

int fail(const char* what) {
  std::perror(what);
  return 126;
}

}  // namespace

int main(int argc, char** argv) {
  int at = 4;
  while (at < argc && std::strcmp(argv[at], "--") != 0) {
    char* equals = std::strchr(argv[at], '=');
    if (equals == nullptr) {
      std::fprintf(stderr, "test-activate: %s is not NAME=VALUE\n", argv[at]);
      return 126;
    }
    ::setenv(std::string(argv[at], equals).c_str(), equals + 1, 1);
    ++at;
  }
  if (at + 1 >= argc) {
    std::fprintf(stderr, "test-activate: no program\n");
    return 126;
  }
  std::vector<int> moved;
  std::istringstream fds(std::strcmp(argv[1], "-") == 0 ? "" : argv[1]);
  for (std::string number; std::getline(fds, number, ',');) {
    const int fd = ::fcntl(std::stoi(number), F_DUPFD, kAbove);
    if (fd < 0) return fail("test-activate: F_DUPFD");
    moved.push_back(fd);
  }
  for (std::size_t i = 0; i < moved.size(); ++i) {
    if (::dup2(moved[i], kFirst + static_cast<int>(i)) < 0) return fail("test-activate: dup2");
  }
  // Nothing else goes along.
  if (::close_range(kFirst + static_cast<unsigned>(moved.size()), ~0U, 0) != 0)
    return fail("test-activate: close_range");
  ::setenv("LISTEN_FDS", std::to_string(moved.size()).c_str(), 1);
  ::setenv("LISTEN_PID", std::strcmp(argv[3], "self") == 0 ? std::to_string(::getpid()).c_str() : argv[3], 1);
  if (std::strcmp(argv[2], "-") == 0) {
    ::unsetenv("LISTEN_FDNAMES");
  } else {
    ::setenv("LISTEN_FDNAMES", argv[2], 1);
  }
  ::execv(argv[at + 1], argv + at + 1);
  return fail(argv[at + 1]);
}
