// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// The file of `mem dump`: where memory goes in it, and what is kept beside it until it is done.
///
/// Purpose:  a dump that was interrupted goes on where it was, and is the same file in the end.
/// Shapes:   raw: offset = GPA. elf: an ELF64 core, a PT_NOTE that names the guest, then a PT_LOAD for each slot with
///           p_paddr = p_vaddr = GPA.
/// Errors:   texts for people, with the file's name.
/// Bounds:   pages of zeros are holes of the file.
/// Lifetime: FILE.resume is written anew after each kCheckpointBytes, and removed by finish(). It is replaced by a
/// rename,
///           and what it says is in FILE is there before it.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "client/socket.h"
#include "kvmictl/arguments.h"
#include "protocol/ids.h"
#include "protocol/kvmi.h"
#include "protocol/result.h"

namespace kvmid::ctl {

struct DumpPart {
  std::uint64_t gpa = 0;
  std::uint64_t bytes = 0;
  std::uint64_t offset = 0;  ///< in the file
  bool read_only = false;
};
struct DumpLayout {
  DumpFormat format{};
  std::vector<DumpPart> parts;     ///< one for each slot, ascending in memory and in the file
  std::uint64_t memory_bytes = 0;  ///< of all parts
  std::uint64_t file_bytes = 0;
  std::vector<std::byte> header;  ///< of an ELF file

  /// Where byte `done` of all parts together is in the file.
  [[nodiscard]] std::uint64_t offset_of(std::uint64_t done) const;
};
/// `note` is what the ELF file says of its guest.
DumpLayout lay_out(DumpFormat format, std::span<const kvmi_memory_slot> slots, const std::string& note);

struct DumpError {
  std::string text;
};
template <class T>
using DumpResult = Result<T, DumpError>;

/// What FILE.resume says.
struct Checkpoint {
  std::string guest;  ///< uuid
  DumpFormat format{};
  std::vector<kvmi_memory_slot> slots;
  std::uint64_t done = 0;    ///< bytes of all parts that are in the file
  std::uint64_t cookie = 0;  ///< at the beginning
};
std::string to_text(const Checkpoint& checkpoint);
/// The error says what is wrong with the text.
DumpResult<Checkpoint> parse_checkpoint(const std::string& text);

class DumpFile {
 public:
  static constexpr std::uint64_t kCheckpointBytes = 16U << 20U;

  /// A file that was not there, readable by its owner alone.
  static DumpResult<DumpFile> create(const std::string& path, Checkpoint checkpoint, const std::string& note);
  /// Goes on: `now` is the guest and its slots as they are now, done and cookie become what the file says.
  static DumpResult<DumpFile> resume(const std::string& path, Checkpoint now, const std::string& note);

  [[nodiscard]] const DumpLayout& layout() const { return layout_; }
  [[nodiscard]] const Checkpoint& checkpoint() const { return checkpoint_; }
  [[nodiscard]] std::uint64_t done() const { return checkpoint_.done; }
  [[nodiscard]] std::uint64_t zero_bytes() const { return zero_bytes_; }
  /// The next bytes, within one part.
  DumpResult<void> append(std::span<const std::byte> bytes);
  /// Makes sure that resume() goes on behind what was appended.
  DumpResult<void> save();
  DumpResult<void> finish();

 private:
  DumpFile(std::string path, client::UniqueFd fd, Checkpoint checkpoint, DumpLayout layout)
      : path_(std::move(path)), fd_(std::move(fd)), checkpoint_(std::move(checkpoint)), layout_(std::move(layout)) {}
  DumpResult<void> write_at(std::uint64_t offset, std::span<const std::byte> bytes);
  DumpResult<void> prepare();

  std::string path_;
  client::UniqueFd fd_;
  Checkpoint checkpoint_;
  DumpLayout layout_;
  std::uint64_t saved_ = 0;
  std::uint64_t zero_bytes_ = 0;
};

/// "[======>       ]  45%  7.2 of 16.0 MiB, 120 MiB/s", at most `width` characters (0: no limit).
std::string progress_line(std::uint64_t done, std::uint64_t total, double mib_per_second, std::size_t width);

}  // namespace kvmid::ctl
