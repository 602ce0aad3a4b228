"""What we hold as a consumer: tickets of started transfers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from connector.errors import HanseError, NotFound, PeerNonsense, PeerUnreachable, QueryInvalid, Refused
from connector.events import Bus, QueryCoordinated, TransferAdvanced
from connector.net import Reply
from connector.query.federation import Bearer
from connector.query.holdings import Holdings, _json, table_of
from connector.store.agreements import Holding, Readable, Started
from policies.vocabulary import expand

_ADDRESS = {"endpoint": "http://owner/data/v1", "endpointProperties": [{"name": "authorization", "value": "ticket"}]}


_BEARER = Bearer("http://owner/data/v1", "ticket", "did:web:owner")
_COLUMNS = [{"name": "id", "type": "BIGINT"}]


class _Store:
    """Agreements by name, each with a started transfer, but `none` without one, `ended`, and `unknown`."""

    def __init__(self, *held: Holding) -> None:
        self.looks = 0
        self.over = {"ended"}
        self.bus = Bus()
        held = held or tuple(Holding(name, "did:web:owner", f"urn:hanse:owner:{name}") for name in ("one", "two"))
        self.agreements = SimpleNamespace(readable=self._readable, holdings=lambda limit: list(held[:limit]))

    async def read(self, work: Any) -> Any:
        self.looks += 1
        await asyncio.sleep(0)
        return work(self)

    def _readable(self, names: Collection[str]) -> dict[str, Readable]:
        transfers = {name: () if name == "none" else (Started(name, "", "did:web:owner", _ADDRESS),) for name in names}
        ends = {name: 1.0 if name in self.over else None for name in names}
        return {name: Readable(ends[name], "", transfers[name]) for name in names if name != "unknown"}


async def test_which_transfer_is_started_is_looked_up_once_until_something_happens() -> None:
    store = _Store()
    holdings = Holdings(store, None, None)  # type: ignore[arg-type]  # nothing is renewed here
    assert [await holdings.ticket("one") for _ in range(3)] == [_BEARER] * 3
    assert store.looks == 1
    store.bus.deliver(QueryCoordinated(actor="us"))
    assert await holdings.ticket("one")
    assert store.looks == 1
    store.bus.deliver(TransferAdvanced(actor="them"))
    store.over = {"one"}
    with pytest.raises(Refused):
        await holdings.ticket("one")
    assert store.looks == 2


async def test_the_tables_of_a_question_come_with_their_tickets(monkeypatch: pytest.MonkeyPatch) -> None:
    store = _Store()
    holdings = Holdings(store, None, None)  # type: ignore[arg-type]  # nothing is renewed here

    async def silent(_agreement: str, *, fresh: bool) -> NoReturn:
        raise NotFound("nothing is shown here")

    monkeypatch.setattr(holdings, "contract", silent)
    await holdings.tables([("owner", "one")], "")
    assert await holdings.ticket("one")
    assert store.looks == 1
    await holdings.ticket("two")
    assert store.looks == 2


RESEARCH, MARKETING = expand("dpv:ScientificResearch"), expand("dpv:Marketing")


@pytest.mark.parametrize(
    ("started", "purpose", "taken"),
    [
        (["", RESEARCH], "", RESEARCH),  # what came without a purpose does not break what was asked before
        (["", RESEARCH], "dpv:ScientificResearch", RESEARCH),
        ([MARKETING, RESEARCH], RESEARCH, RESEARCH),
        ([MARKETING, "", RESEARCH], "dpv:Advertising", ""),  # it is declared with the request
        ([MARKETING, RESEARCH], "dpv:Advertising", MARKETING),  # its owner says no, and what for
        ([MARKETING, RESEARCH], "", MARKETING),
        ([""], "", ""),
    ],
)
async def test_a_question_is_asked_with_the_ticket_that_is_for_its_purpose(
    started: list[str], purpose: str, taken: str
) -> None:
    store = _Store()
    entry = {"name": "authorization"}
    transfers = tuple(
        Started(one, "", "did:web:owner", {**_ADDRESS, "endpointProperties": [{**entry, "value": f"for {one}"}]}, one)
        for one in started
    )
    store.agreements.readable = lambda names: {"one": Readable(None, "", transfers)}
    holdings = Holdings(store, None, None)  # type: ignore[arg-type]  # nothing is renewed here
    assert (await holdings.ticket("one", purpose)).ticket == f"for {taken}"


async def test_what_was_looked_up_is_not_believed_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    store, now = _Store(), [0.0]
    monkeypatch.setattr("connector.query.holdings.time", SimpleNamespace(monotonic=lambda: now[0], time=time.time))
    holdings = Holdings(store, None, None)  # type: ignore[arg-type]  # nothing is renewed here
    for moment, looks in ((0.0, 1), (0.9, 1), (1.1, 2)):
        now[0] = moment
        assert await holdings.ticket("one")
        assert store.looks == looks


async def test_tickets_that_are_asked_for_at_once_take_one_look_at_the_database() -> None:
    store = _Store()
    holdings = Holdings(store, None, None)  # type: ignore[arg-type]  # nothing is renewed here
    names = ("one", "two", "none", "ended", "one", "unknown")
    found = await asyncio.gather(*map(holdings.ticket, names), return_exceptions=True)
    assert store.looks == 1
    assert [found[0], found[1], found[4]] == [_BEARER] * 3
    assert [type(found[place]) for place in (2, 3, 5)] == [NotFound, Refused, NotFound]


async def test_what_cannot_be_read_is_looked_up_each_time_as_it_may_in_the_next_moment() -> None:
    store = _Store()
    holdings = Holdings(store, None, None)  # type: ignore[arg-type]  # nothing is renewed here
    for name in ("none", "ended"):
        for _ in range(2):
            with pytest.raises((NotFound, Refused)):
                await holdings.ticket(name)
    assert store.looks == 4


async def test_what_changed_while_we_looked_is_not_kept() -> None:
    store = _Store()
    holdings = Holdings(store, None, None)  # type: ignore[arg-type]  # nothing is renewed here
    looking = asyncio.ensure_future(holdings.ticket("one"))
    while not store.looks:
        await asyncio.sleep(0)
    store.bus.deliver(TransferAdvanced(actor="them"))
    await looking
    await holdings.ticket("one")
    assert store.looks == 2


@pytest.mark.parametrize(("name", "kind"), [("none", NotFound), ("ended", Refused), ("unknown", NotFound)])
async def test_what_is_missing_for_a_ticket_is_said(name: str, kind: type[HanseError]) -> None:
    with pytest.raises(kind):
        await Holdings(_Store(), None, None).ticket(name)  # type: ignore[arg-type]


async def test_who_waits_for_a_ticket_hears_that_the_database_does_not_answer() -> None:
    store = _Store()
    store.agreements = None  # type: ignore[assignment]  # any error of the database's
    with pytest.raises(AttributeError):
        await Holdings(store, None, None).ticket("one")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("limits", "rationed"),
    [
        ({"rows": None, "bytes": None, "share": None, "queries": 5}, False),
        ({"rows": 1000}, True),
        ({"bytes": 2**30}, True),
        ({"share": 10.0}, True),
        (None, False),  # of a connector that does not say
    ],
)
def test_a_table_says_whether_what_leaves_is_counted(limits: dict[str, float] | None, rationed: bool) -> None:
    contract: dict[str, Any] = {
        "actions": ["odrl:use"], "purposes": [], "columns": [], "aggregate": None, "joins": None,
        **({} if limits is None else {"limits": limits}),
    }  # fmt: skip
    summary = {"owner": "o", "name": "d", "rows": 10, "contracts": [contract]}
    assert table_of(summary, Holding("a", "did:web:owner", "urn:hanse:o:d"), "").rationed is rationed


QUERY, DISTRIBUTE = "https://w3id.org/hanse/policy/1/query", "http://www.w3.org/ns/odrl/2/distribute"


@pytest.mark.parametrize(
    ("contracts", "shares"),
    [
        ([(QUERY, [], True)], True),
        ([(QUERY, [], False)], False),
        ([(QUERY, [], None)], False),  # of a connector that does not say
        ([(QUERY, [], False), (DISTRIBUTE, [], True)], False),
        ([(QUERY, [], True), (DISTRIBUTE, [], False)], True),
        ([(QUERY, [], True), (QUERY, [], False)], False),  # the owner says which of them serves
        ([(QUERY, ["dpv:Marketing"], False), (QUERY, [], True)], True),  # it serves another purpose
        ([(QUERY, ["dpv:Marketing"], True)], False),
    ],
)
def test_keys_are_those_of_the_contract_that_serves_the_question(
    contracts: list[tuple[str, list[str], bool | None]], shares: bool
) -> None:
    more: dict[str, Any] = {"columns": _COLUMNS, "aggregate": None, "joins": None}
    told = [
        {"actions": [action], "purposes": [expand(one) for one in purposes], "shares_keys": says, **more}
        for action, purposes, says in contracts
    ]
    summary = {"owner": "o", "name": "d", "rows": 10, "shares_keys": True, "contracts": told}
    holding = Holding("a", "did:web:owner", "urn:hanse:o:d")
    assert table_of(summary, holding, "dpv:ScientificResearch").shares_keys is shares


def said(owner: str, name: str) -> dict[str, Any]:
    """What an owner says of an agreement: `owner` and `name` are its own words."""
    contract = {"actions": ["http://www.w3.org/ns/odrl/2/use"], "purposes": [], "columns": _COLUMNS, "aggregate": None,
                "joins": None}  # fmt: skip
    return {"owner": owner, "name": name, "rows": 10, "contracts": [contract]}


CLINIC, RIVAL = "did:web:clinic.example", "did:web:Rival.example"
PATIENTS = Holding("patients", CLINIC, "urn:hanse:clinic:patients"), said("clinic", "patients")
PRICES = Holding("prices", RIVAL, "urn:hanse:clinic:prices"), said("clinic", "prices")
RIVALS = Holding("rivals", RIVAL, "urn:hanse:clinic:patients"), said("clinic", "patients")
VISITS = Holding("visits", "did:web:north.example", "urn:hanse:north:visits"), said("north", "visits")
FOREIGN = Holding("foreign", RIVAL, "https://rival.example/1"), said("clinic", "prices")
DOWN = Holding("down", RIVAL, "urn:hanse:clinic:patients"), PeerUnreachable("down")
Held = tuple[Holding, dict[str, Any] | HanseError]


def holding(monkeypatch: pytest.MonkeyPatch, *held: Held) -> Holdings:
    """Our side of these agreements, the newest first, each with what its owner says."""
    holdings = Holdings(_Store(*(one for one, _ in held)), None, None)  # type: ignore[arg-type]  # nothing is renewed
    answers = {one.id: answer for one, answer in held}

    async def contract(agreement: str, *, fresh: bool) -> dict[str, Any]:
        answer = answers[agreement]
        if isinstance(answer, HanseError):
            raise answer
        return answer

    monkeypatch.setattr(holdings, "contract", contract)
    return holdings


@pytest.mark.parametrize(
    "held",
    [(RIVALS, PATIENTS), (PATIENTS, RIVALS), (PRICES, PATIENTS), (FOREIGN, PATIENTS), (DOWN, PATIENTS)],
    ids=["same", "later", "other", "foreign", "down"],
)
async def test_an_owners_name_that_two_participants_have_is_refused_with_both(
    monkeypatch: pytest.MonkeyPatch, held: tuple[Held, ...]
) -> None:
    asked = [("clinic", "patients")]
    with pytest.raises(QueryInvalid, match=f"{RIVAL} and {CLINIC} call themselves") as caught:
        await holding(monkeypatch, *held).tables(asked, "")
    assert caught.value.code == "owner_ambiguous"
    assert f'"{RIVAL}".patients or "{CLINIC}".patients' in caught.value.message


@pytest.mark.parametrize(("held", "theirs"), [((RIVALS,), set()), ((RIVALS, PATIENTS), {("clinic", "patients")})])
async def test_an_owners_name_is_whose_the_register_says(
    monkeypatch: pytest.MonkeyPatch, held: tuple[Held, ...], theirs: set[tuple[str, str]]
) -> None:
    """Another of that name is not taken for it, where it is alone with us, nor can it take the name from it."""
    holdings = holding(monkeypatch, *held)

    async def names() -> dict[str, str]:
        return {"clinic": CLINIC, "rival": RIVAL}

    monkeypatch.setattr(holdings, "_names", names)
    known = await holdings.tables([("clinic", "patients")], "")
    assert set(known.tables) == {*theirs, ("did:web:rival.example", "patients")}
    assert all((owner == "clinic") == (one.participant == CLINIC) for (owner, _), one in known.tables.items())


async def test_a_shared_name_leaves_the_participants_identifiers(monkeypatch: pytest.MonkeyPatch) -> None:
    holdings = holding(monkeypatch, RIVALS, PRICES, PATIENTS, VISITS)
    known = await holdings.tables([(CLINIC, "patients"), ("did:web:rival.example", "prices"), ("north", "visits")], "")
    assert {name: info.participant for name, info in known.tables.items()} == {
        (CLINIC, "patients"): CLINIC,
        ("did:web:rival.example", "prices"): RIVAL,
        ("north", "visits"): "did:web:north.example",
    }
    everybody = await holdings.tables([("all", "patients")], "")
    assert set(everybody.tables) == {(CLINIC, "patients"), ("did:web:rival.example", "patients")}
    assert all(info.owner == owner for (owner, _), info in {**known.tables, **everybody.tables}.items())


async def test_who_does_not_answer_is_not_hidden_by_another_of_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    known = await holding(monkeypatch, PATIENTS, DOWN).tables([("all", "patients")], "")
    assert set(known.tables) == {(CLINIC, "patients")}
    assert [one.owner for one in known.silent] == ["did:web:rival.example"]


async def test_an_owner_may_be_written_by_its_identifier_and_then_only_so(monkeypatch: pytest.MonkeyPatch) -> None:
    holdings = holding(monkeypatch, PATIENTS, VISITS)
    known = await holdings.tables([(CLINIC, "patients"), ("north", "visits")], "")
    assert set(known.tables) == {(CLINIC, "patients"), ("north", "visits")}
    with pytest.raises(QueryInvalid, match="one of the two"):
        await holdings.tables([(CLINIC, "patients"), ("clinic", "visits")], "")


@pytest.mark.parametrize(
    ("dataset_id", "owner", "name"),
    [
        ("urn:hanse:rival:prices", "clinic", "prices"),
        ("urn:hanse:rival:prices", "rival", "patients"),
        ("https://rival.example/1", "all", "prices"),
        ("https://rival.example/1", CLINIC, "prices"),
        ("https://rival.example/1", "Clinic", "prices"),
    ],
)
async def test_a_name_that_does_not_fit_what_was_agreed_is_nonsense_of_its_provider(
    monkeypatch: pytest.MonkeyPatch, dataset_id: str, owner: str, name: str
) -> None:
    held = Holding("prices", RIVAL, dataset_id), said(owner, name)
    known = await holding(monkeypatch, held).tables([("rival", "prices")], "")
    assert not known.tables
    (silent,) = known.silent
    assert isinstance(silent.error, PeerNonsense)
    assert f'calls its dataset "{owner}"."{name}"' in silent.error.message


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"[" * 60_000], ids=["text", "list", "nested"])
async def test_an_answer_that_is_no_object_is_nonsense_of_its_sender(body: bytes) -> None:
    with pytest.raises(PeerNonsense, match="a JSON object from https://owner"):
        _json(Reply(200, {}, body), "https://owner/contract")
