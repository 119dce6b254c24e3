// SPDX-License-Identifier: GPL-2.0-or-later
#include "kvmictl/completion.h"

#include "protocol/message.h"

namespace kvmid::ctl {
namespace {

std::string event_names() {
  std::string out;
  for (unsigned i = 0; i < kEventCount; ++i) {
    out += (out.empty() ? "" : " ") + std::string(name_of(static_cast<EventKind>(i)));
  }
  return out;
}

std::string command_names() {
  std::string out;
  for (unsigned i = 0; i < 64; ++i) {
    const auto name = name_of(static_cast<CommandId>(i));
    if (name != name_of(CommandId{})) out += (out.empty() ? "" : " ") + std::string(name);
  }
  return out;
}

constexpr const char* kHead = R"sh(# bash completion for kvmictl. Made by: kvmictl completion bash

# Names of the guests that are connected now, one a line.
_kvmictl_guests() {
  "${COMP_WORDS[0]}" "$@" guests --json 2>/dev/null | sed -n 's/^ *"name": "\(.*\)",\{0,1\}$/\1/p'
}

# Candidates, one a line, -> COMPREPLY; quoted, for a guest's name may have blanks.
_kvmictl_from() {
  local line
  while IFS= read -r line; do
    [[ -n $line && $line == "$cur"* ]] && COMPREPLY+=("$(printf '%q' "$line")")
  done
}

_kvmictl_words_of() {
  case "$1" in
)sh";

constexpr const char* kTail = R"sh(
_kvmictl() {
  local cur=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]}
  local path="" next="" i sockets=()
  COMPREPLY=()
  # The subcommand so far, and the sockets that its guests are asked of.
  for ((i = 1; i < COMP_CWORD; i++)); do
    case "${COMP_WORDS[i]}" in
      --admin-socket) sockets=(--admin-socket "${COMP_WORDS[i+1]}"); ((i++)) ;;
      --agent-socket) ((i++)) ;;
      -*) ;;
      *)
        next=${path:+$path }${COMP_WORDS[i]}
        if _kvmictl_words_of "$next" >/dev/null; then path=$next; fi
        ;;
    esac
  done
  case "$previous" in
    --kinds | --event) _kvmictl_from < <(_kvmictl_words_of events:); return ;;
    --command) _kvmictl_from < <(_kvmictl_words_of commands:); return ;;
    --needs) _kvmictl_from < <(_kvmictl_words_of events:; _kvmictl_words_of commands:); return ;;
    --file | --config | --admin-socket | --agent-socket | --hypervisor-socket)
      _kvmictl_from < <(compgen -f -- "$cur"); return ;;
    --guest) _kvmictl_from < <(_kvmictl_guests "${sockets[@]}"); return ;;
    log-level) _kvmictl_from < <(printf '%s\n' trace debug info warn error critical off); return ;;
    completion) _kvmictl_from < <(echo bash); return ;;
    --format) _kvmictl_from < <(printf '%s\n' raw elf); return ;;
    --int) _kvmictl_from < <(printf '%s\n' u8 u16 u32 u64); return ;;
    --string) [[ $path == "mem search" ]] && return ;;
    --rate | --vcpu | --count | --interval | --for | --uid | --gid | --cid) return ;;
  esac
  _kvmictl_from < <(_kvmictl_words_of "$path")
  if [[ $cur != -* && $path == "mem dump" ]]; then _kvmictl_from < <(compgen -f -- "$cur"); fi
  if [[ $cur != -* && " $_kvmictl_takes_guest " == *"|$path|"* ]]; then
    _kvmictl_from < <(_kvmictl_guests "${sockets[@]}")
  fi
}
complete -F _kvmictl kvmictl
)sh";

}  // namespace

std::string bash_completion(const std::vector<CommandWords>& commands) {
  std::string out = kHead;
  std::string guests = "|";
  std::vector<std::string> everywhere;  // options of kvmictl itself stand behind every subcommand too
  for (const auto& command : commands) {
    if (!command.path.empty()) continue;
    for (const auto& word : command.words) {
      if (word.starts_with("--") && word != "--help") everywhere.push_back(word);
    }
  }
  const auto line = [&](const std::string& path, const std::string& words) {
    out += "    '" + path + "') printf '%s\\n' " + words + " ;;\n";
  };
  for (const auto& command : commands) {
    std::string words;
    for (const auto& word : command.words) words += (words.empty() ? "" : " ") + word;
    if (!command.path.empty()) {
      for (const auto& word : everywhere) words += " " + word;
    }
    line(command.path, words);
    if (command.guest && command.path != "policy check") guests += command.path + "|";
  }
  line("events:", event_names());
  line("commands:", command_names());
  out += "    *) return 1 ;;\n  esac\n}\n\n_kvmictl_takes_guest='" + guests + "'\n";
  return out + kTail;
}

}  // namespace kvmid::ctl
