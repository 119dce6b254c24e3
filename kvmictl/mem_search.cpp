// SPDX-License-Identifier: GPL-2.0-or-later
#include "kvmictl/mem_search.h"

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "client/event_text.h"
#include "kvmictl/guest_commands.h"
#include "kvmictl/guest_memory.h"
#include "kvmictl/json_text.h"

namespace kvmid::ctl {

using namespace kvmid::client;  // NOLINT(google-build-using-namespace): this file is an agent

namespace {

constexpr std::uint64_t kPiece = 1U << 20U;

}  // namespace

bool PieceSearch::feed(std::span<const std::byte> piece, const std::function<bool(std::uint64_t)>& found) {
  window_.insert(window_.end(), piece.begin(), piece.end());
  next_ += piece.size();
  const std::uint64_t base = next_ - window_.size();
  for (std::size_t at = 0; window_.size() - at >= pattern_.size();) {
    const void* hit = ::memmem(window_.data() + at, window_.size() - at, pattern_.data(), pattern_.size());
    if (hit == nullptr) break;
    const auto place = static_cast<std::size_t>(static_cast<const std::byte*>(hit) - window_.data());
    if (!found(base + place)) return false;
    at = place + 1;
  }
  const std::size_t keep = std::min(window_.size(), pattern_.size() - 1);
  window_.erase(window_.begin(), window_.end() - static_cast<std::ptrdiff_t>(keep));
  return true;
}

int mem_search(const Arguments& arguments) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);  // lines are whole also in a pipe
  auto memory = GuestMemory::open(arguments);
  if (!memory) return explain(memory.error());
  const auto slots = memory->client().get_memory_map();
  if (!slots) return explain(slots.error());
  std::uint64_t places = 0;
  bool written = true;
  const auto found = [&](std::uint64_t gpa) {
    const std::string line = arguments.json ? Json{{"schema", 1}, {"gpa", hex(gpa)}}.dump() : hex(gpa);
    written = std::fprintf(stdout, "%s\n", line.c_str()) >= 0;
    return written && ++places != arguments.count;
  };
  PieceSearch search(arguments.data);
  std::vector<std::byte> buffer(kPiece);
  for (const auto& run : runs_of(*slots)) {
    search.begin(run.gpa);
    for (std::uint64_t done = 0; done < run.bytes;) {
      const auto piece = std::span(buffer).first(std::min(kPiece, run.bytes - done));
      if (const auto read = memory->read(run.gpa + done, piece); !read) return explain(read.error());
      if (!search.feed(piece, found)) {
        if (written) return kOk;
        std::fprintf(stderr, "kvmictl: stdout takes no more\n");
        return kFailed;
      }
      done += piece.size();
    }
  }
  if (places != 0) return kOk;
  std::fprintf(stderr, "kvmictl: nowhere in the memory of %s\n", memory->client().welcome().guest_name.c_str());
  return kFailed;
}

}  // namespace kvmid::ctl
