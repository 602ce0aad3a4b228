"""A call of gRPC over HTTP/2 (gRPC, "gRPC over HTTP2"): who calls, what is asked, answers, and how it ended.

What a refusal is in gRPC: its status and the sentence. Arrow's own clients want it once more in Arrow's words
(`x-arrow-status` and what belongs to it); those in C++ then give on what is in `grpc-status-details-bin` as
`extra_info`, and get the problem's JSON there, or the end record of a stream that ended early. For gRPC that is a
message `google.rpc.Status`, and clients in Go take anything else for a failure of ours: they get none.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any
from urllib.parse import quote

from connector.dataplane.flight.framing import enveloped
from connector.dataplane.flight.http2.http2_connection import Call
from connector.dataplane.flight.http2.message_buffers import Message
from connector.dataplane.http.stall_timeout import in_time
from connector.engine.pool.error_codes import status_of
from connector.errors import BadInput, HanseError, Unauthenticated

SERVICE = "/arrow.flight.protocol.FlightService/"
_TICKET_MAX = 16 * 2**10
_TICKETS_MAX = 16
_DECLARED_MAX = 1024
_MESSAGES_MAX = 256  # of a request: a descriptor, a schema and a row of parameters are three
_STALL_SECONDS = 60.0  # as of a read
_SENTENCE_MAX, _DETAILS_MAX = 1000, 2500  # bytes of a refusal, which is said twice, and its JSON: heads have 8 kB
_KIND = re.compile(r"application/grpc(?:[+;].*)?", re.ASCII)  # gRPC for browsers has other messages
_TIME = re.compile(r"([0-9]{1,8})([HMSmun])")
_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_SAID = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")  # goes as it is in `grpc-message`
# By the status of HTTP: that of gRPC, that of Arrow (`StatusCode`), and Flight's kind of it.
_STATUS = {
    400: (3, 4, ""),
    401: (16, 5, "Unauthenticated"),
    403: (7, 5, "Unauthorized"),
    404: (5, 2, ""),
    409: (10, 5, "Failed"),  # not the same again, but anew from its beginning
    429: (14, 5, "Unavailable"),
    499: (1, 5, "Cancelled"),
    501: (12, 10, ""),
    503: (14, 5, "Unavailable"),
    504: (4, 5, "TimedOut"),
}
_INTERNAL = (13, 5, "Internal")
_EXHAUSTED = (8, 5, "Failed")
# Whoever asks the same again at once is told the same again, so that no client does by itself what UNAVAILABLE invites
# it to. Later it may help: a count per day begins anew, and there is more memory where less is read at once.
_SPENT = frozenset(
    {
        "count_spent", "quota_spent", "quota", "privacy_budget_spent",
        "rows_limit", "bytes_limit", "memory_limit", "time_limit", "groups_max",
    }
)  # fmt: skip
_ENDS = {"revoked": 403, "refused": 403, "quota": 429, "lease_expired": 401}
_AGAIN = frozenset({"busy", "outcome_unknown"})  # 503 of the connector's own, besides those of a worker


class Ended(HanseError):
    """A stream that ended early. `record`: its end record, which whoever takes details has as they are."""

    def __init__(self, record: Mapping[str, Any]) -> None:
        reason = record.get("reason") or "the stream broke"
        rule = {"rule": record["rule"]} if record.get("rule") else {}
        super().__init__(f"{reason} (after {record['rows']} rows)", code=record.get("code") or record["status"], **rule)
        # Of each end its own: what it is where it comes before the first batch.
        self.status = _ENDS.get(record["status"]) or (503 if self.code in _AGAIN else status_of(self.code))  # type: ignore[misc]
        self.record = record


class Unimplemented(HanseError):
    status = 501
    code = "unimplemented"


class DeadlineExceeded(HanseError):
    status = 504
    code = "deadline_exceeded"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: the tickets in the headers, and what is declared with them."""

    authorization: str
    further: tuple[str, ...]
    purpose: str
    application: str
    action: str
    basic: bool  # it came with a password, and gets it back as the bearer token to go on with


def caller_of(headers: Mapping[str, list[str]]) -> Caller:
    """Unauthenticated where a call comes without any proof of who it is; BadInput for what is declared and does not
    fit."""
    text = _one(headers, "authorization", _TICKET_MAX)
    basic = text[:6].lower() == "basic "
    authorization = _bearer(text[6:]) if basic else text
    if not authorization:
        raise Unauthenticated(
            "expected one header `authorization: Bearer <ticket>`, came none or several (a ticket comes with a started "
            "transfer)"
        )
    further = [one.strip() for value in headers.get("hanse-ticket", ()) for one in value.split(",") if one.strip()]
    if len(further) > _TICKETS_MAX:
        raise BadInput(f"expected at most {_TICKETS_MAX} further tickets, came {len(further)}", code="request_invalid")
    action = _declared(headers, "hanse-action") or "query"
    if action not in ("query", "stream"):
        raise BadInput("expected hanse-action to be query or stream, came something else", code="request_invalid")
    return Caller(
        authorization=authorization,
        further=tuple(further),
        purpose=_declared(headers, "hanse-purpose"),
        application=_declared(headers, "hanse-application"),
        action=action,
        basic=basic,
    )


def _bearer(encoded: str) -> str:
    encoded = encoded.strip()
    try:  # clients in Go leave out the padding
        _, _, password = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True).decode().partition(":")
    except (binascii.Error, ValueError):
        return ""
    return f"Bearer {password}" if password else ""


def seconds_of(headers: Mapping[str, list[str]]) -> float | None:
    """How long the caller waits for all of a call; None where it does not say. BadInput for what is no time."""
    told = headers.get("grpc-timeout")
    if told is None:
        return None
    found = _TIME.fullmatch(told[0])
    if found is None:
        raise BadInput(
            "expected grpc-timeout as at most eight digits and a unit (H, M, S, m, u or n), came something else",
            code="request_invalid",
        )
    return int(found[1]) * _UNITS[found[2]]


class Exchange:
    """One call: its messages, and the messages that answer it."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.headers = [("content-type", "application/grpc"), ("grpc-accept-encoding", "identity")]
        self.until: float | None = None  # of the loop's time: how long the caller waits
        self._status = "200"

    def check(self) -> None:
        """BadInput for what is no call of gRPC: then HTTP's status says so, too, to whoever knows no other."""
        headers = self.call.headers
        if headers.get(":method") != ["POST"]:
            self._status = "405"
            raise BadInput("expected a call of gRPC, which is a POST; came another request", code="request_invalid")
        if not _KIND.fullmatch((headers.get("content-type") or [""])[0]):
            self._status = "415"
            raise BadInput(
                "expected a call of gRPC with content-type application/grpc, came another", code="request_invalid"
            )

    async def first(self) -> bytes:
        """The first message, as soon as it is there; b"" for a request without one. As `messages` otherwise."""
        prefix = await self.call.body(5)
        found = _split(await self.call.body(5 + int.from_bytes(prefix[1:5], "big")))
        return next(found, b"")

    async def messages(self) -> list[bytes]:
        """All that is asked, to the end. BadInput for what is no message of gRPC, Limited where it does not come."""
        found = list(islice(_split(await self.call.body()), _MESSAGES_MAX + 1))
        if len(found) > _MESSAGES_MAX:
            raise BadInput(f"expected at most {_MESSAGES_MAX} messages, came more", code="request_invalid")
        return found

    async def message(self) -> bytes:
        """The one message of a call that has one."""
        found = await self.messages()
        if len(found) != 1:
            raise BadInput(f"expected one message, came {len(found)}", code="request_invalid")
        return found[0]

    def begin(self) -> None:
        """The head of the answer, where it has not gone."""
        if not self.call.begun:
            self.call.begin([(":status", "200"), *self.headers])

    async def send(self, raw: bytes) -> None:
        """One small message."""
        await self.pass_on(enveloped(raw))

    async def pass_on(self, message: Message) -> None:
        """One message. Limited where its client does not take it."""
        self.begin()
        await in_time(partial(self.call.send, message), seconds=_STALL_SECONDS)

    def finish(self, error: HanseError | None = None) -> None:
        """How it ended."""
        agent = (self.call.headers.get("user-agent") or [""])[0]
        trailers = [("grpc-status", "0")] if error is None else _told(error, details="grpc-c++/" in agent)
        told = trailers if self.call.begun else [(":status", self._status), *self.headers, *trailers]
        self.call.finish(told, in_vain=error is not None and self._in_vain(error))

    def _in_vain(self, error: HanseError) -> bool:
        """Whether a call brought nothing. What the gate, a policy or a limit refuses to somebody known did: it has its
        record, and a dashboard that is wrong in all its questions is answered on (decision 35)."""
        return not self.call.known or isinstance(error, Unauthenticated | Unimplemented) or type(error) is BadInput


def _split(body: bytes) -> Iterator[bytes]:
    """The messages in a body, each as it is asked for."""
    at = 0
    while at < len(body):
        size = int.from_bytes(body[at + 1 : at + 5], "big")
        if body[at]:
            raise Unimplemented("expected messages that are not compressed; send them with grpc-encoding identity")
        if len(body) < at + 5 + size:
            raise BadInput("expected whole messages of gRPC, came one that is cut off", code="request_invalid")
        yield body[at + 5 : at + 5 + size]
        at += 5 + size


def _told(error: HanseError, *, details: bool) -> list[tuple[str, str]]:
    problem: dict[str, Any] = error.problem()
    rule = f" [rule {problem['rule']}]" if problem.get("rule") else ""
    text = _shortened(f"{problem['code']}: {problem['detail']}{rule}")
    raw = json.dumps(error.record if isinstance(error, Ended) else problem, default=str).encode()
    status, arrow, kind = _EXHAUSTED if error.code in _SPENT else _STATUS.get(error.status, _INTERNAL)
    if isinstance(error, Ended) and not kind:  # what has begun was asked well, and its end record needs a kind to go by
        status, arrow, kind = _INTERNAL
    told = [
        ("grpc-status", str(status)),
        ("grpc-message", quote(text, safe=_SAID)),
        ("x-arrow-status", str(arrow)),
        ("x-arrow-status-message-bin", _binary(text.encode())),
    ]
    if kind:  # else they would take it for a failure of ours
        told.append(("x-arrow-status-detail-bin", _binary(kind.encode())))
        if details and len(raw) <= _DETAILS_MAX:
            told.append(("grpc-status-details-bin", _binary(raw)))
    return told


def _shortened(text: str) -> str:
    """As much of a sentence as fits, in letters that there are."""
    return text.encode(errors="replace")[:_SENTENCE_MAX].decode(errors="ignore")


def _binary(raw: bytes) -> str:
    return base64.b64encode(raw).decode().rstrip("=")


def _declared(headers: Mapping[str, list[str]], name: str) -> str:
    values = headers.get(name) or [""]
    if len(values) > 1 or len(values[0]) > _DECLARED_MAX:
        raise BadInput(
            f"expected one header {name} of at most {_DECLARED_MAX} characters, came another", code="request_invalid"
        )
    return values[0]


def _one(headers: Mapping[str, list[str]], name: str, most: int) -> str:
    values = headers.get(name) or [""]
    return values[0] if len(values) == 1 and len(values[0]) <= most else ""
