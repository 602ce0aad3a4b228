"""Hostile questions over the federated path and hand-made fragments: refused, or an answer without a secret."""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import httpx2
import pyarrow as pa
import pytest
import pytest_asyncio
import yaml

from connector.engine.worker.read.duckdb_engine import others_than_arrow
from connector.errors import ConnectorError
from connector.federation.planner.model import TableColumn, TableInfo, TypeCasts
from connector.federation.planner.planner import merge_sql, plan
from policies.errors import PolicyError
from tests.oracles.secrets import SECRETS
from tests.support import clinic, data, gate, provider
from tests.support.gate import atom
from tests.support.provider import Provider

CASES = Path(__file__).parents[2] / "cases"
OWNED = re.compile(r"""(\bfrom\s+|\bjoin\s+|,\s*)(people|visits|outcomes)\b(?!\s*\()""", re.IGNORECASE)


def statements(name: str) -> list[str]:
    """A suite's statements, with the owner that a question over many owners names."""
    found = []
    for group in yaml.safe_load((CASES / "sql" / name).read_text()):
        for entry in group["sql"]:
            found.append(OWNED.sub(r'\1"clinic".\2', entry if isinstance(entry, str) else entry["sql"]))
    return found


@dataclass(frozen=True, slots=True)
class Federation:
    """The clinic's gate, what it shares of its tables, and the database of whoever asks."""

    bench: gate.Bench
    tables: Mapping[tuple[str, str], TableInfo]
    merging: duckdb.DuckDBPyConnection

    def answer(self, sql: str) -> Sequence[tuple[Any, ...]]:
        """The federated answer: fragments through the owner's gate, the residual over what they gave."""
        made = plan(sql, self.tables, across_agreements=True)
        with self.merging.cursor() as here:
            others: dict[str, TypeCasts] = {}
            for fragment in made.fragments:
                assert not fragment.keys  # all at one owner
                prepared = self.bench.prepare(fragment.sql)
                self.bench.recheck(prepared)
                found = self.bench.connection.execute(prepared.sql, prepared.params)
                others[fragment.id] = [*others_than_arrow([one[1] for one in found.description or ()]).items()]
                here.register(fragment.id, found.to_arrow_reader(10_000).read_all())
            return here.sql(merge_sql(made, others)).fetchall()

    def told(self, sql: str) -> Sequence[tuple[Any, ...]] | str:
        """What the asker sees: the answer, or the refusal. An engine's error never leaves an owner but as a code."""
        try:
            return self.answer(sql)
        except (ConnectorError, PolicyError) as refused:
            return f"refused: {refused}"
        except duckdb.Error:
            return "refused: engine"


@pytest.fixture(scope="module")
def federation() -> Iterator[Federation]:
    bench = clinic.bench()
    with bench.connection, duckdb.connect(":memory:", config={"threads": 1}) as merging:
        yield Federation(bench, tables(bench), merging)


def tables(bench: gate.Bench) -> dict[tuple[str, str], TableInfo]:
    found = {}
    for dataset in bench.datasets:
        types = {one.name: one.type for one in gate.schema_of(bench.connection, dataset.relation).columns}
        columns = tuple(TableColumn(column, types[column]) for column in dataset.contract.columns)
        owner, name = dataset.name
        found[owner, name] = TableInfo(owner, name, columns, agreement=dataset.id, rows=600, takes_keys=True,
                                       shares_keys=True)  # fmt: skip
    return found


def test_the_escape_suite_is_refused_over_many_owners_too(federation: Federation) -> None:
    leaks, answered = [], []
    for sql in [*statements("escape.yaml"), *statements("escape_inference.yaml")]:
        told = str(federation.told(sql))
        if any(secret in told for secret in SECRETS if secret not in sql):
            leaks.append((sql, told[:200]))
        if not told.startswith("refused"):
            answered.append(sql)
    assert leaks == []
    assert len(answered) <= 20, answered  # what was written anew without its odd part, and passed the owner's gate


def test_harmless_statements_are_answered_alike_and_without_a_secret(federation: Federation) -> None:
    differing, answered = [], 0
    for sql in statements("harmless.yaml"):
        told = federation.told(sql)
        assert not any(secret in str(told) for secret in SECRETS if secret not in sql), sql
        if isinstance(told, str):
            continue
        answered += 1
        if sorted(map(repr, told)) != sorted(map(repr, federation.bench.ask(sql))):
            differing.append(sql)
    assert answered > 50
    assert differing == []


# Hand-made fragments, at a real owner: its own server, gate and workers.

FRAGMENTS = yaml.safe_load((CASES / "fragments.yaml").read_text())


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def owner(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Provider]:
    async with provider.running(tmp_path_factory.mktemp("provider"), rows=5000) as started:
        yield started


HIDDEN = gate.agreement(atom("ds:columnDeny", "isNoneOf", "x"), action="odrl:use")
AGGREGATE = gate.agreement(
    atom("ds:minGroupSize", "gteq", "3000"), atom("ds:dimension/gap", "eq", "exact"), action="odrl:use"
)


def envelope(case: Mapping[str, Any]) -> dict[str, Any]:
    keys = [{"name": name, "columns": ["k"], "arrow": _arrow(values)} for name, values in case.get("keys", {}).items()]
    return {"fq": 1, "sql": case["sql"], "keys": keys, **case.get("more", {})}


def _arrow(values: list[int]) -> str:
    return base64.b64encode(data.stream(pa.table({"k": values}))).decode()


async def send(owner: Provider, ticket: str, body: Mapping[str, Any]) -> httpx2.Response:
    async with httpx2.AsyncClient(base_url=owner.url, headers={"authorization": f"Bearer {ticket}"}) as http:
        return await http.post("/data/v1/query", json=body, timeout=60)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("case", FRAGMENTS, ids=[case["what"] for case in FRAGMENTS])
async def test_a_fragment_made_by_hand_gets_no_further_than_one_that_was_planned(
    owner: Provider, case: Mapping[str, Any]
) -> None:
    agreement = await owner.agree(AGGREGATE if case.get("aggregate") else HIDDEN)
    refused = await send(owner, owner.ticket(agreement), envelope(case))
    assert refused.status_code in (400, 403, 404, 409), refused.content[:200]
    assert refused.json()["code"] in case["codes"], refused.json()


@pytest.mark.asyncio(loop_scope="module")
async def test_a_replayed_envelope_gives_what_it_gave_is_recorded_again_and_ends_with_the_agreement(
    owner: Provider,
) -> None:
    agreement = await owner.agree(HIDDEN)
    body = envelope({"sql": 'SELECT count(*) AS n FROM "clinic".numbers'}) | {"query_id": "q.f0.1", "fragment": "f0"}
    before = len(owner.of_kind("ReadStarted"))
    answers = [await send(owner, owner.ticket(agreement), body) for _ in range(2)]
    assert [one.status_code for one in answers] == [200, 200]
    assert len(owner.of_kind("ReadStarted")) == before + 2
    thief = owner.ticket(agreement, consumer="did:web:thief.example")
    assert (await send(owner, thief, body)).status_code in (401, 403, 404)
    await owner.store.write(lambda tx: setattr(tx.agreements.get_grant(agreement), "revoked_at", tx.now))
    ended = await send(owner, owner.ticket(agreement), body)
    assert (ended.status_code, ended.json()["code"]) == (403, "agreement_ended")
