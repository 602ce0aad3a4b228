"""What the main process must not load: the engine and Arrow live in the workers."""

from __future__ import annotations

import subprocess
import sys

_CODE = """
import sys, connector.query.pool, connector.datasets.sources as sources
for kind in sources.SOURCES: sources.source(kind)
print(*sorted({"duckdb", "pyarrow", "xxhash", "sqlglot"} & set(sys.modules)))
"""


def test_the_main_process_loads_neither_engine_nor_arrow() -> None:
    found = subprocess.run([sys.executable, "-c", _CODE], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []
