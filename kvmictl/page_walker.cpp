// SPDX-License-Identifier: GPL-2.0-or-later
#include "kvmictl/page_walker.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "client/event_text.h"
#include "kvmictl/guest_memory.h"

namespace kvmid::ctl {

using namespace kvmid::client;  // NOLINT(google-build-using-namespace): this file is an agent

namespace {

ClientError failed(ErrorCode code, std::string text) {
  return ClientError{ClientErrc::Failed, code, std::move(text), 0};
}

/// The range is not all memory.
bool is_fault(const ClientError& error) { return error.kind == ClientErrc::Failed && error.code == ErrorCode::Fault; }

}  // namespace

// ---- physical memory ----

const MappedMemory* PhysicalMemory::mapped() {
  if (mapped_ && mapped_->revoked()) mapped_.reset();
  return mapped_ ? &*mapped_ : nullptr;
}

Result<std::uint64_t, ClientError> PhysicalMemory::read(std::span<const PhysicalRange> ranges) {
  if (mapped() != nullptr && is_in_slots(ranges)) {
    parts_.clear();
    for (const auto& range : ranges) parts_.push_back({range.gpa, range.out});
    if (const auto cookie = mapped_->read_scatter(parts_)) return *cookie;
    // Patched, or never still: kvmid is asked, and answers in its turn.
  }
  return client_.read_scatter(ranges);
}

/// Holes read as zeros in place; kvmid says that there is no memory. The map is asked for again when it has changed.
bool PhysicalMemory::is_in_slots(std::span<const PhysicalRange> ranges) {
  const std::uint64_t changes = mapped_->map_changes();
  if ((changes & 1) != 0) return false;
  if (map_changes_ != changes) {
    auto slots = client_.get_memory_map();
    if (!slots) {
      mapped_.reset();  // what is memory cannot be known
      return false;
    }
    slots_ = std::move(*slots);
    map_changes_ = changes;
  }
  return std::all_of(ranges.begin(), ranges.end(), [this](const PhysicalRange& range) {
    const std::uint64_t bytes = range.out.size();
    if (bytes != 0 && range.gpa.value + (bytes - 1) < range.gpa.value) return false;
    return bytes == 0 || range_fault(slots_, range.gpa.value, bytes).empty();
  });
}

bool PhysicalMemory::use_granted() {
  // Root could open guest RAM for writing, and is refused by every kvmid: a line in its audit log for each command.
  const CommandSet& commands = client_.welcome().commands;
  if (::geteuid() == 0 || !commands.has(CommandId::GrantMemory) || !commands.has(CommandId::GetMemoryMap)) return false;
  const auto granted = client_.grant_memory();
  if (!granted) return false;
  auto memory = MappedMemory::map(*granted, {});
  if (memory) mapped_.emplace(std::move(*memory));
  return static_cast<bool>(memory);
}

// ---- walks ----

/// One walk over all pages of the range; entries are read once, and kept in seen_. An error: why it did not get far.
std::optional<ClientError> PageWalker::walk(const x86::PagingState& paging, Gva gva, std::span<std::byte> out) {
  std::optional<ClientError> lost;
  const auto read_table = [&](Gpa gpa, void* to, std::size_t size) {
    const auto [place, is_new] = seen_at_.try_emplace(gpa.value, seen_.size());
    if (is_new) {
      Seen entry{gpa, 0, static_cast<std::uint8_t>(size)};
      const PhysicalRange range{gpa, std::as_writable_bytes(std::span(&entry.value, 1)).first(size)};
      if (const auto read = memory_.read(std::span(&range, 1)); !read) {
        if (!is_fault(read.error())) lost = read.error();
        seen_at_.erase(place);
        return false;
      }
      seen_.push_back(entry);
    }
    std::memcpy(to, &seen_[place->second].value, size);  // little-endian, as x86 is
    return true;
  };
  std::uint64_t done = 0;
  do {  // once where nothing is to be read: the address itself is asked for
    const Gva at{gva.value + done};
    const auto found = x86::translate(paging, at, read_table);
    if (lost) return lost;
    if (!found)
      return failed(ErrorCode::Fault,
                    "GVA " + hex(at.value) + " is not mapped: " + std::string(x86::text_of(found.error().cause)));
    const std::uint64_t part =
        std::min<std::uint64_t>(out.size() - done, found->page_bytes - found->gpa.value % found->page_bytes);
    pieces_.push_back({*found, out.subspan(done, part)});
    done += part;
  } while (done < out.size());
  return std::nullopt;
}

/// Reads what the pieces are to have, then every entry once more. nullopt: one of those is another now.
std::optional<Result<std::uint64_t, ClientError>> PageWalker::read_and_compare(bool with_bytes) {
  std::vector<PhysicalRange> ranges;
  if (with_bytes)
    for (const Piece& piece : pieces_)
      if (!piece.out.empty()) ranges.push_back({piece.translation.gpa, piece.out});
  std::vector<std::uint64_t> now(seen_.size());
  for (std::size_t i = 0; i < seen_.size(); ++i)
    ranges.push_back({seen_[i].gpa, std::as_writable_bytes(std::span(&now[i], 1)).first(seen_[i].bytes)});
  const auto cookie = memory_.read(ranges);
  if (!cookie) {
    // An entry that was half old and half new may have led out of memory.
    const bool by_bytes = with_bytes && is_fault(cookie.error());
    return by_bytes && !read_and_compare(false) ? std::nullopt : std::optional(cookie);
  }
  for (std::size_t i = 0; i < seen_.size(); ++i)
    if (now[i] != seen_[i].value) return std::nullopt;
  return cookie;
}

Result<std::uint64_t, ClientError> PageWalker::walk_until_still(const x86::PagingState& paging, Gva gva,
                                                                std::span<std::byte> out) {
  for (unsigned attempt = 0; attempt < kAttemptsMax; ++attempt) {
    if (attempt != 0) ++restarts_;
    seen_.clear();
    seen_at_.clear();
    pieces_.clear();
    const auto ended = walk(paging, gva, out);
    if (ended && !is_fault(*ended)) return *ended;
    // That nothing maps it must have been true at some moment, too.
    const auto cookie = read_and_compare(!ended);
    if (!cookie) continue;
    if (ended && *cookie) return *ended;
    return *cookie;
  }
  return failed(ErrorCode::TryAgain, "the page tables of GVA " + hex(gva.value) + " changed under each of " +
                                         std::to_string(kAttemptsMax) + " walks: stop the vCPUs that change them");
}

Result<PageWalker::Walked, ClientError> PageWalker::translate(const x86::PagingState& paging, Gva gva) {
  const auto cookie = walk_until_still(paging, gva, {});
  if (!cookie) return cookie.error();
  return Walked{pieces_.front().translation, *cookie};
}

Result<std::uint64_t, ClientError> PageWalker::read(const x86::PagingState& paging, Gva gva,
                                                    std::span<std::byte> out) {
  if (!out.empty() && gva.value + (out.size() - 1) < gva.value)
    return ClientError{ClientErrc::BadArgument, ErrorCode::Invalid, "the range goes past the end of the address space"};
  return walk_until_still(paging, gva, out);
}

}  // namespace kvmid::ctl
