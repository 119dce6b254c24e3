#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes the byte vectors as seeds for the fuzz targets: make_seeds.py FOLDER."""

import json
import pathlib
import sys

VECTORS = pathlib.Path(__file__).resolve().parent.parent / "vectors" / "kvmi2.json"
TARGETS = {"down": ["fuzz_dialect_kvmi2_down", "fuzz_frame_parser"],
           "up": ["fuzz_dialect_kvmi2_up", "fuzz_frame_parser"]}


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    for i, vector in enumerate(json.loads(VECTORS.read_text(encoding="utf-8"))):
        for target in TARGETS.get(vector["direction"], ["fuzz_handshake"]):
            folder = pathlib.Path(sys.argv[1]) / target
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"vector-{i:03}").write_bytes(bytes.fromhex(vector["hex"]))


if __name__ == "__main__":
    main()
