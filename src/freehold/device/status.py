# SPDX-License-Identifier: Apache-2.0
"""``freehold status``: what runs, what would run next, how the machine is locked.

The JSON form is ``freehold-status-1`` (docs/device.md). It starts at most one process, the guard's own
``guardctl``, and imports no cryptography: certificates are shown by file name and SHA-256.
"""

from __future__ import annotations

import hashlib
import os
import re
import time

from freehold.device import loader
from freehold.device.sysroot import Deployment, Sysroot, read_json, read_text, stream_shown
from freehold.errors import FreeholdError
from freehold.files import read_bytes
from freehold.report import Report
from freehold.update.manifest import STREAM_LIMIT

SCHEMA = "freehold-status-1"
_CERTIFICATE_LIMIT = 64 << 10
_REVOKED_LIMIT = 256 << 10
_REFUSAL_LIMIT = 4096
#: What is weaker than it could be; the early step says the same on the console.
#: In two words, wherever there is room for no more.
NOT_VERIFIED = "off: not verified"
#: What is weaker than it could be; the early step says the same on the console and above every login.
WITHOUT_SECURE_BOOT = (
    "not verified: Secure Boot is off, so the chain of trust starts at the initrd; "
    "whoever can write the boot partition can replace it"
)
IN_RESCUE = "started from the rescue entry: locked, with factory settings, until the next boot"
NO_INPUTS = "this release has no list of them"
UNKNOWN_INPUTS = "the firmware does not know who signed this release's list of them (`freehold disk --enrol`)"
_INPUTS = re.compile(r"(?:^|\s)freehold\.inputs=([0-9a-f]{64})(?=\s|\Z)")
WITHOUT_FIRMWARE = (
    "Secure Boot is on, but its certificates could not be used: signed files are believed by this release's own keychain"
)


def entries_of(sysroot: Sysroot) -> list[loader.Entry]:
    """The boot entries in boot order; none when the ESP cannot be read (not mounted, or not root)."""
    try:
        return loader.listing(sysroot.esp)
    except (OSError, FreeholdError):
        return []


def keychain_of(sysroot: Sysroot) -> list[dict[str, object]]:
    """Name, role and SHA-256 of each sealed certificate, and whether the release revokes it; last the device's own."""
    try:
        names = sorted(path.name for path in sysroot.keychain.iterdir() if path.suffix == ".der")
        listed = read_text(sysroot.keychain / "revoked", _REVOKED_LIMIT).splitlines()
    except OSError:
        return []
    result: list[dict[str, object]] = []
    refused = {line.partition(" ")[0] for line in listed}
    for name in names:
        try:
            data = read_bytes(sysroot.keychain / name, _CERTIFICATE_LIMIT)
        except (OSError, FreeholdError):
            continue
        role, _, label = name.removesuffix(".der").partition("-")
        digest = hashlib.sha256(data).hexdigest()
        result.append({"name": label, "role": role, "sha256": digest, "revoked": digest in refused})
    return result + device_key_of(sysroot, refused)


def device_key_of(sysroot: Sysroot, revoked: set[str]) -> list[dict[str, object]]:
    """This machine's own certificate as a row of the keychain, with who keeps its key and until when it is valid; or nothing."""
    path = sysroot.root / "owner/device.facts"
    if not os.path.lexists(path):
        return []
    from freehold.keys.device import MAX_TEXT, read_facts

    try:
        known = read_facts(read_bytes(path, MAX_TEXT))
    except (OSError, FreeholdError, ValueError):
        return []
    return [
        {
            "name": "this machine", "role": "device", "sha256": known.sha256, "revoked": known.sha256 in revoked,
            "keeper": known.keeper, "not_after": known.not_after,
        }
    ]  # fmt: skip


def lock_of(sysroot: Sysroot) -> tuple[dict[str, object], list[str]]:
    """The lock as enforced now, and what the owner should know about it."""
    boot = sysroot.boot_record()
    intent = boot.get("intent")
    intent = intent if isinstance(intent, dict) else {}
    mode, tier, scripts = sysroot.mode_and_tiers()
    messages: list[str] = []
    recorded = boot.get("messages")
    if isinstance(recorded, list):
        messages += [str(message)[:500] for message in recorded[:20]]
    if boot.get("rescue") is True:
        messages.append(IN_RESCUE)
    if intent.get("state") == "invalid":
        remembered = boot.get("remembered")
        if isinstance(remembered, dict) and remembered.get("overruled") is True:
            messages.append(
                f"the owner's intent is gone, or older than number {remembered.get('serial')}, which the TPM remembers: this"
                " machine stays locked until a newer one comes (rescue entry), or the TPM is cleared in the firmware"
            )
        else:
            messages.append("the standing intent is not valid: this machine locks itself until it is replaced")
    wanted = intent.get("lock") if intent.get("state") == "valid" else None
    if wanted in ("audit", "locked") and mode == "open":
        messages.append(f"the intent says {wanted}, but no guard enforces it")
    messages += refusals_of(sysroot)
    if mode == "locked" and boot.get("rescue") is not True:
        messages += drift_of(sysroot)
    floor = boot.get("floor")
    floor = floor if isinstance(floor, dict) else {}
    if floor.get("tpm") == "failed":
        messages.append("the TPM could not keep the rollback floor at this boot: the owner's directory alone has it")
    inputs = inputs_of(sysroot, mode)
    if inputs == "guard":
        why = NO_INPUTS if boot.get("kernel_inputs") in ("none", None) else UNKNOWN_INPUTS
        messages.append(f"modules and firmware are judged by the guard alone, and not by the kernel as well: {why}")
    secure_boot = sysroot.secure_boot()
    source = boot.get("keychain_source")
    if boot and not secure_boot:
        messages.append(WITHOUT_SECURE_BOOT)
    elif source == "image":
        messages.append(WITHOUT_FIRMWARE)
    emergency_ssh = emergency_of(sysroot, boot)
    if emergency_ssh is not None:
        messages.append(str(emergency_ssh.pop("message")))
    lock: dict[str, object] = {
        "state": mode,
        "secure_boot": secure_boot,
        "keychain": keychain_of(sysroot),
        "keychain_source": source if source in ("firmware", "image") else None,
        "keychain_loaded": boot.get("keychain_loaded"),
        "keychain_skipped": boot.get("keychain_skipped"),
        "emergency_ssh": emergency_ssh or False,
        "tier": tier,
        "scripts": scripts,
        "since": intent.get("since") or None,
        "floor": floor.get("effective"),
        "kernel_inputs": inputs,
    }
    return lock, messages


def inputs_of(sysroot: Sysroot, mode: str) -> str | None:
    """Who judges what is read into the kernel: ``enforced`` (the kernel, by the release's list), ``guard`` (it alone), ``off``;
    ``None`` when this process may not ask.
    """
    from freehold.lock import inputs

    found = _INPUTS.findall(read_text(sysroot.system / "proc/cmdline", 64 << 10))
    known = inputs.in_force(found[0], sysroot.system) if len(found) == 1 else False
    if known is None:
        return None
    return "enforced" if known else "guard" if mode == "locked" else "off"


def emergency_of(sysroot: Sysroot, boot: dict[str, object]) -> dict[str, object] | None:
    """The key whose ssh session bypasses the lock, by the boot record: ``key`` is its fingerprint, ``host_key`` the server's
    own for who may read it, ``message`` the sentence for people. ``None``: there is none."""
    digest = boot.get("emergency_ssh")
    if not isinstance(digest, str) or not digest:
        return None
    from freehold.lock import emergency, emergency_key

    if not emergency.is_digest(digest):
        return None
    return {
        "key": emergency.fingerprint(digest), "port": emergency.PORT, "message": emergency.sentence(digest),
        "host_key": emergency_key.host_key(sysroot.root / "owner"),
    }  # fmt: skip


def drift_of(sysroot: Sysroot) -> list[str]:
    """A line when a locked machine's /etc is not as it was committed. (While open all of /etc would have to be read.)"""
    from freehold.device import etc_quick

    count = etc_quick.count(sysroot)
    if not count:
        return []
    paths = "1 path of /etc differs" if count == 1 else f"{count} paths of /etc differ"
    return [f"{paths} from what was committed, until the next reboot: `freehold etc status`"]


def refusals_of(sysroot: Sysroot) -> list[str]:
    """What the early step refused before this boot came up, as the firmware kept it (informational)."""
    lines = read_text(sysroot.system / "run/freehold/last-refusal", _REFUSAL_LIMIT).splitlines()
    pairs = [line.partition("\t") for line in lines]
    return [f"{entry} did not boot before this start: {reason}" for entry, tab, reason in pairs if tab]


def _row(deployment: Deployment, booted: str, entry: loader.Entry | None, staged: bool) -> dict[str, object]:
    manifest = deployment.manifest
    derived = manifest.derived
    words = [line.split(" ") for line in derived.lines] if derived else []
    return {
        "id": deployment.id,
        "version": manifest.version,
        "number": manifest.number,
        "commit": manifest.commit,
        "image_digest": manifest.image_digest,
        "booted": deployment.id == booted,
        "staged": staged,
        "pinned": deployment.pinned,
        "health": entry.state if entry is not None else "unknown",
        "base_version": derived.version if derived else manifest.version,
        "packages": [line[-1] for line in words if line[0] in ("package", "file")],
        "overrides": [],
        "kargs": [" ".join(line[1:]) for line in words if line[0] == "karg"],
        "signer": deployment.signer or None,
    }


def gather(sysroot: Sysroot) -> dict[str, object]:
    """The whole status as ``freehold-status-1``."""
    booted = sysroot.booted()[:16]
    entries = entries_of(sysroot)
    # The boot loader takes the first; of two names of one deployment the first counts.
    states: dict[str, loader.Entry] = {}
    for entry in entries:
        states.setdefault(entry.id, entry)
    first = entries[0].id if entries else booted
    rows = [
        _row(deployment, booted, states.get(deployment.id), deployment.id == first != booted)
        for deployment in sysroot.all_deployments()
        # Without an entry it cannot boot: a download that waits. The running one is always shown.
        if deployment.id in states or deployment.id == booted or not entries
    ]
    lock, messages = lock_of(sysroot)
    held = read_json(sysroot.state / "update.json").get("held")
    if isinstance(held, str) and held:
        messages.append(f"update: {held[:500]}")
    return {
        "schema": SCHEMA,
        "booted": booted or None,
        "deployments": rows,
        "lock": lock,
        "update": _update(sysroot, str(lock["state"]), booted, {str(row["id"]) for row in rows if row["staged"]}),
        "messages": messages,
    }


def _update(sysroot: Sysroot, mode: str, booted: str, staged: set[str]) -> dict[str, object]:
    seen = read_json(sysroot.state / "update.json")
    source = sysroot.update_file(mode)
    stream = None if source is None else stream_shown(read_text(source, STREAM_LIMIT))
    available = seen.get("available")
    if not isinstance(available, dict) or available.get("id") == booted:
        available = None
    state = "staged" if staged else "available" if available else "idle"
    if stream is None:
        state = "unconfigured"
    return {"stream": stream, "state": state, "last_check": seen.get("last_check"), "available": available}


def status(sysroot: Sysroot) -> Report:
    """The report of ``freehold status``."""
    data = gather(sysroot)
    return Report(data, text(data))


#: What a lock does beyond the default, in the words of the report.
TIERS = (("tier", "all-code", "all code, everybody's"), ("scripts", "S2", "interpreters for signed scripts only"))


def text(data: dict[str, object]) -> str:
    """``data`` of :func:`gather` for people: short, the next step last."""
    rows = [row for row in _list(data["deployments"]) if isinstance(row, dict)]
    lock = data["lock"] if isinstance(data["lock"], dict) else {}
    update = data["update"] if isinstance(data["update"], dict) else {}
    lines: list[str] = []
    for row in rows:
        mark = "*" if row["booted"] else ">" if row["staged"] else " "
        words = [word for word in ("booted", "staged", "pinned") if row[word]]
        if row["health"] not in ("good", "unknown"):
            words.append(str(row["health"]))
        if row["base_version"] != row["version"]:
            added = [
                f"{count} {noun}{'s' * (count != 1)}"
                for noun, count in (("package", len(_list(row["packages"]))), ("kernel argument", len(_list(row["kargs"]))))
                if count
            ]
            words.append(f"{row['base_version']} with {' and '.join(added) or 'nothing'} of yours")
        signer = f"  signed by {row['signer']}" if row["signer"] else ""
        lines.append(f"{mark} {row['version']}  {row['id']}  {', '.join(words)}{signer}".rstrip())
    if not data["booted"]:
        lines.append("This machine does not run a Freehold deployment.")
    secure = "on" if lock.get("secure_boot") else NOT_VERIFIED if data["booted"] else "off"
    since = f" since {when(lock.get('since'))}" if isinstance(lock.get("since"), int) else ""
    keys = [key for key in _list(lock.get("keychain")) if isinstance(key, dict) and not key["revoked"]]
    own = next((key for key in keys if key["role"] == "device"), None)
    device = ""
    if own is not None:
        kept = "sealed by the TPM" if own["keeper"] == "tpm2" else "in a file"
        device = f"; device key {kept}, until {when(own['not_after'])[:10]}"
    tiers = [words for key, value, words in TIERS if lock.get(key) == value]
    tier = f" ({', '.join(tiers)})" if tiers else ""
    lines.append(f"Lock: {lock.get('state')}{tier}{since}; Secure Boot {secure}; {len(keys) - bool(own)} keys{device}")
    stream = update.get("stream")
    checked = update.get("last_check")
    known = f", last check {when(checked)}" if isinstance(checked, int) else ", never checked"
    lines.append(f"Updates: stream {stream}{known}" if stream else "Updates: no server configured")
    lines += [f"! {message}" for message in _list(data["messages"])]
    lines.append(_next_step(data, rows, update))
    return "\n".join(lines) + "\n"


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _next_step(data: dict[str, object], rows: list[dict[str, object]], update: dict[str, object]) -> str:
    staged = next((row for row in rows if row["staged"]), None)
    available = update.get("available")
    if staged is not None:
        return f"Next: reboot into {staged['version']} (or `freehold rollback` to stay)."
    if isinstance(available, dict):
        return f"Next: `freehold upgrade` brings {available.get('version')}."
    if not data["booted"]:
        return "Next: `freehold vm start` runs one."
    return "Next: nothing to do; `freehold upgrade --check` asks the server."


def when(seconds: object) -> str:
    """``seconds`` since 1970 for people, in UTC; "unknown" for anything else."""
    if not isinstance(seconds, int):
        return "unknown"
    try:
        return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
    except (OverflowError, OSError, ValueError):
        return "unknown"
