"""The audit log: numbers, hashes and signs committed events (`Sequencer`), and reads them back (`AuditLog`).

Must not import the store: `services` passes it in, and this module knows it by the protocols below.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from connector.audit import merkle, signed_note
from connector.audit.head_file import AuditTransaction, ForeignLog, HeadFile, LogBroken, describe_older_log
from connector.audit.record import SALT_BYTES, Record, make_record
from connector.errors import Absent, ConnectorError, Invalid
from connector.events import OUTCOMES, Bus, Event, kinds
from connector.telemetry import logger

T = TypeVar("T")

ROUND_MAX = 1024  # records in a round: larger rounds gain nothing and delay other writers
_IDLE_SECONDS = 30.0  # then look without a wake: another process may have died before its round
_LOOK_SECONDS = 1.0  # between two checks of the newest head: an older database is served for this long at most
_RETRY_FIRST, _RETRY_CAP = 0.1, 5.0

_TEXTS = ("kind", "actor", "agreement", "dataset", "named", "outcome")

_log = logger("audit")


class AuditDatabase(Protocol):
    bus: Bus

    def write(self, work: Callable[[Any], T], /) -> Awaitable[T]: ...

    def read(self, work: Callable[[Any], T], /) -> Awaitable[T]: ...

    def read_long(self, work: Callable[[Any], T], /) -> Awaitable[T]: ...


@dataclass(frozen=True, slots=True)
class ProvenRecord:
    """A record, its leaf hash in the tree, and its `.tlog-proof` under the newest signed head.

    Record and tree are stored separately, and either may have been changed: callers compare them.
    """

    record: Record
    logged: bytes
    proof: str


class Sequencer:
    """Numbers committed events in rounds and signs the head after each.

    Several processes may run one on the same database; a lock gives each round to a single process. `head_file` keeps
    the newest head outside of the database. `takes_over`: the newest head may be signed with another key.
    """

    def __init__(
        self,
        database: AuditDatabase,
        *,
        signer: signed_note.Signer,
        former: Sequence[signed_note.Signer] = (),
        head_file: HeadFile | None = None,
        takes_over: bool = False,
        round_seconds: float = 0.05,
        salt: Callable[[], bytes] = lambda: os.urandom(SALT_BYTES),
    ) -> None:
        self._database = database
        self._signer = signer
        self._former = former
        self._head_file = head_file
        self._takes_over = takes_over
        self._offered = ""  # the newest head that `on_head` got
        self._checked_head = self._signed = ""  # the newest head that was checked; the head of our last round
        self._round_seconds = round_seconds
        self._salt = salt
        self._wake = asyncio.Event()
        self._woken_at = 0.0  # monotonic time of the last commit
        self._turn = asyncio.Lock()
        self._checked = False
        self._contradiction = ""  # what another party proved about our log
        self.on_head: Callable[[str, bool], None] = lambda _, __: None  # gets a new head, and whether we signed it
        self.problem = ""  # why no event is numbered at the moment; empty if all is well
        self.lost = asyncio.Event()  # the log is not ours any more, as `problem` says: stop serving

    async def run(self) -> None:
        """Number what is pending, then run a round after each commit, until cancelled.

        It ends by itself only if the log is not ours any more (`lost`). Other failures go to `problem` and our own log,
        and are retried with growing pauses. A broken log is retried too, as an operator may repair it.
        """
        unsubscribe = self._database.bus.subscribe(lambda _: self.wake(), own=True)
        pause = _RETRY_FIRST
        try:
            while True:
                try:
                    await self.settle()
                    self.problem, pause = "", _RETRY_FIRST
                    await self._wait_for_work()
                except ForeignLog as error:
                    self.problem = error.message
                    _log.error("audit log is not ours", reason=self.problem)
                    self.lost.set()
                    return
                except Exception as error:  # noqa: BLE001  # a sequencer that stops is a log that stops
                    self.problem = error.message if isinstance(error, ConnectorError) else type(error).__name__
                    _log.error(
                        "audit round failed",
                        reason=self.problem,
                        pause=pause,
                        exc_info=not isinstance(error, ConnectorError),
                    )
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, _RETRY_CAP)
                    continue
                await self._wait_for_quiet()
        finally:
            unsubscribe()

    def stop_as_foreign(self, reason: str) -> None:
        """Sign nothing more, as a head that our key signed shows that this database is an older copy."""
        self._contradiction = reason
        self.wake()

    def wake(self) -> None:
        """Note that events were committed."""
        self._woken_at = time.monotonic()
        self._wake.set()

    async def _wait_for_work(self) -> None:
        """Wait for a commit, at most `_IDLE_SECONDS`, and check the head meanwhile. Raises: ForeignLog."""
        ends = time.monotonic() + _IDLE_SECONDS
        while not self._wake.is_set() and time.monotonic() < ends:
            with contextlib.suppress(TimeoutError):  # not wait_for: 3.11's swallows a cancellation that meets a wake
                async with asyncio.timeout(_LOOK_SECONDS):
                    await self._wake.wait()
                    return
            async with self._turn:
                await self._keep_head()

    async def _wait_for_quiet(self) -> None:
        """Wait until a burst of events is complete, so that its events share a commit and a signature.

        The wait ends after a quarter of a round without an event, and after a whole round at the latest. A round that
        began in the middle of a burst would keep the database from the rest.
        """
        ends = time.monotonic() + self._round_seconds
        while (due := min(self._woken_at + self._round_seconds / 4, ends)) > (now := time.monotonic()):  # noqa: ASYNC110
            await asyncio.sleep(due - now)  # a clock, not an event: waking for each record would cost more

    async def settle(self) -> None:
        """Number all committed events; afterwards the newest head covers them. Raises: LogBroken, ForeignLog."""
        async with self._turn:
            await self._check_once()
            self._wake.clear()
            while (done := await self._database.write(self._round)) != 0:
                if done is None:  # another process runs a round, which may have begun before our commit
                    await asyncio.sleep(self._round_seconds)
                    continue
                if done:
                    self._checked_head = self._signed  # it is committed
                if done < ROUND_MAX:
                    break
            await self._keep_head()

    async def _keep_head(self) -> None:
        """Check the newest head, whichever process signed it, and copy it to the head file."""
        newest = await self._database.read(self._check_newest_head)
        if newest and newest != self._offered:
            self._offered = newest
            self.on_head(newest, newest == self._signed)
        self._checked_head = newest
        if self._head_file and newest and self._head_file.needs_update(newest):
            await asyncio.to_thread(self._head_file.keep, newest)

    def _check_newest_head(self, tx: AuditTransaction) -> str:
        """Return the newest head after checking its key and that the log continues the log of the head file.

        The database may be replaced, or its log continued under another key, while we run. Raises: ForeignLog,
        LogBroken.
        """
        if self._contradiction:
            raise ForeignLog(self._contradiction)
        newest = tx.audit.read_checkpoint()
        text: str = newest.note if newest is not None else ""
        if text != self._checked_head or not text:
            if not self._takes_over:
                check_key(tx, signer=self._signer, former=self._former)
            if self._head_file:
                self._head_file.check(tx)
        return text

    async def _check_once(self) -> None:
        if not self._checked:
            await self._database.read(check_head)
            self._checked = True

    def _round(self, tx: AuditTransaction) -> int | None:
        """Run a round in a single transaction; return how many records it numbered, None if the lock is taken.

        1. take the lock; 2. check that the log is ours; 3. number pending rows from the log's size on; 4. add their
        leaves to the tiles; 5. sign the new head; 6. remove the rows from pending. A crash before the commit leaves
        all of them pending.
        """
        if not tx.audit.lock():  # 1
            return None
        self._check_newest_head(tx)  # 2
        rows = tx.audit.list_pending(ROUND_MAX)
        if not rows:
            return 0
        size, tile = tx.audit.read_size(), functools.cache(tx.audit.read_tile)
        records = [make_record(size + i, row.ts, row.body, self._salt()) for i, row in enumerate(rows)]  # 3
        tx.audit.append([_record_to_row(record, row) for record, row in zip(records, rows, strict=True)])
        changed = merkle.append(tile, size, [merkle.leaf_hash(record.leaf) for record in records])  # 4
        for (level, n), data in changed.items():
            tx.audit.put_tile(level, n, data)
        total = size + len(records)
        head = merkle.root(lambda level, n: changed.get((level, n)) or tile(level, n), total)
        self._signed = signed_note.checkpoint(self._signer, size=total, root=head)
        tx.audit.put_checkpoint(total, self._signed, tx.now)  # 5
        tx.audit.remove_pending([row.id for row in rows])  # 6
        return len(records)


def check_key(tx: AuditTransaction, *, signer: signed_note.Signer, former: Sequence[signed_note.Signer] = ()) -> None:
    """Check that `signer` signed the newest head. Raises: ForeignLog.

    Under another key, an auditor would take further records for a forgery. A head of a `former` key means that the
    database is older than the change of keys.
    """
    newest = tx.audit.read_checkpoint()
    if newest is None:
        return
    if any(key.has_signed(newest.note) for key in former):
        raise ForeignLog(
            describe_older_log("only records that a former key had signed, not all those", "keys/log-….key")
        )
    if not signer.has_signed(newest.note):
        raise ForeignLog(
            "the audit log of this database was signed with another key than the one in keys/ of HANSE_DATA_DIR: copy "
            "keys/ from the connector that wrote it, or from its backup; leave out instance.secret if it still runs"
        )


def check_head(tx: AuditTransaction) -> None:
    """Check that the stored tree has the size and root of the newest head. Raises: LogBroken."""
    newest, size = tx.audit.read_checkpoint(), tx.audit.read_size()
    if newest is None:
        if size:
            raise LogBroken(f"the audit log holds {size} records and no signed head; {merkle.PUT_BACK}")
        return
    _, signed, root = signed_note.read_head(newest.note)
    try:
        sound = signed == size and merkle.root(tx.audit.read_tile, size) == root
    except merkle.TreeBroken as error:
        raise LogBroken(str(error)) from error
    if not sound:
        raise LogBroken(
            f"expected the stored audit log to match its newest signed head of {signed} records, got {size} records "
            f"that do not; nothing more is signed: {merkle.PUT_BACK}"
        )


def _record_to_row(record: Record, row: Any) -> dict[str, Any]:
    """The row of a record. The columns in addition to its text are for searching, cut to the column's length."""
    body = row.body
    short = {name: str(body.get(name, ""))[:255] for name in ("actor", "agreement", "dataset")}
    return {
        "idx": record.idx,
        "ts": record.ts,
        "kind": record.kind[:64],
        "outcome": str(body.get("outcome", "ok"))[:16],
        "body": record.text,
        "salt": record.salt,
        "origin": row.origin,
        **short,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Selects records by equality on indexed members and by a span of time in UTC seconds.

    `named` is another text that records may have for the dataset, as `AuditLog.resolve_dataset` finds it. Raises:
    Invalid for a kind or outcome that no record can have, as an empty result would look like "nothing happened".
    """

    kind: str = ""
    actor: str = ""
    agreement: str = ""
    dataset: str = ""
    named: str = ""
    outcome: str = ""
    since: float | None = None
    until: float | None = None

    def __post_init__(self) -> None:
        for name, value, known in (("kind", self.kind, kinds()), ("outcome", self.outcome, OUTCOMES)):
            if value and value not in known:
                raise Invalid(f"{name}: expected one of {', '.join(sorted(known))}, got {value[:64]!r}")
        for name in _TEXTS:
            if "\0" in getattr(self, name):
                raise Invalid(f"{name}: expected a text without NUL characters, got one with")

    @property
    def query(self) -> dict[str, Any]:
        """The arguments of the store's queries."""
        equals = {name: value for name in _TEXTS if (value := getattr(self, name))}
        return {"equals": equals, "since": self.since, "until": self.until}

    @property
    def terms(self) -> dict[str, Any]:
        """The terms that are set, for the record about this read."""
        spans = {name: value for name in ("since", "until") if (value := getattr(self, name)) is not None}
        return {**self.query["equals"], **spans}


class AuditLog:
    """Reads the log. Each read is itself recorded, durably, before anything is handed out."""

    def __init__(self, database: AuditDatabase, sequencer: Sequencer, *, vkey: str) -> None:
        self.database = database
        self.sequencer = sequencer
        self.vkey = vkey
        self.settle_cosignatures: Callable[[int], Awaitable[None]] = _no_witness

    async def resolve_dataset(self, which: Filter) -> Filter:
        """Return the filter with the dataset's name replaced by its id, over all that is committed now.

        A text with a colon is an id and stays as it is, and so does a text in double quotes. For a name, records that
        hold that very text as their dataset are included too: other parties choose how they call a dataset, and must
        not be able to hide our records. Raises: Absent for an unknown dataset or agreement, as an empty result would
        look like "nothing happened"; Invalid for a name of several datasets.
        """
        await self.sequencer.settle()

        def work(tx: AuditTransaction) -> Filter:
            if which.agreement and not tx.audit.knows_agreement(which.agreement):
                raise Absent(
                    f"no agreement {which.agreement!r} was concluded here, and no record names it; list them with "
                    "`hanse agreements`"
                )
            if not which.dataset:
                return which
            dataset, named = _find_dataset(tx, which.dataset)
            return replace(which, dataset=dataset, named=named)

        return await self.database.read(work)

    async def page(self, which: Filter, *, before: int | None, limit: int, without: str = "") -> Sequence[Record]:
        """The newest matching records with an index below `before`, at most `limit`; none of the kind `without`."""

        def work(tx: AuditTransaction) -> list[Record]:
            rows = tx.audit.list_events(stop=before, newest_first=True, limit=limit, without=without, **which.query)
            return [row_to_record(row) for row in rows]

        return await self.database.read(work)

    async def prove(self, idx: int) -> ProvenRecord:
        """A record with its inclusion proof. Raises: Absent for an index that is not below the log's size."""

        def work(tx: AuditTransaction) -> ProvenRecord:
            newest, row = tx.audit.read_checkpoint(), tx.audit.get_event(idx)
            if newest is None or row is None or idx >= newest.size:
                size = 0 if newest is None else newest.size
                raise Absent(f"the log has no record {idx}: expected an index below its size, {size}")
            path = merkle.inclusion_proof(tx.audit.read_tile, idx, newest.size)
            logged = merkle.leaf_at(tx.audit.read_tile, idx)
            return ProvenRecord(row_to_record(row), logged, signed_note.proof(index=idx, path=path, note=newest.note))

        return await self.database.read(work)

    async def head(self) -> str:
        """The newest signed head. Raises: Absent before the first record."""

        def work(tx: AuditTransaction) -> str:
            newest = tx.audit.read_checkpoint()
            if newest is None:
                raise Absent("the log has no signed head yet; it gets one with its first record")
            text: str = newest.note
            return text

        return await self.database.read(work)

    async def tile(self, level: int, n: int, wide: int) -> bytes:
        """The first `wide` hashes of a tile, 32 bytes each. Raises: Absent if it has fewer."""

        def work(tx: AuditTransaction) -> bytes:
            data: bytes = tx.audit.read_tile(level, n) or b""
            return data[: wide * merkle.HASH]

        data = await self.database.read(work)
        if len(data) != wide * merkle.HASH or not data:
            raise Absent(f"the log has no tile {level}/{n} with {wide} hashes; read the checkpoint for its size")
        return data

    async def entries(self, n: int, wide: int) -> bytes:
        """The first `wide` entries of bundle `n` of 256, each after its length (two bytes, big-endian)."""

        def work(tx: AuditTransaction) -> list[bytes]:
            start = n * merkle.WIDTH
            return [row_to_record(row).leaf for row in tx.audit.list_events(start=start, stop=start + wide, limit=wide)]

        leaves = await self.database.read(work)
        if len(leaves) != wide:
            raise Absent(f"the log has no bundle {n} with {wide} entries; read the checkpoint for its size")
        return b"".join(len(leaf).to_bytes(2, "big") + leaf for leaf in leaves)

    async def consistency(self, old: int, new: int) -> list[bytes]:
        """The RFC 6962 proof that a log of `new` records begins with the first `old` ones. Raises: Absent."""

        def work(tx: AuditTransaction) -> list[bytes]:
            size = tx.audit.read_size()
            if not 0 < old <= new <= size:
                raise Absent(f"expected 0 < old <= new <= {size}, got old={old} and new={new}")
            return merkle.consistency_proof(tx.audit.read_tile, old, new)

        return await self.database.read(work)

    async def note_reading(self, event: Event) -> None:
        """Record a read of the log, before it happens."""
        await self.database.write(lambda tx: tx.publish(event))


async def _no_witness(_: int) -> None:
    """What waits for cosignatures where there are no witnesses."""


def _find_dataset(tx: AuditTransaction, text: str) -> tuple[str, str]:
    """`dataset` and `named` of a filter for a text that means a dataset; see `AuditLog.resolve_dataset`."""
    exact = text[1:-1] if len(text) > 2 and text[0] == text[-1] == '"' else text
    known = tx.audit.knows_dataset(exact)
    ids = (
        [] if exact != text or ":" in text else [dataset for dataset in tx.audit.find_datasets(text) if dataset != text]
    )
    if len(ids) > 1:
        choices = [*ids, *([f'"{text}"'] if known else [])]
        raise Invalid(f"{text!r} is the name of several datasets; use an id: {', '.join(choices)}")
    if ids:
        return ids[0], text if known else ""
    if not known:
        raise Absent(
            f"no dataset {text!r} is registered or agreed on here, and no record names it; list them with "
            "`hanse dataset list`"
        )
    return exact, ""


def row_to_record(row: Any) -> Record:
    """The record of a stored row."""
    return Record(row.idx, row.ts, row.kind, row.body, row.salt)
