// SPDX-License-Identifier: GPL-2.0-or-later

#include "client/guest_names.h"

#include <array>
#include <catch2/catch.hpp>

#include "protocol/handshake.h"

using namespace kvmid;
using namespace kvmid::client;

namespace {

const std::array<GuestName, 4> kGuests{
    GuestName{*parse_uuid("6a1f7e36-0000-4000-8000-000000000001"), "web1"},
    GuestName{*parse_uuid("6a1f7e36-0000-4000-8000-000000000002"), "web2"},
    GuestName{*parse_uuid("beef0000-0000-4000-8000-000000000003"), "twin"},
    GuestName{*parse_uuid("cafe0000-0000-4000-8000-000000000004"), "twin"},
};

}  // namespace

TEST_CASE("a guest is found by uuid, name and unique prefix", "[client]") {
  CHECK(*find_guest(kGuests, "6a1f7e36-0000-4000-8000-000000000002") == kGuests[1].uuid);
  CHECK(*find_guest(kGuests, "6A1F7E36-0000-4000-8000-000000000002") == kGuests[1].uuid);
  CHECK(*find_guest(kGuests, "web1") == kGuests[0].uuid);
  CHECK(*find_guest(kGuests, "BEEF") == kGuests[2].uuid);
  CHECK(*find_guest(kGuests, "cafe0000-00") == kGuests[3].uuid);
}

TEST_CASE("an ambiguous name or prefix lists the candidates", "[client]") {
  for (const std::string_view text : {"twin", "6a1f"}) {
    const auto found = find_guest(kGuests, text);
    REQUIRE_FALSE(found);
    CHECK(found.error().kind == ClientErrc::NoGuest);
    CHECK(found.error().text.find("fits 2 guests") != std::string::npos);
  }
  CHECK(find_guest(kGuests, "twin").error().text.find("beef0000-0000-4000-8000-000000000003") != std::string::npos);
}

TEST_CASE("an unknown guest, a short prefix and an empty name are errors", "[client]") {
  CHECK(find_guest(kGuests, "nobody").error().kind == ClientErrc::NoGuest);
  CHECK(find_guest(kGuests, "caf").error().kind == ClientErrc::NoGuest);
  CHECK(find_guest(kGuests, "").error().kind == ClientErrc::BadArgument);
  CHECK(find_guest({}, "web1").error().kind == ClientErrc::NoGuest);
}

TEST_CASE("an exact name goes before a uuid prefix", "[client]") {
  const std::array<GuestName, 2> guests{kGuests[0], GuestName{kGuests[2].uuid, "6a1f"}};
  CHECK(*find_guest(guests, "6a1f") == kGuests[2].uuid);
}
