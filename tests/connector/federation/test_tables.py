"""What we hold as a consumer: tickets of started transfers."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Collection
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from connector.errors import (
    Absent,
    ConnectorError,
    Denied,
    Limited,
    PeerNonsense,
    PeerRefused,
    PeerUnreachable,
    QueryInvalid,
)
from connector.events import Bus, QueryCoordinated, TransferAdvanced
from connector.federation.planner.model import Bearer
from connector.federation.tables import Holdings, _is_gone, _read_json, address_of, table_of
from connector.infra.net.http_client import Reply
from connector.store.queries.agreements import ConsumerAgreement, ReadableAgreement, StartedTransfer
from policies.contracts.contract import Dimension
from policies.vocabulary import expand

_TICKET = [{"name": "authorization", "value": "ticket"}]
_ADDRESS = {"endpoint": "http://owner/data/v1", "endpointProperties": _TICKET}

_BEARER = Bearer("http://owner/data/v1", "ticket", "did:web:owner")
_COLUMNS = [{"name": "id", "type": "BIGINT"}]


class _Store:
    """Agreements by name, each with a started transfer, but `none` without one, `ended`, and `unknown`."""

    def __init__(self, *held: ConsumerAgreement) -> None:
        self.looks = 0
        self.over = {"ended"}
        self.bus = Bus()
        held = held or tuple(
            ConsumerAgreement(name, "did:web:owner", f"urn:hanse:owner:{name}") for name in ("one", "two")
        )
        self.agreements = SimpleNamespace(
            read_transfers_by_agreement=self._readable, list_readable=lambda limit: list(held[:limit])
        )

    async def read(self, work: Any) -> Any:
        self.looks += 1
        await asyncio.sleep(0)
        return work(self)

    def _readable(self, names: Collection[str]) -> dict[str, ReadableAgreement]:
        transfers = {
            name: () if name == "none" else (StartedTransfer(name, "", "did:web:owner", _ADDRESS),) for name in names
        }
        ends = {name: 1.0 if name in self.over else None for name in names}
        return {name: ReadableAgreement(ends[name], "", transfers[name]) for name in names if name != "unknown"}


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
    with pytest.raises(Denied):
        await holdings.ticket("one")
    assert store.looks == 2


async def test_the_tables_of_a_question_come_with_their_tickets(monkeypatch: pytest.MonkeyPatch) -> None:
    store = _Store()
    holdings = Holdings(store, None, None)  # type: ignore[arg-type]  # nothing is renewed here

    async def silent(_agreement: str, *, fresh: bool) -> NoReturn:
        raise Absent("nothing is shown here")

    monkeypatch.setattr(holdings, "contract", silent)
    await holdings.tables([("owner", "one")], "")
    assert await holdings.ticket("one")
    assert store.looks == 1
    await holdings.ticket("two")
    assert store.looks == 2


@pytest.mark.parametrize(
    ("refusal", "told"),
    [
        (Denied("a rule cannot be kept", code="contract_undecided", rule="/permission/0"), ["contract_undecided"]),
        (Denied("a word is not understood", code="agreement_unreadable"), ["agreement_unreadable"]),
        (Denied("it was revoked", code="agreement_ended"), []),
    ],
)
async def test_an_owner_that_cannot_keep_an_agreement_is_told_with_its_refusal(
    refusal: Denied, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    holdings = Holdings(_Store(), None, None)  # type: ignore[arg-type]  # nothing is renewed here

    async def refused(_agreement: str, *, fresh: bool) -> NoReturn:
        raise refusal

    monkeypatch.setattr(holdings, "contract", refused)
    known = await holdings.tables([("owner", "one")], "")
    assert [one.error.code for one in known.silent if isinstance(one.error, Denied)] == told


RESEARCH, MARKETING = expand("dpv:ScientificResearch"), expand("dpv:Marketing")


@pytest.mark.parametrize(
    ("started", "purpose", "taken"),
    [
        (["", RESEARCH], "", RESEARCH),  # what came without a purpose does not break what was asked before
        (["", RESEARCH], "dpv:ScientificResearch", RESEARCH),
        ([MARKETING, RESEARCH], RESEARCH, RESEARCH),
        (["dpv:Marketing", "dpv:ScientificResearch"], RESEARCH, "dpv:ScientificResearch"),  # as it was typed
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
        StartedTransfer(
            one, "", "did:web:owner", {**_ADDRESS, "endpointProperties": [{**entry, "value": f"for {one}"}]}, one
        )
        for one in started
    )
    store.agreements.read_transfers_by_agreement = lambda names: {"one": ReadableAgreement(None, "", transfers)}
    holdings = Holdings(store, None, None)  # type: ignore[arg-type]  # nothing is renewed here
    assert (await holdings.ticket("one", purpose)).ticket == f"for {taken}"


async def test_what_was_looked_up_is_not_believed_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    store, now = _Store(), [0.0]
    monkeypatch.setattr("connector.federation.tables.time", SimpleNamespace(monotonic=lambda: now[0], time=time.time))
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
    assert [type(found[place]) for place in (2, 3, 5)] == [Absent, Denied, Absent]


async def test_what_cannot_be_read_is_looked_up_each_time_as_it_may_in_the_next_moment() -> None:
    store = _Store()
    holdings = Holdings(store, None, None)  # type: ignore[arg-type]  # nothing is renewed here
    for name in ("none", "ended"):
        for _ in range(2):
            with pytest.raises((Absent, Denied)):
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


@pytest.mark.parametrize(("name", "kind"), [("none", Absent), ("ended", Denied), ("unknown", Absent)])
async def test_what_is_missing_for_a_ticket_is_said(name: str, kind: type[ConnectorError]) -> None:
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
    assert table_of(summary, ConsumerAgreement("a", "did:web:owner", "urn:hanse:o:d"), "").rationed is rationed


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
    holding = ConsumerAgreement("a", "did:web:owner", "urn:hanse:o:d")
    assert table_of(summary, holding, "dpv:ScientificResearch").shares_keys is shares


def said(owner: str, name: str) -> dict[str, Any]:
    """What an owner says of an agreement: `owner` and `name` are its own words."""
    contract = {"actions": ["http://www.w3.org/ns/odrl/2/use"], "purposes": [], "columns": _COLUMNS, "aggregate": None,
                "joins": None}  # fmt: skip
    return {"owner": owner, "name": name, "rows": 10, "contracts": [contract]}


def slightly(off: str, value: Any) -> dict[str, Any]:
    """A summary of which one member is another: `rows`, or `contracts.0.limits`."""
    summary = said("clinic", "patients")
    *path, last = off.split(".")
    inner: Any = summary
    for name in path:
        inner = inner[int(name) if name.isdecimal() else name]
    inner[last] = value
    return summary


def grid(**more: Any) -> dict[str, Any]:
    return {"dimensions": [], "measures": [], "min_group": 5, "entity": None, **more}


def test_a_table_says_which_of_its_dimensions_are_in_bins() -> None:
    summary = said("o", "d")
    axes = [{"column": "age", "width": 10}, {"column": "ward", "width": None}]
    summary["contracts"][0]["aggregate"] = grid(dimensions=axes)
    known = table_of(summary, ConsumerAgreement("a", "did:web:owner", "urn:hanse:o:d"), "").grid
    assert known is not None
    assert known.bins == (Dimension("age", 10.0),)


OFF: list[tuple[str, Any]] = [
    ("rows", float("inf")), ("rows", "many"), ("rows", -1), ("rows", 10**400), ("owner", ["clinic"]), ("version", None),
    ("contracts", []), ("contracts", {"a": 1}), ("contracts", "abc"), ("contracts.0", None), ("takes_keys", [1]),
    *((f"contracts.0.{name}", value)
      for name in ("limits", "actions", "purposes", "columns", "joins", "aggregate") for value in ("abc", [1], True)),
    ("contracts.0.limits", None), ("contracts.0.actions", [{}]),
    ("contracts.0.columns", [{"name": "*", "type": "INT"}]), ("contracts.0.columns", [{"name": "id", "type": {}}]),
    ("contracts.0.columns", [{"name": "id", "type": "\ud800"}]),
    ("contracts.0.columns", [{"name": "\udfff", "type": "INT"}]),
    ("contracts.0.aggregate", grid(min_group=float("inf"))), ("contracts.0.aggregate", grid(entity={})),
    ("contracts.0.aggregate", grid(measures=[{"column": 7}])),
    ("contracts.0.aggregate", grid(dimensions=[{"column": "id", "width": "wide"}])),
    ("contracts.0.aggregate", grid(epsilon=float("nan"))),
]  # fmt: skip


@pytest.mark.parametrize(("off", "value"), OFF, ids=[f"{off}={str(value)[:20]}" for off, value in OFF])
async def test_a_summary_that_is_slightly_off_is_nonsense_of_its_owner_and_touches_nobody_else(
    monkeypatch: pytest.MonkeyPatch, off: str, value: Any
) -> None:
    summary = slightly(off, value) if off != "contracts.0" else {**said("clinic", "patients"), "contracts": [value]}
    held = (ConsumerAgreement("odd", RIVAL, "https://rival.example/1"), summary), VISITS
    known = await holding(monkeypatch, *held).tables([("north", "visits")], "")
    assert set(known.tables) == {("north", "visits")}
    (silent,) = known.silent
    assert isinstance(silent.error, PeerNonsense)
    assert RIVAL in silent.error.message


async def test_what_nobody_foresaw_of_one_agreement_is_the_silence_of_its_owner(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    holdings = holding(monkeypatch, PATIENTS, VISITS)
    contract = holdings.contract

    async def broken(agreement: str, *, fresh: bool) -> Any:
        if agreement != "visits":
            raise AttributeError("of ours")
        return await contract(agreement, fresh=fresh)

    monkeypatch.setattr(holdings, "contract", broken)
    for names in ([("all", "visits"), ("clinic", "patients")], None):
        known = await holdings.tables(names, "")
        assert set(known.tables) == {("north", "visits")}
        assert [(one.participant, one.error.code) for one in known.silent] == [(CLINIC, "internal")]


@pytest.mark.parametrize(
    "body",
    [rb'{"rows":1e400}', rb'{"rows":NaN}', rb'{"name":"\ud800"}', rb'{"name":"a\u0000"}', b'{"name":"\xed\xa0\x80"}'],
)
async def test_json_that_nobody_can_store_or_send_on_is_nonsense_of_its_sender(body: bytes) -> None:
    with pytest.raises(PeerNonsense, match="a JSON object from https://owner"):
        _read_json(Reply(200, {}, body), "https://owner/contract")


@pytest.mark.parametrize(
    ("status", "code", "kind"), [(401, "unauthenticated", PeerRefused), (429, "streams_of_consumer", Limited)]
)
async def test_who_is_not_believed_or_told_to_wait_still_has_an_agreement(
    status: int, code: str, kind: type[ConnectorError]
) -> None:
    """Where an owner's clock was off, its partners were told that they had no agreement, and to negotiate one."""
    reply = Reply(status, {}, json.dumps({"detail": "the token is from the future", "code": code}).encode())
    with pytest.raises(kind, match="from the future") as refused:
        _read_json(reply, "https://owner/contract")
    assert (refused.value.code, _is_gone(refused.value)) == (code, False)


async def test_a_refusal_stands_whatever_signs_it_is_written_in() -> None:
    with pytest.raises(Denied, match=r"^no\\ud800$") as refused:
        _read_json(Reply(403, {}, rb'{"detail":"no\ud800","code":"ended"}'), "https://owner/contract")
    assert refused.value.code == "ended"


@pytest.mark.parametrize(
    ("name", "value"),
    [("expires", 10**400), ("expires", "nan"), ("authorization", "a\r\nb: c"), ("authorization", "\ud800"),
     ("authorization", "tück")],
)  # fmt: skip
def test_a_data_address_that_nobody_can_read_from_is_none(name: str, value: Any) -> None:
    odd = {"endpoint": "http://owner", "endpointProperties": [*_TICKET, {"name": name, "value": value}]}
    with pytest.raises(PeerNonsense, match="expected a data address"):
        address_of(odd)


def test_a_sign_for_a_backslash_before_u0000_is_no_nul() -> None:
    assert Reply(200, {}, rb'{"name":"\\u0000"}').json() == {"name": r"\u0000"}


CLINIC, RIVAL = "did:web:clinic.example", "did:web:Rival.example"
PATIENTS = ConsumerAgreement("patients", CLINIC, "urn:hanse:clinic:patients"), said("clinic", "patients")
PRICES = ConsumerAgreement("prices", RIVAL, "urn:hanse:clinic:prices"), said("clinic", "prices")
RIVALS = ConsumerAgreement("rivals", RIVAL, "urn:hanse:clinic:patients"), said("clinic", "patients")
VISITS = ConsumerAgreement("visits", "did:web:north.example", "urn:hanse:north:visits"), said("north", "visits")
FOREIGN = ConsumerAgreement("foreign", RIVAL, "https://rival.example/1"), said("clinic", "prices")
DOWN = ConsumerAgreement("down", RIVAL, "urn:hanse:clinic:patients"), PeerUnreachable("down")
Held = tuple[ConsumerAgreement, dict[str, Any] | ConnectorError]


def holding(monkeypatch: pytest.MonkeyPatch, *held: Held) -> Holdings:
    """Our side of these agreements, the newest first, each with what its owner says."""
    holdings = Holdings(_Store(*(one for one, _ in held)), None, None)  # type: ignore[arg-type]  # nothing is renewed
    answers = {one.id: answer for one, answer in held}

    async def contract(agreement: str, *, fresh: bool) -> dict[str, Any]:
        answer = answers[agreement]
        if isinstance(answer, ConnectorError):
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
    with pytest.raises(QueryInvalid, match=f"is the name of {RIVAL} and {CLINIC}") as caught:
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
    held = ConsumerAgreement("prices", RIVAL, dataset_id), said(owner, name)
    known = await holding(monkeypatch, held).tables([("rival", "prices")], "")
    assert not known.tables
    (silent,) = known.silent
    assert isinstance(silent.error, PeerNonsense)
    assert f'now names its dataset "{owner}"."{name}"' in silent.error.message


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"[" * 60_000], ids=["text", "list", "nested"])
async def test_an_answer_that_is_no_object_is_nonsense_of_its_sender(body: bytes) -> None:
    with pytest.raises(PeerNonsense, match="a JSON object from https://owner"):
        _read_json(Reply(200, {}, body), "https://owner/contract")
