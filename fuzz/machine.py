# SPDX-License-Identifier: Apache-2.0
"""Target: typed machine state, as root left it on the disk (JSON) and as it is collected from a running /etc (texts).

Whatever is believed is data: rendered into /etc it adds ordinary people and host keys, and nothing else. The rules are written
here once more, in other words than the code's.
"""

from __future__ import annotations

from freehold.errors import InputError
from freehold.lock import machine
from freehold.lock.machine import AccountFiles, MachineState
from fuzz.engine import must

WORDS = (
    b"root", b"anna", b"sudo", b"dora", b"\n", b":", b":0:0:", b"/bin/bash", b"/usr/sbin/nologin", b"/home/anna",
    b"/var/home/b", b"1000", b"59999", b"60000", b"100000", b"!*", b"$y$j9T$abcdefghijk$lmnopqrstuv", b"\\n",
    b"\\u0000", b"\\ud800", b"ed25519", b"rsa", b"-----BEGIN OPENSSH PRIVATE KEY-----\\n", b"command=",
    b"\xe2\x80\xa8",
)  # fmt: skip
BASE = AccountFiles(
    "root:x:0:0:root:/root:/bin/bash\nsshd:x:990:65534::/run/sshd:/usr/sbin/nologin\n"
    "keeper:x:2000:2000::/home/keeper:/bin/bash\n",
    "root:x:0:\nsudo:x:27:dora,emil\nshadow:x:42:\nkeeper:x:2000:\n", "root:*:1::::::\n", "root:*::\n",
    "keeper:100000:65536\n", "",
)  # fmt: skip
_WIDTHS = {"passwd": 7, "group": 4, "shadow": 9, "gshadow": 4, "subuid": 3, "subgid": 3}
_SHELLS = {f"{place}/{name}" for place in ("/bin", "/usr/bin") for name in ("bash", "sh")} | {"/bin/dash"}
_SHELLS |= {"/usr/sbin/nologin", "/sbin/nologin"}
_TAKEN = {"root", "sshd", "keeper", "sudo", "shadow", "dora", "emil"}


def _line(name: str, line: str) -> None:
    cells = line.split(":")
    must(len(cells) == _WIDTHS[name], f"a line of {name} has its fields")
    must(line.isprintable() or not any(one in line for one in "\n\r\0"), f"a line of {name} is one line")
    must(cells[0] not in _TAKEN and cells[0].isascii() and cells[0].strip("_-") != "", "a name that the image has is the image's")
    if name == "passwd":
        must(1000 <= int(cells[2]) <= 59_999 and 1000 <= int(cells[3]) <= 59_999, "nobody is the system")
        must("2000" not in cells[2:4], "a number that the image has is the image's")
        must(cells[1] == "x" and cells[6] in _SHELLS, "a shell is one of the list")
        must(cells[5].startswith(("/home/", "/var/home/")) and ".." not in cells[5], "a home is below /home")
    elif name == "group":
        must(1000 <= int(cells[2]) <= 59_999 and cells[3] == "", "nobody is in another's group")
    elif name in ("shadow", "gshadow"):
        must(cells[1] != "", "nobody logs in without a password")
    else:
        must(int(cells[1]) >= 100_000 and int(cells[1]) + int(cells[2]) <= 1 << 32, "subordinate ids are nobody else's")


def believed(state: MachineState) -> None:
    """What has to hold of every state that is believed."""
    must(machine.parse(machine.serialize(state).encode()) == (state, []), "what is believed is believed again")
    name = state.hostname
    plain = name.isascii() and len(name) <= 64 and name.replace("-", "").replace(".", "").isalnum()
    must(plain or name == "", "a host name is one")
    for key in state.host_keys:
        must(key.type in ("rsa", "ecdsa", "ed25519"), "a key is of a known kind")
        must(key.private.isascii() and key.private.startswith("-----BEGIN OPENSSH PRIVATE KEY-----\n"), "a key is a key")
        must(key.public.isascii() and key.public.count("\n") == 1 and key.public.endswith("\n"), "a public key is one line")
        must(key.public.startswith(("ssh-", "ecdsa-")), "a public key has no options before it")
    files = machine.render(BASE, state.accounts)
    for name in _WIDTHS:
        base, text = getattr(BASE, name), getattr(files, name)
        must(text.startswith(base), "the image's own lines come first")
        lines = text[len(base) :].split("\n")
        must(lines.pop() == "", "the last line ends")
        for line in lines:
            _line(name, line)
        names = [line.partition(":")[0] for line in lines]
        must(len(names) == len(set(names)), "nobody is there twice")


def one(data: bytes) -> object:
    """JSON, or the texts of a running /etc with zeros between them."""
    if not data.startswith(b"{"):
        texts = [part.decode(errors="replace") for part in (data.split(b"\0") + [b""] * 6)[:6]]
        hostname, passwd, shadow, subuid, private, public = texts
        state, dropped = machine.collect(hostname, passwd, shadow, subuid, {"ed25519": (private, public)})
        believed(state)
        return "etc", len(state.accounts) > 0, len(state.host_keys), state.hostname != "", min(len(dropped), 4)
    try:
        state, dropped = machine.parse(data)
    except InputError as error:
        return error.message.partition(":")[0]
    believed(state)
    return len(state.accounts) > 0, len(state.host_keys), state.hostname != "", min(len(dropped), 4)
