"""One fragment at its owner: ask, spool what comes, and have it checked, so that only whole answers are used.

The bytes of others are not looked into in this process: they go to a file within a byte limit, and a worker reads
and validates them there (a stream without its end record is no answer, whatever it holds). Knows no plans.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from connector.errors import (
    BadInput,
    Busy,
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
)
from connector.net import Answer, Net, origin
from connector.query.federation import Fragment
from connector.query.job import Job, Limits
from connector.query.pool import Pool

Ticket = Callable[[str], Awaitable[tuple[str, str]]]

_ERROR_MAX = 64 * 2**10
_AGAIN = (PeerUnreachable, PeerNonsense, Busy)
_STATUS: Mapping[int, type[HanseError]] = {
    400: QueryInvalid, 401: Unauthenticated, 403: Refused, 404: NotFound, 429: Limited, 503: Busy,
}  # fmt: skip


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
    seconds: float
    rows: int | None = None
    codec: str = "zstd"
    keys: tuple[KeyTable, ...] = ()


@dataclass(slots=True)
class Budget:
    """Bytes that the fragments of one question may still bring."""

    left: int

    def take(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise Limited(
                "the owners' answers are larger than this question may take; narrow it, or raise limits.bytes",
                code="bytes_limit",
            )


@dataclass(frozen=True, slots=True)
class Answered:
    """A whole, validated answer of one owner. `file` is Arrow IPC; None where everything was withheld."""

    fragment: Fragment
    file: Path | None
    rows: int = 0
    nbytes: int = 0
    ms: int = 0
    end: Mapping[str, Any] = field(default_factory=dict)
    withheld: bool = False
    columns: Sequence[Mapping[str, Any]] = ()
    keys_sent: int = 0  # bytes of keys that went to the owner


class Remote:
    """Asks owners. `ticket` gives the endpoint and bearer for one of our agreements."""

    def __init__(self, net: Net, pool: Pool, ticket: Ticket) -> None:
        self._net = net
        self._pool = pool
        self._ticket = ticket

    async def ask(self, request: Request, folder: Path, budget: Budget) -> Answered:
        """The owner's answer, or the error that names the owner and the stage. Retried once where that may help."""
        begun = time.monotonic()
        for attempt in (1, 2):
            try:
                return await self._once(request, folder, budget, begun, attempt)
            except HanseError as error:
                if attempt == 2 or not isinstance(error, _AGAIN):
                    raise named(error, request.fragment) from error
            await asyncio.sleep(random.uniform(0.05, 0.3))  # noqa: S311  spreads retries, keeps no secret
        raise AssertionError("a second attempt ends")

    async def _once(self, request: Request, folder: Path, budget: Budget, begun: float, attempt: int) -> Answered:
        spool = folder / f"{request.fragment.id}.{attempt}.stream"
        endpoint, body, ticket = await self._envelope(request, attempt)
        headers = {"authorization": f"Bearer {ticket}", "content-type": "application/json"}
        async with self._net.stream(
            "POST", f"{endpoint}/query", headers=headers, body=body, seconds=request.seconds
        ) as answer:
            if answer.status != 200:
                error = await refusal(answer, endpoint)
                if error.code == "min_group_size" and request.fragment.aggregate_only:
                    return Answered(request.fragment, None, ms=_ms(begun), withheld=True, end={"refusal": error})
                raise error
            with spool.open("xb") as file:
                size = await _spool(answer, file, budget)
        return await self._checked(request, spool, size, begun)

    async def _envelope(self, request: Request, attempt: int) -> tuple[str, bytes, str]:
        fragment = request.fragment
        (endpoint, ticket), *others = [await self._ticket(agreement) for agreement in fragment.agreements]
        wire = {
            "fq": 1,
            "query_id": f"{request.query_id}.{fragment.id}.{attempt}"[:64],
            "fragment": fragment.id,
            "agreement": "",
            "purpose": request.purpose,
            "sql": request.sql,
            "tickets": [other for _, other in others],
            "limits": {"deadline_ms": max(1, int(request.seconds * 1000)), "bytes": None, "rows": request.rows},
            "codec": request.codec,
            "keys": [
                {"name": one.name, "columns": list(one.columns), "arrow": base64.b64encode(one.arrow).decode()}
                for one in request.keys
            ],
        }
        return endpoint, json.dumps(wire).encode(), ticket

    async def _checked(self, request: Request, spool: Path, size: int, begun: float) -> Answered:
        """Read and validated in a worker; complete by its own end record and by our count."""
        saved = spool.with_suffix(".arrow")
        found = await self._pool.ask(
            Job(
                kind="check_arrow",
                arguments={"path": str(spool), "save": str(saved)},
                limits=Limits(seconds=request.seconds),
                consumer="coordinator",
            )
        )
        await asyncio.to_thread(spool.unlink, True)
        end = found["end"]
        if end is None:
            raise PeerNonsense("the stream ended without its end record: what came is not a whole answer")
        if end.get("status") != "complete":
            raise _ended(end)
        if end.get("rows") != found["rows"]:
            raise PeerNonsense(f"the end record counts {end.get('rows')} rows, {found['rows']} came")
        names = tuple(str(column["name"]).lower() for column in found["columns"])
        if names != tuple(name.lower() for name in request.fragment.outputs):
            raise PeerNonsense(f"expected the columns {', '.join(request.fragment.outputs)}, came others")
        return Answered(
            request.fragment, saved, found["rows"], size, _ms(begun), end, bool(end.get("suppressed")),
            tuple(found["columns"]), sum(len(table.arrow) for table in request.keys),
        )  # fmt: skip


async def _spool(answer: Answer, file: BinaryIO, budget: Budget) -> int:
    size = 0
    async for piece in answer.pieces():
        budget.take(len(piece))
        size += len(piece)
        file.write(piece)  # page cache: a worker reads it next
    return size


async def refusal(answer: Answer, endpoint: str) -> HanseError:
    """The owner's problem object as our error of the same kind, with its code, rule and sentence."""
    held = bytearray()
    async for piece in answer.pieces():
        held += piece
        if len(held) > _ERROR_MAX:
            break
    try:
        told = json.loads(bytes(held))
        code, sentence, rule = str(told["code"])[:100], str(told["detail"])[:1000], str(told.get("rule", ""))[:500]
    except (ValueError, KeyError, TypeError):
        if answer.status >= 500:
            return Busy(f"{origin(endpoint)} failed with status {answer.status}", code="peer_failed")
        return PeerNonsense(f"expected a problem object from {origin(endpoint)}, came status {answer.status}")
    kind = _STATUS.get(answer.status, Busy if answer.status >= 500 else PeerRefused)
    facts = {"rule": rule} if issubclass(kind, Refused) else {"rule": rule} if rule else {}
    return kind(sentence, code=code, **facts)


def _ended(end: Mapping[str, Any]) -> HanseError:
    """What stopped a stream before it was complete."""
    status, code = str(end.get("status")), str(end.get("code") or end.get("status"))[:100]
    reason = str(end.get("reason") or f"the stream ended early: {status}")[:1000]
    if status == "quota":
        return Limited(reason, code=code)
    if status in ("revoked", "lease_expired"):
        return Refused(reason, code=code, rule=str(end.get("rule", ""))[:500])
    return PeerFailed(reason, code=code)


def named(error: HanseError, fragment: Fragment) -> HanseError:
    """The same error, its sentence starting with the owner and the fragment."""
    start = f'"{fragment.owner}" ({fragment.id}: {", ".join(fragment.datasets)}): '
    facts = {**error.facts, "owner": fragment.owner, "fragment": fragment.id}
    kind = PeerRefused if isinstance(error, Unauthenticated) else type(error)
    if isinstance(error, Refused):
        facts["rule"] = error.rule
    if kind is BadInput or not issubclass(kind, Forbidden | BadInput | Limited | PeerFailed | Busy | NotFound):
        kind = PeerFailed
    return kind(start + error.message, code=error.code, private=error.private, **facts)


def _ms(begun: float) -> int:
    return int((time.monotonic() - begun) * 1000)
