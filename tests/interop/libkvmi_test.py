#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs the real libkvmi against kvmid: its example twice, and a tool of ours on it, all on one guest.

usage: libkvmi_test.py --bin DIR [--dialect kvmi2|v6|v7|v12 ...] [--keep]

KVMID_LIBKVMI names a folder with libkvmi's sources, built there with ./bootstrap && ./configure && make. Without it there is
nothing to run, and the exit code is 77.
Exit codes: 0 all of it happened, 1 something did not, 77 skipped.
"""

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

MAILBOX, STRIDE, MODE, DONE = 0x10000, 0x1000, 0x10, 0x200
ARG_MSR, ARG_MSR_VALUE = 0x100, 0x108
MODES = {"idle": 1, "cr3": 3, "cr4": 4, "msr": 7, "store": 10, "exec": 12}
SOURCE = pathlib.Path(__file__).resolve().parents[2]
BOUND = 60.0
UUID = "5a1f7e36-0d9b-4c39-9f0a-3f4c2a2f4a11"  # v6 has no names


class Failed(Exception):
    pass


class Program:
    """A process whose lines are kept; ended by its pid."""

    def __init__(self, name, arguments, folder, **more):
        self.name = name
        self.path = folder / f"{name}.out"
        self.file = open(self.path, "wb")
        self.process = subprocess.Popen(
            [str(a) for a in arguments], stdin=subprocess.DEVNULL, stdout=self.file, stderr=subprocess.STDOUT, **more
        )

    def text(self):
        return self.path.read_text(encoding="utf-8", errors="replace")

    def count(self, pattern):
        return len(re.findall(pattern, self.text(), re.M))

    def wait_for(self, pattern, more_than=0, bound=BOUND):
        until = time.monotonic() + bound
        while self.count(pattern) <= more_than:
            if time.monotonic() > until:
                raise Failed(f"{self.name} never said /{pattern}/ more than {more_than} times")
            if self.process.poll() is not None and self.count(pattern) <= more_than:
                raise Failed(f"{self.name} ended with {self.process.returncode} before it said /{pattern}/")
            time.sleep(0.02)

    def end(self):
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.file.close()


class Scene:
    def __init__(self, folder, binaries, libkvmi, dialect):
        self.folder, self.bin, self.libkvmi = folder, binaries, libkvmi
        self.programs = []
        self.tools = {}
        environment = dict(os.environ, LD_LIBRARY_PATH=str(libkvmi / "src/.libs"))
        example = libkvmi / "examples/.libs/hookguest-libkvmi"
        if not example.exists():
            example = libkvmi / "examples/hookguest-libkvmi"
        for name, program in (("first", example), ("second", example), ("third", self.build_tool())):
            path = folder / f"{name}.sock"
            more = ["v6"] if name == "third" and dialect == "v6" else []
            self.tools[name] = self.start(name, ["stdbuf", "-oL", program, path, *more], env=environment)
            until = time.monotonic() + BOUND
            while not path.exists():
                if time.monotonic() > until:
                    raise Failed(f"{name} does not listen")
                time.sleep(0.02)
        config = {
            "policy": [
                {
                    "name": "tools",
                    "match": {"uid": [os.getuid()]},
                    "guests": ["*"],
                    "commands": ["*"],
                    "events": ["*"],
                    "role": "decider",
                    "deadline_ms": 20000,
                    "pause_max_ms": 20000,
                }
            ],
            "hypervisors": {"uid": [os.getuid()]},
            "dial": [
                {"name": name, "unix": str(folder / f"{name}.sock"), "dialect": "v7", "guests": [UUID], "redial_ms": 200}
                for name in self.tools
            ],
        }
        (folder / "kvmid.json").write_text(json.dumps(config))
        self.kvmid = self.start(
            "kvmid", [binaries / "kvmid", "--config", folder / "kvmid.json", "--runtime-dir", folder, "--log-level", "debug"]
        )
        self.wait_until(lambda: (folder / "admin.sock").exists(), "kvmid's sockets")
        self.emu = self.start(
            "kvmi-emu",
            [binaries / "kvmi-emu", "--socket", folder / "hypervisor.sock", "--name", "web1", "--uuid", UUID, "--vcpus", "2"]
            + (["--dialect", dialect] if dialect != "kvmi2" else []),
        )

    def build_tool(self):
        program = self.folder / "libkvmi-tool"
        include = self.libkvmi / "include"
        subprocess.run(
            ["cc", "-Wall", "-Wextra", f"-I{include}", f"-I{include}/linux/x86_64", f"-I{SOURCE}", "-o", program]
            + [SOURCE / "tests/interop/libkvmi_tool.c", f"-L{self.libkvmi}/src/.libs", "-lkvmi", "-luuid", "-lpthread"],
            check=True,
        )
        return program

    def start(self, name, arguments, **more):
        program = Program(name, arguments, self.folder, **more)
        self.programs.append(program)
        return program

    def end(self):
        for program in reversed(self.programs):
            program.end()

    @staticmethod
    def wait_until(condition, what):
        until = time.monotonic() + BOUND
        while not condition():
            if time.monotonic() > until:
                raise Failed(f"waited in vain for {what}")
            time.sleep(0.05)

    def ctl(self, *arguments):
        done = subprocess.run(
            [self.bin / "kvmictl", *map(str, arguments)],
            env=dict(
                os.environ,
                KVMID_ADMIN_SOCKET=str(self.folder / "admin.sock"),
                KVMID_AGENT_SOCKET=str(self.folder / "agent.sock"),
            ),
            capture_output=True,
            text=True,
            timeout=BOUND,
        )
        if done.returncode != 0:
            raise Failed(f"kvmictl {' '.join(map(str, arguments))}: {done.stderr or done.stdout}")
        return done.stdout

    def write(self, gpa, value):
        self.ctl("mem", "write", UUID, hex(gpa), value.to_bytes(8, "little").hex(), "--yes", "--force")

    def read(self, gpa):
        # "ADDRESS  0xVALUE  VALUE"
        return int(self.ctl("mem", "read", UUID, hex(gpa), "8", "--int", "u64").split()[1], 16)

    def do(self, vcpu, mode):
        self.write(MAILBOX + STRIDE * vcpu + MODE, MODES[mode])


def play(scene):
    first, second, third = (scene.tools[name] for name in ("first", "second", "third"))
    for name in ("first", "second"):
        scene.tools[name].wait_for(r"^New guest:")
    third.wait_for(r"^tool: ready")
    print("  three tools have the guest; both examples paused its vCPUs and enabled their events")
    for tool in (first, second):
        tool.wait_for(r"^Enabling MSR_STAR events", more_than=1)

    scene.write(MAILBOX + ARG_MSR, 0xC0000081)
    for mode, pattern in (("cr4", r"^CR4 "), ("msr", r"^MSR 0xc0000081 ")):
        value = 0x0023001000000000
        for tool in (first, second):
            seen = tool.count(pattern)
            if mode == "msr":
                scene.write(MAILBOX + ARG_MSR_VALUE, value)
            scene.do(0, mode)
            until = time.monotonic() + BOUND
            while tool.count(pattern) <= seen:
                value += 0x100000000
                if mode == "msr":
                    scene.write(MAILBOX + ARG_MSR_VALUE, value)
                if time.monotonic() > until:
                    raise Failed(f"{tool.name} never said /{pattern}/")
                time.sleep(0.05)
        print(f"  both examples got {mode.upper()} events: {first.count(pattern)} and {second.count(pattern)}")

    scene.do(1, "exec")
    third.wait_for(r"^tool: breakpoint", more_than=0)
    scene.do(1, "store")
    third.wait_for(r"^tool: fault")
    scene.do(1, "exec")
    third.wait_for(r"^tool: done", bound=BOUND)
    third.process.wait(10)
    if third.process.returncode != 0:
        raise Failed("the third tool failed")
    print("  the third saw breakpoints of its own, single steps and a page fault: " + third.text().splitlines()[-1])
    for tool in (first, second):
        if tool.count(r"^(PF gva \S+ gpa 0x20|Unknown event)"):
            raise Failed(f"{tool.name} was told of what belongs to the third")

    agents = scene.ctl("agents")
    if "first" not in agents or "second" not in agents or "third" in agents:
        raise Failed("kvmictl agents: " + agents)
    first.process.kill()
    first.process.wait()
    seen = second.count(r"^MSR 0xc0000081 ")
    until = time.monotonic() + BOUND
    value = 0x0033001000000000
    while second.count(r"^MSR 0xc0000081 ") <= seen + 3:
        value += 0x100000000
        scene.write(MAILBOX + ARG_MSR_VALUE, value)
        if time.monotonic() > until:
            raise Failed("the second gets no events any more")
        time.sleep(0.05)
    print("  the first was killed with -9; guest and second go on")
    done = scene.read(MAILBOX + DONE + 8 * MODES["msr"])
    scene.wait_until(lambda: scene.read(MAILBOX + DONE + 8 * MODES["msr"]) > done, "the guest to go on")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=pathlib.Path, required=True, help="the build's bin folder")
    parser.add_argument("--dialect", action="append", help="that the hypervisor speaks; default: each")
    parser.add_argument("--keep", action="store_true", help="leave the folder with what every program said")
    options = parser.parse_args()
    libkvmi = os.environ.get("KVMID_LIBKVMI")
    if not libkvmi or not (pathlib.Path(libkvmi) / "src/.libs/libkvmi.so").exists():
        print("skipped: KVMID_LIBKVMI does not name a folder with a built libkvmi")
        return 77
    for dialect in options.dialect or ["kvmi2", "v6", "v7", "v12"]:
        folder = pathlib.Path(tempfile.mkdtemp(prefix="kvmid-libkvmi-"))
        print(f"hypervisor speaks {dialect}, tools speak v7 ({folder})", flush=True)
        scene = None
        try:
            scene = Scene(folder, options.bin.resolve(), pathlib.Path(libkvmi).resolve(), dialect)
            play(scene)
        except (Failed, subprocess.SubprocessError) as error:
            print(f"FAILED: {error}")
            if scene is not None:
                scene.end()
            for path in sorted(folder.glob("*.out")):
                print(f"---- {path.name}\n{path.read_text(errors='replace')[-4000:]}")
            return 1
        finally:
            if scene is not None:
                scene.end()
            if not options.keep:
                for path in folder.iterdir():
                    path.unlink()
                folder.rmdir()
        print("  ok")
    return 0


if __name__ == "__main__":
    sys.exit(main())
