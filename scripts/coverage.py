#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""What scripts/coverage needs to know and to say.

coverage.py tests BUILD        the names of the tests of the measured rooms
coverage.py programs BUILD     the programs that they run, which are targets too
coverage.py report BUILD MIN   a table of what has run; exit code 1 when a room has less than MIN percent of its lines
"""

import collections
import json
import pathlib
import re
import subprocess
import sys

ROOMS = ["daemon/core", "protocol", "bridge"]
FOLDERS_OF_TESTS = ["tests/unit/core", "tests/unit/protocol", "tests/unit/kvmi1", "tests/unit/bridge", "tests/vectors", "tests/sim"]
FILES_LISTED = 12


def tests(build):
    """(test, program) of each test of the rooms that runs a program of ours; a script has nothing to count."""
    found = []
    for folder in FOLDERS_OF_TESTS:
        for path in sorted((pathlib.Path(build) / folder).rglob("CTestTestfile.cmake")):
            for name, program in re.findall(r'add_test\(\[=*\[(.+?)\]=*\] "([^"]+)"', path.read_text(encoding="utf-8")):
                if pathlib.Path(program).parent == pathlib.Path(build).resolve() / "bin":
                    found.append((name, pathlib.Path(program).name))
    return found


def ranges(numbers):
    """[1, 2, 3, 7] is "1-3 7"."""
    runs = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return " ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def counts_of(build):
    """{file: {line: times it ran}} of the rooms, from gcov. Each object that has a copy of a line adds to it: a line
    of a template ran when one of its copies did."""
    counts = collections.defaultdict(collections.Counter)
    objects = [str(path.resolve()) for path in sorted(pathlib.Path(build).rglob("*.gcda"))]
    if not objects:
        sys.exit(f"coverage: nothing has run: there are no counters below {build}")
    root = pathlib.Path.cwd()
    for path in objects:
        gcov = subprocess.run(["gcov", "--json-format", "--stdout", path], check=True, capture_output=True, text=True)
        for text in gcov.stdout.splitlines():
            for file in json.loads(text)["files"] if text else []:
                name = pathlib.Path(root / file["file"])
                name = str(name.relative_to(root)) if name.is_relative_to(root) else ""
                if any(name.startswith(room + "/") for room in ROOMS):
                    for line in file["lines"]:
                        counts[name][line["line_number"]] += line["count"]
    return counts


def report(build, minimum):
    covered = collections.Counter()
    lines = collections.Counter()
    missing = {}
    for name, counts in sorted(counts_of(build).items()):
        source = pathlib.Path(name).read_text(encoding="utf-8").splitlines()
        # What the compiler puts on a line of braces alone (destructors, unwinding) is nobody's decision.
        never = sorted(n for n, count in counts.items() if count == 0 and source[n - 1].strip(" {}();,") != "")
        total = len(never) + sum(1 for count in counts.values() if count != 0)
        missing[name] = (never, total)
        for room in (next(r for r in ROOMS if name.startswith(r + "/")), "all"):
            lines[room] += total
            covered[room] += total - len(never)

    low = []
    print("line coverage       lines  covered       %")
    for name in ROOMS + ["all"]:
        percent = 100 * covered[name] / lines[name] if lines[name] else 0
        print(f"  {name:16} {lines[name]:6}   {covered[name]:6}  {percent:6.2f}")
        if name != "all" and percent < minimum:
            low.append(name)
    worst = sorted(missing.items(), key=lambda item: (-len(item[1][0]), item[0]))
    if low:
        print(f"below {minimum} %: {', '.join(low)}. The files with the most uncovered lines:")
    else:
        print("uncovered:")
    for name, (never, total) in worst[:FILES_LISTED]:
        if never:
            print(f"  {name}: {len(never)} of {total}: {ranges(never)}")
    return 1 if low else 0


def main():
    if len(sys.argv) == 3 and sys.argv[1] in ("tests", "programs"):
        which = 0 if sys.argv[1] == "tests" else 1
        print(" ".join(dict.fromkeys(test[which] for test in tests(sys.argv[2]))))
        return 0
    if len(sys.argv) == 4 and sys.argv[1] == "report":
        return report(sys.argv[2], int(sys.argv[3]))
    sys.exit(__doc__)


if __name__ == "__main__":
    sys.exit(main())
