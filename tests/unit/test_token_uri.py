# SPDX-License-Identifier: Apache-2.0
"""Names of keys in tokens: read, refused, and handed to OpenSSL's providers."""

from __future__ import annotations

import base64
from pathlib import PurePosixPath
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.build import token_uri
from freehold.errors import InputError

#: Half of them of what has a meaning in a URI.
texts = st.text(min_size=1, max_size=40) | st.text(alphabet=";&=%?/:+ aé", min_size=1, max_size=40)
words = texts.filter(lambda text: text.isprintable() and len(text.encode()) <= 255)


@given(words, words, st.binary(min_size=1, max_size=20))
def test_a_uri_comes_back_escaped(token: str, name: str, identity: bytes) -> None:
    text = f"token={quote(token, safe='')};object={quote(name, safe='')};id={quote(identity, safe='')}"
    read = token_uri.parse_pkcs11(text)
    assert (read.token, read.object, read.id) == (token, name, identity)
    assert read.module == token_uri.DEFAULT_MODULE
    again = read.uri(PurePosixPath("/x/pin")).removeprefix("pkcs11:")
    head, _, tail = again.partition(";type=private?")
    assert token_uri.parse_pkcs11(head) == read
    assert tail == "pin-source=file:/x/pin"


@given(st.text(max_size=100))
def test_any_text_is_a_uri_or_a_named_fault(text: str) -> None:
    for parse in (token_uri.parse_pkcs11, token_uri.parse_tpm2):
        try:
            parse(text)
        except InputError as error:
            assert error.hint


GOOD = "token=a;object=b?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/p&certificate=x.crt"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GOOD.replace("token=a;", ""), "token: is missing"),
        (GOOD.replace("object=b", "slot-id=1"), "not known here"),
        (GOOD.replace(";object=b", ""), "object: is missing"),
        (GOOD.replace("object=b", "object=b;object=c"), "there twice"),
        (GOOD.replace("object=b", "object="), "must have a value"),
        (GOOD.replace("object=b", "object=%0Amodule=x"), "cannot be printed"),
        (GOOD.replace("token=a", "token=%ff"), "not UTF-8"),
        (GOOD.replace("/usr/lib/softhsm/libsofthsm2.so", "x.so"), "module-path"),
        (GOOD.replace("/usr/lib/softhsm/libsofthsm2.so", "/x.so%0Aactivate = 0"), "module-path"),
        (GOOD.replace("/usr/lib/softhsm/libsofthsm2.so", "/usr/../x.so"), "module-path"),
        (GOOD.replace("file:/p", "p"), "pin-source"),
        (f"{GOOD}&pin-value=1234", "can be read by every user"),
    ],
)
def test_uris_that_are_refused(text: str, said: str) -> None:
    assert token_uri.parse_pkcs11(GOOD).certificate == PurePosixPath("x.crt")
    with pytest.raises(InputError) as caught:
        token_uri.parse_pkcs11(text)
    assert any(said in fault for fault in caught.value.faults), caught.value.faults


def test_tpm_uris() -> None:
    assert token_uri.parse_tpm2("keys/a.tss") == (PurePosixPath("keys/a.tss"), None, PurePosixPath("keys/a.crt"))
    assert token_uri.parse_tpm2("a%20b.tss?certificate=c.pem") == (PurePosixPath("a b.tss"), None, PurePosixPath("c.pem"))
    for text in ("", "a.tss?parent=1", "a%ff.tss"):
        with pytest.raises(InputError):
            token_uri.parse_tpm2(text)


def test_tpm_handles() -> None:
    """Persistent ones only: a transient one is another key tomorrow, and the others are no keys."""
    read = token_uri.parse_tpm2("0x8100Ab05?certificate=c.pem")
    assert (read.path, read.handle, read.certificate) == (None, 0x8100AB05, PurePosixPath("c.pem"))
    assert read.handle_uri == "handle:0x8100ab05"
    assert token_uri.parse_tpm2("0x81ffffff").certificate is None
    # A file may be called so.
    assert token_uri.parse_tpm2("./0x81000005").path == PurePosixPath("0x81000005")
    for text in ("0x80ffffff", "0x82000000", "0x01500000", "0x0", "0x181000005", "0x81000005?parent=1"):
        with pytest.raises(InputError) as caught:
            token_uri.parse_tpm2(text)
        assert "handle" in caught.value.faults[0] or "not known here" in caught.value.faults[0], text


def test_the_pem_block() -> None:
    """As pkcs11-provider's own tools write it: SEQUENCE { VisibleString, UTF8String }."""
    uri = "pkcs11:token=a;object=" + "b" * 220
    lines = token_uri.key_pem(uri).decode().splitlines()
    assert lines[0] == "-----BEGIN PKCS#11 PROVIDER URI-----"
    der = base64.b64decode("".join(lines[1:-1]))
    version = b"PKCS#11 Provider URI v1.0"
    assert der.endswith(b"\x0c\x81" + bytes([len(uri)]) + uri.encode())
    assert der[4:] == b"\x1a\x19" + version + b"\x0c\x81" + bytes([len(uri)]) + uri.encode()
    assert der[:4] == b"\x30\x82" + (len(der) - 4).to_bytes(2, "big")
