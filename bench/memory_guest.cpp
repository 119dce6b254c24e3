// SPDX-License-Identifier: GPL-2.0-or-later
#include "bench/memory_guest.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>
#include <stdexcept>

namespace kvmid::bench {

namespace {

struct Ram {
  Fd fd;
  std::byte* data = nullptr;
  std::uint64_t bytes = 0;
};

Ram make_ram(std::uint64_t bytes) {
  Ram ram{Fd(::memfd_create("bench RAM", MFD_CLOEXEC | MFD_ALLOW_SEALING)), nullptr, bytes};
  if (ram.fd.get() < 0 || ::ftruncate(ram.fd.get(), static_cast<off_t>(bytes)) != 0)
    throw std::runtime_error("cannot make guest RAM");
  void* const data = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, ram.fd.get(), 0);
  if (data == MAP_FAILED) throw std::runtime_error("cannot map guest RAM");
  ram.data = static_cast<std::byte*>(data);
  for (std::uint64_t page = 0; page < bytes / kPageSize; ++page)
    std::memset(ram.data + page * kPageSize, static_cast<int>(page & 0xff), kPageSize);
  if (::fcntl(ram.fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE) != 0)
    throw std::runtime_error("cannot seal guest RAM");
  return ram;
}

void say_hello(int socket, const MemoryGuest& guest, const Ram& ram) {
  HypervisorHello hello{
      .uuid = guest.uuid, .start_time = 1, .name = "bench memory", .max_gpa = ram.bytes, .kvmi2 = true};
  if (guest.shared) {
    hello.flags = KVMI_HANDSHAKE_RAM_SHARED;
    hello.ram_bytes = ram.bytes;
  }
  ByteBuffer bytes;
  encode(hello, bytes);
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  iovec part{bytes.data(), bytes.size()};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (guest.shared) {
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    cmsghdr* const head = CMSG_FIRSTHDR(&message);
    head->cmsg_level = SOL_SOCKET;
    head->cmsg_type = SCM_RIGHTS;
    head->cmsg_len = CMSG_LEN(sizeof(int));
    const int fd = ram.fd.get();
    std::memcpy(CMSG_DATA(head), &fd, sizeof fd);
  }
  if (::sendmsg(socket, &message, MSG_NOSIGNAL) != static_cast<ssize_t>(bytes.size()))
    throw std::runtime_error("cannot say hello to kvmid");
  const auto answer =
      parse_hypervisor_answer(receive(socket, sizeof(kvmi_handshake_answer) + sizeof(kvmi_handshake_answer_kvmi2)));
  if (!answer || answer->status != ErrorCode::None) throw std::runtime_error("kvmid does not take the guest");
}

class Server {
 public:
  Server(Stream stream, const Ram& ram) : stream_(std::move(stream)), ram_(ram) {}

  void run() {
    while (const Frame* frame = stream_.next_or_end()) {
      const auto message = dialect_.decode_downward(*frame);
      if (!message) throw std::runtime_error(describe(message.error()));
      if (const auto* command = std::get_if<Command>(&*message)) serve(*command, frame->seq);
    }
  }

 private:
  [[nodiscard]] bool is_ram(std::uint64_t gpa, std::uint64_t bytes) const {
    return gpa <= ram_.bytes && bytes <= ram_.bytes - gpa;
  }
  void serve(const Command& command, Seq seq) {
    CommandReply reply{.id = static_cast<std::uint16_t>(id_of(command)), .text = {}, .body = {}};
    if (std::holds_alternative<GetVersion>(command)) {
      reply.body = GetVersionReply{.commands = CommandSet{(std::uint64_t{1} << 35U) - 1}, .events = EventSet{}};
    } else if (std::holds_alternative<GetGuestInfo>(command)) {
      reply.body = GetGuestInfoReply{.vcpu_count = 1,
                                     .physical_address_bits = 40,
                                     .linear_address_bits = 48,
                                     .execute_only = false,
                                     .max_gpa = ram_.bytes};
    } else if (std::holds_alternative<GetMemoryMap>(command)) {
      slot_ = {0, ram_.bytes, 0, 0, 0};
      reply.body = GetMemoryMapReply{std::span<const kvmi_memory_slot>(&slot_, 1)};
    } else if (const auto* read = std::get_if<ReadPhysical>(&command)) {
      data_.clear();
      for (std::size_t i = 0; i < read->ranges.size() && reply.error == ErrorCode::None; ++i) {
        const kvmi_read_range range = read->ranges[i];
        if (!is_ram(range.gpa, range.size)) reply.error = ErrorCode::Fault;
        else data_.insert(data_.end(), ram_.data + range.gpa, ram_.data + range.gpa + range.size);
      }
      if (reply.error == ErrorCode::None) reply.body = ReadPhysicalReply{0, data_};
    } else if (const auto* write = std::get_if<WritePhysical>(&command)) {
      if (!is_ram(write->gpa.value, write->data.size())) {
        reply.error = ErrorCode::Fault;
      } else {
        std::memcpy(ram_.data + write->gpa.value, write->data.data(), write->data.size());
        reply.body = WritePhysicalReply{};
      }
    }
    dialect_.encode(reply, seq, stream_.out());
    stream_.flush();
  }

  Stream stream_;
  const Ram& ram_;
  DialectKvmi2 dialect_;
  ByteBuffer data_;
  kvmi_memory_slot slot_{};
};

}  // namespace

Child serve_memory_guest(const std::string& hypervisor_socket, const MemoryGuest& guest) {
  return Child([&] {
    const Ram ram = make_ram(guest.ram_bytes);
    Fd fd = connect_unix(hypervisor_socket, std::chrono::seconds(5));
    say_hello(fd.get(), guest, ram);
    Server(Stream(std::move(fd)), ram).run();
  });
}

}  // namespace kvmid::bench
