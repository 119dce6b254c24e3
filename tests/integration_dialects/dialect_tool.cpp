// SPDX-License-Identifier: GPL-2.0-or-later
//
// dialect-tool: a tool of an older dialect as a process of its own, which a test can kill at any moment. It takes hold
// of a guest and never answers an event.
#include <CLI/CLI.hpp>
#include <iostream>
#include <string>
#include <vector>

#include "hypervisor/emulated/mailbox.h"
#include "tests/support/kvmi1_tool.h"

using namespace kvmid;
using namespace kvmid::test;

namespace {

void need(Kvmi1Tool& tool, const kvmi1::Command& command) { tool.call(command).must_succeed(); }

int hold(const std::string& path, kvmi1::DialectId dialect, const std::vector<std::string>& breakpoints) {
  Kvmi1Tool tool(path, dialect);
  tool.accept();
  const std::byte int3{0xcc};
  for (const auto& place : breakpoints)
    need(tool, kvmi1::WritePhysical{Gpa{std::stoull(place, nullptr, 0)}, Bytes(&int3, 1)});
  kvmi1::PageAccessEntry page;
  page.gpa = emulated::kProtectedPage.value;
  page.access = 0;
  need(tool, kvmi1::SetPageAccess{0, std::span<const kvmi1::PageAccessEntry>(&page, 1)});
  for (const EventKind kind : {EventKind::Breakpoint, EventKind::PageFault, EventKind::Cr})
    need(tool, kvmi1::ControlEvents{VcpuId{0}, tool.codec().number_of(kind).value(), true});
  need(tool, kvmi1::ControlCr{VcpuId{0}, true, 4});
  std::cout << "ready" << std::endl;
  for (;;) {
    const auto event = tool.next_event(Millis{3600000});
    std::cout << "event " << name_of(event.event.kind()) << std::endl;
  }
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Takes hold of a guest and never answers an event.", "dialect-tool");
  std::string path, dialect;
  std::vector<std::string> breakpoints;
  app.add_option("--listen", path)->required();
  app.add_option("--dialect", dialect)->required();
  app.add_option("--breakpoint", breakpoints, "GPA");
  CLI11_PARSE(app, argc, argv);
  try {
    const auto id = kvmi1::dialect_named(dialect);
    if (!id) throw TestError("no dialect: " + dialect);
    return hold(path, *id, breakpoints);
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
}
