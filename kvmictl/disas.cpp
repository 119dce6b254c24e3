// SPDX-License-Identifier: GPL-2.0-or-later
//
// disas: the vCPU is stopped while registers, page tables and code are read, so that they belong together.

#include <algorithm>
#include <cstdio>

#include "arch/x86/page_walk.h"
#include "client/event_text.h"
#include "kvmictl/disassembly.h"
#include "kvmictl/guest_commands.h"
#include "kvmictl/page_walker.h"
#include "kvmictl/pause_holder.h"
#include "kvmictl/render.h"

namespace kvmid::ctl {

using namespace kvmid::client;  // NOLINT(google-build-using-namespace): this file is an agent

namespace {

constexpr std::uint64_t kInstructionBytesMax = 15;

enum class Translated { ByHypervisor, ByPageTables, Not };
const char* name_of(Translated how) {
  switch (how) {
    case Translated::ByHypervisor:
      return "TRANSLATE_GVA";
    case Translated::ByPageTables:
      return "page tables";
    case Translated::Not:
      return "none";
  }
  return "";
}

bool is_missing(const ClientError& error) {
  return error.kind == ClientErrc::Failed &&
         (error.code == ErrorCode::NotServed || error.code == ErrorCode::NotSupported ||
          error.code == ErrorCode::NotPermitted);
}

/// Guest virtual addresses -> bytes, by whichever way there is.
class CodeReader {
 public:
  CodeReader(AgentClient& client, VcpuId vcpu, const Registers& registers, bool physical)
      : client_(client), vcpu_(vcpu), paging_(x86::paging_state(registers.regs, registers.sregs)) {
    const bool walks = memory_.use_granted() || !client.welcome().commands.has(CommandId::TranslateGva);
    how_ = physical ? Translated::Not : walks ? Translated::ByPageTables : Translated::ByHypervisor;
  }

  Result<std::vector<std::byte>, ClientError> read(std::uint64_t address, std::uint64_t bytes) {
    std::vector<std::byte> out;
    while (out.size() < bytes) {
      const std::uint64_t at = address + out.size();
      const std::uint64_t in_page = std::min(bytes - out.size(), kPageSize - at % kPageSize);
      std::vector<std::byte> part(in_page);
      if (const auto read = read_page(at, part); !read) return ended(std::move(out), read.error());
      out.insert(out.end(), part.begin(), part.end());
    }
    return out;
  }

  [[nodiscard]] Translated how() const { return how_; }

 private:
  /// Code may end where a mapping ends; only the first byte must be there.
  static Result<std::vector<std::byte>, ClientError> ended(std::vector<std::byte> out, const ClientError& error) {
    const bool there = !out.empty() && (error.kind == ClientErrc::Failed);
    if (there) return out;
    return error;
  }

  Result<std::uint64_t, ClientError> read_page(std::uint64_t address, std::span<std::byte> out) {
    if (how_ == Translated::ByHypervisor) {
      auto read = client_.read_virtual(vcpu_, Gva{address}, out);
      if (read || !is_missing(read.error())) return read;
      how_ = Translated::ByPageTables;
    }
    if (how_ == Translated::Not) {
      const PhysicalRange range{Gpa{address}, out};
      return memory_.read(std::span(&range, 1));
    }
    auto read = walker_.read(paging_, Gva{address}, out);
    if (read || read.error().code != ErrorCode::Fault) return read;
    ClientError error = read.error();
    error.text += "; --physical takes the address as guest physical";
    return error;
  }

  AgentClient& client_;
  VcpuId vcpu_;
  x86::PagingState paging_;
  PhysicalMemory memory_{client_};
  PageWalker walker_{memory_};
  Translated how_;
};

Json disassembly_json(std::uint16_t vcpu, std::uint64_t rip, Translated how,
                      const std::vector<DisassembledLine>& lines) {
  Json list = Json::array();
  for (const auto& line : lines) {
    list.push_back({{"address", hex(line.address)}, {"bytes", hex_digits(line.bytes)}, {"text", line.text}});
  }
  return Json{
      {"schema", 1}, {"vcpu", vcpu}, {"rip", hex(rip)}, {"translated_by", name_of(how)}, {"instructions", list}};
}

}  // namespace

int disas(const Arguments& arguments) {
  Arguments one = arguments;
  one.vcpu = arguments.vcpu.value_or(0);
  const VcpuId vcpu{*one.vcpu};
  auto holder = PauseHolder::stop(one);
  if (!holder) return explain(holder.error());
  // The registers at the stop came with the event.
  const Event& stopped = holder->events().front().event;
  const Registers registers{stopped.mode, stopped.regs, stopped.sregs, {}};
  const std::uint64_t rip = registers.regs.rip + (registers.mode == 8 ? 0 : registers.sregs.cs.base);
  const std::uint64_t address = arguments.address.value_or(rip);
  CodeReader reader(holder->client(), vcpu, registers, arguments.physical);
  const auto code = reader.read(address, arguments.count * kInstructionBytesMax);
  const auto released = holder->release();
  if (!code) return explain(code.error());
  if (!released) return explain(released.error());

  const auto lines = disassemble(address, *code, registers.mode, arguments.count);
  std::string text;
  if (arguments.json) {
    text = disassembly_json(vcpu.value, rip, reader.how(), lines).dump(2) + "\n";
  } else {
    if (reader.how() == Translated::Not) std::fprintf(stderr, "kvmictl: addresses are guest physical\n");
    text = disassembly_text(lines, arguments.physical ? ~std::uint64_t{0} : rip);
  }
  std::fwrite(text.data(), 1, text.size(), stdout);
  return kOk;
}

}  // namespace kvmid::ctl
