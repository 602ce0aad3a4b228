"""A file with the newest signed head of the audit log, to detect that the database was replaced by an older copy.

An older copy of a database looks sound, as its log ends with a signed head. Continuing it would sign a second history
with the same key, and would forget everything that was revoked, ended or used since the copy. So the newest head is
also kept outside of the database, in the data directory.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from connector.audit import merkle
from connector.audit.signed_note import Signer, read_head
from connector.errors import ConnectorError
from connector.infra import atomic_files
from connector.telemetry import logger

_log = logger("audit")


class LogBroken(ConnectorError):
    """The stored log does not match its signed head. Nothing more is signed until an operator has repaired it."""

    code = "log_broken"


class AuditTransaction(Protocol):
    """The part of a database transaction that the audit log needs."""

    now: float

    @property
    def audit(self) -> Any: ...


class ForeignLog(LogBroken):
    """The database's log is older than the head file, or signed with another key. The process must stop."""


class HeadFile:
    """The newest signed head, in the file `path`.

    A head that a `former` key signed says nothing about the log of `signer`. A head that none of these keys signed is
    damaged or from another connector, and `check` refuses it. Raises: LogBroken if the file cannot be read.
    """

    def __init__(self, path: Path, *, signer: Signer, former: Sequence[Signer] = ()) -> None:
        self._path = path
        self.note, self.size, self._root, self._is_ours = "", 0, b"", True
        self._failing = False
        try:
            self._is_ours = not path.exists() or self._load(path.read_bytes(), signer, former)
        except OSError as error:
            raise LogBroken(f"{path} cannot be read ({error.strerror}); let the connector's user read it") from None

    def _load(self, data: bytes, signer: Signer, former: Sequence[Signer]) -> bool:
        """Read a head from the file's bytes; False unless one of our keys signed it."""
        try:
            note = data.decode()
            _, size, root = read_head(note)
        except ValueError:
            return False
        self.note = note
        if signer.has_signed(note):
            self.size, self._root = size, root
            return True
        return any(key.has_signed(note) for key in former)

    def check(self, tx: AuditTransaction) -> None:
        """Check that the database's log continues the log of this head.

        Raises: ForeignLog if it does not; LogBroken if the log or the file is damaged.
        """
        if not self._is_ours:
            raise LogBroken(
                f"expected the newest signed head of our audit log in {self._path}, got damaged data or a head that no "
                "key in keys/ of HANSE_DATA_DIR signed; copy keys/ from another process or the newest backup. If the "
                "database is certainly the newest, remove the file, which is the only proof of that; otherwise run "
                "`hanse connector restored` (docs/operations.md)"
            )
        if (size := tx.audit.read_size()) < self.size:
            raise ForeignLog(describe_older_log(f"{size} records, not the {self.size}", self._path))
        try:
            same = not self.size or merkle.root(tx.audit.read_tile, self.size) == self._root
        except merkle.TreeBroken as error:
            raise LogBroken(str(error)) from error
        if not same:
            raise ForeignLog(describe_older_log("other records than those", self._path))

    def needs_update(self, note: str) -> bool:
        """Whether `note` is a later head, or the last one could not be written."""
        return self._failing or read_head(note)[1] > self.size

    def keep(self, note: str) -> None:
        """Replace the head by a later one, atomically. A failed write is logged and retried later."""
        self.note, (_, self.size, self._root) = note, read_head(note)
        try:
            atomic_files.write(self._path, note)
        except OSError as error:
            if not self._failing:
                _log.warning("head_not_kept", path=str(self._path), reason=error.strerror)
            self._failing = True
            return
        self._failing = False


def describe_older_log(has: str, where: Path | str) -> str:
    """The message for a log that lacks signed records; `has` says what it has instead, `where` how that is known."""
    return (
        f"the audit log of this database has {has} that this connector has signed ({where}): the database is an older "
        "copy, or another one. It does not know what was revoked, withdrawn, ended or used since, and new signatures "
        "would contradict heads that others have seen. Put the newest database back, or set HANSE_DATABASE_URL to it; "
        "if it is lost, `hanse connector restored` ends all agreements and begins a log with another key "
        "(docs/operations.md)"
    )
