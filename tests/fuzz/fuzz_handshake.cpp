// SPDX-License-Identifier: GPL-2.0-or-later
//
// The first struct of a connection, read as each of the four. What is taken must survive being written and read again,
// and where it has the size of ours it must come out as the same bytes (QEMU's padding and names apart).

#include <cstdlib>
#include <cstring>

#include "protocol/handshake.h"

using namespace kvmid;

namespace {

template <class T, class Parse>
void check(Bytes whole, Parse parse, bool (*same_bytes)(Bytes, const T&)) {
  const auto value = parse(whole);
  if (!value) {
    if (describe(value.error()).empty()) std::abort();
    return;
  }
  ByteBuffer once;
  encode(*value, once);
  const auto again = parse(once);
  if (!again) std::abort();
  ByteBuffer twice;
  encode(*again, twice);
  if (once != twice) std::abort();
  if (same_bytes(whole, *value) && !std::equal(whole.begin(), whole.end(), once.begin(), once.end())) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const Bytes bytes = std::as_bytes(std::span(data, size));
  const auto first = first_struct_size(bytes);
  if (!first || !first->has_value() || **first > size) return 0;
  const Bytes whole = bytes.first(**first);
  check<AgentHello>(whole, parse_agent_hello,
                    [](Bytes b, const AgentHello&) { return b.size() == sizeof(kvmi_hello); });
  check<kvmi_welcome>(whole, parse_welcome, [](Bytes b, const kvmi_welcome& w) {
    return b.size() == sizeof(kvmi_welcome) && w.version == KVMI_VERSION;
  });
  check<HypervisorHello>(whole, parse_hypervisor_hello,
                         [](Bytes b, const HypervisorHello& h) { return h.kvmi2 && b.size() == 128; });
  check<HypervisorAnswer>(whole, parse_hypervisor_answer, [](Bytes, const HypervisorAnswer&) { return false; });
  std::string text(reinterpret_cast<const char*>(data), size);
  if (const auto uuid = parse_uuid(text)) {
    if (parse_uuid(to_string(*uuid)) != uuid) std::abort();
  }
  return 0;
}
