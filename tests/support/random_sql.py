"""Random queries over the clinic's tables, half of them hostile: for the checker that looks for planted secrets.

A grammar, not a list: clauses, subqueries, hidden columns, refused functions and odd syntax are mixed at
random, so that what nobody thought of is tried too. The same seed gives the same queries.
"""

from __future__ import annotations

import random

COLUMNS = {
    "people": ["id", "name", "phone", "country", "age", "salary", "joined", "note"],
    "visits": ["id", "person_id", "ward", "remark", "code"],
    "outcomes": ["region", "age", "cost", "person_id"],
}
HIDDEN = ["ssn", "consent", "diagnosis", "rowid", "secret", "src_people.ssn", "people", "filename"]
OTHER_TABLES = ["vault", "src_people", "src_visits", "main.src_people", "range(10)", "duckdb_tables()", "shared"]
TEXTS = {"name", "phone", "country", "note", "remark", "region"}
DAYS = {"joined"}
FUNCTIONS = {"lower": True, "upper": True, "length": True, "trim": True, "abs": False, "round": False, "sign": False}
REFUSED = ["repeat", "error", "list", "string_agg", "hash", "getenv", "strptime", "first", "arg_max", "to_json", "md5"]
AGGREGATES = ["count", "sum", "min", "max", "avg", "any_value", "stddev", "median", "count", "max", "sum"]
TYPES = ["int", "bigint", "varchar", "date", "double", "decimal(9,2)", "boolean", "blob"]
LITERALS = ["0", "1", "17", "1000", "'DE'", "'x'", "'%SEC%'", "'name-%'", "date '2020-06-01'", "null", "true", "-1"]
COMPARISONS = ["=", "<>", "<", "<=", ">", ">=", "is distinct from", "like", "in", "between", "is null"]


class Queries:
    """An endless source of queries from one seed; `hostile` is the share of odd parts in each."""

    def __init__(self, seed: int, *, hostile: float = 0.02) -> None:
        self.random = random.Random(seed)
        self.hostile = hostile

    def query(self, depth: int = 0) -> str:
        """One query; deeper ones are simpler."""
        roll = self.random.random()
        if depth == 0 and roll < 0.15:
            return self._aggregate_only()
        if depth < 2 and roll < 0.22:
            return f"with w as ({self.query(depth + 1)}) select * from w"
        if depth < 2 and roll < 0.28:
            operator = self._pick(["union", "union all", "intersect", "except"])
            right = self._select(depth + 1, outputs=1)
            if self._rare(0.3):
                right = f"({right} {self._pick(['union', 'except'])} {self._select(depth + 1, outputs=1)})"
            return f"{self._select(depth + 1, outputs=1)} {operator} {right}"
        return self._select(depth)

    def _select(self, depth: int, outputs: int | None = None) -> str:
        sources = [self._source(depth, index) for index in range(1 if self._rare(0.75) else 2)]
        names = [f"s{index}.{name}" for index, (_, columns) in enumerate(sources) for name in columns]
        shown = [self._output(names, depth) for _ in range(outputs or self.random.randint(1, 3))]
        text = f"select {'distinct ' if self._rare(0.1) else ''}{', '.join(shown)} from {sources[0][0]} s0"
        if len(sources) == 2:
            text += f" {self._pick(['join', 'left join', 'semi join', 'anti join'])} {sources[1][0]} s1"
            left, right = ([f"s{index}.{name}" for name in sources[index][1]] for index in range(2))
            text += f" on {self._number(left)} = {self._number(right)}"
        if self._rare(0.6):
            text += f" where {self._condition(names, depth)}"
        if self._rare(0.3) and "(" in shown[-1] and len(shown) > 1:
            text = text.replace(", ".join(shown), f"{shown[0]}, {self._total(names, depth)}", 1)
            text += " group by 1"
        if self._rare(0.1):
            text += f" having count({self._pick(names)}) > {self._pick(LITERALS[:3])}"
        if self._rare(0.2) and depth == 0:
            text += f" order by {self._value(names, depth)}"
        return text

    def _aggregate_only(self) -> str:
        columns = COLUMNS["outcomes"]
        measure = self._pick(["sum(cost)", "avg(cost)", "count(cost)", "count(*)", "count(distinct person_id)"])
        if self._rare(self.hostile * 8):
            measure = f"{self._pick(AGGREGATES)}({self._value(columns, 2)})"
        group = self._pick(["region", "age"]) if not self._rare(self.hostile * 4) else self._value(columns, 2)
        where = self._pick(["age >= 20", "region = 'N'", "age in (0, 20)", "age between 0 and 40", "region <> 'S'"])
        if self._rare(self.hostile * 8):
            where = self._condition(columns, 1)
        return f"select {group}, {measure} from outcomes where {where} group by {group}"

    def _source(self, depth: int, index: int) -> tuple[str, list[str]]:
        if self._rare(self.hostile):
            return self._pick(OTHER_TABLES), COLUMNS["people"]
        if depth < 2 and self._rare(0.15):
            names = self.random.sample(COLUMNS["people"], 3)
            if self._rare(0.3):
                shown = f"{', '.join(names)}, not {self._condition(names, 3)} as truth, age between 3 and 60 as among"
                return f"(select {shown} from people)", [*names, "truth", "among"]
            return f"(select {', '.join(names)} from people where {self._condition(names, 2)})", names
        table = self._pick(["people", "people", "visits", "visits", "outcomes" if self._rare(0.1) else "people"])
        return table, COLUMNS[table]

    def _output(self, names: list[str], depth: int) -> str:
        roll = self.random.random()
        if roll < 0.1:
            return "*"
        if roll < 0.35:
            return self._total(names, depth)
        if roll < 0.4:
            return f"row_number() over (partition by {self._pick(names)} order by {self._value(names, depth)})"
        return self._value(names, depth)

    def _total(self, names: list[str], depth: int) -> str:
        aggregate = self._pick(AGGREGATES)
        if aggregate in ("sum", "avg", "stddev", "median"):
            return f"{aggregate}({self._number(names)})"
        return f"{aggregate}({self._value(names, depth)})"

    def _number(self, names: list[str]) -> str:
        """A numeric column as a rule, anything now and then."""
        fit = [name for name in names if name.partition(".")[2] not in TEXTS | DAYS and name not in TEXTS | DAYS]
        return self._pick(fit) if fit and not self._rare(self.hostile) else self._pick(names)

    def _text(self, names: list[str]) -> str:
        fit = [name for name in names if name.partition(".")[2] in TEXTS or name in TEXTS]
        return self._pick(fit) if fit and not self._rare(self.hostile) else self._pick(names)

    def _pair(self, names: list[str]) -> str:
        """Two values that can be compared, as a rule."""
        if self._rare(0.5):
            left, right = self._number(names), self._pick([self._number(names), "0", "17", "1000", "-1"])
        else:
            left, right = self._text(names), self._pick([self._text(names), "'DE'", "'x'", "'name-'"])
        return f"{left} {self._pick(COMPARISONS[:7])} {right}"

    def _value(self, names: list[str], depth: int) -> str:
        if self._rare(self.hostile):
            return self._pick(
                [f"{self._pick(REFUSED)}({self._pick(names)})", self._pick(HIDDEN), f"{self._pick(names)}[1]"]
            )
        roll = self.random.random()
        if roll < 0.5:
            return self._pick(names)
        if roll < 0.6:
            return self._pick(LITERALS)
        if roll < 0.72:
            function = self._pick(list(FUNCTIONS))
            return f"{function}({self._text(names) if FUNCTIONS[function] else self._number(names)})"
        if roll < 0.82:
            return f"try_cast({self._pick(names)} as {self._pick(TYPES[:-1])})"
        if roll < 0.86:
            return f"cast({self._pick(names)} as {self._pick(TYPES)})"
        if roll < 0.93:
            right = self._pick([self._number(names), *LITERALS[:4]])
            return f"({self._number(names)} {self._pick(['+', '*', '-', '%', '||'])} {right})"
        if roll < 0.97 or depth > 1:
            return f"case when {self._condition(names, 3)} then {self._pick(names)} end"
        return f"(select max({self._pick(COLUMNS['people'])}) from people)"

    def _condition(self, names: list[str], depth: int) -> str:
        roll = self.random.random()
        if roll < 0.15 and depth < 3:
            return (
                f"({self._condition(names, depth + 1)} {self._pick(['and', 'or'])} {self._condition(names, depth + 1)})"
            )
        if roll < 0.2 and depth < 3:
            return f"not ({self._condition(names, depth + 1)})"
        if roll < 0.25 and depth < 2:
            return f"exists (select * from visits q where q.person_id = {self._pick(names)})"
        if not self._rare(0.25):
            return self._pair(names)
        left, operator = self._value(names, depth + 1), self._pick(COMPARISONS)
        if operator == "is null":
            return f"{left} is null"
        if operator == "in":
            return f"{left} in ({self._pick(LITERALS)}, {self._pick(LITERALS)})"
        if operator == "between":
            return f"{left} between {self._pick(LITERALS)} and {self._pick(LITERALS)}"
        if operator == "like":
            return f"{left} like {self._pick([text for text in LITERALS if text.startswith(chr(39))])}"
        return f"{left} {operator} {self._value(names, depth + 1)}"

    def _pick(self, options: list[str]) -> str:
        return self.random.choice(options)

    def _rare(self, share: float) -> bool:
        return self.random.random() < share
