"""A revocation of which nobody knows yet whether it is kept: what runs here does not wait for that."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from connector.dsp.agreements import AgreementService
from connector.engine.pool.protocol import Relation
from connector.errors import Denied, Unavailable, WrongState
from connector.store import UNKNOWN, Store, Transaction
from connector.usage.grants import Grants
from connector.usage.held_agreement import ReadGrant
from tests.support import gate, provider

PROFILE = {"rows": 10, "columns": [{"name": "id", "type": "BIGINT"}]}


async def reading(store: Store, grants: Grants, number: int) -> ReadGrant:
    """A read that runs under an agreement of its own."""
    policy, relation = gate.agreement(action="odrl:use"), Relation("parquet")
    await store.write(lambda tx: provider.insert(tx, policy, f"{number}", name="n", relation=relation, profile=PROFILE))
    return (await grants.examine(provider.wanted(number)))[0]


def owner(store: Store, grants: Grants) -> AgreementService:
    transfers: Any = SimpleNamespace(terminate_under=lambda *_, **__: [])
    parts: Any = {"sender": SimpleNamespace(hand_over=lambda _: None), "negotiations": None, "transfers": transfers}
    return AgreementService(store=store, stop=grants.stop, **parts)


async def hangs(_: Any) -> Any:
    return await asyncio.Event().wait()


async def unknown(_: Any) -> Any:
    raise Unavailable("the database went away as it kept this", code=UNKNOWN)


@pytest.mark.parametrize("answer", [hangs, unknown], ids=["no answer", "outcome unknown"])
async def test_reads_end_at_once_where_the_database_does_not_say_that_their_agreement_is_revoked(
    sqlite_store: Store, monkeypatch: pytest.MonkeyPatch, answer: Any
) -> None:
    grants = Grants(sqlite_store, facts_of=provider.member)
    read, other = [await reading(sqlite_store, grants, number) for number in (1, 2)]
    monkeypatch.setattr(sqlite_store, "write", answer)
    asked = owner(sqlite_store, grants).revoke(read.agreement_id, reason="misused", by="owner")
    revoking = asyncio.ensure_future(asked)
    async with asyncio.timeout(60):
        await read.stopped.wait()
    assert "misused" in str(read.ended)
    assert not other.lease.revoked
    revoking.cancel()
    await asyncio.gather(revoking, return_exceptions=True)
    grants.forget([read, other])


async def test_what_is_refused_to_be_revoked_ends_no_read(sqlite_store: Store) -> None:
    grants = Grants(sqlite_store, facts_of=provider.member)
    read, other = [await reading(sqlite_store, grants, number) for number in (1, 2)]
    agreements = owner(sqlite_store, grants)
    await agreements.revoke(other.agreement_id, reason="over", by="owner")
    with pytest.raises(WrongState):
        await agreements.revoke(other.agreement_id, reason="over", by="owner")
    assert not read.lease.revoked
    assert str(other.ended) == "over"
    grants.forget([read, other])


async def test_no_read_begins_between_the_end_of_its_agreement_and_that_of_the_grant(store: Store) -> None:
    grants = Grants(store, facts_of=provider.member)
    read = await reading(store, grants, 3)

    def ended(tx: Transaction) -> None:
        row = tx.agreements.of(read.agreement_id, role="provider")
        row.ended_at, row.end_reason = tx.now, "misused"

    await store.write(ended)
    with pytest.raises(Denied, match="revoked by its owner") as caught:
        await grants.begin([read], lambda _: None, read_id="r")
    assert caught.value.code == "revoked"
    counted = await store.read(lambda tx: tx.agreements.get_grant(read.agreement_id))
    assert counted is not None
    assert counted.queries == 0
    grants.forget([read])
