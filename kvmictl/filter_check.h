// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

/// `kvmictl filter check`: what kvmid would understand of a filter's text. Asks nobody: it works without a daemon.

#include <string>
#include <string_view>

#include "client/filter.h"
#include "kvmictl/arguments.h"
#include "kvmictl/json_text.h"

namespace kvmid::ctl {

/// Returns an exit code and has printed the terms, or the error with a caret under its column.
int filter_check(const Arguments& arguments);

/// Why the term is the same for every event, or "": `value` has bits that the mask has not, say.
std::string_view constant_term(const kvmi_filter_term& term);
/// Terms as a table, and what looks like a mistake.
std::string render_filter(const client::EventFilter& filter, std::size_t width);
Json filter_json(const client::EventFilter& filter);
Json filter_json(const client::FilterTextError& error);

}  // namespace kvmid::ctl
