"""The columns that JOIN ... USING merges, as the engine reads them. Pure.

A comma starts a new FROM item: in `b, a JOIN c USING (k)` the `k` of a and c is merged, and that of b is separate.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass

from sqlglot import exp

from policies.contracts.columns import fold


@dataclass(frozen=True, slots=True)
class MergedColumn:
    """A column merged by USING: its sources in order, and the source of its value.

    `value` is empty after a FULL JOIN: the first source that is not NULL.
    """

    name: str
    sources: tuple[str, ...]
    value: str


class UsingScope:
    """The sources of a FROM, added join by join. `columns`: the folded column names of each source by folded alias."""

    def __init__(self, first: str, columns: Mapping[str, Container[str]]) -> None:
        self.columns = columns
        self._before: tuple[MergedColumn, ...] = ()  # merged before the last comma
        self._here: tuple[MergedColumn, ...] = ()
        self._sources = [first]  # since the last comma

    @property
    def merged(self) -> tuple[MergedColumn, ...]:
        return (*self._before, *self._here)

    def join(self, join: exp.Expr, alias: str) -> list[tuple[str, MergedColumn | None]]:
        """Add a join and return the names that USING compares, each with the column on the left side.

        A name has None when the left side has no column or several of that name, or the joined source has no such
        column.
        """
        side, kind, using = _word(join, "side"), _word(join, "kind"), join.args.get("using") or ()
        tests = kind in ("SEMI", "ANTI")
        if is_comma(join):
            self._before, self._here, self._sources = self.merged, (), []
        pairs = [(name, self._column_before(name, alias)) for name in dict.fromkeys(fold(one.name) for one in using)]
        for name, left in pairs:
            if left is not None:
                value = {"": left.value, "LEFT": left.value, "RIGHT": alias}.get(side, "")
                made = left if tests else MergedColumn(name, (*left.sources, alias), value)
                self._here = (*(one for one in self._here if one.name != name), made)
        if not tests:
            self._sources.append(alias)
        return pairs

    def _column_before(self, name: str, alias: str) -> MergedColumn | None:
        for one in self._here:
            if one.name == name:
                return one if name in self.columns[alias] else None
        holders = [one for one in self._sources if name in self.columns[one]]
        return (
            MergedColumn(name, (holders[0],), holders[0]) if len(holders) == 1 and name in self.columns[alias] else None
        )


def expand_star(
    columns: Mapping[str, Sequence[str]], hidden: Container[str], merged: Sequence[MergedColumn]
) -> Iterator[tuple[str, str, MergedColumn | None]]:
    """Yield what `*` stands for: source, column name as written, and its merged column; a merged column only once."""
    done: set[int] = set()
    for alias, names in columns.items():
        for name in names if alias not in hidden else ():
            one = next((one for one in merged if one.name == fold(name) and alias in one.sources), None)
            if one is None or id(one) not in done:
                yield alias, name, one
            done.add(id(one))


def is_comma(join: exp.Expr) -> bool:
    """Return whether a source is joined by a comma, which starts a new FROM item."""
    return not any(join.args.get(name) for name in ("kind", "side", "method", "on", "using"))


def _word(join: exp.Expr, name: str) -> str:
    return str(join.args.get(name) or "").upper()
