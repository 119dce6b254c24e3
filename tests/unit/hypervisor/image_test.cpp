// SPDX-License-Identifier: GPL-2.0-or-later
#include <catch2/catch.hpp>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>

#include <unistd.h>

#include "hypervisor/emulated/image.h"

namespace kvmid::emulated {

namespace {

/// A file that is gone after the test.
class TempFile {
 public:
  explicit TempFile(const std::string& content) {
    path_ = "/tmp/kvmid-image-test-XXXXXX";
    const int fd = ::mkstemp(path_.data());
    REQUIRE(fd >= 0);
    ::close(fd);
    std::ofstream(path_, std::ios::binary) << content;
  }
  ~TempFile() { std::remove(path_.c_str()); }
  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace

TEST_CASE("an image file is loaded as it is", "[emulated][image]") {
  const TempFile file("\x90\x90\xf4");
  const auto image = load_image(file.path(), 4096);
  REQUIRE(image);
  REQUIRE(image->size() == 3);
  CHECK((*image)[2] == std::byte{0xf4});
}

TEST_CASE("an image that cannot be used is named with the reason", "[emulated][image]") {
  const auto why = [](const std::string& path, std::uint64_t max) { return load_image(path, max).error().text; };

  CHECK(why("/nonexistent/kvmid.bin", 4096) == "image /nonexistent/kvmid.bin: No such file or directory");
  CHECK(why("/tmp", 4096) == "image /tmp: not a regular file");
  const TempFile empty("");
  CHECK(why(empty.path(), 4096) == "image " + empty.path() + ": the file is empty");
  const TempFile large(std::string(5000, 'x'));
  CHECK(why(large.path(), 4096).find("it has 5000 bytes") != std::string::npos);
  const TempFile elf("\x7f" "ELF and more");
  CHECK(why(elf.path(), 4096).find("a flat binary is needed") != std::string::npos);
}

TEST_CASE("the built-in image is small and there", "[emulated][image]") {
  CHECK(embedded_image().size() > 1000);
  CHECK(embedded_image().size() < 64 * 1024);
}

}  // namespace kvmid::emulated
