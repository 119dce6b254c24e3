// SPDX-License-Identifier: GPL-2.0-or-later
#include "daemon/app/config_reader.h"

#include <grp.h>
#include <pwd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <set>

namespace kvmid::app {
namespace {

/// Follows the parser, to know where it is and which keys it has seen there.
class DuplicateCheck {
 public:
  bool operator()(int, Json::parse_event_t event, Json& parsed) {
    using Event = Json::parse_event_t;
    switch (event) {
      case Event::object_start: enter(true); break;
      case Event::array_start: enter(false); break;
      case Event::key: {
        Level& level = levels_.back();
        level.key = parsed.get<std::string>();
        if (!level.keys.insert(level.key).second) fail(path(), "the key is there twice");
        break;
      }
      case Event::value:
        if (!levels_.empty() && !levels_.back().object) ++levels_.back().index;
        break;
      case Event::object_end:
      case Event::array_end:
        levels_.pop_back();
        if (!levels_.empty() && !levels_.back().object) ++levels_.back().index;
        break;
    }
    return true;
  }

 private:
  struct Level {
    bool object = false;
    std::string key;
    std::size_t index = 0;
    std::set<std::string> keys;
  };

  void enter(bool object) {
    constexpr std::size_t kDepthMax = 32;
    if (levels_.size() == kDepthMax) fail(path(), "nested too deeply");
    levels_.emplace_back().object = object;
  }
  [[nodiscard]] std::string path() const {
    std::string out;
    for (const auto& level : levels_) out += "/" + (level.object ? level.key : std::to_string(level.index));
    return out;
  }

  std::vector<Level> levels_;
};

constexpr std::uint32_t kIdMax = 0xfffffffeU;

/// `lookup(buffer, found)` is one of the system's get...nam_r; `id_in(*found)` is what it is asked for.
template <class Entry, class Lookup, class IdIn>
std::uint32_t looked_up(const char* kind, const Json& name, const std::string& path, Lookup&& lookup, IdIn&& id_in) {
  constexpr std::size_t kBufferMax = 16U << 20U;  // a group of very many members
  std::vector<char> buffer(16384);
  Entry entry{};
  Entry* found = nullptr;
  int error = 0;
  while ((error = lookup(entry, buffer, found)) == ERANGE && buffer.size() < kBufferMax)
    buffer.resize(buffer.size() * 2);
  // POSIX lets these stand for "there is none" as well.
  const bool none = error == 0 || error == ENOENT || error == ESRCH || error == EBADF || error == EPERM;
  if (found != nullptr) return static_cast<std::uint32_t>(id_in(*found));
  if (none) fail(path, std::string("there is no ") + kind + " " + shown(name));
  fail(path, std::string("cannot look up the ") + kind + " " + shown(name) + ": " + std::strerror(error));
}

std::uint32_t user_id(const Json& name, const std::string& path) {
  const std::string text = text_of(name, path);
  return looked_up<passwd>(
      "user", name, path,
      [&](passwd& entry, std::vector<char>& buffer, passwd*& found) {
        return ::getpwnam_r(text.c_str(), &entry, buffer.data(), buffer.size(), &found);
      },
      [](const passwd& entry) { return entry.pw_uid; });
}

std::uint32_t group_id(const Json& name, const std::string& path) {
  const std::string text = text_of(name, path);
  return looked_up<group>(
      "group", name, path,
      [&](group& entry, std::vector<char>& buffer, group*& found) {
        return ::getgrnam_r(text.c_str(), &entry, buffer.data(), buffer.size(), &found);
      },
      [](const group& entry) { return entry.gr_gid; });
}

}  // namespace

Json parse_strict(std::string_view text) {
  try {
    DuplicateCheck check;
    return Json::parse(text, [&check](int depth, Json::parse_event_t event, Json& parsed) {
      return check(depth, event, parsed);
    });
  } catch (const Json::exception& error) {
    // "[json.exception.parse_error.101] parse error at line 3, column 5: syntax error ..."
    std::string what = error.what();
    constexpr std::string_view kPrefix = "parse error at ";
    if (const auto at = what.find(kPrefix); at != std::string::npos) what.erase(0, at + kPrefix.size());
    fail("", what);
  }
}

std::string shown(const Json& value) {
  constexpr std::size_t kMax = 60;
  std::string text = value.dump(-1, ' ', false, Json::error_handler_t::replace);
  if (text.size() > kMax) text = text.substr(0, kMax) + "...";
  return text;
}

std::uint64_t number_of(const Json& value, const std::string& path, std::uint64_t min, std::uint64_t max) {
  if (!value.is_number_unsigned() || value.get<std::uint64_t>() < min || value.get<std::uint64_t>() > max)
    fail(path, "must be between " + std::to_string(min) + " and " + std::to_string(max) + ", is " + shown(value));
  return value.get<std::uint64_t>();
}

std::string text_of(const Json& value, const std::string& path) {
  if (!value.is_string()) fail(path, "must be a text, is " + shown(value));
  auto text = value.get<std::string>();
  if (text.find('\0') != std::string::npos) fail(path, "must not hold a zero byte");
  return text;
}

bool flag_of(const Json& value, const std::string& path) {
  if (!value.is_boolean()) fail(path, "must be true or false, is " + shown(value));
  return value.get<bool>();
}

std::vector<std::uint32_t> ids_of(const Json& value, const std::string& path, IdNames names) {
  if (!value.is_array())
    fail(path, std::string("must be a list of numbers") + (names == IdNames::None ? "" : " or names") + ", is " +
                   shown(value));
  std::vector<std::uint32_t> out;
  for (std::size_t i = 0; i < value.size(); ++i) {
    const std::string at = path + "/" + std::to_string(i);
    const bool named = value[i].is_string() && names != IdNames::None;
    if (!named) out.push_back(static_cast<std::uint32_t>(number_of(value[i], at, 0, kIdMax)));
    else out.push_back(names == IdNames::Users ? user_id(value[i], at) : group_id(value[i], at));
  }
  return out;
}

std::vector<std::string> texts_of(const Json& value, const std::string& path) {
  if (!value.is_array()) fail(path, "must be a list of texts, is " + shown(value));
  std::vector<std::string> out;
  for (std::size_t i = 0; i < value.size(); ++i) out.push_back(text_of(value[i], path + "/" + std::to_string(i)));
  return out;
}

std::string socket_path_of(const Json& value, const std::string& path, const std::string& wanted) {
  constexpr std::size_t kSocketPathMax = 107;  // sockaddr_un, without the closing zero
  auto out = text_of(value, path);
  if (out.empty() || out.front() != '/') fail(path, "must be " + wanted + ", is " + shown(value));
  if (out.size() > kSocketPathMax)
    fail(path, "the path has " + std::to_string(out.size()) + " bytes, the system's limit is 107 bytes");
  return out;
}

ObjectReader::ObjectReader(const Json& node, std::string path) : node_(node), path_(std::move(path)) {
  if (!node_.is_object()) fail(path_, "must be an object, is " + shown(node_));
}

const Json* ObjectReader::find(const char* key) {
  if (std::find(known_.begin(), known_.end(), key) == known_.end()) known_.emplace_back(key);
  const auto it = node_.find(key);
  return it == node_.end() ? nullptr : &*it;
}

void ObjectReader::finish() const {
  for (const auto& [key, value] : node_.items()) {
    if (std::find(known_.begin(), known_.end(), key) != known_.end()) continue;
    std::string list;
    for (const auto& known : known_) list += (list.empty() ? "" : ", ") + known;
    fail(path_of(key), "unknown key; there are: " + list);
  }
}

}  // namespace kvmid::app
