"""A version is held against all that may have been asked: under agreements that have ended, of a dataset that was
removed, and of what others have stored or signed while it was looked at."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from connector.datasets.registration import Registration
from connector.datasets.registry import Registry
from connector.errors import WrongState
from connector.offers.version_effects import VersionChecks
from connector.services import Profiles
from connector.settings import Settings
from tests.connector.dataplane.http.test_routes import ask
from tests.connector.offers.test_version_effects import CELLS, COSTS, FIRST, view, written
from tests.support import provider
from tests.support.provider import Provider

pytestmark = pytest.mark.asyncio(loop_scope="module")

ONE_MORE = COSTS.format("i", "DOUBLE", "", 101)
TEN_MORE, ELEVEN_MORE = (COSTS.format("i", "DOUBLE", "", rows).replace("777.0", "11.0") for rows in (110, 111))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Provider]:
    async with provider.running(tmp_path_factory.mktemp("asked")) as started:
        yield started


async def registry(running: Provider, folder: Path) -> Registry:
    """Of one of the connectors on the database."""
    found = Registry(
        running.store, Profiles(running.pool, Settings(data_dir=folder)), name=provider.OWNER, roots=[folder],
        converted=folder / "prepared", secret=b"s" * 32,
    )  # fmt: skip
    await found.start()
    found.effects = VersionChecks(running.store, view(running)).effects
    return found


async def registered(owner: Registry, folder: Path, name: str, rows: str) -> None:
    await owner.register(Registration(name=name, path=str(written(folder, "first", rows))), by="test")


async def renewed(owner: Registry, folder: Path, name: str, file: str, rows: str, **more: Any) -> None:
    await owner.renew(name, str(written(folder, file, rows)), by="test", **more)


async def agreed(running: Provider, name: str, *, asked: bool = True) -> str:
    agreement = await running.agree(CELLS, name=name)

    def current(tx: Any) -> None:
        tx.agreements.of(agreement, role="provider").version = tx.datasets.of(name).version

    await running.store.write(current)
    if asked:
        answer = await ask(running, running.ticket(agreement), f'SELECT g, sum(m) AS s FROM "clinic".{name} GROUP BY g')
        assert answer.status_code == 200
        await provider.settled(running)
    return agreement


async def over(running: Provider, agreement: str) -> None:
    def end(tx: Any) -> None:
        tx.agreements.of(agreement, role="provider").ended_at = tx.now

    await running.store.write(end)


@pytest.mark.parametrize("asked", [True, False])
async def test_what_was_asked_under_an_agreement_that_has_ended_is_not_forgotten(
    running: Provider, tmp_path: Path, asked: bool
) -> None:
    owner, name = await registry(running, tmp_path), f"ended_{asked}".lower()
    await registered(owner, tmp_path, name, FIRST)
    await over(running, await agreed(running, name, asked=asked))
    if asked:
        with pytest.raises(WrongState, match=r"in 1 groups .* a count or sum differs") as refused:
            await renewed(owner, tmp_path, name, "second", ONE_MORE)
        assert refused.value.code == "version_unfit"
        await renewed(owner, tmp_path, name, "enough", TEN_MORE)
    else:
        await renewed(owner, tmp_path, name, "second", ONE_MORE)


async def test_a_dataset_that_was_removed_is_held_against_what_was_asked_of_it(
    running: Provider, tmp_path: Path
) -> None:
    owner, name = await registry(running, tmp_path), "removed"
    await registered(owner, tmp_path, name, FIRST)
    await over(running, await agreed(running, name))
    await owner.remove(name, by="test")
    again = Registration(name=name, path=str(written(tmp_path, "second", ONE_MORE)))
    with pytest.raises(WrongState, match=r"in 1 groups .* a count or sum differs"):
        await owner.register(again, by="test")
    _, version = await owner.register(again, by="test", accept=True)
    assert [one["code"] for one in version.source["changes"]["affected"]] == ["difference_too_small"]
    await owner.remove(name, by="test")
    (tmp_path / "first.parquet").unlink()
    (tmp_path / "second.parquet").unlink()
    with pytest.raises(WrongState, match="cannot be held against the version before"):
        await owner.register(Registration(name=name, path=str(written(tmp_path, "third", TEN_MORE))), by="test")


async def test_who_was_overtaken_by_another_version_is_told_to_ask_again(running: Provider, tmp_path: Path) -> None:
    one, two = await registry(running, tmp_path), await registry(running, tmp_path)
    await registered(one, tmp_path, "raced", FIRST)
    await agreed(running, "raced")
    looked = two.effects

    async def slowly(*of: Any) -> list[dict[str, str]]:
        found = await looked(*of)
        await renewed(one, tmp_path, "raced", "ten", TEN_MORE)
        return found

    two.effects = slowly
    with pytest.raises(WrongState, match="ask again") as refused:
        await renewed(two, tmp_path, "raced", "eleven", ELEVEN_MORE)
    assert refused.value.code == "version_overtaken"
    two.effects = looked
    with pytest.raises(WrongState, match=r"in 1 groups .* a count or sum differs"):
        await renewed(two, tmp_path, "raced", "eleven", ELEVEN_MORE)


async def test_what_is_agreed_while_a_version_is_looked_at_is_not_passed_over(
    running: Provider, tmp_path: Path
) -> None:
    owner, name = await registry(running, tmp_path), "meanwhile"
    await registered(owner, tmp_path, name, FIRST)
    looked = owner.effects

    async def slowly(*of: Any) -> list[dict[str, str]]:
        found = await looked(*of)
        await agreed(running, name)
        return found

    owner.effects = slowly
    with pytest.raises(WrongState, match="ask again"):
        await renewed(owner, tmp_path, name, "second", ONE_MORE)
