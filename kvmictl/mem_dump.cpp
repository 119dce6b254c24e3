// SPDX-License-Identifier: GPL-2.0-or-later
//
// mem dump: all of a guest's memory into a file.

#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <optional>

#include "client/agent_loop.h"
#include "kvmictl/dump_file.h"
#include "kvmictl/guest_commands.h"
#include "kvmictl/guest_memory.h"
#include "kvmictl/json_text.h"
#include "kvmictl/piece_reader.h"
#include "kvmictl/table.h"
#include "protocol/handshake.h"

namespace kvmid::ctl {

using namespace kvmid::client;  // NOLINT(google-build-using-namespace): this file is an agent

namespace {

constexpr std::chrono::milliseconds kDrawEvery{100};

void warn(const std::string& text) { std::fprintf(stderr, "kvmictl: %s\n", printable(text).c_str()); }

/// A bar on a terminal, nothing elsewhere.
class Progress {
 public:
  Progress(std::uint64_t done, std::uint64_t total)
      : begun_at_(done), total_(total), draws_(::isatty(STDERR_FILENO) == 1), width_(terminal_width()) {}
  ~Progress() {
    if (drawn_) std::fputs("\n", stderr);
  }
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void draw(std::uint64_t done) {
    const auto now = SteadyClock::now();
    if (!draws_ || (drawn_ && done != total_ && now - last_ < kDrawEvery)) return;
    last_ = now;
    drawn_ = true;
    const std::chrono::duration<double> seconds = now - start_;
    const double rate = seconds.count() > 0 ? static_cast<double>(done - begun_at_) / 1048576.0 / seconds.count() : 0;
    std::fprintf(stderr, "\r%s\x1b[K", progress_line(done, total_, rate, width_ > 0 ? width_ - 1 : 0).c_str());
  }

 private:
  std::uint64_t begun_at_, total_;
  bool draws_, drawn_ = false;
  std::size_t width_;
  SteadyClock::time_point start_ = SteadyClock::now(), last_{};
};

struct Ended {
  int code = kOk;
  std::uint64_t cookie = 0;      ///< of the last read
  std::uint64_t hole_bytes = 0;  ///< found by this run where the map is not told
};

/// A cookie from before anything is in the file. Nothing: no memory was found, or the user does not want to wait.
Result<std::optional<std::uint64_t>, ClientError> first_cookie(const MemoryPlaces& places, PieceReader& reader,
                                                               StopSignal& stop) {
  const auto& slot = places.slots.front();
  std::array<std::byte, kPageSize> page{};
  for (std::uint64_t done = 0; done < slot.bytes && !stop.wait(Millis{0});) {
    const auto out = std::span(page).first(std::min<std::uint64_t>(page.size(), slot.bytes - done));
    const auto piece = reader.next(slot.gpa + done, out);
    if (!piece) return piece.error();
    if (piece->is_memory) return std::optional(piece->cookie);
    done += piece->bytes;
  }
  return std::optional<std::uint64_t>();
}

/// Reads and writes from where the file is to the end.
Ended copy_all(const Arguments& arguments, PieceReader& reader, DumpFile& file, StopSignal& stop) {
  const auto& layout = file.layout();
  Progress progress(file.done(), layout.memory_bytes);
  const auto begun = SteadyClock::now();
  const std::uint64_t begun_at = file.done();
  std::vector<std::byte> buffer(PieceReader::kPieceMax);
  Ended ended{kOk, file.checkpoint().cookie, 0};
  const auto give_up = [&](int code) {
    if (auto saved = file.save(); !saved)
      warn(saved.error().text);
    else
      warn(std::to_string(file.done()) + " of " + std::to_string(layout.memory_bytes) + " bytes are in " +
           arguments.file + "; --resume goes on");
    ended.code = code;
    return ended;
  };
  std::uint64_t before_part = 0;
  for (const auto& part : layout.parts) {
    const std::uint64_t part_end = before_part + part.bytes;
    while (file.done() < part_end) {
      progress.draw(file.done());
      const std::uint64_t at = part.gpa + (file.done() - before_part);
      const auto out = std::span(buffer).first(std::min<std::uint64_t>(buffer.size(), part_end - file.done()));
      const auto read = reader.next(at, out);
      if (!read) {
        const int code = explain(read.error());
        return give_up(code);
      }
      const auto piece = out.first(read->bytes);
      if (read->is_memory) {
        ended.cookie = read->cookie;
      } else {
        std::fill(piece.begin(), piece.end(), std::byte{0});
        ended.hole_bytes += piece.size();
      }
      if (auto written = file.append(piece); !written) {
        warn(written.error().text);
        ended.code = kFailed;
        return ended;
      }
      Millis pause{0};
      if (arguments.memory.rate != 0) {
        const std::uint64_t copied = file.done() - begun_at - ended.hole_bytes;
        const double seconds = static_cast<double>(copied) / static_cast<double>(arguments.memory.rate);
        const auto due =
            begun + std::chrono::duration_cast<SteadyClock::duration>(std::chrono::duration<double>(seconds));
        pause = std::max(Millis{0}, std::chrono::duration_cast<Millis>(due - SteadyClock::now()));
      }
      if (stop.wait(std::min(pause, Millis{3'600'000}))) return give_up(kFailed);
    }
    before_part = part_end;
  }
  progress.draw(layout.memory_bytes);
  return ended;
}

}  // namespace

int mem_dump(const Arguments& arguments) {
  StopSignal stop;
  auto memory = GuestMemory::open(arguments);
  if (!memory) return explain(memory.error());
  const auto places = memory->places();
  if (!places) return explain(places.error());
  const auto& slots = places->slots;
  if (slots.empty()) {
    warn("this guest has no memory");
    return kFailed;
  }
  warn_of_holes(*places);
  PieceReader reader([&](std::uint64_t gpa, std::span<std::byte> out) { return memory->read(gpa, out); },
                     places->told ? PieceReader::Holes::AreErrors : PieceReader::Holes::AreFound);
  const auto cookie = first_cookie(*places, reader, stop);
  if (!cookie) return explain(cookie.error());
  if (!*cookie) {
    warn("no memory of this guest was found; nothing was written");
    return kFailed;
  }
  const auto& welcome = memory->client().welcome();
  const std::string uuid = to_string(welcome.guest);
  Checkpoint begin{uuid, arguments.memory.format, slots, 0, **cookie};
  const std::string note = "guest " + welcome.guest_name + " " + uuid;
  auto file = arguments.memory.resume ? DumpFile::resume(arguments.file, std::move(begin), note)
                                      : DumpFile::create(arguments.file, std::move(begin), note);
  if (!file) {
    warn(file.error().text);
    return kFailed;
  }
  const std::uint64_t resumed_at = file->done();
  const Ended ended = copy_all(arguments, reader, *file, stop);
  if (ended.code != kOk) return ended.code;

  const auto after = memory->places();
  if (!after) return explain(after.error());
  const bool same_map = std::equal(after->slots.begin(), after->slots.end(), slots.begin(), slots.end(),
                                   [](const kvmi_memory_slot& a, const kvmi_memory_slot& b) {
                                     return a.gpa == b.gpa && a.bytes == b.bytes && a.flags == b.flags;
                                   });
  if (auto done = file->finish(); !done) {
    warn(done.error().text);
    return kFailed;
  }
  const auto& layout = file->layout();
  const char* format = layout.format == DumpFormat::Elf ? "elf" : "raw";
  const std::uint64_t began = file->checkpoint().cookie;
  if (arguments.json) {
    const Json json{{"schema", 1},
                    {"guest", uuid},
                    {"file", arguments.file},
                    {"format", format},
                    {"slots", slots.size()},
                    {"map_told", places->told},
                    {"hole_bytes", ended.hole_bytes},
                    {"bytes", layout.memory_bytes},
                    {"file_bytes", layout.file_bytes},
                    {"zero_bytes", file->zero_bytes()},
                    {"resumed_at", resumed_at},
                    {"cookie_before", began},
                    {"cookie", ended.cookie},
                    {"map_changed", !same_map}};
    std::fprintf(stdout, "%s\n", json.dump(-1, ' ', false, Json::error_handler_t::replace).c_str());
  } else {
    std::fprintf(stdout, "dumped %llu bytes in %zu slots to %s (%s)\n",
                 static_cast<unsigned long long>(layout.memory_bytes), slots.size(), printable(arguments.file).c_str(),
                 format);
    if (!places->told) {
      std::fprintf(stdout, "%llu bytes of them are holes that this run found: zeros in the file\n",
                   static_cast<unsigned long long>(ended.hole_bytes));
    }
    if (began != ended.cookie) {
      std::fprintf(stdout, "kvmid saw changes of guest memory meanwhile: cookie %llu -> %llu\n",
                   static_cast<unsigned long long>(began), static_cast<unsigned long long>(ended.cookie));
    }
  }
  if (same_map) return kOk;
  warn("the memory map of the guest changed meanwhile: the file is of no single moment's map");
  return kFailed;
}

}  // namespace kvmid::ctl
