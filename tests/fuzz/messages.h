// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// Messages made from the fuzzer's bytes.
///
/// Purpose:  well-formed ones, of which a run can go deep; a byte of their frame may be changed afterwards, and what
///           then still decodes is what a hostile peer can send.
/// Lifetime: what a message views is in the Tails it was made with.

#include <deque>
#include <vector>

#include "protocol/dialect_kvmi2.h"
#include "tests/fuzz/byte_source.h"

namespace kvmid::fuzz {

inline constexpr std::uint16_t kVcpus = 3;
inline constexpr std::uint64_t kPages = 12;  ///< that messages name; guest memory has a few more
inline constexpr std::uint64_t kGuestRam = (kPages + 4) * kPageSize;

/// Storage for the tails of messages.
struct Tails {
  std::deque<std::vector<std::byte>> bytes;
  Bytes keep(std::vector<std::byte> tail) { return bytes.emplace_back(std::move(tail)); }
  template <class T>
  WireArray<T> array(const std::vector<T>& items) {
    const Bytes view = std::as_bytes(std::span(items));
    return WireArray<T>(keep({view.begin(), view.end()}));
  }
};

/// A frame as a peer would send it.
struct WireFrame {
  std::uint16_t id = 0;
  Seq seq;
  std::vector<std::byte> payload;
};
/// The one frame in `bytes`; aborts where that is not what is in there.
WireFrame frame_of(const ByteBuffer& bytes);
/// Changes up to three bytes of the frame, or its length, or nothing at all.
void damage(WireFrame& frame, ByteSource& source);

/// Any command, its fields mostly small enough to meet those of other commands.
Command some_command(ByteSource& source, Tails& tails);
/// An event of a vCPU; UNHOOK now and then.
Event some_event(ByteSource& source, VcpuId vcpu);
/// A reply to an event of that kind.
EventReply some_reply(ByteSource& source, VcpuId vcpu, EventKind kind);
/// What a hypervisor says to the command when it does it. `space`: for what has to be kept until it is encoded.
CommandReply truthful_reply(const Command& command, Tails& tails);

}  // namespace kvmid::fuzz
