"""From a consumer's SQL to what the owner's engine may run: the whole gate, steps 1 to 6, in `prepare`.

Nothing that came in is trusted to have been checked, and the text that goes out is generated anew. Must not
know the engine: the caller runs `sql` with `params` in a worker, after `recheck.check` (step 7).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from sqlglot import exp

from policies.contracts.columns import fold
from policies.contracts.contract import DataContract, Scalar
from policies.contracts.coverage import check_action, check_purpose, check_time, rule_path
from policies.enforce import (
    aggregate_shapes,
    grid,
    grid_difference,
    noised_query,
    policy_view,
    row_multiplicity,
    template,
)
from policies.enforce.noised_query import PrivateQuery
from policies.enforce.policy_view import Parameters, StatementBuilder
from policies.sql import bind, parentheses, parse, rewrite
from policies.sql.allowed_functions import ENGINE_FUNCTIONS
from policies.sql.bind import BoundQuery, TableEntry
from policies.sql.parse import DEFAULT, Caps, refuse
from policies.vocabulary import ds, resolve_alias

__all__ = [
    "DEFAULT",
    "CallerTable",
    "Caps",
    "GatedDataset",
    "PreparedQuery",
    "check_time",
    "prepare",
    "prepare_version_report",
    "prepare_withheld_report",
]


@dataclass(frozen=True, slots=True)
class GatedDataset:
    """One dataset of the caller: (owner, table) as queries name it, the engine's relation, its contract.

    `id`: the dataset's IRI, by which `ds:joinWith` may name it. `position`: a column of the relation, under a random
    name, that holds each row's place and passes the policy as it is; the caller takes it out of the answer.
    `purpose`: what this one is read for, where it is not what the call is for.
    """

    name: tuple[str, str]
    relation: str
    contract: DataContract
    id: str = ""
    position: str = ""
    purpose: str = ""


@dataclass(frozen=True, slots=True)
class CallerTable:
    """A table that the caller brought along to join with (keys of another owner); no policy stands on it."""

    name: str
    relation: str
    columns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PreparedQuery:
    """What may run: `sql` with named parameters `params`, which hold policy values and never go to a log.

    `names` and `functions` are what the recheck may see; `columns` the output; `datasets` those that are
    read; `min_group`: an empty answer of an aggregate-only query is refused with `min_group_size`, so that no cell and
    a small cell look the same.
    `read`: of each dataset those of its own columns that the statement names anywhere or takes by `*`, whatever it
    calls them; what the policy alone looks at is not among them.
    `units`: whether its groups are left out too where different units are not told.
    `private`: what a worker answers first, with noise; then `sql` reads that answer and nothing else.
    `given_on`: see `_given_on`.
    `drawn`: how often a dataset whose rows are counted is drawn on in a way that may put several rows of it into one
    of the answer; the caller counts all its rows that often. Names that are not there are counted as they leave.
    """

    sql: str
    params: dict[str, Scalar]
    names: tuple[str, ...]
    functions: frozenset[str]
    columns: tuple[str, ...]
    datasets: tuple[GatedDataset, ...]
    aggregate: bool
    min_group: int | None
    read: Mapping[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)
    private: PrivateQuery | None = None
    drawn: Mapping[tuple[str, str], int] = field(default_factory=dict)
    units: bool = False
    given_on: frozenset[str] = frozenset()


def prepare(
    sql: str,
    datasets: Sequence[GatedDataset],
    *,
    action: str,
    purpose: str | None,
    token: Callable[[], str],
    mask_key: bytes,
    caps: Caps = DEFAULT,
    keys: Sequence[CallerTable] = (),
) -> PreparedQuery:
    """The statement that answers `sql` under the contracts of `datasets` (federated-query, section 3.4).

    1. Caps; one statement; a query. 2. Allowed syntax and functions only. 3. Names mean datasets of this
    call. 4. Columns mean visible columns. 5. Each dataset becomes its policy subquery under a random name;
    casts become TRY_CAST. 6. The SQL is generated from the tree, without comments.
    `token` gives a fresh random name each time; `mask_key` keys hash masks. Raises QueryRefused, which
    carries code, sentence and rule. The time is the caller's: `check_time`.
    """
    tree = parse.parse(sql, caps)  # 1, 2
    original = tree.copy() if any(one.contract.templates for one in datasets) else None
    catalogue = {_catalogue_entry(one): one for one in datasets}
    tables = {TableEntry("", one.name, one.columns): one for one in keys}
    bound = bind.bind(tree, (*catalogue, *tables), token=token)  # 3, 4
    used = _datasets_read(bound, catalogue)
    _check_agreed(used, action, purpose)
    if resolve_alias(action) == _STREAM:
        _check_stream(tree, bound)
    _check_joins(used, bound, catalogue, tree)
    if original is not None:
        template.check(original, used, brought=any(entry in tables for _, entry in bound.tables))
    several = row_multiplicity.count_multiplied(tree, bound, {one.name for one in used if _has_row_limit(one.contract)})
    wrapper = _Wrapper(tree, StatementBuilder(Parameters(), token, mask_key))
    if (noisy := _find_noised(tree, bound, used)) is not None:
        return _prepare_noised(tree, wrapper.maker, bound, noisy)  # 5, 6
    if any(one.contract.row_filter is not None for one in used):
        wrapper.even = _takes_equal_time(wrapper.nodes)
    if all(one.contract.grid is None for one in used):
        rewrite.avoid_dictionaries(wrapper.nodes, [node for node, _ in bound.tables])
    for node, entry in bound.tables:  # 5
        if entry in catalogue:
            wrapper.dataset(node, catalogue[entry])
        else:
            wrapper.keys(node, tables[entry])
    wrapper.finish()
    return _build_prepared(tree, wrapper, bound, used, several)  # 6


def _catalogue_entry(dataset: GatedDataset) -> TableEntry:
    contract = dataset.contract
    shown = contract.columns
    if contract.grid is not None:
        shown = grid.queryable_columns(shown, contract.grid)
    elif dataset.position:
        shown = (*shown, dataset.position)
    return TableEntry(*dataset.name, shown, hidden_column=dataset.position)


def _datasets_read(bound: BoundQuery, catalogue: dict[TableEntry, GatedDataset]) -> tuple[GatedDataset, ...]:
    found = dict.fromkeys(entry for _, entry in bound.tables if entry in catalogue)
    if not found:
        refuse("dataset_missing", "the query reads no dataset; name one after FROM", "names")
    return tuple(catalogue[entry] for entry in found)


def _columns_read(bound: BoundQuery) -> dict[tuple[str, str], tuple[str, ...]]:
    """The columns that are read of each dataset, in its own order, without that of the rows' places."""
    return {
        (entry.owner, entry.table): tuple(one for one in entry.columns if one in names and one != entry.hidden_column)
        for entry, names in bound.read.items()
        if entry.owner
    }


def _check_agreed(used: Sequence[GatedDataset], action: str, purpose: str | None) -> None:
    for dataset in used:
        check_action(dataset.contract, action)
        check_purpose(dataset.contract, dataset.purpose or purpose)


def _check_stream(tree: exp.Expr, bound: BoundQuery) -> None:
    """Refuse (`not_a_stream`) all but rows of one dataset as they are. A question says itself that it is a stream:
    whoever may stream and not query would ask what he likes, and call it one."""
    filled = {name for name, value in tree.args.items() if value}
    shown = (output.this if isinstance(output, exp.Alias) else output for output in tree.args.get("expressions") or ())
    plain = isinstance(tree, exp.Select) and "from_" in filled and filled <= _STREAMED
    plain = plain and isinstance(tree.args["from_"].this, exp.Table)
    if not plain or len(bound.tables) != 1 or not all(isinstance(one, exp.Column | exp.Star) for one in shown):
        refuse(
            "not_a_stream",
            "a stream is rows of one dataset as they are: SELECT columns FROM dataset WHERE a condition on its own "
            "columns. Ask for anything else as a query, where the agreement permits those",
            "action",
        )


_STREAM = ds("stream")
_STREAMED = frozenset({"expressions", "from_", "where", "limit"})


def _check_joins(
    used: Sequence[GatedDataset], bound: BoundQuery, catalogue: dict[TableEntry, GatedDataset], tree: exp.Expr
) -> None:
    """`ds:joinWith`: the only datasets that may stand in one query with this one. Itself counts as another."""
    if all(dataset.contract.joins is None for dataset in used):
        return
    stands = _count_sources(tree, bound)
    for dataset in used:
        allowed = dataset.contract.joins
        if allowed is None or sum(stands.values()) == 1:
            continue
        others = [one for one in used if one is not dataset or stands[_catalogue_entry(one)] > 1]
        foreign = any(entry not in catalogue for entry in stands)
        if foreign or not all(_is_named_in(one, dataset, allowed) for one in others):
            refuse(
                "join_not_agreed",
                f"{_quote_dataset(dataset)} can be joined only with {', '.join(allowed) or 'nothing'}"
                " under this agreement",
                rule_path(dataset.contract, "joinWith"),
            )


def _count_sources(tree: exp.Expr, bound: BoundQuery) -> dict[TableEntry, int]:
    """How often each source stands in a query: what a WITH query reads, as often as that is read."""
    readers: dict[str, list[exp.Expr]] = {name: [] for name in bound.names}
    for node in tree.find_all(exp.Table):
        if node.name in readers:
            readers[node.name].append(node)
    known: dict[str, int] = {}

    def times(node: exp.Expr) -> int:
        around = node.find_ancestor(exp.CTE)
        if around is None:
            return 1
        if (name := around.alias) not in known:
            known[name] = sum(map(times, readers[name]))
        return known[name]

    found: dict[TableEntry, int] = {}
    for node, entry in bound.tables:
        found[entry] = found.get(entry, 0) + times(node)
    return found


def _has_row_limit(contract: DataContract) -> bool:
    """Groups and noise have their own bounds; there a row of the answer is meant to be of many."""
    return contract.grid is None and (contract.limits.rows is not None or contract.limits.share is not None)


def _is_named_in(other: GatedDataset, dataset: GatedDataset, allowed: Sequence[str]) -> bool:
    names = {f"{other.name[0]}.{other.name[1]}"}
    if other.id:
        names.add(other.id)
    if other.name[0] == dataset.name[0]:
        names.add(other.name[1])
    return not names.isdisjoint(allowed)


def _quote_dataset(dataset: GatedDataset) -> str:
    return f'"{dataset.name[0]}".{dataset.name[1]}'


def _refuse_together(contract: DataContract, asked: set[str] | None) -> None:
    """`ds:notTogether`: a statement does not use all of these columns, wherever they stand in it."""
    for columns in contract.together:
        if asked is None or all(fold(name) in asked for name in columns):
            refuse(
                "columns_together",
                f"{', '.join(columns)} may not be used together; ask for some of them, by name",
                rule_path(contract, "notTogether"),
            )


class _Wrapper:
    """Puts the policy in place of each dataset, and makes every cast one that cannot fail."""

    def __init__(self, tree: exp.Expr, maker: StatementBuilder) -> None:
        self.tree = tree
        self.maker = maker
        self.names: list[str] = []
        self.ctes: list[exp.CTE] = []
        self.grid: DataContract | None = None
        self.cells = ""  # the grid's name
        self.nodes = rewrite.list_nodes(tree)
        self.asked = rewrite.make_safe(self.nodes)
        self.even = False  # see `_even`; where no row is hidden it makes no difference

    def dataset(self, node: exp.Table, dataset: GatedDataset) -> None:
        contract = dataset.contract
        _refuse_together(contract, self.asked)
        if contract.grid is not None:
            aggregate_shapes.check(self.tree, contract, _quote_dataset(dataset))
            self.grid, self.cells = contract, self._grid(dataset)
            self._replace_table(node, self.cells)
            return
        placed = (*contract.columns, dataset.position) if dataset.position else contract.columns
        shown = [name for name in placed if self.asked is None or fold(name) in self.asked]
        given = () if contract.row_filter is None else self._passed_on(node, shown)
        query = policy_view.wrap_rows(contract, dataset.relation, shown, self.maker, given=given, even=self.even)
        node.replace(exp.Subquery(this=query, alias=node.args["alias"]))
        self.names.append(dataset.relation)

    def _passed_on(self, node: exp.Table, shown: Sequence[str]) -> list[str]:
        """Those of the columns shown that the statement only gives on; none where their names are others around."""
        looked_at, renamed = _examined_columns(self.tree), node.args["alias"].args.get("columns")
        if looked_at is None or renamed or node.parent is not self.tree.args.get("from_"):
            return []
        return [name for name in shown if fold(name) not in looked_at]

    def keys(self, node: exp.Table, keys: CallerTable) -> None:
        self.names.append(keys.relation)
        self._replace_table(node, keys.relation)

    def finish(self) -> None:
        """Put the WITH queries of the policy before those of the user; guard an aggregate-only answer."""
        if self.grid is not None:
            assert isinstance(self.tree, exp.Select)
            grid.guard(self.tree, self.grid, self.cells)
        if self.ctes:
            clause = self.tree.args.get("with_")
            theirs = [] if clause is None else clause.expressions
            self.tree.set("with_", exp.With(expressions=[*self.ctes, *theirs]))

    def _replace_table(self, node: exp.Table, name: str) -> None:
        node.set("this", exp.to_identifier(name, quoted=True))
        node.set("db", None)

    def _grid(self, dataset: GatedDataset) -> str:
        layers = grid.build_grid(dataset.contract, dataset.relation, self.maker)
        for name, query in layers.ctes:
            self.names.append(name)
            self.ctes.append(grid.cte(name, query))
        self.names.append(dataset.relation)
        return layers.name


def _find_noised(tree: exp.Expr, bound: BoundQuery, used: Sequence[GatedDataset]) -> GatedDataset | None:
    """The dataset that answers with noise. Nothing else stands in such a query: its shape is checked here."""
    for dataset in used:
        contract = dataset.contract
        if contract.grid is not None and contract.grid.privacy is not None:
            aggregate_shapes.check(tree, contract, _quote_dataset(dataset))
            return dataset
    return None


def _prepare_noised(tree: exp.Expr, maker: StatementBuilder, bound: BoundQuery, dataset: GatedDataset) -> PreparedQuery:
    """Two statements in place of one (`private`): both are judged like any other before they run."""
    assert isinstance(tree, exp.Select)
    assert dataset.contract.grid is not None
    assert dataset.contract.grid.privacy is not None
    _refuse_together(dataset.contract, rewrite.make_safe(rewrite.list_nodes(tree)))
    parts = noised_query.split_query(tree, dataset.contract, dataset.relation, maker)
    own = rewrite.check_relations(parts.private, parts.names)
    asked = PrivateQuery(
        sql=generate_sql(parts.private),
        params=dict(maker.parameters.values),
        names=tuple(parts.names),
        functions=ENGINE_FUNCTIONS | own,
        noise=parts.noise,
        relation=parts.relation,
        question=parts.question,
        budget=dataset.contract.grid.privacy,
    )
    rewrite.check_relations(parts.public, (parts.relation,))
    return PreparedQuery(
        sql=generate_sql(parts.public),
        params={},
        names=(parts.relation,),
        functions=ENGINE_FUNCTIONS,
        columns=bound.columns,
        datasets=(dataset,),
        aggregate=True,
        min_group=None,
        read=_columns_read(bound),
        private=asked,
    )


def _build_prepared(
    tree: exp.Expr,
    wrapper: _Wrapper,
    bound: BoundQuery,
    used: tuple[GatedDataset, ...],
    drawn: Mapping[tuple[str, str], int],
) -> PreparedQuery:
    coarse = wrapper.grid.grid if wrapper.grid is not None else None
    names = tuple(dict.fromkeys((*wrapper.names, *bound.names)))
    own = rewrite.check_relations(tree, names)
    return PreparedQuery(
        sql=generate_sql(tree),
        params=dict(wrapper.maker.parameters.values),
        names=names,
        functions=ENGINE_FUNCTIONS | own,
        columns=bound.columns,
        datasets=used,
        aggregate=coarse is not None,
        min_group=None if coarse is None else coarse.min_group,
        read=_columns_read(bound),
        drawn=drawn,
        units=coarse is not None and grid.counts_units(tree),
        given_on=_passed_through(tree),
    )


def _passed_through(tree: exp.Expr) -> frozenset[str]:
    """The columns, folded, that a stream of one dataset gives on as they are stored and looks at nowhere: what
    their values are decides on nothing. None of a statement of any other form."""
    if (looked_at := _examined_columns(tree)) is None:
        return frozenset()
    return frozenset(fold(node.name) for node in tree.find_all(exp.Column)) - looked_at


def _examined_columns(tree: exp.Expr) -> set[str] | None:
    """The names, folded, of what a stream of one dataset does more with than to give it on; None where the
    statement is of any other form."""
    found: set[str] = set()
    for node in rewrite.list_nodes(tree) if _is_plain_rows(tree, tree) else (tree,):
        if isinstance(node, exp.Query) and not (isinstance(node, exp.Subquery) or _is_plain_rows(node, tree)):
            return None
        if isinstance(node, exp.Column) and not isinstance(node.parent, exp.Select):
            found.add(fold(node.name))
        elif isinstance(node, exp.Alias):
            found.add(fold(node.alias))
    return found


_COMPARISONS = frozenset({exp.EQ, exp.NEQ, exp.LT, exp.LTE, exp.GT, exp.GTE, exp.Between, exp.In, exp.Is})
_FIGURES = frozenset({exp.Add, exp.Sub, exp.Mul, exp.Neg, exp.Sum, exp.Avg, exp.Min, exp.Max, exp.Count, exp.Paren})
_OUTPUTS = frozenset({exp.Alias, exp.Group, exp.Order, exp.Ordered})
_CONDITIONS = frozenset({exp.And, exp.Or, exp.Not, exp.Paren})
_CLAUSES = frozenset({exp.Where, exp.Having, exp.Join})


def _takes_equal_time(nodes: Sequence[exp.Expr]) -> bool:
    """Whether all that a statement does with a column takes equal time for each value, whatever it is: sums, groups,
    comparisons that are conditions, in a single SELECT, whose outputs nothing computes with.

    A comparison that is a value is computed of a whole dictionary, and of texts takes longer the more of them is alike.
    """
    if sum(isinstance(node, exp.Query) for node in nodes) != 1:
        return False
    return all(map(_is_used_in_equal_time, (node for node in nodes if type(node) is exp.Column)))


def _is_used_in_equal_time(column: exp.Expr) -> bool:
    around = _first_outside(_FIGURES, column.parent)
    if around is not None and type(around) in _COMPARISONS:
        return type(_first_outside(_CONDITIONS, around.parent)) in _CLAUSES
    return type(_first_outside(_OUTPUTS, around)) is exp.Select


def _first_outside(classes: Collection[type[exp.Expr]], node: exp.Expr | None) -> exp.Expr | None:
    """This node, or the first one around it that is of none of these classes."""
    while node is not None and type(node) in classes:
        node = node.parent
    return node


def _is_plain_rows(select: exp.Expr, tree: exp.Expr) -> bool:
    """Whether a part of a statement is rows of one source as they are, and stands where the next one's rows come
    from."""
    around = select.parent
    feeds = isinstance(around, exp.CTE) or (isinstance(around, exp.Subquery) and isinstance(around.parent, exp.From))
    filled = {name for name, value in select.args.items() if value}
    return (select is tree or feeds) and filled <= _STREAMED | {"with_"}


def generate_sql(tree: exp.Expr) -> str:
    """DuckDB's SQL for a checked tree: every name quoted, no comments (two parsers read those differently)."""
    try:
        return parentheses.write(tree, spend=True)
    except RecursionError:
        refuse("query_too_deep", "the query is nested too deeply; flatten it", "depth")


def prepare_withheld_report(dataset: GatedDataset, *, token: Callable[[], str], mask_key: bytes) -> PreparedQuery:
    """For the OWNER: what the grid of an aggregate-only contract keeps back. One row of figures.

    cells, cells_shown, units, units_shown, rows, rows_shown, rows_with_unit; the difference is withheld.
    Raises ValueError for a contract without a grid. Never served to a consumer.
    """
    maker = StatementBuilder(Parameters(), token, mask_key)
    tree, names = grid.withheld_report(dataset.contract, dataset.relation, maker)
    return _prepare_for_owner(tree, (dataset.relation, *names), maker, (dataset,))


def prepare_version_report(
    before: GatedDataset, after: GatedDataset, *, token: Callable[[], str], mask_key: bytes
) -> PreparedQuery:
    """For the OWNER: `cells`, or groups of these, that two versions under one aggregate-only contract both show, and
    whose difference is made of fewer units than a group has, or of one for the most part.

    Raises ValueError for a contract without a grid. Never served to a consumer.
    """
    maker = StatementBuilder(Parameters(), token, mask_key)
    tree, names = grid_difference.count_differences(after.contract, before.relation, after.relation, maker)
    return _prepare_for_owner(tree, (before.relation, after.relation, *names), maker, (before, after))


def _prepare_for_owner(
    tree: exp.Select, names: tuple[str, ...], maker: StatementBuilder, datasets: tuple[GatedDataset, ...]
) -> PreparedQuery:
    own = rewrite.check_relations(tree, names)
    return PreparedQuery(
        sql=generate_sql(tree),
        params=dict(maker.parameters.values),
        names=names,
        functions=ENGINE_FUNCTIONS | own,
        columns=tuple(output.alias for output in tree.expressions),
        datasets=datasets,
        aggregate=True,
        min_group=None,
    )
