"""A witness of other logs: C2SP tlog-witness, `add-checkpoint`.

The state of each log (its size and head) is committed before the answer. The checks go from cheap to dear.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from connector.telemetry import logger
from connector.witness.consistency import EMPTY_ROOT, is_consistent
from connector.witness.known_logs import KnownLog, KnownLogs
from connector.witness.notes import (
    Checkpoint,
    Cosigner,
    NoteInvalid,
    read_checkpoint,
    read_decimal,
    read_hash,
)

T = TypeVar("T")

BODY_MAX = 64 * 2**10
_PROOF_MAX = 63
_ORIGINS_MAX = 16  # of one member
_REPEAT_SECONDS = 60.0  # that stored cosignatures answer for the same head
_RATE = 20  # requests a second for one log
_QUIET_SECONDS = 60.0  # between two warnings about one log
_RECORD_SECONDS = 3600.0  # between two records about one log
_log = logger("witness")


class WitnessDatabase(Protocol):
    def read(self, work: Callable[[Any], T], /) -> Awaitable[T]: ...

    def write(self, work: Callable[[Any], T], /) -> Awaitable[T]: ...


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer of `add-checkpoint`. `outcome` is for metrics; a refusal's `why` is for our own log."""

    status: int
    outcome: str
    body: str = ""
    why: str = ""
    size_known: int = 0

    @property
    def media_type(self) -> str:
        """The spec asks for a type of its own for sizes."""
        return "text/x.tlog.size" if self.status == 409 else "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class CheckpointRequest:
    """The body of `add-checkpoint`."""

    old: int
    proof: tuple[bytes, ...]
    head: Checkpoint
    note: str


def write_request(old: int, proof: list[bytes], note: str) -> bytes:
    """The body of `add-checkpoint` for a note."""
    lines = "".join(f"{base64.b64encode(step).decode()}\n" for step in proof)
    return f"old {old}\n{lines}\n{note}".encode()


def read_request(body: bytes) -> CheckpointRequest:
    """Raises: NoteInvalid for a body of another form."""
    if len(body) > BODY_MAX:
        raise NoteInvalid(f"expected at most {BODY_MAX} bytes")
    try:
        head, blank, note = body.decode().partition("\n\n")
    except UnicodeDecodeError:
        raise NoteInvalid("expected UTF-8") from None
    first, *steps = head.split("\n")
    if not blank or not first.startswith("old ") or len(steps) > _PROOF_MAX:
        raise NoteInvalid(f"expected `old SIZE`, at most {_PROOF_MAX} hashes, an empty line and a checkpoint")
    return CheckpointRequest(
        read_decimal(first.removeprefix("old ")), tuple(map(read_hash, steps)), read_checkpoint(note), note
    )


@dataclass
class _Rates:
    """Requests in the current second, by log."""

    second: int = 0
    counts: dict[str, int] = field(default_factory=dict)

    def take(self, origin: str) -> bool:
        if (now := int(time.monotonic())) != self.second:
            self.second, self.counts = now, {}
        self.counts[origin] = count = self.counts.get(origin, 0) + 1
        return count <= _RATE


class Witness:
    """Cosigns checkpoints of known logs that continue what was cosigned before.

    `count` gets each outcome. `record` may publish a refusal of a signed head, inside the transaction that notes it.
    """

    def __init__(
        self,
        database: WitnessDatabase,
        cosigner: Cosigner,
        logs: KnownLogs,
        *,
        count: Callable[[str], None] = lambda _: None,
        record: Callable[[Any, KnownLog, Checkpoint, Answer], None] = lambda *_: None,
    ) -> None:
        self._database, self.cosigner, self._logs = database, cosigner, logs
        self._count, self._record = count, record
        self._rates = _Rates()
        self._warned: dict[tuple[str, str], float] = {}

    async def add_checkpoint(self, body: bytes) -> Answer:
        """Answer `add-checkpoint`: 1. form; 2. known log; 3. rate; 4. signature; 5. stored state and proof."""
        answer = await self._answer(body)
        self._count(answer.outcome)
        return answer

    async def _answer(self, body: bytes) -> Answer:
        try:
            request = read_request(body)  # 1
        except NoteInvalid as error:
            return Answer(400, "malformed", why=str(error))
        head = request.head
        if (log := self._logs.find(head.origin)) is None:  # 2
            return Answer(404, "unknown_log")
        if not self._rates.take(head.origin):  # 3
            return Answer(429, "too_many")
        try:
            if log.key.find(head) is None:  # 4
                return Answer(403, "not_signed")
        except NoteInvalid as error:
            return Answer(403, "bad_signature", why=str(error))
        if request.old > head.size:
            return Answer(400, "malformed", why="the old size is above the checkpoint's")
        quick = await self._database.read(lambda tx: _judge(tx, log, request))  # 5
        if quick is not None and quick.status in (200, 409):
            return self._check_honesty(log, head, quick)
        answer = await self._database.write(lambda tx: self._advance(tx, log, request))
        return self._check_honesty(log, head, answer)

    def _advance(self, tx: Any, log: KnownLog, request: CheckpointRequest) -> Answer:
        answer = _judge(tx, log, request)
        if answer is not None:
            if answer.status in (403, 422) and tx.witnessed.refuse(
                request.head.origin, now=tx.now, before=tx.now - _RECORD_SECONDS
            ):
                self._record(tx, log, request.head, answer)
            return answer
        head = request.head
        tx.witnessed.begin(head.origin, member=log.member, vkey=str(log.key))
        row = tx.witnessed.find(head.origin)
        lines = self.cosigner.cosign(head, now=max(tx.now, row.cosigned_at))
        signed = log.key.find(head)
        note = f"{head.text}\n{signed.line if signed else ''}"
        if tx.witnessed.advance(
            head.origin, old=request.old, old_note=row.note, size=head.size, note=note, cosignatures=lines, now=tx.now
        ):
            return Answer(200, "cosigned", lines)
        row = tx.witnessed.find(head.origin)  # another process was faster
        return Answer(409, "other_size", f"{row.size}\n", size_known=row.size)

    def _check_honesty(self, log: KnownLog, head: Checkpoint, answer: Answer) -> Answer:
        """Warn of what an honest log does not send, at most once a minute for a log."""
        key = (head.origin, answer.outcome)
        behind = answer.status == 409 and head.size < answer.size_known
        if (behind or answer.status in (403, 422)) and (
            time.monotonic() - self._warned.get(key, float("-inf")) > _QUIET_SECONDS
        ):
            self._warned[key] = time.monotonic()
            _log.warning(
                "checkpoint_refused",
                origin=head.origin,
                member=log.member,
                size=head.size,
                known_size=answer.size_known,
                reason="it is behind a size that was cosigned" if behind else answer.why,
            )
        return Answer(409, "behind", answer.body, size_known=answer.size_known) if behind else answer

    async def newest(self, origin_hash: str, *, hash_of: Callable[[str], str]) -> str | None:
        """The newest cosigned checkpoint of the log whose origin has this hash, with log and witness signatures."""

        def work(tx: Any) -> str | None:
            for row in tx.witnessed.list_all():
                if row.size and hash_of(row.origin) == origin_hash:
                    return f"{row.note}{row.cosignatures}"
            return None

        return await self._database.read(work)


def _judge(tx: Any, log: KnownLog, request: CheckpointRequest) -> Answer | None:
    """The answer to a signed checkpoint where it is not to be cosigned now; None where it is."""
    head, row = request.head, tx.witnessed.find(request.head.origin)
    if row is None:
        if log.member and tx.witnessed.count_of(log.member) >= _ORIGINS_MAX:
            return Answer(403, "too_many_logs", why=f"the member has begun {_ORIGINS_MAX} logs already")
        size, root = 0, EMPTY_ROOT
    else:
        if (row.vkey, row.member) != (str(log.key), log.member):
            return Answer(403, "other_key", why="the log was known with another key, or of another member")
        size, root = row.size, read_checkpoint(row.note).root if row.note else EMPTY_ROOT
    if request.old != size:
        return Answer(409, "other_size", f"{size}\n", size_known=size)
    if not is_consistent(size, head.size, root, head.root, request.proof):
        why = "the same size with another root: a fork" if size == head.size else "no proof that it continues the log"
        return Answer(422, "fork" if size == head.size else "inconsistent", why=why, size_known=size)
    if row is not None and row.note and head.size == size and 0 <= tx.now - row.cosigned_at < _REPEAT_SECONDS:
        return Answer(200, "repeated", row.cosignatures, size_known=size)
    return None
