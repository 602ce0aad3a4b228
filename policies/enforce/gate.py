"""The query gate: from a consumer's SQL to the statement that the owner's engine may run (steps 1 to 6, `prepare`).

The input is never trusted to have been checked, and the SQL that runs is generated anew from the tree. Must not know
the engine: the caller runs `sql` with `params` in a worker, after `engine_recheck.check` (step 7).
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
    """One dataset of the caller: its name (owner, table) in queries, the engine's relation, and its contract.

    `id`: the dataset's IRI, by which `ds:joinWith` may name it. `position`: a column of the relation, under a random
    name, with each row's position; it passes the policy unchanged, and the caller removes it from the answer.
    `purpose`: the purpose of this dataset, when it differs from that of the call.
    """

    name: tuple[str, str]
    relation: str
    contract: DataContract
    id: str = ""
    position: str = ""
    purpose: str = ""


@dataclass(frozen=True, slots=True)
class CallerTable:
    """A table that the caller sends to join with, such as keys from another owner; it has no policy."""

    name: str
    relation: str
    columns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PreparedQuery:
    """A statement that may run. `params` are the values of `sql`; they contain policy values and must not be logged.

    `names` and `functions`: what the recheck accepts. `columns`: the output. `datasets`: those that are read.
    `min_group`: an empty answer is refused with `min_group_size`, so that a missing cell and a small cell look the
    same. `read`: the columns of each dataset that the statement itself names or takes by `*`, without those that only
    the policy reads. `units`: units are counted, so groups are also left out where unit counts would identify few.
    `private`: a statement that a worker answers first, with noise; `sql` then reads that answer only.
    `row_multiplicity`: how often a dataset with counted rows occurs where several of its rows may form one row of the
    answer; the caller counts all its rows that often. Datasets not listed are counted as rows leave.
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
    row_multiplicity: Mapping[tuple[str, str], int] = field(default_factory=dict)
    units: bool = False


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
    """Return the statement that answers `sql` under the contracts of `datasets`.

    1. Limits; one statement; a query.
    2. Allowed syntax and functions only.
    3. Table names resolve to datasets of this call.
    4. Column names resolve to visible columns.
    5. Each dataset is replaced by its policy subquery under a random name; casts become TRY_CAST.
    6. The SQL is generated from the tree, without comments.

    `action` and `purpose` are IRIs. `token` returns a new random name on each call; `mask_key` keys hash masks. The
    caller checks the time with `check_time`.

      sql = "SELECT count(*) FROM north.patients"
      prepare(sql, [dataset], action=ds("query"), purpose=None, token=token, mask_key=key).sql

    Raises: QueryRefused with code, sentence and rule.
    """
    tree = parse.parse(sql, caps)  # 1, 2
    original = tree.copy() if any(one.contract.templates for one in datasets) else None
    catalogue = {_catalogue_entry(one): one for one in datasets}
    tables = {TableEntry("", one.name, one.columns): one for one in keys}
    bound = bind.bind(tree, (*catalogue, *tables), name_query=lambda _: token(), name_source=lambda _: token())  # 3, 4
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
        wrapper.equal_time = _takes_equal_time(wrapper.nodes)
    if all(one.contract.grid is None for one in used):
        rewrite.avoid_dictionaries(wrapper.nodes, [node for node, _ in bound.tables])
    for node, entry in bound.tables:  # 5
        if entry in catalogue:
            wrapper.wrap_dataset(node, catalogue[entry])
        else:
            wrapper.wrap_caller_table(node, tables[entry])
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
    """The columns that are read of each dataset, in its order, without the position column."""
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
    """Require rows of one dataset, unaltered (`not_a_stream`): the caller declares a query to be a stream, so a party
    that may stream but not query could otherwise ask anything.
    """
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
    """Enforce `ds:joinWith`: the only datasets that may be in one query with this one. A second use of itself
    counts.
    """
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
    """Return how often each source is used; the sources of a WITH query count once for each use of it."""
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
    """Whether rows of the contract are counted. Grids and noise have limits of their own."""
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
    """Enforce `ds:notTogether`: a statement must not use all of these columns, wherever they occur."""
    for columns in contract.together:
        if asked is None or all(fold(name) in asked for name in columns):
            refuse(
                "columns_together",
                f"{', '.join(columns)} must not be used together; ask for some of them, by name",
                rule_path(contract, "notTogether"),
            )


class _Wrapper:
    """Replaces each dataset by its policy subquery and makes every cast safe."""

    def __init__(self, tree: exp.Expr, maker: StatementBuilder) -> None:
        self.tree = tree
        self.maker = maker
        self.names: list[str] = []
        self.ctes: list[exp.CTE] = []
        self.grid: DataContract | None = None
        self.cells = ""  # the grid's name
        self.nodes = rewrite.list_nodes(tree)
        self.asked = rewrite.make_safe(self.nodes)
        self.equal_time = False  # see `_takes_equal_time`; irrelevant when no row is hidden

    def wrap_dataset(self, node: exp.Table, dataset: GatedDataset) -> None:
        contract = dataset.contract
        _refuse_together(contract, self.asked)
        if contract.grid is not None:
            aggregate_shapes.check(self.tree, contract, _quote_dataset(dataset))
            self.grid, self.cells = contract, self._grid(dataset)
            self._replace_table(node, self.cells)
            return
        placed = (*contract.columns, dataset.position) if dataset.position else contract.columns
        shown = [name for name in placed if self.asked is None or fold(name) in self.asked]
        passed_through = () if contract.row_filter is None else self._passed_on(node, shown)
        query = policy_view.wrap_rows(
            contract, dataset.relation, shown, self.maker, passed_through=passed_through, equal_time=self.equal_time
        )
        node.replace(exp.Subquery(this=query, alias=node.args["alias"]))
        self.names.append(dataset.relation)

    def _passed_on(self, node: exp.Table, shown: Sequence[str]) -> list[str]:
        """The visible columns that the statement only passes on; none when an outer query could name them."""
        looked_at, renamed = _examined_columns(self.tree), node.args["alias"].args.get("columns")
        if looked_at is None or renamed or node.parent is not self.tree.args.get("from_"):
            return []
        return [name for name in shown if fold(name) not in looked_at]

    def wrap_caller_table(self, node: exp.Table, keys: CallerTable) -> None:
        self.names.append(keys.relation)
        self._replace_table(node, keys.relation)

    def finish(self) -> None:
        """Put the WITH queries of the policy before those of the consumer; guard an aggregate-only answer."""
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
    """Return the dataset that answers with noise. Such a query reads nothing else; its shape is checked here."""
    for dataset in used:
        contract = dataset.contract
        if contract.grid is not None and contract.grid.privacy is not None:
            aggregate_shapes.check(tree, contract, _quote_dataset(dataset))
            return dataset
    return None


def _prepare_noised(tree: exp.Expr, maker: StatementBuilder, bound: BoundQuery, dataset: GatedDataset) -> PreparedQuery:
    """Return two statements instead of one (`noised_query`); both are rechecked like any other."""
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
    multiplicity: Mapping[tuple[str, str], int],
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
        row_multiplicity=multiplicity,
        units=coarse is not None and grid.counts_units(tree),
    )


def _examined_columns(tree: exp.Expr) -> set[str] | None:
    """The folded names that a stream uses for more than passing them on; None for other queries."""
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
    """Whether all uses of columns take equal time for every value: sums, groups, and comparisons that are conditions,
    in a single SELECT whose outputs feed no further computation.

    A comparison used as a value is computed for a whole dictionary, and its time depends on the texts.
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
    """The node, or its nearest ancestor, that is of none of these classes."""
    while node is not None and type(node) in classes:
        node = node.parent
    return node


def _is_plain_rows(select: exp.Expr, tree: exp.Expr) -> bool:
    """Whether a SELECT returns rows of one source unaltered and is the root or the source of the next SELECT."""
    around = select.parent
    feeds = isinstance(around, exp.CTE) or (isinstance(around, exp.Subquery) and isinstance(around.parent, exp.From))
    filled = {name for name, value in select.args.items() if value}
    return (select is tree or feeds) and filled <= _STREAMED | {"with_"}


def generate_sql(tree: exp.Expr) -> str:
    """Return DuckDB's SQL for a checked tree: every name quoted, without comments, which parsers read differently."""
    try:
        return parentheses.write(tree, spend=True)
    except RecursionError:
        refuse("query_too_deep", "the query is nested too deeply; flatten it", "depth")


def prepare_withheld_report(dataset: GatedDataset, *, token: Callable[[], str], mask_key: bytes) -> PreparedQuery:
    """Return a statement for the OWNER: one row of figures about what a grid withholds. Never served to a consumer.

    Columns: cells, cells_shown, units, units_shown, rows, rows_shown, rows_with_unit, rows_of_largest.

    Raises: ValueError for a contract without a grid.
    """
    maker = StatementBuilder(Parameters(), token, mask_key)
    tree, names = grid.withheld_report(dataset.contract, dataset.relation, maker)
    return _prepare_for_owner(tree, (dataset.relation, *names), maker, (dataset,))


def prepare_version_report(
    before: GatedDataset, after: GatedDataset, *, token: Callable[[], str], mask_key: bytes
) -> PreparedQuery:
    """Return a statement for the OWNER: the number of `cells` or groups whose change between two versions reveals few
    units.

    Counts groups that both versions show and whose difference comes from fewer units than a group needs, or mostly from
    one. Never served to a consumer.

    Raises: ValueError for a contract without a grid.
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
