# SPDX-License-Identifier: GPL-2.0-or-later
"""What the demonstration stands on: where the guest keeps things, its memory, kvmid's admin socket."""

import http.client
import os
import pathlib
import socket

# The guest's own pages, as hypervisor/emulated/GUEST.md lists them
PROTECTED_PAGE = "0x20000"
EXEC_PAGE = "0x21000"
VCPUS = 2
MAILBOX, MAILBOX_BYTES = 0x10000, 0x1000
MODE, LSTAR, USER_SYSCALLS, DONE, EXCEPTIONS = 0x10, 0x40, 0xB8, 0x200, 0x400
ARG_HAMMER_CALLS, HAMMER_GPA, HAMMER_CALLS, HAMMER_HITS = 0x118, 0x1D0, 0x1E0, 0x1E8
MODE_ALL, MODE_MSR_LSTAR, MODE_INT3, MODE_EXEC, MODE_HAMMER = 0, 6, 8, 12, 29
FUNCTION_BYTES = 9  # of the first instruction of the function at HAMMER_GPA
CALLS, LONG_CALLS = 500, 20000  # of each vCPU


class Http(http.client.HTTPConnection):
    """HTTP over kvmid's admin socket."""

    def __init__(self, path):
        super().__init__("localhost", timeout=5)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(5)
        self.sock.connect(self.path)


class GuestRam:
    """The guest's memory from outside of everything that is shown: the memfd of its hypervisor process."""

    def __init__(self, pid):
        folder = pathlib.Path(f"/proc/{pid}/fd")
        found = [path for path in folder.iterdir() if "guest RAM" in os.readlink(path)]
        require(len(found) == 1, f"process {pid} has guest RAM")
        self.path = found[0]

    def read(self, address, size):
        with open(self.path, "rb", buffering=0) as ram:
            return os.pread(ram.fileno(), size, address)

    def number(self, address):
        return int.from_bytes(self.read(address, 8), "little")

    def field(self, offset):
        """That field of each vCPU's mailbox."""
        return [self.number(MAILBOX + MAILBOX_BYTES * vcpu + offset) for vcpu in range(VCPUS)]


def require(holds, what):
    """What the demonstration claims is so, or the demonstration fails."""
    if not holds:
        raise RuntimeError(f"this is not so: {what}")
