#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The demonstration that scripts/demo runs after the build: real processes, real sockets, guest code that executes."""

import argparse
import http.client
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

sys.dont_write_bytecode = True  # nothing is left behind
from demo_parts import (  # noqa: E402
    ARG_HAMMER_CALLS, CALLS, DONE, EXCEPTIONS, EXEC_PAGE, FUNCTION_BYTES, GuestRam, HAMMER_CALLS, HAMMER_GPA,
    HAMMER_HITS, Http, LONG_CALLS, MAILBOX, MAILBOX_BYTES, LSTAR, MODE, MODE_ALL, MODE_EXEC, MODE_HAMMER,
    MODE_INT3, MODE_MSR_LSTAR, PROTECTED_PAGE, USER_SYSCALLS, VCPUS, require)

GUEST = "demo"
UUID = "6b766d69-6400-4000-8000-64656d6f0001"
OLDER_GUEST = "demo-v7"
OLDER_UUID = "6b766d69-6400-4000-8000-64656d6f0007"
NO_ENTRY = "0xffffffff81000000"  # that guest never writes it to LSTAR, so every write of it is denied
DEADLINE_MS = 400


class Demo:
    def __init__(self, options):
        self.bin = pathlib.Path(options.bin)
        self.quiet = options.json
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="kvmid-demo-"))
        self.children = []
        self.lines = {}
        self.shown = {}
        self.printing = threading.Lock()

    def say(self, text=""):
        if not self.quiet:
            with self.printing:
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
        return int.from_bytes(self.ctl("mem", "read", GUEST, hex(MAILBOX + USER_SYSCALLS), "8", "--raw"), "little")

    def set_field(self, offset, value):
        """Writes that field of each vCPU's mailbox, through kvmid."""
        for vcpu in range(VCPUS):
            self.ctl("mem", "write", GUEST, hex(MAILBOX + MAILBOX_BYTES * vcpu + offset), value.to_bytes(8, "little").hex(), "--yes")

    def set_mode(self, ram, mode):
        """What the guest does from now on; it has begun when this returns."""
        self.set_field(MODE, mode)
        done = ram.field(DONE + 8 * mode)
        if mode != MODE_ALL:
            self.wait("the guest to do that only", lambda: all(now > was + 1 for now, was in zip(ram.field(DONE + 8 * mode), done)))

    def hammer(self, ram, calls):
        """Has each vCPU call the function so many times more."""
        self.set_field(ARG_HAMMER_CALLS, ram.field(HAMMER_CALLS)[0] + calls)

    def events_of(self, name):
        """(kind, gpa) of every event that an agent has printed, as text or as JSON."""
        found = []
        for line in list(self.lines[name]):
            if line.startswith("{"):
                record = json.loads(line)
                if record.get("type") == "event":
                    found.append((record["kind"], int(record.get("gpa", "0"), 16)))
            else:
                event = re.search(r"#\d+ +vcpu\d+ +(\w+) +(?:.*? gpa (0x[0-9a-f]+))?", line)
                if event:
                    found.append((event[1], int(event[2] or "0", 16)))
        return found

    def hypervisor_events(self, guest):
        """Events that the guest's hypervisor has made so far, by its own count."""
        seen = len(self.lines["guest"])
        guest.send_signal(signal.SIGUSR1)
        line = self.wait("the hypervisor's counts", lambda: [text for text in self.lines["guest"][seen:] if text.startswith("{")])[0]
        return sum(vcpu["events"] for vcpu in json.loads(line)["vcpus"])

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

    def hook(self, agent_socket, guest, ram):
        """One more agent lays a breakpoint and takes a page's rights; the others see neither, and kill -9 ends both."""
        place = ram.number(MAILBOX + HAMMER_GPA)
        own = ram.read(place, FUNCTION_BYTES)

        def holdings():
            """What each agent holds, as `kvmictl agents` tells it: pages that it took rights from, patches."""
            agents = json.loads(self.ctl("agents", "--json"))["agents"]
            return {agent["name"]: (agent["pages"], agent["patches"]) for agent in agents if agent["guest"]}

        def hits():
            return sum(event == ("breakpoint", place) for event in self.events_of("hook"))

        def faults():
            return sum(kind == "page_fault" and gpa & ~0xFFF == int(EXEC_PAGE, 16) for kind, gpa in self.events_of("hook"))

        def hammered(calls):
            """Has the guest made all calls that it was told to make, the last time so many?"""
            wanted = ram.field(ARG_HAMMER_CALLS)
            return min(wanted) >= calls and ram.field(HAMMER_CALLS) == wanted

        before = holdings()
        hook = self.start("hook", "kvmi-trace", "--socket", agent_socket, "--guest", GUEST, "--name", "hook", "--json",
                          "--kinds", "breakpoint,page_fault", "--break", hex(place), "--pages", EXEC_PAGE,
                          show=lambda line: line if not line.startswith("{") else None)
        self.wait("the hook", lambda: ram.read(place, 1) == b"\xcc" and "hook" in self.agents())
        agents = holdings()
        self.say("  kvmictl agents: pages whose rights they took, patches: " + "; ".join(
            f"{name} {pages}, {patches}" for name, (pages, patches) in agents.items()))
        require(agents == {**before, "hook": (1, 1)}, "the hook has a page and a patch, the others what they had")

        raw, read = ram.read(place, FUNCTION_BYTES), self.ctl("mem", "read", GUEST, hex(place), str(FUNCTION_BYTES), "--raw")
        self.say(f"  guest RAM at {place:#x}     {raw.hex(' ')}   the hook's breakpoint (cc)")
        self.say(f"  kvmictl mem read of it    {read.hex(' ')}   the guest's own bytes, as every agent reads them")
        require(raw == b"\xcc" + own[1:] and read == own, "RAM has the breakpoint, and agents read the guest's own bytes")

        self.set_mode(ram, MODE_HAMMER)
        stepped, executed = self.counters()["stepped_over"], sum(ram.field(HAMMER_HITS))
        self.hammer(ram, CALLS)
        self.wait("the guest to make its calls", lambda: hammered(CALLS), 30)
        self.wait("the hook to print its hits", lambda: hits() >= CALLS * VCPUS)
        executed, stepped = sum(ram.field(HAMMER_HITS)) - executed, self.counters()["stepped_over"] - stepped
        self.say(f"  {VCPUS} vCPUs call the function {CALLS} times each: {executed} calls by the guest's count, {hits()} hits by the "
                 f"hook's, {stepped} stepped over by kvmid")
        require(executed == hits() == stepped == CALLS * VCPUS, "guest, hook and kvmid count the same")
        told = hits()
        self.set_mode(ram, MODE_EXEC)
        self.wait("page faults of the hook", lambda: faults() >= 50)
        self.say(f"  they execute code in the page: {faults()} page faults told to the hook so far")

        calls = sum(ram.field(HAMMER_HITS)) + LONG_CALLS * VCPUS
        self.say(f"  kill -9 of the hook, in the middle of {VCPUS} times {LONG_CALLS} calls more:")
        self.set_mode(ram, MODE_HAMMER)
        self.hammer(ram, LONG_CALLS)
        self.wait("the hook to be at it", lambda: hits() > CALLS * VCPUS + 100, 30)
        counters = self.counters()
        killed = time.monotonic()
        hook.kill()
        # Both, since the patch is off for a moment at each hit.
        self.wait("the hook to be gone", lambda: "hook" not in self.agents() and ram.read(place, FUNCTION_BYTES) == own)
        gone_ms = (time.monotonic() - killed) * 1000
        self.wait("the guest to make its calls", lambda: hammered(LONG_CALLS), 30)
        raw = ram.read(place, FUNCTION_BYTES)
        require(raw == own, "guest RAM is as before")
        require(hits() < calls, "the hook died in the middle")
        require(sum(ram.field(HAMMER_HITS)) == calls, "no call was lost and none was made twice")
        require(ram.field(EXCEPTIONS + 8 * 3) == ram.field(DONE + 8 * MODE_INT3), "the guest got no INT3 but its own")
        self.say(f"  guest RAM at {place:#x}     {raw.hex(' ')}   as before, {gone_ms:.1f} ms after the kill")
        self.say(f"  the guest made its calls, each once: the hook was told of {hits()}, nobody of the {calls - hits()} others")

        events, runs = self.hypervisor_events(guest), sum(ram.field(DONE + 8 * MODE_EXEC))
        self.hammer(ram, CALLS)
        self.wait("the guest to call on", lambda: hammered(CALLS), 30)
        self.set_mode(ram, MODE_EXEC)
        self.wait("the guest to execute on", lambda: sum(ram.field(DONE + 8 * MODE_EXEC)) >= runs + 50)
        events = self.hypervisor_events(guest) - events
        self.say(f"  {CALLS * VCPUS} calls more and {sum(ram.field(DONE + 8 * MODE_EXEC)) - runs} runs of the code in that page "
                 f"make {events} events, as the hypervisor counts")
        require(events == 0, "the hypervisor has neither the patch nor the rights any more")
        now = self.counters()
        require(all(now[name] == counters[name] for name in ("expired", "demoted")), "its death cost nobody a deadline")
        require(holdings() == before, "the others hold what they held before the hook came")
        self.say("  kvmictl agents shows what it showed before the hook came, and no deadline was missed")

        # What they see from now on comes behind all that happened meanwhile.
        seen = {name: len(self.events_of(name)) for name in ("guard", "trace")}
        self.set_mode(ram, MODE_ALL)
        self.wait("the others to see the guest again", lambda: all(len(self.events_of(name)) > seen[name] for name in seen))
        theirs = self.events_of("guard") + self.events_of("trace")
        wrong = [event for event in theirs if event[0] in ("breakpoint", "page_fault") and
                 (event[1] == place or event[1] & ~0xFFF == int(EXEC_PAGE, 16))]
        breakpoints = sum(kind == "breakpoint" for kind, _ in theirs)
        page_faults = sum(kind == "page_fault" for kind, _ in theirs)
        self.say(f"  guard and trace, which listen for such events too, saw {breakpoints} breakpoints and {page_faults} page faults of "
                 f"their own, {len(wrong)} of the hook's")
        require(not wrong and breakpoints > 0 and page_faults > 0, "they saw their own events and none of the hook's")
        return {"hook_hits": told, "hook_gone_after_kill_ms": round(gone_ms, 1), "hook_seen_by_others": len(wrong),
                "events_after_hook": events}

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

    def older(self, agent_socket):
        """A guest whose hypervisor speaks what patched KVM hosts do; the guard is the one of before."""
        guest = self.start("older", "kvmi-emu", "--socket", str(self.dir / "hypervisor.sock"), "--dialect", "v7", "--name",
                           OLDER_GUEST, "--uuid", OLDER_UUID, "--vcpus", str(VCPUS), "--quiet")
        known = self.wait("the guest of the older dialect", lambda: [
            entry for entry in self.get("/v1/guests")["guests"] if entry["name"] == OLDER_GUEST and entry["state"] == "online"])[0]
        require(known["dialect"] == "v7", "kvmid found out that it is v7")
        self.say(f"  kvmid found out that {OLDER_GUEST} speaks {known['dialect']}; agents can use {len(known['commands'])} commands "
                 f"and {len(known['events_supported'])} kinds of events there")
        ram = GuestRam(guest.pid)
        self.start("pin", "kvmi-guard", "--socket", agent_socket, "--guest", OLDER_GUEST, "--pin-lstar", NO_ENTRY, "--json")

        def denied():
            records = [json.loads(line) for line in list(self.lines["pin"]) if line.startswith("{")]
            return [record for record in records if record.get("decide") and record.get("decision") == "skip"]

        self.wait("a denied write of LSTAR", lambda: len({record["vcpu"] for record in denied()}) == VCPUS, 15)
        def writes(count):
            """The values that each vCPU reads back, until it has written so many times more."""
            begun = ram.field(DONE + 8 * MODE_MSR_LSTAR)
            seen = [set() for _ in range(VCPUS)]

            def done():
                for values, value in zip(seen, ram.field(LSTAR)):
                    values.add(value)
                return all(now >= was + count for now, was in zip(ram.field(DONE + 8 * MODE_MSR_LSTAR), begun))

            self.wait("more writes of LSTAR", done, 15)
            return seen

        writes(1)  # what was read back before the guard came is gone
        kept = writes(4)
        count = len(denied())
        self.say(f"  pin    | {count} writes of LSTAR denied so far; the guest reads back "
                 + " and ".join(f"{'/'.join(hex(value) for value in values)} (vcpu {vcpu})" for vcpu, values in enumerate(kept)))
        require(all(len(values) == 1 for values in kept), "LSTAR of the older guest stays as it was")
        return {"older_dialect": known["dialect"], "older_denied": count}

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
            "name": "demo", "match": {"uid": [os.getuid()]}, "guests": [GUEST, OLDER_GUEST], "commands": ["*"], "events": ["*"],
            "role": "decider", "priority": 10, "deadline_ms": DEADLINE_MS, "default": "allow", "strikes": 3}]}))
        agent_socket = str(self.dir / "agent.sock")

        self.say("\n1. kvmid, and a guest of two vCPUs that runs real code")
        self.start("kvmid", "kvmid", "--runtime-dir", str(self.dir), "--config", str(config), "--log-level", "warn")
        self.wait("kvmid's sockets", lambda: self.get("/v1/status"))
        guest = self.start("guest", "kvmi-emu", "--socket", str(self.dir / "hypervisor.sock"), "--name", GUEST, "--uuid", UUID,
                           "--vcpus", str(VCPUS), "--leave-ms", "200", "--quiet")
        self.wait("the guest", lambda: self.get("/v1/guests")["guests"])
        ram = GuestRam(guest.pid)
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
                   "--kinds", "cr,msr,breakpoint,page_fault", "--pages", PROTECTED_PAGE, show=self.first(9))
        self.wait("three agents", lambda: len(self.agents()) == 3)
        agents_seen = len(self.agents())
        self.wait("merged replies", lambda: self.counters()["merged"] >= 10, 15)
        self.wait("denied writes", lambda: self.denied_writes() >= 2, 15)
        time.sleep(0.3)
        self.say("  ...")
        for agent in self.agents().values():
            self.say(f"  agent {agent['id']} {agent['name']:<12} sees {', '.join(agent['events'])} "
                     f"(priority {agent['priority']}, deadline {agent['deadline_ms']} ms)")

        self.say(f"\n3. the second guard falls silent: its deadline of {DEADLINE_MS} ms answers for it, three times, then it only observes such events")
        self.wait("the silent guard to be made an observer", lambda: self.counters()["demoted"] >= 1, 15)
        second = next(a for a in self.agents().values() if a["demoted"])
        self.say(f"  agent {second['id']} {second['name']}: {second['expired']} deadlines missed, now an observer of {', '.join(second['demoted'])}; the guest goes on")

        self.say("\n4. a hook joins (kvmi-trace --break --pages): a breakpoint in a function of the guest, no rights for a page of code")
        hooked = self.hook(agent_socket, guest, ram)

        self.say("\n5. kill -9 of the guard while the guest waits for its reply")
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
        stored = ram.number(int(PROTECTED_PAGE, 16))
        self.wait("a write to the page that was protected", lambda: ram.number(int(PROTECTED_PAGE, 16)) != stored)
        self.say("  its page rights are gone: the guest's writes to the protected page arrive; the trace still sees the guest")

        self.say("\n6. one event of every kind, and user code in the guest")
        kinds, syscalls = self.every_kind(agent_socket)

        self.say("\n7. the guest is suspended: kvmid takes everything back first, and sets it up again afterwards")
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
            "agents": agents_seen + 1,  # the hook
            "event_kinds": kinds,
            "user_syscalls": syscalls,
            **hooked,
        }
        self.say("\n8. a patched KVM host brings a guest (kvmi-emu plays it, --dialect v7), and the same guard pins its LSTAR")
        summary.update(self.older(agent_socket), guests=len(self.get("/v1/guests")["guests"]))

        self.say("\nSummary")
        for key, text in (("guests", "guests"), ("agents", "agents at once"), ("events", "events of the guest"),
                          ("decided", "decided by agents"), ("merged", "of those merged from two votes or more"),
                          ("expired", "deadlines missed by the silent guard"), ("denied_writes", "writes to the protected page denied"),
                          ("hook_hits", "hits of the hook's breakpoint, counted by it and by the guest"),
                          ("hook_seen_by_others", "of its hits and page faults seen by others"),
                          ("hook_gone_after_kill_ms", "ms from kill -9 of the hook to the guest's own bytes being back"),
                          ("released_after_kill_ms", "ms from kill -9 of the guard to the vCPU going on"),
                          ("older_denied", "writes of LSTAR denied in the guest of an older dialect")):
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
