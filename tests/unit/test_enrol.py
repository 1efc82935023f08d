# SPDX-License-Identifier: Apache-2.0
"""``freehold disk --enrol``: who goes into which variable, what is on the boot partition, what is refused."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from freehold.build import disk, enrol, enrol_options
from freehold.build.dbx import read_updates
from freehold.build.enrol import Enrolment, SecureBootKeys, plan
from freehold.build.keys import KeyDirectory, with_keychain
from freehold.build.recipe import load
from freehold.build.store import Store
from freehold.cli import main, parse
from freehold.cli.table import VERBS
from freehold.errors import InputError, VerificationError
from freehold.keys import dbx, efi, pkcs7
from freehold.keys.formats import Revocation, serialize_revoked
from freehold.keys.issue import create
from freehold.keys.verify import Keychain
from freehold.keys.x509 import Signer, load_signer
from freehold.monitor import NullMonitor

TIME = 1_764_000_000
NAMES = (("owner", "owner"), ("second", "owner"), ("release", "release"), ("foreign", "release"), ("stranger", "owner"))


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("keys")
    for name, role in NAMES:
        create(name, "release" if role == "release" else "owner", directory, None)
    return directory


@pytest.fixture(scope="module")
def signers(keys: Path) -> dict[str, Signer]:
    return {name: load_signer(f"file:{keys / name}.key", lambda _: b"") for name, _ in NAMES}


@pytest.fixture(scope="module")
def keychain(signers: dict[str, Signer]) -> Keychain:
    files = {f"owner-{name}.der": signers[name].certificate_der() for name in ("owner", "second")}
    return Keychain.from_files({**files, "release-vendor.der": signers["release"].certificate_der()}, "test")


def names(enrolment: Enrolment, variable: str) -> list[tuple[str, str]]:
    return [(entry.role, entry.name) for entry in enrolment.of(variable)]


def test_who_goes_where(signers: dict[str, Signer], keychain: Keychain) -> None:
    made = plan("force", keychain, signers["second"].certificate_der(), {"uefi-ca.der": signers["foreign"].certificate_der()})
    assert names(made, "PK") == [("owner", "second")]
    assert names(made, "KEK") == [("owner", "second"), ("owner", "owner")]
    assert names(made, "db") == [("owner", "second"), ("owner", "owner"), ("release", "vendor"), ("firmware", "uefi-ca.der")]


def test_what_is_shown_is_what_is_in_the_files(signers: dict[str, Signer], keychain: Keychain) -> None:
    owner = signers["owner"]
    extra = {"uefi-ca.der": signers["foreign"].certificate_der()}
    made = plan("force", keychain, owner.certificate_der(), extra)
    files = SecureBootKeys(made, owner).files(TIME)
    assert files == SecureBootKeys(made, owner).files(TIME)
    assert sorted(files) == ["KEK.auth", "PK.auth", "db.auth"]
    variables = made.data()["variables"]
    assert isinstance(variables, dict)
    for name in efi.VARIABLES:
        when, _, lists = efi.split_update(files[f"{name}.auth"])
        assert when == efi.efi_time(TIME)
        entries = efi.parse_lists(lists)
        assert {one.type for one in entries} == {efi.CERT_X509}
        assert [hashlib.sha256(one.data).hexdigest() for one in entries] == [row["sha256"] for row in variables[name]]
        wanted = [efi.FIRMWARE_ONLY if row["role"] == "firmware" else efi.OWNER for row in variables[name]]
        assert [one.owner for one in entries] == wanted
        for row in variables[name]:
            assert row["sha256"] in made.text()
            assert row["subject"] in made.text()
    assert variables["db"][-1]["subject"] == "CN=foreign,OU=freehold-release"
    assert "--option-rom" not in made.text()
    assert "--option-rom" in plan("force", keychain, owner.certificate_der(), {}).text()


def test_the_platform_key_is_an_owner_of_this_release(signers: dict[str, Signer], keychain: Keychain) -> None:
    assert plan("force", keychain, signers["owner"].certificate_der(), {}).entries
    for name in ("stranger", "release"):
        with pytest.raises(InputError, match="not of this release's keychain"):
            plan("force", keychain, signers[name].certificate_der(), {})
    with pytest.raises(InputError, match="not of this release's keychain"):
        plan("force", Keychain(), signers["owner"].certificate_der(), {})
    with pytest.raises(InputError, match="others"):
        plan("force", keychain, signers["owner"].certificate_der(), {"x": signers["release"].certificate_der()})


def test_a_revoked_certificate_is_not_enrolled(signers: dict[str, Signer], keychain: Keychain) -> None:
    lost = hashlib.sha256(signers["second"].certificate_der()).hexdigest()
    files = {one.file_name: one.der for one in keychain.certificates}
    without = Keychain.from_files({**files, "revoked": serialize_revoked([Revocation(lost, "lost")])}, "test")
    made = plan("force", without, signers["owner"].certificate_der(), {})
    assert names(made, "KEK") == [("owner", "owner")]
    assert names(made, "db") == [("owner", "owner"), ("release", "vendor")]


def test_a_disk_that_would_not_start_is_refused(signers: dict[str, Signer], keychain: Keychain, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(b"{}")
    (tmp_path / "manifest.json.sig").write_bytes(signers["release"].sign_document(b"{}"))
    enrol.check_bootable(tmp_path, keychain, signers["release"])
    for name in ("foreign", "owner"):
        with pytest.raises(VerificationError, match="boot loader"):
            enrol.check_bootable(tmp_path, keychain, signers[name])
    (tmp_path / "manifest.json.sig").write_bytes(signers["foreign"].sign_document(b"{}"))
    with pytest.raises(VerificationError, match="would not start"):
        enrol.check_bootable(tmp_path, keychain, signers["release"])


def test_extra_certificates_are_der_or_pem(keys: Path, signers: dict[str, Signer], tmp_path: Path) -> None:
    der = signers["foreign"].certificate_der()
    assert enrol.extra_certificates([keys / "foreign.crt", keys / "foreign.der"]) == {"foreign.crt": der, "foreign.der": der}
    (tmp_path / "junk").write_bytes(b"junk")
    with pytest.raises(InputError) as caught:
        enrol.extra_certificates([keys / "foreign.der", tmp_path / "junk", tmp_path / "none", keys / "foreign.key"])
    assert len(caught.value.faults) == 3


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ("--owner-key file:x", "--owner-key"), ("--option-rom drop", "--option-rom"), ("--extra-db x", "--extra-db"),
        ("--enrol off --extra-db x", "--extra-db"), ("--dbx x", "--dbx"), ("--enrol force --option-rom keep", "whose programs"),
        ("--enrol force --extra-db x", "--extra-db"), ("--enrol force --option-rom drop --extra-db x", "--extra-db"),
    ],
)  # fmt: skip
def test_options_that_contradict_each_other(options: str, fault: str, tmp_path: Path) -> None:
    verb = next(verb for verb in VERBS if verb.name == "disk")
    keys, store = KeyDirectory(tmp_path), Store(tmp_path)
    parsed, _ = parse(verb, ["server-1", "-o", "x.raw", *options.split()])
    with pytest.raises(InputError, match="do not go together") as caught:
        enrol_options.chosen(parsed, store, keys, tmp_path, NullMonitor())
    assert fault in caught.value.faults[0]
    plain, _ = parse(verb, ["server-1", "-o", "x.raw"])
    assert enrol_options.chosen(plain, store, keys, tmp_path, NullMonitor()) == enrol.NOTHING
    # These go together: what is missing is the key, which is looked for next.
    for good in ("--enrol force", "--enrol if-safe --option-rom drop", "--enrol force --option-rom keep --extra-db x"):
        parsed, _ = parse(verb, ["server-1", "-o", "x.raw", *good.split()])
        with pytest.raises(InputError, match="no owner's key"):
            enrol_options.chosen(parsed, store, keys, tmp_path, NullMonitor())


def test_the_owners_key_is_an_owners(keys: Path) -> None:
    here = KeyDirectory(keys)
    assert here.owner(None, NullMonitor()).role == here.owner(f"file:{keys}/second.key", NullMonitor()).role == "owner"
    with pytest.raises(InputError, match="role is release"):
        here.owner(f"file:{keys}/release.key", NullMonitor())


def test_a_machine_refuses_from_the_start_what_its_owner_revoked(
    signers: dict[str, Signer], keychain: Keychain, tmp_path: Path
) -> None:
    """Signed anew, as the boot loader writes it: set, not added to."""
    owner, second = signers["owner"], signers["second"]
    foreign = dbx.certificate_entry(signers["foreign"].certificate_der())
    (tmp_path / "one").write_bytes(dbx.make([foreign], 5, owner.sign_pkcs7))
    (tmp_path / "two").write_bytes(dbx.make([dbx.program_entry(bytes(32)), foreign], 6, second.sign_pkcs7))
    owners = [one.der for one in keychain.of_role("owner")]
    refused = read_updates([tmp_path / "one", tmp_path / "two"], owners)
    assert refused == (foreign, dbx.program_entry(bytes(32)))
    made = plan("force", keychain, owner.certificate_der(), {}, refused)
    assert "CN=foreign,OU=freehold-release" in made.text()
    assert made.data()["dbx"] == [dbx.describe(one) for one in refused]
    files = SecureBootKeys(made, owner).files(TIME)
    assert sorted(files) == ["KEK.auth", "PK.auth", "db.auth", "dbx.auth"]
    when, signature, lists = efi.split_update(files["dbx.auth"])
    assert (when, lists) == (efi.efi_time(TIME), dbx.to_lists(refused))
    covered = efi.covered("dbx", when, lists, efi.ATTRIBUTES)
    assert pkcs7.verify(pkcs7.parse(signature), covered, owners) == owner.certificate_der()
    (tmp_path / "stranger").write_bytes(dbx.make([foreign], 5, signers["stranger"].sign_pkcs7))
    with pytest.raises(InputError) as caught:
        read_updates([tmp_path / "one", tmp_path / "stranger", tmp_path / "none"], owners)
    assert ["nobody" in fault for fault in caught.value.faults] == [True, False]


def test_a_disk_that_its_own_list_refuses_is_not_made(signers: dict[str, Signer], keychain: Keychain, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(b"{}")
    (tmp_path / "manifest.json.sig").write_bytes(signers["release"].sign_document(b"{}"))
    release, foreign = (signers[name].certificate_der() for name in ("release", "foreign"))
    image = dbx.Program("uki.efi", b"\1" * 32, (release,))
    for entry in (dbx.certificate_entry(foreign), dbx.program_entry(b"\2" * 32)):
        enrol.check_bootable(tmp_path, keychain, signers["release"], [entry], [image])
    for entry, said in ((dbx.certificate_entry(release), "the boot loader"), (dbx.program_entry(b"\1" * 32), r"uki\.efi")):
        with pytest.raises(VerificationError, match=f"^{said} would not start"):
            enrol.check_bootable(tmp_path, keychain, signers["release"], [entry], [image])


def test_loader_configuration() -> None:
    assert "enroll" not in disk.loader_conf(5)
    assert disk.loader_conf(5, "if-safe") == disk.loader_conf(5) + "secure-boot-enroll if-safe\n"


def test_nothing_is_nothing() -> None:
    assert enrol.NOTHING.files(TIME) == {}
    assert enrol.NOTHING.enrolment.data() == {"mode": "off", "variables": {}, "dbx": []}
    assert "enrols nothing" in enrol.NOTHING.enrolment.text()


def test_a_release_is_not_signed_by_a_key_that_it_revokes(keys: Path, signers: dict[str, Signer]) -> None:
    plain = load(Path(__file__).parents[2] / "recipes" / "server.toml")
    here, signer = KeyDirectory(keys), signers["release"]

    def revoking(name: str) -> tuple[Revocation, ...]:
        return (Revocation(hashlib.sha256(signers[name].certificate_der()).hexdigest(), "lost"),)

    made = with_keychain(replace(plain, revoked=revoking("foreign")), here, signer)
    assert "release-foreign.der" not in dict(made.keychain_files())
    assert dict(made.keychain_files())["revoked"] == serialize_revoked(revoking("foreign"))
    with pytest.raises(InputError, match="would refuse the release"):
        with_keychain(replace(plain, revoked=revoking("release")), here, signer)


def test_a_dry_run_leaves_nothing_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nowhere = tmp_path / "store"
    arguments = ["disk", "server-1", "--store", str(nowhere), "--keys", str(tmp_path / "keys")]
    assert main([*arguments, "--dry-run", "--enrol", "force"]) == 2
    assert "no release 'server-1'" in capsys.readouterr().err
    release = nowhere / "releases" / "server-1"
    release.mkdir(parents=True)
    (release / "manifest.json").write_text('{"commit": "x"}')
    assert main([*arguments, "--dry-run", "--enrol", "force"]) == 2
    assert "no owner's key" in capsys.readouterr().err
    assert main([*arguments, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["enrolment"] == {"mode": "off", "variables": {}, "dbx": []}
    assert main(arguments) == 2
    assert "where shall the disk go" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["manifest.json", "releases", "server-1", "store"]
