#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""kvmid over vsock, on a kernel that has it: Debian's, booted by QEMU without KVM, with our programs in its initramfs.

Neither this machine's kernel nor its privileges matter: hypervisor, broker and agents meet on the loopback CID inside.
What happens there is in init.sh; here it is packed, booted, watched and judged. Libraries are copied beside the programs,
as `ldd` names them: Debian has no static Unicorn, Zydis or spdlog, and none of libsystemd.

Skipped, with the reason, where QEMU or busybox is not installed, or where there is neither a Debian kernel on the
machine nor a way to download its package. A package is downloaded once, into the build folder, and not installed."""

import argparse
import os
import pathlib
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time

SKIPPED = 77  # what ctest shows as skipped
KERNEL = "linux-image-cloud-amd64"  # the smallest that has vsock
MODULE = "vsock_loopback"
PROGRAMS = ("kvmid", "kvmi-emu", "kvmictl", "kvmi-trace", "kvmi-guard", "dialect-tool")
BOUND_S = 240
STEPS = (
    "booted",
    "kvmid listens",
    "guest online",
    "policy goes by cid",
    "observer has events",
    "guard has denied",
    "guard killed, guest goes on",
    "all agents killed, guest goes on",
    "kvmid killed, guest is back",
    "a tool of v7 holds a guest of v12",
    "the tool killed, its guest goes on",
    "hypervisors go by cid",
)


def say(text):
    print(f"vsock_test: {text}", flush=True)


def skip(reason):
    say(f"SKIPPED: {reason}")
    sys.exit(SKIPPED)


def run(*command, cwd=None):
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, cwd=cwd)


# ---- the kernel ----


def modules_of(root, release):
    """Files of MODULE and what it needs, in the order to load them; none where they are not there."""
    folder = root / "lib" / "modules" / release / "kernel"
    found = {}
    for path in folder.glob("net/vmw_vsock/*.ko"):
        found[path.stem] = path
    order = []

    def add(name):
        if name in order:
            return True
        if name not in found:
            return False
        needs = re.search(rb"\0depends=([^\0]*)\0", b"\0" + found[name].read_bytes())
        if not all(add(need) for need in (needs[1].decode().split(",") if needs and needs[1] else [])):
            return False
        order.append(name)
        return True

    return [found[name] for name in order] if add(MODULE) else []


def kernel_below(root):
    """(image, modules) of a kernel that is unpacked below `root`; none."""
    for image in sorted((root / "boot").glob("vmlinuz-*"), reverse=True):
        modules = modules_of(root, image.name.removeprefix("vmlinuz-"))
        if modules and os.access(image, os.R_OK):
            return image, modules
    return None


def download_kernel(cache):
    """Unpacks Debian's kernel package into the cache. An error text where it cannot be had."""
    for tool in ("apt-get", "apt-cache", "dpkg-deb"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed"
    # The machine's package lists first, then lists of our own, which need no rights.
    own = cache / "apt"
    (own / "lists" / "partial").mkdir(parents=True, exist_ok=True)
    (own / "cache" / "archives" / "partial").mkdir(parents=True, exist_ok=True)
    own_lists = ["-o", f"Dir::State::lists={own / 'lists'}", "-o", f"Dir::Cache={own / 'cache'}"]
    error = ""
    for lists in ([], own_lists):
        if lists:
            say("reading Debian's package lists")
            if run("apt-get", *lists, "-q", "update").returncode != 0:
                return "the package lists cannot be read"
        depends = run("apt-cache", *lists, "depends", "--important", KERNEL).stdout
        package = re.search(r"Depends: (linux-image-\S+)", depends)
        if package is None:
            error = f"there is no package {KERNEL}"
            continue
        say(f"downloading {package[1]}")
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            got = run("apt-get", *lists, "-q", "download", package[1], cwd=folder)
            files = list(pathlib.Path(folder).glob("*.deb"))
            if got.returncode != 0 or not files:
                error = f"{package[1]} cannot be downloaded: {got.stdout.strip().splitlines()[-1:]}"
                continue
            # Whole or not there: a run that is cut short leaves nothing that the next one would take.
            unpacked = pathlib.Path(folder) / "unpacked"
            if run("dpkg-deb", "-x", str(files[0]), str(unpacked)).returncode != 0:
                error = f"{files[0].name} cannot be unpacked"
                continue
            kernel = kernel_below(unpacked)
            if kernel is None:
                error = f"{package[1]} has no {MODULE}"
                continue
            kept = cache / "kernel"
            shutil.rmtree(kept, ignore_errors=True)
            small = pathlib.Path(folder) / "small"  # of 100 MB of modules these few are used
            for path in (kernel[0], *kernel[1]):
                target = small / path.relative_to(unpacked)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)
            small.rename(kept)
        shutil.rmtree(own, ignore_errors=True)
        return None
    return error


def find_kernel(cache):
    cache.mkdir(parents=True, exist_ok=True)
    for root in (cache / "kernel", pathlib.Path("/")):
        kernel = kernel_below(root)
        if kernel:
            return kernel
    error = download_kernel(cache)
    if error:
        skip(f"no Debian kernel package is here, and {error}")
    return kernel_below(cache / "kernel")


# ---- the initramfs ----


class Archive:
    """A cpio archive in the newc form, which is what the kernel unpacks."""

    def __init__(self, out):
        self.out = out
        self.inode = 1
        self.folders = set()

    def entry(self, name, mode, data=b"", device=(0, 0)):
        fields = (self.inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name) + 1, 0)
        self.inode += 1
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        self.out.write(head + b"\0" * (-len(head) % 4) + data + b"\0" * (-len(data) % 4))

    def folder(self, name):
        parent = name.rpartition("/")[0]
        if name and name not in self.folders:
            self.folder(parent)
            self.folders.add(name)
            self.entry(name, stat.S_IFDIR | 0o755)

    def file(self, name, data, mode=0o644):
        self.folder(name.rpartition("/")[0])
        self.entry(name, stat.S_IFREG | mode, data)

    def link(self, name, target):
        self.folder(name.rpartition("/")[0])
        self.entry(name, stat.S_IFLNK | 0o777, target.encode())

    def end(self):
        self.entry("TRAILER!!!", 0)


def stripped(path):
    """The file without its debug information: a machine of 512 MiB holds all of this in memory."""
    with tempfile.NamedTemporaryFile() as out:
        if shutil.which("strip") and run("strip", "-o", out.name, str(path)).returncode == 0:
            return pathlib.Path(out.name).read_bytes()
    return path.read_bytes()


def libraries_of(paths):
    """What ldd names: {path inside: file}."""
    found = {}
    for path in paths:
        listed = run("ldd", str(path)).stdout
        if "not found" in listed:
            sys.exit(f"vsock_test: {path} lacks a library:\n{listed}")
        for line in listed.splitlines():
            match = re.search(r"(?:=> )?(/\S+) \(0x", line)
            if match:
                found[match[1]] = pathlib.Path(match[1])
    return found


def write_initramfs(path, busybox, modules):
    here = pathlib.Path(__file__).resolve().parent
    programs = [arguments.bin / name for name in PROGRAMS]
    with open(path, "wb") as out:
        archive = Archive(out)
        archive.folder("dev")
        archive.entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1))
        archive.file("init", (here / "init.sh").read_bytes(), 0o755)
        archive.file("etc/kvmid.json", (here / "kvmid.json").read_bytes())
        archive.file("bin/busybox", pathlib.Path(busybox).read_bytes(), 0o755)
        for applet in run(busybox, "--list").stdout.split():
            if applet != "busybox":
                archive.link(f"bin/{applet}", "busybox")
        for program in programs:
            archive.file(f"bin/{program.name}", stripped(program), 0o755)
        for name, file in libraries_of(programs).items():
            archive.file(name.lstrip("/"), stripped(file.resolve()), 0o755)
        for module in modules:
            archive.file(f"modules/{module.name}", module.read_bytes())
        archive.file("modules/order", " ".join(module.stem for module in modules).encode())
        archive.end()
    return path.stat().st_size


# ---- the machine ----


def boot(qemu, image, initramfs):
    """Lines of the serial console, until QEMU ends or the time is over."""
    command = [
        qemu, "-machine", "q35", "-accel", "tcg", "-cpu", "max", "-smp", "2", "-m", "512", "-nodefaults", "-nographic",
        "-no-reboot", "-serial", "stdio", "-net", "none", "-kernel", str(image), "-initrd", str(initramfs),
        "-append", "console=ttyS0 quiet loglevel=4 panic=-1 rdinit=/init",
    ]  # fmt: skip
    begun = time.monotonic()
    machine = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    watchdog = threading.Timer(BOUND_S, machine.kill)
    watchdog.start()
    console = []
    try:
        for line in machine.stdout:
            line = line.rstrip()
            console.append(line)
            if line.startswith("KVMID-VSOCK "):
                say(f"{time.monotonic() - begun:5.1f} s  {line}")
        machine.wait()
    finally:
        watchdog.cancel()
        machine.kill()
    return console, time.monotonic() - begun


def judge(console):
    """What is wrong with the run; none."""
    verdicts = [line for line in console if re.match(r"KVMID-VSOCK (ok|failed)\b", line)]
    if not verdicts:
        return f"the machine ended, or its {BOUND_S} s were over, without a verdict"
    match = re.fullmatch(r"KVMID-VSOCK ok events=(\d+) denied=(\d+)", verdicts[-1])
    if match is None:
        return verdicts[-1]
    if int(match[1]) < 10 or int(match[2]) < 5:
        return f"too little happened: {verdicts[-1]}"
    steps = [line.removeprefix("KVMID-VSOCK step ") for line in console if line.startswith("KVMID-VSOCK step ")]
    if len(steps) != len(STEPS) or not all(step.startswith(wanted) for step, wanted in zip(steps, STEPS)):
        return f"other steps than expected: {steps}"
    return None


def main():
    qemu = shutil.which("qemu-system-x86_64")
    if qemu is None:
        skip("qemu-system-x86_64 is not installed (Debian: qemu-system-x86)")
    busybox = shutil.which("busybox")
    if busybox is None:
        skip("busybox is not installed (Debian: busybox-static)")
    if "not a dynamic executable" not in run("ldd", busybox).stdout:
        skip("busybox is not static (Debian: busybox-static)")
    image, modules = find_kernel(arguments.cache)
    say(f"kernel {image.name}, modules {' '.join(module.stem for module in modules)}")
    with tempfile.TemporaryDirectory(prefix="kvmid-vsock-") as folder:
        initramfs = pathlib.Path(folder) / "initramfs"
        size = write_initramfs(initramfs, busybox, modules)
        say(f"initramfs of {size >> 20} MiB; booting")
        console, seconds = boot(qemu, image, initramfs)
    error = judge(console)
    if error:
        print("\n".join(["---- console", *console, "---- end of console"]))
        say(f"FAILED after {seconds:.0f} s: {error}")
        return 1
    say(f"ok, {seconds:.0f} s")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bin", type=pathlib.Path, required=True, help="folder with our programs")
    parser.add_argument("--cache", type=pathlib.Path, required=True, help="folder for the kernel")
    arguments = parser.parse_args()
    sys.exit(main())
