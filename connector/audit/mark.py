"""The newest signed head that a process knows of, kept beside its database: what an older database cannot know.

A database that is put back from a copy looks sound: its log ends where it ended. Going on with it would sign a second
history under the key of the first, and everything that was revoked, ended and used since would be forgotten.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Protocol

from connector.audit import merkle
from connector.audit.note import Signer, head_of
from connector.errors import HanseError
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


class Mark:
    """The head in the file `path`; of a log with another key than `signer`'s it says nothing about this one's."""

    def __init__(self, path: Path, *, signer: Signer) -> None:
        self._path = path
        self.note = path.read_text() if path.exists() else ""
        self.size, self._root = _head(self.note, path) if self.note else (0, b"")
        if self.note and not signer.has_signed(self.note):
            self.size, self._root = 0, b""
        self._failing = False

    def check(self, tx: Unit) -> None:
        """LogBroken where the database's log is not this one, or a later state of it."""
        self.check_size(tx.audit.size())
        try:
            same = not self.size or merkle.root(tx.audit.tile, self.size) == self._root
        except merkle.TreeBroken as error:
            raise LogBroken(str(error)) from error
        if not same:
            raise LogBroken(self._older("other records than those"))

    def check_size(self, size: int) -> None:
        """LogBroken where the log is shorter: for each round, as a database may be put back while we run."""
        if size < self.size:
            raise LogBroken(self._older(f"{size} records, not the {self.size}"))

    def keep(self, note: str) -> None:
        """Replace the head by a later one; on the disk, and whole. What cannot be written is tried with the next."""
        draft = self._path.with_name(f".{self._path.name}.new")  # nobody else is in our directory
        try:
            with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                file.write(note)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(self._path)
        except OSError as error:
            if not self._failing:
                _log.warning("head_not_kept", path=str(self._path), reason=error.strerror)
            self._failing = True
            return
        self.note, (_, self.size, self._root), self._failing = note, head_of(note), False

    def _older(self, has: str) -> str:
        return (
            f"the audit log of this database has {has} that this connector has signed ({self._path}): an older "
            "database, or another one, is in the place of its own. What was revoked, withdrawn, ended and used since "
            "is not known here and would not hold, and what is signed now would contradict what others have seen. Put "
            "the newest one back, or set HANSE_DATABASE_URL to it; where there is none, `hanse connector restored` "
            "ends what was agreed and begins a log with another key (docs/operations.md)"
        )


def _head(note: str, path: Path) -> tuple[int, bytes]:
    try:
        return head_of(note)[1:]
    except ValueError:
        raise LogBroken(
            f"expected the newest signed head of our audit log in {path}, came something else; remove it where the "
            "database is the newest there is"
        ) from None
