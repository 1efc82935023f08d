# SPDX-License-Identifier: Apache-2.0
"""First boot: Debian's own Ignition, run once, before systemd. The machine as specified, or no machine.

Ignition runs from the sealed tree, chrooted by the early step. Its files stage is built to relabel for
SELinux and fails unless it finds a policy type and a program called ``setfiles``; both are given to it for
the time it runs.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from pathlib import Path

from freehold import atomic, run
from freehold.errors import FreeholdError

IGNITION = Path("/usr/lib/dracut/modules.d/30ignition/ignition")
#: Holds our do-nothing ``setfiles``.
HELPERS = "/usr/lib/freehold/ignition"
FW_CFG = Path("/sys/firmware/qemu_fw_cfg/by_name/opt/com.coreos/config/raw")
#: The recipe's choice, in the sealed tree.
PLATFORM = Path("/usr/lib/freehold/platform")
DISK_FILE = Path("/sysroot/provision.ign")
#: Where Ignition's files stage says which units are enabled.
PRESET = Path("/etc/systemd/system-preset/20-ignition.preset")
STAMP = Path("/sysroot/owner/provisioned")
MAX_CONFIG = 16 << 20
#: In order. "kargs" and "disks" change what is sealed or mounted by now; a configuration that asks for them fails.
STAGES = ("fetch-offline", "fetch", "files")


def source(platform: str) -> tuple[str, bytes] | None:
    """(Ignition's platform name, configuration bytes) where this machine has one, else None.

    ``platform`` is the recipe's. A file that the disk was made with counts when the platform has none.
    Raises :class:`FreeholdError` for a platform whose configuration only a network can bring.
    """
    if platform not in ("none", "qemu", "file"):
        raise FreeholdError(f"this release cannot provision on the platform {platform!r}: there is no network this early")
    places = [("file", DISK_FILE)]
    if platform == "qemu":
        places.insert(0, ("qemu", FW_CFG))
    for name, path in places:
        try:
            with path.open("rb") as file:
                data = file.read(MAX_CONFIG + 1)
        except OSError:
            continue
        if len(data) > MAX_CONFIG:
            raise FreeholdError(f"the provisioning file is larger than {MAX_CONFIG} bytes")
        if data:
            return name, data
    return None


def unsupported(config: bytes) -> list[str]:
    """Sections that cannot be honoured after the sealed tree is mounted. Pure; broken JSON is Ignition's to report."""
    try:
        value = json.loads(config)
        storage = value.get("storage", {})
        found = [f"storage.{name}" for name in ("disks", "raid", "filesystems", "luks") if storage.get(name)]
        return found + (["kernelArguments"] if value.get("kernelArguments") else [])
    except (ValueError, AttributeError, RecursionError):
        return []


def _ignition(platform: str, work: Path) -> None:
    config = Path("/etc/selinux/config")
    config.parent.mkdir(exist_ok=True)
    config.write_text("SELINUX=disabled\nSELINUXTYPE=none\n")
    try:
        for stage in STAGES:
            done = run.run(
                [IGNITION, f"--platform={platform}", f"--stage={stage}", "--root=/", "--log-to-stdout",
                 f"--config-cache={work / 'config.json'}", f"--state-file={work / 'state.json'}",
                 f"--neednet={work / 'neednet'}"],
                cwd=work, check=False, env={"PATH": f"{HELPERS}:/usr/sbin:/usr/bin"},
            )  # fmt: skip
            if done.status != 0:
                lines = [line for line in (done.stdout + done.stderr).decode(errors="replace").splitlines() if line]
                critical = [line for line in lines if "CRITICAL" in line or "error at" in line] or lines[-3:]
                raise FreeholdError(
                    f"Ignition's stage {stage} failed: {critical[-1] if critical else 'no message'}",
                    details="\n".join(lines[-40:]),
                )
            if (work / "neednet").exists():
                raise FreeholdError("the provisioning file refers to a URL, and there is no network this early")
    finally:
        config.unlink(missing_ok=True)


def preset_units(text: str) -> list[str]:
    """The units that a preset file names (systemd.preset(5)). Pure."""
    rows = [line.split() for line in text.splitlines()]
    return [row[1] for row in rows if len(row) >= 2 and row[0] in ("enable", "disable")]


def _enable_units() -> None:
    """Carry out Ignition's presets: systemd would only look at them on a machine that has no machine-id yet."""
    if PRESET.is_file():
        units = preset_units(PRESET.read_text())
        if units:
            run.run(["systemctl", "--root=/", "preset", *units])


def refuse() -> str:
    """Provision nothing, for good; returns one line for the console.

    The stamp is written, so that an unlock later does not provision the machine a second time; a configuration on the
    disk stays where it is, for the owner to look at. Under the lock nobody writes beside the owner's intent, this program
    neither: then the next boot that is not locked comes here again and writes it.
    """
    record = {"format": "freehold-provisioned-1", "time": int(time.time()), "source": None, "refused": True}
    with contextlib.suppress(PermissionError):
        atomic.write(STAMP, json.dumps(record) + "\n", mode=0o600)
    return "not provisioned again: the record of the first time is gone, the owner's word stands"


def provision() -> str:
    """Provision this machine if it never was; returns one line for the console.

    Order: Ignition writes into /etc and /var, everything is flushed, then the stamp is written. A cut before
    the stamp runs Ignition again over the same tree, which its own rules allow (equal files are kept).
    Raises :class:`FreeholdError` when the configuration is refused: then there is no stamp and no boot.
    """
    found = source(PLATFORM.read_text().strip() if PLATFORM.exists() else "none")
    record: dict[str, object] = {"format": "freehold-provisioned-1", "time": int(time.time()), "source": None}
    if found is not None:
        platform, config = found
        refused = unsupported(config)
        if refused:
            raise FreeholdError(f"the provisioning file asks for {', '.join(refused)}, which this release cannot do")
        work = Path("/run/freehold/ignition")
        work.mkdir(mode=0o700, parents=True, exist_ok=True)
        if platform == "file":
            (work / "config.ign").write_bytes(config)
        # Homes and services' directories, as the image describes them, for Ignition to write into.
        run.run(["systemd-tmpfiles", "--create", "--prefix=/var"], check=False)
        _ignition(platform, work)
        _enable_units()
        record.update(source=platform, sha256=hashlib.sha256(config).hexdigest())
    run.run(["sync"])
    atomic.write(STAMP, json.dumps(record) + "\n", mode=0o600)
    # The file may hold secrets, and has been used.
    DISK_FILE.unlink(missing_ok=True)
    return f"provisioned by Ignition ({record['source']})" if found else "nothing to provision"
