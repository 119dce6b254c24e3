// SPDX-License-Identifier: GPL-2.0-or-later
#include "hypervisor/emulated/image.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

extern "C" {
extern const std::byte kvmid_guest_image[];
extern const std::byte kvmid_guest_image_end[];
}

namespace kvmid::emulated {

std::span<const std::byte> embedded_image() { return {kvmid_guest_image, kvmid_guest_image_end}; }

Result<std::vector<std::byte>, ImageError> load_image(const std::string& path, std::uint64_t bytes_max) {
  const auto failed = [&](const std::string& why) { return ImageError{"image " + path + ": " + why}; };
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return failed(std::strerror(errno));
  struct Closer {
    int fd;
    ~Closer() { ::close(fd); }
  } closer{fd};
  struct stat info {};
  if (::fstat(fd, &info) != 0) return failed(std::strerror(errno));
  if (!S_ISREG(info.st_mode)) return failed("not a regular file");
  if (info.st_size == 0) return failed("the file is empty");
  const auto size = static_cast<std::uint64_t>(info.st_size);
  if (size > bytes_max) {
    return failed("it has " + std::to_string(size) +
                  " bytes; between the load address and the end of guest RAM there are " + std::to_string(bytes_max) +
                  " (--memory)");
  }
  std::vector<std::byte> bytes(size);
  std::size_t have = 0;
  while (have < bytes.size()) {
    const ssize_t n = ::read(fd, bytes.data() + have, bytes.size() - have);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return failed(std::strerror(errno));
    if (n == 0) return failed("it became shorter while it was read");
    have += static_cast<std::size_t>(n);
  }
  if (std::memcmp(bytes.data(), "\x7f"
                                "ELF",
                  std::min<std::size_t>(4, bytes.size())) == 0 &&
      bytes.size() >= 4) {
    return failed("an ELF file; a flat binary is needed (ld --oformat binary)");
  }
  return bytes;
}

}  // namespace kvmid::emulated
