# SPDX-License-Identifier: Apache-2.0
"""A certificate's facts and, in words, what it may do."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from freehold.keys.verify import KEYCHAIN_ROLES, Keychain, Role, is_authority, issued_by, role_of

if TYPE_CHECKING:
    from cryptography import x509

MEANING: dict[Role, str] = {
    "vendor": "issue release certificates: machines that have it in their keychain believe what those sign",
    "owner": "say for a machine whether it is locked, commit its /etc, issue device certificates, and, where firmware has it in "
    "KEK, change what that starts and refuses",
    "release": "sign releases: manifests of updates, and boot images that firmware with this certificate or its vendor's starts",
    "device": "sign what its one machine derives from its owner's requests and from releases (deployments, boot images, files), "
    "for that machine; no releases, no intents",
}
NO_ROLE = "nothing by itself: it names no role, the keychain's file name decides (ROLE-NAME.der)"
#: What those who read "expires" or "revoked" should know; seen with Linux 6.12.
KERNEL = (
    "the kernel looks at keys only: not at dates, purposes or Freehold's list of revoked certificates. Machines honour the "
    "list after the next update; signing refuses a certificate that is out of date"
)
KERNEL_LEAF = "the kernel also believes certificates that this key issues, though it is no authority: guard it like its issuer"


def describe(certificate: x509.Certificate, keychain: Keychain) -> dict[str, object]:
    """A certificate's facts, as JSON has them; ``keychain`` knows what is revoked. Pure but for the clock (``current``)."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.hazmat.primitives.serialization import Encoding

    der = certificate.public_bytes(Encoding.DER)
    role = role_of(der)
    public = certificate.public_key()
    revoked = keychain.why_revoked(der)
    try:
        authority = is_authority(certificate)
    except ValueError:
        authority = False
    may = MEANING[role] if role else NO_ROLE
    if not isinstance(public, rsa.RSAPublicKey) or not 2048 <= public.key_size <= 4096:
        may = "nothing here: only RSA keys of 2048 to 4096 bits count"
    elif role == "vendor" and not authority:
        may = "nothing: a vendor has to be a certificate authority, and this is none"
    elif revoked is not None:
        may = "nothing any more: it is revoked"
    return {
        "subject": certificate.subject.rfc4514_string(),
        "issuer": certificate.issuer.rfc4514_string(),
        "self_signed": issued_by(certificate, certificate),
        "authority": authority,
        "role": role,
        "may": may,
        "revoked": revoked,
        "algorithm": f"RSA-{public.key_size}" if isinstance(public, rsa.RSAPublicKey) else type(public).__name__,
        "fingerprint": certificate.fingerprint(hashes.SHA256()).hex(),
        "not_before": f"{certificate.not_valid_before_utc:%Y-%m-%d}",
        "not_after": f"{certificate.not_valid_after_utc:%Y-%m-%d}",
        "current": certificate.not_valid_before_utc <= datetime.now(UTC) <= certificate.not_valid_after_utc,
    }


def in_words(facts: dict[str, object]) -> str:
    """The facts for a person, several lines."""
    issuer = "itself" if facts["self_signed"] else facts["issuer"]
    lines = [
        f"{facts['subject']}",
        f"  role         {facts['role'] or 'none'}",
        f"  may          {facts['may']}",
        f"  issued by    {issuer}",
        f"  reaches      {_reach(facts)}",
        f"  revoked      {facts['revoked'] or 'no'}",
        f"  key          {facts['algorithm']}",
        f"  fingerprint  sha256 {facts['fingerprint']}",
        f"  valid        {facts['not_before']} to {facts['not_after']}{'' if facts['current'] else '  (not now)'}",
        f"  mind         {KERNEL}",
    ]
    if not facts["authority"]:
        lines.append(f"               {KERNEL_LEAF}")
    return "\n".join(lines) + "\n"


def _reach(facts: dict[str, object]) -> str:
    """How machines come to know it."""
    role = facts["role"]
    if facts["self_signed"]:
        return "machines by their keychain" if role in (None, *KEYCHAIN_ROLES) else "nobody: a device is issued by an owner"
    if role == "release":
        return "machines with each signature: only its vendor has to be in their keychain, so it can be replaced at any time"
    return "its machine with each signature: only its owner has to be in the keychain, and in the firmware's db"


def one_line(row: dict[str, object]) -> str:
    """A row of ``key list``."""
    issuer = "" if row["self_signed"] else f"  by {row['issuer']}"
    revoked = f"  REVOKED: {row['revoked']}" if row["revoked"] else ""
    private = "with private key" if row["private"] else "certificate only"
    expired = "" if row["current"] else " (not now)"
    return f"{row['name']}  {row['role'] or 'no role'}  until {row['not_after']}{expired}  {private}{issuer}{revoked}\n"
