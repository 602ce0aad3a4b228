"""Writes out names that `policies.sql.bind` resolved: output names, places, USING and `*`.

Aliases of sources are unique in the whole tree, so later rules need no scopes. A name that sqlglot and the engine would
read differently is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from sqlglot import exp
from sqlglot.errors import SqlglotError
from sqlglot.optimizer.qualify import qualify
from sqlglot.schema import MappingSchema

from connector.errors import QueryInvalid
from connector.federation.planner import expansion_limit, name_checks, using_rewrite
from connector.federation.planner.context import PlanningContext
from connector.federation.planner.model import ALL, TableColumn
from policies.contracts.columns import fold
from policies.errors import QueryRefused
from policies.sql import bind
from policies.sql import syntax_tree as trees
from policies.sql.allowed_syntax import QUERIES, SETS
from policies.sql.bind import TableEntry
from policies.sql.rewrite import list_nodes
from policies.sql.using import MergedColumn, expand_star

_NESTED = (*QUERIES, exp.Subquery)
_CALLED = "called"  # key in an output's `meta`: it has its name by AS
_PLACE = "place"  # key in the `meta` of a name in ORDER BY: the place of the output that it means
_OF_FIELDS = ("STRUCT", "UNION", "MAP", "JSON", "GEOMETRY")  # types with fields that the engine reads by name
_WORD = re.compile(r"\w+")
_FRAGMENT = re.compile(r"f\d+", re.IGNORECASE)  # names of the residual's tables


def apply(tree: exp.Expr, planning: PlanningContext) -> exp.Expr:
    """The tree with bound and written out names; QueryInvalid names an unknown or ambiguous name."""
    for select in trees.selects(tree):
        for source in trees.sources(select):
            _move_column_aliases(source)
        _mark_outputs(select)
    for node in trees.nodes(tree):
        if isinstance(node, exp.Ordered | exp.Group):
            _remove_key_parentheses(node)
        if isinstance(node, SETS) and node.args.get("order") is not None:
            _set_key_places(node)
    _bind(tree, planning)
    reckoned = expansion_limit.check(tree, planning)
    columns = [column for info in planning.infos(trees.base_tables(tree)) for column in info.columns]
    for block in reckoned.selects:
        name_checks.refuse_named_subquery(block)
        _prefer_columns(block)
        _refuse_spelled_key(block, tree, columns)
        _qualify_order_key(block)
    using_rewrite.write_out(reckoned.selects)
    for block in reckoned.selects:
        name_checks.refuse_outputs_in_aggregates(block)
    blocks = {id(block.select): block for block in reckoned.selects}
    for source, names in reckoned.renamed:
        _replace_keys_by_places(source.this, blocks[id(trees.first_select(source.this))])
        _rename_all(source, names)
    schema: dict[str, object] = {}
    for table in trees.base_tables(tree):
        shown = dict.fromkeys(planning.types(planning.columns(table)), "TEXT")
        schema.setdefault(fold(table.db), {})[fold(table.name)] = shown  # type: ignore[index]  # one of dicts
    try:
        known = MappingSchema(schema, dialect="duckdb", normalize=False)  # names are folded already
        bound: exp.Expr = qualify(tree, schema=known, dialect="duckdb", quote_identifiers=False)
    except SqlglotError as error:
        hint = "name a column of a source in FROM, or an output that is visible here"
        raise QueryInvalid(f"{_error_text(error)}; {hint}", code="column_unknown") from None
    for source, names in reckoned.renamed:
        _check_names(source, names)
    nodes = list_nodes(bound)
    for node in nodes:
        if isinstance(node, exp.TableColumn):  # its rows as structs: of which columns, pruning would decide
            raise using_rewrite.table_as_column_error(node.name)
        if isinstance(node, exp.Dot) or (isinstance(node, exp.Column) and node.args.get("db")):
            raise QueryInvalid("expected a whole struct, got a field of it; read the column", code="column_unknown")
        if isinstance(node, exp.Select):
            name_checks.refuse_outer_aggregates(node)
            _write_out_group(node)
        if isinstance(node, _NESTED) and (order := node.args.get("order")) is not None:
            _write_out_order(node, order)
    _drop_meta(nodes)
    return rename(bound)


def _bind(tree: exp.Expr, planning: PlanningContext) -> None:
    """Give every source a unique alias that is no column, and every name of a column its source."""
    tables = trees.base_tables(tree)
    known = {(fold(table.db), fold(table.name)): planning.columns(table) for table in tables}
    catalogue = [TableEntry(*name, tuple(column.name for column in columns)) for name, columns in known.items()]
    fields = any(column.type.upper().startswith(_OF_FIELDS) for columns in known.values() for column in columns)
    name_source = _NewNames(_column_names(tree, planning))
    try:
        bind.bind(tree, catalogue, name_query=_NewNames(), name_source=name_source, owners=True, fields=fields)
    except QueryRefused as error:
        code = "column_unknown" if error.code == "column_ambiguous" else error.code
        raise QueryInvalid(f"{error}{_unit_hint(str(error), tree, planning)}", code=code) from None
    for table in tables:
        if fold(table.db) == ALL and len(shares := planning.shares(table)) == 1:
            table.set("db", exp.to_identifier(shares[0].owner))


def _column_names(tree: exp.Expr, planning: PlanningContext) -> set[str]:
    """All names of columns and of outputs of inner queries: the engine reads `b.k` as a field where b is a column."""
    nodes = trees.nodes(tree)
    columns = {fold(column.name) for info in planning.tables.values() for column in info.columns}
    columns |= {fold(node.alias) for node in nodes if type(node) is exp.Alias and node.parent is not tree}
    for node in nodes:
        if type(node) is exp.TableAlias:
            columns |= {fold(name.name) for name in node.args.get("columns") or ()}
    return columns


def _drop_meta(nodes: Iterable[exp.Expr]) -> None:
    """Remove the `meta` of parser and binder, which is not needed any more and would be copied with every node."""
    for node in nodes:
        node._meta = None


def rename(tree: exp.Expr) -> exp.Expr:
    """Give every source of the tree a unique alias, also in its columns: a copy of a query has those of the query."""
    met, name = set[str](), _NewNames(trees.aliases(tree))
    for select in trees.selects(tree):
        for source in trees.sources(select):
            old = source.alias_or_name
            if old in met:
                new = name(old)
                source.args["alias"].set("this", exp.to_identifier(new))
                for column in [one for one in trees.columns(select) if one.table == old]:
                    column.set("table", exp.to_identifier(new))
            met.add(source.alias_or_name)
    return tree


def _unit_hint(error: str, tree: exp.Expr, planning: PlanningContext) -> str:
    """A hint where the unknown column is the unit that an aggregate-only dataset counts."""
    grids = [info.grid for info in planning.infos(trees.base_tables(tree))]
    missed = {grid.entity for grid in grids if grid and grid.entity and fold(grid.entity) in _WORD.findall(fold(error))}
    names = ", ".join(sorted(missed))
    return f"; {names} leaves no owner; each counts its own, asked alone (`Dataset.query` in Python)" if names else ""


def _error_text(error: SqlglotError) -> str:
    text = str(error).splitlines()[0].partition(". Line: ")[0].rstrip(".")
    return text[:1].lower() + text[1:]


def _move_column_aliases(source: exp.Expr) -> None:
    """Turn `FROM t AS x(a, b)` into a subquery: the binder accepts column names only there."""
    alias = source.args.get("alias")
    if isinstance(source, exp.Table) and alias is not None and alias.args.get("columns"):
        inner = source.copy()
        inner.set("alias", None)
        query = exp.select(exp.Star(), copy=False).from_(inner, copy=False)
        source.replace(exp.Subquery(this=query, alias=alias.copy()))


def _remove_key_parentheses(clause: exp.Expr) -> None:
    """Remove parentheses around keys of ORDER BY and GROUP BY, as the engine does: `(1)` is a place."""
    for key in [one for one in clause.iter_expressions() if isinstance(one, exp.Paren)]:
        key.replace(key.unnest())


def _set_key_places(query: exp.Expr) -> None:
    """Replace a key in a set operation's ORDER BY by a place, where it is written like an output of a side."""
    sides = [side.expressions for side in _sides(query) if not any(output.is_star for output in side.expressions)]
    for ordered in query.args["order"].expressions:
        key = ordered.this
        if isinstance(key, exp.Literal) or (isinstance(key, exp.Column) and not key.table):
            continue
        places = [place for outputs in sides for place, output in enumerate(outputs, 1) if output.unalias() == key]
        if places:
            key.replace(exp.Literal.number(places[0]))


def _sides(query: exp.Expr) -> list[exp.Select]:
    """The SELECTs of a set operation, in order."""
    found, stack = [], [query]
    while stack:
        side = stack.pop()
        if isinstance(side, exp.Select):
            found.append(side)
        else:
            stack += [one for one in (side.args.get("expression"), side.this) if one is not None]
    return found


def _mark_outputs(select: exp.Select) -> None:
    """Mark outputs with AS, and name the others that are no columns."""
    for place, output in enumerate(select.expressions):
        if isinstance(output, exp.Alias):
            output.meta[_CALLED] = True
        elif not isinstance(output, exp.Column | exp.Star):
            called = trees.alias_as(exp.Null(), output.output_name or f"_col_{place}")
            output.replace(called)
            called.set("this", output)  # the node itself, as its inner queries are visited later


def _rename_all(source: exp.Expr, names: Sequence[str]) -> None:
    """Name every column of a source: `AS x(a)` must name all."""
    source.args["alias"].set("columns", [exp.to_identifier(name, quoted=True) for name in names])


def _check_names(source: exp.Expr, names: Sequence[str]) -> None:
    """Check that the binder expanded `*` to the expected number of columns, as names are assigned by place."""
    if len(trees.first_select(source.this).expressions) != len(names):
        raise QueryInvalid(
            f"{source.alias}: expected {len(names)} columns, got another number; name its columns instead of *",
            code="syntax_not_allowed",
        )


def _prefer_columns(block: expansion_limit.SelectScope) -> None:
    """Qualify names in HAVING and in expressions of ORDER BY that the engine reads as columns before outputs."""
    select = block.select
    clauses = [clause for name in ("having", "order") if (clause := select.args.get(name)) is not None]
    if not clauses:
        return
    outputs = {fold(output.alias) for output in select.expressions if isinstance(output, exp.Alias)}
    grouped = select.args.get("group") is not None or bool(trees.aggregates(select))
    keys = _group_key_sources(block)
    for column in [node for clause in clauses for node in trees.in_block(clause) if isinstance(node, exp.Column)]:
        name = fold(column.name)
        inside = not column.table and not isinstance(column.parent, exp.Ordered)
        free = not grouped or trees.is_in_aggregate(column)
        if inside and name in outputs and (name in keys or free or _is_in_key(column, select)):
            one = using_rewrite.find_merged(name, block.merged)
            there = [keys[name]] if one is not None and keys.get(name) else name_checks.sources_with(name, block)
            if one is not None and len(there) != 1:
                trees.substitute(using_rewrite.merged_value(one), column)
            elif len(there) == 1:
                column.set("table", exp.to_identifier(there[0]))


def _is_in_key(column: exp.Column, select: exp.Select) -> bool:
    """Whether a name is part of a key of GROUP BY."""
    keys, above = trees.group_keys(select), column.parent
    while above is not None and not isinstance(above, exp.Ordered | exp.Having):
        if above in keys:
            return True
        above = above.parent
    return False


def _refuse_spelled_key(block: expansion_limit.SelectScope, tree: exp.Expr, stored: Iterable[TableColumn]) -> None:
    """Refuse a key of ORDER BY for several outputs where the spelling of one may decide.

    In the engine a column that its source spells differently has its name by AS, and the last such output is meant.
    """
    order = block.select.args.get("order")
    for column in _possible_outputs(order) if order is not None else ():
        name = fold(column.name)
        if (count := block.names.count(name)) < 2 or not (
            name in block.called or len(name_checks.sources_with(name, block)) > 1
        ):
            continue
        last = max((at for at, one in enumerate(block.select.expressions) if _is_called(one, name)), default=-1)
        plain = [one for one in block.select.expressions[last + 1 :] if isinstance(one, exp.Column)]
        if any(fold(one.name) == name for one in plain) and _has_two_spellings(name, tree, stored):
            raise _several_outputs_error(column.name, count)


def _is_called(output: exp.Expr, name: str) -> bool:
    return isinstance(output, exp.Alias) and fold(output.alias) == name


def _has_two_spellings(name: str, tree: exp.Expr, stored: Iterable[TableColumn]) -> bool:
    """Whether the question and its datasets spell a name in several ways."""
    written = {node.name for node in list_nodes(tree) if isinstance(node, exp.Identifier)}
    return len({one for one in (*written, *(column.name for column in stored)) if fold(one) == name}) > 1


def _qualify_order_key(block: expansion_limit.SelectScope) -> None:
    """Qualify a key of ORDER BY that is the name of several outputs, none of them by AS: it means the column."""
    order = block.select.args.get("order")
    for column in _possible_outputs(order) if order is not None else ():
        name = fold(column.name)
        if (count := block.names.count(name)) < 2:
            continue
        one = using_rewrite.find_merged(name, block.merged)
        full = one is not None and not one.value
        if name not in block.called:
            _qualify_by_source(column, one, block)
        elif full and any(isinstance(output, exp.Star) for output in block.select.expressions):
            raise _several_outputs_error(name, count)  # `*` names a merged column too, so the last one is unclear


def _qualify_by_source(column: exp.Column, one: MergedColumn | None, block: expansion_limit.SelectScope) -> None:
    """Add the source to a name, or replace it by a merged column; refuse a name of several sources."""
    name = fold(column.name)
    there = name_checks.sources_with(name, block)
    if one is not None and not one.value:
        there = _only_visible_source(name, block) or there
    if len(there) == 1:
        column.set("table", exp.to_identifier(there[0]))
    elif one is not None:
        trees.substitute(using_rewrite.merged_value(one), column)
    elif there:
        raise _several_outputs_error(name, block.names.count(name))


def _only_visible_source(name: str, block: expansion_limit.SelectScope) -> list[str]:
    """The source whose column is the only output of a name, next to a merged column of a FULL JOIN.

    The engine treats that merged column as an expression without a name, except in `*`.
    """
    outputs = block.select.expressions
    if any(isinstance(output, exp.Star) for output in outputs):
        return []
    named = [output for output in outputs if isinstance(output, exp.Column) and output.table]
    shown = [
        fold(one.table)
        for one in named
        if fold(one.name) == name or (one.is_star and name in block.sources.get(fold(one.table), ()))
    ]
    return shown if len(shown) == 1 else []


def _replace_keys_by_places(query: exp.Expr, block: expansion_limit.SelectScope) -> None:
    """Replace keys of ORDER BY that are output names by places, before outputs are renamed; mark names in expressions.

    In SELECT, a name means the last output with it by AS; in UNION, the first.
    """
    if isinstance(query, exp.Subquery):
        _replace_keys_by_places(query.this, block)
    called = block.called if isinstance(query, exp.Select) else {}
    order = query.args.get("order")
    for column in _possible_outputs(order) if order is not None else ():
        name = fold(column.name)
        if name in block.names:
            place = called.get(name) or block.names.index(name) + 1
            column.meta[_PLACE] = place
            if isinstance(column.parent, exp.Ordered):
                column.replace(exp.Literal.number(place))


def _possible_outputs(order: exp.Expr) -> list[exp.Column]:
    """The names in ORDER BY that may be output names."""
    names = [node for node in trees.in_block(order) if isinstance(node, exp.Column) and not node.table]
    return [one for one in names if not isinstance(one.parent, exp.Ordered) or one.parent.parent is order]


def _group_key_sources(block: expansion_limit.SelectScope) -> dict[str, str]:
    """Column name to the source in its key of GROUP BY, for keys given by name, by place, or by ALL."""
    group, outputs = block.select.args.get("group"), [*_expanded_outputs(block)]
    keys = outputs if group is not None and group.args.get("all") else trees.group_keys(block.select)
    places = {str(place): output for place, output in enumerate(outputs, 1)}
    found = [places.get(key.name, key) if isinstance(key, exp.Literal) and key.is_int else key for key in keys]
    return {fold(key.name): fold(key.table) for key in found if isinstance(key, exp.Column)}


def _expanded_outputs(block: expansion_limit.SelectScope) -> Iterator[exp.Expr]:
    """The output expressions without their names, with `*` expanded."""
    for output in block.select.expressions:
        if isinstance(output, exp.Star):
            for alias, name, _ in expand_star(block.sources, block.tested, block.merged):
                yield trees.column(name, alias)
        elif output.is_star:
            for name in block.sources.get(fold(output.table), ()):
                yield trees.column(name, output.table)
        else:
            yield output.unalias()


def _write_out_group(select: exp.Select) -> None:
    """Expand GROUP BY ALL. A key with a subquery becomes its output's place, as a copy would be another subquery."""
    group, outputs = select.args.get("group"), [output.unalias() for output in select.expressions]
    if group is not None and group.args.get("all"):
        plain = [key.copy() for key in outputs if not trees.aggregates(exp.Select(expressions=[key.copy()]))]
        here = {source.alias_or_name for source in trees.sources(select)}
        plain = [key for key in plain if trees.free_tables(key) & here]  # no constants: a number would be a place
        group = exp.Group(expressions=plain) if plain else None
        select.set("group", group)
        _refuse_ungrouped(
            select, outputs, "no output that GROUP BY ALL groups by; name it in GROUP BY, with the others"
        )
    elif select.args.get("having") is not None:
        _refuse_ungrouped(select, outputs, "not in GROUP BY, and in no aggregate; add it to GROUP BY")
    for key in trees.group_keys(select) if group is not None else ():
        while isinstance(key.parent, exp.Paren) and key not in outputs:
            key = key.parent
        if trees.has_query(key) and key in outputs:
            if (having := select.args.get("having")) is not None and key in trees.in_block(having):
                raise _key_subquery_error("HAVING")
            key.replace(exp.Literal.number(outputs.index(key) + 1))


def _refuse_ungrouped(select: exp.Select, outputs: Sequence[exp.Expr], why: str) -> None:
    """Refuse a column in HAVING that is no key: the engine makes it a key, or looks for it in outer queries."""
    keys = [outputs[int(key.name) - 1] if trees.is_place(key) else key for key in trees.group_keys(select)]
    having = select.args.get("having")
    stack = [(having.this, _source_names(select))] if having is not None else []
    while stack:
        node, here = stack.pop()
        if isinstance(node, exp.Column) and fold(node.table) in here and node not in keys:
            raise QueryInvalid(f"HAVING: {node.name} is {why}", code="column_unknown")
        if isinstance(node, exp.Select):  # its own sources hide these aliases
            here = here - _source_names(node)
        if not isinstance(node, trees.AGGREGATES) and node not in keys:
            stack += [(one, here) for one in node.iter_expressions()]


def _source_names(select: exp.Select) -> frozenset[str]:
    return frozenset(fold(source.alias_or_name) for source in trees.sources(select))


def _key_subquery_error(clause: str) -> QueryInvalid:
    """The error for an expression over a subquery key: the engine does not recognise a copy of it as the key."""
    return QueryInvalid(
        f"a subquery that is a key of GROUP BY cannot be used in an expression of {clause}; "
        "compute it in a derived table, and group by its column",
        code="syntax_not_allowed",
    )


def _write_out_order(query: exp.Expr, order: exp.Expr) -> None:
    """Expand ORDER BY: output names in expressions become their expressions.

    A name of several outputs becomes a place: in SELECT that of the last one, in UNION that of the first.
    """
    outputs = trees.first_select(query).expressions
    if isinstance(query, SETS):
        _check_set_order(query, order)
    for column in [one for one in order.find_all(exp.Column) if not one.table] if isinstance(query, exp.Select) else ():
        same = [place for place, output in enumerate(outputs, 1) if output.alias_or_name == column.name]
        if place := column.meta.get(_PLACE):
            trees.substitute(outputs[place - 1].unalias(), column)
        elif same and not isinstance(column.parent, exp.Ordered):
            place = _place_meant(same, outputs)
            if exp.Literal.number(place) in trees.group_keys(trees.first_select(query)) and trees.has_query(
                outputs[place - 1]
            ):
                raise _key_subquery_error("ORDER BY")
            trees.substitute(outputs[place - 1].unalias(), column)
        elif len(same) > 1:
            column.replace(exp.Literal.number(_place_meant(same, outputs)))


def _check_set_order(query: exp.Expr, order: exp.Expr) -> None:
    """Refuse names in a set operation's ORDER BY that are no outputs.

    A name alone may be an output of any side, a name in an expression must be an output of the first side.
    """
    first, *others = [{fold(output.alias_or_name) for output in side.expressions} for side in _sides(query)]
    every_side = first.union(*others)
    unnamed = any(name.startswith("_col_") for name in every_side)  # the engine names outputs that have no name
    for node in trees.in_block(order):
        column, alone = isinstance(node, exp.Column), isinstance(node.parent, exp.Ordered)
        known = every_side if alone else first
        if trees.is_aggregate(node) or (column and fold(node.name) not in known and not (alone and unnamed)):
            hint = f"{node.sql(dialect='duckdb')} is no output; name it with AS, or write its place"
        elif column and node.args.get("table"):
            hint = f"write {node.name} without its table"
        else:
            continue
        raise QueryInvalid(
            f"ORDER BY after UNION, INTERSECT and EXCEPT accepts only outputs; {hint}", code="column_unknown"
        )


def _place_meant(places: Sequence[int], outputs: Sequence[exp.Expr]) -> int:
    """The place of the output that a key of ORDER BY means, among outputs of its name."""
    called = [place for place in places if outputs[place - 1].meta.get(_CALLED)]
    if not called and any(outputs[place - 1] != outputs[places[0] - 1] for place in places):
        raise _several_outputs_error(outputs[places[0] - 1].alias_or_name, len(places))
    return called[-1] if called else places[0]


def _several_outputs_error(name: str, count: int) -> QueryInvalid:
    return QueryInvalid(
        f"ORDER BY {name}: expected one output of that name, got {count}; write table.{name}, or its place",
        code="column_unknown",
    )


class _NewNames:
    """Gives names that are not in `taken`: the wanted one, or with a number."""

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self.taken = set(taken)

    def __call__(self, wanted: str) -> str:
        wanted = fold(wanted) if wanted.strip() == wanted else f"_{wanted.strip()}"
        name, number = wanted, 1
        while name in self.taken or _FRAGMENT.fullmatch(name):
            number += 1
            name = f"{wanted}_{number}"
        self.taken.add(name)
        return name
