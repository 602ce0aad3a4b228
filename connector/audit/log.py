"""Numbering, hashing and signing: from committed events to a log with a signed head, and reading it back.

The database is reached through what `app` passes in (a store); of its rows only the names below are known.
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
from connector.audit.head_file import LogBroken, Mark, NotOurs, Unit, older
from connector.audit.record import SALT_BYTES, Record, record_of
from connector.errors import BadInput, HanseError, NotFound
from connector.events import OUTCOMES, Bus, Event, kinds
from connector.telemetry import logger

T = TypeVar("T")

ROUND_MAX = 1024  # records in one round: larger ones gain nothing and hold up other writers
_IDLE_SECONDS = 30.0  # after this long without a wake: records of another process that died before its round
_LOOK_SECONDS = 1.0  # between two looks whether the log is still ours: what an older one lets in is served until then
_RETRY_FIRST, _RETRY_CAP = 0.1, 5.0

_TEXTS = ("kind", "actor", "agreement", "dataset", "named", "outcome")

_log = logger("audit")


class Database(Protocol):
    bus: Bus

    def write(self, work: Callable[[Any], T], /) -> Awaitable[T]: ...

    def read(self, work: Callable[[Any], T], /) -> Awaitable[T]: ...

    def read_long(self, work: Callable[[Any], T], /) -> Awaitable[T]: ...


@dataclass(frozen=True, slots=True)
class Proven:
    """A record, the leaf hash that the tree holds for it, and the text of its `.tlog-proof` under the newest signed
    head. Text and tree are stored side by side, and either may have been changed."""

    record: Record
    logged: bytes
    proof: str


class Sequencer:
    """The one that numbers. Several may run on one database: a round belongs to whoever holds its lock. `mark`: where
    the newest head is kept outside of the database. `takes_over`: the newest head may be another key's."""

    def __init__(
        self,
        database: Database,
        *,
        signer: signed_note.Signer,
        former: Sequence[signed_note.Signer] = (),
        mark: Mark | None = None,
        takes_over: bool = False,
        round_seconds: float = 0.05,
        salt: Callable[[], bytes] = lambda: os.urandom(SALT_BYTES),
    ) -> None:
        self._database = database
        self._signer = signer
        self._former = former
        self._mark = mark
        self._takes_over = takes_over
        self._seen = self._signed = ""  # the newest head that was found to be ours; the one of our own last round
        self._round_seconds = round_seconds
        self._salt = salt
        self._wake = asyncio.Event()
        self._told = 0.0  # when something was committed last
        self._turn = asyncio.Lock()
        self._checked = False
        self.problem = ""  # why nothing is numbered now; empty while all is well
        self.lost = asyncio.Event()  # the log is not ours any more: nothing may be served, for the reason in `problem`

    async def run(self) -> None:
        """Catch up, then a round whenever something was committed, until cancelled.

        One thing ends it by itself, a log that is not ours any more (`lost`). What fails otherwise is said in `problem`
        and in our own log, and tried again, more slowly each time. A broken log is looked at again too: what was
        missing of it may have been put back.
        """
        unsubscribe = self._database.bus.subscribe(lambda _: self.wake(), own=True)
        pause = _RETRY_FIRST
        try:
            while True:
                try:
                    await self.settle()
                    self.problem, pause = "", _RETRY_FIRST
                    await self._rest()
                except NotOurs as error:
                    self.problem = error.message
                    _log.error("log not ours", reason=self.problem)
                    self.lost.set()
                    return
                except Exception as error:  # noqa: BLE001  # a sequencer that stops is a log that stops
                    self.problem = error.message if isinstance(error, HanseError) else type(error).__name__
                    _log.error(
                        "round failed", reason=self.problem, pause=pause, exc_info=not isinstance(error, HanseError)
                    )
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, _RETRY_CAP)
                    continue
                await self._gather()
        finally:
            unsubscribe()

    def wake(self) -> None:
        """There is something to number."""
        self._told = time.monotonic()
        self._wake.set()

    async def _rest(self) -> None:
        """Until there is something to number, or there may be. NotOurs where the log is not ours meanwhile."""
        ends = time.monotonic() + _IDLE_SECONDS
        while not self._wake.is_set() and time.monotonic() < ends:
            with contextlib.suppress(TimeoutError):  # not wait_for: 3.11's swallows a cancellation that meets a wake
                async with asyncio.timeout(_LOOK_SECONDS):
                    await self._wake.wait()
                    return
            async with self._turn:
                await self._keep_head()

    async def _gather(self) -> None:
        """Wait until what belongs together is there: it shares a commit and a signature.

        A quarter of a round without a word ends the wait, and so does a whole round: one that begins in the middle of
        a conversation keeps the database from it.
        """
        ends = time.monotonic() + self._round_seconds
        while (due := min(self._told + self._round_seconds / 4, ends)) > (now := time.monotonic()):  # noqa: ASYNC110
            await asyncio.sleep(due - now)  # a clock, not an event: waking for each record would cost more

    async def settle(self) -> None:
        """Number what is committed now; afterwards the newest head covers it. LogBroken where the tree is not ours."""
        async with self._turn:
            await self._check_once()
            self._wake.clear()
            while (done := await self._database.write(self._round)) != 0:
                if done is None:  # another process is in a round, and may have looked before our rows were there
                    await asyncio.sleep(self._round_seconds)
                    continue
                if done:
                    self._seen = self._signed  # it is committed
                if done < ROUND_MAX:
                    break
            await self._keep_head()

    async def _keep_head(self) -> None:
        """Look at the newest head, whoever has signed it, and keep it outside of the database as well."""
        newest = await self._database.read(self._look)
        self._seen = newest
        if self._mark and newest and self._mark.is_before(newest):
            await asyncio.to_thread(self._mark.keep, newest)

    def _look(self, tx: Unit) -> str:
        """The newest head. NotOurs where it is not our key's, or the log no later state of the one that we know: a
        database may be put back, and its log given another key, while we run."""
        newest = tx.audit.read_checkpoint()
        text: str = newest.note if newest is not None else ""
        if text != self._seen or not text:
            if not self._takes_over:
                check_key(tx, signer=self._signer, former=self._former)
            if self._mark:
                self._mark.check(tx)
        return text

    async def _check_once(self) -> None:
        if not self._checked:
            await self._database.read(check_head)
            self._checked = True

    def _round(self, tx: Unit) -> int | None:
        """One round in one transaction: how many records it numbered; None where another process has the turn.

        1. take the turn; 2. look whether the log is ours; 3. number pending rows from the log's size on; 4. add their
        leaves to the tiles; 5. sign the new head; 6. remove them from pending. A crash before the commit leaves
        everything pending.
        """
        if not tx.audit.lock():  # 1
            return None
        self._look(tx)  # 2
        rows = tx.audit.list_pending(ROUND_MAX)
        if not rows:
            return 0
        size, tile = tx.audit.read_size(), functools.cache(tx.audit.read_tile)
        records = [record_of(size + i, row.ts, row.body, self._salt()) for i, row in enumerate(rows)]  # 3
        tx.audit.append([_columns(record, row) for record, row in zip(records, rows, strict=True)])
        changed = merkle.append(tile, size, [merkle.leaf_hash(record.leaf) for record in records])  # 4
        for (level, n), data in changed.items():
            tx.audit.put_tile(level, n, data)
        total = size + len(records)
        head = merkle.root(lambda level, n: changed.get((level, n)) or tile(level, n), total)
        self._signed = signed_note.checkpoint(self._signer, size=total, root=head)
        tx.audit.put_checkpoint(total, self._signed, tx.now)  # 5
        tx.audit.remove_pending([row.id for row in rows])  # 6
        return len(records)


def check_key(tx: Unit, *, signer: signed_note.Signer, former: Sequence[signed_note.Signer] = ()) -> None:
    """NotOurs where the newest head is signed with another key: an auditor would take what follows for a forgery. With
    a `former` one, the database is from before that ended."""
    newest = tx.audit.read_checkpoint()
    if newest is None:
        return
    if any(one.has_signed(newest.note) for one in former):
        raise NotOurs(older("no more than what a former key had signed, not all", "keys/log-….key"))
    if not signer.has_signed(newest.note):
        raise NotOurs(
            "the audit log of this database was signed with another key than the one in keys/ of HANSE_DATA_DIR: copy "
            "keys/ from the connector that wrote it (not instance.secret, where that one goes on), or from its backup"
        )


def check_head(tx: Unit) -> None:
    """LogBroken unless the stored tree has the size and root of the newest head."""
    newest, size = tx.audit.read_checkpoint(), tx.audit.read_size()
    if newest is None:
        if size:
            raise LogBroken(f"the audit log holds {size} records and no signed head; {merkle.PUT_BACK}")
        return
    _, signed, root = signed_note.head_of(newest.note)
    try:
        sound = signed == size and merkle.root(tx.audit.read_tile, size) == root
    except merkle.TreeBroken as error:
        raise LogBroken(str(error)) from error
    if not sound:
        raise LogBroken(
            f"the audit log's newest head was signed over {signed} records, and what is stored ({size} records) does "
            f"not match it; nothing more will be signed: {merkle.PUT_BACK}"
        )


def _columns(record: Record, row: Any) -> dict[str, Any]:
    """The row of a record; the columns beside its text are for searching, cut where a column is short."""
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
    """Which records: equality on what is indexed, and a span of time in UTC seconds. `named`: another text that
    records may have for the dataset, as `AuditLog.meant` finds it.

    BadInput for a kind or an outcome that no record can have: nothing found would look like nothing done.
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
                raise BadInput(f"{name}: expected one of {', '.join(sorted(known))}, came {value[:64]!r}")
        for name in _TEXTS:
            if "\0" in getattr(self, name):
                raise BadInput(f"{name}: expected a text without NUL characters, which no record has")

    @property
    def query(self) -> dict[str, Any]:
        """As the store's queries take it."""
        equals = {name: value for name in _TEXTS if (value := getattr(self, name))}
        return {"equals": equals, "since": self.since, "until": self.until}

    @property
    def terms(self) -> dict[str, Any]:
        """The terms that were given, for the record of who asked for what."""
        spans = {name: value for name in ("since", "until") if (value := getattr(self, name)) is not None}
        return {**self.query["equals"], **spans}


class AuditLog:
    """Reading the log. Who reads is recorded, durably, before anything is handed out."""

    def __init__(self, database: Database, sequencer: Sequencer, *, vkey: str) -> None:
        self.database = database
        self.sequencer = sequencer
        self.vkey = vkey

    async def meant(self, which: Filter) -> Filter:
        """The same, with the id of a dataset that was named, over all that is committed now. NotFound for a dataset or
        an agreement that there is nothing of: no record would look like nothing done. BadInput for a name of several.

        An id (it has a colon) is taken as it is, and so is what stands in double quotes. A name is a dataset's by
        `AuditRows.datasets`, and the records that have that very text for one come with it: others choose what they
        call a dataset, and by none of it may records of ours be left out.
        """
        await self.sequencer.settle()

        def work(tx: Unit) -> Filter:
            if which.agreement and not tx.audit.knows_agreement(which.agreement):
                raise NotFound(
                    f"no agreement {which.agreement!r} was concluded here, and no record names it; list them with "
                    "`hanse agreements`"
                )
            if not which.dataset:
                return which
            dataset, named = _meant(tx, which.dataset)
            return replace(which, dataset=dataset, named=named)

        return await self.database.read(work)

    async def page(self, which: Filter, *, before: int | None, limit: int) -> Sequence[Record]:
        """The newest such records whose index is below `before`."""

        def work(tx: Unit) -> list[Record]:
            rows = tx.audit.list_events(stop=before, newest_first=True, limit=limit, **which.query)
            return [record_from(row) for row in rows]

        return await self.database.read(work)

    async def proven(self, idx: int) -> Proven:
        """One record with its proof. NotFound where the log is shorter."""

        def work(tx: Unit) -> Proven:
            newest, row = tx.audit.read_checkpoint(), tx.audit.get_event(idx)
            if newest is None or row is None or idx >= newest.size:
                size = 0 if newest is None else newest.size
                raise NotFound(f"the log has no record {idx}: expected an index below its size, {size}")
            path = merkle.inclusion_proof(tx.audit.read_tile, idx, newest.size)
            logged = merkle.leaf_at(tx.audit.read_tile, idx)
            return Proven(record_from(row), logged, signed_note.proof(index=idx, path=path, note=newest.note))

        return await self.database.read(work)

    async def head(self) -> str:
        """The newest signed head. NotFound before the first record."""

        def work(tx: Unit) -> str:
            newest = tx.audit.read_checkpoint()
            if newest is None:
                raise NotFound("the log has no signed head yet; it has one as soon as it holds a record")
            text: str = newest.note
            return text

        return await self.database.read(work)

    async def tile(self, level: int, n: int, wide: int) -> bytes:
        """The first `wide` hashes of a tile. NotFound where it is shorter: empty and future tiles are not served."""

        def work(tx: Unit) -> bytes:
            data: bytes = tx.audit.read_tile(level, n) or b""
            return data[: wide * merkle.HASH]

        data = await self.database.read(work)
        if len(data) != wide * merkle.HASH or not data:
            raise NotFound(f"the log has no tile {level}/{n} with {wide} hashes; read the checkpoint for its size")
        return data

    async def entries(self, n: int, wide: int) -> bytes:
        """The first `wide` entries of a bundle of 256, each after its length (big-endian, two bytes)."""

        def work(tx: Unit) -> list[bytes]:
            start = n * merkle.WIDTH
            return [record_from(row).leaf for row in tx.audit.list_events(start=start, stop=start + wide, limit=wide)]

        leaves = await self.database.read(work)
        if len(leaves) != wide:
            raise NotFound(f"the log has no bundle {n} with {wide} entries; read the checkpoint for its size")
        return b"".join(len(leaf).to_bytes(2, "big") + leaf for leaf in leaves)

    async def consistency(self, old: int, new: int) -> list[bytes]:
        """The RFC 6962 proof that the first `old` records are still the first of `new`."""

        def work(tx: Unit) -> list[bytes]:
            size = tx.audit.read_size()
            if not 0 < old <= new <= size:
                raise NotFound(f"expected 0 < old <= new <= {size}, came old={old} and new={new}")
            return merkle.consistency_proof(tx.audit.read_tile, old, new)

        return await self.database.read(work)

    async def note_reading(self, event: Event) -> None:
        """Record who reads, before they do."""
        await self.database.write(lambda tx: tx.publish(event))


def _meant(tx: Unit, text: str) -> tuple[str, str]:
    """`dataset` and `named` of a filter, for the dataset that somebody means by a text; see `AuditLog.meant`."""
    exact = text[1:-1] if len(text) > 2 and text[0] == text[-1] == '"' else text
    known = tx.audit.knows_dataset(exact)
    ids = [] if exact != text or ":" in text else [one for one in tx.audit.find_datasets(text) if one != text]
    if len(ids) > 1:
        choices = [*ids, *([f'"{text}"'] if known else [])]
        raise BadInput(f"{text!r} is the name of several datasets; take the id: {', '.join(choices)}")
    if ids:
        return ids[0], text if known else ""
    if not known:
        raise NotFound(
            f"no dataset {text!r} is registered or agreed on here, and no record names it; list them with "
            "`hanse dataset list`"
        )
    return exact, ""


def record_from(row: Any) -> Record:
    """A stored row as the record it is."""
    return Record(row.idx, row.ts, row.kind, row.body, row.salt)
