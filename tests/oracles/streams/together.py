"""A case of SQL over two datasets under an agreement each, until what one of them allows is used up.

Rows of a question that combines rows count as all of each dataset, any other's as they leave, under both agreements; a
question that one of them refuses takes nothing of the other. One dataset may give groups of so many rows at least, and
only by itself.
"""

from __future__ import annotations

import asyncio
import collections
import random
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from policies.model import Atom, Literal
from policies.vocabulary import column_term
from tests.oracles.streams.answers import REFUSED, Came, Different, in_order, over_query, texts
from tests.oracles.streams.columns import BLOB, BOOL, DATE, FLOAT, INTEGER, OTHER, TEXT
from tests.oracles.streams.reader import Reader
from tests.oracles.streams.terms import quoted
from tests.support import gate, provider, streamed

_MOST = 60_000  # rows of an answer
_SPENT = {"quota_spent", "count_spent", "not_permitted"}
_GROUPS = {"rows_not_given", "aggregate_shape", "column_unknown", "not_permitted"}  # of what gives only groups
_BEGUN = {"min_group_size"}  # refused once it was counted


@dataclass(slots=True)
class Side:
    """One of the two: its case, its table in both engines, and what may leave; `used` is what has."""

    case: Reader
    table: str
    rows: int | None = None
    uses: int | None = None
    used: int = 0
    begun: int = 0
    group: int = 0

    @property
    def name(self) -> str:
        return f"{quoted(provider.OWNER)}.{quoted(self.case.world.name)}"

    @property
    def all_rows(self) -> int:
        """As which a question counts that combines rows; upwards where a policy hides some."""
        rows = int(self.case.world.profile["rows"])
        step = max(10, 10 ** (len(str(rows)) - 2)) if self.case.found.filters else 1
        return -(-rows // step) * step


@dataclass(frozen=True, slots=True)
class Question:
    """`draws`: how often each side counts as all of its rows, as a question that combines rows names it, or asks for
    what has none there."""

    sql: str
    sides: tuple[Side, ...]
    draws: tuple[int, ...] = (0, 0)

    def cost(self, side: Side) -> int:
        return self.draws[self.sides.index(side)] * side.all_rows


class Together(Reader):
    """Some questions, one after the other or at once."""

    @property
    def told(self) -> str:
        limits = [(one.rows, one.uses, one.group) for one in self.sides]
        return f"{super().told}\n{self.sides[1].case.told}\n    {limits}"

    async def run(self) -> str:
        number = f"t{random.getrandbits(64):016x}"
        async with AsyncExitStack() as stack:
            change = self.rng.choice(("same", "more", "fewer", "order"))
            other = await stack.enter_async_context(self.over.another(self.world, number, change))
            beside = Reader.drawn(self.over, other, self.rng)
            self.sides = Side(self, "a"), Side(beside, "b")
            if self.rng.random() < 0.3:
                self._grouped(self.sides[1])
            for one in self.sides:
                self._limited(one)
                _view(self.world.con, one)
            await beside.agree()
            return await super().run()

    async def ask(self) -> str:
        asked = [self._question() for _ in range(self.rng.randint(2, 6))]
        if at_once := self.rng.random() < 0.3:
            answers = await asyncio.gather(*map(self._asked, asked))
            for question, came in zip(asked, answers, strict=True):
                self._check(question, came, alone=False)
        else:
            for question in asked:
                self._check(question, await self._asked(question), alone=True)
                await self._check_counted(question.sql)
        self.met[f"together: {'at once' if at_once else 'one after the other'}"] += 1
        await self._check_counted("all")
        return "equal"

    async def _asked(self, question: Question) -> Came:
        came = await over_query(self.over.door.client, [one.case.ticket for one in question.sides], question.sql)
        await provider.settled(self.over.running)
        return came

    def _check(self, question: Question, came: Came, *, alone: bool) -> None:
        code = "" if came.code == came.status else came.code
        self.met[f"together: {came.status} {code}".strip()] += 1
        grouped, costs = any(one.group for one in question.sides), [question.cost(one) for one in question.sides]
        if came.status == REFUSED:
            allowed = _SPENT | (_GROUPS | _BEGUN if grouped else set())
            if code not in allowed or (alone and code in _SPENT and not self._spent(question, costs)):
                raise Different(f"{question.sql}: refused as {came.end}, {self._state}")
        if came.status != REFUSED or code in _BEGUN:
            for one, cost in zip(question.sides, costs, strict=True):
                one.begun += 1
                one.used += max(1, cost, came.rows) if one.rows is not None else 0  # also where there is none
        if came.status == REFUSED:
            return
        if grouped and len(question.sides) > 1:
            raise Different(f"{question.sql}: groups beside rows, {came.end}")
        expected = self.world.con.sql(self._told(question)).to_arrow_table()
        self._compare(question, came, expected)
        enough = all(one.rows is None or one.used + len(expected) - came.rows <= one.rows for one in question.sides)
        if came.status not in ("complete", "quota") or (came.status == "quota" and alone and enough):
            raise Different(f"{question.sql}: {came.rows} of {len(expected)} rows, ended as {came.end}, {self._state}")

    def _compare(self, question: Question, came: Came, expected: pa.Table) -> None:
        found = pa.Table.from_batches(came.batches, expected.schema if not came.batches else None)
        wrong = ""
        if came.status == "complete":
            wrong = streamed.unlike(in_order(found), in_order(expected))
        elif _rows(found) - _rows(expected):
            wrong = f"rows that are none: {list((_rows(found) - _rows(expected)).items())[:3]}"
        if wrong or (came.end or {}).get("rows") != came.rows:
            raise Different(f"{question.sql}: {wrong}, ended as {came.end}")

    def _spent(self, question: Question, costs: Sequence[int]) -> bool:
        """Whether something is used up, or less is left than the question counts as."""
        for one, cost in zip(question.sides, costs, strict=True):
            if (one.uses is not None and one.begun >= one.uses) or (
                one.rows is not None and one.used + max(1, cost) > one.rows
            ):
                return True
        return False

    async def _check_counted(self, what: str) -> None:
        await provider.settled(self.over.running)
        for one in self.sides:
            agreement = one.case.agreement
            found = await self.over.running.store.read(lambda tx, key=agreement: tx.agreements.get_grant(key))
            assert found is not None
            if (found.rows, found.queries) != (one.used, one.begun):
                raise Different(f"after {what}: counted {found.queries} uses, {found.rows} rows for {self._state}")
            if (one.rows is not None and one.used > one.rows) or (one.uses is not None and one.begun > one.uses):
                raise Different(f"after {what}: more than allowed, {self._state}")

    @property
    def _state(self) -> list[tuple[Any, ...]]:
        return [(one.table, one.used, one.rows, one.begun, one.uses) for one in self.sides]

    def _limited(self, one: Side) -> None:
        rows = int(one.case.world.profile["rows"])
        words: list[Atom] = []
        if self.rng.random() < 0.6:
            one.rows = self.rng.choice((self.rng.randint(1, 3 * rows + 20), self.rng.randint(1, 100)))
            words.append(gate.atom("ds:rowQuota", "lteq", str(one.rows)))
        if self.rng.random() < 0.3:
            one.uses = self.rng.randint(1, 4)
            words.append(gate.atom(self.rng.choice(("odrl:count", "ds:queriesPerDay")), "lteq", str(one.uses)))
        one.case.limit(*words)

    def _grouped(self, one: Side) -> None:
        """It gives how many rows there are of each value of a column, where there are so many."""
        fits = [seen for seen in one.case.world.columns if seen.of.family in (INTEGER, TEXT, BOOL, DATE)
                and one.case.found.shown.get(seen.name) == quoted(seen.name) and not seen.of.unique]  # fmt: skip
        if not fits:
            return
        one.group, self._dimension = self.rng.choice((5, 20)), self.rng.choice(fits).name
        rule = one.case.found.policy.permissions[0]
        named = [atom for atom in rule.constraints if isinstance(atom, Atom) and "column" in atom.left]
        if named or rule.duties:
            one.group = 0
            return
        one.case.limit(
            gate.atom("ds:resultKind", "eq", "aggregate"), gate.atom("ds:minGroupSize", "gteq", str(one.group)),
            Atom(column_term("dimension", self._dimension), "eq", (Literal("exact"),)),
        )  # fmt: skip

    def _told(self, question: Question) -> str:
        """The question as the second opinion is asked it."""
        sql = question.sql
        for one in self.sides:
            sql = sql.replace(one.name, one.table)
        only = question.sides[-1]
        if only.group:  # whole cells, of at least so many rows
            sql += f" HAVING count(*) >= {only.group}"
        return sql

    def _question(self) -> Question:
        a, b = self.sides
        keys = self._keys()
        kinds = ["one", "union", "all"] + ["join", "in", "count", "group", "not in"] * bool(keys)
        if b.group:
            kinds += ["groups"] * 8
        kind = self.rng.choice(kinds)
        shown = [name for name in a.case.found.shown if name in b.case.found.shown]
        names = ", ".join(map(quoted, self.rng.sample(shown, self.rng.randint(1, len(shown))))) if shown else "1 AS one"
        key = quoted(self.rng.choice(keys)) if keys else ""
        on = f"{a.name} AS x JOIN {b.name} AS y ON x.{key} = y.{key}"
        if kind in ("join", "group") and self._many(f"SELECT count(*) FROM {on}"):
            kind = "count"
        self.met[f"together: question {kind}"] += 1
        both = (a, b)
        if kind == "groups":
            name = quoted(self._dimension)
            return Question(f"SELECT {name}, count(*) AS n FROM {b.name} GROUP BY {name}", (b,), (0,))
        if kind == "one":
            of = ", ".join(map(quoted, a.case.found.shown))
            return Question(f"SELECT {of} FROM {a.name}", (a,), (0,))
        if kind == "all":
            return Question(f"SELECT count(*) AS n FROM {a.name}", (a,), (1,))
        if kind == "union":
            return Question(f"SELECT {names} FROM {a.name} UNION ALL SELECT {names} FROM {b.name}", both, (1, 1))
        if kind == "join":
            return Question(f"SELECT x.{key} AS k, y.{key} AS l FROM {on}", both)
        if kind == "in":
            return Question(f"SELECT {names} FROM {a.name} WHERE {key} IN (SELECT {key} FROM {b.name})", both)
        if kind == "not in":
            none = f"NOT EXISTS (SELECT 1 FROM {b.name} AS y WHERE y.{key} = x.{key})"
            return Question(f"SELECT {names} FROM {a.name} AS x WHERE {none}", both, (0, 1))
        if kind == "group":
            return Question(f"SELECT x.{key} AS k, count(*) AS n FROM {on} GROUP BY x.{key}", both, (1, 1))
        return Question(f"SELECT count(*) AS n FROM {on}", both, (1, 1))

    def _keys(self) -> list[str]:
        """Columns of both by which they may be joined."""
        a, b = (one.case.found for one in self.sides)
        fit = (one.name for one in self.world.columns if one.of.family not in (FLOAT, OTHER, BLOB))
        return [one for one in fit if one in a.shown and a.shown[one] == b.shown.get(one)]

    def _many(self, sql: str) -> bool:
        for one in self.sides:
            sql = sql.replace(one.name, one.table)
        ((rows,),) = self.world.con.execute(sql).fetchall()
        return bool(rows > _MOST)


def _rows(table: pa.Table) -> collections.Counter[tuple[str, ...]]:
    return collections.Counter(zip(*map(texts, table.columns), strict=True))


def _view(con: Any, one: Side) -> None:
    """What a policy shows of the rows, as a table that a question may name."""
    raw = f"raw_{one.table}"
    con.register(raw, one.case.world.con.sql("FROM raw").to_arrow_table())
    shown = ", ".join(f"{sql} AS {quoted(name)}" for name, sql in one.case.found.shown.items())
    where = f" WHERE {' AND '.join(f'({sql})' for sql in one.case.found.filters)}" if one.case.found.filters else ""
    con.execute(f"CREATE OR REPLACE TEMP TABLE {one.table} AS SELECT {shown} FROM {raw}{where}")
    con.unregister(raw)
