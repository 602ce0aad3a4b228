"""Expands USING after names are bound: into conditions, in `*`, and where a name means a merged column.

Names in subqueries that refer to an outer query get their source too. sqlglot would otherwise read
`b, a JOIN c USING (k)` as a join on b's k, and would merge the k of other sources.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from sqlglot import exp

from connector.errors import QueryInvalid
from connector.federation.planner.expansion_limit import SelectScope
from policies.contracts.columns import fold
from policies.sql import syntax_tree as trees
from policies.sql.allowed_syntax import QUERIES
from policies.sql.using import MergedColumn, expand_star

_QUERIES = (*QUERIES, exp.Subquery)


def write_out(blocks: Sequence[SelectScope]) -> None:
    """Expand USING in all SELECTs, inner ones first."""
    known = {id(block.select): block for block in blocks}
    for block in blocks:
        if block.joined:
            _write_out_block(block, known)
        _qualify_outer_names(block, known)


def table_as_column_error(name: str) -> QueryInvalid:
    return QueryInvalid(
        f"{name} is a table here, and no column; name its columns, or rename the output", code="column_unknown"
    )


def _qualify_outer_names(block: SelectScope, known: Mapping[int, SelectScope]) -> None:
    """Add the source to names in subqueries that mean this query's columns: in HAVING the binder does not."""
    for clause, part in _parts(block.select):
        for query in trees.nested_queries(part):
            for column in _free_columns(query, known):
                there = [alias for alias, names in block.sources.items() if fold(column.name) in names
                         and (clause == "joins" or alias not in block.tested)]  # fmt: skip
                if len(there) == 1:
                    column.set("table", exp.to_identifier(there[0]))


def merged_value(one: MergedColumn) -> exp.Expr:
    """The expression of a merged column: the column of the side that keeps its rows; for a FULL JOIN, COALESCE."""
    if one.value:
        return trees.column(one.name, one.value)
    first, *others = [trees.column(one.name, alias) for alias in one.sources]
    return exp.Coalesce(this=first, expressions=others)


def find_merged(name: str, merged: Sequence[MergedColumn]) -> MergedColumn | None:
    """The merged column with this name, if any; QueryInvalid if there are two."""
    found = [one for one in merged if one.name == name]
    if len(found) > 1:
        choices = " or ".join(f"{one.value or one.sources[0]}.{name}" for one in found)
        raise QueryInvalid(f"{name} is merged twice by USING; write {choices}", code="column_unknown")
    return found[0] if found else None


def _write_out_block(block: SelectScope, known: Mapping[int, SelectScope]) -> None:
    for one in block.joined:
        if one.pairs:
            one.join.set("on", trees.conjoin([_using_condition(one.alias, name, left) for name, left in one.pairs]))
            one.join.set("using", None)
        elif (on := one.join.args.get("on")) is not None:
            _replace_merged([*_free_columns(on, known)], one.merged)
    _write_out_stars(block)
    for clause, part in _parts(block.select):
        if clause != "joins":
            _replace_merged(
                [one for one in _free_columns(part, known) if not _is_output(one, clause, block)], block.merged
            )


def _using_condition(alias: str, name: str, left: MergedColumn | None) -> exp.Expr:
    if left is None:
        raise QueryInvalid(
            f"USING ({name}): expected exactly one column of that name before {alias} and one in {alias}, where a "
            "comma begins another FROM; write ON with both columns instead",
            code="column_unknown",
        )
    if not left.value:
        raise QueryInvalid(
            f"USING ({name}) after a FULL JOIN on it is not supported; write ON with both columns instead",
            code="syntax_not_allowed",
        )
    return exp.EQ(this=merged_value(left), expression=trees.column(name, alias))


def _write_out_stars(block: SelectScope) -> None:
    """Replace `*` by its columns, with their names."""
    found: list[exp.Expr] = []
    for output in block.select.expressions:
        if isinstance(output, exp.Star):
            found += [trees.alias_as(merged_value(one), name) if one is not None else trees.column(name, alias)
                      for alias, name, one in expand_star(block.sources, block.tested, block.merged)]  # fmt: skip
        else:
            found.append(output)
    block.select.set("expressions", found)


def _replace_merged(columns: Sequence[exp.Column], merged: Sequence[MergedColumn]) -> None:
    for column in columns:
        one = find_merged(fold(column.name), merged)
        if one is None:
            continue
        if isinstance(column.parent, exp.Select):  # an output keeps its name
            column.replace(trees.alias_as(merged_value(one), column.name))
        else:
            trees.substitute(merged_value(one), column)


def _is_output(column: exp.Column, clause: str, block: SelectScope) -> bool:
    """Whether a name means an output before a column: as a key of ORDER BY, and in HAVING outside of aggregates."""
    name = fold(column.name)
    if clause == "order" and isinstance(column.parent, exp.Ordered):
        return name in block.names and column.parent.parent is block.select.args["order"]
    return clause == "having" and name in block.called and trees.sees_outputs_of_having(column)


def _free_columns(node: exp.Expr, known: Mapping[int, SelectScope]) -> Iterator[exp.Column]:
    """The names below a node that are no column and no output of a query there."""
    stack = [node]
    while stack:
        one = stack.pop()
        if isinstance(one, exp.Column):
            if not one.table:
                yield one
        elif isinstance(one, exp.Select):
            yield from _outer_columns(known[id(one)], known)
        elif isinstance(one, _QUERIES):  # names in their ORDER BY are outputs
            parts = one.this, one.args.get("expression"), one.args.get("with_")
            stack += [part for part in parts if part is not None]
        else:
            stack.extend(one.iter_expressions())


def _outer_columns(block: SelectScope, known: Mapping[int, SelectScope]) -> Iterator[exp.Column]:
    """The names in a subquery that belong to outer queries."""
    own = {name for names in block.sources.values() for name in names}
    before: set[str] = set()  # names of earlier outputs, which later outputs may use
    for clause, part in _parts(block.select):
        for column in _free_columns(part, known):
            name = fold(column.name)
            called = before if clause == "expressions" else block.called if _sees_outputs(column, clause) else ()
            if name not in own and name not in called and not _is_output(column, clause, block):
                yield column
        if clause == "expressions" and isinstance(part, exp.Alias):
            before.add(fold(part.alias))
    derived = [source for source in trees.sources(block.select) if isinstance(source, exp.Subquery)]
    for query in (block.select.args.get("with_"), *derived):
        yield from _free_columns(query, known) if query is not None else ()


def _sees_outputs(column: exp.Column, clause: str) -> bool:
    """Whether a name means an output before an outer query's column: not in QUALIFY and aggregates of HAVING."""
    return clause != "qualify" and (clause != "having" or trees.sees_outputs_of_having(column))


def _parts(select: exp.Select) -> Iterator[tuple[str, exp.Expr]]:
    """The outputs, clauses and ON conditions of a SELECT, without its sources."""
    for name, values in list(select.args.items()):
        for value in list(values) if isinstance(values, list) else [values]:
            if isinstance(value, exp.Join) and (on := value.args.get("on")) is not None:
                yield name, on
            elif isinstance(value, exp.Expr) and name not in ("from_", "joins", "with_"):
                yield name, value
