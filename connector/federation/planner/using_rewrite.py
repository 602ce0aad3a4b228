"""USING is written out before names are bound: as a condition, in `*`, and where a name means what it merges. So are
names in queries inside, which are of those around them.

The binder would take `b, a JOIN c USING (k)` for a join of b's k, and the k of whatever stands beside it for merged.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from sqlglot import exp

from connector.errors import QueryInvalid
from connector.federation.planner.expansion_limit import Block
from policies.contracts.columns import fold
from policies.sql import syntax_tree as trees
from policies.sql.allowed_syntax import QUERIES
from policies.sql.using import MergedColumn, expand_star, is_comma

_QUERIES = (*QUERIES, exp.Subquery)
WRITTEN = "written"  # noted at sources: what they were called before they got other names


def write_out(blocks: Sequence[Block], *, fields: bool) -> None:
    """Write out what is merged in any of the SELECTs, those inside of others first. `fields`: columns may have any."""
    known = {id(block.select): block for block in blocks}
    for block in blocks:
        _no_table(block, known)
        if fields:
            _no_column(block, known)
        _no_doubt(block, known)
        _none_before(block)
        _none_beside(block, known)
        if block.joined:
            _block(block, known)
        _from_inside(block, known)


def _no_table(block: Block, known: Mapping[int, Block]) -> None:
    """QueryInvalid where a name is a source's: the engine takes its rows as structs, before an output or what is
    around, and the binder would not."""
    written = {fold(one.alias_or_name): one.meta.get(WRITTEN, one.alias_or_name) for one in trees.sources(block.select)}
    here = [alias for alias in block.sources if alias not in block.tested]
    every, seen = _tables(block.sources, written, block), _tables(here, written, block)
    for clause, part in _parts(block.select) if every or seen else ():
        for column in _free(part, known):
            if fold(column.name) in (every if clause == "joins" else seen) and not _is_output(column, clause, block):
                raise is_table(column.name)


def _no_column(block: Block, known: Mapping[int, Block]) -> None:
    """QueryInvalid where a name before a dot is a source's of this query, and a column's further in: of a struct the
    engine takes the field there, and the binder would not."""
    written = {fold(one.alias_or_name): one.meta.get(WRITTEN, one.alias_or_name) for one in trees.sources(block.select)}
    stack = [(query, frozenset[str]()) for _, part in _parts(block.select) for query in trees.nested_queries(part)]
    while stack:
        node, met = stack.pop()
        if isinstance(node, exp.Column):
            if fold(node.table) in met:
                raise is_column(written[fold(node.table)])
        elif isinstance(node, exp.Select):
            within = known[id(node)]
            for clause, part in _parts(node):
                seen = [names for alias, names in within.sources.items()
                        if clause == "joins" or alias not in within.tested]  # fmt: skip
                here = {alias for alias, word in written.items() if any(fold(word) in names for names in seen)}
                stack.append((part, met | here))
            stack += [(source, met) for source in trees.sources(node) if isinstance(source, exp.Subquery)]
            stack += [(cte, met) for cte in (node.args.get("with_") or exp.With()).args.get("expressions") or ()]
        else:
            stack += [(one, met) for one in node.iter_expressions()]


def _no_doubt(block: Block, known: Mapping[int, Block]) -> None:
    """QueryInvalid where a name may be several sources', or is after a dot of one that a join only tests: the binder
    would look for it around, or leave it as it is."""
    sources = {alias: frozenset(names) for alias, names in block.sources.items()}
    for place, join in enumerate(block.select.args.get("joins") or ()):
        if (on := join.args.get("on")) is not None:
            before = dict([*sources.items()][: place + 2])
            _one_source(_free(on, known), before, block.joined[place].merged if block.joined else ())
            _not_behind([*_free(on, known)], before, sources)
    seen = {alias: names for alias, names in sources.items() if alias not in block.tested}
    order = block.select.args.get("order")
    ordered = [one.this for one in order.expressions] if order is not None else []
    keys = {id(key) for key in ordered if fold(key.name) in block.names}  # which mean the output
    for clause, part in _parts(block.select):
        if clause != "joins":
            _one_source((one for one in _free(part, known) if id(one) not in keys), seen, block.merged)
    for column in trees.in_block(block.select):
        if isinstance(column, exp.Column) and fold(column.table) in block.tested:
            raise QueryInvalid(
                f"{column.table} is only tested by its JOIN; after it no column of it can be named",
                code="column_unknown",
            )


def _not_behind(
    names: Iterable[exp.Column], before: Mapping[str, frozenset[str]], sources: Mapping[str, frozenset[str]]
) -> None:
    """QueryInvalid where a name in ON is of what stands behind it alone: the engine looks for it around."""
    for column in names:
        name = fold(column.name)
        if not any(name in there for there in before.values()) and any(name in there for there in sources.values()):
            raise QueryInvalid(
                f"ON does not see {column.name} of what is joined behind it; write the condition in WHERE",
                code="column_unknown",
            )


def _none_before(block: Block) -> None:
    """QueryInvalid where a name before a dot in ON is a source's before a comma, and a column's behind it: the engine
    takes that one's field."""
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
                raise is_column(written[alias])


def is_column(name: str) -> QueryInvalid:
    return QueryInvalid(f"{name} is also a column here; give the table another alias", code="column_unknown")


def _none_beside(block: Block, known: Mapping[int, Block]) -> None:
    """QueryInvalid where a derived table has a name from what stands before it in FROM: the engine looks there."""
    before: dict[str, frozenset[str]] = {}
    for source in trees.sources(block.select):
        if isinstance(source, exp.Subquery):
            for column in _free(source, known):
                beside = [alias for alias, names in before.items() if fold(column.name) in names]
                if beside:
                    raise unseen(beside[0])
        alias = fold(source.alias_or_name)
        if alias not in block.tested:
            before[alias] = frozenset(block.sources[alias])


def unseen(alias: str) -> QueryInvalid:
    return QueryInvalid(
        f"a derived table does not see {alias} beside it, write that condition in ON or WHERE", code="column_unknown"
    )


def _one_source(
    names: Iterable[exp.Column], sources: Mapping[str, frozenset[str]], merged: Sequence[MergedColumn]
) -> None:
    """QueryInvalid where several sources have a column of one of the names, and USING makes no one of them."""
    for column in names:
        name = fold(column.name)
        if sum(name in there for there in sources.values()) > 1 and all(one.name != name for one in merged):
            raise QueryInvalid(f"{column.name} is in several sources; write table.{name}", code="column_unknown")


def _tables(aliases: Iterable[str], written: Mapping[str, str], block: Block) -> set[str]:
    """What sources are called in the text, where none of them has a column of that name."""
    aliases = [*aliases]
    return {fold(written[one]) for one in aliases}.difference(*(block.sources[one] for one in aliases))


def is_table(name: str) -> QueryInvalid:
    return QueryInvalid(
        f"{name} is a table here and no column; name its columns, or call the output otherwise", code="column_unknown"
    )


def _from_inside(block: Block, known: Mapping[int, Block]) -> None:
    """Names that queries inside have for columns of this one say so: the binder leaves them as they are in HAVING."""
    for clause, part in _parts(block.select):
        for query in trees.nested_queries(part):
            for column in _free(query, known):
                there = [alias for alias, names in block.sources.items() if fold(column.name) in names
                         and (clause == "joins" or alias not in block.tested)]  # fmt: skip
                if len(there) == 1:
                    column.set("table", exp.to_identifier(there[0]))


def value(one: MergedColumn) -> exp.Expr:
    """What is merged, in the type of the side that keeps its rows; of a FULL JOIN alone it is of both."""
    if one.value:
        return trees.column(one.name, one.value)
    first, *others = [trees.column(one.name, alias) for alias in one.sources]
    return exp.Coalesce(this=first, expressions=others)


def meant(name: str, merged: Sequence[MergedColumn]) -> MergedColumn | None:
    """What of the merged a name means; QueryInvalid if it may be two."""
    found = [one for one in merged if one.name == name]
    if len(found) > 1:
        told = " or ".join(f"{one.value or one.sources[0]}.{name}" for one in found)
        raise QueryInvalid(f"{name} is merged twice by USING; write {told}", code="column_unknown")
    return found[0] if found else None


def _block(block: Block, known: Mapping[int, Block]) -> None:
    for one in block.joined:
        if one.pairs:
            one.join.set("on", trees.conjoin([_equal(one.alias, name, left) for name, left in one.pairs]))
            one.join.set("using", None)
        elif (on := one.join.args.get("on")) is not None:
            _names([*_free(on, known)], one.merged)
    _stars(block)
    for clause, part in _parts(block.select):
        if clause != "joins":
            _names([one for one in _free(part, known) if not _is_output(one, clause, block)], block.merged)


def _equal(alias: str, name: str, left: MergedColumn | None) -> exp.Expr:
    if left is None:
        raise QueryInvalid(
            f"USING ({name}): expected one column of that name before {alias}, and one of {alias}, as a comma begins "
            "another FROM; write ON with both columns instead",
            code="column_unknown",
        )
    if not left.value:
        raise QueryInvalid(
            f"USING ({name}) after a FULL JOIN on it is not planned; write ON with both columns instead",
            code="syntax_not_allowed",
        )
    return exp.EQ(this=value(left), expression=trees.column(name, alias))


def _stars(block: Block) -> None:
    """`*` is each of its columns, by the name that it has there."""
    found: list[exp.Expr] = []
    for output in block.select.expressions:
        if isinstance(output, exp.Star):
            found += [trees.alias_as(value(one), name) if one is not None else trees.column(name, alias)
                      for alias, name, one in expand_star(block.sources, block.tested, block.merged)]  # fmt: skip
        else:
            found.append(output)
    block.select.set("expressions", found)


def _names(columns: Sequence[exp.Column], merged: Sequence[MergedColumn]) -> None:
    for column in columns:
        one = meant(fold(column.name), merged)
        if one is None:
            continue
        if isinstance(column.parent, exp.Select):  # an output of its own name
            column.replace(trees.alias_as(value(one), column.name))
        else:
            trees.substitute(value(one), column)


def _is_output(column: exp.Column, clause: str, block: Block) -> bool:
    """Whether a name of a clause is an output's, before it is a column's: as a key of ORDER BY, and in HAVING but for
    its aggregates."""
    name = fold(column.name)
    if clause == "order" and isinstance(column.parent, exp.Ordered):
        return name in block.names and column.parent.parent is block.select.args["order"]
    return (
        clause == "having"
        and name in block.called
        and isinstance(column.find_ancestor(exp.AggFunc, exp.Having), exp.Having)
    )


def _free(node: exp.Expr, known: Mapping[int, Block]) -> Iterator[exp.Column]:
    """The names below a node that no source of a query there has, and no output that is called so."""
    stack = [node]
    while stack:
        one = stack.pop()
        if isinstance(one, exp.Column):
            if not one.table:
                yield one
        elif isinstance(one, exp.Select):
            yield from _beyond(known[id(one)], known)
        elif isinstance(one, _QUERIES):  # their ORDER BY names outputs
            parts = one.this, one.args.get("expression"), one.args.get("with_")
            stack += [part for part in parts if part is not None]
        else:
            stack.extend(one.iter_expressions())


def _beyond(block: Block, known: Mapping[int, Block]) -> Iterator[exp.Column]:
    """The names in a query inside that are of those around it."""
    own = {name for names in block.sources.values() for name in names}
    before: set[str] = set()  # what outputs are called that others may name
    for clause, part in _parts(block.select):
        for column in _free(part, known):
            name = fold(column.name)
            called = before if clause == "expressions" else block.called if _sees_outputs(column, clause) else ()
            if name not in own and name not in called and not _is_output(column, clause, block):
                yield column
        if clause == "expressions" and isinstance(part, exp.Alias):
            before.add(fold(part.alias))
    derived = [source for source in trees.sources(block.select) if isinstance(source, exp.Subquery)]
    for query in (block.select.args.get("with_"), *derived):
        yield from _free(query, known) if query is not None else ()


def _sees_outputs(column: exp.Column, clause: str) -> bool:
    """Whether an output is meant before a column of a query around: not in QUALIFY, nor in an aggregate of HAVING."""
    return clause != "qualify" and (
        clause != "having" or isinstance(column.find_ancestor(exp.AggFunc, exp.Having), exp.Having)
    )


def _parts(select: exp.Select) -> Iterator[tuple[str, exp.Expr]]:
    """The expressions and clauses of a SELECT, but for what it reads."""
    for name, values in list(select.args.items()):
        for value in list(values) if isinstance(values, list) else [values]:
            if isinstance(value, exp.Join) and (on := value.args.get("on")) is not None:
                yield name, on
            elif isinstance(value, exp.Expr) and name not in ("from_", "joins", "with_"):
                yield name, value
