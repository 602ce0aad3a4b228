"""All errors of the client, in one tree.

    HanseError
    ├── BadInput                the request cannot be understood: the message has the expected and the actual value
    ├── Unauthenticated         the token is missing or unknown
    ├── Refused                 a policy, a contract or a missing scope forbids it: see `code` and `rule`
    │   ├── AccessRevoked       the owner ended the agreement, perhaps during a read
    │   ├── AccessExpired       the ticket has expired; a new one continues
    │   ├── QuotaSpent          the agreement's rows, bytes or queries are used up
    │   └── NegotiationFailed   the owner does not agree
    ├── NegotiationPending      the owner has not answered yet: a person there has to approve
    │   └── ApprovalNeeded      a person at the reader's own connector has to approve
    ├── NotFound
    ├── Conflict
    ├── Busy                    no capacity now, or a rate limit: try again
    ├── Unreachable             no answer in time, or no connection
    ├── Broken                  a malformed answer, or a failure at the other side
    │   ├── StreamIncomplete    a stream without its end record: rows are missing
    │   ├── DigestMismatch      the received bytes differ from those sent: discard them
    │   └── StreamFailed        the owner could not finish, and reports it
    └── Unverified              evidence that does not hold

`str(error)` is the sentence for people; `code` and `rule` are stable; `facts` has all other members of the answer, and
for reads of a `Dataset` its name (`dataset`, as `north/flights`) and its agreement's id (`agreement`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Self

from hanse._codes import read_code

# Control characters except tab and line end, bidirectional controls, lone surrogates.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def escape_control(text: str) -> str:
    """Replace control characters in another party's text by their numbers, for a terminal or a log. CRLF becomes LF."""
    return _CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", text.replace("\r\n", "\n"))


class HanseError(Exception):
    """The base class of all errors."""

    def __init__(self, message: str, /, *, code: str = "", rule: str = "", **facts: Any) -> None:
        super().__init__(escape_control(message))
        self.code = code or type(self).__name__
        self.rule = rule
        self.facts = facts

    def about(self, dataset: str, agreement: str) -> Self:
        """Add the dataset and its agreement: a job may read those of many owners."""
        self.facts |= {"dataset": dataset, "agreement": agreement}
        if dataset not in str(self):
            self.args = (f"{dataset}: {self}",)
        return self


class BadInput(HanseError): ...


class Unauthenticated(HanseError): ...


class Refused(HanseError): ...


class AccessRevoked(Refused): ...


class AccessExpired(Refused): ...


class QuotaSpent(Refused): ...


class NegotiationFailed(Refused): ...


class NegotiationPending(HanseError): ...


class ApprovalNeeded(NegotiationPending): ...


class NotFound(HanseError): ...


class Conflict(HanseError): ...


class Busy(HanseError): ...


class Unreachable(HanseError):
    """`silent`: seconds without data before the client gave up."""

    silent = 0.0

    def after(self, seconds: float) -> Unreachable:
        """Set `silent`. It is not a parameter of `__init__`, which takes other parties' members as facts."""
        self.silent = seconds
        return self


class Broken(HanseError): ...


class StreamIncomplete(Broken): ...


class DigestMismatch(Broken):
    def __init__(self, message: str, /, *, code: str = "digest_mismatch", **facts: Any) -> None:
        super().__init__(message, code=code, **facts)


class StreamFailed(Broken): ...


class Unverified(HanseError): ...


class SignerUnknown(HanseError): ...


class GroupsLeftOut(UserWarning):
    """Owners leave small groups out of this answer, or may: its totals may be too low. Issued once for each answer."""


_BY_STATUS: Mapping[int, type[HanseError]] = {
    400: BadInput,
    401: Unauthenticated,
    403: Refused,
    404: NotFound,
    405: BadInput,
    409: Conflict,
    413: BadInput,
    422: BadInput,
    429: Busy,
    503: Busy,
}
_BY_CODE: Mapping[str, type[HanseError]] = {
    "revoked": AccessRevoked,
    "agreement_ended": AccessRevoked,
    "lease_expired": AccessExpired,
    "ticket_expired": AccessExpired,
    "quota": QuotaSpent,
    "quota_spent": QuotaSpent,
    "count_spent": QuotaSpent,
    "peer_unreachable": Unreachable,
}
_BY_END: Mapping[str, type[HanseError]] = {
    "revoked": AccessRevoked,
    "lease_expired": AccessExpired,
    "quota": QuotaSpent,
    "refused": Refused,
    "error": StreamFailed,
}
_PROBLEM_FIELDS = ("type", "title", "status", "code", "detail", "rule")


def error_from_problem(status: int, problem: Mapping[str, Any], *, where: str, ours: bool = False) -> HanseError:
    """Return the error of an RFC 9457 problem object; `where` names its sender. `ours`: the sender is the reader's own
    connector, whose codes are trusted; an owner may use only the codes of `hanse._codes`."""
    code, rule = str(problem.get("code", "")), str(problem.get("rule", ""))
    detail = str(problem.get("detail") or problem.get("title") or f"{where} answered with status {status}")
    if not ours:
        code, detail = read_code(code, detail)
    kind = _BY_CODE.get(code) or _BY_STATUS.get(status, Broken)
    facts = {str(key): value for key, value in problem.items() if key not in _PROBLEM_FIELDS}
    return kind(detail, code=code, rule=rule, **facts)


def error_from_end(end: Mapping[str, Any], *, ours: bool = False) -> HanseError | None:
    """Return the error that a stream's end record reports; None if the stream is complete. `ours` as in
    `error_from_problem`."""
    status = str(end.get("status", ""))
    if status == "complete":
        return None
    code = str(end.get("code", "")) or status
    reason = str(end.get("reason", "")) or f"the stream ended early: {status}"
    if not ours:
        code, reason = read_code(code, reason)
    kind = _BY_END.get(status, StreamFailed)
    if kind is StreamFailed:
        kind = _BY_CODE.get(code, StreamFailed)
    return kind(reason, code=code, rule=str(end.get("rule", "")), end=dict(end))
