"""Program that converts the first rows of an Arrow stream (stdin) to JSON cells (stdout).

Runs in its own process, by its path: the console's process must not load Arrow, and this one must not import the
connector except `connector.infra.formats`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

ROWS_MAX = 200
_CELL_MAX = 200
_RIGHT = ("int", "uint", "float", "double", "decimal", "halffloat")


def cells(stream: bytes, *, most: int) -> dict[str, Any]:
    """Return `columns` (name, type, whether numeric) and at most `most` `rows` of text; None is a null value."""
    import pyarrow as pa

    from connector.infra.formats import text_values

    rows: list[list[str | None]] = []
    with pa.ipc.open_stream(pa.py_buffer(stream)) as reader:
        columns = [
            {"name": one.name, "type": str(one.type), "number": str(one.type).startswith(_RIGHT)}
            for one in reader.schema
        ]
        for batch in reader:
            part = batch.slice(0, most - len(rows))
            values = [
                text_values.column_to_json_values(column) for column in part.columns
            ]  # names may repeat: not by name
            rows += [[_text(value, text_values.value_to_json) for value in row] for row in zip(*values, strict=True)]
            if len(rows) >= most:
                break
    return {"columns": columns, "rows": rows}


def _text(value: Any, dumped: Callable[[Any], str]) -> str | None:
    if value is None:
        return None
    text = f"{value:.6g}" if isinstance(value, float) else value if isinstance(value, str) else dumped(value)
    return text if len(text) <= _CELL_MAX else f"{text[:_CELL_MAX]}…"


if __name__ == "__main__":
    json.dump(cells(sys.stdin.buffer.read(), most=ROWS_MAX), sys.stdout)
