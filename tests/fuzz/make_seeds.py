#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes seeds for the fuzz targets: make_seeds.py FOLDER.

Decoders get the byte vectors, those of older dialects recorded traffic behind a byte that says which dialect it is.
Nobody has recorded rfc2017: its messages are zeros of the right sizes. Machines read decisions from their bytes; any bytes are a run, so they get bytes that
lead into long ones: many agents, much asking, everything answered.
"""

import json
import pathlib
import random
import struct
import sys

VECTORS_FOLDER = pathlib.Path(__file__).resolve().parent.parent / "vectors"
VECTORS = VECTORS_FOLDER / "kvmi2.json"
TARGETS = {"down": ["fuzz_dialect_kvmi2_down", "fuzz_frame_parser"],
           "up": ["fuzz_dialect_kvmi2_up", "fuzz_frame_parser"]}

# kvmi1::DialectId: what the first byte picks. v6 and v7 are nearly the same, so both get v7's messages.
RFC2017, V6, V7, V12 = range(4)
DIALECTS = {"v7": [V6, V7], "v12": [V12]}

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
    for target in ("fuzz_agent_bridge", "fuzz_hypervisor_bridge"):
        for number in range(16):
            chance = random.Random(f"{target}-{number}")
            write(folder, target, f"any-{number}", bytes([number % 4, number]) + chance.randbytes(100 << (number % 5)))


def recorded_seeds(folder):
    seen = set()
    for path in sorted((VECTORS_FOLDER / "captures").glob("*.jsonl")):
        lines = path.read_text(encoding="utf-8").splitlines()
        dialect = json.loads(lines[0])["dialect"]
        for entry in map(json.loads, lines[1:]):
            kind = (dialect, entry["dir"], entry.get("id"), entry.get("size"))
            if "id" not in entry or kind in seen:
                continue
            seen.add(kind)
            target = "fuzz_kvmi1_downward" if entry["dir"] == "A>H" else "fuzz_kvmi1_upward"
            for number in DIALECTS[dialect]:
                name = f"{path.stem}-{entry['n']:03}-{number}"
                write(folder, target, name, bytes([number]) + bytes.fromhex(entry["hex"]))


def rfc2017_seeds(folder):
    dialect = json.loads((VECTORS_FOLDER / "dialect_layouts.json").read_text(encoding="utf-8"))["dialects"]["rfc2017"]

    def put(target, name, number, payload):
        header = struct.pack("=HHI", number, len(payload), 1)
        write(folder, target, f"rfc2017-{name}", bytes([RFC2017]) + header + payload)

    for message in dialect["messages"]:
        if message["scope"] not in ("vm", "vcpu"):
            continue
        put("fuzz_kvmi1_downward", message["name"], message["id"], bytes(message["request_fixed_size"]))
        put("fuzz_kvmi1_upward", message["name"], message["id"], bytes(message["reply_fixed_size"]))
    ids = dialect["constants"]["messages"]
    for event in dialect["event_messages"]:
        # vCPU 0, mode 8, the event's bit; a page fault has one of the bits that say what the access was.
        payload = bytearray(event["payload_size"])
        struct.pack_into("=HBxI", payload, 0, 0, 8, event["id"])
        if event["name"] == "KVMI_EVENT_PAGE_FAULT":
            payload[528] = 2
        put("fuzz_kvmi1_upward", event["name"], ids["KVMI_EVENT_VCPU"], bytes(payload))
        put("fuzz_kvmi1_downward", event["name"], ids["KVMI_EVENT_VCPU_REPLY"], bytes(event["reply_payload_size"]))


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    for i, vector in enumerate(json.loads(VECTORS.read_text(encoding="utf-8"))):
        for target in TARGETS.get(vector["direction"], ["fuzz_handshake"]):
            write(sys.argv[1], target, f"vector-{i:03}", bytes.fromhex(vector["hex"]))
    machine_seeds(sys.argv[1])
    recorded_seeds(sys.argv[1])
    rfc2017_seeds(sys.argv[1])


if __name__ == "__main__":
    main()
