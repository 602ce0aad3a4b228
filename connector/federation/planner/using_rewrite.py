"""Expands USING before names are bound: into conditions, in `*`, and where a name means a merged column.

Names in subqueries that refer to an outer query get their source too. The binder would otherwise read
`b, a JOIN c USING (k)` as a join on b's k, and would merge the k of other sources. Names that the binder and the engine
would read differently are refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from sqlglot import exp

from connector.errors import QueryInvalid
from connector.federation.planner.expansion_limit import SelectScope
from policies.contracts.columns import fold
from policies.sql import syntax_tree as trees
from policies.sql.allowed_syntax import QUERIES
from policies.sql.using import MergedColumn, expand_star, is_comma

_QUERIES = (*QUERIES, exp.Subquery)
WRITTEN = "written"  # key in a source's `meta`: its alias as written


def write_out(blocks: Sequence[SelectScope], *, fields: bool) -> None:
    """Expand USING in all SELECTs, inner ones first. `fields`: some columns have types with fields."""
    known = {id(block.select): block for block in blocks}
    for block in blocks:
        _refuse_table_as_column(block, known)
        _refuse_column_as_table(block, known, fields=fields)
        _refuse_ambiguous_names(block, known)
        _refuse_field_before_comma(block)
        _refuse_lateral_names(block, known)
        if block.joined:
            _write_out_block(block, known)
        _qualify_outer_names(block, known)


def _refuse_table_as_column(block: SelectScope, known: Mapping[int, SelectScope]) -> None:
    """Refuse a source's name used as a column: the engine reads it as a struct of the row, the binder does not."""
    written = {fold(one.alias_or_name): one.meta.get(WRITTEN, one.alias_or_name) for one in trees.sources(block.select)}
    here = [alias for alias in block.sources if alias not in block.tested]
    every, seen = _table_words(block.sources, written, block), _table_words(here, written, block)
    for clause, part in _parts(block.select) if every or seen else ():
        for column in _free_columns(part, known):
            if fold(column.name) in (every if clause == "joins" else seen) and not _is_output(column, clause, block):
                raise table_as_column_error(column.name)


def _refuse_column_as_table(block: SelectScope, known: Mapping[int, SelectScope], *, fields: bool) -> None:
    """Refuse `a.b` in a subquery if `a` is a source here and a column there: the engine reads the column's field.

    A column without fields is an error there. Only WHERE then looks for the source in outer queries, if the subquery
    has one column `a`.
    """
    written = {fold(one.alias_or_name): one.meta.get(WRITTEN, one.alias_or_name) for one in trees.sources(block.select)}
    stack = [(query, frozenset[str]()) for _, part in _parts(block.select) for query in trees.nested_queries(part)]
    while stack:
        node, met = stack.pop()
        if isinstance(node, exp.Column):
            if fold(node.table) in met:
                raise field_or_column_error(written[fold(node.table)])
        elif isinstance(node, exp.Select):
            within = known[id(node)]
            for clause, part in _parts(node):
                seen = [names for alias, names in within.sources.items()
                        if clause == "joins" or alias not in within.tested]  # fmt: skip
                allowed = 1 if clause == "where" and not fields else 0
                here = {
                    alias for alias, word in written.items() if sum(fold(word) in names for names in seen) > allowed
                }
                stack.append((part, met | here))
            stack += [(source, met) for source in trees.sources(node) if isinstance(source, exp.Subquery)]
            stack += [(cte, met) for cte in (node.args.get("with_") or exp.With()).args.get("expressions") or ()]
        else:
            stack += [(one, met) for one in node.iter_expressions()]


def _refuse_ambiguous_names(block: SelectScope, known: Mapping[int, SelectScope]) -> None:
    """Refuse a name that several sources have, and a column of a SEMI or ANTI join's source after the join."""
    sources = {alias: frozenset(names) for alias, names in block.sources.items()}
    for place, join in enumerate(block.select.args.get("joins") or ()):
        if (on := join.args.get("on")) is not None:
            before = dict([*sources.items()][: place + 2])
            _check_one_source(_free_columns(on, known), before, block.joined[place].merged if block.joined else ())
            _refuse_later_sources([*_free_columns(on, known)], before, sources)
    seen = {alias: names for alias, names in sources.items() if alias not in block.tested}
    order = block.select.args.get("order")
    ordered = [one.this for one in order.expressions] if order is not None else []
    keys = {id(key) for key in ordered if fold(key.name) in block.names}  # these mean the output
    for clause, part in _parts(block.select):
        if clause != "joins":
            _check_one_source((one for one in _free_columns(part, known) if id(one) not in keys), seen, block.merged)
    for column in trees.in_block(block.select):
        if isinstance(column, exp.Column) and fold(column.table) in block.tested:
            raise QueryInvalid(
                f"{column.table} is the source of a SEMI or ANTI JOIN; its columns can be used only in that join's ON",
                code="column_unknown",
            )


def _refuse_later_sources(
    names: Iterable[exp.Column], before: Mapping[str, frozenset[str]], sources: Mapping[str, frozenset[str]]
) -> None:
    """Refuse a name in ON that only later sources have: the engine looks for it in outer queries."""
    for column in names:
        name = fold(column.name)
        if not any(name in there for there in before.values()) and any(name in there for there in sources.values()):
            raise QueryInvalid(
                f"ON does not see {column.name}, as its source is joined later; write the condition in WHERE",
                code="column_unknown",
            )


def _refuse_field_before_comma(block: SelectScope) -> None:
    """Refuse `a.b` in ON if `a` is a source before a comma and a column after it: the engine reads that field."""
    sources = trees.sources(block.select)
    written = {fold(one.alias_or_name): fold(one.meta.get(WRITTEN, one.alias_or_name)) for one in sources}
    aliases, begun = [*block.sources], 0
    for place, join in enumerate(block.select.args.get("joins") or (), 1):
        if is_comma(join):
            begun = place
        on, joined = join.args.get("on"), aliases[begun : place + 1]
        for column in trees.columns(on) if on is not None and begun else ():
            alias = fold(column.table)
            if alias in aliases[:begun] and any(written[alias] in block.sources[one] for one in joined):
                raise field_or_column_error(written[alias])


def field_or_column_error(name: str) -> QueryInvalid:
    return QueryInvalid(f"{name} is the name of a table and of a column here; rename the table", code="column_unknown")


def _refuse_lateral_names(block: SelectScope, known: Mapping[int, SelectScope]) -> None:
    """Refuse a derived table that uses a name of an earlier source in FROM: the engine looks there."""
    before: dict[str, frozenset[str]] = {}
    for source in trees.sources(block.select):
        if isinstance(source, exp.Subquery):
            for column in _free_columns(source, known):
                beside = [alias for alias, names in before.items() if fold(column.name) in names]
                if beside:
                    raise lateral_reference_error(beside[0])
        alias = fold(source.alias_or_name)
        if alias not in block.tested:
            before[alias] = frozenset(block.sources[alias])


def lateral_reference_error(alias: str) -> QueryInvalid:
    return QueryInvalid(
        f"a derived table does not see {alias} in the same FROM; write that condition in ON or WHERE",
        code="column_unknown",
    )


def _check_one_source(
    names: Iterable[exp.Column], sources: Mapping[str, frozenset[str]], merged: Sequence[MergedColumn]
) -> None:
    """Refuse a name that several sources have, unless USING merges it."""
    for column in names:
        name = fold(column.name)
        if sum(name in there for there in sources.values()) > 1 and all(one.name != name for one in merged):
            raise QueryInvalid(
                f"several sources have a column {column.name}; write table.{name}", code="column_unknown"
            )


def _table_words(aliases: Iterable[str], written: Mapping[str, str], block: SelectScope) -> set[str]:
    """Names of sources as written, without names that are also a column's."""
    aliases = [*aliases]
    return {fold(written[one]) for one in aliases}.difference(*(block.sources[one] for one in aliases))


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
