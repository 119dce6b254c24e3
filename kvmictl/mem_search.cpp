// SPDX-License-Identifier: GPL-2.0-or-later
#include "kvmictl/mem_search.h"

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "client/event_text.h"
#include "kvmictl/guest_commands.h"
#include "kvmictl/guest_memory.h"
#include "kvmictl/json_text.h"
#include "kvmictl/piece_reader.h"

namespace kvmid::ctl {

using namespace kvmid::client;  // NOLINT(google-build-using-namespace): this file is an agent

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
  const auto places = memory->places();
  if (!places) return explain(places.error());
  warn_of_holes(*places);
  std::uint64_t hits = 0;
  bool written = true;
  const auto found = [&](std::uint64_t gpa) {
    const std::string line = arguments.json ? Json{{"schema", 1}, {"gpa", hex(gpa)}}.dump() : hex(gpa);
    written = std::fprintf(stdout, "%s\n", line.c_str()) >= 0;
    return written && ++hits != arguments.count;
  };
  PieceSearch search(arguments.data);
  PieceReader reader([&](std::uint64_t gpa, std::span<std::byte> out) { return memory->read(gpa, out); },
                     places->told ? PieceReader::Holes::AreErrors : PieceReader::Holes::AreFound);
  std::vector<std::byte> buffer(PieceReader::kPieceMax);
  for (const auto& run : runs_of(places->slots)) {
    search.begin(run.gpa);
    for (std::uint64_t done = 0; done < run.bytes;) {
      const auto out = std::span(buffer).first(std::min<std::uint64_t>(buffer.size(), run.bytes - done));
      const auto piece = reader.next(run.gpa + done, out);
      if (!piece) return explain(piece.error());
      done += piece->bytes;
      if (!piece->is_memory) {
        search.begin(run.gpa + done);
        continue;
      }
      if (!search.feed(out.first(piece->bytes), found)) {
        if (written) return kOk;
        std::fprintf(stderr, "kvmictl: stdout takes no more\n");
        return kFailed;
      }
    }
  }
  if (hits != 0) return kOk;
  std::fprintf(stderr, "kvmictl: nowhere in the memory of %s\n", memory->client().welcome().guest_name.c_str());
  return kFailed;
}

}  // namespace kvmid::ctl
