# SPDX-License-Identifier: Apache-2.0
"""Who may log in, and as whom: accounts, PAM, ssh, sudo."""

from __future__ import annotations

from attack.persistence.model import READ_ONLY, Row
from attack.persistence.payload import (
    BENCH,
    KEYS,
    USERS,
    both,
    copy,
    lines,
    native,
    no_program,
    no_way_up,
    put,
    script,
    ssh,
    text,
)

ROOT_KEY, ETC_KEY, USER_KEY, STRANGER = KEYS
MODULES = "/usr/lib/x86_64-linux-gnu/security"
#: A hash that nobody has the password of.
HASH = "$6$planted$0123456789abcdefghijklmnopqrstuvwxyz"
LOGIN = "runuser -l alice -c true </dev/null"
ALICE_IN = ssh(USER_KEY, "alice", "true") + " || true"


def _uid_zero() -> str:
    return "echo 'a49::0:0::/root:/bin/bash' >>/etc/passwd\necho 'a49::1::::::' >>/etc/shadow\n"


STATE = """import json
path = "/sysroot/state/machine.json"
state = json.load(open(path))
state["accounts"].append({{
    "name": "{name}", "uid": {uid}, "gid": {uid}, "gecos": "", "home": "/home/{name}",
    "shell": "/bin/bash", "hash": "*", "subid": 0,
}})
json.dump(state, open(path, "w"))
"""


def _state(name: str, uid: int) -> str:
    """One more account in the machine's typed state."""
    return f"python3 -IS - <<'PLANTED'\n{STATE.format(name=name, uid=uid)}PLANTED\n"


def _keys(folder: str, key: str) -> str:
    return f"mkdir -p {folder}\nchmod 700 {folder}\ncat {BENCH}/{key}.pub >>{folder}/authorized_keys\n"


def _pam_exec() -> str:
    rules = f"session optional pam_exec.so {text('a47-pam-exec')}\nsession optional pam_exec.so {native('a47-pam-exec')}\n"
    return f"cat >>/etc/pam.d/runuser <<'PLANTED'\n{rules}PLANTED\n"


def _pam_module() -> str:
    library = f"{BENCH}/a46-pam-module.so"
    return copy("library.so", library) + f"echo 'session optional {library}' >>/etc/pam.d/runuser\n"


def _sshd() -> str:
    setting = f"AuthorizedKeysCommand {text('a56-sshd')}\nAuthorizedKeysCommandUser root\n"
    setting += f"TrustedUserCAKeys {BENCH}/{STRANGER}.pub"
    return put("/etc/ssh/sshd_config.d/00-a56.conf", setting)


def _environment() -> str:
    preload = copy("library.so", f"{BENCH}/b26-environment.so") + put(f"{BENCH}/b26-environment.sh", text("b26-environment"))
    words = f"LD_PRELOAD={BENCH}/b26-environment.so\nBASH_ENV={BENCH}/b26-environment.sh\n"
    return f"{preload}cat >>/etc/environment <<'PLANTED'\n{words}PLANTED\n"


ROWS = (
    Row("a46-pam-module", "K", "a module of PAM's that is a library of one's own", _pam_module(), ("a46-pam-module.native",),
        trigger=LOGIN),
    Row("a46-sealed-module", "U", "a module of PAM's in the sealed tree replaced", copy("library.so", f"{MODULES}/pam_deny.so"),
        control="closed", reason=READ_ONLY),
    Row("a47-pam-exec", "E", "a line of PAM's that starts programs", _pam_exec(), both("a47-pam-exec"), trigger=LOGIN),
    Row("a49-uid-zero", "E", "another account of uid 0", _uid_zero(), look="getent passwd a49 || true"),
    Row("a49-state", "V", "an account of uid 0 in the machine's typed state",
        _state("a49zero", 0), look="getent passwd a49zero || true",
        control="elsewhere", covered_by=("machine-state",), trace="machine state not believed.*a49zero"),
    Row("a50-group", "E", "a user put into a privileged group", "sed -i 's/^disk:.*/&alice/; s/^shadow:.*/&alice/' /etc/group\n",
        look="id -nG alice", found=r"\b(disk|shadow)\b"),
    Row("a50-account", "O", "an ordinary account in the machine's typed state: it is believed", _state("a50new", 5150),
        look="getent passwd a50new || true", found=":5150:", control="elsewhere", covered_by=("machine-state",)),
    Row("a51-hash", "X", "a password for root", f"sed -i 's,^root:[^:]*:,root:{HASH}:,' /etc/shadow\n",
        look="getent shadow root", found="planted"),
    Row("a52-shell", "E", "a system account with a shell and a password",
        "sed -i 's,^games:.*,games:x:5:60:games:/usr/games:/bin/bash,' /etc/passwd\n"
        f"sed -i 's,^games:[^:]*:,games:{HASH}:,' /etc/shadow\n",
        look="getent passwd games", found="/bin/bash"),
    Row("a54-root-key", "X", "a key for root in root's home", _keys("/root/.ssh", ROOT_KEY), ("a54-root-key",),
        trigger=f"{ssh(ROOT_KEY, 'root', text('a54-root-key'))} || true"),
    Row("a54-etc-key", "E", "a key for root in /etc",
        f"mkdir -p /etc/ssh/authorized_keys.d\ncat {BENCH}/{ETC_KEY}.pub >>/etc/ssh/authorized_keys.d/root\n", ("a54-etc-key",),
        trigger=f"{ssh(ETC_KEY, 'root', text('a54-etc-key'))} || true"),
    Row("a55-user-key", "O", "a key for a user: it is the user's", _keys("/home/alice/.ssh", USER_KEY)
        + "chown -R alice: /home/alice/.ssh\n", both("a55-user-key"),
        trigger=ssh(USER_KEY, "alice", f"{text('a55-user-key')}; {native('a55-user-key')}")),
    Row("a56-sshd", "E", "a program that sshd asks for keys", _sshd(), ("a56-sshd",),
        trigger=f"{ssh(STRANGER, 'alice', 'true')} || true"),
    Row("a56-sshrc", "E", "a script that sshd runs at every login", put("/etc/ssh/sshrc", lines("a56-sshrc")), both("a56-sshrc"),
        trigger=ALICE_IN),
    Row("a57-sshd-replaced", "U", "sshd replaced", copy("native", "/usr/sbin/sshd"), control="closed",
        reason=rf"{READ_ONLY}|Text file busy"),
    Row("a58-sudoers", "E", "rules of sudo and doas", put("/etc/sudoers.d/a58", "alice ALL=(ALL) NOPASSWD: ALL", "440")
        + put("/etc/doas.conf", "permit nopass alice"), ("a58-sudoers",), control="absent",
        absence=no_way_up("sudo", "doas", "pkexec", "su") + no_program("su-exec")
        + "if find /usr -xdev -type f -perm /6000 | grep .; then exit 1; fi\n",
        trigger=f"runuser -u alice -- sudo -n {text('a58-sudoers')} || true\n"
                f"runuser -u alice -- su -c '{text('a58-sudoers')}' root </dev/null || true"),
    Row("a59-motd", "E", "a script that makes the message of the day",
        put("/etc/update-motd.d/00-a59-motd", script("a59-motd"), "755"),
        both("a59-motd"), trigger=ALICE_IN),
    Row("b25-hosts-allow", "E", "a command of the connection filter's",
        f"echo 'sshd: ALL: spawn ({text('b25-hosts-allow')}; {native('b25-hosts-allow')}) &' >>/etc/hosts.allow\n",
        both("b25-hosts-allow"), trigger=f"{ALICE_IN}\nsleep 2"),
    Row("b26-environment", "E", "a library and a script named in the environment of all logins", _environment(),
        both("b26-environment"), trigger="su -c 'bash -c true' root </dev/null"),
    Row("b44-pam-env", "E", "a library that watches the loader, named in PAM's environment",
        copy("library.so", f"{BENCH}/b44-pam-env.so")
        + f"echo 'LD_AUDIT DEFAULT={BENCH}/b44-pam-env.so' >>/etc/security/pam_env.conf\n", ("b44-pam-env.native",),
        trigger="su -c true root </dev/null"),
    Row("b27-ssh-client", "E", "a command of the ssh client's configuration",
        put("/etc/ssh/ssh_config.d/00-b27.conf", f'Match exec "{text("b27-ssh-client")}; {native("b27-ssh-client")}"'),
        both("b27-ssh-client"), trigger="ssh -G nowhere >/dev/null"),
    Row("a84-mode", "E", "another mode and owner of a protected file", "chown alice /etc/shadow\nchmod 666 /etc/passwd\n",
        look="stat -c '%U %a' /etc/shadow /etc/passwd", found=r"alice|\b666\b"),
    Row("b29-users-directory", "O", "files of a user's own below /var: they are the user's",
        f"runuser -u alice -- touch {USERS}/.kept\n", look=f"stat -c %U {USERS}/.kept", found="alice"),
)  # fmt: skip
