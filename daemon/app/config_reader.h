// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// Reading checked values out of JSON. Inside of the config's sources only.

#include <cstdint>
#include <exception>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "daemon/app/config.h"
#include "protocol/message.h"

namespace kvmid::app {

using Json = nlohmann::json;

/// Leaves the reading of a configuration at the first mistake; caught where it began.
struct ConfigFailure {
  ConfigError error;
};
[[noreturn]] inline void fail(std::string path, std::string text) {
  throw ConfigFailure{{std::move(path), std::move(text)}};
}

/// A value as the user wrote it, cut where it is long.
std::string shown(const Json& value);

/// Values at `path`, checked.
std::uint64_t number_of(const Json& value, const std::string& path, std::uint64_t min, std::uint64_t max);
std::string text_of(const Json& value, const std::string& path);
bool flag_of(const Json& value, const std::string& path);
/// What a list of ids may also name.
enum class IdNames : std::uint8_t { None, Users, Groups };
/// A list of 32-bit ids, and of names that the system's user database has for them now.
std::vector<std::uint32_t> ids_of(const Json& value, const std::string& path, IdNames names);
std::vector<std::string> texts_of(const Json& value, const std::string& path);
/// A path that fits into a unix socket's address; `wanted` says what else the value may be.
std::string socket_path_of(const Json& value, const std::string& path, const std::string& wanted);

/// One JSON object whose keys are all accounted for.
///
/// Shapes:   has() or find() for each key that may be there, finish() at the end.
class ObjectReader {
 public:
  ObjectReader(const Json& node, std::string path);

  /// The value, or null where the key is missing.
  const Json* find(const char* key);
  [[nodiscard]] std::string path_of(std::string_view key) const { return path_ + "/" + std::string(key); }

  /// Leaves `out` as it is where the key is missing.
  template <class T>
  void number(const char* key, T& out, std::uint64_t min, std::uint64_t max) {
    if (const Json* value = find(key)) out = static_cast<T>(number_of(*value, path_of(key), min, max));
  }
  void text(const char* key, std::string& out) {
    if (const Json* value = find(key)) out = text_of(*value, path_of(key));
  }
  void flag(const char* key, bool& out) {
    if (const Json* value = find(key)) out = flag_of(*value, path_of(key));
  }
  /// An unknown key is an error that says which keys there are.
  void finish() const;

 private:
  const Json& node_;
  std::string path_;
  std::vector<std::string> known_;
};

/// One of some values with names; leaves `out` as it is where the key is missing.
template <class Value>
void read_choice(ObjectReader& reader, const char* key, std::initializer_list<Value> choices, Value& out) {
  const Json* value = reader.find(key);
  if (value == nullptr) return;
  std::string list;
  for (const Value choice : choices) {
    if (*value == std::string(name_of(choice))) {
      out = choice;
      return;
    }
    list += (list.empty() ? "" : ", ") + std::string(name_of(choice));
  }
  fail(reader.path_of(key), "must be one of " + list + ", is " + shown(*value));
}

/// Parses JSON text; syntax errors say line and column, duplicate keys their path.
Json parse_strict(std::string_view text);

}  // namespace kvmid::app
