// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// Checks of the commands about a vCPU's further state and the guest as a whole; one well-made command of each kind.
///
/// Purpose:  commands_test.cpp and errors_test.cpp go through all commands; what is about one of them is beside it.
/// Errors:   failed checks of Catch2, and TestError.

#include <functional>
#include <map>
#include <vector>

#include "tests/integration_events/stage.h"

namespace kvmid::test {

using CommandChecks = std::map<CommandId, std::function<void(Stage&)>>;

/// GET_CPUID, GET_XCR, GET_XSAVE, SET_XSAVE, TRANSLATE_GVA, CONTROL_SINGLESTEP, GET_MEMORY_MAP, SHUTDOWN_GUEST.
CommandChecks state_command_checks();

/// What they show stays: static data.
std::vector<Command> one_of_each();

template <class T>
ErrorCode code_of(const Result<T, client::ClientError>& result) {
  return result ? ErrorCode::None : result.error().code;
}

}  // namespace kvmid::test
