#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks a Promela model with spin, in all orders of its steps.

usage: check_model.py MODEL [-DNAME=VALUE...]

The model must have no error, no statement that is never reached, and must have been searched to its end. Then it is
searched once more for each PLANT_* that its source names, with that one defined, and each must be found as an error.
Exit code: 0 all of that; 1 not; 77 spin or a C compiler is not installed.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile

DEPTH = 100000


def search(model, defines, directory, *options):
    """The output of the verifier."""
    # -o3: statements are not merged, so each is seen as reached or not.
    subprocess.run(["spin", "-o3", *defines, "-a", model], cwd=directory, check=True, stdout=subprocess.DEVNULL)
    # -w: the code is generated; its warnings are not ours.
    subprocess.run(["cc", *options, "-w", "-DSAFETY", "-DMEMLIM=2048", "-DVECTORSZ=512", "-o", "pan", "pan.c"],
                   cwd=directory, check=True)
    return subprocess.run(["./pan", f"-m{DEPTH}"], cwd=directory, check=True, stdout=subprocess.PIPE, text=True,
                          timeout=300).stdout


def errors_of(output):
    found = re.search(r"errors: (\d+)", output)
    if not found:
        sys.exit(f"check_model: pan said nothing of errors:\n{output}")
    return int(found.group(1))


def complaints_about(output):
    """What is wrong with the search of a model that should be right."""
    complaints = []
    if errors_of(output) != 0:
        complaints.append("it has errors")
    if "Search not completed" in output or "max search depth too small" in output:
        complaints.append("it was not searched to its end")
    unreached = re.findall(r"unreached in proctype (\w+)\n(.*?)\((\d+) of (\d+) states\)", output, re.S)
    if not unreached:
        complaints.append("pan named no process")
    for process, lines, count, total in unreached:
        if count != "0":
            complaints.append(f"{count} of {total} states of {process} are never reached:\n{lines}")
    return complaints


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    model, defines = os.path.abspath(sys.argv[1]), sys.argv[2:]
    for tool in ("spin", "cc"):
        if not shutil.which(tool):
            print(f"skipped: {tool} is not installed")
            return 77
    with open(model, encoding="utf-8") as source:
        plants = sorted(set(re.findall(r"\bPLANT_[A-Z_]*[A-Z]\b", source.read())))
    if not plants:
        sys.exit(f"check_model: {model} names no PLANT_*")
    with tempfile.TemporaryDirectory(prefix="kvmid-spin-") as directory:
        output = search(model, defines, directory, "-O1")
        complaints = complaints_about(output)
        states = re.search(r"(\S+) states, stored", output)
        print(f"{states.group(1) if states else '?'} states, {errors_of(output)} errors")
        for plant in plants:
            # Processes in the other order meet errors sooner here.
            found = errors_of(search(model, [*defines, "-D" + plant], directory, "-O0", "-DREVERSE")) != 0
            print(f"{plant}: {'found' if found else 'NOT FOUND'}")
            if not found:
                complaints.append(f"{plant} was not found")
    for complaint in complaints:
        print(f"check_model: {complaint}", file=sys.stderr)
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
