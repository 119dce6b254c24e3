// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

/// How dialects read and write payloads. Used by the .cpp files of this folder only.
///
/// Purpose:  a decoder states its rules one after another; the first one broken is what is reported.
/// Errors:   PayloadReader keeps the first DecodeError. FrameWriter stops the process where a payload is too large:
///           callers check sizes before they encode.
/// Threads:  none.
/// Lifetime: views that a reader gives live as long as the payload.

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string_view>
#include <type_traits>

#include "protocol/dialect.h"
#include "protocol/text.h"

namespace kvmid {

/// Where a field lies in its struct.
struct FieldAt {
  std::size_t offset;
  std::size_t size;
};
#define KVMID_FIELD(type, field) (::kvmid::FieldAt{offsetof(type, field), sizeof(type::field)})

class PayloadReader {
 public:
  PayloadReader(Bytes payload, std::uint16_t id) : payload_(payload), id_(id) {}

  /// The next sizeof(T) bytes. Their place becomes base(): what field offsets of the checks are relative to.
  /// All zero where there are too few: the error is kept, and the checks after it change nothing.
  template <class T>
  T take() {
    static_assert(std::has_unique_object_representations_v<T>);
    T value{};
    base_ = at_;
    const Bytes bytes = take_bytes(sizeof value);
    if (bytes.size() == sizeof value) std::memcpy(&value, bytes.data(), sizeof value);
    return value;
  }

  /// The next `n` bytes, or an error and nothing.
  Bytes take_bytes(std::uint64_t n) {
    if (error_ || n > payload_.size() - at_) {
      fail(DecodeErrc::Truncated, payload_.size());
      return {};
    }
    const Bytes bytes = payload_.subspan(at_, static_cast<std::size_t>(n));
    at_ += bytes.size();
    return bytes;
  }

  /// `count` items of a tail. A count never makes this read, or multiply, past the payload.
  template <class T>
  WireArray<T> take_array(std::uint64_t count) {
    if (count > KVMI_MAX_PAYLOAD) {
      fail(DecodeErrc::Truncated, payload_.size());
      return {};
    }
    return WireArray<T>(take_bytes(count * sizeof(T)));
  }

  /// UTF-8 for people.
  std::string_view take_text(std::uint64_t size) {
    const std::size_t start = at_;
    const Bytes bytes = take_bytes(size);
    const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    const auto valid = valid_utf8_prefix(text);
    if (valid != text.size()) fail(DecodeErrc::BadValue, start + valid);
    return text;
  }

  /// All that is left.
  Bytes take_rest() { return take_bytes(payload_.size() - at_); }

  void fail(DecodeErrc code, std::size_t offset) {
    if (!error_) error_ = DecodeError{code, id_, static_cast<std::uint32_t>(offset)};
  }
  /// `field` is of the struct taken last.
  void check(bool ok, DecodeErrc code, FieldAt field) {
    if (!ok) fail(code, base_ + field.offset);
  }
  void check_bool(std::uint8_t value, FieldAt field) { check(value <= 1, DecodeErrc::BadFlag, field); }
  /// Reports the first byte that is not zero. Nothing to do after an error: the bytes may not be there.
  void check_zero(FieldAt field, std::size_t nested_at = 0) {
    if (error_) return;
    const std::size_t start = base_ + nested_at + field.offset;
    for (std::size_t i = 0; i < field.size; ++i) {
      if (payload_[start + i] != std::byte{0}) return fail(DecodeErrc::PaddingNotZero, start + i);
    }
  }

  [[nodiscard]] bool failed() const { return error_.has_value(); }
  [[nodiscard]] std::size_t base() const { return base_; }
  /// To check fields of an item of a tail: `start` is its place in the payload.
  void set_base(std::size_t start) { base_ = start; }
  [[nodiscard]] std::size_t position() const { return at_; }

  /// The error of the message, TooLong where bytes are left over.
  [[nodiscard]] std::optional<DecodeError> finish() {
    if (at_ != payload_.size()) fail(DecodeErrc::TooLong, at_);
    return error_;
  }

 private:
  Bytes payload_;
  std::uint16_t id_;
  std::size_t at_ = 0;
  std::size_t base_ = 0;
  std::optional<DecodeError> error_;
};

/// Appends one frame to a buffer; its destructor fills in the header's size.
class FrameWriter {
 public:
  FrameWriter(ByteBuffer& out, std::uint16_t id, Seq seq) : out_(out), start_(out.size()) {
    put(kvmi_msg_hdr{.id = id, .size = 0, .seq = seq.value});
  }
  FrameWriter(const FrameWriter&) = delete;
  FrameWriter& operator=(const FrameWriter&) = delete;
  ~FrameWriter() {
    const std::size_t payload = out_.size() - start_ - sizeof(kvmi_msg_hdr);
    if (payload > KVMI_MAX_PAYLOAD) std::abort();
    const auto size = static_cast<std::uint16_t>(payload);
    std::memcpy(out_.data() + start_ + offsetof(kvmi_msg_hdr, size), &size, sizeof size);
  }

  template <class T>
  void put(const T& value) {
    static_assert(std::has_unique_object_representations_v<T>);
    put(std::as_bytes(std::span(&value, 1)));
  }
  void put(Bytes bytes) { out_.insert(out_.end(), bytes.begin(), bytes.end()); }
  void put(std::string_view text) { put(std::as_bytes(std::span(text))); }

 private:
  ByteBuffer& out_;
  std::size_t start_;
};

/// A count or size that goes into a narrower wire field. A payload that fits in a message never needs more.
template <class T>
T wire_count(std::size_t n) {
  if (n > static_cast<std::size_t>(static_cast<T>(-1))) std::abort();
  return static_cast<T>(n);
}

/// Bytes [start, start + size) that reach or pass the end of the address space.
constexpr bool wraps(std::uint64_t start, std::uint64_t size) { return start + size < start; }

/// Rules that more than one message has. Each checks the struct `reader` took last, or the item at `at`.
void check_page_access_entries(PayloadReader& reader, const WireArray<kvmi_page_access_entry>& entries,
                               std::size_t first_at);
void check_guest_entry(PayloadReader& reader, const kvmi_guest_entry& entry, std::size_t at);
void check_sregs_padding(PayloadReader& reader, std::size_t sregs_offset);
bool is_error_number(std::int64_t number);

/// Event messages, kept in a file of their own.
Event read_event(PayloadReader& reader);

}  // namespace kvmid
