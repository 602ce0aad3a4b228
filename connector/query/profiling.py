"""What an owner learns about a version when it is registered. Runs in a worker.

Every row is read once, so a corrupt page is found here and not by a consumer. Least and greatest values are the
owner's: whoever publishes the profile leaves them out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from connector.datasets.sources.files import quote_name
from connector.errors import SourceUnreadable
from connector.query.engine import Files

_COLUMNS_AT_ONCE = 16
_TEXT_MAX = 128
_ORDERED = ("INT", "DECIMAL", "FLOAT", "DOUBLE", "DATE", "TIME", "VARCHAR", "BOOLEAN")


def profile(
    con: Any, name: str, files: Files, *, widths: Mapping[str, float], check: Callable[[], None]
) -> dict[str, Any]:
    """Columns with types and figures, row count, bytes, and the digest of each file."""
    described = con.sql(f"DESCRIBE SELECT * FROM {quote_name(name)}").fetchall()  # noqa: S608  quoted
    columns = [(str(row[0]), str(row[1])) for row in described]
    rows = int(con.sql(f"SELECT count(*) FROM {quote_name(name)}").fetchall()[0][0])  # noqa: S608  quoted
    figures: list[dict[str, Any]] = []
    for start in range(0, len(columns), _COLUMNS_AT_ONCE):
        check()
        figures += _figures(con, name, columns[start : start + _COLUMNS_AT_ONCE], rows)
    for figure in figures:
        figure["bytes"] = round(widths.get(figure["name"], 0.0) * rows) or None
    found = digests(files, check=check)
    files.check_unchanged()
    return {"rows": rows, "columns": figures, "files": found, "bytes": sum(file["size"] for file in found)}


def digests(files: Files, *, check: Callable[[], None]) -> list[dict[str, Any]]:
    """Every file with its SHA-256, in order."""
    found = []
    for number, ref in enumerate(files.refs):
        check()
        found.append(ref.to_json() | {"sha256": files.digest(number)})
    return found


def parquet_widths(files: Files) -> dict[str, float]:
    """Average bytes of a value per top-level column by the footers; SourceUnreadable for what we do not read.

    The codec is looked at before anything is decoded: Brotli makes a bomb of a small file.
    """
    sizes: dict[str, int] = {}
    rows = 0
    for number, ref in enumerate(files.refs):
        footer = _footer(files.open(number), ref.name)
        rows += footer.num_rows
        for group in range(footer.num_row_groups):
            for column in range(footer.num_columns):
                chunk = footer.row_group(group).column(column)
                if chunk.compression.upper() not in ("UNCOMPRESSED", "SNAPPY", "ZSTD", "LZ4", "LZ4_RAW", "GZIP"):
                    raise SourceUnreadable(
                        f"expected Parquet with zstd, snappy, lz4, gzip or no compression, came {chunk.compression} "
                        f"in {ref.name!r}; write the file again with zstd",
                        code="codec_refused",
                        file=ref.name,
                    )
                top = chunk.path_in_schema.split(".", 1)[0]
                sizes[top] = sizes.get(top, 0) + chunk.total_uncompressed_size
    return {name: size / max(rows, 1) for name, size in sizes.items()}


def _footer(opened: Any, name: str) -> pq.FileMetaData:
    try:
        return pq.read_metadata(opened)
    except (pa.ArrowException, OSError) as error:
        raise SourceUnreadable(
            f"expected a Parquet file, came something else or a damaged one: {name!r}; write it again",
            code="not_parquet",
            file=name,
        ) from error


def _figures(con: Any, name: str, columns: Sequence[tuple[str, str]], rows: int) -> list[dict[str, Any]]:
    asked = []
    for column, kind in columns:
        quoted = quote_name(column)
        asked += [f"count({quoted})", f"approx_count_distinct({quoted})" if _distinct(kind) else "NULL"]
        ends = ("min", "max") if _ordered(kind) else ()
        asked += [f"left(CAST({end}({quoted}) AS VARCHAR), {_TEXT_MAX})" for end in ends] or ["NULL", "NULL"]
    answer = con.sql(f"SELECT {', '.join(asked)} FROM {quote_name(name)}").fetchall()[0]  # noqa: S608  quoted
    figures = []
    for number, (column, kind) in enumerate(columns):
        count, distinct, least, greatest = answer[4 * number : 4 * number + 4]
        figures.append(
            {
                "name": column,
                "type": kind,
                "null_share": round(1 - count / rows, 6) if rows else 0.0,
                "distinct": distinct,
                "min": least,
                "max": greatest,
            }
        )
    return figures


def _ordered(kind: str) -> bool:
    return "[" not in kind and kind.removeprefix("U").startswith((*_ORDERED, "BIG", "SMALL", "TINY", "HUGE"))


def _distinct(kind: str) -> bool:
    return "[" not in kind and not kind.startswith(("STRUCT", "MAP", "UNION", "INTERVAL"))
