# SPDX-License-Identifier: Apache-2.0
"""One rescue on one console: what was proved, what was asked, and the acts that it allows."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from freehold import atomic
from freehold.device import dbx_verbs, efivars, loader
from freehold.device.sysroot import Sysroot, read_text, record
from freehold.errors import FreeholdError, NotHereError
from freehold.keys.verify import Keychain
from freehold.lock import intent, memory
from freehold.lock.intent import Intent, Standing
from freehold.rescue import credential, esp, view, wish
from freehold.rescue.credential import Owner

#: What the early step takes over into the owner's directory at the next boot; more than it takes is not written.
LOG = "rescue.log"
LOG_LIMIT = 60 << 10
MAX_REQUESTS = 32

Log = Callable[[str], None]


def system_log(text: str) -> None:
    """One line for the journal."""
    import syslog

    syslog.openlog("freehold-rescue", syslog.LOG_PID, syslog.LOG_AUTHPRIV)
    syslog.syslog(syslog.LOG_NOTICE, text)


class Session:
    """A rescue. Nothing that changes the machine works before :meth:`unlock_with` or :meth:`take` succeeded."""

    def __init__(self, sysroot: Sysroot, *, log: Log = system_log, console: str = "") -> None:
        self.sysroot = sysroot
        self.keychain = Keychain.from_directory(sysroot.keychain)
        self.failures = 0
        self._owner: Owner | None = None
        self._by = ""
        self._asked: frozenset[bytes] = frozenset()
        self._log = log
        self._console = console

    @property
    def by(self) -> str:
        """Whose credential was proved; "" before."""
        return self._by

    @property
    def has_key(self) -> bool:
        """Whether the owner's key itself is open, so that acts can be signed here."""
        return self._owner is not None

    def machine(self) -> str:
        """This machine's name in intents."""
        try:
            return (self.sysroot.root / "owner/id").read_text().strip()
        except OSError as error:
            raise NotHereError(f"this machine's id cannot be read: {error.strerror}") from None

    def stands(self) -> Standing:
        """The intent in force at this boot."""
        path = self.sysroot.root / "owner/intent"
        signed = path.read_bytes()[: intent.MAX_SIGNED_BYTES + 1] if path.exists() else None
        judged = intent.judge(signed, keychain=self.keychain, machine=self.machine())
        return memory.judge(judged, signed, memory.load(self.sysroot.root / "owner"))

    def standing(self) -> Standing:
        """The intent in force at the next boot, if nothing more is done."""
        stands = self.stands()
        # What waits in the inbox with a good signature will stand: a second act in one rescue follows the first.
        waiting = self.sysroot.root / "inbox/intent"
        if waiting.is_file() and not waiting.is_symlink():
            offered = waiting.read_bytes()[: intent.MAX_SIGNED_BYTES + 1]
            offer = intent.judge_offer(stands, offered, keychain=self.keychain, machine=self.machine())
            if offer.accepted:
                return intent.judge(offered, keychain=self.keychain, machine=self.machine())
        return stands

    def note(self, event: str) -> None:
        """Log ``event`` to the journal, and durably to the inbox (from where it becomes the owner's)."""
        who = f" by {self._by}" if self._by else ""
        line = f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {self._console or 'rescue'}: {event}{who}"
        self._log(line)
        inbox = self.sysroot.root / "inbox"
        inbox.mkdir(mode=0o700, exist_ok=True)
        path = inbox / LOG
        # A log that something else has put there is not a log.
        old = path.read_bytes() if path.is_file() and not path.is_symlink() and path.stat().st_size < LOG_LIMIT else b""
        atomic.write(path, (old + line.encode("ascii", "replace") + b"\n")[-LOG_LIMIT:], mode=0o600)

    def unlock_with(self, path: Path, ask: Callable[[str], bytes]) -> str:
        """Prove the owner by a key file; the owner's name. Raises what :func:`freehold.rescue.credential.open_key` does."""
        try:
            owner = credential.open_key(path, self.keychain, ask)
        except FreeholdError as error:
            self.refused(error.message)
            raise
        self._owner, self._by, self.failures = owner, owner.name, 0
        self.note("owner's key opened")
        return owner.name

    def refused(self, why: str) -> None:
        """Count and log a credential that was refused."""
        self.failures += 1
        self.note(f"credential refused ({self.failures}): {why}")

    def ask(self, what: str, number: int | None = None) -> bytes:
        """The text of a request, to be signed elsewhere: ``unlock``, ``floor`` (with ``number``) or ``access``."""
        wanted = self._wish(what, number)
        text = intent.serialize(wanted)
        if len(self._asked) >= MAX_REQUESTS:
            raise FreeholdError("too many requests in one rescue", hint="`reboot` begins another")
        self._asked |= {text}
        self.note(f"request: {wish.describe(wanted)}")
        return text

    def take(self, signed: bytes) -> Intent:
        """Take the signed answer to a request of this rescue: it proves the owner and stands from the next boot on."""
        try:
            standing = self.standing()
            wanted = wish.check_answer(signed, self._asked, standing, self.keychain, self.machine())
        except FreeholdError as error:
            self.refused(error.message)
            raise
        self._by = intent.judge(signed, keychain=self.keychain, machine=self.machine()).key
        self.failures = 0
        if wish.uses_up(standing, wanted):
            self._leave(signed)
        self._asked -= {intent.serialize(wanted)}
        self.note(f"answer taken: {wish.describe(wanted)}")
        return wanted

    def act(self, what: str, number: int | None = None) -> Intent:
        """Sign an intent here with the open key (``unlock``, ``floor``); it stands from the next boot on."""
        self.proved()
        if self._owner is None:
            raise FreeholdError(f"the key itself is not here: `request {what}`, and then its `answer`")
        wanted = self._wish(what, number)
        signed = intent.sign(wanted, self._owner.sign)
        offer = intent.judge_offer(self.standing(), signed, keychain=self.keychain, machine=self.machine())
        if not offer.accepted:
            raise FreeholdError(f"the signed intent would be refused: {offer.reason}")
        self._leave(signed)
        self.note(f"{what}: {wish.describe(wanted)}")
        return wanted

    def boot_next(self, word: str) -> loader.Entry:
        """Make the deployment boot next whose id, the begin of its id, or version is ``word``."""
        self.proved()
        found = loader.listing(self.sysroot.esp)
        matching = {
            entry.id for entry in found if word == entry.version or (len(word) >= 4 and entry.id.startswith(word))
        }
        if len(matching) != 1:
            raise FreeholdError(
                f"{word!r} names {len(matching)} deployments here", hint="`state` lists the boot entries"
            )
        with atomic.exclusive(self.sysroot.lock_file, "the list of deployments"):
            switch = loader.plan_boot(loader.listing(self.sysroot.esp), matching.pop())
            loader.apply(self.sysroot.esp, switch)
        record(self.sysroot, "rescue-boot", id=switch.chosen.id, version=switch.chosen.version)
        self.note(f"boots next: {switch.chosen.version} {switch.chosen.id}")
        return switch.chosen

    def repair(self) -> esp.Plan:
        """Write what the boot partition lacks; what was done and what could not be."""
        self.proved()
        with atomic.exclusive(self.sysroot.lock_file, "the list of deployments"):
            wanted = esp.plan(self.sysroot, self.keychain, None)
            esp.carry_out(self.sysroot.esp, wanted)
        self.note(f"boot partition: {len(wanted.steps)} files written")
        return wanted

    def refuse(self, data: bytes, *, append: efivars.Append = efivars.append) -> str:
        """Have the firmware refuse what the signed update ``data`` revokes; what was done, in words."""
        self.proved()
        done = dbx_verbs.carry_out(self.sysroot, data, append=append)
        self.note(f"dbx: {'added to' if done.data['changed'] else 'nothing new'}")
        return done.text

    def proved(self) -> None:
        """Raise :class:`FreeholdError` unless the owner proved to be there in this rescue."""
        if not self._by:
            raise FreeholdError(
                "this needs the owner's credential",
                hint="`key` with the owner's stick, or `request access` and `answer`",
            )

    def _wish(self, what: str, number: int | None) -> Intent:
        standing, machine, now = self.standing(), self.machine(), int(time.time())
        # What waits in the inbox was asked for in this rescue, and may be lower: then it is what counts.
        known = None if standing != self.stands() else view.floor_of(self.sysroot.boot_record())
        if what == "floor" and number is not None:
            return wish.floor(standing, machine, now, number, known)
        if known is not None and known > view.release_of(read_text(self.sysroot.system / "proc/cmdline", 64 << 10)):
            known = None
        if what == "unlock":
            return wish.unlock(standing, machine, now, known)
        if what == "access":
            return wish.access(standing, machine, now, known)
        raise FreeholdError(f"nothing is called {what!r}", hint="unlock, floor N, access")

    def _leave(self, signed: bytes) -> None:
        inbox = self.sysroot.root / "inbox"
        inbox.mkdir(mode=0o700, exist_ok=True)
        atomic.write(inbox / "intent", signed, mode=0o600)
