"""Visits of connectors: what is taken, what is kept, and for how long."""

from __future__ import annotations

from tests.catalogue.conftest import Catalogue
from tests.catalogue.provider import Provider, dataset


async def test_datasets_of_a_member_are_found_by_word_and_by_column(catalogue: Catalogue, north: Provider) -> None:
    columns = [{"name": "age", "type": "INTEGER"}, {"name": "tumor_size", "type": "DOUBLE"}]
    described = {"dct:title": "Breast cancer", "https://w3id.org/hanse/columns": columns}
    north.datasets = [dataset("urn:hanse:north:patients", **described), dataset("urn:hanse:north:weather")]
    await catalogue.admit(north, "north")
    run = await catalogue.crawl("north")
    assert (run["outcome"], run["datasets"], run["new"]) == ("complete", 2, 2)
    assert await catalogue.ids("cancer") == ["urn:hanse:north:patients"]
    assert await catalogue.ids(column="tumor_size") == ["urn:hanse:north:patients"]
    assert await catalogue.ids("size") == ["urn:hanse:north:patients"]
