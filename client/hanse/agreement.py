"""What it takes to get at a dataset, step by step, without I/O: each step is a `Call` that somebody else carries out.

A flow is a generator: it yields calls and is sent their JSON answers. A call that fails is thrown into it. So the same
steps serve a blocking and an asynchronous client, and tests need no server.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
DPV = "https://w3id.org/dpv#"  # W3C Data Privacy Vocabulary, where purposes come from
_WAIT_SECONDS = 20.0  # of one long poll
_ENDED = ("TERMINATED", "COMPLETED")
_NOT_REJECTED = ("undeliverable", "not_answered", "request_withdrawn")  # codes of an end by no message, time, ourselves
_OPEN = ("REQUESTED", "OFFERED", "ACCEPTED", "AGREED", "VERIFIED")


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the management API; `path` is below /api/v1."""

    method: str
    path: str
    query: Mapping[str, Any] = field(default_factory=dict)
    body: Any = None
    seconds: float = 0.0  # how long the server may take by design, on top of the ordinary time limit


Flow: TypeAlias = Generator[Call, Any, Any]


@dataclass(frozen=True, slots=True)
class Name:
    """`participant/dataset` as people write it."""

    participant: str
    dataset: str

    def __str__(self) -> str:
        return f"{self.participant}/{self.dataset}"


@dataclass(frozen=True, slots=True)
class CatalogDataset:
    """A dataset in its provider's catalog (`entry`: DCAT, as the protocol sends it).

    `provider`: its DID, by the data space's register. A dataset's id is its provider's own choice, and may be
    another's as well: together they say which dataset it is.
    """

    name: Name
    provider: str
    entry: Mapping[str, Any]

    @property
    def dataset_id(self) -> str:
        return str(self.entry["@id"])

    def is_of(self, row: Mapping[str, Any]) -> bool:
        """Whether an agreement or a negotiation of ours is with this provider and about this dataset."""
        return row.get("dataset") == self.dataset_id and row.get("counterparty") == self.provider


@dataclass(frozen=True, slots=True)
class TransferAccess:
    """A transfer that is started: what may be read, under which agreement. `provider`: the DID of its owner."""

    name: Name
    dataset_id: str
    agreement_id: str
    transfer_id: str
    purpose: str
    provider: str = ""


def parse_name(text: str) -> Name:
    """Read `north/flights` (or `"north".flights`, as SQL writes it)."""
    participant, slash, dataset = text.strip().partition("/")
    if not slash:
        after = '".' if text.strip().startswith('"') else "."  # in quotes stands an identifier, too, which has dots
        participant, _, dataset = text.strip().partition(after)
    participant, dataset = participant.strip('" '), dataset.strip('" ')
    if not participant or not dataset:
        raise BadInput(f"expected a dataset as <participant>/<dataset> such as north/flights, got {text!r}")
    return Name(participant, dataset)


def agree(
    name: Name, *, purpose: str, offer: str, seconds: float, now: Callable[[], float], again: bool = False
) -> Generator[Call, Any, TransferAccess]:
    """From a name to a started transfer: an agreement that holds already, or one that is negotiated now.

    1. find the dataset in its owner's catalog, as we may see it, and who the owner is;
    2. take a started transfer or an agreement of ours with that owner where it still honours it;
    3. otherwise negotiate (or go on with a negotiation with it that is open) and wait for its end, under the first
       offer that is for this purpose; not under one whose agreement we have and which is for others: another one
       would be, too. What somebody said no to is not asked for anew unless it is wished (`again`): he would be asked
       each time, and whoever came back to look would not hear of it;
    4. start the transfer and wait until it is.
    """
    deadline, purpose = now() + seconds, expand_purpose(purpose)
    found = yield from find(name)  # 1
    refusal: HanseError | None = None
    tried: list[str] = []
    left = [offer] if offer else _offers(found.entry)
    for row in (yield from list_agreements(found)):  # 2
        agreement = str(row["id"])
        tried.append(agreement)
        try:
            return (yield from _start_transfer(found, agreement, purpose=purpose, deadline=deadline, now=now))
        except Refused as error:  # another purpose, or ended since: a new agreement may do
            refusal = error
            if error.code == "purpose_not_agreed":
                left = [one for one in left if one != row.get("offer_id")]
    if refusal is not None and not left:
        raise refusal
    agreement = yield from _negotiate_first(  # 3
        found, left or [offer], purpose=purpose, deadline=deadline, now=now, tried=tried, again=again
    )
    return (yield from _start_transfer(found, agreement, purpose=purpose, deadline=deadline, now=now))  # 4


def _negotiate_first(found: CatalogDataset, offers: Sequence[str], *, purpose: str, **more: Any) -> Generator[Call, Any, str]:
    """An agreement under the first of these offers that is for this purpose."""
    for number, offer in enumerate(offers, 1):
        try:
            return (yield from negotiate(found, offer=offer, purpose=purpose, **more))
        except Refused as error:
            if error.code != "purpose_not_agreed" or number == len(offers):
                raise
    raise AssertionError("unreachable: the last offer returns or raises")


def find(name: Name) -> Generator[Call, Any, CatalogDataset]:
    """The dataset in its owner's catalog, by its id (`urn:hanse:north:flights` is that of `north/flights`) or the last
    part of it. NotFound says what there is instead, BadInput which ids end in the same name: which of them stands first
    is nobody's choice of data."""
    asked = {"participant": name.participant, "dataset": name.dataset}  # it may have more than one answer lists
    catalog = yield Call("GET", "/catalog", asked, seconds=30)
    provider = catalog.get("participantId")
    if not isinstance(provider, str) or not provider:
        raise Broken(f"expected the catalog of {name.participant} with a participantId, got one without")
    datasets = [entry for entry in _as_list(catalog.get("dataset")) if isinstance(entry, dict)]
    fitting = [entry for entry in datasets if name.dataset in _names_of_entry(entry)]
    whole = f"urn:hanse:{name.participant}:{name.dataset}"  # whoever asks for the name means this one, if there is one
    exact = [entry for entry in fitting if entry.get("@id") in (name.dataset, whole)]
    if len(ids := {str(entry["@id"]): entry for entry in reversed(exact or fitting)}) > 1:
        raise BadInput(
            f"{name.participant} shows us {len(ids)} datasets called {name.dataset!r}; name the one that is meant by "
            f"its id, as {name.participant}/<id>: {', '.join(sorted(ids)[:10])}",
            code="dataset_ambiguous",
        )
    for entry in ids.values():
        return CatalogDataset(name, provider, entry)
    known = ", ".join(sorted(_names_of_entry(entry)[-1] for entry in datasets)[:10]) or "nothing"
    raise NotFound(f"{name.participant} shows us no dataset {name.dataset!r}; it shows {known}", code="dataset_unknown")


def list_agreements(found: CatalogDataset) -> Generator[Call, Any, list[dict[str, Any]]]:
    """Our agreements with its provider for a dataset that are in force, newest first."""
    rows = yield Call("GET", "/agreements", _list_query(found))
    fitting = [row for row in rows if found.is_of(row) and row.get("state", "active") == "active"]
    fitting.sort(key=lambda row: float(row.get("signed_at") or 0), reverse=True)
    return fitting


def negotiate(
    found: CatalogDataset,
    *,
    offer: str,
    purpose: str,
    deadline: float,
    now: Callable[[], float],
    tried: Sequence[str] = (),
    again: bool = False,
) -> Generator[Call, Any, str]:
    """Negotiate for a dataset until it is FINALIZED: the agreement's id. An open negotiation is gone on with.

    `tried`: agreements that were found before. One that is not among them has come since: the open negotiation whose
    end it is was over before we looked for it. `again`: begin a new one where somebody ended the last.
    """
    name, chosen = found.name, _choose_offer(found, offer)
    row = yield from _last_negotiation(found, chosen, purpose)
    if row is None or row.get("state") not in _OPEN:
        for agreement in (yield from list_agreements(found)):
            if str(agreement["id"]) not in tried:
                return str(agreement["id"])
        if row is not None and not again:
            _refuse_rejected(name, row)
        body = {"participant": found.provider, "dataset": found.dataset_id, "offer_id": chosen}
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
    """Whom an open negotiation waits for, and what to do; and that it is one for another purpose, where it is."""
    about = {"negotiation": row["id"], "state": row["state"]}
    if row.get("waits_for") == "us":
        why = f" ({row['reason']})" if row.get("reason") else ""
        return ApprovalNeeded(
            f"negotiation {row['id']} ({row['state']}) waits for our own approval, not for {name.participant}{why}; "
            f"see `hanse pending`, then `hanse approve {row['id']}` or `hanse reject {row['id']}`",
            **about,
        )
    asked = expand_purpose(str(row.get("purpose") or purpose))
    other = purpose not in ("", asked)
    which = f" for {asked}, not for {purpose}".replace(DPV, "dpv:") if other else ""
    more = f", and nothing is asked for beside it; `hanse reject {row['id']}` ends it" if other else ""
    return NegotiationPending(
        f"{name.participant} has not answered yet (negotiation {row['id']}{which}, {row['state']}): somebody there may "
        f"have to decide; ask again later, the negotiation stays open{more}",
        **about,
    )


def _refuse_rejected(name: Name, row: Mapping[str, Any]) -> None:
    """NegotiationFailed where somebody said no, perhaps after we had stopped waiting for it.

    The other side ends with what code it likes, or none: what it ends is a no, unless it was told by machine. A request
    that it did not take is none: that negotiation has no pid there.
    """
    taken = row.get("peer_pid") != ""
    if row.get("state") == "TERMINATED" and taken and row.get("code") not in _NOT_REJECTED:
        raise NegotiationFailed(
            f"negotiation {row['id']} with {name.participant} was ended by somebody: "
            f"{row.get('reason') or 'without a reason'}; nothing new was asked for: that takes "
            f"`hanse negotiate {name} --again`, or agree(..., again=True)",
            code=str(row.get("code") or "terminated"),
            negotiation=row["id"],
        )


def _last_negotiation(found: CatalogDataset, offer: str, purpose: str) -> Generator[Call, Any, dict[str, Any] | None]:
    """Our negotiation for an offer that is open, else the newest, but for those that were for another purpose."""
    rows = yield Call("GET", "/negotiations", _list_query(found))
    mine = [dict(row) for row in rows if found.is_of(row) and row.get("offer_id", offer) == offer]
    ended = (row for row in mine if not purpose or expand_purpose(row.get("purpose") or purpose) == purpose)
    return next((row for row in mine if row.get("state") in _OPEN), next(ended, None))


def _list_query(found: CatalogDataset) -> dict[str, str]:
    """Which agreements and negotiations to list: nobody else can make that list so long that ours are not in it."""
    return {"role": "consumer", "counterparty": found.provider, "dataset": found.dataset_id}


def _start_transfer(
    found: CatalogDataset, agreement: str, *, purpose: str, deadline: float, now: Callable[[], float]
) -> Generator[Call, Any, TransferAccess]:
    """A started transfer under an agreement: one that is there for this purpose, or a new one."""
    access = TransferAccess(found.name, found.dataset_id, agreement, "", purpose, found.provider)
    rows = yield Call("GET", "/transfers", {"role": "consumer", "agreement": agreement})
    for row in rows:
        same = row.get("agreement_id") == agreement and expand_purpose(str(row.get("purpose") or "")) == purpose
        same = same and not str(row.get("format", "")).endswith(_PUSH)  # nobody reads what the owner sends
        if same and row.get("state") == "STARTED":
            return replace(access, transfer_id=str(row["id"]))
    body = {"agreement_id": agreement, "format": FORMAT, **({"purpose": purpose} if purpose else {})}
    row = yield Call("POST", "/transfers", body=body, seconds=30)
    row = yield from poll_until("/transfers", row, "STARTED", deadline=deadline, now=now)
    if row["state"] == "STARTED":
        return replace(access, transfer_id=str(row["id"]))
    if row["state"] in _ENDED:
        reason = row.get("reason") or "without giving a reason"
        raise Refused(
            f"{found.name.participant} does not start the transfer: {reason}",
            code=str(row.get("code") or "transfer_refused"),
            agreement=agreement,
        )
    raise NegotiationPending(
        f"{found.name.participant} has not started the transfer yet ({row['state']}); ask again later"
    )


def poll_until(
    path: str, row: Mapping[str, Any], goal: str, *, deadline: float, now: Callable[[], float]
) -> Generator[Call, Any, dict[str, Any]]:
    """Long-poll a negotiation or transfer until it is at its goal, has ended, or time is up. Its last state."""
    state = dict(row)
    while state.get("state") not in (goal, *_ENDED) and (left := deadline - now()) > 0:
        wait = min(left, _WAIT_SECONDS)
        query = {"wait": round(wait, 1), "until": goal}
        state = yield Call("GET", f"{path}/{quote_segment(str(state['id']))}", query, seconds=wait)
    if not state.get("state") or not state.get("id"):
        raise Broken(f"expected a process with id and state from {path}, got another form")
    return state


def expand_purpose(purpose: str) -> str:
    """A purpose as the wire carries it: `dpv:ScientificResearch` in full, anything else as it is."""
    return DPV + purpose.removeprefix("dpv:") if purpose.startswith("dpv:") else purpose


def quote_segment(text: str) -> str:
    """A value as one segment of a path."""
    return quote(text, safe="")


def _choose_offer(found: CatalogDataset, wanted: str) -> str:
    """The id of the offer to ask for: the one named, or the only one."""
    offers = _offers(found.entry)
    if wanted and wanted not in offers:
        raise NotFound(f"{found.name} has no offer {wanted!r} for us; it has {', '.join(offers) or 'none'}")
    if not offers:
        raise Refused(
            f"{found.name} has no offer for us: its owner has to publish one that we may take", code="no_offer"
        )
    return wanted or offers[0]


def _offers(dataset: Mapping[str, Any]) -> list[str]:
    return [str(entry["@id"]) for entry in _as_list(dataset.get("hasPolicy")) if isinstance(entry, dict)]


def _names_of_entry(entry: Mapping[str, Any]) -> list[str]:
    """Every name that a catalog entry answers to: its id, and the last part of it."""
    identifier = str(entry.get("@id", ""))
    return [identifier, identifier.rpartition("/")[2].rpartition(":")[2]]


def _as_list(value: Any) -> list[Any]:
    """JSON-LD writes a single value without its brackets."""
    return value if isinstance(value, list) else [] if value is None else [value]
