"""What a catalogue of many datasets costs: `python -m benchmarks.bench_catalogue [datasets]` (default 20,000).

Taking in, taking in again unchanged, building the index, and searches with nine facets over the app (in process, one
client). Aims: p95 of a search at most 50 ms, at least 500 new and 5,000 unchanged datasets a second. Text is drawn by
Zipf's law from a vocabulary of our own with a fixed seed, so figures compare.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx2

from catalogue.app import CatalogueServices, build, create_app
from catalogue.crawl import ingest
from catalogue.crawl.ingest import Tally
from catalogue.crawl.namespaces import Namespaces
from catalogue.settings import CatalogueSettings
from catalogue.store import CatalogueTransaction
from catalogue.store.tables import CrawlState, EntryRow, Member

_VOCABULARY, _COLUMNS, _PAGE, _OWNERS = 20_000, 5_000, 500, 40
THEMES = ("AGRI", "ECON", "EDUC", "ENER", "ENVI", "GOVE", "HEAL", "JUST", "REGI", "SOCI", "TECH", "TRAN")
QUERIES = {
    "rare word": {"q": "w4000"},
    "common word": {"q": "w1"},
    "two words": {"q": "w5 w30"},
    "two words, two filters": {"q": "w2 w3", "theme": "HEAL", "policy": "purpose-bound"},
    "column": {"column": "c7"},
    "one letter wrong": {"q": "w40x00"},
    "browse, filtered": {"theme": "ENER"},
    "browse all": {},
}


def corpus(count: int) -> list[dict[str, Any]]:
    """Datasets of members n0..n39, always the same ones."""
    draw = random.Random(7)
    words, weights = [f"w{n}" for n in range(_VOCABULARY)], [1 / (n + 1) for n in range(_VOCABULARY)]
    columns, column_weights = [f"c{n}" for n in range(_COLUMNS)], [1 / (n + 5) for n in range(_COLUMNS)]

    def one(number: int) -> dict[str, Any]:
        picked = draw.choices(words, weights, k=71)
        purpose = {"leftOperand": "odrl:purpose", "operator": "eq", "rightOperand": "https://w3id.org/dpv#Marketing"}
        rule = {"action": "use", **({"constraint": [purpose]} if number % 3 else {})}
        dataset_id = f"urn:hanse:n{number % _OWNERS}:d{number}"
        return {
            "@id": dataset_id,
            "dct:title": " ".join(picked[:6]),
            "dct:description": " ".join(picked[6:66]),
            "dcat:keyword": picked[66:],
            "dcat:theme": draw.choice(THEMES),
            "hanse:columns": [{"name": name, "type": "int32"} for name in draw.choices(columns, column_weights, k=14)],
            "hasPolicy": [{"@id": f"{dataset_id}:o", "permission": [rule]}],
            "distribution": [{"format": "HttpData-PULL"}],
        }

    return [one(number) for number in range(count)]


def timed(what: str, count: int, work: Callable[[], object]) -> None:
    started = time.perf_counter()
    work()
    seconds = time.perf_counter() - started
    print(f"{what:34}{seconds:8.1f} s {count / seconds:10,.0f} /s")


def take(parts: CatalogueServices, owners: list[Member], datasets: list[dict[str, Any]]) -> None:
    """As a visit does it, a page at a time."""
    spaces = Namespaces((owner.id, owner.name, owner.url) for owner in owners)
    for number, owner in enumerate(owners):
        mine = datasets[number::_OWNERS]
        for start in range(0, len(mine), _PAGE):
            tally = Tally()
            found = ingest.sift(mine[start : start + _PAGE], owner, spaces=spaces, entry_bytes=2**18, tally=tally)
            known = parts.store.read_now(partial(ingest.known_texts, member=owner, candidates=found))
            page = ingest.parse_candidates(found, known, owner, tally=tally)
            parts.store.write_now(partial(ingest.store_page, member=owner, page=page, seq=0, most=10**7, tally=tally))


def reread(parts: CatalogueServices) -> None:
    """As the first start of a program that reads descriptions otherwise."""
    parts.store.write_now(lambda tx: tx.session.query(EntryRow).update({"reader": 0}))
    while parts.store.write_now(ingest.reread_outdated):
        continue


def join(tx: CatalogueTransaction) -> list[Member]:
    owners = [
        Member(
            id=f"did:web:n{n}", name=f"n{n}", title=f"Member {n}", role="", country="DE", url="http://x",
            status="active", reason="", joined_at=0, changed_at=0,
        )
        for n in range(_OWNERS)
    ]  # fmt: skip
    for owner in owners:
        tx.members.add(owner)
        tx.members.add(CrawlState(member_id=owner.id, state="active", next_at=0, failures=0, problem="", etag=""))
    return owners


async def searches(parts: CatalogueServices, settings: CatalogueSettings) -> None:
    app = create_app(settings, parts=parts)
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://bench") as http:
        for name, params in QUERIES.items():
            taken, total = [], 0
            for _ in range(40):
                started = time.perf_counter()
                total = (await http.get("/api/v1/search", params=params)).json()["total"]
                taken.append((time.perf_counter() - started) * 1e3)
            p95 = statistics.quantiles(taken, n=20)[-1]
            print(f"  {name:28}{total:9,} hits   p50 {statistics.median(taken):6.1f} ms   p95 {p95:6.1f} ms")


def main(count: int) -> None:
    """Build, measure, print."""
    datasets = corpus(count)
    with tempfile.TemporaryDirectory() as folder:
        settings = CatalogueSettings(data_dir=Path(folder))
        parts = build(settings)
        owners = parts.store.write_now(join)
        timed(f"take in {count:,} new datasets", count, lambda: take(parts, owners, datasets))
        timed("the same again, unchanged", count, lambda: take(parts, owners, datasets))
        timed("read all again, as an upgrade may", count, lambda: reread(parts))
        timed("build the index", count, parts.index.rebuild)
        size = sum(file.stat().st_size for file in (settings.data_dir / "index").rglob("*"))
        print(f"{'index':34}{size / 2**20:8.1f} MB {size / count:9.0f} bytes a dataset")
        print("search, 20 results and nine facets:")
        asyncio.run(searches(parts, settings))
        memory = Path("/proc/self/status").read_text().partition("VmRSS:")[2].split()[0]
        print(f"resident, with the corpus: {int(memory) // 1024} MB")
        parts.store.close()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000)
