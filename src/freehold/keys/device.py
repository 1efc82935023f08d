# SPDX-License-Identifier: Apache-2.0
"""The device key's texts: what it is kept in, what a machine asks its owner, what the owner answers. All pure.

docs/device-key.md is the format. Everything here comes from a disk or from another machine: parsing is strict and
bounded, one spelling for each value.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Literal, NamedTuple, get_args

from freehold.errors import InputError

#: What a key's file, a request for a new certificate and its answer begin with.
KEY_HEAD = "freehold-device-key 1"
REQUEST_HEAD = "freehold-device-request 1"
ANSWER_HEAD = "freehold-device-answer 1"
#: The one line that a lock request, and the owner's answer to it, may have after the intent.
REQUEST_LINE, CERTIFICATE_LINE = b"device-request ", b"device-certificate "

#: ``tpm2``: the key is encrypted, what it is encrypted with is sealed by the TPM. ``file``: it is not.
Keeper = Literal["tpm2", "file"]
KEEPERS: tuple[Keeper, ...] = get_args(Keeper)

MAX_KEY_FILE = 64 << 10
MAX_TEXT = 32 << 10
#: Bytes of any one value, decoded: a certificate, a request, a sealed secret, an encrypted key.
MAX_VALUE = 16384
MAX_STATES = 16

MACHINE = re.compile(r"[0-9a-f]{32}")
_HEX64 = re.compile(r"[0-9a-f]{64}")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,12}")


class KeyFile(NamedTuple):
    """``device.key``. ``public`` is the public half (SubjectPublicKeyInfo, DER).

    ``secret`` is a :class:`Bundle`, as it is (``file``) or encrypted under what ``sealed`` gives (``tpm2``).
    ``states`` are the values of PCR 7 that the bundle has too: a copy in the clear, for explanations only.
    """

    keeper: Keeper
    machine: str
    public: bytes
    secret: bytes
    sealed: bytes = b""
    states: tuple[str, ...] = ()


class Bundle(NamedTuple):
    """What only the updater sees: the private key (PKCS#8, DER), and which values of PCR 7 it may allow."""

    private: bytes
    states: tuple[str, ...] = ()


class Request(NamedTuple):
    """A machine's wish for a new certificate for the key that ``certificate`` (DER) is of."""

    machine: str
    certificate: bytes


class Facts(NamedTuple):
    """What ``status`` shows without opening anything: times in seconds since 1970, ``sha256`` of the certificate."""

    keeper: Keeper
    sha256: str
    made: int
    not_after: int


def write_key(value: KeyFile) -> bytes:
    """The text of ``device.key``."""
    lines = [KEY_HEAD, f"keeper {value.keeper}", f"machine {value.machine}", f"public {_encode(value.public)}"]
    lines += [f"state {state}" for state in value.states]
    if value.keeper == "tpm2":
        lines.append(f"sealed {_encode(value.sealed)}")
    lines.append(f"secret {_encode(value.secret)}")
    return _text(lines)


def read_key(data: bytes) -> KeyFile:
    """Read ``device.key``. :class:`ValueError` says what is wrong with it."""
    lines = _Lines(data, KEY_HEAD, MAX_KEY_FILE, "the device key's file")
    keeper = lines.keeper()
    machine = lines.matching("machine", MACHINE)
    public = lines.binary("public")
    states = lines.states()
    sealed = lines.binary("sealed") if keeper == "tpm2" else b""
    value = KeyFile(keeper, machine, public, lines.binary("secret"), sealed, states)
    lines.end()
    return value


def write_bundle(value: Bundle) -> bytes:
    """The plain text that is kept."""
    return _text([f"private {_encode(value.private)}", *(f"state {state}" for state in value.states)])


def read_bundle(data: bytes) -> Bundle:
    """Read what :func:`write_bundle` wrote; :class:`ValueError` when it is something else."""
    lines = _Lines(data, None, MAX_TEXT, "the device key")
    value = Bundle(lines.binary("private"), lines.states())
    lines.end()
    return value


def write_request(value: Request) -> bytes:
    """A request for a new certificate."""
    return _text([REQUEST_HEAD, f"machine {value.machine}", f"certificate {_encode(value.certificate)}"])


def read_request(data: bytes) -> Request:
    """Read a request for a new certificate. :class:`ValueError` says what is wrong with it."""
    lines = _Lines(data, REQUEST_HEAD, MAX_TEXT, "the request")
    value = Request(lines.matching("machine", MACHINE), lines.binary("certificate"))
    lines.end()
    return value


def write_answer(certificate: bytes) -> bytes:
    """The owner's answer: the new certificate (DER)."""
    return _text([ANSWER_HEAD, f"certificate {_encode(certificate)}"])


def read_answer(data: bytes) -> bytes:
    """The certificate in an answer. :class:`ValueError` says what is wrong with it."""
    lines = _Lines(data, ANSWER_HEAD, MAX_TEXT, "the answer")
    certificate = lines.binary("certificate")
    lines.end()
    return certificate


def is_request(data: bytes) -> bool:
    """Whether this file asks for a device certificate, and not for an intent."""
    return data.startswith(REQUEST_HEAD.encode() + b"\n")


def write_facts(value: Facts) -> bytes:
    """The text of ``device.facts``."""
    return _text(
        [f"keeper {value.keeper}", f"sha256 {value.sha256}", f"made {value.made}", f"not-after {value.not_after}"]
    )


def read_facts(data: bytes) -> Facts:
    """Read ``device.facts``. :class:`ValueError` says what is wrong with it."""
    lines = _Lines(data, None, MAX_TEXT, "the device key's facts")
    keeper = lines.keeper()
    sha256 = lines.matching("sha256", _HEX64)
    value = Facts(keeper, sha256, int(lines.matching("made", _NUMBER)), int(lines.matching("not-after", _NUMBER)))
    lines.end()
    return value


def attach(text: bytes, mark: bytes, value: bytes | None) -> bytes:
    """``text`` with one more line: ``mark`` and the ``value``; unchanged without one."""
    return text if value is None else text + mark + base64.b64encode(value) + b"\n"


def detach(data: bytes, mark: bytes) -> tuple[bytes, bytes | None]:
    """What :func:`attach` joined: the text before, and the value of its last line, if that has the ``mark``.

    Raises :class:`InputError` for such a line that is not spelt as base64 is written, or is too long.
    """
    head, newline, last = data[:-1].rpartition(b"\n")
    if not newline or not data.endswith(b"\n") or not last.startswith(mark):
        return data, None
    try:
        return head + newline, _decode(last.removeprefix(mark).decode("ascii", errors="replace"))
    except ValueError as error:
        raise InputError(f"the line {mark.decode().strip()!r} {error}") from None


class _Lines:
    """``key value`` lines, taken in order."""

    def __init__(self, data: bytes, head: str | None, limit: int, what: str) -> None:
        if len(data) > limit:
            raise ValueError(f"{what} is larger than {limit} bytes")
        try:
            self._left = data.decode("ascii").split("\n")
        except UnicodeDecodeError:
            raise ValueError(f"{what} is not ASCII text") from None
        self._what = what
        if self._left.pop() != "":
            raise ValueError(f"the last line of {what} does not end")
        if head is not None and (not self._left or self._left.pop(0) != head):
            raise ValueError(f"{what} must begin with the line {head!r}")

    def take(self, key: str) -> str:
        """The value of the next line, which has to be of ``key``."""
        word, space, value = self._left[0].partition(" ") if self._left else ("", "", "")
        if word != key or not space:
            raise ValueError(f"{self._what} lacks the line {key!r} where it should be")
        del self._left[0]
        return value

    def matching(self, key: str, grammar: re.Pattern[str]) -> str:
        """The same, of a grammar."""
        value = self.take(key)
        if not grammar.fullmatch(value):
            raise ValueError(f"{self._what} has a line {key!r} that is not one")
        return value

    def binary(self, key: str) -> bytes:
        """The same, base64."""
        text = self.take(key)
        try:
            return _decode(text)
        except ValueError as error:
            raise ValueError(f"{self._what}: {key} {error}") from None

    def keeper(self) -> Keeper:
        """Who keeps the key."""
        word = self.take("keeper")
        for one in KEEPERS:
            if one == word:
                return one
        raise ValueError(f"{self._what}: {word[:40]!r} is no keeper that is known")

    def states(self) -> tuple[str, ...]:
        """All lines ``state`` that follow."""
        found: list[str] = []
        while self._left and self._left[0].startswith("state "):
            found.append(self.matching("state", _HEX64))
        if len(found) > MAX_STATES:
            raise ValueError(f"{self._what} has more than {MAX_STATES} states")
        return tuple(found)

    def end(self) -> None:
        """Nothing may be left."""
        if self._left:
            raise ValueError(f"{self._what} has lines that do not belong there")


def _text(lines: list[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode("ascii")


def _encode(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _decode(text: str) -> bytes:
    if len(text) > 2 * MAX_VALUE:
        raise ValueError("is too long")
    try:
        value = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise ValueError("is not base64") from None
    # Base64 has spare bits: one spelling only.
    if not value or len(value) > MAX_VALUE or _encode(value) != text:
        raise ValueError("is not base64 as it is written")
    return value
