# SPDX-License-Identifier: Apache-2.0
"""Two disks for ``bench/lock.py``: the reference system, open, with what the guard is compared with; and the same, locked."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.builds import Bench
from bench.measure import REPOSITORY, freehold, say
from freehold.build.tools import ensure as ensure_tools
from freehold.errors import FreeholdError
from freehold.monitor import NullMonitor
from freehold.vm import Machine, VirtualMachine, start

RECIPE = REPOSITORY / "bench" / "lock.toml"
USER = "bencher"
#: Seconds until everything that a boot starts has started, emulated.
SETTLE_SECONDS = 240.0
#: fapolicyd's sample policy "known-libs", file by file, as its README-rules lists it.
KNOWN_LIBS = (
    "10-languages", "20-dracut", "21-updaters", "30-patterns", "40-bad-elf", "41-shared-obj", "42-trusted-elf",
    "70-trusted-lang", "72-shell", "90-deny-execute", "95-allow-open",
)  # fmt: skip
#: Permissive: decides all the same, and a mistake of ours does not lock us out. What it watches by default leaves out overlays,
#: which the sealed tree is; what it trusts is the whole of /usr, by path and hash, as packages would make it.
FAPOLICYD = f"""
set -eu
mkdir -p /etc/fapolicyd/rules.d
for rule in {" ".join(KNOWN_LIBS)}; do cp /usr/share/fapolicyd/sample-rules/$rule.rules /etc/fapolicyd/rules.d/; done
sed -i -e 's/^permissive = .*/permissive = 1/' -e 's/^trust = .*/trust = file/' -e 's/^watch_fs = .*/&,overlay/' \\
    /etc/fapolicyd/fapolicyd.conf
fapolicyd-cli --file add /usr/bin/
fapolicyd-cli --file add /usr/sbin/
fapolicyd-cli --file add /usr/lib/
fagenrules
"""
#: Everything is asked about, nothing refused: the objects of the sealed tree have no signatures of their own.
IPE_NAME = "freehold_bench"
IPE_POLICY = f"""policy_name={IPE_NAME} policy_version=0.0.1
DEFAULT action=ALLOW
op=EXECUTE fsverity_signature=TRUE action=ALLOW
op=EXECUTE fsverity_digest=sha256:{"0" * 64} action=DENY
"""
IPE = "/sys/kernel/security/ipe"
#: A root for containers, made of the sealed tree: nothing is downloaded.
CONTAINER = f"""
set -eu
cd /home/{USER}
for name in usr proc dev sys tmp etc run var; do mkdir -p rootfs/$name; done
for name in bin lib lib64 sbin; do ln -s usr/$name rootfs/$name; done
chown -R {USER}: rootfs
"""


@dataclass(frozen=True)
class Disks:
    """``open`` never saw a lock, ``locked`` lies over it; ``maps`` and ``programs`` are the guard's, in bytes."""

    open: Path
    locked: Path
    maps: int
    programs: int


def ignition() -> str:
    """A person whose containers are measured."""
    return json.dumps({"ignition": {"version": "3.3.0"}, "passwd": {"users": [{"name": USER}]}})


def kept_bytes(text: str) -> tuple[int, int]:
    """What `guardctl load` said of the guard's (maps, programs), in bytes. Pure."""
    found = re.search(r"the maps take (\d+) bytes, the programs (\d+)", text)
    if not found:
        raise FreeholdError("guardctl load did not say what the guard takes", details=text)
    return int(found[1]), int(found[2])


def sign_policy(bench: Bench, text: str) -> bytes:
    """The text as CMS with its content and no attributes, by the key that the firmware's db has."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key, pkcs7

    key = load_pem_private_key((bench.keys / "release.key").read_bytes(), None)
    certificate = x509.load_der_x509_certificate((bench.keys / "release.der").read_bytes())
    if not isinstance(key, RSAPrivateKey):
        raise FreeholdError("the release key of the benchmark is no RSA key")
    builder = pkcs7.PKCS7SignatureBuilder().set_data(text.encode()).add_signer(certificate, key, hashes.SHA256())
    return builder.sign(Encoding.DER, [pkcs7.PKCS7Options.Binary, pkcs7.PKCS7Options.NoAttributes])


@contextlib.contextmanager
def booted(bench: Bench, disk: Path, *, keep: bool = False, first: Path | None = None) -> Iterator[VirtualMachine]:
    """The machine on ``disk``, everything started. Unless ``keep``, nothing of it stays on the disk."""
    name = f"bench-{disk.stem}"
    machine = Machine(name, disk, snapshot=not keep, secure_boot=True, keys=(bench.keys,), ignition=first)
    vm = start(machine, NullMonitor())
    try:
        settled = vm.exec(["systemctl", "is-system-running", "--wait"], check=False, timeout=SETTLE_SECONDS).text.strip()
        if settled != "running":
            say(f"{name} is {settled}: {vm.exec(['systemctl', '--failed', '--no-legend', '--plain'], check=False).text.strip()}")
        yield vm
        if keep:
            vm.stop()
    finally:
        if vm.alive:
            vm.stop(hard=True)


def _open_disk(bench: Bench, beside: bool) -> tuple[Path, int, int]:
    report = freehold(["build", RECIPE, "--store", bench.store, "--keys", bench.keys], bench.environment)
    disk, first = bench.work / "lock-open.raw", bench.work / "lock.ign"
    disk.unlink(missing_ok=True)
    argv: list[str | Path] = ["disk", str(report["release"]), "-o", disk, "--store", bench.store, "--keys", bench.keys]
    freehold(argv, bench.environment)
    first.write_text(ignition())
    with booted(bench, disk, keep=True, first=first) as vm:
        say("the open disk: users, container, fapolicyd's rules and trust")
        vm.exec(["sh", "-c", CONTAINER])
        if beside:
            vm.exec(["sh", "-c", FAPOLICYD], timeout=900)
        # Loaded and not latched it ends with this boot.
        maps, programs = kept_bytes(vm.exec(["/usr/lib/freehold/guardctl", "load"]).stderr.decode())
    return disk, maps, programs


def _locked_disk(bench: Bench, below: Path) -> Path:
    disk, request = bench.work / "lock-locked.qcow2", bench.work / "lock.request"
    disk.unlink(missing_ok=True)
    tools = ensure_tools(bench.cache, NullMonitor())
    tools.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", below, "-F", "raw", disk], binds=[bench.work])
    with booted(bench, disk, keep=True) as vm:
        vm.exec(["freehold", "lock", "--request", "/run/lock.request"], timeout=300)
        request.write_bytes(vm.read_file("/run/lock.request"))
        freehold(["sign", request, "--key", f"file:{bench.keys / 'owner.key'}"], bench.environment)
        vm.write_file("/run/lock.signed", request.with_name("lock.request.signed").read_bytes())
        vm.exec(["freehold", "lock", "--answer", "/run/lock.signed"], timeout=300)
    say("the locked disk: its first locked boot, which does not count")
    with booted(bench, disk, keep=True) as vm:
        mode(vm, "locked")
    return disk


def mode(vm: VirtualMachine, wanted: str) -> None:
    """Fail unless the guard is in mode ``wanted``; ``absent``: not even loaded."""
    status = json.loads(vm.exec(["/usr/lib/freehold/guardctl", "status"]).stdout)
    found = status["mode"] if status["loaded"] else "absent"
    if found != wanted:
        raise FreeholdError(f"the guard is {found}, not {wanted}")


def make(bench: Bench, *, beside: bool) -> Disks:
    """Build and prepare both, each booted until it settled; fapolicyd's rules and trust only where it is ``beside``."""
    bench.work.mkdir(parents=True, exist_ok=True)
    bench.make_keys()
    disk, maps, programs = _open_disk(bench, beside)
    return Disks(disk, _locked_disk(bench, disk), maps, programs)


def start_fapolicyd(vm: VirtualMachine) -> None:
    """Start it and wait until it answers for the kernel."""
    vm.exec(["systemctl", "start", "fapolicyd.service"], timeout=180)
    deadline = time.monotonic() + 60
    # It has the kernel's questions once fanotify is among its descriptors.
    ready = "grep -qs fanotify /proc/$(systemctl show -P MainPID fapolicyd.service)/fdinfo/*"
    while vm.exec(["sh", "-c", ready], check=False).status:
        if time.monotonic() > deadline:
            raise FreeholdError("fapolicyd asks the kernel for nothing", details=journal(vm, "fapolicyd.service"))
        time.sleep(1)


def journal(vm: VirtualMachine, unit: str) -> str:
    """What a unit said in this boot."""
    return vm.exec(["journalctl", "-b", "-u", unit, "-n", "40", "--no-pager", "-o", "cat"], check=False).text


def start_ipe(bench: Bench, vm: VirtualMachine) -> None:
    """Load our policy and make it the active one; until the machine is off."""
    vm.write_file("/run/bench.p7b", sign_policy(bench, IPE_POLICY))
    # One write(2) each, as securityfs wants it.
    load = f"dd if=/run/bench.p7b of={IPE}/new_policy bs=64K status=none && echo 1 > {IPE}/policies/{IPE_NAME}/active"
    vm.exec(["sh", "-c", f"{load} && echo 1 > {IPE}/enforce"])
    active = vm.exec(["cat", f"{IPE}/policies/{IPE_NAME}/active", f"{IPE}/enforce"]).text.split()
    if active != ["1", "1"]:
        raise FreeholdError(f"IPE's policy is not in force: {active}")
