# SPDX-License-Identifier: Apache-2.0
"""The owner's intent: the format, the judgement, and the C parser against the Python one."""

from __future__ import annotations

import base64
import hashlib
import random
import shutil
import struct
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from freehold.errors import InputError
from freehold.keys.issue import create
from freehold.keys.verify import Certificate, Keychain
from freehold.keys.x509 import Signer, load_signer
from freehold.lock import intent as intents
from freehold.lock.intent import Intent
from freehold.run import run

EARLY = Path(__file__).parents[2] / "early"
MACHINE = "0123456789abcdef0123456789abcdef"
PLAIN = Intent(machine=MACHINE, serial=7, lock="locked", since=1_700_000_000)

HEX = "0123456789abcdef"
INTENTS = st.builds(
    Intent,
    machine=st.text(HEX, min_size=32, max_size=32),
    serial=st.integers(1, 1 << 53),
    lock=st.sampled_from(["open", "audit", "locked"]),
    since=st.integers(0, 1 << 53),
    tier=st.sampled_from(["privileged", "all-code"]),
    config=st.none() | st.text(HEX, min_size=64, max_size=64),
    emergency_ssh=st.none() | st.binary(min_size=32, max_size=32).map(lambda raw: base64.b64encode(raw).decode()),
    floor=st.none() | st.just(0) | st.integers(0, 1 << 53),
    requests=st.none() | st.text(HEX, min_size=64, max_size=64),
    strict=st.booleans(),
    scripts=st.sampled_from(["s1", "s2"]),
)


@pytest.fixture(scope="module")
def signers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Signer]:
    directory = tmp_path_factory.mktemp("keys")
    create("me", "owner", directory, None)
    create("vendor", "release", directory, None)
    return {name: load_signer(f"file:{directory}/{name}.key", lambda _: b"") for name in ("me", "vendor")}


@pytest.fixture(scope="module")
def keychain(signers: dict[str, Signer]) -> Keychain:
    return Keychain((
        Certificate("owner", "me", signers["me"].certificate_der()),
        Certificate("release", "vendor", signers["vendor"].certificate_der()),
    ))  # fmt: skip


@given(INTENTS)
def test_round_trip(intent: Intent) -> None:
    assert intents.parse(intents.serialize(intent)) == intent


def test_canonical_text_is_pinned() -> None:
    assert intents.serialize(PLAIN) == (
        b"freehold-intent 1\nmachine 0123456789abcdef0123456789abcdef\nserial 7\nlock locked\nsince 1700000000\n"
    )


GOOD = intents.serialize(
    replace(
        PLAIN,
        config="ab" * 32,
        tier="all-code",
        emergency_ssh="A" * 43 + "=",
        floor=1_790_000_000,
        requests="cd" * 32,
        strict=True,
        scripts="s2",
    )
)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"intent 1", b"intent 2"), (b"serial 7", b"serial 07"), (b"serial 7", b"serial 0"),
        (b"serial 7", b"serial 9007199254740993"), (b"serial 7", b"serial -7"), (b"serial 7", b"serial  7"),
        (b"serial 7", b"serial 7 "), (b"serial 7", b"serial +7"), (b"serial 7", b"serial 7_0"), (b"serial 7\n", b""),
        (b"lock locked", b"lock Locked"), (b"lock locked", b"lock locked\r"),
        (b"lock locked", b"lock locked\nlock open"),
        (b"lock locked", b"lock locked\n"), (b"lock locked", b"lock locked\n# x"), (b"machine 0", b"machine A"),
        (b"config ab", b"config a"), (b"A=\n", b"B=\n"), (b"=\n", b"=\nfuture x\n"), (b"=\n", b"="),
        (b"lock ", b"lock\t"), (b"scripts s2", b"scripts S2"), (b"scripts s2", b"scripts s3"),
        (b"serial 7", b"serial \xd9\xa7"), (b"serial 7", b"serial 7\0"),
    ],
)  # fmt: skip
def test_deviations_are_refused(old: bytes, new: bytes) -> None:
    assert old in GOOD
    intents.parse(GOOD)
    with pytest.raises(InputError) as caught:
        intents.parse(GOOD.replace(old, new))
    assert caught.value.faults


def test_all_faults_are_listed() -> None:
    with pytest.raises(InputError) as caught:
        intents.parse(b"freehold-intent 1\nserial 0\nlock shut\nwhat is\n")
    assert len(caught.value.faults) == 5


def test_serialize_refuses_what_parse_refuses() -> None:
    with pytest.raises(InputError):
        intents.serialize(replace(PLAIN, serial=0))


def test_judge(signers: dict[str, Signer], keychain: Keychain) -> None:
    signed = intents.sign(PLAIN, signers["me"].sign)
    standing = intents.judge(signed, keychain=keychain, machine=MACHINE)
    assert (standing.state, standing.intent, standing.key) == ("locked", PLAIN, "me")
    assert intents.judge(None, keychain=keychain, machine=MACHINE).state == "open"
    opened = intents.sign(replace(PLAIN, lock="open"), signers["me"].sign)
    refused = {
        "wrong role": (intents.sign(replace(PLAIN, lock="open"), signers["vendor"].sign), keychain, MACHINE),
        "other machine": (opened, keychain, "f" * 32),
        "empty keychain": (opened, Keychain(), MACHINE),
        "changed": (opened.replace(b"serial 7", b"serial 8"), keychain, MACHINE),
        "no signature": (intents.serialize(replace(PLAIN, lock="open")), keychain, MACHINE),
        "empty": (b"", keychain, MACHINE),
    }
    assert intents.judge(opened, keychain=keychain, machine=MACHINE).state == "open"
    for why, (data, keys, machine) in refused.items():
        verdict = intents.judge(data, keychain=keys, machine=machine)
        assert (verdict.state, verdict.intent) == ("locked", None), why


def test_offers(signers: dict[str, Signer], keychain: Keychain) -> None:
    def offer(intent: Intent, standing: intents.Standing) -> intents.Offer:
        signed = intents.sign(intent, signers["me"].sign)
        return intents.judge_offer(standing, signed, keychain=keychain, machine=MACHINE)

    standing = intents.judge(intents.sign(PLAIN, signers["me"].sign), keychain=keychain, machine=MACHINE)
    assert offer(replace(PLAIN, serial=8, lock="open"), standing).accepted
    assert not offer(replace(PLAIN, lock="open"), standing).accepted
    assert not offer(replace(PLAIN, serial=8, machine="f" * 32), standing).accepted
    assert not intents.supersedes(PLAIN, replace(PLAIN, serial=8, machine="f" * 32))
    broken = intents.judge(b"rubbish\n", keychain=keychain, machine=MACHINE)
    assert offer(replace(PLAIN, serial=1), broken).accepted


@given(INTENTS, st.binary(min_size=1, max_size=512))
def test_split_undoes_join(intent: Intent, signature: bytes) -> None:
    text = intents.serialize(intent)
    assert intents.split(intents.join(text, signature)) == (text, signature)


@pytest.fixture(scope="module")
def parser(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C parser with the sanitizers on."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    program = tmp_path_factory.mktemp("c") / "intent"
    main = Path(__file__).parent / "c" / "intent_main.c"
    sources = [
        main,
        *(EARLY / f"{n}.c" for n in ("intent", "sha256", "keyring", "firmware", "revoked", "signatures", "util")),
    ]
    flags = ["-std=gnu17", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined"]
    run(["cc", *flags, "-fno-sanitize-recover=all", f"-I{EARLY}", "-o", program, *sources])
    return program


def ask(program: Path, inputs: list[bytes], *arguments: str) -> list[str]:
    stdin = b"".join(struct.pack("<I", len(data)) + data for data in inputs)
    return run([program, *arguments], stdin=stdin).text.splitlines()


def expected(data: bytes) -> str:
    try:
        it = intents.parse(data)
    except InputError:
        return f"{hashlib.sha256(data).hexdigest()} refused"
    fields = (
        it.machine, it.serial, it.lock, it.tier, it.since, it.config or "-", it.emergency_ssh or "-",
        "-" if it.floor is None else it.floor, it.requests or "-", int(it.strict), it.scripts,
    )  # fmt: skip
    return " ".join([hashlib.sha256(data).hexdigest(), *map(str, fields)])


def mutate(data: bytes, dice: random.Random) -> bytes:
    """A near miss: a byte changed, removed or put in, a line moved, doubled or dropped."""
    at = dice.randrange(len(data))
    lines = data.splitlines(keepends=True)
    line = dice.randrange(len(lines))
    byte = bytes([dice.choice([*data, 0, 9, 10, 13, 32, 48, 61, 255])])
    moved = lines[:line] + lines[line + 1 :]
    return dice.choice([
        data[:at] + byte + data[at + 1 :], data[:at] + data[at + 1 :], data[:at] + byte + data[at:], data[:at],
        b"".join(moved), b"".join([*moved, lines[line]]), b"".join([*lines, lines[line]]), data,
    ])  # fmt: skip


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(INTENTS, min_size=5, max_size=20), st.integers(0, 1 << 32))
def test_c_and_python_agree(parser: Path, some: list[Intent], seed: int) -> None:
    dice = random.Random(seed)  # noqa: S311 - test data
    texts = [intents.serialize(intent) for intent in some]
    near = [mutate(dice.choice(texts), dice) for _ in range(200)]
    near += [mutate(text, dice) for text in near if text]
    inputs = [*texts, *near, b"", b"\n", b"freehold-intent 1\n"]
    assert ask(parser, inputs) == [expected(data) for data in inputs]


def test_c_and_python_agree_on_the_edges(parser: Path) -> None:
    numbers = ["0", "1", "00", "9007199254740992", "9007199254740993", "99999999999999999999", "", " ", "1e3"]
    inputs = [GOOD.replace(b"serial 7", b"serial " + n.encode()) for n in numbers]
    inputs += [GOOD.replace(b"since 1700000000", b"since " + n.encode()) for n in numbers]
    inputs += [GOOD + b"x" * n for n in (65536 - len(GOOD), 65537 - len(GOOD))]
    inputs += [bytes(length) for length in (*range(130), 65536, 100_000)]
    verdicts = ask(parser, inputs)
    assert verdicts == [expected(data) for data in inputs]
    assert sum("refused" not in verdict for verdict in verdicts) == 5


def test_ring_is_found_in_proc_keys(parser: Path) -> None:
    good = "1cb5c0f1 I------     1 perm 1f0b0000     0     0 keyring   .fs-verity: empty"
    lines = {
        good: "1cb5c0f1",
        good.replace(" 0     0 keyring", " 1000  0 keyring"): "00000000",
        good.replace(".fs-verity:", ".fs-verity2:"): "00000000",
        good.replace("I------", "IR-----"): "00000000",
        good.replace("keyring  ", "user     "): "00000000",
        good.replace("1cb5c0f1", "zzzzzzzz"): "00000000",
        good[:20]: "00000000",
        "": "00000000",
    }
    assert ask(parser, [line.encode() for line in lines], ".fs-verity") == list(lines.values())
