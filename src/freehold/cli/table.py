# SPDX-License-Identifier: Apache-2.0
"""The table of verbs: one line, the module that has it, examples. Help, completion and man pages come from here.

A verb's module has ``VERBS``, rows of (name, help, add_arguments, handler); it is imported only when the verb is used.
"""

from __future__ import annotations

from typing import NamedTuple


class Verb(NamedTuple):
    """One verb. ``group`` verbs (``vm``, ``key``) have verbs of their own in the module."""

    name: str
    module: str
    summary: str
    examples: tuple[str, ...] = ()
    group: bool = False


BUILD = "freehold.build.verbs"
DEVICE = "freehold.device.verbs"
LOCK = "freehold.lock.verbs"
REQUESTS = "freehold.device.request_verbs"
SERVER = "freehold.server.verbs"

VERBS = (
    Verb("build", BUILD, "build a sealed release from a recipe", (
        "freehold build recipes/server.toml",
        "freehold build recipes/server.toml --version 1.2 --store /srv/freehold --json",
        "freehold build recipes/server.toml --unsigned --keys certificates     (then:) freehold sign server-1.2 --key URI",
    )),
    Verb("disk", BUILD, "make a bootable disk image from a release", (
        "freehold disk server-1.2 -o server.qcow2 --ignition first-boot.ign",
        "freehold disk recipes/server.toml -o /tmp/server.raw --size 16G",
        "freehold disk server-1.2 -o stick.raw --stick --size 4G     (to rescue machines: freehold rescue -h)",
        "freehold disk server-1.2 --enrol force --dry-run     (then -o server.raw without --dry-run)",
        "freehold disk server-1.2 -o server.raw --enrol force --owner-key file:/media/stick/owner.key",
        "freehold disk server-1.2 -o server.raw --enrol force --option-rom keep --extra-db microsoft-uefi-ca.der",
        "freehold disk server-1.2 -o server.raw --enrol force --dbx dbx.auth     (what it shall refuse from the start)",
    )),
    Verb("inspect", BUILD, "show what a release holds", ("freehold inspect server-1.2 --json",)),
    Verb("diff", BUILD, "the difference between two releases", ("freehold diff server-1.1 server-1.2",)),
    Verb("key", "freehold.keys.verbs", "make, issue, revoke and show keys; sign kernel modules", (
        "freehold key new vendor --role vendor",
        "freehold key issue release --role release --ca file:vendor.key --days 365",
        "freehold key request release --key 'pkcs11:token=HSM;object=release'",
        "freehold key issue release --role release --ca file:vendor.key --request release.csr",
        "freehold key revoke release-1.crt --reason 'laptop stolen' --keys keys",
        "freehold key dbx release-1.crt --key file:/media/stick/owner.key --boots server-1.3 --dry-run",
        "freehold key dbx old-loader.efi --key 'tpm2:0x81000005?certificate=owner.crt'",
        "freehold key show owner",
        "freehold key sign-module wireguard-next.ko --key file:/media/stick/owner.key",
    ), group=True),
    Verb("publish", SERVER, "put a release where machines find it", ("freehold publish server-1.2 --to /srv/www/freehold",)),
    Verb("serve", SERVER, "serve published releases over HTTP", ("freehold serve /srv/www/freehold --port 8000",)),
    Verb("vm", "freehold.vm.verbs", "start, drive and look at virtual machines", (
        "freehold vm start server.qcow2 --name try",
        "freehold vm exec try -- systemctl --failed",
    ), group=True),
    Verb("status", DEVICE, "what this machine runs, and whether it is locked", ("freehold status --json",)),
    Verb("upgrade", DEVICE, "stage the newest release beside the running system", (
        "freehold upgrade --check", "freehold upgrade --reboot",
    )),
    Verb("rollback", DEVICE, "boot the previous deployment next", ("freehold rollback",)),
    Verb("cleanup", DEVICE, "remove deployments and objects that nothing needs", ("freehold cleanup --dry-run",)),
    Verb("verify", DEVICE, "check this machine and every deployment, file by file", (
        "freehold verify", "freehold verify --quick --json", "freehold verify --jobs 4",
    )),
    Verb("history", DEVICE, "what was done to this machine, and when", ("freehold history",)),
    Verb("kargs", REQUESTS, "show or change the kernel's arguments", (
        "freehold kargs",
        "freehold kargs --append mitigations=auto,nosmt --dry-run",
        "freehold kargs --append loglevel=7 --delete quiet --key file:/media/stick/owner.key",
        "freehold kargs --replace console=ttyS1 --request kargs.request     (then: freehold sign kargs.request)",
    )),
    Verb("install", REQUESTS, "add packages to this and every later release", (
        "freehold install fish --key file:/media/stick/owner.key",
        "freehold install fish=4.0.2-1 ./tool_1.2_amd64.deb --request install.request",
    )),
    Verb("uninstall", REQUESTS, "take requested packages out again", (
        "freehold uninstall fish --key file:/media/stick/owner.key",
    )),
    Verb("requests", REQUESTS, "what the owner asked this machine to add", ("freehold requests --json",)),
    Verb("apply", REQUESTS, "make the deployment that the requests ask for", (
        "freehold apply",
        "freehold apply --answer install.request.signed",
        "freehold apply --release 2.1 --request apply.request     (an update that waits for the owner's signature)",
    )),
    Verb("lock", LOCK, "let no further unsigned privileged code run", (
        "freehold lock --audit --key file:/media/stick/owner.key",
        "freehold lock --request lock.request     (then, where the owner's key is:) freehold sign lock.request",
        "freehold lock --answer lock.request.signed",
        "freehold lock --strict --key file:/media/stick/owner.key     (no device key: the owner signs each change)",
        "freehold lock --tier S2 --dry-run     (root's shells and interpreters start for signed scripts only; what that costs)",
        "freehold lock --all-code --dry-run     (users' and containers' code as well: what stands in the way, what it costs)",
        "freehold lock --emergency-ssh id_ed25519.pub --request lock.request     (ssh -p 2222 of this key bypasses the lock)",
    )),
    Verb("unlock", LOCK, "with the owner's key: open at the next boot", (
        "freehold unlock --key file:/media/stick/owner.key",
        "freehold unlock --request unlock.request",
    )),
    Verb("floor", LOCK, "the rollback floor: which releases no longer boot while locked", (
        "freehold floor --json",
        "freehold floor --lower 1790000000 --key file:/media/stick/owner.key",
        "freehold floor --lower 1790000000 --request floor.request",
        "freehold floor --answer floor.request.signed",
    )),
    Verb("etc", "freehold.device.etc_verbs", "what of /etc is committed, what differs, and changing that", (
        "freehold etc status",
        "freehold etc diff ssh",
        "freehold etc commit -m 'new mail relay' --key file:/media/stick/owner.key",
        "freehold etc commit postfix --request etc.request     (then, where the owner's key is:) freehold sign etc.request",
        "freehold etc commit --answer etc.request.signed",
        "freehold etc revert motd     (running files back to the committed ones)",
        "freehold etc revert --to 7 --key file:/media/stick/owner.key",
    ), group=True),
    Verb("device-key", "freehold.device.device_key_verbs", "the key by which this machine signs what its owner asked for", (
        "freehold device-key show --json",
        "freehold device-key renew --request renew.request     (then, where the owner's key is:) freehold sign renew.request",
        "freehold device-key renew --answer renew.request.signed",
        "freehold device-key destroy --dry-run",
    ), group=True),
    Verb("dbx", "freehold.device.dbx_verbs", "what this machine's firmware refuses to start, and adding to it", (
        "freehold dbx show",
        "freehold dbx apply dbx.auth --dry-run     (made where the owner's key is: freehold key dbx -h)",
    ), group=True),
    Verb("sign", LOCK, "answer a machine's request, or sign a release that was built unsigned", (
        "freehold sign lock.request --key file:owner.key",
        "freehold sign server-1.2 --key 'pkcs11:token=HSM;object=release;certificate=release.crt'",
    )),
    Verb("rescue", "freehold.rescue.verbs", "repair another machine's disk, from a stick", (
        "freehold rescue status --disk /dev/sda",
        "freehold rescue repair-esp --disk /dev/sda --dry-run     (boot partition wiped)",
        "freehold rescue install --disk /dev/sda                  (no deployment starts any more)",
        "freehold rescue adopt --disk /dev/sda                    (the owner's key is lost)",
    ), group=True),
    Verb("denials", LOCK, "what the guard refused, and what would allow it", ("freehold denials --json",)),
    Verb("attest", "freehold.attest.verbs", "prove by the TPM what runs here, or judge such a proof", (
        "freehold attest --identity -o server.identity           (on the machine, once, when you trust it)",
        "openssl rand -hex 32                                    (where you check: a fresh nonce each time)",
        "freehold attest --nonce HEX -o server.attestation       (on the machine)",
        "freehold attest --check server.attestation --nonce HEX --identity server.identity --release server-1.2",
    )),
)  # fmt: skip
