"""What we hold as a consumer: tickets of started transfers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from connector.errors import HanseError, NotFound, PeerNonsense, Refused
from connector.events import Bus, QueryCoordinated, TransferAdvanced
from connector.net import Reply
from connector.query.holdings import Holdings, _json, table_of
from connector.store.agreements import Holding, Readable, Started

_ADDRESS = {"endpoint": "http://owner/data/v1", "endpointProperties": [{"name": "authorization", "value": "ticket"}]}


class _Store:
    """Agreements by name, each with a started transfer, but `none` without one, `ended`, and `unknown`."""

    def __init__(self) -> None:
        self.looks = 0
        self.over = {"ended"}
        self.bus = Bus()
        held = [Holding(name, "did:web:owner", f"urn:hanse:owner:{name}") for name in ("one", "two")]
        self.agreements = SimpleNamespace(readable=self._readable, holdings=lambda limit: held[:limit])

    async def read(self, work: Any) -> Any:
        self.looks += 1
        await asyncio.sleep(0)
        return work(self)

    def _readable(self, names: Collection[str]) -> dict[str, Readable]:
        transfers = {name: None if name == "none" else Started(name, "", "", _ADDRESS) for name in names}
        ends = {name: 1.0 if name in self.over else None for name in names}
        return {name: Readable(ends[name], "", transfers[name]) for name in names if name != "unknown"}


async def test_which_transfer_is_started_is_looked_up_once_until_something_happens() -> None:
    store = _Store()
    holdings = Holdings(store, None, None)  # type: ignore[arg-type]  # nothing is renewed here
    assert [await holdings.ticket("one") for _ in range(3)] == [("http://owner/data/v1", "ticket")] * 3
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
    assert [found[0], found[1], found[4]] == [("http://owner/data/v1", "ticket")] * 3
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


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"[" * 60_000], ids=["text", "list", "nested"])
async def test_an_answer_that_is_no_object_is_nonsense_of_its_sender(body: bytes) -> None:
    with pytest.raises(PeerNonsense, match="a JSON object from https://owner"):
        _json(Reply(200, {}, body), "https://owner/contract")
