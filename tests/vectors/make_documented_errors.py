#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes documented_errors.json: every error that protocol/PROTOCOL.md says a message can be answered with.

The lines that begin with "- Errors" are read: sentences of the form "EINVAL when; when else. EBUSY when."

Each entry:
  message  name of the message; "*": any command
  id       KVMI_MSG_*; 0: any command
  error    name of the error
  number   as sent, without the sign
  told_by  "reply" of the command, or "notice": NOTICE REPLY_REFUSED
  served   false: only an end that serves more than this kvmid gives it
  when     the conditions, each a sentence for people

Run it without arguments to write the file; with --check it only says whether the file is up to date.
"""

import json
import pathlib
import re
import sys

TARGET = pathlib.Path(__file__).with_name("documented_errors.json")
DOCUMENT = pathlib.Path(__file__).resolve().parents[2] / "protocol" / "PROTOCOL.md"

KINDS = {"Errors": ("reply", True), "Errors by NOTICE": ("notice", True), "Errors where served": ("reply", False)}
NO_COMMANDS = ("EVENT", "EVENT_REPLY", "NOTICE", "GUEST_ON", "GUEST_OFF", "MEMORY_MAP_CHANGED")


def bullets(text):
    """The list items of a part of the document, each on one line."""
    items = []
    for line in text.splitlines():
        if line.startswith("- "):
            items.append(line[2:])
        elif line.startswith("  ") and items and items[-1] is not None:
            items[-1] += " " + line.strip()
        else:
            items.append(None)  # what follows is no item
    return [item for item in items if item]


def conditions(label, text, numbers):
    """(error, when) for each sentence of one line."""
    if text == "none of its own.":
        return
    if not text.endswith("."):
        sys.exit(f"PROTOCOL.md, {label}: the line does not end with a full stop: {text}")
    sentences = re.split(r"\. (?=E[A-Z0-9]{3,} )", text[:-1])
    seen = set()
    for sentence in sentences:
        error, _, when = sentence.partition(" ")
        if error not in numbers:
            sys.exit(f"PROTOCOL.md, {label}: \"{error}\" is no error of section 3: {sentence}")
        if not when or error in seen or ". " in when:
            sys.exit(f"PROTOCOL.md, {label}: not one \"{error} when; when else.\": {sentence}")
        seen.add(error)
        yield error, when.split("; ")


def entries_of(message, number, text, numbers):
    found = {}
    for item in bullets(text):
        label, colon, rest = item.partition(": ")
        if label not in KINDS:
            if label.startswith("Errors") or " Errors: " in item:
                sys.exit(f"PROTOCOL.md, {message}: errors on a line that this program does not read: {item}")
            continue
        if label in found or not colon:
            sys.exit(f"PROTOCOL.md, {message}: two lines of \"{label}\", or none")
        found[label] = rest
    for label, rest in found.items():
        told_by, served = KINDS[label]
        for error, when in conditions(f"{message}, {label}", rest, numbers):
            yield {"message": message, "id": number, "error": error, "number": numbers[error], "told_by": told_by,
                   "served": served, "when": when}
    if number and message not in NO_COMMANDS and "Errors" not in found:
        sys.exit(f"PROTOCOL.md, {message}: the entry has no line \"Errors\"")


def main():
    text = DOCUMENT.read_text(encoding="utf-8")
    numbers = {name: int(number) for name, number in re.findall(r"^\| KVMI_(E\w+) \| (\d+) \|", text, re.MULTILINE)}
    general = text[text.index("\n## 3. "):text.index("\n## 4. ")]
    entries = list(entries_of("*", 0, general, numbers))
    if not entries:
        sys.exit("PROTOCOL.md: section 3 has no errors of any command")
    parts = re.split(r"^### (\d+) (\w+)$", text[text.index("\n## 5. "):], flags=re.MULTILINE)
    for number, message, body in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        entries += entries_of(message, int(number), re.split(r"^##", body, flags=re.MULTILINE)[0], numbers)

    result = "[\n" + ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries) + "\n]\n"
    if sys.argv[1:] == ["--check"]:
        if not TARGET.exists() or TARGET.read_text(encoding="utf-8") != result:
            sys.exit(f"{TARGET.name} is not what this program writes")
        return
    TARGET.write_text(result, encoding="utf-8")
    print(f"{TARGET.name}: {len(entries)} pairs of a message and an error")


if __name__ == "__main__":
    main()
