"""What it takes to get at a dataset, step by step, without I/O: each step is a `Call` that somebody else carries out.

A flow is a generator: it yields calls and is sent their JSON answers. A call that fails is thrown into it. So the same
steps serve a blocking and an asynchronous client, and tests need no server.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from urllib.parse import quote

from hanse.errors import BadInput, Broken, HanseError, NegotiationFailed, NegotiationPending, NotFound, Refused

FORMAT = "HttpData-PULL"
DPV = "https://w3id.org/dpv#"  # W3C Data Privacy Vocabulary, where purposes come from
_WAIT_SECONDS = 20.0  # of one long poll
_ENDED = ("TERMINATED", "COMPLETED")
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
class Access:
    """A transfer that is started: what may be read, under which agreement."""

    name: Name
    dataset_id: str
    agreement_id: str
    transfer_id: str
    purpose: str


def name_of(text: str) -> Name:
    """Read `north/flights` (or `"north".flights`, as SQL writes it)."""
    participant, slash, dataset = text.strip().partition("/")
    if not slash:
        participant, _, dataset = text.strip().partition(".")
    participant, dataset = participant.strip('" '), dataset.strip('" ')
    if not participant or not dataset:
        raise BadInput(f"expected a dataset as <participant>/<dataset> such as north/flights, came {text!r}")
    return Name(participant, dataset)


def agree(
    name: Name, *, purpose: str, offer: str, seconds: float, now: Callable[[], float]
) -> Generator[Call, Any, Access]:
    """From a name to a started transfer: an agreement that holds already, or one that is negotiated now.

    1. find the dataset in its owner's catalog, as we may see it;
    2. take a started transfer or an agreement of ours where the owner still honours it;
    3. otherwise negotiate (or go on with a negotiation that is open) and wait for its end, under the first offer that
       is for this purpose; not under one whose agreement we have and which is for others: another one would be, too;
    4. start the transfer and wait until it is.
    """
    deadline, purpose = now() + seconds, iri(purpose)
    dataset = yield from find(name)  # 1
    dataset_id = str(dataset["@id"])
    refusal: HanseError | None = None
    tried: list[str] = []
    left = [offer] if offer else _offers(dataset)
    for row in (yield from held(dataset_id)):  # 2
        agreement = str(row["id"])
        tried.append(agreement)
        try:
            return (yield from _started(name, dataset_id, agreement, purpose=purpose, deadline=deadline, now=now))
        except Refused as error:  # another purpose, or ended since: a new agreement may do
            refusal = error
            if error.code == "purpose_not_agreed":
                left = [one for one in left if one != row.get("offer_id")]
    if refusal is not None and not left:
        raise refusal
    agreement = yield from _agreed(  # 3
        name, dataset, left or [offer], purpose=purpose, deadline=deadline, now=now, tried=tried
    )
    return (yield from _started(name, dataset_id, agreement, purpose=purpose, deadline=deadline, now=now))  # 4


def _agreed(
    name: Name, dataset: Mapping[str, Any], offers: Sequence[str], *, purpose: str, **more: Any
) -> Generator[Call, Any, str]:
    """An agreement under the first of these offers that is for this purpose."""
    for number, offer in enumerate(offers, 1):
        try:
            return (yield from negotiate(name, dataset, offer=offer, purpose=purpose, **more))
        except Refused as error:
            if error.code != "purpose_not_agreed" or number == len(offers):
                raise
    raise AssertionError("unreachable: the last offer returns or raises")


def find(name: Name) -> Generator[Call, Any, dict[str, Any]]:
    """The dataset in its owner's catalog (DCAT, as the protocol sends it). NotFound says what there is instead."""
    catalog = yield Call("GET", "/catalog", {"participant": name.participant}, seconds=30)
    datasets = [entry for entry in _list(catalog.get("dataset")) if isinstance(entry, dict)]
    for entry in datasets:
        if name.dataset in _names(entry):
            return entry
    known = ", ".join(sorted(_names(entry)[-1] for entry in datasets)[:10]) or "nothing"
    raise NotFound(f"{name.participant} shows us no dataset {name.dataset!r}; it shows {known}", code="dataset_unknown")


def held(dataset_id: str) -> Generator[Call, Any, list[dict[str, Any]]]:
    """Our agreements for a dataset that are in force, newest first."""
    rows = yield Call("GET", "/agreements", {"role": "consumer", "dataset": dataset_id})
    fitting = [row for row in rows if row.get("dataset") == dataset_id and row.get("state", "active") == "active"]
    fitting.sort(key=lambda row: float(row.get("signed_at") or 0), reverse=True)
    return fitting


def negotiate(
    name: Name,
    dataset: Mapping[str, Any],
    *,
    offer: str,
    purpose: str,
    deadline: float,
    now: Callable[[], float],
    tried: Sequence[str] = (),
) -> Generator[Call, Any, str]:
    """Negotiate for a dataset until it is FINALIZED: the agreement's id. An open negotiation is gone on with.

    `tried`: agreements that were found before. One that is not among them has come since: the open negotiation whose
    end it is was over before we looked for it.
    """
    chosen = _offer(name, dataset, offer)
    row = yield from _open_negotiation(str(dataset["@id"]), chosen)
    if row is None:
        for agreement in (yield from held(str(dataset["@id"]))):
            if str(agreement["id"]) not in tried:
                return str(agreement["id"])
        body = {"participant": name.participant, "dataset": dataset["@id"], "offer_id": chosen}
        body |= {"purpose": purpose} if purpose else {}
        row = yield Call("POST", "/negotiations", body=body, seconds=30)
    row = yield from awaited("/negotiations", row, "FINALIZED", deadline=deadline, now=now)
    if row["state"] == "TERMINATED":
        reason = row.get("reason") or "without giving a reason"
        raise NegotiationFailed(
            f"{name.participant} does not agree: {reason}", code=str(row.get("code") or "terminated")
        )
    if row["state"] != "FINALIZED":
        raise NegotiationPending(
            f"{name.participant} has not answered yet (negotiation {row['id']}, {row['state']}): somebody there may "
            "have to decide; ask again later, the negotiation stays open",
            negotiation=row["id"],
            state=row["state"],
        )
    return str(row["agreement_id"])


def _open_negotiation(dataset_id: str, offer: str) -> Generator[Call, Any, dict[str, Any] | None]:
    rows = yield Call("GET", "/negotiations", {"role": "consumer"})
    for row in rows:
        mine = row.get("dataset") == dataset_id and row.get("offer_id", offer) == offer
        if mine and row.get("state") in _OPEN:
            return dict(row)
    return None


def _started(
    name: Name, dataset_id: str, agreement: str, *, purpose: str, deadline: float, now: Callable[[], float]
) -> Generator[Call, Any, Access]:
    """A started transfer under an agreement: one that is there for this purpose, or a new one."""
    rows = yield Call("GET", "/transfers", {"role": "consumer", "agreement": agreement})
    for row in rows:
        same = row.get("agreement_id") == agreement and row.get("purpose", "") == purpose
        if same and row.get("state") == "STARTED":
            return Access(name, dataset_id, agreement, str(row["id"]), purpose)
    body = {"agreement_id": agreement, "format": FORMAT, **({"purpose": purpose} if purpose else {})}
    row = yield Call("POST", "/transfers", body=body, seconds=30)
    row = yield from awaited("/transfers", row, "STARTED", deadline=deadline, now=now)
    if row["state"] == "STARTED":
        return Access(name, dataset_id, agreement, str(row["id"]), purpose)
    if row["state"] in _ENDED:
        reason = row.get("reason") or "without giving a reason"
        raise Refused(
            f"{name.participant} does not start the transfer: {reason}",
            code=str(row.get("code") or "transfer_refused"),
            agreement=agreement,
        )
    raise NegotiationPending(f"{name.participant} has not started the transfer yet ({row['state']}); ask again later")


def awaited(
    path: str, row: Mapping[str, Any], goal: str, *, deadline: float, now: Callable[[], float]
) -> Generator[Call, Any, dict[str, Any]]:
    """Long-poll a negotiation or transfer until it is at its goal, has ended, or time is up. Its last state."""
    state = dict(row)
    while state.get("state") not in (goal, *_ENDED) and (left := deadline - now()) > 0:
        wait = min(left, _WAIT_SECONDS)
        query = {"wait": round(wait, 1), "until": goal}
        state = yield Call("GET", f"{path}/{segment(str(state['id']))}", query, seconds=wait)
    if not state.get("state") or not state.get("id"):
        raise Broken(f"expected a process with id and state from {path}, came another form")
    return state


def iri(purpose: str) -> str:
    """A purpose as the wire carries it: `dpv:ScientificResearch` in full, anything else as it is."""
    return DPV + purpose.removeprefix("dpv:") if purpose.startswith("dpv:") else purpose


def segment(text: str) -> str:
    """A value as one segment of a path."""
    return quote(text, safe="")


def _offer(name: Name, dataset: Mapping[str, Any], wanted: str) -> str:
    """The id of the offer to ask for: the one named, or the only one."""
    offers = _offers(dataset)
    if wanted and wanted not in offers:
        raise NotFound(f"{name} has no offer {wanted!r} for us; it has {', '.join(offers) or 'none'}")
    if not offers:
        raise Refused(f"{name} has no offer for us: its owner has to publish one that we may take", code="no_offer")
    return wanted or offers[0]


def _offers(dataset: Mapping[str, Any]) -> list[str]:
    return [str(entry["@id"]) for entry in _list(dataset.get("hasPolicy")) if isinstance(entry, dict)]


def _names(entry: Mapping[str, Any]) -> list[str]:
    """Every name that a catalog entry answers to: its id, and the last part of it."""
    identifier = str(entry.get("@id", ""))
    return [identifier, identifier.rpartition("/")[2].rpartition(":")[2]]


def _list(value: Any) -> list[Any]:
    """JSON-LD writes a single value without its brackets."""
    return value if isinstance(value, list) else [] if value is None else [value]
