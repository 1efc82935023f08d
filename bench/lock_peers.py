# SPDX-License-Identifier: Apache-2.0
"""What ``bench/lock.py`` compares the guard with, on the open machine: fapolicyd with Debian's sample rules, and IPE."""

from __future__ import annotations

import time

from bench.builds import Bench
from freehold.errors import FreeholdError
from freehold.vm import VirtualMachine

#: fapolicyd's sample policy "known-libs", file by file, as its README-rules lists it.
KNOWN_LIBS = (
    "10-languages", "20-dracut", "21-updaters", "30-patterns", "40-bad-elf", "41-shared-obj", "42-trusted-elf",
    "70-trusted-lang", "72-shell", "90-deny-execute", "95-allow-open",
)  # fmt: skip
#: Permissive: decides all the same, and a mistake of ours does not lock us out. What it watches by default leaves out overlays,
#: which the sealed tree is.
FAPOLICYD = f"""
set -eu
mkdir -p /etc/fapolicyd/rules.d
for rule in {" ".join(KNOWN_LIBS)}; do cp /usr/share/fapolicyd/sample-rules/$rule.rules /etc/fapolicyd/rules.d/; done
sed -i -e 's/^permissive = .*/permissive = 1/' -e 's/^trust = .*/trust = file/' -e 's/^watch_fs = .*/&,overlay/' \\
    /etc/fapolicyd/fapolicyd.conf
"""
#: What it trusts: all programs and libraries of the tree, as its trust file has them (path, size, SHA-256).
TRUST = """
import hashlib, os
with open("/etc/fapolicyd/fapolicyd.trust", "w") as trust:
    for top in ("/usr/bin", "/usr/sbin", "/usr/lib", "/usr/libexec"):
        for folder, _, names in os.walk(top):
            for path in (os.path.join(folder, name) for name in names):
                if os.path.isfile(path) and not os.path.islink(path) and " " not in path:
                    with open(path, "rb") as file:
                        print(path, os.path.getsize(path), hashlib.file_digest(file, "sha256").hexdigest(), file=trust)
"""
#: Everything is asked about, nothing refused: the objects of the sealed tree have no signatures of their own.
IPE_NAME = "freehold_bench"
IPE_POLICY = f"""policy_name={IPE_NAME} policy_version=0.0.1
DEFAULT action=ALLOW
op=EXECUTE fsverity_signature=TRUE action=ALLOW
op=EXECUTE fsverity_digest=sha256:{"0" * 64} action=DENY
"""
IPE = "/sys/kernel/security/ipe"


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
    load = f"dd if=/run/bench.p7b of={IPE}/new_policy bs=64K conv=notrunc && echo 1 > {IPE}/policies/{IPE_NAME}/active"
    vm.exec(["sh", "-c", f"{load} && echo 1 > {IPE}/enforce"])
    active = vm.exec(["cat", f"{IPE}/policies/{IPE_NAME}/active", f"{IPE}/enforce"]).text.split()
    if active != ["1", "1"]:
        raise FreeholdError(f"IPE's policy is not in force: {active}")
