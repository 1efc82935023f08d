# SPDX-License-Identifier: Apache-2.0
"""Which paths of /etc are no configuration of the owner's: the machine's own state, and what programs generate. Pure."""

from __future__ import annotations

#: ssh's host keys: ``ssh/ssh_host_KIND_key`` and its public half.
HOST_KEY_TYPES = ("ecdsa", "ed25519", "rsa")
#: What typed machine state covers (``freehold.boot.machine_files``).
STATE = (
    "passwd", "passwd-", "group", "group-", "shadow", "shadow-", "gshadow", "gshadow-", "subuid", "subuid-", "subgid", "subgid-",
    "machine-id", "hostname",
    *(f"ssh/ssh_host_{kind}_key{suffix}" for kind in HOST_KEY_TYPES for suffix in ("", ".pub")),
)  # fmt: skip
#: In a committed image: what its author said about it, for `freehold etc history`.
COMMIT_FILE = ".freehold-commit"
#: Made by programs at run time or from the image.
GENERATED = (".pwd.lock", ".updated", "mtab", "resolv.conf", "ld.so.cache", "adjtime", COMMIT_FILE)
#: Never part of a committed configuration, and never drift.
IGNORED = frozenset((*STATE, *GENERATED))
