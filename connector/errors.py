"""The error tree of the server side.

A class that only one module raises and handles may stand there, below one of these. Where only the code is new, `code=`
at the raise is enough.

    ConnectorError
    ├── Invalid (400)             the input is not what was expected
    │   ├── MessageInvalid        a protocol message that `dsp.messages` cannot read
    │   ├── PathRefused           a file outside the allowed directories, or not a regular file
    │   ├── SourceUnreadable      a file whose content does not fit its format
    │   ├── PolicyInvalid         a policy or offer form that cannot be understood
    │   ├── QueryInvalid          SQL that the gate refuses
    │   ├── NotAcceptable (406)   a response format that is not supported
    │   ├── BodyTooLarge (413)    a protocol message over its limit in bytes
    │   └── EncodingUnknown (415) a body with an unsupported compression
    ├── Unproven (401)            no valid proof of the caller's identity
    ├── Forbidden (403)
    │   ├── ScopeMissing          the token is valid, but not for this action
    │   └── Denied                a policy or contract says no; carries code and rule
    │       └── Withdrawn         the caller itself ended what the access was under
    ├── Absent (404)              missing, or not the caller's: indistinguishable
    ├── WrongState (409)
    │   ├── IllegalStep           a message that the state machine does not allow
    │   ├── AlreadyExists         a name that is taken
    │   └── VersionChanged        data that is no longer what was registered
    ├── Limited (429)             a quota, rate or concurrency limit is reached
    ├── PeerFailed (502)          another organisation's server failed
    │   ├── AddressRefused        an address that is not called
    │   │   └── AddressPrivate    a private address
    │   ├── PeerUnreachable       no response in time
    │   │   └── NameUnknown       a host name that does not resolve
    │   ├── PeerRefused           a response that refuses
    │   │   └── PeerBusy (503)    a temporary refusal
    │   └── PeerNonsense          a response that violates the protocol
    │       └── WrongDigest       bytes that are not those that left: none of them is used
    └── Unavailable (503)         no capacity, or the log cannot be written
        └── EngineFailed (500)    a query that the engine could not finish; never shows its text

A message says what was expected, what came and what to do. `facts` are for machines and may be shown to the caller;
`private` is for our own log only. A handler per API turns errors into their wire form.

Messages may contain text from other parties. It is sanitized here, once for all responses, pages, events and logs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

# Control characters except tab and line end, marks that change the text direction, lone surrogates.
_COMMANDING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

_LOGIN = re.compile(r"(?<=://)[^\s/'\"]*@")


def harmless(text: str) -> str:
    """Text from others made safe to show and store.

    Characters that control a terminal, or that databases and JSON reject, become escapes. Credentials in URLs are
    replaced by `***`.
    """
    signs = _COMMANDING.sub(lambda sign: f"\\u{ord(sign[0]):04x}", text.replace("\r\n", "\n"))
    return _LOGIN.sub("***@", signs)


def redact_name(name: str) -> str:
    """A name from a request, as a refusal repeats it: `***` if it may be a URL or credentials."""
    return "***" if any(sign in name for sign in "@:=") else name[:100]


class ConnectorError(Exception):
    """Base of all errors: HTTP `status`, stable `code`, message, and `facts` that the caller may see."""

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
        """The extra HTTP response headers: how to authenticate, when to retry."""
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


def internal_error() -> ConnectorError:
    """The error that callers get for an unexpected exception, whose text goes to our own log."""
    return ConnectorError("the connector failed unexpectedly; see its log")


class Invalid(ConnectorError):
    status = 400
    code = "bad_input"


def validation_error(problems: Sequence[Mapping[str, Any]]) -> Invalid:
    """The error for pydantic's problems with a request or form: the first in words, up to twenty in `fields`."""
    first = problems[0]
    where = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path")) or "the request"
    fields = [{"field": ".".join(map(str, one["loc"])), "problem": one["msg"]} for one in problems[:20]]
    return Invalid(f"{where}: {first['msg']}", fields=fields)


def check_harmless(**declared: str) -> None:
    """Check that texts that are logged and compared have no control characters. Raises: Invalid."""
    for name, text in declared.items():
        if _COMMANDING.search(text):
            raise Invalid(f"expected {name} without control characters, got {text[:40]!r}")


class MessageInvalid(Invalid):
    code = "message_invalid"


class PathRefused(Invalid):
    code = "path_refused"


class SourceUnreadable(Invalid):
    code = "source_unreadable"


class PolicyInvalid(Invalid):
    code = "policy_invalid"


class QueryInvalid(Invalid):
    code = "query_invalid"


class NotAcceptable(Invalid):
    status = 406
    code = "not_acceptable"


class BodyTooLarge(Invalid):
    status = 413
    code = "body_too_large"


class EncodingUnknown(Invalid):
    status = 415
    code = "encoding_unknown"


class Unproven(ConnectorError):
    status = 401
    code = "unauthenticated"


class Forbidden(ConnectorError):
    status = 403
    code = "forbidden"


class ScopeMissing(Forbidden):
    code = "scope_missing"


class Denied(Forbidden):
    """A policy or contract says no. `rule` is the path of the rule that refused it."""

    code = "refused"

    def __init__(
        self, message: str, *, code: str | None = None, rule: str = "", private: str = "", **facts: Any
    ) -> None:
        super().__init__(message, code=code, private=private, rule=rule, **facts)
        self.rule: str = self.facts["rule"]


class Withdrawn(Denied):
    """The caller itself ended the transfer; a later refusal for that reason is not a decision of the owner."""


class Absent(ConnectorError):
    status = 404
    code = "not_found"


class WrongState(ConnectorError):
    status = 409
    code = "conflict"


class IllegalStep(WrongState):
    code = "illegal_step"


class AlreadyExists(WrongState):
    code = "already_exists"


class VersionChanged(WrongState):
    code = "version_changed"

    @classmethod
    def of(cls, what: str) -> VersionChanged:
        """The error for data that differs from its registration; `what` says how."""
        return cls(f"{what}; its owner must register it again")


class Limited(ConnectorError):
    status = 429
    code = "limited"


class PeerFailed(ConnectorError):
    status = 502
    code = "peer_failed"


class AddressRefused(PeerFailed):
    code = "address_refused"


class AddressPrivate(AddressRefused):
    """The host has a private address, which, as for `NameUnknown`, only a look-up from here reveals."""


class PeerUnreachable(PeerFailed):
    code = "peer_unreachable"


class NameUnknown(PeerUnreachable):
    pass


# These messages reveal our view of names and addresses: other parties must not see them, nor which error it was.
INWARD = (AddressPrivate, NameUnknown)


class PeerRefused(PeerFailed):
    code = "peer_refused"


class PeerBusy(PeerRefused):
    status = 503
    code = "peer_busy"


class PeerNonsense(PeerFailed):
    code = "peer_nonsense"


class WrongDigest(PeerNonsense):
    code = "digest_mismatch"


class Unavailable(ConnectorError):
    status = 503
    code = "busy"


class EngineFailed(ConnectorError):
    status = 500
    code = "engine_failed"
