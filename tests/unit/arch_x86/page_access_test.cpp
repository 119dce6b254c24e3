// SPDX-License-Identifier: GPL-2.0-or-later
#include "arch/x86/page_access.h"

#include <catch2/catch.hpp>

#include <optional>

using namespace kvmid::x86;

TEST_CASE("each combination of rights is taken or refused for its own reason", "[page_access]") {
  struct Row {
    const char* rights;
    std::optional<PageAccessError> plain;
    std::optional<PageAccessError> execute_only;
  };
  const Row rows[] = {
      {"---", {}, {}},
      {"r--", {}, {}},
      {"-w-", PageAccessError::WriteWithoutRead, PageAccessError::WriteWithoutRead},
      {"rw-", {}, {}},
      {"--x", PageAccessError::ExecuteOnlyUnsupported, {}},
      {"r-x", {}, {}},
      {"-wx", PageAccessError::WriteExecuteWithoutRead, PageAccessError::WriteExecuteWithoutRead},
      {"rwx", {}, {}},
  };
  for (const auto& row : rows) {
    INFO(row.rights);
    const auto rights = rights_from_text(row.rights);
    REQUIRE(rights.has_value());
    CHECK(refuse_page_rights(*rights, false) == row.plain);
    CHECK(refuse_page_rights(*rights, true) == row.execute_only);
  }
}

TEST_CASE("a bit beside R, W and X is refused whatever the others say", "[page_access]") {
  for (unsigned rights = 8; rights < 256; ++rights) {
    REQUIRE(refuse_page_rights(rights, true) == PageAccessError::UnknownBits);
  }
}

TEST_CASE("rights that exist stay so when they are combined", "[page_access]") {
  for (const bool execute_only : {false, true}) {
    for (PageRights a = 0; a < 8; ++a) {
      for (PageRights b = 0; b < 8; ++b) {
        if (refuse_page_rights(a, execute_only) || refuse_page_rights(b, execute_only)) continue;
        const PageRights both = combine_rights(a, b);
        CHECK_FALSE(refuse_page_rights(both, execute_only).has_value());
        CHECK(both == (a & b));
      }
    }
  }
}

TEST_CASE("a page forbids an access if one wanted right is missing", "[page_access]") {
  CHECK(forbids(KVMI_PAGE_ACCESS_R, KVMI_PAGE_ACCESS_W));
  CHECK(forbids(KVMI_PAGE_ACCESS_R, KVMI_PAGE_ACCESS_R | KVMI_PAGE_ACCESS_W));
  CHECK_FALSE(forbids(KVMI_PAGE_ACCESS_R, KVMI_PAGE_ACCESS_R));
  CHECK_FALSE(forbids(kRightsAll, kRightsAll));
  CHECK(forbids(kRightsNone, KVMI_PAGE_ACCESS_X));
}

TEST_CASE("rights are written as three characters and read back", "[page_access]") {
  for (PageRights rights = 0; rights < 8; ++rights) CHECK(rights_from_text(rights_text(rights)) == rights);
  CHECK(rights_text(KVMI_PAGE_ACCESS_R | KVMI_PAGE_ACCESS_X) == "r-x");
  CHECK(rights_text(8) == "???");
  CHECK_FALSE(rights_from_text("rw").has_value());
  CHECK_FALSE(rights_from_text("wr-").has_value());
  CHECK_FALSE(rights_from_text("???").has_value());
}

TEST_CASE("every reason to refuse rights has a sentence", "[page_access]") {
  for (int i = 0; i <= static_cast<int>(PageAccessError::ExecuteOnlyUnsupported); ++i) {
    CHECK(text_of(static_cast<PageAccessError>(i)) != "unknown error");
  }
}
