"""Everything that the client raises, in one tree.

    HanseError
    ├── BadInput                what was asked cannot be understood: said what was expected and what came
    ├── Unauthenticated         no token, or one that is not known
    ├── Refused                 a policy, a contract or a missing scope says no: `code` and `rule` say which
    │   ├── AccessRevoked       the owner ended the agreement, perhaps while we were reading
    │   ├── AccessExpired       the ticket reached its end: another one goes on
    │   ├── QuotaSpent          the agreement's rows, bytes or queries are used up
    │   └── NegotiationFailed   the owner does not agree
    ├── NegotiationPending      the owner has not answered yet: somebody there decides by hand
    │   └── ApprovalNeeded      the next step is ours, and somebody here has to approve it
    ├── NotFound
    ├── Conflict
    ├── Busy                    no capacity now, or a rate limit: try again
    ├── Unreachable             no answer in time, or no connection
    ├── Broken                  an answer that makes no sense, or a failure at the other side
    │   ├── StreamIncomplete    a stream that stopped without its end record: what came is not all there is
    │   ├── DigestMismatch      bytes that are not those that left: none of what came may be used
    │   └── StreamFailed        the owner could not finish, and says so
    └── Unverified              evidence that does not hold

`str(error)` is the sentence for people; `code` and `rule` are stable; `facts` has whatever else the server said, and
of what ends a read of a `Dataset` its name (`dataset`, as `north/flights`) and its agreement's id (`agreement`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Self

from hanse._codes import read_code

# Control characters except tab and line end, what turns the direction of writing, halves of letters.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def escape_control(text: str) -> str:
    """What others wrote, for a terminal or a log: signs that command it are shown as their numbers. Lines may end as
    browsers send them."""
    return _CONTROL.sub(lambda sign: f"\\u{ord(sign[0]):04x}", text.replace("\r\n", "\n"))


class HanseError(Exception):
    """Base of all."""

    def __init__(self, message: str, /, *, code: str = "", rule: str = "", **facts: Any) -> None:
        super().__init__(escape_control(message))
        self.code = code or type(self).__name__
        self.rule = rule
        self.facts = facts

    def about(self, dataset: str, agreement: str) -> Self:
        """The same, said of a dataset and the agreement that it is read under: a job may read those of many owners."""
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
    """`silent`: for how many seconds nothing came before we gave up."""

    silent = 0.0

    def after(self, seconds: float) -> Unreachable:
        """The same after so long a silence. Not said to `__init__`, which takes what others say as facts."""
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
    """Owners leave small groups out of this answer, or may: its totals may be too low. Said once for each answer."""


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
    """The error in an RFC 9457 problem object; `where` names who said it. `ours`: our own connector, which may say any
    code; an owner may say those that owners have (`hanse._codes`)."""
    code, rule = str(problem.get("code", "")), str(problem.get("rule", ""))
    detail = str(problem.get("detail") or problem.get("title") or f"{where} answered with status {status}")
    if not ours:
        code, detail = read_code(code, detail)
    kind = _BY_CODE.get(code) or _BY_STATUS.get(status, Broken)
    facts = {str(key): value for key, value in problem.items() if key not in _PROBLEM_FIELDS}
    return kind(detail, code=code, rule=rule, **facts)


def error_from_end(end: Mapping[str, Any], *, ours: bool = False) -> HanseError | None:
    """The error that a stream's end record reports; None where the stream is complete. `ours` as in `of_problem`."""
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
