# SPDX-License-Identifier: Apache-2.0
"""The device key sealed by a real (software) TPM: which boots get it, and what is said when one does not."""

from __future__ import annotations

import shutil
import socket
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from lab_device import ID, LOCKED, Bench, digest, event, log, signer, standing
from lab_release import Lab, key
from lab_socket import wait_for

from freehold.build import uki
from freehold.build.store import cache_directory
from freehold.build.tools import Tools, ensure
from freehold.device import device_key, device_key_verbs
from freehold.device.device_key import DeviceKeyError
from freehold.errors import FreeholdError, VerificationError
from freehold.keys import device, issue, pcr, pe
from freehold.keys.efi import CERT_X509, OWNER, Signature, certificate_list
from freehold.keys.verify import judge_leaf
from freehold.monitor import NullMonitor
from freehold.run import run, start
from freehold.update.manifest import Manifest, Uki, parse_manifest, serialize_manifest, sha256

pytestmark = pytest.mark.build
ROOT = Path(__file__).parents[2]
EARLY = ROOT / "early"
LOADER = "usr/lib/systemd/boot/efi/systemd-bootx64.efi"
VARIABLES = [digest(word) for word in (b"SecureBoot", b"PK", b"KEK", b"db", b"dbx", b"separator")]
SYSINIT, READY = "sysinit", "ready"


@pytest.fixture(scope="module")
def tree() -> Tools:
    return ensure(cache_directory(), NullMonitor())


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("keys")
    for name, role in (("me", "owner"), ("stranger", "owner"), ("vendor", "vendor")):
        issue.create(name, role, directory, None)  # type: ignore[arg-type]
    return directory


@pytest.fixture(scope="module")
def measure(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The early step's measuring code, with the sanitizers on."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    program = tmp_path_factory.mktemp("c") / "measure"
    names = ("intent", "measure", "sha256", "tpm")
    sources = [Path(__file__).parent / "c/measure_main.c", *(EARLY / f"{name}.c" for name in names)]
    flags = ["-std=gnu17", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined"]
    run(["cc", *flags, "-fno-sanitize-recover=all", f"-I{EARLY}", "-o", program, *sources])
    return program


@pytest.fixture(scope="module")
def pairs(tree: Tools, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[bytes, bytes]]:
    """Unified kernel images as builds make them, normal and rescue, by version; the kernel is some EFI program."""
    work = tmp_path_factory.mktemp("images")
    (work / "in").mkdir()
    shutil.copyfile(tree.root / LOADER, work / "in/linux")
    made: dict[str, tuple[bytes, bytes]] = {}
    for version in ("1.0", "2.0"):
        (work / "in/initrd").write_bytes(version.encode() * 3001)
        line = uki.command_line(digest(version.encode()).hex(), 7, ["ttyS0"], [])
        normal, rescue = uki.write_pair(
            tree, work, kernel=work / "in/linux", uname="6.12", initrd=work / "in/initrd", line=line,
            release=uki.os_release("server", version),
        )  # fmt: skip
        made[version] = normal.read_bytes(), rescue.read_bytes()
    return made


@pytest.fixture(scope="module")
def images(pairs: dict[str, tuple[bytes, bytes]]) -> dict[str, bytes]:
    """The normal ones."""
    return {version: normal for version, (normal, _) in pairs.items()}


def test_registers_are_foreseen_as_systemd_measures_them(tree: Tools, tmp_path: Path) -> None:
    """``systemd-measure`` reads the parts, we the finished image: one value, with and without profiles and words."""
    files = {"linux": b"", "initrd": b"i" * 5001, "cmdline": b"quiet", "uname": b"6.12", "osrel": b"ID=freehold\n",
             "p0": b"ID=main\nTITLE=Main\n", "p1": b"ID=rescue\nTITLE=Rescue\n", "rescue": b"quiet rescue"}  # fmt: skip
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    shutil.copyfile(tree.root / LOADER, tmp_path / "linux")
    common = ["ukify", "build", "--linux=linux", "--initrd=initrd", "--cmdline=@cmdline", "--uname=6.12", "--os-release=@osrel"]
    tree.run([*common, f"--stub={uki.STUB}", "--output=plain.efi"], binds=[tmp_path], cwd=tmp_path)
    tree.run(["ukify", "build", "--profile=@p1", "--cmdline=@rescue", "--output=p1.efi"], binds=[tmp_path], cwd=tmp_path)
    more = ["--profile=@p0", "--join-profile=p1.efi", f"--stub={uki.STUB}", "--output=profiles.efi"]
    tree.run([*common, *more], binds=[tmp_path], cwd=tmp_path)
    for name, profile in (("plain", []), ("profiles", ["--profile=p0"])):
        inside = f"objcopy -O binary --only-section=.sbat {name}.efi sbat"
        tree.run(["sh", "-c", inside], binds=[tmp_path], cwd=tmp_path)
        for phase in ((), *pcr.PHASES):
            done = tree.run(
                ["/usr/lib/systemd/systemd-measure", "calculate", "--linux=linux", "--initrd=initrd", "--cmdline=cmdline",
                 "--uname=uname", "--osrel=osrel", "--sbat=sbat", *profile, "--bank=sha256", f"--phase={':'.join(phase) or ':'}"],
                binds=[tmp_path], cwd=tmp_path,
            )  # fmt: skip
            ours = pcr.after(pcr.kernel_register((tmp_path / f"{name}.efi").read_bytes()), phase)
            assert f"11:sha256={ours.hex()}" in done.text, (name, phase)


class Board:
    """A machine with a TPM. ``reboot`` measures as firmware, stub, early step and systemd do, by the real C code."""

    def __init__(self, work: Path, tree: Tools, measure: Path, bench: Bench, images: dict[str, bytes]) -> None:
        self.work, self.tree, self.measure, self.bench, self.images = work, tree, measure, bench, images
        self.process: subprocess.Popen[bytes] | None = None
        self.places: dict[str, Manifest] = {}
        self.socket = work / "sock"
        tpm = bench.machine.tpm._replace(
            device=f"swtpm:path={self.socket}", event_log=work / "log", scratch=work,
            command=tuple(str(part) for part in tree.argv(["systemd-creds"], binds=[work])),
        )  # fmt: skip
        self.machine = bench.machine._replace(tpm=tpm)
        db = [bench.machine.keychain.certificates[2].der, signer(bench.keys).certificate_der()]
        self.vendor, self.owner = (pcr.vouching(Signature(CERT_X509, OWNER, der)) for der in db)
        (bench.lab.sysroot.system / device_key._DB).write_bytes(b"\6\0\0\0" + b"".join(map(certificate_list, db)))
        for version in images:
            self.deploy(version)

    def deploy(self, version: str) -> None:
        """A deployment whose manifest names the real kernel image."""
        sysroot, image = self.machine.sysroot, self.images[version]
        old = self.bench.lab.running if version == "1.0" else self.bench.lab.install(version, 2000)
        named = old._replace(uki=Uki("uki.efi", sha256(image), len(image)))
        directory = sysroot.deployments / named.id
        data = serialize_manifest(named)
        (directory / "manifest.json").write_bytes(data)
        (directory / "manifest.json.sig").write_bytes(key("release", "vendor").sign(data))
        assert parse_manifest(data).id == named.id
        (sysroot.esp / f"EFI/Linux/freehold-{version}-{named.id}.efi").write_bytes(image)
        self.places[version] = named

    def power(self, *, state: str = "state", on: bool = True) -> None:
        if self.process is not None:
            # As the kernel does. A TPM that loses its power without it counts a failed try, for what it cannot know.
            self.command(0x145, bytes(2), sessions=False)  # TPM2_Shutdown, clear
            self.process.terminate()
            self.process.wait()
            self.process = None
        for path in (self.socket, self.socket.with_name("sock.ctrl")):
            path.unlink(missing_ok=True)
        if not on:
            return
        (self.work / state).mkdir(exist_ok=True)
        self.process = start(
            [*self.tree.beside("swtpm"), "socket", "--tpm2", "--server", f"type=unixio,path={self.socket}",
             "--ctrl", f"type=unixio,path={self.socket}.ctrl", "--tpmstate", f"dir={self.work}/{state}",
             "--flags", "not-need-init,startup-clear"],
            log=self.work / "swtpm.log",
        )  # fmt: skip
        wait_for(self.socket)

    def command(self, code: int, body: bytes, *, sessions: bool = True) -> bytes:
        """A raw TPM 2.0 command; its response, which has to be a success."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self.socket))
            connection.sendall(struct.pack(">HII", 0x8002 if sessions else 0x8001, 10 + len(body), code) + body)
            answer = connection.recv(4096)
        assert answer[6:10] == bytes(4), answer.hex()
        return answer

    def authorized(self, code: int, handle: int, rest: bytes) -> bytes:
        return self.command(code, struct.pack(">IIIHBH", handle, 9, 0x40000009, 0, 0, 0) + rest)

    def extend(self, register: int, value: bytes) -> None:
        self.authorized(0x182, register, struct.pack(">IH", 1, 0x0B) + value)
        self.look()

    def word(self, word: str) -> None:
        """As the early step says a word, by its own code."""
        assert run([self.measure, self.socket, word]).text == "0\n"
        self.look()

    def look(self) -> None:
        """What the kernel shows of the TPM."""
        directory = self.machine.tpm.directory
        (directory / "pcr-sha256").mkdir(parents=True, exist_ok=True)
        (directory / "tpm_version_major").write_text("2\n")
        for register in (pcr.SECURE_BOOT_PCR, pcr.KERNEL_PCR):
            selected = bytearray(3)
            selected[register // 8] |= 1 << register % 8
            answer = self.command(0x17E, struct.pack(">IHB3s", 1, 0x0B, 3, bytes(selected)), sessions=False)
            (directory / "pcr-sha256" / str(register)).write_text(answer[-32:].hex().upper() + "\n")

    def reboot(
        self, version: str = "1.0", *words: str, image: bytes | None = None, state: str = "state",
        variables: list[bytes] = VARIABLES, derived: bool = False,
    ) -> None:  # fmt: skip
        """Start ``version`` from power-on, as far as the last of ``words``."""
        self.power(state=state)
        events = [*variables, self.vendor, *([self.owner] if derived else [])]
        (self.work / "log").write_bytes(log(*(event(7, 0x80000001, one) for one in events)))
        for one in events:
            self.extend(7, one)
        content = image if image is not None else self.images[version]
        program = pe.parse(content)
        for name in (".linux", ".osrel", ".cmdline", ".initrd", ".uname", ".sbat"):
            self.extend(11, digest(name.encode() + b"\0"))
            self.extend(11, digest(program.contents(name)[0]))
        for word in words:
            self.word(word)
        named = self.places[version]
        (self.machine.sysroot.system / "proc/cmdline").write_text(f"quiet freehold.image={named.image_digest} ro\n")
        self.bench.record(keychain_source="firmware")

    def make(self) -> bytes:
        """Lock: from an open boot, a key with the owner's certificate."""
        made = device_key.make(self.machine)
        assert (made.keeper, made.left_out) == ("tpm2", ())
        public = issue.requested_key_der(made.request, "it")
        der = issue.device_certificate(public, ID, signer(self.bench.keys))
        device_key.install(self.machine, der)
        return der

    def open(self) -> bytes:
        """The certificate of the opened key, after it signed something."""
        opened = device_key.open_signer(self.machine, standing())
        assert len(opened.sign(b"text")) == 256
        return opened.certificate_der()


LOCKED_BOOT = (pcr.LOCKED, SYSINIT, READY)
OPEN_BOOT = (pcr.NOT_LOCKED, SYSINIT, READY)


@pytest.fixture
def board(tree: Tools, measure: Path, keys: Path, images: dict[str, bytes], tmp_path: Path) -> Iterator[Board]:
    # A socket's path has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="freehold-tpm-") as work:
        made = Board(Path(work), tree, measure, Bench(Lab(tmp_path / "lab"), keys), images)
        try:
            yield made
        finally:
            made.power(on=False)


@pytest.fixture
def sealed(board: Board) -> Board:
    """A machine that was locked, and rebooted into its first locked boot."""
    board.reboot("1.0", *OPEN_BOOT)
    board.make()
    board.reboot("1.0", *LOCKED_BOOT)
    return board


def test_the_words_in_c_are_those_in_python() -> None:
    header = (EARLY / "measure.h").read_text()
    assert f'#define MEASURE_LOCKED "{pcr.LOCKED}"\n' in header
    assert f'#define MEASURE_NOT_LOCKED "{pcr.NOT_LOCKED}"\n' in header


def test_a_locked_boot_gets_the_key_and_the_boot_that_locked_does_not(board: Board) -> None:
    board.reboot("1.0", *OPEN_BOOT)
    der = board.make()
    # Whoever was root while it was open could do all that this boot does.
    with pytest.raises(DeviceKeyError, match="did not begin locked") as caught:
        board.open()
    assert "freehold unlock" in (caught.value.hint or "")
    board.reboot("1.0", *LOCKED_BOOT)
    assert board.open() == der
    # No plain key on the disk: neither as it is, nor in base64.
    file = device.read_key(board.machine.places.key.read_bytes())
    assert file.keeper == "tpm2"
    assert b"private" not in file.secret


@pytest.mark.parametrize("words", [(pcr.LOCKED,), (pcr.LOCKED, SYSINIT), LOCKED_BOOT])
def test_every_phase_of_a_locked_boot_gets_it(sealed: Board, words: tuple[str, ...]) -> None:
    sealed.reboot("1.0", *words)
    assert sealed.open()


@pytest.mark.parametrize(
    "words",
    [(), (SYSINIT, READY), OPEN_BOOT, (pcr.NOT_LOCKED, pcr.LOCKED, SYSINIT, READY), (*LOCKED_BOOT, "shutdown"),
     (pcr.LOCKED, pcr.LOCKED), (pcr.LOCKED, READY)],
)  # fmt: skip
def test_other_boots_of_the_same_image_do_not(sealed: Board, words: tuple[str, ...]) -> None:
    """Among them root of an open boot who says the word himself: the other one was said before."""
    assert sealed.open()
    sealed.reboot("1.0", *words)
    with pytest.raises(DeviceKeyError, match="the TPM refuses the device key in this boot"):
        sealed.open()


def test_the_rescue_image_does_not(sealed: Board, pairs: dict[str, tuple[bytes, bytes]]) -> None:
    sealed.reboot("1.0", *LOCKED_BOOT, image=pairs["1.0"][1])
    with pytest.raises(DeviceKeyError, match="another kernel image runs"):
        sealed.open()


def test_a_kernel_update_keeps_the_key(sealed: Board) -> None:
    """Staged while locked, allowed by the key itself; then both images get it, and a third does not."""
    for path in sealed.machine.sysroot.deployments.glob(f"*/{device_key.POLICIES}"):
        if path.parent.name != sealed.places["1.0"].id:
            path.unlink()
    sealed.reboot("2.0", *LOCKED_BOOT)
    with pytest.raises(DeviceKeyError, match="staged without the device key's leave"):
        sealed.open()
    sealed.reboot("1.0", *LOCKED_BOOT)
    device_key.allow(sealed.machine, standing(), sealed.places["2.0"].id)
    sealed.reboot("2.0", *LOCKED_BOOT)
    assert sealed.open()
    sealed.reboot("1.0", *LOCKED_BOOT)
    assert sealed.open()
    # Another command line in an image that claims to be this deployment.
    changed = sealed.images["1.0"].replace(b"console=ttyS0", b"console=ttyS1")
    assert changed != sealed.images["1.0"]
    sealed.reboot("1.0", *LOCKED_BOOT, image=changed)
    with pytest.raises(DeviceKeyError, match="another kernel image runs"):
        sealed.open()


def test_what_came_after_the_request_is_named(board: Board) -> None:
    board.reboot("1.0", *OPEN_BOOT)
    made = device_key.make(board.machine)
    (board.machine.sysroot.deployments / board.places["2.0"].id / device_key.POLICIES).unlink()
    public = issue.requested_key_der(made.request, "it")
    said: list[str] = []

    class Listening(NullMonitor):
        def message(self, text: str) -> None:
            said.append(text)

    der = issue.device_certificate(public, ID, signer(board.bench.keys))
    assert device_key_verbs.keep(LOCKED, der, board.machine, Listening())
    assert said == ["the device key will not be there after a boot of 2.0, which came after the request"]


def test_what_is_not_genuine_is_not_allowed(sealed: Board) -> None:
    identity = sealed.places["2.0"].id
    directory = sealed.machine.sysroot.deployments / identity
    good = (directory / "manifest.json").read_bytes()
    (directory / "manifest.json").write_bytes(good.replace(b'"version"', b'"versioN"'))
    with pytest.raises(VerificationError, match="not genuine"):
        device_key.allow(sealed.machine, standing(), identity)
    (directory / "manifest.json").write_bytes(good)
    entry = next((sealed.machine.sysroot.esp / "EFI/Linux").glob(f"*{identity}*"))
    entry.write_bytes(sealed.images["1.0"])
    with pytest.raises(FreeholdError, match="not there as its manifest names it"):
        device_key.allow(sealed.machine, standing(), identity)
    entry.write_bytes(sealed.images["2.0"])
    device_key.allow(sealed.machine, standing(), identity)


def test_a_derived_image_keeps_the_key(sealed: Board) -> None:
    """Vouched for by the owner's entry of db, so PCR 7 differs; its manifest is signed by the device key."""
    opened = device_key.open_signer(sealed.machine, standing())
    identity = sealed.places["2.0"].id
    directory = sealed.machine.sysroot.deployments / identity
    data = (directory / "manifest.json").read_bytes()
    (directory / "manifest.json.sig").write_bytes(opened.sign_document(data))
    device_key.allow(sealed.machine, standing(), identity)
    sealed.reboot("2.0", *LOCKED_BOOT, derived=True)
    assert sealed.open() == opened.certificate_der()
    # And from there back to the release, whose image the vendor's entry vouches for.
    device_key.allow(sealed.machine, standing(), sealed.places["1.0"].id)
    sealed.reboot("1.0", *LOCKED_BOOT)
    assert sealed.open()


def test_other_firmware_keys_do_not_get_it(sealed: Board) -> None:
    """Secure Boot off, or another db: whatever files of the running system say."""
    for name in (b"SecureBoot", b"db"):
        variables = [digest(name + b" changed") if one == digest(name) else one for one in VARIABLES]
        sealed.reboot("1.0", *LOCKED_BOOT, variables=variables)
        with pytest.raises(DeviceKeyError, match="the firmware's keys are not those"):
            sealed.open()
    sealed.reboot("1.0", *LOCKED_BOOT)
    assert sealed.open()


def test_another_board_does_not_get_it(sealed: Board) -> None:
    sealed.reboot("1.0", *LOCKED_BOOT, state="other")
    with pytest.raises(FreeholdError, match="not the TPM that the device key was sealed by") as caught:
        sealed.open()
    assert "\n" not in caught.value.message
    assert "freehold unlock" in (caught.value.hint or "")
    # The way back: open, lock again.
    sealed.reboot("1.0", *OPEN_BOOT, state="other")
    der = sealed.make()
    sealed.reboot("1.0", *LOCKED_BOOT, state="other")
    assert sealed.open() == der
    assert judge_leaf(der, sealed.machine.keychain, "device", ID)


def test_a_tpm_in_lockout_says_so_and_comes_back(sealed: Board) -> None:
    # TPM2_DictionaryAttackParameters, no try allowed: lockout at once.
    sealed.authorized(0x13A, 0x4000000A, struct.pack(">III", 0, 1000, 1000))
    with pytest.raises(FreeholdError, match=r"^the TPM is in lockout") as caught:
        sealed.open()
    assert caught.value.hint
    sealed.authorized(0x13A, 0x4000000A, struct.pack(">III", 32, 1000, 1000))
    assert sealed.open()


def test_a_cleared_or_missing_tpm_says_so(sealed: Board) -> None:
    sealed.authorized(0x126, 0x4000000A, b"")  # TPM2_Clear
    with pytest.raises(FreeholdError, match="or it was cleared"):
        sealed.open()
    sealed.power(on=False)
    with pytest.raises(FreeholdError, match=r"^there is no TPM$"):
        sealed.open()


def damaged(value: device.KeyFile) -> device.KeyFile:
    return value._replace(secret=value.secret[:-1] + bytes([value.secret[-1] ^ 1]))


def unsealable(value: device.KeyFile) -> device.KeyFile:
    return value._replace(sealed=value.sealed[:200])


def other_key(value: device.KeyFile) -> device.KeyFile:
    """The sealed secret with the public key of somebody else's key, whose policies are the disk's owner's to sign."""
    return value._replace(public=device_key._public_der(rsa.generate_private_key(65537, 2048)))


@pytest.mark.parametrize(
    ("change", "said"),
    [(damaged, "does not decrypt"), (unsealable, "did not open"), (other_key, "has no certificate that counts")],
)
def test_a_changed_file_is_refused_in_words(
    sealed: Board, change: Callable[[device.KeyFile], device.KeyFile], said: str
) -> None:
    path = sealed.machine.places.key
    good = path.read_bytes()
    path.write_bytes(device.write_key(change(device.read_key(good))))
    with pytest.raises(FreeholdError, match=said):
        sealed.open()
    path.write_bytes(good)
    assert sealed.open()


def test_policies_by_another_key_do_not_count(sealed: Board) -> None:
    """Whoever has the disk signs policies for a boot of theirs: the TPM asks for the device key's signature."""
    file = device.read_key(sealed.machine.places.key.read_bytes())
    mine = pcr.fingerprint(device_key._pkcs1(file.public))
    stranger = signer(sealed.bench.keys, "stranger")
    sealed.reboot("1.0", pcr.NOT_LOCKED)
    now = {number: sealed.machine.tpm.register(number) or b"" for number in (7, 11)}
    wanted = pcr.policy_digest(now)
    path = sealed.machine.sysroot.deployments / sealed.places["1.0"].id / device_key.POLICIES
    path.write_bytes(pcr.serialize([pcr.Policy((7, 11), mine, wanted, stranger.sign(wanted))]))
    with pytest.raises(FreeholdError):
        sealed.open()


def test_no_key_is_made_where_it_would_not_be_safe(board: Board) -> None:
    board.reboot("1.0", *LOCKED_BOOT)
    with pytest.raises(DeviceKeyError, match="began locked"):
        device_key.make(board.machine)
    # The early step said nothing: then root could say what it liked.
    board.reboot("1.0", SYSINIT, READY)
    with pytest.raises(DeviceKeyError, match="register 11 is not what this boot should have left"):
        device_key.make(board.machine)
    board.reboot("1.0", *OPEN_BOOT)
    (board.work / "log").write_bytes(log(event(7, 1, digest(b"forged"))))
    with pytest.raises(DeviceKeyError, match="not what the TPM has"):
        device_key.make(board.machine)
    assert not board.machine.places.waiting.exists()
    # A TPM that fails is no reason to keep the key in a file.
    board.reboot("1.0", *OPEN_BOOT)
    board.authorized(0x13A, 0x4000000A, struct.pack(">III", 0, 1000, 1000))
    with pytest.raises(FreeholdError, match="lockout"):
        device_key.make(board.machine)
    assert not board.machine.places.waiting.exists()


def test_strict_leaves_nothing(sealed: Board) -> None:
    assert device_key.destroy(sealed.machine.places)
    with pytest.raises(FreeholdError, match="has no device key"):
        sealed.open()
    with pytest.raises(DeviceKeyError, match="strict"):
        device_key.open_signer(sealed.machine, standing(replace(LOCKED, strict=True)))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (bytes.fromhex("80020000001300000000") + bytes(9), 0),
        (bytes.fromhex("80010000000a00000921"), -5),
        (bytes.fromhex("800200000013000000"), -5),
        (b"", -5),
        (b"\xff" * 300, -5),
    ],
)
def test_the_early_step_judges_the_tpms_answer(measure: Path, answer: bytes, expected: int) -> None:
    assert run([measure, "-", "word"], stdin=answer).text == f"{expected}\n"
