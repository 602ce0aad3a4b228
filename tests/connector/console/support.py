"""A console over a real store with nothing in it, or with one of everything; and a reader of its pages."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import httpx2

from connector.app import management_app
from connector.events import RequestRefused
from connector.management.sign_on.auth import COOKIE
from connector.services import Services, build
from connector.settings import Settings
from connector.store import Transaction
from connector.store.tables import Agreement, DatasetVersion, GrantState, Negotiation, RegisteredDataset, Transfer
from tests.support import migrated

SECRET = "lab-token-that-no-page-shows"
FORM = """offer: small-groups
dataset: patients
who: {membership: active}
may: [query]
for: [dpv:ScientificResearch]
answers: aggregate
limits: {min_group: 5 per patient, queries_per_day: 20}
grid:
  group_by: {region: exact}
  measure: {age: 0..120}
decide: manual
"""
ALICE = "did:web:alice.example"
NEGOTIATION, AGREEMENT, TRANSFER = "urn:uuid:n-1", "urn:uuid:a-1", "urn:uuid:t-1"
OFFER = "urn:hanse:offer:small-groups"
READ = {
    "actor": ALICE, "dataset": "urn:hanse:north:patients", "agreement": AGREEMENT, "transfer": TRANSFER,
    "purpose": "https://w3id.org/dpv#ScientificResearch", "transport": "flight",
}  # fmt: skip
_SCHEMA = [("patient", "BIGINT"), ("age", "BIGINT"), ("region", "VARCHAR"), ("note", "VARCHAR")]
_VOID = {"meta", "link", "input", "br", "hr", "img", "rect", "circle", "path", "option"}


@dataclass
class Console:
    """The pages, as somebody with a token opens them."""

    parts: Services
    http: httpx2.AsyncClient
    tokens: dict[str, str] = field(default_factory=dict)

    async def token(self, *scopes: str) -> str:
        """A token with these scopes, made once."""
        name = "-".join(scopes)
        if not self.tokens:
            await self.parts.tokens.first(lambda text: self.tokens.update(admin=text))
        if name not in self.tokens:
            self.tokens[name] = await self.parts.tokens.issue(name, list(scopes), by="admin")
        return self.tokens[name]

    async def get(self, path: str, *scopes: str) -> httpx2.Response:
        token = await self.token(*(scopes or ("admin",)))
        return await self.http.get(path, headers={"cookie": f"{COOKIE}={token}"})

    async def post(
        self, path: str, data: Mapping[str, str | list[str]], *scopes: str, **headers: str
    ) -> httpx2.Response:
        token = await self.token(*(scopes or ("admin",)))
        said = {name.replace("_", "-"): value for name, value in headers.items()} or {"sec-fetch-site": "same-origin"}
        return await self.http.post(path, data=data, headers={"cookie": f"{COOKIE}={token}", **said})


def console(folder: Path, **settings: object) -> Console:
    """A console with an empty database. `parts.store` must be closed."""
    given = Settings.model_validate(
        {
            "name": "north",
            "title": "North Clinic",
            "data_dir": folder / "north",
            "source_roots": (folder,),
            "static_tokens": {SECRET: "did:web:lab.example"},
            **settings,
        }
    )
    given.data_dir.mkdir(parents=True)
    migrated.sqlite(given.data_dir / "connector.db")
    parts = build(given)
    transport = httpx2.ASGITransport(management_app(parts))
    return Console(parts, httpx2.AsyncClient(transport=transport, base_url="http://console.test"))


@asynccontextmanager
async def opened(folder: Path, **settings: object) -> AsyncIterator[Console]:
    """The same, closed at the end of the block."""
    made = console(folder, **settings)
    try:
        yield made
    finally:
        await made.parts.net.close()
        made.parts.store.close()


async def fill(parts: Services) -> None:
    """One of everything, as an owner and as a user."""
    await parts.store.write(_dataset)
    offer, _ = await parts.offers.publish(by="test", form=FORM)
    wire = dict(offer.policy)

    def rest(tx: Transaction) -> None:
        now = time.time()
        about = {"counterparty": ALICE, "address": "https://alice.example/dsp", "created_at": now, "updated_at": now}
        tx.negotiations.add(
            Negotiation(
                id=NEGOTIATION, role="provider", peer_pid="urn:uuid:p-1", state="REQUESTED", offer=wire,
                dataset_id="urn:hanse:north:patients", offer_id=OFFER, decide="manual", **about,
            )
        )  # fmt: skip
        for role in ("provider", "consumer"):
            tx.agreements.add(
                Agreement(
                    id=AGREEMENT, role=role, negotiation_id=NEGOTIATION, dataset_id="urn:hanse:north:patients",
                    offer_id=OFFER, provider=parts.participant, consumer=ALICE, address="https://alice.example/dsp",
                    policy={**wire, "@type": "Agreement", "assigner": parts.participant, "assignee": ALICE,
                            "target": "urn:hanse:north:patients", "timestamp": "2026-01-01T00:00:00Z"},
                    digest="sha256:00", signed_at=now, finalized=True, ended_at=None,
                )
            )  # fmt: skip
        tx.agreements.add(
            GrantState(agreement_id=AGREEMENT, revoked_at=None, queries=7, queries_today=3, rows=12, bytes=99)
        )
        tx.transfers.add(
            Transfer(
                id=TRANSFER, role="provider", peer_pid="urn:uuid:p-2", state="STARTED", agreement_id=AGREEMENT,
                format="HttpData-PULL", data_address={"authorization": SECRET}, **about,
            )
        )  # fmt: skip
        tx.reads.add("r-1", instance="i", body=READ | {"since": now})
        refused = {"actor": ALICE, "outcome": "refused", "code": "refused", "dataset": "urn:hanse:north:patients"}
        tx.publish(RequestRefused(**refused, reason="<b>rows</b> are not given"))

    await parts.store.write(rest)
    await parts.sequencer.settle()


def _dataset(tx: Transaction) -> None:
    version = "sha256:" + "ab" * 32
    figures = {"null_share": 0.25, "distinct": 3, "min": "1", "max": "9", "bytes": 80}
    about = {"title": "Patients <all>", "description": "Who came.", "keywords": ["health"], "theme": "HEAL"}
    tx.datasets.add(
        RegisteredDataset(id="urn:hanse:north:patients", name="patients", license="CC0", version=version,
                created_at=tx.now, **about)
    )  # fmt: skip
    source = {
        "kind": "parquet",
        "files": [{"path": "/data/p.parquet"}],
        "report": {
            "left_out": [{"file": 2, "line": 7, "column": None, "problem": "too many columns"}],
            "left_out_count": 21,
            "note": "<some> rows only",
            "columns": [
                {"name": "patient", "type": "BIGINT", "was": "integer"},
                {"name": "age", "type": "BIGINT"},
                {"name": "region", "type": "VARCHAR", "note": "text, as <some> of it is"},
            ],
            "files": [{"path": f"/data/p/{name}.csv", "name": f"{name}.csv"} for name in "ab"],
        },
        "asked_path": "/data/p",
        "asked_kind": "csv",
    }
    tx.datasets.add(
        DatasetVersion(
            dataset_id="urn:hanse:north:patients", digest=version, source=source, created_at=tx.now,
            schema=[{"name": name, "type": kind} for name, kind in _SCHEMA],
            profile={"rows": 10, "bytes": 400, "columns": {name: figures for name, _ in _SCHEMA[:-1]}},
        )
    )  # fmt: skip


class Reader(HTMLParser):
    """Reads a page strictly: every element is closed, in order, and nothing inline could run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.problems: list[str] = []
        self.ids: set[str] = set()
        self.headings = 0
        self.feed(text)
        self.close()
        self.problems += [f"<{tag}> is not closed" for tag in self.open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag not in _VOID:
            self.open.append(tag)
        self.headings += tag == "h1"
        if tag == "script" and not found.get("src"):
            self.problems.append("an inline script")
        self.problems += [f"an inline {name}" for name in found if name.startswith("on") or name == "style"]
        if (name := found.get("id")) is not None:
            self.problems += [f"two elements with the id {name}"] if name in self.ids else []
            self.ids.add(name)
        if tag in ("input", "select", "textarea") and found.get("type") == "text" and not _labelled(self.open, found):
            self.problems.append(f"a field without a label: {found.get('name')}")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag in _VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.problems.append(f"</{tag}> closes nothing")


def _labelled(around: list[str], found: dict[str, str | None]) -> bool:
    return "label" in around or bool(found.get("aria-label"))
