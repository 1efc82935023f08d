# SPDX-License-Identifier: Apache-2.0
"""What keeps a running machine from being locked."""

from __future__ import annotations

from pathlib import Path

import pytest

from freehold.errors import FreeholdError
from freehold.lock import actions, guard, mounts

MACHINE = (
    "22 1 0:21 / / ro,relatime - overlay overlay ro\n24 22 0:23 / /etc rw,relatime shared:1 - overlay etc rw\n"
    "30 22 254:2 /var /var rw,relatime shared:2 - ext4 /dev/vda2 rw\n31 22 0:30 / /usrdata rw - tmpfs tmpfs rw\n"
)
#: As systemd-sysext merges them.
EXTENSION = "88 22 0:61 / /usr ro,nodev,relatime shared:9 - overlay sysext ro,lowerdir=/run/systemd/sysext/meta/usr\n"


def test_what_lies_over_a_place() -> None:
    assert mounts.over("/usr", MACHINE) == []
    assert mounts.over("/usr", f"{MACHINE}{EXTENSION}90 88 0:62 / /usr/local rw - tmpfs x rw\n") == ["/usr", "/usr/local"]
    assert mounts.over("/usr", "short line\n\n") == []


@pytest.mark.parametrize("merged", [False, True])
def test_no_lock_below_a_merged_extension(merged: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No program of the merged tree would be a trusted one: the machine would refuse itself everything."""
    (tmp_path / "mountinfo").write_text(MACHINE + EXTENSION * merged)
    monkeypatch.setattr(actions, "MOUNTS", tmp_path / "mountinfo")
    monkeypatch.setattr(actions, "OWNER", tmp_path / "owner")
    monkeypatch.setattr(guard, "preflight", lambda _tier: [])
    if not merged:
        actions.ready("privileged")
        return
    with pytest.raises(FreeholdError, match="over the sealed tree, at /usr:") as caught:
        actions.ready("privileged")
    assert "systemd-sysext unmerge" in (caught.value.hint or "")
