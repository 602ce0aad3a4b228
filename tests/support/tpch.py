"""TPC-H tables and queries: the standard question of a decision-support engine, used as a second opinion."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import duckdb

TABLES = ("customer", "lineitem", "nation", "orders", "part", "partsupp", "region", "supplier")
_CASES = Path(__file__).parent.parent / "cases" / "sql" / "tpch"


def queries() -> dict[str, str]:
    """`q01` .. `q22` -> SQL, from tests/cases/sql/tpch."""
    return {path.stem: path.read_text() for path in sorted(_CASES.glob("q*.sql"))}


def generate(folder: Path, *, scale: float = 0.01) -> Path:
    """Write the eight tables as Parquet into `folder`."""
    tool = Path(sysconfig.get_path("scripts")) / ("tpchgen-cli.exe" if sys.platform == "win32" else "tpchgen-cli")
    subprocess.run(
        [tool, "parquet", "-s", str(scale), "-o", str(folder)], check=True, capture_output=True, timeout=1200
    )
    return folder


def load(connection: duckdb.DuckDBPyConnection, folder: Path, *, prefix: str = "") -> None:
    """The tables as `prefix` + name in the connection, from the Parquet files."""
    for table in TABLES:
        source = str(folder / f"{table}.parquet")
        connection.execute(f"CREATE TABLE \"{prefix}{table}\" AS FROM read_parquet('{source}')")
