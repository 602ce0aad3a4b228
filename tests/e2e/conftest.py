"""A running data space: started once for all stories, each owner behind a relay that records what leaves it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from connector.demo import space as processes
from connector.demo import story as told
from connector.demo.data import OWNERS
from connector.demo.show import Show
from connector.demo.space import DemoSpace
from connector.demo.story import Story
from tests.support.ports import free_range
from tests.support.warm import Forked
from tests.support.wire import Relay

SECRET = "Zq7SECRETzq"
SECRETS_FORM = """
offer: urn:hanse:offer:north:secrets
dataset: secrets
who: {membership: active}
may: [query]
for: [dpv:ScientificResearch]
until: 2099-12-31T23:59:59+01:00
rows: country in (DE, FR)
columns: {hide: [diary]}
limits: {min_group: 5 per person}
grid: {group_by: {country: exact, town: exact}, measure: {visits: 0..100}}
decide: auto
"""
ROWS_FORM = """
offer: urn:hanse:offer:north:secret-rows
dataset: secret_rows
who: {membership: active}
may: [query, stream]
for: [dpv:ScientificResearch]
until: 2099-12-31T23:59:59+01:00
rows: country in (DE, FR)
columns: {hide: [diary], hash: [person]}
decide: auto
"""


@dataclass(frozen=True, slots=True)
class Running:
    """The data space after everybody has agreed, and the recorders before the owners."""

    space: DemoSpace
    story: Story
    relays: dict[str, Relay]

    @property
    def forge(self) -> Any:
        return self.story.forge


def secrets_table() -> pa.Table:
    """People with planted secrets: a hidden diary, rows outside the filter, a town of three."""
    rows = [
        {
            "person": f"{SECRET}-person-{n:03d}",
            "country": "DE" if n % 3 else "FR",
            "town": "Lübeck" if n % 2 else "Visby",
            "visits": n % 7,
            "diary": f"{SECRET}-diary-{n:03d}",
        }
        for n in range(60)
    ]
    rows += [
        {"person": f"{SECRET}-few-{n}", "country": "DE", "town": f"{SECRET}-hamlet", "visits": 1, "diary": "x"}
        for n in range(3)
    ]
    rows += [
        {"person": f"{SECRET}-out-{n}", "country": f"{SECRET}-land", "town": "Riga", "visits": 5, "diary": "x"}
        for n in range(20)
    ]
    return pa.Table.from_pylist(rows)


@pytest.fixture(scope="session")
def forking() -> Iterator[None]:
    """The demo's processes start from one that has imported all they need: what they do then is their own."""
    with pytest.MonkeyPatch.context() as patch:
        known = {"DEVNULL": subprocess.DEVNULL, "TimeoutExpired": subprocess.TimeoutExpired}
        patch.setattr(processes, "subprocess", SimpleNamespace(Popen=Forked, **known))
        yield


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory, forking: None) -> Iterator[Running]:
    directory = tmp_path_factory.mktemp("space")
    space = DemoSpace(directory, free_range(10))
    relays = {name: Relay(space.members[name].public_port) for name in OWNERS}
    for name, relay in relays.items():
        space.members[name].front_port = relay.port
    with Path(directory / "story.txt").open("w") as out:
        story = Story(space, Show(console=Console(file=out, width=120)))
        try:
            for chapter in (told.data, told.start, told.join, told.register):
                chapter(story)
            _plant(story)
            for chapter in (told.find, told.agree):
                chapter(story)
            for name in ("secrets", "secret_rows"):
                story.agreed[f"north/{name}"] = story.forge.agree(f"north/{name}", purpose=told.RESEARCH)
            yield Running(space, story, relays)
        finally:
            space.stop()
            for relay in relays.values():
                relay.close()


def _plant(story: Story) -> None:
    path = story.space.directory / "data" / "north" / "secrets.parquet"
    pq.write_table(secrets_table(), path)
    owner = story.api("north")
    for name, form in (("secrets", SECRETS_FORM), ("secret_rows", ROWS_FORM)):
        owner.post("/datasets", {"name": name, "path": str(path)})
        owner.post("/offers", {"form": form})
