#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The units in systemd/: nobody but the groups reaches a socket, systemd understands every line, and the service can do
little to the machine. What needs systemd's own tools is skipped by name where they are not installed."""

import argparse
import configparser
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

EXPOSURE_MAX = 2.0
SKIPPED = 77  # what ctest shows as skipped
SOCKETS = {
    "kvmid-hypervisor.socket": ("hypervisor", "/run/kvmid/hypervisor.sock", "kvmid-hypervisors"),
    "kvmid-agent.socket": ("agent", "/run/kvmid/agent.sock", "kvmid-agents"),
    "kvmid-admin.socket": ("admin", "/run/kvmid/admin.sock", "kvmid-admin"),
}
arguments = argparse.Namespace()


def unit(name):
    """Sections of a unit; a key that is there several times has the list of its values."""

    class Repeated(dict):
        def __setitem__(self, key, value):
            if isinstance(value, list) and key in self and isinstance(self[key], list):
                self[key].extend(value)
            else:
                super().__setitem__(key, value)

    parser = configparser.RawConfigParser(strict=False, dict_type=Repeated, delimiters=("=",))
    parser.optionxform = str
    parser.read_string((arguments.units / name).read_text())
    return {section: {key: value.split("\n") for key, value in parser.items(section)} for section in parser.sections()}


def needs(program):
    return unittest.skipUnless(shutil.which(program), f"{program} is not installed")


def run(*command):
    plain = dict(os.environ, SYSTEMD_COLORS="0", SYSTEMD_PAGER="", SYSTEMD_LOG_LEVEL="info", LC_ALL="C.UTF-8")
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, env=plain)
    return done.returncode, done.stdout


class Units(unittest.TestCase):
    def test_the_three_sockets_are_the_only_ones(self):
        self.assertEqual({path.name for path in arguments.units.glob("*.socket")}, set(SOCKETS))

    def test_no_socket_is_open_to_everybody(self):
        for name in SOCKETS:
            with self.subTest(name):
                # systemd's default is 0666: the mode must be said.
                modes = unit(name)["Socket"]["SocketMode"]
                self.assertEqual(len(modes), 1)
                self.assertEqual(int(modes[0], 8) & 0o007, 0, f"SocketMode={modes[0]} lets everybody in")

    def test_each_socket_has_the_name_the_path_and_the_group_that_kvmid_expects(self):
        for name, (descriptor, path, group) in SOCKETS.items():
            with self.subTest(name):
                socket = unit(name)["Socket"]
                self.assertEqual(socket["FileDescriptorName"], [descriptor])
                self.assertEqual(socket["ListenStream"], [path])
                self.assertEqual(socket["SocketGroup"], [group])
                self.assertEqual(socket["SocketUser"], ["root"])
                self.assertEqual(socket["Service"], ["kvmid.service"])

    def test_every_group_and_user_of_a_unit_is_made_by_sysusers(self):
        made = {}
        for line in (arguments.units / "kvmid.sysusers").read_text().splitlines():
            if line and not line.startswith("#"):
                kind, name = line.split()[:2]
                made.setdefault(kind, set()).add(name)
        self.assertEqual(made["u"], {"kvmid"})
        self.assertEqual(made["g"], {group for _, _, group in SOCKETS.values()})
        service = unit("kvmid.service")["Service"]
        self.assertEqual((service["User"], service["Group"]), (["kvmid"], ["kvmid"]))

    def test_the_service_keeps_what_the_policy_needs(self):
        service = unit("kvmid.service")["Service"]
        # In a user namespace SO_PEERCRED says nobody's uid for every peer.
        self.assertEqual(service["PrivateUsers"], ["no"])
        # The folder of the sockets must not go when the service stops.
        self.assertNotIn("RuntimeDirectory", service)
        self.assertEqual(service["Type"], ["notify"])
        self.assertEqual(service["CapabilityBoundingSet"], [""])

    def test_the_example_configuration_has_the_paths_of_the_sockets(self):
        text = (arguments.units.parent / "config" / "kvmid.json").read_text()
        for _, path, _ in SOCKETS.values():
            self.assertIn(f'"{path}"', text)


class Tools(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="kvmid-units-")
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    @needs("systemd-analyze")
    def test_systemd_understands_every_line(self):
        names = ["kvmid.service", *SOCKETS]
        for name in names:
            text = (arguments.units / name).read_text().replace("/usr/sbin/kvmid", str(arguments.kvmid))
            (self.folder / name).write_text(text)
        units = [str(self.folder / name) for name in names]
        code, output = run("systemd-analyze", "verify", "--recursive-errors=no", *units)
        about_ours = [line for line in output.splitlines() if "kvmid" in line]
        self.assertEqual((code, about_ours), (0, []), output)

    @needs("systemd-analyze")
    def test_a_line_that_systemd_does_not_understand_is_found(self):
        text = (arguments.units / "kvmid.service").read_text().replace("/usr/sbin/kvmid", str(arguments.kvmid))
        (self.folder / "kvmid.service").write_text(text.replace("NoNewPrivileges=yes", "NoNewPrivilege=yes"))
        for name in SOCKETS:
            shutil.copy(arguments.units / name, self.folder)
        _, output = run("systemd-analyze", "verify", "--recursive-errors=no", str(self.folder / "kvmid.service"))
        self.assertIn("NoNewPrivilege", output)

    @needs("systemd-analyze")
    def test_the_service_can_do_little(self):
        service = str(arguments.units / "kvmid.service")
        code, output = run("systemd-analyze", "security", "--offline=true", "--no-pager", service)
        found = re.search(r"Overall exposure level for kvmid\.service: ([0-9.]+)", output)
        self.assertIsNotNone(found, output)
        print(f"exposure {found[1]}")
        self.assertLessEqual(float(found[1]), EXPOSURE_MAX, output)
        self.assertEqual(code, 0, output)

    @needs("systemd-sysusers")
    def test_sysusers_makes_the_users(self):
        (self.folder / "etc").mkdir()
        users = str(arguments.units / "kvmid.sysusers")
        code, output = run("systemd-sysusers", f"--root={self.folder}", "--dry-run", users)
        self.assertEqual(code, 0, output)
        for name in ["kvmid", *(group for _, _, group in SOCKETS.values())]:
            self.assertRegex(output, rf"(Creating|Would create) (user|group) '{name}'")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--units", type=pathlib.Path, required=True)
    parser.add_argument("--kvmid", type=pathlib.Path, required=True)
    parser.add_argument("suite", choices=["Units", "Tools"])
    arguments = parser.parse_args(namespace=arguments)
    result = unittest.main(argv=[sys.argv[0], "-v", arguments.suite], exit=False).result
    if result.wasSuccessful() and len(result.skipped) == result.testsRun:
        sys.exit(SKIPPED)
    sys.exit(0 if result.wasSuccessful() else 1)
