// SPDX-License-Identifier: GPL-2.0-or-later
#include "kvmictl/dump_file.h"

#include <elf.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <limits>
#include <utility>

#include "kvmictl/json_text.h"

namespace kvmid::ctl {

namespace {

constexpr const char* kNoteName = "KVMID";
constexpr std::uint64_t kCheckpointTextMax = 1U << 20U;

std::string failed(const std::string& path, const char* what) {
  return std::string("cannot ") + what + " " + path + ": " + std::strerror(errno);
}
std::string resume_path(const std::string& path) { return path + ".resume"; }

template <class T>
void put(std::vector<std::byte>& out, const T& value) {
  const auto bytes = std::as_bytes(std::span(&value, 1));
  out.insert(out.end(), bytes.begin(), bytes.end());
}
void put(std::vector<std::byte>& out, const std::string& text) {
  for (const char c : text) out.push_back(static_cast<std::byte>(c));
  out.push_back(std::byte{0});
  while (out.size() % 4 != 0) out.push_back(std::byte{0});
}

std::vector<std::byte> elf_header(DumpLayout& layout, const std::string& note) {
  std::vector<std::byte> notes;
  put(notes, Elf64_Nhdr{.n_namesz = static_cast<Elf64_Word>(std::strlen(kNoteName) + 1),
                        .n_descsz = static_cast<Elf64_Word>(note.size() + 1),
                        .n_type = 1});
  put(notes, std::string(kNoteName));
  put(notes, note);

  const std::size_t heads = sizeof(Elf64_Ehdr) + (layout.parts.size() + 1) * sizeof(Elf64_Phdr);
  std::uint64_t offset = (heads + notes.size() + kPageSize - 1) / kPageSize * kPageSize;
  for (auto& part : layout.parts) {
    part.offset = offset;
    offset += part.bytes;
  }
  layout.file_bytes = offset;

  Elf64_Ehdr head{};
  std::memcpy(head.e_ident, ELFMAG, SELFMAG);
  head.e_ident[EI_CLASS] = ELFCLASS64;
  head.e_ident[EI_DATA] = ELFDATA2LSB;
  head.e_ident[EI_VERSION] = EV_CURRENT;
  head.e_type = ET_CORE;
  head.e_machine = EM_X86_64;
  head.e_version = EV_CURRENT;
  head.e_phoff = sizeof head;
  head.e_ehsize = sizeof head;
  head.e_phentsize = sizeof(Elf64_Phdr);
  head.e_phnum = static_cast<Elf64_Half>(layout.parts.size() + 1);
  std::vector<std::byte> out;
  put(out, head);
  Elf64_Phdr note_head{};
  note_head.p_type = PT_NOTE;
  note_head.p_offset = heads;
  note_head.p_filesz = note_head.p_memsz = notes.size();
  note_head.p_align = 4;
  put(out, note_head);
  for (const auto& part : layout.parts) {
    Elf64_Phdr load{};
    load.p_type = PT_LOAD;
    load.p_flags = PF_R | PF_X | (part.read_only ? 0U : static_cast<unsigned>(PF_W));
    load.p_offset = part.offset;
    load.p_vaddr = load.p_paddr = part.gpa;
    load.p_filesz = load.p_memsz = part.bytes;
    load.p_align = kPageSize;
    put(out, load);
  }
  out.insert(out.end(), notes.begin(), notes.end());
  return out;
}

const char* name_of(DumpFormat format) { return format == DumpFormat::Elf ? "elf" : "raw"; }

bool is_zero(std::span<const std::byte> bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](std::byte b) { return b == std::byte{0}; });
}

bool same(const kvmi_memory_slot& a, const kvmi_memory_slot& b) {
  return a.gpa == b.gpa && a.bytes == b.bytes && a.flags == b.flags;
}

}  // namespace

std::uint64_t DumpLayout::offset_of(std::uint64_t done) const {
  for (const auto& part : parts) {
    if (done < part.bytes) return part.offset + done;
    done -= part.bytes;
  }
  return file_bytes;
}

DumpLayout lay_out(DumpFormat format, std::span<const kvmi_memory_slot> slots, const std::string& note) {
  DumpLayout layout;
  layout.format = format;
  for (const auto& slot : slots) {
    layout.parts.push_back({slot.gpa, slot.bytes, slot.gpa, (slot.flags & KVMI_SLOT_READ_ONLY) != 0});
    layout.memory_bytes += slot.bytes;
    layout.file_bytes = slot.gpa + slot.bytes;
  }
  if (format == DumpFormat::Elf) layout.header = elf_header(layout, note);
  return layout;
}

std::string to_text(const Checkpoint& checkpoint) {
  Json slots = Json::array();
  for (const auto& slot : checkpoint.slots) slots.push_back({slot.gpa, slot.bytes, slot.flags});
  return Json{{"schema", 1},
              {"guest", checkpoint.guest},
              {"format", name_of(checkpoint.format)},
              {"slots", std::move(slots)},
              {"done", checkpoint.done},
              {"cookie", checkpoint.cookie}}
             .dump() +
         "\n";
}

DumpResult<Checkpoint> parse_checkpoint(const std::string& text) {
  const auto bad = DumpError{"is no record of a dump"};
  const Json json = Json::parse(text, nullptr, false);
  const auto unsigned_at = [](const Json& object, const auto& at) -> std::optional<std::uint64_t> {
    if (!object.at(at).is_number_unsigned()) return {};
    return object.at(at).template get<std::uint64_t>();
  };
  for (const char* name : {"schema", "guest", "format", "slots", "done", "cookie"}) {
    if (!json.is_object() || !json.contains(name)) return bad;
  }
  Checkpoint out;
  const auto done = unsigned_at(json, "done"), cookie = unsigned_at(json, "cookie");
  const bool known = json.at("schema") == 1 && (json.at("format") == "raw" || json.at("format") == "elf");
  if (!known || !done || !cookie || !json.at("guest").is_string() || !json.at("slots").is_array()) return bad;
  out.guest = json.at("guest").get<std::string>();
  out.format = json.at("format") == "elf" ? DumpFormat::Elf : DumpFormat::Raw;
  out.done = *done;
  out.cookie = *cookie;
  for (const auto& entry : json.at("slots")) {
    if (!entry.is_array() || entry.size() != 3) return bad;
    const auto gpa = unsigned_at(entry, std::size_t{0}), bytes = unsigned_at(entry, std::size_t{1}),
               flags = unsigned_at(entry, std::size_t{2});
    if (!gpa || !bytes || !flags || *flags > std::numeric_limits<std::uint16_t>::max()) return bad;
    kvmi_memory_slot slot{};
    slot.gpa = *gpa;
    slot.bytes = *bytes;
    slot.flags = static_cast<std::uint16_t>(*flags);
    out.slots.push_back(slot);
  }
  return out;
}

DumpResult<DumpFile> DumpFile::create(const std::string& path, Checkpoint checkpoint, const std::string& note) {
  client::UniqueFd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, S_IRUSR | S_IWUSR));
  if (!fd && errno == EEXIST) {
    const bool begun = ::access(resume_path(path).c_str(), F_OK) == 0;
    return DumpError{path + (begun ? " is there, and a dump into it was interrupted: --resume goes on with it"
                                   : " is there already; nothing was written")};
  }
  if (!fd) return DumpError{failed(path, "create")};
  DumpFile file(path, std::move(fd), std::move(checkpoint), DumpLayout{});
  file.layout_ = lay_out(file.checkpoint_.format, file.checkpoint_.slots, note);
  if (auto ready = file.prepare(); !ready) {
    ::unlink(path.c_str());  // just made, and nothing is in it
    ::unlink(resume_path(path).c_str());
    return ready.error();
  }
  return file;
}

DumpResult<DumpFile> DumpFile::resume(const std::string& path, Checkpoint now, const std::string& note) {
  std::ifstream in(resume_path(path), std::ios::binary);
  if (!in) {
    return DumpError{"there is no " + resume_path(path) +
                     ": the dump is done, or was never begun; nothing was written"};
  }
  std::string text(kCheckpointTextMax, '\0');
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<std::size_t>(in.gcount()));
  const auto before = parse_checkpoint(text);
  if (!before) return DumpError{resume_path(path) + " " + before.error().text};
  if (before->guest != now.guest) return DumpError{path + " is of another guest: " + before->guest};
  if (before->format != now.format) return DumpError{path + " has the format " + name_of(before->format)};
  if (!std::equal(before->slots.begin(), before->slots.end(), now.slots.begin(), now.slots.end(), same)) {
    return DumpError{"the memory map of the guest is not the one that " + path + " was begun with"};
  }
  now.done = before->done;
  now.cookie = before->cookie;
  client::UniqueFd fd(::open(path.c_str(), O_RDWR | O_CLOEXEC));
  if (!fd) return DumpError{failed(path, "open")};
  DumpFile file(path, std::move(fd), std::move(now), DumpLayout{});
  file.layout_ = lay_out(file.checkpoint_.format, file.checkpoint_.slots, note);
  struct stat info {};
  if (::fstat(file.fd_.get(), &info) != 0) return DumpError{failed(path, "look at")};
  if (file.done() > file.layout_.memory_bytes || static_cast<std::uint64_t>(info.st_size) != file.layout_.file_bytes) {
    return DumpError{path + " is not the file that " + resume_path(path) + " tells of"};
  }
  if (auto ready = file.prepare(); !ready) return ready.error();
  return file;
}

/// What is behind `done` becomes a hole: pages of zeros are not written, and an interrupted run may have left others.
DumpResult<void> DumpFile::prepare() {
  const std::uint64_t end = layout_.file_bytes;
  if (end > static_cast<std::uint64_t>(std::numeric_limits<off_t>::max())) {
    return DumpError{"the file would be too large; --format elf has no holes"};
  }
  const auto keep = static_cast<off_t>(done() == 0 ? 0 : layout_.offset_of(done()));
  if (::ftruncate(fd_.get(), keep) != 0 || ::ftruncate(fd_.get(), static_cast<off_t>(end)) != 0) {
    return DumpError{failed(path_, "set the size of")};
  }
  if (auto written = write_at(0, layout_.header); !written) return written;
  return save();
}

DumpResult<void> DumpFile::write_at(std::uint64_t offset, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::pwrite(fd_.get(), bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return DumpError{failed(path_, "write")};
    bytes = bytes.subspan(static_cast<std::size_t>(n));
    offset += static_cast<std::uint64_t>(n);
  }
  return {};
}

DumpResult<void> DumpFile::append(std::span<const std::byte> bytes) {
  std::uint64_t offset = layout_.offset_of(done());
  checkpoint_.done += bytes.size();
  while (!bytes.empty()) {
    // Pages of the same kind go together.
    const bool hole = is_zero(bytes.first(std::min<std::size_t>(bytes.size(), kPageSize)));
    std::size_t size = 0;
    do {
      size += std::min<std::size_t>(bytes.size() - size, kPageSize);
    } while (size < bytes.size() &&
             is_zero(bytes.subspan(size, std::min<std::size_t>(bytes.size() - size, kPageSize))) == hole);
    if (hole) {
      zero_bytes_ += size;
    } else if (auto written = write_at(offset, bytes.first(size)); !written) {
      return written;
    }
    offset += size;
    bytes = bytes.subspan(size);
  }
  if (done() - saved_ < kCheckpointBytes) return {};
  return save();
}

DumpResult<void> DumpFile::save() {
  if (::fdatasync(fd_.get()) != 0) return DumpError{failed(path_, "write")};
  const std::string to = resume_path(path_), by = to + ".new";
  const std::string text = to_text(checkpoint_);
  client::UniqueFd fd(::open(by.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, S_IRUSR | S_IWUSR));
  if (!fd || ::write(fd.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size()) ||
      ::fdatasync(fd.get()) != 0 || ::rename(by.c_str(), to.c_str()) != 0) {
    return DumpError{failed(to, "write")};
  }
  saved_ = done();
  return {};
}

DumpResult<void> DumpFile::finish() {
  if (::fsync(fd_.get()) != 0) return DumpError{failed(path_, "write")};
  if (::unlink(resume_path(path_).c_str()) != 0) return DumpError{failed(resume_path(path_), "remove")};
  return {};
}

std::string progress_line(std::uint64_t done, std::uint64_t total, double mib_per_second, std::size_t width) {
  constexpr std::size_t kBar = 30;
  const double part = total == 0 ? 1.0 : static_cast<double>(done) / static_cast<double>(total);
  std::array<char, 96> text{};
  constexpr double kMib = 1024.0 * 1024.0;
  std::snprintf(text.data(), text.size(), "%3.0f%%  %.1f of %.1f MiB, %.0f MiB/s", std::min(part, 1.0) * 100.0,
                static_cast<double>(done) / kMib, static_cast<double>(total) / kMib, mib_per_second);
  std::string line = text.data();
  if (width == 0 || width >= kBar + 4 + line.size()) {
    const auto filled = std::min(kBar, static_cast<std::size_t>(part * static_cast<double>(kBar)));
    std::string bar(filled, '=');
    if (filled < kBar) bar += '>';
    bar.resize(kBar, ' ');
    line = "[" + bar + "] " + line;
  }
  if (width != 0 && line.size() > width) line.resize(width);
  return line;
}

}  // namespace kvmid::ctl
