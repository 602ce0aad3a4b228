"""Random questions over a small federation, for the planner's second opinion: one DuckDB with all the data.

What is random in an answer is left out: LIMIT stands only behind an ORDER BY of every output, windows order by every
column, and what depends on an order of addition is not asked for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tests.oracles import values
from tests.oracles.grammar import Grammar, Out
from tests.oracles.values import (
    BLOB,
    BOOL,
    DATE,
    DECIMAL,
    DOUBLE,
    INTEGER,
    LIST,
    NUMBERS,
    STAMP,
    TEXT,
    TIME,
    UUID,
    ZONED,
)  # fmt: skip

_COMMON = (INTEGER, DOUBLE, DECIMAL, TEXT, DATE, BOOL)
_JOINED = (INTEGER, INTEGER, INTEGER, TEXT, DECIMAL, DATE, UUID, STAMP)
_UNORDERED = (LIST,)


@dataclass(frozen=True, slots=True)
class Tables:
    """What may be asked of. `written`: a table as FROM has it, with its columns and how often it is taken. `rare`: more
    columns, which each has; `union`: of these tables all have the same. `odd`: what is put in place of a column now and
    then, and of a table, though no question may name it."""

    written: Mapping[str, tuple[Mapping[str, str], float]]
    rare: Mapping[str, str]
    union: Sequence[str] = ()
    odd: Callable[[Questions, str], str] | None = None
    odd_tables: Sequence[str] = ()


class Questions(Grammar):
    """A stream of questions from one seed."""

    def __init__(self, seed: int | str, tables: Tables, *, odd: float = 0.02) -> None:
        super().__init__(seed)
        self.tables, self.odd, self.count = tables, odd if tables.odd else 0.0, 0

    def question(self) -> str:
        """One SELECT, with everything in it now and then."""
        sql = self._question()
        return sql if self.chance(0.85) else re.sub(r"\bc(?=\d)", self.pick(["p", "k", "x", "order_"]), sql)

    def _question(self) -> str:
        self.count = 0
        roll = self.rng.random()
        if roll < 0.12:
            return self.set_operation()
        if roll < 0.22:
            return self.with_query()
        return self.select(depth=0, ordered=True)[0]

    # queries

    def set_operation(self) -> str:
        kinds = [self.pick([*_COMMON, STAMP, UUID, TIME]) for _ in range(self.rng.randint(1, 3))]
        sql = self.of_kinds(kinds)
        for _ in range(self.pick([1, 1, 1, 2])):
            sql += f" {self.pick(['UNION', 'UNION ALL', 'INTERSECT', 'EXCEPT', 'UNION ALL'])} {self.of_kinds(kinds)}"
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
        if self.chance(0.15):
            again = f"SELECT count(*) AS n, {self.aggregate(outs).sql} AS a FROM w"
            return f"WITH w AS ({inner}), u AS ({again}) SELECT u.n AS c0, u.a AS c1, {outs[0].sql} AS c2 FROM w, u"
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
                source, outs = f"{source}{self.pick([' CROSS JOIN', ','])} {other}", outs + more
                continue
            if self.chance(0.15) and (shared := _shared(outs, more)):
                one = self.pick(shared)
                source = f"{source} {word} {other} USING ({one.sql})"
                outs = [one, *outs] + (more if word not in ("SEMI JOIN", "ANTI JOIN") else [])
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
        if depth == 0 and self.chance(0.15):
            shown.append(Out(self.scalar_query(outs), INTEGER))
        if self.chance(0.15):
            shown.append(self.window(outs))
        chain = self.chain(shown) if self.chance(0.12) and not _named_like_outputs(outs) else []
        shown += chain
        listed = _listed(shown) if depth or chain else self.alike(_listed(shown))
        if depth == 0 and self.chance(0.3 if " USING (" in source else 0.05):
            listed, shown = "*", []
        distinct = "DISTINCT " if self.chance(0.2) else ""
        if not distinct and self.chance(0.05):
            where += f" QUALIFY rank() OVER ({self.over(outs)}) <= {self.rng.randint(1, 3)}"
        named, kinds = listed == _listed(shown), [one.kind for one in shown]
        return self.finished(f"{distinct}{listed} FROM {source}{where}", kinds, ordered, named=named)

    def alike(self, listed: str) -> str:
        """The outputs of the answer, now and then several of one name, or a subquery without any."""
        if self.chance(0.2):
            listed = re.sub(r" AS c[1-9]\b", f" AS {self.pick(['c0', 'k', 'x'])}", listed)
        return re.sub(r"\) AS c\d+$", ")", listed) if ", (SELECT" in listed and self.chance(0.3) else listed

    def chain(self, shown: list[Out]) -> list[Out]:
        """Outputs made of outputs before them, each named twice."""
        found = [number for number, one in enumerate(shown) if one.kind == INTEGER]
        if not found:
            return []
        more, last = [], self.pick(found)
        for number in range(len(shown), len(shown) + self.rng.randint(1, 4)):
            more.append(Out(f"5 - c{last} - (c{last} - {self.pick(['1', f'c{self.pick(found)}'])})", INTEGER))
            last = number
        return more

    def over(self, outs: list[Out]) -> str:
        everything = ", ".join(one.sql for one in outs if one.kind not in _UNORDERED)
        return f"PARTITION BY {self.pick(outs).sql}" + (f" ORDER BY {everything}" if everything else "")

    def window(self, outs: list[Out]) -> Out:
        """Equal rows get equal values, so that it does not matter which of them comes first."""
        roll, whole = self.rng.random(), [one for one in outs if one.kind in (INTEGER, DECIMAL)]
        if roll < 0.5 or not whole:
            return Out(f"{self.pick(['rank', 'dense_rank'])}() OVER ({self.over(outs)})", INTEGER)
        if roll < 0.8:
            word = self.pick(["sum", "max", "min", "count", "avg"])
            return Out(f"{word}({self.pick(whole).sql}) OVER (PARTITION BY {self.pick(outs).sql})", DOUBLE)
        over = self.over(outs)
        frame = " RANGE UNBOUNDED PRECEDING" if "ORDER BY" in over else ""
        return Out(f"sum({self.pick(whole).sql}) OVER ({over}{frame})", DOUBLE)

    def grouped(self, source: str, outs: list[Out], where: str, depth: int, *, ordered: bool) -> tuple[str, list[str]]:
        keys = [self.key(outs) for _ in range(self.pick([0, 1, 1, 1, 2]))]
        asked = depth == 0 and bool(keys) and self.chance(0.06)
        if asked:
            keys[0] = Out(f"({self.query_condition(outs, depth)})", BOOL)
        shown = [*keys, *(self.aggregate(outs) for _ in range(self.rng.randint(1, 3)))]
        group = ""
        if keys:
            text = ", ".join(one.sql for one in keys)
            sets = f"GROUPING SETS (({text}), ({keys[0].sql}), ())"
            found = [text, text, text, text, "ALL", f"ROLLUP ({text})", f"CUBE ({text})", sets]
            places = ", ".join(str(place) for place in range(1, len(keys) + 1))
            group = f" GROUP BY {self.pick([places, 'ALL'] if asked else [*found, places])}"
        if self.chance(0.2):
            compared = f"{self.pick(['>', '<', '<>'])} {self.rng.randint(0, 6)}"
            group += f" HAVING {self.aggregate(outs, numbers=True).sql} {compared}"
        elif keys and self.chance(0.05):
            group += f" HAVING count(*) >= (SELECT min(k) FROM {self.base_name()})"
        named = not _named_like_outputs(outs)  # else the name is a column's that is no key
        listed = _listed(shown) if depth else self.alike(_listed(shown))
        named, kinds = named and listed == _listed(shown), [one.kind for one in shown]
        return self.finished(f"{listed} FROM {source}{where}{group}", kinds, ordered, named=named)

    def finished(self, body: str, kinds: list[str], ordered: bool, *, named: bool = True) -> tuple[str, list[str]]:
        sql = f"SELECT {body}"
        if ordered and (not kinds or self.chance(0.1)):
            sql += f" ORDER BY ALL{self.pick(['', ' DESC'])}" + (f" LIMIT {self.rng.randint(0, 9)}" * self.chance(0.6))
        elif ordered and self.chance(0.4):
            order = ", ".join(
                f"{number + 1}{self.pick(['', ' DESC', ' NULLS FIRST', ' DESC NULLS LAST'])}"
                for number in range(len(kinds))
            )
            if named and self.chance(0.4):
                order = f"{self.ordering(kinds)}, {order}"
            sql += f" ORDER BY {order}"
            if self.chance(0.6):
                sql += f" LIMIT {self.rng.randint(0, 9)}" + (
                    f" OFFSET {self.rng.randint(0, 4)}" if self.chance(0.3) else ""
                )
        return sql, kinds

    def ordering(self, kinds: list[str]) -> str:
        """An expression over outputs by their names."""
        number = self.rng.randrange(len(kinds))
        shapes = [f"c{number} IS NULL"]
        if kinds[number] == INTEGER:
            shapes += [f"-c{number}", f"c{number} * 2 % 7", f"5 - c{number}", f"c{number} BETWEEN 1 AND 4"]
            other = self.pick([place for place, kind in enumerate(kinds) if kind == INTEGER])
            shapes.append(f"c{number} * c{other} - c{number}")
        if kinds[number] == BOOL:
            shapes += [f"NOT c{number}", f"c{number} AND c{number} IS NOT NULL"]
        return self.pick(shapes)

    # sources

    def source(self, depth: int) -> tuple[str, list[Out]]:
        alias = self.alias()
        roll = self.rng.random()
        if roll < 0.78:
            return self.base(self.base_name(), alias)
        if roll < 0.83:
            return self.derived(alias)
        if roll < 0.9 or depth > 1:
            return self.union(alias) if self.tables.union else self.base(self.base_name(), alias)
        inner, kinds = self.select(depth + 2, ordered=self.chance(0.15))
        return f"({inner}) AS {alias}", [Out(f"{alias}.c{number}", kind) for number, kind in enumerate(kinds)]

    def base_name(self) -> str:
        if self.tables.odd_tables and self.chance(self.odd):
            return self.pick(self.tables.odd_tables)
        weights = [often for _, often in self.tables.written.values()]
        return self.rng.choices(list(self.tables.written), weights)[0]

    def columns(self, name: str) -> Mapping[str, str]:
        """A table's columns with their kinds; of one that no question may name, another's."""
        written = self.tables.written
        return written[name][0] if name in written else next(iter(written.values()))[0]

    def base(self, name: str, alias: str) -> tuple[str, list[Out]]:
        """The common columns, and some of the others."""
        kinds = dict(self.columns(name)) | {one: kind for one, kind in self.tables.rare.items() if self.chance(0.15)}
        if self.chance(0.08):
            called = self.rng.sample(["k", "w", "p0", "x0", "b", "k0"], 2)
            rest = [one for one in list(kinds)[2:] if one not in called]
            names = dict(zip((*called, *rest), (*list(kinds)[:2], *rest), strict=True))
            return f"{name} AS {alias}({', '.join(called)})", [
                Out(f"{alias}.{one}", kinds[own]) for one, own in names.items()
            ]
        return f"{name} AS {alias}", [Out(f"{alias}.{column}", kind) for column, kind in kinds.items()]

    def union(self, alias: str) -> tuple[str, list[Out]]:
        first = self.columns(self.tables.union[0])
        kinds = dict(first) | dict([self.pick(list(self.tables.rare.items()))])
        columns = self.rng.sample(list(kinds), self.rng.randint(2, 5))
        branches = []
        for name in self.rng.sample(self.tables.union, self.rng.randint(2, 3)):
            where = f" WHERE {self.plain([Out(one, kinds[one]) for one in columns])}" if self.chance(0.4) else ""
            branches.append(f"SELECT {', '.join(columns)} FROM {name}{where}")
        return f"({' UNION ALL '.join(branches)}) AS {alias}", [Out(f"{alias}.{one}", kinds[one]) for one in columns]

    def derived(self, alias: str) -> tuple[str, list[Out]]:
        """Values of a dataset's columns, called as its columns are; its own condition is on those."""
        source, outs = self.base(self.base_name(), self.alias())
        shown = [self.scalar(outs) for _ in range(self.rng.randint(1, 4))]
        shown += [Out(self.literal(INTEGER), INTEGER)] if self.chance(0.3) else []
        names = list(next(iter(self.tables.written.values()))[0])  # of columns as a table has them
        called = dict(zip(self.rng.sample(names, len(shown)), shown, strict=True))
        listed = ", ".join(f"{one.sql} AS {name}" for name, one in called.items())
        limit = ""
        if self.chance(0.25):  # of two of one name, the first has it
            twice = self.pick(list(called))
            listed += f", {self.scalar(outs).sql} AS {twice}"
            limit = self.limited(twice, len(called) + 1) if self.chance(0.6) else ""
        where = f" WHERE {self.plain(outs)}" if self.chance(0.7) else ""
        inner = f"SELECT {listed} FROM {source}{where}{limit}"
        return f"({inner}) AS {alias}", [Out(f"{alias}.{name}", one.kind) for name, one in called.items()]

    def limited(self, name: str, count: int) -> str:
        """A limit of rows by an output's name, alone or in an expression, and then by every output's place."""
        key = self.pick([name, f"{name} DESC", f"{name} IS NULL", f"coalesce({name}, {name}) DESC"])
        places = ", ".join(str(place) for place in range(1, count + 1))
        return f" ORDER BY {key}, {places} LIMIT {self.rng.randint(1, 6)}"

    def alias(self) -> str:
        self.count += 1
        return f"{'f' if self.chance(0.1) else 't'}{self.count}"  # fragments are called f0, f1, ..., too

    # conditions

    def join_condition(self, left: list[Out], right: list[Out]) -> str:
        kinds = [kind for kind in _JOINED if any(one.kind == kind for one in left)
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
        one = self.named(outs)
        same = [other for other in outs if other.kind == one.kind]
        shapes: list[Callable[[], str]] = [
            lambda: f"{one.sql} {self.pick(['=', '<>', '<', '>', '<=', '>='])} {self.literal(one.kind)}",
            lambda: f"{one.sql} {self.pick(['=', '<>', '<', '>='])} {self.pick(same).sql}",
            lambda: f"{one.sql} IS {self.pick(['', 'NOT '])}NULL",
            lambda: f"{one.sql} {self.pick(['', 'NOT '])}IN ({', '.join(self.literal(one.kind) for _ in range(3))})",
            lambda: f"{one.sql} BETWEEN {self.literal(one.kind)} AND {self.literal(one.kind)}",
            lambda: f"NOT ({one.sql} = {self.literal(one.kind)})",
            lambda: f"{one.sql} IS {self.pick(['', 'NOT '])}DISTINCT FROM {self.pick(same).sql}",
        ]
        if one.kind in (BLOB, LIST):
            shapes = shapes[2:3]
        if one.kind == BOOL:
            shapes = [
                lambda: one.sql,
                lambda: f"NOT {one.sql}",
                lambda: f"{one.sql} IN (TRUE)",
                lambda: f"{one.sql} {self.pick(['=', '<', 'IS DISTINCT FROM'])} {self.pick(same).sql}",
                *shapes[2:3],
            ]
        if one.kind == TEXT:
            shapes.append(lambda: f"{one.sql} LIKE '{self.pick(['a%', '%b%', '_b%'])}'")
        return str(self.pick(shapes)())

    def query_condition(self, outs: list[Out], depth: int) -> str:
        source, inner = self.source(2)
        kinds = [kind for kind in (INTEGER, TEXT, DECIMAL, DATE) if any(one.kind == kind for one in outs)
                 and any(one.kind == kind for one in inner)]  # fmt: skip
        if not kinds:
            return self.plain(outs)
        kind = self.pick(kinds)
        mine, theirs = self.pick([c for c in outs if c.kind == kind]), self.pick([c for c in inner if c.kind == kind])
        also = f" AND {self.plain(inner)}" if self.chance(0.5) else ""
        correlated = f" WHERE {theirs.sql} = {mine.sql}{also}"
        alone = f" WHERE {self.plain(inner)}" if self.chance(0.6) else ""
        if self.chance(0.35):
            return self.asked_of_sets(mine, f"SELECT {theirs.sql} FROM {source}{alone}")
        if self.chance(0.1):
            name = self.pick(["c0", "c1", "k", "c9"])
            return (f"EXISTS (SELECT {self.pick(inner).sql} AS k, {theirs.sql} AS {name} FROM {source}{correlated} "
                    f"AND {name} {self.pick(['>=', '<>'])} {self.literal(kind)} ORDER BY 2)")  # fmt: skip
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

    def asked_of_sets(self, mine: Out, first: str) -> str:
        """What looks at a set operation that counts rows, or at some of its rows."""
        word = self.pick(["UNION ALL", "UNION ALL", "EXCEPT ALL", "INTERSECT ALL", "EXCEPT"])
        rows = f" LIMIT {self.rng.randint(1, 6)} OFFSET {self.rng.randint(0, 6)}" if self.chance(0.6) else ""
        query = f"{first} {word} {self.of_kinds([mine.kind])}"
        if self.chance(0.3):
            return f"EXISTS ({query}{rows})"
        return f"{mine.sql} {self.pick(['', '', 'NOT '])}IN ({query}{rows and ' ORDER BY 1' + rows})"

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
        one = self.named(outs)
        if one.kind in (BLOB, LIST):
            return one
        if one.kind in NUMBERS and self.chance(0.25):
            return Out(f"{one.sql} {self.pick(['+', '-', '*'])} {self.literal(one.kind)}", one.kind)
        if one.kind in _FUNCTIONS and self.chance(0.25):
            sql, kind = self.pick(_FUNCTIONS[one.kind])
            return Out(sql.format(one.sql), kind)
        if self.chance(0.15):
            return Out(f"coalesce({one.sql}, {self.literal(one.kind)})", one.kind)
        if self.chance(0.1):
            truth = [self.plain(outs), f"NOT {self.plain(outs)}", f"{self.plain(outs)} OR {self.plain(outs)}"]
            return Out(self.pick(truth), BOOL)
        if self.chance(0.1):
            return Out(f"CASE WHEN {self.plain(outs)} THEN {one.sql} ELSE {self.literal(one.kind)} END", one.kind)
        return one

    def named(self, outs: list[Out]) -> Out:
        """A column, or now and then what may not be asked for."""
        one = self.pick(outs)
        if self.tables.odd is not None and self.chance(self.odd):
            return Out(self.tables.odd(self, one.sql), one.kind)
        return one

    def key(self, outs: list[Out]) -> Out:
        one = self.pick(outs)
        if one.kind == DATE and self.chance(0.5):
            return Out(f"year({one.sql})", INTEGER)
        if one.kind == TEXT and self.chance(0.3):
            return Out(f"upper({one.sql})", TEXT)
        if one.kind in NUMBERS and self.chance(0.1):
            return Out(f"({one.sql} > {self.literal(one.kind)})", BOOL)
        return one

    def aggregate(self, outs: list[Out], *, numbers: bool = False) -> Out:
        names = [one for one in outs if one.kind in NUMBERS] or None
        where = f" FILTER (WHERE {self.plain(outs)})" if self.chance(0.2) else ""
        if names is None or self.chance(0.25):
            return Out(f"count(*){where}", INTEGER)
        if not numbers and self.chance(0.2):
            return self.rarer(outs, where)
        one = self.pick(names)
        value = one.sql if self.chance(0.8) else f"{one.sql} * {self.pick(names).sql}"
        word = self.pick(["count", "sum", "avg", "min", "max", "sum", "count(DISTINCT", "sum(DISTINCT", "stddev"])
        if not numbers and word in ("min", "max") and self.chance(0.5):
            other = self.pick(outs)
            return Out(f"{word}({other.sql}){where}", other.kind)
        opened = word if "(" in word else f"{word}("
        return Out(f"{opened} {value}){where}", INTEGER if word.startswith("count") else DOUBLE)

    def rarer(self, outs: list[Out], where: str) -> Out:
        """Aggregates that few questions have."""
        by = {kind: [one.sql for one in outs if one.kind == kind] for kind in (INTEGER, BOOL, TEXT, DECIMAL)}
        shapes = [f"count({self.pick(outs).sql})"]
        if by[BOOL]:
            shapes += [f"{word}({self.pick(by[BOOL])})" for word in ("bool_and", "bool_or", "count_if")]
        if by[INTEGER]:
            shapes += [f"{word}({self.pick(by[INTEGER])} % 8)" for word in ("bit_and", "bit_or", "bit_xor")]
            shapes += [
                f"{word}({self.pick(by[INTEGER])} % 8)" for word in ("median", "var_pop", "approx_count_distinct")
            ]
        if by[DECIMAL] and by[INTEGER]:
            shapes.append(f"sum(CASE WHEN {self.plain(outs)} THEN {self.pick(by[DECIMAL])} ELSE 0 END)")
        text = self.pick(shapes)
        kind = BOOL if text.startswith("bool") else INTEGER if text.startswith(("count", "bit", "approx")) else DOUBLE
        return Out(text + where, kind)

    def literal(self, kind: str) -> str:
        return values.literal(self.rng, kind)


_FUNCTIONS: dict[str, list[tuple[str, str]]] = {
    INTEGER: [("abs({})", INTEGER), ("{} // 2", INTEGER), ("{} % 3", INTEGER), ("{} / 4", DOUBLE), ("-{}", INTEGER),
              ("nullif({}, 3)", INTEGER), ("CAST({} AS VARCHAR)", TEXT), ("greatest({}, 2)", INTEGER),
              ("CAST({} AS DOUBLE)", DOUBLE)],
    DOUBLE: [("floor({})", DOUBLE), ("round({}, 1)", DOUBLE), ("sign({})", INTEGER), ("CAST({} AS INTEGER)", INTEGER)],
    DECIMAL: [("abs({})", DECIMAL), ("round({}, 1)", DECIMAL), ("CAST({} AS DECIMAL(12, 1))", DECIMAL),
              ("CAST({} AS BIGINT)", INTEGER)],
    TEXT: [("length({})", INTEGER), ("lower({})", TEXT), ("substring({}, 1, 2)", TEXT), ("{} || '-'", TEXT),
           ("CAST({} AS INTEGER)", INTEGER), ("left({}, 1)", TEXT), ("strpos({}, 'b')", INTEGER)],
    DATE: [("year({})", INTEGER), ("date_trunc('month', {})", DATE), ("{} + INTERVAL 3 DAY", STAMP),
           ("extract(dow FROM {})", INTEGER), ("date_diff('day', {}, DATE '2020-06-01')", INTEGER),
           ("CAST({} AS VARCHAR)", TEXT)],
    STAMP: [("hour({})", INTEGER), ("date_trunc('day', {})", STAMP), ("CAST({} AS DATE)", DATE),
            ("{} - INTERVAL 90 MINUTE", STAMP)],
    ZONED: [("hour({})", INTEGER), ("CAST({} AS DATE)", DATE), ("CAST({} AS VARCHAR)", TEXT)],
    TIME: [("hour({})", INTEGER), ("CAST({} AS VARCHAR)", TEXT)],
    UUID: [("CAST({} AS VARCHAR)", TEXT)],
    BOOL: [("NOT {}", BOOL), ("CAST({} AS INTEGER)", INTEGER)],
}  # fmt: skip


def _listed(shown: list[Out]) -> str:
    return ", ".join(f"{one.sql} AS c{number}" for number, one in enumerate(shown))


def _shared(left: list[Out], right: list[Out]) -> list[Out]:
    """Columns that both sides of a join have by one name and of one kind."""
    here, there = ({Out(one.sql.rpartition(".")[2], one.kind) for one in side} for side in (left, right))
    return sorted((one for one in here & there if one.kind in _JOINED), key=lambda one: one.sql)


def _named_like_outputs(outs: list[Out]) -> bool:
    return any(one.sql.partition(".")[2].startswith("c") for one in outs)
