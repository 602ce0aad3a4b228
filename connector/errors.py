"""The whole error tree of the server side, in one place.

    HanseError
    ├── BadInput (400)               what came is not what was expected
    │   ├── MessageInvalid           a protocol message that does not fit its schema
    │   ├── PathRefused              a file outside the allowed directories, or not a regular file
    │   ├── SourceUnreadable         a file that is not what it says it is
    │   ├── PolicyInvalid            a policy or offer form that cannot be understood
    │   ├── QueryInvalid             SQL that the gate does not let through
    │   ├── NotAcceptable (406)      an answer in a form that we do not give
    │   └── EncodingUnknown (415)    a body that is compressed in a way nobody here reads
    ├── Unauthenticated (401)        no or no valid proof of who is calling
    ├── Forbidden (403)
    │   ├── ScopeMissing             the token is good, but not for this
    │   └── Refused                  a policy or contract says no; carries code and rule
    │       └── Withdrawn            whoever is told so has ended himself what it was under
    ├── NotFound (404)               not there, or not yours: the two look alike
    ├── Conflict (409)
    │   ├── IllegalStep              a message that the state machine has no row for
    │   ├── AlreadyExists            a name that is taken
    │   └── VersionChanged           data that is no longer what was registered
    ├── Limited (429)                a quota, rate or concurrency limit is reached
    ├── PeerFailed (502)             somebody else's server
    │   ├── AddressRefused           an address that we do not call
    │   │   └── AddressPrivate       one that is not public
    │   ├── PeerUnreachable          no answer in time
    │   │   └── NameUnknown          a host name that does not resolve
    │   ├── PeerRefused              an answer, and it is no
    │   │   └── PeerBusy (503)       for now: later it may be another
    │   └── PeerNonsense             an answer that is not the protocol
    │       └── DigestMismatch       bytes that are not those that left: none of them is used
    └── Busy (503)                   no capacity now, or the log cannot be written
        └── EngineFailed (500)       a query that the engine could not finish; code only, never its text

Every error says what was expected, what came and what to do. `facts` are for machines and may be shown to the
caller; `private` is for our own log only. One handler per API turns the tree into its wire form.

Some of it others have written: it is made harmless here, once, for every answer, page, event and log that it comes to.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

# Control characters except tab and line end, what turns the direction of writing, halves of letters.
_COMMANDING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

_LOGIN = re.compile(r"(?<=://)[^\s/'\"]*@")


def harmless(text: str) -> str:
    """What others wrote, to be shown and stored: signs that command a terminal, or that no database and no JSON takes,
    are shown as their numbers, and an address without what stands before its `@`: it may be a password."""
    signs = _COMMANDING.sub(lambda sign: f"\\u{ord(sign[0]):04x}", text.replace("\r\n", "\n"))
    return _LOGIN.sub("***@", signs)


def typed(name: str) -> str:
    """A name that somebody typed, as a refusal repeats it: nothing where it may be an address or words of a login."""
    return "***" if any(sign in name for sign in "@:=") else name[:100]


class HanseError(Exception):
    """Base of all: `status` (HTTP), `code` (stable), the sentence, and `facts` that the caller may see."""

    status: ClassVar[int] = 500
    code: str = "internal"

    def __init__(self, message: str, *, code: str | None = None, private: str = "", **facts: Any) -> None:
        super().__init__(harmless(message))
        self.facts: dict[str, Any] = {
            name: harmless(one) if isinstance(one, str) else one for name, one in facts.items()
        }
        self.private = private
        if code is not None:
            self.code = harmless(code)

    @property
    def message(self) -> str:
        return str(self.args[0])

    @property
    def headers(self) -> dict[str, str]:
        """What an HTTP answer says beside the body: how to authenticate, when to come back."""
        if self.status == 401:
            return {"www-authenticate": "Bearer"}
        return {"retry-after": str(self.facts.get("retry_after", 1))} if self.status in (429, 503) else {}

    def problem(self) -> dict[str, Any]:
        """The error as an RFC 9457 problem object."""
        return {
            "type": f"https://w3id.org/hanse/errors/{self.code}",
            "title": self.code.replace("_", " "),
            "status": self.status,
            "code": self.code,
            "detail": self.message,
            **self.facts,
        }


def unforeseen() -> HanseError:
    """What others are told of a failure that nobody foresaw: its words are for our own log."""
    return HanseError("the connector failed; its log says why")


class BadInput(HanseError):
    status = 400
    code = "bad_input"


def unfit(problems: Sequence[Mapping[str, Any]]) -> BadInput:
    """What a request or a form is not, as pydantic lists it: the first in words, up to twenty in `fields`."""
    first = problems[0]
    where = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path")) or "the request"
    fields = [{"field": ".".join(map(str, one["loc"])), "problem": one["msg"]} for one in problems[:20]]
    return BadInput(f"{where}: {first['msg']}", fields=fields)


def check_harmless(**declared: str) -> None:
    """BadInput where one of these texts, which stand in logs and are compared as they came, has signs that command."""
    for name, text in declared.items():
        if _COMMANDING.search(text):
            raise BadInput(f"expected {name} without control characters, came {text[:40]!r}")


class MessageInvalid(BadInput):
    code = "message_invalid"


class PathRefused(BadInput):
    code = "path_refused"


class SourceUnreadable(BadInput):
    code = "source_unreadable"


class PolicyInvalid(BadInput):
    code = "policy_invalid"


class QueryInvalid(BadInput):
    code = "query_invalid"


class NotAcceptable(BadInput):
    status = 406
    code = "not_acceptable"


class EncodingUnknown(BadInput):
    status = 415
    code = "encoding_unknown"


class Unauthenticated(HanseError):
    status = 401
    code = "unauthenticated"


class Forbidden(HanseError):
    status = 403
    code = "forbidden"


class ScopeMissing(Forbidden):
    code = "scope_missing"


class Refused(Forbidden):
    """A policy or contract says no. `rule` is the path of the rule that refused it."""

    code = "refused"

    def __init__(
        self, message: str, *, code: str | None = None, rule: str = "", private: str = "", **facts: Any
    ) -> None:
        super().__init__(message, code=code, private=private, rule=rule, **facts)
        self.rule: str = self.facts["rule"]


class Withdrawn(Refused):
    """Whoever is told so has ended himself what it was under: what the next one is refused is no one's no here."""


class NotFound(HanseError):
    status = 404
    code = "not_found"


class Conflict(HanseError):
    status = 409
    code = "conflict"


class IllegalStep(Conflict):
    code = "illegal_step"


class AlreadyExists(Conflict):
    code = "already_exists"


class VersionChanged(Conflict):
    code = "version_changed"

    @classmethod
    def of(cls, what: str) -> VersionChanged:
        """Of data that is not what was registered: what came instead, and what helps."""
        return cls(f"{what}; its owner must register it again")


class Limited(HanseError):
    status = 429
    code = "limited"


class PeerFailed(HanseError):
    status = 502
    code = "peer_failed"


class AddressRefused(PeerFailed):
    code = "address_refused"


class AddressPrivate(AddressRefused):
    """Where it is was found out by looking it up, as `NameUnknown` was."""


class PeerUnreachable(PeerFailed):
    code = "peer_unreachable"


class NameUnknown(PeerUnreachable):
    pass


# What these say tells of names and addresses as they are from here: others must not learn of it, nor which it was.
INWARD = (AddressPrivate, NameUnknown)


class PeerRefused(PeerFailed):
    code = "peer_refused"


class PeerBusy(PeerRefused):
    status = 503
    code = "peer_busy"


class PeerNonsense(PeerFailed):
    code = "peer_nonsense"


class DigestMismatch(PeerNonsense):
    code = "digest_mismatch"


class Busy(HanseError):
    status = 503
    code = "busy"


class EngineFailed(HanseError):
    status = 500
    code = "engine_failed"
