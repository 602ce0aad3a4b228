"""Random questions about names: a handful of them, each of which is a table, an alias, a column, an output and more.

What a name means depends on all that stands around it, so nearly every clause and every nesting is tried; a third of
what comes out is no question. What is random in an answer is left out: LIMIT stands only behind an ORDER BY of every
output, windows give peers alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tests.oracles.grammar import Grammar

NUMBER, STRUCT = "number", "struct"
POOL = ("a", "b", "k", "s", "t", "u")  # the last is no column of a table
# Table: its columns with their kinds. Fields of structs are called as columns, too.
TABLES: dict[str, dict[str, str]] = {
    "a": {"a": NUMBER, "k": NUMBER, "s": STRUCT},
    "b": {"k": NUMBER, "b": NUMBER, "a": STRUCT},
    "k": {"k": NUMBER, "t": NUMBER, "s": NUMBER, "b": NUMBER},
    "s": {"a": NUMBER, "t": NUMBER, "b": NUMBER, "k": STRUCT},
}
FIELDS = ("a", "b", "k")
_DEEPEST = 3
_NO_ALIAS = "?"


@dataclass(frozen=True, slots=True)
class Out:
    """A column as it is called, and its kind."""

    name: str
    kind: str


@dataclass(slots=True)
class Scope:
    """What can be named in one SELECT, and in those around it."""

    sources: dict[str, list[Out]] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)
    outer: Scope | None = None

    def columns(self, kind: str = "") -> list[tuple[str, Out]]:
        """The columns that can be named, of a kind or of any, each with what its source is called."""
        return [(alias, out) for alias, outs in self.sources.items() for out in outs if kind in ("", out.kind)]

    def out(self) -> Iterator[Scope]:
        """This one and those around it."""
        level: Scope | None = self
        while level is not None:
            yield level
            level = level.outer


class Names(Grammar):
    """A stream of questions from one seed, over `tables`, of each the ways that it can be written in FROM."""

    def __init__(self, seed: int, written: Mapping[str, Sequence[str]], *, odd: float = 0.02) -> None:
        super().__init__(f"names {seed}")
        self.written = written
        self.odd = odd  # the share of questions with what no gate lets through

    def question(self) -> str:
        if self.chance(self.odd):
            return self.unusual()
        if self.chance(0.08):
            return self.filled(self.pick(_ONCE_WRONG))
        return self.query(0, None, {})[0]

    # queries

    def query(
        self, depth: int, outer: Scope | None, ctes: dict[str, list[Out]], outputs: int = 0
    ) -> tuple[str, list[Out]]:
        """A SELECT or a set operation, now and then with WITH; `outputs`: as many, all numbers."""
        start = ""
        if depth < 2 and self.chance(0.2):
            ctes = dict(ctes)
            made: dict[str, str] = {}
            for name in self.rng.sample(["t", "t", "c", self.pick(POOL)], self.pick([1, 1, 2])):
                if name in made:
                    continue
                inner, outs = self.query(depth + 1, outer, ctes)
                called, outs = self.columns_called(outs)
                made[name] = f"{self.cased(name)}{called} AS ({inner})"
                ctes[name] = outs
            start = f"WITH {', '.join(made.values())} "
        if depth < _DEEPEST and self.chance(0.1):
            count = outputs or self.rng.randint(1, 2)
            left, outs = self.select(depth + 1, outer, ctes, count)
            right, _ = self.select(depth + 1, outer, ctes, count)
            word = self.pick(["UNION", "UNION ALL", "INTERSECT", "EXCEPT"])
            sql = f"({left}) {word} ({right})"
            if self.chance(0.5):
                key = self.pick([self.name(), self.pick(outs).name])
                sql += f" ORDER BY {key}, {self.places(count)}" + self.limit(0.3)
            return start + sql, outs
        sql, outs = self.select(depth, outer, ctes, outputs)
        return start + sql, outs

    def select(
        self, depth: int, outer: Scope | None, ctes: dict[str, list[Out]], outputs: int = 0
    ) -> tuple[str, list[Out]]:
        scope = Scope(outer=outer)
        source = self.sources(depth, scope, ctes)
        grouped = self.chance(0.4 if depth else 0.3)
        shown, outs, known = self.outputs(depth, scope, ctes, outputs, grouped=grouped)
        scope.outputs = [out.name for out in outs]
        sql = f"SELECT {'DISTINCT ' if self.chance(0.06) else ''}{', '.join(shown)} FROM {source}"
        if self.chance(0.55):
            sql += f" WHERE {self.condition(depth, scope, ctes)}"
        if grouped:
            keys = [*["ALL"] * 8, self.ref(scope).name, self.name(), "1", self.pick(outs).name]
            more = f", {self.ref(scope).name}" if self.chance(0.3) else ""
            key = self.pick(keys)
            sql += f" GROUP BY {key}{more if key != 'ALL' else ''}"
        if self.chance(0.5 if grouped else 0.01):
            sql += f" HAVING {self.having(depth, scope, ctes)}"
        if self.chance(0.06):
            sql += f" QUALIFY {self.window(scope)} {self.pick(['>', '<=', '<>'])} {self.rng.randint(0, 3)}"
        if self.chance(0.35):
            key = self.pick([self.name(), self.pick(outs).name, self.value(depth, scope, ctes), "ALL"])
            key = key if known or depth else "ALL"
            places = self.places(len(outs)) if known else ""
            sql += f" ORDER BY {key}" if key == "ALL" else f" ORDER BY {key}{places and ', ' + places}"
            sql += self.limit(0.4) if known or key == "ALL" else ""
        return sql, outs

    def outputs(
        self, depth: int, scope: Scope, ctes: dict[str, list[Out]], count: int, *, grouped: bool
    ) -> tuple[list[str], list[Out], bool]:
        """What is shown, as it is called, and whether the number of it is known."""
        shown, outs, known = [], [], True
        for _ in range(count or self.rng.randint(1, 3)):
            roll = self.rng.random()
            if not count and roll < 0.1:
                source = self.pick(list(scope.sources))
                star = self.pick(["*", f"{source}.*"]) if source[0] != _NO_ALIAS else "*"
                shown.append(star)
                outs += [out for name in ([source] if star != "*" else scope.sources) for out in scope.sources[name]]
                known = False
                continue
            kind = NUMBER
            if self.chance(0.05):
                sql = self.called(scope)
            elif grouped and roll < 0.6:
                sql = self.aggregate(depth, scope, ctes)
            elif not count and roll < 0.3:
                sql, kind = (one := self.ref(scope, STRUCT)).name, one.kind
            else:
                sql = self.value(depth, scope, ctes, windows=True)
            if self.chance(0.6):
                name = self.pick([*scope.sources, *scope.sources, *POOL]).strip(_NO_ALIAS + "0123") or "u"
                scope.outputs.append(name)
                shown.append(f"{sql} {self.pick(['AS ', 'AS ', ''])}{self.cased(name)}")
            else:
                name = sql.rpartition(".")[2].strip('"').lower()
                shown.append(sql)
            outs.append(Out(name if name in POOL else "k", kind))
        return shown, outs, known

    # sources

    def sources(self, depth: int, scope: Scope, ctes: dict[str, list[Out]]) -> str:
        sql = self.source(depth, scope, ctes)
        for _ in range(self.pick([0, 0, 0, 1, 1, 2])):
            before = {out.name for outs in scope.sources.values() for out in outs if out.kind == NUMBER}
            taken = len(scope.sources)
            roll = self.rng.random()
            word = ", " if roll < 0.35 else f" {self.pick(_JOINS)} " if roll < 0.85 else " CROSS JOIN "
            sql += word + self.source(depth, scope, ctes)
            if roll < 0.35 or roll >= 0.85:
                continue
            added = {out.name for out in [*scope.sources.values()][-1] if out.kind == NUMBER}
            apart = len(scope.sources) > taken
            both = sorted(before & added) if apart else []
            if both and self.chance(0.4):
                sql += f" USING ({self.cased(self.pick(both))})"
            else:
                sql += f" ON {self.condition(depth + 1, scope, ctes)}"
            if apart and word.strip() in ("SEMI JOIN", "ANTI JOIN") and self.chance(0.7):
                scope.sources.popitem()  # which cannot be named any more; now and then it is tried
        return sql

    def source(self, depth: int, scope: Scope, ctes: dict[str, list[Out]]) -> str:
        name = self.pick([*TABLES, *ctes, *ctes])
        if depth < _DEEPEST and self.chance(0.25):
            looks = scope.sources and self.chance(0.4 if scope.outer else 0.1)
            beside = Scope(dict(scope.sources), outer=scope.outer) if looks else scope.outer
            inner, outs = self.query(depth + 1, beside, ctes)
            sql, alias = f"({inner})", f"{_NO_ALIAS}{len(scope.sources)}" if self.chance(0.15) else self.pick(POOL)
        else:
            outs = ctes[name] if name in ctes else [Out(*one) for one in TABLES[name].items()]
            sql = self.cased(name) if name in ctes else self.pick(self.written[name])
            alias = name if self.chance(0.35) else self.pick(POOL)
        if alias in scope.sources and self.chance(0.9):
            alias = self.pick([one for one in POOL if one not in scope.sources])
        if alias[0] != _NO_ALIAS and (alias != name or sql[0] == "("):
            called, outs = self.columns_called(outs)
            sql += f" {self.pick(['AS ', ''])}{self.cased(alias)}{called}"
        scope.sources[alias] = outs
        return sql

    def columns_called(self, outs: list[Out]) -> tuple[str, list[Out]]:
        """A list of names after an alias, now and then, and what the columns are called then."""
        if not self.chance(0.12):
            return "", outs
        names = self.rng.sample(POOL, min(len(outs), self.rng.randint(1, 3)))
        called = [Out(name, out.kind) for name, out in zip(names, outs, strict=False)]
        return f"({', '.join(map(self.cased, names))})", [*called, *outs[len(names) :]]

    # expressions

    def condition(self, depth: int, scope: Scope, ctes: dict[str, list[Out]]) -> str:
        if self.chance(0.2):
            one, other = (self.condition(depth + 1, scope, ctes) for _ in range(2))
            return f"({one} {self.pick(['AND', 'OR'])} {other})"
        if depth < _DEEPEST and self.chance(0.25):
            return self.asked(depth, scope, ctes)
        if self.chance(0.1):
            return self.text(
                self.called(scope) if self.chance(0.4) else self.ref(scope, self.pick([NUMBER, STRUCT])).name
            )
        return f"{self.value(depth + 1, scope, ctes)} {self.pick(_COMPARED)} {self.value(depth + 1, scope, ctes)}"

    def asked(self, depth: int, scope: Scope, ctes: dict[str, list[Out]]) -> str:
        """A condition with a query in it."""
        no = self.pick(["", "", "NOT "])
        if self.chance(0.5):
            return f"{no}EXISTS ({self.query(depth + 1, scope, ctes)[0]})"
        return f"{self.ref(scope).name} {no}IN ({self.query(depth + 1, scope, ctes, 1)[0]})"

    def having(self, depth: int, scope: Scope, ctes: dict[str, list[Out]]) -> str:
        if self.chance(0.35):
            return self.text(self.called(scope, around=0.7))
        left = self.pick([self.aggregate(depth, scope, ctes), self.name(), self.pick(scope.outputs)])
        more = f" AND {self.condition(depth + 1, scope, ctes)}" if self.chance(0.25) else ""
        return f"{left} {self.pick(_COMPARED)} {self.pick([str(self.rng.randint(0, 6)), self.ref(scope).name])}{more}"

    def text(self, what: str) -> str:
        """A condition on anything, of whatever type."""
        if self.chance(0.3):
            return f"{what} IS {self.pick(['', 'NOT '])}NULL"
        return f"CAST({what} AS TEXT) {self.pick(['', 'NOT '])}LIKE '%{self.rng.randint(0, 4)}%'"

    def value(self, depth: int, scope: Scope, ctes: dict[str, list[Out]], *, windows: bool = False) -> str:
        roll = self.rng.random()
        if roll < 0.62:
            return self.ref(scope).name
        if roll < 0.72:
            return str(self.rng.randint(0, 4))
        if roll < 0.82:
            return f"{self.ref(scope).name} {self.pick(['+', '-', '*'])} {self.ref(scope).name}"
        if roll < 0.86:
            return f"coalesce({self.ref(scope).name}, {self.ref(scope).name})"
        if roll < 0.89 and windows:
            return self.window(scope)
        if roll < 0.905:
            return f"CASE WHEN {self.condition(depth + 1, scope, ctes)} THEN {self.ref(scope).name} END"
        if depth < _DEEPEST:
            inner = Scope(outer=scope)
            source = self.sources(depth + 1, inner, ctes)
            where = f" WHERE {self.condition(depth + 1, inner, ctes)}" if self.chance(0.6) else ""
            shown, inner.outputs = self.aggregate(depth + 1, inner, ctes), [self.pick(POOL)]
            alias = f" AS {inner.outputs[0]}" if self.chance(0.3) else ""
            having = f" HAVING {self.having(depth + 1, inner, ctes)}" if alias and self.chance(0.3) else ""
            return f"(SELECT {shown}{alias} FROM {source}{where}{having})"
        return self.ref(scope).name

    def aggregate(self, depth: int, scope: Scope, ctes: dict[str, list[Out]]) -> str:
        word = self.pick(["sum", "min", "max", "count", "count(*)"])
        where = f" FILTER (WHERE {self.condition(depth + 2, scope, ctes)})" if self.chance(0.12) else ""
        if word == "count(*)":
            return word + where
        value = self.called(scope) if word == "count" and self.chance(0.3) else self.ref(scope).name
        value = value if self.chance(0.8) else f"{value} + {self.ref(scope).name}"
        return f"{word}({value}){where}"

    def window(self, scope: Scope) -> str:
        parts = f"PARTITION BY {self.ref(scope).name} " if self.chance(0.5) else ""
        order = f"ORDER BY {self.ref(scope).name}" if self.chance(0.6) else ""
        call = self.pick([f"sum({self.ref(scope).name})", f"max({self.ref(scope).name})", "rank()", "count(*)"])
        return f"{call} OVER ({parts}{order})"

    # names

    def ref(self, scope: Scope, kind: str = NUMBER) -> Out:
        """A column of this query or of one around it, as a rule; its table before it, or not."""
        if self.chance(0.04):
            return Out(self.name(), NUMBER)
        level, inside = scope, True
        while level.outer is not None and (not level.sources or self.chance(0.3)):
            level, inside = level.outer, False
        found = level.columns(kind)
        if not found:
            return Out(self.name(), NUMBER)
        alias, out = self.pick(found)
        name, whole = self.cased(out.name), self.chance(0.5 if inside else 0.65)
        if self.chance(0.95):  # as a rule no name is of several sources, nor a table's that is a column further in
            whole = (whole and not _is_inside(alias, scope, level)) or _is_of_several(out.name, scope)
        if alias[0] != _NO_ALIAS and whole:
            name = f"{self.cased(alias)}.{name}"
        return Out(name, kind)

    def called(self, scope: Scope, around: float = 0.25) -> str:
        """The name of a source or of an output, here or around, as if it were a column's."""
        level = scope
        while level.outer is not None and self.chance(around):
            level = level.outer
        names = [one for one in (*level.sources, *level.outputs) if one[0] != _NO_ALIAS]
        if self.chance(0.7):
            names = [one for one in names if not _is_inside(one, scope, level)] or names
            around = level.outer or Scope()
            known = [one for one in level.sources if one in names and (one in level.outputs or _is_column(one, around))]
            names = known or names
        return self.cased(self.pick(names)) if names else self.name()

    def name(self) -> str:
        """Any name, of whatever it may be."""
        one = self.pick(POOL)
        return self.cased(f"{self.pick(POOL)}.{one}" if self.chance(0.3) else one)

    def cased(self, name: str) -> str:
        roll = self.rng.random()
        if roll < 0.04:
            return name.upper()
        return ".".join(f'"{one}"' for one in name.split(".")) if roll < 0.08 else name

    def places(self, count: int) -> str:
        return ", ".join(str(place) for place in range(1, count + 1))

    def limit(self, share: float) -> str:
        if not self.chance(share):
            return ""
        return f" LIMIT {self.rng.randint(1, 4)}" if self.chance(0.7) else f" OFFSET {self.rng.randint(1, 4)}"

    def unusual(self) -> str:
        """Syntax that looks for names in ways of its own: refused, or answered like anything else."""
        return self.filled(self.pick(_UNUSUAL))

    def filled(self, shape: str) -> str:
        """A question of a shape, with names and tables for the words in it."""
        names = {word: self.pick(POOL) for word in ("one", "two", "three", "four")}
        tables = {word: self.pick(self.written[self.pick(list(TABLES))]) for word in ("first", "second", "third")}
        return shape.format(**names, **tables)


def _is_column(name: str, scope: Scope) -> bool:
    """Whether a name is a column's, in this scope or around it."""
    return any(out.name == name for level in scope.out() for _, out in level.columns())


def _is_inside(name: str, scope: Scope, last: Scope) -> bool:
    """Whether a name is a column's in one of the scopes up to the last."""
    for level in scope.out():
        if any(out.name == name for _, out in level.columns()):
            return True
        if level is last:
            break
    return False


def _is_of_several(name: str, scope: Scope) -> bool:
    """Whether the first scope that has a column of this name has several."""
    counts = [sum(out.name == name for _, out in level.columns()) for level in scope.out()]
    return next((count for count in counts if count), 0) > 1


_JOINS = ("JOIN", "JOIN", "LEFT JOIN", "RIGHT JOIN", "FULL JOIN", "SEMI JOIN", "ANTI JOIN")
_COMPARED = ("=", "=", "<>", "<", ">", ">=", "IS DISTINCT FROM")
_UNUSUAL = (
    "SELECT {one}.{two}.{three} FROM {first} {one}, {second}",
    "SELECT {one}, {two} FROM {first} NATURAL JOIN {second} {three}",
    "SELECT * FROM {first} {one}, LATERAL (SELECT {one}.{two} AS {three}) b",
    "SELECT * EXCLUDE ({one}) FROM {first} {two}",
    "SELECT * REPLACE ({one} + 1 AS {two}) FROM {first}",
    "SELECT COLUMNS('{one}') FROM {first} {two}",
    "SELECT COLUMNS({one}.*) FROM {first} {one}",
    "SELECT DISTINCT ON ({one}) {two} AS {one} FROM {first} ORDER BY ALL",
    "SELECT {one} FROM (VALUES (1, 2)) {two}({one}, {three})",
    "SELECT list_transform([1], {one} -> {one} + {two}) FROM {first} {three}",
    "SELECT sum({one}) OVER {two} FROM {first} WINDOW {two} AS (ORDER BY {three})",
    "SELECT unnest([{one}, {two}]) AS {three} FROM {first}",
    "SELECT unnest({one}) FROM {first} {two}",
    "SELECT * FROM (PIVOT {first} ON {one} USING sum({two}))",
    "SELECT {one} FROM {first} POSITIONAL JOIN {second} {two}",
    "SELECT {one} FROM {first} {two} ASOF JOIN {second} {three} ON {two}.k >= {three}.k",
    "SELECT {one} FROM {first} {two} WHERE ({one}, {three}) IN (SELECT {one}, {three} FROM {second})",
    "SELECT {one} FROM {first} {two} WHERE {one} = ANY (SELECT {one} FROM {second} {three})",
    "FROM {first} {one} SELECT {one}",
    "SELECT {one} FROM {first} UNION BY NAME SELECT {one}, {two} FROM {second}",
    "SELECT {one}: {two} FROM {first}",
    "SELECT {one} FROM {first} SELECT {two}",
    "SELECT {one} FROM {first} {two} GROUP BY GROUPING SETS (({one}), ())",
    "SELECT #1 FROM {first} ORDER BY #1",
)
_ONCE_WRONG = (  # shapes in which names once meant one thing here and another in the engine
    "SELECT (SELECT max({two}) FROM {first} {three}, (SELECT {one} AS {two} FROM {second}) {four}) FROM {third}",
    "SELECT {one} FROM {third} {three} WHERE EXISTS (SELECT 1 FROM {first} {three} JOIN "
    "(SELECT {three}.{four} AS {two} FROM {second}) t ON true WHERE {two} > 1)",
    "SELECT (SELECT max({two}) FROM (SELECT {one} AS {two} FROM {first}) {three}, {second} {four}) FROM {third}",
    "SELECT 1 AS {one} FROM {first} {one} WHERE EXISTS "
    "(SELECT count(*) FROM {second} GROUP BY {two} HAVING CAST({one} AS TEXT) LIKE '%2%')",
    "SELECT {three} AS {one} FROM {first} {one} WHERE {three} IN "
    "(SELECT max({four}) FROM {second} {two} HAVING CAST({one} AS TEXT) LIKE '%2%')",
    "SELECT {one} FROM {first} {two} WHERE EXISTS (SELECT max({three}) FROM {second} {two} HAVING {two}.{four} > 1)",
    "SELECT {one} FROM {first} {two} WHERE EXISTS (SELECT max({two}.{three}) FROM {second} {two} GROUP BY {one} "
    "HAVING {four} IN (SELECT {four} FROM {third}))",
    "SELECT {one} FROM {first} WHERE EXISTS (SELECT *, {three} AS {four} FROM {second} WHERE {four} > 1)",
    "SELECT {one} FROM {first} WHERE EXISTS "
    "(SELECT {two} AS {three}, {three} + 1 AS {four} FROM {second} WHERE {four} > 2)",
    "SELECT {one} FROM {first} WHERE EXISTS "
    "(SELECT {two} AS {three} FROM {second} QUALIFY {three} > 1 AND rank() OVER (ORDER BY {two}) > 1)",
    "SELECT {one}, (SELECT max({two}) FROM (SELECT {three} AS {two}, count(*) FROM {second} GROUP BY ALL)) "
    "FROM {first}",
    "SELECT {one} FROM {first} UNION SELECT {two} FROM {second} ORDER BY {three}",
    "SELECT {one}, count(*) FROM {first} {two} GROUP BY ALL "
    "HAVING count(*) > (SELECT min({three}.{four}) FROM {second} {three})",
)
