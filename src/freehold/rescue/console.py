# SPDX-License-Identifier: Apache-2.0
"""The rescue entry's program: a few typed commands on a console, for who sits before the machine.

It runs as sealed code under the lock. What it shows without the owner's credential says nothing of users; what it does with
it is logged. Both consoles run one of their own: what was proved on one counts on that one.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from freehold import run
from freehold.device import stage
from freehold.device.sysroot import Sysroot
from freehold.errors import FreeholdError, InputError
from freehold.keys.dbx import MAX_UPDATE_BYTES
from freehold.lock.intent import MAX_SIGNED_BYTES
from freehold.rescue import credential, media, view, wish
from freehold.rescue.media import Medium
from freehold.rescue.session import Session

BANNER = """
Freehold rescue. Nothing is changed until you say so, and changes need the owner's credential.
`help` lists the commands.
"""
HELP = """
without a credential
  state                 what is installed, what is locked, what was said at this boot
  verify                check every deployment on this disk
  media                 partitions that could hold a credential
  key [FILE]            prove the owner: a private key on a stick (label FREEHOLD-KEY or FREEHOLDKEY first)
  request WHAT          make a request to be signed elsewhere, shown here and written to a stick:
                        `request unlock`, `request floor N`, `request access`
  answer [FILE]         take the signed answer from a stick; `answer -` to type or paste it
  reboot, poweroff
with the owner's credential
  unlock                open at the next boot; nothing is lost
  floor N               lower the rollback floor to N
  boot ID|VERSION       boot this deployment next
  repair-esp            write what the boot partition lacks
  dbx [FILE]            have the firmware refuse what a signed update (.auth) on the stick revokes
  logs                  the journal of the boot before this one, and of rescues
  shell                 a root shell, as far as the lock allows; `exit` comes back
""".strip()
REQUEST_NAME = "freehold-rescue.request"
ANSWER_SUFFIX = ".signed"
UPDATE_SUFFIX = ".auth"
PAGE_LINES = 200


class Console:
    """One console. ``reader`` and ``secret`` ask a person; both may raise :class:`EOFError`."""

    def __init__(
        self, session: Session, *, reader: Callable[[str], str] = input,
        secret: Callable[[str], str] = getpass.getpass, sleep: Callable[[float], None] = time.sleep,
        media_list: Callable[[], list[Medium]] = media.media,
    ) -> None:  # fmt: skip
        self.session = session
        self._read = reader
        self._secret = secret
        self._sleep = sleep
        self._media = media_list

    def loop(self) -> None:
        """Until the input ends."""
        print(BANNER)
        self._show(view.text(self._state()))
        while True:
            try:
                line = self._read("\nrescue> ")
            except EOFError:
                return
            except KeyboardInterrupt:
                print()
                continue
            self.command(line)

    def command(self, line: str) -> None:
        """Carry out one line; every fault is one line, and none ends the program."""
        words = line.split()
        if not words:
            return
        act = self._acts().get(words[0])
        if act is None:
            print(f"nothing is called {media.printable(words[0], 40)!r}; `help` lists the commands")
            return
        failures = self.session.failures
        try:
            act(words[1:])
        except FreeholdError as error:
            print(f"refused: {media.printable(error.message, 400)}" + (f"\n  ({error.hint})" if error.hint else ""))
            for fault in getattr(error, "faults", ()):
                print(f"  {media.printable(str(fault), 200)}")
        except (OSError, ValueError) as error:
            print(f"failed: {media.printable(str(error), 400)}")
        except (KeyboardInterrupt, EOFError):
            print()
        if self.session.failures > failures:
            seconds = credential.penalty(self.session.failures)
            print(f"waiting {seconds} s")
            self._sleep(seconds)

    def _acts(self) -> dict[str, Callable[[list[str]], None]]:
        return {
            "help": lambda _: print(HELP), "state": lambda _: self._show(view.text(self._state())), "verify": self._verify,
            "media": self._list_media, "key": self._key, "request": self._request, "answer": self._answer,
            "unlock": self._unlock, "floor": self._floor, "boot": self._boot, "repair-esp": self._repair, "dbx": self._dbx,
            "logs": self._logs, "shell": self._shell, "reboot": self._reboot, "poweroff": self._reboot_off,
        }  # fmt: skip

    def _show(self, text: str) -> None:
        for line in text.splitlines():
            print(media.printable(line, 400))

    def _state(self) -> dict[str, object]:
        with contextlib.suppress(FreeholdError, OSError):
            stage.ensure_esp(self.session.sysroot)
        return view.gather(self.session.sysroot, kernel_log=view.read_kernel_log())

    def _verify(self, _words: list[str]) -> None:
        with contextlib.suppress(FreeholdError):
            stage.ensure_esp(self.session.sysroot)
        self._show("\n".join(view.verify(self.session.sysroot, self.session.keychain)))

    def _list_media(self, _words: list[str]) -> None:
        found = self._media()
        self._show("\n".join(f"{one.device}  {one.kind}  {one.label}" for one in found) or "nothing is plugged in")

    @contextlib.contextmanager
    def _stick(self, *, write: bool = False) -> Iterator[Path]:
        """The stick with the right label, else the one that a person chooses."""
        found = self._media()
        if not found:
            raise FreeholdError("no partition with a FAT or ext4 file system is plugged in", hint="`media` looks again")
        named = [one for one in found if one.named]
        chosen = (
            named[0] if len(named) == 1 else found[self._choose([f"{m.device} {m.label}" for m in found], "partition")]
        )
        with media.mounted(chosen, write=write) as top:
            yield top

    def _choose(self, names: list[str], what: str) -> int:
        if len(names) == 1:
            return 0
        for number, name in enumerate(names, start=1):
            print(f"  {number}  {media.printable(name)}")
        answer = self._read(f"which {what}? ").strip()
        if not answer.isascii() or not answer.isdigit() or not 1 <= int(answer) <= len(names):
            raise InputError("that is none of them")
        return int(answer) - 1

    def _file(self, top: Path, words: list[str], suffix: str, what: str) -> Path:
        if words:
            return media.within(top, words[0])
        found = media.candidates(top, suffix)
        if not found:
            raise FreeholdError(f"no file on the stick ends in {suffix}", hint=f"name it: `{what} FILE`")
        return found[self._choose([str(path.relative_to(top)) for path in found], "file")]

    def _key(self, words: list[str]) -> None:
        with self._stick() as top:
            path = self._file(top, words, ".key", "key")
            name = self.session.unlock_with(path, lambda _: self._secret("passphrase: ").encode())
        print(f"good: this is {name}'s key. The stick can be taken out.")

    def _request(self, words: list[str]) -> None:
        what = words[0] if words else "access"
        text = self.session.ask(what, self._number(words[1:]) if what == "floor" else None)
        print("sign this with `freehold sign` where the owner's key is:\n")
        print(text.decode())
        try:
            with self._stick(write=True) as top:
                path = top / REQUEST_NAME
                # The old file, its writer's name and the new one are all a stick's own: nothing follows a link.
                path.unlink(missing_ok=True)
                with path.open("xb") as file:
                    file.write(text)
                    file.flush()
                    os.fsync(file.fileno())
        except FreeholdError as error:
            print(f"not written to a stick: {error.message}")
        else:
            print(f"written to the stick as {REQUEST_NAME}")
        print(f"then: `answer` with {REQUEST_NAME}{ANSWER_SUFFIX} on the stick, or `answer -`")

    def _answer(self, words: list[str]) -> None:
        if words == ["-"]:
            signed = self._typed()
        else:
            with self._stick() as top, self._file(top, words, ANSWER_SUFFIX, "answer").open("rb") as file:
                signed = file.read(MAX_SIGNED_BYTES + 1)
        wanted = self.session.take(signed)
        print(f"good: {wish.describe(wanted)}")

    def _typed(self) -> bytes:
        print("type or paste the signed answer; its last line begins with `signature`")
        lines: list[str] = []
        while sum(map(len, lines)) < MAX_SIGNED_BYTES:
            lines.append(self._read("").strip())
            if lines[-1].startswith("signature "):
                break
        return "".join(f"{line}\n" for line in lines).encode()

    def _unlock(self, _words: list[str]) -> None:
        print(f"from the next boot on: {wish.describe(self.session.act('unlock'))}")

    def _floor(self, words: list[str]) -> None:
        print(f"from the next boot on: {wish.describe(self.session.act('floor', self._number(words)))}")

    def _boot(self, words: list[str]) -> None:
        self.session.proved()
        stage.ensure_esp(self.session.sysroot)
        entry = self.session.boot_next(words[0] if words else "")
        print(f"{entry.version} ({entry.id}) boots next")

    def _repair(self, _words: list[str]) -> None:
        self.session.proved()
        stage.ensure_esp(self.session.sysroot)
        done = self.session.repair()
        self._show("\n".join(done.lines()) or "the boot partition lacks nothing")

    def _dbx(self, words: list[str]) -> None:
        self.session.proved()
        with self._stick() as top, self._file(top, words, UPDATE_SUFFIX, "dbx").open("rb") as file:
            data = file.read(MAX_UPDATE_BYTES + 1)
        self._show(self.session.refuse(data))

    def _logs(self, _words: list[str]) -> None:
        self.session.proved()
        done = run.run(["journalctl", "-b", "-1", "-n", str(PAGE_LINES), "--no-pager"], check=False, timeout=60)
        self._show(done.text)
        kept = self.session.sysroot.root / "owner/rescue.log"
        if kept.is_file():
            self._show(kept.read_text(errors="replace")[-8000:])

    def _shell(self, _words: list[str]) -> None:
        self.session.proved()
        self.session.note("root shell")
        print("a root shell under the lock; `exit` comes back to the rescue", flush=True)
        # The unit starts the rescue again after it: with no credential, which a shell may have waited for.
        run.replace(["/bin/bash", "--noprofile", "--norc", "-i"], env={"HOME": "/root", "PS1": "rescue# "})

    def _reboot(self, _words: list[str]) -> None:
        self._leave("reboot")

    def _reboot_off(self, _words: list[str]) -> None:
        self._leave("poweroff")

    def _leave(self, how: str) -> None:
        self.session.note(how)
        run.run(["systemctl", how], timeout=60)
        self._sleep(600)

    def _number(self, words: list[str]) -> int:
        if len(words) != 1 or not words[0].isascii() or not words[0].isdigit() or len(words[0]) > 16:
            raise InputError("a number is wanted", hint="for example `floor 20261101`")
        return int(words[0])


def main() -> int:
    """The program; returns the exit status."""
    name = "console"
    with contextlib.suppress(OSError):
        name = Path(os.ttyname(0)).name
    sysroot = Sysroot()
    if sysroot.boot_record().get("rescue") is not True:
        print("this machine was not started by its rescue entry", file=sys.stderr)
        return 1
    Console(Session(sysroot, console=name)).loop()
    return 0
