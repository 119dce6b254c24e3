// SPDX-License-Identifier: GPL-2.0-or-later
#include "bridge/hypervisor_memory.h"

#include <algorithm>

namespace kvmid::bridge {

namespace {

constexpr std::size_t kReadBytesMax = KVMI_MAX_PAYLOAD - sizeof(kvmi_error) - sizeof(kvmi_read_physical_reply);

Failure not_normal() { return {ErrorCode::NotSupported, "this hypervisor has the normal address space only"}; }

bool wraps(std::uint64_t gpa, std::uint64_t size) { return gpa + (size - 1) < gpa; }

Failure not_memory(std::uint64_t gpa, std::uint64_t size) {
  return {ErrorCode::Fault, hex_text(size) + " bytes at GPA " + hex_text(gpa) + " are not all guest memory"};
}

}  // namespace

// ---- what can be said before anything is sent ----

std::optional<Failure> HypervisorMemory::refusal_of(const ReadPhysical& command) const {
  if (command.space != AddressSpace::Normal) return not_normal();
  if (command.ranges.empty()) return Failure{ErrorCode::Invalid, "no ranges"};
  std::uint64_t total = 0;
  for (std::size_t i = 0; i < command.ranges.size(); ++i) {
    const kvmi_read_range range = command.ranges[i];
    if (range.size == 0) return Failure{ErrorCode::Invalid, "a range of 0 bytes"};
    if (wraps(range.gpa, range.size)) return not_memory(range.gpa, range.size);
    total += range.size;
    if (total > kReadBytesMax) {
      return Failure{ErrorCode::TooBig,
                     "the ranges together do not fit into a message of " + std::to_string(KVMI_MAX_PAYLOAD) + " bytes"};
    }
  }
  return std::nullopt;
}

std::optional<Failure> HypervisorMemory::refusal_of(const WritePhysical& command) const {
  constexpr unsigned kPatchFlags = KVMI_WRITE_PATCH | KVMI_WRITE_UNPATCH;
  const auto invalid = [](std::string text) { return Failure{ErrorCode::Invalid, std::move(text)}; };
  const std::size_t size = command.data.size();
  const bool patches = (command.flags & kPatchFlags) != 0;
  if ((command.flags & ~(kPatchFlags | KVMI_WRITE_COOKIE | KVMI_WRITE_EXPECT)) != 0)
    return invalid("unknown flags " + hex_text(command.flags));
  if ((command.flags & kPatchFlags) == kPatchFlags) return invalid("PATCH and UNPATCH at once");
  if (size == 0) return invalid("a range of 0 bytes");
  if ((command.flags & KVMI_WRITE_EXPECT) != 0 && command.expected.size() != size) {
    return invalid(std::to_string(command.expected.size()) + " bytes are expected in a range of " +
                   std::to_string(size));
  }
  if (patches && size > KVMI_PATCH_BYTES_MAX) {
    return invalid("a patch has at most " + std::to_string(KVMI_PATCH_BYTES_MAX) + " bytes, not " +
                   std::to_string(size));
  }
  if (patches && command.gpa.value % kPageSize + size > kPageSize) {
    return invalid("a patch lies within a page, not at GPA " + hex_text(command.gpa.value) + " with " +
                   std::to_string(size) + " bytes");
  }
  if ((command.flags & KVMI_WRITE_COOKIE) != 0) return Failure{ErrorCode::NotSupported, "cookies are kept by kvmid"};
  if (command.space != AddressSpace::Normal) return not_normal();
  // The only thing that can be said of a breakpoint event of that dialect is that the guest shall have it.
  if ((command.flags & KVMI_WRITE_PATCH) != 0 && link_.dialect() == kvmi1::DialectId::Rfc2017)
    return Failure{ErrorCode::NotSupported, "in the dialect rfc2017 nobody gets past a patch that is met"};
  const bool looks = (command.flags & (kPatchFlags | KVMI_WRITE_EXPECT)) != 0;
  if (looks && !link_.facts.allows<kvmi1::ReadPhysical>())
    return Failure{ErrorCode::NotSupported,
                   "this hypervisor does not let memory be read: no patches, no writes that expect something"};
  if (wraps(command.gpa.value, size)) return not_memory(command.gpa.value, size);
  return std::nullopt;
}

// ---- from the core ----

void HypervisorMemory::send(const ReadPhysical& command, Seq seq, ByteBuffer& wire) {
  if (const auto refusal = refusal_of(command)) return link_.refuse(seq, CommandId::ReadPhysical, *refusal);
  Job job{.seq = seq, .id = CommandId::ReadPhysical, .step = Step::Read};
  job.ranges.reserve(command.ranges.size());
  for (std::size_t i = 0; i < command.ranges.size(); ++i) job.ranges.push_back(command.ranges[i]);
  if (waits()) {
    queue_.push_back(std::move(job));
  } else {
    start(std::move(job), wire);
  }
}

void HypervisorMemory::send(const WritePhysical& command, Seq seq, ByteBuffer& wire) {
  if (const auto refusal = refusal_of(command)) return link_.refuse(seq, CommandId::WritePhysical, *refusal);
  Job job{.seq = seq, .id = CommandId::WritePhysical, .step = Step::Write};
  job.gpa = command.gpa;
  job.flags = command.flags;
  job.data.assign(command.data.begin(), command.data.end());
  job.expected.assign(command.expected.begin(), command.expected.end());
  if (waits()) {
    queue_.push_back(std::move(job));
  } else {
    start(std::move(job), wire);
  }
}

// ---- down ----

void HypervisorMemory::start(Job started, ByteBuffer& wire) {
  if (started.is(KVMI_WRITE_PATCH | KVMI_WRITE_UNPATCH)) {
    const auto refusal = started.is(KVMI_WRITE_PATCH) ? patches_.may_place(started.gpa, started.data.size())
                                                      : patches_.is_placed(started.gpa, started.data.size());
    if (refusal) return link_.refuse(started.seq, started.id, *refusal);
  }
  const auto [id, job] = jobs_.add(std::move(started));
  if (job->step == Step::Read) {
    std::size_t total = 0;
    for (const kvmi_read_range& range : job->ranges) {
      cut(*job, Gpa{range.gpa}, total, range.size);
      total += range.size;
    }
    return read(id, *job, wire);
  }
  constexpr unsigned kLooks = KVMI_WRITE_EXPECT | KVMI_WRITE_PATCH | KVMI_WRITE_UNPATCH;
  if (!job->is(kLooks) && !patches_.touches(job->gpa, job->data.size()))
    return write(id, *job, {Run{0, job->data.size()}}, wire);
  // Idle --needs a look--> Look
  job->step = Step::Look;
  job->alone = alone_ = true;
  cut(*job, job->gpa, 0, job->data.size());
  read(id, *job, wire);
}

/// What was behind a job that was alone, or many pieces, up to the next of that kind.
void HypervisorMemory::start_queued(ByteBuffer& wire) {
  while (may_start() && !queue_.empty()) {
    Job job = std::move(queue_.front());
    queue_.pop_front();
    start(std::move(job), wire);
  }
}

/// Pieces within a page, for bytes [at, at + size) of the job.
void HypervisorMemory::cut(Job& job, Gpa gpa, std::size_t at, std::size_t size) const {
  while (size != 0) {
    const std::size_t part = std::min<std::size_t>(size, kPageSize - gpa.value % kPageSize);
    job.pieces.push_back({gpa, at, part});
    gpa.value += part;
    at += part;
    size -= part;
  }
}

void HypervisorMemory::read(std::uint32_t id, Job& job, ByteBuffer& wire) {
  job.open = static_cast<unsigned>(job.pieces.size());
  pieces_open_ += job.open;
  for (std::uint32_t i = 0; i < job.pieces.size(); ++i)
    link_.ask(kvmi1::ReadPhysical{job.pieces[i].gpa, job.pieces[i].size}, AskedBy::Memory, id, i, wire);
}

/// Look --it holds what it must--> Write, or done at once where patches cover all of it.
void HypervisorMemory::write(std::uint32_t id, Job& job, const std::vector<Run>& runs, ByteBuffer& wire) {
  job.step = Step::Write;
  job.pieces.clear();
  for (const Run& run : runs) cut(job, Gpa{job.gpa.value + run.at}, run.at, run.size);
  job.open = static_cast<unsigned>(job.pieces.size());
  pieces_open_ += job.open;
  for (std::uint32_t i = 0; i < job.pieces.size(); ++i) {
    const Piece& piece = job.pieces[i];
    link_.ask(kvmi1::WritePhysical{piece.gpa, Bytes(job.data).subspan(piece.at, piece.size)}, AskedBy::Memory, id, i,
              wire);
  }
  if (job.open == 0) finish(id, job);
}

// ---- from the hypervisor ----

Kept HypervisorMemory::replied(const Asked& asked, const kvmi1::Reply& reply, ByteBuffer& wire) {
  Job& job = jobs_.at(asked.job);
  --job.open;
  --pieces_open_;
  if (reply.error != 0) {
    if (job.failure.error == ErrorCode::None) {
      job.failure = link_.failure_of(asked, reply.error);
      job.failure.text += " at GPA " + hex_text(job.pieces[asked.part].gpa.value);
      if (job.failure.error == ErrorCode::NoEntry) job.failure.error = ErrorCode::Fault;
    }
  } else if (job.step != Step::Write) {
    if (auto kept = take(asked, reply, job); !kept) return kept;
  }
  if (job.open == 0) step_done(asked.job, job, wire);
  start_queued(wire);
  return {};
}

Kept HypervisorMemory::take(const Asked& asked, const kvmi1::Reply& reply, Job& job) {
  const auto* read = link_.body_of<kvmi1::ReadPhysicalReply>(reply);
  const Piece& piece = job.pieces[asked.part];
  if (read == nullptr || read->data.size() != piece.size) {
    return link_.broken(asked, "with " + std::to_string(read == nullptr ? 0 : read->data.size()) + " bytes where " +
                                   std::to_string(piece.size) + " were asked for");
  }
  const bool whole = job.step == Step::Read && job.pieces.size() == 1 && !patches_.touches(piece.gpa, piece.size);
  if (whole) {  // most reads: the frame's own bytes are handed on
    link_.answer(job.seq, job.id, ReadPhysicalReply{0, read->data});
    return {};
  }
  if (job.bytes.empty()) job.bytes.resize(job.pieces.back().at + job.pieces.back().size);
  std::copy(read->data.begin(), read->data.end(), job.bytes.begin() + static_cast<std::ptrdiff_t>(piece.at));
  if (job.step == Step::Read) patches_.uncover(piece.gpa, std::span(job.bytes).subspan(piece.at, piece.size));
  return {};
}

void HypervisorMemory::step_done(std::uint32_t id, Job& job, ByteBuffer& wire) {
  if (job.failure.error != ErrorCode::None) {
    link_.refuse(job.seq, job.id, job.failure);
    return finish(id, job);
  }
  switch (job.step) {
    case Step::Read:
      if (!job.bytes.empty()) {
        const Bytes data(job.bytes);
        link_.answer(job.seq, job.id, ReadPhysicalReply{0, data}, std::move(job.bytes));
      }
      return jobs_.remove(id);
    case Step::Look:
      return looked(id, job, wire);
    case Step::Write:
      return finish(id, job);
  }
}

/// What memory holds is known: it is compared, and what is to be written follows from it.
void HypervisorMemory::looked(std::uint32_t id, Job& job, ByteBuffer& wire) {
  std::vector<std::byte> own = job.bytes;
  patches_.uncover(job.gpa, own);
  if (job.is(KVMI_WRITE_EXPECT)) {
    const auto [there, wanted] = std::mismatch(own.begin(), own.end(), job.expected.begin());
    if (there != own.end()) {
      job.failure = {ErrorCode::Stale, "the byte at GPA " +
                                           hex_text(job.gpa.value + static_cast<std::uint64_t>(there - own.begin())) +
                                           " is " + hex_text(std::to_integer<unsigned>(*there)) + ", not " +
                                           hex_text(std::to_integer<unsigned>(*wanted)) + " as expected"};
      link_.refuse(job.seq, job.id, job.failure.error, job.failure.text, WritePhysicalReply{});
      return finish(id, job);
    }
  }
  if (job.is(KVMI_WRITE_PATCH)) {
    job.bytes = std::move(own);  // what is under the patch from now on
    return write(id, job, {Run{0, job.data.size()}}, wire);
  }
  if (!job.is(KVMI_WRITE_UNPATCH)) return write(id, job, patches_.uncovered(job.gpa, job.bytes), wire);
  // Only what the patch covers: what the guest has stored over it stays, also what it stores meanwhile.
  std::vector<Run> covered;
  std::size_t begin = 0;
  const auto cover = [&](std::size_t end) {
    if (end != begin) covered.push_back({begin, end - begin});
  };
  for (const Run& run : patches_.uncovered(job.gpa, job.bytes)) {
    cover(run.at);
    begin = run.at + run.size;
  }
  cover(job.data.size());
  job.data = std::move(own);
  write(id, job, covered, wire);
}

/// Write --done--> Idle, and what waited goes on. What failed is answered already.
void HypervisorMemory::finish(std::uint32_t id, Job& job) {
  const bool was_alone = job.alone;
  if (job.failure.error == ErrorCode::None && job.id == CommandId::WritePhysical) {
    if (job.is(KVMI_WRITE_PATCH)) {
      patches_.place(job.gpa, {std::move(job.data), std::move(job.bytes)});
    } else if (job.is(KVMI_WRITE_UNPATCH)) {
      patches_.remove(job.gpa);
    } else {
      patches_.change_under(job.gpa, job.data);
    }
    link_.answer(job.seq, job.id, WritePhysicalReply{});
  }
  jobs_.remove(id);
  if (was_alone) alone_ = false;
}

}  // namespace kvmid::bridge
