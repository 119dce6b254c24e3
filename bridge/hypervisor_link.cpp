// SPDX-License-Identifier: GPL-2.0-or-later
#include "bridge/hypervisor_link.h"

#include <array>
#include <cstdio>
#include <cstdlib>

#include "bridge/errors.h"

namespace kvmid::bridge {

namespace {

std::vector<std::byte> bytes_of(std::string_view text) {
  const auto bytes = std::as_bytes(std::span(text));
  return {bytes.begin(), bytes.end()};
}

}  // namespace

Seq HypervisorLink::next_seq() {
  do {
    ++last_seq_;
  } while (last_seq_ == 0 || asked_.contains(last_seq_));
  return Seq{last_seq_};
}

void HypervisorLink::ask(const kvmi1::Command& command, AskedBy by, std::uint32_t job, std::uint32_t part,
                         ByteBuffer& wire) {
  const Seq seq = next_seq();
  expect(kvmi1::kind_of_command(command), seq, by, job, part);
  codec_->encode(command, seq, wire);
}

void HypervisorLink::expect(kvmi1::CommandKind kind, Seq seq, AskedBy by, std::uint32_t job, std::uint32_t part) {
  const auto number = codec_->number_of(kind);
  if (!number) std::abort();  // who asks looks at has() first
  asked_.emplace(seq.value, Asked{by, kind, *number, job, part});
  if (by == AskedBy::Nobody) ++unmissed_;
}

Result<Asked, std::string> HypervisorLink::answered(const kvmi1::Reply& reply, Seq seq) {
  const auto found = asked_.find(seq.value);
  if (found == asked_.end()) {
    return "answered a command that is not open (id " + std::to_string(reply.id) + ", seq " +
           std::to_string(seq.value) + ")";
  }
  const Asked asked = found->second;
  if (reply.id != asked.number)
    return "answered " + named(asked) + " with the id of another command, " + std::to_string(reply.id);
  asked_.erase(found);
  if (asked.by == AskedBy::Nobody) --unmissed_;
  return asked;
}

void HypervisorLink::answer(Seq seq, CommandId id, ReplyBody body, std::vector<std::byte> bytes) {
  up.push(seq, CommandReply{static_cast<std::uint16_t>(id), ErrorCode::None, {}, std::move(body)}, std::move(bytes));
}

void HypervisorLink::refuse(Seq seq, CommandId id, ErrorCode error, std::string_view text, const ReplyBody& body) {
  std::vector<std::byte> bytes = bytes_of(text);
  const std::string_view kept(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  up.push(seq, CommandReply{static_cast<std::uint16_t>(id), error, kept, body}, std::move(bytes));
}

Failure HypervisorLink::failure_of(const Asked& asked, std::int32_t error) const {
  const ErrorCode code = error_from(error, dialect());
  return {code, named(asked) + " was refused with " + std::to_string(error) + " (" + std::string(name_of(code)) + ")"};
}

std::string HypervisorLink::broken(const Asked& asked, std::string_view what) const {
  return "answered " + named(asked) + " " + std::string(what);
}

std::string HypervisorLink::named(const Asked& asked) const {
  return std::string(kvmi1::name_of(asked.kind)) + " (" + std::to_string(asked.number) + ") of " +
         std::string(kvmi1::name_of(dialect()));
}

std::string hex_text(std::uint64_t value) {
  std::array<char, 20> text{};
  std::snprintf(text.data(), text.size(), "0x%llx", static_cast<unsigned long long>(value));
  return text.data();
}

}  // namespace kvmid::bridge
