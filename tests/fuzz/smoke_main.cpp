// SPDX-License-Identifier: GPL-2.0-or-later
//
// A fuzz target without libFuzzer: the same entry point, fed with seeds, changed seeds and pseudo-random bytes. It
// keeps the targets alive in every build and finds what is not hidden deep; libFuzzer (scripts/fuzz) looks for the rest.

#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace {

using Input = std::vector<std::uint8_t>;

constexpr const char* kHelp =
    "usage: TARGET_smoke [--runs N] [--seed N] [--size N] [FILE or FOLDER...]\n"
    "\n"
    "Runs the fuzz target on every file as it is, then on N inputs (default 2000) of up to --size bytes (default\n"
    "2000): changed copies of the files, or pseudo-random bytes where there are no files. The input that fails is\n"
    "kept in ./crash-TARGET; give it as FILE with --runs 0 to run it alone.\n";

Input current;
std::string crash_file;

void keep_input(int) {
  std::FILE* file = std::fopen(crash_file.c_str(), "wb");
  if (file != nullptr) {
    (void)std::fwrite(current.data(), 1, current.size(), file);
    (void)std::fclose(file);
    std::fprintf(stderr, "the input is in %s\n", crash_file.c_str());
  }
}

void run(Input input) {
  current = std::move(input);
  // A copy of just its size, so that a tool sees reads behind its end.
  const Input exact(current);
  LLVMFuzzerTestOneInput(exact.data(), exact.size());
}

Input read_file(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    std::fprintf(stderr, "cannot read %s\n", path.c_str());
    std::exit(2);
  }
  return {std::istreambuf_iterator<char>(file), {}};
}

unsigned long number(const char* text) {
  char* end = nullptr;
  const unsigned long value = std::strtoul(text, &end, 0);
  if (*text == '\0' || *end != '\0') {
    std::fprintf(stderr, "\"%s\" is not a number\n%s", text, kHelp);
    std::exit(2);
  }
  return value;
}

class Inputs {
 public:
  Inputs(std::vector<Input> files, unsigned long seed, std::size_t size)
      : files_(std::move(files)), random_(seed), size_(size) {}
  Input next() {
    Input input;
    if (!files_.empty()) {
      input = files_[pick(files_.size())];
      const Input& other = files_[pick(files_.size())];
      if (pick(4) == 0) input.resize(pick(input.size() + 1));
      if (pick(4) == 0 && !other.empty())
        input.insert(input.end(), other.begin() + static_cast<std::ptrdiff_t>(pick(other.size())), other.end());
      for (std::size_t i = pick(6); i != 0 && !input.empty(); --i)
        input[pick(input.size())] = static_cast<std::uint8_t>(pick(256));
      if (input.size() > size_) input.resize(size_);
    }
    if (files_.empty() || pick(4) == 0)
      for (std::size_t i = pick(size_ + 1 - std::min(size_, input.size())); i != 0; --i)
        input.push_back(static_cast<std::uint8_t>(pick(256)));
    return input;
  }

 private:
  std::size_t pick(std::size_t below) { return std::uniform_int_distribution<std::size_t>(0, below - 1)(random_); }
  std::vector<Input> files_;
  std::mt19937_64 random_;
  std::size_t size_;
};

}  // namespace

int main(int argc, char** argv) {
  unsigned long runs = 2000;
  unsigned long seed = 1;
  std::size_t size = 2000;
  std::vector<Input> files;
  crash_file = "crash-" + std::filesystem::path(argv[0]).filename().string();
  std::signal(SIGABRT, keep_input);
  std::signal(SIGSEGV, [](int signal) {
    keep_input(signal);
    ::_exit(1);
  });
  for (int i = 1; i < argc; ++i) {
    const bool has_value = i + 1 < argc;
    if (std::strcmp(argv[i], "--runs") == 0 && has_value) runs = number(argv[++i]);
    else if (std::strcmp(argv[i], "--seed") == 0 && has_value) seed = number(argv[++i]);
    else if (std::strcmp(argv[i], "--size") == 0 && has_value) size = number(argv[++i]);
    else if (argv[i][0] == '-') {
      std::fputs(kHelp, stderr);
      return 2;
    } else if (std::filesystem::is_directory(argv[i])) {
      for (const auto& entry : std::filesystem::directory_iterator(argv[i])) files.push_back(read_file(entry.path()));
    } else {
      files.push_back(read_file(argv[i]));
    }
  }
  for (const Input& file : files) run(file);
  const std::size_t read = files.size();
  Inputs inputs(std::move(files), seed, size);
  for (unsigned long i = 0; i < runs; ++i) run(inputs.next());
  std::printf("%zu files and %lu inputs made with seed %lu\n", read, runs, seed);
  return 0;
}
