# SPDX-License-Identifier: Apache-2.0
"""The transactions of ``freehold upgrade``, ``rollback`` and ``cleanup``, and what they report."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from freehold import atomic
from freehold.device import base as bases
from freehold.device import carry, handover, loader, prune, stage, wanted
from freehold.device.base import Base
from freehold.device.sysroot import Sysroot, UpdateConfig, record
from freehold.errors import EXIT_DONE, EXIT_UNCHANGED, FreeholdError
from freehold.monitor import Monitor, step
from freehold.report import Report
from freehold.update.manifest import Difference, Manifest, difference, sha256

SCHEMA = carry.SCHEMA


@dataclass(frozen=True)
class Options:
    """How far ``upgrade`` goes: ``check``, ``preview``, ``download`` or ``stage``, then whether to reboot."""

    until: str = "stage"
    reboot: bool = False
    unchanged_exit_77: bool = False
    #: How the updater is to tell.
    how: handover.Words = handover.PLAIN


def upgrade(sysroot: Sysroot, options: Options, monitor: Monitor) -> Report:
    """Bring the configured stream's release onto the machine, as far as ``options`` say.

    Raises :class:`VerificationError` for a release that may not be installed, :class:`BusyError` while
    another command changes deployments, :class:`FreeholdError` when something cannot be had; the machine is
    then unchanged.
    """
    sysroot.booted_id()
    config = sysroot.update_config(sysroot.mode())
    if options.until in ("check", "preview"):
        return _upgrade(sysroot, config, options, monitor)
    with atomic.exclusive(sysroot.lock_file, "the list of deployments"):
        report = _upgrade(sysroot, config, options, monitor)
    release = report.data.get("hand_over")
    if release is None:
        return report
    # The list of deployments is free in between: the updater judges anew.
    return handover.start("upgrade", options.how._replace(release=str(release), reboot=options.reboot))


def _upgrade(sysroot: Sysroot, config: UpdateConfig, options: Options, monitor: Monitor) -> Report:
    running = stage.running_manifest(sysroot).manifest
    release = bases.of(sysroot, running.id).manifest if running.derived else running
    with step(monitor, "asking the update server"):
        offer = stage.look(sysroot, config)
    offered = offer.manifest
    # What a machine made for itself is judged as the release that it stands on.
    entries = bases.as_releases(sysroot, stage.ensure_esp(sysroot))
    judgement = stage.judge(offered, release, entries)
    fresh = judgement.verdict == "new"
    if fresh:
        _above_floor(sysroot, offered.number, offered.version)
    # An ordinary user may ask, but not leave a note.
    with contextlib.suppress(PermissionError):
        stage.remember(sysroot, config, offered if fresh else None)
    data = carry.report_data(judgement, running, offered, offer.signer)
    data |= {"stream": config.stream, "downloaded": False}
    if options.until == "preview":
        changes = difference(release, offered)
        data["packages"] = {
            "added": [list(row) for row in changes.added],
            "removed": [list(row) for row in changes.removed],
            "changed": [list(row) for row in changes.changed],
        }
        return Report(data, _preview(release, offered, changes), _status(fresh, options))
    if not fresh:
        if judgement.verdict == "staged" and options.reboot:
            _reboot()
        return Report(data, f"Nothing to do: {judgement.reason}.\n", _status(fresh, options))
    if options.until == "check":
        return Report(data, f"{offered.version} is available; `freehold upgrade` installs it.\n")
    asked = wanted.load(sysroot) if options.until == "stage" and (sysroot.root / "owner/id").exists() else None
    stage.download(sysroot, offer, config, monitor)
    data["downloaded"] = True
    if options.until == "download":
        return Report(data, f"{offered.version} is downloaded; `freehold upgrade` makes it the next to boot.\n")
    if asked is not None and asked.list:
        why = handover.refusal(sysroot, asked.intent)
        if not why:
            return Report({"hand_over": offered.id})
        held = carry.hold_unsigned(sysroot, Base(offered, sha256(offer.manifest_bytes)), why)
        stage.remember(sysroot, config, offered, held=held.message)
        raise held
    with step(monitor, "staging"):
        # Before the commit point: what boots next can then have the device key at once.
        data["device_key"] = _allow_device_key(sysroot, offered.id, monitor)
        stage.commit(sysroot, offered)
        stage.remember(sysroot, config, None)
    data["staged"] = True
    if options.reboot:
        _reboot()
    return Report(data, carry.staged_text(offered.version))


def _allow_device_key(sysroot: Sysroot, deployment: str, monitor: Monitor) -> bool:
    """Let the staged deployment have the device key, where there is one. That it cannot does not keep a machine from updating."""
    from freehold.device.device_key import Places, facts
    from freehold.run import run

    if facts(Places(sysroot.root / "owner", sysroot.state)) is None:
        return False
    # This process may be steered by whoever started it; the guard lets only the updater's read the key.
    try:
        done = run([handover.UPDATER, "allow", deployment], check=False, timeout=300)
    except FreeholdError as error:
        monitor.message(f"the device key will not be there after the reboot: {error.message}")
        return False
    if done.status != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        monitor.message(f"the device key will not be there after the reboot: {said[-1][:300]}")
    return done.status == 0


def rollback(sysroot: Sysroot, monitor: Monitor, *, reboot: bool = False) -> Report:
    """Make the previous deployment boot next (or undo a change that waits for the reboot)."""
    booted = sysroot.booted_id()
    with atomic.exclusive(sysroot.lock_file, "the list of deployments"):
        switch = loader.plan_rollback(stage.ensure_esp(sysroot), booted)
        chosen = sysroot.deployment(switch.chosen.id)
        if chosen is not None and chosen.id != booted:
            _above_floor(sysroot, chosen.manifest.number, chosen.manifest.version)
        with step(monitor, "switching"):
            loader.apply(sysroot.esp, switch)
        record(sysroot, "rollback", id=switch.chosen.id, version=switch.chosen.version)
    if reboot:
        _reboot()
    moved = [loader.parse(old) for old, _ in switch.renames]
    aside = [entry.version for entry in moved if entry is not None and entry.id != switch.chosen.id]
    data: dict[str, object] = {
        "schema": "freehold-rollback-1",
        "next": {"version": switch.chosen.version, "id": switch.chosen.id},
        "set_aside": aside,
    }
    again = "; `freehold rollback` again leads back" if aside else ""
    if switch.chosen.id == booted:
        kept = f" ({', '.join(aside)} is set aside)" if aside else ""
        return Report(data, f"The running {switch.chosen.version} boots next again{kept}.\n")
    return Report(data, f"{switch.chosen.version} boots next; `systemctl reboot` switches to it{again}.\n")


def cleanup(sysroot: Sysroot, monitor: Monitor) -> Report:
    """Remove deployments that are neither running, next, pinned, nor the one to go back to."""
    with atomic.exclusive(sysroot.lock_file, "the list of deployments"):
        stage.ensure_esp(sysroot)
        before = prune.free_bytes(sysroot.root)
        gone = prune.cleanup(sysroot, monitor)
        freed = max(0, prune.free_bytes(sysroot.root) - before)
    data: dict[str, object] = {"schema": "freehold-cleanup-1", "removed": gone, "bytes": freed}
    return Report(data, f"Removed {len(gone)} deployments, {freed >> 20} MiB.\n" if gone else "Nothing to remove.\n")


def _above_floor(sysroot: Sysroot, number: int, version: str) -> None:
    """Refuse what the early step would not boot. An ordinary user who only asks cannot know."""
    from freehold.lock import floor

    with contextlib.suppress(PermissionError):
        floor.require(floor.known(sysroot.root / "owner", sysroot.keychain), number, version)


def _status(fresh: bool, options: Options) -> int:
    return EXIT_UNCHANGED if options.unchanged_exit_77 and not fresh else EXIT_DONE


def _reboot() -> None:
    from freehold.run import run

    run(["systemctl", "reboot"], timeout=60)


def _preview(running: Manifest, offered: Manifest, changes: Difference) -> str:
    lines = [f"{running.version} -> {offered.version}"]
    lines += [f"  ~ {name} {old} -> {new}" for name, old, new in changes.changed]
    lines += [f"  + {name} {version}" for name, version in changes.added]
    lines += [f"  - {name} {version}" for name, version in changes.removed]
    if len(lines) == 1:
        lines.append("  no package differs")
    return "\n".join(lines) + "\n"
