# SPDX-License-Identifier: Apache-2.0
"""The device key: making it, keeping it, using it, destroying it (docs/device-key.md, ADR 0011).

Files, all below the owner's directory, which nobody can write while locked:

* ``secret/device.key``: the key. With a TPM encrypted, under a key that the TPM gives in allowed boots only; else as it is, and
  the guard lets only the updater read it. ``secret/device.key.new``: one that waits for the owner's certificate.
* ``device.der``: its certificate. ``device.facts``: what ``status`` shows.

Beside each deployment lies ``pcr-policies.json``, signatures by the key itself over the states of the TPM in which that
deployment may have it. They are no secret, and only count when they verify.

Order when made: the waiting key and the policies; then, with the certificate, the key under its name, the certificate, the facts.
The intent follows last (:mod:`freehold.lock.verbs`). A cut anywhere before that leaves an open machine, whose next boot
destroys the key.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from freehold import atomic
from freehold.device.sysroot import Sysroot
from freehold.device.tpm import RegistersError, Tpm
from freehold.errors import FreeholdError, InputError, NotHereError, VerificationError
from freehold.files import read_bytes
from freehold.keys import device, eventlog, pcr
from freehold.keys.device import Bundle, Facts, KeyFile
from freehold.keys.efi import MAX_LIST_BYTES, Signature, parse_lists
from freehold.keys.verify import MAX_CERTIFICATE_BYTES, Keychain

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

    from freehold.keys.x509 import Signer
    from freehold.lock.intent import Standing

KEY_BITS = 2048  # what every firmware's Secure Boot takes
POLICIES = "pcr-policies.json"
_SECRET_BYTES, _NONCE_BYTES = 32, 12
_DB = "sys/firmware/efi/efivars/db-d719b2cb-3d3a-4596-a3bc-dad00e67656f"


class DeviceKeyError(FreeholdError):
    """The device key is not used or not made, and why: one sentence."""


class Places(NamedTuple):
    """Where the parts lie."""

    owner: Path = Path("/sysroot/owner")
    state: Path = Path("/sysroot/state")

    @property
    def secret(self) -> Path:
        """The directory that only the updater may read while locked."""
        return self.owner / "secret"

    @property
    def key(self) -> Path:
        """The key."""
        return self.secret / "device.key"

    @property
    def waiting(self) -> Path:
        """A key that has no certificate yet."""
        return self.secret / "device.key.new"

    @property
    def certificate(self) -> Path:
        """The certificate that came with the lock."""
        return self.owner / "device.der"

    @property
    def renewed(self) -> Path:
        """A later certificate for the same key: root can write it, and it counts only if it verifies."""
        return self.state / "device.der"

    @property
    def facts(self) -> Path:
        """What ``status`` shows."""
        return self.owner / "device.facts"


class Machine(NamedTuple):
    """All that the functions here ask."""

    id: str
    sysroot: Sysroot
    keychain: Keychain
    places: Places = Places()
    tpm: Tpm = Tpm()


class Made(NamedTuple):
    """A new key that waits: its certificate request (DER), who keeps it, and what could not be allowed (in words)."""

    request: bytes
    keeper: device.Keeper
    left_out: tuple[str, ...]


class Opened(NamedTuple):
    """The device key, open."""

    machine: Machine
    signer: Signer
    file: KeyFile
    bundle: Bundle

    def allow(self, deployment: str) -> None:
        """As :func:`allow`, with the key that is open."""
        from freehold.keys.x509 import rsa_private

        if self.file.keeper == "tpm2":
            key = rsa_private(self.signer.private_key, "the device key")
            # The values to believe were sealed with the key: nothing that root can fake is asked for them.
            _allow(self.machine, deployment, key, [bytes.fromhex(state) for state in self.bundle.states])


def make(machine: Machine) -> Made:
    """Make a key that waits for its certificate, and allow it to every deployment of this machine.

    Raises :class:`DeviceKeyError` when this boot is none in which a key may be made, :class:`FreeholdError` when the TPM fails.
    """
    from cryptography.hazmat.primitives.asymmetric import rsa

    from freehold.keys.issue import request_der

    if not machine.sysroot.secure_boot():
        raise DeviceKeyError(
            "Secure Boot is off: no device key is made",
            hint="the owner signs each change; docs/enrolment.md switches it on",
        )
    # Never from one to the other behind somebody's back: a TPM that fails is no reason for a file.
    keeper: device.Keeper = "tpm2" if machine.tpm.present() else "file"
    if keeper == "tpm2":
        _check_measured(machine)
    states = _foreseen(machine) if keeper == "tpm2" else ()
    key = rsa.generate_private_key(public_exponent=65537, key_size=KEY_BITS)
    private, public = _private_der(key), _public_der(key)
    bundle = device.write_bundle(Bundle(private, tuple(state.hex() for state in states)))
    file = KeyFile("file", machine.id, public, bundle)
    if keeper == "tpm2":
        secret = os.urandom(_SECRET_BYTES)
        sealed = machine.tpm.seal(secret, _public_pem(key))
        file = KeyFile("tpm2", machine.id, public, b"", sealed, tuple(state.hex() for state in states))
        file = file._replace(secret=_encrypt(secret, bundle, file))
    machine.places.secret.mkdir(mode=0o700, exist_ok=True)
    atomic.write(machine.places.waiting, device.write_key(file), mode=0o600)
    left_out = []
    if keeper == "tpm2":
        for deployment in machine.sysroot.all_deployments():
            try:
                _allow(machine, deployment.id, key, states)
            except (FreeholdError, OSError) as error:
                left_out.append(f"{deployment.manifest.version}: {error}")
    return Made(request_der(key, machine.id), keeper, tuple(left_out))


def install(machine: Machine, certificate: bytes) -> Facts:
    """Put the key that waits into its place, with the owner's ``certificate`` (DER).

    Raises :class:`VerificationError` when the certificate does not count here, or is not of that key.
    """
    try:
        waiting = device.read_key(read_bytes(machine.places.waiting, device.MAX_KEY_FILE))
    except OSError:
        raise VerificationError(
            "no device key of this machine waits for a certificate",
            hint="make a new request: freehold lock --request FILE",
        ) from None
    except ValueError as error:
        raise VerificationError(f"{machine.places.waiting}: {error}") from None
    read = _judged(machine, certificate, waiting.public)
    facts = Facts(waiting.keeper, _sha256(certificate), int(time.time()), int(read.not_valid_after_utc.timestamp()))
    _overwrite(machine.places.key)
    machine.places.waiting.rename(machine.places.key)
    atomic.fsync_directory(machine.places.secret)
    atomic.write(machine.places.certificate, certificate)
    atomic.write(machine.places.facts, device.write_facts(facts))
    machine.places.renewed.unlink(missing_ok=True)
    return facts


def destroy(places: Places) -> bool:
    """Remove the key for good; its certificate is set aside. ``False`` when there was none.

    The file is overwritten before it is removed. That a disk keeps no older copy of a block is beyond us (docs/device-key.md).
    The TPM holds nothing of it: what it sealed lies in that file.
    """
    found = False
    for path in (places.key, places.waiting):
        if _overwrite(path):
            path.unlink()
            found = True
    if places.certificate.exists():
        places.certificate.rename(places.certificate.with_name(f"device-{int(time.time())}.der"))
    for path in (places.facts, places.renewed):
        path.unlink(missing_ok=True)
    for directory in (places.secret, places.owner):
        if directory.is_dir():
            atomic.fsync_directory(directory)
    return found


def _overwrite(path: Path) -> bool:
    """Put noise over a key that is no longer wanted; ``False`` when there is none."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        os.write(fd, os.urandom(min(os.fstat(fd).st_size, device.MAX_KEY_FILE)))
        os.fsync(fd)
    finally:
        os.close(fd)
    return True


def without_leave(machine: Machine) -> list[str]:
    """Versions of the deployments that the key in place was not allowed for: those that came after it was made."""
    file = device.read_key(read_bytes(machine.places.key, device.MAX_KEY_FILE))
    if file.keeper == "file":
        return []
    rows = machine.sysroot.all_deployments()
    return [row.manifest.version for row in rows if not _policies_of(machine, row.id, file)]


def check_boot(sysroot: Sysroot, standing: Standing) -> None:
    """Raise :class:`DeviceKeyError`, with the reason in one sentence, unless this boot may use the device key.

    For a key in a TPM the registers decide as well; for one in a file this is all there is beside the guard.
    """
    from freehold.device.trust import trusted_boot

    record = sysroot.boot_record()
    firmware = record.get("keychain_source") == "firmware"
    trust = trusted_boot(record, secure_boot=sysroot.secure_boot(), image=sysroot.booted(), ring_from_firmware=firmware)
    if not trust.ok:
        hint = None if sysroot.secure_boot() else "switch it on in the firmware's settings, and reboot"
        raise DeviceKeyError(f"{trust.reason.removeprefix('not verified: ')}: the device key is not used", hint=hint)
    if standing.intent is None:
        raise DeviceKeyError(f"no valid intent of the owner stands ({standing.reason}): the device key is not used")
    if standing.intent.strict:
        raise DeviceKeyError("the owner's intent is strict: the owner signs every deployment, there is no device key")
    if standing.state != "locked" or sysroot.mode() != "locked":
        raise DeviceKeyError("this machine is not locked: the device key is for locked machines", hint="freehold lock")


def open_signer(machine: Machine, standing: Standing) -> Signer:
    """The key of :func:`open_key`, ready to sign; programs are never given it."""
    return open_key(machine, standing).signer


def open_key(machine: Machine, standing: Standing) -> Opened:
    """The device key. For the updater's process only, which then starts no program any more.

    ``standing`` is the owner's intent in force (:func:`freehold.lock.actions.standing`). Raises :class:`DeviceKeyError` when this
    boot may not use it, :class:`NotHereError` when there is none, :class:`FreeholdError` when the TPM fails.
    """
    from freehold.keys.x509 import Signer

    check_boot(machine.sysroot, standing)
    try:
        file = device.read_key(read_bytes(machine.places.key, device.MAX_KEY_FILE))
    except FileNotFoundError:
        raise NotHereError(
            "this machine has no device key", hint="`freehold unlock`, reboot and `freehold lock` make one"
        ) from None
    except PermissionError:
        raise DeviceKeyError("the guard lets only the updater read the device key") from None
    except OSError as error:
        raise FreeholdError(f"{machine.places.key}: {error.strerror}") from None
    except ValueError as error:
        raise VerificationError(f"{machine.places.key}: {error}") from None
    if file.machine != machine.id:
        raise VerificationError("the device key on this disk is another machine's")
    certificate = certificate_of(machine, file.public)
    bundle = _bundle(machine, file)
    key = _private(bundle)
    if _public_der(key) != file.public:
        raise VerificationError("the device key is not the one that its file names")
    return Opened(machine, Signer(key, certificate, _never), file, bundle)

def allow(machine: Machine, standing: Standing, deployment: str) -> None:
    """Let ``deployment``, staged and not booted yet, have the key after its reboot. For the updater's process only.

    Writes signatures beside the deployment; nothing to do for a key in a file. Raises as :func:`open_signer`, and
    :class:`VerificationError` when the deployment's manifest or kernel image is not genuine.
    """
    open_key(machine, standing).allow(deployment)


def certificate_of(machine: Machine, public: bytes) -> x509.Certificate:
    """The certificate in force for the key ``public``: of those that verify the one that lasts longest.

    Raises :class:`VerificationError` with the reason of the first when none does.
    """
    faults: list[str] = []
    found: list[x509.Certificate] = []
    for path in (machine.places.certificate, machine.places.renewed):
        try:
            found.append(_judged(machine, read_bytes(path, MAX_CERTIFICATE_BYTES), public))
        except FileNotFoundError:
            faults.append(f"{path.name} is missing")
        except OSError as error:
            faults.append(f"{path}: {error.strerror}")
        except FreeholdError as error:
            faults.append(error.message)
    if not found:
        raise VerificationError(
            f"the device key has no certificate that counts: {faults[0]}",
            hint="`freehold device-key renew` asks the owner for one",
        )
    return max(found, key=lambda one: one.not_valid_after_utc)


def renewal(machine: Machine) -> bytes:
    """A request for a new certificate for the key that is there. It needs the old certificate only, not the key."""
    if facts(machine.places) is None:
        raise NotHereError("this machine has no device key", hint="`freehold lock` makes one, where Secure Boot is on")
    certificate = read_bytes(machine.places.certificate, MAX_CERTIFICATE_BYTES)
    return device.write_request(device.Request(machine.id, certificate))


def renew(machine: Machine, certificate: bytes) -> int:
    """Take a new certificate (DER) for the key that is there; when it ends, in seconds since 1970.

    Raises :class:`VerificationError` unless it counts here and is of the same key.
    """
    from freehold.keys.x509 import load_certificate

    old = load_certificate(machine.places.certificate)
    read = _judged(machine, certificate, public_key(old))
    machine.places.state.mkdir(exist_ok=True)
    atomic.write(machine.places.renewed, certificate)
    return int(read.not_valid_after_utc.timestamp())


def facts(places: Places) -> Facts | None:
    """What is known of the key without opening it; ``None`` when there is none, or nothing readable."""
    try:
        return device.read_facts(read_bytes(places.facts, device.MAX_TEXT))
    except (OSError, FreeholdError, ValueError):
        return None


def _bundle(machine: Machine, file: KeyFile) -> Bundle:
    text = file.secret
    if file.keeper == "tpm2":
        policies = _policies(machine, file)
        try:
            secret = machine.tpm.unseal(file.sealed, policies)
        except RegistersError as error:
            raise DeviceKeyError(_explain(machine, file), hint=_WAY_BACK, details=error.details) from None
        text = _decrypt(secret, file)
    try:
        return device.read_bundle(text)
    except ValueError as error:
        raise VerificationError(f"{machine.places.key}: {error}") from None


_WAY_BACK = (
    "the machine stays locked; `freehold unlock`, reboot and `freehold lock` make a new key, with the owner's answer"
)


def _policies(machine: Machine, file: KeyFile) -> bytes:
    """The booted deployment's signed policies for this key."""
    found = _policies_of(machine, machine.sysroot.booted_id(), file)
    if not found:
        raise DeviceKeyError("the running deployment was staged without the device key's leave", hint=_WAY_BACK)
    return pcr.serialize(found)


def _policies_of(machine: Machine, deployment: str, file: KeyFile) -> list[pcr.Policy]:
    """A deployment's policies for this key; what cannot be read is none (root can write there)."""
    path = machine.sysroot.deployments / deployment / POLICIES
    key = pcr.fingerprint(_pkcs1(file.public))
    try:
        return [one for one in pcr.parse(read_bytes(path, pcr.MAX_SIGNATURE_FILE)) if one.key == key]
    except (OSError, FreeholdError, ValueError):
        return []


def _explain(machine: Machine, file: KeyFile) -> str:
    state = machine.tpm.register(pcr.SECURE_BOOT_PCR)
    if state is not None and state.hex() not in file.states:
        return "the TPM refuses the device key: the firmware's keys are not those that it was made for (db, dbx, Secure Boot)"
    return "the TPM refuses the device key in this boot: it did not begin locked, or another kernel image runs"


def _check_measured(machine: Machine) -> None:
    """Raise :class:`DeviceKeyError` unless PCR 11 says of this boot what it should, down to the early step's word.

    Where it does not (a TPM whose driver comes late, another stub) the words would mean nothing: root of an open boot could
    say them itself.
    """
    now = machine.tpm.register(pcr.KERNEL_PCR)
    try:
        kernel = pcr.kernel_register(kernel_image(machine, machine.sysroot.booted_id()))
    except ValueError as error:
        raise DeviceKeyError(f"the running kernel image: {error}: no device key is made") from None
    locked = [pcr.after(kernel, phase) for phase in pcr.PHASES]
    expected = [pcr.after(kernel, (pcr.NOT_LOCKED, *phase[1:])) for phase in pcr.PHASES]
    if now in locked:
        raise DeviceKeyError("this boot began locked: a device key is made on an open machine", hint="freehold unlock")
    if now not in expected:
        raise DeviceKeyError(
            "the TPM's register 11 is not what this boot should have left there: no device key is made",
            details=f"PCR 11 {now.hex() if now else 'none'}, expected one of {', '.join(one.hex() for one in expected)}",
        )


def _foreseen(machine: Machine) -> tuple[bytes, ...]:
    """The values of PCR 7 that belong to this machine's firmware as it is."""
    now = machine.tpm.register(pcr.SECURE_BOOT_PCR)
    if now is None:
        raise DeviceKeyError(
            "the TPM has no SHA-256 registers: no device key is made", hint="the firmware's settings have them"
        )
    try:
        events = eventlog.register(eventlog.parse(machine.tpm.log())[0], pcr.SECURE_BOOT_PCR)
        db = _firmware_db(machine.sysroot)
    except ValueError as error:
        raise DeviceKeyError(f"the firmware's event log or db: {error}: no device key is made") from None
    if pcr.replay(events) != now:
        raise DeviceKeyError("the firmware's event log is not what the TPM has: no device key is made")
    values: list[bytes] = [now]
    for owner in machine.keychain.of_role("owner"):
        values += [one for one in pcr.foresee(events, db, owner.der) if one not in values]
    return tuple(values[: device.MAX_STATES])


def _firmware_db(sysroot: Sysroot) -> tuple[Signature, ...]:
    try:
        return parse_lists(read_bytes(sysroot.system / _DB, MAX_LIST_BYTES + 4)[4:])
    except OSError as error:
        raise NotHereError(f"the firmware's db cannot be read: {error.strerror}") from None


def _allow(machine: Machine, deployment: str, key: RSAPrivateKey, states: Sequence[bytes]) -> None:
    """Sign the policies of a deployment, whose manifest and kernel image are checked first."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import padding

    image = kernel_image(machine, deployment)
    try:
        register = pcr.kernel_register(image)
    except ValueError as error:
        raise VerificationError(f"the kernel image of {deployment}: {error}") from None
    policies = pcr.allow(
        register, states, pcr.fingerprint(_pkcs1(_public_der(key))),
        lambda data: key.sign(data, padding.PKCS1v15(), hashes.SHA256()),
    )  # fmt: skip
    atomic.write(machine.sysroot.deployments / deployment / POLICIES, pcr.serialize(policies))


def kernel_image(machine: Machine, deployment: str) -> bytes:
    """A deployment's UKI, as a manifest names it that a release's key signed, or this machine's own.

    Raises :class:`VerificationError` when manifest or image are not genuine, :class:`NotHereError` when there is none.
    """
    from freehold.device import loader
    from freehold.keys.verify import verify_deployment
    from freehold.update.manifest import MANIFEST_LIMIT, SIGNATURE_LIMIT, parse_manifest, sha256

    directory = machine.sysroot.deployments / deployment
    try:
        data = read_bytes(directory / "manifest.json", MANIFEST_LIMIT)
        signature = read_bytes(directory / "manifest.json.sig", SIGNATURE_LIMIT)
    except OSError as error:
        raise NotHereError(f"the deployment {deployment} has no manifest: {error.strerror}") from None
    verdict = verify_deployment(data, signature, keychain=machine.keychain, machine=machine.id)
    if not verdict.ok:
        raise VerificationError(f"the manifest of {deployment} is not genuine: {verdict.reason}")
    manifest = parse_manifest(data)
    if manifest.id != deployment:
        raise VerificationError(f"the manifest in {directory} is another deployment's")
    candidates = [directory / "uki.efi"]
    try:
        listed = loader.listing(machine.sysroot.esp)
    except (OSError, FreeholdError):
        listed = []
    candidates += [machine.sysroot.esp / loader.LINUX / entry.name for entry in listed if entry.id == deployment]
    for path in candidates:
        try:
            image = read_bytes(path, manifest.uki.size)
        except (OSError, FreeholdError):
            continue
        if sha256(image) == manifest.uki.sha256:
            return image
    raise NotHereError(f"the kernel image of {deployment} is not there as its manifest names it")


def _judged(machine: Machine, certificate: bytes, public: bytes) -> x509.Certificate:
    """The certificate when it counts on this machine for the key ``public``; :class:`VerificationError` else."""
    from cryptography import x509

    from freehold.keys.verify import judge_leaf

    try:
        judge_leaf(certificate, machine.keychain, "device", machine.id)
    except ValueError as error:
        raise VerificationError(f"the device certificate {error}") from None
    read = x509.load_der_x509_certificate(certificate)
    if public_key(read) != public:
        raise VerificationError("the device certificate is not of this machine's device key")
    return read


def _encrypt(secret: bytes, text: bytes, file: KeyFile) -> bytes:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    nonce = os.urandom(_NONCE_BYTES)
    return nonce + AESGCM(secret).encrypt(nonce, text, _belonging(file))


def _decrypt(secret: bytes, file: KeyFile) -> bytes:
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    try:
        return AESGCM(secret).decrypt(file.secret[:_NONCE_BYTES], file.secret[_NONCE_BYTES:], _belonging(file))
    except (InvalidTag, ValueError):
        raise VerificationError("the device key's file was changed: it does not decrypt", hint=_WAY_BACK) from None


def _belonging(file: KeyFile) -> bytes:
    """What the encryption binds the secret to."""
    return b"\n".join((device.KEY_HEAD.encode(), file.machine.encode(), file.public))


def _private(bundle: Bundle) -> RSAPrivateKey:
    from cryptography.hazmat.primitives.serialization import load_der_private_key

    from freehold.keys.x509 import rsa_private

    try:
        return rsa_private(load_der_private_key(bundle.private, None), "the device key")
    except (ValueError, TypeError, InputError) as error:
        raise VerificationError("the device key is no RSA key") from error


def _private_der(key: RSAPrivateKey) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())


def _public_der(key: RSAPrivateKey) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _public_pem(key: RSAPrivateKey) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def public_key(certificate: x509.Certificate) -> bytes:
    """The public key of a certificate (SubjectPublicKeyInfo, DER)."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _pkcs1(spki: bytes) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

    from freehold.keys.x509 import rsa_public

    try:
        public = rsa_public(load_der_public_key(spki), "the device key")
    except (ValueError, InputError) as error:
        raise VerificationError("the device key's file has no RSA key") from error
    return public.public_bytes(Encoding.DER, PublicFormat.PKCS1)


def _sha256(data: bytes) -> str:
    from hashlib import sha256

    return sha256(data).hexdigest()


def _never() -> NoReturn:
    raise FreeholdError("the device key is not given to programs: what root can read is no secret")
