// SPDX-License-Identifier: GPL-2.0-or-later
//
// SET_PAGE_ACCESS: runs become entries of single pages, in as many messages as it takes.

#include "bridge/hypervisor_pages.h"
#include "tests/unit/bridge/hypervisor/scripted_hypervisor.h"

namespace kvmid::bridge::test {

using kvmi1::DialectId;

namespace {

using Entries = std::vector<kvmi_page_access_entry>;

SetPageAccess rights_of(const Entries& entries) {
  return {AddressSpace::Normal, std::span<const kvmi_page_access_entry>(entries)};
}

/// What the hypervisor was told of each page, the last word counts.
std::map<std::uint64_t, unsigned> told(const Hypervisor& host) {
  std::map<std::uint64_t, unsigned> rights;
  for (const auto* command : host.all<kvmi1::SetPageAccess>())
    for (std::size_t i = 0; i < command->entries.size(); ++i)
      rights[command->entries[i].gpa] = command->entries[i].access;
  return rights;
}

}  // namespace

TEST_CASE("bridge: runs of pages become entries", "[hypervisor]") {
  for (const DialectId dialect : kFindable) {
    CAPTURE(kvmi1::name_of(dialect));
    Hypervisor host(dialect);
    host.come_up();
    CHECK(host.ask(rights_of({{0x1000, 2, 5, {}}, {0x8000, 1, 1, {}}})).error() == ErrorCode::None);
    const auto commands = host.all<kvmi1::SetPageAccess>();
    REQUIRE(commands.size() == 1);
    CHECK(commands[0]->view == 0);
    REQUIRE(commands[0]->entries.size() == 3);
    CHECK(told(host) == std::map<std::uint64_t, unsigned>{{0x1000, 5}, {0x2000, 5}, {0x8000, 1}});
  }
}

TEST_CASE("bridge: all of a guest's memory, a window at a time", "[hypervisor]") {
  Hypervisor host(DialectId::V7);
  host.come_up();
  const std::uint32_t pages = 511 * 40 + 3;
  const Entries entries{{0, pages - 1, 3, {}}, {std::uint64_t{pages - 1} << 12U, 1, 1, {}}};
  host.send(rights_of(entries));
  CHECK(host.open.size() == HypervisorPages::kWindow);
  std::size_t most = 0;
  while (host.is_asked()) {
    most = std::max(most, host.open.size());
    host.log.push_back(host.take());
    REQUIRE(host.serve(host.log.back()));
  }
  CHECK(most == HypervisorPages::kWindow);
  CHECK(host.take_answer().error() == ErrorCode::None);
  CHECK(host.all<kvmi1::SetPageAccess>().size() == 41);
  const auto rights = told(host);
  CHECK(rights.size() == pages);
  CHECK(rights.at(std::uint64_t{pages - 1} << 12U) == 1);
  CHECK(rights.at(std::uint64_t{pages - 2} << 12U) == 3);
}

TEST_CASE("bridge: page rights are taken as a whole", "[hypervisor]") {
  Hypervisor host(DialectId::V12);
  host.come_up();
  REQUIRE(host.ask(rights_of({{0x2000, 3, 1, {}}, {0x9000, 1, 5, {}}})).error() == ErrorCode::None);
  host.log.clear();
  host.refuse = [&](const kvmi1::Command& command) -> std::int32_t {
    const auto* rights = std::get_if<kvmi1::SetPageAccess>(&command);
    const bool is_first = host.all<kvmi1::SetPageAccess>().size() == 1;
    return rights != nullptr && is_first ? -kvmi1::kEinval : 0;
  };
  // Pages 1 to 9, of which 2 to 4 and 9 had fewer rights before.
  const Answer refused = host.ask(rights_of({{0x1000, 9, 3, {}}}));
  CHECK(refused.error() == ErrorCode::Fault);
  CHECK(refused.text().find("SET_PAGE_ACCESS") != std::string::npos);
  CHECK(told(host) == std::map<std::uint64_t, unsigned>{{0x1000, 7},
                                                        {0x2000, 1},
                                                        {0x3000, 1},
                                                        {0x4000, 1},
                                                        {0x5000, 7},
                                                        {0x6000, 7},
                                                        {0x7000, 7},
                                                        {0x8000, 7},
                                                        {0x9000, 5}});
  // Half of a run is replaced: what is left of it is still known.
  host.refuse = nullptr;
  REQUIRE(host.ask(rights_of({{0x3000, 1, 7, {}}})).error() == ErrorCode::None);
  host.log.clear();
  host.refuse = [&](const kvmi1::Command&) -> std::int32_t {
    return host.all<kvmi1::SetPageAccess>().size() == 1 ? -kvmi1::kEnomem : 0;
  };
  CHECK(host.ask(rights_of({{0x2000, 3, 0, {}}})).error() == ErrorCode::NoMemory);
  CHECK(told(host) == std::map<std::uint64_t, unsigned>{{0x2000, 1}, {0x3000, 7}, {0x4000, 1}});
}

TEST_CASE("bridge: only what was sent is undone", "[hypervisor]") {
  Hypervisor host(DialectId::V7);
  host.come_up();
  bool refused = false;
  host.refuse = [&](const kvmi1::Command&) -> std::int32_t {
    if (refused) return 0;
    refused = true;
    return -kvmi1::kEnomem;
  };
  const std::uint32_t pages = 511 * 1000;
  CHECK(host.ask(rights_of({{0x1000, 1, 1, {}}, {0x2000, pages, 1, {}}, {0x80000000, 1, 1, {}}})).error() ==
        ErrorCode::NoMemory);
  CHECK(host.all<kvmi1::SetPageAccess>().size() == 2 * HypervisorPages::kWindow + 1);
  for (const auto& [gpa, access] : told(host)) REQUIRE(access == 7);
}

TEST_CASE("bridge: page rights of rfc2017 are of a vCPU and a page", "[hypervisor]") {
  Hypervisor host(DialectId::Rfc2017);
  host.come_up();
  CHECK(host.ask(rights_of({{0x1000, 20, 5, {}}})).error() == ErrorCode::None);
  const auto commands = host.all<kvmi1::SetVcpuPageAccess>();
  REQUIRE(commands.size() == 40);
  CHECK((commands[0]->vcpu == VcpuId{0} && commands[0]->gpa == Gpa{0x1000} && commands[0]->access == 5));
  CHECK((commands[1]->vcpu == VcpuId{1} && commands[1]->gpa == Gpa{0x1000}));
  CHECK(commands[39]->gpa == Gpa{0x14000});
}

TEST_CASE("bridge: page rights that are refused without asking", "[hypervisor]") {
  Hypervisor host(DialectId::V7);
  host.come_up();
  const Entries one{{0x1000, 1, 5, {}}};
  CHECK(host.ask(SetPageAccess{AddressSpace::Smm, std::span<const kvmi_page_access_entry>(one)}).error() ==
        ErrorCode::NotSupported);
  CHECK(host.ask(rights_of({})).error() == ErrorCode::Invalid);
  CHECK(host.ask(rights_of({{0x1001, 1, 5, {}}})).error() == ErrorCode::Invalid);
  CHECK(host.ask(rights_of({{0x1000, 0, 5, {}}})).error() == ErrorCode::Invalid);
  CHECK(host.ask(rights_of({{0x1000, 1, 8, {}}})).error() == ErrorCode::Invalid);
  CHECK(host.ask(rights_of({{~std::uint64_t{0xfff}, 2, 5, {}}})).error() == ErrorCode::Fault);
  CHECK(host.log.empty());
}

}  // namespace kvmid::bridge::test
