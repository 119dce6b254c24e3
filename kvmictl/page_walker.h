// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// A walk over a guest's page tables while others change them: the guest, kvmid's other agents.
///
/// Purpose:  what maps an address, and the bytes there, without TRANSLATE_GVA. Tables are read in place where guest RAM
///           is granted (client::MappedMemory::read_scatter), with READ_PHYSICAL elsewhere.
/// Shapes:   after a walk every entry that it used is read once more, all in one go, with the bytes that are asked for
///           in front of them. The walk counts only if the entries are as they were, so that they stood side by side at
///           that moment. Else it begins anew, kAttemptsMax times at most. That finds what cookies see, and the guest's
///           own stores too, which no cookie sees; not a table that changed and changed back.
/// Units:    cookies are those of READ_PHYSICAL; what is returned is that of the last read, which had the bytes.
/// Errors:   ClientError. Failed with ErrorCode::Fault: nothing maps it, in words that name the address; with
///           ErrorCode::TryAgain: the tables never stood still.
/// Bounds:   at most five reads of tables for a page, and entries that pages share are read once; times kAttemptsMax.
/// Threads:  none.
/// Lifetime: the memory outlives the walker.
/// Source:   arch/x86/page_walk.h. It is here and not in client/ because libkvmid is LGPL and arch/x86 is GPL.

#include <cstdint>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "arch/x86/page_walk.h"
#include "client/agent_client.h"
#include "client/mapped_memory.h"

namespace kvmid::ctl {

/// Guest physical memory by the shortest way: in place if it is granted and lies in slots, else by message.
class PhysicalMemory {
 public:
  explicit PhysicalMemory(client::AgentClient& client) : client_(client) {}
  PhysicalMemory(const PhysicalMemory&) = delete;
  PhysicalMemory& operator=(const PhysicalMemory&) = delete;
  virtual ~PhysicalMemory() = default;

  /// Asks for guest RAM; reads are in place from now on, for as long as the grant lasts. False: it is not granted.
  bool use_granted();
  /// The mapping as long as it is kept true; else null.
  [[nodiscard]] const client::MappedMemory* mapped();
  /// The cookie, the oldest if it took several messages. In place all ranges are of one moment.
  [[nodiscard]] virtual Result<std::uint64_t, client::ClientError> read(std::span<const client::PhysicalRange> ranges);
  [[nodiscard]] client::AgentClient& client() { return client_; }

 private:
  [[nodiscard]] bool is_in_slots(std::span<const client::PhysicalRange> ranges);

  client::AgentClient& client_;
  std::optional<client::MappedMemory> mapped_;
  std::vector<kvmi_memory_slot> slots_;  ///< of the map that was there at map_changes_
  std::optional<std::uint64_t> map_changes_;
  std::vector<client::MappedRange> parts_;
};

class PageWalker {
 public:
  static constexpr unsigned kAttemptsMax = 64;

  explicit PageWalker(PhysicalMemory& memory) : memory_(memory) {}

  struct Walked {
    x86::Translation translation;
    std::uint64_t cookie = 0;
  };
  [[nodiscard]] Result<Walked, client::ClientError> translate(const x86::PagingState& paging, Gva gva);
  /// Bytes at an address, with their cookie.
  [[nodiscard]] Result<std::uint64_t, client::ClientError> read(const x86::PagingState& paging, Gva gva,
                                                                std::span<std::byte> out);
  /// Walks that counted for nothing because a table changed meanwhile.
  [[nodiscard]] std::uint64_t restarts() const { return restarts_; }

 private:
  struct Piece {
    x86::Translation translation;
    std::span<std::byte> out;
  };
  struct Seen {
    Gpa gpa;
    std::uint64_t value = 0;
    std::uint8_t bytes = 0;
  };
  Result<std::uint64_t, client::ClientError> walk_until_still(const x86::PagingState& paging, Gva gva,
                                                              std::span<std::byte> out);
  std::optional<client::ClientError> walk(const x86::PagingState& paging, Gva gva, std::span<std::byte> out);
  std::optional<Result<std::uint64_t, client::ClientError>> read_and_compare(bool with_bytes);

  PhysicalMemory& memory_;
  std::uint64_t restarts_ = 0;
  // Of the walk under way
  std::vector<Piece> pieces_;
  std::vector<Seen> seen_;                                  ///< entries of tables
  std::unordered_map<std::uint64_t, std::size_t> seen_at_;  ///< by GPA: where in seen_
};

}  // namespace kvmid::ctl
