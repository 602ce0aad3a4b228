"""Name binding for the gate (steps 3 and 4) and the planner: every name in a checked tree is a dataset, a WITH query or
a visible column.

Names resolve only in the given catalogue. A hidden column is refused in the same words as a missing one. Changes the
tree: names each output, gives each WITH query and each source a generated name, and writes each column with the name
of its source. So the engine reads the column that is recorded, or fails. Must not know contracts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from sqlglot import exp
from sqlglot.dialects.duckdb import DuckDB

from policies.contracts.columns import fold, make_distinct
from policies.errors import QueryRefused
from policies.sql import allowed_syntax, syntax_tree, using
from policies.sql.parse import refuse, refused
from policies.sql.using import MergedColumn, UsingScope


@dataclass(frozen=True, slots=True)
class TableEntry:
    """One table of the catalogue: owner (empty for a caller's table), table, and visible columns.

    `hidden_column`: one of these columns that is not part of the dataset and is never listed in a message.
    """

    owner: str
    table: str
    columns: tuple[str, ...]
    hidden_column: str = ""


@dataclass(slots=True)
class BoundQuery:
    """The result of binding: the output's columns, each table node with its entry, and the new names of WITH queries.

    `read`: for each source, its own columns that are named anywhere or taken by `*`, whatever their aliases.
    """

    columns: tuple[str, ...] = ()
    tables: list[tuple[exp.Table, TableEntry]] = field(default_factory=list)
    read: dict[TableEntry, set[str]] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)  # generated names of the WITH queries


@dataclass(slots=True)
class _Scope:
    """The sources of one SELECT: alias to columns; `merged` are the columns that USING merges.

    `own`: for each source that is a table, its own columns by their folded name here, and those read so far.
    """

    sources: dict[str, tuple[str, ...]] = field(default_factory=dict)
    folded: dict[str, Container[str]] = field(default_factory=dict)  # alias -> the same columns, folded
    fresh: dict[str, str] = field(default_factory=dict)  # alias -> the generated name of the source
    written: dict[str, str] = field(
        default_factory=dict
    )  # names of sources and outputs, folded -> as messages show them
    own: dict[str, tuple[Mapping[str, tuple[str, ...]], set[str]]] = field(default_factory=dict)
    datasets: set[tuple[str, str]] = field(default_factory=set)  # (owner, table) of sources without an alias, folded
    hidden: set[str] = field(default_factory=set)  # right sides of SEMI and ANTI joins: visible in their own ON only
    merged: tuple[MergedColumn, ...] = ()
    aliases: set[str] = field(default_factory=set)
    keys: frozenset[str] = frozenset()  # names that mean an output when they are a whole key of ORDER BY
    outer: _Scope | None = None
    outside: bool = False  # sources before a derived table in FROM: the engine looks there; refused here
    outputs: frozenset[str] = frozenset()  # names of all outputs, once they are known
    twice: set[str] = field(default_factory=set)  # aliases of several sources, which no column may name
    clause: str = ""  # the clause that is bound
    having: list[tuple[exp.Column, Sequence[str]]] | None = None  # columns named in its HAVING, while it is bound
    joined: frozenset[str] = frozenset()  # while an ON is bound: sources joined since the last comma


_DIALECT = DuckDB()
_COLUMNS_MAX = 50_000  # columns of all queries in a tree
_LISTED_MAX = 30  # columns that a refusal names
_NESTED = frozenset({*allowed_syntax.QUERIES, exp.Subquery})
_LEAVES = frozenset({exp.Literal, exp.Identifier, exp.Null, exp.Boolean, exp.Var})  # these contain no columns
_Ctes = Mapping[str, tuple[str, tuple[str, ...]]]  # name -> (generated name, columns)


def bind(
    tree: exp.Expr,
    catalogue: Sequence[TableEntry],
    *,
    name_query: Callable[[str], str],
    name_source: Callable[[str], str],
    owners: bool = False,
    fields: bool = True,
) -> BoundQuery:
    """Resolve all names of `tree`, in place.

    name_query: from the name of a WITH query to a new one; `name_source`: the same for the alias of a source. New names
    must be unique in the tree, and those of sources must be no column.
    owners: a name without owner never means a dataset, and may be that of any WITH query; two sources may have one
        alias that no column names.
    fields: some columns may have fields; otherwise `a.b` in WHERE is never one.

    Raises: QueryRefused for an unknown or ambiguous name.
    """
    binder = _Binder(catalogue, name_query, name_source, owners=owners, fields=fields)
    binder.bound.columns = binder.query(tree, {}, None)
    return binder.bound


@dataclass(slots=True)
class _Binder:
    catalogue: Sequence[TableEntry]
    name_query: Callable[[str], str]
    name_source: Callable[[str], str]
    owners: bool
    fields: bool
    bound: BoundQuery = field(default_factory=BoundQuery)
    shown: int = 0  # columns of all queries
    sides: dict[int, frozenset[str]] = field(default_factory=dict)  # set operation -> the names of all its sides

    # queries

    def query(self, node: exp.Expr, ctes: _Ctes, outer: _Scope | None) -> tuple[str, ...]:
        """Bind a SELECT, a set operation, or one in parentheses; return the names of its columns."""
        ctes = self._with(node, ctes, outer)
        if isinstance(node, exp.Select):
            return self._select(node, ctes, outer)
        columns = self.query(node.this, ctes, outer)
        names = self.sides.get(id(node.this), _fold_names(columns))
        if isinstance(node, allowed_syntax.SETS):
            side = node.args["expression"]
            others = self.query(side, ctes, outer)
            names |= self.sides.get(id(side), _fold_names(others))
            if len(others) != len(columns):
                refuse("column_unknown", "the sides of UNION, INTERSECT or EXCEPT differ in columns", "columns")
        self.sides[id(node)] = names
        _order_all(node, len(columns))
        order = node.args.get("order")
        if order is not None:
            written = {name: name for name in names} | {fold(column): column for column in columns}
            scope = _Scope(aliases=set(_fold_names(columns)), outputs=names, written=written, outer=outer)
            self._walk(order, ctes, scope)
        return columns

    def _with(self, node: exp.Expr, ctes: _Ctes, outer: _Scope | None) -> _Ctes:
        clause = node.args.get("with_")
        if clause is None:
            return ctes
        known = dict(ctes)
        for cte in clause.expressions:
            alias = cte.args["alias"]
            if not self.owners:
                self._may_name(alias.name, known)
            columns = _renamed_columns(self.query(cte.this, known, outer), alias)
            fresh = self.name_query(alias.name)
            cte.set("materialized", None)  # the engine decides
            known[fold(alias.name)] = (fresh, columns)
            alias.set("this", exp.to_identifier(fresh))
            self.bound.names.append(fresh)
        return known

    def _may_name(self, name: str, known: _Ctes) -> None:
        taken = {fold(entry.table) for entry in self.catalogue}
        if fold(name) in taken or fold(name) in known:
            refuse("name_taken", f"WITH {name}: the name is taken already; choose another", "names")

    def _select(self, node: exp.Select, ctes: _Ctes, outer: _Scope | None) -> tuple[str, ...]:
        scope = _Scope(outer=outer)
        self._sources(node, ctes, scope)
        outputs = [p.alias for p in node.expressions if isinstance(p, exp.Alias)]
        scope.aliases = {fold(name) for name in outputs}
        scope.written.update((fold(name), name) for name in outputs if fold(name) not in scope.sources)
        columns = self._outputs(node, ctes, scope)
        _order_all(node, len(columns))
        times = Counter(map(fold, columns))
        scope.keys = frozenset(scope.aliases) | {name for name in times if times[name] == 1}
        scope.outputs = frozenset(times)
        for name in ("where", "group", "having", "qualify", "order", "distinct"):
            clause = node.args.get(name)
            if clause is not None:
                scope.clause, scope.having = name, [] if name == "having" else None
                self._walk(clause, ctes, scope)
                for column, aliases in scope.having or ():
                    _refuse_shadowed_having(column, aliases, scope, node)
        return columns

    def _outputs(self, node: exp.Select, ctes: _Ctes, scope: _Scope) -> tuple[str, ...]:
        names: list[str] = []
        if not node.expressions:
            refuse("syntax_not_allowed", "write what to select after SELECT", "syntax")
        for shown in list(node.expressions):
            if isinstance(shown, exp.Star):
                names.extend(_expand_star(scope))
                for alias in scope.sources.keys() - scope.hidden:
                    _note_all_read(alias, scope)
            elif isinstance(shown, exp.Column) and isinstance(shown.this, exp.Star):
                level = self._level(shown.table, scope)
                alias = fold(shown.table)
                names.extend(level.sources[alias])
                _note_all_read(alias, level)
                _write_source(shown, alias, level)
            else:
                names.append(_output_name(shown))
                self._walk(shown, ctes, scope)
        self.shown += len(names)
        if self.shown > _COLUMNS_MAX:
            refuse(
                "query_too_large",
                f"expected at most {_COLUMNS_MAX} columns from all `*` of the query, got more; name the needed ones",
                "size",
            )
        return tuple(names)

    # sources

    def _sources(self, node: exp.Select, ctes: _Ctes, scope: _Scope) -> None:
        first = node.args.get("from_")
        joins = node.args.get("joins") or ()
        if first is None:
            return
        merging = UsingScope(self._add(first.this, ctes, scope), scope.folded)
        begun = 0  # index of the first source after the last comma
        for join in joins:
            before = tuple(scope.sources)
            alias = self._add(join.this, ctes, scope)
            if using.is_comma(join):
                begun = len(before)
            merging.join(join, alias)
            scope.merged = merging.merged
            for column in join.args.get("using") or ():
                self._bind_using(column.name, before, alias, scope)
            if join.args.get("on") is not None:
                scope.joined = frozenset((*before, alias)[begun:])
                self._walk(join.args["on"], ctes, scope)
                scope.joined = frozenset()
            if str(join.args.get("kind") or "").upper() in ("SEMI", "ANTI"):
                scope.hidden.add(alias)

    def _add(self, node: exp.Expr, ctes: _Ctes, scope: _Scope) -> str:
        """Add one source to the scope; return its folded alias."""
        entry: TableEntry | None = None
        if isinstance(node, exp.Subquery):
            columns = self.query(node, ctes, _derived_table_scope(scope))
            alias = node.alias or f" {len(scope.sources)}"
        else:
            alias, given = node.alias or node.name, bool(node.alias)
            columns, entry = self._table(node, ctes)
            if entry is not None and not given:
                scope.datasets.add((fold(entry.owner), fold(entry.table)))
        named = node.args.get("alias")
        plain = entry is not None and not (named is not None and named.args.get("columns"))
        shown = columns if plain else _renamed_columns(columns, named)  # a dataset's own names are distinct already
        key = fold(alias)
        if key in scope.sources:
            if not self.owners:
                raise _refuse_twice(alias)
            scope.twice.add(key)
            key = f"{key} {len(scope.sources)}"
        scope.fresh[key] = fresh = self.name_source(alias)
        _rename_source(node, fresh)
        scope.sources[key] = shown
        scope.written[key] = alias
        if entry is None:
            scope.folded[key] = _fold_names(shown)
        else:
            kept = entry.owner and shown == columns  # the caller chooses other names, which would fill the cache
            own = _own_columns_cached(columns) if kept else _own_columns(shown, columns)
            scope.folded[key] = own
            scope.own[key] = own, self.bound.read.setdefault(entry, set())
        return key

    def _table(self, node: exp.Expr, ctes: _Ctes) -> tuple[tuple[str, ...], TableEntry | None]:
        """Return the columns of a table and its entry; None for a WITH query, whose own sources record what is read."""
        owner, name = str(node.args["db"].name) if node.args.get("db") else "", node.name
        known = None if owner else ctes.get(fold(name))
        if known is not None:
            node.set("this", exp.to_identifier(known[0]))
            return known[1], None
        entry = self._entry(owner, name)
        self.bound.tables.append((node, entry))  # type: ignore[arg-type]  # only tables come here
        return entry.columns, entry

    def _entry(self, owner: str, name: str) -> TableEntry:
        found = [
            entry
            for entry in self.catalogue
            if fold(entry.table) == fold(name) and (fold(entry.owner) == fold(owner) or not (owner or self.owners))
        ]
        shown = f"{owner}.{name}" if owner else name
        if not found:
            known = ", ".join(sorted(f'"{entry.owner}".{entry.table}' for entry in self.catalogue if entry.owner))
            refuse("dataset_unknown", f"no dataset {shown} is agreed here; agreed: {known or 'none'}", "names")
        if len(found) > 1:
            owners = ", ".join(sorted(f'"{entry.owner}".{entry.table}' for entry in found))
            refuse("dataset_ambiguous", f"{shown} may be any of {owners}; write the owner too", "names")
        return found[0]

    def _bind_using(self, column: str, before: Iterable[str], alias: str, scope: _Scope) -> None:
        left = any(fold(column) in scope.folded[source] for source in before)
        if not left or fold(column) not in scope.folded[alias]:
            refuse("column_unknown", f"USING ({column}): both sides must have that column", "columns")
        for source in (*before, alias):
            _note_read(fold(column), source, scope)

    # columns

    def _walk(self, root: exp.Expr, ctes: _Ctes, scope: _Scope) -> None:
        """Bind every column below `root`; subqueries see this scope as their outer scope."""
        stack = [root]
        while stack:
            node = stack.pop()
            kind = type(node)
            if kind is exp.Column:
                self._column(node, scope)  # type: ignore[arg-type]  # its kind says so
            elif kind in _NESTED:
                self.query(node, ctes, scope)
            elif kind not in _LEAVES:
                if kind is exp.Exists:
                    _drop_stars(node.this)
                stack.extend(node.iter_expressions())

    def _column(self, node: exp.Column, scope: _Scope) -> None:
        name, table = node.name, node.args.get("table")
        folded = fold(name)
        if table is not None and (table := table.name):
            level = self._level(table, scope, folded)
            if folded not in level.folded[fold(table)]:
                raise self._unknown(f"{table}.{name}", level.sources[fold(table)])
            _note_read(folded, fold(table), level)
            _write_source(node, fold(table), level)
            if level.having is not None:
                level.having.append((node, [fold(table)]))
            return
        key = _is_key(node)
        if key and (folded in scope.aliases or (folded in scope.outputs and not scope.sources)):
            return  # outputs take precedence there
        around: _Scope | None = scope
        named = table = False
        while around is not None:
            found = _holders(folded, around)
            if found and around.outside:
                raise _refuse_lateral(found[0])
            merged = [one for one in around.merged if one.name == folded]
            plain = named or merged or (key and folded in around.keys)
            if len(found) > 1 and (not plain or len(merged) > 1):
                refuse("column_ambiguous", f"{name} is in several sources; write table.{name}", "columns")
            for alias in found:
                _note_read(folded, alias, around)
            if found:
                if folded not in around.aliases and around.having is not None:
                    around.having.append((node, found))
                if not (table or named or folded in around.aliases or (key and folded in around.outputs)):
                    _write_unqualified(node, found, around)
                break
            table = table or (folded in around.sources and folded not in around.hidden)
            # In aggregates and windows of HAVING and QUALIFY the engine ignores aliases and takes an outer column.
            named = named or folded in around.aliases
            around = around.outer
        if around is None and not named:
            raise self._unknown(name, _visible_names(scope) or sorted(map(scope.written.__getitem__, scope.aliases)))
        if table and not (folded in scope.aliases and syntax_tree.sees_outputs_of_having(node)):
            # The engine would take the whole table, as a struct of its columns.
            refuse("column_unknown", f"{name} is also a table here; give the column or output another alias", "columns")

    def _level(self, alias: str, scope: _Scope, name: str = "") -> _Scope:
        """Return the nearest scope, from this one outwards, that has a source of this name; `name`: a column of it."""
        level: _Scope | None = scope
        column = False
        while level is not None:
            if fold(alias) in level.sources and fold(alias) not in level.hidden:
                if level.outside:
                    raise _refuse_lateral(alias)
                if fold(alias) in level.twice:
                    raise _refuse_twice(alias)
                nearer = level.joined if fold(alias) not in level.joined else ()
                if column or any(fold(alias) in level.folded[one] for one in nearer):
                    # The engine would take the field of a struct column.
                    refuse("column_unknown", f"{alias} is also a column here; give the table another alias", "columns")
                return level
            if (fold(alias), name) in level.datasets:
                # The engine would take the whole table, as a struct of its columns.
                refuse("column_unknown", f"{alias}.{name} is also a table here; give that table an alias", "columns")
            holders = _holders(fold(alias), level)
            # In WHERE the engine goes on where the only such column has no fields.
            column = column or (bool(holders) and (self.fields or level.clause != "where" or len(holders) > 1))
            level = level.outer
        if column:
            refuse("column_unknown", f"{alias} is a column; a struct is read whole, not by its fields", "columns")
        if fold(alias) in scope.hidden:
            refuse(
                "column_unknown",
                f"{alias} is the source of a SEMI or ANTI JOIN; its columns can be used only in that join's ON",
                "columns",
            )
        seen = [scope.written[one] for one in scope.sources if one.strip() and one not in scope.hidden]
        listed = ", ".join(seen) or "none"
        raise refused("column_unknown", f"expected a source in FROM ({listed}), got {alias}", "columns")

    def _unknown(self, shown: str, names: Iterable[str]) -> QueryRefused:
        """Return the refusal of a column that does not exist or is hidden, in the same words, with the visible
        columns.
        """
        hidden = {entry.hidden_column for entry in self.catalogue}
        known = [name for name in dict.fromkeys(names) if name not in hidden]
        more = f" and {len(known) - _LISTED_MAX} more" if len(known) > _LISTED_MAX else ""
        listed = f"{', '.join(known[:_LISTED_MAX])}{more}" or "none"
        return refused("column_unknown", f"no column {shown} can be read here; readable columns: {listed}", "columns")


def _derived_table_scope(scope: _Scope) -> _Scope | None:
    """The outer scope of a derived table: the sources before it in its FROM, then its own outer scope."""
    if not scope.sources:
        return scope.outer
    return _Scope(
        scope.sources,
        scope.folded,
        datasets=scope.datasets,
        hidden=scope.hidden,
        outer=scope.outer,
        outside=True,
    )


def _refuse_twice(alias: str) -> QueryRefused:
    return refused("name_taken", f"{alias} occurs twice in one FROM; give one of them an alias", "names")


def _refuse_lateral(alias: str) -> QueryRefused:
    """Return the refusal of a column of an earlier source in FROM, which the engine would read here."""
    source = "the sources before it" if alias.startswith(" ") else alias  # a source without alias has such a name
    return refused(
        "column_unknown", f"a derived table cannot use {source}; write the condition in ON or WHERE", "columns"
    )


def _refuse_shadowed_having(node: exp.Column, aliases: Sequence[str], scope: _Scope, select: exp.Select) -> None:
    """Refuse an ungrouped column in HAVING whose source name an outer query also uses, for a source or a struct: as it
    is written, it means the outer one.
    """
    around = scope.outer
    while around is not None and not any(one in around.sources or _holders(one, around) for one in aliases):
        around = around.outer
    if around is not None and not _is_grouped(node, scope, select):
        refuse(
            "column_unknown",
            f"HAVING: {node.name} is not in GROUP BY; add it there, or give the tables different aliases",
            "columns",
        )


def _is_grouped(node: exp.Column, scope: _Scope, select: exp.Select) -> bool:
    """Whether a bound column in HAVING is grouped by, or is inside a grouped expression or an aggregate."""
    above: list[exp.Expr] = [node]
    while not isinstance(above[-1], exp.Having) or above[-1].parent is not select:
        above.append(above[-1].parent)  # type: ignore[arg-type]  # it is below that HAVING
    direct = not any(type(one) in _NESTED for one in above)
    if direct and any(isinstance(one, exp.AggFunc | exp.Filter | exp.WithinGroup) for one in above):
        return True
    for key in _group_keys(select, scope):
        if isinstance(key, exp.Star) or (isinstance(key, exp.Column) and key.is_star):
            return True
        if isinstance(key, exp.Column) and fold(key.name) == fold(node.name) and key.table == node.table:
            return True
        if any(one == key for one in above):
            return True
    return False


def _group_keys(select: exp.Select, scope: _Scope) -> Iterable[exp.Expr]:
    """The expressions of GROUP BY, with positions and output names replaced by what they refer to."""
    group, outputs = select.args.get("group"), select.expressions
    if group is not None and group.args.get("all"):
        yield from (output.unalias() for output in outputs)
    called = {fold(output.alias): output.unalias() for output in outputs if isinstance(output, exp.Alias)}
    for key in syntax_tree.group_keys(select):
        if syntax_tree.is_place(key) and 0 < int(key.name) <= len(outputs):
            yield outputs[int(key.name) - 1].unalias()
        elif isinstance(key, exp.Column) and not key.table and not _holders(fold(key.name), scope):
            yield called.get(fold(key.name), key)
        else:
            yield key


def _fold_names(names: tuple[str, ...]) -> frozenset[str]:
    return frozenset(fold(name) for name in names)


def _is_key(node: exp.Expr) -> bool:
    """Whether a column is a whole key of a query's ORDER BY; in a window's ORDER BY outputs are not looked up."""
    order = node.parent.parent if isinstance(node.parent, exp.Ordered) else None
    return isinstance(order, exp.Order) and type(order.parent) in _NESTED


@lru_cache(maxsize=1024)
def _own_columns_cached(columns: tuple[str, ...]) -> Mapping[str, tuple[str, ...]]:
    """`_own_columns` of a dataset under its own names, cached."""
    return _own_columns(columns, columns)


def _own_columns(shown: tuple[str, ...], columns: tuple[str, ...]) -> Mapping[str, tuple[str, ...]]:
    """The columns of a table by the folded names under which they are shown."""
    found: dict[str, tuple[str, ...]] = {}
    for name, column in zip(shown, columns, strict=True):
        found[fold(name)] = (*found.get(fold(name), ()), column)
    return found


def _note_read(name: str, alias: str, scope: _Scope) -> None:
    """Record that a column of a source is read, when the source is a table that has it."""
    if alias in scope.own:
        own, read = scope.own[alias]
        read.update(own.get(name, ()))


def _note_all_read(alias: str, scope: _Scope) -> None:
    if alias in scope.own:
        own, read = scope.own[alias]
        read.update(*own.values())


def _holders(name: str, scope: _Scope) -> list[str]:
    """The sources that have a column of this name."""
    return [alias for alias, columns in scope.folded.items() if name in columns and alias not in scope.hidden]


def _expand_star(scope: _Scope) -> list[str]:
    shown = _visible_names(scope)
    if not shown:
        refuse("column_unknown", "* needs a FROM", "columns")
    return shown


def _visible_names(scope: _Scope) -> list[str]:
    """The columns of all sources in order, merged ones once."""
    return [name for _, name, _ in using.expand_star(scope.sources, scope.hidden, scope.merged)]


def _renamed_columns(columns: tuple[str, ...], alias: exp.Expr | None) -> tuple[str, ...]:
    """The columns under the names of `alias(a, b)`, made distinct as the engine does."""
    given = [] if alias is None else [column.name for column in alias.args.get("columns") or ()]
    if len(given) > len(columns):
        refuse("column_unknown", "an alias names more columns than there are", "columns")
    return tuple(make_distinct((*given, *columns[len(given) :])))


def _rename_source(node: exp.Expr, name: str) -> None:
    """Give a source this alias; the column names of its own alias stay."""
    alias = node.args.get("alias") or exp.TableAlias()
    alias.set("this", exp.to_identifier(name))
    node.set("alias", alias)


def _write_unqualified(node: exp.Column, holders: Sequence[str], scope: _Scope) -> None:
    """Write a column without a source with the one that it is read from: of merged columns, that of their value."""
    merged = next((one for one in scope.merged if one.name == fold(node.name)), None)
    source = holders[0] if merged is None else merged.value
    if source:  # none after a FULL JOIN
        _write_source(node, source, scope)


def _write_source(node: exp.Column, alias: str, scope: _Scope) -> None:
    """Write a column with the generated name of its source, so that the engine finds no other column."""
    node.set("table", exp.to_identifier(scope.fresh[alias]))


def _output_name(shown: exp.Expr) -> str:
    """The output's name: its alias, its column, or its SQL text, which becomes its alias."""
    if isinstance(shown, exp.Alias | exp.Column):
        return shown.alias_or_name
    name = _DIALECT.generate(shown, comments=False)[:60]
    alias = exp.Alias(alias=exp.to_identifier(name, quoted=True))
    shown.replace(alias)
    alias.set("this", shown)
    return name


def _order_all(node: exp.Expr, count: int) -> None:
    """Replace ORDER BY ALL by positions: the engine's parser would report it as columns chosen by a pattern."""
    order = node.args.get("order")
    if order is None or not any(isinstance(one.this, exp.Var) for one in order.expressions):
        return
    if len(order.expressions) != 1:
        refuse("syntax_not_allowed", "ORDER BY ALL takes no other key; remove the others", "syntax")
    given = order.expressions[0]
    positions = []
    for index in range(count):
        position = given.copy()
        position.set("this", exp.Literal.number(index + 1))
        positions.append(position)
    order.set("expressions", positions)


def _drop_stars(query: exp.Expr) -> None:
    """Replace `*` in `EXISTS (SELECT * ...)` by a constant, so that it reads no columns.

    `*` stays where outputs decide the rows or have positions, or where another clause may name them.
    """
    while isinstance(query, exp.Subquery) and not query.args.get("order"):
        query = query.this
    if not isinstance(query, exp.Select) or any(query.args.get(name) for name in _LOOKS_AT_OUTPUTS):
        return
    if any(shown.find(exp.AggFunc) for shown in query.expressions):
        return
    clauses = (query.args.get("from_"), *(query.args.get("joins") or ()))
    sources = {fold(clause.this.alias_or_name) for clause in clauses if clause is not None}
    for shown in query.expressions:
        of_all = isinstance(shown, exp.Star)
        if of_all or (isinstance(shown, exp.Column) and shown.is_star and fold(shown.table) in sources):
            shown.replace(exp.Literal.number(1))


_LOOKS_AT_OUTPUTS = ("distinct", "group", "having", "qualify", "order")
