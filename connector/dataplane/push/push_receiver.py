"""What providers push to us: our own address for it, and what has come, whole and checked, in files.

A push is taken so; the numbers stand beside the code:
1. the token is that of this transfer (an HMAC, so that none lies in the database or the outbox), and the transfer is
   one that is asked for or started; whoever fails is told the same, whatever it is;
2. the body goes to a file that nobody else can open, within the room for one and for all, and within time;
3. a worker, of all pushes one at a time, reads the foreign Arrow fully; an end record in it must say complete, with the
   totals and digest that came;
4. the file gets its place, and the record and its event are committed, if the transfer still runs: then it counts.
Whatever fails leaves nothing but its event. Knows no transport.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from connector.dataplane.data_address import ENDPOINT_TYPE, PATH
from connector.dataplane.push import received_files
from connector.engine.pool.pool import Pool
from connector.engine.pool.protocol import Job, Limits
from connector.errors import BadInput, Busy, HanseError, NotFound, Refused, Unauthenticated, internal_error
from connector.events import DataReceived, DataRefused, DataRemoved, Event, TransferAdvanced
from connector.infra.concurrency.turn_queue import TurnQueue
from connector.store import UNKNOWN, Store, Transaction
from connector.store.tables import PushedData, Transfer
from connector.telemetry import logger
from connector.usage.grants import PUSH_FAILED

PUSHED = f"{PATH}/received"
MEDIA = "application/vnd.apache.arrow.stream"
_RUNS = ("REQUESTED", "STARTED")
_AT_ONCE = 16  # pushes; and as many repeats of what has come, which take nothing from them
_EACH = 8  # of these, from one counterparty (decision 33), which sends no more at once (`dsp.circles`)
_FULL = "pushes_max"
_LEAST = 2**7  # bytes within the time for silence: as few as no message with a row has are none (decision 37)
_WRITE = 2**20
_REMOVE_AGAIN = 60.0  # seconds
_CHECK_RATE = 16 * 2**20  # bytes a second that a worker checks at least; it does ten times that
_CHECK_SECONDS = 60.0  # and beside them
_CHECK_WAIT = 120.0  # seconds to wait for others' checks: shorter than senders wait for an answer (`pushing`)
_T = TypeVar("_T")
_log = logger("receiving")

ReadPiece = Callable[[], Awaitable[bytes | None]]  # the next piece of a body; None at its end


@dataclass(frozen=True, slots=True)
class ReceiveLimits:
    """What may come: bytes of one push and of all that is kept, seconds of silence and in all."""

    each: int
    total: int
    stall: float = 120.0  # longer than a provider's query may work without a batch
    seconds: float = 24 * 3600.0


class IncomingPush:
    """One push under way, or the repeat of one that is `known`."""

    def __init__(self, transfer: Transfer, known: PushedData | None, path: Path) -> None:
        self.transfer, self.known, self.path = transfer, known, path
        self.size = 0
        self.waited, self.recent_bytes = 0.0, 0  # seconds and bytes since enough had come for the last time
        self.checking = False
        self.over = known is not None  # it counts, or nothing is left of it
        self._why: HanseError | None = None
        self._work: asyncio.Future[Any] | None = None

    async def do(self, work: Awaitable[_T]) -> _T:
        """`work`, until it is done or `stop` ends it with its reason."""
        running = asyncio.ensure_future(work)
        self._work = running
        if self._why is not None:
            running.cancel()
        try:
            return await running
        except asyncio.CancelledError:
            running.cancel()
            await asyncio.wait((running,))
            if self._why is None:
                raise
            raise self._why from None

    def stop(self, why: HanseError) -> None:
        """End it now, unless it counts already."""
        self._why = self._why or why
        if self._work is not None:
            self._work.cancel()


class PushReceiver:
    """Everything that is pushed to one consumer."""

    def __init__(
        self,
        store: Store,
        pool: Pool,
        folder: Path,
        *,
        secret: bytes,
        root_url: str,
        room: ReceiveLimits,
        memory_mb: int = 512,
    ) -> None:
        self.room = room
        self._store, self._pool = store, pool
        self._secret, self._endpoint, self._memory_mb = secret, root_url + PUSHED, memory_mb
        self._arriving, self._kept = received_files.make_arrival_folder(folder), folder / "kept"
        self._coming: dict[str, IncomingPush] = {}
        self._checks = TurnQueue(1, waiting=_AT_ONCE, wait_seconds=_CHECK_WAIT)
        self._held = 0  # bytes in files, of what is kept and of what comes
        self._tasks: set[asyncio.Task[None]] = set()
        self._draining = ""
        self._kept.mkdir(mode=0o700, parents=True, exist_ok=True)
        store.bus.subscribe(self._on_event)

    # What the protocol asks.

    def address(self, transfer_id: str) -> dict[str, Any]:
        """Our own data address for one transfer, as a request carries it. BadInput where nothing is received."""
        if not self.room.total:
            raise BadInput(
                "this connector receives no pushes (HANSE_RECEIVED_MB is 0): set it, name a data_address to push to, "
                "or ask for a format that is pulled",
                code="nothing_received",
            )
        properties = {
            "authType": "bearer",
            "authorization": self._token(transfer_id),
            "maxBytes": str(min(self.room.each, self.room.total)),
        }
        return {
            "@type": "DataAddress",
            "endpointType": ENDPOINT_TYPE,
            "endpoint": f"{self._endpoint}/{quote(transfer_id, safe='')}",
            "endpointProperties": [
                {"@type": "EndpointProperty", "name": name, "value": value} for name, value in properties.items()
            ],
        }

    def _token(self, transfer_id: str) -> str:
        return hmac.new(self._secret, transfer_id.encode(), hashlib.sha256).hexdigest()

    # Taking one.

    async def take(self, transfer_id: str, authorization: str, *, media: str, ask: ReadPiece) -> PushedData:
        """Receive a push whole: its record, once it is committed. A repeat of what has come changes nothing.

        Unauthenticated, alike, for a wrong token, an unknown transfer and one that does not run. After any other error
        nothing of the push is kept, and its event says why.
        """
        transfer, known = await self._find_transfer(transfer_id, authorization)  # 1
        if known is None and media.partition(";")[0].strip().lower() != MEDIA:
            raise BadInput(f"expected {MEDIA}, came {media[:100]!r}", code="media_type")
        coming = await self._assign_place(transfer, known)
        try:
            if transfer.code == _FULL:
                await self._store.write(partial(_set_transfer_reason, transfer_id=transfer.id, error=None))
            return await self._receive(coming, ask)
        except HanseError as error:
            await self._forget(coming)  # first: whoever hears of it finds nothing
            if known is None and error.code != UNKNOWN:
                await self._record_refusal(coming, error)
            raise
        finally:
            await self._forget(coming)

    async def _forget(self, coming: IncomingPush) -> None:
        """It does not come any more; its file goes, unless that counts. One that the disk holds on to stays counted,
        until the next start removes it."""
        if self._coming.get(coming.transfer.id) is coming:
            del self._coming[coming.transfer.id]
        if not coming.over:
            coming.over = True
            if await received_files.run_in_thread(received_files.try_remove, coming.path):
                self._held -= coming.size
            else:
                _log.error("left_over", transfer=coming.transfer.id, bytes=coming.size)

    async def _find_transfer(self, transfer_id: str, authorization: str) -> tuple[Transfer, PushedData | None]:
        shown = authorization.removeprefix("Bearer ").removeprefix("bearer ").strip().encode()
        nobody = Unauthenticated(
            "expected the authorization of a push that is due here; it stands in the data address of a transfer "
            "request, and is good while that transfer runs"
        )
        if not self.room.total or not hmac.compare_digest(shown, self._token(transfer_id).encode()):
            raise nobody  # before the database is asked: whoever guesses learns nothing from how long it takes
        row, known = await self._store.read(
            lambda tx: (tx.transfers.peek(transfer_id), tx.pushed_data.get(transfer_id))
        )
        if row is None or row.role != "consumer" or row.state not in _receiving_states(known):
            raise nobody
        return row, known

    async def _assign_place(self, transfer: Transfer, known: PushedData | None) -> IncomingPush:
        """A place, or Busy; whoever ordered the push sees in its transfer that it waits for one."""
        try:
            return self._start_push(transfer, known)
        except Busy as full:
            if full.code == _FULL != transfer.code:
                await self._store.write(partial(_set_transfer_reason, transfer_id=transfer.id, error=full))
            raise

    def _start_push(self, transfer: Transfer, known: PushedData | None) -> IncomingPush:
        """A file to be for this push, none for a repeat. One of the same transfer that still comes was cut, and goes.

        Repeats take as long as their senders like, and are worth nothing: they have places of their own.
        """
        if self._draining:
            raise Busy(self._draining, code="shutting_down")
        before = self._coming.get(transfer.id)
        if known is None and before is not None and before.checking:
            raise Busy("what came before is being checked; ask again in a moment", code="being_checked")
        if before is None:
            self._check_places(transfer, known)
        if before is not None:
            before.stop(BadInput("the same push began anew", code="replaced"))
        coming = self._coming[transfer.id] = IncomingPush(transfer, known, self._arriving / secrets.token_hex(16))
        return coming

    def _check_places(self, transfer: Transfer, known: PushedData | None) -> None:
        """Busy where all places of its kind are taken, or its counterparty has its share of them."""
        kind, who = "pushes" if known is None else "repeats of pushes", transfer.counterparty
        others = [one.transfer.counterparty for one in self._coming.values() if (one.known is None) == (known is None)]
        for count, most, of in ((len(others), _AT_ONCE, ""), (others.count(who), _EACH, f" of {who}")):
            if count >= most:
                raise Busy(f"{most} {kind}{of} are coming, as many as may; this one waits for a place", code=_FULL)

    async def _receive(self, coming: IncomingPush, ask: ReadPiece) -> PushedData:
        try:
            async with asyncio.timeout(self.room.seconds):
                if coming.known is not None:
                    await coming.do(self._discard_repeat(coming, ask))
                    return coming.known
                await coming.do(self._spool(coming, ask))  # 2
                coming.checking = True
                found = await coming.do(self._check_arrow(coming))  # 3
            check_complete(found)
            return await asyncio.shield(self._publish(coming, found))  # 4
        except TimeoutError:
            raise BadInput(
                f"expected a push within {self.room.seconds:g} s, came a slower one", code="too_slow"
            ) from None
        except OSError as error:
            raise received_files.build_write_error(error) from error
        except HanseError:
            raise
        except Exception as error:
            _log.error("push_broke_off", transfer=coming.transfer.id, exc_info=error)
            raise internal_error() from error

    async def _publish(self, coming: IncomingPush, found: Mapping[str, Any]) -> PushedData:
        """The record, with the file in its place. Not to be cancelled: it counts or it does not.

        Where nobody knows whether it does, the file stays: a record without one is data that is lost. If it does not,
        the next push takes its place, or the next start removes it; until that one counts, it is kept beside it.
        """
        target, before = self._file(coming.transfer.id), coming.path.with_suffix(".before")
        had_one = await asyncio.to_thread(received_files.publish, coming.path, target, before)
        try:
            row = await self._store.write(lambda tx: _store_record(tx, coming, found))
        except Exception as error:
            coming.over = True
            if not isinstance(error, Busy) or error.code != UNKNOWN:
                await asyncio.to_thread(received_files.undo_publish, target, before)
                coming.over = False
            raise
        else:
            coming.over = True
            return row
        finally:
            if had_one:
                with suppress(OSError):  # it stays counted, until the next start removes it
                    self._held -= await asyncio.to_thread(received_files.remove_file, before)

    async def _spool(self, coming: IncomingPush, ask: ReadPiece) -> None:
        """The body into its file, on the disk when this returns. Written in a thread: a disk takes its time."""
        held = bytearray()
        with received_files.create_private(coming.path) as file:
            while (piece := await self._read_piece(coming, ask)) is not None:
                self._make_room(coming, len(piece))
                held += piece
                if len(held) >= _WRITE:
                    await received_files.run_in_thread(received_files.write_all, file.fileno(), held)
                    held = bytearray()
            await received_files.run_in_thread(received_files.write_all, file.fileno(), held)
            await received_files.run_in_thread(received_files.sync_to_disk, file.fileno())

    async def _read_piece(self, coming: IncomingPush, ask: ReadPiece) -> bytes | None:
        """The next piece, for as long as something comes: our own disk's time is not the sender's."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(self.room.stall - coming.waited):
                piece = await ask()
        except TimeoutError:
            said = f"next to nothing came for {self.room.stall:g} s ({coming.recent_bytes} bytes); push it again"
            raise Busy(said, code="sender_stalled") from None
        coming.waited += time.monotonic() - began
        coming.recent_bytes += len(piece or b"")
        if coming.recent_bytes >= _LEAST:
            coming.waited, coming.recent_bytes = 0.0, 0
        return piece

    def _make_room(self, coming: IncomingPush, size: int) -> None:
        coming.size += size
        self._held += size
        if coming.size > self.room.each:
            raise BadInput(
                f"expected at most {self.room.each} bytes in one push, came more; its consumer can ask for less, or "
                "raise HANSE_RECEIVED_EACH_MB",
                code="push_too_large",
            )
        if self._held > self.room.total:
            raise Busy(
                f"there is room for {self.room.total} bytes of received data and it is taken; the consumer can remove "
                "what it has read (`hanse transfer remove`) or raise HANSE_RECEIVED_MB",
                code="received_full",
            )

    async def _discard_repeat(self, coming: IncomingPush, ask: ReadPiece) -> None:
        """The body of a repeat: its sender listens when it has sent everything."""
        left = self.room.each
        while left >= 0 and (piece := await self._read_piece(coming, ask)) is not None:
            left -= len(piece)

    async def _check_arrow(self, coming: IncomingPush) -> Any:
        """What a worker finds in it. Of all that has come one is checked at a time, in turn between senders: workers
        are there for questions."""
        await self._checks.take(coming.transfer.counterparty)
        try:
            return await self._pool.ask(self._build_check_job(coming))
        except HanseError as error:
            raise _translate_check_error(error, coming) from error
        finally:
            self._checks.give_back()

    def _build_check_job(self, coming: IncomingPush) -> Job:
        seconds = _CHECK_SECONDS + coming.size / _CHECK_RATE
        return Job(
            kind="check_arrow",
            arguments={"path": str(coming.path), "digest": True},
            limits=Limits(seconds=seconds, total_seconds=seconds, memory_mb=self._memory_mb),
            consumer=coming.transfer.counterparty,
        )

    async def _record_refusal(self, coming: IncomingPush, error: HanseError) -> None:
        """Say so to whoever ordered it, and in the log."""
        refused = _build_event(DataRefused, coming.transfer, error=error, detail={"bytes": coming.size})
        recorded = self._store.refusals.admit(refused, time.monotonic())

        def work(tx: Transaction) -> None:
            _set_transfer_reason(tx, coming.transfer.id, error)
            if recorded:
                tx.publish(refused)

        await asyncio.shield(self._store.write(work))

    # What was received.

    def progress(self, transfer_id: str) -> int | None:
        """Bytes of a push that is coming; None where none is."""
        coming = self._coming.get(transfer_id)
        return None if coming is None else coming.size

    async def file(self, transfer_id: str) -> Path:
        """What was received under a transfer. NotFound says why there is nothing."""
        known = await self._store.read(lambda tx: tx.pushed_data.get(transfer_id))
        path = self._file(transfer_id)
        if known is not None and known.removed_at is None and path.exists():
            return path
        if known is None:
            why = "it is still coming" if transfer_id in self._coming else "its transfer's state and reason say more"
            raise NotFound(f"nothing was received under {transfer_id!r}: {why}", code="nothing_received")
        why = "was removed; order it again"
        if known.removed_at is None:
            why = "is at another process of this connector, or went when one stopped as it removed it; remove it again"
        raise NotFound(f"what was received under {transfer_id!r} {why}", code="not_kept")

    async def remove(self, transfer_id: str, *, by: str) -> None:
        """Remove the file of a transfer; that it was received stays known. NotFound where there is none, Busy where the
        disk does not let go of it: then nothing has changed, and it can be asked for again.

        The file goes first: nobody is told that something is gone while it is there. Where it is not here, the record
        says so: the process that has it, if one has, lets go of it as it hears that, or at its start.
        """
        known = await self._store.read(lambda tx: tx.pushed_data.get(transfer_id))
        if known is None or (known.removed_at is not None and not self._file(transfer_id).exists()):
            raise _nothing_kept_error(transfer_id)
        here = await self._remove_file(transfer_id)
        if known.removed_at is None:
            await self._store.write(lambda tx: _record_removal(tx, transfer_id, by, here=here))

    async def _remove_file(self, transfer_id: str) -> bool:
        """Remove a file; whether it was here."""
        try:
            size = await received_files.run_in_thread(received_files.remove_file, self._file(transfer_id))
        except OSError as error:
            raise Busy(
                f"the file cannot be removed ({error.strerror}); its operator must make the data directory writable, "
                "then remove it again",
                code="not_removed",
            ) from error
        self._held -= size  # not before the wait: others count meanwhile
        return size > 0

    # The life of the process.

    async def start(self) -> None:
        """Remove what an earlier run has left unfinished, and count what is kept."""
        rows = await self._store.read(lambda tx: tx.pushed_data.list_with_file())
        good = {self._file(row.transfer_id) for row, _ in rows}
        self._held = await asyncio.to_thread(received_files.sweep, self._arriving, self._kept, good)
        for row, transfer in rows:
            if _is_discarded(transfer.state, transfer.code):
                await self.remove(row.transfer_id, by="recovery")

    def drain(self, reason: str) -> None:
        """Take nothing new, and end what is coming: its provider pushes again."""
        self._draining = reason
        for coming in tuple(self._coming.values()):
            coming.stop(Busy(reason, code="shutting_down"))

    def _on_event(self, event: Event) -> None:
        """A transfer that does not run takes nothing; one that was terminated leaves nothing (`_is_discarded`)."""
        if isinstance(event, DataRemoved):  # another process on this database may have been asked
            self._spawn(self._until_done(event.process, lambda: self._remove_file(event.process)))
        if not isinstance(event, TransferAdvanced) or event.detail.get("role") != "consumer":
            return
        state, coming = str(event.detail.get("state")), self._coming.get(event.process)
        if coming is not None and state not in _receiving_states(coming.known):
            coming.stop(Refused(f"the transfer is {state.lower()}", code="transfer_not_started"))
        if _is_discarded(state, event.code) and self._file(event.process).exists():
            self._spawn(self._until_done(event.process, lambda: self.remove(event.process, by="termination")))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _until_done(self, transfer_id: str, removing: Callable[[], Awaitable[object]]) -> None:
        """Nobody waits for this who could ask again: a disk or a database that fails is tried until it does not."""
        while True:
            try:
                await removing()
            except NotFound:
                return  # it never counted, or somebody was faster
            except HanseError as error:
                _log.error("not_removed", transfer=transfer_id, reason=error.message)
                await asyncio.sleep(_REMOVE_AGAIN)
            else:
                return

    def _file(self, transfer_id: str) -> Path:
        return self._kept / f"{hashlib.sha256(transfer_id.encode()).hexdigest()[:40]}.arrows"


def _receiving_states(known: PushedData | None) -> tuple[str, ...]:
    """The states of a transfer in which something may come for it: a repeat also where it is completed."""
    return _RUNS if known is None else (*_RUNS, "COMPLETED")


def _is_discarded(state: str, code: str) -> bool:
    """Whether what came for a transfer goes. Whose owner gave up sending it has not taken it back: it is all there."""
    return state == "TERMINATED" and code != PUSH_FAILED


def check_complete(found: Mapping[str, Any]) -> None:
    """Whether a stream that reads well is whole by its own end record (3). One without a record is what it is."""
    end = found["end"]
    if end is None:
        return
    if end.get("status") != "complete":
        reason = str(end.get("reason") or end.get("code") or "no reason given")[:500]
        raise BadInput(
            f"expected a complete stream, its end record says {end.get('status')!r:.40}: {reason}", code="incomplete"
        )
    for name, code in (("digest", "digest_mismatch"), ("rows", "totals_differ"), ("batches", "totals_differ")):
        if end.get(name) != found[name] or found[name] == "":
            raise BadInput(
                f"expected the {name} of its end record, {end.get(name)!r:.100}, came {found[name]!r}; its sender must "
                "see why they differ, then it can be ordered again",
                code=code,
            )


def _translate_check_error(error: HanseError, coming: IncomingPush) -> HanseError:
    """An error of a check as its sender understands it: those of the workers speak of questions."""
    if error.code == "digest_mismatch":
        return BadInput(error.message, code=error.code)
    if error.code not in ("time_limit", "worker_wanted"):
        return error
    return type(error)(
        f"expected Arrow whose check is in proportion to its size, came {coming.size} bytes that take too long; push "
        "them less compressed, or again when there is less to do here",
        code=error.code,
    )


def _store_record(tx: Transaction, coming: IncomingPush, found: Mapping[str, Any]) -> PushedData:
    transfer = tx.transfers.get(coming.transfer.id)
    if transfer is None or transfer.state not in _RUNS:
        raise Refused("the transfer does not run any more", code="transfer_not_started")
    if tx.pushed_data.get(transfer.id) is not None:
        raise Busy("one that came before counts by now; ask again", code="being_checked")
    row = PushedData(
        transfer_id=transfer.id,
        rows=found["rows"],
        batches=found["batches"],
        bytes=coming.size,
        whole=found["end"] is not None,
        digest=found["digest"],
        received_at=tx.now,
        removed_at=None,
    )
    tx.pushed_data.add(row)
    transfer.code, transfer.reason, transfer.updated_at = "", "", tx.now
    about = {name: getattr(row, name) for name in ("rows", "batches", "bytes", "whole", "digest")}
    tx.publish(_build_event(DataReceived, transfer, detail=about))
    return row


def _set_transfer_reason(tx: Transaction, transfer_id: str, error: HanseError | None) -> None:
    """Say in a transfer that waits for its push why that did not come, or nothing any more."""
    row = tx.transfers.get(transfer_id)
    if row is not None and row.state in _RUNS and tx.pushed_data.get(row.id) is None:
        row.code, row.reason = ("", "") if error is None else (error.code, f"push: {error.message}"[:2_000])
        row.updated_at = tx.now


def _record_removal(tx: Transaction, transfer_id: str, by: str, *, here: bool) -> None:
    row, transfer = tx.pushed_data.get(transfer_id), tx.transfers.get(transfer_id)
    if row is None or transfer is None or row.removed_at is not None:
        raise _nothing_kept_error(transfer_id)
    row.removed_at = tx.now
    detail = {"rows": row.rows, "bytes": row.bytes, **({} if here else {"file": "not_here"})}
    tx.publish(_build_event(DataRemoved, transfer, actor=by, detail=detail))


def _nothing_kept_error(transfer_id: str) -> NotFound:
    return NotFound(f"nothing received is kept under {transfer_id!r}", code="nothing_received")


def _build_event(
    kind: type[Event], transfer: Transfer, *, detail: dict[str, Any], actor: str = "", error: HanseError | None = None
) -> Event:
    return kind(
        actor=actor or transfer.counterparty,
        process=transfer.id,
        agreement=transfer.agreement_id,
        purpose=transfer.purpose,
        correlation=transfer.correlation,
        outcome="ok" if error is None else "refused",
        code="" if error is None else error.code,
        reason="" if error is None else error.message[:2_000],
        detail={"counterparty": transfer.counterparty, **detail},
    )
