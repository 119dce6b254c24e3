// SPDX-License-Identifier: LGPL-2.1-or-later
#include "client/mapped_memory.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cerrno>
#include <cstring>
#include <limits>
#include <string>
#include <system_error>
#include <utility>

#include "client/agent_client.h"

namespace kvmid::client {

namespace {

constexpr std::uint64_t kRamBytesMax = std::uint64_t{1} << 46U;
constexpr unsigned kSpins = 64;  ///< attempts that keep the processor

ClientError system_error(const std::string& what, int os_error) {
  return {ClientErrc::System, ErrorCode::None, what + ": " + std::generic_category().message(os_error), os_error};
}
ClientError bad(std::string text) { return {ClientErrc::Protocol, ErrorCode::None, std::move(text), 0}; }

/// The bytes race with whoever changes them: that is what the words tell afterwards, and a copy that raced is thrown
/// away. ThreadSanitizer cannot know that, so it does not look into this function, and into no other. Its memcpy() would
/// look, hence the loop; volatile, so that the compiler makes no memcpy() of it.
[[gnu::no_sanitize("thread")]] void copy_racing(std::byte* to, const std::byte* from, std::size_t bytes) {
#if defined(__SANITIZE_THREAD__)
  for (const volatile std::byte* at = from; bytes != 0; --bytes) *to++ = *at++;
#else
  std::memcpy(to, from, bytes);
#endif
}

void pause_between(unsigned attempt) {
  if (attempt >= kSpins) {
    ::sched_yield();
    return;
  }
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

/// Maps the first `bytes` of it read-only. Its size must be known to stay, or a read of it could end this process.
Result<const std::byte*, ClientError> map_file(int fd, std::uint64_t bytes, bool exact, bool unsealed, const char* name) {
  struct stat status = {};
  if (::fstat(fd, &status) != 0) return system_error(std::string("fstat of ") + name, errno);
  const auto size = static_cast<std::uint64_t>(status.st_size);
  if (!S_ISREG(status.st_mode)) return bad(std::string(name) + " is not a regular file");
  if (size < bytes || (exact && size != bytes))
    return bad(std::string(name) + " has " + std::to_string(size) + " bytes, and " + std::to_string(bytes) +
               " were announced");
  const int seals = ::fcntl(fd, F_GET_SEALS);
  if (!unsealed && (seals < 0 || (seals & F_SEAL_SHRINK) == 0))
    return bad(std::string(name) + " can be cut short by others: it is not sealed (F_SEAL_SHRINK)");
  void* const data = ::mmap(nullptr, bytes, PROT_READ, MAP_SHARED, fd, 0);
  if (data == MAP_FAILED) return system_error(std::string("mmap of ") + name, errno);
  return static_cast<const std::byte*>(data);
}

constexpr std::int64_t kNever = std::numeric_limits<std::int64_t>::max();

/// Good enough for kLookEvery, and no system call.
std::int64_t coarse_ns() {
  timespec now = {};
  ::clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
  return std::int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
}

}  // namespace

std::string_view text_of(MappedErrc error) {
  switch (error) {
    case MappedErrc::Revoked: return "the grant of guest memory has ended";
    case MappedErrc::AskKvmid: return "patches are laid there: kvmid must be asked";
    case MappedErrc::Fault: return "not within guest RAM";
    case MappedErrc::Unstable: return "the memory kept changing";
  }
  return "unknown";
}

Result<MappedMemory, ClientError> MappedMemory::map(const GrantedMemory& granted, const Options& options) {
  if (granted.fds.size() != 3)
    return bad("GRANT_MEMORY gave " + std::to_string(granted.fds.size()) + " descriptors, not 3");
  return map(Descriptors{granted.fds[0].get(), granted.fds[1].get(), granted.fds[2].get(), granted.ram_bytes,
                         granted.generation_bytes},
             options);
}

Result<MappedMemory, ClientError> MappedMemory::map(const Descriptors& descriptors, const Options& options) {
  if (descriptors.ram_bytes == 0 || descriptors.ram_bytes % kPageSize != 0 || descriptors.ram_bytes >= kRamBytesMax)
    return bad("guest RAM of " + std::to_string(descriptors.ram_bytes) + " bytes: not whole pages below 2^46 bytes");
  constexpr std::uint64_t kPageBytesMax = kGenerationHeaderBytes + kGenerationPlacesMax * sizeof(GenerationWord);
  if (descriptors.generation_bytes < kGenerationHeaderBytes + sizeof(GenerationWord) ||
      descriptors.generation_bytes > kPageBytesMax)
    return bad("a generation page of " + std::to_string(descriptors.generation_bytes) + " bytes");

  MappedMemory memory;
  memory.attempts_ = std::max(options.attempts, 1U);
  const auto page = map_file(descriptors.generations, descriptors.generation_bytes, true, false, "the generation page");
  if (!page) return page.error();
  memory.page_ = *page;
  memory.page_bytes_ = descriptors.generation_bytes;
  memory.page_fd_ = ::fcntl(descriptors.generations, F_DUPFD_CLOEXEC, 0);
  if (memory.page_fd_ < 0) return system_error("a descriptor cannot be copied", errno);
  memory.header_ = reinterpret_cast<const GenerationHeader*>(memory.page_);
  const auto grant = map_file(descriptors.grant, sizeof(GrantPage), false, false, "the grant page");
  if (!grant) return grant.error();
  memory.grant_ = *grant;

  const GenerationHeader& header = *memory.header_;
  if (header.magic != kGenerationMagic) return bad("the generation page has another magic");
  if (header.version != kGenerationVersion)
    return bad("the generation page has version " + std::to_string(header.version) + ", this library knows " +
               std::to_string(kGenerationVersion));
  const std::uint32_t places = header.place_count;  // read once
  const std::uint32_t header_bytes = header.header_bytes;
  if (!std::has_single_bit(places) || places > kGenerationPlacesMax)
    return bad("the generation page has " + std::to_string(places) + " places: not a power of two up to " +
               std::to_string(kGenerationPlacesMax));
  // A later version of the page may have a longer header.
  if (header_bytes < sizeof(GenerationHeader) || header_bytes % sizeof(GenerationWord) != 0 ||
      header_bytes > descriptors.generation_bytes ||
      places * sizeof(GenerationWord) > descriptors.generation_bytes - header_bytes)
    return bad("the words of the generation page are not within it");
  if (header.bytes != descriptors.generation_bytes) return bad("the generation page says another size than its file has");
  if (header.ram_bytes != descriptors.ram_bytes) return bad("the generation page is of another guest's RAM: sizes differ");
  const auto* const own = reinterpret_cast<const GrantPage*>(memory.grant_);
  if (own->magic != kGenerationMagic || own->version != kGenerationVersion)
    return bad("the grant page has another magic or version");
  memory.place_mask_ = places - 1;
  memory.words_ = reinterpret_cast<const GenerationWord*>(memory.page_ + header_bytes);

  const auto ram =
      map_file(descriptors.ram, descriptors.ram_bytes, true, options.allow_unsealed_ram, "the file of guest RAM");
  if (!ram) return ram.error();
  memory.ram_ = *ram;
  memory.ram_bytes_ = descriptors.ram_bytes;
  return Result<MappedMemory, ClientError>(std::move(memory));
}

MappedMemory::MappedMemory(MappedMemory&& other) noexcept { *this = std::move(other); }

MappedMemory& MappedMemory::operator=(MappedMemory&& other) noexcept {
  if (this == &other) return *this;
  unmap();
  ram_ = std::exchange(other.ram_, nullptr);
  page_ = std::exchange(other.page_, nullptr);
  grant_ = std::exchange(other.grant_, nullptr);
  header_ = other.header_;
  words_ = other.words_;
  ram_bytes_ = std::exchange(other.ram_bytes_, 0);
  page_bytes_ = other.page_bytes_;
  place_mask_ = other.place_mask_;
  attempts_ = other.attempts_;
  page_fd_ = std::exchange(other.page_fd_, -1);
  look_at_.store(other.look_at_.load(std::memory_order_relaxed), std::memory_order_relaxed);
  return *this;
}

void MappedMemory::unmap() {
  if (ram_ != nullptr) ::munmap(const_cast<std::byte*>(ram_), ram_bytes_);
  if (page_ != nullptr) ::munmap(const_cast<std::byte*>(page_), page_bytes_);
  if (grant_ != nullptr) ::munmap(const_cast<std::byte*>(grant_), sizeof(GrantPage));
  ram_ = page_ = grant_ = nullptr;
  if (page_fd_ >= 0) ::close(page_fd_);
  page_fd_ = -1;
}

bool MappedMemory::revoked() const {
  if (grant_ == nullptr) return true;  // moved from
  // Acquire: the words and bytes were copied before; acquire keeps what the caller does next behind it.
  return reinterpret_cast<const GrantPage*>(grant_)->revoked.load(std::memory_order_acquire) != 0 || !is_kept();
}

/// Whether kvmid still has its lock. Relaxed: two threads that look at the same time see the same.
bool MappedMemory::is_kept() const {
  const std::int64_t look_at = look_at_.load(std::memory_order_relaxed);
  if (look_at == kNever) return false;
  const std::int64_t now = coarse_ns();
  if (now < look_at) return true;
  struct flock ask = {};
  ask.l_type = F_RDLCK;  // a lock of another reader would not be in its way
  ask.l_whence = SEEK_SET;
  ask.l_len = 1;
  const bool gone = ::fcntl(page_fd_, F_OFD_GETLK, &ask) == 0 && ask.l_type == F_UNLCK;
  look_at_.store(gone ? kNever : now + std::chrono::nanoseconds(kLookEvery).count(), std::memory_order_relaxed);
  return !gone;
}

Result<void, MappedErrc> MappedMemory::read(Gpa gpa, std::span<std::byte> to) const {
  if (revoked()) return MappedErrc::Revoked;
  if (!is_ram(gpa, to.size())) return MappedErrc::Fault;
  if (!to.empty()) copy_racing(to.data(), ram_ + gpa.value, to.size());
  return {};
}

Result<std::uint64_t, MappedErrc> MappedMemory::read_stable(Gpa gpa, std::span<std::byte> to) const {
  const MappedRange range{gpa, to};
  return read_scatter({&range, 1});
}

/// Of every place that the ranges have. Words only grow, so an equal sum, later, means equal words.
MappedMemory::Words MappedMemory::words_of(std::span<const MappedRange> ranges, std::memory_order order) const {
  Words words;
  for (const MappedRange& range : ranges) add_words(range.gpa, range.to.size(), order, words);
  return words;
}

void MappedMemory::add_words(Gpa gpa, std::uint64_t bytes, std::memory_order order, Words& words) const {
  if (bytes == 0) return;
  const std::uint64_t first = gfn_of(gpa).value;
  const std::uint64_t pages = gfn_of(Gpa{gpa.value + bytes - 1}).value - first + 1;
  const std::uint64_t places = std::min(pages, place_mask_ + 1);
  for (std::uint64_t i = 0; i < places; ++i) {
    const std::uint64_t word = words_[(first + i) & place_mask_].load(order);
    words.sum += word;
    words.any |= word;
  }
}

Result<std::uint64_t, MappedErrc> MappedMemory::changes_of(Gpa gpa, std::uint64_t bytes) const {
  if (revoked()) return MappedErrc::Revoked;
  if (!is_ram(gpa, bytes)) return MappedErrc::Fault;
  Words words;
  // Acquire: who reads the bytes behind a new number sees at least what made it.
  words.sum = header_->map_sequence.load(std::memory_order_acquire);
  add_words(gpa, bytes, std::memory_order_acquire, words);
  return words.sum;
}

std::uint64_t MappedMemory::map_changes() const {
  if (page_ == nullptr) return 1;  // moved from
  return header_->map_sequence.load(std::memory_order_acquire);  // acquire: the map that is asked for next is not older
}

Result<std::uint64_t, MappedErrc> MappedMemory::read_scatter(std::span<const MappedRange> ranges) const {
  if (grant_ == nullptr) return MappedErrc::Revoked;  // moved from
  for (const MappedRange& range : ranges)
    if (!is_ram(range.gpa, range.to.size())) return MappedErrc::Fault;
  for (unsigned attempt = 0; attempt < attempts_; ++attempt) {
    if (attempt != 0) {
      if (revoked()) return MappedErrc::Revoked;  // its words may stay odd for ever
      pause_between(attempt);
    }
    // Acquire: an even sequence was stored behind the generation of its map change, so the next load sees that one, and
    // no cookie from before the change is given for bytes from after it.
    const std::uint64_t map = header_->map_sequence.load(std::memory_order_acquire);
    if ((map & 1) != 0) continue;
    // Acquire: the marks of the change that made this generation were stored before it, so the loads of words below
    // see them: the change is seen as under way, or as done.
    const std::uint64_t cookie = header_->generation.load(std::memory_order_acquire);
    // Acquire: a word that is even again was stored behind the bytes of the change, so the copy sees all of them. It also
    // keeps the copy behind these loads.
    const Words before = words_of(ranges, std::memory_order_acquire);
    if ((before.any & kWordPatched) != 0) return revoked() ? MappedErrc::Revoked : MappedErrc::AskKvmid;
    if ((before.any & kWordChanging) != 0) continue;
    for (const MappedRange& range : ranges)
      if (!range.to.empty()) copy_racing(range.to.data(), ram_ + range.gpa.value, range.to.size());
    // Acquire: the copy stays before the loads below. A copied byte of a change came after its mark, so they see it.
    std::atomic_thread_fence(std::memory_order_acquire);
    // Relaxed: the fence has ordered them, and nothing depends on what comes between them.
    if (words_of(ranges, std::memory_order_relaxed).sum != before.sum) continue;
    if (header_->map_sequence.load(std::memory_order_relaxed) != map) continue;
    if (revoked()) return MappedErrc::Revoked;
    return cookie;
  }
  return revoked() ? MappedErrc::Revoked : MappedErrc::Unstable;
}

}  // namespace kvmid::client
