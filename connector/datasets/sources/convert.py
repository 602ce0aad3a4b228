"""From text to Parquet, once, at registration. Runs in a worker process only."""

from __future__ import annotations

from typing import Any

from connector.datasets.sources.files import quote_text
from connector.errors import SourceUnreadable

_BAD_LINES_SHOWN = 20
_GROUP_ROWS = 122_880


def write_parquet(con: Any, table: str, target: str, *, bad_lines_max: int) -> dict[str, Any]:
    """Write a table expression as one Parquet file; rows, columns with types, and the lines left out.

    SourceUnreadable with the numbers of bad lines (never their content) when there are more than allowed.
    """
    con.execute(
        f"COPY (SELECT * FROM {table}) TO {quote_text(target)} "  # noqa: S608  quoted, ours
        f"(FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {_GROUP_ROWS})"
    )
    bad = _bad_lines(con)
    if len(bad) > bad_lines_max:
        raise SourceUnreadable(
            f"expected at most {bad_lines_max} unreadable lines, came {len(bad)} or more; "
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


def _bad_lines(con: Any) -> list[dict[str, Any]]:
    found = con.sql("SELECT table_name FROM duckdb_tables() WHERE table_name = 'reject_errors'").fetchall()
    if not found:
        return []
    rows = con.sql("SELECT DISTINCT line, column_name, error_type FROM reject_errors ORDER BY line").fetchall()
    return [{"line": line, "column": column, "problem": str(problem).lower()} for line, column, problem in rows]
