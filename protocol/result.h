// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <cstdlib>
#include <utility>
#include <variant>

namespace kvmid {

/// A value or the reason why there is none.
///
/// Purpose:  errors are values with a type; a caller cannot forget to look ([[nodiscard]]).
/// Shapes:   the member names of std::expected; T and E are different types.
/// Errors:   value() without a value, error() without an error: the process stops (a broken invariant).
template <class T, class E>
class [[nodiscard]] Result {
 public:
  Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}  // NOLINT(google-explicit-constructor)
  Result(E error) : state_(std::in_place_index<1>, std::move(error)) {}  // NOLINT(google-explicit-constructor)

  [[nodiscard]] bool has_value() const { return state_.index() == 0; }
  explicit operator bool() const { return has_value(); }

  [[nodiscard]] T& value() & { return *get(); }
  [[nodiscard]] const T& value() const& { return *get(); }
  [[nodiscard]] T&& value() && { return std::move(*get()); }
  [[nodiscard]] const E& error() const {
    const E* e = std::get_if<1>(&state_);
    if (e == nullptr) std::abort();
    return *e;
  }

  T& operator*() { return *get(); }
  const T& operator*() const { return *get(); }
  T* operator->() { return get(); }
  const T* operator->() const { return get(); }

 private:
  T* get() {
    T* v = std::get_if<0>(&state_);
    if (v == nullptr) std::abort();
    return v;
  }
  const T* get() const {
    const T* v = std::get_if<0>(&state_);
    if (v == nullptr) std::abort();
    return v;
  }
  std::variant<T, E> state_;
};

/// Success without a value, or the reason of the failure.
template <class E>
class [[nodiscard]] Result<void, E> {
 public:
  Result() = default;
  Result(E error) : error_(std::in_place_index<1>, std::move(error)) {}  // NOLINT(google-explicit-constructor)

  [[nodiscard]] bool has_value() const { return error_.index() == 0; }
  explicit operator bool() const { return has_value(); }
  [[nodiscard]] const E& error() const {
    const E* e = std::get_if<1>(&error_);
    if (e == nullptr) std::abort();
    return *e;
  }

 private:
  std::variant<std::monostate, E> error_;
};

/// Lambdas as one visitor: std::visit(Overloaded{...}, variant); a missing case does not compile.
template <class... F>
struct Overloaded : F... {
  using F::operator()...;
};
template <class... F>
Overloaded(F...) -> Overloaded<F...>;

}  // namespace kvmid
