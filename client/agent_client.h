// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "client/client_error.h"
#include "client/guest_names.h"
#include "client/socket.h"
#include "protocol/dialect_kvmi2.h"
#include "protocol/frame_parser.h"
#include "protocol/message.h"
#include "protocol/result.h"

namespace kvmid::client {

inline constexpr std::string_view kDefaultAgentSocket = "/run/kvmid/agent.sock";

/// An event and the number that its reply must carry.
struct ReceivedEvent {
  Seq seq;
  Event event;
};
/// protocol's Notice with a text of its own.
struct ReceivedNotice {
  NoticeKind kind{};
  EventKind event{};
  Action action{};
  VcpuId vcpu;
  ErrorCode error = ErrorCode::None;
  AgentId agent;
  Seq event_seq;
  std::uint32_t count = 0;
  std::string text;
};
/// A guest, in a list or as it arrives.
struct GuestEntry {
  Uuid uuid;
  std::string name;
  std::uint32_t vcpu_count = 0;
  bool away = false;
};
/// A guest went. On an attached connection: the guest's hypervisor did; the connection stays, and GuestEntry follows
/// when the guest is back.
struct GuestGone {
  Uuid uuid;
  OffReason reason{};
  std::string text;
};
/// Everything that comes without having been asked for.
using AgentMessage = std::variant<ReceivedEvent, ReceivedNotice, GuestEntry, GuestGone>;

/// What kvmid said when it let the agent in.
struct Welcome {
  AgentId agent;
  Uuid guest;  ///< zero on a control connection
  std::string guest_name;
  std::uint16_t vcpu_count = 0;
  std::uint32_t max_payload = 0;
  std::uint32_t requests_max = 0;
  std::uint32_t queue_bytes_max = 0;
  std::chrono::microseconds deadline{0};  ///< to reply to an event
  std::uint32_t priority = 0;
  CommandSet commands;
  EventSet events;
  Role role{};
  Action default_action{};
};

/// An open command. Its reply is collected once.
struct Ticket {
  Seq seq;
  friend bool operator==(const Ticket&, const Ticket&) = default;
};

/// A command's reply that owns what it shows, and the descriptors that came with it (GRANT_MEMORY).
class OwnedReply {
 public:
  OwnedReply(ByteBuffer storage, CommandReply reply, std::vector<UniqueFd> fds)
      : storage_(std::move(storage)), reply_(std::move(reply)), fds_(std::move(fds)) {}
  OwnedReply(OwnedReply&&) noexcept = default;
  OwnedReply& operator=(OwnedReply&&) noexcept = default;
  OwnedReply(const OwnedReply&) = delete;  // the views would point into the other one
  OwnedReply& operator=(const OwnedReply&) = delete;
  ~OwnedReply() = default;

  [[nodiscard]] bool ok() const { return reply_.error == ErrorCode::None; }
  [[nodiscard]] ErrorCode error() const { return reply_.error; }
  [[nodiscard]] std::string_view text() const { return reply_.text; }
  [[nodiscard]] const CommandReply& get() const { return reply_; }
  /// As received: a kvmi_error and what follows it.
  [[nodiscard]] Bytes payload() const { return storage_; }
  /// The reply's data of that type, or a null pointer.
  template <class T>
  [[nodiscard]] const T* body() const {
    return std::get_if<T>(&reply_.body);
  }
  [[nodiscard]] std::vector<UniqueFd>& fds() { return fds_; }

 private:
  ByteBuffer storage_;  // reply_ points into it; moving a vector leaves its elements where they are
  CommandReply reply_;
  std::vector<UniqueFd> fds_;
};

// Replies of the commands whose wire form has a tail, as values.
struct Registers {
  std::uint8_t mode = 8;
  kvmi_x86_regs regs{};
  kvmi_x86_sregs sregs{};
  std::vector<kvmi_x86_msr> msrs;
};
struct Memory {
  std::uint64_t cookie = 0;
  std::vector<std::byte> data;
};
/// Where bytes of guest memory come from, and where they go.
struct PhysicalRange {
  Gpa gpa;
  std::span<std::byte> out;
};
struct VirtualRange {
  Gva gva;
  std::span<std::byte> out;
};
struct WriteOptions {
  AddressSpace space{};
  std::uint16_t flags = 0;  ///< KVMI_WRITE_PATCH, KVMI_WRITE_UNPATCH; the others follow from the fields below
  std::optional<std::uint64_t> cookie;
  Bytes expected;  ///< as long as the data, or empty
};
struct GrantedMemory {
  std::uint64_t ram_bytes = 0;
  std::uint64_t generation_bytes = 0;
  std::vector<UniqueFd> fds;  ///< guest RAM, then the generation page
};

struct ConnectOptions {
  std::string socket{kDefaultAgentSocket};  ///< path, "@name" or vsock "cid:port"
  std::string name = "agent";       ///< printable ASCII, 1 to 63 characters; what kvmid's logs and policy call it
  Uuid guest;                       ///< zero: a control connection
  bool outcomes = false;            ///< OUTCOME notices for events that this agent saw
  Millis timeout{5000};             ///< for connecting, and for calls that name none
  std::size_t messages_max = 4096;  ///< of events and notices that nobody has taken yet
};

/// One agent's connection to kvmid.
///
/// Purpose:  what an agent needs of the protocol: attach, send commands, get events, answer them.
/// Shapes:   commands are synchronous (call, and the typed functions) or pipelined (submit, collect in any order);
///           a Batch sends several messages in one write. Events, notices and guests that come meanwhile are queued.
/// Units:    timeouts are milliseconds; a negative one (kNoLimit) waits as long as the connection lives.
/// Errors:   ClientError. Closed, Protocol, Overflow and System end the connection: every later call says the same,
///           but what had arrived before can still be taken. TimedOut leaves the connection good.
/// Bounds:   at most ConnectOptions::messages_max queued messages: when they are full the oldest one that nobody owes
///           anything for (an observer's event, an OUTCOME notice) is dropped and counted; at most kRequestsMax
///           open commands.
/// Threads:  none of its own; an object is used by one thread at a time.
/// Lifetime: the destructor closes the connection, and kvmid withdraws all that the agent had set up.
/// Source:   protocol/PROTOCOL.md
class AgentClient {
  struct ReadInto;

 public:
  static constexpr std::size_t kRequestsMax = 4096;
  static constexpr std::size_t kFdsMax = 16;
  static constexpr std::uint64_t kVirtualBytesMax = 1U << 30U;

  /// Connects and says hello. options.guest decides: a control connection, or attached to that guest.
  static Result<AgentClient, ClientError> connect(const ConnectOptions& options);
  /// Connects to the guest that `guest` names: its uuid, its name, or a unique beginning of its uuid. For the last two
  /// a control connection asks for the list of guests first.
  static Result<AgentClient, ClientError> attach(ConnectOptions options, std::string_view guest);
  /// Says hello on a stream socket that is already connected (a socket pair, an inherited descriptor).
  static Result<AgentClient, ClientError> adopt(UniqueFd fd, const ConnectOptions& options);

  AgentClient(AgentClient&&) noexcept = default;
  AgentClient& operator=(AgentClient&&) noexcept = default;
  ~AgentClient() = default;

  [[nodiscard]] const Welcome& welcome() const { return welcome_; }
  [[nodiscard]] bool is_open() const { return static_cast<bool>(fd_); }
  /// For a poll loop of one's own: readable means next_message(0) or collect(ticket, 0) may have something. Look at
  /// pending_messages() before sleeping. -1 when closed.
  [[nodiscard]] int fd() const { return fd_.get(); }
  void close();

  // -- commands, pipelined --

  /// Sends a command and does not wait for its reply.
  Result<Ticket, ClientError> submit(const Command& command);
  /// Waits for that reply. TimedOut leaves the ticket open. An error of the command is in the reply, not a ClientError.
  Result<OwnedReply, ClientError> collect(Ticket ticket, Millis timeout);
  Result<OwnedReply, ClientError> collect(Ticket ticket) { return collect(ticket, timeout_); }
  /// The reply is not wanted any more: it is dropped when it comes.
  void forget(Ticket ticket);
  [[nodiscard]] std::size_t open_requests() const { return requests_.size(); }

  /// submit and collect; after TimedOut the reply is forgotten.
  Result<OwnedReply, ClientError> call(const Command& command, Millis timeout);
  Result<OwnedReply, ClientError> call(const Command& command) { return call(command, timeout_); }

  /// Messages that leave in one write: a SET_REGISTERS and the event reply behind it, say.
  class Batch {
   public:
    Result<Ticket, ClientError> add(const Command& command);
    void reply(const ReceivedEvent& event, Action action, ReplacedValue value = {});
    void reply(Seq seq, const EventReply& reply);
    /// Sends everything added so far and leaves the batch empty. Until then the tickets cannot be collected.
    Result<void, ClientError> send();

   private:
    friend class AgentClient;
    Result<Ticket, ClientError> add_read(AddressSpace space, const ReadInto& into);
    explicit Batch(AgentClient& client) : client_(client) {}
    AgentClient& client_;
    struct Added {
      Seq seq;
      CommandId id{};
      const ReadInto* into = nullptr;
    };
    ByteBuffer bytes_;
    std::vector<Added> commands_;
  };
  /// The client must outlive the batch and stay where it is.
  Batch batch() { return Batch(*this); }

  // -- events and what else comes --

  /// The next message, or nothing when the time is over. 0 looks at what is there and does not wait.
  Result<std::optional<AgentMessage>, ClientError> next_message(Millis timeout);
  /// The next event; other messages stay in the queue.
  Result<std::optional<ReceivedEvent>, ClientError> wait_event(Millis timeout);
  /// Control connections: the next GUEST_ON or GUEST_OFF; also tells an attached agent that its guest went or is back.
  Result<std::optional<std::variant<GuestEntry, GuestGone>>, ClientError> wait_guest(Millis timeout);
  [[nodiscard]] std::size_t pending_messages() const { return messages_.size(); }
  [[nodiscard]] std::uint64_t dropped_messages() const { return dropped_; }
  /// Well-framed messages with an id that this library does not know; ignored.
  [[nodiscard]] std::uint64_t unknown_messages() const { return unknown_; }

  /// Notices go to `handler` as they are read, instead of into the queue. It must not call this object.
  void on_notice(std::function<void(const ReceivedNotice&)> handler) { notice_handler_ = std::move(handler); }

  /// Answers an event. Answering one that the agent only observes is an error of the caller.
  Result<void, ClientError> reply(const ReceivedEvent& event, Action action, ReplacedValue value = {});
  /// Sends an event reply as it is, for those who want its flags or its mistakes.
  Result<void, ClientError> reply(Seq seq, const EventReply& reply);

  // -- commands, one function each (commands.cpp); an error reply is ClientErrc::Failed --

  Result<GetVersionReply, ClientError> get_version();
  /// The whole list, however many messages it takes. Control connections only.
  Result<std::vector<GuestEntry>, ClientError> list_guests();
  Result<GetGuestInfoReply, ClientError> guest_info();
  /// Asks; the vCPU answers with a PAUSE event and stays until that is replied to.
  Result<void, ClientError> pause_vcpu(VcpuId vcpu);
  Result<Registers, ClientError> get_registers(VcpuId vcpu, std::span<const std::uint32_t> msrs = {});
  Result<void, ClientError> set_registers(VcpuId vcpu, const kvmi_x86_regs& regs);
  Result<void, ClientError> shutdown_guest();
  Result<GetCpuidReply, ClientError> get_cpuid(VcpuId vcpu, std::uint32_t function, std::uint32_t index = 0);
  Result<std::vector<kvmi_page_access_entry>, ClientError> get_page_access(Gpa gpa, std::uint32_t pages,
                                                                           AddressSpace space = AddressSpace::Normal);
  Result<void, ClientError> set_page_access(std::span<const kvmi_page_access_entry> entries,
                                            AddressSpace space = AddressSpace::Normal);
  Result<void, ClientError> set_page_access(Gpa gpa, std::uint32_t pages, std::uint8_t access);
  Result<void, ClientError> inject_exception(const InjectException& exception);
  /// One range, in as many messages as it takes (pipelined); the cookie is that of the first.
  Result<Memory, ClientError> read_physical(Gpa gpa, std::uint64_t bytes, AddressSpace space = AddressSpace::Normal);
  /// Several ranges in one message, their bytes one after another.
  Result<Memory, ClientError> read_ranges(std::span<const kvmi_read_range> ranges,
                                          AddressSpace space = AddressSpace::Normal);
  /// Any number of ranges of any size, in as many messages as it takes (memory.cpp): several leave at once, as many as
  /// kvmid lets this agent have open. The cookie is the first message's, the oldest, so that no change between them
  /// is missed (0 where nothing is asked for). After an error what the ranges hold is unspecified.
  Result<std::uint64_t, ClientError> read_scatter(std::span<const PhysicalRange> ranges,
                                                  AddressSpace space = AddressSpace::Normal);
  /// Guest virtual memory as the vCPU sees it: a TRANSLATE_GVA for each page, sent together, then read_scatter(). The
  /// error names the first address not mapped or not canonical. Page tables that the guest changes meanwhile are
  /// seen half old, half new, and no cookie tells: stop the vCPU where that matters. At most kVirtualBytesMax in all.
  Result<std::uint64_t, ClientError> read_virtual(VcpuId vcpu, Gva gva, std::span<std::byte> out);
  Result<std::uint64_t, ClientError> read_virtual(VcpuId vcpu, std::span<const VirtualRange> ranges);
  /// The cookie after the write. With ClientErrc::Failed and ErrorCode::Stale `*stale_cookie` is the current one.
  Result<std::uint64_t, ClientError> write_physical(Gpa gpa, Bytes data, const WriteOptions& options = {},
                                                    std::uint64_t* stale_cookie = nullptr);
  /// Writes only if nothing of the range was changed through kvmid since `cookie`, which came with a read, an event or
  /// a write. On success `cookie` becomes that of this write, on ErrorCode::Stale the current one: read again, decide
  /// again. It does not see the guest's own stores: WriteOptions::expected does. 0 is no cookie: BadArgument.
  Result<void, ClientError> write_if_unchanged(Gpa gpa, Bytes data, std::uint64_t& cookie,
                                               AddressSpace space = AddressSpace::Normal);
  Result<GrantedMemory, ClientError> grant_memory();
  Result<EventSet, ClientError> control_events(VcpuId vcpu, Operation operation, Role role, EventSet events);
  /// Adds these events on every vCPU.
  Result<EventSet, ClientError> subscribe(EventSet events, Role role) {
    return control_events(kAllVcpus, Operation::Enable, role, events);
  }
  Result<void, ClientError> control_cr(VcpuId vcpu, std::uint32_t cr, bool enable);
  Result<void, ClientError> control_msr(VcpuId vcpu, std::uint32_t msr, bool enable);
  Result<TranslateGvaReply, ClientError> translate_gva(VcpuId vcpu, Gva gva);
  Result<void, ClientError> control_singlestep(VcpuId vcpu, bool enable);
  Result<void, ClientError> set_filter(VcpuId vcpu, EventKind event, Action action,
                                       std::span<const kvmi_filter_term> terms);
  Result<std::vector<std::byte>, ClientError> get_xsave(VcpuId vcpu);
  Result<void, ClientError> set_xsave(VcpuId vcpu, Bytes area);
  Result<std::uint64_t, ClientError> get_xcr(VcpuId vcpu, std::uint32_t xcr = 0);
  /// The guest's memory slots, ascending; holes between them are no memory.
  Result<std::vector<kvmi_memory_slot>, ClientError> get_memory_map(AddressSpace space = AddressSpace::Normal);

 private:
  /// Where the bytes of a READ_PHYSICAL go, without a stop in between: one part after another.
  struct ReadInto {
    std::span<const kvmi_read_range> ranges;
    std::span<std::byte* const> to;  ///< [range]
    std::size_t bytes = 0;
  };
  struct Request {
    CommandId id{};
    bool forgotten = false;
    std::optional<OwnedReply> reply{};
    const ReadInto* into = nullptr;  ///< outlives the request, or it is forgotten
  };

  AgentClient(UniqueFd fd, const ConnectOptions& options);
  Result<void, ClientError> handshake(const ConnectOptions& options);
  Result<void, ClientError> check(const Command& command) const;
  Seq next_seq();
  Result<void, ClientError> send(const ByteBuffer& bytes, bool& accepted);
  Result<bool, ClientError> turn(SteadyClock::time_point until);
  void write_some();
  void read_some();
  void take_frames();
  void take(const Frame& frame);
  void take_reply(const Frame& frame);
  bool take_bytes(Request& request, const Frame& frame);
  void enqueue(AgentMessage message);
  void fail(ClientErrc kind, std::string text, int os_error = 0);
  [[nodiscard]] ClientError lost() const;
  template <class Take>
  auto wait_for(Millis timeout, Take take) -> Result<decltype(take()), ClientError>;
  Result<OwnedReply, ClientError> checked(const Command& command);

  UniqueFd fd_;
  Millis timeout_;
  std::size_t messages_max_;
  Welcome welcome_;
  DialectKvmi2 dialect_;
  FrameParser parser_;
  ByteBuffer out_;  // not yet written; at most one send() more than what did not fit
  std::size_t out_begin_ = 0;
  bool write_broken_ = false;
  std::uint32_t last_seq_ = 0;
  std::map<std::uint32_t, Request> requests_;
  std::deque<AgentMessage> messages_;
  std::vector<UniqueFd> fds_;  // came with bytes not yet decoded
  std::size_t grants_open_ = 0;
  std::uint64_t dropped_ = 0;
  std::uint64_t unknown_ = 0;
  std::optional<ClientError> lost_;
  std::function<void(const ReceivedNotice&)> notice_handler_;
};

/// The reply to `event`, with its vCPU and kind filled in.
EventReply make_reply(const Event& event, Action action, ReplacedValue value = {});

}  // namespace kvmid::client

namespace kvmid {
using client::AgentClient;
}  // namespace kvmid
