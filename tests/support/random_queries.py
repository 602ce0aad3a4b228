"""Random questions over a small federation, for the planner's second opinion: one DuckDB with all the data.

What is random in an answer is left out: LIMIT stands only behind an ORDER BY of every output, and DOUBLE values are
quarters, so that no order of addition shows. Nulls, double keys, empty results and ties are wanted and frequent.
"""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TypeVar

import pyarrow as pa

from connector.query.federation import Partition
from tests.support.federation import Federation

T = TypeVar("T")
INTEGER, DOUBLE, DECIMAL, TEXT, DATE, BOOL = "int", "double", "decimal", "text", "date", "bool"
NUMBERS = (INTEGER, DOUBLE, DECIMAL)
_COLUMNS = {"id": INTEGER, "k": INTEGER, "x": DOUBLE, "m": DECIMAL, "s": TEXT, "d": DATE, "f": BOOL}
_ARROW = {
    INTEGER: pa.int32(), DOUBLE: pa.float64(), DECIMAL: pa.decimal128(8, 2), TEXT: pa.string(), DATE: pa.date32(),
    BOOL: pa.bool_(),
}  # fmt: skip
OWNED = {"orders": "north", "items": "south", "people": "north", "places": "west"}
SHARED = ("visits", "cases")


def federation(seed: int = 7, *, keys: bool = True, across: bool = True) -> Federation:
    """Four datasets of one owner each, two that all three owners hold shares of, and one that all have whole."""
    rng = random.Random(seed)
    found = Federation("north", "south", "west", across=across)
    policy = {"shares_keys": keys, "takes_keys": keys}
    for name, owner in OWNED.items():
        found.add(owner, name, _table(rng, 24), **policy)
    for name in SHARED:
        whole = _table(rng, 60)
        for number, owner in enumerate(found.owners):
            mine = [value is not None and value % 3 == number for value in whole["k"].to_pylist()]
            nulls = [value is None and number == 2 for value in whole["k"].to_pylist()]
            share = whole.filter(pa.array([one or other for one, other in zip(mine, nulls, strict=True)]))
            found.add(owner, name, share, partition=Partition("k", ("k",)), **policy)
    words = _table(rng, 12)
    for owner in found.owners:
        found.add(owner, "words", words, content="words", **policy)
    found.unite()
    return found


def _table(rng: random.Random, rows: int) -> pa.Table:
    return pa.table(
        {name: pa.array([_value(rng, kind) for _ in range(rows)], _ARROW[kind]) for name, kind in _COLUMNS.items()}
    )


def _value(rng: random.Random, kind: str) -> object:
    if rng.random() < 0.15:
        return None
    if kind == INTEGER:
        return rng.randint(0, 9)
    if kind == DOUBLE:
        return rng.randint(-20, 20) / 4
    if kind == DECIMAL:
        return Decimal(rng.randint(-500, 500)) / 100
    if kind == TEXT:
        return rng.choice(("ab", "abc", "b", "Ba", "", "c d"))
    if kind == DATE:
        return dt.date(2020, 1, 1) + dt.timedelta(days=rng.randint(0, 500))
    return rng.random() < 0.5


@dataclass(frozen=True, slots=True)
class Out:
    """A column that can be named: as SQL, and its kind."""

    sql: str
    kind: str


class Questions:
    """A stream of questions from one seed."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.count = 0

    def question(self) -> str:
        """One SELECT, with everything in it now and then."""
        self.count = 0
        roll = self.rng.random()
        if roll < 0.12:
            return self.set_operation()
        if roll < 0.22:
            return self.with_query()
        return self.select(depth=0, ordered=True)[0]

    # queries

    def set_operation(self) -> str:
        kinds = [self.pick(list(_ARROW)) for _ in range(self.rng.randint(1, 3))]
        word = self.pick(["UNION", "UNION ALL", "INTERSECT", "EXCEPT", "UNION ALL"])
        sides = [self.of_kinds(kinds) for _ in range(2)]
        sql = f"{sides[0]} {word} {sides[1]}"
        if self.chance(0.3):
            names = ", ".join(f"c{number}" for number in range(len(kinds)))
            sql += f" ORDER BY {names} LIMIT {self.rng.randint(1, 8)}"
        return sql

    def of_kinds(self, kinds: list[str]) -> str:
        source, outs = self.source(depth=1)
        chosen = [self.pick([one for one in outs if one.kind == kind] or [Out(self.literal(kind), kind)])
                  for kind in kinds]  # fmt: skip
        shown = ", ".join(f"{one.sql} AS c{number}" for number, one in enumerate(chosen))
        where = f" WHERE {self.condition(outs, 1)}" if self.chance(0.6) else ""
        return f"SELECT {shown} FROM {source}{where}"

    def with_query(self) -> str:
        inner, kinds = self.select(depth=1)
        outs = [Out(f"w.c{number}", kind) for number, kind in enumerate(kinds)]
        if self.chance(0.4):
            other = [Out(f"v.c{number}", kind) for number, kind in enumerate(kinds)]
            pair = self.join_condition(outs, other)
            body = self.body(f"w JOIN w AS v ON {pair}", outs + other, depth=1, ordered=True)[0]
        else:
            body = self.body("w", outs, depth=1, ordered=True)[0]
        return f"WITH w AS ({inner}) {body}"

    def select(self, depth: int, *, ordered: bool = False) -> tuple[str, list[str]]:
        """A SELECT over one to three sources; its SQL and the kinds of its outputs c0, c1, ..."""
        source, outs = self.source(depth)
        for _ in range(self.pick([0, 0, 1, 1, 2])):
            other, more = self.source(depth)
            word = self.pick(["JOIN", "JOIN", "JOIN", "LEFT JOIN", "LEFT JOIN", "RIGHT JOIN", "FULL JOIN", "SEMI JOIN",
                              "ANTI JOIN", "CROSS"])  # fmt: skip
            if word == "CROSS":
                source, outs = f"{source} CROSS JOIN {other}", outs + more
                continue
            on = self.join_condition(outs, more)
            if self.chance(0.3):
                on += f" AND {self.plain(more)}"
            if self.chance(0.15):
                on += f" AND {self.plain(outs)}"
            source = f"{source} {word} {other} ON {on}"
            outs = outs if word in ("SEMI JOIN", "ANTI JOIN") else outs + more
        return self.body(source, outs, depth, ordered=ordered)

    def body(self, source: str, outs: list[Out], depth: int, *, ordered: bool) -> tuple[str, list[str]]:
        where = f" WHERE {self.condition(outs, depth)}" if self.chance(0.75) else ""
        if self.chance(0.45):
            return self.grouped(source, outs, where, depth, ordered=ordered)
        shown = [self.scalar(outs) for _ in range(self.rng.randint(1, 4))]
        if depth == 0 and self.chance(0.12):
            shown.append(Out(self.scalar_query(outs), INTEGER))
        if self.chance(0.12):
            keys = self.pick(outs).sql
            everything = ", ".join(one.sql for one in outs[:7])
            shown.append(Out(f"{self.pick(['rank', 'dense_rank'])}() OVER (PARTITION BY {keys} ORDER BY {everything})",
                             INTEGER))  # fmt: skip
        distinct = "DISTINCT " if self.chance(0.2) else ""
        return self.finished(f"{distinct}{_listed(shown)} FROM {source}{where}", [one.kind for one in shown], ordered)

    def grouped(self, source: str, outs: list[Out], where: str, depth: int, *, ordered: bool) -> tuple[str, list[str]]:
        keys = [self.key(outs) for _ in range(self.pick([0, 1, 1, 1, 2]))]
        shown = [*keys, *(self.aggregate(outs) for _ in range(self.rng.randint(1, 3)))]
        group = ""
        if keys:
            text = ", ".join(one.sql for one in keys)
            group = f" GROUP BY {self.pick([text, text, text, f'ROLLUP ({text})'])}"
        if self.chance(0.2):
            compared = f"{self.pick(['>', '<', '<>'])} {self.rng.randint(0, 6)}"
            group += f" HAVING {self.aggregate(outs, numbers=True).sql} {compared}"
        return self.finished(f"{_listed(shown)} FROM {source}{where}{group}", [one.kind for one in shown], ordered)

    def finished(self, body: str, kinds: list[str], ordered: bool) -> tuple[str, list[str]]:
        sql = f"SELECT {body}"
        if ordered and self.chance(0.4):
            order = ", ".join(
                f"{number + 1}{self.pick(['', ' DESC', ' NULLS FIRST', ' DESC NULLS LAST'])}"
                for number in range(len(kinds))
            )
            sql += f" ORDER BY {order}"
            if self.chance(0.6):
                sql += f" LIMIT {self.rng.randint(0, 9)}" + (
                    f" OFFSET {self.rng.randint(0, 4)}" if self.chance(0.3) else ""
                )
        return sql, kinds

    # sources

    def source(self, depth: int) -> tuple[str, list[Out]]:
        alias = self.alias()
        roll = self.rng.random()
        if roll < 0.5:
            name = self.pick(list(OWNED))
            return self.base(f'"{OWNED[name]}".{name}', alias)
        if roll < 0.72:
            return self.base(f'"all".{self.pick(list(SHARED))}', alias)
        if roll < 0.78:
            return self.base(f'"{self.pick(["north", "south", "west"])}".words', alias)
        if roll < 0.88 or depth > 1:
            return self.union(alias)
        inner, kinds = self.select(depth + 2)
        return f"({inner}) AS {alias}", [Out(f"{alias}.c{number}", kind) for number, kind in enumerate(kinds)]

    def base(self, name: str, alias: str) -> tuple[str, list[Out]]:
        return f"{name} AS {alias}", [Out(f"{alias}.{column}", kind) for column, kind in _COLUMNS.items()]

    def union(self, alias: str) -> tuple[str, list[Out]]:
        columns = self.rng.sample(list(_COLUMNS), self.rng.randint(2, 5))
        branches = []
        for name in self.rng.sample([*OWNED, *SHARED], self.rng.randint(2, 3)):
            owner = OWNED.get(name) or self.pick(["north", "south", "west"])
            where = (
                f" WHERE {self.plain([Out(column, _COLUMNS[column]) for column in columns])}"
                if self.chance(0.4)
                else ""
            )
            branches.append(f'SELECT {", ".join(columns)} FROM "{owner}".{name}{where}')
        return f"({' UNION ALL '.join(branches)}) AS {alias}", [Out(f"{alias}.{one}", _COLUMNS[one]) for one in columns]

    def alias(self) -> str:
        self.count += 1
        return f"t{self.count}"

    # conditions

    def join_condition(self, left: list[Out], right: list[Out]) -> str:
        kinds = [kind for kind in (INTEGER, INTEGER, TEXT, DECIMAL) if any(one.kind == kind for one in left)
                 and any(one.kind == kind for one in right)]  # fmt: skip
        if not kinds:
            return "1 = 1"
        kind = self.pick(kinds)
        one, other = (self.pick([c for c in side if c.kind == kind]) for side in (left, right))
        return f"{one.sql} {'=' if self.chance(0.9) else self.pick(['<', '>=', '<>'])} {other.sql}"

    def condition(self, outs: list[Out], depth: int) -> str:
        parts = []
        for _ in range(self.rng.randint(1, 3)):
            roll = self.rng.random()
            if roll < 0.16 and depth < 2:
                parts.append(self.query_condition(outs, depth))
            elif roll < 0.3:
                parts.append(
                    f"({self.plain(outs)} AND {self.plain(outs)} OR {self.plain(outs)} AND {self.plain(outs)})"
                )
            else:
                parts.append(self.plain(outs))
        return " AND ".join(parts)

    def plain(self, outs: list[Out]) -> str:
        one = self.pick(outs)
        same = [other for other in outs if other.kind == one.kind]
        shapes: list[Callable[[], str]] = [
            lambda: f"{one.sql} {self.pick(['=', '<>', '<', '>', '<=', '>='])} {self.literal(one.kind)}",
            lambda: f"{one.sql} {self.pick(['=', '<>', '<', '>='])} {self.pick(same).sql}",
            lambda: f"{one.sql} IS {self.pick(['', 'NOT '])}NULL",
            lambda: f"{one.sql} {self.pick(['', 'NOT '])}IN ({', '.join(self.literal(one.kind) for _ in range(3))})",
            lambda: f"{one.sql} BETWEEN {self.literal(one.kind)} AND {self.literal(one.kind)}",
            lambda: f"NOT ({one.sql} = {self.literal(one.kind)})",
            lambda: f"{one.sql} IS NOT DISTINCT FROM {self.pick(same).sql}",
        ]
        if one.kind == BOOL:
            shapes = [lambda: one.sql, lambda: f"NOT {one.sql}", *shapes[2:3]]
        if one.kind == TEXT:
            shapes.append(lambda: f"{one.sql} LIKE '{self.pick(['a%', '%b%', '_b%'])}'")
        return str(self.pick(shapes)())

    def query_condition(self, outs: list[Out], depth: int) -> str:
        source, inner = self.source(2)
        kinds = [kind for kind in (INTEGER, TEXT, DECIMAL) if any(one.kind == kind for one in outs)
                 and any(one.kind == kind for one in inner)]  # fmt: skip
        if not kinds:
            return self.plain(outs)
        kind = self.pick(kinds)
        mine, theirs = self.pick([c for c in outs if c.kind == kind]), self.pick([c for c in inner if c.kind == kind])
        also = f" AND {self.plain(inner)}" if self.chance(0.5) else ""
        correlated = f" WHERE {theirs.sql} = {mine.sql}{also}"
        alone = f" WHERE {self.plain(inner)}" if self.chance(0.6) else ""
        return str(
            self.pick(
                [
                    f"{mine.sql} IN (SELECT {theirs.sql} FROM {source}{alone})",
                    f"{mine.sql} NOT IN (SELECT {theirs.sql} FROM {source}{alone})",
                    f"EXISTS (SELECT * FROM {source}{correlated})",
                    f"NOT EXISTS (SELECT 1 FROM {source}{correlated})",
                    f"{self.rng.randint(0, 3)} <= (SELECT count(*) FROM {source}{correlated})",
                    f"{mine.sql} >= (SELECT min({theirs.sql}) FROM {source}{alone})",
                    f"{mine.sql} = (SELECT max({theirs.sql}) FROM {source}{correlated})",
                ]
            )
        )

    def scalar_query(self, outs: list[Out]) -> str:
        source, inner = self.source(2)
        numbers = [one for one in inner if one.kind == INTEGER]
        mine = [one for one in outs if one.kind == INTEGER]
        if not numbers or not mine:
            return "1"
        word, value, key = self.pick(["count", "max", "sum"]), self.pick(numbers).sql, self.pick(numbers).sql
        return f"(SELECT {word}({value}) FROM {source} WHERE {key} = {self.pick(mine).sql})"

    # expressions

    def scalar(self, outs: list[Out]) -> Out:
        one = self.pick(outs)
        if one.kind in NUMBERS and self.chance(0.3):
            return Out(f"{one.sql} {self.pick(['+', '-', '*'])} {self.literal(one.kind)}", one.kind)
        if self.chance(0.15):
            return Out(f"coalesce({one.sql}, {self.literal(one.kind)})", one.kind)
        if self.chance(0.1):
            return Out(f"CASE WHEN {self.plain(outs)} THEN {one.sql} ELSE {self.literal(one.kind)} END", one.kind)
        return one

    def key(self, outs: list[Out]) -> Out:
        one = self.pick(outs)
        if one.kind == DATE and self.chance(0.5):
            return Out(f"year({one.sql})", INTEGER)
        if one.kind == TEXT and self.chance(0.3):
            return Out(f"upper({one.sql})", TEXT)
        return one

    def aggregate(self, outs: list[Out], *, numbers: bool = False) -> Out:
        names = [one for one in outs if one.kind in NUMBERS] or None
        where = f" FILTER (WHERE {self.plain(outs)})" if self.chance(0.2) else ""
        if names is None or self.chance(0.25):
            return Out(f"count(*){where}", INTEGER)
        one = self.pick(names)
        value = one.sql if self.chance(0.8) else f"{one.sql} * {self.pick(names).sql}"
        word = self.pick(["count", "sum", "avg", "min", "max", "sum", "count(DISTINCT", "sum(DISTINCT", "stddev"])
        if not numbers and word in ("min", "max") and self.chance(0.5):
            other = self.pick(outs)
            kind = other.kind if other.kind != BOOL else BOOL
            return Out(f"{word}({other.sql}){where}", kind)
        opened = word if "(" in word else f"{word}("
        return Out(f"{opened} {value}){where}", INTEGER if word.startswith("count") else DOUBLE)

    def literal(self, kind: str) -> str:
        value = None
        while value is None:
            value = _value(self.rng, kind)
        if kind == TEXT:
            return f"'{value}'"
        return f"DATE '{value}'" if kind == DATE else str(value).lower() if kind == BOOL else str(value)

    def pick(self, values: Sequence[T]) -> T:
        return self.rng.choice(values)

    def chance(self, share: float) -> bool:
        return self.rng.random() < share


def _listed(shown: list[Out]) -> str:
    return ", ".join(f"{one.sql} AS c{number}" for number, one in enumerate(shown))
