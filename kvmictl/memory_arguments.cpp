// SPDX-License-Identifier: GPL-2.0-or-later
#include "kvmictl/memory_arguments.h"

#include <map>

#include "kvmictl/numbers.h"

namespace kvmid::ctl {

namespace {

const std::map<std::string, unsigned> kWidths{{"u8", 1}, {"u16", 2}, {"u32", 4}, {"u64", 8}};

CLI::ValidationError wrong(const char* what, const std::string& why) { return CLI::ValidationError(what, why); }

}  // namespace

void MemoryGrammar::add_virtual(CLI::App* sub) {
  sub->add_flag("--virtual", out_.memory.is_virtual, "ADDR is guest virtual, as a vCPU sees it (--vcpu)");
  vcpus_.push_back(sub->add_option("--vcpu", vcpu_, "vCPU whose page tables count (0); with --virtual"));
}

void MemoryGrammar::add(const AddCommand& add_command) {
  CLI::App* read = add_command("read", Subcommand::MemRead,
                               "Print guest memory as a hex dump\n\n"
                               "Example: kvmictl mem read web1 0x100000 4k --raw > page.bin\n"
                               "         kvmictl mem read web1 0xffffffff81000000 --virtual --int u64");
  read->add_option("ADDR", address_, "Guest physical address, 0x1000 or 4096")->required();
  read->add_option("LEN", length_, "Bytes; 4k and 2M work too. --int: one number if not given; --string: at most 4k");
  auto* raw = read->add_flag("--raw", out_.raw, "The bytes as they are, not a dump");
  auto* numbers = read->add_option("--int", int_, "As numbers: u8, u16, u32 or u64")
                      ->check(CLI::IsMember({"u8", "u16", "u32", "u64"}))
                      ->excludes(raw);
  read->add_flag("--string", out_.memory.as_string, "As text that ends with a zero byte")
      ->excludes(raw)
      ->excludes(numbers);
  add_virtual(read);

  CLI::App* dump = add_command("dump", Subcommand::MemDump,
                               "Write all guest memory to a file, while the guest runs\n\n"
                               "raw: byte n of the file is GPA n; holes and pages of zeros take no room on the disk.\n"
                               "elf: an ELF core with a PT_LOAD segment for each memory slot.\n"
                               "Beside FILE there is FILE.resume until it is done; --resume goes on from there.\n\n"
                               "Example: kvmictl mem dump web1 web1.core --format elf");
  dump->add_option("FILE", out_.file, "The file; it must not be there yet")->required();
  dump->add_option("--format", format_, "raw or elf")->check(CLI::IsMember({"raw", "elf"}))->capture_default_str();
  dump->add_flag("--resume", out_.memory.resume, "Go on with a dump that was interrupted");
  dump->add_option("--rate", rate_, "At most so many bytes a second; 64M works too");

  CLI::App* search = add_command("search", Subcommand::MemSearch,
                                 "Print the guest physical addresses of some bytes; exit code 1: there are none\n\n"
                                 "Example: kvmictl mem search web1 --string KVMIROM1");
  auto* hex = search->add_option("HEX", pattern_, "Bytes in the order of memory: 9090cc or \"90 90 cc\"");
  search->add_option("--string", text_, "The bytes of this text")->excludes(hex);
  search->add_option("--count", out_.count, "Stop after N places");

  CLI::App* watch =
      add_command("watch", Subcommand::MemWatch,
                  "Look at some memory again and again, and print what changed\n\n"
                  "Bytes are compared, because a cookie does not see the guest's own stores; what changes\n"
                  "and changes back between two looks is not seen. Where guest RAM is granted (GRANT_MEMORY) it\n"
                  "is looked at in place, without a message: what is changed through kvmid is found at once, by\n"
                  "kvmid's count of changes; the guest's own stores still by their bytes, at the next look.\n\n"
                  "Example: kvmictl mem watch web1 0x10018 8 --interval 0.1");
  watch->add_option("ADDR", address_, "Guest physical address, 0x1000 or 4096")->required();
  watch->add_option("LEN", length_, "Bytes, at most 1M")->required();
  watch->add_option("--interval", out_.interval_seconds, "Seconds between two looks")
      ->check(CLI::Range(0.01, 3600.0))
      ->capture_default_str();
  watch->add_option("--count", out_.count, "Stop after N changes");
  add_virtual(watch);

  CLI::App* translate = add_command("translate", Subcommand::MemTranslate,
                                    "Translate a guest virtual address: where it is, page size, rights\n\n"
                                    "Example: kvmictl mem translate web1 0xffffffff81000000 --vcpu 1");
  translate->add_option("ADDR", address_, "Guest virtual address")->required();
  vcpus_.push_back(translate->add_option("--vcpu", vcpu_, "vCPU whose page tables count (0)"));
}

void MemoryGrammar::take_range() {
  out_.address = parse_number(address_, false);
  if (!out_.address) throw wrong("ADDR", "\"" + address_ + "\" is no address");
  if (!length_.empty()) {
    out_.length = parse_number(length_, true).value_or(0);
    if (out_.length == 0) throw wrong("LEN", "\"" + length_ + "\" is no length");
  }
  if (out_.length != 0 && *out_.address + (out_.length - 1) < *out_.address) {
    throw wrong("LEN", "the range goes past the end of the address space");
  }
}

void MemoryGrammar::take_read() {
  MemoryArguments& memory = out_.memory;
  if (!int_.empty()) memory.integer_bytes = kWidths.at(int_);
  if (length_.empty()) {
    if (memory.integer_bytes != 0)
      out_.length = memory.integer_bytes;
    else if (memory.as_string)
      out_.length = kStringMax;
    else
      throw CLI::RequiredError("LEN");
    // A string may end before the address space does.
    const std::uint64_t left = ~std::uint64_t{0} - *out_.address;
    if (memory.as_string && left < out_.length) out_.length = left + 1;
    if (*out_.address + (out_.length - 1) < *out_.address) {
      throw wrong("ADDR", "the range goes past the end of the address space");
    }
  }
  if (memory.integer_bytes != 0 && out_.length % memory.integer_bytes != 0) {
    throw wrong("LEN", std::to_string(out_.length) + " bytes are not a multiple of " + int_);
  }
  if (out_.raw && out_.json) throw wrong("--raw", "goes not together with --json");
  const bool whole = memory.is_virtual || memory.integer_bytes != 0 || memory.as_string || out_.json;
  if (whole && out_.length > kWholeMax) {
    throw wrong("LEN", "with --virtual, --int, --string and --json at most 64M are read, not " +
                           std::to_string(out_.length) + " bytes");
  }
}

void MemoryGrammar::take_pattern() {
  if (pattern_.empty() && text_.empty()) throw CLI::RequiredError("HEX or --string");
  if (!text_.empty()) {
    for (const char c : text_) out_.data.push_back(static_cast<std::byte>(c));
  } else if (auto bytes = parse_bytes(pattern_)) {
    out_.data = std::move(*bytes);
  } else {
    throw wrong("HEX", "\"" + pattern_ + "\" is no bytes: two hex digits each, without 0x");
  }
  if (out_.data.size() > kPatternMax) {
    throw wrong("HEX", "at most " + std::to_string(kPatternMax) + " bytes are searched for, not " +
                           std::to_string(out_.data.size()));
  }
}

void MemoryGrammar::take() {
  for (auto* option : vcpus_) {
    if (has(option)) out_.vcpu = vcpu_;
  }
  switch (out_.subcommand) {
    case Subcommand::MemRead:
    case Subcommand::MemWatch:
      if (out_.vcpu && !out_.memory.is_virtual)
        throw wrong("--vcpu", "is for --virtual; a physical address has no vCPU");
      take_range();
      if (out_.subcommand == Subcommand::MemRead) return take_read();
      if (out_.length > kWatchMax)
        throw wrong("LEN", "at most 1M is watched, not " + std::to_string(out_.length) + " bytes");
      return;
    case Subcommand::MemTranslate:
      return take_range();
    case Subcommand::MemSearch:
      return take_pattern();
    case Subcommand::MemDump:
      out_.memory.format = format_ == "elf" ? DumpFormat::Elf : DumpFormat::Raw;
      if (!rate_.empty()) {
        out_.memory.rate = parse_number(rate_, true).value_or(0);
        if (out_.memory.rate == 0) throw wrong("--rate", "\"" + rate_ + "\" is no number of bytes");
      }
      return;
    default:
      return;
  }
}

}  // namespace kvmid::ctl
