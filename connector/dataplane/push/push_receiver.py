"""Receives pushes from providers: a data address for each transfer, and complete, checked files of what was received.

The steps of a push; the numbers also stand next to the code:

1. The token is that of this transfer (an HMAC, so that neither database nor outbox holds one), and the transfer is
   requested or started. Each failure gets the same answer.
2. The body goes to a private file, within the limits of one push and of all, and within the time limits.
3. A worker, one push at a time, reads the foreign Arrow fully. An end record in it must say complete, with the totals
   and digest that were received. Other media types come from other kinds of connectors: they are kept as they are, with
   their digest, and nothing reads them here.
4. The file is published, and the record and its event are committed, if the transfer still runs. Then the push
   counts.

After a failure only its event is kept. Must not know any transport.
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

from connector.dataplane.data_address import HTTP_DATA, PATH
from connector.dataplane.push import received_files
from connector.engine.pool.pool import Pool
from connector.engine.pool.protocol import Job, Limits
from connector.errors import Absent, ConnectorError, Denied, Invalid, Unavailable, Unproven, internal_error
from connector.events import DataReceived, DataRefused, DataRemoved, Event, TransferAdvanced
from connector.infra.concurrency.turn_queue import TurnQueue
from connector.infra.http.media_type import ARROW_STREAM, OCTETS, read_media_type
from connector.store import UNKNOWN, Store, Transaction
from connector.store.tables import PushedData, Transfer
from connector.telemetry import logger
from connector.usage.grants import PUSH_FAILED

PUSHED = f"{PATH}/received"
_RUNS = ("REQUESTED", "STARTED")
_AT_ONCE = 16  # pushes, and separately as many repeats
_EACH = 8  # of these, from one counterparty (decision 33), which sends no more at once (`dsp.process_limits`)
_FULL = "pushes_max"
_LEAST = 2**7  # fewer bytes within the time for silence count as none (decision 37)
_WRITE = 2**20
_REMOVE_AGAIN = 60.0  # seconds
_CHECK_RATE = 16 * 2**20  # bytes a second: the least rate of a check, a tenth of the usual one
_CHECK_SECONDS = 60.0  # added to the time for the bytes
_CHECK_WAIT = 120.0  # seconds to wait for other checks: shorter than senders wait for an answer (`push_sender`)
_T = TypeVar("_T")
_log = logger("receiving")

ReadPiece = Callable[[], Awaitable[bytes | None]]  # the next piece of a body; None at its end


@dataclass(frozen=True, slots=True)
class ReceiveLimits:
    """Limits: bytes of one push (`each`) and of everything kept (`total`), seconds of silence and in all."""

    each: int
    total: int
    stall: float = 120.0  # longer than a provider's query may take for a batch
    seconds: float = 24 * 3600.0


class IncomingPush:
    """One push under way, or the repeat of a push that is `known`."""

    def __init__(self, transfer: Transfer, known: PushedData | None, path: Path, media: str) -> None:
        self.transfer, self.known, self.path, self.media = transfer, known, path, media
        self.size, self.digest = 0, hashlib.sha256()
        self.waited, self.recent_bytes = 0.0, 0  # seconds and bytes since enough was received
        self.checking = False
        self.over = known is not None  # it counts, or its file is removed
        self._why: ConnectorError | None = None
        self._work: asyncio.Future[Any] | None = None

    async def do(self, work: Awaitable[_T]) -> _T:
        """Return the result of `work`. Raises the reason of `stop` where that ends it."""
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

    def stop(self, why: ConnectorError) -> None:
        """End the push now, unless it counts already."""
        self._why = self._why or why
        if self._work is not None:
            self._work.cancel()


class PushReceiver:
    """Receives all pushes to one consumer, and keeps their files."""

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
        self._held = 0  # bytes in files, kept and incoming
        self._tasks: set[asyncio.Task[None]] = set()
        self._draining = ""
        self._kept.mkdir(mode=0o700, parents=True, exist_ok=True)
        store.bus.subscribe(self._on_event)

    # Data addresses, for the protocol.

    def address(self, transfer_id: str) -> dict[str, Any]:
        """Return our own data address for one transfer, for its request.

        Raises: Invalid where this connector receives nothing.
        """
        if not self.room.total:
            raise Invalid(
                "this connector receives no pushes (HANSE_RECEIVED_MB is 0): set it, name a data_address to push to, "
                "or ask for a format that is pulled",
                code="nothing_received",
            )
        endpoint, token = f"{self._endpoint}/{quote(transfer_id, safe='')}", self._token(transfer_id)
        properties = {
            "authType": "bearer",
            "authorization": token,
            "maxBytes": str(min(self.room.each, self.room.total)),
            "baseUrl": endpoint,  # EDC reads address and token under these names only
            "authKey": "Authorization",
            "authCode": token,
        }
        return {
            "@type": "DataAddress",
            "endpointType": HTTP_DATA,
            "endpoint": endpoint,
            "endpointProperties": [
                {"@type": "EndpointProperty", "name": name, "value": value} for name, value in properties.items()
            ],
        }

    def _token(self, transfer_id: str) -> str:
        return hmac.new(self._secret, transfer_id.encode(), hashlib.sha256).hexdigest()

    # Receiving a push.

    async def take(self, transfer_id: str, authorization: str, *, media: str, ask: ReadPiece) -> PushedData:
        """Receive a whole push and return its record after the commit. A repeat changes nothing.

        Raises: Unproven, with the same message, for a wrong token, and for a transfer that is unknown
        or not running. After any other error nothing of the push is kept, and its event has the reason.
        """
        transfer, known = await self._find_transfer(transfer_id, authorization)  # 1
        media = read_media_type(media or OCTETS)
        if known is None and not media:
            raise Invalid(f"expected the media type of the body, such as {ARROW_STREAM} or text/csv", code="media_type")
        coming = await self._assign_place(transfer, known, media)
        try:
            if transfer.code == _FULL:
                await self._store.write(partial(_set_transfer_reason, transfer_id=transfer.id, error=None))
            return await self._receive(coming, ask)
        except ConnectorError as error:
            await self._forget(coming)  # before the event: its readers must find no file
            if known is None and error.code != UNKNOWN:
                await self._record_refusal(coming, error)
            raise
        finally:
            await self._forget(coming)

    async def _forget(self, coming: IncomingPush) -> None:
        """Remove a push that has ended, and its file unless the push counts.

        A file that the disk does not release stays counted until the next start removes it.
        """
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
        refusal = Unproven(
            "expected the authorization of an expected push; it is in the data address of a transfer "
            "request, and is valid while that transfer runs"
        )
        if not self.room.total or not hmac.compare_digest(shown, self._token(transfer_id).encode()):
            raise refusal  # before the database is read: the time of the answer reveals nothing
        row, known = await self._store.read(
            lambda tx: (tx.transfers.peek(transfer_id), tx.pushed_data.get(transfer_id))
        )
        if row is None or row.role != "consumer" or row.state not in _receiving_states(known):
            raise refusal
        return row, known

    async def _assign_place(self, transfer: Transfer, known: PushedData | None, media: str) -> IncomingPush:
        """Take a place for the push. Without one, its transfer shows that it waits.

        Raises: Unavailable without a place.
        """
        try:
            return self._start_push(transfer, known, media)
        except Unavailable as full:
            if full.code == _FULL != transfer.code:
                await self._store.write(partial(_set_transfer_reason, transfer_id=transfer.id, error=full))
            raise

    def _start_push(self, transfer: Transfer, known: PushedData | None, media: str) -> IncomingPush:
        """Register the push. An unfinished push of the same transfer was cut off, and is stopped.

        Repeats last as long as their senders like and bring nothing, so they have places of their own.
        """
        if self._draining:
            raise Unavailable(self._draining, code="shutting_down")
        before = self._coming.get(transfer.id)
        if known is None and before is not None and before.checking:
            raise Unavailable(
                "the previous push of this transfer is being checked; push again in a moment", code="being_checked"
            )
        if before is None:
            self._check_places(transfer, known)
        if before is not None:
            before.stop(Invalid("the same push was started again", code="replaced"))
        coming = IncomingPush(transfer, known, self._arriving / secrets.token_hex(16), media)
        self._coming[transfer.id] = coming
        return coming

    def _check_places(self, transfer: Transfer, known: PushedData | None) -> None:
        """Raises: Unavailable where all places of its kind are taken, or its counterparty has its share of them."""
        kind, who = "pushes" if known is None else "repeats of pushes", transfer.counterparty
        others = [one.transfer.counterparty for one in self._coming.values() if (one.known is None) == (known is None)]
        for count, most, of in ((len(others), _AT_ONCE, ""), (others.count(who), _EACH, f" of {who}")):
            if count >= most:
                raise Unavailable(
                    f"{most} {kind}{of} are under way, which is the limit; this one waits for a place", code=_FULL
                )

    async def _receive(self, coming: IncomingPush, ask: ReadPiece) -> PushedData:
        try:
            async with asyncio.timeout(self.room.seconds):
                if coming.known is not None:
                    await coming.do(self._discard_repeat(coming, ask))
                    return coming.known
                await coming.do(self._spool(coming, ask))  # 2
                coming.checking = True
                found = await coming.do(self._check(coming))  # 3
            return await asyncio.shield(self._publish(coming, found))  # 4
        except TimeoutError:
            raise Invalid(
                f"expected a push within {self.room.seconds:g} s, got a slower one", code="too_slow"
            ) from None
        except OSError as error:
            raise received_files.build_write_error(error) from error
        except ConnectorError:
            raise
        except Exception as error:
            _log.error("push_broke_off", transfer=coming.transfer.id, exc_info=error)
            raise internal_error() from error

    async def _publish(self, coming: IncomingPush, found: Mapping[str, Any]) -> PushedData:
        """Publish the file and return its record. Must not be cancelled: the push counts or it does not.

        Where the commit is uncertain, the file stays, since a record without a file is lost data. If the push does not
        count, the next one replaces the file, or the next start removes it.
        """
        target, before = self._file(coming.transfer.id), coming.path.with_suffix(".before")
        had_one = await asyncio.to_thread(received_files.publish, coming.path, target, before)
        try:
            row = await self._store.write(lambda tx: _store_record(tx, coming, found))
        except Exception as error:
            coming.over = True
            if not isinstance(error, Unavailable) or error.code != UNKNOWN:
                await asyncio.to_thread(received_files.undo_publish, target, before)
                coming.over = False
            raise
        else:
            coming.over = True
            return row
        finally:
            if had_one:
                with suppress(OSError):  # it stays counted until the next start removes it
                    self._held -= await asyncio.to_thread(received_files.remove_file, before)

    async def _spool(self, coming: IncomingPush, ask: ReadPiece) -> None:
        """Write the body to its file, which is on disk afterwards. Written in a thread: disks are slow."""
        held = bytearray()
        with received_files.create_private(coming.path) as file:
            while (piece := await self._read_piece(coming, ask)) is not None:
                self._make_room(coming, len(piece))
                coming.digest.update(piece)
                held += piece
                if len(held) >= _WRITE:
                    await received_files.run_in_thread(received_files.write_all, file.fileno(), held)
                    held = bytearray()
            await received_files.run_in_thread(received_files.write_all, file.fileno(), held)
            await received_files.run_in_thread(received_files.sync_to_disk, file.fileno())

    async def _read_piece(self, coming: IncomingPush, ask: ReadPiece) -> bytes | None:
        """Return the next piece. The time of our own disk does not count against the sender.

        Raises: Unavailable where next to nothing comes within the limit.
        """
        began = time.monotonic()
        try:
            async with asyncio.timeout(self.room.stall - coming.waited):
                piece = await ask()
        except TimeoutError:
            message = f"received {coming.recent_bytes} bytes in {self.room.stall:g} s, which is too slow; push it again"
            raise Unavailable(message, code="sender_stalled") from None
        coming.waited += time.monotonic() - began
        coming.recent_bytes += len(piece or b"")
        if coming.recent_bytes >= _LEAST:
            coming.waited, coming.recent_bytes = 0.0, 0
        return piece

    def _make_room(self, coming: IncomingPush, size: int) -> None:
        coming.size += size
        self._held += size
        if coming.size > self.room.each:
            raise Invalid(
                f"expected at most {self.room.each} bytes in one push, got more; its consumer can request less, or "
                "raise HANSE_RECEIVED_EACH_MB",
                code="push_too_large",
            )
        if self._held > self.room.total:
            raise Unavailable(
                f"expected at most {self.room.total} bytes of received data, got more; the consumer can remove "
                "what it has read (`hanse transfer remove`) or raise HANSE_RECEIVED_MB",
                code="received_full",
            )

    async def _discard_repeat(self, coming: IncomingPush, ask: ReadPiece) -> None:
        """Read the body of a repeat to its end: its sender reads the answer only then."""
        left = self.room.each
        while left >= 0 and (piece := await self._read_piece(coming, ask)) is not None:
            left -= len(piece)

    async def _check(self, coming: IncomingPush) -> Mapping[str, Any]:
        """Return what is known of the file: of Arrow what it holds, of other media types the digest of its bytes."""
        if coming.media != ARROW_STREAM:
            return {"rows": 0, "batches": 0, "digest": f"sha256:{coming.digest.hexdigest()}", "end": None}
        found: Mapping[str, Any] = await self._check_arrow(coming)
        check_complete(found)
        return found

    async def _check_arrow(self, coming: IncomingPush) -> Any:
        """Return what a worker finds in the file. One push at a time, in turn between senders: workers are for
        queries."""
        await self._checks.take(coming.transfer.counterparty)
        try:
            return await self._pool.ask(self._build_check_job(coming))
        except ConnectorError as error:
            raise _translate_check_error(error, coming) from error
        finally:
            self._checks.give_back(coming.transfer.counterparty)

    def _build_check_job(self, coming: IncomingPush) -> Job:
        seconds = _CHECK_SECONDS + coming.size / _CHECK_RATE
        return Job(
            kind="check_arrow",
            arguments={"path": str(coming.path), "digest": True},
            limits=Limits(seconds=seconds, total_seconds=seconds, memory_mb=self._memory_mb),
            consumer=coming.transfer.counterparty,
        )

    async def _record_refusal(self, coming: IncomingPush, error: ConnectorError) -> None:
        """Record the refusal in the transfer and in the log."""
        refused = _build_event(DataRefused, coming.transfer, error=error, detail={"bytes": coming.size})
        recorded = self._store.refusals.admit(refused, time.monotonic())

        def work(tx: Transaction) -> None:
            _set_transfer_reason(tx, coming.transfer.id, error)
            if recorded:
                tx.publish(refused)

        await asyncio.shield(self._store.write(work))

    # Received files.

    def progress(self, transfer_id: str) -> int | None:
        """Return the bytes of a push under way, None without one."""
        coming = self._coming.get(transfer_id)
        return None if coming is None else coming.size

    async def file(self, transfer_id: str) -> tuple[Path, str]:
        """Return the file received under a transfer, and its media type.

        Raises: Absent, which says why it is missing.
        """
        known = await self._store.read(lambda tx: tx.pushed_data.get(transfer_id))
        path = self._file(transfer_id)
        if known is not None and known.removed_at is None and path.exists():
            return path, known.media
        if known is None:
            why = "it is still arriving" if transfer_id in self._coming else "see the transfer's state and reason"
            raise Absent(f"nothing was received under {transfer_id!r}: {why}", code="nothing_received")
        why = "was removed; request the transfer again"
        if known.removed_at is None:
            why = (
                "is at another process of this connector, or was lost when one stopped during removal; remove it again"
            )
        raise Absent(f"the data received under {transfer_id!r} {why}", code="not_kept")

    async def remove(self, transfer_id: str, *, by: str) -> None:
        """Remove the file of a transfer; the record that it was received stays.

        The file is removed before the record says so. Where another process has the file, the event makes that process
        remove it, now or at its start.

        Raises: Absent without a file. Unavailable where the disk does not release it: then nothing has changed, and it
        can be requested again.
        """
        known = await self._store.read(lambda tx: tx.pushed_data.get(transfer_id))
        if known is None or (known.removed_at is not None and not self._file(transfer_id).exists()):
            raise _nothing_kept_error(transfer_id)
        here = await self._remove_file(transfer_id)
        if known.removed_at is None:
            await self._store.write(lambda tx: _record_removal(tx, transfer_id, by, here=here))

    async def _remove_file(self, transfer_id: str) -> bool:
        """Remove a file. Returns whether it was here."""
        try:
            size = await received_files.run_in_thread(received_files.remove_file, self._file(transfer_id))
        except OSError as error:
            raise Unavailable(
                f"the file cannot be removed ({error.strerror}); its operator must make the data directory writable, "
                "then remove it again",
                code="not_removed",
            ) from error
        self._held -= size  # after the wait: other pushes count meanwhile
        return size > 0

    # The life of the process.

    async def start(self) -> None:
        """Remove what an earlier run left unfinished, and count what is kept."""
        rows = await self._store.read(lambda tx: tx.pushed_data.list_with_file())
        good = {self._file(row.transfer_id) for row, _ in rows}
        self._held = await asyncio.to_thread(received_files.sweep, self._arriving, self._kept, good)
        for row, transfer in rows:
            if _is_discarded(transfer.state, transfer.code):
                await self.remove(row.transfer_id, by="recovery")

    def drain(self, reason: str) -> None:
        """Take nothing new, and stop pushes under way: their providers push again."""
        self._draining = reason
        for coming in tuple(self._coming.values()):
            coming.stop(Unavailable(reason, code="shutting_down"))

    def _on_event(self, event: Event) -> None:
        """Stop pushes of transfers that no longer run, and remove what terminated ones have received."""
        if isinstance(event, DataRemoved):  # the request may have gone to another process on this database
            self._spawn(self._until_done(event.process, lambda: self._remove_file(event.process)))
        if not isinstance(event, TransferAdvanced) or event.detail.get("role") != "consumer":
            return
        state, coming = str(event.detail.get("state")), self._coming.get(event.process)
        if coming is not None and state not in _receiving_states(coming.known):
            coming.stop(Denied(f"the transfer is {state.lower()}", code="transfer_not_started"))
        if _is_discarded(state, event.code) and self._file(event.process).exists():
            self._spawn(self._until_done(event.process, lambda: self.remove(event.process, by="termination")))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _until_done(self, transfer_id: str, removing: Callable[[], Awaitable[object]]) -> None:
        """Retry the removal until it works: it runs in the background, so no caller could retry it."""
        while True:
            try:
                await removing()
            except Absent:
                return  # it never counted, or was removed already
            except ConnectorError as error:
                _log.error("not_removed", transfer=transfer_id, reason=error.message)
                await asyncio.sleep(_REMOVE_AGAIN)
            else:
                return

    def _file(self, transfer_id: str) -> Path:
        return self._kept / f"{hashlib.sha256(transfer_id.encode()).hexdigest()[:40]}.arrows"


def _receiving_states(known: PushedData | None) -> tuple[str, ...]:
    """Return the states of a transfer in which a push may come. A repeat may come after completion too."""
    return _RUNS if known is None else (*_RUNS, "COMPLETED")


def _is_discarded(state: str, code: str) -> bool:
    """Return whether the data of a transfer is removed. Where its owner only failed to push, complete data stays."""
    return state == "TERMINATED" and code != PUSH_FAILED


def check_complete(found: Mapping[str, Any]) -> None:
    """Check a readable stream against its own end record (3). A stream without one is accepted as it is.

    Raises: Invalid where the record says incomplete, or its totals or digest differ.
    """
    end = found["end"]
    if end is None:
        return
    if end.get("status") != "complete":
        reason = str(end.get("reason") or end.get("code") or "no reason given")[:500]
        raise Invalid(
            f"expected a complete stream, its end record says {end.get('status')!r:.40}: {reason}", code="incomplete"
        )
    for name, code in (("digest", "digest_mismatch"), ("rows", "totals_differ"), ("batches", "totals_differ")):
        if end.get(name) != found[name] or found[name] == "":
            raise Invalid(
                f"expected the {name} of its end record, {end.get(name)!r:.100}, got {found[name]!r}; its sender must "
                "find out why they differ, then it can be requested again",
                code=code,
            )


def _translate_check_error(error: ConnectorError, coming: IncomingPush) -> ConnectorError:
    """Return an error of a check in terms of its sender; those of workers speak of queries."""
    if error.code == "digest_mismatch":
        return Invalid(error.message, code=error.code)
    if error.code not in ("time_limit", "worker_wanted"):
        return error
    return type(error)(
        f"expected Arrow whose check takes time in proportion to its size, got {coming.size} bytes that take too long; "
        "push them less compressed, or again when this connector is less busy",
        code=error.code,
    )


def _store_record(tx: Transaction, coming: IncomingPush, found: Mapping[str, Any]) -> PushedData:
    transfer = tx.transfers.get(coming.transfer.id)
    if transfer is None or transfer.state not in _RUNS:
        raise Denied("the transfer no longer runs", code="transfer_not_started")
    if tx.pushed_data.get(transfer.id) is not None:
        raise Unavailable(
            "an earlier push of this transfer counts already; push again to get its record", code="being_checked"
        )
    row = PushedData(
        transfer_id=transfer.id,
        rows=found["rows"],
        batches=found["batches"],
        bytes=coming.size,
        media=coming.media,
        whole=found["end"] is not None,
        digest=found["digest"],
        received_at=tx.now,
        removed_at=None,
    )
    tx.pushed_data.add(row)
    transfer.code, transfer.reason, transfer.updated_at = "", "", tx.now
    about = {name: getattr(row, name) for name in ("rows", "batches", "bytes", "media", "whole", "digest")}
    tx.publish(_build_event(DataReceived, transfer, detail=about))
    return row


def _set_transfer_reason(tx: Transaction, transfer_id: str, error: ConnectorError | None) -> None:
    """Set or clear the reason why the push of a waiting transfer did not come."""
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


def _nothing_kept_error(transfer_id: str) -> Absent:
    return Absent(f"nothing received is kept under {transfer_id!r}", code="nothing_received")


def _build_event(
    kind: type[Event],
    transfer: Transfer,
    *,
    detail: dict[str, Any],
    actor: str = "",
    error: ConnectorError | None = None,
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
