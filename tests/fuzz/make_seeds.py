#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes seeds for the fuzz targets: make_seeds.py FOLDER.

Decoders get the byte vectors. Machines read decisions from their bytes; any bytes are a run, so they get bytes that
lead into long ones: many agents, much asking, everything answered.
"""

import json
import pathlib
import random
import sys

VECTORS = pathlib.Path(__file__).resolve().parent.parent / "vectors" / "kvmi2.json"
TARGETS = {"down": ["fuzz_dialect_kvmi2_down", "fuzz_frame_parser"],
           "up": ["fuzz_dialect_kvmi2_up", "fuzz_frame_parser"]}

# What GuestRun::step() takes the first byte of a step for (modulo 32).
ATTACH, COMMAND, REPLY, ANSWER, EVENT, TIME, ANSWER_ALL = 0, 2, 8, 13, 18, 24, 31
MIXES = {
    "votes": [EVENT, EVENT, REPLY, REPLY, REPLY, COMMAND, ANSWER_ALL],
    "wishes": [COMMAND, COMMAND, COMMAND, ANSWER, ANSWER, ATTACH],
    "silence": [EVENT, EVENT, TIME, TIME, COMMAND, ANSWER_ALL],
    "everything": list(range(32)),
}


def write(folder, target, name, data):
    folder = pathlib.Path(folder) / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)


def machine_seeds(folder):
    for name, mix in MIXES.items():
        for number in range(8):
            chance = random.Random(f"{name}-{number}")
            data = bytearray([0])
            for kind in [ATTACH] * 3 + chance.choices(mix, k=40 << (number % 4)):
                data.append(kind)
                data += chance.randbytes(chance.randrange(3, 12))
            write(folder, "fuzz_guest_machine", f"{name}-{number}", bytes(data))
            write(folder, "fuzz_vcpu_machine", f"{name}-{number}", chance.randbytes(50 << (number % 4)))


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    for i, vector in enumerate(json.loads(VECTORS.read_text(encoding="utf-8"))):
        for target in TARGETS.get(vector["direction"], ["fuzz_handshake"]):
            write(sys.argv[1], target, f"vector-{i:03}", bytes.fromhex(vector["hex"]))
    machine_seeds(sys.argv[1])


if __name__ == "__main__":
    main()
