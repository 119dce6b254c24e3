// SPDX-License-Identifier: GPL-2.0-or-later
#include "tests/integration_wire/scripted_hypervisor.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <stdexcept>

namespace kvmid::test {

ScriptedHypervisor::ScriptedHypervisor(const std::string& socket_path, ScriptedGuest guest, bool serve)
    : guest_(std::move(guest)), socket_(socket_path) {
  ByteBuffer hello;
  encode(HypervisorHello{.uuid = guest_.uuid,
                         .start_time = 1,
                         .name = guest_.name,
                         .max_gpa = guest_.max_gpa,
                         .kvmi2 = true,
                         .flags = guest_.ram_bytes != 0 ? std::uint32_t{KVMI_HANDSHAKE_RAM_SHARED} : 0U,
                         .ram_bytes = guest_.ram_bytes},
         hello);
  if (guest_.descriptors.empty()) socket_.send(hello);
  else socket_.send_with_descriptors(hello, std::span<const int>(guest_.descriptors));
  const auto bytes = socket_.read_exact(sizeof(kvmi_handshake_answer) + sizeof(kvmi_handshake_answer_kvmi2));
  if (!bytes) return;
  const auto answer = parse_hypervisor_answer(*bytes);
  if (!answer) throw std::runtime_error("handshake answer: " + describe(answer.error()));
  answer_ = *answer;
  if (accepted() && serve) thread_ = std::thread([this] { run(); });
}

ScriptedHypervisor::~ScriptedHypervisor() {
  ::shutdown(socket_.fd(), SHUT_RDWR);
  if (thread_.joinable()) thread_.join();
}

void ScriptedHypervisor::run() {
  try {
    for (;;) {
      pollfd entry{socket_.fd(), POLLIN, 0};
      if (::poll(&entry, 1, -1) < 0) continue;
      const auto frame = socket_.next_frame();
      if (!frame) break;
      serve(*frame);
    }
  } catch (const std::exception&) {
    // A torn frame: the same as closed to those who wait.
  }
  const std::lock_guard lock(mutex_);
  closed_ = true;
  changed_.notify_all();
}

void ScriptedHypervisor::serve(const OwnedFrame& frame) {
  const auto message = dialect_.decode_downward(frame.view());
  if (!message) throw std::runtime_error(describe(message.error()));
  if (const auto* reply = std::get_if<EventReply>(&*message)) {
    const std::lock_guard lock(mutex_);
    replies_[frame.seq.value] = *reply;
    changed_.notify_all();
    return;
  }
  const auto* command = std::get_if<Command>(&*message);
  if (command == nullptr) throw std::runtime_error("kvmid sent an unknown message");
  {
    const std::lock_guard lock(mutex_);
    const CommandId id = id_of(*command);
    if (std::find(held_ids_.begin(), held_ids_.end(), id) != held_ids_.end()) {
      held_.push_back({frame.seq, id});
      changed_.notify_all();
      return;
    }
  }
  socket_.send(encoded(reply_to(*command), frame.seq));
}

CommandReply ScriptedHypervisor::reply_to(const Command& command) {
  CommandReply reply{.id = static_cast<std::uint16_t>(id_of(command)), .text = {}, .body = {}};
  reply.body = std::visit(Overloaded{
                              [&](const GetVersion&) -> ReplyBody {
                                return GetVersionReply{.commands = guest_.commands, .events = guest_.events};
                              },
                              [&](const GetGuestInfo&) -> ReplyBody {
                                return GetGuestInfoReply{.vcpu_count = guest_.vcpus,
                                                         .physical_address_bits = 40,
                                                         .linear_address_bits = 48,
                                                         .execute_only = true,
                                                         .max_gpa = guest_.max_gpa};
                              },
                              [&](const GetRegisters& c) -> ReplyBody {
                                msrs_.clear();
                                for (std::size_t i = 0; i < c.msrs.size(); ++i) msrs_.push_back({c.msrs[i], 0, i});
                                GetRegistersReply body;
                                body.msrs = std::span<const kvmi_x86_msr>(msrs_);
                                return body;
                              },
                              [&](const GetCpuid&) -> ReplyBody {
                                return GetCpuidReply{1, 2, 3, 4};
                              },
                              [&](const ReadPhysical& c) -> ReplyBody {
                                std::size_t total = 0;
                                for (std::size_t i = 0; i < c.ranges.size(); ++i) total += c.ranges[i].size;
                                data_.assign(total, std::byte{0x5a});
                                return ReadPhysicalReply{.cookie = 0, .data = data_};
                              },
                              [&](const WritePhysical&) -> ReplyBody { return WritePhysicalReply{}; },
                              [&](const ControlEvents& c) -> ReplyBody { return ControlEventsReply{c.events}; },
                              [&](const TranslateGva& c) -> ReplyBody {
                                return TranslateGvaReply{Gpa{c.gva.value}, 4096, 7, false};
                              },
                              [&](const GetXcr&) -> ReplyBody { return GetXcrReply{1}; },
                              [&](const GetMemoryMap& c) -> ReplyBody {
                                slot_ = {0, guest_.ram_bytes, static_cast<std::uint16_t>(c.space), 0, 0};
                                return GetMemoryMapReply{std::span<const kvmi_memory_slot>(&slot_, 1)};
                              },
                              [&](const auto&) -> ReplyBody { return {}; },
                          },
                          command);
  return reply;
}

Seq ScriptedHypervisor::raise(const Event& event) {
  const Seq seq{++last_seq_};
  send(encoded(event, seq));
  return seq;
}

std::optional<EventReply> ScriptedHypervisor::wait_reply(Seq seq) {
  std::unique_lock lock(mutex_);
  const bool done =
      changed_.wait_for(lock, kPatience, [&] { return closed_ || replies_.find(seq.value) != replies_.end(); });
  if (!done) throw std::runtime_error("no reply to event " + std::to_string(seq.value));
  const auto it = replies_.find(seq.value);
  if (it == replies_.end()) return std::nullopt;
  return it->second;
}

std::size_t ScriptedHypervisor::replies() const {
  const std::lock_guard lock(mutex_);
  return replies_.size();
}

void ScriptedHypervisor::answer_next(const CommandReply& reply) {
  const auto command = socket_.next_frame();
  if (!command) throw std::runtime_error("kvmid closed and asked nothing");
  socket_.send(encoded(reply, command->seq));
}

void ScriptedHypervisor::hold(CommandId id) {
  const std::lock_guard lock(mutex_);
  held_ids_.push_back(id);
}

std::vector<ReceivedCommand> ScriptedHypervisor::wait_held(std::size_t count) {
  std::unique_lock lock(mutex_);
  if (!changed_.wait_for(lock, kPatience, [&] { return held_.size() >= count || closed_; }))
    throw std::runtime_error("only " + std::to_string(held_.size()) + " commands came to the hypervisor");
  return held_;
}

bool ScriptedHypervisor::wait_closed() {
  if (!thread_.joinable()) return socket_.wait_closed();
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, kPatience, [&] { return closed_; });
}

bool ScriptedHypervisor::is_open() const {
  const std::lock_guard lock(mutex_);
  return !closed_;
}

Event make_event(EventKind kind, VcpuId vcpu) {
  constexpr auto kAllow = KVMI_ACTION_BIT(KVMI_ACTION_ALLOW), kRetry = KVMI_ACTION_BIT(KVMI_ACTION_RETRY),
                 kSkip = KVMI_ACTION_BIT(KVMI_ACTION_SKIP), kCrash = KVMI_ACTION_BIT(KVMI_ACTION_CRASH);
  Event event;
  event.vcpu = vcpu;
  event.actions.bits = static_cast<std::uint8_t>(kAllow | kRetry | kSkip | kCrash);
  switch (kind) {
    case EventKind::Cr:
      event.data = CrData{3, 0x1000, 0x2000};
      break;
    case EventKind::Msr:
      event.data = MsrData{0xc0000082, 1, 2};
      break;
    case EventKind::Breakpoint:
      event.data = BreakpointData{Gpa{0x1000}, 1};
      break;
    case EventKind::Hypercall:
      event.data = HypercallData{};
      break;
    case EventKind::PageFault:
      event.data = PageFaultData{Gva{0x1000}, Gpa{0x1000}, KVMI_PAGE_ACCESS_W, true};
      break;
    case EventKind::Pause:
      event.data = PauseData{};
      event.actions.bits = static_cast<std::uint8_t>(kAllow | kCrash);
      break;
    case EventKind::Unhook:
      event.vcpu = kAllVcpus;
      event.data = UnhookData{OffReason::Suspend};
      event.actions.bits = static_cast<std::uint8_t>(kAllow);
      break;
    default:
      throw std::runtime_error("make_event: this kind is not scripted");
  }
  return event;
}

}  // namespace kvmid::test
