"""An offer beside what stands on its dataset, at a real owner: refused, told of, or published."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from connector.dsp import agreement_terms
from connector.errors import PolicyInvalid
from connector.offers.offers import Offers
from connector.store import Transaction
from connector.store.tables import Agreement, GrantState, Negotiation
from policies.odrl import reader
from tests.support import data
from tests.support.owner import Owner, owning

pytestmark = pytest.mark.asyncio(loop_scope="module")

DATASET = "urn:hanse:clinic:{}"
GROUPS = "offer: {}\ndataset: {}\nmay: [query]\nlimits: {{min_group: 10}}\ngrid: {{group_by: {{gap: {}}}}}\n{}"
_numbers = itertools.count()
ROWS = "offer: {}\ndataset: {}\nmay: [query]\n"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def owner(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Owner]:
    async with owning(tmp_path_factory.mktemp("owner"), None) as started:
        yield started


@pytest_asyncio.fixture(loop_scope="module")
async def name(owner: Owner) -> str:
    """A dataset of its own for each test."""
    made = f"d{next(_numbers)}"
    path = owner.folder / "data" / f"{made}.parquet"
    await owner.add(made, data.parquet(path, rows=1_000))
    return made


def groups(offer: str, dataset: str, width: str = "2", more: str = "") -> str:
    return GROUPS.format(offer, dataset, width, more)


async def published(owner: Owner, form: str) -> list[str]:
    """Codes of what the owner was told, beside what each of these offers is told of."""
    _, checked = await Offers(owner.store).publish(by="test", form=form)
    usual = {"group_counts_rows", "no_dimension"}
    return [problem.code for problem in checked.problems if problem.code not in usual]


async def refused(owner: Owner, form: str) -> PolicyInvalid:
    with pytest.raises(PolicyInvalid) as error:
        await Offers(owner.store).publish(by="test", form=form)
    return error.value


async def agree(owner: Owner, offer: str, dataset: str, *, consumer: str = "did:web:lab.example", **more: Any) -> str:
    """An agreement on a published offer, as it stands when its negotiation is over."""
    agreement, state, reads = f"urn:{offer}:{consumer}", more.pop("state", "FINALIZED"), more.pop("reads", 0)

    def work(tx: Transaction) -> None:
        row = tx.datasets.get_offer(offer)
        assert row is not None
        policy = agreement_terms.sign(
            agreement_terms.read_published(row), agreement_id=agreement, target=row.dataset_id,
            assigner="did:web:clinic.example", assignee=consumer, now=tx.now,
        )  # fmt: skip
        about = {"role": "provider", "dataset_id": DATASET.format(dataset), "offer_id": offer, "address": ""}
        tx.negotiations.add(
            Negotiation(id=agreement, counterparty=consumer, peer_pid=agreement, state=state, created_at=tx.now,
                        updated_at=tx.now, **about)
        )  # fmt: skip
        signed = Agreement(
            id=agreement, negotiation_id=agreement, provider="clinic", consumer=consumer, signed_at=tx.now,
            policy=reader.write(policy), digest=reader.digest(policy), finalized=state == "FINALIZED",
            **about | {"ended_at": None} | more,
        )  # fmt: skip
        tx.agreements.add(signed)
        tx.agreements.add(GrantState(agreement_id=agreement, revoked_at=more.get("ended_at"), queries=reads))

    await owner.store.write(work)
    return agreement


async def test_other_groups_of_one_dataset_are_refused_until_the_first_is_gone(owner: Owner, name: str) -> None:
    await published(owner, groups(f"o:{name}:1", name))
    assert await published(owner, groups(f"o:{name}:2", name)) == []
    error = await refused(owner, groups(f"o:{name}:3", name, width="4"))
    assert error.code == "grids_differ"
    assert f"offer o:{name}:3 counts" in error.message
    assert f"offer o:{name}:1, offer o:{name}:2" in error.message
    assert [one["code"] for one in error.facts["problems"]] == ["grids_differ"]
    for number in (1, 2):
        await Offers(owner.store).withdraw(f"o:{name}:{number}", by="test")
    assert await published(owner, groups(f"o:{name}:3", name, width="4")) == []


async def test_agreements_outlive_their_offer(owner: Owner, name: str) -> None:
    await published(owner, groups(f"o:{name}:1", name))
    agreement = await agree(owner, f"o:{name}:1", name)
    await Offers(owner.store).withdraw(f"o:{name}:1", by="test")
    error = await refused(owner, groups(f"o:{name}:2", name, width="4"))
    assert (error.code, f"agreement {agreement} with did:web:lab.example" in error.message) == ("grids_differ", True)


STATES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "ended, and read under": ({"ended_at": 1.0, "reads": 1}, ["grids_differed"]),
    "ended unread": ({"ended_at": 1.0}, []),
    "never concluded": ({"state": "TERMINATED"}, []),
    "not final yet": ({"state": "AGREED"}, ["grids_differ"]),
}


@pytest.mark.parametrize("state", STATES)
async def test_what_an_agreement_means_for_a_later_offer(owner: Owner, name: str, state: str) -> None:
    more, expected = STATES[state]
    await published(owner, groups(f"o:{name}:1", name))
    await agree(owner, f"o:{name}:1", name, **more)
    await Offers(owner.store).withdraw(f"o:{name}:1", by="test")
    later = groups(f"o:{name}:2", name, width="4")
    if "grids_differ" in expected:
        assert (await refused(owner, later)).code == "grids_differ"
    else:
        assert await published(owner, later) == expected


async def test_parties_that_cannot_hold_both_are_a_warning(owner: Owner, name: str) -> None:
    await published(owner, groups(f"o:{name}:1", name, more="who: {participant: did:web:lab.example}"))
    other = groups(f"o:{name}:2", name, width="4", more="who: {participant: did:web:clinic.example}")
    assert await published(owner, other) == ["grids_of_two_parties"]


async def test_rows_beside_groups_are_a_warning(owner: Owner, name: str) -> None:
    await published(owner, groups(f"o:{name}:1", name))
    assert await published(owner, ROWS.format(f"o:{name}:2", name)) == ["rows_beside_groups"]


async def test_of_two_that_are_published_at_once_one_is_refused(owner: Owner, name: str) -> None:
    offers = Offers(owner.store)
    forms = [groups(f"o:{name}:{width}", name, width=str(width)) for width in range(2, 8)]
    told = await asyncio.gather(*(offers.publish(by="test", form=form) for form in forms), return_exceptions=True)
    assert sorted(type(one).__name__ for one in told) == ["PolicyInvalid"] * 5 + ["tuple"]
    assert len(await owner.store.read(lambda tx: tx.datasets.list_offers_in_force([DATASET.format(name)]))) == 1


async def test_what_cannot_be_read_any_more_is_told(owner: Owner, name: str) -> None:
    await published(owner, groups(f"o:{name}:1", name))
    agreement = await agree(owner, f"o:{name}:1", name)
    await Offers(owner.store).withdraw(f"o:{name}:1", by="test")

    def spoil(tx: Transaction) -> None:
        row = tx.agreements.of(agreement, role="provider")
        row.policy = {**row.policy, "permissionn": []}

    await owner.store.write(spoil)
    assert await published(owner, groups(f"o:{name}:2", name, width="4")) == ["not_compared"]
