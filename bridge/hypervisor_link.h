// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// What the parts of HypervisorBridge share: the hypervisor's facts, the commands that it has not answered, and the way
/// to the core. Included by the hypervisor_*.cpp files of this room only.

#include <bitset>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "bridge/passed.h"
#include "protocol/dialect.h"
#include "protocol/kvmi1_codec.h"
#include "protocol/message.h"

namespace kvmid::bridge {

/// Success, or why the hypervisor broke its dialect.
using Kept = Result<void, std::string>;

/// What a hypervisor has and allows. Asked once.
struct HypervisorFacts {
  std::bitset<kvmi1::kCommandCount> commands;  ///< [CommandKind] of the dialect, allowed
  EventSet events;                             ///< of the dialect, allowed
  bool singlestep = false;
  std::uint16_t vcpus = 0;
  std::uint64_t tsc_hz = 0;
  std::uint8_t physical_address_bits = 46;
  std::uint8_t linear_address_bits = 48;
  std::uint64_t max_gpa = 0;
  /// What of KVMI 2 can be made of it.
  CommandSet offered_commands;
  EventSet offered_events;

  template <class... T>
  [[nodiscard]] bool allows() const {
    return (commands.test(static_cast<std::size_t>(kvmi1::kind_of<T>)) && ...);
  }
};

/// Which part sent a command, and so gets its reply.
enum class AskedBy : std::uint8_t { Start, Memory, Pages, Wishes, Events, Nobody };

/// A command that the hypervisor has not answered.
struct Asked {
  AskedBy by{};
  kvmi1::CommandKind kind{};
  std::uint16_t number = 0;  ///< of the command, as the dialect has it
  std::uint32_t job = 0;     ///< the part's own
  std::uint32_t part = 0;
};

/// What went wrong, for the core and for people.
struct Failure {
  ErrorCode error = ErrorCode::None;
  std::string text;
};

class HypervisorLink {
 public:
  /// Set once, before the first send().
  void speak(kvmi1::DialectId dialect) { codec_ = &kvmi1::codec(dialect); }
  [[nodiscard]] bool speaks() const { return codec_ != nullptr; }
  /// REQUIRES: speaks().
  [[nodiscard]] const kvmi1::Codec& codec() const { return *codec_; }
  [[nodiscard]] kvmi1::DialectId dialect() const { return codec_->dialect(); }
  template <class T>
  [[nodiscard]] bool has() const {
    return codec_->number_of(kvmi1::kind_of<T>).has_value();
  }

  // down

  /// A sequence number that no open command has.
  Seq next_seq();
  /// REQUIRES: the dialect has the command.
  void ask(const kvmi1::Command& command, AskedBy by, std::uint32_t job, std::uint32_t part, ByteBuffer& wire);
  /// A command that was sent in another way. REQUIRES: as ask().
  void expect(kvmi1::CommandKind kind, Seq seq, AskedBy by, std::uint32_t job, std::uint32_t part);
  /// Commands that nobody waits for, and so nobody misses the answers of, are bounded here.
  static constexpr std::size_t kUnmissedMax = 1024;
  [[nodiscard]] bool leaves_too_much_open() const { return unmissed_ > kUnmissedMax; }
  /// Which command the reply belongs to. It is closed by that.
  Result<Asked, std::string> answered(const kvmi1::Reply& reply, Seq seq);

  // up

  void answer(Seq seq, CommandId id, ReplyBody body = {}, std::vector<std::byte> bytes = {});
  void refuse(Seq seq, CommandId id, ErrorCode error, std::string_view text, const ReplyBody& body = {});
  void refuse(Seq seq, CommandId id, const Failure& failure) { refuse(seq, id, failure.error, failure.text); }
  /// What a hypervisor's error means, with a sentence that names the dialect's command.
  [[nodiscard]] Failure failure_of(const Asked& asked, std::int32_t error) const;
  /// For an answer that is no error and not what was asked for: closes the link.
  [[nodiscard]] std::string broken(const Asked& asked, std::string_view what) const;
  /// The body of a reply that is no error; null: there is another one, or none.
  template <class T>
  [[nodiscard]] static const T* body_of(const kvmi1::Reply& reply) {
    return std::get_if<T>(&reply.body);
  }

  HypervisorFacts facts;
  PassedQueue<Upward> up;

 private:
  [[nodiscard]] std::string named(const Asked& asked) const;

  const kvmi1::Codec* codec_ = nullptr;
  std::uint32_t last_seq_ = 0;
  std::size_t unmissed_ = 0;                        ///< open commands of AskedBy::Nobody
  std::unordered_map<std::uint32_t, Asked> asked_;  ///< [seq]
};

/// Jobs of a part: each is one command of the core.
template <class Job>
class Jobs {
 public:
  std::pair<std::uint32_t, Job*> add(Job job) {
    const std::uint32_t id = ++last_;
    return {id, &items_.insert_or_assign(id, std::move(job)).first->second};
  }
  /// REQUIRES: it was added and not taken away.
  [[nodiscard]] Job& at(std::uint32_t id) { return items_.at(id); }
  void remove(std::uint32_t id) { items_.erase(id); }

 private:
  std::unordered_map<std::uint32_t, Job> items_;
  std::uint32_t last_ = 0;
};

/// "0x1f000", for sentences.
[[nodiscard]] std::string hex_text(std::uint64_t value);

}  // namespace kvmid::bridge
