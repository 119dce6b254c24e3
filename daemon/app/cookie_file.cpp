// SPDX-License-Identifier: GPL-2.0-or-later
#include "daemon/app/cookie_file.h"

#include <fcntl.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <optional>

#include "daemon/io/unique_fd.h"

namespace kvmid::app {
namespace {

/// Room for the largest secret, its newline, and one byte that tells a file that is too large.
class Secret {
 public:
  Secret() = default;
  ~Secret() { OPENSSL_cleanse(bytes_.data(), bytes_.size()); }
  Secret(const Secret&) = delete;
  Secret& operator=(const Secret&) = delete;

  /// False, with errno, where the file cannot be read.
  [[nodiscard]] bool read(int fd) {
    while (size_ < bytes_.size()) {
      const ssize_t n = ::read(fd, bytes_.data() + size_, bytes_.size() - size_);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return false;
      if (n == 0) break;
      size_ += static_cast<std::size_t>(n);
    }
    if (size_ != 0 && bytes_[size_ - 1] == '\n') --size_;
    return true;
  }
  [[nodiscard]] std::size_t size() const { return size_; }
  [[nodiscard]] std::optional<io::CookieHash> hash() const {
    io::CookieHash out{};
    unsigned written = 0;
    if (EVP_Digest(bytes_.data(), size_, out.data(), &written, EVP_sha1(), nullptr) != 1 || written != out.size())
      return std::nullopt;
    return out;
  }

 private:
  std::array<unsigned char, kCookieMax + 2> bytes_{};
  std::size_t size_ = 0;
};

std::optional<std::string> not_private(const struct stat& file, const std::string& name, CookieFiles how,
                                       std::uint32_t own_uid) {
  if (!S_ISREG(file.st_mode)) return name + " is not a regular file";
  const bool any_owner = how == CookieFiles::Check && own_uid == 0;
  if (file.st_uid != 0 && file.st_uid != own_uid && !any_owner) {
    const std::string own = own_uid == 0 ? "" : " or to the user kvmid runs as (uid " + std::to_string(own_uid) + ")";
    return name + " belongs to uid " + std::to_string(file.st_uid) + " and must belong to root" + own;
  }
  if ((file.st_mode & 077U) != 0) {
    std::array<char, 16> mode{};
    std::snprintf(mode.data(), mode.size(), "%04o", static_cast<unsigned>(file.st_mode & 07777U));
    return "the mode of " + name + " is " + mode.data() + " and must be 0600: a secret is for its owner alone";
  }
  return std::nullopt;
}

}  // namespace

Result<io::CookieHash, std::string> read_cookie_file(const std::string& file, CookieFiles how, std::uint32_t own_uid) {
  const std::string name = "\"" + file + "\"";
  // Not blocking: a pipe that nobody writes to must not hold kvmid up.
  const io::UniqueFd fd(::open(file.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
  if (!fd.valid()) {
    if (errno == ENOENT) return "there is no file " + name;
    return "cannot open " + name + ": " + std::strerror(errno);
  }
  struct stat about {};
  if (::fstat(fd.get(), &about) != 0) return "cannot look at " + name + ": " + std::strerror(errno);
  if (auto wrong = not_private(about, name, how, own_uid)) return std::move(*wrong);

  Secret secret;
  if (!secret.read(fd.get())) return "cannot read " + name + ": " + std::strerror(errno);
  if (secret.size() == 0) return name + " is empty: there is no secret in it";
  if (secret.size() > kCookieMax) return name + " holds more than " + std::to_string(kCookieMax) + " bytes";
  const auto hash = secret.hash();
  if (!hash) return std::string("the system's OpenSSL does not offer SHA-1");
  return *hash;
}

}  // namespace kvmid::app
