"""What processes must not load: the engine and Arrow live in the workers, and hold no more than they need."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from connector.engine.pool.pool import Pool
from connector.engine.pool.protocol import Job, Relation

_CODE = """
import sys, connector.engine.pool.pool, connector.datasets.sources as sources
for kind in sources.SOURCES: sources.source(kind)
print(*sorted({"duckdb", "pyarrow", "xxhash", "sqlglot"} & set(sys.modules)))
"""


def test_the_main_process_loads_neither_engine_nor_arrow() -> None:
    found = subprocess.run([sys.executable, "-c", _CODE], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []


def test_a_worker_loads_no_event_loop() -> None:
    modules = "connector.engine.worker.__main__, connector.engine.worker.session"
    code = f"import sys, {modules}; sys.exit('asyncio' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def _mapped(pid: int) -> str:
    return Path(f"/proc/{pid}/maps").read_text()


async def test_a_worker_loads_no_pandas_where_that_is_installed(tmp_path: Path, numbers: Relation) -> None:
    assert find_spec("pandas") is not None
    async with Pool(tmp_path, size=1) as pool:
        await pool.ask(Job(kind="report", relations={"t": numbers}, sql="SELECT gap, sum(x) FROM t GROUP BY gap"))
        (worker,) = pool._busy | set(pool._idle)
        loaded = _mapped(worker.process.pid)
    assert "pyarrow" in loaded
    assert "pandas" not in loaded
