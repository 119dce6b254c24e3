// SPDX-License-Identifier: GPL-2.0-or-later
#include "daemon/io/shared_ram.h"

#include <fcntl.h>

#include <cerrno>

namespace kvmid::io {

Result<std::unique_ptr<SharedRam>, shm::Error> SharedRam::map(shm::UniqueFd fd, std::uint64_t bytes,
                                                              std::uint64_t generation) {
  auto ram = shm::GuestRam::map(std::move(fd), bytes);
  if (!ram) return ram.error();
  auto page = shm::GenerationPage::create({.ram_bytes = bytes, .generation = generation});
  if (!page) return page.error();
  return std::unique_ptr<SharedRam>(new SharedRam(std::move(*ram), std::move(*page)));
}

Result<void, shm::Error> SharedRam::read(const WireArray<kvmi_read_range>& ranges, std::span<std::byte> to) {
  for (std::size_t i = 0; i < ranges.size(); ++i) {
    const kvmi_read_range range = ranges[i];
    const auto done = ram_->read(Gpa{range.gpa}, to.first(range.size));
    if (!done) return done.error();
    to = to.subspan(range.size);
  }
  return {};
}

std::string_view SharedRam::refusal_for(const core::Peer& peer) const {
  if (!peer.uid) return "descriptors can be given over a unix socket only";
  if (ram_->writable_by(*peer.uid)) return "this agent's user could open guest RAM again for writing";
  return {};
}

Result<std::vector<shm::UniqueFd>, shm::Error> SharedRam::descriptors(const shm::GrantFile& grant) const {
  auto ram = ram_->read_only_fd();
  if (!ram) return ram.error();
  std::vector<shm::UniqueFd> all;
  all.push_back(std::move(*ram));
  for (const int fd : {page_.fd(), grant.fd()}) {
    shm::UniqueFd& copy = all.emplace_back(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
    if (!copy.valid()) return shm::system_error("a descriptor cannot be copied", errno);
  }
  return all;
}

}  // namespace kvmid::io
