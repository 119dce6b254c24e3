// SPDX-License-Identifier: GPL-2.0-or-later
#include "tests/integration_many/hypervisor_tap.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <utility>

#include "tests/support/process.h"

namespace kvmid::test {
namespace {

constexpr std::uint32_t kOwnSeq = 0xfffffff0;  // no number that kvmid comes to in a test

sockaddr_un address_of(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) throw TestError("the path is too long for a socket: " + path);
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  return address;
}

bool send_all(int fd, const std::byte* data, std::size_t size) {
  while (size != 0) {
    const ssize_t done = ::send(fd, data, size, MSG_NOSIGNAL);
    if (done <= 0) return false;
    data += done;
    size -= static_cast<std::size_t>(done);
  }
  return true;
}

}  // namespace

HypervisorTap::HypervisorTap(const std::string& from, std::string to) : to_(std::move(to)) {
  listener_ = client::UniqueFd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  wake_ = client::UniqueFd(::eventfd(0, EFD_CLOEXEC));
  const sockaddr_un address = address_of(from);
  if (::bind(listener_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 ||
      ::listen(listener_.get(), 1) != 0)
    throw TestError("cannot listen at " + from);
  thread_ = std::thread([this] { run(); });
}

HypervisorTap::~HypervisorTap() {
  const std::uint64_t one = 1;
  static_cast<void>(::write(wake_.get(), &one, sizeof one) == sizeof one);
  thread_.join();
}

void HypervisorTap::run() {
  while (accept_one()) {
    while (relay()) {}
    const std::lock_guard lock(mutex_);
    up_.reset();
    down_.reset();
    in_.clear();
    shook_hands_ = false;
  }
}

/// A hypervisor that comes while no kvmid listens is closed again, and dials anew. False: the end.
bool HypervisorTap::accept_one() {
  for (;;) {
    std::array<pollfd, 2> polled{{{wake_.get(), POLLIN, 0}, {listener_.get(), POLLIN, 0}}};
    if (::poll(polled.data(), polled.size(), -1) < 0) continue;
    if (polled[0].revents != 0) return false;
    const std::lock_guard lock(mutex_);
    down_ = client::UniqueFd(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    up_ = client::UniqueFd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    const sockaddr_un address = address_of(to_);
    if (::connect(up_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0) return true;
    down_.reset();
  }
}

/// Whatever there is to pass on. False: one side is gone, or the end.
bool HypervisorTap::relay() {
  std::array<pollfd, 3> polled{{{wake_.get(), POLLIN, 0}, {up_.get(), POLLIN, 0}, {down_.get(), POLLIN, 0}}};
  if (::poll(polled.data(), polled.size(), -1) < 0) return true;
  if (polled[0].revents != 0) return false;
  if (polled[1].revents != 0 && !pass_down()) return false;
  return polled[2].revents == 0 || pass_up();
}

bool HypervisorTap::pass_down() {
  std::array<std::byte, 65536> bytes{};
  const ssize_t got = ::recv(up_.get(), bytes.data(), bytes.size(), 0);
  const std::lock_guard lock(mutex_);
  return got > 0 && send_all(down_.get(), bytes.data(), static_cast<std::size_t>(got));
}

/// The handshake comes in one piece, with a descriptor; behind it there are frames.
bool HypervisorTap::pass_up() {
  std::array<std::byte, 65536> bytes{};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(4 * sizeof(int))> control{};
  iovec vector{bytes.data(), bytes.size()};
  msghdr message{};
  message.msg_iov = &vector;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  const ssize_t got = ::recvmsg(down_.get(), &message, MSG_CMSG_CLOEXEC);
  if (got <= 0) return false;
  if (shook_hands_) {
    in_.insert(in_.end(), bytes.begin(), bytes.begin() + got);
    return take_frames();
  }
  shook_hands_ = true;
  vector.iov_len = static_cast<std::size_t>(got);
  const bool sent = ::sendmsg(up_.get(), &message, MSG_NOSIGNAL) == got;
  for (cmsghdr* part = CMSG_FIRSTHDR(&message); part != nullptr; part = CMSG_NXTHDR(&message, part)) {
    for (std::size_t at = CMSG_LEN(0); at + sizeof(int) <= part->cmsg_len; at += sizeof(int)) {
      int fd = -1;
      std::memcpy(&fd, reinterpret_cast<const char*>(part) + at, sizeof fd);
      ::close(fd);
    }
  }
  return sent;
}

bool HypervisorTap::take_frames() {
  std::size_t at = 0;
  bool sent = true;
  while (sent && in_.size() - at >= sizeof(kvmi_msg_hdr)) {
    kvmi_msg_hdr header{};
    std::memcpy(&header, in_.data() + at, sizeof header);
    const std::size_t size = sizeof header + header.size;
    if (in_.size() - at < size) break;
    if (header.id == KVMI_MSG_GET_PAGE_ACCESS && header.seq == kOwnSeq) {
      const std::lock_guard lock(mutex_);
      answer_.emplace(in_.data() + at + sizeof header, in_.data() + at + size);
      answered_.notify_one();
    } else {
      sent = send_all(up_.get(), in_.data() + at, size);
    }
    at += size;
  }
  in_.erase(in_.begin(), in_.begin() + static_cast<std::ptrdiff_t>(at));
  return sent;
}

std::vector<std::uint8_t> HypervisorTap::page_rights(Gpa gpa, std::uint32_t pages) {
  struct Question {
    kvmi_msg_hdr header{KVMI_MSG_GET_PAGE_ACCESS, sizeof(kvmi_get_page_access), kOwnSeq};
    kvmi_get_page_access body{};
  } question;
  question.body = {gpa.value, pages, KVMI_ADDRESS_SPACE_NORMAL, 0};
  std::unique_lock lock(mutex_);
  answer_.reset();
  if (!down_ || !send_all(down_.get(), reinterpret_cast<const std::byte*>(&question), sizeof question))
    throw TestError("the hypervisor cannot be asked");
  if (!answered_.wait_for(lock, kBound, [&] { return answer_.has_value(); }))
    throw TestError("the hypervisor does not answer");
  struct {
    kvmi_error error{};
    kvmi_get_page_access_reply reply{};
  } head;
  if (answer_->size() < sizeof head) throw TestError("the hypervisor answers with an error");
  std::memcpy(&head, answer_->data(), sizeof head);
  if (head.error.error_code != 0) throw TestError("the hypervisor answers with an error");
  std::vector<std::uint8_t> rights;
  for (std::uint32_t i = 0; i < head.reply.count; ++i) {
    kvmi_page_access_entry entry{};
    std::memcpy(&entry, answer_->data() + sizeof head + i * sizeof entry, sizeof entry);
    rights.insert(rights.end(), entry.pages, entry.access);
  }
  if (rights.size() != pages) throw TestError("the hypervisor tells of another number of pages");
  return rights;
}

}  // namespace kvmid::test
