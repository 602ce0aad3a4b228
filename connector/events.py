"""Everything that can happen, one small dataclass each; also the vocabulary of the audit log.

An event is published inside the transaction that changed something (`tx.publish(event)`): it is stored with the
change and handed to subscribers after the commit. Events hold facts, never secrets and never cell values.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

_LISTED_MAX = 100
OUTCOMES = ("ok", "refused", "failed", "broken")


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Who did what to what, under which agreement and purpose, and how it ended."""

    actor: str  # participant id, or the name of the management token
    on_behalf_of: str = ""  # organisation, where the actor is a person or a machine of one
    dataset: str = ""
    version: str = ""
    agreement: str = ""
    purpose: str = ""
    process: str = ""  # our pid of a negotiation or transfer, or the query id
    outcome: str = "ok"  # one of OUTCOMES
    code: str = ""  # why, for machines
    reason: str = ""  # why, for people
    rule: str = ""  # which rule refused it
    correlation: str = ""
    detail: dict[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """The event's name in the log, e.g. `DatasetRegistered`."""
        return type(self).__name__

    def body(self) -> dict[str, Any]:
        """The event as the log keeps it: its kind and every field that says something."""
        values = ((name, getattr(self, name)) for name in self.__dataclass_fields__)
        return {"kind": self.kind, **{name: value for name, value in values if value not in ("", {})}}


def kinds() -> dict[str, type[Event]]:
    """Every kind of event by its name in the log."""
    waiting, found = [Event], {}
    while waiting:
        for kind in waiting.pop().__subclasses__():
            found[kind.__name__] = kind
            waiting.append(kind)
    return found


def event_of(body: dict[str, Any]) -> Event | None:
    """An event as the log kept it. None for a kind that this program does not know: a newer one wrote it."""
    kind = kinds().get(str(body.get("kind", "")))
    known = {name: value for name, value in body.items() if name in Event.__dataclass_fields__}
    return None if kind is None else kind(**known)


class DatasetRegistered(Event):
    """`detail`: rows, columns and files, how many there are, and `sha256`, of each file that reads are made from."""


class DatasetVersioned(Event):
    """`detail`: the version before, rows, and `sha256` as where it was registered."""


class DatasetRemoved(Event): ...


class OfferPublished(Event): ...


class OfferWithdrawn(Event): ...


class RequestRefused(Event):
    """A registration, offer, message or login that was refused before it changed anything."""


class RefusalsCounted(Event):
    """What else somebody was refused within some seconds, beside what has records of its own. `detail`: count, codes
    (how often each), seconds."""


class FactRecorded(Event):
    """The owner vouches for something. `detail`: subject, fact, values, valid_until, evidence."""


class FactWithdrawn(Event):
    """`detail`: subject, fact, values."""


class DutyReported(Event):
    """Evidence that a duty was fulfilled. `detail`: path, duty, given_by, counterparty; reason is the evidence."""


class DutyChanged(Event):
    """A reminder: a duty has fallen due, is overdue or is done. `detail`: path, duty, state, role, counterparty."""


class NegotiationAdvanced(Event):
    """`detail`: role, counterparty, state, message."""


class DecisionNeeded(Event):
    """A negotiation waits for a person: `detail` has role and state."""


class DecisionTaken(Event):
    """Somebody had a protocol message sent: `detail` has command, role, counterparty and the state before."""


class AgreementConcluded(Event): ...


class AgreementRevoked(Event): ...


class TransferAdvanced(Event):
    """`detail`: role, counterparty, state, message, format; of a push also `to`, where it goes (scheme, host, port),
    where that is known by then; of what is suspended also `suspended_by`, who resumes it (facts: time does), likewise.
    """


class ReadStarted(Event):
    """Durable before the first byte leaves, one under each agreement of a read. `detail`: action, the dataset's own
    columns that are read, which rows are asked for (digests of the SQL and of tables brought along, limits, ranges of
    the files), how it leaves and where to, and all agreements where there are several (`dataplane.records`)."""


class ReadEnded(Event):
    """One under each agreement. `detail`: rows, bytes, batches and digest of the whole read, where there are several
    all of them and which one ended it (`ended_by`), `use` where that was given back, `after` where others had recorded
    an end already; outcome ok, refused (revoked, quota), or broken (also where its own consumer ended it)."""


class RawDataViewed(Event):
    """The owner looks at raw data without being a consumer: stored before anything is read. `detail`: `view`, one of
    preview, withheld and simulation, and what is asked (the policy's digest, the offer, as whom, the SQL's SHA-256)."""


class ReadRefused(Event):
    """A read that never started: no byte left."""


class ReadTaken(Event):
    """A receipt: what came of a read of ours at an owner, as the SDK tells it when the read is over. `process` is the
    read's id as its owner told it. `detail`: counterparty, transfer, receipt (an id of this record's own), rows that
    came, and `told`, what the owner's end record said (status, rows, bytes, digest); outcome broken where that did not
    come, or not all its rows."""


class DataReceived(Event):
    """What a provider pushed to us was checked and is kept. `detail`: rows, bytes, batches, whole, digest."""


class DataRefused(Event):
    """A push to us that was not kept, and why: nothing of it is there. `detail`: bytes that had come."""


class DataRemoved(Event):
    """A file of received data was removed, or is to be. `detail`: rows, bytes, and `file` ("not_here") where the
    process that was asked has not had it: another one removes it, as it hears this or at its start."""


class QueryCoordinated(Event):
    """A federated query as its consumer saw it, one under each of its agreements. `detail`: rows of the whole question,
    owners, rows (none where it failed before they were counted) and bytes per fragment. Where there are several
    agreements, the first has all fragments and `agreements`; the others have the fragments under theirs, and in `whole`
    that first agreement and how many there are."""


class LogRead(Event):
    """Somebody listed, exported or verified the log, or joined the stream of events. `detail`: what, and terms."""


class TokenIssued(Event): ...


class TokenRevoked(Event): ...


class WebhookChanged(Event): ...


class ServiceStarted(Event): ...


class DatabaseRestored(Event):
    """The log goes on under another key from an earlier state. `detail`: how many records that has, the key that
    signed them, and the newest head of ours that was known, if one was."""


def listed(name: str, values: Sequence[Any]) -> dict[str, Any]:
    """A list as a record has it, for its `detail`: of a long one its beginning, how many there are, and the digest of
    all."""
    if len(values) <= _LISTED_MAX:
        return {name: list(values)}
    whole = json.dumps(list(values), ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    told = {"count": len(values), "sha256": hashlib.sha256(whole).hexdigest()}
    return {name: list(values[:_LISTED_MAX]), f"{name}_of": told}


def together(agreements: Sequence[str]) -> dict[str, Any]:
    """What the records of one read or question under several agreements say of each other, for their `detail`."""
    return {"agreements": list(agreements)} if len(agreements) > 1 else {}


Subscriber: TypeAlias = Callable[[Event], None]


class Bus:
    """Hands committed events to subscribers in this process. A subscriber must be quick and must not raise."""

    def __init__(self) -> None:
        self._subscribers: list[tuple[Subscriber, bool]] = []

    def subscribe(self, subscriber: Subscriber, *, own: bool = False) -> Callable[[], None]:
        """Add a subscriber; call what comes back to remove it.

        It hears of everything that any process on this database commits; with `own`, only of what this one does.
        """
        entry = (subscriber, own)
        self._subscribers.append(entry)
        return lambda: self._subscribers.remove(entry)

    def deliver(self, event: Event) -> None:
        """Tell everybody of an event that this process committed."""
        for subscriber, _ in tuple(self._subscribers):
            subscriber(event)

    def relay(self, event: Event) -> None:
        """Tell of an event that another process on the same database committed."""
        for subscriber, own in tuple(self._subscribers):
            if not own:
                subscriber(event)
