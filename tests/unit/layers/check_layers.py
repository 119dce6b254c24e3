#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Keeps the floors of the house apart, which the compiler cannot do: system-wide headers are visible to every room.

usage: check_layers.py ROOT

Rules, each named in the messages:
  floor      a room includes only rooms below it
  outside    rooms of pure decisions include no I/O, thread or foreign library, and link none
  clock      they read no clock and no randomness: both are arguments there
  spdx       the first line names the licence of its folder
  size       a C or C++ file outside tests/ has at most 600 lines
  unfinished no marker of unfinished work is left in a file

Before it judges ROOT it plants one offence of every kind in an empty folder and fails unless each is found.
"""

import os
import re
import subprocess
import sys
import tempfile

# The public C ABI of the protocol: agents copy one header, so it stays in one.
WHOLE_ABI = "protocol/kvmi.h"
MAX_LINES = 600

# Room -> rooms it may include besides itself. The most specific path wins, so daemon/main.cpp is `daemon`.
_BELOW_DAEMON = {"protocol", "arch", "bridge"}
_BELOW_PEER = {"protocol", "arch", "bridge", "client"}
ROOMS = {
    "protocol": set(),
    "arch": {"protocol"},
    "bridge": {"protocol", "arch"},
    "daemon/core": {"protocol", "arch"},
    "daemon/shm": {"protocol", "arch"} | {"daemon/core"},
    "daemon/io": _BELOW_DAEMON | {"daemon/core", "daemon/shm"},
    "daemon/app": _BELOW_DAEMON | {"daemon/core", "daemon/shm", "daemon/io"},
    "daemon": _BELOW_DAEMON | {"daemon/core", "daemon/shm", "daemon/io", "daemon/app"},
    "client": {"protocol"},
    "kvmictl": _BELOW_PEER,
    "hypervisor/server": _BELOW_PEER,
    "hypervisor/emulated": _BELOW_PEER | {"hypervisor/server"},
    "hypervisor/qemu": _BELOW_PEER | {"hypervisor/server"},
    "hypervisor/kvm": _BELOW_PEER | {"hypervisor/server"},
    "agents": _BELOW_PEER,
    "bench": None,  # None: may include anything
    "tests": None,
}

_LIBRARIES = r"boost/|asio|spdlog/|fmt/|nlohmann/|CLI/|unicorn/"
_SYSTEM = (
    r"sys/(socket|un|mman|epoll|eventfd|timerfd|ioctl|time|uio|wait)\.h|netinet/|arpa/|netdb\.h|linux/vm_sockets\.h"
    r"|unistd\.h|fcntl\.h|poll\.h|pthread\.h|time\.h|ctime$|thread$|mutex$|shared_mutex$|condition_variable$|future$"
    r"|iostream$|fstream$|filesystem$"
)
_PURE = re.compile(rf"^({_LIBRARIES}|{_SYSTEM})")
FORBIDDEN_INCLUDES = {
    "protocol": _PURE,
    "arch": _PURE,
    "bridge": _PURE,
    "daemon/core": _PURE,
    "client": re.compile(rf"^({_LIBRARIES})"),  # plain POSIX sockets are its business
}
FORBIDDEN_LINKS = re.compile(r"Boost::|spdlog|fmt::|nlohmann|CLI11|unicorn")

CLOCKLESS = {"protocol", "arch", "bridge", "daemon/core"}
CLOCK = re.compile(
    r"\b\w*(?:[Cc]lock|_clock)\w*::now\s*\(|\bclock_gettime\s*\(|\bgettimeofday\s*\("
    r"|\b(?:std::)?time\s*\(\s*(?:NULL|nullptr|0|&)|\brandom_device\b|\bs?rand\s*\("
)

CXX = (".c", ".cc", ".cpp", ".cxx", ".h", ".hh", ".hpp", ".inc")
NO_SPDX_SUFFIXES = (".json", ".md", ".txt", ".bin", ".hex", ".png", ".svg", ".patch")
UNFINISHED = re.compile(r"\b(" + "|".join(("TO" "DO", "FIX" "ME", "X" "XX", "HA" "CK")) + r")\b")

_TOKENS = re.compile(
    r'R"(?P<d>[^()\s\\]{0,16})\(.*?\)(?P=d)"'  # raw string
    r'|"(?:\\.|[^"\\\n])*"'  # string
    r"|(?<![0-9A-Za-z_])'(?:\\.|[^'\\\n])+'"  # character, but not the separator of 1'000
    r"|//(?:\\\n|[^\n])*|/\*.*?\*/",  # comments
    re.S,
)
_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*([<"])([^>"\n]+)', re.M)


def without(text, strings):
    """Drops comments, and the contents of strings when asked; every line keeps its number."""

    def blank(match):
        token = match.group(0)
        if token[0] != "/" and not strings:
            return token
        return ("" if token[0] == "/" else '""') + "\n" * token.count("\n")

    return _TOKENS.sub(blank, text)


def room_of(path):
    return max((r for r in ROOMS if path == r or path.startswith(r + "/")), key=len, default=None)


def line_of(text, offset):
    return text.count("\n", 0, offset) + 1


def included_room(root, path, name):
    """The room an include in quotes names, from the repository root or as a neighbour; None when it is neither."""
    neighbour = os.path.normpath(os.path.join(os.path.dirname(path), name))
    if os.path.exists(os.path.join(root, neighbour)):
        return room_of(neighbour)
    return room_of(os.path.normpath(name))


def check_cxx(root, path, text):
    room = room_of(path)
    code = without(text, strings=False)
    for match in _INCLUDE.finditer(code):
        name, line = match.group(2), line_of(code, match.start())
        target = included_room(root, path, name)
        allowed = ROOMS.get(room) if room else None
        if target and allowed is not None and target != room and target not in allowed:
            yield f"{path}:{line}: floor: {room} includes {name}, which belongs to {target}, not below it"
        forbidden = FORBIDDEN_INCLUDES.get(room)
        if forbidden and forbidden.search(name):
            yield f"{path}:{line}: outside: {room} includes <{name}>"
    if room in CLOCKLESS:
        code = without(text, strings=True)
        for match in CLOCK.finditer(code):
            yield f"{path}:{line_of(code, match.start())}: clock: {room} calls {match.group(0).strip()}"
    lines = text.count("\n")
    if room != "tests" and lines > MAX_LINES and path != WHOLE_ABI:
        yield f"{path}: size: {lines} lines, at most {MAX_LINES}"


def check_links(path, text):
    room = room_of(path)
    for number, line in enumerate(text.splitlines(), 1):
        match = FORBIDDEN_LINKS.search(line.split("#")[0])
        if room in FORBIDDEN_INCLUDES and match:
            yield f"{path}:{number}: outside: {room} names {match.group(0)}"


def needs_spdx(path):
    if os.path.basename(path) == "CMakeLists.txt":
        return True
    if path.startswith(("LICENSES/", "tests/vectors/", "tests/fuzz/corpus/")) or path == "LICENSE":
        return False
    return not path.endswith(NO_SPDX_SUFFIXES)


def check_spdx(path, text):
    lines = text.splitlines()[:2]
    first = lines[1] if len(lines) > 1 and lines[0].startswith("#!") else (lines or [""])[0]
    wanted = "LGPL-2.1-or-later" if room_of(path) in ("protocol", "client") else "GPL-2.0-or-later"
    if not re.search(rf"SPDX-License-Identifier: {re.escape(wanted)}(?![\w.-])", first):
        yield f"{path}: spdx: the first line does not say SPDX-License-Identifier: {wanted}"


def check_tree(root, files):
    problems = []
    for path in files:
        full = os.path.join(root, path)
        if os.path.islink(full) or not os.path.isfile(full):
            continue
        with open(full, "rb") as file:
            data = file.read()
        if b"\0" in data or not data:
            continue
        text = data.decode("utf-8", "replace")
        if path.endswith(CXX):
            problems += check_cxx(root, path, text)
        elif path.endswith(("CMakeLists.txt", ".cmake")):
            problems += check_links(path, text)
        if needs_spdx(path):
            problems += check_spdx(path, text)
        if not path.startswith("LICENSES/"):
            for match in UNFINISHED.finditer(text):
                problems.append(f"{path}:{line_of(text, match.start())}: unfinished: {match.group(0)}")
    return problems


def tracked_files(root):
    """Files of the checkout that git does not ignore; without git (a source archive), all but build/."""
    try:
        listed = subprocess.run(
            ["git", "-C", root, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        ).stdout.decode()
        return sorted(set(filter(None, listed.split("\0"))))
    except (OSError, subprocess.CalledProcessError):
        found = []
        for folder, folders, names in os.walk(root):
            folders[:] = [f for f in folders if f not in (".git", "build", "__pycache__")]
            found += [os.path.relpath(os.path.join(folder, name), root) for name in names]
        return sorted(found)


_GPL = "// SPDX-License-Identifier: GPL-2.0-or-later\n"
_LGPL = "// SPDX-License-Identifier: LGPL-2.1-or-later\n"

# path, content, the only rule it breaks (None: it breaks none, and must not be reported)
PLANTED = [
    ("protocol/up.h", _LGPL + '#include "arch/x86/page_walk.h"\n', "floor"),
    ("arch/x86/up.h", _GPL + '#include "daemon/core/policy.h"\n', "floor"),
    ("daemon/core/up.cpp", _GPL + '#  include "daemon/io/connection.h"\n', "floor"),
    ("daemon/core/neighbour.cpp", _GPL + '#include "../app/wiring.h"\n', "floor"),
    ("daemon/app/wiring.h", _GPL + '#include "daemon/io/connection.h"\n', None),
    ("daemon/io/up.cpp", _GPL + '#include "daemon/app/wiring.h"\n', "floor"),
    ("daemon/main.cpp", _GPL + '#include "daemon/app/wiring.h"\n#include <boost/asio.hpp>\n', None),
    ("client/up.cpp", _LGPL + '#include "arch/x86/page_walk.h"\n', "floor"),
    ("agents/up.cpp", _GPL + '#include "daemon/core/policy.h"\n', "floor"),
    ("hypervisor/server/up.cpp", _GPL + '#include "hypervisor/emulated/cpu.h"\n', "floor"),
    ("hypervisor/emulated/down.cpp", _GPL + '#include "hypervisor/server/session.h"\n#include <unicorn/unicorn.h>\n', None),
    ("protocol/boost.h", _LGPL + "#include <boost/endian.hpp>\n", "outside"),
    ("arch/x86/log.cpp", _GPL + "#include <spdlog/spdlog.h>\n", "outside"),
    ("daemon/core/socket.cpp", _GPL + "#include <sys/socket.h>\n", "outside"),
    ("daemon/core/mman.cpp", _GPL + "#include <sys/mman.h>\n", "outside"),
    ("daemon/core/thread.cpp", _GPL + "#include <thread>\n", "outside"),
    ("client/asio.cpp", _LGPL + "#include <boost/asio.hpp>\n", "outside"),
    ("client/posix.cpp", _LGPL + "#include <sys/socket.h>\n", None),
    ("daemon/core/CMakeLists.txt", "#" + _GPL[2:] + "target_link_libraries(kvmid_core PUBLIC Boost::headers)\n", "outside"),
    ("daemon/io/CMakeLists.txt", "#" + _GPL[2:] + "target_link_libraries(kvmid_io PUBLIC Boost::headers)\n", None),
    ("daemon/core/clock.cpp", _GPL + "auto t = std::chrono::steady_clock::now();\n", "clock"),
    ("daemon/core/alias.cpp", _GPL + "auto t = Clock::now();\n", "clock"),
    ("protocol/clock.cpp", _LGPL + "int f() { return clock_gettime(0, &ts); }\n", "clock"),
    ("arch/x86/seed.cpp", _GPL + "std::random_device device;\n", "clock"),
    ("daemon/core/comment.cpp", _GPL + '// no steady_clock::now() here\n/*\n#include <boost/asio.hpp>\n*/\n'
     'auto a = 1\'000; auto s = "Clock::now()"; // #include "daemon/io/x.h"\n', None),
    ("kvmictl/none.cpp", "int x;\n", "spdx"),
    ("kvmictl/late.cpp", "int x;\n" + _GPL, "spdx"),
    ("client/wrong.h", _GPL, "spdx"),
    ("kvmictl/wrong.h", _LGPL, "spdx"),
    ("arch/CMakeLists.txt", "kvmid_library(x)\n", "spdx"),
    ("scripts/good", "#!/bin/sh\n#" + _GPL[2:], None),
    ("config/free.json", "{}\n", None),
    ("daemon/io/long.cpp", _GPL + "int x;\n" * MAX_LINES, "size"),
    ("daemon/io/longest.cpp", _GPL + "int x;\n" * (MAX_LINES - 1), None),
    ("tests/long.cpp", _GPL + "int x;\n" * MAX_LINES, None),
    ("tests/later.cpp", _GPL + "// TO" "DO: later\n", "unfinished"),
    ("docs/broken.md", "FIX" "ME\n", "unfinished"),
    ("agents/look.cpp", _GPL + "// X" "XX look\n", "unfinished"),
    ("scripts/shortcut", "#" + _GPL[2:] + "# HA" "CK\n", "unfinished"),
    ("agents/template.cpp", _GPL + 'char name[] = "/tmp/kvmid-XXXXXX";\n', None),
]


def self_check():
    failures = []
    with tempfile.TemporaryDirectory() as root:
        for path, content, _ in PLANTED:
            os.makedirs(os.path.join(root, os.path.dirname(path)), exist_ok=True)
            with open(os.path.join(root, path), "w", encoding="utf-8") as file:
                file.write(content)
        problems = check_tree(root, [path for path, _, _ in PLANTED])
        for path, _, rule in PLANTED:
            rules = [p[len(path):].split(": ")[1] for p in problems if p.startswith(path + ":")]
            if rules != ([rule] if rule else []):
                failures.append(f"self-check: {path} should break {rule or 'no rule'}, found {rules or 'nothing'}")
    return failures


def main():
    if len(sys.argv) != 2 or not os.path.isdir(sys.argv[1]):
        sys.exit(__doc__)
    failures = self_check()
    if failures:
        sys.exit("\n".join(failures))
    files = tracked_files(sys.argv[1])
    if "tests/unit/layers/check_layers.py" not in files:
        sys.exit(f"{sys.argv[1]} is not the root of the source tree: this script is not in it")
    problems = check_tree(sys.argv[1], files)
    print("\n".join(problems + [f"{len(files)} files, {len(PLANTED)} planted cases, {len(problems)} problems"]))
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
