# SPDX-License-Identifier: Apache-2.0
"""The owner's committed configuration, read out of real images; whatever is mounted where."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lab_derive import MACHINE, keys, tools_or_skip

from freehold.device import committed
from freehold.device.sysroot import Sysroot
from freehold.errors import InputError, NotHereError, VerificationError
from freehold.keys.verity import digest_bytes
from freehold.lock import intent as intents
from freehold.lock.intent import Intent
from freehold.seal import erofs

pytestmark = pytest.mark.build
OWNERS = '[update]\nurl = "http://owner.example"\nstream = "edge"\n'


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """As ``freehold lock`` writes it."""
    top = tmp_path_factory.mktemp("config")
    (top / "etc/freehold").mkdir(parents=True)
    (top / "etc/freehold/update.toml").write_text(OWNERS)
    (top / "etc/freehold/large").write_bytes(b"0123456789abcdef" * 3000)
    (top / "etc/freehold/empty").write_bytes(b"")
    (top / "etc/freehold/link").symlink_to("update.toml")
    if os.geteuid() == 0:
        os.mknod(top / "etc/freehold/removed", 0o600 | stat.S_IFCHR, os.makedev(0, 0))
    for number in range(300):
        (top / f"etc/file-{number}").write_text(str(number))
    tools_or_skip().run(
        ["mkfs.erofs", "-d0", "-T0", "-U00000000-0000-0000-0000-000000000000", top / "image", top / "etc"], binds=[top]
    )
    return (top / "image").read_bytes()


@pytest.fixture
def machine(tmp_path: Path, image: bytes) -> Sysroot:
    """A locked machine with that configuration."""
    sysroot = Sysroot(root=tmp_path / "sysroot", system=tmp_path / "system")
    for path in (sysroot.root / "owner/config", sysroot.keychain, sysroot.system / "run/freehold/config/freehold"):
        path.mkdir(parents=True)
    (sysroot.root / "owner/id").write_text(MACHINE + "\n")
    (sysroot.keychain / "owner-me.der").write_bytes(keys()["me"].certificate_der())
    digest = digest_bytes(image).hex()
    (sysroot.root / "owner/config" / digest).write_bytes(image)
    stand(sysroot, digest)
    evil = sysroot.system / "run/freehold/config/freehold/update.toml"
    evil.write_text(OWNERS.replace("owner", "evil"))
    (sysroot.system / "etc/freehold").mkdir(parents=True)
    (sysroot.system / "etc/freehold/update.toml").write_text(OWNERS.replace("owner", "evil"))
    (sysroot.system / "usr/lib/freehold/update.toml").write_text(OWNERS.replace("owner", "sealed"))
    return sysroot


def stand(sysroot: Sysroot, config: str | None, by: str = "me") -> None:
    intent = Intent(machine=MACHINE, serial=3, lock="locked", since=1, config=config)
    (sysroot.root / "owner/intent").write_bytes(intents.sign(intent, keys()[by].sign))


def test_files_come_out_as_they_went_in(image: bytes) -> None:
    assert erofs.content(image, "freehold/update.toml") == OWNERS.encode()
    assert erofs.content(image, "/freehold/large") == b"0123456789abcdef" * 3000
    assert erofs.content(image, "freehold/empty") == b""
    assert [erofs.content(image, f"file-{number}") for number in range(300)] == [str(n).encode() for n in range(300)]
    for path in ("freehold", "freehold/link", "freehold/removed", "freehold/none", "file-1/x", "", "..", "freehold/.."):
        assert erofs.content(image, path) is None, path


def test_a_locked_machine_asks_the_image(machine: Sysroot) -> None:
    config = machine.update_config("locked")
    assert (config.url, config.stream) == ("http://owner.example", "edge")
    assert machine.update_config("open").url == "http://evil.example"


def test_without_a_committed_file_the_sealed_one_counts(machine: Sysroot) -> None:
    stand(machine, None)
    assert machine.update_config("locked").url == "http://sealed.example"
    # An intent that is not believed: factory settings are in force.
    stand(machine, "e" * 64, "stranger")
    assert machine.update_config("locked").url == "http://sealed.example"
    (machine.root / "owner/intent").unlink()
    assert machine.update_config("locked").url == "http://sealed.example"
    (machine.system / "usr/lib/freehold/update.toml").unlink()
    with pytest.raises(NotHereError):
        machine.update_config("locked")


def test_another_image_is_refused(machine: Sysroot) -> None:
    [path] = (machine.root / "owner/config").iterdir()
    path.write_bytes(path.read_bytes().replace(b"owner.example", b"0wner.example"))
    with pytest.raises(VerificationError, match="not the configuration that the owner signed"):
        machine.update_config("locked")


def test_an_ordinary_user_sees_what_is_mounted(machine: Sysroot, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(committed, "read", refused)
    assert machine.update_config("locked").url == "http://evil.example"


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_images_are_refused_or_read(image: bytes, data: st.DataObject) -> None:
    changed = bytearray(image)
    for _ in range(data.draw(st.integers(1, 8))):
        changed[data.draw(st.integers(1024, len(changed) - 1))] = data.draw(st.integers(0, 255))
    try:
        erofs.content(bytes(changed), "freehold/update.toml")
    except InputError:
        return
