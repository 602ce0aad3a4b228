"""The events of a connector, a dataclass for each kind; also the vocabulary of the audit log.

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
    """Who did what to which object, under which agreement and purpose, with which outcome."""

    actor: str  # participant id, or the name of the management token
    on_behalf_of: str = ""  # the organisation of an actor that is a person or machine
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
    subject: str = ""  # issuer and subject of the person or workload that the actor is
    token: str = ""  # id of the personal access token in use
    job: str = ""  # id of the training job
    detail: dict[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """The event's name in the log, e.g. `DatasetRegistered`."""
        return type(self).__name__

    def body(self) -> dict[str, Any]:
        """The event as the log stores it: its kind and all fields that are not empty."""
        values = ((name, getattr(self, name)) for name in self.__dataclass_fields__)
        return {"kind": self.kind, **{name: value for name, value in values if value not in ("", {})}}


def kinds() -> dict[str, type[Event]]:
    """All kinds of events by their name in the log."""
    waiting, known = [Event], {}
    while waiting:
        for kind in waiting.pop().__subclasses__():
            known[kind.__name__] = kind
            waiting.append(kind)
    return known


def body_to_event(body: dict[str, Any]) -> Event | None:
    """The event of a logged body; None for an unknown kind, which a newer program wrote."""
    kind = kinds().get(str(body.get("kind", "")))
    known = {name: value for name, value in body.items() if name in Event.__dataclass_fields__}
    return None if kind is None else kind(**known)


class DatasetRegistered(Event):
    """`detail`: rows, columns and files, how many there are, and `sha256`, of each file that reads are made from."""


class DatasetVersioned(Event):
    """`detail`: the version before, rows, and `sha256` as where it was registered."""


class FileUploaded(Event):
    """An owner uploaded a file to register. `detail`: file (the name that it has here), file_kind, bytes, sha256."""


class DatasetDescribed(Event):
    """The texts on a dataset were changed; `detail` names the changed ones."""


class DatasetRemoved(Event): ...


class OfferPublished(Event): ...


class OfferWithdrawn(Event): ...


class RequestRefused(Event):
    """A registration, offer, message or login that was refused before it changed anything."""


class RefusalsCounted(Event):
    """Refusals of a party that have no record of their own. `detail`: count, codes (how often each), seconds."""


class FactRecorded(Event):
    """The owner recorded a fact. `detail`: subject, fact, values, valid_until, evidence."""


class FactWithdrawn(Event):
    """`detail`: subject, fact, values."""


class DutyReported(Event):
    """Evidence that a duty was fulfilled. `detail`: path, duty, given_by, counterparty; reason is the evidence."""


class DutyChanged(Event):
    """A reminder: a duty is due, overdue or done. `detail`: path, duty, state, role, counterparty."""


class CredentialStored(Event):
    """A credential about us was stored. `detail`: issuer, types, expires, credential (its id)."""


class CredentialRequested(Event):
    """A request of ours for a credential about us, and what became of it. `detail`: issuer, type, status."""


class CredentialOffered(Event):
    """An issuer offered us credentials. `detail`: credentials, what the offer names."""


class NegotiationAdvanced(Event):
    """`detail`: role, counterparty, state, message; `credentials` that the sender presented, if any."""


class DecisionNeeded(Event):
    """A negotiation waits for a decision by a person. `detail`: role, state."""


class DecisionTaken(Event):
    """A person ordered a protocol message. `detail`: command, role, counterparty, state before."""


class AgreementConcluded(Event): ...


class AgreementRevoked(Event): ...


class TransferAdvanced(Event):
    """`detail`: role, counterparty, state, message, format; for a push also `to`, its target (scheme, host, port), if
    known; for a suspended transfer also `suspended_by`, the party that can resume it ("facts": it resumes by itself).
    """


class ReadStarted(Event):
    """The start of a read, durable before the first byte leaves; an event under each of its agreements.

    `detail`: action, the columns read, the rows requested (digests of the SQL and of uploaded tables, limits, file
    ranges), format and target, and all agreements if there are several (`dataplane.read_log`).
    """


class ReadEnded(Event):
    """The end of a read; an event under each of its agreements.

    `detail`: rows, bytes, batches and digest of the whole read; with several agreements, all of them and `ended_by`;
    `use` if the use was given back; `after` if an end was recorded before. Outcome: ok, refused (revoked, quota) or
    broken (also if the consumer ended it).
    """


class RawDataViewed(Event):
    """The owner looks at raw data without being a consumer: stored before anything is read. `detail`: `view`, one of
    preview, withheld, simulation and file (first rows before a registration), and what is asked (the policy's digest,
    the offer, as whom, the SQL's SHA-256; the file's name and kind)."""


class ReadRefused(Event):
    """A read that was refused before it started: no data left."""


class ReadTaken(Event):
    """A receipt of our read at an owner, reported by the SDK at its end. `process` is the owner's id of the read.

    `detail`: counterparty, transfer, receipt (the id of the receipt), rows received, and `told`, the owner's end record
    (status, rows, bytes, digest). Outcome: broken if that record or some of its rows are missing.
    """


class DataReceived(Event):
    """Data pushed to us was stored. `detail`: rows, bytes, batches, media, whole, digest."""


class DataFetched(Event):
    """The end of a fetch from the endpoint of another kind of connector. `detail`: from, media, bytes, digest of a
    complete one. Outcome: ok, or broken (also if the reader left)."""


class DataRefused(Event):
    """A push to us was refused; nothing of it is stored. `detail`: bytes received."""


class DataRemoved(Event):
    """A file of received data was removed. `detail`: rows, bytes, and `file`: "not_here" if another process has it,
    which removes it on this event or at its start."""


class QueryCoordinated(Event):
    """A federated query at its consumer; an event under each of its agreements.

    `detail`: rows of the result, owners, rows (missing after an early failure) and bytes per fragment. With several
    agreements, the first event has all fragments and `agreements`; the others have only their own fragments, and
    `whole` with the first agreement and the number of agreements.
    """


class LogRead(Event):
    """The log was listed, exported or verified, or the event stream was opened. `detail`: what, terms."""


class CheckpointRefused(Event):
    """We, as a witness, refused a signed head of another log. `detail`: origin, size, root, known_size, why."""


class CosignatureRefused(Event):
    """A witness refused a head of our log. `detail`: witness, size, known_size, state (behind, fork, refused)."""


class TokenIssued(Event): ...


class TokenRevoked(Event): ...


class SessionStarted(Event):
    """A person logged in at a provider. `detail`: provider, roles."""


class SessionEnded(Event):
    """A person logged out here or at the provider. A session that expires has no record. `detail`: provider."""


class WebhookChanged(Event): ...


class ServiceStarted(Event): ...


class DatabaseRestored(Event):
    """The log continues from an older state under another key. `detail`: its number of records, the key that signed
    them, and the newest known head, if any."""


def listed(name: str, values: Sequence[Any]) -> dict[str, Any]:
    """A list for an event's `detail`: a long one is cut to its beginning, with the count and the digest of all."""
    if len(values) <= _LISTED_MAX:
        return {name: list(values)}
    whole = json.dumps(list(values), ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    total = {"count": len(values), "sha256": hashlib.sha256(whole).hexdigest()}
    return {name: list(values[:_LISTED_MAX]), f"{name}_of": total}


def together(agreements: Sequence[str]) -> dict[str, Any]:
    """The `detail` that links the events of a read or query under several agreements; empty for a single one."""
    return {"agreements": list(agreements)} if len(agreements) > 1 else {}


Subscriber: TypeAlias = Callable[[Event], None]


class Bus:
    """Hands committed events to subscribers in this process. A subscriber must be quick and must not raise."""

    def __init__(self) -> None:
        self._subscribers: list[tuple[Subscriber, bool]] = []

    def subscribe(self, subscriber: Subscriber, *, own: bool = False) -> Callable[[], None]:
        """Add a subscriber; the returned function removes it.

        It gets the events of all processes on this database; with `own`, only those of this process.
        """
        entry = (subscriber, own)
        self._subscribers.append(entry)
        return lambda: self._subscribers.remove(entry)

    def deliver(self, event: Event) -> None:
        """Pass an event that this process committed to all subscribers."""
        for subscriber, _ in tuple(self._subscribers):
            subscriber(event)

    def relay(self, event: Event) -> None:
        """Pass on an event that another process on the same database committed."""
        for subscriber, own in tuple(self._subscribers):
            if not own:
                subscriber(event)
