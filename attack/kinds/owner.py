# SPDX-License-Identifier: Apache-2.0
"""The owner's directory: intent, machine id, committed /etc, provisioning record; and typed machine state."""

from __future__ import annotations

import json

from attack.model import Probe, Row
from attack.target import Target, canary, unit

INTENT = "/owner/intent"
#: What a machine whose TPM remembers its lock says when the word for it is gone, or an older one.
REMEMBERED = r"the standing intent is not believed .*the TPM remembers"
NOT_BELIEVED = "the standing intent is not believed"
OWNER_IS_REAL = Probe("the owner's directory is one", "stat -c %F /sysroot/owner", "^directory$")
PAYLOAD = "[Service]\nType=oneshot\nExecStart=/bin/sh -c '{script}'\n[Install]\nWantedBy=multi-user.target\n"


def _intent(target: Target, data: bytes) -> None:
    target.root.write(INTENT, data, mode=0o600)


def intent_removed(target: Target) -> None:
    target.root.unlink(INTENT)


def intent_garbage(target: Target) -> None:
    _intent(target, b"freehold-intent 1\nlock open\n" + b"\x00" * 300 + b"\nsignature 00\n")


def intent_empty(target: Target) -> None:
    _intent(target, b"")


def intent_edited(target: Target) -> None:
    _intent(target, target.standing().replace(b"\nlock locked\n", b"\nlock open\n"))


def intent_other_machine(target: Target) -> None:
    _intent(target, target.signed_intent(target.owner, machine="0" * 32, lock="open"))


def intent_other_owner(target: Target) -> None:
    _intent(target, target.signed_intent(target.other_owner, serial=target.intent().serial + 5, lock="open"))


def older(target: Target) -> bytes:
    """What the owner signed once: an unlock with a lower serial than the standing lock's."""
    standing = target.intent()
    if standing.serial < 2:
        raise ValueError("the standing intent is the first one: nothing can be older")
    return target.signed_intent(target.owner, serial=standing.serial - 1, lock="open", since=standing.since - 60)


def intent_older(target: Target) -> None:
    _intent(target, older(target))


def inbox_older(target: Target) -> None:
    target.root.write("/inbox/intent", older(target), mode=0o600)


def inbox_other_owner(target: Target) -> None:
    newer = target.signed_intent(target.other_owner, serial=target.intent().serial + 5, lock="open")
    target.root.write("/inbox/intent", newer, mode=0o600)


def inbox_newer(target: Target) -> None:
    """The control: the owner's own unlock."""
    newer = target.signed_intent(target.owner, serial=target.intent().serial + 1, lock="open", config=None)
    target.root.write("/inbox/intent", newer, mode=0o600)


def inbox_config_other(target: Target) -> None:
    """What the owner signed, a commit of /etc, and under its name another sound file with verity."""
    digest = "7" * 64
    newer = target.signed_intent(target.owner, serial=target.intent().serial + 1, config=digest)
    target.root.write("/inbox/intent", newer, mode=0o600)
    target.root.make_directories("/inbox/config")
    target.root.link(target.image(target.previous), f"/inbox/config/{digest}")


def owner_id(target: Target) -> None:
    target.root.write("/owner/id", b"f" * 32 + b"\n", mode=0o600)


def owner_removed(target: Target) -> None:
    target.root.unlink("/owner")


def owner_elsewhere(target: Target) -> None:
    """The whole directory moved into /var, where root may write above it, and a link left in its place."""
    target.root.make_directories("/var/lib")
    target.root.do(["ln /owner /var/lib/owner", "unlink /owner", "symlink /owner var/lib/owner"])


def provisioning(name: str) -> bytes:
    """An Ignition configuration with a unit that leaves the canary ``name``. Pure."""
    text = PAYLOAD.format(script=canary(name))
    units = [{"name": f"{name}.service", "enabled": True, "contents": text}]
    return json.dumps({"ignition": {"version": "3.3.0"}, "systemd": {"units": units}}).encode()


def fw_cfg(target: Target, item: str, content: bytes) -> None:
    """Hand ``content`` to the machine as the hypervisor's item ``item``."""
    file = target.work / f"fw-{item.replace('/', '-')}"
    file.write_bytes(content)
    target.extra += ["-fw_cfg", f"name={item},file={file}"]


def provisioned_fw_cfg(target: Target) -> None:
    target.root.unlink("/owner/provisioned")
    fw_cfg(target, "opt/com.coreos/config", provisioning("provisioned-fw-cfg"))


def provisioned_disk(target: Target) -> None:
    target.root.unlink("/owner/provisioned")
    target.root.write("/provision.ign", provisioning("provisioned-disk"), mode=0o600)


def _config(target: Target) -> str:
    config = target.intent().config
    if config is None:
        raise ValueError("the standing intent commits no /etc")
    return f"/owner/config/{config}"


def config_flipped(target: Target) -> None:
    target.root.flip(_config(target), 1200)


def config_replaced(target: Target) -> None:
    """A sound file with verity, but not the one that the owner signed."""
    target.root.link(target.image(target.previous), _config(target))


def config_missing(target: Target) -> None:
    target.root.unlink(_config(target))


def etc_upper(target: Target, serial: int, name: str) -> None:
    """A unit, and the link that enables it, in the writable layer of /etc that belongs to intent ``serial``."""
    upper = f"/owner/etc/{serial}/upper/systemd/system"
    target.root.write(f"{upper}/{name}.service", unit(name))
    target.root.symlink(f"{upper}/multi-user.target.wants/{name}.service", f"/etc/systemd/system/{name}.service")


def etc_planted(target: Target) -> None:
    etc_upper(target, target.intent().serial, "etc-upper")


def root_home(target: Target) -> None:
    for name in (".bashrc", ".profile", ".bash_profile"):
        target.root.write(f"/owner/roothome/{name}", (canary("root-home") + "\n").encode())
    target.root.write("/owner/roothome/.ssh/authorized_keys", b"ssh-ed25519 AAAA evil\n", mode=0o600)


def machine_state(target: Target) -> None:
    state = json.loads(target.root.read("/state/machine.json"))
    root = {
        "name": "toor", "uid": 0, "gid": 0, "gecos": "", "home": "/home/toor", "shell": "/bin/sh", "hash": "*", "subid": 100000,
    }  # fmt: skip
    state["accounts"] = [*state.get("accounts", []), root]
    target.root.write("/state/machine.json", json.dumps(state).encode(), mode=0o600)


def machine_state_garbage(target: Target) -> None:
    target.root.write("/state/machine.json", b"{" * 100_000, mode=0o600)


ASK_ROOT_SHELL = Probe(
    "root's shell reads no start-up file", "bash -ic true 2>/dev/null; find /root/ -type f", r"^\s*$"
)

ROWS = (
    Row("intent-removed", "owner", "the intent removed", ("harmless",), intent_removed, factory_etc=True,
        reason=REMEMBERED, needs="tpm", controls=("untouched", "control-intent")),
    Row("intent-garbage", "owner", "the intent overwritten with garbage", ("harmless",), intent_garbage, reason=NOT_BELIEVED,
        factory_etc=True, controls=("untouched", "control-intent")),
    Row("intent-empty", "owner", "the intent emptied", ("harmless",), intent_empty, reason=NOT_BELIEVED, factory_etc=True,
        controls=("untouched", "control-intent")),
    Row("intent-edited", "owner", "the intent's word changed to open", ("harmless",), intent_edited, reason=NOT_BELIEVED,
        factory_etc=True, controls=("untouched", "control-intent")),
    Row("intent-other-machine", "owner", "an unlock that the owner signed for another machine", ("harmless",),
        intent_other_machine, reason=f"{NOT_BELIEVED}.*another machine", factory_etc=True,
        controls=("untouched", "control-intent")),
    Row("intent-other-owner", "owner", "an unlock signed by another owner", ("harmless",), intent_other_owner,
        reason=NOT_BELIEVED, factory_etc=True, controls=("untouched", "control-intent")),
    Row("intent-older", "owner", "an older unlock of the owner's put back", ("harmless",), intent_older,
        factory_etc=True, reason=REMEMBERED, needs="tpm", controls=("untouched", "control-intent")),
    Row("inbox-older", "owner", "an older unlock of the owner's in the inbox", ("harmless",), inbox_older,
        reason="its serial is not newer", controls=("untouched", "control-intent")),
    Row("inbox-other-owner", "owner", "another owner's unlock in the inbox", ("harmless",), inbox_other_owner,
        reason="the intent in the inbox is ignored", controls=("untouched", "control-intent")),
    Row("inbox-config-other", "owner", "a commit of /etc in the inbox, another image under its name", ("harmless",),
        inbox_config_other, reason="its /etc is not here, or is not what the owner signed",
        controls=("untouched", "control-intent")),
    Row("owner-id", "owner", "the machine given another id", ("harmless", "refused"), owner_id, reason=NOT_BELIEVED,
        factory_etc=True, way_back="bytes"),
    Row("owner-removed", "owner", "the owner's directory removed", ("harmless",), owner_removed, factory_etc=True,
        reason=REMEMBERED, needs="tpm", controls=("untouched", "control-intent")),
    Row("owner-elsewhere", "owner", "the owner's directory moved below /var, a link in its place", ("harmless", "refused"),
        owner_elsewhere, reason="the owner's directory is not a directory", probes=(OWNER_IS_REAL,), way_back="bytes"),
    Row("provisioned-fw-cfg", "owner", "the provisioning record removed, a new configuration from the hypervisor", ("harmless",),
        provisioned_fw_cfg, controls=("untouched", "control-provision")),
    Row("provisioned-disk", "owner", "the provisioning record removed, a new configuration on the disk", ("harmless",),
        provisioned_disk, controls=("untouched", "control-provision")),
    Row("config-flipped", "owner", "one bit of the committed /etc", ("harmless",), config_flipped,
        reason="the owner's /etc .* is refused", factory_etc=True),
    Row("config-replaced", "owner", "another sound image in the place of the committed /etc", ("harmless",), config_replaced,
        reason="it is not what the owner signed", factory_etc=True),
    Row("config-missing", "owner", "the committed /etc removed", ("harmless",), config_missing,
        reason="the owner's /etc .* is refused", factory_etc=True),
    Row("etc-upper", "owner", "a unit in the writable layer of /etc", ("harmless",), etc_planted, together="planted-state",
        controls=("untouched", "control-etc-upper")),
    Row("root-home", "owner", "start-up files and ssh keys in root's home", ("harmless",), root_home, probes=(ASK_ROOT_SHELL,),
        together="planted-state", controls=("untouched", "control-root-home")),
    Row("machine-state", "owner", "an account with user id 0 in the machine's typed state", ("harmless",), machine_state,
        reason="machine state not believed",
        probes=(Probe("nobody but root has id 0", "getent passwd | awk -F: '$3 == 0' | wc -l", r"^1\s*$"),)),
    Row("machine-state-garbage", "owner", "the machine's typed state overwritten", ("harmless",), machine_state_garbage,
        reason="machine state not believed"),
)  # fmt: skip
