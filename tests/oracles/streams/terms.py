"""Random policies over a dataset's rows, random requests under them, and what must come, in SQL that is written here.

The SQL is made from the words of the policy (docs/policy-words.md), with nothing of what compiles or enforces them: a
comparison with a null or NaN is unknown, unknown hides a row, and a condition of the consumer sees what the policy
shows.
"""

from __future__ import annotations

import hashlib
import hmac
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from policies.model import Atom, Connective, Constraint, Group, Literal, Policy
from policies.vocabulary import column_term
from tests.oracles.streams.columns import BLOB, BOOL, DATE, DECIMAL, FLOAT, INTEGER, OTHER, STAMP, TEXT, ZONED, Column
from tests.support import gate

PLACE = "place of the row"
_EQUAL = ("eq", "neq", "isAnyOf", "isNoneOf")
_ORDERED = ("lt", "lteq", "gt", "gteq")
_SIGNS = {"eq": "=", "neq": "<>", "lt": "<", "lteq": "<=", "gt": ">", "gteq": ">="}
_TEXT_MAX = 1_000  # characters of a text in a condition: the gate takes 4,096
_METHODS = {
    INTEGER: ("null", "hash", "truncate", "round", "generalise"),
    FLOAT: ("null", "hash", "truncate", "round", "generalise"),
    DECIMAL: ("null", "hash", "truncate", "round", "generalise"),
    TEXT: ("null", "hash", "hash", "truncate"),
    BOOL: ("null", "hash"),
    DATE: ("null", "hash", "truncate", "generalise"),
    STAMP: ("null", "hash", "truncate", "generalise"),
    ZONED: ("null", "hash", "generalise"),
}
_WRITTEN = {DATE: "DATE ", STAMP: "TIMESTAMP ", ZONED: "TIMESTAMPTZ "}


@dataclass(frozen=True, slots=True)
class Seen:
    """A column as the engine shows it: its name and its type in SQL."""

    name: str
    type: str
    of: Column


@dataclass(frozen=True, slots=True)
class Terms:
    """A policy, and the same in SQL: the columns that it shows, each as what, and which rows."""

    policy: Policy
    shown: Mapping[str, str]
    families: Mapping[str, str]
    filters: tuple[str, ...]
    masks: Mapping[str, str] = field(default_factory=dict)  # the column's method


@dataclass(frozen=True, slots=True)
class Read:
    """A request. `blocks`: none, all, or some in a random order; `cut`: after which part of the answer one goes on."""

    columns: tuple[str, ...]
    where: str
    most: int | None
    batch_rows: int | None
    codec: str
    digest: str
    blocks: str
    cut: float | None
    twice: bool
    readers: int
    batch_bytes: int

    @property
    def parameters(self) -> dict[str, str]:
        """The query string, but for what a plan tells."""
        given = {
            "columns": ",".join(self.columns), "where": self.where, "limit_rows": self.most or "",
            "batch_rows": self.batch_rows or "", "codec": self.codec, "digest": self.digest,
        }  # fmt: skip
        return {name: str(value) for name, value in given.items() if value}


def terms(rng: random.Random, columns: Sequence[Seen], *, rows: int, key: bytes) -> Terms:
    """A policy; of some datasets it shows all rows as they are. `key`: of its hash masks."""
    constraints: list[Constraint] = []
    shown, all_of_it = list(columns), rng.random() < 0.2
    if len(columns) > 1 and rng.random() < 0.35:
        shown = [one for one in columns if rng.random() < 0.7] or [columns[0]]
        constraints.append(_choice(rng, columns, shown))
    filters = []
    for _ in range(0 if all_of_it else rng.choice((0, 1, 1, 1, 2))):
        made, sql = _constraint(rng, columns, rows, depth=0)
        constraints.append(made)
        filters.append(sql)
    duties, masks, methods = [], {}, {}
    for one in rng.sample(shown, min(len(shown), rng.choice((0, 0, 0, 1, 1, 2, 3)) * (not all_of_it))):
        method, argument = _mask(rng, one)
        duties.append(gate.mask(method, one.name, argument=argument))
        masks[one.name] = _masked(one, method, argument, key)
        methods[one.name] = method
    if rng.random() < 0.06:
        constraints.append(gate.atom("ds:rowQuota", "lteq", "9000000"))
    text = {name for name, method in methods.items() if method in ("hash", "truncate")}
    return Terms(
        gate.agreement(*constraints, duties=duties, action="odrl:use"),
        {one.name: masks.get(one.name, quoted(one.name)) for one in shown},
        {one.name: TEXT if one.name in text else one.of.family for one in shown},
        tuple(filters),
        methods,
    )


def read(rng: random.Random, found: Terms, columns: Sequence[Seen], *, rows: int) -> Read:
    """A request under these terms."""
    blocks = rng.choice(("", "", "", "all", "some"))
    where = _condition(rng, found, columns, rows) if rng.random() < 0.4 else ""
    return Read(
        columns=_columns(rng, found),
        where=where,
        most=rng.randint(1, max(2, 2 * rows)) if rng.random() < 0.15 else None,
        batch_rows=rng.choice((1 + rows // 10, 7 + rows // 50, 5000)) if rng.random() < 0.2 else None,
        codec=rng.choice(("", "", "", "none", "none", "lz4", "zstd")),
        digest=rng.choice(("", "xxh3", "sha256")),
        blocks=blocks,
        cut=rng.random() if blocks and rng.random() < 0.6 else None,
        twice=rng.random() < 0.2,
        readers=rng.choice((1, 1, 1, 1, 1, 1, 2, 3, 6)),
        batch_bytes=rng.choice((2**16, 2**16, 2**18, 3 * 2**20)),
    )


def select(found: Terms, asked: Read, *, limited: bool) -> str:
    """What must come, in its order, from a table `raw` that has each row's place; the place comes with it."""
    shown = ", ".join(f"{sql} AS {quoted(name)}" for name, sql in found.shown.items())
    inner = f"SELECT {shown}, {quoted(PLACE)} FROM raw"
    if found.filters:
        inner += f" WHERE {' AND '.join(f'({one})' for one in found.filters)}"
    names = ", ".join(map(quoted, asked.columns or found.shown))
    sql = f"SELECT {names}, {quoted(PLACE)} FROM ({inner})" + (f" WHERE {asked.where}" if asked.where else "")
    return f"{sql} ORDER BY {quoted(PLACE)}" + (f" LIMIT {asked.most}" if limited and asked.most else "")


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


# the policy


def _choice(rng: random.Random, columns: Sequence[Seen], shown: Sequence[Seen]) -> Atom:
    hidden = [one.name for one in columns if one not in shown]
    if hidden and rng.random() < 0.5:
        return _many("ds:columnDeny", "isNoneOf", hidden)
    return _many("ds:columnAllow", "isAnyOf", [one.name for one in shown])


def _many(left: str, operator: str, values: Sequence[str]) -> Atom:
    made = gate.atom(left, operator, *values)
    return Atom(made.left, made.operator, made.right, many=True)


def _constraint(rng: random.Random, columns: Sequence[Seen], rows: int, *, depth: int) -> tuple[Constraint, str]:
    """A row filter, and the same in SQL."""
    if depth < 2 and rng.random() < 0.35:
        several = [_constraint(rng, columns, rows, depth=depth + 1) for _ in range(rng.choice((2, 2, 3)))]
        how = rng.choice((Connective.OR, Connective.OR, Connective.AND, Connective.XONE))
        parts = [f"({sql})" for _, sql in several]
        sql = _exactly_one(parts) if how is Connective.XONE else f" {how.value} ".join(parts)
        return Group(how, tuple(made for made, _ in several)), sql
    one = rng.choice([one for one in columns if one.of.family not in (OTHER, BLOB)])
    operator = rng.choice(_EQUAL if one.of.family == BOOL else _EQUAL + _ORDERED)
    if operator == "eq" and rng.random() < 0.5:  # few rows are left
        operator = "neq"
    many = operator in ("isAnyOf", "isNoneOf")
    values = [_value(rng, one, rows) for _ in range(rng.choice((1, 2, 3, 12)) if many else 1)]
    literals = tuple(Literal(text) for text, _ in dict(values).items())
    return Atom(column_term("row", one.name), operator, literals, many), _comparison(one, operator, values)


def _comparison(one: Seen, operator: str, values: Sequence[tuple[str, str]]) -> str:
    name, literals = quoted(one.name), [sql for _, sql in values]
    if operator in _SIGNS:
        sql = f"{name} {_SIGNS[operator]} {literals[0]}"
    else:
        equal = " OR ".join(f"{name} = {sql}" for sql in literals)
        sql = f"({equal})" if operator == "isAnyOf" else f"NOT ({equal})"
    return f"CASE WHEN NOT isnan({name}) THEN {sql} END" if one.of.family == FLOAT else sql


def _exactly_one(parts: Sequence[str]) -> str:
    count = " + ".join(f"coalesce({one}, false)::INTEGER" for one in parts)
    unknown = " OR ".join(f"{one} IS NULL" for one in parts)
    return f"CASE WHEN {count} > 1 THEN false WHEN {unknown} THEN NULL ELSE {count} = 1 END"


def _value(rng: random.Random, one: Seen, rows: int) -> tuple[str, str]:
    """A value as a policy writes it, and as SQL does."""
    family, found = one.of.family, None
    while found is None or (family == FLOAT and not abs(found) < 1e9) or (family == TEXT and len(found) > _TEXT_MAX):
        found = rng.randint(0, max(1, rows)) if one.of.unique else one.of.draw(rng)
    text = _text_of(found, one, rng)
    return text, _literal(text, family, one)


def _text_of(found: Any, one: Seen, rng: random.Random) -> str:
    if one.of.family == BOOL:
        return "true" if found else "false"
    if one.of.family in (DATE, STAMP, ZONED):
        text: str = found.isoformat()
        return text.replace("+00:00", "Z") if rng.random() < 0.5 else text
    return f"{found:f}" if one.of.family in (DECIMAL, FLOAT) else str(found)


def _literal(text: str, family: str, one: Seen) -> str:
    if family in (TEXT, *_WRITTEN):
        return _WRITTEN.get(family, "") + "'" + text.replace("'", "''") + "'"
    if family == DECIMAL:
        assert isinstance(one.of.type, pa.Decimal128Type)
        return f"CAST('{text}' AS DECIMAL(38, {one.of.type.scale}))"
    return f"CAST('{text}' AS DOUBLE)" if family == FLOAT else text


def _mask(rng: random.Random, one: Seen) -> tuple[str, str | None]:
    """A method and its argument, but for those that would keep every value as it is: they are refused."""
    family = one.of.family
    method = rng.choice(_METHODS.get(family, ("null",)))
    if method == "truncate":
        return method, str(rng.randint(0, 4))
    if method == "round":
        return method, str(rng.randint(-2, 0 if family == FLOAT else -1))
    if method == "generalise" and family == DATE:
        return method, rng.choice(("year", "quarter", "month", "week"))
    if method == "generalise" and family in (STAMP, ZONED):
        return method, rng.choice(("year", "quarter", "month", "week", "day", "hour"))
    if method == "generalise":
        return method, rng.choice(("3", "10"))
    return method, None


def _masked(one: Seen, method: str, argument: str | None, key: bytes) -> str:
    name = quoted(one.name)
    text = f"CAST({name} AS VARCHAR)"
    if method == "null":
        return f"CAST(NULL AS {one.type})"
    if method == "hash":
        inner, outer = (hmac.new(key, b"hanse mask " + one, hashlib.sha256).hexdigest() for one in (b"inner", b"outer"))
        return f"sha256('{outer}' || sha256('{inner}' || {text}))"
    if method == "truncate":
        return f"substring({text}, 1, {argument})"
    if method == "round":
        rounded = f"TRY_CAST(TRY(round({name}, {argument})) AS {one.type})"
        return _one_zero(rounded) if one.of.family == FLOAT else rounded
    if one.of.family in _WRITTEN:
        return f"CAST(date_trunc('{argument}', {name}) AS {one.type})"
    if one.of.family == FLOAT:
        return _one_zero(f"TRY_CAST(floor(CAST({name} AS DOUBLE) / {argument}.0) * {argument}.0 AS {one.type})")
    return f"TRY_CAST(TRY({name} - ({name} % {argument} + {argument}) % {argument}) AS {one.type})"


def _one_zero(number: str) -> str:
    """The sign of a zero would tell that what was rounded lies below it."""
    return f"CASE WHEN {number} = 0 THEN abs({number}) ELSE {number} END"


# the request


def _columns(rng: random.Random, found: Terms) -> tuple[str, ...]:
    askable = [name for name in found.shown if name and "," not in name and name.strip() == name]
    if not askable or rng.random() < 0.4:
        return ()
    chosen = rng.sample(askable, rng.randint(1, len(askable)))
    if rng.random() < 0.05:
        chosen.append(rng.choice(chosen))
    if rng.random() < 0.05:
        chosen[0] = chosen[0].swapcase() if chosen[0].isascii() else chosen[0]
    return tuple(chosen)


def _condition(rng: random.Random, found: Terms, columns: Sequence[Seen], rows: int, depth: int = 0) -> str:
    if depth < 2 and rng.random() < 0.35:
        parts = [_condition(rng, found, columns, rows, depth + 1) for _ in range(2)]
        return rng.choice(("NOT ({})", "({} AND {})", "({} OR {})")).format(*parts)
    one = rng.choice([one for one in columns if one.name in found.shown])
    family, name = found.families[one.name], quoted(one.name)
    if family in (OTHER, BLOB) or rng.random() < 0.1:
        return f"{name} IS {rng.choice(('', 'NOT '))}NULL"
    values = [_seen(rng, one, family, rows) for _ in range(12)]
    if family == BOOL:
        return rng.choice((name, f"NOT {name}", f"{name} = {values[0]}", f"{name} IS NOT TRUE"))
    forms = [
        f"{name} {rng.choice(list(_SIGNS.values()))} {values[0]}",
        f"{name} {rng.choice(('', 'NOT '))}IN ({', '.join(values[: rng.choice((1, 2, 3, 12))])})",
        f"{name} BETWEEN {values[0]} AND {values[1]}",
        " OR ".join(f"{name} = {value}" for value in values[: rng.choice((2, 4, 12))]),
        f"{name} IS DISTINCT FROM {values[0]}",
    ]
    if family == TEXT:
        forms += [f"{name} LIKE '{rng.choice(('a%', '%b%', '_b', '%'))}'", f"lower({name}) = {values[0]}",
                  f"length({name}) > {rng.randint(0, 3)}"]  # fmt: skip
    return f"({rng.choice(forms)})"


def _seen(rng: random.Random, one: Seen, family: str, rows: int) -> str:
    """A value that a condition may compare with what is shown of a column."""
    if family == TEXT and one.of.family != TEXT:
        return rng.choice(("'1'", "'a'", "'20'", "''"))
    return _value(rng, one, rows)[1]
