// SPDX-License-Identifier: GPL-2.0-or-later
#include "daemon/shm/generation_page.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstdlib>
#include <new>

namespace kvmid::shm {

// The writer is one thread, so it reads its own fields relaxed: what it sees is what it stored last.

Result<GenerationPage, Error> GenerationPage::create(const Config& config) {
  if (!std::has_single_bit(config.place_count) || config.place_count > kGenerationPlacesMax)
    return Error{"a generation page of " + std::to_string(config.place_count) + " places: not a power of two up to " +
                 std::to_string(kGenerationPlacesMax)};
  auto memory = SealedMemory::create("kvmid-generations",
                                     kGenerationHeaderBytes + config.place_count * sizeof(GenerationWord),
                                     SealedMemory::Owner::Told);
  if (!memory) return memory.error();
  return GenerationPage(std::move(memory).value(), config);
}

GenerationPage::GenerationPage(SealedMemory memory, const Config& config)
    : memory_(std::move(memory)),
      generation_(config.generation),
      place_count_(config.place_count),
      changing_(config.place_count),
      patched_(config.place_count) {
  // No order is needed: nobody has the descriptor yet, and handing it over is a system call behind this.
  GenerationHeader* const fresh = new (memory_.data()) GenerationHeader{};
  fresh->magic = kGenerationMagic;
  fresh->version = kGenerationVersion;
  fresh->header_bytes = kGenerationHeaderBytes;
  fresh->bytes = memory_.bytes();
  fresh->place_count = place_count_;
  fresh->ram_bytes = config.ram_bytes;
  fresh->generation.store(generation_, std::memory_order_relaxed);
  for (std::size_t place = 0; place < place_count_; ++place) new (&word(place)) GenerationWord(0);
}

/// Calls f(place) for each place of the range, none twice.
template <class F>
void GenerationPage::each_place(Gpa gpa, std::uint64_t bytes, F&& f) {
  if (bytes == 0) return;
  const std::uint64_t first = gfn_of(gpa).value;
  const std::uint64_t pages = gfn_of(Gpa{gpa.value + bytes - 1}).value - first + 1;
  const std::uint64_t places = std::min<std::uint64_t>(pages, place_count_);
  for (std::uint64_t i = 0; i < places; ++i) f(static_cast<std::size_t>((first + i) & (place_count_ - 1)));
}

void GenerationPage::begin_change(Gpa gpa, std::uint64_t bytes, std::uint64_t generation) {
  each_place(gpa, bytes, [&](std::size_t place) {
    if (changing_[place]++ != 0) return;
    // Relaxed: publish() and the fence below order all marks of this change at once.
    word(place).store(word(place).load(std::memory_order_relaxed) + kWordChanging, std::memory_order_relaxed);
  });
  publish(generation);
  // Release: the marks come before any store that follows, by whomever: the bytes themselves, or the message that asks
  // for them. A reader that has copied one new byte then sees its mark when it looks again (its acquire fence).
  std::atomic_thread_fence(std::memory_order_release);
}

void GenerationPage::end_change(Gpa gpa, std::uint64_t bytes) {
  each_place(gpa, bytes, [&](std::size_t place) {
    if (changing_[place] == 0) std::abort();
    if (--changing_[place] != 0) return;
    // Release: the bytes, which happened before the answer that brought us here, come before the even word. A reader
    // that sees the word even (acquire) copies all of them.
    word(place).store(word(place).load(std::memory_order_relaxed) - kWordChanging + kWordStep,
                      std::memory_order_release);
  });
}

void GenerationPage::set_patched(Gpa gpa, std::uint64_t bytes, bool on, std::uint64_t generation) {
  each_place(gpa, bytes, [&](std::size_t place) {
    const std::uint64_t now = word(place).load(std::memory_order_relaxed);
    if (on) {
      if (patched_[place]++ != 0) return;
      word(place).store(now + kWordPatched, std::memory_order_relaxed);  // ordered as the marks of a change are
    } else {
      if (patched_[place] == 0) std::abort();
      if (--patched_[place] != 0) return;
      // Release: the guest's own bytes are back before the reader may believe in what it finds.
      word(place).store(now - kWordPatched + kWordStep, std::memory_order_release);
    }
  });
  publish(generation);
  std::atomic_thread_fence(std::memory_order_release);  // on: before the patch itself, as in begin_change()
}

void GenerationPage::change_map(std::uint64_t generation) {
  const std::uint64_t sequence = header().map_sequence.load(std::memory_order_relaxed);
  if ((sequence & 1) != 0) return;  // retired
  // Relaxed: publish() stores the generation behind it with release, so who sees the new generation (acquire) sees
  // the odd sequence when it looks again, unless it has seen the even one below before.
  header().map_sequence.store(sequence + 1, std::memory_order_relaxed);
  // Release: the odd sequence comes before all that follows, also where this generation was published already.
  std::atomic_thread_fence(std::memory_order_release);
  publish(generation);
  // Release: who sees this even sequence (acquire) sees the new generation: no read after a change of the map gets a
  // cookie from before it.
  header().map_sequence.store(sequence + 2, std::memory_order_release);
}

void GenerationPage::retire() {
  if (memory_.data() == nullptr) return;  // moved from
  const std::uint64_t sequence = header().map_sequence.load(std::memory_order_relaxed);
  // Release: it has nothing to order but what was published before. Odd for good.
  header().map_sequence.store(sequence | 1, std::memory_order_release);
}

/// A generation never goes back. It goes out behind the marks of the change that makes it: a reader that gets this
/// cookie sees either the mark, and waits, or its end, and has the bytes.
void GenerationPage::publish(std::uint64_t generation) {
  if (generation <= generation_) return;
  generation_ = generation;
  // Release: the marks come before the generation.
  header().generation.store(generation, std::memory_order_release);
}

Result<GrantFile, Error> GrantFile::create() {
  auto memory = SealedMemory::create("kvmid-grant", kPageSize);
  if (!memory) return memory.error();
  GrantPage* const page = new (memory->data()) GrantPage{};
  page->magic = kGenerationMagic;
  page->version = kGenerationVersion;
  return GrantFile(std::move(memory).value());
}

void GrantFile::revoke() {
  if (memory_.data() == nullptr) return;  // moved from
  // Release: it comes behind every word that was still kept true.
  reinterpret_cast<GrantPage*>(memory_.data())->revoked.store(1, std::memory_order_release);
}

}  // namespace kvmid::shm
