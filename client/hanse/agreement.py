"""The steps to access a dataset, without I/O: each step is a `Call` that the caller carries out.

A flow is a generator: it yields calls, and receives their JSON answers. A call that fails is thrown into it. The same
steps serve a blocking and an asynchronous client, and tests need no server.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from urllib.parse import quote

from hanse.errors import (
    ApprovalNeeded,
    BadInput,
    Broken,
    HanseError,
    NegotiationFailed,
    NegotiationPending,
    NotFound,
    Refused,
)

FORMAT, _PUSH = "HttpData-PULL", "-PUSH"
DPV = "https://w3id.org/dpv#"  # W3C Data Privacy Vocabulary: the purposes
_WAIT_SECONDS = 20.0  # for one long poll
_ENDED = ("TERMINATED", "COMPLETED")
# Codes of an end by a lost message, by time, or by ourselves.
_NOT_REJECTED = ("undeliverable", "not_answered", "request_withdrawn")
_OPEN = ("REQUESTED", "OFFERED", "ACCEPTED", "AGREED", "VERIFIED")


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the management API; `path` is below /api/v1."""

    method: str
    path: str
    query: Mapping[str, Any] = field(default_factory=dict)
    body: Any = None
    seconds: float = 0.0  # of waiting by design, added to the ordinary time limit


Flow: TypeAlias = Generator[Call, Any, Any]


@dataclass(frozen=True, slots=True)
class Name:
    """`participant/dataset`, as people write it."""

    participant: str
    dataset: str

    def __str__(self) -> str:
        return f"{self.participant}/{self.dataset}"


@dataclass(frozen=True, slots=True)
class CatalogDataset:
    """A dataset in its provider's catalog (`entry`: DCAT, as in the protocol).

    `provider`: its DID, by the data space's register. Providers choose dataset ids freely, so two may use the same:
    provider and id together identify a dataset.
    """

    name: Name
    provider: str
    entry: Mapping[str, Any]

    @property
    def dataset_id(self) -> str:
        return str(self.entry["@id"])

    def is_of(self, row: Mapping[str, Any]) -> bool:
        """Return whether an agreement or negotiation is with this provider and about this dataset."""
        return row.get("dataset") == self.dataset_id and row.get("counterparty") == self.provider


@dataclass(frozen=True, slots=True)
class TransferAccess:
    """A started transfer and its agreement. `provider`: the DID of the owner."""

    name: Name
    dataset_id: str
    agreement_id: str
    transfer_id: str
    purpose: str
    provider: str = ""


def parse_name(text: str) -> Name:
    """Read `north/flights` (or `"north".flights`, as in SQL). Raises: BadInput."""
    participant, slash, dataset = text.strip().partition("/")
    if not slash:
        after = '".' if text.strip().startswith('"') else "."  # a quoted participant may be an identifier with dots
        participant, _, dataset = text.strip().partition(after)
    participant, dataset = participant.strip('" '), dataset.strip('" ')
    if not participant or not dataset:
        raise BadInput(f"expected a dataset as <participant>/<dataset> such as north/flights, got {text!r}")
    return Name(participant, dataset)


def agree(
    name: Name, *, purpose: str, offer: str, seconds: float, now: Callable[[], float], again: bool = False
) -> Generator[Call, Any, TransferAccess]:
    """Return access to a dataset by its name: under an agreement that is in force, or a newly negotiated one.

    1. Find the dataset, and its owner, in the owner's catalog.
    2. Use a started transfer, or an agreement with that owner that it still honours.
    3. Otherwise negotiate (or resume an open negotiation) and wait for the end: under the first offer for this purpose,
       except offers whose existing agreement is for other purposes. After a rejection nothing is requested without
       `again`: a person at the owner would be asked each time.
    4. Start the transfer, and wait until it is started.

    Raises:
        HanseError: Refused, NegotiationPending, ApprovalNeeded, NotFound, ...
    """
    deadline, purpose = now() + seconds, expand_purpose(purpose)
    dataset = yield from find(name)  # 1
    refusal: HanseError | None = None
    tried: list[str] = []
    left = [offer] if offer else _offers(dataset.entry)
    for row in (yield from list_agreements(dataset)):  # 2
        agreement = str(row["id"])
        tried.append(agreement)
        try:
            return (yield from _start_transfer(dataset, agreement, purpose=purpose, deadline=deadline, now=now))
        except Refused as error:  # for another purpose, or ended: try a new agreement
            refusal = error
            if error.code == "purpose_not_agreed":
                left = [other for other in left if other != row.get("offer_id")]
    if refusal is not None and not left:
        raise refusal
    agreement = yield from _negotiate_first(  # 3
        dataset, left or [offer], purpose=purpose, deadline=deadline, now=now, tried=tried, again=again
    )
    return (yield from _start_transfer(dataset, agreement, purpose=purpose, deadline=deadline, now=now))  # 4


def find_access(name: Name) -> Generator[Call, Any, TransferAccess]:
    """Return access to a dataset under the newest agreement in force that has a started transfer. Starts nothing.

    Raises:
        NotFound: there is no such dataset, or no started transfer (`no_access`).
    """
    dataset = yield from find(name)
    for row in (yield from list_agreements(dataset)):
        for access in (yield from _list_started(dataset, str(row["id"]))):
            return access
    raise NotFound(
        f"expected an agreement for {name} with a started transfer, found none; get access with "
        f"space.agree({str(name)!r}, purpose=...)",
        code="no_access",
    )


def _negotiate_first(
    dataset: CatalogDataset, offers: Sequence[str], *, purpose: str, **more: Any
) -> Generator[Call, Any, str]:
    """Return an agreement under the first of these offers that is for this purpose."""
    for number, offer in enumerate(offers, 1):
        try:
            return (yield from negotiate(dataset, offer=offer, purpose=purpose, **more))
        except Refused as error:
            if error.code != "purpose_not_agreed" or number == len(offers):
                raise
    raise AssertionError("unreachable: the last offer returns or raises")


def find(name: Name) -> Generator[Call, Any, CatalogDataset]:
    """Find a dataset in its owner's catalog by its id (`urn:hanse:north:flights` for `north/flights`), or by the last
    part of it.

    Raises:
        NotFound: there is no such dataset; the message lists others.
        BadInput: several ids end in the name; the message lists them.
    """
    query = {"participant": name.participant, "dataset": name.dataset}  # one answer may not list all datasets
    catalog = yield Call("GET", "/catalog", query, seconds=30)
    provider = catalog.get("participantId")
    if not isinstance(provider, str) or not provider:
        raise Broken(f"expected the catalog of {name.participant} with a participantId, got one without")
    datasets = [entry for entry in _as_list(catalog.get("dataset")) if isinstance(entry, dict)]
    fitting = [entry for entry in datasets if name.dataset in _names_of_entry(entry)]
    whole = f"urn:hanse:{name.participant}:{name.dataset}"  # a plain name means this id, if it exists
    exact = [entry for entry in fitting if entry.get("@id") in (name.dataset, whole)]
    if len(ids := {str(entry["@id"]): entry for entry in reversed(exact or fitting)}) > 1:
        raise BadInput(
            f"expected a unique name, got {len(ids)} datasets of {name.participant} called {name.dataset!r}; use an "
            f"id, as {name.participant}/<id>: {', '.join(sorted(ids)[:10])}",
            code="dataset_ambiguous",
        )
    for entry in ids.values():
        return CatalogDataset(name, provider, entry)
    known = ", ".join(sorted(_names_of_entry(entry)[-1] for entry in datasets)[:10]) or "nothing"
    raise NotFound(
        f"{name.participant} has no visible dataset {name.dataset!r}; it shows {known}", code="dataset_unknown"
    )


def list_agreements(dataset: CatalogDataset) -> Generator[Call, Any, list[dict[str, Any]]]:
    """Return the agreements with its provider for a dataset that are in force, newest first."""
    rows = yield Call("GET", "/agreements", _list_query(dataset))
    fitting = [row for row in rows if dataset.is_of(row) and row.get("state", "active") == "active"]
    fitting.sort(key=lambda row: float(row.get("signed_at") or 0), reverse=True)
    return fitting


def negotiate(
    dataset: CatalogDataset,
    *,
    offer: str,
    purpose: str,
    deadline: float,
    now: Callable[[], float],
    tried: Sequence[str] = (),
    again: bool = False,
) -> Generator[Call, Any, str]:
    """Negotiate for a dataset until it is FINALIZED; return the agreement's id. An open negotiation is resumed.

    `tried`: agreements that were found before. Any other was concluded since, by a negotiation that ended meanwhile.
    `again`: begin a new negotiation after a rejection.

    Raises:
        NegotiationFailed: the owner does not agree.
        NegotiationPending: there is no answer in time.
    """
    name, chosen = dataset.name, _choose_offer(dataset, offer)
    row = yield from _last_negotiation(dataset, chosen, purpose)
    if row is None or row.get("state") not in _OPEN:
        for agreement in (yield from list_agreements(dataset)):
            if str(agreement["id"]) not in tried:
                return str(agreement["id"])
        if row is not None and not again:
            _refuse_rejected(name, row)
        body = {"participant": dataset.provider, "dataset": dataset.dataset_id, "offer_id": chosen}
        body |= {"purpose": purpose} if purpose else {}
        row = yield Call("POST", "/negotiations", body=body, seconds=30)
    row = yield from poll_until("/negotiations", row, "FINALIZED", deadline=deadline, now=now)
    if row["state"] == "TERMINATED":
        reason = row.get("reason") or "without giving a reason"
        raise NegotiationFailed(
            f"{name.participant} does not agree: {reason}", code=str(row.get("code") or "terminated")
        )
    if row["state"] != "FINALIZED":
        raise _pending_error(name, row, purpose)
    return str(row["agreement_id"])


def _pending_error(name: Name, row: Mapping[str, Any], purpose: str) -> NegotiationPending:
    """Return an error that names who has to answer an open negotiation, what to do, and its purpose if another was
    requested."""
    about = {"negotiation": row["id"], "state": row["state"]}
    if row.get("waits_for") == "us":
        why = f" ({row['reason']})" if row.get("reason") else ""
        return ApprovalNeeded(
            f"negotiation {row['id']} ({row['state']}) waits for approval here, not at {name.participant}{why}; "
            f"see `hanse pending`, then `hanse approve {row['id']}` or `hanse reject {row['id']}`",
            **about,
        )
    pending = expand_purpose(str(row.get("purpose") or purpose))
    other = purpose not in ("", pending)
    which = f" for {pending}, not for {purpose}".replace(DPV, "dpv:") if other else ""
    more = f", and no other can begin before it ends; `hanse reject {row['id']}` ends it" if other else ""
    return NegotiationPending(
        f"{name.participant} has not answered yet (negotiation {row['id']}{which}, {row['state']}): a person there may "
        f"have to approve; call again later, the negotiation stays open{more}",
        **about,
    )


def _refuse_rejected(name: Name, row: Mapping[str, Any]) -> None:
    """Refuse to repeat a request that was rejected, perhaps after the client stopped waiting.

    The other side chooses the code of an end freely: any code but those of automatic ends counts as a rejection. A
    request that was not delivered (the negotiation has no pid there) was not rejected.

    Raises:
        NegotiationFailed: the last negotiation was rejected.
    """
    taken = row.get("peer_pid") != ""
    if row.get("state") == "TERMINATED" and taken and row.get("code") not in _NOT_REJECTED:
        raise NegotiationFailed(
            f"negotiation {row['id']} with {name.participant} was rejected: "
            f"{row.get('reason') or 'without a reason'}; to request it again use "
            f"`hanse negotiate {name} --again`, or agree(..., again=True)",
            code=str(row.get("code") or "terminated"),
            negotiation=row["id"],
        )


def _last_negotiation(dataset: CatalogDataset, offer: str, purpose: str) -> Generator[Call, Any, dict[str, Any] | None]:
    """Return the open negotiation for an offer, else the newest one for the same purpose."""
    rows = yield Call("GET", "/negotiations", _list_query(dataset))
    mine = [dict(row) for row in rows if dataset.is_of(row) and row.get("offer_id", offer) == offer]
    ended = (row for row in mine if not purpose or expand_purpose(row.get("purpose") or purpose) == purpose)
    return next((row for row in mine if row.get("state") in _OPEN), next(ended, None))


def _list_query(dataset: CatalogDataset) -> dict[str, str]:
    """Return the query that lists only this dataset's agreements and negotiations: other parties cannot lengthen that
    list."""
    return {"role": "consumer", "counterparty": dataset.provider, "dataset": dataset.dataset_id}


def _start_transfer(
    dataset: CatalogDataset, agreement: str, *, purpose: str, deadline: float, now: Callable[[], float]
) -> Generator[Call, Any, TransferAccess]:
    """Return a started transfer under an agreement: an existing one for this purpose, or a new one.

    Raises:
        Refused: the owner ends it.
        NegotiationPending: it has not started in time.
    """
    for started in (yield from _list_started(dataset, agreement)):
        if started.purpose == purpose:
            return started
    body = {"agreement_id": agreement, "format": FORMAT, **({"purpose": purpose} if purpose else {})}
    row = yield Call("POST", "/transfers", body=body, seconds=30)
    row = yield from poll_until("/transfers", row, "STARTED", deadline=deadline, now=now)
    if row["state"] == "STARTED":
        return _access(dataset, agreement, row, purpose)
    if row["state"] in _ENDED:
        reason = row.get("reason") or "without giving a reason"
        raise Refused(
            f"{dataset.name.participant} does not start the transfer: {reason}",
            code=str(row.get("code") or "transfer_refused"),
            agreement=agreement,
        )
    raise NegotiationPending(
        f"{dataset.name.participant} has not started the transfer yet ({row['state']}); call again later"
    )


def _list_started(dataset: CatalogDataset, agreement: str) -> Generator[Call, Any, list[TransferAccess]]:
    """Return the started transfers under an agreement that can be read here; a push cannot."""
    rows = yield Call("GET", "/transfers", {"role": "consumer", "agreement": agreement})
    return [
        _access(dataset, agreement, row, expand_purpose(str(row.get("purpose") or "")))
        for row in rows
        if row.get("agreement_id") == agreement
        and row.get("state") == "STARTED"
        and not str(row.get("format", "")).endswith(_PUSH)
    ]


def _access(dataset: CatalogDataset, agreement: str, transfer: Mapping[str, Any], purpose: str) -> TransferAccess:
    return TransferAccess(dataset.name, dataset.dataset_id, agreement, str(transfer["id"]), purpose, dataset.provider)


def poll_until(
    path: str, row: Mapping[str, Any], goal: str, *, deadline: float, now: Callable[[], float]
) -> Generator[Call, Any, dict[str, Any]]:
    """Long-poll a negotiation or transfer until it reaches `goal`, ends, or time is up; return its last state."""
    state = dict(row)
    while state.get("state") not in (goal, *_ENDED) and (left := deadline - now()) > 0:
        wait = min(left, _WAIT_SECONDS)
        query = {"wait": round(wait, 1), "until": goal}
        state = yield Call("GET", f"{path}/{quote_segment(str(state['id']))}", query, seconds=wait)
    if not state.get("state") or not state.get("id"):
        raise Broken(f"expected a process with id and state from {path}, got another form")
    return state


def expand_purpose(purpose: str) -> str:
    """Return a purpose as it is sent: `dpv:ScientificResearch` in full, anything else unchanged."""
    return DPV + purpose.removeprefix("dpv:") if purpose.startswith("dpv:") else purpose


def quote_segment(text: str) -> str:
    """Return a value as one segment of a path."""
    return quote(text, safe="")


def _choose_offer(dataset: CatalogDataset, wanted: str) -> str:
    """Return the id of the named offer, or of the first one. Raises: NotFound or Refused without an offer."""
    offers = _offers(dataset.entry)
    if wanted and wanted not in offers:
        raise NotFound(
            f"{dataset.name} has no offer {wanted!r} for this participant; it has {', '.join(offers) or 'none'}"
        )
    if not offers:
        raise Refused(
            f"{dataset.name} has no offer for this participant; ask its owner to publish one", code="no_offer"
        )
    return wanted or offers[0]


def _offers(dataset: Mapping[str, Any]) -> list[str]:
    return [str(entry["@id"]) for entry in _as_list(dataset.get("hasPolicy")) if isinstance(entry, dict)]


def _names_of_entry(entry: Mapping[str, Any]) -> list[str]:
    """Return the names of a catalog entry: its id, and the last part of it."""
    identifier = str(entry.get("@id", ""))
    return [identifier, identifier.rpartition("/")[2].rpartition(":")[2]]


def _as_list(value: Any) -> list[Any]:
    """Return a list: JSON-LD writes a single value without brackets."""
    return value if isinstance(value, list) else [] if value is None else [value]
