"""One fragment at its owner: ask, spool what comes, and have it checked, so that only whole answers are used.

The bytes of others are not looked into in this process: within a byte limit they go to a worker, through a file where
they are many, and are read and validated there (a stream without its end record is no answer, whatever it holds).
A job costs more than a small answer does: such a one may stay unread until others can be read with it, and is read
alone where one of them is not as it should be. Knows no plans.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from connector.engine.pool.error_codes import error_of
from connector.engine.pool.pool import Pool
from connector.engine.pool.protocol import Job, Limits
from connector.errors import (
    BadInput,
    Busy,
    Conflict,
    DigestMismatch,
    Forbidden,
    HanseError,
    Limited,
    NotFound,
    PeerFailed,
    PeerNonsense,
    PeerRefused,
    PeerUnreachable,
    QueryInvalid,
    Refused,
    Unauthenticated,
    VersionChanged,
)
from connector.federation.deadline import Deadline
from connector.federation.expected_types import Shape
from connector.federation.planner.model import Bearer, Fragment, UnreachableOwner
from connector.infra.net.http_client import HttpClient, StreamedReply, origin
from connector.peer_codes import UNKNOWN, read_code
from policies.contracts.columns import fold
from policies.enforce.withheld import Withheld, parse_withheld, strongest

Ticket = Callable[[str, str], Awaitable[Bearer]]  # of an agreement, for a purpose

_ERROR_MAX = 64 * 2**10
_WRITE = 2**20  # bytes that are written at once; less than this is not written at all
_SMALL = 2**19  # bytes of an answer that may stay unread, and
_UNREAD_MAX = 2**21  # of all those of one question
_AGAIN = (PeerUnreachable, PeerNonsense, Busy)
_DAMAGED = "arrow_invalid"  # as a byte that changed on the way also makes it
_STATUS: Mapping[int, type[HanseError]] = {
    400: QueryInvalid, 401: Unauthenticated, 403: Refused, 404: NotFound, 409: VersionChanged, 429: Limited, 503: Busy,
}  # fmt: skip
# What an owner was doing when something failed, and how a sentence says so.
_STAGES = {
    "planning": "while planning",
    "asking": "while it was asked",
    "answering": "in the middle of its answer",
    "checking": "when its answer was checked",
}


@dataclass(frozen=True, slots=True)
class KeyTable:
    """Values that narrow a fragment, as an Arrow stream, under the name that its SQL joins with."""

    name: str
    columns: tuple[str, ...]
    arrow: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is asked of one owner."""

    query_id: str
    fragment: Fragment
    sql: str
    purpose: str
    epsilon: float | None
    deadline: Deadline
    later: int  # stages that follow this one
    shapes: asyncio.Future[Mapping[str, Shape]]  # of all fragments' answers, by their ids
    rows: int | None = None
    codec: str = "zstd"
    keys: tuple[KeyTable, ...] = ()
    wanted: tuple[str, ...] = ()  # outputs whose values narrow other fragments


@dataclass(slots=True)
class Budget:
    """Bytes that the fragments of one question may still bring, and of those that may stay unread."""

    left: int
    unread: int = _UNREAD_MAX

    def take(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise Limited(
                "the owners' answers are larger than this question may take; narrow it, or raise limits.bytes",
                code="bytes_limit",
            )

    def keep(self, size: int) -> bool:
        """Whether an answer of this size may stay unread."""
        if size > min(_SMALL, self.unread):
            return False
        self.unread -= size
        return True


@dataclass(frozen=True, slots=True)
class Small:
    """An answer that stays in memory as it came."""

    exchange: _Exchange
    body: bytes


@dataclass(frozen=True, slots=True)
class Answered:
    """A whole, validated answer of one owner: an Arrow stream in a `file`, or a `small` one; neither where its owner
    `refused` it, as no group was large enough. `unread`: it is neither validated nor known to be whole yet."""

    fragment: Fragment
    file: Path | None
    rows: int = 0
    nbytes: int = 0  # as it came
    size: int = 0  # of its rows in memory
    ms: int = 0
    end: Mapping[str, Any] = field(default_factory=dict)
    refused: HanseError | None = None
    digest: str = ""  # that we computed over what came
    keys_sent: int = 0  # bytes of keys that went to the owner
    distinct: Mapping[str, Path] = field(default_factory=dict)  # streams of the distinct values of wanted outputs
    missing: HanseError | None = None  # there is no answer, and the question goes on without it
    small: Small | None = None
    unread: bool = False

    @property
    def withheld(self) -> Withheld:
        """What was left out, by the agreement and by the owner's own word: the stronger of the two."""
        if self.refused is not None:
            return Withheld.SOME
        return strongest((self.fragment.withheld, parse_withheld(self.end.get("withheld"))))

    @property
    def data_rows(self) -> int:
        """Rows of data in it, as its owner holds them; the others are results."""
        return 0 if self.fragment.results else self.rows

    @property
    def given(self) -> bool:
        """Whether there is anything in it, be it no row."""
        return self.file is not None or self.small is not None

    def read(self, found: Mapping[str, Any], distinct: Mapping[str, Path]) -> Answered:
        """The same, of which a worker has told what it holds, and where the values of wanted outputs are."""
        end = found["end"]
        return replace(
            self,
            rows=found["rows"],
            size=found["bytes"],
            end=end,
            digest=found["digest"],
            distinct=distinct,
            unread=False,
        )


class Remote:
    """Asks owners. `ticket` gives the bearer for one of our agreements."""

    def __init__(self, net: HttpClient, pool: Pool, ticket: Ticket) -> None:
        self.net = net
        self.pool = pool
        self.ticket = ticket

    async def ask(self, request: Request, folder: Path, budget: Budget) -> Answered:
        """The owner's answer, or the error that names the owner and the stage. Retried once where that may help.
        Small ones are unread."""
        return await _Exchange(self, request, folder, budget).answered()

    async def read(self, answered: Answered) -> Answered:
        """What came unread, read alone; asked for once more where that may help, and the error as of `ask`."""
        assert answered.small is not None
        return await answered.small.exchange.looked_into(answered.small.body)

    async def read_together(
        self, answers: Sequence[Answered], wanted: Sequence[str], shapes: Mapping[str, Shape], limits: Limits
    ) -> list[Answered]:
        """What came unread, read in one job, with the values of `wanted` outputs over all of them. Where one is not as
        it should be, all fail, and the error does not say which."""
        small = [one.small for one in answers if one.small is not None]
        keys = _keys(answers[0].fragment, wanted, small[0].exchange.file)
        told = await self.pool.ask(
            Job(
                kind="read_answers",
                arguments={
                    "columns": [one.fragment.outputs for one in answers],
                    "shapes": [shapes[one.fragment.id].to_json() for one in answers],
                    "keys": list(keys.values()),
                },
                blobs=tuple(one.body for one in small),
                limits=limits,
                consumer="coordinator",
            )
        )
        kept = _kept(keys, told["keys"])
        return [one.read(found, kept) for one, found in zip(answers, told["answers"], strict=True)]


class _Exchange:
    """One fragment and its owner. `stage` says how far it has come."""

    def __init__(self, remote: Remote, request: Request, folder: Path, budget: Budget) -> None:
        self.remote, self.request, self.folder, self.budget = remote, request, folder, budget
        self.begun = time.monotonic()
        self.stage = "asking"
        self.attempts = 0

    @property
    def file(self) -> Path:
        """Where the answer of this attempt goes if it is large."""
        return self.folder / f"{self.request.fragment.id}.{self.attempts}.stream"

    @property
    def _left(self) -> float:
        return self.request.deadline.left(self.request.later)

    async def answered(self, *, small: bool = True) -> Answered:
        """The answer, asked for from its beginning, and once more where that may help; read at once unless `small`
        ones may wait."""
        self.attempts += 1
        try:
            return await self._in_time(self._once(small=small))
        except HanseError as error:
            await self._before_again(error)
        return await self.answered(small=small)

    async def looked_into(self, body: bytes) -> Answered:
        """What came unread, read; asked for once more where that may help."""
        self.stage = "checking"
        try:
            return await self._in_time(self._checked(len(body), body))
        except HanseError as error:
            await self._before_again(error)
        return await self.answered(small=False)

    async def _before_again(self, error: HanseError) -> None:
        """Wait a moment; the error, named, where asking again would not help."""
        damaged = self.stage == "checking" and error.code == _DAMAGED
        if self.attempts == 2 or not (damaged or isinstance(error, _AGAIN)):
            raise named(error, self.request.fragment, self.stage) from error
        await asyncio.sleep(random.uniform(0.05, 0.3))  # noqa: S311  spreads retries, keeps no secret

    async def _in_time(self, work: Awaitable[Answered]) -> Answered:
        try:
            async with asyncio.timeout(self._left):
                return await work
        except TimeoutError:
            raise Limited(
                f"no whole answer after {time.monotonic() - self.begun:.1f} s; the question has "
                f"{self.request.deadline.seconds:g} s in all. Ask for less, or raise limits.seconds",
                code="time_limit",
            ) from None

    async def _once(self, *, small: bool) -> Answered:
        self.stage = "asking"
        fragment, left = self.request.fragment, self._left
        endpoint, body, ticket = await self._envelope(self.attempts)
        headers = {"authorization": f"Bearer {ticket}", "content-type": "application/json"}
        async with self.remote.net.stream(
            "POST", f"{endpoint}/query", headers=headers, body=body, seconds=left + 1
        ) as answer:
            if answer.status != 200:
                error = await refusal(answer, endpoint)
                if error.code == "min_group_size" and fragment.aggregate_only:
                    return Answered(fragment, None, ms=_ms(self.begun), refused=error)
                raise error
            self.stage = "answering"
            size, held = await _spool(answer, self.file, self.budget)
        if small and held is not None and self.budget.keep(size):
            return replace(self._came(size), file=None, small=Small(self, held), unread=True)
        self.stage = "checking"
        return await self._checked(size, held)

    def _came(self, size: int) -> Answered:
        sent = sum(len(table.arrow) for table in self.request.keys)
        return Answered(self.request.fragment, self.file, nbytes=size, ms=_ms(self.begun), keys_sent=sent)

    async def _envelope(self, attempt: int) -> tuple[str, bytes, str]:
        request, fragment = self.request, self.request.fragment
        found = await asyncio.gather(
            *(self.remote.ticket(agreement, request.purpose) for agreement in fragment.agreements)
        )
        _check_one_owner(fragment, found)
        (endpoint, ticket, _), *others = found
        wire = {
            "fq": 1,
            "query_id": f"{request.query_id}.{fragment.id}.{attempt}",
            "fragment": fragment.id,
            "agreement": "",
            "purpose": request.purpose,
            "epsilon": request.epsilon,
            "sql": request.sql,
            "datasets": dict(fragment.versions),
            "tickets": [other.ticket for other in others],
            "limits": {"deadline_ms": max(1, int(self._left * 1000)), "bytes": None, "rows": request.rows},
            "codec": request.codec,
            "keys": [
                {"name": one.name, "columns": list(one.columns), "arrow": base64.b64encode(one.arrow).decode()}
                for one in request.keys
            ],
        }
        return endpoint, json.dumps(wire).encode(), ticket

    async def _checked(self, size: int, held: bytes | None) -> Answered:
        """Read and validated in a worker, as `_spool` left it; complete by its own end record and by our count."""
        request, spool = self.request, self.file
        names = tuple(fold(name) for name in request.fragment.outputs)
        keys = _keys(request.fragment, request.wanted, spool)
        shape = (await asyncio.shield(request.shapes))[request.fragment.id]
        found = await self.remote.pool.ask(
            Job(
                kind="check_arrow",
                arguments={
                    "path": str(spool),
                    "once": True,
                    "digest": True,
                    "keys": list(keys.values()),
                    "shape": shape.to_json(),
                    "names": request.fragment.outputs,
                },
                blobs=() if held is None else (held,),
                limits=Limits(seconds=self._left),
                consumer="coordinator",
            )
        )
        end = found["end"]
        if end is None:
            raise PeerNonsense("the stream ended without its end record: what came is not a whole answer")
        if end.get("digest") != found["digest"]:  # before its status: of damaged bytes no word is the owner's
            raise DigestMismatch(
                f"expected bytes with the digest {str(end.get('digest'))[:60]!r} of the end record, came bytes with "
                f"{found['digest']!r}: they were changed on the way"
            )
        if end.get("status") != "complete":
            self.stage = "answering"
            raise _ended(end)
        if end.get("rows") != found["rows"]:
            raise PeerNonsense(f"the end record counts {end.get('rows')} rows, {found['rows']} came")
        if tuple(fold(str(column["name"])) for column in found["columns"]) != names:
            raise PeerNonsense(f"expected the columns {', '.join(request.fragment.outputs)}, came others")
        if found["wrong"]:
            raise PeerNonsense(found["wrong"])
        return self._came(size).read(found, _kept(keys, found["keys"]))


def _check_one_owner(fragment: Fragment, bearers: Sequence[Bearer]) -> None:
    """Whoever has a ticket reads with it: none goes to another participant than the one that it is of."""
    for agreement, bearer in zip(fragment.agreements, bearers, strict=True):
        if bearer.participant != fragment.participant:
            raise Refused(
                f"expected agreements with {fragment.participant}, who is asked, came {agreement} with "
                f"{bearer.participant}; nothing was sent. Ask for the datasets of each in a question of its own",
                code="other_participant",
            )


def _keys(fragment: Fragment, wanted: Sequence[str], file: Path) -> dict[str, tuple[int, str]]:
    """The number of each wanted output among the columns, and beside the answer's file the one for its values."""
    names = [fold(name) for name in fragment.outputs]
    numbers = {name: names.index(fold(name)) for name in wanted}
    return {name: (number, str(file.with_suffix(f".{number}.keys"))) for name, number in numbers.items()}


def _kept(keys: Mapping[str, tuple[int, str]], written: Collection[str]) -> dict[str, Path]:
    """Those of the files that were written."""
    return {name: Path(path) for name, (_, path) in keys.items() if path in written}


async def _spool(answer: StreamedReply, path: Path, budget: Budget) -> tuple[int, bytes | None]:
    """The size of the whole body, and itself where it is small; else it is in the file.

    Written in a thread, which opens the file itself: who is cancelled does not wait for a slow disk, and a file that is
    closed under a thread may write to whatever has its number next.
    """
    size, held, written = 0, bytearray(), False
    async for piece in answer.pieces():
        budget.take(len(piece))
        size += len(piece)
        held += piece
        if len(held) >= _WRITE:
            await asyncio.to_thread(_append, path, held)
            held, written = bytearray(), True
    if not written:
        return size, bytes(held)
    await asyncio.to_thread(_append, path, held)
    return size, None


def _append(path: Path, held: bytearray) -> None:
    view = memoryview(held)
    with path.open("ab", buffering=0) as file:
        try:
            while len(view):
                view = view[file.write(view) or 0 :]  # page cache: a worker reads it next
        except OSError as error:
            raise error_of("disk_full", {}) from error


async def refusal(answer: StreamedReply, endpoint: str) -> HanseError:
    """The owner's problem object as our error of the same kind, with its code, rule and sentence."""
    body = await answer.read_up_to(_ERROR_MAX)
    try:
        told = json.loads(body)
        code, sentence = read_code(str(told["code"]) or UNKNOWN, str(told["detail"]))
        rule = str(told.get("rule", ""))[:500]
    except (ValueError, KeyError, TypeError, RecursionError):
        if answer.status >= 500:
            return Busy(f"{origin(endpoint)} failed with status {answer.status}", code="peer_failed")
        return PeerNonsense(f"expected a problem object from {origin(endpoint)}, came status {answer.status}")
    if code == UNKNOWN:
        return PeerNonsense(sentence or f"expected a reason from {origin(endpoint)}, came status {answer.status}")
    kind = _STATUS.get(answer.status, Busy if answer.status >= 500 else PeerRefused)
    facts = {"rule": rule} if issubclass(kind, Refused) else {"rule": rule} if rule else {}
    return kind(sentence, code=code, **facts)


def _ended(end: Mapping[str, Any]) -> HanseError:
    """What stopped a stream before it was complete."""
    status = str(end.get("status"))
    reason = str(end.get("reason") or f"the stream ended early: {status}")
    code, reason = read_code(str(end.get("code") or status), reason)
    if code == UNKNOWN:
        return PeerNonsense(reason)
    if status == "quota" or code in ("time_limit", "memory_limit", "rows_limit", "bytes_limit"):
        return Limited(reason, code=code)
    if status in ("revoked", "lease_expired", "refused"):
        return Refused(reason, code=code, rule=str(end.get("rule", ""))[:500])
    return PeerFailed(reason, code=code)


def named(error: HanseError, fragment: Fragment, stage: str) -> HanseError:
    """The same error, its sentence starting with the owner, the fragment and the stage."""
    start = f'"{fragment.owner}" ({fragment.id}: {", ".join(fragment.datasets)}) {_STAGES[stage]}: '
    return _starting(start, error, owner=fragment.owner, fragment=fragment.id, stage=stage)


def told_by(silent: UnreachableOwner) -> HanseError:
    """Why an owner did not say what it shares, as the error of a question that needs it."""
    owner, dataset = silent.owner or silent.participant, f" ({silent.dataset})" if silent.dataset else ""
    start = f'"{owner}"{dataset} {_STAGES["planning"]}: '
    return _starting(start, silent.error, owner=owner, stage="planning")


def _starting(start: str, error: HanseError, **more: str) -> HanseError:
    facts = {**error.facts, **more}
    kind = PeerRefused if isinstance(error, Unauthenticated) else type(error)
    if isinstance(error, Refused):
        facts["rule"] = error.rule
    if kind is BadInput or not issubclass(
        kind, Forbidden | BadInput | Limited | PeerFailed | Busy | NotFound | Conflict
    ):
        kind = PeerFailed
    return kind(start + error.message, code=error.code, private=error.private, **facts)


def _ms(begun: float) -> int:
    return int((time.monotonic() - begun) * 1000)
