"""From text to Parquet, once, at registration. Runs in a worker process only."""

from __future__ import annotations

import re
from typing import Any

from connector.datasets.sources.files import quote_name, quote_text
from connector.errors import SourceUnreadable

_BAD_LINES_SHOWN = 20
_BAD_LINES_TOLD = 3
_GROUP_ROWS = 122_880
_HUGE = re.compile(r"\bU?HUGEINT\b")


def write_parquet(con: Any, table: str, target: str, *, bad_lines_max: int) -> dict[str, Any]:
    """Write a table expression as one Parquet file; rows, columns with types, and the lines left out.

    SourceUnreadable with the numbers of bad lines (never their content) when there are more than allowed.
    """
    _copy(con, "*", table, target)
    if _may_be_large(target) and (shown := _exact(con, table)) != "*":
        _copy(con, shown, table, target)
    bad = _bad_lines(con)
    if len(bad) > bad_lines_max:
        told = ", ".join(f"line {one['line']} ({one['column']}: {one['problem']})" for one in bad[:_BAD_LINES_TOLD])
        raise SourceUnreadable(
            f"expected at most {bad_lines_max} unreadable lines, came {len(bad)} or more: {told}; "
            "correct the file or its options",
            code="lines_unreadable",
            lines=bad[:_BAD_LINES_SHOWN],
        )
    columns = con.sql(f"DESCRIBE SELECT * FROM read_parquet({quote_text(target)})").fetchall()  # noqa: S608
    rows = con.sql(f"SELECT count(*) FROM read_parquet({quote_text(target)})").fetchall()[0][0]  # noqa: S608
    return {
        "rows": rows,
        "columns": [{"name": row[0], "type": row[1]} for row in columns],
        "left_out": bad[:_BAD_LINES_SHOWN],
        "left_out_count": len(bad),
    }


def _copy(con: Any, shown: str, table: str, target: str) -> None:
    con.execute(
        f"COPY (SELECT {shown} FROM {table}) TO {quote_text(target)} "  # noqa: S608  quoted, ours
        f"(FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {_GROUP_ROWS}, USE_TMP_FILE false)"
    )


def _may_be_large(target: str) -> bool:
    """Whether a double may have been a whole number of more than 64 bits: by its ends, where they are told.

    To ask text for its types takes another pass over it.
    """
    import pyarrow.parquet as pq  # the engine would remember this footer

    footer = pq.read_metadata(target)
    groups = map(footer.row_group, range(footer.num_row_groups))
    chunks = (group.column(number) for group in groups for number in range(group.num_columns))
    told = (chunk.statistics for chunk in chunks if chunk.physical_type == "DOUBLE")
    return any(one is None or not one.has_min_max or max(-one.min, one.max) >= 2**63 for one in told)


def _exact(con: Any, table: str) -> str:
    """Every column. Whole numbers of more than 64 bits are decimals: Parquet has none, and doubles would round them."""
    columns = con.execute(f"DESCRIBE SELECT * FROM {table}").fetchall()  # noqa: S608  quoted, ours
    large = [(quote_name(row[0]), _HUGE.sub("DECIMAL(38,0)", row[1])) for row in columns if _HUGE.search(row[1])]
    return f"* REPLACE ({', '.join(f'CAST({name} AS {kind}) AS {name}' for name, kind in large)})" if large else "*"


def _bad_lines(con: Any) -> list[dict[str, Any]]:
    found = con.sql("SELECT table_name FROM duckdb_tables() WHERE table_name = 'reject_errors'").fetchall()
    if not found:
        return []
    rows = con.sql("SELECT DISTINCT line, column_name, error_type FROM reject_errors ORDER BY line").fetchall()
    return [{"line": line, "column": column, "problem": str(problem).lower()} for line, column, problem in rows]
