// SPDX-License-Identifier: LGPL-2.1-or-later
#include "client/guest_names.h"

#include <algorithm>
#include <cctype>
#include <vector>

#include "protocol/handshake.h"

namespace kvmid::client {
namespace {

constexpr std::size_t kPrefixMin = 4;
constexpr std::size_t kCandidatesShown = 8;

Result<Uuid, ClientError> only_one(const std::vector<const GuestName*>& found, std::string_view text) {
  if (found.size() == 1) return found.front()->uuid;
  std::string message = "\"" + std::string(text) + "\" fits " + std::to_string(found.size()) + " guests:";
  for (std::size_t i = 0; i < found.size() && i < kCandidatesShown; ++i) {
    message += (i == 0 ? " " : ", ") + to_string(found[i]->uuid) + " (" + found[i]->name + ")";
  }
  if (found.size() > kCandidatesShown) message += ", ...";
  return ClientError{ClientErrc::NoGuest, ErrorCode::NoEntry, message + ". Use the uuid."};
}

}  // namespace

Result<Uuid, ClientError> find_guest(std::span<const GuestName> guests, std::string_view text) {
  if (text.empty()) return ClientError{ClientErrc::BadArgument, ErrorCode::None, "the guest's name is empty"};
  std::vector<const GuestName*> found;
  if (const auto uuid = parse_uuid(text)) {
    for (const auto& guest : guests) {
      if (guest.uuid == *uuid) return guest.uuid;
    }
  }
  for (const auto& guest : guests) {
    if (guest.name == text) found.push_back(&guest);
  }
  if (!found.empty()) return only_one(found, text);

  if (text.size() >= kPrefixMin) {
    std::string lower(text);
    std::transform(lower.begin(), lower.end(), lower.begin(),
                   [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    for (const auto& guest : guests) {
      if (to_string(guest.uuid).starts_with(lower)) found.push_back(&guest);
    }
    if (!found.empty()) return only_one(found, text);
  }
  return ClientError{ClientErrc::NoGuest, ErrorCode::NoEntry,
                     "no guest is called \"" + std::string(text) + "\", and no uuid begins like that (" +
                         std::to_string(guests.size()) + " guests are connected)"};
}

}  // namespace kvmid::client
