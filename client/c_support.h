// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

/// What the files of the C interface share: opaque types, errors as numbers, the fence that no exception passes.

#include <algorithm>
#include <climits>
#include <new>
#include <span>
#include <string>

#include "client/agent_client.h"
#include "client/kvmid.h"

struct kvmid_agent {
  kvmid::client::AgentClient client;
};
struct kvmid_batch {
  kvmid::client::AgentClient::Batch batch;
};

namespace kvmid::client {

/// What kvmid_last_error() shows.
extern thread_local std::string last_error;

inline int number_of(const ClientError& error) {
  switch (error.kind) {
    case ClientErrc::BadArgument:
      return error.code == ErrorCode::None ? -KVMI_EINVAL : -static_cast<int>(error.code);
    case ClientErrc::NoGuest:
      return -KVMI_ENOENT;
    case ClientErrc::Refused:
    case ClientErrc::Failed: {
      const int code = static_cast<int>(error.code);
      return code > 0 && code < KVMID_ECLOSED ? -code : -KVMID_EPROTOCOL;  // never mistaken for a success
    }
    case ClientErrc::Unreachable:
      return -KVMID_EUNREACHABLE;
    case ClientErrc::Denied:
      return -KVMID_EDENIED;
    case ClientErrc::TimedOut:
      return -KVMID_ETIMEOUT;
    case ClientErrc::Closed:
      return -KVMID_ECLOSED;
    case ClientErrc::Protocol:
      return -KVMID_EPROTOCOL;
    case ClientErrc::Overflow:
      return -KVMID_EOVERFLOW;
    case ClientErrc::System:
      return -KVMID_ESYSTEM;
  }
  return -KVMID_ESYSTEM;
}

inline int fail(const ClientError& error) {
  last_error = error.text;
  return number_of(error);
}

inline int bad(const char* text) {
  last_error = text;
  return -KVMI_EINVAL;
}

/// Runs `body`; what it throws (memory ran out) becomes a number.
template <class F>
int guarded(F body) noexcept {
  try {
    last_error.clear();
    return body();
  } catch (const std::bad_alloc&) {
    return -KVMI_ENOMEM;
  } catch (...) {
    return -KVMID_ESYSTEM;
  }
}

/// guarded, for functions that take a connection.
template <class F>
int with(kvmid_agent* agent, F body) noexcept {
  return guarded([&] { return agent == nullptr ? bad("the connection is NULL") : body(agent->client); });
}

template <class T>
int status(const Result<T, ClientError>& result) {
  return result ? 0 : fail(result.error());
}

inline int count(std::size_t n) { return static_cast<int>(std::min<std::size_t>(n, INT_MAX)); }

template <class T>
std::span<const T> items(const T* data, std::size_t n) {
  return data == nullptr ? std::span<const T>() : std::span<const T>(data, n);
}

inline Bytes bytes(const void* data, std::size_t size) { return items(static_cast<const std::byte*>(data), size); }

template <class T>
void store(T* out, const T& value) {
  if (out != nullptr) *out = value;
}

}  // namespace kvmid::client
