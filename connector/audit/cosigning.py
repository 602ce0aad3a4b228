"""Has the newest head of our log cosigned by its witnesses (C2SP tlog-witness), in the background.

A task per witness holds only the newest head, so a witness that was away is caught up with by one proof. All witnesses
get the same heads, so that their cosignatures stand together. Nothing here adds records to the log but a change of
what a witness says. See decision 105.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from connector.audit import merkle
from connector.audit.head_file import describe_older_log
from connector.audit.log import AuditDatabase, Sequencer
from connector.errors import ConnectorError
from connector.events import CosignatureRefused
from connector.infra.net.http_client import HttpClient, Reply
from connector.telemetry import logger
from connector.witness.known_logs import KnownLogs, KnownWitness
from connector.witness.notes import Checkpoint, NoteInvalid, VerifierKey, keep_cosignatures, read_checkpoint
from connector.witness.witness import write_request

_ROUND_SECONDS = 1.0  # between two heads that are sent
_OTHERS_SECONDS = 5.0  # before a head that another process signed is sent from here too
_RETRY_FIRST, _RETRY_CAP = 1.0, 60.0
_TRIES = 3  # of a head, with the size that the witness answers
_ANSWER_MAX = 64 * 2**10
_log = logger("cosigning")


class _Refused(Exception):
    """A witness refuses our head; `state` is its name in metrics."""

    def __init__(self, state: str, reason: str, *, known_size: int = 0) -> None:
        super().__init__(reason)
        self.state, self.known_size = state, known_size


@dataclass(frozen=True, slots=True)
class WitnessStatus:
    """What a witness says of our log: the newest size that it cosigned, and when. `problem`: why not a newer one."""

    id: str
    url: str
    size: int = 0
    cosigned_at: float = 0.0
    keys: tuple[str, ...] = ()
    is_operator: bool = False  # of the data space, or listed by ours
    state: str = "away"  # cosigned, away, behind, fork, refused
    problem: str = ""


class Cosigning:
    """Sends heads to witnesses and keeps their cosignatures.

    `mint` makes an Authorization header for a member; `participant` is the actor of events; `count` gets each outcome.
    """

    def __init__(
        self,
        database: AuditDatabase,
        sequencer: Sequencer,
        known: KnownLogs,
        net: HttpClient,
        *,
        key: VerifierKey,
        mint: Callable[[str], Awaitable[str]],
        participant: str,
        most: int,
        count: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._database, self._sequencer, self._known, self._net = database, sequencer, known, net
        self._key, self._mint, self._participant, self._most, self._count = key, mint, participant, most, count
        self._newest, self._ours = "", False
        self._news = asyncio.Event()
        self._couriers: dict[str, _Courier] = {}
        known.changed = self._news.set
        sequencer.on_head = self._offer

    def _offer(self, note: str, ours: bool) -> None:
        self._newest, self._ours = note, ours
        self._news.set()

    async def run(self) -> None:
        """Send each newest head, at most one a second, until cancelled."""
        if not self._most:
            return
        try:
            while True:
                await self._news.wait()
                self._news.clear()
                if not self._ours:  # the process that signed it sends it, unless it has ended
                    await asyncio.sleep(_OTHERS_SECONDS)
                if self._newest:
                    self._send(self._newest)
                await asyncio.sleep(_ROUND_SECONDS)
        finally:
            for courier in self._couriers.values():
                courier.task.cancel()
            await asyncio.gather(*(courier.task for courier in self._couriers.values()), return_exceptions=True)

    def _send(self, note: str) -> None:
        chosen = {one.id: one for one in self._known.witnesses(self._most)}
        for id_ in [id_ for id_, courier in self._couriers.items() if chosen.get(id_) != courier.witness]:
            self._couriers.pop(id_).task.cancel()
        for id_, witness in chosen.items():
            if id_ not in self._couriers:
                self._couriers[id_] = _Courier(self, witness)
            self._couriers[id_].give(note)

    async def settle(self, size: int, *, seconds: float = 3.0) -> None:
        """Wait until each witness that answers has cosigned or refused a head of at least `size` records."""
        ends = time.monotonic() + seconds
        while time.monotonic() < ends and not self._is_past(size):  # noqa: ASYNC110  # for several tasks, seldom
            await asyncio.sleep(0.05)

    def _is_past(self, size: int) -> bool:
        return all(one.is_past(size) for one in self._couriers.values())

    async def statuses(self) -> list[WitnessStatus]:
        """What each of our witnesses says, as far as this process knows."""
        kept = await self._database.read(lambda tx: {row.witness: row for row in tx.audit.list_newest_cosignatures()})
        found = []
        for witness in self._known.witnesses(self._most) if self._most else []:
            row, courier = kept.get(witness.id), self._couriers.get(witness.id)
            state, problem = (courier.state, courier.problem) if courier else ("away", "no head was sent yet")
            size, at = (row.size, row.cosigned_at) if row else (0, 0.0)
            keys = tuple(map(str, witness.keys))
            found.append(WitnessStatus(witness.id, witness.url, size, at, keys, witness.always, state, problem))
        return found

    async def cosign(self, witness: KnownWitness, note: str) -> int:
        """Have a head cosigned; return its size. Raises: _Refused; ConnectorError for a witness that is away."""
        head = read_checkpoint(note)
        old: int = await self._database.read(lambda tx: tx.audit.read_cosigned_size(witness.id))
        if old > head.size:  # another process has sent a later one
            return old
        for _ in range(_TRIES):
            reply = await self._post(witness, old, head.size, note)
            if reply.status == 200:
                await self._keep(witness, head, reply)
                return head.size
            if reply.status != 409:
                break
            if (old := _read_size(reply)) > head.size:
                note = await self._database.read(_read_newest)
                if old > (head := read_checkpoint(note)).size:
                    break
        if reply.status not in (409, 422):
            raise _Refused("refused", f"it answered {reply.status} to our checkpoint")
        await self._confront(witness)
        if old > head.size:
            raise _Refused("behind", f"it has cosigned {old} records, our log has {head.size}", known_size=old)
        raise _Refused("fork", f"it knows another history of our log (status {reply.status})", known_size=old)

    async def _post(self, witness: KnownWitness, old: int, new: int, note: str) -> Reply:
        def prove(tx: Any) -> list[bytes]:
            return merkle.consistency_proof(tx.audit.read_tile, old, new) if 0 < old < new else []

        return await self._net.call(
            "POST",
            f"{witness.url}/add-checkpoint",
            headers={"content-type": "text/plain; charset=utf-8"},
            body=write_request(old, await self._database.read(prove), note),
            max_bytes=_ANSWER_MAX,
        )

    async def _keep(self, witness: KnownWitness, head: Checkpoint, reply: Reply) -> None:
        try:
            lines = keep_cosignatures(head, reply.body.decode(), witness.keys)
        except (UnicodeDecodeError, NoteInvalid) as error:
            raise _Refused("refused", f"its answer is no cosignature: {error}") from None
        if not lines:
            raise _Refused("refused", "it cosigned with other keys than those that it publishes")
        await self._database.write(
            lambda tx: tx.audit.put_cosignature(head.size, witness=witness.id, lines=lines, now=tx.now)
        )

    async def _confront(self, witness: KnownWitness) -> None:
        """Compare our log with the head that the witness cosigned. If our key signed it and our log does not continue
        it, our database is an older copy or was changed, and the sequencer stops."""
        url = f"{witness.url}/{sha256(self._key.name.encode()).hexdigest()}/checkpoint"
        headers = {"authorization": await self._mint(witness.id)} if witness.id.startswith("did:") else {}
        reply = await self._net.call("GET", url, headers=headers, max_bytes=_ANSWER_MAX)
        try:
            known = read_checkpoint(reply.body.decode())
            if reply.status != 200 or known.origin != self._key.name or self._key.find(known) is None:
                return
        except (UnicodeDecodeError, NoteInvalid):
            return
        if difference := await self._database.read(lambda tx: _contradiction(tx, known)):
            self._sequencer.stop_as_foreign(describe_older_log(difference, f"cosigned by {witness.id}"))

    async def record_refusal(self, witness: KnownWitness, refused: _Refused, *, size: int) -> None:
        """Record, once, that a witness refuses our log."""
        about = {"witness": witness.id, "size": size, "known_size": refused.known_size}
        _log.error("cosignature_refused", **about, reason=str(refused))
        detail = {**about, "state": refused.state}
        event = CosignatureRefused(
            actor=self._participant, outcome="refused", code=refused.state, reason=str(refused), detail=detail
        )
        await self._database.write(lambda tx: tx.publish(event))

    def count(self, outcome: str) -> None:
        self._count(outcome)


class _Courier:
    """Brings the newest head to one witness, and again after a failure, with growing pauses."""

    def __init__(self, cosigning: Cosigning, witness: KnownWitness) -> None:
        self._cosigning, self.witness = cosigning, witness
        self._note, self._news = "", asyncio.Event()
        self.state, self.problem, self._reached = "away", "no head was sent yet", 0
        self.task = asyncio.create_task(self._run())

    def give(self, note: str) -> None:
        if note != self._note:
            self._note = note
            self._news.set()

    def is_past(self, size: int) -> bool:
        """Whether it has answered for `size` records, or does not answer."""
        return self._reached >= size or (self.state != "cosigned" and self._reached > 0) or bool(self.problem)

    async def _run(self) -> None:
        pause = _RETRY_FIRST
        while True:
            await self._news.wait()
            self._news.clear()
            try:
                self._reached = await self._cosigning.cosign(self.witness, self._note)
                self.state, self.problem, pause = "cosigned", "", _RETRY_FIRST
            except _Refused as refused:
                if self.state != refused.state:
                    await self._tell(refused)
                self.state, self.problem = refused.state, str(refused)
            except Exception as error:  # noqa: BLE001  # it is tried again
                self.problem = error.message if isinstance(error, ConnectorError) else repr(error)
                if self.state == "cosigned":
                    _log.warning("witness_away", witness=self.witness.id, reason=self.problem)
                self.state = "away"
            self._cosigning.count(self.state)
            if self.state != "cosigned":
                await asyncio.sleep(pause)
                pause = min(2 * pause, _RETRY_CAP)
                self._news.set()

    async def _tell(self, refused: _Refused) -> None:
        try:
            await self._cosigning.record_refusal(self.witness, refused, size=read_checkpoint(self._note).size)
        except ConnectorError as error:
            _log.warning("refusal_not_recorded", reason=error.message)


def _read_newest(tx: Any) -> str:
    note: str = tx.audit.read_checkpoint().note
    return note


def _read_size(reply: Reply) -> int:
    text = reply.body.decode("ascii", "replace").strip()
    if not text.isdecimal() or len(text) > 19:
        raise _Refused("refused", "it answered 409 without a size")
    return int(text)


def _contradiction(tx: Any, known: Checkpoint) -> str:
    """What our log has instead of the records under a head that our key signed; empty if it has them."""
    if (size := tx.audit.read_size()) < known.size:
        return f"{size} records, not the {known.size}"
    try:
        same = not known.size or merkle.root(tx.audit.read_tile, known.size) == known.root
    except merkle.TreeBroken:
        same = False
    return "" if same else f"other records than the first {known.size}"
