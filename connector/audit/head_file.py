"""The newest signed head that a process knows of, kept beside its database: what an older database cannot know.

A database that is put back from a copy looks sound: its log ends where it ended. Going on with it would sign a second
history under the key of the first, and everything that was revoked, ended and used since would be forgotten.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from connector.audit import merkle
from connector.audit.signed_note import Signer, head_of
from connector.errors import HanseError
from connector.infra import atomic_files
from connector.telemetry import logger

_log = logger("audit")


class LogBroken(HanseError):
    """What is stored is not what was signed. Nothing more is signed until an operator has looked."""

    code = "log_broken"


class Unit(Protocol):
    """A transaction, as far as the log needs one."""

    now: float

    @property
    def audit(self) -> Any: ...


class NotOurs(LogBroken):
    """The database's log is not the newest that we know of, or goes on under another key: there is no going on."""


class Mark:
    """The head in the file `path`. One that a `former` key of ours has signed says nothing about the log of `signer`'s;
    what none of them has signed is damaged, or another's, and not gone on with."""

    def __init__(self, path: Path, *, signer: Signer, former: Sequence[Signer] = ()) -> None:
        self._path = path
        self.note, self.size, self._root, self._known = "", 0, b"", True
        self._failing = False
        try:
            self._known = not path.exists() or self._take(path.read_bytes(), signer, former)
        except OSError as error:
            raise LogBroken(f"{path} cannot be read ({error.strerror}); let the connector's user read it") from None

    def _take(self, data: bytes, signer: Signer, former: Sequence[Signer]) -> bool:
        """Whether it is a head that a key of ours has signed, which is then ours."""
        try:
            note = data.decode()
            _, size, root = head_of(note)
        except ValueError:
            return False
        self.note = note
        if signer.has_signed(note):
            self.size, self._root = size, root
            return True
        return any(one.has_signed(note) for one in former)

    def check(self, tx: Unit) -> None:
        """NotOurs where the database's log is not this one, or a later state of it. LogBroken where it cannot be read,
        or the file."""
        if not self._known:
            raise LogBroken(
                f"expected the newest signed head of our audit log in {self._path}, came something else (damaged), or "
                "one that no key in keys/ of HANSE_DATA_DIR has signed: copy keys/ from another process or the newest "
                "backup; remove the file only where the database is surely the newest there is, as nothing else shows "
                "that it is; where it is not, `hanse connector restored` (docs/operations.md)"
            )
        if (size := tx.audit.read_size()) < self.size:
            raise NotOurs(older(f"{size} records, not the {self.size}", self._path))
        try:
            same = not self.size or merkle.root(tx.audit.read_tile, self.size) == self._root
        except merkle.TreeBroken as error:
            raise LogBroken(str(error)) from error
        if not same:
            raise NotOurs(older("other records than those", self._path))

    def is_before(self, note: str) -> bool:
        """Whether this head is a later one, or the one before could not be written."""
        return self._failing or head_of(note)[1] > self.size

    def keep(self, note: str) -> None:
        """Replace the head by a later one; on the disk, and whole. What cannot be written is known here, and tried
        with the next look."""
        self.note, (_, self.size, self._root) = note, head_of(note)
        try:
            atomic_files.write(self._path, note)
        except OSError as error:
            if not self._failing:
                _log.warning("head_not_kept", path=str(self._path), reason=error.strerror)
            self._failing = True
            return
        self._failing = False


def older(has: str, where: Path | str) -> str:
    """What is said where the log `has` less than what was signed, or something else, as is known from `where`."""
    return (
        f"the audit log of this database has {has} that this connector has signed ({where}): an older "
        "database, or another one, is in the place of its own. What was revoked, withdrawn, ended and used since "
        "is not known here and would not hold, and what is signed now would contradict what others have seen. Put "
        "the newest one back, or set HANSE_DATABASE_URL to it; where there is none, `hanse connector restored` "
        "ends what was agreed and begins a log with another key (docs/operations.md)"
    )
