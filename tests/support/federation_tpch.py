"""TPC-H over three owners, as the planner's figures are taken: `vertical` (each table at one owner) and `horizontal`
(orders and lineitem cut by order over all three). nation and region are public: every owner has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
from sqlglot import exp, parse_one

from connector.federation.planner.model import Partition
from tests.support.federation import Federation

PLACES = {"customer": "a", "orders": "a", "lineitem": "b", "part": "c", "partsupp": "c", "supplier": "c"}
CUT = {"orders": "o_orderkey", "lineitem": "l_orderkey"}
PUBLIC = ("nation", "region")
KEYS: dict[str, Any] = {"shares_keys": True, "takes_keys": True}


def layout(kind: str, folder: Path) -> Federation:
    """The federation of a layout, from the Parquet files in `folder`."""
    found = Federation("a", "b", "c")
    with duckdb.connect(":memory:") as reader:

        def table(name: str, where: str = "true") -> Any:
            return reader.sql(f"SELECT * FROM '{folder / name}.parquet' WHERE {where}").to_arrow_table()

        for name in PUBLIC:
            for owner in found.owners:
                found.add(owner, name, table(name), content=name, **KEYS)
        for name, place in PLACES.items():
            if kind == "vertical" or name not in CUT:
                found.add(place, name, table(name), **KEYS)
                continue
            for number, owner in enumerate(found.owners):
                share = table(name, f"{CUT[name]} % 3 = {number}")
                found.add(owner, name, share, partition=Partition("orders", (CUT[name],)), **KEYS)
    found.unite()
    return found


def written_for(kind: str, sql: str) -> str:
    """A query of the benchmark with the owner before each table."""
    tree = parse_one(sql, read="duckdb")
    own = {cte.alias for cte in tree.find_all(exp.CTE)}
    for table in tree.find_all(exp.Table):
        if table.name not in own:
            owner = "all" if kind == "horizontal" and table.name in CUT else PLACES.get(table.name, "a")
            table.set("db", exp.to_identifier(owner, quoted=True))
    return tree.sql(dialect="duckdb")
