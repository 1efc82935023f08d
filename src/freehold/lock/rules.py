# SPDX-License-Identifier: Apache-2.0
"""The guard's rules in words: what each refuses, why, and what helps. Pure; one row per rule of ``bpf/guard.h``.

The reporter's C table (``early/refusal_words.h``) and the journal's catalog are rendered from here, see
``tests/unit/lab_rules.py``. An ``id`` is the journal's MESSAGE_ID of the rule for good: never change or reuse one.
"""

from __future__ import annotations

from typing import NamedTuple


class Way(NamedTuple):
    """One way to have what was refused: in words, and as a command with ``FILE`` for the refused file, or empty."""

    text: str
    command: str = ""


class Rule(NamedTuple):
    """``act`` completes "was not allowed to"; in it ``{path}`` and ``{detail}`` stand for what the record says."""

    name: str
    id: str
    act: str
    why: str
    ways: tuple[Way, ...]


_SIGN = (
    Way("sign the file; where the owner's key is", "fsverity sign FILE FILE.sig --key=owner.key --cert=owner.crt"),
    Way("then here, with FILE on a file system that keeps it (/var does, /tmp and /run do not)",
        "fsverity enable FILE --signature=FILE.sig"),
)  # fmt: skip
_USER = Way("or run it as a user, who may run anything unless all code is bound; in a unit: User= or DynamicUser=yes",
            "systemd-run --pipe --wait --property=DynamicUser=yes FILE")  # fmt: skip
_UNIT = Way("run the program as a user, who may do this unless all code is bound; in its unit: User= or DynamicUser=yes")
_PACKAGE = Way("or, where a Debian package has it, ask for the package", "freehold install PACKAGE --request install.request")
_RECIPE = Way("or put it into the next release: `packages` or [[files]] of the recipe")
#: A module needs a signature of its own, besides what makes its file trusted.
SIGN_MODULE = Way("a kernel module of your own: sign it first; where the owner's key is",
                  "freehold key sign-module FILE --key file:owner.key")  # fmt: skip
_OPEN = Way("nothing allows this under the lock; the owner opens the machine at its next boot",
            "freehold unlock --request unlock.request")  # fmt: skip
_NEVER = Way("nothing allows this, and no program of the system needs it: look at who tried")

RULES = (
    Rule("exec", "f95542191300422797bfe99c3d214d79", "run {path}: the file is not signed",
         "A privileged process starts only files of the sealed tree, and files with a signature of the keychain; after "
         "`freehold lock --all-code` every process does.",
         (*_SIGN, _USER, _PACKAGE, _RECIPE)),
    Rule("gain", "911c04d6f60d43f2bead4c55eedba72f", "run {path}: it would change the user or group, and is not signed",
         "A set-uid or set-gid program outside the sealed tree would give its caller rights that nobody signed.",
         (Way("take the bits away; it then runs with its caller's rights", "chmod u-s,g-s FILE"), *_SIGN)),
    Rule("map", "7b357225949c4662b320e188fc7015e5", "load code from {path}: the file is not signed",
         "A library is code of the process that loads it, and must be sealed or signed like a program.",
         (*_SIGN, _UNIT, _PACKAGE, _RECIPE)),
    Rule("map-writable", "1b101910e49c4d9d9c29fe866c8185f5", "map {path} writable and executable at once",
         "Memory that is both could be filled with code that nobody signed.", (_UNIT,)),
    Rule("anonymous", "aff0fd711c95435ab94991e7c7e723b2", "make code in memory at run time (it is {path})",
         "Code that a program makes at run time, as just-in-time compilers do, has no file that could be signed.",
         (Way("switch the program's just-in-time compiler off, where it has such an option"), _UNIT)),
    Rule("modified", "2a133527929b41b59934d4087e5a294a", "run code of {path} that was changed in memory",
         "A private copy of a signed file that was written to is no longer what was signed.", (_UNIT,)),
    Rule("ptrace", "3c4857c3e0004eae96e3e49f2a878fca", "attach to a privileged process of {path}",
         "Who can write into a privileged process can have it run anything. Users' own processes may be traced.", (_OPEN,)),
    Rule("capability", "7927b02d086b4c7a8e31406c49ef3056", "use capability {detail}, which leads past the lock (it is {path})",
         "CAP_SYS_RAWIO (17) reaches disks and memory directly, CAP_MAC_ADMIN (33) changes security modules.", (_OPEN,)),
    Rule("kernel-file", "c64e094179f34ee2b608cede3d616f61", "have the kernel load {path}",
         "Modules, firmware, kexec images and policies come from the sealed tree or from signed files. A few modules that hand "
         "out disks are refused wherever they come from.",
         (Way("where a Debian package has it, ask for the package", _PACKAGE.command), _RECIPE, SIGN_MODULE, *_SIGN)),
    Rule("block", "ff643c61739847a9adeb2eb33b907d15", "use {path} below the file systems",
         "Writing to raw disks, and reading the system's own, goes past every check of files.", (_OPEN,)),
    Rule("helper", "21a4a9669e7045e3869c95fac58b9a97", "have the kernel start programs by {path}",
         "The kernel would start what is named there as root.",
         (Way("a value that the owner signs, as a kernel argument",
              "freehold kargs --append sysctl.NAME=VALUE --request kargs.request"),)),
    Rule("memory-file", "3aeaf739cd8f431d88e8413c5c77450e", "write to the memory of a process ({path})",
         "By this file code could be put into a process.", (_OPEN,)),
    Rule("securityfs", "1874379776cd4212907893449e6976e5", "switch a security module by {path}",
         "What AppArmor and IPE enforce stays in force. Loading profiles is allowed.", (_OPEN,)),
    Rule("mount", "46c88b19fe744a67904827f1f52519b2", "mount over {path}, or move a mount there",
         "What lies over /, /usr, /etc or the owner's directory would take their place.",
         (Way("in a service, for the service alone: BindPaths= or BindReadOnlyPaths= in its unit"),
          Way("for /etc: change it, and keep the change", "freehold etc commit"))),
    Rule("umount", "fa4dd5b8e0bb4bf9bb92060336fbd7c2", "unmount {path}",
         "The system's own mounts, and those of the guard, stay.", (_OPEN,)),
    Rule("pivot", "9b0f1e93aa884ed88f598bb794d3ed94", "make {path} the root of the system",
         "Another root would bring another system (soft-reboot, switch-root).", (Way("reboot instead", "systemctl reboot"),)),
    Rule("pin", "1c8b07a1f13b4329b693a475e6e84ed4", "change the guard's own {path}",
         "By these files the guard stays in force until power-off.", (_NEVER,)),
    Rule("map-fd", "ac49f1b9053147aa97284f6ea1ead4c5", "open one of the guard's own tables",
         "Who could write there could switch the lock off.", (_NEVER,)),
    Rule("program", "845a9c0bca0845b5b0274a029dbf08b0", "load a BPF program of a kind that is refused (type {detail})",
         "Tracing, LSM and similar programs can watch or change the kernel. Those of cgroups, sockets, tc and XDP are allowed.",
         (_OPEN,)),
    Rule("owner", "7af781a086d44b61bc2725334f80a993", "change {path} in the owner's directory",
         "What lies there decides about the next boot. The owner changes it by a signed intent: lock, unlock, kargs, install.",
         (_OPEN,)),
    Rule("secret", "198e3bba27bc4844bf6b853776dd07dc", "look into the owner's secrets, or at who uses them ({path})",
         "The machine's key is read by the updater only.",
         (Way("what needs the key is done by the updater", "freehold apply"),)),
    Rule("observe", "2009855f40b74debbdb5149c81add62f", "watch other processes through the kernel ({path})",
         "Perf events and tracing show the memory of others. Reading tracefs is allowed.", (_OPEN,)),
    Rule("identity", "60e839bc28774be6bd4b195e8dc81d30", "call itself another program (it is {path})",
         "The guard goes by the file that a process runs.", (_NEVER,)),
    Rule("script", "75b07fa44234422484fa5e0580e6c533", "run the text of {path}: the file is not signed",
         "An interpreter that runs as root takes its text from the sealed tree and from signed files; after "
         "`freehold lock --all-code` every interpreter does.",
         (*_SIGN, _USER, _PACKAGE, _RECIPE)),
    Rule("launch", "65950bb4a91b4ebab13b218dfdaf70f1", "start {path} without a signed script",
         "In tier S2 a privileged interpreter runs a script that is a signed file, said by its path, and nothing else: no code "
         "in its arguments or on its input, no prompt, no options that bring either. It was killed before it ran a line.",
         (Way("put the text into a script of the next release ([[files]] of the recipe) and start that; of units the build does "
              "it where the recipe says [lock] tier = \"S2\""),
          Way("or run it as a user, whose shells are free: in a unit User= or DynamicUser=yes"), _OPEN)),
    Rule("terminal", "e1cb058b701d433c8a77c7da8354abea", "type into the terminal {path} in the place of who sits there",
         "What is put into a terminal that way (TIOCSTI) would be taken for its user's own words.", (_OPEN,)),
)  # fmt: skip
#: For a rule that a newer guard has and this table not.
OTHER = Rule("other", "638cd977b2934358a5374482ff7becac", "do what the guard refuses ({path})",
             "This release has no words for the rule: docs/guard.md of the release that has it explains it.", ())  # fmt: skip
#: More refusals than lines in one interval.
FLOOD = "9db9a24d27a0478a9e3386e146dad9b4"
#: Sessions of emergency ssh, as ``early/emergency_shell.c`` tells them: MESSAGE_ID, subject, explanation.
SESSIONS = (
    ("61d189d958fc47eb9af7dbac314319f4", "An emergency session bypasses the lock",
     "Who has the key that the owner named in `freehold lock --emergency-ssh` logged in at the emergency ssh server. What this "
     "session starts may be unsigned, until it ends."),
    ("8f8dcdd0864a4263ac370e5b8eee1b9c", "An emergency session does not bypass the lock",
     "One session at a time bypasses the lock, and another one did; or the machine is not locked by a key's choice."),
    ("f01d5e7d47024ca99250fe0bae098cad", "An emergency session ended",
     "What it had started was ended with it. Nothing that still runs is exempt from the lock."),
)  # fmt: skip
_BY_NAME = {rule.name: rule for rule in RULES}


def rule(name: str) -> Rule:
    """The row of the rule ``name``; for a name without one :data:`OTHER`'s words."""
    return _BY_NAME.get(name, OTHER)
