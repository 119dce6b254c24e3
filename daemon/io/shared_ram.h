// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "daemon/core/effects.h"
#include "daemon/core/policy.h"
#include "daemon/shm/generation_page.h"
#include "daemon/shm/guest_ram.h"

namespace kvmid::io {

/// Guest RAM that a hypervisor shares, and the page that tells agents with a mapping of it what changes.
///
/// Purpose:  what a GuestSession does with the effects of its machine that are about RAM.
/// Errors:   map(): why it is not shared; the guest is served by messages then. read(): the mapping is dead.
/// Threads:  the guest's shard.
/// Lifetime: of the hypervisor's connection. With it every grant ends.
class SharedRam {
 public:
  /// `generation` is the machine's current one, of the normal address space.
  static Result<std::unique_ptr<SharedRam>, shm::Error> map(shm::UniqueFd fd, std::uint64_t bytes,
                                                            std::uint64_t generation);

  [[nodiscard]] std::uint64_t bytes() const { return ram_->bytes(); }
  [[nodiscard]] std::uint64_t generation_bytes() const { return page_.bytes(); }
  /// The ranges one after another. `to` is as long as all of them.
  Result<void, shm::Error> read(const WireArray<kvmi_read_range>& ranges, std::span<std::byte> to);
  /// Why that peer is not given descriptors; empty: it may be.
  [[nodiscard]] std::string_view refusal_for(const core::Peer& peer) const;
  /// Guest RAM, the generation page, and the agent's own.
  Result<std::vector<shm::UniqueFd>, shm::Error> descriptors(const shm::GrantFile& grant) const;

  void apply(const core::RamChanging& e) { page_.begin_change(e.gpa, e.bytes, e.generation); }
  void apply(const core::RamChanged& e) { page_.end_change(e.gpa, e.bytes); }
  void apply(const core::RamPatched& e) { page_.set_patched(e.gpa, e.bytes, e.on, e.generation); }
  void apply(const core::RamMapChanged& e) { page_.change_map(e.generation); }

 private:
  SharedRam(std::unique_ptr<shm::GuestRam> ram, shm::GenerationPage page)
      : ram_(std::move(ram)), page_(std::move(page)) {}

  std::unique_ptr<shm::GuestRam> ram_;
  shm::GenerationPage page_;
};

}  // namespace kvmid::io
