"""Client for one fragment at its owner: send the query, spool the answer, and have a worker validate it.

This process does not parse answer bytes. Within a byte limit they go to a worker, through a file if they are large, and
are validated there; a stream without its end record is rejected. A worker job costs more than a small answer, so small
answers may stay unread until several can be read together. Must not import plans.
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

from connector import acting
from connector.engine.pool.error_codes import error_of
from connector.engine.pool.pool import Pool
from connector.engine.pool.protocol import Job, Limits
from connector.errors import (
    Absent,
    ConnectorError,
    Denied,
    Forbidden,
    Invalid,
    Limited,
    PeerFailed,
    PeerNonsense,
    PeerRefused,
    PeerUnreachable,
    QueryInvalid,
    Unavailable,
    Unproven,
    VersionChanged,
    WrongDigest,
    WrongState,
)
from connector.federation.deadline import Deadline
from connector.federation.expected_types import Shape
from connector.federation.planner.model import Bearer, Fragment, UnreachableOwner
from connector.infra.net.http_client import HttpClient, StreamedReply, origin
from connector.peer_codes import UNKNOWN, read_code
from policies.contracts.columns import fold
from policies.enforce.withheld import Withheld, parse_withheld, strongest

Ticket = Callable[[str, str], Awaitable[Bearer]]  # (agreement, purpose)

_ERROR_MAX = 64 * 2**10
_WRITE = 2**20  # bytes per write; a smaller answer is not written to a file
_SMALL = 2**19  # most bytes of one unread answer
_UNREAD_MAX = 2**21  # most bytes of all unread answers of one question
_AGAIN = (PeerUnreachable, PeerNonsense, Unavailable)
_DAMAGED = "arrow_invalid"  # also the code of an answer that was changed in transit
_STATUS: Mapping[int, type[ConnectorError]] = {
    400: QueryInvalid, 401: Unproven, 403: Denied, 404: Absent, 409: VersionChanged, 429: Limited, 503: Unavailable,
}  # fmt: skip
# The stage in which an owner failed, as part of an error message.
_STAGES = {
    "planning": "while planning",
    "asking": "while it was asked",
    "answering": "in the middle of its answer",
    "checking": "when its answer was checked",
}


@dataclass(frozen=True, slots=True)
class KeyTable:
    """Key values that narrow a fragment: an Arrow stream under the table name in the fragment's SQL."""

    name: str
    columns: tuple[str, ...]
    arrow: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnerRequest:
    """A query to one owner."""

    query_id: str
    fragment: Fragment
    sql: str
    purpose: str
    epsilon: float | None
    deadline: Deadline
    later: int  # number of stages after this one
    shapes: asyncio.Future[Mapping[str, Shape]]  # of all fragments, by id
    rows: int | None = None
    codec: str = "zstd"
    keys: tuple[KeyTable, ...] = ()
    wanted: tuple[str, ...] = ()  # outputs whose values narrow other fragments


@dataclass(slots=True)
class Budget:
    """Remaining bytes for the answers of one question, and for those that may stay unread."""

    left: int
    unread: int = _UNREAD_MAX

    def take(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise Limited(
                "the owners' answers exceed the byte limit of this question; narrow it, or raise limits.bytes",
                code="bytes_limit",
            )

    def keep(self, size: int) -> bool:
        """Reserve memory for an unread answer of this size; return whether there was enough."""
        if size > min(_SMALL, self.unread):
            return False
        self.unread -= size
        return True


@dataclass(frozen=True, slots=True)
class Small:
    """A small answer that stays in memory as received."""

    exchange: _Exchange
    body: bytes


@dataclass(frozen=True, slots=True)
class OwnerAnswer:
    """A complete, validated answer of one owner: an Arrow stream in `file`, or in memory as `small`.

    It has neither if the owner `refused` because no group was large enough. `unread`: not validated yet, and possibly
    incomplete.
    """

    fragment: Fragment
    file: Path | None
    rows: int = 0
    nbytes: int = 0  # as received
    size: int = 0  # bytes of its rows in memory
    ms: int = 0
    end: Mapping[str, Any] = field(default_factory=dict)
    refused: ConnectorError | None = None
    digest: str = ""  # computed over the received bytes
    keys_sent: int = 0  # bytes of keys sent to the owner
    distinct: Mapping[str, Path] = field(default_factory=dict)  # streams of the distinct values of wanted outputs
    missing: ConnectorError | None = None  # why there is no answer; the question continues without it
    small: Small | None = None
    unread: bool = False

    @property
    def withheld(self) -> Withheld:
        """What was withheld: the stronger of the agreement's and the owner's own statement."""
        if self.refused is not None:
            return Withheld.SOME
        return strongest((self.fragment.withheld, parse_withheld(self.end.get("withheld"))))

    @property
    def data_rows(self) -> int:
        """Number of rows of the owner's data in the answer; 0 if its rows are computed results."""
        return 0 if self.fragment.results else self.rows

    @property
    def has_content(self) -> bool:
        """Whether there is an answer, even one without rows."""
        return self.file is not None or self.small is not None

    def with_content(self, found: Mapping[str, Any], distinct: Mapping[str, Path]) -> OwnerAnswer:
        """Return a copy with a worker's findings and the files of the wanted outputs' values."""
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


class OwnerClient:
    """Sends fragments to owners. `ticket` returns the bearer for an agreement held as consumer."""

    def __init__(self, net: HttpClient, pool: Pool, ticket: Ticket) -> None:
        self.net = net
        self.pool = pool
        self.ticket = ticket

    async def ask(self, request: OwnerRequest, folder: Path, budget: Budget) -> OwnerAnswer:
        """Return the owner's answer; a small one is unread. Retries once if that may help.

        Raises: ConnectorError, which names the owner and the stage.
        """
        return await _Exchange(self, request, folder, budget).request_answer()

    async def read(self, answered: OwnerAnswer) -> OwnerAnswer:
        """Read an unread answer alone; retry and raise as `ask` does."""
        assert answered.small is not None
        return await answered.small.exchange.read_unread(answered.small.body)

    async def read_together(
        self, answers: Sequence[OwnerAnswer], wanted: Sequence[str], shapes: Mapping[str, Shape], limits: Limits
    ) -> list[OwnerAnswer]:
        """Read unread answers in one job, and collect the values of `wanted` outputs over all of them.

        Raises: ConnectorError if any answer is invalid; the error does not say which.
        """
        small = [one.small for one in answers if one.small is not None]
        keys = _plan_key_files(answers[0].fragment, wanted, small[0].exchange.file)
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
        kept = _pick_written(keys, told["keys"])
        return [one.with_content(found, kept) for one, found in zip(answers, told["answers"], strict=True)]


class _Exchange:
    """The exchange with one owner about one fragment; `stage` is the current step."""

    def __init__(self, remote: OwnerClient, request: OwnerRequest, folder: Path, budget: Budget) -> None:
        self.remote, self.request, self.folder, self.budget = remote, request, folder, budget
        self.begun = time.monotonic()
        self.stage = "asking"
        self.attempts = 0

    @property
    def file(self) -> Path:
        """The file for this attempt's answer if it is large."""
        return self.folder / f"{self.request.fragment.id}.{self.attempts}.stream"

    @property
    def _seconds_left(self) -> float:
        return self.request.deadline.seconds_left(self.request.later)

    async def request_answer(self, *, small: bool = True) -> OwnerAnswer:
        """Send the query and return the answer, with one retry if that may help; `small` answers may stay unread."""
        self.attempts += 1
        try:
            return await self._limit_time(self._ask_once(small=small))
        except ConnectorError as error:
            await self._pause_or_raise(error)
        return await self.request_answer(small=small)

    async def read_unread(self, body: bytes) -> OwnerAnswer:
        """Read an unread answer; request it once more if that may help."""
        self.stage = "checking"
        try:
            return await self._limit_time(self._check_answer(len(body), body))
        except ConnectorError as error:
            await self._pause_or_raise(error)
        return await self.request_answer(small=False)

    async def _pause_or_raise(self, error: ConnectorError) -> None:
        """Pause before a retry. Raises: the error with the owner's name, if a retry would not help."""
        damaged = self.stage == "checking" and error.code == _DAMAGED
        if self.attempts == 2 or not (damaged or isinstance(error, _AGAIN)):
            raise name_owner(error, self.request.fragment, self.stage) from error
        await asyncio.sleep(random.uniform(0.05, 0.3))  # noqa: S311  spreads retries, keeps no secret

    async def _limit_time(self, work: Awaitable[OwnerAnswer]) -> OwnerAnswer:
        try:
            async with asyncio.timeout(self._seconds_left):
                return await work
        except TimeoutError:
            raise Limited(
                f"no complete answer after {time.monotonic() - self.begun:.1f} s; the limit of the question is "
                f"{self.request.deadline.seconds:g} s. Ask for less, or raise limits.seconds",
                code="time_limit",
            ) from None

    async def _ask_once(self, *, small: bool) -> OwnerAnswer:
        self.stage = "asking"
        fragment, left = self.request.fragment, self._seconds_left
        endpoint, body, ticket = await self._envelope(self.attempts)
        headers = {"authorization": f"Bearer {ticket}", "content-type": "application/json"} | _name_job()
        async with self.remote.net.stream(
            "POST", f"{endpoint}/query", headers=headers, body=body, seconds=left + 1
        ) as answer:
            if answer.status != 200:
                error = await refusal(answer, endpoint)
                if error.code == "min_group_size" and fragment.aggregate_only:
                    return OwnerAnswer(fragment, None, ms=_milliseconds_since(self.begun), refused=error)
                raise error
            self.stage = "answering"
            size, held = await _spool(answer, self.file, self.budget)
        if small and held is not None and self.budget.keep(size):
            return replace(self._describe_spooled(size), file=None, small=Small(self, held), unread=True)
        self.stage = "checking"
        return await self._check_answer(size, held)

    def _describe_spooled(self, size: int) -> OwnerAnswer:
        sent = sum(len(table.arrow) for table in self.request.keys)
        return OwnerAnswer(
            self.request.fragment, self.file, nbytes=size, ms=_milliseconds_since(self.begun), keys_sent=sent
        )

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
            "limits": {"deadline_ms": max(1, int(self._seconds_left * 1000)), "bytes": None, "rows": request.rows},
            "codec": request.codec,
            "keys": [
                {"name": one.name, "columns": list(one.columns), "arrow": base64.b64encode(one.arrow).decode()}
                for one in request.keys
            ],
        }
        return endpoint, json.dumps(wire).encode(), ticket

    async def _check_answer(self, size: int, held: bytes | None) -> OwnerAnswer:
        """Validate a spooled answer in a worker; it is complete if its end record says so and the rows match."""
        request, spool = self.request, self.file
        names = tuple(fold(name) for name in request.fragment.outputs)
        keys = _plan_key_files(request.fragment, request.wanted, spool)
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
                limits=Limits(seconds=self._seconds_left),
                consumer="coordinator",
            )
        )
        end = found["end"]
        if end is None:
            raise PeerNonsense("the stream ended without its end record, so the answer is incomplete")
        if end.get("digest") != found["digest"]:  # checked before the status: damaged bytes say nothing about the owner
            raise WrongDigest(
                f"expected the digest {str(end.get('digest'))[:60]!r} of the end record, got "
                f"{found['digest']!r}: the bytes were changed in transit"
            )
        if end.get("status") != "complete":
            self.stage = "answering"
            raise _end_to_error(end)
        if end.get("rows") != found["rows"]:
            raise PeerNonsense(f"expected {end.get('rows')} rows by the end record, got {found['rows']}")
        if tuple(fold(str(column["name"])) for column in found["columns"]) != names:
            raise PeerNonsense(f"expected the columns {', '.join(request.fragment.outputs)}, got others")
        if found["wrong"]:
            raise PeerNonsense(found["wrong"])
        return self._describe_spooled(size).with_content(found, _pick_written(keys, found["keys"]))


def _name_job() -> dict[str, str]:
    """Return the header that names the current training job to the owner; none if a header cannot hold its id."""
    current = acting.current()
    job = current.job if current is not None else ""
    return {"hanse-job": job} if job and job.isascii() and job.isprintable() else {}


def _check_one_owner(fragment: Fragment, bearers: Sequence[Bearer]) -> None:
    """Refuse to send a ticket to a participant that did not issue it: a ticket grants reading to its bearer."""
    for agreement, bearer in zip(fragment.agreements, bearers, strict=True):
        if bearer.participant != fragment.participant:
            raise Denied(
                f"expected agreements with {fragment.participant}, got {agreement} with "
                f"{bearer.participant}; nothing was sent. Query the datasets of each participant separately",
                code="other_participant",
            )


def _plan_key_files(fragment: Fragment, wanted: Sequence[str], file: Path) -> dict[str, tuple[int, str]]:
    """Map each wanted output to its column index and the path of its values, next to the answer's file."""
    names = [fold(name) for name in fragment.outputs]
    numbers = {name: names.index(fold(name)) for name in wanted}
    return {name: (number, str(file.with_suffix(f".{number}.keys"))) for name, number in numbers.items()}


def _pick_written(keys: Mapping[str, tuple[int, str]], written: Collection[str]) -> dict[str, Path]:
    """Return the key files that were written."""
    return {name: Path(path) for name, (_, path) in keys.items() if path in written}


async def _spool(answer: StreamedReply, path: Path, budget: Budget) -> tuple[int, bytes | None]:
    """Receive the body; return its size, and its bytes if it is small. A large body is in the file.

    A thread opens and writes the file, so that cancelling does not wait for a slow disk. The thread opens it itself:
    a descriptor closed under a running write might already belong to another file.
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
                view = view[file.write(view) or 0 :]  # stays in the page cache, where a worker reads it next
        except OSError as error:
            raise error_of("disk_full", {}) from error


async def refusal(answer: StreamedReply, endpoint: str) -> ConnectorError:
    """Convert the owner's problem object to an error of the same kind, with its code, rule and message."""
    body = await answer.read_up_to(_ERROR_MAX)
    try:
        told = json.loads(body)
        code, sentence = read_code(str(told["code"]) or UNKNOWN, str(told["detail"]))
        rule = str(told.get("rule", ""))[:500]
    except (ValueError, KeyError, TypeError, RecursionError):
        if answer.status >= 500:
            return Unavailable(f"{origin(endpoint)} failed with status {answer.status}", code="peer_failed")
        return PeerNonsense(f"expected a problem object from {origin(endpoint)}, got status {answer.status}")
    if code == UNKNOWN:
        return PeerNonsense(sentence or f"expected a reason from {origin(endpoint)}, got status {answer.status}")
    kind = _STATUS.get(answer.status, Unavailable if answer.status >= 500 else PeerRefused)
    facts = {"rule": rule} if issubclass(kind, Denied) else {"rule": rule} if rule else {}
    return kind(sentence, code=code, **facts)


def _end_to_error(end: Mapping[str, Any]) -> ConnectorError:
    """Convert an end record to the error that stopped the stream."""
    status = str(end.get("status"))
    reason = str(end.get("reason") or f"the stream ended early: {status}")
    code, reason = read_code(str(end.get("code") or status), reason)
    if code == UNKNOWN:
        return PeerNonsense(reason)
    if status == "quota" or code in ("time_limit", "memory_limit", "rows_limit", "bytes_limit"):
        return Limited(reason, code=code)
    if status in ("revoked", "lease_expired", "refused"):
        return Denied(reason, code=code, rule=str(end.get("rule", ""))[:500])
    return PeerFailed(reason, code=code)


def name_owner(error: ConnectorError, fragment: Fragment, stage: str) -> ConnectorError:
    """Return the error with the owner, the fragment and the stage at the start of its message."""
    start = f'"{fragment.owner}" ({fragment.id}: {", ".join(fragment.datasets)}) {_STAGES[stage]}: '
    return _prefix_error(start, error, owner=fragment.owner, fragment=fragment.id, stage=stage)


def explain_silence(silent: UnreachableOwner) -> ConnectorError:
    """Return the error of a question that needs a contract summary which its owner did not send."""
    owner, dataset = silent.owner or silent.participant, f" ({silent.dataset})" if silent.dataset else ""
    start = f'"{owner}"{dataset} {_STAGES["planning"]}: '
    return _prefix_error(start, silent.error, owner=owner, stage="planning")


def _prefix_error(start: str, error: ConnectorError, **more: str) -> ConnectorError:
    facts = {**error.facts, **more}
    kind = PeerRefused if isinstance(error, Unproven) else type(error)
    if isinstance(error, Denied):
        facts["rule"] = error.rule
    if kind is Invalid or not issubclass(
        kind, Forbidden | Invalid | Limited | PeerFailed | Unavailable | Absent | WrongState
    ):
        kind = PeerFailed
    return kind(start + error.message, code=error.code, private=error.private, **facts)


def _milliseconds_since(begun: float) -> int:
    return int((time.monotonic() - begun) * 1000)
