# SPDX-License-Identifier: Apache-2.0
"""What a user does on such a machine all day, and must go on doing while it is locked."""

from __future__ import annotations

from attack.persistence.judge import MINE as CANARY
from attack.persistence.kinds.live import CHILD, END, python
from attack.persistence.model import Live
from attack.persistence.payload import BENCH

#: A copy of the unsigned program, in the user's home.
MINE = f"native {CANARY}"
VENV = "python3 -m venv --without-pip ~/c-venv && ~/c-venv/bin/python -c 'import sys; sys.exit(sys.prefix == sys.base_prefix)'"
#: As alice, in a login session of hers.
ROWS: tuple[Live, ...] = tuple(
    Live(name, "O", title, act, allowed=True)
    for name, title, act in (
        ("c01-program", "a user's own program", f"~/{MINE}"),
        ("c02-script", "a user's own script", "printf '#!/bin/sh\\necho ran\\n' >~/c-script; chmod 755 ~/c-script; ~/c-script"),
        ("c03-venv", "a Python environment of a user's own", VENV),
        ("c04-memory", "a user's program that makes its own code", 'python3 -c "import mmap; mmap.mmap(-1, 4096, prot=7)"'),
        ("c05-namespaces", "namespaces of a user's own", f"unshare -Urmpf ~/{MINE}"),
        ("c06-podman", "a container of a user's own", "podman run --rm --network none --rootfs ~/rootfs /native"),
        ("c07-bubblewrap", "a program in bubblewrap",
         f"bwrap --ro-bind / / --proc /proc --dev /dev --unshare-all ~/{MINE}"),
        ("c08-user-unit", "a user's own unit", f"systemctl --user daemon-reload && systemd-run --user --wait --quiet ~/{MINE}"),
        ("c09-library", "a library of a user's own", f'test -z "$(LD_PRELOAD={BENCH}/library.so /usr/bin/true 2>&1)"'),
        ("c10-trace", "a user's own process, traced by the user",
         python(f"{CHILD}got = libc.ptrace(16, pid, 0, 0)\nerror = ctypes.get_errno(){END}if got:\n"
                "    print(os.strerror(error))\n    sys.exit(1)")),
    )
)  # fmt: skip
