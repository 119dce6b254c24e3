#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes kvmi2.json: the bytes of every message of KVMI 2, and what they mean.

Made from the text of protocol/kvmi.h and protocol/PROTOCOL.md with Python's struct module, so that it shares no code
and no mistake with the C++ codec. Little-endian (KVMI is host native; these are the bytes on x86).

Each entry:
  what       the message and the case, for people
  direction  "down" (towards the hypervisor), "up" (towards the agent), or the kind of struct that opens a connection
  message    name of the message; event, notice: name of its kind
  hex        all bytes, header included
  fields     the values in them
  padding    offsets of bytes, counted from the start of the payload, that must be zero
  open_tail  the last bytes are data whose length nothing in the message says

Run it without arguments to write the file; with --check it only says whether the file is up to date.
"""

import json
import pathlib
import struct
import sys

TARGET = pathlib.Path(__file__).with_name("kvmi2.json")

ALL_VCPUS = 0xFFFF
MAGIC = 0x324D564B

IDS = {
    "GET_VERSION": 1, "GET_GUESTS": 2, "GET_GUEST_INFO": 3, "PAUSE_VCPU": 4, "GET_REGISTERS": 6, "SET_REGISTERS": 7,
    "SHUTDOWN_GUEST": 8, "GET_CPUID": 11, "GET_PAGE_ACCESS": 12, "SET_PAGE_ACCESS": 13, "INJECT_EXCEPTION": 14,
    "READ_PHYSICAL": 15, "WRITE_PHYSICAL": 16, "GRANT_MEMORY": 17, "CONTROL_EVENTS": 19, "CONTROL_CR": 20,
    "CONTROL_MSR": 21, "GUEST_ON": 23, "GUEST_OFF": 24, "EVENT": 25, "EVENT_REPLY": 26, "TRANSLATE_GVA": 27,
    "CONTROL_SINGLESTEP": 28, "SET_FILTER": 29, "GET_XSAVE": 30, "SET_XSAVE": 31, "GET_XCR": 32, "NOTICE": 33,
    "GET_MEMORY_MAP": 34, "MEMORY_MAP_CHANGED": 35,
}
EVENTS = ["unhook", "cr", "msr", "xsetbv", "breakpoint", "hypercall", "page_fault", "trap", "descriptor", "create_vcpu",
          "pause", "singlestep", "cpuid", "access"]
ACTIONS = {"allow": 0, "retry": 1, "skip": 2, "crash": 3}
NOTICES = {"expired": 1, "reply_refused": 2, "demoted": 3, "outcome": 4, "revoked": 5, "frame_refused": 6}
OFF_REASONS = ["shutdown", "suspend", "migration", "snapshot", "link_lost", "protocol_error",
               "daemon_stopping", "reset"]
ERRORS = {"EPERM": 1, "ENOENT": 2, "E2BIG": 7, "EAGAIN": 11, "ENOMEM": 12, "EFAULT": 14, "EBUSY": 16, "ENODEV": 19,
          "EINVAL": 22, "EOPNOTSUPP": 95, "ETIMEDOUT": 110, "ESTALE": 116, "ENOSYS": 1000}
UUID = bytes.fromhex("6a1f7e36c0de4b1d8a55001122334455")

FORMATS = {"u8": "<B", "u16": "<H", "u32": "<I", "u64": "<Q", "s32": "<i", "s64": "<q"}


class Payload:
    """Bytes and where their padding is."""

    def __init__(self):
        self.data = bytearray()
        self.padding = []

    def put(self, *values):
        """put("u16", 1, "u8", 2): one after another."""
        for kind, value in zip(values[::2], values[1::2], strict=True):
            self.data += struct.pack(FORMATS[kind], value)
        return self

    def pad(self, n):
        self.padding += range(len(self.data), len(self.data) + n)
        self.data += bytes(n)
        return self

    def raw(self, data):
        self.data += data
        return self

    def name(self, text, size):
        """A zero-terminated field."""
        return self.raw(text.encode().ljust(size, b"\0"))


vectors = []


def add(what, direction, message, payload=None, fields=None, seq=None, open_tail=False, **extra):
    payload = payload or Payload()
    if direction in ("down", "up"):
        seq = len(vectors) + 100 if seq is None else seq
        header = struct.pack("<HHI", IDS[message], len(payload.data), seq)
        extra["seq"] = seq
    else:
        header = b""
    vectors.append({
        "what": what, "direction": direction, "message": message, **extra, "hex": (header + payload.data).hex(),
        "fields": fields or {}, "padding": payload.padding, "open_tail": open_tail,
    })


def regs(payload):
    """rax … r15, rip, rflags: each a number of its own."""
    values = [0x1111000000000000 + 0x101 * (i + 1) for i in range(16)] + [0xFFFFFFFF81000123, 0x246]
    for value in values:
        payload.put("u64", value)
    return values


def sregs(payload):
    segments = []
    for i in range(8):
        base, limit, selector = 0x7F0000000000 + i, 0xFFFFF000 + i, 0x10 + 8 * i
        small = [0xB - i, 1, i % 4, i % 2, 1, (i + 1) % 2, 1, i % 2, (i + 1) % 2]
        payload.put("u64", base, "u32", limit, "u16", selector)
        for value in small:
            payload.put("u8", value)
        payload.pad(1)
        segments.append([base, limit, selector, *small])
    tables = []
    for i in range(2):
        base, limit = 0xFFFFFE0000001000 + 0x1000 * i, 0x7F + 0xF80 * i
        payload.put("u64", base, "u16", limit).pad(6)
        tables.append([base, limit])
    control = [0x80050033, 0x7FFE00001234, 0x1AB000, 0x3706E0, 0xF, 0xD01, 0xFEE00900, 1, 2, 4, 1 << 63]
    for value in control:
        payload.put("u64", value)
    return {"segments": segments, "tables": tables, "control": control}


def down():
    def command(name, payload=None, fields=None, what=""):
        add(f"{name} request{what}", "down", name, payload, fields)

    command("GET_VERSION")
    command("GET_GUESTS", Payload().put("u32", 700).pad(4), {"first": 700})
    command("GET_GUEST_INFO")
    command("PAUSE_VCPU", Payload().put("u16", 3).pad(6), {"vcpu": 3})
    command("PAUSE_VCPU", Payload().put("u16", ALL_VCPUS).pad(6), {"vcpu": ALL_VCPUS}, ", every vCPU")
    command("GET_REGISTERS", Payload().put("u16", 1, "u16", 0).pad(4), {"vcpu": 1, "msrs": []}, ", no MSRs")
    command("GET_REGISTERS", Payload().put("u16", 1, "u16", 2).pad(4).put("u32", 0xC0000082, "u32", 0x10),
            {"vcpu": 1, "msrs": [0xC0000082, 0x10]}, ", two MSRs")
    payload = Payload().put("u16", 2).pad(6)
    command("SET_REGISTERS", payload, {"vcpu": 2, "regs": regs(payload)})
    command("SHUTDOWN_GUEST")
    command("GET_CPUID", Payload().put("u16", 0).pad(6).put("u32", 0xD, "u32", 1),
            {"vcpu": 0, "function": 0xD, "index": 1})
    command("GET_PAGE_ACCESS", Payload().put("u64", 0x7000, "u32", 16, "u16", 1).pad(2),
            {"gpa": 0x7000, "pages": 16, "space": 1})
    command("SET_PAGE_ACCESS",
            Payload().put("u16", 2, "u16", 0).pad(4)
            .put("u64", 0x1000, "u32", 1, "u8", 5).pad(3).put("u64", 0x200000, "u32", 512, "u8", 0).pad(3),
            {"space": 0, "entries": [[0x1000, 1, 5], [0x200000, 512, 0]]})
    command("INJECT_EXCEPTION", Payload().put("u16", 1, "u8", 14, "u8", 1, "u32", 6, "u64", 0x7FFDEADBE000),
            {"vcpu": 1, "vector": 14, "has_error_code": True, "error_code": 6, "address": 0x7FFDEADBE000},
            ", page fault")
    command("INJECT_EXCEPTION", Payload().put("u16", 0, "u8", 3, "u8", 0, "u32", 0, "u64", 0),
            {"vcpu": 0, "vector": 3, "has_error_code": False, "error_code": 0, "address": 0}, ", breakpoint")
    command("READ_PHYSICAL",
            Payload().put("u16", 2, "u16", 0).pad(4)
            .put("u64", 0x1003, "u32", 5).pad(4).put("u64", 0xFFFFFFFF000, "u32", 4096).pad(4),
            {"space": 0, "ranges": [[0x1003, 5], [0xFFFFFFFF000, 4096]]})

    def write(flags, cookie, data, expected, what):
        payload = Payload().put("u64", 0x9ABC, "u32", len(data), "u16", 0, "u16", flags, "u64", cookie)
        command("WRITE_PHYSICAL", payload.raw(data + expected),
                {"gpa": 0x9ABC, "space": 0, "flags": flags, "cookie": cookie, "data": data.hex(),
                 "expected": expected.hex()}, what)

    write(0, 0, b"\x90" * 3, b"", ", plain")
    write(1, 0x123456789ABCDEF0, b"\x01\x02\x03\x04", b"", ", with a cookie")
    write(2, 0, b"\xcc\x90", b"\x0f\x05", ", with the bytes expected")
    write(4 | 2, 0, b"\xcc", b"\x55", ", a patch")
    write(8, 0, b"\0", b"", ", a patch given back")
    command("GRANT_MEMORY", Payload().put("u32", 0).pad(4), {"flags": 0})
    command("CONTROL_EVENTS", Payload().put("u16", ALL_VCPUS, "u8", 1, "u8", 1).pad(4).put("u64", 0x3FFF),
            {"vcpu": ALL_VCPUS, "operation": 1, "role": 1, "events": 0x3FFF})
    command("CONTROL_EVENTS", Payload().put("u16", 1, "u8", 2, "u8", 0).pad(4).put("u64", 0x12),
            {"vcpu": 1, "operation": 2, "role": 0, "events": 0x12}, ", disable")
    command("CONTROL_CR", Payload().put("u16", 0, "u8", 1).pad(1).put("u32", 4), {"vcpu": 0, "enable": True, "cr": 4})
    for msr in (0x1FFF, 0x40000000, 0xC0000082, 0x4B564DFF):
        command("CONTROL_MSR", Payload().put("u16", 7, "u8", 0).pad(1).put("u32", msr),
                {"vcpu": 7, "enable": False, "msr": msr}, f" {msr:#x}")
    command("TRANSLATE_GVA", Payload().put("u16", 5).pad(6).put("u64", 0xFFFF888000001000),
            {"vcpu": 5, "gva": 0xFFFF888000001000})
    command("CONTROL_SINGLESTEP", Payload().put("u16", 1, "u8", 1).pad(5), {"vcpu": 1, "enable": True})
    command("SET_FILTER",
            Payload().put("u16", ALL_VCPUS, "u8", 1, "u8", 0, "u32", 3)
            .put("u8", 1, "u8", 0, "u8", 0, "u8", 0).pad(4).put("u64", 4, "u64", 0)
            .put("u8", 4, "u8", 5, "u8", 0, "u8", 0).pad(4).put("u64", 0x100000, "u64", 0x100000)
            .put("u8", 0, "u8", 4, "u8", 1, "u8", 16).pad(4).put("u64", 0x1000, "u64", 0x1FFF),
            {"vcpu": ALL_VCPUS, "event": "cr", "action": "allow",
             "terms": [[1, 0, 0, 0, 4, 0], [4, 5, 0, 0, 0x100000, 0x100000], [0, 4, 1, 16, 0x1000, 0x1FFF]]})
    command("SET_FILTER", Payload().put("u16", 0, "u8", 6, "u8", 1, "u32", 0),
            {"vcpu": 0, "event": "page_fault", "action": "retry", "terms": []}, ", none")
    command("GET_XSAVE", Payload().put("u16", 4).pad(6), {"vcpu": 4})
    area = bytes(range(64))
    command("SET_XSAVE", Payload().put("u16", 4).pad(2).put("u32", 64).raw(area), {"vcpu": 4, "area": area.hex()})
    command("GET_XCR", Payload().put("u16", 4).pad(2).put("u32", 0), {"vcpu": 4, "xcr": 0})
    command("GET_MEMORY_MAP", Payload().put("u16", 0).pad(6), {"space": 0})
    command("GET_MEMORY_MAP", Payload().put("u16", 1).pad(6), {"space": 1}, ", SMM")


def event_replies():
    def reply(event, action, flags=0, cookie=0, value=None, what=""):
        payload = Payload().put("u16", 2, "u8", EVENTS.index(event), "u8", ACTIONS[action], "u8", flags).pad(3)
        payload.put("u64", cookie)
        if event in ("cr", "msr", "xsetbv"):
            payload.put("u64", value or 0)
        elif event == "access":
            payload.raw((value or b"").ljust(64, b"\0"))
        shown = value.ljust(64, b"\0").hex() if isinstance(value, bytes) else value
        add(f"reply to {event}: {action}{what}", "down", "EVENT_REPLY", payload,
            {"vcpu": 2, "event": event, "action": action, "trap_access": bool(flags & 2), "step_over": bool(flags & 4),
             "has_cookie": bool(flags & 8), "cookie": cookie, "value": shown if flags & 1 else None}, event=event)

    for event in EVENTS:
        reply(event, "allow")
    reply("cr", "allow", 1, value=0x80050033, what=" with a value")
    reply("msr", "allow", 1, value=0xFFFFFFFF81800000, what=" with a value")
    reply("xsetbv", "allow", 1, value=7, what=" with a value")
    reply("access", "allow", 1, value=b"\x11\x22\x33\x44", what=" with data")
    reply("page_fault", "allow", 2, what=" with TRAP_ACCESS")
    reply("breakpoint", "retry", 4, what=" with STEP_OVER")
    reply("page_fault", "skip", 8, cookie=0x77, what=" with a cookie")
    reply("cr", "skip", 1 | 8, cookie=0, value=5, what=" with a value and cookie 0")
    reply("trap", "crash")


def replies():
    def success(name, payload=None, fields=None, what="", **extra):
        whole = Payload().put("s32", 0, "u32", 0)
        if payload:
            whole.padding = [8 + i for i in payload.padding]
            whole.raw(payload.data)
        add(f"{name} reply{what}", "up", name, whole, {"error": "OK", "text": "", **(fields or {})}, **extra)

    success("GET_VERSION", Payload().put("u32", 2, "u32", 65528, "u64", 0x3F83BF9DE, "u64", 0x3FFF),
            {"version": 2, "max_payload": 65528, "commands": 0x3F83BF9DE, "events": 0x3FFF})
    payload = Payload().put("u32", 12, "u32", 2)
    payload.raw(UUID).name("web1", 64).put("u32", 4, "u32", 0)
    payload.raw(bytes(range(16))).name("größe", 64).put("u32", 1, "u32", 1)
    success("GET_GUESTS", payload, {"total": 12, "entries": [[UUID.hex(), "web1", 4, 0],
                                                             [bytes(range(16)).hex(), "größe", 1, 1]]})
    success("GET_GUESTS", Payload().put("u32", 12, "u32", 0), {"total": 12, "entries": []}, ", none left")
    success("GET_GUEST_INFO",
            Payload().put("u16", 4, "u16", 0).pad(4).put("u64", 2400000000, "u8", 46, "u8", 48, "u8", 1).pad(5)
            .put("u64", 0x140000000),
            {"vcpu_count": 4, "arch": 0, "tsc_hz": 2400000000, "physical_address_bits": 46, "linear_address_bits": 48,
             "execute_only": True, "max_gpa": 0x140000000})
    success("PAUSE_VCPU")
    for msrs in ([], [(0xC0000082, 0xFFFFFFFF81800000), (0x10, 12345)]):
        payload = Payload().put("u8", 8).pad(3).put("u32", len(msrs))
        fields = {"mode": 8, "regs": regs(payload), "sregs": sregs(payload), "msrs": [list(msr) for msr in msrs]}
        for index, value in msrs:
            payload.put("u32", index).pad(4).put("u64", value)
        success("GET_REGISTERS", payload, fields, f", {len(msrs)} MSRs")
    success("SET_REGISTERS")
    success("SHUTDOWN_GUEST")
    success("GET_CPUID", Payload().put("u32", 0x1F, "u32", 0x340, "u32", 0x988, "u32", 7),
            {"regs": [0x1F, 0x340, 0x988, 7]})
    success("GET_PAGE_ACCESS",
            Payload().put("u32", 2).pad(4).put("u64", 0x7000, "u32", 1, "u8", 7).pad(3)
            .put("u64", 0x8000, "u32", 15, "u8", 4).pad(3), {"entries": [[0x7000, 1, 7], [0x8000, 15, 4]]})
    success("SET_PAGE_ACCESS")
    success("INJECT_EXCEPTION")
    success("READ_PHYSICAL", Payload().put("u64", 0x55AA).raw(b"hello world"),
            {"cookie": 0x55AA, "data": b"hello world".hex()}, open_tail=True)
    success("WRITE_PHYSICAL", Payload().put("u64", 0x55AB), {"cookie": 0x55AB})
    success("GRANT_MEMORY", Payload().put("u64", 1 << 32, "u64", 8192, "u32", 2).pad(4),
            {"ram_bytes": 1 << 32, "generation_bytes": 8192, "fd_count": 2})
    success("CONTROL_EVENTS", Payload().put("u64", 0x52), {"events": 0x52})
    success("CONTROL_CR")
    success("CONTROL_MSR")
    success("TRANSLATE_GVA", Payload().put("u64", 0x12345678, "u64", 0x200000, "u8", 5, "u8", 1).pad(6),
            {"gpa": 0x12345678, "page_bytes": 0x200000, "access": 5, "user": True})
    success("CONTROL_SINGLESTEP")
    success("SET_FILTER")
    success("GET_XSAVE", Payload().raw(bytes(range(100, 164))), {"area": bytes(range(100, 164)).hex()}, open_tail=True)
    success("SET_XSAVE")
    success("GET_XCR", Payload().put("u64", 0xE7), {"value": 0xE7})
    slots = [(0, 0xA0000, 0, 0), (0xC0000, 0x40000, 0, 1), (0x100000, 0x1000, 0, 0), (0x101000, 1 << 32, 0, 0)]
    payload = Payload().put("u32", len(slots)).pad(4)
    for gpa, size, space, flags in slots:
        payload.put("u64", gpa, "u64", size, "u16", space, "u16", flags).pad(4)
    success("GET_MEMORY_MAP", payload,
            {"slots": [dict(gpa=s[0], bytes=s[1], space=s[2], flags=s[3]) for s in slots]})
    success("GET_MEMORY_MAP", Payload().put("u32", 0).pad(4), {"slots": []}, ", none")

    others = ("GUEST_ON", "GUEST_OFF", "EVENT", "EVENT_REPLY", "NOTICE", "MEMORY_MAP_CHANGED")
    commands = [name for name in IDS if name not in others]
    errors = list(ERRORS)
    for i, name in enumerate(commands):
        error = errors[i % len(errors)]
        if name == "WRITE_PHYSICAL" and error == "ESTALE":
            error = "EPERM"
        text = f"{name}: not today, größe {i}".encode()
        add(f"{name} error reply {error}", "up", name,
            Payload().put("s32", -ERRORS[error], "u32", len(text)).raw(text), {"error": error, "text": text.decode()})
    add("error reply without text", "up", "GET_CPUID", Payload().put("s32", -2, "u32", 0),
        {"error": "ENOENT", "text": ""})
    for text in (b"", b"changed since"):
        add("WRITE_PHYSICAL stale, with the current cookie", "up", "WRITE_PHYSICAL",
            Payload().put("s32", -116, "u32", len(text)).put("u64", 0x9001).raw(text),
            {"error": "ESTALE", "text": text.decode(), "cookie": 0x9001})


def events():
    def event(kind, specific=None, fields=None, what="", vcpu=1, actions=0xF, decide=True):
        payload = Payload().put("u16", vcpu, "u8", EVENTS.index(kind), "u8", 8, "u8", actions, "u8", int(decide))
        payload.put("u8", 0).pad(1).put("u32", 100000 if decide else 0).pad(4).put("u64", 0xC00C1E)
        common = {"vcpu": vcpu, "event": kind, "mode": 8, "actions": actions, "decide": decide, "space": 0,
                  "deadline_us": 100000 if decide else 0, "cookie": 0xC00C1E,
                  "regs": regs(payload), "sregs": sregs(payload)}
        common["msrs"] = [0x10, 0xFFFFFE0000002000, 0xFFFFFFFF81800AA0, 0xD01, 0x23001000000000, 0xFFFFFFFF81800000, 5,
                          0x0007040600070406, 0xFFFF888003C00000]
        for value in common["msrs"]:
            payload.put("u64", value)
        common["dr"] = [0xFFFF0FF0, 0x400]
        payload.put("u64", common["dr"][0], "u64", common["dr"][1])
        if specific:
            payload.padding += [len(payload.data) + i for i in specific.padding]
            payload.raw(specific.data)
        add(f"event {kind}{what}", "up", "EVENT", payload, {**common, "data": fields or {}}, event=kind)

    for i, reason in enumerate(OFF_REASONS):
        event("unhook", Payload().put("u8", i).pad(7), {"reason": reason}, f", {reason}", vcpu=ALL_VCPUS, actions=1)
    for cr in (0, 3, 4):
        event("cr", Payload().put("u16", cr).pad(6).put("u64", 0x80050033, "u64", 0x80040033),
              {"number": cr, "old": 0x80050033, "new": 0x80040033}, f"{cr}")
    event("msr", Payload().put("u32", 0xC0000082).pad(4).put("u64", 1, "u64", 2),
          {"number": 0xC0000082, "old": 1, "new": 2})
    event("xsetbv", Payload().put("u32", 0).pad(4).put("u64", 3, "u64", 7), {"number": 0, "old": 3, "new": 7})
    event("breakpoint", Payload().put("u64", 0x1234567, "u8", 1).pad(7), {"gpa": 0x1234567, "insn_length": 1})
    event("hypercall")
    event("page_fault", Payload().put("u64", 0xFFFF888000001008, "u64", 0x1008, "u8", 2, "u8", 1).pad(6),
          {"gva": 0xFFFF888000001008, "gpa": 0x1008, "access": 2, "gva_valid": True})
    event("page_fault", Payload().put("u64", 0, "u64", 0x1008, "u8", 5, "u8", 0).pad(6),
          {"gva": 0, "gpa": 0x1008, "access": 5, "gva_valid": False}, " without a GVA, observed", decide=False)
    event("trap", Payload().put("u8", 14, "u8", 0, "u8", 3, "u8", 0, "u32", 6, "u64", 0x7FFDEADBE000),
          {"vector": 14, "kind": 0, "flags": 3, "displaced_vector": 0, "error_code": 6, "address": 0x7FFDEADBE000})
    event("trap", Payload().put("u8", 1, "u8", 1, "u8", 4, "u8", 13, "u32", 0, "u64", 0),
          {"vector": 1, "kind": 1, "flags": 4, "displaced_vector": 13, "error_code": 0, "address": 0},
          " that displaced another; no RETRY", actions=0xD)
    event("descriptor", Payload().put("u8", 4, "u8", 1).pad(6), {"descriptor": 4, "write": True})
    event("create_vcpu", what=", first seen", vcpu=6)
    event("pause")
    event("singlestep", Payload().put("u8", 1).pad(7), {"failed": True})
    event("cpuid", Payload().put("u32", 0x80000001, "u32", 2), {"function": 0x80000001, "index": 2})
    payload = Payload().put("u64", 0x7F00, "u64", 0x1F00, "u8", 1, "u8", 8, "u16", 2).pad(4)
    payload.raw(b"\x01\x02\x03\x04\x05\x06\x07\x08")
    event("access", payload.pad(56), {"gva": 0x7F00, "gpa": 0x1F00, "access": 1, "size": 8, "index": 2,
                                      "data": "0102030405060708".ljust(128, "0")})


def notices():
    for i, (name, kind) in enumerate(NOTICES.items()):
        error = {"reply_refused": "ESTALE", "frame_refused": "EINVAL", "revoked": "EPERM"}.get(name, "OK")
        text = b"" if name == "outcome" else f"{name} größe".encode()
        payload = Payload().put("u8", kind, "u8", 6, "u8", 2).pad(1).put("u16", 3, "u16", len(text))
        payload.put("s32", -ERRORS.get(error, 0), "u32", 40 + i, "u32", 900 + i, "u32", i).raw(text)
        add(f"notice {name}", "up", "NOTICE", payload,
            {"kind": name, "event": "page_fault", "action": "skip", "vcpu": 3, "error": error, "agent": 40 + i,
             "event_seq": 900 + i, "count": i, "text": text.decode()}, seq=0, notice=name)
    add("GUEST_ON", "up", "GUEST_ON", Payload().raw(UUID).name("web1", 64).put("u32", 4, "u32", 0),
        {"guest": [UUID.hex(), "web1", 4, 0]}, seq=0)
    for i, reason in enumerate(OFF_REASONS):
        text = f"because {reason}".encode() if i % 2 else b""
        add(f"GUEST_OFF {reason}", "up", "GUEST_OFF",
            Payload().raw(UUID).put("u8", i).pad(3).put("u32", len(text)).raw(text),
            {"uuid": UUID.hex(), "reason": reason, "text": text.decode()}, seq=0)
    for change, what in enumerate(("added", "removed", "moved", "flags")):
        old, flags = (0xC0000 if what == "moved" else 0), (1 if what == "flags" else 0)
        payload = Payload().put("u8", change).pad(7).put("u64", 1 << 32, "u64", old)
        payload.put("u64", 0xE0000, "u64", 0x20000, "u16", change % 2, "u16", flags).pad(4)
        add(f"MEMORY_MAP_CHANGED {what}", "up", "MEMORY_MAP_CHANGED", payload,
            {"change": change, "max_gpa": 1 << 32, "old_gpa": old,
             "slot": dict(gpa=0xE0000, bytes=0x20000, space=change % 2, flags=flags)}, seq=0)


def connecting():
    def hello(flags, uuid, name, what):
        add(what, "hello", "hello", Payload().put("u32", 96, "u32", MAGIC, "u32", 2, "u32", flags).raw(uuid)
            .name(name, 64),
            {"uuid": uuid.hex(), "name": name, "flags": flags})

    hello(1, UUID, "guard", "hello to a guest")
    hello(0, bytes(16), "n" * 63, "hello of a control connection, longest name")

    def welcome(status, text, what):
        numbers = [7, 65528, 32, 1 << 20, 100000, 10]
        payload = Payload().put("u32", 272, "u32", MAGIC, "u32", 2, "s32", -ERRORS.get(status, 0))
        for number in numbers:
            payload.put("u32", number)
        payload.put("u64", 0x3F83BF9DE, "u64", 0x3FFF, "u16", 4, "u8", 1, "u8", 1).pad(4)
        payload.raw(UUID).name("web1", 64).name(text, 128)
        add(what, "welcome", "welcome", payload,
            {"status": status, "numbers": numbers, "commands": 0x3F83BF9DE, "events": 0x3FFF, "vcpu_count": 4,
             "role": 1, "default_action": 1, "uuid": UUID.hex(), "guest_name": "web1", "text": text})

    welcome("OK", "", "welcome")
    welcome("EPERM", "policy: agents of uid 1001 may not attach", "welcome that refuses")

    def handshake(what, size, name="web1", max_gpa=0, kvmi2=None, tail=b"", start=1700000000):
        payload = Payload().put("u32", size).raw(UUID)
        if kvmi2 is None:
            payload.raw(bytes(4))  # QEMU's, not looked at
        else:
            payload.pad(4)
        payload.put("s64", start).name(name, 64)
        if size >= 104:
            payload.put("u64", max_gpa)
        fields = {"uuid": UUID.hex(), "start_time": start, "name": name, "max_gpa": max_gpa, "kvmi2": kvmi2 is not None,
                  "flags": 0, "ram_bytes": 0}
        if kvmi2:
            payload.put("u32", MAGIC, "u32", 2, "u32", kvmi2[0]).pad(4).put("u64", kvmi2[1])
            fields.update(flags=kvmi2[0], ram_bytes=kvmi2[1])
        add(what, "handshake", "handshake", payload.raw(tail), fields)

    handshake("handshake of QEMU v7", 96)
    handshake("handshake of QEMU v12", 104, max_gpa=0x140000000)
    handshake("handshake of KVMI 2, no shared RAM", 128, max_gpa=0x1000000, kvmi2=(0, 0))
    handshake("handshake of KVMI 2, shared RAM", 128, max_gpa=0x1000000, kvmi2=(3, 0x1000000))
    add("answer to QEMU", "answer", "answer", Payload().put("u32", 24).raw(bytes(20)),
        {"kvmi2": False, "status": "OK", "text": ""})
    for status, text in (("OK", ""), ("EBUSY", "this guest is here already")):
        add(f"answer to KVMI 2: {status}", "answer", "answer",
            Payload().put("u32", 160).raw(bytes(20)).put("u32", MAGIC, "s32", -ERRORS.get(status, 0)).name(text, 128),
            {"kvmi2": True, "status": status, "text": text})


def main():
    for part in (down, event_replies, replies, events, notices, connecting):
        part()
    lines = ",\n".join(json.dumps(vector, ensure_ascii=False) for vector in vectors)
    text = "[\n" + lines + "\n]\n"
    if sys.argv[1:] == ["--check"]:
        if TARGET.read_text(encoding="utf-8") != text:
            sys.exit(f"{TARGET.name} is not what this program writes")
        return
    TARGET.write_text(text, encoding="utf-8")
    print(f"{TARGET.name}: {len(vectors)} vectors")


if __name__ == "__main__":
    main()
