"""An owner that answers other types than were agreed is named, before one of its rows is read."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from connector.dataplane import contract_routes
from connector.engine.pool.pool import Pool
from connector.engine.pool.protocol import Job, Limits
from connector.engine.worker.inspect.answer_types import AnswerTypeCheck
from connector.engine.worker.read import duckdb_engine
from connector.engine.worker.read.batching import plain_schema
from connector.errors import ConnectorError, PeerNonsense, QueryInvalid
from connector.federation import expected_types, owner_client
from connector.federation.expected_types import Shape
from connector.federation.planner.model import Fragment, TableColumn
from connector.federation.planner.planner import plan
from connector.federation.tables import table_of
from connector.store.queries.agreements import ConsumerAgreement
from policies.enforce.gate import GatedDataset, prepare
from policies.errors import QueryRefused
from tests.oracles.federated import daring, federation, question
from tests.support import gate
from tests.support.asking import Asked
from tests.support.federation import Federation
from tests.support.gate import KEY, QUERY, atom, mask

SMALL = 2**17
COUNT = 'SELECT count(*) AS n FROM "all".patients'
WARDS = 'SELECT ward, count(*) AS n FROM "all".patients GROUP BY ward'
ROWS = 'expected numbers of rows in "p0", came NULL or one below zero'
LIES = {  # a question, what an owner makes of its answer, and what is said of that
    "text for numbers": (
        'SELECT DISTINCT age FROM "all".patients ORDER BY age LIMIT 3',
        "CAST(age AS VARCHAR) AS age",
        'expected "age" as int64, came string',
    ),
    "text in no row": (
        'SELECT id, age FROM "all".patients WHERE id > 1000 ORDER BY age',
        "id, CAST(age AS VARCHAR) AS age",
        'expected "age" as int64, came string',
    ),
    "a maximum as text": (
        'SELECT max(age) AS m FROM "all".patients',
        "CAST(p0 AS VARCHAR) AS p0",
        'expected "p0" as int64, came string',
    ),
    "a smaller type": (
        'SELECT sum(age) AS s FROM "all".patients',
        "CAST(p0 AS BIGINT) AS p0",
        'expected "p0" as decimal128(38, 0), came int64',
    ),
    "a sum of no number": (
        'SELECT sum(age) AS s FROM "all".patients',
        "CAST('NaN' AS DOUBLE) AS p0",
        'expected "p0" as decimal128(38, 0), came double',
    ),
    "a count as text": (COUNT, "'12' AS p0", 'expected "p0" as int64, came string'),
    "a count without an end": (COUNT, "CAST('inf' AS DOUBLE) AS p0", 'expected "p0" as int64, came double'),
    "a count of nothing": (WARDS, "ward, CAST(NULL AS BIGINT) AS p0", ROWS),
    "a count below zero": (WARDS, "ward, -p0 AS p0", ROWS),
    "a count of more than there is": (
        'SELECT count(*) AS n FROM "all".patients WHERE age > 0',
        "CAST(9223372036854775807 AS BIGINT) AS p0",
        'expected numbers of rows in "p0", came more than any data has',
    ),
    "nothing for numbers": (
        'SELECT id, age FROM "all".patients',
        "id, NULL AS age",
        'expected "age" as int64, came null',
    ),
    "a join by text": (
        "SELECT count(*) AS n FROM north.patients p JOIN west.patients q ON p.id = q.id",
        "CAST(id AS VARCHAR) AS id",
        'expected "id" as int64, came string',
    ),
}  # fmt: skip


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("small", [SMALL, 0])
@pytest.mark.parametrize("lie", LIES)
async def test_an_answer_of_other_types_is_nonsense_of_its_owner(
    asked: Asked, monkeypatch: pytest.MonkeyPatch, lie: str, small: int
) -> None:
    monkeypatch.setattr(owner_client, "_SMALL", small)
    sql, made, said = LIES[lie]
    asked.owners.break_("west", f"makes:{made}")
    with pytest.raises(PeerNonsense) as caught:
        await asked.rows(sql)
    fragment = caught.value.facts["fragment"]
    assert caught.value.message == f'"west" ({fragment}: patients) when its answer was checked: {said}'
    assert caught.value.status == 502


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("small", [SMALL, 0])
async def test_an_owner_of_other_types_is_left_out_of_a_partial_answer(
    asked: Asked, monkeypatch: pytest.MonkeyPatch, small: int
) -> None:
    monkeypatch.setattr(owner_client, "_SMALL", small)
    asked.owners.break_("west", "makes:CAST('NaN' AS DOUBLE) AS p0")
    rows, end = await asked.rows(COUNT, partial=True)
    assert rows == [{"n": 101}]
    assert [(one["owner"], one["code"]) for one in end["missing"]] == [("west", "peer_nonsense")]


@pytest.mark.asyncio(loop_scope="module")
async def test_keys_of_another_type_narrow_nothing(asked: Asked) -> None:
    asked.owners.publish("north", "many", shares_keys=True, takes_keys=True)
    for owner in ("south", "west"):
        asked.owners.add(owner, "few", "SELECT range * 1000 AS id FROM range(5)", shares_keys=True, takes_keys=True)
    asked.owners.break_("west", "makes:CAST(id AS VARCHAR) AS id")
    with pytest.raises(PeerNonsense, match=r'"west" .*: expected "id" as int64, came string'):
        await asked.rows('SELECT count(*) AS n FROM "all".few f JOIN north.many m ON m.id = f.id')
    assert asked.owners.of["north"].asked == []


@pytest.mark.asyncio(loop_scope="module")
async def test_a_question_that_does_not_fit_the_agreed_types_is_its_askers_mistake(asked: Asked) -> None:
    with pytest.raises(QueryInvalid):
        await asked.rows('SELECT sum(ward) AS s FROM "all".patients')


@pytest.mark.asyncio(loop_scope="module")
async def test_an_answer_to_what_does_not_fit_the_agreed_types_is_nonsense(asked: Asked) -> None:
    info = asked.owners.tables["west", "patients"]
    asked.owners.tables["west", "patients"] = replace(info, columns=(TableColumn("ward", "NO_TYPE"),))
    with pytest.raises(PeerNonsense, match="does not fit the types that were agreed"):
        await asked.rows("SELECT ward FROM west.patients")


QUOTES = [  # with texts in which quotes stand, and the rows that they have
    ("""SELECT id FROM "all".patients WHERE ward <> 'a"b' AND age > 3""", 144),
    ("""SELECT id FROM "all".patients WHERE ward <> 'a''"b' AND age > 3""", 144),
    ("""SELECT ward || '"' AS w, age FROM north.patients WHERE id = 1""", 1),
]


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(("sql", "rows"), QUOTES)
async def test_quotes_in_texts_are_no_names(asked: Asked, sql: str, rows: int) -> None:
    assert len((await asked.rows(sql))[0]) == rows


TOO_LARGE = {
    "deep": "INTEGER" + "[]" * 100,
    "long": "INTEGER[100000]",
    "square": "INTEGER[1000][1000]",
    "wide": f"STRUCT({', '.join(f'a{number} INTEGER' for number in range(60_000))})",
}


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("kind", TOO_LARGE)
async def test_types_that_are_too_large_are_their_owners_alone(asked: Asked, kind: str, partial: bool) -> None:
    typed(asked, "west", "age", TOO_LARGE[kind])
    sql = "SELECT age FROM west.patients UNION ALL SELECT age FROM north.patients"
    with pytest.raises(PeerNonsense, match=r'"west" \(.*the types of its columns are too large, or too deep') as caught:
        await asked.rows(sql, partial=partial)
    assert caught.value.status == 502
    assert len((await asked.rows("SELECT age FROM north.patients"))[0]) == 50


@pytest.mark.asyncio(loop_scope="module")
async def test_the_words_of_an_enum_may_be_many(asked: Asked) -> None:
    typed(asked, "west", "ward", f"ENUM({', '.join(repr(str(number)) for number in range(200_000))})")
    assert len((await asked.rows("SELECT ward FROM west.patients"))[0]) == 52
    assert max(len(str(one)) for one in asked.coordinator._means.shapes._kept) < 1000


def typed(asked: Asked, owner: str, column: str, kind: str) -> None:
    """The type of a column is another by the agreement."""
    info = asked.owners.tables[owner, "patients"]
    columns = tuple(replace(one, type=kind) if one.name == column else one for one in info.columns)
    asked.owners.tables[owner, "patients"] = replace(info, columns=columns)


@pytest.mark.asyncio(loop_scope="module")
async def test_what_is_kept_of_a_shape_counts_its_columns(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = asked.coordinator._means.shapes._kept
    typed(asked, "north", "age", f"STRUCT({', '.join(f'a{number} INTEGER' for number in range(100))})")
    monkeypatch.setattr(expected_types, "_KEPT_CHARACTERS", 1000)
    await asked.rows("SELECT count(age) AS n FROM north.patients")
    assert not kept
    monkeypatch.setattr(expected_types, "_KEPT_CHARACTERS", 2500)
    await asked.rows("SELECT count(age) AS n FROM north.patients")
    assert len(kept) == 1


@pytest.mark.asyncio(loop_scope="module")
async def test_the_shapes_of_a_question_are_asked_for_once(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds: list[str] = []
    real = Pool.ask

    def noting(pool: Pool, job: Job) -> Any:
        kinds.append(job.kind)
        return real(pool, job)

    monkeypatch.setattr(Pool, "ask", noting)
    for _ in range(2):
        assert (await asked.rows(COUNT))[0] == [{"n": 153}]
    assert kinds == ["shapes"]


def judged(kind: pa.DataType, came: pa.Array, *, counts: tuple[int, ...] = (), binned: bool = False) -> str:
    schema = base64.b64encode(pa.schema({"v": kind}).serialize().to_pybytes()).decode()
    judge = AnswerTypeCheck(Shape(schema, counts, binned).to_json(), ["v"])
    batch = pa.record_batch({"v": came})
    judge.check_schema(batch.schema)
    judge.check_batch(batch)
    return judge.wrong


WORDS = pa.array(["a", None])
ALIKE: list[tuple[pa.DataType, pa.Array]] = [
    (pa.string(), WORDS.dictionary_encode()),
    (pa.string(), WORDS.cast(pa.large_string())),
    (pa.string(), WORDS.cast(pa.string_view())),
    (pa.binary(), WORDS.cast(pa.large_binary())),
    (pa.list_(pa.field("l", pa.string())), pa.array([["a"]], pa.large_list(pa.large_string()))),
    (pa.list_(pa.string(), 1), pa.array([["a"]], pa.list_(pa.large_string(), 1))),
    (pa.map_(pa.string(), pa.int32()), pa.array([[("a", 1)]], pa.map_(pa.large_string(), pa.int32()))),
    (pa.struct({"a": pa.string()}), pa.array([{"a": "b"}], pa.struct({"a": pa.large_string()}))),
    (pa.timestamp("us", "UTC"), pa.array([0], pa.timestamp("us", "Europe/Paris"))),
]
UNLIKE: list[tuple[pa.DataType, pa.Array]] = [
    (pa.int64(), pa.array([1], pa.int32())),
    (pa.int64(), pa.array([1.0])),
    (pa.int64(), pa.nulls(1)),
    (pa.string(), pa.array([b"a"])),
    (pa.decimal128(38, 0), pa.array([1], pa.decimal128(38, 1))),
    (pa.timestamp("us"), pa.array([0], pa.timestamp("us", "UTC"))),
    (pa.timestamp("us"), pa.array([0], pa.timestamp("ns"))),
    (pa.list_(pa.int64()), pa.array([[1]], pa.list_(pa.int64(), 1))),
    (pa.list_(pa.int64()), pa.array([["1"]])),
    (pa.struct({"a": pa.int64()}), pa.array([{"b": 1}])),
    (pa.struct({"a": pa.int64()}), pa.DictionaryArray.from_arrays(pa.array([0]), pa.array([{"a": 1}]))),
    (pa.string(), pa.DictionaryArray.from_arrays(pa.array([0]), WORDS.dictionary_encode())),
]


@pytest.mark.parametrize(("kind", "came"), ALIKE)
def test_the_same_type_written_otherwise_is_the_same(kind: pa.DataType, came: pa.Array) -> None:
    assert judged(kind, came) == ""


@pytest.mark.parametrize(("kind", "came"), UNLIKE)
def test_another_type_is_told(kind: pa.DataType, came: pa.Array) -> None:
    assert judged(kind, came) == f'expected "v" as {kind}, came {came.type}'


def test_figures_over_bins_are_numbers_of_any_type_and_counts_are_whole() -> None:
    """An owner's policy says how wide the bins are, and what is counted in too few of them is left out."""
    assert judged(pa.int64(), pa.array([0.5, None]), binned=True) == ""
    assert judged(pa.int64(), pa.array([None, 1]), counts=(0,), binned=True) == ""
    assert "not finite" in judged(pa.int64(), pa.array([0.5, float("nan")]), binned=True)
    assert judged(pa.int64(), pa.array(["1"]), binned=True) == 'expected "v" as int64, came string'
    assert judged(pa.int64(), pa.array([0.5]), counts=(0,), binned=True) == 'expected "v" as int64, came double'


def test_what_the_engine_does_not_read_is_no_number() -> None:
    for came in (pa.array([1], pa.decimal256(60)), pa.array([1.0], pa.float16()), pa.array([True])):
        assert judged(pa.int64(), came, binned=True) == f'expected "v" as int64, came {came.type}'


@pytest.mark.parametrize("most", [[2**63 - 1], [2**47, 2**47, 1]])
def test_one_answer_does_not_count_more_rows_than_there_can_be(most: list[int]) -> None:
    counted = pa.array(most, pa.int64())
    assert judged(pa.int64(), counted, counts=(0,)) == 'expected numbers of rows in "v", came more than any data has'
    assert judged(pa.int64(), counted[1:], counts=(0,)) == ""


POLICIES = {
    "as they are": [],
    "masked": [
        mask("null", "x", "s", "d", "hu", "li"),
        mask("round", "m", "g", argument="1"),
        mask("generalise", "b", "w", "ub", argument="10"),
    ],
}


@pytest.mark.parametrize("policy", POLICIES)
def test_owners_answers_have_the_shape_that_is_said(policy: str) -> None:
    """Random questions over columns of every type, each fragment as an owner's gate makes it."""
    over, compared = federation(), 0
    for seed in range(20):
        for fragment in _fragments(over, seed):
            datasets = [
                GatedDataset((fragment.owner, name), name, gate.contract(gate.schema(**_types(columns)),
                                                                    duties=POLICIES[policy]))
                for name, columns in ((name, over.tables[fragment.owner, name].columns) for name in fragment.datasets)
            ]  # fmt: skip
            try:
                wrong = _wrong(fragment, datasets, over.owners[fragment.owner])
            except QueryRefused:
                continue
            assert wrong == "", fragment.sql
            compared += 1
    over.close()
    assert compared > 40


@pytest.mark.parametrize("method", ["hash", "truncate"])
@pytest.mark.parametrize("told", ["VARCHAR", ""])  # by connectors of before, and by ours
@pytest.mark.parametrize("kind", ["UBIGINT", "DOUBLE", "DECIMAL(4,1)"])
def test_bins_of_masked_values_are_numbers(method: str, told: str, kind: str) -> None:
    bins, measure = atom("ds:dimension/k", "eq", "10"), atom("ds:measure/m", "eq", "0..50")
    terms = [atom("ds:minGroupSize", "gteq", "5"), bins, measure]
    types = {"k": kind, "m": "INTEGER"}
    duty = mask(method, "k", argument="2" if method == "truncate" else None)
    contract = gate.contract(gate.schema(**types), *terms, duties=[duty])
    shown = contract_routes._describe_contract(contract, types, None)
    shown["columns"] = [one | ({"type": told} if told and one["name"] == "k" else {}) for one in shown["columns"]]
    summary = {"owner": "north", "name": "ds", "rows": 10, "contracts": [shown]}
    tables = {("north", "ds"): table_of(summary, ConsumerAgreement("a", "did:web:north", "urn:hanse:north:ds"), "")}
    (fragment,) = plan("SELECT k, count(*) AS n, sum(m) AS s FROM north.ds GROUP BY k", tables).fragments
    with duckdb.connect() as owner:
        owner.execute(f"CREATE TABLE ds AS SELECT CAST(NULL AS {kind}) AS k, CAST(1 AS INTEGER) AS m")
        assert _wrong(fragment, [GatedDataset(("north", "ds"), "ds", contract)], owner) == ""


def _wrong(fragment: Fragment, datasets: Sequence[GatedDataset], owner: duckdb.DuckDBPyConnection) -> str:
    """What is said of the types that an owner's gate and engine give for a fragment."""
    names = itertools.count()
    sql, reads = expected_types._statement(fragment)
    made = prepare(sql, datasets, action=QUERY, purpose=None, mask_key=KEY, token=lambda: f"t{next(names)}")
    with owner.cursor() as cursor:
        came = plain_schema(duckdb_engine.query(cursor, made.sql, made.params).limit(0).to_arrow_reader().schema)
    with duckdb_engine.connect() as con:
        duckdb_engine.fence(con, paths=[], limits=Limits())
        said, others = duckdb_engine.schema_bound(con, expected_types._write_for_owner(sql, reads)[0])
    schema = base64.b64encode(said.serialize().to_pybytes()).decode()
    judge = AnswerTypeCheck(expected_types._shape(fragment, schema, [*others.items()]).to_json(), fragment.outputs)
    judge.check_schema(came)
    return judge.wrong


def _fragments(over: Federation, seed: int) -> Sequence[Fragment]:
    sql = question(seed)
    try:
        over.expected(sql)
        with daring(seed % 3 == 0):
            return plan(sql, over.tables, across_agreements=True).fragments
    except (ConnectorError, duckdb.Error):
        return ()


def _types(columns: Sequence[Any]) -> dict[str, str]:
    return {one.name: one.type for one in columns}
