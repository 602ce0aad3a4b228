"""What a plan over many owners costs by itself: its fragments, keys and residual one after the other in plain DuckDB.

In one process, with every processor, no gate, no policy, no connector, no network, nothing written down: what the
product adds is the difference to this, and what this costs more than one DuckDB is the price of data at several owners.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import duckdb

from connector.engine.worker.read.duckdb_engine import others_than_arrow
from connector.federation.planner.model import FederatedPlan, Fragment, Partition, TableInfo, TypeCasts
from connector.federation.planner.planner import merge_sql, plan
from tests.support.federation import columns_of, ordered, values
from tests.support.federation_tpch import CUT, KEYS, PUBLIC


class Alone:
    """Owners' files as views of a database each, and one for the answers."""

    def __init__(self, kind: str, files: Mapping[tuple[str, str], Path]) -> None:
        self.owners = {owner: duckdb.connect(":memory:") for owner, _ in files}
        self.here = duckdb.connect(":memory:")
        self.tables = {key: self._table(kind, *key, path) for key, path in files.items()}

    def _table(self, kind: str, owner: str, dataset: str, path: Path) -> TableInfo:
        con = self.owners[owner]
        con.execute(f"CREATE VIEW {dataset} AS FROM read_parquet('{path}')")
        columns = columns_of(con.sql(f"FROM {dataset}"))
        more: dict[str, Any] = {**KEYS, "content": dataset if dataset in PUBLIC else ""}
        if kind == "horizontal" and dataset in CUT:
            more["partition"] = Partition("orders", (CUT[dataset],))
        ((rows,),) = con.sql(f"SELECT count(*) FROM {dataset}").fetchall()
        return TableInfo(owner, dataset, columns, agreement=f"{owner}/{dataset}", rows=rows, **more)

    def ask(self, sql: str) -> tuple[list[tuple[Any, ...]], float]:
        """The answer, and the seconds from its plan to its last row; planning is measured elsewhere."""
        made = plan(sql, self.tables, across_agreements=True)
        begun = time.perf_counter()
        others = {fragment.id: self._fragment(fragment, made) for fragment in ordered(made.fragments)}
        rows = self.here.sql(merge_sql(made, others)).fetchall()
        taken = time.perf_counter() - begun
        for fragment in made.fragments:
            self.here.execute(f'DROP TABLE "{fragment.id}"')
        return rows, taken

    def _fragment(self, fragment: Fragment, made: FederatedPlan) -> TypeCasts:
        with self.owners[fragment.owner].cursor() as owner:
            for key in fragment.keys:
                owner.register(key.name, values(self.here, key, made))
            found = owner.sql(fragment.sql)
            self.here.register("came", found.to_arrow_table())
            self.here.execute(f'CREATE TABLE "{fragment.id}" AS FROM came')
            self.here.unregister("came")
            return [*others_than_arrow(found.types).items()]
