// SPDX-License-Identifier: GPL-2.0-or-later
#include "protocol/message.h"

#include <catch2/catch.hpp>
#include <set>
#include <string>

using namespace kvmid;

namespace {

/// The id of each alternative of Command, and that its name is its own.
template <std::size_t... I>
std::set<std::string> names_of_all_commands(std::index_sequence<I...>) {
  return {std::string(name_of(id_of(Command(std::in_place_index<I>))))...};
}

}  // namespace

TEST_CASE("every command has an id and a name of its own", "[message]") {
  const auto names = names_of_all_commands(std::make_index_sequence<std::variant_size_v<Command>>{});
  REQUIRE(names.size() == std::variant_size_v<Command>);
  REQUIRE(names.count("unknown") == 0);
  REQUIRE(id_of(WritePhysical{}) == CommandId::WritePhysical);
  REQUIRE(static_cast<int>(id_of(GetXcr{})) == KVMI_MSG_GET_XCR);
  REQUIRE(static_cast<int>(id_of(GetMemoryMap{})) == KVMI_MSG_GET_MEMORY_MAP);
}

TEST_CASE("every event kind has a name of its own", "[message]") {
  std::set<std::string_view> names;
  for (unsigned kind = 0; kind < kEventCount; ++kind) names.insert(name_of(static_cast<EventKind>(kind)));
  REQUIRE(names.size() == kEventCount);
  REQUIRE(names.count("unknown") == 0);
  REQUIRE(name_of(EventKind::PageFault) == "page_fault");
}

TEST_CASE("the stricter action is the larger", "[message]") {
  REQUIRE(Action::Crash > Action::Skip);
  REQUIRE(Action::Skip > Action::Retry);
  REQUIRE(Action::Retry > Action::Allow);
  REQUIRE(name_of(Action::Allow) == "allow");
}

TEST_CASE("error numbers have the names that people search for", "[message]") {
  REQUIRE(name_of(ErrorCode::Stale) == "ESTALE");
  REQUIRE(name_of(ErrorCode::NotServed) == "ENOSYS");
  REQUIRE(name_of(static_cast<ErrorCode>(5)) == "unknown");
}

TEST_CASE("the kind of an event is the place of its data in the variant", "[message]") {
  Event event;
  event.data = CrData{};
  REQUIRE(event.kind() == EventKind::Cr);
  event.data = AccessData{};
  REQUIRE(event.kind() == EventKind::Access);
}
