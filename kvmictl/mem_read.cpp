// SPDX-License-Identifier: GPL-2.0-or-later
//
// mem read and mem translate.

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "client/event_text.h"
#include "kvmictl/guest_commands.h"
#include "kvmictl/guest_memory.h"
#include "kvmictl/render.h"
#include "kvmictl/table.h"

namespace kvmid::ctl {

using namespace kvmid::client;  // NOLINT(google-build-using-namespace): this file is an agent

namespace {

/// Read and printed at a time.
constexpr std::uint64_t kChunk = 1U << 20U;

bool print(std::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) == text.size()) return true;
  std::fprintf(stderr, "kvmictl: stdout takes no more\n");
  return false;
}

Json heading(const Arguments& arguments, std::uint64_t bytes, std::uint64_t cookie) {
  Json json{{"schema", 1}, {"bytes", bytes}, {"cookie", cookie}};
  json[arguments.memory.is_virtual ? "gva" : "gpa"] = hex(*arguments.address);
  if (arguments.memory.is_virtual) json["vcpu"] = arguments.vcpu.value_or(0);
  return json;
}

std::uint64_t integer_at(std::span<const std::byte> bytes, unsigned width) {
  std::uint64_t value = 0;
  for (unsigned i = width; i-- > 0;) value = value << 8U | std::to_integer<std::uint64_t>(bytes[i]);  // little-endian
  return value;
}

int print_integers(const Arguments& arguments, std::span<const std::byte> data, std::uint64_t cookie) {
  const unsigned width = arguments.memory.integer_bytes;
  Json values = Json::array();
  std::string text;
  for (std::size_t at = 0; at < data.size(); at += width) {
    const std::uint64_t value = integer_at(data.subspan(at), width);
    if (arguments.json) {
      values.push_back(value);
    } else {
      text += hex(*arguments.address + at) + "  " + hex(value) + "  " + std::to_string(value) + "\n";
    }
  }
  if (arguments.json) {
    Json json = heading(arguments, data.size(), cookie);
    json["values"] = std::move(values);
    text = json.dump() + "\n";
  }
  return print(text) ? kOk : kFailed;
}

/// Page by page: what lies behind the end of the string need not be there.
int read_string(const Arguments& arguments, GuestMemory& memory) {
  std::string text;
  bool ended = false;
  std::uint64_t cookie = 0;
  while (!ended && text.size() < arguments.length) {
    const std::uint64_t at = *arguments.address + text.size();
    const std::uint64_t part = std::min(arguments.length - text.size(), kPageSize - at % kPageSize);
    if (auto fine = memory.check(at, part); !fine) return explain(fine.error());
    std::string piece(part, '\0');
    const auto read = memory.read(at, std::as_writable_bytes(std::span(piece)));
    if (!read) return explain(read.error());
    if (text.empty()) cookie = *read;
    const auto end = piece.find('\0');
    ended = end != std::string::npos;
    text += piece.substr(0, end);
  }
  if (arguments.json) {
    Json json = heading(arguments, text.size(), cookie);
    json["text"] = text;
    json["terminated"] = ended;
    return print(json.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n") ? kOk : kFailed;
  }
  if (!print(printable(text) + "\n")) return kFailed;
  if (!ended) std::fprintf(stderr, "kvmictl: no zero byte within %zu bytes\n", text.size());
  return kOk;
}

/// What has to be there as a whole before anything is printed.
int read_whole(const Arguments& arguments, GuestMemory& memory) {
  std::vector<std::byte> data(arguments.length);
  const auto cookie = memory.read(*arguments.address, data);
  if (!cookie) return explain(cookie.error());
  if (arguments.memory.integer_bytes != 0) return print_integers(arguments, data, *cookie);
  if (arguments.raw) return print({reinterpret_cast<const char*>(data.data()), data.size()}) ? kOk : kFailed;
  if (!arguments.json) return print(hex_dump(*arguments.address, data)) ? kOk : kFailed;
  Json json = heading(arguments, data.size(), *cookie);
  json["data"] = hex_digits(data);
  return print(json.dump() + "\n") ? kOk : kFailed;
}

}  // namespace

int mem_read(const Arguments& arguments) {
  auto memory = GuestMemory::open(arguments);
  if (!memory) return explain(memory.error());
  if (arguments.memory.as_string) return read_string(arguments, *memory);
  if (auto fine = memory->check(*arguments.address, arguments.length); !fine) return explain(fine.error());
  const bool whole = arguments.memory.is_virtual || arguments.memory.integer_bytes != 0 || arguments.json;
  if (whole) return read_whole(arguments, *memory);
  std::vector<std::byte> buffer(std::min(kChunk, arguments.length));
  for (std::uint64_t done = 0; done < arguments.length;) {
    const std::uint64_t at = *arguments.address + done;
    const auto data = std::span(buffer).first(std::min(kChunk, arguments.length - done));
    if (const auto read = memory->read(at, data); !read) return explain(read.error());
    const bool printed =
        arguments.raw ? print({reinterpret_cast<const char*>(data.data()), data.size()}) : print(hex_dump(at, data));
    if (!printed) return kFailed;
    done += data.size();
  }
  return kOk;
}

int mem_translate(const Arguments& arguments) {
  auto memory = GuestMemory::open(arguments);
  if (!memory) return explain(memory.error());
  const auto found = memory->translate(*arguments.address);
  if (!found) return explain(found.error());
  std::string rights;
  rights += (found->access & KVMI_PAGE_ACCESS_R) != 0 ? 'r' : '-';
  rights += (found->access & KVMI_PAGE_ACCESS_W) != 0 ? 'w' : '-';
  rights += (found->access & KVMI_PAGE_ACCESS_X) != 0 ? 'x' : '-';
  const std::string by(memory->translated_by());
  if (arguments.json) {
    const Json json{{"schema", 1},
                    {"gva", hex(*arguments.address)},
                    {"vcpu", memory->vcpu().value},
                    {"gpa", hex(found->gpa.value)},
                    {"page_bytes", found->page_bytes},
                    {"rights", rights},
                    {"user", found->user},
                    {"translated_by", by}};
    return print(json.dump() + "\n") ? kOk : kFailed;
  }
  const bool large = found->page_bytes >= 1U << 30U;
  const std::string size = large                            ? std::to_string(found->page_bytes >> 30U) + " GiB"
                           : found->page_bytes >= 1U << 20U ? std::to_string(found->page_bytes >> 20U) + " MiB"
                                                            : std::to_string(found->page_bytes >> 10U) + " KiB";
  const bool told = found->page_bytes != 0;  // not by a hypervisor of an older dialect
  return print(labelled("gpa", hex(found->gpa.value)) + labelled("page", told ? size : "not told") +
               labelled("rights", told ? rights : "not told") +
               labelled("user", !told         ? "not told"
                                : found->user ? "yes"
                                              : "no") +
               labelled("by", by))
             ? kOk
             : kFailed;
}

}  // namespace kvmid::ctl
