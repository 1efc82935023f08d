# SPDX-License-Identifier: Apache-2.0
"""The owner's intent: parse, serialize, sign, judge. All pure.

The early step has the same parser in C (``early/intent.c``); a property test compares the two.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

from freehold.errors import InputError
from freehold.keys.verify import MAX_SIGNATURE_BYTES, Keychain, verify

MAX_BYTES = 65536
MAX_VALUE_BYTES = 1024
MAX_NUMBER = 1 << 53
HEAD = "freehold-intent 1"
#: A signed intent is the text, then one line with this and the signature in hex.
SIGNATURE_MARK = b"signature "
MAX_SIGNED_BYTES = MAX_BYTES + 16 + 2 * MAX_SIGNATURE_BYTES

T = TypeVar("T", bound=str)
Lock = Literal["open", "audit", "locked"]
Tier = Literal["privileged", "all-code"]
Scripts = Literal["s1", "s2"]

_NUMBER = r"(?:0|[1-9][0-9]{0,15})"
#: Key: grammar of its value, what it should be, whether it is required. The order is the canonical one.
_KEYS: dict[str, tuple[re.Pattern[str], str, bool]] = {
    "machine": (re.compile(r"[0-9a-f]{32}"), "32 lower-case hex digits", True),
    "serial": (re.compile(_NUMBER), "a decimal number from 1 to 2^53", True),
    "lock": (re.compile(r"open|audit|locked"), "open, audit or locked", True),
    "tier": (re.compile(r"privileged|all-code"), "privileged or all-code", False),
    "scripts": (re.compile(r"s1|s2"), "s1 or s2", False),
    "config": (re.compile(r"[0-9a-f]{64}"), "64 lower-case hex digits", False),
    "since": (re.compile(_NUMBER), "a decimal number from 0 to 2^53", True),
    # 32 bytes leave two bits of the 43rd digit unused: zero, so that a value has one spelling.
    "emergency-ssh": (
        re.compile(r"[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]="),
        "base64 of 32 bytes, with padding",
        False,
    ),
    "floor": (re.compile(_NUMBER), "a decimal number from 0 to 2^53", False),
    "requests": (re.compile(r"[0-9a-f]{64}"), "64 lower-case hex digits", False),
    "strict": (re.compile(r"no|yes"), "no or yes", False),
}
_LEAST = {"serial": 1, "since": 0, "floor": 0}


@dataclass(frozen=True)
class Intent:
    """What the owner wants of the machine ``machine``; ``since`` in seconds since 1970.

    ``floor``: no release with a lower number boots while locked; where it is given, also as 0, the machine's own raised
    floor is set to exactly that, and ``None`` leaves it (docs/floor.md). ``requests``: SHA-256 of the list
    of requests that is in force. ``strict``: no device key, the owner signs every deployment. ``scripts``: by ``s2`` a
    privileged interpreter starts with a signed script only.
    """

    machine: str
    serial: int
    lock: Lock
    since: int
    tier: Tier = "privileged"
    config: str | None = None
    emergency_ssh: str | None = None
    floor: int | None = None
    requests: str | None = None
    strict: bool = False
    scripts: Scripts = "s1"


@dataclass(frozen=True)
class Standing:
    """What a machine has to do at boot: ``state`` always says it, ``intent`` only when one is valid.

    ``after``: what follows needs a higher serial than this one, which the TPM remembers (docs/memory.md); 0: none.
    """

    state: Lock
    intent: Intent | None
    key: str
    reason: str
    after: int = 0


@dataclass(frozen=True)
class Offer:
    """Whether an intent in the inbox may replace the standing one. ``intent`` only when accepted."""

    accepted: bool
    intent: Intent | None
    reason: str


def parse(data: bytes) -> Intent:
    """Parse an intent's text (without its signature line). :class:`InputError` lists every fault."""
    if len(data) > MAX_BYTES:
        raise InputError("the intent is not valid", faults=[f"it is larger than {MAX_BYTES} bytes"])
    faults: list[str] = []
    # Latin-1 keeps one character per byte; bytes outside ASCII fail each grammar below.
    lines = data.decode("latin-1").split("\n")
    if lines.pop() != "":
        faults.append("the last line does not end")
    if not lines or lines[0] != HEAD:
        faults.append(f"line 1: must be {HEAD!r}")
    values: dict[str, str] = {}
    for number, line in enumerate(lines[1:], start=2):
        key, space, value = line.partition(" ")
        if not space or key not in _KEYS:
            faults.append(f"line {number}: unknown key {key[:40]!r}")
        elif key in values:
            faults.append(f"line {number}: {key} is there twice")
        else:
            values[key] = value
            faults.extend(f"line {number}: {fault}" for fault in _value_faults(key, value))
    faults.extend(f"{key} is missing" for key, (_, _, required) in _KEYS.items() if required and key not in values)
    if faults:
        raise InputError("the intent is not valid", faults=faults)
    return Intent(
        machine=values["machine"],
        serial=int(values["serial"]),
        lock=_literal(values["lock"], _LOCKS),
        since=int(values["since"]),
        tier=_literal(values.get("tier", "privileged"), _TIERS),
        config=values.get("config"),
        emergency_ssh=values.get("emergency-ssh"),
        floor=int(values["floor"]) if "floor" in values else None,
        requests=values.get("requests"),
        strict=values.get("strict") == "yes",
        scripts=_literal(values.get("scripts", "s1"), _SCRIPTS),
    )


_LOCKS: tuple[Lock, ...] = ("open", "audit", "locked")
_TIERS: tuple[Tier, ...] = ("privileged", "all-code")
_SCRIPTS: tuple[Scripts, ...] = ("s1", "s2")


def _literal(value: str, among: tuple[T, ...]) -> T:
    return next(word for word in among if word == value)


def _value_faults(key: str, value: str) -> list[str]:
    grammar, wanted, _ = _KEYS[key]
    if grammar.fullmatch(value) and (key not in _LEAST or _LEAST[key] <= int(value) <= MAX_NUMBER):
        return []
    return [f"{key} must be {wanted}"]


def serialize(intent: Intent) -> bytes:
    """The canonical text: keys in the order of the format's page, defaults left out.

    Raises :class:`InputError` for a field that the format does not allow.
    """
    values = {
        "machine": intent.machine,
        "serial": str(intent.serial),
        "lock": intent.lock,
        "tier": None if intent.tier == "privileged" else intent.tier,
        "scripts": None if intent.scripts == "s1" else intent.scripts,
        "config": intent.config,
        "since": str(intent.since),
        "emergency-ssh": intent.emergency_ssh,
        "floor": None if intent.floor is None else str(intent.floor),
        "requests": intent.requests,
        "strict": "yes" if intent.strict else None,
    }
    text = "".join(f"{key} {value}\n" for key, value in values.items() if value is not None)
    data = f"{HEAD}\n{text}".encode()
    parse(data)
    return data


def join(text: bytes, signature: bytes) -> bytes:
    """The signed intent: ``text`` and its signature line."""
    return text + SIGNATURE_MARK + signature.hex().encode() + b"\n"


def split(signed: bytes) -> tuple[bytes, bytes]:
    """Text and signature of a signed intent. :class:`InputError` when it has no signature line."""
    text, newline, last = signed[:-1].rpartition(b"\n")
    digits = last.removeprefix(SIGNATURE_MARK)
    if (
        len(signed) > MAX_SIGNED_BYTES
        or not signed.endswith(b"\n")
        or not newline
        or not last.startswith(SIGNATURE_MARK)
        or len(digits) > 2 * MAX_SIGNATURE_BYTES
        or not re.fullmatch(rb"(?:[0-9a-f]{2})+", digits)
    ):
        raise InputError("this is not a signed intent", hint="its last line has to be 'signature HEX'")
    return text + newline, bytes.fromhex(digits.decode())


def sign(intent: Intent, signer: Callable[[bytes], bytes]) -> bytes:
    """The signed intent, ready for a machine's inbox; ``signer`` as :meth:`freehold.keys.x509.Signer.sign`."""
    text = serialize(intent)
    return join(text, signer(text))


def supersedes(old: Intent | None, new: Intent) -> bool:
    """Whether ``new`` may replace ``old``: same machine, strictly higher serial."""
    return old is None or (new.machine == old.machine and new.serial > old.serial)


def judge(signed: bytes | None, *, keychain: Keychain, machine: str) -> Standing:
    """What the standing signed intent (``None``: there is none) says for the machine ``machine``.

    None at all: open, this machine was never locked. An invalid one: locked, fail closed.
    """
    if signed is None:
        return Standing("open", None, "", "there is no intent: never locked")
    intent, key, fault = _check(signed, keychain, machine)
    if intent is None:
        return Standing("locked", None, "", f"the intent is not believed: {fault}")
    return Standing(intent.lock, intent, key, f"signed by {key}, serial {intent.serial}")


def judge_offer(standing: Standing, signed: bytes, *, keychain: Keychain, machine: str) -> Offer:
    """Whether the signed intent from the inbox replaces the ``standing`` one.

    Where the standing one is not believed there is no serial to compare with: any valid one of this
    machine replaces it, or a damaged file could never be repaired.
    """
    intent, _, fault = _check(signed, keychain, machine)
    if intent is None:
        return Offer(False, None, fault)
    if standing.intent is not None and not supersedes(standing.intent, intent):
        return Offer(False, None, f"its serial {intent.serial} is not higher than {standing.intent.serial}")
    if standing.state == "locked" and intent.serial <= standing.after and standing.intent is None:
        return Offer(False, None, f"its serial {intent.serial} is not higher than {standing.after}, which the TPM remembers")
    return Offer(True, intent, f"serial {intent.serial}")


def newest(standing: Standing, waiting: bytes | None, *, keychain: Keychain, machine: str) -> tuple[Intent | None, bool]:
    """The intent that will be in force after the next boot, and whether it is the ``waiting`` one from the inbox."""
    if waiting is not None:
        offer = judge_offer(standing, waiting, keychain=keychain, machine=machine)
        if offer.accepted and offer.intent is not None:
            return offer.intent, True
    return standing.intent, False


def _check(signed: bytes, keychain: Keychain, machine: str) -> tuple[Intent | None, str, str]:
    """Intent, key and fault. The text is looked at only after the signature over all of it is good."""
    try:
        text, signature = split(signed)
        verdict = verify(text, signature, keychain=keychain, role="owner")
        if not verdict.ok:
            return None, "", verdict.reason
        intent = parse(text)
    except InputError as error:
        return None, "", "; ".join((error.message, *error.faults))
    if intent.machine != machine:
        return None, "", "it was signed for another machine"
    return intent, verdict.key, ""
