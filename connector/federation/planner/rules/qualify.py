"""Names are bound: every column says its source, every source has an alias of its own, `*` is written out.

Sources are told apart by their alias over the whole tree, so later rules need no scopes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from sqlglot import exp
from sqlglot.errors import SqlglotError
from sqlglot.optimizer.qualify import qualify
from sqlglot.schema import MappingSchema

from connector.errors import QueryInvalid
from connector.federation.planner import expansion_limit, using_rewrite
from connector.federation.planner.context import Planning
from connector.federation.planner.rules import prune_exists
from policies.contracts.columns import fold
from policies.sql import syntax_tree as trees
from policies.sql.allowed_syntax import QUERIES, SETS
from policies.sql.rewrite import list_nodes
from policies.sql.using import MergedColumn, expand_star

_NAMED = 30  # columns that a refusal lists
_NESTED = (*QUERIES, exp.Subquery)
_CALLED = "called"  # noted at outputs that have their name by AS, while names are bound
_PLACE = "place"  # noted at names in ORDER BY: which output they mean, where it will have another name
_OF_FIELDS = ("STRUCT", "UNION", "MAP", "JSON", "GEOMETRY")  # types of which the engine takes a field by its name
_FRAGMENT = re.compile(r"f\d+", re.IGNORECASE)  # what the residual calls the tables that fragments give


def apply(tree: exp.Expr, planning: Planning) -> exp.Expr:
    """The bound tree, or QueryInvalid that names what is unknown or ambiguous."""
    prune_exists.drop_stars(tree)
    for select in trees.selects(tree):
        for source in trees.sources(select):
            _written_alias(source)
        _written_outputs(select)
    for node in trees.nodes(tree):
        if isinstance(node, exp.Ordered | exp.Group):
            _bare_keys(node)
        if isinstance(node, SETS) and node.args.get("order") is not None:
            _written_keys(node)
    _call_unnamed(tree)
    _each_once(tree)
    _none_beside(tree)
    _apart(tree, planning)
    reckoned = expansion_limit.check(tree, planning)
    for block in reckoned.selects:
        _no_query_named(block)
        _columns_first(block)
        _one_column(block)
    columns = [column for info in planning.infos(trees.base_tables(tree)) for column in info.columns]
    using_rewrite.write_out(
        reckoned.selects, fields=any(column.type.upper().startswith(_OF_FIELDS) for column in columns)
    )
    blocks = {id(block.select): block for block in reckoned.selects}
    for source, names in reckoned.renamed:
        _keys_by_place(source.this, blocks[id(trees.first_select(source.this))])
        _rename_all(source, names)
    stored = {fold(column.name): column.name for column in columns}
    schema: dict[str, object] = {}
    for table in trees.base_tables(tree):
        shown = dict.fromkeys(planning.types(planning.columns(table)), "TEXT")
        schema.setdefault(fold(table.db), {})[fold(table.name)] = shown  # type: ignore[index]  # one of dicts
    try:
        known = MappingSchema(schema, dialect="duckdb", normalize=False)  # folded already
        bound: exp.Expr = qualify(tree, schema=known, dialect="duckdb", quote_identifiers=False)
    except SqlglotError as error:
        told = f"{_units(str(error), tree, planning)}{_beside(str(error), tree)}{_there(schema, stored)}"
        said = f"{_words(error)}; {told}"
        raise QueryInvalid(said, code="column_unknown") from None
    for source, names in reckoned.renamed:
        _check_names(source, names)
    nodes = list_nodes(bound)
    for node in nodes:
        if isinstance(node, exp.TableColumn):  # its rows as structs: of which columns, pruning would decide
            raise using_rewrite.is_table(node.name)
        if isinstance(node, exp.Dot) or (isinstance(node, exp.Column) and node.args.get("db")):
            raise QueryInvalid("a struct is read whole, not by its fields", code="column_unknown")
        if isinstance(node, exp.Select):
            _group(node)
        if isinstance(node, _NESTED) and (order := node.args.get("order")) is not None:
            _order(node, order)
    _forget(nodes)
    return rename(bound)


def _forget(nodes: Iterable[exp.Expr]) -> None:
    """Drop what the parser and the binder noted at nodes (places in the text, names before they were bound): nobody
    reads it any more, and every copy of a node would copy it."""
    for node in nodes:
        node._meta = None


def rename(tree: exp.Expr) -> exp.Expr:
    """Give every source of the tree an alias that no other has; columns follow."""
    _Aliases().query(tree, {})
    return tree


def _there(schema: Mapping[str, object], stored: Mapping[str, str]) -> str:
    """The columns that may be read, as far as there are few."""
    names = sorted({stored.get(name, name) for tables in schema.values() for one in tables.values() for name in one})  # type: ignore[attr-defined]  # dicts
    shown = f"{', '.join(names[:_NAMED])} and {len(names) - _NAMED} more" if len(names) > _NAMED else ", ".join(names)
    return f"what may be read is {shown}" if names else "nothing may be read"


def _units(said: str, tree: exp.Expr, planning: Planning) -> str:
    """Where a column is missed that is what an aggregate-only dataset counts: who counts it."""
    grids = [info.grid for info in planning.infos(trees.base_tables(tree))]
    missed = {grid.entity for grid in grids if grid and grid.entity and f"'{fold(grid.entity)}'" in fold(said)}
    names = ", ".join(sorted(missed))
    return f"{names} leaves no owner; each counts its own, asked alone (`Dataset.query` in Python); " if names else ""


def _beside(said: str, tree: exp.Expr) -> str:
    """Where a derived table reads what stands beside it in FROM: what to write instead."""
    named = re.search(r"for table: '([^']*)'", said)
    if named is None or named[1] not in trees.aliases(tree):
        return ""
    return f"a derived table does not see {named[1]} beside it, write that condition in ON or WHERE; "


def _words(error: SqlglotError) -> str:
    text = str(error).splitlines()[0].partition(". Line: ")[0].rstrip(".")
    return text[:1].lower() + text[1:]


def _written_alias(source: exp.Expr) -> None:
    """`FROM t AS x(a, b)`: the binder takes column names from a subquery only."""
    alias = source.args.get("alias")
    if isinstance(source, exp.Table) and alias is not None and alias.args.get("columns"):
        inner = source.copy()
        inner.set("alias", None)
        query = exp.select(exp.Star(), copy=False).from_(inner, copy=False)
        source.replace(exp.Subquery(this=query, alias=alias.copy()))


def _bare_keys(clause: exp.Expr) -> None:
    """Keys of ORDER BY and GROUP BY out of brackets, which the engine does not see: `(1)` is a place."""
    for key in [one for one in clause.iter_expressions() if isinstance(one, exp.Paren)]:
        key.replace(key.unnest())


def _written_keys(query: exp.Expr) -> None:
    """Keys of a set operation's order that are written as an output of one of its sides is: its place."""
    sides = [side.expressions for side in _sides(query) if not any(output.is_star for output in side.expressions)]
    for ordered in query.args["order"].expressions:
        key = ordered.this
        if isinstance(key, exp.Literal) or (isinstance(key, exp.Column) and not key.table):
            continue
        places = [place for outputs in sides for place, output in enumerate(outputs, 1) if output.unalias() == key]
        if places:
            key.replace(exp.Literal.number(places[0]))


def _sides(query: exp.Expr) -> list[exp.Select]:
    """The SELECTs of a set operation, in their order."""
    found, stack = [], [query]
    while stack:
        side = stack.pop()
        if isinstance(side, exp.Select):
            found.append(side)
        else:
            stack += [one for one in (side.args.get("expression"), side.this) if one is not None]
    return found


def _written_outputs(select: exp.Select) -> None:
    """Note which outputs are called by AS, and give subqueries a name: the binder's would be a table's."""
    for place, output in enumerate(select.expressions):
        if isinstance(output, exp.Alias):
            output.meta[_CALLED] = True
        elif isinstance(output, exp.Subquery):
            called = trees.alias_as(exp.Null(), f"_col_{place}")
            output.replace(called)
            called.set("this", output)  # itself, and no copy: what is inside is looked at after it


def _call_unnamed(tree: exp.Expr) -> None:
    """Derived tables without an alias get one each, as the binder would call them."""
    found = [source for select in trees.selects(tree) for source in trees.sources(select)]
    taken, number = {fold(source.alias_or_name) for source in found}, 0
    for source in found:
        if isinstance(source, exp.Subquery) and not source.alias:
            while (name := f"_{number}") in taken:
                number += 1
            taken.add(name)
            source.set("alias", exp.TableAlias(this=exp.to_identifier(name)))


def _each_once(tree: exp.Expr) -> None:
    """Sources of one FROM that are called alike get names of their own, or QueryInvalid where one of them is named: the
    binder would take it for whichever comes first."""
    for select in trees.selects(tree):
        named = {fold(column.table) for column in trees.columns(select)}
        taken = {*named, *(fold(source.alias_or_name) for source in trees.sources(select))}
        met: set[str] = set()
        for source in trees.sources(select):
            name = fold(source.alias_or_name)
            if name in met:
                if name in named:
                    raise QueryInvalid(f"{name} occurs twice in one FROM; give one of them an alias", code="name_taken")
                name = trees.free_name(name, taken)
                alias = source.args.get("alias") or exp.TableAlias()
                alias.set("this", exp.to_identifier(name))
                source.set("alias", alias)
                taken.add(name)
            met.add(name)


def _none_beside(tree: exp.Expr) -> None:
    """QueryInvalid where a derived table names what stands before it in FROM: the engine looks there, before it takes
    another that is called so around."""
    for select in trees.selects(tree):
        before: set[str] = set()
        for source in trees.sources(select):
            if isinstance(source, exp.Subquery):
                for table in trees.free_tables(source):
                    if fold(table) in before:
                        raise using_rewrite.unseen(table)
            before.add(fold(source.alias_or_name))


def _rename_all(source: exp.Expr, names: Sequence[str]) -> None:
    """`AS x(a)` renames every column."""
    source.args["alias"].set("columns", [exp.to_identifier(name, quoted=True) for name in names])


def _check_names(source: exp.Expr, names: Sequence[str]) -> None:
    """That the binder has written out every `*` as it was reckoned: names are given by their places."""
    if len(trees.first_select(source.this).expressions) != len(names):
        raise QueryInvalid(
            f"{source.alias}: expected {len(names)} columns, came another number; name its columns instead of *",
            code="syntax_not_allowed",
        )


def _apart(tree: exp.Expr, planning: Planning) -> None:
    """Sources that are called as a column is get other names: from two levels further in, the binder would take `b.k`
    for a field of the column b."""
    nodes = trees.nodes(tree)
    columns = {fold(column.name) for info in planning.tables.values() for column in info.columns}
    columns |= {fold(node.alias) for node in nodes if type(node) is exp.Alias and node.parent is not tree}
    for node in nodes:
        if type(node) is exp.TableAlias:
            columns |= {fold(name.name) for name in node.args.get("columns") or ()}
    sources = [source for node in nodes if type(node) is exp.Select for source in trees.sources(node)]
    if any(fold(source.alias_or_name) in columns for source in sources):
        _Aliases(columns).query(tree, {})


def _no_query_named(block: expansion_limit.Block) -> None:
    """QueryInvalid where an output names another that is a subquery, as the engine does; the binder would stumble."""
    outputs = block.select.expressions
    queries = {fold(one.alias) for one in outputs if isinstance(one, exp.Alias) and trees.has_query(one)}
    for column in trees.in_block(exp.Select(expressions=[one.copy() for one in outputs])) if queries else ():
        name = fold(column.name) if isinstance(column, exp.Column) and not column.table else ""
        if name in queries and not _there_is(name, block):
            raise QueryInvalid(
                f"{name} is a subquery, which no other output can name; compute it in a derived table",
                code="syntax_not_allowed",
            )


def _columns_first(block: expansion_limit.Block) -> None:
    """In an expression of ORDER BY, and in HAVING, the engine takes a name for a column's before an output's."""
    select = block.select
    clauses = [clause for name in ("having", "order") if (clause := select.args.get(name)) is not None]
    if not clauses:
        return
    outputs = {fold(output.alias) for output in select.expressions if isinstance(output, exp.Alias)}
    grouped = select.args.get("group") is not None or bool(trees.aggregates(select))
    keys = _keys(block)
    for column in [node for clause in clauses for node in trees.in_block(clause) if isinstance(node, exp.Column)]:
        name = fold(column.name)
        inside = not column.table and not isinstance(column.parent, exp.Ordered)
        if inside and name in outputs and (name in keys or not grouped or _in_key(column, select)):
            one = using_rewrite.meant(name, block.merged)
            there = [keys[name]] if one is not None and keys.get(name) else _there_is(name, block)
            if one is not None and len(there) != 1:
                trees.substitute(using_rewrite.value(one), column)
            elif len(there) == 1:
                column.set("table", exp.to_identifier(there[0]))


def _in_key(column: exp.Column, select: exp.Select) -> bool:
    """Whether a name stands in an expression that rows are grouped by."""
    keys, above = trees.group_keys(select), column.parent
    while above is not None and not isinstance(above, exp.Ordered | exp.Having):
        if above in keys:
            return True
        above = above.parent
    return False


def _one_column(block: expansion_limit.Block) -> None:
    """A key of ORDER BY that several outputs are called, none of them by AS, is a column: written out, lest it be taken
    for one of them."""
    order = block.select.args.get("order")
    for column in _outputs_named(order) if order is not None else ():
        name = fold(column.name)
        if (count := block.names.count(name)) < 2:
            continue
        one = using_rewrite.meant(name, block.merged)
        full = one is not None and not one.value
        if name not in block.called:
            _of_sources(column, one, block)
        elif full and any(isinstance(output, exp.Star) for output in block.select.expressions):
            raise _several(name, count)  # `*` calls what is merged by AS, as it were: which one is last?


def _of_sources(column: exp.Column, one: MergedColumn | None, block: expansion_limit.Block) -> None:
    """Put the source that has it to a name, or what USING merges; of several, one cannot be told."""
    name = fold(column.name)
    there = _there_is(name, block)
    if one is not None and not one.value:
        there = _shown_alone(name, block) or there
    if len(there) == 1:
        column.set("table", exp.to_identifier(there[0]))
    elif one is not None:
        trees.substitute(using_rewrite.value(one), column)
    elif there:
        raise _several(name, block.names.count(name))


def _shown_alone(name: str, block: expansion_limit.Block) -> list[str]:
    """The source whose column is the only output of a name beside what USING merges in a FULL JOIN, which the engine
    takes for an expression without one (in `*` it has one)."""
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


def _keys_by_place(query: exp.Expr, block: expansion_limit.Block) -> None:
    """Keys of ORDER BY that name outputs, before those get other names: as places, and noted inside of expressions. Of
    SELECT it is the last that is called so by AS, of UNION the first."""
    if isinstance(query, exp.Subquery):
        _keys_by_place(query.this, block)
    called = block.called if isinstance(query, exp.Select) else {}
    order = query.args.get("order")
    for column in _outputs_named(order) if order is not None else ():
        name = fold(column.name)
        if name in block.names:
            place = called.get(name) or block.names.index(name) + 1
            column.meta[_PLACE] = place
            if isinstance(column.parent, exp.Ordered):
                column.replace(exp.Literal.number(place))


def _outputs_named(order: exp.Expr) -> list[exp.Column]:
    """The names in ORDER BY that may be outputs'."""
    names = [node for node in trees.in_block(order) if isinstance(node, exp.Column) and not node.table]
    return [one for one in names if not isinstance(one.parent, exp.Ordered) or one.parent.parent is order]


def _there_is(name: str, block: expansion_limit.Block) -> list[str]:
    """The sources that have a column, but for those that a join only tests."""
    return [alias for alias, names in block.sources.items() if name in names and alias not in block.tested]


def _keys(block: expansion_limit.Block) -> dict[str, str]:
    """Columns that are keys of GROUP BY, with the source that the key names: by their names, by their places among the
    outputs, or as ALL says."""
    group, outputs = block.select.args.get("group"), [*_written_out(block)]
    keys = outputs if group is not None and group.args.get("all") else trees.group_keys(block.select)
    places = {str(place): output for place, output in enumerate(outputs, 1)}
    found = [places.get(key.name, key) if isinstance(key, exp.Literal) and key.is_int else key for key in keys]
    return {fold(key.name): fold(key.table) for key in found if isinstance(key, exp.Column)}


def _written_out(block: expansion_limit.Block) -> Iterator[exp.Expr]:
    """The outputs without what they are called, those that `*` stands for among them."""
    for output in block.select.expressions:
        if isinstance(output, exp.Star):
            for alias, name, _ in expand_star(block.sources, block.tested, block.merged):
                yield trees.column(name, alias)
        elif output.is_star:
            for name in block.sources.get(fold(output.table), ()):
                yield trees.column(name, output.table)
        else:
            yield output.unalias()


def _group(select: exp.Select) -> None:
    """GROUP BY ALL, written out. A key with a subquery is its output's place: as a copy it would be another's."""
    group, outputs = select.args.get("group"), [output.unalias() for output in select.expressions]
    if group is not None and group.args.get("all"):
        plain = [key.copy() for key in outputs if not trees.aggregates(exp.Select(expressions=[key.copy()]))]
        here = {source.alias_or_name for source in trees.sources(select)}
        plain = [key for key in plain if trees.free_tables(key) & here]  # of what varies: a number would be a place
        group = exp.Group(expressions=plain) if plain else None
        select.set("group", group)
        _no_other(select, outputs, "no output that GROUP BY ALL groups by; name it in GROUP BY, with the others")
    elif select.args.get("having") is not None:
        _no_other(select, outputs, "not in GROUP BY, and in no aggregate; add it to GROUP BY")
    for key in trees.group_keys(select) if group is not None else ():
        while isinstance(key.parent, exp.Paren) and key not in outputs:
            key = key.parent
        if trees.has_query(key) and key in outputs:
            if (having := select.args.get("having")) is not None and key in trees.in_block(having):
                raise _inside_of_key("HAVING")
            key.replace(exp.Literal.number(outputs.index(key) + 1))


def _no_other(select: exp.Select, outputs: Sequence[exp.Expr], told: str) -> None:
    """QueryInvalid where HAVING looks at a column that rows are not grouped by, which the engine has as a key, or looks
    for around."""
    keys = [outputs[int(key.name) - 1] if trees.is_place(key) else key for key in trees.group_keys(select)]
    having = select.args.get("having")
    stack = [(having.this, _sources_named(select))] if having is not None else []
    while stack:
        node, here = stack.pop()
        if isinstance(node, exp.Column) and fold(node.table) in here and node not in keys:
            raise QueryInvalid(f"HAVING: {node.name} is {told}", code="column_unknown")
        if isinstance(node, exp.Select):  # what is called so inside is its own
            here = here - _sources_named(node)
        if not isinstance(node, exp.AggFunc | exp.Filter | exp.WithinGroup | exp.Window) and node not in keys:
            stack += [(one, here) for one in node.iter_expressions()]


def _sources_named(select: exp.Select) -> frozenset[str]:
    return frozenset(fold(source.alias_or_name) for source in trees.sources(select))


def _inside_of_key(clause: str) -> QueryInvalid:
    """The engine would not see that a copy of a subquery is the key."""
    return QueryInvalid(
        f"a subquery that rows are grouped by cannot be named in an expression of {clause}; "
        "compute it in a derived table, and group by its column",
        code="syntax_not_allowed",
    )


def _order(query: exp.Expr, order: exp.Expr) -> None:
    """ORDER BY ALL as places; outputs named inside of expressions, written out; and the place of an output that is
    meant by a name which several have: of SELECT it is the last that is called so, of UNION the first."""
    outputs = trees.first_select(query).expressions
    if isinstance(query, SETS):
        _names_outputs(query, order)
    first = order.expressions[0] if order.expressions else None
    if len(order.expressions) == 1 and isinstance(first, exp.Ordered) and _is_all(first.this):
        places = range(1, len(outputs) + 1)
        order.set("expressions", [_like(first, exp.Literal.number(place)) for place in places])
    for column in [one for one in order.find_all(exp.Column) if not one.table] if isinstance(query, exp.Select) else ():
        same = [place for place, output in enumerate(outputs, 1) if output.alias_or_name == column.name]
        if place := column.meta.get(_PLACE):
            trees.substitute(outputs[place - 1].unalias(), column)
        elif same and not isinstance(column.parent, exp.Ordered):
            place = _meant(same, outputs)
            if exp.Literal.number(place) in trees.group_keys(trees.first_select(query)) and trees.has_query(
                outputs[place - 1]
            ):
                raise _inside_of_key("ORDER BY")
            trees.substitute(outputs[place - 1].unalias(), column)
        elif len(same) > 1:
            column.replace(exp.Literal.number(_meant(same, outputs)))


def _names_outputs(query: exp.Expr, order: exp.Expr) -> None:
    """QueryInvalid where the order of a set operation names what is no output: the first side's in an expression, any
    side's alone."""
    first, *others = [{fold(output.alias_or_name) for output in side.expressions} for side in _sides(query)]
    every_side = first.union(*others)
    unnamed = any(name.startswith("_col_") for name in every_side)  # the engine has names for those without
    for node in trees.in_block(order):
        column, alone = isinstance(node, exp.Column), isinstance(node.parent, exp.Ordered)
        known = every_side if alone else first
        if trees.is_aggregate(node) or (column and fold(node.name) not in known and not (alone and unnamed)):
            told = f"{node.sql(dialect='duckdb')} is none; call it by AS, or write its place"
        elif column and node.args.get("table"):
            told = f"write {node.name} without its table"
        else:
            continue
        raise QueryInvalid(f"ORDER BY after UNION, INTERSECT and EXCEPT names outputs; {told}", code="column_unknown")


def _meant(places: Sequence[int], outputs: Sequence[exp.Expr]) -> int:
    """Which of the outputs of one name a key of ORDER BY means."""
    called = [place for place in places if outputs[place - 1].meta.get(_CALLED)]
    if not called and any(outputs[place - 1] != outputs[places[0] - 1] for place in places):
        raise _several(outputs[places[0] - 1].alias_or_name, len(places))
    return called[-1] if called else places[0]


def _several(name: str, count: int) -> QueryInvalid:
    return QueryInvalid(
        f"ORDER BY {name}: expected one output of that name, came {count}; write table.{name}, or its place",
        code="column_unknown",
    )


def _is_all(node: exp.Expr) -> bool:
    return isinstance(node, exp.Var) and str(node.this).upper() == "ALL"


def _like(ordered: exp.Expr, key: exp.Expr) -> exp.Ordered:
    return exp.Ordered(this=key, desc=ordered.args.get("desc"), nulls_first=ordered.args.get("nulls_first"))


class _Aliases:
    """Gives every source a name of its own, none of those that are `taken`."""

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self.taken = set(taken)

    def query(self, node: exp.Expr, outer: dict[str, str]) -> None:
        clause = node.args.get("with_")
        for cte in () if clause is None else clause.expressions:
            self.query(cte.this, outer)
        if isinstance(node, exp.Subquery):
            self.query(node.this, outer)
        elif isinstance(node, SETS):
            self.query(node.this, outer)
            self.query(node.args["expression"], outer)
        elif isinstance(node, exp.Select):
            self._select(node, outer)

    def _select(self, select: exp.Select, outer: dict[str, str]) -> None:
        names = dict(outer)
        for source in trees.sources(select):
            old = fold(source.alias_or_name)
            names[old] = self._fresh(old)
            source.meta.setdefault(using_rewrite.WRITTEN, old)
            alias = source.args.get("alias") or exp.TableAlias()
            alias.set("this", exp.to_identifier(names[old]))
            source.set("alias", alias)
        for source in trees.sources(select):
            if isinstance(source, exp.Subquery):
                self.query(source.this, outer)
        for part in self._parts(select):
            self._rename(part, names)

    def _rename(self, part: exp.Expr, names: dict[str, str]) -> None:
        stack = [part]
        while stack:
            node = stack.pop()
            if isinstance(node, exp.Column):
                if old := node.table:
                    node.set("table", exp.to_identifier(names.get(fold(old), old)))
            elif isinstance(node, _NESTED):
                self.query(node, names)
            else:
                stack.extend(node.iter_expressions())

    @staticmethod
    def _parts(select: exp.Select) -> list[exp.Expr]:
        parts = [join.args["on"] for join in select.args.get("joins") or () if join.args.get("on") is not None]
        for name, values in select.args.items():
            if name not in ("from_", "joins", "with_"):
                parts += [value for value in (values if isinstance(values, list) else [values])
                          if isinstance(value, exp.Expr)]  # fmt: skip
        return parts

    def _fresh(self, wanted: str) -> str:
        name, number = wanted, 1
        while name in self.taken or _FRAGMENT.fullmatch(name):
            number += 1
            name = f"{wanted}_{number}"
        self.taken.add(name)
        return name
