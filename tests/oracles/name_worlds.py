"""Random questions about names through the gate and the planner, against plain DuckDB on what the policies show.

Answers must be the same. And what the owner's log says was read must be all of it: with other values in every column
that it does not name, and in every hidden one, each answer stays what it was.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa
from sqlglot import exp, parse_one

from connector.errors import ConnectorError
from policies.errors import QueryRefused
from tests.oracles import grammar
from tests.oracles.names import FIELDS, NUMBER, TABLES, Names
from tests.oracles.outcome import Outcome
from tests.support import gate
from tests.support.federation import Federation, difference
from tests.support.gate import atom, mask

_ROWS = 7
_SECONDS = 5.0  # for a question, which takes some milliseconds
_VALUES = 5
_JUDGED = "k"  # rows are judged by it where they are hidden: it decides, whoever reads it
_SHUT = ((atom("ds:columnDeny", "isNoneOf", "t"), "t"), (atom(f"ds:row/{_JUDGED}", "isNoneOf", "3"), _JUDGED))


@dataclass(frozen=True, slots=True)
class Ended:
    """How one question ended: a word to count, and what is wrong with it, if anything."""

    word: str
    wrong: str = ""


class Shown:
    """Tables in a database, each as a view, so that their columns may have other values for a while."""

    def __init__(self, database: duckdb.DuckDBPyConnection, views: dict[str, str]) -> None:
        self.database = database
        self.views = views
        self.lasting = ""  # a column that keeps its values
        for name, view in views.items():
            _put(database, f"main.both_{name}", _table(name))
            self._show(name, view, TABLES[name])

    def _show(self, name: str, view: str, kept: Any) -> None:
        listed = ", ".join(one if one in kept else f"{one}__other AS {one}" for one in TABLES[name])
        self.database.execute(f"CREATE OR REPLACE VIEW {view} AS SELECT {listed} FROM main.both_{name}")

    def unrecorded(self, read: Mapping[str, Collection[str]], run: Callable[[], str]) -> str:
        """What `run` says with other values in all columns but those that are `read`."""
        changed = {name: [*read.get(name, ()), self.lasting] for name in TABLES}
        changed = {name: kept for name, kept in changed.items() if not set(TABLES[name]) <= set(kept)}
        try:
            for name, kept in changed.items():
                self._show(name, self.views[name], kept)
            return run()
        finally:
            for name in changed:
                self._show(name, self.views[name], TABLES[name])


class World:
    """Tables that are asked through a policy, and in a database (`plain`) that has what it shows."""

    written: Mapping[str, Sequence[str]]
    by_owner = ""  # of a refusal by the gate, where others may refuse too
    shown: Shown
    plain: duckdb.DuckDBPyConnection
    read: Mapping[str, Collection[str]]  # what is recorded of the last answer

    def close(self) -> None:
        raise NotImplementedError

    def answer(self, sql: str) -> list[Any]:
        raise NotImplementedError

    def ask(self, sql: str) -> Ended:
        """How a question ended."""
        if (expected := _plainly(self.plain, sql)) is None:
            return Ended("takes too long")
        try:
            got = _engine(lambda: self.answer(sql))
        except (QueryRefused, ConnectorError) as refused:
            by = self.by_owner if isinstance(refused, QueryRefused) else ""
            return Ended("no question" if isinstance(expected, duckdb.Error) else f"refused{by} ({refused.code})")
        except Exception as error:  # noqa: BLE001  it says to no reader what to write instead
            return Ended("stumbles", f"{type(error).__name__}: {error}")
        if (ended := _compared(sql, got, expected)).word != "equal":
            return ended
        found = self.shown.unrecorded(self.read, lambda: _told(self.plain, sql, expected))
        return Ended("read unrecorded", f"recorded is {self.read}; {found}") if found else ended


class Gate(World):
    """One owner's tables under policies that hide nothing, or (`shut`) columns, rows and values: asked through the
    gate, and in a database that has what the policies show."""

    written: Mapping[str, Sequence[str]] = {name: (name, name, f"o.{name}", f'"O".{name}') for name in TABLES}

    def __init__(self, *, shut: bool = False) -> None:
        self.database = duckdb.connect(config={"threads": 1})
        self.shown = Shown(self.database, {name: f"main.src_{name}" for name in TABLES})
        self.bench = gate.Bench(self.database)
        self.plain = self.database.cursor()
        self.database.execute("CREATE SCHEMA o")
        for name, columns in TABLES.items():
            terms = [one for one, column in _SHUT if shut and columns.get(column) == NUMBER]
            masked = {"b"} & columns.keys() if shut else set()
            schema = gate.schema_of(self.database, f"src_{name}")
            contract = gate.contract(schema, *terms, duties=[mask("null", one) for one in masked])
            self.bench.add("o", name, f"src_{name}", contract)
            listed = ", ".join(f"NULL::INTEGER AS {one}" if one in masked else one for one in contract.columns)
            where = f"WHERE {_JUDGED} IS NOT NULL AND {_JUDGED} <> 3" if _SHUT[1][0] in terms else ""
            self.database.execute(f"CREATE VIEW o.{name} AS SELECT {listed} FROM main.src_{name} {where}")
        self.shown.lasting = _JUDGED if shut else ""
        self.plain.execute("SET search_path = 'o'")

    def close(self) -> None:
        self.plain.close()
        self.database.close()

    def answer(self, sql: str) -> list[Any]:
        prepared = self.bench.prepare(sql)
        self.read = {table: columns for (_, table), columns in prepared.read.items()}
        return self.bench.run(prepared)


class Owners(World):
    """The same tables with two owners, who both have shares of one, asked through the planner and their gates; and in
    one database that has them all."""

    by_owner = " by an owner"
    written: Mapping[str, Sequence[str]] = {"a": ("o.a",), "b": ("o.b", '"O".b'), "k": ("p.k",), "s": ('"all".s',)}

    def __init__(self) -> None:
        self.over = Federation("o", "p")
        for name, (way, *_) in self.written.items():
            rows = _table(name).select(list(TABLES[name]))
            holders = ("o", "p") if "all" in way else (way.partition(".")[0],)
            for number, owner in enumerate(holders):
                self.over.add(owner, name, rows.slice(number * 3, 3 if not number and len(holders) > 1 else None))
        self.over.unite()
        self.plain = self.over.central
        self.plain.execute("CREATE SCHEMA one")
        self.shown = Shown(self.plain, {name: f"one.{name}" for name in TABLES})
        for name, (way, *_) in self.written.items():
            self.plain.execute(f"DROP {'VIEW' if 'all' in way else 'TABLE'} {way}")
            self.plain.execute(f"CREATE VIEW {way} AS SELECT * FROM one.{name}")

    def close(self) -> None:
        self.over.close()

    def answer(self, sql: str) -> list[Any]:
        ran, read = self.over.ask(sql), dict[str, set[str]]()
        for fragment in ran.plan.fragments:
            for name, columns in fragment.reads:
                read.setdefault(name, set()).update(column.name for column in columns)
        self.read = read
        return ran.rows


WORLDS: dict[str, Callable[[], World]] = {"gate": Gate, "shut": lambda: Gate(shut=True), "owners": Owners}


_OF_NAMES = ("Ambiguous reference", "Referenced column", "Referenced table", "Cannot extract field", "find key")


def _compared(sql: str, got: list[Any] | duckdb.Error, expected: list[Any] | duckdb.Error) -> Ended:
    if isinstance(expected, duckdb.Error):
        unasked = isinstance(got, duckdb.Error) or not any(words in str(expected) for words in _OF_NAMES)
        return Ended("no question") if unasked else Ended("answered", f"though {expected}")
    if isinstance(got, duckdb.ConversionException):  # which the engine meets or not, as it finds rows
        return Ended("no question")
    if isinstance(got, duckdb.Error):
        return Ended("fails", f"{type(got).__name__}: {got}")
    found = difference(got, expected, ordered=is_ordered(sql))
    return Ended("different", found) if found else Ended("equal")


def _told(plain: duckdb.DuckDBPyConnection, sql: str, expected: list[Any]) -> str:
    got = _engine(lambda: plain.execute(sql).fetchall())
    return difference(got, expected, ordered=is_ordered(sql)) if isinstance(got, list) else str(got)


def _engine(run: Callable[[], list[Any]]) -> list[Any] | duckdb.Error:
    try:
        return run()
    except duckdb.Error as error:
        return error


def _plainly(plain: duckdb.DuckDBPyConnection, sql: str) -> list[Any] | duckdb.Error | None:
    """What plain DuckDB says; None of a join of joins that would take it minutes, and us as many."""
    timer = threading.Timer(_SECONDS, plain.interrupt)
    timer.start()
    try:
        found = _engine(lambda: plain.execute(sql).fetchall())
    finally:
        timer.cancel()
    return None if isinstance(found, duckdb.InterruptException) else found


def is_ordered(sql: str) -> bool:
    """Whether the whole answer has an order that is told: by all its outputs."""
    after = sql.rpartition(" ORDER BY ")[2]
    whole = after.startswith("ALL") or after.partition(" LIMIT ")[0].rstrip().endswith(tuple("123456789"))
    return grammar.is_ordered(sql) and whole and "*" not in sql


def _put(database: duckdb.DuckDBPyConnection, called: str, table: pa.Table) -> None:
    database.register("given", table)
    database.execute(f"CREATE TABLE {called} AS SELECT * FROM given")
    database.unregister("given")


def _table(name: str) -> pa.Table:
    """A table's columns, each beside one with other values in every row."""
    rng, columns = random.Random(f"values of {name}"), {}
    for column, kind in TABLES[name].items():
        numbers = [[_value(rng) for _ in range(_ROWS)] for _ in FIELDS]
        for suffix, shown in (("", numbers), ("__other", [list(map(_other, one)) for one in numbers])):
            if kind == NUMBER:
                columns[column + suffix] = pa.array(shown[0], pa.int32())
            else:
                rows = [dict(zip(FIELDS, row, strict=True)) for row in zip(*shown, strict=True)]
                columns[column + suffix] = pa.array(rows, pa.struct([(one, pa.int32()) for one in FIELDS]))
    return pa.table(columns)


def _value(rng: random.Random) -> int | None:
    return None if rng.random() < 0.12 else rng.randrange(_VALUES)


def _other(value: int | None) -> int | None:
    return 0 if value is None else None if value == _VALUES - 1 else value + 1


def run(seeds: Iterable[int], outcome: Outcome, *, over: Collection[str] = ()) -> None:
    """Ask the questions of some seeds of each of these worlds, of all without any."""
    worlds = [WORLDS[name]() for name in over or WORLDS]
    for seed in seeds:
        for world in worlds:
            sql = Names(seed, world.written).question()
            ended = world.ask(sql)
            outcome.count(ended.word)
            if ended.wrong:
                smaller = shrunk(sql, _ends_so(world, ended.word))
                told = f"{type(world).__name__}, {ended.word}: {ended.wrong[:300]}"
                outcome.find(seed, f"{told}\n    {sql}\n    {smaller}")
    for world in worlds:
        world.close()


def _ends_so(world: World, word: str) -> Callable[[str], bool]:
    return lambda sql: world.ask(sql).word == word


# shrinking


def shrunk(sql: str, fails: Callable[[str], bool]) -> str:
    """The smallest question that is left of one that fails, taking away or putting in place of a part what is in it."""
    found = True
    while found:
        found = False
        for smaller in _smaller(sql):
            if fails(smaller):
                sql, found = smaller, True
                break
    return sql


def _smaller(sql: str) -> Iterator[str]:
    tree = parse_one(sql, read="duckdb")
    for place, node in enumerate(tree.walk()):
        children = [one for one in node.iter_expressions() if isinstance(one, exp.Condition | exp.Query)]
        for change in (None, *range(len(children))):
            copy = tree.copy()
            mine = [*copy.walk()][place]
            try:
                if change is None:
                    mine.pop() if mine is not copy else None
                else:
                    inner = [one for one in mine.iter_expressions() if isinstance(one, exp.Condition | exp.Query)]
                    if mine is copy:
                        copy = inner[change].copy()
                    else:
                        mine.replace(inner[change].copy())
                text = copy.sql(dialect="duckdb")
            except Exception:  # noqa: BLE001  half a tree cannot always be written
                continue
            if len(text) < len(sql):
                yield text
