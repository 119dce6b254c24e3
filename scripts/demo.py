#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The demonstration that scripts/demo runs after the build: real processes, real sockets, guest code that executes."""

import argparse
import http.client
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

GUEST = "demo"
UUID = "6b766d69-6400-4000-8000-64656d6f0001"
DEADLINE_MS = 400
# The guest's own pages, as hypervisor/emulated/GUEST.md lists them
PROTECTED_PAGE = "0x20000"
MAILBOX_USER_SYSCALLS = 0x10000 + 0xB8


class Http(http.client.HTTPConnection):
    """HTTP over kvmid's admin socket."""

    def __init__(self, path):
        super().__init__("localhost", timeout=5)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(5)
        self.sock.connect(self.path)


class Demo:
    def __init__(self, options):
        self.bin = pathlib.Path(options.bin)
        self.quiet = options.json
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="kvmid-demo-"))
        self.children = []
        self.lines = {}
        self.shown = {}

    def say(self, text=""):
        if not self.quiet:
            print(text, flush=True)

    def start(self, name, *command, show=None):
        """Starts a program; `show(line)` gives the text to print of a line, or None."""
        child = subprocess.Popen([str(self.bin / command[0]), *command[1:]], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                 stdin=subprocess.DEVNULL, text=True, errors="replace")
        self.children.append((name, child))
        self.lines[name] = []

        def read():
            for line in child.stdout:
                line = line.rstrip("\n")
                self.lines[name].append(line)
                text = show(line) if show else None
                if text:
                    self.say(f"  {name:<7}| {text}")

        threading.Thread(target=read, daemon=True).start()
        return child

    def first(self, count):
        """Shows the first lines of a chatty program."""
        seen = [0]

        def show(line):
            seen[0] += 1
            return line if seen[0] <= count else None

        return show

    def get(self, path):
        connection = Http(str(self.dir / "admin.sock"))
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            body = json.loads(response.read())
            if response.status != 200:
                raise RuntimeError(f"GET {path}: {body}")
            return body
        finally:
            connection.close()

    def wait(self, what, condition, seconds=10):
        until = time.monotonic() + seconds
        while True:
            try:
                value = condition()
            except (OSError, RuntimeError, http.client.HTTPException):
                value = None
            if value:
                return value
            for name, child in self.children:
                if child.poll() is not None and name == "kvmid":
                    raise RuntimeError("kvmid ended: " + "\n".join(self.lines[name][-5:]))
            if time.monotonic() > until:
                tail = "\n".join(f"{name}: {line}" for name, lines in self.lines.items() for line in lines[-3:])
                raise RuntimeError(f"gave up waiting for {what}\n{tail}")
            time.sleep(0.001)

    def agents(self):
        return {agent["name"]: agent for agent in self.get("/v1/agents")["agents"] if agent["guest"]}

    def vcpus(self):
        return self.get(f"/v1/guests/{UUID}")["vcpu"]

    def counters(self):
        return self.get("/v1/status")["counters"]

    def ctl(self, *arguments):
        """Runs kvmictl as a user would, and gives what it prints."""
        environment = dict(os.environ, KVMID_ADMIN_SOCKET=str(self.dir / "admin.sock"),
                           KVMID_AGENT_SOCKET=str(self.dir / "agent.sock"))
        done = subprocess.run([str(self.bin / "kvmictl"), *arguments], env=environment, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=10)
        if done.returncode != 0:
            raise RuntimeError(f"kvmictl {' '.join(arguments)}: {done.stderr.decode(errors='replace')}")
        return done.stdout

    def syscalls(self):
        """System calls that the guest's user code has made, as the guest itself counts them."""
        return int.from_bytes(self.ctl("mem", "read", GUEST, hex(MAILBOX_USER_SYSCALLS), "8", "--raw"), "little")

    def kinds(self):
        """Events by kind that the watchers of every kind have seen."""
        seen = {}
        for name in ("watch", "step", "audit"):
            for line in list(self.lines.get(name, [])):
                try:
                    record = json.loads(line)
                except ValueError:
                    continue
                if record.get("type") == "event":
                    seen[record["kind"]] = seen.get(record["kind"], 0) + 1
        return seen

    def every_kind(self, agent_socket):
        """One event at least of every kind that the guest's hypervisor has."""
        common = ("--socket", agent_socket, "--guest", GUEST, "--json")
        wanted = set(self.get(f"/v1/guests/{UUID}")["events_supported"]) - {"unhook"}
        before = self.syscalls()
        watch = self.start("watch", "kvmi-trace", *common, "--name", "watch", "--pages", PROTECTED_PAGE)
        step = self.start("step", "kvmi-trace", *common, "--name", "step", "--kinds", "singlestep", "--step", "0", "--count", "50")
        audit = self.start("audit", "kvmi-guard", *common, "--name", "audit", "--audit", PROTECTED_PAGE)
        self.wait("the watchers", lambda: {"watch", "audit"} <= set(self.agents()))
        self.ctl("pause", GUEST, "--for", "0.1")
        self.wait("an event of every kind", lambda: wanted <= set(self.kinds()), 15)
        seen = self.kinds()
        for child in (watch, audit, step):
            child.terminate()
        self.wait("them to be gone", lambda: not {"watch", "audit", "step"} & set(self.agents()))
        after = self.wait("system calls of user code", lambda: self.syscalls() - before)
        self.say("  " + ", ".join(f"{kind} {count}" for kind, count in sorted(seen.items())))
        self.say(f"  meanwhile the guest's user code made {after} system calls")
        return seen, after

    def leave(self, guest):
        """UNHOOK: the hypervisor lets the guest go for a moment, and comes back."""
        guest.send_signal(signal.SIGUSR2)
        line = self.wait("the trace to be told that the guest goes",
                         lambda: [text for text in self.lines["trace"] if "suspend" in text])[0]
        self.say(f"  trace  | {line}")
        self.wait("the guest to be back", lambda: self.get(f"/v1/guests/{UUID}")["state"] == "online")
        before = self.counters()["events"]
        self.wait("events again", lambda: self.counters()["events"] > before + 5)
        self.say("  it is back, and the trace sees its events again")

    def denied_writes(self):
        count = 0
        for line in self.lines["guard"]:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            count += record.get("kind") == "page_fault" and record.get("decide") and record.get("decision") != "allow"
        return count

    def run(self):
        config = self.dir / "kvmid.json"
        config.write_text(json.dumps({"policy": [{
            "name": "demo", "match": {"uid": [os.getuid()]}, "guests": [GUEST], "commands": ["*"], "events": ["*"],
            "role": "decider", "priority": 10, "deadline_ms": DEADLINE_MS, "default": "allow", "strikes": 3}]}))
        agent_socket = str(self.dir / "agent.sock")

        self.say("\n1. kvmid, and a guest of two vCPUs that runs real code")
        self.start("kvmid", "kvmid", "--runtime-dir", str(self.dir), "--config", str(config), "--log-level", "warn")
        self.wait("kvmid's sockets", lambda: self.get("/v1/status"))
        guest = self.start("guest", "kvmi-emu", "--socket", str(self.dir / "hypervisor.sock"), "--name", GUEST, "--uuid", UUID,
                   "--vcpus", "2", "--leave-ms", "200", "--quiet")
        self.wait("the guest", lambda: self.get("/v1/guests")["guests"])
        self.say(f"  guest {GUEST} is known to kvmid")

        self.say("\n2. a guard that decides, a second one that decides too, a trace that only watches")

        def decision(line):
            record = json.loads(line) if line.startswith("{") else {}
            if record.get("type") == "event" and record["decide"] and record["decision"] != "allow":
                self.shown[record["kind"]] = self.shown.get(record["kind"], 0) + 1
                if self.shown[record["kind"]] <= 2:
                    return f"vcpu {record['vcpu']}: {record['kind']:<10} -> {record['decision']}: {record['why']}"
            return None

        guard = self.start("guard", "kvmi-guard", "--socket", agent_socket, "--guest", GUEST, "--protect", PROTECTED_PAGE,
                           "--pin-lstar", "--pin-cr4", "pge", "--json", show=decision)
        self.start("second", "kvmi-guard", "--socket", agent_socket, "--guest", GUEST, "--name", "second", "--pin-lstar",
                   "--stall-after", "40", "--json")
        self.wait("the guards", lambda: len(self.agents()) == 2)
        self.start("trace", "kvmi-trace", "--socket", agent_socket, "--guest", GUEST, "--outcomes", "--wait",
                   "--kinds", "cr,msr", show=self.first(9))
        self.wait("three agents", lambda: len(self.agents()) == 3)
        agents_seen = len(self.agents())
        self.wait("merged replies", lambda: self.counters()["merged"] >= 10, 15)
        self.wait("denied writes", lambda: self.denied_writes() >= 2, 15)
        time.sleep(0.3)
        self.say("  ...")
        for agent in self.agents().values():
            self.say(f"  agent {agent['id']} {agent['name']:<12} sees {', '.join(agent['events'])} "
                     f"(priority {agent['priority']}, deadline {agent['deadline_ms']} ms)")

        self.say(f"\n3. the second guard falls silent: its deadline of {DEADLINE_MS} ms answers for it, three times, then it only observes")
        self.wait("the silent guard to be made an observer", lambda: self.counters()["demoted"] >= 1, 15)
        second = next(a for a in self.agents().values() if a["demoted"])
        self.say(f"  agent {second['id']} {second['name']}: {second['expired']} deadlines missed, now an observer; the guest goes on")

        self.say("\n4. kill -9 of the guard while the guest waits for its reply")
        guard_id = next(a["id"] for a in self.agents().values() if not a["demoted"] and "page_fault" in a["events"])
        guard.send_signal(signal.SIGSTOP)  # so that it surely owes a reply when it dies
        waiting = self.wait("a vCPU that waits for the guard",
                            lambda: [v for v in self.vcpus() if guard_id in v.get("waits_for", [])])[0]
        self.say(f"  vcpu {waiting['id']} waits for agent {guard_id} (event {waiting['event']}, seq {waiting['event_seq']})")
        killed = time.monotonic()
        guard.kill()

        def released():
            now = self.vcpus()[waiting["id"]]
            return now["state"] == "running" or now.get("event_seq") != waiting["event_seq"]

        self.wait("the vCPU to go on", released)
        released_ms = (time.monotonic() - killed) * 1000
        self.say(f"  vcpu {waiting['id']} goes on {released_ms:.1f} ms after the kill (deadline: {DEADLINE_MS} ms)")
        before = self.counters()["events"]
        self.wait("the guest to go on", lambda: self.counters()["events"] > before + 10)
        self.wait("the guard to be forgotten", lambda: len(self.agents()) == 2)
        self.say("  its page rights and events are gone, and the trace still sees the guest")

        self.say("\n5. one event of every kind, and user code in the guest")
        kinds, syscalls = self.every_kind(agent_socket)

        self.say("\n6. the guest is suspended: kvmid takes everything back first, and sets it up again afterwards")
        self.leave(guest)
        kinds["unhook"] = 1

        counters = self.counters()
        summary = {
            "schema": 1,
            "events": counters["events"],
            "decided": counters["decided"],
            "merged": counters["merged"],
            "expired": counters["expired"],
            "denied_writes": self.denied_writes(),
            "released_after_kill_ms": round(released_ms, 1),
            "deadline_ms": DEADLINE_MS,
            "guests": len(self.get("/v1/guests")["guests"]),
            "agents": agents_seen,
            "event_kinds": kinds,
            "user_syscalls": syscalls,
        }
        self.say("\nSummary")
        for key, text in (("guests", "guests"), ("agents", "agents at once"), ("events", "events of the guest"),
                          ("decided", "decided by agents"), ("merged", "of those merged from two votes or more"),
                          ("expired", "deadlines missed by the silent guard"), ("denied_writes", "writes to the protected page denied"),
                          ("released_after_kill_ms", "ms from kill -9 of the guard to the vCPU going on")):
            self.say(f"  {summary[key]:>8}  {text}")
        return summary

    def stop(self):
        """Ends what was started, agents first; nothing is left behind."""
        for _, child in reversed(self.children):
            if child.poll() is None:
                child.terminate()
        for name, child in reversed(self.children):
            try:
                child.wait(timeout=5)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        shutil.rmtree(self.dir, ignore_errors=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bin", required=True, help="folder of the programs")
    parser.add_argument("--json", action="store_true", help="print the closing JSON object only")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    demo = Demo(options)
    try:
        summary = demo.run()
    except (RuntimeError, OSError) as error:
        print(f"scripts/demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        demo.stop()
    print(json.dumps(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
